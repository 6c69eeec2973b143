//! Speech to text over HTTP: `POST {base_url}/audio/transcriptions`, OpenAI's and what looks like it (Speaches, vLLM,
//! LocalAI, Groq). Each take sends the utterance so far as one WAV. The realtime websocket, which takes audio while it
//! is spoken, is another protocol and not here.

use std::sync::Arc;
use std::time::Duration;

use eventsource_stream::Eventsource;
use futures::{Stream, StreamExt};
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::multipart::{Form, Part};
use reqwest::{Client, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::guard::{self, GuardConfig, Loudness};
use super::utterance::OpenUtterance;
use super::{SttError, SttEvent, SttInput, SttRequest, SttSession, Take, Transcriber, UtteranceId};
use crate::media::frame::SampleRate;

const NAME: &str = "openai";
/// An answer is a few sentences; more is not for us.
const ANSWER_LIMIT: usize = 1 << 20;
/// What is kept of an error for the log.
const DETAIL_LIMIT: usize = 500;
/// Servers refuse clips under 100 ms.
const SHORTEST: Duration = Duration::from_millis(200);

/// `[speech.stt.openai]`.
#[derive(Deserialize, Serialize, Clone, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct OpenAiSttConfig {
    /// Up to and including the version, without a slash at the end. Default `https://api.openai.com/v1`.
    pub base_url: String,
    /// Sent as a bearer token; none is sent when it is absent, as local servers want it.
    #[serde(skip_serializing)]
    pub api_key: Option<SecretString>,
    /// Default `gpt-4o-mini-transcribe`.
    pub model: String,
    /// Style and words to expect, in the language of the audio; a call's hints are added. Default none.
    pub prompt: String,
    /// Sample rate sent, Hz: 8000 or 16000 (default). 8000 halves the upload.
    pub rate: u32,
    /// Asks for server-sent events, so that text comes while it is decoded. Default false; `whisper-1` ignores it.
    pub stream: bool,
    /// Transcribes the whole utterance again for each partial. Default false: it costs money.
    pub partials: bool,
    /// Limit for the connection, ms. Default 1000.
    pub connect_ms: u64,
    /// Limit for a take from the request to its text, the retry included, ms. Default 2500. A larger value keeps the
    /// caller waiting before the fallback is asked.
    pub limit_ms: u64,
    /// Longest utterance sent, ms. Default 120000.
    pub max_utterance_ms: u64,
    pub guards: GuardConfig,
}

impl Default for OpenAiSttConfig {
    fn default() -> Self {
        Self {
            base_url: "https://api.openai.com/v1".into(),
            api_key: None,
            model: "gpt-4o-mini-transcribe".into(),
            prompt: String::new(),
            rate: 16_000,
            stream: false,
            partials: false,
            connect_ms: 1000,
            limit_ms: 2500,
            max_utterance_ms: 120_000,
            guards: GuardConfig::default(),
        }
    }
}

/// Why the engine cannot be made. An operator must act.
#[derive(Debug, thiserror::Error)]
pub enum OpenAiSttSetupError {
    #[error("speech.stt.openai.base_url is not an http or https address")]
    BaseUrl,
    #[error("speech.stt.openai.rate must be 8000 or 16000, not {0}")]
    Rate(u32),
    #[error("cannot set up the HTTP client")]
    Client(#[source] reqwest::Error),
}

/// The engine; its connections are shared by all calls.
pub struct OpenAiStt {
    server: Arc<Server>,
}

struct Server {
    client: Client,
    url: String,
    config: OpenAiSttConfig,
}

impl OpenAiStt {
    /// Checks the configuration; opens no connection.
    pub fn new(config: &OpenAiSttConfig) -> Result<Self, OpenAiSttSetupError> {
        let base = config.base_url.trim_end_matches('/');
        let address = reqwest::Url::parse(base).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        address.ok_or(OpenAiSttSetupError::BaseUrl)?;
        if ![8_000, 16_000].contains(&config.rate) {
            return Err(OpenAiSttSetupError::Rate(config.rate));
        }
        // Fails when another part of the program was first, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .connect_timeout(Duration::from_millis(config.connect_ms))
            .pool_idle_timeout(Duration::from_secs(90))
            .build()
            .map_err(OpenAiSttSetupError::Client)?;
        let url = format!("{base}/audio/transcriptions");
        Ok(Self { server: Arc::new(Server { client, url, config: config.clone() }) })
    }
}

impl Transcriber for OpenAiStt {
    fn name(&self) -> &'static str {
        NAME
    }

