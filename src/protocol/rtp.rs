//! RTP and RTCP (RFC 3550) for one stream of speech each way, without sockets: bytes and `now` in, packets for the call,
//! bytes and a deadline out. `transport/rtp_udp.rs` owns the sockets and the pace.

pub mod keys;
pub mod packet;
pub mod plan;
pub mod rtcp;
pub mod session;
pub mod srtp;
pub mod stats;
