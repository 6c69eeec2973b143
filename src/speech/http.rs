//! What the HTTP engines share: a client that gives up quickly, one reading of error answers, one rule for what may be
//! tried again. Knows no API and reads no stream; time limits belong to the engines.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::HeaderMap;
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A connection that is not there after this is not worth waiting for in a live call (specs/speech-apis.md §9).
pub const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// A server that asks for a longer wait has failed, as far as this turn is concerned.
pub const RETRY_WAIT_MAX: Duration = Duration::from_millis(500);
/// Wait before the second try when the server names none.
pub const RETRY_WAIT: Duration = Duration::from_millis(50);
/// How much of a server's explanation goes into an error.
pub const DETAIL_BYTES: usize = 500;
/// Error bodies are read up to this; the rest is left in the socket.
const ERROR_BODY_BYTES: usize = 64 * 1024;
/// And for no longer than this: the caller is waiting.
const ERROR_BODY_LIMIT: Duration = Duration::from_millis(300);
/// A connection opened this recently is still in the pool: many calls answered at once warm it once.
const WARM_EVERY: Duration = Duration::from_secs(10);
const WARM_LIMIT: Duration = Duration::from_secs(3);
/// The longest list of models that is read for the sake of its connection.
const WARM_BYTES: usize = 1024 * 1024;

/// A configuration that no client can be made of.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EndpointError {
    /// Correct the setting.
    #[error("base_url {given:?} is not an http or https address")]
    BaseUrl { given: String },
    /// No certificates on this machine, or TLS cannot be set up: install `ca-certificates`.
    #[error("cannot set TLS up (is ca-certificates installed?): {0}")]
    Tls(String),
}

/// Why a request brought no usable answer. Holds no secret.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HttpError {
    /// 401 or 403: an operator must look at the key. Never tried again.
    #[error("the key was refused")]
    Unauthorized,
    /// Any other status outside 200–299.
    #[error("status {status}: {detail}")]
    Status { status: u16, detail: String, retry: Option<Duration> },
    /// No connection, or it broke before the answer was whole.
    #[error("{detail}")]
    Connection { detail: String, retry: Option<Duration> },
}

impl HttpError {
    /// How long to wait before one more try; `None` where another try is of no use or not safe.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unauthorized => None,
            Self::Status { retry, .. } | Self::Connection { retry, .. } => *retry,
        }
    }

    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Unauthorized => Some(401),
            Self::Status { status, .. } => Some(*status),
            Self::Connection { .. } => None,
        }
    }

    pub fn detail(&self) -> &str {
        match self {
            Self::Unauthorized => "the key was refused",
            Self::Status { detail, .. } | Self::Connection { detail, .. } => detail,
        }
    }
}

/// One server that speaks an OpenAI-like API: its address, its key and a pool of warm connections.
pub struct Endpoint {
    client: Client,
    /// Without a slash at the end.
    base: String,
    host: String,
    key: Option<SecretString>,
    warmed: Mutex<Option<Instant>>,
    cancel: CancellationToken,
    _cancel_on_drop: DropGuard,
}

