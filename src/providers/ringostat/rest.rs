//! Ringostat's REST and JSON-RPC: who is online, who works there, the call log, callbacks. A status of 200 is no
//! success before the body has been asked for an `error`.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use reqwest::{RequestBuilder, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::events;
use crate::providers::provider::{CallOutcome, PastCall};
use crate::providers::rest::{ProviderError, Repeat, Reply, Rest};
use crate::telephony::Direction;

/// Rows that the log gives at most, whatever the window.
pub const LOG_ROWS: usize = 6_500;
/// Asked for in the log. The first six make a call; the others are dropped when a project does not know them.
const FIELDS: [&str; 12] = [
    "uniqueid",
    "calldate",
    "call_type",
    "caller",
    "dst",
    "disposition",
    "caller_number",
    "billsec",
    "waittime",
    "connected_with",
    "has_recording",
    "recording",
];
const NEEDED_FIELDS: usize = 6;

/// A person with the places where calls reach them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Employee {
    pub id: String,
    pub name: String,
    pub extension: String,
    /// SIP logins, and whether calls are forwarded there.
    pub logins: Vec<(String, bool)>,
}

/// A row of the log, with the link that only `recording` wants.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub call: PastCall,
    /// Carries a token: a secret.
    pub recording: Option<String>,
}

/// What one answer of the log holds.
#[derive(Clone, Debug, PartialEq)]
pub struct LogPart {
    pub rows: Vec<Row>,
    /// With those that no call can be made of. [`LOG_ROWS`]: the window has more.
    pub listed: usize,
}

/// Which rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rows<'a> {
    pub from: Timestamp,
    pub to: Timestamp,
    pub dispositions: &'a [&'a str],
    pub call: Option<&'a str>,
}

#[derive(Debug)]
pub struct Api {
    rest: Rest,
    key: SecretString,
    project: String,
    zone: TimeZone,
    /// Fields that the log has refused.
    dropped: Mutex<BTreeSet<&'static str>>,
}

impl Api {
    pub fn new(
        base: &str,
        key: SecretString,
        project: String,
        zone: TimeZone,
        gap: Duration,
    ) -> Result<Self, ProviderError> {
        Ok(Self { rest: Rest::new(base, gap)?, key, project, zone, dropped: Mutex::default() })
    }

    /// SIP logins that are registered.
    pub async fn online(&self) -> Result<Vec<String>, ProviderError> {
        let reply = self.send(self.rest.get("/sipstatus/online"), Repeat::Safe).await?;
        match self.body(&reply)? {
            Value::Array(logins) => Ok(logins.iter().map(text_of).filter(|login| !login.is_empty()).collect()),
            _ => Err(self.rest.nonsense("no list of SIP logins")),
        }
    }

    pub async fn staff(&self) -> Result<Vec<Employee>, ProviderError> {
        let params = json!({ "projectId": self.project_id(), "departmentsFullFormat": false });
        let result = self.call("/api/json-rpc", "getProjectStaffListAndDirections", params, Repeat::Safe).await?;
        let people: Vec<Value> = match result {
            Value::Object(people) => people.into_iter().map(|(_, person)| person).collect(),
            // PHP writes an empty map so.
            Value::Array(people) => people,
            Value::Null => Vec::new(),
            _ => return Err(self.rest.nonsense("no list of employees")),
        };
        Ok(people.iter().filter(|person| person.is_object()).map(employee).collect())
    }

