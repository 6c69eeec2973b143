//! `/v1/chat/completions`, streamed (specs/speech-apis.md §2): OpenAI, vLLM, Ollama, llama.cpp, Groq and others. What
//! an event means is `chat_stream.rs`; here are the request, the time limits, the one retry and the end of a stream.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Response;
use reqwest::header::CONTENT_TYPE;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, warn};

use super::chat_stream::{ChatDecoder, ChatError, Progress};
use super::{ChatRequest, LanguageModel, LlmError, LlmEvent, Message, ReplyStream};
use crate::speech::http::{Dots, Endpoint, EndpointError, HttpError, RETRY_WAIT, retryable};
use crate::speech::sse::{EVENT_BYTES, SseParser};

const ENGINE: &str = "openai";
const KEY_SETTING: &str = "llm.openai.api_key";
/// How long usage and the end of the stream may come after the model has finished. The answer waits for no longer.
const USAGE_WAIT: Duration = Duration::from_millis(250);
/// An answer read to its end leaves its connection to the next turn; nobody waits for this.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);

/// How the server calls the limit on tokens.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum MaxTokensField {
    MaxCompletionTokens,
    /// Deprecated by OpenAI; the only one that older look-alikes know.
    MaxTokens,
}

#[derive(Deserialize, Serialize, Clone)]
#[serde(deny_unknown_fields, default)]
pub struct OpenAiLlmConfig {
    /// Everything before `/chat/completions`. Default `https://api.openai.com/v1`.
    pub base_url: String,
    /// Sent as a bearer token; none for local servers.
    #[serde(skip_serializing)]
    pub api_key: Option<SecretString>,
    /// Default `gpt-4.1-mini`.
    pub model: String,
    /// Default none = the server's own. Reasoning models refuse it.
    pub temperature: Option<f32>,
    /// Longest answer, thoughts of reasoning models included. Default 400; 0 sends no limit.
    pub max_tokens: u32,
    /// `max_completion_tokens` or `max_tokens`. Default `max_completion_tokens`.
    pub max_tokens_field: MaxTokensField,
    /// Whether the model may ask for several tools at once. Default none = the server's own (true at OpenAI).
    pub parallel_tool_calls: Option<bool>,
    /// Ask for token counts. Default true; strict servers that do not know `stream_options` need false.
    pub include_usage: bool,
    /// Further fields of the request, e.g. `{ reasoning_effort = "minimal" }`. They go before our own of the same name,
    /// but for `messages` and `stream`. Default none.
    pub extra: Map<String, Value>,
    /// From the request to the first word or tool call. Default 2,500 ms; more is silence for the caller.
    pub first_token_ms: u64,
    /// Between two events after that. Default 3,000 ms.
    pub token_gap_ms: u64,
    /// From the request to the end of the answer. Default 20,000 ms.
    pub total_ms: u64,
}

impl Default for OpenAiLlmConfig {
    fn default() -> Self {
        Self {
            base_url: "https://api.openai.com/v1".into(),
            api_key: None,
            model: "gpt-4.1-mini".into(),
            temperature: None,
            max_tokens: 400,
            max_tokens_field: MaxTokensField::MaxCompletionTokens,
            parallel_tool_calls: None,
            include_usage: true,
            extra: Map::new(),
            first_token_ms: 2500,
            token_gap_ms: 3000,
            total_ms: 20_000,
        }
    }
}

impl fmt::Debug for OpenAiLlmConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAiLlmConfig")
            .field("base_url", &self.base_url)
            .field("api_key", &self.api_key.as_ref().map(|_| Dots))
            .field("model", &self.model)
            .field("temperature", &self.temperature)
            .field("max_tokens", &self.max_tokens)
            .field("max_tokens_field", &self.max_tokens_field)
            .field("parallel_tool_calls", &self.parallel_tool_calls)
            .field("include_usage", &self.include_usage)
            .field("extra", &self.extra)
            .field("first_token_ms", &self.first_token_ms)
            .field("token_gap_ms", &self.token_gap_ms)
            .field("total_ms", &self.total_ms)
            .finish()
    }
}

