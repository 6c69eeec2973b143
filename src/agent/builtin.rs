//! The builtin engine: answers from a workflow. Where a node leaves the word to a model, it asks the model that it was
//! given, with that node's instructions and tools; without one it takes the node's way on for that case. It keeps
//! nothing between requests (`walk.rs`).

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc;

use super::knowledge::ahead::Guess;
use super::tools::{Tool, search_knowledge, steps};
use super::walk::{History, Machine, Missing, Progress};
use super::workflow::Workflow;
use crate::speech::llm::{
    ChatRequest, Finish, LanguageModel, LlmError, LlmEvent, Message, ReplyStream, ToolCall, ToolSpec,
};

/// What any node's model may do, whatever tools the node names.
const ALWAYS: [&str; 3] = ["end_call", "transfer_call", "remember"];

/// Answers from one workflow. Cheap to clone and to share between calls.
#[derive(Clone)]
pub struct Builtin {
    workflow: Arc<Workflow>,
    /// What is known of the conversation from the start.
    facts: Arc<Value>,
    model: Option<Arc<dyn LanguageModel>>,
}

impl Builtin {
    pub fn new(workflow: Arc<Workflow>) -> Self {
        Self { workflow, facts: Arc::new(Value::Null), model: None }
    }

    /// Who talks at the nodes that leave the word to a model.
    pub fn with_model(self, model: Arc<dyn LanguageModel>) -> Self {
        Self { model: Some(model), ..self }
    }

    /// What the workflow's texts and conditions see beside its slots: an object of `caller`, `line`, `call`, `company`,
    /// `now`, `vars` and `webhook`. The same for the whole conversation.
    pub fn with_facts(self, facts: Value) -> Self {
        Self { facts: Arc::new(facts), ..self }
    }

    /// Whether a model talks at some of its nodes.
    pub fn asks_model(&self) -> bool {
        self.model.is_some() && self.workflow.needs_model()
    }

    /// What a model needs to move through the workflow.
    pub fn tools(&self) -> Vec<Arc<dyn Tool>> {
        if !self.asks_model() {
            return Vec::new();
        }
        vec![Arc::new(steps::GoTo(self.workflow.clone())), Arc::new(steps::NoteAnswers(self.workflow.clone()))]
    }

    /// What the workflow says before the caller does; empty where its start waits for the caller.
    pub fn greeting(&self) -> String {
        if self.workflow.opens { self.machine(None).open() } else { String::new() }
    }

    /// Where these messages lead. While the last turn is not answered, a tool call that has no result yet is taken as done.
    pub fn state(&self, messages: &[Message]) -> Progress {
        let history = History::read(messages);
        let mut machine = self.machine(history.greeting);
        let last = history.turns.len().saturating_sub(1);
        for (index, turn) in history.turns.iter().enumerate() {
            let open = index == last && !history.settled;
            let missing = if open { Missing::Done } else { Missing::Refused };
            machine.turn(turn, missing);
        }
        machine.progress()
    }

    /// What answering these words will look up, as far as the graph tells: a question of its own, or the caller's words
    /// where a model is asked that may look things up. `None`: nothing.
    pub fn foresees(&self, request: &ChatRequest) -> Option<Guess> {
        match self.answer(request).next {
            Next::Tool(call) if call.name == search_knowledge::NAME => {
                let args: Value = serde_json::from_str(&call.arguments).ok()?;
                let (query, bases) = (args["query"].as_str()?.to_owned(), search_knowledge::bases(&args).ok()?);
                Some(Guess { query, bases, by_model: false })
            }
            Next::Asked(asked) if asked.ask.tools.iter().any(|tool| tool.name == search_knowledge::NAME) => {
                Some(Guess { query: last_said(&request.messages)?, bases: asked.bases, by_model: true })
            }
            _ => None,
        }
    }

    fn machine(&self, greeting: Option<&str>) -> Machine<'_> {
        Machine::new(&self.workflow, &self.facts, self.model.is_some(), greeting)
    }

    fn answer(&self, request: &ChatRequest) -> Answer {
        let history = History::read(&request.messages);
        let mut machine = self.machine(history.greeting);
        let Some((current, past)) = history.turns.split_last() else {
            // Nobody has spoken: without a greeting, the first node speaks.
            let text = if history.greeting.is_none() { machine.open() } else { String::new() };
            return Answer { text, next: Next::Caller };
        };
        for turn in past {
            machine.turn(turn, Missing::Refused);
        }
        if history.settled {
            return Answer { text: String::new(), next: Next::Caller };
        }
        let offered: Vec<&str> = request.tools.iter().map(|tool| tool.name.as_str()).collect();
        let run = machine.turn(current, Missing::Offered(&offered));
        let next = match &run.call {
            Some((name, arguments)) => Next::Tool(ToolCall {
                id: format!("call_{}_{}", history.turns.len(), run.used + 1),
                name: name.clone(),
                arguments: arguments.clone(),
            }),
            None if run.ask => Next::Model,
            None => Next::Caller,
        };
        let text = run.text_after(current.steps.len());
        match (next, machine.brief()) {
            (Next::Model, Some((talk, brief))) => {
                let may = |name: &str| talk.takes(name) || ALWAYS.contains(&name);
                let mut tools: Vec<ToolSpec> = request.tools.iter().filter(|tool| may(&tool.name)).cloned().collect();
                tools.retain(|tool| tool.name != steps::GO_TO && tool.name != steps::NOTE);
                if offered.contains(&steps::GO_TO) && !talk.exits.is_empty() {
                    tools.push(steps::go_to_spec(talk.exits.iter().map(|exit| exit.name.as_str())));
                }
                if offered.contains(&steps::NOTE) && !talk.collect.is_empty() {
                    tools.push(steps::note_spec(&self.workflow, talk.collect.iter()));
                }
                let ask = ChatRequest {
                    messages: briefed(&request.messages, &brief, &text),
                    tools,
                    model: talk.model.clone().or_else(|| request.model.clone()),
                    temperature: talk.temperature.or(request.temperature),
                    max_tokens: talk.max_tokens.or(request.max_tokens),
                };
                // Without the tool the conversation could not be told that the model failed.
                let way_out = offered.contains(&steps::GO_TO).then(|| ToolCall {
                    id: format!("call_{}_{}", history.turns.len(), run.used + 1),
                    name: steps::GO_TO.into(),
                    arguments: steps::Way::failed(),
                });
                let bases = talk.knowledge.clone();
                Answer { text, next: Next::Asked(Box::new(Asked { ask, way_out, bases })) }
            }
            (next, _) => Answer { text, next },
        }
    }
}

