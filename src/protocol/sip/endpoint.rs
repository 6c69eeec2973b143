//! The whole of a SIP endpoint without its sockets: messages from peers, commands of the user and the time go in; bytes
//! to be sent, names to be resolved and events come out.
//!
//! A request is looked at in the order of what it costs: the rate of its address, its form, whether it repeats another,
//! whether it belongs to a call, whether its sender may call at all. Until that is known it is answered without memory.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::protocol::sip::admission::{Admitted, Peers, Trunk};
use crate::protocol::sip::alarm::Alarm;
use crate::protocol::sip::call::{Call, CallCommand, CallEvent, Dial, refuse_interval};
use crate::protocol::sip::check::{ALLOW, Framing, SUPPORTED, Verdict, inspect, read};
use crate::protocol::sip::core::{AccountRef, Addresses, CallRef, Core, Options, Owner};
use crate::protocol::sip::dialog::{literal_target, transport_of};
use crate::protocol::sip::digest::{Credentials, Verified, Verifier};
use crate::protocol::sip::ladder::Rung;
use crate::protocol::sip::message::{Method, Request, Response};
use crate::protocol::sip::registration::{Account, Registration, RegistrationStatus};
use crate::protocol::sip::target::{Send, Target, Transport};
use crate::protocol::sip::transaction::{Arrival, ClientEvent, Transactions, stamp};
use crate::protocol::sip::value::{NameAddr, SipUri, Uri, unescape};

/// What the endpoint wants done.
#[derive(Clone, Debug)]
pub enum Output {
    Send(Send),
    /// Find the addresses of a host and report them with `on_resolved`.
    Resolve(Resolve),
    /// Use this connection no more: it leads to nobody.
    Abandon(Target),
    Event(Event),
}

/// A name to be looked up by RFC 3263.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolve {
    pub id: u64,
    pub host: String,
    /// Absent: by SRV where there is such, else the transport's own.
    pub port: Option<u16>,
    /// `None`: whatever the name offers, by NAPTR where there is such, else UDP.
    pub transport: Option<Transport>,
}

#[derive(Clone, Debug)]
pub enum Event {
    /// Somebody who may calls: answer by `CallCommand`.
    Incoming(Box<Incoming>),
    Call {
        call: CallRef,
        event: CallEvent,
    },
    /// Nothing of the call can come any more. These were its messages.
    Closed {
        call: CallRef,
        call_id: Arc<str>,
        ladder: Vec<Rung>,
        /// Messages that did not fit the ladder.
        dropped: usize,
    },
    Registration {
        account: AccountRef,
        status: RegistrationStatus,
    },
}

/// An inbound call.
#[derive(Clone, Debug)]
pub struct Incoming {
    pub call: CallRef,
    pub call_id: Arc<str>,
    pub request_uri: String,
    pub from: NameAddr,
    pub to: NameAddr,
    /// All header fields but those of authentication, in their order: `X-…`, Diversion, P-Asserted-Identity and so on.
    pub headers: Vec<(String, String)>,
    /// `None`: the answer must be an offer.
    pub offer: Option<Bytes>,
    pub source: Target,
    pub admitted: Admitted,
    /// The call that ends when this one is answered.
    pub replaces: Option<CallRef>,
}

/// A call by an account, to whom its registrar knows.
#[derive(Clone, Debug)]
pub struct AccountDial {
    pub account: AccountRef,
    /// A number or user at the registrar's domain, or a whole `sip:` URI.
    pub to: String,
    /// Shown as the caller's name; empty for none.
    pub display: String,
    pub headers: Vec<(String, String)>,
    pub offer: Bytes,
    pub ring_limit: Option<Duration>,
}

/// Why a call was not even tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// Try again when a call has ended.
    #[error("too many calls")]
    TooManyCalls,
    #[error("no such account")]
    UnknownAccount,
    /// Not a number, a user or a SIP URI.
    #[error("not a number or SIP address")]
    BadTarget,
}

/// What was seen, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub messages: u64,
    /// Above the rate of their address: not read.
    pub flooded: u64,
    /// Not SIP, or nothing that could be answered.
    pub malformed: u64,
    /// Answered with an error and forgotten.
    pub refused: u64,
    /// Not answered, since their address had its refusals.
    pub silenced: u64,
    /// Answered 503.
    pub overloaded: u64,
    pub calls_in: u64,
    pub calls_out: u64,
    /// Messages sent once more because nothing came back.
    pub repeated: u64,
}

