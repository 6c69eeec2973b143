//! `offhook eval` and `offhook chat` as they are run: the real program, the shipped scenarios of the front desk. Those by
//! speech are skipped where espeak-ng is not installed or the build has no local recognition.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const SCENARIOS: &str = "scenarios/front-desk";
/// The shipped scenarios that are played by speech.
const SPOKEN: [&str; 2] = ["hours", "interruption"];

fn offhook(arguments: &[&str], typed: &str) -> Output {
    offhook_with(arguments, typed, &[])
}

fn offhook_with(arguments: &[&str], typed: &str, settings: &[(&str, &str)]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_offhook"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("OFFHOOK_LOG")
        .envs(settings.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    // The program may hang up before it has read everything.
    let _ = child.stdin.take().expect("it is piped").write_all(typed.as_bytes());
    child.wait_with_output().expect("the program ends")
}

fn eval(arguments: &[&str]) -> Output {
    offhook(&[&["eval"], arguments].concat(), "")
}

fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A folder with one scenario of the front desk.
fn scenario(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tried.toml");
    let setup = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/oak-garden.toml");
    let head = format!("version = 1\nagent = \"Front desk\"\nsetup = {:?}\n", setup.to_str().expect("UTF-8"));
    std::fs::write(&file, format!("{head}{text}")).expect("written");
    let path = file.to_str().expect("UTF-8").to_owned();
    (folder, path)
}

#[test]
fn the_front_desk_passes_its_twelve_scenarios_in_writing() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let (junit, html) = (out.path().join("eval.xml"), out.path().join("eval.html"));
    let paths = [&junit, &html].map(|path| path.to_str().expect("UTF-8"));
    let output = eval(&[SCENARIOS, "--text", "--junit", paths[0], "--html", paths[1]]);
    let text = printed(&output);
    assert!(output.status.success(), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("ok ")).count(), 12, "{text}");
    let xml = std::fs::read_to_string(&junit).expect("written");
    assert_eq!(xml.matches("<testcase ").count(), 12, "{xml}");
    assert!(!xml.contains("<failure"), "{xml}");
    let page = std::fs::read_to_string(&html).expect("written");
    assert!(page.contains("All 12 passed") && !page.contains("src=\"http"), "the page needs nothing else");
}

#[test]
fn the_same_conversation_comes_out_every_time() {
    let report = |out: &Path| {
        let junit = out.to_str().expect("UTF-8");
        let output = eval(&[SCENARIOS, "--text", "--repeat", "5", "--filter", "changed", "--junit", junit]);
        assert!(output.status.success(), "{}", printed(&output));
        assert!(printed(&output).contains("5 of 5 passed"), "{}", printed(&output));
        let xml = std::fs::read_to_string(out).expect("written");
        let said = xml.split("<system-out>").nth(1).expect("the conversation").split("</system-out>").next();
        said.map(str::to_owned)
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let reports = ["a.xml", "b.xml"].map(|name| report(&folder.path().join(name)));
    assert_eq!(reports[0], reports[1]);
}

#[cfg(feature = "whisper")]
#[test]
fn the_front_desk_passes_by_speech() {
    if Command::new("espeak-ng").arg("--version").output().is_err() {
        println!("skipped: espeak-ng is not installed");
        return;
    }
    let files: Vec<PathBuf> = SPOKEN.iter().map(|name| Path::new(SCENARIOS).join(format!("{name}.toml"))).collect();
    let output = eval(&files.iter().map(|path| path.to_str().expect("UTF-8")).collect::<Vec<_>>());
    let text = printed(&output);
    assert!(output.status.success(), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("ok ") && line.contains(" speech ")).count(), 2, "{text}");
}

