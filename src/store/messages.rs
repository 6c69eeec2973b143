//! Text messages, in threads: one of our numbers and one of theirs.

use serde::Serialize;
use serde_json::json as object;
use sqlx::FromRow;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::speech::llm::Message as Spoken;
use crate::store::db::{At, Json, Page, Part, args, json};
use crate::store::outbox::{EventKind, emit};
use crate::store::{Store, StoreError};
use crate::telephony::{Direction, PhoneNumber};

#[derive(Clone, Debug, PartialEq, FromRow, Serialize, ToSchema)]
pub struct Message {
    pub id: Uuid,
    pub integration_id: Uuid,
    pub direction: Direction,
    /// Our number.
    pub line: String,
    /// Theirs.
    pub peer: String,
    pub text: String,
    /// Addresses of pictures and the like.
    #[schema(value_type = Vec<String>)]
    pub media: Json<Vec<String>>,
    pub provider_message: Option<String>,
    /// The provider's word; `received` for one that came in.
    pub status: String,
    /// The provider's error code, and what it means.
    pub error: Option<String>,
    pub created_at: At,
    pub updated_at: At,
}

/// A message of a thread, as an agent remembers it.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct Remembered {
    pub direction: Direction,
    pub text: String,
    /// What the agent said and did, where tools were used.
    pub rounds: Option<Json<Vec<Spoken>>>,
    pub created_at: At,
}

/// A message to be written down.
#[derive(Clone, Copy, Debug)]
pub struct NewMessage<'a> {
    pub company: Uuid,
    pub integration: Uuid,
    pub direction: Direction,
    pub line: &'a PhoneNumber,
    pub peer: &'a PhoneNumber,
    pub text: &'a str,
    pub media: &'a [String],
    /// Of one that came in: the same message is written down once.
    pub provider_message: Option<&'a str>,
    pub status: &'a str,
}

impl Store {
    /// `None`: the provider's message is here already.
    pub async fn add_message(&self, new: NewMessage<'_>) -> Result<Option<Uuid>, StoreError> {
        let id = Uuid::now_v7();
        let now = At::now();
        let mut tx = self.db.write().await?;
        let added = tx
            .execute(
                "INSERT INTO message (id, company_id, integration_id, direction, line, peer, text, media,
                     provider_message, status, created_at, updated_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)
                 ON CONFLICT (integration_id, provider_message) DO NOTHING",
                args![
                    id,
                    new.company,
                    new.integration,
                    new.direction,
                    new.line.as_str(),
                    new.peer.as_str(),
                    new.text,
                    json(&new.media),
                    new.provider_message,
                    new.status,
                    now
                ],
            )
            .await?;
        if added > 0 && new.direction == Direction::Inbound {
            let message = object!({
                "id": id, "integration_id": new.integration, "line": new.line, "from": new.peer, "text": new.text,
                "media": new.media, "received": now,
            });
            emit(&mut tx, new.company, EventKind::MessageReceived, id, object!({ "message": message })).await?;
        }
        tx.commit().await?;
        Ok((added > 0).then_some(id))
    }

    /// What the provider answered when it was asked to send the message.
    pub async fn note_sent(
        &self,
        company: Uuid,
        id: Uuid,
        provider_message: Option<&str>,
        line: &PhoneNumber,
        status: &str,
        error: Option<&str>,
    ) -> Result<bool, StoreError> {
        let noted = self
            .db
            .execute(
                "UPDATE message SET provider_message = COALESCE($3, provider_message), line = $4, status = $5, error = $6,
                     updated_at = $7
                 WHERE company_id = $1 AND id = $2",
                args![company, id, provider_message, line.as_str(), status, error, At::now()],
            )
            .await?;
        Ok(noted > 0)
    }

    /// The answer as its conversation holds it, tools included.
    pub async fn note_rounds(&self, company: Uuid, id: Uuid, rounds: &[Spoken]) -> Result<(), StoreError> {
        let statement = "UPDATE message SET rounds = $3 WHERE company_id = $1 AND id = $2";
        self.db.execute(statement, args![company, id, json(&rounds)]).await?;
        Ok(())
    }

    /// What became of a message, by the provider's id of it. Of two that come in the wrong order, the last word stays.
    pub async fn note_message_status(
        &self,
        company: Uuid,
        integration: Uuid,
        provider_message: &str,
        status: &str,
        error: Option<&str>,
    ) -> Result<bool, StoreError> {
        let noted = self
            .db
            .execute(
                "UPDATE message SET error = COALESCE($5, error), updated_at = $6,
                     status = CASE WHEN status IN ('delivered', 'undelivered', 'failed', 'read')
                         AND $4 IN ('accepted', 'scheduled', 'queued', 'sending', 'sent') THEN status ELSE $4 END
                 WHERE company_id = $1 AND integration_id = $2 AND provider_message = $3",
                args![company, integration, provider_message, status, error, At::now()],
            )
            .await?;
        Ok(noted > 0)
    }

    pub async fn message(&self, company: Uuid, id: Uuid) -> Result<Option<Message>, StoreError> {
        self.db
            .first(
                "SELECT id, integration_id, direction, line, peer, text, media, provider_message, status, error,
                     created_at, updated_at
                 FROM message WHERE company_id = $1 AND id = $2",
                args![company, id],
            )
            .await
    }

    /// Newest first; with `peer`, those with that number.
    pub async fn messages(&self, company: Uuid, peer: Option<&str>, part: Part) -> Result<Page<Message>, StoreError> {
        let rows = self
            .db
            .all(
                "SELECT id, integration_id, direction, line, peer, text, media, provider_message, status, error,
                     created_at, updated_at
                 FROM message WHERE company_id = $1 AND id < $2 AND ($3 IS NULL OR peer = $3)
                 ORDER BY id DESC LIMIT $4",
                args![company, part.below(), peer, part.fetch()],
            )
            .await?;
        Ok(part.page(rows, |message: &Message| message.id))
    }

    /// The last messages of one thread, oldest first: what an agent remembers of it. Of an answer that used tools, the
    /// whole answer beside its text.
    pub async fn thread(
        &self,
        company: Uuid,
        line: &PhoneNumber,
        peer: &PhoneNumber,
        limit: usize,
    ) -> Result<Vec<Remembered>, StoreError> {
        let mut rows: Vec<Remembered> = self
            .db
            .all(
                "SELECT direction, text, rounds, created_at
                 FROM message WHERE company_id = $1 AND line = $2 AND peer = $3 ORDER BY id DESC LIMIT $4",
                args![company, line.as_str(), peer.as_str(), limit.min(1000)],
            )
            .await?;
        rows.reverse();
        Ok(rows)
    }
}
