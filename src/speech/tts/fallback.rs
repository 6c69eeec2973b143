//! A second synthesizer for when the first fails before its first sound. After that the caller has heard the
//! beginning, so a failure is passed on as it is.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::{SpeechChunk, SpeechRequest, SpeechStream, Synthesizer, TtsError};
use crate::speech::breaker::Breaker;

#[derive(Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct TtsFallbackConfig {
    /// Without a sound within this the second engine is asked. Default 2,000 ms.
    pub first_audio_limit_ms: u64,
    /// The second engine's voice, since it does not know the first one's names; empty = its default for the language.
    pub voice: String,
    /// Failures in a row after which the first engine is left alone for a while. Default 3; 0 = never.
    pub failures: u32,
    /// For how long. Default 30,000 ms; then one request tries it out.
    pub cool_down_ms: u64,
}

impl Default for TtsFallbackConfig {
    fn default() -> Self {
        Self { first_audio_limit_ms: 2000, voice: String::new(), failures: 3, cool_down_ms: 30_000 }
    }
}

/// Speaks with the first engine, or with the second. Clones share what is known of the first one's health.
#[derive(Clone)]
pub struct FallbackSynthesizer {
    both: Arc<Both>,
}

struct Both {
    first: Arc<dyn Synthesizer>,
    second: Arc<dyn Synthesizer>,
    config: TtsFallbackConfig,
    breaker: Mutex<Breaker>,
}

type Chunks = mpsc::Sender<Result<SpeechChunk, TtsError>>;

impl FallbackSynthesizer {
    pub fn new(first: Arc<dyn Synthesizer>, second: Arc<dyn Synthesizer>, config: TtsFallbackConfig) -> Self {
        let breaker = Mutex::new(Breaker::new(config.failures, Duration::from_millis(config.cool_down_ms)));
        Self { both: Arc::new(Both { first, second, config, breaker }) }
    }
}

impl Synthesizer for FallbackSynthesizer {
    fn name(&self) -> &'static str {
        self.both.first.name()
    }

    fn speak(&self, request: SpeechRequest) -> SpeechStream {
        let (stream, tx, cancel) = SpeechStream::new();
        let both = self.both.clone();
        tokio::spawn(async move { cancel.run_until_cancelled(both.speak(request, tx)).await });
        stream
    }

    fn prepare(&self, request: &SpeechRequest) {
        self.both.first.prepare(request);
        self.both.second.prepare(&self.both.for_second(request));
    }
}

impl Both {
    async fn speak(&self, request: SpeechRequest, tx: Chunks) {
        if self.with_breaker(|breaker, now| breaker.allows(now)) {
            let limit = Duration::from_millis(self.config.first_audio_limit_ms);
            let mut stream = self.first.speak(request.clone());
            let error = match timeout(limit, stream.next()).await {
                Ok(Some(Ok(chunk))) => {
                    self.with_breaker(|breaker, _| breaker.on_success());
                    if tx.send(Ok(chunk)).await.is_ok() {
                        pass(stream, tx).await;
                    }
                    return;
                }
                // Nothing to say is no failure.
                Ok(None) => return self.with_breaker(|breaker, _| breaker.on_success()),
                Ok(Some(Err(error))) => error,
                Err(_) => TtsError::Timeout { engine: self.first.name(), limit },
            };
            let resting = self.with_breaker(|breaker, now| breaker.on_failure(now));
            warn!(%error, resting, to = self.second.name(), "speech falls back");
        }
        metrics::counter!("offhook_fallback_total", "kind" => "tts", "from" => self.first.name(), "to" => self.second.name())
            .increment(1);
        pass(self.second.speak(self.for_second(&request)), tx).await;
    }

    fn for_second(&self, request: &SpeechRequest) -> SpeechRequest {
        SpeechRequest { voice: self.config.voice.clone(), ..request.clone() }
    }

    fn with_breaker<T>(&self, act: impl FnOnce(&mut Breaker, std::time::Instant) -> T) -> T {
        act(&mut self.breaker.lock().unwrap_or_else(|poisoned| poisoned.into_inner()), Instant::now().into_std())
    }
}

