//! Whether the caller speaks. A detector gives a probability for each 20 ms packet at 8 kHz: our own small network (weights
//! shared by all calls, 1 KB of state each), or Silero behind the feature `silero`. [`SpeechGate`] turns probabilities into
//! starts and ends. What a pause means is the conversation's business.
//!
//! Format, features and equations of the network: `models/offhook-vad/README.md`.

use std::f64::consts::PI;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// Samples of one packet: 20 ms at 8 kHz.
pub const PACKET: usize = 160;

/// A stream of packets in, a probability of speech for each out. No packet may be left out: where one is lost, push what
/// the listener would hear, so that time goes on.
pub trait VoiceDetector: Send {
    /// Probability (0 to 1) that there is speech in this packet.
    fn push(&mut self, pcm: &[i16; PACKET]) -> f32;

    /// As at the start of a call. Not to be used between turns.
    fn reset(&mut self);
}

const MAGIC: &[u8; 8] = b"OHVADNET";
const VERSION: u32 = 1;
const HEADER: usize = 32;

/// Samples of a spectrum: the last 96 of the packet before and the packet.
const WINDOW: usize = 256;
const OVERLAP: usize = WINDOW - PACKET;
const BINS: usize = WINDOW / 2 + 1;
const BANDS: usize = 28;
const LAGS: [usize; 7] = [16, 22, 31, 44, 62, 88, 125];
const INPUTS: usize = 4 * BANDS + LAGS.len() - 1;
/// Level of a band before the first packet, and the lowest there is: -80 dB under a full-scale sine.
const SILENT_BAND: f32 = -2.0;
/// The noise floor starts at no more than this, so that a call that begins with speech is not deaf to it.
const FIRST_FLOOR: f32 = -0.5;

/// Largest layer sizes that a file may have; they size the state of a call.
const MAX_DENSE: usize = 128;
const MAX_UNITS: usize = 64;
const MAX_LAYERS: usize = 2;

/// Why a file is no model for this code. Nothing to retry: use the embedded one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VadError {
    #[error("not an OHVADNET file")]
    NotAModel,
    #[error("version {0} of the format, only 1 is known")]
    Version(u32),
    #[error("{what} is {found}, must be {allowed}")]
    Shape { what: &'static str, found: u32, allowed: &'static str },
    #[error("{found} bytes, must be {expected}")]
    Length { found: usize, expected: usize },
    #[error("a weight is not a finite number")]
    NotFinite,
    /// Silero could not be loaded.
    #[error("Silero: {0}")]
    Silero(String),
}

/// Weights and tables; one for all calls.
pub struct VadModel {
    dense: Affine,
    layers: Vec<Gru>,
    out: Vec<f32>,
    out_bias: f32,
    units: usize,
    window: [f32; WINDOW],
    bands: Vec<Band>,
    fft: RealFft,
}

struct Affine {
    /// Row major, one row an input.
    weights: Vec<f32>,
    bias: Vec<f32>,
}

struct Gru {
    input: Affine,
    hidden: Affine,
}

/// A triangle over the bins from `first` on.
struct Band {
    first: usize,
    weights: Vec<f32>,
}

