//! `offhook apply` from a file to a running server's directory: real files, a real database, two processes' worth of
//! connections.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use offhook::agent::knowledge::Lookup;
use offhook::cli::apply::{Args, Surroundings, apply};
use offhook::store::directory::Directory;
use offhook::store::knowledge::KnowledgeBases;
use offhook::store::knowledge::embeddings::KnowledgeConfig;
use offhook::store::{Store, StoreConfig};
use secrecy::SecretString;
use stores::Base;
use tokio_util::sync::CancellationToken;

#[path = "common/stores.rs"]
mod stores;

on_every_store! {
    a_file_becomes_a_directory_that_answers_a_line
    applying_again_changes_nothing_and_keeps_the_ids
    an_update_names_what_differs_and_no_value
    a_companys_rules_are_set_key_by_key_and_checked
    what_a_file_does_not_mention_stays_unless_pruned
    pruning_keeps_what_a_reference_names_and_refuses_an_empty_file
    a_dry_run_prints_the_difference_and_writes_nothing
    references_that_lead_nowhere_are_told_together_with_the_other_faults
    credentials_that_contradict_each_other_are_told_before_anything_is_stored
    a_line_needs_its_company_only_where_the_integrations_name_does_not_tell
    a_workflow_is_read_beside_the_set_up_file_and_stored_as_text
    a_missing_public_url_is_warned_about
    credentials_are_sealed_on_disk_and_a_wrong_key_opens_nothing
    a_running_server_uses_a_change_within_a_second
    documents_beside_the_file_are_indexed_once_and_again_when_they_change
    tools_and_servers_are_made_checked_sealed_and_pruned
}

const TOKEN: &str = "0123-very-secret";
const SID: &str = "AC00000000000000000000000000000001";

const ACME: &str = r#"
    [[company]]
    name = "Acme"

    [[integration]]
    company = "Acme"
    name = "Main Phone Line"
    provider = "twilio"
    account_sid = "${TWILIO_ACCOUNT_SID}"
    auth_token = "${TWILIO_AUTH_TOKEN}"

    [[line]]
    integration = "Main Phone Line"
    number = "+15550001111"
    agent = "Front desk"

    [[agent]]
    company = "Acme"
    name = "Front desk"
    greeting = "Hello, Acme, how can I help?"
    stt = { engine = "whisper" }
    tts = { engine = "espeak", voice = "en-us" }
    llm = { engine = "builtin" }
"#;

/// A second company, whose integration has the name of Acme's.
const ZENITH: &str = r#"
    [[company]]
    name = "Zenith"

    [[integration]]
    company = "Zenith"
    name = "Main Phone Line"
    provider = "twilio"
    account_sid = "AC00000000000000000000000000000002"
    auth_token = "t2"

    [[agent]]
    company = "Zenith"
    name = "Front desk"
"#;

struct Place {
    dir: tempfile::TempDir,
    store: StoreConfig,
    key: Option<SecretString>,
    public_url: Option<&'static str>,
}

