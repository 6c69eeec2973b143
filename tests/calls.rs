//! Whole calls over real sockets, with scripted engines: what a caller meets from the ring to the goodbye.

mod common;

use std::time::Duration;

use common::{Cast, Ear, Phone, Server, quick, voice, voice_ms};
use offhook::speech::scripted::{
    Answer, Recognised, ScriptedConfig, ScriptedModel, ScriptedSynthesizer, ScriptedTranscriber, Spoken,
};
use offhook::telephony::{CallEnd, EndReason, Party};
use std::sync::Arc;

/// An answer of about eight seconds.
const LONG: &str = "We are open from nine in the morning until ten in the evening, every day of the week. On Sundays the kitchen closes a little earlier than that.";

fn saying(says: &[&str]) -> ScriptedConfig {
    ScriptedConfig { says: says.iter().map(|&line| line.into()).collect(), ..quick() }
}

/// Greets, asks with the voice of the fixture, and waits until the agent answers.
async fn ask(phone: &mut Phone) {
    phone.hears(Ear::AgentSpeaks).await;
    phone.hears(Ear::AgentSilent).await;
    phone.say(&voice()).await;
    phone.hears(Ear::AgentSpeaks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_is_greeted_heard_and_answered() {
    let server = Server::start(Cast::new(quick()), |_, _| {}).await;
    let mut phone = server.call().await;
    ask(&mut phone).await;
    phone.hears(Ear::AgentSilent).await;
    phone.hang_up().await;
    let record = server.record().await;
    let lines: Vec<(Party, &str)> = record.transcript.lines.iter().map(|line| (line.who, line.text.as_str())).collect();
    assert_eq!(
        lines,
        [
            (Party::Agent, "Hello."),
            (Party::Caller, "What time do you open today?"),
            (Party::Agent, "We are open from nine in the morning until ten in the evening."),
        ]
    );
    assert_eq!(record.end, Some(CallEnd::new(Party::Caller, EndReason::HungUp)));
    assert_eq!(record.interruptions.confirmed, 0);
    server.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interruption_stops_the_agent_and_is_answered() {
    let config = ScriptedConfig {
        answers: vec![LONG.into(), "Yes, on Sundays too.".into()],
        ..saying(&["When are you open?", "Stop, what about Sundays?"])
    };
    let server = Server::start(Cast::new(config), |_, _| {}).await;
    let mut phone = server.call().await;
    ask(&mut phone).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    phone.say(&voice_ms(1200)).await;
    phone.hears(Ear::AgentSilent).await;
    phone.hears(Ear::AgentSpeaks).await;
    phone.hears(Ear::AgentSilent).await;
    let heard = phone.hang_up().await;
    assert!(heard.clears >= 1);
    let record = server.record().await;
    let cut = &record.transcript.lines[2];
    let words = cut.heard.as_deref().expect("the agent was cut short");
    assert!(!words.is_empty() && LONG.starts_with(words.trim_end_matches('—').trim()), "{words:?}");
    assert!(words.len() < LONG.len() / 2, "{words:?}");
    assert_eq!(record.transcript.lines[3].text, "Stop, what about Sundays?");
    assert_eq!(record.transcript.lines[4].text, "Yes, on Sundays too.");
    assert_eq!(record.interruptions.confirmed, 1);
    server.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_interruption_is_resumed_where_it_stopped() {
    let config = ScriptedConfig { answers: vec![LONG.into()], ..saying(&["When are you open?", ""]) };
    // The scripted tone is louder than any voice: the guard would take a short syllable for its echo.
    let server = Server::start(Cast::new(config), |config, _| config.turn.echo_guard_db = 0.0).await;
    let mut phone = server.call().await;
    ask(&mut phone).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    phone.say(&voice_ms(200)).await;
    phone.hears(Ear::AgentSilent).await;
    phone.hears(Ear::AgentSpeaks).await;
    phone.hears(Ear::AgentSilent).await;
    let heard = phone.hang_up().await;
    let record = server.record().await;
    assert_eq!((record.interruptions.denied, record.interruptions.confirmed), (1, 0));
    assert_eq!(record.transcript.lines[2].heard, None);
    // Everything was said exactly once: the tone's length is that of the text, less and more the fades and frame edges.
    let spoken = heard.frames.iter().filter(|frame| offhook::media::frame::level_dbfs(frame) > -45.0).count() * 20;
    let wanted = ("Hello.".len() + LONG.len()) * 50;
    assert!(spoken.abs_diff(wanted) <= 200, "{spoken} ms of speech for {wanted}");
    server.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_caller_is_asked_and_then_told_goodbye() {
    let server = Server::start(Cast::new(quick()), |config, _| {
        config.turn.silence_prompt_ms = 800;
        config.turn.silence_goodbye_ms = 3000;
    })
    .await;
    let mut phone = server.call().await;
    for _ in ["greeting", "are you there?"] {
        phone.hears(Ear::AgentSpeaks).await;
        phone.hears(Ear::AgentSilent).await;
    }
    phone.hears(Ear::AgentSpeaks).await;
    phone.until_closed().await;
    let record = server.record().await;
    assert_eq!(record.end, Some(CallEnd::new(Party::Agent, EndReason::Silence)));
    assert_eq!(record.transcript.lines.len(), 3);
    server.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_is_called_in_the_turn_and_the_goodbye_ends_the_call() {
    let model = ScriptedModel::with_steps(
        quick(),
        [
            Answer::Tool { name: "remember".into(), arguments: r#"{"key":"day","value":"friday"}"#.into() },
            Answer::Tool { name: "end_call".into(), arguments: "{}".into() },
            Answer::Text("Noted, goodbye.".into()),
        ],
    );
    let cast = Cast { llm: Arc::new(model), ..Cast::new(quick()) };
    let server = Server::start(cast, |_, _| {}).await;
    let mut phone = server.call().await;
    ask(&mut phone).await;
    phone.until_closed().await;
    let record = server.record().await;
    assert_eq!(record.end, Some(CallEnd::new(Party::Agent, EndReason::Goodbye)));
    assert_eq!(record.remembered["day"], "friday");
    let tools: Vec<&str> = record.transcript.tools.iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!(tools, ["remember", "end_call"]);
    server.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_hangs_up_in_mid_sentence_leaves_a_record_of_what_was_heard() {
    let config = ScriptedConfig { answers: vec![LONG.into()], ..quick() };
    let server = Server::start(Cast::new(config), |_, _| {}).await;
    let mut phone = server.call().await;
    ask(&mut phone).await;
    tokio::time::sleep(Duration::from_millis(1000)).await;
    phone.hang_up().await;
    let record = server.record().await;
    assert_eq!(record.end, Some(CallEnd::new(Party::Caller, EndReason::HungUp)));
    let last = record.transcript.lines.last().expect("lines");
    assert!(last.heard.as_ref().is_some_and(|heard| heard.len() < LONG.len() / 2), "{last:?}");
    assert_eq!(server.app.calls.active(), 0);
    server.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_fails_is_apologised_for_and_the_call_goes_on() {
    let model = ScriptedModel::with_steps(quick(), [Answer::Fails]);
    let cast = Cast { llm: Arc::new(model), ..Cast::new(quick()) };
    let server = Server::start(cast, |_, _| {}).await;
    let mut phone = server.call().await;
    ask(&mut phone).await;
    phone.hears(Ear::AgentSilent).await;
    phone.say(&voice()).await;
    phone.hears(Ear::AgentSpeaks).await;
    phone.hears(Ear::AgentSilent).await;
    phone.hang_up().await;
    let record = server.record().await;
    assert_eq!(record.faults.len(), 1, "{:?}", record.faults);
    assert!(record.transcript.lines[2].text.to_lowercase().contains("sorry"), "{:?}", record.transcript.lines);
    assert!(record.transcript.lines[4].text.starts_with("We are open"));
    server.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_breaks_in_mid_answer_is_heard_as_far_as_it_came() {
    let model = ScriptedModel::with_steps(quick(), [Answer::Breaks("We are open from nine, and".into())]);
    let cast = Cast { llm: Arc::new(model), ..Cast::new(quick()) };
    let server = Server::start(cast, |_, _| {}).await;
    let mut phone = server.call().await;
    ask(&mut phone).await;
    phone.hears(Ear::AgentSilent).await;
    phone.hang_up().await;
    let record = server.record().await;
    assert_eq!(record.transcript.lines[2].text, "We are open from nine, and");
    assert_eq!(record.faults.len(), 1);
    server.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voice_that_stays_dead_ends_the_call_as_configured() {
    let tts = ScriptedSynthesizer::with_steps(quick(), [Spoken::Well].into_iter().chain([Spoken::Fails; 50]));
    let cast = Cast { tts: Arc::new(tts), ..Cast::new(quick()) };
    let server = Server::start(cast, |config, _| config.turn.max_engine_failures = 2).await;
    let mut phone = server.call().await;
    phone.hears(Ear::AgentSpeaks).await;
    phone.hears(Ear::AgentSilent).await;
    phone.say(&voice()).await;
    phone.until_closed().await;
    let record = server.record().await;
    assert_eq!(record.end, Some(CallEnd::new(Party::System, EndReason::EngineFailed)));
    server.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clause_that_breaks_costs_the_clause_and_not_the_call() {
    let tts = ScriptedSynthesizer::with_steps(quick(), [Spoken::Well, Spoken::Breaks]);
    let cast = Cast { tts: Arc::new(tts), ..Cast::new(quick()) };
    let server = Server::start(cast, |_, _| {}).await;
    let mut phone = server.call().await;
    ask(&mut phone).await;
    phone.hears(Ear::AgentSilent).await;
    phone.say(&voice()).await;
    phone.hears(Ear::AgentSpeaks).await;
    phone.hang_up().await;
    assert!(server.record().await.faults.iter().any(|fault| fault.starts_with("speech:")));
    server.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recognition_that_fails_or_hangs_makes_the_agent_ask_again() {
    for step in [Recognised::Fails, Recognised::Hangs] {
        let stt = ScriptedTranscriber::with_steps(quick(), [step]);
        let cast = Cast { stt: Arc::new(stt), ..Cast::new(quick()) };
        let server = Server::start(cast, |config, _| config.turn.transcript_limit_ms = 600).await;
        let mut phone = server.call().await;
        ask(&mut phone).await;
        phone.hears(Ear::AgentSilent).await;
        phone.say(&voice()).await;
        phone.hears(Ear::AgentSpeaks).await;
        phone.hears(Ear::AgentSilent).await;
        phone.hang_up().await;
        let record = server.record().await;
        let agent: Vec<&str> =
            record.transcript.lines.iter().filter(|l| l.who == Party::Agent).map(|l| l.text.as_str()).collect();
        assert_eq!(agent.len(), 3, "{agent:?}");
        assert!(agent[2].starts_with("We are open"), "{agent:?}");
        server.app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_breaks_ends_the_call_and_leaves_nothing_behind() {
    let server = Server::start(Cast::new(quick()), |_, _| {}).await;
    let mut phone = server.call().await;
    ask(&mut phone).await;
    phone.cut();
    let record = server.record().await;
    assert_eq!(record.end, Some(CallEnd::new(Party::Carrier, EndReason::ConnectionLost)));
    assert_eq!(server.app.calls.active(), 0);
    server.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recording_holds_both_sides_in_time() {
    let server = Server::start(Cast::new(quick()), |_, _| {}).await;
    let mut phone = server.call().await;
    ask(&mut phone).await;
    phone.hears(Ear::AgentSilent).await;
    let heard = phone.hang_up().await;
    let record = server.record().await;
    let path = server.recordings.path().join(record.id.to_string()).join("call.wav");
    let mut wav = hound::WavReader::open(path).expect("readable");
    assert_eq!((wav.spec().channels, wav.spec().sample_rate), (2, 8000));
    let samples: Vec<i16> = wav.samples().map(|sample| sample.expect("whole")).collect();
    let side = |n: usize| samples.iter().skip(n).step_by(2).copied().collect::<Vec<_>>();
    let loud = |samples: &[i16]| samples.chunks(160).filter(|f| offhook::media::frame::level_dbfs(f) > -45.0).count();
    let (agent_on_disk, agent_at_the_phone) = (loud(&side(1)), loud(&heard.samples()));
    assert!(agent_on_disk.abs_diff(agent_at_the_phone) <= 3, "{agent_on_disk} against {agent_at_the_phone} frames");
    assert!(loud(&side(0)) > 60, "the caller is on the left");
    server.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_calls_finish_and_takes_no_more() {
    let server = Server::start(Cast::new(quick()), |config, _| config.server.drain_s = 4).await;
    let mut phone = server.call().await;
    ask(&mut phone).await;
    let ready = server.url("/readyz");
    let Server { app, recordings, .. } = server;
    let stopping = tokio::spawn(app.stop());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(common::http().get(ready).send().await.expect("answers").status(), 503);
    phone.until_closed().await;
    stopping.await.expect("stops");
    let folder = std::fs::read_dir(recordings.path()).expect("there").next().expect("a call").expect("readable");
    let record = std::fs::read_to_string(folder.path().join("record.json")).expect("a record");
    assert!(record.contains("\"drained\""), "{record}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_calls_at_once_are_all_answered() {
    let server = Arc::new(
        Server::start(Cast::new(quick()), |config, _| {
            config.recording.enabled = false;
            // All ring within a second.
            config.security.webhooks_per_minute = 0;
        })
        .await,
    );
    let mut phones = tokio::task::JoinSet::new();
    for n in 0..200u64 {
        let server = server.clone();
        phones.spawn(async move {
            tokio::time::sleep(Duration::from_millis(10 * n)).await;
            let mut phone = server.call().await;
            ask(&mut phone).await;
            phone.hears(Ear::AgentSilent).await;
            phone.hang_up().await;
        });
    }
    while let Some(done) = phones.join_next().await {
        done.expect("every caller is answered");
    }
    let deadline = tokio::time::Instant::now() + common::PATIENCE;
    while server.app.calls.active() > 0 {
        assert!(tokio::time::Instant::now() < deadline, "{} calls are left", server.app.calls.active());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for record in server.records().iter().filter(|record| record.transcript.lines.len() < 3) {
        println!("{record:?}");
    }
    let answered = server.records().iter().filter(|record| record.transcript.lines.len() >= 3).count();
    assert_eq!(answered, 200);
}
