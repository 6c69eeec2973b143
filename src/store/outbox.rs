//! What companies are told: events, written in the transaction of what they tell of, and their deliveries to each
//! endpoint, which wait here until they have arrived or are given up. A delivery that is given up is a dead letter, and
//! stays for a person to replay.

use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::FromRow;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::store::db::{At, Db, Json, Page, Part, Tx, args, labelled};
use crate::store::endpoints::{SecretRow, open_secrets};
use crate::store::outcomes::millis;
use crate::store::{Store, StoreError};

/// What an endpoint can be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum EventKind {
    /// A call is over; its record is whole.
    #[serde(rename = "call.ended")]
    CallEnded,
    /// A call has its analysis: summary, outcome, slots, sentiment, follow-ups.
    #[serde(rename = "call.analysed")]
    CallAnalysed,
    /// A text message came in.
    #[serde(rename = "message.received")]
    MessageReceived,
}

impl EventKind {
    pub const ALL: [EventKind; 3] = [EventKind::CallEnded, EventKind::CallAnalysed, EventKind::MessageReceived];

    pub const fn label(self) -> &'static str {
        match self {
            EventKind::CallEnded => "call.ended",
            EventKind::CallAnalysed => "call.analysed",
            EventKind::MessageReceived => "message.received",
        }
    }
}

/// Where a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It is tried, again and again.
    Waiting,
    Delivered,
    /// Given up: it is sent again when somebody asks for it.
    Dead,
}

impl DeliveryState {
    pub const ALL: [DeliveryState; 3] = [DeliveryState::Waiting, DeliveryState::Delivered, DeliveryState::Dead];

    pub const fn label(self) -> &'static str {
        match self {
            DeliveryState::Waiting => "waiting",
            DeliveryState::Delivered => "delivered",
            DeliveryState::Dead => "dead",
        }
    }
}

labelled!(EventKind, EventKind::ALL);
labelled!(DeliveryState, DeliveryState::ALL);

/// An event on its way to an endpoint.
#[derive(Clone, Debug, PartialEq, FromRow, Serialize, ToSchema)]
pub struct Delivery {
    pub id: Uuid,
    /// As the endpoint knows it (`webhook-id`): the same however often it is sent.
    pub event_id: Uuid,
    #[serde(rename = "type")]
    #[sqlx(rename = "type")]
    pub kind: EventKind,
    /// The call or message.
    pub subject: Uuid,
    pub state: DeliveryState,
    pub attempts: i64,
    /// When a waiting one is tried again.
    pub next_at: At,
    /// What the endpoint answered last.
    pub status: Option<i64>,
    /// The beginning of its answer.
    pub answer: Option<String>,
    /// Why there was no answer, or why it was no good.
    pub error: Option<String>,
    #[schema(value_type = Object)]
    pub body: Json<Value>,
    pub created_at: At,
    pub updated_at: At,
}

/// A delivery whose time has come.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct DueDelivery {
    pub id: Uuid,
    next_at: i64,
}

/// What is sent, to whom, and what it is signed with.
#[derive(Clone, Debug)]
pub struct Parcel {
    pub delivery: Uuid,
    pub event: Uuid,
    pub company: Uuid,
    pub endpoint: Uuid,
    pub name: String,
    pub url: String,
    pub body: String,
    /// The newest first; more than one while the secret changes.
    pub secrets: Vec<SecretString>,
    /// This one included.
    pub attempts: u32,
}

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Delivered,
    /// It is tried again after this.
    Again(Duration),
    Dead,
    /// The endpoint is gone: it is switched off, and what waits for it is given up.
    Gone,
}

/// How an endpoint took an attempt; holds no secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Took {
    pub status: Option<u16>,
    pub answer: Option<String>,
    pub error: Option<String>,
}

/// What stands at deliveries that were not tried because their endpoint was switched off.
pub const SWITCHED_OFF: &str = "the endpoint was switched off";

#[derive(FromRow)]
struct ParcelRow {
    event_id: Uuid,
    company_id: Uuid,
    endpoint_id: Uuid,
    name: String,
    url: String,
    body: String,
    attempts: i64,
    secret: Vec<u8>,
    old_secret: Option<Vec<u8>>,
    old_until: Option<i64>,
}

/// Endpoints of a company that are switched on, and what they want to know.
pub(super) type Listeners = Vec<(Uuid, Json<Vec<EventKind>>)>;

const LISTENERS: &str = "SELECT id, events FROM webhook_endpoint WHERE company_id = $1 AND enabled = 1 ORDER BY id";

pub(super) async fn listeners(db: &Db, company: Uuid) -> Result<Listeners, StoreError> {
    db.all(LISTENERS, args![company]).await
}

