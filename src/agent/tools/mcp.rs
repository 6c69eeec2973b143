//! Tools of MCP servers (Model Context Protocol 2025-06-18, streamable HTTP): what a company's server offers is listed
//! ahead and called over the same guarded exchange as every other tool. A server that is down costs its own tools only.
//! Left out: servers run as processes, and what a server may ask of its client (sampling, roots, elicitation).

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use utoipa::ToSchema;
use uuid::Uuid;

use super::fetch::{Answer, FetchError, Fetcher, MAX_BODY, Order, sound};
use super::http::{
    SecretHeaders, failed, filler_faults, header_faults, headers, host_faults, limit_fault, name_fault, words,
};
use super::{MAX_RESULT_BYTES, Tool, ToolContext, ToolError, ToolOutcome, ToolRegistry, build_schema, clip};
use crate::speech::llm::ToolSpec;
use crate::speech::sse::SseParser;

const VERSION: &str = "2025-06-18";
/// Tools of one server that agents can have.
const MAX_TOOLS: usize = 64;
const MAX_PAGES: usize = 8;
const MAX_SCHEMA: usize = 16 * 1024;
const MAX_DESCRIPTION: usize = 2000;
const MAX_SERVER_NAME: usize = 24;
/// For greeting a server and for each page of its list.
const LIST_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at a server that answers, and the longest between two at one that does not.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const FIRST_RETRY: Duration = Duration::from_secs(2);
/// Longest session id that is taken, bytes.
const MAX_SESSION: usize = 256;

/// An MCP server as a company defined it, without its secret headers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct McpServerDefinition {
    /// Before the dot in the names of its tools: `crm` for `crm.find_contact`.
    #[schema(example = "crm")]
    pub name: String,
    /// Its endpoint: `https://mcp.example.com/mcp`.
    pub url: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_hosts: Vec<String>,
    /// Those of its tools that agents may have; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    /// Those that change nothing, beside the ones that the server itself says so of: all others wait until the caller's
    /// words are confirmed, and run once for one wish.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub read_only: Vec<String>,
    /// Time for one call of a tool; the server's `turn.tool_limit_ms` unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_ms: Option<u64>,
    /// By language: what is said while a tool is slow.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub filler: BTreeMap<String, String>,
}

impl McpServerDefinition {
    /// All that is wrong, by field, each with its cure.
    pub fn faults(&self) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        if let Some(problem) = name_fault(&self.name) {
            faults.push(("name".to_owned(), problem));
        } else if self.name.len() > MAX_SERVER_NAME {
            faults
                .push(("name".to_owned(), format!("is longer than {MAX_SERVER_NAME}: it stands before every tool's")));
        }
        match Url::parse(&self.url) {
            Err(error) => faults.push(("url".to_owned(), format!("is no address: {error}"))),
            Ok(url) => faults.extend(sound(&url).err().map(|problem| ("url".to_owned(), format!("is {problem}")))),
        }
        let plain = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        faults.extend(header_faults("headers", &plain));
        faults.extend(host_faults(&self.allowed_hosts));
        faults.extend(filler_faults(&self.filler));
        faults.extend(limit_fault(self.limit_ms));
        for (field, names) in [("tools", &self.tools), ("read_only", &self.read_only)] {
            if names.len() > MAX_TOOLS || names.iter().any(|name| name.is_empty() || name.len() > 128) {
                faults.push((field.to_owned(), format!("name {MAX_TOOLS} tools at most, as the server calls them")));
            }
        }
        faults
    }
}