impl OpenAiLlmConfig {
    /// What cannot be right, one sentence each.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if let Err(error) = Endpoint::new(&self.base_url, None) {
            faults.push(error.to_string());
        }
        if self.model.is_empty() {
            faults.push("model is empty".to_owned());
        }
        if let Some(temperature) = self.temperature.filter(|t| !(0.0..=2.0).contains(t)) {
            faults.push(format!("temperature is {temperature}, not within 0 to 2"));
        }
        for (name, value) in
            [("first_token_ms", self.first_token_ms), ("token_gap_ms", self.token_gap_ms), ("total_ms", self.total_ms)]
        {
            if value == 0 {
                faults.push(format!("{name} is 0"));
            }
        }
        for name in ["messages", "stream"].iter().filter(|&&name| self.extra.contains_key(name)) {
            faults.push(format!("extra.{name} cannot be set"));
        }
        faults
    }

    /// The body of a request.
    fn body(&self, request: &ChatRequest) -> Value {
        let mut body = Map::new();
        body.insert("model".into(), json!(request.model.as_ref().unwrap_or(&self.model)));
        if let Some(temperature) = request.temperature.or(self.temperature) {
            // Through the shortest decimal text, so that 0.3 does not travel as 0.30000001192092896.
            body.insert("temperature".into(), json!(temperature.to_string().parse::<f64>().unwrap_or_default()));
        }
        let max_tokens = request.max_tokens.unwrap_or(self.max_tokens);
        if max_tokens > 0 {
            let name = match self.max_tokens_field {
                MaxTokensField::MaxCompletionTokens => "max_completion_tokens",
                MaxTokensField::MaxTokens => "max_tokens",
            };
            body.insert(name.into(), json!(max_tokens));
        }
        if self.include_usage {
            body.insert("stream_options".into(), json!({"include_usage": true}));
        }
        if !request.tools.is_empty() {
            let function = |tool| json!({"type": "function", "function": tool});
            body.insert("tools".into(), request.tools.iter().map(function).collect());
            if let Some(parallel) = self.parallel_tool_calls {
                body.insert("parallel_tool_calls".into(), json!(parallel));
            }
        }
        body.extend(self.extra.clone());
        body.insert("stream".into(), json!(true));
        body.insert("messages".into(), request.messages.iter().map(message).collect());
        Value::Object(body)
    }
}

/// A message as it travels.
fn message(message: &Message) -> Value {
    match message {
        Message::System { content } => json!({"role": "system", "content": content}),
        Message::User { content } => json!({"role": "user", "content": content}),
        Message::Tool { tool_call_id, content } => {
            json!({"role": "tool", "tool_call_id": tool_call_id, "content": content})
        }
        Message::Assistant { content, tool_calls } if tool_calls.is_empty() => {
            json!({"role": "assistant", "content": content})
        }
        Message::Assistant { content, tool_calls } => {
            let call = |call: &super::ToolCall| {
                let function = json!({"name": call.name, "arguments": call.arguments});
                json!({"id": call.id, "type": "function", "function": function})
            };
            let content = if content.is_empty() { Value::Null } else { json!(content) };
            json!({"role": "assistant", "content": content, "tool_calls": tool_calls.iter().map(call).collect::<Value>()})
        }
    }
}

/// Answers by a server. Clones share its connections.
#[derive(Clone)]
pub struct OpenAiLlm {
    inner: Arc<Inner>,
}

struct Inner {
    config: OpenAiLlmConfig,
    endpoint: Endpoint,
}

type Events = mpsc::Sender<Result<LlmEvent, LlmError>>;

impl OpenAiLlm {
    pub fn new(config: OpenAiLlmConfig) -> Result<Self, EndpointError> {
        let endpoint = Endpoint::new(&config.base_url, config.api_key.clone())?;
        Ok(Self { inner: Arc::new(Inner { config, endpoint }) })
    }
}

impl LanguageModel for OpenAiLlm {
    fn name(&self) -> &'static str {
        ENGINE
    }

    fn reply(&self, request: ChatRequest) -> ReplyStream {
        let (stream, tx, cancel) = ReplyStream::new();
        let inner = self.inner.clone();
        let asked = Instant::now();
        tokio::spawn(async move {
            // Dropping the request closes its connection, which is what stops the model.
            let read_on = cancel.run_until_cancelled(inner.reply(&request, asked, tx)).await.flatten();
            if let Some(mut response) = read_on {
                let _ = timeout(DRAIN_LIMIT, async { while let Ok(Some(_)) = response.chunk().await {} }).await;
            }
        });
        stream
    }

    fn prepare(&self) {
        self.inner.endpoint.warm();
    }
}

/// Why one attempt failed, and whether another may do better.
struct Fault {
    error: LlmError,
    retry: Option<Duration>,
}

impl From<HttpError> for Fault {
    fn from(error: HttpError) -> Self {
        let retry = error.retry_after();
        let error = match error {
            HttpError::Unauthorized => LlmError::Unauthorized { engine: ENGINE, setting: KEY_SETTING },
            HttpError::Status { status, detail, .. } => {
                LlmError::Engine { engine: ENGINE, status: Some(status), detail }
            }
            HttpError::Connection { detail, .. } => LlmError::Engine { engine: ENGINE, status: None, detail },
        };
        Self { error, retry }
    }
}

fn failed(detail: impl fmt::Display) -> Fault {
    Fault { error: LlmError::Engine { engine: ENGINE, status: None, detail: detail.to_string() }, retry: None }
}

