//! Simulated callers that replay recordings over the Media Streams protocol and measure from outside. Imports
//! telephony, media and protocol only, and little of these: codec, signature and message shapes are its own, so that a
//! fault of the server's is not undone by the same fault here.

pub mod caller;
pub mod ear;
pub mod fixture;
pub mod measure;
pub mod message;
pub mod mouth;
pub mod report;
pub mod sign;
pub mod ulaw;
pub mod webhook;
