//! What the providers' REST clients share: one HTTP client that gives up in time, errors that name the cause and the
//! cure, a pace that the provider can bear, and one rule for what may be tried again. Knows no provider.

use std::fmt;
use std::time::Duration;

use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// How long and how often. The defaults are for live accounts; tests have shorter ones.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// No connection after this is no connection. 5 s.
    pub connect: Duration,
    /// A whole request and its answer. 15 s.
    pub request: Duration,
    /// Longest answer that is read, bytes. 8 MiB: a thousand of Twilio's numbers are three.
    pub body: usize,
    /// Reads are tried this often in all. 3.
    pub attempts: u32,
    /// Before the second attempt, doubled before each further one, and up to half as much again by chance, so that many
    /// that failed together do not come back together. 500 ms.
    pub first_wait: Duration,
    /// A provider that asks for a longer wait has refused; so has a pace that has no place sooner. 10 s.
    pub longest_wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            request: Duration::from_secs(15),
            body: 8 << 20,
            attempts: 3,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(10),
        }
    }
}

/// How much of an answer goes into an error.
const DETAIL_CHARS: usize = 300;

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

impl ProviderError {
    /// A call or a message that was asked for may have been made all the same.
    pub fn maybe_done(&self) -> bool {
        matches!(self, Self::Unreachable { maybe_done: true, .. } | Self::Nonsense { .. })
    }
}

/// A status and a body, whatever the status. Prints no body: some answers hold secrets.
#[derive(Clone)]
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

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("status", &self.status.as_u16())
            .field("bytes", &self.body.len())
            .field("retry_after", &self.retry_after)
            .finish()
    }
}

/// One provider's host.
#[derive(Debug)]
pub struct Rest {
    client: Client,
    base: String,
    host: String,
    pace: Pace,
    limits: Limits,
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
        Self::with_limits(base, gap, Limits::default())
    }

    pub fn with_limits(base: &str, gap: Duration, limits: Limits) -> Result<Self, ProviderError> {
        let invalid = |problem: String| ProviderError::Invalid { field: "api_base", problem };
        let url = reqwest::Url::parse(base).map_err(|error| invalid(format!("is no address: {error}")))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("must not hold a user or a password".into()));
        }
        let host = url.host_str().unwrap_or_default().to_owned();
        let client = crate::speech::http::client(url.scheme() == "https", limits.connect)
            .map_err(|error| invalid(error.to_string()))?;
        Ok(Self { client, base: base.trim_end_matches('/').to_owned(), host, pace: Pace::new(gap), limits })
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(self.url(path))
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(self.url(path))
    }

    pub fn delete(&self, path: &str) -> RequestBuilder {
        self.client.delete(self.url(path))
    }

    /// `path` begins with a slash: anything else could become part of the host.
    pub fn url(&self, path: &str) -> String {
        let slash = if path.starts_with('/') { "" } else { "/" };
        format!("{}{slash}{path}", self.base)
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    /// Any answer, whatever its status. A request that may be repeated is sent again while the provider is out of
    /// breath (429, 5xx, no connection). What is left then: 429 as an error, another status as a [`Reply`].
    pub async fn send(&self, request: RequestBuilder, repeat: Repeat) -> Result<Reply, ProviderError> {
        let attempts = if repeat == Repeat::Safe { self.limits.attempts } else { 1 };
        let mut request = request;
        let mut attempt = 1;
        loop {
            // A body that is a stream cannot be copied: it is sent once.
            let spare = if attempt < attempts { request.try_clone() } else { None };
            let outcome = self.once(request).await;
            let wait = match &outcome {
                Ok(reply) if reply.status == StatusCode::TOO_MANY_REQUESTS || reply.status.is_server_error() => {
                    reply.retry_after.unwrap_or_else(|| self.back_off(attempt))
                }
                Err(ProviderError::Unreachable { .. }) => self.back_off(attempt),
                _ => return outcome,
            };
            request = match spare {
                Some(spare) if wait <= self.limits.longest_wait => spare,
                _ => return limited(outcome),
            };
            sleep(wait).await;
            attempt += 1;
        }
    }

    fn back_off(&self, attempt: u32) -> Duration {
        let wait = self.limits.first_wait * 2u32.pow((attempt - 1).min(8));
        wait + wait.mul_f64(rand::random_range(0.0..0.5))
    }

    async fn once(&self, request: RequestBuilder) -> Result<Reply, ProviderError> {
        if let Err(wait) = self.pace.turn(self.limits.longest_wait).await {
            return Err(ProviderError::RateLimited { retry_s: Some(wait.as_secs().max(1)) });
        }
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
                if body.len() + chunk.len() > self.limits.body {
                    return Ok(None);
                }
                body.extend_from_slice(&chunk);
            }
            Ok::<_, reqwest::Error>(Some((status, body, retry_after)))
        };
        match timeout(self.limits.request, exchange).await {
            Ok(Ok(Some((status, body, retry_after)))) => {
                Ok(Reply { status, body: String::from_utf8_lossy(&body).into_owned(), retry_after })
            }
            Ok(Ok(None)) => Err(self.nonsense(format!("an answer over {} bytes", self.limits.body))),
            Ok(Err(error)) => {
                let maybe_done = !error.is_connect() && !error.is_builder();
                // The address may hold a number or a token.
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
            Err(_) => Err(self.unreachable(format!("not within {} ms", self.limits.request.as_millis()), true)),
        }
    }

    pub fn unreachable(&self, detail: impl Into<String>, maybe_done: bool) -> ProviderError {
        ProviderError::Unreachable { host: self.host.clone(), detail: detail.into(), maybe_done }
    }

    pub fn nonsense(&self, detail: impl Into<String>) -> ProviderError {
        ProviderError::Nonsense { host: self.host.clone(), detail: detail.into() }
    }
}

