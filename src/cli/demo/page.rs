//! The page about one call: both sides as waveforms on one time axis, what was said, where the time of each reply
//! went. One file without outside assets, light and dark, fit to be printed.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use askama::Template;

use crate::cli::demo::judge::Verdict;
use crate::conversation::transcript::Line;
use crate::telephony::Party;

/// The recording's rate.
const RATE_HZ: usize = 8_000;
/// Drawing: pixels for a second, the least and the most of all, heights of a lane and what is around it.
const PX_PER_S: f64 = 26.0;
const MIN_WIDTH: f64 = 1_100.0;
const MAX_WIDTH: f64 = 30_000.0;
const LANE: f64 = 84.0;
const CAPTION: f64 = 18.0;
const AXIS: f64 = 20.0;
/// Width of a letter in the captions, for cutting them to their box.
const LETTER_PX: f64 = 5.9;
/// The waveform is scaled to its loudest sample, but not beyond this: silence stays flat.
const QUIETEST_PEAK: f64 = 3_000.0;

/// What the page shows.
#[derive(Clone, Debug, Default)]
pub struct ReportInput {
    pub title: String,
    /// Caller and agent, 8 kHz, on one time axis that starts with the call.
    pub wav: [Vec<i16>; 2],
    pub turns: Vec<ReportTurn>,
    /// Named figures, such as `reply p50` and `612 ms`.
    pub figures: Vec<(String, String)>,
    pub verdicts: Vec<Verdict>,
}

/// One side speaking once, with how it came about. Times are milliseconds since the call's start, those of the stages
/// since the end of the caller's speech.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportTurn {
    pub who: Party,
    pub text: String,
    /// Where it was cut short: what of it was heard.
    pub heard: Option<String>,
    pub start_ms: u64,
    pub end_ms: u64,
    pub stages: Vec<Stage>,
}

/// One bar of a waterfall.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    pub name: &'static str,
    pub from_ms: f64,
    pub to_ms: f64,
}

impl From<&Line> for ReportTurn {
    fn from(turn: &Line) -> Self {
        Self {
            who: turn.who,
            text: turn.text.clone(),
            heard: turn.heard.clone(),
            start_ms: turn.start_ms,
            end_ms: turn.end_ms,
            stages: waterfall(&turn.stages),
        }
    }
}

/// The stages of a reply, in the order of their colours.
const STAGES: [&str; 6] = [
    "wait for the end of the turn",
    "recognition",
    "model: first word",
    "model: first clause",
    "voice: first sound",
    "playout",
];

/// From when each stage was reached to how long it took. The wait for the end of the turn runs beside recognition and
/// the model (speculation); what is ready before it is held until it is over.
pub fn waterfall(reached: &BTreeMap<String, f64>) -> Vec<Stage> {
    let at = |name: &str| reached.get(name).copied().filter(|ms| ms.is_finite());
    let mut stages = Vec::new();
    let mut push = |name, from: f64, to: Option<f64>| {
        if let Some(to) = to {
            stages.push(Stage { name, from_ms: from.min(to), to_ms: to });
        }
        to
    };
    let endpoint = push(STAGES[0], 0.0, at("endpoint"));
    let transcript = push(STAGES[1], 0.0, at("transcript"));
    let token = push(STAGES[2], transcript.unwrap_or(0.0), at("first_token"));
    let before = token.or(transcript).unwrap_or(0.0);
    let clause = push(STAGES[3], before, at("first_clause"));
    let before = clause.unwrap_or(before);
    let audio = push(STAGES[4], before, at("first_audio"));
    let ready = audio.unwrap_or(before).max(endpoint.unwrap_or(0.0));
    push(STAGES[5], ready, at("audible"));
    stages
}

impl ReportInput {
    pub fn html(&self) -> askama::Result<String> {
        Page::of(self).render()
    }
}

#[derive(Template)]
#[template(path = "call_report.html")]
struct Page<'a> {
    input: &'a ReportInput,
    length: String,
    width: f64,
    height: f64,
    lanes: [Lane; 2],
    ticks: Vec<Tick>,
    boxes: Vec<TurnBox<'a>>,
    rows: Vec<Row<'a>>,
    ok: bool,
}

struct Lane {
    class: &'static str,
    name: &'static str,
    middle: f64,
    path: String,
}

struct Tick {
    x: f64,
    label: String,
}

/// A turn on the waveform.
struct TurnBox<'a> {
    class: &'static str,
    x: f64,
    y: f64,
    width: f64,
    caption_y: f64,
    caption: String,
    text: &'a str,
}

