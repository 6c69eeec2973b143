//! The `openai` transcriber against servers on loopback that speak the real wire format, and break it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Multipart, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use offhook::speech::stt::openai::{OpenAiStt, OpenAiSttConfig};
use offhook::speech::stt::{
    AudioChunk, SttError, SttEvent, SttInput, SttRequest, SttSession, Take, Transcriber, UtteranceId,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

const KEY: &str = "sk-not-a-secret";
const ONE: UtteranceId = UtteranceId(1);

/// What a request brought.
#[derive(Debug, Default)]
struct Asked {
    authorization: Option<String>,
    fields: HashMap<String, String>,
    wav: Vec<u8>,
    filename: String,
}

type Answer = Arc<dyn Fn(usize) -> futures::future::BoxFuture<'static, Response> + Send + Sync>;

struct Server {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

#[derive(Clone)]
struct Script {
    asked: Arc<Mutex<Vec<Asked>>>,
    answer: Answer,
}

async fn transcriptions(State(script): State<Script>, headers: HeaderMap, mut form: Multipart) -> Response {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().expect("ascii").to_owned());
    let mut asked = Asked { authorization: text("authorization"), ..Asked::default() };
    while let Some(field) = form.next_field().await.expect("a good form") {
        let name = field.name().expect("a name").to_owned();
        if name == "file" {
            asked.filename = field.file_name().expect("a file name").to_owned();
            asked.wav = field.bytes().await.expect("the file").to_vec();
        } else {
            asked.fields.insert(name, field.text().await.expect("text"));
        }
    }
    let number = {
        let mut all = script.asked.lock().expect("no panic under this lock");
        all.push(asked);
        all.len()
    };
    (script.answer)(number).await
}

/// Answers the n-th request, counted from 1, as `answer` says.
async fn server<F, R>(answer: F) -> Server
where
    F: Fn(usize) -> R + Send + Sync + 'static,
    R: Future<Output = Response> + Send + 'static,
{
    let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
    let script = Script { asked: Arc::clone(&asked), answer: Arc::new(move |n| Box::pin(answer(n))) };
    let router = Router::new().route("/v1/audio/transcriptions", post(transcriptions)).with_state(script);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/v1", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Server { url, asked }
}

fn json(body: &'static str) -> Response {
    ([("content-type", "application/json")], body).into_response()
}

fn config(url: &str) -> OpenAiSttConfig {
    OpenAiSttConfig {
        base_url: url.to_owned(),
        api_key: Some(KEY.to_owned().into()),
        limit_ms: 2000,
        ..OpenAiSttConfig::default()
    }
}

fn open(config: &OpenAiSttConfig) -> SttSession {
    let request = SttRequest { language: "uk-UA".into(), hints: vec!["Київ".into()] };
    OpenAiStt::new(config).expect("a good configuration").open(request)
}

async fn say(session: &SttSession, input: SttInput) {
    session.input.send(input).await.expect("the session reads");
}

/// 600 ms of a loud tone.
async fn speak(session: &SttSession) {
    say(session, SttInput::Begin { utterance: ONE }).await;
    for n in 0..30 {
        let tone: Vec<i16> = (0..320).map(|i| (((n * 320 + i) as f32 * 0.2).sin() * 8000.0) as i16).collect();
        say(session, SttInput::Audio(AudioChunk::new(&tone).expect("20 ms"))).await;
    }
}

async fn ask(session: &SttSession, take: u32, kind: Take) {
    say(session, SttInput::Transcribe { utterance: ONE, take, kind }).await;
}

async fn event(session: &mut SttSession) -> SttEvent {
    let next = tokio::time::timeout(Duration::from_secs(10), session.events.recv()).await;
    next.expect("an event in time").expect("the session lives")
}

/// The text of a final take asked of a server.
async fn final_text(config: &OpenAiSttConfig) -> Result<String, SttError> {
    let mut session = open(config);
    speak(&session).await;
    ask(&session, 1, Take::Final).await;
    loop {
        match event(&mut session).await {
            SttEvent::Final { take: 1, text, .. } => return Ok(text),
            SttEvent::Failed { take: 1, error, .. } => return Err(error),
            SttEvent::Partial { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_final_take_posts_a_wav_and_gives_the_text() {
    let server = server(async |_| json(r#"{"text":" Де моє авто? ","usage":{"type":"duration","seconds":2}}"#)).await;
    assert_eq!(final_text(&config(&server.url)).await.expect("text"), "Де моє авто?");
    let asked = server.asked.lock().expect("no panic under this lock");
    let asked = &asked[0];
    assert_eq!(asked.authorization.as_deref(), Some("Bearer sk-not-a-secret"));
    let field = |name: &str| asked.fields.get(name).map(String::as_str);
    assert_eq!((field("model"), field("language")), (Some("gpt-4o-mini-transcribe"), Some("uk")));
    assert_eq!((field("prompt"), field("stream")), (Some("Київ"), None));
    assert!(asked.filename.ends_with(".wav"));
    let wav = hound::WavReader::new(&asked.wav[..]).expect("a WAV file");
    assert_eq!((wav.spec().sample_rate, wav.spec().channels, wav.spec().bits_per_sample), (16_000, 1, 16));
    assert_eq!(wav.duration(), 30 * 320);
}

#[tokio::test]
async fn without_a_key_no_authorization_is_sent() {
    let server = server(async |_| json(r#"{"text":"yes"}"#)).await;
    let config = OpenAiSttConfig { api_key: None, ..config(&server.url) };
    final_text(&config).await.expect("text");
    assert_eq!(server.asked.lock().expect("no panic under this lock")[0].authorization, None);
}

#[tokio::test]
async fn streamed_text_is_told_while_it_comes() {
    let server = server(async |_| {
        let events = [
            "data: {\"type\":\"transcript.text.delta\",\"delta\":\"Is my\"}\n\n",
            "data: {\"type\":\"transcript.text.delta\",\"delta\":\" bike\"}\n",
            "\ndata: {\"type\":\"transcript.text.done\",\"text\":\"Is my bike ready?\"}\n\n",
        ];
        let chunks = futures::stream::iter(events.map(Ok::<_, std::convert::Infallible>));
        ([("content-type", "text/event-stream")], Body::from_stream(chunks)).into_response()
    })
    .await;
    let mut session = open(&OpenAiSttConfig { stream: true, ..config(&server.url) });
    speak(&session).await;
    ask(&session, 1, Take::Final).await;
    let mut partials = Vec::new();
    let text = loop {
        match event(&mut session).await {
            SttEvent::Partial { take: None, text, .. } => partials.push(text),
            SttEvent::Final { text, .. } => break text,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(text, "Is my bike ready?");
    assert_eq!(partials, ["Is my", "Is my bike"]);
    assert_eq!(server.asked.lock().expect("no panic under this lock")[0].fields["stream"], "true");
}

#[tokio::test]
async fn a_short_rate_limit_is_waited_out_once() {
    let server = server(async |n| match n {
        1 => (StatusCode::TOO_MANY_REQUESTS, [("retry-after-ms", "30")], "{}").into_response(),
        _ => json(r#"{"text":"yes"}"#),
    })
    .await;
    assert_eq!(final_text(&config(&server.url)).await.expect("text"), "yes");
    assert_eq!(server.asked.lock().expect("no panic under this lock").len(), 2);
}

#[tokio::test]
async fn a_long_rate_limit_fails_at_once() {
    let server = server(async |_| {
        let body = r#"{"error":{"message":"Rate limit reached","code":"rate_limit_exceeded"}}"#;
        (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "20")], body).into_response()
    })
    .await;
    let error = final_text(&config(&server.url)).await.expect_err("a failure");
    assert!(
        matches!(&error, SttError::Engine { status: Some(429), detail, .. } if detail.starts_with("Rate limit reached"))
    );
    assert_eq!(server.asked.lock().expect("no panic under this lock").len(), 1);
}

#[tokio::test]
async fn a_broken_server_is_asked_twice_and_no_more() {
    let server = server(async |_| (StatusCode::INTERNAL_SERVER_ERROR, "oops").into_response()).await;
    let error = final_text(&config(&server.url)).await.expect_err("a failure");
    assert!(matches!(error, SttError::Engine { status: Some(500), .. }), "{error}");
    assert_eq!(server.asked.lock().expect("no panic under this lock").len(), 2);
}

#[tokio::test]
async fn a_refused_key_is_named_by_its_setting_and_never_shown() {
    let server = server(async |_| {
        let body = r#"{"error":{"message":"Incorrect API key provided: sk-not-a-secret"}}"#;
        (StatusCode::UNAUTHORIZED, body).into_response()
    })
    .await;
    let error = final_text(&config(&server.url)).await.expect_err("a failure");
    assert!(matches!(error, SttError::Unauthorized { setting: "speech.stt.openai.api_key", .. }));
    assert!(!error.to_string().contains(KEY) && !format!("{error:?}").contains(KEY));
    assert_eq!(server.asked.lock().expect("no panic under this lock").len(), 1);
}

#[tokio::test]
async fn a_key_that_a_server_quotes_is_blotted_out() {
    let server = server(async |_| (StatusCode::BAD_REQUEST, "bad request by sk-not-a-secret").into_response()).await;
    let error = final_text(&config(&server.url)).await.expect_err("a failure");
    assert!(!format!("{error:?}").contains(KEY), "{error:?}");
}

#[tokio::test]
async fn a_slow_server_is_given_up_at_the_limit() {
    let server = server(async |_| std::future::pending().await).await;
    let started = Instant::now();
    let limited = OpenAiSttConfig { limit_ms: 150, ..config(&server.url) };
    let error = final_text(&limited).await.expect_err("a failure");
    assert!(matches!(error, SttError::Timeout { limit, .. } if limit == Duration::from_millis(150)));
    assert!(started.elapsed() < Duration::from_secs(5));
}

/// Answers each connection with these bytes after the whole request, then closes.
async fn raw_server(answer: &'static str) -> (String, mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/v1", listener.local_addr().expect("bound"));
    let (served_tx, served) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            // The form ends with its boundary and two dashes.
            while !request.ends_with(b"--\r\n") {
                match socket.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => request.extend_from_slice(&buffer[..n]),
                }
            }
            socket.write_all(answer.as_bytes()).await.expect("the client reads");
            served_tx.send(()).await.expect("the test listens");
        }
    });
    (url, served)
}

#[tokio::test]
async fn an_answer_cut_in_the_middle_fails_without_a_second_request() {
    let cut = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"text\":\"hal";
    let (url, mut served) = raw_server(cut).await;
    let error = final_text(&config(&url)).await.expect_err("a failure");
    assert!(matches!(error, SttError::Engine { status: None, .. }), "{error}");
    served.recv().await.expect("one request");
    assert!(served.try_recv().is_err(), "and one only");
}

#[tokio::test]
async fn a_connection_closed_before_any_answer_is_tried_once_more() {
    let (url, mut served) = raw_server("").await;
    final_text(&config(&url)).await.expect_err("a failure");
    for _ in 0..2 {
        served.recv().await.expect("two requests");
    }
    assert!(served.try_recv().is_err(), "and no more");
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    let server = server(async |_| {
        let endless = futures::stream::repeat_with(|| Ok::<_, std::convert::Infallible>(vec![b' '; 1 << 16]));
        ([("content-type", "application/json")], Body::from_stream(endless)).into_response()
    })
    .await;
    let error = final_text(&config(&server.url)).await.expect_err("a failure");
    assert!(error.to_string().contains("over 1048576 bytes"), "{error}");
}

#[tokio::test]
async fn nobody_listening_is_a_failure_and_not_a_hang() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/v1", listener.local_addr().expect("bound"));
    drop(listener);
    let error = final_text(&config(&url)).await.expect_err("a failure");
    assert!(matches!(error, SttError::Engine { status: None, .. }), "{error}");
}

/// Tells when it is dropped, as axum drops a handler whose client has gone.
struct Gone(Option<oneshot::Sender<()>>);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = self.0.take().map(|tell| tell.send(()));
    }
}

/// A server whose first request hangs and reports its end.
async fn hanging_server() -> (Server, oneshot::Receiver<()>, mpsc::Receiver<()>) {
    let (gone_tx, gone) = oneshot::channel();
    let (came_tx, came) = mpsc::channel(8);
    let gone_tx = Mutex::new(Some(gone_tx));
    let server = server(move |n| {
        let guard = (n == 1).then(|| Gone(gone_tx.lock().expect("no panic under this lock").take()));
        let came = came_tx.clone();
        async move {
            came.send(()).await.expect("the test listens");
            if guard.is_some() {
                std::future::pending::<()>().await;
            }
            json(r#"{"text":"the second"}"#)
        }
    })
    .await;
    (server, gone, came)
}

#[tokio::test]
async fn dropping_the_session_closes_the_connection() {
    let (server, gone, mut came) = hanging_server().await;
    let session = open(&config(&server.url));
    speak(&session).await;
    ask(&session, 1, Take::Final).await;
    came.recv().await.expect("the request");
    drop(session);
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("in time").expect("the handler is gone");
}

#[tokio::test]
async fn a_later_take_supersedes_and_closes_the_earlier_one() {
    let (server, gone, mut came) = hanging_server().await;
    let mut session = open(&config(&server.url));
    speak(&session).await;
    ask(&session, 1, Take::Speculative).await;
    came.recv().await.expect("the request");
    ask(&session, 2, Take::Final).await;
    assert!(matches!(event(&mut session).await, SttEvent::Skipped { take: 1, .. }));
    assert!(matches!(event(&mut session).await, SttEvent::Final { take: 2, text, .. } if text == "the second"));
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("in time").expect("the handler is gone");
}

#[tokio::test]
async fn a_cancelled_take_is_closed_and_the_audio_stays() {
    let (server, gone, mut came) = hanging_server().await;
    let mut session = open(&config(&server.url));
    speak(&session).await;
    ask(&session, 1, Take::Speculative).await;
    came.recv().await.expect("the request");
    say(&session, SttInput::Cancel { utterance: ONE, take: 1 }).await;
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("in time").expect("the handler is gone");
    ask(&session, 2, Take::Final).await;
    assert!(matches!(event(&mut session).await, SttEvent::Final { take: 2, .. }));
    let asked = server.asked.lock().expect("no panic under this lock");
    assert_eq!(asked[0].wav, asked[1].wav);
}

#[tokio::test]
async fn partials_are_skipped_unless_they_are_paid_for() {
    let server = server(async |_| json(r#"{"text":"so far"}"#)).await;
    let mut session = open(&config(&server.url));
    speak(&session).await;
    ask(&session, 1, Take::Partial).await;
    assert!(matches!(event(&mut session).await, SttEvent::Skipped { take: 1, .. }));
    let mut session = open(&OpenAiSttConfig { partials: true, ..config(&server.url) });
    speak(&session).await;
    ask(&session, 1, Take::Partial).await;
    assert!(matches!(event(&mut session).await, SttEvent::Partial { take: Some(1), text, .. } if text == "so far"));
}

#[tokio::test]
async fn silence_is_answered_without_a_request() {
    let server = server(async |_| json(r#"{"text":"Thanks for watching!"}"#)).await;
    let mut session = open(&config(&server.url));
    say(&session, SttInput::Begin { utterance: ONE }).await;
    for _ in 0..30 {
        say(&session, SttInput::Audio(AudioChunk::new(&[3; 320]).expect("20 ms"))).await;
    }
    ask(&session, 1, Take::Final).await;
    assert!(matches!(event(&mut session).await, SttEvent::Final { text, .. } if text.is_empty()));
    assert!(server.asked.lock().expect("no panic under this lock").is_empty());
}

#[tokio::test]
async fn a_take_of_an_utterance_that_is_over_fails() {
    let server = server(async |_| json(r#"{"text":"yes"}"#)).await;
    let mut session = open(&config(&server.url));
    speak(&session).await;
    say(&session, SttInput::End { utterance: ONE }).await;
    ask(&session, 1, Take::Final).await;
    assert!(matches!(event(&mut session).await, SttEvent::Failed { take: 1, .. }));
}
