//! `Idempotency-Key`: a request that is sent twice is done once, and answered twice with the same.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use uuid::Uuid;

use super::ApiState;
use super::problem::{ApiError, Kind, PROBLEM_JSON};
use crate::call::desk::OutboundError;
use crate::providers::rest::ProviderError;
use crate::store::audit::Repeat;

const HEADER: &str = "idempotency-key";
/// On an answer that was given before.
const REPLAYED: &str = "idempotency-replayed";
const LONGEST: usize = 200;

/// A thing that was made: its id, and where it is.
pub(super) struct Made {
    pub id: Uuid,
    /// `/api/v1/calls`.
    pub under: &'static str,
}

/// The key of a request, if it has one.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| !text.is_empty() && text.len() <= LONGEST);
    match text {
        Some(text) => Ok(Some(text.to_owned())),
        None => Err(ApiError::because(Kind::Malformed, format!("Idempotency-Key: 1 to {LONGEST} visible characters"))),
    }
}

/// Does `work` to its end, once for a key, though its client may have gone.
pub(super) async fn once(
    state: &ApiState,
    company: Uuid,
    key: Option<String>,
    request: &[u8],
    work: impl Future<Output = Result<Made, OutboundError>> + Send + 'static,
) -> Result<Response, ApiError> {
    if let Some(key) = &key {
        match state.store.begin_once(company, key, request).await? {
            Repeat::First => {}
            Repeat::Running => return Err(ApiError::new(Kind::IdempotencyRunning).retry_after(1)),
            Repeat::Different => return Err(ApiError::new(Kind::IdempotencyDifferent)),
            Repeat::Answered { status, body } => return Ok(answer(status, &body, true)),
        }
    }
    let worker = state.clone();
    let done = state.finish(async move { Ok(settle(&worker, company, key.as_deref(), work.await).await) }).await?;
    match done {
        Ok((status, body)) => Ok(answer(status.as_u16(), &body, false)),
        Err(fault) => Err(fault),
    }
}

/// Writes down what a repetition is answered; what certainly was not done may be asked again.
async fn settle(
    state: &ApiState,
    company: Uuid,
    key: Option<&str>,
    outcome: Result<Made, OutboundError>,
) -> Result<(StatusCode, String), ApiError> {
    let maybe_done = outcome.as_ref().err().is_some_and(maybe_done);
    let (status, body): (StatusCode, Value) = match outcome {
        Ok(Made { id, under }) => (StatusCode::CREATED, json!({ "id": id, "url": format!("{under}/{id}") })),
        Err(fault) => {
            let fault = ApiError::from(fault);
            if !maybe_done {
                if let Some(key) = key {
                    state.store.forget_once(company, key).await?;
                }
                return Err(fault);
            }
            fault.parts()
        }
    };
    let body = body.to_string();
    if let Some(key) = key {
        state.store.end_once(company, key, status.as_u16(), &body).await?;
    }
    Ok((status, body))
}

/// The provider was asked and did not answer: it may ring all the same.
fn maybe_done(fault: &OutboundError) -> bool {
    matches!(fault, OutboundError::Provider(ProviderError::Unreachable { maybe_done: true, .. }))
}

fn answer(status: u16, body: &str, again: bool) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = if status.is_success() { HeaderValue::from_static("application/json") } else { PROBLEM_JSON };
    let mut response = (status, [(header::CONTENT_TYPE, kind)], body.to_owned()).into_response();
    let headers = response.headers_mut();
    if again {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
    let made: Option<Value> = serde_json::from_str(body).ok();
    let url = made.as_ref().and_then(|made| made["url"].as_str()).and_then(|url| HeaderValue::from_str(url).ok());
    if let Some(url) = url {
        headers.insert(header::LOCATION, url);
    }
    response
}