/// A turn in the list.
struct Row<'a> {
    turn: &'a ReportTurn,
    class: &'static str,
    at: String,
    audible_ms: Option<f64>,
    bars: Vec<Bar>,
}

/// A bar, in per cent of the longest waterfall.
struct Bar {
    name: &'static str,
    class: usize,
    left: f64,
    width: f64,
    from_ms: f64,
    took_ms: f64,
}

impl<'a> Page<'a> {
    fn of(input: &'a ReportInput) -> Self {
        let samples = input.wav[0].len().max(input.wav[1].len());
        let last_turn_s = input.turns.iter().map(|turn| turn.end_ms).max().unwrap_or(0) as f64 / 1_000.0;
        let length_s = (samples as f64 / RATE_HZ as f64).max(last_turn_s).max(1.0);
        let width = (length_s * PX_PER_S).clamp(MIN_WIDTH, MAX_WIDTH).round();
        let px_per_s = width / length_s;
        // From the top: captions of the caller, its lane, the axis, the agent's lane, its captions.
        let tops = [CAPTION, CAPTION + LANE + AXIS];
        let side = |who: Party| usize::from(who != Party::Caller);
        let lanes = [("caller", 0), ("agent", 1)].map(|(class, side)| Lane {
            class,
            name: class,
            middle: tops[side] + LANE / 2.0,
            path: outline(&input.wav[side], px_per_s, tops[side] + LANE / 2.0),
        });
        let boxes = input
            .turns
            .iter()
            .map(|turn| {
                let side = side(turn.who);
                let x = turn.start_ms as f64 / 1_000.0 * px_per_s;
                let width = (turn.end_ms.saturating_sub(turn.start_ms) as f64 / 1_000.0 * px_per_s).max(2.0);
                let caption_y = if side == 0 { CAPTION - 5.0 } else { tops[1] + LANE + 13.0 };
                TurnBox {
                    class: ["caller", "agent"][side],
                    x,
                    y: tops[side],
                    width,
                    caption_y,
                    caption: cut(&turn.text, (width / LETTER_PX) as usize),
                    text: &turn.text,
                }
            })
            .collect();
        let longest = input.turns.iter().flat_map(|turn| &turn.stages).map(|stage| stage.to_ms).fold(1.0, f64::max);
        let rows = input
            .turns
            .iter()
            .map(|turn| Row {
                turn,
                class: ["caller", "agent"][side(turn.who)],
                at: clock(turn.start_ms as f64 / 1_000.0, true),
                audible_ms: turn.stages.iter().map(|stage| stage.to_ms).reduce(f64::max),
                bars: turn
                    .stages
                    .iter()
                    .map(|stage| Bar {
                        name: stage.name,
                        class: STAGES.iter().position(|name| *name == stage.name).unwrap_or(0),
                        left: (stage.from_ms / longest * 100.0).clamp(0.0, 100.0),
                        width: ((stage.to_ms - stage.from_ms) / longest * 100.0).clamp(0.3, 100.0),
                        from_ms: stage.from_ms,
                        took_ms: stage.to_ms - stage.from_ms,
                    })
                    .collect(),
            })
            .collect();
        Self {
            input,
            length: clock(length_s, true),
            width,
            height: tops[1] + LANE + CAPTION,
            lanes,
            ticks: ticks(length_s, px_per_s),
            boxes,
            rows,
            ok: input.verdicts.iter().all(|verdict| verdict.ok),
        }
    }
}

/// The outline of a waveform: the largest sample of every pixel along the top, the smallest back along the bottom.
fn outline(samples: &[i16], px_per_s: f64, middle: f64) -> String {
    let per_px = RATE_HZ as f64 / px_per_s;
    let peak = samples.iter().map(|s| f64::from(s.unsigned_abs())).fold(QUIETEST_PEAK, f64::max);
    let scale = (LANE / 2.0 - 3.0) / peak;
    let columns = (samples.len() as f64 / per_px).ceil() as usize;
    let column = |x: usize| {
        let start = (x as f64 * per_px) as usize;
        let end = (((x + 1) as f64 * per_px) as usize).clamp(start + 1, samples.len().max(start + 1));
        samples.get(start..end.min(samples.len())).unwrap_or_default()
    };
    let mut path = format!("M0 {middle:.1}");
    // Writing to a string does not fail.
    for x in 0..columns {
        let high = column(x).iter().copied().max().unwrap_or(0).max(0);
        let _ = write!(path, "L{x} {:.1}", middle - f64::from(high) * scale - 0.3);
    }
    for x in (0..columns).rev() {
        let low = column(x).iter().copied().min().unwrap_or(0).min(0);
        let _ = write!(path, "L{x} {:.1}", middle - f64::from(low) * scale + 0.3);
    }
    path.push('Z');
    path
}

