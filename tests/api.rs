//! The REST API over real sockets on every database: each route with a request that is good and one that is not, who may
//! do what, and what belongs to another company is not there.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use offhook::agent::dialling::OutboundRefusal;
use offhook::agent::profile::AgentProfile;
use offhook::agent::tools::fetch::Fetcher;
use offhook::agent::tools::http::SecretHeaders;
use offhook::agent::tools::reach::Reach;
use offhook::call::clients::Clients;
use offhook::call::desk::{CallRequest, MessageRequest, OutboundError};
use offhook::call::handle::CallEvent;
use offhook::call::outbound::Outbound;
use offhook::conversation::transcript::{Line, Transcript};
use offhook::http::api::{self, ApiState, LiveCalls};
use offhook::http::auth::{SetupLink, Token};
use offhook::http::config::{ServerConfig, ServerUrls, TrustedProxies};
use offhook::mock::twilio::{MockTwilio, MockTwilioConfig};
use offhook::providers;
use offhook::providers::credentials::{Credentials, CredentialsFault};
use offhook::providers::provider::Provider;
use offhook::providers::rest::ProviderError;
use offhook::store::Store;
use offhook::store::calls::{CallRecord, Interruptions};
use offhook::store::companies::CompanySettings;
use offhook::store::directory::Integration;
use offhook::store::integrations::NewIntegration;
use offhook::store::knowledge::{Added, KnowledgeBases, NewBase};
use offhook::store::messages::NewMessage;
use offhook::store::tools::ToolDefinition;
use offhook::store::users::Role;
use offhook::telephony::{CallEnd, CallId, Direction, EndReason, Party, PhoneNumber};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use stores::Base;
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

#[path = "common/stores.rs"]
mod stores;

on_every_store! {
    what_belongs_to_another_company_is_not_there_on_any_route
    every_route_asks_for_its_role_and_for_somebody
    a_company_is_set_up_from_its_first_request_to_its_last
    every_faulty_field_is_named_at_once
    the_administrator_sees_all_and_names_a_company_where_it_creates
    a_person_logs_in_changes_things_by_cookie_and_logs_out
    the_first_link_makes_one_company_and_one_owner
    a_call_with_an_idempotency_key_is_made_once
    a_call_is_found_by_its_filters_and_heard_in_ranges
    an_onlooker_sees_a_call_until_it_ends
    no_answer_and_no_audit_entry_holds_a_secret
    twilios_webhooks_are_verified_written_shown_and_put_back
    a_document_is_uploaded_found_and_removed
    a_tool_is_made_tried_used_by_an_agent_and_removed
}

const SID: &str = "AC00000000000000000000000000000001";
const AUTH_TOKEN: &str = "00000000000000000000000000000abc";
/// Of every company's tool.
const TOOL_KEY: &str = "key-of-the-booking-system-0123";
const ADMIN: &str = "an-administrators-token-0123456789";
const PATIENCE: Duration = Duration::from_secs(20);

/// Notes what it is asked, and does as it is told.
#[derive(Default)]
struct Fake {
    calls: Mutex<Vec<(Uuid, CallRequest)>>,
    messages: Mutex<Vec<(Uuid, MessageRequest)>>,
    refusals: Mutex<Vec<OutboundError>>,
    clients: Clients,
}

impl Outbound for Fake {
    fn call(&self, company: Uuid, request: CallRequest) -> BoxFuture<'static, Result<CallId, OutboundError>> {
        self.calls.lock().unwrap().push((company, request));
        let answer = self.refusals.lock().unwrap().pop().map_or_else(|| Ok(CallId::new()), Err);
        async { answer }.boxed()
    }

    fn message(&self, company: Uuid, request: MessageRequest) -> BoxFuture<'static, Result<Uuid, OutboundError>> {
        self.messages.lock().unwrap().push((company, request));
        async { Ok(Uuid::now_v7()) }.boxed()
    }

    fn client(&self, integration: &Integration) -> Result<Arc<dyn Provider>, CredentialsFault> {
        self.clients.of(integration)
    }
}

/// Calls that run because a test says so.
struct Live {
    events: broadcast::Sender<CallEvent>,
    running: Mutex<HashSet<CallId>>,
    hung_up: Mutex<Vec<CallId>>,
}

impl LiveCalls for Live {
    fn events(&self) -> broadcast::Receiver<CallEvent> {
        self.events.subscribe()
    }

    fn is_running(&self, call: CallId) -> bool {
        self.running.lock().unwrap().contains(&call)
    }

    fn hang_up(&self, call: CallId) -> bool {
        let runs = self.running.lock().unwrap().contains(&call);
        if runs {
            self.hung_up.lock().unwrap().push(call);
        }
        runs
    }
}

struct Server {
    url: String,
    client: reqwest::Client,
    store: Store,
    outbound: Arc<Fake>,
    live: Arc<Live>,
    recordings: tempfile::TempDir,
    closing: CancellationToken,
    _base: Base,
}

/// A company with one of everything.
struct Place {
    company: Uuid,
    integration: Uuid,
    agent: Uuid,
    line: Uuid,
    call: CallId,
    message: Uuid,
    key_id: Uuid,
    knowledge: Uuid,
    document: Uuid,
    tool: Uuid,
    user: Uuid,
    keys: BTreeMap<Role, String>,
}

impl Place {
    fn owner(&self) -> &str {
        &self.keys[&Role::Owner]
    }
}

impl Server {
    async fn start(base: Base) -> Self {
        Self::with(base, None).await
    }

    async fn with(base: Base, setup: Option<&str>) -> Self {
        let store = base.open().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let config = ServerConfig::default();
        let recordings = tempfile::tempdir().unwrap();
        let (events, _) = broadcast::channel(64);
        let live = Arc::new(Live { events, running: Mutex::default(), hung_up: Mutex::default() });
        let outbound = Arc::new(Fake::default());
        let closing = CancellationToken::new();
        let state = ApiState {
            admin: Some(Token::new(&ADMIN.into())),
            setup: setup.map(|secret| SetupLink::new(&secret.into())),
            closing: closing.clone(),
            fetcher: Some(Fetcher::new(Reach::new(&["127.0.0.1".to_owned()])).unwrap()),
            ..ApiState::new(
                store.clone(),
                live.clone(),
                outbound.clone(),
                Arc::new(ServerUrls::new(&config, address).unwrap()),
                Arc::new(TrustedProxies::new(&config).unwrap()),
                recordings.path(),
            )
        };
        tokio::spawn(offhook::http::serve(listener, api::router(state), closing.clone()));
        // An error means that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let url = format!("http://{address}");
        Self { url, client, store, outbound, live, recordings, closing, _base: base }
    }

