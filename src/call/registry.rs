//! The calls that are running: starting one, finding one, draining them all.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use dashmap::DashMap;
use futures::FutureExt;
use metrics::{counter, gauge};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, error, info_span, warn};
use uuid::Uuid;

use crate::agent::briefing::briefing;
use crate::agent::builtin::Builtin;
use crate::agent::contacts::{Contacts, MAX_CONTACTS, paragraph};
use crate::agent::knowledge::ahead::Ahead;
use crate::agent::knowledge::{Knowledge, Library};
use crate::agent::memory::Memory;
use crate::agent::phrases::Phrases;
use crate::agent::profile::AgentProfile;
use crate::agent::prompt::{self, CallFacts};
use crate::agent::tools::recall_caller::RecallCaller;
use crate::agent::tools::search_knowledge::{self, SearchKnowledge};
use crate::agent::tools::telephone::{self, Telephone};
use crate::agent::tools::{CompanyTools, OF_EVERY_CALL, Tool, ToolBox, ToolRegistry, steps};
use crate::agent::variables::{Fields, Vars};
use crate::call::actor::{Call, Parts};
use crate::call::budget::{Budgets, Meter, MeteredModel};
use crate::call::engines::{CallEngines, EngineError, Engines};
use crate::call::handle::{COMMAND_QUEUE, CallCommand, CallEvent, CallEvents, CallHandle, CallStatus, EVENT_QUEUE};
use crate::call::record::{self, CallRecord};
use crate::call::recorder::Archive;
use crate::call::reply::Voice;
use crate::clock;
use crate::conversation::settings::TurnSettings;
use crate::media::vad::Detector;
use crate::speech::llm::LanguageModel;
use crate::store::ledger::Ledger;
use crate::telephony::{CallEnd, CallId, Direction, EndReason, Party, PhoneNumber};
use crate::transport::leg::Leg;

/// Everything a call needs to know before its first packet.
#[derive(Clone, Debug)]
pub struct CallSetup {
    pub id: CallId,
    pub direction: Direction,
    pub company: String,
    pub company_id: Uuid,
    pub integration: Uuid,
    /// `twilio`, `ringostat`, `binotel`, `sip`.
    pub provider: &'static str,
    /// The provider's own id of the call, e.g. `CA…`.
    pub provider_call: String,
    /// The line of ours that it is on.
    pub line: String,
    pub from: PhoneNumber,
    pub to: PhoneNumber,
    pub agent: Arc<AgentProfile>,
    pub agent_id: Option<Uuid>,
    pub agent_version: Option<i64>,
    /// Why we dialled.
    pub purpose: Option<String>,
    /// What whoever asked for the call gave with it.
    pub vars: Vars,
    /// What its webhook and its INVITE told.
    pub fields: Fields,
}

impl CallSetup {
    /// The person that the agent talks with, whoever dialled.
    pub fn peer(&self) -> &PhoneNumber {
        match self.direction {
            Direction::Inbound => &self.from,
            Direction::Outbound => &self.to,
        }
    }

    /// Our number on the call.
    pub fn own(&self) -> &PhoneNumber {
        match self.direction {
            Direction::Inbound => &self.to,
            Direction::Outbound => &self.from,
        }
    }
}

/// Why a call was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the server is draining")]
    Draining,
    #[error("limits.max_calls is reached")]
    Full,
    /// The agent names an engine or a tool that is not configured; the log says which.
    #[error("the agent is not set up for calls")]
    NotSetUp,
    #[error("the company has used up its budget of the day")]
    OverBudget,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Calls at once; one more is refused as busy. A call costs about 1 MB and 0.3 % of a core without local models.
    pub max_calls: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self { max_calls: 500 }
    }
}

/// A call's record, shared between its task and the supervisor that closes it if the task panics.
#[derive(Clone)]
pub(crate) struct SharedRecord(Arc<Mutex<CallRecord>>);

