//! `offhook check`: opens everything that the configuration names and prints one line each. The engines' probes are
//! handed in, so that this file knows no engine.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};

use crate::call::clients::Clients;
use crate::call::sip::try_registration;
use crate::cli::providers;
use crate::config::{Config, ConfigError};
use crate::providers::sip::SipSettings;
use crate::store::Store;
use crate::store::directory::Integration;

/// Loading a large local model from a slow disk takes longest.
const PROBE_LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, clap::Args)]
pub struct Args {}

/// One thing and how it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckLine {
    /// `store`, `speech.stt whisper`: as the configuration calls it.
    pub what: String,
    /// A fact worth knowing (may be empty), or why not.
    pub outcome: Result<String, Failure>,
}

/// Why a thing does not work, and what to do about it. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    /// May be empty where the reason says it all.
    pub cure: String,
}

impl Failure {
    pub fn new(reason: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { reason: reason.into(), cure: cure.into() }
    }
}

impl fmt::Display for CheckLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Ok(fact) if fact.is_empty() => write!(f, "ok      {}", self.what),
            Ok(fact) => write!(f, "ok      {}: {fact}", self.what),
            Err(failure) => {
                write!(f, "FAILED  {}: {}", self.what, failure.reason)?;
                if !failure.cure.is_empty() {
                    write!(f, "\n        {}", failure.cure)?;
                }
                Ok(())
            }
        }
    }
}

/// Something to try. Dropping it gives the trial up.
pub struct Probe {
    pub what: String,
    pub run: BoxFuture<'static, Result<String, Failure>>,
}

impl Probe {
    pub fn new(what: impl Into<String>, run: impl Future<Output = Result<String, Failure>> + Send + 'static) -> Self {
        Self { what: what.into(), run: Box::pin(run) }
    }
}

/// Runs all probes at once, each within `limit`; lines come in the order of the probes.
pub async fn check(probes: Vec<Probe>, limit: Duration) -> Vec<CheckLine> {
    let running: FuturesOrdered<_> = probes
        .into_iter()
        .map(|Probe { what, run }| async move {
            let outcome = tokio::time::timeout(limit, run).await.unwrap_or_else(|_| {
                Err(Failure::new(
                    format!("no answer within {} s", limit.as_secs()),
                    "see whether it is overloaded or unreachable",
                ))
            });
            CheckLine { what, outcome }
        })
        .collect();
    running.collect().await
}

/// Opens the store and looks whether what it holds can be used.
pub fn store_probe(config: &Config) -> Probe {
    let (store, key) = (config.store.clone(), config.security.secrets_key.clone());
    Probe::new("store", async move {
        let failed = |error: crate::store::StoreError| Failure::new(error.to_string(), "");
        let store = Store::open(&store, key.as_ref()).await.map_err(failed)?;
        let directory = store.directory().await.map_err(failed);
        store.close().await;
        let directory = directory?;
        let (integrations, lines) = (directory.integrations().count(), directory.lines().count());
        if lines == 0 {
            return Ok("no line is set up; `offhook apply FILE` adds some".into());
        }
        let mut agents = BTreeMap::new();
        for line in directory.lines() {
            *agents.entry(line.agent.name.clone()).or_insert(0) += 1;
        }
        let agents: Vec<String> = agents.into_iter().map(|(name, lines)| format!("{name:?} on {lines}")).collect();
        Ok(format!("{integrations} integrations, {lines} lines: {}", agents.join(", ")))
    })
}

