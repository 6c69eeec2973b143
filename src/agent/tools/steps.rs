//! How a model moves through a workflow: `go_to` takes an exit of the node that it talks at, `note_answers` fills the
//! node's slots. Both do nothing themselves: the calls stand in the conversation, where `walk.rs` reads them.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Map, Value, json};

use super::{Tool, ToolContext, ToolError, ToolOutcome};
use crate::agent::workflow::Workflow;
use crate::speech::llm::ToolSpec;

pub const GO_TO: &str = "go_to";
pub const NOTE: &str = "note_answers";
pub const NAMES: [&str; 2] = [GO_TO, NOTE];

/// Longest note, in characters.
const MAX_NOTE_CHARS: usize = 500;

/// Where a call of `go_to` leads.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::agent) enum Way {
    Exit(String),
    /// Written by the engine itself: the model did not answer.
    Failed,
}

impl Way {
    pub fn read(arguments: &str) -> Option<Self> {
        let arguments: Value = serde_json::from_str(arguments).ok()?;
        match arguments["to"].as_str()? {
            "" => Some(Self::Failed),
            exit => Some(Self::Exit(exit.to_owned())),
        }
    }

    /// The arguments that are read as [`Way::Failed`].
    pub fn failed() -> String {
        json!({ "to": "" }).to_string()
    }
}

/// A note as words.
pub(in crate::agent) fn as_text(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        other => other.to_string(),
    };
    text.chars().take(MAX_NOTE_CHARS).collect()
}

/// `go_to` for a node with these exits.
pub(in crate::agent) fn go_to_spec<'e>(exits: impl Iterator<Item = &'e str>) -> ToolSpec {
    let names: Vec<&str> = exits.collect();
    ToolSpec {
        name: GO_TO.into(),
        description: "Goes to another step of the conversation. Say nothing that the next step would say.".into(),
        parameters: json!({
            "type": "object",
            "properties": { "to": { "type": "string", "enum": names } },
            "required": ["to"],
            "additionalProperties": false,
        }),
    }
}

/// `note_answers` for these slots.
pub(in crate::agent) fn note_spec<'s>(workflow: &Workflow, slots: impl Iterator<Item = &'s String>) -> ToolSpec {
    let mut properties = Map::new();
    for slot in slots {
        let about = workflow.slot_in_words(slot);
        properties.insert(
            slot.clone(),
            json!({ "type": ["string", "number", "boolean"], "maxLength": MAX_NOTE_CHARS, "description": about }),
        );
    }
    ToolSpec {
        name: NOTE.into(),
        description:
            "Writes down what the caller has said; only what the caller has said. Any number of answers at once.".into(),
        parameters: json!({
            "type": "object", "properties": properties, "minProperties": 1, "additionalProperties": false,
        }),
    }
}

pub struct GoTo(pub Arc<Workflow>);

impl Tool for GoTo {
    fn spec(&self) -> ToolSpec {
        let mut spec = go_to_spec(std::iter::empty());
        // The node decides what is offered; the graph, what exists.
        spec.parameters["properties"]["to"] = json!({ "type": "string", "maxLength": 64 });
        spec
    }

    fn side_effect(&self) -> bool {
        false
    }

    fn call(&self, args: Value, _cx: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
        let to = args["to"].as_str().unwrap_or_default();
        let known = to.is_empty() || self.0.has_exit(to);
        let result = if known {
            Ok(ToolOutcome { content: json!({ "ok": true }).to_string(), effect: None })
        } else {
            Err(ToolError::Arguments(format!("there is no step {to:?} to go to from here")))
        };
        futures::future::ready(result).boxed()
    }
}

pub struct NoteAnswers(pub Arc<Workflow>);

impl Tool for NoteAnswers {
    fn spec(&self) -> ToolSpec {
        note_spec(&self.0, self.0.slot_names())
    }

    fn side_effect(&self) -> bool {
        false
    }

    fn call(&self, args: Value, _cx: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
        let notes = args.as_object().cloned().unwrap_or_default();
        let wrong: Vec<String> = notes
            .iter()
            .filter(|(slot, value)| !self.0.understands(slot, &as_text(value)))
            .map(|(slot, value)| format!("{slot}: {:?} is no {}", as_text(value), self.0.slot_in_words(slot)))
            .collect();
        let result = if wrong.is_empty() {
            Ok(ToolOutcome { content: json!({ "ok": true }).to_string(), effect: None })
        } else {
            Err(ToolError::Arguments(format!("{}; ask the caller again", wrong.join("; "))))
        };
        futures::future::ready(result).boxed()
    }
}
