//! What one message costs: 50 a second come and go on every call, and a webhook is signed once.

use std::hint::black_box;

use divan::Bencher;
use offhook::media::frame::MediaTime;
use offhook::media::packet::{Codec, Packet};
use offhook::protocol::twilio::message::{FromTwilio, Media, MediaFormat, Start, encode_payload};
use offhook::protocol::twilio::stream::{StreamConfig, TwilioStream};
use offhook::providers::twilio::signature::{sign, verify_form};
use secrecy::SecretString;

#[global_allocator]
static ALLOC: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

fn started() -> TwilioStream {
    let mut text = String::new();
    let start = Start {
        stream_sid: "MZ00000000000000000000000000000001".into(),
        account_sid: "AC00000000000000000000000000000001".into(),
        call_sid: "CA00000000000000000000000000000001".into(),
        tracks: vec!["inbound".into()],
        parameters: Default::default(),
        format: Some(MediaFormat::MULAW),
    };
    FromTwilio::Start { sequence: Some(1), start }.write(&mut text);
    let mut stream = TwilioStream::new(StreamConfig::default());
    stream.on_text(&text, &mut Vec::new()).expect("a good start");
    stream
}

/// One media message of 20 ms to one packet.
#[divan::bench]
fn read_media(bencher: Bencher) {
    let (mut payload, mut text) = (String::new(), String::new());
    encode_payload(&[0x55; 160], &mut payload);
    let media =
        Media { track: "inbound".into(), chunk: Some(2), timestamp_ms: Some(40), payload: payload.as_str().into() };
    FromTwilio::Media { sequence: Some(4), stream_sid: "MZ00000000000000000000000000000001".into(), media }
        .write(&mut text);
    let (mut stream, mut events) = (started(), Vec::with_capacity(1));
    bencher.bench_local(|| {
        events.clear();
        stream.on_text(black_box(&text), &mut events).expect("a good message");
        black_box(&events);
    });
}

/// One packet of 20 ms to one media message.
#[divan::bench]
fn write_media(bencher: Bencher) {
    let packet = Packet::new(Codec::Pcmu, MediaTime::ZERO, &[0x55; 160]).expect("160 bytes fit a packet");
    let (stream, mut text) = (started(), String::with_capacity(512));
    bencher.bench_local(|| {
        stream.write_media(black_box(&packet), &mut text);
        black_box(&text);
    });
}

/// A voice webhook with the fields of an ordinary call.
#[divan::bench]
fn check_signature(bencher: Bencher) {
    let token: SecretString = "0123456789abcdef0123456789abcdef".into();
    let url = "https://voice.example.com/webhooks/twilio/01900000-0000-7000-8000-000000000001/voice";
    let fields: Vec<(String, String)> = [
        ("CallSid", "CA00000000000000000000000000000001"),
        ("AccountSid", "AC00000000000000000000000000000001"),
        ("From", "+380501234567"),
        ("To", "+380441234567"),
        ("Caller", "+380501234567"),
        ("Called", "+380441234567"),
        ("CallStatus", "ringing"),
        ("Direction", "inbound"),
        ("ApiVersion", "2010-04-01"),
        ("FromCountry", "UA"),
        ("ToCountry", "UA"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let signature = sign(&token, url, &fields);
    let tokens = [token];
    bencher.bench_local(|| verify_form(&tokens, url, black_box(&fields), &signature).expect("a good signature"));
}
