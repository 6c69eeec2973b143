//! The workflow file: a versioned graph of nodes, read from TOML or JSON into checked types. Reading lists every fault
//! of a file at once, each with its place and its cure. What happens when a conversation walks the graph is `walk.rs`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde_json::{Map, Value};

use self::read::Reader;
use self::template::{Condition, Scope, Template};
use super::extract::SlotType;
use super::hear::{Heard, Pattern};
use super::tools::search_knowledge;

mod check;
mod read;
pub(super) mod template;

/// The version of the file format that this program reads.
pub const VERSION: u64 = 1;
/// A file of more bytes, or a graph of more parts, is refused: each part costs memory and time on every turn.
const MAX_FILE_BYTES: usize = 256 * 1024;
const MAX_NODES: usize = 500;
const MAX_RULES: usize = 500;
const MAX_PATTERNS: usize = 4000;

/// A checked workflow. Every name in it is resolved: nodes are indices, slots exist.
#[derive(Clone, Debug)]
pub struct Workflow {
    pub name: String,
    /// Decides how numbers, days and names are heard.
    pub language: String,
    pub(super) start: NodeId,
    /// The conversation begins in the graph: what its first nodes say is the greeting.
    pub(super) opens: bool,
    pub(super) fallback: Retry,
    pub(super) slots: BTreeMap<String, Slot>,
    /// Heard from any node, in order.
    pub(super) rules: Vec<Rule>,
    pub(super) nodes: Vec<Node>,
}

/// Index into the nodes of one workflow.
pub(super) type NodeId = usize;

/// What the caller is expected to say next: decides how long a pause may be, and helps recognition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Expectation {
    #[default]
    Free,
    YesNo,
    Number,
    Date,
    Time,
    Name,
    Choice,
    Digits,
    Spelling,
    Address,
}

impl Expectation {
    const ALL: [(&'static str, Expectation); 10] = [
        ("free", Expectation::Free),
        ("yes_no", Expectation::YesNo),
        ("number", Expectation::Number),
        ("date", Expectation::Date),
        ("time", Expectation::Time),
        ("name", Expectation::Name),
        ("choice", Expectation::Choice),
        ("digits", Expectation::Digits),
        ("spelling", Expectation::Spelling),
        ("address", Expectation::Address),
    ];

    pub fn label(self) -> &'static str {
        Self::ALL.iter().find(|(_, e)| *e == self).map_or("free", |(label, _)| label)
    }

    /// Whether people pause inside such an answer: the end-of-turn waits are then multiplied by
    /// `turn.expect_digits_factor`.
    pub fn waits_longer(self) -> bool {
        matches!(self, Expectation::Digits | Expectation::Spelling | Expectation::Address)
    }

    fn of(kind: &SlotType) -> Self {
        match kind {
            SlotType::Text => Expectation::Free,
            SlotType::Number { .. } | SlotType::People { .. } => Expectation::Number,
            SlotType::Day => Expectation::Date,
            SlotType::Time { .. } | SlotType::Moment => Expectation::Time,
            SlotType::Name => Expectation::Name,
            SlotType::Digits { .. } | SlotType::Phone => Expectation::Digits,
            SlotType::Email => Expectation::Spelling,
            SlotType::Address => Expectation::Address,
            SlotType::YesNo => Expectation::YesNo,
            SlotType::Choice(_) => Expectation::Choice,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub kind: SlotType,
    /// The question and its re-prompts; the last one stays.
    pub ask: Vec<Template>,
    /// Said when this slot was filled and another is asked for.
    pub echo: Option<Template>,
    /// Asked when the slot was filled, to be answered by yes or no.
    pub confirm: Option<Template>,
    pub expects: Expectation,
}

/// What is said when an answer was not understood, and how often before `give_up`.
#[derive(Clone, Debug)]
pub(super) struct Retry {
    pub say: Vec<Template>,
    pub tries: u32,
    pub give_up: NodeId,
}

#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// Any of them; empty = `need` and `has` alone decide.
    pub hear: Vec<Pattern>,
    /// None of them.
    pub unless: Vec<Pattern>,
    /// Slots of which at least one must be heard with a value that it does not have yet.
    pub need: Vec<String>,
    /// Slots that are filled from the same words.
    pub fill: Vec<String>,
    pub has: Vec<String>,
    pub lacks: Vec<String>,
    /// Rules of different topics are answered together.
    pub topic: Option<String>,
    /// Tried only after everything else.
    pub weak: bool,
    pub action: Action,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Action {
    pub clear: Vec<String>,
    pub set: Vec<(String, Template)>,
    pub call: Option<Call>,
    /// Slots that are filled from the tool's result, by JSON pointer.
    pub save: Vec<(String, String)>,
    pub handover: Option<Template>,
    pub failed: Option<Failed>,
    pub say: Option<Template>,
    pub repeat: bool,
    pub end: Option<Template>,
    pub goto: Option<NodeId>,
}

/// A tool call, made before the action's `say`.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub tool: String,
    pub args: Args,
    /// Said while the tool works.
    pub filler: Option<Template>,
}

/// What is said and where it goes on when the tool refused or is not there.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    pub say: Template,
    pub goto: Option<NodeId>,
}

