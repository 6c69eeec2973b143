//! One streamed answer of `/v1/chat/completions`, sans-IO: the JSON of events in, [`LlmEvent`]s out. Takes what
//! look-alike servers do differently (specs/speech-apis.md §2.3). Thoughts of reasoning models never come out.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use super::{Finish, LlmEvent, ToolCall};

/// Arguments of one call. A model that writes more is looping.
const ARGUMENTS_BYTES: usize = 64 * 1024;
/// Calls in one answer.
const CALLS_MAX: usize = 16;

/// The answer cannot be used, or not from here on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum ChatError {
    #[error("an event that is not JSON")]
    Malformed,
    /// The server reported an error inside the stream: its status if it named one, and the event's text.
    #[error("the server reported an error")]
    Reported { status: Option<u16>, event: String },
    #[error("{0}")]
    TooMuch(&'static str),
}

/// How far the answer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Open,
    /// The model has finished; only usage may follow.
    Finished,
    /// Nothing follows.
    Complete,
}

#[derive(Debug, Default)]
pub(crate) struct ChatDecoder {
    visible: VisibleText,
    calls: Vec<PartialCall>,
    finish: Option<Finish>,
    usage: Option<(u32, u32)>,
    began: bool,
    calls_given: bool,
}

#[derive(Debug, Default)]
struct PartialCall {
    index: Option<u64>,
    id: String,
    name: String,
    arguments: String,
}

/// Makes ids for servers that send none; unique within the process, which is all that a conversation needs.
static CALLS_NAMED: AtomicU64 = AtomicU64::new(1);

impl ChatDecoder {
    /// Whether text or a tool call has begun to come: from then on another try would repeat it.
    pub fn began(&self) -> bool {
        self.began
    }

    /// Takes the data of one event, or the whole body of an answer that is not streamed.
    pub fn on_event(&mut self, data: &str, out: &mut Vec<LlmEvent>) -> Result<Progress, ChatError> {
        let data = data.trim();
        if data == "[DONE]" {
            return Ok(Progress::Complete);
        }
        if data.is_empty() {
            return Ok(self.progress());
        }
        let json: Value = serde_json::from_str(data).map_err(|_| ChatError::Malformed)?;
        if !json["error"].is_null() {
            let status = json["error"]["code"].as_u64().or(json["error"]["status"].as_u64());
            let status = status.and_then(|status| u16::try_from(status).ok());
            return Err(ChatError::Reported { status, event: data.to_owned() });
        }
        // Usage has a chunk of its own without choices, or comes with the last choice.
        if let Some(usage) = json["usage"].as_object() {
            let count = |key: &str| usage.get(key).and_then(Value::as_u64).unwrap_or(0).min(u32::MAX.into()) as u32;
            self.usage = Some((count("prompt_tokens"), count("completion_tokens")));
        }
        // The first chunk may have no choices (Azure's content filter).
        let Some(choice) = json["choices"].as_array().and_then(|choices| choices.first()) else {
            return Ok(self.progress());
        };
        let delta = if choice["delta"].is_object() { &choice["delta"] } else { &choice["message"] };
        self.text(&delta["content"], out);
        self.text(&delta["refusal"], out);
        for (position, fragment) in delta["tool_calls"].as_array().into_iter().flatten().enumerate() {
            self.call_fragment(position, fragment)?;
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.finish = Some(match reason {
                "length" => Finish::Length,
                "content_filter" => Finish::ContentFilter,
                _ => Finish::Stop,
            });
            self.give_calls(out);
        }
        Ok(self.progress())
    }

    /// The stream is over: what was held back, usage, and `Done`. Without a reason to finish the answer was cut, and
    /// calls that were being written are dropped: half a call must not run.
    pub fn end(&mut self, out: &mut Vec<LlmEvent>) {
        self.give_calls(out);
        if let Some((prompt_tokens, completion_tokens)) = self.usage {
            out.push(LlmEvent::Usage { prompt_tokens, completion_tokens });
        }
        let finish = match self.finish {
            None => Finish::Cut,
            Some(Finish::Stop) if !self.calls.is_empty() => Finish::ToolCalls,
            Some(finish) => finish,
        };
        out.push(LlmEvent::Done { finish });
    }

