//! An agent that writes instead of speaking: one answer in a thread of messages. The same model, workflow and tools as
//! on a call; the thread's past is handed in, so nothing is kept between two messages.

use std::sync::Arc;
use std::time::Duration;

use crate::agent::memory::Memory;
use crate::agent::profile::ModelChoice;
use crate::agent::tools::{CallEffect, ToolBox, ToolContext, ToolResult};
use crate::conversation::settings::TurnSettings;
use crate::speech::llm::{LanguageModel, LlmError, LlmEvent, Message, ToolCall};

/// Longest answer: ten segments of GSM-7 text are billed as ten messages.
pub const MAX_ANSWER_CHARS: usize = 1530;
/// The whole answer, tools included. A person who writes waits longer than one who speaks.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// What came of one message.
#[derive(Debug, Default)]
pub struct Written {
    /// Empty: the agent has nothing to say.
    pub text: String,
    pub tools: Vec<(ToolCall, ToolResult)>,
    pub effects: Vec<CallEffect>,
    /// The answer as the conversation holds it: texts, calls of tools and their results.
    pub messages: Vec<Message>,
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    Model(#[from] LlmError),
    #[error("no answer within {} s", ANSWER_LIMIT.as_secs())]
    TooSlow,
}

/// What happens while an answer is made, for whoever watches it.
pub enum Telling<'a> {
    /// A piece of the answer, as it comes from the model.
    Words(&'a str),
    /// A tool that was called, and what came of it.
    Tool(&'a ToolCall, &'a ToolResult),
}

/// Answers the newest message in `memory`. Tools with side effects run at once: words in writing are final.
pub async fn answer(
    model: Arc<dyn LanguageModel>,
    choice: &ModelChoice,
    tools: &ToolBox,
    context: ToolContext,
    memory: &Memory,
    settings: &TurnSettings,
) -> Result<Written, WriteError> {
    let mut memory = memory.clone();
    let mut written = converse(model, choice, tools, context, &mut memory, settings, &mut |_| ()).await?;
    let end = written.text.char_indices().nth(MAX_ANSWER_CHARS).map_or(written.text.len(), |(at, _)| at);
    written.text.truncate(end);
    Ok(written)
}

/// The same in a conversation that goes on: what was said and done is taken into `memory`, also where the answer breaks
/// off, and `watch` is told as it happens.
pub async fn converse(
    model: Arc<dyn LanguageModel>,
    choice: &ModelChoice,
    tools: &ToolBox,
    context: ToolContext,
    memory: &mut Memory,
    settings: &TurnSettings,
    watch: &mut (dyn FnMut(Telling<'_>) + Send),
) -> Result<Written, WriteError> {
    let work = rounds(model, choice, tools, context, memory, settings, watch);
    tokio::time::timeout(ANSWER_LIMIT, work).await.unwrap_or(Err(WriteError::TooSlow))
}

async fn rounds(
    model: Arc<dyn LanguageModel>,
    choice: &ModelChoice,
    tools: &ToolBox,
    context: ToolContext,
    memory: &mut Memory,
    settings: &TurnSettings,
    watch: &mut (dyn FnMut(Telling<'_>) + Send),
) -> Result<Written, WriteError> {
    // Beside the whole conversation, whose oldest messages fall out as it grows.
    let mut answer = Memory::new("");
    let mut offered = tools.specs();
    let mut written = Written::default();
    for step in 0..=settings.max_tool_steps {
        let mut stream = model.reply(memory.request(&offered, choice));
        let (mut said, mut calls) = (String::new(), Vec::new());
        while let Some(event) = stream.next().await {
            match event {
                Ok(LlmEvent::Text(text)) => {
                    watch(Telling::Words(&text));
                    said.push_str(&text);
                }
                Ok(LlmEvent::ToolCall(call)) => calls.push(call),
                Ok(LlmEvent::Usage { .. }) => {}
                Ok(LlmEvent::Done { .. }) => break,
                Err(error) => {
                    memory.agent_said(&said);
                    return Err(error.into());
                }
            }
        }
        join(&mut written.text, &said);
        memory.agent_said(&said);
        answer.agent_said(&said);
        if calls.is_empty() {
            break;
        }
        let limit = Duration::from_millis(settings.tool_limit_ms);
        let results = tools.run_all(&calls, &context, limit).await;
        for (call, result) in calls.iter().zip(&results) {
            watch(Telling::Tool(call, result));
            written.effects.extend(result.effect.clone());
        }
        memory.tool_round(&calls, &results);
        answer.tool_round(&calls, &results);
        tools.told(&calls);
        written.tools.extend(calls.into_iter().zip(results));
        if step + 1 == settings.max_tool_steps {
            offered.clear();
        }
    }
    written.messages = answer.messages().cloned().collect();
    Ok(written)
}

fn join(text: &mut String, more: &str) {
    let more = more.trim();
    if !text.is_empty() && !more.is_empty() {
        text.push(' ');
    }
    text.push_str(more);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tools::ToolRegistry;
    use crate::speech::scripted::{Answer, ScriptedConfig, ScriptedModel};
    use crate::telephony::{CallId, PhoneNumber};

    async fn write(steps: Vec<Answer>, max_tool_steps: u32) -> Result<Written, WriteError> {
        let tools = ToolBox::new(["remember", "end_call"], &ToolRegistry::with_call_tools()).expect("they exist");
        let mut memory = Memory::new("You write.");
        memory.user_said("Book a table");
        let settings = TurnSettings { max_tool_steps, ..TurnSettings::default() };
        let context = ToolContext::new(CallId::new(), PhoneNumber::default(), PhoneNumber::default());
        let model = Arc::new(ScriptedModel::with_steps(ScriptedConfig::default(), steps));
        answer(model, &ModelChoice::default(), &tools, context, &memory, &settings).await
    }

    fn remembers() -> Answer {
        Answer::Tool { name: "remember".into(), arguments: r#"{"key":"booking","value":"friday"}"#.into() }
    }

    #[tokio::test(start_paused = true)]
    async fn tools_run_and_the_words_after_them_are_the_answer() {
        let written = write(vec![remembers(), Answer::Text("Your table is booked.".into())], 4).await.unwrap();
        assert_eq!(written.text, "Your table is booked.");
        assert_eq!(written.tools.len(), 1);
        assert!(matches!(&written.effects[..], [CallEffect::Remember { key, .. }] if key == "booking"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_conversation_that_goes_on_is_watched_and_remembered() {
        let tools = ToolBox::new(["remember"], &ToolRegistry::with_call_tools()).expect("it exists");
        let mut memory = Memory::new("");
        memory.user_said("Book a table");
        let context = ToolContext::new(CallId::new(), PhoneNumber::default(), PhoneNumber::default());
        let steps = vec![remembers(), Answer::Text("Your table is booked.".into())];
        let model = Arc::new(ScriptedModel::with_steps(ScriptedConfig::default(), steps));
        let mut seen = Vec::new();
        let mut watch = |telling: Telling<'_>| match telling {
            Telling::Words(words) => seen.push(words.trim().to_owned()),
            Telling::Tool(call, result) => seen.push(format!("{} {}", call.name, result.ok)),
        };
        let choice = ModelChoice::default();
        converse(model, &choice, &tools, context, &mut memory, &TurnSettings::default(), &mut watch).await.unwrap();
        assert_eq!(seen, ["remember true", "Your", "table", "is", "booked."]);
        let messages: Vec<_> = memory.messages().collect();
        assert_eq!(messages.len(), 4, "{messages:?}");
        assert!(
            matches!(messages[3], crate::speech::llm::Message::Assistant { content, .. } if content == "Your table is booked.")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_that_only_calls_tools_is_stopped() {
        let written = write(std::iter::repeat_with(remembers).take(20).collect(), 2).await.unwrap();
        assert!(written.tools.len() <= 3, "{}", written.tools.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_that_fails_or_hangs_is_an_error_and_a_long_answer_is_cut() {
        assert!(matches!(write(vec![Answer::Fails], 4).await, Err(WriteError::Model(_))));
        let written = write(vec![Answer::Text("я".repeat(5000))], 4).await.unwrap();
        assert_eq!(written.text.chars().count(), MAX_ANSWER_CHARS);
    }
}
