//! Simulated callers that replay recordings over the Media Streams protocol and measure from outside. Imports
//! telephony, media and protocol only.

pub mod caller;
pub mod fixture;
pub mod report;
