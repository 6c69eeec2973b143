//! Where a message goes and where it came from.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// How messages travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    #[default]
    Udp,
    Tcp,
    Tls,
}

impl Transport {
    /// As Via and the `transport` parameter print it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
        }
    }

    /// Whether the transport repeats what is lost, so that we need not.
    pub const fn is_reliable(self) -> bool {
        !matches!(self, Self::Udp)
    }

    pub const fn default_port(self) -> u16 {
        match self {
            Self::Udp | Self::Tcp => 5060,
            Self::Tls => 5061,
        }
    }
}

/// A peer's address. Over TCP and TLS it is also the connection: an open one to that address is used, whoever opened it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub transport: Transport,
    pub addr: SocketAddr,
    /// The name that the certificate must carry when we open a TLS connection; absent for connections opened by the
    /// peer.
    pub name: Option<Arc<str>>,
}

impl Target {
    pub fn new(transport: Transport, addr: SocketAddr) -> Self {
        Self { transport, addr, name: None }
    }

    /// Whether both are the same connection.
    pub fn is_same(&self, other: &Self) -> bool {
        self.transport == other.transport && self.addr == other.addr
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.transport.label(), self.addr)
    }
}

/// Bytes to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    pub target: Target,
    pub bytes: bytes::Bytes,
    /// Of the message, for the ladder of its call.
    pub call_id: Arc<str>,
}
