//! Engines that follow a script, for tests and for load without a model: settable delays, no recognition, tones for
//! speech. Selected like any other engine under the name `scripted`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::media::frame::SampleRate;
use crate::speech::llm::{ChatRequest, Finish, LanguageModel, LlmError, LlmEvent, Message, ReplyStream, ToolCall};
use crate::speech::stt::{SttError, SttEvent, SttInput, SttRequest, SttSession, Take, Transcriber};
use crate::speech::tts::{SpeechChunk, SpeechRequest, SpeechStream, Synthesizer, TtsError};

/// What the scripted engines do. One table serves all three.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScriptedConfig {
    /// Time from a take to its text, ms.
    pub stt_ms: u64,
    /// What callers are taken to say: one line an utterance of a call, the last one for ever.
    pub says: Vec<String>,
    /// Time to the first token, ms.
    pub first_token_ms: u64,
    /// Time between tokens (words), ms.
    pub token_ms: u64,
    /// What the agent answers: one line a caller turn of a call, the last one for ever.
    pub answers: Vec<String>,
    /// Time to the first audio of a clause, ms.
    pub tts_ms: u64,
    /// Speech that a character takes, ms.
    pub char_ms: u64,
}

impl Default for ScriptedConfig {
    fn default() -> Self {
        Self {
            stt_ms: 50,
            says: vec!["What time do you open today?".into()],
            first_token_ms: 50,
            token_ms: 5,
            answers: vec!["We are open from nine in the morning until ten in the evening.".into()],
            tts_ms: 20,
            char_ms: 60,
        }
    }
}

/// One step of a script that replaces the fixed lines: what happens to a take.
#[derive(Clone, Debug)]
pub enum Recognised {
    Text(String),
    Fails,
    /// Never answers.
    Hangs,
}

/// Answers each utterance with the next line; takes of the same utterance get the same line.
pub struct ScriptedTranscriber {
    config: ScriptedConfig,
    script: Option<Arc<Mutex<VecDeque<Recognised>>>>,
}

impl ScriptedTranscriber {
    pub fn new(config: ScriptedConfig) -> Self {
        Self { config, script: None }
    }

    /// Follows `steps`, one an utterance over all sessions, then the configured lines.
    pub fn with_steps(config: ScriptedConfig, steps: impl IntoIterator<Item = Recognised>) -> Self {
        Self { config, script: Some(Arc::new(Mutex::new(steps.into_iter().collect()))) }
    }

    fn line(&self, utterance: u32) -> Recognised {
        if let Some(script) = &self.script
            && let Some(step) = script.lock().expect("no panic while the script is held").pop_front()
        {
            return step;
        }
        Recognised::Text(nth_or_last(&self.config.says, utterance as usize - 1))
    }
}

impl Transcriber for ScriptedTranscriber {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn rate(&self) -> SampleRate {
        SampleRate::HZ_8000
    }

    fn open(&self, _request: SttRequest) -> SttSession {
        let (session, mut input, events, cancel) = SttSession::new();
        let this = Self { config: self.config.clone(), script: self.script.clone() };
        tokio::spawn(cancel.run_until_cancelled_owned(async move {
            let delay = Duration::from_millis(this.config.stt_ms);
            let mut current = Recognised::Text(String::new());
            let mut due: Option<(tokio::time::Instant, SttEvent)> = None;
            loop {
                let at = due.as_ref().map(|(at, _)| *at);
                tokio::select! {
                    () = async { tokio::time::sleep_until(at.expect("guarded by the branch")).await }, if at.is_some() => {
                        if let Some((_, event)) = due.take() && events.send(event).await.is_err() { return; }
                    }
                    message = input.recv() => match message {
                        None => return,
                        Some(SttInput::Begin { utterance }) => current = this.line(utterance.0),
                        Some(SttInput::Transcribe { utterance, take, kind }) => {
                            due = match (&current, kind) {
                                (_, Take::Partial) => Some((tokio::time::Instant::now(), SttEvent::Skipped { utterance, take })),
                                (Recognised::Text(text), _) => Some((
                                    tokio::time::Instant::now() + delay,
                                    SttEvent::Final { utterance, take, text: text.clone(), confidence: None, engine_time: delay },
                                )),
                                (Recognised::Fails, _) => Some((
                                    tokio::time::Instant::now() + delay,
                                    SttEvent::Failed { utterance, take, error: SttError::Engine { engine: "scripted", status: None, detail: "as the script says".into() } },
                                )),
                                (Recognised::Hangs, _) => None,
                            };
                        }
                        Some(SttInput::Cancel { .. } | SttInput::End { .. }) => due = None,
                        Some(SttInput::Audio(_)) => {}
                    }
                }
            }
        }));
        session
    }
}

/// Speaks tones: 8 kHz, a length by characters, delivered in 100 ms pieces after the delay.
pub struct ScriptedSynthesizer {
    config: ScriptedConfig,
    fail: Arc<Mutex<VecDeque<Spoken>>>,
}

/// What happens to one clause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    Well,
    Fails,
    /// Half of the clause, then an error.
    Breaks,
    /// Never a sound.
    Hangs,
}

