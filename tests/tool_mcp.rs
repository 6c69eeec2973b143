//! MCP servers as tools: one of the reference SDK where Python has it, and one of our own that is as bad as servers get.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Json, Response};
use axum::routing::post;
use offhook::agent::tools::fetch::Fetcher;
use offhook::agent::tools::http::SecretHeaders;
use offhook::agent::tools::mcp::{Commands, McpServerDefinition, McpServers, WantedServer, command_faults, look};
use offhook::agent::tools::reach::Reach;
use offhook::agent::tools::{ToolBox, ToolContext, ToolRegistry, ToolResult};
use offhook::speech::llm::ToolCall;
use offhook::telephony::{CallId, PhoneNumber};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(3);

fn fetcher(allowed: &[&str]) -> Fetcher {
    let allowed: Vec<String> = allowed.iter().map(|&text| text.to_owned()).collect();
    Fetcher::new(Reach::new(&allowed)).unwrap()
}

fn definition(url: &str) -> McpServerDefinition {
    let definition: McpServerDefinition = serde_json::from_value(json!({ "name": "crm", "url": url })).unwrap();
    assert_eq!(definition.faults(), []);
    definition
}

/// The agent's tools once the server has listed some; `None`: it does not within the limit.
async fn tools(servers: &McpServers, definition: McpServerDefinition, company: Uuid) -> Option<ToolBox> {
    let id = Uuid::now_v7();
    let secrets = SecretHeaders::new([("Authorization".to_owned(), "Bearer sesame-open".to_owned())]);
    servers.want(vec![WantedServer { id, company, definition, secrets }]);
    let listed = async {
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        while servers.tools(id).is_none() {
            tick.tick().await;
        }
    };
    tokio::time::timeout(LIMIT, listed).await.ok()?;
    Some(provisioned(servers, company))
}

fn provisioned(servers: &McpServers, company: Uuid) -> ToolBox {
    let mut registry = ToolRegistry::default();
    servers.provision(company, &mut registry);
    let names: Vec<String> = registry.names().map(str::to_owned).collect();
    ToolBox::new(names.iter().map(String::as_str), &registry).unwrap()
}

async fn call(tools: &ToolBox, name: &str, arguments: Value) -> ToolResult {
    let call = ToolCall { id: "c1".into(), name: name.into(), arguments: arguments.to_string() };
    let cx = ToolContext::new(CallId::new(), PhoneNumber::default(), PhoneNumber::default());
    tools.run(&call, cx, LIMIT).await
}

struct Python(Child);

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/mcp_server.py");

/// A Python that has the reference SDK: that of `MCP_PYTHON`, the one that `scripts/setup.sh --tests` made, or the
/// system's.
fn python_with_mcp() -> Option<String> {
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().map(|target| target.join("mcp-python/bin/python"));
    let made = made.filter(|path| path.exists()).map(|path| path.to_string_lossy().into_owned());
    let python = std::env::var("MCP_PYTHON").ok().or(made).unwrap_or_else(|| "/usr/bin/python3".into());
    let has = Command::new(&python).args(["-c", "import mcp"]).stderr(Stdio::null()).status();
    if !has.is_ok_and(|status| status.success()) {
        println!("skipped: Python has no mcp; scripts/setup.sh --tests installs it");
        return None;
    }
    Some(python)
}

/// `None`: no Python has MCP.
async fn python(answers: &str) -> Option<(Python, String)> {
    let python = python_with_mcp()?;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let child = Command::new(&python)
        .args([SCRIPT, &port.to_string(), answers])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let server = Python(child);
    let up = async {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tick.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), up).await.expect("the server listens");
    Some((server, format!("http://127.0.0.1:{port}/mcp")))
}

