//! A simulated Twilio: its REST API with true shapes, codes and quirks, and what happens at the other end of it. A call,
//! in or out, asks our webhooks with true signatures, obeys the TwiML that they answer, opens the media websocket and
//! puts a caller on it. Times are short where a person's would be long; nothing else is left out.

mod api;
mod call;
mod twiml;
mod webhook;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::load::caller::CallerReport;
use crate::load::fixture::Fixture;
use crate::mock::twilio::call::{Command, Offer};

/// Requests, calls, messages and recordings that are kept; older ones are forgotten.
const KEPT: usize = 10_000;
/// Twilio's requests are small.
const MAX_BODY: usize = 256 * 1024;
/// How long open answers and calls may go on after `stop`.
const DRAIN: Duration = Duration::from_secs(2);
/// Twilio gives up on a connection after this.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct MockTwilioConfig {
    pub account_sid: String,
    pub auth_token: String,
    pub friendly_name: String,
    /// `active`, `suspended` or `closed`.
    pub status: String,
    /// Calls and writes to `verified` numbers only.
    pub trial: bool,
    pub verified: Vec<String>,
    /// SID and secret; like an ordinary key of Twilio's it may do everything but read the account.
    pub api_key: Option<(String, String)>,
    pub messaging_service_sid: Option<String>,
    pub numbers: Vec<MockNumber>,
    /// How a dialled number behaves; others are answered by a person.
    pub callees: HashMap<String, Callee>,
    /// Messages to these numbers end with this error code: below 30000 they are refused at once.
    pub undeliverable: HashMap<String, u32>,
    /// What callers say; without it they are silent and stay on the line.
    pub caller: Option<Arc<Fixture>>,
    /// How long a phone rings before it is answered, or is not.
    pub ring: Duration,
    /// How long a call that was transferred to a person lasts.
    pub dial_talk: Duration,
    /// What a character of `<Say>` takes. Twilio's voices take about 60 ms.
    pub say_char: Duration,
    /// Whether every call is recorded, and how long the recording takes to be ready.
    pub record: bool,
    pub recording_delay: Duration,
    pub signed_as: SignedAs,
    /// More fields of the webhooks of calls, such as `FromCity`; one that is sent anyway gets this value.
    pub fields: Vec<(String, String)>,
    /// Every status callback is delivered twice.
    pub twice: bool,
    /// Longest page of a list, whatever is asked for.
    pub max_page: usize,
}

impl Default for MockTwilioConfig {
    fn default() -> Self {
        Self {
            account_sid: "AC00000000000000000000000000000001".into(),
            auth_token: "00000000000000000000000000000abc".into(),
            friendly_name: "Simulated account".into(),
            status: "active".into(),
            trial: false,
            verified: Vec::new(),
            api_key: None,
            messaging_service_sid: None,
            numbers: vec![MockNumber::new("+15550001111")],
            callees: HashMap::new(),
            undeliverable: HashMap::new(),
            caller: None,
            ring: Duration::from_millis(50),
            dial_talk: Duration::from_millis(200),
            say_char: Duration::from_millis(1),
            record: false,
            recording_delay: Duration::from_millis(500),
            signed_as: SignedAs::Written,
            fields: Vec::new(),
            twice: false,
            max_page: 1_000,
        }
    }
}

/// Flags of `offhook mock` for this simulator.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Simulate Twilio on this address, such as 127.0.0.1:9300
    #[arg(long, value_name = "ADDR")]
    pub twilio: Option<SocketAddr>,
    /// Account SID of the simulated Twilio
    #[arg(long, value_name = "SID", default_value = "AC00000000000000000000000000000001")]
    pub twilio_account_sid: String,
    /// Auth Token of the simulated Twilio
    #[arg(long, value_name = "TOKEN", default_value = "00000000000000000000000000000abc")]
    pub twilio_auth_token: String,
    /// A number of the simulated account; may be repeated
    #[arg(long, value_name = "NUMBER", default_value = "+15550001111")]
    pub twilio_number: Vec<String>,
    /// What callers say: a folder of audio-fixtures
    #[arg(long, value_name = "DIR")]
    pub twilio_caller: Option<PathBuf>,
}

