//! Where companies are told what happened: addresses, the events that each wants, and the secrets that sign what it gets.
//! A secret is shown once, when it is made; while it changes, the one before it signs too.

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use rand::RngExt;
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sqlx::FromRow;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::store::db::{At, Json, Tx, args, json};
use crate::store::outbox::{EventKind, give_up_waiting};
use crate::store::outcomes::millis;
use crate::store::secrets::{Sealer, SecretsError, endpoint_context};
use crate::store::{Store, StoreError};

/// Endpoints of one company: every event is written and sent once for each.
pub const MAX_ENDPOINTS: usize = 10;
const MAX_URL: usize = 2000;
/// What every secret begins with (Standard Webhooks), so that one that lies in a log or a repository can be found.
pub const SECRET_PREFIX: &str = "whsec_";
/// Of a generated secret; Standard Webhooks asks for 24 to 64.
const SECRET_BYTES: usize = 32;

/// An endpoint as it may be shown.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Endpoint {
    pub id: Uuid,
    pub company_id: Uuid,
    pub name: String,
    pub url: String,
    pub events: Vec<EventKind>,
    pub enabled: bool,
    /// Why it was switched off, where nobody asked for it.
    pub disabled_reason: Option<String>,
    /// Until then, what is sent carries the signature of the secret before this one too.
    pub old_secret_until: Option<At>,
    pub created_at: At,
    pub updated_at: At,
}

#[derive(FromRow)]
struct EndpointRow {
    id: Uuid,
    company_id: Uuid,
    name: String,
    url: String,
    events: Json<Vec<EventKind>>,
    enabled: i64,
    disabled_reason: Option<String>,
    old_until: Option<At>,
    created_at: At,
    updated_at: At,
}

impl From<EndpointRow> for Endpoint {
    fn from(row: EndpointRow) -> Self {
        Self {
            id: row.id,
            company_id: row.company_id,
            name: row.name,
            url: row.url,
            events: row.events.0,
            enabled: row.enabled != 0,
            disabled_reason: row.disabled_reason,
            old_secret_until: row.old_until.filter(|until| *until > At::now()),
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// The sealed secrets of an endpoint.
#[derive(Clone, FromRow)]
pub(super) struct SecretRow {
    pub secret: Vec<u8>,
    pub old_secret: Option<Vec<u8>>,
    pub old_until: Option<i64>,
}

/// What makes an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct NewEndpoint<'a> {
    pub company: Uuid,
    pub name: &'a str,
    pub url: &'a str,
    pub events: &'a [EventKind],
}

/// What changes; absent fields stay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointChange {
    pub name: Option<String>,
    pub url: Option<String>,
    pub events: Option<Vec<EventKind>>,
    pub enabled: Option<bool>,
}

/// What is wrong with an address, or `None`. Where it leads is decided when it is connected to.
pub fn url_fault(text: &str) -> Option<&'static str> {
    let Ok(url) = Url::parse(text) else { return Some("is no address: write https://crm.example.com/offhook") };
    if text.len() > MAX_URL {
        Some("is longer than 2000 bytes")
    } else if !matches!(url.scheme(), "https" | "http") || url.host_str().is_none_or(str::is_empty) {
        Some("must begin with https://")
    } else if !url.username().is_empty() || url.password().is_some() {
        Some("must not hold a user or a password: what is sent is signed")
    } else if url.fragment().is_some() {
        Some("must not hold a fragment (#…)")
    } else {
        None
    }
}

/// What is wrong with a list of events, or `None`.
pub fn events_fault(events: &[EventKind]) -> Option<&'static str> {
    let twice = events.iter().enumerate().any(|(index, event)| events[..index].contains(event));
    match events {
        [] => Some("is empty: name what is to be told"),
        _ if twice => Some("names an event twice"),
        _ => None,
    }
}

/// The bytes of a secret. `None`: it is not of the form `whsec_` and 24 to 64 bytes in base64.
pub fn secret_bytes(secret: &SecretString) -> Option<Vec<u8>> {
    let text = secret.expose_secret().strip_prefix(SECRET_PREFIX)?;
    BASE64_STANDARD.decode(text).ok().filter(|bytes| (24..=64).contains(&bytes.len()))
}

fn random_secret() -> SecretString {
    format!("{SECRET_PREFIX}{}", BASE64_STANDARD.encode(rand::rng().random::<[u8; SECRET_BYTES]>())).into()
}

