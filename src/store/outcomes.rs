//! What comes after a call: the outbox of its end, and its analysis. A trigger writes the row in the transaction that
//! ends a call, so that no way of ending one can forget it; whoever works it off does so from here, at least once.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::FromRow;
use uuid::Uuid;

use crate::agent::outcome::Analysis;
use crate::store::calls::{CallRecord, CallSummary};
use crate::store::db::{At, Json, args, json as column};
use crate::store::outbox::{EventKind, emit};
use crate::store::{Store, StoreError};
use crate::telephony::CallId;

/// A call whose analysis is due.
#[derive(Clone, Debug, PartialEq, FromRow)]
pub struct DueAnalysis {
    pub call_id: Uuid,
    pub company_id: Uuid,
    /// How often it was begun before.
    pub attempts: i64,
    next_at: i64,
}

impl Store {
    /// Calls that are over and whose end is not in the outbox yet.
    pub async fn untold_calls(&self, limit: usize) -> Result<Vec<(Uuid, CallId)>, StoreError> {
        let rows: Vec<(Uuid, Uuid)> = self
            .db
            .all(
                "SELECT company_id, call_id FROM call_outcome WHERE told_at IS NULL ORDER BY call_id LIMIT $1",
                args![limit.min(1000)],
            )
            .await?;
        Ok(rows.into_iter().map(|(company, call)| (company, call.into())).collect())
    }

    /// Puts the end of a call into the outbox, once, however many ask. Gives to how many endpoints it goes.
    pub async fn tell_call_over(&self, company: Uuid, call: CallId) -> Result<usize, StoreError> {
        let data = self.call_data(company, call).await?;
        let mut tx = self.db.write().await?;
        let first = tx
            .execute(
                "UPDATE call_outcome SET told_at = $2 WHERE call_id = $1 AND told_at IS NULL",
                args![call.uuid(), At::now()],
            )
            .await?;
        let endpoints = match data {
            Some(data) if first > 0 => emit(&mut tx, company, EventKind::CallEnded, call.uuid(), data).await?,
            _ => 0,
        };
        tx.commit().await?;
        Ok(endpoints)
    }

    /// The oldest first.
    pub async fn due_analyses(&self, limit: usize) -> Result<Vec<DueAnalysis>, StoreError> {
        self.db
            .all(
                "SELECT call_id, company_id, attempts, next_at FROM call_outcome
                 WHERE next_at IS NOT NULL AND next_at <= $1 AND told_at IS NOT NULL
                 ORDER BY next_at, call_id LIMIT $2",
                args![At::now(), limit.min(1000)],
            )
            .await
    }

    /// Takes an analysis for as long as `lease`. `false`: somebody else has it.
    pub async fn claim_analysis(&self, due: &DueAnalysis, lease: Duration) -> Result<bool, StoreError> {
        let claimed = self
            .db
            .execute(
                "UPDATE call_outcome SET next_at = $3, attempts = attempts + 1 WHERE call_id = $1 AND next_at = $2",
                args![due.call_id, due.next_at, At::now().as_millisecond() + millis(lease)],
            )
            .await?;
        Ok(claimed > 0)
    }

    /// Writes an analysis into the record and the outbox, once. `None`: the call gets none.
    pub async fn put_analysis(
        &self,
        company: Uuid,
        call: CallId,
        analysis: Option<&Analysis>,
    ) -> Result<(), StoreError> {
        let data = match analysis {
            Some(analysis) => self.call_data(company, call).await?.map(|mut data| {
                data["analysis"] = json!(analysis);
                data
            }),
            None => None,
        };
        let mut tx = self.db.write().await?;
        let put = tx
            .execute(
                "UPDATE call_outcome SET analysis = $2, analysed_at = $3, next_at = NULL
                 WHERE call_id = $1 AND next_at IS NOT NULL",
                args![call.uuid(), analysis.map(column), At::now()],
            )
            .await?;
        if let (Some(data), true) = (data, put > 0) {
            emit(&mut tx, company, EventKind::CallAnalysed, call.uuid(), data).await?;
        }
        tx.commit().await
    }

    /// `None`: there is none, or not yet.
    pub async fn analysis(&self, company: Uuid, call: CallId) -> Result<Option<Analysis>, StoreError> {
        let row: Option<(Option<Json<Analysis>>,)> = self
            .db
            .first(
                "SELECT analysis FROM call_outcome WHERE company_id = $1 AND call_id = $2",
                args![company, call.uuid()],
            )
            .await?;
        Ok(row.and_then(|(analysis,)| analysis).map(|analysis| analysis.0))
    }

    async fn call_data(&self, company: Uuid, call: CallId) -> Result<Option<Value>, StoreError> {
        let record = self.call(company, call).await?;
        let summary = self.call_summary(company, call).await?;
        Ok(record.zip(summary).map(|(record, summary)| data(&record, &summary)))
    }
}

/// What a company is told of a call. Its transcript and recording are asked for by its id.
fn data(record: &CallRecord, summary: &CallSummary) -> Value {
    let talk_s = record.answered.zip(record.ended).map(|(from, to)| to.duration_since(from).as_secs().max(0));
    json!({
        "company": { "id": record.company_id, "name": record.company },
        "call": {
            "id": record.id,
            "integration_id": record.integration_id,
            "provider": record.provider,
            "provider_call": record.provider_call,
            "direction": record.direction,
            "line": record.line,
            "from": record.from,
            "to": record.to,
            "agent": record.agent,
            "agent_id": record.agent_id,
            "agent_version": record.agent_version,
            "purpose": record.purpose,
            "vars": record.vars,
            "started": record.started,
            "answered": record.answered,
            "ended": record.ended,
            "talk_s": summary.talk_s.or(talk_s),
            "outcome": summary.outcome,
            "end": record.end,
            "handover": record.handover,
            "remembered": record.remembered,
            "turns": record.transcript.lines.len(),
            "recorded": record.recorded,
        },
    })
}

pub(super) fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX / 4)
}
