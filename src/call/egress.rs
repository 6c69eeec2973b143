//! The agent's way out: sound from the engine, at any rate, becomes packets that leave on time; and the ledger that
//! knows which words of it the caller has heard.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use metrics::counter;
use tokio::sync::mpsc;

use crate::call::recorder::Recorder;
use crate::conversation::spoken::Spoken;
use crate::media::codec::Encoder;
use crate::media::dtmf::append_tone;
use crate::media::frame::{FRAME, Frame, MediaTime, SampleRate};
use crate::media::packet::{Codec, Packet};
use crate::media::playout::{ClipId, Playout, Sent};
use crate::media::resample::Resampler;
use crate::speech::tts::SpeechChunk;
use crate::transport::leg::LegCommand;

/// How far ahead of real time frames leave: the carrier bridges our jitter with it, and an interruption throws it away.
const LEAD: Duration = Duration::from_millis(60);
/// A mark every 200 ms of sound, and at the end of each clause.
const MARK_EVERY: u32 = 10;
/// A frame below this is not heard as speech.
const AUDIBLE_DBFS: f32 = -45.0;
/// Frames after which a reply counts as audible however soft it is.
const SOFT_FRAMES: u32 = 5;

/// A carrier that has not echoed a mark so long after its sound was over does not echo marks.
const ECHO: Duration = Duration::from_secs(1);
/// The latest echo of a telephone line, with the network both ways.
const ECHO_REACH: Duration = Duration::from_millis(450);
const ECHO_FRAMES: usize = (ECHO_REACH.as_millis() / FRAME.as_millis()) as usize;
/// A key for the other side: well above the 40 ms of ITU-T Q.24, and its level with room for codecs.
const KEY: Duration = Duration::from_millis(100);
const KEY_PAUSE: Duration = Duration::from_millis(80);
const KEY_DBFS: f32 = -12.0;
/// Speech that a character usually takes.
const PER_CHARACTER: Duration = Duration::from_millis(60);

/// What playout reports while it sends.
#[derive(Clone, Debug, PartialEq)]
pub enum Played {
    /// The first audible frame of a reply left.
    Audible,
    /// A clause begins to play.
    Clause { text: String },
}

struct Clause {
    clip: ClipId,
    line: Spoken,
    samples: usize,
    announced: bool,
}

pub struct Egress {
    codec: Codec,
    playout: Playout,
    clauses: VecDeque<Clause>,
    clips: u64,
    open: Option<ClipId>,
    resampler: Option<(SampleRate, Resampler)>,
    resampled: Vec<i16>,
    frame: Frame,
    encoder: Encoder,
    encoded: Vec<u8>,
    /// To the recording's 8 kHz, where the leg has more.
    narrow: Option<(Resampler, Vec<i16>)>,
    held: bool,
    /// The other side holds the call: nothing leaves, whatever becomes of replies meanwhile.
    on_hold: bool,
    /// When the next frame is to sound; `None` while nothing plays.
    due: Option<Instant>,
    sent: MediaTime,
    frames_since_mark: u32,
    frames: u32,
    audible: bool,
    /// When the newest frames sound and how loud they are.
    loudness: VecDeque<(Instant, f32)>,
    /// The newest mark that was sent, and the newest that came back.
    marked: u64,
    echoed: u64,
    /// The clause whose sound is being sent.
    playing: Option<ClipId>,
    /// The newest clause that was sent to its end.
    ended: Option<ClipId>,
    keys: Keys,
}

/// Keys that wait to be pressed for the other side.
#[derive(Default)]
struct Keys {
    /// The clause that they come behind.
    behind: Option<ClipId>,
    /// For a carrier that presses keys itself.
    carrier: VecDeque<char>,
    /// Their tones, for one that does not.
    sound: VecDeque<i16>,
}

impl Egress {
    pub fn new(codec: Codec) -> Self {
        Self {
            codec,
            playout: Playout::new(codec.rate()),
            clauses: VecDeque::new(),
            clips: 0,
            open: None,
            resampler: None,
            resampled: Vec::new(),
            frame: Frame::silence(codec.rate()),
            encoder: Encoder::new(codec),
            narrow: (codec.rate() != SampleRate::HZ_8000)
                .then(|| Resampler::new(codec.rate(), SampleRate::HZ_8000).ok())
                .flatten()
                .map(|made| (made, Vec::with_capacity(2 * SampleRate::HZ_8000.frame_len()))),
            encoded: Vec::with_capacity(Packet::MAX),
            held: false,
            on_hold: false,
            due: None,
            sent: MediaTime::ZERO,
            frames_since_mark: 0,
            frames: 0,
            audible: false,
            loudness: VecDeque::with_capacity(2 * ECHO_FRAMES),
            marked: 0,
            echoed: 0,
            playing: None,
            ended: None,
            keys: Keys::default(),
        }
    }

