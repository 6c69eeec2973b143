//! One HTTP exchange with a server that a company named and that nobody trusts: bounded in time, bytes and redirects,
//! to addresses that may be reached, without cookies, proxies or anything that a hop before has said.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION,
};
use reqwest::{Certificate, Client, Method, Response, StatusCode, Url};
use rustls::CertificateError;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::reach::{OutOfReach, Reach};

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 3;
/// No connection after this is no connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Exchanges at once, of all companies; one more waits within its own time. With [`MAX_BODY`] 64 MB at most.
const AT_ONCE: usize = 128;
/// Longest body that is read, bytes. A model is given a few kilobytes of it.
pub const MAX_BODY: usize = 512 * 1024;
/// Connections that are kept for the next exchange, per host.
const KEPT: usize = 4;
const KEPT_FOR: Duration = Duration::from_secs(30);

/// What is sent. Prints no header.
#[derive(Clone)]
pub struct Order {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    /// Sent to the host of `url` alone, whatever a redirect says.
    pub secrets: HeaderMap,
    pub body: Option<Bytes>,
    /// Hosts that a redirect may lead to, beside that of `url`; with a port where it is not that of the scheme.
    pub hosts: Vec<String>,
    pub limit: Duration,
}

/// An answer whose head has come; the body is still to be read.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    response: Response,
    deadline: Instant,
    limit: Duration,
    _place: OwnedSemaphorePermit,
}

/// Why there is no answer. Holds neither the address, which may hold what the caller said, nor a header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    #[error("{0}")]
    OutOfReach(#[from] OutOfReach),
    #[error("the address is {0}")]
    Address(&'static str),
    #[error("the server redirects to {0}")]
    Redirect(String),
    #[error("the server redirects more than {MAX_REDIRECTS} times")]
    RedirectLoop,
    #[error("no connection: {0}")]
    NoConnection(String),
    #[error("the server's certificate is not believed: {0}")]
    Certificate(String),
    /// What was sent may have been done.
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("no answer within {} ms", .0.as_millis())]
    Slow(Duration),
    #[error("the answer is packed ({0}), which was not asked for")]
    Packed(String),
}

impl FetchError {
    /// The same after so many redirects: then a server has been asked already.
    fn after(self, redirects: usize) -> Self {
        if redirects > 0 && self.is_undone() { Self::Redirect(format!("what is not asked: {self}")) } else { self }
    }

    /// Whether the server cannot have done anything.
    pub fn is_undone(&self) -> bool {
        matches!(self, Self::OutOfReach(_) | Self::Address(_) | Self::NoConnection(_) | Self::Certificate(_))
    }
}

/// Who may sign the certificates of servers, beside the system's authorities.
#[derive(Clone, Debug, Default)]
pub struct Authorities {
    certificates: Vec<Certificate>,
}

/// Why a file of authorities is of no use: correct the configuration.
#[derive(Debug, thiserror::Error)]
#[error("{} holds no authorities in PEM: {why}", path.display())]
pub struct AuthoritiesError {
    path: PathBuf,
    why: String,
}

impl Authorities {
    /// Those of a PEM file; `None`: the system's alone.
    pub fn read(path: Option<&Path>) -> Result<Self, AuthoritiesError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let fault = |why: String| AuthoritiesError { path: path.to_owned(), why };
        let found = CertificateDer::pem_file_iter(path).map_err(|error| fault(error.to_string()))?;
        let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|error| fault(error.to_string()))?;
        if found.is_empty() {
            return Err(fault("there is no certificate in it".to_owned()));
        }
        let mut roots = rustls::RootCertStore::empty();
        let mut certificates = Vec::with_capacity(found.len());
        for der in found {
            roots.add(der.clone()).map_err(|error| fault(error.to_string()))?;
            certificates.push(Certificate::from_der(&der).map_err(|error| fault(error.to_string()))?);
        }
        Ok(Self { certificates })
    }

    /// Besides those that a client believes already.
    pub fn certificates(&self) -> impl Iterator<Item = Certificate> + '_ {
        self.certificates.iter().cloned()
    }
}

/// Makes exchanges. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Fetcher {
    client: Client,
    reach: Reach,
    places: Arc<Semaphore>,
}

impl Fetcher {
    pub fn new(reach: Reach) -> Result<Self, reqwest::Error> {
        Self::trusting(reach, &Authorities::default())
    }

