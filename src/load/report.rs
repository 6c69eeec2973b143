//! Many calls to one page: percentiles, failures by cause, a verdict against a budget; as text, JSON and HTML.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr;

use askama::Template;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::load::caller::CallerReport;

/// A generator that is later than this has measured itself (research/streaming.md §7): the run is void.
const VOID_P99_MS: f64 = 5.0;
const VOID_MAX_MS: f64 = 20.0;
/// Largest value a histogram keeps: ten minutes in microseconds.
const MAX_US: u64 = 600_000_000;

/// Calls whose turns the page lists; a browser is slow with more.
const SHOWN_CALLS: usize = 200;

/// What was asked for, as it is shown; holds no secret.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub target: String,
    pub fixtures: Vec<String>,
    pub calls: usize,
    pub calls_per_s: Option<f64>,
    pub seed: u64,
    pub duration_s: f64,
    /// The most calls that were open at one time.
    pub peak_calls: usize,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    pub count: u64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

impl Percentiles {
    /// From values in microseconds; larger ones than ten minutes count as ten minutes.
    pub fn of(values_us: impl IntoIterator<Item = u64>) -> Self {
        let mut histogram =
            Histogram::<u64>::new_with_bounds(1, MAX_US, 3).expect("1 ≤ 2 ≤ max and three digits are valid bounds");
        for value in values_us {
            histogram.saturating_record(value.min(MAX_US));
        }
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1_000.0;
        Self {
            count: histogram.len(),
            p50: at(0.50),
            p90: at(0.90),
            p95: at(0.95),
            p99: at(0.99),
            max: histogram.max() as f64 / 1_000.0,
        }
    }

    fn named(&self, name: &str) -> Option<f64> {
        match name {
            "p50" => Some(self.p50),
            "p90" => Some(self.p90),
            "p95" => Some(self.p95),
            "p99" => Some(self.p99),
            "max" => Some(self.max),
            _ => None,
        }
    }
}

/// One limit of a budget: `reply_p50=600ms`, `failures=0`.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    pub figure: String,
    pub at_most: f64,
}

#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    #[error("`{0}` is no limit; write name=value, as in reply_p50=600ms")]
    Shape(String),
    #[error(
        "`{0}` is no figure; there are reply, first_frame, barge_in, connect, invite, lateness with _p50 _p90 _p95 _p99 _max, and {1}"
    )]
    Unknown(String, String),
}

/// A list of limits, comma-separated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Budget(pub Vec<Limit>);

const COUNTS: [&str; 7] = [
    "failures",
    "unanswered",
    "cut_offs",
    "barge_in_missed",
    "false_stops",
    "false_stops_per_minute",
    "rtp_loss_percent",
];
const TIMES: [&str; 6] = ["reply", "first_frame", "barge_in", "connect", "invite", "lateness"];

impl FromStr for Budget {
    type Err = BudgetError;

    fn from_str(text: &str) -> Result<Self, BudgetError> {
        let limit = |part: &str| {
            let (figure, value) = part.split_once('=').ok_or_else(|| BudgetError::Shape(part.into()))?;
            let (figure, value) = (figure.trim(), value.trim());
            let time = figure.rsplit_once('_').is_some_and(|(time, quantile)| {
                TIMES.contains(&time) && Percentiles::default().named(quantile).is_some()
            });
            if !time && !COUNTS.contains(&figure) {
                return Err(BudgetError::Unknown(figure.into(), COUNTS.join(", ")));
            }
            let (number, factor) = match (value.strip_suffix("ms"), value.strip_suffix('s')) {
                (Some(number), _) => (number, 1.0),
                (None, Some(number)) => (number, 1_000.0),
                (None, None) => (value, 1.0),
            };
            match number.trim().parse::<f64>() {
                Ok(number) if number.is_finite() && number >= 0.0 => {
                    Ok(Limit { figure: figure.into(), at_most: number * factor })
                }
                _ => Err(BudgetError::Shape(part.into())),
            }
        };
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(limit).collect::<Result<_, _>>().map(Budget)
    }
}

/// One limit, held against what was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    pub figure: String,
    pub at_most: f64,
    /// `None`: nothing was measured, which breaks the budget.
    pub measured: Option<f64>,
    pub held: bool,
}

/// What the packets of all calls say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct RtpSums {
    pub sent: u64,
    pub received: u64,
    pub lost: u64,
    pub late: u64,
    pub duplicates: u64,
    /// Of the packets that should have come, those that never did.
    pub loss_percent: f64,
    /// Over the calls, each with its mean.
    pub jitter: Percentiles,
    /// Over the calls, each with its worst packet.
    pub worst: Percentiles,
}

