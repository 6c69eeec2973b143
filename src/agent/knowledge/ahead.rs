//! Lookups that run ahead of a call's turn: on the words that are heard so far, and on the turn's own words while a model
//! thinks. What the turn then asks finds its answer ready, or on its way; it is given only where it answers that very
//! question. This keeps the books and makes the futures; whoever owns the call spawns them.
//!
//! What is used again, and for what:
//! - the same words, however they are written, in the same bases: the passages;
//! - words that differ only in those that no search looks at ("please", "so"), where nothing is compared by meaning: the
//!   passages, since full text finds the same for both;
//! - the same words in other bases: what their meaning is compared by, and nothing else;
//! - all other words: nothing. They are looked up as if nobody had run ahead.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use metrics::counter;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::words::{Asked, Tongue, asked, bare, tells};
use super::{Knowledge, KnowledgeError, LOOKUP_LIMIT, Lookup, MAX_QUERY, Meaning, Passage};

/// Lookups that are kept: what was heard of a turn grows in few steps, and only the last of them are asked for.
const KEPT: usize = 4;
/// A lookup that is older is made again: documents change.
const LIFE: Duration = Duration::from_secs(30);
/// Between the beginnings of two lookups on words that may still change. Each costs a request of the embeddings endpoint.
const EVERY: Duration = Duration::from_millis(500);

/// A question that the caller's words are likely to lead to.
#[derive(Clone, Debug, PartialEq)]
pub struct Guess {
    pub query: String,
    pub bases: Option<Vec<String>>,
    /// A model will ask, some time from now, and in words of its own. Else these words are asked at once.
    pub by_model: bool,
}

/// The work of one or more lookups, one after the other, for the call's own tasks. Dropping it cancels them.
pub type Work = BoxFuture<'static, ()>;

type Found = Result<Vec<Passage>, KnowledgeError>;

/// The documents of one agent, for one call, with what was looked up ahead. Cheap to clone.
#[derive(Clone)]
pub struct Ahead {
    inner: Arc<Inner>,
}

struct Inner {
    knowledge: Arc<dyn Knowledge>,
    language: String,
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The oldest first.
    kept: VecDeque<Kept>,
    run: Option<Run>,
    runs: u64,
    began: Option<Instant>,
    /// Newer words wait until the lookup that runs is over; the newest take the place of those before.
    next: Option<Lookup>,
}

/// The one task that looks things up.
struct Run {
    number: u64,
    cancel: CancellationToken,
}

struct Kept {
    words: Words,
    ask: Lookup,
    began: Instant,
    meaning: Shared<BoxFuture<'static, Meaning>>,
    found: Shared<BoxFuture<'static, Found>>,
}

/// A question as it is compared with another.
#[derive(PartialEq)]
struct Words {
    bare: String,
    /// Those that full text looks for.
    telling: Vec<Asked>,
}

impl Words {
    fn of(ask: &Lookup) -> Self {
        let tongue = Tongue::detect(&ask.query, Tongue::of(&ask.language));
        Self { bare: bare(&ask.query), telling: asked(&ask.query, tongue) }
    }
}

impl Kept {
    /// Whether its passages answer this question as well as a lookup of its own would.
    fn serves(&self, words: &Words, ask: &Lookup) -> bool {
        let same = self.words.bare == words.bare
            || (self.words.telling == words.telling && self.meaning.peek() == Some(&Meaning::Nothing));
        same && self.is_of(ask) && self.ask.bases == ask.bases && self.ask.limit == ask.limit
    }

    /// Whether what this question is compared by is there, or on its way.
    fn means(&self, words: &Words, ask: &Lookup) -> bool {
        let may_be = !matches!(self.meaning.peek(), Some(Meaning::Nothing | Meaning::Unknown));
        may_be && self.words.bare == words.bare && self.is_of(ask)
    }

    fn is_of(&self, ask: &Lookup) -> bool {
        self.ask.language == ask.language
    }

