//! Two engines behind one trait: when the first does not give a final text, the second is asked for the same utterance.
//! After failures in a row the first is left alone for a while. Speculative and partial takes are not asked twice: their
//! failure costs nothing but time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::utterance::OpenUtterance;
use super::{AudioChunk, SttError, SttEvent, SttInput, SttRequest, SttSession, Take, Transcriber, UtteranceId};
use crate::media::frame::SampleRate;
use crate::media::resample::{ResampleError, Resampler};

/// Handing a whole utterance to the second engine's queue takes milliseconds; more means that it is dead.
const HAND_OVER: Duration = Duration::from_secs(1);

/// `[speech.stt.fallback]`.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct FallbackConfig {
    /// How long the first engine has for a final text, ms. Default 1500; the caller waits this long before the second is
    /// asked.
    pub final_limit_ms: u64,
    /// Failures in a row after which the first engine is left alone. Default 3.
    pub failures: u32,
    /// How long, ms. Default 30000; then one utterance tries it.
    pub cool_down_ms: u64,
    /// Audio kept for the second engine, ms. Default 60000; costs 32 KB a second at 16 kHz while an utterance is open.
    pub max_utterance_ms: u64,
}

impl Default for FallbackConfig {
    fn default() -> Self {
        Self { final_limit_ms: 1500, failures: 3, cool_down_ms: 30_000, max_utterance_ms: 60_000 }
    }
}

/// The pair. It carries the first engine's name.
pub struct Fallback {
    first: Arc<dyn Transcriber>,
    second: Arc<dyn Transcriber>,
    config: FallbackConfig,
    health: Arc<Health>,
}

impl Fallback {
    /// Where the second takes another sample rate, it gets the audio resampled. Fails where no resampler does these two.
    pub fn new(
        first: Arc<dyn Transcriber>,
        second: Arc<dyn Transcriber>,
        config: &FallbackConfig,
    ) -> Result<Self, ResampleError> {
        Resampler::new(first.rate(), second.rate())?;
        Ok(Self { first, second, config: config.clone(), health: Arc::default() })
    }
}

impl Transcriber for Fallback {
    fn name(&self) -> &'static str {
        self.first.name()
    }

    fn rate(&self) -> SampleRate {
        self.first.rate()
    }

    fn open(&self, request: SttRequest) -> SttSession {
        let (session, input, events, cancel) = SttSession::new();
        let call = Call {
            first: self.first.open(request.clone()),
            first_name: self.first.name(),
            rate: self.first.rate(),
            resampler: Resampler::new(self.first.rate(), self.second.rate()).expect("tried when the pair was made"),
            second: None,
            make_second: Arc::clone(&self.second),
            request,
            config: self.config.clone(),
            health: Arc::clone(&self.health),
            utterance: None,
        };
        tokio::spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = call.run(input, events) => {}
            }
        });
        session
    }
}

/// Samples at the second engine's rate, in pieces that an engine takes.
fn resampled(resampler: &mut Resampler, samples: &[i16]) -> Vec<AudioChunk> {
    let mut converted = Vec::new();
    resampler.push(samples, &mut converted);
    converted.chunks(AudioChunk::MAX).filter_map(AudioChunk::new).collect()
}

/// How the first engine has been doing, over all calls.
#[derive(Default)]
struct Health(Mutex<State>);

#[derive(Default)]
struct State {
    failures: u32,
    rests_until: Option<Instant>,
}

impl Health {
    fn rests(&self, now: Instant) -> bool {
        self.lock().rests_until.is_some_and(|until| now < until)
    }

    fn succeeded(&self) {
        *self.lock() = State::default();
    }

