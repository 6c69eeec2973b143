//! Ports for media: pairs of an even one for RTP and the odd one above it for RTCP, taken from a range, given back when
//! their sockets are dropped, and rested before they serve again. Both address families share the range: a number serves
//! one call, whatever its family, so that neither can take a port that the other has promised.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::transport::rtp_udp::config::{PortRange, RtpConfig, RtpConfigError};

/// Pairs that are tried for one call before it is refused: others on the machine may sit on some.
const TRIES: usize = 64;
/// Datagrams thrown away from a fresh socket: what came between its binding and its use.
const STALE: usize = 256;
/// Where Linux says which ports it gives away.
const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// No sockets for a call: refuse it with 503.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// All pairs are in use or at rest: the range is too small for the load.
    #[error("no free media port")]
    Exhausted,
    /// No address of the peer's family: refuse its offer with 488.
    #[error("no media of this address family on this machine")]
    Family,
    #[error("media socket")]
    Socket(#[from] io::Error),
}

/// The pool. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RtpPorts {
    pool: Arc<Pool>,
}

#[derive(Debug)]
struct Pool {
    config: RtpConfig,
    rest: Duration,
    /// Those that rested longest are first.
    free: Mutex<VecDeque<Free>>,
}

#[derive(Debug)]
struct Free {
    port: u16,
    from: Instant,
}

/// The sockets of one leg. Dropping them gives the ports back.
#[derive(Debug)]
pub struct RtpSocket {
    pub(super) rtp: UdpSocket,
    pub(super) rtcp: UdpSocket,
    port: u16,
    _lease: Lease,
}

#[derive(Debug)]
struct Lease {
    port: u16,
    pool: Arc<Pool>,
}

impl RtpPorts {
    /// `start`: at random, so that a restart does not begin with the ports it left.
    pub fn new(config: &RtpConfig, start: u64) -> Result<Self, RtpConfigError> {
        let range: PortRange = config.rtp_ports.parse()?;
        if let Some(ephemeral) = ephemeral_range().filter(|ephemeral| range.overlaps(*ephemeral)) {
            warn!(
                rtp_ports = %config.rtp_ports, low = ephemeral.0, high = ephemeral.1,
                "rtp_ports overlaps the kernel's ephemeral ports: other sockets of this machine may take ports of calls"
            );
        }
        let now = Instant::now();
        let mut free: VecDeque<Free> = range.ports().map(|port| Free { port, from: now }).collect();
        let turn = (start % free.len().max(1) as u64) as usize;
        free.rotate_left(turn);
        let rest = Duration::from_secs(config.port_rest_s);
        let pool = Pool { config: config.clone(), rest, free: Mutex::new(free) };
        Ok(Self { pool: Arc::new(pool) })
    }

    /// Pairs that could be taken now.
    pub fn free(&self) -> usize {
        let now = Instant::now();
        self.pool.lock().iter().filter(|free| free.from <= now).count()
    }

    /// Binds the next pair to the first address of the configuration. Runs inside tokio.
    pub fn open(&self) -> Result<RtpSocket, PortError> {
        self.open_for(self.pool.config.listen)
    }

    /// As [`RtpPorts::open`], of the family of an address that media goes to.
    pub fn open_for(&self, far: IpAddr) -> Result<RtpSocket, PortError> {
        let listen = self.pool.config.listens_for(far).ok_or(PortError::Family)?;
        for _ in 0..TRIES {
            let port = self.pool.take().ok_or(PortError::Exhausted)?;
            let lease = Lease { port, pool: self.pool.clone() };
            let bind = |port| self.pool.bind(SocketAddr::new(listen, port));
            match bind(port).and_then(|rtp| Ok((rtp, bind(port + 1)?))) {
                Ok((rtp, rtcp)) => return Ok(RtpSocket { rtp, rtcp, port, _lease: lease }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    debug!(port, "media port is taken by another socket");
                }
                Err(error) if listen.is_ipv6() && is_without_ipv6(&error) => return Err(PortError::Family),
                Err(error) => return Err(error.into()),
            }
        }
        Err(PortError::Exhausted)
    }
}

impl Pool {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Free>> {
        // Whoever panicked held it for one push or pop.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<u16> {
        let now = Instant::now();
        let mut free = self.lock();
        // They rest equally long, so that if the first is not ready, none is.
        free.pop_front_if(|free| free.from <= now).map(|free| free.port)
    }

    fn bind(&self, addr: SocketAddr) -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        let class = u32::from(self.config.dscp) << 2;
        let marked = match addr {
            SocketAddr::V4(_) => socket.set_tos_v4(class),
            SocketAddr::V6(_) => {
                // A packet's source is compared with addresses from signalling: none may come as a mapped one.
                socket.set_only_v6(true)?;
                socket.set_tclass_v6(class)
            }
        };
        if let Err(error) = marked {
            debug!(%error, "media is sent without a traffic class");
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        UdpSocket::from_std(socket.into())
    }
}

