//! A second language model for when the first fails before its first event. After that the caller may have heard the
//! beginning of its answer, so a failure is passed on as it is.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::{ChatRequest, LanguageModel, LlmError, LlmEvent, ReplyStream};
use crate::speech::breaker::Breaker;

#[derive(Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct LlmFallbackConfig {
    /// Without an event within this the second model is asked. Default 2,500 ms.
    pub first_event_ms: u64,
    /// Failures in a row after which the first model is left alone for a while. Default 3; 0 = never.
    pub failures: u32,
    /// For how long. Default 30,000 ms; then one request tries it out.
    pub cool_down_ms: u64,
}

impl Default for LlmFallbackConfig {
    fn default() -> Self {
        Self { first_event_ms: 2500, failures: 3, cool_down_ms: 30_000 }
    }
}

/// Answers with the first model, or with the second. Clones share what is known of the first one's health.
#[derive(Clone)]
pub struct FallbackModel {
    both: Arc<Both>,
}

struct Both {
    first: Arc<dyn LanguageModel>,
    second: Arc<dyn LanguageModel>,
    config: LlmFallbackConfig,
    breaker: Mutex<Breaker>,
}

type Events = mpsc::Sender<Result<LlmEvent, LlmError>>;

impl FallbackModel {
    pub fn new(first: Arc<dyn LanguageModel>, second: Arc<dyn LanguageModel>, config: LlmFallbackConfig) -> Self {
        let breaker = Mutex::new(Breaker::new(config.failures, Duration::from_millis(config.cool_down_ms)));
        Self { both: Arc::new(Both { first, second, config, breaker }) }
    }
}

impl LanguageModel for FallbackModel {
    fn name(&self) -> &'static str {
        self.both.first.name()
    }

    fn reply(&self, request: ChatRequest) -> ReplyStream {
        let (stream, tx, cancel) = ReplyStream::new();
        let both = self.both.clone();
        tokio::spawn(async move { cancel.run_until_cancelled(both.reply(request, tx)).await });
        stream
    }

    fn prepare(&self) {
        self.both.first.prepare();
        self.both.second.prepare();
    }
}

impl Both {
    async fn reply(&self, request: ChatRequest, tx: Events) {
        if self.with_breaker(|breaker, now| breaker.allows(now)) {
            let limit = Duration::from_millis(self.config.first_event_ms);
            let mut stream = self.first.reply(request.clone());
            let error = match timeout(limit, stream.next()).await {
                Ok(Some(Ok(event))) => {
                    self.with_breaker(|breaker, _| breaker.on_success());
                    if tx.send(Ok(event)).await.is_ok() {
                        pass(stream, tx).await;
                    }
                    return;
                }
                Ok(Some(Err(error))) => error,
                // A stream without so much as `Done`: the task behind it died.
                Ok(None) => {
                    LlmError::Engine { engine: self.first.name(), status: None, detail: "no answer at all".into() }
                }
                Err(_) => LlmError::Timeout { engine: self.first.name(), what: "first token", limit },
            };
            let resting = self.with_breaker(|breaker, now| breaker.on_failure(now));
            warn!(%error, resting, to = self.second.name(), "the answer falls back");
        }
        metrics::counter!("offhook_fallback_total", "kind" => "llm", "from" => self.first.name(), "to" => self.second.name())
            .increment(1);
        // A model's name belongs to the first engine; the second has its own.
        pass(self.second.reply(ChatRequest { model: None, ..request }), tx).await;
    }

    fn with_breaker<T>(&self, act: impl FnOnce(&mut Breaker, std::time::Instant) -> T) -> T {
        act(&mut self.breaker.lock().unwrap_or_else(|poisoned| poisoned.into_inner()), Instant::now().into_std())
    }
}

async fn pass(mut stream: ReplyStream, tx: Events) {
    while let Some(event) = stream.next().await {
        if tx.send(event).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speech::llm::Finish;

    /// Says its name and ends as told: `None` hangs.
    struct Engine {
        script: Mutex<Option<Vec<Result<LlmEvent, LlmError>>>>,
        asked: Mutex<Vec<Option<String>>>,
    }

    fn engine(script: Option<Vec<Result<LlmEvent, LlmError>>>) -> Arc<Engine> {
        Arc::new(Engine { script: Mutex::new(script), asked: Mutex::default() })
    }

    impl LanguageModel for Engine {
        fn name(&self) -> &'static str {
            "scripted"
        }

        fn reply(&self, request: ChatRequest) -> ReplyStream {
            self.asked.lock().expect("no panic").push(request.model);
            let (stream, tx, cancel) = ReplyStream::new();
            match self.script.lock().expect("no panic").clone() {
                Some(script) => script.into_iter().for_each(|step| tx.try_send(step).expect("a short script")),
                None => drop(tokio::spawn(async move {
                    cancel.cancelled().await;
                    drop(tx);
                })),
            }
            stream
        }
    }

    fn text(text: &str) -> Result<LlmEvent, LlmError> {
        Ok(LlmEvent::Text(text.into()))
    }

    fn error() -> Result<LlmEvent, LlmError> {
        Err(LlmError::Engine { engine: "scripted", status: Some(500), detail: "broken".into() })
    }

    fn done() -> Result<LlmEvent, LlmError> {
        Ok(LlmEvent::Done { finish: Finish::Stop })
    }

    /// Text as it is, `.` for the end, `!` for an error.
    async fn read(model: &FallbackModel) -> String {
        let mut stream = model.reply(ChatRequest { model: Some("big".into()), ..ChatRequest::default() });
        let mut all = String::new();
        while let Some(event) = stream.next().await {
            match event {
                Ok(LlmEvent::Text(text)) => all.push_str(&text),
                Ok(_) => all.push('.'),
                Err(_) => all.push('!'),
            }
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_answers_when_the_first_fails_before_its_first_event() {
        for (first, expected) in [
            (Some(vec![text("one"), done()]), "one."),
            (Some(vec![error()]), "two."),
            (None, "two."),
            (Some(vec![]), "two."),
            (Some(vec![text("one"), error()]), "one!"),
            (Some(vec![done()]), "."),
        ] {
            let second = engine(Some(vec![text("two"), done()]));
            let both = FallbackModel::new(engine(first), second, LlmFallbackConfig::default());
            assert_eq!(read(&both).await, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_that_keeps_failing_is_left_alone_and_its_name_is_not_asked_of_the_second() {
        let (first, second) = (engine(Some(vec![error()])), engine(Some(vec![text("two"), done()])));
        let config = LlmFallbackConfig { failures: 2, cool_down_ms: 1000, ..LlmFallbackConfig::default() };
        let both = FallbackModel::new(first.clone(), second.clone(), config);
        for _ in 0..4 {
            assert_eq!(read(&both).await, "two.");
        }
        assert_eq!(*first.asked.lock().expect("no panic"), [Some("big".to_owned()), Some("big".to_owned())]);
        assert_eq!(*second.asked.lock().expect("no panic"), vec![None; 4]);
        *first.script.lock().expect("no panic") = Some(vec![text("one"), done()]);
        tokio::time::advance(Duration::from_millis(1000)).await;
        assert_eq!(read(&both).await, "one.");
    }
}
