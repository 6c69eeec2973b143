//! One file a command.

pub mod apply;
pub mod check;
pub mod demo;
pub mod load;
pub mod mock;
pub mod models;
pub mod serve;
