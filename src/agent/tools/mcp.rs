//! Tools of MCP servers (Model Context Protocol up to 2025-11-25): what a company's server offers is listed ahead, and
//! called over the same guarded exchange as every other tool, or over the pipes of a process that the operator named. The
//! protocol is `rmcp`'s; limits, names and what a model is told are ours. A server that is down costs its own tools only.
//! Left out: what a server may ask of its client (sampling, roots, elicitation), resources, prompts, tasks.

mod post;
mod process;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use reqwest::Url;
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CancelledNotification, CancelledNotificationParam, ClientCapabilities,
    ClientConfig, ClientNotification, ClientRequest, GetExtensions as _, Implementation, JsonObject, ListToolsRequest,
    MetaObject, PaginatedRequestParams, ProtocolVersion, RequestId, RequestMetaObject,
};
use rmcp::service::{
    ClientInitializeError, NotificationContext, Peer, PeerRequestOptions, RunningService, ServiceError, serve_client,
};
use rmcp::transport::streamable_http_client::StreamableHttpError;
use rmcp::{ClientHandler, RoleClient};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use utoipa::ToSchema;
use uuid::Uuid;

use self::post::Post;
pub use self::process::{Commands, command_faults};
use self::process::{Restarts, VARIABLE_CURE, is_command_name, is_secret_variable};
use super::fetch::{FetchError, Fetcher, sound};
use super::http::{SecretHeaders, failed, filler_faults, header_faults, host_faults, limit_fault, name_fault, words};
use super::{MAX_RESULT_BYTES, Tool, ToolContext, ToolError, ToolOutcome, ToolRegistry, build_schema, clip};
use crate::speech::llm::ToolSpec;

/// Tools of one server that agents can have.
const MAX_TOOLS: usize = 64;
const MAX_PAGES: usize = 8;
const MAX_SCHEMA: usize = 16 * 1024;
const MAX_DESCRIPTION: usize = 2000;
const MAX_SERVER_NAME: usize = 24;
/// For greeting a server and for each page of its list.
const LIST_LIMIT: Duration = Duration::from_secs(10);
/// For greeting a process: interpreters load their libraries first.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at a server that answers, and the longest between two at one that does not.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const FIRST_RETRY: Duration = Duration::from_secs(2);
/// Between two looks, however often a server says that its list has changed.
const SETTLE: Duration = Duration::from_secs(1);
/// For telling a server that a request is abandoned.
const TELL_LIMIT: Duration = Duration::from_secs(2);
/// In the `_meta` of a call that acts: the same for the same wish. Servers over HTTP have it as `Idempotency-Key`, too.
const KEY: &str = "offhook/idempotency-key";

