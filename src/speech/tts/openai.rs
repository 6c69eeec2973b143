//! `/v1/audio/speech` (specs/speech-apis.md §3): OpenAI and the servers that imitate it. The body is played as it
//! comes; what it is gets decided by the answer, not by what was asked for.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::Response;
use reqwest::header::CONTENT_TYPE;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::outlet::{Gone, Outlet};
use super::pcm::PcmReader;
use super::{SpeechRequest, SpeechStream, Synthesizer, TtsError};
use crate::media::frame::SampleRate;
use crate::speech::http::{Dots, Endpoint, EndpointError, HttpError, RETRY_WAIT};
use crate::speech::sse::SseParser;

const ENGINE: &str = "openai";
const KEY_SETTING: &str = "speech.tts.openai.api_key";
/// The API's own limit, in characters.
const INPUT_MAX: usize = 4096;

#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum SpeechFormat {
    /// 24 kHz without a header.
    Pcm,
    /// Says its own rate.
    Wav,
}

#[derive(Deserialize, Serialize, Clone)]
#[serde(deny_unknown_fields, default)]
pub struct OpenAiTtsConfig {
    /// Everything before `/audio/speech`. Default `https://api.openai.com/v1`.
    pub base_url: String,
    /// Sent as a bearer token; none for local servers.
    #[serde(skip_serializing)]
    pub api_key: Option<SecretString>,
    /// Default `gpt-4o-mini-tts`.
    pub model: String,
    /// Used where an agent names none. Default `alloy`.
    pub voice: String,
    /// Style, at most 4096 characters; `tts-1` and many other servers refuse or ignore it. Default empty = not sent.
    pub instructions: String,
    /// `pcm` or `wav`. Default `pcm`. Take `wav` with servers whose rate is not certain: Piper answers 16 or 22.05 kHz.
    pub response_format: SpeechFormat,
    /// Rate of headerless samples. Default 24,000 Hz.
    pub pcm_rate_hz: u32,
    /// From the request to the first sound. Default 2,000 ms; more is silence for the caller.
    pub first_audio_limit_ms: u64,
    /// Between two pieces of the body. Default 2,000 ms.
    pub gap_limit_ms: u64,
    /// The longest utterance; the rest is cut off. Default 120 s.
    pub max_audio_s: u64,
}

impl Default for OpenAiTtsConfig {
    fn default() -> Self {
        Self {
            base_url: "https://api.openai.com/v1".into(),
            api_key: None,
            model: "gpt-4o-mini-tts".into(),
            voice: "alloy".into(),
            instructions: String::new(),
            response_format: SpeechFormat::Pcm,
            pcm_rate_hz: 24_000,
            first_audio_limit_ms: 2000,
            gap_limit_ms: 2000,
            max_audio_s: 120,
        }
    }
}

impl fmt::Debug for OpenAiTtsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { base_url, api_key, model, voice, instructions, response_format, pcm_rate_hz, .. } = self;
        f.debug_struct("OpenAiTtsConfig")
            .field("base_url", base_url)
            .field("api_key", &api_key.as_ref().map(|_| Dots))
            .field("model", model)
            .field("voice", voice)
            .field("instructions", instructions)
            .field("response_format", response_format)
            .field("pcm_rate_hz", pcm_rate_hz)
            .field("first_audio_limit_ms", &self.first_audio_limit_ms)
            .field("gap_limit_ms", &self.gap_limit_ms)
            .field("max_audio_s", &self.max_audio_s)
            .finish()
    }
}

impl OpenAiTtsConfig {
    /// What cannot be right, one sentence each.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if let Err(error) = Endpoint::new(&self.base_url, None) {
            faults.push(error.to_string());
        }
        if self.model.is_empty() {
            faults.push("model is empty".to_owned());
        }
        if !(8_000..=48_000).contains(&self.pcm_rate_hz) {
            faults.push(format!("pcm_rate_hz is {}, not within 8000 to 48000", self.pcm_rate_hz));
        }
        for (name, value) in [
            ("first_audio_limit_ms", self.first_audio_limit_ms),
            ("gap_limit_ms", self.gap_limit_ms),
            ("max_audio_s", self.max_audio_s),
        ] {
            if value == 0 {
                faults.push(format!("{name} is 0"));
            }
        }
        faults
    }
}

/// Speaks by a server. Clones share its connections.
#[derive(Clone)]
pub struct OpenAiTts {
    inner: Arc<Inner>,
}

struct Inner {
    config: OpenAiTtsConfig,
    endpoint: Endpoint,
}

impl OpenAiTts {
    pub fn new(config: OpenAiTtsConfig) -> Result<Self, EndpointError> {
        let endpoint = Endpoint::new(&config.base_url, config.api_key.clone())?;
        Ok(Self { inner: Arc::new(Inner { config, endpoint }) })
    }
}

