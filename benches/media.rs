//! Cost of the pieces of the 20 ms path: one frame or packet each.

use std::time::{Duration, Instant};

use divan::{Bencher, black_box};
use offhook::media::codec::{Decoder, Encoder};
use offhook::media::dtmf::DtmfDetector;
use offhook::media::frame::{Frame, MediaTime, SampleRate};
use offhook::media::g711;
use offhook::media::jitter::{JitterBuffer, JitterConfig, Pull};
use offhook::media::packet::{Codec, Packet};
use offhook::media::playout::{ClipId, Playout};
use offhook::media::resample::Resampler;
use offhook::media::vad::{OffhookVad, PACKET, VoiceDetector};
use offhook::protocol::rtp::packet::RtpPacket;
use offhook::protocol::rtp::plan::{MediaPlan, SrtpKey, SrtpKeys, SrtpSuite};
use offhook::protocol::rtp::session::{RtpEvent, Session, SessionSeed};

fn main() {
    divan::main();
}

/// Something between a tone and noise, loud.
fn sound(samples: usize) -> Vec<i16> {
    (0..samples).map(|n| ((n * n * 31 + n * 977) % 16_001) as i16 - 8_000).collect()
}

#[divan::bench(args = [Codec::Pcmu, Codec::Pcma])]
fn encode(bencher: Bencher, codec: Codec) {
    let (samples, mut out) = (sound(160), Vec::new());
    bencher.bench_local(|| g711::encode_into(codec, black_box(&samples), &mut out));
}

#[divan::bench(args = [Codec::Pcmu, Codec::Pcma])]
fn decode(bencher: Bencher, codec: Codec) {
    let (bytes, mut out) = ((0..160).collect::<Vec<u8>>(), Vec::new());
    bencher.bench_local(|| g711::decode_into(codec, black_box(&bytes), &mut out));
}

#[divan::bench(args = [(8_000, 16_000), (8_000, 48_000), (16_000, 8_000), (24_000, 8_000), (48_000, 8_000), (22_050, 8_000)])]
fn resample(bencher: Bencher, (from, to): (u32, u32)) {
    let (from, to) = (SampleRate::new(from), SampleRate::new(to));
    let mut resampler = Resampler::new(from, to).expect("rates of a call");
    let (frame, mut out) = (sound(from.frame_len()), Vec::new());
    bencher.bench_local(|| {
        out.clear();
        resampler.process_frame(black_box(&frame), &mut out);
    });
}

#[divan::bench]
fn vad(bencher: Bencher) {
    let (mut vad, sound) = (OffhookVad::new(), sound(PACKET));
    let packet: &[i16; PACKET] = sound.first_chunk().expect("one packet");
    bencher.bench_local(|| vad.push(black_box(packet)));
}

#[divan::bench(args = [0, 8_000])]
fn dtmf(bencher: Bencher, amplitude: i16) {
    let mut detector = DtmfDetector::new();
    let packet: Vec<i16> = sound(160).iter().map(|&s| if amplitude == 0 { 0 } else { s }).collect();
    bencher.bench_local(|| {
        detector.push(black_box(&packet), |key| {
            black_box(key);
        })
    });
}

#[divan::bench]
fn playout_next_frame(bencher: Bencher) {
    let (mut playout, mut frame) = (Playout::new(SampleRate::HZ_8000), Frame::silence(SampleRate::HZ_8000));
    let (samples, mut now) = (sound(160), Instant::now());
    playout.begin(ClipId(1));
    bencher.bench_local(|| {
        playout.push(ClipId(1), &samples);
        now += Duration::from_millis(20);
        black_box(playout.next_frame(now, &mut frame))
    });
}

