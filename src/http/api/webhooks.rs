//! `/api/v1/webhooks`: where a company is told what happened, what was sent there, and what is sent again.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{Json, Response};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::ApiState;
use super::answer::created;
use super::input::{Body, Id, Ids, Params, Whose, name_faults, part, sound};
use super::problem::{ApiError, Problem, missing, unless_duplicate};
use crate::http::auth::Caller;
use crate::store::endpoints::{Endpoint, EndpointChange, MAX_ENDPOINTS, NewEndpoint, events_fault, url_fault};
use crate::store::outbox::{Delivery, DeliveryState, EventKind};
use crate::store::owners::Owned;
use crate::store::users::Role;
use crate::store::{At, Page};

/// How long an old secret signs beside its successor unless told, and at most, hours.
const KEEP_H: u32 = 24;
const LONGEST_KEEP_H: u32 = 7 * 24;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, change, remove))
        .routes(routes!(rotate))
        .routes(routes!(deliveries))
        .routes(routes!(replay_all))
        .routes(routes!(replay_one))
}

fn faults<'a>(
    name: Option<&'a str>,
    url: Option<&'a str>,
    events: Option<&'a [EventKind]>,
) -> impl Iterator<Item = (String, String)> {
    let name = name.and_then(|name| name_faults("name", name));
    let url = url.and_then(url_fault).map(|problem| ("url".to_owned(), problem.to_owned()));
    let events = events.and_then(events_fault).map(|problem| ("events".to_owned(), problem.to_owned()));
    name.into_iter().chain(url).chain(events)
}

/// List webhooks
#[utoipa::path(get, path = "/api/v1/webhooks", tag = "webhooks", params(Whose),
    responses((status = 200, body = Page<Endpoint>), (status = "default", body = Problem)))]
async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Params(whose): Params<Whose>,
) -> Result<Json<Page<Endpoint>>, ApiError> {
    let company = caller.company(&state, Role::Operator, whose.company_id).await?;
    Ok(Json(Page { items: state.store.endpoints(company).await?, next: None }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewWebhook {
    name: String,
    /// `https://…`, a public address.
    url: String,
    /// All of them where it is absent.
    #[serde(default)]
    events: Option<Vec<EventKind>>,
    #[serde(default)]
    company_id: Option<Uuid>,
}

/// A webhook with a secret that was made for it.
#[derive(Serialize, ToSchema)]
pub(super) struct MadeWebhook {
    #[serde(flatten)]
    webhook: Endpoint,
    /// What signs (`whsec_` and 32 bytes in base64): it is not shown again.
    secret: String,
}

/// Add a webhook
///
/// What happens is posted to it as JSON, `{"id", "type", "timestamp", "data"}`, signed in the way of Standard Webhooks:
/// `webhook-signature` holds `v1,` and the HMAC-SHA256, in base64, of `webhook-id`, `webhook-timestamp` and the body,
/// with dots between, under the bytes of the secret. An answer of 2xx within 15 seconds takes it; else it is tried again
/// for a day, and is a dead letter then. 410 switches the webhook off. The same `webhook-id` may come more than once.
#[utoipa::path(post, path = "/api/v1/webhooks", tag = "webhooks", request_body = NewWebhook,
    responses((status = 201, body = MadeWebhook), (status = "default", body = Problem)))]
async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(new): Body<NewWebhook>,
) -> Result<Response, ApiError> {
    let company = caller.company(&state, Role::Owner, new.company_id).await?;
    let events = new.events.unwrap_or_else(|| EventKind::ALL.into());
    sound(faults(Some(&new.name), Some(&new.url), Some(&events)))?;
    let endpoint = NewEndpoint { company, name: &new.name, url: &new.url, events: &events };
    let added = state.store.add_endpoint(endpoint).await.map_err(unless_duplicate("name"))?;
    let (id, secret) = added.ok_or_else(|| ApiError::field("name", format!("there are {MAX_ENDPOINTS} already")))?;
    state.note(&caller, company, "webhook.added", id, json!({ "name": new.name, "events": events })).await;
    let made =
        MadeWebhook { webhook: endpoint_of(&state, company, id).await?, secret: secret.expose_secret().to_owned() };
    Ok(created(format!("/api/v1/webhooks/{id}"), made))
}

