use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use offhook::mock::binotel::{BinotelConfig, Call, LoggedCall, MockBinotel};
use offhook::mock::stage::Fault;
use offhook::providers::provider::{
    CallOutcome, CallState, Dial, Event, HistoryQuery, OutgoingMessage, Provider, RecordingLink, Refusal, Webhooks,
};
use offhook::providers::recording;
use offhook::providers::rest::ProviderError;
use offhook::telephony::{Direction, PhoneNumber};
use tokio::time::timeout;

use crate::door::{Door, SOON, Settings, http, listener, open};

fn quick() -> BinotelConfig {
    BinotelConfig {
        ring: Duration::from_millis(5),
        talk: Duration::from_millis(5),
        retries: vec![Duration::from_millis(5); 6],
        stats_gap: Duration::ZERO,
        recording_after: Duration::ZERO,
        ..BinotelConfig::default()
    }
}

async fn mock(config: BinotelConfig) -> MockBinotel {
    MockBinotel::start(config, listener().await).unwrap()
}

fn client_with(mock: &MockBinotel, more: &[(&str, &str)]) -> Arc<dyn Provider> {
    let base = mock.base_url();
    let mut values = vec![
        ("key", "mock-key"),
        ("secret", "mock-secret"),
        ("company_id", "1000"),
        ("api_base", &base),
        ("stats_gap_ms", "10"),
        ("allowed_addresses", "127.0.0.0/8"),
        ("routes", "901=15, 902=16"),
    ];
    values.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
    values.extend(more.iter().filter(|(_, value)| !value.is_empty()));
    open("binotel", &values)
}

fn client(mock: &MockBinotel) -> Arc<dyn Provider> {
    client_with(mock, &[])
}

fn dial() -> Dial {
    Dial {
        line: "901".into(),
        to: PhoneNumber::new("+380501234567"),
        answer_url: String::new(),
        status_url: String::new(),
        detect_machine: false,
        ring_s: 30,
        max_call_s: 600,
    }
}

fn past(id: u64, minutes_ago: i64, external: &str, disposition: &str) -> LoggedCall {
    let started = Timestamp::now() - SignedDuration::from_mins(minutes_ago);
    LoggedCall {
        id,
        started,
        outgoing: false,
        internal: "901".into(),
        external: external.into(),
        disposition: disposition.into(),
        wait_s: 8,
        talk_s: if disposition == "ANSWER" { 64 } else { 0 },
        steps: vec![("901".into(), disposition.into())],
        ended: Some(started),
    }
}

#[tokio::test]
async fn verifying_lists_internal_numbers_and_shows_no_password() {
    let mock = mock(quick()).await;
    let client = client(&mock);
    let account = client.verify().await.unwrap();
    assert_eq!(account.name, "Binotel company 1000, 2 internal numbers");
    assert!(account.warnings.is_empty(), "{:?}", account.warnings);
    let lines = client.lines().await.unwrap();
    let known: Vec<_> = lines.iter().map(|line| (line.number.as_str(), line.name.as_str())).collect();
    assert_eq!(known, [("901", "AI Agent"), ("902", "Анна")], "one endpoint alone, and a map of them");
    let printed = format!("{account:?} {lines:?} {}", serde_json::to_string(&lines).unwrap());
    assert!(!printed.contains("password") && !printed.contains("mock901"), "{printed}");
}

#[tokio::test]
async fn a_company_id_that_is_not_set_is_found_in_todays_calls() {
    let mock = mock(quick()).await;
    mock.add_call(past(5_000_000_001, 5, "0501234567", "ANSWER"));
    let account = client_with(&mock, &[("company_id", "")]).verify().await.unwrap();
    assert!(account.warnings[0].contains("company_id") && account.warnings[0].contains("1000"), "{account:?}");
}

