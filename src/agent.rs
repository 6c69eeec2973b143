//! What to say: an agent's profile, its workflow, its memory of the conversation, its tools.

pub mod briefing;
pub mod builtin;
pub mod contacts;
pub mod dialling;
pub mod extract;
pub mod hear;
pub mod knowledge;
pub mod memory;
pub mod outcome;
pub mod phrases;
pub mod profile;
pub mod prompt;
pub mod tools;
pub mod variables;
pub mod walk;
pub mod workflow;
