//! Google Cloud Speech-to-Text v1 over gRPC streaming. A stream is open only while an utterance is: it starts at `Begin`
//! (so that Google's limit of 10 s without audio is never met between turns), takes the audio as it comes, and a
//! speculative or final take half-closes it, since that is what makes the server answer at once. When the caller speaks
//! on, a fresh stream gets the audio again from the last text that was final by itself; so it does when a stream is cut,
//! grows older than 240 s, or a token is refused. Such a turn is billed twice; `speculate = false` avoids it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::guard::{self, GuardConfig, Loudness};
use super::utterance::OpenUtterance;
use super::{SttError, SttEvent, SttInput, SttRequest, SttSession, Take, Transcriber, UtteranceId};
use crate::media::frame::SampleRate;

mod auth;
pub mod wire;

use auth::Credentials;
use wire::{StreamingRecognizeRequest, StreamingRecognizeResponse, StreamingRequest};

const NAME: &str = "google";
const SETTING: &str = "speech.stt.google.api_key or service_account";
/// Responses are a few hundred bytes.
const RESPONSE_LIMIT: usize = 1 << 20;
/// Messages on their way to the server: a whole utterance again in seconds, then 10 s of 100 ms. Full = the server does
/// not read: the stream is given up, and the audio goes to the next one.
const AUDIO_QUEUE: usize = 256;
/// Responses on their way to the session, which reads them at every turn of its loop.
const RESPONSE_QUEUE: usize = 32;
/// Streams that one take, or one utterance before its first take, may use up: the first, one after a refused token, one
/// after a lost connection.
const MOST_STREAMS: u32 = 3;
/// A call that sends no audio this long inside an utterance gets a new stream when it goes on; Google's limit is 10 s.
const IDLE: Duration = Duration::from_secs(5);

/// `[speech.stt.google]`.
#[derive(Deserialize, Serialize, Clone, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct GoogleSttConfig {
    /// Default `https://speech.googleapis.com`. `http://` speaks without TLS, for servers of one's own.
    pub endpoint: String,
    /// An API key; or else `service_account`.
    #[serde(skip_serializing)]
    pub api_key: Option<SecretString>,
    /// Path to a service account's JSON file.
    pub service_account: Option<PathBuf>,
    /// Trades the signed token at the token endpoint instead of using it directly. Default false; costs a round trip an
    /// hour.
    pub exchange_token: bool,
    /// Replaces the `token_uri` of the service account's file.
    pub token_uri: Option<String>,
    /// `x-goog-user-project`: bills another project. Default none.
    pub billing_project: Option<String>,
    /// `telephony` (default), `telephony_short`, `phone_call`, `latest_short`, `latest_long`, `default`…; not every
    /// language has every model.
    pub model: String,
    /// Asks for the enhanced variant of `phone_call`. Default false; costs more.
    pub use_enhanced: bool,
    /// `linear16` (default) or `mulaw`, which halves the upload and is exact only for audio that came as mu-law.
    pub encoding: GoogleEncoding,
    /// Sample rate sent, Hz: 8000 (default, the line's own) or 16000.
    pub rate: u32,
    /// Whether speculative takes are answered. Default true; false saves billed seconds and costs 300 ms or more a turn.
    pub speculate: bool,
    /// Limit for the connection, ms. Default 1000.
    pub connect_ms: u64,
    /// Limit from a take to its text, ms. Default 2500; then the text that is there is taken, if any.
    pub final_limit_ms: u64,
    /// Audio a message, ms. Default 100; a smaller value brings interim text earlier and costs messages.
    pub message_ms: u64,
    /// Age at which a stream is replaced, ms. Default 240000; Google ends it at 305000.
    pub renew_ms: u64,
    /// Longest utterance kept, ms. Default 120000.
    pub max_utterance_ms: u64,
    pub guards: GuardConfig,
}

#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum GoogleEncoding {
    Linear16,
    Mulaw,
}

