//! Calls that run through a simulated cloud PBX from end to end: its webhooks, its REST, its registrar and its RTP, with a
//! recorded customer on the other side of it. The agent is the whole program with scripted engines.

#[path = "common/stores.rs"]
mod stores;

mod common;

#[path = "common/whole.rs"]
mod whole;

use std::sync::Arc;
use std::time::Duration;

use offhook::load::caller::{CallerReport, Ending};
use offhook::load::fixture::Ender;
use offhook::mock::binotel::{self, BinotelConfig, MockBinotel};
use offhook::mock::ringostat::{self, MockRingostat, RingostatConfig};
use offhook::mock::switch::SwitchConfig;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::timeout;
use uuid::Uuid;

use crate::common::{Cast, PATIENCE, quick};
use crate::stores::Base;
use crate::whole::{
    Company, Whole, binotel_credentials, caller, front_desk, id, items, ringostat_credentials, text, until,
};

const CUSTOMER: &str = "+380501234567";
/// The customer's telephone rings so long when the PBX has called our side.
const RING: Duration = Duration::from_millis(100);

fn switch() -> SwitchConfig {
    let listen = "127.0.0.1:0".parse().expect("an address");
    SwitchConfig { record: true, ..SwitchConfig::new(listen, caller(Ender::Caller)) }
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a free port")
}

async fn program() -> (Whole, Company) {
    let whole = Whole::start(Base::sqlite(), Cast::new(quick()), |config| {
        config.sip.listen = "127.0.0.1:0".parse().expect("an address");
        config.sip.rtp.listen = "127.0.0.1".parse().expect("an address");
        config.sip.rtp.port_rest_s = 0;
    })
    .await;
    let company = whole.company("Acme", json!({ "allowed_countries": ["*"] })).await;
    (whole, company)
}

/// An integration with a line whose account is registered at the PBX; where its webhooks go.
async fn registered(company: &Company, provider: &str, credentials: Value, line: &str) -> (Uuid, String) {
    let integration = company.integration("Cloud PBX", provider, credentials).await;
    let agent = company.agent(front_desk()).await;
    company.line(integration, line, agent).await;
    until("the account is registered", async || {
        let line = items(company.get("/lines").await).into_iter().next()?;
        (line["registration"]["state"] == "registered").then_some(())
    })
    .await;
    let hook = company.get(&format!("/integrations/{integration}/webhook")).await;
    (integration, text(&hook["url"]).to_owned())
}

fn with_sip(mut credentials: Value, registrar: std::net::SocketAddr, user: &str, password: &str) -> Value {
    credentials["sip.registrar"] = json!(registrar.to_string());
    credentials["sip.user"] = json!(user);
    credentials["sip.password"] = json!(password);
    credentials
}

/// The customer heard the agent and was heard by it: energy in the ear, a line in the transcript, packets both ways.
fn talked(talk: &CallerReport, record: &Value) {
    assert!(!talk.ending.is_failure(), "{talk:?}");
    assert_eq!(talk.ending, Ending::CallerHungUp);
    let recording = talk.recording.as_ref().expect("it is recorded");
    let loudest = recording.agent.chunks(160).map(energy).fold(0.0, f64::max);
    assert!(loudest > 200.0 && talk.figures.agent_speech_s > 0.5, "{loudest} {:?}", talk.figures);
    assert_eq!(talk.figures.unanswered, 0, "{:?}", talk.figures);
    let rtp = talk.rtp.expect("packets were counted");
    assert!(rtp.sent > 100 && rtp.received > 100 && rtp.lost < rtp.received / 20, "{rtp:?}");
    let said = Company::said(record);
    assert!(said.iter().any(|line| line.starts_with("caller:")), "{said:?}");
    assert!(said.iter().filter(|line| line.starts_with("agent:")).count() >= 2, "{said:?}");
    assert_eq!(record["end"], json!({ "by": "caller", "reason": "hung_up" }), "{record}");
    assert_eq!(record["legs"][0]["transport"], "sip", "{record}");
}

fn energy(samples: &[i16]) -> f64 {
    let power: f64 = samples.iter().map(|&sample| f64::from(sample).powi(2)).sum();
    (power / samples.len().max(1) as f64).sqrt()
}

fn order() -> Value {
    json!({ "to": CUSTOMER, "purpose": "confirm a table", "greeting": "Good day, this is Acme, about your table." })
}

