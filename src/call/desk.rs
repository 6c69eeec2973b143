//! The desk between providers, store and calls: what becomes of a webhook, who is dialled and written to, and what an
//! agent's telephone tools do. A question (what to do with a call?) is answered from memory; an event is in the inbox
//! before it acts, and acts once.

use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use dashmap::DashMap;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use uuid::Uuid;

use crate::agent::dialling::{CompanySettings, Deed, Done, OutboundRefusal};
use crate::agent::memory::Memory;
use crate::agent::phrases::Phrases;
use crate::agent::prompt;
use crate::agent::tools::telephone::{Abilities, CallOrder, HistoryOrder, SmsOrder, Telephone};
use crate::agent::tools::{CallEffect, ToolContext, ToolError};
use crate::call::clients::Clients;
use crate::call::record;
use crate::call::registry::{CallSetup, Calls, Exchange, Refused};
use crate::call::thread;
use crate::clock;
use crate::providers;
use crate::providers::credentials::CredentialsFault;
use crate::providers::provider::{
    CallNews, CallOutcome, CallState, Dial, Event, HistoryQuery, IncomingMessage, OutgoingMessage, PastCall, Provider,
    Webhook,
};
use crate::providers::rest::ProviderError;
use crate::store::At;
use crate::store::calls::ProviderNews;
use crate::store::directory::{Directory, Integration, Line};
use crate::store::inbox::{NewEvent, Receipt};
use crate::store::messages::NewMessage;
use crate::store::{Store, StoreError};
use crate::telephony::{CallEnd, CallId, Direction, EndReason, Party, PhoneNumber};

/// An event must be in the inbox by then, or its provider is asked to come again.
const INBOX_LIMIT: Duration = Duration::from_secs(2);
/// A call that was dialled and has not been answered by then will not be.
const DIALLED_LIFE: Duration = Duration::from_secs(300);
/// Calls dialled at once that are waited for.
const MAX_DIALLED: usize = 10_000;
/// Messages of a thread that an agent remembers.
const THREAD_MEMORY: usize = 60;
/// Answers to one number in an hour: two machines that answer each other stop here.
const MAX_ANSWERS_AN_HOUR: u64 = 20;
/// Rings this long unless the line's provider gives up sooner.
const RING_S: u32 = 40;
/// What is looked up in every integration at once for an agent that waits on the line.
const HISTORY_LIMIT: Duration = Duration::from_secs(4);
/// Events that are done are known again for so long: Binotel repeats one for 38 hours.
const KEEP_EVENTS: jiff::SignedDuration = jiff::SignedDuration::from_hours(7 * 24);
/// Idempotency keys are kept for so long.
const KEEP_ANSWERS: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);
/// Matches what comes without a known id to a call (DESIGN §1).
const MATCH_WINDOW: Duration = Duration::from_secs(60);

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
    Say { text: String, language: String },
    Transfer { to: String, from: String },
}

/// The event could not be written down: its provider must come again.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    #[error("the store did not take the event: {0}")]
    Store(#[from] StoreError),
    #[error("the store did not take the event within {} s", INBOX_LIMIT.as_secs())]
    TooSlow,
}

