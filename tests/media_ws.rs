//! Calls over real sockets on loopback, this test in the part of Twilio: signed webhook, TwiML, websocket, audio there
//! and back, and everything a forger or a broken peer might try. The calls themselves are a fake that echoes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::http::{HeaderValue, StatusCode};
use futures::{SinkExt as _, StreamExt as _};
use offhook::agent::profile::AgentProfile;
use offhook::agent::tools::ToolRegistry;
use offhook::call::desk::Desk;
use offhook::call::engines::Engines;
use offhook::call::recorder::{Archive, RecordingConfig};
use offhook::call::registry::{CallSetup, Calls, Refused};
use offhook::http::config::{ServerConfig, ServerUrls, TrustedProxies};
use offhook::http::router::{AppState, TakesCalls, router};
use offhook::http::tokens::MediaTokens;
use offhook::http::webhooks::Door;
use offhook::media::frame::MediaTime;
use offhook::media::packet::{Codec, Packet};
use offhook::protocol::twilio::message::{
    FromTwilio, Media, MediaFormat, Start, ToTwilio, decode_payload, encode_payload,
};
use offhook::providers::credentials::Credentials;
use offhook::providers::twilio::signature::sign;
use offhook::store::directory::{Directory, Integration, Line};
use offhook::store::ledger::Ledger;
use offhook::telephony::{CallEnd, EndReason, Party};
use offhook::transport::leg::{Leg, LegCommand, LegEvent};
use offhook::transport::twilio_ws::TwilioWsConfig;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

const ACCOUNT: &str = "AC00000000000000000000000000000001";
const CALL: &str = "CA00000000000000000000000000000001";
const STREAM: &str = "MZ00000000000000000000000000000001";
const OURS: &str = "+15550001111";
const CALLER: &str = "+15550002222";
const INTEGRATION: Uuid = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);

/// Nothing on loopback takes this long; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(10);

async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: nothing happened in {PATIENCE:?}"))
}

fn auth_token() -> SecretString {
    "12345".into()
}

/// Echoes audio as it comes, answers keys with marks and clears, and reports what it saw.
struct Echo {
    refusing: AtomicBool,
    started: mpsc::UnboundedSender<CallSetup>,
    seen: mpsc::UnboundedSender<LegEvent>,
    /// The leg's token, so that a test can hang up.
    hangup: Mutex<Option<CancellationToken>>,
    tasks: TaskTracker,
}

impl TakesCalls for Echo {
    fn ready(&self) -> Result<(), Refused> {
        if self.refusing.load(Ordering::Relaxed) { Err(Refused::Full) } else { Ok(()) }
    }

    fn start(&self, setup: CallSetup, leg: Leg) -> Result<(), Refused> {
        self.ready()?;
        *self.hangup.lock().unwrap() = Some(leg.hangup.clone());
        self.started.send(setup).unwrap();
        let seen = self.seen.clone();
        self.tasks.spawn(async move {
            // The whole leg: its guard, which no field access captures, would hang up at once.
            let mut leg = leg;
            let mut mark = 0;
            while let Some(event) = leg.events.recv().await {
                match &event {
                    LegEvent::Packet(packet) => leg.commands.send(LegCommand::Audio(packet.clone())).await.unwrap(),
                    LegEvent::Dtmf('#') => leg.commands.send(LegCommand::Clear).await.unwrap(),
                    LegEvent::Dtmf(_) => {
                        mark += 1;
                        leg.commands.send(LegCommand::Mark(mark)).await.unwrap();
                    }
                    LegEvent::Played { .. } | LegEvent::Held(_) | LegEvent::InBandKeys(_) => {}
                    LegEvent::Ended(_) => {
                        seen.send(event).unwrap();
                        return;
                    }
                }
                seen.send(event).unwrap();
            }
        });
        Ok(())
    }
}

