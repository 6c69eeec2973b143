//! The streamable HTTP transport of MCP over the guarded exchange of every other tool: `rmcp` keeps the session, this
//! sends its messages. One message is one exchange, read up to the answer and no further; a stream that a server would
//! keep open beside it is never opened.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use rmcp::model::{ClientJsonRpcMessage, GetExtensions as _, GetMeta as _, ServerJsonRpcMessage};
use rmcp::transport::common::client_side_sse::{BoxedSseResponse, NeverRetry};
use rmcp::transport::streamable_http_client::{
    StreamableHttpClient, StreamableHttpClientTransport, StreamableHttpClientTransportConfig, StreamableHttpError,
    StreamableHttpPostResponse,
};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{KEY, LIST_LIMIT, Limit, McpError, McpServerDefinition};
use crate::agent::tools::fetch::{Answer, Fetcher, MAX_BODY, Order};
use crate::agent::tools::http::{SecretHeaders, headers};
use crate::speech::sse::SseParser;

/// Longest session id that is taken, bytes.
const MAX_SESSION: usize = 256;
/// For what a server is told and does not answer: that a request is abandoned, that a session is over, what it asked.
const TELL_LIMIT: Duration = Duration::from_secs(2);
/// Requests of one server at once; one more waits within its own time.
const AT_ONCE: usize = 64;
/// Questions of a server that are answered during one exchange; the others it has asked for nothing.
const MAX_QUESTIONS: usize = 8;

type PostError = StreamableHttpError<McpError>;

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Post {
    inner: Arc<Inner>,
}

struct Inner {
    fetcher: Fetcher,
    url: Url,
    headers: HeaderMap,
    secrets: HeaderMap,
    hosts: Vec<String>,
    /// The server's list has changed.
    changed: Arc<Notify>,
}

impl Post {
    pub fn new(
        definition: &McpServerDefinition,
        secrets: &SecretHeaders,
        url: Url,
        fetcher: Fetcher,
        changed: Arc<Notify>,
    ) -> Self {
        let plain = definition.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let (headers, secrets) = (headers(&plain), secrets.headers());
        let hosts = definition.allowed_hosts.clone();
        Self { inner: Arc::new(Inner { fetcher, url, headers, secrets, hosts, changed }) }
    }

    /// A session's transport. Its task ends when the transport is dropped.
    pub fn transport(&self) -> StreamableHttpClientTransport<Self> {
        let mut config = StreamableHttpClientTransportConfig::with_uri(self.inner.url.as_str());
        config.retry_config = Arc::new(NeverRetry::default());
        config.max_concurrent_requests = AT_ONCE;
        config.control_request_timeout = TELL_LIMIT;
        config.session_recovery_timeout = LIST_LIMIT;
        config.allow_stateless = true;
        config.reinit_on_expired_session = true;
        StreamableHttpClientTransport::with_client(self.clone(), config)
    }

    fn order(&self, method: Method, session: Option<&str>, more: HashMap<HeaderName, HeaderValue>) -> Order {
        let mut headers = self.inner.headers.clone();
        headers.extend(more);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(session) = session.and_then(|session| HeaderValue::try_from(session).ok()) {
            headers.insert("mcp-session-id", session);
        }
        Order {
            method,
            url: self.inner.url.clone(),
            headers,
            secrets: self.inner.secrets.clone(),
            body: None,
            hosts: self.inner.hosts.clone(),
            limit: TELL_LIMIT,
        }
    }

