//! The builtin engine: answers from a workflow, without a model. It keeps nothing between requests: each one replays
//! what the caller said through the graph, so that speculation, dropped turns and truncated answers cost no state.
//! Where a workflow leads is read from the same replay by [`Builtin::state`].

use std::collections::BTreeMap;
use std::sync::Arc;

use super::extract::SlotValue;
use super::hear::Heard;
use super::knowledge::answer::answer;
use super::tools::search_knowledge;
use super::workflow::{Action, Expectation, Form, Kind, NodeId, Retry, Rule, Template, Workflow};
use crate::speech::llm::{ChatRequest, Finish, LanguageModel, LlmError, LlmEvent, Message, ReplyStream, ToolCall};

/// Nodes that one answer may pass through. The file's check finds loops; this bounds what it cannot see.
const MAX_HOPS: usize = 16;
/// Characters of a remembered answer (for "say that again").
const MAX_LAST_CHARS: usize = 2000;

/// Answers from one workflow. Cheap to clone and to share between calls.
#[derive(Clone, Debug)]
pub struct Builtin {
    workflow: Arc<Workflow>,
}

/// Where a conversation is in its workflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub node: String,
    pub slots: BTreeMap<String, SlotValue>,
    /// What the caller is expected to say next.
    pub expectation: Expectation,
    /// The workflow said goodbye.
    pub ended: bool,
    /// Why the caller is to be handed to a person, if the workflow came to that.
    pub handover: Option<String>,
}

impl Builtin {
    pub fn new(workflow: Arc<Workflow>) -> Self {
        Self { workflow }
    }

    /// Where these messages lead. A tool call that has no result yet is taken as done.
    pub fn state(&self, messages: &[Message]) -> Progress {
        let history = History::read(messages);
        let mut machine = Machine::new(&self.workflow, history.greeting);
        let last = history.turns.len().saturating_sub(1);
        for (index, turn) in history.turns.iter().enumerate() {
            let missing = if index == last { Missing::Done } else { Missing::Refused };
            machine.turn(turn, missing);
        }
        machine.progress()
    }

    fn answer(&self, request: &ChatRequest) -> Answer {
        let history = History::read(&request.messages);
        let mut machine = Machine::new(&self.workflow, history.greeting);
        let Some((current, past)) = history.turns.split_last() else {
            // Nobody has spoken: without a greeting, the first node speaks.
            let mut run = Run::new(&[], Missing::Refused);
            if history.greeting.is_none() {
                machine.enter(self.workflow.start, &mut run);
            }
            return Answer { text: run.text_after(0), call: None };
        };
        for turn in past {
            machine.turn(turn, Missing::Refused);
        }
        if history.settled {
            return Answer { text: String::new(), call: None };
        }
        let offered: Vec<&str> = request.tools.iter().map(|tool| tool.name.as_str()).collect();
        let run = machine.turn(current, Missing::Offered(&offered));
        let id = |number: usize| format!("call_{}_{}", history.turns.len(), number + 1);
        let call = run.call.as_ref().map(|(name, arguments)| ToolCall {
            id: id(run.used),
            name: name.clone(),
            arguments: arguments.clone(),
        });
        Answer { text: run.text_after(current.results.len()), call }
    }
}

struct Answer {
    text: String,
    call: Option<ToolCall>,
}

impl LanguageModel for Builtin {
    fn name(&self) -> &'static str {
        "builtin"
    }

    fn reply(&self, request: ChatRequest) -> ReplyStream {
        let (stream, events, cancel) = ReplyStream::new();
        let engine = self.clone();
        tokio::spawn(async move {
            let answer = engine.answer(&request);
            let finish = if answer.call.is_some() { Finish::ToolCalls } else { Finish::Stop };
            let words = answer.text.split_inclusive(' ').map(|word| LlmEvent::Text(word.to_owned()));
            let call = answer.call.map(LlmEvent::ToolCall);
            for event in words.chain(call).chain([LlmEvent::Done { finish }]) {
                let sent: Result<(), _> = tokio::select! {
                    biased;
                    () = cancel.cancelled() => return,
                    sent = events.send(Ok::<_, LlmError>(event)) => sent,
                };
                if sent.is_err() {
                    return;
                }
            }
        });
        stream
    }
}

// --- the conversation as turns -------------------------------------------------------------------------------------

/// What the caller said between two answers, and what the tools of the answer gave.
#[derive(Debug, Default)]
struct Turn {
    text: String,
    /// What the last message alone said, where the turn has several.
    last: String,
    results: Vec<String>,
    answered: bool,
}

