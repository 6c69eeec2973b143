//! Integrations: accounts with providers. Credentials are sealed and never given back; what a person may see of them is
//! which are set, and how secret ones end.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sqlx::FromRow;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::providers;
use crate::providers::credentials::Credentials;
use crate::providers::provider::Kind;
use crate::store::db::{At, Page, Part, Tx, args, json};
use crate::store::keys::NewSecret;
use crate::store::read::IntegrationRow;
use crate::store::secrets::{Sealer, integration_context, webhook_context};
use crate::store::{Store, StoreError};

/// An integration as it may be shown.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct IntegrationInfo {
    pub id: Uuid,
    pub company_id: Uuid,
    pub name: String,
    pub provider: String,
    /// The account as its provider calls it.
    pub account: Option<String>,
    /// By field: what is set.
    pub credentials: BTreeMap<String, Shown>,
    pub verified_at: Option<At>,
    pub last_error: Option<String>,
    pub created_at: At,
    pub updated_at: At,
}

/// What may be seen of one credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Shown {
    pub secret: bool,
    /// The value; of a secret one the last four characters, if it is long enough that they give little away.
    pub value: String,
}

/// Secrets shorter than this show nothing: four characters would be a good part of them.
const SHOWS_ITS_END: usize = 16;

impl Shown {
    /// Of a value that is secret in any case.
    pub(super) fn of_secret(value: &str) -> Self {
        Self::of(None, "", value)
    }

    fn of(kind: Option<&Kind>, name: &str, value: &str) -> Self {
        // A field that this build does not know is taken for a secret.
        let secret = kind.and_then(|kind| kind.fields.iter().find(|field| field.name == name)).is_none_or(|f| f.secret);
        let length = value.chars().count();
        let value = match secret {
            false => value.to_owned(),
            true if length >= SHOWS_ITS_END => value.chars().skip(length - 4).collect(),
            true => String::new(),
        };
        Self { secret, value }
    }
}

#[derive(FromRow)]
struct InfoRow {
    id: Uuid,
    company_id: Uuid,
    name: String,
    provider: String,
    credentials: Vec<u8>,
    webhook_secret: Option<Vec<u8>>,
    account: Option<String>,
    verified_at: Option<At>,
    last_error: Option<String>,
    created_at: At,
    updated_at: At,
}

impl InfoRow {
    fn read(self, sealer: &Sealer) -> Result<IntegrationInfo, StoreError> {
        let row = IntegrationRow {
            id: self.id,
            company_id: self.company_id,
            name: self.name,
            provider: self.provider,
            credentials: self.credentials,
            webhook_secret: self.webhook_secret,
        };
        let credentials = row.open(sealer)?;
        let kind = providers::kind(&row.provider);
        let shown =
            credentials.expose().into_iter().map(|(name, value)| (name.to_owned(), Shown::of(kind, name, value)));
        Ok(IntegrationInfo {
            id: row.id,
            company_id: row.company_id,
            name: row.name,
            provider: row.provider,
            account: self.account,
            credentials: shown.collect(),
            verified_at: self.verified_at,
            last_error: self.last_error,
            created_at: self.created_at,
            updated_at: self.updated_at,
        })
    }
}

/// What makes an integration.
#[derive(Clone, Copy)]
pub struct NewIntegration<'a> {
    pub company: Uuid,
    pub name: &'a str,
    pub kind: &'static Kind,
    pub credentials: &'a Credentials,
}