    fn rate(&self) -> SampleRate {
        SampleRate::new(self.server.config.rate)
    }

    fn open(&self, request: SttRequest) -> SttSession {
        let (session, input, events, cancel) = SttSession::new();
        let call = Call { server: Arc::clone(&self.server), request: Arc::new(request), events };
        tokio::spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = call.run(input) => {}
            }
        });
        session
    }
}

/// One call's session.
struct Call {
    server: Arc<Server>,
    request: Arc<SttRequest>,
    events: mpsc::Sender<SttEvent>,
}

/// The one take that runs. Dropping it closes its connection.
struct Running {
    utterance: UtteranceId,
    take: u32,
    answer: futures::future::BoxFuture<'static, SttEvent>,
}

impl Call {
    async fn run(self, mut input: mpsc::Receiver<SttInput>) {
        let mut open: Option<OpenUtterance> = None;
        let mut running: Option<Running> = None;
        loop {
            let event = tokio::select! {
                biased;
                message = input.recv() => match message {
                    Some(message) => self.on_input(message, &mut open, &mut running),
                    None => return,
                },
                event = async {
                    match &mut running {
                        Some(running) => running.answer.as_mut().await,
                        None => std::future::pending().await,
                    }
                } => {
                    running = None;
                    Some(event)
                }
            };
            if let Some(event) = event
                && self.events.send(event).await.is_err()
            {
                return;
            }
        }
    }

    fn on_input(
        &self,
        message: SttInput,
        open: &mut Option<OpenUtterance>,
        running: &mut Option<Running>,
    ) -> Option<SttEvent> {
        let config = &self.server.config;
        match message {
            SttInput::Begin { utterance } => {
                *running = None;
                let limit = Duration::from_millis(config.max_utterance_ms);
                *open = Some(OpenUtterance::new(utterance, SampleRate::new(config.rate), limit));
                None
            }
            SttInput::Audio(chunk) => {
                if let Some(open) = open {
                    open.push(chunk.samples());
                }
                None
            }
            SttInput::Transcribe { utterance, take, kind: Take::Partial } if !config.partials => {
                Some(SttEvent::Skipped { utterance, take })
            }
            SttInput::Transcribe { utterance, take, kind } => {
                let superseded = running.take();
                if kind == Take::Partial && superseded.is_some() {
                    // A server slower than the rhythm of partials would never finish one.
                    *running = superseded;
                    return Some(SttEvent::Skipped { utterance, take });
                }
                match self.start(open.as_ref(), utterance, take, kind) {
                    Ok(started) => *running = Some(started),
                    Err(error) => return Some(SttEvent::Failed { utterance, take, error }),
                }
                // Each take is answered; this one's answer is no longer wanted.
                superseded.map(|old| SttEvent::Skipped { utterance: old.utterance, take: old.take })
            }
            SttInput::Cancel { utterance, take } => {
                running.take_if(|running| running.utterance == utterance && running.take <= take);
                None
            }
            SttInput::End { utterance } => {
                open.take_if(|open| open.id == utterance);
                running.take_if(|running| running.utterance == utterance);
                None
            }
        }
    }

