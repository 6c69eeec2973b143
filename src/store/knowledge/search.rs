//! Lookups: full text from the database (FTS5, `tsvector`) and the nearest vectors from memory, ranked by one code for
//! both databases and fused. Without an endpoint for vectors, full text alone.
//!
//! Vectors are compared one by one, in memory. That is what sqlite-vec does on disk; at the sizes that a company's
//! documents have it takes a few milliseconds, needs no extension and is the same on every database.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Serialize;
use sqlx::FromRow;
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};
use utoipa::ToSchema;
use uuid::Uuid;

use super::MAX_BASES;
use super::embeddings::{Embedder, KnowledgeConfig};
use super::extract::Reader;
use super::index::{mark, marked};
use crate::agent::knowledge::rank::{Stats, Term, fuse, nearest};
use crate::agent::knowledge::words::{Asked, Tongue, asked};
use crate::agent::knowledge::{Knowledge, KnowledgeError, Library, Lookup, MAX_PASSAGES, MAX_QUERY, Meaning, Passage};
use crate::speech::http::EndpointError;
use crate::store::db::{Db, args};
use crate::store::{Store, StoreError};

/// Passages that the database proposes, before they are ranked.
const CANDIDATES: usize = 96;
/// Passages that the vectors propose.
const NEAREST: usize = 48;
/// Words of a question by which the database is asked: the rarest.
const MAX_TERMS: usize = 12;
/// Words that so many passages hold are not asked for, where rarer ones are there: all of them would have to be ranked.
const MANY: u32 = 2000;
/// Passages of one base whose vectors are kept in memory; at 1536 dimensions each has 6 KB.
const MAX_VECTORS: i64 = 50_000;
/// Documents that are indexed at once: the store's writes are shared with calls.
const MAKING: usize = 2;
/// Bytes of all bases in memory; those not used for longest are read again when they are.
const MEMORY: usize = 512 << 20;

/// All knowledge bases of a store. Cheap to clone.
#[derive(Clone)]
pub struct KnowledgeBases {
    pub(super) store: Store,
    pub(super) embedder: Option<Arc<Embedder>>,
    pub(super) memory: Arc<Memory>,
    pub(super) reader: Reader,
}

pub(super) struct Memory {
    bases: Mutex<HashMap<Uuid, Held>>,
    /// One base is read at a time, and by one of those who wait for it.
    reading: tokio::sync::Mutex<()>,
    /// Documents whose passages are made at once.
    pub(super) making: Semaphore,
}

impl Default for Memory {
    fn default() -> Self {
        Self { bases: Mutex::default(), reading: tokio::sync::Mutex::default(), making: Semaphore::new(MAKING) }
    }
}

struct Held {
    base: Arc<Base>,
    used: Instant,
}

/// What ranking needs of a base's passages, as one revision has them.
#[derive(Default)]
struct Base {
    revision: i64,
    stats: Stats,
    /// Of the passages with vectors.
    ids: Vec<i64>,
    /// One after the other.
    vectors: Vec<f32>,
    dimensions: usize,
}

impl Base {
    fn size(&self) -> usize {
        self.stats.size() + self.vectors.len() * size_of::<f32>() + self.ids.len() * size_of::<i64>()
    }
}

#[derive(Clone, FromRow)]
struct BaseRow {
    id: Uuid,
    name: String,
    revision: i64,
}

#[derive(FromRow)]
struct Row {
    id: i64,
    document_id: Uuid,
    name: String,
    place: String,
    text: String,
    terms: String,
}

/// How a company's passages are found, for whoever asks why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Means {
    TextAndVectors,
    /// No endpoint for vectors is configured.
    Text,
}

impl KnowledgeBases {
    /// Says in the log how passages are found.
    pub fn open(store: Store, config: &KnowledgeConfig) -> Result<Self, EndpointError> {
        let embedder = Embedder::new(config)?;
        match &embedder {
            Some(embedder) => info!(model = embedder.model(), "knowledge is found by full text and vectors"),
            None => info!("knowledge is found by full text alone: knowledge.base_url names no embeddings endpoint"),
        }
        Ok(Self {
            embedder: embedder.map(Arc::new),
            ..Self::without_vectors(store).reading_with(config.reader.clone())
        })
    }

