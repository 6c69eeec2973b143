//! `/api/v1/calls`: calls that were and calls that are; dialling, watching and ending one.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Json, Response};
use futures::StreamExt as _;
use futures::stream::{self, Stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use tokio_util::sync::CancellationToken;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::ApiState;
use super::input::{self, Id, Params, RawBody, Whose, e164, part, phone};
use super::messages::Begun;
use super::once::{self, Made};
use super::problem::{ApiError, Kind, Problem, missing};
use super::recording;
use crate::agent::outcome::Analysis;
use crate::agent::variables::Vars;
use crate::call::clients::in_time;
use crate::call::desk::CallRequest;
use crate::call::handle::CallEvent;
use crate::conversation::transcript::Transcript;
use crate::http::auth::Caller;
use crate::providers::provider::CallOutcome;
use crate::store::Page;
use crate::store::calls::{CallFilter, CallRecord, CallSummary, SipFacts};
use crate::store::owners::Owned;
use crate::store::users::Role;
use crate::telephony::{CallEnd, CallId, Direction};

/// Often enough that no proxy between takes the stream for a dead one.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// As the agent's tools have it.
const MAX_GREETING: usize = 500;
const MAX_PURPOSE: usize = 1000;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show))
        .routes(routes!(transcript))
        .routes(routes!(recorded))
        .routes(routes!(events))
        .routes(routes!(sip))
        .routes(routes!(capture))
        .routes(routes!(hang_up))
}

#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// On either side.
    phone: Option<String>,
    status: Option<CallOutcome>,
    direction: Option<Direction>,
    /// Begun at or after this moment.
    #[param(value_type = Option<String>, format = DateTime)]
    from: Option<Timestamp>,
    /// Begun before this moment.
    #[param(value_type = Option<String>, format = DateTime)]
    to: Option<Timestamp>,
    /// An agent's id.
    agent: Option<Uuid>,
    /// A line's number, SIP login or internal number.
    line: Option<String>,
    /// An integration's id.
    integration: Option<Uuid>,
    /// The `next` of the page before.
    cursor: Option<Uuid>,
    /// From 1 to 200; 50 unless told.
    limit: Option<u64>,
    /// For the administrator, who names a company.
    company_id: Option<Uuid>,
}

/// List calls, newest first
#[utoipa::path(get, path = "/api/v1/calls", tag = "calls", params(Wanted),
    responses((status = 200, body = Page<CallSummary>), (status = "default", body = Problem)))]
async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Params(wanted): Params<Wanted>,
) -> Result<Json<Page<CallSummary>>, ApiError> {
    let company = caller.company(&state, Role::Viewer, wanted.company_id).await?;
    let filter = CallFilter {
        phone: wanted.phone.as_deref().map(phone),
        direction: wanted.direction,
        outcome: wanted.status,
        integration: wanted.integration,
        agent: wanted.agent,
        line: wanted.line.as_deref().map(phone),
        from: wanted.from,
        to: wanted.to,
    };
    Ok(Json(state.store.calls(company, &filter, part(wanted.cursor, wanted.limit)?).await?))
}

async fn record(state: &ApiState, company: Uuid, id: Uuid) -> Result<CallRecord, ApiError> {
    state.store.call(company, id.into()).await?.ok_or_else(missing)
}

/// A call's record, and what came of it.
#[derive(Serialize, ToSchema)]
pub(super) struct Shown {
    #[serde(flatten)]
    record: CallRecord,
    /// Made in the background when the call is over; absent until then, and where the agent is set not to have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    analysis: Option<Analysis>,
}

/// Show a call's record
///
/// It is written as the call goes: of a running call, it is what happened so far. A few seconds after its end it has
/// its `analysis`.
#[utoipa::path(get, path = "/api/v1/calls/{id}", tag = "calls", params(("id" = Uuid, Path), Whose),
    responses((status = 200, body = Shown), (status = "default", body = Problem)))]
async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<Json<Shown>, ApiError> {
    let company = caller.owner(&state, Role::Viewer, whose.company_id, Owned::Call, id).await?;
    let record = record(&state, company, id).await?;
    Ok(Json(Shown { record, analysis: state.store.analysis(company, id.into()).await? }))
}

