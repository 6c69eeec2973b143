//! The workflow file: a versioned graph of nodes, read from TOML into checked types. Reading lists every fault of a
//! file at once, each with its place and its cure. What happens when a call walks the graph is `builtin.rs`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use serde_json::{Map, Value};

use super::extract::{Choice, MAX_PEOPLE, Prefer, SlotType};
use super::hear::Pattern;

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

/// JSON arguments with templates in its strings.
#[derive(Clone, Debug)]
pub(super) enum Args {
    Plain(Value),
    Text(Template),
    List(Vec<Args>),
    Table(Vec<(String, Args)>),
}

impl Args {
    pub fn render(&self, lookup: &dyn Fn(&str, Form) -> Option<String>) -> Value {
        match self {
            Args::Plain(value) => value.clone(),
            Args::Text(template) => Value::String(template.render(lookup)),
            Args::List(items) => Value::Array(items.iter().map(|item| item.render(lookup)).collect()),
            Args::Table(fields) => {
                Value::Object(fields.iter().map(|(key, item)| (key.clone(), item.render(lookup))).collect())
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
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// Waits for the caller. `again` puts the question again after something else was answered.
    Listen { again: Option<Template> },
    /// Asks for each slot that is missing, then goes on.
    Collect { slots: Vec<String>, asks: HashMap<String, Vec<Template>>, goto: NodeId },
    /// Acts and goes on without the caller.
    Do(Action),
}

/// Which form of a slot a template shows: `{day}` as it is said, `{day.value}` for programs, `{day.on}` with its
/// preposition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Spoken,
    Value,
    On,
}

/// A text with slots in braces; `{{` and `}}` are braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Slot(String, Form),
}

impl Template {
    fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                plain.push_str(brace);
                rest = after;
                continue;
            }
            if brace == "}" {
                return Err("a `}` without its `{`; write `}}` for a brace".into());
            }
            let Some((name, after)) = rest.split_once('}') else {
                return Err("a `{` without its `}`; write `{{` for a brace".into());
            };
            let (slot, form) = match name.split_once('.') {
                None => (name, Form::Spoken),
                Some((slot, "value")) => (slot, Form::Value),
                Some((slot, "on")) => (slot, Form::On),
                Some((slot, form)) => {
                    return Err(format!("`{{{slot}.{form}}}` is unknown; a slot has `.value` and `.on`"));
                }
            };
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(Part::Slot(slot.to_owned(), form));
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self { parts })
    }

    fn slots(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Slot(slot, _) => Some(slot.as_str()),
            Part::Text(_) => None,
        })
    }

    /// The text with its slots; an empty slot leaves nothing.
    pub fn render(&self, lookup: &dyn Fn(&str, Form) -> Option<String>) -> String {
        self.parts
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.clone(),
                Part::Slot(slot, form) => lookup(slot, *form).unwrap_or_default(),
            })
            .collect()
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
    /// Reads a workflow file (TOML).
    pub fn parse(text: &str) -> Result<Self, WorkflowError> {
        let fault = |field: &str, problem: String| {
            let fault = Fault { place: "file".into(), field: field.into(), problem };
            Err(WorkflowError { faults: vec![fault] })
        };
        if text.len() > MAX_FILE_BYTES {
            return fault("", format!("{} bytes; at most {MAX_FILE_BYTES} are read", text.len()));
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

    /// Names of the tools that the graph calls, sorted.
    pub fn tools(&self) -> BTreeSet<&str> {
        let mut tools = BTreeSet::new();
        for action in self.actions() {
            tools.extend(action.call.iter().map(|call| call.tool.as_str()));
            tools.extend(action.handover.iter().map(|_| "handover"));
            tools.extend(action.end.iter().map(|_| "end_call"));
        }
        tools
    }

    fn actions(&self) -> impl Iterator<Item = &Action> {
        let rules = self.rules.iter().chain(self.nodes.iter().flat_map(|node| &node.when));
        let done = self.nodes.iter().filter_map(|node| match &node.kind {
            Kind::Do(action) => Some(action),
            _ => None,
        });
        rules.map(|rule| &rule.action).chain(done)
    }
}

// --- reading -------------------------------------------------------------------------------------------------------

/// Faults and the names that other parts of the file may use, gathered before those parts are read.
#[derive(Default)]
struct Reader {
    faults: RefCell<Vec<Fault>>,
    sets: BTreeMap<String, Vec<String>>,
    nodes: HashMap<String, NodeId>,
    slots: BTreeSet<String>,
    patterns: RefCell<usize>,
}

/// One table being read: keys that nobody asked for are faults at the end.
struct Table<'r> {
    reader: &'r Reader,
    place: String,
    /// Path inside the place, e.g. `when[2].`.
    path: String,
    map: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Reader {
    fn fault(&self, place: &str, field: &str, problem: impl Into<String>) {
        self.faults.borrow_mut().push(Fault { place: place.into(), field: field.into(), problem: problem.into() });
    }

    fn table(&self, place: &str, path: &str, map: Map<String, Value>) -> Table<'_> {
        Table { reader: self, place: place.into(), path: path.into(), map, known: Vec::new() }
    }

    fn read(mut self, file: Map<String, Value>) -> Result<Workflow, WorkflowError> {
        // Another version has other keys: nothing else can be said about it.
        if let Some(version) = file.get("version").filter(|version| version.as_u64() != Some(VERSION)) {
            self.fault("file", "version", format!("{version} is not read here; write version = {VERSION}"));
            return Err(WorkflowError { faults: self.faults.into_inner() });
        }
        if !file.contains_key("version") {
            self.fault("file", "version", format!("is missing; write version = {VERSION}"));
        }
        self.gather(&file);
        let reader = self;
        let mut top = reader.table("file", "", file);
        top.known.extend(["version", "words"]);
        top.map.remove("version");
        top.map.remove("words");
        let name = top.text("name").unwrap_or_default();
        let language = top.text("language").unwrap_or_else(|| "en".into());
        let start = top.node("start", true).unwrap_or(0);
        let slots = top.slot_table();
        let rules: Vec<Rule> = reader.rules(top.tables("rule"));
        let nodes: Vec<Node> = reader.node_list(top.tables("node"));
        let fallback = match top.sub("fallback") {
            Some(mut table) => {
                let say = table.templates("say");
                if say.is_empty() {
                    table.fault("say", "is missing; write what is said when the caller was not understood");
                }
                let retry = Retry {
                    say,
                    tries: table.count("tries", 1, 20).unwrap_or(2),
                    give_up: table.node("goto", true).unwrap_or(0),
                };
                table.finish();
                retry
            }
            None => {
                reader.fault(
                    "file",
                    "fallback",
                    "is missing; write [fallback] with say and goto: what happens when nothing was understood",
                );
                Retry { say: Vec::new(), tries: 2, give_up: 0 }
            }
        };
        top.finish();
        let workflow = Workflow { name, language, start, fallback, slots, rules, nodes };
        if reader.faults.borrow().is_empty() {
            reader.check_graph(&workflow);
        }
        let faults = reader.faults.into_inner();
        if faults.is_empty() { Ok(workflow) } else { Err(WorkflowError { faults }) }
    }

    /// Names of nodes and slots and the word sets, so that what is used before it is written is found.
    fn gather(&mut self, file: &Map<String, Value>) {
        if let Some(words) = file.get("words") {
            match words.as_object() {
                Some(words) => {
                    for (set, phrases) in words {
                        let list: Option<Vec<String>> = phrases
                            .as_array()
                            .and_then(|list| list.iter().map(|phrase| phrase.as_str().map(str::to_owned)).collect());
                        match list {
                            Some(list) if !list.is_empty() => drop(self.sets.insert(set.clone(), list)),
                            _ => self.fault("words", set, "is no list of phrases; write [\"one\", \"two words\"]"),
                        }
                    }
                }
                None => self.fault("file", "words", "is no table; write [words] and a list of phrases per set"),
            }
        }
        if let Some(slots) = file.get("slots").and_then(Value::as_object) {
            self.slots = slots.keys().cloned().collect();
        }
        let nodes = file.get("node").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        if nodes.is_empty() {
            self.fault("file", "node", "there is none; write [[node]] with an id and a kind");
        }
        if nodes.len() > MAX_NODES {
            self.fault("file", "node", format!("{} nodes; at most {MAX_NODES} are read", nodes.len()));
        }
        for (index, node) in nodes.iter().enumerate() {
            let Some(id) = node.get("id").and_then(Value::as_str) else { continue };
            if self.nodes.insert(id.to_owned(), index).is_some() {
                self.fault(&format!("node \"{id}\""), "id", "stands twice; give each node its own");
            }
        }
    }

    fn rules(&self, tables: Vec<Map<String, Value>>) -> Vec<Rule> {
        if tables.len() > MAX_RULES {
            self.fault("file", "rule", format!("{} rules; at most {MAX_RULES} are read", tables.len()));
        }
        let mut seen = BTreeSet::new();
        let mut rules = Vec::new();
        for (index, map) in tables.into_iter().enumerate() {
            let id = map.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
            let place = if id.is_empty() { format!("rule {}", index + 1) } else { format!("rule \"{id}\"") };
            if id.is_empty() {
                self.fault(&place, "id", "is missing; give the rule a name");
            } else if !seen.insert(id.clone()) {
                self.fault(&place, "id", "stands twice; give each rule its own");
            }
            let mut table = self.table(&place, "", map);
            table.take("id");
            let topic = table.text("topic");
            let weak = table.flag("weak");
            let rule = table.rule(topic, weak);
            if rule.topic.is_some()
                && (rule.action.goto.is_some() || rule.action.say.is_none() || rule.action.call.is_some())
            {
                table.fault("topic", "belongs to rules that only say something; remove it, or goto and call");
            }
            table.finish();
            rules.push(rule);
        }
        rules
    }

    fn node_list(&self, tables: Vec<Map<String, Value>>) -> Vec<Node> {
        let mut nodes = Vec::new();
        for (index, map) in tables.into_iter().enumerate() {
            let id = map.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
            let place = if id.is_empty() { format!("node {}", index + 1) } else { format!("node \"{id}\"") };
            if id.is_empty() {
                self.fault(&place, "id", "is missing; give the node a name");
            }
            let mut table = self.table(&place, "", map);
            table.take("id");
            nodes.push(table.node_body(id));
            table.finish();
        }
        nodes
    }

    // --- the graph as a whole --------------------------------------------------------------------------------------

    fn check_graph(&self, workflow: &Workflow) {
        let place = |node: NodeId| format!("node \"{}\"", workflow.nodes[node].id);
        let mut reached = BTreeSet::new();
        let mut open = vec![workflow.start, workflow.fallback.give_up];
        open.extend(workflow.rules.iter().flat_map(|rule| targets(&rule.action)));
        while let Some(node) = open.pop() {
            if reached.insert(node) {
                open.extend(next_nodes(&workflow.nodes[node]));
            }
        }
        for node in 0..workflow.nodes.len() {
            if !reached.contains(&node) {
                self.fault(&place(node), "id", "cannot be reached; name it in a goto, or remove the node");
            }
        }
        self.check_loops(workflow);
    }

    /// A way from a node back to itself that never waits for the caller would say the same for ever. A `collect` node
    /// waits unless all its slots are filled, so a way that clears one of them is no loop.
    fn check_loops(&self, workflow: &Workflow) {
        for start in 0..workflow.nodes.len() {
            let mut path = vec![start];
            let mut visited = BTreeSet::new();
            if let Some(path) = find_loop(workflow, start, &mut path, &mut visited) {
                // Each loop is reported once, at its first node in the file.
                if path.iter().min() == Some(&start) {
                    let ids: Vec<&str> =
                        path.iter().chain([&start]).map(|&node| workflow.nodes[node].id.as_str()).collect();
                    let problem =
                        format!("{} never waits for the caller; put a listen node in between", ids.join(" → "));
                    self.fault(&format!("node \"{}\"", workflow.nodes[start].id), "goto", problem);
                }
            }
        }
    }
}

