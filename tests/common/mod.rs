//! A server with scripted engines and a simulated phone, joined by real sockets on loopback. The phone plays Twilio's
//! part: a signed webhook, then a media stream in real time.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::{SinkExt, StreamExt};
use offhook::agent::profile::{AgentProfile, EngineChoice, ModelChoice, VoiceChoice};
use offhook::app::App;
use offhook::call::engines::Engines;
use offhook::call::record::CallRecord;
use offhook::config::Config;
use offhook::media::frame::level_dbfs;
use offhook::media::g711;
use offhook::media::packet::Codec;
use offhook::protocol::twilio::message::{
    FromTwilio, Media, MediaFormat, Start, ToTwilio, decode_payload, encode_payload,
};
use offhook::providers::credentials::Credentials;
use offhook::providers::twilio::signature;
use offhook::speech::llm::LanguageModel;
use offhook::speech::scripted::{ScriptedConfig, ScriptedModel, ScriptedSynthesizer, ScriptedTranscriber};
use offhook::speech::stt::Transcriber;
use offhook::speech::tts::Synthesizer;
use offhook::speech::tts::cache::{CacheConfig, CachedSynthesizer};
use offhook::store::directory::{Directory, Integration, Line};
use secrecy::SecretString;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use uuid::Uuid;

pub const ACCOUNT: &str = "AC00000000000000000000000000000001";
pub const NUMBER: &str = "+15550001111";
pub const CALLER: &str = "+15550002222";
pub const TOKEN: &str = "12345";

/// Longest wait for anything in a test.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Engines of one test.
pub struct Cast {
    pub stt: Arc<dyn Transcriber>,
    pub tts: Arc<dyn Synthesizer>,
    pub llm: Arc<dyn LanguageModel>,
}

/// Quick scripted engines: recognition 30 ms, model 30 ms, speech 10 ms.
pub fn quick() -> ScriptedConfig {
    ScriptedConfig { stt_ms: 30, first_token_ms: 30, token_ms: 1, tts_ms: 10, char_ms: 50, ..ScriptedConfig::default() }
}

impl Cast {
    pub fn new(config: ScriptedConfig) -> Self {
        Self {
            stt: Arc::new(ScriptedTranscriber::new(config.clone())),
            tts: Arc::new(ScriptedSynthesizer::new(config.clone())),
            llm: Arc::new(ScriptedModel::new(config)),
        }
    }

    /// Under the name `scripted`, which is also what an agent gets that names none.
    pub fn engines(self) -> Engines {
        let name = || "scripted".to_owned();
        let mut engines = Engines::default();
        (engines.default_stt, engines.default_tts, engines.default_llm) = (name(), name(), name());
        engines.stt.insert(name(), self.stt);
        engines.tts.insert(name(), CachedSynthesizer::new(self.tts, CacheConfig::default()));
        engines.llm.insert(name(), self.llm);
        engines
    }
}

/// Of the account that the phone's webhooks come from.
pub fn credentials() -> Credentials {
    let values = [("account_sid", ACCOUNT), ("auth_token", TOKEN)];
    Credentials::from_stored(values.map(|(name, value)| (name.into(), value.into())).into())
}

pub struct Server {
    pub app: App,
    pub integration: Uuid,
    pub recordings: tempfile::TempDir,
}

