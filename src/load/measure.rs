//! From what was said and what was heard to figures: replies, barge-ins, false stops. Pure arithmetic over a finished
//! call. All clocks are the caller's, and start from the time at which a frame was due to leave, not at which it left:
//! a generator that is late does not flatter the server.

use serde::Serialize;

use crate::load::ear::{Heard, Span};
use crate::load::fixture::{Fixture, Kind, PER_MS};
use crate::load::mouth::Played;

/// Silence that makes a stop: shorter ones are pauses between words and clauses.
const STOP: u64 = 300 * PER_MS;
/// A shorter gap in the agent's speech is not counted as a pause.
const PAUSE: u64 = 100 * PER_MS;
/// An agent that is not silent this long after an interruption began has missed it.
const MISSED: u64 = 1_000 * PER_MS;
/// A stop counts as the answer to a sound until so long after that sound's end.
const AFTER_SPEECH: u64 = 1_000 * PER_MS;
const AFTER_NOISE: u64 = 800 * PER_MS;
/// How near `clear` must be to the beginning of a gap to have made it.
const CLEAR_NEAR: u64 = 60 * PER_MS;

/// What became of one thing that the caller said. Times are milliseconds since the call's start.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TurnReport {
    /// Counted from 1.
    pub turn: usize,
    pub kind: Kind,
    pub text: String,
    /// When the frames with the first and the last voiced sample were due to leave.
    pub onset_ms: f64,
    pub offset_ms: f64,
    /// Last voiced frame → first audible agent sound at the ear. `None` where no reply is wanted or none came.
    pub reply_ms: Option<f64>,
    /// Last voiced frame → first media message after a silence of the server, audible or not.
    pub first_frame_ms: Option<f64>,
    /// The agent began to speak while the caller was still speaking: its wait was too short.
    pub cut_off: bool,
    /// First voiced frame → last agent sound at the ear, with all that was buffered and not cleared.
    pub barge_in_ms: Option<f64>,
    /// The agent was not silent within a second.
    pub barge_in_missed: bool,
}

/// A gap that the server made in the agent's speech although the caller had not taken the turn.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pause {
    pub at_ms: f64,
    pub gap_ms: f64,
    pub cause: PauseCause,
    /// Whether the server threw away what was buffered.
    pub cleared: bool,
    /// Whether the agent went on before the caller's next turn.
    pub resumed: bool,
    /// 300 ms or longer: the listener notices.
    pub false_stop: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseCause {
    Noise,
    Backchannel,
    /// Neither speech nor a noise of the fixture was near: the background, or the agent's own echo.
    Background,
}

/// The figures of one call.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    pub turns: Vec<TurnReport>,
    pub pauses: Vec<Pause>,
    /// How long the agent was heard speaking, pauses under 300 ms included.
    pub agent_speech_s: f64,
    /// Turns to be answered that were not, among those that were said.
    pub unanswered: usize,
}

impl Figures {
    pub fn false_stops(&self) -> usize {
        self.pauses.iter().filter(|pause| pause.false_stop).count()
    }
}

pub fn ms(samples: u64) -> f64 {
    samples as f64 / PER_MS as f64
}

/// `end` is when the call ended.
pub fn measure(fixture: &Fixture, played: &[Played], heard: &Heard, end: u64) -> Figures {
    let kind_of = |played: &Played| fixture.turns[played.turn].kind;
    let next_speech = |after: u64| {
        played.iter().filter(|p| kind_of(p).wants_reply()).map(|p| p.onset_sent).find(|at| *at > after).unwrap_or(end)
    };
    let turns: Vec<TurnReport> = played
        .iter()
        .map(|said| {
            let kind = kind_of(said);
            let mut report = TurnReport {
                turn: said.turn + 1,
                kind,
                text: fixture.turns[said.turn].text.clone(),
                onset_ms: ms(said.onset_sent),
                offset_ms: ms(said.offset_sent),
                reply_ms: None,
                first_frame_ms: None,
                cut_off: false,
                barge_in_ms: None,
                barge_in_missed: false,
            };
            if kind.wants_reply() {
                let until = next_speech(said.onset_sent);
                let t0 = said.offset_sent;
                report.cut_off = begins(&heard.spans).any(|from| from > said.onset_sent && from < t0);
                if let Some(t1) = begins(&heard.spans).find(|from| *from >= t0 && *from < until) {
                    report.reply_ms = Some(ms(t1 - t0));
                    // Onsets are placed to a hop of 5 ms, arrivals exactly.
                    let first = heard.bursts.iter().find(|at| **at >= t0 && **at <= t1 + 5 * PER_MS);
                    report.first_frame_ms = first.map(|at| ms(at - t0));
                }
            }
            if kind == Kind::Interruption
                && said.into_speech
                && let Some(stopped) = stopped_at(&heard.spans, said.onset_sent)
            {
                report.barge_in_ms = Some(ms(stopped - said.onset_sent));
                report.barge_in_missed = stopped - said.onset_sent > MISSED;
            }
            report
        })
        .collect();
    let pauses = pauses(fixture, played, heard, end, next_speech);
    let unanswered = turns.iter().filter(|turn| turn.kind.wants_reply() && turn.reply_ms.is_none()).count();
    Figures { turns, pauses, agent_speech_s: ms(speech(&heard.spans)) / 1_000.0, unanswered }
}

