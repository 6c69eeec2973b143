//! What comes after a call, on every database: its analysis, and what its company is told of it, by real HTTP to a server
//! of the company's.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use common::{Cast, PATIENCE, quick};
use jiff::Timestamp;
use offhook::agent::outcome;
use offhook::agent::prompt::CallFacts;
use offhook::call::deliveries::{Deliveries, DeliverySettings};
use offhook::call::registry::Refused;
use offhook::load::fixture::Ender;
use offhook::mock::twilio::MockTwilioConfig;
use offhook::providers;
use offhook::providers::credentials::Credentials;
use offhook::providers::provider::CallOutcome;
use offhook::speech::llm::{ChatRequest, Finish, LanguageModel, LlmEvent, ReplyStream};
use offhook::speech::scripted::{Answer, ScriptedModel};
use offhook::store::calls::{CallRecord, ProviderNews};
use offhook::store::companies::CompanySettings;
use offhook::store::endpoints::NewEndpoint;
use offhook::store::integrations::NewIntegration;
use offhook::store::messages::NewMessage;
use offhook::store::outbox::{Delivery, DeliveryState, EventKind, SWITCHED_OFF};
use offhook::store::setup::Setup;
use offhook::store::spend::Used;
use offhook::store::{Action, ApplyOptions, At, Part, Store};
use offhook::telephony::{CallEnd, CallId, Direction, EndReason, Party, PhoneNumber};
use receiver::{Post, Reaction, Receiver, signature, webhook};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use stores::Base;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use whole::{CALLER, Company, LINE, OnTwilio, Whole, account, caller, front_desk, text, until};

#[path = "common/stores.rs"]
mod stores;

mod common;

#[path = "common/receiver.rs"]
mod receiver;

#[path = "common/whole.rs"]
mod whole;

on_every_store! {
    a_call_is_told_and_then_its_analysis_by_the_model
    a_model_that_answers_nonsense_twice_leaves_it_to_the_rules_and_an_agent_can_go_without
    every_way_of_ending_a_call_leaves_it_to_be_told_once
    a_failing_endpoint_is_tried_again_and_its_dead_letter_replayed
    the_events_of_a_call_come_in_their_order
    what_a_killed_process_had_taken_is_sent_by_the_next
    two_servers_on_one_store_send_everything_once
    a_slow_endpoint_holds_up_nobody_else
    no_redirect_is_followed_and_no_private_address_posted_to
    an_endpoint_that_is_gone_is_switched_off
    while_a_secret_changes_both_sign
    a_message_that_came_in_is_told
    an_agent_remembers_the_number_on_the_line_and_no_other
    a_call_over_its_budget_ends_politely_and_a_company_over_its_day_excuses_itself
    what_two_servers_count_of_a_day_is_added
    webhooks_are_set_up_by_file
    webhooks_are_managed_by_their_owner_and_seen_by_no_other_company
}

fn brisk() -> DeliverySettings {
    DeliverySettings {
        allow_private: vec!["127.0.0.1".into()],
        limit: Duration::from_millis(300),
        waits: vec![Duration::from_millis(30); 2],
        poll: Duration::from_millis(10),
        lease: Duration::from_secs(60),
    }
}

/// Deliveries that run until they are dropped or stopped.
struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(store: &Store, settings: DeliverySettings) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(Deliveries::new(store.clone(), settings).unwrap().run(stop.clone()));
        Self { stop, task }
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// A company with an integration and an agent.
struct Place {
    company: Uuid,
    integration: Uuid,
    agent: Uuid,
}

async fn place(store: &Store, name: &str) -> Place {
    let company = store.add_company(name, &CompanySettings::default()).await.unwrap().id;
    let values = [("account_sid", "AC00000000000000000000000000000001"), ("auth_token", "very-secret")];
    let credentials = Credentials::from_stored(values.map(|(name, value)| (name.into(), value.into())).into());
    let kind = providers::kind("twilio").unwrap();
    let new = NewIntegration { company, name: "Main", kind, credentials: &credentials };
    let integration = store.add_integration(new).await.unwrap();
    let agent = store.add_agent(company, &toml::from_str("name = \"Front desk\"").unwrap()).await.unwrap();
    Place { company, integration, agent }
}

async fn endpoint(store: &Store, company: Uuid, name: &str, url: &str) -> (Uuid, SecretString) {
    let new = NewEndpoint { company, name, url, events: &EventKind::ALL };
    store.add_endpoint(new).await.unwrap().unwrap()
}

fn now() -> Timestamp {
    At::now().0
}

fn record(place: &Place) -> CallRecord {
    stores::record(place.company, place.integration, place.agent)
}

/// A call that is over, told.
async fn told(store: &Store, place: &Place) -> CallId {
    let mut call = record(place);
    call.close(now(), CallEnd::new(Party::Caller, EndReason::HungUp));
    store.put_call(&call).await.unwrap();
    store.tell_calls_over(&[(place.company, call.id)]).await.unwrap();
    call.id
}

async fn deliveries(store: &Store, company: Uuid, endpoint: Uuid) -> Vec<Delivery> {
    store.deliveries(company, endpoint, None, Part { after: None, limit: 200 }).await.unwrap().items
}

