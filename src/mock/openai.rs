//! A server with OpenAI's shapes: chat completions, speech, transcriptions, embeddings, models. Delays count from a request's
//! arrival on absolute deadlines and do not add up, so that what a client measures minus what was injected is the
//! client's own.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::multipart::MultipartError;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Multipart, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::mock::script::{Delays, Fault, Script, Treatment, treatment};
use crate::mock::tone;

/// Requests that the log keeps; older ones are forgotten.
const LOG_LEN: usize = 10_000;
/// Model names whose faults are counted.
const COUNTED_MODELS: usize = 1_000;
/// How long a request that hangs is kept.
const HANG: Duration = Duration::from_secs(60);
/// Between the last bytes of an answer that is cut and the break: the client gets what came before.
const CUT_PAUSE: Duration = Duration::from_millis(20);
/// OpenAI's limit of an upload.
const MAX_BODY: usize = 25 * 1024 * 1024;
/// OpenAI's limit of a text to speak.
const MAX_INPUT_CHARS: usize = 4_096;
/// How long open answers may go on after `stop`.
const DRAIN: Duration = Duration::from_secs(1);

/// How the mock behaves where a request does not say otherwise.
#[derive(Clone, Debug)]
pub struct MockConfig {
    pub delays: Delays,
    /// Spoils every request.
    pub fault: Option<Fault>,
    /// What `retry-after-ms` says with a 429.
    pub retry_after_ms: u64,
    /// When set, other bearer tokens get 401.
    pub api_key: Option<String>,
    pub script: Script,
}

impl Default for MockConfig {
    fn default() -> Self {
        Self { delays: Delays::default(), fault: None, retry_after_ms: 100, api_key: None, script: Script::default() }
    }
}

/// One request as the mock saw it. Times are microseconds since the mock's start.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seen {
    pub id: u64,
    pub path: &'static str,
    pub model: String,
    pub arrived_us: u64,
    /// When the first useful bytes were handed to the socket; headers alone do not count.
    pub first_byte_us: Option<u64>,
    pub done_us: Option<u64>,
    /// The delay to the first byte that was asked for.
    pub injected_ms: u64,
    pub fault: Option<&'static str>,
    /// The client went away before the end.
    pub cancelled: bool,
    /// The text to speak, the last message, or the transcript that was answered.
    pub text: String,
    /// Length of the sound that was uploaded or made.
    pub audio_ms: Option<u64>,
}

/// A running mock.
pub struct MockOpenAi {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    server: JoinHandle<io::Result<()>>,
}