    /// One that believes these authorities too.
    pub fn trusting(reach: Reach, authorities: &Authorities) -> Result<Self, reqwest::Error> {
        // An error says that a provider is installed already, which is all that is wanted.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("offhook/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_LIMIT)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .dns_resolver(Arc::new(reach.clone()))
            // One request a connection at a time: a server cannot make us hold more than one answer.
            .http1_only()
            .tcp_nodelay(true)
            .pool_max_idle_per_host(KEPT)
            .pool_idle_timeout(KEPT_FOR)
            .tls_certs_merge(authorities.certificates())
            .build()?;
        Ok(Self { client, reach, places: Arc::new(Semaphore::new(AT_ONCE)) })
    }

    /// The answer that is no redirect. Dropping the future closes the connection.
    pub async fn send(&self, order: &Order) -> Result<Answer, FetchError> {
        let deadline = Instant::now() + order.limit;
        let slow = |_| FetchError::Slow(order.limit);
        let place = timeout_at(deadline, self.places.clone().acquire_owned()).await.map_err(slow)?;
        let place = place.expect("the semaphore is never closed");
        let (mut method, mut url, mut body) = (order.method.clone(), order.url.clone(), order.body.clone());
        for hop in 0..=MAX_REDIRECTS {
            self.check(&url).map_err(|error| error.after(hop))?;
            let mut headers = order.headers.clone();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            headers.entry(ACCEPT).or_insert(HeaderValue::from_static("application/json, text/plain;q=0.5"));
            if keeps_secrets(&order.url, &url) {
                headers.extend(order.secrets.clone());
            }
            if body.is_none() {
                headers.remove(CONTENT_TYPE);
            }
            let mut request = self.client.request(method.clone(), url.clone()).headers(headers);
            if let Some(body) = &body {
                request = request.body(body.clone());
            }
            let response = timeout_at(deadline, request.send()).await.map_err(slow)?;
            let response = response.map_err(|error| broken(error).after(hop))?;
            let status = response.status();
            let Some(next) = redirect(&response, &url)? else {
                let headers = response.headers().clone();
                let packed = headers.get(CONTENT_ENCODING).filter(|packed| *packed != "identity");
                if let Some(packed) = packed {
                    let packed = String::from_utf8_lossy(packed.as_bytes()).chars().take(40).collect();
                    return Err(FetchError::Packed(packed));
                }
                return Ok(Answer { status, headers, response, deadline, limit: order.limit, _place: place });
            };
            check_hop(order, &url, &next).map_err(|error| error.after(1))?;
            // RFC 9110 §15.4: 307 and 308 repeat the request, 303 asks for the result; 301 and 302 make a POST a GET, as
            // every client does.
            let repeats = matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
            if !repeats && method != Method::GET {
                (method, body) = (Method::GET, None);
            }
            url = next;
        }
        Err(FetchError::RedirectLoop)
    }

    /// An address in numbers is looked up nowhere: it is checked here, names where they are looked up.
    fn check(&self, url: &Url) -> Result<(), FetchError> {
        sound(url).map_err(FetchError::Address)?;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        match host.parse() {
            Ok(address) => Ok(self.reach.check(host, address)?),
            Err(_) => Ok(()),
        }
    }
}

/// What is wrong with an address that tools are to ask.
pub fn sound(url: &Url) -> Result<(), &'static str> {
    if !matches!(url.scheme(), "http" | "https") {
        Err("neither http nor https")
    } else if !url.username().is_empty() || url.password().is_some() {
        Err("one with a user or a password in it")
    } else if url.host_str().is_none_or(str::is_empty) {
        Err("without a host")
    } else {
        Ok(())
    }
}

/// Where an answer redirects to.
fn redirect(response: &Response, from: &Url) -> Result<Option<Url>, FetchError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let next = location.and_then(|location| from.join(location).ok());
    next.map(Some).ok_or_else(|| FetchError::Redirect("nowhere".into()))
}

fn check_hop(order: &Order, from: &Url, to: &Url) -> Result<(), FetchError> {
    sound(to).map_err(FetchError::Address)?;
    if from.scheme() == "https" && to.scheme() == "http" {
        return Err(FetchError::Redirect("an address without TLS".into()));
    }
    let same = to.host() == order.url.host()
        && (to.port_or_known_default() == order.url.port_or_known_default() || is_upgrade(&order.url, to));
    if same || order.hosts.iter().any(|allowed| names(allowed, to)) {
        return Ok(());
    }
    let host = to.host_str().unwrap_or_default().chars().take(100).collect::<String>();
    Err(FetchError::Redirect(format!("{host}, which is not among the tool's allowed hosts")))
}

/// From http to https of the same host, both at their own ports.
fn is_upgrade(from: &Url, to: &Url) -> bool {
    (from.scheme(), to.scheme()) == ("http", "https") && from.port().is_none() && to.port().is_none()
}

