//! A description from anybody. Nothing may panic; an answer keeps the lines of the offer in their places, opens one at
//! most, and names nothing that was not offered.

#![no_main]

use libfuzzer_sys::fuzz_target;
use offhook::media::packet::Codec;
use offhook::protocol::rtp::plan::SrtpKey;
use offhook::protocol::sdp::negotiate::{LocalMedia, Negotiated, SrtpPolicy, accept, answer, offer};
use offhook::protocol::sdp::parse::{Description, Direction, MAX_MEDIA};

fuzz_target!(|bytes: &[u8]| {
    let Ok(description) = Description::parse(bytes) else { return };
    assert!(description.media.len() <= MAX_MEDIA);
    for srtp in [SrtpPolicy::Off, SrtpPolicy::Optional, SrtpPolicy::Required] {
        let local = LocalMedia {
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
        };
        let _ = accept(&local, &description);
        let ours = Description::parse(offer(&local).as_bytes()).expect("our own offer");
        assert!(accept(&local, &ours).is_ok());
        let Ok(Negotiated { sdp, plan }) = answer(&description, &local, None) else { continue };
        assert!((10..=60).contains(&plan.ptime.as_millis()));
        assert_eq!(plan.srtp.is_some(), sdp.contains("a=crypto:"));
        let answered = Description::parse(sdp.as_bytes()).expect("our own answer");
        assert_eq!(answered.media.len(), description.media.len());
        for (mine, theirs) in answered.media.iter().zip(&description.media) {
            assert_eq!((&mine.kind, &mine.protocol), (&theirs.kind, &theirs.protocol));
            assert!(mine.port == 0 || mine.formats.iter().all(|format| theirs.formats.contains(format)));
        }
        assert_eq!(answered.media.iter().filter(|media| media.port != 0).count(), 1);
    }
});
