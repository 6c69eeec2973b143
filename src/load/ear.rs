//! The carrier's play buffer and the caller's ear behind it: what the server sent is played in real time, marks come
//! back when they are reached, `clear` empties the buffer, and what was heard is cut into spans of sound.
//!
//! Everything is counted in samples since the call's start (8 kHz), and the ear plays between events, not on a tick:
//! audio that arrives while the buffer is empty is heard from that very sample on. No clock and no socket of its own.

use std::collections::VecDeque;

use crate::load::fixture::PER_MS;
use crate::load::ulaw;

/// Two minutes of audio. Twilio names no limit; a server that runs further ahead loses the rest, which is counted.
const MAX_QUEUED: usize = 120_000 * PER_MS as usize;
/// Marks that may wait. Far more than a conversation needs; further ones are dropped and counted.
const MAX_MARKS: usize = 10_000;
/// Spans, gaps and clears that are kept: hours of talk.
const MAX_EVENTS: usize = 100_000;
/// 5 ms: how finely onsets and ends are placed.
const HOP: u64 = 5 * PER_MS;
/// Level is measured over 20 ms, one frame.
const HOPS_IN_WINDOW: usize = 4;
/// Sound begins when the level stays above the threshold over 40 ms, two frames: a click is not speech.
const HOPS_TO_BEGIN: u32 = 8;
/// Mean square at -45 dBFS and at -50 dBFS (full scale 32768).
const AUDIBLE: u64 = 33_954;
const SILENT: u64 = 10_737;
/// Echo of what was heard may come back this much later: one second, and the frame being composed.
const HISTORY: usize = 1_020 * PER_MS as usize;

/// From the first audible sample to the one after the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub from: u64,
    pub to: u64,
}

/// What was heard, when, and what the server did to the buffer.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// Stretches of sound; pauses between words of 20 ms and more separate them.
    pub spans: Vec<Span>,
    /// Stretches in which there was nothing to play.
    pub starved: Vec<Span>,
    /// When `clear` came.
    pub clears: Vec<u64>,
    /// When the first media message after a silence of the server of 200 ms came.
    pub bursts: Vec<u64>,
    /// Samples that did not fit into the buffer, and marks.
    pub dropped_samples: u64,
    pub dropped_marks: u64,
}

pub struct Ear {
    at: u64,
    queue: VecDeque<u8>,
    /// Audio samples taken in and played, over the whole call: a mark is reached when `played` reaches its position.
    queued: u64,
    played: u64,
    marks: VecDeque<(u64, String)>,
    heard: Heard,
    starved_from: Option<u64>,
    last_media: Option<u64>,
    level: Level,
    history: VecDeque<i16>,
    recording: Option<Vec<i16>>,
}

impl Ear {
    pub fn new(record: bool) -> Self {
        Self {
            at: 0,
            queue: VecDeque::new(),
            queued: 0,
            played: 0,
            marks: VecDeque::new(),
            heard: Heard::default(),
            starved_from: Some(0),
            last_media: None,
            level: Level::default(),
            history: VecDeque::from(vec![0; HISTORY]),
            recording: record.then(Vec::new),
        }
    }

    /// Plays up to `now`; names of the marks reached go to `reached`, oldest first.
    pub fn advance(&mut self, now: u64, reached: &mut Vec<String>) {
        while self.at < now {
            let sample = match self.queue.pop_front() {
                Some(code) => {
                    self.played += 1;
                    ulaw::decode(code)
                }
                None => {
                    self.starved_from.get_or_insert(self.at);
                    0
                }
            };
            self.at += 1;
            self.history.pop_front();
            self.history.push_back(sample);
            if let Some(recording) = &mut self.recording {
                recording.push(sample);
            }
            if let Some(span) = self.level.push(sample, self.at)
                && self.heard.spans.len() < MAX_EVENTS
            {
                self.heard.spans.push(span);
            }
        }
        self.reach(reached);
    }

    /// Audio from the server, heard after what is queued. Call `advance` first.
    pub fn append(&mut self, codes: &[u8]) {
        if codes.is_empty() {
            return;
        }
        if let Some(from) = self.starved_from.take()
            && from < self.at
            && self.heard.starved.len() < MAX_EVENTS
        {
            self.heard.starved.push(Span { from, to: self.at });
        }
        if self.last_media.is_none_or(|last| self.at - last >= 200 * PER_MS) && self.heard.bursts.len() < MAX_EVENTS {
            self.heard.bursts.push(self.at);
        }
        self.last_media = Some(self.at);
        let room = MAX_QUEUED - self.queue.len();
        let taken = &codes[..codes.len().min(room)];
        self.queue.extend(taken);
        self.queued += taken.len() as u64;
        self.heard.dropped_samples += (codes.len() - taken.len()) as u64;
    }

