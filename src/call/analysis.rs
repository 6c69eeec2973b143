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
use crate::store::calls::{CallRecord, CallSummary};
use crate::store::outcomes::{DueAnalysis, Made, Next, about};
use crate::store::{Store, StoreError};
use crate::telephony::CallId;

/// How often the store is asked for calls that are over: one row of an index.
const POLL: Duration = Duration::from_millis(500);
/// Calls that are worked off in one transaction. Calls that talk write their records through the same disk and wait
/// meanwhile, so it is short.
const BATCH: usize = 8;
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
/// How long the end of a transfer is waited for: a person's telephone rings for 30 s at most, so after that somebody talks.
const TRANSFER_LIMIT: SignedDuration = SignedDuration::from_secs(120);
/// Between two looks at a transfer.
const TRANSFER_LOOK: Duration = Duration::from_secs(2);
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
            self.tell(&untold).await?;
            if untold.len() < BATCH {
                break;
            }
        }
        while self.look_at_some(work).await? {}
        Ok(())
    }

    /// One call that the database refuses holds up no other.
    async fn tell(&self, calls: &[(Uuid, CallId)]) -> Result<(), StoreError> {
        let mut told = match calls {
            [] => return Ok(()),
            calls => self.store.tell_calls_over(calls).await,
        };
        if told.is_err() && calls.len() > 1 {
            told = Ok(0);
            for call in calls {
                told = self.store.tell_calls_over(std::slice::from_ref(call)).await.and(told);
            }
        }
        told.map(|_| ())
    }

    /// Settles some of what is due; `true`: there may be more.
    async fn look_at_some(&self, work: &mut JoinSet<()>) -> Result<bool, StoreError> {
        let due = self.store.due_analyses(BATCH).await?;
        let mut more = due.len() == BATCH;
        let mut free = AT_ONCE.saturating_sub(work.len());
        let (mut steps, mut cases) = (Vec::new(), Vec::new());
        for due in due {
            let (next, case) = match self.weigh(&due).await {
                Ok(Weighed::Settled(next)) => (next, None),
                // Who comes first is asked about first.
                Ok(Weighed::ForModel(_)) if free == 0 => {
                    more = false;
                    break;
                }
                Ok(Weighed::ForModel(case)) => {
                    free -= 1;
                    (Next::Taken(LEASE), Some(case))
                }
                Err(fault) => {
                    warn!(call = %CallId::from(due.call_id), error = %fault, "a call could not be analysed; it is tried again");
                    (Next::Later(LEASE), None)
                }
            };
            steps.push((due, next));
            cases.push(case);
        }
        if steps.is_empty() {
            return Ok(false);
        }
        let settled = self.store.settle_analyses(&steps).await?;
        for (((_, next), case), _) in steps.into_iter().zip(cases).zip(settled).filter(|(_, settled)| *settled) {
            match (next, case) {
                (Next::Made(Some(made)), _) => count(&made.analysis),
                (_, Some(case)) => {
                    let analyst = self.clone();
                    work.spawn(async move { analyst.make(*case).await });
                }
                _ => {}
            }
        }
        Ok(more)
    }

    async fn weigh(&self, due: &DueAnalysis) -> Result<Weighed, StoreError> {
        let (company, none) = (due.company_id, Weighed::Settled(Next::Made(None)));
        let Some(record) = self.store.call(company, due.call_id.into()).await? else { return Ok(none) };
        let Some(summary) = self.store.call_summary(company, record.id).await? else { return Ok(none) };
        // A call that somebody of the company took at their own telephone.
        let elsewhere = record.legs.is_empty() && summary.outcome == CallOutcome::Answered;
        let Some(agent_id) = record.agent_id.filter(|_| !elsewhere) else { return Ok(none) };
        let profile = self.profile(company, agent_id).await?;
        if profile.analysis == Some(false) {
            return Ok(none);
        }
        let age = record.ended.map(|ended| clock::now().duration_since(ended));
        let mut transferred = false;
        if record.handover.is_some() && !profile.transfer_to.is_empty() {
            let facts = self.store.sip_facts(company, record.id).await?;
            transferred = match facts.and_then(|facts| facts.transfer_status) {
                Some(status) => (200..300).contains(&status),
                None if age.is_some_and(|age| age < TRANSFER_LIMIT) => {
                    return Ok(Weighed::Settled(Next::Later(TRANSFER_LOOK)));
                }
                None => true,
            };
        }
        let case = Box::new(Case { record, summary, profile, transferred });
        let fresh = age.is_none_or(|age| age < FRESH);
        let by_model = case.story().has_words()
            && fresh
            && due.attempts < MAX_BEGUN
            && self.calls.analyst(company, &case.profile).is_some();
        if by_model {
            return Ok(Weighed::ForModel(case));
        }
        let made = Made { analysis: outcome::by_rule(&case.story()), about: about(&case.record, &case.summary) };
        Ok(Weighed::Settled(Next::Made(Some(made))))
    }

    /// By the agent's model, or by rule where it cannot. What the store does not take is made again when the lease is
    /// over.
    async fn make(&self, case: Case) {
        let (company, call, story) = (case.record.company_id, case.record.id, case.story());
        let analysis = match self.calls.analyst(company, &case.profile) {
            Some(model) => match ask(&*model, &case.profile, &story).await {
                Ok(analysis) => outcome::settle(analysis, &story),
                Err(fault) => {
                    warn!(%call, %fault, "a model could not analyse a call; it is done by rule");
                    outcome::by_rule(&story)
                }
            },
            None => outcome::by_rule(&story),
        };
        count(&analysis);
        if let Err(fault) = self.store.put_analysis(company, call, &analysis).await {
            warn!(%call, error = %fault, "a call's analysis could not be written; it is made again");
        }
    }

    /// As it is today; of an agent that is gone, the defaults.
    async fn profile(&self, company: Uuid, agent: Uuid) -> Result<AgentProfile, StoreError> {
        let agent = self.store.agent(company, agent).await?;
        Ok(agent.map(|agent| agent.profile.0).unwrap_or_default())
    }
}

/// What came of looking at a call.
enum Weighed {
    Settled(Next),
    ForModel(Box<Case>),
}

/// A call that is over, with what its analysis is made of.
struct Case {
    record: CallRecord,
    summary: CallSummary,
    profile: AgentProfile,
    transferred: bool,
}

impl Case {
    fn story(&self) -> Story<'_> {
        let record = &self.record;
        let talk = record.answered.zip(record.ended).map(|(from, to)| to.duration_since(from).as_secs().max(0));
        Story {
            agent: &record.agent,
            company: &record.company,
            language: &self.profile.language,
            direction: record.direction,
            purpose: record.purpose.as_deref(),
            answered: !record.legs.is_empty(),
            machine: self.summary.outcome == CallOutcome::Voicemail,
            talk_s: talk.unwrap_or(0).unsigned_abs(),
            end: record.end,
            lines: &record.transcript.lines,
            tools: &record.transcript.tools,
            remembered: &record.remembered,
            handover: record.handover.as_deref(),
            transferred: self.transferred,
        }
    }
}

fn count(analysis: &Analysis) {
    let (by, outcome) = (analysis.by.label(), analysis.outcome.label());
    counter!("offhook_call_analysis_total", "by" => by, "outcome" => outcome).increment(1);
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
