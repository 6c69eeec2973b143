//! The hotel's workflow in text, in English and in Ukrainian: slots by voice and by keypad, a branch, tools, a message, a
//! person, a model's node with and without its model, as a call uses them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use offhook::agent::builtin::Builtin;
use offhook::agent::memory::Memory;
use offhook::agent::profile::ModelChoice;
use offhook::agent::tools::{CallEffect, Tool, ToolBox, ToolContext, ToolError, ToolOutcome, ToolRegistry, steps};
use offhook::agent::walk::Progress;
use offhook::agent::workflow::{Expectation, Workflow};
use offhook::speech::llm::{
    ChatRequest, Finish, LanguageModel, LlmError, LlmEvent, Message, ReplyStream, ToolCall, ToolSpec,
};
use offhook::telephony::{CallId, PhoneNumber};
use serde_json::{Value, json};

const ENGLISH: &str = include_str!("../workflows/hotel-booking.toml");
const UKRAINIAN: &str = include_str!("../workflows/hotel-booking.uk.toml");

/// What a stub answers to its arguments.
type Answers = Box<dyn Fn(&Value) -> Result<Value, &'static str> + Send + Sync>;

/// A tool that answers as told and keeps what it was asked.
struct Stub {
    name: &'static str,
    side_effect: bool,
    answer: Answers,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Tool for Stub {
    fn spec(&self) -> ToolSpec {
        ToolSpec { name: self.name.into(), description: self.name.into(), parameters: json!({ "type": "object" }) }
    }

    fn side_effect(&self) -> bool {
        self.side_effect
    }

    fn call(&self, args: Value, _cx: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
        let answer = (self.answer)(&args);
        self.asked.lock().unwrap().push(args);
        async move {
            let content = answer.map_err(|why| ToolError::Failed(why.into()))?.to_string();
            Ok(ToolOutcome { content, effect: None })
        }
        .boxed()
    }
}

/// One document, about breakfast.
fn look_up(args: &Value) -> Result<Value, &'static str> {
    let query = args["query"].as_str().unwrap_or_default();
    let passages = match query.contains("breakfast") || query.contains("сніданок") {
        true => json!([{ "title": "house", "score": 0.9, "text": "Breakfast is from seven to ten." }]),
        false => json!([]),
    };
    Ok(json!({ "passages": passages }))
}

/// A model that does the next of its steps, and keeps what it was told.
struct Model {
    steps: Mutex<Vec<Result<LlmEvent, LlmError>>>,
    asked: Mutex<Vec<ChatRequest>>,
}

impl LanguageModel for Model {
    fn name(&self) -> &'static str {
        "openai"
    }

    fn reply(&self, request: ChatRequest) -> ReplyStream {
        self.asked.lock().unwrap().push(request);
        let (stream, events, _cancel) = ReplyStream::new();
        let mut steps = self.steps.lock().unwrap();
        let step = if steps.is_empty() { Ok(LlmEvent::Text("…".into())) } else { steps.remove(0) };
        let fails = step.is_err();
        events.try_send(step).expect("the stream takes one step");
        if !fails {
            events.try_send(Ok(LlmEvent::Done { finish: Finish::Stop })).expect("the stream takes two");
        }
        stream
    }
}

fn said(text: &str) -> Result<LlmEvent, LlmError> {
    Ok(LlmEvent::Text(text.into()))
}

