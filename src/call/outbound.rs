//! Calls and messages that somebody asks us to start: what is asked, and why it may be refused. Whoever implements it
//! checks countries, caps and quiet hours, picks the line, and writes the record before the provider is asked.

use futures::future::BoxFuture;
use jiff::Timestamp;
use uuid::Uuid;

use crate::agent::dialling::OutboundRefusal;
use crate::call::registry::Refused;
use crate::providers::rest::ProviderError;
use crate::store::StoreError;
use crate::telephony::{CallId, PhoneNumber};

/// Dials and writes on behalf of a company.
pub trait Outbound: Send + Sync + 'static {
    /// Answers as soon as the provider has taken the call on, not when it is picked up.
    fn call(&self, order: OutboundCall) -> BoxFuture<'static, Result<CallId, OutboundError>>;

    /// The id of the message in the store.
    fn message(&self, order: OutboundMessage) -> BoxFuture<'static, Result<Uuid, OutboundError>>;
}

/// What a call or a message goes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Through {
    /// Whatever the company has that can do it.
    #[default]
    Any,
    /// Any line of this integration.
    Integration(Uuid),
    Line(Uuid),
}

/// A call to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundCall {
    pub company: Uuid,
    pub through: Through,
    /// E.164.
    pub to: PhoneNumber,
    /// Said first, in place of the agent's own greeting.
    pub greeting: Option<String>,
    /// What the call is for, in the agent's prompt.
    pub purpose: Option<String>,
    /// `None`: the agent of the line.
    pub agent: Option<Uuid>,
}

/// A text message to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundMessage {
    pub company: Uuid,
    pub through: Through,
    /// E.164.
    pub to: PhoneNumber,
    pub text: String,
}

/// Why nothing was started, or why it is not known whether it was ([`OutboundError::maybe_done`]).
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// Not a number that can be called or written to.
    #[error("this number cannot be reached: {0}")]
    Number(&'static str),
    #[error("emergency numbers are not dialled")]
    Emergency,
    #[error("premium-rate numbers are not dialled")]
    Premium,
    /// ISO 3166-1 alpha-2, where it is known.
    #[error("numbers of this country are not allowed ({}): add it to the company's allowed_countries", .country.as_deref().unwrap_or("unknown"))]
    Country { country: Option<String> },
    #[error("these are the company's quiet hours")]
    QuietHours { until: Option<Timestamp> },
    /// One of the company's caps is used up.
    #[error("the company's cap on {what} is reached")]
    Cap { what: &'static str, retry_s: u64 },
    /// The company has no such line, integration or agent; the name is that of the order's field.
    #[error("there is no such {0}")]
    Unknown(&'static str),
    /// Nothing the company has can do it.
    #[error("no integration of this company can {0}")]
    Unable(&'static str),
    /// The agent cannot take calls: an engine or a tool of it is not set up.
    #[error("the agent is not set up for calls")]
    NotSetUp,
    /// Providers could not reach us.
    #[error("server.public_url must be set and be https before calls can be made")]
    NotPublic,
    #[error("the server takes no more calls")]
    Full,
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<OutboundRefusal> for OutboundError {
    fn from(refusal: OutboundRefusal) -> Self {
        match refusal {
            OutboundRefusal::NotE164(_) => Self::Number("write it with + and the country code, such as +380441234567"),
            OutboundRefusal::Ourselves => Self::Number("it is the line's own number"),
            OutboundRefusal::Emergency => Self::Emergency,
            OutboundRefusal::Premium => Self::Premium,
            OutboundRefusal::Country { country, .. } => Self::Country { country: Some(country) },
            OutboundRefusal::Quiet(_) => Self::QuietHours { until: None },
            // Of an hour that slides, the next place is free at the latest then.
            OutboundRefusal::TooMany { what, .. } => Self::Cap { what, retry_s: 3600 },
        }
    }
}

impl From<Refused> for OutboundError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NotSetUp => Self::NotSetUp,
            Refused::Full | Refused::Draining => Self::Full,
        }
    }
}

impl OutboundError {
    /// The provider was asked and did not answer: it may ring all the same, so it must not be tried again blindly.
    pub fn maybe_done(&self) -> bool {
        matches!(self, Self::Provider(ProviderError::Unreachable { maybe_done: true, .. }))
    }
}
