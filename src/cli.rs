//! The command line: one file a command, the root of it here.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, TelemetryConfig};
use crate::store::knowledge::extract::Reader;
use crate::telemetry;

pub mod apply;
pub mod chat;
pub mod check;
pub mod demo;
pub mod eval;
pub mod key;
pub mod load;
pub mod mock;
pub mod models;
pub mod probes;
pub mod providers;
pub mod read_document;
pub mod rehearsal;
pub mod serve;
pub mod user;

/// Puts an AI agent on a company's phone lines.
#[derive(Debug, Parser)]
#[command(name = "offhook", version, about)]
pub struct Cli {
    /// Configuration file; without it `offhook.toml` is read where it exists.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the server.
    Serve(serve::Args),
    /// Plays a recorded caller to an agent on this machine: no key, no phone, no network.
    Demo(demo::Args),
    /// Talks with an agent in the terminal, in writing: no phone, and nobody is rung or written to.
    Chat(chat::Args),
    /// Plays scenarios to agents, in writing or by speech, and says whether all went as they must.
    Eval(eval::Args),
    /// Creates or updates companies, integrations, lines and agents from a set-up file.
    Apply(apply::Args),
    /// Opens every engine and store that the configuration names, and says how each is.
    Check(check::Args),
    /// Lists and fetches speech models.
    Models(models::Args),
    /// Runs the mock speech and language services.
    Mock(mock::Args),
    /// Makes, lists and revokes API keys; renews the key that seals credentials.
    Key(key::Args),
    /// Adds and lists people, and sets their passwords.
    User(user::Args),
    /// Replays recorded callers against a media endpoint and measures it.
    Load(load::Args),
    /// Reads an uploaded file from standard input, for the server that started it.
    #[command(hide = true)]
    ReadDocument(read_document::Args),
}

impl Cli {
    /// Does what needs neither configuration nor runtime; `None`: there is more to do.
    pub fn run_bare(&self) -> Option<ExitCode> {
        match &self.command {
            Command::ReadDocument(args) => Some(read_document::run(args)),
            _ => None,
        }
    }

    /// With the path of this very program, where it is known: it starts itself to read documents.
    pub async fn run(self, program: Option<PathBuf>) -> anyhow::Result<ExitCode> {
        let config = Config::load(self.config.as_deref());
        // A fault in the configuration is one of the things that `check` reports.
        if let Command::Check(args) = self.command {
            return check::run(args, config, probes::engines).await;
        }
        let mut config = config?;
        if let Some(program) = program {
            config.knowledge.reader = Reader::starting(program);
        }
        match self.command {
            Command::Serve(args) => {
                logs(&config, &config.telemetry.log)?;
                serve::run(args, config).await
            }
            Command::Demo(args) => {
                logs(&config, "warn")?;
                demo::run(args, config).await
            }
            Command::Chat(args) => {
                logs(&config, "warn")?;
                chat::run(args, config).await
            }
            Command::Eval(args) => {
                logs(&config, "error")?;
                eval::run(args, config).await
            }
            Command::Apply(args) => apply::run(args, &config).await,
            Command::Key(args) => key::run(args, &config).await,
            Command::User(args) => user::run(args, &config).await,
            Command::Models(args) => models::run(args, &config.models).await,
            Command::Mock(args) => {
                logs(&config, &config.telemetry.log)?;
                mock::run(args).await
            }
            Command::Load(args) => load::run(args).await,
            Command::Check(_) => unreachable!("returned above"),
            Command::ReadDocument(args) => Ok(read_document::run(&args)),
        }
    }
}

/// Logs to standard error; `OFFHOOK_LOG` goes before `level`.
fn logs(config: &Config, level: &str) -> anyhow::Result<()> {
    let filter = std::env::var(telemetry::LOG_VARIABLE).ok();
    let telemetry = TelemetryConfig { log: level.into(), ..config.telemetry.clone() };
    Ok(telemetry::install_logs(&telemetry, filter.as_deref())?)
}
