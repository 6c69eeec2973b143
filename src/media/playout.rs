//! What waits to be said, what has gone to the carrier, and what the caller has heard of it. Clips are played in the order
//! of their `begin`, joined without a seam. Barge-in is reversible: what was sent but not heard is kept, and `resume` goes
//! on at the first sample that the caller missed. Sockets, encoding and pacing are the caller's; `now` comes from outside.
//!
//! The ledger. A carrier plays what it gets in real time: a frame sounds when it is sent, or when the one before it ends.
//! That gives each sent sample its time. An echoed mark says when its position had really been played; from then on the
//! whole schedule is taken to lag by the difference (network, the carrier's buffer, the echo's way back).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::media::frame::{FRAME, Frame, SampleRate};

/// Audio that may wait to be sent, over all clips.
pub const MAX_QUEUED: Duration = Duration::from_secs(60);
/// Sent audio that is kept, so that a pause can take back what was not heard. Carriers hold far less.
const HISTORY: Duration = Duration::from_secs(5);
/// Clips known at a time. Past it the oldest that is over is forgotten; when none is over, new ones are refused.
const MAX_CLIPS: usize = 64;
/// Marks under way. A carrier that echoes none must not make us hold more.
const MAX_MARKS: usize = 256;
/// Ramp at a cut or a start in the middle of sound: short enough to go unnoticed, long enough not to click.
const FADE: Duration = Duration::from_millis(5);

/// One utterance given to playout; numbered by the caller, never reused within a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClipId(pub u64);

/// A place in all clip audio of the call, in samples. Silence between clips does not count. It grows, except that a
/// pause takes it back to what was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position(u64);

impl Position {
    pub const fn samples(self) -> u64 {
        self.0
    }
}

/// What [`Playout::next_frame`] put into the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Clip audio, perhaps with silence after it. `ended`: the last clip that ends in this frame; a good place for a mark.
    Audio { sent: Position, ended: Option<ClipId> },
    /// A clip is open and has nothing to play: silence.
    Starved,
    /// Nothing to say: silence.
    Idle,
    /// Paused: silence.
    Paused,
}

/// How much of a clip the caller has heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeardClip {
    pub clip: ClipId,
    pub heard_samples: u64,
    /// Samples the clip has, heard or not, so far.
    pub total_samples: u64,
    /// Whether `total_samples` is final.
    pub finished: bool,
    rate: SampleRate,
}

impl HeardClip {
    pub fn heard(&self) -> Duration {
        self.rate.duration(self.heard_samples as usize)
    }

    pub fn total(&self) -> Duration {
        self.rate.duration(self.total_samples as usize)
    }

