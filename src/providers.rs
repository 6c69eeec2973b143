//! Providers of lines: what is said to each over HTTP, and how it is trusted.

pub mod twilio;
