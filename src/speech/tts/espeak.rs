//! eSpeak NG as a process: the voice that needs no key, no network and no model, in more than a hundred languages.
//! Processes are started ahead with everything but the text, which goes in on stdin: that takes the start out of the
//! first audio (12 ms to 0.7 ms, research/crates.md §5), keeps text out of the argument list, keeps the GPL program
//! apart, and lets a crash cost one clause. One process speaks one utterance and ends.

use std::collections::{BTreeMap, HashMap};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};

use super::outlet::{Gone, Outlet};
use super::pcm::PcmReader;
use super::{SpeechRequest, SpeechStream, Synthesizer, TtsError};
use crate::speech::http::clip;

const ENGINE: &str = "espeak";
const SETTING: &str = "speech.tts.espeak.program";
/// What espeak-ng takes; beyond it, it clamps by itself.
const WPM: std::ops::RangeInclusive<f32> = 80.0..=450.0;
/// An utterance in characters. Its bytes fit into a pipe, so that writing them never waits for the process.
const TEXT_MAX: usize = 4000;
/// A process that has closed its stdout has this long to end by itself; a killed one is gone at once.
const EXIT_LIMIT: Duration = Duration::from_millis(500);
/// What a broken process said, up to this.
const COMPLAINT_BYTES: usize = 500;

#[derive(Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct EspeakConfig {
    /// The program, by name or path. Default `espeak-ng`.
    pub program: String,
    /// Words a minute at speed 1.0 (80 to 450). Default 175.
    pub rate_wpm: u32,
    /// Voices for languages that should not have the program's own, e.g. `en = "en-gb"`. Default none.
    pub voices: BTreeMap<String, String>,
    /// Processes kept waiting for each voice and rate in use. Default 2: a clause and the next one. Each costs about
    /// 3 MB, and one start (10 ms of a core) is paid after each utterance in any case. 0 = none, first audio +12 ms.
    pub pool: usize,
    /// Processes kept waiting over all voices and rates; the least recently used go first. Default 16.
    pub pool_total: usize,
    /// A process that nobody wanted is ended after this. Default 300,000 ms.
    pub idle_ms: u64,
    /// Utterances spoken at once; more wait their turn within `first_audio_limit_ms`. Default 32.
    pub running: usize,
    /// No sound within this is a failure. Default 2,000 ms.
    pub first_audio_limit_ms: u64,
    /// No more sound within this, in the middle of an utterance, is a failure. Default 2,000 ms.
    pub gap_limit_ms: u64,
}

impl Default for EspeakConfig {
    fn default() -> Self {
        Self {
            program: "espeak-ng".into(),
            rate_wpm: 175,
            voices: BTreeMap::new(),
            pool: 2,
            pool_total: 16,
            idle_ms: 300_000,
            running: 32,
            first_audio_limit_ms: 2000,
            gap_limit_ms: 2000,
        }
    }
}

impl EspeakConfig {
    /// What cannot be right, one sentence each.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.program.is_empty() {
            faults.push("program is empty".to_owned());
        }
        if !WPM.contains(&(self.rate_wpm as f32)) {
            faults.push(format!("rate_wpm is {}, not within 80 to 450", self.rate_wpm));
        }
        if self.running == 0 {
            faults.push("running is 0: nothing could be said".to_owned());
        }
        for (name, value) in [
            ("first_audio_limit_ms", self.first_audio_limit_ms),
            ("gap_limit_ms", self.gap_limit_ms),
            ("idle_ms", self.idle_ms),
        ] {
            if value == 0 {
                faults.push(format!("{name} is 0"));
            }
        }
        for voice in self.voices.values().filter(|voice| !is_voice_name(voice)) {
            faults.push(format!("{voice:?} in voices is no voice name"));
        }
        faults
    }
}

/// Speaks with eSpeak NG. Clones share one pool of processes.
#[derive(Clone)]
pub struct Espeak {
    pool: Arc<Pool>,
}