    /// Sound for this clause follows.
    pub fn begin(&mut self, line: Spoken) {
        self.end_clause();
        self.clips += 1;
        let clip = ClipId(self.clips);
        self.playout.begin(clip);
        self.clauses.push_back(Clause { clip, line, samples: 0, announced: false });
        self.open = Some(clip);
    }

    pub fn sound(&mut self, chunk: &SpeechChunk) {
        if self.open.is_none() {
            return;
        }
        self.resampled.clear();
        if chunk.rate == self.codec.rate() {
            self.resampled.extend_from_slice(&chunk.samples);
        } else {
            if self.resampler.as_ref().is_none_or(|(rate, _)| *rate != chunk.rate) {
                self.resampler = Resampler::new(chunk.rate, self.codec.rate()).ok().map(|made| (chunk.rate, made));
            }
            let Some((_, resampler)) = &mut self.resampler else {
                counter!("offhook_frames_dropped_total", "where" => "egress").increment(1);
                return;
            };
            resampler.push(&chunk.samples, &mut self.resampled);
        }
        self.queue();
    }

    /// The open clause is complete.
    pub fn end_clause(&mut self) {
        let Some(clip) = self.open else { return };
        if let Some((_, resampler)) = &mut self.resampler {
            self.resampled.clear();
            resampler.flush(&mut self.resampled);
            resampler.reset();
            self.queue();
        }
        self.playout.finish(clip);
        self.open = None;
        if let Some(place) = self.clauses.iter().position(|clause| clause.clip == clip && clause.samples == 0) {
            self.playout.drop_clip_tail(clip);
            self.clauses.remove(place);
        }
    }

    fn queue(&mut self) {
        let Some(clip) = self.open else { return };
        let refused = self.playout.push(clip, &self.resampled);
        if refused > 0 {
            counter!("offhook_frames_dropped_total", "where" => "playout")
                .increment((refused / self.codec.rate().frame_len()) as u64);
        }
        if let Some(clause) = self.clauses.back_mut() {
            clause.samples += self.resampled.len() - refused;
        }
    }

    /// Presses keys for the other side, when all words before them have left; a caller who speaks does not stop them.
    /// `by_carrier`: the leg has a means for it; else they are made as tones.
    pub fn press(&mut self, keys: &str, by_carrier: bool) {
        self.keys.behind = self.clauses.back().map(|clause| clause.clip);
        if by_carrier {
            self.keys.carrier.extend(keys.chars());
            return;
        }
        let rate = self.codec.rate();
        let mut tones = Vec::new();
        for key in keys.chars() {
            append_tone(key, rate, rate.samples(KEY), KEY_DBFS, &mut tones);
            tones.resize(tones.len() + rate.samples(KEY_PAUSE), 0);
        }
        self.keys.sound.extend(tones);
    }

    /// Whether the words before the keys have left, or are to be heard no more.
    fn keys_are_due(&self) -> bool {
        let Some(behind) = self.keys.behind else { return true };
        self.playout.is_idle() || self.playout.is_paused() || self.ended.is_some_and(|ended| ended >= behind)
    }

    /// What comes is kept and not played: the turn is not confirmed yet.
    pub fn hold(&mut self) {
        self.held = true;
    }

    pub fn release(&mut self) {
        self.held = false;
    }

    /// Sound that waits to be sent.
    pub fn queued(&self) -> Duration {
        self.playout.queued()
    }

    /// Sends every frame that is due, `LEAD` ahead of the moment in which it sounds.
    pub fn pump(
        &mut self,
        now: Instant,
        commands: &mpsc::Sender<LegCommand>,
        recorder: &mut Recorder,
        played: &mut Vec<Played>,
    ) {
        if self.on_hold {
            return;
        }
        if self.keys_are_due() {
            for key in self.keys.carrier.drain(..) {
                send(commands, LegCommand::Key(key));
            }
        }
        loop {
            // Idle until now: the first frame leaves at once and the clock runs from it.
            let due = self.due.map_or(now, |due| due.max(now));
            if due >= now + LEAD {
                return;
            }
            let is_key = !self.keys.sound.is_empty() && self.keys_are_due();
            let ended = if is_key {
                self.key_frame();
                None
            } else if self.held {
                return;
            } else {
                let Sent::Audio { ended, .. } = self.playout.next_frame(now, &mut self.frame) else {
                    return;
                };
                self.announce(ended, played);
                self.frames += 1;
                if !self.audible && (self.frame.level_dbfs() > AUDIBLE_DBFS || self.frames >= SOFT_FRAMES) {
                    self.audible = true;
                    played.push(Played::Audible);
                }
                ended
            };
            self.due = Some(due + FRAME);
            if self.loudness.len() == 2 * ECHO_FRAMES {
                self.loudness.pop_front();
            }
            self.loudness.push_back((due, self.frame.level_dbfs()));
            match &mut self.narrow {
                None => recorder.agent(due, &self.frame.samples),
                Some((to_narrow, samples)) => {
                    samples.clear();
                    to_narrow.process_frame(&self.frame.samples, samples);
                    recorder.agent(due, samples);
                }
            }
            self.encoder.encode(&self.frame.samples, &mut self.encoded);
            if let Some(packet) = Packet::new(self.codec, self.sent, &self.encoded) {
                send(commands, LegCommand::Audio(packet));
            }
            self.sent = self.sent + FRAME;
            if is_key {
                continue;
            }
            self.frames_since_mark += 1;
            if self.frames_since_mark >= MARK_EVERY || ended.is_some() {
                self.frames_since_mark = 0;
                self.marked = self.playout.mark(now);
                send(commands, LegCommand::Mark(self.marked));
            }
        }
    }

