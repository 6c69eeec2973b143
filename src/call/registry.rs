//! The calls that are running: starting one, finding one, draining them all.

use std::sync::Arc;

use crate::agent::profile::AgentProfile;
use crate::call::handle::CallHandle;
use crate::telephony::{CallId, Direction, PhoneNumber};
use crate::transport::leg::Leg;

/// Everything a call needs to know before its first packet.
#[derive(Clone, Debug)]
pub struct CallSetup {
    pub id: CallId,
    pub direction: Direction,
    pub company: String,
    /// `twilio`, `ringostat`, `binotel`, `sip`.
    pub provider: &'static str,
    /// The provider's own id of the call, e.g. `CA…`.
    pub provider_call: String,
    pub from: PhoneNumber,
    pub to: PhoneNumber,
    pub agent: Arc<AgentProfile>,
}

/// Why a call was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the server is draining")]
    Draining,
    #[error("limits.max_calls is reached")]
    Full,
    /// The agent names an engine that is not configured.
    #[error("the agent's engine is not configured")]
    NoEngine,
}

/// The running calls. Cheap to clone.
#[derive(Clone)]
pub struct Calls {}

impl Calls {
    /// Whether a call would be taken now: not draining, below `limits.max_calls`.
    pub fn ready(&self) -> Result<(), Refused> {
        todo!()
    }

    /// Starts the call's task; the leg's packets must be flowing or about to.
    pub fn start(&self, _setup: CallSetup, _leg: Leg) -> Result<CallHandle, Refused> {
        todo!()
    }

    pub fn active(&self) -> usize {
        todo!()
    }
}