impl RtpSums {
    /// `None`: no call was by RTP.
    fn of(calls: &[CallerReport]) -> Option<Self> {
        let all = || calls.iter().filter_map(|call| call.rtp);
        all().next()?;
        let us = |ms: f64| (ms * 1_000.0).round() as u64;
        let mut sums = all().fold(Self::default(), |sums, call| Self {
            sent: sums.sent + call.sent,
            received: sums.received + call.received,
            lost: sums.lost + call.lost,
            late: sums.late + call.late,
            duplicates: sums.duplicates + call.duplicates,
            ..sums
        });
        let expected = sums.received - sums.duplicates + sums.lost;
        sums.loss_percent = if expected == 0 { 0.0 } else { sums.lost as f64 * 100.0 / expected as f64 };
        sums.jitter = Percentiles::of(all().map(|call| us(call.jitter_ms)));
        sums.worst = Percentiles::of(all().map(|call| us(call.worst_ms)));
        Some(sums)
    }
}

/// The whole run.
#[derive(Clone, Debug, Serialize)]
pub struct LoadReport {
    pub run: Run,
    pub reply: Percentiles,
    pub first_frame: Percentiles,
    pub barge_in: Percentiles,
    pub connect: Percentiles,
    /// By SIP: from the INVITE to its 200.
    pub invite: Percentiles,
    pub lateness: Percentiles,
    pub rtp: Option<RtpSums>,
    pub finished: usize,
    pub failures: BTreeMap<String, usize>,
    pub turns: usize,
    pub unanswered: usize,
    pub cut_offs: usize,
    pub barge_in_missed: usize,
    pub agent_speech_s: f64,
    pub pauses: usize,
    pub pauses_resumed: usize,
    pub false_stops: usize,
    pub false_stops_per_minute: f64,
    /// Why the figures mean nothing, if they do.
    pub void: Option<String>,
    pub budget: Vec<Verdict>,
    pub calls: Vec<CallerReport>,
}

impl LoadReport {
    pub fn new(run: Run, budget: &Budget, calls: Vec<CallerReport>) -> Self {
        let turns = || calls.iter().flat_map(|call| &call.figures.turns);
        let pauses = || calls.iter().flat_map(|call| &call.figures.pauses);
        let us = |value: f64| (value * 1_000.0).round() as u64;
        let mut failures = BTreeMap::new();
        for call in calls.iter().filter(|call| call.ending.is_failure()) {
            *failures.entry(call.ending.label().to_string()).or_insert(0) += 1;
        }
        let lateness = Percentiles::of(calls.iter().flat_map(|call| &call.lateness_us).map(|late| u64::from(*late)));
        let agent_speech_s: f64 = calls.iter().map(|call| call.figures.agent_speech_s).sum();
        let false_stops = pauses().filter(|pause| pause.false_stop).count();
        let mut report = Self {
            run,
            reply: Percentiles::of(turns().filter_map(|turn| turn.reply_ms).map(us)),
            first_frame: Percentiles::of(turns().filter_map(|turn| turn.first_frame_ms).map(us)),
            barge_in: Percentiles::of(turns().filter_map(|turn| turn.barge_in_ms).map(us)),
            connect: Percentiles::of(calls.iter().filter_map(|call| call.connect_ms).map(us)),
            invite: Percentiles::of(calls.iter().filter_map(|call| call.invite_ms).map(us)),
            lateness,
            rtp: RtpSums::of(&calls),
            finished: calls.iter().filter(|call| !call.ending.is_failure()).count(),
            failures,
            turns: turns().filter(|turn| turn.kind.wants_reply()).count(),
            unanswered: calls.iter().map(|call| call.figures.unanswered).sum(),
            cut_offs: turns().filter(|turn| turn.cut_off).count(),
            barge_in_missed: turns().filter(|turn| turn.barge_in_missed).count(),
            agent_speech_s,
            pauses: pauses().count(),
            pauses_resumed: pauses().filter(|pause| pause.resumed).count(),
            false_stops,
            false_stops_per_minute: if agent_speech_s > 0.0 { false_stops as f64 * 60.0 / agent_speech_s } else { 0.0 },
            void: void(&lateness),
            budget: Vec::new(),
            calls,
        };
        report.budget = budget.0.iter().map(|limit| report.judge(limit)).collect();
        report
    }

    fn judge(&self, limit: &Limit) -> Verdict {
        let times = |name: &str| match name {
            "reply" => Some(self.reply),
            "first_frame" => Some(self.first_frame),
            "barge_in" => Some(self.barge_in),
            "connect" => Some(self.connect),
            "invite" => Some(self.invite),
            "lateness" => Some(self.lateness),
            _ => None,
        };
        let measured = match limit.figure.as_str() {
            "failures" => Some(self.failures.values().sum::<usize>() as f64),
            "unanswered" => Some(self.unanswered as f64),
            "cut_offs" => Some(self.cut_offs as f64),
            "barge_in_missed" => Some(self.barge_in_missed as f64),
            "false_stops" => Some(self.false_stops as f64),
            "false_stops_per_minute" => Some(self.false_stops_per_minute),
            "rtp_loss_percent" => self.rtp.map(|rtp| rtp.loss_percent),
            figure => figure.rsplit_once('_').and_then(|(name, quantile)| {
                times(name).filter(|percentiles| percentiles.count > 0).and_then(|p| p.named(quantile))
            }),
        };
        Verdict {
            figure: limit.figure.clone(),
            at_most: limit.at_most,
            measured,
            held: measured.is_some_and(|measured| measured <= limit.at_most),
        }
    }

