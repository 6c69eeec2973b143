//! Lines that register at a PBX: how their account stands, calls that come and go through the PBX, callers that are handed
//! to a person, and simulated cloud PBXs whose webhooks and calls are one call.

use std::sync::Arc;

use offhook::call::sip::try_registration;
use offhook::mock::ringostat::Call;
use offhook::providers;
use offhook::providers::credentials::Credentials;
use offhook::providers::sip::SipSettings;
use offhook::speech::scripted::{Answer, ScriptedModel};
use reqwest::Method;
use serde_json::{Value, json};

use crate::baresip::{Baresip, Set, loudness};
use crate::common::{Cast, quick, voice_ms};
use crate::kamailio::{Kamailio, PASSWORD};
use crate::stores::Base;
use crate::whole::{Company, Whole, front_desk, id, items, ringostat, ringostat_credentials, text, until};
use crate::{free_port, on_loopback};

pub const AI: &str = "acme_ai";
/// A SIP account of the simulated Ringostat.
const EMPLOYEE: &str = "acme_concierge";

pub fn trunk_credentials(kamailio: &Kamailio, user: &str, password: &str) -> Value {
    json!({ "sip.registrar": kamailio.addr.to_string(), "sip.user": user, "sip.password": password })
}

pub fn telephone(user: &str, kamailio: &Kamailio, more: &str) -> String {
    format!(
        "<sip:{user}@127.0.0.1:{}>;auth_user={user};auth_pass={PASSWORD};regint=60;outbound=\"sip:{}\"{more}",
        kamailio.addr.port(),
        kamailio.addr
    )
}

