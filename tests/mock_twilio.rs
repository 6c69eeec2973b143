//! The simulated Twilio seen by a stranger: its doors, its shapes, its log, and what it makes of TwiML that Offhook does
//! not say. Calls with Offhook's own TwiML are in `twilio_calls.rs`.

use std::time::Duration;

use offhook::mock::twilio::{MockCall, MockNumber, MockTwilio, MockTwilioConfig};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpListener;

const SID: &str = "AC00000000000000000000000000000001";
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const LIMIT: Duration = Duration::from_secs(10);

struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let reply = self.http.get(format!("{}{path}", self.base)).basic_auth(SID, Some(TOKEN)).send().await.unwrap();
        (reply.status(), reply.json().await.unwrap_or_default())
    }

    async fn post(&self, path: &str, fields: &[(&str, &str)]) -> (StatusCode, Value) {
        let request = self.http.post(format!("{}{path}", self.base)).basic_auth(SID, Some(TOKEN)).form(fields);
        let reply = request.send().await.unwrap();
        (reply.status(), reply.json().await.unwrap_or_default())
    }

    async fn json(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let reply = self.http.post(format!("{}{path}", self.base)).json(&body).send().await.unwrap();
        (reply.status(), reply.json().await.unwrap_or_default())
    }
}

fn account(rest: &str) -> String {
    format!("/2010-04-01/Accounts/{SID}{rest}")
}

async fn set_up(number: MockNumber) -> (MockTwilio, Client) {
    let config = MockTwilioConfig {
        account_sid: SID.into(),
        auth_token: TOKEN.into(),
        numbers: vec![number],
        ring: Duration::from_millis(5),
        say_char: Duration::ZERO,
        ..MockTwilioConfig::default()
    };
    let mock = MockTwilio::start(config, TcpListener::bind("127.0.0.1:0").await.unwrap()).unwrap();
    let http = offhook::load::caller::http_client().unwrap();
    let client = Client { http, base: mock.api_base() };
    (mock, client)
}

fn number() -> MockNumber {
    MockNumber::new("+15550001111")
}

#[tokio::test]
async fn errors_have_twilios_shape() {
    let (mock, client) = set_up(number()).await;
    let reply = client.http.get(format!("{}{}", client.base, account(".json"))).send().await.unwrap();
    assert_eq!(reply.status(), StatusCode::UNAUTHORIZED);
    let body: Value = reply.json().await.unwrap();
    assert_eq!((&body["code"], &body["status"]), (&json!(20003), &json!(401)));
    let (status, body) = client.get(&account("/Calls/CA1.json")).await;
    assert_eq!((status, &body["code"]), (StatusCode::NOT_FOUND, &json!(20404)));
    assert_eq!(client.get("/2010-04-01/Accounts/AC2.json").await.0, StatusCode::NOT_FOUND);
    assert_eq!(client.get(&account("/Calls")).await.0, StatusCode::NOT_FOUND, "XML is not spoken");
    for (fields, code) in [
        (vec![], 21201),
        (vec![("To", "+15550002222")], 21213),
        (vec![("To", "abc"), ("From", "+15550001111")], 21211),
        (vec![("To", "+15550002222"), ("From", "+15550009999")], 21210),
        (vec![("To", "+15550002222"), ("From", "+15550001111")], 21205),
    ] {
        let (status, body) = client.post(&account("/Calls.json"), &fields).await;
        assert_eq!((status, &body["code"]), (StatusCode::BAD_REQUEST, &json!(code)), "{fields:?}");
    }
    let log = mock.requests();
    assert_eq!((log.len(), log[0].status), (9, Some(401)));
    assert!(!format!("{log:?}").contains(TOKEN));
}

#[tokio::test]
async fn a_list_leads_from_page_to_page() {
    let (mock, client) = set_up(number()).await;
    for index in 0..5 {
        let at = format!("2026-03-01T12:00:0{index}Z").parse().unwrap();
        mock.remember(MockCall::past("+15550002222", "+15550001111", "inbound", "completed", at, 1));
    }
    let mut path = Some(account("/Calls.json?PageSize=2&From=%2B15550002222"));
    let mut times = Vec::new();
    let mut pages = 0;
    while let Some(this) = path.take() {
        let (status, body) = client.get(&this).await;
        assert_eq!((status, &body["page"]), (StatusCode::OK, &json!(pages)));
        times.extend(body["calls"].as_array().unwrap().iter().map(|call| call["start_time"].clone()));
        path = body["next_page_uri"].as_str().map(str::to_owned);
        pages += 1;
    }
    assert_eq!((pages, times.len()), (3, 5));
    assert_eq!(times[0], "Sun, 01 Mar 2026 12:00:04 +0000");
}

