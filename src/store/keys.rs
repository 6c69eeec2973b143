//! API keys, and the rotation of the key that seals secrets. An API key is shown once, when it is made; the store keeps
//! its hash and its beginning.

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine};
use rand::RngExt;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sha2::{Digest, Sha256};
use sqlx::FromRow;
use tracing::info;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::store::db::{At, Tx, args};
use crate::store::endpoints::reseal_endpoints;
use crate::store::read::Rows;
use crate::store::secrets::{self, Sealer, SecretsError, integration_context, tool_context, webhook_context};
use crate::store::users::Role;
use crate::store::{PROBE, PROBE_CONTEXT, Store, StoreError};

/// What every API key begins with, so that one that lies in a log or a repository can be found.
pub const KEY_PREFIX: &str = "ohk_";
/// Of a key, what the store and lists show: the prefix and six letters.
const SHOWN: usize = KEY_PREFIX.len() + 6;

/// 256 random bits in text, and their hash.
pub(super) struct NewSecret {
    pub text: SecretString,
    pub hash: Vec<u8>,
}

impl NewSecret {
    pub fn random(prefix: &str) -> Self {
        let text = format!("{prefix}{}", BASE64_URL_SAFE_NO_PAD.encode(rand::rng().random::<[u8; 32]>()));
        Self { hash: hash_of(&text), text: text.into() }
    }
}

/// SHA-256: what is hashed so is random, and a slow hash would protect nothing.
pub(super) fn hash_of(text: &str) -> Vec<u8> {
    Sha256::digest(text.as_bytes()).to_vec()
}

#[derive(Clone, Debug, PartialEq, FromRow, Serialize, ToSchema)]
pub struct ApiKey {
    pub id: Uuid,
    pub company_id: Uuid,
    pub name: String,
    pub prefix: String,
    pub role: Role,
    pub created_at: At,
    pub last_used_at: Option<At>,
    pub revoked_at: Option<At>,
}

/// A use is written down when the last one is longer ago than this: a busy key costs a write a minute.
const USE_NOTED_MS: i64 = 60_000;

impl Store {
    /// A new key, and its text: the only time that it is seen.
    pub async fn add_key(&self, company: Uuid, name: &str, role: Role) -> Result<(ApiKey, SecretString), StoreError> {
        let secret = NewSecret::random(KEY_PREFIX);
        let key = ApiKey {
            id: Uuid::now_v7(),
            company_id: company,
            name: name.to_owned(),
            prefix: secret.text.expose_secret().chars().take(SHOWN).collect(),
            role,
            created_at: At::now(),
            last_used_at: None,
            revoked_at: None,
        };
        self.db
            .execute(
                "INSERT INTO api_key (id, company_id, name, prefix, hash, role, created_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
                args![key.id, company, name, &key.prefix, secret.hash, role, key.created_at],
            )
            .await?;
        Ok((key, secret.text))
    }

    pub async fn keys(&self, company: Uuid) -> Result<Vec<ApiKey>, StoreError> {
        self.db
            .all(
                "SELECT id, company_id, name, prefix, role, created_at, last_used_at, revoked_at FROM api_key
                 WHERE company_id = $1 ORDER BY id DESC",
                args![company],
            )
            .await
    }

    /// `false`: no such key at this company, or revoked before.
    pub async fn revoke_key(&self, company: Uuid, id: Uuid) -> Result<bool, StoreError> {
        let revoked = self
            .db
            .execute(
                "UPDATE api_key SET revoked_at = $3 WHERE company_id = $1 AND id = $2 AND revoked_at IS NULL",
                args![company, id, At::now()],
            )
            .await?;
        Ok(revoked > 0)
    }

    /// The key of this text, unless it was revoked; its use is noted.
    pub async fn key(&self, text: &str) -> Result<Option<ApiKey>, StoreError> {
        if !text.starts_with(KEY_PREFIX) {
            return Ok(None);
        }
        let key: Option<ApiKey> = self
            .db
            .first(
                "SELECT id, company_id, name, prefix, role, created_at, last_used_at, revoked_at FROM api_key
                 WHERE hash = $1 AND revoked_at IS NULL",
                args![hash_of(text)],
            )
            .await?;
        if let Some(key) = &key {
            let now = At::now();
            let noted = key.last_used_at.map_or(i64::MIN, |at| at.as_millisecond());
            if noted < now.as_millisecond() - USE_NOTED_MS {
                self.db.execute("UPDATE api_key SET last_used_at = $2 WHERE id = $1", args![key.id, now]).await?;
            }
        }
        Ok(key)
    }

