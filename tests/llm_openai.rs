//! The chat-completions engine against servers on this machine that send the real wire format, and everything that
//! goes wrong with it.

use std::time::{Duration, Instant};

use offhook::speech::llm::openai::{OpenAiLlm, OpenAiLlmConfig};
use offhook::speech::llm::{ChatRequest, Finish, LanguageModel, LlmError, LlmEvent, Message, ReplyStream, ToolCall};
use tokio::net::TcpListener;
use tokio::time::timeout;

mod wire;
use wire::{Server, Step, chunk, end, head, pause, serve, status};

const SSE: &str = "text/event-stream; charset=utf-8";
/// Whatever a test waits for comes within this, or never.
const NEVER: Duration = Duration::from_secs(10);

fn config(base_url: String) -> OpenAiLlmConfig {
    OpenAiLlmConfig { base_url, api_key: Some("hunter2".into()), ..OpenAiLlmConfig::default() }
}

fn engine(server: &Server) -> OpenAiLlm {
    OpenAiLlm::new(config(server.base_url())).expect("a good address")
}

fn ask() -> ChatRequest {
    let messages = vec![Message::User { content: "Коли ви працюєте?".into() }];
    ChatRequest { messages, ..ChatRequest::default() }
}

/// All events of an answer, and the error that ended it, if one did.
async fn read(mut stream: ReplyStream) -> (Vec<LlmEvent>, Option<LlmError>) {
    let all = async {
        let mut events = Vec::new();
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => events.push(event),
                Err(error) => return (events, Some(error)),
            }
        }
        (events, None)
    };
    timeout(NEVER, all).await.expect("an answer ends")
}

fn spoken(events: &[LlmEvent]) -> String {
    let text = |event: &LlmEvent| if let LlmEvent::Text(text) = event { text.as_str() } else { "" }.to_owned();
    events.iter().map(text).collect()
}

fn done(finish: Finish) -> LlmEvent {
    LlmEvent::Done { finish }
}

/// One event with a delta.
fn delta(delta: &str) -> String {
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{delta},\"finish_reason\":null}}]}}\n\n")
}

fn text(text: &str) -> String {
    delta(&format!("{{\"content\":\"{text}\"}}"))
}

fn finish(reason: &str) -> String {
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{}},\"finish_reason\":\"{reason}\"}}]}}\n\n")
}

/// A short good answer.
fn good() -> Vec<Step> {
    vec![head(SSE), chunk(text("Так.")), chunk(finish("stop")), chunk("data: [DONE]\n\n"), end()]
}

