//! A conversation's way through its workflow. Nothing is kept between turns: each time, what the caller said and what
//! tools gave is replayed from the messages, so that speculation, dropped turns and truncated answers cost no state. A
//! model's decisions are in the messages too, as calls of `go_to` and `note_answers` (`tools/steps.rs`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::extract::{SlotType, SlotValue};
use super::hear::Heard;
use super::knowledge::answer::answer;
use super::tools::{search_knowledge, steps};
use super::workflow::template::{Scope, Template};
use super::workflow::{Action, Expectation, Kind, Manners, NodeId, Retry, Rule, Search, Talk, Workflow};
use crate::speech::llm::Message;

/// Nodes that one answer may pass through. The file's check finds loops; this bounds what it cannot see.
const MAX_HOPS: usize = 16;
/// Characters of a remembered answer (for "say that again").
const MAX_LAST_CHARS: usize = 2000;
/// Bytes of a tool's result that texts and conditions can see.
const MAX_RESULT_BYTES: usize = 64 * 1024;

/// Where a conversation is in its workflow.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    pub node: String,
    pub slots: BTreeMap<String, SlotValue>,
    /// What the caller is expected to say next.
    pub expectation: Expectation,
    pub manners: Manners,
    /// The workflow said goodbye.
    pub ended: bool,
    /// Why the caller is to be handed to a person, if the workflow came to that.
    pub handover: Option<String>,
}

// --- the conversation as turns -------------------------------------------------------------------------------------

/// One call of a tool, and what it gave.
#[derive(Clone, Debug)]
pub(super) struct Step {
    id: String,
    /// Calls of one round were made together.
    round: usize,
    pub name: String,
    pub arguments: String,
    pub result: String,
}

/// What the caller said between two answers, and what the tools of the answer gave.
#[derive(Debug, Default)]
pub(super) struct Turn {
    text: String,
    /// What the last message alone said, where the turn has several.
    last: String,
    pub steps: Vec<Step>,
    answered: bool,
}

pub(super) struct History<'m> {
    /// What the agent said before the caller did.
    pub greeting: Option<&'m str>,
    pub turns: Vec<Turn>,
    /// The last message is an answer that is complete: there is nothing to add.
    pub settled: bool,
}

/// The result of a call that was made and never answered: it counts as refused.
const NO_RESULT: &str = r#"{"error":"no result"}"#;

impl<'m> History<'m> {
    /// A caller message that got no answer and the one after it are one turn: the caller was still speaking.
    pub fn read(messages: &'m [Message]) -> Self {
        let mut history = History { greeting: None, turns: Vec::new(), settled: false };
        for (round, message) in messages.iter().enumerate() {
            match message {
                Message::System { .. } => {}
                Message::User { content } => {
                    history.settled = false;
                    match history.turns.last_mut().filter(|turn| !turn.answered) {
                        Some(turn) => {
                            turn.text = format!("{} {content}", turn.text);
                            turn.last = content.clone();
                        }
                        None => {
                            history.turns.push(Turn { text: content.clone(), last: content.clone(), ..Turn::default() })
                        }
                    }
                }
                Message::Assistant { content, tool_calls } => match history.turns.last_mut() {
                    None if !content.is_empty() => history.greeting = Some(content),
                    None => {}
                    Some(turn) => {
                        turn.steps.extend(tool_calls.iter().map(|call| Step {
                            id: call.id.clone(),
                            round,
                            name: call.name.clone(),
                            arguments: call.arguments.clone(),
                            result: NO_RESULT.to_owned(),
                        }));
                        turn.answered |= !content.trim().is_empty() || !tool_calls.is_empty();
                        history.settled = turn.answered && tool_calls.is_empty();
                    }
                },
                Message::Tool { tool_call_id, content } => {
                    let steps = history.turns.last_mut().map(|turn| &mut turn.steps);
                    let step = steps.and_then(|steps| steps.iter_mut().find(|step| step.id == *tool_call_id));
                    if let Some(step) = step.filter(|step| step.result == NO_RESULT) {
                        step.result.clone_from(content);
                        history.settled = false;
                    }
                }
            }
        }
        history
    }
}

fn refused(result: &str) -> bool {
    serde_json::from_str::<Value>(result).is_ok_and(|value| value.get("error").is_some())
}

// --- walking the graph ---------------------------------------------------------------------------------------------

/// What a tool call without a result means.
#[derive(Clone, Copy)]
pub(super) enum Missing<'r> {
    /// The turn being answered: make the call, if the tool is among these.
    Offered(&'r [&'r str]),
    /// The turn is over and the call was never made.
    Refused,
    /// Looking ahead: it will work.
    Done,
}

