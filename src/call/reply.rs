//! Making one reply: model → clauses → speech, with tool calls in between. Runs as a task of its call; everything it
//! does is cancelled when the call drops it. Its queue is bounded and the call reads it only while playout wants
//! sound, so a long answer is made as it is spoken.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::agent::phrases::Phrases;
use crate::agent::profile::AgentProfile;
use crate::agent::tools::{ToolBox, ToolContext, ToolResult};
use crate::call::engines::CallEngines;
use crate::conversation::settings::TurnSettings;
use crate::conversation::speakable::Speakable;
use crate::conversation::spoken::Spoken;
use crate::conversation::turn::ReplyId;
use crate::speech::llm::{ChatRequest, Finish, LanguageModel, LlmError, LlmEvent, Message, ToolCall};
use crate::speech::tts::{SpeechChunk, SpeechRequest, Synthesizer, TtsError};

/// What a reply is made from.
pub enum Source {
    Model { request: ChatRequest, model: Arc<dyn LanguageModel>, tools: Arc<ToolBox>, context: ToolContext },
    Phrase(String),
}

/// How it is spoken.
#[derive(Clone)]
pub struct Voice {
    pub tts: Arc<dyn Synthesizer>,
    pub language: String,
    pub voice: String,
    pub speed: f32,
}

impl Voice {
    pub fn of(agent: &AgentProfile, engines: &CallEngines) -> Self {
        Self {
            tts: Arc::new(engines.tts.clone()),
            language: agent.language.clone(),
            voice: agent.tts.voice.clone(),
            speed: agent.tts.speed,
        }
    }

    /// A clause in the words that this voice says.
    pub fn line(&self, text: &str) -> Spoken {
        Spoken::of(text, &self.language)
    }

    /// For the engine, and the key of its cache: what is said.
    pub fn request(&self, line: &Spoken) -> SpeechRequest {
        SpeechRequest {
            text: line.said().to_owned(),
            language: self.language.clone(),
            voice: self.voice.clone(),
            speed: self.speed,
        }
    }
}

/// What the task reports, in order.
#[derive(Debug)]
pub enum Made {
    FirstToken,
    /// A clause goes to synthesis; its sound follows.
    Clause(Spoken),
    Sound(SpeechChunk),
    /// The clause is complete.
    ClauseOver,
    /// The clause is lost, or broken off in the middle.
    ClauseFailed(TtsError),
    /// The model called tools: what it had said before, the calls and what came of them.
    Tools {
        said: String,
        calls: Vec<ToolCall>,
        results: Vec<ToolResult>,
    },
    /// The tool limit was reached: the model was asked to answer without.
    ToolLimit,
    /// All that the model said (after the last tool round); nothing follows.
    Done {
        said: String,
    },
    /// The model failed. What was said before it did stands; nothing follows.
    Failed {
        said: String,
        error: LlmError,
    },
}

/// A few pieces of sound: the rest waits in the engine.
const MADE_QUEUE: usize = 8;
/// Clauses between model and synthesis: one being spoken, one ahead.
const CLAUSE_QUEUE: usize = 1;

/// A model that gives nothing for so long is not waited for with what can be said.
const LULL: Duration = Duration::from_millis(250);

/// A reply under way. Dropping it cancels model, synthesis and tools.
pub struct Reply {
    pub id: ReplyId,
    pub made: mpsc::Receiver<Made>,
    commit: watch::Sender<bool>,
    task: AbortHandle,
}

impl Reply {
    pub fn start(id: ReplyId, source: Source, voice: Voice, settings: &TurnSettings, tasks: &mut JoinSet<()>) -> Self {
        let (out, made) = mpsc::channel(MADE_QUEUE);
        let (commit, committed) = watch::channel(false);
        let maker = Maker { out, committed, voice, settings: settings.clone() };
        let task = tasks.spawn(maker.run(source));
        Self { id, made, commit, task }
    }

