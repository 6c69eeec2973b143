//! From nothing to an answered call and its record, by API and by set-up file, at each provider.

use std::process::ExitCode;

use jiff::Timestamp;
use offhook::cli::apply::{Args, Surroundings, apply};
use offhook::load::fixture::Ender;
use offhook::mock::{binotel, ringostat};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::common::{Cast, PATIENCE, http};
use crate::stores::Base;
use crate::whole::{
    self, CALLER, Company, LINE, TOKEN, Whole, account, binotel_credentials, brief, caller, front_desk, id, items,
    ringostat_credentials, text, twilio_credentials, until,
};

crate::on_every_store! {
    a_twilio_company_is_set_up_over_the_api_and_answers_a_call
    a_ringostat_company_is_set_up_over_the_api_and_has_its_calls_in_its_history
    a_binotel_company_is_set_up_over_the_api_and_routes_its_calls_to_the_agents_line
    one_file_sets_up_all_three_and_each_takes_a_call
}

async fn a_twilio_company_is_set_up_over_the_api_and_answers_a_call(base: Base) {
    let whole = Whole::start(base, Cast::new(brief()), |config| config.recording.enabled = true).await;
    let mock =
        whole::twilio(offhook::mock::twilio::MockTwilioConfig { caller: Some(caller(Ender::Caller)), ..account() })
            .await;
    let acme = whole.company("Acme", json!({})).await;
    let integration = acme.integration("Main", "twilio", twilio_credentials(&mock)).await;
    let verified = acme.post(&format!("/integrations/{integration}/verify"), Value::Null).await;
    assert_eq!(verified["account"], "Simulated account");
    let there = acme.get(&format!("/integrations/{integration}/lines")).await;
    assert_eq!((&there["items"][0]["number"], &there["items"][0]["line_id"]), (&json!(LINE), &Value::Null));
    let agent = acme.agent(front_desk()).await;
    let line = acme.line(integration, LINE, agent).await;

    // Written, drifted, repaired.
    let webhook = format!("/integrations/{integration}/webhook");
    let bought = mock.number(LINE).unwrap();
    assert_eq!(acme.get(&webhook).await["lines"][0]["drifted"], true);
    let written = acme.put(&webhook, json!({})).await;
    assert_eq!((&written["lines"][0]["written"], &written["lines"][0]["drifted"]), (&json!(true), &json!(false)));
    let voice = whole.url(&format!("/webhooks/twilio/{integration}/voice"));
    assert_eq!(mock.number(LINE).unwrap().setting("VoiceUrl"), voice);
    mock.set_number(mock.number(LINE).unwrap().with("VoiceUrl", "https://elsewhere.example/"));
    let drifted = acme.get(&webhook).await;
    assert_eq!(drifted["lines"][0]["drifted"], true);
    assert_eq!(drifted["lines"][0]["wanted"], json!([{ "name": "VoiceUrl", "value": voice }]));
    acme.put(&webhook, json!({ "lines": [line] })).await;
    assert_eq!(mock.number(LINE).unwrap().setting("VoiceUrl"), voice);

    let sid = mock.ring(CALLER, LINE).unwrap();
    let running = acme.only_call(|call| call["outcome"] == "running").await;
    let call = id(&running);
    let watched = acme.request(Method::GET, &format!("/calls/{call}/events")).send().await.unwrap();
    let seen = tokio::time::timeout(PATIENCE, watched.text()).await.expect("the stream ends with the call").unwrap();
    assert!(seen.contains("event: said") && seen.contains("We open at nine."), "{seen}");
    assert!(seen.contains("event: ended"), "{seen}");
    let over = mock.call_when(&sid, PATIENCE, |call| call.is_over()).await.expect("it ends");
    assert_eq!((over.status.as_str(), over.errors.len(), over.streams.len()), ("completed", 0, 1), "{over:?}");

    let record = acme.record(call).await;
    assert_eq!(
        Company::said(&record),
        ["agent: Hello.", "caller: What time do you open today?", "agent: We open at nine."]
    );
    assert_eq!(record["end"], json!({ "by": "caller", "reason": "hung_up" }));
    assert_eq!(
        (&record["provider_call"], &record["line"], &record["from"]),
        (&json!(sid), &json!(LINE), &json!(CALLER))
    );
    assert_eq!((&record["agent"], &record["agent_id"]), (&json!("Front desk"), &json!(agent)));
    let [leg] = &record["legs"].as_array().unwrap()[..] else { panic!("one leg: {record}") };
    assert!(leg["transport"] == "twilio" && leg["ended"].is_string(), "{leg}");
    let at = |moment: &str| text(&record[moment]).parse::<Timestamp>().expect("a moment");
    assert!(at("started") <= at("answered") && at("answered") < at("ended"), "{record}");
    assert_eq!(acme.get(&format!("/calls/{call}/transcript")).await, record["transcript"]);
    let listed = acme.only_call(|call| call["provider_status"] == "completed").await;
    assert_eq!((&listed["outcome"], &listed["direction"]), (&json!("answered"), &json!("inbound")));
    assert_eq!(items(acme.get("/calls?phone=%2B380501234567&status=answered").await).len(), 1);
    assert_eq!(items(acme.get("/calls?status=busy").await).len(), 0);
    let sound = acme.request(Method::GET, &format!("/calls/{call}/recording")).send().await.unwrap();
    assert_eq!(sound.headers()["content-type"], "audio/wav", "{}", sound.status());

    acme.delete(&webhook).await;
    for name in ["VoiceUrl", "SmsUrl", "StatusCallback"] {
        assert_eq!(mock.number(LINE).unwrap().setting(name), bought.setting(name), "{name}");
    }
    whole.stop().await;
}

