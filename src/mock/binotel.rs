//! A stand-in for Binotel: its API 4.0, and calls that run through their webhooks; where it is given a SIP side, accounts
//! register there and calls are talked by RTP. It refuses with HTTP 200, writes numbers as PHP does, wants pauses between statistics, has recordings late, and sends `apiCallCompleted` again until
//! the answer is exact.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use jiff::{SignedDuration, Timestamp};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::load::caller::CallerReport;
use crate::mock::stage::{
    self, Delivery, Fault, FaultRequest, MAX_CALLS, Post, Server, Stage, WebhookRequest, html, lock,
};
use crate::mock::switch::{Switch, SwitchConfig, talk_s};
use crate::protocol::sip::digest::Credentials;

/// Calls that are remembered; older ones are forgotten.
const LOG_LEN: usize = 100_000;
/// The one answer that ends the attempts of `apiCallCompleted`.
const EXACT: &str = r#"{"status":"success"}"#;
const FREE: usize = 5;
const MINUTE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Employee {
    pub id: String,
    pub name: String,
    pub internal: String,
    pub login: String,
    pub password: String,
}

#[derive(Clone, Debug)]
pub struct BinotelConfig {
    pub key: String,
    pub secret: String,
    pub company_id: String,
    /// The company's public number.
    pub pbx_number: String,
    pub employees: Vec<Employee>,
    /// Scenarios, and the internal number that each leads to.
    pub routes: Vec<(String, String)>,
    pub webhook: Option<String>,
    /// Written into `X-Forwarded-For`, for a receiver behind a proxy.
    pub webhook_from: Option<String>,
    /// Waits before the attempts 2, 3… of `apiCallCompleted`.
    pub retries: Vec<Duration>,
    /// Wanted between two requests of statistics after five in a minute.
    pub stats_gap: Duration,
    /// How long after a call its recording is there.
    pub recording_after: Duration,
    /// How long a recording's link is good.
    pub link_life: Duration,
    /// How long calls really ring and talk here.
    pub ring: Duration,
    pub talk: Duration,
    /// Accounts register and calls are talked; without it, calls are their webhooks.
    pub sip: Option<SwitchConfig>,
}

impl Default for BinotelConfig {
    fn default() -> Self {
        let employee = |id: &str, name: &str, internal: &str| Employee {
            id: id.into(),
            name: name.into(),
            internal: internal.into(),
            login: format!("mock{internal}"),
            password: format!("mock-sip-password-{internal}"),
        };
        Self {
            key: "mock-key".into(),
            secret: "mock-secret".into(),
            company_id: "1000".into(),
            pbx_number: "0441234567".into(),
            employees: vec![employee("41", "AI Agent", "901"), employee("42", "Анна", "902")],
            routes: vec![("15".into(), "901".into()), ("16".into(), "902".into())],
            webhook: None,
            webhook_from: None,
            // Seven attempts over some 38 hours.
            retries: [1, 5, 30, 120, 480, 1_644].map(|minutes| Duration::from_secs(minutes * 60)).to_vec(),
            stats_gap: Duration::from_secs(3),
            recording_after: Duration::from_secs(120),
            link_life: Duration::from_secs(15 * 60),
            ring: Duration::from_millis(300),
            talk: Duration::from_secs(1),
            sip: None,
        }
    }
}

/// A call to simulate.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Call {
    pub from: String,
    /// The company's number where it is left out.
    pub to: Option<String>,
    /// Who answers where no scenario is asked for; the first employee where it is left out.
    pub internal: Option<String>,
    /// A disposition; `ANSWER` where it is left out.
    pub status: Option<String>,
    /// What the log says of the talk, whatever the simulated time.
    pub talk_s: Option<u32>,
    /// Handed on to this internal number in the middle of the talk.
    pub transfer_to: Option<String>,
}

