//! An encoded packet as it travels between a transport and a call. Its bytes are inline, so that moving one through a
//! channel allocates nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::media::frame::{MediaTime, SampleRate};

/// How the bytes of a packet were encoded. In a configuration by its name in small letters: `pcmu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// G.711 mu-law, 8 kHz, one byte a sample.
    Pcmu,
    /// G.711 A-law, 8 kHz, one byte a sample.
    Pcma,
    /// G.722 at 64 kbit/s: 16 kHz, one byte for two samples.
    G722,
    /// Opus, mono, decoded to 16 kHz: what recognition hears. One packet holds 2.5 to 120 ms.
    Opus,
}

/// How RTP timestamps count, in ticks a second. Not how sound was sampled: G.722 samples at 16 kHz and counts at 8 kHz
/// (RFC 3551 §4.5.2), Opus counts at 48 kHz whatever it samples at (RFC 7587 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClockRate(u32);

impl ClockRate {
    pub const HZ_8000: Self = Self(8_000);
    pub const HZ_48000: Self = Self(48_000);

    /// `None` for a clock that stands still.
    pub const fn new(hz: u32) -> Option<Self> {
        if hz == 0 { None } else { Some(Self(hz)) }
    }

    pub const fn hz(self) -> u32 {
        self.0
    }

    /// Ticks in `time`, rounded down.
    pub fn ticks(self, time: Duration) -> u64 {
        (time.as_nanos() * u128::from(self.0) / 1_000_000_000) as u64
    }

    /// How long `ticks` last.
    pub fn duration(self, ticks: u64) -> Duration {
        let nanos = u128::from(ticks) * 1_000_000_000 / u128::from(self.0);
        Duration::from_nanos(nanos.min(u128::from(u64::MAX)) as u64)
    }
}

impl Codec {
    /// All of them, in the order in which an operator who says nothing gets them offered: wideband first, then what every
    /// telephone speaks.
    pub const ALL: [Codec; 4] = [Codec::G722, Codec::Pcma, Codec::Pcmu, Codec::Opus];

    pub const fn rate(self) -> SampleRate {
        match self {
            Codec::Pcmu | Codec::Pcma => SampleRate::HZ_8000,
            Codec::G722 | Codec::Opus => SampleRate::HZ_16000,
        }
    }

    pub const fn clock(self) -> ClockRate {
        match self {
            Codec::Pcmu | Codec::Pcma | Codec::G722 => ClockRate::HZ_8000,
            Codec::Opus => ClockRate::HZ_48000,
        }
    }

    pub const fn is_g711(self) -> bool {
        matches!(self, Codec::Pcmu | Codec::Pcma)
    }

    /// Bytes of one millisecond, where every millisecond has as many: such payloads may be cut and joined anywhere.
    pub const fn bytes_per_ms(self) -> Option<usize> {
        match self {
            Codec::Pcmu | Codec::Pcma | Codec::G722 => Some(8),
            Codec::Opus => None,
        }
    }

    /// Two bytes that decode to silence when they are repeated: G.711's positive zero (ITU-T G.711); for G.722 two codes
    /// that hold both bands at rest below -60 dBFS, whatever came before. `None`: Opus has to be encoded.
    pub const fn silence(self) -> Option<[u8; 2]> {
        match self {
            Codec::Pcmu => Some([0xFF; 2]),
            Codec::Pcma => Some([0xD5; 2]),
            Codec::G722 => Some([0xFA, 0xFF]),
            Codec::Opus => None,
        }
    }

    /// How long a payload's sound lasts; zero for one that is empty or no packet of the codec.
    pub fn duration(self, payload: &[u8]) -> Duration {
        match self {
            Codec::Pcmu | Codec::Pcma | Codec::G722 => SampleRate::HZ_8000.duration(payload.len()),
            Codec::Opus => opus_duration(payload),
        }
    }
}

/// The table of contents at the head of an Opus packet (RFC 6716 §3.1): the length of a frame and how many there are.
fn opus_duration(payload: &[u8]) -> Duration {
    let Some(&head) = payload.first() else { return Duration::ZERO };
    let micros = match head >> 3 {
        config @ 0..12 => [10_000, 20_000, 40_000, 60_000][usize::from(config & 3)],
        config @ 12..16 => [10_000, 20_000][usize::from(config & 1)],
        config => [2_500, 5_000, 10_000, 20_000][usize::from(config & 3)],
    };
    let frames = match head & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => payload.get(1).map_or(0, |count| u64::from(count & 0x3F)),
    };
    let whole = Duration::from_micros(micros * frames);
    // No packet holds more than 120 ms (§3.2.5).
    if whole > Duration::from_millis(120) { Duration::ZERO } else { whole }
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
    /// 60 ms of G.711 or G.722, and 60 ms of Opus at its speech rates (64 kbit/s). A transport cuts longer G.711 and
    /// G.722 payloads into several packets; a larger Opus packet is dropped and counted.
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
    pub fn duration(&self) -> Duration {
        self.codec.duration(self.payload())
    }
}

impl std::fmt::Debug for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packet").field("codec", &self.codec).field("at", &self.at).field("len", &self.len).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_payload_is_known_without_decoding_it() {
        let ms = Duration::from_millis;
        assert_eq!(Codec::Pcma.duration(&[0; 240]), ms(30));
        assert_eq!(Codec::G722.duration(&[0; 160]), ms(20));
        let opus = |head: u8, count: u8| Codec::Opus.duration(&[head, count]);
        // Configuration in the upper five bits, stereo, frame count code.
        assert_eq!(opus(1 << 3, 0), ms(20));
        assert_eq!(opus(3 << 3 | 1, 0), ms(120));
        assert_eq!(opus(16 << 3, 0), Duration::from_micros(2_500));
        assert_eq!(opus(19 << 3 | 3, 3), ms(60));
        assert_eq!(opus(3 << 3 | 3, 3), Duration::ZERO, "180 ms is no packet");
        assert_eq!(Codec::Opus.duration(&[]), Duration::ZERO);
    }

    #[test]
    fn clocks_count_on_their_own() {
        let frame = Duration::from_millis(20);
        assert_eq!((Codec::G722.rate().samples(frame), Codec::G722.clock().ticks(frame)), (320, 160));
        assert_eq!((Codec::Opus.rate().samples(frame), Codec::Opus.clock().ticks(frame)), (320, 960));
        assert_eq!(ClockRate::HZ_48000.duration(960), frame);
        assert_eq!(ClockRate::new(0), None);
    }
}