impl Flags {
    /// `None`: Twilio is not simulated.
    pub fn config(&self) -> Result<Option<(SocketAddr, MockTwilioConfig)>, crate::load::fixture::FixtureError> {
        let Some(addr) = self.twilio else { return Ok(None) };
        let caller = self.twilio_caller.as_deref().map(Fixture::load).transpose()?.map(Arc::new);
        let config = MockTwilioConfig {
            account_sid: self.twilio_account_sid.clone(),
            auth_token: self.twilio_auth_token.clone(),
            numbers: self.twilio_number.iter().map(|number| MockNumber::new(number)).collect(),
            caller,
            ring: Duration::from_secs(2),
            dial_talk: Duration::from_secs(10),
            say_char: Duration::from_millis(60),
            recording_delay: Duration::from_secs(5),
            record: true,
            ..MockTwilioConfig::default()
        };
        Ok(Some((addr, config)))
    }
}

/// Which form of a URL is signed: Twilio's back ends differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SignedAs {
    #[default]
    Written,
    WithoutPort,
    WithPort,
}

/// Who takes a call, or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callee {
    Answers,
    /// An answering machine.
    Machine,
    Busy,
    NoAnswer,
    /// No such number.
    Fails,
}

/// How a request is spoilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// 429 with `Retry-After`, or without at 0.
    Limited { retry_after_s: u64 },
    /// 500 with Twilio's JSON.
    Broken,
    /// 502 of a gateway, in HTML.
    Gateway,
    /// Done, and answered 503 all the same.
    Lost,
    /// 200 with a body that is not JSON.
    Nonsense,
    /// Answered after so many milliseconds.
    Slow { ms: u64 },
    /// 400 with this error code.
    Refused { code: u32 },
}

/// A number of the account. Unset settings are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MockNumber {
    pub sid: String,
    pub number: String,
    pub name: String,
    pub voice: bool,
    pub sms: bool,
    /// By Twilio's parameter names: `VoiceUrl`, `SmsMethod`, `TrunkSid`, …
    pub settings: HashMap<String, String>,
}

impl MockNumber {
    /// With voice and messages, and with Twilio's own welcome as its webhooks, as a number that was just bought.
    pub fn new(number: &str) -> Self {
        let mut settings = HashMap::new();
        for (name, value) in [
            ("VoiceUrl", "https://demo.twilio.com/welcome/voice/"),
            ("VoiceMethod", "POST"),
            ("StatusCallbackMethod", "POST"),
            ("SmsUrl", "https://demo.twilio.com/welcome/sms/reply"),
            ("SmsMethod", "POST"),
            ("VoiceReceiveMode", "voice"),
        ] {
            settings.insert(name.to_owned(), value.to_owned());
        }
        let sid = format!("PN{}", Uuid::new_v4().simple());
        Self { sid, number: number.into(), name: number.into(), voice: true, sms: true, settings }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.insert(name.into(), value.into());
        self
    }

    pub fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }
}

/// A call as it stands.
#[derive(Clone, Debug)]
pub struct MockCall {
    pub sid: String,
    pub parent: Option<String>,
    pub from: String,
    pub to: String,
    /// `inbound`, `outbound-api` or `outbound-dial`.
    pub direction: &'static str,
    pub status: String,
    pub answered_by: Option<String>,
    pub created: Timestamp,
    pub started: Option<Timestamp>,
    pub ended: Option<Timestamp>,
    /// Seconds.
    pub duration: Option<u64>,
    /// What Twilio's own voice has said.
    pub said: Vec<String>,
    /// Whom `<Dial>` has called.
    pub dialled: Vec<String>,
    /// Twilio's error codes, as its debugger would show them.
    pub errors: Vec<u32>,
    /// What the caller on the media stream has measured, one for every stream.
    pub streams: Vec<CallerReport>,
    commands: Option<mpsc::Sender<Command>>,
}

impl MockCall {
    /// A call of the past, for lists.
    pub fn past(from: &str, to: &str, direction: &'static str, status: &str, created: Timestamp, seconds: u64) -> Self {
        Self {
            started: Some(created),
            ended: Some(created),
            duration: Some(seconds),
            status: status.into(),
            ..Self::beginning(from, to, direction, "queued", created)
        }
    }

    fn beginning(from: &str, to: &str, direction: &'static str, status: &str, created: Timestamp) -> Self {
        Self {
            sid: format!("CA{}", Uuid::new_v4().simple()),
            parent: None,
            from: from.into(),
            to: to.into(),
            direction,
            status: status.into(),
            answered_by: None,
            created,
            started: None,
            ended: None,
            duration: None,
            said: Vec::new(),
            dialled: Vec::new(),
            errors: Vec::new(),
            streams: Vec::new(),
            commands: None,
        }
    }

