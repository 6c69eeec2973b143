//! What came of the scenarios: a table for the terminal, JUnit's XML for a build server, a page to read.

use std::fmt::Write as _;

use askama::Template;

use super::judge::{Moment, Observed, Outcome, Verdict};

/// One playing of a scenario.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// With where they belong: `step 2 (line 14)`, `greeting`, `in the end`.
    pub verdicts: Vec<(String, Verdict)>,
    pub observed: Observed,
    /// Of the machine that played it.
    pub took_ms: f64,
    /// Of the conversation, by the clock of what is said.
    pub lasted_ms: f64,
    /// Why it could not be played to its end.
    pub fault: Option<String>,
}

impl Run {
    pub fn passed(&self) -> bool {
        self.fault.is_none() && self.verdicts.iter().all(|(_, verdict)| verdict.outcome != Outcome::Failed)
    }

    fn failures(&self) -> impl Iterator<Item = &(String, Verdict)> {
        self.verdicts.iter().filter(|(_, verdict)| verdict.outcome == Outcome::Failed)
    }

    fn skipped(&self) -> usize {
        self.verdicts.iter().filter(|(_, verdict)| verdict.outcome == Outcome::Skipped).count()
    }
}

/// A scenario and all its runs.
#[derive(Clone, Debug)]
pub struct Played {
    pub name: String,
    pub title: String,
    pub file: String,
    pub agent: String,
    pub mode: &'static str,
    /// At least one.
    pub runs: Vec<Run>,
    /// The part of the runs that must pass, above 0 and at most 1.
    pub needed: f64,
}

impl Played {
    pub fn passes(&self) -> usize {
        self.runs.iter().filter(|run| run.passed()).count()
    }

    pub fn passed(&self) -> bool {
        !self.runs.is_empty() && self.passes() as f64 >= self.needed * self.runs.len() as f64 - 1e-9
    }

    /// The run that the report shows: the first that failed, else the first.
    fn shown(&self) -> Option<&Run> {
        self.runs.iter().find(|run| !run.passed()).or(self.runs.first())
    }

    fn took_ms(&self) -> f64 {
        self.runs.iter().map(|run| run.took_ms).sum()
    }

    /// What is wrong with the shown run, a line each.
    fn problems(&self) -> Vec<String> {
        let Some(run) = self.shown().filter(|run| !run.passed()) else { return Vec::new() };
        let fault = run.fault.iter().cloned();
        let failures = run.failures().map(|(place, verdict)| format!("{place}: {}: {}", verdict.check, verdict.detail));
        fault.chain(failures).collect()
    }
}

/// All scenarios of one command.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub played: Vec<Played>,
    pub took_ms: f64,
}

impl Report {
    pub fn passed(&self) -> bool {
        self.played.iter().all(Played::passed)
    }

    fn failures(&self) -> usize {
        self.played.iter().filter(|played| !played.passed()).count()
    }

