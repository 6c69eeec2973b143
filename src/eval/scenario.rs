//! A scenario file: what a caller says or does, and what must come of it. TOML, one conversation a file.
//!
//! ```toml
//! version = 1                             # of this format
//! name = "booking"                        # left out: the file's name
//! title = "Books a table in one sentence"
//! agent = "Front desk"                    # by its name, in the set-up file below or in the store
//! setup = "../oak-garden.toml"            # relative to this file; left out: --setup, or the configured store
//! mode = "text"                           # text | speech; left out: speech where a step `plays`, else text
//!
//! [facts]                                 # all of it may be left out
//! caller = "+15550002222"
//! line = "+15550001111"
//! direction = "inbound"                   # inbound | outbound
//! purpose = ""                            # why we rang, where outbound
//! time = "Friday 20 November 2026, 18:30" # as the agent is told it
//! vars = { order_id = "A-17" }            # what was given with the call (text only)
//! webhook = { FromCity = "Kyiv" }         # what its webhook told (text only)
//!
//! [[tool]]                                # stand-ins; the first whose `when` fits is used
//! name = "send_sms"
//! when = { to = "+15550002222" }          # what the arguments must hold; left out: always
//! result = { status = "sent" }            # or: error = "no credit"; neither: as without this stand-in
//! delay_ms = 800                          # text: counted, not waited; beyond turn.tool_limit_ms the tool fails
//!
//! [greeting]                              # what must hold before the caller says anything: see below
//! said = "Oak Garden"
//!
//! [[step]]                                # one of: says, plays, keys, silence_ms
//! says = "A table for four on Friday, please"
//! # plays = "booking/2"                   # a turn of a recorded caller (`--fixtures`), counted from 1
//! # plays = "wish.wav"                    # or a file beside this one (16-bit mono, 8 kHz), with text = "what is said in it"
//! # keys = "123#"                         # on the keypad (text only)
//! # silence_ms = 12000                    # says nothing for so long (text only)
//! # interrupts = { after_words = 5 }      # into the answer before; or { after_ms = 2000 }: the only one in speech
//!   [step.expect]
//!   said = ["for which day", "four"]      # all of these, in any case and spacing; a text alone will do
//!   any_of = ["okay", "certainly"]        # at least one
//!   none_of = ["sorry"]                   # none
//!   matches = "\\bat (seven|19)"          # regular expressions, all; case does not matter
//!   heard = "we are open"                 # of an answer that the next step interrupts: how what was heard begins
//!   tools = [{ name = "remember", arguments = { key = "booking", value = { people = "4" } }, ok = true }]
//!   no_tools = ["send_sms"]               # "*": none at all
//!   slots = { people = "4" }              # value or spoken form; without `builtin`, skipped
//!   no_slots = ["time"]
//!   node = "confirm"                      # or a list: one of these; without `builtin`, skipped
//!   expects = "yes_no"                    # what the caller is expected to say; without `builtin`, skipped
//!   remembered = { booking = { people = "4" } }
//!   not_remembered = ["callback"]
//!   handover = true                       # or text that its reason must hold
//!   ended = false                         # whether the agent has ended the conversation
//!   reply_within_ms = 1500                # to the first words of the answer
//!   judge = "Is the answer friendly?"     # yes/no questions to a model (`--judge ENGINE`); skipped without
//!
//! [expect]                                # the same of the whole conversation, and:
//! turns = { at_least = 3, at_most = 6 }   # of the agent that answer a step; a number alone: exactly so many
//! ```
//!
//! In `arguments`, `when` and `remembered` an object must hold at least what is written, a list is compared whole, and a
//! text between slashes (`"/^mar/"`) is a regular expression. A text scenario runs by the clock of what is said: the
//! tools' delays and the time that a model takes count, `builtin` takes none. In speech the figures are measured from
//! outside: end of the caller's voice to the agent's first sound.

use jiff::civil::DateTime;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::{Map, Value};
use toml::Spanned;

use super::props::Stub;
use crate::agent::variables::{Fields, Vars};
use crate::agent::workflow::Expectation;
use crate::telephony::{Direction, PhoneNumber};