/// The secrets that sign now, the newest first.
pub(super) fn open_secrets(
    sealer: &Sealer,
    company: Uuid,
    id: Uuid,
    row: &SecretRow,
    now: At,
) -> Result<Vec<SecretString>, StoreError> {
    let open = |sealed: &[u8]| -> Result<SecretString, StoreError> {
        let what = format!("secret of webhook {id}");
        let plain = sealer.open(&endpoint_context(company, id), sealed, &what)?;
        let text = String::from_utf8(plain).map_err(|_| StoreError::Corrupt { what, detail: "not UTF-8".into() })?;
        Ok(text.into())
    };
    let mut secrets = vec![open(&row.secret)?];
    if let Some(old) = &row.old_secret
        && row.old_until.is_some_and(|until| until > now.as_millisecond())
    {
        secrets.push(open(old)?);
    }
    Ok(secrets)
}

/// Writes a row. `secret`: the one that it gets; `None` keeps the one that is there, and makes one where there is none.
pub(super) async fn put_endpoint(
    tx: &mut Tx,
    sealer: &Sealer,
    id: Uuid,
    new: NewEndpoint<'_>,
    secret: Option<&SecretString>,
) -> Result<Option<SecretString>, StoreError> {
    let now = At::now();
    let known: Option<(Uuid,)> = tx.first("SELECT id FROM webhook_endpoint WHERE id = $1", args![id]).await?;
    let context = endpoint_context(new.company, id);
    let seal = |secret: &SecretString| sealer.seal(&context, secret.expose_secret().as_bytes());
    if known.is_some() {
        tx.execute(
            "UPDATE webhook_endpoint SET name = $2, url = $3, events = $4, updated_at = $5 WHERE id = $1",
            args![id, new.name, new.url, json(&new.events), now],
        )
        .await?;
        if let Some(secret) = secret {
            tx.execute("UPDATE webhook_endpoint SET secret = $2 WHERE id = $1", args![id, seal(secret)]).await?;
        }
        return Ok(None);
    }
    let made = secret.cloned().unwrap_or_else(random_secret);
    tx.execute(
        "INSERT INTO webhook_endpoint (id, company_id, name, url, events, secret, enabled, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, 1, $7, $7)",
        args![id, new.company, new.name, new.url, json(&new.events), seal(&made), now],
    )
    .await?;
    Ok(Some(made))
}

/// Seals every endpoint's secrets with another key; gives how many there were.
pub(super) async fn reseal_endpoints(tx: &mut Tx, old: &Sealer, new: &Sealer) -> Result<usize, StoreError> {
    /// Id, company, secret, old secret.
    type Sealed = (Uuid, Uuid, Vec<u8>, Option<Vec<u8>>);
    let rows: Vec<Sealed> = tx.all("SELECT id, company_id, secret, old_secret FROM webhook_endpoint", args![]).await?;
    let mut values = 0;
    for (id, company, secret, old_secret) in rows {
        let context = endpoint_context(company, id);
        let again = |sealed: &[u8]| -> Result<Vec<u8>, SecretsError> {
            Ok(new.seal(&context, &old.open(&context, sealed, "a webhook's secret")?))
        };
        let (secret, old_secret) = (again(&secret)?, old_secret.as_deref().map(again).transpose()?);
        values += 1 + usize::from(old_secret.is_some());
        tx.execute(
            "UPDATE webhook_endpoint SET secret = $2, old_secret = $3 WHERE id = $1",
            args![id, secret, old_secret],
        )
        .await?;
    }
    Ok(values)
}

impl Store {
    /// All of a company's endpoints, the oldest first: there are few.
    pub async fn endpoints(&self, company: Uuid) -> Result<Vec<Endpoint>, StoreError> {
        let rows: Vec<EndpointRow> = self
            .db
            .all(
                "SELECT id, company_id, name, url, events, enabled, disabled_reason, old_until, created_at, updated_at
                 FROM webhook_endpoint WHERE company_id = $1 ORDER BY id",
                args![company],
            )
            .await?;
        Ok(rows.into_iter().map(Endpoint::from).collect())
    }

    pub async fn endpoint(&self, company: Uuid, id: Uuid) -> Result<Option<Endpoint>, StoreError> {
        let row: Option<EndpointRow> = self
            .db
            .first(
                "SELECT id, company_id, name, url, events, enabled, disabled_reason, old_until, created_at, updated_at
                 FROM webhook_endpoint WHERE company_id = $1 AND id = $2",
                args![company, id],
            )
            .await?;
        Ok(row.map(Endpoint::from))
    }

