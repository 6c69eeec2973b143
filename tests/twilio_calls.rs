//! Whole calls between the simulated Twilio and what answers it: webhooks that `read_webhook` believes, TwiML from
//! `answer`, a media websocket with a signed handshake, status callbacks in their order. The server here is as small as
//! can be: what is tested is the provider's two halves and the simulator against each other.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{OriginalUri, Path, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post};
use offhook::mock::twilio::{Callee, MockCall, MockNumber, MockTwilio, MockTwilioConfig, Seen, SignedAs, Way};
use offhook::providers::credentials::Credentials;
use offhook::providers::provider::{
    CallState, Decision, Dial, Event, OutgoingMessage, Provider, Refusal, WebhookRequest, Webhooks,
};
use offhook::providers::twilio::{KIND, signature};
use offhook::telephony::PhoneNumber;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::sync::Notify;

const SID: &str = "AC00000000000000000000000000000001";
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const LINE: &str = "+380441234567";
const CALLER: &str = "+380501234567";
const PERSON: &str = "+380671112233";
const LIMIT: Duration = Duration::from_secs(10);

/// What the server does with calls and messages.
#[derive(Clone, Copy, PartialEq)]
enum Plan {
    /// Talk, close the stream at once, and do this with the rest.
    TalkThen(Rest),
    /// Talk until the other side ends it.
    TalkOn,
    Busy,
    NotInService,
    /// 500 to every voice webhook.
    Broken,
    /// No XML.
    Rubbish,
    /// A stream that leads nowhere.
    WrongStream,
}

#[derive(Clone, Copy, PartialEq)]
enum Rest {
    Say,
    Transfer,
    HangUp,
}

struct Server {
    base: String,
    plan: Plan,
    provider: Arc<dyn Provider>,
    events: Mutex<Vec<Event>>,
    once: Mutex<HashSet<String>>,
    repeated: AtomicUsize,
    refused: Mutex<Vec<Refusal>>,
    /// `call_id` and the callSid of every stream that has started.
    streams: Mutex<Vec<(String, String)>>,
    talking: Notify,
}

impl Server {
    fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    fn hooks(&self) -> Webhooks {
        let hook = |route: &str| format!("{}/webhooks/twilio/one/{route}", self.base);
        Webhooks { voice: hook("voice"), status: hook("status"), sms: hook("sms") }
    }

    fn dial(&self, to: &str) -> Dial {
        Dial {
            line: LINE.into(),
            to: PhoneNumber::new(to),
            answer_url: self.hooks().voice,
            status_url: self.hooks().status,
            detect_machine: true,
            ring_s: 30,
            max_call_s: 600,
        }
    }
}