impl Failed {
    /// Goes on as if nothing had been asked for.
    fn silent() -> Self {
        Self { say: Template::plain(""), goto: None }
    }
}

/// JSON arguments with templates in its strings.
#[derive(Clone, Debug)]
pub(super) enum Args {
    Plain(Value),
    Text(Template),
    List(Vec<Args>),
    Table(Vec<(String, Args)>),
}

impl Args {
    pub fn render(&self, scope: &Scope) -> Value {
        match self {
            Args::Plain(value) => value.clone(),
            Args::Text(template) => Value::String(template.render(scope)),
            Args::List(items) => Value::Array(items.iter().map(|item| item.render(scope)).collect()),
            Args::Table(fields) => {
                Value::Object(fields.iter().map(|(key, item)| (key.clone(), item.render(scope))).collect())
            }
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub id: String,
    pub kind: Kind,
    pub when: Vec<Rule>,
    /// Said when the node is entered.
    pub say: Option<Template>,
    pub expects: Option<Expectation>,
    /// Its own answer to what was not understood; else the workflow's fallback.
    pub retry: Option<Retry>,
    pub manners: Manners,
}

/// How the agent listens at a node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Manners {
    /// Whether the caller may interrupt what is said here.
    pub barge_in: bool,
    /// Multiplies the waits for the end of the caller's turn.
    pub wait_factor: f32,
}

impl Default for Manners {
    fn default() -> Self {
        Self { barge_in: true, wait_factor: 1.0 }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// Waits for the caller. `again` puts the question again after something else was answered.
    Listen { again: Option<Template> },
    /// Asks for each slot that is missing, then goes on.
    Collect { slots: Vec<String>, asks: HashMap<String, Vec<Template>>, goto: NodeId },
    /// Acts and goes on without the caller.
    Do(Action),
    /// The first condition that holds decides where it goes on.
    Branch { ways: Vec<(Condition, NodeId)>, otherwise: NodeId },
    /// Looks something up and says what was found.
    Knowledge(Search),
    /// A model talks with the caller, as long as the node's exits let it.
    Llm(Box<Talk>),
}

#[derive(Clone, Debug)]
pub(super) struct Search {
    pub query: Template,
    /// The agent's knowledge bases that are looked in; `None` = all of them.
    pub knowledge: Option<Vec<String>>,
    pub filler: Option<Template>,
    /// What is found is for the nodes that follow, not for the caller.
    pub quiet: bool,
    pub goto: NodeId,
    /// Nothing is found, or there is nothing to look in.
    pub failed: Failed,
}

/// A node that a model answers.
#[derive(Clone, Debug)]
pub(super) struct Talk {
    pub prompt: Template,
    pub model: Option<String>,
    pub temperature: Option<f32>,
    pub max_tokens: Option<u32>,
    /// The agent's tools that it may use here; `None` = all of them.
    pub tools: Option<Vec<String>>,
    /// The agent's knowledge bases that it may look things up in, whatever `tools` says; empty = none, and no tool for it;
    /// `None` = all of them, where `tools` has the tool.
    pub knowledge: Option<Vec<String>>,
    /// What it is to find out.
    pub collect: Vec<String>,
    /// Where it goes on when all that is collected is known.
    pub goto: Option<NodeId>,
    pub exits: Vec<Exit>,
    /// The caller's turns that it may take before `give_up`.
    pub max_turns: u32,
    pub give_up: NodeId,
    /// No model answers: the way on without one.
    pub failed: Failed,
}

/// A way on that the model takes by the tool `go_to`.
#[derive(Clone, Debug)]
pub(super) struct Exit {
    pub name: String,
    /// When it is to be taken, in words for the model.
    pub when: String,
    pub goto: NodeId,
}

impl Talk {
    pub fn exit(&self, name: &str) -> Option<&Exit> {
        self.exits.iter().find(|exit| exit.name == name)
    }

