use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use offhook::mock::ringostat::{Call, LoggedCall, MockRingostat, RingostatConfig, Style};
use offhook::mock::stage::Fault;
use offhook::providers::provider::{
    CallOutcome, CallState, Dial, Event, HistoryQuery, OutgoingMessage, PastCall, Provider, Refusal, Webhooks,
};
use offhook::providers::reconcile::{KnownCall, KnownEnd, reconcile};
use offhook::providers::rest::ProviderError;
use offhook::telephony::{Direction, PhoneNumber};
use tokio::time::timeout;

use crate::door::{Door, SOON, Settings, listener, open};

const KEY: &str = "mock-auth-key";

fn quick() -> RingostatConfig {
    RingostatConfig { ring: Duration::from_millis(5), talk: Duration::from_millis(5), ..RingostatConfig::default() }
}

async fn mock(config: RingostatConfig) -> MockRingostat {
    MockRingostat::start(config, listener().await).unwrap()
}

fn client_with(mock: &MockRingostat, more: &[(&str, &str)]) -> Arc<dyn Provider> {
    let base = mock.base_url();
    let mut values = vec![
        ("auth_key", KEY),
        ("project_id", "12345"),
        ("api_base", &base),
        ("request_gap_ms", "0"),
        ("time_zone", "+02:00"),
    ];
    values.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
    values.extend_from_slice(more);
    open("ringostat", &values)
}

fn client(mock: &MockRingostat) -> Arc<dyn Provider> {
    client_with(mock, &[])
}

fn dial() -> Dial {
    Dial {
        line: "acme_concierge".into(),
        to: PhoneNumber::new("+380501234567"),
        answer_url: String::new(),
        status_url: String::new(),
        detect_machine: false,
        ring_s: 30,
        max_call_s: 600,
    }
}

fn past(id: u64, minutes_ago: i64, caller: &str, disposition: &str) -> LoggedCall {
    let started = Timestamp::now() - SignedDuration::from_mins(minutes_ago);
    LoggedCall {
        uniqueid: format!("us1_-{}.{id}", started.as_second()),
        started,
        caller: caller.into(),
        dst: "380441234567".into(),
        call_type: "in",
        disposition: disposition.into(),
        wait_s: 9,
        talk_s: if disposition == "ANSWERED" { 66 } else { 0 },
        connected_with: if disposition == "ANSWERED" { "acme_concierge".into() } else { String::new() },
    }
}

#[tokio::test]
async fn verifying_says_what_the_key_opens_and_lists_who_is_online() {
    let mock = mock(quick()).await;
    let account = client(&mock).verify().await.unwrap();
    assert_eq!(account.name, "Ringostat project 12345");
    assert!(account.warnings.is_empty(), "{:?}", account.warnings);
    let lines = client(&mock).lines().await.unwrap();
    let online: Vec<_> = lines.iter().map(|line| (line.number.as_str(), line.online)).collect();
    assert_eq!(online, [("acme_concierge", Some(true)), ("acme_anna", Some(false))]);
    assert_eq!(lines[0].id.as_deref(), Some("1201"));
    assert_eq!(lines[0].name, "Concierge AI (701)");
}

#[tokio::test]
async fn a_project_without_anybody_online_is_warned_of() {
    let mut config = quick();
    config.staff.iter_mut().for_each(|employee| employee.online = false);
    let mock = mock(config).await;
    let account = client(&mock).verify().await.unwrap();
    assert!(account.warnings[0].contains("online"), "{:?}", account.warnings);
}