    fn request(&self, method: Method, path: &str, key: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url)).bearer_auth(key)
    }

    /// Status and body (null where it is no JSON).
    async fn ask(&self, method: Method, path: &str, key: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.request(method, path, key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let kind = response.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
        let text = response.text().await.unwrap();
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        if status >= 400 {
            assert_eq!(kind.as_deref(), Some("application/problem+json"), "{path}: {text}");
            assert_eq!(body["status"], status, "{path}: {text}");
            assert!(body["title"].is_string() && body["type"].is_string(), "{path}: {text}");
        }
        (status, body)
    }

    async fn get(&self, path: &str, key: &str) -> Value {
        let (status, body) = self.ask(Method::GET, path, key, None).await;
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    async fn post(&self, path: &str, key: &str, body: Value) -> (u16, Value) {
        self.ask(Method::POST, path, key, Some(body)).await
    }

    /// A company with one of everything, made behind the API's back.
    async fn place(&self, name: &str) -> Place {
        let store = &self.store;
        let company = store.add_company(name, &CompanySettings::default()).await.unwrap().id;
        let kind = providers::kind("twilio").unwrap();
        let credentials = twilio("http://127.0.0.1:9");
        let new = NewIntegration { company, name: "Main", kind, credentials: &credentials };
        let integration = store.add_integration(new).await.unwrap();
        let profile = AgentProfile { name: "Front desk".into(), language: "en".into(), ..AgentProfile::default() };
        let agent = store.add_agent(company, &profile).await.unwrap();
        let line = store.add_line(company, integration, "+15550001111", agent).await.unwrap().unwrap();
        let call = record(company, name, integration, agent);
        store.put_call(&call).await.unwrap();
        let (ours, theirs) = (PhoneNumber::new("+15550001111"), PhoneNumber::new("+15550002222"));
        let new = NewMessage {
            company,
            integration,
            direction: Direction::Inbound,
            line: &ours,
            peer: &theirs,
            text: "hi",
            media: &[],
            provider_message: Some("SM1"),
            status: "received",
        };
        let message = store.add_message(new).await.unwrap().unwrap();
        let mut keys = BTreeMap::new();
        for role in Role::ALL {
            let (_, secret) = store.add_key(company, role.label(), role).await.unwrap();
            keys.insert(role, secret.expose_secret().to_owned());
        }
        let (key, _) = store.add_key(company, "to be revoked", Role::Viewer).await.unwrap();
        let NewBase::Made(base) = store.add_knowledge_base(company, "Hotel", "en").await.unwrap() else {
            panic!("too many");
        };
        let bases = KnowledgeBases::without_vectors(store.clone());
        let text = Bytes::from_static(b"Dogs are welcome for ten euros a night.");
        let Added::Taken(document) = bases.add(company, base.id, "pets.txt", text).await.unwrap() else {
            panic!("not taken");
        };
        bases.index(document.id).await.unwrap();
        let tool = serde_json::from_value(json!({
            "name": "find_booking", "description": "Finds.", "method": "GET", "url": "https://crm.example.com/bookings",
        }));
        let secrets = SecretHeaders::new([("X-Key".to_owned(), TOOL_KEY.to_owned())]);
        let tool = store.add_tool(company, &ToolDefinition::Http(tool.unwrap()), &secrets).await.unwrap().unwrap();
        let email = format!("anna@{}.example", name.to_lowercase());
        let password = SecretString::from("correct horse");
        let user = store.add_user(company, &email, "Anna", &password, Role::Owner).await.unwrap();
        Place {
            company,
            integration,
            agent,
            line,
            call: call.id,
            message,
            key_id: key.id,
            knowledge: base.id,
            document: document.id,
            tool,
            user,
            keys,
        }
    }

    async fn document(&self) -> Value {
        let response = self.client.get(format!("{}/api/openapi.json", self.url)).send().await.unwrap();
        response.json().await.unwrap()
    }

    /// Method and path of every operation of the OpenAPI document.
    async fn operations(&self) -> Vec<(Method, String)> {
        let document = self.document().await;
        let mut found = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                if let Ok(method) = method.to_uppercase().parse::<Method>()
                    && ["GET", "POST", "PUT", "PATCH", "DELETE"].contains(&method.as_str())
                {
                    found.push((method, path.clone()));
                }
            }
        }
        assert!(found.len() > 40, "{found:?}");
        found
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

fn twilio(api_base: &str) -> Credentials {
    let values = [("account_sid", SID), ("auth_token", AUTH_TOKEN), ("api_base", api_base)];
    Credentials::from_stored(values.map(|(name, value)| (name.into(), value.into())).into())
}

fn record(company: Uuid, name: &str, integration: Uuid, agent: Uuid) -> CallRecord {
    let id = CallId::new();
    CallRecord {
        id,
        direction: Direction::Inbound,
        company: name.into(),
        company_id: company,
        integration_id: integration,
        provider: "twilio".into(),
        provider_call: format!("CA{}", id.uuid().simple()),
        line: "+15550001111".into(),
        from: PhoneNumber::new("+15550002222"),
        to: PhoneNumber::new("+15550001111"),
        agent: "Front desk".into(),
        agent_id: Some(agent),
        agent_version: Some(1),
        purpose: None,
        vars: Default::default(),
        started: Timestamp::now(),
        answered: Some(Timestamp::now()),
        ended: Some(Timestamp::now()),
        end: Some(CallEnd::new(Party::Caller, EndReason::HungUp)),
        legs: Vec::new(),
        transcript: Transcript {
            lines: vec![Line {
                who: Party::Agent,
                text: "Hello.".into(),
                start_ms: 0,
                end_ms: 500,
                heard: None,
                stages: BTreeMap::new(),
            }],
            tools: Vec::new(),
        },
        remembered: BTreeMap::new(),
        handover: None,
        interruptions: Interruptions::default(),
        faults: Vec::new(),
        recorded: true,
    }
}

/// Ids of `place` in a path of the document.
fn filled(path: &str, place: &Place) -> String {
    let resource = path.split('/').nth(3).unwrap_or_default();
    let id = match resource {
        "companies" => place.company,
        "integrations" => place.integration,
        "agents" => place.agent,
        "lines" => place.line,
        "calls" => place.call.uuid(),
        "messages" => place.message,
        "keys" => place.key_id,
        "users" => place.user,
        "knowledge" => place.knowledge,
        "tools" => place.tool,
        _ => Uuid::nil(),
    };
    let path = path.replace("{id}", &id.to_string()).replace("{document}", &place.document.to_string());
    path.replace("{delivery}", &Uuid::nil().to_string())
}

/// A body that is good, with `place`'s ids where it names things.
fn good_body(method: &Method, path: &str, place: &Place) -> Option<Value> {
    let agent = json!({ "name": "Second desk", "greeting": "Hello." });
    Some(match (method.as_str(), path) {
        ("POST", "/api/v1/companies") => json!({ "name": "Third" }),
        ("PATCH", "/api/v1/companies/{id}") => json!({ "name": "Renamed" }),
        ("POST", "/api/v1/users") => {
            json!({ "email": "b@x.example", "name": "Boris", "password": "correct horse", "role": "viewer" })
        }
        ("PATCH", "/api/v1/users/{id}") => json!({ "role": "viewer" }),
        ("POST", "/api/v1/keys") => json!({ "name": "ci", "role": "viewer" }),
        ("POST", "/api/v1/integrations") => json!({
            "name": "Second", "provider": "twilio", "credentials": { "account_sid": SID, "auth_token": AUTH_TOKEN },
        }),
        ("PATCH", "/api/v1/integrations/{id}") => json!({ "name": "Renamed" }),
        ("PUT", "/api/v1/integrations/{id}/webhook") => json!({}),
        ("POST", "/api/v1/lines") => {
            json!({ "integration_id": place.integration, "number": "+15550003333", "agent_id": place.agent })
        }
        ("PATCH", "/api/v1/lines/{id}") => json!({ "agent_id": place.agent }),
        ("POST", "/api/v1/agents") | ("PUT", "/api/v1/agents/{id}") => agent,
        ("PUT", "/api/v1/agents/{id}/workflow") => json!({ "workflow": null }),
        ("POST", "/api/v1/calls") => json!({ "to": "+15550004444", "line_id": place.line }),
        ("POST", "/api/v1/tools") | ("PUT", "/api/v1/tools/{id}") => json!({
            "kind": "http", "name": "book", "description": "Books.", "method": "POST",
            "url": "https://crm.example.com/bookings",
        }),
        ("POST", "/api/v1/tools/{id}/try") => json!({}),
        ("POST", "/api/v1/knowledge") => json!({ "name": "Second" }),
        ("POST", "/api/v1/webhooks") => json!({ "name": "CRM", "url": "https://crm.example.com/" }),
        ("PATCH", "/api/v1/webhooks/{id}") => json!({ "enabled": true }),
        ("POST", "/api/v1/webhooks/{id}/rotate") => json!({}),
        ("POST", "/api/v1/webhooks/{id}/replay") => json!({ "since": "2026-01-01T00:00:00Z" }),
        ("POST", "/api/v1/messages") => json!({ "to": "+15550004444", "text": "hi", "line_id": place.line }),
        _ => return None,
    })
}

/// Routes that are about whoever asks.
fn is_own(path: &str) -> bool {
    path.starts_with("/api/v1/session") || path == "/api/v1/providers"
}

async fn what_belongs_to_another_company_is_not_there_on_any_route(base: Base) {
    let server = Server::start(base).await;
    let (acme, other) = (server.place("Acme").await, server.place("Other").await);
    let before = server.store.integration(other.company, other.integration).await.unwrap();
    for (method, path) in server.operations().await.into_iter().filter(|(_, path)| !is_own(path)) {
        let mut body = good_body(&method, &path, &acme);
        let mut at = filled(&path, &other);
        if !path.contains("{id}") {
            match (&mut body, path.as_str()) {
                // No company owns the companies: they are the administrator's.
                (Some(_), "/api/v1/companies") => continue,
                (Some(body), _) => body["company_id"] = json!(other.company),
                (None, _) => at = format!("{path}?company_id={}", other.company),
            }
        }
        let (status, answer) = server.ask(method.clone(), &at, acme.owner(), body).await;
        assert_eq!(status, 404, "{method} {path}: {answer}");
        assert!(answer["detail"].is_null(), "no hint: {method} {path}: {answer}");
    }
    // Its own ids in a body lead to nothing of the other company either.
    for (path, body) in [
        (
            "/api/v1/lines",
            json!({ "integration_id": other.integration, "number": "+15550003333", "agent_id": acme.agent }),
        ),
        (
            "/api/v1/lines",
            json!({ "integration_id": acme.integration, "number": "+15550003333", "agent_id": other.agent }),
        ),
        ("/api/v1/calls", json!({ "to": "+15550004444", "line_id": other.line })),
        ("/api/v1/calls", json!({ "to": "+15550004444", "integration_id": other.integration })),
        ("/api/v1/calls", json!({ "to": "+15550004444", "agent_id": other.agent })),
        ("/api/v1/messages", json!({ "to": "+15550004444", "text": "hi", "line_id": other.line })),
    ] {
        let (status, answer) = server.post(path, acme.owner(), body.clone()).await;
        assert_eq!(status, 404, "{path} {body}: {answer}");
    }
    let path = format!("/api/v1/lines/{}", acme.line);
    let (status, _) = server.ask(Method::PATCH, &path, acme.owner(), Some(json!({ "agent_id": other.agent }))).await;
    assert_eq!(status, 404);
    let webhook = format!("/api/v1/integrations/{}/webhook", acme.integration);
    let body = json!({ "lines": [other.line] });
    assert_eq!(server.ask(Method::PUT, &webhook, acme.owner(), Some(body)).await.0, 422);
    for list in [
        "integrations",
        "lines",
        "agents",
        "calls",
        "messages",
        "keys",
        "users",
        "audit",
        "companies",
        "knowledge",
        "tools",
    ] {
        let text = server.get(&format!("/api/v1/{list}"), acme.owner()).await.to_string();
        for id in [
            other.company,
            other.integration,
            other.agent,
            other.line,
            other.call.uuid(),
            other.message,
            other.user,
            other.knowledge,
            other.document,
            other.tool,
        ] {
            assert!(!text.contains(&id.to_string()), "{list}: {text}");
        }
    }
    assert_eq!(server.store.integration(other.company, other.integration).await.unwrap(), before);
    assert!(server.outbound.calls.lock().unwrap().is_empty() && server.outbound.messages.lock().unwrap().is_empty());
}

/// The least role of every operation that is not about whoever asks.
fn least_role(method: &Method, path: &str) -> Role {
    match (method.as_str(), path.trim_start_matches("/api/v1/")) {
        (_, "users" | "users/{id}" | "keys" | "keys/{id}" | "audit") => Role::Owner,
        (_, "integrations/{id}/webhook" | "integrations/{id}/verify") => Role::Owner,
        (_, "integrations/{id}/lines" | "calls/{id}/capture") => Role::Operator,
        ("GET", "webhooks" | "webhooks/{id}" | "webhooks/{id}/deliveries") => Role::Operator,
        (_, "webhooks" | "webhooks/{id}" | "webhooks/{id}/rotate") => Role::Owner,
        ("GET", _) => Role::Viewer,
        (_, "integrations" | "integrations/{id}" | "companies/{id}" | "companies" | "tools" | "tools/{id}") => {
            Role::Owner
        }
        _ => Role::Operator,
    }
}

async fn every_route_asks_for_its_role_and_for_somebody(base: Base) {
    let server = Server::start(base).await;
    let acme = server.place("Acme").await;
    for (method, path) in server.operations().await {
        let nothing = Uuid::nil().to_string();
        let at = path.replace("{id}", &nothing).replace("{document}", &nothing).replace("{delivery}", &nothing);
        let body = good_body(&method, &path, &acme);
        if !(method == Method::POST && path == "/api/v1/session") {
            let mut request = server.client.request(method.clone(), format!("{}{at}", server.url));
            if let Some(body) = &body {
                request = request.json(body);
            }
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
            assert_eq!(response.headers()["www-authenticate"], "Bearer", "{method} {path}");
            for key in ["ohk_wrong", "", "an-administrators-token-0123456788"] {
                let (status, _) = server.ask(method.clone(), &at, key, body.clone()).await;
                assert_eq!(status, 401, "{method} {path} with {key:?}");
            }
        }
        if is_own(&path) || (method == Method::POST && path == "/api/v1/companies") {
            continue;
        }
        for role in [Role::Viewer, Role::Operator] {
            let (status, answer) = server.ask(method.clone(), &at, &acme.keys[&role], body.clone()).await;
            let least = least_role(&method, &path);
            assert_eq!(status == 403, role < least, "{method} {path} as {}: {status} {answer}", role.label());
        }
    }
    let (status, _) = server.post("/api/v1/companies", acme.owner(), json!({ "name": "Mine" })).await;
    assert_eq!(status, 403, "companies are the administrator's");
}

async fn a_company_is_set_up_from_its_first_request_to_its_last(base: Base) {
    let server = Server::start(base).await;
    let (status, company) = server.post("/api/v1/companies", ADMIN, json!({ "name": "Acme" })).await;
    assert_eq!(status, 201, "{company}");
    let id = company["id"].as_str().unwrap();
    assert_eq!(server.post("/api/v1/companies", ADMIN, json!({ "name": "Acme" })).await.0, 409, "a name is one's own");
    let new_key = json!({ "name": "ci", "role": "owner", "company_id": id });
    let (status, made) = server.post("/api/v1/keys", ADMIN, new_key).await;
    assert_eq!(status, 201, "{made}");
    let key = made["secret"].as_str().unwrap();
    assert_eq!(server.get("/api/v1/session", key).await["company_id"], id);

    let settings = json!({ "settings": {
        "allowed_countries": ["UA"], "caps": { "calls_per_hour": 5 },
        "quiet_hours": { "from": "21:00", "to": "08:00", "time_zone": "Europe/Kyiv" },
    } });
    let (status, changed) = server.ask(Method::PATCH, &format!("/api/v1/companies/{id}"), key, Some(settings)).await;
    assert_eq!((status, &changed["settings"]["caps"]["calls_per_hour"]), (200, &json!(5)), "{changed}");

    let body = json!({ "name": "Main", "provider": "twilio", "credentials": { "account_sid": SID, "auth_token": AUTH_TOKEN } });
    let (status, integration) = server.post("/api/v1/integrations", key, body.clone()).await;
    assert_eq!(status, 201, "{integration}");
    assert_eq!(server.post("/api/v1/integrations", key, body).await.0, 409);
    let integration = integration["id"].as_str().unwrap();
    let body = json!({ "name": "PBX", "provider": "ringostat", "credentials": {
        "auth_key": "0123456789abcdef0123456789abcdef", "project_id": "12345",
    } });
    let (status, pbx) = server.post("/api/v1/integrations", key, body).await;
    assert_eq!(status, 201, "{pbx}");
    let wiring = server.get(&format!("/api/v1/integrations/{}/webhook", pbx["id"].as_str().unwrap()), key).await;
    assert_eq!(wiring["mode"], "typed", "{wiring}");
    assert!(!wiring["instructions"].as_array().unwrap().is_empty() && wiring["problem"].is_string(), "{wiring}");
    let url = wiring["url"].as_str().unwrap();
    assert!(url.contains(&format!("/webhooks/ringostat/{}/", pbx["id"].as_str().unwrap())), "{url}");

    let agent = json!({ "name": "Front desk", "greeting": "Hello.", "tools": ["make_call"] });
    let (status, agent) = server.post("/api/v1/agents", key, agent).await;
    assert_eq!((status, &agent["version"]), (201, &json!(1)), "{agent}");
    let agent_path = format!("/api/v1/agents/{}", agent["id"].as_str().unwrap());
    let changed = json!({ "name": "Front desk", "greeting": "Good day.", "tools": ["make_call"] });
    let (_, changed) = server.ask(Method::PUT, &agent_path, key, Some(changed)).await;
    assert_eq!(changed["version"], 2, "{changed}");
    let versions = server.get(&format!("{agent_path}/versions"), key).await;
    assert_eq!(versions["items"].as_array().unwrap().len(), 2);
    let tools = server.get(&format!("{agent_path}/tools"), key).await;
    let tool = |name: &str| tools["items"].as_array().unwrap().iter().find(|tool| tool["name"] == name).cloned();
    let make_call = tool("make_call").unwrap();
    assert_eq!(make_call["enabled"], true);
    assert_eq!(make_call["integrations"].as_array().unwrap().len(), 2, "{tools}");
    assert_eq!(tool("send_sms").unwrap()["integrations"], json!(["Main"]), "Ringostat sends none");
    assert_eq!(tool("get_call_history").unwrap()["enabled"], false);

    let line = json!({ "integration_id": integration, "number": "+15550001111", "agent_id": agent["id"] });
    let (status, made_line) = server.post("/api/v1/lines", key, line.clone()).await;
    assert_eq!(status, 201, "{made_line}");
    assert_eq!(server.post("/api/v1/lines", key, line).await.0, 409);
    let (status, refused) = server.ask(Method::DELETE, &agent_path, key, None).await;
    assert_eq!((status, &refused["type"]), (409, &json!("/api/problems#in-use")));
    let line_path = format!("/api/v1/lines/{}", made_line["id"].as_str().unwrap());
    for path in [&line_path, &agent_path, &format!("/api/v1/integrations/{integration}")] {
        assert_eq!(server.ask(Method::DELETE, path, key, None).await.0, 204, "{path}");
        assert_eq!(server.ask(Method::DELETE, path, key, None).await.0, 404, "{path} is gone");
    }
    let log = server.get("/api/v1/audit?limit=200", key).await;
    let actions: BTreeSet<&str> =
        log["items"].as_array().unwrap().iter().map(|entry| entry["action"].as_str().unwrap()).collect();
    for action in ["company.changed", "integration.added", "agent.changed", "line.removed", "integration.removed"] {
        assert!(actions.contains(action), "{action}: {actions:?}");
    }
    let first = server.get("/api/v1/audit?limit=2", key).await;
    let next = server.get(&format!("/api/v1/audit?limit=2&cursor={}", first["next"].as_str().unwrap()), key).await;
    assert_ne!(first["items"], next["items"]);
    assert_eq!(next["items"].as_array().unwrap().len(), 2);
    assert_eq!(
        server.ask(Method::DELETE, &format!("/api/v1/keys/{}", made["id"].as_str().unwrap()), key, None).await.0,
        204
    );
    assert_eq!(server.ask(Method::GET, "/api/v1/session", key, None).await.0, 401, "the key is revoked");
}

async fn every_faulty_field_is_named_at_once(base: Base) {
    let server = Server::start(base).await;
    let acme = server.place("Acme").await;
    let workflow = "version = 1\nname = \"x\"\nstart = \"nowhere\"\n[nodes.a]\nkind = \"say\"\n";
    let agent = format!("/api/v1/agents/{}", acme.agent);
    for (method, path, body, fields) in [
        (
            Method::POST,
            "/api/v1/integrations".to_owned(),
            json!({ "name": " x", "provider": "twilio", "credentials": { "account_sid": "12", "colour": "red" } }),
            vec!["name", "credentials.account_sid", "credentials.colour", "credentials.auth_token"],
        ),
        (
            Method::POST,
            "/api/v1/integrations".to_owned(),
            json!({ "name": "x", "provider": "pigeon", "credentials": {} }),
            vec!["provider"],
        ),
        (
            Method::POST,
            "/api/v1/users".to_owned(),
            json!({ "name": "", "email": "nobody", "password": "correct horse", "role": "viewer" }),
            vec!["name", "email"],
        ),
        (
            Method::POST,
            "/api/v1/users".to_owned(),
            json!({ "name": "B", "email": "b@x.example", "password": "short", "role": "viewer" }),
            vec!["password"],
        ),
        (Method::POST, "/api/v1/keys".to_owned(), json!({ "name": "k", "role": "king" }), vec!["role"]),
        (Method::POST, "/api/v1/keys".to_owned(), json!({ "role": "viewer" }), vec!["name"]),
        (
            Method::POST,
            "/api/v1/agents".to_owned(),
            json!({ "name": "A", "tts": { "speed": 9.0 }, "stt": { "engine": "magic" }, "tools": ["fly"] }),
            vec!["tts.speed", "stt.engine", "tools[0]"],
        ),
        (Method::POST, "/api/v1/agents".to_owned(), json!({ "name": "A", "tts": { "pitch": 1 } }), vec!["tts.pitch"]),
        (
            Method::PATCH,
            format!("/api/v1/companies/{}", acme.company),
            json!({ "settings": { "allowed_countries": ["ukraine"], "quiet_hours":
                { "from": "25:00", "to": "08:00", "time_zone": "Mars/Base" } } }),
            vec!["settings.allowed_countries[0]", "settings.quiet_hours.from", "settings.quiet_hours.time_zone"],
        ),
        (
            Method::POST,
            "/api/v1/lines".to_owned(),
            json!({ "integration_id": acme.integration, "number": "0501234567", "agent_id": acme.agent }),
            vec!["number"],
        ),
        (Method::POST, "/api/v1/calls".to_owned(), json!({ "to": "112" }), vec!["to"]),
        (Method::POST, "/api/v1/calls".to_owned(), json!({ "to": "+15550004444", "tone": 1 }), vec!["tone"]),
        (Method::POST, "/api/v1/messages".to_owned(), json!({ "to": "+15550004444", "text": " " }), vec!["text"]),
        (
            Method::POST,
            "/api/v1/knowledge".to_owned(),
            json!({ "name": " x", "language": "" }),
            vec!["name", "language"],
        ),
        (
            Method::GET,
            format!("/api/v1/knowledge/{}/search?q=%20&limit=21", acme.knowledge),
            Value::Null,
            vec!["q", "limit"],
        ),
        (Method::GET, format!("/api/v1/knowledge/{}/search", acme.knowledge), Value::Null, vec!["q"]),
        (Method::GET, "/api/v1/calls?limit=0".to_owned(), Value::Null, vec!["limit"]),
        (Method::GET, "/api/v1/calls?limit=201".to_owned(), Value::Null, vec!["limit"]),
        (Method::GET, "/api/v1/calls?from=yesterday".to_owned(), Value::Null, vec!["from"]),
        (Method::GET, "/api/v1/calls?status=lost".to_owned(), Value::Null, vec!["status"]),
        (Method::GET, "/api/v1/calls?colour=red".to_owned(), Value::Null, vec!["colour"]),
        (Method::GET, "/api/v1/lines?cursor=first".to_owned(), Value::Null, vec!["cursor"]),
    ] {
        let body = (!body.is_null()).then_some(body);
        let (status, answer) = server.ask(method.clone(), &path, acme.owner(), body).await;
        assert_eq!(status, 422, "{method} {path}: {answer}");
        let named: BTreeSet<&str> =
            answer["errors"].as_array().unwrap().iter().map(|fault| fault["field"].as_str().unwrap()).collect();
        assert_eq!(named, fields.into_iter().collect(), "{method} {path}: {answer}");
    }
    let (status, answer) = server
        .ask(Method::PUT, &format!("{agent}/workflow"), acme.owner(), Some(json!({ "workflow": workflow })))
        .await;
    assert_eq!(status, 422, "{answer}");
    assert!(
        answer["errors"]
            .as_array()
            .unwrap()
            .iter()
            .all(|fault| fault["field"].as_str().unwrap().starts_with("workflow: "))
    );
    let raw = |body: &'static str, kind: &'static str| {
        server.request(Method::POST, "/api/v1/keys", acme.owner()).header("content-type", kind).body(body).send()
    };
    assert_eq!(raw("{", "application/json").await.unwrap().status(), 400);
    assert_eq!(raw("name=x", "application/x-www-form-urlencoded").await.unwrap().status(), 415);
    let huge = json!({ "name": "x".repeat((1 << 20) + 1), "role": "viewer" });
    assert_eq!(server.post("/api/v1/keys", acme.owner(), huge).await.0, 413);
    assert_eq!(server.ask(Method::PUT, "/api/v1/keys", acme.owner(), None).await.0, 405);
    assert_eq!(server.ask(Method::GET, "/api/v1/calls/not-an-id", acme.owner(), None).await.0, 404);
}

async fn the_administrator_sees_all_and_names_a_company_where_it_creates(base: Base) {
    let server = Server::start(base).await;
    let (acme, other) = (server.place("Acme").await, server.place("Other").await);
    assert_eq!(server.get("/api/v1/session", ADMIN).await["kind"], "admin");
    assert_eq!(server.get("/api/v1/companies", ADMIN).await["items"].as_array().unwrap().len(), 2);
    for place in [&acme, &other] {
        for path in ["integrations", "lines", "agents", "calls", "messages", "knowledge"] {
            let path = filled(&format!("/api/v1/{path}/{{id}}"), place);
            server.get(&path, ADMIN).await;
        }
        let list = server.get(&format!("/api/v1/lines?company_id={}", place.company), ADMIN).await;
        assert_eq!(list["items"][0]["id"], json!(place.line));
    }
    let (status, answer) = server.ask(Method::GET, "/api/v1/lines", ADMIN, None).await;
    assert_eq!((status, &answer["errors"][0]["field"]), (422, &json!("company_id")));
    let unknown = format!("/api/v1/lines?company_id={}", Uuid::now_v7());
    assert_eq!(server.ask(Method::GET, &unknown, ADMIN, None).await.0, 404);
    assert_eq!(server.post("/api/v1/agents", ADMIN, json!({ "name": "X" })).await.0, 422);
    let body = json!({ "name": "X", "company_id": other.company });
    let (status, agent) = server.post("/api/v1/agents", ADMIN, body).await;
    assert_eq!(status, 201, "{agent}");
    let path = format!("/api/v1/agents/{}", agent["id"].as_str().unwrap());
    assert_eq!(server.ask(Method::GET, &path, acme.owner(), None).await.0, 404);
    server.get(&path, other.owner()).await;
}

async fn a_person_logs_in_changes_things_by_cookie_and_logs_out(base: Base) {
    let server = Server::start(base).await;
    let acme = server.place("Acme").await;
    let at = |path: &str| format!("{}{path}", server.url);
    let log_in = |email: &str, password: &str| {
        let body = json!({ "email": email, "password": password });
        server.client.post(at("/api/v1/session")).json(&body).send()
    };
    assert_eq!(log_in("anna@acme.example", "wrong horse!").await.unwrap().status(), 401);
    assert_eq!(log_in("nobody@acme.example", "wrong horse!").await.unwrap().status(), 401);
    let opened = log_in(" Anna@Acme.example ", "correct horse").await.unwrap();
    assert_eq!(opened.status(), 200);
    let cookie = opened.headers()["set-cookie"].to_str().unwrap().to_owned();
    for flag in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(flag), "{cookie}");
    }
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let me: Value = opened.json().await.unwrap();
    assert_eq!((&me["kind"], &me["role"], &me["name"]), (&json!("user"), &json!("owner"), &json!("anna@acme.example")));
    let with = |method: Method, path: &str| server.client.request(method, at(path)).header("cookie", &cookie);
    assert_eq!(with(Method::GET, "/api/v1/session").send().await.unwrap().status(), 200);
    let body = json!({ "name": "x", "role": "viewer" });
    let forged = with(Method::POST, "/api/v1/keys").json(&body);
    assert_eq!(forged.send().await.unwrap().status(), 403);
    let forged = with(Method::POST, "/api/v1/keys").header("origin", "https://evil.example").json(&body);
    assert_eq!(forged.send().await.unwrap().status(), 403);
    assert_eq!(server.get("/api/v1/keys", acme.owner()).await["items"].as_array().unwrap().len(), 4, "none was made");
    let ours = with(Method::POST, "/api/v1/keys").header("x-offhook-csrf", "1").json(&body);
    assert_eq!(ours.send().await.unwrap().status(), 201);
    let ours = with(Method::POST, "/api/v1/keys").header("origin", &server.url).json(&body);
    assert_eq!(ours.send().await.unwrap().status(), 201);
    // The last owner stays one.
    let me = format!("/api/v1/users/{}", acme.user);
    assert_eq!(server.ask(Method::DELETE, &me, acme.owner(), None).await.0, 409);
    let demoted = Some(json!({ "role": "viewer" }));
    assert_eq!(server.ask(Method::PATCH, &me, acme.owner(), demoted).await.0, 409);
    let closed = with(Method::DELETE, "/api/v1/session").header("x-offhook-csrf", "1").send().await.unwrap();
    assert_eq!(closed.status(), 204);
    assert!(closed.headers()["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!(with(Method::GET, "/api/v1/session").send().await.unwrap().status(), 401);
    let mut last = 0;
    for _ in 0..12 {
        last = log_in("anna@acme.example", "wrong horse!").await.unwrap().status().as_u16();
    }
    assert_eq!(last, 429, "guessing is limited");
    let refused = log_in("anna@acme.example", "correct horse").await.unwrap();
    assert_eq!(refused.status(), 429, "also for whoever knows it by then");
    assert!(refused.headers().contains_key("retry-after"));
}

async fn the_first_link_makes_one_company_and_one_owner(base: Base) {
    let server = Server::with(base, Some("a-secret-link")).await;
    let at = |token: &str| format!("{}/setup/{token}", server.url);
    assert_eq!(server.client.get(at("another")).send().await.unwrap().status(), 404);
    assert_eq!(server.client.get(at("a-secret-link")).send().await.unwrap().status(), 200);
    let body = json!({ "company": "Acme", "name": "Anna", "email": "anna@acme.example", "password": "correct horse" });
    assert_eq!(server.client.post(at("another")).json(&body).send().await.unwrap().status(), 404);
    let short = json!({ "company": "Acme", "name": "Anna", "email": "anna@acme.example", "password": "short" });
    assert_eq!(server.client.post(at("a-secret-link")).json(&short).send().await.unwrap().status(), 422);
    let both = (0..2).map(|_| server.client.post(at("a-secret-link")).json(&body).send());
    let answers = futures::future::join_all(both).await;
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.as_ref().unwrap().status().as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 404], "exactly one of two at once");
    assert_eq!(server.client.get(at("a-secret-link")).send().await.unwrap().status(), 404, "it works once");
    let made = answers.into_iter().map(Result::unwrap).find(|answer| answer.status() == 200).unwrap();
    let cookie = made.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let me = server.client.get(format!("{}/api/v1/session", server.url)).header("cookie", cookie).send().await.unwrap();
    let me: Value = me.json().await.unwrap();
    assert_eq!((&me["role"], &me["companies"][0]["company"]), (&json!("owner"), &json!("Acme")), "{me}");
}