impl VadModel {
    /// The model in the binary, parsed once.
    pub fn embedded() -> &'static VadModel {
        static MODEL: OnceLock<VadModel> = OnceLock::new();
        MODEL.get_or_init(|| {
            VadModel::parse(include_bytes!("../../models/offhook-vad/offhook-vad.bin"))
                .expect("a test parses the embedded model")
        })
    }

    pub fn parse(bytes: &[u8]) -> Result<VadModel, VadError> {
        if bytes.len() < HEADER || !bytes.starts_with(MAGIC) {
            return Err(VadError::NotAModel);
        }
        let mut header = bytes[MAGIC.len()..HEADER].chunks_exact(4).map(le_u32);
        let mut next = || header.next().expect("the header has six numbers");
        let version = next();
        if version != VERSION {
            return Err(VadError::Version(version));
        }
        let mut size = |what, allowed: &'static str, range: std::ops::RangeInclusive<usize>| {
            let found = next();
            let fits = range.contains(&(found as usize));
            if fits { Ok(found as usize) } else { Err(VadError::Shape { what, found, allowed }) }
        };
        size("bands", "28", BANDS..=BANDS)?;
        size("inputs", "118", INPUTS..=INPUTS)?;
        let dense = size("dense outputs", "1 to 128", 1..=MAX_DENSE)?;
        let units = size("units", "1 to 64", 1..=MAX_UNITS)?;
        let layers = size("layers", "1 or 2", 1..=MAX_LAYERS)?;

        let affine = |inputs: usize, outputs: usize| (inputs + 1) * outputs;
        let mut weights = affine(INPUTS, dense) + affine(units, 1);
        for layer in 0..layers {
            weights += affine(if layer == 0 { dense } else { units }, 3 * units) + affine(units, 3 * units);
        }
        let expected = HEADER + 4 * weights;
        if bytes.len() != expected {
            return Err(VadError::Length { found: bytes.len(), expected });
        }
        let mut values = bytes[HEADER..].chunks_exact(4).map(|b| f32::from_bits(le_u32(b)));
        if values.clone().any(|value| !value.is_finite()) {
            return Err(VadError::NotFinite);
        }
        let mut take = |count: usize| values.by_ref().take(count).collect::<Vec<f32>>();
        let mut affine =
            |inputs: usize, outputs: usize| Affine { weights: take(inputs * outputs), bias: take(outputs) };
        let dense_layer = affine(INPUTS, dense);
        let layers = (0..layers)
            .map(|layer| Gru {
                input: affine(if layer == 0 { dense } else { units }, 3 * units),
                hidden: affine(units, 3 * units),
            })
            .collect();
        let Affine { weights: out, bias } = affine(units, 1);
        Ok(VadModel {
            dense: dense_layer,
            layers,
            out,
            out_bias: bias[0],
            units,
            window: std::array::from_fn(|n| (0.5 - 0.5 * (2.0 * PI * n as f64 / WINDOW as f64).cos()) as f32),
            bands: bands(),
            fft: RealFft::new(),
        })
    }

    /// The network on one input vector.
    fn forward(&self, hidden: &mut [[f32; MAX_UNITS]; MAX_LAYERS], input: &[f32; INPUTS]) -> f32 {
        let units = self.units;
        let mut dense = [0.0; MAX_DENSE];
        let dense = &mut dense[..self.dense.bias.len()];
        self.dense.apply(input, dense);
        for value in dense.iter_mut() {
            *value = value.max(0.0);
        }
        for (layer, gru) in self.layers.iter().enumerate() {
            let (mut of_input, mut of_hidden) = ([0.0; 3 * MAX_UNITS], [0.0; 3 * MAX_UNITS]);
            let (of_input, of_hidden) = (&mut of_input[..3 * units], &mut of_hidden[..3 * units]);
            let (below, own) = hidden.split_at_mut(layer);
            let state = &mut own[0][..units];
            match below.last() {
                None => gru.input.apply(dense, of_input),
                Some(below) => gru.input.apply(&below[..units], of_input),
            }
            gru.hidden.apply(state, of_hidden);
            for (n, value) in state.iter_mut().enumerate() {
                let update = sigmoid(of_input[n] + of_hidden[n]);
                let reset = sigmoid(of_input[units + n] + of_hidden[units + n]);
                let candidate = tanh(of_input[2 * units + n] + reset * of_hidden[2 * units + n]);
                *value = update * *value + (1.0 - update) * candidate;
            }
        }
        let top = &hidden[self.layers.len() - 1][..units];
        sigmoid(top.iter().zip(&self.out).map(|(h, w)| h * w).sum::<f32>() + self.out_bias)
    }
}

impl Affine {
    /// `out = input · weights + bias`. Four rows at a time: each output is loaded and stored once for four products.
    fn apply(&self, input: &[f32], out: &mut [f32]) {
        let width = out.len();
        out.copy_from_slice(&self.bias);
        let mut rows = self.weights.chunks_exact(4 * width);
        let mut inputs = input.chunks_exact(4);
        for (block, x) in (&mut rows).zip(&mut inputs) {
            let (first, rest) = block.split_at(width);
            let (second, rest) = rest.split_at(width);
            let (third, fourth) = rest.split_at(width);
            for ((((out, a), b), c), d) in out.iter_mut().zip(first).zip(second).zip(third).zip(fourth) {
                *out += x[0] * a + x[1] * b + x[2] * c + x[3] * d;
            }
        }
        for (row, &x) in rows.remainder().chunks_exact(width).zip(inputs.remainder()) {
            for (out, w) in out.iter_mut().zip(row) {
                *out += x * w;
            }
        }
    }
}