async fn pass(mut stream: SpeechStream, tx: Chunks) {
    while let Some(chunk) = stream.next().await {
        if tx.send(chunk).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::frame::SampleRate;

    /// What an engine does with every request.
    #[derive(Clone, Copy)]
    enum Does {
        Speak,
        Fail,
        BreakOff,
        Hang,
        SayNothing,
    }

    struct Engine {
        does: Mutex<Does>,
        asked: Mutex<Vec<String>>,
        sample: i16,
    }

    fn engine(sample: i16, does: Does) -> Arc<Engine> {
        Arc::new(Engine { does: Mutex::new(does), asked: Mutex::default(), sample })
    }

    impl Engine {
        fn asked(&self) -> usize {
            self.asked.lock().expect("no panic").len()
        }
    }

    impl Synthesizer for Engine {
        fn name(&self) -> &'static str {
            "scripted"
        }

        fn speak(&self, request: SpeechRequest) -> SpeechStream {
            self.asked.lock().expect("no panic").push(request.voice);
            let (stream, tx, cancel) = SpeechStream::new();
            let chunk = Ok(SpeechChunk { rate: SampleRate::HZ_8000, samples: vec![self.sample] });
            let error = Err(TtsError::Engine { engine: "scripted", status: None, detail: "broken".into() });
            let script = match *self.does.lock().expect("no panic") {
                Does::Speak => vec![chunk.clone(), chunk],
                Does::Fail => vec![error],
                Does::BreakOff => vec![chunk, error],
                Does::SayNothing => vec![],
                Does::Hang => {
                    tokio::spawn(async move {
                        cancel.cancelled().await;
                        drop(tx);
                    });
                    return stream;
                }
            };
            for step in script {
                tx.try_send(step).expect("room for two");
            }
            stream
        }
    }

    fn request() -> SpeechRequest {
        SpeechRequest { text: "hi".into(), language: "en".into(), voice: "coral".into(), speed: 1.0 }
    }

    /// The first sample of each chunk; -1 for an error.
    async fn hear(engine: &FallbackSynthesizer) -> Vec<i16> {
        let mut stream = engine.speak(request());
        let mut heard = Vec::new();
        while let Some(chunk) = stream.next().await {
            heard.push(chunk.map_or(-1, |chunk| chunk.samples[0]));
        }
        heard
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_speaks_when_the_first_fails_before_its_first_sound() {
        for (first, second, expected) in [
            (Does::Speak, Does::Speak, vec![1, 1]),
            (Does::Fail, Does::Speak, vec![2, 2]),
            (Does::Hang, Does::Speak, vec![2, 2]),
            (Does::BreakOff, Does::Speak, vec![1, -1]),
            (Does::SayNothing, Does::Speak, vec![]),
            (Does::Fail, Does::Fail, vec![-1]),
        ] {
            let both = FallbackSynthesizer::new(engine(1, first), engine(2, second), TtsFallbackConfig::default());
            assert_eq!(hear(&both).await, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_voice_of_the_first_is_not_asked_of_the_second() {
        let (first, second) = (engine(1, Does::Fail), engine(2, Does::Speak));
        let config = TtsFallbackConfig { voice: "uk".into(), ..TtsFallbackConfig::default() };
        hear(&FallbackSynthesizer::new(first.clone(), second.clone(), config)).await;
        assert_eq!(*first.asked.lock().expect("no panic"), ["coral"]);
        assert_eq!(*second.asked.lock().expect("no panic"), ["uk"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_keeps_failing_is_left_alone_for_the_cool_down() {
        let (first, second) = (engine(1, Does::Fail), engine(2, Does::Speak));
        let config = TtsFallbackConfig { failures: 2, cool_down_ms: 1000, ..TtsFallbackConfig::default() };
        let both = FallbackSynthesizer::new(first.clone(), second.clone(), config);
        for _ in 0..5 {
            assert_eq!(hear(&both).await, [2, 2]);
        }
        assert_eq!((first.asked(), second.asked()), (2, 5));
        *first.does.lock().expect("no panic") = Does::Speak;
        tokio::time::advance(Duration::from_millis(1000)).await;
        assert_eq!(hear(&both).await, [1, 1]);
        assert_eq!(hear(&both).await, [1, 1]);
    }
}
