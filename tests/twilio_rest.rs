//! Twilio's client against the simulated Twilio, over real sockets: every method of the trait, every failure typed, no
//! secret in any of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{Timestamp, ToSpan as _};
use offhook::mock::twilio::{Callee, Fault, MockCall, MockNumber, MockTwilio, MockTwilioConfig, Way};
use offhook::providers::credentials::Credentials;
use offhook::providers::provider::{
    CallOutcome, Dial, HistoryQuery, OutgoingMessage, PastCall, Provider, RecordingLink, WebhookSetting, Webhooks,
};
use offhook::providers::recording;
use offhook::providers::rest::{Limits, ProviderError};
use offhook::providers::twilio::{KIND, Twilio};
use offhook::telephony::{Direction, PhoneNumber};
use tokio::net::TcpListener;

const SID: &str = "AC00000000000000000000000000000001";
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const KEY: (&str, &str) = ("SK00000000000000000000000000000001", "the-keys-own-secret");
const LINE: &str = "+380441234567";
const LIMIT: Duration = Duration::from_secs(10);

async fn simulate(change: impl FnOnce(&mut MockTwilioConfig)) -> MockTwilio {
    let mut config = MockTwilioConfig {
        account_sid: SID.into(),
        auth_token: TOKEN.into(),
        numbers: vec![MockNumber::new(LINE), MockNumber::new("+12125551234")],
        api_key: Some((KEY.0.into(), KEY.1.into())),
        ring: Duration::from_millis(10),
        recording_delay: Duration::from_millis(30),
        ..MockTwilioConfig::default()
    };
    change(&mut config);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    MockTwilio::start(config, listener).unwrap()
}

fn client_with(base: &str, values: &[(&str, &str)]) -> Arc<dyn Provider> {
    let mut all = HashMap::from([("account_sid", SID), ("auth_token", TOKEN), ("api_base", base)]);
    all.extend(values.iter().copied());
    let all = all.into_iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let credentials = Credentials::new(&KIND, all).unwrap();
    let limits = Limits {
        request: Duration::from_millis(500),
        first_wait: Duration::from_millis(10),
        longest_wait: Duration::from_secs(1),
        ..Limits::default()
    };
    Arc::new(Twilio::with_limits(&credentials, limits).unwrap())
}

fn client(mock: &MockTwilio) -> Arc<dyn Provider> {
    client_with(&mock.api_base(), &[])
}

fn hooks() -> Webhooks {
    let hook = |route: &str| format!("http://127.0.0.1:1/webhooks/twilio/x/{route}");
    Webhooks { voice: hook("voice"), status: hook("status"), sms: hook("sms") }
}

fn dial(to: &str) -> Dial {
    Dial {
        line: LINE.into(),
        to: PhoneNumber::new(to),
        answer_url: hooks().voice,
        status_url: hooks().status,
        detect_machine: false,
        ring_s: 30,
        max_call_s: 600,
    }
}

fn text(to: &str) -> OutgoingMessage {
    OutgoingMessage {
        from: None, to: PhoneNumber::new(to), text: "Добрий день".into(), status_url: String::new()
    }
}

fn setting(name: &str, value: &str) -> WebhookSetting {
    WebhookSetting { name: name.into(), value: value.into() }
}

fn posts(mock: &MockTwilio) -> usize {
    mock.requests().iter().filter(|seen| seen.way == Way::In && seen.method == "POST").count()
}

#[tokio::test]
async fn an_account_is_verified_and_its_troubles_are_said() {
    let mock = simulate(|_| {}).await;
    let account = client(&mock).verify().await.unwrap();
    assert_eq!((account.name.as_str(), account.warnings.len()), ("Simulated account", 0));

    let mock = simulate(|config| {
        config.trial = true;
        config.status = "suspended".into();
    })
    .await;
    let account = client(&mock).verify().await.unwrap();
    assert!(account.warnings[0].contains("suspended") && account.warnings[1].contains("trial"), "{account:?}");
}

