//! Call records: the facts of a call with its legs, turns, tools and latencies, written as the call goes and read back by
//! company. The writing task is in `ledger.rs`.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::FromRow;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::agent::variables::Vars;
use crate::conversation::transcript::{Line, ToolUse, Transcript};
use crate::providers::provider::CallOutcome;
use crate::providers::reconcile::{KnownCall, KnownEnd};
use crate::store::db::{At, Json, Page, Part, Tx, args, json, labelled};
use crate::store::{Store, StoreError};
use crate::telephony::{CallEnd, CallId, Direction, EndReason, Party, PhoneNumber};

/// Everything known of a call; `end` is absent while it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CallRecord {
    pub id: CallId,
    pub direction: Direction,
    pub company: String,
    #[serde(default)]
    pub company_id: Uuid,
    #[serde(default)]
    pub integration_id: Uuid,
    pub provider: String,
    /// The provider's own id of the call; may be empty.
    pub provider_call: String,
    /// The line of ours that it is on.
    #[serde(default)]
    pub line: String,
    pub from: PhoneNumber,
    pub to: PhoneNumber,
    pub agent: String,
    #[serde(default)]
    pub agent_id: Option<Uuid>,
    #[serde(default)]
    pub agent_version: Option<i64>,
    /// Why we dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
    /// What whoever asked for the call gave with it.
    #[serde(default, skip_serializing_if = "Vars::is_empty")]
    #[schema(value_type = Object)]
    pub vars: Vars,
    #[schema(value_type = String, format = DateTime)]
    pub started: Timestamp,
    /// When its audio reached us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub answered: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<CallEnd>,
    #[serde(default)]
    pub legs: Vec<LegRecord>,
    pub transcript: Transcript,
    /// What the agent noted (`remember`): key → value.
    pub remembered: BTreeMap<String, Value>,
    /// The caller asked for a person, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<String>,
    pub interruptions: Interruptions,
    /// Faults that were survived, in words.
    pub faults: Vec<String>,
    /// Its sound is kept, in a folder of its id.
    #[serde(default)]
    pub recorded: bool,
}

impl CallRecord {
    /// It is over, and so are its legs.
    pub fn close(&mut self, at: Timestamp, end: CallEnd) {
        self.ended = Some(at);
        self.end = Some(end);
        for leg in &mut self.legs {
            leg.ended.get_or_insert(at);
        }
    }

    pub fn outcome(&self) -> CallOutcome {
        match (self.ended, self.answered) {
            (None, _) => CallOutcome::Running,
            (Some(_), Some(_)) => CallOutcome::Answered,
            (Some(_), None) => CallOutcome::NoAnswer,
        }
    }
}

/// One side's way into a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LegRecord {
    pub party: Party,
    /// How its audio travels: `twilio`, `sip`, …
    pub transport: String,
    pub number: PhoneNumber,
    #[schema(value_type = String, format = DateTime)]
    pub started: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended: Option<Timestamp>,
}

/// How often playout stood still for the caller's voice, and what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Interruptions {
    pub suspected: u32,
    pub confirmed: u32,
    pub denied: u32,
}

/// `provider_status` of a call that webhooks told of and the provider's log does not know.
pub const NOT_IN_LOG: &str = "not in the call log";

const ADD_NAME: &str = "INSERT INTO call_alias (integration_id, provider_call, call_id)
    SELECT $2, $3, c.id FROM call c WHERE c.company_id = $1 AND c.id = $4
    ON CONFLICT (integration_id, provider_call) DO NOTHING";

const PARTIES: [Party; 5] = [Party::Caller, Party::Agent, Party::Operator, Party::Carrier, Party::System];
const DIRECTIONS: [Direction; 2] = [Direction::Inbound, Direction::Outbound];

labelled!(Party, PARTIES);
labelled!(Direction, DIRECTIONS);
labelled!(EndReason, EndReason::ALL);
labelled!(CallOutcome, CallOutcome::ALL);

