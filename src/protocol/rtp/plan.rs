//! What both ends agreed on for one audio stream: the outcome of an offer and its answer, and all that a session needs.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::media::packet::{ClockRate, Codec};

/// An agreed audio stream. Equal plans need no change of a running session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaPlan {
    /// Where the peer wants audio; `None` while it holds by the old way (`c=0.0.0.0`).
    pub remote: Option<SocketAddr>,
    /// Where it wants RTCP; `None` as above, the address of `remote` when the port is shared.
    pub remote_rtcp: Option<SocketAddr>,
    /// RTP and RTCP share a port (RFC 5761).
    pub rtcp_mux: bool,
    /// What we send, and under which payload type.
    pub codec: Codec,
    pub payload_type: u8,
    /// What the peer may send.
    pub accepts: Vec<(u8, Codec)>,
    /// Named telephone events (RFC 4733); `None`: keys have to be heard and made in the sound itself.
    pub keys: Option<KeyFormat>,
    /// Payload type of comfort noise (RFC 3389), 13 wherever the clock is 8 kHz.
    pub comfort_noise: Option<u8>,
    /// Audio in each packet we send: 10 to 60 ms.
    pub ptime: Duration,
    /// We send: the peer listens, and we do not hold it.
    pub sends: bool,
    /// The peer sends.
    pub receives: bool,
    pub srtp: Option<SrtpKeys>,
}

impl MediaPlan {
    /// One side holds the other: no media is owed, so none is missed.
    pub const fn is_held(&self) -> bool {
        !(self.sends && self.receives)
    }
}

/// Payload types of `telephone-event`, and how its durations count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyFormat {
    pub send: u8,
    pub receive: u8,
    pub clock: ClockRate,
}

/// A suite of RFC 4568 §6.2: AES-128 in counter mode with HMAC-SHA1, the tag cut to 80 or 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SrtpSuite {
    HmacSha1_80,
    HmacSha1_32,
}

impl SrtpSuite {
    pub const fn name(self) -> &'static str {
        match self {
            Self::HmacSha1_80 => "AES_CM_128_HMAC_SHA1_80",
            Self::HmacSha1_32 => "AES_CM_128_HMAC_SHA1_32",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        [Self::HmacSha1_80, Self::HmacSha1_32].into_iter().find(|suite| suite.name() == name)
    }
}

/// Master key (16 bytes) and master salt (14 bytes) of one direction. Prints as dots.
#[derive(Clone, PartialEq, Eq)]
pub struct SrtpKey([u8; 30]);

impl SrtpKey {
    pub const fn new(key_and_salt: [u8; 30]) -> Self {
        Self(key_and_salt)
    }

    pub fn bytes(&self) -> &[u8; 30] {
        &self.0
    }

    pub fn key(&self) -> &[u8] {
        &self.0[..16]
    }

    pub fn salt(&self) -> &[u8] {
        &self.0[16..]
    }
}

impl fmt::Debug for SrtpKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrtpKeys {
    pub suite: SrtpSuite,
    /// Protects what we send.
    pub local: SrtpKey,
    /// Opens what the peer sends.
    pub remote: SrtpKey,
}
