//! What opens an account with a provider: named values, some of them secret. The provider's [`Kind`] says which there
//! must be; nothing here knows a provider.

use std::collections::BTreeMap;
use std::fmt;

use secrecy::{ExposeSecret, SecretString};

use crate::providers::provider::Kind;

/// One value of a kind's credentials.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// As in the set-up file, tables with a dot: `auth_token`, `sip.password`.
    pub name: &'static str,
    pub required: bool,
    /// Sealed in any case; a secret one is also never given back: only "set" and its last four characters.
    pub secret: bool,
    /// In words for a form and for errors: "Auth Token (Console, Account Info)".
    pub about: &'static str,
    /// What is wrong with a value, and the cure.
    pub check: fn(&str) -> Result<(), &'static str>,
}

/// The values of one integration. Prints no value.
#[derive(Clone, Default)]
pub struct Credentials {
    values: BTreeMap<String, SecretString>,
}

/// What is wrong with a set of credentials; names the field, never its value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct CredentialsFault {
    pub field: String,
    pub problem: String,
}

impl Credentials {
    /// All faults at once: unknown fields, missing ones, values that cannot be. An empty value is a missing one.
    pub fn new(kind: &Kind, values: impl IntoIterator<Item = (String, String)>) -> Result<Self, Vec<CredentialsFault>> {
        let fault = |field: &str, problem: String| CredentialsFault { field: field.to_owned(), problem };
        let mut faults = Vec::new();
        let mut kept = BTreeMap::new();
        for (name, value) in values {
            let value = value.trim().to_owned();
            match kind.fields.iter().find(|field| field.name == name) {
                None => {
                    let known: Vec<&str> = kind.fields.iter().map(|field| field.name).collect();
                    faults.push(fault(&name, format!("{} has no such key; it has {}", kind.name, known.join(", "))));
                }
                Some(_) if value.is_empty() => {}
                Some(field) => {
                    if let Err(problem) = (field.check)(&value) {
                        faults.push(fault(&name, problem.to_owned()));
                    }
                    kept.insert(name, SecretString::from(value));
                }
            }
        }
        for field in kind.fields.iter().filter(|field| field.required && !kept.contains_key(field.name)) {
            if !faults.iter().any(|known| known.field == field.name) {
                faults.push(fault(field.name, format!("is missing: {}", field.about)));
            }
        }
        if faults.is_empty() { Ok(Self { values: kept }) } else { Err(faults) }
    }

    /// As stored: checked when they were written.
    pub fn from_stored(values: BTreeMap<String, String>) -> Self {
        Self { values: values.into_iter().map(|(name, value)| (name, value.into())).collect() }
    }

    pub fn secret(&self, name: &str) -> Option<&SecretString> {
        self.values.get(name)
    }

    /// Empty where there is none.
    pub fn text(&self, name: &str) -> &str {
        self.values.get(name).map_or("", |value| value.expose_secret())
    }

    /// A list is written with commas.
    pub fn list(&self, name: &str) -> impl Iterator<Item = &str> {
        self.text(name).split(',').map(str::trim).filter(|item| !item.is_empty())
    }

    /// Everything in the open, for sealing.
    pub fn expose(&self) -> BTreeMap<&str, &str> {
        self.values.iter().map(|(name, value)| (name.as_str(), value.expose_secret())).collect()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

/// For fields that may hold any text.
pub const fn any(_: &str) -> Result<(), &'static str> {
    Ok(())
}

/// For addresses of APIs.
pub fn http_url(value: &str) -> Result<(), &'static str> {
    match reqwest::Url::parse(value) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.host_str().is_some() && url.query().is_none() => {
            Ok(())
        }
        _ => Err("must be an http or https address without a query, such as https://api.example.com"),
    }
}

/// For numbers and ids without letters.
pub fn digits(value: &str) -> Result<(), &'static str> {
    if value.len() <= 20 && value.bytes().all(|byte| byte.is_ascii_digit()) { Ok(()) } else { Err("must be digits") }
}

/// For keys that are copied from a cabinet or a letter and travel in headers.
pub fn token(value: &str) -> Result<(), &'static str> {
    if value.len() <= 512 && value.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(())
    } else {
        Err("must be as the provider shows it, without spaces")
    }
}

/// For waits between requests.
pub fn milliseconds(value: &str) -> Result<(), &'static str> {
    match value.parse::<u64>() {
        Ok(0..=60_000) => Ok(()),
        _ => Err("must be milliseconds, 60000 at most"),
    }
}