#[tokio::test]
async fn a_refusal_names_its_cause_and_keeps_the_secrets() {
    let mock = mock(quick()).await;
    let wrong_key = client_with(&mock, &[("secret", "some-other-secret")]).verify().await.unwrap_err();
    assert!(matches!(wrong_key, ProviderError::WrongKey { fields: "key and secret", .. }), "{wrong_key}");
    assert!(!format!("{wrong_key} {wrong_key:?}").contains("some-other-secret"));
    mock.fail(Fault::Closed, 1);
    let closed = client(&mock).verify().await.unwrap_err();
    assert!(matches!(&closed, ProviderError::ClosedToAddress { detail } if detail.contains("support@binotel.ua")));
    mock.fail(Fault::Nonsense, 1);
    let nonsense = client(&mock).verify().await.unwrap_err();
    assert!(matches!(&nonsense, ProviderError::Nonsense { detail, .. } if !detail.contains("html")), "{nonsense}");

    let nobody = listener().await;
    let base = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let silent = client_with(&mock, &[("api_base", &base)]).hang_up("5000000001").await.unwrap_err();
    let ProviderError::Unreachable { detail, maybe_done, .. } = &silent else { panic!("{silent}") };
    assert!(detail.contains("listed addresses"), "{detail}");
    assert!(!maybe_done, "there was no connection");
}

#[tokio::test]
async fn reads_are_tried_again_when_binotel_wants_a_pause() {
    let mock = mock(quick()).await;
    for fault in [Fault::Limited, Fault::Broken, Fault::Refused, Fault::Slow] {
        mock.fail(fault, 1);
        client(&mock).verify().await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
    }
    mock.fail(Fault::Limited, 3);
    let limited = client(&mock).verify().await.unwrap_err();
    assert!(matches!(limited, ProviderError::RateLimited { retry_s: Some(5) }), "{limited}");
}

#[tokio::test]
async fn statistics_are_asked_at_a_pace_that_binotel_bears() {
    let mock = mock(BinotelConfig { stats_gap: Duration::from_millis(150), ..quick() }).await;
    let client = client_with(&mock, &[("stats_gap_ms", "200")]);
    let began = Instant::now();
    for _ in 0..8 {
        assert!(client.recording("5000000001").await.unwrap().is_none());
    }
    assert!(began.elapsed() >= Duration::from_millis(3 * 200), "{:?}", began.elapsed());
}

#[tokio::test]
async fn history_is_read_by_the_day_and_filtered() {
    let mock = mock(quick()).await;
    mock.add_call(past(5_000_000_004, 5, "0501234567", "ANSWER"));
    mock.add_call(past(5_000_000_003, 60 * 30, "0671112233", "NOANSWER"));
    mock.add_call(past(5_000_000_002, 60 * 70, "0501234567", "VM-SUCCESS"));
    mock.add_call(past(5_000_000_001, 60 * 71, "0501234567", "SMS-SUCCESS"));
    let client = client(&mock);
    let ids = async |query: HistoryQuery| -> Vec<String> {
        let page = client.history(&query).await.unwrap();
        page.calls.iter().map(|call| call.provider_call[7..].to_owned()).collect()
    };
    let from = Some(Timestamp::now() - SignedDuration::from_hours(80));
    let all = HistoryQuery { limit: 10, from, ..HistoryQuery::default() };
    assert_eq!(ids(all.clone()).await, ["004", "003", "002"], "a text message is no call");
    let missed = HistoryQuery { status: Some(CallOutcome::NoAnswer), ..all.clone() };
    assert_eq!(ids(missed).await, ["003"]);
    let phone = Some(PhoneNumber::new("+380501234567"));
    assert_eq!(ids(HistoryQuery { phone: phone.clone(), ..all.clone() }).await, ["004", "002"]);
    assert_eq!(ids(HistoryQuery { phone, limit: 10, ..HistoryQuery::default() }).await, ["004", "002"]);
    let to = Some(Timestamp::now() - SignedDuration::from_hours(24));
    assert_eq!(ids(HistoryQuery { to, ..all }).await, ["003", "002"]);

    let page = client.history(&HistoryQuery { limit: 1, from, ..HistoryQuery::default() }).await.unwrap();
    let call = &page.calls[0];
    assert_eq!((call.from.as_str(), call.to.as_str()), ("+380501234567", "+380441234567"));
    assert_eq!((call.outcome, call.talk_s, call.ring_s), (CallOutcome::Answered, Some(64), Some(8)));
    assert_eq!(call.answered_by.as_deref(), Some("901"));
    assert_eq!(call.recording, Some(true));
}

