//! Reads what companies set up: the rows, and the directory made of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use secrecy::SecretString;
use sqlx::FromRow;
use uuid::Uuid;

use crate::agent::profile::AgentProfile;
use crate::providers;
use crate::providers::credentials::Credentials;
use crate::store::companies::CompanySettings;
use crate::store::db::{At, Db, Json, Tx, args};
use crate::store::directory::{Directory, Integration, Line};
use crate::store::endpoints::{SecretRow, open_secrets};
use crate::store::outbox::EventKind;
use crate::store::secrets::{Sealer, integration_context, webhook_context};
use crate::store::tools::ToolRow;
use crate::store::{Store, StoreError};

#[derive(Clone, Debug, FromRow)]
pub(super) struct CompanyRow {
    pub id: Uuid,
    pub name: String,
    pub settings: Json<CompanySettings>,
}

#[derive(Clone, FromRow)]
pub(super) struct IntegrationRow {
    pub id: Uuid,
    pub company_id: Uuid,
    pub name: String,
    pub provider: String,
    pub credentials: Vec<u8>,
    pub webhook_secret: Option<Vec<u8>>,
}

#[derive(Clone, Debug, FromRow)]
pub(super) struct AgentRow {
    pub id: Uuid,
    pub company_id: Uuid,
    pub name: String,
    pub profile: String,
    pub version: i64,
}

#[derive(Clone, Debug, FromRow)]
pub(super) struct LineRow {
    pub id: Uuid,
    pub integration_id: Uuid,
    pub number: String,
    pub agent_id: Uuid,
}

#[derive(Clone, Debug, FromRow)]
pub(super) struct KnowledgeRow {
    pub id: Uuid,
    pub company_id: Uuid,
    pub name: String,
    pub language: String,
}

#[derive(Clone, FromRow)]
pub(super) struct WebhookRow {
    pub id: Uuid,
    pub company_id: Uuid,
    pub name: String,
    pub url: String,
    pub events: Json<Vec<EventKind>>,
    pub secret: Vec<u8>,
}

/// All rows, as one transaction saw them.
pub(super) struct Rows {
    pub companies: Vec<CompanyRow>,
    pub integrations: Vec<IntegrationRow>,
    pub agents: Vec<AgentRow>,
    pub lines: Vec<LineRow>,
    pub knowledge: Vec<KnowledgeRow>,
    pub tools: Vec<ToolRow>,
    pub webhooks: Vec<WebhookRow>,
}

impl Rows {
    pub async fn load(tx: &mut Tx) -> Result<Self, StoreError> {
        Ok(Self {
            companies: tx.all("SELECT id, name, settings FROM company ORDER BY id", args![]).await?,
            integrations: tx
                .all(
                    "SELECT id, company_id, name, provider, credentials, webhook_secret FROM integration ORDER BY id",
                    args![],
                )
                .await?,
            agents: tx.all("SELECT id, company_id, name, profile, version FROM agent ORDER BY id", args![]).await?,
            lines: tx.all("SELECT id, integration_id, number, agent_id FROM line ORDER BY id", args![]).await?,
            knowledge: tx.all("SELECT id, company_id, name, language FROM knowledge_base ORDER BY id", args![]).await?,
            tools: tx
                .all(
                    "SELECT id, company_id, kind, name, definition, secrets, created_at, updated_at FROM tool ORDER BY id",
                    args![],
                )
                .await?,
            webhooks: tx
                .all("SELECT id, company_id, name, url, events, secret FROM webhook_endpoint ORDER BY id", args![])
                .await?,
        })
    }

    pub fn company_name(&self, id: Uuid) -> &str {
        self.companies.iter().find(|company| company.id == id).map_or("", |company| &company.name)
    }

