//! Speech and language engines behind three traits. Knows nothing of calls: audio or text in, text or audio out. Every
//! engine streams, is cancelled by dropping what it returned, and has a time limit.

pub mod breaker;
pub mod http;
pub mod llm;
pub mod scripted;
pub mod sse;
pub mod stt;
pub mod tts;
