//! A server that speaks HTTP/1.1 by hand, so that a test decides every byte and every pause of an answer, and sees
//! when a client closes the connection.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// One thing to do in answer to a request.
#[derive(Clone, Debug)]
pub enum Step {
    /// Bytes as they are.
    Send(Vec<u8>),
    Pause(Duration),
    /// Close without the end of the body.
    Close,
    /// Say nothing more; tell when the client closes.
    Hang,
}

/// What a client asked.
#[derive(Clone, Debug)]
pub struct Request {
    /// `POST /v1/chat/completions`
    pub line: String,
    /// Lower-case names.
    pub head: String,
    pub body: String,
    /// Which connection it came on, from 0.
    pub connection: usize,
}

impl Request {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).expect("a JSON body")
    }
}

/// The answers in order; the last is repeated.
pub struct Server {
    pub addr: SocketAddr,
    pub requests: mpsc::Receiver<Request>,
    /// One message for each connection that the client closed while the server hung.
    pub closed: mpsc::Receiver<()>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }
}

pub async fn serve(answers: Vec<Vec<Step>>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("bound");
    let (requests_tx, requests) = mpsc::channel(4096);
    let (closed_tx, closed) = mpsc::channel(4096);
    let answers = Arc::new(Mutex::new((0, answers)));
    let task = tokio::spawn(async move {
        let mut connection = 0;
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(talk(socket, connection, answers.clone(), requests_tx.clone(), closed_tx.clone()));
            connection += 1;
        }
    });
    Server { addr, requests, closed, task }
}

type Answers = Arc<Mutex<(usize, Vec<Vec<Step>>)>>;

async fn talk(
    mut socket: TcpStream,
    connection: usize,
    answers: Answers,
    requests: mpsc::Sender<Request>,
    closed: mpsc::Sender<()>,
) -> Option<()> {
    socket.set_nodelay(true).ok()?;
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            if socket.read_buf(&mut buffer).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).to_string();
        let lower = head.to_ascii_lowercase();
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
        let length: usize = length.unwrap_or(0);
        while buffer.len() < end + length {
            if socket.read_buf(&mut buffer).await.ok()? == 0 {
                return None;
            }
        }
        let body = String::from_utf8_lossy(&buffer[end..end + length]).to_string();
        buffer.drain(..end + length);
        let line = head.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
        requests.try_send(Request { line, head: lower, body, connection }).ok()?;
        let steps = {
            let mut answers = answers.lock().expect("no panic");
            let at = answers.0.min(answers.1.len() - 1);
            answers.0 += 1;
            answers.1[at].clone()
        };
        for step in steps {
            match step {
                Step::Send(bytes) => {
                    if socket.write_all(&bytes).await.is_err() {
                        let _ = closed.try_send(());
                        return None;
                    }
                }
                Step::Pause(time) => tokio::time::sleep(time).await,
                Step::Close => return socket.shutdown().await.ok(),
                Step::Hang => {
                    let mut rest = [0; 64];
                    while matches!(socket.read(&mut rest).await, Ok(n) if n > 0) {}
                    let _ = closed.try_send(());
                    return None;
                }
            }
        }
    }
}

/// The head of an answer with a chunked body.
pub fn head(kind: &str) -> Step {
    Step::Send(format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n").into_bytes())
}

/// One HTTP chunk: a client's HTTP library hands it on by itself, even when TCP joins it with others.
pub fn chunk(bytes: impl AsRef<[u8]>) -> Step {
    let bytes = bytes.as_ref();
    if bytes.is_empty() {
        return Step::Send(Vec::new());
    }
    Step::Send([format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat())
}

/// The proper end of a chunked body.
pub fn end() -> Step {
    Step::Send(b"0\r\n\r\n".to_vec())
}

pub fn pause(ms: u64) -> Step {
    Step::Pause(Duration::from_millis(ms))
}

/// A whole answer with a status and further headers (each ended by CRLF).
pub fn status(status: &str, headers: &str, body: &str) -> Vec<Step> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    );
    vec![Step::Send(head.into_bytes())]
}
