//! The call record: the facts of a call, written beside its recording and into the store as the call goes.

use std::collections::BTreeMap;

use crate::call::registry::CallSetup;
use crate::clock;
use crate::conversation::transcript::Transcript;
use crate::providers;
pub use crate::store::calls::{CallRecord, Interruptions, LegRecord};
use crate::telephony::Party;

/// What is known of a call before its audio comes.
pub fn offered(setup: &CallSetup) -> CallRecord {
    CallRecord {
        id: setup.id,
        direction: setup.direction,
        company: setup.company.clone(),
        company_id: setup.company_id,
        integration_id: setup.integration,
        provider: setup.provider.into(),
        provider_call: setup.provider_call.clone(),
        line: setup.line.clone(),
        from: setup.from.clone(),
        to: setup.to.clone(),
        agent: setup.agent.name.clone(),
        agent_id: setup.agent_id,
        agent_version: setup.agent_version,
        purpose: setup.purpose.clone(),
        vars: setup.vars.clone(),
        // An id holds the millisecond at which it was made: the webhook, not the audio, began the call.
        started: setup.id.made().unwrap_or_else(clock::now),
        answered: None,
        ended: None,
        end: None,
        legs: Vec::new(),
        transcript: Transcript::default(),
        remembered: BTreeMap::new(),
        handover: None,
        interruptions: Default::default(),
        faults: Vec::new(),
        recorded: false,
    }
}

/// Its audio is there.
pub(crate) fn answered(setup: &CallSetup) -> CallRecord {
    let now = clock::now();
    let leg = LegRecord {
        party: Party::Caller,
        // What does not stream reaches us by SIP.
        transport: match providers::kind(setup.provider).is_some_and(|kind| kind.capabilities.streams) {
            true => setup.provider.into(),
            false => "sip".into(),
        },
        number: setup.peer().clone(),
        started: now,
        ended: None,
    };
    CallRecord { answered: Some(now), legs: vec![leg], ..offered(setup) }
}