impl Server {
    pub async fn start(cast: Cast, change: impl FnOnce(&mut Config, &mut AgentProfile)) -> Self {
        let recordings = tempfile::tempdir().expect("a temporary folder");
        let mut config = Config::default();
        config.server.listen = "127.0.0.1:0".parse().expect("an address");
        config.recording.enabled = true;
        config.recording.dir = recordings.path().into();
        config.telemetry.metrics = true;
        let mut agent = AgentProfile {
            name: "Front desk".into(),
            language: "en".into(),
            greeting: "Hello.".into(),
            prompt: String::new(),
            stt: EngineChoice { engine: "scripted".into() },
            tts: VoiceChoice { engine: "scripted".into(), ..VoiceChoice::default() },
            llm: ModelChoice { engine: "scripted".into(), ..ModelChoice::default() },
            workflow: None,
            tools: vec!["end_call".into(), "remember".into()],
            ..AgentProfile::default()
        };
        change(&mut config, &mut agent);
        let integration = Uuid::now_v7();
        let directory = Directory::new(
            vec![Integration {
                id: integration,
                company_id: Uuid::now_v7(),
                company: "Acme".into(),
                name: "Main".into(),
                provider: "twilio",
                credentials: credentials(),
                webhook_secret: None,
            }],
            vec![Line {
                id: Uuid::now_v7(),
                integration,
                number: NUMBER.into(),
                agent_id: Uuid::now_v7(),
                agent_version: 1,
                agent: Arc::new(agent),
            }],
        );
        let app = App::with_engines(config, cast.engines(), Arc::new(ArcSwap::from_pointee(directory)))
            .await
            .expect("the server starts");
        Self { app, integration, recordings }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.app.address)
    }

    /// What Twilio would do when the number is called; the TwiML comes back.
    pub async fn ring(&self, call_sid: &str) -> String {
        ring(&self.url(""), self.integration, call_sid).await
    }

    /// Calls the number and opens the media stream.
    pub async fn call(&self) -> Phone {
        let call_sid = format!("CA{}", Uuid::now_v7().simple());
        let twiml = self.ring(&call_sid).await;
        let url = between(&twiml, "url=\"", "\"").expect("a stream in the TwiML").to_owned();
        Phone::connect(&url, &call_sid).await
    }

    /// The record of the only call, once it is closed.
    pub async fn record(&self) -> CallRecord {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let records = self.records();
            if let [record] = &records[..]
                && record.end.is_some()
            {
                return record.clone();
            }
            assert!(Instant::now() < deadline, "no closed record: {records:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn records(&self) -> Vec<CallRecord> {
        let folders = std::fs::read_dir(self.recordings.path()).expect("the folder is there");
        let read =
            |path: PathBuf| Some(serde_json::from_slice(&std::fs::read(path.join("record.json")).ok()?).expect("JSON"));
        folders.filter_map(|folder| read(folder.ok()?.path())).collect()
    }
}

/// What Twilio would do at a server when the number is called; the TwiML comes back.
pub async fn ring(server: &str, integration: Uuid, call_sid: &str) -> String {
    let url = format!("{server}/webhooks/twilio/{integration}/voice");
    let fields: Vec<(String, String)> =
        [("AccountSid", ACCOUNT), ("CallSid", call_sid), ("From", CALLER), ("To", NUMBER), ("CallStatus", "ringing")]
            .map(|(name, value)| (name.into(), value.into()))
            .into();
    let signature = signature::sign(&SecretString::from(TOKEN), &url, &fields);
    let response = http().post(&url).header("X-Twilio-Signature", signature).form(&fields).send().await;
    let response = response.expect("the webhook answers");
    assert_eq!(response.status(), 200);
    response.text().await.expect("TwiML")
}

pub fn http() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(PATIENCE).no_proxy().build().expect("a client")
}

pub fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let start = text.find(from)? + from.len();
    let end = text[start..].find(to)? + start;
    Some(&text[start..end])
}

/// What the person at the phone notices.
#[derive(Clone, Debug, PartialEq)]
pub enum Ear {
    /// The agent became audible.
    AgentSpeaks,
    /// The agent has been silent for 200 ms: longer than a hole that a busy machine makes.
    AgentSilent,
    /// The line was closed by the other side.
    Closed,
}

/// A phone on a call, in real time: 20 ms out on absolute deadlines; what comes in is played at real speed.
pub struct Phone {
    pub ear: mpsc::Receiver<(Instant, Ear)>,
    say: mpsc::Sender<Vec<i16>>,
    task: tokio::task::JoinHandle<Heard>,
}

