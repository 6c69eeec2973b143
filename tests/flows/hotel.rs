//! The hotel's workflow through the whole program: by speech in English and in Ukrainian, and by text message, with slots by
//! voice and by keypad, a price from the hotel's own server, a message to the guest, a person at the end, and a webhook that
//! tells the hotel what came of it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::extract::RawQuery;
use offhook::load::fixture::{Ender, Fixture, PER_MS, Start, Turn};
use offhook::mock::twilio::MockTwilioConfig;
use offhook::speech::scripted::ScriptedConfig;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::common::{Cast, quick};
use crate::receiver::{Post, Receiver, signature, webhook};
use crate::stores::Base;
use crate::whole::{self, CALLER, Company, LINE, OnTwilio, PERSON, Whole, account, caller, text, until};

crate::on_every_store! {
    a_room_is_booked_by_speech_in_english_and_the_guest_asks_for_a_person
    a_room_is_booked_by_speech_in_ukrainian
    a_room_is_booked_by_text_messages_in_ukrainian
}

const ENGLISH: &str = include_str!("../../workflows/hotel-booking.toml");
const UKRAINIAN: &str = include_str!("../../workflows/hotel-booking.uk.toml");

fn receptionist(language: &str, workflow: &str) -> Value {
    json!({
        "name": "Reception", "language": language, "workflow": workflow, "llm": { "engine": "builtin" },
        "tools": ["send_sms", "room_price"], "knowledge": ["House"], "transfer_to": PERSON,
    })
}

/// The hotel's own server: a room costs 120 a night. Keeps what it was asked.
#[derive(Clone)]
struct Prices {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Prices {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/price", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = asked.clone();
        let price = move |RawQuery(query): RawQuery| {
            let query = query.unwrap_or_default();
            let nights = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "nights");
            let nights: u32 = nights.and_then(|(_, nights)| nights.parse().ok()).unwrap_or(0);
            kept.lock().unwrap().push(query);
            std::future::ready(Json(json!({ "total": nights * 120 })))
        };
        let router = axum::Router::new().route("/price", axum::routing::get(price));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, asked }
    }

    fn tool(&self) -> Value {
        let text = json!({ "type": "string" });
        json!({
            "kind": "http", "name": "room_price", "description": "What a stay costs.", "method": "GET", "url": self.url,
            "parameters": { "type": "object", "properties": { "arrival": text, "nights": text, "guests": text } },
        })
    }
}

/// The program with the hotel in it: its tool, its documents, its receptionist and a server that is told of calls.
struct Hotel {
    whole: Whole,
    at: OnTwilio,
    prices: Prices,
    receiver: Receiver,
    secret: String,
}

impl Hotel {
    async fn open(base: Base, cast: Cast, config: MockTwilioConfig, language: &str, workflow: &str) -> Self {
        let whole = Whole::start(base, cast, |config| {
            config.tools.allow_private = vec!["127.0.0.1".into()];
            config.webhooks.allow_private = vec!["127.0.0.1".into()];
        })
        .await;
        let (prices, receiver) = (Prices::start().await, Receiver::start().await);
        let mock = whole::twilio(config).await;
        let company = whole.company("Acme", json!({})).await;
        let integration = company.integration("Main", "twilio", whole::twilio_credentials(&mock)).await;
        let receptionist = receptionist(language, workflow);

        // Without what its workflow needs it is not saved.
        let (status, refused) = company.ask(Method::POST, "/agents", without_tools(&receptionist)).await;
        assert_eq!(status, 422, "{refused}");
        let faults: Vec<(&str, &str)> =
            refused["errors"].as_array().unwrap().iter().map(|it| (text(&it["field"]), text(&it["problem"]))).collect();
        for (node, tool) in [("price", "room_price"), ("confirmation", "send_sms"), ("question", "search_knowledge")] {
            let place = format!("workflow: node \"{node}\"");
            assert!(
                faults.iter().any(|(field, problem)| *field == place && problem.contains(&format!("`{tool}`"))),
                "{node} {tool}: {refused}"
            );
        }
        assert_eq!(faults.len(), 3, "{refused}");

        company.post("/tools", prices.tool()).await;
        company.post("/knowledge", json!({ "name": "House", "language": language })).await;
        let agent = company.agent(receptionist.clone()).await;
        let path = format!("/agents/{agent}");
        let mut without = without_tools(&receptionist);
        without.as_object_mut().unwrap().remove("workflow");
        let (status, refused) = company.ask(Method::PUT, &path, without).await;
        assert_eq!((status, refused["errors"].as_array().unwrap().len()), (422, 3), "the workflow stays: {refused}");
        let line = company.line(integration, LINE, agent).await;
        let written = company.put(&format!("/integrations/{integration}/webhook"), json!({})).await;
        assert_eq!(written["lines"][0]["drifted"], false, "{written}");
        let (_, secret) = webhook(&company, &receiver.url("/crm")).await;
        until("the server knows the tool", async || whole.directory.load().tools().next().map(|_| ())).await;
        let at = OnTwilio { company, mock, integration, agent, line };
        Self { whole, at, prices, receiver, secret }
    }

