//! What the mock says and hears, and how it misbehaves. A request may set its own delays and faults in its model
//! name: `mock-ttft=300,tps=80,fault=cut`.

use serde::Deserialize;

/// Delays and shapes. All times are milliseconds.
#[derive(Clone, Debug, PartialEq, clap::Args)]
pub struct Delays {
    /// Time to a transcript
    #[arg(long, default_value_t = 100, value_name = "MS")]
    pub stt_ms: u64,
    /// Time to the first token of an answer
    #[arg(long, default_value_t = 150, value_name = "MS")]
    pub llm_ttft_ms: u64,
    /// Time between two tokens
    #[arg(long, default_value_t = 15, value_name = "MS")]
    pub llm_token_ms: u64,
    /// Time to the first byte of speech
    #[arg(long, default_value_t = 120, value_name = "MS")]
    pub tts_ms: u64,
    /// Length of speech for a character of text
    #[arg(long, default_value_t = 60, value_name = "MS")]
    pub tts_char_ms: u64,
    /// Silence before the first sentence of speech
    #[arg(long, default_value_t = 0, value_name = "MS")]
    pub tts_lead_ms: u64,
    /// Speed at which speech is made, in times of real time; 0 = all at once
    #[arg(long, default_value_t = 0.0, value_name = "FACTOR")]
    pub tts_speed: f64,
    /// Bytes of speech in one chunk
    #[arg(long, default_value_t = 4_800, value_name = "BYTES")]
    pub tts_chunk: usize,
}

impl Default for Delays {
    fn default() -> Self {
        Self {
            stt_ms: 100,
            llm_ttft_ms: 150,
            llm_token_ms: 15,
            tts_ms: 120,
            tts_char_ms: 60,
            tts_lead_ms: 0,
            tts_speed: 0.0,
            tts_chunk: 4_800,
        }
    }
}

/// How a request is spoilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// Status 429 with `retry-after-ms`
    Limited,
    /// Status 500
    Broken,
    /// Status 401
    Unauthorized,
    /// Never answers (the connection stays open for a minute)
    Hang,
    /// Half of the answer, then the connection breaks
    Cut,
    /// Half of the answer, then an error event
    Error,
    /// Answers in chunks of odd sizes, so that samples and UTF-8 are split
    Odd,
    /// Event streams with CRLF
    Crlf,
    /// Event streams with comment lines between events
    Comments,
    /// Event streams without `[DONE]`
    Nodone,
    /// A JSON answer to a streaming request
    Json,
}

impl Fault {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "429" | "limited" => Fault::Limited,
            "500" | "broken" => Fault::Broken,
            "401" | "unauthorized" => Fault::Unauthorized,
            "hang" => Fault::Hang,
            "cut" => Fault::Cut,
            "error" => Fault::Error,
            "odd" => Fault::Odd,
            "crlf" => Fault::Crlf,
            "comments" => Fault::Comments,
            "nodone" => Fault::Nodone,
            "json" => Fault::Json,
            _ => return None,
        })
    }

    pub fn label(self) -> &'static str {
        match self {
            Fault::Limited => "429",
            Fault::Broken => "500",
            Fault::Unauthorized => "401",
            Fault::Hang => "hang",
            Fault::Cut => "cut",
            Fault::Error => "error",
            Fault::Odd => "odd",
            Fault::Crlf => "crlf",
            Fault::Comments => "comments",
            Fault::Nodone => "nodone",
            Fault::Json => "json",
        }
    }
}

/// How one request is treated.
#[derive(Clone, Debug, PartialEq)]
pub struct Treatment {
    pub delays: Delays,
    pub fault: Option<Fault>,
    /// With `limited`: what `retry-after-ms` says.
    pub retry_after_ms: u64,
    /// The fault strikes only so many requests of this model name; later ones are well.
    pub times: Option<u32>,
}

/// Reads `mock-key=value,key=value` over the defaults. Keys: `ttft`, `token`, `tps`, `stt`, `tts`, `chars`, `lead`,
/// `speed`, `chunk`, `fault`, `retry`, `times`. A model name without the prefix changes nothing; a bad key or value is
/// an error, answered as 400.
pub fn treatment(model: &str, defaults: &Treatment) -> Result<Treatment, String> {
    let mut treatment = defaults.clone();
    let Some(settings) = model.strip_prefix("mock-") else { return Ok(treatment) };
    for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
        let bad = || format!("`{setting}` in the model name is no setting of the mock");
        let (key, value) = setting.split_once('=').ok_or_else(bad)?;
        let delays = &mut treatment.delays;
        let whole = || value.parse::<u64>().ok().filter(|ms| *ms <= 600_000).ok_or_else(bad);
        let real = || value.parse::<f64>().ok().filter(|real| real.is_finite() && *real >= 0.0).ok_or_else(bad);
        match key {
            "ttft" => delays.llm_ttft_ms = whole()?,
            "token" => delays.llm_token_ms = whole()?,
            "tps" => delays.llm_token_ms = (1_000.0 / real()?.max(0.01)) as u64,
            "stt" => delays.stt_ms = whole()?,
            "tts" => delays.tts_ms = whole()?,
            "chars" => delays.tts_char_ms = whole()?.min(1_000),
            "lead" => delays.tts_lead_ms = whole()?.min(60_000),
            "speed" => delays.tts_speed = real()?,
            "chunk" => delays.tts_chunk = (whole()? as usize).max(1),
            "retry" => treatment.retry_after_ms = whole()?,
            "times" => treatment.times = Some(whole()? as u32),
            "fault" => treatment.fault = Some(Fault::named(value).ok_or_else(bad)?),
            _ => return Err(bad()),
        }
    }
    Ok(treatment)
}

