//! The recorded callers of `audio-fixtures`, cut as a live call cuts them (codec, voice detector, pre-roll, resampler) and
//! heard by the local engine with the demo model. Few cuts of each by default; `OFFHOOK_CUTS=all` takes all of the grid
//! and `OFFHOOK_CALLS=name,name` only some callers. `--nocapture` shows every cut that went wrong.
#![cfg(feature = "whisper")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use offhook::call::ingress::Ingress;
use offhook::conversation::settings::TurnSettings;
use offhook::load::fixture::{Fixture, Kind, Turn};
use offhook::media::frame::{FRAME, MediaTime, SampleRate};
use offhook::media::g711;
use offhook::media::packet::{Codec, Packet};
use offhook::media::vad::{Detector, PACKET};
use offhook::speech::stt::whisper::{Whisper, WhisperConfig};
use offhook::speech::stt::{AudioChunk, SttEvent, SttInput, SttRequest, SttSession, Take, Transcriber, UtteranceId};

/// One way in which a call may cut the same words.
#[derive(Clone, Copy)]
struct Cut {
    pre_roll_ms: u64,
    /// Where in a packet the file begins, samples at 8 kHz; it also moves the background.
    phase: usize,
    /// Silence, as the detector sees it, after which the take is asked for.
    tail_ms: u64,
}

fn cuts() -> Vec<Cut> {
    let all = std::env::var("OFFHOOK_CUTS").is_ok_and(|which| which == "all");
    let (pre_rolls, phases, tails): (&[u64], &[usize], &[u64]) = match all {
        true => (&[280, 340, 420], &[0, 37, 85, 122], &[40, 80, 120, 160]),
        false => (&[300], &[51], &[40, 100]),
    };
    let of_phase = |&phase| {
        pre_rolls
            .iter()
            .flat_map(move |&pre_roll_ms| tails.iter().map(move |&tail_ms| Cut { pre_roll_ms, phase, tail_ms }))
    };
    phases.iter().flat_map(of_phase).collect()
}

/// The utterances that the ear makes of one file: what recognition holds when the take is asked for.
fn utterances(fixture: &Fixture, turn: &Turn, cut: Cut) -> Vec<Vec<AudioChunk>> {
    // A background of its own for each phase; quiet before, for the detector to settle, and after.
    let quiet = 12_000 + cut.phase;
    let mut sound = vec![0i16; quiet];
    sound.extend(&turn.samples);
    sound.resize(sound.len().next_multiple_of(PACKET) + 12_000, 0);
    if let Some(background) = &fixture.background {
        let noise = background.iter().cycle().skip(cut.phase * 509 % background.len());
        sound.iter_mut().zip(noise).for_each(|(sample, noise)| *sample = sample.saturating_add(*noise));
    }
    let settings = TurnSettings { pre_roll_ms: cut.pre_roll_ms, ..TurnSettings::default() };
    let mut now = Instant::now();
    let rate = SampleRate::HZ_16000;
    let mut ingress = Ingress::new(now, Codec::Pcmu, rate, &settings, false, Detector::Offhook).expect("opens");
    let (mut found, mut open): (Vec<Vec<AudioChunk>>, Option<Vec<AudioChunk>>) = (Vec::new(), None);
    let mut asked = 0;
    let mut bytes = Vec::new();
    for (n, frame) in sound.chunks_exact(PACKET).enumerate() {
        now += FRAME;
        bytes.clear();
        g711::encode_into(Codec::Pcmu, frame, &mut bytes);
        ingress.push(now, Packet::new(Codec::Pcmu, MediaTime::from_millis(20 * n as u64), &bytes).expect("fits"));
        while let Some(judged) = ingress.next(now) {
            match &mut open {
                Some(open) => open.extend(ingress.newest().cloned()),
                None if judged.heard.started => open = Some(ingress.pre_roll().cloned().collect()),
                None => {}
            }
            let silent = judged.heard.silent_for;
            if let Some(heard) = &open
                && silent == Duration::from_millis(cut.tail_ms)
            {
                asked = heard.len();
            }
            // Words of agreement in one file are far apart and each is judged by itself; a sentence stays together.
            let over = turn.kind == Kind::Backchannel && silent >= Duration::from_millis(settings.wait_unknown_ms);
            if over && let Some(mut heard) = open.take() {
                heard.truncate(asked);
                found.push(heard);
            }
        }
    }
    if let Some(mut heard) = open {
        heard.truncate(asked);
        found.push(heard);
    }
    found
}