    fn progress(&self) -> Progress {
        if self.finish.is_some() { Progress::Finished } else { Progress::Open }
    }

    /// A string, or a list of parts with a `text` each.
    fn text(&mut self, content: &Value, out: &mut Vec<LlmEvent>) {
        let parts = content.as_array().into_iter().flatten().map(|part| &part["text"]);
        for text in std::iter::once(content).chain(parts).filter_map(Value::as_str) {
            self.visible.push(text, out);
        }
        self.began |= self.visible.spoken;
    }

    fn call_fragment(&mut self, position: usize, fragment: &Value) -> Result<(), ChatError> {
        self.began = true;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (id, name) = (text(&fragment["id"]), text(&fragment["function"]["name"]));
        let index = fragment["index"].as_u64();
        let at = match self.find(position, index, &id, &name) {
            Some(at) => at,
            None if self.calls.len() == CALLS_MAX => return Err(ChatError::TooMuch("too many tool calls")),
            None => {
                self.calls.push(PartialCall { index, ..PartialCall::default() });
                self.calls.len() - 1
            }
        };
        let call = &mut self.calls[at];
        // Some servers repeat the id and the name on each fragment.
        if call.id.is_empty() {
            call.id = id;
        }
        if call.name.is_empty() {
            call.name = name;
        }
        match &fragment["function"]["arguments"] {
            Value::String(piece) => call.arguments.push_str(piece),
            object @ Value::Object(_) => call.arguments = object.to_string(),
            _ => {}
        }
        if call.arguments.len() > ARGUMENTS_BYTES {
            return Err(ChatError::TooMuch("tool arguments over 64 KB"));
        }
        Ok(())
    }

    /// The call that a fragment belongs to; `None` when it begins one.
    fn find(&self, position: usize, index: Option<u64>, id: &str, name: &str) -> Option<usize> {
        let same_id = |call: &PartialCall| id.is_empty() || call.id.is_empty() || call.id == id;
        if index.is_some() {
            // Servers that give every call index 0 tell them apart by id.
            return self.calls.iter().rposition(|call| call.index == index && same_id(call));
        }
        if !id.is_empty() {
            return self.calls.iter().rposition(|call| call.id == id);
        }
        let last = self.calls.len().checked_sub(1)?;
        if name.is_empty() {
            return Some(if position < self.calls.len() && position > 0 { position } else { last });
        }
        // A name without an id or an index begins a call, unless that call is still being written under the name.
        let open = serde_json::from_str::<Value>(&self.calls[last].arguments).is_err();
        (self.calls[last].name == name && open && !self.calls[last].arguments.is_empty()).then_some(last)
    }

    fn give_calls(&mut self, out: &mut Vec<LlmEvent>) {
        let Some(finish) = self.finish else { return self.visible.finish(out) };
        self.visible.finish(out);
        if std::mem::replace(&mut self.calls_given, true) {
            return;
        }
        self.calls.retain(|call| !call.name.is_empty());
        if finish == Finish::Length {
            // The limit fell into a call: what is not whole must not run.
            self.calls.retain(|call| serde_json::from_str::<Value>(&call.arguments).is_ok());
        }
        for call in &mut self.calls {
            if call.id.is_empty() {
                call.id = format!("call_{}", CALLS_NAMED.fetch_add(1, Ordering::Relaxed));
            }
            let arguments = if call.arguments.trim().is_empty() { "{}".to_owned() } else { call.arguments.clone() };
            out.push(LlmEvent::ToolCall(ToolCall { id: call.id.clone(), name: call.name.clone(), arguments }));
        }
    }
}

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Content without thoughts and without blanks at its beginning.
#[derive(Debug, Default)]
struct VisibleText {
    thinking: bool,
    /// The end of what came, where it may be the beginning of a tag. Shorter than a tag.
    held: String,
    /// Something that is not blank has come out.
    spoken: bool,
}