#[tokio::test]
async fn a_key_that_may_not_read_the_account_is_verified_by_the_numbers() {
    let mock = simulate(|_| {}).await;
    let key = [("api_key", KEY.0), ("api_secret", KEY.1)];
    assert_eq!(client_with(&mock.api_base(), &key).verify().await.unwrap().name, SID);
    let wrong = client_with(&mock.api_base(), &[("api_key", KEY.0), ("api_secret", "wrong")]);
    let error = wrong.verify().await.unwrap_err();
    assert!(matches!(&error, ProviderError::WrongKey { fields, .. } if fields.contains("api_secret")), "{error}");
}

#[tokio::test]
async fn numbers_are_listed_over_all_pages_with_what_overrides_their_webhooks() {
    let mock = simulate(|config| {
        config.max_page = 2;
        config.numbers.push(MockNumber::new("+15550000003").with("VoiceApplicationSid", "AP1"));
        config.numbers.push(MockNumber::new("+15550000004").with("TrunkSid", "TK1").with("SmsApplicationSid", "AP2"));
        let mut mute = MockNumber::new("+15550000005").with("VoiceReceiveMode", "fax");
        mute.sms = false;
        config.numbers.push(mute);
    })
    .await;
    let lines = client(&mock).lines().await.unwrap();
    assert_eq!(lines.len(), 5);
    assert_eq!((lines[0].number.as_str(), lines[0].voice, lines[0].sms), (LINE, true, true));
    assert!(lines[0].warnings.is_empty() && lines[0].id.as_ref().unwrap().starts_with("PN"));
    assert!(lines[2].warnings[0].contains("application AP1"));
    assert!(lines[3].warnings[0].contains("trunk TK1") && lines[3].warnings[1].contains("AP2"));
    assert!(!lines[4].sms && lines[4].warnings[0].contains("faxes"));
}

#[tokio::test]
async fn webhooks_are_written_once_shown_repaired_and_put_back() {
    let mock = simulate(|_| {}).await;
    let (client, hooks) = (client(&mock), hooks());
    let before = mock.number(LINE).unwrap();

    let shown = client.inspect_line(LINE, &hooks).await.unwrap();
    assert_eq!(posts(&mock), 0);
    assert!(shown.found.contains(&setting("VoiceUrl", "https://demo.twilio.com/welcome/voice/")));
    let wanted = |name: &str, value: &str| vec![setting(name, value)];
    let all = [("VoiceUrl", &hooks.voice), ("StatusCallback", &hooks.status), ("SmsUrl", &hooks.sms)];
    assert_eq!(shown.wanted, all.map(|(name, value)| setting(name, value)));

    let prepared = client.prepare_line(LINE, &hooks).await.unwrap();
    assert_eq!((&prepared, posts(&mock)), (&shown, 1));
    let number = mock.number(LINE).unwrap();
    assert_eq!((number.setting("VoiceUrl"), number.setting("VoiceMethod")), (hooks.voice.as_str(), "POST"));

    assert!(client.prepare_line(LINE, &hooks).await.unwrap().wanted.is_empty());
    assert_eq!(posts(&mock), 1, "what is right is not written again");

    mock.set_number(number.with("VoiceMethod", "GET"));
    assert_eq!(client.inspect_line(LINE, &hooks).await.unwrap().wanted, wanted("VoiceMethod", "POST"));
    client.prepare_line(LINE, &hooks).await.unwrap();
    assert!(client.inspect_line(LINE, &hooks).await.unwrap().wanted.is_empty());

    client.restore_line(LINE, &prepared.found).await.unwrap();
    for name in ["VoiceUrl", "VoiceMethod", "SmsUrl", "SmsMethod", "StatusCallback"] {
        assert_eq!(mock.number(LINE).unwrap().setting(name), before.setting(name), "{name}");
    }
    let strange = client.restore_line(LINE, &[setting("TrunkSid", "TK1")]).await;
    assert!(matches!(strange, Err(ProviderError::Invalid { field: "before", .. })));
}

#[tokio::test]
async fn an_override_is_said_and_left_alone() {
    let mock = simulate(|config| config.numbers[0] = MockNumber::new(LINE).with("TrunkSid", "TK1")).await;
    let state = client(&mock).prepare_line(LINE, &hooks()).await.unwrap();
    assert!(state.warnings[0].contains("TK1"));
    assert_eq!(mock.number(LINE).unwrap().setting("TrunkSid"), "TK1");
}

