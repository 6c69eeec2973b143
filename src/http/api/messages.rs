//! `/api/v1/messages`: text messages, in and out.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{Json, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::ApiState;
use super::calls::{Way, through};
use super::input::{self, Id, Params, RawBody, Whose, e164, part, phone, sound};
use super::once::{self, Made};
use super::problem::{ApiError, Problem, missing};
use crate::call::desk::MessageRequest;
use crate::http::auth::Caller;
use crate::store::Page;
use crate::store::messages::Message;
use crate::store::owners::Owned;
use crate::store::users::Role;
use crate::telephony::PhoneNumber;

/// Ten segments of 160 characters: Twilio's longest (error 21617 beyond).
const MAX_TEXT: usize = 1600;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(show))
}

#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Those with this number.
    phone: Option<String>,
    /// The `next` of the page before.
    cursor: Option<Uuid>,
    /// From 1 to 200; 50 unless told.
    limit: Option<u64>,
    /// For the administrator, who names a company.
    company_id: Option<Uuid>,
}

/// List messages, newest first
#[utoipa::path(get, path = "/api/v1/messages", tag = "messages", params(Wanted),
    responses((status = 200, body = Page<Message>), (status = "default", body = Problem)))]
async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Params(wanted): Params<Wanted>,
) -> Result<Json<Page<Message>>, ApiError> {
    let company = caller.company(&state, Role::Viewer, wanted.company_id).await?;
    let peer = wanted.phone.as_deref().map(phone);
    Ok(Json(state.store.messages(company, peer.as_deref(), part(wanted.cursor, wanted.limit)?).await?))
}

/// Show a message
#[utoipa::path(get, path = "/api/v1/messages/{id}", tag = "messages", params(("id" = Uuid, Path), Whose),
    responses((status = 200, body = Message), (status = "default", body = Problem)))]
async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<Json<Message>, ApiError> {
    let company = caller.owner(&state, Role::Viewer, whose.company_id, Owned::Message, id).await?;
    state.store.message(company, id).await?.map(Json).ok_or_else(missing)
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewMessage {
    /// E.164.
    to: String,
    text: String,
    /// The line that sends; chosen by itself where neither is named.
    #[serde(default)]
    line_id: Option<Uuid>,
    /// Any line of this integration.
    #[serde(default)]
    integration_id: Option<Uuid>,
    #[serde(default)]
    company_id: Option<Uuid>,
}

/// What was begun.
#[derive(Serialize, ToSchema)]
#[allow(dead_code, reason = "describes the answer, which is kept as text")]
pub(super) struct Begun {
    id: Uuid,
    /// Where it is.
    url: String,
}

/// Send a message
///
/// With an `Idempotency-Key` it is sent once, however often it is asked for.
#[utoipa::path(post, path = "/api/v1/messages", tag = "messages", request_body = NewMessage,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 200 visible characters")),
    responses((status = 201, body = Begun), (status = "default", body = Problem)))]
async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    headers: HeaderMap,
    RawBody(raw): RawBody,
) -> Result<Response, ApiError> {
    let new: NewMessage = input::parse(&raw)?;
    let company = caller.company(&state, Role::Operator, new.company_id).await?;
    let fault = match new.text.trim() {
        "" => Some("is empty".to_owned()),
        _ if new.text.chars().count() > MAX_TEXT => Some(format!("is longer than {MAX_TEXT} characters")),
        _ => None,
    };
    sound(fault.map(|problem| ("text".to_owned(), problem)))?;
    let to = e164("to", &new.to)?;
    let way = Way { line: new.line_id, integration: new.integration_id };
    let (integration, line) = through(&state, company, way).await?;
    let from = line.map(PhoneNumber::new);
    let order = MessageRequest { integration, from, to: to.clone(), text: new.text, answer: false };
    let key = once::key(&headers)?;
    let worker = state.clone();
    let work = async move {
        let id = worker.outbound.message(company, order).await?;
        worker.note(&caller, company, "message.sent", id, json!({ "to": to.as_str() })).await;
        Ok(Made { id, under: "/api/v1/messages" })
    };
    once::once(&state, company, key, &[b"POST /api/v1/messages\n", &raw[..]].concat(), work).await
}
