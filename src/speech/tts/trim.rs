//! Silence at the ends of synthesised speech: 75–340 ms before the first sound (research/streaming.md §4.1), about
//! 300 ms after the last (espeak-ng). Both trimmers stream: samples go out as soon as they are known to be wanted.

use std::collections::VecDeque;
use std::time::Duration;

use crate::media::frame::SampleRate;

/// -45 dBFS: a sample louder than this is sound. 32768 · 10^(-45/20) = 184.3.
pub const SOUND: i16 = 184;
/// Kept before the first sound: soft consonants begin below the threshold.
pub const LEAD_KEPT: Duration = Duration::from_millis(30);
/// Kept after the last sound: endings fade below the threshold.
pub const TAIL_KEPT: Duration = Duration::from_millis(60);
/// The longest pause that is passed on inside an utterance. More is not speech, and would have to be held in memory.
pub const PAUSE_MAX: Duration = Duration::from_secs(3);

fn is_sound(sample: i16) -> bool {
    sample.unsigned_abs() > SOUND as u16
}

/// Drops what comes before the first sound, but for the last [`LEAD_KEPT`] of it.
#[derive(Debug)]
pub struct LeadTrimmer {
    keep: usize,
    /// At most `keep` samples; `None` once sound has come.
    held: Option<VecDeque<i16>>,
}

impl LeadTrimmer {
    pub fn new(rate: SampleRate) -> Self {
        let keep = rate.samples(LEAD_KEPT);
        Self { keep, held: Some(VecDeque::with_capacity(keep)) }
    }

    /// Appends to `out` what is wanted of `samples` and of those held back.
    pub fn push(&mut self, samples: &[i16], out: &mut Vec<i16>) {
        let Some(held) = &mut self.held else {
            out.extend_from_slice(samples);
            return;
        };
        match samples.iter().position(|&sample| is_sound(sample)) {
            None => {
                let last = &samples[samples.len().saturating_sub(self.keep)..];
                held.extend(last);
                held.drain(..held.len().saturating_sub(self.keep));
            }
            Some(first) => {
                let from_here = first.min(self.keep);
                let from_held = held.len().min(self.keep - from_here);
                out.extend(held.iter().skip(held.len() - from_held));
                out.extend_from_slice(&samples[first - from_here..]);
                self.held = None;
            }
        }
    }
}

/// Holds silence back until sound follows; [`finish`](Self::finish) lets [`TAIL_KEPT`] of it go.
#[derive(Debug)]
pub struct TailTrimmer {
    keep: usize,
    pause_max: usize,
    held: Vec<i16>,
}

impl TailTrimmer {
    pub fn new(rate: SampleRate) -> Self {
        Self { keep: rate.samples(TAIL_KEPT), pause_max: rate.samples(PAUSE_MAX), held: Vec::new() }
    }

    pub fn push(&mut self, samples: &[i16], out: &mut Vec<i16>) {
        let rest = match samples.iter().rposition(|&sample| is_sound(sample)) {
            None => samples,
            Some(last) => {
                out.append(&mut self.held);
                out.extend_from_slice(&samples[..=last]);
                &samples[last + 1..]
            }
        };
        let room = self.pause_max.saturating_sub(self.held.len());
        self.held.extend_from_slice(&rest[..rest.len().min(room)]);
    }

    /// The utterance is over.
    pub fn finish(&mut self, out: &mut Vec<i16>) {
        out.extend_from_slice(&self.held[..self.held.len().min(self.keep)]);
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: SampleRate = SampleRate::HZ_8000;
    const LEAD: usize = 240;
    const TAIL: usize = 480;

    /// Both trimmers over `samples`, cut into pieces of `piece`.
    fn trim(samples: &[i16], piece: usize) -> Vec<i16> {
        let (mut lead, mut tail) = (LeadTrimmer::new(RATE), TailTrimmer::new(RATE));
        let (mut led, mut out) = (Vec::new(), Vec::new());
        for piece in samples.chunks(piece) {
            led.clear();
            lead.push(piece, &mut led);
            tail.push(&led, &mut out);
        }
        tail.finish(&mut out);
        out
    }

    /// Silence that can be told apart sample by sample, then sound, a pause, sound, silence.
    fn utterance(before: usize, pause: usize, after: usize) -> Vec<i16> {
        let hush = |n: usize| (0..n).map(|i| (i % 183) as i16);
        let sound = || (0..800).map(|i| if i % 2 == 0 { 5000 } else { i16::MIN });
        hush(before).chain(sound()).chain(hush(pause)).chain(sound()).chain(hush(after)).collect()
    }

    #[test]
    fn both_ends_are_cut_and_the_pause_inside_is_kept_however_the_samples_arrive() {
        for (before, pause, after) in [(4000, 3000, 3000), (0, 0, 0), (239, 1, 479), (240, 10, 480), (241, 9, 481)] {
            let whole = utterance(before, pause, after);
            let expected = &whole[before.saturating_sub(LEAD)..whole.len() - after.saturating_sub(TAIL)];
            for piece in [1, 7, 160, 239, 240, 241, 1000, 100_000] {
                assert!(trim(&whole, piece) == expected, "{before} {pause} {after} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn silence_alone_gives_nothing() {
        assert!(trim(&[0; 8000], 160).is_empty());
        assert!(trim(&[SOUND; 8000], 160).is_empty());
        assert!(!trim(&[SOUND + 1; 8000], 160).is_empty());
    }

    #[test]
    fn sound_goes_out_at_once() {
        let (mut lead, mut tail) = (LeadTrimmer::new(RATE), TailTrimmer::new(RATE));
        let (mut led, mut out) = (Vec::new(), Vec::new());
        lead.push(&[0; 160], &mut led);
        assert!(led.is_empty());
        lead.push(&[9000; 160], &mut led);
        tail.push(&led, &mut out);
        assert_eq!(out.len(), 320);
    }

    #[test]
    fn an_endless_pause_is_cut_to_its_greatest_length() {
        let whole = utterance(0, 80_000, 0);
        assert_eq!(trim(&whole, 160).len(), 1600 + RATE.samples(PAUSE_MAX));
    }
}