async fn a_call_with_an_idempotency_key_is_made_once(base: Base) {
    let server = Server::start(base).await;
    let acme = server.place("Acme").await;
    let call = |key: &str, body: Value| {
        let request = server.request(Method::POST, "/api/v1/calls", &acme.keys[&Role::Operator]);
        request.header("idempotency-key", key).json(&body).send()
    };
    let made = || server.outbound.calls.lock().unwrap().len();
    let body = json!({ "to": "+15550004444", "purpose": "Confirm seven.", "line_id": acme.line });
    let first = call("one", body.clone()).await.unwrap();
    assert_eq!(first.status(), 201);
    let location = first.headers()["location"].to_str().unwrap().to_owned();
    let first: Value = first.json().await.unwrap();
    assert_eq!(location, format!("/api/v1/calls/{}", first["id"].as_str().unwrap()));
    let again = call("one", body.clone()).await.unwrap();
    assert_eq!((again.status().as_u16(), again.headers()["idempotency-replayed"].to_str().unwrap()), (201, "true"));
    assert_eq!(again.json::<Value>().await.unwrap(), first);
    assert_eq!(made(), 1);
    let (company, order) = server.outbound.calls.lock().unwrap()[0].clone();
    assert_eq!((company, order.integration), (acme.company, Some(acme.integration)));
    assert_eq!((order.line.as_deref(), order.purpose.as_deref()), (Some("+15550001111"), Some("Confirm seven.")));
    let different = call("one", json!({ "to": "+15550005555" })).await.unwrap();
    assert_eq!(different.status(), 422);
    assert_eq!(different.json::<Value>().await.unwrap()["type"], "/api/problems#idempotency-different");

    // What certainly did not happen may be asked again; what may have happened may not.
    let refuse = |fault: OutboundError| server.outbound.refusals.lock().unwrap().push(fault);
    refuse(OutboundRefusal::Emergency.into());
    assert_eq!(call("two", body.clone()).await.unwrap().status(), 422);
    assert_eq!(call("two", body.clone()).await.unwrap().status(), 201);
    refuse(ProviderError::Unreachable { host: "h".into(), detail: "reset".into(), maybe_done: true }.into());
    assert_eq!(call("three", body.clone()).await.unwrap().status(), 502);
    assert_eq!(call("three", body.clone()).await.unwrap().status(), 502);
    assert_eq!(made(), 4, "one, two twice, three once");
    refuse(OutboundRefusal::TooMany { limit: 60, what: "calls" }.into());
    let capped = call("four", body.clone()).await.unwrap();
    assert_eq!((capped.status().as_u16(), capped.headers().contains_key("retry-after")), (429, true));
    assert_eq!(call(&"x".repeat(201), body.clone()).await.unwrap().status(), 400);

    let at_once = futures::future::join_all((0..5).map(|_| call("five", body.clone()))).await;
    let before = made();
    assert!(at_once.iter().all(|answer| matches!(answer.as_ref().unwrap().status().as_u16(), 201 | 409)));
    assert_eq!(before, 6, "five at once are one");
    let body = json!({ "to": "+15550004444", "text": "See you" });
    let (status, sent) = server.post("/api/v1/messages", acme.owner(), body).await;
    assert_eq!(status, 201, "{sent}");
    assert_eq!(server.outbound.messages.lock().unwrap()[0].1.text, "See you");
    let log = server.get("/api/v1/audit", acme.owner()).await.to_string();
    assert!(log.contains("call.made") && log.contains("message.sent"), "{log}");
}