struct History<'m> {
    /// What the agent said before the caller did.
    greeting: Option<&'m str>,
    turns: Vec<Turn>,
    /// The last message is an answer that is complete: there is nothing to add.
    settled: bool,
}

impl<'m> History<'m> {
    /// A caller message that got no answer and the one after it are one turn: the caller was still speaking.
    fn read(messages: &'m [Message]) -> Self {
        let mut history = History { greeting: None, turns: Vec::new(), settled: false };
        let mut seen: Vec<&str> = Vec::new();
        let mut calls = 0;
        for message in messages {
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
                            if let Some(turn) = history.turns.last_mut() {
                                close(turn, calls);
                            }
                            (calls, seen) = (0, Vec::new());
                            history.turns.push(Turn {
                                text: content.clone(),
                                last: content.clone(),
                                ..Turn::default()
                            });
                        }
                    }
                }
                Message::Assistant { content, tool_calls } => match history.turns.last_mut() {
                    None if !content.is_empty() => history.greeting = Some(content),
                    None => {}
                    Some(turn) => {
                        calls += tool_calls.len();
                        turn.answered |= !content.trim().is_empty() || !tool_calls.is_empty();
                        history.settled = turn.answered && tool_calls.is_empty();
                    }
                },
                Message::Tool { tool_call_id, content } => {
                    if let Some(turn) = history.turns.last_mut()
                        && !seen.contains(&tool_call_id.as_str())
                    {
                        seen.push(tool_call_id);
                        turn.results.push(content.clone());
                        history.settled = false;
                    }
                }
            }
        }
        if let Some(turn) = history.turns.last_mut() {
            close(turn, calls);
        }
        history
    }
}

/// A call that was made and never answered counts as refused.
fn close(turn: &mut Turn, calls: usize) {
    while turn.results.len() < calls {
        turn.results.push(r#"{"error":"no result"}"#.to_owned());
    }
}

fn refused(result: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(result).is_ok_and(|value| value.get("error").is_some())
}

// --- walking the graph ---------------------------------------------------------------------------------------------

/// What a tool call without a result means.
#[derive(Clone, Copy)]
enum Missing<'r> {
    /// The turn being answered: make the call, if the tool is among these.
    Offered(&'r [&'r str]),
    /// The turn is over and the call was never made.
    Refused,
    /// Looking ahead: it will work.
    Done,
}

/// One turn's way through the graph.
struct Run<'r> {
    results: &'r [String],
    used: usize,
    missing: Missing<'r>,
    /// What is said, and how many results had been read by then.
    said: Vec<(usize, String)>,
    /// The call that must be made before anything more happens.
    call: Option<(String, String)>,
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
    fn new(results: &'r [String], missing: Missing<'r>) -> Self {
        Self { results, used: 0, missing, said: Vec::new(), call: None, hops: 0 }
    }

    fn say(&mut self, text: String) {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if !text.is_empty() {
            self.said.push((self.used, text));
        }
    }

    fn call(&mut self, tool: &str, arguments: impl FnOnce() -> serde_json::Value) -> Outcome {
        if let Some(result) = self.results.get(self.used) {
            self.used += 1;
            return if refused(result) { Outcome::Refused } else { Outcome::Done };
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

    /// What was said after so many results.
    fn text_after(&self, results: usize) -> String {
        let new: Vec<&str> = self.said.iter().filter(|(at, _)| *at >= results).map(|(_, text)| text.as_str()).collect();
        new.join(" ")
    }
}

/// The state of a conversation in its workflow.
struct Machine<'w> {
    workflow: &'w Workflow,
    node: NodeId,
    slots: BTreeMap<String, SlotValue>,
    /// Answers in a row that were not understood at this place.
    misses: u32,
    /// The slot that was asked for.
    asked: Option<String>,
    last: String,
    ended: bool,
    handover: Option<String>,
}

impl<'w> Machine<'w> {
    fn new(workflow: &'w Workflow, greeting: Option<&str>) -> Self {
        Self {
            workflow,
            node: workflow.start,
            slots: BTreeMap::new(),
            misses: 0,
            asked: None,
            last: greeting.unwrap_or_default().to_owned(),
            ended: false,
            handover: None,
        }
    }