/// Writes an event for every endpoint of the company that wants to know, in the transaction of what it tells of. Gives how
/// many there are; where there is none, nothing is written.
pub(super) async fn emit(
    tx: &mut Tx,
    company: Uuid,
    kind: EventKind,
    subject: Uuid,
    data: Value,
) -> Result<usize, StoreError> {
    let listeners: Listeners = tx.all(LISTENERS, args![company]).await?;
    emit_to(tx, &listeners, company, kind, subject, data).await
}

/// The same, to endpoints that were looked up before.
pub(super) async fn emit_to(
    tx: &mut Tx,
    listeners: &Listeners,
    company: Uuid,
    kind: EventKind,
    subject: Uuid,
    data: Value,
) -> Result<usize, StoreError> {
    let wanted: Vec<Uuid> = listeners.iter().filter(|(_, events)| events.contains(&kind)).map(|(id, _)| *id).collect();
    if wanted.is_empty() {
        return Ok(0);
    }
    let (event, now) = (Uuid::now_v7(), At::now());
    let body = json!({ "id": event, "type": kind, "timestamp": now, "data": data }).to_string();
    tx.execute(
        "INSERT INTO webhook_event (id, company_id, type, subject, body, created_at) VALUES ($1, $2, $3, $4, $5, $6)",
        args![event, company, kind, subject, body, now],
    )
    .await?;
    for endpoint in &wanted {
        tx.execute(
            "INSERT INTO webhook_delivery (id, endpoint_id, event_id, subject, state, attempts, next_at, created_at,
                 updated_at)
             VALUES ($1, $2, $3, $4, 'waiting', 0, $5, $5, $5)",
            args![Uuid::now_v7(), *endpoint, event, subject, now],
        )
        .await?;
    }
    Ok(wanted.len())
}

/// Gives up what waits for an endpoint that is switched off.
pub(super) async fn give_up_waiting(tx: &mut Tx, endpoint: Uuid) -> Result<u64, StoreError> {
    tx.execute(
        "UPDATE webhook_delivery SET state = 'dead', error = $2, updated_at = $3
         WHERE endpoint_id = $1 AND state = 'waiting'",
        args![endpoint, SWITCHED_OFF, At::now()],
    )
    .await
}

