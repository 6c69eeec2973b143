//! Text to speech: the contract of a synthesizer. One clause or sentence in, samples out as they are made.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::media::frame::SampleRate;

pub mod cache;
pub mod espeak;
pub mod fallback;
pub mod openai;
mod outlet;
mod pcm;
pub mod trim;

/// The engines that a configuration or an agent may name.
pub const ENGINES: &[&str] = &["espeak", "openai", "scripted"];

/// What is to be said, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct SpeechRequest {
    /// One clause or a few sentences, already fit for speech: no Markdown, no emoji.
    pub text: String,
    /// BCP 47 or ISO 639-1.
    pub language: String,
    /// The engine's own name of a voice; empty = its default for the language.
    pub voice: String,
    /// 1.0 is the voice's own pace; 0.5 to 2.0 are honoured.
    pub speed: f32,
}

/// Samples of one utterance, mono i16.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpeechChunk {
    pub rate: SampleRate,
    pub samples: Vec<i16>,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum TtsError {
    /// No audio in time. A fallback may still speak.
    #[error("{engine} gave no audio within {limit:?}")]
    Timeout { engine: &'static str, limit: Duration },
    /// The process or server failed; this clause is lost (or goes to the fallback), the call goes on.
    #[error("{engine} failed{}: {detail}", .status.map(|s| format!(" with status {s}")).unwrap_or_default())]
    Engine { engine: &'static str, status: Option<u16>, detail: String },
    #[error("{engine} refused the key; check {setting}")]
    Unauthorized { engine: &'static str, setting: &'static str },
}

/// An engine that speaks.
pub trait Synthesizer: Send + Sync + 'static {
    /// `espeak`, `openai`: the name in configuration, logs and metrics.
    fn name(&self) -> &'static str;

    /// Starts to speak; needs a tokio runtime. The stream ends after the last chunk or the first error. Leading
    /// silence over 30 ms and trailing silence are trimmed. Dropping the stream cancels the work behind it.
    fn speak(&self, request: SpeechRequest) -> SpeechStream;

    /// Called when a call is answered: open connections, spawn processes for this voice, so that the first clause
    /// does not pay for it.
    fn prepare(&self, _request: &SpeechRequest) {}
}

/// Samples as they come.
pub struct SpeechStream {
    chunks: mpsc::Receiver<Result<SpeechChunk, TtsError>>,
    _cancel: DropGuard,
}

/// About a second of 40 ms chunks: a slow reader holds the engine back instead of filling memory.
pub const SPEECH_QUEUE: usize = 32;

impl SpeechStream {
    /// The stream and the engine's ends of it. The engine's task must stop when the token is cancelled.
    pub fn new() -> (Self, mpsc::Sender<Result<SpeechChunk, TtsError>>, CancellationToken) {
        let (tx, chunks) = mpsc::channel(SPEECH_QUEUE);
        let cancel = CancellationToken::new();
        (Self { chunks, _cancel: cancel.clone().drop_guard() }, tx, cancel)
    }

    /// The next samples; `None` at the end. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<SpeechChunk, TtsError>> {
        self.chunks.recv().await
    }
}
