//! One simulated caller: plays Twilio's part on a real websocket, replays a fixture's turns, and measures what it
//! hears. Open loop: frame n leaves n·20 ms after the start whatever the server does, and its lateness is recorded. The
//! caller with a telephone is in `sip.rs`.

use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::load::ear::Ear;
use crate::load::fixture::{Ender, Fixture, PER_MS};
use crate::load::measure::{Figures, measure, ms};
use crate::load::message::{self, FromServer, MessageError, Writer};
use crate::load::mouth::{FRAME_LEN, Mouth};
use crate::load::rtp::RtpFigures;
use crate::load::sign::sign;
use crate::load::sip::{self, SipWay};
use crate::load::ulaw;
use crate::load::webhook::{self, Dialled, StreamTwiml};

/// The largest message taken from a server.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// A server that takes no bytes for so long is stuck.
const SEND_LIMIT: Duration = Duration::from_secs(2);
/// How long a goodbye may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// Messages of a server that are no messages of the protocol, before the call is given up.
const MAX_FAULTS: u32 = 10;
/// How long a caller that expects the agent to hang up waits for it.
const AGENT_HANGS_UP: u64 = 10_000 * PER_MS;
/// The same for a caller that has said nothing at all: the agent asks twice before it gives up.
const AGENT_GIVES_UP: u64 = 60_000 * PER_MS;
/// A caller that hangs up itself does so after this silence; one without an opinion after two seconds.
const CALLER_HANGS_UP: u64 = 700 * PER_MS;
const NOBODY_HANGS_UP: u64 = 2_000 * PER_MS;

/// How the caller gets in.
#[derive(Clone)]
pub enum Way {
    /// The media endpoint itself; with a token the handshake is signed.
    Ws { url: String, parameters: Vec<(String, String)>, auth_token: Option<SecretString> },
    /// A signed voice webhook first, then the stream that its TwiML names.
    Webhook { url: String, auth_token: SecretString, client: reqwest::Client },
    /// A telephone: INVITE, then RTP.
    Sip(Box<SipWay>),
}

#[derive(Clone)]
pub struct CallerConfig {
    pub way: Way,
    pub fixture: Arc<Fixture>,
    pub account_sid: String,
    pub from: String,
    pub to: String,
    /// Ids that somebody else has made; otherwise the caller makes its own.
    pub call_sid: Option<String>,
    pub stream_sid: Option<String>,
    /// Keep the samples of both directions (32 KB a second of call).
    pub record: bool,
    /// For the webhook and the handshake, each; for an INVITE until it is answered.
    pub connect_limit: Duration,
    /// Silence of both sides after which the call is given up as unanswered.
    pub reply_limit: Duration,
    /// The longest call. Zero: a telephone hangs up as soon as it is answered, and all is well.
    pub call_limit: Duration,
    /// What happens, as it happens; a full channel loses events.
    pub events: Option<mpsc::Sender<CallerEvent>>,
    /// Makes the caller hang up.
    pub hang_up: CancellationToken,
}

impl CallerConfig {
    /// A caller of `fixture` with Twilio-like identities and ordinary limits.
    pub fn new(way: Way, fixture: Arc<Fixture>) -> Self {
        Self {
            way,
            fixture,
            account_sid: format!("AC{}", "0".repeat(32)),
            from: "+15550002222".into(),
            to: "+15550001111".into(),
            call_sid: None,
            stream_sid: None,
            record: false,
            connect_limit: Duration::from_secs(5),
            reply_limit: Duration::from_secs(15),
            call_limit: Duration::from_secs(300),
            events: None,
            hang_up: CancellationToken::new(),
        }
    }
}

/// What a caller tells while it runs. Times are milliseconds since the stream's start.
#[derive(Clone, Debug, PartialEq)]
pub enum CallerEvent {
    /// The stream runs, or the call was answered.
    Connected { call_sid: String },
    /// A turn of the fixture (counted from 0) began to play.
    TurnBegan { turn: usize, at_ms: u64 },
}

/// How a call ended, seen from the caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "cause", content = "detail")]
pub enum Ending {
    /// The server closed the stream after the caller had said everything.
    AgentHungUp,
    /// The caller hung up in the end.
    CallerHungUp,
    /// Somebody made the caller hang up.
    Cancelled,
    /// The server closed the stream before this turn was said.
    HungUpEarly {
        turn: usize,
    },
    /// Nothing was answered to this turn (0: no greeting).
    NoReply {
        turn: usize,
    },
    WebhookFailed(String),
    ConnectFailed(String),
    ConnectionLost(String),
    /// The server sent what Twilio would not take.
    ProtocolError(String),
    /// The server read nothing for two seconds.
    Stuck,
    TimeLimit,
}