async fn a_call_is_found_by_its_filters_and_heard_in_ranges(base: Base) {
    let server = Server::start(base).await;
    let acme = server.place("Acme").await;
    let key = &acme.keys[&Role::Viewer];
    let outbound = CallRecord {
        direction: Direction::Outbound,
        line: "901".into(),
        from: PhoneNumber::new("901"),
        to: PhoneNumber::new("+380441234567"),
        agent_id: None,
        answered: None,
        recorded: false,
        ..record(acme.company, "Acme", acme.integration, acme.agent)
    };
    server.store.put_call(&outbound).await.unwrap();
    let count = async |query: &str| {
        let found = server.get(&format!("/api/v1/calls?{query}"), key).await;
        found["items"].as_array().unwrap().len()
    };
    let agent = format!("agent={}", acme.agent);
    for (query, expected) in [
        ("", 2),
        ("direction=outbound", 1),
        ("phone=%2B380441234567", 1),
        ("phone=+380441234567", 1),
        ("status=no_answer", 1),
        ("status=answered&direction=outbound", 0),
        ("line=901", 1),
        (agent.as_str(), 1),
        ("from=2020-01-01T00:00:00Z", 2),
        ("to=2020-01-01T00:00:00Z", 0),
        ("limit=1", 1),
    ] {
        assert_eq!(count(query).await, expected, "{query}");
    }
    let path = format!("/api/v1/calls/{}", acme.call);
    assert_eq!(server.get(&path, key).await["from"], "+15550002222");
    assert_eq!(server.get(&format!("{path}/transcript"), key).await["lines"][0]["text"], "Hello.");
    let recording = format!("{path}/recording");
    assert_eq!(server.ask(Method::GET, &recording, key, None).await.0, 404, "the file is gone");
    let folder = server.recordings.path().join(acme.call.to_string());
    std::fs::create_dir_all(&folder).unwrap();
    let sound: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
    std::fs::write(folder.join("call.wav"), &sound).unwrap();
    let hear = |range: &str| server.request(Method::GET, &recording, key).header("range", range).send();
    let whole = server.request(Method::GET, &recording, key).send().await.unwrap();
    assert_eq!((whole.status().as_u16(), whole.headers()["content-type"].to_str().unwrap()), (200, "audio/wav"));
    assert_eq!(whole.bytes().await.unwrap(), sound);
    let part = hear("bytes=100000-100009").await.unwrap();
    assert_eq!(part.status(), 206);
    assert_eq!(part.headers()["content-range"], "bytes 100000-100009/200000");
    assert_eq!(part.bytes().await.unwrap(), &sound[100_000..100_010]);
    assert_eq!(hear("bytes=200000-").await.unwrap().status(), 416);
    let unheard = format!("/api/v1/calls/{}/recording", outbound.id);
    assert_eq!(server.ask(Method::GET, &unheard, key, None).await.0, 502, "its provider is asked, and is not there");
}

