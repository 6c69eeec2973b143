//! SIP (RFC 3261) as state machines: bytes, commands and `now` in; bytes, events and a deadline out. Bodies are opaque
//! here: offers and answers are the business of `protocol::sdp` and of the call. The way in is [`endpoint::Endpoint`].

pub mod admission;
pub mod alarm;
pub mod call;
pub mod check;
pub mod core;
pub mod dialog;
pub mod digest;
pub mod endpoint;
pub mod ladder;
pub mod message;
pub mod registration;
pub mod stream;
pub mod target;
pub mod transaction;
pub mod value;