/// The version of the format that is read.
pub const VERSION: u32 = 1;
/// A scenario is written by hand.
pub const MAX_FILE: u64 = 1 << 20;
/// A call of this many turns is over after half an hour.
const MAX_STEPS: usize = 200;
const MAX_TEXT_CHARS: usize = 4_000;
/// The longest call there may be is 30 minutes by default.
const MAX_SILENCE_MS: u64 = 1_800_000;
const MAX_KEYS: usize = 32;
const MAX_REGEX_BYTES: usize = 1 << 20;

/// One conversation and what it must lead to.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub file: PathBuf,
    pub name: String,
    pub title: String,
    pub agent: String,
    /// Relative to the working directory.
    pub setup: Option<PathBuf>,
    pub mode: Mode,
    pub facts: Facts,
    pub stubs: Vec<Stub>,
    pub greeting: Expect,
    pub steps: Vec<Step>,
    pub expect: Expect,
    pub turns: Option<Turns>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// In writing, by a clock that is counted.
    Text,
    /// A real call by a websocket on this machine, in real time.
    Speech,
}

impl Mode {
    pub fn label(self) -> &'static str {
        match self {
            Mode::Text => "text",
            Mode::Speech => "speech",
        }
    }
}

/// What is known before the conversation begins.
#[derive(Clone, Debug)]
pub struct Facts {
    pub caller: PhoneNumber,
    pub line: PhoneNumber,
    pub direction: Direction,
    pub purpose: String,
    /// Empty: the time of the run.
    pub time: Option<DateTime>,
    pub vars: Vars,
    pub fields: Fields,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            caller: PhoneNumber::new("+15550002222"),
            line: PhoneNumber::new("+15550001111"),
            direction: Direction::Inbound,
            purpose: String::new(),
            time: None,
            vars: Vars::default(),
            fields: Fields::default(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Step {
    /// In the file, counted from 1.
    pub line: usize,
    pub act: Act,
    pub interrupts: Option<After>,
    pub expect: Expect,
}

/// What the caller does.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    Says(String),
    Plays(Sound),
    Keys(String),
    Silent(u64),
}

/// A recorded turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sound {
    /// A turn of a recorded caller, counted from 1.
    Turn {
        caller: String,
        turn: usize,
    },
    File {
        path: PathBuf,
        text: String,
    },
}

/// How much of the agent's answer the caller hears before cutting in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Words(usize),
    Ms(u64),
}

/// What must hold after a step, or of the whole conversation.
#[derive(Clone, Debug, Default)]
pub struct Expect {
    pub said: Vec<String>,
    pub any_of: Vec<String>,
    pub none_of: Vec<String>,
    pub matches: Vec<Pattern>,
    pub heard: Option<String>,
    pub tools: Vec<ToolExpect>,
    pub no_tools: Vec<String>,
    pub slots: BTreeMap<String, String>,
    pub no_slots: Vec<String>,
    /// One of these; empty: any.
    pub node: Vec<String>,
    pub expects: Option<String>,
    pub remembered: BTreeMap<String, Value>,
    pub not_remembered: Vec<String>,
    pub handover: Option<Handover>,
    pub ended: Option<bool>,
    pub reply_within_ms: Option<u64>,
    pub judge: Vec<String>,
}

/// A regular expression as it was written.
#[derive(Clone, Debug)]
pub struct Pattern {
    pub text: String,
    pub regex: Regex,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolExpect {
    pub name: String,
    /// What they must hold at least.
    #[serde(default)]
    pub arguments: Value,
    /// Whether it worked.
    pub ok: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Handover {
    Wanted(bool),
    /// Its reason holds this.
    For(String),
}

/// How often the agent answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turns {
    pub at_least: usize,
    pub at_most: usize,
}

/// One thing to correct in a scenario file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Counted from 1; 0: the file as a whole.
    pub line: usize,
    /// `step 3`, `tool 1`; empty: the file.
    pub place: String,
    pub field: String,
    /// With the cure.
    pub problem: String,
}

impl fmt::Display for Fault {
    /// `line 14, step 3: interrupts: …`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = (self.line > 0).then(|| format!("line {}", self.line));
        let place = [line, Some(self.place.clone())].into_iter().flatten().filter(|part| !part.is_empty());
        let place = place.collect::<Vec<_>>().join(", ");
        for part in [&place, &self.field].into_iter().filter(|part| !part.is_empty()) {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.problem)
    }
}

