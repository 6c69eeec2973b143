//! Knowledge bases and their documents as companies see them: rows, states, removal. How files are read, indexed and
//! searched is below.

use serde::Serialize;
use sqlx::FromRow;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::store::db::{At, Page, Part, args, labelled};
use crate::store::{Store, StoreError};

mod apply;
pub mod embeddings;
pub mod extract;
mod index;
mod search;

pub(in crate::store) use apply::put_base;
pub use apply::{DocumentChange, Outcome};
pub use index::{Added, IndexError};
pub use search::{KnowledgeBases, Means};

/// Knowledge bases of one company; a list of them is read with every lookup.
pub const MAX_BASES: i64 = 100;
/// Documents of one base.
pub const MAX_DOCUMENTS: i64 = 10_000;
/// Passages of one base from which on it takes no more documents: their words' statistics are kept in memory.
pub const MAX_SEARCHED: i64 = 200_000;
/// Passages that one statement removes: no other write waits longer than for so many.
const REMOVE_BATCH: i64 = 500;

#[derive(Clone, Debug, PartialEq, FromRow, Serialize, ToSchema)]
pub struct BaseInfo {
    pub id: Uuid,
    pub name: String,
    /// Of its documents, where their letters do not tell.
    pub language: String,
    pub documents: i64,
    /// Passages that are searched.
    pub passages: i64,
    /// Those of them that are also found by meaning.
    pub vectors: i64,
    pub created_at: At,
    pub updated_at: At,
}

#[derive(Clone, Debug, PartialEq, FromRow, Serialize, ToSchema)]
pub struct DocumentInfo {
    pub id: Uuid,
    pub base_id: Uuid,
    pub name: String,
    pub state: DocumentState,
    /// Why it failed, or what it lacks.
    pub error: Option<String>,
    /// Of the passages that are searched; 0: none yet.
    pub version: i64,
    pub passages: i64,
    pub vectors: i64,
    /// Size of the file.
    pub bytes: i64,
    /// Of the file, in hexadecimal digits.
    pub sha256: String,
    pub created_at: At,
    pub updated_at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DocumentState {
    /// Its passages are being made; those of its version before are searched meanwhile.
    Indexing,
    Ready,
    /// It could not be indexed; index the base again.
    Failed,
}

impl DocumentState {
    const ALL: [DocumentState; 3] = [DocumentState::Indexing, DocumentState::Ready, DocumentState::Failed];

    pub fn label(self) -> &'static str {
        match self {
            DocumentState::Indexing => "indexing",
            DocumentState::Ready => "ready",
            DocumentState::Failed => "failed",
        }
    }
}

labelled!(DocumentState, DocumentState::ALL);

/// What became of a new base.
#[derive(Clone, Debug, PartialEq)]
pub enum NewBase {
    Made(BaseInfo),
    /// The company has [`MAX_BASES`].
    TooMany,
}

impl Store {
    pub async fn knowledge_bases(&self, company: Uuid, part: Part) -> Result<Page<BaseInfo>, StoreError> {
        let rows = self
            .db
            .all(
                "SELECT b.id, b.name, b.language, CAST(COUNT(d.id) AS BIGINT) AS documents,
                        CAST(COALESCE(SUM(d.passages), 0) AS BIGINT) AS passages,
                        CAST(COALESCE(SUM(d.vectors), 0) AS BIGINT) AS vectors, b.created_at, b.updated_at
                 FROM knowledge_base b LEFT JOIN knowledge_document d ON d.base_id = b.id
                 WHERE b.company_id = $1 AND b.id < $2
                 GROUP BY b.id, b.name, b.language, b.created_at, b.updated_at ORDER BY b.id DESC LIMIT $3",
                args![company, part.below(), part.fetch()],
            )
            .await?;
        Ok(part.page(rows, |base: &BaseInfo| base.id))
    }

    pub async fn knowledge_base(&self, company: Uuid, id: Uuid) -> Result<Option<BaseInfo>, StoreError> {
        self.db
            .first(
                "SELECT b.id, b.name, b.language, CAST(COUNT(d.id) AS BIGINT) AS documents,
                        CAST(COALESCE(SUM(d.passages), 0) AS BIGINT) AS passages,
                        CAST(COALESCE(SUM(d.vectors), 0) AS BIGINT) AS vectors, b.created_at, b.updated_at
                 FROM knowledge_base b LEFT JOIN knowledge_document d ON d.base_id = b.id
                 WHERE b.company_id = $1 AND b.id = $2
                 GROUP BY b.id, b.name, b.language, b.created_at, b.updated_at",
                args![company, id],
            )
            .await
    }