fn targets(action: &Action) -> impl Iterator<Item = NodeId> {
    action.goto.into_iter().chain(action.failed.as_ref().and_then(|failed| failed.goto))
}

/// Where a node may lead, with or without the caller.
fn next_nodes(node: &Node) -> Vec<NodeId> {
    let mut next: Vec<NodeId> = node.when.iter().flat_map(|rule| targets(&rule.action)).collect();
    next.extend(node.retry.iter().map(|retry| retry.give_up));
    next.extend(instant_nodes(node));
    next
}

/// Where a node may lead at once.
fn instant_nodes(node: &Node) -> Vec<NodeId> {
    match &node.kind {
        Kind::Listen { .. } => Vec::new(),
        Kind::Collect { goto, .. } => vec![*goto],
        Kind::Do(action) => targets(action).collect(),
    }
}

fn find_loop(
    workflow: &Workflow,
    start: NodeId,
    path: &mut Vec<NodeId>,
    visited: &mut BTreeSet<NodeId>,
) -> Option<Vec<NodeId>> {
    let here = *path.last().expect("the path begins with its start");
    for next in instant_nodes(&workflow.nodes[here]) {
        if next == start {
            let cleared: Vec<&String> = path
                .iter()
                .filter_map(|&node| match &workflow.nodes[node].kind {
                    Kind::Do(action) => Some(&action.clear),
                    _ => None,
                })
                .flatten()
                .collect();
            let waits = path.iter().any(|&node| match &workflow.nodes[node].kind {
                Kind::Collect { slots, .. } => slots.iter().any(|slot| cleared.contains(&slot)),
                _ => false,
            });
            if !waits {
                return Some(path.clone());
            }
        } else if visited.insert(next) {
            path.push(next);
            let found = find_loop(workflow, start, path, visited);
            path.pop();
            if found.is_some() {
                return found;
            }
        }
    }
    None
}

