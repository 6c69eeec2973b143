//! Who asks, and what they may: API keys, the console's session cookie, the administrator's token; how often somebody
//! may try to log in, and how many passwords are hashed at once.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::{Semaphore, SemaphorePermit};
use uuid::Uuid;

use crate::http::api::ApiState;
use crate::http::api::problem::{ApiError, Kind, missing};
use crate::http::config::ServerUrls;
use crate::store::owners::Owned;
use crate::store::users::Role;

/// The session's cookie. HttpOnly: no script reads it.
pub(crate) const COOKIE: &str = "offhook_session";
/// A working day; whoever works longer logs in again.
pub(crate) const SESSION_LIFE: Duration = Duration::from_secs(12 * 60 * 60);
/// Another site's page cannot set a header of its own without asking us first, and we never say yes.
pub(crate) const CSRF_HEADER: &str = "x-offhook-csrf";

/// Whoever made a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// The token of `security.admin_token`.
    Admin,
    Key {
        id: Uuid,
        prefix: String,
    },
    Person {
        id: Uuid,
        email: String,
    },
}

/// Who asks, for which company, as what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub who: Who,
    /// `None`: the administrator, who names one.
    pub company: Option<Uuid>,
    pub role: Role,
}

impl Caller {
    /// As the audit log has it.
    pub fn actor(&self) -> String {
        match &self.who {
            Who::Admin => "admin".into(),
            Who::Key { prefix, .. } => format!("key {prefix}"),
            Who::Person { email, .. } => format!("user {email}"),
        }
    }

    pub fn is_admin(&self) -> bool {
        self.who == Who::Admin
    }

    pub fn may(&self, role: Role) -> Result<(), ApiError> {
        if self.role >= role {
            return Ok(());
        }
        Err(ApiError::because(Kind::Forbidden, format!("this needs the role {}", role.label())))
    }

    /// The company that a request is about. Another one than the caller's own is not there.
    pub async fn company(&self, state: &ApiState, role: Role, named: Option<Uuid>) -> Result<Uuid, ApiError> {
        self.may(role)?;
        match (self.company, named) {
            (Some(own), None) => Ok(own),
            (Some(own), Some(named)) if own == named => Ok(own),
            (Some(_), Some(_)) => Err(missing()),
            (None, None) => Err(ApiError::field("company_id", "is missing: the administrator says which company")),
            (None, Some(named)) => match state.store.company(named).await? {
                Some(company) => Ok(company.id),
                None => Err(missing()),
            },
        }
    }

    /// The same for a thing that has an id: the administrator need not say whose it is.
    pub async fn owner(
        &self,
        state: &ApiState,
        role: Role,
        named: Option<Uuid>,
        what: Owned,
        id: Uuid,
    ) -> Result<Uuid, ApiError> {
        self.may(role)?;
        if self.company.is_some() || named.is_some() {
            return self.company(state, role, named).await;
        }
        state.store.owner(what, id).await?.ok_or_else(missing)
    }
}

impl FromRequestParts<ApiState> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, ApiError> {
        if let Some(value) = parts.headers.get(header::AUTHORIZATION) {
            let token = value.to_str().ok().and_then(bearer).ok_or_else(|| ApiError::new(Kind::Unauthorized))?;
            return by_token(state, token).await;
        }
        let cookie = cookie(&parts.headers).ok_or_else(|| ApiError::new(Kind::Unauthorized))?;
        let session = state.store.session(cookie).await?.ok_or_else(|| ApiError::new(Kind::Unauthorized))?;
        if !matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) {
            same_site(&parts.headers, &state.urls)?;
        }
        Ok(Self {
            who: Who::Person { id: session.person_id, email: session.email },
            company: Some(session.company_id),
            role: session.role,
        })
    }
}

async fn by_token(state: &ApiState, token: &str) -> Result<Caller, ApiError> {
    if state.admin.as_ref().is_some_and(|admin| admin.is(token)) {
        return Ok(Caller { who: Who::Admin, company: None, role: Role::Owner });
    }
    let key = state.store.key(token).await?.ok_or_else(|| ApiError::new(Kind::Unauthorized))?;
    Ok(Caller { who: Who::Key { id: key.id, prefix: key.prefix }, company: Some(key.company_id), role: key.role })
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

/// What the session's cookie holds.
pub(crate) fn cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    cookies
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, value)| *name == COOKIE && !value.is_empty())
        .map(|(_, value)| value)
}

/// The cookie of a session; `None` takes it away.
pub(crate) fn set_cookie(session: Option<&SecretString>, urls: &ServerUrls) -> HeaderValue {
    let (value, age) = session.map_or(("", 0), |secret| (secret.expose_secret(), SESSION_LIFE.as_secs()));
    let secure = if urls.is_secure() { "; Secure" } else { "" };
    let text = format!("{COOKIE}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}");
    let mut header = HeaderValue::from_str(&text).expect("a session's secret is base64");
    header.set_sensitive(true);
    header
}

