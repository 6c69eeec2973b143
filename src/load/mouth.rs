//! The caller's mouth: which frame of sound leaves when. Follows a fixture's turns by what the ear hears, and mixes
//! the background and the echo of the agent under them. Pure; one call to `frame` for every 20 ms.

use std::sync::Arc;

use crate::load::ear::Ear;
use crate::load::fixture::{Fixture, PER_MS, Start};

/// Samples in one frame.
pub const FRAME_LEN: u64 = 20 * PER_MS;
/// The agent counts as having answered a turn only by sound this much after the turn's end: what it was still saying
/// when it was interrupted is no answer.
const TAIL: u64 = 200 * PER_MS;
/// After the agent was stopped by a noise, a caller waits so much longer before taking the turn: it may go on.
const PATIENCE: u64 = 1_000 * PER_MS;

/// A turn as it was played; samples since the call's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Played {
    pub turn: usize,
    /// First sample of the file.
    pub from: u64,
    /// When the frame with the first voiced sample was due to leave.
    pub onset_sent: u64,
    /// When the frame with the last voiced sample was due to leave.
    pub offset_sent: u64,
    /// Whether the agent was audible when the first voiced sample left.
    pub into_speech: bool,
}

/// When the frame that holds sample `at` is due: a frame leaves when its last sample has been spoken.
pub fn sent_at(at: u64) -> u64 {
    (at / FRAME_LEN + 1) * FRAME_LEN
}

pub struct Mouth {
    fixture: Arc<Fixture>,
    /// The turn being played or waited for.
    next: usize,
    playing: Option<u64>,
    played: Vec<Played>,
    /// Where the reply to the last turn that wants one may begin.
    reply_from: u64,
    /// The end of the last thing said, of whatever kind.
    quiet_from: u64,
    echo_gain: f32,
    samples: Vec<i16>,
    recording: Option<Vec<i16>>,
}

impl Mouth {
    pub fn new(fixture: Arc<Fixture>, record: bool) -> Self {
        let echo_gain = fixture.echo.map_or(0.0, |echo| 10f32.powf(echo.gain_db / 20.0));
        Self {
            fixture,
            next: 0,
            playing: None,
            played: Vec::new(),
            reply_from: 0,
            quiet_from: 0,
            echo_gain,
            samples: Vec::with_capacity(FRAME_LEN as usize),
            recording: record.then(Vec::new),
        }
    }

    /// The frame whose first sample is `from`, composed when its last sample has passed; the ear has been advanced to
    /// that moment. Says which turn began in it.
    pub fn frame(&mut self, from: u64, ear: &Ear) -> (&[i16], Option<usize>) {
        let mut began = None;
        if self.playing.is_none()
            && let Some(due) = self.due(ear)
            && due < from + FRAME_LEN
        {
            self.playing = Some(due.max(from));
            began = Some(self.next);
        }

        self.samples.clear();
        let fixture = Arc::clone(&self.fixture);
        match &fixture.background {
            Some(background) => {
                let start = (from % background.len() as u64) as usize;
                self.samples.extend(background.iter().cycle().skip(start).take(FRAME_LEN as usize));
            }
            None => self.samples.resize(FRAME_LEN as usize, 0),
        }
        if let Some(echo) = fixture.echo {
            let delay = (echo.delay_ms * PER_MS) as usize;
            for (sample, heard) in self.samples.iter_mut().zip(ear.past(delay, FRAME_LEN as usize)) {
                *sample = sample.saturating_add((f32::from(heard) * self.echo_gain) as i16);
            }
        }
        if let Some(start) = self.playing {
            self.say(from, start, ear);
        }
        if let Some(recording) = &mut self.recording {
            recording.extend_from_slice(&self.samples);
        }
        (&self.samples, began)
    }

