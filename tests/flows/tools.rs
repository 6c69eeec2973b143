//! What an agent can do through its company's providers while it talks: exactly what these make possible, and nothing
//! that a company's rules forbid.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use offhook::agent::prompt::CallFacts;
use offhook::load::fixture::Ender;
use offhook::mock::openai::{MockConfig, MockOpenAi};
use offhook::mock::script::Script;
use offhook::mock::twilio::{MockCall, MockTwilioConfig};
use offhook::mock::{binotel, ringostat};
use offhook::speech::llm::openai::{OpenAiLlm, OpenAiLlmConfig};
use offhook::speech::scripted::{Answer, ScriptedModel};
use offhook::speech::stt::openai::{OpenAiStt, OpenAiSttConfig};
use offhook::telephony::{Direction, PhoneNumber};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::common::{Cast, PATIENCE};
use crate::stores::Base;
use crate::whole::{
    self, CALLER, Company, LINE, OTHER, OnTwilio, PERSON, Whole, account, binotel_credentials, brief, caller,
    front_desk, items, ringostat_credentials, text, twilio_credentials, until,
};

crate::on_every_store! {
    an_agent_calls_writes_and_looks_things_up_while_it_talks
    whoever_asks_to_be_called_back_at_a_number_is_called_there
    an_agent_sees_exactly_the_tools_that_its_companys_providers_make_possible
    numbers_that_nobody_may_dial_are_refused_in_words_and_noted
    caps_and_quiet_hours_stop_an_agent
}

fn tool(name: &str, arguments: Value) -> Answer {
    Answer::Tool { name: name.into(), arguments: arguments.to_string() }
}

/// Follows the steps on the first turn that anybody says; no step is lost to a turn that was only guessed.
async fn scripted(base: Base, steps: Vec<Answer>) -> (Whole, Arc<ScriptedModel>) {
    let model = Arc::new(ScriptedModel::with_steps(brief(), steps));
    let whole = Whole::start(base, Cast { llm: model.clone(), ..Cast::new(brief()) }, |config| {
        config.turn.max_speculations = 0;
        config.turn.max_tool_steps = 10;
    });
    (whole.await, model)
}

/// What came of each tool, as the model was told.
fn results(record: &Value) -> Vec<(String, Value)> {
    let tools = record["transcript"]["tools"].as_array().expect("tools");
    let result = |tool: &Value| serde_json::from_str(text(&tool["result"])).unwrap_or_default();
    tools.iter().map(|tool| (text(&tool["name"]).to_owned(), result(tool))).collect()
}

