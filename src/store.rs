//! What must last: companies, integrations, lines and agents in SQLite; credentials sealed. SQL stays on this floor.

pub mod directory;
pub mod secrets;
