//! Trying an agent without a phone: what a scenario file says (`scenario`), whether a conversation went as it says
//! (`judge`), stand-ins for tools that reach outside (`props`), and the report (`report`). Pure: who plays the
//! conversation is in `cli/eval`.

pub mod judge;
pub mod props;
pub mod report;
pub mod scenario;