/// Where the agent takes up speech: onsets after a silence of 300 ms or more.
fn begins(spans: &[Span]) -> impl Iterator<Item = u64> {
    spans
        .iter()
        .enumerate()
        .filter(|(index, span)| *index == 0 || span.from - spans[index - 1].to >= STOP)
        .map(|(_, span)| span.from)
}

/// The agent's last sound before its first silence of 300 ms at or after `onset`; `None` if it was silent already.
fn stopped_at(spans: &[Span], onset: u64) -> Option<u64> {
    let first = spans.partition_point(|span| span.to < onset);
    let covers = spans.get(first)?.from <= onset
        || first.checked_sub(1).is_some_and(|before| spans[first].from - spans[before].to < STOP);
    if !covers {
        return None;
    }
    spans[first..]
        .iter()
        .zip(spans[first + 1..].iter().map(|next| next.from).chain(std::iter::once(u64::MAX)))
        .find(|(span, next)| next - span.to >= STOP)
        .map(|(span, _)| span.to)
}

fn speech(spans: &[Span]) -> u64 {
    let bridged: u64 = spans.windows(2).map(|pair| pair[1].from - pair[0].to).filter(|gap| *gap < STOP).sum();
    spans.iter().map(|span| span.to - span.from).sum::<u64>() + bridged
}

