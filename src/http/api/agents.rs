//! `/api/v1/agents`: who answers, with every version of it, its workflow and its tools.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{Json, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::ApiState;
use super::answer::created;
use super::input::{self, Body, Id, Paged, Params, Whose, name_faults, sound};
use super::problem::{ApiError, Kind, Problem, missing, unless_duplicate};
use crate::agent::profile::AgentProfile;
use crate::agent::workflow::Workflow;
use crate::http::auth::Caller;
use crate::providers;
use crate::providers::provider::Capabilities;
use crate::store::agents::{AgentInfo, AgentRemoval, AgentVersion};
use crate::store::belongings::Belongings;
use crate::store::owners::Owned;
use crate::store::setup::profile_faults;
use crate::store::tools::ToolDefinition;
use crate::store::users::Role;
use crate::store::{Page, Part};

/// A prompt is sent to the model with every turn of every call.
const MAX_PROMPT: usize = 64 * 1024;
const MAX_GREETING: usize = 2000;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, replace, remove))
        .routes(routes!(versions))
        .routes(routes!(show_workflow, put_workflow))
        .routes(routes!(tools))
}

/// List agents
///
/// Without their workflows, which may be long.
#[utoipa::path(get, path = "/api/v1/agents", tag = "agents", params(Paged),
    responses((status = 200, body = Page<AgentInfo>), (status = "default", body = Problem)))]
async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Params(paged): Params<Paged>,
) -> Result<Json<Page<AgentInfo>>, ApiError> {
    let company = caller.company(&state, Role::Viewer, paged.company_id).await?;
    let mut page = state.store.agents(company, paged.part()?).await?;
    for agent in &mut page.items {
        agent.profile.0.workflow = None;
    }
    Ok(Json(page))
}

/// What types do not say of a profile, by field.
fn faults(profile: &AgentProfile, there: &Belongings) -> Vec<(String, String)> {
    let mut faults: Vec<_> = name_faults("name", &profile.name).into_iter().collect();
    faults.extend(profile_faults(profile));
    if profile.prompt.len() > MAX_PROMPT {
        faults.push(("prompt".into(), format!("is longer than {MAX_PROMPT} bytes")));
    }
    if profile.greeting.len() > MAX_GREETING {
        faults.push(("greeting".into(), format!("is longer than {MAX_GREETING} bytes")));
    }
    let missing = there.missing(profile);
    faults.extend(missing.into_iter().map(|it| (format!("{}[{}]", it.field, it.index), it.problem)));
    if let Some(text) = &profile.workflow {
        faults.extend(workflow_faults(text));
    }
    faults
}

/// Each names its node and the key in it.
fn workflow_faults(text: &str) -> Vec<(String, String)> {
    let Err(error) = Workflow::parse(text) else { return Vec::new() };
    let place = |place: String, field: String| if field.is_empty() { place } else { format!("{place}, {field}") };
    error
        .faults
        .into_iter()
        .map(|fault| (format!("workflow: {}", place(fault.place, fault.field)), fault.problem))
        .collect()
}

/// An agent, and for the administrator whose it is
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes the body, which is read as a profile")]
pub(super) struct NewAgent {
    #[schema(inline)]
    company_id: Option<Uuid>,
    name: String,
    /// ISO 639-1 or BCP 47; `en` unless told.
    language: Option<String>,
    greeting: Option<String>,
    prompt: Option<String>,
    stt: Option<crate::agent::profile::EngineChoice>,
    tts: Option<crate::agent::profile::VoiceChoice>,
    llm: Option<crate::agent::profile::ModelChoice>,
    /// TOML.
    workflow: Option<String>,
    tools: Option<Vec<String>>,
    /// Names of knowledge bases.
    knowledge: Option<Vec<String>>,
    /// Who gets a caller that asks for a person.
    transfer_to: Option<String>,
    /// What that person hears first.
    transfer_note: Option<crate::agent::profile::TransferNote>,
    detect_machine: Option<bool>,
    #[schema(value_type = Option<Object>)]
    turn: Option<Value>,
}

/// Add an agent
#[utoipa::path(post, path = "/api/v1/agents", tag = "agents", request_body = NewAgent,
    responses((status = 201, body = AgentInfo), (status = "default", body = Problem)))]
async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(mut body): Body<Map<String, Value>>,
) -> Result<Response, ApiError> {
    let named = input::take_company(&mut body)?;
    let company = caller.company(&state, Role::Operator, named).await?;
    let profile: AgentProfile = input::read(Value::Object(body))?;
    sound(faults(&profile, &state.store.belongings(company).await?))?;
    let id = state.store.add_agent(company, &profile).await.map_err(unless_duplicate("name"))?;
    state.note(&caller, company, "agent.added", id, json!({ "name": profile.name })).await;
    Ok(created(format!("/api/v1/agents/{id}"), agent(&state, company, id).await?))
}

