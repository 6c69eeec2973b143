//! The one configuration: the floors' own config structs put together, read from defaults, `offhook.toml` and the
//! environment (`OFFHOOK_SECTION__KEY`), in this order. Every key is looked at on its own, so that all faults come at
//! once. An empty text means "not set". Every section must have a default for every key and deny unknown ones.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use figment::Figment;
use figment::providers::Serialized;
use figment::value::{Dict, Value};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::agent::tools::reach::ToolsConfig;
use crate::call::budget::PricesConfig;
use crate::call::deliveries::WebhooksConfig;
use crate::call::recorder::RecordingConfig;
use crate::call::registry::LimitsConfig;
use crate::conversation::settings::TurnSettings;
use crate::http::config::{ServerConfig, ServerUrls, TrustedProxies};
use crate::media::vad::Detector;
use crate::speech::llm::openai::OpenAiLlmConfig;
use crate::speech::scripted::ScriptedConfig;
use crate::speech::stt::google::GoogleSttConfig;
use crate::speech::stt::openai::OpenAiSttConfig;
#[cfg(feature = "whisper")]
use crate::speech::stt::whisper::WhisperConfig;
use crate::speech::tts::espeak::EspeakConfig;
use crate::speech::tts::openai::OpenAiTtsConfig;
use crate::speech::{llm, stt, tts};
use crate::store::knowledge::embeddings::KnowledgeConfig;
use crate::store::leaves::{self, Leaf, LeafFault};
use crate::store::secrets::Sealer;
use crate::store::{StoreConfig, setup};
use crate::transport::sip::SipConfig;

/// Read where no `--config` is given, if it is there.
pub const DEFAULT_FILE: &str = "offhook.toml";

const PREFIX: &str = "OFFHOOK_";

/// Variables of this prefix that are no settings: the log filter, the path of the file, the tests' own.
const OTHER_VARIABLES: [&str; 6] = [
    "OFFHOOK_LOG",
    "OFFHOOK_CONFIG",
    "OFFHOOK_SHARED",
    "OFFHOOK_TEST_POSTGRES",
    "OFFHOOK_TEST_KILLS",
    "OFFHOOK_TEST_FLOOD",
];

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub server: ServerConfig,
    pub store: StoreConfig,
    pub speech: SpeechConfig,
    pub llm: LlmConfig,
    pub knowledge: KnowledgeConfig,
    pub tools: ToolsConfig,
    pub turn: TurnSettings,
    pub security: SecurityConfig,
    pub limits: LimitsConfig,
    pub recording: RecordingConfig,
    pub telemetry: TelemetryConfig,
    pub webhooks: WebhooksConfig,
    pub prices: PricesConfig,
    pub sip: SipConfig,
    pub models: ModelsConfig,
}

/// `[speech]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpeechConfig {
    /// Which voice detector calls get: `offhook` (our own) or `silero` (in builds with that feature).
    pub vad: Detector,
    pub stt: SttConfig,
    pub tts: TtsConfig,
    /// The engines named `scripted`: for load without models.
    pub scripted: ScriptedConfig,
}

/// `[speech.stt]`: recognition.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SttConfig {
    /// The engine of agents that name none: `whisper`, `openai` or `google`.
    pub engine: String,
    /// The engine that answers when the first one fails; empty = none.
    pub fallback: String,
    #[cfg(feature = "whisper")]
    pub whisper: WhisperConfig,
    pub openai: OpenAiSttConfig,
    pub google: GoogleSttConfig,
}

impl Default for SttConfig {
    fn default() -> Self {
        Self {
            engine: "whisper".into(),
            fallback: String::new(),
            #[cfg(feature = "whisper")]
            whisper: WhisperConfig::default(),
            openai: OpenAiSttConfig::default(),
            google: GoogleSttConfig::default(),
        }
    }
}

/// `[speech.tts]`: synthesis.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TtsConfig {
    /// The engine of agents that name none: `espeak` or `openai`.
    pub engine: String,
    /// The engine that speaks when the first one fails; empty = none.
    pub fallback: String,
    pub espeak: EspeakConfig,
    pub openai: OpenAiTtsConfig,
}

impl Default for TtsConfig {
    fn default() -> Self {
        Self {
            engine: "espeak".into(),
            fallback: String::new(),
            espeak: EspeakConfig::default(),
            openai: OpenAiTtsConfig::default(),
        }
    }
}