pub async fn standing(company: &Company, state: &str) -> Value {
    until(state, async || {
        let line = items(company.get("/lines").await).into_iter().next()?;
        (line["registration"]["state"] == state).then(|| line["registration"].clone())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_registers_says_why_not_and_takes_calls_through_the_pbx() {
    let port = free_port();
    let Some(kamailio) = Kamailio::start(port).await else { return };
    let whole = Whole::start(Base::sqlite(), Cast::new(quick()), on_loopback).await;
    let company = whole.company("Acme", json!({})).await;
    let integration = company.integration("PBX", "sip", trunk_credentials(&kamailio, AI, "wrong")).await;
    let agent = company.agent(front_desk()).await;
    company.line(integration, AI, agent).await;
    let failed = standing(&company, "failed").await;
    assert!(text(&failed["last_error"]).contains("password") || text(&failed["last_error"]).contains("40"), "{failed}");
    let right = json!({ "credentials": trunk_credentials(&kamailio, AI, PASSWORD) });
    let (status, answer) = company.ask(Method::PATCH, &format!("/integrations/{integration}"), right).await;
    assert_eq!(status, 200, "{answer}");
    let registered = standing(&company, "registered").await;
    assert!(registered["registered_until"].is_string() && registered["last_error"].is_null(), "{registered}");

    let mut says = vec![0; 2_500 * 8];
    says.extend(voice_ms(1_500));
    let account = telephone("+380501234567", &kamailio, "");
    let Some(mut phone) = Baresip::start(Set { account: &account, says: &says, codec: "PCMA/8000/1" }).await else {
        return;
    };
    phone.registered().await;
    phone.dial(&format!("sip:{AI}@127.0.0.1:{port}")).await;
    phone.event("CALL_ESTABLISHED").await;
    let call = until("the agent answers what was asked", async || {
        let call = company.calls().await.into_iter().next()?;
        let record = company.get(&format!("/calls/{}", id(&call))).await;
        (Company::said(&record).len() >= 3).then_some(id(&call))
    })
    .await;
    phone.hang_up().await;
    let record = company.record(call).await;
    assert_eq!((text(&record["direction"]), text(&record["line"])), ("inbound", AI), "{record}");
    assert_eq!(text(&record["from"]), "+380501234567");
    assert!(loudness(&phone.stop().await, 200, 800) > 200.0);

    let wanted = |password: &str| {
        let values = trunk_credentials(&kamailio, AI, password);
        let values = values.as_object().expect("a map").iter().map(|(k, v)| (k.clone(), text(v).to_owned()));
        let credentials = Credentials::new(providers::kind("sip").expect("a kind"), values).expect("good");
        SipSettings::read(&credentials).expect("good").expect("a SIP side")
    };
    let mut config = offhook::config::Config::default();
    on_loopback(&mut config);
    let tried = try_registration(&config.sip, &wanted(PASSWORD)).await;
    assert_eq!(tried, Ok(format!("registered at {}", kamailio.addr)));
    assert!(try_registration(&config.sip, &wanted("wrong")).await.is_err());

    // The registrar goes away: the keep-alive finds out, and says so while the registration still runs. It comes back
    // without a memory, and the account registers again.
    let error = async || {
        let line = items(company.get("/lines").await).into_iter().next()?;
        Some(line["registration"]["last_error"].clone())
    };
    drop(kamailio);
    until("its loss is noticed", async || error().await?.is_string().then_some(())).await;
    let _kamailio = Kamailio::start(port).await.expect("it was there before");
    until("the account is back", async || error().await?.is_null().then_some(())).await;
    standing(&company, "registered").await;
    whole.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_goes_out_by_invite_and_its_outcome_is_told() {
    let port = free_port();
    let Some(kamailio) = Kamailio::start(port).await else { return };
    let whole = Whole::start(Base::sqlite(), Cast::new(quick()), on_loopback).await;
    let company = whole.company("Acme", json!({ "allowed_countries": ["*"] })).await;
    let integration = company.integration("PBX", "sip", trunk_credentials(&kamailio, AI, PASSWORD)).await;
    let agent = company.agent(front_desk()).await;
    company.line(integration, AI, agent).await;
    standing(&company, "registered").await;

    let account = telephone("+380501234567", &kamailio, ";answermode=auto");
    let set = Set { account: &account, says: &voice_ms(200), codec: "PCMU/8000/1" };
    let Some(mut phone) = Baresip::start(set).await else { return };
    phone.registered().await;
    let order = json!({ "to": "+380501234567", "greeting": "Good day, this is Acme.", "purpose": "confirm a table" });
    let call = id(&company.post("/calls", order).await);
    phone.event("CALL_ESTABLISHED").await;
    until("the greeting is said", async || {
        let record = company.get(&format!("/calls/{call}")).await;
        Company::said(&record).contains(&"agent: Good day, this is Acme.".to_owned()).then_some(())
    })
    .await;
    company.post(&format!("/calls/{call}/hangup"), json!({})).await;
    phone.event("CALL_CLOSED").await;
    let record = company.record(call).await;
    assert_eq!((text(&record["direction"]), text(&record["purpose"])), ("outbound", "confirm a table"), "{record}");
    assert_eq!(record["end"]["by"], "operator", "{record}");
    let heard = phone.stop().await;
    let loud = loudness(&heard, 0, 1_000);
    assert!(loud > 100.0, "the greeting is heard: {loud} in {} ms", heard.len() / 8);

    // Somebody who lets it ring is rung no more when a person of the company ends the call.
    let account = telephone("+380671112233", &kamailio, ";answermode=manual");
    let Some(ringing) = Baresip::start(Set { account: &account, says: &[0; 800], codec: "PCMU/8000/1" }).await else {
        return;
    };
    ringing.registered().await;
    let unanswered = id(&company.post("/calls", json!({ "to": "+380671112233" })).await);
    let outcome = async |wanted: &str| {
        let calls = company.calls().await;
        let call = calls.into_iter().find(|call| id(call) == unanswered)?;
        (text(&call["provider_status"]) == wanted || text(&call["outcome"]) == wanted).then_some(())
    };
    until("it rings", async || outcome("ringing").await).await;
    company.post(&format!("/calls/{unanswered}/hangup"), json!({})).await;
    until("it was taken back", async || outcome("canceled").await).await;
    drop(ringing);

    let nobody = id(&company.post("/calls", json!({ "to": "+380631111111" })).await);
    let record = company.record(nobody).await;
    assert_eq!(record["end"]["by"], "carrier", "{record}");
    let listed = company.calls().await.into_iter().find(|call| id(call) == nobody).expect("it is listed");
    assert_eq!(text(&listed["outcome"]), "failed", "{listed}");
    assert!(text(&listed["provider_status"]).starts_with("404"), "{listed}");
    whole.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_asks_for_a_person_is_handed_over_by_refer() {
    let port = free_port();
    let Some(kamailio) = Kamailio::start(port).await else { return };
    let steps = [
        Answer::Tool { name: "transfer_call".into(), arguments: json!({ "reason": "billing" }).to_string() },
        Answer::Text("One moment.".into()),
    ];
    let cast = Cast { llm: Arc::new(ScriptedModel::with_steps(quick(), steps)), ..Cast::new(quick()) };
    let whole = Whole::start(Base::sqlite(), cast, |config| {
        on_loopback(config);
        config.turn.max_speculations = 0;
    })
    .await;
    let company = whole.company("Acme", json!({})).await;
    let integration = company.integration("PBX", "sip", trunk_credentials(&kamailio, AI, PASSWORD)).await;
    let mut profile = front_desk();
    profile["transfer_to"] = json!("person");
    let agent = company.agent(profile).await;
    company.line(integration, AI, agent).await;
    standing(&company, "registered").await;

    let account = telephone("person", &kamailio, ";answermode=auto");
    let Some(mut person) = Baresip::start(Set { account: &account, says: &voice_ms(200), codec: "PCMU/8000/1" }).await
    else {
        return;
    };
    person.registered().await;
    let mut says = vec![0; 2_000 * 8];
    says.extend(voice_ms(1_500));
    let account = telephone("+380501234567", &kamailio, "");
    let caller = Baresip::start(Set { account: &account, says: &says, codec: "PCMU/8000/1" }).await;
    let mut caller = caller.expect("it is installed");
    caller.registered().await;
    caller.dial(&format!("sip:{AI}@127.0.0.1:{port}")).await;
    caller.event("CALL_ESTABLISHED").await;
    person.event("CALL_ESTABLISHED").await;
    let call = company.only_call(|call| call["ended_at"].is_string()).await;
    let record = company.record(id(&call)).await;
    assert_eq!(record["handover"], "billing", "{record}");
    until("what became of the transfer is told", async || {
        let facts = company.get(&format!("/calls/{}/sip", id(&call))).await;
        (facts["transfer_status"] == 200).then_some(())
    })
    .await;
    drop((caller, person));
    whole.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_pbxs_webhooks_and_its_invite_are_one_call() {
    let port = free_port();
    let Some(kamailio) = Kamailio::start(port).await else { return };
    let whole = Whole::start(Base::sqlite(), Cast::new(quick()), on_loopback).await;
    let company = whole.company("Acme", json!({ "allowed_countries": ["*"] })).await;
    let mock = ringostat().await;
    let mut credentials = ringostat_credentials(&mock);
    for (key, value) in trunk_credentials(&kamailio, EMPLOYEE, PASSWORD).as_object().expect("a map") {
        credentials[key] = value.clone();
    }
    let integration = company.integration("Cloud PBX", "ringostat", credentials).await;
    let agent = company.agent(front_desk()).await;
    company.line(integration, EMPLOYEE, agent).await;
    standing(&company, "registered").await;
    let hook = company.get(&format!("/integrations/{integration}/webhook")).await;
    mock.set_webhook(text(&hook["url"]));

    // The webhook tells of the call, then the PBX sends it to our account, then it tells of the end.
    let account = telephone("380501234567", &kamailio, ";answermode=auto");
    let Some(mut phone) = Baresip::start(Set { account: &account, says: &voice_ms(300), codec: "PCMU/8000/1" }).await
    else {
        return;
    };
    phone.registered().await;
    let told = mock.call(Call {
        from: "380501234567".into(),
        lose: vec!["in_answer".into(), "in_after".into()],
        ..Call::default()
    });
    let told = told.await.call_id;
    phone.dial(&format!("sip:{EMPLOYEE}@127.0.0.1:{port}")).await;
    phone.event("CALL_ESTABLISHED").await;
    let call = company.only_call(|call| call["answered_at"].is_string()).await;
    assert_eq!(text(&call["provider_call"]), told, "the INVITE is the call that the webhook told of: {call}");
    phone.hang_up().await;
    company.record(id(&call)).await;

    // A callback that we ask for comes as an INVITE, and keeps its purpose.
    let order = json!({ "to": "+380501234567", "purpose": "confirm a table", "greeting": "Good day, this is Acme." });
    let dialled = id(&company.post("/calls", order).await);
    phone.dial(&format!("sip:{EMPLOYEE}@127.0.0.1:{port}")).await;
    phone.event("CALL_ESTABLISHED").await;
    until("the callback is talked on", async || {
        let record = company.get(&format!("/calls/{dialled}")).await;
        Company::said(&record).contains(&"agent: Good day, this is Acme.".to_owned()).then_some(())
    })
    .await;
    phone.hang_up().await;
    let record = company.record(dialled).await;
    assert_eq!((text(&record["direction"]), text(&record["purpose"])), ("outbound", "confirm a table"), "{record}");
    phone.stop().await;
    whole.stop().await;
}
