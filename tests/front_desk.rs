//! Whole conversations with the front desk, in text: the workflow file, the builtin engine, the tools and the memory
//! together, as a call uses them.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use offhook::agent::builtin::Builtin;
use offhook::agent::knowledge::{Knowledge, KnowledgeError, Lookup, Passage};
use offhook::agent::memory::Memory;
use offhook::agent::profile::ModelChoice;
use offhook::agent::tools::search_knowledge::{self, SearchKnowledge};
use offhook::agent::tools::{CallEffect, ToolBox, ToolContext, ToolRegistry};
use offhook::agent::walk::Progress;
use offhook::agent::workflow::{Expectation, Workflow};
use offhook::speech::llm::{ChatRequest, LanguageModel, LlmEvent, Message};
use offhook::telephony::{CallId, PhoneNumber};
use serde_json::{Value, json};

const FRONT_DESK: &str = include_str!("../workflows/front-desk.toml");
const GREETING: &str = "Hello, Oak Garden, how can I help?";

struct Desk {
    engine: Builtin,
    tools: ToolBox,
    memory: Memory,
    facts: Vec<(String, Value)>,
    handover: Option<String>,
    ended: bool,
    /// The text of the last answer.
    answer: String,
}

impl Desk {
    fn new() -> Self {
        Self::with_tools(&["remember", "transfer_call", "end_call"])
    }

    fn with_tools(names: &[&str]) -> Self {
        let workflow = Workflow::parse(FRONT_DESK).unwrap_or_else(|error| panic!("{error}"));
        let mut memory = Memory::new("");
        memory.agent_said(GREETING);
        Self {
            engine: Builtin::new(Arc::new(workflow)),
            tools: ToolBox::new(names.iter().copied(), &ToolRegistry::with_call_tools()).unwrap(),
            memory,
            facts: Vec::new(),
            handover: None,
            ended: false,
            answer: String::new(),
        }
    }

    async fn reply(&self, request: ChatRequest) -> Vec<LlmEvent> {
        let mut stream = self.engine.reply(request);
        let mut events = Vec::new();
        while let Some(event) = stream.next().await {
            events.push(event.unwrap());
        }
        assert!(matches!(events.last(), Some(LlmEvent::Done { .. })), "an answer ends with Done");
        events
    }

    /// One turn of the caller, with the rounds of tools that the answer takes; gives the answer.
    async fn says(&mut self, text: &str) -> &str {
        self.memory.user_said(text);
        self.answer.clear();
        for _ in 0..5 {
            let request = self.memory.request(&self.tools.specs(), &ModelChoice::default());
            let mut said = String::new();
            let mut calls = Vec::new();
            for event in self.reply(request).await {
                match event {
                    LlmEvent::Text(word) => said.push_str(&word),
                    LlmEvent::ToolCall(call) => calls.push(call),
                    _ => {}
                }
            }
            self.memory.agent_said(&said);
            self.answer = format!("{} {}", self.answer, said).trim().to_owned();
            if calls.is_empty() {
                return &self.answer;
            }
            let mut results = Vec::new();
            for call in &calls {
                let cx = ToolContext::new(CallId::new(), PhoneNumber::default(), PhoneNumber::default());
                let result = self.tools.run(call, cx, Duration::from_secs(1)).await;
                match result.effect.clone() {
                    Some(CallEffect::Remember { key, value }) => self.facts.push((key, value)),
                    Some(CallEffect::Handover { to }) => self.handover = Some(to),
                    Some(CallEffect::EndCall { .. }) => self.ended = true,
                    Some(CallEffect::PressKeys { .. }) | None => {}
                }
                results.push(result);
            }
            self.memory.tool_round(&calls, &results);
        }
        panic!("{text:?}: the tools never end");
    }

    /// The caller says each line and the answer holds what stands beside it.
    async fn talk(&mut self, lines: &[(&str, &str)]) {
        for (text, expected) in lines {
            let answer = self.says(text).await.to_owned();
            assert!(
                answer.contains(expected),
                "{text:?}\n  answered {answer:?}\n  expected {expected:?}\n  at {:?}",
                self.state().node
            );
        }
    }

    fn state(&self) -> Progress {
        self.engine.state(&self.memory.all())
    }

