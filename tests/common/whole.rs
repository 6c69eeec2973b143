//! The whole program as `serve` puts it together, with scripted engines: store, directory, ledger, API and door. On the
//! other side of real sockets stand simulated providers.
#![allow(dead_code, reason = "each test program uses its own part of this")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use offhook::app::App;
use offhook::call::engines::Engines;
use offhook::config::Config;
use offhook::load::fixture::{Ender, Expect, Fixture};
use offhook::mock::binotel::{BinotelConfig, MockBinotel};
use offhook::mock::ringostat::{MockRingostat, RingostatConfig};
use offhook::mock::twilio::{MockNumber, MockTwilio, MockTwilioConfig};
use offhook::speech::scripted::ScriptedConfig;
use offhook::store::directory::Directory;
use offhook::store::ledger::{Ledger, LedgerTask};
use offhook::store::{DirectoryWatch, Store};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::common::{Cast, PATIENCE, http, quick};
use crate::stores::Base;

pub const ADMIN: &str = "an-administrators-token-0123456789";
pub const ACCOUNT: &str = "AC00000000000000000000000000000001";
pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// The company's Twilio number, somebody who calls it, and two people to be called.
pub const LINE: &str = "+380441234567";
pub const CALLER: &str = "+380501234567";
pub const PERSON: &str = "+380671112233";
pub const OTHER: &str = "+380631111111";

/// The program, running.
pub struct Whole {
    pub app: App,
    pub store: Store,
    pub base: Base,
    pub directory: Arc<ArcSwap<Directory>>,
    watch: DirectoryWatch,
    records: LedgerTask,
    cancel: CancellationToken,
    http: reqwest::Client,
    _recordings: tempfile::TempDir,
}

impl Whole {
    pub async fn start(base: Base, cast: Cast, change: impl FnOnce(&mut Config)) -> Self {
        Self::with_engines(base, cast.engines(), change).await
    }

    /// With other engines than those named `scripted`.
    pub async fn with_engines(base: Base, engines: Engines, change: impl FnOnce(&mut Config)) -> Self {
        let http = http();
        let recordings = tempfile::tempdir().expect("a temporary folder");
        let mut config = Config::default();
        config.server.listen = "127.0.0.1:0".parse().expect("an address");
        // Whatever still runs when a test ends is not waited for.
        config.server.drain_s = 0;
        config.security.admin_token = Some(ADMIN.into());
        config.recording.dir = recordings.path().into();
        change(&mut config);
        let store = base.open().await;
        let cancel = CancellationToken::new();
        let watch = store.watch(cancel.clone()).await.expect("the store is read");
        let (ledger, records, _) = Ledger::start(store.clone()).await.expect("the store is written");
        let directory = watch.directory.clone();
        let app = App::with_store(config, engines, directory.clone(), store.clone(), ledger)
            .await
            .expect("the server starts");
        Self { app, store, base, directory, watch, records, cancel, http, _recordings: recordings }
    }

    /// In the order of `serve`.
    pub async fn stop(self) {
        self.app.stop().await;
        self.records.stop(Duration::from_secs(5)).await;
        self.cancel.cancel();
        self.watch.stopped().await;
        self.store.close().await;
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.app.address)
    }

    /// A company and a key of its owner, made by the administrator over the API.
    pub async fn company(&self, name: &str, settings: Value) -> Company {
        let admin = self.speaker(ADMIN, Uuid::nil());
        let company = admin.post("/companies", json!({ "name": name, "settings": settings })).await;
        self.keyed(id(&company)).await
    }

    /// One that is there already.
    pub async fn keyed(&self, company: Uuid) -> Company {
        let admin = self.speaker(ADMIN, Uuid::nil());
        let key = admin.post("/keys", json!({ "company_id": company, "name": "tests", "role": "owner" })).await;
        self.speaker(key["secret"].as_str().expect("a key"), company)
    }

    fn speaker(&self, key: &str, id: Uuid) -> Company {
        let (http, directory) = (self.http.clone(), self.directory.clone());
        Company { id, http, url: self.url("/api/v1"), key: key.to_owned(), directory }
    }

    /// The value of a counter with these labels; 0 where it never counted.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let text = self.http.get(self.url("/metrics")).send().await.expect("answers").text().await.expect("text");
        let line = text.lines().find(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    }
}

