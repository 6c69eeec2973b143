//! `/api/v1/integrations`: accounts with providers. Credentials come in and never go out: an answer has which are set,
//! and the last four characters of secret ones.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{Json, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::ApiState;
use super::answer::created;
use super::input::{Body, Id, Paged, Params, Whose, name_faults, sound};
use super::problem::{ApiError, Kind, Problem, missing, unless_duplicate};
use crate::call::clients::in_time;
use crate::http::auth::Caller;
use crate::providers;
use crate::providers::credentials::{Credentials, CredentialsFault};
use crate::providers::provider::{Capabilities, RemoteLine};
use crate::store::integrations::{IntegrationInfo, NewIntegration};
use crate::store::lines::LineInfo;
use crate::store::owners::Owned;
use crate::store::users::Role;
use crate::store::{Page, Part};

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(providers_list))
        .routes(routes!(list, create))
        .routes(routes!(show, change, remove))
        .routes(routes!(verify))
        .routes(routes!(remote_lines))
}

/// A provider that integrations can be made with.
#[derive(Serialize, ToSchema)]
pub(super) struct ProviderInfo {
    name: &'static str,
    capabilities: Capabilities,
    fields: Vec<FieldInfo>,
}

/// One of its credentials, in the order in which a form asks for them.
#[derive(Serialize, ToSchema)]
pub(super) struct FieldInfo {
    name: &'static str,
    required: bool,
    secret: bool,
    about: &'static str,
}

/// List the providers and what they need
#[utoipa::path(get, path = "/api/v1/providers", tag = "integrations",
    responses((status = 200, body = Page<ProviderInfo>), (status = "default", body = Problem)))]
async fn providers_list(caller: Caller) -> Result<Json<Page<ProviderInfo>>, ApiError> {
    caller.may(Role::Viewer)?;
    let items = providers::KINDS.iter().map(|kind| ProviderInfo {
        name: kind.name,
        capabilities: kind.capabilities,
        fields: kind
            .fields
            .iter()
            .map(|field| FieldInfo {
                name: field.name,
                required: field.required,
                secret: field.secret,
                about: field.about,
            })
            .collect(),
    });
    Ok(Json(Page { items: items.collect(), next: None }))
}

/// List integrations
#[utoipa::path(get, path = "/api/v1/integrations", tag = "integrations", params(Paged),
    responses((status = 200, body = Page<IntegrationInfo>), (status = "default", body = Problem)))]
async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Params(paged): Params<Paged>,
) -> Result<Json<Page<IntegrationInfo>>, ApiError> {
    let company = caller.company(&state, Role::Viewer, paged.company_id).await?;
    Ok(Json(state.store.integrations(company, paged.part()?).await?))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewIntegrationBody {
    name: String,
    /// One of `GET /api/v1/providers`.
    #[schema(example = "twilio")]
    provider: String,
    /// By field; those of a group as `sip.user` or as an object `sip`.
    #[schema(value_type = Object, example = json!({ "account_sid": "AC…", "auth_token": "…" }))]
    credentials: Map<String, Value>,
    #[serde(default)]
    company_id: Option<Uuid>,
}

/// Add an integration
///
/// Credentials are checked for their form only; `verify` asks the provider.
#[utoipa::path(post, path = "/api/v1/integrations", tag = "integrations", request_body = NewIntegrationBody,
    responses((status = 201, body = IntegrationInfo), (status = "default", body = Problem)))]
async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(new): Body<NewIntegrationBody>,
) -> Result<Response, ApiError> {
    let company = caller.company(&state, Role::Owner, new.company_id).await?;
    let mut faults: Vec<_> = name_faults("name", &new.name).into_iter().collect();
    let kind = providers::kind(&new.provider);
    if kind.is_none() {
        let known: Vec<&str> = providers::KINDS.iter().map(|kind| kind.name).collect();
        faults.push(("provider".to_owned(), format!("no such provider; this build connects {}", known.join(", "))));
    }
    let (values, wrong) = flatten(new.credentials);
    faults.extend(wrong);
    let credentials = kind.map(|kind| Credentials::new(kind, present(values)));
    let credentials = match credentials {
        Some(Ok(credentials)) => Some(credentials),
        Some(Err(found)) => {
            faults.extend(found.into_iter().map(credentials_fault));
            None
        }
        None => None,
    };
    sound(faults)?;
    let (Some(kind), Some(credentials)) = (kind, credentials) else { return Err(ApiError::new(Kind::Internal)) };
    (kind.open)(&credentials).map_err(|fault| ApiError::fields([credentials_fault(fault)]))?;
    let added = NewIntegration { company, name: &new.name, kind, credentials: &credentials };
    let id = state.store.add_integration(added).await.map_err(unless_duplicate("name"))?;
    let detail = json!({ "name": new.name, "provider": kind.name });
    state.note(&caller, company, "integration.added", id, detail).await;
    Ok(created(format!("/api/v1/integrations/{id}"), info(&state, company, id).await?))
}