#[tokio::test]
async fn the_reference_server_is_listed_and_called_in_both_forms_of_answers() {
    for answers in ["json", "events"] {
        let Some((_server, url)) = python(answers).await else { return };
        let servers = McpServers::new(fetcher(&["127.0.0.1"]), Commands::default());
        let company = Uuid::now_v7();
        let tools = tools(&servers, definition(&url), company).await.expect("it lists its tools");
        let names: Vec<String> = tools.specs().into_iter().map(|spec| spec.name).collect();
        assert_eq!(names, ["crm__add_note", "crm__find_contact"]);
        assert!(tools.is_side_effect("crm__add_note") && !tools.is_side_effect("crm__find_contact"));
        let found = call(&tools, "crm__find_contact", json!({ "name": "Olena" })).await;
        assert!(found.ok && found.content.contains("+380441234567"), "{answers}: {}", found.content);
        let noted = call(&tools, "crm__add_note", json!({ "text": "call back" })).await;
        assert!(noted.ok && noted.content.contains("noted: call back"), "{answers}: {}", noted.content);
        let refused = call(&tools, "crm__add_note", json!({ "text": "bad" })).await;
        assert!(!refused.ok && refused.content.contains("add_note"), "{answers}: {}", refused.content);
        let wrong = call(&tools, "crm__find_contact", json!({ "nome": 1 })).await;
        assert!(wrong.content.contains("wrong arguments"), "they are checked here: {}", wrong.content);
        servers.close(LIMIT).await;
    }
}

/// What the bad server does.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    /// Answers as it should, and forgets each session after three requests.
    Forgetful,
    ManyTools,
    Endless,
    Html,
    /// Streams events that are no answers, for ever.
    Chatter,
    NoResult,
    Hangs,
    /// Takes calls and does not answer them.
    Slow,
    /// Asks and tells before it answers a call.
    Talkative,
}

#[derive(Clone)]
struct Bad {
    mood: Mood,
    sessions: Arc<AtomicUsize>,
    left: Arc<AtomicUsize>,
    lists: Arc<AtomicUsize>,
    /// Calls that nobody waits for any more, by the connection and by a message.
    hung_up: Arc<AtomicUsize>,
    cancelled: Arc<AtomicUsize>,
    /// What it was answered.
    answers: Arc<Mutex<Vec<Value>>>,
}

/// Counts when the request that it belongs to is dropped.
struct HungUp(Arc<AtomicUsize>);

