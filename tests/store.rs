//! What the store promises, on every database: rows come back as they went in, another company's are not there, and what
//! must happen once happens once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use offhook::agent::profile::AgentProfile;
use offhook::cli::{key, user};
use offhook::conversation::transcript::{Line, ToolUse, Transcript};
use offhook::providers;
use offhook::providers::credentials::Credentials;
use offhook::providers::provider::{CallOutcome, WebhookSetting};
use offhook::speech::llm::Message as Spoken;
use offhook::store::agents::AgentRemoval;
use offhook::store::audit::Repeat;
use offhook::store::calls::{CallFilter, CallRecord, Interruptions, LegRecord, ProviderNews};
use offhook::store::companies::{Budget, Caps, CompanySettings, QuietHours};
use offhook::store::inbox::{NewEvent, Receipt};
use offhook::store::integrations::NewIntegration;
use offhook::store::ledger::Ledger;
use offhook::store::messages::NewMessage;
use offhook::store::nodes::{CRASHED, Node};
use offhook::store::users::Role;
use offhook::store::{At, Json, Part, Store};
use offhook::telephony::{CallEnd, CallId, Direction, EndReason, Party, PhoneNumber};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use stores::Base;
use uuid::Uuid;

#[path = "common/stores.rs"]
mod stores;

on_every_store! {
    a_company_keeps_its_settings_and_its_name_is_its_own
    credentials_come_back_to_us_and_never_to_a_person
    every_change_of_an_agent_is_a_version_that_stays
    a_lines_webhooks_are_saved_once_and_forgotten_when_restored
    another_companys_ids_find_nothing
    a_person_logs_in_with_the_password_and_works_with_a_role
    a_session_ends_with_its_time_its_password_or_its_membership
    a_key_is_shown_once_and_works_until_it_is_revoked
    a_call_record_comes_back_whole
    calls_are_listed_newest_first_page_by_page_and_filtered
    a_provider_may_call_a_call_by_several_names
    news_of_a_provider_come_in_any_order
    caps_count_what_was_dialled_since
    a_message_is_kept_once_in_its_thread
    an_event_is_taken_once_however_often_it_comes
    an_event_that_failed_comes_again_and_is_given_up_in_the_end
    a_request_with_an_idempotency_key_is_done_once
    the_audit_log_is_read_by_its_company
    the_ledger_writes_a_call_as_it_goes
    an_offered_call_is_on_disk_before_it_is_answered
    a_crashed_process_leaves_its_calls_closed_at_its_last_sign_of_life
    a_store_that_stands_still_holds_up_no_call_and_loses_no_record
    secrets_are_sealed_again_with_a_new_key
    keys_are_made_listed_and_revoked_by_command
    people_are_added_and_get_passwords_by_command
}

const SID: &str = "AC00000000000000000000000000000001";
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn twilio(token: &str) -> Credentials {
    let values = [("account_sid", SID), ("auth_token", token)];
    Credentials::from_stored(values.map(|(name, value)| (name.into(), value.into())).into())
}

/// A company with an integration, an agent and a line.
struct Place {
    company: Uuid,
    integration: Uuid,
    agent: Uuid,
    line: Uuid,
}

fn profile(greeting: &str) -> AgentProfile {
    AgentProfile { greeting: greeting.into(), ..toml::from_str("name = \"Front desk\"").unwrap() }
}

async fn place(store: &Store, name: &str) -> Place {
    let company = store.add_company(name, &CompanySettings::default()).await.unwrap().id;
    let kind = providers::kind("twilio").unwrap();
    let credentials = twilio(TOKEN);
    let new = NewIntegration { company, name: "Main", kind, credentials: &credentials };
    let integration = store.add_integration(new).await.unwrap();
    let agent = store.add_agent(company, &profile("Hello.")).await.unwrap();
    let line = store.add_line(company, integration, "+15550001111", agent).await.unwrap().unwrap();
    Place { company, integration, agent, line }
}

fn now() -> Timestamp {
    At::now().0
}

fn record(place: &Place, provider_call: &str) -> CallRecord {
    CallRecord {
        id: CallId::new(),
        direction: Direction::Inbound,
        company: "Acme".into(),
        company_id: place.company,
        integration_id: place.integration,
        provider: "twilio".into(),
        provider_call: provider_call.into(),
        line: "+15550001111".into(),
        from: PhoneNumber::new("+15550002222"),
        to: PhoneNumber::new("+15550001111"),
        agent: "Front desk".into(),
        agent_id: Some(place.agent),
        agent_version: Some(1),
        purpose: None,
        vars: Default::default(),
        started: now(),
        answered: Some(now()),
        ended: None,
        end: None,
        legs: vec![LegRecord {
            party: Party::Caller,
            transport: "twilio".into(),
            number: PhoneNumber::new("+15550002222"),
            started: now(),
            ended: None,
        }],
        transcript: Transcript::default(),
        remembered: BTreeMap::new(),
        handover: None,
        interruptions: Interruptions::default(),
        faults: Vec::new(),
        recorded: false,
    }
}

fn line(who: Party, text: &str, at: u64) -> Line {
    Line {
        who,
        text: text.into(),
        start_ms: at,
        end_ms: at + 900,
        heard: None,
        stages: BTreeMap::from([("endpoint".to_owned(), 301.5)]),
    }
}

