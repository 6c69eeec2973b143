//! The `google` transcriber against a local gRPC server that speaks `google.cloud.speech.v1` and breaks it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::{Request as HttpRequest, Response as HttpResponse};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use offhook::speech::stt::google::wire::{
    ProtoDuration, SpeechRecognitionAlternative, StreamingRecognitionConfig, StreamingRecognitionResult,
    StreamingRecognizeRequest, StreamingRecognizeResponse, StreamingRequest,
};
use offhook::speech::stt::google::{GoogleEncoding, GoogleStt, GoogleSttConfig};
use offhook::speech::stt::{
    AudioChunk, SttError, SttEvent, SttInput, SttRequest, SttSession, Take, Transcriber, UtteranceId,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

const ONE: UtteranceId = UtteranceId(1);
/// A message of 100 ms at 8 kHz, 16 bit.
const MESSAGE: usize = 1600;

/// What one stream brought.
#[derive(Clone, Debug, Default)]
struct Heard {
    config: StreamingRecognitionConfig,
    audio: usize,
    half_closed: bool,
    api_key: Option<String>,
    authorization: Option<String>,
    path: String,
}

type Reply = Result<StreamingRecognizeResponse, Status>;

/// The server's side of one stream.
struct Line {
    requests: Streaming<StreamingRecognizeRequest>,
    replies: mpsc::Sender<Reply>,
    all: Arc<Mutex<Vec<Heard>>>,
    number: usize,
}

impl Line {
    /// Reads on until `bytes` of audio have come in all, or the client half-closes (false).
    async fn hear(&mut self, bytes: usize) -> bool {
        loop {
            if self.all.lock().expect("no panic under this lock")[self.number].audio >= bytes {
                return true;
            }
            let request = self.requests.message().await.ok().flatten().and_then(|message| message.request);
            let mut all = self.all.lock().expect("no panic under this lock");
            let heard = &mut all[self.number];
            match request {
                Some(StreamingRequest::Config(config)) => heard.config = config,
                Some(StreamingRequest::Audio(audio)) => heard.audio += audio.len(),
                None => {
                    heard.half_closed = true;
                    return false;
                }
            }
        }
    }

    async fn hear_all(&mut self) {
        while self.hear(usize::MAX).await {}
    }

    async fn reply(&self, results: Vec<StreamingRecognitionResult>) {
        let _ = self.replies.send(Ok(StreamingRecognizeResponse { results, error: None })).await;
    }

    async fn fail(&self, status: Status) {
        let _ = self.replies.send(Err(status)).await;
    }
}

fn interim(text: &str) -> StreamingRecognitionResult {
    let best = SpeechRecognitionAlternative { transcript: text.into(), confidence: 0.0 };
    StreamingRecognitionResult { alternatives: vec![best], is_final: false, stability: 0.5, result_end_time: None }
}

fn settled(text: &str, end_ms: i32) -> StreamingRecognitionResult {
    let best = SpeechRecognitionAlternative { transcript: text.into(), confidence: 0.95 };
    let end = ProtoDuration { seconds: i64::from(end_ms / 1000), nanos: end_ms % 1000 * 1_000_000 };
    StreamingRecognitionResult { alternatives: vec![best], is_final: true, stability: 0.0, result_end_time: Some(end) }
}

type Script = Arc<dyn Fn(Line) -> BoxFuture<'static, ()> + Send + Sync>;

#[derive(Clone)]
struct Speech {
    script: Script,
    all: Arc<Mutex<Vec<Heard>>>,
}

impl NamedService for Speech {
    const NAME: &'static str = "google.cloud.speech.v1.Speech";
}

impl tower::Service<HttpRequest<Body>> for Speech {
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        let method = Recognize { speech: self.clone(), path: request.uri().path().to_owned() };
        Box::pin(async move {
            let codec = ProstCodec::<StreamingRecognizeResponse, StreamingRecognizeRequest>::default();
            Ok(Grpc::new(codec).streaming(method, request).await)
        })
    }
}

struct Recognize {
    speech: Speech,
    path: String,
}