    /// A mark: reached when everything queued before it has been played, at once when nothing is.
    pub fn mark(&mut self, name: String, reached: &mut Vec<String>) {
        if self.marks.len() < MAX_MARKS {
            self.marks.push_back((self.queued, name));
        } else {
            self.heard.dropped_marks += 1;
        }
        self.reach(reached);
    }

    /// Drops what is not played; all waiting marks come back at once.
    pub fn clear(&mut self, reached: &mut Vec<String>) {
        self.queue.clear();
        self.played = self.queued;
        if self.heard.clears.len() < MAX_EVENTS {
            self.heard.clears.push(self.at);
        }
        self.reach(reached);
    }

    fn reach(&mut self, reached: &mut Vec<String>) {
        while self.marks.front().is_some_and(|(position, _)| *position <= self.played) {
            reached.extend(self.marks.pop_front().map(|(_, name)| name));
        }
    }

    /// When the next mark will be reached.
    pub fn next_mark_at(&self) -> Option<u64> {
        self.marks.front().map(|(position, _)| self.at + (position - self.played))
    }

    /// The ear's own time.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Whether the agent is audible at this moment, and since when.
    pub fn sounding_since(&self) -> Option<u64> {
        self.level.since()
    }

    /// The end of the last sound heard; while the agent is audible, the present.
    pub fn last_audible(&self) -> Option<u64> {
        match self.level.since() {
            Some(_) => Some(self.level.last_loud),
            None => self.heard.spans.last().map(|span| span.to),
        }
    }

    /// The first onset at or after `from`.
    pub fn first_onset_since(&self, from: u64) -> Option<u64> {
        let first = self.heard.spans.partition_point(|span| span.from < from);
        self.heard.spans.get(first).map(|span| span.from).or(self.level.since().filter(|since| *since >= from))
    }

    /// Whether anything loud waits in the buffer (some servers stream silence without end).
    pub fn holds_sound(&self) -> bool {
        // -45 dBFS as a peak.
        self.queue.iter().any(|code| ulaw::decode(*code).unsigned_abs() > 184)
    }

    /// What was heard `delay` samples before the frame that ends at the ear's present, for the echo. `delay` is at
    /// most one second.
    pub fn past(&self, delay: usize, len: usize) -> impl Iterator<Item = i16> {
        let start = HISTORY.saturating_sub(delay + len);
        self.history.range(start..(start + len).min(HISTORY)).copied()
    }

    /// Ends the listening.
    pub fn finish(mut self) -> (Heard, Option<Vec<i16>>) {
        if let Some(since) = self.level.since() {
            self.heard.spans.push(Span { from: since, to: self.level.last_loud });
        }
        if let Some(from) = self.starved_from {
            self.heard.starved.push(Span { from, to: self.at });
        }
        (self.heard, self.recording)
    }
}

/// Cuts a stream of samples into spans of sound.
#[derive(Default)]
struct Level {
    /// Sum of squares of the hop being filled, and of the last four.
    filling: u64,
    filled: u64,
    hops: VecDeque<u64>,
    /// Hops in a row above the threshold, and the start of the first.
    run: u32,
    run_from: u64,
    sounding: bool,
    last_loud: u64,
}

impl Level {
    fn since(&self) -> Option<u64> {
        self.sounding.then_some(self.run_from)
    }