    /// Whether the node names this tool, or leaves the choice to the agent.
    pub fn takes(&self, tool: &str) -> bool {
        match &self.knowledge {
            Some(bases) if tool == search_knowledge::NAME => !bases.is_empty(),
            _ => self.tools.as_ref().is_none_or(|own| own.iter().any(|name| name == tool)),
        }
    }
}

/// One thing that is wrong with a workflow file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `node "confirm"`, `rule "hours"`, `slot "day"`, `file`.
    pub place: String,
    /// The key in it, e.g. `goto`, `when[2].hear`.
    pub field: String,
    /// What is wrong, and what to write instead.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => write!(f, "{}: {}", self.place, self.problem),
            field => write!(f, "{}, {field}: {}", self.place, self.problem),
        }
    }
}

/// Everything that is wrong with a workflow file, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkflowError {
    pub faults: Vec<Fault>,
}

impl fmt::Display for WorkflowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many = self.faults.len();
        write!(f, "the workflow has {many} fault{}:", if many == 1 { "" } else { "s" })?;
        self.faults.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl std::error::Error for WorkflowError {}

impl Workflow {
    /// Reads a workflow file: TOML, or JSON of the same shape.
    pub fn parse(text: &str) -> Result<Self, WorkflowError> {
        let fault = |field: &str, problem: String| {
            let fault = Fault { place: "file".into(), field: field.into(), problem };
            Err(WorkflowError { faults: vec![fault] })
        };
        if text.len() > MAX_FILE_BYTES {
            return fault("", format!("{} bytes; at most {MAX_FILE_BYTES} are read", text.len()));
        }
        if text.trim_start().starts_with('{') {
            return match serde_json::from_str::<Map<String, Value>>(text) {
                Ok(file) => Reader::default().read(file),
                Err(error) => fault(&format!("line {}", error.line()), error.to_string()),
            };
        }
        match toml::from_str::<Map<String, Value>>(text) {
            Ok(file) => Reader::default().read(file),
            Err(error) => {
                let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
                fault(&format!("line {line}"), error.message().to_owned())
            }
        }
    }

