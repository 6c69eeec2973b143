//! Tools that a company defines: a name, a schema and an HTTP request that is made of the arguments. What the server
//! answers is read within limits and given to the model as it is, or a part of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::fetch::{Answer, FetchError, Fetcher, MAX_BODY, Order, sound};
use super::reach::is_host;
use super::{MAX_RESULT_BYTES, Tool, ToolContext, ToolError, ToolOutcome, build_schema};
use crate::speech::llm::ToolSpec;

/// Longest name of a tool, as models take it.
pub const MAX_NAME: usize = 64;
const MAX_DESCRIPTION: usize = 2000;
const MAX_URL: usize = 2000;
const MAX_SCHEMA: usize = 16 * 1024;
const MAX_HEADERS: usize = 20;
const MAX_HEADER: usize = 4096;
const MAX_HOSTS: usize = 20;
const MAX_FILLER: usize = 200;
/// Longest time that a company may give one of its tools; a caller waits for it.
pub const MAX_LIMIT_MS: u64 = 30_000;
/// Text that is read: a model is given a quarter of it at most.
const MAX_TEXT: usize = 4 * MAX_RESULT_BYTES;
/// How much of a refusal's body a model is told.
const REASON_CHARS: usize = 400;

/// A tool as its company defined it, without its secret headers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpToolDefinition {
    /// Letters, digits, `_` and `-`; what agents and models call it.
    #[schema(example = "find_booking")]
    pub name: String,
    /// For the model: what it does, and when to use it.
    pub description: String,
    pub method: ToolMethod,
    /// `https://api.example.com/bookings/{number}`; what stands in braces is an argument, or `call.id`, `call.caller`,
    /// `call.line`. Arguments that are not named in it become the body; of GET and DELETE, the query.
    pub url: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// JSON Schema of the arguments, an object.
    #[serde(default = "no_parameters")]
    #[schema(value_type = Object)]
    pub parameters: Value,
    /// JSON that is sent in place of the arguments; `{name}` in a text of it is an argument.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub body: Option<Value>,
    /// Time for the whole exchange; the server's `turn.tool_limit_ms` unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_ms: Option<u64>,
    /// Hosts that a redirect may lead to, beside that of the URL.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_hosts: Vec<String>,
    /// Whether it changes anything: then it never runs on unconfirmed words, and never twice for one wish. Every method
    /// but GET is taken to, unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side_effects: Option<bool>,
    /// By language: what is said while it is slow.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub filler: BTreeMap<String, String>,
    /// Longest result that the model is given, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_result_bytes: Option<usize>,
    /// JSON pointer (RFC 6901) of the part of the answer that the model is given; empty: all of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub result: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum ToolMethod {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl ToolMethod {
    fn http(self) -> Method {
        match self {
            Self::Get => Method::GET,
            Self::Post => Method::POST,
            Self::Put => Method::PUT,
            Self::Patch => Method::PATCH,
            Self::Delete => Method::DELETE,
        }
    }

    fn has_body(self) -> bool {
        !matches!(self, Self::Get | Self::Delete)
    }
}

fn no_parameters() -> Value {
    json!({ "type": "object", "properties": {}, "additionalProperties": false })
}

/// Secret headers by name. Prints names alone.
#[derive(Clone, Default)]
pub struct SecretHeaders(BTreeMap<String, SecretString>);

impl SecretHeaders {
    pub fn new(values: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(values.into_iter().map(|(name, value)| (name, value.into())).collect())
    }

    /// Everything in the open, for sealing.
    pub fn expose(&self) -> BTreeMap<&str, &str> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.expose_secret())).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is wrong with them, by header; never quotes a value.
    pub fn faults(&self) -> Vec<(String, String)> {
        header_faults("secret_headers", &self.expose())
    }

    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = headers(&self.expose());
        headers.values_mut().for_each(|value| value.set_sensitive(true));
        headers
    }

    /// `text` without any of the values, whole or without their scheme (`Bearer …`): a server may echo what it was sent.
    pub(super) fn masked(&self, text: String) -> String {
        let mut text = text;
        for value in self.0.values() {
            let whole = value.expose_secret();
            let parts = [whole, whole.rsplit(' ').next().unwrap_or_default()];
            for part in parts.into_iter().filter(|part| part.len() >= 4) {
                if text.contains(part) {
                    text = text.replace(part, "••••");
                }
            }
        }
        text
    }
}

