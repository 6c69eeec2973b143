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

/// Answers the newest message in `memory`. Tools with side effects run at once: words in writing are final.
pub async fn answer(
    model: Arc<dyn LanguageModel>,
    choice: &ModelChoice,
    tools: &ToolBox,
    context: ToolContext,
    memory: &Memory,
    settings: &TurnSettings,
) -> Result<Written, WriteError> {
    let work = rounds(model, choice, tools, context, memory, settings);
    tokio::time::timeout(ANSWER_LIMIT, work).await.unwrap_or(Err(WriteError::TooSlow))
}

async fn rounds(
    model: Arc<dyn LanguageModel>,
    choice: &ModelChoice,
    tools: &ToolBox,
    context: ToolContext,
    memory: &Memory,
    settings: &TurnSettings,
) -> Result<Written, WriteError> {
    let mut memory = memory.clone();
    let known = memory.messages().len();
    let mut offered = tools.specs();
    let mut written = Written::default();
    for step in 0..=settings.max_tool_steps {
        let mut stream = model.reply(memory.request(&offered, choice));
        let (mut said, mut calls) = (String::new(), Vec::new());
        while let Some(event) = stream.next().await {
            match event? {
                LlmEvent::Text(text) => said.push_str(&text),
                LlmEvent::ToolCall(call) => calls.push(call),
                LlmEvent::Usage { .. } => {}
                LlmEvent::Done { .. } => break,
            }
        }
        join(&mut written.text, &said);
        memory.agent_said(&said);
        if calls.is_empty() {
            break;
        }
        let limit = Duration::from_millis(settings.tool_limit_ms);
        let results = tools.run_all(&calls, &context, limit).await;
        written.effects.extend(results.iter().filter_map(|result| result.effect.clone()));
        memory.tool_round(&calls, &results);
        written.tools.extend(calls.into_iter().zip(results));
        if step + 1 == settings.max_tool_steps {
            offered.clear();
        }
    }
    written.messages = memory.messages().skip(known).cloned().collect();
    let end = written.text.char_indices().nth(MAX_ANSWER_CHARS).map_or(written.text.len(), |(at, _)| at);
    written.text.truncate(end);
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
