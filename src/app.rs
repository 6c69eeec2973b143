//! Builds everything from the configuration, runs it, and drains it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::agent::tools::ToolRegistry;
use crate::agent::tools::fetch::{Authorities, Fetcher};
use crate::agent::tools::mcp::Commands;
use crate::agent::tools::reach::Reach;
use crate::call::analysis::Analyst;
use crate::call::budget::Budgets;
use crate::call::company_tools::MadeTools;
use crate::call::deliveries::Deliveries;
use crate::call::desk::Desk;
use crate::call::engines::Engines;
use crate::call::recorder::Archive;
use crate::call::registry::Calls;
use crate::call::sip::{SipLines, SipSide};
use crate::config::Config;
use crate::http::api::ApiState;
use crate::http::auth::{SetupLink, Token};
use crate::http::config::{ServerUrls, TrustedProxies};
use crate::http::router::{self, AppState};
use crate::http::tokens::MediaTokens;
use crate::http::webhooks::Door;
use crate::speech::llm::LanguageModel;
use crate::speech::llm::openai::OpenAiLlm;
use crate::speech::scripted::{ScriptedModel, ScriptedSynthesizer, ScriptedTranscriber};
use crate::speech::stt::Transcriber;
use crate::speech::stt::fallback::{Fallback, FallbackConfig};
use crate::speech::stt::google::GoogleStt;
use crate::speech::stt::openai::OpenAiStt;
use crate::speech::tts::Synthesizer;
use crate::speech::tts::cache::{CacheConfig, CachedSynthesizer};
use crate::speech::tts::espeak::Espeak;
use crate::speech::tts::fallback::{FallbackSynthesizer, TtsFallbackConfig};
use crate::speech::tts::openai::OpenAiTts;
use crate::speech::{stt, tts};
use crate::store::Store;
use crate::store::directory::Directory;
use crate::store::knowledge::KnowledgeBases;
use crate::store::ledger::Ledger;
use crate::telemetry;
use crate::transport::rtp_udp::ports::RtpPorts;

/// A server that runs. `stop` drains it.
pub struct App {
    pub calls: Calls,
    pub sip: SipLines,
    /// The address really bound, also when the configuration says port 0.
    pub address: SocketAddr,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
    upkeep: tokio::task::JoinHandle<()>,
    errands: tokio::task::JoinHandle<()>,
    /// What comes after calls: ends when it is closing.
    after: TaskTracker,
    /// Cancelled: take no more calls. Then: take no more connections.
    draining: CancellationToken,
    closing: CancellationToken,
    sockets: TaskTracker,
    archive: JoinHandle<()>,
    drain: Duration,
}

impl App {
    /// Opens the engines that the configuration and the agents name, and listens. Records go to `ledger`.
    pub async fn start(
        config: Config,
        directory: Arc<ArcSwap<Directory>>,
        store: Option<Store>,
        ledger: Ledger,
    ) -> anyhow::Result<Self> {
        let engines = open_engines(&config, &directory.load()).await?;
        Self::open(config, engines, directory, store, None, ledger).await
    }

    /// The same with the API: over `store`, with the link of a first start.
    pub async fn with_api(
        config: Config,
        directory: Arc<ArcSwap<Directory>>,
        store: Store,
        setup: Option<Arc<SetupLink>>,
        ledger: Ledger,
    ) -> anyhow::Result<Self> {
        let engines = open_engines(&config, &directory.load()).await?;
        Self::open(config, engines, directory, Some(store), setup, ledger).await
    }

    /// The same with engines made elsewhere and no store: whole-call tests bring scripted ones.
    pub async fn with_engines(
        config: Config,
        engines: Engines,
        directory: Arc<ArcSwap<Directory>>,
    ) -> anyhow::Result<Self> {
        Self::open(config, engines, directory, None, None, Ledger::none()).await
    }

    /// With engines made elsewhere and a store: tests of companies and providers.
    pub async fn with_store(
        config: Config,
        engines: Engines,
        directory: Arc<ArcSwap<Directory>>,
        store: Store,
        ledger: Ledger,
    ) -> anyhow::Result<Self> {
        Self::open(config, engines, directory, Some(store), None, ledger).await
    }