/// What the mock says and hears; a TOML file may replace it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// Sentences that recognition answers, one after the other, over and over.
    pub transcripts: Vec<String>,
    /// Answers of the model: the first whose `when` is in the last message of the user, or which has none.
    #[serde(rename = "reply")]
    pub replies: Vec<Reply>,
    /// Said once the results of tool calls are in.
    pub after_tools: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reply {
    /// Part of the user's message, in any case; empty = any message.
    pub when: String,
    pub text: String,
    /// Tools to call, where the request offers them.
    #[serde(rename = "tool")]
    pub tools: Vec<ToolUse>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolUse {
    pub name: String,
    #[serde(default)]
    pub arguments: toml::Table,
}

impl Default for Script {
    fn default() -> Self {
        let reply = |when: &str, text: &str| Reply { when: when.into(), text: text.into(), tools: vec![] };
        Self {
            transcripts: [
                "What time do you open on Friday?",
                "I would like to book a table for four people.",
                "Could you call me back tomorrow morning?",
                "My name is Maria.",
                "Thank you, that is all I need.",
            ]
            .map(String::from)
            .into(),
            replies: vec![
                reply("open", "We are open from nine, and the kitchen closes at ten at night. Would you like to book?"),
                reply("book", "I can book a table for you, of course. For which day and what time?"),
                reply("call", "We will call you tomorrow, some time in the morning. What is your name?"),
                reply("name", "I have written that down, thank you. Is there anything else I can do?"),
                reply("", "I understand what you say, thank you for that. How else can I help you?"),
            ],
            after_tools: "That is done, I have taken care of it for you. Is there anything else?".into(),
        }
    }
}

impl Script {
    pub fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// The nth transcript.
    pub fn transcript(&self, n: usize) -> &str {
        self.transcripts.get(n % self.transcripts.len().max(1)).map_or("", String::as_str)
    }

    /// What is answered to `user`, where `offered` are the names of the request's tools. Without a rule that names
    /// tools, a tool is called when its name (underscores read as spaces) is in the message.
    pub fn reply(&self, user: &str, offered: &[String]) -> Reply {
        let user = user.to_lowercase();
        let mut reply = self
            .replies
            .iter()
            .find(|reply| user.contains(&reply.when.to_lowercase()))
            .cloned()
            .unwrap_or_else(|| Reply { text: "I see.".into(), ..Reply::default() });
        reply.tools.retain(|tool| offered.contains(&tool.name));
        if reply.tools.is_empty() {
            reply.tools = offered
                .iter()
                .filter(|name| user.contains(&name.to_lowercase().replace('_', " ")))
                .map(|name| ToolUse { name: name.clone(), arguments: toml::Table::new() })
                .collect();
        }
        reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Treatment {
        Treatment { delays: Delays::default(), fault: None, retry_after_ms: 100, times: None }
    }

    #[test]
    fn a_model_name_sets_delays_and_faults_of_its_own_request() {
        let treatment = treatment("mock-ttft=300,tps=80,fault=cut,times=2", &defaults()).unwrap();
        assert_eq!((treatment.delays.llm_ttft_ms, treatment.delays.llm_token_ms), (300, 12));
        assert_eq!((treatment.fault, treatment.times), (Some(Fault::Cut), Some(2)));
        assert_eq!(treatment.delays.tts_ms, 120);
    }

    #[test]
    fn an_ordinary_model_name_changes_nothing_and_a_wrong_setting_is_told() {
        assert_eq!(treatment("gpt-4.1-mini", &defaults()).unwrap(), defaults());
        for bad in ["mock-ttft", "mock-ttft=x", "mock-fault=fire", "mock-speed=-1", "mock-colour=1"] {
            assert!(treatment(bad, &defaults()).is_err(), "{bad}");
        }
    }

    #[test]
    fn replies_follow_the_callers_words_and_tools_only_those_offered() {
        let script = Script::default();
        assert!(script.reply("When do you OPEN?", &[]).text.starts_with("We are open"));
        assert!(script.reply("hm", &[]).text.starts_with("I understand"));
        let offered = ["send_sms".to_string()];
        assert_eq!(script.reply("please send sms to her", &offered).tools[0].name, "send_sms");
        assert!(script.reply("please send sms to her", &[]).tools.is_empty());
    }

    #[test]
    fn a_file_replaces_what_is_said() {
        let script = Script::from_toml(
            "transcripts = [\"Hello there.\"]\n[[reply]]\nwhen = \"x\"\ntext = \"y\"\n[[reply.tool]]\nname = \"t\"\narguments = { a = 1 }",
        )
        .unwrap();
        assert_eq!((script.transcript(0), script.transcript(7)), ("Hello there.", "Hello there."));
        assert_eq!(script.reply("x", &["t".into()]).tools[0].arguments["a"].as_integer(), Some(1));
        assert!(Script::from_toml("colour = 1").is_err());
    }
}
