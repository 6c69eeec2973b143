//! What the call has said and has not been sent: cut to the agreed packet length, with silence where there is nothing, and
//! its marks. Pure.
//!
//! When a mark is heard. RTP has no echo of marks, so that it is reckoned: a packet that left at `t` is heard from
//! `t + one way + 40 ms` on, where the way is half of RTCP's round trip (nothing, until RTCP told it) and 40 ms is what a
//! telephone's jitter buffer usually holds. The mark's place within the packet is added. `Clear` takes back what has not
//! been sent, and every mark that is not reported yet.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tracing::debug;

use crate::media::codec::{Decoder, Encoder};
use crate::media::dtmf::append_tone;
use crate::media::packet::{Codec, Packet};
use crate::media::resample::Resampler;
use crate::protocol::rtp::plan::MediaPlan;

/// Jitter buffer of a telephone.
const PEER_BUFFER: Duration = Duration::from_millis(40);
/// Sound that may wait, in ms. A call runs 60 ms ahead; more means that it does not keep time: dropped and counted.
const MAX_WAITING_MS: u64 = 1_000;
/// Marks that wait to be sent or to be heard; the oldest is given up for a new one.
const MAX_MARKS: usize = 256;
/// Keys that wait to be made as tones.
const MAX_KEYS: usize = 64;
/// A key's tones, each at this level: between the -7 and -9 dBm that Q.23 has exchanges send, with room for codecs.
const TONE_DBFS: f32 = -12.0;
const FRAME_MS: u64 = 20;

/// What a packet was filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// Sound of the call, perhaps with silence behind it.
    Sound,
    Silence,
}

pub struct Outgoing {
    codec: Codec,
    ptime_ms: u64,
    /// Encoded, for codecs whose payload can be cut anywhere.
    bytes: VecDeque<u8>,
    /// Encoded by 20 ms, for the others.
    packets: VecDeque<Packet>,
    /// Nothing is sent before: a long packet needs all its sound to be there.
    hold_until: Option<Instant>,
    /// Time of sound pushed and sent since the start, ms.
    pushed_ms: u64,
    sent_ms: u64,
    /// Where the newest packet began.
    packet_ms: u64,
    /// Marks with their place in what was pushed.
    marks: VecDeque<(u64, u64)>,
    /// Marks that were sent, and when they are heard.
    due: VecDeque<(Instant, u64)>,
    silence: Vec<u8>,
    transcoder: Option<Transcoder>,
    tones: Tones,
    dropped: u64,
}

/// From the codec that the call still speaks to the one agreed on since.
struct Transcoder {
    decoder: Decoder,
    resampler: Resampler,
    encoder: Encoder,
    decoded: Vec<i16>,
    frame: Vec<i16>,
    encoded: Vec<u8>,
}

/// Keys made as sound.
struct Tones {
    keys: VecDeque<char>,
    length: Duration,
    pause: Duration,
    encoder: Encoder,
    encoded: Vec<u8>,
}

impl Outgoing {
    pub fn new(plan: &MediaPlan, key: Duration, key_pause: Duration) -> Self {
        let mut silence = Vec::new();
        if plan.codec.silence().is_none() {
            Encoder::new(plan.codec).encode(&vec![0; plan.codec.rate().frame_len()], &mut silence);
        }
        Self {
            codec: plan.codec,
            ptime_ms: plan.ptime.as_millis() as u64,
            bytes: VecDeque::with_capacity(8 * MAX_WAITING_MS as usize),
            packets: VecDeque::new(),
            hold_until: None,
            pushed_ms: 0,
            sent_ms: 0,
            packet_ms: 0,
            marks: VecDeque::with_capacity(MAX_MARKS),
            due: VecDeque::with_capacity(MAX_MARKS),
            silence,
            transcoder: None,
            tones: Tones {
                keys: VecDeque::new(),
                length: key,
                pause: key_pause,
                encoder: Encoder::new(plan.codec),
                encoded: Vec::new(),
            },
            dropped: 0,
        }
    }

