//! Tools: what an agent can do besides talking. A [`ToolBox`] holds those one agent may use, checks the arguments that
//! a model wrote, and turns every failure into a text that the model can act on. Providers bring tools of their own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::speech::llm::{ToolCall, ToolSpec};
use crate::telephony::{CallId, PhoneNumber};

use self::once::{Once, Wish, running};

mod end_call;
pub mod fetch;
pub mod http;
pub mod mcp;
mod once;
pub mod reach;
pub mod recall_caller;
mod remember;
pub mod search_knowledge;
mod send_dtmf;
pub mod steps;
pub mod telephone;
mod transfer_call;

/// Longest result that a model is given, in bytes; more costs tokens on every later turn.
pub const MAX_RESULT_BYTES: usize = 16 * 1024;
/// Longest arguments that are read, in bytes.
pub const MAX_ARGUMENT_BYTES: usize = 64 * 1024;
/// Calls of one round that run at the same time; the others wait.
const AT_ONCE: usize = 4;
/// Calls of one round that are run; a model that asks for more has lost its way.
const MAX_CALLS: usize = 16;

/// One tool.
pub trait Tool: Send + Sync {
    fn spec(&self) -> ToolSpec;

    /// Whether a call changes anything outside the conversation: such a tool never runs on unconfirmed words.
    fn side_effect(&self) -> bool;

    /// `args` fit the schema of the spec. Dropping the future cancels the work.
    fn call(&self, args: Value, cx: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>>;

    /// Its own time limit, in place of the caller's.
    fn limit(&self) -> Option<Duration> {
        None
    }

    /// Longest result that the model is given; [`MAX_RESULT_BYTES`] at most.
    fn max_result_bytes(&self) -> usize {
        MAX_RESULT_BYTES
    }

    /// What is said in this language while it is slow. `None`: nothing.
    fn filler(&self, _language: &str) -> Option<String> {
        None
    }
}

/// On whose behalf a tool works.
#[derive(Clone, Debug)]
pub struct ToolContext {
    pub call: CallId,
    pub caller: PhoneNumber,
    /// The line's own number.
    pub line: PhoneNumber,
    /// Which turn of the call: the same wish in another turn is another wish.
    pub turn: u64,
    /// For servers that know idempotency keys; empty where the tool changes nothing.
    pub key: String,
    /// The time that the tool has.
    pub limit: Duration,
}

impl ToolContext {
    /// Of the call's first turn.
    pub fn new(call: CallId, caller: PhoneNumber, line: PhoneNumber) -> Self {
        Self { call, caller, line, turn: 0, key: String::new(), limit: http::DEFAULT_LIMIT }
    }

    pub fn in_turn(self, turn: u64) -> Self {
        Self { turn, ..self }
    }
}

/// The tools that a company made for itself.
pub trait CompanyTools: Send + Sync {
    /// Adds those that are there now, by the names that agents have for them.
    fn provision(&self, company: Uuid, registry: &mut ToolRegistry);
}

/// What a tool gave.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolOutcome {
    /// JSON text for the model.
    pub content: String,
    /// What the call has to do about it.
    pub effect: Option<CallEffect>,
}

/// What a tool wants of the call that it was called on.
#[derive(Clone, Debug, PartialEq)]
pub enum CallEffect {
    /// Hang up when what has been said is heard.
    EndCall { reason: Option<String> },
    /// A fact for the call record; a later one of the same key replaces it.
    Remember { key: String, value: Value },
    /// The caller is to be handed to a person.
    Handover { to: String },
    /// Keys to press for the other side, `0-9 * # A-D`.
    PressKeys { keys: String },
}

/// Why a tool did not do it; the text goes to the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ToolError {
    /// The arguments fit the schema and still make no sense: the model can write others.
    #[error("{0}")]
    Arguments(String),
    /// It was not even begun: the same may be tried again.
    #[error("{0}")]
    Undone(String),
    /// It did not work; the model should tell the caller so.
    #[error("{0}")]
    Failed(String),
}

/// A tool call's result, whatever happened.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolResult {
    pub call_id: String,
    /// JSON text for the model; `{"error": …}` when it did not work.
    pub content: String,
    pub ok: bool,
    pub effect: Option<CallEffect>,
}

/// All tools there are, by name.
#[derive(Clone, Default)]
pub struct ToolRegistry {
    tools: BTreeMap<String, Arc<dyn Tool>>,
    /// Time after which a slow tool is bridged by a word; zero: never.
    pub filler_after: Duration,
}