#[tokio::test]
async fn a_refusal_names_its_cause_whatever_its_status() {
    let mock = mock(quick()).await;
    let wrong_key = client_with(&mock, &[("auth_key", "some-other-key")]).verify().await.unwrap_err();
    assert!(matches!(wrong_key, ProviderError::WrongKey { fields: "auth_key", .. }), "{wrong_key}");
    assert!(!format!("{wrong_key} {wrong_key:?}").contains("some-other-key"));

    // HTTP 200 with an error inside.
    let wrong_project = client_with(&mock, &[("project_id", "999")]).verify().await.unwrap_err();
    assert!(matches!(&wrong_project, ProviderError::Refused { detail, .. } if detail.contains("Project")));

    mock.fail(Fault::Closed, 1);
    let closed = client(&mock).verify().await.unwrap_err();
    assert!(matches!(closed, ProviderError::NoRight { .. }), "{closed}");
    mock.fail(Fault::Refused, 1);
    let refused = client(&mock).verify().await.unwrap_err();
    assert!(matches!(&refused, ProviderError::Refused { code, .. } if code == "-32000"), "{refused}");
    mock.fail(Fault::Nonsense, 1);
    let nonsense = client(&mock).verify().await.unwrap_err();
    assert!(matches!(nonsense, ProviderError::Nonsense { .. }), "{nonsense}");
}

#[tokio::test]
async fn reads_are_tried_again_when_ringostat_is_out_of_breath_and_a_slow_answer_is_an_answer() {
    let mock = mock(quick()).await;
    mock.fail(Fault::Limited, 1);
    mock.fail(Fault::Broken, 1);
    mock.fail(Fault::Slow, 1);
    client(&mock).verify().await.unwrap();
}

#[tokio::test]
async fn requests_keep_their_distance() {
    let mock = mock(quick()).await;
    let client = client_with(&mock, &[("request_gap_ms", "150")]);
    let began = Instant::now();
    client.verify().await.unwrap();
    client.verify().await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(3 * 150), "four requests in {:?}", began.elapsed());
}

#[tokio::test]
async fn history_is_filtered_by_number_status_and_time() {
    let mock = mock(quick()).await;
    mock.add_call(past(1, 5, "380501234567", "ANSWERED"));
    mock.add_call(past(2, 15, "380671112233", "NO ANSWER"));
    mock.add_call(past(3, 60 * 30, "380501234567", "VOICEMAIL"));
    mock.add_call(past(4, 60 * 24 * 9, "380501234567", "SOMETHING ELSE"));
    let client = client(&mock);
    let ids = async |query: HistoryQuery| -> Vec<String> {
        let page = client.history(&query).await.unwrap();
        assert_eq!(page.next, None);
        page.calls.iter().map(|call| call.provider_call.rsplit('.').next().unwrap().to_owned()).collect()
    };
    let all = HistoryQuery { limit: 10, ..HistoryQuery::default() };
    assert_eq!(ids(all.clone()).await, ["1", "2", "3", "4"]);
    let phone = Some(PhoneNumber::new("+380501234567"));
    assert_eq!(ids(HistoryQuery { phone, ..all.clone() }).await, ["1", "3", "4"]);
    let missed = HistoryQuery { status: Some(CallOutcome::NoAnswer), ..all.clone() };
    assert_eq!(ids(missed).await, ["2"]);
    let failed = HistoryQuery { status: Some(CallOutcome::Failed), ..all.clone() };
    assert_eq!(ids(failed).await, ["4"], "a status that nobody knows is kept");
    let from = Some(Timestamp::now() - SignedDuration::from_mins(10));
    assert_eq!(ids(HistoryQuery { from, ..all.clone() }).await, ["1"]);
    let to = Some(Timestamp::now() - SignedDuration::from_hours(24));
    assert_eq!(ids(HistoryQuery { to, ..all }).await, ["3", "4"]);
}

