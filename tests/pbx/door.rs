//! A webhook door as small as can be: it asks the provider whether it believes, acts once, and answers.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use offhook::providers;
use offhook::providers::credentials::Credentials;
use offhook::providers::provider::{Decision, Event, Provider, Refusal, WebhookRequest};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;

/// Longer than anything here takes on a machine that compiles beside the tests.
pub const SOON: Duration = Duration::from_secs(20);

pub async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// A client of the kind, as the set-up file would make it.
pub fn open(kind: &str, values: &[(&str, &str)]) -> Arc<dyn Provider> {
    let kind = providers::kind(kind).unwrap();
    let values = values.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
    (kind.open)(&Credentials::new(kind, values).unwrap()).unwrap()
}

#[derive(Default)]
pub struct Settings {
    /// Where offered calls go.
    pub route: Option<&'static str>,
    pub any_address: bool,
    /// Webhooks that are answered 503 after they were believed, before the first good answer.
    pub failures: usize,
    /// Answers every webhook so.
    pub always: Option<&'static str>,
}

#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Events that acted, each once.
    pub acted: Vec<Event>,
    /// Those that came again.
    pub repeated: usize,
    pub refused: Vec<Refusal>,
    once: HashSet<String>,
    failures: usize,
}

pub struct Door {
    pub url: String,
    seen: watch::Receiver<Seen>,
}

struct Shared {
    provider: Arc<dyn Provider>,
    settings: Settings,
    seen: watch::Sender<Seen>,
}

impl Door {
    pub async fn open(provider: Arc<dyn Provider>, settings: Settings) -> Self {
        let listener = listener().await;
        let url = format!("http://{}/webhooks/secret", listener.local_addr().unwrap());
        let (sender, seen) = watch::channel(Seen::default());
        let shared = Arc::new(Shared { provider, settings, seen: sender });
        let router = Router::new().fallback(receive).with_state(shared);
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(axum::serve(listener, service).into_future());
        Self { url, seen }
    }

    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    pub async fn until(&self, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let mut seen = self.seen.clone();
        timeout(SOON, seen.wait_for(|seen| wanted(seen))).await.expect("in time").unwrap().clone()
    }
}

async fn receive(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let content_type = headers.get("content-type").and_then(|value| value.to_str().ok());
    let url = uri.to_string();
    let request = WebhookRequest {
        method: method.as_str(),
        url: &url,
        query: uri.query().unwrap_or_default(),
        content_type,
        client: Some(peer.ip()),
        any_address: shared.settings.any_address,
        body: &body,
        ..WebhookRequest::default()
    };
    let webhook = match shared.provider.read_webhook(&request) {
        Ok(webhook) => webhook,
        Err(refusal) => {
            shared.seen.send_modify(|seen| seen.refused.push(refusal));
            return StatusCode::FORBIDDEN.into_response();
        }
    };
    let mut failed = false;
    shared.seen.send_modify(|seen| {
        failed = seen.failures < shared.settings.failures;
        seen.failures += usize::from(failed);
        match webhook.once.clone().is_none_or(|once| seen.once.insert(once)) {
            true => seen.acted.push(webhook.event.clone()),
            false => seen.repeated += 1,
        }
    });
    if failed {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if let Some(always) = shared.settings.always {
        return always.into_response();
    }
    let decision = match (&webhook.event, shared.settings.route) {
        (Event::CallOffered(_), Some(to)) => Decision::Route { to },
        _ => Decision::Noted,
    };
    let answer = shared.provider.answer(&webhook.event, &decision);
    ([("content-type", answer.content_type)], answer.body).into_response()
}

pub fn http() -> reqwest::Client {
    offhook::speech::http::client(false, SOON).unwrap()
}