/// A company, through the API with its owner's key. Paths are those behind `/api/v1`.
#[derive(Clone)]
pub struct Company {
    pub id: Uuid,
    http: reqwest::Client,
    url: String,
    key: String,
    directory: Arc<ArcSwap<Directory>>,
}

impl Company {
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.key)
    }

    /// Status and body; null where there is none.
    pub async fn ask(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let mut request = self.request(method, path);
        if !body.is_null() {
            request = request.json(&body);
        }
        let response = request.send().await.expect("the API answers");
        let status = response.status().as_u16();
        (status, serde_json::from_str(&response.text().await.expect("text")).unwrap_or_default())
    }

    async fn well(&self, method: Method, path: &str, body: Value) -> Value {
        let (status, answer) = self.ask(method.clone(), path, body).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    pub async fn get(&self, path: &str) -> Value {
        self.well(Method::GET, path, Value::Null).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        self.well(Method::POST, path, body).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Value {
        self.well(Method::PUT, path, body).await
    }

    pub async fn delete(&self, path: &str) -> Value {
        self.well(Method::DELETE, path, Value::Null).await
    }

    pub async fn integration(&self, name: &str, provider: &str, credentials: Value) -> Uuid {
        let body = json!({ "name": name, "provider": provider, "credentials": credentials });
        id(&self.post("/integrations", body).await)
    }

    pub async fn agent(&self, profile: Value) -> Uuid {
        id(&self.post("/agents", profile).await)
    }

    /// A line that the running server knows.
    pub async fn line(&self, integration: Uuid, number: &str, agent: Uuid) -> Uuid {
        let body = json!({ "integration_id": integration, "number": number, "agent_id": agent });
        let line = id(&self.post("/lines", body).await);
        self.knows(integration, number).await;
        line
    }

    /// Waits until calls on this line would be answered.
    pub async fn knows(&self, integration: Uuid, number: &str) {
        until("the server knows the line", async || self.directory.load().line(integration, number).map(|_| ())).await;
    }

    pub async fn calls(&self) -> Vec<Value> {
        items(self.get("/calls?limit=200").await)
    }

    /// The only call, as the list has it, once it is `so`.
    pub async fn only_call(&self, so: impl Fn(&Value) -> bool) -> Value {
        let one = until("the only call", async || {
            let calls = self.calls().await;
            calls.iter().find(|call| so(call)).cloned().map(|found| (found, calls))
        });
        let (found, calls) = one.await;
        assert_eq!(calls.len(), 1, "{calls:#?}");
        found
    }

    /// The whole record of a call, once it is closed.
    pub async fn record(&self, call: Uuid) -> Value {
        until("the call's record is closed", async || {
            let record = self.get(&format!("/calls/{call}")).await;
            record["ended"].is_string().then_some(record)
        })
        .await
    }

    /// What was said, `who: text` a line.
    pub fn said(record: &Value) -> Vec<String> {
        let lines = record["transcript"]["lines"].as_array().expect("lines");
        lines.iter().map(|line| format!("{}: {}", text(&line["who"]), text(&line["text"]))).collect()
    }

    /// Audit entries of this action, oldest first.
    pub async fn audited(&self, action: &str) -> Vec<Value> {
        let mut entries = items(self.get("/audit?limit=200").await);
        entries.retain(|entry| entry["action"] == action);
        entries.reverse();
        entries
    }
}

/// Looks again and again until there is something.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    loop {
        looks.tick().await;
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
    }
}