/// One turn's way through the graph.
pub(super) struct Run<'r> {
    steps: &'r [Step],
    pub used: usize,
    missing: Missing<'r>,
    /// What is said, and how many results had been read by then.
    said: Vec<(usize, String)>,
    /// The call that must be made before anything more happens: a tool and its arguments.
    pub call: Option<(String, String)>,
    /// A model has the word.
    pub ask: bool,
    hops: usize,
}

/// How a tool call went.
enum Outcome {
    Done,
    Refused,
    /// It has been asked for; the turn stops here.
    Pending,
}

impl<'r> Run<'r> {
    pub fn new(steps: &'r [Step], missing: Missing<'r>) -> Self {
        Self { steps, used: 0, missing, said: Vec::new(), call: None, ask: false, hops: 0 }
    }

    fn say(&mut self, text: String) {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if !text.is_empty() {
            self.said.push((self.used, text));
        }
    }

    fn call(&mut self, tool: &str, arguments: impl FnOnce() -> Value) -> Outcome {
        if let Some(step) = self.steps.get(self.used) {
            self.used += 1;
            return if refused(&step.result) { Outcome::Refused } else { Outcome::Done };
        }
        match self.missing {
            Missing::Offered(tools) if tools.contains(&tool) => {
                self.call = Some((tool.to_owned(), arguments().to_string()));
                Outcome::Pending
            }
            Missing::Offered(_) | Missing::Refused => Outcome::Refused,
            Missing::Done => Outcome::Done,
        }
    }

    /// The result of the call that was just taken as done; nothing where it was only supposed.
    fn last_result(&self) -> Option<&'r Step> {
        self.steps.get(self.used.checked_sub(1)?)
    }

    /// What was said after so many results.
    pub fn text_after(&self, results: usize) -> String {
        let new: Vec<&str> = self.said.iter().filter(|(at, _)| *at >= results).map(|(_, text)| text.as_str()).collect();
        new.join(" ")
    }
}

/// The state of a conversation in its workflow.
pub(super) struct Machine<'w> {
    pub workflow: &'w Workflow,
    facts: &'w Value,
    /// Whether a model can be asked.
    has_model: bool,
    pub node: NodeId,
    slots: BTreeMap<String, SlotValue>,
    /// Slots whose value the caller has said yes to.
    confirmed: BTreeSet<String>,
    /// The last result of each tool.
    results: BTreeMap<String, Value>,
    /// What the caller said last.
    heard: String,
    /// Answers in a row that were not understood at this place.
    misses: u32,
    /// The caller's turns that the model of this node has taken.
    turns: u32,
    /// The slot that was asked for.
    asked: Option<String>,
    /// The slot whose value stands in question.
    in_question: Option<String>,
    last: String,
    pub ended: bool,
    pub handover: Option<String>,
}

impl<'w> Machine<'w> {
    /// A conversation that has not begun, or that begins with this greeting.
    pub fn new(workflow: &'w Workflow, facts: &'w Value, has_model: bool, greeting: Option<&str>) -> Self {
        let mut machine = Self {
            workflow,
            facts,
            has_model,
            node: workflow.start,
            slots: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            results: BTreeMap::new(),
            heard: String::new(),
            misses: 0,
            turns: 0,
            asked: None,
            in_question: None,
            last: String::new(),
            ended: false,
            handover: None,
        };
        let own = if workflow.opens { machine.open() } else { String::new() };
        machine.last = greeting.map_or(own, str::to_owned);
        machine
    }

    /// Goes from the start to where the caller has the word; gives what is said on the way. Tools come later.
    pub fn open(&mut self) -> String {
        let mut run = Run::new(&[], Missing::Refused);
        self.enter(self.workflow.start, &mut run);
        run.text_after(0)
    }

    pub fn progress(&self) -> Progress {
        let node = &self.workflow.nodes[self.node];
        let asked = self.asked.as_ref().and_then(|slot| self.workflow.slots.get(slot)).map(|slot| slot.expects);
        let expectation = match self.in_question {
            Some(_) => Expectation::YesNo,
            None => asked.or(node.expects).unwrap_or_default(),
        };
        Progress {
            node: node.id.clone(),
            slots: self.slots.clone(),
            expectation,
            manners: node.manners,
            ended: self.ended,
            handover: self.handover.clone(),
        }
    }

