//! The conversation as a model is told it: what the caller said, what the caller heard of the agent, what tools gave.
//! Bounded: the oldest turns fall out, the system prompt stays.

use std::collections::VecDeque;

use super::profile::ModelChoice;
use super::tools::ToolResult;
use crate::speech::llm::{ChatRequest, Message, ToolCall, ToolSpec};

/// Messages that are kept. Generous: the builtin engine replays the whole call from them.
pub const MAX_MESSAGES: usize = 400;
/// Characters that are kept, about 50,000 tokens.
pub const MAX_CHARS: usize = 200_000;
/// Longest single message, in characters; a caller's turn is limited to a minute of speech anyway.
const MAX_MESSAGE_CHARS: usize = 20_000;

/// What a tool call gets as its result when the turn ended before it had one.
const UNANSWERED: &str =
    r#"{"error":"the caller interrupted before there was a result; it may or may not have been done"}"#;
/// Ends a message of which the caller did not hear the rest.
const CUT_MARK: char = '—';

/// The messages of one conversation.
#[derive(Clone, Debug)]
pub struct Memory {
    system: String,
    messages: VecDeque<Message>,
    chars: usize,
}

impl Memory {
    /// An empty `system` sends none.
    pub fn new(system: impl Into<String>) -> Self {
        Self { system: system.into(), messages: VecDeque::new(), chars: 0 }
    }

    /// Something that is known of the caller, beside the prompt.
    pub fn knows(&mut self, note: &str) {
        if !self.system.is_empty() {
            self.system.push_str("\n\n");
        }
        self.system.push_str(note);
    }

    /// The agent's words, as they were or will be heard.
    pub fn agent_said(&mut self, text: &str) {
        if !text.trim().is_empty() {
            self.push(Message::Assistant { content: clip(text.trim()), tool_calls: Vec::new() });
        }
    }

    pub fn user_said(&mut self, text: &str) {
        if !text.trim().is_empty() {
            self.push(Message::User { content: clip(text.trim()) });
        }
    }

    /// Messages of an earlier part of the conversation, as they were: calls of tools with their results.
    pub fn restore(&mut self, messages: Vec<Message>) {
        messages.into_iter().for_each(|message| self.push(message));
    }

    /// The calls that the model made and what came of them. A call without a result gets a stub, a result without its
    /// call is left out: the API refuses a conversation with either.
    pub fn tool_round(&mut self, calls: &[ToolCall], results: &[ToolResult]) {
        if calls.is_empty() {
            return;
        }
        self.push(Message::Assistant { content: String::new(), tool_calls: calls.to_vec() });
        for call in calls {
            let result = results.iter().find(|result| result.call_id == call.id);
            let content = result.map_or_else(|| UNANSWERED.to_owned(), |result| clip(&result.content));
            self.push(Message::Tool { tool_call_id: call.id.clone(), content });
        }
    }

    /// The caller interrupted and heard only this much of what the agent said since the caller's last words. Tool calls
    /// stay; a message of which nothing was heard goes.
    pub fn interrupted(&mut self, heard: &str) {
        let turn =
            self.messages.iter().rposition(|message| matches!(message, Message::User { .. })).map_or(0, |at| at + 1);
        let mut rest = heard.trim();
        let mut cut = false;
        // After what the caller had already answered to stands one answer, at times in several messages.
        for message in self.messages.range_mut(turn..) {
            let Message::Assistant { content, .. } = message else { continue };
            if content.is_empty() {
                continue;
            }
            match rest.strip_prefix(content.as_str()) {
                Some(after) if !cut && !after.trim().is_empty() => rest = after.trim_start(),
                _ if cut || rest.is_empty() => content.clear(),
                _ => {
                    *content = format!("{}{CUT_MARK}", rest.trim_end_matches([' ', ',', ';', ':', CUT_MARK]));
                    cut = true;
                }
            }
        }
        self.messages.retain(|message| match message {
            Message::Assistant { content, tool_calls } => !content.is_empty() || !tool_calls.is_empty(),
            _ => true,
        });
        self.chars = self.messages.iter().map(size).sum();
    }

    /// The conversation without the system prompt, oldest first.
    pub fn messages(&self) -> impl ExactSizeIterator<Item = &Message> {
        self.messages.iter()
    }

    /// The conversation with the system prompt.
    pub fn all(&self) -> Vec<Message> {
        let system = (!self.system.is_empty()).then(|| Message::System { content: self.system.clone() });
        system.into_iter().chain(self.messages.iter().cloned()).collect()
    }

    /// The same conversation with words of the caller that are not certain yet; this one stays as it is.
    pub fn with_user(&self, text: &str) -> Self {
        let mut speculative = self.clone();
        speculative.user_said(text);
        speculative
    }

    pub fn request(&self, tools: &[ToolSpec], model: &ModelChoice) -> ChatRequest {
        ChatRequest {
            messages: self.all(),
            tools: tools.to_vec(),
            model: model.model.clone(),
            temperature: model.temperature,
            max_tokens: model.max_tokens,
        }
    }

    fn push(&mut self, message: Message) {
        self.chars += size(&message);
        self.messages.push_back(message);
        // Whole turns fall out, so that no tool result loses its call; the turn being made always stays.
        while self.messages.len() > MAX_MESSAGES || self.chars > MAX_CHARS {
            let second =
                self.messages.iter().enumerate().skip(1).find(|(_, message)| matches!(message, Message::User { .. }));
            let Some((until, _)) = second else { break };
            for gone in self.messages.drain(..until) {
                self.chars -= size(&gone);
            }
        }
    }
}

