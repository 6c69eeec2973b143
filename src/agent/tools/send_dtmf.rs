//! `send_dtmf`: presses keys for the other side, as a menu at the other end asks for.

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::{CallEffect, Tool, ToolContext, ToolError, ToolOutcome};
use crate::media::dtmf::is_key;
use crate::speech::llm::ToolSpec;

/// Keys of one order: a card's number with its code. They take a quarter of a second each.
pub const MAX_KEYS: usize = 32;

pub(super) struct SendDtmf;

impl Tool for SendDtmf {
    fn spec(&self) -> ToolSpec {
        ToolSpec {
            name: "send_dtmf".into(),
            description: "Presses telephone keys for the other side, as their voice menu asks for. Not heard as words."
                .into(),
            parameters: json!({
                "type": "object",
                "properties": {
                    "keys": { "type": "string", "minLength": 1, "maxLength": 64,
                              "description": "0-9, * and #, in order; spaces are left out. Example: 2 or 1234#" },
                },
                "required": ["keys"],
                "additionalProperties": false,
            }),
        }
    }

    fn side_effect(&self) -> bool {
        true
    }

    fn call(&self, args: Value, _cx: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
        let written = args["keys"].as_str().unwrap_or_default();
        let keys: String = written
            .chars()
            .filter(|c| !matches!(c, ' ' | '-' | ',' | '.' | '(' | ')'))
            .map(|c| c.to_ascii_uppercase())
            .collect();
        let outcome = if keys.is_empty() || !keys.chars().all(is_key) {
            Err(ToolError::Arguments("keys: write 0 to 9, * and # only".into()))
        } else if keys.len() > MAX_KEYS {
            Err(ToolError::Arguments(format!("keys: {MAX_KEYS} at most at once")))
        } else {
            let content = json!({ "ok": true, "keys": keys }).to_string();
            Ok(ToolOutcome { content, effect: Some(CallEffect::PressKeys { keys }) })
        };
        futures::future::ready(outcome).boxed()
    }
}