async fn an_agent_calls_writes_and_looks_things_up_while_it_talks(base: Base) {
    let steps = vec![
        tool(
            "make_call",
            json!({ "to": PERSON, "greeting": "The table is ready.", "purpose": "Tell that it is ready." }),
        ),
        tool("send_sms", json!({ "to": OTHER, "text": "See you on Friday." })),
        tool("get_call_history", json!({ "phone": "+380931112233" })),
        Answer::Text("It is done.".into()),
    ];
    let (whole, model) = scripted(base, steps).await;
    let config = MockTwilioConfig { caller: Some(caller(Ender::Caller)), ..account() };
    let acme = OnTwilio::set_up(&whole, config, json!({}), front_desk()).await;
    let (ringo, bino) = (whole::ringostat().await, whole::binotel(|_| {}).await);
    acme.company.integration("Ringostat", "ringostat", ringostat_credentials(&ringo)).await;
    acme.company.integration("Binotel", "binotel", binotel_credentials(&bino)).await;
    until("the server knows all three", async || {
        (whole.directory.load().integrations_of(acme.company.id).count() == 3).then_some(())
    })
    .await;
    let past = |minutes: i64| Timestamp::now() - SignedDuration::from_mins(minutes);
    acme.mock.remember(MockCall::past("+380931112233", LINE, "inbound", "completed", past(10), 61));
    ringo.add_call(ringostat::LoggedCall {
        uniqueid: format!("us1_-{}.1", past(20).as_second()),
        started: past(20),
        caller: "380931112233".into(),
        dst: "380441234567".into(),
        call_type: "in",
        disposition: "NO ANSWER".into(),
        wait_s: 9,
        talk_s: 0,
        connected_with: String::new(),
    });
    bino.add_call(binotel::LoggedCall {
        id: 5_000_000_001,
        started: past(30),
        outgoing: false,
        internal: "901".into(),
        external: "0931112233".into(),
        disposition: "ANSWER".into(),
        wait_s: 8,
        talk_s: 64,
        steps: vec![("901".into(), "ANSWER".into())],
        ended: Some(past(29)),
    });

    let record = acme.rung().await;
    assert_eq!(Company::said(&record).last().unwrap(), "agent: It is done.");
    let done = results(&record);
    let names: Vec<&str> = done.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["make_call", "send_sms", "get_call_history"], "{record}");
    let offered: Vec<String> = model.requests()[0].tools.iter().map(|tool| tool.name.clone()).collect();
    assert_eq!(offered, ["end_call", "get_call_history", "make_call", "remember", "send_sms", "transfer_call"]);

    // The call that was made: by the same agent, with its own first words.
    assert_eq!(done[0].1["status"], "dialling", "{done:?}");
    let made = acme.company.record(text(&done[0].1["call"]).parse().unwrap()).await;
    assert_eq!(Company::said(&made)[0], "agent: The table is ready.");
    assert_eq!((&made["to"], &made["purpose"]), (&json!(PERSON), &json!("Tell that it is ready.")));
    let over = acme.mock.call_when(text(&made["provider_call"]), PATIENCE, MockCall::is_over).await.unwrap();
    assert_eq!((over.direction, over.from.as_str(), over.streams.len()), ("outbound-api", LINE, 1));

    let message = acme.company.get(&format!("/messages/{}", text(&done[1].1["message"]))).await;
    assert_eq!(
        (&message["text"], &message["peer"], &message["line"]),
        (&json!("See you on Friday."), &json!(OTHER), &json!(LINE))
    );
    assert!(acme.mock.messages().iter().any(|sent| sent.to == OTHER && sent.from.as_deref() == Some(LINE)));

    let calls = done[2].1["calls"].as_array().unwrap();
    let of: Vec<(&str, &str)> = calls.iter().map(|call| (text(&call["from"]), text(&call["outcome"]))).collect();
    let peer = "+380931112233";
    assert_eq!(of, [(peer, "answered"), (peer, "no_answer"), (peer, "answered")], "of all three: {}", done[2].1);
    assert_eq!(done[2].1["not_answering"], json!([]));
    for (action, key) in [("make_call", "call"), ("send_sms", "message")] {
        let noted = acme.company.audited(action).await;
        assert_eq!((noted.len(), &noted[0]["object"]), (1, &record["id"]), "{noted:?}");
        let (_, result) = done.iter().find(|(name, _)| name == action).unwrap();
        assert_eq!(noted[0]["detail"]["made"], result[key]);
    }
    whole.stop().await;
}

/// "Can you call me back at +380501234567?", through a transcription and a model in the shape of OpenAI's.
async fn whoever_asks_to_be_called_back_at_a_number_is_called_there(base: Base) {
    let words = "Can you call me back at +380671112233?";
    let script = format!(
        r#"
        transcripts = [{words:?}]
        after_tools = "I am calling you there now. Goodbye."
        [[reply]]
        when = "call me back"
        tool = [{{ name = "make_call", arguments = {{ to = "+380671112233", greeting = "Hello, you asked me to call." }} }}]
        "#
    );
    let config = MockConfig { script: Script::from_toml(&script).unwrap(), ..MockConfig::default() };
    let openai = MockOpenAi::start(config, TcpListener::bind("127.0.0.1:0").await.unwrap()).unwrap();
    let stt = OpenAiSttConfig { base_url: openai.base_url(), ..OpenAiSttConfig::default() };
    let llm = OpenAiLlmConfig { base_url: openai.base_url(), ..OpenAiLlmConfig::default() };
    let cast = Cast {
        stt: Arc::new(OpenAiStt::new(&stt).unwrap()),
        llm: Arc::new(OpenAiLlm::new(llm).unwrap()),
        ..Cast::new(brief())
    };
    let whole = Whole::start(base, cast, |_| {}).await;
    let config = MockTwilioConfig { caller: Some(caller(Ender::Caller)), ..account() };
    let acme = OnTwilio::set_up(&whole, config, json!({}), front_desk()).await;
    let record = acme.rung().await;
    let said = Company::said(&record);
    assert!(said.contains(&format!("caller: {words}")), "{said:?}");
    assert!(said.iter().any(|line| line.contains("I am calling you there now.")), "{said:?}");
    let done = results(&record);
    assert_eq!(
        (done.len(), done[0].0.as_str(), &done[0].1["status"]),
        (1, "make_call", &json!("dialling")),
        "{done:?}"
    );
    let made = acme.company.record(text(&done[0].1["call"]).parse().unwrap()).await;
    assert_eq!((&made["to"], &made["direction"]), (&json!(PERSON), &json!("outbound")));
    assert_eq!(Company::said(&made)[0], "agent: Hello, you asked me to call.");
    // The tool came over the wire as a model streams it.
    assert!(openai.requests().iter().any(|seen| seen.path.ends_with("/chat/completions")));
    openai.stop().await;
    whole.stop().await;
}

