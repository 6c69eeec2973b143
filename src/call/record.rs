//! The call record: the facts of a call, written beside its recording as the call goes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::conversation::transcript::Transcript;
use crate::telephony::{CallEnd, CallId, Direction, PhoneNumber};

/// Everything known of a call; `end` is absent while it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CallRecord {
    pub id: CallId,
    pub direction: Direction,
    pub company: String,
    pub provider: String,
    pub provider_call: String,
    pub from: PhoneNumber,
    pub to: PhoneNumber,
    pub agent: String,
    pub started: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<CallEnd>,
    pub transcript: Transcript,
    /// What the agent noted (`remember`): key → value.
    pub remembered: BTreeMap<String, serde_json::Value>,
    /// The caller asked for a person, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<String>,
    pub interruptions: Interruptions,
    /// Faults that were survived, in words.
    pub faults: Vec<String>,
}

/// How often playout stood still for the caller's voice, and what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interruptions {
    pub suspected: u32,
    pub confirmed: u32,
    pub denied: u32,
}
