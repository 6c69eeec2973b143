//! Sample-rate conversion as a stream: any chunking gives the same samples, no splices. An FFT resampler (rubato) with a
//! block of 10 ms and a Blackman window: 5 ms of delay, flat to 3.4 kHz, -3 dB near 3.6 kHz when one side is 8 kHz.
//! Drift between clocks is not corrected here.

use std::time::Duration;

use audioadapter_buffers::direct::SequentialSliceOfVecs;
use rubato::{Fft, FixedSync, Resampler as _, WindowFunction};

use crate::media::frame::SampleRate;

/// Longest block that a pair of rates may need: 11,025 to 8,000 Hz needs 40 ms; pairs of rates with no common divisor
/// would need a second.
const MAX_BLOCK: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ResampleError {
    /// A rate of zero, or one whose ratio to the other is no simple fraction. Refuse the audio.
    #[error("cannot resample {from} Hz to {to} Hz")]
    Rates { from: u32, to: u32 },
}

/// Converts one stream of samples. Use either [`Resampler::process_frame`] (live frames, constant delay) or
/// [`Resampler::push`] and [`Resampler::flush`] (engine audio, delay removed), not both on one stream.
pub struct Resampler {
    from: SampleRate,
    to: SampleRate,
    /// `None` when the rates are equal: samples pass through untouched.
    fft: Option<Fft<f32>>,
    /// One block of input in f32; the first `filled` samples wait for the rest.
    input: Vec<Vec<f32>>,
    filled: usize,
    output: Vec<Vec<f32>>,
    /// Samples pushed and samples given out since the start or the last flush.
    taken: u64,
    given: u64,
    /// Output samples of delay that `push` still has to leave out.
    skip: usize,
}

impl Resampler {
    pub fn new(from: SampleRate, to: SampleRate) -> Result<Self, ResampleError> {
        let refused = ResampleError::Rates { from: from.hz(), to: to.hz() };
        if from.hz() == 0 || to.hz() == 0 {
            return Err(refused);
        }
        let mut resampler =
            Self { from, to, fft: None, input: Vec::new(), filled: 0, output: Vec::new(), taken: 0, given: 0, skip: 0 };
        if from != to {
            let unit = (from.hz() / gcd(from.hz(), to.hz())) as usize;
            let block = (from.hz() as usize / 100).div_ceil(unit).max(1) * unit;
            if from.duration(block) > MAX_BLOCK {
                return Err(refused);
            }
            let (hz_in, hz_out) = (from.hz() as usize, to.hz() as usize);
            let fft = Fft::new_custom(hz_in, hz_out, block, 1, 1, WindowFunction::Blackman, FixedSync::Input)
                .map_err(|_| refused)?;
            resampler.input = vec![vec![0.0; block]];
            resampler.output = vec![vec![0.0; fft.output_frames_max()]];
            resampler.skip = fft.output_delay();
            resampler.fft = Some(fft);
        }
        Ok(resampler)
    }

    pub fn from(&self) -> SampleRate {
        self.from
    }

    pub fn to(&self) -> SampleRate {
        self.to
    }

    /// How much later a sound comes out of [`Resampler::process_frame`] than it went in: 5 ms between 8, 16, 24 and
    /// 48 kHz, 10 ms from 22.05 kHz, none when the rates are equal.
    pub fn delay(&self) -> Duration {
        self.fft.as_ref().map_or(Duration::ZERO, |fft| self.to.duration(fft.output_delay()))
    }

    /// Appends one 20 ms frame at the new rate for one 20 ms frame at the old. Allocates only while `out` grows.
    ///
    /// # Panics
    /// When `frame` is not exactly 20 ms.
    pub fn process_frame(&mut self, frame: &[i16], out: &mut Vec<i16>) {
        assert_eq!(frame.len(), self.from.frame_len(), "a frame is 20 ms");
        self.skip = 0;
        self.take(frame, out);
    }

    /// Appends what `samples` complete, without the filter's delay: output starts where the input starts. Up to one
    /// block (10 ms; 20 ms from 22.05 kHz) is kept for the next push or the flush.
    pub fn push(&mut self, samples: &[i16], out: &mut Vec<i16>) {
        self.take(samples, out);
    }