impl fmt::Debug for SecretHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Headers that a definition may not set: they belong to the connection, or are ours.
const OWN_HEADERS: [&str; 14] = [
    "host",
    "content-length",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "upgrade",
    "te",
    "trailer",
    "expect",
    "proxy-authorization",
    "cookie",
    "accept-encoding",
    "idempotency-key",
];

pub(super) fn header_faults(field: &str, headers: &BTreeMap<&str, &str>) -> Vec<(String, String)> {
    let mut faults = Vec::new();
    if headers.len() > MAX_HEADERS {
        faults.push((field.to_owned(), format!("has more than {MAX_HEADERS} headers")));
    }
    for (name, value) in headers {
        let problem = if OWN_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
            "is set by the program itself"
        } else if HeaderName::try_from(*name).is_err() {
            "is no name of a header: write letters, digits and hyphens"
        } else if value.len() > MAX_HEADER || HeaderValue::try_from(*value).is_err() {
            "has no value that a header can have: one line, 4096 bytes at most"
        } else {
            continue;
        };
        let name: String = name.chars().take(MAX_NAME).collect();
        faults.push((format!("{field}.{name}"), problem.to_owned()));
    }
    faults
}

/// Headers that were checked; one that cannot be sent is left out.
pub(super) fn headers(values: &BTreeMap<&str, &str>) -> HeaderMap {
    let pairs = values
        .iter()
        .filter_map(|(name, value)| Some((HeaderName::try_from(*name).ok()?, HeaderValue::try_from(*value).ok()?)));
    pairs.collect()
}

