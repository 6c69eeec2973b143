//! Knowledge bases on every database: what was uploaded is found by its words, in three languages, by whoever owns it; a
//! document is replaced in one step; vectors help where an endpoint gives them and are done without where it does not.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use offhook::agent::builtin::Builtin;
use offhook::agent::knowledge::{Knowledge, Library as _, Lookup, Meaning, Passage};
use offhook::agent::memory::Memory;
use offhook::agent::profile::ModelChoice;
use offhook::agent::tools::search_knowledge::{self, SearchKnowledge};
use offhook::agent::tools::{ToolBox, ToolContext, ToolRegistry};
use offhook::agent::workflow::Workflow;
use offhook::call::thread;
use offhook::cli::check::check;
use offhook::cli::probes;
use offhook::config::Config;
use offhook::conversation::settings::TurnSettings;
use offhook::mock::openai::{MockConfig, MockOpenAi};
use offhook::speech::scripted::{Answer, ScriptedConfig, ScriptedModel};
use offhook::store::Store;
use offhook::store::companies::CompanySettings;
use offhook::store::knowledge::embeddings::KnowledgeConfig;
use offhook::store::knowledge::extract::Reader;
use offhook::store::knowledge::{Added, DocumentInfo, DocumentState, KnowledgeBases, Means, NewBase};
use offhook::telephony::{CallId, PhoneNumber};
use serde_json::Value;
use stores::Base;
use tokio::net::TcpListener;
use uuid::Uuid;

#[path = "knowledge/documents.rs"]
mod documents;
#[path = "common/stores.rs"]
mod stores;

on_every_store! {
    a_document_is_found_by_its_words_in_three_languages
    every_database_ranks_alike
    the_same_file_changes_nothing_and_another_replaces_it_in_one_step
    what_was_removed_is_found_no_more
    another_company_finds_nothing
    a_lookup_stays_within_the_bases_that_it_names
    a_workflows_node_looks_in_its_own_bases_alone
    a_document_whose_process_died_is_indexed_by_the_next
    vectors_find_what_words_do_not_and_are_made_anew_on_request
    a_questions_vector_that_is_there_is_not_asked_for_again
    without_the_endpoint_full_text_answers_and_the_document_says_so
    questions_of_any_letters_harm_nothing
    a_reader_that_fails_costs_one_upload_and_nothing_else
}

const ENGLISH: &str = "# Rooms\n\nA double room costs 120 euros a night, breakfast included.\n\n## Pets\n\n\
    Dogs are welcome for 10 euros a night. Cats stay free of charge.\n\n# Parking\n\n\
    The garage is open around the clock and costs 15 euros a day.\n";
const UKRAINIAN: &str = "# Номери\n\nДвомісний номер коштує 3000 гривень за добу, сніданок включено.\n\n# Парковка\n\n\
    Стоянка біля готелю безкоштовна для гостей. Місце треба забронювати заздалегідь.\n\n# Скасування\n\n\
    Бронювання можна скасувати безкоштовно за дві доби до заїзду.\n";
const RUSSIAN: &str = "# Завтраки\n\nЗавтрак подают с семи до одиннадцати в ресторане на первом этаже.\n\n# Бассейн\n\n\
    Бассейн открыт для детей с пяти лет, полотенца выдают бесплатно.\n";

struct Place {
    bases: KnowledgeBases,
    store: Store,
    company: Uuid,
    base: Uuid,
}

async fn place(store: Store, bases: KnowledgeBases, name: &str) -> Place {
    let company = store.add_company(name, &CompanySettings::default()).await.unwrap().id;
    let NewBase::Made(base) = store.add_knowledge_base(company, "Hotel", "uk").await.unwrap() else {
        panic!("too many")
    };
    Place { bases, store, company, base: base.id }
}

impl Place {
    async fn open(base: &Base) -> Self {
        let store = base.open().await;
        place(store.clone(), KnowledgeBases::without_vectors(store), "Acme").await
    }

    async fn put(&self, name: &str, text: &str) -> DocumentInfo {
        let added = self.bases.add(self.company, self.base, name, Bytes::from(text.to_owned())).await.unwrap();
        let Added::Taken(document) = added else { panic!("{added:?}") };
        self.bases.index(document.id).await.unwrap();
        self.store.document(self.company, self.base, document.id).await.unwrap().unwrap()
    }