    async fn post(
        &self,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        more: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, PostError> {
        let mut order = self.order(Method::POST, session.as_deref(), more);
        order.body = Some(serde_json::to_vec(&message)?.into());
        let ClientJsonRpcMessage::Request(asked) = message else {
            let told = self.inner.fetcher.send(&order).await.map_err(client)?;
            return match told.status {
                StatusCode::NOT_FOUND if session.is_some() => Err(StreamableHttpError::SessionExpired),
                status if status.is_success() => Ok(StreamableHttpPostResponse::Accepted),
                status => Err(client(McpError::Status(status.as_u16()))),
            };
        };
        let id = serde_json::to_value(&asked.id)?;
        order.limit = asked.request.extensions().get::<Limit>().map_or(LIST_LIMIT, |limit| limit.0);
        let key = asked.request.get_meta().0.get(KEY).and_then(Value::as_str);
        if let Some(key) = key.and_then(|key| HeaderValue::try_from(key).ok()) {
            order.headers.insert("idempotency-key", key);
        }
        let answer = self.inner.fetcher.send(&order).await.map_err(client)?;
        if answer.status == StatusCode::NOT_FOUND && session.is_some() {
            return Err(StreamableHttpError::SessionExpired);
        }
        let header = answer.headers.get("mcp-session-id").filter(|id| id.len() <= MAX_SESSION);
        let session = header.and_then(|id| id.to_str().ok()).map(str::to_owned);
        let message = self.answer_to(&id, answer, &order).await.map_err(client)?;
        let message: ServerJsonRpcMessage =
            serde_json::from_value(message).map_err(|_| client(McpError::Nonsense("an answer without a result")))?;
        Ok(StreamableHttpPostResponse::Json(message, session))
    }

    /// The message with this id, from JSON or from a stream of events.
    async fn answer_to(&self, id: &Value, mut answer: Answer, order: &Order) -> Result<Value, McpError> {
        if !answer.status.is_success() {
            return Err(McpError::Status(answer.status.as_u16()));
        }
        let essence = answer.content_type().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/json" => {
                let (body, more) = answer.body(MAX_BODY).await?;
                if more {
                    return Err(McpError::Nonsense("its answer is too long"));
                }
                let message: Value =
                    serde_json::from_slice(&body).map_err(|_| McpError::Nonsense("its answer is no JSON"))?;
                if answers(&message, id) { Ok(message) } else { Err(McpError::Nonsense("it answers something else")) }
            }
            "text/event-stream" => {
                let (mut parser, mut events, mut bytes) = (SseParser::default(), Vec::new(), 0);
                let mut questions = 0;
                while let Some(chunk) = answer.chunk().await? {
                    bytes += chunk.len();
                    let sound = parser.push(&chunk, &mut events).is_ok() && bytes <= MAX_BODY;
                    for event in events.drain(..) {
                        let Ok(message) = serde_json::from_str::<Value>(&event) else { continue };
                        if answers(&message, id) {
                            return Ok(message);
                        }
                        if message["method"] == "notifications/tools/list_changed" {
                            self.inner.changed.notify_one();
                        } else if message["method"].is_string() && !message["id"].is_null() && questions < MAX_QUESTIONS
                        {
                            questions += 1;
                            self.answer_question(&message, order).await;
                        }
                    }
                    if !sound {
                        return Err(McpError::Nonsense("its answer is too long"));
                    }
                }
                Err(McpError::Nonsense("its stream ends without an answer"))
            }
            _ => Err(McpError::Nonsense("it answers with neither JSON nor events")),
        }
    }

    /// A server may ask whether its client is there, and nothing else of one that offers nothing.
    async fn answer_question(&self, question: &Value, order: &Order) {
        let mut answer = json!({ "jsonrpc": "2.0", "id": question["id"] });
        if question["method"] == "ping" {
            answer["result"] = json!({});
        } else {
            answer["error"] = json!({ "code": -32601, "message": "Method not found" });
        }
        let mut order = Order { body: Some(answer.to_string().into()), limit: TELL_LIMIT, ..order.clone() };
        order.headers.remove("idempotency-key");
        // A server that does not take the answer to its question goes on without it.
        let _ = self.inner.fetcher.send(&order).await;
    }
}

/// Whether a message answers the request with this id. Some servers make texts of numbers.
fn answers(message: &Value, id: &Value) -> bool {
    let in_words = id.to_string();
    let same = message["id"] == *id || message["id"].as_str() == Some(in_words.as_str());
    same && !id.is_null() && message.get("method").is_none()
}

fn client(error: impl Into<McpError>) -> PostError {
    StreamableHttpError::Client(error.into())
}

impl StreamableHttpClient for Post {
    type Error = McpError;

    /// The address and the headers of the configuration are this client's own: those that come besides are the session's.
    async fn post_message(
        &self,
        _: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        _: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, PostError> {
        self.post(message, session, headers).await
    }

    async fn delete_session(
        &self,
        _: Arc<str>,
        session: Arc<str>,
        _: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), PostError> {
        let order = self.order(Method::DELETE, Some(&session), headers);
        self.inner.fetcher.send(&order).await.map_err(client)?;
        Ok(())
    }

    async fn get_stream(
        &self,
        _: Arc<str>,
        _: Option<Arc<str>>,
        _: Option<String>,
        _: Option<String>,
        _: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxedSseResponse, PostError> {
        Err(StreamableHttpError::ServerDoesNotSupportSse)
    }
}