    /// Goes on in another codec or packet length. What waits in the old codec is dropped; its marks count as sent.
    pub fn adopt(&mut self, plan: &MediaPlan) {
        if plan.codec == self.codec {
            self.ptime_ms = plan.ptime.as_millis() as u64;
            return;
        }
        let mut new = Self::new(plan, self.tones.length, self.tones.pause);
        new.pushed_ms = self.pushed_ms;
        new.sent_ms = self.pushed_ms;
        new.packet_ms = self.pushed_ms;
        new.marks = std::mem::take(&mut self.marks);
        new.due = std::mem::take(&mut self.due);
        new.tones.keys = std::mem::take(&mut self.tones.keys);
        new.dropped = self.dropped;
        *self = new;
    }

    /// 20 ms of the call, in whatever codec it speaks.
    pub fn push(&mut self, now: Instant, packet: &Packet) {
        if packet.codec == self.codec {
            self.append(now, packet.payload());
        } else if self.transcode(packet) {
            let transcoder = self.transcoder.take();
            if let Some(transcoder) = &transcoder {
                self.append(now, &transcoder.encoded);
            }
            self.transcoder = transcoder;
        }
    }

    fn append(&mut self, now: Instant, payload: &[u8]) {
        let length_ms = self.codec.duration(payload).as_millis() as u64;
        if self.waiting_ms() + length_ms > MAX_WAITING_MS {
            self.dropped += 1;
            return;
        }
        if self.waiting_ms() == 0 {
            // The call runs 60 ms ahead; a tick of it may be late by 40 ms and its sound is there for every packet.
            self.hold_until = Some(now + Duration::from_millis(self.ptime_ms.saturating_sub(FRAME_MS)));
        }
        self.pushed_ms += length_ms;
        match self.codec.bytes_per_ms() {
            Some(_) => self.bytes.extend(payload),
            None => self.packets.extend(Packet::new(self.codec, Default::default(), payload)),
        }
    }

    fn transcode(&mut self, packet: &Packet) -> bool {
        if self.transcoder.as_ref().is_none_or(|transcoder| transcoder.decoder.codec() != packet.codec) {
            let Ok(resampler) = Resampler::new(packet.codec.rate(), self.codec.rate()) else { return false };
            debug!(from = ?packet.codec, to = ?self.codec, "the call's codec is changed on the way out");
            self.transcoder = Some(Transcoder {
                decoder: Decoder::new(packet.codec),
                resampler,
                encoder: Encoder::new(self.codec),
                decoded: Vec::new(),
                frame: Vec::new(),
                encoded: Vec::new(),
            });
        }
        let Some(transcoder) = &mut self.transcoder else { return false };
        transcoder.decoded.clear();
        transcoder.decoder.decode(packet.payload(), &mut transcoder.decoded);
        if transcoder.decoded.len() != packet.codec.rate().frame_len() {
            return false;
        }
        transcoder.frame.clear();
        transcoder.resampler.process_frame(&transcoder.decoded, &mut transcoder.frame);
        transcoder.encoder.encode(&transcoder.frame, &mut transcoder.encoded);
        true
    }

    /// Reports when what was pushed so far has been heard.
    pub fn mark(&mut self, mark: u64) {
        if self.marks.len() == MAX_MARKS {
            self.marks.pop_front();
        }
        self.marks.push_back((mark, self.pushed_ms));
    }