#[tokio::test]
async fn a_row_of_the_log_is_a_whole_call() {
    let mock = mock(quick()).await;
    let logged = past(1, 5, "380501234567", "ANSWERED");
    mock.add_call(logged.clone());
    let page = client(&mock).history(&HistoryQuery { limit: 1, ..HistoryQuery::default() }).await.unwrap();
    let expected = PastCall {
        provider_call: logged.uniqueid,
        direction: Direction::Inbound,
        from: PhoneNumber::new("+380501234567"),
        to: PhoneNumber::new("+380441234567"),
        outcome: CallOutcome::Answered,
        status: "ANSWERED".into(),
        started: Some(Timestamp::from_second(logged.started.as_second()).unwrap()),
        talk_s: Some(66),
        ring_s: Some(9),
        answered_by: Some("acme_concierge".into()),
        recording: Some(true),
    };
    assert_eq!(page.calls, [expected]);
}

#[tokio::test]
async fn a_day_with_more_calls_than_one_answer_holds_is_read_in_parts() {
    let mock = mock(quick()).await;
    const CALLS: u64 = 7_000;
    // Ten seconds apart: 8,640 fit into a day.
    let newest = Timestamp::now() - SignedDuration::from_mins(1);
    for id in 0..CALLS {
        let mut call = past(id, 1, "380501234567", "ANSWERED");
        call.started = newest - SignedDuration::from_secs(10 * id as i64);
        call.uniqueid = format!("us1_-{}.{id}", call.started.as_second());
        mock.add_call(call);
    }
    let client = client(&mock);
    let from = Some(newest - SignedDuration::from_hours(25));
    let mut query = HistoryQuery { limit: 1_000, from, ..HistoryQuery::default() };
    let mut found = HashSet::new();
    let mut newest_of_page = Timestamp::MAX;
    loop {
        let page = client.history(&query).await.unwrap();
        for call in &page.calls {
            let started = call.started.unwrap();
            assert!(started <= newest_of_page, "newest first, over all pages");
            newest_of_page = started;
            assert!(found.insert(call.provider_call.clone()), "{} twice", call.provider_call);
        }
        match page.next {
            Some(next) => query.cursor = Some(next),
            None => break,
        }
    }
    assert_eq!(found.len() as u64, CALLS);
}

#[tokio::test]
async fn fields_that_the_log_does_not_know_are_done_without() {
    let unknown_fields = ["recording", "caller_number", "waittime"].map(String::from).to_vec();
    let mock = mock(RingostatConfig { unknown_fields, ..quick() }).await;
    mock.add_call(past(1, 5, "380501234567", "ANSWERED"));
    let page = client(&mock).history(&HistoryQuery { limit: 5, ..HistoryQuery::default() }).await.unwrap();
    assert_eq!(page.calls[0].ring_s, None);
    assert_eq!(page.calls[0].talk_s, Some(66));
    assert_eq!(page.calls[0].recording, Some(true), "has_recording still says so");

    let unknown_fields = vec!["disposition".to_owned()];
    let mock = self::mock(RingostatConfig { unknown_fields, ..quick() }).await;
    let error = client(&mock).history(&HistoryQuery { limit: 5, ..HistoryQuery::default() }).await.unwrap_err();
    assert!(matches!(error, ProviderError::Nonsense { .. }), "{error}");
}

#[tokio::test]
async fn a_cursor_that_is_none_of_ours_is_refused() {
    let mock = mock(quick()).await;
    let query = HistoryQuery { limit: 5, cursor: Some("'; --".into()), ..HistoryQuery::default() };
    let error = client(&mock).history(&query).await.unwrap_err();
    assert!(matches!(error, ProviderError::Invalid { field: "cursor", .. }), "{error}");
}

#[tokio::test]
async fn a_recording_has_a_link_when_there_is_one() {
    let mock = mock(quick()).await;
    let (answered, missed) = (past(1, 5, "380501234567", "ANSWERED"), past(2, 15, "380501234567", "NO ANSWER"));
    mock.add_call(answered.clone());
    mock.add_call(missed.clone());
    let client = client(&mock);
    let link = client.recording(&answered.uniqueid).await.unwrap().unwrap();
    assert!(link.url.contains(&answered.uniqueid) && link.url.ends_with("token=EXAMPLE"), "{}", link.url);
    assert!(client.recording(&missed.uniqueid).await.unwrap().is_none());
    assert!(client.recording("us1_-1.1").await.unwrap().is_none());
    assert!(client.recording("../../etc/passwd").await.unwrap().is_none());
}

