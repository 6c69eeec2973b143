//! SIP on the network. One task owns the sockets and the [`Endpoint`]; everybody else holds a [`SipHandle`], and whoever
//! has a call a [`SipCall`], whose drop hangs up. Names are resolved and connections carried by tasks that this one owns.

pub mod config;
mod connection;
mod metrics;
mod resolve;
mod routes;
mod tls;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use rand::Rng as _;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

pub use self::config::{SipConfig, SipConfigError, SipLimitsConfig};
use self::connection::{ConnectionEvent, ConnectionSettings, Connections};
use self::metrics::SipMetrics;
use self::resolve::Names;
use self::routes::{Change, Routes};
pub use self::tls::TlsError;
use crate::protocol::sip::admission::Trunk;
use crate::protocol::sip::call::{CallCommand, CallEvent, Dial};
use crate::protocol::sip::core::{AccountRef, Addresses, CallRef, Options};
use crate::protocol::sip::digest::Credentials;
use crate::protocol::sip::endpoint::{AccountDial, DialError, Endpoint, Event, Incoming, Output, Resolve, Stats};
use crate::protocol::sip::ladder::Rung;
use crate::protocol::sip::registration::{Account, RegistrationState, RegistrationStatus};
use crate::protocol::sip::target::{Send as Outgoing, Target, Transport};

/// Events of one call that its owner has not taken. A call has some ten in all: more means that nobody looks, and the
/// call is hung up.
const CALL_QUEUE: usize = 64;
/// Inbound calls that nobody took. Above it 503.
const INCOMING_QUEUE: usize = 64;
/// Commands on their way to the task; whoever sends more waits.
const COMMAND_QUEUE: usize = 256;
/// What connections have read and the task has not: above it they stop reading.
const CONNECTION_QUEUE: usize = 256;
/// Datagrams taken before the task looks at anything else again.
const BATCH: usize = 64;
/// Names looked up at once; more wait for the next try of whoever wants them.
const MAX_LOOKUPS: usize = 64;
/// A name that takes longer is none. The endpoint would wait 20 s.
const LOOKUP_LIMIT: Duration = Duration::from_secs(10);
/// What our kernel buffers for datagrams, if it lets us: 2,000 INVITEs.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How often the ways to registrars and to the peers of calls are looked at (20 µs each), and figures are carried to the
/// metrics.
const LOOK: Duration = Duration::from_secs(2);
/// To say BYE and to unregister when we stop.
const GOODBYE_LIMIT: Duration = Duration::from_secs(3);

