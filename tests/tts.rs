//! The synthesizers: eSpeak NG as it is installed here, stand-ins for it that misbehave, and `/v1/audio/speech`
//! against servers on this machine that send the real wire format.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use offhook::media::frame::SampleRate;
use offhook::speech::tts::espeak::{Espeak, EspeakConfig};
use offhook::speech::tts::openai::{OpenAiTts, OpenAiTtsConfig, SpeechFormat};
use offhook::speech::tts::{SpeechRequest, SpeechStream, Synthesizer, TtsError};
use tokio::time::timeout;

mod wire;
use wire::{Server, Step, chunk, end, head, pause, serve, status};

/// Whatever a test waits for comes within this, or never.
const NEVER: Duration = Duration::from_secs(20);
/// -45 dBFS, where sound begins.
const SOUND: u16 = 184;

fn say(text: &str) -> SpeechRequest {
    SpeechRequest { text: text.into(), language: "en".into(), voice: String::new(), speed: 1.0 }
}

/// All samples of an utterance with their rate, and the error that ended it, if one did.
async fn hear(mut stream: SpeechStream) -> (Option<SampleRate>, Vec<i16>, Option<TtsError>) {
    let all = async {
        let (mut rate, mut samples) = (None, Vec::new());
        while let Some(chunk) = stream.next().await {
            match chunk {
                Ok(chunk) => {
                    assert!(rate.is_none_or(|rate| rate == chunk.rate), "one rate for an utterance");
                    assert!(chunk.rate.duration(chunk.samples.len()) <= Duration::from_millis(41), "chunks are short");
                    rate = Some(chunk.rate);
                    samples.extend(chunk.samples);
                }
                Err(error) => return (rate, samples, Some(error)),
            }
        }
        (rate, samples, None)
    };
    timeout(NEVER, all).await.expect("an utterance ends")
}

/// Silence before the first sound and after the last one.
fn silence_around(rate: SampleRate, samples: &[i16]) -> (Duration, Duration) {
    let sound = |&sample: &i16| sample.unsigned_abs() > SOUND;
    let first = samples.iter().position(sound).expect("sound");
    let last = samples.iter().rposition(sound).expect("sound");
    (rate.duration(first), rate.duration(samples.len() - 1 - last))
}

