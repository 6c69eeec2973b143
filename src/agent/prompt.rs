//! Stand-in.
pub fn system(agent: &crate::agent::profile::AgentProfile, _from: &crate::telephony::PhoneNumber, _to: &crate::telephony::PhoneNumber) -> String { agent.prompt.clone() }
