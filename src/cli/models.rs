//! `offhook models list | pull NAME | check`: the speech models on disk, and downloading them.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::config::ModelsConfig;

pub mod catalogue;
pub mod pull;

use catalogue::{Checksum, Model, Verdict, catalogue};
use pull::{Pulled, Source, size};

/// Wait before a broken download is resumed.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Show the models that are known, and which of them are on disk.
    List,
    /// Download a model; a broken download goes on where it stopped.
    Pull {
        /// A name of `offhook models list`, such as base.en.
        name: String,
    },
    /// Verify the models on disk.
    Check,
}

pub async fn run(args: Args, config: &ModelsConfig) -> anyhow::Result<ExitCode> {
    let models = catalogue();
    // Not locked: the progress bar and Ctrl-C handlers may want to print.
    let mut out = io::stdout();
    match args.command {
        Command::List => list(&models, &config.dir, &mut out).map(|()| ExitCode::SUCCESS),
        Command::Pull { name } => pull_one(&models, &name, config, &mut out).await.map(|()| ExitCode::SUCCESS),
        Command::Check => {
            let dir = config.dir.clone();
            let (lines, good) = tokio::task::spawn_blocking(move || check(&models, &dir)).await??;
            out.write_all(lines.as_bytes())?;
            Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// One line a model.
pub fn list(models: &[Model], dir: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    writeln!(out, "{:<22} {:>9}  in {}", "name", "size", dir.display())?;
    for model in models {
        let bytes = |path: &Path| path.metadata().map(|metadata| metadata.len()).ok();
        let state = match (bytes(&model.path(dir)), bytes(&model.part(dir))) {
            (Some(found), _) if model.bytes.is_some_and(|bytes| bytes != found) => {
                format!("damaged: {}; offhook models pull {}", size(found), model.name)
            }
            (Some(_), _) => model.file.clone(),
            (None, Some(part)) => format!("unfinished: {}; offhook models pull {}", size(part), model.name),
            (None, None) if model.shipped => "missing, though it comes with the program".into(),
            (None, None) => "-".into(),
        };
        writeln!(out, "{:<22} {:>5} MiB  {state}", model.name, model.mib)?;
    }
    Ok(())
}

async fn pull_one(models: &[Model], name: &str, config: &ModelsConfig, out: &mut impl Write) -> anyhow::Result<()> {
    let Some(model) = models.iter().find(|model| model.name == name) else {
        let names: Vec<&str> = models.iter().filter(|model| !model.shipped).map(|model| model.name.as_str()).collect();
        bail!("no model {name:?}; known are {}", names.join(", "));
    };
    if model.shipped {
        bail!("{name} comes with the program and is not downloaded; `offhook models check` looks at it");
    }
    let source = Source {
        dir: &config.dir,
        base_url: &config.base_url,
        stall: Duration::from_secs(config.stall_s),
        attempts: config.attempts,
        pause: PAUSE,
    };
    let bar = ProgressBar::new(model.bytes.unwrap_or(model.mib << 20)).with_style(style());
    bar.set_prefix(name.to_owned());
    let pulled = pull::pull(model, &source, &bar).await;
    bar.finish_and_clear();
    let path = model.path(&config.dir);
    match pulled.with_context(|| format!("pulling {name}"))? {
        Pulled::Already => writeln!(out, "{} is there already, and whole", path.display())?,
        Pulled::Verified => writeln!(out, "{}: checksum right", path.display())?,
        Pulled::Unverified { sha256 } => {
            writeln!(out, "{}: no checksum is known to compare with; its SHA-256 is {sha256}", path.display())?;
        }
    }
    Ok(())
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{prefix} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} {msg}",
    )
    .expect("the template is a constant")
}

/// A line for each model on disk, and whether all are as they should be. Reads them whole; blocks.
pub fn check(models: &[Model], dir: &Path) -> io::Result<(String, bool)> {
    let mut lines = String::new();
    let mut good = true;
    for model in models {
        let path = model.path(dir);
        if !path.exists() {
            if model.part(dir).exists() {
                lines += &format!("unfinished  {}: `offhook models pull {}` goes on with it\n", model.name, model.name);
            } else if model.shipped {
                good = false;
                lines += &format!(
                    "FAILED  {}: {} is missing, though it comes with the program\n",
                    model.name,
                    path.display()
                );
            }
            continue;
        }
        let recorded = std::fs::read_to_string(model.record(dir)).ok();
        let recorded = recorded.map(|sum| Checksum::Sha256(sum.trim().to_owned()));
        match model.verify(&path, model.checksum().or(recorded).as_ref())? {
            Verdict::Good => lines += &format!("ok      {}: {}\n", model.name, path.display()),
            Verdict::Unknown { sha256 } => {
                lines += &format!("ok      {}: no checksum is known; its SHA-256 is {sha256}\n", model.name);
            }
            Verdict::Bad { why } => {
                good = false;
                let cure =
                    if model.shipped { "restore it".into() } else { format!("`offhook models pull {}`", model.name) };
                lines += &format!("FAILED  {}: {} is damaged: {why}; {cure}\n", model.name, path.display());
            }
        }
    }
    if lines.is_empty() {
        lines = format!("no model in {}\n", dir.display());
    }
    Ok((lines, good))
}
