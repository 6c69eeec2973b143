//! `offhook demo`: a recorded caller talks to an agent on this machine. Here are the parts that need no server: what
//! is printed while they talk, whether the caller was understood, and the page about the call.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::telephony::Party;

pub mod judge;
pub mod page;
pub mod player;

/// A line of the call record: one side speaking once. Times are milliseconds from the call's start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordedTurn {
    pub who: Party,
    /// What the caller was understood to say, or what the agent set out to say.
    pub text: String,
    pub start_ms: u64,
    pub end_ms: u64,
    /// Where the caller cut the agent short: what of `text` was heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard: Option<String>,
    /// For an agent's line: when each stage of making it was reached, milliseconds from the end of the caller's speech
    /// (`transcript`, `endpoint`, `first_token`, `first_clause`, `first_audio`, `audible`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stages: BTreeMap<String, f64>,
}
