//! `offhook serve`: the server, until it is told to stop; then it drains.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use rand::RngExt;
use secrecy::{ExposeSecret, SecretString};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::app::App;
use crate::call::recorder;
use crate::config::Config;
use crate::http::auth::SetupLink;
use crate::store::ledger::Ledger;
use crate::store::{Store, nodes};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address and port, instead of `server.listen`.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<std::net::SocketAddr>,
}

/// The secret of the link with which the first company and its owner are made, where nobody could do it otherwise.
async fn first_start(config: &Config, store: &Store) -> anyhow::Result<Option<SecretString>> {
    if config.security.admin_token.is_some() || store.has_users().await? {
        return Ok(None);
    }
    let random: [u8; 24] = rand::rng().random();
    Ok(Some(BASE64_URL_SAFE_NO_PAD.encode(random).into()))
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
    for (file, mut record) in recorder::kept(&config.recording) {
        if store.call(record.company_id, record.id).await?.is_none() {
            // If its audio came, its folder knows more.
            match recorder::close_record(&config.recording, record.id, record.started, nodes::CRASHED) {
                Some(longer) => record = longer,
                None => record.close(record.started, nodes::CRASHED),
            }
            store.put_call(&record).await?;
        }
        std::fs::remove_file(file).ok();
    }
    let setup = first_start(&config, &store).await?;
    let public_url = config.server.public_url.clone();
    let link = setup.as_ref().map(SetupLink::new);
    let app = App::with_api(config, directory.directory.clone(), store.clone(), link, ledger).await?;
    info!(address = %app.address, "ready");
    if let Some(secret) = &setup {
        // To whoever started the server, and not into the log, which others may read.
        let base = public_url.unwrap_or_else(|| format!("http://{}", app.address));
        let base = base.trim_end_matches('/');
        println!("Nobody can log in yet. Make the first company and its owner, once, with");
        println!("  {base}/setup/{}", secret.expose_secret());
    }
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