impl ToolRegistry {
    /// The tools that need nothing but the call: `end_call`, `remember`, `send_dtmf`, `transfer_call`.
    pub fn with_call_tools() -> Self {
        let mut registry = Self::default();
        registry.add(Arc::new(end_call::EndCall));
        registry.add(Arc::new(remember::Remember));
        registry.add(Arc::new(transfer_call::TransferCall));
        registry.add(Arc::new(send_dtmf::SendDtmf));
        registry
    }

    /// A tool of the same name is replaced.
    pub fn add(&mut self, tool: Arc<dyn Tool>) {
        self.tools.insert(tool.spec().name, tool);
    }

    /// Under a name that agents have for it and models need not: `crm.find` for `crm__find`.
    pub fn add_as(&mut self, name: String, tool: Arc<dyn Tool>) {
        self.tools.insert(name, tool);
    }

    pub fn into_tools(self) -> impl Iterator<Item = (String, Arc<dyn Tool>)> {
        self.tools.into_iter()
    }

    pub fn has(&self, name: &str) -> bool {
        self.tools.contains_key(name)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tools.keys().map(String::as_str)
    }
}

/// Why an agent's tools cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ToolBoxError {
    #[error("tools: there is no tool {}; available: {available}", .names.iter().map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(", "))]
    Unknown { names: Vec<String>, available: String },
    #[error("tools: the schema of \"{name}\" is wrong: {detail}")]
    Schema { name: String, detail: String },
}

/// Whether arguments can be checked by this schema. Nothing outside it is fetched: the crate is built without any
/// resolver. Patterns are matched in linear time: whoever writes arguments is not trusted.
pub(crate) fn build_schema(parameters: &Value) -> Result<jsonschema::Validator, String> {
    let patterns = jsonschema::PatternOptions::regex().size_limit(1 << 20);
    let schema = jsonschema::options().with_pattern_options(patterns).build(parameters);
    schema.map_err(|error| clip(&error.to_string(), 300).to_owned())
}

/// The tools that there are without a company's doing.
const BUILTIN: [&str; 9] = [
    "end_call",
    "remember",
    "transfer_call",
    "send_dtmf",
    recall_caller::NAME,
    search_knowledge::NAME,
    telephone::NAMES[0],
    telephone::NAMES[1],
    telephone::NAMES[2],
];

/// What any agent has by itself.
pub const OF_EVERY_CALL: [&str; 3] = ["end_call", "remember", "transfer_call"];

/// Whether a tool of this name is the program's own.
pub fn is_builtin(name: &str) -> bool {
    BUILTIN.contains(&name)
}

/// The tools of one agent, for one call.
#[derive(Clone, Default)]
pub struct ToolBox {
    tools: BTreeMap<String, Held>,
    filler_after: Duration,
    once: Once,
    /// Runs that go on though the reply that asked for them is gone.
    tasks: TaskTracker,
}

#[derive(Clone)]
struct Held {
    tool: Arc<dyn Tool>,
    spec: ToolSpec,
    schema: Arc<jsonschema::Validator>,
}