/// When things are due.
#[derive(Clone, Copy)]
struct Deadlines {
    asked: Instant,
    first_token: Duration,
    gap: Duration,
    total: Duration,
}

impl Deadlines {
    /// Until when to wait for the next bytes, and the error if they do not come.
    fn next(&self, decoder: &ChatDecoder) -> (Instant, LlmError) {
        let (by, what, limit) = match decoder.began() {
            false => (self.asked + self.first_token, "first token", self.first_token),
            true => (Instant::now() + self.gap, "next token", self.gap),
        };
        let total = self.asked + self.total;
        let (by, what, limit) = if total < by { (total, "answer", self.total) } else { (by, what, limit) };
        (by, LlmError::Timeout { engine: ENGINE, what, limit })
    }
}

impl Inner {
    /// Answers into `tx`. Returns the response where only its last bytes are unread: the answer is complete.
    async fn reply(&self, request: &ChatRequest, asked: Instant, tx: Events) -> Option<Response> {
        let ms = Duration::from_millis;
        let config = &self.config;
        let due = Deadlines {
            asked,
            first_token: ms(config.first_token_ms),
            gap: ms(config.token_gap_ms),
            total: ms(config.total_ms),
        };
        let body = config.body(request);
        let mut outcome = self.attempt(&body, due, &tx).await;
        if let Err(Fault { error, retry: Some(wait) }) = &outcome
            && Instant::now() + *wait < asked + due.first_token
        {
            warn!(%error, wait_ms = wait.as_millis() as u64, "an answer is asked for once more");
            sleep(*wait).await;
            outcome = self.attempt(&body, due, &tx).await;
        }
        match outcome {
            Ok(response) => response,
            Err(Fault { error, .. }) => {
                // Whoever dropped the stream does not want to know.
                let _ = tx.send(Err(error)).await;
                None
            }
        }
    }

    /// One request. `retry` is set only in faults from before the first token.
    async fn attempt(&self, body: &Value, due: Deadlines, tx: &Events) -> Result<Option<Response>, Fault> {
        let mut decoder = ChatDecoder::default();
        let late = |error| Fault { error, retry: None };
        let (by, error) = due.next(&decoder);
        let sent = self.endpoint.send(self.endpoint.post("chat/completions").json(body));
        let mut response = timeout_at(by, sent).await.map_err(|_| late(error))??;
        let streamed = match kind(&response).as_str() {
            "application/json" => false,
            kind if kind.starts_with("text/html") => return Err(failed("the server answered with a web page")),
            _ => true,
        };

        let mut parser = SseParser::default();
        let (mut ready, mut events) = (Vec::new(), Vec::new());
        let mut progress = Progress::Open;
        while progress != Progress::Complete {
            let (by, error) = match progress {
                Progress::Finished => (Instant::now() + USAGE_WAIT, None),
                _ => {
                    let (by, error) = due.next(&decoder);
                    (by, Some(error))
                }
            };
            let piece = if streamed {
                timeout_at(by, self.endpoint.chunk(&mut response)).await
            } else {
                let whole = self.endpoint.body(&mut response, EVENT_BYTES);
                timeout_at(by, whole).await.map(|body| body.map(|body| Some(body.into())))
            };
            let (last, broken) = match (piece, error) {
                (Ok(Ok(Some(bytes))), _) if streamed => {
                    parser.push(&bytes, &mut ready).map_err(failed)?;
                    (false, None)
                }
                (Ok(Ok(Some(body))), _) => {
                    ready.push(String::from_utf8_lossy(&body).into_owned());
                    (true, None)
                }
                (Ok(Ok(None)), _) => {
                    ready.extend(parser.finish());
                    (true, None)
                }
                // The model had finished: what is missing is no part of the answer.
                (Ok(Err(_)) | Err(_), None) => (true, None),
                (Ok(Err(broken)), Some(_)) => (true, Some(broken)),
                (Err(_), Some(error)) => return Err(late(error)),
            };
            let had_begun = decoder.began();
            for event in ready.drain(..) {
                match decoder.on_event(&event, &mut events) {
                    Ok(now) => progress = now,
                    // The end of the body cut this event.
                    Err(ChatError::Malformed) if last && streamed => {}
                    Err(error) => {
                        let fault = self.explain(error, decoder.began());
                        return self.give(&mut events, tx).await.map_or(Ok(None), |()| Err(fault));
                    }
                }
                if progress == Progress::Complete {
                    break;
                }
            }
            if decoder.began() && !had_begun {
                metrics::histogram!("offhook_llm_first_token_seconds", "engine" => ENGINE)
                    .record(due.asked.elapsed().as_secs_f64());
            }
            if last && progress == Progress::Open && !decoder.began() {
                // Nothing to keep: the connection broke, or the server ended the stream before it said anything.
                let fault = broken.map(Fault::from).unwrap_or_else(|| failed("an answer that ended without a word"));
                return Err(Fault { retry: fault.retry.or(Some(RETRY_WAIT)), ..fault });
            }
            if let Some(broken) = broken {
                debug!(%broken, "answer cut");
            }
            if last {
                progress = Progress::Complete;
            }
            if self.give(&mut events, tx).await.is_none() {
                return Ok(None);
            }
        }
        decoder.end(&mut events);
        Ok(self.give(&mut events, tx).await.map(|()| response))
    }