fn limited(outcome: Result<Reply, ProviderError>) -> Result<Reply, ProviderError> {
    match outcome {
        Ok(reply) if reply.status == StatusCode::TOO_MANY_REQUESTS => {
            Err(ProviderError::RateLimited { retry_s: reply.retry_after.map(|wait| wait.as_secs()) })
        }
        outcome => outcome,
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

    /// Waits for the next free place, or says at once that there is none within `longest` and how far off it is: a
    /// crowd waits for a bounded time. A caller that gives up while it waits leaves its place empty.
    pub async fn turn(&self, longest: Duration) -> Result<(), Duration> {
        let mine = {
            let mut free_at = self.free_at.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let now = Instant::now();
            let mine = (*free_at).max(now);
            if mine - now > longest {
                return Err(mine - now);
            }
            *free_at = mine + self.gap;
            mine
        };
        sleep_until(mine).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_are_kept_a_gap_apart_and_a_crowd_is_turned_away() {
        let pace = Pace::new(Duration::from_millis(100));
        let began = Instant::now();
        for _ in 0..4 {
            pace.turn(Duration::from_secs(1)).await.unwrap();
        }
        assert_eq!(began.elapsed(), Duration::from_millis(300));
        let crowd = futures::future::join_all((0..20).map(|_| pace.turn(Duration::from_secs(1)))).await;
        assert_eq!(crowd.iter().filter(|turn| turn.is_ok()).count(), 10);
        assert_eq!(crowd[19], Err(Duration::from_millis(1_100)));
    }

    #[test]
    fn an_answer_prints_without_its_body() {
        let reply = Reply { status: StatusCode::OK, body: "auth_token: 0123".into(), retry_after: None };
        assert!(!format!("{reply:?}").contains("0123"));
        assert_eq!(reply.detail(), "auth_token: 0123");
    }

    #[test]
    fn a_path_never_becomes_part_of_the_host() {
        let rest = Rest::new("http://127.0.0.1:9300/", Duration::ZERO).unwrap();
        assert_eq!(rest.url("/2010-04-01"), "http://127.0.0.1:9300/2010-04-01");
        assert_eq!(rest.url("@evil.example.com/"), "http://127.0.0.1:9300/@evil.example.com/");
        assert!(Rest::new("http://user:pass@127.0.0.1", Duration::ZERO).is_err());
    }
}