#[tokio::test]
async fn a_call_is_made_by_callback_and_told_by_webhooks() {
    let mock = mock(quick()).await;
    let client = client(&mock);
    let door = Door::open(Arc::clone(&client), Settings::default()).await;
    mock.set_webhook(&door.url);
    assert_eq!(client.dial(&dial()).await.unwrap().provider_call, None);
    let seen = door.until(|seen| seen.acted.len() == 2).await;
    let Event::CallProgressed { news, state: CallState::Ringing } = &seen.acted[0] else { panic!("{seen:?}") };
    assert_eq!(news.direction, Some(Direction::Outbound));
    assert_eq!((news.from.as_str(), news.to.as_str()), ("acme_concierge", "+380501234567"));
    assert_eq!(news.line.as_deref(), Some("acme_concierge"));
    let Event::CallCompleted(call) = &seen.acted[1] else { panic!("{seen:?}") };
    assert_eq!(call.outcome, CallOutcome::Answered);
    assert_eq!(call.to.as_str(), "+380501234567");
    let logged = client.history(&HistoryQuery { limit: 5, ..HistoryQuery::default() }).await.unwrap();
    assert_eq!(logged.calls[0].direction, Direction::Outbound);
    assert_eq!(logged.calls[0].to.as_str(), "+380501234567");
}

#[tokio::test]
async fn the_simple_callback_is_a_choice_of_the_integration() {
    let mock = mock(quick()).await;
    let more = [("callback_method", "outward_call"), ("outward_extension", "380441234567")];
    let client = client_with(&mock, &more);
    let door = Door::open(Arc::clone(&client), Settings::default()).await;
    mock.set_webhook(&door.url);
    client.dial(&dial()).await.unwrap();
    let seen = door.until(|seen| seen.acted.len() == 2).await;
    let Event::CallCompleted(call) = &seen.acted[1] else { panic!("{seen:?}") };
    assert_eq!(call.direction, Direction::Outbound, "the PBX called the client back");
    assert_eq!((call.from.as_str(), call.to.as_str()), ("+380441234567", "+380501234567"));

    let wrong = client_with(&mock, &[("callback_method", "outward_call"), ("outward_extension", "380440000000")]);
    let refused = wrong.dial(&dial()).await.unwrap_err();
    assert!(matches!(&refused, ProviderError::Refused { code, .. } if code == "400"), "{refused}");
}

#[tokio::test]
async fn a_call_is_never_asked_for_twice() {
    let mock = mock(quick()).await;
    let client = client(&mock);
    for fault in [Fault::Broken, Fault::Limited] {
        mock.fail(fault, 1);
        let error = client.dial(&dial()).await.unwrap_err();
        match fault {
            Fault::Broken => assert!(matches!(error, ProviderError::Unreachable { maybe_done: true, .. }), "{error}"),
            _ => assert!(matches!(error, ProviderError::RateLimited { .. }), "{error}"),
        }
    }
    let nobody = client.dial(&Dial { line: "acme_anna".into(), ..dial() }).await.unwrap_err();
    assert!(matches!(&nobody, ProviderError::Refused { detail, .. } if detail.contains("Callee")), "{nobody}");
    let nonsense = client.dial(&Dial { to: PhoneNumber::new("call me"), ..dial() }).await.unwrap_err();
    assert!(matches!(nonsense, ProviderError::Invalid { field: "to", .. }), "{nonsense}");
    assert_eq!(mock.log(), []);
}

