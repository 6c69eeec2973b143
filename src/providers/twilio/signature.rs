//! `X-Twilio-Signature`: whether a request really came from the account whose Auth Token we hold.
//! <https://www.twilio.com/docs/usage/webhooks/webhooks-security>
//!
//! The URL is the one that Twilio was told to request, percent-encoding and all: the caller builds it from the public
//! URL in the configuration and never from `Host` or `X-Forwarded-*`. Everything here compares in constant time and
//! tries every candidate even after one matched.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

/// The header that carries the signature.
pub const HEADER: &str = "x-twilio-signature";

/// The request is not Twilio's, or not with a token that we know. Refuse it and do nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("the signature does not match")]
    Wrong,
    /// A body that is no form must be vouched for by `bodySHA256` in the query.
    #[error("the body does not match bodySHA256")]
    WrongBody,
    #[error("not an absolute URL")]
    NotAUrl,
}

/// Checks a form POST; a GET, whose fields are in its URL, has no `fields`. They are the decoded names and values in any
/// order, all of them. `tokens` holds more than one while an Auth Token is being rotated.
pub fn verify_form(
    tokens: &[SecretString],
    url: &str,
    fields: &[(String, String)],
    signature: &str,
) -> Result<(), SignatureError> {
    let url = SignedUrl::parse(url).ok_or(SignatureError::NotAUrl)?;
    verify(tokens, &url.candidates(&[url.scheme]), fields, signature)
}

/// Checks a request whose body is not a form, usually JSON: its SHA-256 is a parameter of the signed URL.
pub fn verify_body(tokens: &[SecretString], url: &str, body: &[u8], signature: &str) -> Result<(), SignatureError> {
    let parsed = SignedUrl::parse(url).ok_or(SignatureError::NotAUrl)?;
    verify(tokens, &parsed.candidates(&[parsed.scheme]), &[], signature)?;
    let query = parsed.query.unwrap_or_default();
    let (_, claimed) = form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "bodySHA256")
        .ok_or(SignatureError::WrongBody)?;
    let digest: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    if bool::from(digest.as_bytes().ct_eq(claimed.as_bytes())) { Ok(()) } else { Err(SignatureError::WrongBody) }
}

/// Checks the handshake of a media websocket. `url` is the stream URL as written in the TwiML, `wss://…`; behind a proxy
/// Twilio's side has been seen to sign `https://…` too.
pub fn verify_websocket(tokens: &[SecretString], url: &str, signature: &str) -> Result<(), SignatureError> {
    let url = SignedUrl::parse(url).ok_or(SignatureError::NotAUrl)?;
    let schemes = if matches!(url.scheme, "wss" | "https") { ["wss", "https"] } else { ["ws", "http"] };
    verify(tokens, &url.candidates(&schemes), &[], signature)
}

/// The signature of exactly this URL and these fields: what Twilio does, for simulators and tests.
pub fn sign(token: &SecretString, url: &str, fields: &[(String, String)]) -> String {
    STANDARD.encode(digest(&keyed(token), url, &sorted(fields)))
}

fn verify(
    tokens: &[SecretString],
    urls: &[String],
    fields: &[(String, String)],
    signature: &str,
) -> Result<(), SignatureError> {
    let fields = sorted(fields);
    let mut matched = Choice::from(0);
    for token in tokens {
        let key = keyed(token);
        for url in urls {
            let expected = STANDARD.encode(digest(&key, url, &fields));
            matched |= expected.as_bytes().ct_eq(signature.as_bytes());
        }
    }
    if bool::from(matched) { Ok(()) } else { Err(SignatureError::Wrong) }
}

fn keyed(token: &SecretString) -> Hmac<Sha1> {
    Hmac::<Sha1>::new_from_slice(token.expose_secret().as_bytes()).expect("HMAC takes a key of any length")
}

fn digest(key: &Hmac<Sha1>, url: &str, fields: &[&(String, String)]) -> [u8; 20] {
    let mut mac = key.clone();
    mac.update(url.as_bytes());
    for (name, value) in fields {
        mac.update(name.as_bytes());
        mac.update(value.as_bytes());
    }
    mac.finalize().into_bytes().into()
}