impl Place {
    fn new(base: Base) -> Self {
        // As the program does: clients of providers are opened, to see whether they could be.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let Base { dir, config: store, key } = base;
        Self { dir, store, key, public_url: Some("https://voice.example.com/") }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Whether it succeeded, and what it printed.
    async fn apply_with(&self, file: &Path, prune: bool, dry_run: bool) -> (bool, String) {
        let args = Args { file: file.to_owned(), prune, dry_run, no_verify: true };
        let surroundings = Surroundings {
            store: &self.store,
            secrets_key: self.key.as_ref(),
            public_url: self.public_url,
            knowledge: &KnowledgeConfig::default(),
        };
        let lookup = |name: &str| match name {
            "TWILIO_ACCOUNT_SID" => Some(SID.to_owned()),
            "TWILIO_AUTH_TOKEN" => Some(TOKEN.to_owned()),
            _ => None,
        };
        let mut out = Vec::new();
        let (good, error) = match apply(&args, surroundings, &lookup, &mut out).await {
            Ok(code) => (code == ExitCode::SUCCESS, String::new()),
            Err(error) => (false, format!("{error:#}")),
        };
        let printed = String::from_utf8(out).unwrap() + &error;
        assert!(!printed.contains(TOKEN), "a secret was printed:\n{printed}");
        (good, printed)
    }

    async fn apply(&self, text: &str) -> String {
        let (good, printed) = self.apply_with(&self.write("setup.toml", text), false, false).await;
        assert!(good, "{printed}");
        printed
    }

    async fn refuse(&self, text: &str) -> String {
        let (good, printed) = self.apply_with(&self.write("setup.toml", text), false, false).await;
        assert!(!good, "{printed}");
        printed
    }

    async fn open(&self) -> Store {
        Store::open(&self.store, self.key.as_ref()).await.unwrap()
    }

    async fn directory(&self) -> Directory {
        self.open().await.directory().await.unwrap()
    }
}

fn has(printed: &str, line: &str) -> bool {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    printed.lines().any(|printed| words(printed).starts_with(line))
}

async fn a_file_becomes_a_directory_that_answers_a_line(base: Base) {
    let place = Place::new(base);
    let printed = place.apply(ACME).await;
    for line in [
        "created company Acme",
        "created integration Acme / Main Phone Line",
        "created agent Acme / Front desk",
        "created line Acme / Main Phone Line / +15550001111",
        "4 created, 0 updated, 0 unchanged, 0 removed",
    ] {
        assert!(has(&printed, line), "{line}\n{printed}");
    }
    let directory = place.directory().await;
    let integration = directory.integrations().next().unwrap();
    let webhook = format!("https://voice.example.com/webhooks/twilio/{}/voice", integration.id);
    assert!(printed.contains(&webhook), "{printed}");
    assert!(printed.contains("Providers were not called"), "{printed}");
    assert_eq!((integration.company.as_str(), integration.id.get_version_num()), ("Acme", 7));
    let values = ["account_sid", "auth_token", "api_base"].map(|name| integration.credentials.text(name));
    assert_eq!((values, integration.provider), ([SID, TOKEN, ""], "twilio"));
    let line = directory.line(integration.id, "+15550001111").unwrap();
    assert_eq!(line.agent.greeting, "Hello, Acme, how can I help?");
    assert_eq!(line.agent.tts.voice, "en-us");
}

async fn applying_again_changes_nothing_and_keeps_the_ids(base: Base) {
    let place = Place::new(base);
    place.apply(ACME).await;
    let id = place.directory().await.integrations().next().unwrap().id;
    let printed = place.apply(ACME).await;
    assert!(has(&printed, "0 created, 0 updated, 4 unchanged, 0 removed"), "{printed}");
    assert_eq!(place.directory().await.integrations().next().unwrap().id, id);
}

async fn an_update_names_what_differs_and_no_value(base: Base) {
    let place = Place::new(base);
    place.apply(ACME).await;
    let changed = ACME.replace("Hello, Acme", "Good day, Acme").replace("${TWILIO_AUTH_TOKEN}", "another-token");
    let printed = place.apply(&changed).await;
    assert!(has(&printed, "updated integration Acme / Main Phone Line (auth_token)"), "{printed}");
    assert!(has(&printed, "updated agent Acme / Front desk (greeting)"), "{printed}");
    assert!(!printed.contains("another-token"), "{printed}");
    let directory = place.directory().await;
    assert!(directory.lines().next().unwrap().agent.greeting.starts_with("Good day"));
    assert_eq!(directory.integrations().next().unwrap().credentials.text("auth_token"), "another-token");
}

async fn a_companys_rules_are_set_key_by_key_and_checked(base: Base) {
    let place = Place::new(base);
    let company =
        |keys: &str| ACME.replace("name = \"Acme\"\n\n    [[int", &format!("name = \"Acme\"\n{keys}\n    [[int"));
    let printed = place
        .refuse(&company("allowed_countries = [\"Ukraine\"]\nquiet_hours.from = \"late\"\ncaps.calls = 3\ncolour = 1"))
        .await;
    for told in [
        "allowed_countries[0]: \"Ukraine\" is no ISO 3166-1 code",
        "quiet_hours.from: \"late\" is no time of day",
        "caps.calls: no such key",
        "colour: no such key; known here: allowed_countries, quiet_hours, caps",
    ] {
        assert!(printed.contains(told), "{told}\n{printed}");
    }
    place.apply(&company("allowed_countries = [\"UA\", \"PL\"]\ncaps.calls_per_hour = 7")).await;
    let quiet = "quiet_hours = { from = \"21:00\", to = \"08:00\", time_zone = \"Europe/Kyiv\" }";
    let printed = place.apply(&company(quiet)).await;
    assert!(printed.contains("updated    company      Acme (quiet_hours)"), "{printed}");
    assert!(place.apply(&company(quiet)).await.contains("unchanged  company      Acme"));
    let acme = place.open().await.company_named("Acme").await.unwrap().unwrap().settings.0;
    assert_eq!((&acme.allowed_countries[..], acme.caps.calls_per_hour), (&["UA".to_owned(), "PL".to_owned()][..], 7));
    assert_eq!(acme.caps.messages_per_hour, 60, "what the file does not give stays");
    assert_eq!(acme.quiet_hours.unwrap().to, "08:00");
}

async fn what_a_file_does_not_mention_stays_unless_pruned(base: Base) {
    let place = Place::new(base);
    place.apply(ACME).await;
    place.apply(ZENITH).await;
    assert_eq!(place.directory().await.integrations().count(), 2);

    let file = place.write("zenith.toml", ZENITH);
    let (good, printed) = place.apply_with(&file, true, false).await;
    assert!(good, "{printed}");
    for line in [
        "removed line Acme / Main Phone Line / +15550001111",
        "removed integration Acme / Main Phone Line",
        "removed agent Acme / Front desk",
        "removed company Acme",
        "0 created, 0 updated, 3 unchanged, 4 removed",
    ] {
        assert!(has(&printed, line), "{line}\n{printed}");
    }
    let directory = place.directory().await;
    assert_eq!(directory.integrations().map(|i| i.company.as_str()).collect::<Vec<_>>(), ["Zenith"]);
    assert_eq!(directory.lines().count(), 0);
}

async fn pruning_keeps_what_a_reference_names_and_refuses_an_empty_file(base: Base) {
    let place = Place::new(base);
    place.apply(ACME).await;
    let line = r#"
        [[line]]
        company = "Acme"
        integration = "Main Phone Line"
        number = "+15550002222"
        agent = "Front desk"
    "#;
    let (good, printed) = place.apply_with(&place.write("line.toml", line), true, false).await;
    assert!(good && has(&printed, "1 created, 0 updated, 0 unchanged, 1 removed"), "{printed}");
    let (good, printed) = place.apply_with(&place.write("empty.toml", ""), true, false).await;
    assert!(!good && printed.contains("would remove everything"), "{printed}");
    let numbers: Vec<String> = place.directory().await.lines().map(|line| line.number.clone()).collect();
    assert_eq!(numbers, ["+15550002222"]);
}

async fn a_dry_run_prints_the_difference_and_writes_nothing(base: Base) {
    let place = Place::new(base);
    let file = place.write("setup.toml", ACME);
    let (good, printed) = place.apply_with(&file, false, true).await;
    assert!(good && has(&printed, "4 created") && printed.contains("dry run"), "{printed}");
    assert!(printed.contains("<the id that it gets"), "{printed}");
    assert!(!place.dir.path().join("data").exists(), "nothing is created");

    place.apply(ACME).await;
    let changed = place.write("changed.toml", &ACME.replace("Hello, Acme", "Good day, Acme"));
    let (good, printed) = place.apply_with(&changed, false, true).await;
    assert!(good && has(&printed, "updated agent Acme / Front desk (greeting)"), "{printed}");
    let id = place.directory().await.integrations().next().unwrap().id.to_string();
    assert!(printed.contains(&id), "an integration that is there shows its real id\n{printed}");
    assert!(place.directory().await.lines().next().unwrap().agent.greeting.starts_with("Hello"));
}

async fn references_that_lead_nowhere_are_told_together_with_the_other_faults(base: Base) {
    let place = Place::new(base);
    let printed = place
        .refuse(
            r#"
            [[integration]]
            company = "Nobody"
            name = "Main"
            provider = "twilio"
            account_sid = "AC00000000000000000000000000000001"
            auth_token = "${MISSING_TOKEN}"
            [[integration]]
            company = "Ghost"
            name = "Other"
            provider = "twilio"
            account_sid = "AC00000000000000000000000000000001"
            auth_token = "t"
            [[line]]
            integration = "Main"
            number = "+15550001111"
            agent = "Nobody's agent"
            [[line]]
            integration = "Elsewhere"
            number = "+15550001111"
            agent = "x"
            "#,
        )
        .await;
    for expected in [
        "5 faults to correct, nothing was changed",
        "[[integration]] 1 \"Main\": company: no company \"Nobody\"",
        "[[integration]] 1 \"Main\": auth_token: the environment has no variable MISSING_TOKEN",
        "[[integration]] 2 \"Other\": company: no company \"Ghost\"",
        "[[line]] 1 \"+15550001111\": agent: no agent \"Nobody's agent\"",
        "[[line]] 2 \"+15550001111\": integration: no integration \"Elsewhere\"",
    ] {
        assert!(printed.contains(expected), "{expected}\n{printed}");
    }
    assert!(!place.dir.path().join("data").exists(), "a faulty file creates no store");
}

async fn credentials_that_contradict_each_other_are_told_before_anything_is_stored(base: Base) {
    let place = Place::new(base);
    let trunk = r#"
        [[company]]
        name = "Acme"
        [[integration]]
        company = "Acme"
        name = "Trunk"
        provider = "sip"
        [integration.sip]
        user = "acme"
    "#;
    let printed = place.refuse(trunk).await;
    assert!(printed.contains("[[integration]] 1 \"Trunk\": sip.registrar: is missing"), "{printed}");
    let printed = place.apply(&trunk.replace("user = \"acme\"", "peers = \"192.0.2.1\"")).await;
    assert!(has(&printed, "created integration Acme / Trunk"), "{printed}");
    assert!(!printed.contains("/webhooks/"), "a trunk posts nothing\n{printed}");
}

async fn a_line_needs_its_company_only_where_the_integrations_name_does_not_tell(base: Base) {
    let place = Place::new(base);
    place.apply(ACME).await;
    place.apply(ZENITH).await;
    let line = r#"
        [[line]]
        integration = "Main Phone Line"
        number = "+15550003333"
        agent = "Front desk"
    "#;
    let printed = place.refuse(line).await;
    assert!(printed.contains("company: several companies have an integration"), "{printed}");
    let printed = place.apply(&line.replace("integration =", "company = \"Zenith\"\nintegration =")).await;
    assert!(has(&printed, "created line Zenith / Main Phone Line / +15550003333"), "{printed}");
}

async fn a_workflow_is_read_beside_the_set_up_file_and_stored_as_text(base: Base) {
    let place = Place::new(base);
    let workflow = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("workflows/front-desk.toml"))
        .unwrap_or_else(|_| "start = \"hello\"\n".into());
    place.write("workflows/desk.toml", &workflow);
    place.apply(&format!("{ACME}\n workflow = \"workflows/desk.toml\"\n")).await;
    let directory = place.directory().await;
    assert_eq!(directory.lines().next().unwrap().agent.workflow.as_deref(), Some(workflow.as_str()));
    let hotel =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("workflows/hotel-booking.toml")).unwrap();
    place.write("workflows/hotel.toml", &hotel);
    let printed =
        place.refuse(&format!("{ACME}\n workflow = \"workflows/hotel.toml\"\n tools = [\"send_sms\"]\n")).await;
    for part in [
        "workflow: node \"price\": needs the tool `room_price`",
        "workflow: node \"question\": needs the tool `search_knowledge`",
    ] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    assert!(!printed.contains("send_sms"), "{printed}");
    place.write("workflows/desk.toml", "this is no workflow");
    let printed = place.refuse(&format!("{ACME}\n workflow = \"workflows/desk.toml\"\n")).await;
    assert!(printed.contains("[[agent]] 1 \"Front desk\": workflow: "), "{printed}");
}

