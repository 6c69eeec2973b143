//! Whisper on this machine: one loaded model for all calls, a pool of threads, and one task per call that holds the
//! audio of the open utterance. A turn is decoded whole, early and again (a turn decoder, not a streaming one); only
//! turns longer than 12 s are cut, at a pause, and their pieces decoded once. Hints are not used: an initial prompt
//! makes short clips loop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cut::find_cut;
use super::guard::GuardConfig;
use super::{SttError, SttEvent, SttInput, SttRequest, SttSession, Take, Transcriber, UtteranceId};
use crate::media::frame::SampleRate;

mod frame;
mod model;
mod pool;

use model::{Model, ModelDecoder};
use pool::{Clip, Outcome, Pool, PoolLimits, Queue, SessionId, Ticket, Transcript};

const NAME: &str = "whisper";
const RATE: SampleRate = SampleRate::HZ_16000;
/// The model that ships with the program. It was trained on short windows; others were trained on 30 s.
const DEMO: &str = "offhook-demo-en";

/// `[speech.stt.whisper]`.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct WhisperConfig {
    /// A model's name, looked up in `models_dir`, or a path to a ggml file. Default `offhook-demo-en`, which knows only
    /// the words of the demo; `base.en` and larger are for real callers and cost 10 to 100 times as much time.
    pub model: String,
    /// Where models lie. Default `models`.
    pub models_dir: PathBuf,
    /// Threads that decode at the same time; each holds a state of 20 to 200 MB by model. Default 0: cores / `threads`.
    pub workers: usize,
    /// Threads within one decoding. Default 1; 2 shorten an idle machine's answers and lower its capacity.
    /// `workers * threads` must not exceed the cores.
    pub threads: usize,
    /// Jobs that may wait, over all calls. Default 256; a longer queue only means later answers.
    pub queue: usize,
    /// A partial that waited this long is dropped, ms. Default 500.
    pub partial_stale_ms: u64,
    /// Limit from the request for a final or speculative text to its answer, ms. Default 2500.
    pub final_limit_ms: u64,
    /// Smallest encoder window, positions of 20 ms; time grows with it. Default 256 (5.1 s).
    pub min_audio_ctx: usize,
    /// Positions beyond the end of the audio. Default 96: fewer make models loop.
    pub margin: usize,
    /// Window of the one retry when a text loops or runs into its token cap, positions; at most 1500. Default 768; 0 = no
    /// retry. Models that were not trained on the full window (the demo model) are ruined by 1500.
    pub retry_window: usize,
    /// A clip with so much voice of which no believable word came is decoded once more, shown as it came, ms. Default
    /// 400; 0 = never. A smaller value spends time on noises and lets more of them become words.
    pub second_look_voiced_ms: u64,
    /// Runs with a larger window use a state of their own, which is dropped afterwards, positions. Default 768; a
    /// larger value lets each worker keep up to 67 MB (demo model) or some 200 MB (base).
    pub pooled_window: usize,
    /// Cap on the text tokens of English per second of audio, beyond 12. Default 8.
    pub tokens_per_s: f32,
    /// The same for other languages, whose words take more tokens. Default 12.
    pub tokens_per_s_other: f32,
    /// An utterance longer than this is cut at a pause of 200 ms, ms; earlier cuts save time at the end of a long turn and
    /// cost context. Default 12000.
    pub cut_from_ms: u64,
    /// Longest piece, ms; cut at its quietest place when there was no pause. Default 28000, the most that fits a window.
    pub max_clip_ms: u64,
    /// Longest utterance, ms. Default 120000; a take of a longer one fails.
    pub max_utterance_ms: u64,
    /// Decode on a GPU, where the program was built for one. Default false.
    pub gpu: bool,
    pub guards: GuardConfig,
}

impl Default for WhisperConfig {
    fn default() -> Self {
        Self {
            model: DEMO.into(),
            models_dir: "models".into(),
            workers: 0,
            threads: 1,
            queue: 256,
            partial_stale_ms: 500,
            final_limit_ms: 2500,
            min_audio_ctx: 256,
            margin: 96,
            retry_window: 768,
            second_look_voiced_ms: 400,
            pooled_window: 768,
            tokens_per_s: 8.0,
            tokens_per_s_other: 12.0,
            cut_from_ms: 12_000,
            max_clip_ms: 28_000,
            max_utterance_ms: 120_000,
            gpu: false,
            guards: GuardConfig::default(),
        }
    }
}