async fn settled(store: &Store, company: Uuid, endpoint: Uuid, state: DeliveryState) -> Vec<Delivery> {
    until(&format!("all is {state:?}"), async || {
        let all = deliveries(store, company, endpoint).await;
        all.iter().all(|one| one.state == state).then_some(all)
    })
    .await
}

const JUDGED: &str = r#"{ "summary": "Asked for the opening hours and was told.", "outcome": "resolved", "detail": "hours",
    "slots": { "topic": "opening hours" }, "sentiment": "positive",
    "follow_ups": [{ "what": "Send the price list", "when": "today" }] }"#;

/// The program with a model that is not called `scripted`; the caller says one thing and hangs up.
async fn with_model(base: Base, steps: Vec<Answer>) -> (Whole, Arc<ScriptedModel>) {
    let model = Arc::new(ScriptedModel::with_steps(quick(), steps));
    let mut engines = Cast::new(quick()).engines();
    engines.llm.insert("openai".into(), model.clone());
    let whole = Whole::with_engines(base, engines, |config| {
        config.turn.max_speculations = 0;
        config.webhooks.allow_private = vec!["127.0.0.1".into()];
    })
    .await;
    (whole, model)
}

async fn a_call_is_told_and_then_its_analysis_by_the_model(base: Base) {
    let receiver = Receiver::start().await;
    let remember = Answer::Tool { name: "remember".into(), arguments: r#"{"key":"name","value":"Anna"}"#.into() };
    let steps = vec![remember, Answer::Text("At nine.".into()), Answer::Text(JUDGED.into())];
    let (whole, model) = with_model(base, steps).await;
    let mut agent = front_desk();
    agent["llm"] = json!({ "engine": "openai" });
    let config = MockTwilioConfig { caller: Some(caller(Ender::Caller)), ..account() };
    let acme = OnTwilio::set_up(&whole, config, json!({}), agent).await;
    let (_, secret) = webhook(&acme.company, &receiver.url("/crm?token=7")).await;
    let record = acme.rung().await;

    let posts = receiver.got("/crm", 2).await;
    assert_eq!([posts[0].kind(), posts[1].kind()], ["call.ended", "call.analysed"]);
    for post in &posts {
        assert_eq!(post.signature, signature(&secret, post), "by a computation of our own");
        assert_eq!(post.json()["id"], post.id);
        assert_eq!(post.json()["data"]["call"]["id"], record["id"]);
    }
    let (ended, analysed) = (posts[0].json(), posts[1].json());
    assert_eq!(ended["data"]["call"]["from"], whole::CALLER);
    assert_eq!((&ended["data"]["call"]["outcome"], &ended["data"]["call"]["line"]), (&json!("answered"), &json!(LINE)));
    let analysis = &analysed["data"]["analysis"];
    assert_eq!((&analysis["outcome"], &analysis["by"]), (&json!("resolved"), &json!("model")), "{analysis}");
    assert_eq!(analysis["slots"], json!({ "topic": "opening hours", "name": "Anna" }), "what was noted is there too");
    assert_eq!(analysis["follow_ups"][0], json!({ "what": "Send the price list", "when": "today" }));
    let shown = acme.company.get(&format!("/calls/{}", text(&record["id"]))).await;
    assert_eq!(&shown["analysis"], analysis);
    // What the model was asked holds what was said, and asks for the agent's language.
    let asked = model.requests().pop().unwrap();
    let asked = format!("{:?}", asked.messages);
    assert!(asked.contains("Agent: At nine.") && asked.contains("summary in en"), "{asked}");
    assert!(whole.metric("offhook_call_analysis_total", &["by=\"model\"", "outcome=\"resolved\""]).await > 0);
    whole.stop().await;
}

async fn a_model_that_answers_nonsense_twice_leaves_it_to_the_rules_and_an_agent_can_go_without(base: Base) {
    let receiver = Receiver::start().await;
    let said = |text: &str| Answer::Text(text.into());
    let steps = vec![said("At nine."), said("No."), said("{\"summary\": 5}"), said("At ten.")];
    let (whole, model) = with_model(base, steps).await;
    let mut agent = front_desk();
    agent["llm"] = json!({ "engine": "openai" });
    let config = MockTwilioConfig { caller: Some(caller(Ender::Caller)), ..account() };
    let acme = OnTwilio::set_up(&whole, config, json!({}), agent.clone()).await;
    webhook(&acme.company, &receiver.url("/crm")).await;
    acme.rung().await;
    let posts = receiver.got("/crm", 2).await;
    let analysis = &posts[1].json()["data"]["analysis"];
    assert_eq!((&analysis["by"], &analysis["sentiment"]), (&json!("rule"), &json!("unknown")), "{analysis}");
    assert!(text(&analysis["summary"]).starts_with("Front desk talked with the caller for"), "{analysis}");
    let requests = model.requests();
    assert_eq!(requests.len(), 3, "one for the call, two for its analysis");
    assert!(format!("{:?}", requests[2].messages).contains("cannot be used"), "the model is told what was wrong");

    agent["analysis"] = json!(false);
    acme.company.put(&format!("/agents/{}", acme.agent), agent).await;
    until("the server knows", async || {
        let line = whole.directory.load().line(acme.integration, LINE).cloned()?;
        (line.agent.analysis == Some(false)).then_some(())
    })
    .await;
    let second = acme.rung().await;
    let third = receiver.got("/crm", 3).await.remove(2);
    assert_eq!((third.kind(), &third.json()["data"]["call"]["id"]), ("call.ended".into(), &second["id"]));
    let call: Uuid = text(&second["id"]).parse().unwrap();
    until("the call is worked off", async || whole.store.due_analyses(1).await.unwrap().is_empty().then_some(())).await;
    assert_eq!(whole.store.analysis(acme.company.id, call.into()).await.unwrap(), None);
    assert_eq!(model.requests().len(), 4, "nothing was asked of the model");
    whole.stop().await;
}

async fn every_way_of_ending_a_call_leaves_it_to_be_told_once(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let open = record(&acme);
    store.put_call(&open).await.unwrap();
    assert_eq!(store.untold_calls(10).await.unwrap(), []);
    // Written closed, closed by a later write, by its provider, by silence.
    let [mut at_once, mut later, provider, silent] = [0; 4].map(|_| record(&acme));
    let end = CallEnd::new(Party::Caller, EndReason::HungUp);
    at_once.close(now(), end);
    store.put_call(&at_once).await.unwrap();
    store.put_call(&later).await.unwrap();
    later.close(now(), end);
    store.put_call(&later).await.unwrap();
    store.put_call(&later).await.unwrap();
    for call in [&provider, &silent] {
        store.put_call(call).await.unwrap();
    }
    let news = ProviderNews { ended: Some((At::now(), CallOutcome::Busy)), ..ProviderNews::default() };
    store.note_provider(acme.company, provider.id, &news).await.unwrap();
    let mut expected = vec![at_once.id, later.id, provider.id];
    expected.sort_unstable();
    let untold =
        async || -> Vec<CallId> { store.untold_calls(10).await.unwrap().into_iter().map(|(_, call)| call).collect() };
    assert_eq!(untold().await, expected);
    store.close_silent(now() + jiff::SignedDuration::from_secs(1)).await.unwrap();
    expected.extend([open.id, silent.id]);
    expected.sort_unstable();
    assert_eq!(untold().await, expected);
    // Each is told once, though two ask at once; nobody listens, so nothing is written for nobody.
    let (id, _) = endpoint(&store, acme.company, "CRM", "https://crm.example.com/").await;
    let calls: Vec<(Uuid, CallId)> = expected.iter().map(|call| (acme.company, *call)).collect();
    let (one, two) = tokio::join!(store.tell_calls_over(&calls), store.tell_calls_over(&calls));
    assert_eq!(one.unwrap() + two.unwrap(), 5);
    assert_eq!(untold().await, []);
    assert_eq!(deliveries(&store, acme.company, id).await.len(), 5);
    assert_eq!(store.due_analyses(10).await.unwrap().len(), 5);
}

async fn a_failing_endpoint_is_tried_again_and_its_dead_letter_replayed(base: Base) {
    let (store, receiver) = (base.open().await, Receiver::start().await);
    let acme = place(&store, "Acme").await;
    let (id, secret) = endpoint(&store, acme.company, "CRM", &receiver.url("/crm")).await;
    receiver.reacts("/crm", [Reaction::Status(500), Reaction::Hangs, Reaction::Status(503)]);
    told(&store, &acme).await;
    let running = Running::start(&store, brisk());
    let dead = until("a dead letter", async || {
        let dead = deliveries(&store, acme.company, id).await.remove(0);
        (dead.state == DeliveryState::Dead).then_some(dead)
    })
    .await;
    assert_eq!((dead.attempts, dead.status, dead.answer.as_deref()), (3, Some(503), Some("so it is")));
    let posts = receiver.got("/crm", 3).await;
    assert!(posts.iter().all(|post| post.id == posts[0].id && post.body == posts[0].body), "the same, three times");
    assert!(posts.iter().all(|post| post.signature == signature(secret.expose_secret(), post)));
    let letters = until("the dead letter is in the audit", async || {
        let audit = store.audit_log(acme.company, Part::default()).await.unwrap().items;
        let letters = audit.iter().filter(|entry| entry.action == "webhook.dead_letter").count();
        (letters > 0).then_some(letters)
    });
    assert_eq!(letters.await, 1);

    // One, by its id; then all since a moment.
    assert!(store.replay(acme.company, id, dead.id).await.unwrap());
    let delivered = settled(&store, acme.company, id, DeliveryState::Delivered).await.remove(0);
    assert_eq!((delivered.attempts, delivered.status, delivered.error), (1, Some(200), None));
    assert_eq!(receiver.at("/crm")[3].id, posts[0].id, "the endpoint knows it again");
    receiver.reacts("/crm", [Reaction::Status(500); 6]);
    for _ in 0..2 {
        told(&store, &acme).await;
    }
    let since = At::of(now() - jiff::SignedDuration::from_mins(1));
    until("two dead letters", async || {
        let dead = store.deliveries(acme.company, id, Some(DeliveryState::Dead), Part::default()).await.unwrap();
        (dead.items.len() == 2).then_some(())
    })
    .await;
    assert_eq!(
        store.replay_since(acme.company, id, At::of(now() + jiff::SignedDuration::from_mins(1))).await.unwrap(),
        0
    );
    assert_eq!(store.replay_since(Uuid::now_v7(), id, since).await.unwrap(), 0, "another company's are not there");
    assert_eq!(store.replay_since(acme.company, id, since).await.unwrap(), 2);
    settled(&store, acme.company, id, DeliveryState::Delivered).await;
    running.end().await;
}

async fn the_events_of_a_call_come_in_their_order(base: Base) {
    let (store, receiver) = (base.open().await, Receiver::start().await);
    let acme = place(&store, "Acme").await;
    let (id, _) = endpoint(&store, acme.company, "CRM", &receiver.url("/crm")).await;
    receiver.reacts("/crm", [Reaction::Status(500)]);
    let call = told(&store, &acme).await;
    let analysis = outcome::read(JUDGED).unwrap();
    for _ in 0..2 {
        store.put_analysis(acme.company, call, &analysis).await.unwrap();
    }
    assert_eq!(store.analysis(acme.company, call).await.unwrap(), Some(analysis));
    assert_eq!(store.analysis(Uuid::now_v7(), call).await.unwrap(), None, "another company's is not there");
    let running = Running::start(&store, brisk());
    settled(&store, acme.company, id, DeliveryState::Delivered).await;
    let order: Vec<String> = receiver.at("/crm").iter().map(Post::kind).collect();
    assert_eq!(order, ["call.ended", "call.ended", "call.analysed"], "the second waits for the first");
    running.end().await;
}

async fn what_a_killed_process_had_taken_is_sent_by_the_next(base: Base) {
    let receiver = Receiver::start().await;
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let (id, _) = endpoint(&store, acme.company, "CRM", &receiver.url("/crm")).await;
    // Killed after it had taken the delivery and before it noted what came of it; and killed before it told of a call.
    let taken = told(&store, &acme).await;
    let due = store.due_deliveries(id, 10).await.unwrap();
    let parcel = store.claim_delivery(&due[0], Duration::from_millis(200)).await.unwrap().unwrap();
    assert!(store.claim_delivery(&due[0], Duration::ZERO).await.unwrap().is_none(), "taken once");
    let mut untold = record(&acme);
    untold.close(now(), CallEnd::new(Party::Caller, EndReason::HungUp));
    store.put_call(&untold).await.unwrap();
    store.close().await;

    let store = base.open().await;
    assert_eq!(store.untold_calls(10).await.unwrap(), [(acme.company, untold.id)]);
    store.tell_calls_over(&[(acme.company, untold.id)]).await.unwrap();
    let running = Running::start(&store, brisk());
    let all = settled(&store, acme.company, id, DeliveryState::Delivered).await;
    assert_eq!(all.len(), 2);
    let posts = receiver.at("/crm");
    let ids: Vec<&Value> = all.iter().map(|one| &one.body["data"]["call"]["id"]).collect();
    assert_eq!((posts.len(), ids), (2, vec![&json!(untold.id), &json!(taken)]));
    assert!(posts.iter().any(|post| post.id == parcel.event.to_string()), "under the id that it had");
    running.end().await;
}

async fn two_servers_on_one_store_send_everything_once(base: Base) {
    let (store, receiver) = (base.open().await, Receiver::start().await);
    let acme = place(&store, "Acme").await;
    let (id, _) = endpoint(&store, acme.company, "CRM", &receiver.url("/crm")).await;
    for _ in 0..30 {
        told(&store, &acme).await;
    }
    let other = base.open().await;
    let slow = DeliverySettings { limit: Duration::from_secs(10), ..brisk() };
    let running = [Running::start(&store, slow.clone()), Running::start(&other, slow)];
    settled(&store, acme.company, id, DeliveryState::Delivered).await;
    let mut ids: Vec<String> = receiver.at("/crm").into_iter().map(|post| post.id).collect();
    ids.sort_unstable();
    assert_eq!(ids.len(), 30);
    ids.dedup();
    assert_eq!(ids.len(), 30, "none twice");
    for one in running {
        one.end().await;
    }
}

async fn a_slow_endpoint_holds_up_nobody_else(base: Base) {
    let (store, receiver) = (base.open().await, Receiver::start().await);
    let (slow, fast) = (place(&store, "Slow").await, place(&store, "Fast").await);
    for n in 0..3 {
        endpoint(&store, slow.company, &format!("{n}"), &receiver.url("/slow")).await;
    }
    let (id, _) = endpoint(&store, fast.company, "CRM", &receiver.url("/fast")).await;
    receiver.reacts("/slow", [Reaction::Hangs; 500]);
    for _ in 0..20 {
        told(&store, &slow).await;
    }
    let running = Running::start(&store, DeliverySettings { limit: Duration::from_secs(60), ..brisk() });
    receiver.got("/slow", 8).await;
    let began = Instant::now();
    for _ in 0..20 {
        told(&store, &fast).await;
    }
    settled(&store, fast.company, id, DeliveryState::Delivered).await;
    assert_eq!(receiver.at("/fast").len(), 20);
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    assert_eq!(receiver.at("/slow").len(), 8, "all its places are taken, by a company with three endpoints");
    running.end().await;
}

async fn no_redirect_is_followed_and_no_private_address_posted_to(base: Base) {
    let (store, receiver) = (base.open().await, Receiver::start().await);
    let acme = place(&store, "Acme").await;
    let (id, _) = endpoint(&store, acme.company, "CRM", &receiver.url("/moved")).await;
    receiver.reacts("/moved", [Reaction::Redirect; 3]);
    told(&store, &acme).await;
    let running = Running::start(&store, brisk());
    let dead = settled(&store, acme.company, id, DeliveryState::Dead).await.remove(0);
    assert_eq!((dead.status, dead.error.as_deref()), (Some(302), Some("redirects are not followed")));
    running.end().await;

    // The same server without the operator's leave, by address and by name, with and without TLS.
    let strict = DeliverySettings { allow_private: Vec::new(), ..brisk() };
    let port = receiver.address.port();
    let urls = [receiver.url("/x"), format!("https://127.0.0.1:{port}/x"), format!("https://localhost:{port}/x")];
    let mut ids = Vec::new();
    for (n, url) in urls.iter().enumerate() {
        ids.push(endpoint(&store, acme.company, &format!("{n}"), url).await.0);
    }
    told(&store, &acme).await;
    let running = Running::start(&store, strict);
    for (id, why) in ids.into_iter().zip(["must begin with https", "only public addresses", "only public addresses"]) {
        let dead = settled(&store, acme.company, id, DeliveryState::Dead).await.remove(0);
        assert!(dead.error.as_deref().unwrap().contains(why), "{dead:?}");
    }
    assert_eq!((receiver.at("/inside").len(), receiver.at("/x").len()), (0, 0));
    running.end().await;
}

async fn an_endpoint_that_is_gone_is_switched_off(base: Base) {
    let (store, receiver) = (base.open().await, Receiver::start().await);
    let acme = place(&store, "Acme").await;
    let (id, _) = endpoint(&store, acme.company, "CRM", &receiver.url("/crm")).await;
    receiver.reacts("/crm", [Reaction::Status(500), Reaction::Status(410)]);
    told(&store, &acme).await;
    let waiting = DeliverySettings { waits: vec![Duration::from_secs(600)], ..brisk() };
    let running = Running::start(&store, waiting);
    receiver.got("/crm", 1).await;
    told(&store, &acme).await;
    let all = settled(&store, acme.company, id, DeliveryState::Dead).await;
    let errors: Vec<_> = all.iter().map(|one| one.error.as_deref().unwrap()).collect();
    assert_eq!(errors, ["the endpoint is gone", SWITCHED_OFF]);
    let off = store.endpoint(acme.company, id).await.unwrap().unwrap();
    assert_eq!((off.enabled, off.disabled_reason.as_deref()), (false, Some("it answered 410 Gone")));
    // What happens then is not written down for it.
    told(&store, &acme).await;
    assert_eq!(deliveries(&store, acme.company, id).await.len(), 2);
    running.end().await;
}

async fn while_a_secret_changes_both_sign(base: Base) {
    let (store, receiver) = (base.open().await, Receiver::start().await);
    let acme = place(&store, "Acme").await;
    let (id, first) = endpoint(&store, acme.company, "CRM", &receiver.url("/crm")).await;
    let running = Running::start(&store, brisk());
    let second = store.rotate_endpoint(acme.company, id, Duration::from_secs(60)).await.unwrap().unwrap();
    told(&store, &acme).await;
    let post = receiver.got("/crm", 1).await.remove(0);
    let by = |secret: &SecretString, post: &Post| signature(secret.expose_secret(), post);
    assert_eq!(post.signature, format!("{} {}", by(&second, &post), by(&first, &post)));
    let third = store.rotate_endpoint(acme.company, id, Duration::ZERO).await.unwrap().unwrap();
    told(&store, &acme).await;
    let post = receiver.got("/crm", 2).await.remove(1);
    assert_eq!(post.signature, by(&third, &post), "the time of the others is over");
    // The key that seals them changes, too.
    settled(&store, acme.company, id, DeliveryState::Delivered).await;
    store.rotate_secrets().await.unwrap();
    told(&store, &acme).await;
    let post = receiver.got("/crm", 3).await.remove(2);
    assert_eq!(post.signature, by(&third, &post));
    assert!(store.rotate_endpoint(Uuid::now_v7(), id, Duration::ZERO).await.unwrap().is_none());
    running.end().await;
}

async fn a_message_that_came_in_is_told(base: Base) {
    let (store, receiver) = (base.open().await, Receiver::start().await);
    let acme = place(&store, "Acme").await;
    endpoint(&store, acme.company, "CRM", &receiver.url("/crm")).await;
    let (line, peer) = (PhoneNumber::new("+15550001111"), PhoneNumber::new("+15550002222"));
    let inbound = NewMessage {
        company: acme.company,
        integration: acme.integration,
        direction: Direction::Inbound,
        line: &line,
        peer: &peer,
        text: "Are you open?",
        media: &[],
        provider_message: Some("SM1"),
        status: "received",
    };
    let id = store.add_message(inbound).await.unwrap().unwrap();
    assert_eq!(store.add_message(inbound).await.unwrap(), None, "delivered twice by its provider");
    let outbound = NewMessage { direction: Direction::Outbound, provider_message: Some("SM2"), ..inbound };
    store.add_message(outbound).await.unwrap();
    let running = Running::start(&store, brisk());
    let post = receiver.got("/crm", 1).await.remove(0);
    let message = &post.json()["data"]["message"];
    assert_eq!((post.kind().as_str(), &message["id"]), ("message.received", &json!(id)));
    assert_eq!((&message["text"], &message["from"]), (&json!("Are you open?"), &json!("+15550002222")));
    running.end().await;
    assert_eq!(receiver.at("/crm").len(), 1);
}

async fn an_agent_remembers_the_number_on_the_line_and_no_other(base: Base) {
    let tool = Answer::Tool { name: "recall_caller".into(), arguments: "{}".into() };
    let (whole, model) = with_model(base, vec![tool, Answer::Text("You asked for a table.".into())]).await;
    let mut agent = front_desk();
    (agent["llm"], agent["recall"]) = (json!({ "engine": "openai" }), json!(true));
    agent["tools"].as_array_mut().unwrap().push(json!("recall_caller"));
    let config = MockTwilioConfig { caller: Some(caller(Ender::Caller)), ..account() };
    let acme = OnTwilio::set_up(&whole, config, json!({}), agent).await;
    let other = place(&whole.store, "Other").await;
    let store = &whole.store;
    let own = Place { company: acme.company.id, integration: acme.integration, agent: acme.agent };
    let told = |summary: &str| outcome::Analysis { summary: summary.into(), ..outcome::read(JUDGED).unwrap() };
    // Two calls with the number, one on each side; one with another; one of another company.
    let with = |place: &Place, direction, number: &str| {
        let (from, to) = match direction {
            Direction::Inbound => (number, LINE),
            Direction::Outbound => (LINE, number),
        };
        let (from, to) = (PhoneNumber::new(from), PhoneNumber::new(to));
        let mut call = CallRecord { direction, from, to, ..record(place) };
        call.close(now(), CallEnd::new(Party::Caller, EndReason::HungUp));
        call
    };
    let calls = [
        (with(&own, Direction::Inbound, whole::CALLER), "Wanted a table."),
        (with(&own, Direction::Outbound, whole::CALLER), "Confirmed the table."),
        (with(&own, Direction::Inbound, whole::PERSON), "A secret of somebody else."),
        (with(&other, Direction::Inbound, whole::CALLER), "A secret of another company."),
    ];
    for (call, summary) in &calls {
        store.put_call(call).await.unwrap();
        store.put_analysis(call.company_id, call.id, &told(summary)).await.unwrap();
    }
    let (line, peer) = (PhoneNumber::new(LINE), PhoneNumber::new(whole::CALLER));
    let message = NewMessage {
        company: own.company,
        integration: own.integration,
        direction: Direction::Inbound,
        line: &line,
        peer: &peer,
        text: "Is there parking?",
        media: &[],
        provider_message: Some("SM7"),
        status: "received",
    };
    store.add_message(message).await.unwrap();
    let record = acme.rung().await;
    let result = text(&record["transcript"]["tools"][0]["result"]).to_owned();
    let result: Value = serde_json::from_str(&result).unwrap();
    let contacts = result["contacts"].as_array().unwrap();
    let listed: Vec<_> =
        contacts.iter().map(|one| (text(&one["what"]), text(&one["outcome"]), text(&one["text"]))).collect();
    assert_eq!(listed[0], ("they wrote", "received", "Is there parking?"));
    assert!(listed.contains(&("they called", "resolved", "Wanted a table.")), "{listed:?}");
    assert!(listed.contains(&("we called them", "resolved", "Confirmed the table.")));
    assert_eq!(listed.len(), 3, "neither the call itself nor others: {listed:?}");
    // The prompt held them before the model was asked anything.
    let prompt = format!("{:?}", model.requests()[0].messages[0]);
    assert!(prompt.contains("Earlier contacts") && prompt.contains("Wanted a table."), "{prompt}");
    assert!(!prompt.contains("secret"), "{prompt}");
    let hidden = store.contacts(own.company, &PhoneNumber::new("anonymous"), CallId::new(), 10).await.unwrap();
    assert_eq!(hidden, []);
    whole.stop().await;
}

/// Answers at the price of 600 tokens read and 400 written.
#[derive(Default)]
struct Costly {
    asked: AtomicUsize,
}

impl LanguageModel for Costly {
    fn name(&self) -> &'static str {
        "openai"
    }

    fn reply(&self, _: ChatRequest) -> ReplyStream {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let (stream, events, cancel) = ReplyStream::new();
        tokio::spawn(cancel.run_until_cancelled_owned(async move {
            for event in [
                LlmEvent::Text("We open at nine.".into()),
                LlmEvent::Usage { prompt_tokens: 600, completion_tokens: 400 },
                LlmEvent::Done { finish: Finish::Stop },
            ] {
                let _ = events.send(Ok(event)).await;
            }
        }));
        stream
    }
}