    fn is_open(&self) -> bool {
        self.found.peek().is_none()
    }

    fn is_well(&self) -> bool {
        self.found.peek().is_some_and(Result::is_ok)
    }
}

/// What a question that is asked in earnest finds here.
enum Ready {
    Passages(Vec<Passage>),
    /// Under way; and what it is compared by.
    Soon(Shared<BoxFuture<'static, Found>>, Shared<BoxFuture<'static, Meaning>>),
    Meaning(Shared<BoxFuture<'static, Meaning>>),
    Nothing,
}

impl Ready {
    fn label(&self) -> &'static str {
        match self {
            Ready::Passages(_) => "hit",
            Ready::Soon(..) => "joined",
            Ready::Meaning(_) => "meaning",
            Ready::Nothing => "miss",
        }
    }
}

impl Ahead {
    /// `language` and `limit`: those that the call's lookups have.
    pub fn new(knowledge: Arc<dyn Knowledge>, language: impl Into<String>, limit: usize) -> Self {
        let state = Mutex::default();
        Self { inner: Arc::new(Inner { knowledge, language: language.into(), limit, state }) }
    }

    /// On words that may still change. Work comes back where none is under way.
    #[must_use]
    pub fn guess(&self, guess: Guess) -> Option<Work> {
        let (words, ask) = self.read(guess)?;
        let mut state = self.lock();
        state.forget_old();
        if state.kept.iter().any(|kept| kept.serves(&words, &ask)) {
            // The newest words are looked up: those before them are not wanted any more.
            state.next = None;
            return None;
        }
        if state.run.is_some() {
            state.next = Some(ask);
            return None;
        }
        let due = state.began.map_or(Instant::now(), |began| began + EVERY);
        Some(self.begin(&mut state, ask, due))
    }

    /// The turn's words are known: what runs for others is given up. Words that a model is to read are looked up while it
    /// does; those that are asked at once are left to whoever asks.
    #[must_use]
    pub fn settle(&self, known: Option<Guess>) -> Option<Work> {
        let by_model = known.as_ref().is_some_and(|guess| guess.by_model);
        let known = known.and_then(|guess| self.read(guess));
        let mut state = self.lock();
        state.forget_old();
        state.next = None;
        let served = |kept: &Kept| known.as_ref().is_some_and(|(words, ask)| kept.serves(words, ask));
        if !state.kept.iter().any(|kept| kept.is_open() && served(kept)) {
            state.stop();
        }
        if state.kept.iter().any(served) {
            return None;
        }
        let (_, ask) = known.filter(|_| by_model)?;
        Some(self.begin(&mut state, ask, Instant::now()))
    }

    /// `None`: there is nothing to look for, or nowhere to look.
    fn read(&self, Guess { query, bases, .. }: Guess) -> Option<(Words, Lookup)> {
        let query: String = query.chars().take(MAX_QUERY).collect();
        if !tells(&query) || bases.as_ref().is_some_and(Vec::is_empty) {
            return None;
        }
        let (language, limit) = (self.inner.language.clone(), self.inner.limit);
        let ask = Lookup { query, language, limit, bases, meaning: Meaning::Unknown };
        Some((Words::of(&ask), ask))
    }

    fn begin(&self, state: &mut State, ask: Lookup, due: Instant) -> Work {
        let cancel = CancellationToken::new();
        state.runs += 1;
        let number = state.runs;
        state.run = Some(Run { number, cancel: cancel.clone() });
        state.next = Some(ask);
        let this = self.clone();
        async move {
            let _ = cancel.run_until_cancelled(this.run(number, due)).await;
        }
        .boxed()
    }

    async fn run(&self, number: u64, mut due: Instant) {
        loop {
            sleep_until(due).await;
            let Some(found) = self.open(number) else { return };
            let began = Instant::now();
            let _ = timeout(LOOKUP_LIMIT, found).await;
            let mut state = self.lock();
            if !state.is_run_by(number) {
                return;
            }
            // What failed is asked for anew by whoever needs it.
            state.kept.retain(Kept::is_well);
            if state.next.is_none() {
                state.run = None;
                return;
            }
            due = began + EVERY;
        }
    }

