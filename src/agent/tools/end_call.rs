//! `end_call`: hang up when what has been said is heard.

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::{CallEffect, Tool, ToolContext, ToolError, ToolOutcome};
use crate::speech::llm::ToolSpec;

pub(super) struct EndCall;

impl Tool for EndCall {
    fn spec(&self) -> ToolSpec {
        ToolSpec {
            name: "end_call".into(),
            description: "Ends the phone call. Say goodbye first, in the same answer.".into(),
            parameters: json!({
                "type": "object",
                "properties": { "reason": { "type": "string", "maxLength": 200, "description": "Why the call is over." } },
                "additionalProperties": false,
            }),
        }
    }

    fn side_effect(&self) -> bool {
        true
    }

    fn call(&self, args: Value, _cx: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
        let reason = args["reason"].as_str().map(str::to_owned);
        let effect = Some(CallEffect::EndCall { reason });
        async { Ok(ToolOutcome { content: json!({ "ok": true }).to_string(), effect }) }.boxed()
    }
}