/// What became of a simulated call. Later attempts of `apiCallCompleted` are not in it.
#[derive(Clone, Debug, Serialize)]
pub struct Simulated {
    pub call_id: String,
    /// The scenario that the receiver has asked for.
    pub route: Option<String>,
    pub internal: String,
    pub deliveries: Vec<Delivery>,
}

/// A call as the statistics have it.
#[derive(Clone, Debug, PartialEq)]
pub struct LoggedCall {
    pub id: u64,
    pub started: Timestamp,
    pub outgoing: bool,
    pub internal: String,
    pub external: String,
    /// Empty while it rings, `ONLINE` while they talk.
    pub disposition: String,
    pub wait_s: u32,
    pub talk_s: u32,
    /// Who had the call: internal number and disposition.
    pub steps: Vec<(String, String)>,
    pub ended: Option<Timestamp>,
}

/// A running stand-in.
pub struct MockBinotel {
    server: Server,
    shared: Arc<Shared>,
}

impl MockBinotel {
    /// Serves on `listener` until it is stopped or dropped; needs a tokio runtime.
    pub fn start(config: BinotelConfig, listener: TcpListener) -> io::Result<Self> {
        let stage = Arc::new(Stage::new(config.webhook.clone())?);
        let base = format!("http://{}", listener.local_addr()?);
        let accounts =
            |employee: &Employee| Credentials { user: employee.login.clone(), password: employee.password.clone() };
        let accounts = config.employees.iter().map(accounts).collect();
        let switch = config.sip.clone().map(|sip| Switch::start(sip, accounts)).transpose()?;
        let shared = Arc::new(Shared {
            config,
            base,
            stage: Arc::clone(&stage),
            switch,
            log: Mutex::default(),
            running: Mutex::default(),
            asked: Mutex::default(),
        });
        let server = Server::start(listener, router(Arc::clone(&shared)), stage);
        Ok(Self { server, shared })
    }

    /// What `api_base` wants.
    pub fn base_url(&self) -> String {
        self.shared.base.clone()
    }

    /// What `sip.registrar` wants; `None`: it has no SIP side.
    pub fn registrar(&self) -> Option<SocketAddr> {
        self.shared.switch.as_ref().map(Switch::addr)
    }

    /// What customers heard and said in the calls that were talked, oldest first.
    pub fn talks(&self) -> Vec<Arc<CallerReport>> {
        self.shared.switch.as_ref().map(Switch::talks).unwrap_or_default()
    }

    pub fn set_webhook(&self, url: impl Into<String>) {
        self.shared.stage.set_webhook(Some(url.into()));
    }

    /// Spoils the next requests.
    pub fn fail(&self, fault: Fault, times: u32) {
        self.shared.stage.fail(fault, times);
    }

    /// Runs an inbound call to its end.
    pub async fn call(&self, call: Call) -> Simulated {
        inbound(Arc::clone(&self.shared), call).await
    }

    /// A call of the past.
    pub fn add_call(&self, call: LoggedCall) {
        self.shared.keep(call);
    }

    pub fn log(&self) -> Vec<LoggedCall> {
        lock(&self.shared.log).iter().cloned().collect()
    }

    pub fn deliveries(&self) -> Vec<Delivery> {
        self.shared.stage.deliveries()
    }

    /// Waits for a webhook of this kind to be answered; the caller limits the wait.
    pub async fn delivered(&self, kind: &str, attempt: u32) -> Delivery {
        self.shared.stage.wait_for(|delivery| delivery.event == kind && delivery.attempt == attempt).await
    }

    pub async fn stop(self) {
        self.server.stop().await;
    }

    pub async fn wait(&mut self) -> io::Result<()> {
        self.server.wait().await
    }
}

struct Shared {
    config: BinotelConfig,
    base: String,
    stage: Arc<Stage>,
    switch: Option<Switch>,
    log: Mutex<VecDeque<LoggedCall>>,
    running: Mutex<BTreeMap<u64, CancellationToken>>,
    /// When statistics were asked for, the last [`FREE`] times.
    asked: Mutex<VecDeque<Instant>>,
}

