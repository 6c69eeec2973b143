//! `offhook eval FILE…`: plays scenarios to agents and holds what comes of them against what must. In writing with a
//! clock that is counted, or by speech over a real call on this machine. The files' format: `eval/scenario.rs`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::StreamExt as _;
use futures::stream;
use indicatif::{ProgressBar, ProgressStyle};

use crate::app;
use crate::cli::rehearsal::{Cast, Stage};
use crate::config::Config;
use crate::eval::judge::{self, Verdict};
use crate::eval::report::{Played, Report, Run};
use crate::eval::scenario::{MAX_FILE, Mode, Scenario};
use crate::speech::llm::{LanguageModel, LlmEvent};

mod sounds;
mod spoken;
mod written;

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = FORMAT)]
pub struct Args {
    /// Scenario files (.toml), or folders of them
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The set-up file that has the agents, for scenarios that name none; without it, the store
    #[arg(long, value_name = "FILE")]
    setup: Option<PathBuf>,
    /// Whose agents, where several companies have one of a name
    #[arg(long, value_name = "NAME")]
    company: Option<String>,
    /// Only scenarios with this in their name
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Play each so many times, for models that answer differently each time
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// The part of the repeats that must pass, above 0 and at most 1
    #[arg(long, default_value_t = 1.0, value_name = "SHARE", value_parser = share)]
    pass_share: f64,
    /// Conversations in writing at once; those by speech come one after another, as they are measured
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    parallel: u32,
    /// Play all in writing, recordings by their words
    #[arg(long)]
    text: bool,
    /// Another language model than the agents' own, as `openai`
    #[arg(long, value_name = "ENGINE")]
    llm: Option<String>,
    /// The language model that answers the scenarios' `judge` questions; without it they are skipped
    #[arg(long, value_name = "ENGINE")]
    judge: Option<String>,
    /// Write JUnit's XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write a page to read
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Recorded callers
    #[arg(long, default_value = "audio-fixtures", value_name = "DIR")]
    fixtures: PathBuf,
}

const FORMAT: &str = "\
Exit code: 0 all passed, 1 some failed, 2 some could not be played (a fault in a file, an agent that is not there).