    /// One caller turn, from its words to the end of its answer.
    pub fn turn<'r>(&mut self, turn: &'r Turn, missing: Missing<'r>) -> Run<'r> {
        let mut run = Run::new(&turn.steps, missing);
        self.heard.clone_from(&turn.text);
        if self.ended {
            // The caller went on after the goodbye: the conversation does, too.
            self.ended = false;
            self.node = self.workflow.start;
            if self.workflow.opens {
                self.open();
            }
        }
        let whole = Heard::new(&self.workflow.language, &turn.text);
        if !self.hear(&whole, &mut run) {
            let last = Heard::new(&self.workflow.language, &turn.last);
            let alone = turn.last != turn.text && self.hear(&last, &mut run);
            if !alone && !self.given_to_model(&mut run) && !self.looked_up(&turn.text, &mut run) {
                self.not_understood(&mut run);
            }
        }
        let said = run.text_after(0);
        if !said.is_empty() {
            self.last = said.chars().take(MAX_LAST_CHARS).collect();
        }
        run
    }

    /// Finds what the words are for and does it; `false` when nothing was.
    fn hear(&mut self, heard: &Heard, run: &mut Run<'_>) -> bool {
        if heard.is_empty() {
            return false;
        }
        let workflow = self.workflow;
        let node = &workflow.nodes[self.node];
        if self.settled_question(heard, run) {
            return true;
        }
        if let Some(rule) = node.when.iter().find(|rule| self.fits(rule, heard)) {
            self.misses = 0;
            self.follow(rule, heard, run);
            return true;
        }
        let strong = workflow.rules.iter().position(|rule| !rule.weak && self.fits(rule, heard));
        if let Some(index) = strong {
            self.misses = 0;
            self.answer_rule(index, heard, run);
            return true;
        }
        if let Kind::Collect { slots, .. } = &node.kind {
            let asked = self.asked.clone();
            if self.fill(slots, heard, asked.as_deref()) {
                self.misses = 0;
                let filled = asked.filter(|slot| self.slots.contains_key(slot));
                let echo = filled.and_then(|slot| workflow.slots[&slot].echo.as_ref());
                self.collect(echo, run);
                return true;
            }
        }
        if matches!(node.kind, Kind::Llm(_)) {
            return false;
        }
        let weak = workflow.rules.iter().position(|rule| rule.weak && self.fits(rule, heard));
        if let Some(index) = weak {
            self.misses = 0;
            self.answer_rule(index, heard, run);
        }
        weak.is_some()
    }

    /// The answer to "did you say …?". `false`: nothing stood in question, or it was no answer.
    fn settled_question(&mut self, heard: &Heard, run: &mut Run<'_>) -> bool {
        let Some(slot) = self.in_question.take() else { return false };
        let own = [slot.clone()];
        let yes =
            SlotType::YesNo.extract(&self.workflow.language, heard, true, false).map(|found| found.value == "yes");
        // "No, Saturday": the new value says more than the no.
        let corrected = yes != Some(true) && self.fill(&own, heard, None);
        match yes {
            Some(true) => drop(self.confirmed.insert(slot)),
            _ if corrected => {}
            Some(false) => drop(self.slots.remove(&slot)),
            None => {
                self.in_question = Some(slot);
                return false;
            }
        }
        self.misses = 0;
        self.collect(None, run);
        true
    }

    fn fits(&self, rule: &Rule, heard: &Heard) -> bool {
        (rule.hear.is_empty() || rule.hear.iter().any(|pattern| pattern.matches(heard)))
            && !rule.unless.iter().any(|pattern| pattern.matches(heard))
            && rule.has.iter().all(|slot| self.slots.contains_key(slot))
            && !rule.lacks.iter().any(|slot| self.slots.contains_key(slot))
            && (rule.need.is_empty() || rule.need.iter().any(|slot| self.differs(slot, heard)))
    }

    /// Whether a slot is heard with a value that it does not have.
    fn differs(&self, slot: &str, heard: &Heard) -> bool {
        let found = self.workflow.slots[slot].kind.extract(&self.workflow.language, heard, false, false);
        found.is_some_and(|found| self.slots.get(slot).map(|known| &known.value) != Some(&found.value))
    }