    /// Appends the rest, so that the stream has `input · to / from` samples (rounded up), and starts afresh.
    pub fn flush(&mut self, out: &mut Vec<i16>) {
        if self.fft.is_some() {
            let due = (self.taken * u64::from(self.to.hz())).div_ceil(u64::from(self.from.hz()));
            let wanted = due.saturating_sub(self.given) as usize;
            let end = out.len() + wanted;
            let zeros = [0; 160];
            while out.len() < end {
                self.take(&zeros, out);
            }
            out.truncate(end);
        }
        self.reset();
    }

    /// Forgets what is under way, as at the start of a stream.
    pub fn reset(&mut self) {
        if let Some(fft) = &mut self.fft {
            fft.reset();
            self.skip = fft.output_delay();
        }
        (self.filled, self.taken, self.given) = (0, 0, 0);
    }

    fn take(&mut self, mut samples: &[i16], out: &mut Vec<i16>) {
        let Some(fft) = &mut self.fft else {
            out.extend_from_slice(samples);
            return;
        };
        self.taken += samples.len() as u64;
        let block = self.input[0].len();
        while !samples.is_empty() {
            let (head, rest) = samples.split_at(samples.len().min(block - self.filled));
            for (slot, &sample) in self.input[0][self.filled..].iter_mut().zip(head) {
                *slot = f32::from(sample) / 32768.0;
            }
            self.filled += head.len();
            samples = rest;
            if self.filled < block {
                return;
            }
            self.filled = 0;
            let frames_out = self.output[0].len();
            let source = SequentialSliceOfVecs::new(&self.input, 1, block).expect("one channel of one block");
            let mut sink =
                SequentialSliceOfVecs::new_mut(&mut self.output, 1, frames_out).expect("one channel of its maximum");
            let (_, written) =
                fft.process_into_buffer(&source, &mut sink, None).expect("buffers have the sizes it asked for");
            let kept = &self.output[0][self.skip.min(written)..written];
            self.skip -= self.skip.min(written);
            self.given += kept.len() as u64;
            out.extend(kept.iter().map(|&x| (x * 32768.0).round().clamp(-32768.0, 32767.0) as i16));
        }
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use proptest::prelude::*;

    use super::*;

    const PAIRS: [(u32, u32); 14] = [
        (8_000, 16_000),
        (8_000, 24_000),
        (8_000, 48_000),
        (16_000, 8_000),
        (16_000, 24_000),
        (16_000, 48_000),
        (24_000, 8_000),
        (24_000, 16_000),
        (24_000, 48_000),
        (48_000, 8_000),
        (48_000, 16_000),
        (48_000, 24_000),
        (22_050, 8_000),
        (22_050, 16_000),
    ];

    fn resampler(from: u32, to: u32) -> Resampler {
        Resampler::new(SampleRate::new(from), SampleRate::new(to)).expect("a pair we support")
    }

    fn sine(rate: u32, hz: f64, amplitude: f64, samples: usize) -> Vec<i16> {
        (0..samples).map(|n| (amplitude * (TAU * hz * n as f64 / f64::from(rate)).sin()).round() as i16).collect()
    }

    /// Amplitude and phase of `hz` in `samples`, by correlation over whole periods.
    fn tone(samples: &[i16], rate: u32, hz: f64) -> (f64, f64) {
        let (mut re, mut im) = (0.0, 0.0);
        for (n, &s) in samples.iter().enumerate() {
            let angle = TAU * hz * n as f64 / f64::from(rate);
            re += f64::from(s) * angle.sin();
            im += f64::from(s) * angle.cos();
        }
        let scale = 2.0 / samples.len() as f64;
        ((re * re + im * im).sqrt() * scale, im.atan2(re))
    }

    fn framewise(from: u32, to: u32, input: &[i16]) -> Vec<i16> {
        let mut resampler = resampler(from, to);
        let mut out = Vec::new();
        for frame in input.chunks_exact(SampleRate::new(from).frame_len()) {
            resampler.process_frame(frame, &mut out);
        }
        out
    }

    #[test]
    fn a_frame_in_is_a_frame_out_for_every_pair() {
        for (from, to) in PAIRS {
            let mut resampler = resampler(from, to);
            let mut out = Vec::new();
            for n in 1..=20 {
                resampler.process_frame(&vec![100; SampleRate::new(from).frame_len()], &mut out);
                assert_eq!(out.len(), n * SampleRate::new(to).frame_len(), "{from} to {to}, frame {n}");
            }
        }
    }

    /// The telephone band, 200 to 3,400 Hz, comes through within 0.1 dB for every pair.
    #[test]
    fn the_telephone_band_passes_flat() {
        for (from, to) in PAIRS {
            let mut worst: f64 = 0.0;
            for hz in (200..=3400).step_by(200) {
                let out = framewise(from, to, &sine(from, f64::from(hz), 10_000.0, from as usize * 6 / 5));
                // The last second: whole periods of every multiple of 200 Hz.
                let (amplitude, _) = tone(&out[out.len() - to as usize..], to, f64::from(hz));
                worst = worst.max((20.0 * (amplitude / 10_000.0).log10()).abs());
            }
            println!("{from} to {to}: ripple {worst:.3} dB");
            assert!(worst <= 0.1, "{from} to {to}: {worst} dB");
        }
    }

    /// A tone above the lower Nyquist frequency must vanish, not fold back: at most rounding noise (about -90 dB) is
    /// left of a tone at -10 dBFS.
    #[test]
    fn tones_above_the_new_nyquist_frequency_are_rejected() {
        for (from, to) in PAIRS.into_iter().filter(|(from, to)| from > to) {
            let nyquist = f64::from(to) / 2.0;
            let mut worst = f64::NEG_INFINITY;
            for hz in [1.05, 1.2, 1.5, 1.9].map(|k| k * nyquist).into_iter().filter(|&hz| hz < f64::from(from) / 2.0) {
                let out = framewise(from, to, &sine(from, hz, 10_000.0, from as usize));
                let settled = &out[to as usize / 10..];
                let rms = (settled.iter().map(|&s| f64::from(s).powi(2)).sum::<f64>() / settled.len() as f64).sqrt();
                worst = worst.max(20.0 * (rms.max(0.01) / (10_000.0 / 2f64.sqrt())).log10());
            }
            println!("{from} to {to}: aliases at most {worst:.1} dB");
            assert!(worst <= -76.0, "{from} to {to}: {worst} dB");
        }
    }

    /// Images of a tone when going up: nothing but the tone comes out.
    #[test]
    fn going_up_adds_no_images() {
        for (from, to) in PAIRS.into_iter().filter(|(from, to)| from < to) {
            let out = framewise(from, to, &sine(from, 3_000.0, 10_000.0, from as usize * 6 / 5));
            let last = &out[out.len() - to as usize..];
            let image = tone(last, to, f64::from(from) - 3_000.0).0;
            assert!(20.0 * (image.max(0.001) / 10_000.0).log10() < -76.0, "{from} to {to}: image of {image}");
        }
    }

    #[test]
    fn the_delay_is_the_one_reported() {
        for (from, to) in PAIRS {
            // The phase of a 100 Hz tone gives the delay without doubt up to 10 ms.
            let out = framewise(from, to, &sine(from, 100.0, 10_000.0, from as usize * 6 / 5));
            let start = out.len() - to as usize;
            let (_, phase) = tone(&out[start..], to, 100.0);
            let expected_phase = TAU * 100.0 * start as f64 / f64::from(to);
            let delay_ms = (expected_phase - phase).rem_euclid(TAU) / TAU * 10.0;
            let reported_ms = resampler(from, to).delay().as_secs_f64() * 1000.0;
            let off = (delay_ms - reported_ms).rem_euclid(10.0);
            println!("{from} to {to}: delay {delay_ms:.3} ms, reported {reported_ms:.3} ms");
            assert!(off.min(10.0 - off) <= 0.07, "{from} to {to}: {delay_ms} ms against {reported_ms} ms");
        }
        assert_eq!(resampler(24_000, 8_000).delay(), Duration::from_millis(5));
        assert_eq!(resampler(22_050, 8_000).delay(), Duration::from_millis(10));
    }

    #[test]
    fn pushed_audio_has_no_delay_and_an_exact_length() {
        for (from, to) in PAIRS {
            for length in [0, 1, 159, 441, 10_007] {
                let input = sine(from, 400.0, 8_000.0, length);
                let (mut resampler, mut out) = (resampler(from, to), Vec::new());
                resampler.push(&input, &mut out);
                resampler.flush(&mut out);
                assert_eq!(out.len() as u64, (length as u64 * u64::from(to)).div_ceil(u64::from(from)));
                let margin = to as usize / 50;
                if out.len() > 3 * margin {
                    let ideal = sine(to, 400.0, 8_000.0, out.len());
                    let middle = margin..out.len() - margin;
                    let worst = out[middle.clone()].iter().zip(&ideal[middle]).map(|(a, b)| (a - b).abs()).max();
                    // A block of 441 samples has its filter's middle half a sample off: 8,000 · 2π · 400 / 44,100.
                    let limit = if from == 22_050 { 470 } else { 12 };
                    assert!(worst < Some(limit), "{from} to {to}: off by {worst:?} of 8,000");
                }
            }
        }
    }

    #[test]
    fn a_flush_leaves_nothing_for_the_next_stream() {
        let (mut once, mut twice) = (Vec::new(), Vec::new());
        let input = sine(24_000, 700.0, 9_000.0, 5_000);
        let mut resampler = resampler(24_000, 8_000);
        resampler.push(&input, &mut once);
        resampler.flush(&mut once);
        resampler.push(&input, &mut twice);
        resampler.flush(&mut twice);
        assert_eq!(once, twice);
    }

    #[test]
    fn equal_rates_pass_through() {
        let (mut resampler, mut out) = (resampler(8_000, 8_000), Vec::new());
        resampler.push(&[1, -2, 3], &mut out);
        resampler.flush(&mut out);
        assert_eq!((out, resampler.delay()), (vec![1, -2, 3], Duration::ZERO));
    }

    #[test]
    fn full_scale_saturates_instead_of_wrapping() {
        let square: Vec<i16> = (0..4_800).map(|n| if n / 24 % 2 == 0 { i16::MAX } else { i16::MIN }).collect();
        let out = framewise(48_000, 8_000, &square);
        // A wrapped overshoot would stand between neighbours of the other sign.
        assert!(out.windows(3).all(|w| !(w[0] > 20_000 && w[1] < -20_000 && w[2] > 20_000)));
    }

    #[test]
    fn rates_that_cannot_be_converted_are_refused() {
        for (from, to) in [(0, 8_000), (8_000, 0), (44_099, 8_000), (u32::MAX, 8_000)] {
            let result = Resampler::new(SampleRate::new(from), SampleRate::new(to));
            assert_eq!(result.err(), Some(ResampleError::Rates { from, to }));
        }
        for from in [11_025, 12_000, 32_000, 44_100] {
            assert!(Resampler::new(SampleRate::new(from), SampleRate::HZ_8000).is_ok(), "{from}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_chunking_gives_the_same_samples(
            pair in 0..PAIRS.len(),
            sizes in prop::collection::vec(0_usize..1500, 1..12),
        ) {
            let (from, to) = PAIRS[pair];
            let total: usize = sizes.iter().sum();
            let input: Vec<i16> = (0..total).map(|n| ((n * n * 31 + n * 7) % 20_001) as i16 - 10_000).collect();
            let (mut whole, mut pieces) = (Vec::new(), Vec::new());
            let mut one = resampler(from, to);
            one.push(&input, &mut whole);
            one.flush(&mut whole);
            let mut many = resampler(from, to);
            let mut start = 0;
            for size in sizes {
                many.push(&input[start..start + size], &mut pieces);
                start += size;
            }
            many.flush(&mut pieces);
            prop_assert_eq!(whole, pieces);
        }
    }
}