    /// Ids of the nodes, in the order of the file.
    pub fn node_ids(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|node| node.id.as_str())
    }

    /// The tools that the graph calls, or lets a model call, each with the first place that names it, as `node "price"`.
    pub fn tools(&self) -> BTreeMap<&str, String> {
        let mut tools = BTreeMap::new();
        for rule in &self.rules {
            name_tools(&mut tools, &rule.action, || "a [[rule]]".to_owned());
        }
        for node in &self.nodes {
            let place = || format!("node \"{}\"", node.id);
            node.when.iter().for_each(|rule| name_tools(&mut tools, &rule.action, place));
            let named: Vec<&str> = match &node.kind {
                Kind::Do(action) => {
                    name_tools(&mut tools, action, place);
                    Vec::new()
                }
                Kind::Llm(talk) => talk.tools.iter().flatten().map(String::as_str).collect(),
                Kind::Knowledge(_) => vec![search_knowledge::NAME],
                Kind::Listen { .. } | Kind::Collect { .. } | Kind::Branch { .. } => Vec::new(),
            };
            for tool in named {
                tools.entry(tool).or_insert_with(place);
            }
        }
        tools
    }

    /// The nodes that look into knowledge bases which an agent with these lacks.
    pub fn lacks_knowledge(&self, has: &[String]) -> Vec<Fault> {
        let mut faults = Vec::new();
        for node in &self.nodes {
            let named = match &node.kind {
                Kind::Llm(talk) => &talk.knowledge,
                Kind::Knowledge(search) => &search.knowledge,
                _ => &None,
            };
            for base in named.iter().flatten().filter(|base| !has.contains(base)) {
                let known = match has {
                    [] => "it has none".to_owned(),
                    has => format!("it has {}", has.join(", ")),
                };
                faults.push(Fault {
                    place: format!("node \"{}\"", node.id),
                    field: "knowledge".into(),
                    problem: format!("the agent has no knowledge base \"{base}\"; add it to the agent's ({known})"),
                });
            }
        }
        faults
    }

    /// Whether a model talks in it.
    pub fn needs_model(&self) -> bool {
        self.nodes.iter().any(|node| matches!(node.kind, Kind::Llm(_)))
    }

    pub(super) fn slot_names(&self) -> impl Iterator<Item = &String> {
        self.slots.keys()
    }

    /// What a slot holds, for a model: `a date`, `one of: inside, outside`.
    pub(super) fn slot_in_words(&self, slot: &str) -> String {
        self.slots.get(slot).map_or_else(|| "an unknown name".into(), |slot| slot.kind.in_words())
    }

    /// Whether a text is a value of this slot.
    pub(super) fn understands(&self, slot: &str, text: &str) -> bool {
        let heard = Heard::new(&self.language, text);
        self.slots.get(slot).is_some_and(|slot| slot.kind.extract(&self.language, &heard, true, false).is_some())
    }

    /// Whether any node has an exit of this name.
    pub(super) fn has_exit(&self, name: &str) -> bool {
        self.nodes.iter().any(|node| matches!(&node.kind, Kind::Llm(talk) if talk.exit(name).is_some()))
    }
}

