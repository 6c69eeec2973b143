//! What is heard in place of a lost packet: the last pitch period again and again, at full level for 10 ms and gone after
//! 60 ms, in the manner of ITU-T G.711 Appendix I but without its delay. For codecs that do not conceal by themselves.

use std::time::Duration;

use crate::media::frame::SampleRate;

/// Pitch of voices, 66 to 400 Hz.
const SHORTEST: Duration = Duration::from_micros(2_500);
const LONGEST: Duration = Duration::from_millis(15);
/// Sound that is compared with what came one period before it.
const COMPARED: Duration = Duration::from_millis(20);
/// Sound without a pitch repeats with the longest period, where it buzzes least.
const VOICED: f32 = 0.4;
/// Until here at full level, from there down to nothing.
const FULL: Duration = Duration::from_millis(10);
const GONE: Duration = Duration::from_millis(60);
/// What comes behind a loss fades in over this while the concealment fades out.
const SEAM: Duration = Duration::from_millis(5);

pub struct Concealer {
    rate: SampleRate,
    /// The newest sound, as long as the longest period and what is compared.
    history: Vec<i16>,
    /// One period, made for the present loss; its end leads over to its start.
    period: Vec<f32>,
    /// Samples made in place of lost ones since the last good one.
    made: usize,
}

impl Concealer {
    pub fn new(rate: SampleRate) -> Self {
        let longest = rate.samples(LONGEST);
        Self {
            rate,
            history: vec![0; rate.samples(COMPARED) + 2 * longest],
            period: Vec::with_capacity(longest),
            made: 0,
        }
    }

    /// Good sound: remembered, and joined to concealment before it without a click.
    pub fn heard(&mut self, samples: &mut [i16]) {
        if self.made > 0 {
            let seam = self.rate.samples(SEAM).min(samples.len());
            for (n, sample) in samples[..seam].iter_mut().enumerate() {
                let share = (n + 1) as f32 / (seam + 1) as f32;
                *sample = (f32::from(*sample) * share + self.next() * (1.0 - share)) as i16;
            }
            self.made = 0;
        }
        self.remember(samples);
    }

    /// Appends `samples` samples in place of lost ones.
    pub fn conceal(&mut self, samples: usize, out: &mut Vec<i16>) {
        if self.made == 0 {
            self.find_period();
        }
        for _ in 0..samples {
            let sample = self.next();
            out.push(sample as i16);
        }
    }

    /// One more sample of the repeated period, fading.
    fn next(&mut self) -> f32 {
        let (full, gone) = (self.rate.samples(FULL), self.rate.samples(GONE));
        let left = gone.saturating_sub(self.made.max(full)) as f32 / (gone - full) as f32;
        let sample = self.period.get(self.made % self.period.len().max(1)).map_or(0.0, |sample| sample * left);
        self.made += 1;
        sample
    }

    fn remember(&mut self, samples: &[i16]) {
        let kept = self.history.len();
        let newest = &samples[samples.len().saturating_sub(kept)..];
        self.history.copy_within(newest.len().., 0);
        self.history[kept - newest.len()..].copy_from_slice(newest);
    }