impl Default for GoogleSttConfig {
    fn default() -> Self {
        Self {
            endpoint: "https://speech.googleapis.com".into(),
            api_key: None,
            service_account: None,
            exchange_token: false,
            token_uri: None,
            billing_project: None,
            model: "telephony".into(),
            use_enhanced: false,
            encoding: GoogleEncoding::Linear16,
            rate: 8_000,
            speculate: true,
            connect_ms: 1000,
            final_limit_ms: 2500,
            message_ms: 100,
            renew_ms: 240_000,
            max_utterance_ms: 120_000,
            guards: GuardConfig::default(),
        }
    }
}

/// Why the engine cannot be made. An operator must act.
#[derive(Debug, thiserror::Error)]
pub enum GoogleSttSetupError {
    #[error("speech.stt.google needs api_key or service_account")]
    NoCredentials,
    #[error("speech.stt.google has both api_key and service_account; keep one")]
    TwoCredentials,
    #[error("cannot use the service account file {}: {reason}", .path.display())]
    ServiceAccount { path: PathBuf, reason: String },
    #[error("speech.stt.google.endpoint is not an address")]
    Endpoint(#[source] tonic::transport::Error),
    #[error("speech.stt.google.{setting} must be {rule}")]
    Setting { setting: &'static str, rule: &'static str },
}

/// The engine; one HTTP/2 connection for all calls.
pub struct GoogleStt {
    server: Arc<Server>,
}

struct Server {
    channel: Channel,
    credentials: Credentials,
    config: GoogleSttConfig,
}

impl GoogleStt {
    /// Checks the configuration and reads the service account's file; opens no connection. Needs a tokio runtime.
    pub fn new(config: &GoogleSttConfig) -> Result<Self, GoogleSttSetupError> {
        let rule = |holds: bool, setting, rule| {
            if holds { Ok(()) } else { Err(GoogleSttSetupError::Setting { setting, rule }) }
        };
        rule([8_000, 16_000].contains(&config.rate), "rate", "8000 or 16000")?;
        rule((20..=1000).contains(&config.message_ms), "message_ms", "20 to 1000")?;
        // Fails when another part of the program was first, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let credentials = Credentials::new(config)?;
        let mut endpoint = Endpoint::from_shared(config.endpoint.clone())
            .map_err(GoogleSttSetupError::Endpoint)?
            .connect_timeout(Duration::from_millis(config.connect_ms))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(20));
        if config.endpoint.starts_with("https://") {
            let tls = ClientTlsConfig::new().with_native_roots();
            endpoint = endpoint.tls_config(tls).map_err(GoogleSttSetupError::Endpoint)?;
        }
        let channel = endpoint.connect_lazy();
        Ok(Self { server: Arc::new(Server { channel, credentials, config: config.clone() }) })
    }
}

impl Transcriber for GoogleStt {
    fn name(&self) -> &'static str {
        NAME
    }

    fn rate(&self) -> SampleRate {
        SampleRate::new(self.server.config.rate)
    }

    fn open(&self, request: SttRequest) -> SttSession {
        let (session, input, events, cancel) = SttSession::new();
        let call = Call { server: Arc::clone(&self.server), request, utterance: None };
        tokio::spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = call.run(input, events) => {}
            }
        });
        session
    }
}

/// One call's session.
struct Call {
    server: Arc<Server>,
    request: SttRequest,
    utterance: Option<Utterance>,
}

/// The open utterance.
struct Utterance {
    audio: OpenUtterance,
    last_audio: Instant,
    /// Text that was final while its stream was still open, and the sample it reaches to: not sent again.
    settled: Vec<Heard>,
    settled_to: usize,
    stream: Option<Stream>,
    /// Streams used since the utterance began or its last take was asked for.
    streams: u32,
    take: Option<OpenTake>,
}

struct OpenTake {
    take: u32,
    kind: Take,
    asked: Instant,
}

#[derive(Clone)]
struct Heard {
    text: String,
    confidence: Option<f32>,
}