/// A call that was ordered: it stays what it was ordered as.
fn ordered(record: &Value) {
    assert_eq!((text(&record["direction"]), text(&record["purpose"])), ("outbound", "confirm a table"), "{record}");
    assert_eq!(Company::said(record)[0], "agent: Good day, this is Acme, about your table.", "{record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ringostat_brings_a_customer_and_calls_one_back() {
    let (whole, company) = program().await;
    let config = RingostatConfig { ring: RING, sip: Some(switch()), ..RingostatConfig::default() };
    let mock = MockRingostat::start(config, listener().await).expect("it starts");
    let registrar = mock.registrar().expect("a SIP side");
    let credentials = with_sip(ringostat_credentials(&mock), registrar, "acme_concierge", "mock-sip-password-701");
    let (integration, hook) = registered(&company, "ringostat", credentials, "acme_concierge").await;
    mock.set_webhook(hook);
    let verified = company.post(&format!("/integrations/{integration}/verify"), json!({})).await;
    assert!(verified.to_string().contains("acme_concierge") || verified["ok"] != json!(false), "{verified}");

    let inbound = mock.call(ringostat::Call { from: "380501234567".into(), ..ringostat::Call::default() });
    let inbound = timeout(PATIENCE * 3, inbound).await.expect("the call ends");
    let statuses: Vec<_> = inbound.deliveries.iter().map(|told| (told.event.as_str(), told.status)).collect();
    assert_eq!(statuses, [("in_before", Some(200)), ("in_answer", Some(200)), ("in_after", Some(200))]);
    let call = company.only_call(|call| call["ended_at"].is_string()).await;
    assert_eq!(text(&call["provider_call"]), inbound.call_id, "{call}");
    let record = company.record(id(&call)).await;
    assert_eq!((text(&record["direction"]), text(&record["from"])), ("inbound", CUSTOMER), "{record}");
    talked(&mock.talks()[0], &record);
    let logged = mock.log().pop().expect("it is in the log");
    assert_eq!((logged.disposition.as_str(), logged.connected_with.as_str()), ("ANSWERED", "acme_concierge"));
    assert!(logged.talk_s >= 2, "{logged:?}");

    let dialled = id(&company.post("/calls", order()).await);
    let record = company.record(dialled).await;
    ordered(&record);
    let after = timeout(PATIENCE, mock.delivered("out_after")).await.expect("the PBX tells of the end");
    assert_eq!(after.status, Some(200));
    talked(&mock.talks()[1], &record);
    let calls = company.calls().await;
    assert_eq!(calls.len(), 2, "webhooks and INVITE are one call: {calls:#?}");
    let call = calls.iter().find(|call| id(call) == dialled).expect("it is listed");
    assert_eq!(text(&call["provider_call"]), after.call, "{call}");
    whole.stop().await;
    mock.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn binotel_brings_a_customer_and_calls_one_back() {
    let (whole, company) = program().await;
    // The INVITE follows the webhook at once: still one call.
    let config = BinotelConfig { ring: Duration::ZERO, sip: Some(switch()), ..BinotelConfig::default() };
    let mock = MockBinotel::start(config, listener().await).expect("it starts");
    let registrar = mock.registrar().expect("a SIP side");
    let credentials = with_sip(binotel_credentials(&mock), registrar, "mock901", "mock-sip-password-901");
    let (_, hook) = registered(&company, "binotel", credentials, "901").await;
    mock.set_webhook(hook);

    let inbound = mock.call(binotel::Call { from: "0501234567".into(), ..binotel::Call::default() });
    let inbound = timeout(PATIENCE * 3, inbound).await.expect("the call ends");
    let kinds: Vec<_> = inbound.deliveries.iter().map(|told| (told.event.as_str(), told.status)).collect();
    let expected = ["apiCallSettings", "receivedTheCall", "answeredTheCall", "hangupTheCall", "apiCallCompleted"];
    assert_eq!(kinds, expected.map(|kind| (kind, Some(200))));
    let call = company.only_call(|call| call["ended_at"].is_string()).await;
    assert_eq!(text(&call["provider_call"]), inbound.call_id, "{call}");
    let record = company.record(id(&call)).await;
    assert_eq!((text(&record["direction"]), text(&record["from"])), ("inbound", CUSTOMER), "{record}");
    talked(&mock.talks()[0], &record);

    let dialled = id(&company.post("/calls", order()).await);
    let record = company.record(dialled).await;
    ordered(&record);
    talked(&mock.talks()[1], &record);
    let over = until("the PBX knows of the end", async || mock.log().pop().filter(|call| call.ended.is_some())).await;
    assert!(over.outgoing && over.disposition == "ANSWER" && over.talk_s >= 2, "{over:?}");
    let calls = company.calls().await;
    assert_eq!(calls.len(), 2, "webhooks and INVITE are one call: {calls:#?}");
    let call = calls.iter().find(|call| id(call) == dialled).expect("it is listed");
    assert_eq!(text(&call["provider_call"]), over.id.to_string(), "{call}");
    whole.stop().await;
    mock.stop().await;
}

/// Says what it was told of the call, and what it must not know.
const TELLER: &str = r#"
version = 1
name = "teller"
language = "en"
[fallback]
say = ["Sorry?"]
tries = 9
goto = "bye"
[[node]]
id = "hello"
kind = "start"
say = "The {webhook.X_Order_Name}{% if webhook.call_type == 'in' or webhook.callType == '0' %}, for a caller{% endif %}{% if webhook.project_id or webhook.companyID or webhook.X_Auth_Token %}, leaked{% endif %}{% if vars.paid %}, paid for{% endif %}."
goto = "open"
[[node]]
id = "open"
kind = "listen"
say = "What else?"
  [[node.when]]
  hear = ["nothing"]
  goto = "bye"
[[node]]
id = "bye"
kind = "end"
say = "Goodbye."
"#;

fn told_switch() -> SwitchConfig {
    let headers = [("X-Order-Name", "Blue Lamp"), ("X-Auth-Token", "very-secret"), ("Subject", "none of ours")];
    SwitchConfig { headers: headers.map(|(name, value)| (name.into(), value.into())).into(), ..switch() }
}

/// The agent of every line is the teller.
async fn tells(company: &Company) {
    let agent = items(company.get("/agents").await).remove(0);
    let profile = json!({ "name": "Teller", "llm": { "engine": "builtin" }, "workflow": TELLER });
    company.put(&format!("/agents/{}", id(&agent)), profile).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_ringostat_webhook_and_an_invite_tell_reaches_the_workflow_together() {
    let (whole, company) = program().await;
    let config = RingostatConfig { ring: RING, sip: Some(told_switch()), ..RingostatConfig::default() };
    let mock = MockRingostat::start(config, listener().await).expect("it starts");
    let registrar = mock.registrar().expect("a SIP side");
    let credentials = with_sip(ringostat_credentials(&mock), registrar, "acme_concierge", "mock-sip-password-701");
    let (_, hook) = registered(&company, "ringostat", credentials, "acme_concierge").await;
    mock.set_webhook(hook);
    tells(&company).await;
    until("the server knows the teller", async || {
        whole.directory.load().lines().any(|line| line.agent.name == "Teller").then_some(())
    })
    .await;

    let inbound = mock.call(ringostat::Call { from: "380501234567".into(), ..ringostat::Call::default() });
    timeout(PATIENCE * 3, inbound).await.expect("the call ends");
    let call = company.only_call(|call| call["ended_at"].is_string()).await;
    let record = company.record(id(&call)).await;
    assert_eq!(Company::said(&record)[0], "agent: The Blue Lamp, for a caller. What else?", "{record}");

    // A call back, asked for with a variable.
    let order = json!({ "to": CUSTOMER, "vars": { "paid": true } });
    let record = company.record(id(&company.post("/calls", order).await)).await;
    assert_eq!(Company::said(&record)[0], "agent: The Blue Lamp, paid for. What else?", "{record}");
    assert_eq!(record["vars"], json!({ "paid": true }));
    whole.stop().await;
    mock.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_binotel_webhook_and_an_invite_tell_reaches_the_workflow_together() {
    let (whole, company) = program().await;
    let config = BinotelConfig { ring: Duration::ZERO, sip: Some(told_switch()), ..BinotelConfig::default() };
    let mock = MockBinotel::start(config, listener().await).expect("it starts");
    let registrar = mock.registrar().expect("a SIP side");
    let credentials = with_sip(binotel_credentials(&mock), registrar, "mock901", "mock-sip-password-901");
    let (_, hook) = registered(&company, "binotel", credentials, "901").await;
    mock.set_webhook(hook);
    tells(&company).await;
    until("the server knows the teller", async || {
        whole.directory.load().lines().any(|line| line.agent.name == "Teller").then_some(())
    })
    .await;

    let inbound = mock.call(binotel::Call { from: "0501234567".into(), ..binotel::Call::default() });
    timeout(PATIENCE * 3, inbound).await.expect("the call ends");
    let call = company.only_call(|call| call["ended_at"].is_string()).await;
    let record = company.record(id(&call)).await;
    assert_eq!(Company::said(&record)[0], "agent: The Blue Lamp, for a caller. What else?", "{record}");
    whole.stop().await;
    mock.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_is_told_that_nobody_answers_when_no_account_is_registered() {
    let config = RingostatConfig { ring: RING, sip: Some(switch()), ..RingostatConfig::default() };
    let mock = MockRingostat::start(config, listener().await).expect("it starts");
    mock.call(ringostat::Call { from: "380501234567".into(), ..ringostat::Call::default() }).await;
    assert_eq!(mock.log()[0].disposition, "NO ANSWER");
    let talks: Vec<Arc<CallerReport>> = mock.talks();
    assert_eq!(talks[0].ending, Ending::ConnectFailed("not registered".into()));
    mock.stop().await;
}