fn pauses(
    fixture: &Fixture,
    played: &[Played],
    heard: &Heard,
    end: u64,
    next_speech: impl Fn(u64) -> u64,
) -> Vec<Pause> {
    let near = |at: u64, wanted: bool| {
        played.iter().map(|said| (said, fixture.turns[said.turn].kind)).find(|(said, kind)| {
            let after = if wanted { AFTER_SPEECH } else { AFTER_NOISE };
            kind.wants_reply() == wanted && at + CLEAR_NEAR >= said.onset_sent && at <= said.offset_sent + after
        })
    };
    let mut found = Vec::new();
    for (index, span) in heard.spans.iter().enumerate() {
        let next = heard.spans.get(index + 1).map(|next| next.from);
        let taken_up = next_speech(span.to);
        let until = next.unwrap_or(end).min(taken_up);
        let gap = until.saturating_sub(span.to);
        let resumed = next.is_some_and(|from| from < taken_up);
        if gap < PAUSE || near(span.to, true).is_some() {
            continue;
        }
        let cleared = heard.clears.iter().any(|clear| clear.abs_diff(span.to) <= CLEAR_NEAR);
        let noise = near(span.to, false);
        // Without a `clear`, only a gap with nothing to play is the server's doing; a reply that simply ended is none.
        let starved: u64 =
            heard.starved.iter().map(|nothing| nothing.to.min(until).saturating_sub(nothing.from.max(span.to))).sum();
        let made = cleared || (noise.is_some() && resumed && starved >= PAUSE);
        if !made {
            continue;
        }
        let cause = match noise {
            Some((_, Kind::Backchannel)) => PauseCause::Backchannel,
            Some(_) => PauseCause::Noise,
            None => PauseCause::Background,
        };
        found.push(Pause { at_ms: ms(span.to), gap_ms: ms(gap), cause, cleared, resumed, false_stop: gap >= STOP });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::fixture::{Expect, Start, Turn};

    const MS: u64 = PER_MS;

    fn fixture(kinds: &[Kind]) -> Fixture {
        Fixture {
            name: "test".into(),
            title: String::new(),
            language: "en".into(),
            workflow: String::new(),
            voice: String::new(),
            background: None,
            echo: None,
            turns: kinds
                .iter()
                .map(|kind| Turn {
                    kind: *kind,
                    text: "x".into(),
                    start: Start::AfterAgent(0),
                    speech: vec![],
                    samples: vec![],
                    keys: String::new(),
                })
                .collect(),
            expect: Expect::default(),
        }
    }

    fn said(turn: usize, onset_ms: u64, offset_ms: u64, into_speech: bool) -> Played {
        Played { turn, from: onset_ms * MS, onset_sent: onset_ms * MS, offset_sent: offset_ms * MS, into_speech }
    }

    fn spans(pairs: &[(u64, u64)]) -> Vec<Span> {
        pairs.iter().map(|(from, to)| Span { from: from * MS, to: to * MS }).collect()
    }

    #[test]
    fn a_reply_is_counted_from_the_last_voiced_frame_to_the_first_sound() {
        let heard =
            Heard { spans: spans(&[(0, 900), (3_550, 5_000)]), bursts: vec![0, 3_500 * MS], ..Heard::default() };
        let figures = measure(&fixture(&[Kind::Turn]), &[said(0, 2_000, 3_000, false)], &heard, 6_000 * MS);
        assert_eq!(figures.turns[0].reply_ms, Some(550.0));
        assert_eq!(figures.turns[0].first_frame_ms, Some(500.0));
        assert!(!figures.turns[0].cut_off);
        assert_eq!(figures.unanswered, 0);
        assert_eq!(figures.agent_speech_s, 2.35);
    }

    #[test]
    fn an_agent_that_speaks_into_the_callers_pause_has_cut_it_off() {
        let heard = Heard { spans: spans(&[(0, 900), (2_500, 2_800)]), ..Heard::default() };
        let figures = measure(&fixture(&[Kind::Turn]), &[said(0, 2_000, 3_000, false)], &heard, 6_000 * MS);
        assert!(figures.turns[0].cut_off);
        assert_eq!((figures.turns[0].reply_ms, figures.unanswered), (None, 1));
    }

    #[test]
    fn a_barge_in_lasts_until_the_last_sound_before_a_silence() {
        // A gap of 120 ms between words is no stop.
        let heard = Heard { spans: spans(&[(0, 950), (1_070, 1_180), (2_900, 4_000)]), ..Heard::default() };
        let figures = measure(&fixture(&[Kind::Interruption]), &[said(0, 1_000, 2_000, true)], &heard, 5_000 * MS);
        assert_eq!(figures.turns[0].barge_in_ms, Some(180.0));
        assert_eq!(figures.turns[0].reply_ms, Some(900.0));
        assert!(!figures.turns[0].barge_in_missed);
    }

    #[test]
    fn an_agent_that_talks_on_has_missed_the_interruption() {
        let heard = Heard { spans: spans(&[(0, 4_000)]), ..Heard::default() };
        let figures = measure(&fixture(&[Kind::Interruption]), &[said(0, 1_000, 2_000, true)], &heard, 5_000 * MS);
        assert!(figures.turns[0].barge_in_missed);
        assert_eq!((figures.turns[0].barge_in_ms, figures.unanswered), (Some(3_000.0), 1));
    }

    #[test]
    fn a_pause_for_a_cough_is_counted_with_whether_the_agent_went_on() {
        let heard = Heard { spans: spans(&[(0, 1_080), (1_500, 3_000)]), clears: vec![1_080 * MS], ..Heard::default() };
        let figures = measure(&fixture(&[Kind::Noise]), &[said(0, 1_000, 1_200, true)], &heard, 9_000 * MS);
        let [pause] = &figures.pauses[..] else { panic!("{figures:?}") };
        assert_eq!((pause.at_ms, pause.gap_ms, pause.cause), (1_080.0, 420.0, PauseCause::Noise));
        assert!(pause.resumed && pause.false_stop && pause.cleared);
        assert_eq!(figures.unanswered, 0);
    }

    #[test]
    fn a_stop_that_nothing_but_the_background_explains_is_counted_apart() {
        let heard = Heard { spans: spans(&[(0, 1_000), (1_200, 3_000)]), clears: vec![995 * MS], ..Heard::default() };
        let figures = measure(&fixture(&[]), &[], &heard, 9_000 * MS);
        assert_eq!(figures.pauses.len(), 1);
        assert_eq!(figures.pauses[0].cause, PauseCause::Background);
        assert!(!figures.pauses[0].false_stop);
        assert_eq!(figures.false_stops(), 0);
    }

    #[test]
    fn stopping_for_the_caller_and_gaps_between_sentences_are_no_false_stops() {
        let heard = Heard {
            spans: spans(&[(0, 500), (900, 1_080), (3_000, 4_000)]),
            clears: vec![1_080 * MS],
            ..Heard::default()
        };
        let figures = measure(&fixture(&[Kind::Interruption]), &[said(0, 1_000, 2_000, true)], &heard, 5_000 * MS);
        assert!(figures.pauses.is_empty(), "{:?}", figures.pauses);
    }
}