fn calls(name: &str, arguments: Value) -> Result<LlmEvent, LlmError> {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let id = format!("model_{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    Ok(LlmEvent::ToolCall(ToolCall { id, name: name.into(), arguments: arguments.to_string() }))
}

fn down() -> Result<LlmEvent, LlmError> {
    Err(LlmError::Engine { engine: "openai", status: Some(503), detail: "down".into() })
}

struct Guest {
    engine: Builtin,
    model: Arc<Model>,
    tools: ToolBox,
    memory: Memory,
    facts: BTreeMap<String, Value>,
    handover: Option<String>,
    ended: bool,
    prices: Arc<Mutex<Vec<Value>>>,
    texts: Arc<Mutex<Vec<Value>>>,
    documents: Arc<Mutex<Vec<Value>>>,
    /// The tools that the engine is offered, where they are not all.
    offered: Option<Vec<String>>,
    answer: String,
}

impl Guest {
    fn new(workflow: &str) -> Self {
        Self::with(workflow, Vec::new(), Ok(json!({ "total": 240 })))
    }

    fn with(workflow: &str, steps: Vec<Result<LlmEvent, LlmError>>, price: Result<Value, &'static str>) -> Self {
        let workflow = Arc::new(Workflow::parse(workflow).unwrap_or_else(|error| panic!("{error}")));
        let model = Arc::new(Model { steps: Mutex::new(steps), asked: Mutex::default() });
        let facts = json!({ "company": "Oak Garden", "caller": { "number": "+15550002222" }, "now": { "hour": 10 } });
        let engine = Builtin::new(workflow).with_facts(facts).with_model(model.clone());
        let mut registry = ToolRegistry::with_call_tools();
        let (prices, texts, documents) =
            <(Arc<Mutex<Vec<Value>>>, Arc<Mutex<Vec<Value>>>, Arc<Mutex<Vec<Value>>>)>::default();
        let mut add = |name, side_effect, asked: &Arc<Mutex<Vec<Value>>>, answer| {
            registry.add(Arc::new(Stub { name, side_effect, answer, asked: asked.clone() }));
        };
        add("room_price", false, &prices, Box::new(move |_: &Value| price.clone()) as Answers);
        add("send_sms", true, &texts, Box::new(|_: &Value| Ok(json!({ "ok": true }))));
        add("search_knowledge", false, &documents, Box::new(look_up));
        engine.tools().into_iter().for_each(|tool| registry.add(tool));
        let names: Vec<String> = registry.names().map(str::to_owned).collect();
        let tools = ToolBox::new(names.iter().map(String::as_str), &registry).unwrap();
        let mut memory = Memory::new("You are a receptionist.");
        memory.agent_said(&engine.greeting());
        Self {
            engine,
            model,
            tools,
            memory,
            facts: BTreeMap::new(),
            handover: None,
            ended: false,
            prices,
            texts,
            documents,
            offered: None,
            answer: String::new(),
        }
    }

    async fn says(&mut self, text: &str) -> &str {
        self.memory.user_said(text);
        self.answer.clear();
        for _ in 0..8 {
            let mut specs = self.tools.specs();
            specs.retain(|spec| self.offered.as_ref().is_none_or(|names| names.contains(&spec.name)));
            let request = self.memory.request(&specs, &ModelChoice::default());
            let mut stream = self.engine.reply(request);
            let (mut said, mut calls) = (String::new(), Vec::new());
            while let Some(event) = stream.next().await {
                match event.expect("the workflow has a way on") {
                    LlmEvent::Text(text) => said.push_str(&text),
                    LlmEvent::ToolCall(call) => calls.push(call),
                    LlmEvent::Done { .. } => break,
                    LlmEvent::Usage { .. } => {}
                }
            }
            self.memory.agent_said(&said);
            self.answer = format!("{} {}", self.answer, said.trim()).trim().to_owned();
            if calls.is_empty() {
                return &self.answer;
            }
            let mut results = Vec::new();
            for call in &calls {
                let cx = ToolContext::new(CallId::new(), PhoneNumber::default(), PhoneNumber::default());
                let result = self.tools.run(call, cx, Duration::from_secs(1)).await;
                match result.effect.clone() {
                    Some(CallEffect::Remember { key, value }) => drop(self.facts.insert(key, value)),
                    Some(CallEffect::Handover { to }) => self.handover = Some(to),
                    Some(CallEffect::EndCall { .. }) => self.ended = true,
                    Some(CallEffect::PressKeys { .. }) => {}
                    None => {}
                }
                results.push(result);
            }
            self.memory.tool_round(&calls, &results);
        }
        panic!("{text:?}: the tools never end");
    }

    /// The guest says each line and the answer holds what stands beside it.
    async fn talk(&mut self, lines: &[(&str, &str)]) {
        for (text, expected) in lines {
            let answer = self.says(text).await.to_owned();
            let at = self.state().node;
            assert!(answer.contains(expected), "{text:?}\n  answered {answer:?}\n  expected {expected:?}\n  at {at:?}");
        }
    }

    fn state(&self) -> Progress {
        self.engine.state(&self.memory.all())
    }
}

fn booking(arrival: &str, nights: &str, guests: &str, name: &str, phone: &str, total: &str) -> Value {
    json!({ "arrival": arrival, "nights": nights, "guests": guests, "name": name, "phone": phone, "total": total })
}

#[tokio::test]
async fn a_room_is_booked_in_english_with_the_number_of_nights_and_the_phone_by_keypad() {
    let mut guest = Guest::new(ENGLISH);
    assert_eq!(
        guest.engine.greeting(),
        "Hello, Oak Garden. This call may be recorded. Would you like to book a room, or do you have a question?"
    );
    guest
        .talk(&[
            ("I'd like to book a room on Friday", "How many nights"),
            ("2", "For how many people?"),
            ("for three people", "two nights from Friday for three comes to 240 euros. Shall I book it?"),
        ])
        .await;
    assert_eq!(guest.state().expectation, Expectation::YesNo);
    assert_eq!(*guest.prices.lock().unwrap(), [json!({ "arrival": "friday", "nights": "2", "guests": "3" })]);
    guest.talk(&[("Yes, please do", "What name"), ("My name is Maria Lopez", "Which number")]).await;
    assert_eq!(guest.state().expectation, Expectation::Digits);
    assert_eq!(guest.state().manners.wait_factor, 1.5);
    // By keypad, and misread: "no" asks again.
    guest.talk(&[("0671234567", "is that right?"), ("no", "Which number"), ("0671234568", "is that right?")]).await;
    assert_eq!(guest.state().expectation, Expectation::YesNo);
    guest.talk(&[("yes", "Your room is booked from Friday. I have sent you a message with the details.")]).await;
    assert_eq!(guest.facts["booking"], booking("friday", "2", "3", "Maria Lopez", "0671234568", "240"));
    let texts = guest.texts.lock().unwrap().clone();
    assert_eq!(texts.len(), 1);
    assert_eq!(texts[0]["to"], "0671234568");
    assert!(texts[0]["text"].as_str().unwrap().starts_with("Oak Garden: room for 3 from friday"));
    guest.talk(&[("No, that's all", "Goodbye")]).await;
    assert!(guest.ended && guest.handover.is_none());
    let slots = guest.state().slots;
    assert_eq!(slots["total"].value, "240");
}

#[tokio::test]
async fn a_room_is_booked_in_ukrainian() {
    let mut guest = Guest::new(UKRAINIAN);
    assert!(guest.engine.greeting().starts_with("Добрий день, Oak Garden. Розмова може записуватися."));
    guest
        .talk(&[
            ("Хочу забронювати номер на суботу", "Скільки ночей"),
            ("дві ночі", "На скількох людей?"),
            ("на двох людей", "Разом 240 євро. Бронюю?"),
            ("Так", "Як вас записати?"),
            ("Мене звати Олена", "За яким номером"),
            ("нуль шістдесят сім сто двадцять три сорок п'ять шістдесят сім", "правильно?"),
            ("так, правильно", "Дякую, Олена"),
            ("Ні, дякую", "До побачення"),
        ])
        .await;
    assert_eq!(guest.facts["booking"], booking("saturday", "2", "2", "Олена", "0671234567", "240"));
    assert_eq!(guest.texts.lock().unwrap().len(), 1);
    assert!(guest.ended);
}

#[tokio::test]
async fn a_group_goes_to_a_person_who_is_told_why() {
    let mut guest = Guest::new(ENGLISH);
    guest
        .talk(&[
            ("A room from Monday for ten people, please", "How many nights"),
            ("three nights", "For groups of more than six, my colleagues make an offer. I will put you through"),
        ])
        .await;
    assert_eq!(guest.handover.as_deref(), Some("A room from Monday: three nights"));
    assert!(guest.prices.lock().unwrap().is_empty(), "no price is asked for");
    let mut guest = Guest::new(UKRAINIAN);
    guest.talk(&[("З'єднайте мене з оператором", "З'єдную вас із колегою")]).await;
    assert_eq!(guest.handover.as_deref(), Some("Запитання: З'єднайте мене з оператором"));
}

#[tokio::test]
async fn a_price_that_is_not_to_be_had_does_not_stop_the_booking_and_is_not_made_up() {
    let mut guest = Guest::with(ENGLISH, Vec::new(), Err("the price service is down"));
    guest
        .talk(&[
            ("Book a room tomorrow", "nights"),
            ("one night", "how many people"),
            ("two of us", "One moment, I am looking that up. I cannot see the price just now. What name"),
        ])
        .await;
    assert!(!guest.answer.contains("euros"));
    assert_eq!(guest.state().node, "who");
    // Without the tool at all it is the same way, and turn-taking knows it.
    let mut guest = Guest::new(ENGLISH);
    let names: Vec<String> =
        guest.tools.specs().into_iter().map(|spec| spec.name).filter(|name| name != "room_price").collect();
    guest.offered = Some(names);
    guest
        .talk(&[("Book a room tomorrow", "nights"), ("one night", "how many people"), ("two of us", "What name")])
        .await;
    assert_eq!((guest.state().node.as_str(), guest.state().expectation), ("who", Expectation::Name));
}

#[tokio::test]
async fn a_question_is_answered_from_the_documents_and_what_they_do_not_hold_by_the_model() {
    let steps = vec![
        said("We have two parking places for guests."),
        said("Dogs stay for free."),
        calls(steps::GO_TO, json!({ "to": "book" })),
    ];
    let mut guest = Guest::with(ENGLISH, steps, Ok(json!({ "total": 80 })));
    guest.talk(&[("When is breakfast?", "Breakfast is from seven to ten.")]).await;
    assert_eq!(guest.documents.lock().unwrap().len(), 1);
    assert!(guest.model.asked.lock().unwrap().is_empty(), "the documents hold it");
    guest.talk(&[("Is there a swimming pool or parking outside?", "two parking places")]).await;
    assert_eq!(guest.state().node, "talk");
    {
        let asked = guest.model.asked.lock().unwrap();
        let Message::System { content } = &asked[0].messages[0] else { panic!("the prompt comes first") };
        assert!(
            content.contains("You are a receptionist.") && content.contains("question about Oak Garden"),
            "{content}"
        );
        assert!(content.contains("- \"person\": the caller wants a person"), "{content}");
        let offered: Vec<&str> = asked[0].tools.iter().map(|tool| tool.name.as_str()).collect();
        assert_eq!(offered, ["end_call", "remember", "search_knowledge", "transfer_call", "go_to"]);
    }
    guest.talk(&[("And a dog?", "free"), ("Then I'll take it on Friday", "On which day will you arrive?")]).await;
    assert_eq!(guest.state().node, "stay");
    guest.talk(&[("Friday", "nights")]).await;
    assert_eq!(guest.model.asked.lock().unwrap().len(), 3, "the model has no part in the booking");
}

#[tokio::test]
async fn a_model_that_is_down_leaves_the_conversation_to_the_workflow() {
    let mut guest = Guest::with(ENGLISH, vec![down()], Ok(json!({ "total": 80 })));
    guest
        .talk(&[("Is there a swimming pool in the house or near it?", "I cannot answer that. Is there anything else?")])
        .await;
    assert_eq!(guest.state().node, "anything");
    guest.talk(&[("Book a room then", "On which day")]).await;
}

#[tokio::test]
async fn a_tool_that_the_node_does_not_offer_is_not_run() {
    let steps = vec![calls("send_sms", json!({ "to": "+1", "text": "spam" })), said("I cannot send messages here.")];
    let mut guest = Guest::with(ENGLISH, steps, Ok(json!({ "total": 80 })));
    guest.talk(&[("Can you send an SMS to my boss about the swimming pool?", "I cannot send messages here.")]).await;
    assert!(guest.texts.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_model_gets_so_many_turns_and_no_more() {
    let mut guest = Guest::with(ENGLISH, Vec::new(), Ok(json!({ "total": 80 })));
    for _ in 0..6 {
        guest.says("Is there a swimming pool near the old tower?").await;
        assert_eq!(guest.state().node, "talk");
    }
    guest.talk(&[("And a sauna?", "I will put you through to a colleague.")]).await;
}

const ORDER: &str = r#"{
  "version": 1, "name": "order", "language": "en", "start": "order",
  "fallback": { "say": "Sorry?", "goto": "bye" },
  "slots": {
    "dish": { "type": "choice", "choice": [{ "value": "pizza", "hear": ["pizza"] }, { "value": "pasta", "hear": ["pasta"] }] },
    "amount": { "type": "number", "min": 1, "max": 9 },
    "mail": { "type": "email" }
  },
  "node": [
    { "id": "order", "kind": "llm", "prompt": "Take the order.", "tools": [], "collect": ["dish", "amount", "mail"],
      "goto": "check", "give_up": "bye", "failed": { "say": "Our order line is down.", "goto": "bye" } },
    { "id": "check", "kind": "branch", "if": [{ "when": "amount.value >= 5 and dish.value == 'pizza'", "goto": "many" }], "goto": "few" },
    { "id": "many", "kind": "end", "say": "That is a lot of pizza: {amount}, for {mail.value}." },
    { "id": "few", "kind": "end", "say": "Thank you for the {dish}." },
    { "id": "bye", "kind": "end", "say": "Goodbye." }
  ]
}"#;

#[tokio::test]
async fn a_model_notes_answers_by_type_and_goes_on_when_all_are_there() {
    let steps = vec![
        calls(steps::NOTE, json!({ "dish": "pizza", "amount": "lots" })),
        said("How many is lots?"),
        calls(steps::NOTE, json!({ "dish": "pizza", "amount": 6 })),
        said("And your e-mail?"),
        calls(steps::NOTE, json!({ "mail": "Bob@example.com" })),
    ];
    let mut guest = Guest::with(ORDER, steps, Ok(json!({})));
    assert_eq!(guest.engine.greeting(), "");
    guest.talk(&[("Lots of pizza please", "How many is lots?")]).await;
    assert!(guest.state().slots.is_empty(), "a note with a wrong value notes nothing");
    guest.talk(&[("six", "And your e-mail?")]).await;
    assert_eq!(guest.state().slots["amount"].value, "6");
    guest.talk(&[("bob at example dot com", "That is a lot of pizza: six, for bob@example.com.")]).await;
    assert!(guest.ended);
    let told = guest.model.asked.lock().unwrap().iter().last().unwrap().clone();
    let Message::System { content } = &told.messages[0] else { panic!("the prompt comes first") };
    assert!(content.contains("- dish: pizza") && content.contains("note_answers: mail."), "{content}");
}

#[tokio::test]
async fn both_languages_have_the_same_graph() {
    let (english, ukrainian) = (Workflow::parse(ENGLISH).unwrap(), Workflow::parse(UKRAINIAN).unwrap());
    let ids = |workflow: &Workflow| workflow.node_ids().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(ids(&english), ids(&ukrainian));
    assert!(ids(&english).len() >= 12);
    assert_eq!(english.tools(), ukrainian.tools());
}