/// A desk without a store; the calls that it knows never run, since `Echo` takes them.
fn desk(directory: Arc<ArcSwap<Directory>>, urls: Arc<ServerUrls>) -> Desk {
    let folder = tempfile::tempdir().unwrap();
    let recording = RecordingConfig { dir: folder.path().into(), ..RecordingConfig::default() };
    let (archive, _) = Archive::start(recording).unwrap();
    let calls = Calls::new(
        Engines::default(),
        ToolRegistry::default(),
        Default::default(),
        Default::default(),
        archive,
        Ledger::none(),
        Default::default(),
    );
    Desk::new(calls, directory, None, move |path| urls.http(path))
}

struct Server {
    address: SocketAddr,
    base: String,
    calls: Arc<Echo>,
    started: mpsc::UnboundedReceiver<CallSetup>,
    seen: mpsc::UnboundedReceiver<LegEvent>,
    draining: CancellationToken,
    sockets: TaskTracker,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
    client: reqwest::Client,
}

impl Server {
    async fn start() -> Self {
        Self::start_with(MediaTokens::default(), None, TwilioWsConfig::default()).await
    }

    async fn start_with(tokens: MediaTokens, public_url: Option<&str>, media: TwilioWsConfig) -> Self {
        // reqwest is built without a TLS provider of its own; loopback needs none, but it asks.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = ServerConfig { public_url: public_url.map(str::to_owned), ..ServerConfig::default() };
        let agent: AgentProfile = toml::from_str("name = \"Front desk\"").unwrap();
        let token = auth_token();
        let values = [("account_sid", ACCOUNT), ("auth_token", token.expose_secret())];
        let directory = Directory::new(
            vec![Integration {
                id: INTEGRATION,
                company_id: Uuid::nil(),
                company: "Acme".into(),
                name: "Main".into(),
                provider: "twilio",
                credentials: Credentials::from_stored(values.map(|(name, value)| (name.into(), value.into())).into()),
                webhook_secret: None,
            }],
            vec![Line {
                id: Uuid::nil(),
                integration: INTEGRATION,
                number: OURS.into(),
                agent_id: Uuid::nil(),
                agent_version: 1,
                agent: Arc::new(agent),
            }],
        );
        let (started_tx, started) = mpsc::unbounded_channel();
        let (seen_tx, seen) = mpsc::unbounded_channel();
        let calls = Arc::new(Echo {
            refusing: AtomicBool::new(false),
            started: started_tx,
            seen: seen_tx,
            hangup: Mutex::new(None),
            tasks: TaskTracker::new(),
        });
        let (draining, sockets, shutdown) = (CancellationToken::new(), TaskTracker::new(), CancellationToken::new());
        let directory = Arc::new(ArcSwap::from_pointee(directory));
        let urls = Arc::new(ServerUrls::new(&config, address).unwrap());
        let state = AppState {
            calls: calls.clone(),
            door: Door::new(desk(directory.clone(), urls.clone()), 120, false),
            directory,
            tokens: Arc::new(tokens),
            urls,
            proxies: Arc::new(TrustedProxies::new(&config).unwrap()),
            media,
            render_metrics: Arc::new(|| "offhook_calls_active 0\n".into()),
            draining: draining.clone(),
            sockets: sockets.clone(),
        };
        let serving = tokio::spawn(offhook::http::serve(listener, router(state), shutdown.clone()));
        let base = public_url.map_or_else(|| format!("http://{address}"), str::to_owned);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { address, base, calls, started, seen, draining, sockets, shutdown, serving, client }
    }

    fn voice_path(&self) -> String {
        format!("/webhooks/twilio/{INTEGRATION}/voice")
    }

    /// Posts a form with the signature that Twilio would make for `signed_path`.
    async fn post(&self, path: &str, fields: &[(&str, &str)]) -> reqwest::Response {
        let pairs: Vec<_> = fields.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let signature = sign(&auth_token(), &format!("{}{path}", self.base), &pairs);
        self.post_signed(path, fields, Some(&signature)).await
    }