async fn info(state: &ApiState, company: Uuid, id: Uuid) -> Result<IntegrationInfo, ApiError> {
    state.store.integration(company, id).await?.ok_or_else(missing)
}

/// Show an integration
#[utoipa::path(get, path = "/api/v1/integrations/{id}", tag = "integrations", params(("id" = Uuid, Path), Whose),
    responses((status = 200, body = IntegrationInfo), (status = "default", body = Problem)))]
async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<Json<IntegrationInfo>, ApiError> {
    let company = caller.owner(&state, Role::Viewer, whose.company_id, Owned::Integration, id).await?;
    info(&state, company, id).await.map(Json)
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct IntegrationChange {
    #[serde(default)]
    name: Option<String>,
    /// Fields that are named are replaced, or taken away by null; the others stay.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    credentials: Option<Map<String, Value>>,
}

/// Change an integration
///
/// The address of its webhooks stays.
#[utoipa::path(patch, path = "/api/v1/integrations/{id}", tag = "integrations", params(("id" = Uuid, Path), Whose),
    request_body = IntegrationChange,
    responses((status = 200, body = IntegrationInfo), (status = "default", body = Problem)))]
async fn change(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
    Body(change): Body<IntegrationChange>,
) -> Result<Json<IntegrationInfo>, ApiError> {
    let company = caller.owner(&state, Role::Owner, whose.company_id, Owned::Integration, id).await?;
    let old = info(&state, company, id).await?;
    let (stored, _) = state.store.integration_secrets(company, id).await?.ok_or_else(missing)?;
    let kind = providers::kind(&old.provider)
        .ok_or_else(|| ApiError::because(Kind::ProviderCannot, "this build has no such provider"))?;
    let name = change.name.unwrap_or(old.name);
    let mut faults: Vec<_> = name_faults("name", &name).into_iter().collect();
    let (values, wrong) = flatten(change.credentials.unwrap_or_default());
    faults.extend(wrong);
    let changed: Vec<String> = values.keys().cloned().collect();
    let kept = stored.expose().into_iter().map(|(field, value)| (field.to_owned(), Some(value.to_owned())));
    let mut merged: BTreeMap<String, Option<String>> = kept.collect();
    merged.extend(values);
    let credentials = match Credentials::new(kind, present(merged)) {
        Ok(credentials) => credentials,
        Err(found) => {
            faults.extend(found.into_iter().map(credentials_fault));
            return Err(ApiError::fields(faults));
        }
    };
    sound(faults)?;
    (kind.open)(&credentials).map_err(|fault| ApiError::fields([credentials_fault(fault)]))?;
    let new = NewIntegration { company, name: &name, kind, credentials: &credentials };
    if !state.store.update_integration(id, new).await.map_err(unless_duplicate("name"))? {
        return Err(missing());
    }
    // Names of fields only: the log holds no value.
    let detail = json!({ "name": name, "credentials": changed });
    state.note(&caller, company, "integration.changed", id, detail).await;
    info(&state, company, id).await.map(Json)
}

/// Whether to do it though something is lost.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Removal {
    /// Remove it though our webhooks stand at the provider; what stood there before is forgotten.
    pub force: bool,
    /// For the administrator alone: whose it is.
    pub company_id: Option<Uuid>,
}

/// Remove an integration with its lines
///
/// Records of its calls stay. Refused while our webhooks stand at its provider.
#[utoipa::path(delete, path = "/api/v1/integrations/{id}", tag = "integrations", params(("id" = Uuid, Path), Removal),
    responses((status = 204), (status = "default", body = Problem)))]
async fn remove(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(removal): Params<Removal>,
) -> Result<StatusCode, ApiError> {
    let company = caller.owner(&state, Role::Owner, removal.company_id, Owned::Integration, id).await?;
    let old = info(&state, company, id).await?;
    if !removal.force && lines_of(&state, company, id).await?.iter().any(|line| line.saved_webhooks.is_some()) {
        return Err(prepared());
    }
    if !state.store.remove_integration(company, id).await? {
        return Err(missing());
    }
    state.note(&caller, company, "integration.removed", id, json!({ "name": old.name })).await;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn prepared() -> ApiError {
    let detail = "restore what stood there (DELETE /api/v1/integrations/{id}/webhook), or say force=true";
    ApiError::because(Kind::Prepared, detail)
}

/// What came of asking the provider.
#[derive(Serialize, ToSchema)]
pub(super) struct Verified {
    /// As the provider calls it.
    account: String,
    /// A trial account, a suspended one, nobody online.
    warnings: Vec<String>,
    integration: IntegrationInfo,
}

/// Ask the provider whether the credentials are good
///
/// What it says is kept: `verified_at`, or `last_error`.
#[utoipa::path(post, path = "/api/v1/integrations/{id}/verify", tag = "integrations",
    params(("id" = Uuid, Path), Whose),
    responses((status = 200, body = Verified), (status = "default", body = Problem)))]