impl StreamingService<StreamingRecognizeRequest> for Recognize {
    type Response = StreamingRecognizeResponse;
    type ResponseStream = BoxStream<'static, Reply>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<StreamingRecognizeRequest>>) -> Self::Future {
        let text = |name: &str| request.metadata().get(name).map(|value| value.to_str().expect("ascii").to_owned());
        let heard = Heard {
            api_key: text("x-goog-api-key"),
            authorization: text("authorization"),
            path: self.path.clone(),
            ..Heard::default()
        };
        let (replies, replies_rx) = mpsc::channel(16);
        let all = Arc::clone(&self.speech.all);
        let number = {
            let mut all = all.lock().expect("no panic under this lock");
            all.push(heard);
            all.len() - 1
        };
        let line = Line { requests: request.into_inner(), replies, all, number };
        tokio::spawn((self.speech.script)(line));
        Box::pin(async move { Ok(Response::new(ReceiverStream::new(replies_rx).boxed())) })
    }
}

struct Server {
    address: String,
    all: Arc<Mutex<Vec<Heard>>>,
}

impl Server {
    fn heard(&self) -> Vec<Heard> {
        self.all.lock().expect("no panic under this lock").clone()
    }
}

/// Runs `script` for each stream; `line.number` counts them from 0.
async fn server<F, R>(script: F) -> Server
where
    F: Fn(Line) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let all: Arc<Mutex<Vec<Heard>>> = Arc::default();
    let speech = Speech { script: Arc::new(move |line| Box::pin(script(line))), all: Arc::clone(&all) };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let serve =
        tonic::transport::Server::builder().add_service(speech).serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(serve);
    Server { address, all }
}

fn config(server: &Server) -> GoogleSttConfig {
    GoogleSttConfig {
        endpoint: format!("http://{}", server.address),
        api_key: Some("not-a-secret".to_owned().into()),
        final_limit_ms: 5000,
        ..GoogleSttConfig::default()
    }
}

fn open(config: &GoogleSttConfig) -> SttSession {
    let request = SttRequest { language: "uk".into(), hints: vec!["накладна".into()] };
    GoogleStt::new(config).expect("a good configuration").open(request)
}

async fn say(session: &SttSession, input: SttInput) {
    session.input.send(input).await.expect("the session reads");
}

async fn begin(session: &SttSession) {
    say(session, SttInput::Begin { utterance: ONE }).await;
}

/// Loud audio in 20 ms chunks.
async fn speak(session: &SttSession, ms: usize) {
    for n in 0..ms / 20 {
        let tone: Vec<i16> = (0..160).map(|i| (((n * 160 + i) as f32 * 0.3).sin() * 8000.0) as i16).collect();
        say(session, SttInput::Audio(AudioChunk::new(&tone).expect("20 ms"))).await;
    }
}

async fn ask(session: &SttSession, take: u32, kind: Take) {
    say(session, SttInput::Transcribe { utterance: ONE, take, kind }).await;
}

async fn event(session: &mut SttSession) -> SttEvent {
    let next = tokio::time::timeout(Duration::from_secs(20), session.events.recv()).await;
    next.expect("an event in time").expect("the session lives")
}