impl ScriptedSynthesizer {
    pub fn new(config: ScriptedConfig) -> Self {
        Self { config, fail: Arc::default() }
    }

    /// Follows `steps`, one a clause, then speaks well.
    pub fn with_steps(config: ScriptedConfig, steps: impl IntoIterator<Item = Spoken>) -> Self {
        Self { config, fail: Arc::new(Mutex::new(steps.into_iter().collect())) }
    }
}

/// A 440 Hz tone at about -15 dBFS.
fn tone(samples: usize) -> Vec<i16> {
    (0..samples).map(|n| ((n as f32 * 440.0 * std::f32::consts::TAU / 8000.0).sin() * 8000.0) as i16).collect()
}

impl Synthesizer for ScriptedSynthesizer {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn speak(&self, request: SpeechRequest) -> SpeechStream {
        let (stream, chunks, cancel) = SpeechStream::new();
        let step = self.fail.lock().expect("no panic while the script is held").pop_front().unwrap_or(Spoken::Well);
        let delay = Duration::from_millis(self.config.tts_ms);
        let total = request.text.chars().count() * self.config.char_ms as usize * 8;
        tokio::spawn(cancel.run_until_cancelled_owned(async move {
            tokio::time::sleep(delay).await;
            let error = || TtsError::Engine { engine: "scripted", status: None, detail: "as the script says".into() };
            match step {
                Spoken::Hangs => std::future::pending().await,
                Spoken::Fails => drop(chunks.send(Err(error())).await),
                Spoken::Well | Spoken::Breaks => {
                    let samples = tone(if step == Spoken::Breaks { total / 2 } else { total });
                    for piece in samples.chunks(800) {
                        let chunk = SpeechChunk { rate: SampleRate::HZ_8000, samples: piece.to_vec() };
                        if chunks.send(Ok(chunk)).await.is_err() {
                            return;
                        }
                    }
                    if step == Spoken::Breaks {
                        let _ = chunks.send(Err(error())).await;
                    }
                }
            }
        }));
        stream
    }
}

/// What a scripted model does with one request.
#[derive(Clone, Debug)]
pub enum Answer {
    Text(String),
    /// Calls a tool; the next request of the turn takes the next step.
    Tool {
        name: String,
        arguments: String,
    },
    Fails,
    /// Some words, then an error.
    Breaks(String),
    Hangs,
}

/// Answers each request with the next step, then by counting the caller's turns into the configured lines.
pub struct ScriptedModel {
    config: ScriptedConfig,
    script: Arc<Mutex<VecDeque<Answer>>>,
    requests: Arc<Mutex<Vec<ChatRequest>>>,
}

impl ScriptedModel {
    pub fn new(config: ScriptedConfig) -> Self {
        Self { config, script: Arc::default(), requests: Arc::default() }
    }

    pub fn with_steps(config: ScriptedConfig, steps: impl IntoIterator<Item = Answer>) -> Self {
        Self { config, script: Arc::new(Mutex::new(steps.into_iter().collect())), requests: Arc::default() }
    }

    /// The newest requests (at most 64), for a test to look at.
    pub fn requests(&self) -> Vec<ChatRequest> {
        self.requests.lock().expect("no panic while the list is held").clone()
    }
}

impl LanguageModel for ScriptedModel {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn reply(&self, request: ChatRequest) -> ReplyStream {
        let turns = request.messages.iter().filter(|m| matches!(m, Message::User { .. })).count();
        let step = self.script.lock().expect("no panic while the script is held").pop_front();
        let step = step.unwrap_or_else(|| Answer::Text(nth_or_last(&self.config.answers, turns.saturating_sub(1))));
        {
            let mut requests = self.requests.lock().expect("no panic while the list is held");
            if requests.len() == 64 {
                requests.remove(0);
            }
            requests.push(request);
        }
        let (stream, events, cancel) = ReplyStream::new();
        let (first, gap) =
            (Duration::from_millis(self.config.first_token_ms), Duration::from_millis(self.config.token_ms));
        tokio::spawn(cancel.run_until_cancelled_owned(async move {
            tokio::time::sleep(first).await;
            let error = LlmError::Engine { engine: "scripted", status: None, detail: "as the script says".into() };
            let (text, then) = match step {
                Answer::Hangs => return std::future::pending().await,
                Answer::Fails => (String::new(), Err(error)),
                Answer::Breaks(text) => (text, Err(error)),
                Answer::Text(text) => (text, Ok(Finish::Stop)),
                Answer::Tool { name, arguments } => {
                    let call = ToolCall { id: format!("call_{turns}_{name}"), name, arguments };
                    let _ = events.send(Ok(LlmEvent::ToolCall(call))).await;
                    (String::new(), Ok(Finish::ToolCalls))
                }
            };
            for (n, word) in text.split_inclusive(' ').enumerate() {
                if n > 0 {
                    tokio::time::sleep(gap).await;
                }
                if events.send(Ok(LlmEvent::Text(word.into()))).await.is_err() {
                    return;
                }
            }
            let _ = events.send(then.map(|finish| LlmEvent::Done { finish })).await;
        }));
        stream
    }
}

fn nth_or_last(lines: &[String], n: usize) -> String {
    lines.get(n).or(lines.last()).cloned().unwrap_or_default()
}
