//! Whose turn it is and what was said: pure functions of events and time. No tokio, no engines, no sockets.

pub mod backchannel;
pub mod settings;
pub mod speakable;
pub mod spoken;
pub mod transcript;
pub mod turn;
