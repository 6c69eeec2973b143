//! A bounded stand-in for `scripts/fuzz.sh` on the stable toolchain: good descriptions and datagrams with bytes flipped,
//! cut, doubled and swapped between them. What must hold is what the fuzz targets `sdp`, `rtp` and `rtcp` check.

use std::time::{Duration, Instant};

use offhook::media::codec::Decoder;
use offhook::media::dtmf::is_key;
use offhook::media::jitter::{JitterBuffer, JitterConfig, Pull};
use offhook::media::packet::{ClockRate, Codec};
use offhook::protocol::rtp::packet::RtpPacket;
use offhook::protocol::rtp::plan::{KeyFormat, MediaPlan, SrtpKey, SrtpKeys, SrtpSuite};
use offhook::protocol::rtp::rtcp::{Compound, ReceptionReport, SenderInfo};
use offhook::protocol::rtp::session::{RtpEvent, Session, SessionSeed};
use offhook::protocol::sdp::negotiate::{LocalMedia, Negotiated, SrtpPolicy, accept, answer, offer};
use offhook::protocol::sdp::parse::{Description, Direction};

/// SplitMix64 (Steele, Lea, Flood 2014): the same mutations on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % below.max(1) as u64) as usize
    }

    fn mutate(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..self.below(5) {
            if bytes.is_empty() {
                break;
            }
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes[at] = self.below(256) as u8,
                1 => bytes.truncate(at),
                2 => bytes.extend_from_within(at..),
                3 => bytes[at] ^= 1 << self.below(8),
                _ => {
                    let other = &seeds[self.below(seeds.len())];
                    bytes.splice(at.., other[self.below(other.len())..].iter().copied());
                }
            }
            bytes.truncate(5000);
        }
        bytes
    }
}

fn local(srtp: SrtpPolicy) -> LocalMedia {
    LocalMedia {
        address: [203, 0, 113, 5].into(),
        port: 20_000,
        rtcp_port: 20_001,
        session: 1,
        version: 1,
        codecs: Codec::ALL.to_vec(),
        ptime_ms: 20,
        direction: Direction::SendRecv,
        srtp,
        srtp_key: SrtpKey::new([7; 30]),
    }
}

#[test]
fn mutated_descriptions_are_survived_and_answered_in_kind() {
    let browser = "v=0\r\no=- 46 2 IN IP4 192.0.2.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\n\
        c=IN IP4 0.0.0.0\r\na=rtpmap:111 opus/48000/2\r\na=sendonly\r\nm=video 5 RTP/AVP 96\r\nm=audio 6 RTP/AVP 0 8 9 101\r\n\
        c=IN IP4 192.0.2.9\r\na=rtpmap:101 telephone-event/8000\r\na=ptime:30\r\na=maxptime:60\r\na=rtcp:99 IN IP4 192.0.2.8\r\n";
    let seeds = [
        offer(&local(SrtpPolicy::Off)).into_bytes(),
        offer(&local(SrtpPolicy::Optional)).into_bytes(),
        browser.as_bytes().to_vec(),
    ];
    let (mut random, mut answered) = (Random(1), 0);
    for _ in 0..20_000 {
        let Ok(description) = Description::parse(&random.mutate(&seeds)) else { continue };
        let local = local([SrtpPolicy::Off, SrtpPolicy::Optional, SrtpPolicy::Required][random.below(3)]);
        let _ = accept(&local, &description);
        let Ok(Negotiated { sdp, plan }) = answer(&description, &local, None) else { continue };
        answered += 1;
        let ours = Description::parse(sdp.as_bytes()).expect("our own answer");
        assert_eq!(ours.media.len(), description.media.len());
        for (mine, theirs) in ours.media.iter().zip(&description.media) {
            assert_eq!((&mine.kind, &mine.protocol), (&theirs.kind, &theirs.protocol));
            assert!(mine.port == 0 || mine.formats.iter().all(|format| theirs.formats.contains(format)), "{sdp}");
        }
        assert_eq!(ours.media.iter().filter(|media| media.port != 0).count(), 1, "{sdp}");
        assert!((10..=60).contains(&plan.ptime.as_millis()));
        assert_eq!(plan.srtp.is_some(), sdp.contains("a=crypto:"));
    }
    assert!(answered > 2_000, "only {answered} got as far as an answer");
}