/// Triangles at equal mel steps from 100 to 3,800 Hz, scaled by the window's power and the number of bins.
fn bands() -> Vec<Band> {
    let mel = |hz: f64| 2595.0 * (1.0 + hz / 700.0).log10();
    let hz = |mel: f64| 700.0 * (10_f64.powf(mel / 2595.0) - 1.0);
    let (low, high) = (mel(100.0), mel(3800.0));
    let edge: Vec<f64> = (0..BANDS + 2).map(|n| hz(low + (high - low) * n as f64 / (BANDS + 1) as f64)).collect();
    (0..BANDS)
        .map(|b| {
            let weight = |k: usize| {
                let f = k as f64 * 8000.0 / WINDOW as f64;
                let rise = (f - edge[b]) / (edge[b + 1] - edge[b]);
                let fall = (edge[b + 2] - f) / (edge[b + 2] - edge[b + 1]);
                rise.min(fall).max(0.0) / 12_288.0
            };
            let first = (0..BINS).find(|&k| weight(k) > 0.0).unwrap_or(0);
            let weights = (first..BINS).map(weight).take_while(|&w| w > 0.0).map(|w| w as f32).collect();
            Band { first, weights }
        })
        .collect()
}

fn le_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// By the exponential function: a third of the cost of the library's `tanh`, and exact to 1e-6 here.
fn tanh(x: f32) -> f32 {
    2.0 * sigmoid(2.0 * x) - 1.0
}

/// Real Fourier transform of 256 points: a complex one of 128, radix 2 in place, and the untangling of even and odd.
struct RealFft {
    /// e^(-2πi k/128), k below 64.
    twiddles: [(f32, f32); HALF / 2],
    /// e^(-2πi k/256), k up to 128.
    untangle: [(f32, f32); BINS],
    reversed: [u8; HALF],
}

const HALF: usize = WINDOW / 2;

impl RealFft {
    fn new() -> Self {
        let unit = |k: usize, n: usize| {
            let angle = -2.0 * PI * k as f64 / n as f64;
            (angle.cos() as f32, angle.sin() as f32)
        };
        Self {
            twiddles: std::array::from_fn(|k| unit(k, HALF)),
            untangle: std::array::from_fn(|k| unit(k, WINDOW)),
            // Seven bits, reversed.
            reversed: std::array::from_fn(|n| (n as u8).reverse_bits() >> 1),
        }
    }

    /// Calls `each(k, re, im)` for the bins 0 to 128 of `samples`.
    fn forward(&self, samples: &[f32; WINDOW], mut each: impl FnMut(usize, f32, f32)) {
        let mut z = [(0.0, 0.0); HALF];
        for (pair, &to) in samples.chunks_exact(2).zip(&self.reversed) {
            z[usize::from(to)] = (pair[0], pair[1]);
        }
        let mut size = 2;
        while size <= HALF {
            let (half, step) = (size / 2, HALF / size);
            for block in z.chunks_exact_mut(size) {
                let (low, high) = block.split_at_mut(half);
                for ((a, b), w) in low.iter_mut().zip(high).zip(self.twiddles.iter().step_by(step)) {
                    let t = (b.0 * w.0 - b.1 * w.1, b.0 * w.1 + b.1 * w.0);
                    *b = (a.0 - t.0, a.1 - t.1);
                    *a = (a.0 + t.0, a.1 + t.1);
                }
            }
            size *= 2;
        }
        for (k, w) in self.untangle.iter().enumerate() {
            let (a, b) = (z[k % HALF], z[(HALF - k) % HALF]);
            let even = (0.5 * (a.0 + b.0), 0.5 * (a.1 - b.1));
            let odd = (0.5 * (a.1 + b.1), 0.5 * (b.0 - a.0));
            each(k, even.0 + odd.0 * w.0 - odd.1 * w.1, even.1 + odd.0 * w.1 + odd.1 * w.0);
        }
    }
}

