//! What the providers' REST clients share: one HTTP client that gives up in time, errors that name the cause and the
//! cure, a pace that the provider can bear, and one rule for what may be tried again. Knows no provider.

use std::time::Duration;

use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// No connection after this is no connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A whole request and its answer.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(15);
/// Longest answer that is read.
const MAX_BODY: usize = 8 << 20;
/// How much of an answer goes into an error.
const DETAIL_CHARS: usize = 300;
/// Reads are tried this often in all.
const ATTEMPTS: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// A provider that asks for a longer wait has refused.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Why a provider did not do it. Holds no secret; every text says what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// Correct the credentials.
    #[error("the credentials were refused ({detail}): check {fields}")]
    WrongKey { fields: &'static str, detail: String },
    #[error("the credentials are good but may not do this ({detail}): give the key that right at the provider")]
    NoRight { detail: String },
    #[error("the provider does not talk to this server's address ({detail}): have it opened for the address")]
    ClosedToAddress { detail: String },
    #[error("the provider asks for fewer requests: try again in {} s", .retry_s.unwrap_or(60))]
    RateLimited { retry_s: Option<u64> },
    #[error("{what} is not of this account: list the lines and take one of them")]
    NotOwned { what: String },
    #[error("there is no {what}")]
    NotFound { what: String },
    /// The request makes no sense to the provider: its code and words.
    #[error("the provider refused ({code}): {detail}")]
    Refused { code: String, detail: String },
    /// Whether it was done is not known if the request was sent: see `maybe_done`.
    #[error("no answer from {host} ({detail}): check the address and try again")]
    Unreachable { host: String, detail: String, maybe_done: bool },
    #[error("{host} answered what is no answer of this API ({detail}): check api_base")]
    Nonsense { host: String, detail: String },
    #[error("this provider cannot {what}")]
    Unsupported { what: &'static str },
    /// Found out before anything was asked of the provider.
    #[error("{field}: {problem}")]
    Invalid { field: &'static str, problem: String },
}

/// A status and a body, whatever the status.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub body: String,
    pub retry_after: Option<Duration>,
}

impl Reply {
    /// `None`: not JSON.
    pub fn json(&self) -> Option<Value> {
        serde_json::from_str(&self.body).ok()
    }

    /// The beginning of the body, for an error. Callers must not use it on answers that hold secrets.
    pub fn detail(&self) -> String {
        let text = self.body.trim();
        let short: String = text.chars().filter(|c| !c.is_control()).take(DETAIL_CHARS).collect();
        if short.is_empty() { format!("status {}", self.status.as_u16()) } else { short }
    }
}

/// One provider's host.
#[derive(Debug)]
pub struct Rest {
    client: Client,
    base: String,
    host: String,
    pace: Pace,
}

/// Whether a request may be sent a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// It only reads, or writes the same thing again.
    Safe,
    /// It makes a call or a message.
    Never,
}

impl Rest {
    /// `base` is a checked http(s) address. `gap`: the shortest time between two requests.
    pub fn new(base: &str, gap: Duration) -> Result<Self, ProviderError> {
        let invalid = |problem: String| ProviderError::Invalid { field: "api_base", problem };
        let url = reqwest::Url::parse(base).map_err(|error| invalid(format!("is no address: {error}")))?;
        let host = url.host_str().unwrap_or_default().to_owned();
        let client =
            crate::speech::http::client(url.scheme() == "https", CONNECT_LIMIT).map_err(|error| invalid(error.to_string()))?;
        Ok(Self { client, base: base.trim_end_matches('/').to_owned(), host, pace: Pace::new(gap) })
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.base))
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.base))
    }

    pub fn delete(&self, path: &str) -> RequestBuilder {
        self.client.delete(format!("{}{path}", self.base))
    }

    pub fn host(&self) -> &str {
        &self.host
    }
}

