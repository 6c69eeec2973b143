//! `/setup/{token}`: the first company and its owner, made by whoever read the link that the first start printed.

use axum::extract::{Path, State};
use axum::response::{Json, Response};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Value, json};

use super::input::{Body, name_faults, sound};
use super::problem::{ApiError, missing, unless_duplicate};
use super::{ApiState, Client, session};
use crate::store::companies::CompanySettings;
use crate::store::users::Role;

fn is_good(state: &ApiState, token: &str) -> bool {
    state.setup.as_ref().is_some_and(|link| link.is(token))
}

/// Whether the link is still good.
pub(super) async fn show(State(state): State<ApiState>, Path(token): Path<String>) -> Result<Json<Value>, ApiError> {
    let link = state.setup.as_ref().filter(|link| link.is(&token)).ok_or_else(missing)?;
    if *link.used().await || state.store.has_users().await? {
        return Err(missing());
    }
    Ok(Json(json!({ "asks": ["company", "name", "email", "password"] })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct First {
    company: String,
    name: String,
    email: String,
    password: SecretString,
}

/// Makes the company (one that a set-up file made is taken), its owner, and a session.
pub(super) async fn set_up(
    State(state): State<ApiState>,
    Path(token): Path<String>,
    Client(client): Client,
    Body(first): Body<First>,
) -> Result<Response, ApiError> {
    state.log_ins.attempt(client, "", std::time::Instant::now())?;
    if !is_good(&state, &token) {
        return Err(missing());
    }
    let mut faults: Vec<_> =
        [name_faults("company", &first.company), name_faults("name", &first.name)].into_iter().flatten().collect();
    faults.extend(email_fault(&first.email));
    sound(faults)?;
    let worker = state.clone();
    let (person, company) = state.finish(async move { make(&worker, &first).await }).await?;
    session::open(&state, person.0, person.1, Some(company)).await
}

type Person = (uuid::Uuid, String);

async fn make(state: &ApiState, first: &First) -> Result<(Person, uuid::Uuid), ApiError> {
    let link = state.setup.as_ref().ok_or_else(missing)?;
    let mut used = link.used().await;
    if *used || state.store.has_users().await? {
        return Err(missing());
    }
    let _turn = state.log_ins.turn().await?;
    let company = match state.store.company_named(&first.company).await? {
        Some(company) => company.id,
        None => {
            let settings = CompanySettings::default();
            state.store.add_company(&first.company, &settings).await.map_err(unless_duplicate("company"))?.id
        }
    };
    let added = state.store.add_user(company, &first.email, &first.name, &first.password, Role::Owner).await;
    let person = added.map_err(session::password_fault)?;
    *used = true;
    let email = first.email.trim().to_lowercase();
    state.note_as(&format!("user {email}"), Some(company), "company.set_up", &company.to_string(), &json!({})).await;
    Ok(((person, email), company))
}

/// An address that can be typed at the log-in; whether mail arrives there is nobody's concern here.
pub(super) fn email_fault(email: &str) -> Option<(String, String)> {
    let good = email.trim().split_once('@').is_some_and(|(user, host)| !user.is_empty() && host.contains('.'))
        && email.len() <= 254
        && !email.trim().chars().any(|c| c.is_whitespace() || c.is_control());
    (!good).then(|| ("email".to_owned(), "must be an address such as anna@example.com".to_owned()))
}
