//! Protocols as state machines: bytes and `now` in; events, bytes and deadlines out. No tokio, no sockets.

pub mod capture;
pub mod network;
pub mod rtp;
pub mod sdp;
pub mod sip;
pub mod twilio;