    /// Begins the lookup that is next.
    fn open(&self, number: u64) -> Option<Shared<BoxFuture<'static, Found>>> {
        let mut state = self.lock();
        if !state.is_run_by(number) {
            return None;
        }
        let Some(ask) = state.next.take() else {
            state.run = None;
            return None;
        };
        counter!("offhook_knowledge_ahead_started_total").increment(1);
        let knowledge = self.inner.knowledge.clone();
        let meaning = knowledge.meaning(ask.clone()).shared();
        let (wanted, by) = (ask.clone(), meaning.clone());
        let found = async move {
            match by.await {
                Meaning::Unknown => Err(KnowledgeError::Store("the question's vector did not come".into())),
                meaning => knowledge.look_up(Lookup { meaning, ..wanted }).await,
            }
        };
        let found = found.boxed().shared();
        if state.kept.len() == KEPT {
            state.kept.pop_front();
        }
        let began = Instant::now();
        state.began = Some(began);
        state.kept.push_back(Kept { words: Words::of(&ask), ask, began, meaning, found: found.clone() });
        Some(found)
    }

    fn find(&self, ask: &Lookup) -> Ready {
        let words = Words::of(ask);
        let mut state = self.lock();
        state.forget_old();
        let kept = || state.kept.iter().rev();
        if let Some(kept) = kept().find(|kept| kept.serves(&words, ask)) {
            match kept.found.peek() {
                Some(Ok(found)) => return Ready::Passages(found.clone()),
                None => return Ready::Soon(kept.found.clone(), kept.meaning.clone()),
                Some(Err(_)) => {}
            }
        }
        match kept().find(|kept| kept.means(&words, ask)) {
            Some(kept) => Ready::Meaning(kept.meaning.clone()),
            None => Ready::Nothing,
        }
    }

    /// Short: never held across an await. What it guards is whole between two statements, so a poisoned one is still good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_run_by(&self, number: u64) -> bool {
        self.run.as_ref().is_some_and(|run| run.number == number)
    }

    /// Gives up what runs. Whoever waits for it already finishes it.
    fn stop(&mut self) {
        if let Some(run) = self.run.take() {
            run.cancel.cancel();
        }
        self.kept.retain(|kept| !kept.is_open());
    }

    fn forget_old(&mut self) {
        self.kept.retain(|kept| kept.began.elapsed() < LIFE);
    }
}

impl Knowledge for Ahead {
    /// One question has one try at its vector: where the try that ran ahead fails while it is waited for, full text alone
    /// answers, and no later than it would have.
    fn look_up(&self, ask: Lookup) -> BoxFuture<'static, Found> {
        let ready = self.find(&ask);
        counter!("offhook_knowledge_ahead_total", "result" => ready.label()).increment(1);
        let knowledge = self.inner.knowledge.clone();
        async move {
            match ready {
                Ready::Passages(found) => Ok(found),
                Ready::Soon(found, meaning) => match found.await {
                    Ok(found) => Ok(found),
                    Err(_) => {
                        let meaning = tried(meaning.await);
                        knowledge.look_up(Lookup { meaning, ..ask }).await
                    }
                },
                Ready::Meaning(meaning) => {
                    let meaning = match meaning.await {
                        // Of the bases that were looked in ahead: others may have something to compare with.
                        Meaning::Nothing => Meaning::Unknown,
                        meaning => tried(meaning),
                    };
                    knowledge.look_up(Lookup { meaning, ..ask }).await
                }
                Ready::Nothing => knowledge.look_up(ask).await,
            }
        }
        .boxed()
    }

    fn meaning(&self, ask: Lookup) -> BoxFuture<'static, Meaning> {
        self.inner.knowledge.meaning(ask)
    }
}

