//! `[sip]`: where SIP listens, how the world reaches it, what it may hold. SIP is spoken as soon as an integration has a
//! SIP side.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::protocol::sip::core::Limits;
use crate::protocol::sip::transaction::Timers;
use crate::transport::rtp_udp::config::RtpConfig;

/// The `[sip]` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SipConfig {
    /// Address and port for UDP and TCP, default `0.0.0.0:5060`. Port 0 takes any free one.
    pub listen: SocketAddr,
    /// The same for IPv6, such as `[::]:5060`. Absent: IPv4 only.
    pub listen_v6: Option<SocketAddr>,
    /// Address and port for TLS, such as `0.0.0.0:5061`. Absent: TLS is spoken only on connections that we open.
    pub tls_listen: Option<SocketAddr>,
    /// PEM file of the certificate chain for `tls_listen`.
    pub tls_cert: Option<PathBuf>,
    /// PEM file of its private key.
    pub tls_key: Option<PathBuf>,
    /// PEM file of one more certificate authority that servers of ours may be signed by, beside those of the system.
    pub tls_ca: Option<PathBuf>,
    /// The address by which peers outside our networks reach us, where a NAT stands before us. Absent: our own, or the
    /// one that a registrar sees. It is told to peers of its own family, IPv4 or IPv6; the other family tells its own.
    pub external_ip: Option<IpAddr>,
    /// What User-Agent and Server say, default `Offhook`.
    pub agent: String,
    /// Seconds between OPTIONS to a registrar, default 30. A larger value notices its loss later, and may let a NAT
    /// forget us.
    pub keep_alive_s: u64,
    /// Seconds that a registration is asked for, default 120. A larger value sends less, and leaves us unreachable for
    /// longer after a registrar forgot us.
    pub register_s: u64,
    /// Seconds that a call may ring, in or out, default 180.
    pub ring_s: u64,
    /// Seconds of a session interval (RFC 4028), default 1800. A larger value keeps a call for longer whose peer is
    /// gone without a word and whose media stopped being watched.
    pub session_s: u64,
    /// Ports for media, both ends included, default `20000-29999`. A call takes two (RTP even, RTCP above it); a larger
    /// range takes more calls. Keep it apart from the kernel's ephemeral range, whose ports any program may be given.
    pub rtp_ports: String,
    pub rtp: RtpConfig,
    pub limits: SipLimitsConfig,
}

/// The `[sip.limits]` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SipLimitsConfig {
    /// Calls in any state, default 1000. Above it 503.
    pub max_calls: usize,
    /// Of those, calls from one address, default 500.
    pub max_calls_per_peer: usize,
    /// Transactions of each side, default 20000: 2 KiB each for 32 s. Above it 503.
    pub max_transactions: usize,
    /// Bytes of one message, default 65536. A connection may hold as much.
    pub max_message_bytes: usize,
    /// TCP and TLS connections together, default 1000.
    pub max_connections: usize,
    /// Connections that one address may open to us, default 50.
    pub max_connections_per_peer: usize,
    /// Seconds after which a connection without a word is closed, default 3600. A larger value lets idle peers hold
    /// more of them.
    pub idle_s: u64,
    /// Seconds after which a peer that does not read what is written to its connection loses it, default 10.
    pub write_s: u64,
    /// Messages a second from one address that are read, default 2000.
    pub peer_messages_per_s: u32,
    /// Refusals a second to one stranger, default 10; above it silence.
    pub peer_refusals_per_s: u32,
    /// Milliseconds of RFC 3261's T1, default 500. A smaller value repeats unanswered messages sooner and gives peers up
    /// sooner (after 64 of it).
    pub t1_ms: u64,
}

impl Default for SipConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 5060)),
            listen_v6: None,
            tls_listen: None,
            tls_cert: None,
            tls_key: None,
            tls_ca: None,
            external_ip: None,
            agent: "Offhook".into(),
            keep_alive_s: 30,
            register_s: 120,
            ring_s: 180,
            session_s: 1800,
            rtp_ports: "20000-29999".into(),
            rtp: RtpConfig::default(),
            limits: SipLimitsConfig::default(),
        }
    }
}

impl Default for SipLimitsConfig {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            max_calls: limits.max_calls,
            max_calls_per_peer: limits.max_calls_per_peer,
            max_transactions: limits.max_transactions,
            max_message_bytes: limits.max_message_bytes,
            max_connections: 1000,
            max_connections_per_peer: 50,
            idle_s: 3600,
            write_s: 10,
            peer_messages_per_s: limits.peer_messages_per_s,
            peer_refusals_per_s: limits.peer_refusals_per_s,
            t1_ms: 500,
        }
    }
}

