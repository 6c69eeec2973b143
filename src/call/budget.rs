//! What calls cost, and what they may: tokens of models, minutes heard and characters spoken are counted by call and by
//! company and day (UTC), priced, and held against the company's budget. A call over its budget ends politely; a company
//! over its day is told, and its agents excuse themselves. Counting holds up no call: it is in memory, and a task writes
//! it into the store every few seconds, which a crash can lose.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use metrics::counter;
use serde::Deserialize;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use uuid::Uuid;

use crate::agent::dialling::Budget;
use crate::agent::profile::AgentProfile;
use crate::clock;
use crate::speech::llm::{ChatRequest, LanguageModel, LlmEvent, ReplyStream};
use crate::store::directory::Directory;
use crate::store::spend::Used;
use crate::store::{Store, StoreError};

/// `[prices]`: what engines cost, in the currency that budgets are in. What has no price is free, as local engines are.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PricesConfig {
    /// A million tokens that the `openai` model reads, and a million that it writes.
    pub openai_prompt: f64,
    pub openai_completion: f64,
    /// A minute that `openai` and `google` recognition hear.
    pub openai_stt: f64,
    pub google_stt: f64,
    /// A million characters that `openai` synthesis speaks.
    pub openai_tts: f64,
}

impl PricesConfig {
    /// What cannot be right: the key, and the problem with its cure.
    pub fn faults(&self) -> Vec<(&'static str, &'static str)> {
        let Self { openai_prompt, openai_completion, openai_stt, google_stt, openai_tts } = *self;
        [
            ("openai_prompt", openai_prompt),
            ("openai_completion", openai_completion),
            ("openai_stt", openai_stt),
            ("google_stt", google_stt),
            ("openai_tts", openai_tts),
        ]
        .into_iter()
        .filter(|(_, price)| !(0.0..=1e6).contains(price))
        .map(|(key, _)| (key, "must be from 0 to 1000000"))
        .collect()
    }

    /// Millionths of the currency: a price for a million tokens is one of as many millionths for each.
    fn tokens(&self, engine: &str, prompt: u64, completion: u64) -> f64 {
        match engine {
            "openai" => prompt as f64 * self.openai_prompt + completion as f64 * self.openai_completion,
            _ => 0.0,
        }
    }

    fn heard(&self, engine: &str, ms: u64) -> f64 {
        let minute = match engine {
            "openai" => self.openai_stt,
            "google" => self.google_stt,
            _ => 0.0,
        };
        ms as f64 * minute * 1e6 / 60_000.0
    }

    fn spoken(&self, engine: &str, chars: u64) -> f64 {
        if engine == "openai" { chars as f64 * self.openai_tts } else { 0.0 }
    }
}

/// How often what was counted is written.
const WRITE: Duration = Duration::from_secs(2);
/// How often what other servers have written is read, in rounds of `WRITE`.
const ROUNDS: u32 = 5;
/// The last write may take this long.
const LAST: Duration = Duration::from_secs(3);

/// What all companies have used today. Cheap to clone.
#[derive(Clone)]
pub struct Budgets {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    directory: Arc<ArcSwap<Directory>>,
    prices: PricesConfig,
    days: Mutex<Days>,
}

#[derive(Default)]
struct Days {
    /// Since 1970, UTC.
    today: i64,
    companies: HashMap<Uuid, Day>,
    /// Of days before, not written yet.
    late: Vec<(Uuid, i64, Used)>,
}

#[derive(Clone, Copy, Default)]
struct Day {
    /// As the store had it last, of all servers.
    stored: Used,
    /// Not written yet.
    fresh: Used,
    /// That it is over was told.
    told: bool,
}

impl Days {
    /// A new day begins with nothing used.
    fn turn(&mut self, today: i64) {
        if self.today == today {
            return;
        }
        let before = self.today;
        for (company, day) in self.companies.drain() {
            if day.fresh != Used::default() {
                self.late.push((company, before, day.fresh));
            }
        }
        self.today = today;
    }
}

fn today() -> i64 {
    clock::now().as_second().div_euclid(24 * 3600)
}

impl Budgets {
    pub fn new(store: Store, directory: Arc<ArcSwap<Directory>>, prices: PricesConfig) -> Self {
        let days = Mutex::new(Days { today: today(), ..Days::default() });
        Self { inner: Arc::new(Inner { store, directory, prices, days }) }
    }