    pub fn is_over(&self) -> bool {
        matches!(self.status.as_str(), "completed" | "busy" | "failed" | "no-answer" | "canceled")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MockMessage {
    pub sid: String,
    pub from: Option<String>,
    pub to: String,
    pub body: String,
    pub direction: &'static str,
    pub status: String,
    pub error_code: Option<u32>,
    pub created: Timestamp,
}

struct Recording {
    sid: String,
    call: String,
    seconds: u64,
    created: Timestamp,
    ready: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// To the simulated API.
    In,
    /// A webhook.
    Out,
}

/// One request as the mock saw or made it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seen {
    pub id: u64,
    pub way: Way,
    pub method: String,
    /// A path with its query, or a webhook's address.
    pub url: String,
    pub fields: Vec<(String, String)>,
    /// `None`: not answered (yet).
    pub status: Option<u16>,
}

impl Seen {
    fn new(way: Way, method: &str, url: &str, fields: &[(String, String)]) -> Self {
        Self { id: 0, way, method: method.into(), url: url.into(), fields: fields.to_vec(), status: None }
    }

    /// Empty where there is no such field.
    pub fn field(&self, name: &str) -> &str {
        self.fields.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value)
    }
}

struct Shared {
    config: MockTwilioConfig,
    client: reqwest::Client,
    state: Mutex<Everything>,
    /// Counts the changes of calls and messages.
    changed: watch::Sender<u64>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Default)]
struct Everything {
    numbers: Vec<MockNumber>,
    /// Oldest first, all four.
    calls: VecDeque<MockCall>,
    messages: VecDeque<MockMessage>,
    recordings: VecDeque<Recording>,
    log: VecDeque<Seen>,
    next_id: u64,
    fault: Option<(Fault, u32)>,
}

impl Everything {
    fn call(&self, sid: &str) -> Option<&MockCall> {
        self.calls.iter().rev().find(|call| call.sid == sid)
    }

    fn number(&self, number: &str) -> Option<&MockNumber> {
        self.numbers.iter().find(|known| known.number == number || known.sid == number)
    }
}

fn keep<T>(list: &mut VecDeque<T>, item: T) {
    if list.len() == KEPT {
        list.pop_front();
    }
    list.push_back(item);
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Everything> {
        // It stays whole whatever a thread died of while it held it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, mut seen: Seen) -> u64 {
        let mut state = self.state();
        seen.id = state.next_id;
        state.next_id += 1;
        let id = seen.id;
        keep(&mut state.log, seen);
        id
    }

    fn noted(&self, id: u64, status: u16) {
        let mut state = self.state();
        let first = state.log.front().map_or(id, |seen| seen.id);
        if let Some(seen) = state.log.get_mut(id.saturating_sub(first) as usize).filter(|seen| seen.id == id) {
            seen.status = Some(status);
        }
    }

    fn change_call(&self, sid: &str, change: impl FnOnce(&mut MockCall)) {
        if let Some(call) = self.state().calls.iter_mut().rev().find(|call| call.sid == sid) {
            change(call);
        }
        self.changed.send_modify(|changes| *changes += 1);
    }

    fn send_command(&self, sid: &str, command: Command) -> bool {
        let commands = self.state().call(sid).and_then(|call| call.commands.clone());
        commands.is_some_and(|commands| commands.try_send(command).is_ok())
    }

    /// A call comes in. `Err`: the number is not of this account.
    fn ring(self: &Arc<Self>, from: &str, to: &str) -> Result<String, String> {
        let (call, offer, commands) = {
            let state = self.state();
            let number = state.number(to).ok_or_else(|| format!("{to} is no number of this account"))?;
            if !number.voice {
                return Err(format!("{to} takes no calls"));
            }
            let mut call = MockCall::beginning(from, to, "inbound", "ringing", Timestamp::now());
            let (sender, commands) = mpsc::channel(call::COMMANDS);
            call.commands = Some(sender);
            (call, Offer::inbound(number), commands)
        };
        Ok(self.begin(call, offer, commands))
    }

    fn begin(self: &Arc<Self>, call: MockCall, offer: Offer, commands: mpsc::Receiver<Command>) -> String {
        let sid = call.sid.clone();
        let line = call::Line::new(Arc::clone(self), &call, offer, commands);
        keep(&mut self.state().calls, call);
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = line.run() => {}
                () = stop.cancelled() => {}
            }
        });
        sid
    }

    /// A message comes in: what our webhook answers to it.
    async fn text(&self, from: &str, to: &str, body: &str) -> Result<Texted, String> {
        let address = {
            let state = self.state();
            let number = state.number(to).ok_or_else(|| format!("{to} is no number of this account"))?;
            if !number.sms {
                return Err(format!("{to} takes no messages"));
            }
            if !number.setting("SmsApplicationSid").is_empty() {
                return Err(format!("messages to {to} go to an application"));
            }
            number.setting("SmsUrl").to_owned()
        };
        let sid = format!("SM{}", Uuid::new_v4().simple());
        let fields = api::pairs(&[
            ("AccountSid", &self.config.account_sid),
            ("ApiVersion", "2010-04-01"),
            ("Body", body),
            ("From", from),
            ("FromCountry", ""),
            ("MessageSid", &sid),
            ("NumMedia", "0"),
            ("NumSegments", "1"),
            ("SmsMessageSid", &sid),
            ("SmsSid", &sid),
            ("SmsStatus", "received"),
            ("To", to),
        ]);
        keep(
            &mut self.state().messages,
            MockMessage {
                sid: sid.clone(),
                from: Some(from.into()),
                to: to.into(),
                body: body.into(),
                direction: "inbound",
                status: "received".into(),
                error_code: None,
                created: Timestamp::now(),
            },
        );
        let answered =
            self.webhook(&address, &fields).await.map_err(|failed| format!("webhook failed: {}", failed.0))?;
        let mut replies = Vec::new();
        if !answered.body.trim().is_empty() {
            let response = twiml::parse(&answered.body).map_err(|error| format!("12100: {error}"))?;
            for verb in response.children.iter().filter(|verb| verb.name == "Message") {
                let text = verb.child("Body").map_or(&verb.text, |body| &body.text).clone();
                if text.is_empty() || text.chars().count() > 1_600 {
                    return Err("a <Message> without a text that can be sent".into());
                }
                keep(
                    &mut self.state().messages,
                    MockMessage {
                        sid: format!("SM{}", Uuid::new_v4().simple()),
                        from: Some(to.into()),
                        to: from.into(),
                        body: text.clone(),
                        direction: "outbound-reply",
                        status: "delivered".into(),
                        error_code: None,
                        created: Timestamp::now(),
                    },
                );
                replies.push(text);
            }
        }
        self.changed.send_modify(|changes| *changes += 1);
        Ok(Texted { sid, replies })
    }
}

