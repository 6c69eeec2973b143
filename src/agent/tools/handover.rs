//! `handover`: the caller wants a person. The wish goes into the call record; whoever can transfer acts on it.

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::{CallEffect, Tool, ToolContext, ToolError, ToolOutcome};
use crate::speech::llm::ToolSpec;

pub(super) struct Handover;

impl Tool for Handover {
    fn spec(&self) -> ToolSpec {
        ToolSpec {
            name: "handover".into(),
            description: "Records that the caller wants to talk to a person, who will call back.".into(),
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
        let content = json!({ "ok": true, "note": "recorded; a person will call back" }).to_string();
        async { Ok(ToolOutcome { content, effect: Some(CallEffect::Handover { to }) }) }.boxed()
    }
}
