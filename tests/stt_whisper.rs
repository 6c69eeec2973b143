//! Whisper with the real demo model: words of synthesised callers, cancelling, many calls at once. Speech is made by
//! espeak-ng on the spot, limited to the telephone band; without espeak-ng these tests say that they were skipped.
#![cfg(feature = "whisper")]

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use offhook::speech::stt::whisper::{Whisper, WhisperConfig, WhisperLoadError};
use offhook::speech::stt::{AudioChunk, SttEvent, SttInput, SttRequest, SttSession, Take, Transcriber, UtteranceId};

const RATE: f32 = 16_000.0;
const ONE: UtteranceId = UtteranceId(1);

/// What a caller of the demo says: short sentences of the kind that the model was made for. This guards against breakage
/// and is no measure of the model: over all of its `sentences.txt` 13 % of words are wrong.
const PHRASES: &[&str] = &[
    "what time do you open on Friday",
    "I would like to book a table on Friday at seven",
    "for four people please",
    "please call me back tomorrow",
    "I am calling about my account",
    "could you move my invoice to Monday",
    "do you take cards",
    "my name is Maria",
    "can you tell me about prices",
    "yes that is right",
    "I have not received my order yet",
    "thanks goodbye",
];

/// Speech of one voice at 16 kHz within 3.6 kHz, with 300 ms of silence before it and 100 ms after; `None` without
/// espeak-ng.
fn speech(text: &str, voice: &str) -> Option<Vec<i16>> {
    let made = Command::new("espeak-ng").args(["-v", voice, "-s", "150", "--stdout", text]).output();
    let Ok(made) = made else {
        eprintln!("skipped: no espeak-ng");
        return None;
    };
    let mut wav = hound::WavReader::new(&made.stdout[..]).expect("espeak-ng writes WAV");
    let rate = wav.spec().sample_rate as f32;
    // The header of a pipe promises more samples than come.
    let samples: Vec<f32> = wav.samples::<i16>().map_while(Result::ok).map(f32::from).collect();
    let mut audio = vec![0; 4800];
    audio.extend(resampled(&samples, rate));
    audio.extend([0; 1600]);
    Some(audio)
}

/// Windowed sinc at any ratio, cut off at 3.6 kHz: the telephone band.
fn resampled(samples: &[f32], rate: f32) -> Vec<i16> {
    const CUT: f32 = 3600.0;
    let reach = (rate / CUT * 8.0) as isize;
    let length = (samples.len() as f32 * RATE / rate) as usize;
    let at = |n: usize| {
        let centre = n as f32 * rate / RATE;
        let first = centre as isize;
        let sum: f32 = (first - reach..=first + reach)
            .filter_map(|i| Some((i, *samples.get(usize::try_from(i).ok()?)?)))
            .map(|(i, sample)| {
                let x = (i as f32 - centre) * std::f32::consts::PI;
                let band = 2.0 * CUT / rate;
                let sinc = if x.abs() < 1e-4 { band } else { (x * band).sin() / x };
                let window = 0.5 + 0.5 * (x / (reach as f32 + 1.0)).cos();
                sample * sinc * window
            })
            .sum();
        sum.clamp(-32768.0, 32767.0) as i16
    };
    (0..length).map(at).collect()
}

fn load(config: &WhisperConfig) -> Whisper {
    Whisper::load(config).expect("the demo model is part of the project")
}

fn one_worker() -> WhisperConfig {
    WhisperConfig { workers: 1, final_limit_ms: 60_000, ..WhisperConfig::default() }
}

async fn say(session: &SttSession, input: SttInput) {
    session.input.send(input).await.expect("the session reads");
}

async fn feed(session: &SttSession, utterance: UtteranceId, audio: &[i16]) {
    say(session, SttInput::Begin { utterance }).await;
    for chunk in audio.chunks(320) {
        say(session, SttInput::Audio(AudioChunk::new(chunk).expect("20 ms"))).await;
    }
}

async fn event(session: &mut SttSession) -> SttEvent {
    let next = tokio::time::timeout(Duration::from_secs(120), session.events.recv()).await;
    next.expect("an event in time").expect("the session lives")
}

/// The text of one utterance, and the time inside the decoder.
async fn transcribe(session: &mut SttSession, number: u32, audio: &[i16]) -> (String, Duration) {
    let utterance = UtteranceId(number);
    feed(session, utterance, audio).await;
    say(session, SttInput::Transcribe { utterance, take: number, kind: Take::Final }).await;
    let answer = match event(session).await {
        SttEvent::Final { text, take, engine_time, .. } if take == number => (text, engine_time),
        other => panic!("{other:?}"),
    };
    say(session, SttInput::End { utterance }).await;
    answer
}

fn english() -> SttRequest {
    SttRequest { language: "en".into(), ..SttRequest::default() }
}

/// Processor time of this process so far, all threads, in steps of 10 ms: unlike wall time it does not grow with what else
/// the machine does.
fn processor_ms() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Fields 14 and 15 of proc(5), counted after the name in brackets, in hundredths of a second.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some((next()? + next()?) * 10)
}