async fn a_company_keeps_its_settings_and_its_name_is_its_own(base: Base) {
    let store = base.open().await;
    let settings = CompanySettings {
        allowed_countries: vec!["UA".into(), "PL".into()],
        quiet_hours: Some(QuietHours { from: "21:00".into(), to: "08:00".into(), time_zone: "Europe/Kyiv".into() }),
        caps: Caps { calls_per_hour: 5, ..Caps::default() },
        budget: Budget { tokens_per_day: 100_000, ..Budget::default() },
    };
    let company = store.add_company("Acme", &settings).await.unwrap();
    assert_eq!(store.company(company.id).await.unwrap().unwrap(), company);
    assert!(store.add_company("Acme", &settings).await.unwrap_err().is_duplicate());
    assert!(store.update_company(company.id, "Acme 2", &CompanySettings::default()).await.unwrap());
    let renamed = store.company_named("Acme 2").await.unwrap().unwrap();
    assert_eq!((renamed.id, renamed.settings.0), (company.id, CompanySettings::default()));
    assert!(!store.update_company(Uuid::now_v7(), "x", &settings).await.unwrap());
    let directory = store.directory().await.unwrap();
    assert_eq!(*directory.settings(company.id), CompanySettings::default());
}

async fn credentials_come_back_to_us_and_never_to_a_person(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let (credentials, secret) = store.integration_secrets(acme.company, acme.integration).await.unwrap().unwrap();
    assert_eq!(credentials.text("auth_token"), TOKEN);
    let secret = secret.unwrap();
    assert_eq!(secret.expose_secret().len(), 43);

    let info = store.integration(acme.company, acme.integration).await.unwrap().unwrap();
    assert_eq!((info.credentials["account_sid"].value.as_str(), info.credentials["account_sid"].secret), (SID, false));
    assert_eq!((info.credentials["auth_token"].value.as_str(), info.credentials["auth_token"].secret), ("cdef", true));
    let shown = serde_json::to_string(&info).unwrap();
    assert!(!shown.contains(TOKEN) && !shown.contains(secret.expose_secret()), "{shown}");

    // A short secret shows nothing of itself, and an update leaves the webhook's address as it was.
    let kind = providers::kind("twilio").unwrap();
    let new = NewIntegration { company: acme.company, name: "Main", kind, credentials: &twilio("short") };
    store.note_verified(acme.company, acme.integration, Ok("Acme Inc.")).await.unwrap();
    assert!(store.update_integration(acme.integration, new).await.unwrap());
    let info = store.integration(acme.company, acme.integration).await.unwrap().unwrap();
    assert_eq!(info.credentials["auth_token"].value, "");
    assert_eq!(info.verified_at, None, "new credentials are not verified yet");
    let (_, after) = store.integration_secrets(acme.company, acme.integration).await.unwrap().unwrap();
    assert_eq!(after.unwrap().expose_secret(), secret.expose_secret());

    store.note_verified(acme.company, acme.integration, Err("wrong token")).await.unwrap();
    let info = store.integration(acme.company, acme.integration).await.unwrap().unwrap();
    assert_eq!((info.last_error.as_deref(), info.account.as_deref()), (Some("wrong token"), Some("Acme Inc.")));
    assert!(store.add_integration(new).await.unwrap_err().is_duplicate());
}

async fn every_change_of_an_agent_is_a_version_that_stays(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    assert_eq!(store.update_agent(acme.company, acme.agent, &profile("Hello.")).await.unwrap(), Some(1));
    assert_eq!(store.update_agent(acme.company, acme.agent, &profile("Good day.")).await.unwrap(), Some(2));
    let versions = store.agent_versions(acme.company, acme.agent).await.unwrap().unwrap();
    let greetings: Vec<_> = versions.iter().map(|v| (v.version, v.profile.greeting.as_str())).collect();
    assert_eq!(greetings, [(2, "Good day."), (1, "Hello.")]);
    let directory = store.directory().await.unwrap();
    let line = directory.line(acme.integration, "+15550001111").unwrap();
    assert_eq!((line.agent_version, line.agent.greeting.as_str()), (2, "Good day."));
    assert_eq!(store.remove_agent(acme.company, acme.agent).await.unwrap(), AgentRemoval::InUse);
    assert!(store.remove_line(acme.company, acme.line).await.unwrap());
    assert_eq!(store.remove_agent(acme.company, acme.agent).await.unwrap(), AgentRemoval::Removed);
    assert_eq!(store.remove_agent(acme.company, acme.agent).await.unwrap(), AgentRemoval::Unknown);
}

async fn a_lines_webhooks_are_saved_once_and_forgotten_when_restored(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let setting = |value: &str| vec![WebhookSetting { name: "VoiceUrl".into(), value: value.into() }];
    assert!(store.keep_webhooks(acme.company, acme.line, &setting("https://old.example")).await.unwrap());
    assert!(!store.keep_webhooks(acme.company, acme.line, &setting("https://ours.example")).await.unwrap());
    let line = store.line(acme.company, acme.line).await.unwrap().unwrap();
    assert_eq!(line.saved_webhooks, Some(Json(setting("https://old.example"))));
    assert!(line.prepared_at.is_some());
    assert!(store.forget_webhooks(acme.company, acme.line).await.unwrap());
    let line = store.line(acme.company, acme.line).await.unwrap().unwrap();
    assert_eq!((line.saved_webhooks, line.prepared_at), (None, None));
    let again = store.add_line(acme.company, acme.integration, "+15550001111", acme.agent).await;
    assert!(again.unwrap_err().is_duplicate());
}

