//! The caller's way in: packets in order, decoded, judged by the voice detector 20 ms at a time, resampled for
//! recognition. Nothing here allocates once a call runs.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::conversation::settings::TurnSettings;
use crate::conversation::turn::Heard;
use crate::media::dtmf::DtmfDetector;
use crate::media::frame::{FRAME, SampleRate, level_dbfs};
use crate::media::g711;
use crate::media::jitter::{JitterBuffer, JitterConfig};
use crate::media::packet::{Codec, Packet};
use crate::media::resample::{ResampleError, Resampler};
use crate::media::vad::{Detector, GateSettings, PACKET, SpeechGate, VadError, VoiceDetector};
use crate::speech::stt::AudioChunk;

/// Without packets for so long, the tick feeds silence in their place.
const STALL: Duration = Duration::from_millis(200);
/// Without packets for so long, the leg has failed.
const DEAD: Duration = Duration::from_secs(10);
/// What became of 20 ms of the caller.
#[derive(Clone, Copy, Debug)]
pub struct Judged {
    pub heard: Heard,
    /// A key tone found in the sound itself.
    pub key: Option<char>,
}

/// A call cannot listen: a fault of the configuration, found when the call starts.
#[derive(Debug, thiserror::Error)]
pub enum IngressError {
    #[error(transparent)]
    Rate(#[from] ResampleError),
    #[error(transparent)]
    Detector(#[from] VadError),
}

pub struct Ingress {
    codec: Codec,
    jitter: JitterBuffer,
    /// Decoded and not yet judged: less than a frame between packets, unless a packet held more than 20 ms.
    pending: Vec<i16>,
    frame: [i16; PACKET],
    detector: Box<dyn VoiceDetector>,
    gate: SpeechGate,
    keys: Option<DtmfDetector>,
    resampler: Resampler,
    resampled: Vec<i16>,
    /// The newest chunks for recognition, pre-roll and the packets that the start rule took; and whether each was taken for
    /// an echo.
    pre_roll: VecDeque<(AudioChunk, bool)>,
    /// Newest packets of it that are never taken for an echo: the start of speech and the weak consonant before it.
    spare: usize,
    silence: Option<AudioChunk>,
    keep: usize,
    /// Media time: grows by 20 ms with each frame judged.
    media_now: Instant,
    last_packet: Instant,
    /// Arrival of the first packet of the present run of voice, and of the newest voiced packet.
    onset: Instant,
    last_voiced: Instant,
    voiced_before: bool,
    /// Packets softer than this are taken for an echo of the agent, dBFS.
    echo_dbfs: f32,
    agent_sounds: bool,
    /// Packets since the caller's last speech.
    caller_quiet: u32,
}

/// Packets before the start of speech that may hold a weak first consonant.
const ONSET_PACKETS: usize = 3;
/// Packets of silence in which a caller's speech may go on: stops inside words and between them.
const HANGOVER: u32 = 10;

impl Ingress {
    /// `in_band_keys`: look for key tones in the sound (for legs that do not report keys themselves).
    pub fn new(
        now: Instant,
        codec: Codec,
        recogniser: SampleRate,
        settings: &TurnSettings,
        in_band_keys: bool,
        detector: Detector,
    ) -> Result<Self, IngressError> {
        let keep = (settings.pre_roll_ms / FRAME.as_millis() as u64) as usize + settings.start_packets as usize;
        Ok(Self {
            codec,
            jitter: JitterBuffer::new(JitterConfig::default()),
            pending: Vec::with_capacity(4 * PACKET),
            frame: [0; PACKET],
            detector: detector.open()?,
            gate: SpeechGate::new(GateSettings {
                start_probability: settings.start_probability,
                start_packets: settings.start_packets,
                end_probability: settings.end_probability,
                voiced_probability: settings.voiced_probability,
            }),
            keys: in_band_keys.then(DtmfDetector::new),
            resampler: Resampler::new(codec.rate(), recogniser)?,
            resampled: Vec::with_capacity(recogniser.frame_len()),
            pre_roll: VecDeque::with_capacity(keep + 1),
            keep,
            spare: settings.start_packets as usize + ONSET_PACKETS,
            silence: AudioChunk::new(&vec![0; recogniser.frame_len()]),
            media_now: now,
            last_packet: now,
            onset: now,
            last_voiced: now,
            voiced_before: false,
            echo_dbfs: f32::NEG_INFINITY,
            agent_sounds: false,
            caller_quiet: u32::MAX,
        })
    }

    pub fn push(&mut self, now: Instant, packet: Packet) {
        self.last_packet = now;
        self.jitter.push(now, packet);
    }

    /// From here on, what is softer than this is the agent's own echo. A caller who speaks while the agent no longer does
    /// is believed whatever the level: speech has soft parts, and the echo of what was said last is short.
    pub fn expect_echo(&mut self, below_dbfs: f32, agent_sounds: bool) {
        self.echo_dbfs = below_dbfs;
        self.agent_sounds = agent_sounds;
    }

    /// Judges the next 20 ms if they are there.
    pub fn next(&mut self, now: Instant) -> Option<Judged> {
        while self.pending.len() < PACKET {
            let packet = self.jitter.pop_ready(now)?;
            g711::decode_into(self.codec, packet.payload(), &mut self.pending);
        }
        self.frame.copy_from_slice(&self.pending[..PACKET]);
        self.pending.drain(..PACKET);
        Some(self.judge(now))
    }

    /// On a tick: silence in the place of packets that stopped coming. `Err` when the leg is dead.
    pub fn stalled(&mut self, now: Instant) -> Result<Option<Judged>, NoMedia> {
        let quiet = now.duration_since(self.last_packet);
        if quiet >= DEAD {
            return Err(NoMedia);
        }
        if quiet < STALL {
            return Ok(None);
        }
        self.frame.fill(0);
        Ok(Some(self.judge(now)))
    }

    fn judge(&mut self, now: Instant) -> Judged {
        self.media_now += FRAME;
        // The detector hears everything; only the verdict on an echo is overruled.
        let probability = self.detector.push(&self.frame);
        let caller_speaks = self.caller_quiet <= HANGOVER && !self.agent_sounds;
        let echo = level_dbfs(&self.frame) < self.echo_dbfs && !caller_speaks;
        let verdict = self.gate.push_beside_echo(probability, echo);
        self.caller_quiet = if verdict.speaking { 0 } else { self.caller_quiet.saturating_add(1) };
        if verdict.voiced {
            if !self.voiced_before {
                self.onset = now;
            }
            self.last_voiced = now;
        }
        self.voiced_before = verdict.voiced;
        self.resampled.clear();
        self.resampler.process_frame(&self.frame, &mut self.resampled);
        if let Some(chunk) = AudioChunk::new(&self.resampled) {
            if self.pre_roll.len() == self.keep {
                self.pre_roll.pop_front();
            }
            self.pre_roll.push_back((chunk, echo));
        }
        let mut key = None;
        if let Some(keys) = &mut self.keys {
            keys.push(&self.frame, |pressed| key = Some(pressed));
        }
        let silent_for = FRAME * verdict.silent_packets;
        Judged { heard: Heard { started: verdict.started, voiced: verdict.voiced, silent_for }, key }
    }

    /// The frame judged last, 8 kHz.
    pub fn frame(&self) -> &[i16] {
        &self.frame
    }

    /// The frame judged last, at the recogniser's rate.
    pub fn newest(&self) -> Option<&AudioChunk> {
        self.pre_roll.back().map(|(chunk, _)| chunk)
    }

    /// What an utterance begins with: the frame judged last and what came before it. The agent's echo before the caller's
    /// first sound is silence here, or the recogniser would take it for the caller's first words.
    pub fn pre_roll(&self) -> impl Iterator<Item = &AudioChunk> {
        let old = self.pre_roll.len().saturating_sub(self.spare);
        self.pre_roll.iter().enumerate().map(move |(at, (chunk, echo))| match &self.silence {
            Some(silence) if *echo && at < old => silence,
            _ => chunk,
        })
    }

    pub fn media_now(&self) -> Instant {
        self.media_now
    }

    /// When the first packet of the present voice arrived.
    pub fn onset(&self) -> Instant {
        self.onset
    }

    /// When the newest voiced packet arrived.
    pub fn last_voiced(&self) -> Instant {
        self.last_voiced
    }
}

/// No packet for ten seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMedia;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::media::frame::MediaTime;
    use crate::media::wav;

    /// Starts of speech in the fixture's voice, played with this gain while echo below `echo_dbfs` is expected.
    fn starts(gain: f32, echo_dbfs: f32) -> usize {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("audio-fixtures/booking/01.wav");
        let voice = wav::read(&path).expect("a shipped fixture").samples;
        let voice: Vec<i16> = voice.iter().map(|&sample| (f32::from(sample) * gain) as i16).collect();
        let settings = TurnSettings::default();
        let mut now = Instant::now();
        let rate = SampleRate::HZ_16000;
        let mut ingress = Ingress::new(now, Codec::Pcmu, rate, &settings, false, Detector::Offhook).expect("opens");
        ingress.expect_echo(echo_dbfs, true);
        let (mut bytes, mut found) = (Vec::new(), 0);
        for (n, frame) in voice.chunks_exact(PACKET).enumerate() {
            now += FRAME;
            bytes.clear();
            g711::encode_into(Codec::Pcmu, frame, &mut bytes);
            ingress.push(now, Packet::new(Codec::Pcmu, MediaTime::from_millis(20 * n as u64), &bytes).expect("fits"));
            while let Some(judged) = ingress.next(now) {
                found += usize::from(judged.heard.started);
            }
        }
        found
    }

    #[test]
    fn a_caller_who_has_begun_is_heard_also_softly_once_the_agent_is_silent() {
        let voice = wav::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("audio-fixtures/booking/01.wav"))
            .expect("a shipped fixture")
            .samples;
        // Packets in which the caller is silent, from the first start of speech to the end of the words (600 ms in).
        let silent = |agent_sounds: bool| {
            let settings = TurnSettings::default();
            let rate = SampleRate::HZ_16000;
            let now = Instant::now();
            let mut ingress = Ingress::new(now, Codec::Pcmu, rate, &settings, false, Detector::Offhook).expect("opens");
            let (mut begun, mut silent) = (false, 0);
            for packet in voice.chunks_exact(PACKET).take(50) {
                ingress.expect_echo(-24.0, agent_sounds && begun);
                if !begun {
                    ingress.expect_echo(f32::NEG_INFINITY, false);
                }
                ingress.frame.copy_from_slice(packet);
                let heard = ingress.judge(now).heard;
                begun |= heard.started;
                silent += u32::from(begun && !heard.silent_for.is_zero());
            }
            assert!(begun);
            silent
        };
        assert!(silent(false) < silent(true), "{} against {}", silent(false), silent(true));
    }