/// One StreamingRecognize call. Dropping it resets the HTTP/2 stream.
struct Stream {
    /// `None` once half-closed.
    audio: Option<mpsc::Sender<StreamingRecognizeRequest>>,
    responses: mpsc::Receiver<Result<StreamingRecognizeResponse, Status>>,
    _task: AbortOnDropHandle<()>,
    opened: Instant,
    /// The utterance's sample that this stream began with.
    base: usize,
    /// The utterance's sample up to which audio was sent.
    sent: usize,
    finals: Vec<Heard>,
    interim: String,
    /// The server has said all.
    ended: bool,
}

/// What woke the session.
#[expect(clippy::large_enum_variant, reason = "it lives for one turn of the loop, and most are audio")]
enum Wake {
    Input(Option<SttInput>),
    Response(Option<Result<StreamingRecognizeResponse, Status>>),
    Timer,
}

impl Call {
    async fn run(mut self, mut input: mpsc::Receiver<SttInput>, events: mpsc::Sender<SttEvent>) {
        loop {
            let deadline = self.deadline();
            let wake = tokio::select! {
                biased;
                message = input.recv() => Wake::Input(message),
                response = Self::response(&mut self.utterance) => Wake::Response(response),
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Wake::Timer,
            };
            let now = Instant::now();
            let answers = match wake {
                Wake::Input(None) => return,
                Wake::Input(Some(message)) => self.on_input(now, message),
                Wake::Response(response) => self.on_response(now, response).await,
                Wake::Timer => self.on_timer(now),
            };
            for answer in answers {
                if events.send(answer).await.is_err() {
                    return;
                }
            }
        }
    }