/// Everything that a stream may hold: comments, CRLF, Cyrillic, a tool call in pieces, usage.
fn sample() -> (String, Vec<LlmEvent>) {
    let stream = [
        ": keep-alive\r\n\r\n".to_owned(),
        delta(r#"{"role":"assistant","content":"","refusal":null}"#).replace('\n', "\r\n"),
        text("Зараз"),
        "event: message\nid: 7\n".to_owned() + &text(" перевірю…").replace("data: ", "data:"),
        delta(
            r#"{"tool_calls":[{"index":0,"id":"call_a","type":"function","function":{"name":"hours","arguments":""}}]}"#,
        ),
        delta(r#"{"tool_calls":[{"index":0,"function":{"arguments":"{\"день\":"}}]}"#).replace('\n', "\r"),
        delta(r#"{"tool_calls":[{"index":0,"function":{"arguments":"\"субота\"}"}}]}"#),
        finish("tool_calls"),
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":61,\"completion_tokens\":5}}\r\n\r\n".to_owned(),
        "data: [DONE]\n\n".to_owned(),
    ]
    .concat();
    let call =
        ToolCall { id: "call_a".into(), name: "hours".into(), arguments: "{\"день\":\"субота\"}".into() };
    let expected = vec![
        LlmEvent::Text("Зараз".into()),
        LlmEvent::Text(" перевірю…".into()),
        LlmEvent::ToolCall(call),
        LlmEvent::Usage { prompt_tokens: 61, completion_tokens: 5 },
        done(Finish::ToolCalls),
    ];
    (stream, expected)
}

#[tokio::test]
async fn a_stream_means_the_same_wherever_it_is_cut() {
    let (stream, expected) = sample();
    let bytes = stream.as_bytes();
    let cuts = (0..=bytes.len()).map(|cut| {
        let (a, b) = bytes.split_at(cut);
        vec![head(SSE), chunk(a), chunk(b), end()]
    });
    let by_byte = [head(SSE)].into_iter().chain(bytes.chunks(1).map(chunk)).chain([end()]).collect();
    let mut server = serve(cuts.chain([by_byte]).collect()).await;
    let engine = engine(&server);
    for cut in 0..=bytes.len() + 1 {
        let (events, error) = read(engine.reply(ask())).await;
        assert!(error.is_none(), "{cut}: {error:?}");
        assert_eq!(events, expected, "{cut}");
    }
    let mut connections = 0;
    while let Ok(request) = server.requests.try_recv() {
        connections = connections.max(request.connection + 1);
    }
    assert!(connections < 10, "answers that are read to their end leave their connection: {connections} were opened");
}

#[tokio::test]
async fn a_request_carries_the_key_and_the_messages() {
    let mut server = serve(vec![good()]).await;
    let (events, error) = read(engine(&server).reply(ask())).await;
    assert!(error.is_none());
    assert_eq!(events, [LlmEvent::Text("Так.".into()), done(Finish::Stop)]);
    let request = server.requests.recv().await.expect("asked");
    assert_eq!(request.line, "POST /v1/chat/completions");
    assert!(request.head.contains("authorization: bearer hunter2"), "{}", request.head);
    assert_eq!(request.json()["messages"][0]["content"], "Коли ви працюєте?");
    assert_eq!(request.json()["stream"], true);
}

#[tokio::test]
async fn a_server_without_a_key_is_sent_none() {
    let mut server = serve(vec![good()]).await;
    let config = OpenAiLlmConfig { api_key: None, ..config(server.base_url()) };
    read(OpenAiLlm::new(config).expect("a good address").reply(ask())).await;
    assert!(!server.requests.recv().await.expect("asked").head.contains("authorization"));
}

#[tokio::test]
async fn words_come_out_as_they_arrive() {
    let server = serve(vec![vec![head(SSE), chunk(text("Добрий")), Step::Hang]]).await;
    let mut stream = engine(&server).reply(ask());
    let first = timeout(NEVER, stream.next()).await.expect("at once").expect("an event").expect("text");
    assert_eq!(first, LlmEvent::Text("Добрий".into()));
}

#[tokio::test]
async fn dropping_the_stream_closes_the_connection() {
    for begun in [false, true] {
        let answer = if begun { vec![head(SSE), chunk(text("Добрий")), Step::Hang] } else { vec![Step::Hang] };
        let mut server = serve(vec![answer]).await;
        let mut stream = engine(&server).reply(ask());
        server.requests.recv().await.expect("asked");
        if begun {
            stream.next().await.expect("an event").expect("text");
        }
        drop(stream);
        timeout(NEVER, server.closed.recv()).await.expect("the server sees it").expect("one connection");
    }
}

#[tokio::test]
async fn an_answer_that_can_be_had_by_asking_again_is_had() {
    let limited =
        r#"{"error":{"message":"Rate limit reached","type":"requests","param":null,"code":"rate_limit_exceeded"}}"#;
    for (name, first) in [
        ("429", status("429 Too Many Requests", "retry-after-ms: 20\r\n", limited)),
        ("500", status("500 Internal Server Error", "", "oops")),
        ("503", status("503 Service Unavailable", "retry-after: 0\r\n", r#"{"detail":"overloaded"}"#)),
        ("closed before the head", vec![Step::Close]),
        ("closed before the first word", vec![head(SSE), chunk(": hello\n\n"), Step::Close]),
        ("ended before the first word", vec![head(SSE), end()]),
        ("overloaded in the stream", vec![head(SSE), chunk("data: {\"error\":{\"code\":503}}\n\n"), end()]),
    ] {
        let mut server = serve(vec![first, good()]).await;
        let (events, error) = read(engine(&server).reply(ask())).await;
        assert!(error.is_none(), "{name}: {error:?}");
        assert_eq!(spoken(&events), "Так.", "{name}");
        server.requests.recv().await.expect("asked");
        server.requests.recv().await.expect("asked again");
    }
}

#[tokio::test]
async fn what_asking_again_would_not_change_is_asked_once() {
    let quota =
        r#"{"error":{"message":"You exceeded your quota","type":"insufficient_quota","code":"insufficient_quota"}}"#;
    for (answer, code, said) in [
        (status("429 Too Many Requests", "", quota), 429, "quota"),
        (status("429 Too Many Requests", "retry-after-ms: 60000\r\n", "{}"), 429, "{}"),
        (status("400 Bad Request", "", r#"{"error":{"message":"Unknown parameter"}}"#), 400, "Unknown parameter"),
        (status("404 Not Found", "", r#"{"detail":"Not Found"}"#), 404, "Not Found"),
        (status("302 Found", "location: http://127.0.0.1:9/\r\n", ""), 302, ""),
    ] {
        let mut server = serve(vec![answer]).await;
        let (events, error) = read(engine(&server).reply(ask())).await;
        assert_eq!(events, []);
        let Some(LlmError::Engine { status: Some(status), detail, .. }) = &error else { panic!("{error:?}") };
        assert_eq!(*status, code);
        assert!(detail.contains(said), "{detail}");
        server.requests.recv().await.expect("asked");
        assert!(server.requests.try_recv().is_err(), "{code} was tried again");
    }
}

#[tokio::test]
async fn a_server_that_keeps_failing_is_asked_twice_and_no_more() {
    let mut server = serve(vec![status("500 Internal Server Error", "", "oops")]).await;
    let (_, error) = read(engine(&server).reply(ask())).await;
    assert!(matches!(error, Some(LlmError::Engine { status: Some(500), .. })), "{error:?}");
    let asked = std::iter::from_fn(|| server.requests.try_recv().ok()).count();
    assert_eq!(asked, 2);
}

#[tokio::test]
async fn a_refused_key_names_its_setting_and_nothing_else() {
    for refusal in ["401 Unauthorized", "403 Forbidden"] {
        let body = r#"{"error":{"message":"Incorrect API key provided: hunter2"}}"#;
        let server = serve(vec![status(refusal, "", body)]).await;
        let (_, error) = read(engine(&server).reply(ask())).await;
        let printed = format!("{error:?} {}", error.as_ref().expect("an error"));
        assert!(matches!(error, Some(LlmError::Unauthorized { setting: "llm.openai.api_key", .. })), "{printed}");
        assert!(!printed.contains("hunter2"), "{printed}");
    }
}

#[tokio::test]
async fn an_error_that_repeats_the_key_does_not_print_it() {
    let server = serve(vec![status("400 Bad Request", "", "no such thing as hunter2 or sk-live-12345")]).await;
    let (_, error) = read(engine(&server).reply(ask())).await;
    let printed = format!("{error:?}");
    assert!(!printed.contains("hunter2") && !printed.contains("12345"), "{printed}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let port = TcpListener::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("bound").port();
    let engine = OpenAiLlm::new(config(format!("http://user:secret@127.0.0.1:{port}/v1"))).expect("a good address");
    let (_, error) = read(engine.reply(ask())).await;
    let printed = error.expect("an error").to_string();
    assert!(printed.contains(&format!("127.0.0.1:{port}")) && !printed.contains("secret"), "{printed}");
}

#[tokio::test]
async fn time_limits_act_on_the_first_token_the_next_one_and_the_whole() {
    let comments = || std::iter::repeat_n([chunk(": still here\n\n"), pause(10)], 500).flatten();
    let drip = || std::iter::repeat_n([chunk(text("a")), pause(10)], 500).flatten();
    for (name, answer, expected) in [
        ("no head", vec![Step::Hang], "first token"),
        ("comments only", [head(SSE)].into_iter().chain(comments()).collect(), "first token"),
        ("one word", vec![head(SSE), chunk(text("a")), Step::Hang], "next token"),
        ("on and on", [head(SSE)].into_iter().chain(drip()).collect(), "answer"),
    ] {
        let server = serve(vec![answer]).await;
        let limits =
            OpenAiLlmConfig { first_token_ms: 150, token_gap_ms: 200, total_ms: 700, ..config(server.base_url()) };
        let started = Instant::now();
        let (_, error) = read(OpenAiLlm::new(limits).expect("a good address").reply(ask())).await;
        let Some(LlmError::Timeout { what, .. }) = error else { panic!("{name}: {error:?}") };
        assert_eq!(what, expected, "{name}");
        assert!(started.elapsed() < Duration::from_secs(3), "{name} took {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn what_was_said_before_the_stream_was_cut_is_kept() {
    for (name, tail) in [
        ("closed in an event", vec![chunk("data: {\"choi"), Step::Close]),
        ("closed between events", vec![Step::Close]),
        ("ended without a reason", vec![end()]),
    ] {
        let answer = [head(SSE), chunk(text("Ми працюємо"))].into_iter().chain(tail).collect();
        let mut server = serve(vec![answer]).await;
        let (events, error) = read(engine(&server).reply(ask())).await;
        assert!(error.is_none(), "{name}: {error:?}");
        assert_eq!(events, [LlmEvent::Text("Ми працюємо".into()), done(Finish::Cut)], "{name}");
        server.requests.recv().await.expect("asked");
        assert!(server.requests.try_recv().is_err(), "{name}: half an answer must not be asked for again");
    }
}

#[tokio::test]
async fn an_answer_is_complete_without_its_last_marks() {
    for (name, tail) in [
        ("no [DONE]", vec![end()]),
        ("closed after the reason", vec![Step::Close]),
        ("left open after the reason", vec![Step::Hang]),
    ] {
        let answer = [head(SSE), chunk(text("Так.")), chunk(finish("stop"))].into_iter().chain(tail).collect();
        let server = serve(vec![answer]).await;
        let started = Instant::now();
        let (events, error) = read(engine(&server).reply(ask())).await;
        assert!(error.is_none(), "{name}: {error:?}");
        assert_eq!(events, [LlmEvent::Text("Так.".into()), done(Finish::Stop)], "{name}");
        assert!(started.elapsed() < Duration::from_secs(2), "{name} took {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn an_error_in_the_middle_ends_the_answer_after_what_was_said() {
    let event = "data: {\"error\":{\"message\":\"The server had an error\",\"code\":503}}\n\n";
    let mut server = serve(vec![vec![head(SSE), chunk(text("Ми")), chunk(event), end()]]).await;
    let (events, error) = read(engine(&server).reply(ask())).await;
    assert_eq!(spoken(&events), "Ми");
    let Some(LlmError::Engine { status: Some(503), detail, .. }) = &error else { panic!("{error:?}") };
    assert!(detail.contains("The server had an error"), "{detail}");
    server.requests.recv().await.expect("asked");
    assert!(server.requests.try_recv().is_err());
}

#[tokio::test]
async fn an_answer_that_is_not_streamed_is_taken() {
    let body = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"Так."},"finish_reason":"stop"}],
        "usage":{"prompt_tokens":9,"completion_tokens":2}}"#;
    let server = serve(vec![status("200 OK", "", body)]).await;
    let (events, error) = read(engine(&server).reply(ask())).await;
    assert!(error.is_none(), "{error:?}");
    let usage = LlmEvent::Usage { prompt_tokens: 9, completion_tokens: 2 };
    assert_eq!(events, [LlmEvent::Text("Так.".into()), usage, done(Finish::Stop)]);
}

#[tokio::test]
async fn endless_lines_and_bodies_are_refused() {
    let flood = || std::iter::repeat_n(chunk([b'x'; 60_000]), 40);
    let line = [head(SSE), chunk("data: ")].into_iter().chain(flood()).chain([Step::Hang]).collect();
    let body = [head("application/json")].into_iter().chain(flood()).chain([Step::Hang]).collect();
    for answer in [line, body] {
        let mut server = serve(vec![answer]).await;
        let (events, error) = read(engine(&server).reply(ask())).await;
        assert_eq!(events, []);
        assert!(matches!(error, Some(LlmError::Engine { .. })), "{error:?}");
        timeout(NEVER, server.closed.recv()).await.expect("the connection is closed");
    }
}

#[tokio::test]
async fn a_web_page_is_no_answer() {
    let page = vec![head("text/html"), chunk("<html>sign in</html>"), end()];
    let server = serve(vec![page]).await;
    let (_, error) = read(engine(&server).reply(ask())).await;
    assert!(error.is_some_and(|error| error.to_string().contains("web page")));
}

#[tokio::test]
async fn preparing_asks_for_the_models_once() {
    let mut server = serve(vec![status("404 Not Found", "", "{}"), good()]).await;
    let engine = engine(&server);
    engine.prepare();
    engine.prepare();
    assert_eq!(server.requests.recv().await.expect("asked").line, "GET /v1/models");
    read(engine.reply(ask())).await;
    assert_eq!(server.requests.recv().await.expect("asked").line, "POST /v1/chat/completions");
}