    /// The next 20 ms of the keys' tones.
    fn key_frame(&mut self) {
        let wanted = self.codec.rate().frame_len();
        let taken = wanted.min(self.keys.sound.len());
        self.frame.rate = self.codec.rate();
        self.frame.samples.clear();
        self.frame.samples.extend(self.keys.sound.drain(..taken));
        self.frame.samples.resize(wanted, 0);
    }

    /// Reports the clause that this frame begins.
    fn announce(&mut self, ended: Option<ClipId>, played: &mut Vec<Played>) {
        if self.playing.is_none()
            && let Some(clause) = self.clauses.iter_mut().find(|clause| !clause.announced)
        {
            clause.announced = true;
            self.playing = Some(clause.clip);
            played.push(Played::Clause { text: clause.line.written().to_owned() });
        }
        self.ended = ended.or(self.ended);
        if ended.is_some_and(|ended| self.playing.is_some_and(|playing| ended >= playing)) {
            self.playing = None;
        }
    }

    pub fn on_played(&mut self, now: Instant, mark: u64) {
        self.echoed = self.echoed.max(mark);
        self.playout.on_played(now, mark);
    }

    /// Stands still at once: the carrier is told to drop what it holds, and nothing is lost. Returns the moment up to
    /// which the caller heard.
    pub fn pause(&mut self, now: Instant, commands: &mpsc::Sender<LegCommand>) -> Instant {
        if !self.playout.is_paused() {
            self.playout.pause(now);
            self.due = None;
            send(commands, LegCommand::Clear);
        }
        now
    }

    /// Goes on where the caller stopped hearing.
    pub fn resume(&mut self, now: Instant) {
        self.playout.resume(now);
    }

    /// Stands still until `unhold`, also with a reply that begins meanwhile.
    pub fn hold_line(&mut self, now: Instant, commands: &mpsc::Sender<LegCommand>) -> Instant {
        self.on_hold = true;
        self.pause(now, commands)
    }

    pub fn unhold_line(&mut self, now: Instant) {
        self.on_hold = false;
        self.resume(now);
    }

    /// Drops everything and returns the words that were heard, and the moment up to which.
    pub fn cancel(&mut self, now: Instant, commands: &mpsc::Sender<LegCommand>) -> (String, Instant) {
        if !self.playout.is_paused() {
            send(commands, LegCommand::Clear);
        }
        let mut words: Vec<&str> = Vec::new();
        for heard in self.playout.cancel(now) {
            let Some(clause) = self.clauses.iter().find(|clause| clause.clip == heard.clip) else { continue };
            // A clause that is still being made is at least as long as its words usually take.
            let usual = if heard.finished {
                0
            } else {
                self.codec.rate().samples(PER_CHARACTER) * clause.line.said().chars().count()
            };
            let share = heard.heard_samples as f32 / heard.total_samples.max(usual as u64).max(1) as f32;
            let text = if heard.complete() { clause.line.written() } else { clause.line.heard(share) };
            if !text.trim().is_empty() {
                words.push(text.trim());
            }
        }
        let words = words.join(" ");
        self.reset();
        (words, now)
    }

    /// Forgets a reply of which nothing is left to be heard, or that never was to be heard.
    pub fn discard(&mut self, now: Instant) {
        self.playout.cancel(now);
        self.reset();
    }

    fn reset(&mut self) {
        self.clauses.clear();
        self.open = None;
        self.playing = None;
        self.keys.behind = None;
        self.due = None;
        self.held = false;
        self.frames = 0;
        self.audible = false;
        if let Some((_, resampler)) = &mut self.resampler {
            resampler.reset();
        }
    }

    /// Whether the caller hears the agent now, or is about to.
    pub fn is_sounding(&self, now: Instant) -> bool {
        !self.held && !self.playout.is_paused() && !self.playout.is_heard(now)
    }

