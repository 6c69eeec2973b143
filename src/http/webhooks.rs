//! Twilio's webhooks: a call asks what to do, a call or a stream says what became of it. Each is believed only with a
//! good signature. The voice webhook answers from memory alone: nothing slow happens before the caller is connected.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, FromRequest as _, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use metrics::counter;
use tokio::time::Instant;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::call::registry::CallSetup;
use crate::http::problem::Problem;
use crate::http::router::AppState;
use crate::http::tokens::PendingCall;
use crate::providers::twilio::signature;
use crate::providers::twilio::twiml::{self, ConnectStream, Then};
use crate::store::directory::Integration;
use crate::telephony::{CallId, Direction, PhoneNumber};

/// Said in Twilio's own voice: no agent and so no language is known.
const NOT_IN_SERVICE: &str = "The number you have called is not in service. Goodbye.";

/// `POST /webhooks/twilio/{integration}/voice`: what to do with a call.
pub(super) async fn voice(
    State(state): State<AppState>,
    Path(integration): Path<String>,
    request: Request,
) -> Result<Response, Fault> {
    let form = SignedForm::read(&state, &integration, request).await?;
    let (from, to) = (form.field("From"), form.field("To"));
    // On a call that we asked Twilio to make, our own number is the one it comes from.
    let (direction, ours) = match form.field("Direction") {
        outbound if outbound.starts_with("outbound") => (Direction::Outbound, from),
        _ => (Direction::Inbound, to),
    };
    let provider_call = form.field("CallSid");
    if provider_call.is_empty() {
        return Err(Fault::Malformed);
    }
    let integration = &form.integration;
    let (from, to) = (PhoneNumber::new(from), PhoneNumber::new(to));
    let Some(line) = state.directory.load().line(integration.id, ours).cloned() else {
        warn!(integration = %integration.id, %from, %to, "call for a number without a line");
        count("unknown_number");
        return Ok(answer(twiml::say_and_hangup(NOT_IN_SERVICE, "en-US")));
    };
    if let Err(refused) = state.ready() {
        warn!(integration = %integration.id, %from, reason = %refused, "call refused");
        count("refused");
        return Ok(answer(twiml::reject_busy()));
    }
    let id = CallId::new();
    let setup = CallSetup {
        id,
        direction,
        company: integration.company.clone(),
        company_id: integration.company_id,
        integration: integration.id,
        provider: "twilio",
        provider_call: provider_call.to_owned(),
        line: line.number.clone(),
        from: from.clone(),
        to: to.clone(),
        agent: line.agent.clone(),
        agent_id: Some(line.agent_id),
        agent_version: Some(line.agent_version),
        purpose: None,
    };
    state.calls.offer(&setup).await;
    let pending = PendingCall { integration: integration.id, setup };
    let Ok(token) = state.tokens.mint(pending, Instant::now().into_std()) else {
        warn!(integration = %integration.id, %from, reason = "too many calls offered at once", "call refused");
        count("refused");
        return Ok(answer(twiml::reject_busy()));
    };
    let stream_url = state.urls.websocket(&format!("/media/twilio/{}", token.as_str()));
    let status_url = state.urls.http(&format!("/webhooks/twilio/{}/stream", integration.id));
    let call_id = id.to_string();
    let xml = ConnectStream::new(&stream_url, Then::HangUp)
        .status_callback(&status_url)
        .parameter("call_id", &call_id)
        .expect("a UUID is 36 characters")
        .to_xml();
    info!(call_id, provider_call, integration = %integration.id, %from, %to, "call offered");
    count("accepted");
    Ok(answer(xml))
}

