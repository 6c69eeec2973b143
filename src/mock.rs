//! Stand-ins for outside services, with settable delays and faults: for tests, `load` and newcomers.

pub mod openai;
pub mod script;
pub mod tone;
pub mod twilio;
