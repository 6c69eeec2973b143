//! Simulated callers that replay recordings over the Media Streams protocol, or by SIP and RTP, and measure from outside.
//! Imports telephony, media and protocol only, and little of these: codecs, signature, RTP, SDP and message shapes are its
//! own, so that a fault of the server's is not undone by the same fault here. SIP's signalling alone is shared: tests with
//! baresip, SIPp and Kamailio look at that from outside.

pub mod alaw;
pub mod caller;
pub mod ear;
pub mod fixture;
pub mod measure;
pub mod message;
pub mod mouth;
pub mod phones;
pub mod report;
pub mod rtp;
pub mod sdp;
pub mod sign;
pub mod sip;
pub mod ulaw;
pub mod webhook;
