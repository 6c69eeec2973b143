//! What a workflow knows of a call from outside: `vars`, which whoever asked for the call gave with it, and the fields that
//! its webhook or INVITE told, under the names that the sender gave them. Both are bounded; neither is ever an
//! instruction.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Variables of one call.
const MAX_VARS: usize = 32;
/// Longest name of either sort, in bytes.
const MAX_NAME: usize = 64;
/// Longest text of one variable, in characters.
const MAX_TEXT: usize = 500;
/// All variables of a call as JSON, in bytes: a model reads them with every turn.
const MAX_ALL: usize = 4_000;

/// Fields of one call. A webhook has some forty.
const MAX_FIELDS: usize = 48;
/// Longest value of a field, in characters: what is longer is cut.
const MAX_VALUE: usize = 256;

/// Variables of a call: name → text, number or true/false.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Vars(BTreeMap<String, Value>);

impl Vars {
    /// Gives all faults at once: a variable's name (empty: all of them together), what is wrong and what to do.
    pub fn read(given: Map<String, Value>) -> Result<Self, Vec<(String, String)>> {
        let mut faults = Vec::new();
        if given.len() > MAX_VARS {
            faults.push((String::new(), format!("{} variables; at most {MAX_VARS} go with a call", given.len())));
            return Err(faults);
        }
        for (name, value) in &given {
            if let Some(problem) = fault(name, value) {
                faults.push((name.chars().take(MAX_NAME).collect(), problem));
            }
        }
        let vars = Self(given.into_iter().collect());
        let all = vars.as_json().to_string().len();
        if faults.is_empty() && all > MAX_ALL {
            let problem =
                format!("{all} bytes of JSON in all; at most {MAX_ALL}: leave out what the agent does not need");
            faults.push((String::new(), problem));
        }
        if faults.is_empty() { Ok(vars) } else { Err(faults) }
    }

    /// `NAME=VALUE` each, as a command line has them: `true`, `false` and JSON numbers are what they look like, the rest is
    /// text.
    pub fn of_pairs(pairs: &[String]) -> Result<Self, String> {
        let mut given = Map::new();
        for pair in pairs {
            let Some((name, text)) = pair.split_once('=') else {
                return Err(format!("{pair:?} is no variable; write it as order_id=A-17"));
            };
            let plain = match serde_json::from_str(text) {
                Ok(value @ (Value::Bool(_) | Value::Number(_) | Value::String(_))) => value,
                _ => Value::from(text),
            };
            given.insert(name.to_owned(), plain);
        }
        let in_words =
            |(name, problem): (String, String)| if name.is_empty() { problem } else { format!("{name:?} {problem}") };
        Self::read(given).map_err(|faults| faults.into_iter().map(in_words).collect::<Vec<_>>().join("; "))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn as_json(&self) -> Value {
        Value::Object(self.0.clone().into_iter().collect())
    }
}

/// Names alone: values may be of a person.
impl fmt::Debug for Vars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

fn fault(name: &str, value: &Value) -> Option<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !(1..=MAX_NAME).contains(&name.len())
        || !name.chars().all(good)
        || name.starts_with(|c: char| c.is_ascii_digit())
    {
        return Some(format!("is no name; use up to {MAX_NAME} letters (a-z), digits and _, no digit first"));
    }
    match value {
        Value::Bool(_) | Value::Number(_) => None,
        Value::String(text) if text.chars().any(char::is_control) => {
            Some("holds a line break or another control character; write it in one line".into())
        }
        Value::String(text) => {
            let chars = text.chars().count();
            (chars > MAX_TEXT).then(|| format!("has {chars} characters; at most {MAX_TEXT}"))
        }
        Value::Null | Value::Array(_) | Value::Object(_) => Some("must be a text, a number, true or false".into()),
    }
}

/// What a webhook or an INVITE tells of its call, as its sender named it.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fields(BTreeMap<String, String>);

impl Fields {
    /// Keeps a field that has a value and a plain name, and whose name is none of a secret's. One that was there is
    /// replaced.
    pub fn take(&mut self, name: &str, value: &str) {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if !(1..=MAX_NAME).contains(&name.len()) || !name.chars().all(good) || is_secret(name) {
            return;
        }
        let plain: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let plain = plain.trim();
        let value = plain.char_indices().nth(MAX_VALUE).map_or(plain, |(end, _)| &plain[..end]);
        let room = self.0.len() < MAX_FIELDS || self.0.contains_key(name);
        if !value.is_empty() && room {
            self.0.insert(name.to_owned(), value.to_owned());
        }
    }