    async fn open(
        config: Config,
        engines: Engines,
        directory: Arc<ArcSwap<Directory>>,
        store: Option<Store>,
        setup: Option<Arc<SetupLink>>,
        ledger: Ledger,
    ) -> anyhow::Result<Self> {
        if config.telemetry.metrics {
            telemetry::install_metrics()?;
        }
        let listener = TcpListener::bind(config.server.listen)
            .await
            .with_context(|| format!("cannot listen on {} (server.listen)", config.server.listen))?;
        let address = listener.local_addr()?;
        let urls = Arc::new(ServerUrls::new(&config.server, address)?);
        let (archive, thread) = Archive::start(config.recording.clone())
            .with_context(|| format!("cannot write to {} (recording.dir)", config.recording.dir.display()))?;
        let mut tools = ToolRegistry::with_call_tools();
        tools.filler_after = Duration::from_millis(config.tools.filler_after_ms);
        let calls =
            Calls::new(engines, tools, config.turn.clone(), config.limits.clone(), archive, ledger, config.speech.vad);
        let knowledge = store.clone().map(|store| KnowledgeBases::open(store, &config.knowledge));
        let knowledge = knowledge.transpose().context("knowledge.base_url")?;
        if let Some(knowledge) = &knowledge {
            calls.use_library(Arc::new(knowledge.clone()));
        }
        let authorities = Authorities::read(config.tools.ca_file.as_deref()).context("tools.ca_file")?;
        let made = Fetcher::trusting(Reach::new(&config.tools.allow_private), &authorities)
            .context("the client of companies' tools")?;
        let made = MadeTools::new(directory.clone(), made, Commands::new(&config.tools.mcp_commands), store.clone());
        calls.use_company_tools(Arc::new(made.clone()));
        for line in directory.load().lines() {
            if let Err(fault) = calls.can_run(&line.agent) {
                warn!(agent = %line.agent.name, %fault, "a line is answered by an agent that cannot take calls");
            }
        }
        let (draining, closing, sockets) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        sockets.spawn(made.clone().keep(draining.clone()));
        let api_store = store.clone();
        let after = TaskTracker::new();
        if let Some(store) = &store {
            calls.use_contacts(Arc::new(store.clone()));
            let budgets = Budgets::new(store.clone(), directory.clone(), config.prices.clone());
            calls.use_budgets(budgets.clone());
            after.spawn(budgets.run(closing.clone()));
            let deliveries = Deliveries::trusting(store.clone(), (&config.webhooks).into(), &authorities);
            let deliveries = deliveries.context("webhooks")?;
            after.spawn(deliveries.run(closing.clone()));
            after.spawn(Analyst::new(store.clone(), calls.clone()).run(closing.clone()));
        }
        after.close();
        let desk = Desk::new(calls.clone(), directory.clone(), store.clone(), {
            let urls = urls.clone();
            move |path| urls.http(path)
        });
        let rtp = config.sip.rtp();
        let ports = RtpPorts::new(&rtp, rand::random()).context("sip.rtp_ports")?;
        let sip = SipLines::start(
            SipSide { config: config.sip.clone(), rtp, ports },
            desk.clone(),
            calls.clone(),
            store.clone(),
            directory.clone(),
            draining.clone(),
            closing.clone(),
        );
        let door = Door::new(desk, config.security.webhooks_per_minute, config.security.binotel_allow_any);
        let state = AppState {
            calls: Arc::new(calls.clone()),
            directory,
            tokens: Arc::new(MediaTokens::default()),
            urls,
            door: door.clone(),
            proxies: Arc::new(TrustedProxies::new(&config.server)?),
            media: Default::default(),
            render_metrics: Arc::new(telemetry::render),
            draining: draining.clone(),
            sockets: sockets.clone(),
        };
        let router = match api_store {
            None => router::router(state),
            Some(store) => {
                let (urls, proxies) = (state.urls.clone(), state.proxies.clone());
                let (live, outbound) = (Arc::new(calls.clone()), Arc::new(door.desk().clone()));
                let knowledge = knowledge.unwrap_or_else(|| KnowledgeBases::without_vectors(store.clone()));
                sockets.spawn(index_waiting(knowledge.clone(), draining.clone()));
                let api = ApiState {
                    knowledge,
                    fetcher: Some(made.fetcher().clone()),
                    made: Some(made.clone()),
                    admin: config.security.admin_token.as_ref().map(Token::new),
                    setup,
                    sip: Some(sip.clone()),
                    closing: closing.clone(),
                    tasks: sockets.clone(),
                    ..ApiState::new(store, live, outbound, urls, proxies, &config.recording.dir)
                };
                router::with_api(state, api)
            }
        };
        let serving = tokio::spawn(crate::http::serve(listener, router, closing.clone()));
        let upkeep = tokio::spawn(telemetry::upkeep(closing.clone()));
        let reconcile = Duration::from_secs(config.security.reconcile_s);
        let errands = tokio::spawn(run_errands(door, reconcile, closing.clone()));
        let drain = Duration::from_secs(config.server.drain_s);
        Ok(Self {
            calls,
            sip,
            address,
            serving,
            upkeep,
            errands,
            after,
            draining,
            closing,
            sockets,
            archive: thread,
            drain,
        })
    }

