//! An agent as its company set it up: the `[[agent]]` table of a set-up file, resolved. A running call keeps the
//! profile that it started with.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::dialling::spent;
use super::tools::{OF_EVERY_CALL, search_knowledge};
use crate::conversation::settings::TurnOverrides;

/// One agent. Engine names are checked against the configured engines when a call starts and by `offhook check`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentProfile {
    pub name: String,
    /// ISO 639-1 or BCP 47; decides recognition, voice, fixed phrases and backchannel words.
    #[serde(default = "english")]
    pub language: String,
    /// Said when the call is answered; empty = the caller speaks first.
    #[serde(default)]
    pub greeting: String,
    /// System prompt for a model; the builtin engine does not read it.
    #[serde(default)]
    pub prompt: String,
    #[serde(default)]
    pub stt: EngineChoice,
    #[serde(default)]
    pub tts: VoiceChoice,
    #[serde(default)]
    pub llm: ModelChoice,
    /// The workflow file's text (TOML), taken in by `apply`; in a set-up file this key holds the path.
    #[serde(default)]
    pub workflow: Option<String>,
    /// Names of the tools it may use.
    #[serde(default)]
    pub tools: Vec<String>,
    /// Names of the company's knowledge bases that it looks things up in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub knowledge: Vec<String>,
    /// Who gets a caller that asks for a person: a number or `sip:` address; empty = nobody, the wish is only noted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub transfer_to: String,
    /// What that person hears before the two are connected: `none`, or `spoken` for who calls, why and what was noted.
    #[serde(default, skip_serializing_if = "TransferNote::is_none")]
    pub transfer_note: TransferNote,
    /// Whether the provider is to tell a person from an answering machine on calls that this agent makes. It costs a
    /// second or two before the agent speaks, and at Twilio a fee.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detect_machine: bool,
    /// Whether its calls are summed up when they are over (`true` unless told), by its model or by rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<bool>,
    /// Whether the last contacts with the number on the line stand in the prompt when a call begins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recall: bool,
    /// What one of its calls may use, beside its company's own limits.
    #[serde(default, skip_serializing_if = "CallBudget::is_none")]
    pub budget: CallBudget,
    /// Turn-taking settings that differ from the server's.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub turn: TurnOverrides,
}

impl AgentProfile {
    /// Whether it has the tool, as far as its profile says: what integrations bring and what a server has comes and goes.
    pub fn has_tool(&self, tool: &str) -> bool {
        let named = |own: &String| match own.strip_suffix('*') {
            Some(server) => server.ends_with('.') && tool.starts_with(server),
            None => own == tool,
        };
        OF_EVERY_CALL.contains(&tool)
            || self.tools.iter().any(named)
            || tool == search_knowledge::NAME && !self.knowledge.is_empty()
    }
}

/// What a call may use; 0 = no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CallBudget {
    /// Tokens read and written.
    pub tokens_per_call: u64,
    /// Hundredths of the currency that `[prices]` are in.
    pub cents_per_call: u64,
}

impl CallBudget {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }

    pub fn is_spent(&self, tokens: u64, micros: u64) -> bool {
        spent(self.tokens_per_call, self.cents_per_call, tokens, micros)
    }
}

fn english() -> String {
    "en".into()
}

/// What a person to whom a caller is handed hears first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TransferNote {
    /// Nothing: the caller is sent on.
    #[default]
    None,
    /// A summary of half a minute at most, in the agent's language, while the caller hears the line ring.
    Spoken,
}

impl TransferNote {
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// Which engine; empty = the server's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EngineChoice {
    pub engine: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VoiceChoice {
    pub engine: String,
    /// The engine's own name of a voice; empty = its default for the language.
    pub voice: String,
    /// 1.0 is the voice's own pace.
    pub speed: f32,
}

impl Default for VoiceChoice {
    fn default() -> Self {
        Self { engine: String::new(), voice: String::new(), speed: 1.0 }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelChoice {
    pub engine: String,
    /// Overrides the engine's configured model.
    pub model: Option<String>,
    pub temperature: Option<f32>,
    pub max_tokens: Option<u32>,
}