    fn failed(&self, now: Instant, config: &FallbackConfig) {
        let mut state = self.lock();
        state.failures = state.failures.saturating_add(1);
        if state.failures >= config.failures {
            // Failures stay counted: after the rest, one more is enough.
            state.rests_until = Some(now + Duration::from_millis(config.cool_down_ms));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call's session.
struct Call {
    first: SttSession,
    first_name: &'static str,
    rate: SampleRate,
    /// From `rate` to the second engine's. It holds back a few milliseconds, which lie in the silence after the words.
    resampler: Resampler,
    second: Option<SttSession>,
    make_second: Arc<dyn Transcriber>,
    request: SttRequest,
    config: FallbackConfig,
    health: Arc<Health>,
    utterance: Option<Utterance>,
}

struct Utterance {
    audio: OpenUtterance,
    side: Side,
    /// A final that the first engine owes, and until when.
    owed: Option<(u32, Instant)>,
}

/// Who transcribes the open utterance.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    First,
    Second,
}

impl Call {
    async fn run(mut self, mut input: mpsc::Receiver<SttInput>, events: mpsc::Sender<SttEvent>) {
        loop {
            let deadline = self.utterance.as_ref().and_then(|utterance| utterance.owed).map(|(_, until)| until);
            let event = tokio::select! {
                biased;
                message = input.recv() => match message {
                    Some(message) => self.on_input(message).await,
                    None => return,
                },
                event = self.first.events.recv(), if !self.first.events.is_closed() => self.on_first(event).await,
                event = Self::next_of_second(&mut self.second) => self.on_second(event),
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    self.rescue("no text in time").await
                }
            };
            if let Some(event) = event
                && events.send(event).await.is_err()
            {
                return;
            }
        }
    }

    async fn next_of_second(second: &mut Option<SttSession>) -> Option<SttEvent> {
        match second {
            Some(second) => second.events.recv().await,
            None => std::future::pending().await,
        }
    }

    async fn on_input(&mut self, message: SttInput) -> Option<SttEvent> {
        let now = Instant::now();
        match &message {
            SttInput::Begin { utterance } => {
                let side = if self.health.rests(now) { Side::Second } else { Side::First };
                let limit = Duration::from_millis(self.config.max_utterance_ms);
                let audio = OpenUtterance::new(*utterance, self.rate, limit);
                self.resampler.reset();
                self.utterance = Some(Utterance { audio, side, owed: None });
            }
            SttInput::Audio(chunk) => {
                if let Some(utterance) = &mut self.utterance {
                    utterance.audio.push(chunk.samples());
                }
            }
            SttInput::Transcribe { utterance, take, kind } => {
                let open = self.utterance.as_mut().filter(|open| open.audio.id == *utterance);
                if let Some(open) = open.filter(|open| open.side == Side::First) {
                    let limit = Duration::from_millis(self.config.final_limit_ms);
                    open.owed = (*kind == Take::Final).then(|| (*take, now + limit));
                }
            }
            SttInput::Cancel { utterance, take } => {
                let open = self.utterance.as_mut().filter(|open| open.audio.id == *utterance);
                if let Some(open) = open {
                    open.owed.take_if(|(owed, _)| *owed <= *take);
                }
            }
            SttInput::End { .. } => {}
        }
        let side = self.utterance.as_ref()?.side;
        if let SttInput::End { utterance } = &message {
            self.utterance.take_if(|open| open.audio.id == *utterance);
        }
        self.forward(side, message).await
    }

    /// Passes a message on. An engine that does not read its queue, or has ended, has failed.
    async fn forward(&mut self, side: Side, message: SttInput) -> Option<SttEvent> {
        let asked = match &message {
            SttInput::Transcribe { utterance, take, kind } => Some((*utterance, *take, *kind)),
            _ => None,
        };
        let taken = match (side, message) {
            (Side::First, message) => self.first.input.try_send(message).is_ok(),
            (Side::Second, SttInput::Audio(chunk)) => {
                let chunks = resampled(&mut self.resampler, chunk.samples());
                let second = self.second();
                chunks.into_iter().all(|chunk| second.input.try_send(SttInput::Audio(chunk)).is_ok())
            }
            (Side::Second, message) => self.second().input.try_send(message).is_ok(),
        };
        if taken {
            return None;
        }
        match (side, asked) {
            (Side::First, Some((_, _, Take::Final))) => self.rescue("it does not take audio").await,
            (_, Some((utterance, take, _))) => {
                let detail = "the engine does not take audio".into();
                let error = SttError::Engine { engine: self.name_of(side), status: None, detail };
                Some(SttEvent::Failed { utterance, take, error })
            }
            // Lost audio shows at the next take; the copy here is whole.
            (_, None) => None,
        }
    }

    fn name_of(&self, side: Side) -> &'static str {
        match side {
            Side::First => self.first_name,
            Side::Second => self.make_second.name(),
        }
    }

