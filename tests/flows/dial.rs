//! Calls that a company makes: over the API, through each provider, to their end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use offhook::load::fixture::Ender;
use offhook::mock::twilio::{Callee, MockTwilioConfig};
use offhook::speech::llm::Message;
use offhook::speech::scripted::ScriptedModel;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::common::{Cast, PATIENCE};
use crate::stores::Base;
use crate::whole::{
    self, CALLER, Company, LINE, OTHER, OnTwilio, PERSON, Whole, account, binotel_credentials, brief, caller,
    front_desk, id, ringostat_credentials, text, until,
};

crate::on_every_store! {
    a_call_that_is_asked_for_twice_is_made_once_and_begins_as_it_was_told
    a_call_that_nobody_takes_is_closed_with_what_became_of_it
    an_answering_machine_is_told_from_a_person
    a_call_that_runs_or_rings_is_ended_over_the_api
    a_call_by_ringostats_callback_has_one_record_that_its_webhooks_close
    a_call_by_binotel_has_one_record_and_can_be_ended
}

async fn dial(company: &Company, order: Value) -> Uuid {
    id(&company.post("/calls", order).await)
}

async fn a_call_that_is_asked_for_twice_is_made_once_and_begins_as_it_was_told(base: Base) {
    let model = Arc::new(ScriptedModel::new(brief()));
    let whole = Whole::start(base, Cast { llm: model.clone(), ..Cast::new(brief()) }, |_| {}).await;
    let config = MockTwilioConfig { caller: Some(caller(Ender::Caller)), ..account() };
    let acme = OnTwilio::set_up(&whole, config, json!({}), front_desk()).await;
    let order = json!({
        "to": PERSON, "line_id": acme.line, "greeting": "Hello, Acme about your table.",
        "purpose": "Confirm the table for four on Friday.",
    });
    let ask = async || {
        let request = acme.company.request(Method::POST, "/calls").header("Idempotency-Key", "table-7").json(&order);
        let response = request.send().await.unwrap();
        let again = response.headers().contains_key("idempotency-replayed");
        let status = response.status().as_u16();
        (status, id(&response.json::<Value>().await.unwrap()), again)
    };
    let (first, second) = (ask().await, ask().await);
    assert_eq!((first.0, first.2, second.0, second.2), (201, false, 201, true));
    assert_eq!(first.1, second.1);

    let record = acme.company.record(first.1).await;
    let said = Company::said(&record);
    assert_eq!(said[..2], ["agent: Hello, Acme about your table.", "caller: What time do you open today?"]);
    assert_eq!(
        (&record["direction"], &record["from"], &record["to"]),
        (&json!("outbound"), &json!(LINE), &json!(PERSON))
    );
    assert_eq!(record["purpose"], "Confirm the table for four on Friday.");
    assert_eq!(record["end"], json!({ "by": "caller", "reason": "hung_up" }));
    let Some(Message::System { content }) = model.requests()[0].messages.first().cloned() else { panic!("a prompt") };
    assert!(content.contains("Confirm the table for four on Friday."), "{content}");
    let listed = acme.company.only_call(|call| call["provider_status"] == "completed").await;
    assert_eq!((&listed["outcome"], &listed["direction"]), (&json!("answered"), &json!("outbound")));
    let [call] = &acme.mock.calls()[..] else { panic!("one call at Twilio: {:?}", acme.mock.calls()) };
    assert_eq!(listed["provider_call"], *call.sid);
    assert_eq!((call.from.as_str(), call.to.as_str(), call.errors.len()), (LINE, PERSON, 0));
    assert_eq!(acme.company.audited("call.made").await.len(), 1);
    whole.stop().await;
}

async fn a_call_that_nobody_takes_is_closed_with_what_became_of_it(base: Base) {
    let whole = Whole::start(base, Cast::new(brief()), |_| {}).await;
    let fates =
        [(PERSON, Callee::Busy, "busy"), (OTHER, Callee::NoAnswer, "no_answer"), (CALLER, Callee::Fails, "failed")];
    let callees: HashMap<_, _> = fates.iter().map(|(to, callee, _)| (to.to_string(), *callee)).collect();
    let acme = OnTwilio::set_up(&whole, MockTwilioConfig { callees, ..account() }, json!({}), front_desk()).await;
    for (to, _, outcome) in fates {
        let call = dial(&acme.company, json!({ "to": to })).await;
        let record = acme.company.record(call).await;
        assert!(record["answered"].is_null(), "{record}");
        assert_eq!(Company::said(&record), [""; 0]);
        let listed = acme.company.calls().await.into_iter().find(|listed| id(listed) == call).unwrap();
        assert_eq!(listed["outcome"], outcome, "{listed}");
    }
    assert_eq!(acme.company.calls().await.len(), 3);
    whole.stop().await;
}

async fn an_answering_machine_is_told_from_a_person(base: Base) {
    let whole = Whole::start(base, Cast::new(brief()), |_| {}).await;
    let config = MockTwilioConfig {
        callees: HashMap::from([(PERSON.into(), Callee::Machine)]),
        caller: Some(caller(Ender::Caller)),
        ..account()
    };
    let agent = json!({ "name": "Front desk", "greeting": "Hello.", "detect_machine": true });
    let acme = OnTwilio::set_up(&whole, config, json!({}), agent).await;
    for (to, who, outcome) in [(PERSON, "machine_start", "voicemail"), (OTHER, "human", "answered")] {
        let call = dial(&acme.company, json!({ "to": to })).await;
        acme.company.record(call).await;
        let listed = until("Twilio has told the end", async || {
            let calls = acme.company.calls().await;
            calls.into_iter().find(|listed| id(listed) == call && listed["provider_status"] == "completed")
        });
        let listed = listed.await;
        assert_eq!((&listed["answered_by"], &listed["outcome"]), (&json!(who), &json!(outcome)), "{listed}");
    }
    whole.stop().await;
}