A scenario:
  version = 1
  agent = \"Front desk\"
  setup = \"../oak-garden.toml\"
  [[step]]
  says = \"A table for four on Friday, please\"   # or: plays, keys, silence_ms
  interrupts = { after_words = 5 }              # into the answer before
    [step.expect]
    said = \"At what time\"                       # any_of, none_of, matches, heard
    slots = { people = \"4\" }                    # no_slots, node, expects
    tools = [{ name = \"remember\", arguments = { key = \"booking\" } }]   # no_tools
    reply_within_ms = 1500
  [expect]                                      # of the whole: the same, and turns
  remembered = { booking = { people = \"4\" } }   # not_remembered, handover, ended, judge
Everything a scenario may hold: scenarios/README.md.";

/// Scenarios that one command plays.
const MAX_SCENARIOS: usize = 10_000;
/// A scenario, a set-up or an agent that is not as it must be: nothing was played.
const EXIT_UNPLAYABLE: u8 = 2;
/// A judging model that has not answered by then will not.
const JUDGE_LIMIT: Duration = Duration::from_secs(60);

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "write a number such as 0.8".to_owned())?;
    if share > 0.0 && share <= 1.0 { Ok(share) } else { Err("it is above 0 and at most 1".into()) }
}

pub async fn run(args: Args, config: Config) -> anyhow::Result<ExitCode> {
    let scenarios = match read(&args) {
        Ok(scenarios) => scenarios,
        Err(faults) => {
            faults.iter().for_each(|fault| eprintln!("{fault}"));
            eprintln!("{} to correct; nothing was played", faults.len());
            return Ok(ExitCode::from(EXIT_UNPLAYABLE));
        }
    };
    let report = match play(&args, &config, &scenarios).await {
        Ok(report) => report,
        Err(error) => {
            eprintln!("offhook: {error:#}");
            return Ok(ExitCode::from(EXIT_UNPLAYABLE));
        }
    };
    print!("{}", report.text());
    if let Some(path) = &args.junit {
        std::fs::write(path, report.junit()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.html {
        let html = report.html().context("the report as HTML")?;
        std::fs::write(path, html).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All scenarios of the command, in the order of files and names; or everything that is wrong with them.
fn read(args: &Args) -> Result<Vec<Scenario>, Vec<String>> {
    let (mut files, mut faults) = (Vec::new(), Vec::new());
    for path in &args.files {
        match path.is_dir() {
            true => match toml_files(path) {
                Ok(found) if found.is_empty() => faults.push(format!("{}: no .toml files in it", path.display())),
                Ok(found) => files.extend(found),
                Err(error) => faults.push(format!("cannot read {}: {error}", path.display())),
            },
            false => files.push(path.clone()),
        }
    }
    if files.len() > MAX_SCENARIOS {
        return Err(vec![format!("{} files; at most {MAX_SCENARIOS} are played at once", files.len())]);
    }
    let mut scenarios: Vec<Scenario> = Vec::new();
    for file in files {
        let shown = file.display().to_string();
        let text = match std::fs::metadata(&file).and_then(|meta| match meta.len() > MAX_FILE {
            true => Err(std::io::Error::other(format!("larger than {MAX_FILE} bytes: is it a scenario?"))),
            false => std::fs::read_to_string(&file),
        }) {
            Ok(text) => text,
            Err(error) => {
                faults.push(format!("cannot read {shown}: {error}"));
                continue;
            }
        };
        match Scenario::parse(&text, &file) {
            Ok(scenario) => scenarios.push(scenario),
            Err(found) => faults.extend(found.into_iter().map(|fault| format!("{shown}: {fault}"))),
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    if let Some(filter) = &args.filter {
        scenarios.retain(|scenario| scenario.name.contains(filter.as_str()));
        if scenarios.is_empty() {
            return Err(vec![format!("no scenario has {filter:?} in its name")]);
        }
    }
    if args.text {
        scenarios.iter_mut().for_each(|scenario| scenario.mode = Mode::Text);
    }
    Ok(scenarios)
}

fn toml_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() && path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A scenario with everything that it is played with.
struct Play<'a> {
    scenario: &'a Scenario,
    stage: &'a Stage,
    cast: Cast,
    /// One a step; `None` where nothing is played.
    sounds: Vec<Option<sounds::Recorded>>,
}

async fn play(args: &Args, config: &Config, scenarios: &[Scenario]) -> anyhow::Result<Report> {
    let began = Instant::now();
    let mut stages: BTreeMap<Option<PathBuf>, Stage> = BTreeMap::new();
    for scenario in scenarios {
        let setup = scenario.setup.clone().or_else(|| args.setup.clone());
        if let Entry::Vacant(place) = stages.entry(setup) {
            let stage = Stage::open(config, place.key().as_deref(), false).await;
            place.insert(stage.with_context(|| scenario.file.display().to_string())?);
        }
    }
    let judge = args.judge.as_deref().map(|name| judging_model(config, name)).transpose()?;
    let mut plays = Vec::with_capacity(scenarios.len());
    for scenario in scenarios {
        let place = || scenario.file.display().to_string();
        let stage = &stages[&scenario.setup.clone().or_else(|| args.setup.clone())];
        let stubs: Vec<&str> = scenario.stubs.iter().map(|stub| stub.name.as_str()).collect();
        let cast = stage.agent(&scenario.agent, args.company.as_deref()).with_context(place)?;
        let cast = cast.with(args.llm.as_deref(), &stubs);
        stage.calls.can_run(&cast.profile).map_err(anyhow::Error::msg).with_context(place)?;
        let sounds = sounds::load(scenario, &args.fixtures).with_context(place)?;
        plays.push(Play { scenario, stage, cast, sounds });
    }

    let mut runs: Vec<Vec<Run>> = plays.iter().map(|_| Vec::new()).collect();
    let rounds = || (0..plays.len()).flat_map(|index| (0..args.repeat).map(move |_| index));
    let in_text = rounds().filter(|index| plays[*index].scenario.mode == Mode::Text);
    let judge = judge.as_ref();
    // Drawn on a terminal only.
    let progress = ProgressBar::new(rounds().count() as u64);
    let style = ProgressStyle::with_template("{elapsed_precise} {bar:40} {pos}/{len} {msg}");
    progress.set_style(style.expect("the template is valid"));
    let mut written = stream::iter(in_text)
        .map(|index| {
            let play = &plays[index];
            async move { (index, judged(written::play(play, config).await, play.scenario, judge).await) }
        })
        .buffered(args.parallel as usize);
    while let Some((index, run)) = written.next().await {
        runs[index].push(run);
        progress.inc(1);
    }
    drop(written);
    for index in rounds().filter(|index| plays[*index].scenario.mode == Mode::Speech) {
        let play = &plays[index];
        progress.set_message(play.scenario.name.clone());
        runs[index].push(judged(spoken::play(play, config).await, play.scenario, judge).await);
        progress.inc(1);
    }
    progress.finish_and_clear();

    let played = plays.iter().zip(runs).map(|(play, runs)| Played {
        name: play.scenario.name.clone(),
        title: play.scenario.title.clone(),
        file: play.scenario.file.display().to_string(),
        agent: play.scenario.agent.clone(),
        mode: play.scenario.mode.label(),
        runs,
        needed: args.pass_share,
    });
    let report = Report { played: played.collect(), took_ms: began.elapsed().as_secs_f64() * 1000.0 };
    drop(plays);
    for stage in stages.into_values() {
        stage.close().await;
    }
    Ok(report)
}

fn judging_model(config: &Config, name: &str) -> anyhow::Result<Arc<dyn LanguageModel>> {
    let models = app::writing_engines(config)?.llm;
    match models.get(name) {
        Some(model) => Ok(model.clone()),
        None => {
            let mut known: Vec<&str> = models.keys().map(String::as_str).collect();
            known.sort_unstable();
            bail!("--judge {name}: no language model of this name; there are {}", known.join(", "))
        }
    }
}

/// The verdicts of a run, with those of a model where there is one.
async fn judged(mut run: Run, scenario: &Scenario, model: Option<&Arc<dyn LanguageModel>>) -> Run {
    let whole = run.observed.whole();
    let observed = run.observed.clone();
    let steps = scenario.steps.iter().zip(&observed.moments).enumerate();
    let mut places = vec![("greeting".to_owned(), &scenario.greeting, &observed.greeting)];
    places.extend(steps.map(|(index, (step, moment))| (place(index, step.line), &step.expect, moment)));
    let count = places.len();
    places.push(("in the end".to_owned(), &scenario.expect, &whole));
    for (index, (place, expect, moment)) in places.into_iter().enumerate() {
        for verdict in judge::verdicts(expect, moment) {
            run.verdicts.push((place.clone(), verdict));
        }
        for question in &expect.judge {
            let about = (index < count).then_some(moment);
            let verdict = match model {
                None => Verdict::skipped(format!("judge: {question}"), "no --judge"),
                Some(model) => ask(&**model, judge::question(&observed, about, question), question).await,
            };
            run.verdicts.push((place.clone(), verdict));
        }
    }
    if let Some(turns) = scenario.turns {
        run.verdicts.push(("in the end".into(), judge::turns(turns, &observed)));
    }
    run
}

async fn ask(model: &dyn LanguageModel, request: crate::speech::llm::ChatRequest, question: &str) -> Verdict {
    let failed = |why: String| Verdict::new(format!("judge: {question}"), false, why);
    let mut stream = model.reply(request);
    let reading = async {
        let mut answer = String::new();
        while let Some(event) = stream.next().await {
            match event {
                Ok(LlmEvent::Text(text)) => answer.push_str(&text),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(answer)
    };
    match tokio::time::timeout(JUDGE_LIMIT, reading).await {
        Ok(Ok(answer)) => judge::judged(question, &answer),
        Ok(Err(error)) => failed(format!("the judging model failed: {error}")),
        Err(_) => failed(format!("the judging model gave nothing within {} s", JUDGE_LIMIT.as_secs())),
    }
}

/// Where a step stands, for a person.
fn place(index: usize, line: usize) -> String {
    format!("step {} (line {line})", index + 1)
}
