//! `remember`: a fact for the call record, such as a booking or the wish to be called back.

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::{CallEffect, Tool, ToolContext, ToolError, ToolOutcome};
use crate::speech::llm::ToolSpec;

/// Longest value as JSON, in bytes: a fact, not a document.
const MAX_VALUE_BYTES: usize = 4096;

pub(super) struct Remember;

impl Tool for Remember {
    fn spec(&self) -> ToolSpec {
        ToolSpec {
            name: "remember".into(),
            description: "Writes a fact into the record of this call. The same key replaces what it had.".into(),
            parameters: json!({
                "type": "object",
                "properties": {
                    "key": { "type": "string", "minLength": 1, "maxLength": 64, "description": "e.g. booking, callback" },
                    "value": { "type": ["string", "number", "boolean", "object", "array"], "description": "The fact." },
                },
                "required": ["key", "value"],
                "additionalProperties": false,
            }),
        }
    }

    fn side_effect(&self) -> bool {
        true
    }

    fn call(&self, args: Value, _cx: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
        let key = args["key"].as_str().unwrap_or_default().to_owned();
        let value = args["value"].clone();
        async move {
            if value.to_string().len() > MAX_VALUE_BYTES {
                return Err(ToolError::Arguments(format!("the value is too long: at most {MAX_VALUE_BYTES} bytes")));
            }
            let content = json!({ "ok": true }).to_string();
            Ok(ToolOutcome { content, effect: Some(CallEffect::Remember { key, value }) })
        }
        .boxed()
    }
}
