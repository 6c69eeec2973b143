//! `/api/v1/knowledge`: bases, their documents, and what is found in them.

use axum::extract::multipart::MultipartError;
use axum::extract::{DefaultBodyLimit, FromRequest as _, FromRequestParts as _, Multipart, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::error;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::ApiState;
use super::answer::created;
use super::input::{Body, Id, Ids, Paged, Params, Whose, name_faults, sound};
use super::problem::{ApiError, Kind, Problem, missing, unless_duplicate};
use crate::agent::knowledge::{Lookup, MAX_PASSAGES, MAX_QUERY, Passage};
use crate::http::auth::Caller;
use crate::store::Page;
use crate::store::knowledge::extract::MAX_FILE;
use crate::store::knowledge::{Added, BaseInfo, DocumentInfo, MAX_BASES, MAX_DOCUMENTS, MAX_SEARCHED, Means, NewBase};
use crate::store::owners::Owned;
use crate::store::users::Role;

/// What stands around a file in a form.
const FORM_BYTES: usize = 64 * 1024;
/// Passages of a search that does not say how many.
const FOUND: u64 = 5;
const MAX_LANGUAGE: usize = 35;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    let files =
        OpenApiRouter::new().routes(routes!(documents, upload)).layer(DefaultBodyLimit::max(MAX_FILE + FORM_BYTES));
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, remove))
        .routes(routes!(show_document, remove_document))
        .routes(routes!(reindex))
        .routes(routes!(search))
        .merge(files)
}

/// A base and how its passages are found.
#[derive(Serialize, ToSchema)]
pub(super) struct BaseShown {
    #[serde(flatten)]
    base: BaseInfo,
    /// `text`: no embeddings endpoint is configured; passages are found by their words alone.
    means: Means,
}

/// List knowledge bases
#[utoipa::path(get, path = "/api/v1/knowledge", tag = "knowledge", params(Paged),
    responses((status = 200, body = Page<BaseInfo>), (status = "default", body = Problem)))]
async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Params(paged): Params<Paged>,
) -> Result<Json<Page<BaseInfo>>, ApiError> {
    let company = caller.company(&state, Role::Viewer, paged.company_id).await?;
    Ok(Json(state.store.knowledge_bases(company, paged.part()?).await?))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BaseBody {
    name: String,
    /// Of its documents, where their letters do not tell; `en` unless told.
    #[serde(default = "english")]
    language: String,
    /// For the administrator alone: whose it is.
    company_id: Option<Uuid>,
}

fn english() -> String {
    "en".into()
}

/// Add a knowledge base
#[utoipa::path(post, path = "/api/v1/knowledge", tag = "knowledge", request_body = BaseBody,
    responses((status = 201, body = BaseShown), (status = "default", body = Problem)))]
async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(body): Body<BaseBody>,
) -> Result<Response, ApiError> {
    let company = caller.company(&state, Role::Operator, body.company_id).await?;
    let language = (body.language.is_empty() || body.language.len() > MAX_LANGUAGE)
        .then(|| ("language".to_owned(), "must be a language such as en, uk or ru".to_owned()));
    sound(name_faults("name", &body.name).into_iter().chain(language))?;
    let made = state.store.add_knowledge_base(company, &body.name, &body.language).await;
    let base = match made.map_err(unless_duplicate("name"))? {
        NewBase::Made(base) => base,
        NewBase::TooMany => {
            return Err(ApiError::because(Kind::Cap, format!("a company has at most {MAX_BASES} knowledge bases")));
        }
    };
    state.note(&caller, company, "knowledge.added", base.id, json!({ "name": base.name })).await;
    let location = format!("/api/v1/knowledge/{}", base.id);
    Ok(created(location, BaseShown { base, means: state.knowledge.means() }))
}

/// Show a knowledge base
#[utoipa::path(get, path = "/api/v1/knowledge/{id}", tag = "knowledge", params(("id" = Uuid, Path), Whose),
    responses((status = 200, body = BaseShown), (status = "default", body = Problem)))]
async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<Json<BaseShown>, ApiError> {
    let company = caller.owner(&state, Role::Viewer, whose.company_id, Owned::Knowledge, id).await?;
    let base = state.store.knowledge_base(company, id).await?.ok_or_else(missing)?;
    Ok(Json(BaseShown { base, means: state.knowledge.means() }))
}

/// Remove a knowledge base
///
/// With its documents. Agents that name it find nothing in it any more.
#[utoipa::path(delete, path = "/api/v1/knowledge/{id}", tag = "knowledge", params(("id" = Uuid, Path), Whose),
    responses((status = 204), (status = "default", body = Problem)))]