async fn endpoint_of(state: &ApiState, company: Uuid, id: Uuid) -> Result<Endpoint, ApiError> {
    state.store.endpoint(company, id).await?.ok_or_else(missing)
}

/// Show a webhook
#[utoipa::path(get, path = "/api/v1/webhooks/{id}", tag = "webhooks", params(("id" = Uuid, Path), Whose),
    responses((status = 200, body = Endpoint), (status = "default", body = Problem)))]
async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<Json<Endpoint>, ApiError> {
    let company = caller.owner(&state, Role::Operator, whose.company_id, Owned::Webhook, id).await?;
    endpoint_of(&state, company, id).await.map(Json)
}

/// What stays where it is absent.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
pub(super) struct WebhookChange {
    name: Option<String>,
    url: Option<String>,
    events: Option<Vec<EventKind>>,
    enabled: Option<bool>,
}

/// Change a webhook
///
/// Switched off, it is told nothing, and what waits for it becomes dead letters.
#[utoipa::path(patch, path = "/api/v1/webhooks/{id}", tag = "webhooks", params(("id" = Uuid, Path), Whose),
    request_body = WebhookChange, responses((status = 200, body = Endpoint), (status = "default", body = Problem)))]
async fn change(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
    Body(change): Body<WebhookChange>,
) -> Result<Json<Endpoint>, ApiError> {
    let company = caller.owner(&state, Role::Owner, whose.company_id, Owned::Webhook, id).await?;
    sound(faults(change.name.as_deref(), change.url.as_deref(), change.events.as_deref()))?;
    let WebhookChange { name, url, events, enabled } = change;
    let detail = json!({ "name": name, "url": url.is_some(), "events": events, "enabled": enabled });
    let change = EndpointChange { name, url, events, enabled };
    if !state.store.change_endpoint(company, id, &change).await.map_err(unless_duplicate("name"))? {
        return Err(missing());
    }
    state.note(&caller, company, "webhook.changed", id, detail).await;
    endpoint_of(&state, company, id).await.map(Json)
}

/// Remove a webhook
///
/// With everything that waits for it.
#[utoipa::path(delete, path = "/api/v1/webhooks/{id}", tag = "webhooks", params(("id" = Uuid, Path), Whose),
    responses((status = 204), (status = "default", body = Problem)))]
async fn remove(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<StatusCode, ApiError> {
    let company = caller.owner(&state, Role::Owner, whose.company_id, Owned::Webhook, id).await?;
    if !state.store.remove_endpoint(company, id).await? {
        return Err(missing());
    }
    state.note(&caller, company, "webhook.removed", id, json!({})).await;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
pub(super) struct Rotation {
    /// How long the old secret signs beside the new one, hours: 24 unless told, at most 168; 0: no longer.
    keep_h: Option<u32>,
}

/// Change a webhook's secret
///
/// For a time, what is sent carries two signatures: of the new secret and of the old one.
#[utoipa::path(post, path = "/api/v1/webhooks/{id}/rotate", tag = "webhooks", params(("id" = Uuid, Path), Whose),
    request_body = Rotation, responses((status = 200, body = MadeWebhook), (status = "default", body = Problem)))]