/// What the network remembers of one call: about 1 KB, inline.
#[derive(Clone)]
pub struct VadState {
    old: [i16; OVERLAP],
    /// Band levels one and two packets ago.
    before: [[f32; BANDS]; 2],
    floor: [f32; BANDS],
    has_floor: bool,
    hidden: [[f32; MAX_UNITS]; MAX_LAYERS],
}

impl VadState {
    pub const fn new() -> Self {
        Self {
            old: [0; OVERLAP],
            before: [[SILENT_BAND; BANDS]; 2],
            floor: [0.0; BANDS],
            has_floor: false,
            hidden: [[0.0; MAX_UNITS]; MAX_LAYERS],
        }
    }

    /// The input vector for one packet.
    fn features(&mut self, model: &VadModel, pcm: &[i16; PACKET]) -> [f32; INPUTS] {
        let mut samples = [0.0; WINDOW];
        for ((slot, &sample), w) in samples.iter_mut().zip(self.old.iter().chain(pcm)).zip(&model.window) {
            *slot = f32::from(sample) / 32768.0 * w;
        }
        self.old.copy_from_slice(&pcm[PACKET - OVERLAP..]);

        let mut power = [0.0; BINS];
        model.fft.forward(&samples, |k, re, im| power[k] = re * re + im * im);

        let mut input = [0.0; INPUTS];
        let (levels, rest) = input.split_at_mut(BANDS);
        for (level, band) in levels.iter_mut().zip(&model.bands) {
            let sum: f32 = power[band.first..].iter().zip(&band.weights).map(|(p, w)| p * w).sum();
            *level = 0.5 * (sum + 1e-8).log10() + 2.0;
        }
        if !self.has_floor {
            self.has_floor = true;
            for (floor, level) in self.floor.iter_mut().zip(levels.iter()) {
                *floor = level.min(FIRST_FLOOR);
            }
        }
        // Down fast, up by 2.5 dB a second at most.
        for (floor, level) in self.floor.iter_mut().zip(levels.iter()) {
            let d = level - *floor;
            *floor += if d < 0.0 { 0.25 * d } else { d.min(0.0025) };
        }
        rest[..BANDS].copy_from_slice(&self.before[0]);
        rest[BANDS..2 * BANDS].copy_from_slice(&self.before[1]);
        for ((above, level), floor) in rest[2 * BANDS..3 * BANDS].iter_mut().zip(levels.iter()).zip(&self.floor) {
            *above = level - floor;
        }
        self.before[1] = self.before[0];
        self.before[0].copy_from_slice(levels);

        // Periodicity: the inverse transform of the magnitudes. They are real and even over the full circle, so the forward
        // transform gives the same, times 256.
        for (k, &p) in power.iter().enumerate() {
            let magnitude = p.sqrt();
            samples[k] = magnitude;
            samples[(WINDOW - k) % WINDOW] = magnitude;
        }
        let mut similarity = [0.0; BINS];
        model.fft.forward(&samples, |lag, re, _| similarity[lag] = re / WINDOW as f32);
        let scale = 1.0 / (similarity[0] + 0.001);
        for (slot, lags) in rest[3 * BANDS..].iter_mut().zip(LAGS.windows(2)) {
            *slot = similarity[lags[0]..lags[1]].iter().fold(f32::MIN, |most, &r| most.max(r)) * scale;
        }
        input
    }
}

impl Default for VadState {
    fn default() -> Self {
        Self::new()
    }
}

/// Our own network on one call.
pub struct OffhookVad {
    pub model: &'static VadModel,
    pub state: VadState,
}

impl OffhookVad {
    pub fn new() -> Self {
        Self { model: VadModel::embedded(), state: VadState::new() }
    }
}

impl Default for OffhookVad {
    fn default() -> Self {
        Self::new()
    }
}

impl VoiceDetector for OffhookVad {
    fn push(&mut self, pcm: &[i16; PACKET]) -> f32 {
        let input = self.state.features(self.model, pcm);
        self.model.forward(&mut self.state.hidden, &input)
    }

    fn reset(&mut self) {
        self.state = VadState::new();
    }
}

#[cfg(feature = "silero")]
pub use silero::SileroVad;

