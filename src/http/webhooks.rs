//! One door for all webhooks: known integration, then genuine, then within its rate; a question is answered from memory,
//! an event is on disk before it is thanked for. What a webhook means is the provider's business, what becomes of it the
//! desk's.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, FromRequest as _, Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use metrics::counter;
use secrecy::ExposeSecret as _;
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::call::desk::{AfterCall, Desk, Offer};
use crate::call::registry::CallSetup;
use crate::http::problem::Problem;
use crate::http::rate::{Rates, Strangers};
use crate::http::router::AppState;
use crate::http::tokens::PendingCall;
use crate::providers;
use crate::providers::provider::{
    Decision, Event, Kind, Proof, Provider, Refusal, Webhook, WebhookAnswer, WebhookRequest,
};
use crate::store::directory::Integration;
use crate::telephony::CallId;

/// Forged requests of one address that are noted in a minute.
const NOTED_FORGERIES: u32 = 10;

/// What all webhooks share. Cheap to clone.
#[derive(Clone)]
pub struct Door {
    desk: Desk,
    rates: Arc<Rates>,
    strangers: Arc<Strangers>,
    binotel_allow_any: bool,
}

impl Door {
    pub fn new(desk: Desk, webhooks_per_minute: usize, binotel_allow_any: bool) -> Self {
        Self {
            desk,
            rates: Arc::new(Rates::new(webhooks_per_minute)),
            strangers: Arc::new(Strangers::new(NOTED_FORGERIES)),
            binotel_allow_any,
        }
    }

    pub fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Forgets integrations that are gone; called from time to time.
    pub fn tidy(&self) {
        let directory = self.desk.directory();
        self.rates.retain(|id| directory.integration(id).is_some());
    }
}

/// `GET|POST /webhooks/{provider}/{integration}/{subject or secret}`.
pub(super) async fn receive(
    State(state): State<AppState>,
    Path((provider, integration, last)): Path<(String, String, String)>,
    request: Request,
) -> Response {
    let state = &state;
    let Some(kind) = providers::kind(&provider).filter(|kind| kind.proof != Proof::NoWebhooks) else {
        return Problem::new(StatusCode::NOT_FOUND).into_response();
    };
    if !kind.methods.contains(&request.method().as_str()) {
        return Problem::new(StatusCode::METHOD_NOT_ALLOWED).into_response();
    }
    let count = |result: &'static str| {
        counter!("offhook_webhook_total", "provider" => kind.name, "result" => result).increment(1);
    };
    // A secret is no subject, and must not reach the inbox or a log.
    let (route, secret) = match kind.proof {
        Proof::SecretPath => ("", Some(last.as_str())),
        _ => (last.as_str(), None),
    };
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    let client = peer.map(|peer| state.proxies.client(peer, request.headers()));
    // An integration that is not there, is another provider's, or has another secret: as any path that does not exist.
    let Some(integration) = known(state, kind, &integration, secret) else {
        count("unknown_integration");
        return Problem::new(StatusCode::NOT_FOUND).into_response();
    };
    let Ok(speaker) = state.door.desk.client(&integration) else {
        count("not_set_up");
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE).into_response();
    };
    let read = read(state, &*speaker, route, client, request).await;
    let (call, webhook) = match read {
        Ok(read) => read,
        Err(fault) => {
            count(fault.label());
            return refuse(state, &integration, client, fault);
        }
    };
    if let Err(wait) = state.door.rates.admit(integration.id, Instant::now().into_std()) {
        count("limited");
        return too_many(wait);
    }
    let answer = decide(state, &*speaker, &integration, route, call, &webhook).await;
    match answer {
        Ok((result, answer)) => {
            count(result);
            said(answer)
        }
        Err(error) => {
            warn!(integration = %integration.id, %error, "an event is refused for now: its provider must come again");
            count("unavailable");
            Problem::because(StatusCode::SERVICE_UNAVAILABLE, "The event could not be written down; send it again.")
                .into_response()
        }
    }
}

/// The integration that the path names, if the path is right.
fn known(state: &AppState, kind: &Kind, id: &str, secret: Option<&str>) -> Option<Arc<Integration>> {
    let id = Uuid::try_parse(id).ok()?;
    let integration = state.directory.load().integration(id).cloned()?;
    if integration.provider != kind.name {
        return None;
    }
    if let Some(secret) = secret {
        let ours = integration.webhook_secret.as_ref()?.expose_secret().as_bytes();
        if !bool::from(ours.ct_eq(secret.as_bytes())) {
            return None;
        }
    }
    Some(integration)
}

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Refused(Refusal),
    TooLarge,
    /// The body did not come.
    Broken,
}

