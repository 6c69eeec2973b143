//! Who did what, and what was refused; and the answers given to requests that may come twice.

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::FromRow;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::store::db::{At, Json, Page, Part, args, json};
use crate::store::{Store, StoreError};

/// One entry. Holds no secret.
#[derive(Clone, Debug, PartialEq, FromRow, Serialize, ToSchema)]
pub struct AuditEntry {
    pub id: Uuid,
    pub at: At,
    /// `user anna@acme.example`, `key ohk_Ab12Cd`, `provider twilio`, `cli`, or an address.
    pub actor: String,
    /// `integration.verified`, `webhook.refused`, …
    pub action: String,
    /// What it was done to.
    pub object: String,
    #[schema(value_type = Value)]
    pub detail: Json<Value>,
}

/// What is known of the first request with an idempotency key.
#[derive(Clone, Debug, PartialEq)]
pub enum Repeat {
    /// This is the first one: do it, and say what was answered.
    First,
    /// The first one is still being worked on.
    Running,
    /// It was answered so.
    Answered { status: u16, body: String },
    /// The key was used for something else.
    Different,
}

impl Store {
    /// `None` for `company`: nobody's, e.g. a webhook for an integration that is not there.
    pub async fn audit(
        &self,
        company: Option<Uuid>,
        actor: &str,
        action: &str,
        object: &str,
        detail: &Value,
    ) -> Result<(), StoreError> {
        self.db
            .execute(
                "INSERT INTO audit (id, company_id, at, actor, action, object, detail)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
                args![Uuid::now_v7(), company, At::now(), actor, action, object, json(detail)],
            )
            .await?;
        Ok(())
    }

    pub async fn audit_log(&self, company: Uuid, part: Part) -> Result<Page<AuditEntry>, StoreError> {
        let rows = self
            .db
            .all(
                "SELECT id, at, actor, action, object, detail FROM audit
                 WHERE company_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3",
                args![company, part.below(), part.fetch()],
            )
            .await?;
        Ok(part.page(rows, |entry: &AuditEntry| entry.id))
    }

    /// Takes an idempotency key for a request (method, path and body). Exactly one of any number of requests that come
    /// at once is the first.
    pub async fn begin_once(&self, company: Uuid, key: &str, request: &[u8]) -> Result<Repeat, StoreError> {
        let digest = Sha256::digest(request).to_vec();
        let mut tx = self.db.write().await?;
        let first = tx
            .execute(
                "INSERT INTO idempotency (company_id, key, request, created_at) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (company_id, key) DO NOTHING",
                args![company, key, digest.clone(), At::now()],
            )
            .await?;
        if first > 0 {
            tx.commit().await?;
            return Ok(Repeat::First);
        }
        let row: Option<(Vec<u8>, Option<i64>, Option<String>)> = tx
            .first(
                "SELECT request, status, body FROM idempotency WHERE company_id = $1 AND key = $2",
                args![company, key],
            )
            .await?;
        tx.rollback().await?;
        Ok(match row {
            Some((known, _, _)) if known != digest => Repeat::Different,
            Some((_, Some(status), body)) => {
                Repeat::Answered { status: u16::try_from(status).unwrap_or(500), body: body.unwrap_or_default() }
            }
            _ => Repeat::Running,
        })
    }

    /// What the first request was answered.
    pub async fn end_once(&self, company: Uuid, key: &str, status: u16, body: &str) -> Result<(), StoreError> {
        self.db
            .execute(
                "UPDATE idempotency SET status = $3, body = $4 WHERE company_id = $1 AND key = $2",
                args![company, key, i64::from(status), body],
            )
            .await?;
        Ok(())
    }

    /// The first request did nothing: the key may be used again.
    pub async fn forget_once(&self, company: Uuid, key: &str) -> Result<(), StoreError> {
        self.db
            .execute(
                "DELETE FROM idempotency WHERE company_id = $1 AND key = $2 AND status IS NULL",
                args![company, key],
            )
            .await?;
        Ok(())
    }

    /// Forgets answers older than this.
    pub async fn forget_answers(&self, before: At) -> Result<u64, StoreError> {
        self.db.execute("DELETE FROM idempotency WHERE created_at < $1", args![before]).await
    }
}