#[cfg(feature = "silero")]
mod silero {
    //! Silero v6 by `flexaudio-vad`, on audio brought up to 16 kHz: its 8 kHz mode misses 4 to 16 % of spoken digits.

    use std::sync::Mutex;

    use flexaudio_vad::{Vad, VadOptions, VadRuntimeOptions};

    use super::{PACKET, VadError, VoiceDetector};
    use crate::media::frame::SampleRate;
    use crate::media::resample::Resampler;

    /// Idle detectors kept for the next call: making one takes 18 to 34 ms, and each holds 1.6 MB.
    const POOL: usize = 64;
    static IDLE: Mutex<Vec<Vad>> = Mutex::new(Vec::new());

    /// A window is 32 ms, a packet 20: each packet gives the probability of the newest whole window.
    pub struct SileroVad {
        vad: Option<Vad>,
        resampler: Resampler,
        upsampled: Vec<i16>,
        samples: Vec<f32>,
        last: f32,
    }

    impl SileroVad {
        /// Takes an idle detector, or loads one; do that before the call is answered.
        pub fn new() -> Result<Self, VadError> {
            let idle = IDLE.lock().map_or(None, |mut idle| idle.pop());
            let vad = match idle {
                Some(vad) => vad,
                None => Vad::new(VadOptions::default(), VadRuntimeOptions::default())
                    .map_err(|error| VadError::Silero(error.to_string()))?,
            };
            let resampler = Resampler::new(SampleRate::HZ_8000, SampleRate::HZ_16000)
                .map_err(|error| VadError::Silero(error.to_string()))?;
            Ok(Self { vad: Some(vad), resampler, upsampled: Vec::new(), samples: Vec::new(), last: 0.0 })
        }
    }

    impl VoiceDetector for SileroVad {
        fn push(&mut self, pcm: &[i16; PACKET]) -> f32 {
            self.upsampled.clear();
            self.resampler.process_frame(pcm, &mut self.upsampled);
            self.samples.clear();
            self.samples.extend(self.upsampled.iter().map(|&s| f32::from(s) / 32768.0));
            if let Some(vad) = &mut self.vad {
                match vad.process(&self.samples) {
                    Ok(_) => {
                        if let Some(&newest) = vad.last_frame_probabilities().values.last() {
                            self.last = newest;
                        }
                    }
                    // A session that failed stays failed: start it again and go on with the last answer.
                    Err(_) => self.reset(),
                }
            }
            self.last
        }

        fn reset(&mut self) {
            self.resampler.reset();
            self.last = 0.0;
            if self.vad.as_mut().is_some_and(|vad| vad.reset().is_err()) {
                self.vad = Vad::new(VadOptions::default(), VadRuntimeOptions::default()).ok();
            }
        }
    }

    impl Drop for SileroVad {
        fn drop(&mut self) {
            if let Some(mut vad) = self.vad.take()
                && vad.reset().is_ok()
                && let Ok(mut idle) = IDLE.lock()
                && idle.len() < POOL
            {
                idle.push(vad);
            }
        }
    }
}

/// Which detector calls get: `speech.vad`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detector {
    /// Our own model: 0.04 % of a core and 1 KB a call.
    #[default]
    Offhook,
    /// Silero, in builds with the feature `silero`: 0.3 % of a core and 1.6 MB a call.
    Silero,
}

impl Detector {
    pub fn open(self) -> Result<Box<dyn VoiceDetector>, VadError> {
        match self {
            Detector::Offhook => Ok(Box::new(OffhookVad::new())),
            #[cfg(feature = "silero")]
            Detector::Silero => Ok(Box::new(SileroVad::new()?)),
            #[cfg(not(feature = "silero"))]
            Detector::Silero => Err(VadError::Silero("this build has no feature `silero`".into())),
        }
    }
}

/// When probabilities become speech and silence (DESIGN §3).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GateSettings {
    /// Probability at or above which a packet counts towards the start of speech.
    pub start_probability: f32,
    /// Packets in a row that start speech. One more costs 20 ms.
    pub start_packets: u32,
    /// Probability below which a packet ends speech.
    pub end_probability: f32,
    /// Probability at or above which a packet counts as voiced.
    pub voiced_probability: f32,
}

