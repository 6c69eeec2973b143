//! Which engines a call uses: the configured ones by name, resolved for one agent when its call starts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::agent::builtin::Builtin;
use crate::agent::profile::AgentProfile;
use crate::agent::workflow::Workflow;
use crate::speech::llm::LanguageModel;
use crate::speech::llm::fallback::{FallbackModel, LlmFallbackConfig};
use crate::speech::stt::Transcriber;
use crate::speech::tts::cache::CachedSynthesizer;

/// Everything that was configured and opened, by name.
#[derive(Default)]
pub struct Engines {
    pub stt: HashMap<String, Arc<dyn Transcriber>>,
    /// With a memory for greetings and fixed phrases, shared by all calls.
    pub tts: HashMap<String, CachedSynthesizer>,
    pub llm: HashMap<String, Arc<dyn LanguageModel>>,
    /// What an agent without a choice gets.
    pub default_stt: String,
    pub default_tts: String,
    pub default_llm: String,
    /// Answers when an agent's model fails: the name of a model, or `builtin` for agents with a workflow.
    pub llm_fallback: String,
    /// Parsed workflows by their text: agents change rarely, calls start often.
    pub(crate) workflows: Mutex<HashMap<String, Arc<Workflow>>>,
}

/// The three engines of one call.
#[derive(Clone)]
pub struct CallEngines {
    pub stt: Arc<dyn Transcriber>,
    pub tts: CachedSynthesizer,
    pub llm: Arc<dyn LanguageModel>,
    /// Present where a workflow leads: the graph also tells turn-taking what the caller is asked for.
    pub builtin: Option<Arc<Builtin>>,
}

impl CallEngines {
    /// Whether a model is paid for on such a call.
    pub fn asks_model(&self) -> bool {
        self.builtin.as_ref().is_none_or(|builtin| builtin.asks_model())
    }

    /// What is said when a call begins: the agent's own greeting, else what its workflow begins with.
    pub fn greeting(&self, agent: &AgentProfile) -> String {
        match &self.builtin {
            Some(builtin) if agent.greeting.trim().is_empty() => builtin.greeting(),
            _ => agent.greeting.clone(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("agent {agent:?} wants {kind} engine {name:?}, which is not configured; configured: {known}")]
    Unknown { agent: String, kind: &'static str, name: String, known: String },
    #[error("agent {agent:?} uses the builtin engine but has no workflow; set `workflow` or another `llm` engine")]
    NoWorkflow { agent: String },
    #[error("agent {agent:?}: {detail}")]
    Workflow { agent: String, detail: String },
}

/// Workflows kept parsed.
const WORKFLOWS: usize = 64;

impl Engines {
    /// `facts`: what a workflow's texts and conditions see of the conversation.
    pub fn for_agent(&self, agent: &AgentProfile, facts: Value) -> Result<CallEngines, EngineError> {
        let stt = pick(&self.stt, "stt", &agent.stt.engine, &self.default_stt, agent)?;
        let tts = pick(&self.tts, "tts", &agent.tts.engine, &self.default_tts, agent)?;
        let name = if agent.llm.engine.is_empty() { &self.default_llm } else { &agent.llm.engine };
        let model = match name.as_str() {
            "builtin" => None,
            name => Some(pick(&self.llm, "llm", name, name, agent)?),
        };
        let walks = match (&model, &agent.workflow) {
            (None, _) => true,
            // A workflow that leaves the word to a model at some nodes leads the conversation, and asks the model there.
            (Some(_), Some(_)) => self.workflow(agent)?.needs_model(),
            (Some(_), None) => false,
        };
        match model {
            Some(model) if !walks => {
                let llm = self.backed_up(name, model, agent, true);
                Ok(CallEngines { stt, tts, llm, builtin: None })
            }
            model => {
                let builtin = Builtin::new(self.workflow(agent)?).with_facts(facts);
                let builtin = Arc::new(match model {
                    Some(model) => builtin.with_model(self.backed_up(name, model, agent, false)),
                    None => builtin,
                });
                Ok(CallEngines { stt, tts, llm: builtin.clone(), builtin: Some(builtin) })
            }
        }
    }

    /// The agent's own model, where it has one that can be asked about a call: the builtin engine and the scripted one
    /// only follow their scripts.
    pub fn analyst(&self, agent: &AgentProfile) -> Option<Arc<dyn LanguageModel>> {
        let name = if agent.llm.engine.is_empty() { &self.default_llm } else { &agent.llm.engine };
        if matches!(name.as_str(), "builtin" | "scripted") { None } else { self.llm.get(name).cloned() }
    }

    /// The model with the configured fallback behind it, where this agent can use that. `or_workflow`: the agent's
    /// workflow may be that fallback.
    fn backed_up(
        &self,
        name: &str,
        first: Arc<dyn LanguageModel>,
        agent: &AgentProfile,
        or_workflow: bool,
    ) -> Arc<dyn LanguageModel> {
        let second: Option<Arc<dyn LanguageModel>> = match self.llm_fallback.as_str() {
            "" => None,
            second if second == name => None,
            "builtin" if !or_workflow => None,
            "builtin" => self.workflow(agent).ok().map(|workflow| Arc::new(Builtin::new(workflow)) as _),
            second => self.llm.get(second).cloned(),
        };
        match second {
            Some(second) => Arc::new(FallbackModel::new(first, second, LlmFallbackConfig::default())),
            None => first,
        }
    }

    fn workflow(&self, agent: &AgentProfile) -> Result<Arc<Workflow>, EngineError> {
        let Some(text) = &agent.workflow else {
            return Err(EngineError::NoWorkflow { agent: agent.name.clone() });
        };
        let mut cache = self.workflows.lock().expect("no panic while the cache is held");
        if let Some(workflow) = cache.get(text) {
            return Ok(workflow.clone());
        }
        let workflow = Workflow::parse(text)
            .map_err(|error| EngineError::Workflow { agent: agent.name.clone(), detail: error.to_string() })?;
        if cache.len() >= WORKFLOWS {
            cache.clear();
        }
        let workflow = Arc::new(workflow);
        cache.insert(text.clone(), workflow.clone());
        Ok(workflow)
    }
}

fn pick<T: Clone>(
    engines: &HashMap<String, T>,
    kind: &'static str,
    name: &str,
    default: &str,
    agent: &AgentProfile,
) -> Result<T, EngineError> {
    let name = if name.is_empty() { default } else { name };
    engines.get(name).cloned().ok_or_else(|| {
        let mut known: Vec<&str> = engines.keys().map(String::as_str).collect();
        known.sort_unstable();
        EngineError::Unknown { agent: agent.name.clone(), kind, name: name.into(), known: known.join(", ") }
    })
}
