//! Keeping one account registered (RFC 3261 §10): refreshed before it expires, kept alive between, tried again with
//! growing pauses after a failure, and known in words to whoever operates it.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::protocol::sip::core::{AccountRef, Core, Owner};
use crate::protocol::sip::dialog::is_private;
use crate::protocol::sip::digest::{AuthError, Authenticator, Credentials};
use crate::protocol::sip::message::{Method, Request, Response};
use crate::protocol::sip::target::Target;
use crate::protocol::sip::transaction::{ClientEvent, Outcome};
use crate::protocol::sip::value::{NameAddr, SipUri, parse_ip};

/// What an account is registered as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub id: AccountRef,
    /// The user in its address of record.
    pub user: String,
    /// `sip:host[:port][;transport=…]`: its domain and where REGISTER goes.
    pub registrar: SipUri,
    pub credentials: Option<Credentials>,
    /// What we ask for, default 120 s: so long calls may miss us after the registrar lost its memory.
    pub expires: Duration,
    /// How often OPTIONS asks whether the registrar is there, and keeps a NAT open, default 30 s.
    pub keep_alive: Duration,
}

impl Account {
    pub fn new(id: AccountRef, user: impl Into<String>, registrar: SipUri) -> Self {
        Self {
            id,
            user: user.into(),
            registrar,
            credentials: None,
            expires: Duration::from_secs(120),
            keep_alive: Duration::from_secs(30),
        }
    }
}

/// How it stands, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrationStatus {
    pub state: RegistrationState,
    /// Calls reach us until then, unless it is refreshed.
    pub registered_until: Option<Instant>,
    /// In words; `None` after a success.
    pub last_error: Option<String>,
    pub next_try: Option<Instant>,
    /// Where the registrar is reached.
    pub server: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistrationState {
    Registering,
    Registered,
    /// The registrar still counts us in, but does not answer: calls may not reach us, and ours will not get out.
    Failing,
    /// Not registered; it will be tried again.
    Failed,
    /// We are ending it.
    Unregistering,
    /// We ended it. Nothing follows.
    Unregistered,
}

impl RegistrationState {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Registering => "registering",
            Self::Registered => "registered",
            Self::Failing => "failing",
            Self::Failed => "failed",
            Self::Unregistering => "unregistering",
            Self::Unregistered => "unregistered",
        }
    }
}

/// First and longest pause after a failure of the network. Each failure doubles it; a fifth more or less is chance, so
/// that many accounts do not come back in one instant.
const NETWORK_PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// The same after a refusal: a wrong password does not become right, and registrars ban who insists.
const REFUSED_PAUSE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));
/// No registrar's answer is taken for shorter than this.
const SHORTEST: Duration = Duration::from_secs(5);
/// REGISTERs of one attempt: challenges of a proxy and of the registrar, a stale nonce, 423.
const MAX_TRIES: u32 = 6;

pub struct Registration {
    pub account: Account,
    call_id: String,
    tag: String,
    seq: u32,
    auth: Authenticator,
    phase: Phase,
    /// All addresses of the registrar: calls from there are the account's.
    addresses: Vec<IpAddr>,
    /// Not yet tried in this attempt.
    targets: Vec<Target>,
    target: Option<Target>,
    expires: Duration,
    tries: u32,
    failures: u32,
    registered_until: Option<Instant>,
    last_error: Option<String>,
    /// Our address as the registrar sees it, where a NAT stands between.
    seen_as: Option<SipUri>,
    contact: Option<SipUri>,
    /// The Contact that was registered before our address was seen to be another.
    outdated: Option<SipUri>,
    ping_at: Option<Instant>,
    pinging: bool,
    /// The endpoint is to resolve the registrar.
    pub wants_resolve: bool,
    /// A connection that says nothing any more: the next message takes another.
    pub abandoned: Option<Target>,
    /// The status is to be told.
    pub changed: bool,
    pub armed: Option<Instant>,
}

enum Phase {
    /// Until when the addresses must be there.
    Resolving {
        until: Instant,
    },
    Sending,
    Registered {
        refresh_at: Instant,
    },
    Waiting {
        at: Instant,
    },
    Leaving,
    Gone,
}

