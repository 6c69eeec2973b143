//! MCP servers as tools: one of the reference SDK where Python has it, and one of our own that is as bad as servers get.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Json, Response};
use axum::routing::post;
use offhook::agent::tools::fetch::Fetcher;
use offhook::agent::tools::http::SecretHeaders;
use offhook::agent::tools::mcp::{McpServerDefinition, McpServers, WantedServer, look};
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
    let mut registry = ToolRegistry::default();
    servers.provision(company, &mut registry);
    let names: Vec<String> = registry.names().map(str::to_owned).collect();
    Some(ToolBox::new(names.iter().map(String::as_str), &registry).unwrap())
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

/// `None`: this Python has no MCP. `MCP_PYTHON` names another one.
async fn python(answers: &str) -> Option<(Python, String)> {
    let python = std::env::var("MCP_PYTHON").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python).args(["-c", "import mcp"]).stderr(Stdio::null()).status();
    if !has.is_ok_and(|status| status.success()) {
        println!("skipped: Python has no mcp");
        return None;
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/mcp_server.py");
    let child = Command::new(&python)
        .args([script, &port.to_string(), answers])
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
        let servers = McpServers::new(fetcher(&["127.0.0.1"]));
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
}

#[derive(Clone)]
struct Bad {
    mood: Mood,
    sessions: Arc<AtomicUsize>,
    left: Arc<AtomicUsize>,
}

async fn bad(mood: Mood) -> (String, Bad) {
    let bad = Bad { mood, sessions: Arc::default(), left: Arc::default() };
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
            let hello = json!({ "protocolVersion": "2025-06-18", "capabilities": { "tools": {} }, "serverInfo": {} });
            ([("mcp-session-id", "s1")], result(hello)).into_response()
        }
        _ if headers.get("mcp-session-id").is_none() => StatusCode::BAD_REQUEST.into_response(),
        (Mood::Forgetful, _) if bad.left.fetch_sub(1, Ordering::SeqCst) == 0 => {
            bad.left.store(0, Ordering::SeqCst);
            StatusCode::NOT_FOUND.into_response()
        }
        (_, "notifications/initialized") => StatusCode::ACCEPTED.into_response(),
        (Mood::ManyTools, "tools/list") => {
            let many: Vec<Value> = (0..500).map(|n| tool(&format!("tool_{n:03}"))).collect();
            result(json!({ "tools": many, "nextCursor": "again" })).into_response()
        }
        (_, "tools/list") => {
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
        let servers = McpServers::new(fetcher(&["127.0.0.1"]));
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
    let nobody = McpServers::new(fetcher(&["127.0.0.1"]));
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
    let (servers, company) = (McpServers::new(fetcher(&["127.0.0.1"])), Uuid::now_v7());
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
