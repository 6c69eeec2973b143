//! Session descriptions (RFC 8866): reading them, and agreeing on audio by offer and answer (RFC 3264).

pub mod negotiate;
pub mod parse;