/// Why SIP cannot be spoken: correct the configuration.
#[derive(Debug, thiserror::Error)]
pub enum SipStartError {
    #[error("SIP cannot listen on {addr}")]
    Listen { addr: SocketAddr, source: io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Config(#[from] SipConfigError),
}

/// The task is over: the process is shutting down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("SIP has stopped")]
pub struct SipStopped;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SipDialError {
    #[error(transparent)]
    Refused(#[from] DialError),
    #[error(transparent)]
    Stopped(#[from] SipStopped),
}

/// Where it listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SipAddrs {
    pub udp: Option<SocketAddr>,
    pub udp_v6: Option<SocketAddr>,
    pub tcp: Option<SocketAddr>,
    pub tcp_v6: Option<SocketAddr>,
    pub tls: Option<SocketAddr>,
}

impl SipAddrs {
    /// The UDP port that peers of this address' family know.
    pub fn udp_port(&self, family: IpAddr) -> Option<u16> {
        let addr = if family.is_ipv4() { self.udp } else { self.udp_v6 };
        addr.map(|addr| addr.port())
    }
}

/// The registrations, by account.
pub type Registrations = BTreeMap<AccountRef, RegistrationStatus>;

/// What anybody may ask of the SIP task. Cheap to clone.
#[derive(Clone)]
pub struct SipHandle {
    commands: mpsc::Sender<Command>,
    registrations: watch::Receiver<Registrations>,
    addrs: SipAddrs,
    keep_alive: Duration,
    expires: Duration,
}

/// An inbound call, not answered yet.
pub struct SipIncoming {
    pub incoming: Incoming,
    pub call: SipCall,
}

/// One call. Dropping it hangs up.
pub struct SipCall {
    pub id: CallRef,
    events: mpsc::Receiver<CallEvent>,
    commands: mpsc::Sender<Command>,
    closed: Option<oneshot::Receiver<SipRecord>>,
    hangup: CancellationToken,
    _guard: DropGuard,
}

/// The messages of a call that is over.
#[derive(Clone, Debug, Default)]
pub struct SipRecord {
    pub call_id: String,
    pub ladder: Vec<Rung>,
    /// Messages that did not fit.
    pub dropped: usize,
}

enum Command {
    Register(Box<Account>),
    Unregister(AccountRef),
    Trunks(Vec<Trunk>),
    Users(Vec<Credentials>),
    TakeCalls(bool),
    NetworkChanged,
    Call(CallRef, CallCommand),
    ReferToCall(CallRef, CallRef, Option<String>),
    Dial(Box<Dial>, oneshot::Sender<Result<SipCall, DialError>>),
    DialAccount(Box<AccountDial>, oneshot::Sender<Result<SipCall, DialError>>),
    Ladder(CallRef, oneshot::Sender<Vec<Rung>>),
    Stats(oneshot::Sender<SipStats>),
}

/// What was seen and what is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SipStats {
    pub endpoint: Stats,
    pub calls: usize,
    pub transactions: usize,
    pub peers: usize,
    pub connections: usize,
    /// Messages that a peer's full queue or a full socket did not take.
    pub unsent: u64,
}

impl SipHandle {
    pub fn addrs(&self) -> SipAddrs {
        self.addrs
    }

    /// An account with the configured intervals, to be filled in.
    pub fn account(&self, id: AccountRef, user: &str, registrar: crate::protocol::sip::value::SipUri) -> Account {
        Account { expires: self.expires, keep_alive: self.keep_alive, ..Account::new(id, user, registrar) }
    }

    /// Registers, or takes new settings and registers again. Returns before the registrar has answered: look at
    /// [`SipHandle::registrations`].
    pub async fn register(&self, account: Account) -> Result<(), SipStopped> {
        self.send(Command::Register(Box::new(account))).await
    }

    pub async fn unregister(&self, account: AccountRef) -> Result<(), SipStopped> {
        self.send(Command::Unregister(account)).await
    }

    /// How each account stands; an account that was unregistered is in it no more.
    pub fn registrations(&self) -> watch::Receiver<Registrations> {
        self.registrations.clone()
    }

    /// Whose addresses may call.
    pub async fn set_trunks(&self, trunks: Vec<Trunk>) -> Result<(), SipStopped> {
        self.send(Command::Trunks(trunks)).await
    }

    /// Who may call by digest.
    pub async fn set_users(&self, users: Vec<Credentials>) -> Result<(), SipStopped> {
        self.send(Command::Users(users)).await
    }

    /// `false`: 503 to new calls and to OPTIONS; running calls go on.
    pub async fn set_takes_calls(&self, takes_calls: bool) -> Result<(), SipStopped> {
        self.send(Command::TakeCalls(takes_calls)).await
    }

    /// Registers everywhere at once, by the addresses that this machine has, and tells calls of them. What can be seen from
    /// here, such as another address towards a registrar or a call's peer, is noticed without it.
    pub async fn network_changed(&self) -> Result<(), SipStopped> {
        self.send(Command::NetworkChanged).await
    }

    /// Calls a SIP address. The call's events say how it goes.
    pub async fn dial(&self, dial: Dial) -> Result<SipCall, SipDialError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Dial(Box::new(dial), reply)).await?;
        Ok(answer.await.map_err(|_| SipStopped)??)
    }