#[tokio::test]
async fn pages_of_history_hold_each_call_once() {
    let mock = mock(quick()).await;
    for id in 0..60 {
        // Some at the very same second.
        mock.add_call(past(5_000_000_001 + id, 60 * (20 - (id as i64) / 3) * 4, "0501234567", "ANSWER"));
    }
    let client = client(&mock);
    for phone in [None, Some(PhoneNumber::new("+380501234567"))] {
        let from = Some(Timestamp::now() - SignedDuration::from_hours(100));
        let mut query = HistoryQuery { limit: 7, from, phone, ..HistoryQuery::default() };
        let mut found = HashSet::new();
        let mut pages = 0;
        loop {
            let page = client.history(&query).await.unwrap();
            pages += 1;
            assert!(page.calls.len() <= 7 && pages < 30);
            for call in page.calls {
                assert!(found.insert(call.provider_call.clone()), "{} twice", call.provider_call);
            }
            match page.next {
                Some(next) => query.cursor = Some(next),
                None => break,
            }
        }
        assert_eq!(found.len(), 60);
    }
}

#[tokio::test]
async fn a_recording_comes_late_and_its_link_lives_a_quarter_of_an_hour() {
    let mock = mock(BinotelConfig { recording_after: Duration::from_secs(120), ..quick() }).await;
    mock.add_call(past(5_000_000_001, 1, "0501234567", "ANSWER"));
    mock.add_call(past(5_000_000_002, 3, "0501234567", "ANSWER"));
    mock.add_call(past(5_000_000_003, 3, "0501234567", "NOANSWER"));
    let client = client(&mock);
    assert!(client.recording("5000000001").await.unwrap().is_none(), "not yet");
    assert!(client.recording("5000000003").await.unwrap().is_none(), "nobody spoke");
    let link = client.recording("5000000002").await.unwrap().unwrap();
    let life = link.expires.unwrap().duration_since(Timestamp::now());
    assert!((SignedDuration::from_mins(14)..=SignedDuration::from_mins(15)).contains(&life), "{life}");
    let sound = recording::open(&link, None).await.unwrap();
    assert_eq!((sound.content_type.as_str(), sound.length, sound.partial), ("audio/wav", Some(16_044), false));
    let pieces: Vec<_> = sound.body.map(Result::unwrap).collect().await;
    assert_eq!(&pieces.concat()[..4], b"RIFF");

    let mock = self::mock(BinotelConfig { link_life: Duration::ZERO, ..quick() }).await;
    mock.add_call(past(5_000_000_001, 3, "0501234567", "ANSWER"));
    let link = self::client(&mock).recording("5000000001").await.unwrap().unwrap();
    let late = recording::open(&link, None).await.err().unwrap();
    assert!(matches!(late, ProviderError::NoRight { .. }), "{late}");
    assert!(!format!("{link:?} {late}").contains("until="), "the link is a secret");
    let page = RecordingLink { url: format!("{}/api/4.0/", mock.base_url()), ..link };
    let none = recording::open(&page, None).await.err().unwrap();
    assert!(matches!(none, ProviderError::NotFound { .. } | ProviderError::Nonsense { .. }), "{none}");
    let odd = client.recording("../1").await.unwrap_err();
    assert!(matches!(odd, ProviderError::NotFound { .. }), "{odd}");
}