    fn fact(&self, key: &str) -> &Value {
        let found = self.facts.iter().rev().find(|(name, _)| name == key);
        &found.unwrap_or_else(|| panic!("no fact {key:?} in {:?}", self.facts)).1
    }
}

async fn check(lines: &[(&str, &str)]) -> Desk {
    let mut desk = Desk::new();
    desk.talk(lines).await;
    desk
}

const HOURS: &str = "We are open from eight in the morning";
const BOOKED: &str = "Your table for four is booked on Friday at seven. Thank you, Maria. Is there anything else?";

fn booking() -> Value {
    json!({ "people": "4", "day": "friday", "time": "19:00", "name": "Maria" })
}

#[tokio::test]
async fn a_booking_asks_for_one_thing_after_the_other() {
    let mut desk = check(&[
        ("Hello, I would like to book a table", "For how many people?"),
        ("for four people", "A table for four. For which day?"),
        ("On Friday", "At what time?"),
        ("at seven", "And what is your name, please?"),
        ("Maria", "So a table for four on Friday at seven under the name Maria, is that right?"),
        ("Yes, that is right", BOOKED),
    ])
    .await;
    assert_eq!(desk.fact("booking"), &booking());
    assert!(!desk.ended);
    desk.talk(&[("No, thank you", "Goodbye!")]).await;
    assert!(desk.ended && desk.state().ended);
    assert_eq!(desk.facts.len(), 1);
}

#[tokio::test]
async fn a_booking_takes_several_things_at_once() {
    let desk = check(&[
        ("I would like to book a table for four people on Friday at seven", "And what is your name, please?"),
        ("My name is Maria", "So a table for four on Friday at seven under the name Maria, is that right?"),
        ("yes please", BOOKED),
    ])
    .await;
    assert_eq!(desk.fact("booking"), &booking());
    let desk = check(&[
        ("Can I get a table for four on Friday at seven my name is Maria", "is that right?"),
        ("Correct", BOOKED),
    ])
    .await;
    assert_eq!(desk.fact("booking"), &booking());
}

#[tokio::test]
async fn a_booking_may_come_in_any_order() {
    let desk = check(&[
        ("my name is Maria and I want a table", "For how many people?"),
        ("Friday at seven", "For how many people?"),
        ("four", "is that right?"),
        ("yes", BOOKED),
    ])
    .await;
    assert_eq!(desk.fact("booking"), &booking());
}

#[tokio::test]
async fn slips_of_the_recogniser_are_understood() {
    for first in [
        "table for for",
        "Book table for 4 people.",
        "a table for for please",
        "Table for four persons",
        "I want book table for for people",
    ] {
        let desk = check(&[
            (first, "For which day?"),
            ("friday please", "At what time?"),
            ("seven o'clock", "your name"),
            ("it is Maria", "table for four on Friday at seven under the name Maria"),
            ("Right.", BOOKED),
        ])
        .await;
        assert_eq!(desk.fact("booking"), &booking(), "{first}");
    }
    let desk = check(&[
        ("I would like to book a table", "For how many"),
        ("for", "which day"),
        ("on friday at 7", "your name"),
        ("Maria thank you", "is that right"),
        ("yeah", "booked"),
    ])
    .await;
    assert_eq!(desk.fact("booking"), &booking());
}

#[tokio::test]
async fn questions_in_the_middle_of_a_booking_are_answered_and_the_booking_goes_on() {
    let desk = check(&[
        ("book a table for four", "For which day?"),
        (
            "what time do you open on Sunday",
            "On Saturday and Sunday we are open from nine in the morning until midnight. For which day?",
        ),
        ("Friday then", "At what time?"),
        ("do you have parking", "free parking behind the hotel. At what time?"),
        ("at seven", "your name"),
        ("can I pay by card", "by card, by phone or in cash. And what is your name, please?"),
        ("Maria", "is that right?"),
        (
            "Is there a vegetarian menu",
            "vegetarian soup, salad, pizza and pie, every day. Is the table for four on Friday at seven right?",
        ),
        ("yes", BOOKED),
    ])
    .await;
    assert_eq!(desk.fact("booking"), &booking());
}