#[divan::bench(args = [0, 60])]
fn jitter_push_and_pull(bencher: Bencher, target_ms: u32) {
    let mut jitter = JitterBuffer::new(JitterConfig { target_ms, ..JitterConfig::default() });
    let (mut now, mut at) = (Instant::now(), MediaTime::ZERO);
    let packet = Packet::new(Codec::Pcmu, at, &[0x80; 160]).expect("20 ms fit");
    bencher.bench_local(|| {
        let mut packet = packet.clone();
        packet.at = at;
        jitter.push(now, packet);
        (now, at) = (now + Duration::from_millis(20), at + Duration::from_millis(20));
        black_box(jitter.pull(now))
    });
}

#[divan::bench(args = Codec::ALL)]
fn encode_frame(bencher: Bencher, codec: Codec) {
    let (mut encoder, frame, mut out) = (Encoder::new(codec), sound(codec.rate().frame_len()), Vec::new());
    bencher.bench_local(|| encoder.encode(black_box(&frame), &mut out));
}

#[divan::bench(args = Codec::ALL)]
fn decode_frame(bencher: Bencher, codec: Codec) {
    let (mut payload, mut out) = (Vec::new(), Vec::new());
    Encoder::new(codec).encode(&sound(codec.rate().frame_len()), &mut payload);
    let mut decoder = Decoder::new(codec);
    bencher.bench_local(|| {
        out.clear();
        decoder.decode(black_box(&payload), &mut out);
    });
}

#[divan::bench(args = Codec::ALL)]
fn conceal_frame(bencher: Bencher, codec: Codec) {
    let (mut payload, mut out) = (Vec::new(), Vec::new());
    Encoder::new(codec).encode(&sound(codec.rate().frame_len()), &mut payload);
    let mut decoder = Decoder::new(codec);
    bencher.bench_local(|| {
        out.clear();
        decoder.decode(&payload, &mut out);
        decoder.conceal(Duration::from_millis(20), None, &mut out);
    });
}

/// An RTP packet's way in: from the datagram through session and jitter buffer to samples.
#[divan::bench(args = [false, true])]
fn rtp_in(bencher: Bencher, sealed: bool) {
    let key = || SrtpKey::new([1; 30]);
    let plan = MediaPlan {
        remote: None,
        remote_rtcp: None,
        rtcp_mux: true,
        codec: Codec::Pcma,
        payload_type: 8,
        accepts: vec![(8, Codec::Pcma)],
        keys: None,
        comfort_noise: None,
        ptime: Duration::from_millis(20),
        sends: true,
        receives: true,
        srtp: sealed.then(|| SrtpKeys { suite: SrtpSuite::HmacSha1_80, local: key(), remote: key() }),
    };
    let mut now = Instant::now();
    let open = |ssrc| {
        let seed = SessionSeed { ssrc, sequence: 0, timestamp: 0, ntp: 1, cname: "c".into() };
        Session::new(now, plan.clone(), seed).expect("good keys")
    };
    let (mut sender, mut session, mut datagram) = (open(1), open(2), Vec::new());
    let (mut jitter, mut decoder) = (JitterBuffer::new(JitterConfig::RTP), Decoder::new(Codec::Pcma));
    let (mut events, mut samples) = (Vec::new(), Vec::new());
    bencher.bench_local(|| {
        now += Duration::from_millis(20);
        sender.write_audio(now, &[0x55; 160], &mut datagram);
        session.on_rtp(now, black_box(&datagram), |_| true, &mut events);
        for event in events.drain(..) {
            if let RtpEvent::Packet(packet) = event {
                jitter.push(now, packet);
            }
        }
        samples.clear();
        if let Pull::Packet(packet) = jitter.pull(now) {
            decoder.decode(packet.payload(), &mut samples);
        }
    });
}

#[divan::bench]
fn rtp_header(bencher: Bencher) {
    let mut bytes = Vec::new();
    RtpPacket { marker: false, payload_type: 8, sequence: 1, timestamp: 1, ssrc: 1, payload: &[0x55; 160] }
        .write(&mut bytes);
    bencher.bench_local(|| RtpPacket::parse(black_box(&bytes)).map(|packet| packet.payload.len()));
}