async fn an_onlooker_sees_a_call_until_it_ends(base: Base) {
    let server = Server::start(base).await;
    let acme = server.place("Acme").await;
    let key = &acme.keys[&Role::Viewer];
    let running = CallRecord { ended: None, end: None, ..record(acme.company, "Acme", acme.integration, acme.agent) };
    server.store.put_call(&running).await.unwrap();
    server.live.running.lock().unwrap().insert(running.id);
    let _keeps_the_channel_open = server.live.events.subscribe();
    let watch = |call: CallId| server.request(Method::GET, &format!("/api/v1/calls/{call}/events"), key).send();
    let stream = watch(running.id).await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let said = |call, text: &str| CallEvent::Said { call, who: Party::Caller, text: text.into() };
    let end = CallEnd::new(Party::Caller, EndReason::HungUp);
    for event in [
        said(acme.call, "of another call"),
        said(running.id, "Hello there"),
        CallEvent::Ended { call: running.id, end },
        said(running.id, "after the end"),
    ] {
        server.live.events.send(event).unwrap();
    }
    let text = tokio::time::timeout(PATIENCE, stream.text()).await.expect("the stream ends with the call").unwrap();
    assert!(text.contains("event: said") && text.contains("Hello there") && text.contains("event: ended"), "{text}");
    assert!(!text.contains("another call") && !text.contains("after the end"), "{text}");

    let over = watch(acme.call).await.unwrap().text().await.unwrap();
    assert!(over.contains("event: ended") && over.contains("hung_up"), "{over}");

    let slow = watch(running.id).await.unwrap();
    for n in 0..200 {
        server.live.events.send(said(running.id, &format!("word {n}"))).unwrap();
    }
    server.live.events.send(CallEvent::Ended { call: running.id, end }).unwrap();
    let text = slow.text().await.unwrap();
    assert!(text.contains("event: ended"), "{text}");

    let path = format!("/api/v1/calls/{}/hangup", running.id);
    assert_eq!(server.ask(Method::POST, &path, key, None).await.0, 403, "a viewer looks");
    assert_eq!(server.ask(Method::POST, &path, acme.owner(), None).await.0, 204);
    assert_eq!(*server.live.hung_up.lock().unwrap(), [running.id]);
    let over = format!("/api/v1/calls/{}/hangup", acme.call);
    assert_eq!(server.ask(Method::POST, &over, acme.owner(), None).await.0, 204, "over already");
    let last = watch(running.id).await.unwrap();
    server.closing.cancel();
    tokio::time::timeout(PATIENCE, last.text()).await.expect("a closing server ends its streams").unwrap();
}

