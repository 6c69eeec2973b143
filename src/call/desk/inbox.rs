//! What a provider tells: an event is in the inbox before it acts, acts once, and is tried again if it could not.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio::time::{Instant, timeout};
use tracing::warn;
use uuid::Uuid;

use super::{DIALLED_LIFE, Desk, Inner, OutboundError};
use crate::agent::variables::{Fields, Vars};
use crate::call::record;
use crate::call::registry::CallSetup;
use crate::clock;
use crate::providers::provider::{CallNews, CallOutcome, CallState, Event, PastCall, Webhook};
use crate::store::At;
use crate::store::calls::{CallRecord, ProviderNews};
use crate::store::directory::Integration;
use crate::store::inbox::{NewEvent, Receipt};
use crate::store::{Store, StoreError};
use crate::telephony::{CallId, Direction};

/// An event must be in the inbox by then, or its provider is asked to come again.
const INBOX_LIMIT: Duration = Duration::from_secs(2);
/// Events that are done are known again for so long: Binotel repeats one for 38 hours.
const KEEP_EVENTS: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Idempotency keys are kept for so long.
const KEEP_ANSWERS: SignedDuration = SignedDuration::from_hours(24);
/// Matches what comes without a known id to a call (DESIGN §1).
const MATCH_WINDOW: SignedDuration = SignedDuration::from_secs(60);
/// No call is longer: one that nothing was heard of for so long is over.
const LONGEST_SILENCE: SignedDuration = SignedDuration::from_hours(12);

/// The event could not be written down: its provider must come again.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    #[error("the store did not take the event: {0}")]
    Store(#[from] StoreError),
    #[error("the store did not take the event within {} s", INBOX_LIMIT.as_secs())]
    TooSlow,
}

impl Desk {
    /// Writes an event down, then lets it act. Returns when it is on disk: the provider may forget it.
    pub async fn take(
        &self,
        integration: &Arc<Integration>,
        route: &str,
        url: &str,
        webhook: &Webhook,
    ) -> Result<(), NotTaken> {
        if matches!(webhook.event, Event::Ignored { .. }) {
            return Ok(());
        }
        // A server without a store (the demo) keeps nothing that an event could change.
        let Some(store) = self.inner.store.clone() else { return Ok(()) };
        // Before it is thanked for: the call's INVITE may come at once.
        if let Event::CallProgressed { news, state } = &webhook.event {
            self.inner.announce(integration, news, state);
        }
        let (inner, integration, webhook) = (self.inner.clone(), integration.clone(), webhook.clone());
        let (route, url) = (route.to_owned(), url.to_owned());
        // On its own: a write that is given up here may reach the disk all the same, and what is there must act.
        let taking = self.inner.tasks.spawn(async move {
            let body = serde_json::to_vec(&webhook.event).unwrap_or_default();
            let new = NewEvent {
                company: integration.company_id,
                integration: integration.id,
                once: webhook.once.as_deref(),
                route: &route,
                method: "EVENT",
                url: &url,
                content_type: Some("application/json"),
                body: &body,
            };
            if let Receipt::Taken(id) = store.receive(new).await? {
                let tasks = inner.tasks.clone();
                tasks.spawn(async move { inner.act(id, &integration, webhook.event).await });
            }
            Ok(())
        });
        match timeout(INBOX_LIMIT, taking).await {
            Ok(Ok(taken)) => taken,
            Ok(Err(_)) | Err(_) => Err(NotTaken::TooSlow),
        }
    }

    /// Lets events act that failed before or whose process died; called from time to time. Gives how many there were.
    pub async fn catch_up(&self) -> usize {
        let inner = &self.inner;
        inner.clients.retain(&inner.directory.load());
        let now = Instant::now();
        inner.dialled.retain(|_, (since, _)| now.duration_since(*since) < DIALLED_LIFE);
        inner.asked.retain(|_, (since, _)| now.duration_since(*since) < DIALLED_LIFE);
        inner.told.retain(|_, told| told.is_fresh(now));
        let Some(store) = &inner.store else { return 0 };
        let due = match timeout(INBOX_LIMIT, store.take_due(64)).await {
            Ok(Ok(due)) => due,
            _ => return 0,
        };
        let count = due.len();
        for row in due {
            let directory = inner.directory.load();
            let integration = directory.integration(row.integration_id);
            match (integration, serde_json::from_slice::<Event>(&row.body)) {
                (Some(integration), Ok(event)) => inner.act(row.id, integration, event).await,
                // What nobody can read, or nobody owns any more, has no effect to have.
                _ => drop(store.done(row.id).await),
            }
        }
        count
    }