/// The answer to a final or speculative take; partials on the way are passed over.
async fn text_of(session: &mut SttSession, wanted: u32) -> Result<String, SttError> {
    loop {
        match event(session).await {
            SttEvent::Final { take, text, .. } if take == wanted => return Ok(text),
            SttEvent::Failed { take, error, .. } if take == wanted => return Err(error),
            SttEvent::Partial { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The next partial the engine offers.
async fn partial(session: &mut SttSession) -> String {
    match event(session).await {
        SttEvent::Partial { take: None, text, .. } => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn audio_streams_while_it_is_spoken_and_a_final_half_closes() {
    let server = server(async |mut line: Line| {
        line.hear(3 * MESSAGE).await;
        line.reply(vec![interim("де моє"), interim(" замов")]).await;
        line.hear_all().await;
        line.reply(vec![settled("де моє замовлення", 800)]).await;
    })
    .await;
    let mut session = open(&config(&server));
    begin(&session).await;
    speak(&session, 500).await;
    assert_eq!(partial(&mut session).await, "де моє замов", "before any take was asked for");
    speak(&session, 300).await;
    ask(&session, 1, Take::Final).await;
    assert_eq!(partial(&mut session).await, "де моє замовлення");
    match event(&mut session).await {
        SttEvent::Final { take: 1, text, confidence, .. } => {
            assert_eq!((text.as_str(), confidence), ("де моє замовлення", Some(0.95)));
        }
        other => panic!("{other:?}"),
    }
    let heard = &server.heard()[0];
    assert_eq!(heard.audio, 800 * 16, "every sample once");
    assert!(heard.half_closed);
    assert_eq!(heard.path, "/google.cloud.speech.v1.Speech/StreamingRecognize");
    assert_eq!(heard.api_key.as_deref(), Some("not-a-secret"));
    let recognition = heard.config.config.clone().expect("a configuration first");
    assert_eq!((recognition.encoding, recognition.sample_rate_hertz), (1, 8000));
    assert_eq!((recognition.language_code.as_str(), recognition.model.as_str()), ("uk-UA", "telephony"));
    assert_eq!(recognition.speech_contexts[0].phrases, ["накладна"]);
    assert!(heard.config.interim_results);
}

#[tokio::test]
async fn mulaw_halves_the_bytes() {
    let server = server(async |mut line: Line| {
        line.hear_all().await;
        line.reply(vec![settled("так", 400)]).await;
    })
    .await;
    let mut session = open(&GoogleSttConfig { encoding: GoogleEncoding::Mulaw, ..config(&server) });
    begin(&session).await;
    speak(&session, 400).await;
    ask(&session, 1, Take::Final).await;
    assert_eq!(text_of(&mut session, 1).await.expect("text"), "так");
    assert_eq!(server.heard()[0].audio, 400 * 8);
    assert_eq!(server.heard()[0].config.config.clone().expect("a configuration").encoding, 3);
}

#[tokio::test]
async fn finals_of_one_utterance_are_joined_and_a_partial_take_is_free() {
    let server = server(async |mut line: Line| {
        line.hear(4 * MESSAGE).await;
        line.reply(vec![settled("добрий день", 400)]).await;
        line.hear_all().await;
        line.reply(vec![settled(" мені потрібна допомога", 900)]).await;
    })
    .await;
    let mut session = open(&config(&server));
    begin(&session).await;
    speak(&session, 500).await;
    assert_eq!(partial(&mut session).await, "добрий день");
    ask(&session, 1, Take::Partial).await;
    let SttEvent::Partial { take: Some(1), text, .. } = event(&mut session).await else { panic!("no partial") };
    assert_eq!(text, "добрий день");
    speak(&session, 400).await;
    ask(&session, 2, Take::Final).await;
    assert_eq!(text_of(&mut session, 2).await.expect("text"), "добрий день мені потрібна допомога");
}

#[tokio::test]
async fn when_the_caller_speaks_on_a_fresh_stream_hears_all_of_it() {
    let server = server(async |mut line: Line| {
        line.hear_all().await;
        let text = if line.number == 0 { "хочу замовити" } else { "хочу замовити стіл" };
        line.reply(vec![settled(text, 500)]).await;
    })
    .await;
    let mut session = open(&config(&server));
    begin(&session).await;
    speak(&session, 500).await;
    ask(&session, 1, Take::Speculative).await;
    assert_eq!(text_of(&mut session, 1).await.expect("text"), "хочу замовити");
    say(&session, SttInput::Cancel { utterance: ONE, take: 1 }).await;
    speak(&session, 300).await;
    ask(&session, 2, Take::Final).await;
    assert_eq!(text_of(&mut session, 2).await.expect("text"), "хочу замовити стіл");
    let audio: Vec<usize> = server.heard().iter().map(|heard| heard.audio).collect();
    assert_eq!(audio, [500 * 16, 800 * 16]);
}

#[tokio::test]
async fn a_final_after_a_speculation_and_silence_needs_no_second_stream() {
    let server = server(async |mut line: Line| {
        line.hear_all().await;
        line.reply(vec![settled("так", 500)]).await;
    })
    .await;
    let mut session = open(&config(&server));
    begin(&session).await;
    speak(&session, 500).await;
    ask(&session, 1, Take::Speculative).await;
    assert_eq!(text_of(&mut session, 1).await.expect("text"), "так");
    for _ in 0..10 {
        say(&session, SttInput::Audio(AudioChunk::new(&[0; 160]).expect("20 ms"))).await;
    }
    ask(&session, 2, Take::Final).await;
    assert_eq!(text_of(&mut session, 2).await.expect("text"), "так");
    assert_eq!(server.heard().len(), 1);
}

#[tokio::test]
async fn without_speculation_only_the_final_costs_a_stream() {
    let server = server(async |mut line: Line| {
        line.hear_all().await;
        line.reply(vec![settled("так", 500)]).await;
    })
    .await;
    let mut session = open(&GoogleSttConfig { speculate: false, ..config(&server) });
    begin(&session).await;
    speak(&session, 500).await;
    ask(&session, 1, Take::Speculative).await;
    assert!(matches!(event(&mut session).await, SttEvent::Skipped { take: 1, .. }));
    ask(&session, 2, Take::Final).await;
    assert_eq!(text_of(&mut session, 2).await.expect("text"), "так");
    assert_eq!(server.heard().len(), 1);
}

#[tokio::test]
async fn an_unavailable_server_is_tried_once_more_with_all_audio() {
    let server = server(async |mut line: Line| {
        if line.number == 0 {
            line.hear(2 * MESSAGE).await;
            return line.fail(Status::unavailable("try again")).await;
        }
        line.hear_all().await;
        line.reply(vec![settled("так", 500)]).await;
    })
    .await;
    let mut session = open(&config(&server));
    begin(&session).await;
    speak(&session, 500).await;
    ask(&session, 1, Take::Final).await;
    assert_eq!(text_of(&mut session, 1).await.expect("text"), "так");
    assert_eq!(server.heard()[1].audio, 500 * 16);
}

#[tokio::test]
async fn a_server_that_stays_unavailable_fails_the_take_with_its_code() {
    let server = server(async |line: Line| line.fail(Status::unavailable("down")).await).await;
    let mut session = open(&config(&server));
    begin(&session).await;
    speak(&session, 200).await;
    ask(&session, 1, Take::Final).await;
    let error = text_of(&mut session, 1).await.expect_err("a failure");
    assert!(matches!(error, SttError::Engine { status: Some(14), .. }), "{error}");
    assert!(server.heard().len() <= 4, "two streams at Begin and two for the take at most");
}

#[tokio::test]
async fn a_wrong_configuration_fails_at_once() {
    let server = server(async |line: Line| line.fail(Status::invalid_argument("bad model")).await).await;
    let mut session = open(&config(&server));
    begin(&session).await;
    speak(&session, 200).await;
    ask(&session, 1, Take::Final).await;
    let error = text_of(&mut session, 1).await.expect_err("a failure");
    assert!(matches!(&error, SttError::Engine { status: Some(3), detail, .. } if detail == "bad model"), "{error}");
}

#[tokio::test]
async fn a_refused_key_is_named_by_its_setting() {
    let server = server(async |line: Line| line.fail(Status::unauthenticated("no")).await).await;
    let mut session = open(&config(&server));
    begin(&session).await;
    speak(&session, 200).await;
    ask(&session, 1, Take::Final).await;
    let error = text_of(&mut session, 1).await.expect_err("a failure");
    assert!(matches!(error, SttError::Unauthorized { .. }), "{error}");
    assert!(!format!("{error:?}").contains("not-a-secret"));
}

#[tokio::test]
async fn a_stream_at_its_age_limit_is_renewed_from_the_last_settled_text() {
    let server = server(async |mut line: Line| {
        if line.number == 0 {
            line.hear(4 * MESSAGE).await;
            line.reply(vec![settled("перше", 300)]).await;
            let limit = "Exceeded maximum allowed stream duration of 305 seconds";
            return line.fail(Status::out_of_range(limit)).await;
        }
        line.hear_all().await;
        line.reply(vec![settled("друге", 500)]).await;
    })
    .await;
    let mut session = open(&config(&server));
    begin(&session).await;
    speak(&session, 500).await;
    assert_eq!(partial(&mut session).await, "перше");
    ask(&session, 1, Take::Final).await;
    assert_eq!(text_of(&mut session, 1).await.expect("text"), "перше друге");
    assert_eq!(server.heard()[1].audio, 200 * 16, "what was not settled, again");
}

#[tokio::test]
async fn an_old_stream_is_renewed_before_the_server_ends_it() {
    let server = server(async |mut line: Line| {
        line.hear_all().await;
        line.reply(vec![settled("так", 100)]).await;
    })
    .await;
    let mut session = open(&GoogleSttConfig { renew_ms: 150, ..config(&server) });
    begin(&session).await;
    speak(&session, 200).await;
    let renewed = async {
        let mut look = tokio::time::interval(Duration::from_millis(5));
        while server.heard().len() < 2 {
            look.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), renewed).await.expect("a second stream");
    ask(&session, 1, Take::Final).await;
    assert_eq!(text_of(&mut session, 1).await.expect("text"), "так");
    assert_eq!(server.heard().last().expect("streams").audio, 200 * 16);
}

#[tokio::test]
async fn a_slow_server_is_given_up_or_taken_at_its_interim_word() {
    let mute = server(async |mut line: Line| {
        line.hear_all().await;
        std::future::pending().await
    })
    .await;
    let mut session = open(&GoogleSttConfig { final_limit_ms: 200, ..config(&mute) });
    begin(&session).await;
    speak(&session, 200).await;
    ask(&session, 1, Take::Final).await;
    assert!(matches!(text_of(&mut session, 1).await, Err(SttError::Timeout { .. })));

    let slow = server(async |mut line: Line| {
        line.hear(MESSAGE).await;
        line.reply(vec![interim("майже все")]).await;
        line.hear_all().await;
        std::future::pending().await
    })
    .await;
    let mut session = open(&GoogleSttConfig { final_limit_ms: 300, ..config(&slow) });
    begin(&session).await;
    speak(&session, 200).await;
    assert_eq!(partial(&mut session).await, "майже все");
    ask(&session, 1, Take::Final).await;
    assert_eq!(text_of(&mut session, 1).await.expect("text"), "майже все");
}

/// A TCP relay that can be cut.
async fn relay(to: &str) -> (String, mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let (cut, mut cut_rx) = mpsc::channel(1);
    let to = to.to_owned();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = TcpStream::connect(&to).await.expect("the server listens");
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                _ = cut_rx.recv() => {}
            }
        }
    });
    (address, cut)
}

#[tokio::test]
async fn a_connection_cut_in_mid_stream_is_opened_again() {
    let server = server(async |mut line: Line| {
        line.hear(2 * MESSAGE).await;
        line.reply(vec![interim("поч")]).await;
        line.hear_all().await;
        line.reply(vec![settled("початок і кінець", 700)]).await;
    })
    .await;
    let (address, cut) = relay(&server.address).await;
    let mut session = open(&GoogleSttConfig { endpoint: format!("http://{address}"), ..config(&server) });
    begin(&session).await;
    speak(&session, 400).await;
    assert_eq!(partial(&mut session).await, "поч");
    cut.send(()).await.expect("the relay runs");
    speak(&session, 300).await;
    ask(&session, 1, Take::Final).await;
    assert_eq!(text_of(&mut session, 1).await.expect("text"), "початок і кінець");
    assert_eq!(server.heard().last().expect("streams").audio, 700 * 16);
}

#[tokio::test]
async fn nobody_listening_is_a_failure_and_not_a_hang() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let nobody = Server { address, all: Arc::default() };
    let mut session = open(&config(&nobody));
    begin(&session).await;
    speak(&session, 200).await;
    ask(&session, 1, Take::Final).await;
    assert!(matches!(text_of(&mut session, 1).await, Err(SttError::Engine { status: Some(14), .. })));
}

#[tokio::test]
async fn the_end_of_an_utterance_resets_its_stream() {
    let (gone_tx, mut gone) = mpsc::channel(1);
    let (came_tx, mut came) = mpsc::channel(1);
    let server = server(move |mut line: Line| {
        let (gone, came) = (gone_tx.clone(), came_tx.clone());
        async move {
            line.hear(MESSAGE).await;
            came.send(()).await.expect("the test listens");
            // A stream that is reset ends for the reader as a half-close would.
            line.hear_all().await;
            gone.send(()).await.expect("the test listens");
        }
    })
    .await;
    let session = open(&config(&server));
    begin(&session).await;
    speak(&session, 200).await;
    came.recv().await.expect("audio");
    say(&session, SttInput::End { utterance: ONE }).await;
    tokio::time::timeout(Duration::from_secs(10), gone.recv()).await.expect("in time").expect("the stream is over");
}

mod service_account {
    use axum::Form;
    use axum::Router;
    use axum::routing::post;
    use serde_json::{Value, json};

    use super::*;

    /// A key made for these tests. It opens nothing.
    const KEY: &str = include_str!("data/google-test-key.pem");
    const PUBLIC: &[u8] = include_bytes!("data/google-test-key.pub.pem");
    const EMAIL: &str = "robot@example.test";
    type Fields = Vec<(String, String)>;

    fn account(folder: &tempfile::TempDir) -> std::path::PathBuf {
        let path = folder.path().join("account.json");
        let file =
            json!({"type": "service_account", "client_email": EMAIL, "private_key": KEY, "private_key_id": "k1"});
        std::fs::write(&path, file.to_string()).expect("written");
        path
    }

    fn claims(token: &str, audience: &str) -> Value {
        let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::RS256);
        rules.set_audience(&[audience]);
        let key = jsonwebtoken::DecodingKey::from_rsa_pem(PUBLIC).expect("a public key");
        let token = jsonwebtoken::decode::<Value>(token, &key, &rules).expect("signed by the account's key");
        assert_eq!(token.header.kid.as_deref(), Some("k1"));
        token.claims
    }

    async fn one_word(session: &mut SttSession) -> Result<String, SttError> {
        begin(session).await;
        speak(session, 200).await;
        ask(session, 1, Take::Final).await;
        text_of(session, 1).await
    }

    #[tokio::test]
    async fn the_token_is_signed_here_and_made_anew_when_it_is_refused() {
        let server = server(async |mut line: Line| {
            if line.number == 0 {
                return line.fail(Status::unauthenticated("expired")).await;
            }
            line.hear_all().await;
            line.reply(vec![settled("так", 200)]).await;
        })
        .await;
        let folder = tempfile::tempdir().expect("a folder");
        let config = GoogleSttConfig { api_key: None, service_account: Some(account(&folder)), ..config(&server) };
        let mut session = open(&config);
        assert_eq!(one_word(&mut session).await.expect("text"), "так");
        let heard = server.heard();
        let token = heard[1].authorization.as_deref().and_then(|value| value.strip_prefix("Bearer ")).expect("a token");
        let claims = claims(token, "https://speech.googleapis.com/");
        assert_eq!((claims["iss"].as_str(), claims["sub"].as_str()), (Some(EMAIL), Some(EMAIL)));
        assert!(claims.get("scope").is_none());
        let life = claims["exp"].as_i64().expect("a number") - claims["iat"].as_i64().expect("a number");
        assert_eq!(life, 3600);
        assert_eq!(heard[0].api_key, None);
    }

    #[tokio::test]
    async fn a_token_refused_twice_is_reported() {
        let server = server(async |line: Line| line.fail(Status::unauthenticated("no")).await).await;
        let folder = tempfile::tempdir().expect("a folder");
        let config = GoogleSttConfig { api_key: None, service_account: Some(account(&folder)), ..config(&server) };
        let error = one_word(&mut open(&config)).await.expect_err("a failure");
        assert!(matches!(error, SttError::Unauthorized { .. }), "{error}");
    }

    #[tokio::test]
    async fn the_token_endpoint_is_asked_once_for_many_streams() {
        let speech = server(async |mut line: Line| {
            line.hear_all().await;
            line.reply(vec![settled("так", 200)]).await;
        })
        .await;
        let asked: Arc<Mutex<Vec<Fields>>> = Arc::default();
        let log = Arc::clone(&asked);
        let token = post(move |Form(form): Form<Fields>| {
            log.lock().expect("no panic under this lock").push(form);
            async { r#"{"access_token":"ya29.dummy","expires_in":3599,"token_type":"Bearer"}"# }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let uri = format!("http://{}/token", listener.local_addr().expect("bound"));
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/token", token)).await });
        let folder = tempfile::tempdir().expect("a folder");
        let config = GoogleSttConfig {
            api_key: None,
            service_account: Some(account(&folder)),
            exchange_token: true,
            token_uri: Some(uri.clone()),
            ..config(&speech)
        };
        let engine = GoogleStt::new(&config).expect("a good configuration");
        for _ in 0..2 {
            let mut session = engine.open(SttRequest::default());
            assert_eq!(one_word(&mut session).await.expect("text"), "так");
        }
        assert!(speech.heard().iter().all(|heard| heard.authorization.as_deref() == Some("Bearer ya29.dummy")));
        let asked = asked.lock().expect("no panic under this lock");
        assert_eq!(asked.len(), 1);
        let field = |name: &str| asked[0].iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        assert_eq!(field("grant_type"), Some("urn:ietf:params:oauth:grant-type:jwt-bearer"));
        let claims = claims(field("assertion").expect("an assertion"), &uri);
        assert_eq!(claims["scope"], "https://www.googleapis.com/auth/cloud-platform");
    }
}