/// Why a call or a message was not started. Every text is fit for the person, or the model, that asked.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    #[error(transparent)]
    Refused(#[from] OutboundRefusal),
    #[error("no integration of this company can {0}")]
    Unable(&'static str),
    #[error("there is no line {0:?} at an integration that can do this")]
    NoLine(String),
    #[error("there is no such agent")]
    NoAgent,
    #[error("the server takes no calls now: {0}")]
    NotReady(#[from] Refused),
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error("{0}")]
    Credentials(#[from] CredentialsFault),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("this server has no store to write it down")]
    NoStore,
    #[error("too many calls are being dialled")]
    TooMany,
}

/// A call to make for a company.
#[derive(Clone, Debug, Default)]
pub struct CallRequest {
    /// Only this integration, if given.
    pub integration: Option<Uuid>,
    /// Only this line (its number, SIP login or internal number), if given.
    pub line: Option<String>,
    pub to: PhoneNumber,
    pub greeting: Option<String>,
    pub purpose: Option<String>,
    /// Who talks; the line's own agent unless given.
    pub agent: Option<Uuid>,
}

/// A message to send for a company.
#[derive(Clone, Debug, Default)]
pub struct MessageRequest {
    pub integration: Option<Uuid>,
    pub from: Option<PhoneNumber>,
    pub to: PhoneNumber,
    pub text: String,
    /// An answer to somebody who wrote: quiet hours do not apply.
    pub answer: bool,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Desk {
    inner: Arc<Inner>,
}

struct Inner {
    calls: Calls,
    directory: Arc<ArcSwap<Directory>>,
    store: Option<Store>,
    clients: Clients,
    /// `https://voice.example.com`: where providers reach us.
    base: Box<dyn Fn(&str) -> String + Send + Sync>,
    /// Calls that we dialled and whose audio has not come.
    dialled: DashMap<CallId, (Instant, CallSetup)>,
    /// Calls that were answered lately, by integration and the provider's id: a question that is asked twice is about one
    /// call.
    asked: DashMap<(Uuid, String), (Instant, CallSetup)>,
    tasks: TaskTracker,
}

impl Desk {
    /// `url` makes an absolute address of a path. Calls get their telephone tools from this desk.
    pub fn new(
        calls: Calls,
        directory: Arc<ArcSwap<Directory>>,
        store: Option<Store>,
        url: impl Fn(&str) -> String + Send + Sync + 'static,
    ) -> Self {
        let inner = Arc::new(Inner {
            calls: calls.clone(),
            directory,
            store,
            clients: Clients::default(),
            base: Box::new(url),
            dialled: DashMap::new(),
            asked: DashMap::new(),
            tasks: TaskTracker::new(),
        });
        let exchange: Weak<dyn Exchange> = Arc::downgrade(&(inner.clone() as Arc<dyn Exchange>));
        calls.use_exchange(exchange);
        Self { inner }
    }

    pub fn directory(&self) -> Arc<Directory> {
        self.inner.directory.load_full()
    }

    pub fn client(&self, integration: &Integration) -> Result<Arc<dyn Provider>, CredentialsFault> {
        self.inner.clients.of(integration)
    }

    /// What an agent of this company can do.
    pub fn abilities(&self, company: Uuid) -> Abilities {
        self.inner.abilities(company)
    }

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
        // Only Twilio's audio comes to us from here; a PBX sends the call to one of its own lines, which is our SIP account.
        if integration.provider != "twilio" {
            if direction == Direction::Outbound {
                return Offer::AsItIs;
            }
            let mut lines: Vec<&Arc<Line>> =
                directory.lines().filter(|line| line.integration == integration.id).collect();
            lines.sort_by(|a, b| a.number.cmp(&b.number));
            let line = lines.iter().find(|line| line.number == ours).or(lines.first());
            return line.map_or(Offer::AsItIs, |line| Offer::Route(line.number.clone()));
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
        }))
    }

    /// What is to be done with a call whose stream is over: hand it to a person, explain a failure, or end it.
    pub fn after(&self, integration: &Integration, call: Option<CallId>) -> AfterCall {
        let Some(over) = call.and_then(|call| self.inner.calls.over(call)) else { return AfterCall::HangUp };
        if over.integration != integration.id {
            return AfterCall::HangUp;
        }
        if over.handover && !over.agent.transfer_to.is_empty() {
            return AfterCall::Transfer { to: over.agent.transfer_to.clone(), from: over.line };
        }
        match over.end.reason {
            EndReason::EngineFailed | EndReason::Panicked | EndReason::Drained => AfterCall::Say {
                text: Phrases::of(&over.agent.language).trouble.to_owned(),
                language: over.agent.language.clone(),
            },
            _ => AfterCall::HangUp,
        }
    }

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

    /// Dials. The record is in the store before the provider is asked.
    pub async fn call(&self, company: Uuid, request: CallRequest) -> Result<CallId, OutboundError> {
        self.inner.call(company, request).await
    }

    /// Sends a message; its id in the store.
    pub async fn message(&self, company: Uuid, request: MessageRequest) -> Result<Uuid, OutboundError> {
        self.inner.message(company, request).await
    }

    /// Ends a call: one that runs here by its task, another by its provider.
    pub async fn hang_up(&self, company: Uuid, call: CallId) -> Result<bool, OutboundError> {
        let inner = &self.inner;
        let store = inner.store.as_ref().ok_or(OutboundError::NoStore)?;
        let Some(record) = store.call(company, call).await? else { return Ok(false) };
        if let Some(handle) = inner.calls.find(call) {
            handle.hang_up();
            return Ok(true);
        }
        let directory = inner.directory.load_full();
        if let Some(integration) = directory.integration(record.integration_id)
            && !record.provider_call.is_empty()
            && record.ended.is_none()
        {
            inner.clients.of(integration)?.hang_up(&record.provider_call).await?;
        }
        Ok(true)
    }

    /// Waits for what is under way, as long as `limit`.
    pub async fn close(&self, limit: Duration) {
        self.inner.tasks.close();
        if timeout(limit, self.inner.tasks.wait()).await.is_err() {
            warn!("events were still acting; the next start lets them act again");
        }
    }
}