    /// A new endpoint, and its secret: the only time that it is seen. `None`: the company has `MAX_ENDPOINTS` already. A
    /// duplicate name is an error (`StoreError::is_duplicate`).
    pub async fn add_endpoint(&self, new: NewEndpoint<'_>) -> Result<Option<(Uuid, SecretString)>, StoreError> {
        let id = Uuid::now_v7();
        let mut tx = self.change().await?;
        let there: Option<(i64,)> =
            tx.first("SELECT COUNT(*) FROM webhook_endpoint WHERE company_id = $1", args![new.company]).await?;
        if there.is_some_and(|(there,)| there >= MAX_ENDPOINTS as i64) {
            return Ok(None);
        }
        let secret = put_endpoint(&mut tx, &self.sealer(), id, new, None).await?;
        tx.commit().await?;
        Ok(secret.map(|secret| (id, secret)))
    }

    /// Switched off, it is told nothing, and what waits for it is given up. `false`: the company has no such endpoint.
    pub async fn change_endpoint(&self, company: Uuid, id: Uuid, change: &EndpointChange) -> Result<bool, StoreError> {
        let mut tx = self.change().await?;
        let found = tx
            .execute(
                "UPDATE webhook_endpoint SET name = COALESCE($3, name), url = COALESCE($4, url),
                     events = COALESCE($5, events), enabled = COALESCE($6, enabled),
                     disabled_reason = CASE WHEN $6 IS NULL THEN disabled_reason ELSE NULL END, updated_at = $7
                 WHERE company_id = $1 AND id = $2",
                args![
                    company,
                    id,
                    change.name.as_deref(),
                    change.url.as_deref(),
                    change.events.as_ref().map(json),
                    change.enabled.map(i64::from),
                    At::now()
                ],
            )
            .await?;
        if found > 0 && change.enabled == Some(false) {
            give_up_waiting(&mut tx, id).await?;
        }
        tx.commit().await?;
        Ok(found > 0)
    }

    /// A new secret; the one before it signs too for as long as `keep`. `None`: the company has no such endpoint.
    pub async fn rotate_endpoint(
        &self,
        company: Uuid,
        id: Uuid,
        keep: Duration,
    ) -> Result<Option<SecretString>, StoreError> {
        let secret = random_secret();
        let mut tx = self.change().await?;
        let sealed = self.sealer().seal(&endpoint_context(company, id), secret.expose_secret().as_bytes());
        let now = At::now();
        let found = tx
            .execute(
                "UPDATE webhook_endpoint SET old_secret = secret, old_until = $4, secret = $3, updated_at = $5
                 WHERE company_id = $1 AND id = $2",
                args![company, id, sealed, now.as_millisecond() + millis(keep), now],
            )
            .await?;
        tx.commit().await?;
        Ok((found > 0).then_some(secret))
    }

    /// With its deliveries.
    pub async fn remove_endpoint(&self, company: Uuid, id: Uuid) -> Result<bool, StoreError> {
        let gone = self
            .db
            .execute("DELETE FROM webhook_endpoint WHERE company_id = $1 AND id = $2", args![company, id])
            .await?;
        Ok(gone > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_https_and_holds_nobodys_name() {
        assert_eq!(url_fault("https://crm.example.com/hooks?tenant=5"), None);
        let long = format!("https://a.example/{}", "x".repeat(MAX_URL));
        for bad in ["", "crm.example.com", "ftp://a.example/", "https://u:p@a.example/", "https://a.example/#x", &long]
        {
            assert!(url_fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_of_the_form_that_standard_webhooks_has() {
        assert_eq!(secret_bytes(&random_secret()).map(|bytes| bytes.len()), Some(SECRET_BYTES));
        for bad in ["", "whsec_", "whsec_c2hvcnQ=", "plain", "whsec_!!!"] {
            assert_eq!(secret_bytes(&SecretString::from(bad.to_owned())), None, "{bad}");
        }
    }

    #[test]
    fn an_endpoint_wants_some_events_each_once() {
        assert_eq!(events_fault(&EventKind::ALL), None);
        assert!(events_fault(&[]).is_some());
        assert!(events_fault(&[EventKind::CallEnded, EventKind::CallEnded]).is_some());
    }
}