/// Lower case, letters and digits only.
fn words(text: &str) -> Vec<String> {
    let plain = |word: &str| word.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    text.split_whitespace().map(plain).filter(|word| !word.is_empty()).collect()
}

/// Words wrong (substituted, missing, added) and words said.
fn word_errors(said: &str, heard: &str) -> (usize, usize) {
    let (said, heard) = (words(said), words(heard));
    let mut row: Vec<usize> = (0..=heard.len()).collect();
    for (i, word) in said.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in heard.iter().enumerate() {
            let best = (diagonal + usize::from(word != other)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], best);
        }
    }
    (row[heard.len()], said.len())
}

#[test]
fn word_errors_are_counted_as_edits() {
    assert_eq!(word_errors("Is my bike ready?", "is my bike ready"), (0, 4));
    assert_eq!(word_errors("is my bike ready", "is bike red he"), (3, 4));
    assert_eq!(word_errors("yes", ""), (1, 1));
    assert_eq!(word_errors("", "thank you"), (2, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn callers_of_a_front_desk_are_understood() {
    let engine = load(&one_worker());
    let mut session = engine.open(english());
    let (mut wrong, mut all, mut spent, mut length) = (0, 0, 0, 0);
    for (number, phrase) in PHRASES.iter().enumerate() {
        let voice = ["en-us", "en-gb", "en-gb-scotland"][number % 3];
        let Some(audio) = speech(phrase, voice) else { return };
        let before = processor_ms();
        let (text, time) = transcribe(&mut session, number as u32 + 1, &audio).await;
        spent += processor_ms().zip(before).map_or(0, |(after, before)| after - before);
        let (errors, said) = word_errors(phrase, &text);
        println!("{errors} of {said} wrong, {} ms: {phrase:?} -> {text:?}", time.as_millis());
        (wrong, all, length) = (wrong + errors, all + said, length + audio.len());
    }
    let clips = PHRASES.len() as f32;
    println!("{:.1} % of {all} words wrong", 100.0 * wrong as f32 / all as f32);
    println!("{:.0} ms of a core for a clip of {:.1} s", spent as f32 / clips, length as f32 / RATE / clips);
    assert!(wrong * 10 <= all, "{wrong} of {all} words wrong");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn silence_gives_no_words() {
    let engine = load(&one_worker());
    let mut session = engine.open(english());
    let (text, _) = transcribe(&mut session, 1, &[0; 32_000]).await;
    assert_eq!(text, "");
    let hiss: Vec<i16> = (0..32_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 27) as i16 - 16).collect();
    let (text, _) = transcribe(&mut session, 2, &hiss).await;
    assert_eq!(text, "", "hiss of -70 dBFS is no speech");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_cancelled_take_gives_no_answer_and_the_next_one_does() {
    let Some(audio) = speech(PHRASES[1], "en-us") else { return };
    let engine = load(&one_worker());
    let mut session = engine.open(english());
    feed(&session, ONE, &audio).await;
    say(&session, SttInput::Transcribe { utterance: ONE, take: 1, kind: Take::Speculative }).await;
    say(&session, SttInput::Cancel { utterance: ONE, take: 1 }).await;
    say(&session, SttInput::Transcribe { utterance: ONE, take: 2, kind: Take::Final }).await;
    match event(&mut session).await {
        SttEvent::Final { take: 2, text, .. } => assert!(text.to_lowercase().contains("friday"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_utterance_that_ends_while_it_is_decoded_leaves_the_worker_to_the_next() {
    let Some(audio) = speech("yes that is right", "en-us") else { return };
    let tone: Vec<i16> = (0..160_000).map(|n| ((n as f32 * 0.1).sin() * 9000.0) as i16).collect();
    let engine = load(&one_worker());
    let mut session = engine.open(english());
    feed(&session, ONE, &tone).await;
    say(&session, SttInput::Transcribe { utterance: ONE, take: 1, kind: Take::Final }).await;
    say(&session, SttInput::End { utterance: ONE }).await;
    // `transcribe` takes no other event than its own answer.
    let (text, _) = transcribe(&mut session, 2, &audio).await;
    assert!(text.to_lowercase().contains("right"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_final_supersedes_the_speculation_before_it() {
    let Some(audio) = speech(PHRASES[0], "en-us") else { return };
    let engine = load(&one_worker());
    let mut session = engine.open(english());
    feed(&session, ONE, &audio).await;
    say(&session, SttInput::Transcribe { utterance: ONE, take: 1, kind: Take::Speculative }).await;
    say(&session, SttInput::Transcribe { utterance: ONE, take: 2, kind: Take::Final }).await;
    assert!(matches!(event(&mut session).await, SttEvent::Skipped { take: 1, .. }));
    match event(&mut session).await {
        SttEvent::Final { take: 2, text, .. } => assert!(text.to_lowercase().contains("open"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_partial_tells_the_words_so_far() {
    let Some(audio) = speech(PHRASES[1], "en-us") else { return };
    let engine = load(&one_worker());
    let mut session = engine.open(english());
    feed(&session, ONE, &audio[..audio.len() / 2]).await;
    say(&session, SttInput::Transcribe { utterance: ONE, take: 1, kind: Take::Partial }).await;
    match event(&mut session).await {
        SttEvent::Partial { take: Some(1), text, .. } => assert!(!text.is_empty()),
        other => panic!("{other:?}"),
    }
}

/// Each of `calls` sessions hears a phrase of its own and must give the same text as alone.
async fn many_at_once(calls: usize) -> bool {
    let engine = Arc::new(load(&WhisperConfig { final_limit_ms: 120_000, ..WhisperConfig::default() }));
    let mut alone = Vec::new();
    let mut session = engine.open(english());
    for (number, phrase) in PHRASES.iter().enumerate().take(calls) {
        let Some(audio) = speech(phrase, "en-us") else { return false };
        let (text, _) = transcribe(&mut session, number as u32 + 1, &audio).await;
        alone.push((audio, text));
    }
    let alone = Arc::new(alone);
    let started = Instant::now();
    let tasks = (0..calls).map(|call| {
        let (engine, alone) = (Arc::clone(&engine), Arc::clone(&alone));
        tokio::spawn(async move {
            let (audio, expected) = &alone[call % alone.len()];
            let (text, _) = transcribe(&mut engine.open(english()), 1, audio).await;
            assert_eq!(&text, expected, "call {call}");
            started.elapsed()
        })
    });
    let mut times = futures::future::try_join_all(tasks).await.expect("no call panics");
    times.sort();
    println!("{calls} at once: median {} ms, last {} ms", times[calls / 2].as_millis(), times[calls - 1].as_millis());
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn two_calls_at_once_hear_their_own_words() {
    many_at_once(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn twenty_calls_at_once_hear_their_own_words() {
    many_at_once(20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_long_utterance_is_cut_at_pauses_and_joined() {
    let mut audio = Vec::new();
    for phrase in PHRASES {
        let Some(clip) = speech(phrase, "en-us") else { return };
        audio.extend(clip);
    }
    // The demo model knows utterances of up to 7 s.
    let engine = load(&WhisperConfig { cut_from_ms: 6_000, ..one_worker() });
    let mut session = engine.open(english());
    let (text, _) = transcribe(&mut session, 1, &audio).await;
    let (wrong, all) = word_errors(&PHRASES.join(" "), &text);
    println!("{:.0} s, {wrong} of {all} wrong: {text}", audio.len() as f32 / RATE);
    // Sentences that run together are harder for the model, but every piece must be there.
    assert!(wrong * 4 <= all, "{wrong} of {all} words wrong");
}

#[tokio::test]
async fn a_language_that_the_model_does_not_know_fails_with_its_name() {
    let engine = load(&one_worker());
    let mut session = engine.open(SttRequest { language: "uk".into(), ..SttRequest::default() });
    feed(&session, ONE, &[9000; 16_000]).await;
    say(&session, SttInput::Transcribe { utterance: ONE, take: 1, kind: Take::Final }).await;
    match event(&mut session).await {
        SttEvent::Failed { error, .. } => assert!(error.to_string().contains("English only"), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_take_that_is_late_times_out() {
    let tone: Vec<i16> = (0..400_000).map(|n| ((n as f32 * 0.1).sin() * 9000.0) as i16).collect();
    let config = WhisperConfig { final_limit_ms: 1, cut_from_ms: 27_000, ..one_worker() };
    let engine = load(&config);
    let mut session = engine.open(english());
    feed(&session, ONE, &tone).await;
    say(&session, SttInput::Transcribe { utterance: ONE, take: 1, kind: Take::Final }).await;
    match event(&mut session).await {
        SttEvent::Failed { error, .. } => assert!(error.to_string().contains("no transcript within"), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_that_is_no_model_is_named_with_its_cure() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ggml-base.en.bin");
    std::fs::write(&path, b"not a model at all").expect("written");
    let config =
        WhisperConfig { model: "base.en".into(), models_dir: folder.path().to_owned(), ..WhisperConfig::default() };
    let error = Whisper::load(&config).err().expect("it is no model");
    assert!(matches!(error, WhisperLoadError::Unusable { .. }));
    assert!(error.to_string().contains("offhook models pull base.en"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn dropping_the_engine_in_the_middle_of_work_ends_its_threads() {
    let tone: Vec<i16> = (0..160_000).map(|n| ((n as f32 * 0.1).sin() * 9000.0) as i16).collect();
    let engine = load(&one_worker());
    let mut session = engine.open(english());
    feed(&session, ONE, &tone).await;
    say(&session, SttInput::Transcribe { utterance: ONE, take: 1, kind: Take::Final }).await;
    tokio::task::spawn_blocking(move || drop(engine)).await.expect("the threads are joined");
    assert!(matches!(
        event(&mut session).await,
        SttEvent::Failed { .. } | SttEvent::Skipped { .. } | SttEvent::Final { .. }
    ));
}
