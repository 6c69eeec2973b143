//! Keys pressed on a telephone, as tones in the audio: detection at 8 kHz and generation. Carriers that report keys as
//! events (Twilio, RFC 4733) need neither.
//!
//! Detection follows ITU-T Q.23 and Q.24: a key sounds for 40 ms and is silent for 40 ms, frequencies within 1.5 %, the
//! column up to 4 dB louder or 8 dB softer than the row. Each window of 20 ms is judged alone, a new one begins every 5 ms;
//! three alike make a key, four without its tones end it. The thresholds were set on recorded and synthesised speech,
//! which must press no key.

use std::f32::consts::TAU;

use crate::media::frame::SampleRate;

const ROWS: [f32; 4] = [697.0, 770.0, 852.0, 941.0];
const COLUMNS: [f32; 4] = [1209.0, 1336.0, 1477.0, 1633.0];
const KEYS: [[char; 4]; 4] = [['1', '2', '3', 'A'], ['4', '5', '6', 'B'], ['7', '8', '9', 'C'], ['*', '0', '#', 'D']];

const WINDOW: usize = 160;
const HOP: usize = 40;
/// 30 ms of steady tone: 40 ms of it holds four whole windows wherever they begin.
const ON_WINDOWS: u32 = 3;
/// 35 ms without it: 40 ms of silence hold four whole windows wherever they begin.
const OFF_WINDOWS: u32 = 4;
/// A key still sounds while a window holds this share of the energy it began with, and the key's tones this share of the
/// window: with a drop-out of 10 ms in its middle a window keeps 0.5 of the first and 0.2 of the second.
const STILL_LOUD: f32 = 0.25;
const STILL_TONES: f32 = 0.15;
/// Softest tone, of each frequency: -42 dBFS. Q.24 asks for -25 dBm.
const MIN_LEVEL_DBFS: f32 = -42.0;
/// Column against row, in dB: what Q.24 allows and what noise 15 dB below adds.
const TWIST: std::ops::RangeInclusive<f32> = -9.0..=6.0;
/// The best row and column stand out from their neighbours by this power ratio: 6 dB at 1.5 % off frequency.
const STANDS_OUT: f32 = 4.0;
/// A tone may be off by 1.5 %, which a window of 20 ms would weaken by 4 dB at 1,633 Hz: it is measured at these as well.
const DETUNED: [f32; 4] = [0.985, 0.9925, 1.0075, 1.015];
/// Share of the window's power that the two tones must hold. A clean key has over 0.95, one with noise 15 dB below it
/// over 0.90; the vowels that come nearest have 0.86.
const SHARE: f32 = 0.87;
/// Energy at twice a tone's frequency against that of both tones: a voice has harmonics, a keypad has none. Against the
/// tone's own it would be misled: twice 852 Hz is so near to 1,633 Hz that 5 % of that column leaks in.
const HARMONIC: f32 = 0.10;
/// The softer half of a window against the louder: a tone is steady, and a window half filled does not count.
const STEADY: f32 = 0.60;

/// Finds keys in a stream of 8 kHz samples.
pub struct DtmfDetector {
    samples: [f32; WINDOW],
    filled: usize,
    tones: [Tone; 8],
    /// The key sounding, reported already.
    sounding: Option<Found>,
    /// What the last windows showed, and how many showed it.
    seen: Option<(usize, usize)>,
    times: u32,
    misses: u32,
}

/// A key in one window, and the window's energy.
#[derive(Clone, Copy)]
struct Found {
    place: (usize, usize),
    energy: f32,
}

/// Goertzel's coefficients of one frequency, of those beside it, and of its double.
#[derive(Clone, Copy)]
struct Tone {
    at: f32,
    beside: [f32; 4],
    twice: f32,
}

impl Tone {
    fn new(hz: f32) -> Self {
        let coefficient = |hz: f32| 2.0 * (TAU * hz / 8000.0).cos();
        Self { at: coefficient(hz), beside: DETUNED.map(|k| coefficient(k * hz)), twice: coefficient(2.0 * hz) }
    }
}