fn size(message: &Message) -> usize {
    match message {
        Message::System { content } | Message::User { content } | Message::Tool { content, .. } => {
            content.chars().count()
        }
        Message::Assistant { content, tool_calls } => {
            content.chars().count()
                + tool_calls.iter().map(|call| call.name.len() + call.arguments.chars().count()).sum::<usize>()
        }
    }
}

fn clip(text: &str) -> String {
    match text.char_indices().nth(MAX_MESSAGE_CHARS) {
        Some((end, _)) => text[..end].to_owned(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(text: &str) -> Message {
        Message::User { content: text.into() }
    }

    fn agent(text: &str) -> Message {
        Message::Assistant { content: text.into(), tool_calls: Vec::new() }
    }

    fn call(id: &str) -> ToolCall {
        ToolCall { id: id.into(), name: "remember".into(), arguments: "{}".into() }
    }

    fn result(id: &str) -> ToolResult {
        ToolResult { call_id: id.into(), content: "{\"ok\":true}".into(), ok: true, effect: None }
    }

    #[test]
    fn a_request_holds_the_prompt_the_conversation_and_the_choices() {
        let mut memory = Memory::new("Be brief.");
        memory.agent_said("Hello!");
        memory.user_said(" What time do you open? ");
        let model = ModelChoice {
            model: Some("m".into()),
            temperature: Some(0.5),
            max_tokens: Some(9),
            ..ModelChoice::default()
        };
        let request = memory.request(&[], &model);
        let system = Message::System { content: "Be brief.".into() };
        assert_eq!(request.messages, [system, agent("Hello!"), user("What time do you open?")]);
        assert_eq!(
            (request.model.as_deref(), request.temperature, request.max_tokens),
            (Some("m"), Some(0.5), Some(9))
        );
        assert_eq!(Memory::new("").all(), []);
    }

    #[test]
    fn an_interrupted_answer_becomes_what_was_heard() {
        let mut memory = Memory::new("");
        memory.user_said("Hours?");
        memory.agent_said("We open at eight. We close at ten.");
        memory.interrupted("We open at eight. We");
        assert_eq!(memory.all(), [user("Hours?"), agent("We open at eight. We—")]);
    }

    #[test]
    fn an_answer_of_which_nothing_was_heard_goes_and_its_tool_calls_stay() {
        let mut memory = Memory::new("");
        memory.user_said("Book it");
        memory.tool_round(&[call("a")], &[result("a")]);
        memory.agent_said("It is booked.");
        memory.interrupted("");
        let calls = Message::Assistant { content: String::new(), tool_calls: vec![call("a")] };
        let tool = Message::Tool { tool_call_id: "a".into(), content: "{\"ok\":true}".into() };
        assert_eq!(memory.all(), [user("Book it"), calls, tool]);
    }

    #[test]
    fn what_was_heard_is_spread_over_the_messages_of_one_answer() {
        let mut memory = Memory::new("");
        memory.user_said("Book it");
        memory.agent_said("One moment.");
        memory.tool_round(&[call("a")], &[result("a")]);
        memory.agent_said("It is booked for Friday.");
        memory.interrupted("One moment. It is booked,");
        let texts: Vec<String> = memory
            .all()
            .into_iter()
            .filter_map(|message| match message {
                Message::Assistant { content, .. } if !content.is_empty() => Some(content),
                _ => None,
            })
            .collect();
        assert_eq!(texts, ["One moment.", "It is booked—"]);
    }

    #[test]
    fn an_earlier_answer_is_not_touched_by_an_interruption() {
        let mut memory = Memory::new("");
        memory.agent_said("Hello!");
        memory.user_said("Hi");
        memory.interrupted("");
        assert_eq!(memory.all(), [agent("Hello!"), user("Hi")]);
    }

    #[test]
    fn a_call_without_a_result_gets_a_stub() {
        let mut memory = Memory::new("");
        memory.user_said("Book it");
        memory.tool_round(&[call("a"), call("b")], &[result("b"), result("stray")]);
        let contents: Vec<Message> = memory.all().split_off(2);
        assert_eq!(
            contents,
            [
                Message::Tool { tool_call_id: "a".into(), content: UNANSWERED.into() },
                Message::Tool { tool_call_id: "b".into(), content: "{\"ok\":true}".into() },
            ]
        );
        assert!(serde_json::from_str::<serde_json::Value>(UNANSWERED).unwrap().get("error").is_some());
    }

    #[test]
    fn speculation_leaves_the_memory_as_it_is() {
        let mut memory = Memory::new("");
        memory.agent_said("Hello!");
        let speculative = memory.with_user("I would like");
        assert_eq!(speculative.all(), [agent("Hello!"), user("I would like")]);
        assert_eq!(memory.all(), [agent("Hello!")]);
    }

    #[test]
    fn the_oldest_turns_fall_out_whole_and_the_prompt_stays() {
        let mut memory = Memory::new("prompt");
        for n in 0..300 {
            memory.user_said(&format!("question {n}"));
            memory.tool_round(&[call("a")], &[result("a")]);
            memory.agent_said(&"x".repeat(50));
        }
        let all = memory.all();
        assert!(all.len() <= MAX_MESSAGES + 1);
        assert_eq!(all[0], Message::System { content: "prompt".into() });
        assert!(matches!(&all[1], Message::User { .. }), "a turn falls out from its beginning");
        for _ in 0..40 {
            memory.user_said(&"y".repeat(10_000));
        }
        assert!(memory.messages().map(size).sum::<usize>() <= MAX_CHARS);
        assert_eq!(memory.chars, memory.messages().map(size).sum::<usize>());
    }
}
