//! An agent that is tried without a phone: where it is found (a set-up file, a workflow file, the store), what it works
//! with, and a conversation in writing with it. The same engines, memory and tool loop as in a thread of messages; the
//! rules of a call for what is heard of an answer, for silence, and for the end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use crate::agent::builtin::Builtin;
use crate::agent::memory::Memory;
use crate::agent::phrases::Phrases;
use crate::agent::profile::{AgentProfile, ModelChoice};
use crate::agent::prompt::{self, CallFacts};
use crate::agent::tools::{CallEffect, ToolBox, ToolContext, ToolRegistry};
use crate::agent::walk::Progress;
use crate::agent::workflow::Workflow;
use crate::app;
use crate::call::desk::Desk;
use crate::call::recorder::{Archive, RecordingConfig};
use crate::call::registry::Calls;
use crate::call::thread::{self, Telling, WriteError, Written};
use crate::clock;
use crate::config::Config;
use crate::conversation::settings::TurnSettings;
use crate::eval::props::Props;
use crate::eval::scenario::{After, Facts};
use crate::speech::llm::{LanguageModel, ToolSpec};

use crate::store::knowledge::KnowledgeBases;
use crate::store::ledger::Ledger;
use crate::store::setup::Setup;
use crate::store::{ApplyOptions, MAX_PAGE, Part, Store, StoreConfig};
use crate::telephony::{CallId, Direction};

/// Speech that a letter takes, about 160 words a minute: what the clock of a conversation in writing counts.
pub const CHAR_MS: u64 = 60;
/// Companies and agents of a store that are looked through for a name.
const MAX_LOOKED_THROUGH: usize = 10_000;

/// An agent and whose it is.
#[derive(Clone, Debug)]
pub struct Cast {
    pub profile: Arc<AgentProfile>,
    pub company: String,
    pub company_id: Uuid,
}

