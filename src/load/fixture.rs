//! A recorded caller: `audio-fixtures/NAME/call.toml` with the sound of each turn, the true onsets and offsets of the
//! speech in it, when the caller says it, and what the call must lead to. How it is played is `mouth.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Everything here is 8 kHz, as on the telephone.
pub const RATE_HZ: u32 = 8_000;
/// Samples in a millisecond.
pub const PER_MS: u64 = 8;
/// Longest sound file taken: ten minutes.
const MAX_SAMPLES: u32 = RATE_HZ * 600;

/// One recorded caller, checked and in memory.
#[derive(Clone, Debug)]
pub struct Fixture {
    pub name: String,
    pub title: String,
    /// ISO 639-1.
    pub language: String,
    /// The workflow that the agent needs for this call.
    pub workflow: String,
    pub voice: String,
    /// Looped under the whole call.
    pub background: Option<Vec<i16>>,
    pub echo: Option<Echo>,
    /// None at all: a caller who says nothing.
    pub turns: Vec<Turn>,
    pub expect: Expect,
}

/// The agent's own sound, returned to it by the caller's handset.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Echo {
    /// Loudness of what comes back against what was played, in dB; at most 0.
    pub gain_db: f32,
    /// 0 to 1000.
    pub delay_ms: u64,
}

/// One thing that the caller says, or one noise.
#[derive(Clone, Debug)]
pub struct Turn {
    pub kind: Kind,
    /// What is said; empty for a noise.
    pub text: String,
    pub start: Start,
    /// True onset and offset of each stretch of speech (or noise), milliseconds within the file, in order.
    pub speech: Vec<(u64, u64)>,
    /// 8 kHz mono.
    pub samples: Vec<i16>,
    /// Keys that are pressed as it begins (`0-9 * #`), beside its sound. Told by a media stream's messages; a caller by SIP
    /// presses none.
    pub keys: String,
}

impl Turn {
    /// Milliseconds from the file's start to the first voiced sample.
    pub fn onset_ms(&self) -> u64 {
        self.speech.first().map_or(0, |pair| pair.0)
    }

    /// Milliseconds from the file's start to the last voiced sample.
    pub fn offset_ms(&self) -> u64 {
        self.speech.last().map_or(self.samples.len() as u64 / PER_MS, |pair| pair.1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Said while the agent is silent, and to be answered.
    Turn,
    /// Said into the agent's speech: the agent must stop, and answer.
    Interruption,
    /// "mm-hm": the agent must go on.
    Backchannel,
    /// A cough, a keyboard, a door: the agent must go on.
    Noise,
}

impl Kind {
    /// Whether the agent must answer it.
    pub fn wants_reply(self) -> bool {
        matches!(self, Kind::Turn | Kind::Interruption)
    }

    pub fn label(self) -> &'static str {
        match self {
            Kind::Turn => "turn",
            Kind::Interruption => "interruption",
            Kind::Backchannel => "backchannel",
            Kind::Noise => "noise",
        }
    }
}

/// When the file starts to play.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// So many milliseconds after the agent, having spoken since the last turn, fell silent.
    AfterAgent(u64),
    /// So many milliseconds after the agent's first sound since the last turn.
    IntoAgent(u64),
}

/// What the call must lead to.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// Slot → the word that the caller said for it.
    pub slots: BTreeMap<String, String>,
    /// Keys that the agent must have remembered.
    pub remember: Vec<String>,
    /// Words that the agent must have said.
    pub agent_says: Vec<String>,
    /// `agent` or `caller`.
    pub ended_by: Option<Ender>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ender {
    Agent,
    Caller,
}