async fn a_missing_public_url_is_warned_about(base: Base) {
    let place = Place { public_url: None, ..Place::new(base) };
    let printed = place.apply(ACME).await;
    assert!(printed.contains("warning: server.public_url is not set"), "{printed}");
    assert!(printed.contains("<server.public_url>/webhooks/twilio/"), "{printed}");
}

async fn credentials_are_sealed_on_disk_and_a_wrong_key_opens_nothing(base: Base) {
    let key = |letter: &str| Some(SecretString::from(letter.repeat(43) + "="));
    let place = Place { key: key("A"), ..Place::new(base) };
    place.apply(ACME).await;
    // Where the database is a server, its files are not here; the bytes are the same.
    for file in std::fs::read_dir(place.dir.path().join("data")).into_iter().flatten() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes()));
    }
    let error = Store::open(&place.store, key("I").as_ref()).await.unwrap_err().to_string();
    assert!(error.contains("security.secrets_key"), "{error}");
}

async fn a_running_server_uses_a_change_within_a_second(base: Base) {
    let place = Place::new(base);
    place.apply(ACME).await;
    let server = place.open().await;
    let cancel = CancellationToken::new();
    let mut watched = server.watch(cancel.clone()).await.unwrap();
    let before = watched.directory.load_full();

    let started = Instant::now();
    place.apply(&ACME.replace("Hello, Acme", "Good day, Acme")).await;
    let swapped = tokio::time::timeout(Duration::from_secs(10), watched.swaps.changed()).await;
    swapped.expect("the change was noticed").unwrap();
    let took = started.elapsed();
    assert!(took < Duration::from_secs(1), "it took {took:?}, the apply included");

    let greeting = |directory: &Directory| directory.lines().next().unwrap().agent.greeting.clone();
    assert!(greeting(&watched.directory.load()).starts_with("Good day"));
    assert!(greeting(&before).starts_with("Hello"), "a snapshot in use does not change");

    cancel.cancel();
    tokio::time::timeout(Duration::from_secs(10), watched.stopped()).await.expect("the task ends with its token");
}

