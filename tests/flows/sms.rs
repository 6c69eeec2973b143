//! Text messages: answered by the same agent, in a conversation for each number; sent over the API by the right sender.

use std::collections::HashMap;
use std::sync::Arc;

use offhook::mock::twilio::{MockMessage, MockNumber, MockTwilio, MockTwilioConfig, Way};
use offhook::providers::twilio::signature;
use offhook::speech::llm::Message;
use offhook::speech::scripted::ScriptedModel;
use serde_json::{Value, json};

use crate::common::{Cast, http, quick};
use crate::stores::Base;
use crate::whole::{
    self, CALLER, LINE, OTHER, OnTwilio, PERSON, TOKEN, Whole, account, front_desk, id, items, text,
    twilio_credentials, until,
};

crate::on_every_store! {
    a_message_is_answered_and_each_number_has_its_own_conversation
    the_same_message_twice_is_answered_once_and_stop_not_at_all
    a_message_that_cannot_be_delivered_keeps_twilios_code
    the_sender_is_of_the_receivers_country_or_the_messaging_services
}

/// What was sent to a number, once there is so much.
async fn sent_to(mock: &MockTwilio, to: &str, count: usize) -> Vec<MockMessage> {
    until("messages to the number", async || {
        let mut messages = mock.messages();
        messages.retain(|message| message.direction == "outbound-api" && message.to == to);
        (messages.len() >= count).then_some(messages)
    })
    .await
}

/// What the person and the agent have said in a request to the model.
fn conversation(messages: &[Message]) -> Vec<String> {
    let line = |message: &Message| match message {
        Message::User { content } => Some(format!("they: {content}")),
        Message::Assistant { content, .. } => Some(format!("we: {content}")),
        _ => None,
    };
    messages.iter().filter_map(line).collect()
}

async fn a_message_is_answered_and_each_number_has_its_own_conversation(base: Base) {
    let mut script = quick();
    script.answers = vec!["We open at nine.".into(), "For how many?".into()];
    let model = Arc::new(ScriptedModel::new(script.clone()));
    let whole = Whole::start(base, Cast { llm: model.clone(), ..Cast::new(script) }, |_| {}).await;
    let acme = OnTwilio::set_up(&whole, account(), json!({}), front_desk()).await;

    let texted = acme.mock.text(CALLER, LINE, "When do you open?").await.unwrap();
    assert_eq!(texted.replies, [""; 0], "the answer comes by REST, however long the model takes");
    let answers = sent_to(&acme.mock, CALLER, 1).await;
    assert_eq!((answers[0].from.as_deref(), answers[0].body.as_str()), (Some(LINE), "We open at nine."));
    acme.mock.text(OTHER, LINE, "Do you have parking?").await.unwrap();
    sent_to(&acme.mock, OTHER, 1).await;
    acme.mock.text(CALLER, LINE, "A table, please").await.unwrap();
    assert_eq!(sent_to(&acme.mock, CALLER, 2).await[1].body, "For how many?");

    let last = model.requests().pop().unwrap();
    assert_eq!(
        conversation(&last.messages),
        ["they: When do you open?", "we: We open at nine.", "they: A table, please"],
        "the other number's words are none of this conversation"
    );
    let thread = items(acme.company.get("/messages?phone=%2B380501234567").await);
    let thread: Vec<_> =
        thread.iter().rev().map(|one| (text(&one["direction"]), text(&one["text"]), text(&one["peer"]))).collect();
    assert_eq!(
        thread,
        [
            ("inbound", "When do you open?", CALLER),
            ("outbound", "We open at nine.", CALLER),
            ("inbound", "A table, please", CALLER),
            ("outbound", "For how many?", CALLER),
        ]
    );
    until("Twilio has told of the delivery", async || {
        let thread = items(acme.company.get("/messages?phone=%2B380501234567").await);
        thread.iter().filter(|one| one["direction"] == "outbound").all(|one| one["status"] == "delivered").then_some(())
    })
    .await;
    whole.stop().await;
}

