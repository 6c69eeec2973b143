//! A call that reaches us by SIP: whose line it is for, and whether it is one that we asked for or were told of. Answered
//! from memory; what comes by webhook afterwards is matched in `inbox`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use super::{Desk, Inner, MAX_DIALLED, Offer};
use crate::agent::variables::{Fields, Vars};
use crate::call::registry::CallSetup;
use crate::providers;
use crate::providers::provider::{CallNews, CallState};
use crate::store::directory::{Integration, Line};
use crate::telephony::{CallId, Direction, PhoneNumber};

/// An INVITE and what tells of it are this far apart at most (DESIGN §1).
pub(super) const MATCH_WINDOW: Duration = Duration::from_secs(60);
/// Fewer equal digits at the end are a coincidence: extensions have three or four.
const SAME_DIGITS: usize = 7;

/// An INVITE that was let in.
#[derive(Clone, Debug, Default)]
pub struct Invite {
    /// `Call-ID`.
    pub sip_call: String,
    /// User part of `P-Asserted-Identity` or `From`, as the peer wrote it; empty where it is hidden.
    pub from: String,
    /// Whom it asks for, best first: user parts of the request URI and of `To`, and the account that it came to.
    pub called: Vec<String>,
    /// Its `X-` header fields.
    pub fields: Fields,
}

/// A call that webhooks told of and whose audio has not come.
#[derive(Clone, Debug)]
pub(super) struct Told {
    since: Instant,
    news: CallNews,
    integration: Uuid,
    /// Its INVITE has come.
    taken: bool,
}

impl Told {
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        now.duration_since(self.since) < MATCH_WINDOW
    }
}

impl Desk {
    /// What is to be done with a call that a peer of this integration offers by SIP.
    pub fn invited(&self, integration: &Arc<Integration>, invite: &Invite) -> Offer {
        let inner = &self.inner;
        let Some(line) = inner.line_called(integration, &invite.called) else { return Offer::NotInService };
        if let Err(refused) = inner.calls.ready() {
            return Offer::Busy(refused);
        }
        let peer = match inner.clients.of(integration) {
            Ok(client) => client.number(&invite.from),
            Err(_) => PhoneNumber::new(invite.from.clone()),
        };
        if let Some(mut setup) = inner.take_dialled(integration, &line, &peer) {
            if let Some(told) = inner.told.get(&setup.id) {
                setup.fields.extend(told.news.fields.clone());
            }
            setup.fields.extend(invite.fields.clone());
            return Offer::Talk(Box::new(setup));
        }
        let told = inner.take_told(integration, &line, &peer);
        let (id, news) = told.unwrap_or_else(|| (CallId::new(), CallNews::default()));
        let direction = news.direction.unwrap_or(Direction::Inbound);
        let mut fields = news.fields;
        fields.extend(invite.fields.clone());
        let or = |told: PhoneNumber, seen: PhoneNumber| if told.as_str().is_empty() { seen } else { told };
        Offer::Talk(Box::new(CallSetup {
            id,
            direction,
            company: integration.company.clone(),
            company_id: integration.company_id,
            integration: integration.id,
            provider: integration.provider,
            provider_call: news.provider_call.unwrap_or_default(),
            line: line.number.clone(),
            from: or(news.from, peer),
            to: or(news.to, PhoneNumber::new(line.number.clone())),
            agent: line.agent.clone(),
            agent_id: Some(line.agent_id),
            agent_version: Some(line.agent_version),
            purpose: None,
            vars: Vars::default(),
            fields,
        }))
    }

    /// Notes the name that SIP has for a call whose record is written.
    pub fn note_sip_call(&self, setup: &CallSetup, sip_call: &str) {
        let Some(store) = self.inner.store.clone() else { return };
        let (company, integration, call, name) =
            (setup.company_id, setup.integration, setup.id, format!("sip:{sip_call}"));
        self.inner.tasks.spawn(async move {
            if let Err(error) = store.add_name(company, integration, &name, call).await {
                warn!(%call, %error, "the SIP Call-ID of a call could not be noted");
            }
        });
    }
}

impl Inner {
    /// The line that is asked for; an integration with a single line has no other.
    fn line_called(&self, integration: &Integration, called: &[String]) -> Option<Arc<Line>> {
        let directory = self.directory.load();
        let lines: Vec<&Arc<Line>> = directory.lines().filter(|line| line.integration == integration.id).collect();
        let named = called
            .iter()
            .find_map(|name| lines.iter().find(|line| line.number == *name || same_number(&line.number, name)));
        match (named, &lines[..]) {
            (Some(line), _) => Some((*line).clone()),
            (None, [only]) => Some((*only).clone()),
            _ => None,
        }
    }

    /// A call that we asked the PBX to dial: with this number, or the only one that waits on this line, since some PBXs
    /// show their own number while they call our side first.
    fn take_dialled(&self, integration: &Integration, line: &Line, peer: &PhoneNumber) -> Option<CallSetup> {
        let now = Instant::now();
        let mut waiting: Vec<(CallId, bool)> = self
            .dialled
            .iter()
            .filter(|entry| {
                let (since, setup) = entry.value();
                setup.integration == integration.id
                    && setup.line == line.number
                    && now.duration_since(*since) < MATCH_WINDOW
            })
            .map(|entry| (*entry.key(), same_number(entry.value().1.to.as_str(), peer.as_str())))
            .collect();
        waiting.sort();
        let call = match (waiting.iter().find(|(_, same)| *same), &waiting[..]) {
            (Some((call, _)), _) => *call,
            (None, [(only, _)]) if !self.was_told(integration, peer) => *only,
            _ => return None,
        };
        self.dialled.remove(&call).map(|(_, (_, setup))| setup)
    }