/// Why the engine cannot start. An operator must act.
#[derive(Debug, thiserror::Error)]
pub enum WhisperLoadError {
    /// No file under any of the names that the model may have.
    #[error("no speech model at {}; fetch it with `offhook models pull {model}`", .path.display())]
    Missing { model: String, path: PathBuf },
    /// There is a file, but whisper.cpp cannot use it: cut short, or of another format.
    #[error("{} is not a usable Whisper model ({reason}); fetch it again with `offhook models pull {model}`", .path.display())]
    Unusable { model: String, path: PathBuf, reason: String },
    /// More threads than cores make every decoding several times slower.
    #[error(
        "speech.stt.whisper: {workers} workers of {threads} threads are more than the {cores} cores of this machine"
    )]
    TooManyThreads { workers: usize, threads: usize, cores: usize },
    #[error("speech.stt.whisper.{setting} must be {rule}")]
    Setting { setting: &'static str, rule: &'static str },
    #[error("cannot start the threads of speech recognition")]
    Threads(#[from] std::io::Error),
}

impl WhisperConfig {
    /// The model's file: a path as it stands, or the first file that a name may stand for.
    pub fn model_path(&self) -> Result<PathBuf, WhisperLoadError> {
        let name = &self.model;
        let candidates = if Path::new(name).components().count() > 1 || name.ends_with(".bin") {
            vec![PathBuf::from(name)]
        } else {
            let file = format!("ggml-{name}.bin");
            vec![self.models_dir.join(name).join(&file), self.models_dir.join(&file)]
        };
        let found = candidates.iter().find(|path| path.is_file()).cloned();
        let last = candidates.into_iter().next_back().unwrap_or_default();
        found.ok_or_else(|| WhisperLoadError::Missing { model: name.clone(), path: last })
    }

    /// Checks the numbers and resolves `workers`.
    fn workers_for(&self, cores: usize) -> Result<usize, WhisperLoadError> {
        let rule = |holds: bool, setting, rule| {
            if holds { Ok(()) } else { Err(WhisperLoadError::Setting { setting, rule }) }
        };
        rule(self.threads > 0, "threads", "at least 1")?;
        rule(self.queue > 0, "queue", "at least 1")?;
        rule((64..=1500).contains(&self.min_audio_ctx), "min_audio_ctx", "64 to 1500")?;
        rule(self.retry_window <= 1500, "retry_window", "at most 1500")?;
        rule((2_000..=28_000).contains(&self.max_clip_ms), "max_clip_ms", "2000 to 28000")?;
        rule(self.cut_from_ms < self.max_clip_ms, "cut_from_ms", "less than max_clip_ms")?;
        let workers = if self.workers == 0 { (cores / self.threads).max(1) } else { self.workers };
        let fits = workers.saturating_mul(self.threads) <= cores;
        fits.then_some(workers).ok_or(WhisperLoadError::TooManyThreads { workers, threads: self.threads, cores })
    }
}

/// The engine. Dropping it stops what runs and joins its threads (within one encoder pass, at most some 300 ms); the
/// takes of sessions that are still open then fail.
pub struct Whisper {
    pool: Pool,
    config: Arc<WhisperConfig>,
    sessions: AtomicU64,
}

impl Whisper {
    /// Loads the model and starts the threads. Blocking: 40 ms for the demo model, seconds for large ones.
    pub fn load(config: &WhisperConfig) -> Result<Self, WhisperLoadError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = config.workers_for(cores)?;
        let path = config.model_path()?;
        let model = Model::load(&path, config).map_err(|reason| {
            let model = config.model.clone();
            WhisperLoadError::Unusable { model, path: path.clone(), reason }
        })?;
        let model = Arc::new(model);
        let limits =
            PoolLimits { workers, queue: config.queue, partial_stale: Duration::from_millis(config.partial_stale_ms) };
        let pool = Pool::start(limits, move || ModelDecoder::new(Arc::clone(&model)))?;
        tracing::info!(model = config.model, workers, threads = config.threads, "speech model loaded");
        Ok(Self { pool, config: Arc::new(config.clone()), sessions: AtomicU64::new(0) })
    }
}

