//! What the simulated PBXs share: a server that stops, webhooks that are sent and remembered, and faults that strike the
//! next requests.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse as _, Response};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Method};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Webhooks that are remembered; older ones are forgotten.
const LOG_LEN: usize = 10_000;
/// Longest answer to a webhook that is kept.
const ANSWER_CHARS: usize = 4_000;
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A PBX does not wait longer for an answer to its webhook.
const WEBHOOK_LIMIT: Duration = Duration::from_secs(10);
/// How long calls and answers may go on after `stop`.
const DRAIN: Duration = Duration::from_secs(1);
/// Calls that run at once.
pub(super) const MAX_CALLS: usize = 1_000;

/// What spoils a request for the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Asked too often: 429, or the code for it in a 200.
    Limited,
    /// 500.
    Broken,
    /// A page of HTML with a 200.
    Nonsense,
    /// 403: closed to the address, or without the right.
    Closed,
    /// An error with HTTP 200.
    Refused,
    /// The answer comes half a second late.
    Slow,
    /// No answer for a minute.
    Hang,
}

/// One webhook as it was sent and answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Delivery {
    pub event: String,
    pub call: String,
    /// From 1.
    pub attempt: u32,
    /// What was sent: a query or a body.
    pub sent: String,
    /// `None`: no answer.
    pub status: Option<u16>,
    pub answer: String,
}

/// A webhook to send.
pub(super) struct Post {
    pub event: String,
    pub call: String,
    pub attempt: u32,
    pub method: Method,
    /// Instead of a body, after the address.
    pub query: Option<String>,
    pub content_type: &'static str,
    pub body: String,
    /// As a proxy before the receiver would write it.
    pub forwarded_for: Option<String>,
}

/// The part of a simulated PBX that all have.
pub(super) struct Stage {
    client: Client,
    webhook: Mutex<Option<String>>,
    log: watch::Sender<VecDeque<Delivery>>,
    faults: Mutex<VecDeque<(Fault, u32)>>,
    pub stop: CancellationToken,
    pub calls: TaskTracker,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a stand-in keeps stays whole whatever a thread died of while it held it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    pub fn new(webhook: Option<String>) -> io::Result<Self> {
        let client = crate::speech::http::client(false, CONNECT_LIMIT).map_err(io::Error::other)?;
        Ok(Self {
            client,
            webhook: Mutex::new(webhook),
            log: watch::Sender::new(VecDeque::new()),
            faults: Mutex::default(),
            stop: CancellationToken::new(),
            calls: TaskTracker::new(),
        })
    }

    pub fn set_webhook(&self, url: Option<String>) {
        *lock(&self.webhook) = url;
    }

    pub fn fail(&self, fault: Fault, times: u32) {
        lock(&self.faults).push_back((fault, times));
    }

    /// The fault that strikes this request. Late ones wait here.
    pub async fn fault(&self) -> Option<Fault> {
        let fault = {
            let mut faults = lock(&self.faults);
            let (fault, times) = faults.front_mut()?;
            let fault = *fault;
            *times = times.saturating_sub(1);
            if *times == 0 {
                faults.pop_front();
            }
            fault
        };
        match fault {
            Fault::Slow => sleep(Duration::from_millis(500)).await,
            Fault::Hang => sleep(Duration::from_secs(60)).await,
            _ => return Some(fault),
        }
        None
    }

    pub fn deliveries(&self) -> Vec<Delivery> {
        self.log.borrow().iter().cloned().collect()
    }

    /// Waits until a delivery is like this; the caller limits the wait.
    pub async fn wait_for(&self, wanted: impl Fn(&Delivery) -> bool) -> Delivery {
        let mut log = self.log.subscribe();
        let found = log.wait_for(|log| log.iter().any(&wanted)).await.expect("the sender is `self`");
        found.iter().find(|delivery| wanted(delivery)).cloned().expect("it was just found")
    }

    /// Sends a webhook and waits for its answer; `None` where no address is set or no answer came.
    pub async fn send(&self, post: Post) -> Option<(u16, String)> {
        let mut url = lock(&self.webhook).clone()?;
        if let Some(query) = &post.query {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(query);
        }
        let mut request = self.client.request(post.method, url);
        if post.query.is_none() {
            request = request.header(CONTENT_TYPE, post.content_type).body(post.body.clone());
        }
        if let Some(address) = &post.forwarded_for {
            request = request.header("x-forwarded-for", address);
        }
        let exchange = async {
            let response = request.send().await?;
            let status = response.status().as_u16();
            Ok::<_, reqwest::Error>((status, response.text().await?))
        };
        let answer = timeout(WEBHOOK_LIMIT, exchange).await.ok().and_then(Result::ok);
        let delivery = Delivery {
            event: post.event,
            call: post.call,
            attempt: post.attempt,
            sent: post.query.unwrap_or(post.body),
            status: answer.as_ref().map(|(status, _)| *status),
            answer: answer.as_ref().map_or_else(String::new, |(_, body)| body.chars().take(ANSWER_CHARS).collect()),
        };
        self.log.send_modify(|log| {
            if log.len() == LOG_LEN {
                log.pop_front();
            }
            log.push_back(delivery);
        });
        answer
    }
}

/// A server task that is stopped or dropped.
pub(super) struct Server {
    stage: Arc<Stage>,
    task: JoinHandle<io::Result<()>>,
}

impl Server {
    pub fn start(listener: TcpListener, router: Router, stage: Arc<Stage>) -> Self {
        let server = axum::serve(listener, router).with_graceful_shutdown(stage.stop.clone().cancelled_owned());
        Self { stage, task: tokio::spawn(server.into_future()) }
    }

    /// Ends the calls that run, and waits a second for open answers.
    pub async fn stop(mut self) {
        self.stage.stop.cancel();
        self.stage.calls.close();
        let _ = timeout(DRAIN, self.stage.calls.wait()).await;
        if !self.task.is_finished() && timeout(DRAIN, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }

    /// Comes back when the server has ended by itself, which it does only on a fault of its socket.
    pub async fn wait(&mut self) -> io::Result<()> {
        match (&mut self.task).await {
            Ok(result) => result,
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stage.stop.cancel();
    }
}

pub(super) fn html() -> Response {
    axum::response::Html("<html><body>It works!</body></html>").into_response()
}

/// `POST /simulate/fault`.
#[derive(Deserialize)]
pub(super) struct FaultRequest {
    pub fault: Fault,
    #[serde(default = "once")]
    pub times: u32,
}

/// `POST /simulate/webhook`.
#[derive(Deserialize)]
pub(super) struct WebhookRequest {
    pub url: Option<String>,
}

const fn once() -> u32 {
    1
}
/// What a simulated recording holds: a second of silence, 8 kHz, mono, 16 bit.
pub fn silence(content_type: &'static str) -> Response {
    const BYTES: u32 = 16_000;
    let mut wav = Vec::with_capacity(44 + BYTES as usize);
    wav.extend_from_slice(b"RIFF");
    wav.extend_from_slice(&(36 + BYTES).to_le_bytes());
    wav.extend_from_slice(b"WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data");
    wav.extend_from_slice(&BYTES.to_le_bytes());
    wav.resize(44 + BYTES as usize, 0);
    ([(CONTENT_TYPE, content_type)], wav).into_response()
}