    async fn ask(&self, query: &str) -> Vec<Passage> {
        let ask = Lookup { query: query.into(), language: "uk".into(), limit: 5, ..Lookup::default() };
        self.bases.search(self.company, self.base, &ask).await.unwrap().unwrap()
    }

    async fn first(&self, query: &str) -> (String, String) {
        let found = self.ask(query).await;
        let first = found.first().unwrap_or_else(|| panic!("nothing for {query:?}"));
        (first.title.clone(), first.place.clone())
    }
}

async fn a_document_is_found_by_its_words_in_three_languages(base: Base) {
    let place = Place::open(&base).await;
    for (name, text) in [("hotel.md", ENGLISH), ("готель.md", UKRAINIAN), ("отель.md", RUSSIAN)] {
        let document = place.put(name, text).await;
        assert_eq!((document.state, document.version, document.error), (DocumentState::Ready, 1, None));
        assert!(document.passages >= 2, "{name}");
    }
    for (question, title, part) in [
        ("How much is a double room?", "hotel.md", "Rooms"),
        ("can I bring my dog", "hotel.md", "Rooms > Pets"),
        ("is there a garage", "hotel.md", "Parking"),
        ("Скільки коштує двомісний номер?", "готель.md", "Номери"),
        ("чи є у вас парковка для машини", "готель.md", "Парковка"),
        ("хочу скасувати бронювання", "готель.md", "Скасування"),
        ("во сколько завтрак", "отель.md", "Завтраки"),
        ("можно ли детям в бассейн?", "отель.md", "Бассейн"),
    ] {
        assert_eq!(place.first(question).await, (title.to_owned(), part.to_owned()), "{question}");
    }
    let found = place.ask("двомісний номер").await;
    assert!(found[0].score > 0.9 && found[0].text.contains("3000"), "{found:?}");
    assert_eq!(place.ask("квантова хромодинаміка").await, []);
    let shown = place.store.knowledge_base(place.company, place.base).await.unwrap().unwrap();
    assert_eq!((shown.documents, shown.vectors, place.bases.means()), (3, 0, Means::Text));
    // An agent names its bases, and gets the same.
    let ask = Lookup { query: "garage".into(), language: "en".into(), limit: 1, ..Lookup::default() };
    let knowledge = place.bases.of(place.company, &["Hotel".into(), "Nowhere".into()]);
    assert_eq!(knowledge.look_up(ask.clone()).await.unwrap()[0].place, "Parking");
    assert_eq!(place.bases.of(place.company, &["Nowhere".into()]).look_up(ask).await.unwrap(), []);
}

async fn every_database_ranks_alike(base: Base) {
    let place = Place::open(&base).await;
    let floors: String = (1..=40)
        .map(|n| {
            let more = if n % 3 == 0 { " The window of it looks at the sea." } else { "" };
            format!("# Room {n}\n\nRoom {n} is on floor {}, with a bed and a desk.{more}\n\n", n / 10)
        })
        .collect();
    place.put("rooms.md", &floors).await;
    let places = async |question: &str| -> Vec<String> {
        place.ask(question).await.into_iter().map(|passage| passage.place).collect()
    };
    assert_eq!(places("room 17").await[0], "Room 17");
    assert_eq!(places("room with a window to the sea").await, ["Room 3", "Room 6", "Room 9", "Room 12", "Room 15"]);
    assert_eq!(places("sea window floor 3").await[..2], ["Room 3", "Room 30"]);
}

