//! Plays a recorded caller and prints both sides as they are said.

use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::load::caller::{self, CallerConfig, CallerEvent, CallerReport, Way};
use crate::load::fixture::{Fixture, Kind};
use crate::telephony::Party;

/// Lines of the agent that wait to be printed; a full queue makes the sender wait or drop, as it likes.
pub const LINES_QUEUE: usize = 64;
const EVENTS_QUEUE: usize = 64;

/// Something that was said, to be printed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spoken {
    pub who: Party,
    /// Since the call's start.
    pub at_ms: u64,
    pub text: String,
}

/// Writes a conversation line by line.
pub struct Printer<W> {
    out: W,
    colour: bool,
}

impl Printer<io::Stdout> {
    /// To the terminal, coloured where it is one.
    pub fn stdout() -> Self {
        Self::new(io::stdout(), io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none())
    }
}

impl<W: Write> Printer<W> {
    pub fn new(out: W, colour: bool) -> Self {
        Self { out, colour }
    }

    /// `  0:03.2  caller  What time do you open today`. A broken pipe ends the printing, not the call.
    pub fn line(&mut self, spoken: &Spoken) {
        let (minutes, seconds) = (spoken.at_ms / 60_000, (spoken.at_ms % 60_000) as f64 / 1_000.0);
        let (on, off) = match (self.colour, spoken.who) {
            (false, _) => ("", ""),
            (true, Party::Caller) => ("\x1b[33m", "\x1b[0m"),
            (true, Party::Agent) => ("\x1b[36m", "\x1b[0m"),
            (true, _) => ("\x1b[2m", "\x1b[0m"),
        };
        // What was recognised or generated may hold control characters.
        let text: String = spoken.text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let _ = writeln!(self.out, "{minutes:>3}:{seconds:04.1}  {on}{:<7} {text}{off}", spoken.who.label());
        let _ = self.out.flush();
    }

    pub fn into_inner(self) -> W {
        self.out
    }
}

/// Plays `fixture` over `way`; prints what the caller says as it says it, and what comes through `lines`, until the
/// call is over. The report holds the recording of both sides.
pub async fn play<W: Write>(
    way: Way,
    fixture: Arc<Fixture>,
    mut lines: mpsc::Receiver<Spoken>,
    printer: &mut Printer<W>,
) -> CallerReport {
    let (events, mut told) = mpsc::channel(EVENTS_QUEUE);
    let mut config = CallerConfig::new(way, Arc::clone(&fixture));
    config.record = true;
    config.events = Some(events);
    let call = caller::call(config);
    tokio::pin!(call);
    let report = loop {
        tokio::select! {
            Some(event) = told.recv() => print_event(&fixture, &event, printer),
            Some(line) = lines.recv() => printer.line(&line),
            report = &mut call => break report,
        }
    };
    while let Ok(event) = told.try_recv() {
        print_event(&fixture, &event, printer);
    }
    while let Ok(line) = lines.try_recv() {
        printer.line(&line);
    }
    report
}

fn print_event<W: Write>(fixture: &Fixture, event: &CallerEvent, printer: &mut Printer<W>) {
    let CallerEvent::TurnBegan { turn, at_ms } = event else { return };
    let Some(said) = fixture.turns.get(*turn) else { return };
    let text = match said.kind {
        Kind::Noise if said.text.is_empty() => "(noise)".into(),
        Kind::Noise => format!("({})", said.text),
        Kind::Interruption => format!("(interrupts) {}", said.text),
        Kind::Turn | Kind::Backchannel => said.text.clone(),
    };
    printer.line(&Spoken { who: Party::Caller, at_ms: *at_ms, text });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_time_its_side_and_no_control_characters() {
        let mut printer = Printer::new(Vec::new(), false);
        printer.line(&Spoken { who: Party::Agent, at_ms: 63_240, text: "We open\x1b[2J at nine.".into() });
        assert_eq!(String::from_utf8(printer.into_inner()).unwrap(), "  1:03.2  agent   We open [2J at nine.\n");
    }
}
