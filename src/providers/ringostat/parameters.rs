//! Names of webhook parameters. Ringostat has no fixed payload: whoever sets a webhook up in the cabinet picks the
//! parameters and names them, so every value is looked up through a table of meanings that each integration may edit.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::providers::credentials::{Credentials, Field};

/// Parameters that one webhook may have; the cabinet offers some forty.
const MAX_PARAMETERS: usize = 256;
/// Longest value that is looked at: links with their tokens are the longest genuine ones.
const MAX_VALUE_BYTES: usize = 4_096;

/// What a parameter means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    Event,
    Project,
    Call,
    CallType,
    Caller,
    Destination,
    ConnectedWith,
    Employee,
    Status,
    Duration,
    Talk,
    Wait,
    StartedMicros,
    Started,
    HasRecording,
    Recording,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub parameter: Parameter,
    /// The field that renames it for an integration: `parameters.call_id`.
    pub field: &'static str,
    /// The name that we propose.
    pub name: &'static str,
    /// Names seen elsewhere, taken where the proposed one is absent.
    pub aliases: &'static [&'static str],
    pub about: &'static str,
}

/// The proposed names, and the ones that customers are known to have picked.
pub const TABLE: [Entry; 16] = [
    entry(Parameter::Event, "parameters.event", &[], "parameter with the event's fixed name, such as in_after"),
    entry(Parameter::Project, "parameters.project_id", &["projectId"], "parameter with the project id"),
    entry(Parameter::Call, "parameters.call_id", &["uniqueid", "cdr_id", "uuid"], "parameter with the call id"),
    entry(Parameter::CallType, "parameters.call_type", &["type"], "parameter with the call type: in, out, callback"),
    entry(
        Parameter::Caller,
        "parameters.caller",
        &["caller_number", "callers_number", "number_e164", "E164", "userfield", "n_alias", "full_num", "src"],
        "parameter with the caller's number",
    ),
    entry(Parameter::Destination, "parameters.destination", &["dst", "callee"], "parameter with the dialled number"),
    entry(Parameter::ConnectedWith, "parameters.connected_with", &[], "parameter with the SIP login that answered"),
    entry(
        Parameter::Employee,
        "parameters.employee_id",
        &["staffid", "employee", "employee_number"],
        "parameter with the employee's id",
    ),
    entry(Parameter::Status, "parameters.status", &["disposition"], "parameter with the status after the call"),
    entry(
        Parameter::Duration,
        "parameters.duration",
        &["call_duration", "duration_call"],
        "parameter with the length of the whole call in seconds",
    ),
    entry(
        Parameter::Talk,
        "parameters.billsec",
        &["dialog", "duration_conversation"],
        "parameter with the length of the talk in seconds",
    ),
    entry(
        Parameter::Wait,
        "parameters.waittime",
        &["waiting", "duration_waiting"],
        "parameter with the length of the ringing in seconds",
    ),
    entry(
        Parameter::StartedMicros,
        "parameters.call_ts_us",
        &["call_timestamp", "call_date_microsecond", "calldate_timestamp_micros"],
        "parameter with the start of the call in unix microseconds",
    ),
    entry(
        Parameter::Started,
        "parameters.calldate",
        &["call_date", "date"],
        "parameter with the start of the call as YYYY-MM-DD HH:MM:SS",
    ),
    entry(
        Parameter::HasRecording,
        "parameters.has_recording",
        &["recording_presence"],
        "parameter that says whether there is a recording: 0 or 1",
    ),
    entry(
        Parameter::Recording,
        "parameters.recording",
        &["record", "recording_wav"],
        "parameter with the link to the recording",
    ),
];

const PREFIX: &str = "parameters.";

const fn entry(
    parameter: Parameter,
    field: &'static str,
    aliases: &'static [&'static str],
    about: &'static str,
) -> Entry {
    let (_, name) = field.split_at(PREFIX.len());
    Entry { parameter, field, name, aliases, about }
}