    /// Fills slots from the words; the one that was asked for may be answered by a bare word. Whether anything new came.
    fn fill(&mut self, slots: &[String], heard: &Heard, asked: Option<&str>) -> bool {
        let mut new = false;
        for name in slots {
            let is_asked = asked == Some(name.as_str());
            let other_number = !is_asked && asked.is_some_and(|slot| self.workflow.slots[slot].kind.takes_numbers());
            let kind = &self.workflow.slots[name].kind;
            if let Some(found) = kind.extract(&self.workflow.language, heard, is_asked, other_number) {
                new |= self.slots.get(name) != Some(&found);
                self.put(name, found);
            }
        }
        new
    }

    /// Another value has to be confirmed again.
    fn put(&mut self, slot: &str, value: SlotValue) {
        if self.slots.get(slot).map(|known| &known.value) != Some(&value.value) {
            self.confirmed.remove(slot);
        }
        self.slots.insert(slot.to_owned(), value);
    }

    /// A rule from anywhere. One that only says something leaves the caller where he was: a second topic in the same
    /// words is answered too, and the open question is put again.
    fn answer_rule(&mut self, index: usize, heard: &Heard, run: &mut Run<'_>) {
        let workflow = self.workflow;
        let rule = &workflow.rules[index];
        self.follow(rule, heard, run);
        if rule.topic.is_some() {
            let other = workflow.rules[index + 1..]
                .iter()
                .find(|other| other.topic.is_some() && other.topic != rule.topic && self.fits(other, heard));
            if let Some(other) = other {
                self.follow(other, heard, run);
            }
        }
        let action = &rule.action;
        if action.goto.is_none() && action.end.is_none() && !action.repeat && run.call.is_none() {
            self.ask_again(run);
        }
    }

    fn follow(&mut self, rule: &Rule, heard: &Heard, run: &mut Run<'_>) {
        self.clear(&rule.action.clear);
        let captured: Vec<(String, String)> = rule
            .hear
            .iter()
            .find_map(|pattern| pattern.captures(heard))
            .unwrap_or_default()
            .into_iter()
            .map(|(slot, text)| (slot.to_owned(), text))
            .collect();
        self.fill(&rule.fill, heard, None);
        self.fill(&rule.need, heard, None);
        for (slot, text) in captured {
            let words = Heard::new(&self.workflow.language, &text);
            if let Some(found) = self.workflow.slots[&slot].kind.extract(&self.workflow.language, &words, true, false) {
                self.put(&slot, found);
            }
        }
        self.act(&rule.action, run);
    }

    /// Does what an action says, in its order: set, call, say, end, goto.
    fn act(&mut self, action: &Action, run: &mut Run<'_>) {
        if action.repeat {
            run.say(self.last.clone());
            return;
        }
        for (slot, value) in &action.set {
            let text = value.render(&self.scope());
            self.slots.insert(slot.clone(), SlotValue::text(text));
        }
        let (tool, arguments) = match (&action.call, &action.handover) {
            (Some(call), _) => {
                if let Some(filler) = &call.filler {
                    run.say(self.render(filler));
                }
                (call.tool.as_str(), call.args.render(&self.scope()))
            }
            (None, Some(reason)) => ("transfer_call", json!({ "reason": self.render(reason) })),
            (None, None) => ("", Value::Null),
        };
        if !tool.is_empty() {
            match run.call(tool, || arguments) {
                Outcome::Pending => return,
                Outcome::Refused => {
                    for (slot, _) in &action.set {
                        self.slots.remove(slot);
                    }
                    if let Some(failed) = &action.failed {
                        run.say(self.render(&failed.say));
                        if let Some(goto) = failed.goto.or(action.goto) {
                            self.enter(goto, run);
                        }
                    }
                    return;
                }
                Outcome::Done => {
                    self.keep(tool, run.last_result());
                    self.save(&action.save, tool);
                    self.handover = action.handover.as_ref().map(|reason| self.render(reason)).or(self.handover.take());
                }
            }
        }
        if let Some(say) = &action.say {
            run.say(self.render(say));
        }
        if let Some(reason) = &action.end {
            let reason = self.render(reason);
            self.ended = true;
            self.asked = None;
            // Whether or not the tool is there, the goodbye has been said.
            run.call("end_call", || json!({ "reason": reason }));
            return;
        }
        if let Some(goto) = action.goto {
            self.enter(goto, run);
        }
    }

    /// A tool's result, for texts and conditions.
    fn keep(&mut self, tool: &str, step: Option<&Step>) {
        let Some(step) = step.filter(|step| step.name == tool && step.result.len() <= MAX_RESULT_BYTES) else { return };
        let value = serde_json::from_str(&step.result).unwrap_or_else(|_| Value::String(step.result.clone()));
        self.results.insert(tool.to_owned(), value);
    }

