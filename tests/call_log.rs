//! Webhooks against the call log, through the desk: a simulated Ringostat whose webhooks are lost or made up, a real store.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use offhook::agent::tools::ToolRegistry;
use offhook::call::desk::Desk;
use offhook::call::engines::Engines;
use offhook::call::recorder::{Archive, RecordingConfig};
use offhook::call::registry::Calls;
use offhook::mock::ringostat::{LoggedCall, MockRingostat, RingostatConfig};
use offhook::mock::stage::Fault;
use offhook::providers;
use offhook::providers::credentials::Credentials;
use offhook::providers::provider::{CallNews, CallOutcome, CallState, Event, Webhook};
use offhook::store::calls::{CallFilter, CallSummary, NOT_IN_LOG};
use offhook::store::companies::CompanySettings;
use offhook::store::directory::Integration;
use offhook::store::integrations::NewIntegration;
use offhook::store::ledger::Ledger;
use offhook::store::{Part, Store};
use offhook::telephony::{Direction, PhoneNumber};
use stores::Base;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

#[path = "common/stores.rs"]
mod stores;

on_every_store! {
    the_call_log_has_the_last_word
    a_log_that_cannot_be_read_judges_nobody
}

/// A company with one Ringostat project.
struct Place {
    store: Store,
    desk: Desk,
    integration: Arc<Integration>,
    mock: MockRingostat,
    _folder: tempfile::TempDir,
}

impl Place {
    async fn new(base: &Base) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mock = MockRingostat::start(RingostatConfig::default(), listener).unwrap();
        let store = base.open().await;
        let company = store.add_company("Acme", &CompanySettings::default()).await.unwrap();
        let kind = providers::kind("ringostat").unwrap();
        let api = mock.base_url();
        let values = [
            ("auth_key", "mock-auth-key"),
            ("project_id", "12345"),
            ("api_base", &api),
            ("request_gap_ms", "0"),
            ("time_zone", "+02:00"),
        ];
        let values = values.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let credentials = Credentials::new(kind, values).unwrap();
        let new = NewIntegration { company: company.id, name: "PBX", kind, credentials: &credentials };
        store.add_integration(new).await.unwrap();
        let directory = Arc::new(ArcSwap::from_pointee(store.directory().await.unwrap()));
        let integration = directory.load().integrations().next().unwrap().clone();
        let folder = tempfile::tempdir().unwrap();
        let recording = RecordingConfig { dir: folder.path().into(), ..RecordingConfig::default() };
        let (archive, _) = Archive::start(recording).unwrap();
        let calls = Calls::new(
            Engines::default(),
            ToolRegistry::default(),
            Default::default(),
            Default::default(),
            archive,
            Ledger::none(),
            Default::default(),
        );
        let desk = Desk::new(calls, directory, Some(store.clone()), |path| format!("http://127.0.0.1{path}"));
        Self { store, desk, integration, mock, _folder: folder }
    }

    /// A webhook that came `minutes_ago` and was believed.
    async fn told(&self, id: &str, minutes_ago: i64, end: Option<CallOutcome>) {
        let news = CallNews {
            provider_call: Some(id.into()),
            direction: Some(Direction::Inbound),
            from: PhoneNumber::new("+380501234567"),
            to: PhoneNumber::new("+380441234567"),
            at: Some(Timestamp::now() - SignedDuration::from_mins(minutes_ago)),
            ..CallNews::default()
        };
        let state = match end {
            Some(outcome) => CallState::Ended { outcome, status: outcome.label().into(), talk_s: Some(66) },
            None => CallState::Ringing,
        };
        let webhook = Webhook { event: Event::CallProgressed { news, state }, once: Some(format!("{id}/{end:?}")) };
        self.desk.take(&self.integration, "", "/webhooks/ringostat", &webhook).await.unwrap();
        // It acts after it was taken.
        let acted = async {
            loop {
                match self.call(id).await {
                    Some(call) if end.is_none() || call.ended_at.is_some() => return,
                    _ => sleep(Duration::from_millis(5)).await,
                }
            }
        };
        timeout(Duration::from_secs(20), acted).await.expect("the event acts");
    }

    fn logged(&self, id: &str, minutes_ago: i64, disposition: &str) {
        self.mock.add_call(LoggedCall {
            uniqueid: id.into(),
            started: Timestamp::now() - SignedDuration::from_mins(minutes_ago),
            caller: "380501234567".into(),
            dst: "380441234567".into(),
            call_type: "in",
            disposition: disposition.into(),
            wait_s: 9,
            talk_s: if disposition == "ANSWERED" { 66 } else { 0 },
            connected_with: String::new(),
        });
    }

    async fn calls(&self) -> Vec<CallSummary> {
        let company = self.integration.company_id;
        self.store.calls(company, &CallFilter::default(), Part { after: None, limit: 100 }).await.unwrap().items
    }

    async fn call(&self, id: &str) -> Option<CallSummary> {
        self.calls().await.into_iter().find(|call| call.provider_call == id)
    }

    async fn audited(&self) -> Vec<(String, String)> {
        let log = self.store.audit_log(self.integration.company_id, Part { after: None, limit: 100 }).await.unwrap();
        let mut log: Vec<(String, String)> = log
            .items
            .into_iter()
            .filter(|entry| entry.actor == "call log")
            .map(|entry| (entry.action, entry.object))
            .collect();
        log.sort();
        log
    }
}

