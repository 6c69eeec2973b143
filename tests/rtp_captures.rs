//! Real captures through a session: the keys that were pressed, the packets that were sent, and crash reports of other
//! programs. Needs `sip/rtp` of the shared data.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use offhook::media::packet::{ClockRate, Codec};
use offhook::protocol::rtp::packet::{RtpPacket, is_rtcp};
use offhook::protocol::rtp::plan::{KeyFormat, MediaPlan};
use offhook::protocol::rtp::session::{RtpEvent, Session, SessionSeed, ntp};
use offhook::protocol::rtp::stats::RtpStats;

/// A UDP datagram of a capture.
struct Datagram {
    at: Duration,
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    payload: Vec<u8>,
}

/// The UDP datagrams of a classic capture, Ethernet or Linux cooked. `None` without shared data.
fn capture(name: &str) -> Option<Vec<Datagram>> {
    let shared = std::env::var("OFFHOOK_SHARED").unwrap_or_else(|_| "../shared".into());
    let path = PathBuf::from(shared).join("sip/rtp").join(name);
    let Ok(bytes) = std::fs::read(&path) else {
        println!("skipped: no shared data");
        return None;
    };
    let big_endian = bytes.starts_with(&[0xA1, 0xB2, 0xC3, 0xD4]);
    let number = |at: usize| {
        let bytes = bytes[at..at + 4].try_into().expect("four bytes");
        if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    };
    let link = match number(20) {
        1 => 14,
        113 => 16,
        other => panic!("link type {other}"),
    };
    let (mut at, mut datagrams, mut zero) = (24, Vec::new(), None);
    while at + 16 <= bytes.len() {
        let time = Duration::from_secs(u64::from(number(at))) + Duration::from_micros(u64::from(number(at + 4)));
        let length = number(at + 8) as usize;
        let frame = &bytes[at + 16..bytes.len().min(at + 16 + length)];
        at += 16 + length;
        let zero = *zero.get_or_insert(time);
        if let Some(ip) = frame.get(link..)
            && ip.first().is_some_and(|first| first >> 4 == 4)
            && ip.get(9) == Some(&17)
        {
            let udp = &ip[4 * usize::from(ip[0] & 15)..];
            let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
            let port = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
            let end = usize::from(port(4)).clamp(8, udp.len());
            datagrams.push(Datagram {
                at: time.saturating_sub(zero),
                from: (address(12), port(0)),
                to: (address(16), port(2)),
                payload: udp[8..end].to_vec(),
            });
        }
    }
    Some(datagrams)
}

fn session(now: Instant) -> Session {
    let plan = MediaPlan {
        remote: None,
        remote_rtcp: None,
        rtcp_mux: true,
        codec: Codec::Pcmu,
        payload_type: 0,
        accepts: vec![(0, Codec::Pcmu), (8, Codec::Pcma), (96, Codec::Opus)],
        keys: Some(KeyFormat { send: 101, receive: 101, clock: ClockRate::HZ_8000 }),
        comfort_noise: Some(13),
        ptime: Duration::from_millis(20),
        sends: true,
        receives: true,
        srtp: None,
    };
    let seed = SessionSeed { ssrc: 1, sequence: 0, timestamp: 0, ntp: ntp(Duration::ZERO), cname: "c".into() };
    Session::new(now, plan, seed).expect("no keys")
}

/// What one direction of a capture gives: keys, packets with their time and length, and the facts.
struct Heard {
    keys: String,
    packets: Vec<(Codec, Duration, Duration)>,
    stats: RtpStats,
}

fn hear(datagrams: &[Datagram]) -> Heard {
    let t0 = Instant::now();
    let (mut session, mut events) = (session(t0), Vec::new());
    for datagram in datagrams {
        let now = t0 + datagram.at;
        if is_rtcp(&datagram.payload) {
            session.on_rtcp(now, &datagram.payload);
        } else {
            session.on_rtp(now, &datagram.payload, |_| true, &mut events);
        }
    }
    let (mut keys, mut packets) = (String::new(), Vec::new());
    for event in events {
        match event {
            RtpEvent::Key(key) => keys.push(key),
            RtpEvent::Packet(packet) => packets.push((packet.codec, packet.at.since_start(), packet.duration())),
        }
    }
    Heard { keys, packets, stats: session.stats() }
}