async fn a_ringostat_company_is_set_up_over_the_api_and_has_its_calls_in_its_history(base: Base) {
    let whole = Whole::start(base, Cast::new(brief()), |_| {}).await;
    let mock = whole::ringostat().await;
    let acme = whole.company("Acme", json!({})).await;
    let integration = acme.integration("Ringostat", "ringostat", ringostat_credentials(&mock)).await;
    let verified = acme.post(&format!("/integrations/{integration}/verify"), Value::Null).await;
    assert_eq!(verified["account"], "Ringostat project 12345");
    let there = items(acme.get(&format!("/integrations/{integration}/lines")).await);
    assert_eq!((&there[0]["number"], &there[0]["online"]), (&json!("acme_concierge"), &json!(true)));
    let agent = acme.agent(front_desk()).await;
    acme.line(integration, "acme_concierge", agent).await;
    let webhook = acme.get(&format!("/integrations/{integration}/webhook")).await;
    assert_eq!(webhook["mode"], "typed");
    assert!(webhook["instructions"].to_string().contains("in_after"), "{webhook}");
    mock.set_webhook(text(&webhook["url"]));
    assert_eq!(acme.ask(Method::PUT, &format!("/integrations/{integration}/webhook"), json!({})).await.0, 409);

    call_comes_in_at_ringostat(&acme, &mock).await;
    whole.stop().await;
}

/// The events of one call make one record.
async fn call_comes_in_at_ringostat(company: &Company, mock: &ringostat::MockRingostat) {
    let call = ringostat::Call { from: CALLER.trim_start_matches('+').into(), ..ringostat::Call::default() };
    let simulated = mock.call(call).await;
    let told: Vec<_> = simulated.deliveries.iter().map(|told| (told.event.as_str(), told.status)).collect();
    assert_eq!(told, [("in_before", Some(200)), ("in_answer", Some(200)), ("in_after", Some(200))]);
    let call = until("the call has ended", async || {
        let calls = company.calls().await;
        calls.into_iter().find(|call| call["provider_call"] == *simulated.call_id && call["ended_at"].is_string())
    });
    let call = call.await;
    assert_eq!((&call["outcome"], &call["provider_status"]), (&json!("answered"), &json!("ANSWERED")));
    assert_eq!((&call["talk_s"], &call["answered_by"]), (&json!(66), &json!("acme_concierge")));
    assert_eq!((&call["from"], &call["to"]), (&json!(CALLER), &json!("+380441234567")));
    assert_eq!((&call["direction"], &call["line"]), (&json!("inbound"), &json!("acme_concierge")));
    let known = items(
        company.get(&format!("/calls?phone=%2B380501234567&integration={}", text(&call["integration_id"]))).await,
    );
    assert_eq!(known.len(), 1, "{known:#?}");
    let record = company.record(id(&call)).await;
    assert_eq!((&record["provider"], &record["end"]["by"]), (&json!("ringostat"), &json!("carrier")));
}