impl Shared {
    fn keep(&self, call: LoggedCall) {
        let mut log = lock(&self.log);
        if log.len() >= LOG_LEN {
            log.pop_front();
        }
        log.push_back(call);
    }

    fn begin(&self, outgoing: bool, internal: &str, external: &str) -> u64 {
        let id = lock(&self.log).iter().map(|call| call.id).max().map_or(5_000_000_001, |id| id + 1);
        self.keep(LoggedCall {
            id,
            started: clock::now(),
            outgoing,
            internal: internal.into(),
            external: external.into(),
            disposition: String::new(),
            wait_s: 0,
            talk_s: 0,
            steps: Vec::new(),
            ended: None,
        });
        lock(&self.running).insert(id, self.stage.stop.child_token());
        id
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut LoggedCall)) -> Option<LoggedCall> {
        let mut log = lock(&self.log);
        let call = log.iter_mut().rev().find(|call| call.id == id)?;
        change(call);
        Some(call.clone())
    }

    /// Empty for a number that nobody has.
    fn login_of(&self, internal: &str) -> String {
        let employee = self.config.employees.iter().find(|employee| employee.internal == internal);
        employee.map(|employee| employee.login.clone()).unwrap_or_default()
    }

    fn hung_up(&self, id: u64) -> CancellationToken {
        lock(&self.running).get(&id).cloned().unwrap_or_default()
    }

    fn asked_too_often(&self) -> bool {
        let now = Instant::now();
        let mut asked = lock(&self.asked);
        let full = asked.len() == FREE && asked.front().is_some_and(|first| now < *first + MINUTE);
        if full && asked.back().is_some_and(|last| now < *last + self.config.stats_gap) {
            return true;
        }
        if asked.len() == FREE {
            asked.pop_front();
        }
        asked.push_back(now);
        false
    }

    async fn tell(&self, kind: &str, id: u64, attempt: u32, pairs: &[(&str, &str)]) -> Option<(u16, String)> {
        let body = form_urlencoded::Serializer::new(String::new())
            .append_pair("requestType", kind)
            .extend_pairs(pairs)
            .finish();
        let post = Post {
            event: kind.into(),
            call: id.to_string(),
            attempt,
            method: Method::POST,
            query: None,
            content_type: "application/x-www-form-urlencoded",
            body,
            forwarded_for: self.config.webhook_from.clone(),
        };
        self.stage.send(post).await
    }

    /// The first attempt here, the others in a task until one is answered exactly.
    async fn complete(self: &Arc<Self>, call: LoggedCall) {
        let pairs = completed_form(self, &call);
        if self.complete_once(&call, 1, &pairs).await || self.stage.calls.len() >= MAX_CALLS {
            return;
        }
        let shared = Arc::clone(self);
        self.stage.calls.spawn(async move {
            let stopped = shared.stage.stop.clone();
            for (attempt, wait) in (2..).zip(&shared.config.retries) {
                if stopped.run_until_cancelled(sleep(*wait)).await.is_none() {
                    return;
                }
                if shared.complete_once(&call, attempt, &pairs).await {
                    return;
                }
            }
        });
    }

    async fn complete_once(&self, call: &LoggedCall, attempt: u32, pairs: &[(String, String)]) -> bool {
        let counter = attempt.to_string();
        let mut all = vec![("attemptsCounter", counter.as_str()), ("language", "uk")];
        all.extend(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let answer = self.tell("apiCallCompleted", call.id, attempt, &all).await;
        answer.is_some_and(|(status, body)| status == 200 && body == EXACT)
    }
}

