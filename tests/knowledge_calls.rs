//! Whole calls of an agent with documents and a slow embeddings endpoint, through the whole program: what the caller's words
//! lead to is looked up while the caller speaks, and asked for once.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::routing::post;
use axum::{Json, Router};
use bytes::Bytes;
use offhook::call::handle::CallEvent;
use offhook::load::fixture::Ender;
use offhook::media::frame::SampleRate;
use offhook::mock::twilio::MockTwilioConfig;
use offhook::speech::stt::{SttEvent, SttInput, SttRequest, SttSession, Take, Transcriber};
use offhook::store::knowledge::embeddings::KnowledgeConfig;
use offhook::store::knowledge::{Added, KnowledgeBases};
use offhook::telephony::Party;
use reqwest::Method;
use serde_json::{Value, json};
use stores::Base;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::common::{Cast, quick};
use crate::whole::{Company, OnTwilio, Whole, account, caller, id};

#[path = "common/stores.rs"]
mod stores;

mod common;

#[path = "common/whole.rs"]
mod whole;

on_every_store! {
    what_a_caller_asks_is_looked_up_before_the_question_is_over
    without_partials_the_turn_waits_for_its_lookup
    an_agent_whose_nodes_name_other_bases_is_refused
}

/// What a question's vector takes.
const SLOW: Duration = Duration::from_millis(300);
/// What recognition takes for the last words, once it may.
const LAST_WORDS: Duration = Duration::from_millis(150);

const HEARD: &str = "when is breakfast served";
const SAID: &str = "When is breakfast served?";

const DESK: &str = r#"
version = 1
name = "desk"
[fallback]
say = "Sorry?"
goto = "desk"
[[node]]
id = "hello"
kind = "start"
say = "Hello."
goto = "desk"
[[node]]
id = "desk"
kind = "listen"
"#;

/// What happened, in order.
type Log = Arc<Mutex<Vec<String>>>;

fn note(log: &Log, what: impl Into<String>) {
    log.lock().expect("no panic in a test's log").push(what.into());
}

/// An embeddings endpoint that takes its time for questions. The watch says when one was answered.
async fn endpoint(log: Log) -> (String, watch::Receiver<bool>) {
    let (answered, seen) = watch::channel(false);
    let answered = Arc::new(answered);
    let embed = move |Json(request): Json<Value>| {
        let (log, answered) = (log.clone(), answered.clone());
        async move {
            let texts: Vec<String> = serde_json::from_value(request["input"].clone()).expect("a list of texts");
            // Passages come in the endpoint's batches, and before the call.
            if let [question] = &texts[..]
                && question.to_lowercase().starts_with("when")
            {
                note(&log, format!("vector of {question:?}"));
                sleep(SLOW).await;
                note(&log, "vector is there");
                answered.send_replace(true);
            }
            let vector = |text: &String| if text.contains("reakfast") { [1.0, 0.1] } else { [0.1, 1.0] };
            let data: Vec<Value> = texts
                .iter()
                .enumerate()
                .map(|(index, text)| json!({ "index": index, "embedding": vector(text) }))
                .collect();
            Json(json!({ "data": data }))
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/v1", listener.local_addr().expect("bound"));
    let router = Router::new().route("/v1/embeddings", post(embed));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, seen)
}

/// Hears the same words in every utterance: at times while they are said, and for certain only `after` something.
struct Ears {
    partials: bool,
    after: Option<watch::Receiver<bool>>,
    log: Log,
}

impl Transcriber for Ears {
    fn name(&self) -> &'static str {
        "ears"
    }

    fn rate(&self) -> SampleRate {
        SampleRate::HZ_8000
    }

    fn open(&self, _: SttRequest) -> SttSession {
        let (session, mut input, events, cancel) = SttSession::new();
        let (partials, after, log) = (self.partials, self.after.clone(), self.log.clone());
        tokio::spawn(cancel.run_until_cancelled_owned(async move {
            while let Some(input) = input.recv().await {
                let SttInput::Transcribe { utterance, take, kind } = input else { continue };
                let event = match kind {
                    Take::Partial if partials => {
                        SttEvent::Partial { utterance, take: Some(take), text: HEARD.to_owned() }
                    }
                    Take::Partial => SttEvent::Skipped { utterance, take },
                    Take::Speculative | Take::Final => {
                        if let Some(after) = &after {
                            let _ = after.clone().wait_for(|done| *done).await;
                        }
                        sleep(LAST_WORDS).await;
                        note(&log, "last words");
                        let text = SAID.to_owned();
                        SttEvent::Final { utterance, take, text, confidence: None, engine_time: LAST_WORDS }
                    }
                };
                if events.send(event).await.is_err() {
                    return;
                }
            }
        }));
        session
    }
}