async fn a_call_over_its_budget_ends_politely_and_a_company_over_its_day_excuses_itself(base: Base) {
    let model = Arc::new(Costly::default());
    let mut engines = Cast::new(quick()).engines();
    engines.llm.insert("openai".into(), model.clone());
    let whole = Whole::with_engines(base, engines, |config| {
        config.turn.max_speculations = 0;
        (config.prices.openai_prompt, config.prices.openai_completion) = (2.0, 8.0);
    })
    .await;
    let mut agent = front_desk();
    (agent["llm"], agent["analysis"]) = (json!({ "engine": "openai" }), json!(false));
    agent["budget"] = json!({ "tokens_per_call": 1000 });
    let config = MockTwilioConfig { caller: Some(caller(Ender::Agent)), ..account() };
    let settings = json!({ "budget": { "tokens_per_day": 2000 } });
    let acme = OnTwilio::set_up(&whole, config, settings, agent).await;
    for _ in 0..2 {
        let record = acme.rung().await;
        assert_eq!(record["end"], json!({ "by": "system", "reason": "over_budget" }), "{record}");
        let said = Company::said(&record);
        assert_eq!(said[said.len() - 2], "agent: We open at nine.", "what was being said is heard to its end");
        assert!(said.last().unwrap().starts_with("agent: I am sorry, our time is up."), "{said:?}");
        assert!(text(&record["faults"][0]).contains("that of the call"), "{record}");
    }
    // The day is used up: told once, exact in the store, and the next caller hears an excuse and no model.
    let told = until("it is told", async || acme.company.audited("budget.day_spent").await.pop()).await;
    assert_eq!((&told["detail"]["tokens"], &told["detail"]["cents"]), (&json!(2000), &json!(0)));
    let today = now().as_second().div_euclid(24 * 3600);
    let used = until("it is written", async || {
        let (_, used) = whole.store.spends(today).await.unwrap().pop()?;
        (used.tokens() == 2000).then_some(used)
    })
    .await;
    assert_eq!((used.prompt_tokens, used.completion_tokens, used.micros), (1200, 800, 1200 * 2 + 800 * 8));
    assert!(used.heard_ms > 0 && used.spoken_chars == 2 * "We open at nine.".len() as u64, "{used:?}");
    let record = acme.rung().await;
    assert_eq!(record["end"]["reason"], "over_budget");
    let excuse = "agent: I am sorry, something is not working right now. Please call again a little later.";
    assert_eq!(Company::said(&record), [excuse]);
    assert_eq!(model.asked.load(Ordering::SeqCst), 2);
    assert_eq!(acme.company.audited("budget.day_spent").await.len(), 1);
    let profile = whole.store.agent(acme.company.id, acme.agent).await.unwrap().unwrap().profile.0;
    let facts = CallFacts {
        company: "Acme".into(),
        direction: Direction::Inbound,
        caller: PhoneNumber::new(CALLER),
        line: PhoneNumber::new(LINE),
        purpose: String::new(),
        vars: Default::default(),
        fields: Default::default(),
        began: jiff::Zoned::now(),
    };
    assert_eq!(whole.app.calls.writer(&profile, acme.company.id, &facts).err(), Some(Refused::OverBudget));
    whole.stop().await;
}