async fn the_same_message_twice_is_answered_once_and_stop_not_at_all(base: Base) {
    let whole = Whole::start(base, Cast::new(quick()), |_| {}).await;
    let acme = OnTwilio::set_up(&whole, account(), json!({}), front_desk()).await;
    acme.mock.text(CALLER, LINE, "When do you open?").await.unwrap();
    // Our answer to the webhook got lost: Twilio delivers it again, word for word.
    let first =
        acme.mock.requests().into_iter().find(|seen| seen.way == Way::Out && seen.url.ends_with("/sms")).unwrap();
    let signature = signature::sign(&TOKEN.into(), &first.url, &first.fields);
    for _ in 0..3 {
        let again = http().post(&first.url).header("X-Twilio-Signature", &signature).form(&first.fields);
        assert_eq!(again.send().await.unwrap().status(), 200);
    }
    for word in ["STOP", "stop.", "Стоп"] {
        acme.mock.text(PERSON, LINE, word).await.unwrap();
    }
    // What came later is answered: what came before has had its turn.
    acme.mock.text(OTHER, LINE, "And on Sunday?").await.unwrap();
    sent_to(&acme.mock, OTHER, 1).await;
    assert_eq!(sent_to(&acme.mock, CALLER, 1).await.len(), 1);
    assert_eq!(sent_to(&acme.mock, PERSON, 0).await, []);
    let known = items(acme.company.get("/messages").await);
    let inbound: Vec<&str> =
        known.iter().rev().filter(|one| one["direction"] == "inbound").map(|one| text(&one["text"])).collect();
    assert_eq!(inbound, ["When do you open?", "STOP", "stop.", "Стоп", "And on Sunday?"], "all are written down");
    whole.stop().await;
}

async fn a_message_that_cannot_be_delivered_keeps_twilios_code(base: Base) {
    let whole = Whole::start(base, Cast::new(quick()), |_| {}).await;
    let undeliverable = HashMap::from([(PERSON.into(), 30003), (OTHER.into(), 21610)]);
    let acme = OnTwilio::set_up(&whole, MockTwilioConfig { undeliverable, ..account() }, json!({}), front_desk()).await;
    let order = json!({ "to": PERSON, "text": "Your table is ready.", "line_id": acme.line });
    let message = id(&acme.company.post("/messages", order).await);
    let told = until("Twilio tells that it was not delivered", async || {
        let message = acme.company.get(&format!("/messages/{message}")).await;
        (message["status"] == "undelivered").then_some(message)
    });
    assert!(text(&told.await["error"]).starts_with("30003: "), "the code and what it means");

    // One that is refused at once: the request fails, and so it is written down.
    let (status, refused) =
        acme.company.ask(reqwest::Method::POST, "/messages", json!({ "to": OTHER, "text": "Hello" })).await;
    assert!(status == 502 && refused.to_string().contains("21610"), "{status} {refused}");
    let written = items(acme.company.get("/messages?phone=%2B380631111111").await);
    assert_eq!((written.len(), &written[0]["status"]), (1, &json!("failed")));
    assert!(text(&written[0]["error"]).contains("21610"), "{written:?}");
    whole.stop().await;
}

async fn the_sender_is_of_the_receivers_country_or_the_messaging_services(base: Base) {
    let whole = Whole::start(base, Cast::new(quick()), |_| {}).await;
    let (us, pl) = ("+15550001111", "+48221234567");
    let service = "MG00000000000000000000000000000001";
    let config = MockTwilioConfig {
        numbers: vec![MockNumber::new(us), MockNumber::new(LINE), MockNumber::new(pl)],
        messaging_service_sid: Some(service.into()),
        ..account()
    };
    let mock = whole::twilio(config).await;
    let acme = whole.company("Acme", json!({})).await;
    let integration = acme.integration("Main", "twilio", twilio_credentials(&mock)).await;
    let agent = acme.agent(front_desk()).await;
    for number in [us, LINE, pl] {
        acme.line(integration, number, agent).await;
    }
    // Each country's people are written to from their own country, though no list of countries was set up.
    for (to, from) in [(PERSON, LINE), ("+15550002222", us), ("+48601234567", pl)] {
        let message = id(&acme.post("/messages", json!({ "to": to, "text": "Hello" })).await);
        assert_eq!(acme.get(&format!("/messages/{message}")).await["line"], from);
        assert_eq!(sent_to(&mock, to, 1).await[0].from.as_deref(), Some(from));
    }
    let (status, refused) =
        acme.ask(reqwest::Method::POST, "/messages", json!({ "to": "+33142345678", "text": "Hello" })).await;
    assert_eq!((status, &refused["type"]), (422, &json!("/api/problems#country-not-allowed")), "no line is in France");

    let mut credentials = twilio_credentials(&mock);
    credentials["messaging_service_sid"] = json!(service);
    let zenith = whole.company("Zenith", json!({})).await;
    let integration = zenith.integration("Main", "twilio", credentials).await;
    let agent = zenith.agent(front_desk()).await;
    zenith.line(integration, LINE, agent).await;
    let message = id(&zenith.post("/messages", json!({ "to": OTHER, "text": "Hello" })).await);
    assert_eq!(sent_to(&mock, OTHER, 1).await[0].from, None, "the service picks it");
    let posted = mock.requests().into_iter().rfind(|seen| seen.url.ends_with("/Messages.json")).unwrap();
    assert_eq!(posted.field("MessagingServiceSid"), service);
    let known: Value = zenith.get(&format!("/messages/{message}")).await;
    assert_eq!(known["error"], Value::Null, "{known}");
    whole.stop().await;
}
