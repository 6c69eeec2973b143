//! `offhook key`: API keys, and the key that seals credentials.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use secrecy::ExposeSecret;
use serde_json::json;
use uuid::Uuid;

use crate::config::Config;
use crate::store::companies::Company;
use crate::store::users::Role;
use crate::store::{Part, Store};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Makes an API key and prints it: the only time that it is seen.
    Create {
        /// What it is for, as lists show it.
        name: String,
        /// Whose it is; may be left out where there is one company.
        #[arg(long)]
        company: Option<String>,
        #[arg(long, default_value = "operator")]
        role: Role,
    },
    /// Lists the API keys of a company.
    List {
        #[arg(long)]
        company: Option<String>,
    },
    /// Revokes an API key, by its id or its beginning as `list` shows them.
    Revoke {
        key: String,
        #[arg(long)]
        company: Option<String>,
    },
    /// Seals everything in the store with a new secrets key.
    RotateSecrets,
}

pub async fn run(args: Args, config: &Config) -> anyhow::Result<ExitCode> {
    let store = open(config).await?;
    let done = key(args.command, &store, &mut io::stdout().lock()).await;
    store.close().await;
    done
}

pub(super) async fn open(config: &Config) -> anyhow::Result<Store> {
    Store::open(&config.store, config.security.secrets_key.as_ref()).await.context("the store could not be opened")
}

/// The company of this name, or the only one that there is.
pub(super) async fn company(store: &Store, name: Option<&str>) -> anyhow::Result<Company> {
    if let Some(name) = name {
        return store.company_named(name).await?.with_context(|| format!("there is no company {name:?}"));
    }
    let mut companies = store.companies(Part { after: None, limit: 2 }).await?.items;
    match companies.len() {
        0 => bail!("there is no company yet; `offhook apply FILE` makes one"),
        1 => Ok(companies.remove(0)),
        _ => bail!("there are several companies; say which one with --company NAME"),
    }
}

/// The command with its store and output handed in.
pub async fn key(command: Command, store: &Store, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    match command {
        Command::Create { name, company: of, role } => {
            let company = company(store, of.as_deref()).await?;
            let (key, text) = store.add_key(company.id, &name, role).await?;
            store.audit(Some(company.id), "cli", "key.created", &key.prefix, &json!({ "name": name })).await?;
            writeln!(out, "{}", text.expose_secret())?;
            writeln!(
                out,
                "This is key {:?} of {} ({}). Keep it: it is not shown again.",
                name,
                company.name,
                role.label()
            )?;
        }
        Command::List { company: of } => {
            let company = company(store, of.as_deref()).await?;
            for key in store.keys(company.id).await? {
                let state = match (key.revoked_at, key.last_used_at) {
                    (Some(at), _) => format!("revoked {}", at.0),
                    (None, Some(at)) => format!("last used {}", at.0),
                    (None, None) => "never used".into(),
                };
                writeln!(out, "{}  {}…  {:<8}  {:?}  {state}", key.id, key.prefix, key.role.label(), key.name)?;
            }
        }
        Command::Revoke { key: wanted, company: of } => {
            let company = company(store, of.as_deref()).await?;
            let keys = store.keys(company.id).await?;
            let id = Uuid::try_parse(&wanted).ok();
            let beginning = wanted.trim_end_matches('…');
            let found: Vec<_> = keys
                .iter()
                .filter(|key| key.revoked_at.is_none() && (Some(key.id) == id || key.prefix == beginning))
                .collect();
            let [key] = found[..] else { bail!("{} has no key {wanted:?} that is not revoked", company.name) };
            store.revoke_key(company.id, key.id).await?;
            store.audit(Some(company.id), "cli", "key.revoked", &key.prefix, &json!({ "name": key.name })).await?;
            writeln!(out, "revoked {}… ({:?})", key.prefix, key.name)?;
        }
        Command::RotateSecrets => {
            let rotated = store.rotate_secrets().await?;
            store.audit(None, "cli", "secrets.rotated", "store", &json!({ "values": rotated.values })).await?;
            writeln!(out, "{} sealed values have a new key", rotated.values)?;
            match rotated.key {
                None => writeln!(out, "It is in the key file; back it up with the database.")?,
                Some(key) => {
                    writeln!(out, "Put it where security.secrets_key is set, and start the servers again:")?;
                    writeln!(out, "{}", key.expose_secret())?;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