impl Default for GateSettings {
    fn default() -> Self {
        Self { start_probability: 0.60, start_packets: 3, end_probability: 0.35, voiced_probability: 0.50 }
    }
}

/// What one packet showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateEvent {
    /// Speech starts with this packet: the last of the `start_packets` in a row.
    pub started: bool,
    /// Speech ends: this is the first packet below `end_probability`.
    pub ended: bool,
    /// Speech is under way.
    pub speaking: bool,
    /// The packet itself is voiced, whatever came before.
    pub voiced: bool,
    /// Packets of silence, this one included, counted from the one that ended speech (or from the start of the call); 0
    /// while speaking. It grows through single voiced packets: only `started` sets it back.
    pub silent_packets: u32,
}

/// Hysteresis over probabilities. The same rule starts a turn, a barge-in, and speech that returns after a short pause.
#[derive(Clone, Debug)]
pub struct SpeechGate {
    settings: GateSettings,
    state: Gate,
    /// Packets in a row that were no echo.
    own: u32,
}

/// Packets in a row that must be more than an echo before speech starts; the weak beginning of a word may be softer.
const OWN_PACKETS: u32 = 2;

#[derive(Clone, Copy, Debug)]
enum Gate {
    Silence { packets: u32, rising: u32 },
    Speech,
}

impl SpeechGate {
    pub fn new(settings: GateSettings) -> Self {
        Self { settings, state: Gate::Silence { packets: 0, rising: 0 }, own: 0 }
    }

    pub fn push(&mut self, probability: f32) -> GateEvent {
        self.push_beside_echo(probability, false)
    }

    /// `echo`: the packet is no louder than our own sound coming back. Such a packet starts and continues no speech, but it
    /// counts towards a start that louder ones complete.
    pub fn push_beside_echo(&mut self, probability: f32, echo: bool) -> GateEvent {
        let settings = self.settings;
        self.own = if echo { 0 } else { self.own.saturating_add(1) };
        let may_start = self.own >= OWN_PACKETS.min(settings.start_packets);
        let rising_probability = probability;
        let probability = if echo { 0.0 } else { probability };
        let voiced = probability >= settings.voiced_probability;
        let (next, started, ended) = match self.state {
            Gate::Silence { packets, rising } => {
                let rises = rising_probability >= settings.start_probability;
                let rising = if rises { rising.saturating_add(1) } else { 0 };
                if rising >= settings.start_packets.max(1) && may_start {
                    (Gate::Speech, true, false)
                } else {
                    (Gate::Silence { packets: packets.saturating_add(1), rising }, false, false)
                }
            }
            Gate::Speech if probability < settings.end_probability => {
                (Gate::Silence { packets: 1, rising: 0 }, false, true)
            }
            Gate::Speech => (Gate::Speech, false, false),
        };
        self.state = next;
        let (speaking, silent_packets) = match next {
            Gate::Silence { packets, .. } => (false, packets),
            Gate::Speech => (true, 0),
        };
        GateEvent { started, ended, speaking, voiced, silent_packets }
    }

    pub fn is_speaking(&self) -> bool {
        matches!(self.state, Gate::Speech)
    }