/// The field that renames line `index` of the table.
pub const fn field(index: usize) -> Field {
    let entry = TABLE[index];
    Field { name: entry.field, required: false, secret: false, about: entry.about, check: parameter_name }
}

fn parameter_name(value: &str) -> Result<(), &'static str> {
    let name = bare(value);
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if !name.is_empty() && name.len() <= 64 && name.chars().all(good) {
        Ok(())
    } else {
        Err("must be a parameter's name as typed into the cabinet: Latin letters, digits, _ - .")
    }
}

/// The cabinet takes names plain and as `{{name}}`.
fn bare(name: &str) -> &str {
    name.strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}")).unwrap_or(name).trim()
}

/// The table with one integration's own names.
#[derive(Clone, Debug, Default)]
pub struct Names {
    own: [Option<String>; TABLE.len()],
}

impl Names {
    pub fn read(credentials: &Credentials) -> Self {
        let own = TABLE.map(|entry| match bare(credentials.text(entry.field)) {
            "" => None,
            name => Some(name.to_owned()),
        });
        Self { own }
    }

    /// What to type into the cabinet for a parameter.
    pub fn name(&self, parameter: Parameter) -> &str {
        let index = position(parameter);
        self.own[index].as_deref().unwrap_or(TABLE[index].name)
    }

    /// `Some("")` where the parameter came without a value, `None` where it did not come. An integration's own name
    /// stands alone: whoever renames a parameter may use the old name for something else.
    pub fn look_up<'v>(&self, parameter: Parameter, values: &'v Values) -> Option<&'v str> {
        let index = position(parameter);
        if let Some(own) = &self.own[index] {
            return values.text(own);
        }
        let mut found = None;
        for name in std::iter::once(&TABLE[index].name).chain(TABLE[index].aliases) {
            match values.text(name) {
                Some("") => found = found.or(Some("")),
                Some(text) => return Some(text),
                None => {}
            }
        }
        found
    }
}

impl Names {
    /// Every parameter of a webhook but those of these meanings, whatever they are named.
    pub fn others<'v>(
        &'v self,
        values: &'v Values,
        without: &'v [Parameter],
    ) -> impl Iterator<Item = (&'v str, &'v str)> {
        let is_one = move |name: &str| {
            without.iter().any(|parameter| {
                let index = position(*parameter);
                match &self.own[index] {
                    Some(own) => own == name,
                    None => TABLE[index].name == name || TABLE[index].aliases.contains(&name),
                }
            })
        };
        values
            .by_name
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .filter(move |(name, _)| !is_one(name))
    }
}

fn position(parameter: Parameter) -> usize {
    TABLE.iter().position(|entry| entry.parameter == parameter).expect("the table has a line for each parameter")
}

/// The parameters of one webhook, however they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values {
    by_name: BTreeMap<String, String>,
}

/// No form, no query and no JSON object, or one larger than a webhook is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

impl Values {
    /// Query and body together; where both have a name, the body's value goes first.
    pub fn read(query: &str, content_type: Option<&str>, body: &[u8]) -> Result<Self, Unreadable> {
        let mut values = Self::default();
        values.take_form(query.as_bytes())?;
        let body = body.trim_ascii();
        if body.is_empty() {
            return Ok(values);
        }
        let kind = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        // The cabinet's data type decides the body; its content type is not promised anywhere.
        if kind.contains("json") || body.starts_with(b"{") {
            values.take_json(body)?;
        } else {
            values.take_form(body)?;
        }
        Ok(values)
    }

    fn take_form(&mut self, form: &[u8]) -> Result<(), Unreadable> {
        form_urlencoded::parse(form).try_for_each(|(name, value)| self.put(&name, value.into_owned()))
    }