    fn save(&mut self, save: &[(String, String)], tool: &str) {
        for (slot, pointer) in save {
            let text = match self.results.get(tool).and_then(|result| result.pointer(pointer)) {
                None | Some(Value::Null) => continue,
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            };
            self.put(slot, self.typed(slot, &text).unwrap_or_else(|| SlotValue::text(text)));
        }
    }

    /// A text as the value of a slot, as if the caller had been asked for it.
    fn typed(&self, slot: &str, text: &str) -> Option<SlotValue> {
        let heard = Heard::new(&self.workflow.language, text);
        self.workflow.slots.get(slot)?.kind.extract(&self.workflow.language, &heard, true, false)
    }

    pub fn enter(&mut self, id: NodeId, run: &mut Run<'_>) {
        run.hops += 1;
        if run.hops > MAX_HOPS {
            return;
        }
        self.node = id;
        self.misses = 0;
        self.turns = 0;
        self.asked = None;
        self.in_question = None;
        let workflow = self.workflow;
        let node = &workflow.nodes[id];
        if let Some(say) = &node.say {
            run.say(self.render(say));
        }
        match &node.kind {
            Kind::Listen { .. } => {}
            Kind::Collect { .. } => self.collect(None, run),
            Kind::Do(action) => {
                self.clear(&action.clear);
                self.act(action, run);
            }
            Kind::Branch { ways, otherwise } => {
                let scope = self.scope();
                let way = ways.iter().find(|(condition, _)| condition.holds(&scope));
                self.enter(way.map_or(*otherwise, |(_, goto)| *goto), run);
            }
            Kind::Knowledge(search) => self.search(search, run),
            // What the node says of itself leaves the word to the caller.
            Kind::Llm(_) if node.say.is_some() && self.has_model => {}
            Kind::Llm(talk) => {
                self.turns = 1;
                self.ask_model(talk, run);
            }
        }
    }

    fn clear(&mut self, slots: &[String]) {
        for slot in slots {
            self.slots.remove(slot);
            self.confirmed.remove(slot);
        }
    }

    /// Asks for the first slot that is missing or not confirmed, or goes on.
    fn collect(&mut self, echo: Option<&Template>, run: &mut Run<'_>) {
        let workflow = self.workflow;
        let Kind::Collect { slots, goto, .. } = &workflow.nodes[self.node].kind else { return };
        let unsure = |slot: &&String| workflow.slots[*slot].confirm.is_some() && !self.confirmed.contains(*slot);
        if let Some(slot) = slots.iter().filter(|slot| self.slots.contains_key(*slot)).find(unsure) {
            let question = workflow.slots[slot].confirm.as_ref().map(|confirm| self.render(confirm));
            self.in_question = Some(slot.clone());
            self.asked = None;
            run.say(question.unwrap_or_default());
            return;
        }
        match slots.iter().find(|slot| !self.slots.contains_key(*slot)) {
            Some(slot) => {
                if let Some(echo) = echo {
                    run.say(self.render(echo));
                }
                self.asked = Some(slot.clone());
                run.say(self.question(slot, 0));
            }
            None => self.enter(*goto, run),
        }
    }

    /// The question for a slot at this node; after so many misses its re-prompt.
    fn question(&self, slot: &str, misses: u32) -> String {
        let Kind::Collect { asks, .. } = &self.workflow.nodes[self.node].kind else { return String::new() };
        let general = self.workflow.slots.get(slot).map(|slot| &slot.ask);
        let Some(questions) = asks.get(slot).or(general) else { return String::new() };
        let last = questions.len().saturating_sub(1);
        questions.get(last.min(misses as usize)).map(|question| self.render(question)).unwrap_or_default()
    }

    fn ask_again(&mut self, run: &mut Run<'_>) {
        match &self.workflow.nodes[self.node].kind {
            Kind::Listen { again: Some(again) } => run.say(self.render(again)),
            Kind::Collect { .. } => self.collect(None, run),
            _ => {}
        }
    }

    // --- looking things up -----------------------------------------------------------------------------------------

    fn search(&mut self, search: &Search, run: &mut Run<'_>) {
        if let Some(filler) = &search.filler {
            run.say(self.render(filler));
        }
        let query = self.render(&search.query);
        let bases = search.knowledge.as_deref();
        let found = match run.call(search_knowledge::NAME, || search_knowledge::arguments(&query, bases)) {
            Outcome::Pending => return,
            Outcome::Refused => None,
            Outcome::Done => {
                self.keep(search_knowledge::NAME, run.last_result());
                let passages = run.last_result().filter(|step| step.name == search_knowledge::NAME);
                passages.and_then(|step| answer(&query, &self.workflow.language, &step.result))
            }
        };
        match found {
            Some(found) => {
                if !search.quiet {
                    run.say(found);
                }
                self.enter(search.goto, run);
            }
            None => {
                run.say(self.render(&search.failed.say));
                self.enter(search.failed.goto.unwrap_or(search.goto), run);
            }
        }
    }