/// A browser sends the cookie with requests that another site's page makes (SameSite is not known to all, and a sibling
/// domain counts as the same site): so a change needs a header that only our own page can set, or our own origin.
fn same_site(headers: &HeaderMap, urls: &ServerUrls) -> Result<(), ApiError> {
    if headers.get(CSRF_HEADER).is_some_and(|value| !value.is_empty()) {
        return Ok(());
    }
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let ours = text(header::ORIGIN).is_some_and(|origin| {
        let host = origin.split_once("://").map(|(_, host)| host);
        origin == urls.origin() || host.is_some_and(|host| text(header::HOST) == Some(host))
    });
    if ours {
        return Ok(());
    }
    let detail = format!("send the header {CSRF_HEADER} with a change that is made with the session's cookie");
    Err(ApiError::because(Kind::CrossSite, detail))
}

/// A secret that is compared in constant time, and kept as its hash.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl Token {
    pub fn new(secret: &SecretString) -> Self {
        Self(Sha256::digest(secret.expose_secret().as_bytes()).into())
    }

    pub(crate) fn is(&self, text: &str) -> bool {
        let other: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        self.0.ct_eq(&other).into()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// Attempts to log in, of one address and on one account, in [`WINDOW`].
const PER_ADDRESS: u32 = 30;
const PER_ACCOUNT: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses and accounts that are counted at once; beyond it, those that are not known share one count.
const COUNTED: usize = 4096;
/// Passwords that are hashed at once: each takes 19 MiB and tens of milliseconds of a core.
const HASHES: usize = 2;
/// How long somebody waits for their turn.
const HASH_WAIT: Duration = Duration::from_secs(5);

/// What stands between a guesser and the passwords.
#[derive(Debug)]
pub struct LogIns {
    addresses: Attempts<IpAddr>,
    accounts: Attempts<[u8; 32]>,
    hashing: Semaphore,
}

impl Default for LogIns {
    fn default() -> Self {
        Self {
            addresses: Attempts::new(PER_ADDRESS),
            accounts: Attempts::new(PER_ACCOUNT),
            hashing: Semaphore::new(HASHES),
        }
    }
}

impl LogIns {
    /// Counts an attempt, whatever will come of it.
    pub(crate) fn attempt(&self, address: Option<IpAddr>, account: &str, now: Instant) -> Result<(), ApiError> {
        let address = address.map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), network);
        let account: [u8; 32] = Sha256::digest(account.trim().to_lowercase().as_bytes()).into();
        let wait = self.addresses.count(address, now).max(self.accounts.count(account, now));
        match wait {
            None => Ok(()),
            Some(wait) => Err(ApiError::new(Kind::TooManyAttempts).retry_after(wait.as_secs() + 1)),
        }
    }

    /// A turn to hash a password.
    pub(crate) async fn turn(&self) -> Result<SemaphorePermit<'_>, ApiError> {
        match tokio::time::timeout(HASH_WAIT, self.hashing.acquire()).await {
            Ok(permit) => Ok(permit.expect("the semaphore is never closed")),
            Err(_) => Err(ApiError::new(Kind::TooManyAttempts).retry_after(HASH_WAIT.as_secs())),
        }
    }
}

/// A customer of a provider has a /64 of IPv6: its addresses count as one.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

/// Attempts by what is counted, within a window that begins with the first one. `None` stands for all that do not fit.
#[derive(Debug)]
struct Attempts<K> {
    limit: u32,
    seen: Mutex<HashMap<Option<K>, (Instant, u32)>>,
}

impl<K: Hash + Eq + Copy> Attempts<K> {
    fn new(limit: u32) -> Self {
        Self { limit, seen: Mutex::default() }
    }

    /// Counts one; beyond the limit, how long until the next is taken.
    fn count(&self, key: K, now: Instant) -> Option<Duration> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = Some(key);
        if seen.len() >= COUNTED && !seen.contains_key(&key) {
            seen.retain(|_, (since, _)| now.duration_since(*since) < WINDOW);
            if seen.len() >= COUNTED {
                key = None;
            }
        }
        let (since, count) = seen.entry(key).or_insert((now, 0));
        if now.duration_since(*since) >= WINDOW {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        (*count > self.limit).then(|| WINDOW.saturating_sub(now.duration_since(*since)))
    }
}

/// The link of the first start: good once, for whoever reads the server's output.
#[derive(Debug)]
pub struct SetupLink {
    token: Token,
    /// Held while the first company is made, so that two requests make one.
    used: tokio::sync::Mutex<bool>,
}