    fn take_json(&mut self, body: &[u8]) -> Result<(), Unreadable> {
        let Ok(Value::Object(mut object)) = serde_json::from_slice(body) else { return Err(Unreadable) };
        if object.contains_key("jsonrpc") {
            object = match object.remove("params") {
                Some(Value::Object(params)) => params,
                Some(Value::Array(mut params)) if params.len() == 1 => match params.pop() {
                    Some(Value::Object(params)) => params,
                    _ => return Err(Unreadable),
                },
                _ => return Err(Unreadable),
            };
        }
        object.into_iter().try_for_each(|(name, value)| match value {
            Value::Null => self.put(&name, String::new()),
            Value::String(text) => self.put(&name, text),
            Value::Number(number) => self.put(&name, number.to_string()),
            Value::Bool(value) => self.put(&name, String::from(if value { "1" } else { "0" })),
            // `additional_call_data` and the like: nothing that the table names.
            Value::Array(_) | Value::Object(_) => Ok(()),
        })
    }

    fn put(&mut self, name: &str, value: String) -> Result<(), Unreadable> {
        if self.by_name.len() >= MAX_PARAMETERS || value.len() > MAX_VALUE_BYTES {
            return Err(Unreadable);
        }
        self.by_name.insert(bare(name).to_owned(), value);
        Ok(())
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.by_name.get(name).map(|value| value.trim())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_parameters_are_read_from_every_data_type() {
        let expected = Values::read("event=in_before&call_id=us1_-1.2&duration=75&recording=", None, b"").unwrap();
        let json = br#"{"event":"in_before","call_id":"us1_-1.2","duration":75,"recording":null,"additional_call_data":{"a":1}}"#;
        let rpc = br#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"{{event}}":"in_before","call_id":"us1_-1.2","duration":"75","recording":""}}"#;
        let list = br#"{"jsonrpc":"2.0","params":[{"event":"in_before","call_id":"us1_-1.2","duration":75,"recording":null}]}"#;
        let form = b"event=in_before&call_id=us1_%2D1.2&duration=75&recording=";
        assert_eq!(Values::read("", Some("application/json"), json), Ok(expected.clone()));
        assert_eq!(Values::read("", Some("text/plain"), rpc), Ok(expected.clone()));
        assert_eq!(Values::read("", Some("application/json; charset=utf-8"), list), Ok(expected.clone()));
        assert_eq!(Values::read("", Some("application/x-www-form-urlencoded"), form), Ok(expected.clone()));
        assert_eq!(Values::read("event=other&call_id=us1_-1.2", None, form), Ok(expected));
    }

    #[test]
    fn what_is_no_set_of_parameters_is_unreadable() {
        for body in [&b"[]"[..], b"{", b"\"text\"", br#"{"jsonrpc":"2.0"}"#, br#"{"jsonrpc":"2.0","params":[1]}"#] {
            assert_eq!(Values::read("", Some("application/json"), body), Err(Unreadable), "{body:?}");
        }
        let many: String = (0..300).map(|n| format!("p{n}=1&")).collect();
        assert_eq!(Values::read(&many, None, b""), Err(Unreadable));
        assert_eq!(Values::read("", None, format!("a={}", "x".repeat(5_000)).as_bytes()), Err(Unreadable));
    }

    #[test]
    fn an_own_name_stands_alone_and_an_alias_fills_a_gap() {
        let values = Values::read("uniqueid=a.1&call_id=b.2&dst=380441234567&destination=", None, b"").unwrap();
        let names = Names::default();
        assert_eq!(names.look_up(Parameter::Call, &values), Some("b.2"));
        assert_eq!(names.look_up(Parameter::Destination, &values), Some("380441234567"));
        assert_eq!(names.look_up(Parameter::Status, &values), None);

        let mut own = Names::default();
        own.own[position(Parameter::Call)] = Some("uniqueid".into());
        own.own[position(Parameter::Destination)] = Some("did".into());
        assert_eq!(own.look_up(Parameter::Call, &values), Some("a.1"));
        assert_eq!(own.look_up(Parameter::Destination, &values), None);
        assert_eq!(own.name(Parameter::Destination), "did");
    }

    #[test]
    fn each_line_of_the_table_is_found_by_its_meaning() {
        for entry in TABLE {
            assert_eq!(TABLE[position(entry.parameter)].field, entry.field);
            assert_eq!(format!("parameters.{}", entry.name), entry.field);
        }
    }
}