    pub fn reset(&mut self) {
        self.state = Gate::Silence { packets: 0, rising: 0 };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MODEL: &[u8] = include_bytes!("../../models/offhook-vad/offhook-vad.bin");

    #[derive(Deserialize)]
    struct Golden {
        samples: Vec<i16>,
        probs: Vec<f32>,
    }

    fn golden() -> Golden {
        serde_json::from_str(include_str!("../../models/offhook-vad/golden.json")).expect("the file is ours")
    }

    fn packets(samples: &[i16]) -> impl Iterator<Item = &[i16; PACKET]> {
        samples.as_chunks().0.iter()
    }

    #[test]
    fn an_echo_starts_no_speech_and_a_word_that_rises_out_of_it_does_at_its_second_loud_packet() {
        let mut gate = SpeechGate::new(GateSettings::default());
        assert!((0..100).all(|_| !gate.push_beside_echo(0.9, true).started));
        assert!(!gate.push_beside_echo(0.9, false).started, "a knock");
        assert!(!gate.push_beside_echo(0.9, true).started);
        assert!(!gate.push_beside_echo(0.9, false).started);
        assert!(gate.push_beside_echo(0.9, false).started);
        assert!(gate.push_beside_echo(0.9, true).ended, "an echo keeps no speech going");
        let mut plain = SpeechGate::new(GateSettings::default());
        assert_eq!([0.9, 0.9, 0.9].map(|probability| plain.push(probability).started), [false, false, true]);
    }

    #[test]
    fn the_forward_pass_gives_the_golden_values() {
        let (golden, mut vad) = (golden(), OffhookVad::new());
        let ours: Vec<f32> = packets(&golden.samples).map(|packet| vad.push(packet)).collect();
        assert_eq!(ours.len(), golden.probs.len());
        let worst = ours.iter().zip(&golden.probs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("largest difference from the golden values: {worst:e}");
        assert!(worst <= 1e-4, "off by {worst}");
    }

    #[test]
    fn a_reset_forgets_the_call() {
        let (golden, mut vad) = (golden(), OffhookVad::new());
        let first: Vec<f32> = packets(&golden.samples).take(60).map(|packet| vad.push(packet)).collect();
        vad.reset();
        let again: Vec<f32> = packets(&golden.samples).take(60).map(|packet| vad.push(packet)).collect();
        assert_eq!(first, again);
    }

    #[test]
    fn calls_share_the_weights_and_keep_about_a_kilobyte_each() {
        assert!(std::ptr::eq(OffhookVad::new().model, OffhookVad::new().model));
        let bytes = size_of::<OffhookVad>();
        assert!((1000..=1100).contains(&bytes), "{bytes} bytes");
    }

    #[test]
    fn loud_nonsense_gives_finite_numbers_and_no_speech() {
        let mut vad = OffhookVad::new();
        for n in 0..100_i32 {
            let square: [i16; PACKET] =
                std::array::from_fn(|k| if (k as i32 + n) % 2 == 0 { i16::MAX } else { i16::MIN });
            let p = vad.push(&square);
            assert!(p.is_finite() && p < 0.6, "{p} at {n}");
        }
    }

    #[test]
    fn the_transform_agrees_with_the_sum_it_stands_for() {
        let samples: [f32; WINDOW] = std::array::from_fn(|n| ((n * n * 7 + 3 * n) % 101) as f32 / 50.0 - 1.0);
        RealFft::new().forward(&samples, |k, re, im| {
            let (mut want_re, mut want_im) = (0.0, 0.0);
            for (n, &sample) in samples.iter().enumerate() {
                let angle = -2.0 * PI * (k * n % WINDOW) as f64 / WINDOW as f64;
                want_re += f64::from(sample) * angle.cos();
                want_im += f64::from(sample) * angle.sin();
            }
            assert!((want_re - f64::from(re)).abs() < 1e-4 && (want_im - f64::from(im)).abs() < 1e-4, "bin {k}");
        });
    }

    fn with_header(at: usize, value: u32) -> Vec<u8> {
        let mut bytes = MODEL.to_vec();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    }

    #[test]
    fn files_that_are_no_model_are_refused_with_the_reason() {
        let error = |bytes: &[u8]| VadModel::parse(bytes).err().map(|error| error.to_string());
        assert_eq!(error(b""), Some("not an OHVADNET file".into()));
        assert_eq!(error(&MODEL[..31]), Some("not an OHVADNET file".into()));
        assert_eq!(error(&[0; 200]), Some("not an OHVADNET file".into()));
        assert_eq!(error(&with_header(8, 2)), Some("version 2 of the format, only 1 is known".into()));
        assert_eq!(error(&with_header(12, 40)), Some("bands is 40, must be 28".into()));
        assert_eq!(error(&with_header(20, u32::MAX)), Some("dense outputs is 4294967295, must be 1 to 128".into()));
        assert_eq!(error(&with_header(24, 65)), Some("units is 65, must be 1 to 64".into()));
        assert_eq!(error(&with_header(28, 0)), Some("layers is 0, must be 1 or 2".into()));
        assert_eq!(error(&MODEL[..MODEL.len() - 4]), Some("189312 bytes, must be 189316".into()));
        assert_eq!(error(&with_header(400, f32::NAN.to_bits())), Some("a weight is not a finite number".into()));
        assert_eq!(error(MODEL), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400), keep in 0_usize..33) {
            let keep = keep.min(bytes.len());
            bytes[..keep].copy_from_slice(&MODEL[..keep]);
            prop_assert!(VadModel::parse(&bytes).is_err());
        }

        #[test]
        fn the_gate_counts_silence_and_speech_without_contradiction(
            probabilities in prop::collection::vec(0.0_f32..1.0, 1..300),
        ) {
            let mut gate = SpeechGate::new(GateSettings::default());
            let mut before = GateEvent::default();
            for p in probabilities {
                let event = gate.push(p);
                prop_assert_eq!(event.speaking, event.silent_packets == 0);
                prop_assert_eq!(event.started, event.speaking && !before.speaking);
                prop_assert_eq!(event.ended, before.speaking && !event.speaking);
                if !event.speaking {
                    let expected = if before.speaking { 1 } else { before.silent_packets + 1 };
                    prop_assert_eq!(event.silent_packets, expected);
                }
                before = event;
            }
        }
    }

    /// Runs the gate and marks each packet: `S` started, `s` speaking, `E` ended, a digit for silent packets.
    fn trace(settings: GateSettings, probabilities: &[f32]) -> String {
        let mut gate = SpeechGate::new(settings);
        let mark = |event: GateEvent| match event {
            GateEvent { started: true, .. } => 'S',
            GateEvent { ended: true, .. } => 'E',
            GateEvent { speaking: true, .. } => 's',
            GateEvent { silent_packets, .. } => char::from_digit(silent_packets % 10, 10).unwrap_or('?'),
        };
        probabilities.iter().map(|&p| mark(gate.push(p))).collect()
    }

    #[test]
    fn speech_starts_at_the_third_packet_in_a_row() {
        let settings = GateSettings::default();
        assert_eq!(trace(settings, &[0.1, 0.6, 0.7, 0.9, 0.9]), "123Ss");
        assert_eq!(trace(settings, &[0.6, 0.7, 0.59, 0.9, 0.9, 0.6]), "12345S");
    }

    #[test]
    fn silence_is_counted_from_the_first_packet_below_the_end() {
        let settings = GateSettings::default();
        assert_eq!(trace(settings, &[0.9, 0.9, 0.9, 0.35, 0.34, 0.1, 0.1]), "12SsE23");
    }

    #[test]
    fn a_voiced_packet_alone_does_not_end_a_pause() {
        let settings = GateSettings::default();
        assert_eq!(trace(settings, &[0.9, 0.9, 0.9, 0.1, 0.9, 0.9, 0.5, 0.9, 0.9, 0.9]), "12SE23456S");
    }

    #[test]
    fn each_setting_of_the_gate_acts() {
        let base = GateSettings::default();
        let p = [0.4, 0.4, 0.4, 0.3, 0.3];
        assert_eq!(trace(base, &p), "12345");
        assert_eq!(trace(GateSettings { start_probability: 0.4, ..base }, &p), "12SE2");
        assert_eq!(trace(GateSettings { start_probability: 0.4, start_packets: 1, ..base }, &p), "SssE2");
        assert_eq!(trace(GateSettings { start_probability: 0.4, end_probability: 0.2, ..base }, &p), "12Sss");
        let voiced = |voiced_probability| SpeechGate::new(GateSettings { voiced_probability, ..base }).push(0.5).voiced;
        assert!(voiced(0.5) && !voiced(0.51));
    }

    #[cfg(feature = "silero")]
    #[test]
    fn silero_hears_the_speech_of_the_golden_file_and_is_pooled() {
        let golden = golden();
        let mut vad = SileroVad::new().expect("its model is in the crate");
        let run = |vad: &mut SileroVad| packets(&golden.samples).map(|packet| vad.push(packet)).collect::<Vec<f32>>();
        let first = run(&mut vad);
        let agree = first.iter().zip(&golden.probs).filter(|(a, b)| (**a >= 0.5) == (**b >= 0.5)).count();
        assert!(agree * 10 >= first.len() * 8, "{agree} of {} packets judged alike", first.len());
        drop(vad);
        let mut again = SileroVad::new().expect("one is idle");
        assert_eq!(run(&mut again), first);
    }
}