impl Rest {
    /// Any answer, whatever its status. A request that may be repeated is sent again while the provider is out of
    /// breath (429, 5xx, no connection). What is left then: 429 as an error, another status as a [`Reply`].
    pub async fn send(&self, request: RequestBuilder, repeat: Repeat) -> Result<Reply, ProviderError> {
        let mut attempt = 1;
        let mut next = Some(request);
        while let Some(request) = next.take() {
            // A body that is a stream cannot be copied: it is sent once.
            let spare = if repeat == Repeat::Safe && attempt < ATTEMPTS { request.try_clone() } else { None };
            let outcome = self.once(request).await;
            let wait = match &outcome {
                Ok(reply) if reply.status == StatusCode::TOO_MANY_REQUESTS || reply.status.is_server_error() => {
                    reply.retry_after.unwrap_or(FIRST_WAIT * attempt)
                }
                Err(ProviderError::Unreachable { .. }) => FIRST_WAIT * attempt,
                _ => return outcome,
            };
            if spare.is_none() || wait > LONGEST_WAIT {
                return match outcome {
                    Ok(reply) if reply.status == StatusCode::TOO_MANY_REQUESTS => {
                        Err(ProviderError::RateLimited { retry_s: reply.retry_after.map(|wait| wait.as_secs()) })
                    }
                    outcome => outcome,
                };
            }
            sleep(wait).await;
            attempt += 1;
            next = spare;
        }
        Err(self.unreachable("no attempt was made".into(), false))
    }

    async fn once(&self, request: RequestBuilder) -> Result<Reply, ProviderError> {
        self.pace.turn().await;
        let exchange = async {
            let mut response = request.send().await?;
            let status = response.status();
            let retry_after = response
                .headers()
                .get("retry-after")
                .and_then(|value| value.to_str().ok()?.trim().parse().ok())
                .map(Duration::from_secs);
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                if body.len() + chunk.len() > MAX_BODY {
                    return Ok(None);
                }
                body.extend_from_slice(&chunk);
            }
            Ok::<_, reqwest::Error>(Some((status, body, retry_after)))
        };
        match timeout(REQUEST_LIMIT, exchange).await {
            Ok(Ok(Some((status, body, retry_after)))) => {
                Ok(Reply { status, body: String::from_utf8_lossy(&body).into_owned(), retry_after })
            }
            Ok(Ok(None)) => Err(self.nonsense(format!("an answer over {} MiB", MAX_BODY >> 20))),
            Ok(Err(error)) => {
                let maybe_done = !error.is_connect() && !error.is_builder();
                let error = error.without_url();
                let mut detail = error.to_string();
                let mut source = std::error::Error::source(&error);
                while let Some(cause) = source {
                    detail.push_str(": ");
                    detail.push_str(&cause.to_string());
                    source = cause.source();
                }
                Err(self.unreachable(detail, maybe_done))
            }
            Err(_) => Err(self.unreachable(format!("not within {} s", REQUEST_LIMIT.as_secs()), true)),
        }
    }

    fn unreachable(&self, detail: String, maybe_done: bool) -> ProviderError {
        ProviderError::Unreachable { host: self.host.clone(), detail, maybe_done }
    }

    pub fn nonsense(&self, detail: impl Into<String>) -> ProviderError {
        ProviderError::Nonsense { host: self.host.clone(), detail: detail.into() }
    }
}

/// Keeps requests a gap apart, in the order in which they came.
#[derive(Debug)]
pub struct Pace {
    gap: Duration,
    free_at: std::sync::Mutex<Instant>,
}

impl Pace {
    pub fn new(gap: Duration) -> Self {
        Self { gap, free_at: std::sync::Mutex::new(Instant::now()) }
    }

    /// Waits for the next free place. A caller that gives up leaves its place empty.
    pub async fn turn(&self) {
        let mine = {
            let mut free_at = self.free_at.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let mine = (*free_at).max(Instant::now());
            *free_at = mine + self.gap;
            mine
        };
        sleep_until(mine).await;
    }
}