impl MockOpenAi {
    /// Serves on `listener` until it is stopped or dropped; needs a tokio runtime.
    pub fn start(config: MockConfig, listener: TcpListener) -> io::Result<Self> {
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            config,
            started: Instant::now(),
            transcripts: AtomicUsize::new(0),
            log: Mutex::new(Log::default()),
        });
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let server =
            axum::serve(listener, router(Arc::clone(&shared))).with_graceful_shutdown(stopped.cancelled_owned());
        Ok(Self { addr, shared, stop, server: tokio::spawn(server.into_future()) })
    }

    /// `http://127.0.0.1:PORT/v1`, what an engine's `base_url` wants.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }

    /// The requests so far, oldest first.
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.log().seen.iter().cloned().collect()
    }

    /// Stops to accept, and waits a second for open answers.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if !self.server.is_finished() && timeout(DRAIN, &mut self.server).await.is_err() {
            self.server.abort();
        }
    }

    /// Comes back when the server has ended by itself, which it does only on a fault of its socket.
    pub async fn wait(&mut self) -> io::Result<()> {
        match (&mut self.server).await {
            Ok(result) => result,
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

impl Drop for MockOpenAi {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Shared {
    config: MockConfig,
    started: Instant,
    transcripts: AtomicUsize,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    next_id: u64,
    seen: VecDeque<Seen>,
    /// Requests struck by a fault with `times`, by model name.
    struck: HashMap<String, u32>,
}

impl Shared {
    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        // The log stays whole whatever a thread died of while it held it.
        self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn now_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/audio/speech", post(speech))
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/audio/transcriptions", post(transcriptions))
        .route("/v1/models", get(models))
        .route("/mock/requests", get(requests).delete(forget))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared)
}

async fn models() -> Json<Value> {
    Json(
        json!({ "object": "list", "data": [{ "id": "mock", "object": "model", "created": 0, "owned_by": "offhook" }] }),
    )
}

async fn requests(State(shared): State<Arc<Shared>>) -> Json<Vec<Seen>> {
    Json(shared.log().seen.iter().cloned().collect())
}

async fn forget(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.log().seen.clear();
    StatusCode::NO_CONTENT
}

/// When a request's headers came: before its body is read.
struct Arrived(Instant);

impl<S: Sync> FromRequestParts<S> for Arrived {
    type Rejection = Infallible;

    async fn from_request_parts(_: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(Instant::now()))
    }
}

/// One request on its way: keeps its line in the log, and says there when the client went away.
struct Job {
    shared: Arc<Shared>,
    id: u64,
    arrived: Instant,
    treatment: Treatment,
    finished: bool,
}

impl Job {
    /// Takes the request in, or answers what the fault or the key wants answered.
    async fn open(
        shared: Arc<Shared>,
        Arrived(arrived): Arrived,
        headers: &HeaderMap,
        path: &'static str,
        model: &str,
        injected: impl Fn(&Delays) -> u64,
    ) -> Result<Self, Response> {
        let config = &shared.config;
        let defaults = Treatment {
            delays: config.delays.clone(),
            fault: config.fault,
            retry_after_ms: config.retry_after_ms,
            times: None,
        };
        let mut treatment = treatment(model, &defaults)
            .map_err(|detail| refuse(StatusCode::BAD_REQUEST, "invalid_request_error", &detail))?;
        if let Some(key) = &config.api_key
            && headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok())
                != Some(&format!("Bearer {key}"))
        {
            treatment.fault = Some(Fault::Unauthorized);
        }
        let id = {
            let mut log = shared.log();
            if let Some(times) = treatment.times {
                if log.struck.len() >= COUNTED_MODELS && !log.struck.contains_key(model) {
                    log.struck.clear();
                }
                let struck = log.struck.entry(model.into()).or_insert(0);
                if *struck >= times {
                    treatment.fault = None;
                } else {
                    *struck += 1;
                }
            }
            let id = log.next_id;
            log.next_id += 1;
            if log.seen.len() == LOG_LEN {
                log.seen.pop_front();
            }
            log.seen.push_back(Seen {
                id,
                path,
                model: model.chars().take(200).collect(),
                arrived_us: arrived.saturating_duration_since(shared.started).as_micros() as u64,
                first_byte_us: None,
                done_us: None,
                injected_ms: injected(&treatment.delays),
                fault: treatment.fault.map(Fault::label),
                cancelled: false,
                text: String::new(),
                audio_ms: None,
            });
            id
        };
        let mut job = Self { shared, id, arrived, treatment, finished: false };
        match job.treatment.fault {
            Some(Fault::Limited) => {
                job.finish();
                let mut response =
                    refuse(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", "Rate limit reached for requests");
                response.headers_mut().insert("retry-after-ms", job.treatment.retry_after_ms.into());
                Err(response)
            }
            Some(Fault::Broken) => {
                job.finish();
                Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "The mock was told to fail"))
            }
            Some(Fault::Unauthorized) => {
                job.finish();
                Err(refuse(StatusCode::UNAUTHORIZED, "invalid_api_key", "Incorrect API key provided"))
            }
            Some(Fault::Hang) => {
                sleep_until(arrived + HANG).await;
                job.finish();
                Err(refuse(StatusCode::GATEWAY_TIMEOUT, "server_error", "The mock was told to hang"))
            }
            _ => Ok(job),
        }
    }

    fn note(&self, change: impl FnOnce(&mut Seen)) {
        let mut log = self.shared.log();
        let first = log.seen.front().map_or(self.id, |seen| seen.id);
        let index = self.id.checked_sub(first).and_then(|index| usize::try_from(index).ok());
        if let Some(seen) = index.and_then(|index| log.seen.get_mut(index)).filter(|seen| seen.id == self.id) {
            change(seen);
        }
    }

    fn first_byte(&self) {
        let now = self.shared.now_us();
        self.note(|seen| {
            seen.first_byte_us.get_or_insert(now);
        });
    }

    fn finish(&mut self) {
        self.finished = true;
        let now = self.shared.now_us();
        self.note(|seen| seen.done_us = Some(now));
    }

    /// A body whose parts leave at their times after the arrival; the faults that concern bodies strike here.
    fn body(mut self, mut parts: Vec<(Duration, Bytes)>) -> Body {
        let fault = self.treatment.fault;
        if fault == Some(Fault::Odd) {
            parts = odd(parts);
        }
        let cut = matches!(fault, Some(Fault::Cut));
        if cut {
            parts.truncate(parts.len().div_ceil(2));
        }
        let parts = VecDeque::from(parts);
        if parts.is_empty() {
            self.finish();
        }
        let stream = stream::unfold((self, parts), move |(mut job, mut parts)| async move {
            match parts.pop_front() {
                Some((after, bytes)) => {
                    sleep_until(job.arrived + after).await;
                    job.first_byte();
                    if parts.is_empty() && !cut {
                        job.finish();
                    }
                    Some((Ok(bytes), (job, parts)))
                }
                None if cut && !job.finished => {
                    // The server writes out what it holds only when the body makes it wait.
                    sleep(CUT_PAUSE).await;
                    job.finish();
                    Some((Err(io::Error::other("the mock was told to cut this answer")), (job, parts)))
                }
                None => None,
            }
        });
        Body::from_stream(stream)
    }

    /// An answer in one piece.
    fn whole(self, after: Duration, content_type: &'static str, bytes: impl Into<Bytes>) -> Response {
        // Cut in the middle all the same where that is the fault.
        let bytes: Bytes = bytes.into();
        let parts = match self.treatment.fault {
            Some(Fault::Cut) => {
                let half = bytes.len() / 2;
                vec![(after, bytes.slice(..half)), (after, bytes.slice(half..))]
            }
            _ => vec![(after, bytes)],
        };
        ([(header::CONTENT_TYPE, content_type)], self.body(parts)).into_response()
    }

    /// An event stream. `[DONE]` ends it where `done` says so and the fault does not forbid it.
    fn events(self, events: Vec<(Duration, Value)>, done: bool) -> Response {
        let fault = self.treatment.fault;
        let end = if fault == Some(Fault::Crlf) { "\r\n" } else { "\n" };
        let last = events.last().map_or(Duration::ZERO, |(after, _)| *after);
        let mut events = events;
        if fault == Some(Fault::Error) {
            events.truncate(events.len().div_ceil(2));
            let error = json!({ "error": { "message": "The mock was told to fail", "type": "server_error",
                "param": null, "code": null } });
            events.push((last, error));
        }
        let mut parts: Vec<(Duration, Bytes)> = Vec::with_capacity(events.len() + 1);
        for (after, event) in events {
            let comment = match fault {
                Some(Fault::Comments) => format!(": keep-alive{end}{end}"),
                _ => String::new(),
            };
            parts.push((after, format!("{comment}data: {event}{end}{end}").into()));
        }
        if done && !matches!(fault, Some(Fault::Nodone | Fault::Error)) {
            parts.push((last, format!("data: [DONE]{end}{end}").into()));
        }
        ([(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")], self.body(parts))
            .into_response()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.finished {
            let now = self.shared.now_us();
            self.note(|seen| {
                seen.cancelled = true;
                seen.done_us = Some(now);
            });
        }
    }
}

/// Pieces of 1, 3, 5 … 15 bytes and so on: samples, UTF-8 and events are split. A large body is not cut to crumbs all
/// through, only its first kilobyte, and the rest in odd pieces.
fn odd(parts: Vec<(Duration, Bytes)>) -> Vec<(Duration, Bytes)> {
    let mut out = Vec::new();
    let mut total = 0;
    for (after, mut bytes) in parts {
        while !bytes.is_empty() {
            let size = if total < 1_024 { 1 + 2 * (out.len() % 8) } else { 1_001 };
            let piece = bytes.split_to(size.min(bytes.len()));
            total += piece.len();
            out.push((after, piece));
        }
    }
    out
}

fn refuse(status: StatusCode, code: &str, message: &str) -> Response {
    let kind = if status.is_client_error() { "invalid_request_error" } else { "server_error" };
    let body = json!({ "error": { "message": message, "type": kind, "param": null, "code": code } });
    (status, [("x-request-id", "req_mock")], Json(body)).into_response()
}

fn bad(detail: &str) -> Response {
    refuse(StatusCode::BAD_REQUEST, "invalid_request_error", detail)
}

fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

#[derive(Deserialize)]
struct ChatRequest {
    model: String,
    messages: Vec<ChatMessage>,
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    tools: Vec<Tool>,
    tool_choice: Option<Value>,
}

#[derive(Deserialize)]
struct ChatMessage {
    role: String,
    content: Option<Value>,
    #[serde(default)]
    tool_calls: Vec<Value>,
    tool_call_id: Option<String>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Deserialize)]
struct Tool {
    function: ToolFunction,
}

#[derive(Deserialize)]
struct ToolFunction {
    name: String,
}

impl ChatMessage {
    /// The text, whether `content` is a string or a list of parts.
    fn text(&self) -> String {
        match &self.content {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => {
                parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join(" ")
            }
            _ => String::new(),
        }
    }
}

/// Every call of an assistant message must be answered by the messages that follow it; OpenAI answers 400 otherwise.
fn unanswered_call(messages: &[ChatMessage]) -> Option<String> {
    for (index, message) in messages.iter().enumerate() {
        let answers: Vec<&str> = messages[index + 1..]
            .iter()
            .take_while(|answer| answer.role == "tool")
            .filter_map(|answer| answer.tool_call_id.as_deref())
            .collect();
        for call in &message.tool_calls {
            let id = call["id"].as_str().unwrap_or_default();
            if !answers.contains(&id) {
                return Some(format!(
                    "An assistant message with 'tool_calls' must be followed by tool messages responding to each \
                     'tool_call_id'. The following had none: {id}"
                ));
            }
        }
    }
    None
}

async fn chat(State(shared): State<Arc<Shared>>, arrived: Arrived, headers: HeaderMap, body: Bytes) -> Response {
    let request: ChatRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return bad(&error.to_string()),
    };
    if request.messages.is_empty() {
        return bad("messages is empty");
    }
    if let Some(detail) = unanswered_call(&request.messages) {
        return bad(&detail);
    }
    let script = shared.config.script.clone();
    let job =
        match Job::open(shared, arrived, &headers, "/v1/chat/completions", &request.model, |d| d.llm_ttft_ms).await {
            Ok(job) => job,
            Err(response) => return response,
        };

    let user = request.messages.iter().rev().find(|message| message.role == "user").map(ChatMessage::text);
    let user = user.unwrap_or_default();
    job.note(|seen| seen.text = user.chars().take(2_000).collect());
    let after_tools = request.messages.last().is_some_and(|message| message.role == "tool");
    let tools_allowed = request.tool_choice.as_ref().and_then(Value::as_str) != Some("none") && !after_tools;
    let offered: Vec<String> =
        if tools_allowed { request.tools.iter().map(|tool| tool.function.name.clone()).collect() } else { vec![] };
    let (text, calls) = if after_tools {
        (script.after_tools, vec![])
    } else {
        let reply = script.reply(&user, &offered);
        if reply.tools.is_empty() { (reply.text, vec![]) } else { (String::new(), reply.tools) }
    };
    let calls: Vec<(String, String, String)> = calls
        .into_iter()
        .enumerate()
        .map(|(index, tool)| {
            let arguments = serde_json::to_string(&tool.arguments).unwrap_or_else(|_| "{}".into());
            (format!("call_{}_{index}", job.id), tool.name, arguments)
        })
        .collect();

    let tokens = tokens(&text);
    let prompt_tokens = request.messages.iter().map(|message| message.text().len() / 4 + 4).sum::<usize>();
    let completion_tokens = tokens.len() + calls.iter().map(|(_, _, arguments)| arguments.len() / 4 + 4).sum::<usize>();
    let usage = json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    });
    let finish = if calls.is_empty() { "stop" } else { "tool_calls" };
    let (ttft, token) = (ms(job.treatment.delays.llm_ttft_ms), ms(job.treatment.delays.llm_token_ms));

    if !request.stream || job.treatment.fault == Some(Fault::Json) {
        let tool_calls: Vec<Value> = calls
            .iter()
            .map(|(id, name, arguments)| {
                json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } })
            })
            .collect();
        let mut message = json!({ "role": "assistant", "content": text, "refusal": null });
        if !tool_calls.is_empty() {
            message["content"] = Value::Null;
            message["tool_calls"] = tool_calls.into();
        }
        let answer = json!({
            "id": format!("cc-{}", job.id), "object": "chat.completion", "created": 0, "model": request.model,
            "choices": [{ "index": 0, "message": message, "finish_reason": finish }],
            "usage": usage,
        });
        let after = ttft + token * tokens.len() as u32;
        return job.whole(after, "application/json", answer.to_string());
    }

    let include_usage = request.stream_options.as_ref().is_some_and(|options| options.include_usage);
    let chunk = |choices: Value, usage: Value| {
        let mut chunk = json!({
            "id": format!("cc-{}", job.id), "object": "chat.completion.chunk", "created": 0,
            "model": request.model, "choices": choices,
        });
        if include_usage {
            chunk["usage"] = usage;
        }
        chunk
    };
    let delta = |delta: Value| chunk(json!([{ "index": 0, "delta": delta, "finish_reason": null }]), Value::Null);
    let content = if calls.is_empty() { json!("") } else { Value::Null };
    let mut events = vec![(ttft, delta(json!({ "role": "assistant", "content": content, "refusal": null })))];
    let mut at = ttft;
    for (n, text) in tokens.iter().enumerate() {
        at = ttft + token * n as u32;
        events.push((at, delta(json!({ "content": text }))));
    }
    for (index, (id, name, arguments)) in calls.iter().enumerate() {
        let first = json!({ "index": index, "id": id, "type": "function",
            "function": { "name": name, "arguments": "" } });
        events.push((at, delta(json!({ "tool_calls": [first] }))));
        for piece in pieces(arguments, 7) {
            at += token;
            let piece = json!({ "index": index, "function": { "arguments": piece } });
            events.push((at, delta(json!({ "tool_calls": [piece] }))));
        }
    }
    events.push((at, chunk(json!([{ "index": 0, "delta": {}, "finish_reason": finish }]), Value::Null)));
    if include_usage {
        events.push((at, chunk(json!([]), usage)));
    }
    job.events(events, true)
}