impl Store {
    /// Endpoints (company, id) for which something is due. Over all companies.
    pub async fn due_endpoints(&self) -> Result<Vec<(Uuid, Uuid)>, StoreError> {
        self.db
            .all(
                "SELECT e.company_id, e.id FROM webhook_endpoint e WHERE e.enabled = 1 AND EXISTS (
                     SELECT 1 FROM webhook_delivery d
                     WHERE d.endpoint_id = e.id AND d.state = 'waiting' AND d.next_at <= $1)
                 ORDER BY e.id LIMIT 10000",
                args![At::now()],
            )
            .await
    }

    /// What is due at an endpoint, the oldest first; of one call's or message's events, only the first that waits.
    pub async fn due_deliveries(&self, endpoint: Uuid, limit: usize) -> Result<Vec<DueDelivery>, StoreError> {
        self.db
            .all(
                "SELECT d.id, d.next_at FROM webhook_delivery d
                 WHERE d.endpoint_id = $1 AND d.state = 'waiting' AND d.next_at <= $2 AND NOT EXISTS (
                     SELECT 1 FROM webhook_delivery f WHERE f.endpoint_id = d.endpoint_id AND f.subject = d.subject
                         AND f.state = 'waiting' AND f.id < d.id)
                 ORDER BY d.next_at, d.id LIMIT $3",
                args![endpoint, At::now(), limit.min(1000)],
            )
            .await
    }

    /// Takes a delivery for as long as `lease`. `None`: somebody else has it.
    pub async fn claim_delivery(&self, due: &DueDelivery, lease: Duration) -> Result<Option<Parcel>, StoreError> {
        let claimed = self
            .db
            .execute(
                "UPDATE webhook_delivery SET next_at = $3, attempts = attempts + 1
                 WHERE id = $1 AND state = 'waiting' AND next_at = $2",
                args![due.id, due.next_at, At::now().as_millisecond() + millis(lease)],
            )
            .await?;
        if claimed == 0 {
            return Ok(None);
        }
        let row: Option<ParcelRow> = self
            .db
            .first(
                "SELECT d.event_id, e.company_id, d.endpoint_id, e.name, e.url, v.body, d.attempts, e.secret,
                     e.old_secret, e.old_until
                 FROM webhook_delivery d JOIN webhook_endpoint e ON e.id = d.endpoint_id
                     JOIN webhook_event v ON v.id = d.event_id
                 WHERE d.id = $1",
                args![due.id],
            )
            .await?;
        let Some(row) = row else { return Ok(None) };
        let sealed = SecretRow { secret: row.secret, old_secret: row.old_secret, old_until: row.old_until };
        let secrets = open_secrets(&self.sealer(), row.company_id, row.endpoint_id, &sealed, At::now())?;
        Ok(Some(Parcel {
            delivery: due.id,
            event: row.event_id,
            company: row.company_id,
            endpoint: row.endpoint_id,
            name: row.name,
            url: row.url,
            body: row.body,
            secrets,
            attempts: u32::try_from(row.attempts).unwrap_or(u32::MAX),
        }))
    }

    /// Notes what came of an attempt.
    pub async fn note_delivery(&self, parcel: &Parcel, took: &Took, next: Next) -> Result<(), StoreError> {
        let now = At::now();
        let (state, next_at) = match next {
            Next::Delivered => (DeliveryState::Delivered, now.as_millisecond()),
            Next::Again(wait) => (DeliveryState::Waiting, now.as_millisecond() + millis(wait)),
            Next::Dead | Next::Gone => (DeliveryState::Dead, now.as_millisecond()),
        };
        let sql = "UPDATE webhook_delivery SET state = $2, next_at = $3, status = $4, answer = $5, error = $6, updated_at = $7
             WHERE id = $1 AND state = 'waiting'";
        let values = args![
            parcel.delivery,
            state,
            next_at,
            took.status.map(i64::from),
            took.answer.as_deref(),
            took.error.as_deref(),
            now
        ];
        if next != Next::Gone {
            return self.db.execute(sql, values).await.map(|_| ());
        }
        let mut tx = self.db.write().await?;
        tx.execute(sql, values).await?;
        tx.execute(
            "UPDATE webhook_endpoint SET enabled = 0, disabled_reason = 'it answered 410 Gone', updated_at = $2
             WHERE id = $1",
            args![parcel.endpoint, now],
        )
        .await?;
        give_up_waiting(&mut tx, parcel.endpoint).await?;
        tx.commit().await
    }

    /// Newest first.
    pub async fn deliveries(
        &self,
        company: Uuid,
        endpoint: Uuid,
        state: Option<DeliveryState>,
        part: Part,
    ) -> Result<Page<Delivery>, StoreError> {
        let rows = self
            .db
            .all(
                "SELECT d.id, d.event_id, v.type, d.subject, d.state, d.attempts, d.next_at, d.status, d.answer,
                     d.error, v.body, d.created_at, d.updated_at
                 FROM webhook_delivery d JOIN webhook_event v ON v.id = d.event_id
                 WHERE v.company_id = $1 AND d.endpoint_id = $2 AND d.id < $3 AND ($4 IS NULL OR d.state = $4)
                 ORDER BY d.id DESC LIMIT $5",
                args![company, endpoint, part.below(), state.map(DeliveryState::label), part.fetch()],
            )
            .await?;
        Ok(part.page(rows, |delivery: &Delivery| delivery.id))
    }

    /// Sends a delivery again, whether it arrived or was given up. `false`: there is none, or it waits already.
    pub async fn replay(&self, company: Uuid, endpoint: Uuid, delivery: Uuid) -> Result<bool, StoreError> {
        let again = self
            .db
            .execute(
                "UPDATE webhook_delivery SET state = 'waiting', attempts = 0, next_at = $4, updated_at = $4
                 WHERE id = $3 AND endpoint_id = $2 AND state <> 'waiting' AND EXISTS (
                     SELECT 1 FROM webhook_endpoint e WHERE e.id = $2 AND e.company_id = $1)",
                args![company, endpoint, delivery, At::now()],
            )
            .await?;
        Ok(again > 0)
    }

    /// Sends every dead letter since then again; gives how many there are.
    pub async fn replay_since(&self, company: Uuid, endpoint: Uuid, since: At) -> Result<u64, StoreError> {
        self.db
            .execute(
                "UPDATE webhook_delivery SET state = 'waiting', attempts = 0, next_at = $4, updated_at = $4
                 WHERE endpoint_id = $2 AND state = 'dead' AND created_at >= $3 AND EXISTS (
                     SELECT 1 FROM webhook_endpoint e WHERE e.id = $2 AND e.company_id = $1)",
                args![company, endpoint, since, At::now()],
            )
            .await
    }

    /// Drops what arrived before `arrived`, dead letters older than `dead`, and events that nothing is left of. Over all
    /// companies.
    pub async fn forget_deliveries(&self, arrived: At, dead: At) -> Result<u64, StoreError> {
        let mut tx = self.db.write().await?;
        let gone = tx
            .execute(
                "DELETE FROM webhook_delivery WHERE (state = 'delivered' AND updated_at < $1)
                     OR (state = 'dead' AND updated_at < $2)",
                args![arrived, dead],
            )
            .await?;
        tx.execute(
            "DELETE FROM webhook_event WHERE created_at < $1
                 AND NOT EXISTS (SELECT 1 FROM webhook_delivery d WHERE d.event_id = webhook_event.id)",
            args![arrived],
        )
        .await?;
        tx.commit().await?;
        Ok(gone)
    }
}
