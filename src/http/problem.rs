//! Errors as RFC 9457 problem JSON. A problem says what the client can act on and nothing of our insides.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// `detail` is a fixed sentence: nothing that a client sent is echoed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    pub detail: Option<&'static str>,
}

impl Problem {
    pub const fn new(status: StatusCode) -> Self {
        Self { status, detail: None }
    }

    pub const fn because(status: StatusCode, detail: &'static str) -> Self {
        Self { status, detail: Some(detail) }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = serde_json::json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
        });
        if let Some(detail) = self.detail {
            body["detail"] = detail.into();
        }
        let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"))];
        (self.status, content_type, body.to_string()).into_response()
    }
}