async fn agent(state: &ApiState, company: Uuid, id: Uuid) -> Result<AgentInfo, ApiError> {
    state.store.agent(company, id).await?.ok_or_else(missing)
}

/// Show an agent
#[utoipa::path(get, path = "/api/v1/agents/{id}", tag = "agents", params(("id" = Uuid, Path), Whose),
    responses((status = 200, body = AgentInfo), (status = "default", body = Problem)))]
async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<Json<AgentInfo>, ApiError> {
    let company = caller.owner(&state, Role::Viewer, whose.company_id, Owned::Agent, id).await?;
    agent(&state, company, id).await.map(Json)
}

/// Replace an agent's profile
///
/// A change makes a version. Calls that run keep the one that they began with. A workflow that is not named stays.
#[utoipa::path(put, path = "/api/v1/agents/{id}", tag = "agents", params(("id" = Uuid, Path), Whose),
    request_body = AgentProfile, responses((status = 200, body = AgentInfo), (status = "default", body = Problem)))]
async fn replace(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
    Body(profile): Body<AgentProfile>,
) -> Result<Json<AgentInfo>, ApiError> {
    let company = caller.owner(&state, Role::Operator, whose.company_id, Owned::Agent, id).await?;
    let old = agent(&state, company, id).await?;
    let workflow = profile.workflow.or(old.profile.0.workflow);
    let profile = AgentProfile { workflow, ..profile };
    sound(faults(&profile, &state.store.belongings(company).await?))?;
    update(&state, &caller, company, id, profile).await.map(Json)
}

async fn update(
    state: &ApiState,
    caller: &Caller,
    company: Uuid,
    id: Uuid,
    profile: AgentProfile,
) -> Result<AgentInfo, ApiError> {
    let version = state.store.update_agent(company, id, &profile).await.map_err(unless_duplicate("name"))?;
    let version = version.ok_or_else(missing)?;
    state.note(caller, company, "agent.changed", id, json!({ "name": profile.name, "version": version })).await;
    agent(state, company, id).await
}

/// Remove an agent
///
/// Refused while lines are answered by it.
#[utoipa::path(delete, path = "/api/v1/agents/{id}", tag = "agents", params(("id" = Uuid, Path), Whose),
    responses((status = 204), (status = "default", body = Problem)))]
async fn remove(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<StatusCode, ApiError> {
    let company = caller.owner(&state, Role::Operator, whose.company_id, Owned::Agent, id).await?;
    match state.store.remove_agent(company, id).await? {
        AgentRemoval::Removed => {}
        AgentRemoval::Unknown => return Err(missing()),
        AgentRemoval::InUse => {
            return Err(ApiError::because(Kind::InUse, "lines are answered by it: give them another agent first"));
        }
    }
    state.note(&caller, company, "agent.removed", id, json!({})).await;
    Ok(StatusCode::NO_CONTENT)
}

/// List an agent's versions
///
/// Newest first, the last 200.
#[utoipa::path(get, path = "/api/v1/agents/{id}/versions", tag = "agents", params(("id" = Uuid, Path), Whose),
    responses((status = 200, body = Page<AgentVersion>), (status = "default", body = Problem)))]
async fn versions(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<Json<Page<AgentVersion>>, ApiError> {
    let company = caller.owner(&state, Role::Viewer, whose.company_id, Owned::Agent, id).await?;
    let items = state.store.agent_versions(company, id).await?.ok_or_else(missing)?;
    Ok(Json(Page { items, next: None }))
}

/// An agent's workflow.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkflowBody {
    /// TOML; null: it has none.
    workflow: Option<String>,
}

/// Show an agent's workflow
#[utoipa::path(get, path = "/api/v1/agents/{id}/workflow", tag = "agents", params(("id" = Uuid, Path), Whose),
    responses((status = 200, body = WorkflowBody), (status = "default", body = Problem)))]
async fn show_workflow(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<Json<WorkflowBody>, ApiError> {
    let company = caller.owner(&state, Role::Viewer, whose.company_id, Owned::Agent, id).await?;
    Ok(Json(WorkflowBody { workflow: agent(&state, company, id).await?.profile.0.workflow }))
}

/// Replace an agent's workflow
///
/// Every fault is told with its node and field.
#[utoipa::path(put, path = "/api/v1/agents/{id}/workflow", tag = "agents", params(("id" = Uuid, Path), Whose),
    request_body = WorkflowBody, responses((status = 200, body = AgentInfo), (status = "default", body = Problem)))]