/// What a set-up file or a store holds of agents, opened.
pub struct Stage {
    pub calls: Calls,
    pub knowledge: Option<KnowledgeBases>,
    agents: Vec<Cast>,
    /// Where the agents come from, for messages.
    source: String,
    store: Option<Store>,
    /// Gives the telephone's tools while it lives.
    _desk: Option<Desk>,
    /// Removed at the end.
    folder: PathBuf,
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Stage {
    /// Opens `setup`, or the configured store. With `real`, agents can use their company's integrations; these are in
    /// the store only.
    pub async fn open(config: &Config, setup: Option<&Path>, real: bool) -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("offhook-{}", Uuid::now_v7().simple()));
        let recording = RecordingConfig { enabled: false, dir: folder.clone() };
        let (archive, _ends_with_the_calls) =
            Archive::start(recording).with_context(|| format!("cannot write to {}", folder.display()))?;
        let calls = Calls::new(
            app::writing_engines(config)?,
            ToolRegistry::with_call_tools(),
            config.turn.clone(),
            config.limits.clone(),
            archive,
            Ledger::none(),
            config.speech.vad,
        );
        let mut stage = Self {
            calls,
            knowledge: None,
            agents: Vec::new(),
            source: String::new(),
            store: None,
            _desk: None,
            folder,
        };
        match setup {
            Some(file) if real => {
                bail!(
                    "{}: integrations are used from the store only; `offhook apply` the file, or leave out --real-tools",
                    file.display()
                )
            }
            Some(file) => stage.read_setup(config, file).await?,
            None => stage.read_store(config, real).await?,
        }
        Ok(stage)
    }

    async fn read_setup(&mut self, config: &Config, file: &Path) -> anyhow::Result<()> {
        let (mut setup, mut faults) = Setup::read(file, &|name| std::env::var(name).ok())?;
        // A rehearsal uses no line and no integration: what is wrong with these, as an unset key, is no hindrance.
        faults.retain(|fault| fault.place.as_ref().is_none_or(|place| !["integration", "line"].contains(&place.table)));
        if !faults.is_empty() {
            let faults: Vec<String> = faults.iter().map(|fault| format!("\n  {fault}")).collect();
            bail!("{}:{}", file.display(), faults.concat());
        }
        setup.integrations.clear();
        setup.lines.clear();
        self.source = file.display().to_string();
        let mut ids: BTreeMap<String, Uuid> = BTreeMap::new();
        if setup.agents.iter().any(|agent| !agent.profile.knowledge.is_empty()) {
            let url = format!("sqlite://{}", self.folder.join("rehearsal.db").display());
            let store = Store::open(&StoreConfig { url }, None).await?;
            store.apply(&setup, ApplyOptions { prune: false, dry_run: false }).await?;
            self.open_knowledge(config, &store)?;
            if let Some(bases) = &self.knowledge {
                bases.apply(&setup, false).await?;
            }
            ids.extend(companies(&store).await?.into_iter().map(|(id, name)| (name, id)));
            self.store = Some(store);
        }
        self.agents = setup
            .agents
            .iter()
            .map(|agent| Cast {
                profile: Arc::new(agent.profile.clone()),
                company: agent.company.clone(),
                company_id: ids.get(&agent.company).copied().unwrap_or_default(),
            })
            .collect();
        Ok(())
    }

    async fn read_store(&mut self, config: &Config, real: bool) -> anyhow::Result<()> {
        let key = config.security.secrets_key.as_ref();
        let store = Store::open_for_preview(&config.store, key).await.context("the store could not be opened")?;
        self.source = "the store".into();
        for (company_id, company) in companies(&store).await? {
            let mut part = Part { after: None, limit: MAX_PAGE };
            while self.agents.len() < MAX_LOOKED_THROUGH {
                let page = store.agents(company_id, part).await?;
                self.agents.extend(page.items.into_iter().map(|agent| Cast {
                    profile: Arc::new(agent.profile.0),
                    company: company.clone(),
                    company_id,
                }));
                if page.next.is_none() {
                    break;
                }
                part.after = page.next;
            }
        }
        self.open_knowledge(config, &store)?;
        if real {
            let directory = Arc::new(ArcSwap::from_pointee(store.directory().await?));
            let base = config.server.public_url.clone().unwrap_or_default();
            let base = base.trim_end_matches('/').to_owned();
            let url = move |path: &str| format!("{base}{path}");
            self._desk = Some(Desk::new(self.calls.clone(), directory, Some(store.clone()), url));
        }
        self.store = Some(store);
        Ok(())
    }

    fn open_knowledge(&mut self, config: &Config, store: &Store) -> anyhow::Result<()> {
        let bases = KnowledgeBases::open(store.clone(), &config.knowledge).context("knowledge.base_url")?;
        self.calls.use_library(Arc::new(bases.clone()));
        self.knowledge = Some(bases);
        Ok(())
    }

    /// The agent of this name.
    pub fn agent(&self, name: &str, company: Option<&str>) -> anyhow::Result<Cast> {
        let of_company = |cast: &&Cast| company.is_none_or(|company| cast.company == company);
        let mut named = self.agents.iter().filter(of_company).filter(|cast| cast.profile.name == name);
        match (named.next(), named.next()) {
            (Some(cast), None) => Ok(cast.clone()),
            (Some(_), Some(_)) => bail!("several companies have an agent {name:?}; name one with --company"),
            (None, _) => {
                let known: Vec<String> =
                    self.agents.iter().filter(of_company).map(|cast| format!("{:?}", cast.profile.name)).collect();
                let known = match known.is_empty() {
                    true => "it has none; name a set-up file with --setup, or take one in with `offhook apply`".into(),
                    false => format!("it has {}", known.join(", ")),
                };
                bail!("{} has no agent {name:?}: {known}", self.source)
            }
        }
    }

    pub async fn close(mut self) {
        self._desk = None;
        if let Some(store) = self.store.take() {
            store.close().await;
        }
    }
}

async fn companies(store: &Store) -> anyhow::Result<Vec<(Uuid, String)>> {
    let mut found = Vec::new();
    let mut part = Part { after: None, limit: MAX_PAGE };
    while found.len() < MAX_LOOKED_THROUGH {
        let page = store.companies(part).await?;
        found.extend(page.items.into_iter().map(|company| (company.id, company.name)));
        if page.next.is_none() {
            break;
        }
        part.after = page.next;
    }
    Ok(found)
}

