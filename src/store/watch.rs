//! Keeps a directory in memory equal to the store: a task asks for the version of the set-up, and reads it again when
//! it has grown. That is how `offhook apply` reaches a running server without talking to it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::store::directory::Directory;
use crate::store::read::setup_version;
use crate::store::{Store, StoreError};

/// A change is used for calls within a second (DESIGN §2.1): a third of it for noticing, the rest for reading. One
/// poll is one read of one row.
const POLL: Duration = Duration::from_millis(300);

/// The directory, kept up to date until the token given to [`Store::watch`] is cancelled.
#[derive(Debug)]
pub struct DirectoryWatch {
    /// Load it for every call; a loaded snapshot does not change.
    pub directory: Arc<ArcSwap<Directory>>,
    /// How often it was replaced since the start.
    pub swaps: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl DirectoryWatch {
    /// Waits for the task to end, which it does once its token is cancelled.
    pub async fn stopped(self) {
        if let Err(failure) = self.task.await {
            error!(error = %failure, "the task that watches the store panicked");
        }
    }
}

impl Store {
    /// Reads the directory and starts to keep it up to date.
    pub async fn watch(&self, cancel: CancellationToken) -> Result<DirectoryWatch, StoreError> {
        let (seen, first) = self.versioned_directory().await?;
        let directory = Arc::new(ArcSwap::from_pointee(first));
        let (swapped, swaps) = watch::channel(0);
        let watcher = Watcher { store: self.clone(), seen, directory: directory.clone(), swapped };
        let task = tokio::spawn(watcher.run(cancel));
        Ok(DirectoryWatch { directory, swaps, task })
    }
}

struct Watcher {
    store: Store,
    /// The version that the directory was read at.
    seen: i64,
    directory: Arc<ArcSwap<Directory>>,
    swapped: watch::Sender<u64>,
}

impl Watcher {
    async fn run(mut self, cancel: CancellationToken) {
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failed = None;
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                _ = poll.tick() => {}
            }
            // A failure is said once, not three times a second; calls go on with what was read before.
            match self.refresh().await {
                Ok(()) => failed = None,
                Err(problem) => {
                    let problem = problem.to_string();
                    if failed.as_ref() != Some(&problem) {
                        error!(error = %problem, "cannot read the store; calls use the set-up that was read before");
                    }
                    failed = Some(problem);
                }
            }
        }
    }

    async fn refresh(&mut self) -> Result<(), StoreError> {
        if setup_version(&self.store.db).await? == self.seen {
            return Ok(());
        }
        let (version, directory) = self.store.versioned_directory().await?;
        info!(integrations = directory.integrations().count(), lines = directory.lines().count(), "set-up read again");
        self.directory.store(Arc::new(directory));
        self.seen = version;
        self.swapped.send_modify(|swaps| *swaps += 1);
        Ok(())
    }
}