    pub fn directory(&self, sealer: &Sealer) -> Result<Directory, StoreError> {
        let names: HashMap<Uuid, &str> = self.companies.iter().map(|row| (row.id, row.name.as_str())).collect();
        let mut integrations = Vec::with_capacity(self.integrations.len());
        for row in &self.integrations {
            integrations.push(Integration {
                id: row.id,
                company_id: row.company_id,
                company: names.get(&row.company_id).copied().unwrap_or_default().to_owned(),
                name: row.name.clone(),
                provider: row.kind()?.name,
                credentials: row.open(sealer)?,
                webhook_secret: row.open_webhook_secret(sealer)?,
            });
        }
        let mut agents = HashMap::with_capacity(self.agents.len());
        for row in &self.agents {
            agents.insert(row.id, (row.version, Arc::new(row.read()?)));
        }
        let mut lines = Vec::with_capacity(self.lines.len());
        for row in &self.lines {
            let (agent_version, agent) = agents.get(&row.agent_id).cloned().ok_or_else(|| StoreError::Corrupt {
                what: format!("line {}", row.id),
                detail: "its agent is not there".into(),
            })?;
            lines.push(Line {
                id: row.id,
                integration: row.integration_id,
                number: row.number.clone(),
                agent_id: row.agent_id,
                agent_version,
                agent,
            });
        }
        let settings = self.companies.iter().map(|row| (row.id, row.settings.0.clone()));
        let tools = self.tools.iter().map(|row| row.tool(sealer)).collect::<Result<Vec<_>, _>>()?;
        Ok(Directory::new(integrations, lines).with_settings(settings).with_tools(tools))
    }
}

impl IntegrationRow {
    pub fn kind(&self) -> Result<&'static providers::provider::Kind, StoreError> {
        providers::kind(&self.provider).ok_or_else(|| StoreError::Corrupt {
            what: format!("integration {:?}", self.name),
            detail: format!("this build does not know provider {:?}", self.provider),
        })
    }

    pub fn open(&self, sealer: &Sealer) -> Result<Credentials, StoreError> {
        let what = format!("integration {:?}", self.name);
        let plain = sealer.open(&integration_context(self.company_id, self.id), &self.credentials, &what)?;
        // An absent value may stand as null. The parser's message is not passed on: it could quote a secret.
        let values: BTreeMap<String, Option<String>> = serde_json::from_slice(&plain)
            .map_err(|_| StoreError::Corrupt { what, detail: "its credentials are not names with values".into() })?;
        Ok(Credentials::from_stored(values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()))
    }

    pub fn open_webhook_secret(&self, sealer: &Sealer) -> Result<Option<SecretString>, StoreError> {
        let Some(sealed) = &self.webhook_secret else { return Ok(None) };
        let what = format!("webhook secret of integration {:?}", self.name);
        let plain = sealer.open(&webhook_context(self.company_id, self.id), sealed, &what)?;
        let text = String::from_utf8(plain).map_err(|_| StoreError::Corrupt { what, detail: "not UTF-8".into() })?;
        Ok(Some(text.into()))
    }
}

impl WebhookRow {
    /// The secret that signs.
    pub fn open(&self, sealer: &Sealer) -> Result<SecretString, StoreError> {
        let sealed = SecretRow { secret: self.secret.clone(), old_secret: None, old_until: None };
        Ok(open_secrets(sealer, self.company_id, self.id, &sealed, At::now())?.swap_remove(0))
    }
}

impl AgentRow {
    pub fn read(&self) -> Result<AgentProfile, StoreError> {
        serde_json::from_str(&self.profile).map_err(|error| StoreError::Corrupt {
            what: format!("profile of agent {:?}", self.name),
            detail: error.to_string(),
        })
    }
}

impl Store {
    /// Everything that incoming calls need, as one snapshot.
    pub async fn directory(&self) -> Result<Directory, StoreError> {
        Ok(self.versioned_directory().await?.1)
    }

    /// With the version of the set-up that it was read at.
    pub(super) async fn versioned_directory(&self) -> Result<(i64, Directory), StoreError> {
        let (version, rows) = self.read_setup().await?;
        match rows.directory(&self.sealer()) {
            // Another process may have rotated the key that lies in the file.
            Err(StoreError::Secrets(_)) if self.reload_key()? => Ok((version, rows.directory(&self.sealer())?)),
            read => Ok((version, read?)),
        }
    }

    async fn read_setup(&self) -> Result<(i64, Rows), StoreError> {
        let mut tx = self.db.read().await?;
        let version: Option<(i64,)> = tx.first("SELECT version FROM setup_version WHERE id = 1", args![]).await?;
        let rows = Rows::load(&mut tx).await?;
        tx.rollback().await?;
        Ok((version.map_or(0, |(version,)| version), rows))
    }
}

/// The version of the set-up: grows with every change.
pub(super) async fn setup_version(db: &Db) -> Result<i64, StoreError> {
    let row: Option<(i64,)> = db.first("SELECT version FROM setup_version WHERE id = 1", args![]).await?;
    Ok(row.map_or(0, |(version,)| version))
}