    fn start(
        &self,
        open: Option<&OpenUtterance>,
        utterance: UtteranceId,
        take: u32,
        kind: Take,
    ) -> Result<Running, SttError> {
        let audio =
            open.filter(|open| open.id == utterance).ok_or_else(|| engine(None, "the utterance is not open"))?;
        let samples = audio.whole().map_err(|seconds| SttError::TooLong { engine: NAME, seconds })?;
        let rate = SampleRate::new(self.server.config.rate);
        let loudness = Loudness::of(samples, rate, self.server.config.guards.voiced_dbfs);
        let wav = wav(samples, rate).map_err(|error| engine(None, &error.to_string()))?;
        let (server, request, events) = (Arc::clone(&self.server), Arc::clone(&self.request), self.events.clone());
        let answer = Box::pin(async move {
            let asked = Instant::now();
            let guards = &server.config.guards;
            let limit = Duration::from_millis(server.config.limit_ms);
            let progress = Progress { utterance, kind, events };
            let text = if guard::has_speech(&loudness, guards) {
                let transcribed = tokio::time::timeout(limit, server.transcribe(wav, &request, &progress)).await;
                transcribed.unwrap_or(Err(SttError::Timeout { engine: NAME, limit }))
            } else {
                Ok(String::new())
            };
            let engine_time = asked.elapsed();
            if kind == Take::Final {
                metrics::histogram!("offhook_stt_final_seconds", "engine" => NAME).record(engine_time.as_secs_f64());
            }
            match text {
                Ok(text) => {
                    let text = guard::judge(&text, None, &loudness, &request.language, guards).text;
                    match kind {
                        Take::Partial => SttEvent::Partial { utterance, take: Some(take), text },
                        _ => SttEvent::Final { utterance, take, text, confidence: None, engine_time },
                    }
                }
                Err(error) => SttEvent::Failed { utterance, take, error },
            }
        });
        Ok(Running { utterance, take, answer })
    }
}

/// Where text goes while a streamed answer is still coming.
struct Progress {
    utterance: UtteranceId,
    kind: Take,
    events: mpsc::Sender<SttEvent>,
}

impl Progress {
    fn tell(&self, text: &str) {
        if self.kind == Take::Partial {
            return;
        }
        let event = SttEvent::Partial { utterance: self.utterance, take: None, text: text.to_owned() };
        // A busy call can do without it: the whole text follows.
        let _ = self.events.try_send(event);
    }
}

/// A failed attempt.
struct Failure {
    error: SttError,
    /// Whether to ask again, and after how long.
    retry: Option<Duration>,
}

impl Server {
    /// One take: at most two attempts, the second only while nothing of the first answer was used.
    async fn transcribe(&self, wav: Vec<u8>, request: &SttRequest, progress: &Progress) -> Result<String, SttError> {
        let wav = bytes::Bytes::from(wav);
        let failure = match self.attempt(wav.clone(), request, progress).await {
            Ok(text) => return Ok(text),
            Err(failure) => failure,
        };
        let Some(wait) = failure.retry else { return Err(failure.error) };
        tracing::debug!(error = %failure.error, wait_ms = wait.as_millis(), "asking for the transcript again");
        tokio::time::sleep(wait).await;
        self.attempt(wav, request, progress).await.map_err(|failure| failure.error)
    }

    async fn attempt(&self, wav: bytes::Bytes, request: &SttRequest, progress: &Progress) -> Result<String, Failure> {
        let length = wav.len() as u64;
        let file = Part::stream_with_length(reqwest::Body::from(wav), length).file_name("turn.wav");
        let file = file.mime_str("audio/wav").map_err(|error| self.unsent(error))?;
        let mut form = Form::new().text("model", self.config.model.clone()).text("response_format", "json");
        let language = request.language.split(['-', '_']).next().unwrap_or_default();
        if !language.is_empty() {
            form = form.text("language", language.to_lowercase());
        }
        let prompt = prompt(&self.config.prompt, &request.hints);
        if !prompt.is_empty() {
            form = form.text("prompt", prompt);
        }
        if self.config.stream {
            form = form.text("stream", "true");
        }
        let mut post = self.client.post(&self.url).multipart(form.part("file", file));
        if let Some(key) = &self.config.api_key {
            post = post.bearer_auth(key.expose_secret());
        }
        let response = post.send().await.map_err(|error| self.unsent(error))?;
        if response.status().is_success() {
            // From here on bytes of the answer are used: no second attempt.
            self.read(response, progress).await.map_err(|error| Failure { error, retry: None })
        } else {
            Err(self.refused(response).await)
        }
    }

    /// No response came: asking again is safe, since a transcription changes nothing on the server.
    fn unsent(&self, error: reqwest::Error) -> Failure {
        let retry = (error.is_connect() || error.is_request()).then_some(Duration::ZERO);
        Failure { error: engine(None, &self.without_key(chain(&error.without_url()))), retry }
    }

