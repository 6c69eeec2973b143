//! The simulated caller against a media server that answers with tones at known times: what the caller measures must
//! be what the server did.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{any, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use offhook::load::caller::{self, CallerConfig, CallerEvent, CallerReport, Ending, Way};
use offhook::load::fixture::{Ender, Expect, Fixture, Kind, PER_MS, Start, Turn};
use offhook::load::sign::sign;
use offhook::load::ulaw;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// How far a figure may be from what the server did, besides the lateness that the caller itself reports.
const TOLERANCE_MS: f64 = 25.0;
const AUTH_TOKEN: &str = "12345";

fn tone(ms: u64) -> Vec<i16> {
    (0..ms * PER_MS).map(|n| (8_000.0 * (n as f64 * std::f64::consts::TAU * 400.0 / 8_000.0).sin()) as i16).collect()
}

/// A turn of 60 ms of silence, `ms` of tone, 200 ms of silence.
fn turn(kind: Kind, start: Start, ms: u64) -> Turn {
    let silence = |ms: u64| vec![0; (ms * PER_MS) as usize];
    Turn {
        kind,
        text: "a tone".into(),
        start,
        speech: vec![(60, 60 + ms)],
        samples: [silence(60), tone(ms), silence(200)].concat(),
        keys: String::new(),
    }
}

fn fixture(turns: Vec<Turn>, ended_by: Option<Ender>) -> Fixture {
    Fixture {
        name: "tones".into(),
        title: String::new(),
        language: "en".into(),
        workflow: String::new(),
        voice: String::new(),
        background: None,
        echo: None,
        turns,
        expect: Expect { ended_by, ..Expect::default() },
    }
}

/// What the server does.
#[derive(Clone, Default)]
struct Behaviour {
    /// Tone at the start.
    greeting_ms: u64,
    /// After the caller's last loud frame, so long until a tone of so many milliseconds.
    reply_after_ms: u64,
    reply_ms: u64,
    /// After a loud frame while it speaks, so long until `clear`; `None`: it talks on.
    clear_after_ms: Option<u64>,
    /// After a `clear`, so long until the rest of the tone is sent again.
    resume_after_ms: Option<u64>,
    /// Closes after so many replies.
    hang_up_after: Option<usize>,
    /// Never answers.
    mute: bool,
}

/// What the server saw.
#[derive(Default)]
struct Seen {
    events: Vec<Value>,
    media: usize,
    /// How long after the caller's last (first) loud frame each reply (clear) really left, milliseconds.
    replies: Vec<f64>,
    clears: Vec<f64>,
    /// How long each `clear` lasted until sound was sent again.
    rests: Vec<f64>,
    /// Name of each mark, and when it came since its tone was sent.
    marks: Vec<(String, Duration)>,
    signature: Option<String>,
}

struct Server {
    url: String,
    seen: Arc<Mutex<Seen>>,
}

async fn serve(behaviour: Behaviour) -> Server {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let saw = Arc::clone(&seen);
    let media = move |headers: HeaderMap, upgrade: WebSocketUpgrade| async move {
        saw.lock().unwrap().signature =
            headers.get("x-twilio-signature").map(|value| value.to_str().unwrap().to_string());
        upgrade.on_upgrade(move |socket| talk(socket, behaviour, saw))
    };
    let voice = move |headers: HeaderMap, axum::Form(fields): axum::Form<Vec<(String, String)>>| async move {
        let expected = sign(AUTH_TOKEN, &format!("http://{addr}/voice?line=1"), &fields);
        if headers.get("x-twilio-signature").is_none_or(|value| value != expected.as_str()) {
            return StatusCode::FORBIDDEN.into_response();
        }
        let field = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone()).unwrap();
        assert!(field("CallSid").starts_with("CA") && field("CallSid").len() == 34);
        let twiml = format!(
            r#"<?xml version="1.0"?><Response><Connect><Stream url="ws://{addr}/media/tok"><Parameter name="to" value="{}"/></Stream></Connect></Response>"#,
            field("To")
        );
        ([("content-type", "text/xml")], twiml).into_response()
    };
    let router = Router::new().route("/media/{token}", any(media)).route("/voice", post(voice));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Server { url: format!("127.0.0.1:{}", addr.port()), seen }
}