/// One probe for each integration in the store: whether its provider takes the credentials. A store that cannot be read
/// is told of by its own probe.
pub async fn provider_probes(config: &Config) -> Vec<Probe> {
    let opened = async {
        let store = Store::open(&config.store, config.security.secrets_key.as_ref()).await.ok()?;
        let directory = store.directory().await.ok();
        store.close().await;
        directory
    };
    let Ok(Some(directory)) = tokio::time::timeout(PROBE_LIMIT, opened).await else { return Vec::new() };
    let mut integrations: Vec<_> = directory.integrations().cloned().collect();
    integrations.sort_by_key(|integration| integration.id);
    let clients = Arc::new(Clients::default());
    let accounts: Vec<Probe> =
        integrations.iter().filter_map(|integration| account_probe(config, integration)).collect();
    let asked = integrations.into_iter().map(|integration| {
        let clients = clients.clone();
        let what = format!("{} {} / {}", integration.provider, integration.company, integration.name);
        Probe::new(what, async move {
            providers::verify(&clients, &integration).await.map_err(|problem| Failure::new(problem, ""))
        })
    });
    asked.chain(accounts).collect()
}

/// Whether an integration's SIP account can register. `None`: it has none.
fn account_probe(config: &Config, integration: &Integration) -> Option<Probe> {
    let sip = SipSettings::read(&integration.credentials).ok().flatten()?;
    let account = sip.registration.as_ref()?;
    let what = format!("SIP account {}@{} of {}", account.user, account.registrar, integration.company);
    let config = config.sip.clone();
    Some(Probe::new(
        what,
        async move { try_registration(&config, &sip).await.map_err(|problem| Failure::new(problem, "")) },
    ))
}

/// `config` is what reading the configuration gave; `engines` makes the probes of what it names.
pub async fn run(
    _args: Args,
    config: Result<Config, ConfigError>,
    engines: impl FnOnce(&Config) -> Vec<Probe>,
) -> anyhow::Result<ExitCode> {
    let lines = match config {
        Ok(config) => {
            let mut probes = vec![store_probe(&config)];
            probes.extend(engines(&config));
            probes.extend(provider_probes(&config).await);
            let mut lines = vec![CheckLine { what: "configuration".into(), outcome: Ok(String::new()) }];
            lines.extend(check(probes, PROBE_LIMIT).await);
            lines
        }
        Err(error) => error
            .faults
            .into_iter()
            .map(|fault| CheckLine { what: "configuration".into(), outcome: Err(Failure::new(fault, "")) })
            .collect(),
    };
    print(&lines, &mut io::stdout().lock())
}

fn print(lines: &[CheckLine], out: &mut impl Write) -> anyhow::Result<ExitCode> {
    for line in lines {
        writeln!(out, "{line}")?;
    }
    Ok(if lines.iter().all(|line| line.outcome.is_ok()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_probe_gets_a_line_in_its_order_and_none_waits_for_ever() {
        let probes = vec![
            Probe::new("hangs", futures::future::pending()),
            Probe::new("works", async { Ok("142 MiB".into()) }),
            Probe::new("fails", async { Err(Failure::new("no file models/x.bin", "offhook models pull x")) }),
        ];
        let lines = check(probes, Duration::from_secs(60)).await;
        let text: Vec<String> = lines.iter().map(CheckLine::to_string).collect();
        assert!(text[0].starts_with("FAILED  hangs: no answer within 60 s"), "{text:?}");
        assert_eq!(text[1], "ok      works: 142 MiB");
        assert_eq!(text[2], "FAILED  fails: no file models/x.bin\n        offhook models pull x");
        assert_eq!(print(&lines, &mut Vec::new()).unwrap(), ExitCode::FAILURE);
        assert_eq!(print(&lines[1..2], &mut Vec::new()).unwrap(), ExitCode::SUCCESS);
    }

    #[tokio::test]
    async fn the_store_is_opened_and_its_fault_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.store.url = format!("sqlite://{}/offhook.db", dir.path().display());
        let lines = check(vec![store_probe(&config)], PROBE_LIMIT).await;
        assert_eq!(lines[0].outcome, Ok("no line is set up; `offhook apply FILE` adds some".into()));
        config.store.url = "mysql://h/d".into();
        let lines = check(vec![store_probe(&config)], PROBE_LIMIT).await;
        assert!(lines[0].to_string().contains("must begin with sqlite:// or postgres://"), "{}", lines[0]);
    }
}