/// One call: what happened, its record, and how its lookup counted.
async fn call(base: Base, partials: bool) -> (Vec<String>, Value, Vec<(&'static str, u64)>) {
    let log = Log::default();
    let (base_url, answered) = endpoint(log.clone()).await;
    let knowledge = KnowledgeConfig { base_url, lookup_ms: 5000, ..KnowledgeConfig::default() };
    let ears = Ears { partials, after: partials.then_some(answered), log: log.clone() };
    let cast = Cast { stt: Arc::new(ears), ..Cast::new(quick()) };
    let set = knowledge.clone();
    let whole = Whole::start(base, cast, |config| {
        config.knowledge = set;
        config.turn.partial_every_ms = 200;
    })
    .await;
    let company = whole.company("Acme", json!({})).await;
    let house = id(&company.post("/knowledge", json!({ "name": "House" })).await);
    let agent = json!({
        "name": "Desk", "language": "en", "workflow": DESK, "llm": { "engine": "builtin" }, "knowledge": ["House"],
    });
    let config = MockTwilioConfig { caller: Some(caller(Ender::Caller)), ..account() };
    let hotel = OnTwilio::of(company, config, agent).await;
    let bases = KnowledgeBases::open(whole.store.clone(), &knowledge).expect("an address");
    let text = "# Meals\n\nBreakfast is served from seven.\n\n# Garage\n\nThe garage is open all night.\n";
    let added = bases.add(hotel.company.id, house, "house.md", Bytes::from(text)).await.expect("the store is there");
    let Added::Taken(document) = added else { panic!("{added:?}") };
    bases.index(document.id).await.expect("it is indexed");
    note(&log, "the phone rings");
    let mut events = whole.app.calls.events();
    let seen = log.clone();
    let watching = tokio::spawn(async move {
        while let Ok(event) = events.recv().await {
            match event {
                CallEvent::Said { who: Party::Caller, .. } => note(&seen, "the turn is the agent's"),
                CallEvent::Ended { .. } => return,
                _ => {}
            }
        }
    });
    let record = hotel.rung().await;
    watching.await.expect("it only looks");
    let mut counted = Vec::new();
    for result in ["hit", "joined", "meaning", "miss"] {
        counted.push((result, whole.metric("offhook_knowledge_ahead_total", &[&format!("\"{result}\"")]).await));
    }
    counted.retain(|(_, count)| *count > 0);
    whole.stop().await;
    let log = std::mem::take(&mut *log.lock().expect("no panic in a test's log"));
    let call = log.iter().position(|what| what == "the phone rings").expect("it rang");
    (log[call + 1..].to_vec(), record, counted)
}

fn check_answer(record: &Value) {
    let said = Company::said(record);
    assert_eq!(said[1..], [format!("caller: {SAID}"), "agent: Breakfast is served from seven.".into()], "{record}");
    assert_eq!(record["transcript"]["tools"][0]["name"], "search_knowledge");
    assert_eq!(record["transcript"]["tools"][0]["arguments"], json!({ "query": SAID }));
}

async fn what_a_caller_asks_is_looked_up_before_the_question_is_over(base: Base) {
    let (log, record, counted) = call(base, true).await;
    check_answer(&record);
    // The vector was asked for once, on the words heard so far, and was there before the last ones.
    let asked = format!("vector of {HEARD:?}");
    assert_eq!(log[..3], [asked.as_str(), "vector is there", "last words"], "{log:?}");
    assert!(!log[3..].iter().any(|what| what.starts_with("vector")), "{log:?}");
    assert!(log.contains(&"the turn is the agent's".to_owned()), "{log:?}");
    // Each preparation of the reply found it ready.
    assert!(matches!(counted[..], [("hit", 1..)]), "{counted:?}");
}

async fn without_partials_the_turn_waits_for_its_lookup(base: Base) {
    let (log, record, counted) = call(base, false).await;
    check_answer(&record);
    assert_eq!(log[..2], ["last words".to_owned(), format!("vector of {SAID:?}")], "{log:?}");
    assert!(matches!(counted[..], [("miss", 1..)]), "{counted:?}");
}

async fn an_agent_whose_nodes_name_other_bases_is_refused(base: Base) {
    let whole = Whole::start(base, Cast::new(quick()), |_| {}).await;
    let acme = whole.company("Acme", json!({})).await;
    for name in ["House", "Rules"] {
        acme.post("/knowledge", json!({ "name": name })).await;
    }
    let workflow = format!(
        "{DESK}when = [{{ hear = [\"about *\"], goto = \"rules\" }}]\n[[node]]\nid = \"rules\"\nkind = \"knowledge\"\n\
         knowledge = [\"Rules\"]\nfailed = {{ say = \"No.\" }}\ngoto = \"desk\"\n"
    );
    let agent = |knowledge: &str| json!({ "name": "Desk", "workflow": workflow, "llm": { "engine": "builtin" }, "knowledge": [knowledge] });
    let (status, problem) = acme.ask(Method::POST, "/agents", agent("House")).await;
    assert_eq!(status, 422, "{problem}");
    let told = problem.to_string();
    assert!(told.contains("rules") && told.contains("the agent has no knowledge base \\\"Rules\\\""), "{told}");
    acme.agent(agent("Rules")).await;
    whole.stop().await;
}
