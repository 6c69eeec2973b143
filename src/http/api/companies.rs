//! `/api/v1/companies`.

use axum::extract::State;
use axum::response::{Json, Response};
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::ApiState;
use super::answer::created;
use super::input::{Body, Id, Paged, Params, name_faults, sound};
use super::problem::{ApiError, Kind, Problem, missing, unless_duplicate};
use crate::http::auth::Caller;
use crate::store::Page;
use crate::store::companies::{Company, CompanySettings};
use crate::store::users::Role;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(show, change))
}

/// List companies
///
/// The administrator sees all, anybody else their own.
#[utoipa::path(get, path = "/api/v1/companies", tag = "companies", params(Paged),
    responses((status = 200, body = Page<Company>), (status = "default", body = Problem)))]
async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Params(paged): Params<Paged>,
) -> Result<Json<Page<Company>>, ApiError> {
    let part = paged.part()?;
    if caller.is_admin() && paged.company_id.is_none() {
        return Ok(Json(state.store.companies(part).await?));
    }
    let own = caller.company(&state, Role::Viewer, paged.company_id).await?;
    let items = state.store.company(own).await?.into_iter().filter(|_| part.after.is_none()).collect();
    Ok(Json(Page { items, next: None }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewCompany {
    name: String,
    #[serde(default)]
    settings: CompanySettings,
}

/// Add a company
///
/// For the administrator alone.
#[utoipa::path(post, path = "/api/v1/companies", tag = "companies", request_body = NewCompany,
    responses((status = 201, body = Company), (status = "default", body = Problem)))]
async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(new): Body<NewCompany>,
) -> Result<Response, ApiError> {
    if !caller.is_admin() {
        return Err(ApiError::because(Kind::Forbidden, "companies are added with the administrator's token"));
    }
    sound(name_faults("name", &new.name).into_iter().chain(settings_faults(&new.settings)))?;
    let company = state.store.add_company(&new.name, &new.settings).await.map_err(unless_duplicate("name"))?;
    state.note(&caller, company.id, "company.added", company.id, json!({ "name": company.name })).await;
    Ok(created(format!("/api/v1/companies/{}", company.id), company))
}

/// Show a company
#[utoipa::path(get, path = "/api/v1/companies/{id}", tag = "companies", params(("id" = uuid::Uuid, Path)),
    responses((status = 200, body = Company), (status = "default", body = Problem)))]
async fn show(State(state): State<ApiState>, caller: Caller, Id(id): Id) -> Result<Json<Company>, ApiError> {
    let id = caller.company(&state, Role::Viewer, Some(id)).await?;
    state.store.company(id).await?.map(Json).ok_or_else(missing)
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CompanyChange {
    /// Stays where it is absent.
    #[serde(default)]
    name: Option<String>,
    /// Replaced as a whole; stay where they are absent.
    #[serde(default)]
    settings: Option<CompanySettings>,
}

/// Change a company's name or settings
///
/// Settings are used at once, also by calls that run.
#[utoipa::path(patch, path = "/api/v1/companies/{id}", tag = "companies", params(("id" = uuid::Uuid, Path)),
    request_body = CompanyChange, responses((status = 200, body = Company), (status = "default", body = Problem)))]
async fn change(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Body(change): Body<CompanyChange>,
) -> Result<Json<Company>, ApiError> {
    let id = caller.company(&state, Role::Owner, Some(id)).await?;
    let old = state.store.company(id).await?.ok_or_else(missing)?;
    let name = change.name.unwrap_or(old.name);
    let settings = change.settings.unwrap_or(old.settings.0);
    sound(name_faults("name", &name).into_iter().chain(settings_faults(&settings)))?;
    if !state.store.update_company(id, &name, &settings).await.map_err(unless_duplicate("name"))? {
        return Err(missing());
    }
    state.note(&caller, id, "company.changed", id, json!({ "name": name, "settings": settings })).await;
    state.store.company(id).await?.map(Json).ok_or_else(missing)
}

fn settings_faults(settings: &CompanySettings) -> impl Iterator<Item = (String, String)> {
    settings.faults().into_iter().map(|(field, problem)| (format!("settings.{field}"), problem))
}