async fn another_companys_ids_find_nothing(base: Base) {
    let store = base.open().await;
    let (acme, other) = (place(&store, "Acme").await, place(&store, "Other").await);
    let call = CallRecord { ended: Some(now()), recorded: true, ..record(&acme, "CA1") };
    store.put_call(&call).await.unwrap();
    let (line, peer) = (PhoneNumber::new("+15550001111"), PhoneNumber::new("+15550002222"));
    let new = NewMessage {
        company: acme.company,
        integration: acme.integration,
        direction: Direction::Inbound,
        line: &line,
        peer: &peer,
        text: "hi",
        media: &[],
        provider_message: Some("SM1"),
        status: "received",
    };
    let message = store.add_message(new).await.unwrap().unwrap();
    let password = SecretString::from("correct horse");
    let user = store.add_user(acme.company, "anna@acme.example", "Anna", &password, Role::Owner).await.unwrap();
    let (key, _) = store.add_key(acme.company, "ci", Role::Viewer).await.unwrap();

    let c = other.company;
    let kind = providers::kind("twilio").unwrap();
    let credentials = twilio(TOKEN);
    let stolen = NewIntegration { company: c, name: "Mine", kind, credentials: &credentials };
    assert!(store.integration(c, acme.integration).await.unwrap().is_none());
    assert!(store.integration_secrets(c, acme.integration).await.unwrap().is_none());
    assert!(!store.update_integration(acme.integration, stolen).await.unwrap());
    assert!(!store.remove_integration(c, acme.integration).await.unwrap());
    assert!(!store.note_verified(c, acme.integration, Ok("x")).await.unwrap());
    assert!(store.line(c, acme.line).await.unwrap().is_none());
    assert!(!store.remove_line(c, acme.line).await.unwrap());
    assert!(!store.keep_webhooks(c, acme.line, &[]).await.unwrap());
    assert!(!store.forget_webhooks(c, acme.line).await.unwrap());
    assert!(!store.set_line_agent(c, acme.line, other.agent).await.unwrap(), "their line");
    assert!(!store.set_line_agent(acme.company, acme.line, other.agent).await.unwrap(), "their agent");
    assert_eq!(store.add_line(c, acme.integration, "+15550003333", other.agent).await.unwrap(), None);
    assert_eq!(store.add_line(c, other.integration, "+15550003333", acme.agent).await.unwrap(), None);
    assert!(store.agent(c, acme.agent).await.unwrap().is_none());
    assert!(store.agent_versions(c, acme.agent).await.unwrap().is_none());
    assert_eq!(store.update_agent(c, acme.agent, &profile("Bye.")).await.unwrap(), None);
    assert_eq!(store.remove_agent(c, acme.agent).await.unwrap(), AgentRemoval::Unknown);
    assert!(store.call(c, call.id).await.unwrap().is_none());
    assert!(store.call_summary(c, call.id).await.unwrap().is_none());
    assert!(store.recordings(c, call.id).await.unwrap().is_empty());
    assert_eq!(store.recordings(acme.company, call.id).await.unwrap().len(), 1);
    assert!(!store.add_recording(c, call.id, "twilio", "RE1", None).await.unwrap());
    assert!(store.call_by_alias(c, acme.integration, "CA1").await.unwrap().is_none());
    assert!(!store.add_alias(c, acme.integration, "CA2", call.id).await.unwrap());
    assert!(!store.note_provider(c, call.id, &ProviderNews::default()).await.unwrap());
    assert!(store.message(c, message).await.unwrap().is_none());
    assert!(store.thread(c, &line, &peer, 10).await.unwrap().is_empty());
    assert!(!store.note_sent(c, message, None, &line, "sent", None).await.unwrap());
    assert!(!store.note_message_status(c, acme.integration, "SM1", "sent", None).await.unwrap());
    assert!(store.user(c, user).await.unwrap().is_none());
    assert!(!store.set_role(c, user, Role::Owner).await.unwrap());
    assert!(!store.remove_user(c, user).await.unwrap());
    assert!(store.open_session(user, c, Duration::from_secs(60)).await.unwrap().is_none());
    assert!(!store.revoke_key(c, key.id).await.unwrap());
    let part = Part::default();
    assert!(store.calls(c, &CallFilter::default(), part).await.unwrap().items.is_empty());
    assert!(store.messages(c, None, part).await.unwrap().items.is_empty());
    assert_eq!(store.integrations(c, part).await.unwrap().items.len(), 1, "its own");
    assert_eq!(store.lines(c, part).await.unwrap().items.len(), 1, "its own");
    assert_eq!(store.agents(c, part).await.unwrap().items.len(), 1, "its own");
    assert!(store.users(c).await.unwrap().is_empty() && store.keys(c).await.unwrap().is_empty());
}

async fn a_person_logs_in_with_the_password_and_works_with_a_role(base: Base) {
    let store = base.open().await;
    let (acme, other) = (place(&store, "Acme").await, place(&store, "Other").await);
    assert!(!store.has_users().await.unwrap());
    let password = SecretString::from("correct horse");
    let short = store.add_user(acme.company, "a@b", "A", &"short".to_owned().into(), Role::Owner).await;
    assert!(short.unwrap_err().to_string().contains("at least 10"));
    let anna = store.add_user(acme.company, " Anna@Acme.example", "Anna", &password, Role::Owner).await.unwrap();
    assert!(store.has_users().await.unwrap());
    assert_eq!(store.log_in("anna@acme.EXAMPLE ", &password).await.unwrap(), Some(anna));
    assert_eq!(store.log_in("anna@acme.example", &"wrong horse".to_owned().into()).await.unwrap(), None);
    assert_eq!(store.log_in("nobody@acme.example", &password).await.unwrap(), None);

    // At a second company she is the same person, with another role there and the password that she had.
    let second = SecretString::from("another password");
    let same = store.add_user(other.company, "anna@acme.example", "?", &second, Role::Viewer).await.unwrap();
    assert_eq!(same, anna);
    let at: Vec<_> = store.memberships(anna).await.unwrap().into_iter().map(|m| (m.company, m.role)).collect();
    assert_eq!(at, [("Acme".to_owned(), Role::Owner), ("Other".to_owned(), Role::Viewer)]);
    assert!(store.log_in("anna@acme.example", &password).await.unwrap().is_some());
    assert!(store.set_role(other.company, anna, Role::Operator).await.unwrap());
    assert_eq!(store.user(other.company, anna).await.unwrap().unwrap().role, Role::Operator);

    let cookie = store.open_session(anna, acme.company, Duration::from_secs(60)).await.unwrap().unwrap();
    let session = store.session(cookie.expose_secret()).await.unwrap().unwrap();
    assert_eq!((session.person_id, session.company_id, session.role), (anna, acme.company, Role::Owner));
    assert!(store.session("no such cookie").await.unwrap().is_none());
    assert!(store.close_session(cookie.expose_secret()).await.unwrap());
    assert!(store.session(cookie.expose_secret()).await.unwrap().is_none());
}

