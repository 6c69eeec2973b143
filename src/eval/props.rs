//! Stand-ins for an agent's tools in a rehearsal: what a scenario says that a tool answers; and for everything that
//! reaches outside, an answer that does nothing. Tools that only tell the conversation something run for real.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::judge::fits;
use crate::agent::profile::AgentProfile;
use crate::agent::tools::telephone::{self, Abilities, CallOrder, HistoryOrder, SmsOrder, Telephone};
use crate::agent::tools::{Tool, ToolBox, ToolContext, ToolError, ToolOutcome, ToolRegistry, search_knowledge, steps};
use crate::speech::llm::{ToolCall, ToolSpec};

/// Tools whose whole work is what they tell the conversation, and lookups in the company's own documents.
const INSIDE: [&str; 7] =
    ["end_call", "remember", "transfer_call", "send_dtmf", search_knowledge::NAME, steps::GO_TO, steps::NOTE];

/// What a tool answers in a rehearsal.
#[derive(Clone, Debug, PartialEq)]
pub struct Stub {
    pub name: String,
    /// What the arguments must hold; null: anything.
    pub when: Value,
    /// `None`: what it would answer without this stub, only later.
    pub answer: Option<Result<Value, String>>,
    pub delay_ms: u64,
}

/// How a rehearsal waits.
#[derive(Clone, Debug)]
pub enum Pace {
    /// Delays are added to this clock, in milliseconds, and take no time.
    Counted(Arc<AtomicU64>),
    Real,
}

/// What an agent gets in place of its tools.
#[derive(Clone, Debug)]
pub struct Props {
    pub stubs: Vec<Stub>,
    pub pace: Pace,
    /// `turn.tool_limit_ms`: a counted delay beyond it is a tool that did not answer.
    pub limit: Duration,
    /// Tools that reach outside do so, where no stub is in their place.
    pub real: bool,
}

impl Props {
    /// The tools of `agent` in this rehearsal. `tools` are those that it has; those of the telephone that it names and
    /// its company cannot offer are there too, unless they are to be real.
    pub fn dress(&self, agent: &AgentProfile, tools: ToolBox) -> ToolBox {
        let mut specs = tools.specs();
        let mut missing: Vec<ToolSpec> = Vec::new();
        if !self.real {
            missing.extend(telephone_specs().into_iter().filter(|spec| agent.tools.contains(&spec.name)));
        }
        missing.extend(self.stubs.iter().map(|stub| bare_spec(&stub.name)));
        for spec in missing {
            if !specs.iter().any(|known| known.name == spec.name) {
                specs.push(spec);
            }
        }
        let mut registry = ToolRegistry::default();
        for spec in &specs {
            let stubs = self.stubs.iter().filter(|stub| stub.name == spec.name).cloned().collect();
            let inside = INSIDE.contains(&spec.name.as_str());
            let there = tools.specs().iter().any(|known| known.name == spec.name);
            registry.add(Arc::new(Prop {
                spec: spec.clone(),
                side_effect: !there || tools.is_side_effect(&spec.name),
                behind: (there && (inside || self.real)).then(|| tools.clone()),
                stubs,
                pace: self.pace.clone(),
                limit: self.limit,
            }));
        }
        let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        // Schemas of tools that are there were good before; a bare one is an object.
        ToolBox::new(names, &registry).unwrap_or(tools)
    }

    /// The names that a stub gives to tools that may not exist at all.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.stubs.iter().map(|stub| stub.name.as_str())
    }

    /// Of `agent`'s tools, those that will not really do what they say.
    pub fn simulated<'b>(&self, tools: &'b [ToolSpec]) -> Vec<&'b str> {
        let names = tools.iter().map(|spec| spec.name.as_str());
        names.filter(|name| !self.real && !INSIDE.contains(name)).collect()
    }
}

fn bare_spec(name: &str) -> ToolSpec {
    ToolSpec { name: name.into(), description: String::new(), parameters: json!({ "type": "object" }) }
}

/// What the telephone's tools are, from a telephone that is never used.
fn telephone_specs() -> Vec<ToolSpec> {
    let mut registry = ToolRegistry::default();
    telephone::provision(&(Arc::new(Prank) as Arc<dyn Telephone>), &mut registry);
    ToolBox::new(telephone::NAMES, &registry).map(|tools| tools.specs()).unwrap_or_default()
}

struct Prop {
    spec: ToolSpec,
    side_effect: bool,
    /// Where the real tool is to run.
    behind: Option<ToolBox>,
    stubs: Vec<Stub>,
    pace: Pace,
    limit: Duration,
}

impl Tool for Prop {
    fn spec(&self) -> ToolSpec {
        self.spec.clone()
    }

    fn side_effect(&self) -> bool {
        self.side_effect
    }

    fn call(&self, args: Value, cx: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
        let stub = self.stubs.iter().find(|stub| fits(&stub.when, &args)).cloned();
        let (name, pace, limit) = (self.spec.name.clone(), self.pace.clone(), self.limit);
        let behind = self.behind.clone();
        async move {
            if let Some(delay_ms) = stub.as_ref().map(|stub| stub.delay_ms).filter(|ms| *ms > 0) {
                wait(&name, delay_ms, &pace, limit).await?;
            }
            match (stub.and_then(|stub| stub.answer), behind) {
                (Some(Ok(result)), _) => Ok(ToolOutcome { content: result.to_string(), effect: None }),
                (Some(Err(error)), _) => Err(ToolError::Failed(error)),
                (None, Some(tools)) => run_behind(&tools, &name, &args, cx, limit).await,
                (None, None) => Ok(ToolOutcome { content: simulated(&name).to_string(), effect: None }),
            }
        }
        .boxed()
    }
}

