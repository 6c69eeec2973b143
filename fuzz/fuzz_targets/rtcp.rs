//! A datagram on an RTCP port. Nothing may panic, and figures stay figures.

#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use offhook::media::packet::Codec;
use offhook::protocol::rtp::plan::MediaPlan;
use offhook::protocol::rtp::rtcp;
use offhook::protocol::rtp::session::{Session, SessionSeed};

fuzz_target!(|bytes: &[u8]| {
    if let Some(reports) = rtcp::parse(bytes) {
        assert!(reports.len() <= 16);
    }
    let plan = MediaPlan {
        remote: None,
        remote_rtcp: None,
        rtcp_mux: false,
        codec: Codec::Pcma,
        payload_type: 8,
        accepts: vec![(8, Codec::Pcma)],
        keys: None,
        comfort_noise: Some(13),
        ptime: Duration::from_millis(20),
        sends: true,
        receives: true,
        srtp: None,
    };
    let seed = SessionSeed { ssrc: 1, sequence: 1, timestamp: 1, ntp: 1 << 40, cname: "c".into() };
    let (t0, mut datagram) = (Instant::now(), Vec::new());
    let mut session = Session::new(t0, plan, seed).expect("no keys");
    // A stream that has sent and heard sees more of the code.
    session.write_audio(t0, &[0xD5; 160], &mut datagram);
    let mut heard = datagram.clone();
    heard[8..12].copy_from_slice(&[0, 0, 0, 2]);
    session.on_rtp(t0, &heard, |_| true, &mut Vec::new());
    let now = t0 + Duration::from_secs(1);
    session.on_rtcp(now, bytes);
    assert!(session.write_rtcp(now, true, &mut datagram));
    assert!(rtcp::parse(&datagram).is_some());
    let stats = session.stats();
    assert!(stats.round_trip_ms.is_none_or(|ms| (0.0..30_000.0).contains(&ms)));
    assert!(stats.peer_loss.is_none_or(|loss| (0.0..=1.0).contains(&loss)));
});