    /// Calls a number by an account.
    pub async fn dial_account(&self, dial: AccountDial) -> Result<SipCall, SipDialError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::DialAccount(Box::new(dial), reply)).await?;
        Ok(answer.await.map_err(|_| SipStopped)??)
    }

    /// The messages of a call so far.
    pub async fn ladder(&self, call: CallRef) -> Vec<Rung> {
        let (reply, answer) = oneshot::channel();
        match self.send(Command::Ladder(call, reply)).await {
            Ok(()) => answer.await.unwrap_or_default(),
            Err(SipStopped) => Vec::new(),
        }
    }

    pub async fn stats(&self) -> Result<SipStats, SipStopped> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Stats(reply)).await?;
        answer.await.map_err(|_| SipStopped)
    }

    async fn send(&self, command: Command) -> Result<(), SipStopped> {
        self.commands.send(command).await.map_err(|_| SipStopped)
    }
}

impl SipCall {
    /// What happens next. `None`: the call is over (the last event before it was `Ended`, unless the task stopped).
    pub async fn recv(&mut self) -> Option<CallEvent> {
        self.events.recv().await
    }

    pub async fn command(&self, command: CallCommand) -> Result<(), SipStopped> {
        self.commands.send(Command::Call(self.id, command)).await.map_err(|_| SipStopped)
    }

    /// Asks this call's peer to take our place in `other`: an attended transfer. `to` names the other side to whoever is
    /// between them; `None`: by its own Contact.
    pub async fn refer_to_call(&self, other: CallRef, to: Option<String>) -> Result<(), SipStopped> {
        self.commands.send(Command::ReferToCall(self.id, other, to)).await.map_err(|_| SipStopped)
    }

    /// Ends it; cannot fail or wait.
    pub fn hang_up(&self) {
        self.hangup.cancel();
    }

    /// Resolves to the call's messages when nothing of it can come any more, also after the call was dropped: at the
    /// latest 64·T1 after its end. To be taken once.
    pub fn take_record(&mut self) -> Option<oneshot::Receiver<SipRecord>> {
        self.closed.take()
    }
}

/// Opens the sockets and starts the task. It runs until `cancel`, then says goodbye to calls and registrars, and ends.
pub async fn start(
    config: &SipConfig,
    cancel: CancellationToken,
) -> Result<(SipHandle, mpsc::Receiver<SipIncoming>, JoinHandle<()>), SipStartError> {
    if let Some(fault) = config.faults().into_iter().next() {
        return Err(fault.into());
    }
    let acceptor = tls::acceptor(config)?;
    let connector = tls::connector(config)?;
    let (udp, tcp) = bind_both(config.listen)?;
    let (udp_v6, tcp_v6) = match config.listen_v6 {
        Some(listen) => {
            let (udp, tcp) = bind_both(listen)?;
            (Some(udp), Some(tcp))
        }
        None => (None, None),
    };
    let tls = match config.tls_listen {
        Some(addr) => Some(TcpListener::bind(addr).await.map_err(|source| SipStartError::Listen { addr, source })?),
        None => None,
    };
    let addrs = SipAddrs {
        udp: udp.local_addr().ok(),
        udp_v6: udp_v6.as_ref().and_then(|socket| socket.local_addr().ok()),
        tcp: tcp.local_addr().ok(),
        tcp_v6: tcp_v6.as_ref().and_then(|socket| socket.local_addr().ok()),
        tls: tls.as_ref().and_then(|socket| socket.local_addr().ok()),
    };
    let addresses = addresses(config, &addrs);
    let options = Options {
        timers: config.timers(),
        agent: config.agent.clone(),
        addresses: addresses.clone(),
        ring_limit: Duration::from_secs(config.ring_s),
        session_interval: Duration::from_secs(config.session_s),
        limits: config.protocol_limits(),
        ..Options::default()
    };
    let mut seed = [0; 32];
    rand::rng().fill_bytes(&mut seed);
    let (commands, command_queue) = mpsc::channel(COMMAND_QUEUE);
    let (incoming, incoming_queue) = mpsc::channel(INCOMING_QUEUE);
    let (registered, registrations) = watch::channel(Registrations::new());
    let (connection_events, connection_queue) = mpsc::channel(CONNECTION_QUEUE);
    let settings = ConnectionSettings {
        max: config.limits.max_connections,
        max_per_peer: config.limits.max_connections_per_peer,
        max_message_bytes: config.limits.max_message_bytes,
        idle: Duration::from_secs(config.limits.idle_s),
        write: Duration::from_secs(config.limits.write_s),
    };
    info!(udp = ?addrs.udp, udp_v6 = ?addrs.udp_v6, tls = ?addrs.tls, "SIP is listening");
    let task = Task {
        endpoint: Endpoint::new(Instant::now().into_std(), options, seed),
        udp,
        udp_v6,
        listeners: Listeners { tcp, tcp_v6, tls },
        acceptor,
        connections: Connections::new(settings, connector, connection_events),
        connection_queue,
        names: Names::of_the_system(),
        lookups: JoinSet::new(),
        command_queue,
        commands: commands.clone(),
        incoming,
        registered,
        calls: HashMap::new(),
        hangups: FuturesUnordered::new(),
        unsent: 0,
        config: config.clone(),
        addrs,
        addresses,
        routes: Routes::default(),
        metrics: SipMetrics::new(),
    };
    let handle = SipHandle {
        commands,
        registrations,
        addrs,
        keep_alive: Duration::from_secs(config.keep_alive_s),
        expires: Duration::from_secs(config.register_s),
    };
    let join = tokio::spawn(task.run(cancel));
    Ok((handle, incoming_queue, join))
}