/// Both directions of a capture apart, the busier first.
fn directions(datagrams: Vec<Datagram>) -> Vec<Vec<Datagram>> {
    let mut flows: Vec<Vec<Datagram>> = Vec::new();
    for datagram in datagrams {
        let same = |flow: &&mut Vec<Datagram>| (flow[0].from, flow[0].to) == (datagram.from, datagram.to);
        match flows.iter_mut().find(same) {
            Some(flow) => flow.push(datagram),
            None => flows.push(vec![datagram]),
        }
    }
    flows.sort_by_key(|flow| std::cmp::Reverse(flow.len()));
    flows
}

#[test]
fn each_captured_key_is_one_digit() {
    for (name, key) in
        "0123456789".chars().map(|key| (key.to_string(), key)).chain([("star".into(), '*'), ("pound".into(), '#')])
    {
        let Some(datagrams) = capture(&format!("dtmf_2833_{name}.pcap")) else { return };
        let heard = hear(&datagrams);
        assert_eq!(heard.keys, key.to_string(), "{name}");
        // SIPp repeats the end under its own sequence number.
        assert_eq!(heard.stats.key_packets + heard.stats.duplicate, 10);
    }
}

#[test]
fn keys_between_speech_are_all_heard_in_order() {
    for (name, codec, digits) in [
        ("ulaw-2013785496.pcap", Codec::Pcmu, "2013785496"),
        ("ulaw-3125894607.pcap", Codec::Pcmu, "3125894607"),
        ("opus-2013785496.pcap", Codec::Opus, "2013785496"),
    ] {
        let Some(datagrams) = capture(name) else { return };
        let heard = hear(&directions(datagrams)[0]);
        assert_eq!(heard.keys, digits, "{name}");
        assert!(heard.packets.len() > 100, "{name}: {} packets", heard.packets.len());
        assert!(heard.packets.iter().all(|(it, _, length)| *it == codec && *length == Duration::from_millis(20)));
        assert_eq!(heard.stats.lost, 0, "{name}: {:?}", heard.stats);
    }
}

#[test]
fn captured_speech_lies_on_one_axis() {
    for (name, codec, count, length) in [
        ("g711a.pcap", Codec::Pcma, 236, 30),
        ("40msalaw.pcap", Codec::Pcma, 826, 40),
        ("CARRIER_G711U.pcap", Codec::Pcmu, 800, 20),
    ] {
        let Some(datagrams) = capture(name) else { return };
        let heard = hear(&datagrams);
        let length = Duration::from_millis(length);
        assert_eq!(heard.packets.len(), count, "{name}: {:?}", heard.stats);
        assert!(heard.packets.iter().all(|(it, _, long)| *it == codec && *long == length), "{name}");
        assert!(heard.packets.windows(2).all(|pair| pair[1].1 >= pair[0].1 + length), "{name} overlaps");
        let end = heard.packets.last().map(|(_, at, _)| *at).expect("packets");
        let captured = datagrams.last().map(|datagram| datagram.at).expect("packets");
        assert!(end.abs_diff(captured) < Duration::from_secs(1), "{name}: {end:?} of {captured:?}");
    }
}

#[test]
fn a_change_of_sender_is_followed() {
    let (Some(first), Some(second), Some(speech)) =
        (capture("ssrc1.pcap"), capture("ssrc2.pcap"), capture("CARRIER_G711U.pcap"))
    else {
        return;
    };
    let ssrc = |datagrams: &[Datagram]| RtpPacket::parse(&datagrams[0].payload).expect("rtp").ssrc;
    assert_ne!(ssrc(&first), ssrc(&second));
    let foreign = (first.len() + second.len()) as u64;
    let mut all = Vec::new();
    for (part, datagrams) in [speech, first, second].into_iter().enumerate() {
        all.extend(
            datagrams.into_iter().map(|it| Datagram { at: it.at + Duration::from_secs(60 * part as u64), ..it }),
        );
    }
    let heard = hear(&all);
    assert!(heard.stats.ssrc_changes >= 2, "{:?}", heard.stats);
    assert_eq!((heard.packets.len(), heard.stats.unknown_payload), (800, foreign));
}

#[test]
fn what_crashed_others_is_survived() {
    for name in ["crash-27382.pcap", "udptl-crash.pcap"] {
        let Some(datagrams) = capture(name) else { return };
        assert!(!datagrams.is_empty(), "{name}");
        let heard = hear(&datagrams);
        println!("{name}: {:?}", heard.stats);
        let t0 = Instant::now();
        let mut session = session(t0);
        for datagram in &datagrams {
            session.on_rtcp(t0, &datagram.payload);
            session.on_rtp(t0, &datagram.payload, |_| true, &mut Vec::new());
        }
    }
}