fn name_tools<'w>(tools: &mut BTreeMap<&'w str, String>, action: &'w Action, place: impl Fn() -> String) {
    let called = action.call.as_ref().map(|call| call.tool.as_str());
    let handed = action.handover.as_ref().map(|_| "transfer_call");
    let ended = action.end.as_ref().map(|_| "end_call");
    for tool in [called, handed, ended].into_iter().flatten() {
        tools.entry(tool).or_insert_with(&place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
version = 1
name = "small"
start = "open"
[fallback]
say = "Sorry?"
goto = "open"
[words]
yes = ["yes", "of course"]
[slots.day]
type = "day"
ask = "Which day?"
[[rule]]
id = "hours"
hear = ["open*"]
say = "We are open."
[[node]]
id = "open"
kind = "listen"
[[node.when]]
hear = ["book"]
goto = "book"
[[node]]
id = "book"
kind = "collect"
collect = ["day"]
goto = "done"
give_up = "open"
[[node]]
id = "done"
kind = "do"
say = "Booked {day.on}."
goto = "open"
"#;

    fn faults(text: &str) -> Vec<String> {
        match Workflow::parse(text) {
            Ok(_) => Vec::new(),
            Err(error) => error.faults.iter().map(ToString::to_string).collect(),
        }
    }

    /// Each change of the small file must be named like this.
    fn check(from: &str, to: &str, expected: &[&str]) {
        assert!(SMALL.contains(from), "{from:?} is not in the file");
        let found = faults(&SMALL.replacen(from, to, 1));
        for part in expected {
            assert!(found.iter().any(|fault| fault.contains(part)), "{to:?}: {part:?} is not in {found:#?}");
        }
        assert_eq!(found.len(), expected.len(), "{to:?}: {found:#?}");
    }

    #[test]
    fn a_small_workflow_is_read() {
        let workflow = Workflow::parse(SMALL).unwrap();
        assert_eq!(workflow.node_ids().collect::<Vec<_>>(), ["open", "book", "done"]);
        assert_eq!(workflow.language, "en");
        assert!(workflow.tools().is_empty());
    }

    #[test]
    fn each_fault_names_its_place_and_its_cure() {
        check("version = 1", "version = 2", &["file, version: 2 is not read here; write version = 1"]);
        check("version = 1", "", &["file, version: is missing"]);
        check(
            "start = \"open\"",
            "start = \"opne\"",
            &["file, start: there is no node \"opne\"; add it or name one of: book, done, open"],
        );
        check("name = \"small\"", "nmae = \"small\"", &["file, nmae: is unknown; did you mean `name`?"]);
        check(
            "hear = [\"book\"]",
            "heard = [\"book\"]",
            &["node \"open\", when[1].heard: is unknown; did you mean `hear`?", "when[1].hear: is missing"],
        );
        check(
            "hear = [\"book\"]",
            "hear = [\"@no\"]",
            &["node \"open\", when[1].hear: \"@no\": there is no set `no` in [words]", "when[1].hear: is missing"],
        );
        check("hear = [\"book\"]", "hear_regex = [\"(\"]", &["when[1].hear_regex: \"(\":", "when[1].hear: is missing"]);
        check(
            "goto = \"book\"",
            "goto = \"bok\"",
            &["node \"open\", when[1].goto: there is no node \"bok\"", "nothing happens here"],
        );
        check(
            "collect = [\"day\"]",
            "collect = [\"date\"]",
            &["node \"book\", collect: there is no slot `date`; add [slots.date]"],
        );
        check("{day.on}", "{day.off}", &["node \"done\", say: `{day.off}` is unknown"]);
        check("{day.on}", "{date}", &["node \"done\", say: there is no slot `date`"]);
        check("{day.on}", "{day", &["node \"done\", say: "]);
        check("type = \"day\"", "type = \"dya\"", &["slot \"day\", type: \"dya\" is unknown; write text, number"]);
        check(
            "kind = \"do\"",
            "kind = \"doo\"",
            &["node \"done\", kind: \"doo\" is unknown; write start, say, listen"],
        );
        check("id = \"done\"", "id = \"book\"", &["node \"book\", id: stands twice", "there is no node \"done\""]);
        check("give_up = \"open\"", "", &["node \"book\", give_up: is missing"]);
        check("say = \"Sorry?\"", "", &["file, fallback.say: is missing"]);
        check("yes = [\"yes\", \"of course\"]", "yes = 3", &["words, yes: is no list of phrases"]);
        check("version = 1", "version 1", &["file, line 2:"]);
        check("say = \"We are open.\"", "handover = \"talk\"", &["rule \"hours\", failed: is missing"]);
        check(
            "say = \"We are open.\"",
            "call = { args = 3 }\nfailed = { say = \"No.\" }",
            &["call.tool: is missing", "call.args: is no table"],
        );
        check("say = \"Booked {day.on}.\"\ngoto = \"open\"", "say = \"Booked.\"", &["node \"done\", goto: is missing"]);
        check(
            "give_up = \"open\"",
            "give_up = \"open\"\ntries = 0",
            &["node \"book\", tries: 0 is out of range; write a number from 1 to 20"],
        );
    }

    #[test]
    fn all_faults_are_listed_at_once() {
        let text = SMALL
            .replace("goto = \"book\"", "goto = \"a\"")
            .replace("goto = \"done\"", "goto = \"b\"")
            .replace("type = \"day\"", "type = \"c\"");
        let error = Workflow::parse(&text).unwrap_err();
        assert_eq!(error.faults.len(), 4, "{error}");
        assert!(error.to_string().starts_with("the workflow has 4 faults:\n  "));
    }

    #[test]
    fn a_node_that_nothing_leads_to_is_a_fault() {
        let lone = format!("{SMALL}[[node]]\nid = \"lone\"\nkind = \"listen\"\n");
        assert_eq!(faults(&lone), ["node \"lone\", id: cannot be reached; name it in a goto, or remove the node"]);
    }

    #[test]
    fn a_loop_without_the_caller_is_a_fault_and_one_that_asks_is_not() {
        let turning = SMALL.replace("say = \"Booked {day.on}.\"\ngoto = \"open\"", "goto = \"book\"");
        let found = faults(&turning);
        assert_eq!(
            found,
            ["node \"book\", goto: book → done → book never waits for the caller; put a listen node in between"]
        );
        let asking = SMALL.replace("say = \"Booked {day.on}.\"\ngoto = \"open\"", "clear = [\"day\"]\ngoto = \"book\"");
        assert_eq!(faults(&asking), [""; 0]);
    }

    #[test]
    fn hostile_files_are_refused_without_harm() {
        assert!(faults(&"a".repeat(MAX_FILE_BYTES + 1))[0].contains("bytes"));
        for text in [
            "",
            "node = 3",
            "slots = 3",
            "words = 3",
            "version = 1\nnode = [3]",
            "[node]",
            "version = 1\n[[node]]\nid = 3",
            "\u{0}",
        ] {
            assert!(!faults(text).is_empty(), "{text:?}");
        }
    }

    #[test]
    fn what_is_expected_decides_how_long_a_pause_may_be() {
        for (label, expectation) in Expectation::ALL {
            assert_eq!(expectation.label(), label);
            assert_eq!(expectation.waits_longer(), matches!(label, "digits" | "spelling" | "address"));
        }
    }

    const TALK: &str = r#"
version = 1
name = "talk"
[fallback]
say = "Sorry?"
goto = "bye"
[slots.people]
type = "people"
[[node]]
id = "hello"
kind = "start"
say = "Hello, {company}."
goto = "talk"
[[node]]
id = "talk"
kind = "llm"
prompt = "Find out how many come."
collect = ["people"]
exit = [{ name = "none", when = "they do not come", goto = "bye" }]
failed = { goto = "bye" }
goto = "size"
give_up = "bye"
[[node]]
id = "size"
kind = "branch"
if = [{ when = "people.value > 6", goto = "price" }]
goto = "note"
[[node]]
id = "price"
kind = "tool"
tool = "price"
save = { people = "/people" }
failed = { say = "No price." }
goto = "note"
[[node]]
id = "note"
kind = "sms"
text = "See you."
failed = { say = "No message." }
goto = "bye"
[[node]]
id = "bye"
kind = "end"
say = "Goodbye."
"#;

    /// Each change of the file must be named like this, and nothing else.
    fn check_talk(from: &str, to: &str, expected: &[&str]) {
        assert!(TALK.contains(from), "{from:?} is not in the file");
        let found = faults(&TALK.replacen(from, to, 1));
        for part in expected {
            assert!(found.iter().any(|fault| fault.contains(part)), "{to:?}: {part:?} is not in {found:#?}");
        }
        assert_eq!(found.len(), expected.len(), "{to:?}: {found:#?}");
    }

    #[test]
    fn every_kind_of_node_names_its_faults() {
        assert_eq!(faults(TALK), [""; 0]);
        let workflow = Workflow::parse(TALK).unwrap();
        assert!(workflow.needs_model() && workflow.opens);
        let tools: Vec<(&str, String)> = workflow.tools().into_iter().collect();
        let places = ["node \"bye\"", "node \"price\"", "node \"note\""].map(str::to_owned);
        assert_eq!(tools, ["end_call", "price", "send_sms"].into_iter().zip(places).collect::<Vec<_>>());
        check_talk("name = \"talk\"", "name = \"talk\"\nstart = \"talk\"", &["file, start: is not the node of kind"]);
        check_talk("kind = \"end\"", "kind = \"start\"\ngoto = \"talk\"", &["there is another start"]);
        check_talk("prompt = \"Find out how many come.\"", "", &["node \"talk\", prompt: is missing"]);
        check_talk("Find out how many come.", &"x".repeat(9000), &["node \"talk\", prompt: 9000 characters"]);
        check_talk("collect = [\"people\"]", "", &["node \"talk\", goto: follows when everything is collected"]);
        check_talk("goto = \"size\"", "", &["talk\", goto: is missing"]);
        check_talk("give_up = \"bye\"", "give_up = \"bye\"\ntemperature = 3.5", &["temperature: 3.5 is out of range"]);
        check_talk("give_up = \"bye\"", "give_up = \"bye\"\nwait_factor = 9", &["wait_factor: 9 is out of range"]);
        check_talk("when = \"they do not come\", ", "", &["exit[1].when: is missing"]);
        check_talk("goto = \"bye\" }]", "goto = \"buy\" }]", &["exit[1].goto: there is no node \"buy\""]);
        check_talk(
            "people.value > 6",
            "people.value >",
            &["node \"size\", if[1].when: ", "node \"size\", if: is missing"],
        );
        check_talk("people.value > 6", "persons > 6", &["if[1].when: there is no slot `persons`"]);
        check_talk("tool = \"price\"", "", &["node \"price\", tool: is missing"]);
        check_talk("\"/people\"", "\"people\"", &["save: `people`: a place in the result begins with /"]);
        check_talk("text = \"See you.\"", "", &["node \"note\", text: is missing"]);
        check_talk("failed = { say = \"No message.\" }", "", &["node \"note\", failed: is missing"]);
        check_talk(
            "give_up = \"bye\"",
            "give_up = \"bye\"\nknowledge = [3]",
            &["talk\", knowledge: is neither a text nor"],
        );
        check_talk(
            "give_up = \"bye\"",
            "give_up = \"bye\"\nknowledge = [\"menu\", \"menu\"]",
            &["talk\", knowledge: \"menu\" stands twice; name it once"],
        );
        check_talk(
            "give_up = \"bye\"",
            "give_up = \"bye\"\nknowledge = []\ntools = [\"search_knowledge\"]",
            &["talk\", knowledge: is empty, and `tools` names search_knowledge; remove one of them"],
        );
        check_talk("{company}", "{firm}", &["node \"hello\", say: there is no slot `firm`"]);
        check_talk("[slots.people]", "[slots.caller]\ntype = \"text\"\n[slots.people]", &["slot \"caller\": is taken"]);
    }

    #[test]
    fn a_node_names_bases_that_its_agent_has() {
        let file = TALK
            .replace("give_up = \"bye\"\n[[node]]", "give_up = \"bye\"\nknowledge = [\"menu\", \"rules\"]\n[[node]]")
            .replace(
                "kind = \"tool\"\ntool = \"price\"\nsave = { people = \"/people\" }",
                "kind = \"knowledge\"\nknowledge = \"prices\"",
            );
        let workflow = Workflow::parse(&file).unwrap();
        let lacks = |has: &[&str]| -> Vec<String> {
            let has: Vec<String> = has.iter().map(|&base| base.to_owned()).collect();
            workflow.lacks_knowledge(&has).iter().map(ToString::to_string).collect()
        };
        assert_eq!(lacks(&["rules", "prices", "menu"]), [""; 0]);
        assert_eq!(
            lacks(&["rules", "menu"]),
            [
                "node \"price\", knowledge: the agent has no knowledge base \"prices\"; add it to the agent's (it has rules, menu)"
            ]
        );
        assert_eq!(lacks(&[]).len(), 3);
        let none = file.replace("knowledge = [\"menu\", \"rules\"]", "knowledge = []");
        let none = none.replace("knowledge = \"prices\"", "");
        assert!(Workflow::parse(&none).unwrap().lacks_knowledge(&[]).is_empty(), "none are named");
        assert_eq!(
            faults(&file.replace("knowledge = \"prices\"", "knowledge = []")),
            ["node \"price\", knowledge: names no knowledge base; name one, or remove this key to look in all of them"]
        );
    }

    #[test]
    fn json_has_the_same_shape() {
        let json = serde_json::to_string(&toml::from_str::<Value>(TALK).unwrap()).unwrap();
        let (one, other) = (Workflow::parse(&json).unwrap(), Workflow::parse(TALK).unwrap());
        assert_eq!(one.node_ids().collect::<Vec<_>>(), other.node_ids().collect::<Vec<_>>());
        assert!(faults("{ \"version\": 1, ")[0].starts_with("file, line 1"));
    }

    #[test]
    fn a_loop_of_nodes_that_never_wait_is_found_through_branches() {
        let turning =
            TALK.replace("goto = \"note\"\n[[node]]\nid = \"price\"", "goto = \"size\"\n[[node]]\nid = \"price\"");
        assert!(
            faults(&turning).iter().any(|fault| fault.contains("size → size never waits")),
            "{:?}",
            faults(&turning)
        );
    }
}