#[tokio::test]
async fn nothing_is_asked_of_twilio_for_an_address_that_it_cannot_call() {
    // Twilio's own address: a request would show as another error.
    let client = client_with("https://127.0.0.1:1", &[]);
    let plain = hooks();
    for result in [
        client.prepare_line(LINE, &plain).await.map(drop),
        client.dial(&dial("+380501234567")).await.map(drop),
        client.prepare_line(LINE, &Webhooks { voice: String::new(), ..plain.clone() }).await.map(drop),
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, ProviderError::Invalid { field: "public_url", .. }), "{error}");
    }
}

#[tokio::test]
async fn a_number_of_somebody_else_is_not_ours() {
    let mock = simulate(|_| {}).await;
    let client = client(&mock);
    for line in ["+380449999999", "+38044123456", "901", "PN00000000000000000000000000000009"] {
        let error = client.inspect_line(line, &hooks()).await.unwrap_err();
        assert_eq!(error, ProviderError::NotOwned { what: line.into() });
    }
    assert!(client.inspect_line("+380 (44) 123-45-67", &hooks()).await.is_ok());
    let from_nobody = Dial { line: "+380449999999".into(), ..dial("+380501234567") };
    let error = client.dial(&from_nobody).await.unwrap_err();
    assert_eq!(error, ProviderError::NotOwned { what: "+380449999999".into() });
}

#[tokio::test]
async fn a_call_is_asked_for_with_what_it_needs_and_no_more() {
    let mock = simulate(|_| {}).await;
    let dialled = client(&mock).dial(&Dial { detect_machine: true, ..dial("+380501234567") }).await.unwrap();
    assert!(dialled.provider_call.unwrap().starts_with("CA"));
    let asked = mock.requests().into_iter().find(|seen| seen.way == Way::In).unwrap();
    assert_eq!((asked.field("From"), asked.field("Timeout"), asked.field("TimeLimit")), (LINE, "30", "600"));
    let events: Vec<&str> = asked
        .fields
        .iter()
        .filter(|(name, _)| name == "StatusCallbackEvent")
        .map(|(_, event)| event.as_str())
        .collect();
    assert_eq!(events, ["ringing", "completed"]);
    assert_eq!((asked.field("MachineDetection"), asked.field("AsyncAmd")), ("Enable", "true"));
    assert_eq!(asked.field("Record"), "");
}

#[tokio::test]
async fn a_call_is_hung_up_as_often_as_one_likes() {
    let mock = simulate(|config| {
        config.callees.insert("+380501234567".into(), Callee::NoAnswer);
        config.ring = Duration::from_secs(60);
    })
    .await;
    let client = client(&mock);
    let sid = client.dial(&dial("+380501234567")).await.unwrap().provider_call.unwrap();
    client.hang_up(&sid).await.unwrap();
    assert_eq!(mock.call_when(&sid, LIMIT, MockCall::is_over).await.unwrap().status, "canceled");
    client.hang_up(&sid).await.unwrap();
    client.hang_up("CA000000000000000000000000000000ff").await.unwrap();
    assert!(matches!(client.hang_up("../Accounts").await, Err(ProviderError::Invalid { field: "call", .. })));
}

#[tokio::test]
async fn a_call_that_is_over_cannot_be_transferred() {
    let mock = simulate(|_| {}).await;
    let over = MockCall::past("+380501234567", LINE, "inbound", "completed", Timestamp::now(), 5);
    let sid = over.sid.clone();
    mock.remember(over);
    let error = client(&mock).transfer(&sid, &PhoneNumber::new("+380671112233")).await.unwrap_err();
    assert!(matches!(error, ProviderError::NotFound { .. }), "{error}");
    assert_eq!(posts(&mock), 0);
}

/// Thirty calls, a minute apart, oldest first: every third one made by us, every fifth one busy.
fn past(mock: &MockTwilio) -> Timestamp {
    let began: Timestamp = "2026-03-01T23:45:00Z".parse().unwrap();
    for index in 0..30i64 {
        let at = began + index.minutes();
        let status = if index % 5 == 0 { "busy" } else { "completed" };
        let other = if index % 2 == 0 { "+380501234567" } else { "+48221234567" };
        let call = match index % 3 {
            0 => MockCall::past(LINE, other, "outbound-api", status, at, 10 + index as u64),
            _ => MockCall::past(other, LINE, "inbound", status, at, 10 + index as u64),
        };
        mock.remember(call);
    }
    began
}

