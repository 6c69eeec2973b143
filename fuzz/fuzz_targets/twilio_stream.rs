//! A peer that says anything at all, one message a line. Nothing may panic; packets stay within 20 ms, a stream starts
//! and stops once, and only marks that were written are reported as played, each once and in order.

#![no_main]

use libfuzzer_sys::fuzz_target;
use offhook::media::frame::MediaTime;
use offhook::media::packet::{Codec, Packet};
use offhook::protocol::twilio::message::ToTwilio;
use offhook::protocol::twilio::stream::{StreamConfig, StreamEvent, TwilioStream};

const START: &str = r#"{"event":"start","sequenceNumber":"1","streamSid":"MZ1","start":{"streamSid":"MZ1","accountSid":"AC1","callSid":"CA1","tracks":["inbound"],"customParameters":{},"mediaFormat":{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1}}}"#;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut stream = TwilioStream::new(StreamConfig::default());
    let (mut events, mut out) = (Vec::new(), String::new());
    let packet = Packet::new(Codec::Pcmu, MediaTime::ZERO, &[0xFF; 160]).expect("160 bytes fit a packet");
    // A stream that has started sees more of the code; one that has not must be reached as well.
    let (head, lines) = match text.strip_prefix('!') {
        Some(rest) => (None, rest),
        None => (Some(START), text),
    };
    let mut written = 0;
    for line in head.into_iter().chain(lines.split('\n')) {
        if stream.on_text(line, &mut events).is_err() {
            break;
        }
        stream.write_media(&packet, &mut out);
        assert!(out.is_empty() || matches!(ToTwilio::parse(&out), Ok(ToTwilio::Media { .. })));
        stream.write_mark(written, &mut out);
        written += 1;
        if line.len() % 3 == 0 {
            stream.write_clear(&mut out);
        }
    }
    let (mut starts, mut stops, mut last) = (0, 0, None);
    for event in &events {
        match event {
            StreamEvent::Started(_) => starts += 1,
            StreamEvent::Stopped => stops += 1,
            StreamEvent::Packet(packet) => assert!((1..=160).contains(&packet.payload().len())),
            StreamEvent::Dtmf(digit) => assert!(digit.is_ascii()),
            StreamEvent::Played { mark } => {
                assert!(Some(*mark) > last && *mark < written);
                last = Some(*mark);
            }
        }
    }
    assert!(starts <= 1 && stops <= 1);
});