    /// The next response of the stream; `None` when the server has ended it.
    async fn response(utterance: &mut Option<Utterance>) -> Option<Result<StreamingRecognizeResponse, Status>> {
        match utterance.as_mut().and_then(|utterance| utterance.stream.as_mut()) {
            Some(stream) if !stream.ended => stream.responses.recv().await,
            _ => std::future::pending().await,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let utterance = self.utterance.as_ref()?;
        let take = utterance.take.as_ref().map(|take| take.asked + self.limit());
        let live = utterance.stream.as_ref().filter(|stream| stream.audio.is_some());
        let renewal = live.map(|stream| stream.opened + Duration::from_millis(self.server.config.renew_ms));
        let idle = live.map(|_| utterance.last_audio + IDLE);
        [take, renewal, idle].into_iter().flatten().min()
    }

    fn limit(&self) -> Duration {
        Duration::from_millis(self.server.config.final_limit_ms)
    }

    fn on_input(&mut self, now: Instant, message: SttInput) -> Vec<SttEvent> {
        let rate = SampleRate::new(self.server.config.rate);
        match message {
            SttInput::Begin { utterance } => {
                let limit = Duration::from_millis(self.server.config.max_utterance_ms);
                self.utterance = Some(Utterance {
                    audio: OpenUtterance::new(utterance, rate, limit),
                    last_audio: now,
                    settled: Vec::new(),
                    settled_to: 0,
                    stream: None,
                    streams: 0,
                    take: None,
                });
                self.open_stream(now);
            }
            SttInput::Audio(chunk) => {
                let Some(utterance) = &mut self.utterance else { return Vec::new() };
                utterance.audio.push(chunk.samples());
                utterance.last_audio = now;
                if utterance.stream.is_none() && utterance.take.is_none() {
                    self.open_stream(now);
                }
                self.send_audio(now, false);
            }
            SttInput::Transcribe { utterance, take, kind } => return self.on_transcribe(now, utterance, take, kind),
            SttInput::Cancel { utterance, take } => {
                let Some(open) = self.utterance.as_mut().filter(|open| open.audio.id == utterance) else {
                    return Vec::new();
                };
                open.take.take_if(|open| open.take <= take);
                let closed = open.stream.as_ref().is_some_and(|stream| stream.audio.is_none());
                if closed && open.take.is_none() {
                    open.stream = None;
                    open.streams = 0;
                    self.open_stream(now);
                }
            }
            SttInput::End { utterance } => {
                self.utterance.take_if(|open| open.audio.id == utterance);
            }
        }
        Vec::new()
    }

    fn on_transcribe(&mut self, now: Instant, utterance: UtteranceId, take: u32, kind: Take) -> Vec<SttEvent> {
        let config = &self.server.config;
        let failed = |error| vec![SttEvent::Failed { utterance, take, error }];
        let Some(open) = self.utterance.as_mut().filter(|open| open.audio.id == utterance) else {
            return failed(engine(None, "the utterance is not open"));
        };
        let samples = match open.audio.whole() {
            Ok(samples) => samples,
            Err(seconds) => return failed(SttError::TooLong { engine: NAME, seconds }),
        };
        if kind == Take::Partial {
            return vec![SttEvent::Partial { utterance, take: Some(take), text: open.text() }];
        }
        if kind == Take::Speculative && !config.speculate {
            return vec![SttEvent::Skipped { utterance, take }];
        }
        let rate = SampleRate::new(config.rate);
        // What a closed stream has not heard: silence, or the caller spoke on.
        let unheard =
            open.stream.as_ref().filter(|stream| stream.audio.is_none()).map(|stream| &samples[stream.sent..]);
        let spoke_on = unheard
            .map(|unheard| guard::has_speech(&Loudness::of(unheard, rate, config.guards.voiced_dbfs), &config.guards));
        let superseded = open.take.replace(OpenTake { take, kind, asked: now });
        open.streams = 0;
        let mut answers: Vec<SttEvent> =
            superseded.map(|old| SttEvent::Skipped { utterance, take: old.take }).into_iter().collect();
        match spoke_on {
            // The stream is open: close it. There is none, or it has not heard all: start again.
            None if open.stream.is_some() => self.send_audio(now, true),
            None | Some(true) => self.open_stream(now),
            // It is closed and has heard all: its answer is ours too.
            Some(false) if open.stream.as_ref().is_some_and(|stream| stream.ended) => answers.extend(self.answer(now)),
            Some(false) => {}
        }
        answers
    }

    /// Opens a stream with the audio from the last settled text on; half-closes it at once when a take waits.
    fn open_stream(&mut self, now: Instant) {
        let Some(utterance) = &mut self.utterance else { return };
        if utterance.streams >= MOST_STREAMS {
            return;
        }
        utterance.streams += 1;
        let (audio, audio_rx) = mpsc::channel(AUDIO_QUEUE);
        let (responses_tx, responses) = mpsc::channel(RESPONSE_QUEUE);
        let task = tokio::spawn(recognize(
            Arc::clone(&self.server),
            first_message(&self.server.config, &self.request),
            audio_rx,
            responses_tx,
        ));
        utterance.stream = Some(Stream {
            audio: Some(audio),
            responses,
            _task: AbortOnDropHandle::new(task),
            opened: now,
            base: utterance.settled_to,
            sent: utterance.settled_to,
            finals: Vec::new(),
            interim: String::new(),
            ended: false,
        });
        let close = utterance.take.is_some();
        self.send_audio(now, close);
    }

    /// Sends what has gathered, in messages of `message_ms` (older audio in messages of a second); with `close` all of
    /// it, and half-closes.
    fn send_audio(&mut self, now: Instant, close: bool) {
        let config = &self.server.config;
        let rate = SampleRate::new(config.rate);
        let least = if close { 1 } else { rate.samples(Duration::from_millis(config.message_ms)) };
        let Some(utterance) = &mut self.utterance else { return };
        let Ok(samples) = utterance.audio.whole() else { return };
        let Some(stream) = &mut utterance.stream else { return };
        let Some(audio) = &stream.audio else { return };
        let mut blocked = false;
        while samples.len() - stream.sent >= least {
            let end = samples.len().min(stream.sent + rate.hz() as usize);
            let content = encode(&samples[stream.sent..end], config.encoding);
            let message = StreamingRecognizeRequest { request: Some(StreamingRequest::Audio(content)) };
            if audio.try_send(message).is_err() {
                blocked = true;
                break;
            }
            stream.sent = end;
        }
        if close {
            stream.audio = None;
        }
        // A task that has ended tells why in its last response, which is still to be read.
        if blocked && !stream.responses.is_closed() {
            utterance.stream = None;
            self.open_stream(now);
        }
    }

    async fn on_response(
        &mut self,
        now: Instant,
        response: Option<Result<StreamingRecognizeResponse, Status>>,
    ) -> Vec<SttEvent> {
        match response {
            Some(Ok(StreamingRecognizeResponse { error: Some(error), .. })) => {
                self.on_failure(now, Status::new(Code::from(error.code), error.message)).await
            }
            Some(Ok(response)) => self.on_results(response),
            Some(Err(status)) => self.on_failure(now, status).await,
            None => self.on_end(now),
        }
    }

    fn on_results(&mut self, response: StreamingRecognizeResponse) -> Vec<SttEvent> {
        let rate = SampleRate::new(self.server.config.rate);
        let Some(utterance) = &mut self.utterance else { return Vec::new() };
        let Some(stream) = &mut utterance.stream else { return Vec::new() };
        let before = (stream.finals.len(), stream.interim.clone(), utterance.settled.len());
        stream.interim.clear();
        for result in response.results {
            let Some(best) = result.alternatives.into_iter().next() else { continue };
            if !result.is_final {
                stream.interim.push_str(&best.transcript);
                continue;
            }
            let confidence = (best.confidence > 0.0).then_some(best.confidence);
            let heard = Heard { text: best.transcript, confidence };
            if stream.audio.is_some() {
                let end = result.result_end_time.map(|end| stream.base + rate.samples(end.into()));
                utterance.settled_to = end.unwrap_or(stream.sent).clamp(utterance.settled_to, stream.sent);
                utterance.settled.push(heard);
            } else {
                stream.finals.push(heard);
            }
        }
        if before == (stream.finals.len(), stream.interim.clone(), utterance.settled.len()) {
            return Vec::new();
        }
        let text = utterance.text();
        vec![SttEvent::Partial { utterance: utterance.audio.id, take: None, text }]
    }

    /// The server has ended the stream without an error.
    fn on_end(&mut self, now: Instant) -> Vec<SttEvent> {
        let Some(utterance) = &mut self.utterance else { return Vec::new() };
        let Some(stream) = &mut utterance.stream else { return Vec::new() };
        stream.ended = true;
        if stream.audio.is_none() {
            return self.answer(now).into_iter().collect();
        }
        // It ended by itself while the caller speaks: what it said is settled, and the next one goes on.
        utterance.stream = None;
        self.open_stream(now);
        Vec::new()
    }

    async fn on_failure(&mut self, now: Instant, status: Status) -> Vec<SttEvent> {
        tracing::debug!(code = status.code() as i32, detail = status.message(), "recognition stream failed");
        let again = match status.code() {
            // A connection cut in the middle of a stream is `Unknown` to tonic.
            Code::OutOfRange | Code::Unavailable | Code::Unknown => true,
            Code::Unauthenticated => self.server.credentials.refresh().await,
            _ => false,
        };
        let Some(utterance) = &mut self.utterance else { return Vec::new() };
        utterance.stream = None;
        // One of each kind fits into MOST_STREAMS; a token refused twice is refused.
        let tries = if status.code() == Code::OutOfRange { MOST_STREAMS } else { MOST_STREAMS - 1 };
        if again && utterance.streams < tries {
            self.open_stream(now);
            return Vec::new();
        }
        // Without a take nobody waits: the next take starts again with the audio that is kept.
        utterance.streams = MOST_STREAMS;
        let Some(open) = utterance.take.take() else { return Vec::new() };
        let error = match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => SttError::Unauthorized { engine: NAME, setting: SETTING },
            code => engine(Some(code as u16), status.message()),
        };
        vec![SttEvent::Failed { utterance: utterance.audio.id, take: open.take, error }]
    }