    #[test]
    fn the_agents_echo_before_the_callers_first_sound_is_silence_to_the_recogniser() {
        let settings = TurnSettings::default();
        let now = Instant::now();
        let rate = SampleRate::HZ_16000;
        let mut ingress = Ingress::new(now, Codec::Pcmu, rate, &settings, false, Detector::Offhook).expect("opens");
        let soft: Vec<i16> = (0..160).map(|n| if n % 8 < 4 { 300 } else { -300 }).collect();
        let loud: Vec<i16> = soft.iter().map(|sample| sample * 30).collect();
        ingress.expect_echo(-30.0, true);
        let hear = |ingress: &mut Ingress, samples: &[i16], count: usize| {
            for _ in 0..count {
                ingress.frame.copy_from_slice(samples);
                ingress.judge(now);
            }
        };
        hear(&mut ingress, &soft, 20);
        hear(&mut ingress, &loud, 3);
        let spare = settings.start_packets as usize + ONSET_PACKETS;
        let kept: Vec<bool> =
            ingress.pre_roll().map(|chunk| chunk.samples().iter().any(|&sample| sample != 0)).collect();
        assert!(kept[..kept.len() - spare].iter().all(|&sound| !sound), "{kept:?}");
        assert!(kept[kept.len() - spare..].iter().all(|&sound| sound), "{kept:?}");
        ingress.expect_echo(f32::NEG_INFINITY, false);
        hear(&mut ingress, &soft, 30);
        assert!(ingress.pre_roll().all(|chunk| chunk.samples().iter().any(|&sample| sample != 0)), "no agent, no echo");
    }

    #[test]
    fn an_echo_is_not_the_caller_and_the_caller_is_heard_over_it() {
        let agent_dbfs = -20.0;
        let guard = TurnSettings::default().echo_guard_db;
        let echo = 0.056; // -25 dB
        assert!(starts(echo, f32::NEG_INFINITY) > 0, "without the guard the echo is speech");
        assert_eq!(starts(echo, agent_dbfs - guard), 0);
        assert!(starts(1.0, agent_dbfs - guard) > 0);
    }
}