async fn remove(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<StatusCode, ApiError> {
    let company = caller.owner(&state, Role::Operator, whose.company_id, Owned::Knowledge, id).await?;
    let worker = state.clone();
    let gone = state.finish(async move { Ok(worker.store.remove_knowledge_base(company, id).await?) }).await?;
    if !gone {
        return Err(missing());
    }
    state.note(&caller, company, "knowledge.removed", id, json!({})).await;
    Ok(StatusCode::NO_CONTENT)
}

/// List a knowledge base's documents
#[utoipa::path(get, path = "/api/v1/knowledge/{id}/documents", tag = "knowledge", params(("id" = Uuid, Path), Paged),
    responses((status = 200, body = Page<DocumentInfo>), (status = "default", body = Problem)))]
async fn documents(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(paged): Params<Paged>,
) -> Result<Json<Page<DocumentInfo>>, ApiError> {
    let company = caller.owner(&state, Role::Viewer, paged.company_id, Owned::Knowledge, id).await?;
    state.store.documents(company, id, paged.part()?).await?.map(Json).ok_or_else(missing)
}

/// A file in a form.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes the form, which is read part by part")]
pub(super) struct Upload {
    /// Text, Markdown, HTML, PDF or DOCX, up to 20 MB (4 MB where the file is text). Its name is the document's.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// Upload a document
///
/// A document of the same name is replaced; until the new one is indexed (`state` is `ready`), the old one is found. The
/// same file again changes nothing (200).
#[utoipa::path(post, path = "/api/v1/knowledge/{id}/documents", tag = "knowledge", params(("id" = Uuid, Path), Whose),
    request_body(content = Upload, content_type = "multipart/form-data"),
    responses((status = 201, body = DocumentInfo), (status = 200, body = DocumentInfo),
        (status = "default", body = Problem)))]
async fn upload(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
    request: Request,
) -> Result<Response, ApiError> {
    let company = caller.owner(&state, Role::Operator, whose.company_id, Owned::Knowledge, id).await?;
    state.store.knowledge_base(company, id).await?.ok_or_else(missing)?;
    let (name, file) = file(request, &state).await?;
    sound(name_faults("file", &name))?;
    let worker = state.clone();
    let kept = name.clone();
    let added = state.finish(async move { Ok(worker.knowledge.add(company, id, &kept, file).await?) }).await?;
    let document = match added {
        Added::Taken(document) => document,
        Added::Unchanged(document) => return Ok(Json(document).into_response()),
        Added::NoBase => return Err(missing()),
        Added::TooMany => {
            let detail = format!("a knowledge base has at most {MAX_DOCUMENTS} documents and {MAX_SEARCHED} passages");
            return Err(ApiError::because(Kind::Cap, detail));
        }
        Added::Refused(reason) => return Err(ApiError::because(Kind::Document, reason)),
    };
    let detail = json!({ "document": document.id, "name": name, "sha256": document.sha256 });
    state.note(&caller, company, "knowledge.document_added", id, detail).await;
    let worker = state.knowledge.clone();
    let indexed = document.id;
    // What went wrong is in the document's state.
    state.tasks.spawn(async move { worker.index(indexed).await });
    Ok(created(format!("/api/v1/knowledge/{id}/documents/{}", document.id), document))
}

/// Name and content of the form's file.
async fn file(request: Request, state: &ApiState) -> Result<(String, Bytes), ApiError> {
    let malformed =
        || ApiError::because(Kind::Malformed, "send a form (multipart/form-data) whose part `file` is the document");
    let read = |fault: MultipartError| match fault.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(Kind::TooLarge),
        _ => malformed(),
    };
    let mut form = Multipart::from_request(request, state).await.map_err(|_| malformed())?;
    while let Some(field) = form.next_field().await.map_err(read)? {
        if field.name() == Some("file") {
            let name = field.file_name().unwrap_or_default();
            // Some clients send the path.
            let name = name.rsplit(['/', '\\']).next().unwrap_or_default().trim().to_owned();
            return Ok((name, field.bytes().await.map_err(read)?));
        }
    }
    Err(malformed())
}

/// Show a document
#[utoipa::path(get, path = "/api/v1/knowledge/{id}/documents/{document}", tag = "knowledge",
    params(("id" = Uuid, Path), ("document" = Uuid, Path), Whose),
    responses((status = 200, body = DocumentInfo), (status = "default", body = Problem)))]
