//! A company's server that takes webhooks: keeps what was posted, answers as its script says, and signatures worked out
//! without the library that signs.
#![allow(dead_code, reason = "each test program uses its own part of this")]

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::IntoResponse;
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::whole::{self, Company, text, until};

/// What came to the company's server.
#[derive(Clone, Debug)]
pub struct Post {
    pub path: String,
    pub id: String,
    pub timestamp: String,
    pub signature: String,
    pub body: String,
}

impl Post {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }

    pub fn kind(&self) -> String {
        text(&self.json()["type"]).to_owned()
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Reaction {
    Status(u16),
    /// To `/inside`.
    Redirect,
    Hangs,
}

/// A company's server: does what its script says for a path, else takes everything.
#[derive(Clone)]
pub struct Receiver {
    pub address: SocketAddr,
    posts: Arc<Mutex<Vec<Post>>>,
    script: Arc<Mutex<HashMap<String, VecDeque<Reaction>>>>,
}

impl Receiver {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let this = Self { address, posts: Arc::default(), script: Arc::default() };
        let router = axum::Router::new().fallback(receive).with_state(this.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        this
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn reacts(&self, path: &str, reactions: impl IntoIterator<Item = Reaction>) {
        self.script.lock().unwrap().insert(path.into(), reactions.into_iter().collect());
    }

    pub fn at(&self, path: &str) -> Vec<Post> {
        self.posts.lock().unwrap().iter().filter(|post| post.path == path).cloned().collect()
    }

    pub async fn got(&self, path: &str, count: usize) -> Vec<Post> {
        until(&format!("{count} posts at {path}"), async || {
            let posts = self.at(path);
            (posts.len() >= count).then_some(posts)
        })
        .await
    }
}

async fn receive(
    State(receiver): State<Receiver>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> axum::response::Response {
    let header = |name: &str| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let path = uri.path().to_owned();
    receiver.posts.lock().unwrap().push(Post {
        path: path.clone(),
        id: header("webhook-id"),
        timestamp: header("webhook-timestamp"),
        signature: header("webhook-signature"),
        body: String::from_utf8(body.to_vec()).unwrap(),
    });
    let reaction = receiver.script.lock().unwrap().get_mut(&path).and_then(VecDeque::pop_front);
    match reaction {
        None => "thank you".into_response(),
        Some(Reaction::Status(status)) => (StatusCode::from_u16(status).unwrap(), "so it is\n").into_response(),
        Some(Reaction::Redirect) => (StatusCode::FOUND, [("location", receiver.url("/inside"))]).into_response(),
        Some(Reaction::Hangs) => std::future::pending().await,
    }
}

/// HMAC-SHA256 by its definition (RFC 2104), without the library that signs.
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = [0u8; 64];
    block[..key.len()].copy_from_slice(key);
    let pad = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

pub fn signature(secret: &str, post: &Post) -> String {
    let key = BASE64_STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let message = format!("{}.{}.{}", post.id, post.timestamp, post.body);
    format!("v1,{}", BASE64_STANDARD.encode(hmac(&key, message.as_bytes())))
}

/// An endpoint of the company's; its id and secret.
pub async fn webhook(company: &Company, url: &str) -> (Uuid, String) {
    let made = company.post("/webhooks", json!({ "name": "CRM", "url": url })).await;
    (whole::id(&made), text(&made["secret"]).to_owned())
}