    /// Cuts one period from the end of the history. Searched at about 8 kHz, which is fine enough for a pitch and costs a
    /// quarter at 16 kHz.
    fn find_period(&mut self) {
        let step = (self.rate.hz() / 8_000).max(1) as usize;
        let (shortest, longest) = (self.rate.samples(SHORTEST), self.rate.samples(LONGEST));
        let (end, compared) = (self.history.len(), self.rate.samples(COMPARED));
        let newest = &self.history[end - compared..];
        let energy = |sound: &[i16]| sound.iter().step_by(step).map(|&x| f32::from(x).powi(2)).sum::<f32>();
        let own = energy(newest);
        let (mut best, mut likeness) = (longest, VOICED);
        for lag in (shortest..=longest).step_by(step) {
            let before = &self.history[end - compared - lag..end - lag];
            let product: f32 =
                newest.iter().zip(before).step_by(step).map(|(&a, &b)| f32::from(a) * f32::from(b)).sum();
            let like = product / (own * energy(before)).sqrt().max(1.0);
            // Twice a period is as like; the shorter one is the pitch.
            if like > likeness * 1.02 {
                (best, likeness) = (lag, like);
            }
        }
        let cycle = &self.history[end - best..];
        let before = &self.history[end - 2 * best..end - best];
        let quarter = best / 4;
        self.period.clear();
        self.period.extend(cycle.iter().zip(before).enumerate().map(|(n, (&now, &before))| {
            let into = n.saturating_sub(best - quarter) as f32 / quarter.max(1) as f32;
            f32::from(now) * (1.0 - into) + f32::from(before) * into
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::f32::consts::TAU;

    use proptest::prelude::*;

    use super::*;
    use crate::media::frame::level_dbfs;

    /// A voice: a pitch with its overtones.
    fn voice(rate: SampleRate, hz: f32, samples: usize) -> Vec<i16> {
        (0..samples)
            .map(|n| {
                let t = n as f32 / rate.hz() as f32;
                let sum: f32 = (1..8).map(|k| (TAU * hz * k as f32 * t + k as f32).sin() / k as f32).sum();
                (6000.0 * sum) as i16
            })
            .collect()
    }

    #[test]
    fn a_lost_packet_of_a_voice_sounds_like_the_voice() {
        for rate in [SampleRate::HZ_8000, SampleRate::HZ_16000] {
            for hz in [85.0, 120.0, 210.0, 330.0] {
                let frame = rate.frame_len();
                let said = voice(rate, hz, 20 * frame);
                let mut concealer = Concealer::new(rate);
                for packet in said[..10 * frame].chunks(frame) {
                    concealer.heard(&mut packet.to_vec());
                }
                let mut made = Vec::new();
                concealer.conceal(frame / 2, &mut made);
                let lost = &said[10 * frame..10 * frame + frame / 2];
                let noise: f64 = made.iter().zip(lost).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
                let signal: f64 = lost.iter().map(|&x| f64::from(x).powi(2)).sum();
                // A period is whole samples, so that a high overtone is some degrees off.
                let snr = 10.0 * (signal / noise.max(1.0)).log10();
                assert!(snr > 6.0, "{hz} Hz at {rate:?}: {snr:.1} dB");
            }
        }
    }

    #[test]
    fn a_long_loss_fades_to_silence_and_sound_comes_back_without_a_click() {
        let rate = SampleRate::HZ_8000;
        let mut concealer = Concealer::new(rate);
        concealer.heard(&mut voice(rate, 100.0, 800));
        let mut made = Vec::new();
        for _ in 0..5 {
            concealer.conceal(160, &mut made);
        }
        assert!(level_dbfs(&made[..80]) > -20.0);
        assert!(level_dbfs(&made[320..480]) < level_dbfs(&made[..80]) - 6.0);
        assert!(made[480..].iter().all(|&sample| sample == 0));
        let mut back = voice(rate, 100.0, 160);
        concealer.heard(&mut back);
        assert!(back[0].abs() < 1500, "begins softly: {}", back[0]);
        assert_eq!(back[60..], voice(rate, 100.0, 160)[60..]);
    }

    #[test]
    fn before_anything_was_heard_there_is_silence() {
        let (mut concealer, mut made) = (Concealer::new(SampleRate::HZ_16000), Vec::new());
        concealer.conceal(320, &mut made);
        assert_eq!(made, [0; 320]);
    }

    proptest! {
        #[test]
        fn it_is_never_louder_than_what_it_repeats(
            sound in prop::collection::vec(any::<i16>(), 1..2000), losses in prop::collection::vec(1_usize..700, 1..6),
        ) {
            let mut concealer = Concealer::new(SampleRate::HZ_8000);
            let peak = sound.iter().map(|x| x.unsigned_abs()).max().unwrap_or(0);
            for loss in losses {
                concealer.heard(&mut sound.clone());
                let mut made = Vec::new();
                concealer.conceal(loss, &mut made);
                prop_assert_eq!(made.len(), loss);
                prop_assert!(made.iter().all(|x| x.unsigned_abs() <= peak));
            }
        }
    }
}