async fn an_agent_sees_exactly_the_tools_that_its_companys_providers_make_possible(base: Base) {
    let (whole, _) = scripted(base, Vec::new()).await;
    let (twilio, ringo, bino) =
        (whole::twilio(account()).await, whole::ringostat().await, whole::binotel(|_| {}).await);
    let credentials = |provider: &str| match provider {
        "twilio" => twilio_credentials(&twilio),
        "ringostat" => ringostat_credentials(&ringo),
        "binotel" => binotel_credentials(&bino),
        _ => json!({ "sip": { "peers": "192.0.2.1" } }),
    };
    let (call, sms, history) = ("make_call", "send_sms", "get_call_history");
    let table: [(&[&str], &[&str]); 7] = [
        (&[], &[]),
        (&["sip"], &[call]),
        (&["twilio"], &[history, call, sms]),
        (&["ringostat"], &[history, call]),
        (&["binotel"], &[history, call]),
        (&["ringostat", "binotel"], &[history, call]),
        (&["twilio", "ringostat", "binotel"], &[history, call, sms]),
    ];
    for (providers, tools) in table {
        let company = whole.company(&format!("{providers:?}"), json!({})).await;
        for provider in providers {
            company.integration(provider, provider, credentials(provider)).await;
        }
        let agent = company.agent(front_desk()).await;
        until("the server knows its integrations", async || {
            (whole.directory.load().integrations_of(company.id).count() == providers.len()).then_some(())
        })
        .await;
        // What a model is offered.
        let profile = whole.store.agent(company.id, agent).await.unwrap().unwrap().profile.0;
        let facts = CallFacts {
            company: "Acme".into(),
            direction: Direction::Inbound,
            caller: PhoneNumber::new(OTHER),
            line: PhoneNumber::new(LINE),
            purpose: String::new(),
            vars: Default::default(),
            fields: Default::default(),
            began: jiff::Zoned::now(),
        };
        let (_, offered, _) = whole.app.calls.writer(&profile, company.id, &facts).unwrap();
        let always = ["end_call", "remember", "transfer_call"];
        let offered: Vec<String> = offered.specs().into_iter().map(|spec| spec.name).collect();
        let offered: Vec<&str> = offered.iter().map(String::as_str).filter(|name| !always.contains(name)).collect();
        assert_eq!(offered, tools, "with {providers:?}");
        // What the console shows, and by which integrations.
        let shown = items(company.get(&format!("/agents/{agent}/tools")).await);
        let mut shown: Vec<(&str, usize)> = shown
            .iter()
            .filter(|tool| !always.contains(&text(&tool["name"])) && tool["name"] != "recall_caller")
            .filter(|tool| tool["name"] != "send_dtmf")
            .map(|tool| (text(&tool["name"]), tool["integrations"].as_array().unwrap().len()))
            .collect();
        shown.sort_unstable();
        let able = |tool: &str| providers.iter().filter(|provider| tool != sms || **provider == "twilio").count();
        let expected: Vec<(&str, usize)> = tools.iter().map(|tool| (*tool, able(tool))).collect();
        assert_eq!(shown, expected, "with {providers:?}");
    }
    whole.stop().await;
}

/// A call on which these tools are tried; gives what the model was told, the record, and where.
async fn tried(base: Base, settings: Value, tries: Vec<Answer>) -> (Whole, OnTwilio, Value, Vec<(String, Value)>) {
    let mut steps = tries;
    steps.push(Answer::Text("That did not work.".into()));
    let (whole, _) = scripted(base, steps).await;
    let config = MockTwilioConfig { caller: Some(caller(Ender::Caller)), ..account() };
    let acme = OnTwilio::set_up(&whole, config, settings, front_desk()).await;
    let record = acme.rung().await;
    assert_eq!(Company::said(&record).last().unwrap(), "agent: That did not work.");
    let results = results(&record);
    (whole, acme, record, results)
}

