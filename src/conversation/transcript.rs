//! What was said on a call, by whom and when: the lines of a call record. Times are milliseconds from the call's start.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::telephony::Party;

/// One side speaking once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Line {
    /// `caller` or `agent`.
    pub who: Party,
    /// What the caller said, or what the agent set out to say.
    pub text: String,
    pub start_ms: u64,
    pub end_ms: u64,
    /// Where the caller cut the agent short: what of `text` was heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard: Option<String>,
    /// For an agent's line: when each stage of making it was reached, in milliseconds from the end of the caller's
    /// speech (`transcript`, `endpoint`, `first_token`, `first_clause`, `first_audio`, `audible`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stages: BTreeMap<String, f64>,
}

/// A tool used on a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ToolUse {
    pub name: String,
    pub arguments: serde_json::Value,
    pub result: String,
    pub at_ms: u64,
}

/// Both, in the order in which they began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Transcript {
    pub lines: Vec<Line>,
    pub tools: Vec<ToolUse>,
}
