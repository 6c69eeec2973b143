//! A recording that lies at its provider, passed through as it comes: its link carries a token and reaches no client of
//! ours. Keeps nothing.

use std::error::Error as _;
use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use reqwest::header::{self, HeaderMap, HeaderName};
use reqwest::{Client, Response, StatusCode};
use secrecy::ExposeSecret as _;
use tokio::time::timeout;

use crate::providers::provider::RecordingLink;
use crate::providers::rest::ProviderError;

/// The longest recording that is passed on: a day of stereo at 8 kHz and 16 bit is 2.8 GB, four hours are half of one.
const MAX_BYTES: u64 = 512 << 20;
/// Until the first byte, and between two pieces.
const LIMIT: Duration = Duration::from_secs(20);
/// A provider may send to its storage; three hosts are enough.
const REDIRECTS: usize = 3;

/// Sound on its way.
pub struct Sound {
    /// Only the part that was asked for.
    pub partial: bool,
    pub content_type: String,
    pub length: Option<u64>,
    /// `bytes 0-99/1000`, of a part.
    pub range: Option<String>,
    pub body: BoxStream<'static, io::Result<Bytes>>,
}

/// Asks for a recording; `range` is the client's own header (RFC 9110 §14), which a provider may leave aside.
pub async fn open(link: &RecordingLink, range: Option<&str>) -> Result<Sound, ProviderError> {
    let url = reqwest::Url::parse(&link.url).ok();
    let host = url.as_ref().and_then(|url| url.host_str()).unwrap_or_default().to_owned();
    // The error of a client holds the address, and the address a token.
    let unreachable = |detail: String| ProviderError::Unreachable { host: host.clone(), detail, maybe_done: false };
    let nonsense = |detail: String| ProviderError::Nonsense { host: host.clone(), detail };
    let url = url.ok_or_else(|| nonsense("the recording's link is no address".into()))?;
    let mut request = client().map_err(|error| unreachable(error.without_url().to_string()))?.get(url);
    if let Some(authorization) = &link.authorization {
        request = request.header(header::AUTHORIZATION, authorization.expose_secret());
    }
    if let Some(range) = range {
        request = request.header(header::RANGE, range);
    }
    let response = match timeout(LIMIT, request.send()).await {
        Err(_) => return Err(unreachable(format!("not within {} s", LIMIT.as_secs()))),
        Ok(Err(error)) => {
            let error = error.without_url();
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            return Err(unreachable(format!("{error}{cause}")));
        }
        Ok(Ok(response)) => response,
    };
    match response.status() {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => {}
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            return Err(ProviderError::NotFound { what: "such recording any more".into() });
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            return Err(ProviderError::NoRight { detail: "its recording is closed to us".into() });
        }
        status => return Err(nonsense(format!("status {} for a recording", status.as_u16()))),
    }
    let content_type = text(response.headers(), header::CONTENT_TYPE).unwrap_or_default();
    let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if !kind.starts_with("audio/") && kind != "application/octet-stream" && kind != "application/ogg" {
        return Err(nonsense(format!("{kind:?} instead of sound")));
    }
    let length = response.content_length();
    if length.is_some_and(|length| length > MAX_BYTES) {
        return Err(nonsense(format!("a recording over {MAX_BYTES} bytes")));
    }
    Ok(Sound {
        partial: response.status() == StatusCode::PARTIAL_CONTENT,
        content_type: kind,
        length,
        range: text(response.headers(), header::CONTENT_RANGE),
        body: pieces(response).boxed(),
    })
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// As fast as the client takes them, and no more than [`MAX_BYTES`].
fn pieces(response: Response) -> impl stream::Stream<Item = io::Result<Bytes>> {
    stream::try_unfold((response, 0u64), |(mut response, passed)| async move {
        let piece = timeout(LIMIT, response.chunk()).await.map_err(|_| io::ErrorKind::TimedOut)?;
        let Some(piece) = piece.map_err(|error| io::Error::other(error.without_url()))? else { return Ok(None) };
        let passed = passed + piece.len() as u64;
        if passed > MAX_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(Some((piece, (response, passed))))
    })
}

fn client() -> Result<Client, reqwest::Error> {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    if let Some(client) = CLIENT.get() {
        return Ok(client.clone());
    }
    // An error says that a provider of cryptography is installed already, which is all that is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder()
        .user_agent(concat!("offhook/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(5))
        .no_proxy()
        .redirect(reqwest::redirect::Policy::limited(REDIRECTS))
        .build()?;
    Ok(CLIENT.get_or_init(|| client).clone())
}