async fn whole_history(client: &Arc<dyn Provider>, query: HistoryQuery) -> Vec<PastCall> {
    let (mut query, mut calls) = (query, Vec::new());
    for _ in 0..100 {
        let page = client.history(&query).await.unwrap();
        assert!(page.calls.len() <= query.limit);
        calls.extend(page.calls);
        match page.next {
            Some(next) => query.cursor = Some(next),
            None => return calls,
        }
    }
    panic!("no end");
}

#[tokio::test]
async fn history_is_paged_to_its_end_newest_first() {
    let mock = simulate(|_| {}).await;
    past(&mock);
    let client = client(&mock);
    for limit in [1, 7, 30, 1_000] {
        let calls = whole_history(&client, HistoryQuery { limit, ..HistoryQuery::default() }).await;
        assert_eq!(calls.len(), 30, "{limit}");
        assert!(calls.windows(2).all(|pair| pair[0].started > pair[1].started));
    }
    let newest = &client.history(&HistoryQuery { limit: 1, ..HistoryQuery::default() }).await.unwrap().calls[0];
    assert_eq!(
        (newest.direction, newest.outcome, newest.talk_s),
        (Direction::Inbound, CallOutcome::Answered, Some(39))
    );
    assert_eq!((newest.from.as_str(), newest.to.as_str()), ("+48221234567", LINE));
}

#[tokio::test]
async fn history_is_filtered_by_number_on_either_side_by_outcome_and_by_the_second() {
    let mock = simulate(|config| config.max_page = 4).await;
    let began = past(&mock);
    let client = client(&mock);
    let query = |limit| HistoryQuery { limit, ..HistoryQuery::default() };
    for limit in [1, 4, 50] {
        let number = HistoryQuery { phone: Some(PhoneNumber::new("+380501234567")), ..query(limit) };
        let calls = whole_history(&client, number).await;
        assert_eq!(calls.len(), 15, "{limit}");
        assert!(calls.windows(2).all(|pair| pair[0].started > pair[1].started), "{limit}");
        assert!(calls.iter().any(|call| call.direction == Direction::Outbound));

        let busy = HistoryQuery { status: Some(CallOutcome::Busy), ..query(limit) };
        let calls = whole_history(&client, busy).await;
        assert_eq!((calls.len(), calls[0].talk_s), (6, None));

        // Over midnight of UTC, and not by whole days.
        let some = HistoryQuery { from: Some(began + 10.minutes()), to: Some(began + 20.minutes()), ..query(limit) };
        assert_eq!(whole_history(&client, some).await.len(), 11);
        let none = HistoryQuery { status: Some(CallOutcome::Voicemail), ..query(limit) };
        assert!(whole_history(&client, none).await.is_empty());
    }
}

#[tokio::test]
async fn a_call_between_two_of_our_numbers_is_in_the_history_once() {
    let mock = simulate(|_| {}).await;
    mock.remember(MockCall::past(LINE, LINE, "inbound", "completed", "2026-03-01T12:00:00Z".parse().unwrap(), 5));
    let query = HistoryQuery { phone: Some(PhoneNumber::new(LINE)), limit: 10, ..HistoryQuery::default() };
    assert_eq!(whole_history(&client(&mock), query).await.len(), 1);
}

#[tokio::test]
async fn a_message_goes_out_from_a_number_of_the_receivers_country() {
    let mock = simulate(|_| {}).await;
    let client = client(&mock);
    let sent = client.send_message(&text("+380501234567")).await.unwrap();
    assert_eq!((sent.from.as_str(), sent.status.as_str()), (LINE, "queued"));
    assert_eq!(client.send_message(&text("+12133734253")).await.unwrap().from.as_str(), "+12125551234");
    let reads = mock.requests().iter().filter(|seen| seen.url.contains("IncomingPhoneNumbers")).count();
    assert_eq!(reads, 1, "the senders are remembered");
    let chosen = OutgoingMessage { from: Some(PhoneNumber::new("+12125551234")), ..text("+380501234567") };
    assert_eq!(client.send_message(&chosen).await.unwrap().from.as_str(), "+12125551234");
    assert_eq!(mock.messages()[0].body, "Добрий день");
}