impl Fault {
    const fn label(self) -> &'static str {
        match self {
            Fault::Refused(refusal) => refusal.label(),
            Fault::TooLarge => "too_large",
            Fault::Broken => "malformed",
        }
    }
}

/// Reads a request and lets its provider judge it. Gives the id of a call that we dialled, where its address has one.
async fn read(
    state: &AppState,
    speaker: &dyn Provider,
    route: &str,
    client: Option<IpAddr>,
    request: Request,
) -> Result<(Option<CallId>, Webhook), Fault> {
    let (parts, body) = request.into_parts();
    let text = |name: header::HeaderName| match parts.headers.get(name) {
        None => Ok(None),
        // What is no text is no good signature and no known type.
        Some(value) => value.to_str().map(|value| Some(value.to_owned())).map_err(|_| Fault::Refused(Refusal::Forged)),
    };
    let signature = match speaker.kind().proof {
        Proof::Signature { header } => {
            let signature = text(header::HeaderName::from_static(header))?;
            // A stranger's request costs no body and no hash.
            Some(signature.ok_or(Fault::Refused(Refusal::Unsigned))?)
        }
        _ => None,
    };
    let content_type = text(header::CONTENT_TYPE)?;
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let url = state.urls.http(path);
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let method = parts.method.as_str().to_owned();
    let body = Bytes::from_request(Request::from_parts(parts, body), state).await.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE { Fault::TooLarge } else { Fault::Broken }
    })?;
    let webhook = speaker
        .read_webhook(&WebhookRequest {
            route,
            method: &method,
            url: &url,
            query: &query,
            content_type: content_type.as_deref(),
            signature: signature.as_deref(),
            client,
            any_address: state.door.binotel_allow_any,
            body: &body,
        })
        .map_err(Fault::Refused)?;
    // Only a signed address is ours; in an unsigned one the query is anybody's.
    let ours = signature.and_then(|_| form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "call"));
    let call = ours.and_then(|(_, id)| Uuid::try_parse(&id).ok()).map(CallId::from);
    Ok((call, webhook))
}

fn refuse(state: &AppState, integration: &Integration, client: Option<IpAddr>, fault: Fault) -> Response {
    debug!(integration = %integration.id, ?client, fault = fault.label(), "webhook refused");
    if !state.door.strangers.noted(client, Instant::now().into_std()) {
        return too_many(std::time::Duration::from_secs(60));
    }
    state.door.desk.note_refusal(integration, fault.label(), client);
    match fault {
        Fault::TooLarge => Problem::new(StatusCode::PAYLOAD_TOO_LARGE),
        Fault::Broken | Fault::Refused(Refusal::Malformed) => Problem::new(StatusCode::BAD_REQUEST),
        Fault::Refused(Refusal::Unsigned) => {
            Problem::because(StatusCode::BAD_REQUEST, "The header with the provider's signature is missing.")
        }
        Fault::Refused(Refusal::WrongType) => Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE),
        Fault::Refused(Refusal::Forged | Refusal::WrongAccount | Refusal::WrongAddress) => {
            Problem::new(StatusCode::FORBIDDEN)
        }
    }
    .into_response()
}

fn too_many(wait: std::time::Duration) -> Response {
    let mut response = Problem::new(StatusCode::TOO_MANY_REQUESTS).into_response();
    // Rounded up: who comes a moment too early is refused again.
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    response
}

