//! A frame: 20 ms of mono samples at a typed rate, the unit that everything inside a call works in.

use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Length of a frame in time.
pub const FRAME: Duration = Duration::from_millis(20);

/// How sound was sampled (not how RTP timestamps count: G.722 shows that these differ).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SampleRate(u32);

impl SampleRate {
    pub const HZ_8000: Self = Self(8_000);
    pub const HZ_16000: Self = Self(16_000);
    pub const HZ_22050: Self = Self(22_050);
    pub const HZ_24000: Self = Self(24_000);
    pub const HZ_48000: Self = Self(48_000);

    /// Any rate a file or an engine brings along.
    pub const fn new(hz: u32) -> Self {
        Self(hz)
    }

    pub const fn hz(self) -> u32 {
        self.0
    }

    /// Samples in one 20 ms frame: 160 at 8 kHz, 441 at 22.05 kHz.
    pub const fn frame_len(self) -> usize {
        self.0 as usize / 50
    }

    /// How long `samples` samples last.
    pub fn duration(self, samples: usize) -> Duration {
        Duration::from_nanos(samples as u64 * 1_000_000_000 / u64::from(self.0))
    }

    /// How many samples fit into `time`, rounded down.
    pub fn samples(self, time: Duration) -> usize {
        (time.as_nanos() * u128::from(self.0) / 1_000_000_000) as usize
    }
}

/// 20 ms of mono i16 samples. The buffer is refilled, not replaced: after the first fill a frame does not allocate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub rate: SampleRate,
    pub samples: Vec<i16>,
}

impl Frame {
    /// A frame of silence.
    pub fn silence(rate: SampleRate) -> Self {
        Self { rate, samples: vec![0; rate.frame_len()] }
    }

    pub fn fill_silence(&mut self) {
        self.samples.clear();
        self.samples.resize(self.rate.frame_len(), 0);
    }

    /// Root mean square in dBFS; a frame of zeros gives -96.
    pub fn level_dbfs(&self) -> f32 {
        level_dbfs(&self.samples)
    }
}

/// Root mean square of samples in dBFS (full scale = 32768); silence and an empty slice give -96.
pub fn level_dbfs(samples: &[i16]) -> f32 {
    if samples.is_empty() {
        return -96.0;
    }
    let sum: f64 = samples.iter().map(|&s| f64::from(s) * f64::from(s)).sum();
    let rms = (sum / samples.len() as f64).sqrt() / 32768.0;
    (20.0 * rms.max(1.6e-5).log10()) as f32
}

/// Time on a leg's own axis: zero at its first packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct MediaTime(Duration);

impl MediaTime {
    pub const ZERO: Self = Self(Duration::ZERO);

    pub const fn new(since_start: Duration) -> Self {
        Self(since_start)
    }

    pub const fn from_millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    pub const fn since_start(self) -> Duration {
        self.0
    }

    pub fn as_millis(self) -> u64 {
        self.0.as_millis() as u64
    }
}

impl Add<Duration> for MediaTime {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0 + rhs)
    }
}

impl Sub for MediaTime {
    type Output = Duration;

    /// Saturates at zero: a later time minus an earlier one.
    fn sub(self, rhs: Self) -> Duration {
        self.0.saturating_sub(rhs.0)
    }
}
