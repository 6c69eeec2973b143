//! What comes after a call, in the background: its end is put into the outbox, and its analysis is made, by the agent's
//! model or by rule. What is to be done stands in the store, so that it survives whoever does it; no call waits for it.

use std::time::Duration;

use jiff::SignedDuration;
use metrics::counter;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};
use uuid::Uuid;

use crate::agent::outcome::{self, Analysis, MAX_ANSWER, Story};
use crate::agent::profile::AgentProfile;
use crate::call::registry::Calls;
use crate::clock;
use crate::providers::provider::CallOutcome;
use crate::speech::llm::{ChatRequest, LanguageModel, LlmError, LlmEvent};
use crate::store::calls::CallRecord;
use crate::store::outcomes::DueAnalysis;
use crate::store::{Store, StoreError};
use crate::telephony::CallId;

/// How often the store is asked for calls that are over: one row of an index.
const POLL: Duration = Duration::from_millis(500);
/// Ends that are put into the outbox in one go.
const BATCH: usize = 64;
/// Analyses at once: they share the model with calls that are talking.
const AT_ONCE: usize = 4;
/// A whole answer of the model.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Before a model that failed is asked once more.
const AGAIN: Duration = Duration::from_secs(2);
/// An analysis whose process died is begun again after this; longer than two answers.
const LEASE: Duration = Duration::from_secs(180);
/// An analysis that was begun so often ended its process: it is made by rule.
const MAX_BEGUN: i64 = 3;
/// A call that has waited for longer is not worth a model's time any more: a backlog after an outage is worked off by rule.
const FRESH: SignedDuration = SignedDuration::from_hours(24);
/// Tokens of an answer: several times what the longest object needs.
const MAX_TOKENS: u32 = 2_000;

/// Works off what calls leave behind.
#[derive(Clone)]
pub struct Analyst {
    store: Store,
    calls: Calls,
}

impl Analyst {
    pub fn new(store: Store, calls: Calls) -> Self {
        Self { store, calls }
    }

    /// Until it is told to stop. What is under way then is begun again by the next one.
    pub async fn run(self, stop: CancellationToken) {
        let mut looks = interval(POLL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut work = JoinSet::new();
        let mut failing = false;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(done) = work.join_next(), if !work.is_empty() => if let Err(fault) = done {
                    error!(error = %fault, "an analysis panicked");
                },
                _ = looks.tick() => {}
            }
            match self.look(&mut work).await {
                Ok(()) => failing = false,
                // Said once, however often it is tried.
                Err(fault) if !failing => {
                    failing = true;
                    error!(error = %fault, "calls that are over cannot be looked at; they wait");
                }
                Err(_) => {}
            }
        }
        work.shutdown().await;
    }

    async fn look(&self, work: &mut JoinSet<()>) -> Result<(), StoreError> {
        loop {
            let untold = self.store.untold_calls(BATCH).await?;
            let more = untold.len() == BATCH;
            for (company, call) in untold {
                self.store.tell_call_over(company, call).await?;
            }
            if !more {
                break;
            }
        }
        let free = AT_ONCE.saturating_sub(work.len());
        if free == 0 {
            return Ok(());
        }
        for due in self.store.due_analyses(free).await? {
            if self.store.claim_analysis(&due, LEASE).await? {
                let analyst = self.clone();
                work.spawn(async move { analyst.analyse(due).await });
            }
        }
        Ok(())
    }

    async fn analyse(&self, due: DueAnalysis) {
        let call = CallId::from(due.call_id);
        // What the store does not take is done again when the lease is over.
        if let Err(fault) = self.try_analyse(&due, call).await {
            warn!(%call, error = %fault, "a call could not be analysed; it is tried again");
        }
    }

    async fn try_analyse(&self, due: &DueAnalysis, call: CallId) -> Result<(), StoreError> {
        let company = due.company_id;
        let analysis = match self.store.call(company, call).await? {
            Some(record) => self.of_record(due, &record).await?,
            None => None,
        };
        if let Some(analysis) = &analysis {
            counter!("offhook_call_analysis_total", "by" => analysis.by.label(), "outcome" => analysis.outcome.label())
                .increment(1);
        }
        self.store.put_analysis(company, call, analysis.as_ref()).await
    }

    /// `None`: no agent was on it, or the agent's calls are not analysed.
    async fn of_record(&self, due: &DueAnalysis, record: &CallRecord) -> Result<Option<Analysis>, StoreError> {
        let company = due.company_id;
        let summary = self.store.call_summary(company, record.id).await?;
        let outcome = summary.map_or(record.outcome(), |summary| summary.outcome);
        let talked = !record.legs.is_empty();
        // A call that somebody of the company took at their own telephone.
        let elsewhere = !talked && outcome == CallOutcome::Answered;
        let Some(agent_id) = record.agent_id.filter(|_| !elsewhere) else { return Ok(None) };
        let profile = self.profile(company, agent_id).await?;
        if profile.analysis == Some(false) {
            return Ok(None);
        }
        let talk = record.answered.zip(record.ended).map(|(from, to)| to.duration_since(from).as_secs().max(0));
        let story = Story {
            agent: &record.agent,
            company: &record.company,
            language: &profile.language,
            direction: record.direction,
            purpose: record.purpose.as_deref(),
            answered: talked,
            machine: outcome == CallOutcome::Voicemail,
            talk_s: talk.unwrap_or(0).unsigned_abs(),
            end: record.end,
            lines: &record.transcript.lines,
            tools: &record.transcript.tools,
            remembered: &record.remembered,
            handover: record.handover.as_deref(),
            transferred: record.handover.is_some() && !profile.transfer_to.is_empty(),
        };
        let fresh = record.ended.is_none_or(|ended| clock::now().duration_since(ended) < FRESH);
        if story.has_words()
            && fresh
            && due.attempts < MAX_BEGUN
            && let Some(model) = self.calls.analyst(company, &profile)
        {
            match ask(&*model, &profile, &story).await {
                Ok(analysis) => return Ok(Some(outcome::settle(analysis, &story))),
                Err(fault) => warn!(call = %record.id, %fault, "a model could not analyse a call; it is done by rule"),
            }
        }
        Ok(Some(outcome::by_rule(&story)))
    }

    /// As it is today; of an agent that is gone, the defaults.
    async fn profile(&self, company: Uuid, agent: Uuid) -> Result<AgentProfile, StoreError> {
        let agent = self.store.agent(company, agent).await?;
        Ok(agent.map(|agent| agent.profile.0).unwrap_or_default())
    }
}