#[test]
fn what_must_not_pass_fails_and_says_why() {
    let (_folder, file) = scenario(
        r#"
        [[step]]
        says = "What time do you open?"
          [step.expect]
          said = "from ten in the morning"
          tools = [{ name = "remember" }]
          reply_within_ms = 0
        [[step]]
        says = "Thank you, goodbye"
          [step.expect]
          ended = false
        [[step]]
        says = "One more thing"
        "#,
    );
    let junit = format!("{file}.xml");
    let output = eval(&[&file, "--junit", &junit]);
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for expected in [
        "FAILED  tried",
        "step 3 (line 15): the agent had hung up before it",
        "step 1 (line 5): said “from ten in the morning”: it said “We are open from eight",
        "step 1 (line 5): called remember: no tool was called",
        "step 2 (line 11): it goes on: the agent ended it",
        "1 scenario: 0 passed, 1 failed",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in\n{text}");
    }
    let xml = std::fs::read_to_string(junit).expect("written");
    assert!(xml.contains("failures=\"1\"") && xml.contains("<failure message=\"step 3 (line 15)"), "{xml}");
}

#[test]
fn an_interruption_leaves_what_was_heard_and_one_that_comes_too_late_is_told() {
    let (_folder, file) = scenario(
        r#"
        [[step]]
        says = "What time do you open?"
          [step.expect]
          heard = "We are open from"
        [[step]]
        says = "Can I book a table?"
        interrupts = { after_words = 4 }
          [step.expect]
          said = "For how many people?"
        [[step]]
        says = "For four"
        interrupts = { after_ms = 60000 }
        "#,
    );
    let output = eval(&[&file]);
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("step 3 (line 14): nothing to interrupt, the answer before was over by then"), "{text}");
    assert_eq!(text.matches("        step").count(), 1, "only that: {text}");
}

#[test]
fn a_tool_that_fails_or_is_slow_is_played_by_its_stub() {
    let (_folder, file) = scenario(
        r#"
        [[tool]]
        name = "remember"
        when = { key = "booking" }
        error = "the book is lost"
        delay_ms = 900
        [[step]]
        says = "A table for four on Friday at seven, my name is Maria"
        [[step]]
        says = "Yes, that is right"
          [step.expect]
          said = "I could not write the booking down"
          none_of = "is booked"
          tools = [{ name = "remember", ok = false }]
          not_remembered = "booking"
          handover = true
        "#,
    );
    let output = eval(&[&file]);
    assert!(output.status.success(), "{}", printed(&output));
}

#[test]
fn files_and_agents_that_cannot_be_played_are_told_together_and_nothing_is_played() {
    let (_folder, file) = scenario("[[step]]\nsays = \"hello\"\nkeys = \"x\"\n");
    let output = eval(&[&file, "not/there.toml"]);
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for expected in
        ["tried.toml: line 4, step 1: keys: write 1 to 32", "cannot read not/there.toml", "nothing was played"]
    {
        assert!(text.contains(expected), "{expected:?} is not in\n{text}");
    }
    let (_folder, file) = scenario("[[step]]\nsays = \"hello\"\n");
    let wrong = std::fs::read_to_string(&file).expect("readable").replace("\"Front desk\"", "\"Nobody\"");
    std::fs::write(&file, wrong).expect("written");
    let output = eval(&[&file]);
    assert_eq!(output.status.code(), Some(2));
    assert!(printed(&output).contains("has no agent \"Nobody\": it has \"Front desk\""), "{}", printed(&output));
}

#[test]
fn a_caller_books_in_a_terminal_and_sees_tools_and_state() {
    let typed = "A table for four on Friday at seven, please\n/state\nMy name is Maria\n/tools\n/heard 3\nyes, that is right\n\
                 /fly\n/state\nthat is all, goodbye\nstill there?\n";
    let output = offhook(&["chat", "Front desk", "--setup", "scenarios/oak-garden.toml"], typed);
    let text = printed(&output);
    assert!(output.status.success(), "{text}");
    for expected in [
        "agent   Hello, Oak Garden, how can I help you?",
        "you     A table for four on Friday at seven, please",
        "agent   And what is your name, please?",
        "  node      booking",
        "  expects   name",
        "  slot      people = 4 (four)",
        "(tools are shown)",
        "        remember {\"key\":\"booking\",",
        "agent   Your table for four is booked on Friday at seven.",
        "(no such command /fly; /help lists them)",
        "  noted     booking = ",
        "Goodbye!",
        "(the agent hung up)",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in\n{text}");
    }
    assert!(!text.contains("still there?"), "what comes after the goodbye is not said: {text}");
}