impl ToolBox {
    /// The named tools; all unknown names are reported at once.
    pub fn new<'n>(names: impl IntoIterator<Item = &'n str>, registry: &ToolRegistry) -> Result<Self, ToolBoxError> {
        let mut tools = BTreeMap::new();
        let mut unknown = Vec::new();
        for name in names {
            let Some(tool) = registry.tools.get(name) else {
                unknown.push(name.to_owned());
                continue;
            };
            let spec = tool.spec();
            let schema = build_schema(&spec.parameters)
                .map_err(|detail| ToolBoxError::Schema { name: name.to_owned(), detail })?;
            tools.insert(spec.name.clone(), Held { tool: tool.clone(), spec, schema: Arc::new(schema) });
        }
        if unknown.is_empty() {
            let filler_after = registry.filler_after;
            Ok(Self { tools, filler_after, once: Once::default(), tasks: TaskTracker::new() })
        } else {
            let available = registry.names().collect::<Vec<_>>().join(", ");
            Err(ToolBoxError::Unknown { names: unknown, available })
        }
    }

    /// What a model is offered, by name.
    pub fn specs(&self) -> Vec<ToolSpec> {
        self.tools.values().map(|held| held.spec.clone()).collect()
    }

    /// Whether a call must wait until the caller's turn is confirmed. An unknown tool does nothing, so it need not.
    pub fn is_side_effect(&self, name: &str) -> bool {
        self.tools.get(name).is_some_and(|held| held.tool.side_effect())
    }

    /// The time after which a word is said while tools run; `None`: never.
    pub fn filler_after(&self) -> Option<Duration> {
        (!self.filler_after.is_zero()).then_some(self.filler_after)
    }

    /// What is said while these calls are slow: the word of the first that has one.
    pub fn filler(&self, calls: &[ToolCall], language: &str) -> Option<String> {
        calls.iter().find_map(|call| self.tools.get(&call.name)?.tool.filler(language))
    }

    /// Runs the calls of one round, some at a time; the results are in their order.
    pub async fn run_all(&self, calls: &[ToolCall], cx: &ToolContext, limit: Duration) -> Vec<ToolResult> {
        // Made one by one: a future over borrowed calls in a stream's closure is not general enough to be sent.
        let mut runs = Vec::with_capacity(calls.len());
        for (place, call) in calls.iter().enumerate() {
            runs.push(self.run_or_refuse(place, call, cx.clone(), limit).boxed());
        }
        futures::stream::iter(runs).buffered(AT_ONCE).collect().await
    }

    async fn run_or_refuse(&self, place: usize, call: &ToolCall, cx: ToolContext, limit: Duration) -> ToolResult {
        if place >= MAX_CALLS {
            return failure(call, format!("more than {MAX_CALLS} calls at once: this one was not made"));
        }
        self.run(call, cx, limit).await
    }

    /// Runs one call within its tool's limit, or `limit`. Unknown tool, bad arguments, time, failure and panic all come
    /// back as a result. What has a side effect runs to its end though nobody waits, and once for one wish.
    pub async fn run(&self, call: &ToolCall, cx: ToolContext, limit: Duration) -> ToolResult {
        let (held, args) = match self.prepare(call) {
            Ok(prepared) => prepared,
            Err(problem) => return failure(call, problem),
        };
        let cx = ToolContext { limit: held.tool.limit().unwrap_or(limit), ..cx };
        let most = held.tool.max_result_bytes().min(MAX_RESULT_BYTES);
        let tool = held.tool.clone();
        let outcome = if tool.side_effect() {
            let wish = Wish::new(&call.name, &args);
            let (id, turn, name) = (cx.call, cx.turn, call.name.clone());
            let start = |key| running(self.tasks.spawn(attempt(tool, name, args, ToolContext { key, ..cx })));
            self.once.run(wish, id, turn, start).await
        } else {
            attempt(tool, call.name.clone(), args, cx).await
        };
        match outcome {
            Ok(ToolOutcome { content, effect }) => {
                ToolResult { call_id: call.id.clone(), content: cut(content, most), ok: true, effect }
            }
            Err(problem) => failure(call, problem.to_string()),
        }
    }

    /// The model will hear of these calls' results: the same wish in a later turn is a new one.
    pub fn told(&self, calls: &[ToolCall]) {
        let wishes: Vec<Wish> = calls
            .iter()
            .filter(|call| self.is_side_effect(&call.name))
            .filter_map(|call| Some(Wish::new(&call.name, &self.prepare(call).ok()?.1)))
            .collect();
        self.once.told(&wishes);
    }

    /// Waits for what still runs, as long as `limit`.
    pub async fn finish(&self, limit: Duration) {
        self.tasks.close();
        let _ = tokio::time::timeout(limit, self.tasks.wait()).await;
    }

    fn prepare(&self, call: &ToolCall) -> Result<(&Held, Value), String> {
        let Some(held) = self.tools.get(&call.name) else {
            let names: Vec<&str> = self.tools.keys().map(String::as_str).collect();
            return Err(format!("there is no tool \"{}\"; available: {}", clip(&call.name, 64), names.join(", ")));
        };
        if call.arguments.len() > MAX_ARGUMENT_BYTES {
            return Err(format!("the arguments are longer than {MAX_ARGUMENT_BYTES} bytes"));
        }
        let text = if call.arguments.trim().is_empty() { "{}" } else { &call.arguments };
        let args: Value = serde_json::from_str(text).map_err(|error| format!("the arguments are no JSON: {error}"))?;
        let problems: Vec<String> = held
            .schema
            .iter_errors(&args)
            .take(5)
            .map(|error| {
                let place = error.instance_path().to_string();
                let problem = clip(&error.to_string(), 300).to_owned();
                if place.is_empty() { problem } else { format!("{place}: {problem}") }
            })
            .collect();
        if problems.is_empty() { Ok((held, args)) } else { Err(format!("wrong arguments: {}", problems.join("; "))) }
    }
}

