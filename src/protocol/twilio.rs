//! Twilio Media Streams: the JSON shapes and the life of one stream.
//! <https://www.twilio.com/docs/voice/media-streams/websocket-messages>

pub mod message;
pub mod stream;
