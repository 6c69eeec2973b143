//! Language models: the contract. A conversation in, text and tool calls out as they are made.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

mod chat_stream;
pub mod fallback;
pub mod openai;

/// The engines that a configuration or an agent may name.
pub const ENGINES: &[&str] = &["builtin", "openai", "scripted"];

/// One message of a conversation, in the shape of the chat-completions API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Message {
    System {
        content: String,
    },
    User {
        content: String,
    },
    /// What the agent said as the caller heard it, and what it asked tools to do.
    Assistant {
        content: String,
        tool_calls: Vec<ToolCall>,
    },
    /// The result of one tool call. Every call of the assistant message before must be answered.
    Tool {
        tool_call_id: String,
        content: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// JSON text as the model wrote it; `{}` when it wrote nothing.
    pub arguments: String,
}

/// A tool as a model sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolSpec {
    /// `[A-Za-z0-9_-]`, at most 64.
    pub name: String,
    pub description: String,
    /// JSON Schema of the arguments, an object.
    pub parameters: serde_json::Value,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatRequest {
    pub messages: Vec<Message>,
    pub tools: Vec<ToolSpec>,
    /// Overrides the engine's configured model.
    pub model: Option<String>,
    pub temperature: Option<f32>,
    pub max_tokens: Option<u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum LlmEvent {
    /// A piece of the answer, as small as a token.
    Text(String),
    /// One complete tool call; its arguments are whole.
    ToolCall(ToolCall),
    Usage {
        prompt_tokens: u32,
        completion_tokens: u32,
    },
    /// The answer is complete; nothing follows.
    Done {
        finish: Finish,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    Stop,
    ToolCalls,
    Length,
    ContentFilter,
    /// The stream ended without a reason: what came is spoken, and the record says that it was cut.
    Cut,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum LlmError {
    /// Nothing in time: `what` is `first token`, `next token` or `answer`.
    #[error("{engine}: no {what} within {limit:?}")]
    Timeout { engine: &'static str, what: &'static str, limit: Duration },
    #[error("{engine} failed{}: {detail}", .status.map(|s| format!(" with status {s}")).unwrap_or_default())]
    Engine { engine: &'static str, status: Option<u16>, detail: String },
    #[error("{engine} refused the key; check {setting}")]
    Unauthorized { engine: &'static str, setting: &'static str },
}

/// An engine that answers.
pub trait LanguageModel: Send + Sync + 'static {
    /// `openai`, `builtin`: the name in configuration, logs and metrics.
    fn name(&self) -> &'static str;

    /// Starts an answer; needs a tokio runtime. The stream ends after `Done` or the first error. Dropping it cancels
    /// the request at once.
    fn reply(&self, request: ChatRequest) -> ReplyStream;

    /// Called when a call is answered: open the connection, so that the first turn does not pay for it.
    fn prepare(&self) {}
}

/// An answer as it comes.
pub struct ReplyStream {
    events: mpsc::Receiver<Result<LlmEvent, LlmError>>,
    _cancel: DropGuard,
}

/// A few sentences of tokens: a slow reader holds the request back instead of filling memory.
pub const REPLY_QUEUE: usize = 64;

impl ReplyStream {
    /// The stream and the engine's ends of it. The engine's task must stop when the token is cancelled.
    pub fn new() -> (Self, mpsc::Sender<Result<LlmEvent, LlmError>>, CancellationToken) {
        let (tx, events) = mpsc::channel(REPLY_QUEUE);
        let cancel = CancellationToken::new();
        (Self { events, _cancel: cancel.clone().drop_guard() }, tx, cancel)
    }

    /// The next event; `None` at the end. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<LlmEvent, LlmError>> {
        self.events.recv().await
    }
}
