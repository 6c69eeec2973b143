//! `offhook apply FILE`: makes the store say what a set-up file says, and prints what that changed.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use secrecy::{ExposeSecret, SecretString};

use crate::cli::providers;
use crate::config::Config;
use crate::providers::provider::Proof;
use crate::store::knowledge::embeddings::KnowledgeConfig;
use crate::store::knowledge::{DocumentChange, KnowledgeBases, Outcome};
use crate::store::setup::{Fault, Setup};
use crate::store::{Action, ApplyError, ApplyOptions, Diff, Store, StoreConfig, Webhook};

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The set-up file (TOML).
    pub file: PathBuf,
    /// Remove what the file does not name.
    #[arg(long)]
    pub prune: bool,
    /// Print the difference and write nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not call the providers: credentials are not tried, and webhooks are not written.
    #[arg(long)]
    pub no_verify: bool,
}

/// What the command needs of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    pub store: &'a StoreConfig,
    pub secrets_key: Option<&'a SecretString>,
    pub public_url: Option<&'a str>,
    /// Where the vectors of documents come from.
    pub knowledge: &'a KnowledgeConfig,
}

pub async fn run(args: Args, config: &Config) -> anyhow::Result<ExitCode> {
    let context = Surroundings {
        store: &config.store,
        secrets_key: config.security.secrets_key.as_ref(),
        public_url: config.server.public_url.as_deref(),
        knowledge: &config.knowledge,
    };
    apply(&args, context, &|name| std::env::var(name).ok(), &mut io::stdout().lock()).await
}

/// The command with its environment and output handed in.
pub async fn apply(
    args: &Args,
    context: Surroundings<'_>,
    lookup: &dyn Fn(&str) -> Option<String>,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let (setup, mut faults) = Setup::read(&args.file, lookup)?;
    faults.extend(setup.unopenable());
    let options = ApplyOptions { prune: args.prune, dry_run: args.dry_run };
    let preview = options.dry_run || !faults.is_empty();
    let store = if preview {
        Store::open_for_preview(context.store, context.secrets_key).await
    } else {
        Store::open(context.store, context.secrets_key).await
    };
    let store = match store {
        Ok(store) => store,
        // The file's faults are of use even where the store is not.
        Err(error) if !faults.is_empty() => {
            report(out, &args.file, &faults)?;
            return Err(error).context("the store could not be opened either");
        }
        Err(error) => return Err(error.into()),
    };
    let applied = if faults.is_empty() {
        store.apply(&setup, options).await
    } else {
        faults.extend(store.unresolved(&setup).await?);
        Err(ApplyError::Faults(faults))
    };
    let settled = match &applied {
        Ok(diff) if !args.dry_run => {
            print(out, diff, args, context.public_url)?;
            let read = read_documents(args, &store, &setup, context.knowledge, out).await;
            let settled = settle(args, &store, diff, context.public_url, out).await;
            read.and_then(|read| settled.map(|settled| read && settled))
        }
        Ok(diff) => print(out, diff, args, context.public_url).map(|()| true).map_err(anyhow::Error::from),
        Err(_) => Ok(true),
    };
    store.close().await;
    match applied {
        Ok(_) => {
            if !settled? {
                writeln!(out, "The set-up is stored; correct what FAILED and apply the file again.")?;
                return Ok(ExitCode::FAILURE);
            }
        }
        Err(ApplyError::Faults(faults)) => {
            report(out, &args.file, &faults)?;
            return Ok(ExitCode::FAILURE);
        }
        Err(error) => return Err(error).with_context(|| format!("applying {}", args.file.display())),
    }
    Ok(ExitCode::SUCCESS)
}

fn report(out: &mut impl Write, file: &Path, faults: &[Fault]) -> io::Result<()> {
    writeln!(out, "{}: {} to correct, nothing was changed:", file.display(), count(faults.len(), "fault"))?;
    faults.iter().try_for_each(|fault| writeln!(out, "  {fault}"))
}

fn print(out: &mut impl Write, diff: &Diff, args: &Args, public_url: Option<&str>) -> io::Result<()> {
    for change in &diff.changes {
        writeln!(out, "{change}")?;
    }
    let [created, updated, unchanged, removed] =
        [Action::Created, Action::Updated, Action::Unchanged, Action::Removed].map(|action| diff.count(action));
    let would = if args.dry_run { " (dry run: nothing was written)" } else { "" };
    writeln!(out, "{created} created, {updated} updated, {unchanged} unchanged, {removed} removed{would}")?;
    let proof =
        |webhook: &Webhook| crate::providers::kind(webhook.provider).map_or(Proof::NoWebhooks, |kind| kind.proof);
    let posts = |webhook: &&Webhook| proof(webhook) != Proof::NoWebhooks;
    if diff.webhooks.iter().filter(posts).count() == 0 {
        return Ok(());
    }
    writeln!(out, "\nWhere the providers post events to (a number's \"A call comes in\" webhook, or the cabinet's):")?;
    let base = public_url.map_or("<server.public_url>", |url| url.trim_end_matches('/'));
    for webhook in diff.webhooks.iter().filter(posts) {
        let id = webhook.id.map_or("<the id that it gets when it is applied>".into(), |id| id.to_string());
        let Webhook { company, integration, provider, secret, .. } = webhook;
        let secret = secret.as_ref().map_or("<its secret>", |secret| secret.expose_secret());
        let last = if proof(webhook) == Proof::SecretPath { secret } else { "voice" };
        writeln!(out, "  {company} / {integration}: {base}/webhooks/{provider}/{id}/{last}")?;
    }
    if public_url.is_none() {
        writeln!(
            out,
            "warning: server.public_url is not set; providers must reach this server by it, as in https://voice.example.com"
        )?;
    }
    Ok(())
}

/// Indexes the documents of the file's knowledge bases. `false`: some could not be read.
async fn read_documents(
    args: &Args,
    store: &Store,
    setup: &Setup,
    config: &KnowledgeConfig,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    let bases = KnowledgeBases::open(store.clone(), config).context("knowledge.base_url")?;
    let mut good = true;
    for DocumentChange { name, outcome } in bases.apply(setup, args.prune).await? {
        match outcome {
            Outcome::Indexed(passages, None) => writeln!(out, "indexed    document     {name} ({passages} passages)")?,
            Outcome::Indexed(passages, Some(lacks)) => {
                writeln!(out, "indexed    document     {name} ({passages} passages, {lacks})")?;
            }
            Outcome::Unchanged => writeln!(out, "unchanged  document     {name}")?,
            Outcome::Removed => writeln!(out, "removed    document     {name}")?,
            Outcome::Failed(reason) => {
                good = false;
                writeln!(out, "FAILED     document     {name}: {reason}")?;
            }
        }
    }
    Ok(good)
}

/// Calls the providers of the file's integrations.
async fn settle(
    args: &Args,
    store: &Store,
    diff: &Diff,
    public_url: Option<&str>,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    if args.no_verify {
        writeln!(out, "Providers were not called: credentials and numbers are stored as they were written.")?;
        return Ok(true);
    }
    let named: Vec<_> = diff.webhooks.iter().filter_map(|webhook| webhook.id).collect();
    let directory = store.directory().await?;
    providers::settle(store, &directory, public_url, |integration| named.contains(&integration.id), out).await
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