    pub async fn log(&self, rows: &Rows<'_>) -> Result<LogPart, ProviderError> {
        // Each refusal drops at least one field, and the needed ones stay.
        for _ in NEEDED_FIELDS..=FIELDS.len() {
            let fields: Vec<&'static str> = {
                let dropped = self.dropped();
                FIELDS.iter().copied().filter(|field| !dropped.contains(field)).collect()
            };
            let local = |at: Timestamp| at.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string();
            let (from, to, fields_text) = (local(rows.from), local(rows.to), fields.join(","));
            let mut query = vec![
                ("export_type", "json"),
                ("from", &from),
                ("to", &to),
                ("fields", &fields_text),
                ("merge", "0"),
                ("order", "calldate desc"),
                ("projectId", &self.project),
            ];
            let filter = match rows.call {
                Some(call) => Some(filter("uniqueid", &[call])),
                None if rows.dispositions.is_empty() => None,
                None => Some(filter("disposition", rows.dispositions)),
            };
            if let Some(filter) = &filter {
                query.push(("filters", filter));
            }
            let reply = self.send(self.rest.get("/calls/list").query(&query), Repeat::Safe).await?;
            if let Some(refused) = refused_fields(&reply, &fields) {
                self.dropped().extend(refused);
                continue;
            }
            let list = match self.body(&reply)? {
                Value::Array(list) => list,
                Value::Object(mut object) => match object.remove("data") {
                    Some(Value::Array(list)) => list,
                    _ => return Err(self.rest.nonsense("no list of calls")),
                },
                _ => return Err(self.rest.nonsense("no list of calls")),
            };
            let listed = list.len();
            return Ok(LogPart { rows: list.iter().filter_map(|row| self.row(row)).collect(), listed });
        }
        Err(self.rest.nonsense("the call log refuses the names of its own fields"))
    }

    fn dropped(&self) -> std::sync::MutexGuard<'_, BTreeSet<&'static str>> {
        self.dropped.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// `None`: a row without an id or without sides, which nothing can be made of.
    fn row(&self, row: &Value) -> Option<Row> {
        let text = |name: &str| text_of(&row[name]);
        let provider_call = text("uniqueid");
        if !events::is_call_id(&provider_call) {
            return None;
        }
        let (direction, caller_is_ours) =
            events::direction(&text("call_type"), false).unwrap_or((Direction::Inbound, false));
        // The plain number, where there is one: `caller` may hold a name.
        let number = text("caller_number");
        let caller = events::side(&number).filter(|side| !side.as_str().is_empty() && !caller_is_ours);
        let caller = caller.or_else(|| events::side(&text("caller"))).unwrap_or_default();
        let dialled = events::side(&text("dst")).unwrap_or_default();
        let (from, to) = match (direction, caller_is_ours) {
            (Direction::Outbound, false) => (dialled, caller),
            _ => (caller, dialled),
        };
        let seconds = |name: &str| {
            let seconds: f64 = text(name).parse().ok()?;
            seconds.is_finite().then(|| seconds.max(0.0) as u32)
        };
        let status = text("disposition");
        let talk_s = seconds("billsec");
        let outcome = events::outcome(&status).unwrap_or(match talk_s {
            Some(1..) => CallOutcome::Answered,
            _ => CallOutcome::Failed,
        });
        let link = text("recording");
        let recording = link.starts_with("http").then_some(link);
        let answered_by = text("connected_with");
        let call = PastCall {
            provider_call,
            direction,
            from,
            to,
            outcome,
            status,
            started: events::moment(&text("calldate"), &self.zone),
            talk_s,
            ring_s: seconds("waittime"),
            answered_by: (!answered_by.is_empty()).then_some(answered_by),
            recording: Some(recording.is_some() || events::is_yes(&text("has_recording"))),
        };
        Some(Row { call, recording })
    }

    /// Calls `destination` and then our number's scheme.
    pub async fn outward_call(&self, extension: &str, destination: &str) -> Result<(), ProviderError> {
        let form = [("extension", extension), ("destination", destination)];
        let reply = self.send(self.rest.post("/callback/outward_call").form(&form), Repeat::Never).await?;
        self.accepted(&reply)
    }

    /// `client` and `callee` (a SIP login, an extension or a scheme) are connected; `manager_dst` is the order.
    pub async fn callback(
        &self,
        client: &str,
        callee: &str,
        callee_type: &str,
        manager_dst: u8,
    ) -> Result<(), ProviderError> {
        let params = json!({
            "projectId": self.project,
            "caller_type": "default",
            "callee_type": callee_type,
            "caller": client,
            "callee": callee,
            "direction": "out",
            "manager_dst": manager_dst,
        });
        self.call("/a/v2", "Api\\V2\\Callback.external", params, Repeat::Never).await.map(drop)
    }

    /// The `result` of a JSON-RPC method; `null` where there is none.
    async fn call(&self, path: &str, method: &str, params: Value, repeat: Repeat) -> Result<Value, ProviderError> {
        let request = self
            .rest
            .post(path)
            .header("x-project-id", &self.project)
            .json(&json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }));
        let reply = self.send(request, repeat).await?;
        match self.body(&reply)? {
            Value::Object(mut object) => Ok(object.remove("result").unwrap_or_default()),
            _ => Err(self.rest.nonsense("no JSON-RPC answer")),
        }
    }

    async fn send(&self, request: RequestBuilder, repeat: Repeat) -> Result<Reply, ProviderError> {
        let reply = self.rest.send(request.header("Auth-key", self.key.expose_secret()), repeat).await?;
        match reply.status {
            StatusCode::UNAUTHORIZED => {
                Err(ProviderError::WrongKey { fields: "auth_key", detail: self.detail(&reply) })
            }
            StatusCode::FORBIDDEN => Err(ProviderError::NoRight { detail: self.detail(&reply) }),
            status if status.is_server_error() => Err(ProviderError::Unreachable {
                host: self.rest.host().to_owned(),
                detail: format!("status {}", status.as_u16()),
                maybe_done: repeat == Repeat::Never,
            }),
            _ => Ok(reply),
        }
    }

    /// A success's JSON.
    fn body(&self, reply: &Reply) -> Result<Value, ProviderError> {
        let body = reply.json();
        if let Some(refused) = body.as_ref().and_then(|body| self.refusal(reply, body)) {
            return Err(refused);
        }
        match body {
            Some(body) if reply.status.is_success() => Ok(body),
            _ if reply.status == StatusCode::NOT_FOUND => Err(self.rest.nonsense("there is nothing at this address")),
            _ if reply.status.is_success() => Err(self.rest.nonsense(self.detail(reply))),
            _ => Err(ProviderError::Refused { code: reply.status.as_u16().to_string(), detail: self.detail(reply) }),
        }
    }

    /// For answers whose success has no known body.
    fn accepted(&self, reply: &Reply) -> Result<(), ProviderError> {
        match reply.json() {
            None if reply.status.is_success() => Ok(()),
            _ => self.body(reply).map(drop),
        }
    }

    fn refusal(&self, reply: &Reply, body: &Value) -> Option<ProviderError> {
        let error = &body["error"];
        let (code, detail) = match error {
            Value::Null | Value::Bool(false) => {
                let message = body["message"].as_str().filter(|_| !reply.status.is_success())?;
                (reply.status.as_u16().to_string(), message.to_owned())
            }
            Value::String(message) => (reply.status.as_u16().to_string(), message.clone()),
            error => {
                let message = text_of(&error["message"]);
                let message = if message.is_empty() { error.to_string() } else { message };
                (text_of(&error["code"]), message)
            }
        };
        Some(ProviderError::Refused { code, detail: self.scrubbed(&detail) })
    }

    fn detail(&self, reply: &Reply) -> String {
        self.scrubbed(&reply.detail())
    }

    /// The key never comes back in an error, whatever the other side echoes.
    fn scrubbed(&self, text: &str) -> String {
        let short: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
        match self.key.expose_secret() {
            "" => short,
            key => short.replace(key, "…"),
        }
    }

    fn project_id(&self) -> Value {
        self.project.parse::<u64>().map_or_else(|_| self.project.clone().into(), Value::from)
    }
}

