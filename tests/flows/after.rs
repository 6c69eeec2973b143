//! What a caller hears when the agent's part of a call is over and the call is not: an excuse, a person, or the end.

use std::sync::Arc;

use offhook::agent::outcome::Outcome;
use offhook::load::fixture::Ender;
use offhook::mock::twilio::{Callee, MockTwilioConfig};
use offhook::speech::scripted::{Answer, ScriptedModel, ScriptedSynthesizer, Spoken};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::common::{Cast, quick};
use crate::stores::Base;
use crate::whole::{Company, LINE, OnTwilio, PERSON, Whole, account, caller, front_desk, until};

crate::on_every_store! {
    engines_that_fail_are_excused_in_twilios_own_voice
    a_caller_who_asks_for_a_person_is_connected_to_one
    a_person_is_told_of_the_caller_first
    a_caller_is_told_that_nobody_answers
    a_call_that_the_agent_ends_is_hung_up
}

fn tool(name: &str, arguments: Value) -> Answer {
    Answer::Tool { name: name.into(), arguments: arguments.to_string() }
}

/// A call on which the model does these things.
async fn call(whole: &Whole, agent: Value) -> (OnTwilio, Value) {
    let config = MockTwilioConfig { caller: Some(caller(Ender::Agent)), ..account() };
    let acme = OnTwilio::set_up(whole, config, json!({}), agent).await;
    let record = acme.rung().await;
    (acme, record)
}

/// What the call is said to have led to, once that is written.
async fn led_to(whole: &Whole, record: &Value) -> Outcome {
    let id = |key: &str| record[key].as_str().and_then(|id| id.parse::<Uuid>().ok()).expect("the record has it");
    let (company, call) = (id("company_id"), id("id"));
    until("the analysis", async || whole.store.analysis(company, call.into()).await.unwrap()).await.outcome
}

async fn engines_that_fail_are_excused_in_twilios_own_voice(base: Base) {
    // The greeting is heard, and nothing after it.
    let steps = [Spoken::Well].into_iter().chain([Spoken::Fails; 50]);
    let cast = Cast { tts: Arc::new(ScriptedSynthesizer::with_steps(quick(), steps)), ..Cast::new(quick()) };
    let whole = Whole::start(base, cast, |config| config.turn.max_engine_failures = 1).await;
    let mut agent = front_desk();
    agent["language"] = json!("uk");
    let (acme, record) = call(&whole, agent).await;
    assert_eq!(record["end"], json!({ "by": "system", "reason": "engine_failed" }), "{record}");
    let over = acme.mock.calls().remove(0);
    assert_eq!((over.status.as_str(), over.said.len(), over.dialled.len()), ("completed", 1, 0), "{over:?}");
    assert!(over.said[0].starts_with("Вибачте, зараз щось не працює"), "in the agent's language: {:?}", over.said);
    whole.stop().await;
}

async fn a_caller_who_asks_for_a_person_is_connected_to_one(base: Base) {
    let steps = [tool("transfer_call", json!({ "reason": "billing" })), Answer::Text("One moment.".into())];
    let cast = Cast { llm: Arc::new(ScriptedModel::with_steps(quick(), steps)), ..Cast::new(quick()) };
    let whole = Whole::start(base, cast, |config| config.turn.max_speculations = 0).await;
    let mut agent = front_desk();
    agent["transfer_to"] = json!(PERSON);
    let (acme, record) = call(&whole, agent).await;
    assert_eq!(record["handover"], "billing");
    assert!(Company::said(&record).contains(&"agent: One moment.".to_owned()), "{record}");
    let calls = acme.mock.calls();
    let over = calls.iter().find(|call| call.parent.is_none()).expect("the caller's");
    assert_eq!((over.status.as_str(), &over.dialled[..], over.said.len()), ("completed", &[PERSON.to_owned()][..], 0));
    let person = calls.iter().find(|call| call.parent.is_some()).expect("the person's");
    assert_eq!((person.from.as_str(), person.to.as_str(), person.status.as_str()), (LINE, PERSON, "completed"));
    assert_eq!(led_to(&whole, &record).await, Outcome::Transferred);
    whole.stop().await;
}

/// A model that hands its caller over, and an agent that tells the person in Ukrainian.
async fn handing_over(base: Base) -> (Whole, Value) {
    let steps = [
        tool("remember", json!({ "key": "ім'я", "value": "Іван" })),
        tool("transfer_call", json!({ "reason": "рахунок" })),
        Answer::Text("Одну хвилину.".into()),
    ];
    let cast = Cast { llm: Arc::new(ScriptedModel::with_steps(quick(), steps)), ..Cast::new(quick()) };
    let whole = Whole::start(base, cast, |config| config.turn.max_speculations = 0).await;
    let mut agent = front_desk();
    agent["transfer_to"] = json!(PERSON);
    agent["transfer_note"] = json!("spoken");
    agent["language"] = json!("uk");
    (whole, agent)
}

async fn a_person_is_told_of_the_caller_first(base: Base) {
    let (whole, agent) = handing_over(base).await;
    let (acme, record) = call(&whole, agent).await;
    assert_eq!((&record["handover"], &record["remembered"]["ім'я"]), (&json!("рахунок"), &json!("Іван")), "{record}");
    let calls = acme.mock.calls();
    let person = calls.iter().find(|call| call.parent.is_some()).expect("the person's");
    let told = "Вам дзвінок: 380 501 234 567. Причина: рахунок. Записано: ім'я: Іван. З'єдную.";
    assert_eq!((&person.said[..], person.status.as_str()), (&[told.to_owned()][..], "completed"), "{person:?}");
    let over = calls.iter().find(|call| call.parent.is_none()).expect("the caller's");
    assert_eq!((over.status.as_str(), over.said.len(), &over.errors[..]), ("completed", 0, &[][..]), "{over:?}");
    whole.stop().await;
}

async fn a_caller_is_told_that_nobody_answers(base: Base) {
    let (whole, agent) = handing_over(base).await;
    let callees = [(PERSON.to_owned(), Callee::Busy)].into();
    let config = MockTwilioConfig { caller: Some(caller(Ender::Agent)), callees, ..account() };
    let acme = OnTwilio::set_up(&whole, config, json!({}), agent).await;
    let record = acme.rung().await;
    assert_eq!(record["handover"], "рахунок", "{record}");
    let calls = acme.mock.calls();
    let person = calls.iter().find(|call| call.parent.is_some()).expect("the person's");
    assert_eq!((person.status.as_str(), person.said.len()), ("busy", 0), "{person:?}");
    let over = calls.iter().find(|call| call.parent.is_none()).expect("the caller's");
    assert!(over.said.len() == 1 && over.said[0].starts_with("На жаль, зараз ніхто"), "{over:?}");
    assert_eq!(led_to(&whole, &record).await, Outcome::CallbackWanted, "nobody was connected");
    whole.stop().await;
}

async fn a_call_that_the_agent_ends_is_hung_up(base: Base) {
    let steps = [tool("end_call", json!({})), Answer::Text("Goodbye.".into())];
    let cast = Cast { llm: Arc::new(ScriptedModel::with_steps(quick(), steps)), ..Cast::new(quick()) };
    let whole = Whole::start(base, cast, |config| config.turn.max_speculations = 0).await;
    let (acme, record) = call(&whole, front_desk()).await;
    assert_eq!(record["end"], json!({ "by": "agent", "reason": "goodbye" }), "{record}");
    let over = acme.mock.calls().remove(0);
    assert_eq!((over.status.as_str(), over.said.len(), over.dialled.len()), ("completed", 0, 0), "{over:?}");
    whole.stop().await;
}