#[tokio::test]
async fn a_wrong_booking_is_corrected_before_it_is_made() {
    let desk = check(&[
        ("a table for five on Friday at seven under the name Maria", "a table for five on Friday"),
        ("no, for four people", "So a table for four on Friday at seven under the name Maria, is that right?"),
        ("no", "What shall I change"),
        ("the time", "At what time?"),
        ("eight", "So a table for four on Friday at eight"),
        ("no, at seven", "So a table for four on Friday at seven"),
        ("yes", BOOKED),
    ])
    .await;
    assert_eq!(desk.fact("booking"), &booking());
    assert_eq!(desk.facts.len(), 1, "nothing was booked before it was right");
}

#[tokio::test]
async fn a_booking_can_be_changed_after_it_was_made() {
    let desk = check(&[
        ("a table for four on Friday at seven my name is Maria", "is that right?"),
        ("yes", BOOKED),
        (
            "actually, make it eight o'clock",
            "So a table for four on Friday at eight under the name Maria, is that right?",
        ),
        ("yes", "booked on Friday at eight"),
    ])
    .await;
    assert_eq!(desk.fact("booking")["time"], "20:00");
    assert_eq!(desk.facts.len(), 2);
}

#[tokio::test]
async fn a_second_booking_starts_afresh_and_keeps_the_name() {
    let desk = check(&[
        ("a table for four on Friday at seven my name is Maria", "is that right?"),
        ("yes", BOOKED),
        ("I would like to book another table", "For how many people?"),
        ("two", "For which day?"),
        ("tomorrow at one", "So a table for two tomorrow at one under the name Maria, is that right?"),
        ("yes", "Your table for two is booked tomorrow at one."),
    ])
    .await;
    assert_eq!(desk.facts.len(), 2);
    assert_eq!(desk.fact("booking"), &json!({ "people": "2", "day": "tomorrow", "time": "13:00", "name": "Maria" }));
}

#[tokio::test]
async fn a_booking_can_be_left() {
    let desk = check(&[
        ("book a table for four", "For which day?"),
        ("never mind", "I have not booked anything. Is there anything else?"),
        ("no that is all", "Goodbye!"),
    ])
    .await;
    assert!(desk.facts.is_empty() && desk.ended);
}

#[tokio::test]
async fn opening_hours_are_told_however_they_are_asked_for() {
    for question in [
        "What time do you open",
        "when are you open",
        "Well, are you open this week around six as soon as possible",
        "what are your opening hours please",
        "Good morning, what time do you close next week at nine",
        "what time you open",
        "how late are you open today",
        "What time do you open on December the thirteenth",
    ] {
        check(&[(question, HOURS)]).await;
    }
    check(&[("are you open on Sunday", "On Saturday and Sunday we are open from nine")]).await;
    check(&[("when is the kitchen open", "The kitchen is open from twelve")]).await;
}

#[tokio::test]
async fn two_questions_at_once_are_both_answered() {
    check(&[("What time do you open and do you have parking", "at the weekend. Yes, we have free parking")]).await;
    check(&[("do you take cards and where are you", "in cash. We are at twelve Garden Street")]).await;
}

#[tokio::test]
async fn facts_about_the_house_are_told() {
    for (question, answer) in [
        ("Can I pay by card", "You can pay by card"),
        ("do you take cards", "You can pay by card"),
        ("is there parking", "free parking"),
        ("what is your address", "twelve Garden Street"),
        ("where are you", "twelve Garden Street"),
        ("Well, how do I get to Garden Street from the station", "five minutes from the station"),
        ("how much is dinner", "twenty five euros"),
        ("what does it cost", "Lunch is twelve euros"),
        ("do you have anything vegetarian", "vegetarian soup"),
        ("what is on the menu", "soup, salad, chicken"),
        ("is the wifi free", "wifi is free"),
        ("what is your cancellation policy", "costs nothing"),
        ("can I bring my children", "very welcome"),
    ] {
        check(&[(question, answer)]).await;
    }
}

#[tokio::test]
async fn a_callback_is_noted_with_name_and_moment() {
    let desk = check(&[
        ("Can you call me back", "Of course. What is your name, please?"),
        ("Maria", "When shall we call you?"),
        ("tomorrow at ten", "Thank you, Maria. We will call you back tomorrow at ten. Is there anything else?"),
        ("no", "Goodbye!"),
    ])
    .await;
    assert_eq!(desk.fact("callback"), &json!({ "name": "Maria", "moment": "tomorrow 10:00" }));
    assert!(desk.ended);
    let desk = check(&[
        ("Please call me back this week around one as soon as possible", "What is your name"),
        ("It is Mister Young speaking", "Thank you, Mister Young. We will call you back at one."),
    ])
    .await;
    assert_eq!(desk.fact("callback"), &json!({ "name": "Young", "moment": "13:00" }));
    let desk = check(&[(
        "Thanks, please call me back on Sunday my name is Peter",
        "Thank you, Peter. We will call you back on Sunday.",
    )])
    .await;
    assert_eq!(desk.fact("callback")["moment"], "sunday");
}