impl SharedRecord {
    /// Short: never held across an await. A record is plain data, so a poisoned one is still good.
    pub(crate) fn lock(&self) -> MutexGuard<'_, CallRecord> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running calls. Cheap to clone.
#[derive(Clone)]
pub struct Calls {
    inner: Arc<Inner>,
}

/// Who gives agents the telephone of their company.
pub trait Exchange: Send + Sync {
    fn telephone(self: Arc<Self>, company: Uuid) -> Option<Arc<dyn Telephone>>;
}

/// Puts stand-ins in the place of an agent's tools: a rehearsal must not ring or write to anybody.
pub trait StandIns: Send + Sync {
    fn replace(&self, agent: &AgentProfile, tools: ToolBox) -> ToolBox;
}

/// A call that is over, as far as its provider may ask about it.
#[derive(Clone, Debug)]
pub struct Over {
    pub integration: Uuid,
    pub line: String,
    pub agent: Arc<AgentProfile>,
    pub end: CallEnd,
    /// The caller asked for a person: what such a person is to know.
    pub handover: Option<String>,
}

/// The last calls that are over, the oldest first. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct LastCalls(Arc<Mutex<VecDeque<(CallId, Over)>>>);

impl LastCalls {
    /// Said before the leg hangs up: the provider asks as soon as it does.
    pub(crate) fn note(&self, setup: &CallSetup, end: CallEnd, record: &CallRecord) {
        let (integration, line, agent) = (setup.integration, setup.line.clone(), setup.agent.clone());
        let told = |reason: &String| briefing(&agent.language, setup.peer(), reason, &record.remembered);
        let handover = record.handover.as_ref().map(told);
        let mut over = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if over.len() == LAST_CALLS {
            over.pop_front();
        }
        over.push_back((setup.id, Over { integration, line, agent, end, handover }));
    }

    fn find(&self, id: CallId) -> Option<Over> {
        let over = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        over.iter().rev().find(|(call, _)| *call == id).map(|(_, over)| over.clone())
    }
}

/// A provider asks within a second of the end; at 100 calls a second these are ten seconds.
const LAST_CALLS: usize = 1024;

struct Inner {
    engines: Engines,
    tools: ToolRegistry,
    settings: TurnSettings,
    limits: LimitsConfig,
    archive: Archive,
    ledger: Ledger,
    detector: Detector,
    events: CallEvents,
    running: DashMap<CallId, CallHandle>,
    /// Calls that we make by SIP and that nobody has answered.
    ringing: DashMap<CallId, CancellationToken>,
    over: LastCalls,
    exchange: OnceLock<Weak<dyn Exchange>>,
    library: OnceLock<Arc<dyn Library>>,
    company_tools: OnceLock<Arc<dyn CompanyTools>>,
    stand_ins: OnceLock<Arc<dyn StandIns>>,
    contacts: OnceLock<Arc<dyn Contacts>>,
    budgets: OnceLock<Budgets>,
    draining: AtomicBool,
    drained: CancellationToken,
    tasks: TaskTracker,
}

impl Inner {
    /// The documents that the agent may look into, where it has any.
    fn knowledge(&self, agent: &AgentProfile, company: Uuid) -> Option<Arc<dyn Knowledge>> {
        let library = self.library.get().filter(|_| !agent.knowledge.is_empty())?;
        Some(library.of(company, &agent.knowledge))
    }

