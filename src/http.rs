//! The HTTP surface: webhooks, the media websocket, health and metrics.

pub mod media_ws;
pub mod router;
pub mod webhooks;
