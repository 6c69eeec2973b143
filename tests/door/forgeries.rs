//! What a forger might post in Twilio's name.

use offhook::providers::twilio::signature;
use reqwest::header::{HeaderValue, RETRY_AFTER};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::common::{Cast, quick};
use crate::stores::Base;
use crate::whole::{ACCOUNT, Company, LINE, TOKEN, Whole, front_desk, until};
use crate::{Fields, call_sid, client, encoded, fields, genuine, signed, voice};

crate::on_every_store! {
    more_than_thirty_forgeries_are_refused_counted_and_noted
    one_address_is_noted_ten_times_a_minute_and_silences_nobody
}

const FORM: &str = "application/x-www-form-urlencoded";

/// A request that is none of Twilio's.
struct Forgery {
    what: &'static str,
    url: String,
    headers: Vec<(&'static str, HeaderValue)>,
    kind: &'static str,
    body: String,
    /// How it is answered.
    status: u16,
}

/// A genuine request, to be spoilt.
struct Genuine {
    url: String,
    fields: Fields,
}

impl Genuine {
    /// Everything genuine but the signature.
    fn signed_as(&self, what: &'static str, signature: impl AsRef<[u8]>) -> Forgery {
        let signature = HeaderValue::from_bytes(signature.as_ref()).expect("bytes of a header");
        Forgery {
            what,
            url: self.url.clone(),
            headers: vec![("x-twilio-signature", signature)],
            kind: FORM,
            body: encoded(&self.fields),
            status: 403,
        }
    }

    /// Signed for another URL.
    fn signed_for(&self, what: &'static str, url: &str) -> Forgery {
        self.signed_as(what, signed(url, &self.fields))
    }

    /// The genuine signature over other fields.
    fn with(&self, what: &'static str, change: impl FnOnce(&mut Fields)) -> Forgery {
        let mut changed = self.fields.clone();
        change(&mut changed);
        Forgery { body: encoded(&changed), ..self.signed_for(what, &self.url) }
    }

    /// The genuine request, posted somewhere else.
    fn posted_to(&self, what: &'static str, url: String) -> Forgery {
        Forgery { url, ..self.signed_for(what, &self.url) }
    }