/// Simulator, client and server; the line's webhooks have been written.
async fn set_up(plan: Plan, change: impl FnOnce(&mut MockTwilioConfig)) -> (MockTwilio, Arc<Server>) {
    let mut config = MockTwilioConfig {
        account_sid: SID.into(),
        auth_token: TOKEN.into(),
        numbers: vec![MockNumber::new(LINE)],
        ring: Duration::from_millis(20),
        dial_talk: Duration::from_millis(20),
        say_char: Duration::ZERO,
        ..MockTwilioConfig::default()
    };
    change(&mut config);
    let mock = MockTwilio::start(config, TcpListener::bind("127.0.0.1:0").await.unwrap()).unwrap();
    let values = [("account_sid", SID), ("auth_token", TOKEN), ("api_base", &mock.api_base())]
        .map(|(name, value)| (name.to_string(), value.to_string()));
    let provider = (KIND.open)(&Credentials::new(&KIND, values).unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let server = Arc::new(Server {
        base: format!("http://{address}"),
        plan,
        provider,
        events: Mutex::default(),
        once: Mutex::default(),
        repeated: AtomicUsize::new(0),
        refused: Mutex::default(),
        streams: Mutex::default(),
        talking: Notify::new(),
    });
    let router = Router::new()
        .route("/webhooks/twilio/one/{route}", post(webhook))
        .route("/media/{token}", any(media))
        .with_state(Arc::clone(&server));
    tokio::spawn(axum::serve(listener, router).into_future());
    server.provider.prepare_line(LINE, &server.hooks()).await.unwrap();
    (mock, server)
}

async fn webhook(
    State(server): State<Arc<Server>>,
    Path(route): Path<String>,
    OriginalUri(uri): OriginalUri,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let url = format!("{}{}", server.base, uri.path_and_query().unwrap().as_str());
    let read = server.provider.read_webhook(&WebhookRequest {
        route: &route,
        method: method.as_str(),
        url: &url,
        query: uri.query().unwrap_or_default(),
        content_type: header("content-type"),
        signature: header(signature::HEADER),
        client: None,
        any_address: false,
        body: &body,
    });
    let webhook = match read {
        Ok(webhook) => webhook,
        Err(refusal) => {
            server.refused.lock().unwrap().push(refusal);
            return StatusCode::FORBIDDEN.into_response();
        }
    };
    let first = webhook.once.is_none_or(|once| server.once.lock().unwrap().insert(once));
    if first {
        server.events.lock().unwrap().push(webhook.event.clone());
    } else {
        server.repeated.fetch_add(1, Ordering::SeqCst);
    }
    let (stream_url, status_url, after_url);
    let decision = match (&webhook.event, server.plan) {
        (Event::CallOffered(_), Plan::Broken) => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        (Event::CallOffered(_), Plan::Rubbish) => return "hello".into_response(),
        (Event::CallOffered(_), Plan::Busy) => Decision::Busy,
        (Event::CallOffered(_), Plan::NotInService) => Decision::NotInService,
        (Event::CallOffered(_), plan) => {
            let path = if plan == Plan::WrongStream { "nowhere" } else { "media/token" };
            stream_url = format!("{}/{path}", server.base.replace("http", "ws"));
            status_url = format!("{}/webhooks/twilio/one/stream", server.base);
            after_url = format!("{}/webhooks/twilio/one/after", server.base);
            Decision::Talk {
                stream_url: &stream_url,
                status_url: &status_url,
                after_url: &after_url,
                call_id: "0190b5a4-0000-7000-8000-000000000001",
            }
        }
        (Event::CallContinues(_), Plan::TalkThen(Rest::Say) | Plan::WrongStream) => {
            Decision::Say { text: "Please call again later.", language: "en" }
        }
        (Event::CallContinues(_), Plan::TalkThen(Rest::Transfer)) => {
            Decision::Transfer { to: PERSON, from: LINE, note_url: None, over_url: None }
        }
        (Event::CallContinues(_), _) => Decision::HangUp,
        (Event::MessageReceived(_), _) => {
            Decision::Say { text: "Дякуємо & до зустрічі", language: "uk" }
        }
        _ => Decision::Noted,
    };
    let answer = server.provider.answer(&webhook.event, &decision);
    ([(header::CONTENT_TYPE, answer.content_type)], answer.body).into_response()
}

async fn media(State(server): State<Arc<Server>>, headers: HeaderMap, upgrade: WebSocketUpgrade) -> Response {
    let url = format!("{}/media/token", server.base.replace("http", "ws"));
    let signed = headers.get(signature::HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if signature::verify_websocket(&[SecretString::from(TOKEN)], &url, signed).is_err() {
        return StatusCode::FORBIDDEN.into_response();
    }
    upgrade.on_upgrade(move |socket| talk(server, socket))
}

async fn talk(server: Arc<Server>, mut socket: WebSocket) {
    let mut packets = 0;
    while let Some(Ok(message)) = socket.recv().await {
        let Message::Text(text) = message else { continue };
        let message: serde_json::Value = serde_json::from_str(&text).unwrap();
        match message["event"].as_str() {
            Some("start") => {
                let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
                let start = &message["start"];
                let ids = (text(&start["customParameters"]["call_id"]), text(&start["callSid"]));
                server.streams.lock().unwrap().push(ids);
            }
            Some("media") => {
                packets += 1;
                if packets == 3 {
                    server.talking.notify_one();
                    if matches!(server.plan, Plan::TalkThen(_)) {
                        return;
                    }
                }
            }
            _ => {}
        }
    }
}

async fn over(mock: &MockTwilio, sid: &str) -> MockCall {
    mock.call_when(sid, LIMIT, MockCall::is_over).await.expect("the call ends")
}

fn out<'a>(route: &'a str) -> impl Fn(&Seen) -> bool + 'a {
    move |seen| seen.way == Way::Out && seen.url.ends_with(route)
}

