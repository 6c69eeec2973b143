//! Phrases that are said in every call (a greeting, "one moment please") are synthesised once and kept as samples.
//! Only phrases that were marked are kept: what a model says is said once. While the first synthesis runs, everybody
//! who wants the phrase listens to it as it grows, so that there is one request and nobody waits for its end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tracing::debug;

use super::{SpeechChunk, SpeechRequest, SpeechStream, Synthesizer, TtsError};

#[derive(Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Phrases kept; the least recently said go first. Default 256. 0 keeps none.
    pub phrases: usize,
    /// Samples kept, in bytes (48,000 a second at 24 kHz). Default 32 MB, about eleven minutes of speech.
    pub bytes: usize,
    /// A longer phrase is not kept, in bytes. Default 4 MB, 87 s at 24 kHz.
    pub phrase_bytes: usize,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { phrases: 256, bytes: 32 << 20, phrase_bytes: 4 << 20 }
    }
}

/// Any synthesizer with a memory for marked phrases. Clones share the memory.
#[derive(Clone)]
pub struct CachedSynthesizer {
    inner: Arc<dyn Synthesizer>,
    shelf: Arc<Shelf>,
}

/// Everything that changes how a phrase sounds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    text: String,
    language: String,
    voice: String,
    /// In hundredths: finer differences cannot be heard.
    speed: i32,
}

impl From<&SpeechRequest> for Key {
    fn from(request: &SpeechRequest) -> Self {
        let SpeechRequest { text, language, voice, speed } = request;
        let speed = (speed * 100.0).round() as i32;
        Self { text: text.clone(), language: language.clone(), voice: voice.clone(), speed }
    }
}

struct Shelf {
    config: CacheConfig,
    phrases: Mutex<Phrases>,
}

#[derive(Default)]
struct Phrases {
    kept: HashMap<Key, Phrase>,
    uses: u64,
}

struct Phrase {
    used: u64,
    /// `None` = marked, not said yet.
    take: Option<Arc<Take>>,
}

/// One synthesis of a phrase, whole or still growing.
struct Take {
    chunks: Mutex<Chunks>,
    progress: watch::Sender<Progress>,
}

#[derive(Default)]
struct Chunks {
    list: Vec<SpeechChunk>,
    bytes: usize,
}