/// An integration that can do something, with its client.
struct Able {
    integration: Arc<Integration>,
    client: Arc<dyn Provider>,
}

impl Inner {
    fn abilities(&self, company: Uuid) -> Abilities {
        let mut abilities = Abilities::default();
        for integration in self.directory.load().integrations_of(company) {
            let Some(kind) = providers::kind(integration.provider) else { continue };
            abilities.call |= kind.capabilities.dial;
            abilities.message |= kind.capabilities.messages;
            abilities.history |= kind.capabilities.history;
        }
        abilities
    }

    /// The company's integrations that can do this, in the order in which they were made.
    fn able(
        &self,
        company: Uuid,
        only: Option<Uuid>,
        can: impl Fn(&providers::provider::Capabilities) -> bool,
    ) -> Vec<Able> {
        let directory = self.directory.load();
        let mut able: Vec<Able> = directory
            .integrations_of(company)
            .filter(|integration| only.is_none_or(|id| id == integration.id))
            .filter(|integration| providers::kind(integration.provider).is_some_and(|kind| can(&kind.capabilities)))
            .filter_map(|integration| {
                Some(Able { integration: integration.clone(), client: self.clients.of(integration).ok()? })
            })
            .collect();
        able.sort_by_key(|one| one.integration.id);
        able
    }

    /// The line that calls: the one that was asked for, else one of the same country, else the first.
    fn line_for(&self, able: &[Able], request: &CallRequest) -> Option<(usize, Arc<Line>)> {
        let directory = self.directory.load();
        let mut lines: Vec<(usize, Arc<Line>)> = Vec::new();
        for (index, one) in able.iter().enumerate() {
            let mut own: Vec<&Arc<Line>> =
                directory.lines().filter(|line| line.integration == one.integration.id).collect();
            own.sort_by(|a, b| a.number.cmp(&b.number));
            lines.extend(own.into_iter().map(|line| (index, line.clone())));
        }
        if let Some(wanted) = &request.line {
            return lines.into_iter().find(|(_, line)| line.number == *wanted);
        }
        let theirs = crate::agent::dialling::country(request.to.as_str());
        let near = lines
            .iter()
            .position(|(_, line)| theirs.is_some() && crate::agent::dialling::country(&line.number) == theirs);
        (!lines.is_empty()).then(|| lines.swap_remove(near.unwrap_or(0)))
    }

    async fn done(&self, store: &Store, company: Uuid, deed: Deed, to: &str) -> Result<Done, StoreError> {
        let since = clock::now() - jiff::SignedDuration::from_hours(1);
        Ok(match deed {
            Deed::Call => Done {
                all: store.calls_placed(company, None, since).await?,
                to_this_number: store.calls_placed(company, Some(to), since).await?,
            },
            Deed::Message => Done {
                all: store.messages_placed(company, None, since).await?,
                to_this_number: store.messages_placed(company, Some(to), since).await?,
            },
        })
    }