    /// The agent's tools, and those that every call has. Of the telephone's tools, an agent gets those that its
    /// company's integrations make possible; the others are left out, since integrations come and go. So do the tools
    /// that a company made: `crm.*` stands for all of a server.
    fn tool_box(
        &self,
        agent: &AgentProfile,
        company: Uuid,
        builtin: Option<&Builtin>,
        knowledge: Option<Arc<dyn Knowledge>>,
    ) -> Result<ToolBox, String> {
        let mut registry = self.tools.clone();
        let own: Vec<Arc<dyn Tool>> = builtin.map(Builtin::tools).unwrap_or_default();
        let exchange = self.exchange.get().and_then(Weak::upgrade);
        if let Some(telephone) = exchange.and_then(|exchange| exchange.telephone(company)) {
            telephone::provision(&telephone, &mut registry);
        }
        if let Some(tools) = self.company_tools.get() {
            tools.provision(company, &mut registry);
        }
        let mut names: Vec<&str> = agent.tools.iter().map(String::as_str).collect();
        names.extend(OF_EVERY_CALL.iter().filter(|name| !agent.tools.iter().any(|tool| tool == *name)));
        if let Some(knowledge) = knowledge {
            registry.add(Arc::new(SearchKnowledge { knowledge, language: agent.language.clone() }));
            if !names.contains(&search_knowledge::NAME) {
                names.push(search_knowledge::NAME);
            }
        }
        for tool in own {
            registry.add(tool);
        }
        names.extend(steps::NAMES.iter().filter(|_| builtin.is_some_and(Builtin::asks_model)));
        if let Some(contacts) = self.contacts.get() {
            registry.add(Arc::new(RecallCaller { contacts: contacts.clone(), company }));
        }
        let there: Vec<&str> = registry.names().collect();
        let of_servers = names.iter().filter_map(|name| name.strip_suffix('*').filter(|name| name.ends_with('.')));
        let of_servers: Vec<&str> =
            of_servers.flat_map(|server| there.iter().copied().filter(move |name| name.starts_with(server))).collect();
        names.extend(of_servers);
        names.retain(|name| {
            let is_there = there.contains(name);
            if !is_there && !telephone::NAMES.contains(name) && !name.ends_with(".*") {
                debug!(tool = name, agent = %agent.name, "the agent's tool is not there");
            }
            is_there
        });
        let tools = ToolBox::new(names, &registry).map_err(|error| error.to_string())?;
        Ok(match self.stand_ins.get() {
            Some(stand_ins) => stand_ins.replace(agent, tools),
            None => tools,
        })
    }
}

impl Calls {
    pub fn new(
        engines: Engines,
        tools: ToolRegistry,
        settings: TurnSettings,
        limits: LimitsConfig,
        archive: Archive,
        ledger: Ledger,
        detector: Detector,
    ) -> Self {
        let (events, _) = broadcast::channel(EVENT_QUEUE);
        Self {
            inner: Arc::new(Inner {
                engines,
                tools,
                settings,
                limits,
                archive,
                ledger,
                detector,
                events,
                running: DashMap::new(),
                ringing: DashMap::new(),
                over: LastCalls::default(),
                exchange: OnceLock::new(),
                library: OnceLock::new(),
                company_tools: OnceLock::new(),
                stand_ins: OnceLock::new(),
                contacts: OnceLock::new(),
                budgets: OnceLock::new(),
                draining: AtomicBool::new(false),
                drained: CancellationToken::new(),
                tasks: TaskTracker::new(),
            }),
        }
    }

    /// Whether a call would be taken now: not draining, below `limits.max_calls`, and its record could be kept.
    pub fn ready(&self) -> Result<(), Refused> {
        if self.inner.draining.load(Ordering::Acquire) {
            Err(Refused::Draining)
        } else if self.inner.running.len() >= self.inner.limits.max_calls || self.inner.ledger.is_full() {
            Err(Refused::Full)
        } else {
            Ok(())
        }
    }

    /// Whether this agent can take calls: its engines, workflow and tools are there.
    pub fn can_run(&self, agent: &AgentProfile) -> Result<(), String> {
        let engines = self.inner.engines.for_agent(agent, Value::Null).map_err(|error| error.to_string())?;
        let knowledge = self.inner.knowledge(agent, Uuid::nil());
        self.inner.tool_box(agent, Uuid::nil(), engines.builtin.as_deref(), knowledge)?;
        Ok(())
    }

    /// Where agents get their telephone tools from; said once.
    pub fn use_exchange(&self, exchange: Weak<dyn Exchange>) {
        let _ = self.inner.exchange.set(exchange);
    }

    /// Where agents get the tools that their company made; said once.
    pub fn use_company_tools(&self, tools: Arc<dyn CompanyTools>) {
        let _ = self.inner.company_tools.set(tools);
    }

    /// Where agents look things up; said once.
    pub fn use_library(&self, library: Arc<dyn Library>) {
        let _ = self.inner.library.set(library);
    }

    /// What agents get in place of some tools; said once.
    pub fn use_stand_ins(&self, stand_ins: Arc<dyn StandIns>) {
        let _ = self.inner.stand_ins.set(stand_ins);
    }

