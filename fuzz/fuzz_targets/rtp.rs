//! Datagrams on a media port, each with a length byte before it. Nothing may panic; packets hold sound, keys are keys, and
//! what is counted adds up.

#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use offhook::media::codec::Decoder;
use offhook::media::dtmf::is_key;
use offhook::media::jitter::{JitterBuffer, JitterConfig, Pull};
use offhook::media::packet::{ClockRate, Codec};
use offhook::protocol::rtp::plan::{KeyFormat, MediaPlan, SrtpKey, SrtpKeys, SrtpSuite};
use offhook::protocol::rtp::session::{RtpEvent, Session, SessionSeed};

fuzz_target!(|bytes: &[u8]| {
    let Some((&secure, mut rest)) = bytes.split_first() else { return };
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
        srtp: (secure > 250).then(|| SrtpKeys { suite: SrtpSuite::HmacSha1_80, local: key(), remote: key() }),
    };
    let seed = SessionSeed { ssrc: 1, sequence: 1, timestamp: 1, ntp: 1, cname: "c".into() };
    let mut now = Instant::now();
    let mut session = Session::new(now, plan, seed).expect("good keys");
    let (mut jitter, mut decoder) = (JitterBuffer::new(JitterConfig::RTP), Decoder::new(Codec::Opus));
    let (mut events, mut sound, mut datagrams) = (Vec::new(), Vec::new(), 0);
    while let Some((&length, behind)) = rest.split_first() {
        let (datagram, behind) = behind.split_at(behind.len().min(usize::from(length)));
        rest = behind;
        datagrams += 1;
        now += Duration::from_millis(u64::from(length % 50));
        session.on_rtp(now, datagram, |_| true, &mut events);
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
    assert!(stats.received + stats.duplicate + stats.malformed + stats.foreign <= datagrams);
});