impl<'r> Table<'r> {
    fn fault(&self, field: &str, problem: impl Into<String>) {
        self.reader.fault(&self.place, &format!("{}{field}", self.path), problem);
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.map.remove(key)
    }

    /// Reports what was not taken.
    fn finish(&mut self) {
        for key in std::mem::take(&mut self.map).keys() {
            let mut known = self.known.clone();
            known.sort_unstable();
            let cure = match known.iter().find(|name| near(name, key)) {
                Some(name) => format!("is unknown; did you mean `{name}`?"),
                None => format!("is unknown; remove it (known here: {})", known.join(", ")),
            };
            self.fault(key, cure);
        }
    }

    fn text(&mut self, key: &'static str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) if !text.trim().is_empty() => Some(text),
            _ => {
                self.fault(key, "is no text; write it in quotes");
                None
            }
        }
    }

    fn flag(&mut self, key: &'static str) -> bool {
        match self.take(key) {
            None => false,
            Some(Value::Bool(value)) => value,
            Some(_) => {
                self.fault(key, "is neither true nor false");
                false
            }
        }
    }

    fn count(&mut self, key: &'static str, min: u32, max: u32) -> Option<u32> {
        let value = self.take(key)?;
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| (min..=max).contains(n));
        if number.is_none() {
            self.fault(key, format!("{value} is out of range; write a number from {min} to {max}"));
        }
        number
    }

    /// A text or a list of texts.
    fn texts(&mut self, key: &'static str) -> Vec<String> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let list = match value {
            Value::String(text) => Some(vec![text]),
            Value::Array(list) => list.into_iter().map(|item| item.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        match list {
            Some(list) if list.iter().all(|text| !text.trim().is_empty()) => list,
            _ => {
                self.fault(key, "is neither a text nor a list of texts");
                Vec::new()
            }
        }
    }

    fn sub(&mut self, key: &'static str) -> Option<Table<'r>> {
        match self.take(key)? {
            Value::Object(map) => Some(self.reader.table(&self.place, &format!("{}{key}.", self.path), map)),
            _ => {
                self.fault(key, "is no table");
                None
            }
        }
    }

    fn tables(&mut self, key: &'static str) -> Vec<Map<String, Value>> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let list = value.as_array().map(|list| list.iter().map(|item| item.as_object().cloned()).collect());
        match list {
            Some(Some(list)) => list,
            _ => {
                self.fault(key, format!("is no list of tables; write [[{key}]]"));
                Vec::new()
            }
        }
    }

    fn template_of(&self, key: &str, text: &str) -> Option<Template> {
        match Template::parse(text) {
            Ok(template) => {
                for slot in template.slots() {
                    self.check_slot(key, slot);
                }
                Some(template)
            }
            Err(problem) => {
                self.fault(key, problem);
                None
            }
        }
    }

    fn template(&mut self, key: &'static str) -> Option<Template> {
        let text = self.text(key)?;
        self.template_of(key, &text)
    }

    fn templates(&mut self, key: &'static str) -> Vec<Template> {
        self.texts(key).iter().filter_map(|text| self.template_of(key, text)).collect()
    }

    fn check_slot(&self, key: &str, slot: &str) {
        if !self.reader.slots.contains(slot) {
            self.fault(
                key,
                format!(
                    "there is no slot `{slot}`; add [slots.{slot}] or name one of: {}",
                    list(self.reader.slots.iter())
                ),
            );
        }
    }

    /// Slot names.
    fn slot_names(&mut self, key: &'static str) -> Vec<String> {
        let names = self.texts(key);
        names.iter().for_each(|slot| self.check_slot(key, slot));
        names
    }

    fn node(&mut self, key: &'static str, required: bool) -> Option<NodeId> {
        let Some(value) = self.take(key) else {
            if required {
                self.fault(key, "is missing; name a node");
            }
            return None;
        };
        let found = value.as_str().and_then(|id| self.reader.nodes.get(id)).copied();
        if found.is_none() {
            let mut ids: Vec<&String> = self.reader.nodes.keys().collect();
            ids.sort();
            self.fault(key, format!("there is no node {value}; add it or name one of: {}", list(ids.into_iter())));
        }
        found
    }

    fn patterns(&mut self, key: &'static str, regex: bool) -> Vec<Pattern> {
        let texts = self.texts(key);
        let total = *self.reader.patterns.borrow() + texts.len();
        *self.reader.patterns.borrow_mut() = total;
        if total > MAX_PATTERNS {
            self.fault(key, format!("more than {MAX_PATTERNS} patterns in the file; use sets of [words]"));
            return Vec::new();
        }
        let mut patterns = Vec::new();
        for text in texts {
            let compiled = if regex { Pattern::regex(&text) } else { Pattern::words(&text, &self.reader.sets) };
            match compiled {
                Ok(pattern) => {
                    for slot in pattern.slots() {
                        self.check_slot(key, slot);
                    }
                    patterns.push(pattern);
                }
                Err(problem) => self.fault(key, format!("{text:?}: {problem}")),
            }
        }
        patterns
    }

    fn slot_table(&mut self) -> BTreeMap<String, Slot> {
        let mut slots = BTreeMap::new();
        let Some(table) = self.take("slots") else { return slots };
        let Value::Object(table) = table else {
            self.fault("slots", "is no table; write [slots.NAME]");
            return slots;
        };
        for (name, value) in table {
            let place = format!("slot \"{name}\"");
            let Value::Object(map) = value else {
                self.reader.fault(&place, "", "is no table; write [slots.NAME] and a type");
                continue;
            };
            if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                || name.starts_with(|c: char| c.is_ascii_digit())
            {
                self.reader.fault(&place, "", "is no name; use letters, digits and _");
            }
            let mut table = self.reader.table(&place, "", map);
            let kind = table.slot_type();
            let expects = table.expects().unwrap_or_else(|| Expectation::of(&kind));
            let slot = Slot { kind, ask: table.templates("ask"), echo: table.template("echo"), expects };
            table.finish();
            slots.insert(name, slot);
        }
        slots
    }

    fn slot_type(&mut self) -> SlotType {
        let Some(name) = self.text("type") else {
            self.fault("type", "is missing; write what the slot holds, e.g. type = \"name\"");
            return SlotType::Text;
        };
        match name.as_str() {
            "text" => SlotType::Text,
            "number" => SlotType::Number {
                min: self.count("min", 0, 1_000_000).unwrap_or(0),
                max: self.count("max", 0, 1_000_000).unwrap_or(1_000_000),
            },
            "people" => SlotType::People { max: self.count("max", 1, MAX_PEOPLE).unwrap_or(50) },
            "day" | "date" => SlotType::Day,
            "time" => {
                let prefer = match self.text("prefer").as_deref() {
                    None | Some("day") => Prefer::Day,
                    Some("am") => Prefer::Am,
                    Some("pm") => Prefer::Pm,
                    Some(_) => {
                        self.fault("prefer", "is none of \"am\", \"pm\", \"day\"");
                        Prefer::Day
                    }
                };
                SlotType::Time { prefer }
            }
            "moment" => SlotType::Moment,
            "name" => SlotType::Name,
            "digits" => SlotType::Digits { length: self.count("length", 1, 32).unwrap_or(0) as usize },
            "phone" => SlotType::Phone,
            "yes_no" => SlotType::YesNo,
            "choice" => {
                let mut choices = Vec::new();
                for (index, map) in self.tables("choice").into_iter().enumerate() {
                    let mut table = self.reader.table(&self.place, &format!("choice[{}].", index + 1), map);
                    let value = table.text("value");
                    let hear = table.patterns("hear", false);
                    if value.is_none() || hear.is_empty() {
                        table.fault("value", "needs value and hear: what is kept, and what is heard for it");
                    }
                    table.finish();
                    choices.extend(value.map(|value| Choice { value, hear }));
                }
                if choices.is_empty() {
                    self.fault("choice", "is missing; write choice = [{ value = \"inside\", hear = [\"inside\"] }]");
                }
                SlotType::Choice(choices)
            }
            other => {
                self.fault(
                    "type",
                    format!("\"{other}\" is unknown; write text, number, people, day, date, time, moment, name, digits, phone, yes_no or choice"),
                );
                SlotType::Text
            }
        }
    }

    fn expects(&mut self) -> Option<Expectation> {
        let name = self.text("expects")?;
        let found = Expectation::ALL.iter().find(|(label, _)| *label == name).map(|(_, expectation)| *expectation);
        if found.is_none() {
            let labels: Vec<&str> = Expectation::ALL.iter().map(|(label, _)| *label).collect();
            self.fault("expects", format!("\"{name}\" is unknown; write one of: {}", labels.join(", ")));
        }
        found
    }

    fn rule(&mut self, topic: Option<String>, weak: bool) -> Rule {
        let mut hear = self.patterns("hear", false);
        hear.extend(self.patterns("hear_regex", true));
        let rule = Rule {
            hear,
            unless: self.patterns("unless", false),
            need: self.slot_names("need"),
            fill: self.slot_names("fill"),
            has: self.slot_names("has"),
            lacks: self.slot_names("lacks"),
            topic,
            weak,
            action: self.action(),
        };
        if rule.hear.is_empty() && rule.need.is_empty() && rule.unless.is_empty() {
            self.fault("hear", "is missing; write patterns, or the slots that are needed");
        }
        let action = &rule.action;
        let acts = action.goto.is_some()
            || action.say.is_some()
            || action.repeat
            || action.end.is_some()
            || action.call.is_some();
        if !acts && action.handover.is_none() {
            self.fault("goto", "nothing happens here; write say, goto, call, handover, repeat or end");
        }
        rule
    }

    fn action(&mut self) -> Action {
        let set = match self.take("set") {
            None => Vec::new(),
            Some(Value::Object(map)) => map
                .into_iter()
                .filter_map(|(slot, value)| {
                    self.check_slot("set", &slot);
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    Some((slot, self.template_of("set", &text)?))
                })
                .collect(),
            Some(_) => {
                self.fault("set", "is no table; write set = { slot = \"value\" }");
                Vec::new()
            }
        };
        let call = self.sub("call").map(|mut table| {
            let tool = table.text("tool");
            if tool.is_none() {
                table.fault("tool", "is missing; name the tool");
            }
            let args = table.take("args").unwrap_or_else(|| Value::Object(Map::new()));
            if !args.is_object() {
                table.fault("args", "is no table; write args = { key = \"{slot}\" }");
            }
            let args = table.args(args);
            let filler = table.template("filler");
            table.finish();
            Call { tool: tool.unwrap_or_default(), args, filler }
        });
        let failed = self.sub("failed").map(|mut table| {
            let say = table.template("say");
            if say.is_none() {
                table.fault("say", "is missing; write what is said when the tool refuses");
            }
            let goto = table.node("goto", false);
            table.finish();
            Failed { say: say.unwrap_or(Template { parts: Vec::new() }), goto }
        });
        let action = Action {
            clear: self.slot_names("clear"),
            set,
            call,
            handover: self.template("handover"),
            failed,
            say: self.template("say"),
            repeat: self.flag("repeat"),
            end: self.template("end"),
            goto: self.node("goto", false),
        };
        let calls = action.call.is_some() || action.handover.is_some();
        if calls && action.failed.is_none() {
            self.fault(
                "failed",
                "is missing; write failed = { say = \"…\" }: an agent never says that it did what a tool refused",
            );
        }
        if !calls && action.failed.is_some() {
            self.fault("failed", "belongs to call or handover; remove it");
        }
        if action.call.is_some() && action.handover.is_some() {
            self.fault("handover", "stands beside a call; put one of them into a node of its own");
        }
        if action.end.is_some() && action.goto.is_some() {
            self.fault("goto", "nothing follows `end`; remove one of them");
        }
        action
    }

    fn args(&self, value: Value) -> Args {
        match value {
            Value::String(text) => match self.template_of("args", &text) {
                Some(template) => Args::Text(template),
                None => Args::Plain(Value::Null),
            },
            Value::Array(items) => Args::List(items.into_iter().map(|item| self.args(item)).collect()),
            Value::Object(fields) => {
                Args::Table(fields.into_iter().map(|(key, item)| (key, self.args(item))).collect())
            }
            plain => Args::Plain(plain),
        }
    }

    fn node_body(&mut self, id: String) -> Node {
        let kind_name = self.text("kind");
        let mut when = Vec::new();
        let (kind, say, expects, retry) = match kind_name.as_deref() {
            Some("do") => {
                let action = self.action();
                if action.goto.is_none() && action.end.is_none() {
                    self.fault("goto", "is missing; a do node goes on somewhere or ends the call");
                }
                // Said by the action, after its call.
                (Kind::Do(action), None, None, None)
            }
            Some("collect") => {
                when = self.when();
                let slots = self.slot_names("collect");
                if slots.is_empty() {
                    self.fault("collect", "is missing; name the slots to ask for");
                }
                let asks = self.asks(&slots);
                let say = self.template("say");
                let goto = self.node("goto", true).unwrap_or(0);
                let retry = self.retry();
                if retry.is_none() {
                    self.fault(
                        "give_up",
                        "is missing; name the node that follows when `tries` questions brought no answer",
                    );
                }
                (Kind::Collect { slots, asks, goto }, say, None, retry)
            }
            Some("listen") => {
                when = self.when();
                let say = self.template("say");
                let again = self.template("again");
                let expects = self.expects();
                (Kind::Listen { again }, say, expects, self.retry())
            }
            other => {
                let problem = match other {
                    Some(other) => format!("\"{other}\" is unknown; write listen, collect or do"),
                    None => "is missing; write listen, collect or do".to_owned(),
                };
                self.fault("kind", problem);
                self.map.clear();
                (Kind::Listen { again: None }, None, None, None)
            }
        };
        Node { id, kind, when, say, expects, retry }
    }

    fn when(&mut self) -> Vec<Rule> {
        let tables = self.tables("when");
        tables
            .into_iter()
            .enumerate()
            .map(|(index, map)| {
                let mut table = self.reader.table(&self.place, &format!("when[{}].", index + 1), map);
                let rule = table.rule(None, false);
                table.finish();
                rule
            })
            .collect()
    }

    /// The node's own questions; each slot needs one here or in `[slots]`.
    fn asks(&mut self, slots: &[String]) -> HashMap<String, Vec<Template>> {
        let mut asks = HashMap::new();
        let own = match self.take("asks") {
            None => Map::new(),
            Some(Value::Object(map)) => map,
            Some(_) => {
                self.fault("asks", "is no table; write slot = [\"question\"]");
                Map::new()
            }
        };
        for (slot, value) in own {
            if !slots.contains(&slot) {
                self.fault("asks", format!("`{slot}` is not collected here; add it to collect or remove it"));
            }
            let texts: Vec<String> = match value {
                Value::String(text) => vec![text],
                Value::Array(list) => list.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect(),
                _ => Vec::new(),
            };
            if texts.is_empty() {
                self.fault("asks", format!("`{slot}` has no question; write a text or a list of texts"));
            }
            asks.insert(slot, texts.iter().filter_map(|text| self.template_of("asks", text)).collect());
        }
        asks
    }

    fn retry(&mut self) -> Option<Retry> {
        let say = self.templates("retry");
        let tries = self.count("tries", 1, 20);
        let give_up = self.node("give_up", false);
        match give_up {
            Some(give_up) => Some(Retry { say, tries: tries.unwrap_or(2), give_up }),
            None => {
                if !say.is_empty() || tries.is_some() {
                    self.fault(
                        "give_up",
                        "is missing; name the node that follows when `tries` answers were not understood",
                    );
                }
                None
            }
        }
    }
}

fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).take(40).collect();
    if names.is_empty() { "(there is none)".into() } else { names.join(", ") }
}

