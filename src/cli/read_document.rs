//! `offhook read-document`: reads one uploaded file for the server that started it. Nobody types it.

use std::process::ExitCode;

use crate::store::knowledge::extract::{Format, apart};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What the file is; it comes on standard input.
    format: Format,
}

pub fn run(args: &Args) -> ExitCode {
    apart::serve(args.format)
}
