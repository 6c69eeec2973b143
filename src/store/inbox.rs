//! The webhook inbox: an event that was believed is written here before it acts, once, however often its provider delivers
//! it; what could not be done is tried again.

use std::time::Duration;

use sqlx::FromRow;
use uuid::Uuid;

use crate::store::db::{At, Tx, args};
use crate::store::{Store, StoreError};

/// A webhook as it came in.
#[derive(Clone, Copy, Debug)]
pub struct NewEvent<'a> {
    pub company: Uuid,
    pub integration: Uuid,
    /// The same for every delivery of the same thing; `None`: each delivery is a thing of its own.
    pub once: Option<&'a str>,
    pub route: &'a str,
    pub method: &'a str,
    /// Absolute, with its query; of a secret path, without the secret.
    pub url: &'a str,
    pub content_type: Option<&'a str>,
    pub body: &'a [u8],
}

/// An event that has not acted yet.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct Event {
    pub id: Uuid,
    pub company_id: Uuid,
    pub integration_id: Uuid,
    pub route: String,
    pub method: String,
    pub url: String,
    pub content_type: Option<String>,
    pub body: Vec<u8>,
    pub attempts: i64,
    pub received_at: At,
}

/// What became of an event that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// It is in the inbox, taken by whoever asked, who has `RETRY` to say that it is done.
    Taken(Uuid),
    /// It came before: it acts, or has acted, already.
    Again,
}

/// After so many failures an event is left as failed, for a person to look at.
const MAX_ATTEMPTS: i64 = 8;
/// First wait before another attempt; doubled each time. Also how long an event may take before it is thought lost.
const RETRY: Duration = Duration::from_secs(30);

impl Store {
    /// Writes an event down. The row is on disk when this returns; the effect comes after.
    pub async fn receive(&self, event: NewEvent<'_>) -> Result<Receipt, StoreError> {
        let id = Uuid::now_v7();
        let now = At::now();
        let taken = self
            .db
            .execute(
                "INSERT INTO inbox (id, company_id, integration_id, once_key, route, method, url, content_type, body,
                     state, attempts, next_at, received_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'waiting', 1, $10, $11)
                 ON CONFLICT (integration_id, once_key) DO NOTHING",
                args![
                    id,
                    event.company,
                    event.integration,
                    event.once,
                    event.route,
                    event.method,
                    event.url,
                    event.content_type,
                    event.body,
                    after(now, RETRY),
                    now
                ],
            )
            .await?;
        Ok(if taken > 0 { Receipt::Taken(id) } else { Receipt::Again })
    }

    /// The event has acted. Its body is dropped: what it said is where it belongs.
    pub async fn done(&self, id: Uuid) -> Result<(), StoreError> {
        self.db
            .execute(
                "UPDATE inbox SET state = 'done', done_at = $2, body = $3, error = NULL WHERE id = $1",
                args![id, At::now(), Vec::<u8>::new()],
            )
            .await?;
        Ok(())
    }

    /// The event could not act; it is tried again later, a limited number of times.
    pub async fn failed(&self, id: Uuid, error: &str) -> Result<(), StoreError> {
        let mut tx = self.db.write().await?;
        let row: Option<(i64,)> = tx.first("SELECT attempts FROM inbox WHERE id = $1", args![id]).await?;
        let attempts = row.map_or(1, |(attempts,)| attempts);
        let wait = RETRY * 2u32.saturating_pow(u32::try_from(attempts.clamp(1, 16) - 1).unwrap_or(0));
        let state = if attempts >= MAX_ATTEMPTS { "failed" } else { "waiting" };
        tx.execute(
            "UPDATE inbox SET state = $2, error = $3, next_at = $4 WHERE id = $1 AND state = 'waiting'",
            args![id, state, error, after(At::now(), wait)],
        )
        .await?;
        tx.commit().await
    }

    /// Events whose time has come (again): those that failed, and those whose process died. They are taken: nobody
    /// else gets them until their next time.
    pub async fn take_due(&self, limit: usize) -> Result<Vec<Event>, StoreError> {
        let now = At::now();
        let mut tx = self.db.write().await?;
        let due: Vec<(Uuid, i64)> = due(&mut tx, now, limit).await?;
        let mut taken = Vec::with_capacity(due.len());
        for (id, attempts) in due {
            let wait = RETRY * 2u32.saturating_pow(u32::try_from(attempts.clamp(0, 16)).unwrap_or(0));
            tx.execute(
                "UPDATE inbox SET attempts = attempts + 1, next_at = $2 WHERE id = $1",
                args![id, after(now, wait)],
            )
            .await?;
            let event: Option<Event> = tx
                .first(
                    "SELECT id, company_id, integration_id, route, method, url, content_type, body, attempts, received_at
                     FROM inbox WHERE id = $1",
                    args![id],
                )
                .await?;
            taken.extend(event);
        }
        tx.commit().await?;
        Ok(taken)
    }

    /// Forgets events that acted before then: a provider delivers the same one for a day at most.
    pub async fn forget_events(&self, before: At) -> Result<u64, StoreError> {
        self.db.execute("DELETE FROM inbox WHERE state = 'done' AND done_at < $1", args![before]).await
    }
}

/// On PostgreSQL two servers must not take the same event: one of them skips what the other has locked.
async fn due(tx: &mut Tx, now: At, limit: usize) -> Result<Vec<(Uuid, i64)>, StoreError> {
    const SQLITE: &str =
        "SELECT id, attempts FROM inbox WHERE state = 'waiting' AND next_at <= $1 ORDER BY next_at LIMIT $2";
    const POSTGRES: &str = "SELECT id, attempts FROM inbox WHERE state = 'waiting' AND next_at <= $1 ORDER BY next_at
         LIMIT $2 FOR UPDATE SKIP LOCKED";
    let sql = if tx.locks_rows() { POSTGRES } else { SQLITE };
    tx.all(sql, args![now, limit.min(1000)]).await
}

fn after(now: At, wait: Duration) -> i64 {
    now.as_millisecond().saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX))
}