/// What is wrong with a name that models are to use.
pub fn name_fault(name: &str) -> Option<String> {
    let good = (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    (!good).then(|| format!("write 1 to {MAX_NAME} letters, digits, _ or -, such as find_booking"))
}

pub(super) fn host_faults(hosts: &[String]) -> Vec<(String, String)> {
    let mut faults = Vec::new();
    if hosts.len() > MAX_HOSTS {
        faults.push(("allowed_hosts".to_owned(), format!("has more than {MAX_HOSTS} hosts")));
    }
    for (index, text) in hosts.iter().enumerate() {
        let (host, port) = text.rsplit_once(':').map_or((text.as_str(), None), |(host, port)| (host, Some(port)));
        let address = text.parse::<std::net::Ipv4Addr>().is_ok() || host.parse::<std::net::Ipv4Addr>().is_ok();
        if !(is_host(host) || address) || port.is_some_and(|port| port.parse::<u16>().is_err()) {
            let cure = "write a host, or host:port where the port is not that of http or https".to_owned();
            faults.push((format!("allowed_hosts[{index}]"), cure));
        }
    }
    faults
}

pub(super) fn filler_faults(filler: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let bad = |(language, words): &(&String, &String)| {
        language.is_empty() || language.len() > 35 || words.trim().is_empty() || words.len() > MAX_FILLER
    };
    let told = |(language, _): (&String, &String)| {
        let language: String = language.chars().take(35).collect();
        (format!("filler.{language}"), format!("write a language and a few words, {MAX_FILLER} bytes at most"))
    };
    filler.iter().filter(bad).map(told).collect()
}

pub(super) fn limit_fault(limit_ms: Option<u64>) -> Option<(String, String)> {
    let bad = limit_ms.is_some_and(|ms| !(100..=MAX_LIMIT_MS).contains(&ms));
    bad.then(|| ("limit_ms".to_owned(), format!("must be from 100 to {MAX_LIMIT_MS}")))
}

impl HttpToolDefinition {
    /// All that is wrong, by field, each with its cure.
    pub fn faults(&self) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        let mut fault = |field: &str, problem: String| faults.push((field.to_owned(), problem));
        if let Some(problem) = name_fault(&self.name) {
            fault("name", problem);
        }
        if self.description.trim().is_empty() || self.description.len() > MAX_DESCRIPTION {
            fault("description", format!("say what it does and when to use it, {MAX_DESCRIPTION} bytes at most"));
        }
        let schema = self.parameters.to_string();
        if schema.len() > MAX_SCHEMA {
            fault("parameters", format!("is longer than {MAX_SCHEMA} bytes"));
        } else if self.parameters["type"] != "object" {
            fault("parameters", "must be a JSON Schema with \"type\": \"object\"".to_owned());
        } else if let Err(problem) = build_schema(&self.parameters) {
            fault("parameters", format!("is no JSON Schema: {problem}"));
        }
        if self.body.is_some() && !self.method.has_body() {
            fault("body", "GET and DELETE have none: leave it out".to_owned());
        }
        if self.body.as_ref().is_some_and(|body| body.to_string().len() > MAX_SCHEMA) {
            fault("body", format!("is longer than {MAX_SCHEMA} bytes"));
        }
        if self.max_result_bytes.is_some_and(|max| !(100..=MAX_RESULT_BYTES).contains(&max)) {
            fault("max_result_bytes", format!("must be from 100 to {MAX_RESULT_BYTES}"));
        }
        if !self.result.is_empty() && (!self.result.starts_with('/') || self.result.len() > 500) {
            fault("result", "must be a JSON pointer such as /data/items/0".to_owned());
        }
        faults.extend(self.url_faults().into_iter().map(|problem| ("url".to_owned(), problem)));
        faults.extend(self.body_faults().into_iter().map(|problem| ("body".to_owned(), problem)));
        let plain = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        faults.extend(header_faults("headers", &plain));
        faults.extend(host_faults(&self.allowed_hosts));
        faults.extend(filler_faults(&self.filler));
        faults.extend(limit_fault(self.limit_ms));
        faults
    }

    fn url_faults(&self) -> Vec<String> {
        let template = match Template::new(&self.url) {
            Ok(template) => template,
            Err(problem) => return vec![problem],
        };
        let mut faults = Vec::new();
        let required: BTreeSet<&str> =
            self.parameters["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for name in template.names() {
            if !self.knows(name) {
                faults.push(format!("{{{name}}} is no argument: name it in parameters.properties"));
            } else if !name.starts_with("call.")
                && template.path_names().any(|path| path == name)
                && !required.contains(name)
            {
                faults.push(format!("{{{name}}} is part of the path: name it in parameters.required"));
            }
        }
        faults
    }

    fn body_faults(&self) -> Vec<String> {
        let mut unknown = BTreeSet::new();
        if let Some(body) = &self.body {
            texts(body, &mut |text| {
                unknown.extend(braces(text).filter(|name| !self.knows(name)).map(str::to_owned));
            });
        }
        unknown.into_iter().map(|name| format!("{{{name}}} is no argument: name it in parameters.properties")).collect()
    }

    fn knows(&self, name: &str) -> bool {
        CALL_NAMES.contains(&name) || self.parameters["properties"].get(name).is_some()
    }

    fn has_side_effects(&self) -> bool {
        self.side_effects.unwrap_or(self.method != ToolMethod::Get)
    }
}

/// What a definition may say besides the arguments.
const CALL_NAMES: [&str; 3] = ["call.id", "call.caller", "call.line"];

/// The texts of a JSON value.
fn texts<'v>(value: &'v Value, found: &mut impl FnMut(&'v str)) {
    match value {
        Value::String(text) => found(text),
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(fields) => fields.values().for_each(|value| texts(value, found)),
        _ => {}
    }
}

/// The names in braces. Braces around anything else are text.
fn braces(text: &str) -> impl Iterator<Item = &str> {
    pieces(text).filter_map(|piece| match piece {
        Piece::Name(name) => Some(name),
        Piece::Text(_) => None,
    })
}

enum Piece<'t> {
    Text(&'t str),
    Name(&'t str),
}

fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        let mut from = 0;
        while let Some(at) = rest[from..].find('{').map(|at| from + at) {
            if let Some(end) = rest[at..].find('}').map(|end| at + end)
                && is_name(&rest[at + 1..end])
            {
                if at > 0 {
                    let (text, more) = rest.split_at(at);
                    rest = more;
                    return Some(Piece::Text(text));
                }
                let name = &rest[1..end];
                rest = &rest[end + 1..];
                return Some(Piece::Name(name));
            }
            from = at + 1;
        }
        Some(Piece::Text(std::mem::take(&mut rest)))
    })
}

