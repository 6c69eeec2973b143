//! Calls over IPv6: signalling, media, hold, capture and record by `::1`, and what a machine without it says.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use bytes::Bytes;
use offhook::config::Config;
use offhook::protocol::rtp::packet::is_rtcp;
use reqwest::Method;
use serde_json::json;
use tokio::time::timeout;
use uuid::Uuid;

use crate::baresip::{Baresip, Set, loudness};
use crate::common::{Cast, PATIENCE, quick, voice_ms};
use crate::on_loopback;
use crate::stores::Base;
use crate::talks::{LINE, after_silence, line_uri, trunk};
use crate::whole::{Company, Whole, front_desk, id, text, until};

const HERE: Ipv6Addr = Ipv6Addr::LOCALHOST;
const ACCOUNT: &str = "<sip:+380501234567@[::1]>;regint=0";

/// A free port of `::1`. `None`: the machine has no IPv6, which is said.
fn free_addr() -> Option<SocketAddr> {
    let addr = UdpSocket::bind((HERE, 0)).and_then(|socket| socket.local_addr());
    if addr.is_err() {
        println!("skipped: no IPv6 here");
    }
    addr.ok()
}

fn on_both(config: &mut Config) {
    on_loopback(config);
    config.sip.listen_v6 = Some(SocketAddr::from((HERE, 0)));
}

/// A company whose trunk is `::1`, and the address of its line there.
async fn trunk_v6(whole: &Whole) -> (Company, SocketAddr) {
    let company = whole.company("Acme", json!({})).await;
    let integration = company.integration("Trunk", "sip", json!({ "sip.peers": "::1" })).await;
    let agent = company.agent(front_desk()).await;
    company.line(integration, LINE, agent).await;
    let addrs = until("SIP listens", async || whole.app.sip.addrs()).await;
    (company, addrs.udp_v6.expect("UDP over IPv6"))
}

/// The call, once the agent has said so much.
async fn answered(company: &Company, lines: usize) -> Uuid {
    until("the agent has talked", async || {
        let call = id(&company.calls().await.into_iter().next()?);
        let said = Company::said(&company.get(&format!("/calls/{call}")).await);
        (said.iter().filter(|line| line.starts_with("agent:")).count() >= lines).then_some(call)
    })
    .await
}