async fn no_answer_and_no_audit_entry_holds_a_secret(base: Base) {
    let server = Server::start(base).await;
    let acme = server.place("Acme").await;
    let (_, webhook_secret) = server.store.integration_secrets(acme.company, acme.integration).await.unwrap().unwrap();
    let webhook_secret = webhook_secret.unwrap();
    let path = format!("/api/v1/integrations/{}", acme.integration);
    let changed = json!({ "credentials": { "auth_token": "fedcba9876543210fedcba9876543210" } });
    let (status, answer) = server.ask(Method::PATCH, &path, acme.owner(), Some(changed)).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["credentials"]["auth_token"], json!({ "secret": true, "value": "3210" }));
    assert_eq!(answer["credentials"]["account_sid"]["value"], SID, "what was not named stays");
    let wrong = json!({ "name": "W", "provider": "twilio",
        "credentials": { "account_sid": "wrong-but-secret", "auth_token": { "very": { "secret": "value" } } } });
    let (status, refused) = server.post("/api/v1/integrations", acme.owner(), wrong).await;
    assert_eq!(status, 422);
    let mut answers = vec![("a refusal".to_owned(), refused.to_string()), ("a change".to_owned(), answer.to_string())];
    for (method, path) in server.operations().await {
        if method == Method::GET && !path.ends_with("/events") && !path.ends_with("/recording") {
            let (_, answer) = server.ask(method, &filled(&path, &acme), acme.owner(), None).await;
            answers.push((path, answer.to_string()));
        }
    }
    let mut secrets: Vec<&str> = vec![
        AUTH_TOKEN,
        "fedcba9876543210fedcba9876543210",
        "wrong-but-secret",
        "correct horse",
        "$argon2id",
        webhook_secret.expose_secret(),
        ADMIN,
        TOOL_KEY,
    ];
    secrets.extend(acme.keys.values().map(String::as_str));
    for (path, answer) in &answers {
        for secret in &secrets {
            assert!(!answer.contains(secret), "{path} shows {secret}: {answer}");
        }
    }
    let docs = server.client.get(format!("{}/api/docs/", server.url)).send().await.unwrap();
    assert_eq!(docs.status(), 200, "the documents are there for anybody");
}