/// The id of what an answer shows.
pub fn id(shown: &Value) -> Uuid {
    shown["id"].as_str().and_then(|id| id.parse().ok()).unwrap_or_else(|| panic!("no id in {shown}"))
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub fn items(mut page: Value) -> Vec<Value> {
    match page["items"].take() {
        Value::Array(items) => items,
        other => panic!("no list: {other}"),
    }
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a free port")
}

/// A quick Twilio with one number.
pub fn account() -> MockTwilioConfig {
    MockTwilioConfig {
        account_sid: ACCOUNT.into(),
        auth_token: TOKEN.into(),
        numbers: vec![MockNumber::new(LINE)],
        ring: Duration::from_millis(20),
        dial_talk: Duration::from_millis(20),
        say_char: Duration::ZERO,
        ..MockTwilioConfig::default()
    }
}

pub async fn twilio(config: MockTwilioConfig) -> MockTwilio {
    MockTwilio::start(config, listener().await).expect("it starts")
}

/// What an integration with it is made of.
pub fn twilio_credentials(mock: &MockTwilio) -> Value {
    json!({ "account_sid": ACCOUNT, "auth_token": TOKEN, "api_base": mock.api_base() })
}

pub async fn ringostat() -> MockRingostat {
    let quick =
        RingostatConfig { ring: Duration::from_millis(5), talk: Duration::from_millis(5), ..Default::default() };
    MockRingostat::start(quick, listener().await).expect("it starts")
}

pub fn ringostat_credentials(mock: &MockRingostat) -> Value {
    json!({
        "auth_key": "mock-auth-key", "project_id": "12345", "api_base": mock.base_url(), "request_gap_ms": "0",
        "time_zone": "+02:00",
    })
}

pub async fn binotel(change: impl FnOnce(&mut BinotelConfig)) -> MockBinotel {
    let mut quick = BinotelConfig {
        ring: Duration::from_millis(5),
        talk: Duration::from_millis(5),
        retries: vec![Duration::from_millis(5); 6],
        stats_gap: Duration::ZERO,
        recording_after: Duration::ZERO,
        ..BinotelConfig::default()
    };
    change(&mut quick);
    MockBinotel::start(quick, listener().await).expect("it starts")
}

pub fn binotel_credentials(mock: &MockBinotel) -> Value {
    json!({
        "key": "mock-key", "secret": "mock-secret", "company_id": "1000", "api_base": mock.base_url(),
        "stats_gap_ms": "10", "allowed_addresses": "127.0.0.0/8", "routes": "901=15, 902=16",
    })
}

/// A company whose only line is a number of a simulated Twilio, with its webhooks written.
pub struct OnTwilio {
    pub company: Company,
    pub mock: MockTwilio,
    pub integration: Uuid,
    pub agent: Uuid,
    pub line: Uuid,
}

impl OnTwilio {
    pub async fn set_up(whole: &Whole, config: MockTwilioConfig, settings: Value, agent: Value) -> Self {
        Self::of(whole.company("Acme", settings).await, config, agent).await
    }

    /// The same for a company that has what its agent needs.
    pub async fn of(company: Company, config: MockTwilioConfig, agent: Value) -> Self {
        let mock = twilio(config).await;
        let integration = company.integration("Main", "twilio", twilio_credentials(&mock)).await;
        let agent = company.agent(agent).await;
        let line = company.line(integration, LINE, agent).await;
        let written = company.put(&format!("/integrations/{integration}/webhook"), json!({})).await;
        assert_eq!(written["lines"][0]["drifted"], false, "{written}");
        Self { company, mock, integration, agent, line }
    }

    /// Somebody calls; gives the closed record when all is over.
    pub async fn rung(&self) -> Value {
        self.rung_for(PATIENCE).await
    }

    /// A call that may last so long.
    pub async fn rung_for(&self, limit: Duration) -> Value {
        let sid = self.mock.ring(CALLER, LINE).expect("it is a number of the account");
        let over = self.mock.call_when(&sid, limit, |call| call.is_over()).await.expect("the call ends");
        assert_eq!(over.errors, [0; 0], "{over:?}");
        let call = until("the call is in the list", async || {
            self.company.calls().await.into_iter().find(|call| call["provider_call"] == *sid)
        });
        self.company.record(id(&call.await)).await
    }
}

/// Quick engines that answer in a few words.
pub fn brief() -> ScriptedConfig {
    ScriptedConfig { answers: vec!["We open at nine.".into()], ..quick() }
}

/// The agent of most tests.
pub fn front_desk() -> Value {
    json!({ "name": "Front desk", "greeting": "Hello.", "tools": ["make_call", "send_sms", "get_call_history"] })
}

/// A recorded caller who says one thing; then `ended_by` hangs up.
pub fn caller(ended_by: Ender) -> Arc<Fixture> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("audio-fixtures/booking");
    let mut fixture = Fixture::load(&folder).expect("a shipped fixture");
    fixture.turns.truncate(1);
    fixture.expect = Expect { ended_by: Some(ended_by), ..Expect::default() };
    Arc::new(fixture)
}