    /// Full text alone, of plain text and Markdown alone.
    pub fn without_vectors(store: Store) -> Self {
        Self { store, embedder: None, memory: Arc::default(), reader: Reader::default() }
    }

    /// Other documents too, by whatever this reader starts.
    pub fn reading_with(self, reader: Reader) -> Self {
        Self { reader, ..self }
    }

    pub fn means(&self) -> Means {
        if self.embedder.is_some() { Means::TextAndVectors } else { Means::Text }
    }

    /// The best passages of one base, whichever the lookup names. `None`: the company has no such base.
    pub async fn search(&self, company: Uuid, base: Uuid, ask: &Lookup) -> Result<Option<Vec<Passage>>, StoreError> {
        let rows = self.bases(company).await?;
        match rows.iter().find(|row| row.id == base) {
            Some(row) => Ok(Some(self.find(std::slice::from_ref(row), ask).await?)),
            None => Ok(None),
        }
    }

    /// The best passages of the bases of these names, as far as the lookup asks for them.
    pub async fn search_named(
        &self,
        company: Uuid,
        names: &[String],
        ask: &Lookup,
    ) -> Result<Vec<Passage>, StoreError> {
        let rows = self.looked_in(company, names, ask).await?;
        self.find(&rows, ask).await
    }

    async fn looked_in(&self, company: Uuid, names: &[String], ask: &Lookup) -> Result<Vec<BaseRow>, StoreError> {
        let wanted = |name: &String| ask.bases.as_ref().is_none_or(|bases| bases.contains(name));
        let wanted: Vec<&String> = names.iter().filter(|name| wanted(name)).collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let mut rows = self.bases(company).await?;
        rows.retain(|row| wanted.contains(&&row.name));
        if rows.len() < wanted.len() {
            debug!(named = wanted.len(), found = rows.len(), "an agent names knowledge bases that are not there");
        }
        Ok(rows)
    }

    /// What a lookup in the bases of these names compares meanings by. What ranking needs of them is in memory then.
    async fn meaning_of(&self, company: Uuid, names: &[String], ask: &Lookup) -> Result<Meaning, StoreError> {
        let rows = self.looked_in(company, names, ask).await?;
        let held = self.held_all(&rows).await?;
        if held.iter().all(|base| base.ids.is_empty()) {
            return Ok(Meaning::Nothing);
        }
        let vector = self.vector(&asked_for(ask)).await;
        Ok(vector.map_or(Meaning::Unknown, |vector| Meaning::Vector(vector.into())))
    }

    async fn bases(&self, company: Uuid) -> Result<Vec<BaseRow>, StoreError> {
        self.store
            .db
            .all(
                "SELECT id, name, revision FROM knowledge_base WHERE company_id = $1 ORDER BY id LIMIT $2",
                args![company, MAX_BASES],
            )
            .await
    }

    async fn find(&self, bases: &[BaseRow], ask: &Lookup) -> Result<Vec<Passage>, StoreError> {
        let query = asked_for(ask);
        let words = asked(&query, Tongue::detect(&query, Tongue::of(&ask.language)));
        let limit = ask.limit.clamp(1, MAX_PASSAGES);
        let held = self.held_all(bases).await?;
        let vector: Option<Arc<[f32]>> = match &ask.meaning {
            Meaning::Vector(vector) => Some(vector.clone()),
            Meaning::Unknown if held.iter().any(|base| !base.ids.is_empty()) => {
                self.vector(&query).await.map(Into::into)
            }
            Meaning::Unknown | Meaning::Nothing => None,
        };
        let mut found = Vec::new();
        for (row, base) in bases.iter().zip(&held) {
            found.extend(self.find_in(row.id, base, &words, vector.as_deref(), limit).await?);
        }
        if bases.len() > 1 {
            // Each base's order is its own; what a passage holds of the question compares across them.
            found.sort_by(|a, b| b.score.total_cmp(&a.score));
        }
        found.truncate(limit);
        Ok(found)
    }

