//! What goes out: calls that are dialled and messages that are sent for a company, within its rules, and the history of
//! both as its providers tell it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};
use uuid::Uuid;

use super::{Able, Inner, MAX_DIALLED};
use crate::agent::dialling::{self, CompanySettings, Deed, Done, OutboundRefusal};
use crate::agent::variables::{Fields, Vars};
use crate::call::record;
use crate::call::registry::{CallSetup, Refused};
use crate::clock;
use crate::providers::credentials::CredentialsFault;
use crate::providers::provider::{Dial, HistoryQuery, OutgoingMessage, PastCall};
use crate::providers::rest::ProviderError;
use crate::providers::sip;
use crate::store::directory::{Integration, Line};
use crate::store::messages::NewMessage;
use crate::store::{Store, StoreError};
use crate::telephony::{CallEnd, CallId, Direction, EndReason, Party, PhoneNumber};

/// Rings this long unless the line's provider gives up sooner.
const RING_S: u32 = 40;
/// What is looked up in every integration at once for an agent that waits on the line.
const HISTORY_LIMIT: Duration = Duration::from_secs(4);

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
    #[error("there is no such message")]
    NoMessage,
    #[error("the call's record is not written yet")]
    NotWritten,
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
    /// Facts for whoever talks.
    pub vars: Vars,
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

impl Inner {
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
        let theirs = dialling::country(request.to.as_str());
        let near = lines.iter().position(|(_, line)| theirs.is_some() && dialling::country(&line.number) == theirs);
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

    pub(super) async fn call(&self, company: Uuid, request: CallRequest) -> Result<CallId, OutboundError> {
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
        let to = dialling::complete(&request.to, &line.number);
        let done = self.done(store, company, Deed::Call, to.as_str()).await?;
        let to = settings.check(Deed::Call, &to, &line.number, &clock::local_now(), done)?;
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
            vars: request.vars.clone(),
            fields: Fields::default(),
        };
        store.put_call(&record::offered(&setup)).await?;
        let dialled = match sip::dials(integration.provider, &integration.credentials) {
            true => self.dial_by_sip(integration, &setup).await.map(|()| None),
            false => {
                self.dialled.insert(id, (Instant::now(), setup.clone()));
                let path =
                    |route: &str| format!("/webhooks/{}/{}/{route}?call={id}", integration.provider, integration.id);
                let dial = Dial {
                    line: line.number.clone(),
                    to: to.clone(),
                    answer_url: (self.base)(&path("voice")),
                    status_url: (self.base)(&path("status")),
                    detect_machine,
                    ring_s: RING_S,
                    max_call_s,
                };
                client.dial(&dial).await.map(|dialled| dialled.provider_call).map_err(OutboundError::from)
            }
        };
        match dialled {
            Ok(provider_call) => {
                info!(call = %id, %to, provider = integration.provider, "dialled");
                if let Some(provider_call) = provider_call {
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
                if !matches!(&error, OutboundError::Provider(error) if error.maybe_done()) {
                    self.dialled.remove(&id);
                    let mut failed = record::offered(&setup);
                    failed.faults.push(error.to_string());
                    failed.close(clock::now(), CallEnd::new(Party::Carrier, EndReason::NeverConnected));
                    store.put_call(&failed).await?;
                }
                Err(error)
            }
        }
    }

    async fn dial_by_sip(&self, integration: &Arc<Integration>, setup: &CallSetup) -> Result<(), OutboundError> {
        let dialler = self.sip.get().and_then(Weak::upgrade).ok_or(OutboundError::Unable("make calls by SIP"))?;
        dialler.dial(integration.clone(), setup.clone(), Duration::from_secs(u64::from(RING_S))).await
    }

    pub(super) async fn message(&self, company: Uuid, request: MessageRequest) -> Result<Uuid, OutboundError> {
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
        let home = from.as_ref().map(PhoneNumber::as_str).or(lines.first().map(|line| line.number.as_str()));
        let to = dialling::complete(&request.to, home.unwrap_or_default());
        let theirs = dialling::country(to.as_str());
        let near = lines.iter().find(|line| theirs.is_some() && dialling::country(&line.number) == theirs);
        let line = near.or(lines.first()).map(|line| line.number.as_str());
        let line = from.as_ref().map(PhoneNumber::as_str).or(line);
        let mut settings = CompanySettings::clone(&directory.settings(company));
        if request.answer {
            settings.quiet_hours = None;
        }
        let done = self.done(store, company, Deed::Message, to.as_str()).await?;
        let to = settings.check(Deed::Message, &to, line.unwrap_or_default(), &clock::local_now(), done)?;
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
                let status = if error.maybe_done() { "unknown" } else { "failed" };
                store.note_sent(company, id, None, &known_line, status, Some(&text)).await?;
                Err(error.into())
            }
        }
    }

    /// Past calls of all integrations, newest first. One that does not answer is left out, and named.
    pub(super) async fn history(&self, company: Uuid, query: &HistoryQuery) -> (Vec<PastCall>, Vec<String>) {
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
}
