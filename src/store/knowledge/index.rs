//! From a file to passages that are found: read, split, stemmed, given vectors, and put in the place of the version
//! before in one transaction, so that a lookup sees the old document or the new one.

use bytes::Bytes;
use sha2::{Digest, Sha256};
use sqlx::FromRow;
use tracing::{info, warn};
use uuid::Uuid;

use super::embeddings::EmbeddingError;
use super::extract::ExtractError;
use super::search::KnowledgeBases;
use super::{DocumentInfo, DocumentState, MAX_DOCUMENTS, MAX_SEARCHED, REMOVE_BATCH};
use crate::agent::knowledge::split::{self, Block, Piece};
use crate::agent::knowledge::words::{Tongue, stems};
use crate::store::StoreError;
use crate::store::db::{Arg, At, Db, Json, args, json};

/// Passages that one transaction adds: other writes wait for no more.
const ADD_BATCH: usize = 200;
/// A claim is as good as given up after so long: its process has died.
const CLAIM_MS: i64 = 10 * 60 * 1000;
/// A document that was replaced while its passages were made is made again, so often at most.
const ROUNDS: usize = 8;
/// PostgreSQL plans by its statistics: after so many passages at once it is told to look again.
const MANY: usize = 200;
/// Documents that wait which one look finds.
const WAITING: i64 = 1000;

/// What became of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Added {
    /// It is kept, and waits for [`KnowledgeBases::index`].
    Taken(DocumentInfo),
    /// The same file is there under this name.
    Unchanged(DocumentInfo),
    /// The company has no such base.
    NoBase,
    /// The base has [`MAX_DOCUMENTS`], or [`MAX_SEARCHED`] passages.
    TooMany,
    /// It cannot be read, for a reason that its owner can understand. Nothing was stored.
    Refused(String),
}

#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    TooMany(#[from] split::TooMany),
}

#[derive(FromRow)]
struct Waiting {
    base_id: Uuid,
    language: String,
    name: String,
    sha256: String,
    version: i64,
    content: Json<Vec<Block>>,
}

/// Passages that are there and not searched yet.
struct Built {
    document: Uuid,
    base: Uuid,
    sha256: String,
    version: i64,
    passages: usize,
    vectors: usize,
    lacks: Option<String>,
}

impl KnowledgeBases {
    /// Reads a file and keeps what it says. A document of the same name is replaced, as soon as it is indexed.
    pub async fn add(&self, company: Uuid, base: Uuid, name: &str, file: Bytes) -> Result<Added, StoreError> {
        let Some(info) = self.store.knowledge_base(company, base).await? else { return Ok(Added::NoBase) };
        let sha256 = hex(&Sha256::digest(&file));
        let there = self.named(base, name).await?;
        if let Some(there) = &there
            && there.sha256 == sha256
            && there.state != DocumentState::Failed
        {
            return Ok(Added::Unchanged(there.clone()));
        }
        if there.is_none() && (info.documents >= MAX_DOCUMENTS || info.passages >= MAX_SEARCHED) {
            return Ok(Added::TooMany);
        }
        let size = file.len();
        let blocks = match self.reader.read(name, file).await {
            Ok(blocks) => blocks,
            Err(fault @ ExtractError::Busy) => return Ok(Added::Refused(format!("{fault}: try again"))),
            Err(fault) => return Ok(Added::Refused(fault.to_string())),
        };
        if let Err(fault) = split::split(&blocks) {
            return Ok(Added::Refused(fault.to_string()));
        }
        self.store
            .db
            .execute(
                "INSERT INTO knowledge_document
                     (id, base_id, name, sha256, bytes, state, version, passages, vectors, content, created_at, updated_at)
                 VALUES ($1, $2, $3, $4, $5, 'indexing', 0, 0, 0, $6, $7, $7)
                 ON CONFLICT (base_id, name) DO UPDATE SET sha256 = excluded.sha256, bytes = excluded.bytes,
                     state = 'indexing', error = NULL, content = excluded.content, updated_at = excluded.updated_at",
                args![Uuid::now_v7(), base, name, sha256, size, json(&blocks), At::now()],
            )
            .await?;
        match self.named(base, name).await? {
            Some(document) => Ok(Added::Taken(document)),
            None => Ok(Added::NoBase),
        }
    }

