//! `/api/v1/lines`: the numbers that are answered.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{Json, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::ApiState;
use super::answer::created;
use super::input::{Body, Id, Paged, Params, Whose, sound};
use super::integrations::{Removal, prepared};
use super::problem::{ApiError, Problem, missing, unless_duplicate};
use crate::call::sip::RegistrationInfo;
use crate::http::auth::Caller;
use crate::providers;
use crate::store::Page;
use crate::store::lines::LineInfo;
use crate::store::owners::Owned;
use crate::store::setup::{MAX_NAME, line_fault};
use crate::store::users::Role;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(show, change, remove))
}

/// A line, and how the SIP account that it talks by stands.
#[derive(Serialize, ToSchema)]
pub(super) struct Shown {
    #[serde(flatten)]
    line: LineInfo,
    /// Absent where its integration registers no account.
    #[serde(skip_serializing_if = "Option::is_none")]
    registration: Option<RegistrationInfo>,
}

fn shown(state: &ApiState, line: LineInfo) -> Shown {
    let registration = state.sip.as_ref().and_then(|sip| sip.registration(line.integration_id));
    Shown { line, registration }
}

/// List lines
#[utoipa::path(get, path = "/api/v1/lines", tag = "lines", params(Paged),
    responses((status = 200, body = Page<Shown>), (status = "default", body = Problem)))]
async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Params(paged): Params<Paged>,
) -> Result<Json<Page<Shown>>, ApiError> {
    let company = caller.company(&state, Role::Viewer, paged.company_id).await?;
    let Page { items, next } = state.store.lines(company, paged.part()?).await?;
    Ok(Json(Page { items: items.into_iter().map(|line| shown(&state, line)).collect(), next }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewLine {
    integration_id: Uuid,
    /// A telephone number, a SIP login or an internal number, as the provider lists it.
    number: String,
    agent_id: Uuid,
    #[serde(default)]
    company_id: Option<Uuid>,
}

/// Add a line
#[utoipa::path(post, path = "/api/v1/lines", tag = "lines", request_body = NewLine,
    responses((status = 201, body = Shown), (status = "default", body = Problem)))]
async fn create(State(state): State<ApiState>, caller: Caller, Body(new): Body<NewLine>) -> Result<Response, ApiError> {
    let company = caller.company(&state, Role::Operator, new.company_id).await?;
    let integration = state.store.integration(company, new.integration_id).await?.ok_or_else(missing)?;
    let telephone = providers::kind(&integration.provider).is_some_and(|kind| kind.capabilities.messages);
    let fault = match new.number.as_str() {
        "" => Some("is empty"),
        number if number.chars().count() > MAX_NAME => Some("is too long"),
        number => line_fault(telephone, number),
    };
    sound(fault.map(|problem| ("number".to_owned(), problem.to_owned())))?;
    let added = state.store.add_line(company, new.integration_id, &new.number, new.agent_id).await;
    let id = added.map_err(unless_duplicate("number"))?.ok_or_else(missing)?;
    state.note(&caller, company, "line.added", id, json!({ "number": new.number, "agent": new.agent_id })).await;
    let line = shown(&state, state.store.line(company, id).await?.ok_or_else(missing)?);
    Ok(created(format!("/api/v1/lines/{id}"), line))
}

/// Show a line
#[utoipa::path(get, path = "/api/v1/lines/{id}", tag = "lines", params(("id" = Uuid, Path), Whose),
    responses((status = 200, body = Shown), (status = "default", body = Problem)))]
async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<Json<Shown>, ApiError> {
    let company = caller.owner(&state, Role::Viewer, whose.company_id, Owned::Line, id).await?;
    let line = state.store.line(company, id).await?.ok_or_else(missing)?;
    Ok(Json(shown(&state, line)))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LineChange {
    agent_id: Uuid,
}

/// Have a line answered by another agent
#[utoipa::path(patch, path = "/api/v1/lines/{id}", tag = "lines", params(("id" = Uuid, Path), Whose),
    request_body = LineChange, responses((status = 200, body = Shown), (status = "default", body = Problem)))]
async fn change(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
    Body(change): Body<LineChange>,
) -> Result<Json<Shown>, ApiError> {
    let company = caller.owner(&state, Role::Operator, whose.company_id, Owned::Line, id).await?;
    if !state.store.set_line_agent(company, id, change.agent_id).await? {
        return Err(missing());
    }
    state.note(&caller, company, "line.changed", id, json!({ "agent": change.agent_id })).await;
    Ok(Json(shown(&state, state.store.line(company, id).await?.ok_or_else(missing)?)))
}

/// Remove a line
///
/// Refused while our webhooks stand at its provider.
#[utoipa::path(delete, path = "/api/v1/lines/{id}", tag = "lines", params(("id" = Uuid, Path), Removal),
    responses((status = 204), (status = "default", body = Problem)))]
async fn remove(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(removal): Params<Removal>,
) -> Result<StatusCode, ApiError> {
    let company = caller.owner(&state, Role::Operator, removal.company_id, Owned::Line, id).await?;
    let line = state.store.line(company, id).await?.ok_or_else(missing)?;
    if !removal.force && line.saved_webhooks.is_some() {
        return Err(prepared());
    }
    if !state.store.remove_line(company, id).await? {
        return Err(missing());
    }
    state.note(&caller, company, "line.removed", id, json!({ "number": line.number })).await;
    Ok(StatusCode::NO_CONTENT)
}