async fn what_two_servers_count_of_a_day_is_added(base: Base) {
    let (store, other) = (base.open().await, base.open().await);
    let acme = place(&store, "Acme").await;
    let used = Used { prompt_tokens: 1, completion_tokens: 2, heard_ms: 3, spoken_chars: 4, micros: 5 };
    for n in 0..10 {
        let server = if n % 2 == 0 { &store } else { &other };
        server.add_spend(acme.company, 20_000, &used).await.unwrap();
    }
    assert_eq!(store.add_spend(Uuid::now_v7(), 20_000, &used).await.unwrap(), None, "a company that is gone");
    let all = Used { prompt_tokens: 10, completion_tokens: 20, heard_ms: 30, spoken_chars: 40, micros: 50 };
    assert_eq!(store.spends(20_000).await.unwrap(), [(acme.company, all)]);
    assert_eq!(store.spends(20_001).await.unwrap(), []);
}

async fn webhooks_are_set_up_by_file(base: Base) {
    let store = base.open().await;
    let path = base.dir.path().join("setup.toml");
    let lookup = |name: &str| (name == "SECRET").then(|| format!("whsec_{}", BASE64_STANDARD.encode([7; 32])));
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Setup::read(Path::new(&path), &lookup).unwrap()
    };
    const FILE: &str = r#"
        [[company]]
        name = "Acme"
        [[webhook]]
        company = "Acme"
        name = "CRM"
        url = "https://crm.example.com/calls"
        events = ["call.analysed"]
        secret = "${SECRET}"
        [[webhook]]
        company = "Acme"
        name = "Log"
        url = "https://log.example.com/"
    "#;
    let apply = async |text: &str, prune: bool| {
        let (setup, faults) = read(text);
        assert_eq!(faults, []);
        assert!(!format!("{setup:?}").contains("BwcHBwcH"), "no secret is printed");
        store.apply(&setup, ApplyOptions { prune, dry_run: false }).await.unwrap()
    };
    assert_eq!(apply(FILE, false).await.count(Action::Created), 3);
    let again = apply(FILE, false).await;
    assert_eq!(again.count(Action::Unchanged), 3, "{:?}", again.changes);
    let company = store.company_named("Acme").await.unwrap().unwrap().id;
    let there = store.endpoints(company).await.unwrap();
    let events: Vec<_> = there.iter().map(|one| (one.name.as_str(), one.events.len())).collect();
    assert_eq!(events, [("CRM", 1), ("Log", 3)]);
    let moved = apply(&FILE.replace("https://log.", "https://logs."), false).await;
    let changed: Vec<_> = moved.changes.iter().filter(|change| change.action == Action::Updated).collect();
    assert_eq!((changed.len(), &changed[0].fields[..]), (1, &["url".to_owned()][..]));
    let pruned =
        apply(&FILE[..FILE.find("[[webhook]]\n        company = \"Acme\"\n        name = \"Log\"").unwrap()], true)
            .await;
    assert_eq!(pruned.count(Action::Removed), 1);
    assert_eq!(store.endpoints(company).await.unwrap().len(), 1);

    let (_, faults) = read(
        "[[webhook]]\ncompany = \"Acme\"\nname = \"A\"\nurl = \"crm\"\nevents = [\"call.begun\"]\nsecret = \"hunter2\"\ncolour = 1",
    );
    let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    for expected in ["url: ", "events: no such event", "secret: ", "colour: no such key"] {
        assert_eq!(faults.iter().filter(|fault| fault.contains(expected)).count(), 1, "{expected}\n{faults:#?}");
    }
    assert!(!faults.join("\n").contains("hunter2"));
}