async fn show_document(
    State(state): State<ApiState>,
    caller: Caller,
    Ids(id, document): Ids,
    Params(whose): Params<Whose>,
) -> Result<Json<DocumentInfo>, ApiError> {
    let company = caller.owner(&state, Role::Viewer, whose.company_id, Owned::Knowledge, id).await?;
    state.store.document(company, id, document).await?.map(Json).ok_or_else(missing)
}

/// Remove a document
#[utoipa::path(delete, path = "/api/v1/knowledge/{id}/documents/{document}", tag = "knowledge",
    params(("id" = Uuid, Path), ("document" = Uuid, Path), Whose),
    responses((status = 204), (status = "default", body = Problem)))]
async fn remove_document(
    State(state): State<ApiState>,
    caller: Caller,
    Ids(id, document): Ids,
    Params(whose): Params<Whose>,
) -> Result<StatusCode, ApiError> {
    let company = caller.owner(&state, Role::Operator, whose.company_id, Owned::Knowledge, id).await?;
    let worker = state.clone();
    let gone = state.finish(async move { Ok(worker.store.remove_document(company, id, document).await?) }).await?;
    if !gone {
        return Err(missing());
    }
    state.note(&caller, company, "knowledge.document_removed", id, json!({ "document": document })).await;
    Ok(StatusCode::NO_CONTENT)
}

/// Index a knowledge base again
///
/// After another model for vectors was configured, say. All documents change over at once; until then, the old passages
/// are found.
#[utoipa::path(post, path = "/api/v1/knowledge/{id}/reindex", tag = "knowledge", params(("id" = Uuid, Path), Whose),
    responses((status = 202, body = BaseShown), (status = "default", body = Problem)))]
async fn reindex(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    Params(whose): Params<Whose>,
) -> Result<(StatusCode, Json<BaseShown>), ApiError> {
    let company = caller.owner(&state, Role::Operator, whose.company_id, Owned::Knowledge, id).await?;
    let base = state.store.knowledge_base(company, id).await?.ok_or_else(missing)?;
    state.note(&caller, company, "knowledge.reindexed", id, json!({})).await;
    let worker = state.knowledge.clone();
    state.tasks.spawn(async move {
        if let Err(fault) = worker.reindex(company, id).await {
            error!(base = %id, error = %fault, "a knowledge base could not be indexed again");
        }
    });
    Ok((StatusCode::ACCEPTED, Json(BaseShown { base, means: state.knowledge.means() })))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Question {
    /// What is looked for, in words.
    q: String,
    /// Of the question; the base's unless told.
    language: Option<String>,
    /// From 1 to 20; 5 unless told.
    limit: Option<u64>,
    /// For the administrator alone: whose it is.
    #[allow(dead_code, reason = "it is read before the rest")]
    company_id: Option<Uuid>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Found {
    /// The best first.
    items: Vec<Passage>,
    means: Means,
}

/// Search a knowledge base
///
/// As an agent does.
#[utoipa::path(get, path = "/api/v1/knowledge/{id}/search", tag = "knowledge", params(("id" = Uuid, Path), Question),
    responses((status = 200, body = Found), (status = "default", body = Problem)))]
async fn search(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
    request: Request,
) -> Result<Json<Found>, ApiError> {
    let (mut parts, _) = request.into_parts();
    // Whose it is comes before what is asked: another company's base is not there, however the question reads.
    let Params(whose) = Params::<Named>::from_request_parts(&mut parts, &state).await?;
    let company = caller.owner(&state, Role::Viewer, whose.company_id, Owned::Knowledge, id).await?;
    let base = state.store.knowledge_base(company, id).await?.ok_or_else(missing)?;
    let Params(question) = Params::<Question>::from_request_parts(&mut parts, &state).await?;
    let limit = question.limit.unwrap_or(FOUND);
    let mut faults = Vec::new();
    if question.q.trim().is_empty() || question.q.chars().count() > MAX_QUERY {
        faults.push(("q".to_owned(), format!("must have 1 to {MAX_QUERY} characters")));
    }
    if !(1..=MAX_PASSAGES as u64).contains(&limit) {
        faults.push(("limit".to_owned(), format!("must be from 1 to {MAX_PASSAGES}")));
    }
    sound(faults)?;
    let language = question.language.unwrap_or(base.language);
    let ask = Lookup { query: question.q, language, limit: limit as usize, ..Lookup::default() };
    let items = state.knowledge.search(company, id, &ask).await?.ok_or_else(missing)?;
    Ok(Json(Found { items, means: state.knowledge.means() }))
}

/// The company that a query names, whatever else it asks.
#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    company_id: Option<Uuid>,
}