    /// The engines that a call of this agent would have.
    pub fn engines(&self, agent: &AgentProfile, facts: &CallFacts) -> Result<CallEngines, EngineError> {
        self.inner.engines.for_agent(agent, facts.as_variables())
    }

    /// What agents remember of numbers; said once.
    pub fn use_contacts(&self, contacts: Arc<dyn Contacts>) {
        let _ = self.inner.contacts.set(contacts);
    }

    /// Looks up the last contacts with the number on the line, beside the call: the greeting never waits for it, and what
    /// is not there in time is left out.
    fn past(&self, setup: &CallSetup) -> Option<oneshot::Receiver<String>> {
        let contacts = self.inner.contacts.get().filter(|_| setup.agent.recall)?;
        let past = contacts.past(setup.company_id, setup.peer(), setup.id, MAX_CONTACTS);
        let (told, past_told) = oneshot::channel();
        self.inner.tasks.spawn(async move {
            match tokio::time::timeout(PAST_LIMIT, past).await {
                Ok(Ok(past)) => drop(paragraph(&past).map(|note| told.send(note))),
                Ok(Err(fault)) => warn!(%fault, "earlier contacts could not be looked up"),
                Err(_) => warn!("earlier contacts were not found in time; the agent does without"),
            }
        });
        Some(past_told)
    }

    /// What an agent needs to answer in writing.
    pub fn writer(
        &self,
        agent: &AgentProfile,
        company: Uuid,
        facts: &CallFacts,
    ) -> Result<(Arc<dyn LanguageModel>, ToolBox, TurnSettings), Refused> {
        let refuse = |what: String| {
            error!(agent = %agent.name, fault = %what, "the agent cannot write");
            Refused::NotSetUp
        };
        let engines = self.inner.engines.for_agent(agent, facts.as_variables());
        let engines = engines.map_err(|error| refuse(error.to_string()))?;
        let knowledge = self.inner.knowledge(agent, company);
        let tools = self.inner.tool_box(agent, company, engines.builtin.as_deref(), knowledge).map_err(refuse)?;
        let budgets = self.inner.budgets.get();
        if budgets.is_some_and(|budgets| budgets.is_spent(company)) {
            return Err(Refused::OverBudget);
        }
        let meter = budgets.filter(|_| engines.asks_model()).map(|budgets| budgets.meter(company, agent));
        let model = metered(engines.llm, meter.as_ref());
        Ok((model, tools, self.inner.settings.with(&agent.turn)))
    }

    /// The model that can say what came of this agent's calls, where there is one and its company's day allows it.
    pub fn analyst(&self, company: Uuid, agent: &AgentProfile) -> Option<Arc<dyn LanguageModel>> {
        let model = self.inner.engines.analyst(agent)?;
        match self.inner.budgets.get() {
            Some(budgets) if budgets.is_spent(company) => None,
            budgets => Some(metered(model, budgets.map(|budgets| budgets.meter(company, agent)).as_ref())),
        }
    }

    /// Where what calls use is counted; said once.
    pub fn use_budgets(&self, budgets: Budgets) {
        let _ = self.inner.budgets.set(budgets);
    }

    /// How this agent speaks, for words that are said beside its call.
    pub fn voice(&self, agent: &AgentProfile) -> Result<Voice, Refused> {
        let engines = self.inner.engines.for_agent(agent, Value::Null).map_err(|error| {
            error!(agent = %agent.name, %error, "the agent cannot speak");
            Refused::NotSetUp
        })?;
        Ok(Voice::of(agent, &engines))
    }

    /// The longest that a call of this agent may last, in seconds; four hours where there is no limit.
    pub fn longest_call_s(&self, agent: &AgentProfile) -> u32 {
        match self.inner.settings.with(&agent.turn).max_call_ms {
            0 => 4 * 3600,
            // The goodbye is part of the call.
            ms => u32::try_from(ms / 1000).unwrap_or(u32::MAX).saturating_add(30),
        }
    }

    /// What became of a call that has just ended.
    pub fn over(&self, id: CallId) -> Option<Over> {
        self.inner.over.find(id)
    }