    /// One sample; `now` is the time after it. Returns a span when it ended.
    fn push(&mut self, sample: i16, now: u64) -> Option<Span> {
        self.filling += u64::from(sample.unsigned_abs()).pow(2);
        self.filled += 1;
        if self.filled < HOP {
            return None;
        }
        let hop = std::mem::take(&mut self.filling);
        self.filled = 0;
        self.hops.push_back(hop);
        if self.hops.len() > HOPS_IN_WINDOW {
            self.hops.pop_front();
        }
        let window = self.hops.iter().sum::<u64>() / (HOP * HOPS_IN_WINDOW as u64);
        if self.sounding {
            if hop / HOP >= SILENT {
                self.last_loud = now;
            }
            if window < SILENT {
                self.sounding = false;
                self.run = 0;
                return Some(Span { from: self.run_from, to: self.last_loud });
            }
        } else if window >= AUDIBLE {
            if self.run == 0 {
                self.run_from = now - HOP;
            }
            self.run += 1;
            if hop / HOP >= SILENT {
                self.last_loud = now;
            }
            self.sounding = self.run >= HOPS_TO_BEGIN;
        } else {
            self.run = 0;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = PER_MS;

    /// A 400 Hz tone at -20 dBFS.
    fn tone(ms: u64) -> Vec<u8> {
        (0..ms * MS)
            .map(|n| (4_634.0 * (n as f64 * std::f64::consts::TAU * 400.0 / 8_000.0).sin()) as i16)
            .map(ulaw::encode)
            .collect()
    }

    #[test]
    fn audio_is_heard_from_the_sample_at_which_it_arrives() {
        let (mut ear, mut reached) = (Ear::new(false), Vec::new());
        ear.advance(1_003 * MS, &mut reached);
        ear.append(&tone(500));
        ear.advance(3_000 * MS, &mut reached);
        let (heard, _) = ear.finish();
        let [span] = heard.spans[..] else { panic!("{:?}", heard.spans) };
        assert!(span.from.abs_diff(1_003 * MS) <= 5 * MS, "{span:?}");
        assert!(span.to.abs_diff(1_503 * MS) <= 5 * MS, "{span:?}");
        assert_eq!(heard.starved, [Span { from: 0, to: 1_003 * MS }, Span { from: 1_503 * MS, to: 3_000 * MS }]);
    }

    #[test]
    fn a_mark_comes_back_at_the_very_sample_at_which_its_audio_ends() {
        let (mut ear, mut reached) = (Ear::new(false), Vec::new());
        ear.mark("empty".into(), &mut reached);
        assert_eq!(reached, ["empty"]);
        ear.append(&tone(100));
        ear.mark("first".into(), &mut reached);
        ear.append(&tone(50));
        ear.mark("second".into(), &mut reached);
        assert_eq!(ear.next_mark_at(), Some(100 * MS));
        ear.advance(100 * MS - 1, &mut reached);
        assert_eq!(reached, ["empty"]);
        ear.advance(100 * MS, &mut reached);
        assert_eq!(reached, ["empty", "first"]);
        ear.advance(200 * MS, &mut reached);
        assert_eq!(reached, ["empty", "first", "second"]);
    }

    #[test]
    fn clear_drops_the_buffer_and_sends_every_waiting_mark_back() {
        let (mut ear, mut reached) = (Ear::new(true), Vec::new());
        ear.append(&tone(1_000));
        ear.mark("end".into(), &mut reached);
        ear.advance(300 * MS, &mut reached);
        assert!(reached.is_empty());
        ear.clear(&mut reached);
        assert_eq!(reached, ["end"]);
        ear.advance(600 * MS, &mut reached);
        ear.append(&tone(100));
        ear.mark("later".into(), &mut reached);
        assert_eq!(ear.next_mark_at(), Some(700 * MS));
        ear.advance(1_000 * MS, &mut reached);
        assert_eq!(reached, ["end", "later"]);
        let (heard, recording) = ear.finish();
        assert_eq!(heard.clears, [300 * MS]);
        assert!(heard.spans[0].to.abs_diff(300 * MS) <= 5 * MS, "{:?}", heard.spans);
        assert_eq!(recording.unwrap().len() as u64, 1_000 * MS);
    }

    #[test]
    fn a_click_is_not_speech_and_a_buffer_has_an_end() {
        let (mut ear, mut reached) = (Ear::new(false), Vec::new());
        ear.append(&[0x00; 8]);
        ear.advance(500 * MS, &mut reached);
        ear.append(&vec![0x00; MAX_QUEUED + 10]);
        ear.clear(&mut reached);
        let (heard, _) = ear.finish();
        assert!(heard.spans.is_empty(), "{:?}", heard.spans);
        assert_eq!(heard.dropped_samples, 10);
    }

    #[test]
    fn the_past_is_what_was_heard_so_long_ago() {
        let (mut ear, mut reached) = (Ear::new(false), Vec::new());
        ear.append(&[0x00, 0x80]);
        ear.advance(160, &mut reached);
        assert_eq!(ear.past(0, 160).take(2).collect::<Vec<_>>(), [-32_124, 32_124]);
        ear.advance(320, &mut reached);
        assert_eq!(ear.past(160, 160).take(3).collect::<Vec<_>>(), [-32_124, 32_124, 0]);
    }
}
