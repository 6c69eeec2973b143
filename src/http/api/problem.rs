//! What the API answers when it does not do it: RFC 9457 problem JSON with a stable type, and every faulty field.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
use tracing::error;
use utoipa::ToSchema;

use crate::agent::dialling::OutboundRefusal;
use crate::call::clients::AskError;
use crate::call::desk::OutboundError;
use crate::call::registry::Refused;
use crate::call::wiring::WiringError;
use crate::providers::rest::ProviderError;
use crate::store::StoreError;

/// Where the types are explained; a type is this and its slug.
pub(super) const TYPES: &str = "/api/problems";

/// What happened, as clients tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Malformed,
    Invalid,
    Unauthorized,
    WrongPassword,
    Forbidden,
    CrossSite,
    NotFound,
    MethodNotAllowed,
    Duplicate,
    InUse,
    Prepared,
    LastOwner,
    NotRunning,
    TooLarge,
    NotJson,
    Document,
    Range,
    TooManyAttempts,
    TooManyWatchers,
    IdempotencyRunning,
    IdempotencyDifferent,
    NotPublic,
    TypedByHand,
    Number,
    EmergencyNumber,
    PremiumNumber,
    Country,
    QuietHours,
    Cap,
    Unable,
    AgentNotSetUp,
    Full,
    ProviderCredentials,
    ProviderRight,
    ProviderAddress,
    ProviderBusy,
    ProviderUnknown,
    ProviderRefused,
    ProviderUnreachable,
    ProviderCannot,
    Timeout,
    Store,
    Internal,
}

impl Kind {
    pub(super) const ALL: [Kind; 43] = [
        Kind::Malformed,
        Kind::Invalid,
        Kind::Unauthorized,
        Kind::WrongPassword,
        Kind::Forbidden,
        Kind::CrossSite,
        Kind::NotFound,
        Kind::MethodNotAllowed,
        Kind::Duplicate,
        Kind::InUse,
        Kind::Prepared,
        Kind::LastOwner,
        Kind::NotRunning,
        Kind::TooLarge,
        Kind::NotJson,
        Kind::Document,
        Kind::Range,
        Kind::TooManyAttempts,
        Kind::TooManyWatchers,
        Kind::IdempotencyRunning,
        Kind::IdempotencyDifferent,
        Kind::NotPublic,
        Kind::TypedByHand,
        Kind::Number,
        Kind::EmergencyNumber,
        Kind::PremiumNumber,
        Kind::Country,
        Kind::QuietHours,
        Kind::Cap,
        Kind::Unable,
        Kind::AgentNotSetUp,
        Kind::Full,
        Kind::ProviderCredentials,
        Kind::ProviderRight,
        Kind::ProviderAddress,
        Kind::ProviderBusy,
        Kind::ProviderUnknown,
        Kind::ProviderRefused,
        Kind::ProviderUnreachable,
        Kind::ProviderCannot,
        Kind::Timeout,
        Kind::Store,
        Kind::Internal,
    ];