    /// Mixes in what of the playing turn falls into the frame at `from`.
    fn say(&mut self, from: u64, start: u64, ear: &Ear) {
        let turn = &self.fixture.turns[self.next];
        let offset_in_frame = start.saturating_sub(from) as usize;
        let offset_in_file = from.saturating_sub(start) as usize;
        let rest = turn.samples.get(offset_in_file..).unwrap_or_default();
        for (sample, said) in self.samples[offset_in_frame..].iter_mut().zip(rest) {
            *sample = sample.saturating_add(*said);
        }
        let onset_sent = sent_at(start + turn.onset_ms() * PER_MS);
        if onset_sent == from + FRAME_LEN && self.played.last().is_none_or(|last| last.turn != self.next) {
            let played = Played {
                turn: self.next,
                from: start,
                onset_sent,
                offset_sent: sent_at(start + (turn.offset_ms() * PER_MS).saturating_sub(1)),
                into_speech: ear.sounding_since().is_some() || ear.holds_sound(),
            };
            self.played.push(played);
            if turn.kind.wants_reply() {
                self.reply_from = played.offset_sent;
            }
        }
        let end = start + turn.samples.len() as u64;
        if end <= from + FRAME_LEN {
            self.quiet_from = end;
            self.playing = None;
            self.next += 1;
        }
    }

    /// When the next turn is to begin, if that is known.
    fn due(&self, ear: &Ear) -> Option<u64> {
        let turn = self.fixture.turns.get(self.next)?;
        match turn.start {
            Start::IntoAgent(ms) => ear.first_onset_since(self.reply_from).map(|onset| onset + ms * PER_MS),
            Start::AfterAgent(ms) => self.agent_fell_silent(ear).map(|silent| silent + ms * PER_MS),
        }
    }

    /// When the agent, having answered the last turn, fell silent; `None` while it has not, or may go on.
    pub fn agent_fell_silent(&self, ear: &Ear) -> Option<u64> {
        let last = ear.last_audible()?;
        let answered = last > self.reply_from + if self.reply_from == 0 { 0 } else { TAIL };
        if !answered || ear.sounding_since().is_some() || ear.holds_sound() {
            return None;
        }
        // A noise or a backchannel may have made the agent pause: leave it the time to go on.
        if self.quiet_from > self.reply_from { Some(last.max(self.quiet_from + PATIENCE)) } else { Some(last) }
    }

    /// Whether everything has been said.
    pub fn is_done(&self) -> bool {
        self.next == self.fixture.turns.len()
    }

    /// The turn that is said or waited for, counted from 1.
    pub fn position(&self) -> usize {
        self.next + 1
    }

    /// Since when nothing has happened that would let the call go on: everything is quiet, and the agent has not
    /// answered. `None` while somebody speaks or the next step is known.
    pub fn stalled_since(&self, ear: &Ear) -> Option<u64> {
        let known = if self.is_done() { self.agent_fell_silent(ear).is_some() } else { self.due(ear).is_some() };
        if known || self.playing.is_some() || ear.sounding_since().is_some() || ear.holds_sound() {
            return None;
        }
        Some(self.reply_from.max(self.quiet_from).max(ear.last_audible().unwrap_or(0)))
    }

    /// The last turn said that wants an answer, counted from 1; 0 before the first.
    pub fn last_question(&self) -> usize {
        let wants = |played: &&Played| self.fixture.turns[played.turn].kind.wants_reply();
        self.played.iter().rev().find(wants).map_or(0, |played| played.turn + 1)
    }