#[tokio::test]
async fn a_call_is_made_told_and_completed() {
    let mock = mock(quick()).await;
    let client = client(&mock);
    let door = Door::open(Arc::clone(&client), Settings::default()).await;
    mock.set_webhook(&door.url);
    let id = client.dial(&dial()).await.unwrap().provider_call.unwrap();
    let seen = door.until(|seen| seen.acted.len() == 4).await;
    let Event::CallProgressed { news, state: CallState::Ringing } = &seen.acted[0] else { panic!("{seen:?}") };
    assert_eq!(news.provider_call.as_ref(), Some(&id));
    assert_eq!(news.direction, Some(Direction::Outbound));
    assert_eq!((news.line.as_deref(), news.to.as_str()), (Some("901"), "+380501234567"));
    assert!(matches!(&seen.acted[1], Event::CallProgressed { state: CallState::Answered { by: None }, .. }));
    assert!(matches!(
        &seen.acted[2],
        Event::CallProgressed { state: CallState::Ended { outcome: CallOutcome::Answered, .. }, .. }
    ));
    let Event::CallCompleted(call) = &seen.acted[3] else { panic!("{seen:?}") };
    assert_eq!((&call.provider_call, call.direction), (&id, Direction::Outbound));
}

#[tokio::test]
async fn a_call_may_be_made_as_an_incoming_one() {
    let mock = mock(quick()).await;
    let client = client_with(&mock, &[("dial_method", "incoming"), ("pbx_number", "0441234567")]);
    let door = Door::open(Arc::clone(&client), Settings { route: Some("902"), ..Settings::default() }).await;
    mock.set_webhook(&door.url);
    let id = client.dial(&dial()).await.unwrap().provider_call.unwrap();
    let seen = door.until(|seen| matches!(seen.acted.last(), Some(Event::CallCompleted(_)))).await;
    assert!(matches!(&seen.acted[0], Event::CallOffered(_)));
    let Some(Event::CallCompleted(call)) = seen.acted.last() else { panic!() };
    assert_eq!((&call.provider_call, call.answered_by.as_deref()), (&id, Some("902")));
}

#[tokio::test]
async fn a_call_is_never_asked_for_twice() {
    let mock = mock(quick()).await;
    let client = client(&mock);
    for fault in [Fault::Limited, Fault::Broken, Fault::Refused] {
        mock.fail(fault, 1);
        let error = client.dial(&dial()).await.unwrap_err();
        let expected = match fault {
            Fault::Limited => matches!(error, ProviderError::RateLimited { .. }),
            Fault::Broken => matches!(error, ProviderError::Unreachable { maybe_done: true, .. }),
            _ => matches!(&error, ProviderError::Refused { code, .. } if code == "105"),
        };
        assert!(expected, "{fault:?}: {error}");
    }
    let offline = client.dial(&Dial { line: "999".into(), ..dial() }).await.unwrap_err();
    assert!(matches!(&offline, ProviderError::Refused { code, .. } if code == "150"), "{offline}");
    let short = client.dial(&Dial { to: PhoneNumber::new("912"), ..dial() }).await.unwrap_err();
    assert!(matches!(short, ProviderError::Invalid { field: "to", .. }), "{short}");
    assert_eq!(mock.log(), []);
}

#[tokio::test]
async fn a_live_call_is_hung_up_and_hanging_up_again_is_no_error() {
    let mock = mock(BinotelConfig { talk: Duration::from_secs(600), ..quick() }).await;
    let client = client(&mock);
    let door = Door::open(Arc::clone(&client), Settings::default()).await;
    mock.set_webhook(&door.url);
    let id = client.dial(&dial()).await.unwrap().provider_call.unwrap();
    door.until(|seen| seen.acted.len() == 2).await;
    client.hang_up(&id).await.unwrap();
    door.until(|seen| matches!(seen.acted.last(), Some(Event::CallCompleted(_)))).await;
    client.hang_up(&id).await.unwrap();
    let unknown = client.hang_up("4999999999").await.unwrap_err();
    assert!(matches!(&unknown, ProviderError::Refused { code, .. } if code == "104"), "{unknown}");
}