    /// Drops what no provider and no client will ask for again; called about once an hour.
    pub async fn forget(&self) {
        let Some(store) = &self.inner.store else { return };
        let (events, answers) = (At(clock::now() - KEEP_EVENTS), At(clock::now() - KEEP_ANSWERS));
        for gone in [store.forget_events(events).await, store.forget_answers(answers).await] {
            if let Err(error) = gone {
                warn!(%error, "old rows could not be dropped; they are tried again");
            }
        }
        match store.close_silent(clock::now() - LONGEST_SILENCE).await {
            Ok(0) => {}
            Ok(calls) => warn!(calls, "closed calls whose provider never told of their end"),
            Err(error) => warn!(%error, "silent calls could not be closed; they are tried again"),
        }
    }

    /// Notes a refusal for the company that it concerns.
    pub fn note_refusal(&self, integration: &Integration, why: &'static str, client: Option<std::net::IpAddr>) {
        let Some(store) = self.inner.store.clone() else { return };
        let (company, id) = (integration.company_id, integration.id);
        self.inner.tasks.spawn(async move {
            let detail = json!({ "reason": why, "client": client.map(|ip| ip.to_string()) });
            let noted =
                timeout(INBOX_LIMIT, store.audit(Some(company), "webhook", "refused", &id.to_string(), &detail)).await;
            if !matches!(noted, Ok(Ok(_))) {
                warn!(integration = %id, "a refused webhook could not be noted");
            }
        });
    }
}

impl Inner {
    /// Lets one event act and says so in the inbox.
    async fn act(&self, id: Uuid, integration: &Arc<Integration>, event: Event) {
        let Some(store) = &self.store else { return };
        let acted = self.effect(store, integration, event).await;
        let noted = match &acted {
            Ok(()) => store.done(id).await,
            Err(error) => {
                warn!(event = %id, integration = %integration.id, %error, "an event could not act; it is tried again");
                store.failed(id, &error.to_string()).await
            }
        };
        if let Err(error) = noted {
            warn!(event = %id, %error, "the inbox could not be updated; the event may act again");
        }
    }

    async fn effect(&self, store: &Store, integration: &Arc<Integration>, event: Event) -> Result<(), OutboundError> {
        match event {
            Event::CallProgressed { news, state } => self.progressed(store, integration, &news, state).await,
            Event::CallCompleted(past) => self.completed(store, integration, &past).await,
            Event::MessageReceived(message) => self.received(store, integration, message).await,
            Event::MessageStatus { provider_message, status, error } => {
                let (company, id) = (integration.company_id, integration.id);
                let known =
                    store.note_message_status(company, id, &provider_message, &status, error.as_deref()).await?;
                // It may be told before the provider's answer to our request is written down: tried again.
                if known { Ok(()) } else { Err(OutboundError::NoMessage) }
            }
            Event::StreamStatus { provider_call, event, failure } => {
                if let Some(failure) = failure {
                    warn!(integration = %integration.id, provider_call, event, failure, "the provider reports a stream error");
                }
                Ok(())
            }
            Event::CallOffered(_)
            | Event::CallContinues(_)
            | Event::PersonAnswers(_)
            | Event::TransferOver { .. }
            | Event::Ignored { .. } => Ok(()),
        }
    }

    /// The call that news are about: by the provider's id, else by line and number within a minute of `around`.
    async fn call_of(
        &self,
        store: &Store,
        integration: &Integration,
        news: &CallNews,
        around: Timestamp,
    ) -> Result<Option<CallId>, StoreError> {
        let (company, id) = (integration.company_id, integration.id);
        if let Some(provider_call) = &news.provider_call
            && let Some(call) = store.call_by_alias(company, id, provider_call).await?
        {
            return Ok(Some(call));
        }
        let peer = match news.direction {
            Some(Direction::Outbound) => &news.to,
            _ => &news.from,
        };
        let line = news.line.as_deref();
        let mut found = None;
        // A callback's news may come before anybody knows which line it rings.
        if (line.is_some() || news.direction == Some(Direction::Outbound)) && !peer.as_str().is_empty() {
            found = store.recent_call(company, id, line, peer.as_str(), around, MATCH_WINDOW).await?;
        }
        if let (Some(call), Some(provider_call)) = (found, &news.provider_call) {
            store.add_alias(company, id, provider_call, call).await?;
        }
        Ok(found)
    }

