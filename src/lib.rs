//! Offhook puts an AI agent on a company's phone lines. The floors, from the ground up: a module imports only modules
//! listed above it (`tests/floors.rs` checks that).

pub mod telephony;

pub mod clock;

pub mod media;

pub mod protocol;

pub mod speech;

pub mod conversation;

pub mod agent;

pub mod providers;

pub mod transport;

pub mod store;

pub mod eval;

pub mod call;

pub mod http;

pub mod load;

pub mod mock;

pub mod config;

pub mod telemetry;

pub mod app;

pub mod cli;
