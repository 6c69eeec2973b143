//! Lines that talk by SIP. The work lies in the files below: `accounts` (who is registered and who may call), `inbound`
//! and `outbound` (calls by INVITE), `media` (what a call agrees on), `talk` (a call from its first agreement to its end),
//! `transfer` and `announcer` (the caller is handed to a person, and what both hear), `notes` (what is written down of it) and `captures`. What a call is about is the desk's to say (`desk/invites`), how it
//! talks the actor's; the messages are `protocol::sip`'s.

mod accounts;
mod announcer;
mod captures;
mod inbound;
mod media;
mod notes;
mod outbound;
mod talk;
mod transfer;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use dashmap::DashMap;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;
use uuid::Uuid;

pub use self::accounts::{RegistrationInfo, try_registration};

use self::accounts::Accounts;
use self::talk::Talk;
use self::transfer::Beside;
use crate::call::desk::{Desk, SipDialler};
use crate::call::registry::{CallSetup, Calls};
use crate::protocol::sip::core::CallRef;
use crate::store::Store;
use crate::store::directory::{Directory, Integration};
use crate::telephony::CallId;
use crate::transport::rtp_udp::RtpHandle;
use crate::transport::rtp_udp::config::RtpConfig;
use crate::transport::rtp_udp::ports::RtpPorts;
use crate::transport::sip::{self as transport, SipAddrs, SipConfig, SipHandle, SipStartError};

/// What SIP and its media are set to.
pub struct SipSide {
    pub config: SipConfig,
    pub rtp: RtpConfig,
    pub ports: RtpPorts,
}

/// SIP for all companies. Cheap to clone.
#[derive(Clone)]
pub struct SipLines {
    inner: Arc<Inner>,
}

struct Inner {
    /// For tasks that outlive the call that starts them.
    this: OnceLock<Weak<Inner>>,
    config: SipConfig,
    rtp: RtpConfig,
    ports: RtpPorts,
    desk: Desk,
    calls: Calls,
    store: Option<Store>,
    running: ArcSwapOption<Running>,
    accounts: Mutex<Accounts>,
    /// Calls that are signalled now, and whose they are.
    owners: DashMap<CallRef, Uuid>,
    /// Calls that are talked on, for captures.
    live: DashMap<CallId, Live>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// A call that is talked on.
#[derive(Clone)]
struct Live {
    sip: CallRef,
    stream: RtpHandle,
    own: IpAddr,
}

/// The transport, once somebody needs it.
struct Running {
    sip: SipHandle,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl SipLines {
    /// Watches the set-up: as soon as an integration has a SIP side, SIP is spoken. `draining`: no more calls; `closing`:
    /// unregister and end.
    pub fn start(
        SipSide { config, rtp, ports }: SipSide,
        desk: Desk,
        calls: Calls,
        store: Option<Store>,
        directory: Arc<ArcSwap<Directory>>,
        draining: CancellationToken,
        closing: CancellationToken,
    ) -> Self {
        let inner = Arc::new(Inner {
            this: OnceLock::new(),
            config,
            rtp,
            ports,
            desk,
            calls,
            store,
            running: ArcSwapOption::empty(),
            accounts: Mutex::default(),
            owners: DashMap::new(),
            live: DashMap::new(),
            tasks: TaskTracker::new(),
            closing: closing.clone(),
        });
        let _ = inner.this.set(Arc::downgrade(&inner));
        let dialler: Weak<dyn SipDialler> = Arc::downgrade(&(inner.clone() as Arc<dyn SipDialler>));
        inner.desk.use_sip(dialler);
        inner.tasks.spawn(inner.clone().watch(directory, draining, closing));
        Self { inner }
    }

    /// Where SIP listens, once it does.
    pub fn addrs(&self) -> Option<SipAddrs> {
        self.inner.running.load_full().map(|running| running.sip.addrs())
    }

    /// Pairs of media ports that could be taken now.
    pub fn free_ports(&self) -> usize {
        self.inner.ports.free()
    }

    /// Ends the signalling task without a goodbye, as a panic in it would: for tests of what follows.
    #[doc(hidden)]
    pub fn crash(&self) {
        if let Some(running) = self.inner.running.load_full()
            && let Some(task) = running.task.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
        {
            task.abort();
        }
    }

    /// Waits for goodbyes, as long as `limit`.
    pub async fn close(&self, limit: Duration) {
        let task = self
            .inner
            .running
            .load_full()
            .and_then(|running| running.task.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.inner.tasks.close();
        let all = async {
            if let Some(task) = task {
                let _ = task.await;
            }
            self.inner.tasks.wait().await;
        };
        if timeout(limit, all).await.is_err() {
            warn!("SIP calls were still being closed");
        }
    }
}

impl Inner {
    /// Short: never held across an await.
    fn accounts(&self) -> std::sync::MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn started(self: &Arc<Self>) -> Result<SipHandle, SipStartError> {
        if let Some(running) = self.running.load_full() {
            return Ok(running.sip.clone());
        }
        let (sip, incoming, task) = transport::start(&self.config, self.closing.clone()).await?;
        self.tasks.spawn(self.clone().receive(incoming));
        let running = Running { sip: sip.clone(), task: Mutex::new(Some(task)) };
        self.running.store(Some(Arc::new(running)));
        Ok(sip)
    }

    async fn talk(&self, setup: CallSetup, integration: &Integration, mut talk: Talk, peer: SocketAddr) {
        let call_ref = talk.id();
        self.owners.insert(call_ref, integration.id);
        if let Some(stream) = talk.stream() {
            self.live.insert(setup.id, Live { sip: call_ref, stream, own: talk.own_address() });
        }
        talk.run().await;
        let mut beside = Beside::default();
        let transfer = match self.wish(&setup, integration, peer) {
            Some(wish) if talk.is_signalled() => {
                Some(self.hand_over(&setup, integration, peer, &mut talk, &wish, &mut beside).await)
            }
            _ => None,
        };
        let (mut sip, stats) = talk.finish().await;
        self.owners.remove(&call_ref);
        self.live.remove(&setup.id);
        self.note_went(&setup, &stats, beside.stats.as_ref(), transfer).await;
        self.keep_ladder(&setup, &mut sip, beside.messages);
    }
}