async fn twilios_webhooks_are_verified_written_shown_and_put_back(base: Base) {
    let server = Server::start(base).await;
    let acme = server.place("Acme").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mock = MockTwilio::start(MockTwilioConfig::default(), listener).unwrap();
    let path = format!("/api/v1/integrations/{}", acme.integration);
    let key = acme.owner();

    // A provider elsewhere could not reach a server without https: nothing is asked of it.
    let elsewhere = json!({ "credentials": { "api_base": "https://api.twilio.example" } });
    assert_eq!(server.ask(Method::PATCH, &path, key, Some(elsewhere)).await.0, 200);
    let (status, refused) = server.ask(Method::PUT, &format!("{path}/webhook"), key, Some(json!({}))).await;
    assert_eq!((status, &refused["type"]), (409, &json!("/api/problems#not-public")), "{refused}");

    let here = json!({ "credentials": { "api_base": mock.api_base() } });
    assert_eq!(server.ask(Method::PATCH, &path, key, Some(here)).await.0, 200);
    let (status, verified) = server.ask(Method::POST, &format!("{path}/verify"), key, None).await;
    assert_eq!((status, &verified["account"]), (200, &json!("Simulated account")), "{verified}");
    assert!(verified["integration"]["verified_at"].is_string());
    let lines = server.get(&format!("{path}/lines"), key).await;
    assert_eq!(lines["items"][0]["number"], "+15550001111");
    assert_eq!(lines["items"][0]["line_id"], json!(acme.line), "{lines}");

    let before = mock.number("+15550001111").unwrap();
    let shown = server.get(&format!("{path}/webhook"), key).await;
    assert_eq!((&shown["mode"], &shown["lines"][0]["drifted"]), (&json!("written"), &json!(true)), "{shown}");
    let (status, written) = server.ask(Method::PUT, &format!("{path}/webhook"), key, Some(json!({}))).await;
    assert_eq!(status, 200, "{written}");
    assert_eq!(
        (&written["lines"][0]["drifted"], &written["lines"][0]["error"]),
        (&json!(false), &Value::Null),
        "{written}"
    );
    let voice = mock.number("+15550001111").unwrap().setting("VoiceUrl").to_owned();
    assert!(voice.ends_with(&format!("/webhooks/twilio/{}/voice", acme.integration)), "{voice}");

    mock.set_number(mock.number("+15550001111").unwrap().with("VoiceUrl", "https://elsewhere.example/"));
    let shown = server.get(&format!("{path}/webhook"), key).await;
    assert_eq!(shown["lines"][0]["drifted"], true, "{shown}");
    let (_, repaired) =
        server.ask(Method::PUT, &format!("{path}/webhook"), key, Some(json!({ "lines": [acme.line] }))).await;
    assert_eq!(repaired["lines"][0]["drifted"], false, "{repaired}");

    let line = format!("/api/v1/lines/{}", acme.line);
    for held in [&line, &path] {
        let (status, refused) = server.ask(Method::DELETE, held, key, None).await;
        assert_eq!((status, &refused["type"]), (409, &json!("/api/problems#webhooks-written")), "{refused}");
    }
    let (status, restored) = server.ask(Method::DELETE, &format!("{path}/webhook"), key, None).await;
    assert_eq!(status, 200, "{restored}");
    let after = mock.number("+15550001111").unwrap();
    for name in ["VoiceUrl", "VoiceMethod", "SmsUrl", "StatusCallback"] {
        assert_eq!(after.setting(name), before.setting(name), "{name}");
    }
    assert_eq!(server.ask(Method::DELETE, &line, key, None).await.0, 204);

    let wrong = json!({ "credentials": { "auth_token": "ffffffffffffffffffffffffffffffff" } });
    assert_eq!(server.ask(Method::PATCH, &path, key, Some(wrong)).await.0, 200);
    let (status, refused) = server.ask(Method::POST, &format!("{path}/verify"), key, None).await;
    assert_eq!((status, &refused["type"]), (422, &json!("/api/problems#provider-credentials")), "{refused}");
    let shown = server.get(&path, key).await;
    assert!(shown["verified_at"].is_null() && shown["last_error"].is_string(), "{shown}");
    mock.stop().await;
}

