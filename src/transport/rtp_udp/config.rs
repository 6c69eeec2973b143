//! `[sip.rtp]`: addresses and ports of media, its pace and its patience.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::media::jitter::JitterConfig;
use crate::media::packet::Codec;

/// The `[sip.rtp]` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RtpConfig {
    /// Address that media sockets are bound to, default `0.0.0.0`. An IPv6 address makes media IPv6 only.
    pub listen: IpAddr,
    /// The same for calls whose media is IPv6. Absent: the address of `sip.listen_v6`; without that, media is IPv4 only.
    pub listen_v6: Option<IpAddr>,
    /// `sip.rtp_ports`: the `[sip]` section's own.
    #[serde(skip)]
    pub rtp_ports: String,
    /// Seconds that ports rest after a call, so that its late packets reach nobody else, default 5. A larger value needs
    /// a larger range.
    pub port_rest_s: u64,
    /// What is offered and taken, the favourite first: `g722`, `pcma`, `pcmu`, `opus`; this is the default. G.722 and
    /// Opus let recognition hear 7 kHz; Opus costs 0.3 ms of a core for each 20 ms, the others a hundredth of it.
    pub codecs: Vec<Codec>,
    /// Audio in a packet that we ask for, ms, 10 to 60, default 20. Longer packets save bandwidth and cost delay.
    pub ptime_ms: u32,
    /// The least and the most that the jitter buffer holds audio back, ms, defaults 20 and 200. See
    /// [`JitterConfig::adaptive_ms`].
    pub jitter_min_ms: u32,
    pub jitter_max_ms: u32,
    /// Seconds without media after which a call that is not held is given up, default 20. 0: never, so that a peer that
    /// vanished keeps its call until a limit of the call ends it.
    pub media_timeout_s: u64,
    /// Send to where the peer's media comes from, not to where it says (default true): callers behind NAT hear nothing
    /// otherwise.
    pub symmetric: bool,
    /// Send silence while the agent is silent (default true): keeps NAT bindings open and the peer's clock running, 64
    /// kbit/s. Off, a packet is sent every ten seconds.
    pub send_silence: bool,
    /// Differentiated services code point of media, default 46 (EF, RFC 3246); 0 to 63. Needs no privilege on Linux.
    pub dscp: u8,
    /// How long a key is pressed for the other side, and the pause behind it, ms, defaults 100 and 60.
    pub key_ms: u64,
    pub key_pause_ms: u64,
}

impl Default for RtpConfig {
    fn default() -> Self {
        Self {
            listen: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            listen_v6: None,
            rtp_ports: "20000-29999".into(),
            port_rest_s: 5,
            codecs: Codec::ALL.to_vec(),
            ptime_ms: 20,
            jitter_min_ms: 20,
            jitter_max_ms: 200,
            media_timeout_s: 20,
            symmetric: true,
            send_silence: true,
            dscp: 46,
            key_ms: 100,
            key_pause_ms: 60,
        }
    }
}

/// What is wrong with a value of `[sip.rtp]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RtpConfigError {
    #[error("sip.rtp_ports: {0:?} is not a range such as 20000-29999 that holds an even port and the one above it")]
    Ports(String),
    #[error("sip.rtp.listen_v6 must be an IPv6 address")]
    Family,
    #[error("sip.rtp.codecs names no codec")]
    NoCodec,
    #[error("sip.rtp.ptime_ms must be 10, 20, 30, 40, 50 or 60")]
    Ptime,
    #[error("sip.rtp.jitter_max_ms must be at least sip.rtp.jitter_min_ms, and at most 1000")]
    Jitter,
    #[error("sip.rtp.dscp must be 0 to 63")]
    Dscp,
    #[error("sip.rtp.key_ms must be 40 to 5000, sip.rtp.key_pause_ms 20 to 5000")]
    Key,
}

impl RtpConfig {
    /// Every fault at once.
    pub fn faults(&self) -> Vec<RtpConfigError> {
        let mut faults = Vec::new();
        let mut check = |good: bool, fault: RtpConfigError| {
            if !good {
                faults.push(fault);
            }
        };
        check(self.rtp_ports.parse::<PortRange>().is_ok(), RtpConfigError::Ports(self.rtp_ports.clone()));
        check(self.listen_v6.is_none_or(|listen| listen.is_ipv6()), RtpConfigError::Family);
        check(!self.codecs.is_empty(), RtpConfigError::NoCodec);
        check((10..=60).contains(&self.ptime_ms) && self.ptime_ms.is_multiple_of(10), RtpConfigError::Ptime);
        check((self.jitter_min_ms..=1000).contains(&self.jitter_max_ms), RtpConfigError::Jitter);
        check(self.dscp < 64, RtpConfigError::Dscp);
        let keys = (40..=5000).contains(&self.key_ms) && (20..=5000).contains(&self.key_pause_ms);
        check(keys, RtpConfigError::Key);
        faults
    }