/// At most so many bytes, at a character's edge.
fn clip(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

fn cut(content: String, most: usize) -> String {
    if content.len() <= most {
        return content;
    }
    let notice = format!(" … [cut: {most} of {} bytes are shown]", content.len());
    format!("{}{notice}", clip(&content, most.saturating_sub(notice.len())))
}

fn failure(call: &ToolCall, problem: String) -> ToolResult {
    let content = cut(json!({ "error": problem }).to_string(), MAX_RESULT_BYTES);
    ToolResult { call_id: call.id.clone(), content, ok: false, effect: None }
}

/// One run within the context's limit.
async fn attempt(tool: Arc<dyn Tool>, name: String, args: Value, cx: ToolContext) -> Result<ToolOutcome, ToolError> {
    let limit = cx.limit;
    // The tool's own code may panic before its future exists, or in it.
    let work = std::panic::AssertUnwindSafe(async move { tool.call(args, cx).await }).catch_unwind();
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_panic)) => {
            Err(ToolError::Failed(format!("{name} failed unexpectedly; tell the caller that it did not work")))
        }
        Err(_late) => Err(ToolError::Failed(format!(
            "{name} gave nothing within {} ms; it may or may not have worked",
            limit.as_millis()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake {
        name: &'static str,
        behaviour: fn(Value) -> BoxFuture<'static, Result<ToolOutcome, ToolError>>,
    }

    impl Tool for Fake {
        fn spec(&self) -> ToolSpec {
            ToolSpec {
                name: self.name.into(),
                description: "a fake".into(),
                parameters: json!({
                    "type": "object",
                    "properties": { "n": { "type": "integer", "minimum": 1 } },
                    "required": ["n"],
                    "additionalProperties": false,
                }),
            }
        }

        fn side_effect(&self) -> bool {
            false
        }

        fn call(&self, args: Value, _cx: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
            (self.behaviour)(args)
        }
    }

    fn cx() -> ToolContext {
        ToolContext::new(CallId::new(), PhoneNumber::new("+15550001111"), PhoneNumber::default())
    }

    fn call(name: &str, arguments: &str) -> ToolCall {
        ToolCall { id: "c1".into(), name: name.into(), arguments: arguments.into() }
    }

    fn toolbox() -> ToolBox {
        let mut registry = ToolRegistry::with_call_tools();
        let add = |registry: &mut ToolRegistry, name, behaviour| registry.add(Arc::new(Fake { name, behaviour }));
        add(&mut registry, "echo", |args| {
            async move { Ok(ToolOutcome { content: args.to_string(), effect: None }) }.boxed()
        });
        add(&mut registry, "panics", |_| async { panic!("in the tool") }.boxed());
        add(&mut registry, "panics_early", |_| panic!("before the future"));
        add(&mut registry, "hangs", |_| futures::future::pending().boxed());
        add(&mut registry, "refuses", |_| async { Err(ToolError::Failed("the kitchen is closed".into())) }.boxed());
        add(&mut registry, "floods", |_| {
            async { Ok(ToolOutcome { content: "я".repeat(100_000), effect: None }) }.boxed()
        });
        let names: Vec<String> = registry.names().map(str::to_owned).collect();
        ToolBox::new(names.iter().map(String::as_str), &registry).unwrap()
    }

    async fn run(name: &str, arguments: &str) -> ToolResult {
        toolbox().run(&call(name, arguments), cx(), Duration::from_millis(200)).await
    }

    async fn error(name: &str, arguments: &str) -> String {
        let result = run(name, arguments).await;
        assert!(!result.ok && result.effect.is_none());
        let value: Value = serde_json::from_str(&result.content).unwrap();
        value["error"].as_str().unwrap().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn every_failure_is_a_result_that_the_model_can_act_on() {
        assert!(error("fly", "{}").await.contains("no tool \"fly\"; available: echo, end_call"));
        assert!(error("echo", "{n: 1").await.contains("no JSON"));
        assert!(error("echo", "{}").await.contains("\"n\" is a required property"));
        assert!(error("echo", r#"{"n": 0}"#).await.starts_with("wrong arguments: /n: 0 is less than"));
        assert!(error("echo", r#"{"n": 1, "m": 2}"#).await.contains("'m' was unexpected"));
        assert!(error("echo", &format!("{{\"n\": {}}}", "1".repeat(70_000))).await.contains("longer than"));
        assert!(error("panics", r#"{"n": 1}"#).await.contains("failed unexpectedly"));
        assert!(error("panics_early", r#"{"n": 1}"#).await.contains("failed unexpectedly"));
        assert!(error("hangs", r#"{"n": 1}"#).await.contains("within 200 ms"));
        assert_eq!(error("refuses", r#"{"n": 1}"#).await, "the kitchen is closed");
    }

    #[tokio::test]
    async fn a_good_call_gives_its_result_under_its_id() {
        let result = run("echo", r#"{"n": 3}"#).await;
        assert_eq!(result, ToolResult { call_id: "c1".into(), content: r#"{"n":3}"#.into(), ok: true, effect: None });
    }

    #[tokio::test]
    async fn a_long_result_is_cut_with_a_notice() {
        let result = run("floods", r#"{"n": 1}"#).await;
        assert!(result.content.len() <= MAX_RESULT_BYTES);
        assert!(result.content.ends_with("[cut: 16384 of 200000 bytes are shown]"));
    }

    #[tokio::test]
    async fn the_call_tools_have_their_effects() {
        let effect = async |name, arguments| run(name, arguments).await.effect;
        assert_eq!(effect("end_call", "").await, Some(CallEffect::EndCall { reason: None }));
        assert_eq!(
            effect("end_call", r#"{"reason": "done"}"#).await,
            Some(CallEffect::EndCall { reason: Some("done".into()) })
        );
        assert_eq!(
            effect("transfer_call", r#"{"reason": "billing"}"#).await,
            Some(CallEffect::Handover { to: "billing".into() })
        );
        assert_eq!(
            effect("remember", r#"{"key": "booking", "value": {"people": "4"}}"#).await,
            Some(CallEffect::Remember { key: "booking".into(), value: json!({ "people": "4" }) })
        );
        assert!(error("remember", r#"{"key": "", "value": 1}"#).await.contains("/key"));
        assert!(
            error("remember", &json!({ "key": "k", "value": "x".repeat(9000) }).to_string()).await.contains("at most")
        );
        assert!(error("transfer_call", "{}").await.contains("reason"));
        assert_eq!(
            effect("send_dtmf", r#"{"keys": "12 34-a#"}"#).await,
            Some(CallEffect::PressKeys { keys: "1234A#".into() })
        );
        assert!(error("send_dtmf", r#"{"keys": "press two"}"#).await.contains("0 to 9"));
        assert!(error("send_dtmf", &json!({ "keys": "1".repeat(40) }).to_string()).await.contains("32 at most"));
    }

    #[test]
    fn a_tool_that_is_not_available_is_named_with_those_that_are() {
        let registry = ToolRegistry::with_call_tools();
        let error = ToolBox::new(["send_fax", "end_call", "fly"], &registry).err().unwrap();
        assert_eq!(
            error.to_string(),
            "tools: there is no tool \"send_fax\", \"fly\"; available: end_call, remember, send_dtmf, transfer_call"
        );
    }

    #[test]
    fn side_effects_are_known_by_name() {
        let tools = toolbox();
        assert!(
            tools.is_side_effect("remember")
                && tools.is_side_effect("end_call")
                && tools.is_side_effect("transfer_call")
        );
        assert!(!tools.is_side_effect("echo") && !tools.is_side_effect("unknown"));
    }

    #[test]
    fn a_schema_that_points_outside_is_refused() {
        struct Remote;
        impl Tool for Remote {
            fn spec(&self) -> ToolSpec {
                let parameters = json!({ "$ref": "http://127.0.0.1:9/schema.json" });
                ToolSpec { name: "remote".into(), description: String::new(), parameters }
            }
            fn side_effect(&self) -> bool {
                false
            }
            fn call(&self, _: Value, _: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
                unreachable!("its schema is refused")
            }
        }
        let mut registry = ToolRegistry::default();
        registry.add(Arc::new(Remote));
        assert!(matches!(ToolBox::new(["remote"], &registry), Err(ToolBoxError::Schema { .. })));
    }
}