/// `[llm]`: the language model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LlmConfig {
    /// The engine of agents that name none: `builtin` or `openai`.
    pub engine: String,
    /// The engine that answers when the first one fails; empty = none.
    pub fallback: String,
    pub openai: OpenAiLlmConfig,
}

impl Default for LlmConfig {
    fn default() -> Self {
        Self { engine: "builtin".into(), fallback: String::new(), openai: OpenAiLlmConfig::default() }
    }
}

/// `[security]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecurityConfig {
    /// Seals credentials in the store: 32 bytes in base64. Without it, a key file is made beside the database.
    pub secrets_key: Option<SecretString>,
    /// A first API key, of no company: sees all, and names a `company_id` where it creates. Without it, the first start
    /// prints a set-up link.
    pub admin_token: Option<SecretString>,
    /// Genuine webhooks that one integration may send in any 60 seconds; more are answered 429. 0 = no limit.
    pub webhooks_per_minute: usize,
    /// Believes Binotel's webhooks from any address, with the secret path as their only protection.
    pub binotel_allow_any: bool,
    /// How often the webhooks of providers that neither sign nor repeat them (Ringostat) are compared with their call
    /// logs, seconds; 0 = never. Smaller finds lost and forged ones sooner, and asks the provider more often.
    pub reconcile_s: u64,
}

impl Default for SecurityConfig {
    fn default() -> Self {
        Self {
            secrets_key: None,
            admin_token: None,
            webhooks_per_minute: 120,
            binotel_allow_any: false,
            reconcile_s: 300,
        }
    }
}

/// Whoever has the token may do everything, and tries at it are not counted: it must not be guessed.
const MIN_ADMIN_TOKEN: usize = 20;

/// `[telemetry]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// Level, or filter by module: `info`, `offhook=debug,warn`. `OFFHOOK_LOG` overrides it.
    pub log: String,
    pub log_format: LogFormat,
    /// Whether metrics are kept and served at `/metrics`.
    pub metrics: bool,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { log: "info".into(), log_format: LogFormat::Text, metrics: true }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One line an event, for people.
    Text,
    /// One JSON object an event, for collectors.
    Json,
}

/// `[models]`: `offhook models`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelsConfig {
    /// The folder of the model files.
    pub dir: PathBuf,
    /// Where `pull` finds them: a file's name is appended to it.
    pub base_url: String,
    /// A download that brings nothing for so long is broken off and resumed.
    pub stall_s: u64,
    /// Connections that one `pull` may open before it gives up.
    pub attempts: u32,
}

impl Default for ModelsConfig {
    fn default() -> Self {
        Self {
            dir: "models".into(),
            base_url: "https://huggingface.co/ggerganov/whisper.cpp/resolve/main".into(),
            stall_s: 30,
            attempts: 5,
        }
    }
}

/// Everything that is wrong with a configuration, a line each. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub faults: Vec<String>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.faults[..] {
            [fault] => f.write_str(fault),
            faults => {
                write!(f, "{} faults in the configuration:", faults.len())?;
                faults.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
            }
        }
    }
}