    fn on_timer(&mut self, now: Instant) -> Vec<SttEvent> {
        let (limit, renew) = (self.limit(), Duration::from_millis(self.server.config.renew_ms));
        let Some(utterance) = &mut self.utterance else { return Vec::new() };
        if let Some(open) = &utterance.take
            && now >= open.asked + limit
        {
            // Words that are there beat silence, though the server has not settled on them.
            if !utterance.text().is_empty() {
                return self.answer(now).into_iter().collect();
            }
            let (id, take) = (utterance.audio.id, open.take);
            record_final(open, now);
            (utterance.take, utterance.stream) = (None, None);
            let error = SttError::Timeout { engine: NAME, limit };
            return vec![SttEvent::Failed { utterance: id, take, error }];
        }
        let Some(stream) = utterance.stream.as_ref().filter(|stream| stream.audio.is_some()) else { return Vec::new() };
        if now >= utterance.last_audio + IDLE {
            utterance.stream = None;
        } else if now >= stream.opened + renew {
            utterance.stream = None;
            utterance.streams = 0;
            self.open_stream(now);
        }
        Vec::new()
    }

    /// Answers the open take with all text there is.
    fn answer(&mut self, now: Instant) -> Option<SttEvent> {
        let config = &self.server.config;
        let utterance = self.utterance.as_mut()?;
        let open = utterance.take.take()?;
        record_final(&open, now);
        let samples = utterance.audio.whole().unwrap_or_default();
        let loudness = Loudness::of(samples, SampleRate::new(config.rate), config.guards.voiced_dbfs);
        let text = guard::judge(&utterance.text(), None, &loudness, &self.request.language, &config.guards).text;
        let confidence = utterance.heard().filter_map(|heard| heard.confidence).reduce(f32::min);
        let (utterance, take) = (utterance.audio.id, open.take);
        Some(SttEvent::Final { utterance, take, text, confidence, engine_time: now - open.asked })
    }
}