    /// Short: never held across an await.
    fn days(&self) -> MutexGuard<'_, Days> {
        let mut days = self.inner.days.lock().unwrap_or_else(PoisonError::into_inner);
        days.turn(today());
        days
    }

    fn budget(&self, company: Uuid) -> Budget {
        self.inner.directory.load().settings(company).budget
    }

    /// Whether the company has used up its day.
    pub fn is_spent(&self, company: Uuid) -> bool {
        let used = self.days().companies.get(&company).map(|day| day.stored + day.fresh).unwrap_or_default();
        self.budget(company).day_is_spent(used.tokens(), used.micros)
    }

    /// Counts what one call, or one thread of messages, uses.
    pub fn meter(&self, company: Uuid, agent: &AgentProfile) -> Meter {
        Meter { budgets: self.clone(), company, agent: agent.budget, used: Arc::default() }
    }

    fn add(&self, company: Uuid, used: Used) {
        let mut days = self.days();
        let day = days.companies.entry(company).or_default();
        day.fresh = day.fresh + used;
    }

    /// Writes what is counted until it is told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut looks = interval(WRITE);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut round, mut failing) = (0u32, false);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = looks.tick() => {}
            }
            let written = async {
                self.write().await?;
                if round.is_multiple_of(ROUNDS) {
                    self.read().await?;
                }
                self.tell().await
            };
            match written.await {
                Ok(()) => failing = false,
                // Said once, however often it is tried.
                Err(fault) if !failing => {
                    failing = true;
                    error!(error = %fault, "what calls cost cannot be written; it waits in memory");
                }
                Err(_) => {}
            }
            round = round.wrapping_add(1);
        }
        if !matches!(tokio::time::timeout(LAST, self.write()).await, Ok(Ok(()))) {
            warn!("what the last calls cost was not written");
        }
    }

    /// Writes what is not written yet.
    pub async fn write(&self) -> Result<(), StoreError> {
        let waiting: Vec<(Uuid, i64, Used)> = {
            let mut days = self.days();
            let today = days.today;
            let mut waiting = std::mem::take(&mut days.late);
            for (company, day) in &mut days.companies {
                if day.fresh != Used::default() {
                    waiting.push((*company, today, std::mem::take(&mut day.fresh)));
                }
            }
            waiting
        };
        let mut failure = None;
        for (company, day, used) in waiting {
            let stored = match failure {
                None => self.inner.store.add_spend(company, day, &used).await,
                Some(_) => Ok(None),
            };
            let mut days = self.days();
            match stored {
                Ok(Some(stored)) if day == days.today => days.companies.entry(company).or_default().stored = stored,
                // Of a day that is over, or of a company that is gone.
                Ok(_) if failure.is_none() => {}
                kept => {
                    failure = failure.or(kept.err());
                    if day == days.today {
                        let entry = days.companies.entry(company).or_default();
                        entry.fresh = entry.fresh + used;
                    } else {
                        days.late.push((company, day, used));
                    }
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Takes in what other servers have written.
    async fn read(&self) -> Result<(), StoreError> {
        let day = today();
        let spent = self.inner.store.spends(day).await?;
        let mut days = self.days();
        if days.today == day {
            for (company, used) in spent {
                days.companies.entry(company).or_default().stored = used;
            }
        }
        Ok(())
    }

    /// Tells, once a day and server, of each company that is over its day.
    async fn tell(&self) -> Result<(), StoreError> {
        let known: Vec<(Uuid, Used)> = {
            let days = self.days();
            days.companies.iter().filter(|(_, day)| !day.told).map(|(id, day)| (*id, day.stored + day.fresh)).collect()
        };
        for (company, used) in known {
            let budget = self.budget(company);
            if !budget.day_is_spent(used.tokens(), used.micros) {
                continue;
            }
            warn!(%company, "a company has used up its day; its agents excuse themselves until midnight UTC");
            counter!("offhook_budget_spent_total", "of" => "day").increment(1);
            let detail = json!({ "tokens": used.tokens(), "cents": used.micros / 10_000, "budget": budget });
            self.inner.store.audit(Some(company), "budget", "budget.day_spent", &company.to_string(), &detail).await?;
            if let Some(day) = self.days().companies.get_mut(&company) {
                day.told = true;
            }
        }
        Ok(())
    }
}

/// Counts for one call. Cheap to clone.
#[derive(Clone)]
pub struct Meter {
    budgets: Budgets,
    company: Uuid,
    agent: crate::agent::profile::CallBudget,
    used: Arc<Mutex<Used>>,
}

impl Meter {
    fn add(&self, used: Used) {
        {
            let mut own = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            *own = *own + used;
        }
        self.budgets.add(self.company, used);
    }

    /// Tokens of an answer by the model of this name.
    pub fn tokens(&self, engine: &str, prompt: u32, completion: u32) {
        let (prompt_tokens, completion_tokens) = (u64::from(prompt), u64::from(completion));
        let micros = self.budgets.inner.prices.tokens(engine, prompt_tokens, completion_tokens).round() as u64;
        self.add(Used { prompt_tokens, completion_tokens, micros, ..Used::default() });
    }

    /// An utterance that the recognition of this name has heard.
    pub fn heard(&self, engine: &str, span: Duration) {
        let heard_ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let micros = self.budgets.inner.prices.heard(engine, heard_ms).round() as u64;
        self.add(Used { heard_ms, micros, ..Used::default() });
    }

    /// Characters that the synthesis of this name was given. Fixed phrases are kept as sound and cost once.
    pub fn spoken(&self, engine: &str, text: &str) {
        let spoken_chars = text.chars().count() as u64;
        let micros = self.budgets.inner.prices.spoken(engine, spoken_chars).round() as u64;
        self.add(Used { spoken_chars, micros, ..Used::default() });
    }

    pub fn used(&self) -> Used {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the call has used up what it may, by its agent or by its company.
    pub fn is_spent(&self) -> bool {
        let used = self.used();
        self.agent.is_spent(used.tokens(), used.micros)
            || self.budgets.budget(self.company).call_is_spent(used.tokens(), used.micros)
    }
}

/// A model whose tokens are counted. An answer that is given up in the middle tells no tokens, and none are counted.
pub struct MeteredModel {
    pub model: Arc<dyn LanguageModel>,
    pub meter: Meter,
}

impl LanguageModel for MeteredModel {
    fn name(&self) -> &'static str {
        self.model.name()
    }

    fn reply(&self, request: ChatRequest) -> ReplyStream {
        let (stream, events, cancel) = ReplyStream::new();
        let (mut inner, meter, engine) = (self.model.reply(request), self.meter.clone(), self.model.name());
        tokio::spawn(cancel.run_until_cancelled_owned(async move {
            while let Some(event) = inner.next().await {
                if let Ok(LlmEvent::Usage { prompt_tokens, completion_tokens }) = event {
                    meter.tokens(engine, prompt_tokens, completion_tokens);
                }
                if events.send(event).await.is_err() {
                    return;
                }
            }
        }));
        stream
    }

    fn prepare(&self) {
        self.model.prepare();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_for_a_million_tokens_a_minute_and_a_million_characters() {
        let prices = PricesConfig {
            openai_prompt: 2.5,
            openai_completion: 10.0,
            openai_stt: 0.006,
            google_stt: 0.024,
            openai_tts: 15.0,
        };
        assert_eq!(prices.tokens("openai", 1_000_000, 1_000_000), 12_500_000.0);
        assert_eq!(prices.tokens("builtin", 1_000_000, 1_000_000), 0.0);
        assert_eq!((prices.heard("openai", 60_000), prices.heard("google", 30_000)), (6_000.0, 12_000.0));
        assert_eq!((prices.spoken("openai", 200), prices.spoken("espeak", 200)), (3_000.0, 0.0));
        assert_eq!(prices.faults(), []);
        let wrong = PricesConfig { openai_stt: -1.0, openai_tts: f64::NAN, ..prices };
        assert_eq!(wrong.faults().len(), 2);
    }

    #[test]
    fn what_a_day_has_left_unwritten_is_written_for_that_day() {
        let company = Uuid::now_v7();
        let fresh = Used { prompt_tokens: 5, ..Used::default() };
        let mut days = Days { today: 7, ..Days::default() };
        days.companies.insert(company, Day { fresh, told: true, ..Day::default() });
        days.turn(7);
        assert!(days.late.is_empty());
        days.turn(8);
        assert_eq!((days.late.as_slice(), days.companies.len()), (&[(company, 7, fresh)][..], 0));
    }
}