impl Config {
    /// Reads the file (`None`: [`DEFAULT_FILE`], if it is there) and this process's environment.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => None,
            Err(error) => {
                return Err(ConfigError { faults: vec![format!("cannot read {}: {error}", path.display())] });
            }
        };
        let environment = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            name.starts_with(PREFIX).then(|| (name, value.to_string_lossy().into_owned()))
        });
        Self::read(text.as_deref().map(|text| (path, text)), environment)
    }

    /// The configuration of a file's text (its path is for messages) and of variables.
    pub fn read(
        file: Option<(&Path, &str)>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        // A set: an unknown section is one fault, however many keys it has.
        let mut faults = BTreeSet::new();
        let mut figment = Figment::new();
        if let Some((path, text)) = file {
            let (found, wrong) = file_leaves(path, text);
            faults.extend(wrong);
            for leaf in found {
                figment = merge(figment, &leaf);
            }
        }
        for (name, value) in environment {
            match variable(&name, &value) {
                Ok(None) => {}
                Ok(Some(leaf)) => figment = merge(figment, &leaf),
                Err(fault) => {
                    faults.insert(format!("{name}: {fault}"));
                }
            }
        }
        match figment.extract::<Self>() {
            Ok(config) => {
                faults.extend(config.faults());
                if faults.is_empty() {
                    return Ok(config);
                }
            }
            Err(error) => {
                faults.insert(error.kind.to_string());
            }
        }
        Err(ConfigError { faults: faults.into_iter().collect() })
    }

    /// What types do not say: numbers out of range, and keys that contradict each other.
    fn faults(&self) -> Vec<String> {
        let mut faults = self.turn.faults();
        faults.extend(self.speech.tts.espeak.faults());
        faults.extend(self.speech.tts.openai.faults());
        faults.extend(self.llm.openai.faults());
        faults.extend(self.knowledge.faults().into_iter().map(|(key, problem)| format!("knowledge.{key} {problem}")));
        faults.extend(self.tools.faults().into_iter().map(|(key, problem)| format!("tools.{key}: {problem}")));
        faults.extend(self.prices.faults().into_iter().map(|(key, problem)| format!("prices.{key} {problem}")));
        faults.extend(self.webhooks.faults().into_iter().map(|(key, problem)| format!("webhooks.{key} {problem}")));
        let mut require = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        let engines = [
            ("speech.stt", &self.speech.stt.engine, &self.speech.stt.fallback, stt::ENGINES),
            ("speech.tts", &self.speech.tts.engine, &self.speech.tts.fallback, tts::ENGINES),
            ("llm", &self.llm.engine, &self.llm.fallback, llm::ENGINES),
        ];
        for (section, engine, fallback, known) in engines {
            let list = known.join(", ");
            let is_known = |name: &str| known.contains(&name);
            require(is_known(engine), format!("{section}.engine: no engine {engine:?}; known are {list}"));
            require(
                fallback.is_empty() || is_known(fallback),
                format!("{section}.fallback: no engine {fallback:?}; known are {list}, or leave it out"),
            );
            require(
                fallback.is_empty() || fallback != engine,
                format!("{section}.fallback is the engine itself; name another one, or leave it out"),
            );
        }
        if let Err(error) = self.store.check() {
            require(false, error.to_string());
        }
        if let Some(Err(error)) = self.security.secrets_key.as_ref().map(Sealer::from_base64) {
            require(false, error.to_string());
        }
        if let Some(token) = &self.security.admin_token {
            require(
                token.expose_secret().chars().count() >= MIN_ADMIN_TOKEN,
                format!("security.admin_token is shorter than {MIN_ADMIN_TOKEN} characters (openssl rand -base64 32)"),
            );
        }
        require(
            (1..=100_000).contains(&self.limits.max_calls),
            "limits.max_calls must be from 1 to 100000; what one machine carries is measured by `offhook load`".into(),
        );
        let nowhere = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        for error in [ServerUrls::new(&self.server, nowhere).err(), TrustedProxies::new(&self.server).err()] {
            require(error.is_none(), error.map(|error| error.to_string()).unwrap_or_default());
        }
        for fault in self.sip.faults() {
            require(false, fault.to_string());
        }
        for fault in self.sip.rtp().faults() {
            require(false, fault.to_string());
        }
        require(!self.recording.dir.as_os_str().is_empty(), "recording.dir must name a folder".into());
        if let Err(error) = tracing_subscriber::EnvFilter::from_str(&self.telemetry.log) {
            require(false, format!("telemetry.log: {error}; write a level (error, warn, info, debug, trace)"));
        }
        let base = &self.models.base_url;
        require(
            base.starts_with("http://") || base.starts_with("https://"),
            "models.base_url must begin with http:// or https://".into(),
        );
        require((1..=3600).contains(&self.models.stall_s), "models.stall_s must be from 1 to 3600 seconds".into());
        require((1..=100).contains(&self.models.attempts), "models.attempts must be from 1 to 100".into());
        faults
    }
}

/// The good leaves of a file, and what is wrong with the others.
fn file_leaves(path: &Path, text: &str) -> (Vec<Leaf>, Vec<String>) {
    let file = path.display();
    let dict: Dict = match toml::from_str(text) {
        Ok(dict) => dict,
        Err(error) => {
            // The parser's own display quotes the line, which may hold a secret.
            let line = setup::line_of(text, error.span().map_or(0, |span| span.start));
            return (Vec::new(), vec![format!("{file}, line {line}: {}", error.message())]);
        }
    };
    let mut good = Vec::new();
    let mut faults = Vec::new();
    for leaf in leaves::leaves(&dict) {
        match judge(leaf) {
            Ok(leaf) => good.extend(leaf),
            Err(fault) => faults.push(format!("{file}: {fault}")),
        }
    }
    (good, faults)
}