/// A call in a list.
#[derive(Clone, Debug, PartialEq, FromRow, Serialize, ToSchema)]
pub struct CallSummary {
    pub id: Uuid,
    pub integration_id: Uuid,
    pub provider: String,
    pub provider_call: String,
    pub line: String,
    pub direction: Direction,
    #[serde(rename = "from")]
    pub caller: String,
    #[serde(rename = "to")]
    pub callee: String,
    pub agent_id: Option<Uuid>,
    pub agent_version: Option<i64>,
    pub agent: String,
    pub purpose: Option<String>,
    pub started_at: At,
    pub answered_at: Option<At>,
    pub ended_at: Option<At>,
    pub end_by: Option<Party>,
    pub end_reason: Option<EndReason>,
    pub outcome: CallOutcome,
    /// The provider's own word, and its count of seconds.
    pub provider_status: Option<String>,
    pub talk_s: Option<i64>,
    pub answered_by: Option<String>,
}

/// Which calls; absent fields do not filter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CallFilter {
    /// On either side.
    pub phone: Option<String>,
    pub direction: Option<Direction>,
    pub outcome: Option<CallOutcome>,
    pub integration: Option<Uuid>,
    pub agent: Option<Uuid>,
    /// A line's number, SIP login or internal number.
    pub line: Option<String>,
    /// Begun at or after.
    pub from: Option<Timestamp>,
    /// Begun before.
    pub to: Option<Timestamp>,
}

/// What a provider told of a call; absent fields tell nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProviderNews {
    pub status: Option<String>,
    pub talk_s: Option<u32>,
    pub answered_by: Option<String>,
    /// The call is over at the provider: an open record that no process runs is closed with this.
    pub ended: Option<(At, CallOutcome)>,
}

/// What SIP and RTP know of a call; empty parts change nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SipNotes {
    /// Packets, loss, jitter, round trip, estimated quality (`protocol::rtp::stats`).
    pub quality: Option<Value>,
    /// What a transfer came to: the last status that its NOTIFYs told; where a provider connects the person, its word as
    /// SIP says it. 200: somebody answered.
    pub transfer_status: Option<u16>,
    /// The messages, oldest first.
    pub ladder: Vec<SipRung>,
}

/// A SIP message of a call, without its credentials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SipRung {
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// By us.
    pub sent: bool,
    /// `UDP/203.0.113.7:5060`.
    pub peer: String,
    pub text: String,
}

/// What is known of a call's SIP side.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct SipFacts {
    #[schema(value_type = Option<Object>)]
    pub quality: Option<Value>,
    pub transfer_status: Option<u16>,
    pub ladder: Vec<SipRung>,
}

#[derive(FromRow)]
struct SipRow {
    quality: Option<Json<Value>>,
    transfer_status: Option<i64>,
    ladder: Option<Json<Vec<SipRung>>>,
}

/// What of a record was written already: turns and tools only ever grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    pub turns: usize,
    pub tools: usize,
}

#[derive(FromRow)]
struct RecordRow {
    id: Uuid,
    company_id: Uuid,
    company: String,
    integration_id: Uuid,
    provider: String,
    provider_call: String,
    line: String,
    direction: Direction,
    caller: String,
    callee: String,
    agent_id: Option<Uuid>,
    agent_version: Option<i64>,
    agent: String,
    purpose: Option<String>,
    vars: Option<Json<Vars>>,
    started_at: At,
    answered_at: Option<At>,
    ended_at: Option<At>,
    end_by: Option<Party>,
    end_reason: Option<EndReason>,
    remembered: Json<BTreeMap<String, Value>>,
    interruptions: Json<Interruptions>,
    faults: Json<Vec<String>>,
    handover: Option<String>,
}

#[derive(FromRow)]
struct TurnRow {
    who: Party,
    text: String,
    heard: Option<String>,
    start_ms: i64,
    end_ms: i64,
    stages: Json<BTreeMap<String, f64>>,
}

#[derive(FromRow)]
struct ToolRow {
    name: String,
    arguments: Json<Value>,
    result: String,
    at_ms: i64,
}

#[derive(FromRow)]
struct LegRow {
    party: Party,
    transport: String,
    number: String,
    started_at: At,
    ended_at: Option<At>,
}