/// A URL with names in braces, in its path and query only.
#[derive(Clone, Debug)]
struct Template {
    /// Up to the path.
    origin: String,
    path: String,
    query: Option<String>,
}

impl Template {
    fn new(text: &str) -> Result<Self, String> {
        if text.len() > MAX_URL {
            return Err(format!("is longer than {MAX_URL} bytes"));
        }
        let text = text.split('#').next().unwrap_or_default();
        let after_scheme = text.find("://").ok_or("must begin with http:// or https://")? + 3;
        let at = text[after_scheme..].find(['/', '?', '\\']).map_or(text.len(), |at| after_scheme + at);
        let (origin, rest) = text.split_at(at);
        if origin.contains(['{', '}']) {
            return Err("the host must be written out; arguments stand in the path and the query only".to_owned());
        }
        let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
        let template = Self { origin: origin.to_owned(), path: path.to_owned(), query: query.map(str::to_owned) };
        let url = template.fill(&|_| Some("x".to_owned()), &[])?;
        sound(&url).map_err(|problem| format!("is {problem}"))?;
        Ok(template)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.path_names().chain(braces(self.query.as_deref().unwrap_or_default()))
    }

    fn path_names(&self) -> impl Iterator<Item = &str> {
        braces(&self.path)
    }

    /// The address with its names filled in and `more` added to its query. A value can leave neither its segment of the
    /// path nor its pair of the query; a pair without a value is left out.
    fn fill(&self, value: &dyn Fn(&str) -> Option<String>, more: &[(String, String)]) -> Result<Url, String> {
        let mut path = String::new();
        for piece in pieces(&self.path) {
            match piece {
                Piece::Text(text) => path.push_str(text),
                Piece::Name(name) => {
                    let text = value(name).filter(|text| !text.is_empty());
                    path.push_str(&encode(&text.ok_or_else(|| format!("{name} is missing or empty"))?));
                }
            }
        }
        let mut url =
            Url::parse(&format!("{}{path}", self.origin)).map_err(|error| format!("is no address: {error}"))?;
        // Dots alone would lead a segment up: the address would be another one than the company wrote.
        let written = path.split('/').filter(|part| !part.is_empty()).count();
        let kept = url.path().split('/').filter(|part| !part.is_empty()).count();
        if written != kept {
            return Err("an argument cannot be a part of the path: it is dots alone".to_owned());
        }
        let mut query = Vec::new();
        for pair in self.query.iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty()) {
            let mut filled = Some(String::new());
            for piece in pieces(pair) {
                let text = match piece {
                    Piece::Text(text) => Some(text.to_owned()),
                    Piece::Name(name) => value(name).map(|text| encode(&text)),
                };
                filled = filled.zip(text).map(|(filled, text)| filled + &text);
            }
            query.extend(filled);
        }
        query.extend(more.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))));
        url.set_query((!query.is_empty()).then(|| query.join("&")).as_deref());
        Ok(url)
    }
}

/// Every byte but the unreserved ones (RFC 3986 §2.3) as `%XX`.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// A value as it stands in an address or within a text. `None`: a list or an object, or nothing.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// A company's tool, ready to be called.
pub struct HttpTool {
    definition: HttpToolDefinition,
    template: Template,
    headers: HeaderMap,
    secrets: SecretHeaders,
    fetcher: Fetcher,
}

impl HttpTool {
    /// What the definition's URL cannot be is told.
    pub fn new(definition: HttpToolDefinition, secrets: SecretHeaders, fetcher: Fetcher) -> Result<Self, String> {
        let template = Template::new(&definition.url).map_err(|problem| format!("url {problem}"))?;
        let plain = definition.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Ok(Self { headers: headers(&plain), template, definition, secrets, fetcher })
    }