#[tokio::test]
async fn twiml_is_obeyed_verb_by_verb() {
    let (mock, client) = set_up(number()).await;
    let run = async |twiml: &str| {
        let fields = [("To", "+15550002222"), ("From", "+15550001111"), ("Twiml", twiml)];
        let (status, body) = client.post(&account("/Calls.json"), &fields).await;
        assert_eq!((status, &body["status"]), (StatusCode::CREATED, &json!("queued")));
        mock.call_when(body["sid"].as_str().unwrap(), LIMIT, MockCall::is_over).await.unwrap()
    };
    let call = run("<Response><Say>one</Say><Gather/><Pause length=\"0\"/><Say>two</Say></Response>").await;
    assert_eq!((call.status.as_str(), call.errors.as_slice()), ("completed", &[12200][..]));
    assert_eq!(call.said, ["one", "two"]);
    let call = run("<Response><Hangup/><Say>never</Say></Response>").await;
    assert!(call.said.is_empty());
    let call = run("<Response><Say>broken</Response>").await;
    assert_eq!((call.status.as_str(), call.errors.as_slice()), ("failed", &[12100][..]));
    let call = run("<Response><Redirect>http://127.0.0.1:1/</Redirect></Response>").await;
    assert_eq!((call.status.as_str(), call.errors.as_slice()), ("failed", &[11205][..]));
    let call = run("<Response><Dial callerId=\"+15559999999\">+15550003333</Dial></Response>").await;
    assert_eq!((call.dialled.len(), call.errors.as_slice()), (1, &[13214][..]), "a caller id that is not ours");
    let call =
        run("<Response><Connect><Stream url=\"wss://127.0.0.1:1/x?y=1\"/></Connect><Say>on</Say></Response>").await;
    assert_eq!((call.errors.as_slice(), call.said.len()), (&[31920][..], 1), "a stream's URL has no query");
}

#[tokio::test]
async fn a_running_call_is_redirected_and_ended_by_rest() {
    let (mock, client) = set_up(number()).await;
    let twiml = "<Response><Pause length=\"60\"/></Response>";
    let fields = [("To", "+15550002222"), ("From", "+15550001111"), ("Twiml", twiml)];
    let (_, body) = client.post(&account("/Calls.json"), &fields).await;
    let sid = body["sid"].as_str().unwrap();
    mock.call_when(sid, LIMIT, |call| call.status == "in-progress").await.unwrap();
    let path = account(&format!("/Calls/{sid}.json"));
    let again = [("Twiml", "<Response><Say>instead</Say><Pause length=\"60\"/></Response>")];
    assert_eq!(client.post(&path, &again).await.0, StatusCode::OK);
    mock.call_when(sid, LIMIT, |call| call.said == ["instead"]).await.unwrap();
    assert_eq!(client.post(&path, &[("Status", "canceled")]).await.0, StatusCode::OK);
    assert_eq!(mock.call(sid).unwrap().status, "in-progress", "an answered call cannot be cancelled");
    assert_eq!(client.post(&path, &[("Status", "completed")]).await.0, StatusCode::OK);
    mock.call_when(sid, LIMIT, MockCall::is_over).await.unwrap();
    assert_eq!(client.post(&path, &[("Status", "completed")]).await.1["code"], 20404);
    assert_eq!(client.post(&path, &again).await.1["code"], 21220);
}

#[tokio::test]
async fn calls_and_messages_come_in_by_its_own_doors() {
    let gone = number().with("VoiceUrl", "http://127.0.0.1:1/voice").with("SmsUrl", "http://127.0.0.1:1/sms");
    let (mock, client) = set_up(gone).await;
    let who = json!({ "from": "+15550002222", "to": "+15550001111", "body": "hello" });
    let (status, body) = client.json("/simulate/call", who.clone()).await;
    assert_eq!(status, StatusCode::CREATED);
    let call = mock.call_when(body["call_sid"].as_str().unwrap(), LIMIT, MockCall::is_over).await.unwrap();
    assert_eq!(call.errors, [11205]);
    let tries = mock.requests().iter().filter(|seen| seen.url.ends_with("/voice")).count();
    assert_eq!(tries, 2, "a connection that fails is tried once more");
    assert_eq!(client.json("/simulate/sms", who).await.0, StatusCode::BAD_GATEWAY);
    let nobody = json!({ "from": "+15550002222", "to": "+15550009999" });
    assert_eq!(client.json("/simulate/call", nobody).await.0, StatusCode::BAD_REQUEST);

    let limited = json!({ "limited": { "retry_after_s": 7 }, "times": 1 });
    assert_eq!(client.json("/mock/fault", limited).await.0, StatusCode::NO_CONTENT);
    let path = format!("{}{}", client.base, account(".json"));
    let reply = client.http.get(path).basic_auth(SID, Some(TOKEN)).send().await.unwrap();
    assert_eq!((reply.status().as_u16(), &reply.headers()["retry-after"]), (429, &"7".parse().unwrap()));
    assert_eq!(client.get(&account(".json")).await.0, StatusCode::OK);

    let (_, log) = client.get("/mock/requests").await;
    assert!(log.as_array().unwrap().iter().any(|seen| seen["way"] == "out" && seen["url"] == "http://127.0.0.1:1/sms"));
    client.http.delete(format!("{}/mock/requests", client.base)).send().await.unwrap();
    assert!(mock.requests().is_empty());
    mock.stop().await;
}