async fn the_same_file_changes_nothing_and_another_replaces_it_in_one_step(base: Base) {
    let place = Place::open(&base).await;
    let first = place.put("hotel.md", ENGLISH).await;
    let again = place.bases.add(place.company, place.base, "hotel.md", Bytes::from(ENGLISH)).await.unwrap();
    assert_eq!(again, Added::Unchanged(first.clone()));
    // Until the new file is indexed, the old one is found.
    let changed = Bytes::from(ENGLISH.replace("15 euros", "25 euros"));
    let added = place.bases.add(place.company, place.base, "hotel.md", changed).await.unwrap();
    let Added::Taken(waiting) = added else { panic!("{added:?}") };
    assert_eq!((waiting.id, waiting.state, waiting.version), (first.id, DocumentState::Indexing, 1));
    assert!(place.ask("garage").await[0].text.contains("15 euros"));
    place.bases.index(waiting.id).await.unwrap();
    let found = place.ask("garage").await;
    assert!(found[0].text.contains("25 euros"), "{found:?}");
    assert_eq!(found.iter().filter(|passage| passage.place == "Parking").count(), 1, "the old ones are gone");
    let shown = place.store.document(place.company, place.base, first.id).await.unwrap().unwrap();
    assert_eq!((shown.state, shown.version), (DocumentState::Ready, 2));
    // What cannot be read leaves everything as it was.
    let refused = place.bases.add(place.company, place.base, "hotel.md", Bytes::from_static(b"\x00\x01\x02\x03")).await;
    assert!(matches!(refused.unwrap(), Added::Refused(_)));
    assert!(place.ask("garage").await[0].text.contains("25 euros"));
}

async fn what_was_removed_is_found_no_more(base: Base) {
    let place = Place::open(&base).await;
    let (one, _) = (place.put("hotel.md", ENGLISH).await, place.put("отель.md", RUSSIAN).await);
    assert!(place.store.remove_document(place.company, place.base, one.id).await.unwrap());
    assert!(!place.store.remove_document(place.company, place.base, one.id).await.unwrap());
    assert_eq!(place.ask("garage").await, []);
    assert!(!place.ask("завтрак").await.is_empty());
    assert!(place.store.remove_knowledge_base(place.company, place.base).await.unwrap());
    assert!(!place.store.remove_knowledge_base(place.company, place.base).await.unwrap());
    let ask = Lookup { query: "завтрак".into(), language: "ru".into(), limit: 5, ..Lookup::default() };
    assert_eq!(place.bases.search(place.company, place.base, &ask).await.unwrap(), None);
}

