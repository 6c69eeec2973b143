//! Where the sound of a call lies: in our own folder, or at the provider.

use serde::Serialize;
use sqlx::FromRow;
use uuid::Uuid;

use crate::store::db::{At, args};
use crate::store::{Store, StoreError};
use crate::telephony::CallId;

#[derive(Clone, Debug, PartialEq, FromRow, Serialize)]
pub struct Recording {
    pub id: Uuid,
    /// `local`, or the provider's name.
    pub source: String,
    /// A path below `recording.dir`, or what the provider calls it; never a link, which would carry a token.
    pub location: String,
    pub seconds: Option<i64>,
    pub created_at: At,
}

impl Store {
    /// One of each source a call: a later one replaces it. `false`: this company has no such call.
    pub async fn add_recording(
        &self,
        company: Uuid,
        call: CallId,
        source: &str,
        location: &str,
        seconds: Option<u32>,
    ) -> Result<bool, StoreError> {
        let added = self
            .db
            .execute(
                "INSERT INTO recording (id, company_id, call_id, source, location, seconds, created_at)
                 SELECT $3, c.company_id, c.id, $4, $5, $6, $7 FROM call c WHERE c.company_id = $1 AND c.id = $2
                 ON CONFLICT (call_id, source) DO UPDATE SET location = excluded.location, seconds = excluded.seconds",
                args![company, call.uuid(), Uuid::now_v7(), source, location, seconds, At::now()],
            )
            .await?;
        Ok(added > 0)
    }

    pub async fn recordings(&self, company: Uuid, call: CallId) -> Result<Vec<Recording>, StoreError> {
        self.db
            .all(
                "SELECT id, source, location, seconds, created_at FROM recording
                 WHERE company_id = $1 AND call_id = $2 ORDER BY id",
                args![company, call.uuid()],
            )
            .await
    }
}