    fn progress(&self) -> Progress {
        let node = &self.workflow.nodes[self.node];
        let asked = self.asked.as_ref().and_then(|slot| self.workflow.slots.get(slot)).map(|slot| slot.expects);
        Progress {
            node: node.id.clone(),
            slots: self.slots.clone(),
            expectation: asked.or(node.expects).unwrap_or_default(),
            ended: self.ended,
            handover: self.handover.clone(),
        }
    }

    /// One caller turn, from its words to the end of its answer.
    fn turn<'r>(&mut self, turn: &'r Turn, missing: Missing<'r>) -> Run<'r> {
        let mut run = Run::new(&turn.results, missing);
        if self.ended {
            // The caller went on after the goodbye: the conversation does, too.
            self.ended = false;
            self.node = self.workflow.start;
        }
        let whole = Heard::new(&self.workflow.language, &turn.text);
        if !self.hear(&whole, &mut run) {
            let last = Heard::new(&self.workflow.language, &turn.last);
            let alone = turn.last != turn.text && self.hear(&last, &mut run);
            if !alone && !self.looked_up(&turn.text, &mut run) {
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
        let weak = workflow.rules.iter().position(|rule| rule.weak && self.fits(rule, heard));
        if let Some(index) = weak {
            self.misses = 0;
            self.answer_rule(index, heard, run);
        }
        weak.is_some()
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
                self.slots.insert(name.clone(), found);
            }
        }
        new
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
                self.slots.insert(slot, found);
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
            let text = value.render(&|slot, form| self.form(slot, form));
            self.slots.insert(slot.clone(), SlotValue::text(text));
        }
        let (tool, arguments) = match (&action.call, &action.handover) {
            (Some(call), _) => {
                if let Some(filler) = &call.filler {
                    run.say(self.render(filler));
                }
                (call.tool.as_str(), call.args.render(&|slot, form| self.form(slot, form)))
            }
            (None, Some(reason)) => ("handover", serde_json::json!({ "reason": self.render(reason) })),
            (None, None) => ("", serde_json::Value::Null),
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
                    self.handover = action.handover.as_ref().map(|reason| self.render(reason)).or(self.handover.take())
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
            run.call("end_call", || serde_json::json!({ "reason": reason }));
            return;
        }
        if let Some(goto) = action.goto {
            self.enter(goto, run);
        }
    }

    fn enter(&mut self, id: NodeId, run: &mut Run<'_>) {
        run.hops += 1;
        if run.hops > MAX_HOPS {
            return;
        }
        self.node = id;
        self.misses = 0;
        self.asked = None;
        let node = &self.workflow.nodes[id];
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
        }
    }

    fn clear(&mut self, slots: &[String]) {
        slots.iter().for_each(|slot| drop(self.slots.remove(slot)));
    }

    /// Asks for the first slot that is missing, or goes on.
    fn collect(&mut self, echo: Option<&Template>, run: &mut Run<'_>) {
        let Kind::Collect { slots, goto, .. } = &self.workflow.nodes[self.node].kind else { return };
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
            Kind::Listen { again } => {
                if let Some(again) = again {
                    run.say(self.render(again));
                }
            }
            Kind::Collect { .. } => self.collect(None, run),
            Kind::Do(_) => {}
        }
    }

    /// Answers from the agent's documents, where it has any and they hold it; then puts the open question again. `true`:
    /// that was said, or is being looked up.
    fn looked_up(&mut self, question: &str, run: &mut Run<'_>) -> bool {
        let result = run.results.get(run.used).map(String::as_str);
        match run.call(search_knowledge::NAME, || serde_json::json!({ "query": question })) {
            Outcome::Pending => true,
            Outcome::Refused => false,
            Outcome::Done => {
                // Looking ahead, nothing is taken as found.
                let said = result.and_then(|result| answer(question, &self.workflow.language, result));
                let Some(said) = said else { return false };
                self.misses = 0;
                run.say(said);
                self.ask_again(run);
                true
            }
        }
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
        if let Some(slot) = &self.asked {
            run.say(pick(&retry.say, self.misses).unwrap_or_default());
            run.say(self.question(slot, self.misses));
        } else {
            let say = pick(&retry.say, self.misses).or_else(|| pick(&workflow.fallback.say, self.misses));
            run.say(say.unwrap_or_default());
        }
    }

    fn render(&self, template: &Template) -> String {
        template.render(&|slot, form| self.form(slot, form))
    }

    fn form(&self, slot: &str, form: Form) -> Option<String> {
        self.slots.get(slot).map(|value| match form {
            Form::Spoken => value.spoken.clone(),
            Form::Value => value.value.clone(),
            Form::On => value.on.clone(),
        })
    }
}