impl Espeak {
    /// Starts nothing yet: a missing program is an error of the first utterance, and of [`check`](Self::check).
    pub fn new(config: EspeakConfig) -> Self {
        let cancel = CancellationToken::new();
        Self {
            pool: Arc::new(Pool {
                running: Arc::new(Semaphore::new(config.running.min(Semaphore::MAX_PERMITS))),
                config,
                idle: Mutex::default(),
                _cancel_on_drop: cancel.clone().drop_guard(),
                cancel,
            }),
        }
    }

    /// Asks the program for its version, for `offhook check`.
    pub async fn check(&self) -> Result<String, TtsError> {
        let config = &self.pool.config;
        let run = Command::new(&config.program).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
        let limit = Duration::from_millis(config.first_audio_limit_ms);
        let output = match timeout(limit, run).await {
            Ok(output) => output.map_err(|error| config.cannot_start(&error))?,
            Err(_) => return Err(TtsError::Timeout { engine: ENGINE, limit }),
        };
        Ok(clip(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default()))
    }
}

impl Synthesizer for Espeak {
    fn name(&self) -> &'static str {
        ENGINE
    }

    fn speak(&self, request: SpeechRequest) -> SpeechStream {
        let (stream, tx, cancel) = SpeechStream::new();
        let mut outlet = Outlet::new(ENGINE, Instant::now(), tx);
        let pool = self.pool.clone();
        tokio::spawn(async move {
            // A future that is dropped takes its process along: it is killed, and the runtime collects it.
            match cancel.run_until_cancelled(pool.utter(&request, &mut outlet)).await {
                Some(Err(error)) => {
                    warn!(%error, program = pool.config.program, "utterance lost");
                    cancel.run_until_cancelled(outlet.fail(error)).await;
                }
                Some(Ok(())) | None => {
                    // The stream has ended for its reader before the next process is paid for.
                    drop(outlet);
                    if let Ok(manner) = pool.config.manner(&request) {
                        pool.fill(&manner);
                    }
                }
            }
        });
        stream
    }

    fn prepare(&self, request: &SpeechRequest) {
        if let Ok(manner) = self.pool.config.manner(request) {
            let pool = self.pool.clone();
            tokio::spawn(async move { pool.fill(&manner) });
        }
    }
}

/// How an utterance is to be spoken: processes with the same manner can stand in for each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Manner {
    voice: String,
    wpm: u32,
}

impl EspeakConfig {
    fn manner(&self, request: &SpeechRequest) -> Result<Manner, TtsError> {
        let voice = if request.voice.is_empty() { self.voice_for(&request.language) } else { request.voice.clone() };
        if !is_voice_name(&voice) {
            let voice = clip(&voice);
            return Err(failed(format!("{voice:?} is no voice name; `{} --voices` lists them", self.program)));
        }
        let speed = if request.speed.is_finite() { request.speed.clamp(0.5, 2.0) } else { 1.0 };
        let wpm = (self.rate_wpm as f32 * speed).clamp(*WPM.start(), *WPM.end()).round() as u32;
        Ok(Manner { voice, wpm })
    }

    /// The voice for a language tag. The program knows most tags, with and without a region, by themselves.
    fn voice_for(&self, language: &str) -> String {
        let tag = language.trim().to_ascii_lowercase().replace('_', "-");
        let base = tag.split('-').next().unwrap_or_default();
        if let Some(voice) = self.voices.get(&tag).or_else(|| self.voices.get(base)) {
            return voice.clone();
        }
        match tag.as_str() {
            // Its plain `en` is British; on the phone numbers of this program's examples that sounds foreign.
            "" | "en" => "en-us".to_owned(),
            _ => tag,
        }
    }

    fn cannot_start(&self, error: &std::io::Error) -> TtsError {
        let program = &self.program;
        failed(match error.kind() {
            std::io::ErrorKind::NotFound => {
                format!("program `{program}` not found; install the package espeak-ng or set {SETTING}")
            }
            _ => format!("program `{program}` does not start: {error}; check {SETTING}"),
        })
    }
}

fn is_voice_name(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '_' | '-'))
}

fn failed(detail: String) -> TtsError {
    TtsError::Engine { engine: ENGINE, status: None, detail }
}

