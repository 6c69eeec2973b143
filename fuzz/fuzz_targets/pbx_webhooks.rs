//! A stranger who knows a webhook's address and sends anything at all to it. Nothing may panic, what is believed has an
//! answer, and Binotel's is exact to everything but a question.

#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use offhook::providers;
use offhook::providers::credentials::Credentials;
use offhook::providers::provider::{Decision, Event, Provider, WebhookRequest};

static RINGOSTAT: LazyLock<Arc<dyn Provider>> =
    LazyLock::new(|| open("ringostat", &[("auth_key", "k"), ("project_id", "1"), ("time_zone", "+02:00")]));
static BINOTEL: LazyLock<Arc<dyn Provider>> =
    LazyLock::new(|| open("binotel", &[("key", "k"), ("secret", "s"), ("company_id", "1"), ("routes", "901=15")]));

fn open(kind: &str, values: &[(&str, &str)]) -> Arc<dyn Provider> {
    let kind = providers::kind(kind).expect("it is one of KINDS");
    let values = values.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
    (kind.open)(&Credentials::new(kind, values).expect("they are good")).expect("they are whole")
}

fuzz_target!(|bytes: &[u8]| {
    // The first line is the query; what follows is the body.
    let (query, body) = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (&bytes[..0], bytes),
    };
    let query = std::str::from_utf8(query).unwrap_or_default();
    for (provider, exact) in [(&*RINGOSTAT, ""), (&*BINOTEL, r#"{"status":"success"}"#)] {
        let request = WebhookRequest { method: "POST", query, any_address: true, body, ..WebhookRequest::default() };
        let Ok(webhook) = provider.read_webhook(&request) else { continue };
        let answer = provider.answer(&webhook.event, &Decision::Route { to: "901" });
        assert!(matches!(webhook.event, Event::CallOffered(_)) || answer.body == exact);
    }
});