#[derive(Clone, Debug)]
enum Progress {
    /// Sent again with each chunk.
    Growing,
    Whole,
    Failed(TtsError),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl CachedSynthesizer {
    pub fn new(inner: Arc<dyn Synthesizer>, config: CacheConfig) -> Self {
        Self { inner, shelf: Arc::new(Shelf { config, phrases: Mutex::default() }) }
    }

    /// Marks a phrase: the next `speak` of it is kept for those after it.
    pub fn remember(&self, request: &SpeechRequest) {
        let mut phrases = lock(&self.shelf.phrases);
        phrases.touch(Key::from(request));
        phrases.shrink(&self.shelf.config);
    }

    /// Marks a phrase and synthesises it, if it is not there; returns when it is whole.
    pub async fn warm(&self, request: SpeechRequest) -> Result<(), TtsError> {
        self.remember(&request);
        let Some(take) = self.take(&request) else { return Ok(()) };
        let mut progress = take.progress.subscribe();
        loop {
            match &*progress.borrow_and_update() {
                Progress::Growing => {}
                Progress::Whole => return Ok(()),
                Progress::Failed(error) => return Err(error.clone()),
            }
            // The sender is in `take`, which is held here.
            if progress.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    /// Whether a phrase can be said without asking the engine.
    pub fn holds(&self, request: &SpeechRequest) -> bool {
        let phrases = lock(&self.shelf.phrases);
        let take = phrases.kept.get(&Key::from(request)).and_then(|phrase| phrase.take.as_ref());
        take.is_some_and(|take| matches!(*take.progress.borrow(), Progress::Whole))
    }

    /// The synthesis of a marked phrase, begun here if nobody has; `None` for phrases that are not marked.
    fn take(&self, request: &SpeechRequest) -> Option<Arc<Take>> {
        let key = Key::from(request);
        let mut phrases = lock(&self.shelf.phrases);
        if !phrases.kept.contains_key(&key) {
            return None;
        }
        let phrase = phrases.touch(key.clone());
        if let Some(take) = &phrase.take {
            return Some(take.clone());
        }
        let take = Arc::new(Take { chunks: Mutex::default(), progress: watch::Sender::new(Progress::Growing) });
        phrase.take = Some(take.clone());
        drop(phrases);
        // Runs to its end though its first listener leaves, since the phrase is wanted again; the engine's own time
        // limits see to it that there is an end.
        tokio::spawn(record(self.inner.speak(request.clone()), key, take.clone(), self.shelf.clone()));
        Some(take)
    }
}

impl Synthesizer for CachedSynthesizer {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn speak(&self, request: SpeechRequest) -> SpeechStream {
        let Some(take) = self.take(&request) else { return self.inner.speak(request) };
        let (stream, tx, cancel) = SpeechStream::new();
        // What is there goes into the stream before it is returned: the first audio of a kept phrase takes no time.
        let mut said = 0;
        for chunk in &lock(&take.chunks).list {
            if tx.try_send(Ok(chunk.clone())).is_err() {
                break;
            }
            said += 1;
        }
        tokio::spawn(async move { cancel.run_until_cancelled(replay(&take, said, tx)).await });
        stream
    }

    fn prepare(&self, request: &SpeechRequest) {
        self.inner.prepare(request);
    }
}

/// Collects a synthesis. Whatever ends it, a failed or too long phrase is forgotten, so that the next try is a fresh one.
async fn record(mut stream: SpeechStream, key: Key, take: Arc<Take>, shelf: Arc<Shelf>) {
    let mut too_long = false;
    let outcome = loop {
        match stream.next().await {
            Some(Ok(chunk)) => {
                let mut chunks = lock(&take.chunks);
                chunks.bytes += chunk.samples.len() * size_of::<i16>();
                too_long |= chunks.bytes > shelf.config.phrase_bytes;
                chunks.list.push(chunk);
                take.progress.send_replace(Progress::Growing);
            }
            Some(Err(error)) => break Progress::Failed(error),
            None => break Progress::Whole,
        }
    };
    let forget = too_long || !matches!(outcome, Progress::Whole);
    take.progress.send_replace(outcome);
    let mut phrases = lock(&shelf.phrases);
    if forget {
        debug!(text_chars = key.text.len(), too_long, "phrase not kept");
        match phrases.kept.get_mut(&key) {
            Some(_) if too_long => drop(phrases.kept.remove(&key)),
            Some(phrase) if phrase.take.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, &take)) => phrase.take = None,
            _ => {}
        }
    }
    phrases.shrink(&shelf.config);
}

/// Says what a take holds from chunk `said` on, and what comes to it.
async fn replay(take: &Take, mut said: usize, tx: mpsc::Sender<Result<SpeechChunk, TtsError>>) {
    let mut progress = take.progress.subscribe();
    loop {
        let now = progress.borrow_and_update().clone();
        loop {
            let Some(chunk) = lock(&take.chunks).list.get(said).cloned() else { break };
            if tx.send(Ok(chunk)).await.is_err() {
                return;
            }
            said += 1;
        }
        match now {
            Progress::Growing => {}
            Progress::Whole => return,
            Progress::Failed(error) => {
                let _ = tx.send(Err(error)).await;
                return;
            }
        }
        if progress.changed().await.is_err() {
            return;
        }
    }
}

impl Phrases {
    fn touch(&mut self, key: Key) -> &mut Phrase {
        self.uses += 1;
        let used = self.uses;
        let phrase = self.kept.entry(key).or_insert(Phrase { used, take: None });
        phrase.used = used;
        phrase
    }