    async fn call(&self, company: Uuid, request: CallRequest) -> Result<CallId, OutboundError> {
        let store = self.store.as_ref().ok_or(OutboundError::NoStore)?;
        self.calls.ready()?;
        let able = self.able(company, request.integration, |can| can.dial);
        if able.is_empty() {
            return Err(OutboundError::Unable("make calls"));
        }
        let (index, line) = self
            .line_for(&able, &request)
            .ok_or_else(|| OutboundError::NoLine(request.line.clone().unwrap_or_default()))?;
        let Able { integration, client } = &able[index];
        let settings = self.directory.load().settings(company);
        let done = self.done(store, company, Deed::Call, request.to.as_str()).await?;
        let to = settings.check(Deed::Call, &request.to, &line.number, &clock::local_now(), done)?;
        if self.dialled.len() >= MAX_DIALLED {
            return Err(OutboundError::TooMany);
        }
        let (mut agent, agent_id, agent_version) = match request.agent {
            None => ((*line.agent).clone(), line.agent_id, line.agent_version),
            Some(id) => {
                let other = store.agent(company, id).await?.ok_or(OutboundError::NoAgent)?;
                (other.profile.0, id, other.version)
            }
        };
        if let Some(greeting) = &request.greeting {
            agent.greeting.clone_from(greeting);
        }
        let (detect_machine, max_call_s) = (agent.detect_machine, self.calls.longest_call_s(&agent));
        let id = CallId::new();
        let setup = CallSetup {
            id,
            direction: Direction::Outbound,
            company: integration.company.clone(),
            company_id: company,
            integration: integration.id,
            provider: integration.provider,
            provider_call: String::new(),
            line: line.number.clone(),
            from: PhoneNumber::new(line.number.clone()),
            to: to.clone(),
            agent: Arc::new(agent),
            agent_id: Some(agent_id),
            agent_version: Some(agent_version),
            purpose: request.purpose.clone(),
        };
        store.put_call(&record::offered(&setup)).await?;
        self.dialled.insert(id, (Instant::now(), setup.clone()));
        let path = |route: &str| format!("/webhooks/{}/{}/{route}?call={id}", integration.provider, integration.id);
        let dial = Dial {
            line: line.number.clone(),
            to: to.clone(),
            answer_url: (self.base)(&path("voice")),
            status_url: (self.base)(&path("status")),
            detect_machine,
            ring_s: RING_S,
            max_call_s,
        };
        match client.dial(&dial).await {
            Ok(dialled) => {
                info!(call = %id, %to, provider = integration.provider, "dialled");
                if let Some(provider_call) = dialled.provider_call {
                    // The webhook may have come first and named it already.
                    if let Err(error) = store.add_alias(company, integration.id, &provider_call, id).await {
                        warn!(call = %id, %error, "the provider's id of a call could not be noted");
                    }
                }
                Ok(id)
            }
            Err(error) => {
                warn!(call = %id, %to, %error, "dialling failed");
                // A call that may ring all the same is left open: its webhooks close it, or the next look at the log.
                if !matches!(error, ProviderError::Unreachable { maybe_done: true, .. }) {
                    self.dialled.remove(&id);
                    let mut failed = record::offered(&setup);
                    failed.faults.push(error.to_string());
                    failed.close(clock::now(), CallEnd::new(Party::Carrier, EndReason::NeverConnected));
                    store.put_call(&failed).await?;
                }
                Err(error.into())
            }
        }
    }