impl Drop for HungUp {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

async fn bad(mood: Mood) -> (String, Bad) {
    let bad = Bad {
        mood,
        sessions: Arc::default(),
        left: Arc::default(),
        lists: Arc::default(),
        hung_up: Arc::default(),
        cancelled: Arc::default(),
        answers: Arc::default(),
    };
    let router = axum::Router::new().route("/mcp", post(answer)).with_state(bad.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, bad)
}

async fn answer(State(bad): State<Bad>, headers: HeaderMap, Json(message): Json<Value>) -> Response {
    let (id, method) = (message["id"].clone(), message["method"].as_str().unwrap_or_default());
    let result = |result: Value| Json(json!({ "jsonrpc": "2.0", "id": id, "result": result }));
    let tool = |name: &str| json!({ "name": name, "inputSchema": { "type": "object" } });
    match (bad.mood, method) {
        (Mood::Hangs, _) => std::future::pending().await,
        (Mood::Html, _) => ([("content-type", "text/html")], "<p>log in</p>").into_response(),
        (_, "initialize") => {
            bad.sessions.fetch_add(1, Ordering::SeqCst);
            bad.left.store(3, Ordering::SeqCst);
            let info = json!({ "name": "bad", "version": "1" });
            let hello = json!({ "protocolVersion": "2025-06-18", "capabilities": { "tools": {} }, "serverInfo": info });
            ([("mcp-session-id", "s1")], result(hello)).into_response()
        }
        _ if headers.get("mcp-session-id").is_none() => StatusCode::BAD_REQUEST.into_response(),
        (Mood::Forgetful, _) if bad.left.fetch_sub(1, Ordering::SeqCst) == 0 => {
            bad.left.store(0, Ordering::SeqCst);
            StatusCode::NOT_FOUND.into_response()
        }
        (_, "notifications/cancelled") => {
            bad.cancelled.fetch_add(1, Ordering::SeqCst);
            StatusCode::ACCEPTED.into_response()
        }
        (_, "") => {
            bad.answers.lock().unwrap().push(message);
            StatusCode::ACCEPTED.into_response()
        }
        (_, "notifications/initialized") => StatusCode::ACCEPTED.into_response(),
        (Mood::ManyTools, "tools/list") => {
            let many: Vec<Value> = (0..500).map(|n| tool(&format!("tool_{n:03}"))).collect();
            result(json!({ "tools": many, "nextCursor": "again" })).into_response()
        }
        (_, "tools/list") => {
            bad.lists.fetch_add(1, Ordering::SeqCst);
            let strange = [
                tool("say"),
                tool("say"),
                tool("скажи / голосно"),
                tool(&"x".repeat(120)),
                json!({ "name": "no_schema" }),
                json!({ "name": "bad_schema", "inputSchema": { "type": "object", "properties": 5 } }),
                json!({ "name": "outside", "inputSchema": { "type": "object", "$ref": "http://127.0.0.1:9/x" } }),
                json!(5),
            ];
            result(json!({ "tools": strange })).into_response()
        }
        (Mood::Endless, _) => {
            let body = futures::stream::repeat_with(|| Ok::<_, std::io::Error>("[1,2,3,4,".repeat(1000)));
            ([("content-type", "application/json")], Body::from_stream(body)).into_response()
        }
        (Mood::Chatter, _) => {
            let event = || format!("data: {{\"jsonrpc\":\"2.0\",\"method\":\"x\",\"p\":\"{}\"}}\n\n", "a".repeat(1000));
            let body = futures::stream::repeat_with(move || Ok::<_, std::io::Error>(event()));
            ([("content-type", "text/event-stream")], Body::from_stream(body)).into_response()
        }
        (Mood::Slow, _) => {
            let _hung_up = HungUp(bad.hung_up.clone());
            std::future::pending().await
        }
        (Mood::Talkative, _) => {
            let result = json!({ "content": [{ "type": "text", "text": "done" }] });
            let events = [
                json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed" }),
                json!({ "jsonrpc": "2.0", "id": "p", "method": "ping" }),
                json!({ "jsonrpc": "2.0", "id": 5, "method": "roots/list" }),
                json!({ "jsonrpc": "2.0", "id": id, "result": result }),
            ];
            let events: String = events.iter().map(|event| format!("id: 7\nretry: 1\ndata: {event}\n\n")).collect();
            ([("content-type", "text/event-stream")], events).into_response()
        }
        (Mood::NoResult, _) => Json(json!({ "jsonrpc": "2.0", "id": id })).into_response(),
        _ => {
            let echo = headers.get("authorization").map(|value| value.to_str().unwrap_or_default().to_owned());
            result(json!({ "content": [{ "type": "text", "text": format!("heard {echo:?}") }, { "type": "image" }] }))
                .into_response()
        }
    }
}

#[tokio::test]
async fn a_bad_server_costs_its_own_tools_only() {
    for (mood, reason) in [
        (Mood::Endless, "its answer is too long"),
        (Mood::Chatter, "its answer is too long"),
        (Mood::NoResult, "without a result"),
    ] {
        let (url, _) = bad(mood).await;
        let servers = McpServers::new(fetcher(&["127.0.0.1"]), Commands::default());
        let tools = tools(&servers, definition(&url), Uuid::now_v7()).await.expect("it lists its tools");
        let result = call(&tools, "crm__say", json!({})).await;
        assert!(!result.ok && result.content.contains(reason), "{}", result.content);
    }
    let secrets = SecretHeaders::default();
    let (url, _) = bad(Mood::Html).await;
    let told = look(&definition(&url), &secrets, &fetcher(&["127.0.0.1"])).await.unwrap_err();
    assert!(told.contains("does not speak MCP"), "{told}");
    let told = look(&definition(&url), &secrets, &fetcher(&[])).await.unwrap_err();
    assert!(told.contains("this machine") && told.contains("tools.allow_private"), "{told}");
    let nobody = McpServers::new(fetcher(&["127.0.0.1"]), Commands::default());
    let (url, _) = bad(Mood::Hangs).await;
    let (one, company) = (definition(&url), Uuid::now_v7());
    nobody.want(vec![WantedServer { id: Uuid::now_v7(), company, definition: one, secrets }]);
    let mut registry = ToolRegistry::with_call_tools();
    let before = registry.names().count();
    nobody.provision(company, &mut registry);
    assert_eq!(registry.names().count(), before, "a server that hangs has no tools, and nobody waits for it");
    nobody.close(LIMIT).await;
}

#[tokio::test]
async fn a_session_that_is_over_is_begun_anew_and_strange_tools_are_left_out() {
    let (url, server) = bad(Mood::Forgetful).await;
    let (servers, company) = (McpServers::new(fetcher(&["127.0.0.1"]), Commands::default()), Uuid::now_v7());
    let tools = tools(&servers, definition(&url), company).await.expect("it lists its tools");
    let names: Vec<String> = tools.specs().into_iter().map(|spec| spec.name).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names.iter().all(|name| name.len() <= 64 && name.is_ascii()), "{names:?}");
    for n in 0..5 {
        // The same wish twice would be done once.
        let said = call(&tools, "crm__say", json!({ "n": n })).await;
        assert!(said.ok && said.content.contains("left_out"), "{}", said.content);
        assert!(!said.content.contains("sesame") && said.content.contains("••••"), "{}", said.content);
    }
    assert!(server.sessions.load(Ordering::SeqCst) >= 2);
    let mut other = ToolRegistry::default();
    servers.provision(Uuid::now_v7(), &mut other);
    assert_eq!(other.names().count(), 0, "another company has none of them");
    servers.want(Vec::new());
    let mut gone = ToolRegistry::default();
    servers.provision(company, &mut gone);
    assert_eq!(gone.names().count(), 0);
}

