//! Reading a workflow file: tables into checked types, every fault with its place and its cure.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Map, Value};

use super::template::{Condition, NAMES, Template, wrong_name};
use super::{
    Action, Args, Call, Exit, Expectation, Failed, Fault, Kind, MAX_NODES, MAX_PATTERNS, MAX_RULES, Manners, Node,
    NodeId, Retry, Rule, Search, Slot, Talk, VERSION, Workflow, WorkflowError,
};
use crate::agent::extract::{Choice, MAX_PEOPLE, Prefer, SlotType};
use crate::agent::hear::Pattern;
use crate::agent::tools::search_knowledge;

/// Longest instruction of a node to its model, in characters: it is sent with every turn.
const MAX_PROMPT_CHARS: usize = 8_000;
/// Ways on that a model chooses from at one node.
const MAX_EXITS: usize = 20;
/// The kinds of nodes, as a file writes them.
const KINDS: &str = "start, say, listen, llm, collect, branch, tool, knowledge, transfer, sms, do or end";

/// Faults and the names that other parts of the file may use, gathered before those parts are read.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) faults: RefCell<Vec<Fault>>,
    sets: BTreeMap<String, Vec<String>>,
    nodes: HashMap<String, NodeId>,
    slots: BTreeSet<String>,
    /// The node of kind `start`.
    opening: Option<NodeId>,
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
    pub(super) fn fault(&self, place: &str, field: &str, problem: impl Into<String>) {
        self.faults.borrow_mut().push(Fault { place: place.into(), field: field.into(), problem: problem.into() });
    }

    fn table(&self, place: &str, path: &str, map: Map<String, Value>) -> Table<'_> {
        Table { reader: self, place: place.into(), path: path.into(), map, known: Vec::new() }
    }

    pub(super) fn read(mut self, file: Map<String, Value>) -> Result<Workflow, WorkflowError> {
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
        let opening = reader.opening;
        let start = top.node("start", opening.is_none()).or(opening).unwrap_or(0);
        if opening.is_some_and(|opening| opening != start) {
            top.fault("start", "is not the node of kind \"start\"; remove this key, or the other node");
        }
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
        let opens = opening.is_some();
        let workflow = Workflow { name, language, start, opens, fallback, slots, rules, nodes };
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
            if node.get("kind").and_then(Value::as_str) == Some("start") && self.opening.replace(index).is_some() {
                self.fault(&format!("node \"{id}\""), "kind", "there is another start; a conversation begins once");
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

    /// What a text or a condition was read to, with its names checked.
    fn named<T>(&self, key: &str, read: Result<(T, Vec<String>), String>) -> Option<T> {
        let (found, mut names) = match read {
            Ok(read) => read,
            Err(problem) => {
                self.fault(key, problem);
                return None;
            }
        };
        names.sort();
        for problem in names.iter().filter_map(|name| wrong_name(name, |slot| self.reader.slots.contains(slot))) {
            self.fault(key, format!("{problem}; name one of: {}", list(self.reader.slots.iter())));
        }
        Some(found)
    }

    fn template_of(&self, key: &str, text: &str) -> Option<Template> {
        self.named(key, Template::parse(text))
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
            if NAMES.contains(&name.as_str()) {
                self.reader.fault(&place, "", "is taken by what is known of the call; choose another name");
            }
            let mut table = self.reader.table(&place, "", map);
            let kind = table.slot_type();
            let expects = table.expects().unwrap_or_else(|| Expectation::of(&kind));
            let slot = Slot {
                kind,
                ask: table.templates("ask"),
                echo: table.template("echo"),
                confirm: table.template("confirm"),
                expects,
            };
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
            "email" => SlotType::Email,
            "address" => SlotType::Address,
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
                    format!("\"{other}\" is unknown; write text, number, people, day, date, time, moment, name, digits, phone, email, address, yes_no or choice"),
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
        let save = self.saved();
        let failed = self.failed();
        let action = Action {
            clear: self.slot_names("clear"),
            set,
            call,
            save,
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
        if action.call.is_none() && !action.save.is_empty() {
            self.fault("save", "belongs to call; remove it");
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
        let mut node = Node {
            id,
            kind: Kind::Listen { again: None },
            when: Vec::new(),
            say: None,
            expects: None,
            retry: None,
            manners: Manners::default(),
        };
        match kind_name.as_deref() {
            Some("start") => {
                node.say = self.template("say");
                // Said after the greeting: that the call is recorded, or that a program speaks.
                let say = self.template("consent");
                node.kind = Kind::Do(Action { say, goto: self.node("goto", true), ..Action::default() });
            }
            Some("say") => {
                let say = self.required("say", "what is said");
                node.kind = Kind::Do(Action { say, goto: self.node("goto", true), ..Action::default() });
            }
            Some("listen") => {
                node.when = self.when();
                node.say = self.template("say");
                node.kind = Kind::Listen { again: self.template("again") };
                node.expects = self.expects();
                node.retry = self.retry();
            }
            Some("collect") => {
                node.when = self.when();
                let slots = self.slot_names("collect");
                if slots.is_empty() {
                    self.fault("collect", "is missing; name the slots to ask for");
                }
                let asks = self.asks(&slots);
                node.say = self.template("say");
                let goto = self.node("goto", true).unwrap_or(0);
                node.retry = self.retry();
                if node.retry.is_none() {
                    self.fault(
                        "give_up",
                        "is missing; name the node that follows when `tries` questions brought no answer",
                    );
                }
                node.kind = Kind::Collect { slots, asks, goto };
            }
            Some("llm") => {
                node.when = self.when();
                node.say = self.template("say");
                node.expects = self.expects();
                node.kind = Kind::Llm(Box::new(self.talk()));
            }
            Some("branch") => {
                let mut ways = Vec::new();
                for (index, map) in self.tables("if").into_iter().enumerate() {
                    let mut table = self.reader.table(&self.place, &format!("{}if[{}].", self.path, index + 1), map);
                    if !table.map.contains_key("when") {
                        table.fault("when", "is missing; write a condition such as people.value > 6");
                    }
                    let condition = table.text("when").and_then(|text| table.named("when", Condition::parse(&text)));
                    let goto = table.node("goto", true);
                    table.finish();
                    ways.extend(condition.zip(goto));
                }
                if ways.is_empty() {
                    self.fault("if", "is missing; write if = [{ when = \"people.value > 6\", goto = \"…\" }]");
                }
                let otherwise = self.node("goto", true).unwrap_or(0);
                node.kind = Kind::Branch { ways, otherwise };
            }
            Some("tool") => {
                let tool = self.text("tool").unwrap_or_else(|| {
                    self.fault("tool", "is missing; name the tool");
                    String::new()
                });
                let args = self.take("args").unwrap_or_else(|| Value::Object(Map::new()));
                if !args.is_object() {
                    self.fault("args", "is no table; write args = { key = \"{slot}\" }");
                }
                let args = self.args(args);
                node.kind = Kind::Do(self.deed(tool, args));
            }
            Some("sms") => {
                let to = self.template("to").unwrap_or_else(|| Template::plain("{caller.number}"));
                let text = self.required("text", "what is sent").unwrap_or_else(|| Template::plain(""));
                let args = Args::Table(vec![("to".into(), Args::Text(to)), ("text".into(), Args::Text(text))]);
                node.kind = Kind::Do(self.deed("send_sms".into(), args));
            }
            Some("transfer") => {
                let handover = self.required("reason", "what the person is told");
                node.kind = Kind::Do(Action {
                    handover,
                    say: self.template("say"),
                    failed: self.failed_required(),
                    goto: self.node("goto", true),
                    ..Action::default()
                });
            }
            Some("knowledge") => {
                let query = self.template("query").unwrap_or_else(|| Template::plain("{heard}"));
                let knowledge = self.knowledge();
                if knowledge.as_ref().is_some_and(Vec::is_empty) {
                    self.fault(
                        "knowledge",
                        "names no knowledge base; name one, or remove this key to look in all of them",
                    );
                }
                let search = Search {
                    query,
                    knowledge,
                    filler: self.template("filler"),
                    quiet: self.flag("quiet"),
                    goto: self.node("goto", true).unwrap_or(0),
                    failed: self.failed_required().unwrap_or_else(Failed::silent),
                };
                node.kind = Kind::Knowledge(search);
            }
            Some("do") => {
                let action = self.action();
                if action.goto.is_none() && action.end.is_none() {
                    self.fault("goto", "is missing; a do node goes on somewhere or ends the call");
                }
                // Said by the action, after its call.
                node.kind = Kind::Do(action);
            }
            Some("end") => {
                let say = self.template("say");
                let end = self.template("reason").unwrap_or_else(|| Template::plain("done"));
                node.kind = Kind::Do(Action { say, end: Some(end), ..Action::default() });
            }
            other => {
                let problem = match other {
                    Some(other) => format!("\"{other}\" is unknown; write {KINDS}"),
                    None => format!("is missing; write {KINDS}"),
                };
                self.fault("kind", problem);
                self.map.clear();
            }
        }
        node.manners = self.manners();
        node
    }

    /// A node that calls one tool.
    fn deed(&mut self, tool: String, args: Args) -> Action {
        let filler = self.template("filler");
        Action {
            call: Some(Call { tool, args, filler }),
            save: self.saved(),
            say: self.template("say"),
            failed: self.failed_required(),
            goto: self.node("goto", true),
            ..Action::default()
        }
    }

    fn talk(&mut self) -> Talk {
        let long = self.map.get("prompt").and_then(Value::as_str).map_or(0, |text| text.chars().count());
        if long > MAX_PROMPT_CHARS {
            self.fault("prompt", format!("{long} characters; at most {MAX_PROMPT_CHARS} are read"));
        }
        let prompt = self.required("prompt", "what the model is to do here").unwrap_or_else(|| Template::plain(""));
        let exits = self.exits();
        let collect = self.slot_names("collect");
        let goto = self.node("goto", false);
        match (&goto, collect.is_empty()) {
            (Some(_), true) => {
                self.fault("goto", "follows when everything is collected; name slots in collect, or write exit")
            }
            (None, false) => self.fault("goto", "is missing; name the node that follows when everything is collected"),
            _ => {}
        }
        let tools = self.map.contains_key("tools").then(|| self.texts("tools"));
        let knowledge = self.knowledge();
        let looks_up = tools.iter().flatten().any(|tool| tool == search_knowledge::NAME);
        if looks_up && knowledge.as_ref().is_some_and(Vec::is_empty) {
            self.fault(
                "knowledge",
                format!("is empty, and `tools` names {}; remove one of them", search_knowledge::NAME),
            );
        }
        Talk {
            prompt,
            model: self.text("model"),
            temperature: self.decimal("temperature", 0.0, 2.0),
            max_tokens: self.count("max_tokens", 1, 100_000),
            tools,
            knowledge,
            collect,
            goto,
            exits,
            max_turns: self.count("max_turns", 1, 200).unwrap_or(20),
            give_up: self.node("give_up", true).unwrap_or(0),
            failed: self.failed_required().unwrap_or_else(Failed::silent),
        }
    }

    /// Names of the agent's knowledge bases; which it has is known where it is saved.
    fn knowledge(&mut self) -> Option<Vec<String>> {
        let whole = self.map.get("knowledge")?.as_array().is_none_or(|list| list.iter().all(Value::is_string));
        let bases = self.texts("knowledge");
        // What is no list of texts has been reported, and is not an empty one.
        let bases = Some(bases).filter(|bases| whole && bases.iter().all(|base| !base.is_empty()));
        for (at, base) in bases.iter().flatten().enumerate() {
            if bases.iter().flatten().take(at).any(|before| before == base) {
                self.fault("knowledge", format!("\"{base}\" stands twice; name it once"));
            }
        }
        bases
    }

    fn exits(&mut self) -> Vec<Exit> {
        let mut exits: Vec<Exit> = Vec::new();
        for (index, map) in self.tables("exit").into_iter().enumerate() {
            let target = map.get("goto").and_then(Value::as_str).unwrap_or_default().to_owned();
            let mut table = self.reader.table(&self.place, &format!("{}exit[{}].", self.path, index + 1), map);
            let name = table.text("name").unwrap_or(target);
            let when = table.text("when");
            if when.is_none() {
                table.fault("when", "is missing; tell the model when to go there");
            }
            let goto = table.node("goto", true);
            if exits.iter().any(|exit| exit.name == name) {
                table.fault("name", format!("\"{name}\" stands twice; give each exit its own"));
            }
            table.finish();
            exits.extend(when.zip(goto).map(|(when, goto)| Exit { name, when, goto }));
        }
        if exits.len() > MAX_EXITS {
            self.fault("exit", format!("{} exits; at most {MAX_EXITS} are read", exits.len()));
        }
        exits
    }

    fn manners(&mut self) -> Manners {
        let plain = Manners::default();
        let barge_in = if self.map.contains_key("barge_in") { self.flag("barge_in") } else { plain.barge_in };
        Manners { barge_in, wait_factor: self.decimal("wait_factor", 0.5, 5.0).unwrap_or(plain.wait_factor) }
    }

    fn required(&mut self, key: &'static str, what: &str) -> Option<Template> {
        if !self.map.contains_key(key) {
            self.fault(key, format!("is missing; write {what}"));
        }
        self.template(key)
    }

    fn saved(&mut self) -> Vec<(String, String)> {
        let fields = match self.take("save") {
            None => return Vec::new(),
            Some(Value::Object(fields)) => fields,
            Some(_) => {
                self.fault("save", "is no table; write save = { slot = \"/place/in/the/result\" }");
                return Vec::new();
            }
        };
        let mut saved = Vec::new();
        for (slot, pointer) in fields {
            self.check_slot("save", &slot);
            match pointer.as_str() {
                Some(pointer) if pointer.is_empty() || pointer.starts_with('/') => {
                    saved.push((slot, pointer.to_owned()))
                }
                _ => self.fault("save", format!("`{slot}`: a place in the result begins with /, such as /total")),
            }
        }
        saved
    }

    fn failed(&mut self) -> Option<Failed> {
        let mut table = self.sub("failed")?;
        let say = table.template("say");
        let goto = table.node("goto", false);
        if say.is_none() && goto.is_none() {
            table.fault("say", "is missing; write what is said when it does not work, or where it goes on");
        }
        table.finish();
        Some(Failed { say: say.unwrap_or_else(|| Template::plain("")), goto })
    }

    fn failed_required(&mut self) -> Option<Failed> {
        let failed = self.failed();
        if failed.is_none() {
            self.fault(
                "failed",
                "is missing; write failed = { say = \"…\", goto = \"…\" }: what happens when it does not work",
            );
        }
        failed
    }

    fn decimal(&mut self, key: &'static str, min: f32, max: f32) -> Option<f32> {
        let value = self.take(key)?;
        let number = value.as_f64().map(|n| n as f32).filter(|n| (min..=max).contains(n));
        if number.is_none() {
            self.fault(key, format!("{value} is out of range; write a number from {min} to {max}"));
        }
        number
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
