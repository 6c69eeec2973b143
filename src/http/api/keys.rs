//! `/api/v1/keys`: API keys. A key's text is answered once, when it is made.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::ApiState;
use super::input::{Body, Id, Params, Whose, name_faults, sound};
use super::problem::{ApiError, Problem, missing};
use crate::http::auth::Caller;
use crate::store::Page;
use crate::store::keys::ApiKey;
use crate::store::owners::Owned;
use crate::store::users::Role;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(revoke))
}

/// List API keys
#[utoipa::path(get, path = "/api/v1/keys", tag = "keys", params(Whose),
    responses((status = 200, body = Page<ApiKey>), (status = "default", body = Problem)))]
async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Params(whose): Params<Whose>,
) -> Result<Json<Page<ApiKey>>, ApiError> {
    let company = caller.company(&state, Role::Owner, whose.company_id).await?;
    Ok(Json(Page { items: state.store.keys(company).await?, next: None }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKey {
    /// What it is for.
    name: String,
    role: Role,
    #[serde(default)]
    company_id: Option<Uuid>,
}

/// A key that was made.
#[derive(Serialize, ToSchema)]
pub(super) struct MadeKey {
    #[serde(flatten)]
    key: ApiKey,
    /// The key itself: it is not shown again.
    secret: String,
}

/// Make an API key
///
/// The answer is the only place where its text is seen.
#[utoipa::path(post, path = "/api/v1/keys", tag = "keys", request_body = NewKey,
    responses((status = 201, body = MadeKey), (status = "default", body = Problem)))]
async fn create(State(state): State<ApiState>, caller: Caller, Body(new): Body<NewKey>) -> Result<Response, ApiError> {
    let company = caller.company(&state, Role::Owner, new.company_id).await?;
    sound(name_faults("name", &new.name))?;
    let (key, secret) = state.store.add_key(company, &new.name, new.role).await?;
    let detail = json!({ "name": key.name, "prefix": key.prefix, "role": key.role });
    state.note(&caller, company, "key.made", key.id, detail).await;
    let made = MadeKey { key, secret: secret.expose_secret().to_owned() };
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// Revoke an API key
///
/// It stays in the list, and opens nothing any more.
#[utoipa::path(delete, path = "/api/v1/keys/{id}", tag = "keys", params(("id" = Uuid, Path), Whose),
    responses((status = 204), (status = "default", body = Problem)))]
async fn revoke(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<StatusCode, ApiError> {
    let company = caller.owner(&state, Role::Owner, whose.company_id, Owned::Key, id).await?;
    if !state.store.revoke_key(company, id).await? {
        return Err(missing());
    }
    state.note(&caller, company, "key.revoked", id, json!({})).await;
    Ok(StatusCode::NO_CONTENT)
}