async fn webhooks_are_managed_by_their_owner_and_seen_by_no_other_company(base: Base) {
    let whole = Whole::start(base, Cast::new(quick()), |_| {}).await;
    let (acme, other) = (whole.company("Acme", json!({})).await, whole.company("Other", json!({})).await);
    let (id, secret) = webhook(&acme, "https://crm.example.com/").await;
    let path = format!("/webhooks/{id}");
    let shown = acme.get(&path).await;
    assert!(!shown.to_string().contains(&secret), "shown once");
    assert_eq!(shown["events"], json!(["call.ended", "call.analysed", "message.received"]));
    let changed =
        acme.ask(reqwest::Method::PATCH, &path, json!({ "events": ["call.ended"], "enabled": false })).await.1;
    assert_eq!((&changed["events"], &changed["enabled"]), (&json!(["call.ended"]), &json!(false)));
    let rotated = acme.post(&format!("{path}/rotate"), json!({ "keep_h": 1 })).await;
    assert_ne!(text(&rotated["secret"]), secret);
    assert!(rotated["old_secret_until"].is_string());
    let since = json!({ "since": "2026-01-01T00:00:00Z" });
    assert_eq!(acme.ask(reqwest::Method::POST, &format!("{path}/replay"), since.clone()).await.0, 422, "switched off");
    acme.ask(reqwest::Method::PATCH, &path, json!({ "enabled": true })).await;
    assert_eq!(acme.post(&format!("{path}/replay"), since.clone()).await["deliveries"], 0);
    let missing = format!("{path}/deliveries/{}/replay", Uuid::now_v7());
    assert_eq!(acme.ask(reqwest::Method::POST, &missing, json!({})).await.0, 404);
    assert_eq!(whole::items(acme.get(&format!("{path}/deliveries?state=dead")).await).len(), 0);
    for (method, path, body) in [
        ("GET", path.clone(), Value::Null),
        ("PATCH", path.clone(), json!({ "enabled": false })),
        ("DELETE", path.clone(), Value::Null),
        ("POST", format!("{path}/rotate"), json!({})),
        ("POST", format!("{path}/replay"), since),
        ("GET", format!("{path}/deliveries"), Value::Null),
    ] {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        assert_eq!(other.ask(method.clone(), &path, body).await.0, 404, "{method} {path}");
    }
    for (body, field) in [
        (json!({ "name": "CRM", "url": "https://a.example/" }), None),
        (json!({ "name": "B", "url": "http//a" }), Some("url")),
        (json!({ "name": "B", "url": "https://a.example/", "events": [] }), Some("events")),
        (json!({ "name": "B", "url": "https://a.example/", "events": ["call.begun"] }), Some("events[0]")),
    ] {
        let (status, told) = acme.ask(reqwest::Method::POST, "/webhooks", body).await;
        match field {
            None => assert_eq!(status, 409, "{told}"),
            Some(field) => assert_eq!((status, &told["errors"][0]["field"]), (422, &json!(field)), "{told}"),
        }
    }
    for action in ["webhook.added", "webhook.changed", "webhook.rotated"] {
        let noted = acme.audited(action).await;
        assert!(!noted.is_empty() && !format!("{noted:?}").contains("whsec_"), "{action}");
    }
    acme.delete(&path).await;
    assert_eq!(acme.ask(reqwest::Method::GET, &path, Value::Null).await.0, 404);
    whole.stop().await;
}
