//! A scenario by speech: a server on a free port, and a recorded caller who comes in as Twilio would bring it, by a signed
//! webhook and a media websocket. Times are real and measured from outside; the record says what was understood.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use secrecy::SecretString;
use serde_json::Value;
use tokio::sync::broadcast;
use uuid::Uuid;

use super::sounds::PAUSE_MS;
use super::{Play, place};
use crate::agent::builtin::Builtin;
use crate::agent::memory::Memory;
use crate::agent::profile::AgentProfile;
use crate::agent::tools::{ToolBox, ToolResult};
use crate::app::App;
use crate::call::handle::CallEvent;
use crate::call::record::CallRecord;
use crate::call::registry::StandIns;
use crate::cli::rehearsal::call_facts;
use crate::config::Config;
use crate::eval::judge::{Moment, Observed, Used};
use crate::eval::props::{Pace, Props};
use crate::eval::report::Run;
use crate::eval::scenario::After;
use crate::load::caller::{self, CallerConfig, CallerReport, Way, http_client};
use crate::load::fixture::{Ender, Expect, Fixture, Kind, Start};
use crate::providers::credentials::Credentials;
use crate::speech::llm::ToolCall;
use crate::store::directory::{Directory, Integration, Line};
use crate::store::ledger::Ledger;
use crate::telephony::{CallId, Party};

const ACCOUNT: &str = "AC00000000000000000000000000000000";
/// The longest call.
const CALL_LIMIT: Duration = Duration::from_secs(300);
/// A turn is measured from its first voiced frame; what the detector hears may begin a little before.
const SLACK_MS: f64 = 300.0;

struct Dressed(Props);

impl StandIns for Dressed {
    fn replace(&self, agent: &AgentProfile, tools: ToolBox) -> ToolBox {
        self.0.dress(agent, tools)
    }
}

pub(super) async fn play(play: &Play<'_>, config: &Config) -> Run {
    let began = Instant::now();
    let folder = std::env::temp_dir().join(format!("offhook-{}", Uuid::now_v7().simple()));
    let called = call(play, config, &folder).await;
    let _ = std::fs::remove_dir_all(&folder);
    let mut run = match called {
        Ok((record, report)) => told(play, &record, &report),
        Err(error) => Run { fault: Some(format!("{error:#}")), ..Run::default() },
    };
    run.took_ms = began.elapsed().as_secs_f64() * 1000.0;
    run
}

/// One call from ring to record.
async fn call(play: &Play<'_>, config: &Config, folder: &Path) -> anyhow::Result<(CallRecord, CallerReport)> {
    let mut config = config.clone();
    config.server.listen = ([127, 0, 0, 1], 0).into();
    config.server.public_url = None;
    config.recording.enabled = false;
    config.recording.dir = folder.to_owned();
    let limit = Duration::from_millis(config.turn.with(&play.cast.profile.turn).tool_limit_ms);
    let secret = Uuid::new_v4().simple().to_string();
    let (directory, integration) = line(play, &secret);
    let app = App::start(config, Arc::new(ArcSwap::from_pointee(directory)), None, Ledger::none()).await?;
    let stubs = play.scenario.stubs.clone();
    app.calls.use_stand_ins(Arc::new(Dressed(Props { stubs, pace: Pace::Real, limit, real: false })));
    if let Some(knowledge) = &play.stage.knowledge {
        app.calls.use_library(Arc::new(knowledge.clone()));
    }
    let started = tokio::spawn(first_call(app.calls.events()));
    let way = Way::Webhook {
        url: format!("http://{}/webhooks/twilio/{integration}/voice", app.address),
        auth_token: SecretString::from(secret),
        client: http_client()?,
    };
    let mut caller = CallerConfig::new(way, Arc::new(fixture(play)));
    caller.from = play.scenario.facts.caller.as_str().to_owned();
    caller.to = play.scenario.facts.line.as_str().to_owned();
    caller.call_limit = CALL_LIMIT;
    let report = caller::call(caller).await;
    // Its events end with the server: who waits for a call that never came is told so.
    app.stop().await;
    let Some(id) = started.await.context("the task that listens panicked")? else {
        bail!("the call never started: {:?}", report.ending)
    };
    let path: PathBuf = folder.join(id.to_string()).join("record.json");
    let json = std::fs::read(&path).context("the call left no record")?;
    Ok((serde_json::from_slice(&json).context("the call's record")?, report))
}