impl Registration {
    pub fn new(core: &mut Core, now: Instant, account: Account) -> Self {
        let mut registration = Self {
            call_id: format!("{}{}", core.token(), core.token()),
            tag: core.token(),
            seq: 0,
            auth: Authenticator::default(),
            phase: Phase::Gone,
            addresses: Vec::new(),
            targets: Vec::new(),
            target: None,
            expires: account.expires,
            tries: 0,
            failures: 0,
            registered_until: None,
            last_error: None,
            seen_as: None,
            contact: None,
            outdated: None,
            ping_at: None,
            pinging: false,
            wants_resolve: false,
            abandoned: None,
            changed: true,
            armed: None,
            account,
        };
        registration.start(core, now);
        registration
    }

    /// Takes another password, interval or user; registers again at once.
    pub fn set_account(&mut self, core: &mut Core, now: Instant, account: Account) {
        self.auth.forget();
        self.expires = account.expires;
        self.account = account;
        self.failures = 0;
        self.start(core, now);
    }

    /// We reach the registrar by another address than before, or by the same one again: what we said of ourselves is
    /// taken back with the next REGISTER, and a connection from the old address leads nowhere.
    pub fn on_network_change(&mut self, core: &mut Core, now: Instant) {
        self.outdated = self.contact.clone();
        self.seen_as = None;
        self.failures = 0;
        self.abandon();
        self.start(core, now);
    }

    /// No address of ours leads to the registrar: said at once, though the registration's time still runs.
    pub fn on_route_lost(&mut self) {
        if !matches!(self.phase, Phase::Leaving | Phase::Gone) {
            self.last_error = Some("no network leads to the registrar".into());
            self.changed = true;
        }
    }

    fn abandon(&mut self) {
        self.abandoned = self.target.clone().filter(|target| target.transport.is_reliable());
    }

    /// Where its messages go, registered or not.
    pub fn server(&self) -> Option<&Target> {
        self.target.as_ref()
    }

    /// Begins an attempt with fresh addresses: at first, after a pause, when the network has changed.
    pub fn start(&mut self, core: &mut Core, now: Instant) {
        if matches!(self.phase, Phase::Leaving) {
            return;
        }
        self.tries = 0;
        self.pinging = false;
        self.ping_at = None;
        self.wants_resolve = true;
        self.changed = true;
        self.phase = Phase::Resolving { until: now + core.options.user_limit };
    }

    pub fn status(&self) -> RegistrationStatus {
        let state = match (&self.phase, self.registered_until) {
            (Phase::Leaving, _) => RegistrationState::Unregistering,
            (Phase::Gone, _) => RegistrationState::Unregistered,
            (_, Some(_)) if self.last_error.is_some() => RegistrationState::Failing,
            (_, Some(_)) => RegistrationState::Registered,
            (Phase::Waiting { .. }, None) => RegistrationState::Failed,
            _ => RegistrationState::Registering,
        };
        let next_try = match &self.phase {
            Phase::Registered { refresh_at } => Some(*refresh_at),
            Phase::Waiting { at } => Some(*at),
            _ => None,
        };
        RegistrationStatus {
            state,
            registered_until: self.registered_until,
            last_error: self.last_error.clone(),
            next_try,
            server: self.target().map(|target| target.addr),
        }
    }