async fn a_tool_is_made_tried_used_by_an_agent_and_removed(base: Base) {
    let server = Server::start(base).await;
    let acme = server.place("Acme").await;
    let key = acme.owner();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let crm = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().route(
        "/rooms/{day}",
        axum::routing::get(
            async |headers: axum::http::HeaderMap, axum::extract::Path(day): axum::extract::Path<String>| {
                let known = headers.get("x-key").is_some_and(|key| key == TOOL_KEY);
                axum::Json(json!({ "known": known, "day": day, "free": [{ "room": 7 }] }))
            },
        ),
    );
    tokio::spawn(async move { axum::serve(listener, router).await });
    let parameters = json!({ "type": "object", "properties": { "day": { "type": "string" } }, "required": ["day"] });
    let tool = json!({
        "kind": "http", "name": "free_rooms", "description": "Rooms that are free.", "method": "GET",
        "url": format!("{crm}/rooms/{{day}}"), "parameters": parameters, "secret_headers": { "X-Key": TOOL_KEY },
        "filler": { "en": "Let me look." }, "limit_ms": 2000,
    });
    let (status, made) = server.post("/api/v1/tools", key, tool.clone()).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(made["secret_headers"]["X-Key"], json!({ "secret": true, "value": TOOL_KEY[TOOL_KEY.len() - 4..] }));
    assert_eq!((&made["kind"], &made["name"]), (&json!("http"), &json!("free_rooms")));
    assert_eq!(server.post("/api/v1/tools", key, tool.clone()).await.0, 409);
    let path = format!("/api/v1/tools/{}", made["id"].as_str().unwrap());
    let attempt = json!({ "arguments": { "day": "2026-03-01" } });
    let (status, tried) = server.post(&format!("{path}/try"), &acme.keys[&Role::Operator], attempt).await;
    assert_eq!((status, &tried["ok"]), (200, &json!(true)), "{tried}");
    let content: Value = serde_json::from_str(tried["content"].as_str().unwrap()).unwrap();
    assert_eq!(content, json!({ "known": true, "day": "2026-03-01", "free": [{ "room": 7 }] }));
    let (_, tried) = server.post(&format!("{path}/try"), key, json!({})).await;
    assert_eq!(tried["ok"], false, "{tried}");

    // A change keeps the secrets that it does not name, unless the server is another one.
    let mut changed = tool.clone();
    changed.as_object_mut().unwrap().remove("secret_headers");
    changed["result"] = json!("/free/0");
    let (status, answer) = server.ask(Method::PUT, &path, key, Some(changed.clone())).await;
    assert_eq!((status, answer["secret_headers"]["X-Key"].is_object()), (200, true), "{answer}");
    let (_, tried) = server.post(&format!("{path}/try"), key, json!({ "arguments": { "day": "x" } })).await;
    assert_eq!(tried["content"], r#"{"room":7}"#);
    changed["url"] = json!("https://thief.example/rooms/{day}");
    let (status, refused) = server.ask(Method::PUT, &path, key, Some(changed)).await;
    assert_eq!((status, &refused["errors"][0]["field"]), (422, &json!("secret_headers")), "{refused}");

    // An agent names it; a server's tools by the server.
    let mcp = json!({ "kind": "mcp", "name": "crm", "url": format!("{crm}/mcp") });
    let (status, mcp) = server.post("/api/v1/tools", key, mcp).await;
    assert_eq!(status, 201, "{mcp}");
    let agent = json!({ "name": "Desk", "tools": ["free_rooms", "crm.*", "crm.find", "send_dtmf"] });
    let (status, agent) = server.post("/api/v1/agents", key, agent).await;
    assert_eq!(status, 201, "{agent}");
    let listed = server.get(&format!("/api/v1/agents/{}/tools", agent["id"].as_str().unwrap()), key).await;
    let named = |name: &str| listed["items"].as_array().unwrap().iter().find(|tool| tool["name"] == name).cloned();
    assert_eq!(named("free_rooms").unwrap()["enabled"], true);
    assert_eq!(named("find_booking").unwrap()["enabled"], false);
    assert_eq!(named("crm.*").unwrap()["enabled"], true);
    let (status, refused) =
        server.post("/api/v1/agents", key, json!({ "name": "B", "tools": ["fly", "free_rooms.x"] })).await;
    assert_eq!((status, refused["errors"].as_array().unwrap().len()), (422, 2), "{refused}");

    // What is wrong is told by field.
    for (body, field) in [
        (json!({ "kind": "soap" }), "kind"),
        (json!({ "kind": "http", "name": "a" }), "description"),
        (
            json!({ "kind": "http", "name": "end_call", "description": "x", "method": "GET", "url": "https://a.example/" }),
            "name",
        ),
        (
            json!({ "kind": "http", "name": "a", "description": "x", "method": "FETCH", "url": "https://a.example/" }),
            "method",
        ),
        (json!({ "kind": "mcp", "name": "a", "url": "ftp://a.example/" }), "url"),
        (
            json!({ "kind": "mcp", "name": "a", "url": "https://a.example/", "secret_headers": { "Host": "very-secret" } }),
            "secret_headers.Host",
        ),
    ] {
        let (status, told) = server.post("/api/v1/tools", key, body.clone()).await;
        assert_eq!((status, &told["errors"][0]["field"]), (422, &json!(field)), "{body}: {told}");
        assert!(!told.to_string().contains("very-secret"), "{told}");
    }
    assert_eq!(server.ask(Method::DELETE, &path, key, None).await.0, 204);
    assert_eq!(server.ask(Method::GET, &path, key, None).await.0, 404);
}

async fn a_document_is_uploaded_found_and_removed(base: Base) {
    let server = Server::start(base).await;
    let (acme, other) = (server.place("Acme").await, server.place("Other").await);
    let key = &acme.keys[&Role::Operator];
    let (status, made) = server.post("/api/v1/knowledge", key, json!({ "name": "Rules", "language": "uk" })).await;
    assert_eq!((status, &made["means"]), (201, &json!("text")), "{made}");
    assert_eq!(server.post("/api/v1/knowledge", key, json!({ "name": "Rules" })).await.0, 409);
    let path = format!("/api/v1/knowledge/{}", made["id"].as_str().unwrap());
    let documents = format!("{path}/documents");
    // A connection whose form was refused before it was read is of no use to the next request.
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).pool_max_idle_per_host(0).build().unwrap();
    let at = format!("{}{documents}", server.url);
    let upload = async |key: &str, name: &str, bytes: Vec<u8>| -> (u16, Value) {
        let part = reqwest::multipart::Part::bytes(bytes).file_name(name.to_owned());
        let form = reqwest::multipart::Form::new().text("note", "x").part("file", part);
        let response = client.post(&at).bearer_auth(key).multipart(form).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap_or_default())
    };
    let text = "Скасування\n\nБронювання можна скасувати безкоштовно за дві доби.";
    let (status, document) = upload(key, "rules.txt", text.into()).await;
    assert_eq!((status, &document["name"]), (201, &json!("rules.txt")), "{document}");
    let one = format!("{documents}/{}", document["id"].as_str().unwrap());
    let begun = std::time::Instant::now();
    while server.get(&one, key).await["state"] != "ready" {
        assert!(begun.elapsed() < PATIENCE, "it is never indexed");
        tokio::task::yield_now().await;
    }
    assert_eq!(upload(key, "rules.txt", text.into()).await.0, 200, "the same file again");
    let found = server.get(&format!("{path}/search?q=скасувати+бронювання"), key).await;
    let best = &found["items"][0];
    assert_eq!((&best["title"], &best["document"]), (&json!("rules.txt"), &document["id"]), "{found}");
    assert_eq!(server.get(&path, key).await["passages"], 1);

    // Who may not, what cannot be read, what is too large, what is no form.
    assert_eq!(upload(&acme.keys[&Role::Viewer], "a.txt", text.into()).await.0, 403);
    assert_eq!(upload(other.owner(), "a.txt", text.into()).await.0, 404);
    for (name, bytes, status, slug, detail) in
        [("a.pdf", b"no PDF".to_vec(), 422, "document", "no PDF"), ("a.txt", Vec::new(), 422, "document", "empty")]
    {
        let (told, refused) = upload(key, name, bytes).await;
        assert_eq!((told, &refused["type"]), (status, &json!(format!("/api/problems#{slug}"))), "{refused}");
        assert!(refused["detail"].as_str().unwrap_or_default().contains(detail), "{refused}");
    }
    let part = reqwest::multipart::Part::bytes(vec![b'x'; 21 << 20]).file_name("a.txt");
    let form = reqwest::multipart::Form::new().part("file", part);
    // The server stops reading: the client may find its connection closed before it finds the answer.
    let too_much = client.post(&at).bearer_auth(key).multipart(form);
    if let Ok(response) = too_much.send().await {
        assert_eq!(response.status(), 413);
    }
    assert_eq!(upload(key, "", text.into()).await.0, 422, "a document has a name");
    assert_eq!(server.post(&documents, key, json!({ "file": "x" })).await.0, 400);
    assert_eq!(server.get(&documents, key).await["items"].as_array().unwrap().len(), 1);

    let (status, shown) = server.ask(Method::POST, &format!("{path}/reindex"), key, None).await;
    assert_eq!((status, &shown["name"]), (202, &json!("Rules")), "{shown}");
    for gone in [&one, &path] {
        assert_eq!(server.ask(Method::DELETE, gone, key, None).await.0, 204);
        assert_eq!(server.ask(Method::GET, gone, key, None).await.0, 404);
    }
    let log = server.get("/api/v1/audit?limit=200", acme.owner()).await.to_string();
    for action in ["added", "document_added", "reindexed", "document_removed", "removed"] {
        assert!(log.contains(&format!("knowledge.{action}")), "{action}");
    }
}
