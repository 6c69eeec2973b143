use std::collections::VecDeque;
use std::sync::Mutex;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::agent::tools::{Tool, ToolError, ToolOutcome, ToolRegistry};
use crate::speech::llm::{ReplyStream, ToolSpec};
use crate::speech::scripted::{ScriptedConfig, ScriptedSynthesizer};
use crate::telephony::{CallId, PhoneNumber};

/// Asks for these calls in its first round, with these words before them, and then says "Done.".
struct Model {
    rounds: Mutex<VecDeque<(&'static str, Vec<ToolCall>)>>,
}

impl LanguageModel for Model {
    fn name(&self) -> &'static str {
        "test"
    }

    fn reply(&self, _: ChatRequest) -> ReplyStream {
        let (stream, events, _) = ReplyStream::new();
        let round = self.rounds.lock().unwrap().pop_front();
        tokio::spawn(async move {
            let (said, calls) = round.unwrap_or(("Done.", Vec::new()));
            if !said.is_empty() {
                let _ = events.send(Ok(LlmEvent::Text(said.into()))).await;
            }
            for call in calls {
                let _ = events.send(Ok(LlmEvent::ToolCall(call))).await;
            }
            let _ = events.send(Ok(LlmEvent::Done { finish: Finish::Stop })).await;
        });
        stream
    }
}

/// Takes as long as its name says, in ms.
struct Slow {
    ms: u64,
    acts: bool,
    ran: Arc<Mutex<Vec<u64>>>,
}

impl Tool for Slow {
    fn spec(&self) -> ToolSpec {
        ToolSpec { name: format!("t{}", self.ms), description: String::new(), parameters: json!({ "type": "object" }) }
    }

    fn side_effect(&self) -> bool {
        self.acts
    }

    fn call(&self, _: Value, _: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
        let (ms, ran) = (self.ms, self.ran.clone());
        async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            ran.lock().unwrap().push(ms);
            Ok(ToolOutcome { content: json!({ "took": ms }).to_string(), effect: None })
        }
        .boxed()
    }

    fn filler(&self, language: &str) -> Option<String> {
        Some(format!("One moment ({language})."))
    }
}

struct Run {
    made: Vec<(Duration, Made)>,
    ran: Vec<u64>,
}

impl Run {
    fn clauses(&self) -> Vec<&str> {
        self.made
            .iter()
            .filter_map(|(_, made)| if let Made::Clause(text) = made { Some(text.written()) } else { None })
            .collect()
    }

    fn results(&self) -> (Duration, String, Vec<&str>) {
        let found = self.made.iter().find_map(|(at, made)| match made {
            Made::Tools { said, results, .. } => {
                Some((*at, said.clone(), results.iter().map(|result| result.content.as_str()).collect()))
            }
            _ => None,
        });
        found.expect("tools were called")
    }
}

/// Runs a reply whose model calls tools of these lengths in rounds; the turn is confirmed after `commit`.
async fn run(rounds: Vec<(&'static str, Vec<u64>)>, acts: bool, commit: Duration) -> Run {
    let ran = Arc::new(Mutex::new(Vec::new()));
    let mut registry = ToolRegistry::with_call_tools();
    registry.filler_after = Duration::from_millis(700);
    for ms in rounds.iter().flat_map(|(_, lengths)| lengths) {
        registry.add(Arc::new(Slow { ms: *ms, acts, ran: ran.clone() }));
    }
    let names: Vec<String> = registry.names().map(str::to_owned).collect();
    let tools = Arc::new(ToolBox::new(names.iter().map(String::as_str), &registry).unwrap());
    let call = |ms: &u64| ToolCall { id: format!("c{ms}"), name: format!("t{ms}"), arguments: "{}".into() };
    let rounds = rounds.iter().map(|(said, lengths)| (*said, lengths.iter().map(call).collect())).collect();
    let source = Source::Model {
        request: ChatRequest::default(),
        model: Arc::new(Model { rounds: Mutex::new(rounds) }),
        tools,
        context: ToolContext::new(CallId::new(), PhoneNumber::default(), PhoneNumber::default()),
    };
    let tts = Arc::new(ScriptedSynthesizer::new(ScriptedConfig { tts_ms: 0, char_ms: 1, ..ScriptedConfig::default() }));
    let voice = Voice { tts, language: "uk".into(), voice: String::new(), speed: 1.0 };
    let (mut tasks, began) = (JoinSet::new(), Instant::now());
    let mut reply = Reply::start(ReplyId(1), source, voice, &TurnSettings::default(), &mut tasks);
    let mut made = Vec::new();
    let mut committed = false;
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(began + commit), if !committed => {
                committed = true;
                reply.commit();
            }
            next = reply.made.recv() => match next {
                Some(next) => made.push((began.elapsed(), next)),
                None => break,
            },
        }
    }
    let ran = ran.lock().unwrap().clone();
    Run { made, ran }
}

