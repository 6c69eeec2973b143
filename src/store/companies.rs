//! Companies and their settings: what their agents may dial, and when.

use jiff::Timestamp;
use serde::Serialize;
use sqlx::FromRow;
use utoipa::ToSchema;
use uuid::Uuid;

pub use crate::agent::dialling::{Budget, Caps, CompanySettings, QuietHours};
use crate::store::db::{At, Json, Page, Part, args, json};
use crate::store::{Store, StoreError};

#[derive(Clone, Debug, PartialEq, FromRow, Serialize, ToSchema)]
pub struct Company {
    pub id: Uuid,
    pub name: String,
    #[schema(value_type = CompanySettings)]
    pub settings: Json<CompanySettings>,
    pub created_at: At,
}

impl Store {
    /// Every company there is: for the administrator alone.
    pub async fn companies(&self, part: Part) -> Result<Page<Company>, StoreError> {
        let rows = self
            .db
            .all(
                "SELECT id, name, settings, created_at FROM company WHERE id < $1 ORDER BY id DESC LIMIT $2",
                args![part.below(), part.fetch()],
            )
            .await?;
        Ok(part.page(rows, |company: &Company| company.id))
    }

    pub async fn company(&self, id: Uuid) -> Result<Option<Company>, StoreError> {
        self.db.first("SELECT id, name, settings, created_at FROM company WHERE id = $1", args![id]).await
    }

    /// By its name: names are unique.
    pub async fn company_named(&self, name: &str) -> Result<Option<Company>, StoreError> {
        self.db.first("SELECT id, name, settings, created_at FROM company WHERE name = $1", args![name]).await
    }

    /// A duplicate name is an error (`StoreError::is_duplicate`).
    pub async fn add_company(&self, name: &str, settings: &CompanySettings) -> Result<Company, StoreError> {
        let company = Company {
            id: Uuid::now_v7(),
            name: name.to_owned(),
            settings: Json(settings.clone()),
            created_at: At::now(),
        };
        let mut tx = self.change().await?;
        tx.execute(
            "INSERT INTO company (id, name, settings, created_at, updated_at) VALUES ($1, $2, $3, $4, $4)",
            args![company.id, name, json(settings), company.created_at],
        )
        .await?;
        tx.commit().await?;
        Ok(company)
    }

    /// `false`: there is no such company.
    pub async fn update_company(&self, id: Uuid, name: &str, settings: &CompanySettings) -> Result<bool, StoreError> {
        let mut tx = self.change().await?;
        let found = tx
            .execute(
                "UPDATE company SET name = $2, settings = $3, updated_at = $4 WHERE id = $1",
                args![id, name, json(settings), At::now()],
            )
            .await?;
        tx.commit().await?;
        Ok(found > 0)
    }

    /// Calls that were dialled for a company since then; with `number`, those to it.
    pub async fn calls_placed(&self, company: Uuid, number: Option<&str>, since: Timestamp) -> Result<u64, StoreError> {
        self.count(
            "SELECT COUNT(*) FROM call WHERE company_id = $1 AND direction = 'outbound' AND started_at >= $3
             AND ($2 IS NULL OR callee = $2)",
            args![company, number, since],
        )
        .await
    }

    /// Messages that were sent for a company since then; with `number`, those to it.
    pub async fn messages_placed(
        &self,
        company: Uuid,
        number: Option<&str>,
        since: Timestamp,
    ) -> Result<u64, StoreError> {
        self.count(
            "SELECT COUNT(*) FROM message WHERE company_id = $1 AND direction = 'outbound' AND created_at >= $3
             AND ($2 IS NULL OR peer = $2)",
            args![company, number, since],
        )
        .await
    }

    async fn count(&self, sql: &'static str, values: Vec<crate::store::db::Arg>) -> Result<u64, StoreError> {
        let row: Option<(i64,)> = self.db.first(sql, values).await?;
        Ok(row.map_or(0, |(count,)| count.unsigned_abs()))
    }
}