async fn a_binotel_company_is_set_up_over_the_api_and_routes_its_calls_to_the_agents_line(base: Base) {
    let whole = Whole::start(base, Cast::new(brief()), |_| {}).await;
    let mock = whole::binotel(|_| {}).await;
    let acme = whole.company("Acme", json!({})).await;
    let integration = acme.integration("Binotel", "binotel", binotel_credentials(&mock)).await;
    let verified = acme.post(&format!("/integrations/{integration}/verify"), Value::Null).await;
    assert_eq!(verified["account"], "Binotel company 1000, 2 internal numbers");
    let there = items(acme.get(&format!("/integrations/{integration}/lines")).await);
    let numbers: Vec<&str> = there.iter().map(|line| text(&line["number"])).collect();
    assert_eq!(numbers, ["901", "902"]);
    let agent = acme.agent(front_desk()).await;
    acme.line(integration, "901", agent).await;
    let webhook = acme.get(&format!("/integrations/{integration}/webhook")).await;
    assert_eq!(webhook["mode"], "typed");
    mock.set_webhook(text(&webhook["url"]));

    call_comes_in_at_binotel(&acme, &mock, text(&webhook["url"])).await;
    whole.stop().await;
}

async fn call_comes_in_at_binotel(company: &Company, mock: &binotel::MockBinotel, url: &str) {
    let simulated = mock.call(binotel::Call { from: "0501234567".into(), ..binotel::Call::default() }).await;
    assert_eq!((simulated.route.as_deref(), simulated.internal.as_str()), (Some("15"), "901"));
    let told: Vec<&str> = simulated.deliveries.iter().map(|told| told.event.as_str()).collect();
    assert_eq!(told, ["apiCallSettings", "receivedTheCall", "answeredTheCall", "hangupTheCall", "apiCallCompleted"]);
    assert!(simulated.deliveries.iter().all(|told| told.status == Some(200)), "{:?}", simulated.deliveries);
    let last = simulated.deliveries.last().unwrap();
    assert_eq!((last.attempt, last.answer.as_str()), (1, r#"{"status":"success"}"#));
    // The answer got lost: Binotel tells the same thing again.
    let form = "application/x-www-form-urlencoded";
    let again = http().post(url).header("content-type", form).body(last.sent.clone()).send().await.unwrap();
    assert_eq!((again.status().as_u16(), again.text().await.unwrap()), (200, r#"{"status":"success"}"#.to_owned()));

    let of_call = async || {
        let calls = company.calls().await;
        calls.into_iter().filter(|call| call["provider_call"] == *simulated.call_id).collect::<Vec<_>>()
    };
    // What a webhook told is acted on beside the others.
    let whole = |call: &Value| call["talk_s"] == 64 && call["answered_by"].is_string();
    let call = until("the call has ended", async || of_call().await.into_iter().find(whole)).await;
    assert_eq!(of_call().await.len(), 1, "one record");
    assert_eq!((&call["outcome"], &call["provider_status"]), (&json!("answered"), &json!("ANSWER")));
    assert_eq!((&call["from"], &call["to"]), (&json!(CALLER), &json!("+380441234567")));
    assert_eq!((&call["answered_by"], &call["line"]), (&json!("901"), &json!("901")));
    let record = company.record(id(&call)).await;
    assert_eq!((&record["provider"], &record["direction"]), (&json!("binotel"), &json!("inbound")));
}

/// One company with all three providers, as a person would write it down.
const FILE: &str = r#"
    [[company]]
    name = "Acme"

    [[integration]]
    company = "Acme"
    name = "Twilio"
    provider = "twilio"
    account_sid = "AC00000000000000000000000000000001"
    auth_token = "${TWILIO_AUTH_TOKEN}"
    api_base = "${TWILIO}"

    [[integration]]
    company = "Acme"
    name = "Ringostat"
    provider = "ringostat"
    auth_key = "mock-auth-key"
    project_id = "12345"
    api_base = "${RINGOSTAT}"
    request_gap_ms = 0
    time_zone = "+02:00"

    [[integration]]
    company = "Acme"
    name = "Binotel"
    provider = "binotel"
    key = "mock-key"
    secret = "mock-secret"
    company_id = "1000"
    api_base = "${BINOTEL}"
    stats_gap_ms = 10
    allowed_addresses = ["127.0.0.0/8"]
    routes = ["901=15"]

    [[line]]
    integration = "Twilio"
    number = "+380441234567"
    agent = "Front desk"

    [[line]]
    integration = "Ringostat"
    number = "acme_concierge"
    agent = "Front desk"

    [[line]]
    integration = "Binotel"
    number = "901"
    agent = "Front desk"

    [[agent]]
    company = "Acme"
    name = "Front desk"
    greeting = "Hello."
    tools = ["make_call", "send_sms", "get_call_history"]
"#;

async fn one_file_sets_up_all_three_and_each_takes_a_call(base: Base) {
    let whole = Whole::start(base, Cast::new(brief()), |_| {}).await;
    let config = offhook::mock::twilio::MockTwilioConfig { caller: Some(caller(Ender::Caller)), ..account() };
    let (twilio, ringostat, binotel) =
        (whole::twilio(config).await, whole::ringostat().await, whole::binotel(|_| {}).await);
    let file = whole.base.dir.path().join("setup.toml");
    std::fs::write(&file, FILE).unwrap();
    let args = Args { file, prune: false, dry_run: false, no_verify: false };
    let url = whole.url("");
    let surroundings = Surroundings {
        store: &whole.base.config,
        secrets_key: whole.base.key.as_ref(),
        public_url: Some(&url),
        knowledge: &Default::default(),
    };
    let lookup = |name: &str| match name {
        "TWILIO_AUTH_TOKEN" => Some(TOKEN.to_owned()),
        "TWILIO" => Some(twilio.api_base()),
        "RINGOSTAT" => Some(ringostat.base_url()),
        "BINOTEL" => Some(binotel.base_url()),
        _ => None,
    };
    let mut out = Vec::new();
    let code = apply(&args, surroundings, &lookup, &mut out).await.unwrap();
    let printed = String::from_utf8(out).unwrap();
    assert_eq!(code, ExitCode::SUCCESS, "{printed}");
    for line in
        ["8 created", "Simulated account", "Ringostat project 12345", "Binotel company 1000", "webhooks written"]
    {
        assert!(printed.contains(line), "{line}:\n{printed}");
    }
    let integration = |name: &str| -> (Uuid, String) {
        let line = printed.lines().find(|line| line.contains(&format!("Acme / {name}: {url}"))).expect("its address");
        let address = line.split_whitespace().last().unwrap();
        (address.split('/').nth_back(1).unwrap().parse().unwrap(), address.to_owned())
    };
    let (on_twilio, voice) = integration("Twilio");
    assert_eq!(twilio.number(LINE).unwrap().setting("VoiceUrl"), voice);
    let (on_ringostat, at_ringostat) = integration("Ringostat");
    let (on_binotel, at_binotel) = integration("Binotel");
    let company = whole.store.companies(offhook::store::Part { after: None, limit: 2 }).await.unwrap().items[0].id;
    let acme = whole.keyed(company).await;
    acme.knows(on_twilio, LINE).await;
    acme.knows(on_ringostat, "acme_concierge").await;
    acme.knows(on_binotel, "901").await;

    let sid = twilio.ring(CALLER, LINE).unwrap();
    twilio.call_when(&sid, PATIENCE, |call| call.is_over()).await.expect("it ends");
    let call = acme.only_call(|call| call["provider_call"] == *sid && call["provider_status"] == "completed").await;
    let record = acme.record(id(&call)).await;
    assert_eq!(Company::said(&record).last().unwrap(), "agent: We open at nine.");
    ringostat.set_webhook(at_ringostat);
    call_comes_in_at_ringostat(&acme, &ringostat).await;
    binotel.set_webhook(&at_binotel);
    call_comes_in_at_binotel(&acme, &binotel, &at_binotel).await;
    assert_eq!(acme.calls().await.len(), 3);
    whole.stop().await;
}
