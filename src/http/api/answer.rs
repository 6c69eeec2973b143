//! What handlers answer alike.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use serde::Serialize;

/// 201: the thing that was made, and where it is.
pub(super) fn created(location: String, made: impl Serialize) -> Response {
    (StatusCode::CREATED, [(header::LOCATION, location)], Json(made)).into_response()
}