/// The text of one utterance and how sure the engine is of it.
async fn transcribe(session: &mut SttSession, number: u32, audio: Vec<AudioChunk>) -> (String, f32) {
    let utterance = UtteranceId(number);
    let take = SttInput::Transcribe { utterance, take: number, kind: Take::Speculative };
    let audio = audio.into_iter().map(SttInput::Audio);
    for input in std::iter::once(SttInput::Begin { utterance }).chain(audio).chain([take]) {
        session.input.send(input).await.expect("the session reads");
    }
    let event = tokio::time::timeout(Duration::from_secs(120), session.events.recv()).await;
    let heard = match event.expect("an event in time").expect("the session lives") {
        SttEvent::Final { text, confidence, .. } => (text, confidence.unwrap_or(0.0)),
        other => panic!("{other:?}"),
    };
    session.input.send(SttInput::End { utterance }).await.expect("the session reads");
    heard
}

/// Lower case, letters and digits only.
fn words(text: &str) -> Vec<String> {
    let plain = |word: &str| word.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    text.split_whitespace().map(plain).filter(|word| !word.is_empty()).collect()
}

/// Words substituted, missing or added.
fn wrong_words(said: &[String], heard: &[String]) -> usize {
    let mut row: Vec<usize> = (0..=heard.len()).collect();
    for (i, word) in said.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in heard.iter().enumerate() {
            let best = (diagonal + usize::from(word != other)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], best);
        }
    }
    row[heard.len()]
}

#[derive(Default, Debug)]
struct Score {
    said: usize,
    wrong: usize,
    /// Words of a slot that were said and not heard.
    slots: usize,
    /// Noises and words of agreement that came out as other words, of all cuts of them.
    asides: usize,
    asides_wrong: usize,
}

impl Score {
    fn add(&mut self, other: &Self) {
        self.said += other.said;
        self.wrong += other.wrong;
        self.slots += other.slots;
        self.asides += other.asides;
        self.asides_wrong += other.asides_wrong;
    }
}

/// All cuts of one file.
async fn score(session: &mut SttSession, number: &mut u32, fixture: &Fixture, turn: &Turn, name: &str) -> Score {
    let said = words(&turn.text);
    let slots: Vec<String> = fixture.expect.slots.values().flat_map(|value| words(value)).collect();
    let (mut score, mut heard_as, mut least) = (Score::default(), BTreeMap::<String, (usize, f32)>::new(), 1.0_f32);
    for cut in cuts() {
        let mut heard = Vec::new();
        for audio in utterances(fixture, turn, cut) {
            *number += 1;
            let (text, confidence) = transcribe(session, *number, audio).await;
            least = least.min(confidence);
            heard.push((words(&text), confidence));
        }
        let all: Vec<String> = heard.iter().flat_map(|(words, _)| words.clone()).collect();
        let wrong = wrong_words(&said, &all);
        if turn.kind.wants_reply() {
            score.said += said.len();
            score.wrong += wrong;
            score.slots += said.iter().filter(|word| slots.contains(word) && !all.contains(word)).count();
        } else {
            score.asides += 1;
            score.asides_wrong += usize::from(wrong > 0);
        }
        if wrong > 0 {
            let text = heard.iter().map(|(words, _)| words.join(" ")).collect::<Vec<_>>().join(" | ");
            let surest = heard.iter().map(|(_, confidence)| *confidence).fold(0.0, f32::max);
            let entry = heard_as.entry(text).or_default();
            *entry = (entry.0 + 1, entry.1.max(surest));
        }
    }
    let label = turn.kind.label();
    for (text, (times, surest)) in &heard_as {
        println!("  {name} {label}, {times} times, up to {surest:.2} sure: {:?} -> {text:?}", turn.text);
    }
    if heard_as.is_empty() && least < 0.6 && turn.kind.wants_reply() {
        println!("  {name} {label} right, but only {least:.2} sure: {:?}", turn.text);
    }
    score
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn shipped_callers_are_understood_however_a_call_cuts_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("audio-fixtures");
    let config = WhisperConfig {
        workers: 1,
        final_limit_ms: 120_000,
        models_dir: root.join("models"),
        ..WhisperConfig::default()
    };
    let engine = Whisper::load(&config).expect("the demo model is part of the project");
    let mut session = engine.open(SttRequest { language: "en".into(), ..SttRequest::default() });
    let only = std::env::var("OFFHOOK_CALLS").ok();
    let (mut total, mut number) = (Score::default(), 0);
    for name in Fixture::names(&folder) {
        if only.as_ref().is_some_and(|only| !only.split(',').any(|wanted| wanted == name)) {
            continue;
        }
        let fixture = Fixture::find(&folder, &name).expect("a shipped fixture");
        let mut of_call = Score::default();
        for (index, turn) in fixture.turns.iter().enumerate() {
            let label = format!("{name}/{:02}", index + 1);
            of_call.add(&score(&mut session, &mut number, &fixture, turn, &label).await);
        }
        println!("{name}: {of_call:?}");
        total.add(&of_call);
    }
    println!("{} cuts of each file: {total:?}, {:.2} %", cuts().len(), 100.0 * total.wrong as f32 / total.said as f32);
    assert!(total.wrong * 10 <= total.said, "more than 10 % of the words wrong: {total:?}");
    assert_eq!(total.slots, 0, "a name, day, time or number was misheard");
}
