//! `offhook demo` as a newcomer runs it: the real program, real recognition, real speech, real sockets. Skipped where
//! espeak-ng is not installed or the build has no local recognition.
#![cfg(feature = "whisper")]

use std::path::Path;
use std::process::{Command, Output};

fn has_espeak() -> bool {
    let found = Command::new("espeak-ng").arg("--version").output().is_ok();
    if !found {
        println!("skipped: espeak-ng is not installed");
    }
    found
}

fn demo(arguments: &[&str], out: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_offhook"))
        .arg("demo")
        .args(arguments)
        .arg("--out")
        .arg(out)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("the program runs")
}

#[test]
fn a_newcomer_sees_a_call_that_is_understood() {
    if !has_espeak() {
        return;
    }
    let out = tempfile::tempdir().expect("a temporary folder");
    let output = demo(&[], out.path());
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    for line in ["caller  what time do you open on friday", "agent   We are open", "ok     slot name"] {
        assert!(printed.contains(line), "{line:?} is not in\n{printed}");
    }
    let transcript = std::fs::read_to_string(out.path().join("transcript.json")).expect("a transcript");
    let record: serde_json::Value = serde_json::from_str(&transcript).expect("JSON");
    assert_eq!(record["remembered"]["booking"]["people"], "4");
    assert_eq!(record["end"]["reason"], "goodbye");
    let page = std::fs::read_to_string(out.path().join("report.html")).expect("a page");
    assert!(page.contains("<svg") && page.contains("end of the turn"));
    let wav = hound::WavReader::open(out.path().join("call.wav")).expect("a recording");
    assert_eq!((wav.spec().channels, wav.spec().sample_rate), (2, 8000));
    assert!(wav.duration() > 8000 * 20, "{} samples", wav.duration());
}

#[test]
fn a_caller_who_is_not_understood_fails_loudly() {
    if !has_espeak() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("audio-fixtures/opening-hours");
    let to = folder.path().join("fixtures/opening-hours");
    std::fs::create_dir_all(&to).expect("a folder");
    for file in std::fs::read_dir(from).expect("the fixture is there") {
        let file = file.expect("readable");
        std::fs::copy(file.path(), to.join(file.file_name())).expect("copied");
    }
    let toml = std::fs::read_to_string(to.join("call.toml")).expect("readable");
    // The caller is said to have asked for something else than it says.
    let wrong = toml.replacen("text = \"", "text = \"please send seven flowers to doctor walker in madrid ", 1);
    std::fs::write(to.join("call.toml"), wrong).expect("written");
    let fixtures = folder.path().join("fixtures");
    let output =
        demo(&["--call", "opening-hours", "--fixtures", fixtures.to_str().expect("UTF-8")], &folder.path().join("out"));
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{printed}");
    assert!(printed.contains("FAILED understood"), "{printed}");
}

#[test]
fn an_unknown_caller_is_named_with_those_there_are() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let output = demo(&["--call", "nobody"], out.path());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("nobody"), "{error}");
}
