//! Voice detectors on labelled speech, everything through mu-law at 8 kHz. Labels: callers of `audio-fixtures/*/call.toml`
//! and, where `OFFHOOK_SHARED` has them, the AWS call, AMI and SpeechBrain. Prints per set and detector: precision and
//! recall at .5 and AUC over packets; delay of the start rule after a labelled start and starts outside speech; cost.

use std::path::{Path, PathBuf};
use std::time::Instant;

use offhook::media::frame::SampleRate;
use offhook::media::packet::Codec;
use offhook::media::resample::Resampler;
use offhook::media::vad::{GateSettings, OffhookVad, PACKET, SpeechGate, VoiceDetector};
use offhook::media::{g711, wav};

const PACKET_MS: f64 = 20.0;
/// A start this much before a label, or this much after its beginning, belongs to it; others are false.
const EARLY_MS: f64 = 150.0;
const LATE_MS: f64 = 600.0;

struct Labelled {
    samples: Vec<i16>,
    /// Speech from and to, in ms, in order.
    speech: Vec<(f64, f64)>,
}

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shared = std::env::var_os("OFFHOOK_SHARED").map_or_else(|| root.join("../shared"), PathBuf::from);
    let audio = shared.join("audio");
    let sets = [
        ("fixtures", fixtures(&root.join("audio-fixtures"))),
        ("aws agent", aws(&audio, "agent")),
        ("aws caller", aws(&audio, "caller")),
        ("ami", ami(&audio)),
        ("speechbrain", speechbrain(&audio)),
    ];
    println!(
        "{:<12} {:<8} {:>7} {:>6} {:>6} {:>6} {:>11} {:>9} {:>12} {:>10}",
        "set", "detector", "s", "prec", "recall", "AUC", "delay ms", "missed", "false/min", "us/packet"
    );
    for (name, files) in &sets {
        if files.is_empty() {
            println!("{name:<12} skipped: no labelled audio");
            continue;
        }
        row(name, "offhook", files, &mut OffhookVad::new());
        #[cfg(feature = "silero")]
        match offhook::media::vad::SileroVad::new() {
            Ok(mut silero) => row(name, "silero", files, &mut silero),
            Err(error) => println!("{name:<12} silero   {error}"),
        }
    }
}

fn row(set: &str, detector: &str, files: &[Labelled], vad: &mut dyn VoiceDetector) {
    let mut scored: Vec<(f32, bool)> = Vec::new();
    let (mut delays, mut turns, mut false_starts, mut silence_ms) = (Vec::new(), 0, 0, 0.0);
    let mut spent = 0.0;
    for file in files {
        vad.reset();
        let mut gate = SpeechGate::new(GateSettings::default());
        let mut starts = Vec::new();
        for (n, packet) in file.samples.as_chunks::<PACKET>().0.iter().enumerate() {
            let began = Instant::now();
            let probability = vad.push(packet);
            spent += began.elapsed().as_secs_f64();
            let (from, to) = (n as f64 * PACKET_MS, (n + 1) as f64 * PACKET_MS);
            let middle = from + PACKET_MS / 2.0;
            let speech = file.speech.iter().any(|&(start, end)| (start..end).contains(&middle));
            silence_ms += if speech { 0.0 } else { PACKET_MS };
            scored.push((probability, speech));
            if gate.push(probability).started {
                starts.push(to);
            }
        }
        // Starts inside a labelled turn are a return after a pause, neither a start nor false.
        turns += file.speech.len();
        for &(start, _) in &file.speech {
            if let Some(at) = starts.iter().find(|&&at| at >= start - EARLY_MS && at <= start + LATE_MS) {
                delays.push(at - start);
            }
        }
        let inside = |at: f64| file.speech.iter().any(|&(start, end)| at >= start - EARLY_MS && at <= end + 300.0);
        false_starts += starts.iter().filter(|&&at| !inside(at)).count();
    }
    let hits = scored.iter().filter(|(p, speech)| *p >= 0.5 && *speech).count() as f64;
    let positive = scored.iter().filter(|(p, _)| *p >= 0.5).count() as f64;
    let actual = scored.iter().filter(|(_, speech)| *speech).count() as f64;
    let missed = turns - delays.len();
    delays.sort_by(f64::total_cmp);
    let quantile = |q: f64| delays.get((q * delays.len() as f64) as usize).copied().unwrap_or(f64::NAN);
    println!(
        "{set:<12} {detector:<8} {:>7.1} {:>6.3} {:>6.3} {:>6.3} {:>5.0}/{:<5.0} {:>4}/{:<4} {:>4} {:>7.2} {:>10.1}",
        scored.len() as f64 * PACKET_MS / 1000.0,
        hits / positive,
        hits / actual,
        auc(&mut scored.clone()),
        quantile(0.5),
        quantile(0.9),
        missed,
        turns,
        false_starts,
        false_starts as f64 / (silence_ms / 60_000.0).max(1e-9),
        spent * 1e6 / scored.len() as f64,
    );
}

/// Area under the curve of hits against false alarms, by ranks; ties count half.
fn auc(scored: &mut [(f32, bool)]) -> f64 {
    scored.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut below, mut area, mut n) = (0.0, 0.0, 0);
    while n < scored.len() {
        let tie = scored[n..].iter().take_while(|(p, _)| *p == scored[n].0).count();
        let positive = scored[n..n + tie].iter().filter(|(_, speech)| *speech).count() as f64;
        let negative = tie as f64 - positive;
        area += positive * (below + negative / 2.0);
        below += negative;
        n += tie;
    }
    let positive = scored.iter().filter(|(_, speech)| *speech).count() as f64;
    area / (positive * below)
}