impl Synthesizer for OpenAiTts {
    fn name(&self) -> &'static str {
        ENGINE
    }

    fn speak(&self, request: SpeechRequest) -> SpeechStream {
        let (stream, tx, cancel) = SpeechStream::new();
        let mut outlet = Outlet::new(ENGINE, Instant::now(), tx);
        let inner = self.inner.clone();
        tokio::spawn(async move {
            // Dropping the request closes its connection: there is no other way to stop the server (§3.2).
            let outcome = cancel.run_until_cancelled(inner.utter(&request, &mut outlet)).await;
            if let Some(Err(error)) = outcome {
                warn!(%error, "utterance lost");
                cancel.run_until_cancelled(outlet.fail(error)).await;
            }
        });
        stream
    }

    fn prepare(&self, _request: &SpeechRequest) {
        self.inner.endpoint.warm();
    }
}

/// Why one attempt failed, and whether another may do better.
struct Fault {
    error: TtsError,
    retry: Option<Duration>,
}

impl From<HttpError> for Fault {
    fn from(error: HttpError) -> Self {
        let retry = error.retry_after();
        let error = match error {
            HttpError::Unauthorized => TtsError::Unauthorized { engine: ENGINE, setting: KEY_SETTING },
            HttpError::Status { status, detail, .. } => {
                TtsError::Engine { engine: ENGINE, status: Some(status), detail }
            }
            HttpError::Connection { detail, .. } => TtsError::Engine { engine: ENGINE, status: None, detail },
        };
        Self { error, retry }
    }
}

fn failed(detail: impl fmt::Display) -> Fault {
    Fault { error: TtsError::Engine { engine: ENGINE, status: None, detail: detail.to_string() }, retry: None }
}

impl Inner {
    async fn utter(&self, request: &SpeechRequest, outlet: &mut Outlet) -> Result<(), TtsError> {
        let limit = Duration::from_millis(self.config.first_audio_limit_ms);
        let first_by = Instant::now() + limit;
        let body = self.body(request).map_err(|fault| fault.error)?;
        let Err(fault) = self.attempt(&body, first_by, outlet).await else { return Ok(()) };
        let wait = match fault.retry {
            Some(wait) if !outlet.begun() && Instant::now() + wait < first_by => wait,
            _ => return Err(fault.error),
        };
        warn!(error = %fault.error, wait_ms = wait.as_millis() as u64, "speech is asked for once more");
        sleep(wait).await;
        outlet.restart();
        self.attempt(&body, first_by, outlet).await.map_err(|fault| fault.error)
    }

    fn body(&self, request: &SpeechRequest) -> Result<Value, Fault> {
        let length = request.text.chars().count();
        if length > INPUT_MAX {
            return Err(failed(format!("an utterance of {length} characters, where {INPUT_MAX} is the most")));
        }
        let config = &self.config;
        let voice = if request.voice.is_empty() { &config.voice } else { &request.voice };
        let mut body = json!({
            "model": config.model, "input": request.text, "voice": voice, "response_format": config.response_format,
        });
        // Only what differs from the API's default: strict servers refuse fields that they do not know.
        if request.speed.is_finite() && (request.speed - 1.0).abs() > 0.005 {
            body["speed"] = json!((f64::from(request.speed.clamp(0.25, 4.0)) * 100.0).round() / 100.0);
        }
        if !config.instructions.is_empty() {
            body["instructions"] = json!(config.instructions);
        }
        Ok(body)
    }

    async fn attempt(&self, body: &Value, first_by: Instant, outlet: &mut Outlet) -> Result<(), Fault> {
        let late = |limit_ms| {
            let limit = Duration::from_millis(limit_ms);
            Fault { error: TtsError::Timeout { engine: ENGINE, limit }, retry: None }
        };
        let (first_ms, gap_ms) = (self.config.first_audio_limit_ms, self.config.gap_limit_ms);
        let sent = self.endpoint.send(self.endpoint.post("audio/speech").json(body));
        let mut response = timeout_at(first_by, sent).await.map_err(|_| late(first_ms))??;
        let mut answer = Answer::new(&response, &self.config)?;
        let mut room = None;
        let mut samples = Vec::new();
        loop {
            let (by, limit_ms) = match outlet.begun() {
                true => (Instant::now() + Duration::from_millis(gap_ms), gap_ms),
                false => (first_by, first_ms),
            };
            let piece = timeout_at(by, self.endpoint.chunk(&mut response)).await.map_err(|_| late(limit_ms))??;
            samples.clear();
            let more = match &piece {
                Some(bytes) => answer.push(bytes, &mut samples, &self.endpoint)?,
                None => answer.finish(&mut samples, &self.endpoint)?,
            };
            if let Some(rate) = answer.reader.rate() {
                let room = room.get_or_insert(rate.samples(Duration::from_secs(self.config.max_audio_s)));
                let taken = samples.len().min(*room);
                *room -= taken;
                if outlet.say(rate, &samples[..taken]).await.is_err() {
                    return Ok(());
                }
                if *room == 0 {
                    warn!(max_audio_s = self.config.max_audio_s, "utterance cut off at its greatest length");
                    break;
                }
            }
            if piece.is_none() || !more {
                break;
            }
        }
        if answer.reader.rate().is_none() {
            return Err(Fault { retry: Some(RETRY_WAIT), ..failed("an answer without audio") });
        }
        let (Ok(()) | Err(Gone)) = outlet.finish().await;
        Ok(())
    }
}