    /// Slug, status and title.
    pub(super) const fn facts(self) -> (&'static str, StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Kind::Malformed => ("malformed", S::BAD_REQUEST, "The request cannot be read"),
            Kind::Invalid => ("invalid", S::UNPROCESSABLE_ENTITY, "Some fields are wrong"),
            Kind::Unauthorized => ("unauthorized", S::UNAUTHORIZED, "No valid key or session"),
            Kind::WrongPassword => ("wrong-password", S::UNAUTHORIZED, "Address or password is wrong"),
            Kind::Forbidden => ("forbidden", S::FORBIDDEN, "The role does not allow this"),
            Kind::CrossSite => ("cross-site", S::FORBIDDEN, "The request may come from another site"),
            Kind::NotFound => ("not-found", S::NOT_FOUND, "There is no such thing"),
            Kind::MethodNotAllowed => ("method-not-allowed", S::METHOD_NOT_ALLOWED, "Not a method of this address"),
            Kind::Duplicate => ("duplicate", S::CONFLICT, "There is one of this name already"),
            Kind::InUse => ("in-use", S::CONFLICT, "Something depends on it"),
            Kind::Prepared => ("webhooks-written", S::CONFLICT, "Our webhooks stand at the provider"),
            Kind::LastOwner => ("last-owner", S::CONFLICT, "A company keeps at least one owner"),
            Kind::NotRunning => ("not-running", S::CONFLICT, "The call does not run on this server"),
            Kind::TooLarge => ("too-large", S::PAYLOAD_TOO_LARGE, "The request is too large"),
            Kind::NotJson => ("not-json", S::UNSUPPORTED_MEDIA_TYPE, "The body must be application/json"),
            Kind::Document => ("document", S::UNPROCESSABLE_ENTITY, "The document cannot be read"),
            Kind::Range => ("range", S::RANGE_NOT_SATISFIABLE, "The range lies outside the recording"),
            Kind::TooManyAttempts => ("too-many-attempts", S::TOO_MANY_REQUESTS, "Too many attempts to log in"),
            Kind::TooManyWatchers => ("too-many-watchers", S::SERVICE_UNAVAILABLE, "Too many onlookers at once"),
            Kind::IdempotencyRunning => {
                ("idempotency-running", S::CONFLICT, "The first request with this key is still worked on")
            }
            Kind::IdempotencyDifferent => {
                ("idempotency-different", S::UNPROCESSABLE_ENTITY, "The key was used for another request")
            }
            Kind::NotPublic => ("not-public", S::CONFLICT, "The provider cannot reach this server"),
            Kind::TypedByHand => ("typed-by-hand", S::CONFLICT, "This provider's webhooks are typed in by a person"),
            Kind::Number => ("number", S::UNPROCESSABLE_ENTITY, "The number cannot be reached"),
            Kind::EmergencyNumber => ("emergency-number", S::UNPROCESSABLE_ENTITY, "An emergency number"),
            Kind::PremiumNumber => ("premium-number", S::UNPROCESSABLE_ENTITY, "A premium-rate number"),
            Kind::Country => ("country-not-allowed", S::UNPROCESSABLE_ENTITY, "The country is not allowed"),
            Kind::QuietHours => ("quiet-hours", S::CONFLICT, "Quiet hours"),
            Kind::Cap => ("cap-reached", S::TOO_MANY_REQUESTS, "A cap of the company is reached"),
            Kind::Unable => ("unable", S::CONFLICT, "No integration can do it"),
            Kind::AgentNotSetUp => ("agent-not-set-up", S::CONFLICT, "The agent cannot take calls"),
            Kind::Full => ("full", S::SERVICE_UNAVAILABLE, "The server takes no more calls"),
            Kind::ProviderCredentials => {
                ("provider-credentials", S::UNPROCESSABLE_ENTITY, "The provider refused the credentials")
            }
            Kind::ProviderRight => ("provider-right", S::UNPROCESSABLE_ENTITY, "The credentials lack a right"),
            Kind::ProviderAddress => {
                ("provider-address", S::UNPROCESSABLE_ENTITY, "The provider is closed to this server's address")
            }
            Kind::ProviderBusy => ("provider-busy", S::SERVICE_UNAVAILABLE, "The provider asks for fewer requests"),
            Kind::ProviderUnknown => {
                ("provider-unknown", S::UNPROCESSABLE_ENTITY, "The provider's account has no such thing")
            }
            Kind::ProviderRefused => ("provider-refused", S::BAD_GATEWAY, "The provider refused"),
            Kind::ProviderUnreachable => {
                ("provider-unreachable", S::BAD_GATEWAY, "The provider did not answer, or not sensibly")
            }
            Kind::ProviderCannot => ("provider-cannot", S::CONFLICT, "This provider cannot do it"),
            Kind::Timeout => ("timeout", S::GATEWAY_TIMEOUT, "It took too long"),
            Kind::Store => ("store", S::SERVICE_UNAVAILABLE, "The store does not answer"),
            Kind::Internal => ("internal", S::INTERNAL_SERVER_ERROR, "A fault of the server"),
        }
    }
}

/// One field that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct FieldFault {
    /// The way to it: `credentials.auth_token`, `node "hours", goto`.
    pub field: String,
    /// What is wrong, and what to write instead.
    pub problem: String,
}

/// An error as RFC 9457 has it.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes the answer; it is written by `ApiError`")]
pub(super) struct Problem {
    /// A stable reference, listed at `/api/problems`.
    #[schema(example = "/api/problems#invalid")]
    r#type: String,
    title: String,
    #[schema(example = 422)]
    status: u16,
    /// What to do about it.
    detail: Option<String>,
    /// Every field that is wrong.
    errors: Option<Vec<FieldFault>>,
}

/// An answer that is an error. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    kind: Kind,
    detail: Option<String>,
    errors: Vec<FieldFault>,
    retry_s: Option<u64>,
}

impl ApiError {
    pub fn new(kind: Kind) -> Self {
        Self { kind, detail: None, errors: Vec::new(), retry_s: None }
    }

    pub fn because(kind: Kind, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..Self::new(kind) }
    }

    pub fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::fields([(field.into(), problem.into())])
    }

    pub fn fields(faults: impl IntoIterator<Item = (String, String)>) -> Self {
        let errors = faults.into_iter().map(|(field, problem)| FieldFault { field, problem }).collect();
        Self { errors, ..Self::new(Kind::Invalid) }
    }

    /// Names what the duplicate is of.
    pub fn duplicate(field: &str) -> Self {
        let fault = FieldFault { field: field.to_owned(), problem: "is taken already".to_owned() };
        Self { errors: vec![fault], ..Self::new(Kind::Duplicate) }
    }

    pub fn retry_after(self, seconds: u64) -> Self {
        Self { retry_s: Some(seconds.max(1)), ..self }
    }

    /// Status and body.
    pub fn parts(&self) -> (StatusCode, Value) {
        let (slug, status, title) = self.kind.facts();
        let mut body = json!({ "type": format!("{TYPES}#{slug}"), "title": title, "status": status.as_u16() });
        if let Some(detail) = &self.detail {
            body["detail"] = detail.as_str().into();
        }
        if !self.errors.is_empty() {
            body["errors"] = json!(self.errors);
        }
        (status, body)
    }
}