    /// Takes back all that has not left.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.packets.clear();
        // Places go on: what was taken back counts as having left.
        self.sent_ms = self.pushed_ms;
        self.hold_until = None;
        self.marks.clear();
        self.due.clear();
    }

    /// Makes a key as sound, when all before it has been sent. False when it is no key, or too many wait.
    pub fn press(&mut self, key: char) -> bool {
        let room = crate::media::dtmf::is_key(key) && self.tones.keys.len() < MAX_KEYS;
        if room {
            self.tones.keys.push_back(key);
        }
        room
    }

    /// Fills `payload` with the next packet's sound. The stream is silent while a key is pressed.
    pub fn next(&mut self, now: Instant, payload: &mut Vec<u8>) -> Filled {
        payload.clear();
        self.packet_ms = self.sent_ms;
        if self.waiting_ms() == 0
            && let Some(key) = self.tones.keys.pop_front()
        {
            self.append_key(now, key);
        }
        if self.waiting_ms() == 0 || self.hold_until.is_some_and(|until| now < until) {
            self.fill_silence(payload);
            return Filled::Silence;
        }
        self.hold_until = None;
        if let Some(packet) = self.packets.pop_front() {
            payload.extend_from_slice(packet.payload());
            self.sent_ms += packet.duration().as_millis() as u64;
        } else {
            let whole = 8 * self.ptime_ms as usize;
            let taken = self.bytes.len().min(whole);
            payload.extend(self.bytes.drain(..taken));
            self.sent_ms += taken as u64 / 8;
            self.fill_silence(payload);
        }
        Filled::Sound
    }

    /// Completes a packet.
    fn fill_silence(&self, payload: &mut Vec<u8>) {
        match self.codec.silence() {
            Some(codes) => {
                let from = payload.len();
                payload.extend((from..8 * self.ptime_ms as usize).map(|n| codes[n % 2]));
            }
            None => payload.extend_from_slice(&self.silence),
        }
    }

    fn append_key(&mut self, now: Instant, key: char) {
        let rate = self.codec.rate();
        let mut pcm = Vec::new();
        append_tone(key, rate, rate.samples(self.tones.length), TONE_DBFS, &mut pcm);
        pcm.resize(pcm.len() + rate.samples(self.tones.pause), 0);
        pcm.resize(pcm.len().next_multiple_of(rate.frame_len()), 0);
        for frame in pcm.chunks_exact(rate.frame_len()) {
            let mut encoded = std::mem::take(&mut self.tones.encoded);
            self.tones.encoder.encode(frame, &mut encoded);
            self.append(now, &encoded);
            self.tones.encoded = encoded;
        }
    }

    /// A packet filled by [`Outgoing::next`] left (or would have, on hold): marks in it are heard after the way to the
    /// peer.
    pub fn sent(&mut self, now: Instant, one_way: Duration) {
        while let Some((mark, at)) = self.marks.pop_front_if(|(_, at)| *at <= self.sent_ms) {
            let within = Duration::from_millis(at.saturating_sub(self.packet_ms));
            self.due.push_back((now + within + one_way + PEER_BUFFER, mark));
        }
    }

    /// When the next mark has been heard.
    pub fn deadline(&self) -> Option<Instant> {
        self.due.front().map(|(at, _)| *at)
    }

    /// The next mark that has been heard by now.
    pub fn heard(&mut self, now: Instant) -> Option<u64> {
        self.due.pop_front_if(|(at, _)| *at <= now).map(|(_, mark)| mark)
    }

    /// A mark that could not be told yet.
    pub fn put_back(&mut self, now: Instant, mark: u64) {
        self.due.push_front((now + Duration::from_millis(FRAME_MS), mark));
    }

    /// The place behind all that was pushed, and whether everything before a place has left.
    pub fn place(&self) -> u64 {
        self.pushed_ms
    }

    pub fn has_left(&self, place: u64) -> bool {
        self.sent_ms >= place
    }

    /// Packets of the call that were dropped because too much waited.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn waiting_ms(&self) -> u64 {
        self.pushed_ms - self.sent_ms
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::media::frame::MediaTime;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn plan(codec: Codec, ptime_ms: u64) -> MediaPlan {
        MediaPlan {
            remote: Some(SocketAddr::from(([127, 0, 0, 1], 4000))),
            remote_rtcp: None,
            rtcp_mux: true,
            codec,
            payload_type: 96,
            accepts: vec![(96, codec)],
            keys: None,
            comfort_noise: None,
            ptime: ms(ptime_ms),
            sends: true,
            receives: true,
            srtp: None,
        }
    }

    fn outgoing(codec: Codec, ptime_ms: u64) -> Outgoing {
        Outgoing::new(&plan(codec, ptime_ms), ms(100), ms(60))
    }

    fn frame(codec: Codec, fill: u8) -> Packet {
        Packet::new(codec, MediaTime::ZERO, &[fill; 160]).expect("20 ms fit")
    }

    /// Packets that leave from `from` on, one each `ptime`: bytes of sound in each.
    fn leave(outgoing: &mut Outgoing, from: Instant, count: u32, ptime: Duration) -> Vec<usize> {
        let mut payload = Vec::new();
        (0..count)
            .map(|n| {
                outgoing.next(from + ptime * n, &mut payload);
                assert_eq!(payload.len(), 8 * ptime.as_millis() as usize);
                outgoing.sent(from + ptime * n, Duration::ZERO);
                payload.iter().filter(|byte| **byte == 7).count()
            })
            .collect()
    }

    #[test]
    fn sound_is_cut_to_the_agreed_length_and_completed_with_silence() {
        let t0 = Instant::now();
        for (ptime, expected) in
            [(10, vec![80; 6]), (20, vec![160, 160, 160]), (30, vec![0, 240, 240]), (40, vec![0, 320, 160])]
        {
            let mut outgoing = outgoing(Codec::Pcma, ptime);
            for _ in 0..3 {
                outgoing.push(t0, &frame(Codec::Pcma, 7));
            }
            let sound = leave(&mut outgoing, t0, 8, ms(ptime));
            assert_eq!(sound[..expected.len()], expected, "{ptime} ms");
            assert!(sound[expected.len()..].iter().all(|bytes| *bytes == 0));
        }
    }

    #[test]
    fn a_long_packet_waits_until_its_sound_can_be_there() {
        let t0 = Instant::now();
        let mut outgoing = outgoing(Codec::Pcma, 60);
        outgoing.push(t0, &frame(Codec::Pcma, 7));
        let mut payload = Vec::new();
        assert_eq!(outgoing.next(t0 + ms(5), &mut payload), Filled::Silence);
        outgoing.push(t0 + ms(5), &frame(Codec::Pcma, 7));
        outgoing.push(t0 + ms(6), &frame(Codec::Pcma, 7));
        assert_eq!(outgoing.next(t0 + ms(39), &mut payload), Filled::Silence);
        assert_eq!(leave(&mut outgoing, t0 + ms(40), 2, ms(60)), [480, 0]);
    }

    #[test]
    fn marks_are_heard_after_their_sound_and_the_way() {
        let t0 = Instant::now();
        let mut outgoing = outgoing(Codec::Pcmu, 20);
        let mut payload = Vec::new();
        for mark in [1, 2] {
            outgoing.push(t0, &frame(Codec::Pcmu, 7));
            outgoing.mark(mark);
        }
        for n in 0..2 {
            outgoing.next(t0 + ms(20) * n, &mut payload);
            outgoing.sent(t0 + ms(20) * n, ms(30));
        }
        // Sent at 0 and 20, 20 ms long, 30 ms under way, 40 ms in the telephone.
        assert_eq!(outgoing.deadline(), Some(t0 + ms(90)));
        assert_eq!(outgoing.heard(t0 + ms(89)), None);
        assert_eq!(outgoing.heard(t0 + ms(109)), Some(1));
        assert_eq!(outgoing.heard(t0 + ms(109)), None);
        assert_eq!(outgoing.heard(t0 + ms(110)), Some(2));
        // Behind all sound: at the next packet, whatever it holds.
        outgoing.mark(3);
        outgoing.next(t0 + ms(120), &mut payload);
        outgoing.sent(t0 + ms(120), Duration::ZERO);
        assert_eq!(outgoing.heard(t0 + ms(160)), Some(3));
    }

    #[test]
    fn a_clear_takes_back_all_that_has_not_left_and_its_marks() {
        let t0 = Instant::now();
        let mut outgoing = outgoing(Codec::Pcmu, 20);
        for mark in 0..3 {
            outgoing.push(t0, &frame(Codec::Pcmu, 7));
            outgoing.mark(mark);
        }
        assert_eq!(leave(&mut outgoing, t0, 1, ms(20)), [160]);
        outgoing.clear();
        assert_eq!(leave(&mut outgoing, t0 + ms(20), 2, ms(20)), [0, 0]);
        assert_eq!(outgoing.heard(t0 + ms(10_000)), None);
        outgoing.push(t0 + ms(60), &frame(Codec::Pcmu, 7));
        assert_eq!(leave(&mut outgoing, t0 + ms(60), 1, ms(20)), [160]);
    }

    #[test]
    fn what_a_call_says_too_fast_is_dropped() {
        let t0 = Instant::now();
        let mut outgoing = outgoing(Codec::Pcmu, 20);
        for _ in 0..80 {
            outgoing.push(t0, &frame(Codec::Pcmu, 7));
        }
        assert_eq!(outgoing.dropped(), 30);
        assert_eq!(leave(&mut outgoing, t0, 51, ms(20)).iter().filter(|sound| **sound > 0).count(), 50);
    }

    #[test]
    fn opus_leaves_as_it_was_made_and_is_silent_in_between() {
        let t0 = Instant::now();
        let mut outgoing = outgoing(Codec::Opus, 20);
        let (mut encoded, mut payload) = (Vec::new(), Vec::new());
        Encoder::new(Codec::Opus).encode(&[500; 320], &mut encoded);
        outgoing.push(t0, &Packet::new(Codec::Opus, MediaTime::ZERO, &encoded).expect("fits"));
        assert_eq!(outgoing.next(t0, &mut payload), Filled::Sound);
        assert_eq!(payload, encoded);
        assert_eq!(outgoing.next(t0 + ms(20), &mut payload), Filled::Silence);
        assert_eq!(Codec::Opus.duration(&payload), ms(20));
    }

    #[test]
    fn a_call_that_speaks_another_codec_is_understood() {
        let t0 = Instant::now();
        for (from, to) in [(Codec::Pcmu, Codec::G722), (Codec::G722, Codec::Pcma), (Codec::Pcma, Codec::Opus)] {
            let mut outgoing = outgoing(from, 20);
            outgoing.push(t0, &frame(from, 7));
            outgoing.mark(1);
            outgoing.adopt(&plan(to, 20));
            let (mut encoder, mut bytes, mut pcm) = (Encoder::new(from), Vec::new(), Vec::new());
            append_tone('5', from.rate(), from.rate().frame_len() * 10, -12.0, &mut pcm);
            let (mut decoder, mut heard, mut payload) = (Decoder::new(to), Vec::new(), Vec::new());
            for (n, samples) in pcm.chunks_exact(from.rate().frame_len()).enumerate() {
                let now = t0 + ms(20 * n as u64);
                encoder.encode(samples, &mut bytes);
                outgoing.push(now, &Packet::new(from, MediaTime::ZERO, &bytes).expect("fits"));
                assert_eq!(outgoing.next(now, &mut payload), Filled::Sound);
                outgoing.sent(now, Duration::ZERO);
                decoder.decode(&payload, &mut heard);
            }
            assert_eq!(heard.len(), 10 * to.rate().frame_len());
            let level = crate::media::frame::level_dbfs(&heard[heard.len() / 2..]);
            assert!((-12.0..-6.0).contains(&level), "{from:?} to {to:?}: {level} dBFS");
            assert_eq!(outgoing.heard(t0 + ms(500)), Some(1), "a mark outlives its codec");
        }
    }

    #[test]
    fn keys_without_telephone_events_are_tones() {
        use crate::media::dtmf::DtmfDetector;
        let t0 = Instant::now();
        let mut outgoing = outgoing(Codec::Pcma, 20);
        assert!("12#".chars().all(|key| outgoing.press(key)) && !outgoing.press('x'));
        let (mut decoder, mut pcm, mut payload, mut keys) =
            (Decoder::new(Codec::Pcma), Vec::new(), Vec::new(), String::new());
        for n in 0..40 {
            outgoing.next(t0 + ms(20) * n, &mut payload);
            decoder.decode(&payload, &mut pcm);
        }
        DtmfDetector::new().push(&pcm, |key| keys.push(key));
        assert_eq!(keys, "12#");
    }
}
