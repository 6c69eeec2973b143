//! The last calls and messages of a company with a number: what its agents remember.

use std::cmp::Reverse;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use sqlx::FromRow;
use uuid::Uuid;

use crate::agent::contacts::{Contact, Contacts, Medium};
use crate::agent::outcome::Analysis;
use crate::providers::provider::CallOutcome;
use crate::store::db::{At, Json, args};
use crate::store::{Store, StoreError};
use crate::telephony::{CallId, Direction, PhoneNumber};

#[derive(FromRow)]
struct CallRow {
    direction: Direction,
    started_at: At,
    outcome: CallOutcome,
    analysis: Option<Json<Analysis>>,
}

#[derive(FromRow)]
struct MessageRow {
    direction: Direction,
    text: String,
    status: String,
    created_at: At,
}

impl From<CallRow> for Contact {
    fn from(row: CallRow) -> Self {
        let analysis = row.analysis.map(|analysis| analysis.0);
        let outcome = analysis.as_ref().map_or(row.outcome.label(), |analysis| analysis.outcome.label());
        Self {
            at: row.started_at.0,
            direction: row.direction,
            what: Medium::Call,
            outcome: outcome.to_owned(),
            text: analysis.map(|analysis| analysis.summary).unwrap_or_default(),
        }
    }
}

impl From<MessageRow> for Contact {
    fn from(row: MessageRow) -> Self {
        Self {
            at: row.created_at.0,
            direction: row.direction,
            what: Medium::Message,
            outcome: row.status,
            text: row.text,
        }
    }
}

impl Store {
    /// Newest first, without the call `but`; none for a number that hides.
    pub async fn contacts(
        &self,
        company: Uuid,
        number: &PhoneNumber,
        but: CallId,
        limit: usize,
    ) -> Result<Vec<Contact>, StoreError> {
        let number = number.as_str();
        if !number.chars().any(|c| c.is_ascii_digit()) {
            return Ok(Vec::new());
        }
        let limit = limit.min(100);
        // A call each, by the index of that side.
        let inbound: Vec<CallRow> = self
            .db
            .all(
                "SELECT c.direction, c.started_at, c.outcome, o.analysis
                 FROM call c LEFT JOIN call_outcome o ON o.call_id = c.id
                 WHERE c.company_id = $1 AND c.caller = $2 AND c.id <> $3 AND c.ended_at IS NOT NULL
                     AND c.direction = 'inbound'
                 ORDER BY c.id DESC LIMIT $4",
                args![company, number, but.uuid(), limit],
            )
            .await?;
        let outbound: Vec<CallRow> = self
            .db
            .all(
                "SELECT c.direction, c.started_at, c.outcome, o.analysis
                 FROM call c LEFT JOIN call_outcome o ON o.call_id = c.id
                 WHERE c.company_id = $1 AND c.callee = $2 AND c.id <> $3 AND c.ended_at IS NOT NULL
                     AND c.direction = 'outbound'
                 ORDER BY c.id DESC LIMIT $4",
                args![company, number, but.uuid(), limit],
            )
            .await?;
        let messages: Vec<MessageRow> = self
            .db
            .all(
                "SELECT direction, text, status, created_at FROM message
                 WHERE company_id = $1 AND peer = $2 ORDER BY id DESC LIMIT $3",
                args![company, number, limit],
            )
            .await?;
        let calls = inbound.into_iter().chain(outbound).map(Contact::from);
        let mut contacts: Vec<Contact> = calls.chain(messages.into_iter().map(Contact::from)).collect();
        contacts.sort_by_key(|contact| Reverse(contact.at));
        contacts.truncate(limit);
        Ok(contacts)
    }
}

impl Contacts for Store {
    fn past(
        &self,
        company: Uuid,
        number: &PhoneNumber,
        but: CallId,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<Contact>, String>> {
        let (store, number) = (self.clone(), number.clone());
        async move { store.contacts(company, &number, but, limit).await.map_err(|fault| fault.to_string()) }.boxed()
    }
}
