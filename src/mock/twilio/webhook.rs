//! How the simulated Twilio calls us: form POSTs with a true signature, its time limits, and its retries with the
//! connection overrides of the address's fragment (`#rc=2&rp=all`).
//! <https://www.twilio.com/docs/usage/webhooks/webhooks-connection-overrides>

use std::time::Duration;

use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::load::sign::sign;
use crate::mock::twilio::twiml::MAX_TWIML;
use crate::mock::twilio::{Seen, Shared, SignedAs, Way};

/// What came of a webhook.
#[derive(Clone, Debug)]
pub(super) struct Answered {
    pub status: u16,
    pub body: String,
}

/// Twilio's error code: 11205 no connection, 11200 no good answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed(pub u32);

/// How often and how long. The defaults are Twilio's.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Overrides {
    retries: u32,
    read: Duration,
    total: Duration,
    on_connect: bool,
    on_read: bool,
    on_4xx: bool,
    on_5xx: bool,
}

impl Overrides {
    fn of(fragment: &str) -> Self {
        let mut this = Self {
            retries: 1,
            read: Duration::from_secs(15),
            total: Duration::from_secs(15),
            on_connect: true,
            on_read: false,
            on_4xx: false,
            on_5xx: false,
        };
        for (name, value) in form_urlencoded::parse(fragment.as_bytes()) {
            let ms = |value: &str| value.parse().ok().map(|ms: u64| Duration::from_millis(ms.clamp(100, 15_000)));
            match &*name {
                "rc" => this.retries = value.parse().unwrap_or(1).min(5),
                "rt" => this.read = ms(&value).unwrap_or(this.read),
                "tt" => this.total = ms(&value).unwrap_or(this.total),
                "rp" => {
                    let has = |word: &str| value.split(',').any(|policy| policy == word || policy == "all");
                    this.on_connect = has("ct");
                    this.on_read = has("rt");
                    this.on_4xx = has("4xx");
                    this.on_5xx = has("5xx");
                }
                _ => {}
            }
        }
        this
    }
}

impl Shared {
    /// Posts `fields` to `address` until it is answered or the tries are used up.
    pub(super) async fn webhook(&self, address: &str, fields: &[(String, String)]) -> Result<Answered, Failed> {
        let (address, fragment) = address.split_once('#').unwrap_or((address, ""));
        let overrides = Overrides::of(fragment);
        let signature = sign(&self.config.auth_token, &self.signed_url(address), fields);
        let token = Uuid::new_v4().to_string();
        let deadline = Instant::now() + overrides.total;
        let mut tries = 0;
        loop {
            tries += 1;
            let limit = overrides.read.min(deadline.saturating_duration_since(Instant::now()));
            let request = self
                .client
                .post(address)
                .header("X-Twilio-Signature", &signature)
                .header("I-Twilio-Idempotency-Token", &token)
                .header("User-Agent", "TwilioProxy/1.1")
                .form(fields);
            let line = self.note(Seen::new(Way::Out, "POST", address, fields));
            let exchange = async {
                let mut response = request.send().await?;
                let status = response.status().as_u16();
                let mut body = Vec::new();
                while let Some(chunk) = response.chunk().await? {
                    body.extend_from_slice(&chunk[..chunk.len().min(MAX_TWIML + 1 - body.len().min(MAX_TWIML))]);
                    if body.len() > MAX_TWIML {
                        break;
                    }
                }
                Ok::<_, reqwest::Error>(Answered { status, body: String::from_utf8_lossy(&body).into_owned() })
            };
            let (again, failed) = match timeout(limit, exchange).await {
                Ok(Ok(answered)) => {
                    self.noted(line, answered.status);
                    match answered.status {
                        200..=299 => return Ok(answered),
                        400..=499 => (overrides.on_4xx, Failed(11200)),
                        500.. => (overrides.on_5xx, Failed(11200)),
                        _ => (false, Failed(11200)),
                    }
                }
                Ok(Err(error)) if error.is_connect() => (overrides.on_connect, Failed(11205)),
                Ok(Err(_)) | Err(_) => (overrides.on_read, Failed(11200)),
            };
            if !again || tries > overrides.retries || Instant::now() >= deadline {
                return Err(failed);
            }
        }
    }

    /// Twilio's back ends do not agree about the port.
    fn signed_url(&self, address: &str) -> String {
        let Ok(url) = reqwest::Url::parse(address) else { return address.to_owned() };
        let Some(host) = url.host_str() else { return address.to_owned() };
        let (scheme, rest) = (url.scheme(), address.split_once("://").map_or("", |(_, rest)| rest));
        let path = rest.find(['/', '?']).map_or("", |at| &rest[at..]);
        match (self.config.signed_as, url.port_or_known_default()) {
            (SignedAs::Written, _) => address.to_owned(),
            (SignedAs::WithoutPort, _) => format!("{scheme}://{host}{path}"),
            (SignedAs::WithPort, Some(port)) => format!("{scheme}://{host}:{port}{path}"),
            (SignedAs::WithPort, None) => address.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_say_how_often_it_is_tried() {
        let usual = Overrides::of("");
        assert_eq!((usual.retries, usual.on_connect, usual.on_5xx), (1, true, false));
        let asked = Overrides::of("rc=9&rp=5xx,rt&rt=200");
        assert_eq!((asked.retries, asked.read), (5, Duration::from_millis(200)));
        assert_eq!((asked.on_connect, asked.on_read, asked.on_4xx, asked.on_5xx), (false, true, false, true));
        assert!(Overrides::of("rp=all").on_4xx);
    }
}
