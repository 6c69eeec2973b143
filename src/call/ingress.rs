//! The caller's way in: packets in order, decoded at their codec's rate, judged by the voice detector 20 ms at a time,
//! resampled for recognition. Nothing here allocates once a call runs; a codec that changes in its midst does once.
//!
//! A leg whose packets come in order and in time is heard on arrival. One with a jitter buffer is heard by the clock:
//! 20 ms are due every 20 ms, and what is not there is concealed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::conversation::settings::TurnSettings;
use crate::conversation::turn::Heard;
use crate::media::codec::Decoder;
use crate::media::dtmf::DtmfDetector;
use crate::media::frame::{FRAME, SampleRate, level_dbfs};
use crate::media::jitter::{JitterBuffer, JitterConfig, Pull};
use crate::media::packet::{Codec, Packet};
use crate::media::resample::{ResampleError, Resampler};
use crate::media::vad::{Detector, GateSettings, PACKET, SpeechGate, VadError, VoiceDetector};
use crate::speech::stt::AudioChunk;

/// Without packets for so long, the tick feeds silence in their place.
const STALL: Duration = Duration::from_millis(200);
/// Without packets for so long, the leg has failed.
const DEAD: Duration = Duration::from_secs(10);
/// A tick that comes later than this makes up for no more: a task that stood still has not heard what it missed.
const CATCH_UP: Duration = Duration::from_millis(500);
/// The longest packet at 16 kHz, 120 ms, and a frame that waits before it.
const LONGEST: usize = 1_920 + 320;
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
    decoder: Decoder,
    jitter: JitterBuffer,
    /// When the next 20 ms are due, on a leg that is heard by the clock.
    due: Option<Instant>,
    recogniser: SampleRate,
    /// Decoded and not yet judged: less than a frame between packets, unless a packet held more than 20 ms.
    pending: Vec<i16>,
    /// The frame judged last: at 8 kHz, and as decoded where that is more.
    frame: [i16; PACKET],
    wide: Option<Wide>,
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
/// Sound of more than 8 kHz: recognition gets it whole, the detectors and the recording get it narrow.
struct Wide {
    frame: Vec<i16>,
    to_narrow: Resampler,
    narrow: Vec<i16>,
}