/// Words with the space before them, as models stream them.
fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut start = 0;
    for (position, character) in text.char_indices() {
        if character == ' ' && position > start {
            tokens.push(&text[start..position]);
            start = position;
        }
    }
    if start < text.len() {
        tokens.push(&text[start..]);
    }
    tokens
}

/// Pieces of at most `size` characters.
fn pieces(text: &str, size: usize) -> Vec<String> {
    text.chars().collect::<Vec<_>>().chunks(size).map(|piece| piece.iter().collect()).collect()
}

#[derive(Deserialize)]
struct SpeechRequest {
    model: String,
    input: String,
    voice: Option<Value>,
    response_format: Option<String>,
    speed: Option<f64>,
    stream_format: Option<String>,
}

#[derive(Deserialize)]
struct EmbeddingsRequest {
    model: String,
    input: Input,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    One(String),
    Many(Vec<String>),
}

/// OpenAI's limit of texts in one request.
const MAX_TEXTS: usize = 2048;
/// Of the vectors that the mock makes.
const DIMENSIONS: usize = 384;

/// Vectors that depend on the texts' letters alone: equal texts have equal ones, and texts that share words are a little
/// nearer to each other than those that share none. They mean nothing.
async fn embeddings(State(shared): State<Arc<Shared>>, arrived: Arrived, headers: HeaderMap, body: Bytes) -> Response {
    let request: EmbeddingsRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return bad(&error.to_string()),
    };
    let texts = match request.input {
        Input::One(text) => vec![text],
        Input::Many(texts) => texts,
    };
    if texts.is_empty() || texts.len() > MAX_TEXTS || texts.iter().any(String::is_empty) {
        return bad("input has 1 to 2048 texts, none of them empty");
    }
    let job = match Job::open(shared, arrived, &headers, "/v1/embeddings", &request.model, |d| d.llm_ttft_ms).await {
        Ok(job) => job,
        Err(response) => return response,
    };
    let after = ms(job.treatment.delays.llm_ttft_ms);
    job.note(|seen| seen.text.clone_from(&texts[0]));
    let vector = |text: &str| {
        let mut vector = vec![0.0f32; DIMENSIONS];
        for word in text.to_lowercase().split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
            // FNV-1a.
            let hash =
                word.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
            vector[(hash % DIMENSIONS as u64) as usize] += 1.0;
        }
        vector[0] += 0.01;
        vector
    };
    let data: Vec<Value> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| json!({ "object": "embedding", "index": index, "embedding": vector(text) }))
        .collect();
    let tokens = texts.iter().map(String::len).sum::<usize>() / 4;
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    let answer = json!({ "object": "list", "model": request.model, "data": data, "usage": usage });
    job.whole(after, "application/json", answer.to_string())
}

