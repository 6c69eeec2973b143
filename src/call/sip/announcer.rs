//! A voice on a leg that has no agent: the ringing that a caller hears while a person is called, and words that are said
//! to either. Paced by the clock; what comes from the other side is thrown away.

use std::f64::consts::TAU;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use crate::call::reply::Voice;
use crate::conversation::settings::TurnSettings;
use crate::conversation::speakable::Speakable;
use crate::media::codec::Encoder;
use crate::media::frame::{FRAME, MediaTime, SampleRate};
use crate::media::packet::Packet;
use crate::media::resample::Resampler;
use crate::speech::tts::TtsError;
use crate::transport::leg::{Leg, LegCommand, LegEvent};

/// The ringing tone of Ukraine and most of Europe: 425 Hz, a second in five (ITU-T E.180 supplement 2).
const RING_HZ: f64 = 425.0;
const RING_ON: Duration = Duration::from_secs(1);
const RING_EVERY: Duration = Duration::from_secs(5);
/// -20 dBFS.
const RING_LEVEL: f64 = 3_277.0;
/// How long what was said may take to be heard.
const HEARD_LIMIT: Duration = Duration::from_secs(2);
/// Behind its time by more, it goes on from here.
const LATE: Duration = Duration::from_millis(200);

/// Drives one leg. Every method may be dropped half-way: the next one goes on in time.
pub(super) struct Announcer {
    leg: Leg,
    rate: SampleRate,
    encoder: Encoder,
    frame: Vec<i16>,
    encoded: Vec<u8>,
    resampler: Option<(SampleRate, Resampler)>,
    /// Made and not yet sent: less than a frame, or what the voice made at once.
    pending: Vec<i16>,
    due: Instant,
    sent: MediaTime,
    /// Samples of ringing since it began.
    rung: u64,
    marked: u64,
    heard: u64,
    is_open: bool,
}

impl Announcer {
    pub(super) fn new(leg: Leg) -> Self {
        let rate = leg.codec.rate();
        Self {
            rate,
            encoder: Encoder::new(leg.codec),
            frame: Vec::with_capacity(rate.frame_len()),
            encoded: Vec::with_capacity(Packet::MAX),
            resampler: None,
            pending: Vec::new(),
            due: Instant::now(),
            sent: MediaTime::ZERO,
            rung: 0,
            marked: 0,
            heard: 0,
            is_open: true,
            leg,
        }
    }

    /// Rings until it is dropped.
    pub(super) async fn ring(&mut self) {
        loop {
            self.slot().await;
            let (on, every) = (self.rate.samples(RING_ON) as u64, self.rate.samples(RING_EVERY) as u64);
            let step = TAU * RING_HZ / self.rate.samples(Duration::from_secs(1)) as f64;
            self.frame.clear();
            for _ in 0..self.rate.frame_len() {
                let place = self.rung % every;
                let sample = if place < on { (place as f64 * step).sin() * RING_LEVEL } else { 0.0 };
                self.frame.push(sample as i16);
                self.rung += 1;
            }
            self.send();
        }
    }

    /// Says nothing until it is dropped.
    pub(super) async fn listen(&mut self) {
        loop {
            self.slot().await;
            self.due += FRAME;
        }
    }

    /// Says a text and comes back when it has been heard.
    pub(super) async fn say(&mut self, voice: &Voice, text: &str) -> Result<(), TtsError> {
        self.pending.clear();
        let mut speakable = Speakable::new(&TurnSettings::default());
        let mut chunks = speakable.push(text);
        chunks.extend(speakable.finish());
        for chunk in chunks {
            let mut sound = voice.tts.speak(voice.request(&voice.line(&chunk.text)));
            while let Some(chunk) = sound.next().await {
                let chunk = chunk?;
                self.take(chunk.rate, &chunk.samples);
                while self.pending.len() >= self.rate.frame_len() {
                    self.send_pending().await;
                }
            }
        }
        if let Some((_, resampler)) = &mut self.resampler {
            resampler.flush(&mut self.pending);
            resampler.reset();
        }
        while !self.pending.is_empty() {
            self.pending.resize(self.pending.len().max(self.rate.frame_len()), 0);
            self.send_pending().await;
        }
        self.marked += 1;
        let _ = self.leg.commands.try_send(LegCommand::Mark(self.marked));
        let _ = timeout(HEARD_LIMIT, async {
            while self.heard < self.marked && self.is_open {
                self.due = Instant::now() + FRAME;
                self.slot().await;
            }
        })
        .await;
        Ok(())
    }