    async fn progressed(
        &self,
        store: &Store,
        integration: &Arc<Integration>,
        news: &CallNews,
        state: CallState,
    ) -> Result<(), OutboundError> {
        let company = integration.company_id;
        let known = self.call_of(store, integration, news, clock::now()).await?;
        let announced = self.announced(integration, news);
        let call = match (known, &news.provider_call, announced) {
            (Some(call), ..) => call,
            (None, None, _) => return Ok(()),
            // Its INVITE has come: the record is the call's own to write.
            (None, Some(_), Some((call, true))) => call,
            (None, Some(provider_call), announced) => {
                let id = announced.map_or_else(CallId::new, |(call, _)| call);
                store.adopt_call(&self.foreign(integration, news, provider_call, id)).await?
            }
        };
        self.remember_told(integration, call, news, &state);
        let at = At(news.at.unwrap_or_else(clock::now));
        let told = match state {
            CallState::Ringing => ProviderNews { status: Some("ringing".into()), ..ProviderNews::default() },
            CallState::Answered { by } => ProviderNews {
                status: Some("answered".into()),
                answered_by: by.or(news.answered_by.clone()),
                ..ProviderNews::default()
            },
            CallState::Transferred { to } => {
                ProviderNews { status: Some("transferred".into()), answered_by: Some(to), ..ProviderNews::default() }
            }
            CallState::Ended { outcome, status, talk_s } => {
                self.dialled.remove(&call);
                ProviderNews { status: Some(status), talk_s, ended: Some((at, outcome)), ..ProviderNews::default() }
            }
        };
        let noted = store.note_provider(company, call, &told).await?;
        // A call that has just begun may not have its record yet: tried again.
        if noted || known.is_some() { Ok(()) } else { Err(OutboundError::NotWritten) }
    }

    async fn completed(&self, store: &Store, integration: &Integration, past: &PastCall) -> Result<(), OutboundError> {
        let call = self.call_in_log(store, integration, past).await?;
        store.note_provider(integration.company_id, call, &told(past)).await?;
        Ok(())
    }

    /// The record of a call of the provider's log; made where there was none.
    pub(super) async fn call_in_log(
        &self,
        store: &Store,
        integration: &Integration,
        past: &PastCall,
    ) -> Result<CallId, StoreError> {
        let news = CallNews {
            provider_call: Some(past.provider_call.clone()),
            direction: Some(past.direction),
            from: past.from.clone(),
            to: past.to.clone(),
            line: past.answered_by.clone(),
            at: past.started,
            ..CallNews::default()
        };
        let around = past.started.unwrap_or_else(clock::now);
        match self.call_of(store, integration, &news, around).await? {
            Some(call) => Ok(call),
            None => {
                let record = self.foreign(integration, &news, &past.provider_call, CallId::new());
                store.adopt_call(&record).await
            }
        }
    }

    /// A call that is known from its provider only.
    fn foreign(&self, integration: &Integration, news: &CallNews, provider_call: &str, id: CallId) -> CallRecord {
        let directory = self.directory.load();
        let line = news.line.clone().unwrap_or_default();
        let agent = directory.line(integration.id, &line);
        let setup = CallSetup {
            id,
            direction: news.direction.unwrap_or(Direction::Inbound),
            company: integration.company.clone(),
            company_id: integration.company_id,
            integration: integration.id,
            provider: integration.provider,
            provider_call: provider_call.to_owned(),
            line: line.clone(),
            from: news.from.clone(),
            to: news.to.clone(),
            agent: agent.map(|line| line.agent.clone()).unwrap_or_default(),
            agent_id: agent.map(|line| line.agent_id),
            agent_version: agent.map(|line| line.agent_version),
            purpose: None,
            vars: Vars::default(),
            fields: Fields::default(),
        };
        let mut record = record::offered(&setup);
        record.started = news.at.unwrap_or(record.started);
        record
    }
}

/// What a row of the log says of a call.
pub(super) fn told(past: &PastCall) -> ProviderNews {
    let over = past.outcome != CallOutcome::Running;
    ProviderNews {
        status: Some(past.status.clone()),
        talk_s: past.talk_s,
        answered_by: past.answered_by.clone(),
        ended: over.then(|| (At(ended_at(past)), past.outcome)),
    }
}

/// When a call ended that its provider tells of afterwards.
fn ended_at(past: &PastCall) -> Timestamp {
    let seconds = i64::from(past.ring_s.unwrap_or(0)) + i64::from(past.talk_s.unwrap_or(0));
    let ended = past.started.map(|started| started + SignedDuration::from_secs(seconds));
    ended.unwrap_or_else(clock::now)
}