/// Everything the phone played, and when the stream started.
pub struct Heard {
    pub start: Instant,
    /// One frame per 20 ms from `start`.
    pub frames: Vec<Vec<i16>>,
    pub clears: u32,
}

impl Heard {
    pub fn samples(&self) -> Vec<i16> {
        self.frames.concat()
    }
}

impl Phone {
    pub async fn connect(url: &str, call_sid: &str) -> Self {
        let mut request = url.into_client_request().expect("a websocket URL");
        let signature = signature::sign(&SecretString::from(TOKEN), url, &[]);
        request.headers_mut().insert("X-Twilio-Signature", signature.parse().expect("a header"));
        let (socket, _) =
            timeout(PATIENCE, tokio_tungstenite::connect_async(request)).await.expect("in time").expect("opens");
        let (ear_tx, ear) = mpsc::channel(256);
        let (say, lines) = mpsc::channel(16);
        let task = tokio::spawn(run(socket, call_sid.to_owned(), ear_tx, lines));
        Self { ear, say, task }
    }

    /// Speaks; returns at once.
    pub async fn say(&self, samples: &[i16]) {
        self.say.send(samples.to_vec()).await.expect("the phone is on the line");
    }

    /// Waits for the next notice of this kind and gives its time.
    pub async fn hears(&mut self, wanted: Ear) -> Instant {
        loop {
            let notice = timeout(PATIENCE, self.ear.recv()).await.unwrap_or_else(|_| panic!("never heard {wanted:?}"));
            let (at, notice) = notice.unwrap_or_else(|| panic!("the line was over before {wanted:?}"));
            if notice == wanted {
                return at;
            }
        }
    }

    /// Nothing of this kind within `span`.
    pub async fn hears_no(&mut self, unwanted: Ear, span: Duration) {
        let deadline = Instant::now() + span;
        while let Ok(Some((_, notice))) = tokio::time::timeout_at(deadline, self.ear.recv()).await {
            assert_ne!(notice, unwanted);
        }
    }

    /// Hangs up as a person does: Twilio says `stop`.
    pub async fn hang_up(self) -> Heard {
        drop(self.say);
        self.task.await.expect("the phone does not panic")
    }

    /// The socket breaks without a word.
    pub async fn cut(mut self) {
        self.task.abort();
        // Until it is gone, what else it holds must stay: a phone whose mouth is dropped hangs up properly.
        let _ = (&mut self.task).await;
    }

    /// Waits until the other side closes.
    pub async fn until_closed(mut self) -> Heard {
        self.hears(Ear::Closed).await;
        drop(self.say);
        self.task.await.expect("the phone does not panic")
    }
}