impl Wide {
    fn new(rate: SampleRate) -> Result<Option<Self>, ResampleError> {
        if rate == SampleRate::HZ_8000 {
            return Ok(None);
        }
        Ok(Some(Self {
            frame: Vec::with_capacity(rate.frame_len()),
            to_narrow: Resampler::new(rate, SampleRate::HZ_8000)?,
            narrow: Vec::with_capacity(2 * PACKET),
        }))
    }
}

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
            decoder: Decoder::new(codec),
            jitter: JitterBuffer::new(JitterConfig::default()),
            due: None,
            recogniser,
            pending: Vec::with_capacity(LONGEST),
            frame: [0; PACKET],
            wide: Wide::new(codec.rate())?,
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

    /// From here on the leg is heard by the clock, through a jitter buffer; `None` leaves it as it is. For a leg that
    /// has not been heard yet.
    pub fn with_jitter(mut self, jitter: Option<JitterConfig>) -> Self {
        if let Some(config) = jitter {
            self.jitter = JitterBuffer::new(config);
            self.due = Some(self.media_now + FRAME);
        }
        self
    }

    /// Whether to look for key tones in the sound from here on.
    pub fn listen_for_keys(&mut self, in_band: bool) {
        if in_band != self.keys.is_some() {
            self.keys = in_band.then(DtmfDetector::new);
        }
    }

    /// What comes from here on has nothing to do with what was heard before: the other side held the call.
    pub fn forget_speech(&mut self) {
        self.gate.reset();
        self.pre_roll.clear();
        self.caller_quiet = u32::MAX;
    }

    /// Judges the next 20 ms if they are there, or due.
    pub fn next(&mut self, now: Instant) -> Option<Judged> {
        if let Some(due) = self.due {
            if now < due {
                return None;
            }
            self.due = Some(if now - due > CATCH_UP { now } else { due } + FRAME);
            self.fill(now);
        } else {
            while self.pending.len() < self.decoder.codec().rate().frame_len() {
                let packet = self.jitter.pop_ready(now)?;
                self.decode(&packet);
            }
        }
        self.take_frame();
        Some(self.judge(now))
    }

    /// Decodes, conceals or leaves silent until a frame is there.
    fn fill(&mut self, now: Instant) {
        loop {
            let rate = self.decoder.codec().rate();
            let missing = rate.frame_len().saturating_sub(self.pending.len());
            if missing == 0 {
                return;
            }
            match self.jitter.pull_for(now, rate.duration(missing)) {
                Pull::Packet(packet) => self.decode(&packet),
                Pull::Missing => {
                    let behind = self.jitter.behind_the_gap();
                    self.decoder.conceal(rate.duration(missing), behind, &mut self.pending);
                    // A concealer that counts in coarser steps leaves a sample or two.
                    self.pending.resize(self.pending.len().max(rate.frame_len()), 0);
                }
            }
        }
    }

    fn decode(&mut self, packet: &Packet) {
        if packet.codec != self.decoder.codec() && self.change_codec(packet.codec).is_err() {
            // Both rates were fine when the call began; what cannot be resampled cannot be heard.
            return;
        }
        self.decoder.decode(packet.payload(), &mut self.pending);
    }

    /// The peer sends another codec from here on.
    fn change_codec(&mut self, codec: Codec) -> Result<(), ResampleError> {
        if codec.rate() != self.decoder.codec().rate() {
            self.resampler = Resampler::new(codec.rate(), self.recogniser)?;
            self.wide = Wide::new(codec.rate())?;
            self.pending.clear();
        }
        self.decoder = Decoder::new(codec);
        Ok(())
    }

    /// Moves the first 20 ms of what waits into the frame.
    fn take_frame(&mut self) {
        match &mut self.wide {
            None => {
                self.frame.copy_from_slice(&self.pending[..PACKET]);
                self.pending.drain(..PACKET);
            }
            Some(wide) => {
                let length = self.decoder.codec().rate().frame_len();
                wide.frame.clear();
                wide.frame.extend(self.pending.drain(..length));
                wide.narrow.clear();
                wide.to_narrow.process_frame(&wide.frame, &mut wide.narrow);
                // The first block of a resampler can be short: silence before the sound.
                let made = wide.narrow.len().min(PACKET);
                self.frame[..PACKET - made].fill(0);
                self.frame[PACKET - made..].copy_from_slice(&wide.narrow[wide.narrow.len() - made..]);
            }
        }
    }

    /// On a tick: silence in the place of packets that stopped coming. `Err` when the leg is dead. A leg that is heard by
    /// the clock has had its silence already, and its transport knows whether it is held or dead.
    pub fn stalled(&mut self, now: Instant) -> Result<Option<Judged>, NoMedia> {
        if self.due.is_some() {
            return Ok(None);
        }
        let quiet = now.duration_since(self.last_packet);
        if quiet >= DEAD {
            return Err(NoMedia);
        }
        if quiet < STALL {
            return Ok(None);
        }
        self.frame.fill(0);
        if let Some(wide) = &mut self.wide {
            wide.frame.clear();
            wide.frame.resize(self.decoder.codec().rate().frame_len(), 0);
        }
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
        let sound = self.wide.as_ref().map_or(&self.frame[..], |wide| &wide.frame);
        self.resampler.process_frame(sound, &mut self.resampled);
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
    use crate::media::codec::Encoder;
    use crate::media::dtmf::append_tone;
    use crate::media::frame::MediaTime;
    use crate::media::g711;
    use crate::media::wav;

    /// The fixture's voice by way of a codec, packets of `packet_ms`, some lost: starts of speech, and what recognition
    /// got at 16 kHz.
    fn by_the_clock(codec: Codec, packet_ms: u64, lost: fn(usize) -> bool) -> (usize, Vec<i16>) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("audio-fixtures/booking/01.wav");
        let voice = wav::read(&path).expect("a shipped fixture");
        let mut sound = Vec::new();
        Resampler::new(voice.rate, codec.rate()).expect("rates of a call").push(&voice.samples, &mut sound);
        let (mut encoder, mut bytes, mut stream) = (Encoder::new(codec), Vec::new(), Vec::new());
        let settings = TurnSettings::default();
        let (t0, rate) = (Instant::now(), SampleRate::HZ_16000);
        let mut ingress = Ingress::new(t0, codec, rate, &settings, false, Detector::Offhook)
            .expect("opens")
            .with_jitter(Some(JitterConfig::RTP));
        let mut packets = Vec::new();
        for (n, frame) in sound.chunks_exact(codec.rate().frame_len()).enumerate() {
            encoder.encode(frame, &mut bytes);
            if codec.bytes_per_ms().is_some() {
                stream.extend(&bytes);
            } else {
                packets.push(Packet::new(codec, MediaTime::from_millis(20 * n as u64), &bytes).expect("fits"));
            }
        }
        for (n, payload) in stream.chunks(8 * packet_ms as usize).enumerate() {
            packets.push(Packet::new(codec, MediaTime::from_millis(packet_ms * n as u64), payload).expect("fits"));
        }
        let (mut starts, mut heard, mut ticks) = (0, Vec::new(), 0);
        let end = packets.last().map_or(0, |packet| packet.at.as_millis());
        let mut packets = packets.into_iter().enumerate().peekable();
        for now in (0..=end).map(Duration::from_millis) {
            while let Some((n, packet)) = packets.next_if(|(_, packet)| packet.at.since_start() <= now) {
                if !lost(n) {
                    ingress.push(t0 + now, packet);
                }
            }
            while let Some(judged) = ingress.next(t0 + now) {
                ticks += 1;
                starts += usize::from(judged.heard.started);
                heard.extend_from_slice(ingress.newest().expect("a chunk").samples());
            }
        }
        assert_eq!(ticks, end / 20, "20 ms are heard every 20 ms");
        (starts, heard)
    }

    #[test]
    fn every_codec_is_heard_by_the_clock_whatever_its_packets() {
        let (starts, plain) = by_the_clock(Codec::Pcmu, 20, |_| false);
        assert!(starts > 0);
        for (codec, packet_ms) in [
            (Codec::Pcma, 10),
            (Codec::Pcmu, 30),
            (Codec::Pcma, 40),
            (Codec::G722, 60),
            (Codec::G722, 20),
            (Codec::Opus, 20),
        ] {
            for lost in [(|_| false) as fn(usize) -> bool, |n| n % 10 == 7] {
                let (starts, heard) = by_the_clock(codec, packet_ms, lost);
                assert!(starts > 0, "{codec:?} at {packet_ms} ms");
                let off = (level_dbfs(&heard) - level_dbfs(&plain)).abs();
                assert!(off < 1.5, "{codec:?} at {packet_ms} ms: {off} dB off");
            }
        }
    }

    #[test]
    fn keys_are_looked_for_in_the_sound_from_when_they_are_told_no_other_way() {
        let settings = TurnSettings::default();
        let t0 = Instant::now();
        let mut ingress =
            Ingress::new(t0, Codec::Pcmu, SampleRate::HZ_16000, &settings, false, Detector::Offhook).expect("opens");
        let (mut tone, mut bytes, mut at) = (Vec::new(), Vec::new(), 0);
        append_tone('7', SampleRate::HZ_8000, 800, -12.0, &mut tone);
        tone.resize(1_600, 0);
        let mut press = |ingress: &mut Ingress| {
            let mut keys = String::new();
            for frame in tone.chunks_exact(PACKET) {
                Encoder::new(Codec::Pcmu).encode(frame, &mut bytes);
                let packet = Packet::new(Codec::Pcmu, MediaTime::from_millis(at), &bytes).expect("fits");
                ingress.push(t0 + Duration::from_millis(at), packet);
                keys.extend(ingress.next(t0 + Duration::from_millis(at)).and_then(|judged| judged.key));
                at += 20;
            }
            keys
        };
        assert_eq!(press(&mut ingress), "");
        ingress.listen_for_keys(true);
        assert_eq!(press(&mut ingress), "7");
        ingress.listen_for_keys(false);
        assert_eq!(press(&mut ingress), "");
    }

    #[test]
    fn a_codec_that_changes_in_mid_call_is_followed() {
        let settings = TurnSettings::default();
        let (t0, rate) = (Instant::now(), SampleRate::HZ_16000);
        let mut ingress = Ingress::new(t0, Codec::Pcmu, rate, &settings, true, Detector::Offhook)
            .expect("opens")
            .with_jitter(Some(JitterConfig::RTP));
        let (mut keys, mut bytes) = (String::new(), Vec::new());
        for (part, codec) in [Codec::Pcmu, Codec::G722, Codec::Opus, Codec::Pcma].into_iter().enumerate() {
            let (mut encoder, mut pcm) = (Encoder::new(codec), Vec::new());
            crate::media::dtmf::append_tone('5', codec.rate(), codec.rate().frame_len() * 6, -12.0, &mut pcm);
            pcm.resize(codec.rate().frame_len() * 20, 0);
            for (n, frame) in pcm.chunks_exact(codec.rate().frame_len()).enumerate() {
                let at = 20 * (20 * part + n) as u64;
                let now = t0 + Duration::from_millis(at);
                encoder.encode(frame, &mut bytes);
                ingress.push(now, Packet::new(codec, MediaTime::from_millis(at), &bytes).expect("fits"));
                while let Some(judged) = ingress.next(now) {
                    keys.extend(judged.key);
                }
            }
        }
        assert_eq!(keys, "5555");
    }

    #[test]
    fn a_leg_by_the_clock_is_silent_without_packets_and_never_dead() {
        let settings = TurnSettings::default();
        let (t0, rate) = (Instant::now(), SampleRate::HZ_16000);
        let mut ingress = Ingress::new(t0, Codec::Pcma, rate, &settings, false, Detector::Offhook)
            .expect("opens")
            .with_jitter(Some(JitterConfig::RTP));
        let mut judged = 0;
        for tick in 0..1000 {
            let now = t0 + FRAME * tick;
            while ingress.next(now).is_some() {
                judged += 1;
                assert!(ingress.frame().iter().all(|&sample| sample == 0));
            }
            assert!(matches!(ingress.stalled(now), Ok(None)));
        }
        assert_eq!(judged, 999);
        // A task that stood still for a minute does not judge a minute at once.
        let later = t0 + Duration::from_secs(80);
        assert_eq!(std::iter::from_fn(|| ingress.next(later)).count(), 1);
    }

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