    /// The caller's turn is confirmed: tools with side effects may run.
    pub fn commit(&self) {
        self.commit.send_replace(true);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Maker {
    out: mpsc::Sender<Made>,
    committed: watch::Receiver<bool>,
    voice: Voice,
    settings: TurnSettings,
}

enum Clause {
    Text(String),
    /// Passed on in order, after the sound of the clauses before it.
    Report(Made),
}

impl Maker {
    async fn run(self, source: Source) {
        let (clauses, queue) = mpsc::channel(CLAUSE_QUEUE);
        let speaking = speak(queue, &self.out, &self.voice);
        match source {
            Source::Phrase(text) => {
                let writing = async move {
                    let _ = clauses.send(Clause::Text(text.clone())).await;
                    let _ = clauses.send(Clause::Report(Made::Done { said: text })).await;
                };
                tokio::join!(writing, speaking);
            }
            Source::Model { request, model, tools, context } => {
                tokio::join!(self.answer(request, model, tools, context, clauses), speaking);
            }
        }
    }

    /// Rounds of model and tools until the model has nothing more to call.
    async fn answer(
        &self,
        mut request: ChatRequest,
        model: Arc<dyn LanguageModel>,
        tools: Arc<ToolBox>,
        context: ToolContext,
        clauses: mpsc::Sender<Clause>,
    ) {
        let mut first = true;
        let mut filled = false;
        for step in 0..=self.settings.max_tool_steps {
            let round = self.round(&request, &*model, &clauses, &mut first, &mut filled).await;
            let (mut said, calls) = match round {
                Ok(round) => round,
                Err((mut said, error)) => {
                    let phrases = Phrases::of(&self.voice.language);
                    if said.trim() == phrases.one_moment {
                        // Whoever was asked to wait is told that nothing comes.
                        said.push_str(phrases.trouble);
                        let _ = clauses.send(Clause::Text(phrases.trouble.to_owned())).await;
                    }
                    let _ = clauses.send(Clause::Report(Made::Failed { said, error })).await;
                    return;
                }
            };
            if calls.is_empty() {
                let _ = clauses.send(Clause::Report(Made::Done { said })).await;
                return;
            }
            if calls.iter().any(|call| tools.is_side_effect(&call.name)) && !self.is_committed().await {
                return;
            }
            let limit = Duration::from_millis(self.settings.tool_limit_ms);
            let results = {
                let mut running = std::pin::pin!(tools.run_all(&calls, &context, limit));
                tokio::select! {
                    biased;
                    results = &mut running => results,
                    words = self.filler(&tools, &calls), if !filled && said.trim().is_empty() => {
                        filled = true;
                        said.push_str(&words);
                        // The voice may have more to say: the results do not wait for it.
                        tokio::join!(clauses.send(Clause::Text(words)), running).1
                    }
                }
            };
            request.messages.push(Message::Assistant { content: said.clone(), tool_calls: calls.clone() });
            for result in &results {
                request
                    .messages
                    .push(Message::Tool { tool_call_id: result.call_id.clone(), content: result.content.clone() });
            }
            if clauses.send(Clause::Report(Made::Tools { said, calls, results })).await.is_err() {
                return;
            }
            if step + 1 == self.settings.max_tool_steps {
                request.tools.clear();
                let _ = clauses.send(Clause::Report(Made::ToolLimit)).await;
            }
        }
        let _ = clauses.send(Clause::Report(Made::Done { said: String::new() })).await;
    }

    /// One request to the model: clauses go out as they form; what was said and the calls come back.
    async fn round(
        &self,
        request: &ChatRequest,
        model: &dyn LanguageModel,
        clauses: &mpsc::Sender<Clause>,
        first: &mut bool,
        filled: &mut bool,
    ) -> Result<(String, Vec<ToolCall>), (String, LlmError)> {
        let mut stream = model.reply(request.clone());
        let mut late = std::pin::pin!(self.late());
        let mut speakable = Speakable::new(&self.settings);
        let mut said = String::new();
        let mut calls = Vec::new();
        let mut failure = None;
        loop {
            let silent = said.is_empty() && calls.is_empty();
            let next = tokio::select! {
                biased;
                next = tokio::time::timeout(LULL, stream.next()) => next,
                () = &mut late, if silent && !*filled => {
                    *filled = true;
                    let words = Phrases::of(&self.voice.language).one_moment;
                    said = format!("{words} ");
                    if clauses.send(Clause::Text(words.to_owned())).await.is_err() {
                        return Ok((said, Vec::new()));
                    }
                    continue;
                }
            };
            let event = match next {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(_) => {
                    // The model pauses and the voice may have nothing to do: it gets what can be said already.
                    if clauses.capacity() == CLAUSE_QUEUE
                        && let Some(chunk) = speakable.due()
                        && clauses.send(Clause::Text(chunk.text)).await.is_err()
                    {
                        return Ok((said, Vec::new()));
                    }
                    continue;
                }
            };
            match event {
                Ok(LlmEvent::Text(text)) => {
                    if std::mem::take(first) {
                        // Straight past the clause queue: it marks the moment.
                        let _ = self.out.send(Made::FirstToken).await;
                    }
                    said.push_str(&text);
                    for chunk in speakable.push(&text) {
                        if clauses.send(Clause::Text(chunk.text)).await.is_err() {
                            return Ok((said, Vec::new()));
                        }
                    }
                }
                Ok(LlmEvent::ToolCall(call)) => calls.push(call),
                Ok(LlmEvent::Usage { prompt_tokens, completion_tokens }) => {
                    metrics::counter!("offhook_llm_tokens_total", "kind" => "prompt").increment(prompt_tokens.into());
                    metrics::counter!("offhook_llm_tokens_total", "kind" => "completion")
                        .increment(completion_tokens.into());
                }
                Ok(LlmEvent::Done { finish: Finish::Cut }) => {
                    tracing::warn!(engine = model.name(), "the answer was cut off");
                    break;
                }
                Ok(LlmEvent::Done { .. }) => break,
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        drop(stream);
        for chunk in speakable.finish() {
            if clauses.send(Clause::Text(chunk.text)).await.is_err() {
                break;
            }
        }
        match failure {
            Some(error) => Err((said, error)),
            None => Ok((said, calls)),
        }
    }

    /// When a model that has said nothing is late: so long after the turn was confirmed.
    async fn late(&self) {
        if self.settings.filler_after_ms == 0 || !self.is_committed().await {
            return std::future::pending().await;
        }
        tokio::time::sleep(Duration::from_millis(self.settings.filler_after_ms)).await;
    }

    /// What to say while tools are slow, when it is time for it; never, where there is nothing to say.
    async fn filler(&self, tools: &ToolBox, calls: &[ToolCall]) -> String {
        let words = tools.filler_after().zip(tools.filler(calls, &self.voice.language));
        let Some((after, words)) = words else { return std::future::pending().await };
        tokio::time::sleep(after).await;
        if self.is_committed().await { words } else { std::future::pending().await }
    }

    /// Waits for the turn to be confirmed; false when the reply was abandoned.
    async fn is_committed(&self) -> bool {
        self.committed.clone().wait_for(|committed| *committed).await.is_ok()
    }
}

/// Speaks clause after clause, in order.
async fn speak(mut queue: mpsc::Receiver<Clause>, out: &mpsc::Sender<Made>, voice: &Voice) {
    while let Some(clause) = queue.recv().await {
        let text = match clause {
            Clause::Text(text) => text,
            Clause::Report(made) => {
                if out.send(made).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let line = voice.line(&text);
        if line.said().is_empty() {
            // Nothing but signs and emoji.
            continue;
        }
        let request = voice.request(&line);
        if out.send(Made::Clause(line)).await.is_err() {
            return;
        }
        let mut sound = voice.tts.speak(request);
        let mut over = Made::ClauseOver;
        while let Some(chunk) = sound.next().await {
            match chunk {
                Ok(chunk) => {
                    if out.send(Made::Sound(chunk)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    over = Made::ClauseFailed(error);
                    break;
                }
            }
        }
        if out.send(over).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