    /// What sockets for media with this address are bound to. `None`: there is none of its family.
    pub fn listens_for(&self, far: IpAddr) -> Option<IpAddr> {
        [Some(self.listen), self.listen_v6].into_iter().flatten().find(|own| own.is_ipv4() == far.is_ipv4())
    }

    pub fn jitter(&self) -> JitterConfig {
        let max_ms = JitterConfig::RTP.max_ms.max(self.jitter_max_ms + 100);
        JitterConfig { target_ms: self.jitter_min_ms, adaptive_ms: self.jitter_max_ms.max(1), max_ms }
    }

    /// `None`: never.
    pub fn media_timeout(&self) -> Option<Duration> {
        (self.media_timeout_s > 0).then(|| Duration::from_secs(self.media_timeout_s))
    }
}

/// Even ports from `first`, each with the odd one above it up to `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    /// The even ports.
    pub fn ports(self) -> impl Iterator<Item = u16> {
        (self.first..self.last).filter(|port| port.is_multiple_of(2))
    }

    pub fn overlaps(self, (low, high): (u16, u16)) -> bool {
        self.first <= high && low <= self.last
    }
}

impl FromStr for PortRange {
    type Err = RtpConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || RtpConfigError::Ports(text.into());
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let number = |text: &str| text.trim().parse::<u16>().map_err(|_| wrong());
        let range = Self { first: number(first)?, last: number(last)? };
        let usable = range.first >= 1024 && range.ports().next().is_some();
        usable.then_some(range).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_without_fault() {
        assert_eq!(RtpConfig::default().faults(), []);
        assert_eq!(RtpConfig::default().jitter(), JitterConfig::RTP);
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let config = RtpConfig {
            rtp_ports: "30000".into(),
            listen_v6: Some(Ipv4Addr::LOCALHOST.into()),
            codecs: vec![],
            ptime_ms: 25,
            jitter_min_ms: 300,
            dscp: 64,
            key_ms: 1,
            ..RtpConfig::default()
        };
        assert_eq!(config.faults().len(), 7, "{:?}", config.faults());
    }

    #[test]
    fn each_family_has_an_address_or_none() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let (v4, v6) = (ip("192.0.2.1"), ip("2001:db8::1"));
        let own = |listen: &str, listen_v6: Option<&str>| {
            let config = RtpConfig { listen: ip(listen), listen_v6: listen_v6.map(ip), ..RtpConfig::default() };
            (config.listens_for(v4), config.listens_for(v6))
        };
        assert_eq!(own("0.0.0.0", None), (Some(ip("0.0.0.0")), None));
        assert_eq!(own("10.0.0.5", Some("::")), (Some(ip("10.0.0.5")), Some(ip("::"))));
        assert_eq!(own("::", None), (None, Some(ip("::"))));
    }

    #[test]
    fn a_range_holds_even_ports_with_the_one_above() {
        let ports = |text: &str| text.parse::<PortRange>().map(|range| range.ports().collect::<Vec<u16>>());
        assert_eq!(ports("20001-20006"), Ok(vec![20_002, 20_004]));
        assert_eq!(ports(" 20000 - 20001 "), Ok(vec![20_000]));
        for wrong in ["", "20000", "20000-20000", "20001-20002", "5-9", "30000-20000", "20000-70000", "a-b"] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
        let range = PortRange { first: 20_000, last: 29_999 };
        assert!(
            range.overlaps((29_999, 40_000)) && range.overlaps((10_000, 60_999)) && !range.overlaps((32_768, 60_999))
        );
    }

    #[test]
    fn codecs_are_named_as_in_descriptions_and_unknown_keys_are_errors() {
        let config: RtpConfig = toml::from_str("codecs = [\"pcma\", \"opus\"]\nlisten = \"::\"").expect("good");
        assert_eq!(config.codecs, [Codec::Pcma, Codec::Opus]);
        assert!(toml::from_str::<RtpConfig>("codec = []").is_err());
        assert!(toml::from_str::<RtpConfig>("codecs = [\"g729\"]").is_err());
    }
}