/// Whether two keys differ by a slip: a letter more, less or other, or letters in another order.
fn near(one: &str, other: &str) -> bool {
    let sorted = |text: &str| {
        let mut chars: Vec<char> = text.chars().collect();
        chars.sort_unstable();
        chars
    };
    if sorted(one) == sorted(other) {
        return true;
    }
    let (short, long) = if one.len() <= other.len() { (one, other) } else { (other, one) };
    let (short, long): (Vec<char>, Vec<char>) = (short.chars().collect(), long.chars().collect());
    if long.len() - short.len() > 1 {
        return false;
    }
    let same = short.iter().zip(&long).take_while(|(a, b)| a == b).count();
    let rest = short[same..].iter().rev().zip(long[same..].iter().rev()).take_while(|(a, b)| a == b).count();
    same + rest + 1 >= long.len()
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
        check("{day.on}", "{day", &["a `{` without its `}`"]);
        check("type = \"day\"", "type = \"dya\"", &["slot \"day\", type: \"dya\" is unknown; write text, number"]);
        check(
            "kind = \"do\"",
            "kind = \"doo\"",
            &["node \"done\", kind: \"doo\" is unknown; write listen, collect or do"],
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

    #[test]
    fn templates_show_the_forms_of_a_slot() {
        let template = Template::parse("A {{table}} {day.on} ({day.value}, {day}){gone}.").unwrap();
        let lookup = |slot: &str, form: Form| match (slot, form) {
            ("day", Form::On) => Some("on Friday".to_owned()),
            ("day", Form::Value) => Some("friday".to_owned()),
            ("day", Form::Spoken) => Some("Friday".to_owned()),
            _ => None,
        };
        assert_eq!(template.render(&lookup), "A {table} on Friday (friday, Friday).");
    }
}
