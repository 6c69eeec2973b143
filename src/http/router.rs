//! All routes, what their handlers share, and the limits around them.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::error;

use crate::call::registry::{CallSetup, Calls, Refused};
use crate::http::api::{self, ApiState};
use crate::http::config::{ServerUrls, TrustedProxies};
use crate::http::problem::Problem;
use crate::http::tokens::MediaTokens;
use crate::http::webhooks::Door;
use crate::http::{media_ws, webhooks};
use crate::store::directory::Directory;
use crate::transport::leg::Leg;
use crate::transport::twilio_ws::TwilioWsConfig;

/// A webhook's body; Twilio's largest are a few kilobytes.
const WEBHOOK_BODY_BYTES: usize = 64 * 1024;
/// A webhook is answered from memory: what takes longer is a client that does not finish its request. Twilio itself
/// gives up after 15 s.
const WEBHOOK_LIMIT: Duration = Duration::from_secs(10);

/// Whoever runs the calls.
pub trait TakesCalls: Send + Sync + 'static {
    /// Whether a call would be taken now.
    fn ready(&self) -> Result<(), Refused>;
    /// Writes down a call that is about to be answered; takes a tenth of a second at most.
    fn offer<'a>(&'a self, _setup: &'a CallSetup) -> BoxFuture<'a, ()> {
        futures::future::ready(()).boxed()
    }
    /// Takes the call; a refusal drops the leg, which hangs up.
    fn start(&self, setup: CallSetup, leg: Leg) -> Result<(), Refused>;
}

impl TakesCalls for Calls {
    fn ready(&self) -> Result<(), Refused> {
        Calls::ready(self)
    }

    fn offer<'a>(&'a self, setup: &'a CallSetup) -> BoxFuture<'a, ()> {
        Calls::offer(self, setup).boxed()
    }

    fn start(&self, setup: CallSetup, leg: Leg) -> Result<(), Refused> {
        Calls::start(self, setup, leg).map(drop)
    }
}

/// What the handlers share. Cheap to clone.
#[derive(Clone)]
pub struct AppState {
    pub calls: Arc<dyn TakesCalls>,
    pub directory: Arc<ArcSwap<Directory>>,
    pub tokens: Arc<MediaTokens>,
    pub urls: Arc<ServerUrls>,
    pub proxies: Arc<TrustedProxies>,
    pub door: Door,
    pub media: TwilioWsConfig,
    /// The text of `/metrics`.
    pub render_metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Cancelled when the server stops taking calls; running ones go on.
    pub draining: CancellationToken,
    /// Holds every media websocket until it is closed: whoever shuts down waits for it.
    pub sockets: TaskTracker,
}

impl AppState {
    /// Whether a call would be taken now.
    pub(super) fn ready(&self) -> Result<(), Refused> {
        if self.draining.is_cancelled() { Err(Refused::Draining) } else { self.calls.ready() }
    }
}

/// The doors of the providers, health and metrics.
pub fn router(state: AppState) -> Router {
    assemble(state, None)
}

/// The same with the API.
pub fn with_api(state: AppState, api: ApiState) -> Router {
    assemble(state, Some(api))
}

fn assemble(state: AppState, api: Option<ApiState>) -> Router {
    // No request is traced with its path: the path of a media websocket is a secret.
    let webhooks = Router::new()
        .route("/webhooks/{provider}/{integration}/{last}", get(webhooks::receive).post(webhooks::receive))
        .layer(DefaultBodyLimit::max(WEBHOOK_BODY_BYTES))
        .layer(middleware::from_fn(limit_time));
    Router::new()
        .merge(webhooks)
        .route("/media/twilio/{token}", get(media_ws::twilio))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .merge(api.map_or_else(Router::new, api::router))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND) })
        .method_not_allowed_fallback(|| async { Problem::new(StatusCode::METHOD_NOT_ALLOWED) })
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(state)
}

async fn limit_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(WEBHOOK_LIMIT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::new(StatusCode::REQUEST_TIMEOUT).into_response(),
    }
}

async fn readyz(State(state): State<AppState>) -> Response {
    let detail = match state.ready() {
        Ok(()) => return "ready\n".into_response(),
        Err(Refused::Draining) => "The server is shutting down.",
        Err(Refused::Full) => "The server has as many calls as it may take.",
        Err(_) => "The server takes no calls.",
    };
    Problem::because(StatusCode::SERVICE_UNAVAILABLE, detail).into_response()
}

async fn metrics_text(State(state): State<AppState>) -> Response {
    // The Prometheus text format's own content type.
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], (state.render_metrics)()).into_response()
}

fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    error!(message = message.unwrap_or("not a text"), "request handler panicked");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR).into_response()
}
