//! `/api/v1/session`: log in, log out, who am I.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::input::Body;
use super::problem::{ApiError, Kind, Problem, missing};
use super::{ApiState, Client};
use crate::http::auth::{self, Caller, SESSION_LIFE, Who};
use crate::store::users::{Membership, Role, UserError};

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(show, log_in, switch, log_out)).routes(routes!(change_password))
}

/// Who asks.
#[derive(Serialize, ToSchema)]
pub(super) struct WhoAmI {
    /// `user`, `key` or `admin`.
    kind: &'static str,
    /// A person's address, or a key's beginning.
    name: String,
    /// Absent for the administrator, who belongs to none.
    company_id: Option<Uuid>,
    role: Role,
    /// Where a person belongs.
    companies: Vec<Membership>,
}

async fn who(state: &ApiState, caller: &Caller) -> Result<WhoAmI, ApiError> {
    let (kind, name, companies) = match &caller.who {
        Who::Admin => ("admin", "admin".to_owned(), Vec::new()),
        Who::Key { prefix, .. } => ("key", prefix.clone(), Vec::new()),
        Who::Person { id, email } => ("user", email.clone(), state.store.memberships(*id).await?),
    };
    Ok(WhoAmI { kind, name, company_id: caller.company, role: caller.role, companies })
}

/// Who am I
#[utoipa::path(get, path = "/api/v1/session", tag = "session",
    responses((status = 200, body = WhoAmI), (status = "default", body = Problem)))]
async fn show(State(state): State<ApiState>, caller: Caller) -> Result<Json<WhoAmI>, ApiError> {
    who(&state, &caller).await.map(Json)
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogIn {
    email: String,
    #[schema(value_type = String, format = Password)]
    password: SecretString,
    /// At which company, for a person who belongs to several; the first by name unless told.
    #[serde(default)]
    company_id: Option<Uuid>,
}

/// Log in
///
/// Sets the session's cookie.
#[utoipa::path(post, path = "/api/v1/session", tag = "session", request_body = LogIn, security(()),
    responses((status = 200, body = WhoAmI), (status = "default", body = Problem)))]
async fn log_in(
    State(state): State<ApiState>,
    Client(client): Client,
    Body(wanted): Body<LogIn>,
) -> Result<Response, ApiError> {
    state.log_ins.attempt(client, &wanted.email, std::time::Instant::now())?;
    let person = {
        let _turn = state.log_ins.turn().await?;
        state.store.log_in(&wanted.email, &wanted.password).await?
    };
    let Some(person) = person else {
        let actor = client.map_or("unknown".into(), |address| address.to_string());
        state.note_as(&actor, None, "session.refused", "", &json!({})).await;
        return Err(ApiError::new(Kind::WrongPassword));
    };
    let email = wanted.email.trim().to_lowercase();
    let response = open(&state, person, email, wanted.company_id).await?;
    Ok(response)
}

/// A session at a company that the person belongs to, with its cookie.
pub(super) async fn open(
    state: &ApiState,
    person: Uuid,
    email: String,
    company: Option<Uuid>,
) -> Result<Response, ApiError> {
    let companies = state.store.memberships(person).await?;
    let chosen = companies.iter().find(|known| company.is_none_or(|wanted| wanted == known.company_id));
    let Some(Membership { company_id, role, .. }) = chosen else { return Err(missing()) };
    let secret = state.store.open_session(person, *company_id, SESSION_LIFE).await?.ok_or_else(missing)?;
    let caller = Caller { who: Who::Person { id: person, email }, company: Some(*company_id), role: *role };
    state.note(&caller, *company_id, "session.opened", person, json!({})).await;
    let cookie = auth::set_cookie(Some(&secret), &state.urls);
    Ok(([(header::SET_COOKIE, cookie)], Json(who(state, &caller).await?)).into_response())
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Switch {
    company_id: Uuid,
}

/// Go on at another company
#[utoipa::path(patch, path = "/api/v1/session", tag = "session", request_body = Switch,
    responses((status = 200, body = WhoAmI), (status = "default", body = Problem)))]
async fn switch(
    State(state): State<ApiState>,
    caller: Caller,
    headers: HeaderMap,
    Body(wanted): Body<Switch>,
) -> Result<Response, ApiError> {
    let Who::Person { id, email } = caller.who else {
        return Err(ApiError::because(Kind::Forbidden, "a key belongs to one company"));
    };
    let opened = open(&state, id, email, Some(wanted.company_id)).await?;
    if let Some(cookie) = auth::cookie(&headers) {
        state.store.close_session(cookie).await?;
    }
    Ok(opened)
}

/// Log out
#[utoipa::path(delete, path = "/api/v1/session", tag = "session",
    responses((status = 204), (status = "default", body = Problem)))]
async fn log_out(State(state): State<ApiState>, caller: Caller, headers: HeaderMap) -> Result<Response, ApiError> {
    if let (Who::Person { .. }, Some(cookie)) = (&caller.who, auth::cookie(&headers)) {
        state.store.close_session(cookie).await?;
    }
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, auth::set_cookie(None, &state.urls))]).into_response())
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangePassword {
    #[schema(value_type = String, format = Password)]
    current: SecretString,
    /// At least 10 characters.
    #[schema(value_type = String, format = Password)]
    password: SecretString,
}

/// Change one's own password
///
/// Ends all sessions of the person, this one included.
#[utoipa::path(put, path = "/api/v1/session/password", tag = "session", request_body = ChangePassword,
    responses((status = 204), (status = "default", body = Problem)))]
async fn change_password(
    State(state): State<ApiState>,
    caller: Caller,
    Client(client): Client,
    Body(change): Body<ChangePassword>,
) -> Result<Response, ApiError> {
    let Who::Person { id, email } = &caller.who else {
        return Err(ApiError::because(Kind::Forbidden, "a key has no password"));
    };
    state.log_ins.attempt(client, email, std::time::Instant::now())?;
    let _turn = state.log_ins.turn().await?;
    if state.store.log_in(email, &change.current).await? != Some(*id) {
        return Err(ApiError::field("current", "is not the password"));
    }
    state.store.set_password(email, &change.password).await.map_err(password_fault)?;
    if let Some(company) = caller.company {
        state.note(&caller, company, "user.password_changed", id, json!({})).await;
    }
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, auth::set_cookie(None, &state.urls))]).into_response())
}

pub(super) fn password_fault(fault: UserError) -> ApiError {
    match fault {
        UserError::Password(fault) => ApiError::field("password", fault.to_string()),
        UserError::Store(fault) => fault.into(),
    }
}
