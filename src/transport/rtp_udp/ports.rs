//! Ports for media: pairs of an even one for RTP and the odd one above it for RTCP, taken from a range, given back when
//! their sockets are dropped, and rested before they serve again.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, UdpSocket as StdSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::SockRef;
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
    listen: IpAddr,
    dscp: u8,
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
        let pool = Pool { listen: config.listen, dscp: config.dscp, rest, free: Mutex::new(free) };
        Ok(Self { pool: Arc::new(pool) })
    }

    /// Pairs that could be taken now.
    pub fn free(&self) -> usize {
        let now = Instant::now();
        self.pool.lock().iter().filter(|free| free.from <= now).count()
    }

    /// Binds the next pair. Runs inside tokio.
    pub fn open(&self) -> Result<RtpSocket, PortError> {
        for _ in 0..TRIES {
            let port = self.pool.take().ok_or(PortError::Exhausted)?;
            let lease = Lease { port, pool: self.pool.clone() };
            match self.pool.bind(port).and_then(|rtp| Ok((rtp, self.pool.bind(port + 1)?))) {
                Ok((rtp, rtcp)) => return Ok(RtpSocket { rtp, rtcp, port, _lease: lease }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    debug!(port, "media port is taken by another socket");
                }
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

    fn bind(&self, port: u16) -> io::Result<UdpSocket> {
        let socket = StdSocket::bind(SocketAddr::new(self.listen, port))?;
        socket.set_nonblocking(true)?;
        let options = SockRef::from(&socket);
        let class = u32::from(self.dscp) << 2;
        let marked = match self.listen {
            IpAddr::V4(_) => options.set_tos_v4(class),
            IpAddr::V6(_) => options.set_tclass_v6(class),
        };
        if let Err(error) = marked {
            debug!(%error, "media is sent without a traffic class");
        }
        let socket = UdpSocket::from_std(socket)?;
        Ok(socket)
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

fn ephemeral_range() -> Option<(u16, u16)> {
    let text = std::fs::read_to_string(EPHEMERAL).ok()?;
    let mut fields = text.split_whitespace().map(str::parse);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn the_kernels_own_range_is_known_here() {
        if std::path::Path::new(EPHEMERAL).exists() {
            assert!(ephemeral_range().is_some_and(|(low, high)| low < high));
        }
    }
}
