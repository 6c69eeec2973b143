//! Speech to text: the contract of a transcriber. A call opens one session and feeds it the caller's utterances; the
//! call, not the engine, says when text is wanted.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::media::frame::SampleRate;

#[cfg(feature = "whisper")]
mod cut;
pub mod fallback;
pub mod google;
pub mod guard;
pub mod openai;
mod utterance;
#[cfg(feature = "whisper")]
pub mod whisper;

/// The engines that a configuration or an agent may name.
pub const ENGINES: &[&str] = &["whisper", "openai", "google", "scripted"];

/// One stretch of caller speech, numbered from 1 within a call. It may hold pauses shorter than the end of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct UtteranceId(pub u32);

/// What a call wants to know when it opens a session.
#[derive(Clone, Debug, Default)]
pub struct SttRequest {
    /// BCP 47 or ISO 639-1, e.g. `en`, `uk`, `en-US`. Fixed for the call: detection costs a second pass.
    pub language: String,
    /// Words that are likely in this call (names, products), for engines that take hints.
    pub hints: Vec<String>,
}

/// How urgent a transcript is. Finals go before partials; a partial may be dropped when the engine is busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Take {
    /// Text so far, while the caller speaks.
    Partial,
    /// The caller paused: probably the whole turn. Dropped only where no engine is free and a final waits.
    Speculative,
    /// The turn is over and this text is waited for.
    Final,
}

/// What the call says to a session. Audio is mono i16 at the transcriber's `rate()`.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all messages are audio; a box would allocate for each")]
pub enum SttInput {
    /// An utterance begins; the audio that follows (pre-roll first) belongs to it.
    Begin { utterance: UtteranceId },
    /// The next samples of the open utterance, normally 20 ms.
    Audio(AudioChunk),
    /// Wanted: the text of all audio of this utterance so far, answered by an event with the same `take` number.
    /// Numbers grow; a later take supersedes earlier ones that are not answered yet.
    Transcribe { utterance: UtteranceId, take: u32, kind: Take },
    /// The caller speaks on: what was asked up to this take is stale, stop working on it. The audio stays.
    Cancel { utterance: UtteranceId, take: u32 },
    /// The utterance is over: forget its audio. Takes still open are cancelled.
    End { utterance: UtteranceId },
}

/// Up to 20 ms at 16 kHz, inline: a channel of these allocates nothing per message.
#[derive(Clone)]
pub struct AudioChunk {
    len: u16,
    samples: [i16; AudioChunk::MAX],
}

impl AudioChunk {
    pub const MAX: usize = 320;

    /// `None` when there are more than [`AudioChunk::MAX`] samples.
    pub fn new(samples: &[i16]) -> Option<Self> {
        if samples.len() > Self::MAX {
            return None;
        }
        let mut inline = [0; Self::MAX];
        inline[..samples.len()].copy_from_slice(samples);
        Some(Self { len: samples.len() as u16, samples: inline })
    }

    pub fn samples(&self) -> &[i16] {
        &self.samples[..usize::from(self.len)]
    }
}

impl std::fmt::Debug for AudioChunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AudioChunk({} samples)", self.len)
    }
}

/// What a session answers.
#[derive(Clone, Debug)]
pub enum SttEvent {
    /// Text of the utterance so far; may change. `take` is `None` when the engine offers it on its own.
    Partial { utterance: UtteranceId, take: Option<u32>, text: String },
    /// The text of a speculative or final take. Empty: nothing was said (or a guard took it for a hallucination).
    Final { utterance: UtteranceId, take: u32, text: String, confidence: Option<f32>, engine_time: Duration },
    /// A speculative take or a partial was given up because the engine is busy. Not a fault.
    Skipped { utterance: UtteranceId, take: u32 },
    /// This take failed and no retry is left. The session goes on.
    Failed { utterance: UtteranceId, take: u32, error: SttError },
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum SttError {
    /// Nothing in time. A fallback may still answer.
    #[error("{engine} gave no transcript within {limit:?}")]
    Timeout { engine: &'static str, limit: Duration },
    /// The server refused or broke; `status` is the HTTP or gRPC code where there is one. The detail holds no secret.
    #[error("{engine} failed{}: {detail}", .status.map(|s| format!(" with status {s}")).unwrap_or_default())]
    Engine { engine: &'static str, status: Option<u16>, detail: String },
    /// The key is wrong or missing: an operator must act.
    #[error("{engine} refused the key; check {setting}")]
    Unauthorized { engine: &'static str, setting: &'static str },
    /// More audio than a turn may have.
    #[error("an utterance of {seconds} s is longer than {engine} takes")]
    TooLong { engine: &'static str, seconds: u32 },
}

/// An engine that turns caller audio into text.
pub trait Transcriber: Send + Sync + 'static {
    /// `whisper`, `openai`, `google`: the name in configuration, logs and metrics.
    fn name(&self) -> &'static str;

    /// The sample rate it wants to be fed with (8 or 16 kHz).
    fn rate(&self) -> SampleRate;

    /// Opens a session for one call; needs a tokio runtime. Dropping the session cancels whatever runs for it.
    fn open(&self, request: SttRequest) -> SttSession;
}

/// One call's line to a transcriber.
pub struct SttSession {
    pub input: mpsc::Sender<SttInput>,
    pub events: mpsc::Receiver<SttEvent>,
    _cancel: DropGuard,
}

/// Two seconds of 20 ms chunks and the commands between. A full queue means a dead engine: audio is dropped and counted.
pub const STT_INPUT_QUEUE: usize = 128;
/// Transcripts wait; there are few, and the call reads them at every turn of its loop.
pub const STT_EVENT_QUEUE: usize = 32;

impl SttSession {
    /// The session and the engine's ends of it. The engine's task must stop when the token is cancelled.
    pub fn new() -> (Self, mpsc::Receiver<SttInput>, mpsc::Sender<SttEvent>, CancellationToken) {
        let (input, input_rx) = mpsc::channel(STT_INPUT_QUEUE);
        let (events_tx, events) = mpsc::channel(STT_EVENT_QUEUE);
        let cancel = CancellationToken::new();
        (Self { input, events, _cancel: cancel.clone().drop_guard() }, input_rx, events_tx, cancel)
    }
}