    /// Writes down a call that is about to be answered, and waits a moment for the disk: whoever is told to connect a
    /// call has its record. A store that stands still holds up nobody; the record waits in memory.
    pub async fn offer(&self, setup: &CallSetup) {
        let record = record::offered(setup);
        self.inner.ledger.offer(record.clone());
        if self.inner.ledger.flush(OFFER_WAIT).await {
            return;
        }
        match self.inner.archive.keep(&record).await {
            Ok(file) => {
                warn!(call = %setup.id, "the store is slow: the call is answered with its record in a file");
                let ledger = self.inner.ledger.clone();
                self.inner.tasks.spawn(async move {
                    if ledger.flush(KEPT_LIFE).await {
                        let _ = tokio::fs::remove_file(file).await;
                    }
                });
            }
            Err(fault) => {
                error!(call = %setup.id, %fault, "the store is slow and recording.dir takes no file: until the store is back, the call's record is in memory only");
            }
        }
    }

    /// Starts the call's task; the leg's packets must be flowing or about to.
    pub fn start(&self, setup: CallSetup, leg: Leg) -> Result<CallHandle, Refused> {
        self.ready()?;
        let inner = &self.inner;
        let budgets = inner.budgets.get();
        let spent = budgets.is_some_and(|budgets| budgets.is_spent(setup.company_id));
        let setup = if spent { excused(setup) } else { setup };
        let refuse = |what: String| {
            error!(call = %setup.id, agent = %setup.agent.name, fault = %what, "call refused");
            Refused::NotSetUp
        };
        let facts = CallFacts {
            company: setup.company.clone(),
            direction: setup.direction,
            caller: setup.peer().clone(),
            line: setup.own().clone(),
            purpose: setup.purpose.clone().unwrap_or_default(),
            vars: setup.vars.clone(),
            fields: setup.fields.clone(),
            began: clock::local_now(),
        };
        let engines = inner.engines.for_agent(&setup.agent, facts.as_variables());
        let mut engines = engines.map_err(|error| refuse(error.to_string()))?;
        let knowledge = inner.knowledge(&setup.agent, setup.company_id);
        let ahead = knowledge.map(|documents| Ahead::new(documents, &setup.agent.language, search_knowledge::PASSAGES));
        let knowledge = ahead.clone().map(|ahead| Arc::new(ahead) as Arc<dyn Knowledge>);
        let tools = inner.tool_box(&setup.agent, setup.company_id, engines.builtin.as_deref(), knowledge);
        let tools = tools.map_err(refuse)?;
        let meter = budgets.map(|budgets| budgets.meter(setup.company_id, &setup.agent));
        if engines.asks_model() {
            engines.llm = metered(engines.llm, meter.as_ref());
        }
        let start = tokio::time::Instant::now().into_std();
        let first = CallRecord { recorded: inner.archive.records_sound(), ..record::answered(&setup) };
        let record = SharedRecord(Arc::new(Mutex::new(first)));
        let (commands_tx, commands) = mpsc::channel(COMMAND_QUEUE);
        let (status, watch) = watch::channel(CallStatus::Talking);
        let hangup = CancellationToken::new();
        let id = setup.id;
        let call = Call::new(Parts {
            memory: Memory::new(prompt::system_prompt(&setup.agent, &facts)),
            settings: inner.settings.with(&setup.agent.turn),
            leg,
            engines,
            tools: Arc::new(tools),
            ahead,
            recorder: inner.archive.recorder(id, start),
            ledger: inner.ledger.clone(),
            over: inner.over.clone(),
            record: record.clone(),
            events: inner.events.clone(),
            commands,
            hangup: hangup.clone(),
            drained: inner.drained.clone(),
            start,
            detector: inner.detector,
            past: self.past(&setup),
            meter,
            spent,
            setup: setup.clone(),
        })
        .map_err(|error| refuse(error.to_string()))?;
        let handle = CallHandle { id, commands: commands_tx, status: watch, hangup };
        inner.running.insert(id, handle.clone());
        gauge!("offhook_calls_active").increment(1);
        let span = info_span!("call", call_id = %id, leg = setup.provider);
        let this = self.clone();
        inner.tasks.spawn(async move { this.supervise(call, record, status, setup).await }.instrument(span));
        Ok(handle)
    }