    /// The loudest that the agent has been within the reach of an echo, dBFS; -96 when it was silent.
    pub fn loudest(&self, now: Instant) -> f32 {
        let recent = self.loudness.iter().filter(|(at, _)| *at <= now && *at + ECHO_REACH >= now);
        recent.map(|(_, level)| *level).fold(-96.0, f32::max)
    }

    /// Everything given to it has been heard: the carrier has echoed the last mark, or had ample time to.
    pub fn is_over(&self, now: Instant) -> bool {
        let echoed = self.echoed >= self.marked || self.due.is_none_or(|due| now > due + ECHO);
        let pressed = self.keys.sound.is_empty() && self.keys.carrier.is_empty();
        let quiet = self.open.is_none() && self.playout.is_heard(now) && echoed;
        !self.held && !self.playout.is_paused() && quiet && pressed
    }
}

fn send(commands: &mpsc::Sender<LegCommand>, command: LegCommand) {
    if commands.try_send(command).is_err() {
        counter!("offhook_frames_dropped_total", "where" => "leg_out").increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::recorder::{Archive, RecordingConfig};
    use crate::media::dtmf::DtmfDetector;
    use crate::media::g711;
    use crate::telephony::CallId;

    /// What an egress sent while `script` was acted on, tick by tick: the keys that are heard in it, the keys that the
    /// carrier was told to press, and the tick at which the first of either came.
    fn sent(ticks: usize, mut script: impl FnMut(usize, &mut Egress, &mpsc::Sender<LegCommand>, Instant)) -> Sound {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = RecordingConfig { enabled: false, dir: folder.path().into() };
        let (archive, _thread) = Archive::start(config).expect("starts");
        let begun = Instant::now();
        let mut recorder = archive.recorder(CallId::new(), begun);
        let mut egress = Egress::new(Codec::Pcmu);
        let (commands, mut taken) = mpsc::channel(64);
        let (mut detector, mut played, mut pcm) = (DtmfDetector::new(), Vec::new(), Vec::new());
        let mut sound = Sound::default();
        for tick in 0..ticks {
            let now = begun + FRAME * tick as u32;
            script(tick, &mut egress, &commands, now);
            egress.pump(now, &commands, &mut recorder, &mut played);
            while let Ok(command) = taken.try_recv() {
                match command {
                    LegCommand::Audio(packet) => {
                        g711::decode_into(Codec::Pcmu, packet.payload(), &mut pcm);
                        detector.push(&pcm, |key| sound.heard.push(key));
                    }
                    LegCommand::Key(key) => sound.pressed.push(key),
                    LegCommand::Mark(mark) => egress.on_played(now, mark),
                    LegCommand::Clear => {}
                }
            }
            if sound.first.is_none() && !(sound.heard.is_empty() && sound.pressed.is_empty()) {
                sound.first = Some(tick);
            }
        }
        sound.over = egress.is_over(begun + FRAME * ticks as u32 + ECHO * 2);
        sound
    }

    #[derive(Default)]
    struct Sound {
        heard: String,
        pressed: String,
        first: Option<usize>,
        over: bool,
    }

    fn say(egress: &mut Egress, ms: usize) {
        egress.begin("One moment.".into());
        egress.sound(&SpeechChunk { rate: SampleRate::HZ_8000, samples: vec![1000; 8 * ms] });
        egress.end_clause();
    }

    #[test]
    fn keys_are_made_as_tones_behind_the_words_before_them_and_before_those_after() {
        let sound = sent(300, |tick, egress, _, _| {
            if tick == 0 {
                say(egress, 1000);
                egress.press("12#*0", false);
                say(egress, 1000);
            }
        });
        assert_eq!((sound.heard.as_str(), sound.pressed.as_str(), sound.over), ("12#*0", "", true));
        assert!(sound.first.is_some_and(|tick| (45..60).contains(&tick)), "{:?}", sound.first);
    }

    #[test]
    fn a_carrier_that_presses_keys_gets_them_when_the_words_before_have_left() {
        let sound = sent(100, |tick, egress, _, _| {
            if tick == 0 {
                say(egress, 1000);
                egress.press("42", true);
            }
        });
        assert_eq!((sound.heard.as_str(), sound.pressed.as_str(), sound.over), ("", "42", true));
        assert!(sound.first.is_some_and(|tick| tick >= 45), "{:?}", sound.first);
    }

    #[test]
    fn a_caller_who_speaks_does_not_stop_keys() {
        let sound = sent(200, |tick, egress, commands, now| match tick {
            0 => egress.press("7", false),
            2 => {
                egress.pause(now, commands);
            }
            20 | 40 => drop(egress.cancel(now, commands)),
            30 => {
                say(egress, 2000);
                egress.press("89", false);
            }
            _ => {}
        });
        assert_eq!(sound.heard, "789");
    }
}