    async fn held_all(&self, bases: &[BaseRow]) -> Result<Vec<Arc<Base>>, StoreError> {
        let mut held = Vec::with_capacity(bases.len());
        for row in bases {
            held.push(self.held(row).await?);
        }
        Ok(held)
    }

    async fn vector(&self, query: &str) -> Option<Vec<f32>> {
        match self.embedder.as_ref()?.question(query).await {
            Ok(vector) => Some(vector),
            Err(fault) => {
                warn!(error = %fault, "a question has no vector: full text alone answers");
                None
            }
        }
    }

    async fn find_in(
        &self,
        id: Uuid,
        base: &Arc<Base>,
        words: &[Asked],
        vector: Option<&[f32]>,
        limit: usize,
    ) -> Result<Vec<Passage>, StoreError> {
        let terms = base.stats.terms(words);
        let mut rows = self.candidates(id, &terms).await?;
        let scores: HashMap<i64, (f32, f32)> =
            rows.iter().map(|row| (row.id, base.stats.score(&terms, &row.terms))).collect();
        let mut by_text: Vec<i64> = scores.iter().filter(|(_, (score, _))| *score > 0.0).map(|(id, _)| *id).collect();
        by_text.sort_unstable_by(|a, b| scores[b].0.total_cmp(&scores[a].0).then(a.cmp(b)));
        let near = match vector {
            Some(vector) if vector.len() == base.dimensions => near(base.clone(), vector.to_vec()).await,
            _ => Vec::new(),
        };
        let order = if near.is_empty() { by_text } else { fuse(&[by_text, near.iter().map(|(id, _)| *id).collect()]) };
        let order: Vec<i64> = order.into_iter().take(limit).collect();
        let missing: Vec<i64> = order.iter().copied().filter(|id| !scores.contains_key(id)).collect();
        if !missing.is_empty() {
            rows.extend(self.rows(&missing).await?);
        }
        let mut rows: HashMap<i64, Row> = rows.into_iter().map(|row| (row.id, row)).collect();
        let near: HashMap<i64, f32> = near.into_iter().collect();
        Ok(order
            .into_iter()
            .filter_map(|id| {
                // Gone since the vectors were read.
                let Row { document_id, name, place, text, .. } = rows.remove(&id)?;
                let held = scores.get(&id).map_or(0.0, |(_, held)| *held);
                let score = held.max(near.get(&id).copied().unwrap_or(0.0)).clamp(0.0, 1.0);
                Some(Passage { document: document_id, title: name, place, text, score })
            })
            .collect())
    }