impl Ending {
    pub fn label(&self) -> &'static str {
        match self {
            Ending::AgentHungUp => "agent_hung_up",
            Ending::CallerHungUp => "caller_hung_up",
            Ending::Cancelled => "cancelled",
            Ending::HungUpEarly { .. } => "hung_up_early",
            Ending::NoReply { .. } => "no_reply",
            Ending::WebhookFailed(_) => "webhook_failed",
            Ending::ConnectFailed(_) => "connect_failed",
            Ending::ConnectionLost(_) => "connection_lost",
            Ending::ProtocolError(_) => "protocol_error",
            Ending::Stuck => "stuck",
            Ending::TimeLimit => "time_limit",
        }
    }

    pub fn is_failure(&self) -> bool {
        !matches!(self, Ending::AgentHungUp | Ending::CallerHungUp | Ending::Cancelled)
    }
}

/// Both directions of a call on one time axis, 8 kHz: what the caller sent and what it heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    pub caller: Vec<i16>,
    pub agent: Vec<i16>,
}

/// One call, measured from outside.
#[derive(Clone, Debug, Serialize)]
pub struct CallerReport {
    pub fixture: String,
    pub call_sid: String,
    pub ending: Ending,
    /// From the first attempt to the open stream, or to the answered call.
    pub connect_ms: Option<f64>,
    /// By SIP: from the INVITE to its 200.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invite_ms: Option<f64>,
    /// By SIP: what the packets say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtp: Option<RtpFigures>,
    /// Of the stream.
    pub duration_ms: f64,
    #[serde(flatten)]
    pub figures: Figures,
    /// Messages that Twilio would not know, audio and marks that the carrier's buffer could not take.
    pub unknown_messages: u64,
    pub dropped_samples: u64,
    pub dropped_marks: u64,
    /// How late each frame left, microseconds.
    #[serde(skip)]
    pub lateness_us: Vec<u32>,
    #[serde(skip)]
    pub recording: Option<Recording>,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A client for webhooks: the process-wide TLS provider is set, redirects are not followed (Twilio would, but a
/// webhook that redirects is a fault of the set-up).
pub fn http_client() -> reqwest::Result<reqwest::Client> {
    // An error means that one is set already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()
}

impl CallerReport {
    /// A call that never was.
    pub(crate) fn unconnected(config: &CallerConfig, call_sid: String, ending: Ending) -> Self {
        Self {
            fixture: config.fixture.name.clone(),
            call_sid,
            ending,
            connect_ms: None,
            invite_ms: None,
            rtp: None,
            duration_ms: 0.0,
            figures: Figures::default(),
            unknown_messages: 0,
            dropped_samples: 0,
            dropped_marks: 0,
            lateness_us: Vec::new(),
            recording: None,
        }
    }
}

/// Places the call and sees it through. Always comes back: everything in it has a time limit.
pub async fn call(config: CallerConfig) -> CallerReport {
    let began = Instant::now();
    let call_sid = config.call_sid.clone().unwrap_or_else(|| format!("CA{}", Uuid::new_v4().simple()));
    let found = match &config.way {
        Way::Sip(way) => return sip::call(&config, way, call_sid).await,
        Way::Ws { url, parameters, auth_token } => {
            Ok((StreamTwiml { url: url.clone(), parameters: parameters.clone() }, auth_token.as_ref()))
        }
        Way::Webhook { url, auth_token, client } => {
            let dialled = Dialled {
                account_sid: config.account_sid.clone(),
                call_sid: call_sid.clone(),
                from: config.from.clone(),
                to: config.to.clone(),
            };
            let posted = webhook::post(client, url, auth_token, &dialled, config.connect_limit).await;
            posted.map(|stream| (stream, Some(auth_token))).map_err(|error| Ending::WebhookFailed(error.to_string()))
        }
    };
    let connected = match found {
        Ok((stream, auth_token)) => connect(&config, stream, auth_token).await,
        Err(ending) => Err(ending),
    };
    match connected {
        Ok((socket, parameters)) => {
            let connect_ms = began.elapsed().as_secs_f64() * 1_000.0;
            let mut report = Line::new(&config, &call_sid, socket).run(&config, &parameters).await;
            report.connect_ms = Some(connect_ms);
            report
        }
        Err(ending) => CallerReport::unconnected(&config, call_sid, ending),
    }
}

async fn connect(
    config: &CallerConfig,
    stream: StreamTwiml,
    auth_token: Option<&SecretString>,
) -> Result<(Socket, Vec<(String, String)>), Ending> {
    let failed = |detail: &str| Ending::ConnectFailed(detail.into());
    let mut request =
        stream.url.as_str().into_client_request().map_err(|_| failed("the stream's URL is not a websocket URL"))?;
    if let Some(auth_token) = auth_token {
        let signature = sign(auth_token.expose_secret(), &stream.url, &[]);
        let signature = HeaderValue::from_str(&signature).map_err(|_| failed("the signature is no header value"))?;
        request.headers_mut().insert("x-twilio-signature", signature);
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let limits = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    match timeout(config.connect_limit, connect_async_with_config(request, Some(limits), true)).await {
        Ok(Ok((socket, _))) => Ok((socket, stream.parameters)),
        // The URL may hold a token: only the status is told.
        Ok(Err(WsError::Http(response))) => Err(failed(&format!("status {}", response.status().as_u16()))),
        Ok(Err(WsError::Io(error))) => Err(failed(&error.kind().to_string())),
        Ok(Err(error)) => Err(failed(&error.to_string())),
        Err(_) => Err(failed("no handshake in time")),
    }
}

/// A call that is connected.
struct Line {
    socket: Socket,
    started: Instant,
    writer: Writer,
    ear: Ear,
    mouth: Mouth,
    frames: u64,
    lateness_us: Vec<u32>,
    unknown_messages: u64,
    faults: u32,
    reached: Vec<String>,
    codes: Vec<u8>,
    outgoing: Vec<String>,
}

impl Line {
    fn new(config: &CallerConfig, call_sid: &str, socket: Socket) -> Self {
        let stream_sid = config.stream_sid.clone().unwrap_or_else(|| format!("MZ{}", Uuid::new_v4().simple()));
        Self {
            socket,
            started: Instant::now(),
            writer: Writer::new(stream_sid, call_sid.into(), config.account_sid.clone()),
            ear: Ear::new(config.record),
            mouth: Mouth::new(Arc::clone(&config.fixture), config.record),
            frames: 0,
            lateness_us: Vec::new(),
            unknown_messages: 0,
            faults: 0,
            reached: Vec::new(),
            codes: Vec::with_capacity(FRAME_LEN as usize),
            outgoing: Vec::new(),
        }
    }

    async fn run(mut self, config: &CallerConfig, parameters: &[(String, String)]) -> CallerReport {
        let call_sid = self.writer.call_sid().to_string();
        self.outgoing.push(self.writer.connected());
        let start = self.writer.start(parameters);
        self.outgoing.push(start);
        let ending = match self.send().await {
            Ok(()) => {
                self.started = Instant::now();
                tell(config, CallerEvent::Connected { call_sid: call_sid.clone() });
                self.talk(config).await
            }
            Err(ending) => ending,
        };
        let end = self.samples(Instant::now());
        self.ear.advance(end, &mut self.reached);
        self.close().await;

        let (played, caller) = self.mouth.finish();
        let (heard, agent) = self.ear.finish();
        CallerReport {
            fixture: config.fixture.name.clone(),
            call_sid,
            ending,
            connect_ms: None,
            invite_ms: None,
            rtp: None,
            duration_ms: ms(end),
            figures: measure(&config.fixture, &played, &heard, end),
            unknown_messages: self.unknown_messages,
            dropped_samples: heard.dropped_samples,
            dropped_marks: heard.dropped_marks,
            lateness_us: self.lateness_us,
            recording: caller.zip(agent).map(|(caller, agent)| Recording { caller, agent }),
        }
    }

    /// From the first frame to the reason why there is no further one.
    async fn talk(&mut self, config: &CallerConfig) -> Ending {
        loop {
            let deadline = self.deadline();
            tokio::select! {
                biased;
                () = config.hang_up.cancelled() => return Ending::Cancelled,
                () = sleep_until(deadline) => self.on_time(Instant::now(), config),
                message = self.socket.next() => {
                    let now = self.samples(Instant::now());
                    self.ear.advance(now, &mut self.reached);
                    if let Some(ending) = self.on_message(message) {
                        return ending;
                    }
                }
            }
            for name in self.reached.drain(..) {
                self.outgoing.push(self.writer.mark(&name));
            }
            if let Err(ending) = self.send().await {
                return ending;
            }
            if let Some(ending) = is_over(config, &self.mouth, &self.ear) {
                return ending;
            }
        }
    }

    /// When there is something to do: the next frame, or the next mark to be sent back.
    fn deadline(&self) -> Instant {
        let next = (self.frames + 1) * FRAME_LEN;
        let next = self.ear.next_mark_at().map_or(next, |mark| mark.min(next));
        self.started + Duration::from_micros(next * 1_000 / PER_MS)
    }

    /// Sends every frame that is due; each is composed from what the ear had heard at the time it was due.
    fn on_time(&mut self, now: Instant, config: &CallerConfig) {
        let at = self.samples(now);
        while (self.frames + 1) * FRAME_LEN <= at {
            let from = self.frames * FRAME_LEN;
            let due = from + FRAME_LEN;
            self.ear.advance(due, &mut self.reached);
            let (frame, began) = self.mouth.frame(from, &self.ear);
            self.codes.clear();
            self.codes.extend(frame.iter().map(|sample| ulaw::encode(*sample)));
            self.outgoing.push(self.writer.media(from / PER_MS, &self.codes));
            let late = now.saturating_duration_since(self.started + Duration::from_micros(due * 1_000 / PER_MS));
            self.lateness_us.push(late.as_micros().min(u128::from(u32::MAX)) as u32);
            self.frames += 1;
            if let Some(turn) = began {
                let keys = config.fixture.turns.get(turn).map_or("", |turn| &turn.keys);
                self.outgoing.extend(keys.chars().map(|key| self.writer.dtmf(key)));
                tell(config, CallerEvent::TurnBegan { turn, at_ms: from / PER_MS });
            }
        }
        self.ear.advance(at, &mut self.reached);
    }

    fn on_message(&mut self, message: Option<Result<Message, WsError>>) -> Option<Ending> {
        match message {
            Some(Ok(Message::Text(text))) => match message::read(&text, self.writer.stream_sid()) {
                Ok(FromServer::Media(codes)) => self.ear.append(&codes),
                Ok(FromServer::Mark(name)) => self.ear.mark(name, &mut self.reached),
                Ok(FromServer::Clear) => self.ear.clear(&mut self.reached),
                Ok(FromServer::Unknown(_)) => self.unknown_messages += 1,
                Err(error) => return self.on_fault(&error),
            },
            Some(Ok(Message::Binary(_))) => {
                return self.on_fault(&MessageError::Malformed("a binary message".into()));
            }
            Some(Ok(Message::Close(_))) | Some(Err(WsError::ConnectionClosed)) | None => {
                return Some(closed(&self.mouth));
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Err(error)) => return Some(Ending::ConnectionLost(error.to_string())),
        }
        None
    }

    fn on_fault(&mut self, error: &MessageError) -> Option<Ending> {
        self.faults += 1;
        (self.faults >= MAX_FAULTS).then(|| Ending::ProtocolError(error.to_string()))
    }

    /// Writes what is waiting.
    async fn send(&mut self) -> Result<(), Ending> {
        if self.outgoing.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + SEND_LIMIT;
        for message in self.outgoing.drain(..) {
            match timeout_at(deadline, self.socket.feed(Message::text(message))).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(lost(&self.mouth, error)),
                Err(_) => return Err(Ending::Stuck),
            }
        }
        match timeout_at(deadline, self.socket.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(lost(&self.mouth, error)),
            Err(_) => Err(Ending::Stuck),
        }
    }

    /// `stop` and a goodbye, where the server still listens.
    async fn close(&mut self) {
        let stop = self.writer.stop();
        let _ = timeout(CLOSE_LIMIT, async {
            self.socket.send(Message::text(stop)).await?;
            self.socket.close(None).await?;
            while let Some(Ok(_)) = self.socket.next().await {}
            Ok::<(), WsError>(())
        })
        .await;
    }

    fn samples(&self, now: Instant) -> u64 {
        samples_in(now.saturating_duration_since(self.started))
    }
}

/// Whether the caller hangs up now, and why.
pub(super) fn is_over(config: &CallerConfig, mouth: &Mouth, ear: &Ear) -> Option<Ending> {
    let now = ear.at();
    if now >= samples_in(config.call_limit) {
        return Some(Ending::TimeLimit);
    }
    if mouth.is_done()
        && let Some(silent) = mouth.agent_fell_silent(ear)
    {
        let patience = match config.fixture.expect.ended_by {
            Some(Ender::Agent) if config.fixture.turns.is_empty() => AGENT_GIVES_UP,
            Some(Ender::Agent) => AGENT_HANGS_UP,
            Some(Ender::Caller) => CALLER_HANGS_UP,
            None => NOBODY_HANGS_UP,
        };
        return (now >= silent + patience).then_some(Ending::CallerHungUp);
    }
    let stalled = mouth.stalled_since(ear)?;
    (now >= stalled + samples_in(config.reply_limit)).then(|| Ending::NoReply { turn: mouth.last_question() })
}

/// What it means that the server has closed.
pub(super) fn closed(mouth: &Mouth) -> Ending {
    if mouth.is_done() { Ending::AgentHungUp } else { Ending::HungUpEarly { turn: mouth.position() } }
}

/// A write that fails because the server has closed is its hanging up.
fn lost(mouth: &Mouth, error: WsError) -> Ending {
    match error {
        WsError::ConnectionClosed | WsError::AlreadyClosed => closed(mouth),
        error => Ending::ConnectionLost(error.to_string()),
    }
}

pub(super) fn samples_in(time: Duration) -> u64 {
    (time.as_micros() * u128::from(PER_MS) / 1_000) as u64
}

pub(super) fn tell(config: &CallerConfig, event: CallerEvent) {
    if let Some(events) = &config.events {
        // Onlookers only: a full channel loses the event.
        let _ = events.try_send(event);
    }
}
