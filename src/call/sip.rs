//! Lines that talk by SIP: which accounts are registered and which addresses may call, kept as the companies have set
//! them up; calls that come in and calls that go out by INVITE. What a call is about is the desk's to say (`desk/invites`),
//! how it talks the actor's; the messages are `protocol::sip`'s.

mod media;
mod talk;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use dashmap::DashMap;
use futures::future::BoxFuture;
use futures::stream::{self, Stream};
use futures::{FutureExt as _, StreamExt as _};
use jiff::{SignedDuration, Timestamp};
use metrics::counter;
use secrecy::ExposeSecret as _;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, error, info, info_span, warn};
use utoipa::ToSchema;
use uuid::Uuid;

use self::media::Media;
use self::talk::{Talk, TalkError, Went, end_of};
use crate::call::desk::{Desk, Invite, Offer, OutboundError, SipDialler};
use crate::call::registry::{CallSetup, Calls, Refused};
use crate::clock;
use crate::protocol::capture;
use crate::protocol::sip::admission::{Admitted, Prefix, Trunk};
use crate::protocol::sip::call::{CallCommand, CallEvent, Cause, Ended, Refusal};
use crate::protocol::sip::core::{AccountRef, CallRef};
use crate::protocol::sip::digest::Credentials;
use crate::protocol::sip::endpoint::{AccountDial, Incoming};
use crate::protocol::sip::registration::{RegistrationState, RegistrationStatus};
use crate::protocol::sip::target::Transport;
use crate::protocol::sip::value::{NameAddr, SipUri};
use crate::providers::provider::CallOutcome;
use crate::providers::rest::ProviderError;
use crate::providers::sip::{self as settings, SipSettings};
use crate::store::calls::{ProviderNews, SipNotes, SipRung};
use crate::store::directory::{Directory, Integration};
use crate::store::{At, Store};
use crate::telephony::{CallEnd, CallId, EndReason, Party};
use crate::transport::rtp_udp::RtpHandle;
use crate::transport::rtp_udp::config::RtpConfig;
use crate::transport::rtp_udp::ports::RtpPorts;
use crate::transport::rtp_udp::tap::Tap;
use crate::transport::sip::{self as transport, SipAddrs, SipCall, SipConfig, SipHandle, SipIncoming, SipStartError};

/// How soon a change of the set-up registers and unregisters.
const SYNC: Duration = Duration::from_secs(1);
/// A port that is taken is tried again so often.
const START_AGAIN: Duration = Duration::from_secs(30);
/// A registrar that is not heard of for so long is not there.
const TRIAL_LIMIT: Duration = Duration::from_secs(20);
/// The messages of a call are complete at the latest 64 · T1 after its end (RFC 3261 §17).
const LADDER_LIMIT: Duration = Duration::from_secs(60);

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

/// Numbers by which the transport knows integrations.
#[derive(Default)]
struct Accounts {
    next: u64,
    by_integration: HashMap<Uuid, (u64, SipSettings)>,
}

impl Accounts {
    fn owner(&self, number: u64) -> Option<Uuid> {
        self.by_integration.iter().find(|(_, (own, _))| *own == number).map(|(id, _)| *id)
    }

    /// Who logs in to us with this name.
    fn owner_of_user(&self, user: &str) -> Option<Uuid> {
        let is_user = |settings: &SipSettings| settings.login.as_ref().is_some_and(|login| login.user == user);
        self.by_integration.iter().find(|(_, (_, settings))| is_user(settings)).map(|(id, _)| *id)
    }

    fn account(&self, integration: Uuid) -> Option<(AccountRef, SipSettings)> {
        let (number, settings) = self.by_integration.get(&integration)?;
        settings.registration.as_ref().map(|_| (AccountRef(*number), settings.clone()))
    }
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