async fn a_session_ends_with_its_time_its_password_or_its_membership(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let password = SecretString::from("correct horse");
    let anna = store.add_user(acme.company, "anna@acme.example", "Anna", &password, Role::Owner).await.unwrap();
    let open = async |life| store.open_session(anna, acme.company, life).await.unwrap().unwrap();
    let alive = async |cookie: &SecretString| store.session(cookie.expose_secret()).await.unwrap().is_some();

    let over = open(Duration::ZERO).await;
    assert!(!alive(&over).await);
    let cookie = open(Duration::from_secs(60)).await;
    assert!(alive(&cookie).await);
    assert!(store.set_password("anna@acme.example", &"another password".to_owned().into()).await.unwrap());
    assert!(!alive(&cookie).await);
    let cookie = open(Duration::from_secs(60)).await;
    assert!(store.remove_user(acme.company, anna).await.unwrap());
    assert!(!alive(&cookie).await);
    assert!(!store.has_users().await.unwrap(), "who belongs nowhere is forgotten");
}

async fn a_key_is_shown_once_and_works_until_it_is_revoked(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let (made, text) = store.add_key(acme.company, "ci", Role::Operator).await.unwrap();
    assert!(text.expose_secret().starts_with(&made.prefix) && made.prefix.len() == 10);
    let found = store.key(text.expose_secret()).await.unwrap().unwrap();
    assert_eq!((found.id, found.company_id, found.role), (made.id, acme.company, Role::Operator));
    assert!(store.keys(acme.company).await.unwrap()[0].last_used_at.is_some());
    assert!(store.key(&(text.expose_secret().to_owned() + "x")).await.unwrap().is_none());
    assert!(store.revoke_key(acme.company, made.id).await.unwrap());
    assert!(!store.revoke_key(acme.company, made.id).await.unwrap());
    assert!(store.key(text.expose_secret()).await.unwrap().is_none());
    let shown = serde_json::to_string(&store.keys(acme.company).await.unwrap()).unwrap();
    assert!(!shown.contains(text.expose_secret()), "{shown}");
}

async fn a_call_record_comes_back_whole(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let mut call = CallRecord {
        purpose: Some("remind of the appointment".into()),
        // A NUL in a caller's words must not keep the record from being written.
        handover: Some("wants a person".into()),
        remembered: BTreeMap::from([("name".to_owned(), json!("Ольга"))]),
        interruptions: Interruptions { suspected: 3, confirmed: 1, denied: 2 },
        faults: vec!["recognition: timed out".into()],
        recorded: true,
        ..record(&acme, "CA1")
    };
    call.transcript.lines.push(line(Party::Caller, "Добрий день", 100));
    call.transcript.lines.push(Line { heard: Some("We are".into()), ..line(Party::Agent, "We are open", 1500) });
    call.transcript.tools.push(ToolUse {
        name: "remember".into(),
        arguments: json!({ "key": "name" }),
        result: "{}".into(),
        at_ms: 1400,
    });
    call.close(now(), CallEnd::new(Party::Caller, EndReason::HungUp));
    store.put_call(&call).await.unwrap();
    store.put_call(&call).await.unwrap();
    assert_eq!(store.call(acme.company, call.id).await.unwrap().unwrap(), call);
    let summary = store.call_summary(acme.company, call.id).await.unwrap().unwrap();
    assert_eq!((summary.outcome, summary.end_reason), (CallOutcome::Answered, Some(EndReason::HungUp)));
    assert_eq!(store.recordings(acme.company, call.id).await.unwrap()[0].location, format!("{}/call.wav", call.id));

    let mut odd = record(&acme, "");
    odd.transcript.lines.push(line(Party::Caller, "a\0b", 0));
    store.put_call(&odd).await.unwrap();
    let stored = store.call(acme.company, odd.id).await.unwrap().unwrap();
    assert_eq!(stored.transcript.lines[0].text, "a\u{fffd}b");
}

async fn calls_are_listed_newest_first_page_by_page_and_filtered(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let mut ids = Vec::new();
    for n in 0..7 {
        let mut call = record(&acme, &format!("CA{n}"));
        if n % 2 == 0 {
            call.close(now(), CallEnd::new(Party::Agent, EndReason::Goodbye));
        }
        call.from = PhoneNumber::new(format!("+1555000{n}"));
        store.put_call(&call).await.unwrap();
        ids.push(call.id.uuid());
    }
    ids.reverse();
    let mut seen = Vec::new();
    let mut part = Part { after: None, limit: 3 };
    loop {
        let page = store.calls(acme.company, &CallFilter::default(), part).await.unwrap();
        seen.push(page.items.iter().map(|call| call.id).collect::<Vec<_>>());
        part.after = page.next;
        if page.next.is_none() {
            break;
        }
    }
    assert_eq!(seen.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1]);
    assert_eq!(seen.concat(), ids);
    let count =
        async |filter: CallFilter| store.calls(acme.company, &filter, Part::default()).await.unwrap().items.len();
    assert_eq!(count(CallFilter { phone: Some("+15550003".into()), ..Default::default() }).await, 1);
    assert_eq!(count(CallFilter { outcome: Some(CallOutcome::Running), ..Default::default() }).await, 3);
    assert_eq!(count(CallFilter { direction: Some(Direction::Outbound), ..Default::default() }).await, 0);
    assert_eq!(count(CallFilter { integration: Some(acme.integration), ..Default::default() }).await, 7);
    assert_eq!(
        count(CallFilter { to: Some(now() - jiff::SignedDuration::from_mins(5)), ..Default::default() }).await,
        0
    );
    assert_eq!(
        count(CallFilter { from: Some(now() - jiff::SignedDuration::from_mins(5)), ..Default::default() }).await,
        7
    );
}