/// Whole seconds, so far apart that their labels have room.
fn ticks(length_s: f64, px_per_s: f64) -> Vec<Tick> {
    let step = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600].into_iter().find(|step| f64::from(*step) * px_per_s >= 60.0);
    let step = step.unwrap_or(1_800) as usize;
    (0..=length_s as usize)
        .step_by(step)
        .map(|s| Tick { x: s as f64 * px_per_s, label: clock(s as f64, false) })
        .collect()
}

fn clock(seconds: f64, tenths: bool) -> String {
    let minutes = (seconds / 60.0) as u64;
    let seconds = seconds - minutes as f64 * 60.0;
    if tenths { format!("{minutes}:{seconds:04.1}") } else { format!("{minutes}:{seconds:02.0}") }
}

fn cut(text: &str, letters: usize) -> String {
    if text.chars().count() <= letters {
        return text.into();
    }
    match letters {
        0..4 => String::new(),
        _ => text.chars().take(letters - 1).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(pairs: &[(&str, f64)]) -> BTreeMap<String, f64> {
        pairs.iter().map(|(name, ms)| (name.to_string(), *ms)).collect()
    }

    fn turn(who: Party, text: &str, start_ms: u64, end_ms: u64, stages: Vec<Stage>) -> ReportTurn {
        ReportTurn { who, text: text.into(), heard: None, start_ms, end_ms, stages }
    }

    #[test]
    fn the_stages_follow_each_other_and_the_wait_runs_beside_them() {
        let stages = waterfall(&reached(&[
            ("endpoint", 300.0),
            ("transcript", 180.0),
            ("first_token", 330.0),
            ("first_clause", 390.0),
            ("first_audio", 510.0),
            ("audible", 520.0),
        ]));
        let shape: Vec<(f64, f64)> = stages.iter().map(|stage| (stage.from_ms, stage.to_ms)).collect();
        assert_eq!(shape, [(0.0, 300.0), (0.0, 180.0), (180.0, 330.0), (330.0, 390.0), (390.0, 510.0), (510.0, 520.0)]);
        // A cached answer waits for the end of the turn only.
        let held = waterfall(&reached(&[("endpoint", 300.0), ("transcript", 100.0), ("audible", 305.0)]));
        assert_eq!(held.last().map(|stage| (stage.from_ms, stage.to_ms)), Some((300.0, 305.0)));
        assert!(waterfall(&BTreeMap::new()).is_empty());
    }

    #[test]
    fn a_waveform_is_drawn_over_its_whole_length_and_not_beyond_its_lane() {
        let samples: Vec<i16> = (0..16_000).map(|n| if n % 2 == 0 { i16::MAX } else { i16::MIN }).collect();
        let path = outline(&samples, 50.0, 100.0);
        let heights: Vec<f64> =
            path.split(['L', 'M', 'Z']).filter_map(|point| point.split_once(' ')?.1.parse().ok()).collect();
        assert_eq!(heights.len(), 201);
        assert!(heights.iter().all(|y| (100.0 - LANE / 2.0..=100.0 + LANE / 2.0).contains(y)));
        assert_eq!(outline(&[], 50.0, 100.0), "M0 100.0Z");
    }

    #[test]
    fn the_page_shows_both_sides_and_needs_nothing_from_outside() {
        let stages = vec![Stage { name: "recognition", from_ms: 0.0, to_ms: 180.0 }];
        let input = ReportInput {
            title: "Books a table".into(),
            wav: [vec![1_000; 80_000], vec![-1_000; 72_000]],
            turns: vec![
                turn(Party::Agent, "Hello, how can I help?", 0, 1_500, vec![]),
                turn(Party::Caller, "what <time> do you open", 2_000, 4_000, vec![]),
                turn(Party::Agent, "We open at nine.", 4_500, 6_000, stages),
            ],
            figures: vec![("reply p50".into(), "512 ms".into())],
            verdicts: vec![Verdict {
                check: "slot day".into(), ok: false, detail: "“friday” was not heard".into()
            }],
        };
        let html = input.html().unwrap();
        for part in ["what &#60;time&#62; do", "We open at nine.", "slot day", "512 ms", "recognition", "0:10.0"] {
            assert!(html.contains(part), "{part}");
        }
        for outside in ["src=", "href=", "@import", "url(", "http:", "https:"] {
            assert!(!html.contains(outside), "{outside}");
        }
    }
}