    async fn named(&self, base: Uuid, name: &str) -> Result<Option<DocumentInfo>, StoreError> {
        self.store
            .db
            .first(
                "SELECT id, base_id, name, state, error, version, passages, vectors, bytes, sha256, created_at, updated_at
                 FROM knowledge_document WHERE base_id = $1 AND name = $2",
                args![base, name],
            )
            .await
    }

    /// Makes the passages of a document that waits, and switches to them. Whoever else works on it is left to it.
    pub async fn index(&self, document: Uuid) -> Result<(), IndexError> {
        let _making = self.memory.making.acquire().await.expect("the semaphore is never closed");
        for _ in 0..ROUNDS {
            if !self.claim(document).await? {
                return Ok(());
            }
            let switched = match self.build(document).await {
                Ok(Some(built)) => self.switch(&[built]).await.map_err(IndexError::from),
                Ok(None) => return Ok(()),
                Err(fault) => Err(fault),
            };
            match switched {
                Ok(true) => return Ok(()),
                // Another file of the same name came meanwhile.
                Ok(false) => {
                    let free = "UPDATE knowledge_document SET claimed_at = NULL WHERE id = $1";
                    self.store.db.execute(free, args![document]).await?;
                }
                Err(fault) => {
                    warn!(%document, error = %fault, "a document could not be indexed");
                    self.fail(document, &fault.to_string()).await?;
                    return Err(fault);
                }
            }
        }
        Ok(())
    }

    /// Makes the passages of all documents of a base anew and switches to all of them at once. `false`: the company has
    /// no such base.
    pub async fn reindex(&self, company: Uuid, base: Uuid) -> Result<bool, IndexError> {
        if self.store.knowledge_base(company, base).await?.is_none() {
            return Ok(false);
        }
        let _making = self.memory.making.acquire().await.expect("the semaphore is never closed");
        let ids: Vec<(Uuid,)> =
            self.store.db.all("SELECT id FROM knowledge_document WHERE base_id = $1 ORDER BY id", args![base]).await?;
        let mut built = Vec::with_capacity(ids.len());
        for (document,) in ids {
            if self.claim(document).await? {
                match self.build(document).await {
                    Ok(Some(one)) => {
                        built.push(one);
                        self.hold(base).await?;
                    }
                    Ok(None) => {}
                    Err(fault) => {
                        self.fail(document, &fault.to_string()).await?;
                        return Err(fault);
                    }
                }
            }
        }
        self.switch(&built).await?;
        Ok(true)
    }

    /// Documents that wait because their process has died: index them.
    pub async fn waiting(&self) -> Result<Vec<Uuid>, StoreError> {
        let rows: Vec<(Uuid,)> = self
            .store
            .db
            .all(
                "SELECT id FROM knowledge_document
                 WHERE state = 'indexing' AND (claimed_at IS NULL OR claimed_at < $1) ORDER BY id LIMIT $2",
                args![At::now().as_millisecond() - CLAIM_MS, WAITING],
            )
            .await?;
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }

    async fn claim(&self, document: Uuid) -> Result<bool, StoreError> {
        let now = At::now();
        let claimed = self
            .store
            .db
            .execute(
                "UPDATE knowledge_document SET claimed_at = $2, state = 'indexing'
                 WHERE id = $1 AND version >= 0 AND (claimed_at IS NULL OR claimed_at < $3)",
                args![document, now, now.as_millisecond() - CLAIM_MS],
            )
            .await?;
        Ok(claimed > 0)
    }

    async fn fail(&self, document: Uuid, why: &str) -> Result<(), StoreError> {
        let failed = "UPDATE knowledge_document SET state = 'failed', error = $2, claimed_at = NULL WHERE id = $1";
        self.store.db.execute(failed, args![document, why]).await?;
        Ok(())
    }