async fn speech(State(shared): State<Arc<Shared>>, arrived: Arrived, headers: HeaderMap, body: Bytes) -> Response {
    let request: SpeechRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return bad(&error.to_string()),
    };
    let format = request.response_format.as_deref().unwrap_or("mp3");
    let speed = request.speed.unwrap_or(1.0);
    let sse = request.stream_format.as_deref() == Some("sse");
    if request.voice.is_none() {
        return bad("voice is missing");
    }
    if request.input.is_empty() || request.input.chars().count() > MAX_INPUT_CHARS {
        return bad("input has 1 to 4096 characters");
    }
    if !(0.25..=4.0).contains(&speed) {
        return bad("speed is between 0.25 and 4.0");
    }
    if !matches!(format, "pcm" | "wav") {
        return bad("the mock speaks pcm and wav only");
    }
    let job = match Job::open(shared, arrived, &headers, "/v1/audio/speech", &request.model, |d| d.tts_ms).await {
        Ok(job) => job,
        Err(response) => return response,
    };
    let delays = job.treatment.delays.clone();
    let pcm = tone::speak(&request.input, delays.tts_char_ms as f64 / speed, delays.tts_lead_ms);
    let bytes_per_ms = u64::from(tone::RATE_HZ) * 2 / 1_000;
    job.note(|seen| {
        seen.text.clone_from(&request.input);
        seen.audio_ms = Some(pcm.len() as u64 / bytes_per_ms);
    });
    // The nth chunk is there when it has been made: at once, or at so many times real time.
    let ready = |bytes: usize| match delays.tts_speed {
        speed if speed > 0.0 => Duration::from_secs_f64(bytes as f64 / (bytes_per_ms * 1_000) as f64 / speed),
        _ => Duration::ZERO,
    };
    let mut parts = Vec::new();
    if format == "wav" {
        parts.push((ms(delays.tts_ms), wav_header()));
    }
    let pcm = Bytes::from(pcm);
    let chunk = delays.tts_chunk.max(1);
    for start in (0..pcm.len()).step_by(chunk) {
        parts.push((ms(delays.tts_ms) + ready(start), pcm.slice(start..(start + chunk).min(pcm.len()))));
    }
    if sse {
        let last = parts.last().map_or(ms(delays.tts_ms), |(after, _)| *after);
        let mut events: Vec<(Duration, Value)> = parts
            .into_iter()
            .map(|(after, bytes)| (after, json!({ "type": "speech.audio.delta", "audio": STANDARD.encode(bytes) })))
            .collect();
        let tokens = request.input.len() / 4;
        let usage = json!({ "input_tokens": tokens, "output_tokens": tokens, "total_tokens": 2 * tokens });
        events.push((last, json!({ "type": "speech.audio.done", "usage": usage })));
        return job.events(events, false);
    }
    let content_type = if format == "wav" { "audio/wav" } else { "audio/pcm" };
    ([(header::CONTENT_TYPE, content_type)], job.body(parts)).into_response()
}