    /// `None` when nobody listens any more.
    async fn give(&self, events: &mut Vec<LlmEvent>, tx: &Events) -> Option<()> {
        for event in events.drain(..) {
            tx.send(Ok(event)).await.ok()?;
        }
        Some(())
    }

    fn explain(&self, error: ChatError, began: bool) -> Fault {
        match error {
            ChatError::Reported { status, event } => {
                let retry = status.filter(|&status| !began && retryable(status)).map(|_| RETRY_WAIT);
                let detail = self.endpoint.explain(event.as_bytes());
                Fault { error: LlmError::Engine { engine: ENGINE, status, detail }, retry }
            }
            error => failed(error),
        }
    }
}

fn kind(response: &Response) -> String {
    let given = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speech::llm::{ToolCall, ToolSpec};

    #[test]
    fn only_what_is_configured_is_sent() {
        let config = OpenAiLlmConfig { include_usage: false, max_tokens: 0, ..OpenAiLlmConfig::default() };
        let request = ChatRequest { messages: vec![Message::User { content: "Hi".into() }], ..ChatRequest::default() };
        let expected =
            json!({"model": "gpt-4.1-mini", "stream": true, "messages": [{"role": "user", "content": "Hi"}]});
        assert_eq!(config.body(&request), expected);
    }

    #[test]
    fn a_request_has_the_shape_of_the_api() {
        let config = OpenAiLlmConfig {
            temperature: Some(0.9),
            max_tokens_field: MaxTokensField::MaxTokens,
            parallel_tool_calls: Some(false),
            extra: json!({"reasoning_effort": "minimal", "stream": false}).as_object().cloned().expect("an object"),
            ..OpenAiLlmConfig::default()
        };
        let parameters = json!({"type": "object", "properties": {}});
        let request = ChatRequest {
            messages: vec![
                Message::System { content: "Be brief.".into() },
                Message::Assistant {
                    content: String::new(),
                    tool_calls: vec![ToolCall { id: "a".into(), name: "hours".into(), arguments: "{}".into() }],
                },
                Message::Tool { tool_call_id: "a".into(), content: "9-18".into() },
                Message::Assistant { content: "Nine to six.".into(), tool_calls: vec![] },
            ],
            tools: vec![ToolSpec { name: "hours".into(), description: "When".into(), parameters: parameters.clone() }],
            model: Some("other".into()),
            temperature: Some(0.3),
            max_tokens: Some(50),
        };
        let expected = json!({
            "model": "other", "stream": true, "stream_options": {"include_usage": true},
            "temperature": 0.3, "max_tokens": 50, "parallel_tool_calls": false, "reasoning_effort": "minimal",
            "tools": [{"type": "function", "function": {"name": "hours", "description": "When", "parameters": parameters}}],
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "assistant", "content": null, "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "hours", "arguments": "{}"}}]},
                {"role": "tool", "tool_call_id": "a", "content": "9-18"},
                {"role": "assistant", "content": "Nine to six."},
            ],
        });
        assert_eq!(config.body(&request), expected);
    }

    #[test]
    fn a_key_is_neither_printed_nor_written() {
        let config = OpenAiLlmConfig { api_key: Some("hunter2".into()), ..OpenAiLlmConfig::default() };
        let printed = format!("{config:?}");
        assert!(printed.contains("••••") && !printed.contains("hunter2"), "{printed}");
        let written = serde_json::to_string(&config).expect("plain fields");
        assert!(!written.contains("api_key") && !written.contains("hunter2"), "{written}");
    }

    #[test]
    fn a_configuration_is_checked_and_refuses_keys_it_does_not_know() {
        assert_eq!(OpenAiLlmConfig::default().faults(), Vec::<String>::new());
        let text = "base_url = \"x\"\nmodel = \"\"\ntemperature = 3.0\ntotal_ms = 0\nextra = { stream = false }";
        assert_eq!(toml::from_str::<OpenAiLlmConfig>(text).expect("known keys").faults().len(), 5);
        assert!(toml::from_str::<OpenAiLlmConfig>("first_token = 1").is_err());
    }
}