impl Endpoint {
    /// `base_url` is everything before `/chat/completions` and the like. Without a key no `Authorization` is sent.
    pub fn new(base_url: &str, key: Option<SecretString>) -> Result<Self, EndpointError> {
        let url = Url::parse(base_url).map_err(|_| EndpointError::BaseUrl { given: without_user(base_url) })?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(EndpointError::BaseUrl { given: without_user(base_url) });
        }
        let host = match (url.host_str(), url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (host, _) => host.unwrap_or_default().to_owned(),
        };
        let cancel = CancellationToken::new();
        Ok(Self {
            client: client(url.scheme() == "https", CONNECT_LIMIT)?,
            base: base_url.trim_end_matches('/').to_owned(),
            host,
            key: key.filter(|key| !key.expose_secret().is_empty()),
            warmed: Mutex::new(None),
            _cancel_on_drop: cancel.clone().drop_guard(),
            cancel,
        })
    }

    /// A POST to `{base_url}/{path}` with the key, ready for a body.
    pub fn post(&self, path: &str) -> RequestBuilder {
        self.authorized(self.client.post(format!("{}/{path}", self.base)))
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.authorized(self.client.get(format!("{}/{path}", self.base)))
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key.expose_secret()),
            None => request,
        }
    }

    /// One attempt: the answer's head, if its status is a success. Dropping the future or the answer closes the
    /// connection (HTTP/1.1) or resets the stream (HTTP/2).
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, HttpError> {
        let mut response = request.send().await.map_err(|error| self.broken(error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(HttpError::Unauthorized);
        }
        let mut body = Vec::new();
        // What has come by then is enough: the status has already said that this failed.
        let _ = timeout(ERROR_BODY_LIMIT, async {
            while let Ok(Some(chunk)) = response.chunk().await {
                body.extend_from_slice(&chunk[..chunk.len().min(ERROR_BODY_BYTES - body.len())]);
                if body.len() == ERROR_BODY_BYTES {
                    break;
                }
            }
        })
        .await;
        let retry = retry_wait(status.as_u16(), response.headers(), &body);
        Err(HttpError::Status { status: status.as_u16(), detail: self.explain(&body), retry })
    }

    /// The next piece of a body; `None` at its proper end.
    pub async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, HttpError> {
        response.chunk().await.map_err(|error| self.broken(error))
    }

    /// A whole body of at most `max` bytes.
    pub async fn body(&self, response: &mut Response, max: usize) -> Result<Vec<u8>, HttpError> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(response).await? {
            if body.len() + chunk.len() > max {
                return Err(HttpError::Connection { detail: format!("an answer over {max} bytes"), retry: None });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// What a server said about an error, fit for a log: at most [`DETAIL_BYTES`], no control characters, no key.
    pub fn explain(&self, body: &[u8]) -> String {
        let text = explanation(body);
        let text = match &self.key {
            Some(key) => text.replace(key.expose_secret(), "••••"),
            None => text,
        };
        clip(&mask_keys(&text))
    }

    fn broken(&self, error: reqwest::Error) -> HttpError {
        // A refused or lost connection has done nothing that a second request would double: speech and text have no
        // effect at the server beyond their price.
        let retry = (!error.is_builder() && !error.is_redirect()).then_some(RETRY_WAIT);
        let error = error.without_url();
        let mut detail = format!("{}: {error}", self.host);
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            detail.push_str(": ");
            detail.push_str(&cause.to_string());
            source = cause.source();
        }
        HttpError::Connection { detail: clip(&detail), retry }
    }

    /// Opens a connection for the next request by asking for `{base_url}/models`, whatever the answer. Needs a tokio
    /// runtime; does nothing where that was done within ten seconds.
    pub fn warm(&self) {
        {
            let mut warmed = self.warmed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let now = Instant::now();
            if warmed.is_some_and(|at| now.duration_since(at) < WARM_EVERY) {
                return;
            }
            *warmed = Some(now);
        }
        tokio::spawn(self.cancel.clone().run_until_cancelled_owned(open(self.get("models"))));
    }
}

/// Makes a request for its connection only.
async fn open(request: RequestBuilder) {
    let _ = timeout(WARM_LIMIT, async {
        let mut response = request.send().await?;
        // Only a connection whose answer was read to its end goes back to the pool.
        let mut read = 0;
        while let Some(chunk) = response.chunk().await? {
            read += chunk.len();
            if read > WARM_BYTES {
                break;
            }
        }
        Ok::<(), reqwest::Error>(())
    })
    .await;
}

/// A client without surprises: ring for TLS, no proxy from the environment, no redirects (a moved
/// API is a configuration error, and the key should not travel), connections kept for the next turn.
/// `tls` = false leaves the machine's certificates unread, so that a plain local server needs none.
pub fn client(tls: bool, connect: Duration) -> Result<Client, EndpointError> {
    // An error says that a provider is installed already, which is all that is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("offhook/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(connect)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_secs(30))
        .pool_idle_timeout(Duration::from_secs(90))
        .pool_max_idle_per_host(32);
    if !tls {
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(|error| EndpointError::Tls(error.to_string()))
}

/// Whether a status deserves one more try, and after what wait. `retry-after-ms` goes before `retry-after`;
/// `x-should-retry` overrides the table of statuses; a quota that is used up never comes back within a call.
pub fn retry_wait(status: u16, headers: &HeaderMap, body: &[u8]) -> Option<Duration> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let wanted = match header("x-should-retry") {
        Some("true") => true,
        Some("false") => false,
        _ => retryable(status),
    };
    if !wanted || (status == 429 && out_of_quota(body)) {
        return None;
    }
    let wait = match (header("retry-after-ms"), header("retry-after")) {
        (Some(ms), _) => Duration::try_from_secs_f64(ms.parse::<f64>().ok()? / 1000.0).ok()?,
        // A date has a grain of a second: never worth waiting for here.
        (None, Some(seconds)) => Duration::try_from_secs_f64(seconds.parse::<f64>().ok()?).ok()?,
        (None, None) => RETRY_WAIT,
    };
    (wait <= RETRY_WAIT_MAX).then_some(wait)
}

/// The statuses that may pass on a second try (specs/speech-apis.md §5).
pub fn retryable(status: u16) -> bool {
    matches!(status, 408 | 409 | 429 | 500..=599)
}

fn out_of_quota(body: &[u8]) -> bool {
    let Ok(json) = serde_json::from_slice::<Value>(body) else { return false };
    let is = |key: &str| json["error"][key].as_str() == Some("insufficient_quota");
    is("code") || is("type")
}

/// The message inside `{"error":{"message"}}`, `{"error":"…"}`, `{"message":"…"}`, `{"detail":"…"}`, or the text itself.
pub fn explanation(body: &[u8]) -> String {
    let text = || String::from_utf8_lossy(&body[..body.len().min(4 * DETAIL_BYTES)]).into_owned();
    let Ok(json) = serde_json::from_slice::<Value>(body) else { return text() };
    let error = &json["error"];
    let message = [&error["message"], error, &json["message"], &json["detail"]].into_iter().find_map(Value::as_str);
    match (message, error["code"].as_str().or(error["type"].as_str())) {
        (Some(message), Some(code)) => format!("{message} ({code})"),
        (Some(message), None) => message.to_owned(),
        _ => text(),
    }
}

/// Blots out words that look like keys: servers like to repeat (parts of) what they refused.
fn mask_keys(text: &str) -> String {
    let words = text.split_inclusive(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | '=' | ':' | '&'));
    let mut masked = String::with_capacity(text.len());
    let mut after_bearer = false;
    for word in words {
        let bare =
            word.trim_end_matches(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | '=' | ':' | '&'));
        if bare.contains("sk-") || (after_bearer && !bare.is_empty()) {
            masked.push_str("••••");
            masked.push_str(&word[bare.len()..]);
        } else {
            masked.push_str(word);
        }
        after_bearer = bare.eq_ignore_ascii_case("bearer") || (after_bearer && bare.is_empty());
    }
    masked
}