    /// Adds the passages of the next version beside those that are searched. `None`: the document is gone.
    async fn build(&self, document: Uuid) -> Result<Option<Built>, IndexError> {
        let waiting: Option<Waiting> = self
            .store
            .db
            .first(
                "SELECT d.base_id, b.language, d.name, d.sha256, d.version, d.content
                 FROM knowledge_document d JOIN knowledge_base b ON b.id = d.base_id WHERE d.id = $1",
                args![document],
            )
            .await?;
        let Some(waiting) = waiting else { return Ok(None) };
        let version = waiting.version + 1;
        // Left by a process that died over it.
        self.forget(document, waiting.version).await?;
        let (name, hint) = (waiting.name.clone(), Tongue::of(&waiting.language));
        let blocks = waiting.content.0;
        // Some hundred milliseconds for the largest document: not for a thread that calls run on.
        let made = tokio::task::spawn_blocking(move || pieces(&name, &blocks, hint)).await;
        let pieces = made.map_err(|_| StoreError::Corrupt {
            what: format!("document {:?}", waiting.name),
            detail: "its text cannot be divided".into(),
        })??;
        let (vectors, lacks) = self.vectors(waiting.base_id, &pieces).await?;
        let mark = mark(waiting.base_id);
        let postgres = matches!(self.store.db, Db::Postgres(_));
        let model = self.embedder.as_ref().map(|embedder| embedder.model().to_owned());
        let mut seq = 0usize;
        for batch in pieces.chunks(ADD_BATCH) {
            let mut tx = self.store.db.write().await?;
            for (piece, terms) in batch {
                let vector = vectors.get(seq).map(|vector| packed(vector));
                let model = vector.as_ref().and(model.clone());
                let words = marked(&mark, terms.split(' '));
                let mut values = args![
                    waiting.base_id,
                    document,
                    version,
                    seq,
                    &piece.place,
                    &piece.text,
                    terms,
                    Arg::from(vector),
                    model
                ];
                if postgres {
                    values.push(Arg::from(words));
                    tx.execute(
                        "INSERT INTO knowledge_passage (base_id, document_id, version, seq, place, text, terms, vector, model, words)
                         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, array_to_tsvector(string_to_array($10, ' ')))",
                        values,
                    )
                    .await?;
                } else {
                    tx.execute(
                        "INSERT INTO knowledge_passage (base_id, document_id, version, seq, place, text, terms, vector, model)
                         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                        values,
                    )
                    .await?;
                    let words_of_it = "INSERT INTO knowledge_text (rowid, words) VALUES (last_insert_rowid(), $1)";
                    tx.execute(words_of_it, args![words]).await?;
                }
                seq += 1;
            }
            tx.commit().await?;
        }
        Ok(Some(Built {
            document,
            base: waiting.base_id,
            sha256: waiting.sha256,
            version,
            passages: pieces.len(),
            vectors: vectors.len(),
            lacks,
        }))
    }

    /// Vectors for all pieces, or none and why: half a document that is found by meaning would hide the other half.
    async fn vectors(
        &self,
        base: Uuid,
        pieces: &[(Piece, String)],
    ) -> Result<(Vec<Vec<f32>>, Option<String>), StoreError> {
        let Some(embedder) = &self.embedder else { return Ok((Vec::new(), None)) };
        let mut vectors: Vec<Vec<f32>> = Vec::with_capacity(pieces.len());
        for batch in pieces.chunks(embedder.batch) {
            let texts: Vec<String> =
                batch.iter().map(|(piece, _)| format!("{}\n{}", piece.place, piece.text)).collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let made = embedder.passages(&texts).await.and_then(|made| match (vectors.first(), made.first()) {
                (Some(first), Some(made)) if first.len() != made.len() => {
                    Err(EmbeddingError::Nonsense("vectors of different lengths".into()))
                }
                _ => Ok(made),
            });
            match made {
                Ok(made) => vectors.extend(made),
                Err(fault) => {
                    warn!(error = %fault, "passages have no vectors: they are found by full text alone");
                    return Ok((Vec::new(), Some(format!("found by full text alone: {fault}"))));
                }
            }
            self.hold(base).await?;
        }
        Ok((vectors, None))
    }

    /// Says that the documents of a base are still worked on.
    async fn hold(&self, base: Uuid) -> Result<(), StoreError> {
        let held = "UPDATE knowledge_document SET claimed_at = $2
                    WHERE base_id = $1 AND state = 'indexing' AND claimed_at IS NOT NULL";
        self.store.db.execute(held, args![base, At::now()]).await?;
        Ok(())
    }

    /// Searches what was built from here on. `false`: a document has changed since it was read; nothing was switched.
    async fn switch(&self, built: &[Built]) -> Result<bool, StoreError> {
        let now = At::now();
        let mut tx = self.store.db.write().await?;
        for one in built {
            let switched = tx
                .execute(
                    "UPDATE knowledge_document SET version = $2, passages = $3, vectors = $4, error = $5, state = 'ready',
                            claimed_at = NULL, updated_at = $6
                     WHERE id = $1 AND sha256 = $7 AND version = $2 - 1",
                    args![one.document, one.version, one.passages, one.vectors, one.lacks.clone(), now, &one.sha256],
                )
                .await?;
            if switched == 0 {
                tx.rollback().await?;
                return Ok(false);
            }
        }
        let mut bases: Vec<Uuid> = built.iter().map(|one| one.base).collect();
        bases.sort_unstable();
        bases.dedup();
        for base in &bases {
            tx.execute(
                "UPDATE knowledge_base SET revision = revision + 1, updated_at = $2 WHERE id = $1",
                args![*base, now],
            )
            .await?;
        }
        tx.commit().await?;
        for one in built {
            self.forget(one.document, one.version).await?;
            info!(document = %one.document, passages = one.passages, vectors = one.vectors, "a document is searched");
        }
        if built.iter().map(|one| one.passages).sum::<usize>() >= MANY
            && let Db::Postgres(_) = &self.store.db
        {
            self.store.db.execute("ANALYZE knowledge_passage", args![]).await?;
        }
        for base in bases {
            self.refresh(base).await?;
        }
        Ok(true)
    }

    /// Removes all passages of a document but those of one version, in pieces.
    async fn forget(&self, document: Uuid, keep: i64) -> Result<(), StoreError> {
        let sql = "DELETE FROM knowledge_passage WHERE id IN
                       (SELECT id FROM knowledge_passage WHERE document_id = $1 AND version <> $2 LIMIT $3)";
        while self.store.db.execute(sql, args![document, keep, REMOVE_BATCH]).await? >= REMOVE_BATCH as u64 {}
        Ok(())
    }
}

/// The pieces of a document with the stems by which they are found: of where they stand, too.
fn pieces(name: &str, blocks: &[Block], hint: Tongue) -> Result<Vec<(Piece, String)>, split::TooMany> {
    let name = name.rsplit_once('.').map_or(name, |(name, _)| name);
    let whole = |piece: &Piece| format!("{name} {} {}", piece.place, piece.text);
    let pieces = split::split(blocks)?;
    Ok(pieces
        .into_iter()
        .map(|piece| {
            let text = whole(&piece);
            let terms = stems(&text, Tongue::detect(&text, hint)).join(" ");
            (piece, terms)
        })
        .collect())
}

/// What a base's words begin with in the index of all bases: 48 random bits of its id.
pub(super) fn mark(base: Uuid) -> String {
    base.simple().to_string()[20..].to_owned()
}

/// Stems with a base's mark, separated by spaces.
pub(super) fn marked<'s>(mark: &str, stems: impl Iterator<Item = &'s str>) -> String {
    let words = stems.filter(|stem| !stem.is_empty()).map(|stem| format!("{mark}{stem}"));
    words.collect::<Vec<_>>().join(" ")
}

/// As the store keeps a vector.
fn packed(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