    async fn post_signed(&self, path: &str, fields: &[(&str, &str)], signature: Option<&str>) -> reqwest::Response {
        let mut request = self.client.post(format!("http://{}{path}", self.address)).form(fields);
        if let Some(signature) = signature {
            request = request.header("X-Twilio-Signature", signature);
        }
        soon("webhook", request.send()).await.unwrap()
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        soon("get", self.client.get(format!("http://{}{path}", self.address)).send()).await.unwrap()
    }

    /// A good voice webhook; answers the stream URL of its TwiML.
    async fn offer(&self) -> String {
        let response = self.post(&self.voice_path(), &call(&[])).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/xml"));
        let xml = response.text().await.unwrap();
        let (_, after) = xml.split_once("<Stream url=\"").unwrap_or_else(|| panic!("no stream in {xml}"));
        after.split_once('"').unwrap().0.to_owned()
    }

    /// Opens the websocket that a TwiML names, signed as Twilio does.
    async fn connect(&self, stream_url: &str) -> Result<Twilio, StatusCode> {
        self.connect_signed(stream_url, Some(&sign(&auth_token(), stream_url, &[]))).await
    }

    async fn connect_signed(&self, stream_url: &str, signature: Option<&str>) -> Result<Twilio, StatusCode> {
        let path = &stream_url[stream_url.find("/media/").expect("a media path")..];
        let mut request = format!("ws://{}{path}", self.address).into_client_request().unwrap();
        if let Some(signature) = signature {
            request.headers_mut().insert("x-twilio-signature", HeaderValue::from_str(signature).unwrap());
        }
        match soon("handshake", tokio_tungstenite::connect_async(request)).await {
            Ok((socket, _)) => Ok(Twilio { socket, sequence: 0, chunk: 0 }),
            Err(tungstenite::Error::Http(response)) => Err(response.status()),
            Err(error) => panic!("{error}"),
        }
    }

    /// A call that is up.
    async fn call(&mut self) -> Twilio {
        let url = self.offer().await;
        let mut twilio = self.connect(&url).await.unwrap();
        twilio.begin(CALL).await;
        soon("the call's start", self.started.recv()).await.unwrap();
        twilio
    }

    async fn ended(&mut self) -> CallEnd {
        loop {
            match soon("the call's end", self.seen.recv()).await.unwrap() {
                LegEvent::Ended(end) => return end,
                _ => continue,
            }
        }
    }

    async fn next_seen(&mut self) -> LegEvent {
        soon("an event", self.seen.recv()).await.unwrap()
    }

    /// Stops the server; nothing of it may be left.
    async fn stop(self) {
        self.shutdown.cancel();
        soon("the server's end", self.serving).await.unwrap().unwrap();
        self.sockets.close();
        soon("the sockets' end", self.sockets.wait()).await;
        self.calls.tasks.close();
        soon("the calls' end", self.calls.tasks.wait()).await;
    }
}

/// The fields of a voice webhook, some of them replaced.
fn call<'a>(replaced: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut fields = vec![
        ("CallSid", CALL),
        ("AccountSid", ACCOUNT),
        ("From", CALLER),
        ("To", OURS),
        ("CallStatus", "ringing"),
        ("Direction", "inbound"),
        ("FromCity", ""),
    ];
    for &(name, value) in replaced {
        match fields.iter_mut().find(|(field, _)| *field == name) {
            Some(field) => field.1 = value,
            None => fields.push((name, value)),
        }
    }
    fields
}

/// Twilio's end of a media websocket.
struct Twilio {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    sequence: u64,
    chunk: u64,
}

impl Twilio {
    async fn say(&mut self, message: FromTwilio<'_>) {
        let mut text = String::new();
        message.write(&mut text);
        soon("sending", self.socket.send(Message::text(text))).await.unwrap();
    }

    async fn begin(&mut self, call_sid: &str) {
        self.say(FromTwilio::Connected { protocol: "Call".into(), version: "1.0.0".into() }).await;
        self.start(call_sid).await;
    }

