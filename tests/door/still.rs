//! While the store stands still: an incoming call is answered all the same, and nothing is promised that is not written.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::common::{Cast, quick};
use crate::stores::Base;
use crate::whole::{ACCOUNT, CALLER, LINE, OTHER, OnTwilio, Whole, account, front_desk, items, text, until};
use crate::{Fields, call_sid, client, fields, genuine, voice};

crate::on_every_store! {
    a_call_is_answered_and_an_event_is_taken_once_it_can_be_written
}

async fn a_call_is_answered_and_an_event_is_taken_once_it_can_be_written(base: Base) {
    let whole = Whole::start(base, Cast::new(quick()), |_| {}).await;
    let acme = OnTwilio::set_up(&whole, account(), json!({}), front_desk()).await;
    let url = |route: &str| whole.url(&format!("/webhooks/twilio/{}/{route}", acme.integration));
    let over = call_sid();
    let message = format!("SM{}", uuid::Uuid::now_v7().simple());
    let events: [(String, Fields); 2] = [
        (
            url("status"),
            fields(&[
                ("AccountSid", ACCOUNT),
                ("CallSid", &over),
                ("CallStatus", "completed"),
                ("CallDuration", "7"),
                ("Direction", "inbound"),
                ("From", OTHER),
                ("To", LINE),
            ]),
        ),
        (
            url("sms"),
            fields(&[
                ("AccountSid", ACCOUNT),
                ("MessageSid", &message),
                ("From", CALLER),
                ("To", LINE),
                ("NumMedia", "0"),
                ("Body", "When do you open?"),
            ]),
        ),
    ];
    let twilio = client([127, 0, 0, 1]);
    // The connection is open, and the path warm.
    assert_eq!(genuine(&twilio, &url("voice"), &voice(&call_sid())).await.status(), 200);

    let stall = whole.base.stall().await;
    let refused = async |(url, fields): &(String, Fields)| {
        let began = Instant::now();
        assert_eq!(genuine(&twilio, url, fields).await.status(), 503);
        assert!(began.elapsed() < Duration::from_millis(2_600), "{:?}", began.elapsed());
    };
    // The first is on its way to the disk when it is given up, the second is still waiting its turn.
    refused(&events[0]).await;
    let mut waits = Vec::new();
    for _ in 0..3 {
        let began = Instant::now();
        let answer = genuine(&twilio, &url("voice"), &voice(&call_sid())).await;
        assert_eq!(answer.status(), 200);
        assert!(answer.text().await.unwrap().contains("<Stream"));
        waits.push(began.elapsed());
    }
    // The quickest of three: the machine has others to serve, too.
    assert!(waits.iter().min() < Some(&Duration::from_millis(200)), "{waits:?}");
    refused(&events[1]).await;
    stall.end().await;

    for (url, fields) in &events {
        assert_eq!(genuine(&twilio, url, fields).await.status(), 200, "it comes again and is taken");
        assert_eq!(genuine(&twilio, url, fields).await.status(), 200, "and again");
    }
    let closed = until("the status has acted", async || {
        let calls = acme.company.calls().await;
        calls.into_iter().find(|call| call["provider_call"] == *over && call["ended_at"].is_string())
    });
    let closed = closed.await;
    assert_eq!((&closed["talk_s"], &closed["outcome"]), (&json!(7), &json!("answered")));
    let answered = async || acme.mock.messages().into_iter().filter(|sent| sent.to == CALLER).collect::<Vec<_>>();
    until("the message is answered", async || (!answered().await.is_empty()).then_some(())).await;
    // Something later has acted, too: what would act a second time would have done so.
    acme.mock.text(OTHER, LINE, "And on Sunday?").await.unwrap();
    until("the later one is answered", async || acme.mock.messages().into_iter().find(|sent| sent.to == OTHER)).await;
    assert_eq!(answered().await.len(), 1, "once");
    let inbound: Vec<Value> = items(acme.company.get("/messages?phone=%2B380501234567").await);
    assert_eq!(inbound.iter().filter(|one| one["direction"] == "inbound").count(), 1);
    let calls = acme.company.calls().await;
    let of_it = calls.iter().filter(|call| call["provider_call"] == *over).count();
    assert_eq!((calls.len(), of_it), (5, 1), "four that were offered and the one that was over: {calls:#?}");
    assert!(calls.iter().all(|call| !text(&call["provider_call"]).is_empty()));
    whole.stop().await;
}