async fn first_call(mut events: broadcast::Receiver<CallEvent>) -> Option<CallId> {
    loop {
        match events.recv().await {
            Ok(CallEvent::Started { call }) => return Some(call),
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

/// One line in memory, answered by the agent.
fn line(play: &Play<'_>, secret: &str) -> (Directory, Uuid) {
    let id = Uuid::now_v7();
    let values = [("account_sid", ACCOUNT), ("auth_token", secret)];
    let integration = Integration {
        id,
        company_id: play.cast.company_id,
        company: play.cast.company.clone(),
        name: "Rehearsal".into(),
        provider: "twilio",
        credentials: Credentials::from_stored(values.map(|(name, value)| (name.into(), value.into())).into()),
        webhook_secret: None,
    };
    let line = Line {
        id: Uuid::now_v7(),
        integration: id,
        number: play.scenario.facts.line.as_str().to_owned(),
        agent_id: Uuid::now_v7(),
        agent_version: 1,
        agent: play.cast.profile.clone(),
    };
    (Directory::new(vec![integration], vec![line]), id)
}

/// The steps as a recorded caller.
fn fixture(play: &Play<'_>) -> Fixture {
    let scenario = play.scenario;
    let turns = scenario.steps.iter().zip(&play.sounds).filter_map(|(step, recorded)| {
        let mut turn = recorded.as_ref()?.turn.clone();
        match step.interrupts {
            Some(After::Ms(ms)) => (turn.kind, turn.start) = (Kind::Interruption, Start::IntoAgent(ms)),
            // A recorded interruption that does not interrupt here is an ordinary turn.
            _ if turn.kind == Kind::Interruption => (turn.kind, turn.start) = (Kind::Turn, Start::AfterAgent(PAUSE_MS)),
            _ => {}
        }
        Some(turn)
    });
    let ended = scenario.steps.last().and_then(|step| step.expect.ended).or(scenario.expect.ended);
    let ended_by = ended.map(|by_agent| if by_agent { Ender::Agent } else { Ender::Caller });
    Fixture {
        name: scenario.name.clone(),
        title: scenario.title.clone(),
        language: play.cast.profile.language.clone(),
        workflow: String::new(),
        voice: String::new(),
        background: None,
        echo: None,
        turns: turns.collect(),
        expect: Expect { ended_by, ..Expect::default() },
    }
}

/// What the record and the caller's own figures say, step by step.
fn told(play: &Play<'_>, record: &CallRecord, report: &CallerReport) -> Run {
    let facts = call_facts(&play.cast, &play.scenario.facts);
    let engines = play.stage.calls.engines(&play.cast.profile, &facts).ok();
    let builtin = engines.and_then(|engines| engines.builtin);
    let onset = |step: usize| report.figures.turns.iter().find(|turn| turn.turn == step + 1).map(|turn| turn.onset_ms);
    let steps = play.scenario.steps.len();
    let mut scribe = Scribe { memory: Memory::new(""), builtin, before: Moment::default() };
    let mut observed = Observed::default();
    // Before the first step stands the greeting; a step lasts until the next one begins.
    let mut from = f64::NEG_INFINITY;
    let mut fault = None;
    for index in 0..=steps {
        let until = if index < steps { onset(index).map(|at| at - SLACK_MS) } else { Some(f64::INFINITY) };
        let until = until.unwrap_or(f64::INFINITY);
        let mut moment = scribe.moment(record, from, until);
        if index == 0 {
            observed.greeting = moment;
        } else {
            let turn = report.figures.turns.iter().find(|turn| turn.turn == index);
            moment.reply_ms = turn.and_then(|turn| turn.reply_ms);
            observed.moments.push(moment);
        }
        if index < steps && onset(index).is_none() {
            let place = place(index, play.scenario.steps[index].line);
            fault = Some(format!("{place}: the call was over before it ({})", report.ending.label()));
            break;
        }
        from = until;
    }
    if let Some(last) = observed.moments.last_mut() {
        last.remembered = record.remembered.clone();
        last.handover = record.handover.clone();
        last.ended = record.end.is_some_and(|end| end.by == Party::Agent);
    }
    let failed = (!record.faults.is_empty()).then(|| format!("an engine failed: {}", record.faults.join("; ")));
    let broken = report.ending.is_failure().then(|| format!("the call did not run to its end: {:?}", report.ending));
    Run { fault: fault.or(failed).or(broken), observed, lasted_ms: report.duration_ms, ..Run::default() }
}

/// Reads a record from its beginning.
struct Scribe {
    memory: Memory,
    builtin: Option<Arc<Builtin>>,
    /// How things stood before.
    before: Moment,
}

impl Scribe {
    /// What happened from `from` until `until`, milliseconds of the call.
    fn moment(&mut self, record: &CallRecord, from: f64, until: f64) -> Moment {
        let within = |ms: u64| (from..until).contains(&(ms as f64));
        let lines = record.transcript.lines.iter().filter(|line| within(line.start_ms));
        let (mut caller, mut agent): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
        let mut heard = None;
        for line in lines {
            match line.who {
                Party::Caller => caller.push(&line.text),
                _ => {
                    agent.push(&line.text);
                    heard = line.heard.clone().or(heard);
                }
            }
        }
        let mut moment = Moment {
            caller: caller.join(" "),
            agent: agent.join(" "),
            heard,
            remembered: self.before.remembered.clone(),
            handover: self.before.handover.clone(),
            ended: self.before.ended,
            ..Moment::default()
        };
        self.memory.user_said(&moment.caller);
        for tool in record.transcript.tools.iter().filter(|tool| within(tool.at_ms)) {
            let ok = !serde_json::from_str::<Value>(&tool.result).is_ok_and(|value| value.get("error").is_some());
            self.used(&tool.name, &tool.arguments, &tool.result, ok);
            if ok {
                take(&mut moment, &tool.name, &tool.arguments);
            }
            moment.tools.push(Used {
                name: tool.name.clone(),
                arguments: tool.arguments.clone(),
                result: tool.result.clone(),
                ok,
            });
        }
        self.memory.agent_said(&moment.agent);
        if let Some(heard) = &moment.heard {
            self.memory.interrupted(heard);
        }
        moment.progress = self.builtin.as_ref().map(|builtin| builtin.state(&self.memory.all()));
        self.before = moment.clone();
        moment
    }

    fn used(&mut self, name: &str, arguments: &Value, result: &str, ok: bool) {
        let id = format!("call_{}", self.memory.messages().len());
        let call = ToolCall { id: id.clone(), name: name.into(), arguments: arguments.to_string() };
        let result = ToolResult { call_id: id, content: result.into(), ok, effect: None };
        self.memory.tool_round(&[call], &[result]);
    }
}

/// What a tool that worked did to the conversation.
fn take(moment: &mut Moment, name: &str, arguments: &Value) {
    match name {
        "remember" => {
            let key = arguments["key"].as_str().unwrap_or_default().to_owned();
            let noted: &mut BTreeMap<String, Value> = &mut moment.remembered;
            noted.insert(key, arguments["value"].clone());
        }
        "transfer_call" => moment.handover = arguments["reason"].as_str().map(str::to_owned),
        "end_call" => moment.ended = true,
        _ => {}
    }
}
