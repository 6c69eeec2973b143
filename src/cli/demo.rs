//! `offhook demo`: a recorded caller talks to an agent on this machine. A server is started on a free port; the caller
//! comes in as Twilio would bring it, by a signed webhook and a media websocket. Exits 0 only if the caller was
//! understood and answered.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use secrecy::SecretString;
use tokio::sync::{broadcast, mpsc};
use uuid::Uuid;

use crate::agent::profile::{AgentProfile, EngineChoice, ModelChoice, VoiceChoice};
use crate::app::App;
use crate::call::handle::CallEvent;
use crate::call::record::CallRecord;
use crate::config::Config;
use crate::load::caller::{CallerReport, Ending, Way, http_client};
use crate::load::fixture::{Ender, Fixture};
use crate::providers::credentials::Credentials;
use crate::store::directory::{Directory, Integration, Line};
use crate::store::ledger::Ledger;
use crate::telephony::Party;

use judge::{Verdict, failures, judge};
use page::{ReportInput, ReportTurn};
use player::{Printer, Spoken};

pub mod judge;
pub mod page;
pub mod player;

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which recorded caller, a folder of `--fixtures`; `all` plays every one
    #[arg(long, default_value = "booking", value_name = "NAME")]
    call: String,
    /// The engines of the agent: `local` needs nothing, `openai` needs the keys of the configuration
    #[arg(long, value_enum, default_value_t = EngineSet::Local)]
    engines: EngineSet,
    /// Where the page, the recording and the transcript go
    #[arg(long, default_value = "out/demo", value_name = "DIR")]
    out: PathBuf,
    /// Recorded callers
    #[arg(long, default_value = "audio-fixtures", value_name = "DIR")]
    fixtures: PathBuf,
    /// Workflow files
    #[arg(long, default_value = "workflows", value_name = "DIR")]
    workflows: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum EngineSet {
    /// Whisper, the workflow's rules, espeak: all on this machine.
    Local,
    /// Recognition, model and voice of the OpenAI-shaped services in the configuration.
    Openai,
}

const ACCOUNT: &str = "AC00000000000000000000000000000000";
const NUMBER: &str = "+15550001111";
/// Clauses and events of one call; a demo that prints slower than that loses lines, not calls.
const LINES: usize = 256;