#[tokio::test(start_paused = true)]
async fn calls_of_one_round_run_at_the_same_time_and_their_results_keep_their_order() {
    let run = run(vec![("", vec![300, 100, 200])], false, Duration::ZERO).await;
    let (at, _, results) = run.results();
    assert_eq!(results, [r#"{"took":300}"#, r#"{"took":100}"#, r#"{"took":200}"#]);
    assert_eq!(run.ran, [100, 200, 300]);
    assert!(at < Duration::from_millis(350), "{at:?}");
    assert_eq!(run.clauses(), ["Done."], "nothing is slow");
}

#[tokio::test(start_paused = true)]
async fn a_slow_tool_is_bridged_once_by_a_word_that_the_model_knows_of() {
    let run = run(vec![("", vec![1500]), ("", vec![1600])], false, Duration::ZERO).await;
    assert_eq!(run.clauses(), ["One moment (uk).", "Done."], "once in a reply");
    assert_eq!(run.results().1, "One moment (uk).");
    let spoken = run.made.iter().find(|(_, made)| matches!(made, Made::Clause(_))).unwrap().0;
    assert!((700..800).contains(&spoken.as_millis()), "{spoken:?}");
}

#[tokio::test(start_paused = true)]
async fn a_model_that_has_said_something_needs_no_filler() {
    let run = run(vec![("Let me look that up for you.", vec![1500])], false, Duration::ZERO).await;
    assert_eq!(run.clauses(), ["Let me look that up for you.", "Done."]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_said_or_done_for_good_before_the_turn_is_confirmed() {
    let late = Duration::from_millis(3000);
    let acts = run(vec![("", vec![100])], true, late).await;
    assert!(acts.results().0 >= late, "{:?}", acts.results().0);
    // What only reads runs ahead; its filler would be heard after the words that it bridges.
    let reads = run(vec![("", vec![1500])], false, late).await;
    assert!(reads.results().0 < Duration::from_millis(1600));
    assert_eq!(reads.clauses(), ["Done."]);
}

/// A model that thinks for so long before its first word, or before it fails.
struct Thinker {
    ms: u64,
    fails: bool,
}

impl LanguageModel for Thinker {
    fn name(&self) -> &'static str {
        "thinker"
    }

    fn reply(&self, _request: ChatRequest) -> ReplyStream {
        let (stream, events, _cancel) = ReplyStream::new();
        let (after, fails) = (Duration::from_millis(self.ms), self.fails);
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let word = match fails {
                true => Err(LlmError::Engine { engine: "thinker", status: None, detail: "down".into() }),
                false => Ok(LlmEvent::Text("At nine.".into())),
            };
            let _ = events.send(word).await;
            let _ = events.send(Ok(LlmEvent::Done { finish: Finish::Stop })).await;
        });
        stream
    }
}

/// Clauses with the milliseconds at which they were made, and what the model is taken to have said.
async fn thought(ms: u64, fails: bool, commit_ms: u64) -> (Vec<(u64, String)>, String) {
    let source = Source::Model {
        request: ChatRequest::default(),
        model: Arc::new(Thinker { ms, fails }),
        tools: Arc::default(),
        context: ToolContext::new(CallId::new(), PhoneNumber::default(), PhoneNumber::default()),
    };
    let tts = Arc::new(ScriptedSynthesizer::new(ScriptedConfig { tts_ms: 0, char_ms: 1, ..ScriptedConfig::default() }));
    let voice = Voice { tts, language: "en".into(), voice: String::new(), speed: 1.0 };
    let (mut tasks, began) = (JoinSet::new(), Instant::now());
    let mut reply = Reply::start(ReplyId(1), source, voice, &TurnSettings::default(), &mut tasks);
    let (mut clauses, mut whole, mut committed) = (Vec::new(), String::new(), false);
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(began + Duration::from_millis(commit_ms)), if !committed => {
                committed = true;
                reply.commit();
            }
            next = reply.made.recv() => match next {
                Some(Made::Clause(line)) => clauses.push((began.elapsed().as_millis() as u64, line.written().to_owned())),
                Some(Made::Done { said } | Made::Failed { said, .. }) => whole = said,
                Some(_) => {}
                None => return (clauses, whole),
            },
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_model_that_thinks_too_long_is_bridged_once_the_turn_is_confirmed() {
    let (quick, _) = thought(600, false, 0).await;
    assert_eq!(quick.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), ["At nine."]);
    let (slow, said) = thought(2000, false, 300).await;
    assert_eq!(slow[0], (1000, "One moment, please.".to_owned()));
    assert_eq!((slow[1].0 >= 2000, slow[1].1.as_str(), slow.len()), (true, "At nine.", 2));
    assert_eq!(said, "One moment, please. At nine.", "the model knows what it is taken to have said");
    let (guessed, _) = thought(2000, false, 1900).await;
    assert_eq!(guessed.len(), 1, "nobody waits for an answer to words that are not certain");
}

#[tokio::test(start_paused = true)]
async fn whoever_was_asked_to_wait_is_told_when_nothing_comes() {
    let (clauses, said) = thought(2000, true, 0).await;
    let texts: Vec<&str> = clauses.iter().map(|(_, text)| text.as_str()).collect();
    let trouble = "I am sorry, something is not working right now. Please call again a little later.";
    assert_eq!(texts, ["One moment, please.", trouble]);
    assert_eq!(said, format!("One moment, please. {trouble}"));
    let (clauses, said) = thought(300, true, 0).await;
    assert_eq!((clauses.len(), said.as_str()), (0, ""), "the call apologises itself");
}