impl SetupLink {
    pub fn new(secret: &SecretString) -> Arc<Self> {
        Arc::new(Self { token: Token::new(secret), used: tokio::sync::Mutex::new(false) })
    }

    pub(crate) fn is(&self, text: &str) -> bool {
        self.token.is(text)
    }

    pub(crate) async fn used(&self) -> tokio::sync::MutexGuard<'_, bool> {
        self.used.lock().await
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::http::config::ServerConfig;

    fn urls(public: Option<&str>) -> ServerUrls {
        let config = ServerConfig { public_url: public.map(str::to_owned), ..ServerConfig::default() };
        ServerUrls::new(&config, SocketAddr::from(([127, 0, 0, 1], 8080))).unwrap()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_cookie_is_secure_where_clients_come_by_https() {
        let secret = SecretString::from("abc");
        let cookie = set_cookie(Some(&secret), &urls(Some("https://voice.example.com")));
        let cookie = cookie.to_str().unwrap().to_owned();
        for part in ["offhook_session=abc", "HttpOnly", "SameSite=Strict", "Secure", "Path=/", "Max-Age=43200"] {
            assert!(cookie.split("; ").any(|found| found == part), "{part}: {cookie}");
        }
        let cookie = set_cookie(None, &urls(None));
        assert_eq!(cookie.to_str().unwrap(), "offhook_session=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict");
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        assert_eq!(cookie(&headers(&[("cookie", "a=b; offhook_session=xyz; c=d")])), Some("xyz"));
        assert_eq!(cookie(&headers(&[("cookie", "xoffhook_session=xyz")])), None);
        assert_eq!(cookie(&headers(&[("cookie", "offhook_session=")])), None);
    }

    #[test]
    fn a_change_by_cookie_needs_our_own_page() {
        let urls = urls(Some("https://voice.example.com"));
        for (pairs, good) in [
            (vec![("x-offhook-csrf", "1")], true),
            (vec![("origin", "https://voice.example.com")], true),
            (vec![("origin", "http://127.0.0.1:8080"), ("host", "127.0.0.1:8080")], true),
            (vec![("origin", "https://evil.example"), ("host", "voice.example.com")], false),
            (vec![("origin", "null"), ("host", "voice.example.com")], false),
            (vec![("host", "voice.example.com")], false),
            (vec![], false),
        ] {
            assert_eq!(same_site(&headers(&pairs), &urls).is_ok(), good, "{pairs:?}");
        }
    }

    #[test]
    fn a_key_is_taken_from_a_bearer_header_only() {
        assert_eq!(bearer("Bearer ohk_a"), Some("ohk_a"));
        assert_eq!(bearer("bearer  ohk_a "), Some("ohk_a"));
        assert_eq!(bearer("Basic ohk_a"), None);
        assert_eq!(bearer("Bearer "), None);
    }

    #[test]
    fn guessing_at_one_account_ends_soon_and_starts_again_after_a_minute() {
        let (limits, start) = (LogIns::default(), Instant::now());
        let at = |n: u8| Some(IpAddr::from([192, 0, 2, n]));
        for n in 0..PER_ACCOUNT {
            assert!(limits.attempt(at(n as u8), "anna@acme.example", start).is_ok());
        }
        assert!(limits.attempt(at(200), " Anna@acme.example ", start).is_err(), "from any address, however written");
        assert!(limits.attempt(at(200), "boris@acme.example", start).is_ok());
        assert!(limits.attempt(at(1), "anna@acme.example", start + WINDOW).is_ok());
    }

    #[test]
    fn one_address_may_try_some_accounts_only_and_a_flood_takes_bounded_memory() {
        let (limits, start) = (LogIns::default(), Instant::now());
        let one = Some(IpAddr::from([192, 0, 2, 1]));
        let taken = (0..100).filter(|n| limits.attempt(one, &format!("p{n}@x.example"), start).is_ok()).count();
        assert_eq!(taken, PER_ADDRESS as usize);
        for n in 0..20_000u32 {
            let _ = limits.attempt(Some(IpAddr::from(n.to_be_bytes())), &format!("q{n}"), start);
        }
        assert!(limits.addresses.seen.lock().unwrap().len() <= COUNTED + 1);
        assert!(limits.accounts.seen.lock().unwrap().len() <= COUNTED + 1);
    }

    #[test]
    fn a_token_is_itself_and_nothing_else_and_prints_nothing() {
        let token = Token::new(&SecretString::from("0123456789abcdef0123"));
        assert!(token.is("0123456789abcdef0123"));
        assert!(!token.is("0123456789abcdef0124") && !token.is(""));
        assert_eq!(format!("{token:?}"), "Token");
    }
}