#[tokio::test]
async fn a_callback_after_a_booking_knows_the_name() {
    let desk = check(&[
        ("a table for four on Friday at seven my name is Maria", "is that right?"),
        ("yes", BOOKED),
        ("yes, could you call me back tomorrow at ten", "Thank you, Maria. We will call you back tomorrow at ten."),
        ("Thank you, goodbye", "Goodbye!"),
    ])
    .await;
    assert_eq!(desk.fact("callback"), &json!({ "name": "Maria", "moment": "tomorrow 10:00" }));
    assert_eq!(desk.fact("booking"), &booking());
}

#[tokio::test]
async fn a_booking_of_another_call_can_be_cancelled_or_changed() {
    let desk = check(&[
        ("I need to cancel my reservation", "What name is the booking under?"),
        ("Anna Green", "And for which day was it?"),
        ("Monday", "Thank you, Anna Green. Your booking on Monday is cancelled. Is there anything else?"),
    ])
    .await;
    assert_eq!(desk.fact("cancel"), &json!({ "name": "Anna Green", "day": "monday" }));
    let desk = check(&[
        ("I would like to change my booking", "What name is the booking under?"),
        ("the name is Peter", "which day or time would you like?"),
        ("on Saturday at eight", "Thank you, Peter. I have noted your new time, on Saturday at eight."),
    ])
    .await;
    assert_eq!(desk.fact("change"), &json!({ "name": "Peter", "moment": "saturday 08:00" }));
}

#[tokio::test]
async fn whoever_asks_for_a_person_is_handed_over() {
    for wish in [
        "Can I talk to the reception",
        "I want to speak to a human",
        "operator",
        "get me a real person",
        "can I talk to the sales team",
    ] {
        let desk =
            check(&[(wish, "A colleague will call you back on this number very soon. Is there anything else?")]).await;
        assert!(desk.handover.is_some() && desk.state().handover.is_some(), "{wish}");
    }
}

#[tokio::test]
async fn after_two_answers_that_were_not_understood_a_person_is_offered() {
    let mut desk = check(&[
        ("George are Friday of Park chicken green Road", "Sorry, I did not catch that."),
        ("Received Saturday black hotel mind", "I still did not understand. Would you like to talk to a person?"),
    ])
    .await;
    assert_eq!(desk.state().expectation, Expectation::YesNo);
    desk.talk(&[("yes please", "A colleague will call you back")]).await;
    assert!(desk.handover.is_some());
    let desk = check(&[
        ("mumble", "Sorry"),
        ("mumble", "a person?"),
        ("no thanks", "How can I help?"),
        ("when do you open", HOURS),
    ])
    .await;
    assert!(desk.handover.is_none());
}

#[tokio::test]
async fn one_that_was_not_understood_is_forgotten_after_one_that_was() {
    check(&[
        ("mumble", "Sorry, I did not catch that."),
        ("when do you open", HOURS),
        ("mumble", "Sorry, I did not catch that."),
    ])
    .await;
}

#[tokio::test]
async fn a_slot_is_asked_for_in_other_words_and_then_given_up() {
    let desk = check(&[
        ("book a table", "For how many people?"),
        ("mumble", "How many people will you be?"),
        ("mumble", "Please say just the number of people."),
        ("mumble", "Would you like to talk to a person?"),
    ])
    .await;
    assert_eq!(desk.state().node, "offer_person");
}

#[tokio::test]
async fn what_was_said_is_repeated() {
    check(&[("when do you open", HOURS), ("can you repeat that please", HOURS), ("What?", HOURS)]).await;
    check(&[("could you repeat", GREETING)]).await;
    check(&[("book a table", "For how many people?"), ("sorry what", "For how many people?"), ("four", "which day")])
        .await;
}

