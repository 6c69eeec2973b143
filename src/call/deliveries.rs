//! Tells companies what happened: takes events out of the outbox and posts them, signed in the way of Standard Webhooks
//! (standardwebhooks.com), at least once, until they have arrived or a day is over. What is slow or down harms its own
//! company's deliveries and nobody else's.

use std::collections::HashMap;
use std::error::Error as _;
use std::net::IpAddr;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use futures::future::try_join_all;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::{SignedDuration, Timestamp};
use metrics::{counter, histogram};
use reqwest::{Client, StatusCode, Url};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::json;
use sha2::Sha256;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};
use uuid::Uuid;

use crate::agent::tools::fetch::Authorities;
use crate::agent::tools::reach::Reach;
use crate::clock;
use crate::protocol::network::Network;
use crate::store::endpoints::secret_bytes;
use crate::store::outbox::{Next, Parcel, Took};
use crate::store::{At, Store, StoreError};

/// `[webhooks]`: what companies are told of their calls.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebhooksConfig {
    /// Networks (`10.1.0.0/16`), addresses and host names that may be posted to though they are not of the public
    /// internet; with any, `http://` addresses are posted to as well. A name is allowed at whatever address it has.
    pub allow_private: Vec<String>,
    /// An endpoint that has not answered by then has not taken the event, seconds. More lets slow endpoints hold more
    /// connections.
    pub timeout_s: u64,
}

impl Default for WebhooksConfig {
    fn default() -> Self {
        Self { allow_private: Vec::new(), timeout_s: 15 }
    }
}

impl WebhooksConfig {
    /// What cannot be right: the key, and the problem with its cure.
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        for text in &self.allow_private {
            let host = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            if text.parse::<Network>().is_err() && !host {
                let cure = "write a network such as 10.1.0.0/16, an address, or a host name without a port";
                faults.push(("allow_private", format!("{text:?} is no network and no host: {cure}")));
            }
        }
        if !(1..=60).contains(&self.timeout_s) {
            faults.push(("timeout_s", "must be from 1 to 60 seconds".to_owned()));
        }
        faults
    }
}

/// How deliveries are made. The defaults are for live endpoints; tests have shorter ones.
#[derive(Clone, Debug)]
pub struct DeliverySettings {
    pub allow_private: Vec<String>,
    /// A whole request and its answer.
    pub limit: Duration,
    /// Waits before the second attempt, the third, …; up to a fifth is added by chance, so that many that failed together
    /// do not come back together. After the last, a delivery is a dead letter.
    pub waits: Vec<Duration>,
    /// How often the outbox is looked at.
    pub poll: Duration,
    /// A delivery whose process died is tried again after this; longer than `limit`.
    pub lease: Duration,
}

/// Eleven attempts in 23 hours and up to a fifth more: soon after a slip, rarely during an outage, and until somebody has
/// slept over it.
const WAITS_S: [u64; 10] = [5, 30, 120, 600, 1800, 3600, 7200, 14_400, 28_800, 27_000];

impl From<&WebhooksConfig> for DeliverySettings {
    fn from(config: &WebhooksConfig) -> Self {
        let limit = Duration::from_secs(config.timeout_s);
        Self {
            allow_private: config.allow_private.clone(),
            limit,
            waits: WAITS_S.map(Duration::from_secs).into(),
            poll: Duration::from_millis(500),
            lease: limit + Duration::from_secs(45),
        }
    }
}

/// Deliveries on their way at once; of one company; to one endpoint. A company whose endpoints all hang holds eight of
/// the places and no more.
const AT_ONCE: usize = 256;
const AT_ONCE_COMPANY: usize = 8;
const AT_ONCE_ENDPOINT: usize = 4;
const CONNECT: Duration = Duration::from_secs(5);
/// Of an answer, this much is read, in bytes, and this much kept, in characters.
const ANSWER_BYTES: usize = 4096;
const ANSWER_CHARS: usize = 1000;
/// An endpoint that asks for a longer wait is tried sooner.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// What arrived is kept for a week, for looking; a dead letter for a month, for replaying.
const KEEP_ARRIVED: SignedDuration = SignedDuration::from_hours(7 * 24);
const KEEP_DEAD: SignedDuration = SignedDuration::from_hours(30 * 24);
const TIDY: Duration = Duration::from_secs(3600);
/// When it is told to stop, requests on their way have this long; what they came to is found out by sending again.
const LAST: Duration = Duration::from_secs(3);

