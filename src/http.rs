//! The HTTP surface: webhooks, the media websocket, health and metrics.

pub mod api;
pub mod auth;
pub mod config;
pub mod media_ws;
pub mod problem;
pub mod rate;
pub mod router;
pub mod serve;
pub mod tokens;
pub mod webhooks;

pub use serve::serve;