    async fn refused(&self, response: Response) -> Failure {
        let status = response.status();
        let headers = response.headers().clone();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            // The body may quote the key.
            let setting = "speech.stt.openai.api_key";
            return Failure { error: SttError::Unauthorized { engine: NAME, setting }, retry: None };
        }
        let body = bounded(response).await.unwrap_or_default();
        let (detail, out_of_money) = error_detail(&body);
        let wait = retry_wait(status, &headers).filter(|_| !out_of_money);
        Failure { error: engine(Some(status.as_u16()), &self.without_key(detail)), retry: wait }
    }

    async fn read(&self, response: Response, progress: &Progress) -> Result<String, SttError> {
        let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        if kind.starts_with("text/event-stream") {
            let mut left = ANSWER_LIMIT;
            let bytes = response.bytes_stream().map(move |chunk| {
                let chunk = chunk.map_err(|error| chain(&error.without_url()))?;
                left = left.checked_sub(chunk.len()).ok_or_else(|| "the answer is longer than 1 MB".to_owned())?;
                Ok::<_, String>(chunk)
            });
            return read_events(bytes, progress).await.map_err(|detail| engine(None, &self.without_key(detail)));
        }
        let body = bounded(response).await.map_err(|detail| engine(None, &self.without_key(detail)))?;
        if body.trim_ascii_start().starts_with(b"data:") {
            // Some servers stream without saying so.
            let bytes = futures::stream::iter([Ok::<_, String>(bytes::Bytes::from(body))]);
            return read_events(bytes, progress).await.map_err(|detail| engine(None, &self.without_key(detail)));
        }
        text_of(&body, kind.starts_with("text/plain")).map_err(|detail| engine(None, &self.without_key(detail)))
    }

    /// No key reaches a log, whatever a server quotes.
    fn without_key(&self, text: String) -> String {
        match &self.config.api_key {
            Some(key) if !key.expose_secret().is_empty() => text.replace(key.expose_secret(), "…"),
            _ => text,
        }
    }
}

/// Reads `transcript.text.delta` and `…done` events. A stream that ends without `done` after some text is cut: an error,
/// because the rest of the turn is missing.
async fn read_events(
    bytes: impl Stream<Item = Result<bytes::Bytes, String>>,
    progress: &Progress,
) -> Result<String, String> {
    let mut events = std::pin::pin!(bytes.eventsource());
    let mut text = String::new();
    while let Some(event) = events.next().await {
        let event = event.map_err(|error| error.to_string())?;
        if event.data == "[DONE]" {
            return Ok(text);
        }
        let Ok(message) = serde_json::from_str::<Value>(&event.data) else { continue };
        if let Some(error) = message.get("error").filter(|error| !error.is_null()) {
            return Err(error_detail(error.to_string().as_bytes()).0);
        }
        let word = |key| message.get(key).and_then(Value::as_str);
        match word("type") {
            Some("transcript.text.delta") => {
                text.push_str(word("delta").unwrap_or_default());
                progress.tell(text.trim());
            }
            Some("transcript.text.done") => return Ok(word("text").map_or(text, str::to_owned)),
            // Look-alikes send whole segments without a type.
            None => {
                if let Some(piece) = word("text") {
                    text.push_str(piece);
                    progress.tell(text.trim());
                }
            }
            Some(_) => {}
        }
    }
    Err("the stream was cut".into())
}

/// The text of a JSON answer, a JSON string, or plain text.
fn text_of(body: &[u8], plain: bool) -> Result<String, String> {
    let raw = || String::from_utf8_lossy(body).trim().to_owned();
    match serde_json::from_slice::<Value>(body) {
        Ok(Value::String(text)) => Ok(text),
        Ok(Value::Object(answer)) => match (answer.get("text").and_then(Value::as_str), answer.get("error")) {
            (Some(text), _) => Ok(text.to_owned()),
            (None, Some(_)) => Err(error_detail(body).0),
            (None, None) => Err("the answer has no text".into()),
        },
        Ok(_) | Err(_) if plain => Ok(raw()),
        Ok(_) | Err(_) => Err("the answer is not JSON".into()),
    }
}