/// The media server: one call.
async fn talk(mut socket: WebSocket, behaviour: Behaviour, seen: Arc<Mutex<Seen>>) {
    let mut stream = String::new();
    let mut loud_at: Option<Instant> = None;
    let mut speaking_until: Option<Instant> = None;
    let mut actions: Vec<(Instant, &'static str)> = Vec::new();
    let mut because = Instant::now();
    let mut cleared_at: Option<Instant> = None;
    let mut sent_at = Instant::now();
    let mut tones = 0;
    let mut replies = 0;
    let mut suspended = false;
    loop {
        actions.sort();
        let next = actions.first().copied();
        tokio::select! {
            () = async { sleep_until(next.unwrap().0).await }, if next.is_some() => {
                actions.remove(0);
                match next.unwrap().1 {
                    "clear" => {
                        send(&mut socket, json!({ "event": "clear", "streamSid": stream })).await;
                        let now = Instant::now();
                        seen.lock().unwrap().clears.push(ms(now - because));
                        cleared_at = Some(now);
                        speaking_until = None;
                        suspended = true;
                        if let Some(after) = behaviour.resume_after_ms {
                            actions.push((Instant::now() + Duration::from_millis(after), "tone"));
                        }
                    }
                    "hang up" => {
                        let _ = socket.send(Message::Close(None)).await;
                        return;
                    }
                    what => {
                        let length = if what == "greeting" { behaviour.greeting_ms } else { behaviour.reply_ms };
                        let began = Instant::now();
                        let codes: Vec<u8> = tone(length).into_iter().map(ulaw::encode).collect();
                        // Faster than real time, in pieces of odd sizes, as servers may.
                        for piece in codes.chunks(487) {
                            let media = json!({ "payload": STANDARD.encode(piece) });
                            send(&mut socket, json!({ "event": "media", "streamSid": stream, "media": media })).await;
                        }
                        if what == "reply" {
                            seen.lock().unwrap().replies.push(ms(began - because));
                        }
                        if let Some(cleared_at) = cleared_at.take() {
                            seen.lock().unwrap().rests.push(ms(began - cleared_at));
                        }
                        sent_at = Instant::now();
                        speaking_until = Some(sent_at + Duration::from_millis(length));
                        for part in ["a", "b"] {
                            let mark = json!({ "name": format!("{tones}{part}") });
                            send(&mut socket, json!({ "event": "mark", "streamSid": stream, "mark": mark })).await;
                        }
                        tones += 1;
                        suspended = false;
                        if what == "reply" {
                            replies += 1;
                            if behaviour.hang_up_after == Some(replies) {
                                actions.push((sent_at + Duration::from_millis(length + 100), "hang up"));
                            }
                        }
                    }
                }
            }
            message = socket.recv() => {
                let Some(Ok(Message::Text(text))) = message else { return };
                let event: Value = serde_json::from_str(&text).unwrap();
                let now = Instant::now();
                match event["event"].as_str().unwrap() {
                    "media" => {
                        seen.lock().unwrap().media += 1;
                        let codes = STANDARD.decode(event["media"]["payload"].as_str().unwrap()).unwrap();
                        assert_eq!(codes.len(), 160);
                        let loud = codes.iter().any(|code| ulaw::decode(*code).unsigned_abs() > 1_000);
                        match (loud, loud_at) {
                            (true, _) => {
                                let speaking = speaking_until.is_some_and(|until| now < until);
                                if loud_at.is_none() && speaking && let Some(after) = behaviour.clear_after_ms {
                                    because = now;
                                    actions.push((now + Duration::from_millis(after), "clear"));
                                }
                                loud_at = Some(now);
                            }
                            (false, Some(last)) => {
                                loud_at = None;
                                // A server that resumes takes what it heard for a noise, and does not answer it.
                                let resumes = suspended && behaviour.resume_after_ms.is_some();
                                if !(behaviour.mute || resumes) {
                                    because = last;
                                    actions.push((last + Duration::from_millis(behaviour.reply_after_ms), "reply"));
                                }
                            }
                            (false, None) => {}
                        }
                    }
                    "mark" => {
                        let name = event["mark"]["name"].as_str().unwrap().to_string();
                        seen.lock().unwrap().marks.push((name, now - sent_at));
                    }
                    kind => {
                        if kind == "start" {
                            stream = event["streamSid"].as_str().unwrap().into();
                            if behaviour.greeting_ms > 0 {
                                actions.push((now + Duration::from_millis(50), "greeting"));
                            }
                        }
                        seen.lock().unwrap().events.push(event);
                    }
                }
            }
        }
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

async fn send(socket: &mut WebSocket, message: Value) {
    // The caller may have hung up; the next read sees it.
    let _ = socket.send(Message::text(message.to_string())).await;
}

fn ws(server: &Server, fixture: Fixture) -> CallerConfig {
    let url = format!("ws://{}/media/x", server.url);
    CallerConfig::new(Way::Ws { url, parameters: vec![], auth_token: None }, Arc::new(fixture))
}

/// Whether a figure is what the server did. The caller counts from when its frames were due: what they were late is
/// in the figure and not in what the server saw.
fn near(report: &CallerReport, measured: Option<f64>, did: f64) -> bool {
    let late_ms = f64::from(report.lateness_us.iter().copied().max().unwrap_or(0)) / 1_000.0;
    measured.is_some_and(|measured| (measured - did).abs() <= TOLERANCE_MS + late_ms)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reply_latency_is_the_delay_that_the_server_injected() {
    let server =
        serve(Behaviour { greeting_ms: 400, reply_after_ms: 330, reply_ms: 500, ..Behaviour::default() }).await;
    let turns = vec![turn(Kind::Turn, Start::AfterAgent(200), 300), turn(Kind::Turn, Start::AfterAgent(200), 413)];
    let mut config = ws(&server, fixture(turns, Some(Ender::Caller)));
    config.record = true;
    let (events, mut told) = mpsc::channel(16);
    config.events = Some(events);
    let report = caller::call(config).await;

    assert_eq!(report.ending, Ending::CallerHungUp, "{report:?}");
    let did = server.seen.lock().unwrap().replies.clone();
    assert!(did.len() == 2 && did.iter().all(|did| *did >= 330.0), "{did:?}");
    for (turn, did) in report.figures.turns.iter().zip(did) {
        assert!(near(&report, turn.reply_ms, did), "{did}: {turn:?}");
        assert!(near(&report, turn.first_frame_ms, did), "{did}: {turn:?}");
        assert!(!turn.cut_off);
    }
    assert_eq!(report.figures.unanswered, 0);
    assert!((report.figures.agent_speech_s - 1.4).abs() < 0.05, "{}", report.figures.agent_speech_s);

    // Every frame that was due has left, once, and its lateness is known.
    let frames = (report.duration_ms / 20.0).floor() as usize;
    assert!(report.lateness_us.len().abs_diff(frames) <= 1, "{} of {frames}", report.lateness_us.len());
    {
        let seen = server.seen.lock().unwrap();
        assert!(seen.media.abs_diff(frames) <= 1);
        let names: Vec<&str> = seen.events.iter().map(|event| event["event"].as_str().unwrap()).collect();
        assert_eq!(names, ["connected", "start", "stop"]);
    }

    // The recording has both sides on one axis: the agent's greeting before the caller's first turn.
    let recording = report.recording.as_ref().unwrap();
    let first = |samples: &[i16]| samples.iter().position(|sample| sample.unsigned_abs() > 1_000).unwrap() as f64;
    let gap = (first(&recording.caller) - first(&recording.agent)) / PER_MS as f64;
    assert!(near(&report, Some(gap), 400.0 + 200.0 + 60.0), "{gap}");
    assert!(matches!(told.recv().await, Some(CallerEvent::Connected { .. })));
    assert!(matches!(told.recv().await, Some(CallerEvent::TurnBegan { turn: 0, .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_barge_in_latency_is_the_time_to_the_clear_whatever_was_buffered() {
    // The server sends three seconds of speech at once and clears 90 ms after the first loud frame.
    let behaviour = Behaviour {
        greeting_ms: 3_000,
        reply_after_ms: 400,
        reply_ms: 300,
        clear_after_ms: Some(90),
        hang_up_after: Some(1),
        ..Behaviour::default()
    };
    let server = serve(behaviour).await;
    let call = fixture(vec![turn(Kind::Interruption, Start::IntoAgent(500), 400)], Some(Ender::Agent));
    let report = caller::call(ws(&server, call)).await;

    assert_eq!(report.ending, Ending::AgentHungUp, "{report:?}");
    let [turn] = &report.figures.turns[..] else { panic!("{report:?}") };
    let seen = server.seen.lock().unwrap();
    assert!(seen.clears[0] >= 90.0 && seen.replies[0] >= 400.0);
    assert!(near(&report, turn.barge_in_ms, seen.clears[0]), "{:?}: {turn:?}", seen.clears);
    assert!(near(&report, turn.reply_ms, seen.replies[0]), "{:?}: {turn:?}", seen.replies);
    assert!(!turn.barge_in_missed && report.figures.pauses.is_empty());
    // Both marks of the cleared speech came back at the clear, long before three seconds.
    let marks = &seen.marks;
    assert_eq!((marks[0].0.as_str(), marks[1].0.as_str()), ("0a", "0b"));
    assert!(marks[1].1 < Duration::from_millis(2_000), "{marks:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_talks_on_has_missed_the_interruption_and_its_marks_come_when_they_are_played() {
    let server = serve(Behaviour { greeting_ms: 2_000, mute: true, ..Behaviour::default() }).await;
    let call = fixture(vec![turn(Kind::Interruption, Start::IntoAgent(300), 300)], None);
    let mut config = ws(&server, call);
    config.reply_limit = Duration::from_millis(500);
    let report = caller::call(config).await;

    let [turn] = &report.figures.turns[..] else { panic!("{report:?}") };
    assert!(turn.barge_in_missed && turn.reply_ms.is_none(), "{turn:?}");
    let marks = &server.seen.lock().unwrap().marks;
    assert!(near(&report, Some(ms(marks[0].1)), 2_000.0), "{marks:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_for_a_noise_is_counted_as_false_with_its_length() {
    let behaviour = Behaviour {
        greeting_ms: 1_500,
        reply_ms: 500,
        clear_after_ms: Some(60),
        resume_after_ms: Some(450),
        ..Behaviour::default()
    };
    let server = serve(behaviour).await;
    let call = fixture(vec![turn(Kind::Noise, Start::IntoAgent(400), 100)], Some(Ender::Caller));
    let report = caller::call(ws(&server, call)).await;

    assert_eq!(report.ending, Ending::CallerHungUp, "{report:?}");
    let [pause] = &report.figures.pauses[..] else { panic!("{report:?}") };
    let rested = server.seen.lock().unwrap().rests[0];
    assert!(near(&report, Some(pause.gap_ms), rested), "{rested}: {pause:?}");
    assert!(pause.false_stop && pause.resumed && pause.cleared, "{pause:?}");
    assert_eq!(report.figures.unanswered, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_and_an_early_goodbye_are_failures_with_their_cause() {
    let one = || fixture(vec![turn(Kind::Turn, Start::AfterAgent(100), 200)], Some(Ender::Agent));
    let silent = serve(Behaviour { mute: true, ..Behaviour::default() }).await;
    let mut config = ws(&silent, one());
    config.reply_limit = Duration::from_millis(300);
    assert_eq!(caller::call(config).await.ending, Ending::NoReply { turn: 0 });

    let deaf = serve(Behaviour { greeting_ms: 200, mute: true, ..Behaviour::default() }).await;
    let mut config = ws(&deaf, one());
    config.reply_limit = Duration::from_millis(300);
    assert_eq!(caller::call(config).await.ending, Ending::NoReply { turn: 1 });

    let rude = Behaviour {
        greeting_ms: 200,
        reply_after_ms: 50,
        reply_ms: 100,
        hang_up_after: Some(1),
        ..Behaviour::default()
    };
    let rude = serve(rude).await;
    let mut two = one();
    two.turns.push(turn(Kind::Turn, Start::AfterAgent(2_000), 200));
    assert_eq!(caller::call(ws(&rude, two)).await.ending, Ending::HungUpEarly { turn: 2 });

    let nobody = Server { url: "127.0.0.1:1".into(), seen: Arc::default() };
    assert!(matches!(caller::call(ws(&nobody, one())).await.ending, Ending::ConnectFailed(_)));
    let wrong_path = Way::Ws { url: format!("ws://{}/nowhere", rude.url), parameters: vec![], auth_token: None };
    let report = caller::call(CallerConfig::new(wrong_path, Arc::new(one()))).await;
    assert_eq!(report.ending, Ending::ConnectFailed("status 404".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_webhook_and_the_handshake_are_signed_as_twilio_signs_them() {
    let behaviour = Behaviour {
        greeting_ms: 200,
        reply_after_ms: 100,
        reply_ms: 200,
        hang_up_after: Some(1),
        ..Behaviour::default()
    };
    let server = serve(behaviour).await;
    let call = Arc::new(fixture(vec![turn(Kind::Turn, Start::AfterAgent(100), 200)], Some(Ender::Agent)));
    let way = |token: &str| Way::Webhook {
        url: format!("http://{}/voice?line=1", server.url),
        auth_token: token.to_string().into(),
        client: caller::http_client().unwrap(),
    };
    let report = caller::call(CallerConfig::new(way(AUTH_TOKEN), Arc::clone(&call))).await;
    assert_eq!(report.ending, Ending::AgentHungUp, "{report:?}");
    assert!(report.connect_ms.is_some());
    {
        let seen = server.seen.lock().unwrap();
        let start = &seen.events[1]["start"];
        assert_eq!(start["customParameters"]["to"], "+15550001111");
        assert_eq!(start["callSid"], report.call_sid);
        let expected = sign(AUTH_TOKEN, &format!("ws://{}/media/tok", server.url), &[]);
        assert_eq!(seen.signature.as_deref(), Some(expected.as_str()));
    }

    let report = caller::call(CallerConfig::new(way("wrong"), call)).await;
    assert_eq!(report.ending, Ending::WebhookFailed("the webhook answered with status 403".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_is_told_to_hang_up_says_goodbye() {
    let server = serve(Behaviour { greeting_ms: 200, ..Behaviour::default() }).await;
    let config = ws(&server, fixture(vec![turn(Kind::Turn, Start::AfterAgent(60_000), 200)], None));
    let hang_up = config.hang_up.clone();
    let (events, mut told) = mpsc::channel(4);
    let call = tokio::spawn(caller::call(CallerConfig { events: Some(events), ..config }));
    told.recv().await.unwrap();
    hang_up.cancel();
    assert_eq!(call.await.unwrap().ending, Ending::Cancelled);
    let seen = server.seen.lock().unwrap();
    assert_eq!(seen.events.last().unwrap()["event"], "stop");
}