/// What the webhook is answered, and the word for the metric.
async fn decide(
    state: &AppState,
    speaker: &dyn Provider,
    integration: &Arc<Integration>,
    route: &str,
    call: Option<CallId>,
    webhook: &Webhook,
) -> Result<(&'static str, WebhookAnswer), crate::call::desk::NotTaken> {
    let desk = &state.door.desk;
    let event = &webhook.event;
    match event {
        Event::CallOffered(news) => {
            let offer = match state.ready() {
                // A PBX is told the way of its call also by a server that takes none: the call may be for people.
                Err(refused) if speaker.kind().capabilities.streams => Offer::Busy(refused),
                _ => desk.offered(integration, news, call),
            };
            Ok(match offer {
                Offer::Talk(setup) => connect(state, speaker, integration, event, *setup).await,
                Offer::Route(line) => ("accepted", speaker.answer(event, &Decision::Route { to: &line })),
                Offer::AsItIs => ("accepted", speaker.answer(event, &Decision::Noted)),
                Offer::NotInService => {
                    warn!(integration = %integration.id, from = %news.from, to = %news.to, "call for a number without a line");
                    ("unknown_number", speaker.answer(event, &Decision::NotInService))
                }
                Offer::Busy(refused) => {
                    warn!(integration = %integration.id, from = %news.from, reason = %refused, "call refused");
                    ("refused", speaker.answer(event, &Decision::Busy))
                }
            })
        }
        Event::CallContinues(_) => {
            let after = desk.after(integration, call);
            Ok(("accepted", answer_after(state, speaker, integration, event, call, after)))
        }
        Event::TransferOver { outcome, .. } => {
            let after = desk.after_transfer(integration, call, *outcome);
            Ok(("accepted", answer_after(state, speaker, integration, event, call, after)))
        }
        Event::PersonAnswers(_) => {
            let answer = match desk.briefing(integration, call) {
                Some((text, language)) => {
                    info!(integration = %integration.id, "a person is told of the caller");
                    speaker.answer(event, &Decision::Say { text: &text, language: &language })
                }
                None => speaker.answer(event, &Decision::Noted),
            };
            Ok(("accepted", answer))
        }
        _ => {
            let url = format!("/webhooks/{}/{}/{route}", integration.provider, integration.id);
            desk.take(integration, route, &url, webhook).await?;
            Ok(("accepted", speaker.answer(event, &Decision::Noted)))
        }
    }
}

/// What a call whose stream is over is answered.
fn answer_after(
    state: &AppState,
    speaker: &dyn Provider,
    integration: &Integration,
    event: &Event,
    call: Option<CallId>,
    after: AfterCall,
) -> WebhookAnswer {
    match after {
        AfterCall::HangUp => speaker.answer(event, &Decision::HangUp),
        AfterCall::Say { text, language } => speaker.answer(event, &Decision::Say { text: &text, language: &language }),
        AfterCall::Transfer { to, from, told } => {
            info!(integration = %integration.id, told, "the caller is handed to a person");
            let hook = |route: &str| call.map(|call| hook(state, integration, route, call));
            let (note_url, over_url) = (hook("person").filter(|_| told), hook("transfer"));
            let (note_url, over_url) = (note_url.as_deref(), over_url.as_deref());
            speaker.answer(event, &Decision::Transfer { to: &to, from: &from, note_url, over_url })
        }
    }
}

/// Where the provider asks more about a call.
fn hook(state: &AppState, integration: &Integration, route: &str, call: CallId) -> String {
    state.urls.http(&format!("/webhooks/{}/{}/{route}?call={call}", integration.provider, integration.id))
}

/// Mints the token that lets the call's media websocket in.
async fn connect(
    state: &AppState,
    speaker: &dyn Provider,
    integration: &Integration,
    event: &Event,
    setup: CallSetup,
) -> (&'static str, WebhookAnswer) {
    let (id, from, to) = (setup.id, setup.from.clone(), setup.to.clone());
    let provider_call = setup.provider_call.clone();
    state.calls.offer(&setup).await;
    let pending = PendingCall { integration: integration.id, setup };
    let Ok(token) = state.tokens.mint(pending, Instant::now().into_std()) else {
        warn!(integration = %integration.id, %from, reason = "too many calls offered at once", "call refused");
        return ("refused", speaker.answer(event, &Decision::Busy));
    };
    info!(call_id = %id, provider_call, integration = %integration.id, %from, %to, "call offered");
    let answer = speaker.answer(
        event,
        &Decision::Talk {
            stream_url: &state.urls.websocket(&format!("/media/twilio/{}", token.as_str())),
            status_url: &hook(state, integration, "stream", id),
            after_url: &hook(state, integration, "after", id),
            call_id: &id.to_string(),
        },
    );
    ("accepted", answer)
}

/// Always 200: to Ringostat anything else is a failure, an empty answer too.
fn said(answer: WebhookAnswer) -> Response {
    ([(header::CONTENT_TYPE, answer.content_type)], answer.body).into_response()
}