/// UDP and TCP on one port. Port 0 asks for one that is free for both.
fn bind_both(addr: SocketAddr) -> Result<(UdpSocket, TcpListener), SipStartError> {
    let fail = |source| SipStartError::Listen { addr, source };
    let mut tries = 0;
    loop {
        tries += 1;
        let udp = bind_udp(addr).map_err(fail)?;
        let port = udp.local_addr().map_err(fail)?.port();
        match bind_tcp(SocketAddr::new(addr.ip(), port)) {
            Ok(tcp) => return Ok((udp, tcp)),
            // The free UDP port was somebody's TCP port: another.
            Err(_) if addr.port() == 0 && tries < 20 => {}
            Err(source) => return Err(fail(source)),
        }
    }
}

/// As tokio binds, but the IPv4 socket of the same port has its own.
fn bind_tcp(addr: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    /// As tokio's.
    const BACKLOG: i32 = 1024;
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn bind_udp(addr: SocketAddr) -> io::Result<UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        // The IPv4 socket has its own.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    // The kernel gives what it allows; less is no error.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    socket.bind(&addr.into())?;
    UdpSocket::from_std(socket.into())
}

/// What we say about ourselves: the address that we listen on, or the one by which this machine reaches others.
fn addresses(config: &SipConfig, addrs: &SipAddrs) -> Addresses {
    let port = |addr: Option<SocketAddr>| addr.map_or(0, |addr| addr.port());
    let own = |listen: Option<SocketAddr>, far: IpAddr| match listen.map(|listen| listen.ip()) {
        Some(ip) if !ip.is_unspecified() => Some(ip),
        Some(_) => towards(far),
        None => None,
    };
    // TEST-NET-3 and the documentation prefix: routed like any far address, and nothing is sent.
    let far_v4 = Ipv4Addr::new(203, 0, 113, 1).into();
    let far_v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into();
    Addresses {
        external: config.external_ip,
        v4: own(addrs.udp, far_v4),
        v6: own(addrs.udp_v6, far_v6),
        udp_port: port(addrs.udp),
        tcp_port: port(addrs.tcp),
        udp_port_v6: port(addrs.udp_v6),
        tcp_port_v6: port(addrs.tcp_v6),
        tls_port: port(addrs.tls),
        ways: BTreeMap::new(),
    }
}

fn towards(far: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if far.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((any, 0)).ok()?;
    socket.connect((far, 9)).ok()?;
    socket.local_addr().ok().map(|addr| addr.ip())
}