/// The engine, unless the program is not installed here.
async fn espeak() -> Option<Espeak> {
    let espeak = Espeak::new(EspeakConfig::default());
    match espeak.check().await {
        Ok(version) => {
            assert!(version.contains("eSpeak NG"), "{version}");
            Some(espeak)
        }
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

#[tokio::test]
async fn espeak_speaks_three_languages_with_both_ends_trimmed() {
    let Some(espeak) = espeak().await else { return };
    for (language, text) in [
        ("en", "Your bike is ready. Come by until six."),
        ("uk", "Ваш велосипед готовий, приходьте до шостої."),
        ("ru", "Ваш велосипед готов, приходите до шести."),
    ] {
        let (rate, samples, error) = hear(espeak.speak(SpeechRequest { language: language.into(), ..say(text) })).await;
        assert!(error.is_none(), "{language}: {error:?}");
        let rate = rate.expect("audio");
        assert_eq!(rate, SampleRate::HZ_22050);
        let seconds = rate.duration(samples.len()).as_secs_f32();
        assert!((1.5..6.0).contains(&seconds), "{language}: {seconds} s");
        let (before, after) = silence_around(rate, &samples);
        assert!(before <= Duration::from_millis(30), "{language}: {before:?} before the first sound");
        assert!(after <= Duration::from_millis(60), "{language}: {after:?} after the last");
    }
}

#[tokio::test]
async fn espeak_honours_speed_and_voice() {
    let Some(espeak) = espeak().await else { return };
    let sentence = say("Please hold the line, I am looking it up for you.");
    let (_, normal, _) = hear(espeak.speak(sentence.clone())).await;
    let (_, fast, _) = hear(espeak.speak(SpeechRequest { speed: 1.6, ..sentence.clone() })).await;
    let (_, female, _) = hear(espeak.speak(SpeechRequest { voice: "en-us+f3".into(), ..sentence })).await;
    let ratio = normal.len() as f32 / fast.len() as f32;
    assert!((1.3..2.0).contains(&ratio), "speed 1.6 made it {ratio} times as short");
    assert!(!female.is_empty() && female != normal);
}

#[tokio::test]
async fn espeak_reads_commands_of_its_own_as_text() {
    let Some(espeak) = espeak().await else { return };
    for text in ["--version", "-f /etc/passwd", "[[h@l'oU]]", "<speak>hi</speak>", "$(ls) `ls`"] {
        let (_, samples, error) = hear(espeak.speak(say(text))).await;
        assert!(error.is_none() && !samples.is_empty(), "{text}: {error:?}");
    }
    let (_, samples, error) = hear(espeak.speak(say("…"))).await;
    assert!(error.is_none() && samples.is_empty(), "nothing to say is nothing said: {error:?}");
}

#[tokio::test]
async fn a_voice_that_does_not_exist_is_one_error_that_says_so() {
    let Some(espeak) = espeak().await else { return };
    let (_, _, error) = hear(espeak.speak(SpeechRequest { voice: "klatt9".into(), ..say("Hi") })).await;
    let printed = error.expect("an error").to_string();
    assert!(printed.contains("voice does not exist") && printed.contains("--voices"), "{printed}");
    assert!(hear(espeak.speak(say("Hi"))).await.2.is_none(), "the next utterance is spoken");
}

#[tokio::test]
async fn a_slow_reader_gets_every_sample() {
    let Some(espeak) = espeak().await else { return };
    let text = "One, two, three, four, five, six, seven, eight, nine, ten. ".repeat(8);
    let (rate, at_once, _) = hear(espeak.speak(say(&text))).await;
    assert!(rate.expect("audio").duration(at_once.len()) > Duration::from_secs(20));
    let mut stream = espeak.speak(say(&text));
    let mut slowly = Vec::new();
    while let Some(chunk) = stream.next().await {
        slowly.extend(chunk.expect("audio").samples);
        tokio::task::yield_now().await;
    }
    assert!(slowly == at_once);
}

/// Children of this process that have ended and were not waited for, and those that run.
fn children() -> (usize, usize) {
    let me = std::process::id().to_string();
    let states = fs::read_dir("/proc").expect("Linux").flatten().filter_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let (state, parent) = (fields.next()?.to_owned(), fields.next()?.to_owned());
        (parent == me).then_some(state)
    });
    let states: Vec<String> = states.collect();
    let zombies = states.iter().filter(|state| *state == "Z").count();
    (zombies, states.len() - zombies)
}

