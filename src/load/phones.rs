//! Telephones that share one UDP socket: a task that owns the socket and a sans-IO SIP endpoint, and calls as values with
//! a queue of events. They only call; whoever calls them is refused. A desk may stand before them and answer requests
//! itself, as a registrar does.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use rand::Rng as _;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use crate::protocol::sip::check::{Framing, Verdict, read};
use crate::protocol::sip::core::{Addresses, CallRef, Limits, Options};
use crate::protocol::sip::endpoint::{DialError, Endpoint, Event, Output};
use crate::protocol::sip::message::{Request, Response};
use crate::protocol::sip::target::{Target, Transport};

pub use crate::protocol::sip::call::{CallCommand, CallEvent, Cause, Dial, Ended, Side};

/// Orders that wait: when full, whoever orders waits.
const ORDER_QUEUE: usize = 1_024;
/// Events of one call that nobody has taken yet; a call whose owner lets more pile up is hung up.
const EVENT_QUEUE: usize = 32;
/// Datagrams read before other work gets its turn.
const BATCH: usize = 64;
/// What the kernel may hold for us: 4 MiB are some 4,000 messages.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;
/// How long goodbyes may take when everybody has let go of the telephones.
const GOODBYE_LIMIT: Duration = Duration::from_secs(1);
/// For the address of a name.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);
/// Calls at once; the load tester's own limit is below.
const MAX_CALLS: usize = 20_000;
/// A request that is over lives for 32 s, and a call is two: 100 calls a second keep some 7,000.
const MAX_TRANSACTIONS: usize = 200_000;

/// Answers requests before the telephones see them; `None` leaves them one.
pub trait Desk: Send + 'static {
    fn answer(&mut self, now: std::time::Instant, source: SocketAddr, request: &Request) -> Option<Response>;
}

/// A handle; the socket is closed when the last one and the last call are dropped.
#[derive(Clone)]
pub struct Phones {
    orders: mpsc::Sender<Order>,
    addr: SocketAddr,
    own_ip: IpAddr,
}

/// A call. Dropping it hangs up.
pub struct PhoneCall {
    id: CallRef,
    /// When its INVITE was made.
    pub dialled: Instant,
    events: mpsc::Receiver<(Instant, CallEvent)>,
    orders: mpsc::Sender<Order>,
}

#[derive(Debug, thiserror::Error)]
pub enum PhoneError {
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The task has ended: the socket failed.
    #[error("the telephones are gone")]
    Gone,
}

enum Order {
    Dial(Box<Dial>, oneshot::Sender<Result<PhoneCall, DialError>>),
    Call(CallRef, CallCommand),
}

impl Phones {
    /// Opens the socket and starts the task; needs a tokio runtime. With an unspecified address, `far` is whom the
    /// telephones will talk to: their own address is the one by which this machine reaches it.
    pub fn open(
        listen: SocketAddr,
        far: Option<SocketAddr>,
        desk: Option<Box<dyn Desk>>,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let socket = bind(listen)?;
        let addr = socket.local_addr()?;
        let own_ip = match far {
            Some(far) if listen.ip().is_unspecified() => own_ip_towards(far)?,
            _ => listen.ip(),
        };
        let (orders, order_queue) = mpsc::channel(ORDER_QUEUE);
        let mut seed = [0; 32];
        rand::rng().fill_bytes(&mut seed);
        let task = Task {
            endpoint: Endpoint::new(Instant::now().into_std(), options(own_ip, addr.port()), seed),
            socket,
            desk,
            order_queue,
            orders: orders.downgrade(),
            calls: HashMap::new(),
            left: FuturesUnordered::new(),
            lookups: JoinSet::new(),
        };
        let task = tokio::spawn(task.run());
        Ok((Self { orders, addr, own_ip }, task))
    }

    /// Where they listen.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How peers reach them; their RTP belongs on the same address.
    pub fn own_ip(&self) -> IpAddr {
        self.own_ip
    }

    pub async fn dial(&self, dial: Dial) -> Result<PhoneCall, PhoneError> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order::Dial(Box::new(dial), reply)).await.map_err(|_| PhoneError::Gone)?;
        Ok(answer.await.map_err(|_| PhoneError::Gone)??)
    }
}

impl PhoneCall {
    /// What happens next and when it was read. `None`: the telephones are gone.
    pub async fn recv(&mut self) -> Option<(Instant, CallEvent)> {
        self.events.recv().await
    }

    pub async fn command(&self, command: CallCommand) {
        // A task that is gone has closed `events` too.
        let _ = self.orders.send(Order::Call(self.id, command)).await;
    }
}

/// The address by which this machine reaches `far`; nothing is sent.
pub fn own_ip_towards(far: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if far.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.connect(far)?;
    Ok(socket.local_addr()?.ip())
}

fn bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    // The kernel gives what it allows; less is no error.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    socket.bind(&addr.into())?;
    UdpSocket::from_std(socket.into())
}

fn options(own_ip: IpAddr, port: u16) -> Options {
    let mut addresses = Addresses::default();
    match own_ip {
        IpAddr::V4(_) => (addresses.v4, addresses.udp_port) = (Some(own_ip), port),
        IpAddr::V6(_) => (addresses.v6, addresses.udp_port_v6) = (Some(own_ip), port),
    }
    let limits = Limits {
        max_calls: MAX_CALLS,
        max_calls_per_peer: MAX_CALLS,
        max_transactions: MAX_TRANSACTIONS,
        // The one server that they all talk to may say what it likes.
        peer_messages_per_s: u32::MAX,
        ladder_messages: 0,
        ..Limits::default()
    };
    Options { agent: "Offhook load".into(), addresses, limits, ..Options::default() }
}