#[tokio::test]
async fn a_live_call_is_handed_to_a_person() {
    let mock = mock(BinotelConfig { talk: Duration::from_secs(600), ..quick() }).await;
    let client = client(&mock);
    let door = Door::open(Arc::clone(&client), Settings::default()).await;
    mock.set_webhook(&door.url);
    let id = client.dial(&dial()).await.unwrap().provider_call.unwrap();
    door.until(|seen| seen.acted.len() == 2).await;
    client.transfer(&id, &PhoneNumber::new("912")).await.unwrap();
    let seen = door.until(|seen| seen.acted.len() == 3).await;
    let Event::CallProgressed { state, .. } = &seen.acted[2] else { panic!("{seen:?}") };
    assert_eq!(*state, CallState::Transferred { to: "912".into() });
    client.hang_up(&id).await.unwrap();
    let seen = door.until(|seen| seen.acted.len() == 5).await;
    let Event::CallCompleted(call) = &seen.acted[4] else { panic!("{seen:?}") };
    assert_eq!((call.outcome, call.answered_by.as_deref()), (CallOutcome::Answered, Some("912")));
    let nowhere = client.transfer(&id, &PhoneNumber::new("anna")).await.unwrap_err();
    assert!(matches!(nowhere, ProviderError::Invalid { field: "to", .. }), "{nowhere}");
}

