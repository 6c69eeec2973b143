//! The audio of the open utterance, bounded: what an engine or a fallback needs to send it as a whole, or again.

use std::time::Duration;

use super::UtteranceId;
use crate::media::frame::SampleRate;

pub(crate) struct OpenUtterance {
    pub id: UtteranceId,
    rate: SampleRate,
    limit: usize,
    samples: Vec<i16>,
    /// Samples that came, kept or not.
    heard: usize,
}

impl OpenUtterance {
    pub fn new(id: UtteranceId, rate: SampleRate, limit: Duration) -> Self {
        // Most turns are shorter than four seconds.
        let samples = Vec::with_capacity(rate.samples(Duration::from_secs(4)));
        Self { id, rate, limit: rate.samples(limit), samples, heard: 0 }
    }

    /// Audio beyond the limit is not kept.
    pub fn push(&mut self, samples: &[i16]) {
        self.heard += samples.len();
        if self.heard <= self.limit {
            self.samples.extend_from_slice(samples);
        }
    }

    /// All audio so far, or its length in seconds when it is over the limit.
    pub fn whole(&self) -> Result<&[i16], u32> {
        let seconds = self.rate.duration(self.heard).as_secs() as u32;
        if self.heard > self.limit { Err(seconds) } else { Ok(&self.samples) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audio_over_the_limit_is_counted_and_not_kept() {
        let mut open = OpenUtterance::new(UtteranceId(1), SampleRate::HZ_8000, Duration::from_secs(2));
        for _ in 0..100 {
            open.push(&[1; 160]);
        }
        assert_eq!(open.whole().map(<[i16]>::len), Ok(16_000));
        open.push(&[1; 160]);
        assert_eq!(open.whole(), Err(2));
        assert_eq!(open.samples.len(), 16_000);
    }
}