/// Brings a call's rows to what `record` says; of turns and tools, only those that `written` has not. What the provider
/// tells (`Store::note_provider`) is in columns that this leaves alone.
pub(super) async fn put_call(
    tx: &mut Tx,
    record: &CallRecord,
    node: Option<Uuid>,
    written: Written,
) -> Result<Written, StoreError> {
    let id = record.id.uuid();
    let running = record.ended.is_none();
    tx.execute(
        "INSERT INTO call (id, company_id, company, integration_id, provider, provider_call, line, direction, caller,
             callee, agent_id, agent_version, agent, purpose, started_at, answered_at, ended_at, end_by, end_reason,
             outcome, remembered, interruptions, faults, handover, node_id, seen_at, vars)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,
             $23, $24, $25, $26, $27)
         ON CONFLICT (id) DO UPDATE SET
             provider_call = CASE excluded.provider_call WHEN '' THEN call.provider_call ELSE excluded.provider_call END,
             purpose = excluded.purpose,
             answered_at = excluded.answered_at, ended_at = excluded.ended_at, end_by = excluded.end_by,
             end_reason = excluded.end_reason, remembered = excluded.remembered,
             outcome = CASE WHEN excluded.outcome = 'answered' AND call.answered_by LIKE 'machine%' THEN 'voicemail'
                 ELSE excluded.outcome END,
             interruptions = excluded.interruptions, faults = excluded.faults, handover = excluded.handover,
             node_id = excluded.node_id, seen_at = excluded.seen_at",
        args![
            id,
            record.company_id,
            &record.company,
            record.integration_id,
            &record.provider,
            &record.provider_call,
            &record.line,
            record.direction,
            record.from.as_str(),
            record.to.as_str(),
            record.agent_id,
            record.agent_version,
            &record.agent,
            record.purpose.as_deref(),
            record.started,
            record.answered,
            record.ended,
            record.end.map(|end| end.by.label()),
            record.end.map(|end| end.reason.label()),
            record.outcome(),
            json(&record.remembered),
            json(&record.interruptions),
            json(&record.faults),
            record.handover.as_deref(),
            node.filter(|_| running),
            At::now(),
            (!record.vars.is_empty()).then(|| json(&record.vars)),
        ],
    )
    .await?;
    if !record.provider_call.is_empty() {
        put_alias(tx, record.integration_id, &record.provider_call, id).await?;
    }
    for (seq, leg) in record.legs.iter().enumerate() {
        tx.execute(
            "INSERT INTO call_leg (call_id, seq, party, transport, number, started_at, ended_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (call_id, seq) DO UPDATE SET ended_at = excluded.ended_at",
            args![id, seq, leg.party, &leg.transport, leg.number.as_str(), leg.started, leg.ended],
        )
        .await?;
    }
    if let (true, Some(answered), Some(ended)) = (record.recorded, record.answered, record.ended) {
        let seconds = ended.duration_since(answered).as_secs().max(0);
        tx.execute(
            "INSERT INTO recording (id, company_id, call_id, source, location, seconds, created_at)
             VALUES ($1, $2, $3, 'local', $4, $5, $6) ON CONFLICT (call_id, source) DO NOTHING",
            args![Uuid::now_v7(), record.company_id, id, format!("{id}/call.wav"), seconds, At::now()],
        )
        .await?;
    }
    let Transcript { lines, tools } = &record.transcript;
    for (seq, line) in lines.iter().enumerate().skip(written.turns) {
        tx.execute(
            "INSERT INTO call_turn (call_id, seq, who, text, heard, start_ms, end_ms, stages)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (call_id, seq) DO NOTHING",
            args![id, seq, line.who, &line.text, line.heard.as_deref(), line.start_ms, line.end_ms, json(&line.stages)],
        )
        .await?;
    }
    for (seq, tool) in tools.iter().enumerate().skip(written.tools) {
        tx.execute(
            "INSERT INTO call_tool (call_id, seq, name, arguments, result, at_ms)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (call_id, seq) DO NOTHING",
            args![id, seq, &tool.name, json(&tool.arguments), &tool.result, tool.at_ms],
        )
        .await?;
    }
    Ok(Written { turns: lines.len(), tools: tools.len() })
}

/// The first call that a provider's id was given to keeps it.
async fn put_alias(tx: &mut Tx, integration: Uuid, provider_call: &str, call: Uuid) -> Result<bool, StoreError> {
    let put = tx
        .execute(
            "INSERT INTO call_alias (integration_id, provider_call, call_id) VALUES ($1, $2, $3)
             ON CONFLICT (integration_id, provider_call) DO NOTHING",
            args![integration, provider_call, call],
        )
        .await?;
    Ok(put > 0)
}