    /// Passages that hold words of the question.
    async fn candidates(&self, base: Uuid, terms: &[Term]) -> Result<Vec<Row>, StoreError> {
        let mut terms: Vec<&Term> = terms.iter().filter(|term| term.passages > 0).collect();
        terms.sort_by_key(|term| term.passages);
        let few = terms.iter().take_while(|term| term.passages < MANY).count();
        terms.truncate(MAX_TERMS.min(few.max(1)));
        let stems: Vec<(&str, f32)> = terms
            .iter()
            .flat_map(|term| term.stems.iter().map(|(stem, alike)| (stem.as_str(), term.weight * alike)))
            .collect();
        if stems.is_empty() {
            return Ok(Vec::new());
        }
        let words = marked(&mark(base), stems.iter().map(|(stem, _)| *stem));
        match &self.store.db {
            Db::Sqlite { .. } => {
                let any = words.split(' ').map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" OR ");
                self.store
                    .db
                    .all(
                        "SELECT p.id, p.document_id, d.name, p.place, p.text, p.terms
                         FROM (SELECT rowid AS id FROM knowledge_text WHERE knowledge_text MATCH $1
                               ORDER BY bm25(knowledge_text) LIMIT $2) f
                         JOIN knowledge_passage p ON p.id = f.id
                         JOIN knowledge_document d ON d.id = p.document_id AND d.version = p.version
                         WHERE p.base_id = $3",
                        args![any, CANDIDATES, base],
                    )
                    .await
            }
            Db::Postgres(_) => {
                let weights = stems.iter().map(|(_, weight)| weight.to_string()).collect::<Vec<_>>().join(" ");
                self.store
                    .db
                    .all(
                        "WITH found AS (
                             SELECT p.id, SUM(a.weight) AS score
                             FROM unnest(string_to_array($1, ' '), string_to_array($2, ' ')::float8[]) AS a (word, weight)
                             JOIN knowledge_passage p ON p.words @@ quote_literal(a.word)::tsquery
                             WHERE p.base_id = $3
                             GROUP BY p.id ORDER BY score DESC, p.id LIMIT $4)
                         SELECT p.id, p.document_id, d.name, p.place, p.text, p.terms FROM found f
                         JOIN knowledge_passage p ON p.id = f.id
                         JOIN knowledge_document d ON d.id = p.document_id AND d.version = p.version",
                        args![words, weights, base, CANDIDATES],
                    )
                    .await
            }
        }
    }

    async fn rows(&self, ids: &[i64]) -> Result<Vec<Row>, StoreError> {
        let ids = serde_json::json!(ids).to_string();
        let sql = match &self.store.db {
            Db::Sqlite { .. } => {
                "SELECT p.id, p.document_id, d.name, p.place, p.text, p.terms FROM knowledge_passage p
                 JOIN knowledge_document d ON d.id = p.document_id AND d.version = p.version
                 WHERE p.id IN (SELECT value FROM json_each($1))"
            }
            Db::Postgres(_) => {
                "SELECT p.id, p.document_id, d.name, p.place, p.text, p.terms FROM knowledge_passage p
                 JOIN knowledge_document d ON d.id = p.document_id AND d.version = p.version
                 WHERE p.id IN (SELECT value::bigint FROM json_array_elements_text($1::json))"
            }
        };
        self.store.db.all(sql, args![ids]).await
    }

    /// A base as its revision has it, from memory where it is there. While one lookup reads it again, the others take
    /// what it was: that ranks a little worse and finds nothing that is gone.
    async fn held(&self, row: &BaseRow) -> Result<Arc<Base>, StoreError> {
        let before = match self.memory.recall(row.id) {
            Some(base) if base.revision == row.revision => return Ok(base),
            before => before,
        };
        let _reading = match (before, self.memory.reading.try_lock()) {
            (_, Ok(reading)) => reading,
            (Some(before), Err(_)) => return Ok(before),
            (None, Err(_)) => self.memory.reading.lock().await,
        };
        if let Some(base) = self.memory.recall(row.id).filter(|base| base.revision == row.revision) {
            return Ok(base);
        }
        let base = Arc::new(self.read(row).await?);
        self.memory.keep(row.id, base.clone());
        Ok(base)
    }

    /// Reads a base again that is in use and has changed, so that no caller waits for it.
    pub(super) async fn refresh(&self, base: Uuid) -> Result<(), StoreError> {
        if self.memory.recall(base).is_none() {
            return Ok(());
        }
        let row: Option<BaseRow> =
            self.store.db.first("SELECT id, name, revision FROM knowledge_base WHERE id = $1", args![base]).await?;
        match row {
            Some(row) => self.held(&row).await.map(drop),
            None => Ok(()),
        }
    }

    async fn read(&self, row: &BaseRow) -> Result<Base, StoreError> {
        let terms: Vec<(String,)> = self
            .store
            .db
            .all(
                "SELECT p.terms FROM knowledge_passage p
                 JOIN knowledge_document d ON d.id = p.document_id AND d.version = p.version
                 WHERE p.base_id = $1",
                args![row.id],
            )
            .await?;
        // Some tens of milliseconds: not for a thread that calls run on.
        let counted = tokio::task::spawn_blocking(move || Stats::of(terms.iter().map(|(terms,)| terms.as_str()))).await;
        let mut base = Base { revision: row.revision, stats: counted.unwrap_or_default(), ..Base::default() };
        let Some(embedder) = &self.embedder else { return Ok(base) };
        let vectors: Vec<(i64, Vec<u8>)> = self
            .store
            .db
            .all(
                "SELECT p.id, p.vector FROM knowledge_passage p
                 JOIN knowledge_document d ON d.id = p.document_id AND d.version = p.version
                 WHERE p.base_id = $1 AND p.model = $2 AND p.vector IS NOT NULL ORDER BY p.id LIMIT $3",
                args![row.id, embedder.model(), MAX_VECTORS + 1],
            )
            .await?;
        if vectors.len() as i64 > MAX_VECTORS {
            warn!(base = row.name, "a knowledge base is too large for vectors: full text alone finds its passages");
            return Ok(base);
        }
        base.dimensions = vectors.first().map_or(0, |(_, bytes)| bytes.len() / size_of::<f32>());
        for (id, bytes) in vectors {
            if bytes.len() != base.dimensions * size_of::<f32>() {
                continue;
            }
            base.ids.push(id);
            base.vectors.extend(bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().expect("four bytes"))));
        }
        Ok(base)
    }
}

