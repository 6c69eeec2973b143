//! What comes after a call: the outbox of its end, and its analysis. A trigger writes the row in the transaction that
//! ends a call, so that no way of ending one can forget it; whoever works it off does so from here, at least once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::FromRow;
use uuid::Uuid;

use crate::agent::outcome::Analysis;
use crate::store::calls::{CallRecord, CallSummary};
use crate::store::db::{At, Json, args, json as column};
use crate::store::outbox::{EventKind, Listeners, emit, emit_to, listeners};
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

/// An analysis, with what its company is told of the call beside it ([`about`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    pub analysis: Analysis,
    pub about: Value,
}

/// What becomes of an analysis that is due.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// It is made; `None`: the call gets none.
    Made(Option<Made>),
    /// Something that it needs is still to come: it is due again after this, and does not count as begun.
    Later(Duration),
    /// This process makes it, and has this long.
    Taken(Duration),
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

    /// Puts the ends of calls into the outbox, each once, however many ask; all in one transaction. Gives how many
    /// deliveries that makes.
    pub async fn tell_calls_over(&self, calls: &[(Uuid, CallId)]) -> Result<usize, StoreError> {
        let companies = self.listeners(calls.iter().map(|(company, _)| *company)).await?;
        let mut told = Vec::with_capacity(calls.len());
        for (company, call) in calls {
            let listeners = &companies[company];
            let about = if listeners.is_empty() { None } else { self.about_call(*company, *call).await? };
            told.push((*company, *call, listeners, about));
        }
        let mut tx = self.db.write().await?;
        let mut deliveries = 0;
        for (company, call, listeners, about) in told {
            let first = tx
                .execute(
                    "UPDATE call_outcome SET told_at = $2 WHERE call_id = $1 AND told_at IS NULL",
                    args![call.uuid(), At::now()],
                )
                .await?;
            if let (Some(about), true) = (about, first > 0) {
                deliveries += emit_to(&mut tx, listeners, company, EventKind::CallEnded, call.uuid(), about).await?;
            }
        }
        tx.commit().await?;
        Ok(deliveries)
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

    /// Writes what becomes of analyses, all in one transaction. Says of each whether it was still due: somebody else may
    /// have taken it.
    pub async fn settle_analyses(&self, steps: &[(DueAnalysis, Next)]) -> Result<Vec<bool>, StoreError> {
        let companies = self.listeners(steps.iter().map(|(due, _)| due.company_id)).await?;
        let (mut tx, now) = (self.db.write().await?, At::now());
        let mut settled = Vec::with_capacity(steps.len());
        for (due, next) in steps {
            let (made, next_at, begun) = match next {
                Next::Made(made) => (made.as_ref(), None, 0),
                Next::Later(wait) => (None, Some(now.as_millisecond() + millis(*wait)), 0),
                Next::Taken(lease) => (None, Some(now.as_millisecond() + millis(*lease)), 1),
            };
            let changed = tx
                .execute(
                    "UPDATE call_outcome SET next_at = $3, attempts = attempts + $4, analysis = $5, analysed_at = $6
                     WHERE call_id = $1 AND next_at = $2",
                    args![
                        due.call_id,
                        due.next_at,
                        next_at,
                        begun,
                        made.map(|made| column(&made.analysis)),
                        next_at.is_none().then_some(now)
                    ],
                )
                .await?;
            if let (Some(made), true) = (made, changed > 0) {
                let (kind, told) = (EventKind::CallAnalysed, analysed(made.about.clone(), &made.analysis));
                emit_to(&mut tx, &companies[&due.company_id], due.company_id, kind, due.call_id, told).await?;
            }
            settled.push(changed > 0);
        }
        tx.commit().await?;
        Ok(settled)
    }

    /// Writes an analysis that was taken into the record and the outbox, once.
    pub async fn put_analysis(&self, company: Uuid, call: CallId, analysis: &Analysis) -> Result<(), StoreError> {
        let about = self.about_call(company, call).await?;
        let mut tx = self.db.write().await?;
        let put = tx
            .execute(
                "UPDATE call_outcome SET analysis = $2, analysed_at = $3, next_at = NULL
                 WHERE call_id = $1 AND next_at IS NOT NULL",
                args![call.uuid(), column(analysis), At::now()],
            )
            .await?;
        if let (Some(about), true) = (about, put > 0) {
            emit(&mut tx, company, EventKind::CallAnalysed, call.uuid(), analysed(about, analysis)).await?;
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

    async fn about_call(&self, company: Uuid, call: CallId) -> Result<Option<Value>, StoreError> {
        let record = self.call(company, call).await?;
        let summary = self.call_summary(company, call).await?;
        Ok(record.zip(summary).map(|(record, summary)| about(&record, &summary)))
    }

    /// Who listens, of each of these companies.
    async fn listeners(&self, companies: impl Iterator<Item = Uuid>) -> Result<HashMap<Uuid, Listeners>, StoreError> {
        let mut found = HashMap::new();
        for company in companies {
            if let Entry::Vacant(place) = found.entry(company) {
                place.insert(listeners(&self.db, company).await?);
            }
        }
        Ok(found)
    }
}

fn analysed(mut about: Value, analysis: &Analysis) -> Value {
    about["analysis"] = json!(analysis);
    about
}

/// What a company is told of a call. Its transcript and recording are asked for by its id.
pub fn about(record: &CallRecord, summary: &CallSummary) -> Value {
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
