//! The JSON API under `/api/v1`: one file a resource, one description of all of them (OpenAPI), and what surrounds every
//! request: limits on body and time, problem JSON, an audit entry for a change.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Json, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;
use uuid::Uuid;

use crate::agent::tools::fetch::Fetcher;
use crate::call::company_tools::MadeTools;
use crate::call::handle::CallEvent;
use crate::call::outbound::Outbound;
use crate::call::registry::Calls;
use crate::call::sip::SipLines;
use crate::http::auth::{Caller, LogIns, SetupLink, Token};
use crate::http::config::{ServerUrls, TrustedProxies};
use crate::store::Store;
use crate::store::knowledge::KnowledgeBases;
use crate::telephony::CallId;

mod accounts;
mod agents;
mod audit;
mod calls;
mod companies;
mod first;
pub(crate) mod input;
mod integrations;
mod keys;
mod knowledge;
mod lines;
mod messages;
mod once;
pub(crate) mod problem;
mod recording;
mod session;
mod tools;
mod users;
mod webhooks;
mod wiring;

use problem::{ApiError, Kind};

/// A body; an agent with its prompt and workflow (256 KiB) is the largest.
const BODY_BYTES: usize = 1 << 20;
/// A request until its answer begins. A provider that is tried three times takes longest.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// Onlookers of running calls at once; each costs a connection and a copy of every event.
const WATCHERS: usize = 256;

/// The calls that run in this process, as the API needs them.
pub trait LiveCalls: Send + Sync + 'static {
    /// What happens on all calls, from now on.
    fn events(&self) -> broadcast::Receiver<CallEvent>;
    fn is_running(&self, call: CallId) -> bool;
    /// `false`: it does not run here.
    fn hang_up(&self, call: CallId) -> bool;
}

impl LiveCalls for Calls {
    fn events(&self) -> broadcast::Receiver<CallEvent> {
        Calls::events(self)
    }

    fn is_running(&self, call: CallId) -> bool {
        self.find(call).is_some()
    }

    fn hang_up(&self, call: CallId) -> bool {
        Calls::hang_up(self, call)
    }
}

/// What the API's handlers share. Cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    pub store: Store,
    /// How its documents are read and found.
    pub knowledge: KnowledgeBases,
    /// How companies' tools are tried out, where the server has a client for them.
    pub fetcher: Option<Fetcher>,
    /// Their MCP servers that run as processes.
    pub made: Option<MadeTools>,
    pub calls: Arc<dyn LiveCalls>,
    pub outbound: Arc<dyn Outbound>,
    pub urls: Arc<ServerUrls>,
    pub proxies: Arc<TrustedProxies>,
    /// Lines that talk by SIP, where it is spoken.
    pub sip: Option<SipLines>,
    /// `recording.dir`.
    pub recordings: Arc<Path>,
    /// Of `security.admin_token`.
    pub admin: Option<Token>,
    /// The link of the first start, where there is nobody yet.
    pub setup: Option<Arc<SetupLink>>,
    pub log_ins: Arc<LogIns>,
    /// Onlookers that still fit.
    pub watchers: Arc<Semaphore>,
    /// Cancelled when the server closes: streams of events end.
    pub closing: CancellationToken,
    /// Holds what must be finished though its client has gone: whoever shuts down waits for it.
    pub tasks: TaskTracker,
}

