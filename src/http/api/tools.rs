//! `/api/v1/tools`: the tools that a company makes, HTTP requests and MCP servers. Secret headers come in and never go
//! out: an answer has which are set, and the last four characters of long ones.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::ApiState;
use super::input::{self, Body, Id, Paged, Params, Whose, sound};
use super::problem::{ApiError, Kind, Problem, unless_duplicate};
use crate::agent::tools::http::{DEFAULT_LIMIT, HttpTool, SecretHeaders};
use crate::agent::tools::{ToolBox, ToolContext, ToolRegistry, mcp};
use crate::http::auth::Caller;
use crate::speech::llm::ToolCall;
use crate::store::Page;
use crate::store::owners::Owned;
use crate::store::tools::{MAX_TOOLS, ToolDefinition, ToolInfo, ToolReader};
use crate::store::users::Role;
use crate::telephony::{CallId, PhoneNumber};

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(show, replace, remove)).routes(routes!(try_out))
}

/// List tools
#[utoipa::path(get, path = "/api/v1/tools", tag = "tools", params(Paged),
    responses((status = 200, body = Page<ToolInfo>), (status = "default", body = Problem)))]
async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Params(paged): Params<Paged>,
) -> Result<Json<Page<ToolInfo>>, ApiError> {
    let company = caller.company(&state, Role::Viewer, paged.company_id).await?;
    Ok(Json(state.store.tools(company, paged.part()?).await?))
}

/// A tool, and for the administrator whose it is
#[derive(Serialize, ToSchema)]
#[allow(dead_code, reason = "describes the body, which is taken apart")]
pub(super) struct NewTool {
    #[schema(inline)]
    company_id: Option<Uuid>,
    #[serde(flatten)]
    definition: ToolDefinition,
    /// By name: headers that are sealed and never shown. In a change, null takes one away; those not named stay.
    secret_headers: Option<BTreeMap<String, Option<String>>>,
}

/// A body's definition, and the secret headers that it names.
struct Written {
    definition: ToolDefinition,
    secrets: BTreeMap<String, Option<String>>,
}

struct Fields;

impl ToolReader<ApiError> for Fields {
    fn read<T: DeserializeOwned>(self, value: Value) -> Result<T, ApiError> {
        input::read(value)
    }
}

fn written(mut body: Map<String, Value>) -> Result<Written, ApiError> {
    let kind = body.remove("kind").unwrap_or(Value::Null);
    let secrets = body.remove("secret_headers").unwrap_or(json!({}));
    // The error of a type would quote the value.
    let secrets = serde_json::from_value(secrets)
        .map_err(|_| ApiError::field("secret_headers", "must be an object of texts; null takes one away"))?;
    let kind = kind.as_str().unwrap_or_default();
    let definition = ToolDefinition::read(kind, Value::Object(body), Fields).ok_or_else(|| {
        ApiError::field("kind", format!("is no kind of tool; there are {}", ToolDefinition::KINDS.join(", ")))
    })??;
    Ok(Written { definition, secrets })
}

fn checked(definition: &ToolDefinition, secrets: &SecretHeaders) -> Result<(), ApiError> {
    sound(definition.faults().into_iter().chain(definition.secret_faults(secrets)))
}

/// Add a tool
///
/// `kind` is `http` or `mcp`. Agents name it among their tools; of a server, `server.tool` or `server.*`.
#[utoipa::path(post, path = "/api/v1/tools", tag = "tools", request_body = NewTool,
    responses((status = 201, body = ToolInfo), (status = "default", body = Problem)))]