/// The message of an error body in any of its shapes, and whether it says that the account is empty.
fn error_detail(body: &[u8]) -> (String, bool) {
    let json = serde_json::from_slice::<Value>(body).unwrap_or_default();
    let error = json.get("error").unwrap_or(&json);
    let message = [error.get("message"), json.get("message"), json.get("detail"), Some(error)];
    let message = message.into_iter().flatten().find_map(Value::as_str).map(str::to_owned);
    let message = message.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    let mut end = message.len().min(DETAIL_LIMIT);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let code = [error.get("code"), error.get("type")].into_iter().flatten().find(|c| *c == "insufficient_quota");
    (message[..end].trim().to_owned(), code.is_some())
}

/// How long to wait before the one retry; `None` = do not ask again. A server that wants more than half a second is of
/// no use to a turn.
fn retry_wait(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    const LONGEST: Duration = Duration::from_millis(500);
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let allowed = match text("x-should-retry") {
        Some("true") => true,
        Some("false") => false,
        _ => matches!(status.as_u16(), 408 | 409 | 429 | 500..=599),
    };
    let number = |name, unit: f64| text(name).and_then(|v| v.parse::<f64>().ok()).map(|v| v * unit);
    let asked = number("retry-after-ms", 0.001).or_else(|| number("retry-after", 1.0));
    let wait = match asked {
        Some(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        // A date is a matter of seconds.
        None if text("retry-after").is_some() => return None,
        None => Duration::from_millis(50),
    };
    (allowed && wait <= LONGEST).then_some(wait)
}

/// The configured prompt and a call's hints in one line; servers read 224 tokens of it, so that it is cut.
fn prompt(style: &str, hints: &[String]) -> String {
    const LONGEST: usize = 600;
    let mut prompt = style.to_owned();
    for hint in hints {
        if prompt.len() + hint.len() + 2 > LONGEST {
            break;
        }
        if !prompt.is_empty() {
            prompt.push_str(if prompt.ends_with('.') { " " } else { ", " });
        }
        prompt.push_str(hint);
    }
    prompt
}

/// A whole body of at most [`ANSWER_LIMIT`] bytes.
async fn bounded(mut response: Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error.without_url()))? {
        if body.len() + chunk.len() > ANSWER_LIMIT {
            return Err("the answer is longer than 1 MB".into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// 16-bit mono WAV, padded with silence to what servers accept.
fn wav(samples: &[i16], rate: SampleRate) -> Result<Vec<u8>, hound::Error> {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: rate.hz(),
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut file = std::io::Cursor::new(Vec::with_capacity(44 + samples.len() * 2));
    let mut writer = hound::WavWriter::new(&mut file, spec)?;
    let silence = rate.samples(SHORTEST).saturating_sub(samples.len());
    for &sample in samples.iter().chain(std::iter::repeat_n(&0, silence)) {
        writer.write_sample(sample)?;
    }
    writer.finalize()?;
    Ok(file.into_inner())
}

fn engine(status: Option<u16>, detail: &str) -> SttError {
    SttError::Engine { engine: NAME, status, detail: detail.to_owned() }
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress() -> (Progress, mpsc::Receiver<SttEvent>) {
        let (events, told) = mpsc::channel(64);
        (Progress { utterance: UtteranceId(1), kind: Take::Final, events }, told)
    }

    #[tokio::test]
    async fn a_stream_split_at_any_byte_gives_the_same_text() {
        let stream = ": keep-alive\r\n\r\ndata: {\"type\":\"transcript.text.delta\",\"delta\":\"Де моє\"}\r\n\r\n\
            data:{\"type\":\"transcript.text.delta\",\"delta\":\" авто?\"}\n\n\
            event: x\ndata: {\"type\":\"transcript.text.done\",\"text\":\"Де моє авто?\"}\n\n"
            .as_bytes();
        for split in 0..stream.len() {
            let halves = [&stream[..split], &stream[split..]].map(|half| Ok(bytes::Bytes::copy_from_slice(half)));
            let (progress, mut told) = progress();
            let text = read_events(futures::stream::iter(halves), &progress).await;
            assert_eq!(text.as_deref(), Ok("Де моє авто?"), "split at {split}");
            let first = told.try_recv().expect("deltas are told");
            assert!(matches!(first, SttEvent::Partial { take: None, text, .. } if text == "Де моє"));
        }
    }

    #[tokio::test]
    async fn a_stream_that_ends_early_or_reports_an_error_fails() {
        for (stream, expected) in [
            ("data: {\"type\":\"transcript.text.delta\",\"delta\":\"Is\"}\n\n", "the stream was cut"),
            ("data: {\"error\":{\"message\":\"overloaded\"}}\n\n", "overloaded"),
            ("", "the stream was cut"),
        ] {
            let bytes = futures::stream::iter([Ok(bytes::Bytes::from(stream))]);
            let text = read_events(bytes, &progress().0).await;
            assert_eq!(text, Err(expected.to_owned()));
        }
    }

    #[test]
    fn answers_of_look_alikes_are_read() {
        let read = |body: &str, plain| text_of(body.as_bytes(), plain);
        assert_eq!(read(r#"{"text":"hi","usage":{"type":"duration","seconds":2}}"#, false), Ok("hi".into()));
        assert_eq!(
            read(r#"{"task":"transcribe","language":"en","text":" hi","segments":[]}"#, false),
            Ok(" hi".into())
        );
        assert_eq!(read("\"hi\"", false), Ok("hi".into()));
        assert_eq!(read("hi there\n", true), Ok("hi there".into()));
        assert!(read("<html>", false).is_err());
        assert!(read("{}", false).is_err());
        assert_eq!(read(r#"{"error":{"message":"no"}}"#, false), Err("no".into()));
    }

    #[test]
    fn errors_of_all_shapes_give_their_message() {
        let detail = |body: &str| error_detail(body.as_bytes());
        assert_eq!(
            detail(r#"{"error":{"message":"slow down","code":"rate_limit_exceeded"}}"#),
            ("slow down".into(), false)
        );
        assert_eq!(detail(r#"{"error":{"message":"pay","code":"insufficient_quota"}}"#), ("pay".into(), true));
        assert_eq!(detail(r#"{"detail":"no model"}"#), ("no model".into(), false));
        assert_eq!(detail(r#"{"error":"text"}"#), ("text".into(), false));
        assert_eq!(detail("bad gateway"), ("bad gateway".into(), false));
        assert_eq!(detail(&"я".repeat(1000)).0.len(), 500);
    }

    #[test]
    fn a_retry_is_made_only_where_it_can_help_in_time() {
        let wait = |status: u16, headers: &[(&'static str, &'static str)]| {
            let headers =
                headers.iter().map(|&(name, value)| (name.parse().expect("name"), value.parse().expect("value")));
            retry_wait(StatusCode::from_u16(status).expect("status"), &headers.collect())
        };
        assert_eq!(wait(429, &[("retry-after-ms", "120")]), Some(Duration::from_millis(120)));
        assert_eq!(wait(429, &[("retry-after-ms", "120"), ("retry-after", "30")]), Some(Duration::from_millis(120)));
        assert_eq!(wait(429, &[("retry-after", "2")]), None);
        assert_eq!(wait(503, &[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")]), None);
        assert_eq!(wait(500, &[]), Some(Duration::from_millis(50)));
        assert_eq!(wait(500, &[("x-should-retry", "false")]), None);
        assert_eq!(wait(400, &[]), None);
        assert_eq!(wait(422, &[]), None);
        assert_eq!(wait(429, &[("retry-after-ms", "-5")]), None);
    }

    #[test]
    fn hints_join_the_prompt_until_it_is_full() {
        assert_eq!(prompt("", &["Vitrolux".into(), "Kyiv".into()]), "Vitrolux, Kyiv");
        assert_eq!(prompt("A call.", &["Kyiv".into()]), "A call. Kyiv");
        assert!(prompt("", &vec!["word".to_owned(); 1000]).len() <= 600);
    }

    #[test]
    fn the_key_prints_as_dots_and_is_not_written() {
        let config = OpenAiSttConfig { api_key: Some("sk-secret".to_owned().into()), ..OpenAiSttConfig::default() };
        assert!(!format!("{config:?}").contains("sk-secret"));
        assert!(!toml::to_string(&config).expect("it serialises").contains("api_key"));
    }
}