    async fn start(&mut self, call_sid: &str) {
        let start = Start {
            stream_sid: STREAM.into(),
            account_sid: ACCOUNT.into(),
            call_sid: call_sid.to_owned().into(),
            tracks: vec!["inbound".into()],
            parameters: Default::default(),
            format: Some(MediaFormat::MULAW),
        };
        self.sequence += 1;
        self.say(FromTwilio::Start { sequence: Some(self.sequence), start }).await;
    }

    async fn media(&mut self, bytes: &[u8]) {
        let mut payload = String::new();
        encode_payload(bytes, &mut payload);
        let timestamp_ms = Some(self.chunk * 20);
        self.sequence += 1;
        self.chunk += 1;
        let media = Media { track: "inbound".into(), chunk: Some(self.chunk), timestamp_ms, payload: payload.into() };
        self.say(FromTwilio::Media { sequence: Some(self.sequence), stream_sid: STREAM.into(), media }).await;
    }

    async fn press(&mut self, digit: &'static str) {
        self.sequence += 1;
        let message =
            FromTwilio::Dtmf { sequence: Some(self.sequence), stream_sid: STREAM.into(), digit: digit.into() };
        self.say(message).await;
    }

    async fn echo_mark(&mut self, name: &str) {
        self.sequence += 1;
        let name = name.to_owned().into();
        self.say(FromTwilio::Mark { sequence: Some(self.sequence), stream_sid: STREAM.into(), name }).await;
    }

    async fn hang_up(&mut self) {
        self.say(FromTwilio::Stop {
            sequence: None,
            stream_sid: STREAM.into(),
            account_sid: ACCOUNT.into(),
            call_sid: CALL.into(),
        })
        .await;
    }

    async fn heard(&mut self) -> ToTwilio<'static> {
        loop {
            match soon("a message", self.socket.next()).await.expect("the socket is open").unwrap() {
                Message::Text(text) => {
                    return match ToTwilio::parse(&text).unwrap() {
                        ToTwilio::Media { stream_sid, payload } => {
                            ToTwilio::Media { stream_sid: owned(&stream_sid), payload: owned(&payload) }
                        }
                        ToTwilio::Mark { stream_sid, name } => {
                            ToTwilio::Mark { stream_sid: owned(&stream_sid), name: owned(&name) }
                        }
                        ToTwilio::Clear { stream_sid } => ToTwilio::Clear { stream_sid: owned(&stream_sid) },
                        ToTwilio::Unknown { event } => panic!("{event}"),
                    };
                }
                Message::Ping(_) | Message::Pong(_) => continue,
                other => panic!("{other:?}"),
            }
        }
    }

    async fn mark_name(&mut self) -> String {
        match self.heard().await {
            ToTwilio::Mark { name, .. } => name.into_owned(),
            other => panic!("{other:?}"),
        }
    }

    /// Reads to the end of the socket; the code of the server's close, if it said one.
    async fn closed(&mut self) -> Option<u16> {
        let mut code = None;
        soon("the close", async {
            while let Some(Ok(message)) = self.socket.next().await {
                if let Message::Close(frame) = message {
                    code = frame.map(|frame| frame.code.into());
                }
            }
        })
        .await;
        code
    }
}

fn owned(text: &str) -> std::borrow::Cow<'static, str> {
    text.to_owned().into()
}

#[tokio::test]
async fn a_call_comes_in_is_heard_and_answered() {
    let mut server = Server::start().await;
    let url = server.offer().await;
    assert!(url.starts_with(&format!("ws://{}/media/twilio/", server.address)), "{url}");
    let mut twilio = server.connect(&url).await.unwrap();
    twilio.begin(CALL).await;
    let setup = soon("the call's start", server.started.recv()).await.unwrap();
    assert_eq!((setup.provider_call.as_str(), setup.company.as_str(), setup.provider), (CALL, "Acme", "twilio"));
    assert_eq!((setup.from.as_str(), setup.to.as_str()), (CALLER, OURS));
    assert_eq!(setup.agent.name, "Front desk");

    for tone in [0x11, 0x22, 0x33] {
        twilio.media(&[tone; 160]).await;
        let ToTwilio::Media { stream_sid, payload } = twilio.heard().await else { panic!("no audio") };
        assert_eq!(stream_sid, STREAM);
        let mut bytes = Vec::new();
        assert!(decode_payload(&payload, &mut bytes));
        assert_eq!(bytes, [tone; 160]);
    }
    twilio.hang_up().await;
    assert_eq!(server.ended().await, CallEnd::new(Party::Caller, EndReason::HungUp));
    assert_eq!(twilio.closed().await, Some(1000));
    server.stop().await;
}