    /// Nothing failed and the budget holds.
    pub fn passed(&self) -> bool {
        self.failures.is_empty() && self.budget.iter().all(|verdict| verdict.held)
    }

    /// The times, in the order in which they are shown.
    fn times(&self) -> Vec<(&'static str, Percentiles)> {
        let mut times = vec![
            ("reply", self.reply),
            ("first frame", self.first_frame),
            ("barge-in", self.barge_in),
            ("connect", self.connect),
            ("generator lateness", self.lateness),
        ];
        if self.invite.count > 0 {
            times.insert(4, ("INVITE to 200", self.invite));
        }
        times
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let failures: Vec<String> = self.failures.iter().map(|(cause, count)| format!("{cause} {count}")).collect();
        let mut facts = vec![
            ("calls", format!("{} finished, {} at once at most", self.finished, self.run.peak_calls)),
            ("failures", if failures.is_empty() { "none".into() } else { failures.join(", ") }),
            ("turns", format!("{} said, {} unanswered, {} cut off", self.turns, self.unanswered, self.cut_offs)),
            ("interruptions missed", self.barge_in_missed.to_string()),
            ("agent speech", format!("{:.1} s", self.agent_speech_s)),
            (
                "false stops",
                format!(
                    "{} ({:.2} a minute of agent speech); pauses of 100 ms and more: {}, gone on after: {}",
                    self.false_stops, self.false_stops_per_minute, self.pauses, self.pauses_resumed
                ),
            ),
        ];
        if let Some(rtp) = &self.rtp {
            let text = format!(
                "{} packets sent, {} received, {} lost ({:.3} %), {} late, {} doubled; jitter of calls p50 {:.2} ms, \
                 p99 {:.2} ms; each call's worst packet p50 {:.1} ms, max {:.1} ms",
                rtp.sent,
                rtp.received,
                rtp.lost,
                rtp.loss_percent,
                rtp.late,
                rtp.duplicates,
                rtp.jitter.p50,
                rtp.jitter.p99,
                rtp.worst.p50,
                rtp.worst.max
            );
            facts.push(("RTP", text));
        }
        facts
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{:<20}{:>8}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "ms", "count", "p50", "p90", "p95", "p99", "max"
        );
        for (name, p) in self.times() {
            if p.count == 0 {
                let _ = writeln!(out, "{name:<20}{:>8}", 0);
            } else {
                let _ = writeln!(
                    out,
                    "{name:<20}{:>8}{:>10.1}{:>10.1}{:>10.1}{:>10.1}{:>10.1}",
                    p.count, p.p50, p.p90, p.p95, p.p99, p.max
                );
            }
        }
        for (name, fact) in self.facts() {
            let _ = writeln!(out, "{name:<22}{fact}");
        }
        for verdict in &self.budget {
            let measured = verdict.measured.map_or("nothing measured".into(), |measured| format!("{measured:.1}"));
            let word = if verdict.held { "held" } else { "BROKEN" };
            let _ = writeln!(out, "budget {:<22}{measured} of {:.1}: {word}", verdict.figure, verdict.at_most);
        }
        if let Some(void) = &self.void {
            let _ = writeln!(out, "VOID: {void}");
        }
        out
    }

    /// One page without outside assets.
    pub fn html(&self) -> askama::Result<String> {
        let shown = &self.calls[..self.calls.len().min(SHOWN_CALLS)];
        LoadPage { report: self, times: self.times(), facts: self.facts(), shown }.render()
    }
}

fn void(lateness: &Percentiles) -> Option<String> {
    let late = lateness.p99 > VOID_P99_MS || lateness.max > VOID_MAX_MS;
    late.then(|| {
        format!(
            "the generator was late itself (p99 {:.1} ms, max {:.1} ms; allowed {VOID_P99_MS} and {VOID_MAX_MS}): \
             the figures say nothing about the server",
            lateness.p99, lateness.max
        )
    })
}