/// What is wrong with a value of `[sip]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SipConfigError {
    #[error("sip.listen must be an IPv4 address and port, and sip.listen_v6 an IPv6 one")]
    Family,
    #[error("sip.tls_listen needs sip.tls_cert and sip.tls_key")]
    TlsFiles,
    #[error("sip.{0} must not be zero")]
    Zero(&'static str),
    #[error("sip.session_s must be at least 90 (RFC 4028)")]
    Session,
}

impl SipConfig {
    /// All faults at once.
    pub fn faults(&self) -> Vec<SipConfigError> {
        let mut faults = Vec::new();
        if !self.listen.is_ipv4() || self.listen_v6.is_some_and(|listen| !listen.is_ipv6()) {
            faults.push(SipConfigError::Family);
        }
        if self.tls_listen.is_some() && (self.tls_cert.is_none() || self.tls_key.is_none()) {
            faults.push(SipConfigError::TlsFiles);
        }
        if self.session_s < 90 {
            faults.push(SipConfigError::Session);
        }
        for (name, value) in [
            ("keep_alive_s", self.keep_alive_s),
            ("register_s", self.register_s),
            ("ring_s", self.ring_s),
            ("limits.idle_s", self.limits.idle_s),
            ("limits.write_s", self.limits.write_s),
            ("limits.t1_ms", self.limits.t1_ms),
            ("limits.max_calls", self.limits.max_calls as u64),
            ("limits.max_transactions", self.limits.max_transactions as u64),
            ("limits.max_message_bytes", self.limits.max_message_bytes as u64),
            ("limits.peer_messages_per_s", self.limits.peer_messages_per_s.into()),
        ] {
            if value == 0 {
                faults.push(SipConfigError::Zero(name));
            }
        }
        faults
    }

    /// Media, with its ports, and IPv6 where signalling has it.
    pub fn rtp(&self) -> RtpConfig {
        let listen_v6 = self.rtp.listen_v6.or(self.listen_v6.map(|listen| listen.ip()));
        RtpConfig { rtp_ports: self.rtp_ports.clone(), listen_v6, ..self.rtp.clone() }
    }

    pub(super) fn protocol_limits(&self) -> Limits {
        Limits {
            max_calls: self.limits.max_calls,
            max_calls_per_peer: self.limits.max_calls_per_peer,
            max_transactions: self.limits.max_transactions,
            max_message_bytes: self.limits.max_message_bytes,
            peer_messages_per_s: self.limits.peer_messages_per_s,
            peer_refusals_per_s: self.limits.peer_refusals_per_s,
            ..Limits::default()
        }
    }

    pub(super) fn timers(&self) -> Timers {
        let defaults = Timers::default();
        let t1 = Duration::from_millis(self.limits.t1_ms);
        // T2 and T4 keep their proportion to T1.
        let scale = |time: Duration| time * u32::try_from(self.limits.t1_ms).unwrap_or(500) / 500;
        Timers { t1, t2: scale(defaults.t2), t4: scale(defaults.t4) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_good_and_unknown_keys_are_errors() {
        assert_eq!(toml::from_str::<SipConfig>("").unwrap(), SipConfig::default());
        assert_eq!(SipConfig::default().faults(), []);
        assert!(toml::from_str::<SipConfig>("port = 5060").is_err());
        assert!(toml::from_str::<SipConfig>("[limits]\nmax_call = 1").is_err());
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let config: SipConfig = toml::from_str(
            "listen = \"[::]:5060\"\ntls_listen = \"0.0.0.0:5061\"\nsession_s = 60\n[limits]\nmax_calls = 0",
        )
        .unwrap();
        assert_eq!(
            config.faults(),
            [
                SipConfigError::Family,
                SipConfigError::TlsFiles,
                SipConfigError::Session,
                SipConfigError::Zero("limits.max_calls"),
            ]
        );
    }

    #[test]
    fn media_is_ipv6_where_signalling_is() {
        let rtp = |text: &str| toml::from_str::<SipConfig>(text).unwrap().rtp().listen_v6.map(|ip| ip.to_string());
        assert_eq!(rtp(""), None);
        assert_eq!(rtp("listen_v6 = \"[::]:5060\""), Some("::".into()));
        assert_eq!(rtp("listen_v6 = \"[::]:5060\"\n[rtp]\nlisten_v6 = \"2001:db8::5\""), Some("2001:db8::5".into()));
        assert_eq!(rtp("[rtp]\nlisten_v6 = \"::1\""), Some("::1".into()), "media alone");
    }

    #[test]
    fn the_timers_keep_their_proportions() {
        let mut config = SipConfig::default();
        assert_eq!(config.timers(), Timers::default());
        config.limits.t1_ms = 50;
        let timers = config.timers();
        assert_eq!((timers.t2, timers.t4), (Duration::from_millis(400), Duration::from_millis(500)));
    }
}