async fn the_call_log_has_the_last_word(base: Base) {
    let place = Place::new(&base).await;
    place.told("us1_-1.1", 50, Some(CallOutcome::Answered)).await;
    place.logged("us1_-1.1", 50, "ANSWERED");
    place.told("us1_-1.2", 40, Some(CallOutcome::Answered)).await;
    place.logged("us1_-1.2", 40, "NO ANSWER");
    place.told("us1_-1.3", 30, None).await;
    place.logged("us1_-1.3", 30, "BUSY");
    place.told("us1_-1.4", 20, Some(CallOutcome::Answered)).await;
    place.logged("us1_-1.5", 10, "ANSWERED");
    // Too young to be judged either way.
    place.told("us1_-1.6", 1, None).await;
    place.logged("us1_-1.7", 1, "ANSWERED");

    assert_eq!(place.desk.reconcile().await, 4);
    let outcome = async |id: &str| place.call(id).await.map(|call| call.outcome);
    assert_eq!(outcome("us1_-1.1").await, Some(CallOutcome::Answered));
    assert_eq!(outcome("us1_-1.2").await, Some(CallOutcome::NoAnswer), "the log corrects");
    assert_eq!(outcome("us1_-1.3").await, Some(CallOutcome::Busy), "the log ends");
    let forged = place.call("us1_-1.4").await.unwrap();
    assert_eq!((forged.provider_status.as_deref(), forged.outcome), (Some(NOT_IN_LOG), CallOutcome::Failed));
    let missed = place.call("us1_-1.5").await.expect("a missed call has a record");
    assert_eq!((missed.outcome, missed.talk_s), (CallOutcome::Answered, Some(66)));
    assert_eq!(outcome("us1_-1.6").await, Some(CallOutcome::Running));
    assert_eq!(outcome("us1_-1.7").await, None);
    let expected = [
        ("call.corrected", "us1_-1.2"),
        ("call.corrected", "us1_-1.3"),
        ("call.forged", "us1_-1.4"),
        ("call.missed", "us1_-1.5"),
    ];
    let expected = expected.map(|(action, id)| (action.to_owned(), id.to_owned()));
    assert_eq!(place.audited().await, expected);

    assert_eq!(place.desk.reconcile().await, 0, "what the log has decided stays decided");
    assert_eq!(place.audited().await, expected);
    place.desk.close(Duration::from_secs(5)).await;
}

async fn a_log_that_cannot_be_read_judges_nobody(base: Base) {
    let place = Place::new(&base).await;
    place.told("us1_-1.1", 50, Some(CallOutcome::Answered)).await;
    place.mock.fail(Fault::Closed, 10);
    assert_eq!(place.desk.reconcile().await, 0);
    assert_eq!(place.call("us1_-1.1").await.unwrap().outcome, CallOutcome::Answered);
    place.desk.close(Duration::from_secs(5)).await;
}
