//! What is left of a caller's words on a bad line: a telephone talks with the whole program and the local demo model
//! through a relay between real sockets that loses, delays, reorders and doubles packets, both ways. Once through a relay
//! that does nothing, for comparison. Recognition has all the time that it needs: on a machine that is busy with other
//! things, callers would else be asked to say it again on the best line. And ten minutes of such a line in virtual time,
//! from packets to the starts of speech: nothing grows.
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
use offhook::media::codec::{Decoder, Encoder};
use offhook::media::frame::FRAME;
use offhook::media::jitter::{JitterBuffer, JitterConfig, JitterCounters, Pull};
use offhook::media::packet::Codec;
use offhook::media::vad::{GateSettings, OffhookVad, PACKET, SpeechGate, VoiceDetector as _};
use offhook::protocol::rtp::packet::RtpPacket;
use offhook::protocol::rtp::plan::MediaPlan;
use offhook::protocol::rtp::session::{RtpEvent, Session, SessionSeed};
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
/// What recognition and the answer may take.
const LIMIT: Duration = Duration::from_secs(60);

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
    config.reply_limit = LIMIT;
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
    let again = lines.iter().filter(|line| line.contains("did not catch that")).count();
    println!("{wrong} of {} words wrong, {again} times asked to say it again: {lines:?}\n{:?}", said.len(), report.rtp);
    (report, 1.0 - wrong as f64 / said.len() as f64)
}

/// Ten minutes of a telephone's packets through a line, by arrival, and when each was sent; ms.
struct Sent {
    arrivals: Vec<(f64, Vec<u8>)>,
    packets: usize,
    dropped: u64,
    /// When each sentence starts and ends.
    sentences: Vec<(f64, f64)>,
}

/// `ppm`: how much faster the telephone's clock runs than ours.
fn ten_minutes(harm: Harm, ppm: f64, seed: u64) -> Sent {
    /// Between sentences, in samples: 2.5 s.
    const PAUSE: usize = 2_500 * 8;
    let fixture = talker();
    let (mut sound, mut spoken) = (Vec::<i16>::new(), Vec::new());
    for turn in fixture.turns.iter().cycle() {
        if sound.len() >= 10 * 60 * 8_000 {
            break;
        }
        sound.resize(sound.len() + PAUSE, 0);
        let from = sound.len() as u64 / 8;
        spoken.push((from + turn.onset_ms(), from + turn.offset_ms()));
        sound.extend(&turn.samples);
    }
    // At 20 ms a packet by the telephone's clock.
    let slow = 1.0 - ppm * 1e-6;
    let (mut encoder, mut payload, mut rng) = (Encoder::new(Codec::Pcmu), Vec::new(), StdRng::seed_from_u64(seed));
    let (mut arrivals, mut dropped, mut packets) = (Vec::new(), 0, 0);
    for frame in sound.chunks_exact(160) {
        encoder.encode(frame, &mut payload);
        let number = packets as u32;
        packets += 1;
        if rng.random::<f64>() < harm.loss {
            dropped += 1;
            continue;
        }
        let mut bytes = Vec::new();
        // Both counters pass their ends on the way.
        let (sequence, timestamp) = (64_000_u16.wrapping_add(number as u16), (number * 160).wrapping_sub(50_000));
        RtpPacket { marker: false, payload_type: 0, sequence, timestamp, ssrc: 7, payload: &payload }.write(&mut bytes);
        let copies = if rng.random::<f64>() < harm.doubled { 2 } else { 1 };
        for _ in 0..copies {
            let way = rng.random::<f64>() * harm.jitter_ms as f64;
            arrivals.push((f64::from(number) * 20.0 * slow + way, bytes.clone()));
        }
    }
    arrivals.sort_by(|a, b| a.0.total_cmp(&b.0));
    let sentences = spoken.into_iter().map(|(from, to)| (from as f64 * slow, to as f64 * slow)).collect();
    Sent { arrivals, packets, dropped, sentences }
}

/// What was heard of them.
struct Line {
    /// From each packet's sending to its being heard, ms, by minutes.
    ways: Vec<Vec<f64>>,
    concealed: u64,
    deepest: Duration,
    starts: Vec<f64>,
    counters: JitterCounters,
}