/// The body of an answer, being read.
struct Answer {
    reader: PcmReader,
    /// Present when the audio comes in events.
    events: Option<SseParser>,
    ready: Vec<String>,
}

impl Answer {
    fn new(response: &Response, config: &OpenAiTtsConfig) -> Result<Self, Fault> {
        let given = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let mut parts = given.split(';').map(|part| part.trim().to_ascii_lowercase()).collect::<VecDeque<_>>();
        let kind = parts.pop_front().unwrap_or_default();
        let rate = parts.iter().find_map(|part| part.strip_prefix("rate=")?.parse::<u32>().ok());
        let rate = rate.filter(|hz| (8_000..=48_000).contains(hz)).unwrap_or(config.pcm_rate_hz);
        // Whatever it is called, audio that begins with RIFF is a WAV, so headerless samples are the general case.
        let reader = PcmReader::raw(SampleRate::new(rate));
        let events = (kind == "text/event-stream").then(SseParser::default);
        let unplayable = ["text/", "application/json", "image/", "audio/mpeg", "audio/mp3", "audio/ogg", "audio/opus"];
        let unplayable = unplayable.iter().any(|prefix| kind.starts_with(prefix)) || kind.contains("flac");
        if events.is_none() && (unplayable || kind.starts_with("audio/aac")) {
            let asked = config.response_format;
            return Err(failed(format!("asked for {asked:?}, the server answered {kind}; it must give pcm or wav")));
        }
        Ok(Self { reader, events, ready: Vec::new() })
    }

    /// Samples in the next bytes; false when nothing more is to come.
    fn push(&mut self, bytes: &[u8], samples: &mut Vec<i16>, endpoint: &Endpoint) -> Result<bool, Fault> {
        let Some(events) = &mut self.events else {
            self.reader.push(bytes, samples).map_err(failed)?;
            return Ok(true);
        };
        events.push(bytes, &mut self.ready).map_err(failed)?;
        self.take_events(samples, endpoint)
    }

    fn finish(&mut self, samples: &mut Vec<i16>, endpoint: &Endpoint) -> Result<bool, Fault> {
        self.ready.extend(self.events.as_mut().and_then(SseParser::finish));
        self.take_events(samples, endpoint)
    }

    fn take_events(&mut self, samples: &mut Vec<i16>, endpoint: &Endpoint) -> Result<bool, Fault> {
        for event in self.ready.drain(..) {
            let event = event.trim();
            if event.is_empty() {
                continue;
            }
            if event == "[DONE]" {
                return Ok(false);
            }
            let json: Value = serde_json::from_str(event).map_err(|_| failed("an event that is not JSON"))?;
            if !json["error"].is_null() {
                return Err(failed(endpoint.explain(event.as_bytes())));
            }
            if json["type"] == "speech.audio.done" {
                return Ok(false);
            }
            // Some servers call the field `delta`.
            if let Some(audio) = json["audio"].as_str().or(json["delta"].as_str()) {
                let bytes = BASE64_STANDARD.decode(audio).map_err(|_| failed("audio that is not base64"))?;
                self.reader.push(&bytes, samples).map_err(failed)?;
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_neither_printed_nor_written() {
        let config = OpenAiTtsConfig { api_key: Some("hunter2".into()), ..OpenAiTtsConfig::default() };
        let printed = format!("{config:?}");
        assert!(printed.contains("••••") && !printed.contains("hunter2"), "{printed}");
        let written = serde_json::to_string(&config).expect("plain fields");
        assert!(!written.contains("api_key") && !written.contains("hunter2"), "{written}");
    }

    #[test]
    fn a_configuration_is_checked_and_refuses_keys_it_does_not_know() {
        assert_eq!(OpenAiTtsConfig::default().faults(), Vec::<String>::new());
        let config: OpenAiTtsConfig = toml::from_str(
            "base_url = \"nowhere\"\nmodel = \"\"\npcm_rate_hz = 1\ngap_limit_ms = 0\nresponse_format = \"wav\"",
        )
        .expect("known keys");
        assert_eq!(config.faults().len(), 4);
        assert!(toml::from_str::<OpenAiTtsConfig>("voices = \"x\"").is_err());
    }
}