async fn verify(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<Json<Verified>, ApiError> {
    let company = caller.owner(&state, Role::Owner, whose.company_id, Owned::Integration, id).await?;
    let account = state.account(company, id).await?;
    let outcome = in_time(account.provider.verify()).await;
    let noted = outcome.as_ref().map(|account| account.name.clone()).map_err(ToString::to_string);
    state.store.note_verified(company, id, noted.as_deref().map_err(String::as_str)).await?;
    let (action, detail) = match &noted {
        Ok(account) => ("integration.verified", json!({ "account": account })),
        Err(error) => ("integration.not_verified", json!({ "error": error })),
    };
    state.note(&caller, company, action, id, detail).await;
    let verified = outcome?;
    let integration = info(&state, company, id).await?;
    Ok(Json(Verified { account: verified.name, warnings: verified.warnings, integration }))
}

/// A line at its provider.
#[derive(Serialize, ToSchema)]
pub(super) struct RemoteLineInfo {
    #[serde(flatten)]
    remote: RemoteLine,
    /// The line here that has this number.
    line_id: Option<Uuid>,
    agent: Option<String>,
}

/// List what the provider has that could be a line
#[utoipa::path(get, path = "/api/v1/integrations/{id}/lines", tag = "integrations",
    params(("id" = Uuid, Path), Whose),
    responses((status = 200, body = Page<RemoteLineInfo>), (status = "default", body = Problem)))]
async fn remote_lines(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<Json<Page<RemoteLineInfo>>, ApiError> {
    let company = caller.owner(&state, Role::Operator, whose.company_id, Owned::Integration, id).await?;
    let account = state.account(company, id).await?;
    let remote = in_time(account.provider.lines()).await?;
    let ours = lines_of(&state, company, id).await?;
    let items = remote.into_iter().map(|remote| {
        let line = ours.iter().find(|line| line.number == remote.number);
        let (line_id, agent) = (line.map(|line| line.id), line.map(|line| line.agent.clone()));
        RemoteLineInfo { remote, line_id, agent }
    });
    Ok(Json(Page { items: items.collect(), next: None }))
}

/// Every line of an integration.
pub(super) async fn lines_of(state: &ApiState, company: Uuid, integration: Uuid) -> Result<Vec<LineInfo>, ApiError> {
    let mut lines = Part::all(|part| state.store.lines(company, part)).await?;
    lines.retain(|line| line.integration_id == integration);
    Ok(lines)
}

type Fault = (String, String);

/// Values by the names of fields, `None` for null; objects become names with a dot, lists are written with commas.
fn flatten(credentials: Map<String, Value>) -> (BTreeMap<String, Option<String>>, Vec<Fault>) {
    let (mut values, mut faults) = (BTreeMap::new(), Vec::new());
    for (name, value) in credentials {
        match value {
            Value::Object(group) => {
                for (inner, value) in group {
                    put(format!("{name}.{inner}"), &value, &mut values, &mut faults);
                }
            }
            value => put(name, &value, &mut values, &mut faults),
        }
    }
    (values, faults)
}

fn put(name: String, value: &Value, values: &mut BTreeMap<String, Option<String>>, faults: &mut Vec<Fault>) {
    match (value, plain(value)) {
        (Value::Null, _) => {
            values.insert(name, None);
        }
        (_, Some(text)) => {
            values.insert(name, Some(text));
        }
        _ => faults.push((format!("credentials.{name}"), "must be text or a list of texts".to_owned())),
    }
}

fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Array(items) => Some(items.iter().map(plain).collect::<Option<Vec<_>>>()?.join(",")),
        Value::Null | Value::Object(_) => None,
    }
}

fn present(values: BTreeMap<String, Option<String>>) -> impl Iterator<Item = (String, String)> {
    values.into_iter().filter_map(|(name, value)| Some((name, value?)))
}

fn credentials_fault(fault: CredentialsFault) -> Fault {
    (format!("credentials.{}", fault.field), fault.problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_flat_or_in_groups() {
        let body = json!({
            "key": "k", "gap_ms": 500, "sip": { "user": "u", "peers": ["10.0.0.1", "10.0.0.2"], "odd": { "a": 1 } },
            "gone": null,
        });
        let Value::Object(body) = body else { unreachable!() };
        let (values, faults) = flatten(body);
        let expected = [
            ("gap_ms", Some("500")),
            ("gone", None),
            ("key", Some("k")),
            ("sip.peers", Some("10.0.0.1,10.0.0.2")),
            ("sip.user", Some("u")),
        ];
        let read: Vec<_> = values.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
        assert_eq!(read, expected);
        assert_eq!(faults[0].0, "credentials.sip.odd");
    }
}
