//! What `offhook check` tries of the engines: each one that the configuration names, opened as a call would.

use std::sync::Arc;
use std::time::Duration;

use crate::cli::check::{Failure, Probe};
use crate::config::Config;
use crate::speech::llm::openai::OpenAiLlm;
use crate::speech::llm::{ChatRequest, LanguageModel, Message};
use crate::speech::stt::openai::OpenAiStt;
use crate::speech::stt::{SttEvent, SttInput, SttRequest, Take, Transcriber, UtteranceId};
use crate::speech::tts::espeak::Espeak;
use crate::speech::tts::openai::OpenAiTts;
use crate::speech::tts::{SpeechRequest, Synthesizer};
use crate::store::knowledge::embeddings::{Embedder, KnowledgeConfig};

/// An engine that gives nothing for so long is reported as failed.
const LIMIT: Duration = Duration::from_secs(15);

pub fn engines(config: &Config) -> Vec<Probe> {
    let (stt, tts, llm) = (&config.speech.stt, &config.speech.tts, &config.llm);
    let mut probes = Vec::new();
    for name in named(&stt.engine, &stt.fallback) {
        probes.push(Probe::new(format!("speech.stt {name}"), hears(name, config.clone())));
    }
    for name in named(&tts.engine, &tts.fallback) {
        probes.push(Probe::new(format!("speech.tts {name}"), speaks(name, config.clone())));
    }
    for name in named(&llm.engine, &llm.fallback) {
        probes.push(Probe::new(format!("llm {name}"), answers(name, config.clone())));
    }
    if !config.knowledge.base_url.is_empty() {
        probes.push(Probe::new("knowledge", embeds(config.knowledge.clone())));
    }
    probes
}

/// One word becomes a vector.
async fn embeds(config: KnowledgeConfig) -> Result<String, Failure> {
    let embedder = Embedder::new(&config).map_err(|e| Failure::new(e.to_string(), "see base_url in [knowledge]"))?;
    let Some(embedder) = embedder else { return Ok("full text alone".into()) };
    let asked = tokio::time::Instant::now();
    let vectors = embedder.passages(&["hello"]).await;
    let vectors = vectors.map_err(|e| Failure::new(e.to_string(), "lookups go by full text alone until it answers"))?;
    let numbers = vectors.first().map_or(0, Vec::len);
    Ok(format!("{}: vectors of {numbers} after {} ms", embedder.model(), asked.elapsed().as_millis()))
}

fn named(engine: &str, fallback: &str) -> Vec<String> {
    let mut names = vec![engine.to_owned(), fallback.to_owned()];
    names.retain(|name| !name.is_empty());
    names.dedup();
    names
}

fn unknown(key: &str) -> Failure {
    Failure::new("no such engine in this build", format!("see the engines of {key} in offhook.example.toml"))
}

/// A second of silence goes to recognition and must come back as no words.
async fn hears(name: String, config: Config) -> Result<String, Failure> {
    let engine: Arc<dyn Transcriber> = match name.as_str() {
        #[cfg(feature = "whisper")]
        "whisper" => {
            let settings = config.speech.stt.whisper.clone();
            let loaded =
                tokio::task::spawn_blocking(move || crate::speech::stt::whisper::Whisper::load(&settings)).await;
            match loaded {
                Ok(Ok(whisper)) => Arc::new(whisper),
                Ok(Err(error)) => return Err(Failure::new(error.to_string(), "")),
                Err(error) => return Err(Failure::new(error.to_string(), "")),
            }
        }
        "openai" => Arc::new(OpenAiStt::new(&config.speech.stt.openai).map_err(|e| Failure::new(e.to_string(), ""))?),
        "google" => Arc::new(
            crate::speech::stt::google::GoogleStt::new(&config.speech.stt.google)
                .map_err(|e| Failure::new(e.to_string(), ""))?,
        ),
        "scripted" => return Ok("follows a script".into()),
        _ => return Err(unknown("speech.stt")),
    };
    let mut session = engine.open(SttRequest { language: "en".into(), hints: Vec::new() });
    let utterance = UtteranceId(1);
    let silence = vec![0; engine.rate().frame_len()];
    let mut inputs = vec![SttInput::Begin { utterance }];
    for _ in 0..50 {
        inputs.extend(crate::speech::stt::AudioChunk::new(&silence).map(SttInput::Audio));
    }
    inputs.push(SttInput::Transcribe { utterance, take: 1, kind: Take::Final });
    for input in inputs {
        session.input.send(input).await.map_err(|_| Failure::new("the engine closed its session", ""))?;
    }
    let answer = async {
        loop {
            match session.events.recv().await {
                Some(SttEvent::Final { engine_time, .. }) => {
                    return Ok(format!("a second of silence judged in {} ms", engine_time.as_millis()));
                }
                Some(SttEvent::Failed { error, .. }) => return Err(Failure::new(error.to_string(), "")),
                Some(_) => {}
                None => return Err(Failure::new("the engine closed its session", "")),
            }
        }
    };
    tokio::time::timeout(LIMIT, answer).await.unwrap_or_else(|_| Err(Failure::new("no answer in 15 s", "")))
}

/// One word is spoken.
async fn speaks(name: String, config: Config) -> Result<String, Failure> {
    let engine: Arc<dyn Synthesizer> = match name.as_str() {
        "espeak" => Arc::new(Espeak::new(config.speech.tts.espeak.clone())),
        "openai" => {
            Arc::new(OpenAiTts::new(config.speech.tts.openai.clone()).map_err(|e| Failure::new(e.to_string(), ""))?)
        }
        "scripted" => return Ok("plays tones".into()),
        _ => return Err(unknown("speech.tts")),
    };
    let request = SpeechRequest { text: "Hello.".into(), language: "en".into(), voice: String::new(), speed: 1.0 };
    let asked = tokio::time::Instant::now();
    let mut speech = engine.speak(request);
    let first = tokio::time::timeout(LIMIT, speech.next()).await;
    match first {
        Ok(Some(Ok(_))) => Ok(format!("first sound after {} ms", asked.elapsed().as_millis())),
        Ok(Some(Err(error))) => Err(Failure::new(error.to_string(), "")),
        Ok(None) => Err(Failure::new("no sound", "")),
        Err(_) => Err(Failure::new("no sound in 15 s", "")),
    }
}

/// One short answer is asked for.
async fn answers(name: String, config: Config) -> Result<String, Failure> {
    let engine = match name.as_str() {
        "openai" => OpenAiLlm::new(config.llm.openai.clone()).map_err(|e| Failure::new(e.to_string(), ""))?,
        "builtin" => return Ok("needs no server; answers from the agents' workflows".into()),
        "scripted" => return Ok("follows a script".into()),
        _ => return Err(unknown("llm")),
    };
    let request = ChatRequest {
        messages: vec![Message::User { content: "Say OK.".into() }],
        max_tokens: Some(8),
        ..ChatRequest::default()
    };
    let asked = tokio::time::Instant::now();
    let mut answer = engine.reply(request);
    match tokio::time::timeout(LIMIT, answer.next()).await {
        Ok(Some(Ok(_))) => Ok(format!("first token after {} ms", asked.elapsed().as_millis())),
        Ok(Some(Err(error))) => Err(Failure::new(error.to_string(), "")),
        Ok(None) => Err(Failure::new("no answer", "")),
        Err(_) => Err(Failure::new("no answer in 15 s", "")),
    }
}