async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(mut body): Body<Map<String, Value>>,
) -> Result<Response, ApiError> {
    let named: Option<Uuid> = input::read(body.remove("company_id").unwrap_or(Value::Null))
        .map_err(|_| ApiError::field("company_id", "is no id"))?;
    let company = caller.company(&state, Role::Owner, named).await?;
    let Written { definition, secrets } = written(body)?;
    let secrets = SecretHeaders::new(secrets.into_iter().filter_map(|(name, value)| Some((name, value?))));
    checked(&definition, &secrets)?;
    let added = state.store.add_tool(company, &definition, &secrets).await.map_err(unless_duplicate("name"))?;
    let id = added.ok_or_else(|| ApiError::because(Kind::Cap, format!("a company has at most {MAX_TOOLS} tools")))?;
    let detail = json!({ "name": definition.name(), "kind": definition.kind() });
    state.note(&caller, company, "tool.added", id, detail).await;
    let location = format!("/api/v1/tools/{id}");
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(info(&state, company, id).await?)).into_response())
}

async fn info(state: &ApiState, company: Uuid, id: Uuid) -> Result<ToolInfo, ApiError> {
    state.store.tool(company, id).await?.ok_or_else(|| ApiError::new(Kind::NotFound))
}

/// Show a tool
#[utoipa::path(get, path = "/api/v1/tools/{id}", tag = "tools", params(("id" = Uuid, Path), Whose),
    responses((status = 200, body = ToolInfo), (status = "default", body = Problem)))]
async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<Json<ToolInfo>, ApiError> {
    let company = caller.owner(&state, Role::Viewer, whose.company_id, Owned::Tool, id).await?;
    info(&state, company, id).await.map(Json)
}

/// Replace a tool
///
/// Calls that run keep the one that they began with. Secret headers that are not named stay.
#[utoipa::path(put, path = "/api/v1/tools/{id}", tag = "tools", params(("id" = Uuid, Path), Whose),
    request_body = NewTool, responses((status = 200, body = ToolInfo), (status = "default", body = Problem)))]
async fn replace(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
    Body(body): Body<Map<String, Value>>,
) -> Result<Json<ToolInfo>, ApiError> {
    let company = caller.owner(&state, Role::Owner, whose.company_id, Owned::Tool, id).await?;
    let old = state.store.tool_with_secrets(company, id).await?.ok_or_else(|| ApiError::new(Kind::NotFound))?;
    let Written { definition, secrets } = written(body)?;
    let changed: Vec<String> = secrets.keys().cloned().collect();
    let kept = old.secrets.expose().into_iter().map(|(name, value)| (name.to_owned(), Some(value.to_owned())));
    let mut merged: BTreeMap<String, Option<String>> = kept.collect();
    // A secret that was written for one server does not go to another by a change of the address alone.
    let same_server = origin(&old.definition) == origin(&definition);
    if !same_server && merged.keys().any(|name| !secrets.contains_key(name)) {
        let problem = "the address is another server's: write its secret headers again, or null to take them away";
        return Err(ApiError::field("secret_headers", problem));
    }
    merged.extend(secrets);
    let secrets = SecretHeaders::new(merged.into_iter().filter_map(|(name, value)| Some((name, value?))));
    checked(&definition, &secrets)?;
    let found = state.store.update_tool(company, id, &definition, &secrets).await.map_err(unless_duplicate("name"))?;
    if !found {
        return Err(ApiError::new(Kind::NotFound));
    }
    // Names of headers only: the log holds no value.
    let detail = json!({ "name": definition.name(), "secret_headers": changed });
    state.note(&caller, company, "tool.changed", id, detail).await;
    info(&state, company, id).await.map(Json)
}

fn origin(definition: &ToolDefinition) -> String {
    let url = match definition {
        ToolDefinition::Http(tool) => &tool.url,
        ToolDefinition::Mcp(server) if !server.command.is_empty() => return format!("command {}", server.command),
        ToolDefinition::Mcp(server) => &server.url,
    };
    let after_scheme = url.find("://").map_or(0, |at| at + 3);
    let end = url[after_scheme..].find(['/', '?', '#', '\\']).map_or(url.len(), |at| after_scheme + at);
    url[..end].to_ascii_lowercase()
}