#[tokio::test]
async fn behind_a_public_url_the_stream_is_secure_and_signatures_are_checked_over_that_url() {
    let public = "https://voice.example.com/offhook";
    let mut server = Server::start_with(MediaTokens::default(), Some(public), TwilioWsConfig::default()).await;
    let url = server.offer().await;
    assert!(url.starts_with("wss://voice.example.com/offhook/media/twilio/"), "{url}");
    let local = url.replace("wss://voice.example.com/offhook", &format!("ws://{}", server.address));
    let forged = server.connect_signed(&url, Some(&sign(&auth_token(), &local, &[]))).await;
    assert_eq!(forged.err(), Some(StatusCode::FORBIDDEN));
    let mut twilio = server.connect(&url).await.unwrap();
    twilio.begin(CALL).await;
    soon("the call's start", server.started.recv()).await.unwrap();
    drop(twilio);
    server.stop().await;
}

#[tokio::test]
async fn a_webhook_that_twilio_did_not_sign_is_refused() {
    let server = Server::start().await;
    let path = server.voice_path();
    let problem = async |response: reqwest::Response, status: StatusCode| {
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let body: serde_json::Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!(body["status"], status.as_u16());
    };
    problem(server.post_signed(&path, &call(&[]), None).await, StatusCode::BAD_REQUEST).await;
    problem(server.post_signed(&path, &call(&[]), Some("WRONG_SIGNATURE")).await, StatusCode::FORBIDDEN).await;
    let other_token = sign(&"54321".into(), &format!("{}{path}", server.base), &[]);
    problem(server.post_signed(&path, &[], Some(&other_token)).await, StatusCode::FORBIDDEN).await;
    let other_account = call(&[("AccountSid", "AC00000000000000000000000000000002")]);
    problem(server.post(&path, &other_account).await, StatusCode::FORBIDDEN).await;
    problem(server.post(&path, &call(&[("CallSid", "")])).await, StatusCode::BAD_REQUEST).await;
    let unknown = format!("/webhooks/twilio/{}/voice", Uuid::from_u128(7));
    problem(server.post(&unknown, &call(&[])).await, StatusCode::NOT_FOUND).await;
    problem(server.post("/webhooks/twilio/main/voice", &call(&[])).await, StatusCode::NOT_FOUND).await;
    problem(server.get(&path).await, StatusCode::METHOD_NOT_ALLOWED).await;
    problem(server.get("/nowhere").await, StatusCode::NOT_FOUND).await;
    let large = "x".repeat(70_000);
    problem(server.post(&path, &call(&[("Extra", &large)])).await, StatusCode::PAYLOAD_TOO_LARGE).await;
    let text = server.client.post(format!("http://{}{path}", server.address)).header("Content-Type", "text/plain");
    let text = text.header("X-Twilio-Signature", other_token).body("CallSid=CA1").send();
    problem(soon("text", text).await.unwrap(), StatusCode::UNSUPPORTED_MEDIA_TYPE).await;
    server.stop().await;
}