    pub fn finish(self) -> (Vec<Played>, Option<Vec<i16>>) {
        (self.played, self.recording)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::fixture::{Echo, Expect, Kind, Turn};
    use crate::load::ulaw;

    const MS: u64 = PER_MS;

    fn fixture(turns: Vec<Turn>) -> Fixture {
        Fixture {
            name: "test".into(),
            title: String::new(),
            language: "en".into(),
            workflow: String::new(),
            voice: String::new(),
            background: None,
            echo: None,
            turns,
            expect: Expect::default(),
        }
    }

    fn turn(kind: Kind, start: Start, len_ms: u64) -> Turn {
        Turn {
            kind,
            text: "x".into(),
            start,
            speech: vec![(10, len_ms - 10)],
            samples: vec![1_000; (len_ms * MS) as usize],
            keys: String::new(),
        }
    }

    /// Plays `ms` of call; the agent sends a loud sound of so many milliseconds at each of the given times.
    fn play(fixture: Fixture, ms: u64, agent: &[(u64, u64)]) -> (Vec<Played>, Vec<i16>) {
        let (mut mouth, mut ear, mut reached) = (Mouth::new(Arc::new(fixture), true), Ear::new(false), Vec::new());
        for frame in 0..ms / 20 {
            let now = (frame + 1) * 20;
            for (at, len) in agent {
                if (frame * 20..now).contains(at) {
                    ear.advance(at * MS, &mut reached);
                    ear.append(&vec![0x00; (len * MS) as usize]);
                }
            }
            ear.advance(now * MS, &mut reached);
            mouth.frame(frame * FRAME_LEN, &ear);
        }
        let (played, recording) = mouth.finish();
        (played, recording.unwrap())
    }

    #[test]
    fn a_turn_begins_so_long_after_the_agent_fell_silent() {
        let (played, sent) = play(fixture(vec![turn(Kind::Turn, Start::AfterAgent(700), 400)]), 4_000, &[(500, 1_000)]);
        assert_eq!(played.len(), 1);
        assert_eq!(played[0].from, 2_200 * MS);
        assert!(!played[0].into_speech);
        assert_eq!(sent.iter().position(|s| *s != 0), Some((2_200 * MS) as usize));
        // 10 ms to 390 ms of the file are voiced: frames that end at 2220 and at 2600.
        assert_eq!((played[0].onset_sent, played[0].offset_sent), (2_220 * MS, 2_600 * MS));
    }

    #[test]
    fn an_interruption_begins_so_long_after_the_agent_began() {
        let call = fixture(vec![turn(Kind::Interruption, Start::IntoAgent(613), 400)]);
        let (played, sent) = play(call, 4_000, &[(500, 2_000)]);
        assert_eq!(played[0].from, 1_113 * MS);
        assert!(played[0].into_speech);
        assert_eq!(sent.iter().position(|s| *s != 0), Some((1_113 * MS) as usize));
    }

    #[test]
    fn what_the_agent_was_still_saying_is_no_answer() {
        let call = fixture(vec![
            turn(Kind::Interruption, Start::IntoAgent(500), 300),
            turn(Kind::Turn, Start::AfterAgent(300), 300),
        ]);
        // The agent stops 850 ms into its speech, and answers at 2500.
        let (played, _) = play(call, 6_000, &[(0, 850), (2_500, 500)]);
        assert_eq!(played.len(), 2);
        assert_eq!(played[1].from, 3_300 * MS);
    }

    #[test]
    fn after_a_noise_the_caller_lets_the_agent_go_on() {
        let call =
            fixture(vec![turn(Kind::Noise, Start::IntoAgent(200), 100), turn(Kind::Turn, Start::AfterAgent(300), 300)]);
        let (played, _) = play(call, 6_000, &[(0, 300), (1_200, 500)]);
        assert_eq!(played[1].from, 2_000 * MS);
    }

    #[test]
    fn the_agents_sound_comes_back_late_and_quieter() {
        let mut call = fixture(vec![turn(Kind::Turn, Start::AfterAgent(9_000), 100)]);
        call.echo = Some(Echo { gain_db: -20.0, delay_ms: 100 });
        let (_, sent) = play(call, 1_000, &[(205, 100)]);
        let loud = ulaw::decode(0x00) / 10;
        assert_eq!(sent.iter().position(|s| *s != 0), Some((305 * MS) as usize));
        assert!((sent[(350 * MS) as usize] - loud).abs() <= 1);
        assert_eq!(sent.iter().rposition(|s| *s != 0), Some((405 * MS) as usize - 1));
    }

    #[test]
    fn the_background_runs_on_and_loud_sums_do_not_wrap() {
        let mut call = fixture(vec![turn(Kind::Turn, Start::AfterAgent(100), 100)]);
        call.background = Some(vec![32_000; 100]);
        let (_, sent) = play(call, 1_000, &[(0, 100)]);
        assert_eq!(sent[0], 32_000);
        assert_eq!(sent[(250 * MS) as usize], 32_767);
    }
}