pub async fn run(args: Args, config: Config) -> anyhow::Result<ExitCode> {
    let names = match args.call.as_str() {
        "all" => Fixture::names(&args.fixtures),
        name => vec![name.to_owned()],
    };
    if names.is_empty() {
        bail!(
            "no recorded callers in {}; run this in the project's folder or name one with --fixtures",
            args.fixtures.display()
        );
    }
    let mut failed = Vec::new();
    for name in &names {
        let out = if names.len() == 1 { args.out.clone() } else { args.out.join(name) };
        let fixture = Arc::new(Fixture::find(&args.fixtures, name)?);
        if !demonstrate(&args, config.clone(), fixture, &out).await? {
            failed.push(name.as_str());
        }
    }
    if names.len() > 1 {
        println!("{} of {} calls went as they should", names.len() - failed.len(), names.len());
    }
    if !failed.is_empty() {
        println!("FAILED: {}", failed.join(", "));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// One call from ring to report; false when it did not go as the fixture says it must.
async fn demonstrate(args: &Args, mut config: Config, fixture: Arc<Fixture>, out: &Path) -> anyhow::Result<bool> {
    println!("{}: {}", fixture.name, fixture.title);
    config.server.listen = ([127, 0, 0, 1], 0).into();
    config.server.public_url = None;
    config.recording.enabled = true;
    config.recording.dir = out.join("calls");
    let secret = Uuid::new_v4().simple().to_string();
    let (directory, integration) = set_up(args, &fixture, &secret)?;
    let app = App::start(config, Arc::new(ArcSwap::from_pointee(directory)), None, Ledger::none()).await?;
    let (lines_tx, lines) = mpsc::channel(LINES);
    let telling = tokio::spawn(tell(app.calls.events(), lines_tx));
    let way = Way::Webhook {
        url: format!("http://{}/webhooks/twilio/{integration}/voice", app.address),
        auth_token: SecretString::from(secret),
        client: http_client()?,
    };
    let report = player::play(way, fixture.clone(), lines, &mut Printer::stdout()).await;
    let recordings = out.join("calls");
    app.stop().await;
    let call = telling.await.context("the task that prints panicked")?;
    let Some(call) = call else { bail!("the call never started: {:?}", report.ending) };
    let folder = recordings.join(call.to_string());
    let json = std::fs::read(folder.join("record.json")).context("the call left no record")?;
    let record: CallRecord = serde_json::from_slice(&json).context("the call's record")?;
    std::fs::write(out.join("transcript.json"), &json)?;
    std::fs::copy(folder.join("call.wav"), out.join("call.wav")).context("the call left no recording")?;
    std::fs::remove_dir_all(&recordings).ok();
    let verdicts = verdicts(&fixture, &record, &report);
    let figures = figures(&record, &report);
    print_outcome(&verdicts, &figures);
    let ok = failures(&verdicts).is_empty();
    let recording =
        report.recording.unwrap_or(crate::load::caller::Recording { caller: Vec::new(), agent: Vec::new() });
    let page = ReportInput {
        title: format!("{}: {}", fixture.name, fixture.title),
        wav: [recording.caller, recording.agent],
        turns: record.transcript.lines.iter().map(ReportTurn::from).collect(),
        figures,
        verdicts,
    };
    std::fs::write(out.join("report.html"), page.html().context("the report")?)?;
    println!("  {0}/call.wav  {0}/transcript.json  {0}/report.html\n", out.display());
    Ok(ok)
}

/// One company, one Twilio integration, one line, one agent, in memory.
fn set_up(args: &Args, fixture: &Fixture, secret: &str) -> anyhow::Result<(Directory, Uuid)> {
    let path = args.workflows.join(format!("{}.toml", fixture.workflow));
    let workflow = std::fs::read_to_string(&path).with_context(|| {
        format!("cannot read {}; run this in the project's folder or name one with --workflows", path.display())
    })?;
    let (stt, tts, llm) = match args.engines {
        EngineSet::Local => ("whisper", "espeak", "builtin"),
        EngineSet::Openai => ("openai", "openai", "openai"),
    };
    let agent = AgentProfile {
        name: "Front desk".into(),
        language: fixture.language.clone(),
        greeting: "Hello, Oak Garden, how can I help you?".into(),
        prompt: "You are the front desk of the restaurant Oak Garden, open every day from eight in the morning until ten in the evening. \
                 Book tables (number of people, day, time, name), note callback wishes with the tool remember, \
                 and end the call with the tool end_call when the caller says goodbye."
            .into(),
        stt: EngineChoice { engine: stt.into() },
        tts: VoiceChoice { engine: tts.into(), ..VoiceChoice::default() },
        llm: ModelChoice { engine: llm.into(), ..ModelChoice::default() },
        workflow: Some(workflow),
        tools: vec!["end_call".into(), "remember".into(), "transfer_call".into()],
        ..AgentProfile::default()
    };
    let id = Uuid::now_v7();
    let values = [("account_sid", ACCOUNT), ("auth_token", secret)];
    let integration = Integration {
        id,
        company_id: Uuid::now_v7(),
        company: "Oak Garden".into(),
        name: "Demo".into(),
        provider: "twilio",
        credentials: Credentials::from_stored(values.map(|(name, value)| (name.into(), value.into())).into()),
        webhook_secret: None,
    };
    let line = Line {
        id: Uuid::now_v7(),
        integration: id,
        number: NUMBER.into(),
        agent_id: Uuid::now_v7(),
        agent_version: 1,
        agent: Arc::new(agent),
    };
    Ok((Directory::new(vec![integration], vec![line]), id))
}

/// Passes on what the agent says, and gives the call's id when it is over.
async fn tell(
    mut events: broadcast::Receiver<CallEvent>,
    lines: mpsc::Sender<Spoken>,
) -> Option<crate::telephony::CallId> {
    let mut started = tokio::time::Instant::now();
    let mut id = None;
    loop {
        let event = match events.recv().await {
            Ok(event) => event,
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return id,
        };
        let text = match event {
            CallEvent::Started { call } => {
                started = tokio::time::Instant::now();
                id = Some(call);
                continue;
            }
            CallEvent::Said { who: Party::Agent, text, .. } => text,
            CallEvent::Interrupted { .. } => "(stops)".into(),
            CallEvent::Resumed { .. } => "(goes on)".into(),
            CallEvent::ToolUsed { name, .. } => format!("(uses {name})"),
            CallEvent::Ended { .. } => return id,
            CallEvent::Said { .. } => continue,
        };
        let at_ms = started.elapsed().as_millis() as u64;
        let _ = lines.try_send(Spoken { who: Party::Agent, at_ms, text });
    }
}

fn verdicts(fixture: &Fixture, record: &CallRecord, report: &CallerReport) -> Vec<Verdict> {
    let by_agent = matches!(report.ending, Ending::AgentHungUp);
    let ended_by = if by_agent { Ender::Agent } else { Ender::Caller };
    let remembered = record.remembered.clone();
    let mut verdicts = judge(fixture, &record.transcript.lines, &remembered, ended_by);
    let detail = format!("{:?}", report.ending);
    verdicts.push(Verdict { check: "the call ran to its end".into(), ok: !report.ending.is_failure(), detail });
    let faults = record.faults.join("; ");
    verdicts.push(Verdict { check: "no engine failed".into(), ok: record.faults.is_empty(), detail: faults });
    verdicts
}

fn figures(record: &CallRecord, report: &CallerReport) -> Vec<(String, String)> {
    let mut figures = vec![("call".to_owned(), format!("{:.1} s", report.duration_ms / 1000.0))];
    let mut list = |name: &str, mut values: Vec<f64>| {
        if values.is_empty() {
            return;
        }
        values.sort_by(f64::total_cmp);
        let worst = values[values.len() - 1];
        figures.push((
            name.to_owned(),
            format!("median {:.0} ms, worst {worst:.0} ms, of {}", values[values.len() / 2], values.len()),
        ));
    };
    list("reply, end of speech to first sound", report.figures.turns.iter().filter_map(|turn| turn.reply_ms).collect());
    list("barge-in, first sound to silence", report.figures.turns.iter().filter_map(|turn| turn.barge_in_ms).collect());
    let interruptions = record.interruptions;
    figures.push((
        "playout paused for a sound".into(),
        format!(
            "{}, of which {} interruptions and {} gone on",
            interruptions.suspected, interruptions.confirmed, interruptions.denied
        ),
    ));
    figures
}

fn print_outcome(verdicts: &[Verdict], figures: &[(String, String)]) {
    println!();
    for (name, value) in figures {
        println!("  {name}: {value}");
    }
    for verdict in verdicts {
        println!("  {} {}: {}", if verdict.ok { "ok    " } else { "FAILED" }, verdict.check, verdict.detail);
    }
}