#[tokio::test]
async fn only_so_many_tools_of_a_server_are_taken() {
    let (url, _) = bad(Mood::ManyTools).await;
    let listed = look(&definition(&url), &SecretHeaders::default(), &fetcher(&["127.0.0.1"])).await.unwrap();
    assert_eq!(listed.len(), 64);
    let some = McpServerDefinition { tools: vec!["tool_007".into()], ..definition(&url) };
    let listed = look(&some, &SecretHeaders::default(), &fetcher(&["127.0.0.1"])).await.unwrap();
    assert_eq!(listed.into_iter().map(|(name, _)| name).collect::<Vec<_>>(), ["tool_007"]);
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_is_hung_up_and_the_server_is_told() {
    let (url, server) = bad(Mood::Slow).await;
    let servers = McpServers::new(fetcher(&["127.0.0.1"]), Commands::default());
    let reads = McpServerDefinition { read_only: vec!["say".into()], ..definition(&url) };
    let tools = tools(&servers, reads, Uuid::now_v7()).await.expect("it lists its tools");
    // The caller speaks: the reply is broken off, and what it read with it.
    let barged_in = tokio::time::timeout(LIMIT / 6, call(&tools, "crm__say", json!({}))).await;
    assert!(barged_in.is_err());
    until("it is hung up on and told", LIMIT, || {
        server.hung_up.load(Ordering::SeqCst) == 1 && server.cancelled.load(Ordering::SeqCst) == 1
    })
    .await;
    let slow = call(&tools, "crm__say", json!({ "n": 2 })).await;
    assert!(!slow.ok && slow.content.contains("within 3000 ms"), "{}", slow.content);
    until("so it is at the time limit", LIMIT, || {
        server.hung_up.load(Ordering::SeqCst) == 2 && server.cancelled.load(Ordering::SeqCst) == 2
    })
    .await;
    servers.close(LIMIT).await;
}

#[tokio::test]
async fn what_a_server_asks_and_tells_before_it_answers_is_answered_and_heard() {
    let (url, server) = bad(Mood::Talkative).await;
    let servers = McpServers::new(fetcher(&["127.0.0.1"]), Commands::default());
    let tools = tools(&servers, definition(&url), Uuid::now_v7()).await.expect("it lists its tools");
    let said = call(&tools, "crm__say", json!({})).await;
    assert!(said.ok && said.content.contains("done"), "{}", said.content);
    let answers = server.answers.lock().unwrap().clone();
    assert_eq!(answers.len(), 2, "{answers:?}");
    assert_eq!(answers[0], json!({ "jsonrpc": "2.0", "id": "p", "result": {} }));
    assert_eq!((&answers[1]["id"], &answers[1]["error"]["code"]), (&json!(5), &json!(-32601)));
    until("its changed list is looked at", LIMIT, || server.lists.load(Ordering::SeqCst) == 2).await;
    servers.close(LIMIT).await;
}

/// A definition whose process is a shell script's, and its folder.
fn shell() -> (Commands, McpServerDefinition, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/mcp_server.sh");
    (named(&["/bin/sh", script, folder.path().to_str().unwrap()]), command_definition("crm"), folder)
}

fn named(words: &[&str]) -> Commands {
    let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    let named = BTreeMap::from([("crm".to_owned(), words)]);
    assert_eq!(command_faults(&named), [""; 0]);
    Commands::new(&named)
}

fn command_definition(command: &str) -> McpServerDefinition {
    let definition = json!({ "name": "crm", "command": command });
    let definition: McpServerDefinition = serde_json::from_value(definition).unwrap();
    assert_eq!(definition.faults(), []);
    definition
}

fn token() -> SecretHeaders {
    SecretHeaders::new([("CRM_TOKEN".to_owned(), "sesame-open".to_owned())])
}

/// The ids of the processes that were started, and of those that they left behind.
fn starts(folder: &tempfile::TempDir) -> Vec<i32> {
    let noted = std::fs::read_to_string(folder.path().join("starts")).unwrap_or_default();
    noted.lines().map(|line| line.parse().unwrap()).collect()
}

fn runs(id: i32) -> bool {
    // A process that was killed and that its new parent has not yet waited for runs no more.
    let state = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    state.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with(['Z', 'X']))
}

