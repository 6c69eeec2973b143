//! `/api/v1/integrations/{id}/webhook`: what stands at the provider, written, shown and put back. Where a person types it
//! into the provider's cabinet, what to type.

use axum::extract::State;
use axum::response::Json;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::ApiState;
use super::accounts::Account;
use super::input::{Body, Id, Params, Whose};
use super::integrations::lines_of;
use super::problem::{ApiError, FieldFault, Kind, Problem};
use crate::call::clients::in_time;
use crate::call::wiring;
use crate::http::auth::Caller;
use crate::providers::provider::{LineState, WebhookSetting, Webhooks};
use crate::store::lines::LineInfo;
use crate::store::owners::Owned;
use crate::store::users::Role;

/// Lines that one request may write: each takes the provider two requests or three.
const AT_ONCE: usize = 20;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(show, write, restore))
}

/// How an integration's webhooks come to us.
#[derive(Serialize, ToSchema)]
pub(super) struct Wiring {
    /// `written` by us, `typed` by a person, or `none`.
    mode: &'static str,
    /// Why providers could not reach us by these addresses.
    problem: Option<String>,
    /// Where `typed`: the address, which is a secret.
    url: Option<String>,
    /// Where `typed`: what to do in the provider's cabinet, one step a line.
    instructions: Vec<String>,
    /// Where `written`: by line.
    lines: Vec<LineWiring>,
}

/// One line's webhooks.
#[derive(Serialize, ToSchema)]
pub(super) struct LineWiring {
    line_id: Uuid,
    number: String,
    /// Whether we wrote them.
    written: bool,
    /// What stands at the provider differs from what should.
    drifted: bool,
    found: Vec<WebhookSetting>,
    /// What should stand there instead.
    wanted: Vec<WebhookSetting>,
    warnings: Vec<String>,
    /// Why this line could not be looked at, written or put back.
    error: Option<FieldFault>,
}

impl LineWiring {
    fn of(line: &LineInfo, written: bool, outcome: Result<LineState, ApiError>) -> Self {
        let (state, error) = match outcome {
            Ok(state) => (state, None),
            Err(fault) => {
                let (_, body) = fault.parts();
                let text = |key: &str| body[key].as_str().map(str::to_owned);
                let problem = text("detail").or_else(|| text("title")).unwrap_or_default();
                (LineState::default(), Some(FieldFault { field: text("type").unwrap_or_default(), problem }))
            }
        };
        Self {
            line_id: line.id,
            number: line.number.clone(),
            written,
            drifted: !state.wanted.is_empty(),
            found: state.found,
            wanted: state.wanted,
            warnings: state.warnings,
            error,
        }
    }
}

/// The addresses by which a provider reaches us.
fn addresses(state: &ApiState, account: &Account, id: Uuid) -> (Webhooks, String) {
    let name = account.provider.kind().name;
    let secret = account.webhook_secret.as_ref().map_or("", |secret| secret.expose_secret());
    let typed = state.urls.http(&format!("/webhooks/{name}/{id}/{secret}"));
    (wiring::addresses(name, id, |path| state.urls.http(path)), typed)
}

/// Providers call by https. A simulator on this machine calls as it is told.
fn unreachable(state: &ApiState, account: &Account) -> Option<&'static str> {
    let simulated = reqwest::Url::parse(account.credentials.text("api_base")).ok().is_some_and(|url| {
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    });
    let reached = state.urls.is_secure() || simulated;
    (!reached).then_some("set server.public_url to the https address by which the world reaches this server")
}

async fn account(
    state: &ApiState,
    caller: &Caller,
    whose: Option<Uuid>,
    id: Uuid,
) -> Result<(Uuid, Account), ApiError> {
    let company = caller.owner(state, Role::Owner, whose, Owned::Integration, id).await?;
    Ok((company, state.account(company, id).await?))
}

/// Show the webhooks
///
/// Where we write them, each line is looked at: `drifted` says that somebody changed them. Where a person types them,
/// the address holds a secret.
#[utoipa::path(get, path = "/api/v1/integrations/{id}/webhook", tag = "integrations",
    params(("id" = Uuid, Path), Whose),
    responses((status = 200, body = Wiring), (status = "default", body = Problem)))]