/// The conversation with a node's instructions behind the general ones, and what the node before has just said.
fn briefed(messages: &[Message], brief: &str, said: &str) -> Vec<Message> {
    let mut messages = messages.to_vec();
    match messages.first_mut() {
        Some(Message::System { content }) => content.push_str(&format!("\n\n{brief}")),
        _ => messages.insert(0, Message::System { content: brief.to_owned() }),
    }
    if !said.is_empty() {
        messages.push(Message::Assistant { content: said.to_owned(), tool_calls: Vec::new() });
    }
    messages
}

/// The caller's last words.
fn last_said(messages: &[Message]) -> Option<String> {
    messages.iter().rev().find_map(|message| match message {
        Message::User { content } => Some(content.clone()),
        _ => None,
    })
}

struct Answer {
    text: String,
    next: Next,
}

/// Who acts after the text.
enum Next {
    Caller,
    Tool(ToolCall),
    /// The model of the node, which is still to be briefed.
    Model,
    Asked(Box<Asked>),
}

struct Asked {
    ask: ChatRequest,
    /// Written where the model fails before its first word.
    way_out: Option<ToolCall>,
    /// The knowledge bases that the node looks in, where it names them.
    bases: Option<Vec<String>>,
}

type Events = mpsc::Sender<Result<LlmEvent, LlmError>>;

impl LanguageModel for Builtin {
    fn name(&self) -> &'static str {
        self.model.as_ref().map_or("builtin", |model| model.name())
    }

    fn reply(&self, request: ChatRequest) -> ReplyStream {
        let (stream, events, cancel) = ReplyStream::new();
        let engine = self.clone();
        tokio::spawn(async move {
            let answer = engine.answer(&request);
            cancel.run_until_cancelled(engine.send(answer, events)).await;
        });
        stream
    }

    fn prepare(&self) {
        self.model.iter().for_each(|model| model.prepare());
    }
}

impl Builtin {
    async fn send(&self, answer: Answer, events: Events) {
        let words = answer.text.split_inclusive(' ').map(|word| LlmEvent::Text(word.to_owned()));
        for event in words.filter(|_| !answer.text.is_empty()) {
            if events.send(Ok(event)).await.is_err() {
                return;
            }
        }
        let call = match answer.next {
            Next::Asked(asked) => return self.pass(*asked, !answer.text.is_empty(), events).await,
            Next::Tool(call) => Some(call),
            Next::Caller | Next::Model => None,
        };
        let finish = if call.is_some() { Finish::ToolCalls } else { Finish::Stop };
        for event in call.map(LlmEvent::ToolCall).into_iter().chain([LlmEvent::Done { finish }]) {
            if events.send(Ok(event)).await.is_err() {
                return;
            }
        }
    }

    /// What the model says. If it fails before it has said or called anything, the node's other way is taken.
    async fn pass(&self, asked: Asked, spoken: bool, events: Events) {
        let Some(model) = &self.model else { return };
        let offered: Vec<String> = asked.ask.tools.iter().map(|tool| tool.name.clone()).collect();
        let mut stream = model.reply(asked.ask);
        let mut began = false;
        let mut gap = spoken;
        while let Some(event) = stream.next().await {
            let event = match event {
                Ok(LlmEvent::Text(text)) => {
                    began = true;
                    // The node before has spoken: its last word and this one are two.
                    Ok(LlmEvent::Text(if std::mem::take(&mut gap) { format!(" {text}") } else { text }))
                }
                Ok(LlmEvent::ToolCall(call)) => {
                    began = true;
                    let call = search_knowledge::within(call, asked.bases.as_deref());
                    Ok(LlmEvent::ToolCall(only_offered(call, &offered)))
                }
                Err(error) if !began && asked.way_out.is_some() => {
                    tracing::warn!(%error, "no model at a node that needs one: the workflow goes on without");
                    break;
                }
                other => other,
            };
            let last = matches!(event, Ok(LlmEvent::Done { .. }) | Err(_));
            if events.send(event).await.is_err() || last {
                return;
            }
        }
        if let (false, Some(call)) = (began, asked.way_out) {
            let _ = events.send(Ok(LlmEvent::ToolCall(call))).await;
            let _ = events.send(Ok(LlmEvent::Done { finish: Finish::ToolCalls })).await;
        }
    }
}

/// A call of a tool that the node does not offer goes to no tool: its name is made one that is not there.
fn only_offered(call: ToolCall, offered: &[String]) -> ToolCall {
    if offered.contains(&call.name) {
        return call;
    }
    let name: String = format!("not_here_{}", call.name).chars().take(64).collect();
    ToolCall { name, ..call }
}