#[derive(Debug, thiserror::Error)]
pub enum FixtureError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    /// Not TOML, or a key that a fixture does not have; the detail names line and column.
    #[error("{path} is not a fixture: {detail}")]
    Shape { path: PathBuf, detail: String },
    /// All that is wrong with it, one line each.
    #[error("{path} has faults:\n  {}", faults.join("\n  "))]
    Faults { path: PathBuf, faults: Vec<String> },
    #[error("there is no fixture `{name}`; {root} has: {}", known.join(", "))]
    Unknown { name: String, root: PathBuf, known: Vec<String> },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CallToml {
    name: String,
    #[serde(default)]
    title: String,
    #[serde(default = "english")]
    language: String,
    #[serde(default)]
    workflow: String,
    #[serde(default)]
    voice: String,
    background: Option<String>,
    echo: Option<Echo>,
    #[serde(default)]
    turn: Vec<TurnToml>,
    #[serde(default)]
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TurnToml {
    file: String,
    #[serde(default)]
    text: String,
    start: StartToml,
    #[serde(default)]
    speech: Vec<(u64, u64)>,
    kind: Kind,
    #[serde(default)]
    keys: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StartToml {
    after_agent_ms: Option<u64>,
    into_agent_ms: Option<u64>,
}

fn english() -> String {
    "en".into()
}

impl Fixture {
    /// Reads `dir/call.toml` and every sound file that it names; reports all faults at once.
    pub fn load(dir: &Path) -> Result<Self, FixtureError> {
        let path = dir.join("call.toml");
        let text =
            std::fs::read_to_string(&path).map_err(|source| FixtureError::Read { path: path.clone(), source })?;
        let call: CallToml = toml::from_str(&text)
            .map_err(|error| FixtureError::Shape { path: path.clone(), detail: error.to_string() })?;

        let mut faults = Vec::new();
        if let Some(echo) = call.echo
            && !(echo.gain_db <= 0.0 && echo.gain_db >= -96.0 && echo.delay_ms <= 1000)
        {
            faults.push("echo: gain_db is between -96 and 0, delay_ms at most 1000".to_string());
        }
        let background = call.background.and_then(|file| match read_wav(&dir.join(&file)) {
            Ok(samples) if samples.is_empty() => {
                faults.push(format!("background: {file} has no samples"));
                None
            }
            Ok(samples) => Some(samples),
            Err(detail) => {
                faults.push(format!("background: {detail}"));
                None
            }
        });
        let turns = call
            .turn
            .into_iter()
            .enumerate()
            .filter_map(|(index, turn)| match check_turn(dir, turn) {
                Ok(turn) => Some(turn),
                Err(detail) => {
                    faults.push(format!("turn {}: {detail}", index + 1));
                    None
                }
            })
            .collect();
        if !faults.is_empty() {
            return Err(FixtureError::Faults { path, faults });
        }
        Ok(Self {
            name: call.name,
            title: call.title,
            language: call.language,
            workflow: call.workflow,
            voice: call.voice,
            background,
            echo: call.echo,
            turns,
            expect: call.expect,
        })
    }

    /// `name` is a folder with a `call.toml`, or the name of one under `root`.
    pub fn find(root: &Path, name: &str) -> Result<Self, FixtureError> {
        for dir in [PathBuf::from(name), root.join(name)] {
            if dir.join("call.toml").is_file() {
                return Self::load(&dir);
            }
        }
        Err(FixtureError::Unknown { name: name.into(), root: root.into(), known: Self::names(root) })
    }

    /// The fixtures under `root`, sorted.
    pub fn names(root: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(root)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().join("call.toml").is_file())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }
}

fn check_turn(dir: &Path, turn: TurnToml) -> Result<Turn, String> {
    let start = match (turn.start.after_agent_ms, turn.start.into_agent_ms) {
        (Some(ms), None) => Start::AfterAgent(ms),
        (None, Some(ms)) => Start::IntoAgent(ms),
        _ => return Err("start needs either after_agent_ms or into_agent_ms".into()),
    };
    let samples = read_wav(&dir.join(&turn.file))?;
    let length_ms = samples.len() as u64 / PER_MS;
    let mut last_ms = 0;
    for &(onset, offset) in &turn.speech {
        if onset < last_ms || offset <= onset || offset > length_ms {
            return Err(format!(
                "speech [{onset}, {offset}] must follow {last_ms} ms, be in order and end within the file's {length_ms} ms"
            ));
        }
        last_ms = offset;
    }
    if turn.kind.wants_reply() && turn.speech.is_empty() {
        return Err("speech is missing: without true onsets and offsets nothing can be measured".into());
    }
    if turn.kind.wants_reply() && turn.text.trim().is_empty() {
        return Err("text is missing".into());
    }
    if !turn.keys.chars().all(|key| key.is_ascii_digit() || "*#".contains(key)) {
        return Err("keys are 0 to 9, * and #".into());
    }
    Ok(Turn { kind: turn.kind, text: turn.text, start, speech: turn.speech, samples, keys: turn.keys })
}

/// 16-bit mono at 8 kHz, nothing else. The detail names the file.
fn read_wav(path: &Path) -> Result<Vec<i16>, String> {
    let shown = path.display();
    let mut reader = hound::WavReader::open(path).map_err(|error| format!("{shown}: {error}"))?;
    let spec = reader.spec();
    if spec.sample_rate != RATE_HZ
        || spec.channels != 1
        || spec.bits_per_sample != 16
        || spec.sample_format != hound::SampleFormat::Int
    {
        return Err(format!(
            "{shown}: wanted 16-bit mono at {RATE_HZ} Hz, found {} bits, {} channels at {} Hz",
            spec.bits_per_sample, spec.channels, spec.sample_rate
        ));
    }
    if reader.duration() > MAX_SAMPLES {
        return Err(format!("{shown}: longer than ten minutes"));
    }
    reader.samples().collect::<Result<_, _>>().map_err(|error| format!("{shown}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_wav(path: &Path, rate: u32, samples: usize) {
        let spec = hound::WavSpec {
            channels: 1,
            sample_rate: rate,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let mut writer = hound::WavWriter::create(path, spec).unwrap();
        (0..samples).for_each(|n| writer.write_sample(n as i16).unwrap());
        writer.finalize().unwrap();
    }

    fn fixture(toml: &str) -> Result<Fixture, FixtureError> {
        let dir = tempfile::tempdir().unwrap();
        write_wav(&dir.path().join("01.wav"), 8_000, 16_000);
        write_wav(&dir.path().join("wide.wav"), 16_000, 16_000);
        std::fs::write(dir.path().join("call.toml"), toml).unwrap();
        Fixture::load(dir.path())
    }

    #[test]
    fn a_whole_call_is_read_with_its_sounds() {
        let call = fixture(
            r#"
            name = "booking"
            title = "Books a table"
            language = "en"
            workflow = "front-desk"
            voice = "en-us"
            background = "01.wav"
            echo = { gain_db = -25.0, delay_ms = 100 }
            [[turn]]
            file = "01.wav"
            text = "What time do you open today"
            start = { after_agent_ms = 700 }
            speech = [[20, 900], [1100, 1640]]
            kind = "turn"
            [[turn]]
            file = "01.wav"
            start = { into_agent_ms = 1200 }
            kind = "noise"
            [expect]
            slots = { people = "four" }
            remember = ["booking"]
            agent_says = ["open"]
            ended_by = "agent"
            "#,
        )
        .unwrap();
        assert_eq!((call.turns[0].onset_ms(), call.turns[0].offset_ms()), (20, 1640));
        assert_eq!(call.turns[1].start, Start::IntoAgent(1200));
        assert_eq!(call.turns[1].offset_ms(), 2000);
        assert_eq!(call.expect.slots["people"], "four");
        assert_eq!(call.expect.ended_by, Some(Ender::Agent));
        assert_eq!(call.background.unwrap().len(), 16_000);
    }

    #[test]
    fn all_faults_are_named_at_once() {
        let error = fixture(
            r#"
            name = "bad"
            background = "none.wav"
            [[turn]]
            file = "wide.wav"
            text = "hello"
            start = { after_agent_ms = 700 }
            speech = [[0, 10]]
            kind = "turn"
            [[turn]]
            file = "01.wav"
            text = "hello"
            start = { after_agent_ms = 700, into_agent_ms = 3 }
            speech = [[0, 10]]
            kind = "turn"
            [[turn]]
            file = "01.wav"
            text = "hello"
            start = { after_agent_ms = 700 }
            speech = [[0, 2100]]
            kind = "turn"
            "#,
        )
        .unwrap_err()
        .to_string();
        for part in ["none.wav", "turn 1", "16000 Hz", "turn 2: start needs either", "turn 3: speech [0, 2100]"] {
            assert!(error.contains(part), "`{part}` is missing in: {error}");
        }
    }

    #[test]
    fn a_key_that_fixtures_do_not_have_is_an_error() {
        let error = fixture("name = \"x\"\ncolour = \"red\"").unwrap_err().to_string();
        assert!(error.contains("colour"), "{error}");
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("booking")).unwrap();
        std::fs::write(root.path().join("booking/call.toml"), "name = \"booking\"").unwrap();
        let error = Fixture::find(root.path(), "boking").unwrap_err().to_string();
        assert!(error.contains("booking") && error.contains("boking"), "{error}");
    }
}