impl Transcriber for Whisper {
    fn name(&self) -> &'static str {
        NAME
    }

    fn rate(&self) -> SampleRate {
        RATE
    }

    fn open(&self, request: SttRequest) -> SttSession {
        let (session, input, events, cancel) = SttSession::new();
        let call = Call {
            session: SessionId(self.sessions.fetch_add(1, Ordering::Relaxed)),
            queue: self.pool.queue(),
            config: Arc::clone(&self.config),
            language: request.language.into(),
            events,
            utterance: None,
        };
        tokio::spawn(call.run(input, cancel));
        session
    }
}

/// One call's session.
struct Call {
    session: SessionId,
    queue: Arc<Queue>,
    config: Arc<WhisperConfig>,
    language: Arc<str>,
    events: mpsc::Sender<SttEvent>,
    utterance: Option<Utterance>,
}

/// The open utterance.
struct Utterance {
    id: UtteranceId,
    /// What is not yet cut off; at most `max_clip_ms` and one chunk.
    open: Vec<i16>,
    /// What was cut off, oldest first.
    pieces: Vec<Piece>,
    takes: Vec<OpenTake>,
    /// Samples so far; when it is over the limit, audio is no longer kept.
    heard: usize,
    /// Length of `open` at which a pause is looked for again.
    look_at: usize,
}

/// A piece of a long utterance. Its audio is with the pool until it is decoded, and then gone.
enum Piece {
    Waiting(Ticket),
    Done(Result<Transcript, String>),
}

/// A take that is not answered yet.
struct OpenTake {
    take: u32,
    kind: Take,
    asked: Instant,
    /// How many pieces come before its tail: the utterance as it was cut when the take was asked for.
    pieces: usize,
    tail: Tail,
}

enum Tail {
    Waiting(Ticket),
    Done(Outcome),
}