#[derive(Template)]
#[template(path = "load_report.html")]
struct LoadPage<'a> {
    report: &'a LoadReport,
    times: Vec<(&'static str, Percentiles)>,
    facts: Vec<(&'static str, String)>,
    shown: &'a [CallerReport],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::caller::Ending;
    use crate::load::fixture::Kind;
    use crate::load::measure::{Figures, TurnReport};
    use crate::load::rtp::RtpFigures;

    fn turn(reply_ms: f64) -> TurnReport {
        TurnReport {
            turn: 1,
            kind: Kind::Turn,
            text: "what <b>time".into(),
            onset_ms: 0.0,
            offset_ms: 900.0,
            reply_ms: Some(reply_ms),
            first_frame_ms: None,
            cut_off: false,
            barge_in_ms: None,
            barge_in_missed: false,
        }
    }

    fn call(ending: Ending, replies: &[f64], lateness_us: Vec<u32>) -> CallerReport {
        CallerReport {
            fixture: "booking".into(),
            call_sid: "CA1".into(),
            ending,
            connect_ms: Some(3.0),
            invite_ms: None,
            rtp: None,
            duration_ms: 1_000.0,
            figures: Figures {
                turns: replies.iter().map(|reply| turn(*reply)).collect(),
                agent_speech_s: 30.0,
                ..Figures::default()
            },
            unknown_messages: 0,
            dropped_samples: 0,
            dropped_marks: 0,
            lateness_us,
            recording: None,
        }
    }

    fn report(budget: &str, calls: Vec<CallerReport>) -> LoadReport {
        let run = Run {
            target: "ws://127.0.0.1".into(),
            fixtures: vec!["booking".into()],
            calls: calls.len(),
            calls_per_s: None,
            seed: 1,
            duration_s: 1.0,
            peak_calls: calls.len(),
        };
        LoadReport::new(run, &budget.parse().unwrap(), calls)
    }

    #[test]
    fn a_budget_is_held_or_broken_by_what_was_measured() {
        let replies: Vec<f64> = (1..=100).map(|n| f64::from(n) * 10.0).collect();
        let report = report(
            "reply_p50=500.5ms, reply_p95=0.9s, barge_in_p95=200ms, failures=0",
            vec![call(Ending::AgentHungUp, &replies, vec![100; 50])],
        );
        let held: Vec<(&str, bool)> = report.budget.iter().map(|v| (v.figure.as_str(), v.held)).collect();
        assert_eq!(held, [("reply_p50", true), ("reply_p95", false), ("barge_in_p95", false), ("failures", true)]);
        assert!((report.reply.p50 - 500.0).abs() <= 0.5, "{:?}", report.reply);
        assert!(!report.passed());
        assert_eq!(report.void, None);
    }

    #[test]
    fn a_late_generator_makes_the_run_void() {
        let late = report("", vec![call(Ending::AgentHungUp, &[], [vec![100; 980], vec![6_000; 20]].concat())]);
        assert!(late.void.is_some());
        let once = report("", vec![call(Ending::AgentHungUp, &[], [vec![100; 1_999], vec![21_000]].concat())]);
        assert!(once.void.is_some());
        assert!(once.text().contains("VOID"));
    }

    #[test]
    fn failures_are_counted_by_cause_and_fail_the_run() {
        let report = report(
            "",
            vec![
                call(Ending::NoReply { turn: 1 }, &[], vec![]),
                call(Ending::NoReply { turn: 3 }, &[], vec![]),
                call(Ending::CallerHungUp, &[600.0], vec![]),
            ],
        );
        assert_eq!(report.failures["no_reply"], 2);
        assert_eq!(report.finished, 1);
        assert!(!report.passed());
    }

    #[test]
    fn telephones_add_their_figures_and_a_loss_can_break_the_budget() {
        let mut call = call(Ending::AgentHungUp, &[], vec![10]);
        call.invite_ms = Some(8.0);
        call.rtp = Some(RtpFigures { sent: 100, received: 97, lost: 3, jitter_ms: 0.5, ..RtpFigures::default() });
        let report =
            report("invite_p95=10ms,rtp_loss_percent=1", vec![call.clone(), CallerReport { rtp: None, ..call }]);
        let held: Vec<bool> = report.budget.iter().map(|verdict| verdict.held).collect();
        assert_eq!(held, [true, false], "{:?}", report.budget);
        let text = report.text();
        assert!(text.contains("INVITE to 200") && text.contains("3 lost (3.000 %)"), "{text}");
    }

    #[test]
    fn budgets_with_unknown_figures_are_refused() {
        for bad in ["reply_p42=1", "reply=1", "colour=3", "reply_p50", "reply_p50=fast", "failures=-1"] {
            assert!(bad.parse::<Budget>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_page_needs_nothing_from_outside_and_escapes_what_was_said() {
        let html = report("reply_p50=600ms", vec![call(Ending::AgentHungUp, &[550.0], vec![10])]).html().unwrap();
        assert!(html.contains("what &#60;b&#62;time"), "{html}");
        for outside in ["src=", "href=", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
    }
}