/// The value of `webhook-signature` for one secret: `v1,` and the HMAC-SHA256 of `id.timestamp.body` in base64.
/// `None`: the secret is none.
pub fn sign(secret: &SecretString, id: &str, timestamp_s: i64, body: &str) -> Option<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&secret_bytes(secret)?).ok()?;
    mac.update(format!("{id}.{timestamp_s}.{body}").as_bytes());
    Some(format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes())))
}

/// Posts what is due until it is told to stop.
pub struct Deliveries {
    store: Store,
    settings: DeliverySettings,
    courier: Courier,
}

impl Deliveries {
    pub fn new(store: Store, settings: DeliverySettings) -> Result<Self, reqwest::Error> {
        Self::trusting(store, settings, &Authorities::default())
    }

    /// To endpoints that these authorities signed for, too.
    pub fn trusting(
        store: Store,
        settings: DeliverySettings,
        authorities: &Authorities,
    ) -> Result<Self, reqwest::Error> {
        Ok(Self { courier: Courier::new(&settings, authorities)?, store, settings })
    }

    pub async fn run(self, stop: CancellationToken) {
        let mut looks = interval(self.settings.poll);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tidied = None;
        let mut flights = Flights::default();
        let mut failing = false;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = flights.landed(), if !flights.is_empty() => {}
                _ = looks.tick() => {}
            }
            let looked = async {
                self.send_due(&mut flights).await?;
                if tidied.is_none_or(|at: Instant| at.elapsed() >= TIDY) {
                    let now = clock::now();
                    self.store.forget_deliveries(At(now - KEEP_ARRIVED), At(now - KEEP_DEAD)).await?;
                    tidied = Some(Instant::now());
                }
                Ok::<(), StoreError>(())
            };
            match looked.await {
                Ok(()) => failing = false,
                // Said once, however often it is tried.
                Err(fault) if !failing => {
                    failing = true;
                    error!(error = %fault, "the outbox of webhooks cannot be read; they wait");
                }
                Err(_) => {}
            }
        }
        let _ = timeout(LAST, async {
            while !flights.is_empty() {
                flights.landed().await;
            }
        })
        .await;
    }

    async fn send_due(&self, flights: &mut Flights) -> Result<(), StoreError> {
        for (company, endpoint) in self.store.due_endpoints().await? {
            let free = flights.free(company, endpoint);
            if free == 0 {
                continue;
            }
            let due = self.store.due_deliveries(endpoint, free).await?;
            // At the same time, so that they share a transaction.
            let claimed = try_join_all(due.iter().map(|due| self.store.claim_delivery(due, self.settings.lease)));
            for parcel in claimed.await?.into_iter().flatten() {
                let (store, settings, courier) = (self.store.clone(), self.settings.clone(), self.courier.clone());
                flights.start(company, endpoint, async move { deliver(&store, &settings, &courier, parcel).await });
            }
        }
        Ok(())
    }
}

/// What is on its way, counted.
#[derive(Default)]
struct Flights {
    tasks: JoinSet<()>,
    of: HashMap<Id, (Uuid, Uuid)>,
    /// By company and by endpoint, whose ids differ.
    counts: HashMap<Uuid, usize>,
}

impl Flights {
    fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    fn count(&self, id: Uuid) -> usize {
        self.counts.get(&id).copied().unwrap_or(0)
    }

    /// How many more may go to this endpoint.
    fn free(&self, company: Uuid, endpoint: Uuid) -> usize {
        AT_ONCE
            .saturating_sub(self.tasks.len())
            .min(AT_ONCE_COMPANY.saturating_sub(self.count(company)))
            .min(AT_ONCE_ENDPOINT.saturating_sub(self.count(endpoint)))
    }

    fn start(&mut self, company: Uuid, endpoint: Uuid, work: impl Future<Output = ()> + Send + 'static) {
        let task = self.tasks.spawn(work);
        self.of.insert(task.id(), (company, endpoint));
        *self.counts.entry(company).or_default() += 1;
        *self.counts.entry(endpoint).or_default() += 1;
    }

    /// Waits for one to end. Cancel-safe.
    async fn landed(&mut self) {
        let id = match self.tasks.join_next_with_id().await {
            None => return,
            Some(Ok((id, ()))) => id,
            Some(Err(fault)) => {
                error!(error = %fault, "a webhook's task panicked");
                fault.id()
            }
        };
        let Some((company, endpoint)) = self.of.remove(&id) else { return };
        for key in [company, endpoint] {
            if let Some(count) = self.counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&key);
                }
            }
        }
    }
}