    fn json(&self, what: &'static str, url: String, body: &str) -> Forgery {
        let signature = signed(&url, &Fields::new());
        Forgery { url, kind: "application/json", body: body.into(), ..self.signed_as(what, signature) }
    }
}

fn set(fields: &mut Fields, name: &str, value: &str) {
    fields.iter_mut().find(|(field, _)| field == name).expect("the field").1 = value.to_owned();
}

fn forgeries(whole: &Whole, url: String, other: &str) -> Vec<Forgery> {
    let genuine = Genuine { url: url.clone(), fields: voice(&call_sid()) };
    let (address, port) = (whole.app.address.to_string(), whole.app.address.port());
    let good = signed(&url, &genuine.fields);
    let by = |token: &str| signature::sign(&token.into(), &url, &genuine.fields);
    let instead = |from: &str, to: &str| url.replacen(from, to, 1);
    let sha = |body: &str| Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let body = r#"{"AccountSid":"AC00000000000000000000000000000001"}"#;
    let mut last_changed = good.clone().into_bytes();
    last_changed[10] = if last_changed[10] == b'A' { b'B' } else { b'A' };
    vec![
        genuine.signed_as("another token", by("fedcba9876543210fedcba9876543210")),
        genuine.signed_as("no token", by("")),
        genuine.signed_as("the token in capitals", by(&TOKEN.to_uppercase())),
        genuine.signed_as("the account's id as the token", by(ACCOUNT)),
        genuine.signed_as("a signature without the fields", signed(&url, &Fields::new())),
        genuine.signed_as("one character changed", last_changed),
        genuine.signed_as("cut short", &good[..27]),
        genuine.signed_as("twice in one header", format!("{good}, {good}")),
        genuine.signed_as("in small letters", good.to_lowercase()),
        genuine.signed_as("empty", ""),
        genuine.signed_as("no text", [0xff, 0xfe, 0x80]),
        Forgery { headers: Vec::new(), status: 400, ..genuine.signed_as("no header", "") },
        genuine.with("another caller", |fields| set(fields, "From", "+380991112233")),
        genuine.with("another line", |fields| set(fields, "To", "+380449999999")),
        genuine.with("another call", |fields| set(fields, "CallSid", &call_sid())),
        genuine.with("caller and line exchanged", |fields| {
            set(fields, "From", LINE);
            set(fields, "To", crate::whole::CALLER);
        }),
        genuine.with("a field more", |fields| fields.push(("Direction".into(), "outbound-api".into()))),
        genuine.with("a field less", |fields| fields.retain(|(name, _)| name != "CallStatus")),
        genuine.with("a field renamed", |fields| fields[3].0 = "Caller".into()),
        genuine.with("a field twice with another value", |fields| fields.push(("To".into(), "+380449999999".into()))),
        // A signature takes a repeated pair once, and runs names and values together: both have a good one.
        Forgery {
            status: 400,
            ..genuine.with("a field twice with the same value", |fields| fields.push(fields[4].clone()))
        },
        Forgery {
            status: 400,
            ..genuine.with("two fields run together", |fields| {
                let (name, value) = fields.pop().expect("the last");
                fields.last_mut().expect("another").1 += &format!("{name}{value}");
            })
        },
        genuine.posted_to("replayed on another integration", other.to_owned()),
        genuine.posted_to("replayed on another route", instead("/voice", "/status")),
        genuine.posted_to("with a call of ours in the query", format!("{url}?call={}", uuid::Uuid::now_v7())),
        genuine.posted_to("another spelling of the path", instead("/voice", "/%76oice")),
        genuine.signed_for("signed for another host", &instead(&address, "voice.example.com")),
        genuine.signed_for("signed for https", &instead("http://", "https://")),
        genuine.signed_for("signed for another port", &instead(&port.to_string(), &(port ^ 1).to_string())),
        genuine.signed_for("signed for the port of https", &instead(&port.to_string(), "443")),
        genuine.signed_for("signed with a user", &instead("http://", "http://user:pass@")),
        {
            let mut spoilt = genuine.signed_for("another host in the headers", &instead(&address, "voice.example.com"));
            let host = HeaderValue::from_static("voice.example.com");
            spoilt.headers.extend([("host", host.clone()), ("x-forwarded-host", host)]);
            spoilt
        },
        {
            let other_account = fields(&[("AccountSid", "AC00000000000000000000000000000002"), ("CallSid", "CA1")]);
            let signature = signed(&url, &other_account);
            Forgery { body: encoded(&other_account), ..genuine.signed_as("of another account", signature) }
        },
        genuine.json("JSON with another body", format!("{url}?bodySHA256={}", sha("{}")), body),
        genuine.json("JSON that nothing vouches for", url.clone(), body),
        Forgery { kind: "application/json", ..genuine.signed_for("a form that says that it is JSON", &url) },
        Forgery { kind: "text/plain", status: 415, ..genuine.signed_for("plain text", &url) },
        Forgery { kind: "multipart/form-data; boundary=x", status: 415, ..genuine.signed_for("in parts", &url) },
    ]
}

async fn company(whole: &Whole) -> (Company, String, String) {
    let acme = whole.company("Acme", json!({})).await;
    let account = json!({ "account_sid": ACCOUNT, "auth_token": TOKEN, "api_base": "http://127.0.0.1:9" });
    let main = acme.integration("Main", "twilio", account.clone()).await;
    let second = acme.integration("Second", "twilio", account).await;
    let agent = acme.agent(front_desk()).await;
    acme.line(main, LINE, agent).await;
    acme.line(second, LINE, agent).await;
    let url = |id| whole.url(&format!("/webhooks/twilio/{id}/voice"));
    (acme, url(main), url(second))
}

async fn more_than_thirty_forgeries_are_refused_counted_and_noted(base: Base) {
    let whole = Whole::start(base, Cast::new(quick()), |_| {}).await;
    let (acme, url, other) = company(&whole).await;
    let forgeries = forgeries(&whole, url.clone(), &other);
    let refusals = ["forged", "unsigned", "malformed", "wrong_account", "not_a_form"];
    let counted = async || {
        let mut sum = 0;
        for refusal in refusals {
            let labels = ["provider=\"twilio\"", &format!("result=\"{refusal}\"")];
            sum += whole.metric("offhook_webhook_total", &labels).await;
        }
        sum
    };
    let before = counted().await;
    for (n, forgery) in forgeries.iter().enumerate() {
        // Each comes from an address of its own: none is refused for what another did.
        let mut request = client([127, 0, 1, u8::try_from(n + 1).unwrap()]).post(&forgery.url);
        for (name, value) in &forgery.headers {
            request = request.header(*name, value);
        }
        let response = request.header("content-type", forgery.kind).body(forgery.body.clone()).send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        assert_eq!(status, forgery.status, "{}: {text}", forgery.what);
        assert!(!text.contains("<Response"), "{}: {text}", forgery.what);
    }
    let count = forgeries.len();
    assert!(count > 30);
    assert!(counted().await - before >= count as u64, "each is counted");
    until("each is in the audit log", async || (acme.audited("refused").await.len() == count).then_some(())).await;
    let noted = acme.audited("refused").await;
    assert!(
        noted.iter().any(|entry| entry["detail"] == json!({ "reason": "forged", "client": "127.0.1.1" })),
        "{noted:?}"
    );
    assert_eq!(acme.calls().await.len(), 0, "no call came of it");

    for address in [[127, 0, 1, 1], [127, 0, 0, 1]] {
        for url in [&url, &other] {
            let answer = genuine(&client(address), url, &voice(&call_sid())).await;
            assert_eq!(answer.status(), 200);
            assert!(answer.text().await.unwrap().contains("<Stream"));
        }
    }
    // Twilio's back ends do not agree about the port: one that leaves it out is genuine.
    let (call, portless) = (voice(&call_sid()), url.replacen(&format!(":{}", whole.app.address.port()), "", 1));
    let request = client([127, 0, 0, 1]).post(&url).header("X-Twilio-Signature", signed(&portless, &call)).form(&call);
    assert_eq!(request.send().await.unwrap().status(), 200);
    assert_eq!(acme.calls().await.len(), 5);
    whole.stop().await;
}

async fn one_address_is_noted_ten_times_a_minute_and_silences_nobody(base: Base) {
    let whole = Whole::start(base, Cast::new(quick()), |_| {}).await;
    let (acme, url, _) = company(&whole).await;
    let forger = client([127, 0, 2, 1]);
    let mut statuses = Vec::new();
    for _ in 0..30 {
        let request = forger.post(&url).header("X-Twilio-Signature", signed("http://x/", &Fields::new()));
        let response = request.form(&voice(&call_sid())).send().await.unwrap();
        if response.status() == 429 {
            let wait: u64 = response.headers()[RETRY_AFTER].to_str().unwrap().parse().unwrap();
            assert!((1..=60).contains(&wait), "{wait}");
        }
        statuses.push(response.status().as_u16());
    }
    assert_eq!(statuses[..10], [403; 10]);
    assert_eq!(statuses[10..], [429; 20]);
    until("ten are noted", async || (acme.audited("refused").await.len() == 10).then_some(())).await;
    // Also at the forger's own address, which a proxy may share between it and Twilio.
    assert_eq!(genuine(&forger, &url, &voice(&call_sid())).await.status(), 200);
    let other = client([127, 0, 2, 2]).post(&url).header("X-Twilio-Signature", "x").form(&voice("CA1")).send().await;
    assert_eq!(other.unwrap().status(), 403, "another address has a count of its own");
    until("it is noted, too", async || (acme.audited("refused").await.len() == 11).then_some(())).await;
    whole.stop().await;
}
