//! What a SIP call agrees on with its peer: descriptions out and in, the ports behind them, and the stream that carries
//! the leg once both sides have spoken. Sends nothing itself.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use bytes::Bytes;

use crate::clock;
use crate::media::packet::Codec;
use crate::protocol::rtp::plan::{MediaPlan, SrtpKey};
use crate::protocol::rtp::session::{SessionSeed, ntp};
use crate::protocol::rtp::srtp::SrtpError;
use crate::protocol::sdp::negotiate::{self, LocalMedia, NegotiateError, SrtpPolicy};
use crate::protocol::sdp::parse::{Description, Direction, SdpError};
use crate::protocol::sip::dialog::is_private;
use crate::transport::rtp_udp::config::RtpConfig;
use crate::transport::rtp_udp::ports::{PortError, RtpPorts, RtpSocket};
use crate::transport::rtp_udp::{RtpHandle, RtpStream};

/// Why no media came about.
#[derive(Debug, thiserror::Error)]
pub(super) enum MediaError {
    #[error("the session description: {0}")]
    Description(#[from] SdpError),
    #[error(transparent)]
    Negotiate(#[from] NegotiateError),
    #[error(transparent)]
    Ports(#[from] PortError),
    #[error(transparent)]
    Srtp(#[from] SrtpError),
    #[error("no way to the peer")]
    NoRoute,
}

impl MediaError {
    /// What an offer that fails so is answered (RFC 3261 §21).
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::Description(_) => 400,
            Self::Negotiate(_) | Self::Srtp(_) => 488,
            Self::Ports(_) | Self::NoRoute => 503,
        }
    }
}

/// Our half of a call's media.
pub(super) struct Media {
    local: LocalMedia,
    config: RtpConfig,
    /// Until the stream takes it.
    socket: Option<RtpSocket>,
    /// The codec that runs, to be kept by later offers.
    current: Option<Codec>,
    handle: Option<RtpHandle>,
}

impl Media {
    /// Takes ports. `secure`: signalling is encrypted, so that keys may travel in it. `external`: our address as peers
    /// outside our networks see it.
    pub(super) fn open(
        ports: &RtpPorts,
        config: &RtpConfig,
        peer: SocketAddr,
        external: Option<IpAddr>,
        secure: bool,
    ) -> Result<Self, MediaError> {
        let socket = ports.open()?;
        let address = match external {
            Some(external) if !is_private(peer.ip()) && external.is_ipv4() == peer.is_ipv4() => external,
            _ if config.listen.is_unspecified() => own_address(peer).ok_or(MediaError::NoRoute)?,
            _ => config.listen,
        };
        let mut key = [0; 30];
        rand::fill(&mut key);
        let local = LocalMedia {
            address,
            port: socket.port(),
            rtcp_port: socket.rtcp_port(),
            // Positive in 64 bits for peers that count with a sign.
            session: rand::random_range(1..1 << 62),
            version: 1,
            codecs: config.codecs.clone(),
            ptime_ms: config.ptime_ms,
            direction: Direction::SendRecv,
            srtp: if secure { SrtpPolicy::Optional } else { SrtpPolicy::Off },
            srtp_key: SrtpKey::new(key),
        };
        Ok(Self { local, config: config.clone(), socket: Some(socket), current: None, handle: None })
    }

    /// Our description for a peer that is to answer. Keys are left out: whoever speaks no SRTP would refuse the call.
    pub(super) fn offer(&mut self) -> Bytes {
        let version = self.local.version;
        self.local.version += 1;
        let local = LocalMedia { srtp: SrtpPolicy::Off, version, ..self.local.clone() };
        negotiate::offer(&local).into()
    }

    /// The answer to an offer, and what both have agreed on.
    pub(super) fn answer(&mut self, offer: &[u8]) -> Result<(Bytes, MediaPlan), MediaError> {
        let offer = Description::parse(offer)?;
        let agreed = negotiate::answer(&offer, &self.local, self.current)?;
        self.local.version += 1;
        self.current = Some(agreed.plan.codec);
        Ok((agreed.sdp.into(), agreed.plan))
    }

    /// What both have agreed on by an answer to our offer.
    pub(super) fn accept(&mut self, answer: &[u8]) -> Result<MediaPlan, MediaError> {
        let local = LocalMedia { srtp: SrtpPolicy::Off, ..self.local.clone() };
        let plan = negotiate::accept(&local, &Description::parse(answer)?)?;
        self.current = Some(plan.codec);
        Ok(plan)
    }

    /// The stream of the first agreement. `None`: it has been made.
    pub(super) fn stream(&mut self, plan: MediaPlan) -> Result<Option<RtpStream>, MediaError> {
        let Some(socket) = self.socket.take() else { return Ok(None) };
        let since_1970 = Duration::from_millis(clock::now().as_millisecond().unsigned_abs());
        let seed = SessionSeed {
            ssrc: rand::random(),
            sequence: rand::random(),
            timestamp: rand::random(),
            ntp: ntp(since_1970),
            cname: format!("{:016x}", rand::random::<u64>()),
        };
        let (stream, handle) = RtpStream::new(socket, plan, seed, self.config.clone())?;
        self.handle = Some(handle);
        Ok(Some(stream))
    }

    /// As the peer is told.
    pub(super) fn own_address(&self) -> IpAddr {
        self.local.address
    }

    pub(super) fn handle(&self) -> Option<&RtpHandle> {
        self.handle.as_ref()
    }
}

/// Our address on the way to a peer. Sends nothing: a datagram socket only looks up the route.
fn own_address(peer: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