#[tokio::test]
async fn what_ringostat_cannot_do_is_said_by_its_capabilities_and_by_an_error() {
    let mock = mock(quick()).await;
    let client = client(&mock);
    let can = client.kind().capabilities;
    assert!(can.dial && can.history && can.recordings);
    assert!(!can.hang_up && !can.transfer && !can.messages && !can.greeting && !can.writes_webhooks);
    let hooks = Webhooks { voice: String::new(), status: String::new(), sms: String::new() };
    let message = OutgoingMessage {
        from: None,
        to: PhoneNumber::new("+380501234567"),
        text: "hello".into(),
        status_url: String::new(),
    };
    let errors = [
        client.hang_up("us1_-1.1").await.unwrap_err(),
        client.transfer("us1_-1.1", &PhoneNumber::new("701")).await.unwrap_err(),
        client.send_message(&message).await.unwrap_err(),
        client.inspect_line("a", &hooks).await.unwrap_err(),
        client.prepare_line("a", &hooks).await.unwrap_err(),
        client.restore_line("a", &[]).await.unwrap_err(),
    ];
    assert!(errors.iter().all(|error| matches!(error, ProviderError::Unsupported { .. })), "{errors:?}");
}

#[tokio::test]
async fn an_inbound_call_is_told_in_every_data_type_and_under_any_names() {
    for style in [Style::Json, Style::JsonRpc, Style::Form, Style::Query] {
        for own in [false, true] {
            let names = match own {
                true => vec![("call_id".to_owned(), "uid".to_owned()), ("caller".to_owned(), "who".to_owned())],
                false => Vec::new(),
            };
            let mock = mock(RingostatConfig { style, names, ..quick() }).await;
            let more = [("parameters.call_id", "uid"), ("parameters.caller", "{{who}}")];
            let client = client_with(&mock, if own { &more } else { &[] });
            let door = Door::open(Arc::clone(&client), Settings::default()).await;
            mock.set_webhook(format!("{}?fixed=value", door.url));
            let call = mock.call(Call { from: "380501234567".into(), ..Call::default() }).await;
            assert_eq!(call.deliveries.len(), 3, "{style:?}");
            assert!(call.deliveries.iter().all(|delivery| delivery.status == Some(200) && delivery.answer.is_empty()));
            let acted = door.seen().acted;
            assert!(
                matches!(&acted[0], Event::CallProgressed { state: CallState::Ringing, .. }),
                "{style:?} {acted:?}"
            );
            let Event::CallProgressed { news, state: CallState::Answered { by } } = &acted[1] else {
                panic!("{acted:?}")
            };
            assert_eq!(by.as_deref(), Some("acme_concierge"));
            assert_eq!(news.provider_call.as_deref(), Some(call.call_id.as_str()));
            let Event::CallCompleted(past) = &acted[2] else { panic!("{acted:?}") };
            assert_eq!((past.outcome, past.talk_s, past.recording), (CallOutcome::Answered, Some(66), Some(true)));
            assert_eq!(past.from.as_str(), "+380501234567");
        }
    }
}