/// Waits until it is so.
async fn until(what: &str, limit: Duration, mut so: impl FnMut() -> bool) {
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let so = async {
        while !so() {
            tick.tick().await;
        }
    };
    assert!(tokio::time::timeout(limit, so).await.is_ok(), "{what}");
}

/// For a process that starts while other tests run.
const START: Duration = Duration::from_secs(60);

#[tokio::test]
async fn the_reference_server_runs_as_a_process() {
    let Some(python) = python_with_mcp() else { return };
    let servers = McpServers::new(fetcher(&[]), named(&[&python, SCRIPT, "stdio"]));
    let (company, id) = (Uuid::now_v7(), Uuid::now_v7());
    let definition = command_definition("crm");
    servers.want(vec![WantedServer { id, company, definition, secrets: token() }]);
    until("it lists its tools", START, || servers.tools(id).is_some()).await;
    let tools = provisioned(&servers, company);
    assert!(tools.is_side_effect("crm__add_note") && !tools.is_side_effect("crm__find_contact"));
    let found = call(&tools, "crm__find_contact", json!({ "name": "Olena" })).await;
    assert!(found.ok && found.content.contains("+380441234567"), "{}", found.content);
    let noted = call(&tools, "crm__add_note", json!({ "text": "call back" })).await;
    assert!(noted.ok && noted.content.contains("noted: call back"), "{}", noted.content);
    let refused = call(&tools, "crm__add_note", json!({ "text": "bad" })).await;
    assert!(!refused.ok && refused.content.contains("add_note"), "{}", refused.content);
    servers.close(LIMIT).await;
}

#[tokio::test]
async fn a_process_has_the_operators_command_and_the_companys_secrets_and_ends_with_its_definition() {
    let (commands, definition, folder) = shell();
    let servers = McpServers::new(fetcher(&[]), commands);
    let (company, id) = (Uuid::now_v7(), Uuid::now_v7());
    servers.want(vec![WantedServer { id, company, definition, secrets: token() }]);
    until("it lists its tools", START, || servers.tools(id).is_some()).await;
    let tools = provisioned(&servers, company);
    let said = call(&tools, "crm__env", json!({})).await;
    assert!(said.ok && said.content.contains("CRM_TOKEN") && said.content.contains("PATH"), "{}", said.content);
    assert!(!said.content.contains("CARGO") && !said.content.contains("sesame"), "{}", said.content);
    let said = call(&tools, "crm__ping", json!({})).await;
    assert!(said.content.contains("it answered"), "{}", said.content);
    assert_eq!(servers.look(id).await.unwrap().len(), 6);
    assert_eq!(starts(&folder).len(), 1, "one process, however often it is asked");
    drop(tools);
    servers.want(Vec::new());
    until("both it and what it started are killed", LIMIT, || {
        let ids = starts(&folder);
        ids.len() == 2 && !ids.into_iter().any(runs)
    })
    .await;
    servers.close(LIMIT).await;
}