#[tokio::test]
async fn dropped_utterances_and_dropped_engines_leave_no_process() {
    let Some(espeak) = espeak().await else { return };
    espeak.prepare(&say(""));
    for _ in 0..20 {
        let mut stream = espeak.speak(say(&"A long story that nobody wants to hear to its end. ".repeat(60)));
        timeout(NEVER, stream.next()).await.expect("in time").expect("a chunk").expect("audio");
    }
    drop(espeak);
    // The runtime collects killed processes when their signals arrive.
    let gone = async {
        while children() != (0, 0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(NEVER, gone).await.unwrap_or_else(|_| panic!("left: {:?}", children()));
}

#[tokio::test]
async fn processes_that_nobody_wants_are_ended() {
    let Some(espeak) = espeak().await else { return };
    drop(espeak);
    let espeak = Espeak::new(EspeakConfig { idle_ms: 200, pool: 2, pool_total: 3, ..EspeakConfig::default() });
    for language in ["en", "uk", "ru"] {
        assert!(hear(espeak.speak(SpeechRequest { language: language.into(), ..say("7") })).await.2.is_none());
    }
    let some = async {
        while children().1 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(NEVER, some).await.expect("some wait");
    let mut most = 0;
    let gone = async {
        while children() != (0, 0) {
            most = most.max(children().1);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(NEVER, gone).await.expect("idle processes end");
    assert!(most <= 3 + 1, "{most} waited, where 3 may (and one more while it starts)");
}

/// A program for `EspeakConfig::program`.
fn program(folder: &Path, script: &str) -> EspeakConfig {
    let path = folder.join("espeak");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a temporary file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("our own file");
    let program = path.to_str().expect("a plain path").to_owned();
    EspeakConfig { program, first_audio_limit_ms: 1500, gap_limit_ms: 300, ..EspeakConfig::default() }
}

/// Half a second of a WAV, as a shell command: the header, then samples of 0x0808 = 2056.
const HALF_SECOND: &str = r"printf 'RIFF\377\377\377\377WAVEfmt \020\000\000\000\001\000\001\000\042\126\000\000\104\254\000\000\002\000\020\000data\377\377\377\377'; head -c 22050 /dev/zero | tr '\000' '\010'";

#[tokio::test]
async fn a_broken_program_is_one_error_that_names_it_and_the_cure() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, script, expected) in [
        ("garbage", "cat > /dev/null; echo hello hello hello", "no WAV header"),
        ("nothing", "cat > /dev/null", "ended without a sound"),
        ("a crash", "cat > /dev/null; echo out of cheese >&2; kill -SEGV $$", "out of cheese"),
        ("deaf", "exec < /dev/null; exit 3", "espeak"),
    ] {
        let config = program(folder.path(), script);
        let espeak = Espeak::new(config.clone());
        let (_, samples, error) = hear(espeak.speak(say("Hello"))).await;
        let printed = error.unwrap_or_else(|| panic!("{name}: no error")).to_string();
        assert!(samples.is_empty(), "{name}");
        assert!(printed.contains(expected), "{name}: {printed}");
        assert!(printed.contains(&config.program), "{name}: {printed}");
        assert!(printed.contains("speech.tts.espeak.program"), "{name}: {printed}");
    }
    let missing = EspeakConfig { program: "/nowhere/espeak-ng".into(), ..EspeakConfig::default() };
    let (_, _, error) = hear(Espeak::new(missing).speak(say("Hello"))).await;
    let printed = error.expect("an error").to_string();
    assert!(printed.contains("/nowhere/espeak-ng") && printed.contains("install"), "{printed}");
}

#[tokio::test]
async fn a_program_that_hangs_is_given_up_before_and_amid_its_speech() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = EspeakConfig { first_audio_limit_ms: 300, ..program(folder.path(), "exec sleep 1000") };
    let (_, _, error) = hear(Espeak::new(config).speak(say("Hello"))).await;
    assert!(matches!(error, Some(TtsError::Timeout { .. })), "{error:?}");

    let config = program(folder.path(), &format!("cat > /dev/null; {HALF_SECOND}; exec sleep 1000"));
    let (_, samples, error) = hear(Espeak::new(config).speak(say("Hello"))).await;
    assert_eq!(samples.len(), 11_025);
    assert!(matches!(error, Some(TtsError::Timeout { .. })), "{error:?}");
}

#[tokio::test]
async fn a_crash_amid_speech_is_passed_on_after_what_was_said() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = program(folder.path(), &format!("cat > /dev/null; {HALF_SECOND}; kill -SEGV $$"));
    let (_, samples, error) = hear(Espeak::new(config).speak(say("Hello"))).await;
    assert_eq!(samples.len(), 11_025);
    assert!(error.is_some_and(|error| error.to_string().contains("signal: 11")));
}

#[tokio::test]
async fn a_process_that_died_while_it_waited_costs_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let flag = folder.path().join("second");
    // The first process of each pair dies at once; the next one works.
    let script = format!(
        "f={flag}; if [ -e $f ]; then cat > /dev/null; {HALF_SECOND}; else touch $f; exit 9; fi",
        flag = flag.display()
    );
    let espeak = Espeak::new(EspeakConfig { pool: 1, ..program(folder.path(), &script) });
    espeak.prepare(&say(""));
    let died = async {
        while !flag.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(NEVER, died).await.expect("the first process ran");
    let (_, samples, error) = hear(espeak.speak(say("Hello"))).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(samples.len(), 11_025);
}

/// Time to the first chunk of each utterance of a clause, sorted.
async fn first_audio(espeak: &Espeak, rounds: usize, at_once: usize, rest: Duration) -> Vec<Duration> {
    let clause = say("Your bike is ready, you can pick it up today until six p.m.");
    let mut times = Vec::new();
    for _ in 0..rounds {
        let started = Instant::now();
        let streams: Vec<_> = (0..at_once).map(|_| espeak.speak(clause.clone())).collect();
        let first = streams.into_iter().map(|mut stream| async move {
            stream.next().await.expect("a chunk").expect("audio");
            let time = started.elapsed();
            while stream.next().await.is_some() {}
            time
        });
        times.extend(futures::future::join_all(first).await);
        tokio::time::sleep(rest).await;
    }
    times.sort();
    times
}

/// A measurement, not a check: `cargo nextest run --test tts --run-ignored only --no-capture measure`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; figures mean something only on a quiet machine"]
async fn measure_first_audio() {
    let Some(warm) = espeak().await else { return };
    let cold = Espeak::new(EspeakConfig { pool: 0, ..EspeakConfig::default() });
    let eight = Espeak::new(EspeakConfig { pool: 8, ..EspeakConfig::default() });
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    for (name, espeak, rounds, at_once) in [
        ("warm", &warm, 50, 1),
        ("cold", &cold, 50, 1),
        ("8 at once, pool of 8", &eight, 10, 8),
        ("8 at once, cold", &cold, 10, 8),
    ] {
        espeak.prepare(&say(""));
        tokio::time::sleep(Duration::from_millis(500)).await;
        let times = first_audio(espeak, rounds, at_once, Duration::from_millis(200)).await;
        let at = |share: usize| ms(times[times.len() * share / 100]);
        println!("{name}: median {:.1} ms, p90 {:.1} ms, most {:.1} ms of {}", at(50), at(90), at(99), times.len());
    }
}

fn config(base_url: String) -> OpenAiTtsConfig {
    OpenAiTtsConfig { base_url, api_key: Some("hunter2".into()), ..OpenAiTtsConfig::default() }
}

fn openai(server: &Server) -> OpenAiTts {
    OpenAiTts::new(config(server.base_url())).expect("a good address")
}

/// Sound that can be told apart sample by sample.
fn sound(samples: usize) -> Vec<i16> {
    (0..samples).map(|i| 1000 + (i % 20_000) as i16).collect()
}

fn bytes(samples: &[i16]) -> Vec<u8> {
    samples.iter().flat_map(|sample| sample.to_le_bytes()).collect()
}

fn wav(hz: u32, samples: &[i16]) -> Vec<u8> {
    let mut wav = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0\x01\0".to_vec();
    wav.extend(hz.to_le_bytes());
    wav.extend((hz * 2).to_le_bytes());
    wav.extend(b"\x02\0\x10\0data\xff\xff\xff\xff");
    wav.extend(bytes(samples));
    wav
}

/// An answer whose body is cut into pieces of `piece` bytes.
fn answer(kind: &str, body: &[u8], piece: usize) -> Vec<Step> {
    [head(kind)].into_iter().chain(body.chunks(piece).map(chunk)).chain([end()]).collect()
}

#[tokio::test]
async fn a_request_for_speech_has_the_shape_of_the_api() {
    let mut server = serve(vec![answer("audio/pcm", &bytes(&sound(240)), 100)]).await;
    let config = OpenAiTtsConfig { instructions: "Calm.".into(), ..config(server.base_url()) };
    let engine = OpenAiTts::new(config).expect("a good address");
    hear(engine.speak(SpeechRequest { voice: "coral".into(), speed: 1.1, ..say("Так.") })).await;
    let request = server.requests.recv().await.expect("asked");
    assert_eq!(request.line, "POST /v1/audio/speech");
    assert!(request.head.contains("authorization: bearer hunter2"));
    let expected = serde_json::json!({"model": "gpt-4o-mini-tts", "input": "Так.", "voice": "coral",
        "response_format": "pcm", "speed": 1.1, "instructions": "Calm."});
    assert_eq!(request.json(), expected);

    hear(openai(&server).speak(say("Так."))).await;
    let expected =
        serde_json::json!({"model": "gpt-4o-mini-tts", "input": "Так.", "voice": "alloy", "response_format": "pcm"});
    assert_eq!(server.requests.recv().await.expect("asked").json(), expected);
}

#[tokio::test]
async fn samples_are_whole_however_the_body_is_cut() {
    let samples = sound(700);
    let pieces = [1, 3, 7, 501, 5000];
    let server = serve(pieces.map(|piece| answer("application/octet-stream", &bytes(&samples), piece)).to_vec()).await;
    let engine = openai(&server);
    for piece in pieces {
        let (rate, heard, error) = hear(engine.speak(say("Hi"))).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(rate, Some(SampleRate::HZ_24000));
        assert!(heard == samples, "in pieces of {piece}");
    }
}

#[tokio::test]
async fn the_answer_says_what_it_is() {
    let samples = sound(500);
    let events = |field: &str, audio: &[u8]| -> String {
        let event = |part: &[u8]| {
            let audio = BASE64_STANDARD.encode(part);
            format!(": ping\r\n\r\ndata: {{\"type\":\"speech.audio.delta\",\"{field}\":\"{audio}\"}}\r\n\r\n")
        };
        audio.chunks(333).map(event).collect::<String>() + "data: {\"type\":\"speech.audio.done\"}\n\n"
    };
    let stream = events("audio", &bytes(&samples));
    for (name, kind, body, hz) in [
        ("pcm", "audio/pcm", bytes(&samples), 24_000),
        ("pcm with its rate", "audio/pcm;rate=16000", bytes(&samples), 16_000),
        ("wav", "audio/wav", wav(22_050, &samples), 22_050),
        ("wav called pcm", "audio/pcm", wav(16_000, &samples), 16_000),
        ("events", "text/event-stream", stream.clone().into_bytes(), 24_000),
        (
            "events with another field",
            "text/event-stream; charset=utf-8",
            events("delta", &bytes(&samples)).into_bytes(),
            24_000,
        ),
        ("a wav in events", "text/event-stream", events("audio", &wav(22_050, &samples)).into_bytes(), 22_050),
    ] {
        let server = serve(vec![answer(kind, &body, 100)]).await;
        let config = OpenAiTtsConfig { response_format: SpeechFormat::Wav, ..config(server.base_url()) };
        let (rate, heard, error) = hear(OpenAiTts::new(config).expect("a good address").speak(say("Hi"))).await;
        assert!(error.is_none(), "{name}: {error:?}");
        assert_eq!(rate.map(SampleRate::hz), Some(hz), "{name}");
        assert!(heard == samples, "{name}");
    }
    let cuts = (0..=stream.len()).step_by(3).map(|cut| {
        let (a, b) = stream.as_bytes().split_at(cut);
        vec![head("text/event-stream"), chunk(a), chunk(b), end()]
    });
    let server = serve(cuts.collect()).await;
    let engine = openai(&server);
    for cut in (0..=stream.len()).step_by(3) {
        let (_, heard, error) = hear(engine.speak(say("Hi"))).await;
        assert!(error.is_none() && heard == samples, "cut at {cut}: {error:?}");
    }
}

#[tokio::test]
async fn silence_at_both_ends_is_trimmed() {
    let samples = [vec![3; 24_000 / 4], sound(2400), vec![-3; 24_000]].concat();
    let server = serve(vec![answer("audio/pcm", &bytes(&samples), 999)]).await;
    let (rate, heard, error) = hear(openai(&server).speak(say("Hi"))).await;
    assert!(error.is_none(), "{error:?}");
    let (before, after) = silence_around(rate.expect("audio"), &heard);
    assert_eq!((before, after), (Duration::from_millis(30), Duration::from_millis(60)));
}

#[tokio::test]
async fn sound_comes_out_as_it_arrives() {
    let server = serve(vec![vec![head("audio/pcm"), chunk(bytes(&sound(480))), Step::Hang]]).await;
    let mut stream = openai(&server).speak(say("Hi"));
    timeout(NEVER, stream.next()).await.expect("at once").expect("a chunk").expect("audio");
}

#[tokio::test]
async fn dropping_the_speech_closes_the_connection() {
    for begun in [false, true] {
        let steps =
            if begun { vec![head("audio/pcm"), chunk(bytes(&sound(480))), Step::Hang] } else { vec![Step::Hang] };
        let mut server = serve(vec![steps]).await;
        let mut stream = openai(&server).speak(say("Hi"));
        server.requests.recv().await.expect("asked");
        if begun {
            stream.next().await.expect("a chunk").expect("audio");
        }
        drop(stream);
        timeout(NEVER, server.closed.recv()).await.expect("the server sees it").expect("one connection");
    }
}

#[tokio::test]
async fn speech_that_can_be_had_by_asking_again_is_had() {
    let samples = sound(480);
    for (name, first) in [
        ("429", status("429 Too Many Requests", "retry-after-ms: 20\r\n", "{}")),
        ("500", status("500 Internal Server Error", "", "oops")),
        ("closed before the head", vec![Step::Close]),
        ("closed in the silence before the first sound", vec![head("audio/pcm"), chunk([0; 2001]), Step::Close]),
        ("ended without audio", vec![head("audio/pcm"), end()]),
    ] {
        let server = serve(vec![first, answer("audio/pcm", &bytes(&samples), 333)]).await;
        let (_, heard, error) = hear(openai(&server).speak(say("Hi"))).await;
        assert!(error.is_none(), "{name}: {error:?}");
        assert!(heard == samples, "{name}");
    }
}

#[tokio::test]
async fn speech_that_fails_is_one_error_of_its_kind() {
    let quota = r#"{"error":{"message":"no more","code":"insufficient_quota"}}"#;
    for (name, answer, status_code) in [
        ("quota", status("429 Too Many Requests", "", quota), Some(429)),
        ("400", status("400 Bad Request", "", "{}"), Some(400)),
        ("mp3", vec![head("audio/mpeg"), chunk([0xff; 99]), end()], None),
        ("a page", vec![head("text/html"), chunk("<html>"), end()], None),
        (
            "floats",
            vec![
                head("audio/wav"),
                chunk(b"RIFF1234WAVEfmt \x10\0\0\0\x03\0\x01\0\xc0\x5d\0\0\0\0\0\0\x04\0\x20\0data\0\0\0\0abcd"),
                end(),
            ],
            None,
        ),
        (
            "an error event",
            vec![head("text/event-stream"), chunk("data: {\"error\":{\"message\":\"no\"}}\n\n"), end()],
            None,
        ),
    ] {
        let mut server = serve(vec![answer]).await;
        let (_, heard, error) = hear(openai(&server).speak(say("Hi"))).await;
        assert!(heard.is_empty(), "{name}");
        let Some(TtsError::Engine { status, .. }) = &error else { panic!("{name}: {error:?}") };
        assert_eq!(*status, status_code, "{name}");
        server.requests.recv().await.expect("asked");
        assert!(server.requests.try_recv().is_err(), "{name} was tried again");
    }
    let server = serve(vec![status("401 Unauthorized", "", "hunter2")]).await;
    let (_, _, error) = hear(openai(&server).speak(say("Hi"))).await;
    let printed = format!("{error:?}");
    assert!(printed.contains("speech.tts.openai.api_key") && !printed.contains("hunter2"), "{printed}");
}

#[tokio::test]
async fn speech_that_breaks_off_is_passed_on_and_not_asked_for_again() {
    let samples = sound(480);
    let mut server = serve(vec![vec![head("audio/pcm"), chunk(bytes(&samples)), Step::Close]]).await;
    let (_, heard, error) = hear(openai(&server).speak(say("Hi"))).await;
    assert!(heard == samples);
    assert!(matches!(error, Some(TtsError::Engine { .. })), "{error:?}");
    server.requests.recv().await.expect("asked");
    assert!(server.requests.try_recv().is_err());
}

#[tokio::test]
async fn time_limits_act_on_the_first_sound_and_the_next() {
    let hush = || std::iter::repeat_n([chunk([0; 480]), pause(10)], 500).flatten();
    for (name, answer, limit_ms) in [
        ("no head", vec![Step::Hang], 150),
        ("silence only", [head("audio/pcm")].into_iter().chain(hush()).collect(), 150),
        ("a gap", vec![head("audio/pcm"), chunk(bytes(&sound(480))), Step::Hang], 200),
    ] {
        let server = serve(vec![answer]).await;
        let limits = OpenAiTtsConfig { first_audio_limit_ms: 150, gap_limit_ms: 200, ..config(server.base_url()) };
        let started = Instant::now();
        let (_, _, error) = hear(OpenAiTts::new(limits).expect("a good address").speak(say("Hi"))).await;
        let Some(TtsError::Timeout { limit, .. }) = error else { panic!("{name}: {error:?}") };
        assert_eq!(limit, Duration::from_millis(limit_ms), "{name}");
        assert!(started.elapsed() < Duration::from_secs(3), "{name} took {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn endless_speech_is_cut_off() {
    let flood = std::iter::repeat_n(chunk(bytes(&sound(24_000))), 50);
    let mut server = serve(vec![[head("audio/pcm")].into_iter().chain(flood).chain([Step::Hang]).collect()]).await;
    let config = OpenAiTtsConfig { max_audio_s: 2, ..config(server.base_url()) };
    let (_, heard, error) = hear(OpenAiTts::new(config).expect("a good address").speak(say("Hi"))).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(heard.len(), 48_000);
    timeout(NEVER, server.closed.recv()).await.expect("the connection is closed");
}