#[tokio::test]
async fn manners_are_answered() {
    check(&[("hello", "Hello! I can hear you.")]).await;
    check(&[("thank you very much", "You are welcome. Is there anything else?"), ("yes", "How can I help?")]).await;
    let desk = check(&[("goodbye", "Thank you for calling Oak Garden. Goodbye!")]).await;
    assert!(desk.ended);
    check(&[("Good afternoon, I have a question, what time do you open", HOURS)]).await;
}

#[tokio::test]
async fn a_goodbye_that_was_interrupted_goes_on_with_the_question() {
    let mut desk = check(&[("goodbye", "Goodbye!")]).await;
    desk.memory.interrupted("Thank you for");
    desk.talk(&[("oh wait, do you have parking", "free parking")]).await;
    assert!(!desk.state().ended);
}

#[tokio::test]
async fn an_interrupted_answer_changes_nothing_but_what_was_heard() {
    let mut desk = check(&[("what time do you open", HOURS)]).await;
    desk.memory.interrupted("We are open from eight");
    desk.talk(&[("I want to book a table for four", "For which day?"), ("on Friday at seven", "your name")]).await;
    desk.memory.interrupted("And what");
    desk.talk(&[("Maria", "is that right?")]).await;
    desk.memory.interrupted("So a table for four on Friday at seven under the");
    desk.talk(&[("yes exactly", BOOKED)]).await;
    desk.memory.interrupted("");
    assert_eq!(desk.fact("booking"), &booking());
    desk.talk(&[("thank you goodbye", "Goodbye!")]).await;
    assert_eq!(desk.facts.len(), 1, "what a tool has done is not done again");
}

#[tokio::test]
async fn words_that_got_no_answer_still_count() {
    let mut desk = Desk::new();
    desk.memory.user_said("I would like to book a");
    desk.talk(&[("table for four people", "For which day?")]).await;
    desk.memory.user_said("on Friday");
    desk.talk(&[("at seven", "your name")]).await;
    desk.memory.user_said("my name is");
    desk.talk(&[("Maria", "table for four on Friday at seven under the name Maria")]).await;
    desk.memory.user_said("yes");
    desk.talk(&[("please", BOOKED)]).await;
    assert_eq!(desk.facts.len(), 1);
}

#[tokio::test]
async fn a_confirmation_taken_back_before_it_was_answered_books_nothing_wrong() {
    let mut desk = check(&[("a table for five on Friday at seven my name is Maria", "is that right?")]).await;
    desk.memory.user_said("yes");
    desk.talk(&[("no wait for four people", "So a table for four on Friday"), ("yes", BOOKED)]).await;
    assert_eq!(desk.facts.len(), 1);
    assert_eq!(desk.fact("booking"), &booking());
}

#[tokio::test]
async fn a_tool_that_is_not_there_is_not_said_to_have_worked() {
    let mut desk = Desk::with_tools(&["end_call"]);
    desk.talk(&[
        ("a table for four on Friday at seven my name is Maria", "is that right?"),
        ("yes", "I could not write the booking down. I am sorry, nobody can take your call right now."),
    ])
    .await;
    assert!(desk.state().handover.is_none());
    let mut desk = Desk::with_tools(&[]);
    desk.talk(&[("goodbye", "Goodbye!")]).await;
    assert!(desk.state().ended, "a goodbye without the tool still ends the conversation");
}

#[tokio::test]
async fn a_tool_that_was_cut_off_is_asked_about_again() {
    let mut desk = check(&[("a table for four on Friday at seven my name is Maria", "is that right?")]).await;
    desk.memory.user_said("yes");
    let request = desk.memory.request(&desk.tools.specs(), &ModelChoice::default());
    let events = desk.reply(request).await;
    let calls: Vec<_> = events
        .into_iter()
        .filter_map(|event| if let LlmEvent::ToolCall(call) = event { Some(call) } else { None })
        .collect();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].name, "remember");
    desk.memory.tool_round(&calls, &[]);
    assert_eq!(desk.state().node, "more", "the failure leads to a person and on");
}

#[tokio::test]
async fn speculation_on_half_a_turn_leaves_no_trace() {
    let mut desk = check(&[("book a table", "For how many people?")]).await;
    let before = desk.state();
    for guess in ["for", "for four", "for four people", "mumble"] {
        let request = desk.memory.with_user(guess).request(&desk.tools.specs(), &ModelChoice::default());
        let first = desk.reply(request.clone()).await;
        assert_eq!(first, desk.reply(request).await, "the same words give the same answer");
    }
    assert_eq!(desk.state(), before);
    desk.talk(&[("for six people", "A table for six. For which day?")]).await;
}

