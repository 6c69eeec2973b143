//! What is left of a caller's words on a bad line: a telephone talks with the whole program and the local demo model
//! through a relay between real sockets that loses, delays, reorders and doubles packets, both ways. Once through a relay
//! that does nothing, for comparison.
#![cfg(feature = "whisper")]

#[path = "common/stores.rs"]
mod stores;

mod common;

#[path = "common/whole.rs"]
mod whole;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use offhook::load::caller::{self, CallerConfig, CallerReport, Ending, Way};
use offhook::load::fixture::{Ender, Expect, Fixture, Kind, Start};
use offhook::load::phones::Phones;
use offhook::load::sip::SipWay;
use offhook::protocol::sip::value::SipUri;
use offhook::speech::scripted::ScriptedConfig;
use offhook::speech::stt::whisper::{Whisper, WhisperConfig};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::common::{Cast, quick};
use crate::stores::Base;
use crate::whole::{Company, Whole, front_desk, id, until};

const LINE: &str = "+380441234567";

#[derive(Clone, Copy)]
struct Harm {
    loss: f64,
    jitter_ms: u64,
    doubled: f64,
}

const NONE: Harm = Harm { loss: 0.0, jitter_ms: 0, doubled: 0.0 };
/// Jitter above the packets' distance of 20 ms puts them out of order by itself.
const BAD: Harm = Harm { loss: 0.10, jitter_ms: 60, doubled: 0.03 };

/// Stands between a telephone and the server: messages pass with the media address of either side replaced by its own, and
/// media goes through the harm.
struct Relay {
    addr: SocketAddr,
    _tasks: JoinSet<()>,
}

async fn socket() -> Arc<UdpSocket> {
    Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a free port"))
}

fn port_of(socket: &UdpSocket) -> u16 {
    socket.local_addr().expect("bound").port()
}

impl Relay {
    async fn start(server: SocketAddr, harm: Harm, seed: u64) -> Self {
        let (signalling, to_phone, to_server) = (socket().await, socket().await, socket().await);
        let addr = signalling.local_addr().expect("bound");
        let mut tasks = JoinSet::new();
        let (phone_port, server_port) = (port_of(&to_phone), port_of(&to_server));
        let (phone_at, phone_known) = tokio::sync::watch::channel(None);
        let (server_at, server_known) = tokio::sync::watch::channel(None);
        tasks.spawn(async move {
            let (mut buffer, mut phone) = (vec![0; 65_536], None);
            while let Ok((length, source)) = signalling.recv_from(&mut buffer).await {
                let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
                // An offer awaits media on our side to the server, an answer on our side to the telephone.
                let (far, at, port) = match source == server {
                    true => (phone, &server_at, phone_port),
                    false => {
                        phone = Some(source);
                        (Some(server), &phone_at, server_port)
                    }
                };
                let (message, media) = with_media_port(&message, port);
                if let Some(media) = media {
                    at.send_replace(Some(SocketAddr::from(([127, 0, 0, 1], media))));
                }
                if let Some(far) = far {
                    let _ = signalling.send_to(message.as_bytes(), far).await;
                }
            }
        });
        let ways = [(to_phone.clone(), to_server.clone(), server_known), (to_server, to_phone, phone_known)];
        for (seed, (from, to, at)) in (seed..).zip(ways) {
            tasks.spawn(async move { carry(from, to, at, harm, StdRng::seed_from_u64(seed)).await });
        }
        Self { addr, _tasks: tasks }
    }
}

/// One direction of media.
async fn carry(
    from: Arc<UdpSocket>,
    to: Arc<UdpSocket>,
    at: tokio::sync::watch::Receiver<Option<SocketAddr>>,
    harm: Harm,
    mut rng: StdRng,
) {
    let (mut buffer, mut late) = (vec![0; 2_048], JoinSet::new());
    while let Ok((length, _)) = from.recv_from(&mut buffer).await {
        while late.try_join_next().is_some() {}
        let Some(target) = *at.borrow() else { continue };
        if rng.random::<f64>() < harm.loss {
            continue;
        }
        let copies = if rng.random::<f64>() < harm.doubled { 2 } else { 1 };
        for _ in 0..copies {
            let delay = Duration::from_secs_f64(rng.random::<f64>() * harm.jitter_ms as f64 / 1_000.0);
            let (to, packet) = (Arc::clone(&to), buffer[..length].to_vec());
            late.spawn(async move {
                if !delay.is_zero() {
                    sleep(delay).await;
                }
                let _ = to.send_to(&packet, target).await;
            });
        }
    }
}

/// The message with another port in its SDP, and the port that was there.
fn with_media_port(message: &str, port: u16) -> (String, Option<u16>) {
    let Some((head, body)) = message.split_once("\r\n\r\n") else { return (message.to_owned(), None) };
    let Some(at) = body.find("m=audio ") else { return (message.to_owned(), None) };
    let rest = &body[at + 8..];
    let end = rest.find(' ').unwrap_or(rest.len());
    let changed = format!("{}m=audio {port}{}", &body[..at], &rest[end..]);
    let head: Vec<String> = head
        .split("\r\n")
        .map(|line| match line.starts_with("Content-Length:") {
            true => format!("Content-Length: {}", changed.len()),
            false => line.to_owned(),
        })
        .collect();
    (format!("{}\r\n\r\n{changed}", head.join("\r\n")), rest[..end].parse().ok())
}