async fn a_provider_may_call_a_call_by_several_names(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let (one, two) = (record(&acme, "CA1"), record(&acme, ""));
    store.put_call(&one).await.unwrap();
    store.put_call(&two).await.unwrap();
    let named = async |name: &str| store.call_by_alias(acme.company, acme.integration, name).await.unwrap();
    assert_eq!(named("CA1").await, Some(one.id));
    assert_eq!(named("CA9").await, None);
    assert!(store.add_alias(acme.company, acme.integration, "general-7", one.id).await.unwrap());
    assert!(!store.add_alias(acme.company, acme.integration, "general-7", two.id).await.unwrap(), "it is taken");
    assert_eq!(named("general-7").await, Some(one.id));
    let matched = async |around| {
        let (line, number, minute) = (Some("+15550001111"), "+15550002222", jiff::SignedDuration::from_mins(1));
        store.recent_call(acme.company, acme.integration, line, number, around, minute).await.unwrap()
    };
    assert_eq!(matched(now()).await, Some(two.id), "the newest");
    assert_eq!(matched(now() - jiff::SignedDuration::from_secs(90)).await, None);
    assert_eq!(matched(now() + jiff::SignedDuration::from_secs(90)).await, None);
    let own_name = async |id| store.call(acme.company, id).await.unwrap().unwrap().provider_call;
    assert!(store.add_alias(acme.company, acme.integration, "CA2", two.id).await.unwrap());
    assert_eq!(
        (own_name(one.id).await, own_name(two.id).await),
        ("CA1".into(), "CA2".into()),
        "the first name is its own"
    );
    store.put_call(&two).await.unwrap();
    assert_eq!(own_name(two.id).await, "CA2", "who does not know the name does not take it away");
    let adopted = store.adopt_call(&record(&acme, "CA2")).await.unwrap();
    assert_eq!(adopted, two.id, "nobody writes a second record of a call that has one");
}

async fn news_of_a_provider_come_in_any_order(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let call = CallRecord { answered: None, ..record(&acme, "CA1") };
    store.put_call(&call).await.unwrap();
    let at = At::now();
    let ended = ProviderNews {
        status: Some("no-answer".into()),
        talk_s: Some(0),
        ended: Some((at, CallOutcome::NoAnswer)),
        ..Default::default()
    };
    assert!(store.note_provider(acme.company, call.id, &ended).await.unwrap());
    let late = ProviderNews { answered_by: Some("901".into()), ..Default::default() };
    assert!(store.note_provider(acme.company, call.id, &late).await.unwrap());
    let again = ProviderNews { ended: Some((At::now(), CallOutcome::Busy)), ..Default::default() };
    assert!(store.note_provider(acme.company, call.id, &again).await.unwrap());
    let ringing =
        ProviderNews { status: Some("ringing".into()), answered_by: Some("902".into()), ..Default::default() };
    assert!(store.note_provider(acme.company, call.id, &ringing).await.unwrap());
    let call = store.call_summary(acme.company, call.id).await.unwrap().unwrap();
    assert_eq!((call.provider_status.as_deref(), call.answered_by.as_deref()), (Some("no-answer"), Some("901")));
    assert_eq!((call.ended_at, call.outcome), (Some(at), CallOutcome::NoAnswer), "the first end is the end");
}

async fn caps_count_what_was_dialled_since(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let out =
        |number: &str| CallRecord { direction: Direction::Outbound, to: PhoneNumber::new(number), ..record(&acme, "") };
    for number in ["+1", "+1", "+2"] {
        store.put_call(&out(number)).await.unwrap();
    }
    store.put_call(&record(&acme, "CA1")).await.unwrap();
    let hour = now() - jiff::SignedDuration::from_hours(1);
    assert_eq!(store.calls_placed(acme.company, None, hour).await.unwrap(), 3);
    assert_eq!(store.calls_placed(acme.company, Some("+1"), hour).await.unwrap(), 2);
    assert_eq!(store.calls_placed(acme.company, None, now() + jiff::SignedDuration::from_secs(1)).await.unwrap(), 0);
    assert_eq!(store.messages_placed(acme.company, None, hour).await.unwrap(), 0);
}