    /// For the terminal. What was said may hold control characters: they become blanks.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let width = self.played.iter().map(|played| played.name.chars().count()).max().unwrap_or(0);
        for played in &self.played {
            let Some(run) = played.shown() else { continue };
            let state = if played.passed() { "ok    " } else { "FAILED" };
            let _ = write!(
                out,
                "{state}  {:<width$}  {:<6} {:>3} answers {:>3} checks {:>8}",
                played.name,
                played.mode,
                run.observed.turns(),
                run.verdicts.len(),
                seconds(played.took_ms()),
            );
            if played.runs.len() > 1 {
                let _ = write!(out, "  {} of {} passed", played.passes(), played.runs.len());
            }
            if run.skipped() > 0 {
                let _ = write!(out, "  {} skipped", run.skipped());
            }
            out.push('\n');
            for problem in played.problems() {
                let _ = writeln!(out, "        {problem}");
            }
        }
        let count = self.played.len();
        let of = if count == 1 { "scenario" } else { "scenarios" };
        let failed = self.failures();
        let _ = writeln!(out, "{count} {of}: {} passed, {failed} failed, {}", count - failed, seconds(self.took_ms));
        out.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
    }

    /// JUnit's XML as build servers read it: a test case a scenario, with the conversation as its output.
    pub fn junit(&self) -> String {
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let counts = format!(
            "tests=\"{}\" failures=\"{}\" errors=\"0\" time=\"{:.3}\"",
            self.played.len(),
            self.failures(),
            self.took_ms / 1000.0
        );
        let _ = writeln!(xml, "<testsuites name=\"offhook eval\" {counts}>");
        let _ = writeln!(xml, "  <testsuite name=\"offhook eval\" {counts}>");
        for played in &self.played {
            let _ = writeln!(
                xml,
                "    <testcase classname=\"{}\" name=\"{}\" file=\"{}\" time=\"{:.3}\">",
                escaped(&played.agent),
                escaped(&played.name),
                escaped(&played.file),
                played.took_ms() / 1000.0
            );
            let problems = played.problems();
            if !played.passed() {
                let message = problems.first().cloned().unwrap_or_default();
                let _ = writeln!(
                    xml,
                    "      <failure message=\"{}\">{}</failure>",
                    escaped(&message),
                    escaped(&problems.join("\n"))
                );
            }
            if let Some(run) = played.shown() {
                let passes = format!("{} of {} runs passed\n", played.passes(), played.runs.len());
                let out = escaped(&format!("{passes}{}", run.observed.script()));
                let _ = writeln!(xml, "      <system-out>{out}</system-out>");
            }
            xml.push_str("    </testcase>\n");
        }
        xml.push_str("  </testsuite>\n</testsuites>\n");
        xml
    }

    /// One page without outside assets.
    pub fn html(&self) -> askama::Result<String> {
        let cards = self.played.iter().enumerate().filter_map(|(index, played)| Card::of(index, played)).collect();
        Page { report: self, cards, took: seconds(self.took_ms) }.render()
    }
}

/// Text and attributes of XML 1.0, which cannot hold control characters at all.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn seconds(ms: f64) -> String {
    if ms < 1000.0 { format!("{ms:.0} ms") } else { format!("{:.1} s", ms / 1000.0) }
}

#[derive(Template)]
#[template(path = "eval_report.html")]
struct Page<'a> {
    report: &'a Report,
    cards: Vec<Card<'a>>,
    took: String,
}

/// A scenario on the page.
struct Card<'a> {
    id: usize,
    played: &'a Played,
    run: &'a Run,
    took: String,
    lasted: String,
    rows: Vec<Row<'a>>,
}

/// A step with its verdicts.
struct Row<'a> {
    place: &'a str,
    /// `None`: the conversation as a whole.
    moment: Option<&'a Moment>,
    verdicts: Vec<&'a Verdict>,
}

impl<'a> Card<'a> {
    fn of(id: usize, played: &'a Played) -> Option<Self> {
        let run = played.shown()?;
        let mut rows: Vec<Row<'a>> = Vec::new();
        let moments = std::iter::once(&run.observed.greeting).chain(&run.observed.moments);
        let mut places: Vec<&str> = Vec::new();
        for (place, _) in &run.verdicts {
            if !places.contains(&place.as_str()) {
                places.push(place);
            }
        }
        let of = |place: &str| run.verdicts.iter().filter(|(at, _)| at == place).map(|(_, verdict)| verdict).collect();
        for (index, moment) in moments.enumerate() {
            let prefix = if index == 0 { "greeting".to_owned() } else { format!("step {index} ") };
            let place = places.iter().copied().find(|place| place.starts_with(&prefix) || *place == prefix.trim());
            if index == 0 && moment.agent.is_empty() && place.is_none() {
                continue;
            }
            let verdicts = place.map(of).unwrap_or_default();
            rows.push(Row { place: place.unwrap_or_default(), moment: Some(moment), verdicts });
        }
        for place in places {
            if !rows.iter().any(|row| row.place == place) {
                rows.push(Row { place, moment: None, verdicts: of(place) });
            }
        }
        let lasted = seconds(run.lasted_ms);
        Some(Self { id, played, run, took: seconds(played.took_ms()), lasted, rows })
    }
}

