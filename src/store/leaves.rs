//! Settings looked at one key at a time, so that all faults of a file come out at once, each with its key. It works
//! for structs whose fields all have a default and that deny unknown fields.

use std::sync::LazyLock;

use figment::error::Kind;
use figment::value::{Dict, Tag, Value};
use regex::Regex;
use serde::de::DeserializeOwned;

/// One key that has no keys below it, and its value.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub path: Vec<String>,
    pub value: Value,
}

impl Leaf {
    /// The tables around this leaf, with nothing else in them.
    pub fn nested(&self) -> Dict {
        let (first, rest) = self.path.split_first().expect("a leaf has a name");
        let value = rest
            .iter()
            .rev()
            .fold(self.value.clone(), |value, key| Value::Dict(Tag::Default, Dict::from([(key.clone(), value)])));
        Dict::from([(first.clone(), value)])
    }
}

/// Why a leaf cannot be taken.
#[derive(Clone, Debug, PartialEq)]
pub enum LeafFault {
    /// `key` (a prefix of the leaf's path) is no setting; `known` are those of its section.
    Unknown { key: String, known: &'static [&'static str] },
    /// The value does not fit.
    Wrong { key: String, problem: String },
}

impl std::fmt::Display for LeafFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown { key, known } => write!(f, "{key}: no such key; known here: {}", known.join(", ")),
            Self::Wrong { key, problem } => write!(f, "{key}: {problem}"),
        }
    }
}

/// All leaves of a table, in the order of their names. An empty table is a leaf.
pub fn leaves(dict: &Dict) -> Vec<Leaf> {
    let mut found = Vec::new();
    walk(dict, &mut Vec::new(), &mut found);
    found
}

fn walk(dict: &Dict, path: &mut Vec<String>, found: &mut Vec<Leaf>) {
    for (key, value) in dict {
        path.push(key.clone());
        match value {
            Value::Dict(_, inner) if !inner.is_empty() => walk(inner, path, found),
            value => found.push(Leaf { path: path.clone(), value: value.clone() }),
        }
        path.pop();
    }
}

/// Whether a `T` can be made of `base` and this leaf.
pub fn check<T: DeserializeOwned>(base: &Dict, leaf: &Leaf) -> Result<(), LeafFault> {
    let Err(kind) = probe::<T>(base, leaf) else { return Ok(()) };
    let key = leaf.path.join(".");
    Err(match *kind {
        Kind::UnknownField(name, known) => {
            let end = leaf.path.iter().position(|part| *part == name).unwrap_or(leaf.path.len() - 1);
            LeafFault::Unknown { key: leaf.path[..=end].join("."), known }
        }
        // Kinds quote the value that they found: a secret must not get out that way.
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) if is_secret(&key) => {
            LeafFault::Wrong { key, problem: format!("expected {expected}, in quotes if it is text") }
        }
        _ if is_secret(&key) => LeafFault::Wrong { key, problem: "not a value that this key takes".into() },
        kind => LeafFault::Wrong { key, problem: kind.to_string() },
    })
}

/// Every key that a `T` has below `base`, with dots. A field that is not itself such a struct is one key.
pub fn keys<T: DeserializeOwned>(base: &Dict) -> Vec<String> {
    let mut found = Vec::new();
    collect::<T>(base, &mut Vec::new(), &mut found);
    found
}

/// No struct has a field of this name, so that asking for it makes serde list those that it has.
const NO_SUCH_FIELD: &str = "?";

fn collect<T: DeserializeOwned>(base: &Dict, path: &mut Vec<String>, found: &mut Vec<String>) {
    path.push(NO_SUCH_FIELD.into());
    let refused = probe::<T>(base, &Leaf { path: path.clone(), value: Value::from(0) }).err();
    path.pop();
    match refused.map(|kind| *kind) {
        Some(Kind::UnknownField(name, fields)) if name == NO_SUCH_FIELD => {
            for field in fields {
                path.push((*field).into());
                collect::<T>(base, path, found);
                path.pop();
            }
        }
        _ => found.push(path.join(".")),
    }
}

fn probe<T: DeserializeOwned>(base: &Dict, leaf: &Leaf) -> Result<T, Box<Kind>> {
    let mut dict = base.clone();
    dict.extend(leaf.nested());
    Value::Dict(Tag::Default, dict).deserialize().map_err(|error| Box::new(error.kind))
}

/// Whether the name of a key says that its value must not be printed.
pub fn is_secret(key: &str) -> bool {
    static SECRET: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?i)(^|[._])(\w*key|\w*token|\w*secret|\w*password|credentials\w*|\w*account)$")
            .expect("the pattern is a constant")
    });
    SECRET.is_match(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    #[allow(dead_code)]
    struct Outer {
        port: u16,
        inner: Inner,
        names: Vec<String>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    #[allow(dead_code)]
    struct Inner {
        api_key: Option<String>,
        share: f32,
    }

    fn faults(text: &str) -> Vec<String> {
        let dict: Dict = toml::from_str(text).unwrap();
        leaves(&dict)
            .iter()
            .filter_map(|leaf| check::<Outer>(&Dict::new(), leaf).err())
            .map(|f| f.to_string())
            .collect()
    }

    #[test]
    fn every_leaf_is_judged_on_its_own() {
        assert_eq!(faults("port = 80\nnames = ['a']\n[inner]\nshare = 1\napi_key = 'k'"), [""; 0]);
        let found = faults("port = 70000\nnmes = 1\n[inner]\nshare = 'x'\nshar = 1\n[outer]\na = 1\nb = 2");
        assert_eq!(found.len(), 6, "{found:?}");
        assert!(found.contains(&"inner.shar: no such key; known here: api_key, share".into()), "{found:?}");
        assert!(found.iter().any(|fault| fault.starts_with("port: ")), "{found:?}");
        assert_eq!(found.iter().filter(|fault| fault.starts_with("outer: no such key")).count(), 2);
    }

    #[test]
    fn a_secret_of_the_wrong_type_is_not_printed() {
        let found = faults("[inner]\napi_key = 987654321");
        assert_eq!(found.len(), 1);
        assert!(!found[0].contains("987"), "{found:?}");
    }

    #[test]
    fn all_keys_of_a_struct_can_be_listed() {
        assert_eq!(keys::<Outer>(&Dict::new()), ["port", "inner.api_key", "inner.share", "names"]);
    }
}