/// Everything that the shipped callers say in short sentences, one after the other, each when the agent is silent.
fn talker() -> Arc<Fixture> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("audio-fixtures");
    let mut fixture = Fixture::find(&folder, "booking").expect("a shipped fixture");
    for other in ["opening-hours", "callback", "cancel"] {
        let more = Fixture::find(&folder, other).expect("a shipped fixture").turns;
        let last = fixture.turns.len() - 1;
        // "thanks goodbye" stays the end.
        fixture.turns.splice(last..last, more.into_iter().filter(|turn| !turn.text.contains("goodbye")));
    }
    for turn in &mut fixture.turns {
        (turn.kind, turn.start) = (Kind::Turn, Start::AfterAgent(700));
    }
    fixture.expect = Expect { ended_by: Some(Ender::Caller), ..Expect::default() };
    Arc::new(fixture)
}

fn words(text: &str) -> Vec<String> {
    let plain = |word: &str| word.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    text.split_whitespace().map(plain).filter(|word| !word.is_empty()).collect()
}

/// Words substituted, missing or added.
fn wrong_words(said: &[String], heard: &[String]) -> usize {
    let mut row: Vec<usize> = (0..=heard.len()).collect();
    for (i, word) in said.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in heard.iter().enumerate() {
            let best = (diagonal + usize::from(word != other)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], best);
        }
    }
    row[heard.len()]
}

/// One call through a relay: what the telephone measured, and the share of its words that the record holds.
async fn recognised(company: &Company, server: SocketAddr, harm: Harm) -> (CallerReport, f64) {
    let relay = Relay::start(server, harm, 7).await;
    let (phones, _) = Phones::open("127.0.0.1:0".parse().expect("an address"), None, None).expect("a socket");
    let uri = SipUri::parse(&format!("sip:{LINE}@{}", relay.addr)).expect("an address");
    let fixture = talker();
    let mut config = CallerConfig::new(Way::Sip(Box::new(SipWay::new(phones, uri))), Arc::clone(&fixture));
    config.reply_limit = Duration::from_secs(60);
    let before: Vec<_> = company.calls().await.iter().map(id).collect();
    let report = timeout(Duration::from_secs(240), caller::call(config)).await.expect("the call ends");
    let call =
        until("the call is listed", async || company.calls().await.iter().map(id).find(|call| !before.contains(call)))
            .await;
    let record = company.record(call).await;
    let said: Vec<String> = fixture.turns.iter().flat_map(|turn| words(&turn.text)).collect();
    let lines = Company::said(&record);
    let heard: Vec<String> = lines.iter().filter_map(|line| line.strip_prefix("caller: ")).flat_map(words).collect();
    let wrong = wrong_words(&said, &heard);
    println!("{wrong} of {} words wrong: {lines:?}\n{:?}", said.len(), report.rtp);
    (report, 1.0 - wrong as f64 / said.len() as f64)
}

#[tokio::test(flavor = "multi_thread")]
async fn most_words_survive_a_line_that_loses_a_tenth_and_trembles() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = WhisperConfig {
        workers: 1,
        final_limit_ms: 60_000,
        models_dir: root.join("models"),
        ..WhisperConfig::default()
    };
    let engine = Whisper::load(&config).expect("the demo model is part of the project");
    let brief = ScriptedConfig { answers: vec!["Yes.".into()], ..quick() };
    let cast = Cast { stt: Arc::new(engine), ..Cast::new(brief) };
    let whole = Whole::start(Base::sqlite(), cast, |config| {
        config.sip.listen = "127.0.0.1:0".parse().expect("an address");
        config.sip.rtp.listen = "127.0.0.1".parse().expect("an address");
    })
    .await;
    let company = whole.company("Acme", json!({})).await;
    let integration = company.integration("Trunk", "sip", json!({ "sip.peers": "127.0.0.1" })).await;
    let agent = company.agent(front_desk()).await;
    company.line(integration, LINE, agent).await;
    let server = until("SIP listens", async || whole.app.sip.addrs()).await.udp.expect("UDP");

    let (clean, clean_share) = recognised(&company, server, NONE).await;
    let (bad, bad_share) = recognised(&company, server, BAD).await;
    println!("recognised: {:.1} % on a clean line, {:.1} % on a bad one", clean_share * 100.0, bad_share * 100.0);
    assert_eq!((&clean.ending, &bad.ending), (&Ending::CallerHungUp, &Ending::CallerHungUp));
    let (clean, bad) = (clean.rtp.expect("counted"), bad.rtp.expect("counted"));
    assert!(clean.lost == 0 && clean.duplicates == 0, "{clean:?}");
    let lost = bad.lost as f64 / (bad.received - bad.duplicates + bad.lost) as f64;
    assert!((0.05..0.15).contains(&lost) && bad.late > 0 && bad.duplicates > 0, "the relay did its harm: {bad:?}");
    assert!(clean_share >= 0.85, "{clean_share}");
    assert!(bad_share >= 0.6 && bad_share >= clean_share - 0.35, "{bad_share} against {clean_share}");
    whole.stop().await;
}