async fn a_message_is_kept_once_in_its_thread(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let (ours, theirs) = (PhoneNumber::new("+15550001111"), PhoneNumber::new("+15550002222"));
    let incoming = NewMessage {
        company: acme.company,
        integration: acme.integration,
        direction: Direction::Inbound,
        line: &ours,
        peer: &theirs,
        text: "Are you open?",
        media: &["https://m.example/1".to_owned()],
        provider_message: Some("SM1"),
        status: "received",
    };
    let first = store.add_message(incoming).await.unwrap().unwrap();
    assert_eq!(store.add_message(incoming).await.unwrap(), None, "delivered twice, kept once");
    let outgoing = NewMessage {
        direction: Direction::Outbound,
        text: "Until ten.",
        media: &[],
        provider_message: None,
        status: "queued",
        ..incoming
    };
    let second = store.add_message(outgoing).await.unwrap().unwrap();
    assert!(store.note_sent(acme.company, second, Some("SM2"), &ours, "accepted", None).await.unwrap());
    let error = Some("30007: carrier violation");
    assert!(store.note_message_status(acme.company, acme.integration, "SM2", "undelivered", error).await.unwrap());
    assert!(store.note_message_status(acme.company, acme.integration, "SM2", "sent", None).await.unwrap(), "too late");
    let rounds = [
        Spoken::Assistant { content: String::new(), tool_calls: vec![] },
        Spoken::Tool { tool_call_id: "call_1".into(), content: "{}".into() },
    ];
    store.note_rounds(acme.company, second, &rounds).await.unwrap();
    let thread = store.thread(acme.company, &ours, &theirs, 10).await.unwrap();
    assert_eq!(thread.iter().map(|m| m.text.as_str()).collect::<Vec<_>>(), ["Are you open?", "Until ten."]);
    assert_eq!((thread[0].rounds.clone(), thread[1].rounds.clone().unwrap().0.as_slice()), (None, rounds.as_slice()));
    assert_eq!(store.thread(acme.company, &ours, &theirs, 1).await.unwrap()[0].text, "Until ten.", "the last ones");
    let (one, two) =
        (store.message(acme.company, first).await.unwrap(), store.message(acme.company, second).await.unwrap());
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!((two.status.as_str(), two.error.as_deref()), ("undelivered", error));
    assert_eq!(one.media.0, ["https://m.example/1"]);
    let page = store.messages(acme.company, Some("+15550002222"), Part { after: None, limit: 1 }).await.unwrap();
    assert_eq!((page.items[0].id, page.next), (second, Some(second)));
    let hour = now() - jiff::SignedDuration::from_hours(1);
    assert_eq!(store.messages_placed(acme.company, None, hour).await.unwrap(), 1);
}

fn event<'a>(place: &Place, once: Option<&'a str>) -> NewEvent<'a> {
    NewEvent {
        company: place.company,
        integration: place.integration,
        once,
        route: "status",
        method: "POST",
        url: "https://voice.example.com/webhooks/twilio/x/status",
        content_type: Some("application/x-www-form-urlencoded"),
        body: b"CallSid=CA1",
    }
}

async fn an_event_is_taken_once_however_often_it_comes(base: Base) {
    let store = base.open().await;
    let (acme, other) = (place(&store, "Acme").await, place(&store, "Other").await);
    let came = futures::future::join_all((0..8).map(|_| store.receive(event(&acme, Some("CA1 completed"))))).await;
    let taken: Vec<_> =
        came.into_iter().map(Result::unwrap).filter(|receipt| matches!(receipt, Receipt::Taken(_))).collect();
    assert_eq!(taken.len(), 1);
    // The same name at another integration is another thing, and so is each one without a name.
    assert!(matches!(store.receive(event(&other, Some("CA1 completed"))).await.unwrap(), Receipt::Taken(_)));
    for _ in 0..2 {
        assert!(matches!(store.receive(event(&acme, None)).await.unwrap(), Receipt::Taken(_)));
    }
    let Receipt::Taken(id) = taken[0] else { unreachable!("filtered above") };
    store.done(id).await.unwrap();
    assert_eq!(store.receive(event(&acme, Some("CA1 completed"))).await.unwrap(), Receipt::Again);
    assert_eq!(store.forget_events(At::of(now() + jiff::SignedDuration::from_secs(1))).await.unwrap(), 1);
}

async fn an_event_that_failed_comes_again_and_is_given_up_in_the_end(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let Receipt::Taken(id) = store.receive(event(&acme, Some("x"))).await.unwrap() else { panic!("it is the first") };
    assert!(store.take_due(10).await.unwrap().is_empty(), "it is being worked on");
    for attempt in 1..8 {
        store.failed(id, "the disk is full").await.unwrap();
        assert!(store.take_due(10).await.unwrap().is_empty(), "not before its time");
        base.sql("UPDATE inbox SET next_at = 0").await;
        let due = store.take_due(10).await.unwrap();
        assert_eq!(due.iter().map(|event| (event.id, event.attempts)).collect::<Vec<_>>(), [(id, attempt + 1)]);
        assert_eq!(due[0].body, b"CallSid=CA1");
    }
    store.failed(id, "the disk is full").await.unwrap();
    base.sql("UPDATE inbox SET next_at = 0").await;
    assert!(store.take_due(10).await.unwrap().is_empty(), "it was given up");
    assert_eq!(store.receive(event(&acme, Some("x"))).await.unwrap(), Receipt::Again);
}

async fn a_request_with_an_idempotency_key_is_done_once(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let begin = async |key: &str, request: &[u8]| store.begin_once(acme.company, key, request).await.unwrap();
    let at_once = futures::future::join_all((0..6).map(|_| begin("k", b"POST /calls {}"))).await;
    assert_eq!(at_once.iter().filter(|repeat| **repeat == Repeat::First).count(), 1);
    assert_eq!(begin("k", b"POST /calls {}").await, Repeat::Running);
    assert_eq!(begin("k", b"POST /calls {other}").await, Repeat::Different);
    store.end_once(acme.company, "k", 201, "{\"id\":1}").await.unwrap();
    assert_eq!(begin("k", b"POST /calls {}").await, Repeat::Answered { status: 201, body: "{\"id\":1}".into() });
    store.forget_once(acme.company, "k").await.unwrap();
    assert!(matches!(begin("k", b"POST /calls {}").await, Repeat::Answered { .. }), "an answer is not forgotten so");
    assert_eq!(begin("k2", b"x").await, Repeat::First);
    store.forget_once(acme.company, "k2").await.unwrap();
    assert_eq!(begin("k2", b"y").await, Repeat::First);
    assert_eq!(store.forget_answers(At::of(now() + jiff::SignedDuration::from_secs(1))).await.unwrap(), 2);
}

