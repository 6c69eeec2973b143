//! Builds everything from the configuration, runs it, and drains it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::agent::tools::ToolRegistry;
use crate::call::engines::Engines;
use crate::call::recorder::Archive;
use crate::call::registry::{CallSetup, Calls, Refused};
use crate::config::Config;
use crate::http::router::{self, AppState, ServerUrls, TakesCalls};
use crate::speech::llm::LanguageModel;
use crate::speech::llm::openai::OpenAiLlm;
use crate::speech::scripted::{ScriptedModel, ScriptedSynthesizer, ScriptedTranscriber};
use crate::speech::stt::Transcriber;
use crate::speech::stt::google::GoogleStt;
use crate::speech::stt::openai::OpenAiStt;
use crate::speech::tts::Synthesizer;
use crate::speech::tts::cache::CachedSynthesizer;
use crate::speech::tts::espeak::Espeak;
use crate::speech::tts::openai::OpenAiTts;
use crate::store::directory::Directory;
use crate::telemetry;
use crate::transport::leg::Leg;

/// A server that runs. Dropping it without `stop` leaves its calls to the process's end.
pub struct App {
    pub calls: Calls,
    pub address: SocketAddr,
    shutdown: CancellationToken,
    server: tokio::task::JoinHandle<anyhow::Result<()>>,
    archive: JoinHandle<()>,
    drain: Duration,
}
