//! Tasks that own sockets. A call sees a [`leg::Leg`] and never a socket.

pub mod leg;
pub mod rtp_udp;
pub mod twilio_ws;