/// Writes a row, sealed; a webhook secret is made where there is none.
pub(super) async fn put_integration(
    tx: &mut Tx,
    sealer: &Sealer,
    id: Uuid,
    new: NewIntegration<'_>,
    secret: Option<SecretString>,
    now_ms: i64,
) -> Result<SecretString, StoreError> {
    let secret = secret.unwrap_or_else(|| NewSecret::random("").text);
    let plain = SecretString::from(json(&new.credentials.expose()));
    let credentials = sealer.seal(&integration_context(new.company, id), plain.expose_secret().as_bytes());
    let sealed_secret = sealer.seal(&webhook_context(new.company, id), secret.expose_secret().as_bytes());
    tx.execute(
        "INSERT INTO integration
             (id, company_id, name, provider, credentials, webhook_secret, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, provider = excluded.provider,
             credentials = excluded.credentials, webhook_secret = excluded.webhook_secret,
             updated_at = excluded.updated_at, verified_at = NULL, last_error = NULL",
        args![id, new.company, new.name, new.kind.name, credentials, sealed_secret, now_ms],
    )
    .await?;
    Ok(secret)
}

impl Store {
    pub async fn integrations(&self, company: Uuid, part: Part) -> Result<Page<IntegrationInfo>, StoreError> {
        let rows: Vec<InfoRow> = self
            .db
            .all(
                "SELECT id, company_id, name, provider, credentials, webhook_secret, account, verified_at, last_error,
                        created_at, updated_at
                 FROM integration WHERE company_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3",
                args![company, part.below(), part.fetch()],
            )
            .await?;
        let sealer = self.sealer();
        let infos = rows.into_iter().map(|row| row.read(&sealer)).collect::<Result<Vec<_>, _>>()?;
        Ok(part.page(infos, |info| info.id))
    }

    pub async fn integration(&self, company: Uuid, id: Uuid) -> Result<Option<IntegrationInfo>, StoreError> {
        let row: Option<InfoRow> = self
            .db
            .first(
                "SELECT id, company_id, name, provider, credentials, webhook_secret, account, verified_at, last_error,
                        created_at, updated_at
                 FROM integration WHERE company_id = $1 AND id = $2",
                args![company, id],
            )
            .await?;
        row.map(|row| row.read(&self.sealer())).transpose()
    }

    /// What opens the account, and the secret of its webhooks' path: for talking to the provider, never for an answer.
    pub async fn integration_secrets(
        &self,
        company: Uuid,
        id: Uuid,
    ) -> Result<Option<(Credentials, Option<SecretString>)>, StoreError> {
        let row: Option<IntegrationRow> = self
            .db
            .first(
                "SELECT id, company_id, name, provider, credentials, webhook_secret FROM integration
                 WHERE company_id = $1 AND id = $2",
                args![company, id],
            )
            .await?;
        let sealer = self.sealer();
        row.map(|row| Ok((row.open(&sealer)?, row.open_webhook_secret(&sealer)?))).transpose()
    }

    /// A duplicate name within the company is an error (`StoreError::is_duplicate`).
    pub async fn add_integration(&self, new: NewIntegration<'_>) -> Result<Uuid, StoreError> {
        let id = Uuid::now_v7();
        let mut tx = self.change().await?;
        put_integration(&mut tx, &self.sealer(), id, new, None, At::now().as_millisecond()).await?;
        tx.commit().await?;
        Ok(id)
    }

    /// Replaces name and credentials; the webhook's secret stays, so that what stands at the provider goes on working.
    /// `false`: this company has no such integration.
    pub async fn update_integration(&self, id: Uuid, new: NewIntegration<'_>) -> Result<bool, StoreError> {
        let mut tx = self.change().await?;
        let row: Option<IntegrationRow> = tx
            .first(
                "SELECT id, company_id, name, provider, credentials, webhook_secret FROM integration
                 WHERE company_id = $1 AND id = $2",
                args![new.company, id],
            )
            .await?;
        let Some(row) = row else { return Ok(false) };
        let sealer = self.sealer();
        let secret = row.open_webhook_secret(&sealer)?;
        put_integration(&mut tx, &sealer, id, new, secret, At::now().as_millisecond()).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// With its lines; the calls' records stay.
    pub async fn remove_integration(&self, company: Uuid, id: Uuid) -> Result<bool, StoreError> {
        let mut tx = self.change().await?;
        tx.execute(
            "DELETE FROM line WHERE integration_id IN (SELECT id FROM integration WHERE company_id = $1 AND id = $2)",
            args![company, id],
        )
        .await?;
        let gone = tx.execute("DELETE FROM integration WHERE company_id = $1 AND id = $2", args![company, id]).await?;
        tx.commit().await?;
        Ok(gone > 0)
    }

    /// What came of asking the provider: the account's name, or what it said.
    pub async fn note_verified(
        &self,
        company: Uuid,
        id: Uuid,
        outcome: Result<&str, &str>,
    ) -> Result<bool, StoreError> {
        let noted = match outcome {
            Ok(account) => {
                self.db
                    .execute(
                        "UPDATE integration SET account = $3, verified_at = $4, last_error = NULL
                         WHERE company_id = $1 AND id = $2",
                        args![company, id, account, At::now()],
                    )
                    .await?
            }
            Err(error) => {
                self.db
                    .execute(
                        "UPDATE integration SET last_error = $3 WHERE company_id = $1 AND id = $2",
                        args![company, id, error],
                    )
                    .await?
            }
        };
        Ok(noted > 0)
    }
}