    fn take(&mut self, rate: SampleRate, samples: &[i16]) {
        if rate == self.rate {
            return self.pending.extend_from_slice(samples);
        }
        if self.resampler.as_ref().is_none_or(|(from, _)| *from != rate) {
            self.resampler = Resampler::new(rate, self.rate).ok().map(|made| (rate, made));
        }
        if let Some((_, resampler)) = &mut self.resampler {
            resampler.push(samples, &mut self.pending);
        }
    }

    async fn send_pending(&mut self) {
        self.slot().await;
        let length = self.rate.frame_len();
        self.frame.clear();
        self.frame.extend(self.pending.drain(..length));
        self.send();
    }

    /// Waits for the time of the next frame; takes what the leg tells meanwhile.
    async fn slot(&mut self) {
        if Instant::now() > self.due + LATE {
            self.due = Instant::now();
        }
        loop {
            tokio::select! {
                biased;
                () = sleep_until(self.due) => return,
                event = self.leg.events.recv(), if self.is_open => match event {
                    Some(LegEvent::Played { mark }) => self.heard = self.heard.max(mark),
                    Some(LegEvent::Ended(_)) | None => self.is_open = false,
                    Some(_) => {}
                },
            }
        }
    }

    /// One frame leaves. A queue that is full is a stuck socket: the frame is lost.
    fn send(&mut self) {
        self.due += FRAME;
        self.encoder.encode(&self.frame, &mut self.encoded);
        if let Some(packet) = Packet::new(self.leg.codec, self.sent, &self.encoded) {
            let _ = self.leg.commands.try_send(LegCommand::Audio(packet));
        }
        self.sent = self.sent + FRAME;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::media::codec::Decoder;
    use crate::media::frame::level_dbfs;
    use crate::media::packet::Codec;
    use crate::speech::scripted::ScriptedSynthesizer;
    use crate::transport::leg::LegSide;

    fn sound_of(side: &mut LegSide, decoder: &mut Decoder) -> Vec<i16> {
        let mut sound = Vec::new();
        while let Ok(command) = side.commands.try_recv() {
            if let LegCommand::Audio(packet) = command {
                decoder.decode(packet.payload(), &mut sound);
            }
        }
        sound
    }

    #[tokio::test(start_paused = true)]
    async fn it_rings_a_second_in_five_however_often_it_is_interrupted() {
        let (leg, mut side) = Leg::pair(Codec::Pcmu);
        let mut announcer = Announcer::new(leg);
        let (mut decoder, mut sound) = (Decoder::new(Codec::Pcmu), Vec::new());
        for _ in 0..600 {
            let _ = timeout(Duration::from_millis(10), announcer.ring()).await;
            sound.extend(sound_of(&mut side, &mut decoder));
        }
        let seconds = |from: usize, to: usize| level_dbfs(&sound[from * 8_000..to * 8_000]);
        assert!((47_000..=48_400).contains(&sound.len()), "{} samples in 6 s", sound.len());
        assert!(
            (-24.0..-22.0).contains(&seconds(0, 1)) && (-24.0..-22.0).contains(&level_dbfs(&sound[40_200..46_800]))
        );
        assert!(seconds(1, 5) < -80.0, "{}", seconds(1, 5));
    }

    #[tokio::test(start_paused = true)]
    async fn words_are_said_at_their_pace_and_heard_to_the_end() {
        let (leg, mut side) = Leg::pair(Codec::Pcma);
        let voice = Voice {
            tts: Arc::new(ScriptedSynthesizer::new(Default::default())),
            language: "en".into(),
            voice: String::new(),
            speed: 1.0,
        };
        let carrier = tokio::spawn(async move {
            let (mut decoder, mut sound) = (Decoder::new(Codec::Pcma), Vec::new());
            while let Some(command) = side.commands.recv().await {
                match command {
                    LegCommand::Audio(packet) => decoder.decode(packet.payload(), &mut sound),
                    LegCommand::Mark(mark) => drop(side.events.send(LegEvent::Played { mark }).await),
                    _ => {}
                }
            }
            sound
        });
        let began = Instant::now();
        let mut announcer = Announcer::new(leg);
        announcer.say(&voice, "A caller for you. It is about the bill.").await.expect("it is said");
        let took = began.elapsed();
        drop(announcer);
        let sound = carrier.await.expect("it ends");
        let length = SampleRate::HZ_8000.duration(sound.len());
        assert!(length > Duration::from_millis(500) && level_dbfs(&sound) > -50.0, "{length:?}");
        assert!(took + FRAME >= length && took < length + HEARD_LIMIT, "{length:?} in {took:?}");
    }
}