/// Show the SIP side of a call
///
/// Its messages without credentials (complete half a minute after the call), the quality of its media (packets, loss,
/// jitter and round trip in milliseconds, estimated MOS), and what a transfer came to. Empty for a call that came
/// another way.
#[utoipa::path(get, path = "/api/v1/calls/{id}/sip", tag = "calls", params(("id" = Uuid, Path), Whose),
    responses((status = 200, body = SipFacts), (status = "default", body = Problem)))]
async fn sip(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<Json<SipFacts>, ApiError> {
    let company = caller.owner(&state, Role::Viewer, whose.company_id, Owned::Call, id).await?;
    let facts = state.store.sip_facts(company, id.into()).await?;
    facts.map(Json).ok_or_else(missing)
}

#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Capturing {
    /// From 1 to 600; 60 unless told.
    seconds: Option<u64>,
    /// For the administrator alone: whose it is.
    company_id: Option<Uuid>,
}

/// Capture a call that talks by SIP
///
/// A pcap file, as it happens: the call's messages so far without credentials, then its media packets until the call or
/// the time is over. For whoever must hear what a peer really sends; noted in the audit log.
#[utoipa::path(get, path = "/api/v1/calls/{id}/capture", tag = "calls", params(("id" = Uuid, Path), Capturing),
    responses((status = 200, content_type = "application/vnd.tcpdump.pcap"), (status = "default", body = Problem)))]
async fn capture(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(wanted): Params<Capturing>,
) -> Result<Response, ApiError> {
    let company = caller.owner(&state, Role::Operator, wanted.company_id, Owned::Call, id).await?;
    let seconds = wanted.seconds.unwrap_or(60);
    if !(1..=600).contains(&seconds) {
        return Err(ApiError::field("seconds", "must be from 1 to 600"));
    }
    record(&state, company, id).await?;
    let sip = state.sip.as_ref().ok_or_else(|| ApiError::new(Kind::NotRunning))?;
    let pieces = sip.capture(id.into(), Duration::from_secs(seconds)).await;
    let pieces = pieces.ok_or_else(|| ApiError::new(Kind::NotRunning))?;
    state.note(&caller, company, "call.captured", id, json!({ "seconds": seconds })).await;
    let kind = [(CONTENT_TYPE, "application/vnd.tcpdump.pcap")];
    Ok((kind, Body::from_stream(pieces.map(Ok::<_, Infallible>))).into_response())
}

/// Show what was said on a call
#[utoipa::path(get, path = "/api/v1/calls/{id}/transcript", tag = "calls", params(("id" = Uuid, Path), Whose),
    responses((status = 200, body = Transcript), (status = "default", body = Problem)))]
async fn transcript(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<Json<Transcript>, ApiError> {
    let company = caller.owner(&state, Role::Viewer, whose.company_id, Owned::Call, id).await?;
    Ok(Json(record(&state, company, id).await?.transcript))
}

/// Hear a call
///
/// Recorded here: stereo WAV, left the caller, right the agent; `Range` is understood. Else what the provider recorded, in
/// its format, a minute or two after the call.
#[utoipa::path(get, path = "/api/v1/calls/{id}/recording", tag = "calls", params(("id" = Uuid, Path), Whose),
    responses((status = 200, content_type = "audio/wav"), (status = 206, content_type = "audio/wav"),
        (status = "default", body = Problem)))]
