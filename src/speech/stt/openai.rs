//! Speech to text over HTTP: `POST {base_url}/audio/transcriptions`, OpenAI's and what looks like it (Speaches, vLLM,
//! LocalAI, Groq). Each take sends the utterance so far as one WAV. The realtime websocket, which takes audio while it
//! is spoken, is another protocol and not here.

use std::sync::Arc;
use std::time::Duration;

use eventsource_stream::Eventsource;
use futures::{Stream, StreamExt};
use reqwest::Response;
use reqwest::header::CONTENT_TYPE;
use reqwest::multipart::{Form, Part};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::guard::{self, GuardConfig, Loudness};
use super::utterance::OpenUtterance;
use super::{SttError, SttEvent, SttInput, SttRequest, SttSession, Take, Transcriber, UtteranceId};
use crate::media::frame::SampleRate;
use crate::speech::http::{Endpoint, EndpointError, HttpError, explanation};

const NAME: &str = "openai";
/// An answer is a few sentences; more is not for us.
const ANSWER_LIMIT: usize = 1 << 20;
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
            limit_ms: 2500,
            max_utterance_ms: 120_000,
            guards: GuardConfig::default(),
        }
    }
}

/// Why the engine cannot be made. An operator must act.
#[derive(Debug, thiserror::Error)]
pub enum OpenAiSttSetupError {
    #[error("speech.stt.openai.rate must be 8000 or 16000, not {0}")]
    Rate(u32),
    #[error("speech.stt.openai: {0}")]
    Endpoint(#[from] EndpointError),
}

/// The engine; its connections are shared by all calls.
pub struct OpenAiStt {
    server: Arc<Server>,
}

struct Server {
    endpoint: Endpoint,
    config: OpenAiSttConfig,
}

impl OpenAiStt {
    /// Checks the configuration; opens no connection.
    pub fn new(config: &OpenAiSttConfig) -> Result<Self, OpenAiSttSetupError> {
        if ![8_000, 16_000].contains(&config.rate) {
            return Err(OpenAiSttSetupError::Rate(config.rate));
        }
        let endpoint = Endpoint::new(&config.base_url, config.api_key.clone())?;
        Ok(Self { server: Arc::new(Server { endpoint, config: config.clone() }) })
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
    /// Whether to ask again, and after how long. A transcription changes nothing on the server, so a request without an
    /// answer may be repeated.
    retry: Option<Duration>,
}

impl From<HttpError> for Failure {
    fn from(error: HttpError) -> Self {
        let retry = error.retry_after();
        let error = match error {
            HttpError::Unauthorized => SttError::Unauthorized { engine: NAME, setting: "speech.stt.openai.api_key" },
            error => engine(error.status(), error.detail()),
        };
        Self { error, retry }
    }
}

/// A failure that no second attempt mends.
fn unsent(detail: &str) -> Failure {
    Failure { error: engine(None, detail), retry: None }
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
        let file = file.mime_str("audio/wav").map_err(|error| unsent(&error.to_string()))?;
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
        let post = self.endpoint.post("audio/transcriptions").multipart(form.part("file", file));
        let response = self.endpoint.send(post).await?;
        // From here on bytes of the answer are used: no second attempt.
        self.read(response, progress).await.map_err(|detail| unsent(&self.endpoint.explain(detail.as_bytes())))
    }

    async fn read(&self, mut response: Response, progress: &Progress) -> Result<String, String> {
        let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        if kind.starts_with("text/event-stream") {
            let mut left = ANSWER_LIMIT;
            let bytes = response.bytes_stream().map(move |chunk| {
                let chunk = chunk.map_err(|error| error.without_url().to_string())?;
                left = left.checked_sub(chunk.len()).ok_or_else(|| format!("an answer over {ANSWER_LIMIT} bytes"))?;
                Ok::<_, String>(chunk)
            });
            return read_events(bytes, progress).await;
        }
        let body = self.endpoint.body(&mut response, ANSWER_LIMIT).await.map_err(|error| error.detail().to_owned())?;
        if body.trim_ascii_start().starts_with(b"data:") {
            // Some servers stream without saying so.
            let bytes = futures::stream::iter([Ok::<_, String>(bytes::Bytes::from(body))]);
            return read_events(bytes, progress).await;
        }
        text_of(&body, kind.starts_with("text/plain"))
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
        if message.get("error").is_some_and(|error| !error.is_null()) {
            return Err(explanation(message.to_string().as_bytes()));
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
            (None, Some(_)) => Err(explanation(body)),
            (None, None) => Err("the answer has no text".into()),
        },
        Ok(_) | Err(_) if plain => Ok(raw()),
        Ok(_) | Err(_) => Err("the answer is not JSON".into()),
    }
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