    /// Runs the call and closes its books, whatever happens in it.
    async fn supervise(&self, call: Call, record: SharedRecord, status: watch::Sender<CallStatus>, setup: CallSetup) {
        let id = setup.id;
        let end = match AssertUnwindSafe(call.run()).catch_unwind().await {
            Ok(end) => end,
            Err(_) => {
                let end = CallEnd::new(Party::System, EndReason::Panicked);
                error!("a call's task panicked; the call is over, the others go on");
                {
                    let mut record = record.lock();
                    self.inner.over.note(&setup, end, &record);
                    record.close(clock::now(), end);
                    self.inner.ledger.note(record.clone());
                    self.inner.archive.recorder(id, tokio::time::Instant::now().into_std()).record(&record);
                }
                let _ = self.inner.events.send(CallEvent::Ended { call: id, end });
                end
            }
        };
        self.inner.running.remove(&id);
        gauge!("offhook_calls_active").decrement(1);
        counter!("offhook_call_end_total", "by" => end.by.label(), "reason" => end.reason.label()).increment(1);
        status.send_replace(CallStatus::Ended(end));
    }

    pub fn active(&self) -> usize {
        self.inner.running.len()
    }

    /// A call that we make and that is not answered yet; `hang_up` cancels the token.
    pub fn rings(&self, id: CallId) -> CancellationToken {
        let token = CancellationToken::new();
        self.inner.ringing.insert(id, token.clone());
        token
    }

    /// It was answered, or nobody will.
    pub fn rings_no_more(&self, id: CallId) {
        self.inner.ringing.remove(&id);
    }

    /// Ends a call that runs or rings here. `false`: none does.
    pub fn hang_up(&self, id: CallId) -> bool {
        match (self.find(id), self.inner.ringing.get(&id)) {
            (Some(handle), _) => handle.hang_up(),
            (None, Some(ringing)) => ringing.cancel(),
            (None, None) => return false,
        }
        true
    }

    pub fn find(&self, id: CallId) -> Option<CallHandle> {
        self.inner.running.get(&id).map(|handle| handle.clone())
    }

    /// What happens on all calls, from now on.
    pub fn events(&self) -> broadcast::Receiver<CallEvent> {
        self.inner.events.subscribe()
    }

    /// Takes no more calls, lets those that run finish until `grace` is over (asking them to wind up a little before),
    /// ends the rest, and waits for them.
    pub async fn drain(&self, grace: Duration) {
        self.inner.draining.store(true, Ordering::Release);
        self.inner.tasks.close();
        let goodbye = GOODBYE.min(grace / 2);
        if tokio::time::timeout(grace - goodbye, self.inner.tasks.wait()).await.is_ok() {
            return;
        }
        for handle in &self.inner.running {
            handle.command(CallCommand::WindDown);
        }
        if tokio::time::timeout(goodbye, self.inner.tasks.wait()).await.is_err() {
            warn!(calls = self.active(), "ending the calls that are left");
            self.inner.drained.cancel();
            let _ = tokio::time::timeout(LAST, self.inner.tasks.wait()).await;
        }
    }
}

/// The model, with its tokens counted where somebody counts.
fn metered(model: Arc<dyn LanguageModel>, meter: Option<&Meter>) -> Arc<dyn LanguageModel> {
    match meter {
        Some(meter) => Arc::new(MeteredModel { model, meter: meter.clone() }),
        None => model,
    }
}

/// Of a company that has used up its day: its agent says that it cannot help now, and hangs up.
fn excused(mut setup: CallSetup) -> CallSetup {
    let agent = Arc::make_mut(&mut setup.agent);
    agent.greeting = Phrases::of(&agent.language).trouble.to_owned();
    setup
}

/// Most of what a provider may wait for the answer to an incoming call (200 ms).
const OFFER_WAIT: Duration = Duration::from_millis(150);
/// A file whose record the store has not taken by then is left for the next start.
const KEPT_LIFE: Duration = Duration::from_secs(3600);
/// Earlier contacts that are not found by then are left out of the prompt.
const PAST_LIMIT: Duration = Duration::from_millis(100);
/// Enough for a spoken goodbye.
const GOODBYE: Duration = Duration::from_secs(8);
/// A cancelled call closes its files within this.
const LAST: Duration = Duration::from_secs(5);
