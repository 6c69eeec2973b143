//! One task owns a call: ingress, egress, turn-taking, the agent's replies, the recorder and the record.

pub mod actor;
pub mod analysis;
pub mod budget;
pub mod clients;
pub mod company_tools;
pub mod deliveries;
pub mod desk;
pub mod egress;
pub mod engines;
pub mod handle;
pub mod ingress;
pub mod outbound;
pub mod record;
pub mod recorder;
pub mod registry;
pub mod reply;
pub mod sip;
pub mod thread;
pub mod wiring;