impl VisibleText {
    fn push(&mut self, text: &str, out: &mut Vec<LlmEvent>) {
        let mut rest = std::mem::take(&mut self.held) + text;
        loop {
            let tag = if self.thinking { CLOSE } else { OPEN };
            let Some(at) = rest.find(tag) else { break };
            if !self.thinking {
                self.give(&rest[..at], out);
            }
            self.thinking = !self.thinking;
            rest.drain(..at + tag.len());
        }
        let tag = if self.thinking { CLOSE } else { OPEN };
        let held = (1..tag.len()).rev().find(|&length| rest.ends_with(&tag[..length])).unwrap_or(0);
        let kept = rest.len() - held;
        if !self.thinking {
            self.give(&rest[..kept], out);
        }
        self.held = rest.split_off(kept);
    }

    /// What looked like the beginning of a tag was text.
    fn finish(&mut self, out: &mut Vec<LlmEvent>) {
        let held = std::mem::take(&mut self.held);
        if !self.thinking {
            self.give(&held, out);
        }
    }

    fn give(&mut self, text: &str, out: &mut Vec<LlmEvent>) {
        let text = if self.spoken { text } else { text.trim_start() };
        if !text.is_empty() {
            self.spoken = true;
            out.push(LlmEvent::Text(text.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Decodes deltas (and a finish reason) to the end.
    fn decode(deltas: &[Value], finish: Option<&str>) -> Vec<LlmEvent> {
        let (mut decoder, mut out) = (ChatDecoder::default(), Vec::new());
        for delta in deltas {
            let event = json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]});
            decoder.on_event(&event.to_string(), &mut out).expect("a good event");
        }
        if let Some(finish) = finish {
            let event = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]});
            assert_eq!(decoder.on_event(&event.to_string(), &mut out), Ok(Progress::Finished));
        }
        decoder.end(&mut out);
        out
    }

    fn spoken(events: &[LlmEvent]) -> String {
        let text = |event: &LlmEvent| if let LlmEvent::Text(text) = event { text.clone() } else { String::new() };
        events.iter().map(text).collect()
    }

    fn calls(events: &[LlmEvent]) -> Vec<(&str, &str, &str)> {
        events
            .iter()
            .filter_map(|event| match event {
                LlmEvent::ToolCall(call) => Some((call.id.as_str(), call.name.as_str(), call.arguments.as_str())),
                _ => None,
            })
            .collect()
    }

    fn finish(events: &[LlmEvent]) -> Finish {
        match events.last() {
            Some(LlmEvent::Done { finish }) => *finish,
            other => panic!("the last event is {other:?}"),
        }
    }

    #[test]
    fn text_comes_out_piece_by_piece_without_blanks_before_it() {
        let deltas = ["", " \n", "\n Let", " me", " check. "].map(|text| json!({"role": "assistant", "content": text}));
        let events = decode(&deltas, Some("stop"));
        let text = |text: &str| LlmEvent::Text(text.into());
        let expected = [text("Let"), text(" me"), text(" check. "), LlmEvent::Done { finish: Finish::Stop }];
        assert_eq!(events, expected);
    }

    #[test]
    fn calls_are_put_together_however_a_server_spreads_them() {
        let both = [("a", "status", r#"{"order":"417"}"#), ("b", "hours", "{}")];
        for (name, fragments) in [
            (
                "as documented",
                vec![
                    json!([{"index": 0, "id": "a", "type": "function", "function": {"name": "status", "arguments": ""}}]),
                    json!([{"index": 0, "function": {"arguments": "{\"order\""}}]),
                    json!([{"index": 0, "function": {"arguments": ":\"417\"}"}}]),
                    json!([{"index": 1, "id": "b", "function": {"name": "hours", "arguments": "{}"}}]),
                ],
            ),
            (
                "interleaved, without arguments",
                vec![
                    json!([{"index": 0, "id": "a", "function": {"name": "status", "arguments": "{\"order\":"}}]),
                    json!([{"index": 1, "id": "b", "function": {"name": "hours"}}]),
                    json!([{"index": 0, "function": {"arguments": "\"417\"}"}}, {"index": 1, "function": {"arguments": ""}}]),
                ],
            ),
            (
                "whole, index missing, arguments an object",
                vec![json!([
                    {"id": "a", "function": {"name": "status", "arguments": {"order": "417"}}},
                    {"id": "b", "function": {"name": "hours", "arguments": {}}},
                ])],
            ),
            (
                "every index 0",
                vec![
                    json!([{"index": 0, "id": "a", "function": {"name": "status", "arguments": "{\"order\":\"417\"}"}}]),
                    json!([{"index": 0, "id": "b", "function": {"name": "hours", "arguments": "{}"}}]),
                ],
            ),
            (
                "id and name on each fragment",
                vec![
                    json!([{"index": 0, "id": "a", "function": {"name": "status", "arguments": "{\"order\":"}}]),
                    json!([{"index": 0, "id": "a", "function": {"name": "status", "arguments": "\"417\"}"}}]),
                    json!([{"index": 1, "id": "b", "function": {"name": "hours", "arguments": null}}]),
                ],
            ),
            (
                "index missing, in pieces",
                vec![
                    json!([{"id": "a", "function": {"name": "status", "arguments": "{\"order\":"}}]),
                    json!([{"function": {"arguments": "\"417\"}"}}]),
                    json!([{"id": "b", "function": {"name": "hours", "arguments": " "}}]),
                ],
            ),
        ] {
            let deltas: Vec<Value> = fragments.into_iter().map(|calls| json!({"tool_calls": calls})).collect();
            for reason in ["tool_calls", "stop", "function_call"] {
                let events = decode(&deltas, Some(reason));
                assert_eq!(calls(&events), both, "{name}");
                assert_eq!(finish(&events), Finish::ToolCalls, "{name}, {reason}");
            }
        }
    }

    #[test]
    fn calls_without_ids_get_different_ones() {
        let fragment = json!({"tool_calls": [
            {"function": {"name": "status", "arguments": "{\"order\":1}"}},
            {"function": {"name": "status", "arguments": "{\"order\":2}"}},
        ]});
        let events = decode(&[fragment], Some("stop"));
        let calls = calls(&events);
        assert_eq!([calls[0].2, calls[1].2], [r#"{"order":1}"#, r#"{"order":2}"#]);
        assert!(!calls[0].0.is_empty() && calls[0].0 != calls[1].0);
    }

    #[test]
    fn a_call_that_was_cut_never_runs() {
        let cut =
            json!({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "book", "arguments": "{\"day\":"}}]});
        let whole = json!({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "book", "arguments": "{}"}}]});
        assert_eq!(decode(std::slice::from_ref(&whole), None), [LlmEvent::Done { finish: Finish::Cut }]);
        assert_eq!(decode(&[cut], Some("length")), [LlmEvent::Done { finish: Finish::Length }]);
        assert_eq!(calls(&decode(&[whole], Some("length"))).len(), 1);
    }

    #[test]
    fn a_model_that_loops_in_its_arguments_is_stopped() {
        let (mut decoder, mut out) = (ChatDecoder::default(), Vec::new());
        let piece = "x".repeat(10_000);
        let fragment = json!({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": piece}}]});
        let event = json!({"choices": [{"delta": fragment}]}).to_string();
        let stopped = (0..7).find_map(|_| decoder.on_event(&event, &mut out).err());
        assert!(matches!(stopped, Some(ChatError::TooMuch(_))));

        let mut decoder = ChatDecoder::default();
        let stopped = (0..=CALLS_MAX).find_map(|n| {
            let fragment = json!({"tool_calls": [{"index": n, "id": n.to_string(), "function": {"name": "f"}}]});
            decoder.on_event(&json!({"choices": [{"delta": fragment}]}).to_string(), &mut out).err()
        });
        assert!(matches!(stopped, Some(ChatError::TooMuch(_))));
    }

    #[test]
    fn thoughts_are_never_spoken_however_they_are_cut() {
        let whole =
            "\n<think>\nThe caller < wants </thin a bike.</think>\n\nYes, 3 < 4 <thanks>.<think>x</think> Bye<th";
        let expected = "Yes, 3 < 4 <thanks>. Bye<th";
        for cut in (0..=whole.len()).filter(|&cut| whole.is_char_boundary(cut)) {
            let (a, b) = whole.split_at(cut);
            let events = decode(&[json!({"content": a}), json!({"content": b})], Some("stop"));
            assert_eq!(spoken(&events), expected, "cut at {cut}");
        }
        let single: Vec<Value> = whole.chars().map(|c| json!({"content": c.to_string()})).collect();
        assert_eq!(spoken(&decode(&single, Some("stop"))), expected);
        let reasoning =
            [json!({"reasoning_content": "hm"}), json!({"reasoning": "hm", "content": null}), json!({"content": "Hi"})];
        assert_eq!(spoken(&decode(&reasoning, Some("stop"))), "Hi");
        assert_eq!(spoken(&decode(&[json!({"content": "<think>never closed"})], Some("length"))), "");
    }

    #[test]
    fn usage_comes_before_done_wherever_the_server_puts_it() {
        let usage = json!({"prompt_tokens": 61, "completion_tokens": 5});
        let stop = json!([{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]);
        for events in [
            vec![json!({"choices": stop, "usage": usage})],
            vec![json!({"choices": stop, "usage": null}), json!({"choices": [], "usage": usage})],
            vec![json!({"choices": [], "prompt_filter_results": []}), json!({"choices": stop, "usage": usage})],
        ] {
            let (mut decoder, mut out) = (ChatDecoder::default(), Vec::new());
            for event in events {
                decoder.on_event(&event.to_string(), &mut out).expect("a good event");
            }
            assert_eq!(decoder.on_event("[DONE]", &mut out), Ok(Progress::Complete));
            decoder.end(&mut out);
            let usage = LlmEvent::Usage { prompt_tokens: 61, completion_tokens: 5 };
            assert_eq!(out, [LlmEvent::Text("Hi".into()), usage, LlmEvent::Done { finish: Finish::Stop }]);
        }
    }

    #[test]
    fn an_answer_that_is_not_streamed_is_taken_whole() {
        let (mut decoder, mut out) = (ChatDecoder::default(), Vec::new());
        let body = json!({"choices": [{"message": {"role": "assistant", "content": [{"type": "text", "text": "Hi."}],
            "tool_calls": [{"id": "a", "function": {"name": "hours", "arguments": ""}}]}, "finish_reason": "tool_calls"}]});
        decoder.on_event(&body.to_string(), &mut out).expect("a good body");
        decoder.end(&mut out);
        assert_eq!(spoken(&out), "Hi.");
        assert_eq!(calls(&out), [("a", "hours", "{}")]);
        assert_eq!(finish(&out), Finish::ToolCalls);
    }

    #[test]
    fn an_error_in_the_stream_is_an_error() {
        for (event, status) in [
            (json!({"error": {"message": "overloaded", "code": 503}}), Some(503)),
            (json!({"error": {"message": "no", "code": "bad"}}), None),
            (json!({"error": "text"}), None),
        ] {
            let error = ChatDecoder::default().on_event(&event.to_string(), &mut Vec::new());
            assert_eq!(error, Err(ChatError::Reported { status, event: event.to_string() }));
        }
        assert_eq!(ChatDecoder::default().on_event("{", &mut Vec::new()), Err(ChatError::Malformed));
    }

    proptest! {
        #[test]
        fn no_event_makes_it_panic(pieces in prop::collection::vec("[<>/think a]{0,9}", 0..8), index in any::<u64>()) {
            let (mut decoder, mut out) = (ChatDecoder::default(), Vec::new());
            for piece in &pieces {
                let call = json!([{"index": index, "id": piece, "function": {"name": piece, "arguments": piece}}, {}, 5]);
                let event = json!({"choices": [{"delta": {"content": piece, "tool_calls": call}}]});
                let _ = decoder.on_event(&event.to_string(), &mut out);
                let _ = decoder.on_event(piece, &mut out);
            }
            decoder.end(&mut out);
            let complete = matches!(out.last(), Some(LlmEvent::Done { .. }));
            prop_assert!(complete);
        }
    }
}