    /// What the company was told of its only call: that it ended, and what came of it. Both are signed.
    async fn told(&self) -> (Value, Value) {
        let posts = self.receiver.got("/crm", 2).await;
        assert_eq!(posts.iter().map(Post::kind).collect::<Vec<_>>(), ["call.ended", "call.analysed"]);
        for post in &posts {
            assert_eq!(post.signature, signature(&self.secret, post), "by a computation of our own");
        }
        (posts[0].json()["data"].clone(), posts[1].json()["data"].clone())
    }
}

fn without_tools(profile: &Value) -> Value {
    let mut without = profile.clone();
    without["tools"] = json!([]);
    without["knowledge"] = json!([]);
    without
}

/// Eight turns of a guest and the agent's answers, in real time.
const A_BOOKING: Duration = Duration::from_secs(120);

/// What a guest does when the agent has finished.
#[derive(Clone, Copy)]
enum Does {
    /// Speaks for a second; recognition hears this.
    Says(&'static str),
    /// Presses keys.
    Presses(&'static str),
}

use Does::{Presses, Says};

fn guest(turns: &[Does]) -> Arc<Fixture> {
    let mut guest = Fixture::clone(&caller(Ender::Agent));
    let mut said = guest.turns.remove(0);
    said.start = Start::AfterAgent(300);
    let (from, to) = (said.onset_ms(), said.onset_ms() + 900);
    said.samples.truncate((to * PER_MS) as usize);
    said.speech = vec![(from, to)];
    let pressed = |keys: &str| {
        let (speech, samples) = (vec![(0, 100)], vec![0; (100 * PER_MS) as usize]);
        Turn { speech, samples, keys: keys.to_owned(), ..said.clone() }
    };
    let turn = |does: &Does| match does {
        Says(_) => said.clone(),
        Presses(keys) => pressed(keys),
    };
    guest.turns = turns.iter().map(turn).collect();
    Arc::new(guest)
}

/// A guest who calls and does these things in turn.
async fn hotel(base: Base, language: &str, workflow: &str, turns: &[Does]) -> Hotel {
    let said = |turn: &Does| match turn {
        Says(text) => Some((*text).to_owned()),
        Presses(_) => None,
    };
    let says = turns.iter().filter_map(said).collect();
    let cast = Cast::new(ScriptedConfig { says, char_ms: 8, ..quick() });
    let config = MockTwilioConfig { caller: Some(guest(turns)), ..account() };
    Hotel::open(base, cast, config, language, workflow).await
}

async fn a_room_is_booked_by_speech_in_english_and_the_guest_asks_for_a_person(base: Base) {
    let turns = [
        Says("I'd like to book a room on Friday."),
        Presses("2#"),
        Says("For three people."),
        Says("Yes, please do."),
        Says("My name is Maria Lopez."),
        Presses("0671112233#"),
        Says("Yes, that's right."),
        Says("Can I talk to someone at reception, please?"),
    ];
    let hotel = hotel(base, "en", ENGLISH, &turns).await;
    let record = hotel.at.rung_for(A_BOOKING).await;
    let all = Company::said(&record).join("\n");
    for part in [
        "agent: Hello, Acme. This call may be recorded. Would you like to book a room",
        "agent: How many nights will you stay?",
        "caller: 2",
        "agent: For how many people?",
        "two nights from Friday for three comes to",
        "Shall I book it?",
        "agent: What name",
        "caller: 0671112233",
        "is that right?",
        "Your room is booked from Friday. I have sent you a message with the details.",
        "agent: I will put you through to a colleague.",
    ] {
        assert!(all.contains(part), "{part:?} was not said:\n{all}");
    }
    assert_eq!(*hotel.prices.asked.lock().unwrap(), ["arrival=friday&guests=3&nights=2"]);
    let booking = json!({
        "arrival": "friday", "nights": "2", "guests": "3", "name": "Maria Lopez", "phone": "0671112233", "total": "240",
    });
    assert_eq!(record["remembered"]["booking"], booking);
    assert_eq!(record["handover"], "A guest with a booking: Can I talk to someone at reception, please?");
    let message = hotel.at.mock.messages().into_iter().find(|message| message.to == PERSON);
    let message = message.expect("the number is read as the line's country's");
    assert!(
        message.body.starts_with("Acme: room for 3 from friday, 2 night(s), name Maria Lopez."),
        "{}",
        message.body
    );
    let calls = hotel.at.mock.calls();
    let over = calls.iter().find(|call| call.parent.is_none()).expect("the caller's");
    assert_eq!((over.status.as_str(), &over.dialled[..]), ("completed", &[PERSON.to_owned()][..]), "{over:?}");

    // The company is told what was collected by voice, by key and from the tool, and what came of it.
    let (ended, analysed) = hotel.told().await;
    let call = &ended["call"];
    assert_eq!((&call["id"], &call["from"], &call["line"]), (&record["id"], &json!(CALLER), &json!(LINE)));
    assert_eq!((&call["outcome"], &call["handover"]), (&json!("answered"), &record["handover"]));
    assert_eq!(call["remembered"]["booking"], booking);
    let slots = &call["remembered"]["slots"];
    for (slot, value) in [
        ("arrival", "friday"),
        ("nights", "2"),
        ("guests", "3"),
        ("guest", "Maria Lopez"),
        ("phone", "0671112233"),
        ("total", "240"),
    ] {
        assert_eq!(slots[slot], value, "{slot}: {slots}");
    }
    let analysis = &analysed["analysis"];
    assert_eq!((&analysed["call"]["id"], &analysis["by"]), (&record["id"], &json!("rule")), "{analysis}");
    assert_eq!(analysis["outcome"], "transferred", "{analysis}");
    let noted = text(&analysis["slots"]["booking"]);
    assert!(["friday", "Maria Lopez", "0671112233", "240"].iter().all(|part| noted.contains(part)), "{analysis}");
    hotel.whole.stop().await;
}

async fn a_room_is_booked_by_speech_in_ukrainian(base: Base) {
    let turns = [
        Says("Хочу забронювати номер на суботу."),
        Says("Дві ночі."),
        Presses("2#"),
        Says("Так."),
        Says("Мене звати Олена."),
        Says("нуль шістдесят сім, сто одинадцять, двадцять два, тридцять три"),
        Says("Так, правильно."),
        Says("Ні, дякую, це все."),
    ];
    let hotel = hotel(base, "uk", UKRAINIAN, &turns).await;
    let record = hotel.at.rung_for(A_BOOKING).await;
    let expected = json!({
        "arrival": "saturday", "nights": "2", "guests": "2", "name": "Олена", "phone": "0671112233", "total": "240",
    });
    assert_eq!(record["remembered"]["booking"], expected, "{record}");
    assert_eq!((&record["end"]["by"], &record["end"]["reason"]), (&json!("agent"), &json!("goodbye")), "{record}");
    assert!(
        hotel.at.mock.messages().iter().any(|message| message.to == PERSON),
        "the number is read as the line's country's"
    );
    let (ended, analysed) = hotel.told().await;
    assert_eq!(ended["call"]["remembered"]["booking"], expected, "{ended}");
    assert_eq!((&ended["call"]["end"], &ended["call"]["handover"]), (&record["end"], &Value::Null), "{ended}");
    let analysis = &analysed["analysis"];
    assert_eq!(analysis["outcome"], "resolved", "{analysis}");
    assert!(text(&analysis["slots"]["booking"]).contains("Олена"), "{analysis}");
    hotel.whole.stop().await;
}

async fn a_room_is_booked_by_text_messages_in_ukrainian(base: Base) {
    let opened = Hotel::open(base, Cast::new(quick()), account(), "uk", UKRAINIAN).await;
    let hotel = &opened.at;
    let talk = [
        ("Хочу забронювати номер на суботу", "Скільки ночей"),
        ("2", "На скількох людей?"),
        ("3", "Разом 240 євро. Бронюю?"),
        ("так", "Як вас записати?"),
        ("Олена", "За яким номером"),
        ("0671112233", "правильно?"),
        ("так", "Дякую, Олена. Номер заброньовано"),
        ("Ні, дякую", "До побачення"),
    ];
    for (before, (written, expected)) in talk.into_iter().enumerate() {
        hotel.mock.text(CALLER, LINE, written).await.unwrap();
        let answer = until("the answer", async || {
            let mut sent = hotel.mock.messages();
            sent.retain(|message| message.direction == "outbound-api" && message.to == CALLER);
            (sent.len() > before).then(|| sent.remove(before).body)
        })
        .await;
        assert!(answer.contains(expected), "{written:?} was answered {answer:?}, not {expected:?}");
        // The next message finds the conversation where this one left it only when the tools' rounds are written.
        if expected.contains("Дякую") {
            until("the booking is noted", async || (!hotel.company.audited("remember").await.is_empty()).then_some(()))
                .await;
        }
    }
    assert!(hotel.mock.messages().iter().any(|message| message.to == PERSON), "the details went to the guest's number");
    opened.whole.stop().await;
}