    pub fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone)
    }

    /// Where the account is registered, for calls through it.
    pub fn target(&self) -> Option<&Target> {
        self.target.as_ref().filter(|_| self.registered_until.is_some())
    }

    pub fn contact(&self) -> Option<&SipUri> {
        self.contact.as_ref()
    }

    /// Whether a call from `ip` to `user` is one for this account.
    pub fn admits(&self, ip: IpAddr, user: &str) -> bool {
        self.account.user.eq_ignore_ascii_case(user) && self.is_from(ip)
    }

    /// Whether `ip` is the registrar's.
    pub fn is_from(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.addresses.contains(&ip)
    }

    pub fn deadline(&self) -> Option<Instant> {
        let of_phase = match &self.phase {
            Phase::Resolving { until } => Some(*until),
            Phase::Registered { refresh_at } => Some(*refresh_at),
            Phase::Waiting { at } => Some(*at),
            Phase::Sending | Phase::Leaving | Phase::Gone => None,
        };
        let ping = self.ping_at.filter(|_| matches!(self.phase, Phase::Registered { .. }));
        [of_phase, ping, self.registered_until].into_iter().flatten().min()
    }

    pub fn on_tick(&mut self, core: &mut Core, now: Instant) {
        if self.registered_until.is_some_and(|until| until <= now) {
            self.registered_until = None;
            self.changed = true;
        }
        match &self.phase {
            Phase::Resolving { until } if *until <= now => {
                self.fail(core, now, "no address of the registrar in time", false)
            }
            Phase::Registered { refresh_at } if *refresh_at <= now => {
                self.tries = 0;
                self.register(core, now);
            }
            Phase::Waiting { at } if *at <= now => self.start(core, now),
            Phase::Registered { .. } if self.ping_at.is_some_and(|at| at <= now) => self.ping(core, now),
            _ => {}
        }
    }

    /// The registrar's addresses, best first; none: the name has none.
    pub fn on_resolved(&mut self, core: &mut Core, now: Instant, mut targets: Vec<Target>) {
        if !matches!(self.phase, Phase::Resolving { .. }) {
            return;
        }
        if targets.is_empty() {
            return self.fail(core, now, "the registrar's name has no address", false);
        }
        self.addresses = targets.iter().map(|target| target.addr.ip().to_canonical()).collect();
        targets.reverse();
        self.target = targets.pop();
        self.targets = targets;
        self.register(core, now);
    }

    fn register(&mut self, core: &mut Core, now: Instant) {
        let Some(target) = self.target.clone() else { return self.start(core, now) };
        self.tries += 1;
        self.seq += 1;
        self.changed = true;
        let own = core.contact(&self.account.user, &target);
        let contact = self.seen_as.clone().unwrap_or(own);
        let mut request = self.request(Method::Register);
        let seconds = if matches!(self.phase, Phase::Leaving) { 0 } else { self.expires.as_secs() };
        request.headers.push("Contact", format!("<{contact}>;expires={seconds}"));
        if let Some(outdated) = self.outdated.as_ref().filter(|outdated| **outdated != contact) {
            request.headers.push("Contact", format!("<{outdated}>;expires=0"));
        }
        request.headers.push("Expires", seconds.to_string());
        self.contact = Some(contact);
        self.authorize(core, &mut request);
        if !matches!(self.phase, Phase::Leaving) {
            self.phase = Phase::Sending;
        }
        if core.request(now, request, target, Owner::Registration(self.account.id)).is_none() {
            self.fail(core, now, "no room for another transaction", false);
        }
    }

    fn request(&self, method: Method) -> Request {
        let mut domain = self.account.registrar.clone();
        domain.user = None;
        let mut request = Request::new(method, domain.to_string());
        domain.params = Default::default();
        domain.user = Some(self.account.user.clone());
        let own = NameAddr::new(domain);
        let mut from = own.clone();
        from.params.set("tag", self.tag.clone());
        request.headers.push("From", from.to_string());
        request.headers.push("To", own.to_string());
        request.headers.push("Call-ID", self.call_id.clone());
        request.headers.push("CSeq", format!("{} {}", self.seq, request.method));
        request
    }

    fn authorize(&mut self, core: &mut Core, request: &mut Request) {
        if let Some(credentials) = &self.account.credentials
            && self.auth.is_ready()
        {
            self.auth.authorize(request, credentials, &mut core.rng);
        }
    }

    /// What became of a REGISTER.
    pub fn on_register_event(&mut self, core: &mut Core, now: Instant, event: ClientEvent<Owner>) {
        // Only the last one counts: an older may still have been answered after a new attempt began.
        if event.request.cseq().map(|(seq, _)| seq) != Some(self.seq) {
            return;
        }
        let response = match event.outcome {
            Outcome::Response(response) if !response.is_final() => return,
            Outcome::Response(response) => response,
            _ if matches!(self.phase, Phase::Leaving) => return self.leave(),
            Outcome::TimedOut => {
                self.abandon();
                return self.on_silence(core, now, "the registrar does not answer");
            }
            Outcome::Unreachable(why) => {
                let words = format!("the registrar cannot be reached: {why}");
                return self.on_silence(core, now, &words);
            }
        };
        if matches!(response.status, 401 | 407) && self.tries < MAX_TRIES {
            match self.auth.challenged(&event.request, &response, self.account.credentials.is_some()) {
                Ok(()) => return self.register(core, now),
                Err(_) if matches!(self.phase, Phase::Leaving) => return self.leave(),
                Err(why) => {
                    if why == AuthError::Rejected {
                        self.auth.forget();
                    }
                    return self.fail(core, now, &format!("{} {why}", response.status), true);
                }
            }
        }
        if matches!(self.phase, Phase::Leaving) {
            return self.leave();
        }
        match response.status {
            200..=299 => self.on_registered(core, now, &event.request, &response),
            423 if self.tries < MAX_TRIES => match response.number("Min-Expires") {
                Some(seconds) if Duration::from_secs(seconds.into()) > self.expires => {
                    self.expires = Duration::from_secs(seconds.into());
                    self.register(core, now);
                }
                _ => self.fail(core, now, "423 without a longer interval", true),
            },
            status => {
                let words = format!("{status} {}", response.reason);
                // A server in trouble: another of the same name may do, and it may be over soon.
                if status >= 500 && !self.targets.is_empty() {
                    return self.on_silence(core, now, &words);
                }
                self.fail(core, now, &words, status < 500);
                if let (Some(seconds), Phase::Waiting { at }) = (response.number("Retry-After"), &mut self.phase) {
                    *at = (*at).max(now + Duration::from_secs(seconds.min(3600).into()));
                }
            }
        }
    }

    fn on_registered(&mut self, core: &mut Core, now: Instant, request: &Request, response: &Response) {
        let granted = self.granted(response);
        if granted.is_zero() {
            return self.fail(core, now, "the registrar did not keep our contact", true);
        }
        let granted = granted.max(SHORTEST);
        self.registered_until = Some(now + granted);
        self.last_error = None;
        self.failures = 0;
        self.outdated = None;
        self.changed = true;
        // A fifth before the end, and a little earlier by chance: refreshes of many accounts spread out.
        let share = core.between(Duration::from_millis(750), Duration::from_millis(800)).as_secs_f64();
        self.phase = Phase::Registered { refresh_at: now + granted.mul_f64(share) };
        self.ping_at.get_or_insert(now + self.account.keep_alive);
        self.learn_address(core, now, request, response);
    }

    /// The registrar may shorten the interval, in our Contact or for all (RFC 3261 §10.3).
    fn granted(&self, response: &Response) -> Duration {
        let contacts: Vec<NameAddr> =
            response.headers.list("Contact").into_iter().filter_map(NameAddr::parse).collect();
        let is_own = |contact: &&NameAddr| match (contact.uri.sip(), &self.contact) {
            (Some(theirs), Some(own)) => theirs.user == own.user && theirs.host == own.host && theirs.port == own.port,
            _ => false,
        };
        let own = contacts.iter().find(is_own).or(if contacts.len() == 1 { contacts.first() } else { None });
        let own = own.and_then(|own| own.params.get("expires")).and_then(|seconds| seconds.parse::<u32>().ok());
        let seconds = own.or_else(|| response.number("Expires"));
        seconds.map_or(self.expires, |seconds| Duration::from_secs(seconds.into()).min(Duration::from_secs(86_400)))
    }

    /// The registrar sees us at another address than we said: say that one, so that calls find their way through the NAT.
    fn learn_address(&mut self, core: &mut Core, now: Instant, request: &Request, response: &Response) {
        let Some(via) = response.top_via() else { return };
        let Some(contact) = self.contact.clone() else { return };
        let (Some(seen), Some(own)) = (via.params.get("received").and_then(parse_ip), contact.ip()) else { return };
        let port = via.params.get("rport").and_then(|port| port.parse::<u16>().ok()).or(contact.port);
        if core.options.addresses.external.is_some() || is_private(seen) {
            return;
        }
        // A connection's port is not one that could be called.
        let is_stream = request.top_via().is_some_and(|via| via.transport != "UDP");
        let port = if is_stream { contact.port } else { port };
        if (seen == own && port == contact.port) || (!is_private(own) && self.seen_as.is_none()) {
            return;
        }
        let mut seen_as = contact.clone();
        seen_as.host = crate::protocol::sip::value::host_of(seen);
        seen_as.port = port;
        self.outdated = Some(contact);
        self.seen_as = Some(seen_as);
        if self.tries < MAX_TRIES {
            self.register(core, now);
        }
    }

    fn on_silence(&mut self, core: &mut Core, now: Instant, words: &str) {
        match self.targets.pop() {
            Some(target) => {
                self.target = Some(target);
                self.register(core, now);
            }
            None => self.fail(core, now, words, false),
        }
    }

    fn fail(&mut self, core: &mut Core, now: Instant, words: &str, refused: bool) {
        let (first, longest) = if refused { REFUSED_PAUSE } else { NETWORK_PAUSE };
        let pause = first.saturating_mul(1 << self.failures.min(10)).min(longest);
        let pause = core.between(pause.mul_f64(0.8), pause.mul_f64(1.2));
        self.failures = self.failures.saturating_add(1);
        self.last_error = Some(words.to_owned());
        self.changed = true;
        self.pinging = false;
        if matches!(self.phase, Phase::Leaving) {
            return self.leave();
        }
        if refused {
            self.registered_until = None;
        }
        self.phase = Phase::Waiting { at: now + pause };
    }

    fn ping(&mut self, core: &mut Core, now: Instant) {
        self.ping_at = Some(now + self.account.keep_alive);
        if self.pinging {
            return;
        }
        let Some(target) = self.target.clone() else { return };
        // A dialog of its own each time: the sequence of REGISTER is not to have holes.
        let mut request = self.request(Method::Options);
        request.headers.set("Call-ID", core.token());
        request.headers.set("CSeq", "1 OPTIONS");
        self.pinging = core.request(now, request, target, Owner::KeepAlive(self.account.id)).is_some();
    }

    /// What became of an OPTIONS: any answer is a sign of life.
    pub fn on_ping_event(&mut self, core: &mut Core, now: Instant, event: ClientEvent<Owner>) {
        self.pinging = false;
        let answered = matches!(event.outcome, Outcome::Response(_));
        match self.phase {
            Phase::Registered { .. } if answered => self.changed |= self.last_error.take().is_some(),
            Phase::Registered { .. } => {
                self.last_error = Some("the registrar does not answer any more".into());
                self.abandon();
                self.start(core, now);
            }
            // A refresh is under way already, which has not been given up yet.
            Phase::Sending | Phase::Resolving { .. } if !answered => {
                self.last_error = Some("the registrar does not answer any more".into());
                self.changed = true;
            }
            _ => {}
        }
    }

    /// The connection to the registrar broke: what came over it cannot come any more.
    pub fn on_connection_lost(&mut self, core: &mut Core, now: Instant, target: &Target, why: &str) {
        let is_own = self.target.as_ref().is_some_and(|own| own.is_same(target));
        if is_own && matches!(self.phase, Phase::Registered { .. }) {
            self.registered_until = None;
            self.fail(core, now, &format!("the connection to the registrar was lost: {why}"), false);
        }
    }

    /// Ends the registration; `is_gone` afterwards, at the latest after 64·T1.
    pub fn unregister(&mut self, core: &mut Core, now: Instant) {
        let was_registered = self.registered_until.is_some();
        self.tries = 0;
        self.changed = true;
        if was_registered && self.target.is_some() {
            self.phase = Phase::Leaving;
            self.register(core, now);
        } else {
            self.leave();
        }
        self.registered_until = None;
    }

    fn leave(&mut self) {
        self.phase = Phase::Gone;
        self.registered_until = None;
        self.changed = true;
    }
}