async fn wait(name: &str, delay_ms: u64, pace: &Pace, limit: Duration) -> Result<(), ToolError> {
    let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    match pace {
        Pace::Real => tokio::time::sleep(Duration::from_millis(delay_ms)).await,
        Pace::Counted(clock) => {
            clock.fetch_add(delay_ms.min(limit_ms), Ordering::Relaxed);
            if delay_ms > limit_ms {
                // The words of a tool box whose tool is late.
                let late = format!("{name} gave nothing within {limit_ms} ms; it may or may not have worked");
                return Err(ToolError::Failed(late));
            }
        }
    }
    Ok(())
}

async fn run_behind(
    tools: &ToolBox,
    name: &str,
    args: &Value,
    cx: ToolContext,
    limit: Duration,
) -> Result<ToolOutcome, ToolError> {
    let call = ToolCall { id: String::new(), name: name.to_owned(), arguments: args.to_string() };
    let result = tools.run(&call, cx, limit).await;
    if result.ok {
        return Ok(ToolOutcome { content: result.content, effect: result.effect });
    }
    let error = serde_json::from_str::<Value>(&result.content).ok();
    let error = error.and_then(|value| Some(value["error"].as_str()?.to_owned()));
    Err(ToolError::Failed(error.unwrap_or(result.content)))
}

/// What a tool that does nothing answers: as the real one would where all goes well.
fn simulated(name: &str) -> Value {
    match name {
        "make_call" => json!({ "status": "dialling", "call": "simulated" }),
        "send_sms" => json!({ "status": "sent", "message": "simulated" }),
        "get_call_history" => json!({ "calls": [], "not_answering": [] }),
        _ => json!({ "ok": true, "simulated": true }),
    }
}

/// A telephone that does nothing.
struct Prank;

impl Telephone for Prank {
    fn abilities(&self) -> Abilities {
        Abilities { call: true, message: true, history: true }
    }

    fn make_call(&self, _cx: ToolContext, _order: CallOrder) -> BoxFuture<'static, Result<Value, ToolError>> {
        async { Ok(simulated("make_call")) }.boxed()
    }

    fn send_sms(&self, _cx: ToolContext, _order: SmsOrder) -> BoxFuture<'static, Result<Value, ToolError>> {
        async { Ok(simulated("send_sms")) }.boxed()
    }

    fn call_history(&self, _cx: ToolContext, _order: HistoryOrder) -> BoxFuture<'static, Result<Value, ToolError>> {
        async { Ok(simulated("get_call_history")) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tools::{CallEffect, ToolResult};
    use crate::telephony::{CallId, PhoneNumber};

    fn props(stubs: Vec<Stub>) -> (Props, Arc<AtomicU64>) {
        let clock = Arc::new(AtomicU64::new(0));
        let limit = Duration::from_secs(5);
        (Props { stubs, pace: Pace::Counted(clock.clone()), limit, real: false }, clock)
    }

    fn stub(name: &str, when: Value, answer: Option<Result<Value, String>>, delay_ms: u64) -> Stub {
        Stub { name: name.into(), when, answer, delay_ms }
    }

    async fn run(props: &Props, name: &str, arguments: Value) -> ToolResult {
        let agent = AgentProfile { tools: vec!["send_sms".into()], ..AgentProfile::default() };
        let own = ToolBox::new(["remember", "end_call"], &ToolRegistry::with_call_tools()).expect("they exist");
        let tools = props.dress(&agent, own);
        let cx = ToolContext::new(CallId::new(), PhoneNumber::default(), PhoneNumber::default());
        let call = ToolCall { id: "1".into(), name: name.into(), arguments: arguments.to_string() };
        tools.run(&call, cx, Duration::from_secs(9)).await
    }

    #[tokio::test]
    async fn what_only_tells_the_conversation_is_real_and_what_reaches_outside_is_not() {
        let (props, _) = props(Vec::new());
        let result = run(&props, "remember", json!({ "key": "k", "value": 1 })).await;
        assert_eq!(result.effect, Some(CallEffect::Remember { key: "k".into(), value: json!(1) }));
        assert!(!run(&props, "remember", json!({ "key": "" })).await.ok, "its arguments are checked as ever");
        let result = run(&props, "send_sms", json!({ "to": "+15550002222", "text": "Hi" })).await;
        assert_eq!(result.content, r#"{"message":"simulated","status":"sent"}"#);
        assert!(!run(&props, "send_sms", json!({ "to": "+15550002222" })).await.ok, "and so are these");
        assert!(!run(&props, "make_call", json!({ "to": "+15550002222" })).await.ok, "the agent has no such tool");
    }

    #[tokio::test]
    async fn a_stub_answers_by_its_arguments_and_a_delay_is_counted() {
        let (props, clock) = props(vec![
            stub("weather", json!({ "city": "Kyiv" }), Some(Ok(json!({ "sky": "clear" }))), 700),
            stub("weather", Value::Null, Some(Err("no such city".into())), 0),
            stub("remember", Value::Null, None, 300),
            stub("slow", Value::Null, Some(Ok(json!({}))), 60_000),
        ]);
        assert_eq!(run(&props, "weather", json!({ "city": "Kyiv" })).await.content, r#"{"sky":"clear"}"#);
        assert_eq!(run(&props, "weather", json!({})).await.content, r#"{"error":"no such city"}"#);
        assert!(run(&props, "remember", json!({ "key": "k", "value": 1 })).await.effect.is_some());
        assert_eq!(clock.load(Ordering::Relaxed), 1000);
        let slow = run(&props, "slow", json!({})).await;
        assert!(slow.content.contains("slow gave nothing within 5000 ms"), "{}", slow.content);
        assert_eq!(clock.load(Ordering::Relaxed), 6000);
    }
}