pub struct Endpoint {
    core: Core,
    calls: HashMap<CallRef, Call>,
    by_call_id: HashMap<Arc<str>, Vec<CallRef>>,
    per_peer: HashMap<IpAddr, usize>,
    peer_of: HashMap<CallRef, IpAddr>,
    registrations: HashMap<AccountRef, Registration>,
    trunks: Vec<Trunk>,
    verifier: Verifier,
    peers: Peers,
    alarm: Alarm<Timer>,
    resolving: HashMap<u64, Resolving>,
    outputs: VecDeque<Output>,
    touched: Vec<CallRef>,
    takes_calls: bool,
    /// Makes the tags of answers that are not remembered: the same for a repeated request.
    tag_secret: u64,
    next_id: u64,
    stats: Stats,
}

#[derive(Clone, Copy)]
enum Timer {
    Call(CallRef),
    Registration(AccountRef),
}

#[derive(Clone, Copy)]
enum Resolving {
    Call(CallRef),
    Registration(AccountRef),
}

/// Calls of one Call-ID: forks and both legs of a loop. More is an attack on whoever walks the list.
const MAX_SAME_CALL_ID: usize = 8;
/// Calls follow a new address of ours behind the registrations, and 20 in a second: 200 calls take ten, and no PBX gets
/// all their offers at once.
const MOVE_AFTER: Duration = Duration::from_secs(1);
const MOVE_EVERY: Duration = Duration::from_millis(50);
/// The finest step of timers.
const GRAIN: Duration = Duration::from_millis(1);