async fn deliver(store: &Store, settings: &DeliverySettings, courier: &Courier, parcel: Parcel) {
    let began = Instant::now();
    let (took, retry_after) = courier.post(&parcel, clock::now()).await;
    histogram!("offhook_webhook_out_seconds").record(began.elapsed().as_secs_f64());
    let next = next(&took, retry_after, parcel.attempts, &settings.waits, rand::random_range(0.0..0.2));
    let result = match next {
        Next::Delivered => "delivered",
        Next::Again(_) => "failed",
        Next::Dead => "dead",
        Next::Gone => "gone",
    };
    counter!("offhook_webhook_out_total", "result" => result).increment(1);
    debug!(endpoint = %parcel.endpoint, event = %parcel.event, attempt = parcel.attempts, result, "webhook sent");
    let noted = async {
        store.note_delivery(&parcel, &took, next).await?;
        let action = match next {
            Next::Dead => "webhook.dead_letter",
            Next::Gone => "webhook.disabled",
            _ => return Ok(()),
        };
        let detail = json!({
            "name": parcel.name, "event": parcel.event, "attempts": parcel.attempts, "status": took.status,
            "error": took.error,
        });
        store.audit(Some(parcel.company), "webhooks", action, &parcel.endpoint.to_string(), &detail).await
    };
    // What is not noted is sent again: at least once.
    if let Err(fault) = noted.await {
        warn!(endpoint = %parcel.endpoint, error = %fault, "what came of a webhook could not be noted; it is sent again");
    }
}

/// What to do after an attempt, which is the `attempts`th. `chance`: 0 to 0.2.
fn next(took: &Took, retry_after: Option<Duration>, attempts: u32, waits: &[Duration], chance: f64) -> Next {
    match took.status {
        Some(200..=299) if took.error.is_none() => return Next::Delivered,
        Some(410) => return Next::Gone,
        _ => {}
    }
    match waits.get((attempts.max(1) - 1) as usize) {
        Some(wait) => {
            let asked = retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
            Next::Again(wait.mul_f64(1.0 + chance).max(asked))
        }
        None => Next::Dead,
    }
}

/// Posts to addresses that may be reached. Cheap to clone.
#[derive(Clone)]
struct Courier {
    client: Client,
    reach: Reach,
    /// Addresses without TLS too.
    plain: bool,
    limit: Duration,
}

