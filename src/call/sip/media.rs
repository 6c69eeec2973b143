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
use crate::protocol::sip::call::{CallCommand, Warning};
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
            Self::Negotiate(_) | Self::Srtp(_) | Self::Ports(PortError::Family) => 488,
            Self::Ports(_) | Self::NoRoute => 503,
        }
    }

    /// What the peer is told beside the status.
    fn warning(&self) -> Option<Warning> {
        let fault = match self {
            Self::Negotiate(fault) => *fault,
            Self::Ports(PortError::Family) => NegotiateError::Family,
            _ => return None,
        };
        fault.warning().map(|(code, text)| Warning { code, text })
    }

    /// How a call that waits for an answer is refused.
    pub(super) fn refuse_call(&self) -> CallCommand {
        let status = self.status();
        self.warning().map_or(CallCommand::Refuse { status }, |warning| CallCommand::RefuseMedia { status, warning })
    }

    /// How an offer in a call is refused.
    pub(super) fn refuse_offer(&self) -> CallCommand {
        let status = self.status();
        self.warning()
            .map_or(CallCommand::RefuseOffer { status }, |warning| CallCommand::RefuseMedia { status, warning })
    }
}

/// Our half of a call's media.
pub(super) struct Media {
    local: LocalMedia,
    config: RtpConfig,
    /// Until the stream takes it.
    socket: Option<RtpSocket>,
    /// The codec that runs, to be kept by later offers, and whether it runs encrypted.
    current: Option<Codec>,
    sealed: bool,
    /// What our address was found by.
    far: SocketAddr,
    external: Option<IpAddr>,
    handle: Option<RtpHandle>,
}

impl Media {
    /// Takes ports of the family that `far` has, which is where signalling or media goes. `secure`: signalling is
    /// encrypted, so that keys may travel in it. `external`: our address as peers outside our networks see it.
    pub(super) fn open(
        ports: &RtpPorts,
        config: &RtpConfig,
        far: SocketAddr,
        external: Option<IpAddr>,
        secure: bool,
    ) -> Result<Self, MediaError> {
        let far = SocketAddr::new(far.ip().to_canonical(), far.port());
        let address = told_address(config, far, external)?;
        let socket = ports.open_for(far.ip())?;
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
        let (config, socket) = (config.clone(), Some(socket));
        Ok(Self { local, config, socket, current: None, sealed: false, far, external, handle: None })
    }

    /// Takes ports for an offer, and answers it. The first audio line whose family we have decides which family that is; an
    /// offer that names no address is answered with the family that signalling from `peer` has.
    pub(super) fn for_offer(
        ports: &RtpPorts,
        config: &RtpConfig,
        peer: SocketAddr,
        offer: &[u8],
        external: Option<IpAddr>,
        secure: bool,
    ) -> Result<(Self, Bytes, MediaPlan), MediaError> {
        let offer = Description::parse(offer)?;
        let open = |far| Self::open(ports, config, far, external, secure);
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let mut opened = None;
        for target in negotiate::audio_targets(&offer) {
            // Our own address is the one that the peer's signalling knows of, where that says anything.
            let far = if target.is_ipv4() == peer.is_ipv4() { peer } else { target };
            match open(far) {
                // No way there: a machine that has the family in name only.
                Err(MediaError::Ports(PortError::Family) | MediaError::NoRoute) => {}
                other => {
                    opened = Some(other?);
                    break;
                }
            }
        }
        let mut media = match opened {
            Some(media) => media,
            None if negotiate::audio_targets(&offer).next().is_some() => return Err(PortError::Family.into()),
            None => open(peer)?,
        };
        let (body, plan) = media.agree(&offer)?;
        Ok((media, body, plan))
    }

    /// Our description for a peer that is to answer: what runs is offered first. Keys are left out of the first: whoever
    /// speaks no SRTP would refuse the call.
    pub(super) fn offer(&mut self) -> Bytes {
        let mut local = self.offered();
        self.local.version += 1;
        local.codecs.sort_by_key(|codec| Some(*codec) != self.current);
        negotiate::offer(&local).into()
    }

    /// As [`Media::offer`], by the address that this machine has towards the peer now.
    pub(super) fn moved(&mut self) -> Bytes {
        // Without a way there is none to tell either; what was told stays.
        if let Ok(address) = told_address(&self.config, self.far, self.external) {
            self.local.address = address;
        }
        self.offer()
    }

    fn offered(&self) -> LocalMedia {
        let srtp = if self.sealed { SrtpPolicy::Required } else { SrtpPolicy::Off };
        LocalMedia { srtp, ..self.local.clone() }
    }

    /// The answer to an offer, and what both have agreed on.
    pub(super) fn answer(&mut self, offer: &[u8]) -> Result<(Bytes, MediaPlan), MediaError> {
        self.agree(&Description::parse(offer)?)
    }

