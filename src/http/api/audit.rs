//! `/api/v1/audit`: who did what, and what was refused.

use axum::extract::State;
use axum::response::Json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::ApiState;
use super::input::{Paged, Params};
use super::problem::{ApiError, Problem};
use crate::http::auth::Caller;
use crate::store::Page;
use crate::store::audit::AuditEntry;
use crate::store::users::Role;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list))
}

/// List what was done, newest first
#[utoipa::path(get, path = "/api/v1/audit", tag = "audit", params(Paged),
    responses((status = 200, body = Page<AuditEntry>), (status = "default", body = Problem)))]
async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Params(paged): Params<Paged>,
) -> Result<Json<Page<AuditEntry>>, ApiError> {
    let company = caller.company(&state, Role::Owner, paged.company_id).await?;
    Ok(Json(state.store.audit_log(company, paged.part()?).await?))
}