#[tokio::test]
async fn a_call_that_cannot_be_taken_gets_an_answer_in_twiml() {
    let server = Server::start().await;
    let path = server.voice_path();
    let answer = async |fields: &[(&str, &str)]| {
        let response = server.post(&path, fields).await;
        assert_eq!(response.status(), StatusCode::OK);
        response.text().await.unwrap()
    };
    let unknown = answer(&call(&[("To", "+15550009999")])).await;
    assert!(unknown.contains("<Say") && unknown.contains("<Hangup/>"), "{unknown}");
    // The number that Twilio dials from for us is ours.
    let outbound = answer(&call(&[("Direction", "outbound-api"), ("From", OURS), ("To", CALLER)])).await;
    assert!(outbound.contains("<Stream"), "{outbound}");
    server.calls.refusing.store(true, Ordering::Relaxed);
    let full = answer(&call(&[])).await;
    assert!(full.contains("<Reject reason=\"busy\"/>"), "{full}");
    assert_eq!(server.get("/readyz").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    server.calls.refusing.store(false, Ordering::Relaxed);
    assert_eq!(server.get("/readyz").await.status(), StatusCode::OK);
    server.draining.cancel();
    let draining = answer(&call(&[])).await;
    assert!(draining.contains("<Reject reason=\"busy\"/>"), "{draining}");
    assert_eq!(server.get("/readyz").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(server.get("/healthz").await.status(), StatusCode::OK);
    assert_eq!(server.get("/metrics").await.text().await.unwrap(), "offhook_calls_active 0\n");
    server.stop().await;
}

#[tokio::test]
async fn a_voice_webhook_that_comes_twice_is_about_one_call() {
    let server = Server::start().await;
    let path = server.voice_path();
    let id = async |fields: &[(&str, &str)]| {
        let twiml = server.post(&path, fields).await.text().await.unwrap();
        let (_, rest) = twiml.split_once("name=\"call_id\" value=\"").unwrap();
        rest.split('"').next().unwrap().to_owned()
    };
    let first = id(&call(&[])).await;
    assert_eq!(id(&call(&[])).await, first);
    assert_ne!(id(&call(&[("CallSid", "CA00000000000000000000000000000002")])).await, first);
    server.stop().await;
}

#[tokio::test]
async fn status_and_stream_callbacks_are_taken_when_signed() {
    let server = Server::start().await;
    for (route, more) in [
        ("status", vec![("CallStatus", "completed"), ("CallDuration", "12")]),
        ("stream", vec![("StreamSid", STREAM), ("StreamEvent", "stream-error"), ("StreamError", "handshake failed")]),
        ("stream", vec![("StreamSid", STREAM), ("StreamEvent", "stream-started")]),
    ] {
        let path = format!("/webhooks/twilio/{INTEGRATION}/{route}");
        assert_eq!(server.post(&path, &call(&more)).await.status(), StatusCode::OK);
        assert_eq!(server.post_signed(&path, &call(&more), Some("x")).await.status(), StatusCode::FORBIDDEN);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_handshake_without_a_good_token_and_signature_gets_403() {
    let server = Server::start().await;
    let url = server.offer().await;
    let forbidden = Some(StatusCode::FORBIDDEN);
    assert_eq!(server.connect_signed(&url, None).await.err(), forbidden);
    assert_eq!(server.connect_signed(&url, Some("WRONG_SIGNATURE")).await.err(), forbidden);
    assert_eq!(server.connect_signed(&url, Some(&sign(&"54321".into(), &url, &[]))).await.err(), forbidden);
    let other = if url.ends_with('A') { 'B' } else { 'A' };
    assert_eq!(server.connect(&format!("{}{other}", &url[..url.len() - 1])).await.err(), forbidden);
    assert_eq!(server.get("/media/twilio/abc").await.status(), StatusCode::FORBIDDEN);
    // None of these has spent the token; the first good handshake does.
    let twilio = server.connect(&url).await.unwrap();
    assert_eq!(server.connect(&url).await.err(), forbidden);
    drop(twilio);
    server.stop().await;
}

#[tokio::test]
async fn of_many_handshakes_with_one_token_exactly_one_gets_through() {
    let server = Server::start().await;
    let url = server.offer().await;
    let tries = futures::future::join_all((0..16).map(|_| server.connect(&url))).await;
    assert_eq!(tries.iter().filter(|opened| opened.is_ok()).count(), 1);
    drop(tries);
    server.stop().await;
}

#[tokio::test]
async fn an_expired_token_gets_403() {
    let tokens = MediaTokens::new(Duration::ZERO, 10);
    let server = Server::start_with(tokens, None, TwilioWsConfig::default()).await;
    let url = server.offer().await;
    assert_eq!(server.connect(&url).await.err(), Some(StatusCode::FORBIDDEN));
    server.stop().await;
}

#[tokio::test]
async fn more_calls_than_tokens_are_refused_in_twiml() {
    let tokens = MediaTokens::new(MediaTokens::LIFE, 1);
    let server = Server::start_with(tokens, None, TwilioWsConfig::default()).await;
    server.offer().await;
    let full = server.post(&server.voice_path(), &call(&[])).await.text().await.unwrap();
    assert!(full.contains("<Reject reason=\"busy\"/>"), "{full}");
    server.stop().await;
}

#[tokio::test]
async fn a_stream_of_another_call_is_closed() {
    let mut server = Server::start().await;
    let url = server.offer().await;
    let mut twilio = server.connect(&url).await.unwrap();
    twilio.begin("CA00000000000000000000000000000002").await;
    assert_eq!(twilio.closed().await, Some(1008));
    assert!(server.started.try_recv().is_err());
    server.stop().await;
}

#[tokio::test]
async fn a_call_that_is_refused_late_closes_the_stream() {
    let mut server = Server::start().await;
    let url = server.offer().await;
    server.calls.refusing.store(true, Ordering::Relaxed);
    let mut twilio = server.connect(&url).await.unwrap();
    twilio.begin(CALL).await;
    assert_eq!(twilio.closed().await, Some(1013));
    assert!(server.started.try_recv().is_err());
    server.stop().await;
}

#[tokio::test]
async fn media_before_start_closes_the_socket() {
    let mut server = Server::start().await;
    let url = server.offer().await;
    let mut twilio = server.connect(&url).await.unwrap();
    twilio.media(&[0xFF; 160]).await;
    assert_eq!(twilio.closed().await, Some(1002));
    assert!(server.started.try_recv().is_err());
    server.stop().await;
}

#[tokio::test]
async fn a_socket_that_never_starts_is_closed() {
    let media = TwilioWsConfig { start_limit: Duration::from_millis(50), ..TwilioWsConfig::default() };
    let server = Server::start_with(MediaTokens::default(), None, media).await;
    let url = server.offer().await;
    let mut twilio = server.connect(&url).await.unwrap();
    assert_eq!(twilio.closed().await, Some(1002));
    server.stop().await;
}

#[tokio::test]
async fn a_message_of_ten_megabytes_ends_the_call_and_nothing_else() {
    let mut server = Server::start().await;
    let mut twilio = server.call().await;
    // The server may close before it has read all of it: sending may fail.
    let _ = soon("sending", twilio.socket.send(Message::text("x".repeat(10_000_000)))).await;
    assert_eq!(server.ended().await, CallEnd::new(Party::Carrier, EndReason::ProtocolError));
    twilio.closed().await;
    let mut next = server.call().await;
    next.media(&[0x11; 160]).await;
    assert!(matches!(next.heard().await, ToTwilio::Media { .. }));
    drop(next);
    server.stop().await;
}

#[tokio::test]
async fn a_second_start_ends_the_call() {
    let mut server = Server::start().await;
    let mut twilio = server.call().await;
    twilio.start(CALL).await;
    assert_eq!(server.ended().await, CallEnd::new(Party::Carrier, EndReason::ProtocolError));
    assert_eq!(twilio.closed().await, Some(1002));
    server.stop().await;
}

#[tokio::test]
async fn rubbish_is_survived() {
    let mut server = Server::start().await;
    let mut twilio = server.call().await;
    for rubbish in ["{", "[]", r#"{"event":"weather"}"#, r#"{"event":"media","media":{"payload":"%"}}"#] {
        soon("sending", twilio.socket.send(Message::text(rubbish))).await.unwrap();
    }
    soon("sending", twilio.socket.send(Message::binary(vec![0; 10]))).await.unwrap();
    soon("sending", twilio.socket.send(Message::Ping(vec![1].into()))).await.unwrap();
    twilio.media(&[0x11; 160]).await;
    assert!(matches!(twilio.heard().await, ToTwilio::Media { .. }));
    drop(twilio);
    server.stop().await;
}

#[tokio::test]
async fn a_socket_that_breaks_ends_the_call() {
    let mut server = Server::start().await;
    let twilio = server.call().await;
    // Gone without a close frame.
    drop(twilio);
    assert_eq!(server.ended().await, CallEnd::new(Party::Carrier, EndReason::ConnectionLost));
    server.stop().await;
}

#[tokio::test]
async fn a_mark_that_was_cleared_is_never_said_to_be_played() {
    let mut server = Server::start().await;
    let mut twilio = server.call().await;
    twilio.press("1").await;
    let first = twilio.mark_name().await;
    twilio.press("1").await;
    let second = twilio.mark_name().await;
    twilio.echo_mark(&first).await;
    twilio.press("#").await;
    assert!(matches!(twilio.heard().await, ToTwilio::Clear { .. }));
    twilio.press("1").await;
    let third = twilio.mark_name().await;
    // Twilio echoes what a clear overtook, and what is played later.
    twilio.echo_mark(&second).await;
    twilio.echo_mark(&third).await;
    twilio.hang_up().await;
    let mut played = Vec::new();
    loop {
        match server.next_seen().await {
            LegEvent::Played { mark } => played.push(mark),
            LegEvent::Ended(end) => {
                assert_eq!(end, CallEnd::new(Party::Caller, EndReason::HungUp));
                break;
            }
            _ => {}
        }
    }
    assert_eq!(played, [1, 3]);
    twilio.closed().await;
    server.stop().await;
}

#[tokio::test]
async fn when_we_hang_up_the_socket_is_closed_normally() {
    let mut server = Server::start().await;
    let mut twilio = server.call().await;
    server.calls.hangup.lock().unwrap().take().expect("a call is up").cancel();
    assert_eq!(twilio.closed().await, Some(1000));
    server.stop().await;
}

#[tokio::test]
async fn a_long_payload_is_echoed_whole_and_in_order() {
    let mut server = Server::start().await;
    let mut twilio = server.call().await;
    let sound: Vec<u8> = (0..1000).map(|i| (i % 251) as u8).collect();
    twilio.media(&sound).await;
    let mut echoed = Vec::new();
    while echoed.len() < sound.len() {
        let ToTwilio::Media { payload, .. } = twilio.heard().await else { panic!("no audio") };
        let mut bytes = Vec::new();
        assert!(decode_payload(&payload, &mut bytes));
        assert!(Packet::new(Codec::Pcmu, MediaTime::ZERO, &bytes).is_some_and(|packet| packet.payload().len() <= 160));
        echoed.extend(bytes);
    }
    assert_eq!(echoed, sound);
    drop(twilio);
    server.stop().await;
}

/// Every task that calls made is gone when they are over, whichever way they ended.
#[tokio::test]
async fn no_task_is_left_behind() {
    let mut server = Server::start().await;
    let tasks = tokio::runtime::Handle::current().metrics();
    drop(server.call().await);
    server.ended().await;
    for round in 0..5 {
        let mut twilio = server.call().await;
        match round {
            0 => twilio.hang_up().await,
            1 => twilio.start(CALL).await,
            2 => server.calls.hangup.lock().unwrap().take().expect("a call is up").cancel(),
            3 => soon("close", twilio.socket.close(None)).await.unwrap(),
            _ => {}
        }
        if round < 4 {
            twilio.closed().await;
        }
        drop(twilio);
    }
    let (sockets, calls) = (server.sockets.clone(), server.calls.clone());
    server.stop().await;
    assert!(sockets.is_empty() && calls.tasks.is_empty());
    // What hyper and reqwest spawned for their connections ends with these.
    soon("the last task", async {
        while tasks.num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