/// Why a server did not do it. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum McpError {
    #[error("{}", failed(.0))]
    Fetch(#[from] FetchError),
    #[error("the server answers with status {0}")]
    Status(u16),
    /// It has forgotten the session: greet it again.
    #[error("the server has forgotten the session")]
    SessionOver,
    #[error("the server does not speak MCP: {0}")]
    Nonsense(&'static str),
    #[error("the server refuses it: {0}")]
    Refused(String),
}

/// What a server said of itself when it was greeted.
#[derive(Debug, Default)]
struct Session {
    id: Option<HeaderValue>,
    version: String,
}

/// One tool as its server lists it.
#[derive(Clone, Debug, PartialEq)]
struct Listed {
    name: String,
    description: String,
    parameters: Value,
    read_only: bool,
}

/// One server.
struct Server {
    definition: McpServerDefinition,
    secrets: SecretHeaders,
    url: Url,
    fetcher: Fetcher,
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
    next_id: AtomicU64,
    /// `None`: it has never answered.
    listed: ArcSwapOption<Vec<Listed>>,
    /// Its list has changed.
    changed: Notify,
}

impl Server {
    /// Its answer to a request; a session that is over is begun anew once.
    async fn ask(&self, method: &str, params: Value, key: &str, limit: Duration) -> Result<Value, McpError> {
        let deadline = Instant::now() + limit;
        let work = async {
            let session = self.session(limit).await?;
            match self.exchange(&session, method, &params, key, limit).await {
                Err(McpError::SessionOver) => {
                    self.forget(&session).await;
                    let session = self.session(limit).await?;
                    self.exchange(&session, method, &params, key, limit).await
                }
                answered => answered,
            }
        };
        timeout_at(deadline, work).await.map_err(|_| FetchError::Slow(limit))?
    }

    async fn session(&self, limit: Duration) -> Result<Arc<Session>, McpError> {
        let mut held = self.session.lock().await;
        if let Some(session) = &*held {
            return Ok(session.clone());
        }
        let params = json!({
            "protocolVersion": VERSION,
            "capabilities": {},
            "clientInfo": { "name": "offhook", "version": env!("CARGO_PKG_VERSION") },
        });
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let answer = self.post(&Session::default(), "initialize", Some(id), &params, "", limit).await?;
        let session_id = answer.headers.get("mcp-session-id").filter(|id| id.len() <= MAX_SESSION).cloned();
        let greeted = self.answer_to(id, answer).await?;
        let version = greeted["protocolVersion"].as_str().filter(|version| version.len() <= 32);
        let version = version.ok_or(McpError::Nonsense("no protocolVersion"))?.to_owned();
        let session = Arc::new(Session { id: session_id, version });
        let told = self.post(&session, "notifications/initialized", None, &Value::Null, "", limit).await?;
        if !told.status.is_success() {
            return Err(McpError::Status(told.status.as_u16()));
        }
        *held = Some(session.clone());
        Ok(session)
    }

    async fn forget(&self, session: &Arc<Session>) {
        let mut held = self.session.lock().await;
        if held.as_ref().is_some_and(|held| Arc::ptr_eq(held, session)) {
            *held = None;
        }
    }

    async fn exchange(
        &self,
        session: &Session,
        method: &str,
        params: &Value,
        key: &str,
        limit: Duration,
    ) -> Result<Value, McpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let answer = self.post(session, method, Some(id), params, key, limit).await?;
        if answer.status.as_u16() == 404 && session.id.is_some() {
            return Err(McpError::SessionOver);
        }
        self.answer_to(id, answer).await
    }

    async fn post(
        &self,
        session: &Session,
        method: &str,
        id: Option<u64>,
        params: &Value,
        key: &str,
        limit: Duration,
    ) -> Result<Answer, McpError> {
        let mut message = json!({ "jsonrpc": "2.0", "method": method });
        if let Some(id) = id {
            message["id"] = json!(id);
        }
        if !params.is_null() {
            message["params"] = params.clone();
        }
        let plain = self.definition.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut headers: HeaderMap = headers(&plain);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(id) = &session.id {
            headers.insert("mcp-session-id", id.clone());
        }
        if let Ok(version) = HeaderValue::try_from(&session.version)
            && !session.version.is_empty()
        {
            headers.insert("mcp-protocol-version", version);
        }
        if let Ok(key) = HeaderValue::try_from(key)
            && !key.is_empty()
        {
            headers.insert("idempotency-key", key);
        }
        let order = Order {
            method: Method::POST,
            url: self.url.clone(),
            headers,
            secrets: self.secrets.headers(),
            body: Some(message.to_string().into()),
            hosts: self.definition.allowed_hosts.clone(),
            limit,
        };
        Ok(self.fetcher.send(&order).await?)
    }

    /// The result with this id, from JSON or from a stream of events.
    async fn answer_to(&self, id: u64, mut answer: Answer) -> Result<Value, McpError> {
        if !answer.status.is_success() {
            return Err(McpError::Status(answer.status.as_u16()));
        }
        let essence = answer.content_type().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/json" => {
                let (body, more) = answer.body(MAX_BODY).await?;
                if more {
                    return Err(McpError::Nonsense("its answer is too long"));
                }
                let message = serde_json::from_slice(&body).map_err(|_| McpError::Nonsense("its answer is no JSON"))?;
                self.take(id, message).unwrap_or(Err(McpError::Nonsense("it answers something else")))
            }
            "text/event-stream" => {
                let (mut parser, mut events, mut bytes) = (SseParser::default(), Vec::new(), 0);
                while let Some(chunk) = answer.chunk().await? {
                    bytes += chunk.len();
                    let sound = parser.push(&chunk, &mut events).is_ok() && bytes <= MAX_BODY;
                    for event in events.drain(..) {
                        if let Ok(message) = serde_json::from_str(&event)
                            && let Some(answered) = self.take(id, message)
                        {
                            return answered;
                        }
                    }
                    if !sound {
                        return Err(McpError::Nonsense("its answer is too long"));
                    }
                }
                Err(McpError::Nonsense("its stream ends without an answer"))
            }
            _ => Err(McpError::Nonsense("it answers with neither JSON nor events")),
        }
    }

    /// `None`: the message is no answer to this request.
    fn take(&self, id: u64, mut message: Value) -> Option<Result<Value, McpError>> {
        if message["method"] == "notifications/tools/list_changed" {
            self.changed.notify_one();
        }
        if message["id"] != json!(id) || message.get("method").is_some() {
            return None;
        }
        if let Some(error) = message.get("error") {
            let text = error["message"].as_str().unwrap_or("no reason given");
            let text: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
            return Some(Err(McpError::Refused(self.secrets.masked(text))));
        }
        match message.get_mut("result") {
            Some(result) => Some(Ok(result.take())),
            None => Some(Err(McpError::Nonsense("an answer without a result"))),
        }
    }

    /// All tools that it has and that agents may have.
    async fn list(&self) -> Result<Vec<Listed>, McpError> {
        let mut found: Vec<Listed> = Vec::new();
        let mut cursor = Value::Null;
        for _ in 0..MAX_PAGES {
            let params = if cursor.is_null() { json!({}) } else { json!({ "cursor": cursor }) };
            let page = self.ask("tools/list", params, "", LIST_LIMIT).await?;
            let tools = page["tools"].as_array().ok_or(McpError::Nonsense("its list has no tools"))?;
            for tool in tools.iter().filter_map(|tool| self.listed(tool)) {
                if found.len() < MAX_TOOLS && !found.iter().any(|other| other.name == tool.name) {
                    found.push(tool);
                }
            }
            cursor = page["nextCursor"].clone();
            if !cursor.is_string() || cursor.to_string().len() > 1024 {
                break;
            }
        }
        Ok(found)
    }

    /// `None`: not among those that agents may have, or not fit for a model.
    fn listed(&self, tool: &Value) -> Option<Listed> {
        let definition = &self.definition;
        let name = tool["name"].as_str().filter(|name| !name.is_empty() && name.len() <= 128)?.to_owned();
        if !definition.tools.is_empty() && !definition.tools.contains(&name) {
            return None;
        }
        let parameters = tool["inputSchema"].clone();
        if parameters["type"] != "object" || parameters.to_string().len() > MAX_SCHEMA {
            return None;
        }
        build_schema(&parameters).ok()?;
        let description = tool["description"].as_str().or(tool["title"].as_str()).unwrap_or_default();
        let description: String = clip(description, MAX_DESCRIPTION).chars().filter(|c| *c != '\0').collect();
        let read_only = definition.read_only.contains(&name) || tool["annotations"]["readOnlyHint"] == true;
        Some(Listed { name, description, parameters, read_only })
    }

    /// Keeps the list up to date until `stop`.
    async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let mut retry = FIRST_RETRY;
        let mut down = false;
        loop {
            let listed = tokio::select! {
                () = stop.cancelled() => return,
                listed = self.list() => listed,
            };
            let wait = match listed {
                Ok(tools) => {
                    if down || self.listed.load().is_none() {
                        info!(server = %self.definition.name, tools = tools.len(), "an MCP server answers");
                    }
                    self.listed.store(Some(Arc::new(tools)));
                    (down, retry) = (false, FIRST_RETRY);
                    LOOK_EVERY
                }
                Err(error) => {
                    if !down {
                        warn!(server = %self.definition.name, %error, "an MCP server does not list its tools");
                    }
                    down = true;
                    let wait = retry;
                    retry = (2 * retry).min(LOOK_EVERY);
                    wait
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.changed.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

/// One tool of a server, as a model has it.
struct McpTool {
    server: Arc<Server>,
    listed: Listed,
    model_name: String,
}

/// A name that models take: the server's and the tool's with two underscores between, other signs replaced and the
/// end cut off.
fn model_name(server: &str, tool: &str) -> String {
    let sane = |c: char| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' };
    let whole: String = format!("{server}__{tool}").chars().map(sane).collect();
    if whole.len() <= 64 && whole.len() == server.len() + 2 + tool.len() {
        return whole;
    }
    // Something was lost: a few digits of the whole name keep it apart from its like (Bernstein's hash, xor form).
    let mark = format!("{server}.{tool}").bytes().fold(5381_u32, |hash, byte| hash.wrapping_mul(33) ^ u32::from(byte));
    format!("{}_{mark:08x}", clip(&whole, 55))
}

impl Tool for McpTool {
    fn spec(&self) -> ToolSpec {
        ToolSpec {
            name: self.model_name.clone(),
            description: self.listed.description.clone(),
            parameters: self.listed.parameters.clone(),
        }
    }

    fn side_effect(&self) -> bool {
        !self.listed.read_only
    }

    fn call(&self, args: Value, cx: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
        let (server, name) = (self.server.clone(), self.listed.name.clone());
        async move {
            let params = json!({ "name": name, "arguments": args });
            let result = server.ask("tools/call", params, &cx.key, cx.limit).await;
            let result = result.map_err(|error| {
                let told = server.secrets.masked(error.to_string());
                match error {
                    McpError::Fetch(error) if error.is_undone() => ToolError::Undone(told),
                    _ => ToolError::Failed(told),
                }
            })?;
            let (content, failed) = content(&result);
            let content = server.secrets.masked(content);
            if failed { Err(ToolError::Failed(content)) } else { Ok(ToolOutcome { content, effect: None }) }
        }
        .boxed()
    }

    fn limit(&self) -> Option<Duration> {
        self.server.definition.limit_ms.map(Duration::from_millis)
    }

    fn filler(&self, language: &str) -> Option<String> {
        Some(words(&self.server.definition.filler, language))
    }
}

/// What a model is told of a result, and whether the tool says that it failed.
fn content(result: &Value) -> (String, bool) {
    let parts = result["content"].as_array().map(Vec::as_slice).unwrap_or_default();
    let texts: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
    let text = clip(&texts.join("\n"), 4 * MAX_RESULT_BYTES).to_owned();
    if result["isError"] == true {
        return (if text.is_empty() { "the tool failed".to_owned() } else { text }, true);
    }
    if let Some(structured) = result.get("structuredContent").filter(|value| value.is_object()) {
        return (structured.to_string(), false);
    }
    // Most servers put JSON into the text.
    if let Ok(value) = serde_json::from_str::<Value>(&text)
        && (value.is_object() || value.is_array())
    {
        return (value.to_string(), false);
    }
    let mut told = json!({ "text": text });
    let other = parts.len() - texts.len();
    if other > 0 {
        told["left_out"] = json!(format!("{other} parts that are no text"));
    }
    (told.to_string(), false)
}

/// A server that is wanted.
#[derive(Clone)]
pub struct WantedServer {
    pub id: Uuid,
    pub company: Uuid,
    pub definition: McpServerDefinition,
    pub secrets: SecretHeaders,
}

struct Running {
    server: Arc<Server>,
    company: Uuid,
    _stop: DropGuard,
}

/// The servers of all companies.
pub struct McpServers {
    fetcher: Fetcher,
    running: Mutex<HashMap<Uuid, Running>>,
    tasks: TaskTracker,
}

impl McpServers {
    pub fn new(fetcher: Fetcher) -> Self {
        Self { fetcher, running: Mutex::default(), tasks: TaskTracker::new() }
    }

    /// Talks to these servers and to no others. One that has changed is greeted anew.
    pub fn want(&self, wanted: Vec<WantedServer>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |one: &Running, wanted: &WantedServer| {
            one.server.definition == wanted.definition
                && one.server.secrets.expose() == wanted.secrets.expose()
                && one.company == wanted.company
        };
        running.retain(|id, one| wanted.iter().any(|wanted| wanted.id == *id && same(one, wanted)));
        for WantedServer { id, company, definition, secrets } in wanted {
            if running.contains_key(&id) {
                continue;
            }
            let Ok(url) = Url::parse(&definition.url) else { continue };
            let server = Arc::new(Server {
                definition,
                secrets,
                url,
                fetcher: self.fetcher.clone(),
                session: tokio::sync::Mutex::default(),
                next_id: AtomicU64::new(1),
                listed: ArcSwapOption::empty(),
                changed: Notify::new(),
            });
            let stop = CancellationToken::new();
            self.tasks.spawn(server.clone().keep(stop.clone()));
            running.insert(id, Running { server, company, _stop: stop.drop_guard() });
        }
    }

    /// Adds the tools that a company's servers have now, as `server.tool`.
    pub fn provision(&self, company: Uuid, registry: &mut ToolRegistry) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        for one in running.values().filter(|one| one.company == company) {
            let Some(listed) = one.server.listed.load_full() else { continue };
            for listed in listed.iter() {
                let server = &one.server.definition.name;
                let agent_name = format!("{server}.{}", listed.name);
                let model_name = model_name(server, &listed.name);
                let tool = McpTool { server: one.server.clone(), listed: listed.clone(), model_name };
                registry.add_as(agent_name, Arc::new(tool));
            }
        }
    }

    /// What a server has, by name; `None`: it has never answered.
    pub fn tools(&self, id: Uuid) -> Option<Vec<(String, String)>> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = running.get(&id)?.server.listed.load_full()?;
        Some(listed.iter().map(|tool| (tool.name.clone(), tool.description.clone())).collect())
    }

    /// Stops talking to all of them.
    pub async fn close(&self, limit: Duration) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.tasks.close();
        let _ = tokio::time::timeout(limit, self.tasks.wait()).await;
    }
}

/// Asks a server for its tools once, for whoever sets it up.
pub async fn look(
    definition: &McpServerDefinition,
    secrets: &SecretHeaders,
    fetcher: &Fetcher,
) -> Result<Vec<(String, String)>, String> {
    let server = Server {
        definition: definition.clone(),
        secrets: secrets.clone(),
        url: Url::parse(&definition.url).map_err(|error| format!("url is no address: {error}"))?,
        fetcher: fetcher.clone(),
        session: tokio::sync::Mutex::default(),
        next_id: AtomicU64::new(1),
        listed: ArcSwapOption::empty(),
        changed: Notify::new(),
    };
    let listed = server.list().await.map_err(|error| secrets.masked(error.to_string()))?;
    Ok(listed.into_iter().map(|tool| (tool.name, tool.description)).collect())
}