fn session(now: Instant, secure: bool) -> Session {
    let key = || SrtpKey::new([1; 30]);
    let plan = MediaPlan {
        remote: None,
        remote_rtcp: None,
        rtcp_mux: true,
        codec: Codec::Opus,
        payload_type: 96,
        accepts: vec![(96, Codec::Opus), (9, Codec::G722)],
        keys: Some(KeyFormat { send: 101, receive: 101, clock: ClockRate::HZ_8000 }),
        comfort_noise: Some(13),
        ptime: Duration::from_millis(20),
        sends: true,
        receives: true,
        srtp: secure.then(|| SrtpKeys { suite: SrtpSuite::HmacSha1_80, local: key(), remote: key() }),
    };
    let seed = SessionSeed { ssrc: 1, sequence: 1, timestamp: 1, ntp: 1 << 40, cname: "c".into() };
    Session::new(now, plan, seed).expect("good keys")
}

#[test]
fn mutated_datagrams_are_survived_from_the_socket_to_the_sound() {
    let mut seeds = Vec::new();
    for (n, (payload_type, payload)) in [
        (96, vec![0x48; 60]),
        (9, vec![0xFA; 160]),
        (101, vec![5, 0x8A, 3, 0x20]),
        (13, vec![60]),
        (0, vec![0xFF; 160]),
    ]
    .into_iter()
    .enumerate()
    {
        for sequence in 0..4 {
            let mut bytes = Vec::new();
            let (sequence, timestamp) = (10 * sequence + n as u16, 960 * u32::from(sequence));
            RtpPacket { marker: n == 2, payload_type, sequence, timestamp, ssrc: 2, payload: &payload }
                .write(&mut bytes);
            seeds.push(bytes);
        }
    }
    // Contributing sources, an extension and padding.
    let mut rich =
        vec![0xB2, 96, 0, 9, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0xBE, 0xDE, 0, 1, 0x10, 7, 0, 0];
    rich.extend([0x48; 40]);
    rich.extend([0, 0, 0, 4]);
    seeds.push(rich);
    let mut random = Random(2);
    for round in 0..400 {
        let mut now = Instant::now();
        let mut session = session(now, round % 4 == 3);
        let (mut jitter, mut decoder) = (JitterBuffer::new(JitterConfig::RTP), Decoder::new(Codec::Opus));
        let (mut events, mut sound) = (Vec::new(), Vec::new());
        for _ in 0..40 {
            now += Duration::from_millis(random.below(60) as u64);
            session.on_rtp(now, &random.mutate(&seeds), |_| true, &mut events);
            for event in events.drain(..) {
                match event {
                    RtpEvent::Key(key) => assert!(is_key(key)),
                    RtpEvent::Packet(packet) => {
                        assert!(!packet.duration().is_zero());
                        jitter.push(now, packet);
                    }
                }
            }
            sound.clear();
            match jitter.pull(now) {
                Pull::Packet(packet) if packet.codec == Codec::Opus => decoder.decode(packet.payload(), &mut sound),
                Pull::Packet(packet) => Decoder::new(packet.codec).decode(packet.payload(), &mut sound),
                Pull::Missing => decoder.conceal(Duration::from_millis(20), jitter.behind_the_gap(), &mut sound),
            }
            assert!(sound.len() <= 4_000);
        }
        let stats = session.stats();
        assert!(stats.received + stats.duplicate + stats.malformed + stats.foreign <= 40, "{stats:?}");
    }
}

#[test]
fn mutated_reports_are_survived_and_figures_stay_figures() {
    let mut seeds = Vec::new();
    for sender in [None, Some(SenderInfo { ntp: 1 << 40, rtp_timestamp: 1, packets: 1, bytes: 1 })] {
        let about = ReceptionReport { ssrc: 1, last_report: 256, delay: 9, jitter: 7, ..Default::default() };
        let mut bytes = Vec::new();
        Compound { ssrc: 2, sender, about: Some(about), cname: "someone", bye: sender.is_some() }.write(&mut bytes);
        seeds.push(bytes);
    }
    let (mut random, mut datagram) = (Random(3), Vec::new());
    for round in 0..4_000 {
        let t0 = Instant::now();
        let mut session = session(t0, false);
        session.write_audio(t0, &[0x48; 60], &mut datagram);
        let mut heard = datagram.clone();
        heard[8..12].copy_from_slice(&[0, 0, 0, 2]);
        session.on_rtp(t0, &heard, |_| true, &mut Vec::new());
        let now = t0 + Duration::from_millis(round);
        session.on_rtcp(now, &random.mutate(&seeds));
        assert!(session.write_rtcp(now, true, &mut datagram));
        let stats = session.stats();
        assert!(stats.round_trip_ms.is_none_or(|ms| (0.0..30_000.0).contains(&ms)), "{stats:?}");
        assert!(stats.peer_loss.is_none_or(|loss| (0.0..=1.0).contains(&loss)), "{stats:?}");
        assert!(stats.mos.is_none_or(|mos| (1.0..=4.5).contains(&mos)), "{stats:?}");
    }
}
