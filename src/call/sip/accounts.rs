//! Accounts: who is registered where and who may call, kept as the companies have set them up, and how an account stands.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret as _;
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Inner, SipLines};
use crate::clock;
use crate::protocol::sip::admission::{Prefix, Trunk};
use crate::protocol::sip::core::AccountRef;
use crate::protocol::sip::digest::Credentials;
use crate::protocol::sip::registration::{Account, RegistrationState, RegistrationStatus};
use crate::protocol::sip::value::SipUri;
use crate::providers::sip::{self as settings, SipSettings};
use crate::store::directory::Directory;
use crate::transport::sip::{self as transport, SipConfig, SipHandle, SipStartError};

/// How soon a change of the set-up registers and unregisters.
const SYNC: Duration = Duration::from_secs(1);
/// A port that is taken is tried again so often.
const START_AGAIN: Duration = Duration::from_secs(30);
/// A registrar that is not heard of for so long is not there.
const TRIAL_LIMIT: Duration = Duration::from_secs(20);

/// How an integration's account stands, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct RegistrationInfo {
    /// `registering`, `registered`, `failing` (the registrar has stopped answering and the registration runs out),
    /// `failed` or `unregistered`.
    pub state: &'static str,
    /// Calls reach us until then, unless it is refreshed.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub registered_until: Option<Timestamp>,
    /// Why not, in words.
    pub last_error: Option<String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_try: Option<Timestamp>,
}

impl RegistrationInfo {
    fn of(status: &RegistrationStatus) -> Self {
        let (now, wall) = (Instant::now().into_std(), clock::now());
        let when = |at: std::time::Instant| {
            let ahead = SignedDuration::try_from(at.saturating_duration_since(now)).unwrap_or_default();
            wall.checked_add(ahead).unwrap_or(wall)
        };
        Self {
            state: status.state.label(),
            registered_until: status.registered_until.map(when),
            last_error: status.last_error.clone(),
            next_try: status.next_try.map(when),
        }
    }
}

/// Numbers by which the transport knows integrations.
#[derive(Default)]
pub(super) struct Accounts {
    next: u64,
    by_integration: HashMap<Uuid, (u64, SipSettings)>,
}

impl Accounts {
    pub(super) fn owner(&self, number: u64) -> Option<Uuid> {
        self.by_integration.iter().find(|(_, (own, _))| *own == number).map(|(id, _)| *id)
    }

    /// Who logs in to us with this name.
    pub(super) fn owner_of_user(&self, user: &str) -> Option<Uuid> {
        let is_user = |settings: &SipSettings| settings.login.as_ref().is_some_and(|login| login.user == user);
        self.by_integration.iter().find(|(_, (_, settings))| is_user(settings)).map(|(id, _)| *id)
    }

    pub(super) fn account(&self, integration: Uuid) -> Option<(AccountRef, SipSettings)> {
        let (number, settings) = self.by_integration.get(&integration)?;
        settings.registration.as_ref().map(|_| (AccountRef(*number), settings.clone()))
    }
}

impl SipLines {
    /// `None`: SIP is not spoken, or this integration registers nowhere.
    pub fn registration(&self, integration: Uuid) -> Option<RegistrationInfo> {
        let running = self.inner.running.load_full()?;
        let (account, _) = self.inner.accounts().account(integration)?;
        running.sip.registrations().borrow().get(&account).map(RegistrationInfo::of)
    }
}

