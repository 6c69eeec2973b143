//! Vectors of texts from an OpenAI-compatible endpoint (`POST {base_url}/embeddings`,
//! <https://platform.openai.com/docs/api-reference/embeddings>), and `[knowledge]`, where it is configured.

use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout_at};

use super::extract::Reader;
use crate::agent::knowledge::rank::normalise;
use crate::speech::http::{Dots, Endpoint, EndpointError, HttpError};

/// Longest vector that is kept; the largest models in use have 4096 dimensions.
pub const MAX_DIMENSIONS: usize = 4096;
/// Characters of a text that are sent: passages are shorter.
const MAX_INPUT: usize = 8000;
/// Bytes of an answer for one text: a number is at most some 25 characters.
const ANSWER_BYTES: usize = MAX_DIMENSIONS * 32;

/// `[knowledge]`: how knowledge bases are searched beside their full text.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KnowledgeConfig {
    /// Everything before `/embeddings`, as in `https://api.openai.com/v1`. Empty = full text alone.
    pub base_url: String,
    /// Sent as a bearer token.
    pub api_key: Option<SecretString>,
    /// Passages of another model than this are searched by full text alone until they are indexed again.
    pub model: String,
    /// Passages that one request carries. More is faster, and a failure costs more.
    pub batch: usize,
    /// A request that indexes may take so long, milliseconds.
    pub timeout_ms: u64,
    /// The vector of a question must be there after so long, milliseconds; else full text alone answers. The caller
    /// waits for it.
    pub lookup_ms: u64,
    /// Who reads documents that are no text: what runs knows that, no file says it.
    #[serde(skip)]
    pub reader: Reader,
}

impl Default for KnowledgeConfig {
    fn default() -> Self {
        Self {
            base_url: String::new(),
            api_key: None,
            model: "text-embedding-3-small".into(),
            batch: 64,
            timeout_ms: 20_000,
            lookup_ms: 300,
            reader: Reader::default(),
        }
    }
}

impl std::fmt::Debug for KnowledgeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = self.api_key.as_ref().map(|_| Dots);
        f.debug_struct("KnowledgeConfig")
            .field("base_url", &self.base_url)
            .field("api_key", &key)
            .field("model", &self.model)
            .field("batch", &self.batch)
            .field("timeout_ms", &self.timeout_ms)
            .field("lookup_ms", &self.lookup_ms)
            .field("reader", &self.reader)
            .finish()
    }
}

impl KnowledgeConfig {
    /// What types do not say: key and problem.
    pub fn faults(&self) -> Vec<(&'static str, &'static str)> {
        [
            ("batch", (1..=2048).contains(&self.batch), "must be from 1 to 2048"),
            ("timeout_ms", (100..=120_000).contains(&self.timeout_ms), "must be from 100 to 120000"),
            ("lookup_ms", (10..=5000).contains(&self.lookup_ms), "must be from 10 to 5000"),
            ("model", !self.model.is_empty(), "must not be empty"),
        ]
        .into_iter()
        .filter_map(|(key, good, problem)| (!good).then_some((key, problem)))
        .collect()
    }
}

/// Why texts have no vectors. Full text answers without them.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EmbeddingError {
    #[error("the embeddings endpoint: {0}")]
    Http(#[from] HttpError),
    #[error("the embeddings endpoint gave nothing within {} ms", .0.as_millis())]
    Late(Duration),
    /// Not the shape of OpenAI's answer, or not a vector for each text.
    #[error("the embeddings endpoint answered nonsense: {0}")]
    Nonsense(String),
}

/// One endpoint and one model.
pub struct Embedder {
    endpoint: Endpoint,
    model: String,
    pub(super) batch: usize,
    index_limit: Duration,
    lookup_limit: Duration,
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Embedding>,
}

#[derive(Deserialize)]
struct Embedding {
    index: usize,
    embedding: Vec<f32>,
}

