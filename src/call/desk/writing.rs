//! An agent that answers messages: what came in for a line, and what its agent writes back.

use std::sync::Arc;

use serde_json::json;
use tracing::warn;

use super::{Inner, MessageRequest, OutboundError};
use crate::agent::memory::Memory;
use crate::agent::prompt;
use crate::agent::tools::{CallEffect, ToolContext};
use crate::agent::variables::{Fields, Vars};
use crate::call::registry::Refused;
use crate::call::thread;
use crate::clock;
use crate::providers::provider::IncomingMessage;
use crate::store::directory::{Integration, Line};
use crate::store::messages::{NewMessage, Remembered};
use crate::store::{Store, StoreError};
use crate::telephony::{CallId, Direction};

/// Messages of a thread that an agent remembers.
const THREAD_MEMORY: usize = 60;
/// A workflow's conversation is over when nobody has written for so long.
const CONVERSATION_PAUSE: jiff::SignedDuration = jiff::SignedDuration::from_hours(6);
/// Answers to one number in an hour: two machines that answer each other stop here.
const MAX_ANSWERS_AN_HOUR: u64 = 20;

impl Inner {
    /// A message for one of our lines: written down once, and answered by the line's agent.
    pub(super) async fn received(
        &self,
        store: &Store,
        integration: &Arc<Integration>,
        message: IncomingMessage,
    ) -> Result<(), OutboundError> {
        let (company, id) = (integration.company_id, integration.id);
        let new = NewMessage {
            company,
            integration: id,
            direction: Direction::Inbound,
            line: &message.to,
            peer: &message.from,
            text: &message.text,
            media: &message.media,
            provider_message: Some(&message.provider_message),
            status: "received",
        };
        if store.add_message(new).await?.is_none() {
            return Ok(());
        }
        let directory = self.directory.load_full();
        let Some(line) = directory.line(id, message.to.as_str()).cloned() else {
            warn!(integration = %id, to = %message.to, "a message for a number without a line");
            return Ok(());
        };
        if is_stop(&message.text) || message.text.trim().is_empty() {
            return Ok(());
        }
        let since = clock::now() - jiff::SignedDuration::from_hours(1);
        if store.messages_placed(company, Some(message.from.as_str()), since).await? >= MAX_ANSWERS_AN_HOUR {
            warn!(integration = %id, from = %message.from, "no more answers to this number for now");
            return Ok(());
        }
        match self.write_answer(store, integration, &line, &message).await {
            Ok(()) => Ok(()),
            // Once answered is enough: a second try could send twice what did arrive.
            Err(error) => {
                warn!(integration = %id, from = %message.from, %error, "a message was not answered");
                Ok(())
            }
        }
    }

    async fn write_answer(
        &self,
        store: &Store,
        integration: &Arc<Integration>,
        line: &Arc<Line>,
        message: &IncomingMessage,
    ) -> Result<(), AnswerError> {
        let company = integration.company_id;
        let past = store.thread(company, &message.to, &message.from, THREAD_MEMORY).await?;
        let facts = prompt::CallFacts {
            company: integration.company.clone(),
            direction: Direction::Inbound,
            caller: message.from.clone(),
            line: message.to.clone(),
            purpose: String::new(),
            vars: Vars::default(),
            fields: Fields::default(),
            began: clock::local_now(),
        };
        let mut memory = Memory::new(prompt::writing_prompt(&line.agent, &facts));
        let past = if line.agent.workflow.is_some() { since_the_last_pause(past) } else { past };
        for one in past {
            match (one.direction, one.rounds) {
                (Direction::Inbound, _) => memory.user_said(&one.text),
                (Direction::Outbound, Some(rounds)) => memory.restore(rounds.0),
                (Direction::Outbound, None) => memory.agent_said(&one.text),
            }
        }
        let (model, tools, settings) = self.calls.writer(&line.agent, company, &facts)?;
        // A thread has no call; its tools are counted against an id of their own.
        let context = ToolContext::new(CallId::new(), message.from.clone(), message.to.clone());
        let written = thread::answer(model, &line.agent.llm, &tools, context, &memory, &settings).await?;
        for effect in &written.effects {
            let from = message.from.as_str();
            let (deed, detail) = match effect {
                CallEffect::Remember { key, value } => {
                    ("remember", json!({ "key": key, "value": value, "from": from }))
                }
                CallEffect::Handover { to } => ("handover", json!({ "reason": to, "from": from })),
                // A thread has nothing to hang up and no keys to press.
                CallEffect::EndCall { .. } | CallEffect::PressKeys { .. } => continue,
            };
            store.audit(Some(company), "agent", deed, &line.agent.name, &detail).await?;
        }
        if written.text.is_empty() {
            return Ok(());
        }
        let answer = MessageRequest {
            integration: Some(integration.id),
            from: Some(message.to.clone()),
            to: message.from.clone(),
            text: written.text,
            answer: true,
        };
        let id = self.message(company, answer).await?;
        if !written.tools.is_empty() {
            store.note_rounds(company, id, &written.messages).await?;
        }
        Ok(())
    }
}

/// A workflow begins again after a pause: whoever writes the next day is not in the middle of a booking.
fn since_the_last_pause(past: Vec<Remembered>) -> Vec<Remembered> {
    let paused = |pair: &[Remembered]| pair[1].created_at.0.duration_since(pair[0].created_at.0) > CONVERSATION_PAUSE;
    let begin = past.windows(2).rposition(paused).map_or(0, |at| at + 1);
    past.into_iter().skip(begin).collect()
}

#[derive(Debug, thiserror::Error)]
enum AnswerError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the agent cannot write: {0}")]
    Agent(#[from] Refused),
    #[error(transparent)]
    Write(#[from] thread::WriteError),
    #[error(transparent)]
    Send(#[from] OutboundError),
}

/// The words that end a thread; the carrier acts on them itself.
fn is_stop(text: &str) -> bool {
    let word = text.trim().trim_end_matches(['.', '!']).to_uppercase();
    ["STOP", "STOPALL", "UNSUBSCRIBE", "CANCEL", "END", "QUIT", "СТОП"].contains(&word.as_str())
}