    /// `None`: SIP is not spoken, or this integration registers nowhere.
    pub fn registration(&self, integration: Uuid) -> Option<RegistrationInfo> {
        let running = self.inner.running.load_full()?;
        let (account, _) = self.inner.accounts().account(integration)?;
        running.sip.registrations().borrow().get(&account).map(RegistrationInfo::of)
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

    /// A capture file of a call that is talked on, piece by piece: its messages so far, then its media until the call
    /// ends, `limit` is over or nobody reads any more. `None`: no such call here.
    pub async fn capture(&self, call: CallId, limit: Duration) -> Option<impl Stream<Item = Bytes> + use<>> {
        let running = self.inner.running.load_full()?;
        let Live { sip, stream, own } = self.inner.live.get(&call)?.clone();
        let (tap, copies) = Tap::new();
        let mut begin = capture::head();
        let (now, wall) = (Instant::now().into_std(), clock::now());
        let port = running.sip.addrs().udp.map_or(0, |addr| addr.port());
        for rung in running.sip.ladder(sip).await {
            let ago = SignedDuration::try_from(now.saturating_duration_since(rung.at)).unwrap_or_default();
            let (ours, peer) = (SocketAddr::new(own, port), rung.peer.addr);
            let (from, to) = if rung.sent { (ours, peer) } else { (peer, ours) };
            capture::write(&mut begin, since_1970(wall - ago), from, to, rung.text.as_bytes());
        }
        stream.tap(Some(tap)).await.then_some(())?;
        let end = Instant::now() + limit;
        let media = stream::unfold(copies, move |mut copies| async move {
            let copy = timeout_at(end, copies.recv()).await.ok().flatten()?;
            let (ours, peer) = (SocketAddr::new(own, copy.port), copy.peer);
            let (from, to) = if copy.incoming { (peer, ours) } else { (ours, peer) };
            let mut piece = Vec::with_capacity(copy.bytes.len() + 64);
            capture::write(&mut piece, since_1970(copy.at), from, to, &copy.bytes);
            Some((Bytes::from(piece), copies))
        });
        Some(stream::once(async move { Bytes::from(begin) }).chain(media))
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

    async fn watch(
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

    /// Takes calls until the transport ends. Each is a task of its own; how many there are is the endpoint's limit.
    async fn receive(self: Arc<Self>, mut incoming: mpsc::Receiver<SipIncoming>) {
        while let Some(SipIncoming { incoming, call }) = incoming.recv().await {
            let span = info_span!("sip", sip_call = %incoming.call_id);
            self.tasks.spawn(self.clone().take(incoming, call).instrument(span));
        }
    }

    /// Whose line an INVITE is for.
    fn owner(&self, incoming: &Incoming) -> Option<Arc<Integration>> {
        let id = match &incoming.admitted {
            Admitted::Account(AccountRef(number)) | Admitted::Trunk(number) => self.accounts().owner(*number),
            Admitted::User(user) => self.accounts().owner_of_user(user),
            Admitted::Replaces => incoming.replaces.and_then(|call| self.owners.get(&call).map(|owner| *owner)),
        };
        self.desk.directory().integration(id?).cloned()
    }

    async fn take(self: Arc<Self>, incoming: Incoming, call: SipCall) {
        let count = |result: &'static str| counter!("offhook_sip_calls_total", "result" => result).increment(1);
        let refuse = async |call: &SipCall, status: u16| {
            let _ = call.command(CallCommand::Refuse { status }).await;
        };
        let Some(integration) = self.owner(&incoming) else {
            // The integration went away a moment ago.
            count("unknown");
            return refuse(&call, 404).await;
        };
        let setup = match self.desk.invited(&integration, &invite(&incoming, &integration)) {
            Offer::Talk(setup) => *setup,
            Offer::Busy(refused) => {
                warn!(reason = %refused, "call refused");
                count("refused");
                return refuse(&call, if refused == Refused::NotSetUp { 480 } else { 503 }).await;
            }
            Offer::NotInService | Offer::Route(_) | Offer::AsItIs => {
                warn!(integration = %integration.id, "call for a line that is not set up");
                count("unknown_line");
                return refuse(&call, 404).await;
            }
        };
        let (id, from, line) = (setup.id, setup.from.clone(), setup.line.clone());
        info!(call_id = %id, integration = %integration.id, %from, line, "call offered");
        let secure = incoming.source.transport == Transport::Tls;
        let opened = Media::open(&self.ports, &self.rtp, incoming.source.addr, self.config.external_ip, secure);
        let agreed = opened.and_then(|mut media| match &incoming.offer {
            Some(offer) => media.answer(offer).map(|(body, plan)| (media, body, Some(plan))),
            None => {
                let body = media.offer();
                Ok((media, body, None))
            }
        });
        let (mut media, body, plan) = match agreed {
            Ok(agreed) => agreed,
            Err(fault) => {
                warn!(call_id = %id, %fault, "no media for a call");
                count("no_media");
                return refuse(&call, fault.status()).await;
            }
        };
        self.calls.offer(&setup).await;
        self.desk.note_sip_call(&setup, &incoming.call_id);
        let mut call = call;
        let answer = CallCommand::Answer { body };
        let plan = match plan {
            Some(plan) => plan,
            None => {
                // Our offer goes with the 200; what the peer agrees to comes with the ACK.
                let _ = call.command(answer.clone()).await;
                match acked(&mut call).await {
                    Ok(answer) => match media.accept(&answer) {
                        Ok(plan) => plan,
                        Err(fault) => {
                            warn!(call_id = %id, %fault, "no media for a call");
                            count("no_media");
                            return self.never(&setup, Some(488), CallOutcome::Failed).await;
                        }
                    },
                    Err(_) => {
                        count("gone");
                        return self.never(&setup, None, CallOutcome::Failed).await;
                    }
                }
            }
        };
        let early = incoming.offer.is_some();
        match Talk::begin(&self.calls, setup.clone(), call, media, plan) {
            Ok(talk) => {
                if early {
                    talk.command(answer).await;
                }
                count("taken");
                self.talk(setup, &integration, talk, incoming.source.addr).await;
            }
            Err((call, fault)) => {
                warn!(call_id = %id, %fault, "a call could not begin");
                count("refused");
                let status = match fault {
                    TalkError::Media(fault) => fault.status(),
                    TalkError::Refused(_) => 503,
                };
                if early {
                    refuse(&call, status).await;
                }
                self.never(&setup, Some(status), CallOutcome::Failed).await;
            }
        }
    }

    async fn talk(&self, setup: CallSetup, integration: &Integration, talk: Talk, peer: SocketAddr) {
        let call_ref = talk.id();
        self.owners.insert(call_ref, integration.id);
        if let Some(stream) = talk.stream() {
            self.live.insert(setup.id, Live { sip: call_ref, stream, own: talk.own_address() });
        }
        let domain = match self.accounts().account(integration.id) {
            Some((_, SipSettings { registration: Some(registration), .. })) => registration.registrar.clone(),
            _ => peer.to_string(),
        };
        let (calls, id) = (self.calls.clone(), setup.id);
        let transfer_to = move || {
            let over = calls.over(id).filter(|over| over.handover && !over.agent.transfer_to.is_empty())?;
            Some(target_of(&over.agent.transfer_to, &domain))
        };
        let (mut sip, Went { stats, transfer }) = talk.run(transfer_to).await;
        self.owners.remove(&call_ref);
        self.live.remove(&id);
        let Some(store) = &self.store else { return };
        let notes = SipNotes {
            quality: Some(serde_json::to_value(&stats).unwrap_or_default()),
            transfer_status: transfer,
            ladder: Vec::new(),
        };
        if let Err(error) = store.note_sip(setup.company_id, id, &notes).await {
            warn!(call_id = %id, %error, "the quality of a call could not be noted");
        }
        self.keep_ladder(&setup, &mut sip);
        drop(sip);
    }

    /// The messages of a call, once nothing of it can come any more.
    fn keep_ladder(&self, setup: &CallSetup, sip: &mut SipCall) {
        let (Some(store), Some(record)) = (self.store.clone(), sip.take_record()) else { return };
        let (company, id, now, wall) = (setup.company_id, setup.id, Instant::now().into_std(), clock::now());
        let closing = self.closing.clone();
        self.tasks.spawn(async move {
            let record = tokio::select! {
                record = timeout(LADDER_LIMIT, record) => record,
                // What came so far is lost with the process: the call's record is not.
                () = closing.cancelled() => return,
            };
            let Ok(Ok(record)) = record else { return };
            let ladder = record.ladder.into_iter().map(|rung| {
                let ago = SignedDuration::try_from(now.saturating_duration_since(rung.at)).unwrap_or_default();
                let later = SignedDuration::try_from(rung.at.saturating_duration_since(now)).unwrap_or_default();
                SipRung { at: wall - ago + later, sent: rung.sent, peer: rung.peer.to_string(), text: rung.text }
            });
            let notes = SipNotes { ladder: ladder.collect(), ..SipNotes::default() };
            if let Err(error) = store.note_sip(company, id, &notes).await {
                warn!(call_id = %id, %error, "the SIP messages of a call could not be noted");
            }
        });
    }

    /// Closes the record of a call that nobody talked on.
    async fn never(&self, setup: &CallSetup, status: Option<u16>, outcome: CallOutcome) {
        let Some(store) = &self.store else { return };
        let news = ProviderNews {
            status: status.map(|status| status.to_string()),
            ended: Some((At(clock::now()), outcome)),
            ..ProviderNews::default()
        };
        if let Err(error) = store.note_provider(setup.company_id, setup.id, &news).await {
            warn!(call_id = %setup.id, %error, "a call that did not begin could not be closed");
        }
    }

    /// Waits for the other side of a call that we make.
    async fn place(
        self: Arc<Self>,
        setup: CallSetup,
        integration: Arc<Integration>,
        mut sip: SipCall,
        mut media: Media,
    ) {
        let hangup = self.calls.rings(setup.id);
        let mut outcome = CallOutcome::Failed;
        let answer = loop {
            let event = tokio::select! {
                biased;
                () = hangup.cancelled() => {
                    sip.hang_up();
                    self.keep_ladder(&setup, &mut sip);
                    outcome = CallOutcome::Canceled;
                    break None;
                }
                event = sip.recv() => event,
            };
            match event {
                Some(CallEvent::Answered { answer: Some(answer) }) => break Some(answer),
                Some(CallEvent::Ringing | CallEvent::EarlyMedia { .. }) => self.note_ringing(&setup).await,
                Some(CallEvent::Ended(ended)) => {
                    self.calls.rings_no_more(setup.id);
                    return self.note_unanswered(&setup, &mut sip, &ended).await;
                }
                Some(_) => {}
                None => break None,
            }
        };
        self.calls.rings_no_more(setup.id);
        let Some(answer) = answer else { return self.never(&setup, None, outcome).await };
        let plan = match media.accept(&answer) {
            Ok(plan) => plan,
            Err(fault) => {
                warn!(call_id = %setup.id, %fault, "the answer to our call makes no sense");
                return self.never(&setup, Some(488), CallOutcome::Failed).await;
            }
        };
        let peer = plan.remote.unwrap_or_else(|| ([0, 0, 0, 0], 0).into());
        match Talk::begin(&self.calls, setup.clone(), sip, media, plan) {
            Ok(talk) => self.talk(setup, &integration, talk, peer).await,
            Err((_, fault)) => {
                warn!(call_id = %setup.id, %fault, "a call could not begin");
                self.never(&setup, None, CallOutcome::Failed).await;
            }
        }
    }

    async fn note_ringing(&self, setup: &CallSetup) {
        let Some(store) = &self.store else { return };
        let news = ProviderNews { status: Some("ringing".into()), ..ProviderNews::default() };
        if let Err(error) = store.note_provider(setup.company_id, setup.id, &news).await {
            warn!(call_id = %setup.id, %error, "the ringing of a call could not be noted");
        }
    }

    async fn note_unanswered(&self, setup: &CallSetup, sip: &mut SipCall, ended: &Ended) {
        info!(call_id = %setup.id, cause = ?ended.cause, status = ended.status, "a call was not answered");
        let outcome = match ended.cause {
            Cause::Refused(Refusal::Busy | Refusal::Declined) => CallOutcome::Busy,
            Cause::Refused(Refusal::NoAnswer) | Cause::NoAnswer => CallOutcome::NoAnswer,
            Cause::Cancelled | Cause::HungUp | Cause::Declined => CallOutcome::Canceled,
            _ => CallOutcome::Failed,
        };
        self.keep_ladder(setup, sip);
        let Some(store) = &self.store else { return };
        let status = match (ended.status, ended.text.as_str()) {
            (Some(status), text) => format!("{status} {text}").trim_end().to_owned(),
            (None, text) => text.to_owned(),
        };
        let news = ProviderNews {
            status: Some(status).filter(|status| !status.is_empty()),
            ended: Some((At(clock::now()), outcome)),
            ..ProviderNews::default()
        };
        if let Err(error) = store.note_provider(setup.company_id, setup.id, &news).await {
            warn!(call_id = %setup.id, %error, "the end of a call could not be noted");
        }
    }
}

impl SipDialler for Inner {
    fn dial(
        &self,
        integration: Arc<Integration>,
        setup: CallSetup,
        ring: Duration,
    ) -> BoxFuture<'_, Result<(), OutboundError>> {
        async move {
            let cannot = |problem: &str| ProviderError::Invalid { field: "line", problem: problem.to_owned() };
            let running = self.running.load_full().ok_or_else(|| cannot("SIP is not running on this server"))?;
            let (account, settings) = self
                .accounts()
                .account(integration.id)
                .ok_or_else(|| cannot("its integration has no account that is registered: set sip.registrar"))?;
            let status = running.sip.registrations().borrow().get(&account).cloned();
            let peer = match status {
                Some(RegistrationStatus { state: RegistrationState::Registered, server: Some(server), .. }) => server,
                status => {
                    let why = status.and_then(|status| status.last_error).unwrap_or_else(|| "not yet".to_owned());
                    return Err(cannot(&format!("its account is not registered: {why}")).into());
                }
            };
            let mut media = Media::open(&self.ports, &self.rtp, peer, self.config.external_ip, false)
                .map_err(|fault| cannot(&fault.to_string()))?;
            let to = match settings.plain_numbers {
                true => setup.to.as_str().trim_start_matches('+').to_owned(),
                false => setup.to.as_str().to_owned(),
            };
            let dial = AccountDial {
                account,
                to,
                display: String::new(),
                headers: Vec::new(),
                offer: media.offer(),
                ring_limit: Some(ring),
            };
            let sip = running.sip.dial_account(dial).await.map_err(|fault| cannot(&fault.to_string()))?;
            let this = self.this.get().and_then(Weak::upgrade).ok_or(OutboundError::TooMany)?;
            let span = info_span!("sip", call_id = %setup.id);
            self.tasks.spawn(this.place(setup, integration, sip, media).instrument(span));
            Ok(())
        }
        .boxed()
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
fn account(
    sip: &SipHandle,
    number: u64,
    settings: &SipSettings,
) -> Option<crate::protocol::sip::registration::Account> {
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

fn since_1970(at: Timestamp) -> Duration {
    Duration::from_micros(at.as_microsecond().unsigned_abs())
}

/// What an INVITE says of its call.
fn invite(incoming: &Incoming, integration: &Integration) -> Invite {
    let asserted = incoming
        .headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("P-Asserted-Identity"))
        .and_then(|(_, value)| NameAddr::parse(value));
    let from = asserted.as_ref().map_or(&incoming.from.uri, |asserted| &asserted.uri).user();
    let requested = SipUri::parse(&incoming.request_uri).map(|uri| uri.user_name());
    let account = SipSettings::read(&integration.credentials).ok().flatten().and_then(|settings| settings.registration);
    let mut called: Vec<String> = requested.into_iter().collect();
    called.push(incoming.to.uri.user());
    called.extend(account.map(|account| account.user));
    called.retain(|name| !name.is_empty());
    called.dedup();
    let hidden = from.eq_ignore_ascii_case("anonymous") || from.eq_ignore_ascii_case("unknown");
    Invite { sip_call: incoming.call_id.to_string(), from: if hidden { String::new() } else { from }, called }
}

/// The answer that comes with the ACK of an offer of ours.
async fn acked(call: &mut SipCall) -> Result<Bytes, CallEnd> {
    while let Some(event) = call.recv().await {
        match event {
            CallEvent::Acked { answer: Some(answer) } => return Ok(answer),
            CallEvent::Ended(ended) => return Err(end_of(&ended)),
            CallEvent::Acked { answer: None } => break,
            _ => {}
        }
    }
    Err(CallEnd::new(Party::Carrier, EndReason::ProtocolError))
}

/// A number or user becomes an address at the line's own domain; an address stays.
fn target_of(to: &str, domain: &str) -> String {
    if to.starts_with("sip:") || to.starts_with("sips:") {
        to.to_owned()
    } else if to.contains('@') {
        format!("sip:{to}")
    } else {
        format!("sip:{to}@{domain}")
    }
}