/// As a call would hear it: 8 kHz, mu-law.
fn telephone(rate: SampleRate, samples: &[i16]) -> Vec<i16> {
    let mut resampler = Resampler::new(rate, SampleRate::HZ_8000).expect("rates of recordings");
    let (mut low, mut bytes) = (Vec::new(), Vec::new());
    resampler.push(samples, &mut low);
    resampler.flush(&mut low);
    g711::encode_into(Codec::Pcmu, &low, &mut bytes);
    g711::decode_into(Codec::Pcmu, &bytes, &mut low);
    low
}

/// Mono 16-bit files by our reader, others (AMI holds floats) by hound.
fn load(path: &Path) -> Option<Vec<i16>> {
    if let Ok(file) = wav::read(path) {
        return Some(telephone(file.rate, &file.samples));
    }
    let mut reader = hound::WavReader::open(path).ok()?;
    let rate = SampleRate::new(reader.spec().sample_rate);
    let samples: Vec<i16> =
        reader.samples::<f32>().map(|s| s.map(|s| (s * 32767.0) as i16)).collect::<Result<_, _>>().ok()?;
    Some(telephone(rate, &samples))
}

/// Overlapping and touching stretches become one.
fn merged(mut speech: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    speech.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut out: Vec<(f64, f64)> = Vec::new();
    for (start, end) in speech {
        match out.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => out.push((start, end)),
        }
    }
    out
}

fn fixtures(folder: &Path) -> Vec<Labelled> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(text) = std::fs::read_to_string(entry.path().join("call.toml")) else { continue };
        let Ok(call) = text.parse::<toml::Table>() else { continue };
        let turns = call.get("turn").and_then(|turns| turns.as_array());
        for turn in turns.into_iter().flatten() {
            let file = turn.get("file").and_then(|file| file.as_str());
            let Some(samples) = file.and_then(|file| load(&entry.path().join(file))) else { continue };
            let ms = |value: &toml::Value| value.as_float().or_else(|| value.as_integer().map(|ms| ms as f64));
            let pairs = turn.get("speech").and_then(|speech| speech.as_array()).into_iter().flatten();
            let speech = pairs.filter_map(|pair| Some((ms(pair.get(0)?)?, ms(pair.get(1)?)?))).collect();
            files.push(Labelled { samples, speech: merged(speech) });
        }
    }
    files
}

fn aws(audio: &Path, side: &str) -> Vec<Labelled> {
    let folder = audio.join("aws-auto-repair-calls");
    let Ok(turns) = std::fs::read_to_string(folder.join("Auto_Repairs_40_UTC_turns.tsv")) else { return Vec::new() };
    let speech = turns.lines().filter_map(|line| {
        let mut columns = line.split('\t');
        let (start, end) = (columns.next()?.parse::<f64>().ok()?, columns.next()?.parse::<f64>().ok()?);
        (columns.next()?.trim() == side).then_some((start * 1000.0, end * 1000.0))
    });
    let speech = merged(speech.collect());
    let samples = load(&folder.join(format!("Auto_Repairs_40_UTC_{side}.wav")));
    samples.map(|samples| Labelled { samples, speech }).into_iter().collect()
}

fn ami(audio: &Path) -> Vec<Labelled> {
    let folder = audio.join("ami-meeting-vad");
    let Ok(rttm) = std::fs::read_to_string(folder.join("trn00.rttm")) else { return Vec::new() };
    let speech = rttm.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (start, length) = (columns.get(3)?.parse::<f64>().ok()?, columns.get(4)?.parse::<f64>().ok()?);
        Some((start * 1000.0, (start + length) * 1000.0))
    });
    let speech = merged(speech.collect());
    load(&folder.join("trn00.wav")).map(|samples| Labelled { samples, speech }).into_iter().collect()
}

fn speechbrain(audio: &Path) -> Vec<Labelled> {
    let folder = audio.join("speechbrain-vad");
    let Ok(text) = std::fs::read_to_string(folder.join("VAD_train.json")) else { return Vec::new() };
    let Ok(pieces) = serde_json::from_str::<serde_json::Value>(&text) else { return Vec::new() };
    // What lies behind the last piece has no labels.
    let (mut speech, mut labelled_ms) = (Vec::new(), 0.0_f64);
    for piece in pieces.as_object().into_iter().flat_map(|pieces| pieces.values()) {
        let at_ms = |field| piece.pointer(field).and_then(|at| at.as_f64()).unwrap_or(0.0) / 16.0;
        let offset = at_ms("/wav/start");
        labelled_ms = labelled_ms.max(at_ms("/wav/stop"));
        let times: Vec<f64> =
            piece["speech"].as_str().unwrap_or("").split(' ').filter_map(|t| t.parse().ok()).collect();
        speech.extend(times.as_chunks::<2>().0.iter().map(|[a, b]| (offset + a * 1000.0, offset + b * 1000.0)));
    }
    let speech = merged(speech);
    let samples = load(&folder.join("train.wav")).map(|mut samples| {
        samples.truncate((labelled_ms * 8.0) as usize);
        samples
    });
    samples.map(|samples| Labelled { samples, speech }).into_iter().collect()
}