impl Endpoint {
    /// `seed` must be random: tags, branches and nonces come of it.
    pub fn new(now: Instant, options: Options, seed: [u8; 32]) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let mut secret = [0; 32];
        rng.fill_bytes(&mut secret);
        let limits = options.limits.clone();
        Self {
            verifier: Verifier::new(options.agent.clone(), secret, now, Duration::from_secs(300)),
            tag_secret: rng.next_u64(),
            core: Core { transactions: Transactions::new(options.timers, limits.max_transactions), options, rng },
            calls: HashMap::new(),
            by_call_id: HashMap::new(),
            per_peer: HashMap::new(),
            peer_of: HashMap::new(),
            registrations: HashMap::new(),
            trunks: Vec::new(),
            peers: Peers::new(limits),
            alarm: Alarm::default(),
            resolving: HashMap::new(),
            outputs: VecDeque::new(),
            touched: Vec::new(),
            takes_calls: true,
            next_id: 1,
            stats: Stats::default(),
        }
    }

    pub fn stats(&self) -> Stats {
        Stats { repeated: self.core.transactions.repeated, ..self.stats }
    }

    /// Calls that are not over.
    pub fn call_count(&self) -> usize {
        self.calls.values().filter(|call| call.is_live()).count()
    }

    /// Everything held: calls, transactions, addresses. Zero but for addresses when all is over.
    pub fn held(&self) -> (usize, usize, usize) {
        (self.calls.len(), self.core.transactions.len(), self.peers.len())
    }

    /// What is to be done next; call it until it says `None`.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When `on_tick` is wanted.
    pub fn deadline(&self) -> Option<Instant> {
        [self.core.transactions.deadline(), self.alarm.next()].into_iter().flatten().min()
    }

    /// The messages of a call so far.
    pub fn ladder(&self, call: CallRef) -> Vec<Rung> {
        self.calls.get(&call).map(|call| call.ladder.rungs().cloned().collect()).unwrap_or_default()
    }

    // Commands.

    /// Trunks whose addresses may call.
    pub fn set_trunks(&mut self, trunks: Vec<Trunk>) {
        self.trunks = trunks;
    }

    /// Users who may call by digest.
    pub fn set_users(&mut self, users: Vec<Credentials>) {
        self.verifier.set_users(users);
    }

    /// `false`: new calls and OPTIONS are answered 503, running calls go on.
    pub fn set_takes_calls(&mut self, takes_calls: bool) {
        self.takes_calls = takes_calls;
    }

    /// Registers an account, or takes its new settings and registers again.
    pub fn register(&mut self, now: Instant, account: Account) {
        let id = account.id;
        match self.registrations.get_mut(&id) {
            Some(registration) if registration.account == account => {}
            Some(registration) => registration.set_account(&mut self.core, now, account),
            None => {
                let registration = Registration::new(&mut self.core, now, account);
                self.registrations.insert(id, registration);
            }
        }
        self.settle_registration(now, id);
        self.flush(now);
    }

    pub fn unregister(&mut self, now: Instant, account: AccountRef) {
        if let Some(registration) = self.registrations.get_mut(&account) {
            registration.unregister(&mut self.core, now);
        }
        self.settle_registration(now, account);
        self.flush(now);
    }

    pub fn registration(&self, account: AccountRef) -> Option<RegistrationStatus> {
        self.registrations.get(&account).map(Registration::status)
    }

    /// Where registrations are kept, whether they stand or not.
    pub fn registrars(&self) -> impl Iterator<Item = IpAddr> {
        self.registrations.values().filter_map(|registration| Some(registration.server()?.addr.ip()))
    }

    /// How the world reaches us from here on; calls that run keep what they have said
    /// ([`Endpoint::on_new_addresses`] tells them).
    pub fn set_addresses(&mut self, addresses: Addresses) {
        self.core.options.addresses = addresses;
    }

    /// No address of ours leads to this registrar any more.
    pub fn on_route_lost(&mut self, now: Instant, registrar: IpAddr) {
        let at = |registration: &Registration| registration.server().is_some_and(|own| own.addr.ip() == registrar);
        let lost = self.registrations.iter().filter(|(_, registration)| at(registration));
        let lost: Vec<AccountRef> = lost.map(|(id, _)| *id).collect();
        for account in lost {
            if let Some(registration) = self.registrations.get_mut(&account) {
                registration.on_route_lost();
            }
            self.settle_registration(now, account);
        }
    }

    /// The network came back or became another: register everywhere at once.
    pub fn on_network_change(&mut self, now: Instant) {
        let accounts: Vec<AccountRef> = self.registrations.keys().copied().collect();
        for account in accounts {
            if let Some(registration) = self.registrations.get_mut(&account) {
                registration.on_network_change(&mut self.core, now);
            }
            self.settle_registration(now, account);
        }
        self.flush(now);
    }

    /// Where the peers of calls in a dialog are. A peer of several calls comes as often.
    pub fn call_peers(&self) -> impl Iterator<Item = IpAddr> {
        let live = self.calls.values().filter(|call| call.is_live());
        live.filter_map(|call| Some(call.next_hop()?.addr.ip().to_canonical()))
    }

    /// The network became another: the world reaches us by `addresses` from here on. Accounts register again at once;
    /// calls whose peers know another address of ours than the one that leads there are told so one after the other
    /// ([`CallEvent::Moved`]), behind the registrations, so that a PBX finds the caller that it knows.
    pub fn on_new_addresses(&mut self, now: Instant, addresses: Addresses) {
        let hops: Vec<(CallRef, IpAddr)> = self
            .calls
            .iter()
            .filter(|(_, call)| call.is_live())
            .filter_map(|(id, call)| Some((*id, call.next_hop()?.addr.ip())))
            .collect();
        let before: Vec<IpAddr> = hops.iter().map(|(_, hop)| self.core.own_ip(*hop)).collect();
        self.core.options.addresses = addresses;
        let mut at = now + MOVE_AFTER;
        for ((id, hop), before) in hops.into_iter().zip(before) {
            if self.core.own_ip(hop) != before {
                self.with_call(id, |call, _| call.move_from(at));
                at += MOVE_EVERY;
            }
        }
        self.on_network_change(now);
    }

    /// Calls by an account.
    pub fn dial_account(&mut self, now: Instant, dial: AccountDial) -> Result<CallRef, DialError> {
        let registration = self.registrations.get(&dial.account).ok_or(DialError::UnknownAccount)?;
        let mut own = registration.account.registrar.clone();
        let target = registration.target().cloned();
        own.user = Some(registration.account.user.clone());
        let uri = if dial.to.starts_with("sip:") || dial.to.starts_with("sips:") {
            SipUri::parse(&dial.to).ok_or(DialError::BadTarget)?
        } else {
            let good = |c: char| c.is_ascii_alphanumeric() || "+-_.*#!~()".contains(c);
            if dial.to.is_empty() || !dial.to.chars().all(good) {
                return Err(DialError::BadTarget);
            }
            // `#` may not stand in a user part as it is.
            SipUri { user: Some(dial.to.replace('#', "%23")), ..own.clone() }
        };
        let proxy = registration.account.registrar.clone();
        let mut from = own;
        from.params = Default::default();
        let dial = Dial {
            uri,
            from: NameAddr { display: dial.display, ..NameAddr::new(from) },
            proxy: Some(proxy),
            credentials: registration.account.credentials.clone(),
            contact: registration.contact().cloned(),
            headers: dial.headers,
            body: dial.offer,
            ring_limit: dial.ring_limit,
        };
        self.start_dial(now, dial, target)
    }

    /// Calls any SIP address, such as a trunk's.
    pub fn dial(&mut self, now: Instant, dial: Dial) -> Result<CallRef, DialError> {
        self.start_dial(now, dial, None)
    }

    fn start_dial(&mut self, now: Instant, dial: Dial, target: Option<Target>) -> Result<CallRef, DialError> {
        if self.calls.len() >= self.core.options.limits.max_calls || self.core.transactions.is_full() {
            return Err(DialError::TooManyCalls);
        }
        let hop = dial.proxy.clone().unwrap_or_else(|| dial.uri.clone());
        let id = CallRef(self.take_id());
        let call = Call::outbound(&mut self.core, now, id, dial);
        self.stats.calls_out += 1;
        self.insert(call, None);
        match target.or_else(|| literal_target(&hop)) {
            Some(target) => self.with_call(id, |call, core| call.on_resolved(core, now, vec![target])),
            None => self.resolve(&hop, Resolving::Call(id)),
        }
        self.flush(now);
        Ok(id)
    }

    pub fn on_command(&mut self, now: Instant, call: CallRef, command: CallCommand) {
        self.with_call(call, |call, core| call.on_command(core, now, command));
        self.flush(now);
    }

    /// For an attended transfer: asks the peer of `call` to take the place of us in `other`. `to`: the address under which
    /// the proxy between them knows the other side; `None`: that side's own Contact, for peers that reach it straight.
    pub fn refer_to_call(&mut self, now: Instant, call: CallRef, other: CallRef, to: Option<String>) {
        let named = self.calls.get(&other).and_then(|other| {
            let to = to.or_else(|| other.remote_target())?;
            Some((to, other.replaces_header()?))
        });
        let Some((to, replaces)) = named else { return };
        self.on_command(now, call, CallCommand::Refer { to, replaces: Some(replaces) });
    }

    // Names.

    fn resolve(&mut self, uri: &SipUri, what: Resolving) {
        let id = self.take_id();
        self.resolving.insert(id, what);
        let says = uri.secure || uri.params.has("transport");
        let transport = says.then(|| transport_of(uri));
        self.outputs.push_back(Output::Resolve(Resolve { id, host: uri.host.clone(), port: uri.port, transport }));
    }

    /// The addresses of a name, best first; none if it has none or nobody knows.
    pub fn on_resolved(&mut self, now: Instant, id: u64, targets: Vec<Target>) {
        match self.resolving.remove(&id) {
            Some(Resolving::Call(call)) => self.with_call(call, |call, core| call.on_resolved(core, now, targets)),
            Some(Resolving::Registration(account)) => {
                if let Some(registration) = self.registrations.get_mut(&account) {
                    registration.on_resolved(&mut self.core, now, targets);
                }
                self.settle_registration(now, account);
            }
            None => {}
        }
        self.flush(now);
    }

    // The network.

    /// A message: a datagram, or what `stream::StreamReader` cut out of a connection.
    pub fn on_bytes(&mut self, now: Instant, source: &Target, bytes: &Bytes) {
        if self.may_read(now, source) {
            self.read(now, source, bytes);
        }
    }

    /// A datagram that is still in its reader's buffer: it is copied only if its sender is within its rate.
    pub fn on_datagram(&mut self, now: Instant, source: &Target, bytes: &[u8]) {
        if self.may_read(now, source) {
            self.read(now, source, &Bytes::copy_from_slice(bytes));
        }
    }

    fn may_read(&mut self, now: Instant, source: &Target) -> bool {
        self.stats.messages += 1;
        let may = self.peers.may_send(now, source.addr.ip());
        self.stats.flooded += u64::from(!may);
        may
    }

    fn read(&mut self, now: Instant, source: &Target, bytes: &Bytes) {
        if bytes.len() > self.core.options.limits.max_message_bytes {
            self.stats.malformed += 1;
            return;
        }
        let framing = if source.transport.is_reliable() { Framing::Stream } else { Framing::Datagram };
        match read(bytes, framing) {
            Verdict::KeepAlive => {}
            Verdict::Drop(_) => self.stats.malformed += 1,
            Verdict::Refuse { request, status, reason } => {
                self.stats.malformed += 1;
                self.refuse_malformed(now, request, source, status, reason);
            }
            Verdict::Response(response) => self.on_response(now, source, response, bytes),
            Verdict::Request(mut request) => {
                stamp(&mut request, source);
                self.on_request(now, source, request, bytes);
            }
        }
        self.flush(now);
    }

    /// What a connection held when its framing was lost: a request gets a 400. Close the connection then.
    pub fn on_broken_stream(&mut self, now: Instant, source: &Target, head: &Bytes, why: &'static str) {
        self.stats.malformed += 1;
        let request = match read(head, Framing::Stream) {
            Verdict::Request(request) | Verdict::Refuse { request, .. } => request,
            _ => return,
        };
        if request.method != Method::Ack {
            let status = if why.contains("large") { 513 } else { 400 };
            self.refuse_malformed(now, request, source, status, format!("Bad Request: {why}"));
        }
        self.flush(now);
    }

    /// A connection could not be opened, or was closed: why, for the operator.
    pub fn on_connection_lost(&mut self, now: Instant, target: &Target, why: &str) {
        for event in self.core.transactions.on_unreachable(target, why) {
            self.on_client_event(now, event);
        }
        let accounts: Vec<AccountRef> = self.registrations.keys().copied().collect();
        for account in accounts {
            if let Some(registration) = self.registrations.get_mut(&account) {
                registration.on_connection_lost(&mut self.core, now, target, why);
            }
            self.settle_registration(now, account);
        }
        self.flush(now);
    }

    pub fn on_tick(&mut self, now: Instant) {
        let mut events = Vec::new();
        self.core.transactions.on_tick(now, &mut events);
        for event in events {
            self.on_client_event(now, event);
        }
        while let Some((at, timer)) = self.alarm.pop(now) {
            match timer {
                Timer::Call(id) => {
                    if let Some(call) = self.calls.get_mut(&id).filter(|call| call.armed == Some(at)) {
                        call.armed = None;
                        self.with_call(id, |call, core| call.on_tick(core, now));
                        self.settle_call(now, id);
                    }
                }
                Timer::Registration(id) => {
                    if let Some(own) = self.registrations.get_mut(&id).filter(|own| own.armed == Some(at)) {
                        own.armed = None;
                        own.on_tick(&mut self.core, now);
                        self.settle_registration(now, id);
                    }
                }
            }
        }
        self.flush(now);
    }

    fn on_response(&mut self, now: Instant, source: &Target, response: Response, bytes: &Bytes) {
        self.tap_in(now, source, response.call_id(), bytes);
        if let Some(event) = self.core.transactions.receive_response(now, response) {
            self.on_client_event(now, event);
        }
    }

    fn on_client_event(&mut self, now: Instant, event: ClientEvent<Owner>) {
        match event.owner {
            Owner::Call(id) => self.with_call(id, |call, core| call.on_client_event(core, now, event)),
            Owner::Registration(id) | Owner::KeepAlive(id) => {
                if let Some(registration) = self.registrations.get_mut(&id) {
                    match event.owner {
                        Owner::KeepAlive(_) => registration.on_ping_event(&mut self.core, now, event),
                        _ => registration.on_register_event(&mut self.core, now, event),
                    }
                }
                self.settle_registration(now, id);
            }
            Owner::Nobody => {}
        }
    }

    fn on_request(&mut self, now: Instant, source: &Target, request: Request, bytes: &Bytes) {
        self.tap_in(now, source, request.call_id(), bytes);
        if request.method == Method::Cancel {
            return self.on_cancel(now, source, &request);
        }
        match self.core.transactions.receive_request(now, &request) {
            Arrival::Absorbed => {}
            Arrival::Ack => {
                if let Some(id) = self.find(&request) {
                    self.with_call(id, |call, core| call.on_ack(core, now, &request));
                }
            }
            Arrival::Merged => self.refuse(now, source, &request, Response::answer(&request, 482)),
            Arrival::New => self.on_new(now, source, request),
        }
    }

    fn on_cancel(&mut self, now: Instant, source: &Target, request: &Request) {
        let Some(key) = self.core.transactions.cancelled(request) else {
            return self.refuse(now, source, request, Response::answer(request, 481));
        };
        // The same answer to a repeated CANCEL needs no transaction.
        let mut response = Response::answer(request, 200);
        let ids = self.by_call_id.get(request.call_id()).cloned().unwrap_or_default();
        if let Some(call) = ids.first().and_then(|id| self.calls.get(id)) {
            response.tag(&call.local_tag);
        }
        self.core.respond_stateless(request, source, response);
        for id in ids {
            self.with_call(id, |call, core| call.on_cancel(core, now, &key, request));
        }
    }

    fn on_new(&mut self, now: Instant, source: &Target, request: Request) {
        let in_dialog = request.to_tag().is_some();
        let call = if in_dialog { self.find(&request) } else { None };
        if in_dialog && call.is_none() {
            return self.refuse(now, source, &request, Response::answer(&request, 481));
        }
        if let Some(response) = inspect(&request) {
            return self.refuse(now, source, &request, response);
        }
        if let Some(id) = call {
            let Some(key) = self.core.transactions.open(now, &request, source) else {
                return self.refuse_overload(now, source, &request);
            };
            return self.with_call(id, |call, core| call.on_request(core, now, &key, request, source));
        }
        match request.method {
            Method::Invite => self.on_invite(now, source, request),
            Method::Options => self.on_options(now, source, &request),
            Method::Refer => self.refuse(now, source, &request, Response::answer(&request, 403)),
            _ => self.refuse(now, source, &request, Response::answer(&request, 481)),
        }
    }

    fn on_options(&mut self, now: Instant, source: &Target, request: &Request) {
        if !self.takes_calls {
            return self.refuse_overload(now, source, request);
        }
        let mut response = Response::answer(request, 200);
        response.headers.push("Allow", ALLOW);
        response.headers.push("Accept", "application/sdp");
        response.headers.push("Supported", SUPPORTED);
        self.answer_stateless(now, source, request, response);
    }

    fn on_invite(&mut self, now: Instant, source: &Target, request: Request) {
        let replaces = match request.headers.get("Replaces") {
            None => None,
            Some(value) => match self.find_replaced(value) {
                Some(id) => Some(id),
                None => return self.refuse(now, source, &request, Response::answer(&request, 481)),
            },
        };
        let admitted = match (self.admit(now, source.addr.ip(), &request), replaces) {
            (Ok(admitted), _) => admitted,
            (Err(_), Some(_)) => Admitted::Replaces,
            (Err(response), None) => return self.refuse(now, source, &request, *response),
        };
        let limits = &self.core.options.limits;
        let ip = source.addr.ip().to_canonical();
        let of_peer = self.per_peer.get(&ip).copied().unwrap_or(0);
        let same_id = self.by_call_id.get(request.call_id()).map_or(0, Vec::len);
        if !self.takes_calls
            || self.calls.len() >= limits.max_calls
            || of_peer >= limits.max_calls_per_peer
            || same_id >= MAX_SAME_CALL_ID
        {
            return self.refuse_overload(now, source, &request);
        }
        if let Some(response) = refuse_interval(&request, self.core.options.min_session) {
            return self.refuse(now, source, &request, response);
        }
        let (Some(from), Some(to)) = (request.from(), request.to()) else { return };
        let Some(key) = self.core.transactions.open(now, &request, source) else {
            return self.refuse_overload(now, source, &request);
        };
        self.stats.calls_in += 1;
        let id = CallRef(self.take_id());
        let secret =
            |name: &str| name.eq_ignore_ascii_case("Authorization") || name.eq_ignore_ascii_case("Proxy-Authorization");
        let headers = request.headers.iter().filter(|(name, _)| !secret(name));
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let incoming = Incoming {
            call: id,
            call_id: request.call_id().into(),
            request_uri: request.uri.clone(),
            from,
            to,
            headers,
            offer: request.sdp(),
            source: source.clone(),
            admitted,
            replaces,
        };
        let bytes = request.to_bytes();
        let mut call = Call::inbound(&mut self.core, now, id, key, request, source, replaces);
        call.ladder.push(now, false, source, &bytes);
        self.insert(call, Some(ip));
        self.touched.push(id);
        self.outputs.push_back(Output::Event(Event::Incoming(Box::new(incoming))));
    }

    /// By what right this address may call; else the answer.
    fn admit(&mut self, now: Instant, ip: IpAddr, request: &Request) -> Result<Admitted, Box<Response>> {
        let user = Uri::parse(&request.uri).map(|uri| uri.user()).unwrap_or_default();
        if let Some((id, _)) = self.registrations.iter().find(|(_, own)| own.admits(ip, &user)) {
            return Ok(Admitted::Account(*id));
        }
        if let Some(trunk) = self.trunks.iter().find(|trunk| trunk.peers.iter().any(|prefix| prefix.holds(ip))) {
            return Ok(Admitted::Trunk(trunk.id));
        }
        if self.verifier.has_users() {
            match self.verifier.verify(now, request, &mut self.core.rng) {
                Verified::User(user) => return Ok(Admitted::User(user)),
                Verified::Challenge(values) => {
                    let mut response = Response::answer(request, 401);
                    for value in values {
                        response.headers.push("WWW-Authenticate", value);
                    }
                    return Err(Box::new(response));
                }
                Verified::Wrong => {}
            }
        }
        Err(Box::new(Response::answer(request, 403)))
    }

    /// Whether the address belongs to somebody whom we deal with.
    fn knows(&self, ip: IpAddr) -> bool {
        self.per_peer.contains_key(&ip.to_canonical())
            || self.registrations.values().any(|own| own.is_from(ip))
            || self.trunks.iter().any(|trunk| trunk.peers.iter().any(|prefix| prefix.holds(ip)))
    }

    // Answers without memory.

    fn answer_stateless(&mut self, now: Instant, source: &Target, request: &Request, mut response: Response) {
        let ip = source.addr.ip();
        if !self.knows(ip) && !self.peers.may_be_refused(now, ip) {
            self.stats.silenced += 1;
            return;
        }
        let mut hasher = DefaultHasher::new();
        (self.tag_secret, request.call_id(), request.from_tag(), request.headers.get("CSeq")).hash(&mut hasher);
        response.tag(&format!("{:016x}", hasher.finish()));
        self.core.respond_stateless(request, source, response);
    }

    fn refuse(&mut self, now: Instant, source: &Target, request: &Request, response: Response) {
        self.stats.refused += 1;
        self.answer_stateless(now, source, request, response);
    }

    fn refuse_malformed(&mut self, now: Instant, request: Request, source: &Target, status: u16, reason: String) {
        let mut request = request;
        stamp(&mut request, source);
        let response = Response { reason, ..Response::answer(&request, status) };
        self.refuse(now, source, &request, response);
    }

    fn refuse_overload(&mut self, now: Instant, source: &Target, request: &Request) {
        self.stats.overloaded += 1;
        let mut response = Response::answer(request, 503);
        response.headers.push("Retry-After", self.core.options.limits.retry_after_s.to_string());
        self.answer_stateless(now, source, request, response);
    }

    // Calls.

    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn insert(&mut self, call: Call, peer: Option<IpAddr>) {
        self.by_call_id.entry(call.call_id.clone()).or_default().push(call.id);
        if let Some(ip) = peer {
            *self.per_peer.entry(ip).or_default() += 1;
            self.peer_of.insert(call.id, ip);
        }
        self.calls.insert(call.id, call);
    }

    fn find(&self, request: &Request) -> Option<CallRef> {
        let (to_tag, from_tag) = (request.to_tag(), request.from_tag());
        let ids = self.by_call_id.get(request.call_id())?;
        ids.iter().copied().find(|id| self.calls.get(id).is_some_and(|call| call.is_for(to_tag.as_deref(), &from_tag)))
    }

    /// The confirmed call that a Replaces header names.
    fn find_replaced(&self, value: &str) -> Option<CallRef> {
        let (call_id, params) = value.split_once(';')?;
        let params = crate::protocol::sip::value::Params::parse(&format!(";{params}"))?;
        let (to_tag, from_tag) = (params.get("to-tag")?, params.get("from-tag")?);
        let ids = self.by_call_id.get(unescape(call_id.trim()).as_str())?;
        let is_it = |call: &Call| call.is_live() && call.is_confirmed() && call.is_replaced_by(to_tag, from_tag);
        ids.iter().copied().find(|id| self.calls.get(id).is_some_and(is_it))
    }

    fn with_call(&mut self, id: CallRef, act: impl FnOnce(&mut Call, &mut Core)) {
        if let Some(call) = self.calls.get_mut(&id) {
            act(call, &mut self.core);
            self.touched.push(id);
        }
    }

    fn tap_in(&mut self, now: Instant, source: &Target, call_id: &str, bytes: &Bytes) {
        for id in self.by_call_id.get(call_id).into_iter().flatten() {
            if let Some(call) = self.calls.get_mut(id) {
                call.ladder.push(now, false, source, bytes);
            }
        }
    }

    /// Hands out what was written and said, arms timers, and lets go of what is over.
    fn flush(&mut self, now: Instant) {
        // Answered calls end those whose place they take, before what that says is handed out.
        let replaced: Vec<CallRef> =
            self.touched.iter().filter_map(|id| self.calls.get_mut(id).and_then(Call::take_replaced)).collect();
        for id in replaced {
            self.with_call(id, |call, core| call.be_replaced(core, now));
        }
        for send in self.core.transactions.take_sends() {
            for id in self.by_call_id.get(&send.call_id).into_iter().flatten() {
                if let Some(call) = self.calls.get_mut(id) {
                    call.ladder.push(now, true, &send.target, &send.bytes);
                }
            }
            self.outputs.push_back(Output::Send(send));
        }
        while let Some(id) = self.touched.pop() {
            self.settle_call(now, id);
        }
    }

    fn settle_call(&mut self, now: Instant, id: CallRef) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        for event in call.events.drain(..) {
            self.outputs.push_back(Output::Event(Event::Call { call: id, event }));
        }
        if call.is_gone() {
            return self.remove(id);
        }
        // Never in the past: a tick that would leave something due must not be called without end.
        if let Some(at) = call.deadline().map(|at| at.max(now + GRAIN))
            && call.armed.is_none_or(|armed| at < armed)
        {
            call.armed = Some(at);
            self.alarm.set(at, Timer::Call(id));
        }
    }

    fn remove(&mut self, id: CallRef) {
        let Some(call) = self.calls.remove(&id) else { return };
        if let Some(ids) = self.by_call_id.get_mut(&call.call_id) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_call_id.remove(&call.call_id);
            }
        }
        if let Some(ip) = self.peer_of.remove(&id)
            && let Some(count) = self.per_peer.get_mut(&ip)
        {
            *count -= 1;
            if *count == 0 {
                self.per_peer.remove(&ip);
            }
        }
        let dropped = call.ladder.dropped();
        let event = Event::Closed { call: id, call_id: call.call_id, ladder: call.ladder.into_rungs(), dropped };
        self.outputs.push_back(Output::Event(event));
    }

    fn settle_registration(&mut self, now: Instant, id: AccountRef) {
        let Some(registration) = self.registrations.get_mut(&id) else { return };
        if let Some(target) = registration.abandoned.take() {
            self.outputs.push_back(Output::Abandon(target));
        }
        if std::mem::take(&mut registration.changed) {
            let status = registration.status();
            self.outputs.push_back(Output::Event(Event::Registration { account: id, status }));
        }
        if registration.is_gone() {
            self.registrations.remove(&id);
            return;
        }
        let resolve = std::mem::take(&mut registration.wants_resolve);
        let registrar = registration.account.registrar.clone();
        if let Some(at) = registration.deadline().map(|at| at.max(now + GRAIN))
            && registration.armed.is_none_or(|armed| at < armed)
        {
            registration.armed = Some(at);
            self.alarm.set(at, Timer::Registration(id));
        }
        if resolve {
            match literal_target(&registrar) {
                // An address needs no lookup.
                Some(target) => {
                    if let Some(registration) = self.registrations.get_mut(&id) {
                        registration.on_resolved(&mut self.core, now, vec![target]);
                    }
                    self.settle_registration(now, id);
                }
                None => self.resolve(&registrar, Resolving::Registration(id)),
            }
        }
    }
}

#[cfg(test)]
mod tests;