/// A process that waits for its text.
struct Speaker {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    stderr: ChildStderr,
    since: Instant,
}

impl Speaker {
    fn start(config: &EspeakConfig, manner: &Manner) -> Result<Self, TtsError> {
        let mut child = Command::new(&config.program)
            // -b 1: the text is UTF-8 whatever the locale. -z: no pause after the last sentence.
            .args(["--stdout", "-b", "1", "-z", "-v", &manner.voice, "-s", &manner.wpm.to_string(), "--stdin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| config.cannot_start(&error))?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let held = "the three pipes were asked for above";
        Ok(Self {
            child,
            stdin: stdin.expect(held),
            stdout: stdout.expect(held),
            stderr: stderr.expect(held),
            since: Instant::now(),
        })
    }
}

/// Why an attempt on one process failed.
struct Broken {
    error: TtsError,
    /// A process that died while it waited says nothing about the next one.
    again: bool,
}

impl From<TtsError> for Broken {
    fn from(error: TtsError) -> Self {
        Self { error, again: false }
    }
}

#[derive(Default)]
struct Idle {
    waiting: HashMap<Manner, Shelf>,
    /// Counts uses, to know which manner was wanted last.
    uses: u64,
    reaping: bool,
}

#[derive(Default)]
struct Shelf {
    speakers: Vec<Speaker>,
    used: u64,
}

struct Pool {
    config: EspeakConfig,
    running: Arc<Semaphore>,
    idle: Mutex<Idle>,
    cancel: CancellationToken,
    _cancel_on_drop: DropGuard,
}

impl Pool {
    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    async fn utter(self: &Arc<Self>, request: &SpeechRequest, outlet: &mut Outlet) -> Result<(), TtsError> {
        let manner = self.config.manner(request)?;
        let text = spoken_text(&request.text)?;
        let limit = Duration::from_millis(self.config.first_audio_limit_ms);
        let first_by = Instant::now() + limit;
        let turn = timeout_at(first_by, self.running.clone().acquire_owned()).await;
        // The semaphore is never closed.
        let Ok(Ok(_turn)) = turn else { return Err(TtsError::Timeout { engine: ENGINE, limit }) };

        let waiting = self.take(&manner);
        let was_waiting = waiting.is_some();
        let speaker = waiting.map_or_else(|| Speaker::start(&self.config, &manner), Ok)?;
        let mut outcome = self.attempt(speaker, &text, first_by, outlet).await;
        if was_waiting && !outlet.begun() && matches!(outcome, Err(Broken { again: true, .. })) {
            debug!("a waiting process was dead; starting another");
            outlet.restart();
            outcome = self.attempt(Speaker::start(&self.config, &manner)?, &text, first_by, outlet).await;
        }
        outcome.map_err(|broken| broken.error)
    }

    /// Speaks with one process and waits until it is gone.
    async fn attempt(
        &self,
        mut speaker: Speaker,
        text: &str,
        first_by: Instant,
        outlet: &mut Outlet,
    ) -> Result<(), Broken> {
        let config = &self.config;
        let program = &config.program;
        let written = timeout_at(first_by, async {
            speaker.stdin.write_all(text.as_bytes()).await?;
            speaker.stdin.shutdown().await
        })
        .await;
        drop(speaker.stdin);
        let limit = Duration::from_millis(config.first_audio_limit_ms);
        let gap = Duration::from_millis(config.gap_limit_ms);
        let mut broken = match written {
            Err(_) => return Err(TtsError::Timeout { engine: ENGINE, limit }.into()),
            Ok(Err(error)) => Some(format!("program `{program}` does not take text: {error}")),
            Ok(Ok(())) => None,
        };

        let mut reader = PcmReader::wav();
        let (mut bytes, mut samples) = ([0; 4096], Vec::new());
        while broken.is_none() {
            let (by, limit) = if outlet.begun() { (Instant::now() + gap, gap) } else { (first_by, limit) };
            let read = match timeout_at(by, speaker.stdout.read(&mut bytes)).await {
                Err(_) => return Err(TtsError::Timeout { engine: ENGINE, limit }.into()),
                Ok(Err(error)) => {
                    broken = Some(format!("program `{program}` broke off: {error}"));
                    break;
                }
                Ok(Ok(0)) => break,
                Ok(Ok(read)) => read,
            };
            samples.clear();
            if let Err(error) = reader.push(&bytes[..read], &mut samples) {
                return Err(failed(format!("program `{program}` wrote {error}; is {SETTING} an espeak-ng?")).into());
            }
            if let Some(rate) = reader.rate()
                && let Err(Gone) = outlet.say(rate, &samples).await
            {
                return Ok(());
            }
        }

        // The process has said all it will say. Its exit status tells whether that was all it should have said.
        let status = timeout(EXIT_LIMIT, speaker.child.wait()).await;
        let complaint = match (broken, status) {
            (Some(broken), _) => broken,
            (None, Ok(Ok(status))) if !status.success() => format!("program `{program}` ended with {status}"),
            (None, _) if reader.rate().is_none() => format!("program `{program}` ended without a sound"),
            (None, _) => {
                let (Ok(()) | Err(Gone)) = outlet.finish().await;
                return Ok(());
            }
        };
        let mut said = Vec::new();
        let mut stderr = speaker.stderr.take(COMPLAINT_BYTES as u64);
        let _ = timeout(EXIT_LIMIT, stderr.read_to_end(&mut said)).await;
        let said = clip(&String::from_utf8_lossy(&said));
        let cure = format!("check {SETTING} and that `{program} --voices` lists the voice");
        let said = if said.is_empty() { said } else { format!(" ({said})") };
        Err(Broken { error: failed(format!("{complaint}{said}; {cure}")), again: reader.rate().is_none() })
    }

    /// A process that waits for this manner, if there is one.
    fn take(&self, manner: &Manner) -> Option<Speaker> {
        let mut idle = self.idle();
        idle.uses += 1;
        let used = idle.uses;
        let shelf = idle.waiting.get_mut(manner)?;
        shelf.used = used;
        // The one that waited longest is the surest to have finished starting.
        (!shelf.speakers.is_empty()).then(|| shelf.speakers.remove(0))
    }

    /// Starts processes until enough wait for this manner. Over the total, those least recently used are ended.
    fn fill(self: &Arc<Self>, manner: &Manner) {
        let wanted = self.config.pool.min(self.config.pool_total);
        for _ in 0..wanted {
            if self.idle().waiting.get(manner).is_some_and(|shelf| shelf.speakers.len() >= wanted) {
                return;
            }
            // Started outside the lock: it takes about a millisecond.
            let speaker = match Speaker::start(&self.config, manner) {
                Ok(speaker) => speaker,
                Err(error) => return debug!(%error, "no process started ahead"),
            };
            let mut idle = self.idle();
            idle.uses += 1;
            let used = idle.uses;
            let shelf = idle.waiting.entry(manner.clone()).or_default();
            shelf.used = used;
            shelf.speakers.push(speaker);
            idle.shrink(self.config.pool_total);
            if !std::mem::replace(&mut idle.reaping, true) {
                let idle_limit = Duration::from_millis(self.config.idle_ms);
                let reaper = reap(Arc::downgrade(self), idle_limit);
                tokio::spawn(self.cancel.clone().run_until_cancelled_owned(reaper));
            }
        }
    }
}

impl Idle {
    fn len(&self) -> usize {
        self.waiting.values().map(|shelf| shelf.speakers.len()).sum()
    }

    /// Dropping a [`Speaker`] kills its process; the runtime collects what is left of it.
    fn shrink(&mut self, most: usize) {
        while self.len() > most {
            let oldest = self.waiting.iter().min_by_key(|(_, shelf)| shelf.used).map(|(manner, _)| manner.clone());
            let Some(oldest) = oldest else { return };
            let Some(shelf) = self.waiting.get_mut(&oldest) else { return };
            if shelf.speakers.len() > 1 {
                shelf.speakers.remove(0);
            } else {
                self.waiting.remove(&oldest);
            }
        }
    }
}

/// Ends processes that waited for too long. Lives as long as any waits, and no longer than the pool.
async fn reap(pool: Weak<Pool>, idle_limit: Duration) {
    loop {
        let next = {
            let Some(pool) = pool.upgrade() else { return };
            let mut idle = pool.idle();
            let now = Instant::now();
            for shelf in idle.waiting.values_mut() {
                shelf.speakers.retain(|speaker| speaker.since + idle_limit > now);
            }
            idle.waiting.retain(|_, shelf| !shelf.speakers.is_empty());
            let oldest = idle.waiting.values().flat_map(|shelf| &shelf.speakers).map(|speaker| speaker.since).min();
            idle.reaping = oldest.is_some();
            oldest.map(|since| since + idle_limit)
        };
        let Some(next) = next else { return };
        sleep_until(next).await;
    }
}

/// The text as it goes in: one line, nothing that the program would read as a command.
fn spoken_text(text: &str) -> Result<String, TtsError> {
    let length = text.chars().count();
    if length > TEXT_MAX {
        return Err(failed(format!("an utterance of {length} characters, where {TEXT_MAX} is the most")));
    }
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    // `[[…]]` would be taken as phoneme names.
    while line.contains("[[") {
        line = line.replace("[[", "[ [");
    }
    line.push('\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manner(language: &str, voice: &str, speed: f32) -> Result<Manner, TtsError> {
        let config = EspeakConfig { voices: [("de".into(), "de+f2".into())].into(), ..EspeakConfig::default() };
        config.manner(&SpeechRequest { text: String::new(), language: language.into(), voice: voice.into(), speed })
    }

    #[test]
    fn the_voice_follows_the_language_unless_one_is_named() {
        for (language, voice, expected) in [
            ("en", "", "en-us"),
            ("", "", "en-us"),
            ("en-GB", "", "en-gb"),
            ("uk", "", "uk"),
            ("uk_UA", "", "uk-ua"),
            ("ru", "", "ru"),
            ("de-AT", "", "de+f2"),
            ("uk", "en-us+f3", "en-us+f3"),
        ] {
            assert_eq!(manner(language, voice, 1.0).expect("a voice").voice, expected, "{language} {voice}");
        }
    }

    #[test]
    fn a_voice_name_is_not_a_way_to_pass_options_or_paths() {
        for voice in ["-w/tmp/x", "../../etc/passwd", "en us", "en;ls", "", "+f3", "ї", &"a".repeat(65)] {
            assert!(!is_voice_name(voice), "{voice}");
        }
        let error = manner("en", "../x", 1.0).expect_err("refused").to_string();
        assert!(error.contains("espeak-ng --voices"), "{error}");
        assert!(manner("--help", "", 1.0).is_err());
    }

    #[test]
    fn speed_becomes_words_a_minute_within_what_the_program_takes() {
        for (speed, expected) in
            [(1.0, 175), (1.2, 210), (0.5, 88), (0.01, 88), (9.0, 350), (f32::NAN, 175), (f32::INFINITY, 175)]
        {
            assert_eq!(manner("en", "", speed).expect("a voice").wpm, expected, "{speed}");
        }
    }

    #[test]
    fn text_holds_no_commands_for_the_program() {
        assert_eq!(spoken_text("a\0b\nc\u{1b}").expect("short"), "a b c \n");
        assert!(!spoken_text("[[[[h@l'oU]]]]").expect("short").contains("[["));
        assert!(spoken_text(&"ї".repeat(TEXT_MAX)).is_ok());
        assert!(spoken_text(&"ї".repeat(TEXT_MAX + 1)).is_err());
    }

    #[test]
    fn faults_of_a_configuration_are_all_named() {
        assert_eq!(EspeakConfig::default().faults(), Vec::<String>::new());
        let config = EspeakConfig {
            program: String::new(),
            rate_wpm: 10,
            running: 0,
            gap_limit_ms: 0,
            voices: [("en".into(), "-x".into())].into(),
            ..EspeakConfig::default()
        };
        assert_eq!(config.faults().len(), 5);
    }
}