impl RtpSocket {
    /// The even port.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn rtcp_port(&self) -> u16 {
        self.port + 1
    }

    /// Throws away what came before anybody was told of the port.
    pub(super) fn drain(&self) {
        // Asks the kernel: tokio has not looked at a fresh socket yet.
        let mut byte = [MaybeUninit::uninit()];
        for socket in [&self.rtp, &self.rtcp] {
            let socket = SockRef::from(socket);
            for _ in 0..STALE {
                if socket.recv(&mut byte).is_err() {
                    break;
                }
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let from = Instant::now() + self.pool.rest;
        self.pool.lock().push_back(Free { port: self.port, from });
    }
}

/// The kernel was built or started without IPv6, or has no such address.
fn is_without_ipv6(error: &io::Error) -> bool {
    /// `EAFNOSUPPORT`, which std has no name for.
    const NO_SUCH_FAMILY: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(NO_SUCH_FAMILY)
}

fn ephemeral_range() -> Option<(u16, u16)> {
    let text = std::fs::read_to_string(EPHEMERAL).ok()?;
    let mut fields = text.split_whitespace().map(str::parse);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket as StdSocket;

    use super::*;

    /// Ranges of their own, so that tests do not meet each other.
    fn pool(first: u16, pairs: u16, rest: u64) -> RtpPorts {
        let config = RtpConfig {
            listen: [127, 0, 0, 1].into(),
            rtp_ports: format!("{first}-{}", first + 2 * pairs - 1),
            port_rest_s: rest,
            ..RtpConfig::default()
        };
        RtpPorts::new(&config, 0).expect("a good range")
    }

    #[tokio::test(start_paused = true)]
    async fn ports_come_in_pairs_and_rest_before_they_serve_again() {
        let ports = pool(17_000, 3, 5);
        let all: Vec<RtpSocket> = (0..3).map(|_| ports.open().expect("free")).collect();
        assert_eq!(all.iter().map(RtpSocket::port).collect::<Vec<u16>>(), [17_000, 17_002, 17_004]);
        assert_eq!(all[0].rtcp.local_addr().expect("bound").port(), 17_001);
        assert!(matches!(ports.open(), Err(PortError::Exhausted)));
        drop(all);
        assert_eq!(ports.free(), 0, "at rest");
        assert!(matches!(ports.open(), Err(PortError::Exhausted)));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(ports.free(), 3);
        assert_eq!(ports.open().expect("rested").port(), 17_000);
    }

    #[tokio::test]
    async fn a_pair_that_another_program_holds_is_passed_over() {
        let ports = pool(17_010, 2, 0);
        let foreign = StdSocket::bind("127.0.0.1:17011").expect("nobody has it");
        assert_eq!(ports.open().expect("the next").port(), 17_012);
        drop(foreign);
        assert_eq!(ports.free(), 2, "both came back");
    }

    #[tokio::test]
    async fn media_is_marked_for_expedited_forwarding() {
        let socket = pool(17_020, 1, 0).open().expect("free");
        assert_eq!(SockRef::from(&socket.rtp).tos_v4().expect("readable"), 46 << 2);
    }

    #[tokio::test]
    async fn both_families_share_the_range_and_a_call_gets_the_one_that_it_needs() {
        let (v4, v6) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]));
        let config = |listen_v6| RtpConfig {
            listen: v4,
            listen_v6,
            rtp_ports: "17030-17035".into(),
            port_rest_s: 0,
            ..RtpConfig::default()
        };
        let narrow = RtpPorts::new(&config(None), 0).expect("a good range");
        assert!(matches!(narrow.open_for(v6), Err(PortError::Family)));
        assert_eq!(narrow.free(), 3, "nothing was taken");
        let absent = RtpPorts::new(&config("2001:db8::dead".parse().ok()), 0).expect("a good range");
        assert!(matches!(absent.open_for(v6), Err(PortError::Family)), "the machine does not have it");
        assert_eq!(absent.free(), 3, "it came back");
        if StdSocket::bind((v6, 0)).is_err() {
            println!("skipped: no IPv6 here");
            return;
        }
        let ports = RtpPorts::new(&config(Some("::".parse().expect("an address"))), 0).expect("a good range");
        let (first, second) = (ports.open_for(v4).expect("free"), ports.open_for(v6).expect("free"));
        assert_eq!((first.port(), second.port()), (17_030, 17_032));
        let own = |socket: &UdpSocket| socket.local_addr().expect("bound").ip();
        assert_eq!((own(&first.rtp), own(&second.rtp)), (v4, "::".parse().expect("an address")));
        assert!(SockRef::from(&second.rtp).only_v6().expect("readable"));
        assert_eq!(SockRef::from(&second.rtcp).tclass_v6().expect("readable"), 46 << 2);
    }

    #[test]
    fn the_kernels_own_range_is_known_here() {
        if std::path::Path::new(EPHEMERAL).exists() {
            assert!(ephemeral_range().is_some_and(|(low, high)| low < high));
        }
    }
}
