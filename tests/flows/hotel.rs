//! The hotel's workflow through the whole program: by speech in English and in Ukrainian, and by text message, with slots,
//! tools, a message to the guest and a person at the end.

use std::sync::Arc;
use std::time::Duration;

use offhook::load::fixture::{Ender, Fixture, PER_MS, Start};
use offhook::mock::twilio::MockTwilioConfig;
use offhook::speech::scripted::ScriptedConfig;
use serde_json::{Value, json};

use crate::common::{Cast, quick};
use crate::stores::Base;
use crate::whole::{CALLER, LINE, OnTwilio, PERSON, Whole, account, caller, text, until};

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
        "tools": ["send_sms"], "transfer_to": PERSON,
    })
}

/// Seven turns of a guest and the agent's answers, in real time.
const A_BOOKING: Duration = Duration::from_secs(90);

/// A guest who speaks so many times for a second, each time when the agent has finished.
fn guest(turns: usize) -> Arc<Fixture> {
    let mut guest = Fixture::clone(&caller(Ender::Agent));
    let mut turn = guest.turns.remove(0);
    turn.start = Start::AfterAgent(300);
    let (from, to) = (turn.onset_ms(), turn.onset_ms() + 900);
    turn.samples.truncate((to * PER_MS) as usize);
    turn.speech = vec![(from, to)];
    guest.turns = vec![turn; turns];
    Arc::new(guest)
}

/// Recognition hears these lines, one an utterance.
async fn hotel(base: Base, language: &str, workflow: &str, says: &[&str]) -> (Whole, OnTwilio) {
    let says: Vec<String> = says.iter().map(|line| (*line).to_owned()).collect();
    let turns = says.len();
    let cast = Cast::new(ScriptedConfig { says, char_ms: 8, ..quick() });
    let whole = Whole::start(base, cast, |_| {}).await;
    let config = MockTwilioConfig { caller: Some(guest(turns)), ..account() };
    let hotel = OnTwilio::set_up(&whole, config, json!({}), receptionist(language, workflow)).await;
    (whole, hotel)
}

async fn a_room_is_booked_by_speech_in_english_and_the_guest_asks_for_a_person(base: Base) {
    let lines = [
        "I'd like to book a room on Friday.",
        "Two nights.",
        "For three people.",
        "My name is Maria Lopez.",
        "plus three eight zero, six seven, one one one, two two, three three",
        "Yes, that's right.",
        "Can I talk to someone at reception, please?",
    ];
    let (whole, hotel) = hotel(base, "en", ENGLISH, &lines).await;
    let record = hotel.rung_for(A_BOOKING).await;
    let said: Vec<String> =
        record["transcript"]["lines"].as_array().unwrap().iter().map(|line| text(&line["text"]).to_owned()).collect();
    let all = said.join("\n");
    for part in [
        "Hello, Acme. This call may be recorded. Would you like to book a room",
        "How many nights will you stay?",
        "I cannot see the price just now. What name",
        "is that right?",
        "Your room is booked from Friday. I have sent you a message with the details.",
        "I will put you through to a colleague.",
    ] {
        assert!(all.contains(part), "{part:?} was not said:\n{all}");
    }
    let booking = &record["remembered"]["booking"];
    assert_eq!(
        (&booking["arrival"], &booking["guests"], &booking["phone"]),
        (&json!("friday"), &json!("3"), &json!("+380671112233"))
    );
    assert_eq!(
        record["remembered"]["slots"]["nights"], "2",
        "what the workflow has collected: {}",
        record["remembered"]
    );
    assert_eq!(record["handover"], "A guest with a booking: Can I talk to someone at reception, please?");
    let message =
        hotel.mock.messages().into_iter().find(|message| message.to == PERSON).expect("the guest has a message");
    assert!(
        message.body.starts_with("Acme: room for 3 from friday, 2 night(s), name Maria Lopez."),
        "{}",
        message.body
    );
    whole.stop().await;
}

async fn a_room_is_booked_by_speech_in_ukrainian(base: Base) {
    let lines = [
        "Хочу забронювати номер на суботу.",
        "Дві ночі.",
        "На двох людей.",
        "Мене звати Олена.",
        "нуль шістдесят сім, сто одинадцять, двадцять два, тридцять три",
        "Так, правильно.",
        "Ні, дякую, це все.",
    ];
    let (whole, hotel) = hotel(base, "uk", UKRAINIAN, &lines).await;
    let record = hotel.rung_for(A_BOOKING).await;
    let booking = &record["remembered"]["booking"];
    let expected = json!({ "arrival": "saturday", "nights": "2", "guests": "2", "name": "Олена", "phone": "0671112233", "total": "" });
    assert_eq!(booking, &expected, "{record}");
    assert_eq!((&record["end"]["by"], &record["end"]["reason"]), (&json!("agent"), &json!("goodbye")), "{record}");
    assert!(
        hotel.mock.messages().iter().any(|message| message.to == PERSON),
        "the number is read as the line's country's"
    );
    whole.stop().await;
}

async fn a_room_is_booked_by_text_messages_in_ukrainian(base: Base) {
    let whole = Whole::start(base, Cast::new(quick()), |_| {}).await;
    let hotel = OnTwilio::set_up(&whole, account(), json!({}), receptionist("uk", UKRAINIAN)).await;
    let talk = [
        ("Хочу забронювати номер на суботу", "Скільки ночей"),
        ("2", "На скількох людей?"),
        ("3", "Як вас записати?"),
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
    whole.stop().await;
}