async fn documents_beside_the_file_are_indexed_once_and_again_when_they_change(base: Base) {
    let place = Place::new(base);
    place.write("docs/rules.md", "# Pets\n\nDogs are welcome for ten euros a night.\n");
    place.write("docs/hours.txt", "We are open from nine to six.");
    let knowledge = |files: &str| {
        format!("{ACME}\n[[knowledge]]\ncompany = \"Acme\"\nname = \"Hotel\"\nlanguage = \"en\"\nfiles = [{files}]\n")
    };
    let both = knowledge(r#""docs/rules.md", "docs/hours.txt""#);
    let printed = place.apply(&both).await;
    for line in [
        "created knowledge Acme / Hotel",
        "indexed document Acme / Hotel / rules.md (1 passages)",
        "indexed document Acme / Hotel / hours.txt (1 passages)",
    ] {
        assert!(has(&printed, line), "{line}\n{printed}");
    }
    let found = async || {
        let store = place.open().await;
        let company = store.company_named("Acme").await.unwrap().unwrap().id;
        let ask = Lookup { query: "dogs".into(), language: "en".into(), limit: 3, ..Lookup::default() };
        KnowledgeBases::without_vectors(store).search_named(company, &["Hotel".into()], &ask).await.unwrap()
    };
    assert_eq!(found().await[0].text, "Dogs are welcome for ten euros a night.");
    let printed = place.apply(&both).await;
    assert!(has(&printed, "unchanged document Acme / Hotel / rules.md"), "{printed}");
    assert!(has(&printed, "unchanged knowledge Acme / Hotel"), "{printed}");
    place.write("docs/rules.md", "# Pets\n\nNo dogs.\n");
    let printed = place.apply(&both).await;
    assert!(has(&printed, "indexed document Acme / Hotel / rules.md"), "{printed}");
    assert_eq!(found().await.len(), 1, "the old words are gone");
    assert_eq!(found().await[0].text, "No dogs.");

    // What cannot be read is told, and costs nothing of what is there.
    let printed = place.refuse(&knowledge(r#""docs/gone.md""#)).await;
    assert!(printed.contains("[[knowledge]] 1 \"Hotel\": files: cannot read"), "{printed}");
    place.write("docs/rules.md", "\u{0}\u{1}\u{2}");
    let printed = place.refuse(&both).await;
    assert!(has(&printed, "FAILED document Acme / Hotel / rules.md"), "{printed}");
    assert_eq!(found().await[0].text, "No dogs.");
    let file = place.write("setup.toml", &knowledge(r#""docs/hours.txt""#));
    let (good, printed) = place.apply_with(&file, true, false).await;
    assert!(good && has(&printed, "removed document Acme / Hotel / rules.md"), "{printed}");
    assert!(found().await.is_empty());
}

async fn tools_and_servers_are_made_checked_sealed_and_pruned(base: Base) {
    let place = Place::new(base);
    let tools = |limit_ms: u32| {
        format!(
            r#"{ACME}
            [[tool]]
            company = "Acme"
            name = "free_rooms"
            description = "Rooms that are free on a day."
            method = "GET"
            url = "https://crm.example.com/rooms/{{day}}"
            limit_ms = {limit_ms}
            secret_headers = {{ Authorization = "Bearer ${{TWILIO_AUTH_TOKEN}}" }}
            [tool.parameters]
            type = "object"
            required = ["day"]
            [tool.parameters.properties.day]
            type = "string"
            [tool.filler]
            uk = "Дивлюся."

            [[mcp]]
            company = "Acme"
            name = "crm"
            url = "https://mcp.example.com/mcp"

            [[agent]]
            company = "Acme"
            name = "Second desk"
            tools = ["free_rooms", "crm.*", "send_dtmf"]
            "#
        )
    };
    let printed = place.apply(&tools(2000)).await;
    for line in ["created tool Acme / free_rooms", "created tool Acme / crm"] {
        assert!(has(&printed, line), "{line}\n{printed}");
    }
    assert!(!printed.contains(TOKEN), "{printed}");
    let directory = place.open().await.directory().await.unwrap();
    let made = directory.tools().find(|tool| tool.definition.name() == "free_rooms").unwrap();
    assert_eq!(made.secrets.expose()["Authorization"], format!("Bearer {TOKEN}"));
    assert!(!format!("{made:?}").contains(TOKEN));
    let printed = place.apply(&tools(2000)).await;
    assert!(has(&printed, "unchanged tool Acme / free_rooms"), "{printed}");
    let printed = place.apply(&tools(3000)).await;
    assert!(has(&printed, "updated tool Acme / free_rooms (definition)"), "{printed}");

    let wrong = format!(
        r#"{ACME}
        [[tool]]
        company = "Acme"
        name = "free rooms"
        description = "x"
        method = "GET"
        url = "https://crm.example.com/{{day}}"
        [[tool]]
        company = "Nowhere"
        name = "b"
        method = "GET"
        url = "https://crm.example.com/"
        [[mcp]]
        company = "Acme"
        name = "crm2"
        url = "https://user:pass@mcp.example.com/"
        colour = "red"
        [[agent]]
        company = "Acme"
        name = "Third"
        tools = ["fly", "free_rooms", "crm.find"]
        knowledge = ["Nowhere", "Rules"]
        [[knowledge]]
        company = "Acme"
        name = "Rules"
        files = []
        "#
    );
    let told = place.refuse(&wrong).await;
    for line in [
        "[[tool]] 1 \"free rooms\": name: write 1 to 64 letters",
        "[[tool]] 1 \"free rooms\": url: {day} is no argument",
        "[[tool]] 2 \"b\": missing field `description`",
        "unknown field `colour`",
        "[[agent]] 2 \"Third\": tools: no tool \"fly\"",
        "[[agent]] 2 \"Third\": knowledge: no knowledge base \"Nowhere\" of the company, which has \"Rules\"",
    ] {
        assert!(told.contains(line), "{line}\n{told}");
    }
    let rotated = place.open().await.rotate_secrets().await.unwrap();
    let store = Store::open(&place.store, rotated.key.as_ref().or(place.key.as_ref())).await.unwrap();
    let directory = store.directory().await.unwrap();
    let made = directory.tools().find(|tool| tool.definition.name() == "free_rooms").unwrap();
    assert_eq!(made.secrets.expose()["Authorization"], format!("Bearer {TOKEN}"), "sealed anew");
}