impl Store {
    /// Newest first.
    pub async fn calls(&self, company: Uuid, filter: &CallFilter, part: Part) -> Result<Page<CallSummary>, StoreError> {
        let rows = self
            .db
            .all(
                "SELECT id, integration_id, provider, provider_call, line, direction, caller, callee, agent_id,
                     agent_version, agent, purpose, started_at, answered_at, ended_at, end_by, end_reason, outcome,
                     provider_status, talk_s, answered_by
                 FROM call WHERE company_id = $1 AND id < $2
                     AND ($3 IS NULL OR caller = $3 OR callee = $3) AND ($4 IS NULL OR direction = $4)
                     AND ($5 IS NULL OR outcome = $5) AND ($6 IS NULL OR integration_id = $6)
                     AND ($7 IS NULL OR started_at >= $7) AND ($8 IS NULL OR started_at < $8)
                     AND ($9 IS NULL OR agent_id = $9) AND ($10 IS NULL OR line = $10)
                 ORDER BY id DESC LIMIT $11",
                args![
                    company,
                    part.below(),
                    filter.phone.as_deref(),
                    filter.direction.map(Direction::label),
                    filter.outcome.map(CallOutcome::label),
                    filter.integration,
                    filter.from,
                    filter.to,
                    filter.agent,
                    filter.line.as_deref(),
                    part.fetch()
                ],
            )
            .await?;
        Ok(part.page(rows, |call: &CallSummary| call.id))
    }

    pub async fn call_summary(&self, company: Uuid, id: CallId) -> Result<Option<CallSummary>, StoreError> {
        self.db
            .first(
                "SELECT id, integration_id, provider, provider_call, line, direction, caller, callee, agent_id,
                     agent_version, agent, purpose, started_at, answered_at, ended_at, end_by, end_reason, outcome,
                     provider_status, talk_s, answered_by
                 FROM call WHERE company_id = $1 AND id = $2",
                args![company, id.uuid()],
            )
            .await
    }

    /// The whole record, as one moment saw it.
    pub async fn call(&self, company: Uuid, id: CallId) -> Result<Option<CallRecord>, StoreError> {
        let mut tx = self.db.read().await?;
        let row: Option<RecordRow> = tx
            .first(
                "SELECT id, company_id, company, integration_id, provider, provider_call, line, direction, caller,
                     callee, agent_id, agent_version, agent, purpose, started_at, answered_at, ended_at, end_by,
                     end_reason, remembered, interruptions, faults, handover, vars
                 FROM call WHERE company_id = $1 AND id = $2",
                args![company, id.uuid()],
            )
            .await?;
        let Some(row) = row else { return Ok(None) };
        let legs: Vec<LegRow> = tx
            .all(
                "SELECT party, transport, number, started_at, ended_at FROM call_leg WHERE call_id = $1 ORDER BY seq",
                args![row.id],
            )
            .await?;
        let turns: Vec<TurnRow> = tx
            .all(
                "SELECT who, text, heard, start_ms, end_ms, stages FROM call_turn WHERE call_id = $1 ORDER BY seq",
                args![row.id],
            )
            .await?;
        let tools: Vec<ToolRow> = tx
            .all("SELECT name, arguments, result, at_ms FROM call_tool WHERE call_id = $1 ORDER BY seq", args![row.id])
            .await?;
        let local: Option<(i64,)> =
            tx.first("SELECT COUNT(*) FROM recording WHERE call_id = $1 AND source = 'local'", args![row.id]).await?;
        tx.rollback().await?;
        let recorded = local.is_some_and(|(count,)| count > 0);
        Ok(Some(CallRecord { recorded, ..whole(row, legs, turns, tools) }))
    }

    /// Writes a record that no running call keeps: of a call that the company's people talked on, or that was dialled.
    pub async fn put_call(&self, record: &CallRecord) -> Result<(), StoreError> {
        let mut tx = self.db.write().await?;
        put_call(&mut tx, record, None, Written::default()).await?;
        tx.commit().await
    }

