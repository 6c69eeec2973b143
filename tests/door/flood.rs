//! A flood of requests that are nobody's costs time and no memory.

use std::net::SocketAddr;
use std::time::Instant;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use uuid::Uuid;

use crate::common::{Cast, quick};
use crate::stores::Base;
use crate::whole::{ACCOUNT, LINE, TOKEN, Whole, front_desk, until};
use crate::{call_sid, client, encoded, genuine, signed, voice};

/// Requests of the flood; `OFFHOOK_TEST_FLOOD` says how many.
const REQUESTS: usize = 50_000;
/// Connections that they come on, each kept alive.
const CONNECTIONS: usize = 8;
/// Requests that are on their way on one connection.
const AT_ONCE: usize = 25;
/// What resident memory may grow by: buffers of the connections, the allocator's slack, and nothing for each request
/// (at 50,000 requests, 4 MB are 84 bytes for each).
const GROWTH: usize = 4 * 1024 * 1024;

/// Bytes of this process in memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}

/// Sends `count` requests that `request` writes; gives how many were answered with each status.
async fn flood(
    server: SocketAddr,
    from: [u8; 4],
    count: usize,
    request: impl Fn(usize) -> String,
) -> Vec<(u16, usize)> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let mut stream = socket.connect(server).await.unwrap();
    let mut statuses: Vec<(u16, usize)> = Vec::new();
    let (mut answers, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
    for first in (0..count).step_by(AT_ONCE) {
        let batch = first..(first + AT_ONCE).min(count);
        let wanted = batch.len();
        stream.write_all(batch.map(&request).collect::<String>().as_bytes()).await.unwrap();
        answers.clear();
        let heads = loop {
            let read = stream.read(&mut chunk).await.unwrap();
            assert!(read > 0, "the connection stays open");
            answers.extend_from_slice(&chunk[..read]);
            let text = String::from_utf8_lossy(&answers);
            let heads: Vec<u16> =
                text.split("HTTP/1.1 ").skip(1).filter_map(|head| head.get(..3)?.parse().ok()).collect();
            // The last answer is whole when its body, a JSON object, is.
            if heads.len() == wanted && text.ends_with('}') {
                break heads;
            }
        };
        for status in heads {
            match statuses.iter_mut().find(|(known, _)| *known == status) {
                Some((_, count)) => *count += 1,
                None => statuses.push((status, 1)),
            }
        }
    }
    statuses.sort_unstable();
    statuses
}

/// On one store: a flood reaches none.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_made_up_ids_and_forged_signatures_leaves_memory_flat() {
    let requests = std::env::var("OFFHOOK_TEST_FLOOD").ok().and_then(|count| count.parse().ok()).unwrap_or(REQUESTS);
    let whole = Whole::start(Base::sqlite(), Cast::new(quick()), |_| {}).await;
    let acme = whole.company("Acme", json!({})).await;
    let account = json!({ "account_sid": ACCOUNT, "auth_token": TOKEN, "api_base": "http://127.0.0.1:9" });
    let integration = acme.integration("Main", "twilio", account).await;
    let agent = acme.agent(front_desk()).await;
    acme.line(integration, LINE, agent).await;
    let url = whole.url(&format!("/webhooks/twilio/{integration}/voice"));

    let post = |path: String, signature: &str| {
        let body = encoded(&voice(&call_sid()));
        format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nx-twilio-signature: {signature}\r\ncontent-type: \
             application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let forged = signed("http://elsewhere.example/", &Vec::new());
    // Half of the connections make up integrations, half forge the signature of one that is there; each from an address
    // of its own, with `offset` to tell one flood's addresses from the other's.
    let run = async |count: usize, offset: u8| {
        let each = count / CONNECTIONS;
        let floods = (0..CONNECTIONS).map(|n| {
            let (post, forged) = (&post, &forged);
            let from = [127, 0, 3, offset + n as u8];
            async move {
                let request = |_| match n % 2 {
                    0 => post(format!("/webhooks/twilio/{}/voice", Uuid::new_v4()), forged),
                    _ => post(format!("/webhooks/twilio/{integration}/voice"), forged),
                };
                (n % 2, flood(whole.app.address, from, each, request).await)
            }
        });
        futures::future::join_all(floods).await
    };
    // Every path has been gone and every buffer been made before memory is looked at.
    let warmed = run(requests / 10, 1).await;
    let (before, began) = (resident(), Instant::now());
    let answers = run(requests, 100).await;
    let (after, took) = (resident(), began.elapsed());
    let mut noted = 0;
    // Ten of an address are refused as such in a minute, and noted; this may have taken longer.
    let minutes = 2 + (began.elapsed().as_secs() / 60) as usize;
    for (forging, statuses) in warmed.into_iter().chain(answers) {
        match (forging, &statuses[..]) {
            (0, [(404, _)]) => {}
            (1, [(403, refused), (429, _)]) if (10..=10 * minutes).contains(refused) => noted += refused,
            _ => panic!("{statuses:?}"),
        }
    }
    println!("{requests} requests in {took:?}; resident before {before}, after {after} bytes");
    assert!(after.saturating_sub(before) < GROWTH, "{before} bytes before, {after} after");

    let answer = genuine(&client([127, 0, 3, 101]), &url, &voice(&call_sid())).await;
    assert_eq!(answer.status(), 200, "also at a forger's address");
    assert!(answer.text().await.unwrap().contains("<Stream"));
    until("the refusals are noted", async || (acme.audited("refused").await.len() == noted).then_some(())).await;
    whole.stop().await;
}