/// By name, then by value, each pair once. By name first: `Sid` comes before `SidAccount` whatever their values are.
fn sorted(fields: &[(String, String)]) -> Vec<&(String, String)> {
    let mut sorted: Vec<_> = fields.iter().collect();
    sorted.sort_unstable();
    sorted.dedup();
    sorted
}

/// A URL in the parts that Twilio's back ends do not agree about.
struct SignedUrl<'a> {
    scheme: &'a str,
    /// With `user:password@`, without the port.
    host: &'a str,
    port: Option<&'a str>,
    path: &'a str,
    query: Option<&'a str>,
}

impl<'a> SignedUrl<'a> {
    fn parse(url: &'a str) -> Option<Self> {
        // A fragment is not part of a request.
        let url = url.split('#').next().unwrap_or_default();
        let (scheme, rest) = url.split_once("://")?;
        let (authority, path_and_query) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (path, query) = match path_and_query.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path_and_query, None),
        };
        // The last colon starts a port unless it belongs to the user's password or to an IPv6 address.
        let host_starts = authority.rfind('@').map_or(0, |at| at + 1);
        let port_starts = authority[host_starts..].rfind(':').map(|colon| host_starts + colon);
        let (host, port) = match port_starts {
            Some(colon) if !authority[colon..].contains(']') => (&authority[..colon], Some(&authority[colon + 1..])),
            _ => (authority, None),
        };
        Some(Self { scheme, host, port, path, query })
    }

    /// Every URL that Twilio may have signed for this one: without and with the port, each with the query as it is and,
    /// where that differs, as old back ends re-encode it.
    fn candidates(&self, schemes: &[&str]) -> Vec<String> {
        let mut queries = vec![self.query.map(str::to_owned)];
        if let Some(query) = self.query {
            let legacy = form_urlencoded::Serializer::new(String::new())
                .extend_pairs(form_urlencoded::parse(query.as_bytes()))
                .finish();
            if legacy != query {
                queries.push(Some(legacy));
            }
        }
        let mut urls = Vec::with_capacity(2 * schemes.len() * queries.len());
        for &scheme in schemes {
            let standard_port = if matches!(scheme, "https" | "wss") { "443" } else { "80" };
            for port in [None, Some(self.port.unwrap_or(standard_port))] {
                for query in &queries {
                    let mut url = format!("{scheme}://{}", self.host);
                    if let Some(port) = port {
                        url.extend([":", port]);
                    }
                    url.push_str(self.path);
                    if let Some(query) = query {
                        url.extend(["?", query]);
                    }
                    urls.push(url);
                }
            }
        }
        urls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_tried_without_and_with_its_port() {
        let check = |url: &str, schemes: &[&str], expected: &[&str]| {
            assert_eq!(SignedUrl::parse(url).unwrap().candidates(schemes), expected, "{url}");
        };
        check("https://a.b/c?d=1", &["https"], &["https://a.b/c?d=1", "https://a.b:443/c?d=1"]);
        check("http://a.b:8080", &["http"], &["http://a.b", "http://a.b:8080"]);
        check("http://u:p@a.b/#top", &["http"], &["http://u:p@a.b/", "http://u:p@a.b:80/"]);
        check("http://[::1]/x", &["http"], &["http://[::1]/x", "http://[::1]:80/x"]);
        check("http://[::1]:81/x", &["http"], &["http://[::1]/x", "http://[::1]:81/x"]);
        check(
            "wss://a.b/c",
            &["wss", "https"],
            &["wss://a.b/c", "wss://a.b:443/c", "https://a.b/c", "https://a.b:443/c"],
        );
        check(
            "http://a?b='c d'",
            &["http"],
            &["http://a?b='c d'", "http://a?b=%27c+d%27", "http://a:80?b='c d'", "http://a:80?b=%27c+d%27"],
        );
        assert!(SignedUrl::parse("/webhooks/x").is_none());
    }

    #[test]
    fn fields_are_sorted_by_name_and_then_by_value() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let fields = [pair("SidAccount", "A"), pair("b", "2"), pair("Sid", "Z"), pair("b", "1"), pair("b", "2")];
        let names: Vec<_> = sorted(&fields).into_iter().map(|(name, value)| format!("{name}{value}")).collect();
        assert_eq!(names, ["SidZ", "SidAccountA", "b1", "b2"]);
    }
}