    /// Takes no more calls, lets those that run finish within `server.drain_s`, ends the rest, and closes everything.
    pub async fn stop(self) {
        self.draining.cancel();
        self.calls.drain(self.drain).await;
        self.sockets.close();
        let _ = tokio::time::timeout(CLOSE, self.sockets.wait()).await;
        self.closing.cancel();
        self.sip.close(CLOSE).await;
        let _ = tokio::time::timeout(CLOSE, self.serving).await;
        let _ = self.upkeep.await;
        let _ = self.errands.await;
        let _ = tokio::time::timeout(CLOSE, self.after.wait()).await;
        // The last sender of the archive goes with the calls; its thread then ends by itself.
        drop((self.calls, self.sip));
        let archive = self.archive;
        let _ = tokio::time::timeout(CLOSE, tokio::task::spawn_blocking(move || archive.join())).await;
    }
}

/// Indexes documents whose process died over them, of this server or another.
async fn index_waiting(knowledge: KnowledgeBases, stop: CancellationToken) {
    let mut round = tokio::time::interval(WAITING);
    let work = async {
        loop {
            round.tick().await;
            match knowledge.waiting().await {
                Ok(documents) => {
                    for document in documents {
                        // What went wrong is in the document's state.
                        let _ = knowledge.index(document).await;
                    }
                }
                Err(fault) => warn!(error = %fault, "documents that wait could not be looked for"),
            }
        }
    };
    stop.run_until_cancelled(work).await;
}

/// A claim of a process that died ends after ten minutes.
const WAITING: Duration = Duration::from_secs(300);

/// Lets events act that failed before or whose process died, until it is told to stop; then waits for those under way.
async fn run_errands(door: Door, reconcile: Duration, stop: CancellationToken) {
    let comparing = tokio::spawn(run_comparing(door.desk().clone(), reconcile, stop.clone()));
    let mut round = tokio::time::interval(ERRANDS);
    let mut rounds = 0u32;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = round.tick() => {}
        }
        door.tidy();
        let _ = door.desk().catch_up().await;
        if rounds.is_multiple_of(ROUNDS_AN_HOUR) {
            door.desk().forget().await;
        }
        rounds += 1;
    }
    let _ = comparing.await;
    door.desk().close(CLOSE).await;
}

/// Compares webhooks with call logs from time to time; what a log says twice is written once, so that stopping in
/// between does no harm.
async fn run_comparing(desk: Desk, every: Duration, stop: CancellationToken) {
    if every.is_zero() {
        return;
    }
    let mut round = tokio::time::interval(every);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let work = async {
            round.tick().await;
            desk.reconcile().await;
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = work => {}
        }
    }
}

/// An event of a process that died acts within so long of the next start.
const ERRANDS: Duration = Duration::from_secs(5);
const ROUNDS_AN_HOUR: u32 = 720;
/// Sockets that do not close by themselves are left to the end of the process after this.
const CLOSE: Duration = Duration::from_secs(5);