/// Remove a tool
///
/// Agents that name it go without.
#[utoipa::path(delete, path = "/api/v1/tools/{id}", tag = "tools", params(("id" = Uuid, Path), Whose),
    responses((status = 204), (status = "default", body = Problem)))]
async fn remove(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<StatusCode, ApiError> {
    let company = caller.owner(&state, Role::Owner, whose.company_id, Owned::Tool, id).await?;
    let old = info(&state, company, id).await?;
    if !state.store.remove_tool(company, id).await? {
        return Err(ApiError::new(Kind::NotFound));
    }
    state.note(&caller, company, "tool.removed", id, json!({ "name": old.definition.name() })).await;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Trial {
    /// As a model would write them; of an MCP server, none.
    #[serde(default)]
    #[schema(value_type = Object)]
    arguments: Map<String, Value>,
}

/// What came of it.
#[derive(Serialize, ToSchema)]
pub(super) struct Tried {
    ok: bool,
    /// What a model would be given; of a server, its tools.
    content: String,
    took_ms: u64,
}

/// Try a tool out
///
/// It is really run, with whatever it changes. Of an MCP server, its tools are listed.
#[utoipa::path(post, path = "/api/v1/tools/{id}/try", tag = "tools", params(("id" = Uuid, Path), Whose),
    request_body = Trial, responses((status = 200, body = Tried), (status = "default", body = Problem)))]
async fn try_out(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
    Body(trial): Body<Trial>,
) -> Result<Json<Tried>, ApiError> {
    let company = caller.owner(&state, Role::Operator, whose.company_id, Owned::Tool, id).await?;
    let tool = state.store.tool_with_secrets(company, id).await?.ok_or_else(|| ApiError::new(Kind::NotFound))?;
    let fetcher = state.fetcher.clone().ok_or_else(|| ApiError::new(Kind::Internal))?;
    let began = Instant::now();
    let name = tool.definition.name().to_owned();
    let (ok, content) = match tool.definition {
        ToolDefinition::Http(definition) => {
            let made = HttpTool::new(definition, tool.secrets, fetcher);
            run(made.map_err(|fault| ApiError::field("url", fault))?, &name, trial.arguments).await?
        }
        ToolDefinition::Mcp(server) if server.command.is_empty() => {
            told(mcp::look(&server, &tool.secrets, &fetcher).await)
        }
        ToolDefinition::Mcp(_) => {
            let made = state.made.clone().ok_or_else(|| ApiError::new(Kind::Internal))?;
            told(made.look(id).await)
        }
    };
    state.note(&caller, company, "tool.tried", id, json!({ "name": name, "ok": ok })).await;
    Ok(Json(Tried { ok, content, took_ms: began.elapsed().as_millis() as u64 }))
}

async fn run(tool: HttpTool, name: &str, arguments: Map<String, Value>) -> Result<(bool, String), ApiError> {
    let mut registry = ToolRegistry::default();
    registry.add(Arc::new(tool));
    let tools = ToolBox::new([name], &registry).map_err(|fault| ApiError::field("parameters", fault.to_string()))?;
    let arguments = Value::Object(arguments).to_string();
    let call = ToolCall { id: "trial".into(), name: name.to_owned(), arguments };
    let cx = ToolContext::new(CallId::new(), PhoneNumber::default(), PhoneNumber::default());
    let result = tools.run(&call, cx, DEFAULT_LIMIT).await;
    Ok((result.ok, result.content))
}

fn told(listed: Result<Vec<(String, String)>, String>) -> (bool, String) {
    match listed {
        Ok(tools) => {
            let tools: Vec<Value> =
                tools.into_iter().map(|(name, about)| json!({ "name": name, "about": about })).collect();
            (true, json!({ "tools": tools }).to_string())
        }
        Err(problem) => (false, json!({ "error": problem }).to_string()),
    }
}