impl ApiState {
    /// With its own limits; what is optional is absent.
    pub fn new(
        store: Store,
        calls: Arc<dyn LiveCalls>,
        outbound: Arc<dyn Outbound>,
        urls: Arc<ServerUrls>,
        proxies: Arc<TrustedProxies>,
        recordings: &Path,
    ) -> Self {
        Self {
            knowledge: KnowledgeBases::without_vectors(store.clone()),
            store,
            fetcher: None,
            made: None,
            calls,
            outbound,
            urls,
            proxies,
            sip: None,
            recordings: recordings.into(),
            admin: None,
            setup: None,
            log_ins: Arc::default(),
            watchers: Arc::new(Semaphore::new(WATCHERS)),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Writes down who changed what. What was done is done: a log that cannot be written is an operator's concern.
    async fn note(&self, caller: &Caller, company: Uuid, action: &str, object: impl ToString, detail: Value) {
        self.note_as(&caller.actor(), Some(company), action, &object.to_string(), &detail).await;
    }

    async fn note_as(&self, actor: &str, company: Option<Uuid>, action: &str, object: &str, detail: &Value) {
        if let Err(fault) = self.store.audit(company, actor, action, object, detail).await {
            error!(error = %fault, action, "the audit log could not be written");
        }
    }

    /// Does `work` to its end, whether or not the client waits for it.
    async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.tasks.spawn(work).await.unwrap_or_else(|fault| {
            error!(error = %fault, "a request's task panicked");
            Err(ApiError::new(Kind::Internal))
        })
    }
}

/// The client's address, seen through the proxies that are trusted.
pub(crate) struct Client(Option<IpAddr>);

impl FromRequestParts<ApiState> for Client {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Self::Rejection> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
        Ok(Self(peer.map(|peer| state.proxies.client(peer, &parts.headers))))
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Offhook",
        description = "Companies, integrations, lines, agents, tools, knowledge, calls and messages. Errors are RFC 9457 problem JSON, lists \
                       are `{\"items\": […], \"next\": cursor or null}`. A key or a session belongs to one company; \
                       what belongs to another is not there (404). The administrator's token sees all companies and \
                       names one (`company_id`) where it lists or creates."
    ),
    components(schemas(problem::Problem, problem::FieldFault)),
    security(("key" = []), ("session" = [])),
    modifiers(&Security)
)]
struct Described;

struct Security;

impl Modify for Security {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let components = api.components.get_or_insert_default();
        let key = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        components.add_security_scheme("key", SecurityScheme::Http(key));
        let cookie = ApiKeyValue::with_description(
            crate::http::auth::COOKIE,
            "Set by POST /api/v1/session. A change also needs the header X-Offhook-CSRF, or our own Origin.",
        );
        components.add_security_scheme("session", SecurityScheme::ApiKey(ApiKey::Cookie(cookie)));
    }
}

/// The routes and their description.
fn described() -> (Router<ApiState>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Described::openapi())
        .merge(session::routes())
        .merge(companies::routes())
        .merge(users::routes())
        .merge(keys::routes())
        .merge(integrations::routes())
        .merge(wiring::routes())
        .merge(lines::routes())
        .merge(agents::routes())
        .merge(tools::routes())
        .merge(knowledge::routes())
        .merge(calls::routes())
        .merge(messages::routes())
        .merge(webhooks::routes())
        .merge(audit::routes())
        .split_for_parts()
}

/// Everything under `/api`, and the link of the first start.
pub fn router<S: Clone + Send + Sync + 'static>(state: ApiState) -> Router<S> {
    let (routes, api) = described();
    let routes = routes
        .route("/api/problems", get(problems))
        .route("/setup/{token}", get(first::show).post(first::set_up))
        .method_not_allowed_fallback(|| async { ApiError::new(Kind::MethodNotAllowed) })
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .layer(middleware::from_fn(limit_time))
        .layer(middleware::map_response(private))
        .with_state(state);
    routes.merge(SwaggerUi::new("/api/docs").url("/api/openapi.json", api))
}

async fn limit_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_LIMIT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::new(Kind::Timeout).into_response(),
    }
}

/// Numbers and transcripts are nobody's cache's business.
async fn private(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// What the types of problems mean.
async fn problems() -> Json<Value> {
    let known = Kind::ALL.iter().map(|kind| {
        let (slug, status, title) = kind.facts();
        (slug.to_owned(), json!({ "status": status.as_u16(), "title": title }))
    });
    Json(Value::Object(known.collect()))
}