/// Engines that are named by the configuration or by an agent must open; the others are there when they can be.
async fn open_engines(config: &Config, directory: &Directory) -> anyhow::Result<Engines> {
    let (stt, tts, llm) = (&config.speech.stt, &config.speech.tts, &config.llm);
    let agents: Vec<_> = directory.lines().map(|line| line.agent.clone()).collect();
    let named =
        |default: &str, fallback: &str, of: &dyn Fn(&crate::agent::profile::AgentProfile) -> &str, name: &str| {
            default == name || fallback == name || agents.iter().any(|agent| of(agent) == name)
        };
    let wants_stt = |name: &str| named(&stt.engine, &stt.fallback, &|agent| &agent.stt.engine, name);

    let mut transcribers: HashMap<String, Arc<dyn Transcriber>> = HashMap::new();
    #[cfg(feature = "whisper")]
    if wants_stt("whisper") {
        let settings = stt.whisper.clone();
        let whisper = tokio::task::spawn_blocking(move || crate::speech::stt::whisper::Whisper::load(&settings))
            .await?
            .context("speech.stt.whisper")?;
        transcribers.insert("whisper".into(), Arc::new(whisper));
    }
    transcribers.insert("openai".into(), Arc::new(OpenAiStt::new(&stt.openai).context("speech.stt.openai")?));
    if wants_stt("google") {
        transcribers.insert("google".into(), Arc::new(GoogleStt::new(&stt.google).context("speech.stt.google")?));
    }
    transcribers.insert("scripted".into(), Arc::new(ScriptedTranscriber::new(config.speech.scripted.clone())));
    if !stt.fallback.is_empty() {
        let second = wanted(&transcribers, "speech.stt.fallback", &stt.fallback)?;
        for (name, first) in &mut transcribers {
            if *name != stt.fallback && wants_stt(name) {
                let both = Fallback::new(first.clone(), second.clone(), &FallbackConfig::default())
                    .with_context(|| format!("speech.stt.fallback = {:?} behind {name:?}", stt.fallback))?;
                *first = Arc::new(both);
            }
        }
    }

    let mut voices: HashMap<String, Arc<dyn Synthesizer>> = HashMap::new();
    voices.insert("espeak".into(), Arc::new(Espeak::new(tts.espeak.clone())));
    voices.insert("openai".into(), Arc::new(OpenAiTts::new(tts.openai.clone()).context("speech.tts.openai")?));
    voices.insert("scripted".into(), Arc::new(ScriptedSynthesizer::new(config.speech.scripted.clone())));
    if !tts.fallback.is_empty() {
        let second = wanted(&voices, "speech.tts.fallback", &tts.fallback)?;
        for (name, first) in &mut voices {
            if *name != tts.fallback {
                let settings = TtsFallbackConfig::default();
                *first = Arc::new(FallbackSynthesizer::new(first.clone(), second.clone(), settings));
            }
        }
    }

    let models = open_models(config)?;
    wanted(&transcribers, "speech.stt.engine", &stt.engine)?;
    wanted(&voices, "speech.tts.engine", &tts.engine)?;
    info!(stt = stt.engine, tts = tts.engine, llm = llm.engine, "engines are open");
    Ok(Engines {
        stt: transcribers,
        tts: voices
            .into_iter()
            .map(|(name, voice)| (name, CachedSynthesizer::new(voice, CacheConfig::default())))
            .collect(),
        llm: models,
        default_stt: stt.engine.clone(),
        default_tts: tts.engine.clone(),
        default_llm: llm.engine.clone(),
        llm_fallback: llm.fallback.clone(),
        workflows: Default::default(),
    })
}

fn open_models(config: &Config) -> anyhow::Result<HashMap<String, Arc<dyn LanguageModel>>> {
    let llm = &config.llm;
    let mut models: HashMap<String, Arc<dyn LanguageModel>> = HashMap::new();
    models.insert("openai".into(), Arc::new(OpenAiLlm::new(llm.openai.clone()).context("llm.openai")?));
    models.insert("scripted".into(), Arc::new(ScriptedModel::new(config.speech.scripted.clone())));
    if !llm.fallback.is_empty() && llm.fallback != "builtin" {
        wanted(&models, "llm.fallback", &llm.fallback)?;
    }
    if llm.engine != "builtin" {
        wanted(&models, "llm.engine", &llm.engine)?;
    }
    Ok(models)
}

/// Engines of agents that only write: the models as they are configured; under the name of whatever hears or speaks
/// stands one that does neither.
pub fn writing_engines(config: &Config) -> anyhow::Result<Engines> {
    let (stt, tts) = (&config.speech.stt.engine, &config.speech.tts.engine);
    let deaf: Arc<dyn Transcriber> = Arc::new(ScriptedTranscriber::new(config.speech.scripted.clone()));
    let mute: Arc<dyn Synthesizer> = Arc::new(ScriptedSynthesizer::new(config.speech.scripted.clone()));
    let mute = CachedSynthesizer::new(mute, CacheConfig::default());
    Ok(Engines {
        stt: stt::ENGINES.iter().map(|name| ((*name).to_owned(), deaf.clone())).collect(),
        tts: tts::ENGINES.iter().map(|name| ((*name).to_owned(), mute.clone())).collect(),
        llm: open_models(config)?,
        default_stt: stt.clone(),
        default_tts: tts.clone(),
        default_llm: config.llm.engine.clone(),
        llm_fallback: config.llm.fallback.clone(),
        workflows: Default::default(),
    })
}

fn wanted<T: Clone>(engines: &HashMap<String, T>, key: &str, name: &str) -> anyhow::Result<T> {
    match engines.get(name) {
        Some(engine) => Ok(engine.clone()),
        None => {
            let mut known: Vec<&str> = engines.keys().map(String::as_str).collect();
            known.sort_unstable();
            bail!("{key} = {name:?} is no engine of this build; there are {}", known.join(", "))
        }
    }
}
