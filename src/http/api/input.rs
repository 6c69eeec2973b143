//! What a request holds, read strictly: ids, queries and JSON bodies whose unknown fields are refused.

use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use utoipa::IntoParams;
use uuid::Uuid;

use super::ApiState;
use super::problem::{ApiError, Kind, missing};
use crate::store::{MAX_PAGE, Part};
use crate::telephony::PhoneNumber;

/// The id in a path. What is no id is the id of nothing.
pub(crate) struct Id(pub Uuid);

impl FromRequestParts<ApiState> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let id = path.ok().and_then(|Path(text)| Uuid::try_parse(&text).ok());
        id.map(Self).ok_or_else(missing)
    }
}

/// The ids in a path that has two: of a thing, and of one of its own.
pub(crate) struct Ids(pub Uuid, pub Uuid);

impl FromRequestParts<ApiState> for Ids {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, ApiError> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let ids = path.ok().and_then(|Path((one, other))| Uuid::try_parse(&one).ok().zip(Uuid::try_parse(&other).ok()));
        ids.map(|(one, other)| Self(one, other)).ok_or_else(missing)
    }
}

/// A query string.
pub(crate) struct Params<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<ApiState> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &ApiState) -> Result<Self, ApiError> {
        let query = parts.uri.query().unwrap_or_default();
        let pairs = form_urlencoded::parse(query.as_bytes()).filter(|(_, value)| !value.is_empty());
        let pairs: Vec<_> = pairs.collect();
        let pairs = pairs.iter().map(|(name, value)| (&**name, &**value));
        let read =
            serde::de::value::MapDeserializer::<_, serde::de::value::Error>::new(pairs.map(|(n, v)| (n, Text(v))));
        match serde_path_to_error::deserialize(read) {
            Ok(params) => Ok(Self(params)),
            Err(fault) => {
                let (path, problem) = (fault.path().to_string(), fault.into_inner().to_string());
                Err(named(&path, &problem, "query"))
            }
        }
    }
}

/// A value of a query: text that may stand for a number, a truth, or nothing.
#[derive(Clone, Copy)]
struct Text<'a>(&'a str);

impl<'de> serde::de::IntoDeserializer<'de, serde::de::value::Error> for Text<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! parsed {
    ($($method:ident $visit:ident $what:literal)*) => {$(
        fn $method<V: serde::de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
            match self.0.parse() {
                Ok(value) => visitor.$visit(value),
                Err(_) => Err(serde::de::Error::custom(concat!("must be ", $what))),
            }
        }
    )*};
}

impl<'de> serde::Deserializer<'de> for Text<'de> {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: serde::de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_option<V: serde::de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: serde::de::Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        let text = serde::de::value::BorrowedStrDeserializer::new(self.0);
        serde::Deserializer::deserialize_enum(text, name, variants, visitor)
    }

    fn deserialize_newtype_struct<V: serde::de::Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    parsed! {
        deserialize_bool visit_bool "true or false"
        deserialize_u64 visit_u64 "a whole number"
        deserialize_u32 visit_u32 "a whole number"
        deserialize_i64 visit_i64 "a whole number"
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u16 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map
        struct identifier ignored_any
    }
}

/// A JSON body.
pub(crate) struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<ApiState> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiError> {
        Ok(Self(parse(&raw(request, state).await?)?))
    }
}

/// A JSON body as it came, for telling one request from another.
pub(crate) struct RawBody(pub Bytes);

impl FromRequest<ApiState> for RawBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiError> {
        raw(request, state).await.map(Self)
    }
}

async fn raw(request: Request, state: &ApiState) -> Result<Bytes, ApiError> {
    if !is_json(request.headers()) {
        return Err(ApiError::new(Kind::NotJson));
    }
    Bytes::from_request(request, state).await.map_err(|rejection| match rejection {
        BytesRejection::FailedToBufferBody(fault) if fault.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE => {
            ApiError::new(Kind::TooLarge)
        }
        _ => ApiError::new(Kind::Malformed),
    })
}

/// A form of another site can post text, but not this type without asking first: so a log-in is not forged either.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.and_then(|kind| kind.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let read = serde_path_to_error::deserialize(&mut reader).map_err(|fault| {
        let path = fault.path().to_string();
        let fault = fault.into_inner();
        if fault.is_data() {
            named(&path, &fault.to_string(), "body")
        } else {
            ApiError::because(Kind::Malformed, format!("no JSON: line {}, column {}", fault.line(), fault.column()))
        }
    })?;
    reader.end().map_err(|_| ApiError::because(Kind::Malformed, "something follows the JSON"))?;
    Ok(read)
}

/// The same of a value that was taken apart.
pub(super) fn read<T: DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|fault| {
        let (path, problem) = (fault.path().to_string(), fault.into_inner().to_string());
        named(&path, &problem, "body")
    })
}

/// Takes `company_id` out of a body that is read as something else.
pub(super) fn take_company(body: &mut Map<String, Value>) -> Result<Option<Uuid>, ApiError> {
    read(body.remove("company_id").unwrap_or(Value::Null)).map_err(|_| ApiError::field("company_id", "is no id"))
}