#[tokio::test]
async fn a_call_is_talked_through_and_goes_on_when_the_stream_ends() {
    let (mock, server) = set_up(Plan::TalkThen(Rest::Say), |_| {}).await;
    let sid = mock.ring(CALLER, LINE).unwrap();
    let call = over(&mock, &sid).await;
    assert_eq!((call.status.as_str(), call.said.as_slice()), ("completed", &["Please call again later.".into()][..]));
    assert!(call.errors.is_empty(), "{call:?}");
    assert_eq!(*server.streams.lock().unwrap(), [("0190b5a4-0000-7000-8000-000000000001".to_owned(), sid.clone())]);
    mock.requests_when(1, LIMIT, out("/status")).await;
    mock.requests_when(2, LIMIT, out("/stream")).await;
    let events = server.events();
    let is = |event: &Event| match event {
        Event::CallOffered(news) => {
            assert_eq!((news.from.as_str(), news.line.as_deref()), (CALLER, Some(LINE)));
            "offered"
        }
        Event::StreamStatus { event, provider_call, .. } => {
            assert_eq!(*provider_call, sid);
            if event == "stream-started" { "started" } else { "stopped" }
        }
        Event::CallContinues(_) => "continues",
        Event::CallProgressed { state: CallState::Ended { .. }, .. } => "ended",
        other => panic!("{other:?}"),
    };
    let mut order: Vec<&str> = events.iter().map(is).collect();
    // Callbacks and requests go separate ways; each kind keeps its own order.
    order.retain(|event| *event != "continues" && *event != "offered");
    assert_eq!(order, ["started", "stopped", "ended"]);
    assert!(server.refused.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_call_is_handed_to_a_person_when_the_stream_ends() {
    let (mock, _server) = set_up(Plan::TalkThen(Rest::Transfer), |_| {}).await;
    let sid = mock.ring(CALLER, LINE).unwrap();
    let call = over(&mock, &sid).await;
    assert_eq!((call.status.as_str(), call.dialled.as_slice()), ("completed", &[PERSON.to_owned()][..]));
    assert!(call.errors.is_empty());
    let child = mock.calls().into_iter().find(|call| call.parent.as_deref() == Some(&sid)).unwrap();
    assert_eq!((child.from.as_str(), child.to.as_str(), child.status.as_str()), (LINE, PERSON, "completed"));
}

#[tokio::test]
async fn a_call_ends_when_the_stream_ends_and_nothing_is_left_to_say() {
    let (mock, server) = set_up(Plan::TalkThen(Rest::HangUp), |_| {}).await;
    let call = over(&mock, &mock.ring(CALLER, LINE).unwrap()).await;
    assert_eq!((call.status.as_str(), call.said.len()), ("completed", 0));
    assert!(server.events().iter().any(|event| matches!(event, Event::CallContinues(_))));
}

#[tokio::test]
async fn a_hang_up_by_rest_closes_the_stream() {
    let (mock, server) = set_up(Plan::TalkOn, |_| {}).await;
    let sid = mock.ring(CALLER, LINE).unwrap();
    server.talking.notified().await;
    server.provider.hang_up(&sid).await.unwrap();
    let call = over(&mock, &sid).await;
    assert_eq!((call.status.as_str(), call.streams.len()), ("completed", 1));
    assert_eq!(call.streams[0].ending.label(), "cancelled");
    assert!(!server.events().iter().any(|event| matches!(event, Event::CallContinues(_))));
}

#[tokio::test]
async fn a_transfer_by_rest_takes_the_call_from_the_stream() {
    let (mock, server) = set_up(Plan::TalkOn, |_| {}).await;
    let sid = mock.ring(CALLER, LINE).unwrap();
    server.talking.notified().await;
    server.provider.transfer(&sid, &PhoneNumber::new(PERSON)).await.unwrap();
    let call = over(&mock, &sid).await;
    assert_eq!((call.dialled.as_slice(), call.errors.len()), (&[PERSON.to_owned()][..], 0));
    let child = mock.calls().into_iter().find(|call| call.parent.is_some()).unwrap();
    assert_eq!(child.from, CALLER, "the person sees who calls");
}

#[tokio::test]
async fn the_caller_hangs_up() {
    let (mock, server) = set_up(Plan::TalkOn, |_| {}).await;
    let sid = mock.ring(CALLER, LINE).unwrap();
    server.talking.notified().await;
    assert!(mock.caller_hangs_up(&sid));
    assert_eq!(over(&mock, &sid).await.status, "completed");
    mock.requests_when(1, LIMIT, out("/status")).await;
    let ended = |event: &Event| matches!(event, Event::CallProgressed { state: CallState::Ended { .. }, .. });
    assert!(server.events().iter().any(ended));
}

#[tokio::test]
async fn refused_calls_are_not_answered() {
    for (plan, status, said) in [(Plan::Busy, "busy", 0), (Plan::NotInService, "completed", 1)] {
        let (mock, _server) = set_up(plan, |_| {}).await;
        let call = over(&mock, &mock.ring(CALLER, LINE).unwrap()).await;
        assert_eq!((call.status.as_str(), call.said.len()), (status, said));
        assert_eq!(call.started.is_some(), plan == Plan::NotInService);
    }
}

#[tokio::test]
async fn a_webhook_that_fails_fails_the_call_with_twilios_code() {
    for (plan, code) in [(Plan::Broken, 11200), (Plan::Rubbish, 12100)] {
        let (mock, _server) = set_up(plan, |_| {}).await;
        let call = over(&mock, &mock.ring(CALLER, LINE).unwrap()).await;
        assert_eq!((call.status.as_str(), call.errors.as_slice()), ("failed", &[code][..]));
        assert_eq!(mock.requests().iter().filter(|seen| out("/voice")(seen)).count(), 1, "no retry but of connections");
    }
}

#[tokio::test]
async fn a_webhook_is_retried_as_its_address_says() {
    let (mock, server) = set_up(Plan::Broken, |_| {}).await;
    let number = mock.number(LINE).unwrap();
    mock.set_number(number.with("VoiceUrl", &format!("{}#rc=2&rp=5xx", server.hooks().voice)));
    over(&mock, &mock.ring(CALLER, LINE).unwrap()).await;
    assert_eq!(mock.requests().iter().filter(|seen| out("/voice")(seen)).count(), 3);
    assert!(server.refused.lock().unwrap().is_empty(), "the fragment is not signed");
    assert_eq!(server.repeated.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_stream_that_cannot_be_opened_is_told_and_the_call_goes_on() {
    let (mock, server) = set_up(Plan::WrongStream, |_| {}).await;
    let call = over(&mock, &mock.ring(CALLER, LINE).unwrap()).await;
    assert_eq!((call.errors.as_slice(), call.said.len()), (&[31920][..], 1));
    mock.requests_when(1, LIMIT, out("/stream")).await;
    let failure = server.events().into_iter().find_map(|event| match event {
        Event::StreamStatus { failure, .. } => failure,
        _ => None,
    });
    assert!(failure.unwrap().contains("31920"));
}

#[tokio::test]
async fn a_call_that_we_make_is_greeted_told_and_recognised() {
    let machine = "+380631111111";
    let (mock, server) = set_up(Plan::TalkThen(Rest::HangUp), |config| {
        config.callees = HashMap::from([(machine.into(), Callee::Machine)]);
    })
    .await;
    for (to, who) in [(CALLER, "human"), (machine, "machine_start")] {
        let sid = server.provider.dial(&server.dial(to)).await.unwrap().provider_call.unwrap();
        let call = over(&mock, &sid).await;
        assert_eq!((call.status.as_str(), call.answered_by.as_deref()), ("completed", Some(who)));
        let of_call = |seen: &Seen| seen.way == Way::Out && seen.field("CallSid") == sid;
        let told = mock.requests_when(3, LIMIT, |seen| of_call(seen) && seen.url.ends_with("/status")).await;
        let said: Vec<(&str, &str)> =
            told.iter().map(|seen| (seen.field("CallStatus"), seen.field("SequenceNumber"))).collect();
        assert_eq!(said, [("ringing", "0"), ("", ""), ("completed", "1")]);
        let offered = server.events().into_iter().any(|event| match event {
            Event::CallOffered(news) => {
                news.provider_call.as_deref() == Some(&sid) && news.line.as_deref() == Some(LINE)
            }
            _ => false,
        });
        assert!(offered);
    }
    let outcomes: Vec<String> = server
        .events()
        .into_iter()
        .filter_map(|event| match event {
            Event::CallProgressed { state: CallState::Ended { outcome, .. }, .. } => Some(outcome.label().to_owned()),
            _ => None,
        })
        .collect();
    assert_eq!(outcomes, ["answered", "voicemail"]);
}

#[tokio::test]
async fn a_call_that_nobody_takes_says_so() {
    let callees =
        [("+380631111112", Callee::Busy), ("+380631111113", Callee::NoAnswer), ("+380631111114", Callee::Fails)];
    let (mock, server) = set_up(Plan::TalkOn, |config| {
        config.callees = callees.iter().map(|(number, callee)| (number.to_string(), *callee)).collect();
    })
    .await;
    for ((to, _), status) in callees.iter().zip(["busy", "no-answer", "failed"]) {
        let sid = server.provider.dial(&server.dial(to)).await.unwrap().provider_call.unwrap();
        assert_eq!(over(&mock, &sid).await.status, status);
    }
    assert!(!server.events().iter().any(|event| matches!(event, Event::CallOffered(_))));
}

#[tokio::test]
async fn callbacks_that_come_twice_act_once() {
    let (mock, server) = set_up(Plan::TalkThen(Rest::HangUp), |config| config.twice = true).await;
    over(&mock, &mock.ring(CALLER, LINE).unwrap()).await;
    mock.requests_when(2, LIMIT, out("/status")).await;
    mock.requests_when(4, LIMIT, out("/stream")).await;
    assert_eq!(server.repeated.load(Ordering::SeqCst), 3);
    let ended = |event: &&Event| matches!(event, Event::CallProgressed { .. });
    assert_eq!(server.events().iter().filter(ended).count(), 1);
}

#[tokio::test]
async fn a_port_that_is_signed_or_not_is_the_same_webhook() {
    for signed_as in [SignedAs::Written, SignedAs::WithoutPort, SignedAs::WithPort] {
        let (mock, server) = set_up(Plan::Busy, |config| config.signed_as = signed_as).await;
        assert_eq!(over(&mock, &mock.ring(CALLER, LINE).unwrap()).await.status, "busy", "{signed_as:?}");
        assert!(server.refused.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn an_override_keeps_calls_away_from_the_webhook() {
    let (mock, server) = set_up(Plan::Busy, |_| {}).await;
    mock.set_number(mock.number(LINE).unwrap().with("TrunkSid", "TK1"));
    assert_eq!(over(&mock, &mock.ring(CALLER, LINE).unwrap()).await.status, "failed");
    assert!(server.events().is_empty());
}

#[tokio::test]
async fn a_message_is_answered_and_another_ones_fate_is_told() {
    let (mock, server) = set_up(Plan::Busy, |config| {
        config.undeliverable = HashMap::from([(PERSON.into(), 30003)]);
    })
    .await;
    let texted = mock.text(CALLER, LINE, "Добрий день, 100% + так & ні").await.unwrap();
    assert_eq!(texted.replies, ["Дякуємо & до зустрічі"]);
    let Event::MessageReceived(message) = &server.events()[0] else { panic!("no message") };
    assert_eq!((message.from.as_str(), message.text.as_str()), (CALLER, "Добрий день, 100% + так & ні"));

    let message = OutgoingMessage {
        from: None,
        to: PhoneNumber::new(PERSON),
        text: "Hello".into(),
        status_url: server.hooks().status,
    };
    let sent = server.provider.send_message(&message).await.unwrap();
    mock.requests_when(2, LIMIT, out("/status")).await;
    let fates: Vec<(String, Option<String>)> = server
        .events()
        .into_iter()
        .filter_map(|event| match event {
            Event::MessageStatus { provider_message, status, error } => {
                assert_eq!(provider_message, sent.provider_message);
                Some((status, error))
            }
            _ => None,
        })
        .collect();
    let unreachable = Some("30003: the phone is unreachable or switched off".to_owned());
    assert_eq!(fates, [("sent".to_owned(), None), ("undelivered".to_owned(), unreachable)]);
}
