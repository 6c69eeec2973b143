//! `transfer_call`: the caller wants a person. The wish goes into the call record; whoever can transfer acts on it.

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::{CallEffect, Tool, ToolContext, ToolError, ToolOutcome};
use crate::speech::llm::ToolSpec;

pub(super) struct TransferCall;

impl Tool for TransferCall {
    fn spec(&self) -> ToolSpec {
        ToolSpec {
            name: "transfer_call".into(),
            description: "Hands the caller to a person; where nobody is free, a person will call back. Say so first, in the same answer.".into(),
            parameters: json!({
                "type": "object",
                "properties": { "reason": { "type": "string", "minLength": 1, "maxLength": 500, "description": "What it is about." } },
                "required": ["reason"],
                "additionalProperties": false,
            }),
        }
    }

    fn side_effect(&self) -> bool {
        true
    }

    fn call(&self, args: Value, _cx: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
        let to = args["reason"].as_str().unwrap_or_default().to_owned();
        let content =
            json!({ "ok": true, "note": "noted; the caller is handed to a person, or called back" }).to_string();
        async { Ok(ToolOutcome { content, effect: Some(CallEffect::Handover { to }) }) }.boxed()
    }
}