impl Verdict {
    fn class(&self) -> &'static str {
        match self.outcome {
            Outcome::Passed => "good",
            Outcome::Failed => "bad",
            Outcome::Skipped => "soft",
        }
    }

    fn sign(&self) -> &'static str {
        match self.outcome {
            Outcome::Passed => "✓",
            Outcome::Failed => "✗",
            Outcome::Skipped => "–",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn played(name: &str, runs: &[bool], needed: f64) -> Played {
        let run = |good: &bool| Run {
            verdicts: vec![(
                "step 1 (line 5)".into(),
                Verdict::new("said “<eight>”", *good, "it said “nine\u{1b}[2J”"),
            )],
            observed: Observed {
                greeting: Moment { agent: "Hello & welcome".into(), ..Moment::default() },
                moments: vec![Moment { caller: "When?".into(), agent: "At nine\u{1b}[2J".into(), ..Moment::default() }],
            },
            took_ms: 4.0,
            ..Run::default()
        };
        Played {
            name: name.into(),
            title: "A <b>title".into(),
            file: "a.toml".into(),
            agent: "Desk".into(),
            mode: "text",
            runs: runs.iter().map(run).collect(),
            needed,
        }
    }

    #[test]
    fn a_share_of_the_runs_decides() {
        assert!(played("a", &[true], 1.0).passed());
        assert!(!played("a", &[true, false], 1.0).passed());
        assert!(played("a", &[true, false, true, true, true], 0.8).passed());
        assert!(!played("a", &[true, false, false], 0.5).passed());
    }

    #[test]
    fn the_table_names_what_failed_and_holds_no_control_characters() {
        let report =
            Report { played: vec![played("hours", &[true], 1.0), played("book", &[false], 1.0)], took_ms: 8.0 };
        let text = report.text();
        assert!(text.starts_with("ok      hours  text     1 answers   1 checks     4 ms\nFAILED  book "), "{text}");
        assert!(text.contains("        step 1 (line 5): said “<eight>”: it said “nine [2J”\n"), "{text}");
        assert!(text.ends_with("2 scenarios: 1 passed, 1 failed, 8 ms\n"), "{text}");
        assert!(!report.passed());
    }

    #[test]
    fn the_xml_is_well_formed_whatever_was_said() {
        let report = Report { played: vec![played("a\"<&>\u{0}", &[false], 1.0)], took_ms: 8.0 };
        let xml = report.junit();
        let mut reader = quick_xml::Reader::from_str(&xml);
        let (mut cases, mut failures) = (0, 0);
        loop {
            match reader.read_event().expect("well formed") {
                quick_xml::events::Event::Start(tag) => {
                    cases += usize::from(tag.name().as_ref() == b"testcase");
                    failures += usize::from(tag.name().as_ref() == b"failure");
                    tag.attributes().for_each(|attribute| drop(attribute.expect("well formed")));
                }
                quick_xml::events::Event::Eof => break,
                _ => {}
            }
        }
        assert_eq!((cases, failures), (1, 1));
        assert!(xml.contains("Hello &amp; welcome") && !xml.contains('\u{1b}'), "{xml}");
    }

    #[test]
    fn the_page_shows_conversation_and_verdicts() {
        let report = Report { played: vec![played("hours", &[false], 1.0)], took_ms: 8.0 };
        let html = report.html().expect("it renders");
        for part in ["When?", "Hello &#38; welcome", "said “&#60;eight&#62;”", "✗"] {
            assert!(html.contains(part), "{part:?} is not in\n{html}");
        }
    }
}