async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<Json<Wiring>, ApiError> {
    let (company, account) = account(&state, &caller, whose.company_id, id).await?;
    let (hooks, url) = addresses(&state, &account, id);
    let instructions = account.provider.instructions(&url);
    let writes = account.provider.kind().capabilities.writes_webhooks;
    let mode = match (writes, instructions.is_empty()) {
        (true, _) => "written",
        (false, false) => "typed",
        (false, true) => "none",
    };
    let mut lines = Vec::new();
    if writes {
        for line in lines_of(&state, company, id).await?.iter().take(AT_ONCE) {
            let found = in_time(account.provider.inspect_line(&line.number, &hooks)).await.map_err(ApiError::from);
            lines.push(LineWiring::of(line, line.saved_webhooks.is_some(), found));
        }
    }
    Ok(Json(Wiring {
        mode,
        problem: (mode != "none").then(|| unreachable(&state, &account)).flatten().map(str::to_owned),
        url: (mode == "typed").then_some(url),
        instructions,
        lines,
    }))
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Selected {
    /// Ids of lines of this integration, 20 at most; all of them where it is absent.
    lines: Option<Vec<Uuid>>,
}

async fn selected(
    state: &ApiState,
    company: Uuid,
    id: Uuid,
    wanted: Option<&[Uuid]>,
) -> Result<Vec<LineInfo>, ApiError> {
    let mut lines = lines_of(state, company, id).await?;
    if let Some(wanted) = wanted {
        if let Some(index) = wanted.iter().position(|id| !lines.iter().any(|line| line.id == *id)) {
            return Err(ApiError::field(format!("lines[{index}]"), "is no line of this integration"));
        }
        lines.retain(|line| wanted.contains(&line.id));
    }
    if lines.len() > AT_ONCE {
        return Err(ApiError::field("lines", format!("name {AT_ONCE} at most")));
    }
    Ok(lines)
}

/// Write the webhooks
///
/// Each line's settings as they are found are kept, for `DELETE`; what is right already is left alone, what drifted is
/// repaired. Nothing is written where the provider could not reach this server.
#[utoipa::path(put, path = "/api/v1/integrations/{id}/webhook", tag = "integrations",
    params(("id" = Uuid, Path), Whose), request_body = Selected,
    responses((status = 200, body = Wiring), (status = "default", body = Problem)))]
async fn write(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
    Body(wanted): Body<Selected>,
) -> Result<Json<Wiring>, ApiError> {
    let (company, account) = account(&state, &caller, whose.company_id, id).await?;
    if !account.provider.kind().capabilities.writes_webhooks {
        return Err(ApiError::because(Kind::TypedByHand, "see the instructions of GET at this address"));
    }
    if let Some(problem) = unreachable(&state, &account) {
        return Err(ApiError::because(Kind::NotPublic, problem));
    }
    let lines = selected(&state, company, id, wanted.lines.as_deref()).await?;
    let worker = state.clone();
    // A client that goes away must not leave a line half written and its old settings forgotten.
    let lines = state
        .finish(async move {
            let (hooks, _) = addresses(&worker, &account, id);
            let mut written = Vec::new();
            for line in &lines {
                let (client, number) = (&*account.provider, &line.number);
                let outcome = wiring::write(&worker.store, client, company, line.id, number, &hooks).await;
                let outcome = outcome.map(|wired| wired.after).map_err(ApiError::from);
                let detail = json!({ "number": line.number, "written": outcome.is_ok() });
                worker.note(&caller, company, "line.webhooks_written", line.id, detail).await;
                written.push(LineWiring::of(line, outcome.is_ok() || line.saved_webhooks.is_some(), outcome));
            }
            Ok(written)
        })
        .await?;
    Ok(Json(Wiring { mode: "written", problem: None, url: None, instructions: Vec::new(), lines }))
}

#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Restored {
    /// Only this line's.
    line: Option<Uuid>,
    /// For the administrator alone: whose it is.
    company_id: Option<Uuid>,
}

/// Put back what stood at the provider before our webhooks
#[utoipa::path(delete, path = "/api/v1/integrations/{id}/webhook", tag = "integrations",
    params(("id" = Uuid, Path), Restored),
    responses((status = 200, body = Wiring), (status = "default", body = Problem)))]
async fn restore(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(wanted): Params<Restored>,
) -> Result<Json<Wiring>, ApiError> {
    let (company, account) = account(&state, &caller, wanted.company_id, id).await?;
    if !account.provider.kind().capabilities.writes_webhooks {
        return Err(ApiError::because(Kind::TypedByHand, "a person typed them in, and a person takes them out"));
    }
    let only = wanted.line.map(|line| vec![line]);
    let mut lines = selected(&state, company, id, only.as_deref()).await?;
    lines.retain(|line| line.saved_webhooks.is_some());
    let worker = state.clone();
    let lines = state
        .finish(async move {
            let (hooks, _) = addresses(&worker, &account, id);
            let mut restored = Vec::new();
            for line in &lines {
                let before = line.saved_webhooks.as_ref().map_or(&[][..], |saved| &saved.0);
                let (client, number) = (&*account.provider, &line.number);
                let outcome = async {
                    wiring::restore(&worker.store, client, company, line.id, number, before).await?;
                    Ok(in_time(client.inspect_line(number, &hooks)).await?)
                };
                let outcome: Result<LineState, ApiError> = outcome.await;
                let detail = json!({ "number": line.number, "restored": outcome.is_ok() });
                worker.note(&caller, company, "line.webhooks_restored", line.id, detail).await;
                restored.push(LineWiring::of(line, outcome.is_err(), outcome));
            }
            Ok(restored)
        })
        .await?;
    Ok(Json(Wiring { mode: "written", problem: None, url: None, instructions: Vec::new(), lines }))
}