impl Inner {
    pub(super) async fn watch(
        self: Arc<Self>,
        directory: Arc<ArcSwap<Directory>>,
        draining: CancellationToken,
        closing: CancellationToken,
    ) {
        let mut round = interval(SYNC);
        let mut seen: Option<Arc<Directory>> = None;
        let mut takes_calls = true;
        let mut not_before = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled() => return,
                () = draining.cancelled(), if takes_calls => {
                    takes_calls = false;
                    if let Some(running) = self.running.load_full() {
                        let _ = running.sip.set_takes_calls(false).await;
                    }
                }
                _ = round.tick() => {}
            }
            if self.has_died() {
                error!("SIP failed and its calls have ended; it starts again");
                seen = None;
            }
            let current = directory.load_full();
            let known = seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &current));
            if known || Instant::now() < not_before || !takes_calls {
                continue;
            }
            match self.sync(&current).await {
                Ok(()) => seen = Some(current),
                Err(fault) => {
                    error!(%fault, "SIP lines cannot work: SIP does not start; it is tried again");
                    not_before = Instant::now() + START_AGAIN;
                }
            }
        }
    }

    /// Whether the transport has ended by itself. It is forgotten then, and what it was told.
    fn has_died(&self) -> bool {
        let Some(running) = self.running.load_full() else { return false };
        let task = running.task.lock().unwrap_or_else(PoisonError::into_inner);
        let dead = task.as_ref().is_some_and(JoinHandle::is_finished);
        if dead {
            self.running.store(None);
            self.accounts().by_integration.clear();
        }
        dead
    }

    /// Registers what is new, unregisters what is gone, and says who may call.
    async fn sync(self: &Arc<Self>, directory: &Directory) -> Result<(), SipStartError> {
        let mut wanted: HashMap<Uuid, SipSettings> = HashMap::new();
        for integration in directory.integrations() {
            match SipSettings::read(&integration.credentials) {
                Ok(Some(settings)) => drop(wanted.insert(integration.id, settings)),
                Ok(None) => {}
                Err(fault) => warn!(integration = %integration.id, %fault, "the SIP side of an integration is wrong"),
            }
        }
        if wanted.is_empty() && self.running.load().is_none() {
            return Ok(());
        }
        let sip = self.started().await?;
        let mut register = Vec::new();
        let mut unregister = Vec::new();
        let (mut trunks, mut users) = (Vec::new(), Vec::new());
        {
            let mut accounts = self.accounts();
            accounts.by_integration.retain(|id, (number, settings)| {
                let stays = wanted.contains_key(id);
                if !stays && settings.registration.is_some() {
                    unregister.push(AccountRef(*number));
                }
                stays
            });
            for (id, settings) in wanted {
                let before = accounts.by_integration.get(&id).cloned();
                let number = before.as_ref().map(|(number, _)| *number).unwrap_or_else(|| {
                    accounts.next += 1;
                    accounts.next
                });
                if before.is_none_or(|(_, before)| !before.same_registration(&settings)) {
                    match account(&sip, number, &settings) {
                        Some(account) => register.push(account),
                        None => unregister.push(AccountRef(number)),
                    }
                }
                if !settings.peers.is_empty() {
                    let peers = settings.peers.iter();
                    let peers = peers.filter_map(|peer| Prefix::new(peer.address(), peer.bits())).collect();
                    trunks.push(Trunk { id: number, peers });
                }
                users.extend(settings.login.as_ref().map(|login| Credentials {
                    user: login.user.clone(),
                    password: login.password.expose_secret().to_owned(),
                }));
                accounts.by_integration.insert(id, (number, settings));
            }
        }
        // The task is over only when the process is.
        for account in register {
            let _ = sip.register(account).await;
        }
        for account in unregister {
            let _ = sip.unregister(account).await;
        }
        let _ = sip.set_trunks(trunks).await;
        let _ = sip.set_users(users).await;
        Ok(())
    }
}

/// Registers an account once, from a port of its own, and takes it back: where its registrar is, or why not.
pub async fn try_registration(config: &SipConfig, sip: &SipSettings) -> Result<String, String> {
    let any_port = |mut addr: SocketAddr| {
        addr.set_port(0);
        addr
    };
    let config = SipConfig {
        listen: any_port(config.listen),
        listen_v6: config.listen_v6.map(any_port),
        tls_listen: None,
        ..config.clone()
    };
    let cancel = CancellationToken::new();
    let (handle, _incoming, task) =
        transport::start(&config, cancel.clone()).await.map_err(|fault| fault.to_string())?;
    let account = account(&handle, 1, sip).ok_or("it registers nowhere")?;
    let id = account.id;
    let mut standing = handle.registrations();
    let _ = handle.register(account).await;
    let outcome = standing.wait_for(|all| {
        let state = all.get(&id).map(|status| status.state);
        matches!(state, Some(RegistrationState::Registered | RegistrationState::Failed))
    });
    let outcome = match timeout(TRIAL_LIMIT, outcome).await {
        Ok(Ok(all)) => match all.get(&id) {
            Some(RegistrationStatus { state: RegistrationState::Registered, server, .. }) => {
                let server = server.map(|server| server.to_string()).unwrap_or_default();
                Ok(format!("registered at {server}"))
            }
            status => Err(status.and_then(|status| status.last_error.clone()).unwrap_or_else(|| "refused".into())),
        },
        _ => Err(format!("no answer within {} s", TRIAL_LIMIT.as_secs())),
    };
    cancel.cancel();
    let _ = task.await;
    outcome
}

/// An account as the transport registers it. `None`: the integration registers nowhere.
fn account(sip: &SipHandle, number: u64, settings: &SipSettings) -> Option<Account> {
    let registration = settings.registration.as_ref()?;
    let transport = match settings.transport {
        settings::Transport::Udp => "",
        settings::Transport::Tcp => ";transport=tcp",
        settings::Transport::Tls => ";transport=tls",
    };
    // The form of the registrar was checked with the credentials.
    let registrar = SipUri::parse(&format!("sip:{}{transport}", registration.registrar))?;
    let mut account = sip.account(AccountRef(number), &registration.user, registrar);
    account.credentials = registration
        .password
        .as_ref()
        .map(|password| Credentials { user: registration.user.clone(), password: password.expose_secret().to_owned() });
    Some(account)
}