    pub fn complete(&self) -> bool {
        self.finished && self.heard_samples == self.total_samples
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlayoutCounters {
    /// Holes in the middle of a clip: synthesis was slower than speech.
    pub underruns: u64,
    /// Ticks on which an open clip had nothing to play, before its first sample or in a hole.
    pub starved_frames: u64,
    /// Samples refused because [`MAX_QUEUED`] was reached.
    pub refused_samples: u64,
    /// Echoes of marks that no longer count, or that were never made.
    pub void_marks: u64,
}

struct Clip {
    id: ClipId,
    /// Samples `first..total` of the clip.
    samples: VecDeque<i16>,
    first: u64,
    total: u64,
    sent: u64,
    /// Position of its first sample, once that was sent.
    start: Option<u64>,
    finished: bool,
    in_hole: bool,
    forgotten: bool,
}

impl Clip {
    fn unsent(&self) -> usize {
        (self.total - self.sent) as usize
    }

    fn is_over(&self) -> bool {
        self.finished && self.sent == self.total
    }

    fn heard_up_to(&self, position: u64) -> u64 {
        self.start.map_or(0, |start| position.saturating_sub(start).min(self.sent))
    }

    /// Keeps a faded 5 ms of what was not sent and ends there.
    fn cut(&mut self, fade: usize) {
        let tail = self.unsent().min(fade);
        let from = (self.sent - self.first) as usize;
        self.samples.truncate(from + tail);
        self.total = self.sent + tail as u64;
        self.finished = true;
        for (n, sample) in self.samples.range_mut(from..).enumerate() {
            *sample = scaled(*sample, tail - n, tail + 1);
        }
    }
}

/// A sent frame in the carrier's hands: when it sounds, where its audio begins, how many of its samples are audio.
struct Sounding {
    at: Instant,
    position: u64,
    samples: usize,
}

struct Mark {
    number: u64,
    position: u64,
}

/// One per call, at the leg's rate.
pub struct Playout {
    rate: SampleRate,
    fade: usize,
    clips: VecDeque<Clip>,
    queued: usize,
    sent: u64,
    paused: bool,
    /// Samples of a fade-in still to come.
    fading_in: usize,
    schedule: VecDeque<Sounding>,
    /// When the carrier will have played all it got.
    busy_until: Option<Instant>,
    /// Heard for certain: acknowledged, or established by a pause.
    floor: u64,
    lag: Duration,
    marks: VecDeque<Mark>,
    last_mark: u64,
    counters: PlayoutCounters,
}

impl Playout {
    pub fn new(rate: SampleRate) -> Self {
        Self {
            rate,
            fade: rate.samples(FADE),
            clips: VecDeque::with_capacity(MAX_CLIPS),
            queued: 0,
            sent: 0,
            paused: false,
            fading_in: 0,
            schedule: VecDeque::with_capacity(history_frames() + 1),
            busy_until: None,
            floor: 0,
            lag: Duration::ZERO,
            marks: VecDeque::with_capacity(MAX_MARKS),
            last_mark: 0,
            counters: PlayoutCounters::default(),
        }
    }

    pub fn rate(&self) -> SampleRate {
        self.rate
    }

    pub fn counters(&self) -> PlayoutCounters {
        self.counters
    }

    /// Opens a clip behind those already there. Several may be open; each waits for the one before it to be finished.
    pub fn begin(&mut self, clip: ClipId) {
        self.prune();
        if self.clips.len() == MAX_CLIPS {
            let Some(over) = self.clips.iter().position(Clip::is_over) else { return };
            self.clips.remove(over);
        }
        if self.clip(clip).is_none() {
            self.clips.push_back(Clip {
                id: clip,
                samples: VecDeque::new(),
                first: 0,
                total: 0,
                sent: 0,
                start: None,
                finished: false,
                in_hole: false,
                forgotten: false,
            });
        }
    }

    /// Appends to an open clip and returns how many samples were not taken: those above [`MAX_QUEUED`], or all when the
    /// clip is not open (finished, cut or cancelled).
    pub fn push(&mut self, clip: ClipId, samples: &[i16]) -> usize {
        let room = self.rate.samples(MAX_QUEUED) - self.queued;
        let Some(clip) = self.clip(clip).filter(|clip| !clip.finished) else { return samples.len() };
        let taken = &samples[..samples.len().min(room)];
        clip.samples.extend(taken);
        clip.total += taken.len() as u64;
        self.queued += taken.len();
        self.counters.refused_samples += (samples.len() - taken.len()) as u64;
        samples.len() - taken.len()
    }

    /// No more samples will come.
    pub fn finish(&mut self, clip: ClipId) {
        if let Some(clip) = self.clip(clip) {
            clip.finished = true;
        }
    }

    /// Nothing is left to send and no clip is open. The caller may still be hearing the end: see [`Playout::is_heard`].
    pub fn is_idle(&self) -> bool {
        self.clips.iter().all(Clip::is_over)
    }

    /// Idle, and the caller has heard all of it.
    pub fn is_heard(&self, now: Instant) -> bool {
        self.is_idle() && self.heard(now).0 == self.sent
    }

    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Audio not yet sent.
    pub fn queued(&self) -> Duration {
        self.rate.duration(self.queued)
    }

    /// What has been sent.
    pub fn sent(&self) -> Position {
        Position(self.sent)
    }

    /// Ends a clip 5 ms after what was sent of it, faded out. Clips behind it follow.
    pub fn drop_clip_tail(&mut self, clip: ClipId) {
        let fade = self.fade;
        if let Some(clip) = self.clip(clip) {
            if clip.sent == 0 {
                let id = clip.id;
                self.clips.retain(|clip| clip.id != id);
            } else if clip.unsent() > 0 || !clip.finished {
                clip.cut(fade);
            }
        }
        self.recount();
    }

    /// Ends what is playing as [`Playout::drop_clip_tail`] does and drops all clips behind it.
    pub fn clear_queue(&mut self) {
        self.clips.retain(|clip| clip.sent > 0);
        let fade = self.fade;
        for clip in self.clips.iter_mut().filter(|clip| !clip.is_over()) {
            clip.cut(fade);
        }
        self.recount();
    }

    /// Fills `frame` with the next 20 ms. Call once a tick, or oftener at first to send ahead. A frame that holds no audio
    /// need not be sent; if it is, say so with [`Playout::silence_sent`].
    pub fn next_frame(&mut self, now: Instant, frame: &mut Frame) -> Sent {
        frame.rate = self.rate;
        if self.paused {
            frame.fill_silence();
            return Sent::Paused;
        }
        let wanted = self.rate.frame_len();
        frame.samples.clear();
        let (mut ended, mut starved) = (None, false);
        for clip in self.clips.iter_mut().filter(|clip| !clip.is_over()) {
            let filled = frame.samples.len();
            let room = wanted - filled;
            if room == 0 {
                break;
            }
            let short = !clip.finished && clip.unsent() < room;
            if short && (clip.sent == 0 || clip.unsent() == 0) {
                // A start waits for a whole frame: a hole right behind its first samples would sound worse than 20 ms.
                starved = true;
                self.counters.underruns += u64::from(clip.sent > 0 && !clip.in_hole);
                clip.in_hole = clip.sent > 0;
                break;
            }
            if std::mem::take(&mut clip.in_hole) {
                self.fading_in = self.fade;
            }
            let taken = clip.unsent().min(room);
            let from = (clip.sent - clip.first) as usize;
            frame.samples.extend(clip.samples.range(from..from + taken));
            if clip.sent == 0 {
                clip.start = Some(self.sent + filled as u64);
            }
            clip.sent += taken as u64;
            self.queued -= taken;
            for sample in &mut frame.samples[filled..filled + taken.min(self.fading_in)] {
                *sample = scaled(*sample, self.fade + 1 - self.fading_in, self.fade + 1);
                self.fading_in -= 1;
            }
            if short {
                let tail = taken.min(self.fade);
                for (n, sample) in frame.samples[filled + taken - tail..].iter_mut().enumerate() {
                    *sample = scaled(*sample, tail - n, tail + 1);
                }
                self.counters.underruns += 1;
                clip.in_hole = true;
                break;
            }
            if clip.is_over() {
                ended = Some(clip.id);
            }
        }
        let audio = frame.samples.len();
        frame.samples.resize(wanted, 0);
        if audio == 0 {
            self.counters.starved_frames += u64::from(starved);
            return if starved { Sent::Starved } else { Sent::Idle };
        }
        let at = self.sounds_at(now);
        self.busy_until = Some(at + FRAME);
        if self.schedule.len() > history_frames() {
            self.schedule.pop_front();
        }
        self.schedule.push_back(Sounding { at, position: self.sent, samples: audio });
        self.sent += audio as u64;
        self.trim();
        Sent::Audio { sent: Position(self.sent), ended }
    }

    /// A frame of silence went to the carrier (instead of nothing), so that what follows sounds 20 ms later.
    pub fn silence_sent(&mut self, now: Instant) {
        self.busy_until = Some(self.sounds_at(now) + FRAME);
    }

    /// How far the caller has heard; never beyond what was sent, never behind what was acknowledged.
    pub fn heard(&self, now: Instant) -> Position {
        let latest = self.schedule.iter().rev().find_map(|sounding| {
            let since = now.checked_duration_since(sounding.at + self.lag)?;
            Some(sounding.position + self.rate.samples(since).min(sounding.samples) as u64)
        });
        Position(latest.unwrap_or(0).max(self.floor).min(self.sent))
    }

    /// A mark for what has been sent so far; send its number to the carrier behind the audio. Numbers grow over the call.
    pub fn mark(&mut self, _now: Instant) -> u64 {
        self.last_mark += 1;
        if self.marks.len() == MAX_MARKS {
            self.marks.pop_front();
        }
        self.marks.push_back(Mark { number: self.last_mark, position: self.sent });
        self.last_mark
    }

    /// The carrier echoed a mark. Marks made before the last pause or cancel no longer count: a carrier that clears echoes
    /// them too, played or not.
    pub fn on_played(&mut self, now: Instant, mark: u64) {
        let Ok(place) = self.marks.binary_search_by_key(&mark, |mark| mark.number) else {
            self.counters.void_marks += 1;
            return;
        };
        let position = self.marks[place].position;
        self.marks.drain(..=place);
        self.floor = self.floor.max(position);
        // The frame that holds the last sample before the mark tells when that should have been heard.
        if let Some(sounding) = self.schedule.iter().rev().find(|sounding| sounding.position < position) {
            let samples = sounding.samples.min((position - sounding.position) as usize);
            self.lag = now.saturating_duration_since(sounding.at + self.rate.duration(samples));
        }
    }

    /// Stops giving frames and takes back what was not heard. The caller tells the carrier to clear what it holds.
    /// Returns how far was heard; a second pause changes nothing.
    pub fn pause(&mut self, now: Instant) -> Position {
        if !self.paused {
            let heard = self.heard(now).0.max(self.oldest_kept());
            self.settle(heard);
            self.paused = true;
        }
        Position(self.sent)
    }

    /// Goes on where the caller stopped hearing, faded in.
    pub fn resume(&mut self, _now: Instant) {
        if self.paused {
            self.paused = false;
            self.fading_in = self.fade;
        }
    }

    /// Drops everything, paused or not, and returns for each clip that was not forgotten how much of it was heard.
    pub fn cancel(&mut self, now: Instant) -> Vec<HeardClip> {
        let heard = self.heard(now);
        let clips = self.heard_clips(now).collect();
        self.settle(heard.0);
        self.paused = false;
        self.clips.clear();
        self.queued = 0;
        clips
    }

    /// The clips of the reply, in order of playing, without forgotten ones.
    pub fn heard_clips(&self, now: Instant) -> impl Iterator<Item = HeardClip> + '_ {
        let heard = self.heard(now).0;
        self.clips.iter().filter(|clip| !clip.forgotten).map(move |clip| HeardClip {
            clip: clip.id,
            heard_samples: clip.heard_up_to(heard),
            total_samples: clip.total,
            finished: clip.finished,
            rate: self.rate,
        })
    }

    /// The clip has been accounted for and is reported no more. What is left of it still plays.
    pub fn forget(&mut self, clip: ClipId) {
        if let Some(clip) = self.clip(clip) {
            clip.forgotten = true;
        }
        self.prune();
    }

    fn clip(&mut self, id: ClipId) -> Option<&mut Clip> {
        self.clips.iter_mut().rev().find(|clip| clip.id == id)
    }

    fn sounds_at(&self, now: Instant) -> Instant {
        self.busy_until.map_or(now, |busy| busy.max(now))
    }

    /// Makes `heard` the truth: nothing is under way any more, and the next sample to play is the one at `heard`.
    fn settle(&mut self, heard: u64) {
        for clip in &mut self.clips {
            clip.sent = clip.heard_up_to(heard);
            clip.in_hole = false;
        }
        self.sent = heard;
        self.floor = heard;
        self.fading_in = 0;
        self.schedule.clear();
        self.busy_until = None;
        self.marks.clear();
        self.recount();
    }

    fn recount(&mut self) {
        self.queued = self.clips.iter().map(Clip::unsent).sum();
    }

    /// The oldest position that could be played again.
    fn oldest_kept(&self) -> u64 {
        let mut oldest = None;
        for clip in &self.clips {
            if let Some(start) = clip.start {
                let kept = start + clip.first;
                oldest = Some(oldest.map_or(kept, |oldest| if clip.first > 0 { kept.max(oldest) } else { oldest }));
            }
        }
        oldest.unwrap_or(self.sent)
    }

    /// Lets go of sent samples beyond the history.
    fn trim(&mut self) {
        let keep_from = self.sent.saturating_sub(self.rate.samples(HISTORY) as u64);
        for clip in &mut self.clips {
            let Some(start) = clip.start else { break };
            let surplus = keep_from.saturating_sub(start + clip.first).min(clip.sent - clip.first);
            clip.samples.drain(..surplus as usize);
            clip.first += surplus;
        }
    }

    /// Removes forgotten clips that can't be played again.
    fn prune(&mut self) {
        let floor = self.floor;
        let kept_from = self.sent.saturating_sub(self.rate.samples(HISTORY) as u64);
        self.clips.retain(|clip| {
            let end = clip.start.map_or(0, |start| start + clip.total);
            !(clip.forgotten && clip.is_over() && end <= floor.max(kept_from))
        });
    }
}

/// Frames of the schedule that are remembered.
const fn history_frames() -> usize {
    HISTORY.as_millis() as usize / FRAME.as_millis() as usize
}

fn scaled(sample: i16, numerator: usize, denominator: usize) -> i16 {
    (i32::from(sample) * numerator as i32 / denominator as i32) as i16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: ClipId = ClipId(1);
    const B: ClipId = ClipId(2);
    const RATE: SampleRate = SampleRate::HZ_8000;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Samples that tell their place: 1, 2, 3, …
    fn ramp(from: usize, len: usize) -> Vec<i16> {
        (from..from + len).map(|n| (n % 30_000) as i16 + 1).collect()
    }

    fn playout() -> (Playout, Frame, Instant) {
        (Playout::new(RATE), Frame::silence(RATE), Instant::now())
    }

    /// A playout without ramps, so that every sample can be compared.
    fn unfaded() -> (Playout, Frame, Instant) {
        let (mut playout, frame, t0) = playout();
        playout.fade = 0;
        (playout, frame, t0)
    }

    fn clip(playout: &mut Playout, id: ClipId, samples: &[i16]) {
        playout.begin(id);
        assert_eq!(playout.push(id, samples), 0);
        playout.finish(id);
    }

    fn play(playout: &mut Playout, frame: &mut Frame, from: Instant, ticks: u64) -> Vec<i16> {
        let mut out = Vec::new();
        for tick in 0..ticks {
            playout.next_frame(from + FRAME * tick as u32, frame);
            out.extend_from_slice(&frame.samples);
        }
        out
    }

    #[test]
    fn clips_are_joined_without_a_seam_and_end_in_silence() {
        let (mut playout, mut frame, t0) = playout();
        clip(&mut playout, A, &ramp(0, 250));
        clip(&mut playout, B, &ramp(250, 100));
        assert_eq!(playout.queued(), RATE.duration(350));
        assert_eq!(playout.next_frame(t0, &mut frame), Sent::Audio { sent: Position(160), ended: None });
        assert_eq!(frame.samples, ramp(0, 160));
        assert_eq!(playout.next_frame(t0, &mut frame), Sent::Audio { sent: Position(320), ended: Some(A) });
        assert_eq!(frame.samples, ramp(160, 160));
        assert_eq!(playout.next_frame(t0, &mut frame), Sent::Audio { sent: Position(350), ended: Some(B) });
        assert_eq!((&frame.samples[..30], &frame.samples[30..]), (&ramp(320, 30)[..], &[0; 130][..]));
        assert_eq!(playout.next_frame(t0, &mut frame), Sent::Idle);
        assert!(playout.is_idle());
    }

    #[test]
    fn clips_may_be_filled_side_by_side_and_keep_their_order() {
        let (mut playout, mut frame, t0) = unfaded();
        playout.begin(A);
        playout.begin(B);
        playout.push(B, &ramp(500, 160));
        playout.finish(B);
        assert_eq!(playout.next_frame(t0, &mut frame), Sent::Starved);
        playout.push(A, &ramp(0, 160));
        playout.finish(A);
        assert_eq!(play(&mut playout, &mut frame, t0, 2), [ramp(0, 160), ramp(500, 160)].concat());
    }

    #[test]
    fn a_hole_in_a_clip_is_an_underrun_counted_once_with_ramps_around_it() {
        let (mut playout, mut frame, t0) = playout();
        playout.begin(A);
        playout.push(A, &[10_000; 200]);
        assert!(matches!(playout.next_frame(t0, &mut frame), Sent::Audio { .. }));
        assert_eq!(playout.next_frame(t0, &mut frame), Sent::Audio { sent: Position(200), ended: None });
        assert!(frame.samples[..40].windows(2).all(|w| w[0] > w[1]) && frame.samples[40..].iter().all(|&s| s == 0));
        assert_eq!(playout.next_frame(t0, &mut frame), Sent::Starved);
        assert_eq!(playout.next_frame(t0, &mut frame), Sent::Starved);
        playout.push(A, &[10_000; 160]);
        assert!(matches!(playout.next_frame(t0, &mut frame), Sent::Audio { .. }));
        assert!(
            frame.samples[..40].windows(2).all(|w| w[0] < w[1]) && frame.samples[40..].iter().all(|&s| s == 10_000)
        );
        assert_eq!((playout.counters().underruns, playout.counters().starved_frames), (1, 2));
    }

    #[test]
    fn waiting_for_the_first_sample_is_no_underrun() {
        let (mut playout, mut frame, t0) = playout();
        playout.begin(A);
        assert_eq!(playout.next_frame(t0, &mut frame), Sent::Starved);
        playout.push(A, &[500; 100]);
        assert_eq!(playout.next_frame(t0, &mut frame), Sent::Starved);
        playout.finish(A);
        assert_eq!(playout.next_frame(t0, &mut frame), Sent::Audio { sent: Position(100), ended: Some(A) });
        assert_eq!(playout.counters().underruns, 0);
    }

    #[test]
    fn the_queue_is_bounded_and_says_what_it_refused() {
        let (mut playout, ..) = playout();
        playout.begin(A);
        let minute = 60 * 8000;
        assert_eq!(playout.push(A, &vec![1; minute + 7]), 7);
        assert_eq!(playout.push(A, &[1]), 1);
        assert_eq!((playout.queued(), playout.counters().refused_samples), (MAX_QUEUED, 8));
        assert_eq!(playout.push(B, &[1, 2]), 2, "a clip that was never begun takes nothing");
        for n in 0..1000 {
            playout.begin(ClipId(10 + n));
        }
        assert_eq!(playout.clips.len(), MAX_CLIPS);
    }

    #[test]
    fn before_any_mark_heard_follows_real_time_from_the_first_frame() {
        let (mut playout, mut frame, t0) = playout();
        clip(&mut playout, A, &ramp(0, 1600));
        // Three frames at once: the carrier plays them one after the other.
        for _ in 0..3 {
            playout.next_frame(t0, &mut frame);
        }
        for (after, heard) in [(0, 0), (10, 80), (20, 160), (59, 472), (60, 480), (500, 480)] {
            assert_eq!(playout.heard(t0 + ms(after)).samples(), heard, "after {after} ms");
        }
    }

    #[test]
    fn silence_that_was_sent_delays_what_follows() {
        let (mut playout, mut frame, t0) = playout();
        playout.silence_sent(t0);
        clip(&mut playout, A, &ramp(0, 160));
        playout.next_frame(t0, &mut frame);
        assert_eq!(playout.heard(t0 + ms(20)).samples(), 0);
        assert_eq!(playout.heard(t0 + ms(30)).samples(), 80);
    }

    #[test]
    fn a_mark_shifts_the_ledger_by_how_late_its_echo_came() {
        let (mut playout, mut frame, t0) = playout();
        clip(&mut playout, A, &ramp(0, 8000));
        play(&mut playout, &mut frame, t0, 5);
        let mark = playout.mark(t0 + ms(80));
        play(&mut playout, &mut frame, t0 + ms(100), 5);
        // 100 ms of audio were due at 100 ms; the echo comes at 150.
        assert_eq!(playout.heard(t0 + ms(150)).samples(), 1200);
        playout.on_played(t0 + ms(150), mark);
        assert_eq!(playout.heard(t0 + ms(150)).samples(), 800);
        assert_eq!(playout.heard(t0 + ms(170)).samples(), 960);
        assert_eq!(playout.heard(t0 + ms(900)).samples(), 1600);
    }

    #[test]
    fn heard_is_never_behind_an_acknowledged_mark() {
        let (mut playout, mut frame, t0) = playout();
        clip(&mut playout, A, &ramp(0, 1600));
        for _ in 0..10 {
            playout.next_frame(t0, &mut frame);
        }
        let mark = playout.mark(t0);
        playout.on_played(t0 + ms(1), mark);
        assert_eq!(playout.heard(t0 + ms(1)).samples(), 1600);
    }

    #[test]
    fn resume_goes_on_at_the_first_sample_not_heard() {
        let (mut playout, mut frame, t0) = unfaded();
        clip(&mut playout, A, &ramp(0, 500));
        clip(&mut playout, B, &ramp(500, 500));
        for _ in 0..5 {
            playout.next_frame(t0, &mut frame);
        }
        assert_eq!(playout.pause(t0 + ms(55)).samples(), 440);
        assert_eq!(playout.pause(t0 + ms(90)).samples(), 440);
        assert_eq!(playout.next_frame(t0 + ms(60), &mut frame), Sent::Paused);
        assert_eq!(playout.queued(), RATE.duration(560));
        playout.resume(t0 + ms(400));
        assert_eq!(playout.heard(t0 + ms(400)).samples(), 440);
        let rest = play(&mut playout, &mut frame, t0 + ms(400), 4);
        assert_eq!(rest[..560], ramp(440, 560));
        assert_eq!(playout.heard(t0 + ms(410)).samples(), 520);
    }

    #[test]
    fn resumed_audio_fades_in_over_five_milliseconds() {
        let (mut playout, mut frame, t0) = playout();
        clip(&mut playout, A, &[12_000; 800]);
        playout.next_frame(t0, &mut frame);
        assert_eq!(frame.samples[0], 12_000, "a clip's own start is left as it is");
        playout.pause(t0 + ms(10));
        playout.resume(t0 + ms(50));
        playout.next_frame(t0 + ms(60), &mut frame);
        assert!(frame.samples[0] < 400 && frame.samples[..41].windows(2).all(|w| w[0] < w[1]));
        assert!(frame.samples[40..].iter().all(|&s| s == 12_000));
    }

    #[test]
    fn marks_that_a_clear_overtook_do_not_count() {
        let (mut playout, mut frame, t0) = playout();
        clip(&mut playout, A, &ramp(0, 1600));
        for _ in 0..5 {
            playout.next_frame(t0, &mut frame);
        }
        let overtaken = playout.mark(t0);
        playout.pause(t0 + ms(20));
        playout.on_played(t0 + ms(25), overtaken);
        playout.resume(t0 + ms(30));
        playout.on_played(t0 + ms(35), overtaken);
        assert_eq!(playout.heard(t0 + ms(35)).samples(), 160);
        assert_eq!(playout.counters().void_marks, 2);
        assert!(playout.mark(t0 + ms(40)) > overtaken);
    }

    #[test]
    fn cancel_tells_for_each_clip_what_was_heard() {
        let (mut playout, mut frame, t0) = playout();
        clip(&mut playout, A, &ramp(0, 300));
        playout.begin(B);
        playout.push(B, &ramp(0, 1000));
        clip(&mut playout, ClipId(3), &ramp(0, 77));
        for _ in 0..5 {
            playout.next_frame(t0, &mut frame);
        }
        playout.pause(t0 + ms(50));
        let report: Vec<_> = playout
            .cancel(t0 + ms(700))
            .iter()
            .map(|c| (c.clip.0, c.heard_samples, c.total_samples, c.finished, c.complete()))
            .collect();
        assert_eq!(report, [(1, 300, 300, true, true), (2, 100, 1000, false, false), (3, 0, 77, true, false)]);
        assert!(playout.is_idle() && playout.queued().is_zero());
        assert_eq!(playout.push(B, &[1; 50]), 50, "a cancelled clip takes nothing more");
        assert_eq!(playout.next_frame(t0 + ms(720), &mut frame), Sent::Idle);
        clip(&mut playout, ClipId(4), &ramp(0, 160));
        assert_eq!(
            playout.next_frame(t0 + ms(740), &mut frame),
            Sent::Audio { sent: Position(400 + 160), ended: Some(ClipId(4)) }
        );
    }

    #[test]
    fn a_dropped_tail_ends_in_a_ramp_and_the_next_clip_follows() {
        let (mut playout, mut frame, t0) = playout();
        clip(&mut playout, A, &[8_000; 800]);
        clip(&mut playout, B, &[100; 120]);
        playout.next_frame(t0, &mut frame);
        playout.drop_clip_tail(A);
        assert_eq!(playout.queued(), RATE.duration(160));
        playout.next_frame(t0, &mut frame);
        assert!(frame.samples[..40].windows(2).all(|w| w[0] > w[1]), "{:?}", &frame.samples[..41]);
        assert_eq!(frame.samples[40..], [100; 120]);
        assert!(playout.is_idle());
    }

    #[test]
    fn a_tail_dropped_during_a_pause_moves_the_next_clip_up() {
        let (mut playout, mut frame, t0) = playout();
        clip(&mut playout, A, &ramp(0, 500));
        clip(&mut playout, B, &ramp(0, 500));
        for _ in 0..5 {
            playout.next_frame(t0, &mut frame);
        }
        playout.pause(t0 + ms(55));
        playout.drop_clip_tail(A);
        playout.resume(t0 + ms(100));
        for _ in 0..10 {
            playout.next_frame(t0 + ms(100), &mut frame);
        }
        let heard: Vec<_> = playout.heard_clips(t0 + ms(130)).map(|c| (c.heard_samples, c.total_samples)).collect();
        assert_eq!(heard, [(480, 480), (200, 500)]);
        assert_eq!(playout.sent().samples(), 980);
    }

    #[test]
    fn a_cleared_queue_ends_what_plays_and_drops_the_rest() {
        let (mut playout, mut frame, t0) = playout();
        clip(&mut playout, A, &[8_000; 800]);
        clip(&mut playout, B, &[100; 120]);
        playout.next_frame(t0, &mut frame);
        playout.clear_queue();
        assert_eq!(playout.next_frame(t0, &mut frame), Sent::Audio { sent: Position(200), ended: Some(A) });
        assert_eq!(playout.next_frame(t0, &mut frame), Sent::Idle);
        assert_eq!(playout.heard_clips(t0 + ms(100)).map(|c| c.clip).collect::<Vec<_>>(), [A]);
    }

    #[test]
    fn forgotten_clips_are_reported_no_more_but_can_still_be_taken_back() {
        let (mut playout, mut frame, t0) = unfaded();
        clip(&mut playout, A, &ramp(0, 160));
        clip(&mut playout, B, &ramp(160, 160));
        playout.next_frame(t0, &mut frame);
        playout.next_frame(t0, &mut frame);
        playout.forget(A);
        assert_eq!(playout.heard_clips(t0).map(|c| c.clip).collect::<Vec<_>>(), [B]);
        playout.pause(t0 + ms(10));
        playout.resume(t0 + ms(10));
        assert_eq!(play(&mut playout, &mut frame, t0 + ms(20), 2)[..240], ramp(80, 240));
        let mark = playout.mark(t0 + ms(40));
        playout.on_played(t0 + ms(80), mark);
        playout.forget(B);
        assert!(playout.clips.is_empty() && playout.is_heard(t0 + ms(80)));
    }

    #[test]
    fn a_long_reply_keeps_five_seconds_of_what_was_sent() {
        let (mut playout, mut frame, t0) = playout();
        clip(&mut playout, A, &ramp(0, 20 * 8000));
        // The carrier takes everything at once and has played none of it.
        for _ in 0..600 {
            playout.next_frame(t0, &mut frame);
        }
        assert_eq!(playout.clips[0].samples.len(), (20 - 12 + 5) * 8000);
        assert_eq!(playout.pause(t0).samples(), 7 * 8000, "what was let go cannot be taken back");
        assert_eq!(playout.queued(), ms(13_000));
    }

    #[test]
    fn steady_playing_does_not_grow_any_buffer() {
        let (mut playout, mut frame, t0) = playout();
        playout.begin(A);
        let sizes = |playout: &Playout| {
            (playout.schedule.capacity(), playout.clips.capacity(), playout.clips[0].samples.capacity())
        };
        let mut steady = None;
        for tick in 0..3000_u32 {
            playout.push(A, &[5; 160]);
            playout.next_frame(t0 + FRAME * tick, &mut frame);
            if tick == 500 {
                steady = Some((sizes(&playout), frame.samples.capacity()));
            }
        }
        assert_eq!(steady, Some((sizes(&playout), frame.samples.capacity())));
    }

    /// A carrier without delay: plays what it gets in real time and can be cleared.
    #[derive(Default)]
    struct Carrier {
        holds: VecDeque<(Instant, Vec<i16>)>,
        busy_until: Option<Instant>,
        ear: Vec<i16>,
    }

    impl Carrier {
        fn send(&mut self, now: Instant, samples: &[i16]) {
            let at = self.busy_until.map_or(now, |busy| busy.max(now));
            self.busy_until = Some(at + FRAME);
            self.holds.push_back((at, samples.to_vec()));
        }

        fn play_until(&mut self, now: Instant) {
            while let Some((at, samples)) = self.holds.front_mut() {
                let Some(since) = now.checked_duration_since(*at) else { return };
                let played = RATE.samples(since).min(samples.len());
                if played < samples.len() {
                    return;
                }
                self.ear.append(samples);
                self.holds.pop_front();
            }
        }

        fn clear(&mut self, now: Instant) {
            self.play_until(now);
            if let Some((at, samples)) = self.holds.front()
                && let Some(since) = now.checked_duration_since(*at)
            {
                self.ear.extend(&samples[..RATE.samples(since).min(samples.len())]);
            }
            self.holds.clear();
            self.busy_until = None;
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Begin,
        Push(usize),
        Finish,
        Tick,
        SendAhead,
        Wait(u64),
        Pause,
        Resume,
    }

    proptest! {
        #[test]
        fn nothing_is_heard_twice_and_nothing_is_lost(
            steps in prop::collection::vec(
                prop_oneof![
                    1 => Just(Step::Begin),
                    4 => (1_usize..900).prop_map(Step::Push),
                    1 => Just(Step::Finish),
                    10 => Just(Step::Tick),
                    2 => Just(Step::SendAhead),
                    2 => (0_u64..90).prop_map(Step::Wait),
                    1 => Just(Step::Pause),
                    2 => Just(Step::Resume),
                ],
                1..200,
            ),
        ) {
            let (mut playout, mut frame, mut now) = unfaded();
            let mut carrier = Carrier::default();
            // Each clip's own numbering would hide a swap of clips: samples are numbered over the whole call.
            let (mut written, mut current) = (0, None);
            for step in steps {
                match step {
                    Step::Begin => {
                        if let Some(open) = current {
                            playout.finish(open);
                        }
                        let id = ClipId(current.map_or(1, |ClipId(n)| n + 1));
                        playout.begin(id);
                        current = Some(id);
                    }
                    Step::Push(len) => {
                        if let Some(id) = current {
                            written += len - playout.push(id, &ramp(written, len));
                        }
                    }
                    Step::Finish => {
                        if let Some(id) = current {
                            playout.finish(id);
                        }
                    }
                    Step::Tick | Step::SendAhead => {
                        if matches!(step, Step::Tick) {
                            now += FRAME;
                        }
                        if let Sent::Audio { .. } = playout.next_frame(now, &mut frame) {
                            carrier.send(now, &frame.samples);
                        }
                    }
                    Step::Wait(wait) => now += ms(wait),
                    Step::Pause => {
                        if !playout.is_paused() {
                            carrier.clear(now);
                        }
                        playout.pause(now);
                    }
                    Step::Resume => playout.resume(now),
                }
                prop_assert!(playout.heard(now) <= playout.sent());
            }
            // In the end all that was sent is heard.
            let report: u64 = playout.heard_clips(now + ms(60_000)).map(|clip| clip.heard_samples).sum();
            carrier.clear(now + ms(60_000));
            let ear: Vec<i16> = carrier.ear.into_iter().filter(|&sample| sample != 0).collect();
            prop_assert_eq!(&ear, &ramp(0, ear.len()));
            prop_assert_eq!(report, ear.len() as u64);
            prop_assert_eq!(playout.sent().samples(), ear.len() as u64);
        }
    }
}