async fn run(
    mut socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    call_sid: String,
    ear: mpsc::Sender<(Instant, Ear)>,
    mut lines: mpsc::Receiver<Vec<i16>>,
) -> Heard {
    let sid = "MZ00000000000000000000000000000001";
    let send = |message: FromTwilio<'_>| {
        let mut text = String::new();
        message.write(&mut text);
        Message::text(text)
    };
    let start = FromTwilio::Start {
        sequence: Some(1),
        start: Start {
            stream_sid: sid.into(),
            account_sid: ACCOUNT.into(),
            call_sid: call_sid.clone().into(),
            tracks: vec!["inbound".into()],
            parameters: Default::default(),
            format: Some(MediaFormat::MULAW),
        },
    };
    socket.send(send(FromTwilio::Connected { protocol: "Call".into(), version: "1.0.0".into() })).await.expect("open");
    socket.send(send(start)).await.expect("open");
    let t0 = Instant::now();
    let mut heard = Heard { start: t0, frames: Vec::new(), clears: 0 };
    let mut mouth: VecDeque<i16> = VecDeque::new();
    let mut buffer: VecDeque<i16> = VecDeque::new();
    let mut marks: VecDeque<(usize, String)> = VecDeque::new();
    let (mut played, mut queued) = (0usize, 0usize);
    let (mut speaking, mut quiet) = (false, 0);
    let mut ticks = tokio::time::interval_at(t0, Duration::from_millis(20));
    let mut sent = 0u64;
    loop {
        tokio::select! {
            biased;
            line = lines.recv() => match line {
                Some(samples) => mouth.extend(samples),
                None => {
                    let stop = FromTwilio::Stop { sequence: None, stream_sid: sid.into(), account_sid: ACCOUNT.into(), call_sid: call_sid.clone().into() };
                    let _ = socket.send(send(stop)).await;
                    let _ = timeout(Duration::from_secs(3), socket.close(None)).await;
                    return heard;
                }
            },
            _ = ticks.tick() => {
                let frame: Vec<i16> = (0..160).map(|_| mouth.pop_front().unwrap_or(0)).collect();
                let (mut bytes, mut payload) = (Vec::new(), String::new());
                g711::encode_into(Codec::Pcmu, &frame, &mut bytes);
                encode_payload(&bytes, &mut payload);
                let media = Media { track: "inbound".into(), chunk: Some(sent + 1), timestamp_ms: Some(sent * 20), payload: payload.into() };
                if socket.send(send(FromTwilio::Media { sequence: Some(sent + 2), stream_sid: sid.into(), media })).await.is_err() {
                    let _ = ear.send((Instant::now(), Ear::Closed)).await;
                    return heard;
                }
                sent += 1;
                let take = buffer.len().min(160);
                let mut out: Vec<i16> = buffer.drain(..take).collect();
                played += take;
                out.resize(160, 0);
                while marks.front().is_some_and(|(at, _)| *at <= played) {
                    let (_, name) = marks.pop_front().expect("just seen");
                    let _ = socket.send(send(FromTwilio::Mark { sequence: None, stream_sid: sid.into(), name: name.into() })).await;
                }
                let loud = level_dbfs(&out) > -45.0;
                heard.frames.push(out);
                quiet = if loud { 0 } else { quiet + 1 };
                if loud && !speaking {
                    speaking = true;
                    let _ = ear.try_send((Instant::now(), Ear::AgentSpeaks));
                } else if speaking && quiet == 10 {
                    speaking = false;
                    let _ = ear.try_send((Instant::now() - Duration::from_millis(200), Ear::AgentSilent));
                }
            }
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => match ToTwilio::parse(&text).expect("our own messages are well formed") {
                    ToTwilio::Media { payload, .. } => {
                        let (mut bytes, mut samples) = (Vec::new(), Vec::new());
                        assert!(decode_payload(&payload, &mut bytes));
                        g711::decode_into(Codec::Pcmu, &bytes, &mut samples);
                        queued += samples.len();
                        buffer.extend(samples);
                    }
                    ToTwilio::Mark { name, .. } => marks.push_back((queued, name.into_owned())),
                    ToTwilio::Clear { .. } => {
                        heard.clears += 1;
                        played += buffer.len();
                        buffer.clear();
                        for (_, name) in marks.drain(..) {
                            let _ = socket.send(send(FromTwilio::Mark { sequence: None, stream_sid: sid.into(), name: name.into() })).await;
                        }
                    }
                    ToTwilio::Unknown { event } => panic!("no such event: {event}"),
                },
                Some(Ok(Message::Close(_))) | None | Some(Err(_)) => {
                    let _ = ear.send((Instant::now(), Ear::Closed)).await;
                    return heard;
                }
                Some(Ok(_)) => {}
            }
        }
    }
}

/// A real voice: the first turn of the shipped caller (synthesised by the project).
pub fn voice() -> Vec<i16> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("audio-fixtures/booking/01.wav");
    offhook::media::wav::read(&path).expect("a shipped fixture").samples
}

/// The first `ms` of the voice, from its onset.
pub fn voice_ms(ms: usize) -> Vec<i16> {
    voice()[160..160 + ms * 8].to_vec()
}
