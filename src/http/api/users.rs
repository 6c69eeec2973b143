//! `/api/v1/users`: the people of a company.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{Json, Response};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::ApiState;
use super::answer::created;
use super::first::email_fault;
use super::input::{Body, Id, Params, Whose, name_faults, sound};
use super::problem::{ApiError, Kind, Problem, missing};
use super::session::password_fault;
use crate::http::auth::Caller;
use crate::store::Page;
use crate::store::users::{Role, User};

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(show, change, remove))
}

/// List people
#[utoipa::path(get, path = "/api/v1/users", tag = "users", params(Whose),
    responses((status = 200, body = Page<User>), (status = "default", body = Problem)))]
async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Params(whose): Params<Whose>,
) -> Result<Json<Page<User>>, ApiError> {
    let company = caller.company(&state, Role::Owner, whose.company_id).await?;
    Ok(Json(Page { items: state.store.users(company).await?, next: None }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewUser {
    email: String,
    name: String,
    /// At least 10 characters. Somebody who is known at another company keeps the one they have.
    #[schema(value_type = String, format = Password)]
    password: SecretString,
    role: Role,
    #[serde(default)]
    company_id: Option<Uuid>,
}

/// Add a person
#[utoipa::path(post, path = "/api/v1/users", tag = "users", request_body = NewUser,
    responses((status = 201, body = User), (status = "default", body = Problem)))]
async fn create(State(state): State<ApiState>, caller: Caller, Body(new): Body<NewUser>) -> Result<Response, ApiError> {
    let company = caller.company(&state, Role::Owner, new.company_id).await?;
    sound(name_faults("name", &new.name).into_iter().chain(email_fault(&new.email)))?;
    let email = new.email.trim().to_lowercase();
    if state.store.users(company).await?.iter().any(|user| user.email == email) {
        return Err(ApiError::duplicate("email"));
    }
    let id = {
        let _turn = state.log_ins.turn().await?;
        state.store.add_user(company, &email, &new.name, &new.password, new.role).await.map_err(password_fault)?
    };
    state.note(&caller, company, "user.added", id, json!({ "email": email, "role": new.role })).await;
    let user = state.store.user(company, id).await?.ok_or_else(missing)?;
    Ok(created(format!("/api/v1/users/{id}"), user))
}

/// Show a person
#[utoipa::path(get, path = "/api/v1/users/{id}", tag = "users", params(("id" = Uuid, Path), Whose),
    responses((status = 200, body = User), (status = "default", body = Problem)))]
async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<Json<User>, ApiError> {
    let company = caller.company(&state, Role::Owner, whose.company_id).await?;
    state.store.user(company, id).await?.map(Json).ok_or_else(missing)
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UserChange {
    role: Role,
}

/// Change a person's role
#[utoipa::path(patch, path = "/api/v1/users/{id}", tag = "users", params(("id" = Uuid, Path), Whose),
    request_body = UserChange, responses((status = 200, body = User), (status = "default", body = Problem)))]
async fn change(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
    Body(change): Body<UserChange>,
) -> Result<Json<User>, ApiError> {
    let company = caller.company(&state, Role::Owner, whose.company_id).await?;
    if change.role != Role::Owner {
        keep_an_owner(&state, company, id).await?;
    }
    if !state.store.set_role(company, id, change.role).await? {
        return Err(missing());
    }
    state.note(&caller, company, "user.role_changed", id, json!({ "role": change.role })).await;
    state.store.user(company, id).await?.map(Json).ok_or_else(missing)
}

/// Take a person out of the company
///
/// Ends their sessions there.
#[utoipa::path(delete, path = "/api/v1/users/{id}", tag = "users", params(("id" = Uuid, Path), Whose),
    responses((status = 204), (status = "default", body = Problem)))]
async fn remove(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<StatusCode, ApiError> {
    let company = caller.company(&state, Role::Owner, whose.company_id).await?;
    keep_an_owner(&state, company, id).await?;
    if !state.store.remove_user(company, id).await? {
        return Err(missing());
    }
    state.note(&caller, company, "user.removed", id, json!({})).await;
    Ok(StatusCode::NO_CONTENT)
}

/// Refuses what would leave a company without anybody who can let others in.
async fn keep_an_owner(state: &ApiState, company: Uuid, without: Uuid) -> Result<(), ApiError> {
    let users = state.store.users(company).await?;
    let is_owner = |user: &&User| user.role == Role::Owner && user.disabled_at.is_none();
    let Some(user) = users.iter().find(|user| user.id == without) else { return Err(missing()) };
    if is_owner(&user) && users.iter().filter(is_owner).count() == 1 {
        return Err(ApiError::new(Kind::LastOwner));
    }
    Ok(())
}