    /// Writes the record of a call that is known from its provider only, unless another has written it since: gives the
    /// call that has the provider's id.
    pub async fn adopt_call(&self, record: &CallRecord) -> Result<CallId, StoreError> {
        let mut tx = self.db.write().await?;
        put_call(&mut tx, record, None, Written::default()).await?;
        let owner: Option<(Uuid,)> = tx
            .first(
                "SELECT call_id FROM call_alias WHERE integration_id = $1 AND provider_call = $2",
                args![record.integration_id, &record.provider_call],
            )
            .await?;
        let owner = owner.map_or(record.id, |(id,)| CallId::from(id));
        if owner == record.id {
            tx.commit().await?
        } else {
            tx.rollback().await?
        }
        Ok(owner)
    }

    /// Writes what a dead process left of a call, unless the store knows more of it.
    pub async fn put_if_longer(&self, record: &CallRecord) -> Result<bool, StoreError> {
        let mut tx = self.db.write().await?;
        let id = record.id.uuid();
        let known: Option<(i64, i64)> = tx
            .first(
                "SELECT (SELECT COUNT(*) FROM call_turn WHERE call_id = $1),
                     (SELECT COUNT(*) FROM call_tool WHERE call_id = $1)",
                args![id],
            )
            .await?;
        let (turns, tools) = known.unwrap_or_default();
        let Transcript { lines, tools: uses } = &record.transcript;
        let longer = lines.len() as i64 >= turns && uses.len() as i64 >= tools;
        if longer {
            put_call(&mut tx, record, None, Written::default()).await?;
        }
        tx.commit().await?;
        Ok(longer)
    }

    /// The call that a provider means by its id.
    pub async fn call_by_alias(
        &self,
        company: Uuid,
        integration: Uuid,
        provider_call: &str,
    ) -> Result<Option<CallId>, StoreError> {
        let row: Option<(Uuid,)> = self
            .db
            .first(
                "SELECT a.call_id FROM call_alias a JOIN call c ON c.id = a.call_id
                 WHERE c.company_id = $1 AND a.integration_id = $2 AND a.provider_call = $3",
                args![company, integration, provider_call],
            )
            .await?;
        Ok(row.map(|(id,)| CallId::from(id)))
    }

    /// The newest call of this line with this number (on either side) that began within `window` of `around` and whose
    /// provider's id is not known yet, to match what comes with an id that is new (DESIGN §1: within 60 s). Without a
    /// line, only a call that we have made.
    pub async fn recent_call(
        &self,
        company: Uuid,
        integration: Uuid,
        line: Option<&str>,
        number: &str,
        around: Timestamp,
        window: SignedDuration,
    ) -> Result<Option<CallId>, StoreError> {
        let row: Option<(Uuid,)> = self
            .db
            .first(
                "SELECT id FROM call WHERE company_id = $1 AND integration_id = $2 AND provider_call = ''
                 AND (line = $3 OR ($3 IS NULL AND direction = 'outbound'))
                 AND (caller = $4 OR callee = $4) AND started_at >= $5 AND started_at <= $6 ORDER BY id DESC LIMIT 1",
                args![company, integration, line, number, around - window, around + window],
            )
            .await?;
        Ok(row.map(|(id,)| CallId::from(id)))
    }

    /// A name that a call has with us and not with its provider. `false`: as in `add_alias`.
    pub async fn add_name(
        &self,
        company: Uuid,
        integration: Uuid,
        name: &str,
        call: CallId,
    ) -> Result<bool, StoreError> {
        let added = self.db.execute(ADD_NAME, args![company, integration, name, call.uuid()]).await?;
        Ok(added > 0)
    }

    /// Another name for a call; its first is the one that its provider is asked by. `false`: no such call at this company,
    /// or the name is another call's.
    pub async fn add_alias(
        &self,
        company: Uuid,
        integration: Uuid,
        provider_call: &str,
        call: CallId,
    ) -> Result<bool, StoreError> {
        let mut tx = self.db.write().await?;
        let added = tx.execute(ADD_NAME, args![company, integration, provider_call, call.uuid()]).await?;
        if added > 0 {
            tx.execute(
                "UPDATE call SET provider_call = $3 WHERE company_id = $1 AND id = $2 AND provider_call = ''",
                args![company, call.uuid(), provider_call],
            )
            .await?;
        }
        tx.commit().await?;
        Ok(added > 0)
    }