async fn numbers_that_nobody_may_dial_are_refused_in_words_and_noted(base: Base) {
    let refused = [
        ("make_call", "112", "emergency numbers are not dialled"),
        ("make_call", "+380900234567", "premium-rate numbers are not dialled"),
        ("make_call", "+48221234567", "numbers in PL are not allowed"),
        ("make_call", "05012345", "is not a full number"),
        ("send_sms", "103", "emergency numbers"),
        ("send_sms", "+48221234567", "numbers in PL are not allowed"),
    ];
    let tries = refused.map(|(name, to, _)| match name {
        "make_call" => tool(name, json!({ "to": to })),
        _ => tool(name, json!({ "to": to, "text": "Hello" })),
    });
    let (whole, acme, record, results) = tried(base, json!({}), tries.into()).await;
    assert_eq!(results.len(), refused.len(), "{record}");
    for ((name, to, words), (used, result)) in refused.iter().zip(&results) {
        assert_eq!(name, used);
        assert!(text(&result["error"]).contains(words), "{name} {to}: {result}");
    }
    let mut noted = acme.company.audited("make_call").await;
    noted.extend(acme.company.audited("send_sms").await);
    assert_eq!(noted.len(), refused.len(), "{noted:#?}");
    for ((.., words), entry) in refused.iter().zip(&noted) {
        assert!(text(&entry["detail"]["refused"]).contains(words), "{entry}");
        assert_eq!((&entry["actor"], &entry["object"]), (&json!("agent"), &record["id"]));
    }
    assert_eq!((acme.mock.calls().len(), acme.mock.messages().len()), (1, 0), "nothing was asked of Twilio");
    assert_eq!(acme.company.calls().await.len(), 1, "a call that was refused has no record");
    whole.stop().await;
}

async fn caps_and_quiet_hours_stop_an_agent(base: Base) {
    let caps = json!({ "caps": { "calls_per_hour": 2, "calls_per_number_per_hour": 1, "messages_per_hour": 1 } });
    let call = |to: &str| tool("make_call", json!({ "to": to }));
    let sms = |to: &str| tool("send_sms", json!({ "to": to, "text": "Hello" }));
    // The very same wish again would be the same call: this one says why.
    let again = tool("make_call", json!({ "to": PERSON, "purpose": "Once more." }));
    let tries = vec![call(PERSON), again, call(OTHER), call(CALLER), sms(PERSON), sms(OTHER)];
    let (whole, acme, _, results) = tried(base, caps, tries).await;
    let errors: Vec<&str> = results.iter().map(|(_, result)| text(&result["error"])).collect();
    assert_eq!(
        errors,
        [
            "",
            "the limit of 1 calls to this number an hour is reached: try again later",
            "",
            "the limit of 2 calls an hour is reached: try again later",
            "",
            "the limit of 1 messages an hour is reached: try again later",
        ]
    );

    // Read live: the hour of now is made a quiet one, and the API is refused as an agent is.
    let hour = Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).hour();
    let at = |hour: i8| format!("{:02}:00", hour.rem_euclid(24));
    let quiet = json!({ "from": at(hour - 1), "to": at(hour + 2), "time_zone": "UTC" });
    let path = format!("/companies/{}", acme.company.id);
    let settings = json!({ "settings": { "quiet_hours": quiet } });
    assert_eq!(acme.company.ask(reqwest::Method::PATCH, &path, settings).await.0, 200);
    until("the server knows the quiet hours", async || {
        whole.directory.load().settings(acme.company.id).quiet_hours.as_ref().map(|_| ())
    })
    .await;
    for (path, order) in
        [("/calls", json!({ "to": "+380931112233" })), ("/messages", json!({ "to": "+380931112233", "text": "Hello" }))]
    {
        let (status, refused) = acme.company.ask(reqwest::Method::POST, path, order).await;
        assert!((400..500).contains(&status) && refused.to_string().contains("quiet hour"), "{status} {refused}");
    }
    // Whoever writes is answered at any hour.
    acme.mock.text("+380931112233", LINE, "When do you open?").await.unwrap();
    until("the answer", async || acme.mock.messages().into_iter().find(|sent| sent.to == "+380931112233")).await;
    whole.stop().await;
}