    /// Takes those of `later` as well; where both have a name, the later value counts.
    pub fn extend(&mut self, later: Fields) {
        for (name, value) in later.0 {
            self.take(&name, &value);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn as_json(&self) -> Value {
        Value::Object(self.0.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect())
    }
}

impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Fields {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut fields = Self::default();
        for (name, value) in pairs {
            fields.take(name.as_ref(), value.as_ref());
        }
        fields
    }
}

/// Names alone: values may be of a person.
impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Words that a secret's name has somewhere in it. A field of such a name is for the server, not for what an agent says:
/// what authenticates, what signs, what opens an account.
const SECRET: [&str; 9] =
    ["auth", "token", "secret", "passw", "passport", "signature", "cookie", "credential", "account"];
/// Short ones count only as words of their own: `x-api-key`, not `x-monkey`.
const SECRET_WORDS: [&str; 6] = ["key", "apikey", "sig", "hash", "hmac", "pwd"];

fn is_secret(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    SECRET.iter().any(|part| lower.contains(part)) || words(name).any(|word| SECRET_WORDS.contains(&word.as_str()))
}

/// `X-ApiKey` is `x`, `api`, `key`.
fn words(name: &str) -> impl Iterator<Item = String> {
    let mut words = vec![String::new()];
    let mut small = false;
    for c in name.chars() {
        if !c.is_ascii_alphanumeric() || c.is_ascii_uppercase() && small {
            words.push(String::new());
        }
        small = c.is_ascii_lowercase();
        if let Some(word) = words.last_mut().filter(|_| c.is_ascii_alphanumeric()) {
            word.push(c.to_ascii_lowercase());
        }
    }
    words.into_iter().filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(given: Value) -> Result<Vars, Vec<(String, String)>> {
        let Value::Object(given) = given else { panic!("an object") };
        Vars::read(given)
    }

    #[test]
    fn variables_are_texts_numbers_and_truths() {
        let given = json!({ "order_id": "A-17", "total": 120.5, "paid": false, "_x": "" });
        assert_eq!(read(given.clone()).unwrap().as_json(), given);
        assert!(read(json!({})).unwrap().is_empty());
        let stored = serde_json::to_string(&read(given).unwrap()).unwrap();
        assert_eq!(stored, r#"{"_x":"","order_id":"A-17","paid":false,"total":120.5}"#);
    }

    #[test]
    fn what_is_wrong_names_the_variable_and_the_cure() {
        let faults = read(json!({
            "order id": "x", "1st": 1, "": 1, "list": [1], "none": null, "lines": "a\nb", "long": "x".repeat(501), "well": 1,
        }));
        let faults: BTreeMap<String, String> = faults.unwrap_err().into_iter().collect();
        for (name, part) in [
            ("order id", "use up to 64 letters"),
            ("1st", "no digit first"),
            ("", "is no name"),
            ("list", "a text, a number, true or false"),
            ("none", "a text, a number"),
            ("lines", "write it in one line"),
            ("long", "501 characters; at most 500"),
        ] {
            assert!(faults[name].contains(part), "{name:?}: {faults:?}");
        }
        assert_eq!(faults.len(), 7);
        let many: Map<String, Value> = (0..33).map(|n| (format!("v{n}"), json!(n))).collect();
        assert_eq!(
            Vars::read(many).unwrap_err(),
            [(String::new(), "33 variables; at most 32 go with a call".to_owned())]
        );
        let heavy: Map<String, Value> = (0..9).map(|n| (format!("v{n}"), json!("x".repeat(480)))).collect();
        assert!(Vars::read(heavy).unwrap_err()[0].1.contains("leave out what the agent does not need"));
    }

    #[test]
    fn a_command_line_has_them_as_pairs() {
        let pairs = ["order=A-17", "people=4", "vip=true", "code=007", "quoted=\"4\"", "sum=a=b", "list=[1]"];
        let vars = Vars::of_pairs(&pairs.map(str::to_owned)).unwrap();
        assert_eq!(
            vars.as_json(),
            json!({ "order": "A-17", "people": 4, "vip": true, "code": "007", "quoted": "4", "sum": "a=b", "list": "[1]" })
        );
        assert!(Vars::of_pairs(&["order".into()]).unwrap_err().contains("write it as order_id=A-17"));
        assert!(Vars::of_pairs(&["a b=1".into()]).unwrap_err().starts_with("\"a b\" is no name"));
    }

    #[test]
    fn fields_are_bounded_and_hold_no_secret() {
        let told = [
            ("FromCity", " Kyiv\r\n"),
            ("X-Order-Id", "A-17"),
            ("x-monkey", "yes"),
            ("Empty", "  "),
            ("bad name", "x"),
            ("", "x"),
            ("Long", &"я".repeat(300)),
            ("X-Api-Key", "k"),
            ("X-ApiKey", "k"),
            ("CallToken", "k"),
            ("StirPassportToken", "k"),
            ("AccountSid", "AC1"),
            ("X-Twilio-Signature", "s"),
            ("Authorization", "Basic x"),
            ("Set-Cookie", "x"),
        ];
        let fields: Fields = told.into_iter().collect();
        let long = "я".repeat(256);
        assert_eq!(
            fields.as_json(),
            json!({ "FromCity": "Kyiv", "X-Order-Id": "A-17", "x-monkey": "yes", "Long": long })
        );
        let many: Fields = (0..100).map(|n| (format!("f{n:03}"), "x")).collect();
        assert_eq!(many.0.len(), MAX_FIELDS);
        let mut both = many.clone();
        both.extend([("f000", "later"), ("other", "x")].into_iter().collect());
        assert_eq!((both.0["f000"].as_str(), both.0.len()), ("later", MAX_FIELDS));
        assert_eq!(format!("{:?}", [("a", "secret of a person")].into_iter().collect::<Fields>()), "{\"a\"}");
    }

    proptest! {
        #[test]
        fn whatever_is_told_stays_within_its_bounds(told in prop::collection::vec((".{0,80}", ".{0,400}"), 0..80)) {
            let fields: Fields = told.into_iter().collect();
            prop_assert!(fields.0.len() <= MAX_FIELDS);
            for (name, value) in &fields.0 {
                prop_assert!(name.len() <= MAX_NAME && !value.is_empty() && value.chars().count() <= MAX_VALUE);
                prop_assert!(!value.chars().any(char::is_control));
            }
        }
    }
}
