//! `offhook serve`: the server, until it is told to stop; then it drains.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::app::App;
use crate::call::recorder;
use crate::config::Config;
use crate::store::ledger::Ledger;
use crate::store::{Store, nodes};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address and port, instead of `server.listen`.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<std::net::SocketAddr>,
}

/// How long the last records may take to reach a store that is slow.
const LAST_RECORDS: Duration = Duration::from_secs(5);

pub async fn run(args: Args, mut config: Config) -> anyhow::Result<ExitCode> {
    if let Some(listen) = args.listen {
        config.server.listen = listen;
    }
    let store = Store::open(&config.store, config.security.secrets_key.as_ref())
        .await
        .context("the store could not be opened")?;
    let watch = tokio_util::sync::CancellationToken::new();
    let directory = store.watch(watch.clone()).await?;
    let (ledger, records, crashed) = Ledger::start(store.clone()).await?;
    for call in &crashed {
        if let Some(record) = recorder::close_record(&config.recording, call.call(), *call.ended_at, nodes::CRASHED) {
            store.put_if_longer(&record).await?;
        }
    }
    let app = App::start(config, directory.directory.clone(), Some(store.clone()), ledger).await?;
    info!(address = %app.address, "ready");
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    info!(calls = app.calls.active(), "draining; a second signal ends at once");
    tokio::select! {
        () = app.stop() => {}
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    records.stop(LAST_RECORDS).await;
    watch.cancel();
    directory.stopped().await;
    store.close().await;
    Ok(ExitCode::SUCCESS)
}