    /// A duplicate name within the company is an error (`StoreError::is_duplicate`).
    pub async fn add_knowledge_base(&self, company: Uuid, name: &str, language: &str) -> Result<NewBase, StoreError> {
        let id = Uuid::now_v7();
        let mut tx = self.change().await?;
        let there: Option<(i64,)> =
            tx.first("SELECT COUNT(*) FROM knowledge_base WHERE company_id = $1", args![company]).await?;
        if there.is_some_and(|(there,)| there >= MAX_BASES) {
            return Ok(NewBase::TooMany);
        }
        tx.execute(
            "INSERT INTO knowledge_base (id, company_id, name, language, revision, created_at, updated_at)
             VALUES ($1, $2, $3, $4, 1, $5, $5)",
            args![id, company, name, language, At::now()],
        )
        .await?;
        tx.commit().await?;
        let base = self.knowledge_base(company, id).await?;
        base.map(NewBase::Made).ok_or_else(|| StoreError::Corrupt {
            what: format!("knowledge base {name:?}"),
            detail: "it was removed while it was made".into(),
        })
    }

    /// With its documents; `false`: the company has no such base.
    pub async fn remove_knowledge_base(&self, company: Uuid, id: Uuid) -> Result<bool, StoreError> {
        if self.knowledge_base(company, id).await?.is_none() {
            return Ok(false);
        }
        self.forget_passages(
            "DELETE FROM knowledge_passage WHERE id IN (SELECT id FROM knowledge_passage WHERE base_id = $1 LIMIT $2)",
            id,
        )
        .await?;
        let mut tx = self.change().await?;
        let gone =
            tx.execute("DELETE FROM knowledge_base WHERE company_id = $1 AND id = $2", args![company, id]).await?;
        tx.commit().await?;
        Ok(gone > 0)
    }

    /// `None`: the company has no such base.
    pub async fn documents(
        &self,
        company: Uuid,
        base: Uuid,
        part: Part,
    ) -> Result<Option<Page<DocumentInfo>>, StoreError> {
        if self.knowledge_base(company, base).await?.is_none() {
            return Ok(None);
        }
        let rows = self
            .db
            .all(
                "SELECT id, base_id, name, state, error, version, passages, vectors, bytes, sha256, created_at, updated_at
                 FROM knowledge_document WHERE base_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3",
                args![base, part.below(), part.fetch()],
            )
            .await?;
        Ok(Some(part.page(rows, |document: &DocumentInfo| document.id)))
    }

    pub async fn document(&self, company: Uuid, base: Uuid, id: Uuid) -> Result<Option<DocumentInfo>, StoreError> {
        self.db
            .first(
                "SELECT d.id, d.base_id, d.name, d.state, d.error, d.version, d.passages, d.vectors, d.bytes, d.sha256,
                        d.created_at, d.updated_at
                 FROM knowledge_document d JOIN knowledge_base b ON b.id = d.base_id
                 WHERE b.company_id = $1 AND b.id = $2 AND d.id = $3",
                args![company, base, id],
            )
            .await
    }

    /// `false`: the base has no such document, or the company no such base.
    pub async fn remove_document(&self, company: Uuid, base: Uuid, id: Uuid) -> Result<bool, StoreError> {
        if self.document(company, base, id).await?.is_none() {
            return Ok(false);
        }
        // No passage of it is found from here on.
        let mut tx = self.db.write().await?;
        tx.execute("UPDATE knowledge_document SET version = -1 WHERE id = $1", args![id]).await?;
        tx.execute(
            "UPDATE knowledge_base SET revision = revision + 1, updated_at = $2 WHERE id = $1",
            args![base, At::now()],
        )
        .await?;
        tx.commit().await?;
        self.forget_passages(
            "DELETE FROM knowledge_passage
             WHERE id IN (SELECT id FROM knowledge_passage WHERE document_id = $1 LIMIT $2)",
            id,
        )
        .await?;
        Ok(self.db.execute("DELETE FROM knowledge_document WHERE id = $1", args![id]).await? > 0)
    }

    /// A removal in pieces, so that no other write waits long for it.
    async fn forget_passages(&self, sql: &'static str, id: Uuid) -> Result<(), StoreError> {
        while self.db.execute(sql, args![id, REMOVE_BATCH]).await? >= REMOVE_BATCH as u64 {}
        Ok(())
    }
}