/// What could not be had is not tried again in the same turn.
fn tried(meaning: Meaning) -> Meaning {
    if meaning == Meaning::Unknown { Meaning::Nothing } else { meaning }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;
    use tokio::time::sleep;
    use uuid::Uuid;

    use super::*;

    /// Takes 300 ms for a vector and 20 ms for passages, and writes down what it was asked.
    #[derive(Default)]
    struct Slow {
        log: Mutex<Vec<String>>,
        /// What a question's meaning comes to; the default is a vector.
        meaning: Mutex<Option<Meaning>>,
    }

    const VECTOR: Duration = Duration::from_millis(300);
    const TEXT: Duration = Duration::from_millis(20);

    impl Slow {
        fn note(&self, what: String) {
            self.log.lock().expect("no panic in a test's log").push(what);
        }

        fn answer(&self) -> Meaning {
            let set = self.meaning.lock().expect("no panic in a test's script").clone();
            set.unwrap_or_else(|| Meaning::Vector([1.0].into()))
        }
    }

    struct Documents(Arc<Slow>);

    impl Knowledge for Documents {
        fn look_up(&self, ask: Lookup) -> BoxFuture<'static, Found> {
            let slow = self.0.clone();
            async move {
                let by = match ask.meaning {
                    Meaning::Unknown => {
                        slow.note(format!("vector {}", ask.query));
                        sleep(VECTOR).await;
                        "own"
                    }
                    Meaning::Nothing => "text",
                    Meaning::Vector(_) => "given",
                };
                sleep(TEXT).await;
                slow.note(format!("text {} in {} by {by}", ask.query, ask.bases.unwrap_or_default().join("+")));
                let (document, title, place) = (Uuid::nil(), String::new(), String::new());
                Ok(vec![Passage { document, title, place, text: ask.query, score: 1.0 }])
            }
            .boxed()
        }

        fn meaning(&self, ask: Lookup) -> BoxFuture<'static, Meaning> {
            let slow = self.0.clone();
            async move {
                slow.note(format!("ahead {}", ask.query));
                sleep(VECTOR).await;
                slow.answer()
            }
            .boxed()
        }
    }

    /// A call with its tasks.
    struct Scene {
        slow: Arc<Slow>,
        ahead: Ahead,
        tasks: JoinSet<()>,
    }

    fn guess(query: &str, bases: Option<&str>) -> Guess {
        Guess { query: query.into(), bases: bases.map(|base| vec![base.into()]), by_model: true }
    }

    impl Scene {
        fn new() -> Self {
            let slow = Arc::new(Slow::default());
            let ahead = Ahead::new(Arc::new(Documents(slow.clone())), "en", 4);
            Self { slow, ahead, tasks: JoinSet::new() }
        }

        fn meaning(self, meaning: Meaning) -> Self {
            *self.slow.meaning.lock().expect("no panic in a test's script") = Some(meaning);
            self
        }

        /// Whether that began a task.
        fn heard(&mut self, words: &str) -> bool {
            self.heard_in(words, None)
        }

        fn heard_in(&mut self, words: &str, base: Option<&str>) -> bool {
            let work = self.ahead.guess(guess(words, base));
            work.map(|work| self.tasks.spawn(work)).is_some()
        }

        fn settled(&mut self, known: Option<Guess>) -> bool {
            self.ahead.settle(known).map(|work| self.tasks.spawn(work)).is_some()
        }

        /// What the turn finds, and what it waited for it, to 10 ms.
        async fn asks(&self, query: &str, base: Option<&str>) -> (String, Duration) {
            let bases = base.map(|base| vec![base.to_owned()]);
            let ask = Lookup { query: query.into(), language: "en".into(), limit: 4, bases, ..Lookup::default() };
            let began = Instant::now();
            let found = self.ahead.look_up(ask).await.expect("the documents answer");
            let waited = began.elapsed() + Duration::from_millis(5);
            (found[0].text.clone(), Duration::from_millis(waited.as_millis() as u64 / 10 * 10))
        }

        fn log(&self) -> Vec<String> {
            std::mem::take(&mut *self.slow.log.lock().expect("no panic in a test's log"))
        }
    }

    const WHOLE: Duration = Duration::from_millis(320);
    /// Until it is surely over: a sleep may take a millisecond more.
    const OVER: Duration = Duration::from_millis(400);

    #[tokio::test(start_paused = true)]
    async fn the_same_words_are_ready_however_they_are_written() {
        let mut scene = Scene::new();
        assert!(scene.heard("when is breakfast"));
        sleep(OVER).await;
        assert_eq!(scene.log(), ["ahead when is breakfast", "text when is breakfast in  by given"]);
        assert_eq!(scene.asks("When is breakfast?", None).await.1, Duration::ZERO);
        assert!(!scene.heard("When is  BREAKFAST"), "they are there");
        assert_eq!(scene.log(), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_is_waited_for_and_not_asked_twice() {
        let mut scene = Scene::new();
        scene.heard("when is breakfast");
        sleep(Duration::from_millis(200)).await;
        assert_eq!(scene.asks("When is breakfast?", None).await.1, Duration::from_millis(120));
        assert_eq!(scene.log().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn other_words_are_another_question() {
        let mut scene = Scene::new();
        scene.heard("is there a pool");
        sleep(OVER).await;
        scene.log();
        for question in ["is there no pool", "is there a pool for children", "When does the pool open?"] {
            assert_eq!(scene.asks(question, None).await, (question.into(), WHOLE));
            assert_eq!(scene.log(), [format!("vector {question}"), format!("text {question} in  by own")]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn words_that_no_search_looks_at_change_nothing_where_only_text_is_searched() {
        let mut scene = Scene::new().meaning(Meaning::Nothing);
        scene.heard("is there a pool");
        sleep(OVER).await;
        assert_eq!(scene.asks("so is there a pool please", None).await, ("is there a pool".into(), Duration::ZERO));
        let mut scene = Scene::new();
        scene.heard("is there a pool");
        sleep(OVER).await;
        assert_eq!(scene.asks("so is there a pool please", None).await.1, WHOLE, "its vector is another");
    }

    #[tokio::test(start_paused = true)]
    async fn in_other_bases_only_the_meaning_is_the_same() {
        let mut scene = Scene::new();
        scene.heard_in("is there a pool", Some("rules"));
        sleep(OVER).await;
        scene.log();
        assert_eq!(scene.asks("Is there a pool?", Some("menu")).await, ("Is there a pool?".into(), TEXT));
        assert_eq!(scene.log(), ["text Is there a pool? in menu by given"]);
        // Where the bases that were looked in have no vectors, others may.
        let mut scene = Scene::new().meaning(Meaning::Nothing);
        scene.heard_in("is there a pool", Some("rules"));
        sleep(OVER).await;
        assert_eq!(scene.asks("is there a pool", Some("menu")).await.1, WHOLE);
    }

    #[tokio::test(start_paused = true)]
    async fn one_lookup_runs_at_a_time_the_newest_words_next_and_not_too_often() {
        let mut scene = Scene::new();
        assert!(!scene.heard("so is there"), "nothing to look for yet");
        assert!(scene.heard("so is there a pool"));
        tokio::task::yield_now().await;
        assert!(
            !scene.heard("so is there a pool for"),
            "the same but for a word that is everywhere, yet to be embedded"
        );
        sleep(Duration::from_millis(100)).await;
        assert!(!scene.heard("so is there a pool for children"));
        sleep(Duration::from_millis(390)).await;
        assert_eq!(scene.log(), ["ahead so is there a pool", "text so is there a pool in  by given"]);
        sleep(Duration::from_millis(20)).await;
        assert_eq!(scene.log(), ["ahead so is there a pool for children"], "500 ms after the first");
        sleep(OVER).await;
        assert_eq!(scene.asks("So, is there a pool for children?", None).await.1, Duration::ZERO);
        assert_eq!(scene.tasks.len(), 1, "one task did both");
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_gives_up_what_runs_for_other_words() {
        let mut scene = Scene::new();
        scene.heard("is there a pool");
        sleep(Duration::from_millis(100)).await;
        assert!(!scene.settled(None), "a rule answers these words: nothing is looked up");
        sleep(OVER).await;
        assert_eq!(scene.log(), ["ahead is there a pool"], "it was cut off");
        assert!(scene.tasks.join_next().await.is_some_and(|task| task.is_ok()));
        assert_eq!(scene.asks("is there a pool", None).await.1, WHOLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turns_own_words_are_looked_up_while_a_model_thinks() {
        let mut scene = Scene::new();
        scene.heard("is there a pool");
        sleep(Duration::from_millis(100)).await;
        assert!(scene.settled(Some(guess("is there a pool for children", None))), "at once, and not 500 ms later");
        tokio::task::yield_now().await;
        assert!(!scene.settled(Some(guess("Is there a pool for children?", None))), "the same turn again");
        sleep(OVER).await;
        assert_eq!(scene.asks("is there a pool for children", None).await.1, Duration::ZERO);
        assert_eq!(scene.log().len(), 3, "the first was cut off before its passages");
        let at_once = Guess { by_model: false, ..guess("is there a sauna", None) };
        assert!(!scene.settled(Some(at_once)), "whoever asks at once needs nobody ahead");
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_waits_keeps_what_it_waits_for() {
        let mut scene = Scene::new();
        scene.heard("is there a pool");
        sleep(Duration::from_millis(100)).await;
        let ((_, waited), ()) = tokio::join!(scene.asks("is there a pool", None), async {
            sleep(Duration::from_millis(50)).await;
            drop(scene.ahead.settle(None));
        });
        assert_eq!(waited, Duration::from_millis(220));
    }

    #[tokio::test(start_paused = true)]
    async fn a_vector_that_fails_ahead_costs_the_turn_no_second_wait() {
        let mut scene = Scene::new().meaning(Meaning::Unknown);
        scene.heard("is there a pool");
        sleep(Duration::from_millis(200)).await;
        assert_eq!(scene.asks("is there a pool", None).await.1, Duration::from_millis(120), "full text answers");
        // Had it failed before it was asked for, it would be tried again.
        scene.heard("is there a sauna");
        sleep(Duration::from_secs(2)).await;
        scene.log();
        assert_eq!(scene.asks("is there a sauna", None).await.1, WHOLE);
        assert_eq!(scene.log()[0], "vector is there a sauna");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_little_and_soon_old() {
        let mut scene = Scene::new();
        for topic in ["pool", "sauna", "garage", "breakfast", "bar"] {
            scene.heard(&format!("is there a {topic}"));
            sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(scene.ahead.lock().kept.len(), KEPT);
        assert_eq!(scene.asks("is there a pool", None).await.1, WHOLE, "it fell out");
        assert_eq!(scene.asks("is there a bar", None).await.1, Duration::ZERO);
        sleep(LIFE).await;
        assert_eq!(scene.asks("is there a bar", None).await.1, WHOLE);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_looked_up_where_there_is_nowhere_to_look() {
        let scene = Scene::new();
        let nowhere = Guess { bases: Some(Vec::new()), ..guess("is there a pool", None) };
        assert!(scene.ahead.guess(nowhere.clone()).is_none() && scene.ahead.settle(Some(nowhere)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_ends_ends_its_lookup() {
        let mut scene = Scene::new();
        scene.heard("is there a pool");
        sleep(Duration::from_millis(100)).await;
        scene.tasks.shutdown().await;
        sleep(OVER).await;
        assert_eq!(scene.log(), ["ahead is there a pool"]);
    }
}
