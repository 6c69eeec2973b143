//! `offhook serve`: the server, until it is told to stop; then it drains.

use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::app::App;
use crate::config::Config;
use crate::store::Store;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address and port, instead of `server.listen`.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<std::net::SocketAddr>,
}

pub async fn run(args: Args, mut config: Config) -> anyhow::Result<ExitCode> {
    if let Some(listen) = args.listen {
        config.server.listen = listen;
    }
    let store = Store::open(&config.store, config.security.secrets_key.as_ref())
        .await
        .context("the store could not be opened")?;
    let watch = tokio_util::sync::CancellationToken::new();
    let directory = store.watch(watch.clone()).await?;
    let app = App::start(config, directory.directory.clone()).await?;
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
    watch.cancel();
    directory.stopped().await;
    store.close().await;
    Ok(ExitCode::SUCCESS)
}