/// A capture file of the call's messages so far and its next second.
async fn capture(company: &Company, call: Uuid) -> Bytes {
    let file = company.request(Method::GET, &format!("/calls/{call}/capture?seconds=1")).send().await.expect("answers");
    file.bytes().await.expect("a file")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_telephone_asks_and_hears_the_answer_over_ipv6() {
    let Some(addr) = free_addr() else { return };
    let whole = Whole::start(Base::sqlite(), Cast::new(quick()), on_both).await;
    let (company, server) = trunk_v6(&whole).await;
    let says = after_silence(2_500, voice_ms(1_500));
    let set = Set { account: ACCOUNT, says: &says, codec: "PCMU/8000/1" };
    let Some(mut phone) = Baresip::start_on(set, addr).await else { return };
    let free = whole.app.sip.free_ports();
    phone.dial(&format!("sip:{LINE}@{server}")).await;
    phone.event("CALL_ESTABLISHED").await;
    let call = answered(&company, 2).await;
    let file = capture(&company, call).await;
    let packets = packets(&file);
    let loopback = HERE.octets();
    assert!(packets.len() > 50, "{}", packets.len());
    for packet in &packets {
        assert_eq!((packet[0] >> 4, &packet[8..24], &packet[24..40]), (6, &loopback[..], &loopback[..]), "IPv6 alone");
    }
    let invite = packets.iter().find(|packet| packet[48..].starts_with(b"INVITE sip:")).expect("its INVITE");
    assert_eq!((port(invite, 40), port(invite, 42)), (addr.port(), server.port()));
    phone.hang_up().await;
    let record = company.record(call).await;
    assert_eq!(record["end"], json!({ "by": "caller", "reason": "hung_up" }), "{record}");
    let said = Company::said(&record);
    assert!(said.iter().any(|line| line.starts_with("caller:")), "the caller was understood: {said:?}");
    let heard = phone.stop().await;
    assert!(loudness(&heard, 200, 800) > 200.0, "the greeting is heard: {}", loudness(&heard, 200, 800));
    until("the ports come back", async || (whole.app.sip.free_ports() == free).then_some(())).await;
    whole.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_over_ipv6_is_held_resumed_and_recorded() {
    let Some(addr) = free_addr() else { return };
    let whole = Whole::start(Base::sqlite(), Cast::new(quick()), on_both).await;
    let (company, server) = trunk_v6(&whole).await;
    let set = Set { account: ACCOUNT, says: &[0; 800], codec: "PCMU/8000/1" };
    let Some(mut phone) = Baresip::start_on(set, addr).await else { return };
    phone.dial(&format!("sip:{LINE}@{server}")).await;
    phone.event("CALL_ESTABLISHED").await;
    let call = answered(&company, 1).await;
    // Answers to offers so far, and whether each side sounds in the next second.
    let seen = async || {
        let file = capture(&company, call).await;
        let (mut answers, mut ours, mut theirs) = (0, 0, 0);
        for packet in packets(&file) {
            let payload = &packet[48..];
            if payload.starts_with(b"SIP/2.0 200") && holds(payload, b"c=IN IP6 ::1\r\n") {
                answers += 1;
            } else if payload.len() == 172 {
                // Of PCMU; baresip's ports are 10000 to 20000.
                *(if port(packet, 40) > 20_000 { &mut ours } else { &mut theirs }) += 1;
            }
        }
        println!("{answers} answers, {ours} packets of ours and {theirs} of the telephone's in a second");
        (answers, ours >= 25, theirs >= 25)
    };
    until("both sound", async || (seen().await == (1, true, true)).then_some(())).await;
    phone.hold().await;
    until("we are silent on hold", async || matches!(seen().await, (2, false, _)).then_some(())).await;
    phone.resume().await;
    until("both sound again", async || (seen().await == (3, true, true)).then_some(())).await;
    until("the telephone reports on our sound", async || {
        let file = capture(&company, call).await;
        packets(&file).iter().any(|packet| port(packet, 40) <= 20_000 && is_rtcp(&packet[48..])).then_some(())
    })
    .await;
    phone.hang_up().await;
    company.record(call).await;
    let facts = until("the messages are complete", async || {
        let facts = company.get(&format!("/calls/{call}/sip")).await;
        (!facts["ladder"].as_array()?.is_empty()).then_some(facts)
    })
    .await;
    let quality = &facts["quality"];
    assert!(quality["received"].as_u64() > Some(100) && quality["lost"].as_u64() < Some(5), "{quality}");
    assert!(quality["peer_loss"].is_number(), "its RTCP is heard: {quality}");
    for rung in facts["ladder"].as_array().expect("a list") {
        assert!(text(&rung["peer"]).contains("[::1]"), "{rung}");
        assert!(!text(&rung["text"]).contains("IP4") && !text(&rung["text"]).contains("127.0.0.1"), "{rung}");
    }
    drop(phone);
    whole.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ipv6_media_is_refused_with_its_reason_where_there_is_none() {
    let whole = Whole::start(Base::sqlite(), Cast::new(quick()), on_loopback).await;
    trunk(&whole, front_desk()).await;
    let uri = line_uri(&whole).await;
    let server: SocketAddr = uri.split_once('@').expect("an address").1.parse().expect("an address");
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let own = socket.local_addr().expect("bound");
    let sdp = "v=0\r\no=- 1 1 IN IP6 2001:db8::1\r\ns=-\r\nc=IN IP6 2001:db8::1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n";
    let invite = |n: u32| {
        format!(
            "INVITE {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {own};branch=z9hG4bK{n};rport\r\n\
             From: <sip:+380501234567@{own}>;tag=v6\r\nTo: <{uri}>\r\nCall-ID: {n}-{own}\r\nCSeq: 1 INVITE\r\n\
             Contact: <sip:v6@{own}>\r\nMax-Forwards: 9\r\nContent-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{sdp}",
            sdp.len()
        )
    };
    let mut buffer = [0; 4096];
    let refusal = async {
        let (mut tries, mut n) = (tokio::time::interval(Duration::from_millis(300)), 0);
        loop {
            // The line and its trunk may not be known yet: nothing comes, or 403.
            tries.tick().await;
            n += 1;
            socket.send_to(invite(n).as_bytes(), server).await.expect("sent");
            while let Ok(received) = timeout(Duration::from_millis(500), socket.recv_from(&mut buffer)).await {
                let (length, _) = received.expect("received");
                let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if answer.starts_with("SIP/2.0 403 ") {
                    break;
                }
                if !answer.starts_with("SIP/2.0 1") {
                    return answer;
                }
            }
        }
    };
    let refusal = timeout(PATIENCE, refusal).await.expect("an answer");
    assert!(refusal.starts_with("SIP/2.0 488 "), "{refusal}");
    assert!(refusal.contains("\r\nWarning: 301 offhook \"Incompatible network address formats\"\r\n"), "{refusal}");
    whole.stop().await;
}

fn port(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

fn holds(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// The IP packets of a capture file.
fn packets(file: &[u8]) -> Vec<&[u8]> {
    let mut rest = file.get(24..).expect("a head");
    let mut packets = Vec::new();
    while let Some((head, body)) = rest.split_at_checked(16) {
        let length = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let Some((packet, after)) = body.split_at_checked(length) else { break };
        packets.push(packet);
        rest = after;
    }
    packets
}