// --- the file's own shape ------------------------------------------------------------------------------------------

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[expect(dead_code, reason = "looked at before the rest, as a later format may have other keys")]
    version: u32,
    name: Option<String>,
    #[serde(default)]
    title: String,
    agent: String,
    setup: Option<PathBuf>,
    mode: Option<Mode>,
    #[serde(default)]
    facts: FactsToml,
    #[serde(default)]
    tool: Vec<Spanned<ToolToml>>,
    greeting: Option<Spanned<ExpectToml>>,
    #[serde(default)]
    step: Vec<Spanned<StepToml>>,
    expect: Option<Spanned<ExpectToml>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FactsToml {
    caller: Option<String>,
    line: Option<String>,
    direction: Option<Direction>,
    purpose: String,
    time: String,
    vars: Map<String, Value>,
    webhook: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolToml {
    name: String,
    #[serde(default)]
    when: Value,
    result: Option<Value>,
    error: Option<String>,
    #[serde(default)]
    delay_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StepToml {
    says: Option<String>,
    plays: Option<String>,
    #[serde(default)]
    text: String,
    keys: Option<String>,
    silence_ms: Option<u64>,
    interrupts: Option<AfterToml>,
    #[serde(default)]
    expect: ExpectToml,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AfterToml {
    after_words: Option<usize>,
    after_ms: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ExpectToml {
    said: Texts,
    any_of: Texts,
    none_of: Texts,
    matches: Texts,
    heard: Option<String>,
    tools: Vec<ToolExpect>,
    no_tools: Texts,
    slots: BTreeMap<String, Value>,
    no_slots: Texts,
    node: Texts,
    expects: Option<String>,
    remembered: BTreeMap<String, Value>,
    not_remembered: Texts,
    handover: Option<Handover>,
    ended: Option<bool>,
    reply_within_ms: Option<u64>,
    judge: Texts,
    turns: Option<TurnsToml>,
}

/// One text, or a list of them.
#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Texts {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

impl Texts {
    fn list(self) -> Vec<String> {
        match self {
            Texts::None => Vec::new(),
            Texts::One(text) => vec![text],
            Texts::Many(texts) => texts,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TurnsToml {
    Exactly(usize),
    Between(BetweenToml),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BetweenToml {
    at_least: Option<usize>,
    at_most: Option<usize>,
}

impl Scenario {
    /// Reads the text of `file`. What is wrong with the format's shape comes alone, as nothing after it can be read;
    /// of the rest all is told at once.
    pub fn parse(text: &str, file: &Path) -> Result<Self, Vec<Fault>> {
        let whole = |line: usize, field: &str, problem: String| Fault {
            line,
            place: String::new(),
            field: field.into(),
            problem,
        };
        // The version first: a later format may have keys that are unknown here.
        let version = toml::from_str::<Version>(text).ok().and_then(|version| version.version);
        if let Some(version) = version
            && version != i64::from(VERSION)
        {
            let problem = format!("it is {version}; this program reads scenarios of version {VERSION}");
            return Err(vec![whole(0, "version", problem)]);
        }
        let read: File = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(0, |span| line_of(text, span.start));
            let problem = match error.message() {
                "missing field `version`" => format!("write version = {VERSION} at its top"),
                message => message.to_owned(),
            };
            vec![whole(line, "", problem)]
        })?;
        let mut reader = Reader { text, folder: file.parent().unwrap_or(Path::new("")), faults: Vec::new() };
        let scenario = reader.file(read, file);
        if reader.faults.is_empty() { Ok(scenario) } else { Err(reader.faults) }
    }
}

#[derive(Deserialize)]
struct Version {
    version: Option<i64>,
}

struct Reader<'t> {
    text: &'t str,
    folder: &'t Path,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn fault(&mut self, line: usize, place: &str, field: &str, problem: impl Into<String>) {
        self.faults.push(Fault { line, place: place.into(), field: field.into(), problem: problem.into() });
    }

    fn file(&mut self, read: File, file: &Path) -> Scenario {
        let stem = || file.file_stem().map_or_else(|| "scenario".into(), |stem| stem.to_string_lossy().into_owned());
        if read.agent.trim().is_empty() {
            self.fault(0, "", "agent", "it is empty; write the name of an agent");
        }
        if read.step.len() > MAX_STEPS {
            self.fault(0, "", "step", format!("{} steps; at most {MAX_STEPS} are played", read.step.len()));
        }
        let stubs = read.tool.into_iter().enumerate().map(|(index, tool)| self.stub(index, tool)).collect();
        let greeting = read.greeting.map(|expect| self.expect_table("greeting", expect)).unwrap_or_default().0;
        let steps: Vec<Step> =
            read.step.into_iter().enumerate().filter_map(|(index, step)| self.step(index, step)).collect();
        let (expect, turns) = read.expect.map(|expect| self.expect_table("expect", expect)).unwrap_or_default();
        let plays = steps.iter().any(|step| matches!(step.act, Act::Plays(_)));
        let mode = read.mode.unwrap_or(if plays { Mode::Speech } else { Mode::Text });
        if mode == Mode::Speech {
            self.spoken(&steps);
        }
        let defaults = Facts::default();
        let number = |text: Option<String>, default| text.map_or(default, PhoneNumber::new);
        let time = match read.facts.time.as_str() {
            "" => None,
            text => {
                let time = DateTime::strptime("%A %d %B %Y, %H:%M", text);
                if let Err(error) = &time {
                    let problem = format!("{error}; write it as \"Friday 20 November 2026, 18:30\"");
                    self.fault(1, "facts", "time", problem);
                }
                time.ok()
            }
        };
        if mode == Mode::Speech && !(read.facts.vars.is_empty() && read.facts.webhook.is_empty()) {
            self.fault(
                1,
                "facts",
                "vars",
                "a call by speech has no `vars` and no `webhook`; play it with mode = \"text\"",
            );
        }
        let vars = Vars::read(read.facts.vars).unwrap_or_else(|faults| {
            for (name, problem) in faults {
                let field = if name.is_empty() { "vars".to_owned() } else { format!("vars.{name}") };
                self.fault(1, "facts", &field, problem);
            }
            Vars::default()
        });
        Scenario {
            file: file.to_owned(),
            name: read.name.filter(|name| !name.trim().is_empty()).unwrap_or_else(stem),
            title: read.title,
            agent: read.agent,
            setup: read.setup.map(|path| self.folder.join(path)),
            mode,
            facts: Facts {
                caller: number(read.facts.caller, defaults.caller),
                line: number(read.facts.line, defaults.line),
                direction: read.facts.direction.unwrap_or(defaults.direction),
                purpose: read.facts.purpose,
                time,
                vars,
                fields: read.facts.webhook.into_iter().collect(),
            },
            stubs,
            greeting,
            steps,
            expect,
            turns,
        }
    }

    /// What a call by speech cannot do.
    fn spoken(&mut self, steps: &[Step]) {
        if steps.is_empty() {
            self.fault(0, "", "step", "a call by speech needs a step that `plays` something");
        }
        for (index, step) in steps.iter().enumerate() {
            let place = place("step", index);
            match &step.act {
                Act::Plays(_) => {}
                Act::Says(_) => {
                    let problem = "a call by speech plays recordings: write `plays`, or mode = \"text\"";
                    self.fault(step.line, &place, "says", problem);
                }
                Act::Keys(_) => self.fault(step.line, &place, "keys", "not in speech; write mode = \"text\""),
                Act::Silent(_) => self.fault(step.line, &place, "silence_ms", "not in speech; write mode = \"text\""),
            }
            if matches!(step.interrupts, Some(After::Words(_))) {
                let problem = "in speech the moment counts: write { after_ms = 2000 }";
                self.fault(step.line, &place, "interrupts.after_words", problem);
            }
        }
    }

    fn stub(&mut self, index: usize, tool: Spanned<ToolToml>) -> Stub {
        let line = line_of(self.text, tool.span().start);
        let (place, tool) = (place("tool", index), tool.into_inner());
        if tool.name.trim().is_empty() {
            self.fault(line, &place, "name", "it is empty; write the name of a tool");
        }
        if tool.result.is_some() && tool.error.is_some() {
            self.fault(line, &place, "error", "a tool has a `result` or an `error`; leave one out");
        }
        if tool.delay_ms > MAX_SILENCE_MS {
            self.fault(line, &place, "delay_ms", format!("at most {MAX_SILENCE_MS}"));
        }
        self.values(line, &place, "when", &tool.when);
        let answer = match (tool.result, tool.error) {
            (_, Some(error)) => Some(Err(error)),
            (Some(result), None) => Some(Ok(result)),
            (None, None) => None,
        };
        Stub { name: tool.name, when: tool.when, answer, delay_ms: tool.delay_ms }
    }

    fn step(&mut self, index: usize, step: Spanned<StepToml>) -> Option<Step> {
        let line = line_of(self.text, step.span().start);
        let (place, step) = (place("step", index), step.into_inner());
        let mut acts = Vec::new();
        if let Some(says) = step.says {
            if says.trim().is_empty() || says.chars().count() > MAX_TEXT_CHARS {
                self.fault(line, &place, "says", format!("write 1 to {MAX_TEXT_CHARS} characters"));
            }
            acts.push(Act::Says(says));
        }
        let plays = step.plays.is_some();
        if let Some(plays) = step.plays {
            match self.sound(&plays, step.text.clone()) {
                Ok(sound) => acts.push(Act::Plays(sound)),
                Err(problem) => {
                    self.fault(line, &place, "plays", problem);
                    return None;
                }
            }
        }
        if !plays && !step.text.is_empty() {
            self.fault(line, &place, "text", "it says what a file of `plays` holds; without one write `says`");
        }
        if let Some(keys) = step.keys {
            let good = keys.chars().all(|key| key.is_ascii_digit() || "*#ABCD".contains(key));
            if keys.is_empty() || keys.len() > MAX_KEYS || !good {
                self.fault(line, &place, "keys", format!("write 1 to {MAX_KEYS} of 0 to 9, *, #, A to D"));
            }
            acts.push(Act::Keys(keys));
        }
        if let Some(ms) = step.silence_ms {
            if ms == 0 || ms > MAX_SILENCE_MS {
                self.fault(line, &place, "silence_ms", format!("write 1 to {MAX_SILENCE_MS}"));
            }
            acts.push(Act::Silent(ms));
        }
        let interrupts = match step.interrupts {
            None => None,
            Some(AfterToml { after_words: Some(words), after_ms: None }) => Some(After::Words(words)),
            Some(AfterToml { after_words: None, after_ms: Some(ms) }) => Some(After::Ms(ms)),
            Some(_) => {
                let problem = "write either { after_words = 5 } or { after_ms = 2000 }";
                self.fault(line, &place, "interrupts", problem);
                None
            }
        };
        if interrupts.is_some() && matches!(acts.first(), Some(Act::Silent(_))) {
            self.fault(line, &place, "interrupts", "silence does not interrupt; leave it out");
        }
        let (expect, turns) = self.expect(line, &place, step.expect);
        if turns.is_some() {
            self.fault(line, &place, "expect.turns", "it counts the whole conversation: write it under [expect]");
        }
        if acts.len() != 1 {
            let problem = "a step is one of says, plays, keys, silence_ms; write one step for each";
            self.fault(line, &place, "", problem);
        }
        Some(Step { line, act: acts.into_iter().next()?, interrupts, expect })
    }

    fn sound(&self, plays: &str, text: String) -> Result<Sound, String> {
        if plays.ends_with(".wav") {
            if text.trim().is_empty() {
                return Err("write beside it what is said in it: text = \"…\"".into());
            }
            return Ok(Sound::File { path: self.folder.join(plays), text });
        }
        let turn = plays.rsplit_once('/').and_then(|(caller, turn)| Some((caller, turn.parse().ok()?)));
        match turn {
            Some((caller, turn)) if turn > 0 && !caller.is_empty() => {
                Ok(Sound::Turn { caller: caller.to_owned(), turn })
            }
            _ => Err(format!(
                "{plays:?}: write a recorded caller and the number of a turn, as in \"booking/2\", or a .wav file"
            )),
        }
    }

    fn expect_table(&mut self, place: &str, table: Spanned<ExpectToml>) -> (Expect, Option<Turns>) {
        let line = line_of(self.text, table.span().start);
        let (expect, turns) = self.expect(line, &format!("[{place}]"), table.into_inner());
        if turns.is_some() && place != "expect" {
            self.fault(line, place, "turns", "it counts the whole conversation: write it under [expect]");
        }
        (expect, turns)
    }

    fn expect(&mut self, line: usize, place: &str, read: ExpectToml) -> (Expect, Option<Turns>) {
        let mut matches = Vec::new();
        for text in read.matches.list() {
            match pattern(&text) {
                Ok(pattern) => matches.push(pattern),
                Err(problem) => self.fault(line, place, "matches", problem),
            }
        }
        if let Some(expects) = &read.expects
            && !EXPECTATIONS.iter().any(|known| known.label() == expects)
        {
            let known = EXPECTATIONS.map(Expectation::label).join(", ");
            self.fault(line, place, "expects", format!("no such expectation {expects:?}; known are {known}"));
        }
        for value in read.remembered.values() {
            self.values(line, place, "remembered", value);
        }
        for tool in &read.tools {
            self.values(line, place, "tools.arguments", &tool.arguments);
        }
        let texts: [(&str, Vec<String>); 4] = [
            ("said", read.said.list()),
            ("any_of", read.any_of.list()),
            ("none_of", read.none_of.list()),
            ("judge", read.judge.list()),
        ];
        for (field, texts) in &texts {
            if texts.iter().any(|text| text.trim().is_empty()) {
                self.fault(line, place, field, "an empty text is in everything; leave it out");
            }
        }
        let [(_, said), (_, any_of), (_, none_of), (_, judge)] = texts;
        let turns = read.turns.map(|turns| match turns {
            TurnsToml::Exactly(turns) => Turns { at_least: turns, at_most: turns },
            TurnsToml::Between(BetweenToml { at_least, at_most }) => {
                Turns { at_least: at_least.unwrap_or(0), at_most: at_most.unwrap_or(usize::MAX) }
            }
        });
        if turns.is_some_and(|turns| turns.at_least > turns.at_most) {
            self.fault(line, place, "turns", "at_least is more than at_most");
        }
        let expect = Expect {
            said,
            any_of,
            none_of,
            matches,
            heard: read.heard,
            tools: read.tools,
            no_tools: read.no_tools.list(),
            slots: read.slots.into_iter().map(|(slot, value)| (slot, plain(&value))).collect(),
            no_slots: read.no_slots.list(),
            node: read.node.list(),
            expects: read.expects,
            remembered: read.remembered,
            not_remembered: read.not_remembered.list(),
            handover: read.handover,
            ended: read.ended,
            reply_within_ms: read.reply_within_ms,
            judge,
        };
        (expect, turns)
    }

    /// Texts between slashes must be regular expressions.
    fn values(&mut self, line: usize, place: &str, field: &str, value: &Value) {
        match value {
            Value::String(text) => {
                if let Some(Err(problem)) = between_slashes(text).map(pattern) {
                    self.fault(line, place, field, problem);
                }
            }
            Value::Array(values) => values.iter().for_each(|value| self.values(line, place, field, value)),
            Value::Object(values) => values.values().for_each(|value| self.values(line, place, field, value)),
            _ => {}
        }
    }
}

const EXPECTATIONS: [Expectation; 10] = [
    Expectation::Free,
    Expectation::YesNo,
    Expectation::Number,
    Expectation::Date,
    Expectation::Time,
    Expectation::Name,
    Expectation::Choice,
    Expectation::Digits,
    Expectation::Spelling,
    Expectation::Address,
];

fn place(table: &str, index: usize) -> String {
    format!("{table} {}", index + 1)
}

/// `/…/` with something between.
pub(super) fn between_slashes(text: &str) -> Option<&str> {
    text.strip_prefix('/')?.strip_suffix('/').filter(|inner| !inner.is_empty())
}

/// Case does not matter, and a pattern is found anywhere.
pub(super) fn pattern(text: &str) -> Result<Pattern, String> {
    RegexBuilder::new(text)
        .case_insensitive(true)
        .size_limit(MAX_REGEX_BYTES)
        .build()
        .map(|regex| Pattern { text: text.to_owned(), regex })
        .map_err(|error| format!("{text:?} is no regular expression: {}", last_line(&error.to_string())))
}

/// The crate draws the place over several lines and says what is wrong in the last.
fn last_line(text: &str) -> String {
    text.lines().next_back().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// A value as a person writes it: a text without its quotes.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// The line of a byte in a text, counted from 1.
fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at.min(text.len())].iter().filter(|&&byte| byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Scenario, Vec<String>> {
        Scenario::parse(text, Path::new("scenarios/desk/hours.toml"))
            .map_err(|faults| faults.iter().map(Fault::to_string).collect())
    }

    #[test]
    fn the_example_in_the_documentation_is_read() {
        let example: Vec<&str> = include_str!("scenario.rs")
            .lines()
            .skip_while(|line| *line != "//! ```toml")
            .skip(1)
            .take_while(|line| *line != "//! ```")
            .map(|line| line.trim_start_matches("//!"))
            .collect();
        let written = include_str!("../../scenarios/README.md");
        let written: Vec<&str> = written.lines().skip_while(|line| *line != "```toml").skip(1).collect();
        let same =
            example.iter().zip(&written).all(|(ours, theirs)| ours.trim_end() == format!(" {theirs}").trim_end());
        assert!(same, "scenarios/README.md shows the same file");
        let scenario = parse(&example.join("\n")).unwrap();
        assert_eq!(scenario.name, "booking");
        assert_eq!(scenario.setup.as_deref(), Some(Path::new("scenarios/desk/../oak-garden.toml")));
        let step = &scenario.steps[0];
        assert_eq!(step.act, Act::Says("A table for four on Friday, please".into()));
        assert_eq!(step.expect.said, ["for which day", "four"]);
        assert_eq!(step.expect.slots["people"], "4");
        assert_eq!(step.expect.tools[0].arguments["value"]["people"], "4");
        assert_eq!(scenario.stubs[0].delay_ms, 800);
        assert_eq!(scenario.turns, Some(Turns { at_least: 3, at_most: 6 }));
        assert_eq!(scenario.mode, Mode::Text);
    }

    #[test]
    fn a_short_scenario_has_its_files_name_and_plays_decides_the_mode() {
        let scenario = parse("version = 1\nagent = \"A\"\n[[step]]\nplays = \"booking/2\"").unwrap();
        assert_eq!((scenario.name.as_str(), scenario.mode), ("hours", Mode::Speech));
        assert_eq!(scenario.steps[0].act, Act::Plays(Sound::Turn { caller: "booking".into(), turn: 2 }));
        let scenario = parse("version = 1\nagent = \"A\"\nmode = \"text\"\n[[step]]\nplays = \"booking/2\"").unwrap();
        assert_eq!(scenario.mode, Mode::Text);
        assert_eq!(scenario.steps[0].line, 4);
    }

    #[test]
    fn faults_name_line_step_field_and_cure_all_at_once() {
        let faults = parse(
            r#"version = 1
agent = "A"
mode = "speech"
[[tool]]
name = "send_sms"
result = { ok = true }
error = "no"
[[step]]
says = "hello"
keys = "12x"
[[step]]
plays = "booking"
[[step]]
plays = "wish.wav"
[[step]]
plays = "booking/1"
interrupts = { after_words = 3 }
[step.expect]
matches = "("
expects = "numbers"
turns = 3
said = ""
[expect]
remembered = { booking = { name = "/[/" } }
turns = { at_least = 3, at_most = 1 }
"#,
        )
        .unwrap_err();
        for expected in [
            "line 4, tool 1: error: a tool has a `result` or an `error`",
            "line 8, step 1: keys: write 1 to 32 of 0 to 9",
            "line 8, step 1: a step is one of says, plays, keys, silence_ms",
            "line 8, step 1: says: a call by speech plays recordings",
            "line 11, step 2: plays: \"booking\": write a recorded caller and the number of a turn",
            "line 13, step 3: plays: write beside it what is said in it",
            "line 15, step 4: matches: \"(\" is no regular expression: unclosed group",
            "line 15, step 4: expects: no such expectation \"numbers\"; known are free, yes_no",
            "line 15, step 4: expect.turns: it counts the whole conversation",
            "line 15, step 4: said: an empty text",
            ", [expect]: remembered: \"[\" is no regular expression",
            ", [expect]: turns: at_least is more than at_most",
        ] {
            assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected}\n{faults:#?}");
        }
    }

    #[test]
    fn another_version_and_an_unknown_key_are_told_with_their_line() {
        assert_eq!(
            parse("version = 2\nshape = \"new\"").unwrap_err(),
            ["version: it is 2; this program reads scenarios of version 1"]
        );
        assert_eq!(parse("agent = \"A\"").unwrap_err().len(), 1);
        assert!(parse("agent = \"A\"").unwrap_err()[0].contains("write version = 1 at its top"));
        let faults = parse("version = 1\nagent = \"A\"\n[[step]]\nsay = \"x\"").unwrap_err();
        assert!(faults[0].starts_with("line 4: unknown field `say`"), "{faults:?}");
    }
}