#[tokio::test]
async fn an_incoming_call_is_routed_answered_and_completed_with_one_attempt() {
    let mock = mock(quick()).await;
    let client = client(&mock);
    let door = Door::open(Arc::clone(&client), Settings { route: Some("902"), ..Settings::default() }).await;
    mock.set_webhook(&door.url);
    let call = mock.call(Call { from: "0501234567".into(), transfer_to: Some("901".into()), ..Call::default() }).await;
    assert_eq!((call.route.as_deref(), call.internal.as_str()), (Some("16"), "902"));
    let kinds: Vec<&str> = call.deliveries.iter().map(|delivery| delivery.event.as_str()).collect();
    let order = [
        "apiCallSettings",
        "receivedTheCall",
        "answeredTheCall",
        "transferredTheCall",
        "hangupTheCall",
        "apiCallCompleted",
    ];
    assert_eq!(kinds, order);
    for delivery in &call.deliveries[1..] {
        assert_eq!((delivery.status, delivery.answer.as_str()), (Some(200), r#"{"status":"success"}"#));
    }
    let seen = door.seen();
    let Event::CallOffered(news) = &seen.acted[0] else { panic!("{seen:?}") };
    assert_eq!((news.from.as_str(), news.to.as_str()), ("+380501234567", "+380441234567"));
    let Event::CallCompleted(past) = &seen.acted[5] else { panic!("{seen:?}") };
    assert_eq!(past.provider_call, call.call_id);
    assert_eq!(past.answered_by.as_deref(), Some("901"), "the one it was handed to");
    assert_eq!(seen.repeated, 0);
}

#[tokio::test]
async fn a_completed_call_comes_again_until_it_is_answered_exactly_and_acts_once() {
    let mock = mock(quick()).await;
    let client = client(&mock);
    let door = Door::open(Arc::clone(&client), Settings { failures: 7, ..Settings::default() }).await;
    mock.set_webhook(&door.url);
    let call = mock.call(Call { from: "0501234567".into(), status: Some("NOANSWER".into()), ..Call::default() }).await;
    // The question, the ringing and the end take three of the failures: completion fails four times.
    let last = timeout(SOON, mock.delivered("apiCallCompleted", 5)).await.unwrap();
    assert_eq!((last.status, last.answer.as_str()), (Some(200), r#"{"status":"success"}"#));
    let seen = door.seen();
    let completed = seen.acted.iter().filter(|event| matches!(event, Event::CallCompleted(_))).count();
    assert_eq!((completed, seen.repeated), (1, 4));
    assert_eq!(call.deliveries.len(), 4);
}

#[tokio::test]
async fn seven_attempts_are_made_where_the_answer_is_never_exact() {
    let mock = mock(quick()).await;
    let settings = Settings { always: Some("{\"status\": \"success\"}"), ..Settings::default() };
    let door = Door::open(client(&mock), settings).await;
    mock.set_webhook(&door.url);
    mock.call(Call { from: "0501234567".into(), ..Call::default() }).await;
    timeout(SOON, mock.delivered("apiCallCompleted", 7)).await.unwrap();
    let attempts = mock.deliveries().iter().filter(|delivery| delivery.event == "apiCallCompleted").count();
    assert_eq!(attempts, 7, "a space is enough");
}

#[tokio::test]
async fn webhooks_from_other_addresses_are_refused_unless_the_server_lets_all_in() {
    let mock = mock(quick()).await;
    let client = client_with(&mock, &[("allowed_addresses", "")]);
    let door = Door::open(Arc::clone(&client), Settings::default()).await;
    mock.set_webhook(&door.url);
    mock.call(Call { from: "0501234567".into(), ..Call::default() }).await;
    let seen = door.seen();
    assert!(seen.acted.is_empty() && !seen.refused.is_empty());
    assert!(seen.refused.iter().all(|refusal| *refusal == Refusal::WrongAddress), "{:?}", seen.refused);

    let door = Door::open(client, Settings { any_address: true, ..Settings::default() }).await;
    mock.set_webhook(&door.url);
    mock.call(Call { from: "0501234567".into(), ..Call::default() }).await;
    assert!(door.seen().refused.is_empty());
}

#[tokio::test]
async fn forged_webhooks_from_an_allowed_address_are_refused() {
    let mock = mock(quick()).await;
    let door = Door::open(client(&mock), Settings::default()).await;
    mock.set_webhook(&door.url);
    let call = mock.call(Call { from: "0501234567".into(), ..Call::default() }).await;
    let acted = door.seen().acted.len();
    let completed = &call.deliveries.last().unwrap().sent;
    let sender = http();
    let post = async |body: &str, kind: &str| {
        sender
            .post(&door.url)
            .header("content-type", kind)
            .body(body.to_owned())
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    const FORM: &str = "application/x-www-form-urlencoded";
    assert_eq!(post(completed, FORM).await, 200, "the genuine one, again");
    assert_eq!(post(&completed.replace("companyID%5D=1000", "companyID%5D=1001"), FORM).await, 403);
    assert_eq!(post(&completed.replace("companyID", "company"), FORM).await, 403);
    assert_eq!(post(&completed.replace(&call.call_id, "5%27%3B--"), FORM).await, 403);
    assert_eq!(post("requestType=hangupTheCall&companyID=1001&generalCallID=5", FORM).await, 403);
    assert_eq!(post("{}", "application/json").await, 403);
    assert_eq!(sender.get(format!("{}?{completed}", door.url)).send().await.unwrap().status().as_u16(), 403);
    let seen = door.seen();
    assert_eq!((seen.acted.len(), seen.repeated, seen.refused.len()), (acted, 1, 6));
}

#[tokio::test]
async fn what_binotel_cannot_do_is_said_by_its_capabilities_and_by_an_error() {
    let mock = mock(quick()).await;
    let client = client(&mock);
    let can = client.kind().capabilities;
    assert!(can.dial && can.history && can.recordings && can.hang_up && can.transfer);
    assert!(!can.messages && !can.greeting && !can.writes_webhooks);
    let hooks = Webhooks { voice: String::new(), status: String::new(), sms: String::new() };
    let message = OutgoingMessage {
        from: None,
        to: PhoneNumber::new("+380501234567"),
        text: "hello".into(),
        status_url: String::new(),
    };
    let errors = [
        client.send_message(&message).await.unwrap_err(),
        client.inspect_line("901", &hooks).await.unwrap_err(),
        client.prepare_line("901", &hooks).await.unwrap_err(),
        client.restore_line("901", &[]).await.unwrap_err(),
    ];
    assert!(errors.iter().all(|error| matches!(error, ProviderError::Unsupported { .. })), "{errors:?}");
    assert!(client.instructions("https://voice.example.com/x")[0].contains("https://voice.example.com/x"));
}