impl Call {
    async fn run(mut self, mut input: mpsc::Receiver<SttInput>, cancel: CancellationToken) {
        loop {
            let deadline = self.deadline();
            let event = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                message = input.recv() => match message {
                    Some(message) => self.on_input(message),
                    None => return,
                },
                () = Self::progress(&mut self.utterance) => None,
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => None,
            };
            let mut answers: Vec<SttEvent> = event.into_iter().collect();
            self.collect_answers(Instant::now(), &mut answers);
            for answer in answers {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    sent = self.events.send(answer) => if sent.is_err() { return },
                }
            }
        }
    }

    /// When the oldest open take runs out of time.
    fn deadline(&self) -> Option<Instant> {
        let oldest = self.utterance.as_ref()?.takes.iter().map(|take| take.asked).min()?;
        Some(oldest + self.limit())
    }

    fn limit(&self) -> Duration {
        Duration::from_millis(self.config.final_limit_ms)
    }

    /// Waits until a piece or a tail is decoded. Cancel-safe: what is decoded is kept in its place.
    async fn progress(utterance: &mut Option<Utterance>) {
        let Some(utterance) = utterance else { return std::future::pending().await };
        std::future::poll_fn(|cx| {
            let mut moved = false;
            for piece in &mut utterance.pieces {
                if let Piece::Waiting(ticket) = piece
                    && let std::task::Poll::Ready(outcome) = std::pin::Pin::new(ticket).poll(cx)
                {
                    *piece = Piece::Done(match outcome {
                        Outcome::Done { transcript, .. } => Ok(transcript),
                        Outcome::Skipped => Err("too busy for a long utterance".into()),
                        Outcome::Failed(reason) => Err(reason),
                    });
                    moved = true;
                }
            }
            for take in &mut utterance.takes {
                if let Tail::Waiting(ticket) = &mut take.tail
                    && let std::task::Poll::Ready(outcome) = std::pin::Pin::new(ticket).poll(cx)
                {
                    take.tail = Tail::Done(outcome);
                    moved = true;
                }
            }
            if moved { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }

    fn on_input(&mut self, message: SttInput) -> Option<SttEvent> {
        let current = self.utterance.as_mut();
        match message {
            SttInput::Begin { utterance } => {
                self.utterance = Some(Utterance {
                    id: utterance,
                    open: Vec::with_capacity(RATE.samples(Duration::from_secs(4))),
                    pieces: Vec::new(),
                    takes: Vec::new(),
                    heard: 0,
                    look_at: self.samples(self.config.cut_from_ms),
                });
                None
            }
            SttInput::Audio(chunk) => {
                let limit = self.samples(self.config.max_utterance_ms);
                let current = self.utterance.as_mut()?;
                current.heard += chunk.samples().len();
                if current.heard <= limit {
                    current.open.extend_from_slice(chunk.samples());
                    self.cut_if_long();
                }
                None
            }
            SttInput::Transcribe { utterance, take, kind } => self.on_transcribe(utterance, take, kind),
            SttInput::Cancel { utterance, take } => {
                if let Some(current) = current.filter(|current| current.id == utterance) {
                    current.takes.retain(|open| open.take > take);
                }
                None
            }
            SttInput::End { utterance } => {
                self.utterance.take_if(|current| current.id == utterance);
                None
            }
        }
    }

    fn on_transcribe(&mut self, utterance: UtteranceId, take: u32, kind: Take) -> Option<SttEvent> {
        let limit = self.samples(self.config.max_utterance_ms);
        let failed = |error| Some(SttEvent::Failed { utterance, take, error });
        let Some(current) = self.utterance.as_mut().filter(|current| current.id == utterance) else {
            let detail = "the utterance is not open".into();
            return failed(SttError::Engine { engine: NAME, status: None, detail });
        };
        if current.heard > limit {
            let seconds = RATE.duration(current.heard).as_secs() as u32;
            return failed(SttError::TooLong { engine: NAME, seconds });
        }
        let (samples, language) = (current.open.as_slice().into(), Arc::clone(&self.language));
        let clip = Clip { samples, language, answered: kind > Take::Partial };
        let tail = Tail::Waiting(self.queue.submit_take(self.session, kind, clip));
        current.takes.push(OpenTake { take, kind, asked: Instant::now(), pieces: current.pieces.len(), tail });
        None
    }

    /// Sends the oldest part of a long utterance to be decoded, so that its end costs no more than a short one's.
    fn cut_if_long(&mut self) {
        let (from, most) = (self.samples(self.config.cut_from_ms), self.samples(self.config.max_clip_ms));
        let Some(current) = self.utterance.as_mut() else { return };
        let length = current.open.len();
        if length < current.look_at {
            return;
        }
        current.look_at = length + RATE.samples(Duration::from_secs(1));
        // The last half second may be the first half of a word. Without a pause, not so late that the rest is a stump.
        let last = if length < most { length } else { most - most / 10 };
        let cut =
            find_cut(&current.open, RATE, from / 2..last.saturating_sub(RATE.samples(Duration::from_millis(500))));
        let cut = match cut {
            Some(cut) if cut.pause => cut,
            _ if length < most => return,
            _ => match find_cut(&current.open, RATE, from.min(last / 2)..last) {
                Some(cut) => cut,
                None => return,
            },
        };
        let rest = current.open.split_off(cut.at);
        let piece = std::mem::replace(&mut current.open, rest);
        let clip = Clip { samples: piece.into(), language: Arc::clone(&self.language), answered: true };
        current.pieces.push(Piece::Waiting(self.queue.submit_piece(self.session, clip)));
        current.look_at = from;
    }

    /// Moves takes that are decoded or out of time to `answers`.
    fn collect_answers(&mut self, now: Instant, answers: &mut Vec<SttEvent>) {
        let limit = self.limit();
        let Some(current) = self.utterance.as_mut() else { return };
        let utterance = current.id;
        let mut at = 0;
        while let Some(open) = current.takes.get(at) {
            let before = &current.pieces[..open.pieces];
            let ready = matches!(open.tail, Tail::Done(_)) && before.iter().all(|p| matches!(p, Piece::Done(_)));
            let given_up = matches!(open.tail, Tail::Done(Outcome::Skipped));
            if !(ready || given_up || now >= open.asked + limit) {
                at += 1;
                continue;
            }
            let open = current.takes.remove(at);
            let waited = now - open.asked;
            if open.kind == Take::Final {
                metrics::histogram!("offhook_stt_final_seconds", "engine" => NAME).record(waited.as_secs_f64());
            }
            answers.push(answer(utterance, open, &current.pieces, ready || given_up, limit));
        }
    }

    fn samples(&self, ms: u64) -> usize {
        RATE.samples(Duration::from_millis(ms))
    }
}

/// The event for a take whose tail and pieces are decoded (`ready`) or whose time is up.
fn answer(utterance: UtteranceId, open: OpenTake, pieces: &[Piece], ready: bool, limit: Duration) -> SttEvent {
    let (take, kind) = (open.take, open.kind);
    let failed = |detail| {
        let error = SttError::Engine { engine: NAME, status: None, detail };
        SttEvent::Failed { utterance, take, error }
    };
    let tail = match open.tail {
        Tail::Done(outcome) if ready => outcome,
        // Dropping the ticket stops the decoder.
        _ if kind == Take::Partial => return SttEvent::Skipped { utterance, take },
        _ => return SttEvent::Failed { utterance, take, error: SttError::Timeout { engine: NAME, limit } },
    };
    let (tail, engine_time) = match tail {
        Outcome::Done { transcript, engine_time } => (transcript, engine_time),
        Outcome::Skipped => return SttEvent::Skipped { utterance, take },
        Outcome::Failed(reason) => return failed(reason),
    };
    let mut parts = Vec::new();
    for piece in &pieces[..open.pieces] {
        match piece {
            Piece::Done(Ok(transcript)) => parts.push(transcript),
            Piece::Done(Err(reason)) => return failed(reason.clone()),
            Piece::Waiting(_) => {}
        }
    }
    parts.push(&tail);
    parts.retain(|part| !part.text.is_empty());
    let text = parts.iter().map(|part| part.text.as_str()).collect::<Vec<_>>().join(" ");
    // The weakest part speaks for the whole.
    let confidence = parts.iter().filter_map(|part| part.confidence).reduce(f32::min);
    match kind {
        Take::Partial => SttEvent::Partial { utterance, take: Some(take), text },
        Take::Speculative | Take::Final => SttEvent::Final { utterance, take, text, confidence, engine_time },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_times_threads_never_exceed_the_cores() {
        let config = |workers, threads| WhisperConfig { workers, threads, ..WhisperConfig::default() };
        assert_eq!(config(0, 1).workers_for(4).expect("fits"), 4);
        assert_eq!(config(0, 3).workers_for(4).expect("fits"), 1);
        assert_eq!(config(2, 2).workers_for(4).expect("fits"), 2);
        let error = config(3, 2).workers_for(4).expect_err("six threads on four cores");
        assert!(error.to_string().contains("3 workers of 2 threads"), "{error}");
        assert!(config(0, 8).workers_for(4).is_err());
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let base = WhisperConfig::default();
        let long = WhisperConfig { max_clip_ms: 29_000, ..base.clone() };
        assert!(long.workers_for(2).expect_err("too long").to_string().contains("max_clip_ms"));
        let none = WhisperConfig { threads: 0, ..base };
        assert!(none.workers_for(2).expect_err("no threads").to_string().contains("threads"));
    }

    #[test]
    fn a_missing_model_is_named_with_its_cure() {
        let config =
            WhisperConfig { model: "base.en".into(), models_dir: "nowhere".into(), ..WhisperConfig::default() };
        let error = config.model_path().expect_err("there is no such folder").to_string();
        assert!(error.contains("nowhere/ggml-base.en.bin") && error.contains("offhook models pull base.en"), "{error}");
    }

    #[test]
    fn unknown_settings_are_refused() {
        assert!(toml::from_str::<WhisperConfig>("modle = \"x\"").is_err());
        let config: WhisperConfig = toml::from_str("threads = 2\n[guards]\nmax_words_per_s = 7.0").expect("good");
        assert_eq!((config.threads, config.guards.max_words_per_s), (2, 7.0));
    }
}