/// Numbers are texts in every other call, unknown people are `""` or `[]`.
fn details(shared: &Shared, call: &LoggedCall) -> Value {
    let odd = !call.id.is_multiple_of(2);
    let number = |value: i64| if odd { json!(value.to_string()) } else { json!(value) };
    let person = |internal: &str| match shared.config.employees.iter().find(|employee| employee.internal == internal) {
        Some(employee) => json!({ "name": employee.name, "email": "ai@example.com" }),
        None => json!([]),
    };
    let steps: Vec<Value> = call
        .steps
        .iter()
        .map(|(internal, disposition)| {
            json!({ "waitsec": number(call.wait_s.into()), "billsec": number(call.talk_s.into()),
                "disposition": disposition, "internalNumber": internal, "internalAdditionalData": "",
                "employeeData": person(internal) })
        })
        .collect();
    let recorded = call.ended.is_some() && call.talk_s > 0;
    json!({
        "companyID": shared.config.company_id, "generalCallID": number(call.id as i64), "callID": call.id.to_string(),
        "startTime": number(call.started.as_second()), "callType": number(i64::from(call.outgoing)),
        "internalNumber": call.internal, "internalAdditionalData": "", "externalNumber": call.external,
        "waitsec": number(call.wait_s.into()), "billsec": number(call.talk_s.into()),
        "disposition": call.disposition, "recordingStatus": if recorded { "uploaded" } else { "" },
        "isNewCall": number(0), "whoHungUp": "",
        "customerData": if odd { json!("") } else { json!([]) },
        "employeeData": person(&call.internal),
        "pbxNumberData": { "number": shared.config.pbx_number, "name": "Офіс" },
        "historyData": steps,
        "linkToCallRecordInMyBusiness": format!("https://my.binotel.ua/EXAMPLE/{}", call.id),
    })
}

/// `callDetails[historyData][0][waitsec]=8`.
fn completed_form(shared: &Shared, call: &LoggedCall) -> Vec<(String, String)> {
    fn flatten(key: String, value: &Value, pairs: &mut Vec<(String, String)>) {
        match value {
            Value::Object(entries) if !entries.is_empty() => {
                entries.iter().for_each(|(name, value)| flatten(format!("{key}[{name}]"), value, pairs));
            }
            Value::Array(items) if !items.is_empty() => {
                items.iter().enumerate().for_each(|(index, value)| flatten(format!("{key}[{index}]"), value, pairs));
            }
            Value::String(text) => pairs.push((key, text.clone())),
            Value::Number(number) => pairs.push((key, number.to_string())),
            _ => pairs.push((key, String::new())),
        }
    }
    let mut pairs = Vec::new();
    flatten("callDetails".into(), &details(shared, call), &mut pairs);
    pairs
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/api/4.0/{group}/{method}", post(api))
        .route("/recordings/{call}", get(recording))
        .route("/simulate/call", post(simulate_call))
        .route("/simulate/fault", post(simulate_fault))
        .route("/simulate/webhook", post(simulate_webhook))
        .route("/simulate/deliveries", get(deliveries))
        .with_state(shared)
}

fn error(code: u32, message: &str) -> Response {
    // The code is a text in some answers and a number in others.
    let code = if code.is_multiple_of(2) { json!(code.to_string()) } else { json!(code) };
    Json(json!({ "status": "error", "code": code, "message": message })).into_response()
}

fn success(mut entries: Map<String, Value>) -> Response {
    entries.insert("status".into(), "success".into());
    Json(entries).into_response()
}

fn one(name: &str, value: Value) -> Response {
    success(Map::from_iter([(name.to_owned(), value)]))
}

/// A map by id; an empty one is a list, as PHP writes it.
fn call_details(shared: &Shared, calls: impl Iterator<Item = LoggedCall>) -> Response {
    let map: Map<String, Value> = calls.map(|call| (call.id.to_string(), details(shared, &call))).collect();
    one("callDetails", if map.is_empty() { json!([]) } else { Value::Object(map) })
}