    async fn message(&self, company: Uuid, request: MessageRequest) -> Result<Uuid, OutboundError> {
        let store = self.store.as_ref().ok_or(OutboundError::NoStore)?;
        let able = self.able(company, request.integration, |can| can.messages);
        let Some(Able { integration, client }) = able.first() else {
            return Err(OutboundError::Unable("send messages"));
        };
        let directory = self.directory.load_full();
        let mut lines: Vec<&Arc<Line>> = directory.lines().filter(|line| line.integration == integration.id).collect();
        lines.sort_by(|a, b| a.number.cmp(&b.number));
        let from = request.from.clone();
        // The provider's client picks a sender of the receiver's country: that country's rule is the line's own.
        let theirs = crate::agent::dialling::country(request.to.as_str());
        let near = |line: &&&Arc<Line>| theirs.is_some() && crate::agent::dialling::country(&line.number) == theirs;
        let line = lines.iter().find(near).or(lines.first()).map(|line| line.number.as_str());
        let line = from.as_ref().map(PhoneNumber::as_str).or(line);
        let mut settings = CompanySettings::clone(&directory.settings(company));
        if request.answer {
            settings.quiet_hours = None;
        }
        let done = self.done(store, company, Deed::Message, request.to.as_str()).await?;
        let to = settings.check(Deed::Message, &request.to, line.unwrap_or_default(), &clock::local_now(), done)?;
        let known_line = PhoneNumber::new(line.unwrap_or_default());
        let new = NewMessage {
            company,
            integration: integration.id,
            direction: Direction::Outbound,
            line: &known_line,
            peer: &to,
            text: &request.text,
            media: &[],
            provider_message: None,
            status: "queued",
        };
        let id = store.add_message(new).await?.ok_or(OutboundError::TooMany)?;
        let status_url = (self.base)(&format!("/webhooks/{}/{}/status", integration.provider, integration.id));
        let out = OutgoingMessage { from, to: to.clone(), text: request.text, status_url };
        match client.send_message(&out).await {
            Ok(sent) => {
                store.note_sent(company, id, Some(&sent.provider_message), &sent.from, &sent.status, None).await?;
                Ok(id)
            }
            Err(error) => {
                warn!(message = %id, %to, %error, "a message was not sent");
                let text = error.to_string();
                store.note_sent(company, id, None, &known_line, "failed", Some(&text)).await?;
                Err(error.into())
            }
        }
    }

