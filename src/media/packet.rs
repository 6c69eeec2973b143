//! An encoded packet as it travels between a transport and a call. Its bytes are inline, so that moving one through a
//! channel allocates nothing.

use crate::media::frame::{MediaTime, SampleRate};

/// How the bytes of a packet were encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// G.711 mu-law, 8 kHz, one byte a sample.
    Pcmu,
    /// G.711 A-law, 8 kHz, one byte a sample.
    Pcma,
}

impl Codec {
    pub const fn rate(self) -> SampleRate {
        match self {
            Codec::Pcmu | Codec::Pcma => SampleRate::HZ_8000,
        }
    }

    /// The byte that decodes to silence (ITU-T G.711: positive zero).
    pub const fn silence(self) -> u8 {
        match self {
            Codec::Pcmu => 0xFF,
            Codec::Pcma => 0xD5,
        }
    }
}

/// Encoded audio with its place on the leg's time axis.
#[derive(Clone)]
pub struct Packet {
    pub codec: Codec,
    /// Time of the first sample.
    pub at: MediaTime,
    len: u16,
    bytes: [u8; Packet::MAX],
}

impl Packet {
    /// 60 ms of G.711; a transport cuts longer payloads into several packets.
    pub const MAX: usize = 480;

    /// `None` when `payload` is longer than [`Packet::MAX`].
    pub fn new(codec: Codec, at: MediaTime, payload: &[u8]) -> Option<Self> {
        if payload.len() > Self::MAX {
            return None;
        }
        let mut bytes = [0; Self::MAX];
        bytes[..payload.len()].copy_from_slice(payload);
        Some(Self { codec, at, len: payload.len() as u16, bytes })
    }

    pub fn payload(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// How long its samples last.
    pub fn duration(&self) -> std::time::Duration {
        self.codec.rate().duration(usize::from(self.len))
    }
}

impl std::fmt::Debug for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packet").field("codec", &self.codec).field("at", &self.at).field("len", &self.len).finish()
    }
}
