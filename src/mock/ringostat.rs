//! A stand-in for Ringostat: its REST and JSON-RPC, a call log, and calls that run through their webhooks; where it is
//! given a SIP side, accounts register there and calls are talked by RTP. It refuses with HTTP 200, mixes types, knows not
//! every field, gives so many rows and no more, and never repeats a webhook.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::time::sleep;

use crate::clock;
use crate::load::caller::CallerReport;
use crate::mock::stage::{
    self, Delivery, Fault, FaultRequest, MAX_CALLS, Post, Server, Stage, WebhookRequest, html, lock,
};
use crate::mock::switch::{Switch, SwitchConfig, talk_s};
use crate::protocol::sip::digest::Credentials;

/// Calls that the log keeps; older ones are forgotten.
const LOG_LEN: usize = 100_000;

/// How webhooks are sent: the cabinet's "data type" and method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    #[default]
    Json,
    JsonRpc,
    Form,
    /// GET, in the query.
    Query,
}

/// An employee with one SIP account.
#[derive(Clone, Debug)]
pub struct Employee {
    pub id: u32,
    pub name: String,
    pub extension: String,
    pub login: String,
    pub password: String,
    /// Without a SIP side; with one, whoever is registered is online.
    pub online: bool,
}

#[derive(Clone, Debug)]
pub struct RingostatConfig {
    pub auth_key: String,
    pub project_id: u64,
    /// The project's number.
    pub number: String,
    pub staff: Vec<Employee>,
    pub webhook: Option<String>,
    pub style: Style,
    /// Names of parameters that differ from the proposed ones: ("call_id", "uniqueid").
    pub names: Vec<(String, String)>,
    /// Field names that the log refuses.
    pub unknown_fields: Vec<String>,
    /// Rows of one answer.
    pub log_rows: usize,
    /// The project's time zone, hours east of UTC.
    pub offset_hours: i8,
    /// How long calls really ring and talk here.
    pub ring: Duration,
    pub talk: Duration,
    /// Accounts register and calls are talked; without it, calls are their webhooks.
    pub sip: Option<SwitchConfig>,
}

impl Default for RingostatConfig {
    fn default() -> Self {
        let employee = |id, name: &str, extension: &str, login: &str, online| Employee {
            id,
            name: name.into(),
            extension: extension.into(),
            login: login.into(),
            password: format!("mock-sip-password-{extension}"),
            online,
        };
        Self {
            auth_key: "mock-auth-key".into(),
            project_id: 12_345,
            number: "380441234567".into(),
            staff: vec![
                employee(1201, "Concierge AI", "701", "acme_concierge", true),
                employee(1202, "Anna", "702", "acme_anna", false),
            ],
            webhook: None,
            style: Style::Json,
            names: Vec::new(),
            unknown_fields: vec!["userfield".into()],
            log_rows: 6_500,
            offset_hours: 2,
            ring: Duration::from_millis(300),
            talk: Duration::from_secs(1),
            sip: None,
        }
    }
}

/// A row of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct LoggedCall {
    pub uniqueid: String,
    pub started: Timestamp,
    pub caller: String,
    pub dst: String,
    pub call_type: &'static str,
    pub disposition: String,
    pub wait_s: u32,
    pub talk_s: u32,
    pub connected_with: String,
}

/// A call to simulate.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Call {
    pub from: String,
    /// The project's number where it is left out.
    pub to: Option<String>,
    /// Who answers; the first account that is online where it is left out.
    pub login: Option<String>,
    /// A disposition; `ANSWERED` where it is left out.
    pub status: Option<String>,
    /// What the log says of the talk, whatever the simulated time.
    pub talk_s: Option<u32>,
    /// Webhooks that get lost.
    #[serde(default)]
    pub lose: Vec<String>,
}

/// What became of a simulated call.
#[derive(Clone, Debug, Serialize)]
pub struct Simulated {
    pub call_id: String,
    pub deliveries: Vec<Delivery>,
}