/// A header as streaming servers write it: the sizes are not known.
fn wav_header() -> Bytes {
    let mut header = Vec::with_capacity(44);
    header.extend(b"RIFF\xFF\xFF\xFF\xFFWAVEfmt ");
    header.extend(16u32.to_le_bytes());
    header.extend(1u16.to_le_bytes());
    header.extend(1u16.to_le_bytes());
    header.extend(tone::RATE_HZ.to_le_bytes());
    header.extend((tone::RATE_HZ * 2).to_le_bytes());
    header.extend(2u16.to_le_bytes());
    header.extend(16u16.to_le_bytes());
    header.extend(b"data\xFF\xFF\xFF\xFF");
    header.into()
}

/// The parts of a transcription request that the mock reads.
#[derive(Default)]
struct Upload {
    file: Option<(String, Bytes)>,
    model: String,
    language: String,
    response_format: String,
    stream: bool,
}

impl Upload {
    async fn read(mut multipart: Multipart) -> Result<Self, MultipartError> {
        let mut upload = Self::default();
        while let Some(field) = multipart.next_field().await? {
            match field.name().unwrap_or_default() {
                "file" => {
                    let name = field.file_name().unwrap_or_default().to_string();
                    upload.file = Some((name, field.bytes().await?));
                }
                "model" => upload.model = field.text().await?,
                "language" => upload.language = field.text().await?,
                "response_format" => upload.response_format = field.text().await?,
                "stream" => upload.stream = field.text().await? == "true",
                _ => {
                    field.bytes().await?;
                }
            }
        }
        Ok(upload)
    }
}