impl Courier {
    fn new(settings: &DeliverySettings, authorities: &Authorities) -> Result<Self, reqwest::Error> {
        // An error says that a provider is installed already, which is all that is wanted.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let reach = Reach::new(&settings.allow_private);
        let client = Client::builder()
            .user_agent(concat!("offhook/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .dns_resolver(reach.clone())
            // A redirect could lead to where the first address may not, and would tell another host what is signed.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(AT_ONCE_ENDPOINT)
            .tls_certs_merge(authorities.certificates())
            .build()?;
        Ok(Self { client, reach, plain: !settings.allow_private.is_empty(), limit: settings.limit })
    }

    /// How the endpoint took it, and how long it asks to be left alone.
    async fn post(&self, parcel: &Parcel, now: Timestamp) -> (Took, Option<Duration>) {
        let failed = |error: String| (Took { error: Some(error), ..Took::default() }, None);
        let url = match self.allowed(&parcel.url) {
            Ok(url) => url,
            Err(refused) => return failed(refused),
        };
        let (id, timestamp) = (parcel.event.to_string(), now.as_second());
        let signatures: Vec<String> =
            parcel.secrets.iter().filter_map(|secret| sign(secret, &id, timestamp, &parcel.body)).collect();
        let request = self
            .client
            .post(url)
            .header("content-type", "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", timestamp.to_string())
            .header("webhook-signature", signatures.join(" "))
            .body(parcel.body.clone());
        let exchange = async {
            let mut response = request.send().await?;
            let status = response.status();
            let retry_after =
                response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
            let mut body = Vec::new();
            // The status has said it all: the body is for a person to read.
            while let Ok(Some(chunk)) = response.chunk().await {
                body.extend_from_slice(&chunk[..chunk.len().min(ANSWER_BYTES - body.len())]);
                if body.len() == ANSWER_BYTES {
                    break;
                }
            }
            Ok::<_, reqwest::Error>((status, retry_after.map(Duration::from_secs), body))
        };
        match timeout(self.limit, exchange).await {
            Err(_) => failed(format!("no answer within {} ms", self.limit.as_millis())),
            Ok(Err(fault)) => {
                // The address may hold a token.
                let fault = fault.without_url();
                let mut detail = fault.to_string();
                let mut source = fault.source();
                while let Some(cause) = source {
                    detail.push_str(": ");
                    detail.push_str(&cause.to_string());
                    source = cause.source();
                }
                failed(detail.chars().take(ANSWER_CHARS).collect())
            }
            Ok(Ok((status, retry_after, body))) => {
                let error = match status {
                    status if status.is_success() => None,
                    status if status.is_redirection() => Some("redirects are not followed".to_owned()),
                    StatusCode::GONE => Some("the endpoint is gone".to_owned()),
                    status => Some(format!("status {}", status.as_u16())),
                };
                let answer: String =
                    String::from_utf8_lossy(&body).chars().filter(|c| !c.is_control()).take(ANSWER_CHARS).collect();
                let answer = (!answer.is_empty()).then_some(answer);
                (Took { status: Some(status.as_u16()), answer, error }, retry_after)
            }
        }
    }

    /// A host that is an address is not looked up: it is judged here.
    fn allowed(&self, text: &str) -> Result<Url, String> {
        let url = Url::parse(text).map_err(|_| "the address is none".to_owned())?;
        match url.scheme() {
            "https" => {}
            "http" if self.plain => {}
            _ => return Err("the address must begin with https://".into()),
        }
        let host = url.host_str().unwrap_or_default();
        if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
            self.reach.check(host, address).map_err(|refused| refused.to_string())?;
        }
        Ok(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_the_standard() {
        // The example of the specification's libraries (standard-webhooks, `test_sign_function`).
        let secret = SecretString::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let signature = sign(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signature.as_deref(), Some("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="));
        assert_eq!(sign(&SecretString::from("plain"), "id", 5, "{}"), None);
    }

    #[test]
    fn waits_grow_to_a_day_and_then_it_is_a_dead_letter() {
        let waits = DeliverySettings::from(&WebhooksConfig::default()).waits;
        let total: Duration = waits.iter().sum();
        assert!((23..=26).contains(&(total.as_secs() / 3600)), "{total:?}");
        let failed = Took { status: Some(500), error: Some("status 500".into()), ..Took::default() };
        assert_eq!(next(&failed, None, 1, &waits, 0.0), Next::Again(Duration::from_secs(5)));
        assert_eq!(next(&failed, None, 2, &waits, 0.2), Next::Again(Duration::from_secs(36)));
        assert_eq!(next(&failed, Some(Duration::from_secs(90)), 1, &waits, 0.0), Next::Again(Duration::from_secs(90)));
        let asked = next(&failed, Some(Duration::from_secs(1 << 40)), 1, &waits, 0.0);
        assert_eq!(asked, Next::Again(LONGEST_RETRY_AFTER));
        assert_eq!(next(&failed, None, 10, &waits, 0.0), Next::Again(Duration::from_secs(27_000)));
        assert_eq!(next(&failed, None, 11, &waits, 0.0), Next::Dead);
        for (status, expected) in [(200, Next::Delivered), (204, Next::Delivered), (410, Next::Gone)] {
            let took = Took { status: Some(status), ..Took::default() };
            assert_eq!(next(&took, None, 1, &waits, 0.0), expected);
        }
        let moved = Took { status: Some(302), error: Some("redirects are not followed".into()), ..Took::default() };
        assert!(matches!(next(&moved, None, 1, &waits, 0.0), Next::Again(_)));
    }

    #[tokio::test]
    async fn addresses_that_are_not_public_are_not_posted_to_unless_the_operator_allows_them() {
        let courier = |allow: &[&str]| {
            let allow_private = allow.iter().map(|text| (*text).to_owned()).collect();
            let config = WebhooksConfig { allow_private, ..WebhooksConfig::default() };
            Courier::new(&DeliverySettings::from(&config), &Authorities::default()).unwrap()
        };
        let strict = courier(&[]);
        assert!(strict.allowed("https://93.184.216.34/x").is_ok());
        for bad in ["https://127.0.0.1/", "https://[::1]/", "https://169.254.169.254/", "http://93.184.216.34/", "x"] {
            assert!(strict.allowed(bad).is_err(), "{bad}");
        }
        assert!(courier(&["127.0.0.1"]).allowed("http://127.0.0.1:8080/").is_ok());
        let parcel = Parcel {
            delivery: Uuid::nil(),
            event: Uuid::nil(),
            company: Uuid::nil(),
            endpoint: Uuid::nil(),
            name: "a".into(),
            url: "https://localhost:1/".into(),
            body: "{}".into(),
            secrets: Vec::new(),
            attempts: 1,
        };
        let (took, _) = strict.post(&parcel, clock::now()).await;
        assert!(took.error.unwrap().contains("only public addresses"), "a name is judged by where it leads");
    }

    #[test]
    fn a_setting_that_cannot_be_is_told() {
        let config = WebhooksConfig { allow_private: vec!["http://x".into(), "10.0.0.0/8".into()], timeout_s: 0 };
        let keys: Vec<&str> = config.faults().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["allow_private", "timeout_s"]);
    }
}