    fn order(&self, args: &Value, cx: &ToolContext, limit: Duration) -> Result<Order, ToolError> {
        let definition = &self.definition;
        let value = |name: &str| match name {
            "call.id" => Some(json!(cx.call.to_string())),
            "call.caller" => Some(json!(cx.caller.as_str())),
            "call.line" => Some(json!(cx.line.as_str())),
            name => args.get(name).filter(|value| !value.is_null()).cloned(),
        };
        let in_url: BTreeSet<&str> = self.template.names().collect();
        let left: Map<String, Value> = args
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, _)| !in_url.contains(name.as_str()))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let mut more = Vec::new();
        if !definition.method.has_body() {
            for (name, value) in left.iter().filter(|(_, value)| !value.is_null()) {
                let text = plain(value).unwrap_or_else(|| value.to_string());
                more.push((name.clone(), text));
            }
        }
        let url = self.template.fill(&|name| plain(&value(name)?), &more).map_err(ToolError::Arguments)?;
        let mut headers = self.headers.clone();
        let body = definition.method.has_body().then(|| match &definition.body {
            Some(body) => filled(body, &value),
            None => Value::Object(left),
        });
        if body.is_some() {
            headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        }
        if !cx.key.is_empty()
            && let Ok(key) = HeaderValue::try_from(cx.key.as_str())
        {
            headers.insert("idempotency-key", key);
        }
        Ok(Order {
            method: definition.method.http(),
            url,
            headers,
            secrets: self.secrets.headers(),
            body: body.map(|body| body.to_string().into()),
            hosts: definition.allowed_hosts.clone(),
            limit,
        })
    }
}

/// A template with its names filled in: a text that is one name becomes the value itself.
fn filled(template: &Value, value: &dyn Fn(&str) -> Option<Value>) -> Value {
    match template {
        Value::String(text) => {
            let mut parts = pieces(text);
            if let (Some(Piece::Name(name)), None) = (parts.next(), parts.next()) {
                return value(name).unwrap_or(Value::Null);
            }
            let whole = pieces(text).map(|piece| match piece {
                Piece::Text(text) => text.to_owned(),
                Piece::Name(name) => {
                    let value = value(name).unwrap_or(Value::Null);
                    plain(&value).unwrap_or_else(|| if value.is_null() { String::new() } else { value.to_string() })
                }
            });
            Value::String(whole.collect())
        }
        Value::Array(items) => items.iter().map(|item| filled(item, value)).collect(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, field)| (name.clone(), filled(field, value)));
            Value::Object(fields.collect())
        }
        other => other.clone(),
    }
}

/// The time of a company's tool that names none and is run by nobody who does.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(5);

impl Tool for HttpTool {
    fn spec(&self) -> ToolSpec {
        let HttpToolDefinition { name, description, parameters, .. } = &self.definition;
        ToolSpec { name: name.clone(), description: description.clone(), parameters: parameters.clone() }
    }

    fn side_effect(&self) -> bool {
        self.definition.has_side_effects()
    }

    fn call(&self, args: Value, cx: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
        let limit = self.limit().unwrap_or(cx.limit);
        let order = match self.order(&args, &cx, limit) {
            Ok(order) => order,
            Err(error) => return futures::future::ready(Err(error)).boxed(),
        };
        let (fetcher, secrets) = (self.fetcher.clone(), self.secrets.clone());
        let pointer = self.definition.result.clone();
        async move {
            let read = async {
                let answer = fetcher.send(&order).await.map_err(|error| error_of(&error))?;
                read(answer, &pointer).await.map_err(ToolError::Failed)
            };
            match read.await {
                Ok(content) => Ok(ToolOutcome { content: secrets.masked(content), effect: None }),
                Err(ToolError::Undone(problem)) => Err(ToolError::Undone(secrets.masked(problem))),
                Err(error) => Err(ToolError::Failed(secrets.masked(error.to_string()))),
            }
        }
        .boxed()
    }

    fn limit(&self) -> Option<Duration> {
        self.definition.limit_ms.map(Duration::from_millis)
    }

    fn max_result_bytes(&self) -> usize {
        self.definition.max_result_bytes.unwrap_or(MAX_RESULT_BYTES)
    }

    fn filler(&self, language: &str) -> Option<String> {
        Some(words(&self.definition.filler, language))
    }
}

/// The words for a language, or for its first part (`uk` for `uk-UA`), or those that everybody says.
pub(super) fn words(filler: &BTreeMap<String, String>, language: &str) -> String {
    let first = language.split(['-', '_']).next().unwrap_or_default();
    let own = |wanted: &str| filler.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, words)| words);
    let words = own(language).or_else(|| own(first)).map(String::as_str);
    let words = words.unwrap_or(match first.to_ascii_lowercase().as_str() {
        "uk" => "Хвилинку, будь ласка.",
        "ru" => "Одну минуту, пожалуйста.",
        _ => "One moment, please.",
    });
    words.to_owned()
}