    fn second(&mut self) -> &SttSession {
        self.second.get_or_insert_with(|| self.make_second.open(self.request.clone()))
    }

    async fn on_first(&mut self, event: Option<SttEvent>) -> Option<SttEvent> {
        let Some(event) = event else { return self.rescue("the engine ended").await };
        let open = self.utterance.as_mut().filter(|open| open.side == Side::First)?;
        let owed = open.owed.map(|(take, _)| take);
        match &event {
            SttEvent::Final { take, .. } => {
                open.owed.take_if(|(owed, _)| owed == take);
                self.health.succeeded();
            }
            SttEvent::Failed { take, error, .. } if owed == Some(*take) => {
                let reason = error.to_string();
                return self.rescue(&reason).await;
            }
            SttEvent::Skipped { take, .. } if owed == Some(*take) => return self.rescue("too busy").await,
            SttEvent::Failed { .. } => self.health.failed(Instant::now(), &self.config),
            SttEvent::Skipped { .. } | SttEvent::Partial { .. } => {}
        }
        Some(event)
    }

    fn on_second(&mut self, event: Option<SttEvent>) -> Option<SttEvent> {
        if event.is_none() {
            // It ended; the next use opens another.
            self.second = None;
        }
        event.filter(|_| self.utterance.as_ref().is_some_and(|open| open.side == Side::Second))
    }

    /// The first engine has failed: the second gets the utterance from its start, and the final that is owed, if one is.
    async fn rescue(&mut self, reason: &str) -> Option<SttEvent> {
        self.health.failed(Instant::now(), &self.config);
        let open = self.utterance.as_mut().filter(|open| open.side == Side::First)?;
        open.side = Side::Second;
        let (utterance, owed) = (open.audio.id, open.owed.take().map(|(take, _)| take));
        let (first, second) = (self.first_name, self.make_second.name());
        metrics::counter!("offhook_stt_fallback_total", "engine" => first).increment(1);
        tracing::warn!(first, second, reason, "speech recognition falls back");
        // What the first still does is of no use; a queue that is full is not emptied by waiting.
        let _ = self.first.input.try_send(SttInput::End { utterance });
        self.second();
        let open = self.utterance.as_ref()?;
        let session = self.second.as_ref()?;
        let work = hand_over(session, &open.audio, &mut self.resampler, owed);
        let handed = tokio::time::timeout(HAND_OVER, work).await;
        let error = match handed {
            Ok(Ok(())) => return None,
            Ok(Err(error)) => error,
            Err(_) => SttError::Timeout { engine: second, limit: HAND_OVER },
        };
        owed.map(|take| SttEvent::Failed { utterance, take, error })
    }
}