/// An agent that follows a workflow file by the builtin engine, and has nothing else. It speaks for `company`, or for one
/// that is called as the workflow is: what it says names somebody.
pub fn bare_agent(file: &Path, company: Option<&str>) -> anyhow::Result<Cast> {
    #[derive(Deserialize)]
    struct Head {
        name: Option<String>,
        language: Option<String>,
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Workflow::parse(&text).with_context(|| format!("{} is no workflow", file.display()))?;
    let head: Head = toml::from_str(&text).unwrap_or(Head { name: None, language: None });
    let stem = || file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let profile = AgentProfile {
        name: head.name.unwrap_or_else(stem),
        language: head.language.unwrap_or_else(|| "en".into()),
        llm: ModelChoice { engine: "builtin".into(), ..ModelChoice::default() },
        workflow: Some(text),
        ..AgentProfile::default()
    };
    let company = company.unwrap_or(&profile.name).to_owned();
    Ok(Cast { profile: Arc::new(profile), company, company_id: Uuid::nil() })
}

impl Cast {
    /// The same agent with what a rehearsal changes: another model, and no tools by names that only a stub has.
    pub fn with(&self, llm: Option<&str>, stubs: &[&str]) -> Self {
        let mut profile = (*self.profile).clone();
        if let Some(engine) = llm {
            profile.llm = ModelChoice { engine: engine.into(), ..ModelChoice::default() };
        }
        profile.tools.retain(|name| !stubs.contains(&name.as_str()));
        Self { profile: Arc::new(profile), ..self.clone() }
    }
}

/// A conversation in writing.
pub struct Talk {
    model: Arc<dyn LanguageModel>,
    builtin: Option<Arc<Builtin>>,
    tools: ToolBox,
    pub settings: TurnSettings,
    profile: Arc<AgentProfile>,
    /// The agent's, or its workflow's.
    greeting: String,
    context: ToolContext,
    memory: Memory,
    pub remembered: BTreeMap<String, Value>,
    pub handover: Option<String>,
    /// The agent has hung up.
    pub ended: bool,
}

/// What the agent knows of the conversation from the start.
pub fn call_facts(cast: &Cast, facts: &Facts) -> CallFacts {
    let began = facts.time.and_then(|time| time.to_zoned(TimeZone::system()).ok());
    CallFacts {
        company: cast.company.clone(),
        direction: facts.direction,
        caller: facts.caller.clone(),
        line: facts.line.clone(),
        purpose: facts.purpose.clone(),
        vars: facts.vars.clone(),
        fields: facts.fields.clone(),
        began: began.unwrap_or_else(clock::local_now),
    }
}

impl Talk {
    /// Answers the call: the greeting is said.
    pub fn begin(stage: &Stage, cast: &Cast, props: &Props, facts: &Facts) -> anyhow::Result<Self> {
        let profile = cast.profile.clone();
        stage.calls.can_run(&profile).map_err(anyhow::Error::msg)?;
        let call_facts = call_facts(cast, facts);
        let engines = stage.calls.engines(&profile, &call_facts)?;
        let (model, tools, settings) = stage.calls.writer(&profile, cast.company_id, &call_facts)?;
        let tools = props.dress(&profile, tools);
        let mut memory = Memory::new(prompt::system_prompt(&profile, &call_facts));
        let greeting = engines.greeting(&profile);
        memory.agent_said(&greeting);
        // Whoever dialled, the caller is the person that the agent talks with.
        let (caller, line) = match facts.direction {
            Direction::Inbound => (facts.caller.clone(), facts.line.clone()),
            Direction::Outbound => (facts.line.clone(), facts.caller.clone()),
        };
        Ok(Self {
            model,
            builtin: engines.builtin,
            tools,
            settings,
            context: ToolContext::new(CallId::new(), caller, line),
            profile,
            greeting,
            memory,
            remembered: BTreeMap::new(),
            handover: None,
            ended: false,
        })
    }

    pub fn greeting(&self) -> &str {
        self.greeting.trim()
    }

    pub fn model(&self) -> &'static str {
        self.model.name()
    }

    pub fn tools(&self) -> Vec<ToolSpec> {
        self.tools.specs()
    }

    /// Where the conversation is in its workflow, where the builtin engine follows one.
    pub fn progress(&self) -> Option<Progress> {
        self.builtin.as_ref().map(|builtin| builtin.state(&self.memory.all()))
    }

    /// The caller said this; gives the answer.
    pub async fn hears(
        &mut self,
        text: &str,
        watch: &mut (dyn FnMut(Telling<'_>) + Send),
    ) -> Result<Written, WriteError> {
        self.memory.user_said(text);
        let mut effects = Vec::new();
        let mut both = |telling: Telling<'_>| {
            if let Telling::Tool(_, result) = &telling {
                effects.extend(result.effect.clone());
            }
            watch(telling);
        };
        self.context.turn += 1;
        let (model, choice, context) = (self.model.clone(), &self.profile.llm, self.context.clone());
        let memory = &mut self.memory;
        let written = thread::converse(model, choice, &self.tools, context, memory, &self.settings, &mut both).await;
        for effect in effects {
            self.take(effect);
        }
        if written.is_err() {
            // On a call, an agent whose engines fail says so.
            self.memory.agent_said(Phrases::of(&self.profile.language).trouble);
        }
        written
    }

    /// As `call/actor.rs` takes it.
    fn take(&mut self, effect: CallEffect) {
        match effect {
            CallEffect::EndCall { .. } => self.ended = true,
            CallEffect::Remember { key, value } => drop(self.remembered.insert(key, value)),
            CallEffect::Handover { to } => {
                self.handover = Some(to);
                self.ended |= !self.profile.transfer_to.is_empty();
            }
            // There is nobody to hear them; the call of the tool is seen as it is.
            CallEffect::PressKeys { .. } => {}
        }
    }

    /// The caller pressed these keys: `#` and the pause at the end make turns of them, as on a call.
    pub async fn keys(
        &mut self,
        keys: &str,
        watch: &mut (dyn FnMut(Telling<'_>) + Send),
    ) -> Result<Written, WriteError> {
        let mut all = Written::default();
        for digits in keys.split('#').filter(|digits| !digits.is_empty()) {
            let one = self.hears(digits, watch).await?;
            all.text = [all.text, one.text].join(" ").trim().to_owned();
            all.tools.extend(one.tools);
            all.effects.extend(one.effects);
        }
        Ok(all)
    }

    /// The caller says nothing for so long; gives what the agent says to that.
    pub fn silence(&mut self, ms: u64) -> String {
        let phrases = Phrases::of(&self.profile.language);
        let after = |limit: u64| limit > 0 && ms >= limit;
        let mut said = Vec::new();
        if after(self.settings.silence_prompt_ms) {
            said.push(phrases.are_you_there);
        }
        if after(self.settings.silence_goodbye_ms) {
            said.push(phrases.goodbye_after_silence);
            self.ended = true;
        }
        let said = said.join(" ");
        self.memory.agent_said(&said);
        said
    }

    /// The caller cut the last answer short and heard this much of it.
    pub fn interrupted(&mut self, heard: &str) {
        self.memory.interrupted(heard);
    }
}

/// What of an answer is heard until then, in whole words. `None`: it is over by then.
pub fn heard_of(answer: &str, after: After) -> Option<&str> {
    let ends = answer.match_indices(' ').map(|(at, _)| at).chain([answer.len()]);
    let heard = match after {
        After::Words(0) => 0,
        After::Words(words) => ends.clone().nth(words - 1)?,
        After::Ms(ms) => {
            let chars = usize::try_from(ms / CHAR_MS).unwrap_or(usize::MAX);
            let spoken = answer.char_indices().nth(chars).map(|(at, _)| at)?;
            ends.take_while(|end| *end <= spoken).last().unwrap_or(0)
        }
    };
    (heard < answer.len()).then(|| &answer[..heard])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_answer_whole_words_are_heard() {
        let answer = "We open at eight.";
        for (after, heard) in [
            (After::Words(0), Some("")),
            (After::Words(2), Some("We open")),
            (After::Words(4), None),
            (After::Words(9), None),
            (After::Ms(0), Some("")),
            (After::Ms(6 * CHAR_MS), Some("We")),
            (After::Ms(7 * CHAR_MS), Some("We open")),
            (After::Ms(60 * CHAR_MS), None),
        ] {
            assert_eq!(heard_of(answer, after), heard, "{after:?}");
        }
        assert_eq!(heard_of("Ми працюємо щодня", After::Ms(5 * CHAR_MS)), Some("Ми"));
    }
}