impl DtmfDetector {
    pub fn new() -> Self {
        let [a, b, c, d] = ROWS.map(Tone::new);
        let [e, f, g, h] = COLUMNS.map(Tone::new);
        Self {
            samples: [0.0; WINDOW],
            filled: 0,
            tones: [a, b, c, d, e, f, g, h],
            sounding: None,
            seen: None,
            times: 0,
            misses: 0,
        }
    }

    /// Takes any number of samples; calls `pressed` once for each key, 30 to 35 ms after its start.
    pub fn push(&mut self, mut pcm: &[i16], mut pressed: impl FnMut(char)) {
        while !pcm.is_empty() {
            let (head, rest) = pcm.split_at(pcm.len().min(WINDOW - self.filled));
            for (slot, &sample) in self.samples[self.filled..].iter_mut().zip(head) {
                *slot = f32::from(sample) / 32768.0;
            }
            self.filled += head.len();
            pcm = rest;
            if self.filled == WINDOW {
                if let Some((row, column)) = self.on_window() {
                    pressed(KEYS[row][column]);
                }
                self.samples.copy_within(HOP.., 0);
                self.filled = WINDOW - HOP;
            }
        }
    }

    /// As at the start of a call.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    fn on_window(&mut self) -> Option<(usize, usize)> {
        let found = self.judge();
        let place = found.map(|found| found.place);
        self.times = if place == self.seen { self.times.saturating_add(1) } else { 1 };
        self.seen = place;
        if let Some(sounding) = self.sounding {
            let still = place == Some(sounding.place) || self.still_sounds(&sounding);
            self.misses = if still { 0 } else { self.misses + 1 };
            if self.misses == OFF_WINDOWS {
                self.sounding = None;
            }
        }
        // Another key right behind the first needs no pause between them.
        let again = self.sounding.is_some_and(|sounding| place == Some(sounding.place));
        let pressed = found.filter(|_| self.times == ON_WINDOWS && !again)?;
        self.sounding = Some(pressed);
        self.misses = 0;
        Some(pressed.place)
    }

    /// Whether the window has enough of a key's tones that the key was not let go.
    fn still_sounds(&self, key: &Found) -> bool {
        let total: f32 = self.samples.iter().map(|x| x * x).sum();
        total >= STILL_LOUD * key.energy && self.tuned(key.place.0) + self.tuned(4 + key.place.1) >= STILL_TONES * total
    }

    /// Energy of a tone at the frequency, of those within 1.5 %, where it is strongest.
    fn tuned(&self, tone: usize) -> f32 {
        let Tone { at, beside, .. } = &self.tones[tone];
        beside.iter().fold(goertzel(&self.samples, *at), |most, &beside| most.max(goertzel(&self.samples, beside)))
    }

    /// The key that this window shows alone.
    fn judge(&self) -> Option<Found> {
        let energy = |samples: &[f32]| samples.iter().map(|x| x * x).sum::<f32>();
        let (first, second) = (energy(&self.samples[..WINDOW / 2]), energy(&self.samples[WINDOW / 2..]));
        let total = first + second;
        let floor = WINDOW as f32 * 10_f32.powf(MIN_LEVEL_DBFS / 10.0);
        if total < 2.0 * floor || first.min(second) < STEADY * first.max(second) {
            return None;
        }
        let mut energies = [0.0; 8];
        for (slot, tone) in energies.iter_mut().zip(&self.tones) {
            *slot = goertzel(&self.samples, tone.at);
        }
        let (row, column) = (loudest(&energies[..4])?, loudest(&energies[4..])?);
        let (row_energy, column_energy) = (self.tuned(row), self.tuned(4 + column));
        let (row_tone, column_tone) = (&self.tones[row], &self.tones[4 + column]);
        let twist = 10.0 * (column_energy / row_energy).log10();
        let both = row_energy + column_energy;
        let harmonic = |tone: &Tone| goertzel(&self.samples, tone.twice) > HARMONIC * both;
        let is_key = row_energy >= floor
            && column_energy >= floor
            && TWIST.contains(&twist)
            && both >= SHARE * total
            && !harmonic(row_tone)
            && !harmonic(column_tone);
        is_key.then_some(Found { place: (row, column), energy: total })
    }
}