#[tokio::test]
async fn other_messages_in_the_history_are_skipped() {
    let mut desk = check(&[("book a table", "For how many people?")]).await;
    desk.memory.agent_said("Are you there?");
    desk.memory.agent_said("Are you there?");
    desk.talk(&[("four", "which day")]).await;
    // A complete answer asked for once more has nothing to add.
    let request = desk.memory.request(&desk.tools.specs(), &ModelChoice::default());
    assert_eq!(desk.reply(request).await.len(), 1);
    // A request with nothing in it, and one with tool messages alone, are answered, too.
    assert_eq!(desk.reply(ChatRequest::default()).await.len(), 1);
    let stray = Message::Tool { tool_call_id: "x".into(), content: "{}".into() };
    assert_eq!(desk.reply(ChatRequest { messages: vec![stray], ..ChatRequest::default() }).await.len(), 1);
}

#[tokio::test]
async fn what_is_expected_next_is_known_to_turn_taking() {
    let mut desk = Desk::new();
    for (text, expected) in [
        ("hello", Expectation::Free),
        ("book a table", Expectation::Number),
        ("four", Expectation::Date),
        ("friday", Expectation::Time),
        ("seven", Expectation::Name),
        ("Maria", Expectation::YesNo),
        ("yes", Expectation::Free),
    ] {
        desk.says(text).await;
        assert_eq!(desk.state().expectation, expected, "after {text:?}");
    }
    let slots = desk.state().slots;
    assert_eq!(slots["time"].value, "19:00");
}

#[tokio::test]
async fn an_answer_comes_word_by_word_and_can_be_dropped() {
    let mut desk = Desk::new();
    desk.memory.user_said("when do you open");
    let request = desk.memory.request(&[], &ModelChoice::default());
    let events = desk.reply(request.clone()).await;
    assert!(events.len() > 15);
    assert_eq!(events[0], LlmEvent::Text("We ".into()));
    let mut stream = desk.engine.reply(request);
    stream.next().await;
    drop(stream);
}

#[tokio::test]
async fn a_long_call_is_replayed_quickly_and_to_its_end() {
    let mut desk = Desk::new();
    for _ in 0..60 {
        desk.talk(&[("do you have parking", "free parking"), ("mumble", "Sorry")]).await;
    }
    let started = std::time::Instant::now();
    desk.talk(&[("a table for four on Friday at seven my name is Maria", "is that right?")]).await;
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
}

/// Knows about the wallpaper, and is down when it is asked about the weather.
struct Documents;

impl Knowledge for Documents {
    fn look_up(&self, ask: Lookup) -> BoxFuture<'static, Result<Vec<Passage>, KnowledgeError>> {
        if ask.query.contains("weather") {
            return futures::future::ready(Err(KnowledgeError::Store("down".into()))).boxed();
        }
        let score = if ask.query.contains("wallpaper") { 0.9 } else { 0.1 };
        let text = "We have a terrace. The wallpaper is from Paris.".to_owned();
        let passage =
            Passage { document: Default::default(), title: "a.md".into(), place: "Walls".into(), text, score };
        futures::future::ready(Ok(vec![passage])).boxed()
    }
}

#[tokio::test]
async fn what_no_rule_knows_is_answered_from_the_documents_and_the_open_question_is_put_again() {
    let mut registry = ToolRegistry::with_call_tools();
    registry.add(Arc::new(SearchKnowledge { knowledge: Arc::new(Documents), language: "en".into() }));
    let mut desk = Desk::new();
    let tools = ["remember", "transfer_call", "end_call", search_knowledge::NAME];
    desk.tools = ToolBox::new(tools, &registry).unwrap();
    desk.talk(&[
        ("Hello, I would like to book a table", "For how many people?"),
        ("tell me about the wallpaper", "The wallpaper is from Paris. For how many people?"),
        ("for four people", "A table for four. For which day?"),
    ])
    .await;
    assert!(!desk.says("do you sell unicorns").await.contains("wallpaper"), "nothing is said that was not asked");
    assert!(!desk.says("what about the weather").await.is_empty(), "documents that are down cost no turn");
    desk.talk(&[("On Friday", "At what time?")]).await;
}