impl Utterance {
    fn heard(&self) -> impl Iterator<Item = &Heard> {
        self.settled.iter().chain(self.stream.iter().flat_map(|stream| &stream.finals))
    }

    /// All text so far: settled, final, and the server's present guess.
    fn text(&self) -> String {
        let guess = self.stream.iter().map(|stream| stream.interim.as_str());
        let parts = self.heard().map(|heard| heard.text.as_str()).chain(guess).map(str::trim);
        parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }
}

fn record_final(open: &OpenTake, now: Instant) {
    if open.kind == Take::Final {
        let waited = now - open.asked;
        metrics::histogram!("offhook_stt_final_seconds", "engine" => NAME).record(waited.as_secs_f64());
    }
}

/// The life of one stream: credentials, connection, request, responses.
async fn recognize(
    server: Arc<Server>,
    first: StreamingRecognizeRequest,
    audio: mpsc::Receiver<StreamingRecognizeRequest>,
    responses: mpsc::Sender<Result<StreamingRecognizeResponse, Status>>,
) {
    if let Err(status) = exchange(&server, first, audio, &responses).await {
        // A session that is gone needs no reason.
        let _ = responses.send(Err(status)).await;
    }
}

async fn exchange(
    server: &Server,
    first: StreamingRecognizeRequest,
    audio: mpsc::Receiver<StreamingRecognizeRequest>,
    responses: &mpsc::Sender<Result<StreamingRecognizeResponse, Status>>,
) -> Result<(), Status> {
    let messages = futures::stream::once(std::future::ready(first)).chain(ReceiverStream::new(audio));
    let mut request = Request::new(messages);
    server.credentials.sign(request.metadata_mut()).await.map_err(Status::internal)?;
    if let Some(project) = server.config.billing_project.as_deref().and_then(|project| project.parse().ok()) {
        request.metadata_mut().insert("x-goog-user-project", project);
    }
    let mut grpc = Grpc::new(server.channel.clone()).max_decoding_message_size(RESPONSE_LIMIT);
    grpc.ready().await.map_err(|_| Status::unavailable("cannot connect"))?;
    let codec = ProstCodec::<StreamingRecognizeRequest, StreamingRecognizeResponse>::default();
    let path = PathAndQuery::from_static(wire::STREAMING_RECOGNIZE);
    let mut answers = grpc.streaming(request, path, codec).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        if responses.send(Ok(answer)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn first_message(config: &GoogleSttConfig, request: &SttRequest) -> StreamingRecognizeRequest {
    let encoding = match config.encoding {
        GoogleEncoding::Linear16 => wire::AudioEncoding::Linear16,
        GoogleEncoding::Mulaw => wire::AudioEncoding::Mulaw,
    };
    // Google takes 500 phrases of 100 characters.
    let phrases: Vec<String> =
        request.hints.iter().filter(|hint| hint.chars().count() <= 100).take(500).cloned().collect();
    let contexts = if phrases.is_empty() { Vec::new() } else { vec![wire::SpeechContext { phrases }] };
    let recognition = wire::RecognitionConfig {
        encoding: encoding.into(),
        sample_rate_hertz: config.rate as i32,
        language_code: language_code(&request.language),
        max_alternatives: 1,
        speech_contexts: contexts,
        enable_automatic_punctuation: true,
        model: config.model.clone(),
        use_enhanced: config.use_enhanced,
    };
    let streaming =
        wire::StreamingRecognitionConfig { config: Some(recognition), single_utterance: false, interim_results: true };
    StreamingRecognizeRequest { request: Some(StreamingRequest::Config(streaming)) }
}

/// Google wants a region; a bare language gets the one that most of its callers live in.
fn language_code(language: &str) -> String {
    let code = match language {
        "" | "en" => "en-US",
        "uk" => "uk-UA",
        "cs" => "cs-CZ",
        "el" => "el-GR",
        "da" => "da-DK",
        "sv" => "sv-SE",
        "ja" => "ja-JP",
        "ko" => "ko-KR",
        "zh" => "cmn-Hans-CN",
        other if other.len() == 2 => return format!("{other}-{}", other.to_uppercase()),
        other => other,
    };
    code.to_owned()
}

fn encode(samples: &[i16], encoding: GoogleEncoding) -> Vec<u8> {
    match encoding {
        GoogleEncoding::Linear16 => samples.iter().flat_map(|sample| sample.to_le_bytes()).collect(),
        GoogleEncoding::Mulaw => samples.iter().map(|&sample| audio_codec_algorithms::encode_ulaw(sample)).collect(),
    }
}

fn engine(status: Option<u16>, detail: &str) -> SttError {
    SttError::Engine { engine: NAME, status, detail: detail.chars().take(300).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_language_gets_its_region() {
        for (asked, sent) in [("en", "en-US"), ("uk", "uk-UA"), ("ru", "ru-RU"), ("de", "de-DE"), ("en-GB", "en-GB")] {
            assert_eq!(language_code(asked), sent);
        }
    }

    #[tokio::test]
    async fn credentials_are_asked_for_and_only_one_kind_is_taken() {
        let none = GoogleSttConfig::default();
        assert!(matches!(GoogleStt::new(&none), Err(GoogleSttSetupError::NoCredentials)));
        let both = GoogleSttConfig {
            api_key: Some("k".to_owned().into()),
            service_account: Some("a.json".into()),
            ..GoogleSttConfig::default()
        };
        assert!(matches!(GoogleStt::new(&both), Err(GoogleSttSetupError::TwoCredentials)));
        let missing = GoogleSttConfig { service_account: Some("nowhere/a.json".into()), ..GoogleSttConfig::default() };
        let error = GoogleStt::new(&missing).err().expect("there is no file").to_string();
        assert!(error.contains("nowhere/a.json"), "{error}");
    }

    #[test]
    fn the_key_prints_as_dots_and_is_not_written() {
        let config = GoogleSttConfig { api_key: Some("secret-key".to_owned().into()), ..GoogleSttConfig::default() };
        assert!(!format!("{config:?}").contains("secret-key"));
        assert!(!toml::to_string(&config).expect("it serialises").contains("api_key"));
    }
}