/// As documented: `name~base64(value|value)`.
fn filter(name: &str, values: &[&str]) -> String {
    format!("{name}~{}", STANDARD.encode(values.join("|")))
}

/// The fields that an answer in text complains about; all optional ones where it does not say which.
fn refused_fields(reply: &Reply, asked: &[&'static str]) -> Option<Vec<&'static str>> {
    let message = match reply.json() {
        None => reply.body.clone(),
        Some(Value::String(text)) => text,
        Some(body) if body["message"].is_string() => text_of(&body["message"]),
        Some(body) if body["error"].is_string() => text_of(&body["error"]),
        Some(_) => return None,
    };
    let message = message.to_lowercase();
    let optional: Vec<&'static str> =
        asked.iter().copied().filter(|field| FIELDS[NEEDED_FIELDS..].contains(field)).collect();
    if !message.contains("field") || optional.is_empty() {
        return None;
    }
    let named = message
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .find_map(|word| optional.iter().copied().find(|field| *field == word));
    Some(named.map_or(optional, |field| vec![field]))
}

fn employee(person: &Value) -> Employee {
    let directions = ["main", "additional"].into_iter().filter_map(|list| person["directions"][list].as_array());
    let logins = directions
        .flatten()
        .filter(|direction| direction["type"] == "sip")
        .map(|direction| (text_of(&direction["direction"]), direction["enabledForAwd"] != Value::Bool(false)))
        .filter(|(login, _)| !login.is_empty())
        .collect();
    let id = match text_of(&person["staffId"]) {
        id if id.is_empty() => text_of(&person["id"]),
        id => id,
    };
    Employee { id, name: text_of(&person["fio"]), extension: text_of(&person["extensionNumber"]), logins }
}

/// Numbers come as numbers and as text.
fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        Value::Bool(true) => "1".to_owned(),
        Value::Bool(false) => "0".to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::strategy::Strategy as _;

    use super::*;

    fn reply(body: &str) -> Reply {
        Reply { status: StatusCode::OK, body: body.into(), retry_after: None }
    }

    #[test]
    fn a_refused_field_is_found_in_the_words_of_the_refusal() {
        let asked = &FIELDS[..];
        for (body, expected) in [
            ("Field name recording is incorrect", Some(vec!["recording"])),
            ("Incorrect field name: 'has_recording'", Some(vec!["has_recording"])),
            (r#"{"message":"wrong field billsec"}"#, Some(vec!["billsec"])),
            (r#"[{"uniqueid":"a.1"}]"#, None),
            (r#"{"error":{"code":1,"message":"field"}}"#, None),
            ("<html>Bad gateway</html>", None),
        ] {
            assert_eq!(refused_fields(&reply(body), asked), expected, "{body}");
        }
        assert_eq!(refused_fields(&reply("some field is incorrect"), asked).unwrap().len(), 6);
        assert_eq!(refused_fields(&reply("some field is incorrect"), &FIELDS[..6]), None);
    }

    proptest::proptest! {
        #[test]
        fn no_row_makes_the_reader_panic(
            values in proptest::collection::hash_map(
                proptest::sample::select(&FIELDS[..]),
                proptest::prop_oneof![
                    proptest::strategy::Just(Value::Null),
                    proptest::arbitrary::any::<f64>().prop_map(|value| json!(value)),
                    "[^\u{0}]{0,24}".prop_map(|value| json!(value)),
                    "[0-9T:+<>.-]{0,24}".prop_map(|value| json!(value)),
                ],
                0..12,
            ),
        ) {
            let mut row = json!({ "uniqueid": "us1_-1800000000.1" });
            for (name, value) in values {
                row[name] = value;
            }
            let api = Api::new("http://127.0.0.1:9", "key".into(), "1".into(), TimeZone::UTC, Duration::ZERO);
            let api = api.unwrap();
            let _ = (api.row(&row), employee(&row), refused_fields(&reply(&row.to_string()), &FIELDS));
        }
    }

    #[test]
    fn filters_are_written_as_documented() {
        assert_eq!(
            filter("disposition", &["answered", "proper", "repeated"]),
            "disposition~YW5zd2VyZWR8cHJvcGVyfHJlcGVhdGVk"
        );
    }
}