/// Why a model gave no analysis. Holds nothing of what was said.
#[derive(Debug, thiserror::Error)]
enum AskFault {
    #[error(transparent)]
    Model(#[from] LlmError),
    #[error("no answer within {} s", ANSWER_LIMIT.as_secs())]
    TooSlow,
    #[error("its answer cannot be used: {0}")]
    Unusable(String),
}

/// Asks, and once more where the answer cannot be used or the model failed.
async fn ask(model: &dyn LanguageModel, agent: &AgentProfile, story: &Story<'_>) -> Result<Analysis, AskFault> {
    let first = match answer(model, agent, story, None).await {
        Ok(text) => match outcome::read(&text) {
            Ok(analysis) => return Ok(analysis),
            Err(fault) => Some((text, fault)),
        },
        Err(fault) => {
            debug!(%fault, "asked once more");
            tokio::time::sleep(AGAIN).await;
            None
        }
    };
    let before = first.as_ref().map(|(text, fault)| (text.as_str(), fault.as_str()));
    let text = answer(model, agent, story, before).await?;
    outcome::read(&text).map_err(AskFault::Unusable)
}

async fn answer(
    model: &dyn LanguageModel,
    agent: &AgentProfile,
    story: &Story<'_>,
    before: Option<(&str, &str)>,
) -> Result<String, AskFault> {
    let request = ChatRequest {
        messages: outcome::request(story, before),
        model: agent.llm.model.clone(),
        max_tokens: Some(MAX_TOKENS),
        ..ChatRequest::default()
    };
    let reading = async {
        let mut stream = model.reply(request);
        let mut text = String::new();
        while let Some(event) = stream.next().await {
            match event? {
                LlmEvent::Text(piece) if text.len() + piece.len() <= MAX_ANSWER => text.push_str(&piece),
                LlmEvent::Text(_) | LlmEvent::Done { .. } => break,
                LlmEvent::ToolCall(_) => {}
                LlmEvent::Usage { prompt_tokens, completion_tokens } => {
                    counter!("offhook_llm_tokens_total", "kind" => "prompt").increment(prompt_tokens.into());
                    counter!("offhook_llm_tokens_total", "kind" => "completion").increment(completion_tokens.into());
                }
            }
        }
        Ok(text)
    };
    timeout(ANSWER_LIMIT, reading).await.unwrap_or(Err(AskFault::TooSlow))
}