/// Whether an entry of allowed hosts, `host` or `host:port`, means this address.
fn names(allowed: &str, url: &Url) -> bool {
    let authority = match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or_default().to_owned(),
    };
    authority.eq_ignore_ascii_case(allowed.trim_end_matches('.'))
}

fn keeps_secrets(first: &Url, now: &Url) -> bool {
    first.host() == now.host()
        && (is_upgrade(first, now)
            || (first.scheme() == now.scheme() && first.port_or_known_default() == now.port_or_known_default()))
}

fn broken(error: reqwest::Error) -> FetchError {
    let mut source = error.source();
    let mut detail = String::new();
    while let Some(cause) = source {
        if let Some(refused) = cause.downcast_ref::<OutOfReach>() {
            return FetchError::OutOfReach(refused.clone());
        }
        if let Some(problem) = certificate_problem(cause) {
            return FetchError::Certificate(problem);
        }
        // The innermost says what happened.
        detail = cause.to_string();
        source = cause.source();
    }
    let detail = detail.chars().filter(|c| !c.is_control()).take(200).collect();
    if error.is_connect() { FetchError::NoConnection(detail) } else { FetchError::Broken(detail) }
}

/// What is wrong with a certificate, where that is why.
fn certificate_problem(cause: &(dyn Error + 'static)) -> Option<String> {
    // Errors of sockets hold others without being caused by them, one within the other.
    let mut cause = cause;
    while let Some(within) = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        cause = within;
    }
    let Some(rustls::Error::InvalidCertificate(problem)) = cause.downcast_ref() else { return None };
    Some(match problem {
        CertificateError::UnknownIssuer => {
            "nobody who is trusted here signed it; the operator can name an authority in tools.ca_file".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is for another host".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "it is not valid yet".to_owned(),
        other => other.to_string().chars().filter(|c| !c.is_control()).take(200).collect(),
    })
}

impl Answer {
    pub fn content_type(&self) -> &str {
        self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// What the head says of the body's length.
    pub fn length(&self) -> Option<u64> {
        self.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    /// The next piece; `None` at the body's proper end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        let chunk = timeout_at(self.deadline, self.response.chunk()).await;
        chunk.map_err(|_| FetchError::Slow(self.limit))?.map_err(broken)
    }

    /// The body up to `max` bytes, and whether there was more.
    pub async fn body(mut self, max: usize) -> Result<(Vec<u8>, bool), FetchError> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            let room = max - body.len();
            if chunk.len() > room {
                body.extend_from_slice(&chunk[..room]);
                return Ok((body, true));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((body, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    fn hop(from: &str, to: &str, hosts: &[&str]) -> Result<(), FetchError> {
        let order = Order {
            method: Method::GET,
            url: url(from),
            headers: HeaderMap::new(),
            secrets: HeaderMap::new(),
            body: None,
            hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
            limit: Duration::from_secs(1),
        };
        check_hop(&order, &url(from), &url(to))
    }

    #[test]
    fn a_redirect_stays_at_its_host_or_goes_to_one_that_is_allowed() {
        assert_eq!(hop("https://a.example/x", "https://a.example/y", &[]), Ok(()));
        assert_eq!(hop("http://a.example/", "https://a.example/", &[]), Ok(()));
        assert_eq!(hop("https://a.example/", "https://b.example/", &["b.example"]), Ok(()));
        assert_eq!(hop("https://a.example/", "https://b.example:8443/", &["B.example:8443"]), Ok(()));
        for (from, to) in [
            ("https://a.example/", "http://a.example/"),
            ("https://a.example/", "https://a.example:8443/"),
            ("https://a.example/", "https://c.example/"),
            ("https://a.example/", "https://b.example:444/"),
            ("https://a.example/", "https://a.example.evil.example/"),
            ("http://a.example/", "https://a.example:444/"),
            ("https://a.example/", "https://user:pass@b.example/"),
            ("https://a.example/", "file:///etc/passwd"),
        ] {
            assert!(hop(from, to, &["b.example"]).is_err(), "{from} to {to}");
        }
    }

    #[test]
    fn secrets_go_to_the_first_host_alone() {
        let keeps = |from, to| keeps_secrets(&url(from), &url(to));
        assert!(keeps("https://a.example/x", "https://a.example/y"));
        assert!(keeps("http://a.example/", "https://a.example/"));
        assert!(!keeps("https://a.example/", "https://b.example/"));
        assert!(!keeps("https://a.example/", "https://a.example:8443/"));
        assert!(!keeps("https://a.example/", "http://a.example/"));
    }
}