#[test]
fn a_workflow_file_alone_can_be_talked_with_and_an_unknown_agent_is_named() {
    let output = offhook(&["chat", "workflows/front-desk.toml"], "What time do you open?\n/quit\n");
    let text = printed(&output);
    assert!(output.status.success() && text.contains("agent   We are open from eight"), "{text}");
    assert!(text.contains("(you hung up)"), "{text}");
    let output = offhook(&["chat", "Nobody", "--setup", "scenarios/oak-garden.toml"], "");
    assert!(!output.status.success() && printed(&output).contains("has no agent \"Nobody\""), "{}", printed(&output));
}

#[test]
fn a_workflow_file_speaks_for_a_company_and_knows_what_is_given_with_the_call() {
    let output = offhook(&["chat", "workflows/hotel-booking.toml"], "");
    let text = printed(&output);
    assert!(output.status.success() && text.contains("agent   Hello, Hotel booking. This call"), "{text}");
    assert!(text.contains("(Hotel booking, answered by"), "{text}");
    let output = offhook(&["chat", "workflows/hotel-booking.toml", "--company", "Oak Inn"], "");
    let text = printed(&output);
    assert!(text.contains("agent   Hello, Oak Inn.") && text.contains("(Hotel booking of Oak Inn, answered"), "{text}");

    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let desk = write(
        "desk.toml",
        r#"
        version = 1
        name = "Desk"
        language = "en"
        fallback = { say = ["Sorry?"], tries = 3, goto = "open" }
        [[node]]
        id = "hello"
        kind = "start"
        say = "Order {vars.order_id}{% if vars.people > 3 %} for many{% endif %} from {webhook.FromCity}."
        goto = "open"
        [[node]]
        id = "open"
        kind = "listen"
        "#,
    );
    let given = ["--var", "order_id=A-17", "--var", "people=4", "--webhook", "FromCity=Kyiv"];
    let text = printed(&offhook(&[&["chat", &*desk][..], &given[..]].concat(), ""));
    assert!(text.contains("agent   Order A-17 for many from Kyiv."), "{text}");
    let output = offhook(&["chat", &desk, "--var", "order id=1"], "");
    assert!(
        !output.status.success() && printed(&output).contains("--var: \"order id\" is no name"),
        "{}",
        printed(&output)
    );

    write(
        "setup.toml",
        "[[company]]\nname = \"A\"\n[[agent]]\ncompany = \"A\"\nname = \"Desk\"\nworkflow = \"desk.toml\"\nllm = { engine = \"builtin\" }\n",
    );
    let scenario = |facts: &str| {
        let text = format!(
            "version = 1\nagent = \"Desk\"\nsetup = \"setup.toml\"\n[facts]\n{facts}\n[greeting]\nsaid = \"Order A-17 for many from \
             Lviv.\"\n[[step]]\nsays = \"Hello\"\n"
        );
        offhook(&["eval", &write("scenario.toml", &text)], "")
    };
    let output = scenario("vars = { order_id = \"A-17\", people = 4 }\nwebhook = { FromCity = \"Lviv\" }");
    assert!(output.status.success(), "{}", printed(&output));
    let output = scenario("vars = { order_id = [1] }");
    assert!(printed(&output).contains("vars.order_id") && !output.status.success(), "{}", printed(&output));
}