/// A problem that was rendered before.
pub(super) const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, body) = self.parts();
        let mut response = (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body.to_string()).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.kind == Kind::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(fault: StoreError) -> Self {
        error!(error = %fault, "a request failed in the store");
        match fault {
            StoreError::Query(_) => Self::new(Kind::Store).retry_after(2),
            _ => Self::new(Kind::Internal),
        }
    }
}

/// What is not there, or another company's: the two are not told apart.
pub(crate) fn missing() -> ApiError {
    ApiError::new(Kind::NotFound)
}

/// A duplicate is the client's; anything else is ours.
pub(super) fn unless_duplicate(field: &'static str) -> impl Fn(StoreError) -> ApiError {
    move |fault| if fault.is_duplicate() { ApiError::duplicate(field) } else { fault.into() }
}

impl From<ProviderError> for ApiError {
    fn from(fault: ProviderError) -> Self {
        let kind = match &fault {
            ProviderError::WrongKey { .. } => Kind::ProviderCredentials,
            ProviderError::NoRight { .. } => Kind::ProviderRight,
            ProviderError::ClosedToAddress { .. } => Kind::ProviderAddress,
            ProviderError::RateLimited { .. } => Kind::ProviderBusy,
            ProviderError::NotOwned { .. } | ProviderError::NotFound { .. } => Kind::ProviderUnknown,
            ProviderError::Refused { .. } => Kind::ProviderRefused,
            ProviderError::Unreachable { .. } | ProviderError::Nonsense { .. } => Kind::ProviderUnreachable,
            ProviderError::Unsupported { .. } => Kind::ProviderCannot,
            ProviderError::Invalid { field, problem } => return Self::field(*field, problem.clone()),
        };
        let problem = Self::because(kind, fault.to_string());
        match fault {
            ProviderError::RateLimited { retry_s } => problem.retry_after(retry_s.unwrap_or(60)),
            _ => problem,
        }
    }
}

impl From<AskError> for ApiError {
    fn from(fault: AskError) -> Self {
        match fault {
            AskError::Provider(fault) => fault.into(),
            AskError::TimedOut => Self::new(Kind::Timeout),
        }
    }
}

impl From<WiringError> for ApiError {
    fn from(fault: WiringError) -> Self {
        match fault {
            WiringError::Asked(fault) => fault.into(),
            WiringError::Store(fault) => fault.into(),
        }
    }
}

impl From<OutboundError> for ApiError {
    fn from(fault: OutboundError) -> Self {
        let kind = match &fault {
            OutboundError::Refused(refusal) => match refusal {
                OutboundRefusal::NotE164(_) | OutboundRefusal::Ourselves => Kind::Number,
                OutboundRefusal::Emergency => Kind::EmergencyNumber,
                OutboundRefusal::Premium => Kind::PremiumNumber,
                OutboundRefusal::Country { .. } => Kind::Country,
                OutboundRefusal::Quiet(_) => Kind::QuietHours,
                OutboundRefusal::TooMany { .. } => Kind::Cap,
            },
            OutboundError::NoLine(_)
            | OutboundError::NoAgent
            | OutboundError::NoMessage
            | OutboundError::NotWritten => Kind::NotFound,
            OutboundError::Unable(_) => Kind::Unable,
            OutboundError::NotReady(Refused::NotSetUp) => Kind::AgentNotSetUp,
            OutboundError::NotReady(_) | OutboundError::TooMany => Kind::Full,
            OutboundError::Credentials(_) => Kind::ProviderCredentials,
            OutboundError::NoStore => Kind::Internal,
            OutboundError::Provider(_) | OutboundError::Store(_) => Kind::Store,
        };
        let detail = fault.to_string();
        match fault {
            OutboundError::Provider(fault) => fault.into(),
            OutboundError::Store(fault) => fault.into(),
            _ if kind == Kind::Cap => Self::because(kind, detail).retry_after(CAP_S),
            _ if kind == Kind::Full => Self::because(kind, detail).retry_after(10),
            _ => Self::because(kind, detail),
        }
    }
}

/// A cap counts the last hour: a part of it is free again some time sooner.
const CAP_S: u64 = 600;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_problem_has_a_type_of_its_own() {
        let slugs: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.facts().0).collect();
        assert_eq!(slugs.len(), Kind::ALL.len());
    }

    #[test]
    fn every_faulty_field_is_named() {
        let (status, body) =
            ApiError::fields([("a".into(), "is missing".into()), ("b".into(), "is odd".into())]).parts();
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(body["type"], "/api/problems#invalid");
        assert_eq!(body["errors"][1], json!({ "field": "b", "problem": "is odd" }));
    }

    #[test]
    fn a_provider_that_asks_for_patience_is_passed_on() {
        let response = ApiError::from(ProviderError::RateLimited { retry_s: Some(7) }).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "7");
    }
}