async fn another_company_finds_nothing(base: Base) {
    let store = base.open().await;
    let bases = KnowledgeBases::without_vectors(store.clone());
    let acme = place(store.clone(), bases.clone(), "Acme").await;
    let other = place(store.clone(), bases.clone(), "Other").await;
    let document = acme.put("hotel.md", ENGLISH).await;
    other.put("отель.md", RUSSIAN).await;
    assert_eq!(other.ask("garage").await, []);
    let ask = Lookup { query: "garage".into(), language: "en".into(), limit: 5, ..Lookup::default() };
    assert_eq!(bases.search(other.company, acme.base, &ask).await.unwrap(), None);
    assert_eq!(bases.of(other.company, &["Hotel".into()]).look_up(ask).await.unwrap(), []);
    assert_eq!(store.document(other.company, acme.base, document.id).await.unwrap(), None);
    assert_eq!(store.documents(other.company, acme.base, Default::default()).await.unwrap(), None);
    assert!(!store.remove_document(other.company, acme.base, document.id).await.unwrap());
    assert!(!store.remove_knowledge_base(other.company, acme.base).await.unwrap());
    assert!(!bases.reindex(other.company, acme.base).await.unwrap());
    let added = bases.add(other.company, acme.base, "x.txt", Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(added, Added::NoBase);
    assert!(!acme.ask("garage").await.is_empty());
}

/// A second base beside the first, and what an agent of both may look into.
async fn with_menu(place: &Place) -> Arc<dyn Knowledge> {
    place.put("hotel.md", ENGLISH).await;
    let NewBase::Made(menu) = place.store.add_knowledge_base(place.company, "Menu", "en").await.unwrap() else {
        panic!("too many")
    };
    let text = "# Fish\n\nTrout costs 18 euros.\n\n# Drinks\n\nA double espresso costs 4 euros.\n";
    let added = place.bases.add(place.company, menu.id, "menu.md", Bytes::from(text)).await.unwrap();
    let Added::Taken(document) = added else { panic!("{added:?}") };
    place.bases.index(document.id).await.unwrap();
    place.bases.of(place.company, &["Hotel".into(), "Menu".into()])
}

async fn a_lookup_stays_within_the_bases_that_it_names(base: Base) {
    let place = Place::open(&base).await;
    let knowledge = with_menu(&place).await;
    let titles = async |knowledge: &dyn Knowledge, bases: Option<&[&str]>| -> Vec<String> {
        let bases = bases.map(|bases| bases.iter().map(|&base| base.to_owned()).collect());
        let ask = Lookup { query: "double".into(), language: "en".into(), limit: 5, bases, ..Lookup::default() };
        let mut titles: Vec<String> =
            knowledge.look_up(ask).await.unwrap().into_iter().map(|passage| passage.title).collect();
        titles.sort();
        titles
    };
    assert_eq!(titles(&*knowledge, None).await, ["hotel.md", "menu.md"]);
    assert_eq!(titles(&*knowledge, Some(&["Menu"])).await, ["menu.md"]);
    assert_eq!(titles(&*knowledge, Some(&["Menu", "Hotel", "Nowhere"])).await, ["hotel.md", "menu.md"]);
    assert_eq!(titles(&*knowledge, Some(&[])).await, [""; 0]);
    let of_one = place.bases.of(place.company, &["Menu".into()]);
    assert_eq!(titles(&*of_one, Some(&["Hotel"])).await, [""; 0], "the company's, and not this agent's");
}

const WAITER: &str = r#"
version = 1
name = "waiter"
[fallback]
say = "Sorry?"
goto = "bye"
[[node]]
id = "hello"
kind = "start"
say = "Hello."
goto = "waiter"
[[node]]
id = "waiter"
kind = "llm"
say = "What would you like?"
prompt = "Help to choose a dish."
knowledge = ["Menu"]
exit = [{ name = "garage", when = "they ask for the garage", goto = "garage" }]
failed = { goto = "bye" }
give_up = "bye"
[[node]]
id = "garage"
kind = "knowledge"
query = "garage"
knowledge = ["Hotel"]
failed = { say = "I do not know." }
goto = "bye"
[[node]]
id = "bye"
kind = "end"
say = "Goodbye."
"#;

async fn a_workflows_node_looks_in_its_own_bases_alone(base: Base) {
    let place = Place::open(&base).await;
    let knowledge = with_menu(&place).await;
    let workflow = Arc::new(Workflow::parse(WAITER).unwrap_or_else(|error| panic!("{error}")));
    let calls = |name: &str, arguments: &str| Answer::Tool { name: name.into(), arguments: arguments.into() };
    let steps = [
        calls(search_knowledge::NAME, r#"{"query":"double"}"#),
        calls(search_knowledge::NAME, r#"{"query":"garage","bases":["Hotel"]}"#),
        calls("go_to", r#"{"to":"garage"}"#),
    ];
    let builtin =
        Builtin::new(workflow).with_model(Arc::new(ScriptedModel::with_steps(ScriptedConfig::default(), steps)));
    let mut registry = ToolRegistry::with_call_tools();
    registry.add(Arc::new(SearchKnowledge { knowledge, language: "en".into() }));
    builtin.tools().into_iter().for_each(|tool| registry.add(tool));
    let names: Vec<String> = registry.names().map(str::to_owned).collect();
    let tools = ToolBox::new(names.iter().map(String::as_str), &registry).unwrap();
    let mut memory = Memory::new("");
    memory.agent_said(&builtin.greeting());
    memory.user_said("a double espresso, and where may I leave my car?");
    let context = ToolContext::new(CallId::new(), PhoneNumber::default(), PhoneNumber::default());
    let settings = TurnSettings { max_tool_steps: 8, ..TurnSettings::default() };
    let written =
        thread::answer(Arc::new(builtin), &ModelChoice::default(), &tools, context, &memory, &settings).await.unwrap();
    let found: Vec<Vec<String>> = written
        .tools
        .iter()
        .filter(|(call, _)| call.name == search_knowledge::NAME)
        .map(|(_, result)| {
            let result: Value = serde_json::from_str(&result.content).unwrap();
            let passages = result["passages"].as_array().unwrap_or_else(|| panic!("{result}"));
            passages.iter().map(|passage| passage["title"].as_str().unwrap().to_owned()).collect()
        })
        .collect();
    let nothing: [&str; 0] = [];
    assert_eq!(found[0], ["menu.md"], "{:?}", written.tools);
    assert_eq!(found[1], nothing, "a model does not choose where to look");
    assert_eq!(found[2], ["hotel.md"], "and another node looks elsewhere");
    assert!(written.text.contains("The garage is open around the clock"), "{}", written.text);
}

async fn a_document_whose_process_died_is_indexed_by_the_next(base: Base) {
    let place = Place::open(&base).await;
    let added = place.bases.add(place.company, place.base, "hotel.md", Bytes::from(ENGLISH)).await.unwrap();
    let Added::Taken(document) = added else { panic!("{added:?}") };
    assert_eq!(place.ask("garage").await, []);
    assert_eq!(place.bases.waiting().await.unwrap(), [document.id]);
    // Claimed a moment ago: somebody works on it.
    base.sql("UPDATE knowledge_document SET claimed_at = 99999999999999").await;
    assert!(place.bases.waiting().await.unwrap().is_empty());
    place.bases.index(document.id).await.unwrap();
    assert_eq!(place.ask("garage").await, [], "it is left to whoever claimed it");
    base.sql("UPDATE knowledge_document SET claimed_at = 1").await;
    for document in place.bases.waiting().await.unwrap() {
        place.bases.index(document).await.unwrap();
    }
    assert_eq!(place.first("garage").await.1, "Parking");
}

async fn mock() -> (MockOpenAi, KnowledgeConfig) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mock = MockOpenAi::start(MockConfig::default(), listener).unwrap();
    let config = KnowledgeConfig {
        base_url: mock.base_url(),
        model: "one".into(),
        batch: 2,
        lookup_ms: 5000,
        ..KnowledgeConfig::default()
    };
    (mock, config)
}

async fn vectors_find_what_words_do_not_and_are_made_anew_on_request(base: Base) {
    let store = base.open().await;
    let (mock, config) = mock().await;
    let place = place(store.clone(), KnowledgeBases::open(store.clone(), &config).unwrap(), "Acme").await;
    assert_eq!(place.bases.means(), Means::TextAndVectors);
    let document = place.put("hotel.md", ENGLISH).await;
    assert_eq!((document.vectors, document.error), (document.passages, None));
    assert!(document.passages > 2, "several requests");
    // Words that every question has are no words to search by; the mock's vectors hold them all the same.
    let found = place.ask("is open around the").await;
    assert_eq!(found[0].place, "Parking", "{found:?}");
    let without = KnowledgeBases::without_vectors(store.clone());
    let ask = Lookup { query: "garage".into(), language: "en".into(), limit: 5, ..Lookup::default() };
    assert_eq!(without.search(place.company, place.base, &ask).await.unwrap().unwrap().len(), 1);
    assert!(place.ask("garage").await.len() > 1, "the nearest are there, however far they are");
    assert_eq!(place.first("garage").await.1, "Parking", "and what both find comes first");

    // Another model: its questions are compared with nothing until the base is indexed again.
    let config = KnowledgeConfig { model: "two".into(), ..config };
    let other = KnowledgeBases::open(store.clone(), &config).unwrap();
    assert_eq!(other.search(place.company, place.base, &ask).await.unwrap().unwrap().len(), 1);
    assert!(other.reindex(place.company, place.base).await.unwrap());
    assert!(other.search(place.company, place.base, &ask).await.unwrap().unwrap().len() > 1);
    let shown = store.document(place.company, place.base, document.id).await.unwrap().unwrap();
    assert_eq!((shown.version, shown.state, shown.vectors), (2, DocumentState::Ready, shown.passages));
    mock.stop().await;
    assert_eq!(other.search(place.company, place.base, &ask).await.unwrap().unwrap().len(), 1, "words are enough");
}

async fn a_questions_vector_that_is_there_is_not_asked_for_again(base: Base) {
    let store = base.open().await;
    let (mock, config) = mock().await;
    let place = place(store.clone(), KnowledgeBases::open(store.clone(), &config).unwrap(), "Acme").await;
    let knowledge = with_menu(&place).await;
    let ask = Lookup { query: "is open around the".into(), language: "en".into(), limit: 2, ..Lookup::default() };
    let found = knowledge.look_up(ask.clone()).await.unwrap();
    let meaning = knowledge.meaning(ask.clone()).await;
    assert!(matches!(&meaning, Meaning::Vector(vector) if !vector.is_empty()));
    let before = mock.requests().len();
    assert_eq!(knowledge.look_up(Lookup { meaning, ..ask.clone() }).await.unwrap(), found);
    let by_text = knowledge.look_up(Lookup { meaning: Meaning::Nothing, ..ask.clone() }).await.unwrap();
    assert_ne!(by_text, found);
    assert_eq!(mock.requests().len(), before);
    mock.stop().await;
    assert_eq!(knowledge.meaning(ask.clone()).await, Meaning::Unknown, "it may come back");
    let without = KnowledgeBases::without_vectors(store);
    assert_eq!(without.of(place.company, &["Hotel".into()]).meaning(ask).await, Meaning::Nothing);
}

async fn without_the_endpoint_full_text_answers_and_the_document_says_so(base: Base) {
    let store = base.open().await;
    let config = KnowledgeConfig { base_url: "http://127.0.0.1:9/v1".into(), ..KnowledgeConfig::default() };
    let place = place(store.clone(), KnowledgeBases::open(store, &config).unwrap(), "Acme").await;
    let document = place.put("hotel.md", ENGLISH).await;
    assert_eq!((document.state, document.vectors), (DocumentState::Ready, 0));
    assert!(document.error.unwrap().starts_with("found by full text alone: the embeddings endpoint"));
    let begun = std::time::Instant::now();
    assert_eq!(place.first("garage").await.1, "Parking");
    assert!(begun.elapsed() < Duration::from_secs(5), "nobody waits for what is not there");
}

async fn questions_of_any_letters_harm_nothing(base: Base) {
    let place = Place::open(&base).await;
    place.put("hotel.md", ENGLISH).await;
    for question in [
        "\" OR 1=1 --",
        "'; DROP TABLE knowledge_passage; --",
        "NEAR(a b) AND * : ^ { } ( ) & | ! <->",
        "\0\u{1}\u{fffd}",
        "🏨🐕",
        "terms:garage scope:b*",
        "ґаражʼ їжакєё ’’’",
        &"garage ".repeat(5000),
        "",
    ] {
        let _ = place.ask(question).await;
    }
    assert_eq!(place.first("garage").await.1, "Parking");
}

async fn a_reader_that_fails_costs_one_upload_and_nothing_else(base: Base) {
    let place = Place::open(&base).await;
    let page = Bytes::from("<h1>Sauna</h1><p>The sauna is heated from four to ten.");
    let upload = async |reader: Reader| {
        let bases = place.bases.clone().reading_with(reader);
        bases.add(place.company, place.base, "sauna.html", page.clone()).await.unwrap()
    };
    // A shell finds no script of that name and ends; `true` ends as if all were well.
    for (program, reason) in [
        ("/bin/sh", "the file could not be read"),
        ("/usr/bin/true", "the file could not be read"),
        ("/nowhere/offhook", "files of this kind cannot be read here"),
    ] {
        let Added::Refused(told) = upload(Reader::starting(program.into())).await else { panic!("{program}") };
        assert!(told.starts_with(reason), "{program}: {told}");
        place.put("hotel.md", &format!("{ENGLISH}\n{program}\n")).await;
        assert_eq!(place.first("garage").await.1, "Parking", "{program}");
        assert_eq!(place.ask("sauna").await, [], "{program}: nothing of it was stored");
    }
    let Added::Taken(document) = upload(documents::reader()).await else { panic!("not taken") };
    place.bases.index(document.id).await.unwrap();
    assert_eq!(place.first("sauna").await, ("sauna.html".into(), "Sauna".into()));
}

#[tokio::test]
async fn check_tries_the_embeddings_endpoint_and_says_what_happens_without_it() {
    let (mock, knowledge) = mock().await;
    let lines = async |knowledge: KnowledgeConfig| {
        let config = Config { knowledge, ..Config::default() };
        let mut probes = probes::engines(&config);
        probes.retain(|probe| probe.what == "knowledge");
        check(probes, Duration::from_secs(20)).await
    };
    let well = lines(knowledge.clone()).await;
    let said = well[0].outcome.as_deref().unwrap();
    assert!(said.starts_with("one: vectors of "), "{said}");
    mock.stop().await;
    let down = lines(KnowledgeConfig { timeout_ms: 500, ..knowledge }).await;
    assert!(down[0].outcome.as_ref().unwrap_err().cure.contains("full text alone"), "{down:?}");
    assert!(lines(KnowledgeConfig::default()).await.is_empty(), "nothing is asked for that is not set up");
}