/// What became of a message that came in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Texted {
    pub sid: String,
    pub replies: Vec<String>,
}

/// A running simulator.
pub struct MockTwilio {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<io::Result<()>>,
}

impl MockTwilio {
    /// Serves on `listener` until it is stopped or dropped; needs a tokio runtime.
    pub fn start(config: MockTwilioConfig, listener: TcpListener) -> io::Result<Self> {
        let addr = listener.local_addr()?;
        // An error means that a TLS provider is set already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .redirect(reqwest::redirect::Policy::limited(5))
            .no_proxy()
            .build()
            .map_err(io::Error::other)?;
        let everything = Everything { numbers: config.numbers.clone(), ..Everything::default() };
        let shared = Arc::new(Shared {
            config,
            client,
            state: Mutex::new(everything),
            changed: watch::Sender::new(0),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let stopped = shared.stop.clone();
        let server =
            axum::serve(listener, router(Arc::clone(&shared))).with_graceful_shutdown(stopped.cancelled_owned());
        Ok(Self { addr, shared, server: tokio::spawn(server.into_future()) })
    }

    /// What an integration's `api_base` wants.
    pub fn api_base(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The requests so far, in both directions, oldest first.
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.state().log.iter().cloned().collect()
    }

    pub fn number(&self, number: &str) -> Option<MockNumber> {
        self.shared.state().number(number).cloned()
    }

    /// Changes a number behind our back, as a person in Twilio's Console would.
    pub fn set_number(&self, number: MockNumber) {
        let mut state = self.shared.state();
        match state.numbers.iter_mut().find(|known| known.sid == number.sid) {
            Some(known) => *known = number,
            None => state.numbers.push(number),
        }
    }

    /// Spoils the next `times` requests to the API.
    pub fn spoil(&self, fault: Fault, times: u32) {
        self.shared.state().fault = Some((fault, times));
    }

    /// Adds a call to the lists; the newest one last.
    pub fn remember(&self, call: MockCall) {
        keep(&mut self.shared.state().calls, call);
    }

    /// A caller dials one of the account's numbers. Gives the call's SID at once.
    pub fn ring(&self, from: &str, to: &str) -> Result<String, String> {
        self.shared.ring(from, to)
    }

    /// The other side of a running call hangs up.
    pub fn caller_hangs_up(&self, sid: &str) -> bool {
        self.shared.send_command(sid, Command::CallerHangsUp)
    }

    /// A message comes in for one of the account's numbers.
    pub async fn text(&self, from: &str, to: &str, body: &str) -> Result<Texted, String> {
        self.shared.text(from, to, body).await
    }

    pub fn call(&self, sid: &str) -> Option<MockCall> {
        self.shared.state().call(sid).cloned()
    }

    pub fn calls(&self) -> Vec<MockCall> {
        self.shared.state().calls.iter().cloned().collect()
    }

    pub fn messages(&self) -> Vec<MockMessage> {
        self.shared.state().messages.iter().cloned().collect()
    }

    /// The call, once it is so; `None` when it is not within `limit`.
    pub async fn call_when(&self, sid: &str, limit: Duration, is_so: impl Fn(&MockCall) -> bool) -> Option<MockCall> {
        let mut changed = self.shared.changed.subscribe();
        timeout(limit, async {
            loop {
                changed.borrow_and_update();
                if let Some(call) = self.call(sid).filter(&is_so) {
                    return Some(call);
                }
                if changed.changed().await.is_err() {
                    return None;
                }
            }
        })
        .await
        .ok()
        .flatten()
    }

    /// The requests of which at least `count` have been answered and are `such`, once there are; what there was by the
    /// time limit otherwise.
    pub async fn requests_when(&self, count: usize, limit: Duration, such: impl Fn(&Seen) -> bool) -> Vec<Seen> {
        let deadline = Instant::now() + limit;
        let mut looks = tokio::time::interval(Duration::from_millis(5));
        loop {
            looks.tick().await;
            let found: Vec<Seen> =
                self.requests().into_iter().filter(|seen| seen.status.is_some() && such(seen)).collect();
            if found.len() >= count || Instant::now() >= deadline {
                return found;
            }
        }
    }

    /// Stops to accept, ends the calls, and waits two seconds for open answers.
    pub async fn stop(mut self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        let server = async {
            self.shared.tasks.wait().await;
            if !self.server.is_finished() {
                let _ = (&mut self.server).await;
            }
        };
        if timeout(DRAIN, server).await.is_err() {
            self.server.abort();
        }
    }

    /// Comes back when the server has ended by itself, which it does only on a fault of its socket.
    pub async fn wait(&mut self) -> io::Result<()> {
        match (&mut self.server).await {
            Ok(result) => result,
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

impl Drop for MockTwilio {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/2010-04-01/{*path}", any(api::answer))
        .route("/simulate/call", post(simulate_call))
        .route("/simulate/hangup", post(simulate_hang_up))
        .route("/simulate/sms", post(simulate_sms))
        .route("/mock/requests", get(requests).delete(forget))
        .route("/mock/fault", post(spoil))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared)
}

async fn requests(State(shared): State<Arc<Shared>>) -> Json<Vec<Seen>> {
    Json(shared.state().log.iter().cloned().collect())
}

async fn forget(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.state().log.clear();
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
struct Spoil {
    #[serde(flatten)]
    fault: Fault,
    #[serde(default = "once")]
    times: u32,
}

const fn once() -> u32 {
    1
}

/// `{"limited": {"retry_after_s": 1}, "times": 2}`
async fn spoil(State(shared): State<Arc<Shared>>, Json(spoil): Json<Spoil>) -> StatusCode {
    shared.state().fault = Some((spoil.fault, spoil.times));
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
struct Simulated {
    #[serde(default)]
    from: String,
    #[serde(default)]
    to: String,
    #[serde(default)]
    body: String,
    #[serde(default)]
    call_sid: String,
}

async fn simulate_call(State(shared): State<Arc<Shared>>, Json(call): Json<Simulated>) -> Response {
    match shared.ring(&call.from, &call.to) {
        Ok(sid) => (StatusCode::CREATED, Json(json!({ "call_sid": sid }))).into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response(),
    }
}

async fn simulate_hang_up(State(shared): State<Arc<Shared>>, Json(call): Json<Simulated>) -> StatusCode {
    if shared.send_command(&call.call_sid, Command::CallerHangsUp) {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::NOT_FOUND
    }
}

async fn simulate_sms(State(shared): State<Arc<Shared>>, Json(message): Json<Simulated>) -> Response {
    match shared.text(&message.from, &message.to, &message.body).await {
        Ok(texted) => (StatusCode::CREATED, Json(json!(texted))).into_response(),
        Err(error) => (StatusCode::BAD_GATEWAY, Json(json!({ "error": error }))).into_response(),
    }
}