/// The leaf that a variable sets; `None` where it sets nothing.
fn variable(name: &str, value: &str) -> Result<Option<Leaf>, String> {
    let Some(key) = name.strip_prefix(PREFIX).filter(|_| !OTHER_VARIABLES.contains(&name)) else { return Ok(None) };
    if !key.contains("__") {
        return Err("no such setting; a setting is OFFHOOK_SECTION__KEY, as in OFFHOOK_SERVER__LISTEN".into());
    }
    let path: Vec<String> = key.split("__").map(str::to_lowercase).collect();
    // Text first: a token of digits stays text. What is no text is tried as a number, a switch or a list.
    let as_text = Leaf { path, value: Value::from(value) };
    match judge(as_text.clone()) {
        Err(LeafFault::Wrong { .. }) => {
            let parsed = Value::from_str(value).unwrap_or_else(|never| match never {});
            judge(Leaf { value: parsed, ..as_text }).map_err(|fault| fault.to_string())
        }
        judged => judged.map_err(|fault| fault.to_string()),
    }
}

/// The leaf, if it is known and fits; `None` if it is empty, which leaves the default.
fn judge(leaf: Leaf) -> Result<Option<Leaf>, LeafFault> {
    let checked = leaves::check::<Config>(&Dict::new(), &leaf);
    match (&leaf.value, checked) {
        (_, Err(fault @ LeafFault::Unknown { .. })) => Err(fault),
        (Value::String(_, text), _) if text.is_empty() => Ok(None),
        (_, checked) => checked.map(|()| Some(leaf)),
    }
}

