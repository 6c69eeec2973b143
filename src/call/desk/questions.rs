//! What a provider asks: what to do with a call that is offered, and with one whose stream is over. Answered from memory
//! alone; nothing here waits.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use super::{Desk, MAX_DIALLED};
use crate::agent::phrases::Phrases;
use crate::agent::profile::TransferNote;
use crate::agent::variables::Vars;
use crate::call::registry::{CallSetup, Refused};
use crate::providers;
use crate::providers::provider::{CallNews, CallOutcome, CallState};
use crate::store::calls::SipNotes;
use crate::store::directory::{Integration, Line};
use crate::telephony::{CallId, Direction, EndReason};

/// A provider's word for how a call to a person went, as SIP says it (RFC 3261 §21).
fn status_of(outcome: CallOutcome) -> u16 {
    match outcome {
        CallOutcome::Running | CallOutcome::Answered | CallOutcome::Voicemail => 200,
        CallOutcome::NoAnswer => 480,
        CallOutcome::Busy => 486,
        CallOutcome::Canceled => 487,
        CallOutcome::Failed => 503,
    }
}

/// What to do with a call that a provider offers.
#[derive(Debug)]
pub enum Offer {
    Talk(Box<CallSetup>),
    /// The provider sends it to this line of ours, where it comes as a call of another sort.
    Route(String),
    NotInService,
    Busy(Refused),
    /// Nothing to change: the call goes the way that the company has set up.
    AsItIs,
}

/// What to do with a call whose stream is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AfterCall {
    HangUp,
    Say {
        text: String,
        language: String,
    },
    /// `told`: the person is to hear a summary first.
    Transfer {
        to: String,
        from: String,
        told: bool,
    },
}

impl Desk {
    /// What is to be done with a call, from memory alone. `call` is the id that we gave a call when we dialled it.
    pub fn offered(&self, integration: &Integration, news: &CallNews, call: Option<CallId>) -> Offer {
        let offer = self.first_offered(integration, news, call);
        let inner = &self.inner;
        let Some(id) = news.provider_call.clone() else { return offer };
        let key = (integration.id, id);
        match offer {
            Offer::Talk(setup) => {
                if inner.asked.len() >= MAX_DIALLED && !inner.asked.contains_key(&key) {
                    return Offer::Talk(setup);
                }
                // Of two that ask at once, one is the first.
                let (_, first) = &*inner.asked.entry(key).or_insert_with(|| (Instant::now(), *setup));
                Offer::Talk(Box::new(first.clone()))
            }
            offer => offer,
        }
    }

    fn first_offered(&self, integration: &Integration, news: &CallNews, call: Option<CallId>) -> Offer {
        let inner = &self.inner;
        if let Some(call) = call
            && let Some((_, (_, mut setup))) =
                inner.dialled.remove_if(&call, |_, (_, setup)| setup.integration == integration.id)
        {
            if let Some(id) = &news.provider_call {
                setup.provider_call = id.clone();
            }
            setup.fields.extend(news.fields.clone());
            return match inner.calls.ready() {
                Ok(()) => Offer::Talk(Box::new(setup)),
                Err(refused) => Offer::Busy(refused),
            };
        }
        let direction = news.direction.unwrap_or(Direction::Inbound);
        let ours = news.line.as_deref().unwrap_or(match direction {
            Direction::Inbound => news.to.as_str(),
            Direction::Outbound => news.from.as_str(),
        });
        let directory = inner.directory.load();
        // A PBX sends the call to one of its own lines, which is our SIP account.
        if !providers::kind(integration.provider).is_some_and(|kind| kind.capabilities.streams) {
            if direction == Direction::Outbound {
                return Offer::AsItIs;
            }
            let mut lines: Vec<&Arc<Line>> =
                directory.lines().filter(|line| line.integration == integration.id).collect();
            lines.sort_by(|a, b| a.number.cmp(&b.number));
            let line = lines.iter().find(|line| line.number == ours).or(lines.first());
            let Some(line) = line else { return Offer::AsItIs };
            let news = CallNews { line: Some(line.number.clone()), ..news.clone() };
            inner.remember_told(integration, CallId::new(), &news, &CallState::Ringing);
            return Offer::Route(line.number.clone());
        }
        let Some(line) = directory.line(integration.id, ours) else { return Offer::NotInService };
        if let Err(refused) = inner.calls.ready() {
            return Offer::Busy(refused);
        }
        Offer::Talk(Box::new(CallSetup {
            id: CallId::new(),
            direction,
            company: integration.company.clone(),
            company_id: integration.company_id,
            integration: integration.id,
            provider: integration.provider,
            provider_call: news.provider_call.clone().unwrap_or_default(),
            line: line.number.clone(),
            from: news.from.clone(),
            to: news.to.clone(),
            agent: line.agent.clone(),
            agent_id: Some(line.agent_id),
            agent_version: Some(line.agent_version),
            purpose: None,
            vars: Vars::default(),
            fields: news.fields.clone(),
        }))
    }

    /// What is to be done with a call whose stream is over: hand it to a person, explain a failure, or end it.
    pub fn after(&self, integration: &Integration, call: Option<CallId>) -> AfterCall {
        let Some(over) = call.and_then(|call| self.inner.calls.over(call)) else { return AfterCall::HangUp };
        if over.integration != integration.id {
            return AfterCall::HangUp;
        }
        if over.handover.is_some() && !over.agent.transfer_to.is_empty() {
            let told = over.agent.transfer_note == TransferNote::Spoken;
            return AfterCall::Transfer { to: over.agent.transfer_to.clone(), from: over.line, told };
        }
        match over.end.reason {
            EndReason::EngineFailed | EndReason::Panicked | EndReason::Drained => AfterCall::Say {
                text: Phrases::of(&over.agent.language).trouble.to_owned(),
                language: over.agent.language.clone(),
            },
            _ => AfterCall::HangUp,
        }
    }

    /// What a person hears before a caller is connected: text and language. `None`: nothing.
    pub fn briefing(&self, integration: &Integration, call: Option<CallId>) -> Option<(String, String)> {
        let over = self.inner.calls.over(call?).filter(|over| over.integration == integration.id)?;
        let told = over.agent.transfer_note == TransferNote::Spoken;
        Some((over.handover.filter(|_| told)?, over.agent.language.clone()))
    }

    /// What is to be done with a caller whose call to a person is over. What became of it is noted beside.
    pub fn after_transfer(&self, integration: &Integration, call: Option<CallId>, outcome: CallOutcome) -> AfterCall {
        let Some((call, over)) = call.and_then(|call| Some((call, self.inner.calls.over(call)?))) else {
            return AfterCall::HangUp;
        };
        if over.integration != integration.id {
            return AfterCall::HangUp;
        }
        self.note_transfer(integration.company_id, call, outcome);
        if outcome == CallOutcome::Answered {
            return AfterCall::HangUp;
        }
        AfterCall::Say {
            text: Phrases::of(&over.agent.language).nobody_free.to_owned(),
            language: over.agent.language.clone(),
        }
    }

    fn note_transfer(&self, company: Uuid, call: CallId, outcome: CallOutcome) {
        let Some(store) = self.inner.store.clone() else { return };
        let notes = SipNotes { transfer_status: Some(status_of(outcome)), ..SipNotes::default() };
        self.inner.tasks.spawn(async move {
            if let Err(error) = store.note_sip(company, call, &notes).await {
                warn!(%call, %error, "what became of a transfer could not be noted");
            }
        });
    }
}