/// Puts the field into its place: serde names a missing or unknown one in its message only. The value, which a type error
/// quotes, may be a secret: it is left out.
fn named(path: &str, problem: &str, whole: &str) -> ApiError {
    let quoted = |text: &str| text.split('`').nth(1).unwrap_or_default().to_owned();
    let path = if path == "." { "" } else { path };
    let below = |name: String| match path {
        "" => name,
        path if path == name || path.ends_with(&format!(".{name}")) => path.to_owned(),
        path => format!("{path}.{name}"),
    };
    let expected = problem.split(", expected ").nth(1).map(|rest| rest.split(" at line ").next().unwrap_or(rest));
    let (field, problem) = if problem.starts_with("missing field") {
        (below(quoted(problem)), "is missing".to_owned())
    } else if problem.starts_with("unknown field") {
        (below(quoted(problem)), format!("is not known; known here: {}", expected.unwrap_or("nothing")))
    } else if problem.starts_with("duplicate field") {
        (below(quoted(problem)), "is there twice".to_owned())
    } else {
        let field = if path.is_empty() { whole.to_owned() } else { path.to_owned() };
        let problem = match expected {
            Some(expected) => format!("must be {expected}"),
            None if problem.starts_with("must be") => problem.to_owned(),
            None => "has a value that cannot be read".to_owned(),
        };
        (field, problem)
    };
    ApiError::field(field, problem)
}

/// For an administrator, who names the company.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(crate) struct Whose {
    /// For the administrator alone: whose it is.
    pub company_id: Option<Uuid>,
}

/// Part of a list.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(crate) struct Paged {
    /// The `next` of the page before.
    pub cursor: Option<Uuid>,
    /// From 1 to 200; 50 unless told.
    pub limit: Option<u64>,
    /// For the administrator, who names a company.
    pub company_id: Option<Uuid>,
}

impl Paged {
    pub fn part(self) -> Result<Part, ApiError> {
        part(self.cursor, self.limit)
    }
}

pub(super) fn part(cursor: Option<Uuid>, limit: Option<u64>) -> Result<Part, ApiError> {
    let default = Part::default();
    match limit {
        None => Ok(Part { after: cursor, ..default }),
        Some(limit) if (1..=MAX_PAGE as u64).contains(&limit) => Ok(Part { after: cursor, limit: limit as usize }),
        Some(_) => Err(ApiError::field("limit", format!("must be from 1 to {MAX_PAGE}"))),
    }
}

/// A telephone number in a query: a plus sign that was not escaped has become a space.
pub(super) fn phone(text: &str) -> String {
    match text.strip_prefix(' ') {
        Some(digits) => format!("+{}", digits.trim()),
        None => text.trim().to_owned(),
    }
}

/// A number that can be dialled or written to.
pub(super) fn e164(field: &str, text: &str) -> Result<PhoneNumber, ApiError> {
    let text = text.trim();
    if crate::store::setup::is_e164(text) {
        return Ok(PhoneNumber::new(text));
    }
    Err(ApiError::field(field, "write a telephone number with + and country code, digits only, as in +15550001111"))
}

/// A name of a thing: not empty, no longer than lists can show, no space around it.
pub(super) fn name_faults(field: &str, name: &str) -> Option<(String, String)> {
    const MAX: usize = crate::store::setup::MAX_NAME;
    let problem = match name {
        "" => "is empty".to_owned(),
        name if name.trim() != name => "begins or ends with a space".to_owned(),
        name if name.chars().count() > MAX => format!("is longer than {MAX} characters"),
        name if name.chars().any(char::is_control) => "has a line break or another control character in it".to_owned(),
        _ => return None,
    };
    Some((field.to_owned(), problem))
}

/// Nothing, or all faults at once.
pub(super) fn sound(faults: impl IntoIterator<Item = (String, String)>) -> Result<(), ApiError> {
    let mut faults = faults.into_iter().peekable();
    if faults.peek().is_none() { Ok(()) } else { Err(ApiError::fields(faults)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only read")]
    struct Inner {
        count: u32,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only read")]
    struct Outer {
        name: String,
        inner: Option<Inner>,
    }

    #[test]
    fn a_wrong_field_is_named_by_its_path_and_its_value_is_not_quoted() {
        for (body, field, problem) in [
            (r#"{}"#, "name", "is missing"),
            (r#"{"name": "a", "colour": "very-secret"}"#, "colour", "is not known"),
            (r#"{"name": 5}"#, "name", "must be a string"),
            (r#"{"name": "a", "inner": {"count": "very-secret"}}"#, "inner.count", "must be u32"),
            (r#"{"name": "a", "inner": {}}"#, "inner.count", "is missing"),
            (r#"["a"]"#, "body", ""),
        ] {
            let (_, told) = parse::<Outer>(body.as_bytes()).unwrap_err().parts();
            let fault = &told["errors"][0];
            assert_eq!(fault["field"], field, "{body}: {told}");
            assert!(fault["problem"].as_str().unwrap().starts_with(problem), "{body}: {told}");
            assert!(!told.to_string().contains("very-secret"), "{told}");
        }
        let (status, told) = parse::<Outer>(b"{\"name\": very-secret}").unwrap_err().parts();
        assert_eq!(status, axum::http::StatusCode::BAD_REQUEST);
        assert!(!told.to_string().contains("very-secret"), "{told}");
    }

    #[test]
    fn a_plus_sign_that_became_a_space_is_one_again() {
        assert_eq!(phone(" 380441234567"), "+380441234567");
        assert_eq!(phone("+380441234567"), "+380441234567");
        assert_eq!(phone("901"), "901");
    }
}