    /// Answers from the agent's documents, where it has any and they hold it; then puts the open question again. `true`:
    /// that was said, or is being looked up.
    fn looked_up(&mut self, question: &str, run: &mut Run<'_>) -> bool {
        match run.call(search_knowledge::NAME, || search_knowledge::arguments(question, None)) {
            Outcome::Pending => true,
            Outcome::Refused => false,
            Outcome::Done => {
                // Looking ahead, nothing is taken as found.
                let result = run.last_result().filter(|step| step.name == search_knowledge::NAME);
                let said = result.and_then(|step| answer(question, &self.workflow.language, &step.result));
                let Some(said) = said else { return false };
                self.misses = 0;
                run.say(said);
                self.ask_again(run);
                true
            }
        }
    }

    // --- a model's turn --------------------------------------------------------------------------------------------

    /// The caller's words at a node where a model talks. `false`: this is no such node.
    fn given_to_model(&mut self, run: &mut Run<'_>) -> bool {
        let workflow = self.workflow;
        let Kind::Llm(talk) = &workflow.nodes[self.node].kind else { return false };
        self.turns += 1;
        if self.turns > talk.max_turns {
            self.enter(talk.give_up, run);
        } else {
            self.ask_model(talk, run);
        }
        true
    }

    /// Follows what the model did so far in this turn; if it is still at its node then, it has the word again.
    fn ask_model(&mut self, talk: &Talk, run: &mut Run<'_>) {
        if !self.has_model {
            return self.without_model(talk, run);
        }
        while let Some(step) = run.steps.get(run.used) {
            run.used += 1;
            if refused(&step.result) {
                continue;
            }
            match step.name.as_str() {
                steps::GO_TO => match steps::Way::read(&step.arguments) {
                    Some(steps::Way::Failed) => return self.without_model(talk, run),
                    Some(steps::Way::Exit(name)) => {
                        if let Some(exit) = talk.exit(&name) {
                            return self.leave(exit.goto, step.round, run);
                        }
                    }
                    None => {}
                },
                steps::NOTE => {
                    self.note(talk, &step.arguments);
                    if let Some(goto) = talk.goto.filter(|_| self.is_complete(talk)) {
                        return self.leave(goto, step.round, run);
                    }
                }
                "end_call" => self.ended = true,
                "transfer_call" => {
                    let arguments: Value = serde_json::from_str(&step.arguments).unwrap_or_default();
                    self.handover = Some(arguments["reason"].as_str().unwrap_or_default().to_owned());
                }
                tool => self.keep(tool, Some(step)),
            }
        }
        run.ask = true;
    }

    /// Goes on from a model's node. What it called beside its decision is done, and is not the next node's.
    fn leave(&mut self, goto: NodeId, round: usize, run: &mut Run<'_>) {
        while let Some(step) = run.steps.get(run.used).filter(|step| step.round == round) {
            run.used += 1;
            self.keep(&step.name, Some(step));
        }
        self.enter(goto, run);
    }

    fn without_model(&mut self, talk: &Talk, run: &mut Run<'_>) {
        run.say(self.render(&talk.failed.say));
        self.enter(talk.failed.goto.unwrap_or(talk.give_up), run);
    }

    fn note(&mut self, talk: &Talk, arguments: &str) {
        let Ok(Value::Object(notes)) = serde_json::from_str(arguments) else { return };
        for (slot, value) in notes {
            if !talk.collect.contains(&slot) {
                continue;
            }
            if let Some(found) = self.typed(&slot, &steps::as_text(&value)) {
                self.put(&slot, found);
            }
        }
    }

    fn is_complete(&self, talk: &Talk) -> bool {
        talk.collect.iter().all(|slot| self.slots.contains_key(slot))
    }