struct Task {
    endpoint: Endpoint,
    socket: UdpSocket,
    desk: Option<Box<dyn Desk>>,
    order_queue: mpsc::Receiver<Order>,
    orders: mpsc::WeakSender<Order>,
    calls: HashMap<CallRef, mpsc::Sender<(Instant, CallEvent)>>,
    /// Resolves to a call that its owner has dropped. As many as calls.
    left: FuturesUnordered<BoxFuture<'static, CallRef>>,
    lookups: JoinSet<(u64, Vec<Target>)>,
}

impl Task {
    async fn run(mut self) {
        let mut goodbye: Option<Instant> = None;
        let mut buffer = vec![0; 65_536];
        loop {
            self.carry_out();
            if goodbye.is_some_and(|limit| limit <= Instant::now() || self.endpoint.held().0 == 0) {
                return;
            }
            self.read_datagrams(&mut buffer);
            let wake = [self.endpoint.deadline().map(Instant::from_std), goodbye].into_iter().flatten().min();
            tokio::select! {
                Some(call) = self.left.next(), if !self.left.is_empty() => {
                    self.endpoint.on_command(now(), call, CallCommand::HangUp);
                }
                order = self.order_queue.recv(), if goodbye.is_none() => match order {
                    Some(order) => self.on_order(order),
                    // Calls hold a handle each: all are dropped.
                    None => goodbye = Some(Instant::now() + GOODBYE_LIMIT),
                },
                Some(found) = self.lookups.join_next(), if !self.lookups.is_empty() => {
                    if let Ok((id, targets)) = found {
                        self.endpoint.on_resolved(now(), id, targets);
                    }
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => self.endpoint.on_tick(now()),
                readable = self.socket.readable() => {
                    if readable.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn read_datagrams(&mut self, buffer: &mut [u8]) {
        for _ in 0..BATCH {
            match self.socket.try_recv_from(buffer) {
                Ok((length, peer)) => {
                    if !self.at_the_desk(peer, &buffer[..length]) {
                        self.endpoint.on_datagram(now(), &Target::new(Transport::Udp, peer), &buffer[..length]);
                    }
                    self.carry_out();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // A peer's port is closed, as ICMP says; the timers know what to make of its silence.
                Err(_) => {}
            }
        }
    }

    fn at_the_desk(&mut self, source: SocketAddr, bytes: &[u8]) -> bool {
        let Some(desk) = &mut self.desk else { return false };
        let Verdict::Request(request) = read(&bytes::Bytes::copy_from_slice(bytes), Framing::Datagram) else {
            return false;
        };
        let Some(response) = desk.answer(now(), source, &request) else { return false };
        // Lost where the socket is full: the request will come again.
        let _ = self.socket.try_send_to(&response.to_bytes(), source);
        true
    }

    fn on_order(&mut self, order: Order) {
        match order {
            Order::Dial(dial, reply) => {
                let dialled = Instant::now();
                let made = self.endpoint.dial(now(), *dial).map(|id| self.own(id, dialled)).transpose();
                if let Some(made) = made {
                    // Whoever asked may have gone: the call that comes back is dropped, and so hung up.
                    drop(reply.send(made));
                }
            }
            Order::Call(call, command) => self.endpoint.on_command(now(), call, command),
        }
    }

    /// `None`: nobody holds the telephones any more.
    fn own(&mut self, id: CallRef, dialled: Instant) -> Option<PhoneCall> {
        let orders = self.orders.upgrade()?;
        let (sender, events) = mpsc::channel(EVENT_QUEUE);
        let owner = sender.clone();
        self.calls.insert(id, sender);
        self.left.push(Box::pin(async move {
            owner.closed().await;
            id
        }));
        Some(PhoneCall { id, dialled, events, orders })
    }

    /// Does what the endpoint wants done.
    fn carry_out(&mut self) {
        while let Some(output) = self.endpoint.poll() {
            match output {
                // What the socket does not take is sent again by the transaction.
                Output::Send(send) => drop(self.socket.try_send_to(&send.bytes, send.target.addr)),
                Output::Resolve(resolve) => {
                    self.lookups.spawn(async move {
                        let port = resolve.port.unwrap_or(Transport::Udp.default_port());
                        let found = timeout(LOOKUP_LIMIT, tokio::net::lookup_host((resolve.host, port))).await;
                        let found = found.ok().and_then(Result::ok).into_iter().flatten();
                        (resolve.id, found.map(|addr| Target::new(Transport::Udp, addr)).collect())
                    });
                }
                Output::Event(Event::Call { call, event }) => self.on_event(call, event),
                Output::Event(Event::Closed { call, .. }) => drop(self.calls.remove(&call)),
                Output::Event(Event::Incoming(incoming)) => {
                    self.endpoint.on_command(now(), incoming.call, CallCommand::Refuse { status: 403 });
                }
                // Over UDP there is no connection to give up.
                Output::Event(Event::Registration { .. }) | Output::Abandon(_) => {}
            }
        }
    }

    fn on_event(&mut self, call: CallRef, event: CallEvent) {
        let Some(owner) = self.calls.get(&call) else { return };
        let ended = matches!(event, CallEvent::Ended(_));
        let stuck = matches!(owner.try_send((Instant::now(), event)), Err(mpsc::error::TrySendError::Full(_)));
        if ended {
            self.calls.remove(&call);
        } else if stuck {
            self.endpoint.on_command(now(), call, CallCommand::HangUp);
        }
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