/// `listens`: for starts of speech as well, which takes most of the time.
fn heard(sent: &Sent, ppm: f64, listens: bool) -> Line {
    let t0 = std::time::Instant::now();
    let plan = MediaPlan {
        remote: None,
        remote_rtcp: None,
        rtcp_mux: true,
        codec: Codec::Pcmu,
        payload_type: 0,
        accepts: vec![(0, Codec::Pcmu)],
        keys: None,
        comfort_noise: None,
        ptime: FRAME,
        sends: true,
        receives: true,
        srtp: None,
    };
    let seed = SessionSeed { ssrc: 1, sequence: 1, timestamp: 1, ntp: 1, cname: "here".into() };
    let mut session = Session::new(t0, plan, seed).expect("no keys");
    let mut jitter = JitterBuffer::new(JitterConfig::RTP);
    let (mut decoder, mut vad, mut gate) =
        (Decoder::new(Codec::Pcmu), OffhookVad::new(), SpeechGate::new(GateSettings::default()));
    let (mut events, mut pcm, mut first) = (Vec::new(), Vec::new(), None);
    let (mut ways, mut concealed, mut deepest, mut starts) = (Vec::new(), 0, Duration::ZERO, Vec::new());
    let mut arrivals = sent.arrivals.iter().peekable();
    for tick in 1..=sent.packets as u64 {
        let (at_ms, now) = (20.0 * tick as f64, t0 + FRAME * tick as u32);
        while let Some((arrival, bytes)) = arrivals.next_if(|(arrival, _)| *arrival <= at_ms) {
            let arrived = t0 + Duration::from_secs_f64(arrival / 1_000.0);
            session.on_rtp(arrived, bytes, |_| true, &mut events);
            for event in events.drain(..) {
                let RtpEvent::Packet(packet) = event else { continue };
                // The first to come is the zero of media time, whichever it is.
                first.get_or_insert_with(|| {
                    f64::from(RtpPacket::parse(bytes).map_or(0, |rtp| rtp.timestamp.wrapping_add(50_000))) / 8.0
                });
                jitter.push(arrived, packet);
            }
        }
        deepest = deepest.max(jitter.held());
        pcm.clear();
        match jitter.pull(now) {
            Pull::Packet(packet) => {
                decoder.decode(packet.payload(), &mut pcm);
                let sent_at = (packet.at.as_millis() as f64 + first.unwrap_or_default()) * (1.0 - ppm * 1e-6);
                let minute = (tick / 3_000) as usize;
                ways.resize(ways.len().max(minute + 1), Vec::new());
                ways[minute].push(at_ms - sent_at);
            }
            Pull::Missing => {
                concealed += 1;
                decoder.conceal(FRAME, jitter.behind_the_gap(), &mut pcm);
            }
        }
        pcm.resize(PACKET, 0);
        let frame = pcm.as_slice().try_into().expect("20 ms");
        if listens && gate.push(vad.push(frame)).started {
            starts.push(at_ms);
        }
    }
    Line { ways, concealed, deepest, starts, counters: jitter.counters() }
}

#[test]
fn ten_minutes_of_a_bad_line_delay_nothing_more_and_lose_no_start_of_speech() {
    // Crystals are within 100 ppm of each other; telephones have been seen at twice that.
    for ppm in [0.0, 200.0, -200.0] {
        let sent = ten_minutes(BAD, ppm, 7);
        let listens = ppm == 0.0;
        let mut line = heard(&sent, ppm, listens);
        let middle = |ways: &mut Vec<f64>| {
            ways.sort_by(f64::total_cmp);
            ways[ways.len() / 2]
        };
        let minutes: Vec<f64> = line.ways.iter_mut().filter(|ways| ways.len() > 1_000).map(middle).collect();
        let share = line.concealed as f64 / sent.packets as f64;
        let found = |&&(from, to): &&(f64, f64)| line.starts.iter().any(|at| (from..to + 200.0).contains(at));
        let starts = sent.sentences.iter().filter(found).count();
        println!(
            "{ppm:+} ppm: {:.1} % concealed of {:.1} % lost; {:?} held at most; way by minutes {minutes:.0?} ms; {starts} of {} \
             sentences start; {:?}",
            share * 100.0,
            sent.dropped as f64 * 100.0 / sent.packets as f64,
            line.deepest,
            sent.sentences.len(),
            line.counters,
        );
        assert!(minutes.len() >= 10, "ten minutes");
        // The jitter, the packet, the tick; a clock that runs ahead fills the buffer until a packet of silence can go.
        assert!(minutes.iter().all(|way| *way < 180.0), "{minutes:?}");
        assert!(line.deepest <= Duration::from_millis(240), "{:?}", line.deepest);
        // What is lost is concealed, and little else is.
        let lost = sent.dropped as f64 / sent.packets as f64;
        assert!(share < lost + 0.01, "{share} of {lost}");
        assert_eq!((line.counters.overflow, line.counters.restarts), (0, 0), "{:?}", line.counters);
        if !listens {
            continue;
        }
        assert_eq!(starts, sent.sentences.len(), "the starts of speech survive");
        let strays =
            line.starts.iter().filter(|at| !sent.sentences.iter().any(|(from, to)| (*from..to + 400.0).contains(at)));
        assert_eq!(strays.count(), 0, "speech where none was");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn most_words_survive_a_line_that_loses_a_tenth_and_trembles() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = WhisperConfig {
        workers: 1,
        final_limit_ms: LIMIT.as_millis() as u64,
        models_dir: root.join("models"),
        ..WhisperConfig::default()
    };
    let engine = Whisper::load(&config).expect("the demo model is part of the project");
    let brief = ScriptedConfig { answers: vec!["Yes.".into()], ..quick() };
    let cast = Cast { stt: Arc::new(engine), ..Cast::new(brief) };
    let whole = Whole::start(Base::sqlite(), cast, |config| {
        config.sip.listen = "127.0.0.1:0".parse().expect("an address");
        config.sip.rtp.listen = "127.0.0.1".parse().expect("an address");
        // As long as the engine's own limit: the words are judged, not the speed of a machine that others share.
        config.turn.transcript_limit_ms = LIMIT.as_millis() as u64;
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