#[test]
fn an_agent_in_the_store_is_found_by_its_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let url = format!("sqlite://{}/offhook.db", folder.path().display());
    let settings = [("OFFHOOK_STORE__URL", url.as_str())];
    let applied = offhook_with(&["apply", "scenarios/oak-garden.toml", "--no-verify"], "", &settings);
    assert!(applied.status.success(), "{}", printed(&applied));
    let output = offhook_with(&["chat", "Front desk"], "Do you have parking?\n", &settings);
    let text = printed(&output);
    assert!(text.contains("(Front desk of Oak Garden,") && text.contains("free parking"), "{text}");
    let scenario = folder.path().join("parking.toml");
    std::fs::write(&scenario, "version = 1\nagent = \"Front desk\"\n[[step]]\nsays = \"Do you have parking?\"\n")
        .expect("written");
    let file = scenario.to_str().expect("UTF-8");
    let output = offhook_with(&["eval", file], "", &settings);
    assert!(output.status.success(), "{}", printed(&output));
    let output = offhook_with(&["eval", file, "--company", "Elm Yard"], "", &settings);
    assert_eq!(output.status.code(), Some(2), "{}", printed(&output));
}

#[test]
fn an_agent_of_a_file_looks_things_up_and_needs_no_key_of_its_providers() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    write("house.md", "# House\n\n## Sauna\n\nThe sauna is heated from four in the afternoon until ten at night.\n");
    write(
        "desk.toml",
        "version = 1\nname = \"Desk\"\nlanguage = \"en\"\nstart = \"open\"\n[fallback]\nsay = [\"Sorry?\"]\ntries = 3\n\
         goto = \"open\"\n[[node]]\nid = \"open\"\nkind = \"listen\"\n",
    );
    write(
        "setup.toml",
        r#"
        [[company]]
        name = "Oak Garden"
        [[integration]]
        company = "Oak Garden"
        name = "Main"
        provider = "twilio"
        account_sid = "${OFFHOOK_TEST_IS_NOT_SET}"
        auth_token = "${OFFHOOK_TEST_IS_NOT_SET}"
        [[knowledge]]
        company = "Oak Garden"
        name = "House"
        files = ["house.md"]
        [[agent]]
        company = "Oak Garden"
        name = "Concierge"
        workflow = "desk.toml"
        knowledge = ["House"]
        tools = ["send_sms"]
        "#,
    );
    let setup = folder.path().join("setup.toml");
    let arguments = ["chat", "Concierge", "--tools", "--setup", setup.to_str().expect("UTF-8")];
    let output = offhook(&arguments, "When is the sauna heated?\n");
    let text = printed(&output);
    assert!(output.status.success(), "{text}");
    for expected in
        ["nobody is rung or written to: send_sms;", "        search_knowledge {", "from four in the afternoon"]
    {
        assert!(text.contains(expected), "{expected:?} is not in\n{text}");
    }
}

#[test]
fn a_model_judges_where_there_is_one_and_answers_in_place_of_the_agents_own() {
    let question = "[[step]]\nsays = \"hello\"\n[expect]\njudge = \"Is it polite?\"\n";
    let (_folder, file) = scenario(question);
    assert!(printed(&eval(&[&file])).contains("1 skipped"), "no model, no judgement");
    let answers = |answer: &'static str| [("OFFHOOK_SPEECH__SCRIPTED__ANSWERS", answer)];
    let judged = |answer| offhook_with(&["eval", &file, "--judge", "scripted"], "", &answers(answer));
    assert!(judged("[\"Yes, it greets.\"]").status.success());
    let output = judged("[\"No, it is curt.\"]");
    assert_eq!(output.status.code(), Some(1));
    assert!(printed(&output).contains("judge: Is it polite?: No, it is curt."), "{}", printed(&output));
    let (_folder, file) =
        scenario("[[step]]\nsays = \"hello\"\n[step.expect]\nsaid = \"We greet you\"\nnode = \"open\"\n");
    let output =
        offhook_with(&["eval", &file, "--llm", "scripted", "--repeat", "3"], "", &answers("[\"We greet you\"]"));
    let text = printed(&output);
    assert!(output.status.success() && text.contains("3 of 3 passed") && text.contains("1 skipped"), "{text}");
}
