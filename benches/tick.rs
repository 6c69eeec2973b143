//! What 20 ms of one call cost: a packet in (decode, voice detector, resampling, turn-taking) and a frame out (playout,
//! encode, ledger). The budget is 50 µs of one core (`STYLE.md`: "the 20 ms path").

use std::path::Path;
use std::time::{Duration, Instant};

use divan::{Bencher, black_box};
use offhook::call::egress::Egress;
use offhook::call::ingress::Ingress;
use offhook::call::recorder::{Archive, RecordingConfig};
use offhook::conversation::settings::TurnSettings;
use offhook::conversation::turn::{Event, Turn};
use offhook::media::frame::{FRAME, MediaTime, SampleRate};
use offhook::media::g711;
use offhook::media::packet::{Codec, Packet};
use offhook::media::vad::Detector;
use offhook::media::wav;
use offhook::speech::tts::SpeechChunk;
use offhook::telephony::CallId;
use tokio::sync::mpsc;

fn main() {
    divan::main();
}

fn packets() -> Vec<Packet> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("audio-fixtures/booking/01.wav");
    let samples = wav::read(&path).expect("a shipped fixture").samples;
    let mut bytes = Vec::new();
    g711::encode_into(Codec::Pcmu, &samples, &mut bytes);
    let cut = |(n, payload): (usize, &[u8])| Packet::new(Codec::Pcmu, MediaTime::from_millis(20 * n as u64), payload);
    bytes.chunks_exact(160).enumerate().filter_map(cut).collect()
}

/// One caller packet: in, judged, and told to turn-taking.
#[divan::bench]
fn caller_packet(bencher: Bencher) {
    let packets = packets();
    let settings = TurnSettings::default();
    let mut now = Instant::now();
    let mut ingress =
        Ingress::new(now, Codec::Pcmu, SampleRate::HZ_16000, &settings, false, Detector::Offhook).expect("opens");
    let mut turn = Turn::new(settings, "en");
    let mut actions = Vec::with_capacity(16);
    let mut n = 0u64;
    bencher.bench_local(|| {
        let source = &packets[n as usize % packets.len()];
        let packet = Packet::new(Codec::Pcmu, MediaTime::from_millis(20 * n), source.payload()).expect("fits");
        now += FRAME;
        n += 1;
        ingress.push(now, packet);
        while let Some(judged) = ingress.next(now) {
            turn.on_event(ingress.media_now(), Event::Audio(judged.heard), &mut actions);
        }
        actions.clear();
        black_box(ingress.frame()[0])
    });
}

/// One agent frame: from playout to a packet on its way, with its share of the ledger and the recording.
#[divan::bench]
fn agent_frame(bencher: Bencher) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = RecordingConfig { enabled: true, dir: folder.path().into() };
    let (archive, _thread) = Archive::start(config).expect("starts");
    let mut now = Instant::now();
    let mut recorder = archive.recorder(CallId::new(), now);
    let mut egress = Egress::new(Codec::Pcmu);
    let (commands, mut sent) = mpsc::channel(64);
    let mut played = Vec::new();
    let second = SpeechChunk { rate: SampleRate::HZ_24000, samples: vec![1000; 24_000] };
    egress.begin("So we go on.".into());
    bencher.bench_local(|| {
        if egress.queued() < Duration::from_secs(1) {
            egress.sound(&second);
        }
        now += FRAME;
        recorder.caller(&[0; 160]);
        egress.pump(now, &commands, &mut recorder, &mut played);
        played.clear();
        while sent.try_recv().is_ok() {}
    });
}