async fn hand_over(
    session: &SttSession,
    audio: &OpenUtterance,
    resampler: &mut Resampler,
    owed: Option<u32>,
) -> Result<(), SttError> {
    let engine = "fallback";
    let samples = audio.whole().map_err(|seconds| SttError::TooLong { engine, seconds })?;
    let utterance: UtteranceId = audio.id;
    let begin = std::iter::once(SttInput::Begin { utterance });
    resampler.reset();
    let chunks = resampled(resampler, samples).into_iter().map(SttInput::Audio);
    let take = owed.map(|take| SttInput::Transcribe { utterance, take, kind: Take::Final });
    for message in begin.chain(chunks).chain(take) {
        let closed = |_| SttError::Engine { engine, status: None, detail: "the second engine has ended".into() };
        session.input.send(message).await.map_err(closed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Answers each final with how much audio it heard, fails, or says nothing.
    struct Fake {
        name: &'static str,
        rate: SampleRate,
        mode: Arc<Mutex<Mode>>,
        asked: Arc<AtomicUsize>,
    }

    #[derive(Clone, Copy)]
    enum Mode {
        Answer,
        Fail,
        Silent,
    }

    impl Fake {
        fn new(name: &'static str, mode: Mode) -> Arc<Self> {
            let mode = Arc::new(Mutex::new(mode));
            Arc::new(Self { name, rate: SampleRate::HZ_16000, mode, asked: Arc::default() })
        }

        fn set(&self, mode: Mode) {
            *self.mode.lock().expect("no panic under this lock") = mode;
        }
    }

    impl Transcriber for Fake {
        fn name(&self) -> &'static str {
            self.name
        }

        fn rate(&self) -> SampleRate {
            self.rate
        }

        fn open(&self, _: SttRequest) -> SttSession {
            let (session, mut input, events, cancel) = SttSession::new();
            let (name, mode, asked) = (self.name, Arc::clone(&self.mode), Arc::clone(&self.asked));
            tokio::spawn(cancel.run_until_cancelled_owned(async move {
                let mut heard = 0;
                while let Some(message) = input.recv().await {
                    match message {
                        SttInput::Begin { .. } => heard = 0,
                        SttInput::Audio(chunk) => heard += chunk.samples().len(),
                        SttInput::Transcribe { utterance, take, .. } => {
                            asked.fetch_add(1, Ordering::Relaxed);
                            let mode = *mode.lock().expect("no panic under this lock");
                            let event = match mode {
                                Mode::Silent => continue,
                                Mode::Answer => SttEvent::Final {
                                    utterance,
                                    take,
                                    text: format!("{name} heard {heard}"),
                                    confidence: None,
                                    engine_time: Duration::ZERO,
                                },
                                Mode::Fail => {
                                    let error =
                                        SttError::Engine { engine: name, status: None, detail: "told to".into() };
                                    SttEvent::Failed { utterance, take, error }
                                }
                            };
                            let _ = events.send(event).await;
                        }
                        SttInput::Cancel { .. } | SttInput::End { .. } => {}
                    }
                }
            }));
            session
        }
    }

    async fn say(session: &SttSession, id: u32, kind: Take) {
        let utterance = UtteranceId(id);
        let send = |message| session.input.send(message);
        send(SttInput::Begin { utterance }).await.expect("the session reads");
        for _ in 0..10 {
            let chunk = AudioChunk::new(&[7; 320]).expect("20 ms fit");
            send(SttInput::Audio(chunk)).await.expect("the session reads");
        }
        send(SttInput::Transcribe { utterance, take: id, kind }).await.expect("the session reads");
    }

    async fn answer(session: &mut SttSession) -> Result<String, SttError> {
        match session.events.recv().await.expect("an answer") {
            SttEvent::Final { text, .. } => Ok(text),
            SttEvent::Failed { error, .. } => Err(error),
            other => panic!("{other:?}"),
        }
    }

    fn pair(first: &Arc<Fake>, second: &Arc<Fake>) -> Fallback {
        let (first, second): (Arc<dyn Transcriber>, Arc<dyn Transcriber>) = (first.clone(), second.clone());
        Fallback::new(first, second, &FallbackConfig::default()).expect("rates that a resampler does")
    }

    #[tokio::test(start_paused = true)]
    async fn a_healthy_first_engine_answers_alone() {
        let (first, second) = (Fake::new("first", Mode::Answer), Fake::new("second", Mode::Answer));
        let mut session = pair(&first, &second).open(SttRequest::default());
        say(&session, 1, Take::Final).await;
        assert_eq!(answer(&mut session).await.expect("text"), "first heard 3200");
        assert_eq!(second.asked.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_final_is_asked_of_the_second_with_all_audio() {
        let (first, second) = (Fake::new("first", Mode::Fail), Fake::new("second", Mode::Answer));
        let mut session = pair(&first, &second).open(SttRequest::default());
        say(&session, 1, Take::Final).await;
        assert_eq!(answer(&mut session).await.expect("text"), "second heard 3200");
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_engine_that_says_nothing_is_given_up_after_the_limit() {
        let (first, second) = (Fake::new("first", Mode::Silent), Fake::new("second", Mode::Answer));
        let mut session = pair(&first, &second).open(SttRequest::default());
        let asked = Instant::now();
        say(&session, 1, Take::Final).await;
        assert_eq!(answer(&mut session).await.expect("text"), "second heard 3200");
        assert_eq!(asked.elapsed().as_millis() / 10, 150);
    }

    #[tokio::test(start_paused = true)]
    async fn when_both_fail_the_error_is_told() {
        let (first, second) = (Fake::new("first", Mode::Fail), Fake::new("second", Mode::Fail));
        let mut session = pair(&first, &second).open(SttRequest::default());
        say(&session, 1, Take::Final).await;
        assert!(matches!(answer(&mut session).await, Err(SttError::Engine { engine: "second", .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_speculation_is_not_asked_twice() {
        let (first, second) = (Fake::new("first", Mode::Fail), Fake::new("second", Mode::Answer));
        let mut session = pair(&first, &second).open(SttRequest::default());
        say(&session, 1, Take::Speculative).await;
        assert!(matches!(answer(&mut session).await, Err(SttError::Engine { engine: "first", .. })));
        assert_eq!(second.asked.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn after_three_failures_the_first_rests_and_is_tried_again_later() {
        let (first, second) = (Fake::new("first", Mode::Fail), Fake::new("second", Mode::Answer));
        let engine = pair(&first, &second);
        let mut session = engine.open(SttRequest::default());
        for id in 1..=3 {
            say(&session, id, Take::Final).await;
            answer(&mut session).await.expect("text of the second");
        }
        assert_eq!(first.asked.load(Ordering::Relaxed), 3);
        // Another call of the same pair knows as well.
        let mut other = engine.open(SttRequest::default());
        say(&other, 1, Take::Final).await;
        answer(&mut other).await.expect("text of the second");
        assert_eq!(first.asked.load(Ordering::Relaxed), 3, "it rests");
        tokio::time::advance(Duration::from_secs(31)).await;
        first.set(Mode::Answer);
        say(&session, 5, Take::Final).await;
        assert_eq!(answer(&mut session).await.expect("text"), "first heard 3200");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_final_is_not_rescued() {
        let (first, second) = (Fake::new("first", Mode::Silent), Fake::new("second", Mode::Answer));
        let mut session = pair(&first, &second).open(SttRequest::default());
        say(&session, 1, Take::Final).await;
        let cancel = SttInput::Cancel { utterance: UtteranceId(1), take: 1 };
        session.input.send(cancel).await.expect("the session reads");
        let nothing = tokio::time::timeout(Duration::from_secs(10), session.events.recv()).await;
        assert!(nothing.is_err());
        assert_eq!(second.asked.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_engine_of_another_rate_hears_the_same_resampled() {
        let first = Fake::new("first", Mode::Fail);
        let second = Arc::new(Fake {
            name: "second",
            rate: SampleRate::HZ_8000,
            mode: Arc::new(Mutex::new(Mode::Answer)),
            asked: Arc::default(),
        });
        let mut session = pair(&first, &second).open(SttRequest::default());
        // Handed over as a whole thrice; then the first rests and the second gets the audio as it comes.
        for id in 1..=4 {
            say(&session, id, Take::Final).await;
            let text = answer(&mut session).await.expect("text of the second");
            let heard: usize = text.trim_start_matches("second heard ").parse().expect("a count");
            assert!((1520..=1600).contains(&heard), "200 ms less at most 10 ms in the filter, turn {id}: {heard}");
        }
        assert_eq!(first.asked.load(Ordering::Relaxed), 3);
    }
}