struct Listeners {
    tcp: TcpListener,
    tcp_v6: Option<TcpListener>,
    tls: Option<TcpListener>,
}

struct Task {
    endpoint: Endpoint,
    udp: UdpSocket,
    udp_v6: Option<UdpSocket>,
    listeners: Listeners,
    acceptor: Option<TlsAcceptor>,
    connections: Connections,
    connection_queue: mpsc::Receiver<ConnectionEvent>,
    names: Names,
    lookups: JoinSet<(u64, Vec<Target>)>,
    command_queue: mpsc::Receiver<Command>,
    commands: mpsc::Sender<Command>,
    incoming: mpsc::Sender<SipIncoming>,
    registered: watch::Sender<Registrations>,
    calls: HashMap<CallRef, Owner>,
    /// Resolves to a call whose owner hung up or dropped it. As many as calls.
    hangups: FuturesUnordered<BoxFuture<'static, CallRef>>,
    unsent: u64,
    config: SipConfig,
    addrs: SipAddrs,
    /// As peers are told.
    addresses: Addresses,
    routes: Routes,
    metrics: SipMetrics,
}

/// Whoever has a call.
struct Owner {
    events: Option<mpsc::Sender<CallEvent>>,
    closed: Option<oneshot::Sender<SipRecord>>,
    /// When its INVITE came, until it is answered.
    offered: Option<Instant>,
    /// Ends the future in `hangups` when the call is over.
    over: CancellationToken,
}