/// `POST /webhooks/twilio/{integration}/status`: how a call goes on. Believed and logged; the media socket says the
/// same sooner.
pub(super) async fn status(
    State(state): State<AppState>,
    Path(integration): Path<String>,
    request: Request,
) -> Result<StatusCode, Fault> {
    let form = SignedForm::read(&state, &integration, request).await?;
    debug!(
        integration = %form.integration.id,
        provider_call = form.field("CallSid"),
        status = form.field("CallStatus"),
        "call status"
    );
    count("accepted");
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /webhooks/twilio/{integration}/stream`: how a media stream goes on. Only here does Twilio say why one failed.
pub(super) async fn stream(
    State(state): State<AppState>,
    Path(integration): Path<String>,
    request: Request,
) -> Result<StatusCode, Fault> {
    let form = SignedForm::read(&state, &integration, request).await?;
    let (integration, provider_call) = (form.integration.id, form.field("CallSid"));
    match form.field("StreamEvent") {
        "stream-error" => {
            let cause = form.field("StreamError");
            warn!(%integration, provider_call, cause, "twilio reports a stream error");
        }
        event => debug!(%integration, provider_call, event, "stream status"),
    }
    count("accepted");
    Ok(StatusCode::NO_CONTENT)
}

fn answer(xml: String) -> Response {
    ([(header::CONTENT_TYPE, twiml::CONTENT_TYPE)], xml).into_response()
}

fn count(result: &'static str) {
    counter!("offhook_webhook_total", "provider" => "twilio", "result" => result).increment(1);
}

/// A form that Twilio has signed for one integration.
struct SignedForm {
    integration: Arc<Integration>,
    fields: Vec<(String, String)>,
}

impl SignedForm {
    async fn read(state: &AppState, integration: &str, request: Request) -> Result<Self, Fault> {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
        let client = peer.map(|peer| state.proxies.client(peer, request.headers()));
        let read = Self::read_quietly(state, integration, request).await;
        if let Err(fault) = &read {
            debug!(client = ?client, fault = fault.label(), "webhook refused");
        }
        read
    }

    /// The cheap checks come first: a stranger's request costs no body and no hash.
    async fn read_quietly(state: &AppState, integration: &str, request: Request) -> Result<Self, Fault> {
        let integration = Uuid::try_parse(integration)
            .ok()
            .and_then(|id| state.directory.load().integration(id).cloned())
            .filter(|integration| integration.provider == "twilio")
            .ok_or(Fault::UnknownIntegration)?;
        let auth_token = integration.credentials.secret("auth_token").ok_or(Fault::UnknownIntegration)?;
        let headers = request.headers();
        let signature = headers.get(signature::HEADER).ok_or(Fault::Unsigned)?;
        let signature = signature.to_str().map_err(|_| Fault::Forged)?.to_owned();
        let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
        let is_form = content_type.is_none_or(|value| {
            value
                .split(';')
                .next()
                .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded"))
        });
        if !is_form {
            return Err(Fault::NotAForm);
        }
        let url = state.urls.http(request.uri().path_and_query().map_or("/", |path| path.as_str()));
        let body = Bytes::from_request(request, state).await.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Fault::TooLarge,
            _ => Fault::Malformed,
        })?;
        let fields: Vec<(String, String)> = form_urlencoded::parse(&body).into_owned().collect();
        signature::verify_form(std::slice::from_ref(auth_token), &url, &fields, &signature)
            .map_err(|_| Fault::Forged)?;
        let form = Self { integration: integration.clone(), fields };
        if form.field("AccountSid") != integration.credentials.text("account_sid") {
            return Err(Fault::WrongAccount);
        }
        Ok(form)
    }

    /// Empty where there is no such field.
    fn field(&self, name: &str) -> &str {
        self.fields.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value)
    }
}

/// Why a webhook was not believed. The label is stable: metrics are keyed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    UnknownIntegration,
    Unsigned,
    Forged,
    WrongAccount,
    TooLarge,
    NotAForm,
    Malformed,
}

impl Fault {
    const fn label(self) -> &'static str {
        match self {
            Fault::UnknownIntegration => "unknown_integration",
            Fault::Unsigned => "unsigned",
            Fault::Forged => "forged",
            Fault::WrongAccount => "wrong_account",
            Fault::TooLarge => "too_large",
            Fault::NotAForm => "not_a_form",
            Fault::Malformed => "malformed",
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        count(self.label());
        match self {
            // As for any path that does not exist.
            Fault::UnknownIntegration => Problem::new(StatusCode::NOT_FOUND),
            Fault::Unsigned => Problem::because(StatusCode::BAD_REQUEST, "X-Twilio-Signature is missing."),
            Fault::Forged | Fault::WrongAccount => Problem::new(StatusCode::FORBIDDEN),
            Fault::TooLarge => Problem::new(StatusCode::PAYLOAD_TOO_LARGE),
            Fault::NotAForm => Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE),
            Fault::Malformed => Problem::new(StatusCode::BAD_REQUEST),
        }
        .into_response()
    }
}