async fn the_audit_log_is_read_by_its_company(base: Base) {
    let store = base.open().await;
    let (acme, other) = (place(&store, "Acme").await, place(&store, "Other").await);
    let detail = json!({ "reason": "forged" });
    store.audit(Some(acme.company), "203.0.113.7", "webhook.refused", "Main", &detail).await.unwrap();
    store.audit(None, "203.0.113.7", "webhook.refused", "?", &detail).await.unwrap();
    let log = store.audit_log(acme.company, Part::default()).await.unwrap();
    assert_eq!((log.items.len(), log.items[0].detail.0.clone()), (1, detail));
    assert!(store.audit_log(other.company, Part::default()).await.unwrap().items.is_empty());
}

const PATIENCE: Duration = Duration::from_secs(20);

async fn the_ledger_writes_a_call_as_it_goes(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let (ledger, task, _) = Ledger::start(store.clone()).await.unwrap();
    let mut calls: Vec<CallRecord> = (0..20).map(|n| record(&acme, &format!("CA{n}"))).collect();
    for round in 0..5 {
        for call in &mut calls {
            call.transcript.lines.push(line(Party::Caller, &format!("line {round}"), round * 1000));
            ledger.note(call.clone());
        }
        assert!(ledger.flush(PATIENCE).await);
        for call in &calls {
            assert_eq!(store.call(acme.company, call.id).await.unwrap().as_ref(), Some(call), "round {round}");
        }
    }
    for call in &mut calls {
        call.close(now(), CallEnd::new(Party::Caller, EndReason::HungUp));
        ledger.note(call.clone());
    }
    task.stop(PATIENCE).await;
    assert_eq!(ledger.waiting(), 0);
    for call in &calls {
        assert_eq!(store.call(acme.company, call.id).await.unwrap().as_ref(), Some(call));
    }
}

async fn an_offered_call_is_on_disk_before_it_is_answered(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let (ledger, task, _) = Ledger::start(store.clone()).await.unwrap();
    let offered = CallRecord { answered: None, legs: Vec::new(), ..record(&acme, "CA1") };
    ledger.offer(offered.clone());
    assert!(ledger.flush(PATIENCE).await);
    assert_eq!(store.call(acme.company, offered.id).await.unwrap(), Some(offered));
    task.stop(PATIENCE).await;
}

async fn a_crashed_process_leaves_its_calls_closed_at_its_last_sign_of_life(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    // A process that was here and is gone: the ledger is dropped with its runtime, and its pid is not this one's.
    let (ledger, task, _) = Ledger::start(store.clone()).await.unwrap();
    let (open, over) = (record(&acme, "CA1"), {
        let mut over = record(&acme, "CA2");
        over.close(now(), CallEnd::new(Party::Caller, EndReason::HungUp));
        over
    });
    ledger.note(open.clone());
    ledger.note(over.clone());
    assert!(ledger.flush(PATIENCE).await);
    // Another process that looks while this one lives closes nothing.
    let looker = Node::this();
    assert!(store.bury(&looker).await.unwrap().is_empty());
    base.sql("UPDATE node SET pid = 0").await;
    let closed = store.bury(&looker).await.unwrap();
    assert_eq!(closed.iter().map(|call| call.call()).collect::<Vec<_>>(), [open.id]);
    let stored = store.call(acme.company, open.id).await.unwrap().unwrap();
    assert_eq!(stored.end, Some(CRASHED));
    assert_eq!(stored.ended, Some(closed[0].ended_at.0));
    assert!(stored.ended.unwrap() >= open.started && stored.legs[0].ended == stored.ended);
    assert_eq!(store.call(acme.company, over.id).await.unwrap(), Some(over), "what was closed stays as it was");
    assert!(store.bury(&looker).await.unwrap().is_empty(), "once");

    // It was alive after all, only out of sight: what it says is the truth.
    let mut open = open;
    open.close(now(), CallEnd::new(Party::Agent, EndReason::Goodbye));
    ledger.note(open.clone());
    // A process that says goodbye with a call open is found out, too.
    let left = record(&acme, "CA3");
    ledger.note(left.clone());
    task.stop(PATIENCE).await;
    assert_eq!(store.call(acme.company, open.id).await.unwrap().unwrap().end, open.end);
    assert_eq!(store.bury(&looker).await.unwrap().len(), 1);
    assert_eq!(store.call(acme.company, left.id).await.unwrap().unwrap().end, Some(CRASHED));
}

async fn a_store_that_stands_still_holds_up_no_call_and_loses_no_record(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let (ledger, task, _) = Ledger::start(store.clone()).await.unwrap();
    let stall = base.stall().await;
    let mut calls: Vec<CallRecord> = (0..300).map(|n| record(&acme, &format!("CA{n}"))).collect();
    let began = Instant::now();
    for call in &mut calls {
        ledger.offer(CallRecord { answered: None, ..call.clone() });
        for round in 0..10 {
            call.transcript.lines.push(line(Party::Caller, "hello", round * 1000));
            ledger.note(call.clone());
        }
    }
    let noted = began.elapsed();
    assert!(noted < Duration::from_secs(1), "3300 notes took {noted:?}");
    assert!(!ledger.flush(Duration::from_millis(100)).await, "nothing can be on disk");
    assert!(began.elapsed() < noted + Duration::from_millis(300), "and nobody waits longer than they said");
    assert!(ledger.waiting() >= calls.len() - 128, "what is not being tried waits: {}", ledger.waiting());
    stall.end().await;
    let began = Instant::now();
    assert!(ledger.flush(PATIENCE).await);
    println!("3300 notes of 300 calls taken in {noted:?}, written in {:?}", began.elapsed());
    for call in &calls {
        assert_eq!(store.call(acme.company, call.id).await.unwrap().as_ref(), Some(call));
    }
    assert_eq!(ledger.waiting(), 0);
    task.stop(PATIENCE).await;
}