impl Task {
    async fn run(mut self, cancel: CancellationToken) {
        let mut stopping: Option<Instant> = None;
        let mut buffer = vec![0; 65_536];
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.carry_out();
            if let Some(limit) = stopping
                && (limit <= Instant::now() || (self.endpoint.held().0 == 0 && self.registered.borrow().is_empty()))
            {
                break;
            }
            let wake = self.endpoint.deadline().map(Instant::from_std);
            let wake = [wake, stopping].into_iter().flatten().min();
            // Not by urgency: whoever floods one of these must not hold up the others. Datagrams are looked at in every
            // turn, which costs nothing when there are none.
            self.read_datagrams(false, &mut buffer);
            self.read_datagrams(true, &mut buffer);
            tokio::select! {
                () = cancel.cancelled(), if stopping.is_none() => {
                    stopping = Some(Instant::now() + GOODBYE_LIMIT);
                    self.say_goodbye();
                }
                Some(call) = self.hangups.next() => {
                    // What its owner asked for before comes first: a refusal with its reason, then the drop of the call.
                    for _ in 0..COMMAND_QUEUE {
                        let Ok(command) = self.command_queue.try_recv() else { break };
                        self.on_command(command);
                        self.carry_out();
                    }
                    self.endpoint.on_command(now(), call, CallCommand::HangUp);
                }
                Some(command) = self.command_queue.recv() => self.on_command(command),
                Some(event) = self.connection_queue.recv() => self.on_connection(event),
                Some(found) = self.lookups.join_next(), if !self.lookups.is_empty() => {
                    if let Ok((id, targets)) = found {
                        self.find_ways(targets.iter().map(|target| target.addr.ip().to_canonical()));
                        self.endpoint.on_resolved(now(), id, targets);
                    }
                }
                () = sleep_until(wake.unwrap_or_else(far_away)), if wake.is_some() => self.endpoint.on_tick(now()),
                accepted = self.listeners.accept() => {
                    if let Some((stream, peer, is_tls)) = accepted {
                        let tls = if is_tls { self.acceptor.clone() } else { None };
                        self.connections.accept(stream, peer, tls);
                    }
                }
                () = readable(&self.udp, self.udp_v6.as_ref()) => {}
                _ = look.tick() => self.look(),
            }
        }
        self.metrics.carry_over(self.endpoint.stats(), self.unsent + self.connections.dropped);
        self.metrics.registrations(&Registrations::new());
        self.lookups.shutdown().await;
        self.connections.shutdown().await;
    }

    fn say_goodbye(&mut self) {
        self.endpoint.set_takes_calls(false);
        let calls: Vec<CallRef> = self.calls.keys().copied().collect();
        for call in calls {
            self.endpoint.on_command(now(), call, CallCommand::HangUp);
        }
        let accounts: Vec<AccountRef> = self.registered.borrow().keys().copied().collect();
        for account in accounts {
            self.endpoint.unregister(now(), account);
        }
    }

    /// Whether registrars and calls are reached as before; and what the metrics have not been told yet.
    fn look(&mut self) {
        self.metrics.carry_over(self.endpoint.stats(), self.unsent + self.connections.dropped);
        let changes = self.routes.look(self.endpoint.registrars().chain(self.endpoint.call_peers()), towards);
        let current = self.current_addresses();
        let mut moved = (current.v4, current.v6) != (self.addresses.v4, self.addresses.v6);
        for change in changes {
            match change {
                Change::Lost(peer) => {
                    warn!(%peer, "no network leads to a peer");
                    self.endpoint.on_route_lost(now(), peer);
                }
                Change::Moved(_) => moved = true,
            }
        }
        if moved {
            info!(v4 = ?current.v4, v6 = ?current.v6, "the network has changed: accounts register again, calls follow");
            self.on_network_change(current);
        }
    }

    /// Without a network we say what we said last: anything else would be as wrong, and there is nobody to hear it.
    fn current_addresses(&self) -> Addresses {
        let current = addresses(&self.config, &self.addrs);
        let peers: BTreeSet<IpAddr> = self.endpoint.registrars().chain(self.endpoint.call_peers()).collect();
        let mut ways = self.addresses.ways.clone();
        ways.retain(|peer, _| peers.contains(peer));
        ways.extend(peers.into_iter().filter_map(|peer| Some((peer, self.way(peer)?))));
        Addresses { v4: current.v4.or(self.addresses.v4), v6: current.v6.or(self.addresses.v6), ways, ..current }
    }

    /// Our address on the way to a peer, unless we listen on one alone.
    fn way(&self, peer: IpAddr) -> Option<IpAddr> {
        let listen = if peer.is_ipv4() { Some(self.config.listen) } else { self.config.listen_v6 };
        listen.filter(|listen| listen.ip().is_unspecified()).and_then(|_| towards(peer))
    }

    /// To be known before the first message goes there: it names the address.
    fn find_ways(&mut self, peers: impl Iterator<Item = IpAddr>) {
        let found: Vec<(IpAddr, IpAddr)> = peers.filter_map(|peer| Some((peer, self.way(peer)?))).collect();
        if !found.is_empty() {
            self.addresses.ways.extend(found);
            self.endpoint.set_addresses(self.addresses.clone());
        }
    }

    fn on_network_change(&mut self, current: Addresses) {
        self.addresses = current.clone();
        self.endpoint.on_new_addresses(now(), current);
    }

    fn read_datagrams(&mut self, v6: bool, buffer: &mut [u8]) {
        for _ in 0..BATCH {
            let socket = match &self.udp_v6 {
                Some(socket) if v6 => socket,
                None if v6 => return,
                _ => &self.udp,
            };
            match socket.try_recv_from(buffer) {
                Ok((length, peer)) => {
                    let source = Target::new(Transport::Udp, peer);
                    self.metrics.received(&buffer[..length]);
                    self.endpoint.on_datagram(now(), &source, &buffer[..length]);
                    self.carry_out();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // A peer's port is closed, as ICMP says; the timers know what to make of its silence.
                Err(error) => debug!(%error, "SIP datagram"),
            }
        }
    }

    fn on_connection(&mut self, event: ConnectionEvent) {
        match event {
            ConnectionEvent::Message(source, bytes) => {
                self.metrics.received(&bytes);
                self.endpoint.on_bytes(now(), &source, &bytes);
            }
            ConnectionEvent::Broken(source, head, why) => self.endpoint.on_broken_stream(now(), &source, &head, why),
            ConnectionEvent::Lost(target, id, why) => {
                if self.connections.remove(&target, id) {
                    self.endpoint.on_connection_lost(now(), &target, &why);
                }
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        let now = now();
        match command {
            Command::Register(account) => {
                self.find_ways(account.registrar.ip().into_iter());
                self.endpoint.register(now, *account);
            }
            Command::Unregister(account) => self.endpoint.unregister(now, account),
            Command::Trunks(trunks) => self.endpoint.set_trunks(trunks),
            Command::Users(users) => self.endpoint.set_users(users),
            Command::TakeCalls(takes_calls) => self.endpoint.set_takes_calls(takes_calls),
            Command::NetworkChanged => self.on_network_change(self.current_addresses()),
            Command::Call(call, command) => {
                let is_answer = matches!(command, CallCommand::Answer { .. });
                self.endpoint.on_command(now, call, command);
                if is_answer && let Some(offered) = self.calls.get_mut(&call).and_then(|owner| owner.offered.take()) {
                    self.carry_out();
                    self.metrics.answer.record(offered.elapsed());
                }
            }
            Command::ReferToCall(call, other, to) => self.endpoint.refer_to_call(now, call, other, to),
            Command::Dial(dial, reply) => {
                let dialled = self.endpoint.dial(now, *dial).map(|id| self.own(id, None));
                self.hand_over(dialled, reply);
            }
            Command::DialAccount(dial, reply) => {
                let dialled = self.endpoint.dial_account(now, *dial).map(|id| self.own(id, None));
                self.hand_over(dialled, reply);
            }
            Command::Ladder(call, reply) => {
                let _ = reply.send(self.endpoint.ladder(call));
            }
            Command::Stats(reply) => {
                let (calls, transactions, peers) = self.endpoint.held();
                let connections = self.connections.len();
                let unsent = self.unsent + self.connections.dropped;
                let endpoint = self.endpoint.stats();
                let _ = reply.send(SipStats { endpoint, calls, transactions, peers, connections, unsent });
            }
        }
    }

    /// Whoever asked for a call may have gone meanwhile: the call that comes back is dropped, and so hung up.
    fn hand_over(&self, dialled: Result<SipCall, DialError>, reply: oneshot::Sender<Result<SipCall, DialError>>) {
        drop(reply.send(dialled));
    }

    fn own(&mut self, id: CallRef, offered: Option<Instant>) -> SipCall {
        let (events, receiver) = mpsc::channel(CALL_QUEUE);
        let (closed, record) = oneshot::channel();
        let (hangup, over) = (CancellationToken::new(), CancellationToken::new());
        self.calls.insert(id, Owner { events: Some(events), closed: Some(closed), offered, over: over.clone() });
        let asked = hangup.clone();
        self.hangups.push(Box::pin(async move {
            tokio::select! {
                () = asked.cancelled() => {}
                () = over.cancelled() => {}
            }
            id
        }));
        SipCall {
            id,
            events: receiver,
            commands: self.commands.clone(),
            closed: Some(record),
            _guard: hangup.clone().drop_guard(),
            hangup,
        }
    }

    /// Does what the endpoint wants done.
    fn carry_out(&mut self) {
        while let Some(output) = self.endpoint.poll() {
            match output {
                Output::Send(send) => self.send(send),
                Output::Resolve(resolve) => self.resolve(resolve),
                Output::Abandon(target) => self.connections.abandon(&target),
                Output::Event(event) => self.on_event(event),
            }
        }
    }

    fn send(&mut self, send: Outgoing) {
        let Outgoing { target, bytes, .. } = send;
        self.metrics.sent(&bytes);
        if target.transport != Transport::Udp {
            if let Err(why) = self.connections.send(&target, bytes) {
                self.unsent += 1;
                self.endpoint.on_connection_lost(now(), &target, why);
            }
            return;
        }
        let socket = match (&self.udp_v6, target.addr.is_ipv6()) {
            (Some(socket), true) => socket,
            (None, true) => return self.unsent += 1,
            (_, false) => &self.udp,
        };
        if let Err(error) = socket.try_send_to(&bytes, target.addr) {
            // Retransmission repairs what a full buffer loses.
            debug!(%target, %error, "SIP datagram not sent");
            self.unsent += 1;
        }
    }

    fn resolve(&mut self, resolve: Resolve) {
        if self.lookups.len() >= MAX_LOOKUPS {
            return self.endpoint.on_resolved(now(), resolve.id, Vec::new());
        }
        let names = self.names.clone();
        self.lookups.spawn(async move {
            let found = timeout(LOOKUP_LIMIT, names.resolve(&resolve)).await;
            (resolve.id, found.unwrap_or_default())
        });
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Incoming(incoming) => {
                let id = incoming.call;
                let call = self.own(id, Some(Instant::now()));
                if self.incoming.try_send(SipIncoming { incoming: *incoming, call }).is_err() {
                    warn!("an inbound call found nobody to take it");
                    self.endpoint.on_command(now(), id, CallCommand::Refuse { status: 503 });
                }
            }
            Event::Call { call, event } => {
                let Some(owner) = self.calls.get_mut(&call) else { return };
                let ended = matches!(event, CallEvent::Ended(_));
                let stuck = owner
                    .events
                    .as_ref()
                    .is_some_and(|events| matches!(events.try_send(event), Err(mpsc::error::TrySendError::Full(_))));
                if ended {
                    owner.events = None;
                } else if stuck {
                    warn!("a call whose events nobody takes is hung up");
                    owner.events = None;
                    self.endpoint.on_command(now(), call, CallCommand::HangUp);
                }
            }
            Event::Closed { call, call_id, ladder, dropped } => {
                if let Some(mut owner) = self.calls.remove(&call) {
                    owner.over.cancel();
                    if let Some(closed) = owner.closed.take() {
                        let _ = closed.send(SipRecord { call_id: call_id.to_string(), ladder, dropped });
                    }
                }
            }
            Event::Registration { account, status } => {
                match (&status.state, &status.last_error) {
                    (RegistrationState::Failed, error) => {
                        warn!(account = account.0, error = error.as_deref().unwrap_or_default(), "not registered");
                    }
                    (RegistrationState::Failing, error) => {
                        let error = error.as_deref().unwrap_or_default();
                        warn!(account = account.0, error, "the registrar does not answer; the registration runs out");
                    }
                    (state, _) => info!(account = account.0, state = state.label(), "registration"),
                }
                self.registered.send_modify(|all| {
                    if status.state == RegistrationState::Unregistered {
                        all.remove(&account);
                    } else {
                        all.insert(account, status);
                    }
                });
                self.metrics.registrations(&self.registered.borrow());
            }
        }
    }
}

impl Listeners {
    /// The next connection, and whether it is to speak TLS. `None`: this one failed before it was one.
    async fn accept(&self) -> Option<(tokio::net::TcpStream, SocketAddr, bool)> {
        let none = std::future::pending::<io::Result<_>>;
        let (accepted, is_tls) = tokio::select! {
            accepted = self.tcp.accept() => (accepted, false),
            accepted = async { match &self.tcp_v6 { Some(own) => own.accept().await, None => none().await } } => (accepted, false),
            accepted = async { match &self.tls { Some(own) => own.accept().await, None => none().await } } => (accepted, true),
        };
        match accepted {
            Ok((stream, peer)) => Some((stream, peer, is_tls)),
            Err(error) => {
                debug!(%error, "SIP connection not accepted");
                // Out of descriptors: asking again at once would find the same.
                tokio::time::sleep(Duration::from_millis(50)).await;
                None
            }
        }
    }
}

/// Waits until one of them can be read; an error shows when it is.
async fn readable(v4: &UdpSocket, v6: Option<&UdpSocket>) {
    match v6 {
        None => drop(v4.readable().await),
        Some(v6) => tokio::select! {
            _ = v4.readable() => {}
            _ = v6.readable() => {}
        },
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// A time for a sleep that is not waited for.
fn far_away() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}