impl Embedder {
    /// `None`: no endpoint is configured.
    pub fn new(config: &KnowledgeConfig) -> Result<Option<Self>, EndpointError> {
        if config.base_url.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            endpoint: Endpoint::new(&config.base_url, config.api_key.clone())?,
            model: config.model.clone(),
            batch: config.batch.max(1),
            index_limit: Duration::from_millis(config.timeout_ms),
            lookup_limit: Duration::from_millis(config.lookup_ms),
        }))
    }

    pub fn model(&self) -> &str {
        &self.model
    }

    /// The vector of a question, of length 1. A caller waits for it: one try.
    pub async fn question(&self, text: &str) -> Result<Vec<f32>, EmbeddingError> {
        let limit = self.lookup_limit;
        let mut vectors = self.ask(&[text], Instant::now() + limit, limit).await?;
        vectors.pop().ok_or_else(|| EmbeddingError::Nonsense("no vector".into()))
    }

    /// A vector of length 1 for each text, in order; a failure that may pass is tried once more.
    pub async fn passages(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbeddingError> {
        let limit = self.index_limit;
        let until = Instant::now() + limit;
        let answered = self.ask(texts, until, limit).await;
        let wait = match &answered {
            Err(EmbeddingError::Http(fault)) => fault.retry_after(),
            _ => None,
        };
        match wait {
            Some(wait) => {
                sleep(wait).await;
                self.ask(texts, until, limit).await
            }
            None => answered,
        }
    }

    async fn ask(&self, texts: &[&str], until: Instant, limit: Duration) -> Result<Vec<Vec<f32>>, EmbeddingError> {
        let input: Vec<&str> =
            texts.iter().map(|text| text.char_indices().nth(MAX_INPUT).map_or(*text, |(at, _)| &text[..at])).collect();
        let body = json!({ "model": self.model, "input": input, "encoding_format": "float" });
        let work = async {
            let mut response = self.endpoint.send(self.endpoint.post("embeddings").json(&body)).await?;
            self.endpoint.body(&mut response, texts.len().max(1) * ANSWER_BYTES).await
        };
        let body = timeout_at(until, work).await.map_err(|_| EmbeddingError::Late(limit))??;
        vectors(&body, texts.len()).map_err(EmbeddingError::Nonsense)
    }
}

fn vectors(body: &[u8], wanted: usize) -> Result<Vec<Vec<f32>>, String> {
    let answer: Answer = serde_json::from_slice(body).map_err(|_| "no JSON of vectors")?;
    let mut vectors = vec![Vec::new(); wanted];
    for Embedding { index, mut embedding } in answer.data {
        if embedding.is_empty() || embedding.len() > MAX_DIMENSIONS || !normalise(&mut embedding) {
            return Err(format!("a vector of {} numbers without a direction", embedding.len()));
        }
        *vectors.get_mut(index).ok_or("a vector for no text")? = embedding;
    }
    let length = vectors.first().map_or(0, Vec::len);
    if vectors.iter().any(|vector| vector.is_empty() || vector.len() != length) {
        return Err("vectors that are missing or of different lengths".into());
    }
    Ok(vectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_come_in_the_order_of_their_texts_and_of_length_one() {
        let body = br#"{"object":"list","data":[{"index":1,"embedding":[0,2]},{"index":0,"embedding":[3,4]}]}"#;
        assert_eq!(vectors(body, 2).unwrap(), [[0.6, 0.8], [0.0, 1.0]]);
    }

    #[test]
    fn an_answer_that_lacks_something_is_nonsense() {
        for body in [
            "{}",
            r#"{"data":[]}"#,
            r#"{"data":[{"index":0,"embedding":[1]},{"index":5,"embedding":[1]}]}"#,
            r#"{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":[1,2]}]}"#,
            r#"{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":[0]}]}"#,
            r#"{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":[1e39]}]}"#,
        ] {
            assert!(vectors(body.as_bytes(), 2).is_err(), "{body}");
        }
    }

    #[test]
    fn a_key_prints_as_dots() {
        let config = KnowledgeConfig { api_key: Some("very-secret".into()), ..KnowledgeConfig::default() };
        assert!(!format!("{config:?}").contains("very-secret"));
    }
}