    /// Seals everything with a new key, in one transaction. The new key is on disk, beside the old one, before anything
    /// is sealed with it, and takes its place after the commit: whenever the process dies, one of the two opens all.
    /// Where the key is configured, it is given back, for the configuration; else it is in its file.
    pub async fn rotate_secrets(&self) -> Result<Rotated, StoreError> {
        let (sealer, text) = match &self.key_file {
            Some(path) => (secrets::write_new_key(&secrets::next_path(path))?, None),
            None => {
                let text = SecretString::from(BASE64_STANDARD.encode(rand::rng().random::<[u8; secrets::KEY_LEN]>()));
                (Sealer::from_base64(&text)?, Some(text))
            }
        };
        let mut tx = self.change().await?;
        let old = self.sealer();
        let values = reseal(&mut tx, &old, &sealer).await?;
        tx.commit().await?;
        if let Some(path) = &self.key_file {
            secrets::promote(&secrets::next_path(path), path)?;
        }
        self.sealer.store(std::sync::Arc::new(sealer));
        info!(values, "secrets are sealed with a new key");
        Ok(Rotated { values, key: text })
    }

    /// A rotation that was cut off between its commit and its end: the next key is the one that fits.
    pub(super) fn finish_rotation(&self, probe: &[u8]) -> Result<bool, SecretsError> {
        let Some(path) = &self.key_file else { return Ok(false) };
        let next = secrets::next_path(path);
        let Ok(sealer) = Sealer::from_file(&next, false) else { return Ok(false) };
        if sealer.open(PROBE_CONTEXT, probe, "the store").is_err() {
            return Ok(false);
        }
        secrets::promote(&next, path)?;
        self.sealer.store(std::sync::Arc::new(sealer));
        Ok(true)
    }

    /// Reads the key file again, where there is one.
    pub(super) fn reload_key(&self) -> Result<bool, SecretsError> {
        let Some(path) = &self.key_file else { return Ok(false) };
        self.sealer.store(std::sync::Arc::new(Sealer::from_file(path, false)?));
        Ok(true)
    }
}

/// What a rotation did. Prints no key.
#[derive(Clone, Debug)]
pub struct Rotated {
    /// How many sealed values there were.
    pub values: usize,
    /// To be put where `security.secrets_key` is set; `None`: it is in the key file.
    pub key: Option<SecretString>,
}

async fn reseal(tx: &mut Tx, old: &Sealer, new: &Sealer) -> Result<usize, StoreError> {
    let rows = Rows::load(tx).await?;
    let mut values = 0;
    for row in &rows.integrations {
        let what = format!("integration {:?}", row.name);
        let again = |context: &[u8], sealed: &[u8]| -> Result<Vec<u8>, SecretsError> {
            Ok(new.seal(context, &old.open(context, sealed, &what)?))
        };
        let credentials = again(&integration_context(row.company_id, row.id), &row.credentials)?;
        let context = webhook_context(row.company_id, row.id);
        let secret = row.webhook_secret.as_ref().map(|sealed| again(&context, sealed)).transpose()?;
        values += 1 + usize::from(secret.is_some());
        tx.execute(
            "UPDATE integration SET credentials = $2, webhook_secret = $3 WHERE id = $1",
            args![row.id, credentials, secret],
        )
        .await?;
    }
    for row in &rows.tools {
        let context = tool_context(row.company_id, row.id);
        let secrets = new.seal(&context, &old.open(&context, &row.secrets, &format!("tool {:?}", row.name))?);
        values += 1;
        tx.execute("UPDATE tool SET secrets = $2 WHERE id = $1", args![row.id, secrets]).await?;
    }
    values += reseal_endpoints(tx, old, new).await?;
    tx.execute("UPDATE secrets_probe SET sealed = $1 WHERE id = 1", args![new.seal(PROBE_CONTEXT, PROBE)]).await?;
    Ok(values)
}
