//! Words that every floor uses: who is on a call, which call it is, how it ended. No behaviour beyond printing them.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// A call, from its first sign of life to its record. UUIDv7: sorts by time, stable for ever.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct CallId(Uuid);

impl CallId {
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    pub const fn uuid(self) -> Uuid {
        self.0
    }

    /// When it was made, to the millisecond (RFC 9562 §5.7). `None`: it is no UUIDv7.
    pub fn made(self) -> Option<Timestamp> {
        let (seconds, nanos) = self.0.get_timestamp()?.to_unix();
        Timestamp::new(seconds.try_into().ok()?, nanos.try_into().ok()?).ok()
    }
}

impl From<Uuid> for CallId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl Default for CallId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number, SIP user or `client:` name as the provider wrote it; may be empty when the caller hides it.
/// Printing masks the middle, so that logs never hold a whole number; `as_str` gives it in full.
#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct PhoneNumber(String);

impl PhoneNumber {
    pub fn new(number: impl Into<String>) -> Self {
        Self(number.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PhoneNumber {
    /// `+380501234567` prints as `+380…67`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chars: Vec<char> = self.0.chars().collect();
        if chars.is_empty() {
            return f.write_str("hidden");
        }
        let head: String = chars.iter().take(if chars.len() > 8 { 4 } else { 1 }).collect();
        let tail: String = chars.iter().skip(chars.len().saturating_sub(if chars.len() > 4 { 2 } else { 0 })).collect();
        let tail = if chars.len() > 4 { tail } else { String::new() };
        write!(f, "{head}…{tail}")
    }
}

impl fmt::Debug for PhoneNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    pub const fn label(self) -> &'static str {
        match self {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        }
    }
}

/// Who did something on a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Party {
    Caller,
    Agent,
    /// A person of the company, through the API or the console.
    Operator,
    /// The provider or the network between.
    Carrier,
    /// Offhook itself: a limit, a drain, a fault.
    System,
}

impl Party {
    pub const fn label(self) -> &'static str {
        match self {
            Party::Caller => "caller",
            Party::Agent => "agent",
            Party::Operator => "operator",
            Party::Carrier => "carrier",
            Party::System => "system",
        }
    }
}

/// Why a call ended. The label is stable: metrics and records are keyed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Hung up in the ordinary way.
    HungUp,
    /// The agent said goodbye and ended the call.
    Goodbye,
    /// The caller said nothing for `turn.silence_goodbye_ms`.
    Silence,
    /// `turn.max_call_ms` was reached, or `turn.max_hold_ms` on hold.
    TooLong,
    /// No packets for ten seconds: the leg has failed.
    NoMedia,
    /// The socket broke without a goodbye.
    ConnectionLost,
    /// The peer does not speak the protocol.
    ProtocolError,
    /// An engine and its fallback both failed, and the agent is set to end the call then.
    EngineFailed,
    /// A fault of our own in this call's task.
    Panicked,
    /// The server is shutting down and the grace period is over.
    Drained,
    /// The call, or its company's day, has used up its budget.
    OverBudget,
    /// The process that ran the call died; its next start wrote this.
    Crashed,
    /// It was answered, but its audio never came: the caller was gone, or the provider did not connect us.
    NeverConnected,
}

impl EndReason {
    pub const ALL: [EndReason; 13] = [
        EndReason::HungUp,
        EndReason::Goodbye,
        EndReason::Silence,
        EndReason::TooLong,
        EndReason::NoMedia,
        EndReason::ConnectionLost,
        EndReason::ProtocolError,
        EndReason::EngineFailed,
        EndReason::Panicked,
        EndReason::Drained,
        EndReason::OverBudget,
        EndReason::Crashed,
        EndReason::NeverConnected,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            EndReason::HungUp => "hung_up",
            EndReason::Goodbye => "goodbye",
            EndReason::Silence => "silence",
            EndReason::TooLong => "too_long",
            EndReason::NoMedia => "no_media",
            EndReason::ConnectionLost => "connection_lost",
            EndReason::ProtocolError => "protocol_error",
            EndReason::EngineFailed => "engine_failed",
            EndReason::Panicked => "panicked",
            EndReason::Drained => "drained",
            EndReason::OverBudget => "over_budget",
            EndReason::Crashed => "crashed",
            EndReason::NeverConnected => "never_connected",
        }
    }
}

/// How a call ended: every call has exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct CallEnd {
    pub by: Party,
    pub reason: EndReason,
}

impl CallEnd {
    pub const fn new(by: Party, reason: EndReason) -> Self {
        Self { by, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_number_hides_its_middle() {
        assert_eq!(PhoneNumber::new("+380501234567").to_string(), "+380…67");
        assert_eq!(PhoneNumber::new("901").to_string(), "9…");
        assert_eq!(PhoneNumber::new("").to_string(), "hidden");
        assert_eq!(format!("{:?}", PhoneNumber::new("+15550001111")), "+155…11");
    }
}