#[tokio::test]
async fn a_process_that_dies_is_started_again_and_one_that_floods_or_says_nothing_costs_its_call() {
    let (commands, definition, folder) = shell();
    let servers = McpServers::new(fetcher(&[]), commands);
    let (company, id) = (Uuid::now_v7(), Uuid::now_v7());
    servers.want(vec![WantedServer { id, company, definition, secrets: token() }]);
    until("it lists its tools", START, || servers.tools(id).is_some()).await;
    let tools = provisioned(&servers, company);
    let began = std::time::Instant::now();
    let (mute, flood) = tokio::join!(call(&tools, "crm__mute", json!({})), call(&tools, "crm__flood", json!({})));
    assert!(!mute.ok && mute.content.contains("within 3000 ms"), "{}", mute.content);
    assert!(began.elapsed() >= LIMIT && began.elapsed() < 3 * LIMIT, "{:?}", began.elapsed());
    assert!(flood.ok && flood.content.contains("after the flood"), "the long line is dropped: {}", flood.content);
    let asked = call(&tools, "crm__ask", json!({})).await;
    assert!(asked.ok && asked.content.contains("asked enough"), "{}", asked.content);
    until("it hears that nobody waits", START, || folder.path().join("cancelled").exists()).await;
    let died = call(&tools, "crm__die", json!({})).await;
    assert!(!died.ok && died.content.contains("may or may not have worked"), "{}", died.content);
    until("it is started again", START, || starts(&folder).len() == 2).await;
    let mut said = call(&tools, "crm__env", json!({ "n": 0 })).await;
    for n in 1..20 {
        if said.ok {
            break;
        }
        tokio::time::timeout(Duration::from_millis(500), std::future::pending::<()>()).await.unwrap_err();
        said = call(&tools, "crm__env", json!({ "n": n })).await;
    }
    assert!(said.ok, "{}", said.content);
    assert!(starts(&folder).len() <= 3, "not more often than it died: {:?}", starts(&folder));
    servers.close(LIMIT).await;
    until("nothing is left when the program ends", LIMIT, || !starts(&folder).into_iter().any(runs)).await;
}

#[tokio::test]
async fn a_company_chooses_among_the_operators_commands_and_no_others() {
    let servers = McpServers::new(fetcher(&[]), named(&["/bin/true"]));
    let (company, id) = (Uuid::now_v7(), Uuid::now_v7());
    let wanted =
        |command: &str, secrets| WantedServer { id, company, definition: command_definition(command), secrets };
    servers.want(vec![wanted("billing", SecretHeaders::default())]);
    let told = servers.look(id).await.unwrap_err();
    assert!(told.contains("\"billing\"") && told.contains("tools.mcp_commands"), "{told}");
    servers.want(vec![wanted("crm", SecretHeaders::new([("LD_PRELOAD".to_owned(), "/tmp/evil".to_owned())]))]);
    let told = servers.look(id).await.unwrap_err();
    assert!(told.contains("LD_PRELOAD") && !told.contains("evil"), "{told}");
    servers.want(vec![wanted("crm", SecretHeaders::default())]);
    let told = servers.look(id).await.unwrap_err();
    assert!(told.contains("ended"), "a program that is no server: {told}");
    servers.close(LIMIT).await;

    let faults = |more: Value| {
        let mut definition = json!({ "name": "crm" });
        definition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value::<McpServerDefinition>(definition).unwrap().faults()
    };
    for (more, field) in [
        (json!({}), "url"),
        (json!({ "command": "/bin/sh" }), "command"),
        (json!({ "command": "sh -c x" }), "command"),
        (json!({ "command": "crm", "url": "https://a.example/" }), "url"),
        (json!({ "command": "crm", "headers": { "A": "b" } }), "headers"),
        (json!({ "command": "crm", "allowed_hosts": ["a.example"] }), "allowed_hosts"),
    ] {
        let found = faults(more.clone());
        assert!(found.len() == 1 && found[0].0 == field, "{more}: {found:?}");
    }
    let bad = SecretHeaders::new([("NODE_OPTIONS".to_owned(), "--require=x".to_owned())]);
    let told = command_definition("crm").secret_faults(&bad);
    assert!(told.len() == 1 && told[0].0 == "secret_headers.NODE_OPTIONS", "{told:?}");
}