/// What a command printed.
fn printed(out: Vec<u8>) -> String {
    String::from_utf8(out).unwrap()
}

async fn keys_are_made_listed_and_revoked_by_command(base: Base) {
    let store = base.open().await;
    let run = async |command: key::Command| {
        let mut out = Vec::new();
        key::key(command, &store, &mut out).await.map(|_| printed(out)).map_err(|error| format!("{error:#}"))
    };
    let create = |name: &str| key::Command::Create { name: name.into(), company: None, role: Role::Viewer };
    assert!(run(create("ci")).await.unwrap_err().contains("no company yet"));
    let acme = place(&store, "Acme").await;
    let made = run(create("ci")).await.unwrap();
    let text = made.lines().next().unwrap().to_owned();
    assert_eq!(store.key(&text).await.unwrap().unwrap().role, Role::Viewer);
    let listed = run(key::Command::List { company: None }).await.unwrap();
    assert!(listed.contains("\"ci\"") && listed.contains("last used") && !listed.contains(&text), "{listed}");
    let prefix = text[..10].to_owned();
    let revoke = key::Command::Revoke { key: prefix, company: Some("Acme".into()) };
    run(revoke.clone()).await.unwrap();
    assert!(store.key(&text).await.unwrap().is_none());
    assert!(run(revoke).await.unwrap_err().contains("not revoked"));
    place(&store, "Other").await;
    assert!(run(create("ci")).await.unwrap_err().contains("--company"));
    let rotated = run(key::Command::RotateSecrets).await.unwrap();
    assert!(rotated.contains("4 sealed values"), "{rotated}");
    let log = store.audit_log(acme.company, Part::default()).await.unwrap();
    let actions: Vec<_> = log.items.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["key.revoked", "key.created"]);
}

async fn people_are_added_and_get_passwords_by_command(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let run = async |command: user::Command, input: &str| {
        let mut out = Vec::new();
        let done = user::user(command, &store, &mut input.as_bytes(), &mut out).await;
        done.map(|_| printed(out)).map_err(|error| format!("{error:#}"))
    };
    let add = |email: &str| user::Command::Add {
        email: email.into(),
        name: "Anna".into(),
        company: None,
        role: Role::Operator,
    };
    assert!(run(add("anna"), "correct horse\n").await.unwrap_err().contains("no e-mail"));
    assert!(run(add("anna@acme.example"), "short\n").await.unwrap_err().contains("at least 10"));
    run(add("anna@acme.example"), "correct horse\n").await.unwrap();
    let known =
        async |password: &str| store.log_in("anna@acme.example", &password.to_owned().into()).await.unwrap().is_some();
    assert!(known("correct horse").await);
    let listed = run(user::Command::List { company: None }, "").await.unwrap();
    assert!(listed.contains("anna@acme.example") && listed.contains("operator"), "{listed}");
    run(user::Command::Passwd { email: "anna@acme.example".into() }, "battery staple\r\n").await.unwrap();
    assert!(known("battery staple").await && !known("correct horse").await);
    let nobody = user::Command::Passwd { email: "nobody@acme.example".into() };
    assert!(run(nobody, "battery staple\n").await.unwrap_err().contains("no user"));
    assert_eq!(store.audit_log(acme.company, Part::default()).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn a_rotation_that_was_cut_off_is_finished_by_the_next_start() {
    let base = Base::sqlite();
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let (key, next) = ["key", "key.next"].map(|end| base.dir.path().join(format!("data/offhook.db.{end}"))).into();
    let old = std::fs::read(&key).unwrap();
    store.rotate_secrets().await.unwrap();
    store.close().await;
    // As after the commit, and before the new key took the old one's place.
    std::fs::rename(&key, &next).unwrap();
    std::fs::write(&key, &old).unwrap();
    let store = base.open().await;
    let (credentials, _) = store.integration_secrets(acme.company, acme.integration).await.unwrap().unwrap();
    assert_eq!(credentials.text("auth_token"), TOKEN);
    assert!(!next.exists() && std::fs::read(&key).unwrap() != old);
    store.close().await;

    // As before the commit: the next key opens nothing, and the old one goes on.
    let good = std::fs::read(&key).unwrap();
    std::fs::write(&next, &old).unwrap();
    base.open().await;
    assert_eq!(std::fs::read(&key).unwrap(), good);
}

async fn secrets_are_sealed_again_with_a_new_key(base: Base) {
    let store = base.open().await;
    let acme = place(&store, "Acme").await;
    let server = base.open().await;
    let rotated = store.rotate_secrets().await.unwrap();
    assert_eq!(rotated.values, 2, "credentials and the webhook's secret");
    let (credentials, _) = store.integration_secrets(acme.company, acme.integration).await.unwrap().unwrap();
    assert_eq!(credentials.text("auth_token"), TOKEN);
    match rotated.key {
        // The key lies in a file: a running server finds the new one, the next start too.
        None => {
            let directory = server.directory().await.unwrap();
            assert_eq!(directory.integration(acme.integration).unwrap().credentials.text("auth_token"), TOKEN);
            base.open().await;
        }
        Some(key) => {
            assert!(Store::open(&base.config, base.key.as_ref()).await.is_err(), "the old key opens nothing");
            let again = Store::open(&base.config, Some(&key)).await.unwrap();
            assert!(again.integration_secrets(acme.company, acme.integration).await.unwrap().is_some());
        }
    }
}