impl Default for DtmfDetector {
    fn default() -> Self {
        Self::new()
    }
}

/// The strongest of four, when it stands out from the other three.
fn loudest(energies: &[f32]) -> Option<usize> {
    let (best, &energy) = energies.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
    let alone = energies.iter().enumerate().all(|(n, &other)| n == best || other * STANDS_OUT < energy);
    alone.then_some(best)
}

/// Energy at one frequency (Goertzel 1958), so scaled that a sine on it gives the sum of its squares; `coefficient` is
/// 2 cos ω.
fn goertzel(samples: &[f32], coefficient: f32) -> f32 {
    let (mut one, mut two) = (0.0, 0.0);
    for &x in samples {
        (one, two) = (x + coefficient * one - two, one);
    }
    (one * one + two * two - coefficient * one * two) * 2.0 / samples.len() as f32
}

/// One of the sixteen keys: `0-9`, `*`, `#`, `A-D`.
pub fn is_key(key: char) -> bool {
    KEYS.as_flattened().contains(&key)
}

/// Appends `samples` samples of a key's tone, each frequency at `level_dbfs`, with ramps of 2 ms so that it does not
/// click. Appends silence for a character that is no key.
pub fn append_tone(key: char, rate: SampleRate, samples: usize, level_dbfs: f32, out: &mut Vec<i16>) {
    let place = KEYS.as_flattened().iter().position(|&k| k == key);
    let Some(place) = place else {
        out.resize(out.len() + samples, 0);
        return;
    };
    // The level is that of the root mean square.
    let amplitude = 32768.0 * std::f32::consts::SQRT_2 * 10_f32.powf(level_dbfs / 20.0);
    let ramp = rate.hz() as usize / 500;
    let step = |hz: f32| f64::from(TAU) * f64::from(hz) / f64::from(rate.hz());
    let (row, column) = (step(ROWS[place / 4]), step(COLUMNS[place % 4]));
    out.extend((0..samples).map(|n| {
        let edge = (n + 1).min(samples - n).min(ramp) as f32 / ramp.max(1) as f32;
        let sum = (row * n as f64).sin() + (column * n as f64).sin();
        (amplitude * edge * sum as f32).round().clamp(-32768.0, 32767.0) as i16
    }));
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;
    use crate::media::wav;

    const RATE: SampleRate = SampleRate::HZ_8000;

    fn detected(pcm: &[i16]) -> String {
        let (mut detector, mut keys) = (DtmfDetector::new(), String::new());
        for packet in pcm.chunks(160) {
            detector.push(packet, |key| keys.push(key));
        }
        keys
    }

    /// Row and column with their own levels (dBFS; both at -9 just do not clip), frequency error and phase, without ramps.
    fn raw_tone(key: char, levels: (f32, f32), off: f32, samples: usize, phase: f32) -> Vec<i16> {
        let place = KEYS.as_flattened().iter().position(|&k| k == key).expect("a key");
        let amplitude = |dbfs: f32| 32768.0 * 2_f32.sqrt() * 10_f32.powf(dbfs / 20.0);
        let (row, column) = (ROWS[place / 4] * (1.0 + off), COLUMNS[place % 4] * (1.0 + off));
        (0..samples)
            .map(|n| {
                let t = n as f32 / 8000.0;
                let row = amplitude(levels.0) * (TAU * row * t + phase).sin();
                let column = amplitude(levels.1) * (TAU * column * t).sin();
                (row + column).clamp(-32768.0, 32767.0) as i16
            })
            .collect()
    }

    /// White noise of the given root mean square, the same for the same seed.
    fn noise(samples: usize, rms: f32, mut seed: u64) -> Vec<f32> {
        (0..samples)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Uniform over ±√3 has a mean square of one.
                ((seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 3_f32.sqrt() * rms
            })
            .collect()
    }

    #[test]
    fn every_key_is_found_once_at_the_shortest_length() {
        let mut pcm = vec![0; 400];
        for key in KEYS.as_flattened() {
            append_tone(*key, RATE, 320, -10.0, &mut pcm);
            pcm.resize(pcm.len() + 320, 0);
        }
        assert_eq!(detected(&pcm), "123A456B789C*0#D");
    }

    #[test]
    fn a_key_pressed_again_is_a_second_key_and_a_held_one_is_not() {
        let mut pcm = Vec::new();
        for _ in 0..3 {
            append_tone('7', RATE, 320, -10.0, &mut pcm);
            pcm.resize(pcm.len() + 320, 0);
        }
        append_tone('7', RATE, 16_000, -10.0, &mut pcm);
        assert_eq!(detected(&pcm), "7777");
    }

    #[test]
    fn a_drop_out_of_ten_milliseconds_makes_no_second_key() {
        for at in 0..60 {
            let mut pcm = raw_tone('5', (-10.0, -10.0), 0.0, 1200, 0.3);
            pcm[500 + at..580 + at].fill(0);
            assert_eq!(detected(&pcm), "5", "drop-out at {at}");
        }
    }

    #[test]
    fn too_short_a_tone_is_no_key() {
        for at in 0..60 {
            let mut pcm = vec![0; 400 + at];
            pcm.extend(raw_tone('5', (-10.0, -10.0), 0.0, 20 * 8, 0.0));
            pcm.resize(pcm.len() + 400, 0);
            assert_eq!(detected(&pcm), "", "at {at}");
        }
    }

    #[test]
    fn tones_that_are_no_keys_are_not_found() {
        let alone =
            |hz: f32| (0..8000).map(|n| (9000.0 * (TAU * hz * n as f32 / 8000.0).sin()) as i16).collect::<Vec<_>>();
        for hz in [350.0, 425.0, 697.0, 941.0, 1209.0, 1633.0, 1100.0, 2100.0] {
            assert_eq!(detected(&alone(hz)), "", "{hz} Hz");
        }
        // Ringback and busy of the US, special information tones, frequencies 3.5 % off.
        for (a, b) in [(440.0, 480.0), (480.0, 620.0), (950.0, 1400.0), (697.0 * 1.035, 1209.0 * 1.035)] {
            let both: Vec<i16> = alone(a).iter().zip(alone(b)).map(|(a, b)| a + b).collect();
            assert_eq!(detected(&both), "", "{a} and {b} Hz");
        }
        for twist in [12.0, -14.0] {
            assert_eq!(detected(&raw_tone('1', (-10.0 - twist / 2.0, -10.0 + twist / 2.0), 0.0, 4000, 0.0)), "");
        }
        assert_eq!(detected(&raw_tone('1', (-50.0, -50.0), 0.0, 4000, 0.0)), "");
    }

    #[test]
    fn noise_alone_is_no_key() {
        for (seed, rms) in [(1, 300.0), (2, 3000.0), (3, 9000.0)] {
            let pcm: Vec<i16> = noise(60 * 8000, rms, seed).iter().map(|&x| x as i16).collect();
            assert_eq!(detected(&pcm), "", "noise of {rms}");
        }
    }

    #[test]
    fn a_key_through_mu_law_is_found() {
        use crate::media::{g711, packet::Codec};
        let (mut pcm, mut bytes) = (Vec::new(), Vec::new());
        append_tone('#', RATE, 400, -35.0, &mut pcm);
        g711::encode_into(Codec::Pcmu, &pcm, &mut bytes);
        g711::decode_into(Codec::Pcmu, &bytes, &mut pcm);
        assert_eq!(detected(&pcm), "#");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn a_key_is_found_across_levels_twist_frequency_and_noise(
            place in 0_usize..16,
            level in -33.0_f32..-12.0,
            twist in -8.0_f32..4.0,
            off in -0.015_f32..0.015,
            snr in 15.0_f32..60.0,
            start in 0_usize..200,
            length in 320_usize..900,
            phase in 0.0_f32..6.3,
            seed: u64,
        ) {
            let key = KEYS.as_flattened()[place];
            let mut pcm = vec![0; 300 + start];
            pcm.extend(raw_tone(key, (level, level + twist), off, length, phase));
            pcm.resize(pcm.len() + 500, 0);
            let rms = 32768.0 * 10_f32.powf((level.min(level + twist) - snr) / 20.0);
            let noisy: Vec<i16> = pcm.iter().zip(noise(pcm.len(), rms, seed))
                .map(|(&s, n)| (f32::from(s) + n).clamp(-32768.0, 32767.0) as i16).collect();
            prop_assert_eq!(detected(&noisy), key.to_string());
        }

        #[test]
        fn chunking_changes_nothing(sizes in prop::collection::vec(1_usize..400, 1..30)) {
            let mut pcm = Vec::new();
            for key in "159#".chars() {
                append_tone(key, RATE, 400, -12.0, &mut pcm);
                pcm.resize(pcm.len() + 400, 0);
            }
            let (mut detector, mut keys, mut rest) = (DtmfDetector::new(), String::new(), &pcm[..]);
            for size in sizes.into_iter().cycle() {
                let (head, tail) = rest.split_at(size.min(rest.len()));
                detector.push(head, |key| keys.push(key));
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(keys, "159#");
        }
    }

    #[test]
    fn synthesised_speech_presses_no_keys() {
        let text = "Good morning, this is a message for the front desk. I would like to book a table for four people on \
            Friday at half past seven. Who knows, maybe we would need two more chairs. Please call me at nine four one, \
            eight five two, seven seven oh. Oh, you knew already? How lovely. See you on Sunday evening, bye bye.";
        let folder = tempfile::tempdir().expect("a folder for the speech");
        let file = folder.path().join("speech.wav");
        for (voice, pitch) in [("en-us", "30"), ("en-us", "60"), ("en-gb+f3", "80"), ("uk", "50"), ("ru+m4", "20")] {
            let run = Command::new("espeak-ng").args(["-v", voice, "-p", pitch, "-w"]).arg(&file).arg(text).output();
            if !run.is_ok_and(|output| output.status.success()) {
                println!("skipped: espeak-ng is not installed");
                return;
            }
            let speech = wav::read(&file).expect("espeak-ng writes 16-bit mono");
            let mut to_8k = crate::media::resample::Resampler::new(speech.rate, RATE).expect("22.05 kHz to 8 kHz");
            let mut pcm = Vec::new();
            to_8k.push(&speech.samples, &mut pcm);
            to_8k.flush(&mut pcm);
            assert!(pcm.len() > 8 * 8000);
            assert_eq!(detected(&pcm), "", "{voice} at pitch {pitch}");
        }
    }

    /// Eight minutes of a real call, and digits spoken by four people.
    #[test]
    fn recorded_speech_presses_no_keys() {
        let shared = std::env::var("OFFHOOK_SHARED").unwrap_or_else(|_| "../shared".into());
        let audio = std::path::Path::new(&shared).join("audio");
        let Ok(folders) = ["aws-auto-repair-calls", "fsdd-digits", "kazoo-prompts-en"]
            .map(|set| std::fs::read_dir(audio.join(set)))
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
        else {
            println!("skipped: no shared data");
            return;
        };
        let mut seconds = 0;
        for entry in folders.into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "wav") {
                continue;
            }
            let Ok(speech) = wav::read(&path) else { continue };
            if speech.rate == RATE {
                seconds += speech.samples.len() / 8000;
                assert_eq!(detected(&speech.samples), "", "{}", path.display());
            }
        }
        assert!(seconds > 300, "only {seconds} s of speech");
    }
}