async fn put_workflow(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
    Body(body): Body<WorkflowBody>,
) -> Result<Json<AgentInfo>, ApiError> {
    let company = caller.owner(&state, Role::Operator, whose.company_id, Owned::Agent, id).await?;
    let old = agent(&state, company, id).await?;
    let profile = AgentProfile { workflow: body.workflow, ..old.profile.0 };
    let mut faults = profile_faults(&profile);
    faults.retain(|(field, _)| field.starts_with("workflow"));
    faults.extend(profile.workflow.as_deref().map(workflow_faults).unwrap_or_default());
    sound(faults)?;
    update(&state, &caller, company, id, profile).await.map(Json)
}

/// A tool that the agent could use.
#[derive(Serialize, ToSchema)]
#[schema(as = AgentTool)]
pub(super) struct ToolInfo {
    /// Of an MCP server, `server.*`: all that it has.
    name: String,
    about: String,
    /// The integrations that make it possible; empty where it needs none.
    integrations: Vec<String>,
    /// Whether the agent uses it.
    enabled: bool,
}

type Tool = (&'static str, &'static str);

/// Every agent has these.
const CALL_TOOLS: [Tool; 3] = [
    ("end_call", "Ends the call when what was said is heard."),
    ("remember", "Notes a fact in the call's record."),
    ("transfer_call", "Asks for a person."),
];

/// Those that an agent has when it names them.
const NAMED_TOOLS: [Tool; 2] = [
    ("recall_caller", "Gives the last calls and messages with the person on the line."),
    ("send_dtmf", "Presses keys for the other side."),
];

/// Those that integrations bring.
const PROVIDER_TOOLS: [Tool; 3] = [
    ("make_call", "Calls a phone number; the same agent talks on that call."),
    ("send_sms", "Sends a text message; the sender's number is chosen by itself."),
    ("get_call_history", "Lists past calls, filtered by number, status and date."),
];

fn makes_possible(capabilities: Capabilities, tool: &str) -> bool {
    match tool {
        "make_call" => capabilities.dial,
        "send_sms" => capabilities.messages,
        _ => capabilities.history,
    }
}

/// List the tools that an agent can have
///
/// Those of every call, those that the company's integrations make possible, and those that it made.
#[utoipa::path(get, path = "/api/v1/agents/{id}/tools", tag = "agents", params(("id" = Uuid, Path), Whose),
    responses((status = 200, body = Page<ToolInfo>), (status = "default", body = Problem)))]
async fn tools(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<Json<Page<ToolInfo>>, ApiError> {
    let company = caller.owner(&state, Role::Viewer, whose.company_id, Owned::Agent, id).await?;
    let agent = agent(&state, company, id).await?;
    let integrations = Part::all(|part| state.store.integrations(company, part)).await?;
    let integrations: Vec<_> = integrations
        .into_iter()
        .filter_map(|info| Some((info.name, providers::kind(&info.provider)?.capabilities)))
        .collect();
    let enabled = |name: &str| agent.profile.tools.iter().any(|tool| tool == name);
    let plain = |name: &str, about: &str, enabled: bool| ToolInfo {
        name: name.to_owned(),
        about: about.to_owned(),
        integrations: Vec::new(),
        enabled,
    };
    let mut items: Vec<ToolInfo> = CALL_TOOLS.map(|(name, about)| plain(name, about, true)).into();
    items.extend(NAMED_TOOLS.map(|(name, about)| plain(name, about, enabled(name))));
    for (name, about) in PROVIDER_TOOLS {
        let able = integrations.iter().filter(|(_, capabilities)| makes_possible(*capabilities, name));
        let able: Vec<String> = able.map(|(integration, _)| integration.clone()).collect();
        if !able.is_empty() {
            let enabled = enabled(name);
            items.push(ToolInfo { integrations: able, ..plain(name, about, enabled) });
        }
    }
    let made = Part::all(|part| state.store.tools(company, part)).await?;
    items.extend(made.iter().map(|made| match &made.definition {
        ToolDefinition::Http(tool) => plain(&tool.name, &tool.description, enabled(&tool.name)),
        ToolDefinition::Mcp(server) => {
            let all = format!("{}.*", server.name);
            let prefix = format!("{}.", server.name);
            let some = agent.profile.tools.iter().any(|tool| tool.starts_with(&prefix));
            plain(&all, "The tools of an MCP server.", some)
        }
    }));
    Ok(Json(Page { items, next: None }))
}
