//! Twilio Media Streams: the JSON shapes and the life of one stream.

pub mod message;
pub mod stream;