async fn recorded(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let company = caller.owner(&state, Role::Viewer, whose.company_id, Owned::Call, id).await?;
    let record = record(&state, company, id).await?;
    let recordings = state.store.recordings(company, id.into()).await?;
    if let Some(local) = recordings.iter().find(|recording| recording.source == "local") {
        return recording::answer(&state.recordings, &local.location, &headers).await;
    }
    let none = || ApiError::because(Kind::NotFound, "there is no recording of this call, or not yet");
    if record.provider_call.is_empty() {
        return Err(none());
    }
    // The integration may be gone; its records stay.
    let account = state.account(company, record.integration_id).await.map_err(|_| none())?;
    if !account.provider.kind().capabilities.recordings {
        return Err(none());
    }
    let link = in_time(account.provider.recording(&record.provider_call)).await?.ok_or_else(none)?;
    let range = headers.get("range").and_then(|value| value.to_str().ok());
    Ok(recording::passed_on(crate::providers::recording::open(&link, range).await?))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewCall {
    /// E.164.
    to: String,
    /// The line that calls; chosen by itself where neither is named.
    #[serde(default)]
    line_id: Option<Uuid>,
    /// Any line of this integration.
    #[serde(default)]
    integration_id: Option<Uuid>,
    /// Who talks; the line's own agent unless told.
    #[serde(default)]
    agent_id: Option<Uuid>,
    /// Said first, in place of the agent's own greeting.
    #[serde(default)]
    greeting: Option<String>,
    /// What the call is for.
    #[serde(default)]
    purpose: Option<String>,
    /// Facts for the agent, such as an order's number: at most 32 names (letters, digits, _) with a text of 500
    /// characters, a number, true or false each, 4,000 bytes in all. Its workflow sees them as `{vars.NAME}`, its model as
    /// data.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    vars: Option<Map<String, Value>>,
    #[serde(default)]
    company_id: Option<Uuid>,
}

/// What an order is to go through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub line: Option<Uuid>,
    pub integration: Option<Uuid>,
}

/// An integration and the number of one of its lines; another company's are not there.
pub(super) async fn through(
    state: &ApiState,
    company: Uuid,
    way: Way,
) -> Result<(Option<Uuid>, Option<String>), ApiError> {
    match way {
        Way { line: None, integration } => {
            if let Some(id) = integration {
                state.store.integration(company, id).await?.ok_or_else(missing)?;
            }
            Ok((integration, None))
        }
        Way { line: Some(id), integration } => {
            let line = state.store.line(company, id).await?.ok_or_else(missing)?;
            if integration.is_some_and(|integration| integration != line.integration_id) {
                return Err(ApiError::field("integration_id", "is not the line's"));
            }
            Ok((Some(line.integration_id), Some(line.number)))
        }
    }
}

/// A text that may be left out.
fn optional(field: &str, text: Option<String>, longest: usize) -> Result<Option<String>, ApiError> {
    let text = text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    match &text {
        Some(long) if long.chars().count() > longest => {
            Err(ApiError::field(field, format!("is longer than {longest} characters")))
        }
        _ => Ok(text),
    }
}

/// Call somebody
///
/// Answered as soon as the provider has taken the call on. With an `Idempotency-Key` it is made once, however often it
/// is asked for.
#[utoipa::path(post, path = "/api/v1/calls", tag = "calls", request_body = NewCall,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 200 visible characters")),
    responses((status = 201, body = Begun), (status = "default", body = Problem)))]
async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    headers: HeaderMap,
    RawBody(raw): RawBody,
) -> Result<Response, ApiError> {
    let new: NewCall = input::parse(&raw)?;
    let company = caller.company(&state, Role::Operator, new.company_id).await?;
    let to = e164("to", &new.to)?;
    let greeting = optional("greeting", new.greeting, MAX_GREETING)?;
    let purpose = optional("purpose", new.purpose, MAX_PURPOSE)?;
    let vars = Vars::read(new.vars.unwrap_or_default()).map_err(|faults| {
        let of = |name: String| if name.is_empty() { "vars".to_owned() } else { format!("vars.{name}") };
        ApiError::fields(faults.into_iter().map(|(name, problem)| (of(name), problem)))
    })?;
    if let Some(agent) = new.agent_id {
        state.store.agent(company, agent).await?.ok_or_else(missing)?;
    }
    let way = Way { line: new.line_id, integration: new.integration_id };
    let (integration, line) = through(&state, company, way).await?;
    let order = CallRequest { integration, line, to: to.clone(), greeting, purpose, vars, agent: new.agent_id };
    let key = once::key(&headers)?;
    let worker = state.clone();
    let work = async move {
        let id = worker.outbound.call(company, order).await?;
        worker.note(&caller, company, "call.made", id, json!({ "to": to.as_str() })).await;
        Ok(Made { id: id.uuid(), under: "/api/v1/calls" })
    };
    once::once(&state, company, key, &[b"POST /api/v1/calls\n", &raw[..]].concat(), work).await
}