    fn agree(&mut self, offer: &Description) -> Result<(Bytes, MediaPlan), MediaError> {
        let agreed = negotiate::answer(offer, &self.local, self.current)?;
        self.local.version += 1;
        self.run(&agreed.plan);
        Ok((agreed.sdp.into(), agreed.plan))
    }

    /// What both have agreed on by an answer to our offer.
    pub(super) fn accept(&mut self, answer: &[u8]) -> Result<MediaPlan, MediaError> {
        let plan = negotiate::accept(&self.offered(), &Description::parse(answer)?)?;
        self.run(&plan);
        Ok(plan)
    }

    fn run(&mut self, plan: &MediaPlan) {
        self.current = Some(plan.codec);
        self.sealed = plan.srtp.is_some();
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

/// The address that a peer is told.
fn told_address(config: &RtpConfig, far: SocketAddr, external: Option<IpAddr>) -> Result<IpAddr, MediaError> {
    let listen = config.listens_for(far.ip()).ok_or(PortError::Family)?;
    match external {
        Some(external) if !is_private(far.ip()) && external.is_ipv4() == far.is_ipv4() => Ok(external),
        _ if listen.is_unspecified() => own_address(far).ok_or(MediaError::NoRoute),
        _ => Ok(listen),
    }
}

/// Our address on the way to a peer. Sends nothing: a datagram socket only looks up the route.
pub(super) fn own_address(peer: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "192.0.2.1:5060";
    const V6: &str = "[::1]:5060";

    fn config(first: u16, listen_v6: Option<&str>) -> RtpConfig {
        RtpConfig {
            listen: [127, 0, 0, 1].into(),
            listen_v6: listen_v6.map(|listen| listen.parse().expect("an address")),
            rtp_ports: format!("{first}-{}", first + 7),
            port_rest_s: 0,
            ..RtpConfig::default()
        }
    }

    fn audio(port: u16, connection: &str) -> String {
        format!("m=audio {port} RTP/AVP 0\r\nc=IN {connection}\r\n")
    }

    /// The answer's connection and ports, or the status and warning of its refusal.
    fn answered(config: &RtpConfig, peer: &str, lines: &[String]) -> Result<(String, Vec<u16>), (u16, Option<u16>)> {
        let ports = RtpPorts::new(config, 0).expect("a good range");
        let offer = format!("v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nt=0 0\r\n{}", lines.concat());
        let peer = peer.parse().expect("an address");
        let answer = Media::for_offer(&ports, config, peer, offer.as_bytes(), None, false);
        match answer {
            Ok((_media, sdp, _)) => {
                let text = std::str::from_utf8(&sdp).expect("text");
                let line = text.lines().find_map(|line| line.strip_prefix("c=IN ")).expect("a connection");
                let description = Description::parse(&sdp).expect("ours");
                let offered = description.media.iter().map(|media| u16::from(media.port != 0)).collect();
                Ok((line.to_owned(), offered))
            }
            Err(fault) => Err((fault.status(), fault.warning().map(|warning| warning.code))),
        }
    }

    fn has_v6() -> bool {
        let has = UdpSocket::bind("[::1]:0").is_ok();
        if !has {
            println!("skipped: no IPv6 here");
        }
        has
    }

    #[tokio::test]
    async fn the_offer_decides_the_family_and_not_the_way_that_it_came() {
        if !has_v6() {
            return;
        }
        let config = config(17_100, Some("::1"));
        for peer in [V4, V6] {
            assert_eq!(answered(&config, peer, &[audio(4000, "IP4 127.0.0.1")]), Ok(("IP4 127.0.0.1".into(), vec![1])));
            assert_eq!(answered(&config, peer, &[audio(4000, "IP6 ::1")]), Ok(("IP6 ::1".into(), vec![1])));
        }
        assert_eq!(answered(&config, V6, &[audio(4000, "IP6 ::")]), Ok(("IP6 ::1".into(), vec![1])), "held");
        assert_eq!(answered(&config, V4, &[audio(4000, "IP4 0.0.0.0")]), Ok(("IP4 127.0.0.1".into(), vec![1])));
    }

    #[tokio::test]
    async fn of_two_families_the_first_that_is_here_is_taken() {
        let both = [audio(4000, "IP6 ::1"), audio(4002, "IP4 127.0.0.1")];
        let without = config(17_110, None);
        assert_eq!(answered(&without, V4, &both), Ok(("IP4 127.0.0.1".into(), vec![0, 1])));
        if has_v6() {
            let with = config(17_110, Some("::1"));
            assert_eq!(answered(&with, V4, &both), Ok(("IP6 ::1".into(), vec![1, 0])));
        }
    }

    #[tokio::test]
    async fn a_family_that_the_machine_does_not_have_is_refused_with_its_reason() {
        let refusal = Err((488, Some(301)));
        assert_eq!(answered(&config(17_120, None), V4, &[audio(4000, "IP6 2001:db8::1")]), refusal);
        let elsewhere = config(17_120, Some("2001:db8::dead"));
        assert_eq!(answered(&elsewhere, V4, &[audio(4000, "IP6 2001:db8::1")]), refusal, "not on this machine");
        let only = RtpConfig { listen: "::1".parse().expect("an address"), ..config(17_120, None) };
        assert_eq!(answered(&only, V4, &[audio(4000, "IP4 192.0.2.1")]), refusal, "IPv6 only");
        let fault = MediaError::Ports(PortError::Family);
        assert!(matches!(fault.refuse_call(), CallCommand::RefuseMedia { status: 488, .. }));
        assert!(matches!(MediaError::NoRoute.refuse_offer(), CallCommand::RefuseOffer { status: 503 }));
    }

    #[tokio::test]
    async fn a_call_in_one_family_refuses_the_other_and_goes_on() {
        if !has_v6() {
            return;
        }
        let config = config(17_130, Some("::1"));
        let ports = RtpPorts::new(&config, 0).expect("a good range");
        let offer = |connection: &str| {
            format!("v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nt=0 0\r\n{}", audio(4000, connection)).into_bytes()
        };
        let peer = V6.parse().expect("an address");
        let opened = Media::for_offer(&ports, &config, peer, &offer("IP6 ::1"), None, false);
        let (mut media, _, plan) = opened.expect("agrees");
        assert_eq!(plan.remote, "[::1]:4000".parse().ok());
        let other = media.answer(&offer("IP4 192.0.2.1")).expect_err("another family");
        assert!(matches!(other, MediaError::Negotiate(NegotiateError::Family)), "{other:?}");
        let (_, held) = media.answer(&offer("IP6 ::")).expect("a hold");
        assert!(held.is_held());
        let (sdp, resumed) = media.answer(&offer("IP6 ::1")).expect("a resume");
        assert_eq!(resumed.remote, "[::1]:4000".parse().ok());
        assert!(std::str::from_utf8(&sdp).is_ok_and(|sdp| sdp.contains("c=IN IP6 ::1\r\n")));
    }

    #[tokio::test]
    async fn a_call_that_moves_offers_its_present_address_and_what_runs_first() {
        let config = RtpConfig { listen: [0, 0, 0, 0].into(), ..config(17_150, None) };
        let ports = RtpPorts::new(&config, 0).expect("a good range");
        let peer = "127.0.0.1:5060".parse().expect("an address");
        let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";
        let offer = format!(
            "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=audio 4000 RTP/SAVP 0\r\nc=IN IP4 127.0.0.1\r\n\
             a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:{key}\r\n"
        );
        let opened = Media::for_offer(&ports, &config, peer, offer.as_bytes(), None, true);
        let (mut media, first, plan) = opened.expect("agrees");
        assert!(plan.srtp.is_some());
        // As after a change of the network: what was told is not ours any more.
        media.local.address = "192.0.2.77".parse().expect("an address");
        let told = media.moved();
        let (first, told) = (String::from_utf8_lossy(&first).into_owned(), String::from_utf8_lossy(&told).into_owned());
        assert!(told.contains("c=IN IP4 127.0.0.1\r\n"), "{told}");
        assert!(told.contains(&format!("m=audio {} RTP/SAVP 0 ", media.local.port)), "{told}");
        let line = |text: &str, start: &str| text.lines().find(|line| line.starts_with(start)).map(str::to_owned);
        assert_eq!(line(&told, "a=crypto:1 "), line(&first, "a=crypto:1 "), "the same key: the stream goes on");
        assert_ne!(line(&told, "o="), line(&first, "o="), "another version");
        let answer = format!(
            "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=audio 4000 RTP/SAVP 0\r\nc=IN IP4 127.0.0.1\r\n\
             a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:{key}\r\n"
        );
        assert_eq!(media.accept(answer.as_bytes()).expect("fits"), plan, "nothing else has changed");
    }

    #[tokio::test]
    async fn an_external_address_is_told_to_its_own_family() {
        let config = config(17_140, Some("::1"));
        let ports = RtpPorts::new(&config, 0).expect("a good range");
        let told = |far: &str, external: &str| {
            let external = external.parse().ok();
            let media = Media::open(&ports, &config, far.parse().expect("an address"), external, false).ok()?;
            Some(media.own_address().to_string())
        };
        assert_eq!(told("198.51.100.1:5060", "203.0.113.9").as_deref(), Some("203.0.113.9"));
        assert_eq!(told("10.0.0.9:5060", "203.0.113.9").as_deref(), Some("127.0.0.1"), "in our own network");
        assert_eq!(told("198.51.100.1:5060", "2001:db8::9").as_deref(), Some("127.0.0.1"));
        if has_v6() {
            assert_eq!(told("[2001:db8::1]:5060", "2001:db8::9").as_deref(), Some("2001:db8::9"));
            assert_eq!(told("[2001:db8::1]:5060", "203.0.113.9").as_deref(), Some("::1"));
        }
    }
}