    /// What the model of this node is told, and nothing where no model talks.
    pub fn brief(&self) -> Option<(&'w Talk, String)> {
        let workflow = self.workflow;
        let Kind::Llm(talk) = &workflow.nodes[self.node].kind else { return None };
        let mut brief = self.render(&talk.prompt);
        if !self.slots.is_empty() {
            brief.push_str("\n\nKnown so far:");
            for (slot, value) in &self.slots {
                brief.push_str(&format!("\n- {slot}: {}", value.spoken));
            }
        }
        if talk.knowledge.as_ref().is_some_and(Vec::is_empty) {
            // The general instructions of an agent with documents say to use it.
            brief.push_str(&format!("\n\n{} is not to be had at this point.", search_knowledge::NAME));
        }
        let open: Vec<&str> =
            talk.collect.iter().filter(|slot| !self.slots.contains_key(*slot)).map(String::as_str).collect();
        if !open.is_empty() {
            brief.push_str(&format!("\n\nFind out, and write down with {}: {}.", steps::NOTE, open.join(", ")));
        }
        if !talk.exits.is_empty() {
            brief.push_str(&format!("\n\nCall {} as soon as one of these holds:", steps::GO_TO));
            for exit in &talk.exits {
                brief.push_str(&format!("\n- \"{}\": {}", exit.name, exit.when));
            }
        }
        Some((talk, brief))
    }

    fn not_understood(&mut self, run: &mut Run<'_>) {
        self.misses += 1;
        let workflow = self.workflow;
        let node = &workflow.nodes[self.node];
        let retry: &Retry = node.retry.as_ref().unwrap_or(&workflow.fallback);
        if self.misses >= retry.tries {
            self.enter(retry.give_up, run);
            return;
        }
        let pick = |say: &[Template], misses: u32| {
            let last = say.len().saturating_sub(1);
            say.get(last.min(misses as usize - 1)).map(|say| self.render(say))
        };
        if self.in_question.is_some() {
            run.say(pick(&retry.say, self.misses).unwrap_or_default());
            self.collect(None, run);
        } else if let Some(slot) = &self.asked {
            run.say(pick(&retry.say, self.misses).unwrap_or_default());
            run.say(self.question(slot, self.misses));
        } else {
            let say = pick(&retry.say, self.misses).or_else(|| pick(&workflow.fallback.say, self.misses));
            run.say(say.unwrap_or_default());
        }
    }

    fn render(&self, template: &Template) -> String {
        template.render(&self.scope())
    }