fn error_of(error: &FetchError) -> ToolError {
    if error.is_undone() { ToolError::Undone(error.to_string()) } else { ToolError::Failed(failed(error)) }
}

pub(super) fn failed(error: &FetchError) -> String {
    match error {
        FetchError::Slow(_) | FetchError::Broken(_) => format!("{error}; it may or may not have worked"),
        _ => error.to_string(),
    }
}

/// What an answer holds.
enum Form {
    Json,
    Text,
}

fn form(content_type: &str) -> Option<Form> {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/json" | "text/json" => Some(Form::Json),
        essence if essence.starts_with("application/") && essence.ends_with("+json") => Some(Form::Json),
        "text/plain" | "text/csv" | "text/markdown" | "text/xml" | "application/xml" => Some(Form::Text),
        _ => None,
    }
}

/// The answer as the model gets it, JSON text; a problem in words where there is none to give.
async fn read(answer: Answer, pointer: &str) -> Result<String, String> {
    let (status, content_type) = (answer.status, answer.content_type().to_owned());
    let form = form(&content_type);
    if status.as_u16() == 204 || status.as_u16() == 205 || (status.is_success() && answer.length() == Some(0)) {
        return Ok(json!({ "ok": true, "status": status.as_u16() }).to_string());
    }
    if !status.is_success() {
        let reason = match form {
            Some(_) => answer.body(4 * REASON_CHARS).await.map(|(body, _)| clean(&decoded(&body, &content_type))),
            None => Ok(String::new()),
        };
        let reason: String = reason.unwrap_or_default().chars().take(REASON_CHARS).collect();
        let what = match status.as_u16() {
            401 | 403 => "the server refuses the tool's credentials",
            404 => "the server knows no such thing",
            408 | 429 | 503 => "the server is too busy; try again later",
            500.. => "the server failed; it may or may not have worked",
            _ => "the server refuses it",
        };
        let colon = if reason.is_empty() { "" } else { ": " };
        return Err(format!("{what} (status {}){colon}{reason}", status.as_u16()));
    }
    let Some(form) = form else {
        let essence = content_type.split(';').next().unwrap_or_default();
        let shown: String = essence.chars().filter(|c| c.is_ascii_graphic()).take(60).collect();
        let shown = if shown.is_empty() { "an unknown type".to_owned() } else { shown };
        return Err(format!("the server answers with {shown}, which cannot be read: JSON or plain text is wanted"));
    };
    let most = match form {
        Form::Json => MAX_BODY,
        Form::Text => MAX_TEXT,
    };
    let (body, more) = answer.body(most).await.map_err(|error| failed(&error))?;
    let text = decoded(&body, &content_type);
    match form {
        Form::Json if more => Err(format!("the answer is longer than {MAX_BODY} bytes")),
        Form::Json => {
            let value: Value = serde_json::from_str(&text).map_err(|error| {
                format!("the server says that it answers with JSON, and does not: {}", fault(&error))
            })?;
            if pointer.is_empty() {
                return Ok(value.to_string());
            }
            let part = value.pointer(pointer);
            part.map(Value::to_string).ok_or_else(|| format!("the answer has no {pointer}"))
        }
        Form::Text if !pointer.is_empty() => Err("the answer is text, and a part of JSON is wanted".to_owned()),
        Form::Text => {
            let text = clean(&text);
            Ok(if more { json!({ "text": text, "cut": true }) } else { json!({ "text": text }) }.to_string())
        }
    }
}

/// Where JSON is wrong, without quoting it.
fn fault(error: &serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Eof => "it ends too early".to_owned(),
        _ => format!("line {}, column {}", error.line(), error.column()),
    }
}

/// Text in the charset that the type names; UTF-8 unless told.
fn decoded(body: &[u8], content_type: &str) -> String {
    let charset = content_type.split(';').skip(1).find_map(|parameter| parameter.trim().strip_prefix("charset="));
    let encoding = charset.and_then(|charset| encoding_rs::Encoding::for_label(charset.trim_matches('"').as_bytes()));
    encoding.unwrap_or(encoding_rs::UTF_8).decode(body).0.into_owned()
}

/// Without control characters: neither a database nor a log nor a voice has a use for them.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}