    /// Past calls of all integrations, newest first. One that does not answer is left out, and named.
    async fn history(&self, company: Uuid, query: &HistoryQuery) -> (Vec<PastCall>, Vec<String>) {
        let able = self.able(company, None, |can| can.history);
        let asked = able.iter().map(|one| timeout(HISTORY_LIMIT, one.client.history(query)));
        let (mut calls, mut silent) = (Vec::new(), Vec::new());
        for (one, answer) in able.iter().zip(join_all(asked).await) {
            match answer {
                Ok(Ok(page)) => calls.extend(page.calls),
                Ok(Err(error)) => silent.push(format!("{}: {error}", one.integration.name)),
                Err(_) => silent.push(format!("{}: no answer in time", one.integration.name)),
            }
        }
        calls.sort_by_key(|call| std::cmp::Reverse(call.started));
        calls.truncate(query.limit);
        (calls, silent)
    }

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
                store.note_message_status(company, id, &provider_message, &status, error.as_deref()).await?;
                Ok(())
            }
            Event::StreamStatus { provider_call, event, failure } => {
                if let Some(failure) = failure {
                    warn!(integration = %integration.id, provider_call, event, failure, "the provider reports a stream error");
                }
                Ok(())
            }
            Event::CallOffered(_) | Event::CallContinues(_) | Event::Ignored { .. } => Ok(()),
        }
    }

    /// The call that news are about: by the provider's id, else by line and number within a minute; a call that is
    /// known by neither is written down as one that the company's people talk on.
    async fn call_of(
        &self,
        store: &Store,
        integration: &Integration,
        news: &CallNews,
        line: Option<&str>,
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
        let since = clock::now() - jiff::SignedDuration::try_from(MATCH_WINDOW).unwrap_or_default();
        let line = line.or(news.line.as_deref());
        let mut found = None;
        // A callback's news may come before anybody knows which line it rings.
        if (line.is_some() || news.direction == Some(Direction::Outbound)) && !peer.as_str().is_empty() {
            found = store.recent_call(company, id, line, peer.as_str(), since).await?;
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
        let known = self.call_of(store, integration, news, None).await?;
        let call = match known {
            Some(call) => call,
            None => {
                let Some(provider_call) = news.provider_call.clone() else { return Ok(()) };
                let call = CallId::new();
                store.put_call(&self.foreign(integration, call, news, provider_call.clone())).await?;
                store.add_alias(company, integration.id, &provider_call, call).await?;
                call
            }
        };
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
        store.note_provider(company, call, &told).await?;
        Ok(())
    }

    async fn completed(
        &self,
        store: &Store,
        integration: &Arc<Integration>,
        past: &PastCall,
    ) -> Result<(), OutboundError> {
        let company = integration.company_id;
        let news = CallNews {
            provider_call: Some(past.provider_call.clone()),
            direction: Some(past.direction),
            from: past.from.clone(),
            to: past.to.clone(),
            line: past.answered_by.clone(),
            at: past.started,
            ..CallNews::default()
        };
        let call = match self.call_of(store, integration, &news, past.answered_by.as_deref()).await? {
            Some(call) => call,
            None => {
                let call = CallId::new();
                store.put_call(&self.foreign(integration, call, &news, past.provider_call.clone())).await?;
                store.add_alias(company, integration.id, &past.provider_call, call).await?;
                call
            }
        };
        let over = past.outcome != CallOutcome::Running;
        let told = ProviderNews {
            status: Some(past.status.clone()),
            talk_s: past.talk_s,
            answered_by: past.answered_by.clone(),
            ended: over.then(|| (At(ended_at(past)), past.outcome)),
        };
        store.note_provider(company, call, &told).await?;
        Ok(())
    }

    /// A call that is known from its provider only.
    fn foreign(
        &self,
        integration: &Integration,
        id: CallId,
        news: &CallNews,
        provider_call: String,
    ) -> crate::store::calls::CallRecord {
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
            provider_call,
            line: line.clone(),
            from: news.from.clone(),
            to: news.to.clone(),
            agent: agent.map(|line| line.agent.clone()).unwrap_or_default(),
            agent_id: agent.map(|line| line.agent_id),
            agent_version: agent.map(|line| line.agent_version),
            purpose: None,
        };
        let mut record = record::offered(&setup);
        record.started = news.at.unwrap_or(record.started);
        record
    }

    /// A message for one of our lines: written down once, and answered by the line's agent.
    async fn received(
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
            purpose: String::new(),
            local_time: clock::spoken(clock::now()),
        };
        let mut memory = Memory::new(prompt::writing_prompt(&line.agent, &facts));
        for one in &past {
            match one.direction {
                Direction::Inbound => memory.user_said(&one.text),
                Direction::Outbound => memory.agent_said(&one.text),
            }
        }
        let (model, tools, settings) = self.calls.writer(&line.agent, company)?;
        // A thread has no call; its tools are counted against an id of their own.
        let context = ToolContext { call: CallId::new(), caller: message.from.clone(), line: message.to.clone() };
        let written = thread::answer(model, &line.agent.llm, &tools, context, &memory, &settings).await?;
        for effect in &written.effects {
            if let CallEffect::Remember { key, value } = effect {
                let detail = json!({ "key": key, "value": value, "from": message.from.as_str() });
                store.audit(Some(company), "agent", "remember", &line.agent.name, &detail).await?;
            }
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
        self.message(company, answer).await?;
        Ok(())
    }
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

/// When a call ended that its provider tells of afterwards.
fn ended_at(past: &PastCall) -> jiff::Timestamp {
    let seconds = i64::from(past.ring_s.unwrap_or(0)) + i64::from(past.talk_s.unwrap_or(0));
    let ended = past.started.map(|started| started + jiff::SignedDuration::from_secs(seconds));
    ended.unwrap_or_else(clock::now)
}