fn text(params: &Value, name: &str) -> String {
    match &params[name] {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

fn texts(params: &Value, name: &str) -> Vec<String> {
    match &params[name] {
        Value::Array(items) => items.iter().map(|item| text(&json!({ "item": item }), "item")).collect(),
        _ => vec![text(params, name)],
    }
}

async fn api(
    State(shared): State<Arc<Shared>>,
    Path((group, method)): Path<(String, String)>,
    body: Bytes,
) -> Response {
    let fault = shared.stage.fault().await;
    match fault {
        Some(Fault::Limited) => return error(106, "Requests are too frequent"),
        Some(Fault::Broken) => return (StatusCode::INTERNAL_SERVER_ERROR, "Oops").into_response(),
        Some(Fault::Nonsense) => return html(),
        Some(Fault::Closed) => return (StatusCode::FORBIDDEN, "Forbidden").into_response(),
        Some(Fault::Refused) => return error(105, "Something went wrong"),
        Some(Fault::Slow | Fault::Hang) | None => {}
    }
    let Ok(params) = serde_json::from_slice::<Value>(&body) else { return error(103, "Not enough data") };
    if text(&params, "key") != shared.config.key || text(&params, "secret") != shared.config.secret {
        return error(121, "Wrong key or secret");
    }
    let method = method.strip_suffix(".json").unwrap_or_default();
    if group == "stats" && shared.asked_too_often() {
        return error(106, "Requests are too frequent");
    }
    match group.as_str() {
        "settings" => settings(&shared, method),
        "stats" => stats(&shared, method, &params),
        "calls" => calls(&shared, method, &params).await,
        _ => error(102, "No such method"),
    }
}

fn settings(shared: &Shared, method: &str) -> Response {
    match method {
        "list-of-employees" => {
            let employees: Map<String, Value> = shared
                .config
                .employees
                .iter()
                .enumerate()
                .map(|(index, employee)| {
                    let endpoint = json!({ "id": "7", "login": employee.login, "password": employee.password,
                        "internalNumber": employee.internal, "status": {} });
                    // One object for some employees, a map by internal number for others.
                    let endpoint = match index.is_multiple_of(2) {
                        true => endpoint,
                        false => Value::Object(Map::from_iter([(employee.internal.clone(), endpoint)])),
                    };
                    let entry = json!({ "employeeID": employee.id, "email": "ai@example.com", "name": employee.name,
                        "mobileNumber": "", "presenceState": "active", "presenceStateUpdatedAt": "1800000000",
                        "role": "employee", "department": "", "endpointData": endpoint });
                    (employee.id.clone(), entry)
                })
                .collect();
            one("listOfEmployees", Value::Object(employees))
        }
        "list-of-routes" => {
            let routes: Vec<Value> = shared
                .config
                .routes
                .iter()
                .map(|(id, internal)| json!({ "id": id, "name": format!("To {internal}"), "description": "" }))
                .collect();
            one("listOfRoutes", json!({ "Incoming": routes }))
        }
        _ => error(102, "No such method"),
    }
}

fn stats(shared: &Shared, method: &str, params: &Value) -> Response {
    let log: Vec<LoggedCall> = lock(&shared.log).iter().cloned().collect();
    let second = |name: &str| text(params, name).parse::<i64>().ok();
    match method {
        "list-of-calls-for-period" => match (second("startTime"), second("stopTime")) {
            (Some(start), Some(stop)) if (0..=86_400).contains(&(stop - start)) => {
                let within = move |call: &LoggedCall| (start..=stop).contains(&call.started.as_second());
                call_details(shared, log.into_iter().filter(within))
            }
            (Some(_), Some(_)) => error(104, "Wrong data"),
            _ => error(103, "Not enough data"),
        },
        "list-of-calls-per-day" => {
            let since = clock::now() - SignedDuration::from_hours(24);
            call_details(shared, log.into_iter().filter(|call| call.started >= since))
        }
        "history-by-external-number" => {
            let numbers = texts(params, "externalNumbers");
            call_details(shared, log.into_iter().filter(|call| numbers.contains(&call.external)))
        }
        "call-details" => {
            let ids = texts(params, "generalCallID");
            call_details(shared, log.into_iter().filter(|call| ids.contains(&call.id.to_string())))
        }
        "online-calls" => call_details(shared, log.into_iter().filter(|call| call.ended.is_none())),
        "call-record" => {
            let id = text(params, "generalCallID");
            let ready = |call: &LoggedCall| {
                let wait = SignedDuration::try_from(shared.config.recording_after).unwrap_or_default();
                call.talk_s > 0 && call.ended.is_some_and(|ended| ended + wait <= clock::now())
            };
            match log.iter().find(|call| call.id.to_string() == id) {
                Some(call) if ready(call) => {
                    let until = clock::now().as_second() + shared.config.link_life.as_secs() as i64;
                    one("url", format!("{}/recordings/{id}.wav?until={until}", shared.base).into())
                }
                _ => error(104, "No record"),
            }
        }
        _ => error(102, "No such method"),
    }
}

async fn calls(shared: &Arc<Shared>, method: &str, params: &Value) -> Response {
    let external = text(params, "externalNumber");
    let id: Option<u64> = text(params, "generalCallID").parse().ok();
    let runs = |id: u64| lock(&shared.running).contains_key(&id);
    match method {
        "internal-number-to-external-number" => {
            let internal = text(params, "internalNumber");
            if internal.is_empty() || external.is_empty() {
                return error(103, "Not enough data");
            }
            if !shared.config.employees.iter().any(|employee| employee.internal == internal) {
                return error(150, "Can not call to internal number");
            }
            if external.len() < 7 || !external.bytes().all(|byte| byte.is_ascii_digit()) {
                return error(151, "Can not call to external number");
            }
            if shared.stage.calls.len() >= MAX_CALLS {
                return error(105, "Something went wrong");
            }
            // Without `async` the answer waits for the extension.
            if text(params, "async") != "TRUE" {
                sleep(shared.config.ring).await;
            }
            let id = shared.begin(true, &internal, &external);
            let shared_by_call = Arc::clone(shared);
            shared.stage.calls.spawn(outbound(shared_by_call, id, internal, external));
            one("generalCallID", id.to_string().into())
        }
        "external-number-to-incoming-call" => {
            if external.is_empty() || text(params, "pbxNumber") != shared.config.pbx_number {
                return error(104, "Wrong data");
            }
            if shared.stage.calls.len() >= MAX_CALLS {
                return error(105, "Something went wrong");
            }
            let id = shared.begin(false, "", &external);
            let call = Call { from: external, ..Call::default() };
            let run = run_inbound(Arc::clone(shared), id, call);
            shared.stage.calls.spawn(async move { drop(run.await) });
            one("generalCallID", json!(id))
        }
        "hangup-call" => match id {
            Some(id) if runs(id) => {
                shared.hung_up(id).cancel();
                success(Map::new())
            }
            _ => error(104, "Wrong data"),
        },
        "attended-call-transfer" => match id {
            Some(id) if runs(id) && !external.is_empty() => {
                transfer(shared, id, &external).await;
                success(Map::new())
            }
            _ => error(104, "Wrong data"),
        },
        _ => error(102, "No such method"),
    }
}

async fn transfer(shared: &Shared, id: u64, to: &str) {
    shared.change(id, |call| {
        if let Some((_, disposition)) = call.steps.last_mut() {
            *disposition = "TRANSFER".into();
        }
        call.steps.push((to.into(), "ANSWER".into()));
        call.internal = to.into();
    });
    let pairs = [
        ("generalCallID", id.to_string()),
        ("companyID", shared.config.company_id.clone()),
        ("internalNumber", to.to_owned()),
    ];
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
    shared.tell("transferredTheCall", id, 1, &pairs).await;
}

#[derive(Deserialize)]
struct Link {
    until: i64,
}

async fn recording(State(shared): State<Arc<Shared>>, Path(call): Path<String>, Query(link): Query<Link>) -> Response {
    if link.until <= clock::now().as_second() {
        return StatusCode::FORBIDDEN.into_response();
    }
    let id: Option<u64> = call.strip_suffix(".wav").and_then(|id| id.parse().ok());
    let known = id.is_some_and(|id| lock(&shared.log).iter().any(|call| call.id == id && call.talk_s > 0));
    if !known {
        return StatusCode::NOT_FOUND.into_response();
    }
    stage::silence("audio/wav")
}

async fn simulate_call(State(shared): State<Arc<Shared>>, Json(call): Json<Call>) -> Json<Simulated> {
    Json(inbound(shared, call).await)
}

async fn simulate_fault(State(shared): State<Arc<Shared>>, Json(request): Json<FaultRequest>) -> StatusCode {
    shared.stage.fail(request.fault, request.times);
    StatusCode::NO_CONTENT
}

async fn simulate_webhook(State(shared): State<Arc<Shared>>, Json(request): Json<WebhookRequest>) -> StatusCode {
    shared.stage.set_webhook(request.url);
    StatusCode::NO_CONTENT
}

async fn deliveries(State(shared): State<Arc<Shared>>) -> Json<Vec<Delivery>> {
    Json(shared.stage.deliveries())
}

async fn inbound(shared: Arc<Shared>, call: Call) -> Simulated {
    let id = shared.begin(false, "", &call.from);
    run_inbound(shared, id, call).await
}

/// The usual order: settings, received, answered, perhaps transferred, hung up, completed.
async fn run_inbound(shared: Arc<Shared>, id: u64, call: Call) -> Simulated {
    let config = &shared.config;
    let call_id = id.to_string();
    let pbx = call.to.clone().unwrap_or_else(|| config.pbx_number.clone());
    let offer = [
        ("companyID", config.company_id.as_str()),
        ("callType", "0"),
        ("externalNumber", &call.from),
        ("pbxNumber", &pbx),
    ];
    let answer = shared.tell("apiCallSettings", id, 1, &offer).await;
    let wishes: Value = answer.and_then(|(_, body)| serde_json::from_str(&body).ok()).unwrap_or_default();
    let route = wishes["routeData"]["id"].as_str().map(str::to_owned);
    let led_to = config.routes.iter().find(|(id, _)| Some(id) == route.as_ref()).map(|(_, internal)| internal.clone());
    let internal = led_to
        .or(call.internal)
        .or_else(|| config.employees.first().map(|employee| employee.internal.clone()))
        .unwrap_or_default();
    let common = [
        ("generalCallID", call_id.as_str()),
        ("companyID", &config.company_id),
        ("callType", "0"),
        ("externalNumber", &call.from),
        ("pbxNumber", &pbx),
    ];
    let mut received = common.to_vec();
    received.extend([("method", "POST"), ("didNumber", pbx.as_str()), ("srcNumber", &call.from)]);
    shared.tell("receivedTheCall", id, 1, &received).await;
    let status = call.status.unwrap_or_else(|| "ANSWER".into());
    let answered = matches!(status.as_str(), "ANSWER" | "TRANSFER");
    let hung_up = shared.hung_up(id);
    let tell_answer = || async {
        shared.change(id, |logged| {
            logged.disposition = "ONLINE".into();
            logged.internal = internal.clone();
            logged.steps.push((internal.clone(), "ANSWER".into()));
        });
        let mut pairs = common.to_vec();
        pairs.push(("internalNumber", &internal));
        shared.tell("answeredTheCall", id, 1, &pairs).await;
        if let Some(to) = &call.transfer_to {
            let _ = hung_up.run_until_cancelled(sleep(config.talk / 2)).await;
            transfer(&shared, id, to).await;
        }
    };
    // The way to whoever answers takes its time, and the telephone there rings.
    let rang = hung_up.run_until_cancelled(sleep(config.ring)).await.is_some();
    let (status, talk_s) = match &shared.switch {
        _ if !rang => ("CANCEL".to_owned(), 0),
        _ if !answered => (status, 0),
        Some(switch) => {
            let login = shared.login_of(&internal);
            let talk = switch.talk(&login, &call.from, Duration::ZERO, hung_up.clone(), tell_answer()).await;
            match talk.connect_ms {
                Some(_) => (status, call.talk_s.unwrap_or_else(|| talk_s(&talk))),
                None if hung_up.is_cancelled() => ("CANCEL".to_owned(), 0),
                None => ("NOANSWER".to_owned(), 0),
            }
        }
        None => {
            tell_answer().await;
            let _ = hung_up.run_until_cancelled(sleep(config.talk)).await;
            (status, call.talk_s.unwrap_or(64))
        }
    };
    end(&shared, id, &status, talk_s).await;
    let deliveries = shared.stage.deliveries().into_iter().filter(|delivery| delivery.call == call_id).collect();
    Simulated { call_id, route, internal, deliveries }
}

/// The extension first, then the client; what is told of the answer is minimal.
async fn outbound(shared: Arc<Shared>, id: u64, internal: String, external: String) {
    let call_id = id.to_string();
    let company = shared.config.company_id.as_str();
    let received = [
        ("generalCallID", call_id.as_str()),
        ("companyID", company),
        ("callType", "1"),
        ("internalNumber", &internal),
        ("externalNumber", &external),
        ("extNumber", &internal),
        ("dstNumber", &external),
    ];
    shared.tell("receivedTheCall", id, 1, &received).await;
    let hung_up = shared.hung_up(id);
    let tell_answer = || async {
        shared.change(id, |logged| {
            logged.disposition = "ONLINE".into();
            logged.steps.push((internal.clone(), "ANSWER".into()));
        });
        shared.tell("answeredTheCall", id, 1, &received[..2]).await;
    };
    let ring = shared.config.ring;
    let (status, talked_s) = match &shared.switch {
        Some(switch) => {
            let both = async {
                sleep(ring).await;
                tell_answer().await;
            };
            let login = shared.login_of(&internal);
            let talk = switch.talk(&login, &external, ring, hung_up.clone(), both).await;
            match talk.connect_ms {
                Some(_) => ("ANSWER", talk_s(&talk)),
                None if hung_up.is_cancelled() => ("CANCEL", 0),
                None => ("NOANSWER", 0),
            }
        }
        None => match hung_up.run_until_cancelled(sleep(ring)).await {
            Some(()) => {
                tell_answer().await;
                let _ = hung_up.run_until_cancelled(sleep(shared.config.talk)).await;
                ("ANSWER", 30)
            }
            None => ("CANCEL", 0),
        },
    };
    end(&shared, id, status, talked_s).await;
}

async fn end(shared: &Arc<Shared>, id: u64, status: &str, talk_s: u32) {
    lock(&shared.running).remove(&id);
    let ended = shared.change(id, |call| {
        call.disposition = if call.steps.len() > 1 { "TRANSFER".into() } else { status.into() };
        (call.wait_s, call.talk_s, call.ended) = (8, talk_s, Some(clock::now()));
    });
    let Some(call) = ended else { return };
    let (id, talk) = (call.id.to_string(), call.talk_s.to_string());
    // Without the company, as live payloads come.
    let pairs =
        [("generalCallID", id.as_str()), ("billsec", &talk), ("disposition", &call.disposition), ("method", "POST")];
    shared.tell("hangupTheCall", call.id, 1, &pairs).await;
    shared.complete(call).await;
}