async fn transcriptions(
    State(shared): State<Arc<Shared>>,
    arrived: Arrived,
    headers: HeaderMap,
    multipart: Multipart,
) -> Response {
    let upload = match Upload::read(multipart).await {
        Ok(upload) => upload,
        Err(error) => return bad(&error.body_text()),
    };
    let Some((name, file)) = upload.file else { return bad("file is missing") };
    if !name.contains('.') {
        return bad("the file's name has no extension");
    }
    if upload.model.is_empty() {
        return bad("model is missing");
    }
    let audio = match audio_ms(&file) {
        Ok(audio) => audio,
        Err(detail) => return bad(&detail),
    };
    let path = "/v1/audio/transcriptions";
    let job = match Job::open(Arc::clone(&shared), arrived, &headers, path, &upload.model, |d| d.stt_ms).await {
        Ok(job) => job,
        Err(response) => return response,
    };
    let n = shared.transcripts.fetch_add(1, Ordering::Relaxed);
    let text = shared.config.script.transcript(n).to_string();
    job.note(|seen| {
        seen.text.clone_from(&text);
        seen.audio_ms = Some(audio);
    });
    let after = ms(job.treatment.delays.stt_ms);
    let usage = json!({ "type": "duration", "seconds": audio.div_ceil(1_000) });
    if upload.stream {
        let mut events: Vec<(Duration, Value)> = tokens(&text)
            .into_iter()
            .map(|token| (after, json!({ "type": "transcript.text.delta", "delta": token })))
            .collect();
        events.push((after, json!({ "type": "transcript.text.done", "text": text, "usage": usage })));
        return job.events(events, false);
    }
    match upload.response_format.as_str() {
        "" | "json" => job.whole(after, "application/json", json!({ "text": text, "usage": usage }).to_string()),
        "text" => job.whole(after, "text/plain; charset=utf-8", format!("{text}\n")),
        "verbose_json" => {
            let seconds = audio as f64 / 1_000.0;
            let segment = json!({ "id": 0, "seek": 0, "start": 0.0, "end": seconds, "text": format!(" {text}"),
                "tokens": [], "temperature": 0.0, "avg_logprob": -0.2, "compression_ratio": 0.8,
                "no_speech_prob": 0.01 });
            let language = if upload.language.is_empty() { "english" } else { &upload.language };
            let answer = json!({ "task": "transcribe", "language": language, "duration": seconds, "text": text,
                "segments": [segment], "usage": usage });
            job.whole(after, "application/json", answer.to_string())
        }
        other => bad(&format!("the mock does not answer response_format {other}")),
    }
}

/// Length of a WAV upload. A client that streams may not know the data's size, so the header's is not believed.
fn audio_ms(file: &[u8]) -> Result<u64, String> {
    let reader = hound::WavReader::new(file).map_err(|error| format!("the file is no WAV: {error}"))?;
    let spec = reader.spec();
    let bytes_per_s = u64::from(spec.sample_rate) * u64::from(spec.channels) * u64::from(spec.bits_per_sample / 8);
    if bytes_per_s == 0 {
        return Err("the file is no WAV with sound in it".into());
    }
    Ok(file.len().saturating_sub(44) as u64 * 1_000 / bytes_per_s)
}