#[tokio::test]
async fn a_messaging_service_picks_the_sender_where_there_is_one() {
    let service = "MG00000000000000000000000000000001";
    let mock = simulate(|config| config.messaging_service_sid = Some(service.into())).await;
    let client = client_with(&mock.api_base(), &[("messaging_service_sid", service)]);
    let sent = client.send_message(&text("+380501234567")).await.unwrap();
    assert_eq!((sent.from.as_str(), sent.status.as_str()), ("", "accepted"));
    assert_eq!(mock.requests()[0].field("MessagingServiceSid"), service);
}

#[tokio::test]
async fn a_message_that_cannot_be_sent_says_why() {
    let mock = simulate(|config| {
        config.undeliverable = HashMap::from([("+380501111111".into(), 21610), ("+380502222222".into(), 21614)]);
    })
    .await;
    let client = client(&mock);
    for (to, code, words) in [("+380501111111", "21610", "opted out"), ("+380502222222", "21614", "no mobile")] {
        let error = client.send_message(&text(to)).await.unwrap_err();
        assert!(matches!(&error, ProviderError::Refused { code: c, .. } if c == code), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    let before = posts(&mock);
    for (message, field) in [
        (OutgoingMessage { text: " ".into(), ..text("+380501234567") }, "text"),
        (OutgoingMessage { text: "x".repeat(1_601), ..text("+380501234567") }, "text"),
        (text("0501234567"), "to"),
    ] {
        let error = client.send_message(&message).await.unwrap_err();
        assert!(matches!(&error, ProviderError::Invalid { field: f, .. } if *f == field), "{error}");
    }
    assert_eq!(posts(&mock), before);
    let silent = simulate(|config| config.numbers.iter_mut().for_each(|number| number.sms = false)).await;
    let error = self::client(&silent).send_message(&text("+380501234567")).await.unwrap_err();
    assert!(matches!(error, ProviderError::Invalid { field: "from", .. }), "{error}");
}

#[tokio::test]
async fn a_recording_is_there_when_it_is_ready() {
    let mock = simulate(|config| config.record = true).await;
    let client = client(&mock);
    let none = MockCall::past("+380501234567", LINE, "inbound", "completed", Timestamp::now(), 5);
    let sid = none.sid.clone();
    mock.remember(none);
    assert!(client.recording(&sid).await.unwrap().is_none());

    let sid = client.dial(&dial("+380501234567")).await.unwrap().provider_call.unwrap();
    mock.call_when(&sid, LIMIT, MockCall::is_over).await.unwrap();
    let began = Instant::now();
    let link = loop {
        if let Some(link) = client.recording(&sid).await.unwrap() {
            break link;
        }
        assert!(began.elapsed() < LIMIT, "no recording");
        tokio::task::yield_now().await;
    };
    assert!(link.url.starts_with(&format!("{}/2010-04-01/Accounts/{SID}/Recordings/RE", mock.api_base())), "{link:?}");
    assert!(!link.url.contains(TOKEN) && !format!("{link:?}").contains("Basic"));
    let sound = recording::open(&link, Some("bytes=0-3")).await.unwrap();
    assert!(sound.content_type.starts_with("audio/"), "{}", sound.content_type);
    let stranger = RecordingLink { authorization: None, ..link };
    let error = recording::open(&stranger, None).await.err().expect("the file is the account's");
    assert!(matches!(error, ProviderError::NoRight { .. }), "{error}");
}

#[tokio::test]
async fn wrong_keys_no_rights_and_trials_are_told_apart() {
    let mock = simulate(|config| {
        config.trial = true;
        config.verified = vec!["+380501234567".into()];
    })
    .await;
    let wrong = client_with(&mock.api_base(), &[("auth_token", "wrong-token")]);
    let error = wrong.lines().await.unwrap_err();
    assert!(
        matches!(&error, ProviderError::WrongKey { fields, .. } if *fields == "account_sid and auth_token"),
        "{error}"
    );
    let error = client(&mock).dial(&dial("+380671112233")).await.unwrap_err();
    assert!(error.to_string().contains("21219") && error.to_string().contains("verify the number"), "{error}");
    let suspended = simulate(|config| config.status = "suspended".into()).await;
    let error = client(&suspended).dial(&dial("+380671112233")).await.unwrap_err();
    assert!(matches!(error, ProviderError::NoRight { .. }), "{error}");
}

#[tokio::test]
async fn reads_are_tried_again_and_what_makes_a_call_is_not() {
    let mock = simulate(|_| {}).await;
    let client = client(&mock);
    for fault in [Fault::Broken, Fault::Gateway, Fault::Limited { retry_after_s: 0 }] {
        mock.spoil(fault, 2);
        assert_eq!(client.lines().await.unwrap().len(), 2, "{fault:?}");
    }
    mock.spoil(Fault::Limited { retry_after_s: 1 }, 1);
    let began = Instant::now();
    assert!(client.lines().await.is_ok());
    assert!(began.elapsed() >= Duration::from_secs(1), "Retry-After is kept");

    mock.spoil(Fault::Limited { retry_after_s: 600 }, 1);
    let began = Instant::now();
    assert_eq!(client.lines().await.unwrap_err(), ProviderError::RateLimited { retry_s: Some(600) });
    assert!(began.elapsed() < Duration::from_secs(1), "too long a wait is an answer");

    for (fault, is_expected) in [
        (Fault::Broken, (|e| matches!(e, ProviderError::Unreachable { maybe_done: true, .. })) as fn(&_) -> bool),
        (Fault::Lost, |e| matches!(e, ProviderError::Unreachable { maybe_done: true, .. })),
        (Fault::Slow { ms: 2_000 }, |e| matches!(e, ProviderError::Unreachable { maybe_done: true, .. })),
        (Fault::Limited { retry_after_s: 0 }, |e| matches!(e, ProviderError::RateLimited { .. })),
        (Fault::Nonsense, |e| matches!(e, ProviderError::Nonsense { .. })),
    ] {
        let before = posts(&mock);
        mock.spoil(fault, 1);
        let error = client.dial(&dial("+380501234567")).await.unwrap_err();
        assert!(is_expected(&error), "{fault:?}: {error:?}");
        assert_eq!(posts(&mock), before + 1, "{fault:?}");
        mock.spoil(fault, 1);
        let message = OutgoingMessage { from: Some(PhoneNumber::new(LINE)), ..text("+380501234567") };
        assert!(is_expected(&client.send_message(&message).await.unwrap_err()), "{fault:?}");
        assert_eq!(posts(&mock), before + 2, "{fault:?}");
    }
}

#[tokio::test]
async fn nobody_there_is_not_maybe_done() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let error = client_with(&base, &[]).dial(&dial("+380501234567")).await.unwrap_err();
    assert!(
        matches!(&error, ProviderError::Unreachable { maybe_done: false, host, .. } if host == "127.0.0.1"),
        "{error}"
    );
}

#[tokio::test]
async fn no_error_of_any_kind_shows_a_secret() {
    let mock = simulate(|_| {}).await;
    let client = client_with(&mock.api_base(), &[("secondary_auth_token", "second-secret-token")]);
    let mut shown = format!("{:?}", client.verify().await);
    for fault in [
        Fault::Broken,
        Fault::Gateway,
        Fault::Nonsense,
        Fault::Refused { code: 21211 },
        Fault::Refused { code: 99999 },
        Fault::Limited { retry_after_s: 600 },
        Fault::Slow { ms: 5_000 },
    ] {
        mock.spoil(fault, 3);
        let error = client.verify().await.unwrap_err();
        shown += &format!("{error:?} {error}");
        mock.spoil(fault, 1);
        let error = client.dial(&dial("+380501234567")).await.unwrap_err();
        shown += &format!("{error:?} {error}");
        mock.spoil(fault, 0);
        let _ = client.lines().await;
    }
    for secret in [TOKEN, "second-secret-token", "+380501234567", "Basic "] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
}
