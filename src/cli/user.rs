//! `offhook user`: who may log in to the console. A password is read from a line of standard input, so that it stands
//! in no list of processes and no history.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use secrecy::SecretString;
use serde_json::json;

use crate::cli::key;
use crate::config::Config;
use crate::store::Store;
use crate::store::users::Role;

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Adds a person to a company, or gives one who is there another role.
    Add {
        /// What is typed at the log-in.
        email: String,
        #[arg(long, default_value = "")]
        name: String,
        /// May be left out where there is one company.
        #[arg(long)]
        company: Option<String>,
        #[arg(long, default_value = "owner")]
        role: Role,
    },
    /// Lists the people of a company.
    List {
        #[arg(long)]
        company: Option<String>,
    },
    /// Gives a person a new password and ends their sessions.
    Passwd { email: String },
}

pub async fn run(args: Args, config: &Config) -> anyhow::Result<ExitCode> {
    let store = key::open(config).await?;
    let stdin = io::stdin();
    if stdin.is_terminal() && !matches!(args.command, Command::List { .. }) {
        eprint!("password (it is shown as you type): ");
    }
    let done = user(args.command, &store, &mut stdin.lock(), &mut io::stdout().lock()).await;
    store.close().await;
    done
}

/// The command with its store, input and output handed in.
pub async fn user(
    command: Command,
    store: &Store,
    input: &mut impl BufRead,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    match command {
        Command::Add { email, name, company, role } => {
            if !email.contains('@') {
                bail!("{email:?} is no e-mail address");
            }
            let company = key::company(store, company.as_deref()).await?;
            let password = password(input)?;
            store.add_user(company.id, &email, &name, &password, role).await?;
            store.audit(Some(company.id), "cli", "user.added", &email, &json!({ "role": role })).await?;
            writeln!(out, "{email} is {} of {}", role.label(), company.name)?;
        }
        Command::List { company } => {
            let company = key::company(store, company.as_deref()).await?;
            for user in store.users(company.id).await? {
                let state = if user.disabled_at.is_some() { "  disabled" } else { "" };
                writeln!(out, "{}  {:<8}  {}{state}", user.email, user.role.label(), user.name)?;
            }
        }
        Command::Passwd { email } => {
            let password = password(input)?;
            if !store.set_password(&email, &password).await? {
                bail!("there is no user {email:?}");
            }
            store.audit(None, "cli", "user.password", &email, &json!({})).await?;
            writeln!(out, "{email} has a new password; all sessions are over")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn password(input: &mut impl BufRead) -> anyhow::Result<SecretString> {
    let mut line = String::new();
    input.read_line(&mut line).context("the password could not be read from standard input")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned().into())
}
