//! Samples and packets: what travels in a call, and the filters it passes through. No sockets and no clock of its own.

pub mod frame;
pub mod packet;

pub mod codec;
pub mod conceal;
pub mod dtmf;
pub mod g711;
pub mod g722;
pub mod jitter;
pub mod opus;
pub mod playout;
pub mod resample;
pub mod vad;
pub mod wav;
