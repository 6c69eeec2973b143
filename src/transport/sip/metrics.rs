//! What operators see of SIP in `/metrics`. A message costs a look at its first bytes and one addition; the endpoint's own
//! figures are carried over once a second.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::Registrations;
use crate::protocol::sip::endpoint::Stats;
use crate::protocol::sip::registration::RegistrationState;

const METHODS: [&str; 13] = [
    "INVITE",
    "ACK",
    "BYE",
    "CANCEL",
    "OPTIONS",
    "REGISTER",
    "PRACK",
    "UPDATE",
    "INFO",
    "REFER",
    "NOTIFY",
    "SUBSCRIBE",
    "other",
];
const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "6xx"];
const STATES: [RegistrationState; 5] = [
    RegistrationState::Registering,
    RegistrationState::Registered,
    RegistrationState::Failing,
    RegistrationState::Failed,
    RegistrationState::Unregistering,
];

pub struct SipMetrics {
    received: Kinds,
    sent: Kinds,
    /// From an INVITE in hand to its 200 on its way.
    pub answer: Histogram,
    repeated: Counter,
    flooded: Counter,
    malformed: Counter,
    refused: Counter,
    silenced: Counter,
    overloaded: Counter,
    unsent: Counter,
    told: (Stats, u64),
    registrations: [(Gauge, usize); STATES.len()],
}

/// Messages of one direction.
struct Kinds {
    requests: [Counter; METHODS.len()],
    responses: [Counter; CLASSES.len()],
}

impl Kinds {
    fn new(direction: &'static str) -> Self {
        Self {
            requests: METHODS
                .map(|method| counter!("offhook_sip_requests_total", "direction" => direction, "method" => method)),
            responses: CLASSES
                .map(|class| counter!("offhook_sip_responses_total", "direction" => direction, "class" => class)),
        }
    }

    /// Whatever begins like no message (a keep-alive, garbage) is none.
    fn count(&self, bytes: &[u8]) {
        if let Some(status) = bytes.strip_prefix(b"SIP/2.0 ") {
            let class = status.first().map_or(0, |digit| digit.wrapping_sub(b'0'));
            if let Some(counter) = usize::from(class).checked_sub(1).and_then(|class| self.responses.get(class)) {
                counter.increment(1);
            }
        } else if bytes.first().is_some_and(u8::is_ascii_uppercase) {
            let other = METHODS.len() - 1;
            let is_it =
                |method: &&str| bytes.strip_prefix(method.as_bytes()).is_some_and(|rest| rest.starts_with(b" "));
            self.requests[METHODS[..other].iter().position(is_it).unwrap_or(other)].increment(1);
        }
    }
}

impl SipMetrics {
    pub fn new() -> Self {
        let refused = |reason: &'static str| counter!("offhook_sip_refused_total", "reason" => reason);
        Self {
            received: Kinds::new("in"),
            sent: Kinds::new("out"),
            answer: histogram!("offhook_sip_answer_seconds"),
            repeated: counter!("offhook_sip_retransmissions_total"),
            flooded: refused("flood"),
            malformed: refused("malformed"),
            refused: refused("refused"),
            silenced: refused("silenced"),
            overloaded: refused("overload"),
            unsent: counter!("offhook_sip_unsent_total"),
            told: (Stats::default(), 0),
            registrations: STATES.map(|state| (gauge!("offhook_sip_registrations", "state" => state.label()), 0)),
        }
    }

    pub fn received(&self, bytes: &[u8]) {
        self.received.count(bytes);
    }

    pub fn sent(&self, bytes: &[u8]) {
        self.sent.count(bytes);
    }

    /// By their difference: a process may have more than one endpoint, as while an account is tried.
    pub fn registrations(&mut self, all: &Registrations) {
        for ((gauge, before), state) in self.registrations.iter_mut().zip(STATES) {
            let count = all.values().filter(|status| status.state == state).count();
            gauge.increment(count as f64 - *before as f64);
            *before = count;
        }
    }

    /// `unsent`: messages that a full queue or socket did not take.
    pub fn carry_over(&mut self, stats: Stats, unsent: u64) {
        let (before, unsent_before) = std::mem::replace(&mut self.told, (stats, unsent));
        for (counter, before, after) in [
            (&self.repeated, before.repeated, stats.repeated),
            (&self.flooded, before.flooded, stats.flooded),
            (&self.malformed, before.malformed, stats.malformed),
            (&self.refused, before.refused, stats.refused),
            (&self.silenced, before.silenced, stats.silenced),
            (&self.overloaded, before.overloaded, stats.overloaded),
            (&self.unsent, unsent_before, unsent),
        ] {
            counter.increment(after.saturating_sub(before));
        }
    }
}