    fn was_told(&self, integration: &Integration, peer: &PhoneNumber) -> bool {
        self.told.iter().any(|entry| {
            entry.integration == integration.id
                && !entry.taken
                && entry.news.direction != Some(Direction::Outbound)
                && same_number(entry.news.from.as_str(), peer.as_str())
        })
    }

    /// A call that webhooks told of, with this number and on this line where they said which.
    fn take_told(&self, integration: &Integration, line: &Line, peer: &PhoneNumber) -> Option<(CallId, CallNews)> {
        let now = Instant::now();
        let mut found: Vec<CallId> = self
            .told
            .iter()
            .filter(|entry| {
                let other = match entry.news.direction {
                    Some(Direction::Outbound) => &entry.news.to,
                    _ => &entry.news.from,
                };
                entry.integration == integration.id
                    && !entry.taken
                    && entry.is_fresh(now)
                    && entry.news.line.as_deref().is_none_or(|told| told == line.number)
                    && same_number(other.as_str(), peer.as_str())
            })
            .map(|entry| *entry.key())
            .collect();
        found.sort();
        let call = *found.last()?;
        let mut told = self.told.get_mut(&call)?;
        told.taken = true;
        Some((call, told.news.clone()))
    }

    /// Remembers what a webhook tells of a call that is not known yet, under the id that its record will have. Calls that
    /// come as streams need no INVITE.
    pub(super) fn announce(&self, integration: &Integration, news: &CallNews, state: &CallState) {
        let streams = providers::kind(integration.provider).is_some_and(|kind| kind.capabilities.streams);
        let over = matches!(state, CallState::Ended { .. });
        if streams || over || news.provider_call.is_none() {
            return;
        }
        match self.announced(integration, news) {
            None => self.remember_told(integration, CallId::new(), news, state),
            // A question told of it before: what each tells is kept.
            Some((call, false)) => {
                if let Some(mut told) = self.told.get_mut(&call) {
                    told.news.fields.extend(news.fields.clone());
                }
            }
            Some((_, true)) => {}
        }
    }

    /// The id under which a call was announced, and whether its INVITE has come.
    pub(super) fn announced(&self, integration: &Integration, news: &CallNews) -> Option<(CallId, bool)> {
        let same = |told: &Told| {
            told.integration == integration.id
                && told.news.provider_call.is_some()
                && told.news.provider_call == news.provider_call
        };
        self.told.iter().find(|told| same(told)).map(|told| (*told.key(), told.taken))
    }

    /// Remembers what webhooks told of a call, for the INVITE that follows; forgets it when the call is over.
    pub(super) fn remember_told(&self, integration: &Integration, call: CallId, news: &CallNews, state: &CallState) {
        let same = |told: &Told| {
            told.integration == integration.id
                && told.news.provider_call.is_some()
                && told.news.provider_call == news.provider_call
        };
        // A call that was asked about is known by another id until its record is made.
        self.told.retain(|id, told| *id == call || told.taken || !same(told));
        if matches!(state, CallState::Ended { .. }) {
            self.told.remove(&call);
        } else if self.told.len() < MAX_DIALLED
            && self.calls.find(call).is_none()
            && !self.told.iter().any(|told| told.taken && same(&told))
        {
            let (since, news) = (Instant::now(), news.clone());
            let told = || Told { since, news, integration: integration.id, taken: false };
            self.told.entry(call).or_insert_with(told);
        }
    }
}

/// The same number, with or without its country code, `+` or `00`. What is no number is compared as it is written.
fn same_number(a: &str, b: &str) -> bool {
    let digits = |text: &str| -> Option<String> {
        let plain: String = text.chars().filter(|c| !matches!(c, '+' | ' ' | '-' | '(' | ')')).collect();
        let all = !plain.is_empty() && plain.bytes().all(|byte| byte.is_ascii_digit());
        all.then(|| plain.trim_start_matches('0').to_owned())
    };
    match (digits(a), digits(b)) {
        (Some(a), Some(b)) if a.len().min(b.len()) >= SAME_DIGITS => a.ends_with(&b) || b.ends_with(&a),
        (Some(a), Some(b)) => a == b,
        _ => a == b && !a.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::same_number;

    #[test]
    fn a_number_is_the_same_however_a_pbx_writes_it() {
        for (a, b, same) in [
            ("+380501234567", "380501234567", true),
            ("+380501234567", "0501234567", true),
            ("+380501234567", "00380501234567", true),
            ("+380501234567", "+380501234568", false),
            ("901", "901", true),
            ("901", "1901", false),
            ("0901", "901", true),
            ("acme_concierge", "acme_concierge", true),
            ("acme_concierge", "901", false),
            ("", "", false),
        ] {
            assert_eq!(same_number(a, b), same, "{a} {b}");
            assert_eq!(same_number(b, a), same, "{b} {a}");
        }
    }
}