    fn scope(&self) -> Scope {
        let slots = self.slots.iter().map(|(name, value)| {
            let counts = self.workflow.slots.get(name).is_some_and(|slot| slot.kind.counts());
            (name, value, counts)
        });
        Scope::new(self.facts, &self.results, &self.heard, slots)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::agent::builtin::Builtin;
    use crate::agent::knowledge::ahead::Guess;
    use crate::speech::llm::{ChatRequest, LanguageModel, LlmEvent, ToolCall, ToolSpec};
    use crate::speech::scripted::{Answer, ScriptedConfig, ScriptedModel};

    /// A waiter who knows the menu, a bookkeeper who looks nothing up, and a desk that knows the rules.
    const HOUSE: &str = r#"
version = 1
name = "house"
[fallback]
say = "Sorry?"
goto = "bye"
[[rule]]
id = "desk"
hear = ["the desk please"]
goto = "desk"
[[rule]]
id = "books"
hear = ["the books please"]
goto = "books"
[[node]]
id = "hello"
kind = "start"
say = "Hello."
goto = "waiter"
[[node]]
id = "waiter"
kind = "llm"
say = "What would you like?"
prompt = "Help to choose a dish."
tools = []
knowledge = ["menu"]
exit = [{ name = "done", when = "they are done", goto = "bye" }]
failed = { goto = "bye" }
give_up = "bye"
[[node]]
id = "books"
kind = "llm"
say = "Yes?"
prompt = "Take the name."
knowledge = []
exit = [{ name = "done", when = "they are done", goto = "bye" }]
failed = { goto = "bye" }
give_up = "bye"
[[node]]
id = "desk"
kind = "listen"
say = "What is it about?"
when = [{ hear = ["about *"], goto = "rules" }]
[[node]]
id = "rules"
kind = "knowledge"
knowledge = ["rules", "prices"]
failed = { say = "I do not know." }
goto = "desk"
[[node]]
id = "bye"
kind = "end"
say = "Goodbye."
"#;

    fn house(steps: Vec<Answer>) -> (Builtin, Arc<ScriptedModel>) {
        let model = Arc::new(ScriptedModel::with_steps(ScriptedConfig::default(), steps));
        let workflow = Workflow::parse(HOUSE).unwrap_or_else(|error| panic!("{error}"));
        (Builtin::new(Arc::new(workflow)).with_model(model.clone()), model)
    }

    /// The agent spoke first; then the two take turns, and the last words are to be answered.
    fn conversation(words: &[&str]) -> ChatRequest {
        let mut messages = vec![Message::Assistant { content: "Hello.".into(), tool_calls: Vec::new() }];
        for (index, &content) in words.iter().enumerate() {
            if index > 0 {
                messages.push(Message::Assistant { content: "Yes.".into(), tool_calls: Vec::new() });
            }
            messages.push(Message::User { content: content.into() });
        }
        let spec = |name: &str| ToolSpec { name: name.into(), description: String::new(), parameters: json!({}) };
        let tools = [search_knowledge::NAME, "end_call", "price", steps::GO_TO].map(spec).to_vec();
        ChatRequest { messages, tools, model: None, temperature: None, max_tokens: None }
    }

    async fn calls(builtin: &Builtin, request: ChatRequest) -> Vec<ToolCall> {
        let mut stream = builtin.reply(request);
        let mut calls = Vec::new();
        while let Some(event) = stream.next().await {
            match event {
                Ok(LlmEvent::ToolCall(call)) => calls.push(call),
                Ok(LlmEvent::Done { .. }) | Err(_) => break,
                Ok(_) => {}
            }
        }
        calls
    }

    fn searches(arguments: &str) -> Vec<Answer> {
        vec![Answer::Tool { name: search_knowledge::NAME.into(), arguments: arguments.into() }]
    }

    #[tokio::test(start_paused = true)]
    async fn a_models_node_looks_in_its_own_bases_whatever_the_model_writes() {
        for written in [r#"{"query":"fish"}"#, r#"{"query":"fish","bases":["rules"]}"#] {
            let (builtin, model) = house(searches(written));
            let made = calls(&builtin, conversation(&["do you have fish"])).await;
            assert_eq!(made[0].name, search_knowledge::NAME, "naming a base gives the tool, though `tools` does not");
            assert_eq!(made[0].arguments, r#"{"bases":["menu"],"query":"fish"}"#);
            let offered: Vec<String> = model.requests()[0].tools.iter().map(|tool| tool.name.clone()).collect();
            assert_eq!(offered, [search_knowledge::NAME, "end_call", steps::GO_TO]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_without_bases_has_no_such_tool() {
        let (builtin, model) = house(searches(r#"{"query":"fish"}"#));
        let made = calls(&builtin, conversation(&["the books please", "do you have fish"])).await;
        assert_eq!(made[0].name, "not_here_search_knowledge");
        let asked = &model.requests()[0];
        assert!(asked.tools.iter().all(|tool| tool.name != search_knowledge::NAME));
        assert!(asked.tools.iter().any(|tool| tool.name == "price"), "the others are there");
        assert!(matches!(&asked.messages[0], Message::System { content } if content.contains("not to be had")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lookup_node_looks_in_its_own_bases_and_elsewhere_in_all() {
        let (builtin, _) = house(Vec::new());
        let made = calls(&builtin, conversation(&["the desk please", "about dogs"])).await;
        assert_eq!(made[0].arguments, r#"{"bases":["rules","prices"],"query":"about dogs"}"#);
        let made = calls(&builtin, conversation(&["the desk please", "do you take dogs"])).await;
        assert_eq!(made[0].arguments, r#"{"query":"do you take dogs"}"#);
    }

    #[test]
    fn what_words_will_look_up_is_foreseen() {
        let (builtin, _) = house(Vec::new());
        let guess = |query: &str, bases: Option<&[&str]>, by_model| {
            let bases = bases.map(|bases| bases.iter().map(|&base| base.to_owned()).collect());
            Some(Guess { query: query.into(), bases, by_model })
        };
        let foresees = |words: &[&str]| builtin.foresees(&conversation(words));
        assert_eq!(foresees(&["do you have fish"]), guess("do you have fish", Some(&["menu"]), true));
        assert_eq!(foresees(&["the books please", "do you have fish"]), None);
        assert_eq!(foresees(&["the desk please"]), None, "a rule answers");
        assert_eq!(
            foresees(&["the desk please", "about dogs"]),
            guess("about dogs", Some(&["rules", "prices"]), false)
        );
        assert_eq!(foresees(&["the desk please", "do you take dogs"]), guess("do you take dogs", None, false));
        let nothing_offered = ChatRequest { tools: Vec::new(), ..conversation(&["do you have fish"]) };
        assert_eq!(builtin.foresees(&nothing_offered), None);
    }
}