/// One line of at most [`DETAIL_BYTES`] bytes.
pub fn clip(text: &str) -> String {
    let line: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line[..line.floor_char_boundary(DETAIL_BYTES)].to_owned()
}

/// An address as given, without `user:password@`.
fn without_user(address: &str) -> String {
    let (scheme, rest) = address.split_once("://").unwrap_or(("", address));
    let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if scheme.is_empty() { clip(rest) } else { clip(&format!("{scheme}://{rest}")) }
}

/// Prints as dots, for the hand-written `Debug` of a configuration that holds a key.
pub(crate) struct Dots;

impl std::fmt::Debug for Dots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("••••")
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|&(name, value)| (name.parse().expect("a header name"), value.parse().expect("a header value")))
            .collect()
    }

    #[test]
    fn statuses_are_tried_again_by_the_table_and_the_headers() {
        let ms = |ms| Some(Duration::from_millis(ms));
        for (status, pairs, body, expected) in [
            (500, &[][..], "", Some(RETRY_WAIT)),
            (503, &[("retry-after", "0")], "", ms(0)),
            (408, &[], "", Some(RETRY_WAIT)),
            (400, &[], "", None),
            (404, &[], "", None),
            (422, &[], "", None),
            (429, &[("retry-after-ms", "120")], "", ms(120)),
            (429, &[("retry-after-ms", "120"), ("retry-after", "7")], "", ms(120)),
            (429, &[("retry-after-ms", "500")], "", ms(500)),
            (429, &[("retry-after-ms", "501")], "", None),
            (429, &[("retry-after", "2")], "", None),
            (429, &[("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT")], "", None),
            (429, &[("retry-after-ms", "-1")], "", None),
            (429, &[("retry-after-ms", "1e300")], "", None),
            (429, &[], r#"{"error":{"code":"insufficient_quota"}}"#, None),
            (429, &[], r#"{"error":{"code":429,"type":"insufficient_quota"}}"#, None),
            (429, &[], r#"{"error":{"code":"rate_limit_exceeded"}}"#, Some(RETRY_WAIT)),
            (500, &[("x-should-retry", "false")], "", None),
            (400, &[("x-should-retry", "true")], "", Some(RETRY_WAIT)),
        ] {
            assert_eq!(retry_wait(status, &headers(pairs), body.as_bytes()), expected, "{status} {pairs:?} {body}");
        }
    }

    #[test]
    fn an_error_body_is_reduced_to_its_message() {
        let endpoint = Endpoint::new("http://localhost:1", Some("hunter2-key".into())).expect("a good address");
        for (body, expected) in [
            (r#"{"error":{"message":"No such model","code":"model_not_found"}}"#, "No such model (model_not_found)"),
            (r#"{"error":"plain"}"#, "plain"),
            (r#"{"detail":"field required"}"#, "field required"),
            (r#"{"message":"busy"}"#, "busy"),
            ("<html>\n502</html>", "<html> 502</html>"),
            (r#"{"error":{"message":"bad key sk-abc123, sorry"}}"#, "bad key ••••, sorry"),
            ("no hunter2-key here", "no •••• here"),
            ("Authorization: Bearer abcdef", "Authorization: Bearer ••••"),
        ] {
            assert_eq!(endpoint.explain(body.as_bytes()), expected);
        }
        assert!(endpoint.explain("ї".repeat(4000).as_bytes()).len() <= DETAIL_BYTES);
    }

    #[test]
    fn an_address_that_is_none_is_named_without_its_password() {
        for bad in ["", "api.openai.com/v1", "ftp://user:hunter2@host/v1", "https://user:hunter2@:x/"] {
            let error = Endpoint::new(bad, None).err().expect("refused").to_string();
            assert!(error.contains("base_url") && !error.contains("hunter2"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_was_warmed_serves_the_next_request() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        // One connection only: a second one would wait for ever.
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            let mut lines = Vec::new();
            for answer in ["404 Not Found", "200 OK"] {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    socket.read_buf(&mut request).await.expect("a request");
                }
                lines.push(String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned());
                let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 2\r\n\r\nok");
                socket.write_all(answer.as_bytes()).await.expect("sent");
            }
            lines
        });
        let endpoint = Endpoint::new(&format!("http://{address}/v1/"), None).expect("a good address");
        open(endpoint.get("models")).await;
        let mut response = endpoint.send(endpoint.post("x")).await.expect("an answer");
        assert_eq!(endpoint.body(&mut response, 2).await.expect("a body"), b"ok");
        assert_eq!(server.await.expect("no panic"), ["GET /v1/models HTTP/1.1", "POST /v1/x HTTP/1.1"]);
    }
}