#[tokio::test]
async fn a_webhook_acts_once_and_a_forged_one_never() {
    let mock = mock(quick()).await;
    let client = client(&mock);
    let door = Door::open(Arc::clone(&client), Settings::default()).await;
    mock.set_webhook(&door.url);
    let call = mock.call(Call { from: "380501234567".into(), ..Call::default() }).await;
    let genuine = &call.deliveries[2].sent;
    let http = crate::door::http();
    let post = async |body: String| {
        let request = http.post(&door.url).header("content-type", "application/json").body(body);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(post(genuine.clone()).await, 200);
    assert_eq!(door.seen().repeated, 1);
    assert_eq!(door.seen().acted.len(), 3);

    assert_eq!(post(genuine.replace("12345", "54321")).await, 403);
    assert_eq!(post(genuine.replace("ANSWERED", "WONDERFUL")).await, 403);
    assert_eq!(post(genuine.replace("380501234567", "\\u0000")).await, 403);
    assert_eq!(post(genuine.replace("project_id", "project")).await, 403);
    assert_eq!(post("{".into()).await, 403);
    assert_eq!(post("[]".into()).await, 403);
    let seen = door.seen();
    assert_eq!(seen.refused[0], Refusal::WrongAccount);
    assert!(seen.refused[1..].iter().all(|refusal| *refusal == Refusal::Malformed), "{:?}", seen.refused);
    assert_eq!(seen.acted.len(), 3);
}

#[tokio::test]
async fn lost_and_forged_webhooks_are_found_in_the_log() {
    let mock = mock(quick()).await;
    let client = client(&mock);
    let door = Door::open(Arc::clone(&client), Settings::default()).await;
    mock.set_webhook(&door.url);
    let all_lost = ["in_before", "in_answer", "in_after"].map(String::from).to_vec();
    let from = || "380501234567".to_owned();
    let good = mock.call(Call { from: from(), ..Call::default() }).await.call_id;
    let unfinished = Call { from: from(), lose: vec!["in_after".into()], ..Call::default() };
    let unfinished = mock.call(unfinished).await.call_id;
    let missed = mock.call(Call { from: from(), lose: all_lost, ..Call::default() }).await.call_id;

    let mut known: Vec<KnownCall> = Vec::new();
    for event in door.seen().acted {
        match event {
            Event::CallProgressed { news, .. } => {
                let id = news.provider_call.unwrap();
                if !known.iter().any(|call| call.names == [id.as_str()]) {
                    known.push(KnownCall { names: vec![id], told: Timestamp::now(), witnessed: false, end: None });
                }
            }
            Event::CallCompleted(past) => {
                let call = known.iter_mut().find(|call| call.names == [past.provider_call.as_str()]).unwrap();
                call.end = Some(KnownEnd { outcome: past.outcome, talk_s: past.talk_s });
            }
            other => panic!("{other:?}"),
        }
    }
    let forged = vec!["us1_-1800000000.9".into()];
    known.push(KnownCall { names: forged, told: Timestamp::now(), witnessed: false, end: None });
    let log = client.history(&HistoryQuery { limit: 100, ..HistoryQuery::default() }).await.unwrap().calls;
    let later = Timestamp::now() + SignedDuration::from_mins(10);
    let found = reconcile(later, &known, &log);
    let ids = |calls: &[PastCall]| calls.iter().map(|call| call.provider_call.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&found.missed), [missed]);
    assert_eq!(ids(&found.corrected), [unfinished]);
    assert_eq!(found.forged, ["us1_-1800000000.9"]);
    assert!(!ids(&found.corrected).contains(&good));
}

#[tokio::test]
async fn the_cabinet_is_told_step_by_step_what_to_send() {
    let mock = mock(quick()).await;
    let client = client_with(&mock, &[("parameters.call_id", "uid")]);
    let steps = client.instructions("https://voice.example.com/webhooks/ringostat/1/secret").join("\n");
    for part in
        ["https://voice.example.com/webhooks/ringostat/1/secret", "in_before", "out_after", "uid", "12345", "billsec"]
    {
        assert!(steps.contains(part), "{part} in {steps}");
    }
}

#[tokio::test]
async fn the_simulator_can_be_driven_by_http_alone() {
    let mock = mock(quick()).await;
    let door = Door::open(client(&mock), Settings::default()).await;
    let http = crate::door::http();
    let post = async |path: &str, body: serde_json::Value| {
        http.post(format!("{}{path}", mock.base_url())).json(&body).send().await.unwrap()
    };
    post("/simulate/webhook", serde_json::json!({ "url": door.url })).await;
    let call = post("/simulate/call", serde_json::json!({ "from": "380501234567", "status": "VOICEMAIL" })).await;
    let call: serde_json::Value = call.json().await.unwrap();
    assert_eq!(call["deliveries"].as_array().unwrap().len(), 2);
    let Event::CallCompleted(past) = &door.seen().acted[1] else { panic!() };
    assert_eq!(past.outcome, CallOutcome::Voicemail);
    timeout(SOON, mock.stop()).await.unwrap();
}