    /// Calls of an integration that began since then, as their webhooks told them. Those that the log was found not to
    /// know are left out.
    pub async fn told_calls(
        &self,
        company: Uuid,
        integration: Uuid,
        since: Timestamp,
    ) -> Result<Vec<KnownCall>, StoreError> {
        let rows: Vec<ToldRow> = self
            .db
            .all(
                "SELECT c.id, a.provider_call AS name, c.started_at, c.ended_at, c.outcome, c.talk_s,
                     (SELECT COUNT(*) FROM call_leg l WHERE l.call_id = c.id) AS legs
                 FROM call c JOIN call_alias a ON a.call_id = c.id AND a.integration_id = c.integration_id
                 WHERE c.company_id = $1 AND c.integration_id = $2 AND c.started_at >= $3
                     AND (c.provider_status IS NULL OR c.provider_status <> $4)
                 ORDER BY c.id, a.provider_call",
                args![company, integration, since, NOT_IN_LOG],
            )
            .await?;
        let mut known: Vec<(Uuid, KnownCall)> = Vec::new();
        for row in rows {
            match known.last_mut() {
                Some((id, call)) if *id == row.id => call.names.push(row.name),
                _ => {
                    let talk_s = row.talk_s.and_then(|talk_s| u32::try_from(talk_s).ok());
                    let end = row.ended_at.map(|_| KnownEnd { outcome: row.outcome, talk_s });
                    let witnessed = row.legs > 0;
                    let call = KnownCall { names: vec![row.name], told: row.started_at.0, witnessed, end };
                    known.push((row.id, call));
                }
            }
        }
        Ok(known.into_iter().map(|(_, call)| call).collect())
    }

    /// The provider's log says otherwise of a call that was not on our own line: the log is right.
    pub async fn correct_call(&self, company: Uuid, call: CallId, news: &ProviderNews) -> Result<bool, StoreError> {
        let known = self.note_provider(company, call, news).await?;
        if let Some((at, outcome)) = news.ended {
            self.db
                .execute(
                    "UPDATE call SET outcome = $4, ended_at = $3
                     WHERE company_id = $1 AND id = $2 AND node_id IS NULL
                         AND NOT EXISTS (SELECT 1 FROM call_leg WHERE call_id = $2)",
                    args![company, call.uuid(), at, outcome],
                )
                .await?;
        }
        Ok(known)
    }

    /// Closes calls that no process of ours runs and that nothing has been heard of since `before`: the provider's last
    /// word got lost. Gives how many there were.
    pub async fn close_silent(&self, before: Timestamp) -> Result<u64, StoreError> {
        self.db
            .execute(
                "UPDATE call SET ended_at = $2, end_by = 'carrier', end_reason = 'never_connected', outcome = 'failed'
                 WHERE ended_at IS NULL AND node_id IS NULL AND seen_at < $1",
                args![before, At::now()],
            )
            .await
    }

    /// Notes what SIP knows of a call. `false`: no such call at this company.
    pub async fn note_sip(&self, company: Uuid, call: CallId, notes: &SipNotes) -> Result<bool, StoreError> {
        let ladder = (!notes.ladder.is_empty()).then(|| json(&notes.ladder));
        let noted = self
            .db
            .execute(
                "UPDATE call SET quality = COALESCE($3, quality), transfer_status = COALESCE($4, transfer_status),
                     ladder = COALESCE($5, ladder)
                 WHERE company_id = $1 AND id = $2",
                args![
                    company,
                    call.uuid(),
                    notes.quality.as_ref().map(json),
                    notes.transfer_status.map(i64::from),
                    ladder
                ],
            )
            .await?;
        Ok(noted > 0)
    }

    /// What SIP knows of a call; empty for one that came another way.
    pub async fn sip_facts(&self, company: Uuid, call: CallId) -> Result<Option<SipFacts>, StoreError> {
        let row: Option<SipRow> = self
            .db
            .first(
                "SELECT quality, transfer_status, ladder FROM call WHERE company_id = $1 AND id = $2",
                args![company, call.uuid()],
            )
            .await?;
        Ok(row.map(|row| SipFacts {
            quality: row.quality.map(|quality| quality.0),
            transfer_status: row.transfer_status.and_then(|status| u16::try_from(status).ok()),
            ladder: row.ladder.map(|ladder| ladder.0).unwrap_or_default(),
        }))
    }

