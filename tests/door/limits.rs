//! How much and how long.

use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::common::{Cast, PATIENCE, quick};
use crate::stores::Base;
use crate::whole::{ACCOUNT, LINE, TOKEN, Whole, front_desk};
use crate::{Fields, call_sid, client, encoded, genuine, queued, signed, voice};

crate::on_every_store! {
    the_121st_webhook_in_a_minute_is_refused_and_the_other_integration_is_served
    a_body_that_is_too_long_or_never_ends_is_not_waited_for
    a_voice_webhook_that_comes_again_and_again_is_about_one_call
}

async fn integrations(whole: &Whole) -> (crate::whole::Company, Uuid, Uuid) {
    let acme = whole.company("Acme", json!({})).await;
    let account = json!({ "account_sid": ACCOUNT, "auth_token": TOKEN, "api_base": "http://127.0.0.1:9" });
    let main = acme.integration("Main", "twilio", account.clone()).await;
    let second = acme.integration("Second", "twilio", account).await;
    let agent = acme.agent(front_desk()).await;
    acme.line(main, LINE, agent).await;
    acme.line(second, LINE, agent).await;
    (acme, main, second)
}

async fn the_121st_webhook_in_a_minute_is_refused_and_the_other_integration_is_served(base: Base) {
    let whole = Whole::start(base, Cast::new(quick()), |_| {}).await;
    let (_, main, second) = integrations(&whole).await;
    let url = |id: Uuid, route: &str| whole.url(&format!("/webhooks/twilio/{id}/{route}"));
    let twilio = client([127, 0, 0, 1]);
    let began = Instant::now();
    for _ in 0..50 {
        // Whoever forges spends nothing of the company's minute.
        let forged = twilio.post(url(main, "status")).header("X-Twilio-Signature", signed("http://x/", &Fields::new()));
        assert!(forged.form(&queued("CA1")).send().await.unwrap().status().is_client_error());
    }
    for n in 0..120 {
        let answer = genuine(&twilio, &url(main, "status"), &queued(&call_sid())).await;
        assert_eq!(answer.status(), 200, "number {}", n + 1);
    }
    assert!(began.elapsed() < Duration::from_secs(60), "a minute has not passed");
    for route in ["status", "voice"] {
        let refused = genuine(&twilio, &url(main, route), &voice(&call_sid())).await;
        assert_eq!(refused.status(), 429, "{route}");
        let wait: u64 = refused.headers()[RETRY_AFTER].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&wait), "until the first of the 120 is a minute old: {wait}");
    }
    for _ in 0..5 {
        assert_eq!(genuine(&twilio, &url(second, "voice"), &voice(&call_sid())).await.status(), 200);
    }
    assert!(whole.metric("offhook_webhook_total", &["provider=\"twilio\"", "result=\"limited\""]).await >= 2);
    whole.stop().await;
}

async fn a_body_that_is_too_long_or_never_ends_is_not_waited_for(base: Base) {
    let whole = Whole::start(base, Cast::new(quick()), |_| {}).await;
    let (acme, main, _) = integrations(&whole).await;
    let url = whole.url(&format!("/webhooks/twilio/{main}/voice"));
    let mut long = voice(&call_sid());
    long.push(("Extra".into(), "x".repeat(64 * 1024)));
    assert_eq!(genuine(&client([127, 0, 0, 1]), &url, &long).await.status(), 413);

    // A genuine head, half of a body, and silence.
    let fields = voice(&call_sid());
    let body = encoded(&fields);
    let head = format!(
        "POST /webhooks/twilio/{main}/voice HTTP/1.1\r\nhost: x\r\nx-twilio-signature: {}\r\ncontent-type: \
         application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n",
        signed(&url, &fields),
        body.len()
    );
    let mut socket = TcpStream::connect(whole.app.address).await.unwrap();
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&body.as_bytes()[..body.len() / 2]).await.unwrap();
    let began = Instant::now();
    let mut answer = Vec::new();
    timeout(PATIENCE, socket.read_to_end(&mut answer)).await.expect("the connection is closed").unwrap();
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert_eq!(acme.calls().await.len(), 0);
    assert_eq!(genuine(&client([127, 0, 0, 1]), &url, &fields).await.status(), 200);
    whole.stop().await;
}

async fn a_voice_webhook_that_comes_again_and_again_is_about_one_call(base: Base) {
    let whole = Whole::start(base, Cast::new(quick()), |_| {}).await;
    let (acme, main, _) = integrations(&whole).await;
    let url = whole.url(&format!("/webhooks/twilio/{main}/voice"));
    for round in 1..=10 {
        let fields = voice(&call_sid());
        // All at once, each on a connection of its own, and once more later.
        let twilio: Vec<reqwest::Client> = (0..4).map(|_| client([127, 0, 0, 1])).collect();
        let at_once = twilio.iter().map(|client| genuine(client, &url, &fields));
        let mut answers = futures::future::join_all(at_once).await;
        answers.push(genuine(&twilio[0], &url, &fields).await);
        let mut calls = std::collections::HashSet::new();
        for answer in answers {
            let twiml = answer.text().await.unwrap();
            let call = crate::common::between(&twiml, "name=\"call_id\" value=\"", "\"").expect("a call's id");
            calls.insert(call.to_owned());
        }
        assert_eq!(calls.len(), 1, "round {round}: {calls:?}");
        assert_eq!(acme.calls().await.len(), round);
    }
    whole.stop().await;
}