/// An MCP server as a company defined it, without its secret headers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct McpServerDefinition {
    /// Before the dot in the names of its tools: `crm` for `crm.find_contact`.
    #[schema(example = "crm")]
    pub name: String,
    /// Its endpoint: `https://mcp.example.com/mcp`. Leave it out where there is a command.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub url: String,
    /// In place of an endpoint: the name of a command among the operator's `tools.mcp_commands`, whose process is spoken
    /// to by standard input and output. Its secret headers are variables of its environment, such as `CRM_TOKEN`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub command: String,
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
        if self.command.is_empty() {
            match Url::parse(&self.url) {
                Err(error) => faults.push(("url".to_owned(), format!("is no address: {error}"))),
                Ok(url) => faults.extend(sound(&url).err().map(|problem| ("url".to_owned(), format!("is {problem}")))),
            }
        } else {
            let mut fault = |field: &str, problem: &str| faults.push((field.to_owned(), problem.to_owned()));
            if !is_command_name(&self.command) {
                fault("command", "write a name of tools.mcp_commands: 1 to 64 letters, digits, _ or -");
            }
            if !self.url.is_empty() {
                fault("url", "a command has none: leave it out, or the command");
            }
            if !self.headers.is_empty() {
                fault("headers", "a command has none: leave them out");
            }
            if !self.allowed_hosts.is_empty() {
                fault("allowed_hosts", "a command has none: leave them out");
            }
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

    /// What is wrong with its secrets, by header; never quotes a value.
    pub fn secret_faults(&self, secrets: &SecretHeaders) -> Vec<(String, String)> {
        let mut faults = secrets.faults();
        if !self.command.is_empty() {
            let bad = secrets.expose().into_keys().filter(|name| !is_secret_variable(name));
            faults.extend(bad.map(|name| (format!("secret_headers.{}", clip(name, 64)), VARIABLE_CURE.to_owned())));
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
    #[error("the server has forgotten the session")]
    SessionOver,
    #[error("the server does not speak MCP: {0}")]
    Nonsense(&'static str),
    #[error("the server refuses it: {0}")]
    Refused(String),
    #[error("the server's process does not run: {0}")]
    NotStarted(String),
    /// Its process keeps ending.
    #[error("the server's process has ended and is started again in {} s", .0.as_secs() + 1)]
    TooSoon(Duration),
    #[error("the session with the server ended before it answered; it may or may not have worked")]
    Ended,
}

impl McpError {
    /// Whether the server cannot have done anything.
    fn is_undone(&self) -> bool {
        match self {
            Self::Fetch(error) => error.is_undone(),
            Self::NotStarted(_) | Self::TooSoon(_) => true,
            _ => false,
        }
    }

    fn of_service(error: &ServiceError) -> Self {
        match error {
            ServiceError::McpError(refusal) => Self::refused(&refusal.message),
            ServiceError::TransportSend(sent) => Self::of_transport(&*sent.error),
            ServiceError::TransportClosed | ServiceError::Cancelled { .. } => Self::Ended,
            _ => Self::Nonsense("its answer is of another kind"),
        }
    }

    fn of_greeting(error: &ClientInitializeError) -> Self {
        match error {
            ClientInitializeError::TransportError { error, .. } => Self::of_transport(&*error.error),
            ClientInitializeError::JsonRpcError(refusal) => Self::refused(&refusal.message),
            ClientInitializeError::ConnectionClosed(_) => Self::Ended,
            _ => Self::Nonsense("it does not answer the greeting"),
        }
    }

    fn of_transport(error: &(dyn Error + Send + Sync + 'static)) -> Self {
        match error.downcast_ref::<StreamableHttpError<Self>>() {
            Some(StreamableHttpError::Client(error)) => error.clone(),
            Some(StreamableHttpError::SessionExpired) => Self::SessionOver,
            Some(StreamableHttpError::ReinitializationFailed(refusal)) => Self::refused(&refusal.message),
            // A pipe, or a session that ended meanwhile.
            _ => Self::Ended,
        }
    }

    fn refused(message: &str) -> Self {
        let message = if message.is_empty() { "no reason given" } else { message };
        Self::Refused(message.chars().filter(|c| !c.is_control()).take(300).collect())
    }
}

/// Rides with a request to the transport: the time of its exchange.
#[derive(Clone, Copy)]
struct Limit(Duration);

/// What a server may tell and ask of us.
struct Listener {
    /// Its list has changed.
    changed: Arc<Notify>,
}

impl ClientHandler for Listener {
    fn get_info(&self) -> ClientConfig {
        let program = Implementation::new("offhook", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), program)
            .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.changed.notify_one();
    }
}

/// A session with a server. Dropping it ends it.
struct Session {
    service: RunningService<RoleClient, Listener>,
    /// Ends the process.
    _process: Option<DropGuard>,
}

/// A request whose answer is waited for; who stops waiting tells the server.
struct Waiting {
    asked: Option<(Peer<RoleClient>, RequestId)>,
    tasks: TaskTracker,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let (Some((peer, id)), Ok(runtime)) = (self.asked.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let told = CancelledNotificationParam::new(Some(id), None);
        let told = ClientNotification::CancelledNotification(CancelledNotification::new(told));
        let tell = async move {
            // A server that cannot be told finds nobody who listens.
            let _ = timeout(TELL_LIMIT, peer.send_notification(told)).await;
        };
        self.tasks.spawn_on(tell, &runtime);
    }
}

/// Where a server is.
enum Place {
    Endpoint(Post),
    Process { commands: Commands, restarts: Mutex<Restarts> },
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
    place: Place,
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
    /// `None`: it has never answered.
    listed: ArcSwapOption<Vec<Listed>>,
    /// Its list has changed, or its session is wanted.
    changed: Arc<Notify>,
    tasks: TaskTracker,
}

impl Server {
    fn new(
        definition: McpServerDefinition,
        secrets: SecretHeaders,
        fetcher: &Fetcher,
        commands: &Commands,
        tasks: &TaskTracker,
    ) -> Result<Self, String> {
        let changed = Arc::new(Notify::new());
        let place = if definition.command.is_empty() {
            let url = Url::parse(&definition.url).map_err(|error| format!("url is no address: {error}"))?;
            Place::Endpoint(Post::new(&definition, &secrets, url, fetcher.clone(), changed.clone()))
        } else {
            Place::Process { commands: commands.clone(), restarts: Mutex::default() }
        };
        let (session, listed, tasks) = (tokio::sync::Mutex::default(), ArcSwapOption::empty(), tasks.clone());
        Ok(Self { definition, secrets, place, session, listed, changed, tasks })
    }

    /// The result of a request.
    async fn ask(&self, request: ClientRequest, key: &str, limit: Duration) -> Result<Value, McpError> {
        let work = async {
            let session = self.session(limit, false).await?;
            self.exchange(&session, request, key, limit).await
        };
        timeout(limit, work).await.map_err(|_| FetchError::Slow(limit))?
    }

    async fn exchange(
        &self,
        session: &Session,
        mut request: ClientRequest,
        key: &str,
        limit: Duration,
    ) -> Result<Value, McpError> {
        request.extensions_mut().insert(Limit(limit));
        let mut options = PeerRequestOptions::no_options();
        if !key.is_empty() {
            options =
                options.with_meta(RequestMetaObject(MetaObject(JsonObject::from_iter([(KEY.to_owned(), key.into())]))));
        }
        let peer = session.service.peer();
        let sent = peer.send_cancellable_request(request, options).await;
        let sent = sent.map_err(|error| McpError::of_service(&error))?;
        let mut waiting = Waiting { asked: Some((peer.clone(), sent.id.clone())), tasks: self.tasks.clone() };
        let answered = sent.await_response().await;
        waiting.asked = None;
        let result = answered.map_err(|error| McpError::of_service(&error))?;
        serde_json::to_value(result).map_err(|_| McpError::Nonsense("its answer is no JSON"))
    }

    /// The session, begun anew where there is none. A process is started by whoever keeps the server alone, and awaited
    /// by all.
    async fn session(&self, limit: Duration, starts: bool) -> Result<Arc<Session>, McpError> {
        let mut held = self.session.lock().await;
        if let Some(session) = held.as_ref().filter(|session| !session.service.is_transport_closed()) {
            return Ok(session.clone());
        }
        *held = None;
        let session = match &self.place {
            Place::Endpoint(post) => {
                let greeted = timeout(limit, serve_client(self.listener(), post.transport())).await;
                let service = greeted.map_err(|_| FetchError::Slow(limit))?;
                Session { service: service.map_err(|error| McpError::of_greeting(&error))?, _process: None }
            }
            Place::Process { .. } if !starts => {
                self.changed.notify_one();
                return Err(McpError::NotStarted("it is being started, or its definition has changed".to_owned()));
            }
            Place::Process { commands, restarts } => {
                let (pipes, process) = {
                    let mut restarts = restarts.lock().unwrap_or_else(PoisonError::into_inner);
                    let changed = self.changed.clone();
                    let ended = move || changed.notify_one();
                    let McpServerDefinition { name, command, .. } = &self.definition;
                    process::start(commands, command, name, &self.secrets, &mut restarts, &self.tasks, ended)?
                };
                let greeted = timeout(START_LIMIT, serve_client(self.listener(), pipes)).await;
                let service = greeted.map_err(|_| FetchError::Slow(START_LIMIT))?;
                let service = service.map_err(|error| McpError::of_greeting(&error))?;
                Session { service, _process: Some(process) }
            }
        };
        let session = Arc::new(session);
        *held = Some(session.clone());
        Ok(session)
    }

    fn listener(&self) -> Listener {
        Listener { changed: self.changed.clone() }
    }

    /// Lets go of the session: whoever asks next begins another.
    async fn forget(&self) {
        *self.session.lock().await = None;
    }

    /// All tools that it has and that agents may have.
    async fn list(&self) -> Result<Vec<Listed>, McpError> {
        let mut found: Vec<Listed> = Vec::new();
        let mut cursor: Option<String> = None;
        // Somebody else may be greeting it.
        let session = timeout(START_LIMIT + LIST_LIMIT, self.session(LIST_LIMIT, true)).await;
        let session = session.map_err(|_| FetchError::Slow(START_LIMIT + LIST_LIMIT))??;
        for _ in 0..MAX_PAGES {
            let params = PaginatedRequestParams::default().with_cursor(cursor.take());
            let request = ClientRequest::ListToolsRequest(ListToolsRequest::with_param(params));
            let page = timeout(LIST_LIMIT, self.exchange(&session, request, "", LIST_LIMIT)).await;
            let page = page.map_err(|_| FetchError::Slow(LIST_LIMIT))??;
            let tools = page["tools"].as_array().ok_or(McpError::Nonsense("its list has no tools"))?;
            for tool in tools.iter().filter_map(|tool| self.listed(tool)) {
                if found.len() < MAX_TOOLS && !found.iter().any(|other| other.name == tool.name) {
                    found.push(tool);
                }
            }
            cursor = page["nextCursor"].as_str().filter(|cursor| cursor.len() <= 1024).map(str::to_owned);
            if cursor.is_none() {
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

    /// Keeps the list up to date until `stop`, and a process until then and no longer.
    async fn keep(self: Arc<Self>, stop: CancellationToken) {
        self.look_on(&stop).await;
        if let Place::Process { .. } = self.place {
            self.forget().await;
        }
    }

    async fn look_on(&self, stop: &CancellationToken) {
        let mut retry = FIRST_RETRY;
        let mut down = false;
        loop {
            let settled = Instant::now() + SETTLE;
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
                        let error = self.secrets.masked(error.to_string());
                        warn!(server = %self.definition.name, error, "an MCP server does not list its tools");
                    }
                    down = true;
                    self.forget().await;
                    let wait = if let McpError::TooSoon(wait) = error { wait } else { retry };
                    retry = (2 * retry).min(LOOK_EVERY);
                    wait
                }
            };
            let wake = async {
                let _ = timeout(wait, self.changed.notified()).await;
                tokio::time::sleep_until(settled).await;
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = wake => {}
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
            let mut params = CallToolRequestParams::new(Cow::Owned(name));
            if let Value::Object(arguments) = args {
                params = params.with_arguments(arguments);
            }
            let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
            let result = server.ask(request, &cx.key, cx.limit).await;
            let result = result.map_err(|error| {
                let told = server.secrets.masked(error.to_string());
                if error.is_undone() { ToolError::Undone(told) } else { ToolError::Failed(told) }
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
    if result["resultType"].as_str().is_some_and(|kind| kind != "complete") {
        return ("the tool asks for more than its arguments, which a call cannot give".to_owned(), true);
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
    commands: Commands,
    running: Mutex<HashMap<Uuid, Running>>,
    tasks: TaskTracker,
}

impl McpServers {
    pub fn new(fetcher: Fetcher, commands: Commands) -> Self {
        Self { fetcher, commands, running: Mutex::default(), tasks: TaskTracker::new() }
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
            let made = Server::new(definition, secrets, &self.fetcher, &self.commands, &self.tasks);
            let Ok(server) = made.map(Arc::new) else { continue };
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

    /// Asks a server that runs for its tools: of a process there is one, however often it is tried out.
    pub async fn look(&self, id: Uuid) -> Result<Vec<(String, String)>, String> {
        let server = {
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.get(&id).map(|one| one.server.clone())
        };
        look_at(&*server.ok_or("its process is not started yet: try again in a moment")?).await
    }

    /// Stops talking to all of them.
    pub async fn close(&self, limit: Duration) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.tasks.close();
        let _ = tokio::time::timeout(limit, self.tasks.wait()).await;
    }
}

/// Asks a server at an endpoint for its tools once, for whoever sets it up.
pub async fn look(
    definition: &McpServerDefinition,
    secrets: &SecretHeaders,
    fetcher: &Fetcher,
) -> Result<Vec<(String, String)>, String> {
    let (commands, tasks) = (Commands::default(), TaskTracker::new());
    let server = Server::new(definition.clone(), secrets.clone(), fetcher, &commands, &tasks)?;
    look_at(&server).await
}

async fn look_at(server: &Server) -> Result<Vec<(String, String)>, String> {
    let listed = server.list().await.map_err(|error| server.secrets.masked(error.to_string()))?;
    Ok(listed.into_iter().map(|tool| (tool.name, tool.description)).collect())
}