    fn shrink(&mut self, config: &CacheConfig) {
        let bytes = |phrase: &Phrase| phrase.take.as_ref().map_or(0, |take| lock(&take.chunks).bytes);
        let mut held: usize = self.kept.values().map(bytes).sum();
        while self.kept.len() > config.phrases || held > config.bytes {
            let oldest = self.kept.iter().min_by_key(|(_, phrase)| phrase.used).map(|(key, _)| key.clone());
            let Some(phrase) = oldest.and_then(|key| self.kept.remove(&key)) else { return };
            held -= bytes(&phrase).min(held);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;
    use crate::media::frame::SampleRate;

    /// Says the number of the request over and over, a chunk for each permit; texts that begin with `fail` break off
    /// after one.
    struct Counted {
        asked: AtomicUsize,
        go: Arc<Semaphore>,
    }

    fn engine(permits: usize) -> Arc<Counted> {
        Arc::new(Counted { asked: AtomicUsize::new(0), go: Arc::new(Semaphore::new(permits)) })
    }

    impl Synthesizer for Counted {
        fn name(&self) -> &'static str {
            "counted"
        }

        fn speak(&self, request: SpeechRequest) -> SpeechStream {
            let number = self.asked.fetch_add(1, Ordering::SeqCst) as i16;
            let (stream, tx, cancel) = SpeechStream::new();
            let go = self.go.clone();
            let work = async move {
                for _ in 0..request.text.len() {
                    go.acquire().await.expect("never closed").forget();
                    let chunk = SpeechChunk { rate: SampleRate::HZ_8000, samples: vec![number; 100] };
                    if tx.send(Ok(chunk)).await.is_err() {
                        return;
                    }
                    if request.text.starts_with("fail") {
                        let detail = "broken".to_owned();
                        let _ = tx.send(Err(TtsError::Engine { engine: "counted", status: None, detail })).await;
                        return;
                    }
                }
            };
            tokio::spawn(async move { cancel.run_until_cancelled(work).await });
            stream
        }
    }

    fn say(text: &str) -> SpeechRequest {
        SpeechRequest { text: text.into(), language: "en".into(), voice: String::new(), speed: 1.0 }
    }

    /// The first sample of each chunk, and whether it ended well.
    async fn hear(mut stream: SpeechStream) -> (Vec<i16>, bool) {
        let mut heard = Vec::new();
        while let Some(chunk) = stream.next().await {
            match chunk {
                Ok(chunk) => heard.push(chunk.samples[0]),
                Err(_) => return (heard, false),
            }
        }
        (heard, true)
    }

    const MANY: usize = Semaphore::MAX_PERMITS;

    #[tokio::test(start_paused = true)]
    async fn a_warm_phrase_is_said_from_memory_and_others_are_not() {
        let engine = engine(MANY);
        let cached = CachedSynthesizer::new(engine.clone(), CacheConfig::default());
        let long = "a".repeat(100);
        for text in ["hello", long.as_str()] {
            cached.warm(say(text)).await.expect("said");
        }
        assert_eq!(hear(cached.speak(say("hello"))).await, (vec![0; 5], true));
        assert_eq!(hear(cached.speak(say(&long))).await, (vec![1; 100], true));
        assert_eq!(engine.asked.load(Ordering::SeqCst), 2);
        assert_eq!(hear(cached.speak(say("no"))).await, (vec![2; 2], true));
        assert_eq!(hear(cached.speak(say("no"))).await, (vec![3; 2], true));
        assert_eq!(hear(cached.speak(SpeechRequest { speed: 1.1, ..say("hello") })).await.0, [4; 5]);
        assert_eq!(hear(cached.speak(SpeechRequest { voice: "x".into(), ..say("hello") })).await.0, [5; 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_listens_to_one_synthesis_as_it_grows() {
        let engine = engine(0);
        let cached = CachedSynthesizer::new(engine.clone(), CacheConfig::default());
        cached.remember(&say("hello"));
        let (mut first, mut second) = (cached.speak(say("hello")), cached.speak(say("hello")));
        engine.go.add_permits(1);
        assert!(first.next().await.is_some_and(|chunk| chunk.is_ok()));
        assert!(second.next().await.is_some_and(|chunk| chunk.is_ok()));
        drop(first);
        engine.go.add_permits(4);
        assert_eq!(hear(second).await, (vec![0; 4], true), "it goes on though its first listener left");
        assert!(cached.holds(&say("hello")));
        assert_eq!(engine.asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_heard_by_all_and_not_kept() {
        let engine = engine(MANY);
        let cached = CachedSynthesizer::new(engine.clone(), CacheConfig::default());
        assert!(cached.warm(say("fail")).await.is_err());
        tokio::task::yield_now().await;
        assert!(!cached.holds(&say("fail")));
        assert_eq!(hear(cached.speak(say("fail"))).await, (vec![1], false));
        assert_eq!(engine.asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_recently_said_goes_first_when_full() {
        let engine = engine(MANY);
        let config = CacheConfig { phrases: 2, ..CacheConfig::default() };
        let cached = CachedSynthesizer::new(engine.clone(), config);
        cached.warm(say("one")).await.expect("said");
        cached.warm(say("two")).await.expect("said");
        hear(cached.speak(say("one"))).await;
        cached.warm(say("three")).await.expect("said");
        assert_eq!(["one", "two", "three"].map(|text| cached.holds(&say(text))), [true, false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_are_bounded_over_all_and_for_one() {
        // A character is a chunk of 200 bytes.
        let config = CacheConfig { bytes: 2000, phrase_bytes: 1000, ..CacheConfig::default() };
        let cached = CachedSynthesizer::new(engine(MANY), config);
        for text in ["aaaaa", "bbbbb", "cc"] {
            cached.warm(say(text)).await.expect("said");
            tokio::task::yield_now().await;
        }
        assert_eq!(["aaaaa", "bbbbb", "cc"].map(|text| cached.holds(&say(text))), [false, true, true]);
        cached.remember(&say("dddddd"));
        assert_eq!(hear(cached.speak(say("dddddd"))).await.0.len(), 6, "it is said whole all the same");
        tokio::task::yield_now().await;
        assert!(!cached.holds(&say("dddddd")));
    }
}