fn merge(figment: Figment, leaf: &Leaf) -> Figment {
    figment.merge(Serialized::defaults(leaf.nested()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::read(Some((Path::new("offhook.toml"), text)), environment)
    }

    fn faults(text: &str, environment: &[(&str, &str)]) -> Vec<String> {
        read(text, environment).expect_err("the configuration is faulty").faults
    }

    #[test]
    fn nothing_at_all_is_a_good_configuration() {
        assert_eq!(format!("{:?}", read("", &[]).unwrap()), format!("{:?}", Config::default()));
    }

    #[test]
    fn the_environment_goes_over_the_file_and_the_file_over_the_defaults() {
        let config = read(
            "[server]\nlisten = '0.0.0.0:80'\ndrain_s = 5\n[turn]\nend_probability = 0.25",
            &[("OFFHOOK_SERVER__LISTEN", "0.0.0.0:81"), ("OFFHOOK_TURN__BARGE_IN", "false"), ("OFFHOOK_LOG", "x")],
        )
        .unwrap();
        assert_eq!((config.server.listen.to_string(), config.server.drain_s), ("0.0.0.0:81".to_owned(), 5));
        assert_eq!((config.turn.barge_in, config.turn.end_probability), (false, 0.25));
        assert_eq!(config.limits.max_calls, 500);
    }

    #[test]
    fn a_variable_has_the_type_of_its_key() {
        let config = read(
            "",
            &[
                ("OFFHOOK_LLM__OPENAI__API_KEY", "00123"),
                ("OFFHOOK_LIMITS__MAX_CALLS", "7"),
                ("OFFHOOK_TURN__START_PROBABILITY", "0.7"),
                ("OFFHOOK_SERVER__TRUSTED_PROXIES", "[\"10.0.0.0/8\", \"::1\"]"),
                ("OFFHOOK_TELEMETRY__LOG_FORMAT", "json"),
            ],
        )
        .unwrap();
        assert_eq!(config.llm.openai.api_key.unwrap().expose_secret(), "00123");
        assert_eq!(config.limits.max_calls, 7);
        assert_eq!(config.turn.start_probability, 0.7);
        assert_eq!(config.server.trusted_proxies.len(), 2);
        assert_eq!(config.telemetry.log_format, LogFormat::Json);
    }

    #[test]
    fn all_faults_of_file_and_environment_come_at_once() {
        let found = faults(
            "[servr]\na = 1\nb = 2\n[turn]\nstart_packets = -1\nwait_ms = 1\n\
             [limits]\nmax_calls = 0\n[llm]\nengine = 'magic'",
            &[("OFFHOOK_STORE__URI", "x"), ("OFFHOOK_PORT", "80"), ("OFFHOOK_LIMITS__MAX_CALLS", "many")],
        );
        for expected in [
            "offhook.toml: servr: no such key; known here: server, store",
            "offhook.toml: turn.start_packets: ",
            "offhook.toml: turn.wait_ms: no such key",
            "limits.max_calls must be from 1",
            "llm.engine: no engine \"magic\"; known are builtin, openai, scripted",
            "OFFHOOK_STORE__URI: store.uri: no such key; known here: url",
            "OFFHOOK_PORT: no such setting",
            "OFFHOOK_LIMITS__MAX_CALLS: limits.max_calls: ",
        ] {
            assert_eq!(found.iter().filter(|fault| fault.starts_with(expected)).count(), 1, "{expected}\n{found:#?}");
        }
        assert_eq!(found.len(), 8, "{found:#?}");
    }

    #[test]
    fn an_empty_text_leaves_the_default_but_an_unknown_key_stays_a_fault() {
        let config =
            read("[llm.openai]\napi_key = ''\n[limits]\nmax_calls = ''", &[("OFFHOOK_STORE__URL", "")]).unwrap();
        assert!(config.llm.openai.api_key.is_none());
        assert_eq!(config.store, StoreConfig::default());
        assert_eq!(faults("[security]\nadmin = ''", &[]).len(), 1);
    }

    #[test]
    fn no_secret_gets_into_messages_or_debug_output() {
        for (text, variable) in [
            ("[llm.openai]\napi_key = 5551234", None),
            ("[security]\nsecrets_key = '5551234'", None),
            ("[llm.openai]\napi_key = '5551234' 5551234", None),
            ("", Some(("OFFHOOK_SECURITY__SECRETS_KEY", "5551234"))),
        ] {
            let error = read(text, variable.as_slice()).unwrap_err().to_string();
            assert!(!error.contains("5551234"), "{error}");
        }
        let config = read("[llm.openai]\napi_key = '5551234'", &[]).unwrap();
        assert!(!format!("{config:?}").contains("5551234"));
    }

    #[test]
    fn a_named_file_must_be_there() {
        let error = Config::load(Some(Path::new("/not/there.toml"))).unwrap_err();
        assert!(error.to_string().contains("/not/there.toml"), "{error}");
    }

    const EXAMPLE: &str = include_str!("../offhook.example.toml");

    /// The example with every `#key = value` made a setting. Prose has a space after its `#`.
    fn uncommented() -> String {
        EXAMPLE
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| rest.starts_with(char::is_alphabetic)).unwrap_or(line))
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn every_line_of_the_example_says_the_default() {
        let example = read(&uncommented(), &[]).unwrap();
        assert_eq!(format!("{example:#?}"), format!("{:#?}", Config::default()));
        // An empty text leaves the default whatever that is: only keys without one may be written so.
        let dict: Dict = toml::from_str(&uncommented()).unwrap();
        for leaf in leaves::leaves(&dict) {
            if leaf.value.as_str() == Some("") {
                let key = leaf.path.last().unwrap();
                let default = format!("{:#?}", Config::default());
                assert!(
                    default.contains(&format!("{key}: None")) || default.contains(&format!("{key}: \"\"")),
                    "{} has a default, which the example must show",
                    leaf.path.join(".")
                );
            }
        }
        assert_eq!(format!("{:#?}", read(EXAMPLE, &[]).unwrap()), format!("{:#?}", Config::default()));
    }

    #[test]
    fn the_example_has_every_key_once() {
        let dict: Dict = toml::from_str(&uncommented()).unwrap();
        let shown: Vec<String> = leaves::leaves(&dict).into_iter().map(|leaf| leaf.path.join(".")).collect();
        let known = leaves::keys::<Config>(&Dict::new());
        assert!(known.len() > 40, "{known:?}");
        let missing: Vec<&String> = known.iter().filter(|key| !shown.contains(key)).collect();
        assert!(missing.is_empty(), "offhook.example.toml lacks {missing:?}");
    }

    #[test]
    fn every_key_of_the_configuration_has_a_default() {
        for key in leaves::keys::<Config>(&Dict::new()) {
            let path = key.split('.').map(str::to_owned).collect();
            let fault = leaves::check::<Config>(&Dict::new(), &Leaf { path, value: Value::from("") });
            assert!(!format!("{fault:?}").contains("missing field"), "{fault:?}: its section lacks `serde(default)`");
        }
    }
}