/// What is looked up of a question.
fn asked_for(ask: &Lookup) -> String {
    ask.query.chars().take(MAX_QUERY).collect()
}

/// The passages nearest to a vector, on a thread of their own: ten thousand comparisons take milliseconds.
async fn near(base: Arc<Base>, vector: Vec<f32>) -> Vec<(i64, f32)> {
    let found = tokio::task::spawn_blocking(move || {
        let near = nearest(&base.vectors, &vector, NEAREST);
        near.into_iter().map(|(at, cosine)| (base.ids[at], cosine)).collect()
    });
    // Nothing in there panics; if the runtime is closing, nobody waits for an answer.
    found.await.unwrap_or_default()
}

impl Memory {
    fn recall(&self, id: Uuid) -> Option<Arc<Base>> {
        let mut bases = self.bases.lock().unwrap_or_else(PoisonError::into_inner);
        let held = bases.get_mut(&id)?;
        held.used = Instant::now();
        Some(held.base.clone())
    }

    fn keep(&self, id: Uuid, base: Arc<Base>) {
        let mut bases = self.bases.lock().unwrap_or_else(PoisonError::into_inner);
        bases.insert(id, Held { base, used: Instant::now() });
        while bases.values().map(|held| held.base.size()).sum::<usize>() > MEMORY && bases.len() > 1 {
            let Some(oldest) = bases.iter().min_by_key(|(_, held)| held.used).map(|(id, _)| *id) else { break };
            bases.remove(&oldest);
        }
    }
}

/// The knowledge of one agent.
struct OfAgent {
    bases: KnowledgeBases,
    company: Uuid,
    names: Vec<String>,
}

impl Knowledge for OfAgent {
    fn look_up(&self, ask: Lookup) -> BoxFuture<'static, Result<Vec<Passage>, KnowledgeError>> {
        let (bases, company, names) = (self.bases.clone(), self.company, self.names.clone());
        async move {
            let found = bases.search_named(company, &names, &ask).await;
            found.map_err(|fault| KnowledgeError::Store(fault.to_string()))
        }
        .boxed()
    }

    fn meaning(&self, ask: Lookup) -> BoxFuture<'static, Meaning> {
        let (bases, company, names) = (self.bases.clone(), self.company, self.names.clone());
        async move {
            let meaning = bases.meaning_of(company, &names, &ask).await;
            meaning.unwrap_or_else(|fault| {
                debug!(error = %fault, "what a question means could not be looked up");
                Meaning::Unknown
            })
        }
        .boxed()
    }
}

impl Library for KnowledgeBases {
    fn of(&self, company: Uuid, bases: &[String]) -> Arc<dyn Knowledge> {
        Arc::new(OfAgent { bases: self.clone(), company, names: bases.to_vec() })
    }
}
