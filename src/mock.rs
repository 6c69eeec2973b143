//! Stand-ins for outside services, with settable delays and faults: for tests, `load` and newcomers.

pub mod binotel;
pub mod openai;
pub mod ringostat;
pub mod script;
pub mod stage;
pub mod switch;
pub mod tone;
pub mod twilio;