async fn a_call_that_runs_or_rings_is_ended_over_the_api(base: Base) {
    let whole = Whole::start(base, Cast::new(brief()), |_| {}).await;
    // Twenty seconds of ringing, in which the call can be ended.
    let config = MockTwilioConfig {
        callees: HashMap::from([(OTHER.into(), Callee::NoAnswer)]),
        ring: Duration::from_secs(5),
        ..account()
    };
    let rings = OnTwilio::set_up(&whole, config, json!({}), front_desk()).await;
    let call = dial(&rings.company, json!({ "to": OTHER })).await;
    assert_eq!(rings.company.get(&format!("/calls/{call}")).await["ended"], Value::Null);
    rings.company.post(&format!("/calls/{call}/hangup"), Value::Null).await;
    rings.company.record(call).await;
    let listed = rings.company.only_call(|call| call["ended_at"].is_string()).await;
    assert_eq!((&listed["outcome"], &listed["provider_status"]), (&json!("canceled"), &json!("canceled")));

    let mock = whole::twilio(account()).await;
    let zenith = whole.company("Zenith", json!({})).await;
    let integration = zenith.integration("Main", "twilio", whole::twilio_credentials(&mock)).await;
    let agent = zenith.agent(front_desk()).await;
    zenith.line(integration, LINE, agent).await;
    let call = dial(&zenith, json!({ "to": PERSON })).await;
    until("they talk", async || {
        let record = zenith.get(&format!("/calls/{call}")).await;
        record["answered"].is_string().then_some(())
    })
    .await;
    assert_eq!(rings.company.ask(Method::POST, &format!("/calls/{call}/hangup"), Value::Null).await.0, 404);
    zenith.post(&format!("/calls/{call}/hangup"), Value::Null).await;
    let record = zenith.record(call).await;
    assert_eq!(record["end"], json!({ "by": "operator", "reason": "hung_up" }));
    let sid = text(&record["provider_call"]);
    let over = mock.call_when(sid, PATIENCE, |call| call.is_over()).await.expect("it ends at Twilio");
    assert_eq!((over.status.as_str(), over.said.len()), ("completed", 0));
    zenith.post(&format!("/calls/{call}/hangup"), Value::Null).await;
    whole.stop().await;
}

async fn a_call_by_ringostats_callback_has_one_record_that_its_webhooks_close(base: Base) {
    let whole = Whole::start(base, Cast::new(brief()), |_| {}).await;
    for (name, method, last) in [("Acme", "external", "out_after"), ("Zenith", "outward_call", "in_after")] {
        let mock = whole::ringostat().await;
        let company = whole.company(name, json!({})).await;
        let mut credentials = ringostat_credentials(&mock);
        credentials["callback_method"] = json!(method);
        credentials["outward_extension"] = json!("380441234567");
        let integration = company.integration("Ringostat", "ringostat", credentials).await;
        let agent = company.agent(front_desk()).await;
        company.line(integration, "acme_concierge", agent).await;
        let webhook = company.get(&format!("/integrations/{integration}/webhook")).await;
        mock.set_webhook(text(&webhook["url"]));

        let call = dial(&company, json!({ "to": PERSON, "purpose": "Confirm." })).await;
        let told = tokio::time::timeout(PATIENCE, mock.delivered(last)).await.expect("Ringostat tells the end");
        assert_eq!(told.status, Some(200), "{told:?}");
        let listed = company.only_call(|call| call["ended_at"].is_string()).await;
        assert_eq!(id(&listed), call, "{method}: it is the call that we asked for");
        assert_eq!((&listed["outcome"], &listed["talk_s"]), (&json!("answered"), &json!(30)), "{listed}");
        assert_eq!((&listed["direction"], &listed["purpose"]), (&json!("outbound"), &json!("Confirm.")));
        assert_eq!(listed["provider_call"], *told.call);
    }
    whole.stop().await;
}

async fn a_call_by_binotel_has_one_record_and_can_be_ended(base: Base) {
    let whole = Whole::start(base, Cast::new(brief()), |_| {}).await;
    let mock = whole::binotel(|config| config.talk = Duration::from_secs(60)).await;
    let acme = whole.company("Acme", json!({})).await;
    let integration = acme.integration("Binotel", "binotel", binotel_credentials(&mock)).await;
    let agent = acme.agent(front_desk()).await;
    acme.line(integration, "901", agent).await;
    let webhook = acme.get(&format!("/integrations/{integration}/webhook")).await;
    mock.set_webhook(text(&webhook["url"]));

    let call = dial(&acme, json!({ "to": PERSON })).await;
    tokio::time::timeout(PATIENCE, mock.delivered("answeredTheCall", 1)).await.expect("they talk");
    let listed = acme.only_call(|call| call["provider_status"] == "answered").await;
    assert_eq!((id(&listed), &listed["outcome"]), (call, &json!("running")));
    acme.post(&format!("/calls/{call}/hangup"), Value::Null).await;
    let told = tokio::time::timeout(PATIENCE, mock.delivered("apiCallCompleted", 1)).await.expect("it ends");
    assert_eq!(told.answer, r#"{"status":"success"}"#);
    let listed = acme.only_call(|call| call["ended_at"].is_string() && call["talk_s"] == 30).await;
    assert_eq!((id(&listed), &listed["outcome"]), (call, &json!("answered")), "{listed}");
    assert_eq!((&listed["to"], &listed["provider_call"]), (&json!(PERSON), &json!(told.call)));
    whole.stop().await;
}