/// The words that end a thread; the carrier acts on them itself.
fn is_stop(text: &str) -> bool {
    let word = text.trim().trim_end_matches(['.', '!']).to_uppercase();
    ["STOP", "STOPALL", "UNSUBSCRIBE", "CANCEL", "END", "QUIT", "СТОП"].contains(&word.as_str())
}

impl Exchange for Inner {
    fn telephone(self: Arc<Self>, company: Uuid) -> Option<Arc<dyn Telephone>> {
        self.store.is_some().then(|| Arc::new(CompanyTelephone { desk: self, company }) as Arc<dyn Telephone>)
    }
}

/// A company's telephone, in an agent's hands.
struct CompanyTelephone {
    desk: Arc<Inner>,
    company: Uuid,
}

impl Telephone for CompanyTelephone {
    fn abilities(&self) -> Abilities {
        self.desk.abilities(self.company)
    }

    fn make_call(&self, cx: ToolContext, order: CallOrder) -> BoxFuture<'static, Result<Value, ToolError>> {
        let (desk, company) = (self.desk.clone(), self.company);
        async move {
            let request = CallRequest {
                to: order.to,
                greeting: order.greeting,
                purpose: order.purpose,
                ..CallRequest::default()
            };
            let done = desk.call(company, request).await;
            desk.note_use(company, &cx, "make_call", done.as_ref().map(ToString::to_string)).await;
            Ok(json!({ "status": "dialling", "call": done.map_err(spoken)?.to_string() }))
        }
        .boxed()
    }

    fn send_sms(&self, cx: ToolContext, order: SmsOrder) -> BoxFuture<'static, Result<Value, ToolError>> {
        let (desk, company) = (self.desk.clone(), self.company);
        async move {
            let request = MessageRequest { to: order.to, text: order.text, ..MessageRequest::default() };
            let done = desk.message(company, request).await;
            desk.note_use(company, &cx, "send_sms", done.as_ref().map(ToString::to_string)).await;
            Ok(json!({ "status": "sent", "message": done.map_err(spoken)?.to_string() }))
        }
        .boxed()
    }

    fn call_history(&self, _cx: ToolContext, order: HistoryOrder) -> BoxFuture<'static, Result<Value, ToolError>> {
        let (desk, company) = (self.desk.clone(), self.company);
        async move {
            let status =
                order.status.as_deref().and_then(|label| CallOutcome::ALL.into_iter().find(|one| one.label() == label));
            let query = HistoryQuery {
                phone: order.phone,
                status,
                from: order.from,
                to: order.to,
                limit: order.limit,
                cursor: None,
            };
            let (calls, silent) = desk.history(company, &query).await;
            if calls.is_empty() && !silent.is_empty() {
                return Err(ToolError::Failed(silent.join("; ")));
            }
            Ok(json!({ "calls": calls, "not_answering": silent }))
        }
        .boxed()
    }
}

impl Inner {
    /// Every use of a tool that acts is in the audit log, done or refused.
    async fn note_use(&self, company: Uuid, cx: &ToolContext, tool: &str, done: Result<String, &OutboundError>) {
        let Some(store) = &self.store else { return };
        let detail = match done {
            Ok(made) => json!({ "call": cx.call.to_string(), "made": made }),
            Err(error) => json!({ "call": cx.call.to_string(), "refused": error.to_string() }),
        };
        if let Err(error) = store.audit(Some(company), "agent", tool, &cx.call.to_string(), &detail).await {
            warn!(tool, %error, "the use of a tool could not be noted");
        }
    }
}

/// What a model is told of a failure: what it can say, and nothing of credentials.
fn spoken(error: OutboundError) -> ToolError {
    match error {
        OutboundError::Refused(refusal @ (OutboundRefusal::NotE164(_) | OutboundRefusal::Ourselves)) => {
            ToolError::Arguments(refusal.to_string())
        }
        OutboundError::Store(_) | OutboundError::Credentials(_) | OutboundError::NoStore => {
            ToolError::Failed("the system could not do it now; tell the caller that it did not work".into())
        }
        other => ToolError::Failed(other.to_string()),
    }
}