    /// Notes what a provider told. Such news may come in any order and more than once: what is absent changes nothing,
    /// and what was on the way while the call ended does not undo what its end told. A PBX says which line a call is on
    /// only when somebody answers it.
    pub async fn note_provider(&self, company: Uuid, call: CallId, news: &ProviderNews) -> Result<bool, StoreError> {
        let mut tx = self.db.write().await?;
        let noted = tx
            .execute(
                "UPDATE call SET talk_s = COALESCE($4, talk_s), seen_at = $6,
                     provider_status = CASE WHEN $3 = 'ringing' OR ($7 = 0 AND ended_at IS NOT NULL)
                         THEN COALESCE(provider_status, $3) ELSE COALESCE($3, provider_status) END,
                     answered_by = CASE WHEN $7 = 0 AND ended_at IS NOT NULL THEN COALESCE(answered_by, $5)
                         ELSE COALESCE($5, answered_by) END,
                     line = CASE WHEN line = '' AND EXISTS (SELECT 1 FROM line l
                         WHERE l.integration_id = call.integration_id AND l.number = $5) THEN $5 ELSE line END,
                     outcome = CASE WHEN outcome = 'answered' AND $5 LIKE 'machine%' THEN 'voicemail' ELSE outcome END
                 WHERE company_id = $1 AND id = $2",
                args![
                    company,
                    call.uuid(),
                    news.status.as_deref(),
                    news.talk_s,
                    news.answered_by.as_deref(),
                    At::now(),
                    i64::from(news.ended.is_some())
                ],
            )
            .await?;
        if let Some((at, outcome)) = news.ended {
            tx.execute(
                "UPDATE call SET ended_at = $3, outcome = $4, end_by = 'carrier', end_reason = 'hung_up'
                 WHERE company_id = $1 AND id = $2 AND ended_at IS NULL AND node_id IS NULL",
                args![company, call.uuid(), at, outcome],
            )
            .await?;
        }
        tx.commit().await?;
        Ok(noted > 0)
    }
}

/// A call as its provider's webhooks have told it, for comparing with the call log.
#[derive(FromRow)]
struct ToldRow {
    id: Uuid,
    name: String,
    started_at: At,
    ended_at: Option<At>,
    outcome: CallOutcome,
    talk_s: Option<i64>,
    legs: i64,
}

fn whole(row: RecordRow, legs: Vec<LegRow>, turns: Vec<TurnRow>, tools: Vec<ToolRow>) -> CallRecord {
    let end = row.end_by.zip(row.end_reason).map(|(by, reason)| CallEnd::new(by, reason));
    let legs = legs.into_iter().map(|leg| LegRecord {
        party: leg.party,
        transport: leg.transport,
        number: PhoneNumber::new(leg.number),
        started: leg.started_at.0,
        ended: leg.ended_at.map(|at| at.0),
    });
    let lines = turns.into_iter().map(|turn| Line {
        who: turn.who,
        text: turn.text,
        start_ms: turn.start_ms.unsigned_abs(),
        end_ms: turn.end_ms.unsigned_abs(),
        heard: turn.heard,
        stages: turn.stages.0,
    });
    let tools = tools.into_iter().map(|tool| ToolUse {
        name: tool.name,
        arguments: tool.arguments.0,
        result: tool.result,
        at_ms: tool.at_ms.unsigned_abs(),
    });
    CallRecord {
        id: row.id.into(),
        direction: row.direction,
        company: row.company,
        company_id: row.company_id,
        integration_id: row.integration_id,
        provider: row.provider,
        provider_call: row.provider_call,
        line: row.line,
        from: PhoneNumber::new(row.caller),
        to: PhoneNumber::new(row.callee),
        agent: row.agent,
        agent_id: row.agent_id,
        agent_version: row.agent_version,
        purpose: row.purpose,
        vars: row.vars.map(|vars| vars.0).unwrap_or_default(),
        started: row.started_at.0,
        answered: row.answered_at.map(|at| at.0),
        ended: row.ended_at.map(|at| at.0),
        end,
        legs: legs.collect(),
        transcript: Transcript { lines: lines.collect(), tools: tools.collect() },
        remembered: row.remembered.0,
        handover: row.handover,
        interruptions: row.interruptions.0,
        faults: row.faults.0,
        recorded: false,
    }
}