/// A running stand-in.
pub struct MockRingostat {
    server: Server,
    shared: Arc<Shared>,
}

impl MockRingostat {
    /// Serves on `listener` until it is stopped or dropped; needs a tokio runtime.
    pub fn start(config: RingostatConfig, listener: TcpListener) -> io::Result<Self> {
        let stage = Arc::new(Stage::new(config.webhook.clone())?);
        let base = format!("http://{}", listener.local_addr()?);
        let accounts =
            |employee: &Employee| Credentials { user: employee.login.clone(), password: employee.password.clone() };
        let accounts = config.staff.iter().map(accounts).collect();
        let switch = config.sip.clone().map(|sip| Switch::start(sip, accounts)).transpose()?;
        let shared = Arc::new(Shared {
            base,
            config,
            stage: Arc::clone(&stage),
            switch,
            log: Mutex::default(),
            counter: Mutex::new(0),
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
        lock(&self.shared.log).clone()
    }

    pub fn deliveries(&self) -> Vec<Delivery> {
        self.shared.stage.deliveries()
    }

    /// Waits for a webhook of this event to be answered; the caller limits the wait.
    pub async fn delivered(&self, event: &str) -> Delivery {
        self.shared.stage.wait_for(|delivery| delivery.event == event).await
    }

    pub async fn stop(self) {
        self.server.stop().await;
    }

    pub async fn wait(&mut self) -> io::Result<()> {
        self.server.wait().await
    }
}

struct Shared {
    base: String,
    config: RingostatConfig,
    stage: Arc<Stage>,
    switch: Option<Switch>,
    log: Mutex<Vec<LoggedCall>>,
    counter: Mutex<u64>,
}

impl Shared {
    fn keep(&self, call: LoggedCall) {
        let mut log = lock(&self.log);
        if log.len() >= LOG_LEN {
            log.remove(0);
        }
        log.push(call);
    }

    fn recording(&self, id: &str) -> String {
        format!("{}/recordings/{id}.ogg?token=EXAMPLE", self.base)
    }

    /// Server prefix, unix time, counter.
    fn new_id(&self, at: Timestamp) -> String {
        let mut counter = lock(&self.counter);
        *counter += 1;
        format!("us1_-{}.{}", at.as_second(), 1_000 + *counter)
    }

    fn zone(&self) -> TimeZone {
        TimeZone::fixed(Offset::from_hours(self.config.offset_hours).unwrap_or(Offset::UTC))
    }

    fn staff_online(&self) -> Option<&Employee> {
        self.config.staff.iter().find(|employee| self.is_online(employee))
    }

    fn is_online(&self, employee: &Employee) -> bool {
        match &self.switch {
            Some(switch) => switch.is_registered(&employee.login),
            None => employee.online,
        }
    }

    /// Sends one webhook as the customer has configured it.
    async fn tell(&self, event: &str, call: &str, mut values: Map<String, Value>) {
        values.insert("event".into(), event.into());
        values.insert("project_id".into(), self.config.project_id.to_string().into());
        values.insert("call_id".into(), call.into());
        let values: Map<String, Value> = values
            .into_iter()
            .map(|(name, value)| {
                let own = self.config.names.iter().find(|(proposed, _)| *proposed == name).map(|(_, own)| own.clone());
                (own.unwrap_or(name), value)
            })
            .collect();
        let pairs = || {
            let mut form = form_urlencoded::Serializer::new(String::new());
            for (name, value) in &values {
                match value {
                    Value::String(text) => form.append_pair(name, text),
                    Value::Null => form.append_pair(name, ""),
                    other => form.append_pair(name, &other.to_string()),
                };
            }
            form.finish()
        };
        let (method, query, content_type, body) = match self.config.style {
            Style::Json => (Method::POST, None, "application/json", Value::Object(values.clone()).to_string()),
            Style::JsonRpc => {
                let body = json!({ "jsonrpc": "2.0", "id": 1, "method": event, "params": values });
                (Method::POST, None, "application/json", body.to_string())
            }
            Style::Form => (Method::POST, None, "application/x-www-form-urlencoded", pairs()),
            Style::Query => (Method::GET, Some(pairs()), "", String::new()),
        };
        let post = Post {
            event: event.into(),
            call: call.into(),
            attempt: 1,
            method,
            query,
            content_type,
            body,
            forwarded_for: None,
        };
        // Whatever is answered: Ringostat shows an error in the cabinet and does not come again.
        let _ = self.stage.send(post).await;
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/sipstatus/online", get(online))
        .route("/sipstatus/speaking", get(speaking))
        .route("/calls/list", get(list))
        .route("/api/json-rpc", post(rpc))
        .route("/a/v2", post(rpc))
        .route("/callback/outward_call", post(outward_call))
        .route("/recordings/{file}", get(recording))
        .route("/simulate/call", post(simulate_call))
        .route("/simulate/fault", post(simulate_fault))
        .route("/simulate/webhook", post(simulate_webhook))
        .route("/simulate/deliveries", get(deliveries))
        .with_state(shared)
}

/// What each request is asked first.
async fn admit(shared: &Shared, headers: &HeaderMap) -> Result<(), Response> {
    let key = headers.get("auth-key").and_then(|value| value.to_str().ok());
    if key != Some(&shared.config.auth_key) {
        return Err((StatusCode::UNAUTHORIZED, Json(json!({ "message": "Unauthorized" }))).into_response());
    }
    match shared.stage.fault().await {
        Some(Fault::Limited) => {
            Err((StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")], "Too many requests").into_response())
        }
        Some(Fault::Broken) => Err((StatusCode::INTERNAL_SERVER_ERROR, "Oops").into_response()),
        Some(Fault::Nonsense) => Err(html()),
        Some(Fault::Closed) => Err((StatusCode::FORBIDDEN, Json(json!({ "message": "Forbidden" }))).into_response()),
        Some(Fault::Refused) => Err(rpc_error(-32_000, "The mock was told to refuse")),
        Some(Fault::Slow | Fault::Hang) | None => Ok(()),
    }
}

fn rpc_error(code: i64, message: &str) -> Response {
    Json(json!({ "jsonrpc": "2.0", "id": 1, "error": { "code": code, "message": message } })).into_response()
}

async fn online(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Result<Json<Value>, Response> {
    admit(&shared, &headers).await?;
    let online =
        shared.config.staff.iter().filter(|employee| shared.is_online(employee)).map(|employee| employee.login.clone());
    Ok(Json(online.collect()))
}

async fn speaking(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Result<Json<Value>, Response> {
    admit(&shared, &headers).await?;
    Ok(Json(json!([])))
}

#[derive(Deserialize)]
struct ListQuery {
    from: Option<String>,
    to: Option<String>,
    fields: String,
    filters: Option<String>,
}

async fn list(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Result<Response, Response> {
    admit(&shared, &headers).await?;
    let fields: Vec<&str> = query.fields.split(',').collect();
    if let Some(unknown) = fields.iter().find(|field| shared.config.unknown_fields.iter().any(|name| name == *field)) {
        // In words, not in JSON.
        return Ok((StatusCode::OK, format!("Field name {unknown} is incorrect")).into_response());
    }
    let zone = shared.zone();
    let moment = |text: &str| {
        let civil = DateTime::strptime("%Y-%m-%d %H:%M:%S", text).ok()?;
        Some(zone.to_ambiguous_zoned(civil).compatible().ok()?.timestamp())
    };
    let to = query.to.as_deref().and_then(moment).unwrap_or_else(clock::now);
    let from = query.from.as_deref().and_then(moment).unwrap_or(to - SignedDuration::from_hours(24));
    let filter = query.filters.as_deref().and_then(|filter| {
        let (name, values) = filter.split_once('~')?;
        let values = String::from_utf8(STANDARD.decode(values).ok()?).ok()?.to_lowercase();
        Some((name.to_owned(), values.split('|').map(str::to_owned).collect::<Vec<_>>()))
    });
    let passes = |call: &LoggedCall| match &filter {
        Some((name, values)) => {
            let own = match name.as_str() {
                "disposition" => call.disposition.to_lowercase(),
                "uniqueid" => call.uniqueid.to_lowercase(),
                _ => return true,
            };
            values.contains(&own)
        }
        None => true,
    };
    let mut calls: Vec<LoggedCall> =
        lock(&shared.log).iter().filter(|call| (from..=to).contains(&call.started) && passes(call)).cloned().collect();
    calls.sort_by_key(|call| std::cmp::Reverse(call.started));
    calls.truncate(shared.config.log_rows);
    let rows: Vec<Value> =
        calls.iter().enumerate().map(|(index, call)| row(&shared, call, index, &fields, &zone)).collect();
    Ok(Json(rows).into_response())
}

/// Numbers are texts in every other row.
fn row(shared: &Shared, call: &LoggedCall, index: usize, fields: &[&str], zone: &TimeZone) -> Value {
    let number = |value: u32| if index.is_multiple_of(2) { json!(value.to_string()) } else { json!(value) };
    let recorded = call.talk_s > 0;
    let employee = shared.config.staff.iter().find(|employee| employee.login == call.connected_with);
    let all = json!({
        "uniqueid": call.uniqueid,
        "calldate": call.started.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%z").to_string(),
        "caller": call.caller,
        "caller_number": if call.call_type == "out" { String::new() } else { call.caller.clone() },
        "dst": call.dst,
        "call_type": call.call_type,
        "disposition": call.disposition,
        "duration": number(call.wait_s + call.talk_s),
        "waittime": number(call.wait_s),
        "billsec": number(call.talk_s),
        "connected_with": call.connected_with,
        "employee_number": employee.map(|employee| employee.id.to_string()),
        "has_recording": number(u32::from(recorded)),
        "recording": if recorded { json!(shared.recording(&call.uniqueid)) } else { Value::Null },
    });
    fields.iter().map(|field| ((*field).to_owned(), all[*field].clone())).collect::<Map<_, _>>().into()
}

async fn recording(State(shared): State<Arc<Shared>>, Path(file): Path<String>, Query(link): Query<Link>) -> Response {
    let id = file.strip_suffix(".ogg").filter(|_| link.token == "EXAMPLE");
    match id.is_some_and(|id| lock(&shared.log).iter().any(|call| call.uniqueid == id && call.talk_s > 0)) {
        true => stage::silence("audio/ogg"),
        false => StatusCode::NOT_FOUND.into_response(),
    }
}

#[derive(Deserialize)]
struct Link {
    token: String,
}

async fn rpc(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Json(request): Json<Value>,
) -> Result<Response, Response> {
    admit(&shared, &headers).await?;
    let params = &request["params"];
    let project = params["projectId"].as_u64().or_else(|| params["projectId"].as_str()?.parse().ok());
    if project != Some(shared.config.project_id) {
        return Err(rpc_error(-32_001, "Project not found"));
    }
    match request["method"].as_str().unwrap_or_default() {
        "getProjectStaffListAndDirections" => {
            let staff: Map<String, Value> =
                shared.config.staff.iter().map(|employee| staff_entry(employee, shared.is_online(employee))).collect();
            Ok(Json(json!({ "jsonrpc": "2.0", "id": 1, "result": staff })).into_response())
        }
        "Api\\V2\\Callback.external" => {
            let (client, callee) = (params["caller"].as_str(), params["callee"].as_str());
            let (Some(client), Some(callee)) = (client, callee) else {
                return Err(rpc_error(-32_602, "Invalid params"));
            };
            let employee = shared.config.staff.iter().find(|employee| employee.login == callee);
            if employee.is_none_or(|employee| !shared.is_online(employee)) {
                return Err(rpc_error(-32_002, "Callee is not available"));
            }
            outbound(&shared, client.to_owned(), callee.to_owned(), "out").map_err(TooManyCalls::refuse)?;
            Ok(Json(json!({ "jsonrpc": "2.0", "id": 1, "result": true })).into_response())
        }
        _ => Err(rpc_error(-32_601, "Method not found")),
    }
}

fn staff_entry(employee: &Employee, online: bool) -> (String, Value) {
    let entry = json!({
        "id": employee.id, "staffId": employee.id, "status": online, "fio": employee.name,
        "email": "ai@example.com", "extensionNumber": employee.extension, "departments": [3],
        "directions": {
            "main": [{ "id": 55, "type": "sip", "direction": employee.login, "gateway": "sip.ringostat.net",
                "enabledForAwd": true }],
            "additional": [],
        },
    });
    (employee.id.to_string(), entry)
}

#[derive(Deserialize)]
struct OutwardCall {
    extension: String,
    destination: String,
}

async fn outward_call(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Form(call): Form<OutwardCall>,
) -> Result<Response, Response> {
    admit(&shared, &headers).await?;
    if call.extension != shared.config.number {
        return Err((StatusCode::BAD_REQUEST, Json(json!({ "message": "Unknown extension" }))).into_response());
    }
    let login = shared.staff_online().map(|employee| employee.login.clone()).unwrap_or_default();
    outbound(&shared, call.destination, login, "callback").map_err(TooManyCalls::refuse)?;
    Ok(Json(json!({ "status": "ok" })).into_response())
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

fn values(pairs: &[(&str, Value)]) -> Map<String, Value> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

async fn inbound(shared: Arc<Shared>, call: Call) -> Simulated {
    let started = clock::now();
    let id = shared.new_id(started);
    let dst = call.to.clone().unwrap_or_else(|| shared.config.number.clone());
    let status = call.status.clone().unwrap_or_else(|| "ANSWERED".into());
    let answered = matches!(status.as_str(), "ANSWERED" | "PROPER" | "REPEATED");
    let login = call.login.clone().or_else(|| shared.staff_online().map(|employee| employee.login.clone()));
    let login = login.filter(|_| answered).unwrap_or_default();
    let lost = |event: &str| call.lose.iter().any(|name| name == event);
    let common = values(&[
        ("call_type", "in".into()),
        ("caller", call.from.clone().into()),
        ("destination", dst.clone().into()),
        ("call_ts_us", started.as_microsecond().to_string().into()),
    ]);
    if !lost("in_before") {
        shared.tell("in_before", &id, common.clone()).await;
    }
    let tell_answer = || async {
        if !lost("in_answer") {
            let mut answer = common.clone();
            answer.extend(values(&[
                ("connected_with", login.clone().into()),
                ("employee_id", employee_id(&shared, &login)),
            ]));
            shared.tell("in_answer", &id, answer).await;
        }
    };
    let stopped = shared.stage.stop.clone();
    // The way to whoever answers takes its time, and the telephone there rings.
    let _ = stopped.run_until_cancelled(sleep(shared.config.ring)).await;
    let (status, wait_s, talked_s) = match &shared.switch {
        Some(switch) if answered => {
            let talk = switch.talk(&login, &call.from, Duration::ZERO, stopped.child_token(), tell_answer()).await;
            match talk.connect_ms {
                Some(connect_ms) => (status, (connect_ms / 1_000.0) as u32, talk_s(&talk)),
                None => ("NO ANSWER".to_owned(), 9, 0),
            }
        }
        _ => {
            if answered {
                tell_answer().await;
                let _ = stopped.run_until_cancelled(sleep(shared.config.talk)).await;
            }
            let talked = answered || status == "VOICEMAIL";
            (status, 9, if talked { 66 } else { 0 })
        }
    };
    let talk_s = if talked_s > 0 { call.talk_s.unwrap_or(talked_s) } else { 0 };
    let login = if talked_s > 0 { login } else { String::new() };
    let logged = LoggedCall {
        uniqueid: id.clone(),
        started,
        caller: call.from.clone(),
        dst,
        call_type: "in",
        disposition: status,
        wait_s,
        talk_s,
        connected_with: login,
    };
    shared.keep(logged.clone());
    if !lost("in_after") {
        shared.tell("in_after", &id, after(&shared, &logged, common)).await;
    }
    let deliveries = shared.stage.deliveries().into_iter().filter(|delivery| delivery.call == id).collect();
    Simulated { call_id: id, deliveries }
}

/// Absent values are `null` here, and numbers are texts.
fn after(shared: &Shared, call: &LoggedCall, mut common: Map<String, Value>) -> Map<String, Value> {
    let recorded = call.talk_s > 0;
    common.extend(values(&[
        ("status", call.disposition.clone().into()),
        ("duration", (call.wait_s + call.talk_s).to_string().into()),
        ("billsec", call.talk_s.to_string().into()),
        ("waittime", call.wait_s.into()),
        (
            "connected_with",
            if call.connected_with.is_empty() { Value::Null } else { call.connected_with.clone().into() },
        ),
        ("employee_id", employee_id(shared, &call.connected_with)),
        ("has_recording", if recorded { "1" } else { "0" }.into()),
        ("recording", if recorded { shared.recording(&call.uniqueid).into() } else { Value::Null }),
    ]));
    common
}

fn employee_id(shared: &Shared, login: &str) -> Value {
    let employee = shared.config.staff.iter().find(|employee| employee.login == login);
    employee.map_or(Value::Null, |employee| employee.id.to_string().into())
}

struct TooManyCalls;

impl TooManyCalls {
    fn refuse(self) -> Response {
        rpc_error(-32_003, "Too many calls")
    }
}

/// A call that the PBX makes, in a task of its own. Callbacks come as webhooks of incoming calls.
fn outbound(shared: &Arc<Shared>, client: String, login: String, call_type: &'static str) -> Result<(), TooManyCalls> {
    if shared.stage.calls.len() >= MAX_CALLS {
        return Err(TooManyCalls);
    }
    let stage = Arc::clone(&shared.stage);
    let shared = Arc::clone(shared);
    stage.calls.spawn(async move {
        let started = clock::now();
        let id = shared.new_id(started);
        let callback = call_type == "callback";
        let (caller, dst) = match callback {
            true => (client.clone(), shared.config.number.clone()),
            false => (login.clone(), client.clone()),
        };
        let common = values(&[
            ("call_type", call_type.into()),
            ("caller", caller.clone().into()),
            ("destination", dst.clone().into()),
            ("call_ts_us", started.as_microsecond().to_string().into()),
        ]);
        shared.tell(if callback { "in_before" } else { "out_before" }, &id, common.clone()).await;
        let stopped = shared.stage.stop.clone();
        let (disposition, wait_s, talk_s) = match &shared.switch {
            Some(switch) => {
                // Our side first; the client's telephone rings while ours waits.
                let ring = shared.config.ring;
                let talk = switch.talk(&login, &client, ring, stopped.child_token(), async {}).await;
                match talk.connect_ms {
                    Some(_) => ("ANSWERED", ring.as_secs() as u32, talk_s(&talk)),
                    None => ("NO ANSWER", 12, 0),
                }
            }
            None => {
                let _ = stopped.run_until_cancelled(sleep(shared.config.ring + shared.config.talk)).await;
                ("ANSWERED", 12, 30)
            }
        };
        let logged = LoggedCall {
            uniqueid: id.clone(),
            started,
            caller,
            dst,
            call_type,
            disposition: disposition.into(),
            wait_s,
            talk_s,
            connected_with: login,
        };
        shared.keep(logged.clone());
        shared.tell(if callback { "in_after" } else { "out_after" }, &id, after(&shared, &logged, common)).await;
    });
    Ok(())
}