async fn rotate(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
    Body(rotation): Body<Rotation>,
) -> Result<Json<MadeWebhook>, ApiError> {
    let company = caller.owner(&state, Role::Owner, whose.company_id, Owned::Webhook, id).await?;
    let keep_h = rotation.keep_h.unwrap_or(KEEP_H);
    if keep_h > LONGEST_KEEP_H {
        return Err(ApiError::field("keep_h", format!("must be at most {LONGEST_KEEP_H}")));
    }
    let keep = Duration::from_secs(u64::from(keep_h) * 3600);
    let secret = state.store.rotate_endpoint(company, id, keep).await?;
    let secret = secret.ok_or_else(missing)?;
    state.note(&caller, company, "webhook.rotated", id, json!({ "keep_h": keep_h })).await;
    let webhook = endpoint_of(&state, company, id).await?;
    Ok(Json(MadeWebhook { webhook, secret: secret.expose_secret().to_owned() }))
}

#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Sent {
    /// Only those that stand so: `waiting`, `delivered`, `dead`.
    state: Option<DeliveryState>,
    /// The `next` of the page before.
    cursor: Option<Uuid>,
    /// From 1 to 200; 50 unless told.
    limit: Option<u64>,
    /// For the administrator alone: whose it is.
    company_id: Option<Uuid>,
}

/// List what a webhook was sent, newest first
///
/// With the status and the beginning of the last answer. What arrived is listed for a week, a dead letter for a month.
#[utoipa::path(get, path = "/api/v1/webhooks/{id}/deliveries", tag = "webhooks", params(("id" = Uuid, Path), Sent),
    responses((status = 200, body = Page<Delivery>), (status = "default", body = Problem)))]
async fn deliveries(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(sent): Params<Sent>,
) -> Result<Json<Page<Delivery>>, ApiError> {
    let company = caller.owner(&state, Role::Operator, sent.company_id, Owned::Webhook, id).await?;
    endpoint_of(&state, company, id).await?;
    Ok(Json(state.store.deliveries(company, id, sent.state, part(sent.cursor, sent.limit)?).await?))
}

/// What was sent again.
#[derive(Serialize, ToSchema)]
pub(super) struct Replayed {
    deliveries: u64,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Since {
    #[schema(value_type = String, format = DateTime)]
    since: At,
}

/// Send all dead letters since a moment again
#[utoipa::path(post, path = "/api/v1/webhooks/{id}/replay", tag = "webhooks", params(("id" = Uuid, Path), Whose),
    request_body = Since, responses((status = 200, body = Replayed), (status = "default", body = Problem)))]
async fn replay_all(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
    Body(since): Body<Since>,
) -> Result<Json<Replayed>, ApiError> {
    let company = caller.owner(&state, Role::Operator, whose.company_id, Owned::Webhook, id).await?;
    on(&endpoint_of(&state, company, id).await?)?;
    let deliveries = state.store.replay_since(company, id, since.since).await?;
    state
        .note(&caller, company, "webhook.replayed", id, json!({ "since": since.since, "deliveries": deliveries }))
        .await;
    Ok(Json(Replayed { deliveries }))
}

/// Send one delivery again
///
/// A dead letter, or one that arrived; with the same `webhook-id`.
#[utoipa::path(post, path = "/api/v1/webhooks/{id}/deliveries/{delivery}/replay", tag = "webhooks",
    params(("id" = Uuid, Path), ("delivery" = Uuid, Path), Whose),
    responses((status = 200, body = Replayed), (status = "default", body = Problem)))]
async fn replay_one(
    State(state): State<ApiState>,
    caller: Caller,
    Ids(id, delivery): Ids,
    Params(whose): Params<Whose>,
) -> Result<Json<Replayed>, ApiError> {
    let company = caller.owner(&state, Role::Operator, whose.company_id, Owned::Webhook, id).await?;
    on(&endpoint_of(&state, company, id).await?)?;
    if !state.store.replay(company, id, delivery).await? {
        return Err(missing());
    }
    state.note(&caller, company, "webhook.replayed", id, json!({ "delivery": delivery })).await;
    Ok(Json(Replayed { deliveries: 1 }))
}

/// What is sent again waits for an endpoint that is switched on.
fn on(endpoint: &Endpoint) -> Result<(), ApiError> {
    if endpoint.enabled { Ok(()) } else { Err(ApiError::field("enabled", "is false: switch the webhook on first")) }
}