/// End a call
///
/// One that is over already is a success.
#[utoipa::path(post, path = "/api/v1/calls/{id}/hangup", tag = "calls", params(("id" = Uuid, Path), Whose),
    responses((status = 204), (status = "default", body = Problem)))]
async fn hang_up(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<StatusCode, ApiError> {
    let company = caller.owner(&state, Role::Operator, whose.company_id, Owned::Call, id).await?;
    let record = record(&state, company, id).await?;
    if record.ended.is_some() {
        return Ok(StatusCode::NO_CONTENT);
    }
    if !state.calls.hang_up(record.id) {
        // It rings, or people talk on it: its provider can end it.
        let account = match state.account(company, record.integration_id).await {
            Ok(account) if account.provider.kind().capabilities.hang_up && !record.provider_call.is_empty() => account,
            _ => return Err(ApiError::new(Kind::NotRunning)),
        };
        in_time(account.provider.hang_up(&record.provider_call)).await?;
    }
    state.note(&caller, company, "call.hung_up", id, json!({})).await;
    Ok(StatusCode::NO_CONTENT)
}

/// Watch a call
///
/// Server-sent events: `started`, `said`, `interrupted`, `resumed`, `tool_used`, `ended`, each with its JSON; the stream
/// ends with the call. Whoever reads too slowly misses some, and is told how many (`missed`).
#[utoipa::path(get, path = "/api/v1/calls/{id}/events", tag = "calls", params(("id" = Uuid, Path), Whose),
    responses((status = 200, content_type = "text/event-stream"), (status = "default", body = Problem)))]
async fn events(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<Response, ApiError> {
    let company = caller.owner(&state, Role::Viewer, whose.company_id, Owned::Call, id).await?;
    let call = CallId::from(id);
    // Listens before it looks: a call that ends in between is not missed.
    let events = state.calls.events();
    let summary = state.store.call_summary(company, call).await?.ok_or_else(missing)?;
    let permit =
        state.watchers.clone().try_acquire_owned().map_err(|_| ApiError::new(Kind::TooManyWatchers).retry_after(10))?;
    let over = summary.end_by.zip(summary.end_reason).map(|(by, reason)| CallEnd::new(by, reason));
    let over = over.filter(|_| summary.ended_at.is_some() && !state.calls.is_running(call));
    let ended = over.map(|end| CallEvent::Ended { call, end });
    let watch = Watch { call, events, ended, over: false, closing: state.closing.clone(), _permit: permit };
    Ok(Sse::new(watch.stream()).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response())
}

/// An onlooker of one call. What waits for it is bounded by the queue of all calls' events.
struct Watch {
    call: CallId,
    events: broadcast::Receiver<CallEvent>,
    /// Of a call that was over before.
    ended: Option<CallEvent>,
    over: bool,
    closing: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Watch {
    fn stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, |mut watch| async move { watch.next().await.map(|event| (Ok(event), watch)) })
    }

    async fn next(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        if let Some(ended) = self.ended.take() {
            self.over = true;
            return Some(shown(&ended));
        }
        loop {
            let event = tokio::select! {
                biased;
                () = self.closing.cancelled() => return None,
                event = self.events.recv() => event,
            };
            match event {
                Ok(event) if about(&event) == self.call => {
                    self.over = matches!(event, CallEvent::Ended { .. });
                    return Some(shown(&event));
                }
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    let missed = json!({ "event": "missed", "events": missed }).to_string();
                    return Some(Event::default().event("missed").data(missed));
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

fn about(event: &CallEvent) -> CallId {
    match event {
        CallEvent::Started { call }
        | CallEvent::Said { call, .. }
        | CallEvent::Interrupted { call }
        | CallEvent::Resumed { call }
        | CallEvent::ToolUsed { call, .. }
        | CallEvent::Ended { call, .. } => *call,
    }
}

fn shown(event: &CallEvent) -> Event {
    let json = serde_json::to_value(event).expect("an event's keys are text");
    Event::default().event(json["event"].as_str().unwrap_or_default()).data(json.to_string())
}
