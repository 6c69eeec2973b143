//! What a company's agents have used, by day (counted from 1970, UTC).

use std::ops::Add;

use serde::Serialize;
use sqlx::FromRow;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::store::db::args;
use crate::store::{Store, StoreError};

/// What engines did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Used {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub heard_ms: u64,
    pub spoken_chars: u64,
    /// Millionths of the currency that `[prices]` are in.
    pub micros: u64,
}

impl Used {
    pub fn tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }
}

impl Add for Used {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens.saturating_add(other.prompt_tokens),
            completion_tokens: self.completion_tokens.saturating_add(other.completion_tokens),
            heard_ms: self.heard_ms.saturating_add(other.heard_ms),
            spoken_chars: self.spoken_chars.saturating_add(other.spoken_chars),
            micros: self.micros.saturating_add(other.micros),
        }
    }
}

#[derive(FromRow)]
struct SpendRow {
    company_id: Uuid,
    prompt_tokens: i64,
    completion_tokens: i64,
    heard_ms: i64,
    spoken_chars: i64,
    micros: i64,
}

impl From<SpendRow> for Used {
    fn from(row: SpendRow) -> Self {
        Self {
            prompt_tokens: row.prompt_tokens.unsigned_abs(),
            completion_tokens: row.completion_tokens.unsigned_abs(),
            heard_ms: row.heard_ms.unsigned_abs(),
            spoken_chars: row.spoken_chars.unsigned_abs(),
            micros: row.micros.unsigned_abs(),
        }
    }
}

impl Store {
    /// Adds to a company's day; gives what the day has then. `None`: there is no such company.
    pub async fn add_spend(&self, company: Uuid, day: i64, used: &Used) -> Result<Option<Used>, StoreError> {
        let mut tx = self.db.write().await?;
        let row: Option<SpendRow> = tx
            .first(
                "INSERT INTO spend (company_id, day, prompt_tokens, completion_tokens, heard_ms, spoken_chars, micros)
                 SELECT id, $2, $3, $4, $5, $6, $7 FROM company WHERE id = $1
                 ON CONFLICT (company_id, day) DO UPDATE SET
                     prompt_tokens = spend.prompt_tokens + excluded.prompt_tokens,
                     completion_tokens = spend.completion_tokens + excluded.completion_tokens,
                     heard_ms = spend.heard_ms + excluded.heard_ms,
                     spoken_chars = spend.spoken_chars + excluded.spoken_chars,
                     micros = spend.micros + excluded.micros
                 RETURNING company_id, prompt_tokens, completion_tokens, heard_ms, spoken_chars, micros",
                args![
                    company,
                    day,
                    used.prompt_tokens,
                    used.completion_tokens,
                    used.heard_ms,
                    used.spoken_chars,
                    used.micros
                ],
            )
            .await?;
        tx.commit().await?;
        Ok(row.map(Used::from))
    }

    /// What all companies have used on a day. Over all companies.
    pub async fn spends(&self, day: i64) -> Result<Vec<(Uuid, Used)>, StoreError> {
        let rows: Vec<SpendRow> = self
            .db
            .all(
                "SELECT company_id, prompt_tokens, completion_tokens, heard_ms, spoken_chars, micros FROM spend
                 WHERE day = $1",
                args![day],
            )
            .await?;
        Ok(rows.into_iter().map(|row| (row.company_id, row.into())).collect())
    }
}
