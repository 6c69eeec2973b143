//! Reads what companies set up: the rows, and the directory made of them.

use std::collections::HashMap;
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, FromRow, SqliteConnection};
use uuid::Uuid;

use crate::agent::profile::AgentProfile;
use crate::store::directory::{Credentials, Directory, Integration, Line};
use crate::store::secrets::{Sealer, integration_context};
use crate::store::{Store, StoreError};

#[derive(Clone, Debug, FromRow)]
pub(super) struct CompanyRow {
    pub id: Uuid,
    pub name: String,
}

#[derive(Clone, Debug, FromRow)]
pub(super) struct IntegrationRow {
    pub id: Uuid,
    pub company_id: Uuid,
    pub name: String,
    pub provider: String,
    pub credentials: Vec<u8>,
}

#[derive(Clone, Debug, FromRow)]
pub(super) struct AgentRow {
    pub id: Uuid,
    pub company_id: Uuid,
    pub name: String,
    pub profile: String,
}

#[derive(Clone, Debug, FromRow)]
pub(super) struct LineRow {
    pub id: Uuid,
    pub integration_id: Uuid,
    pub number: String,
    pub agent_id: Uuid,
}

/// All rows, as one transaction saw them.
#[derive(Debug)]
pub(super) struct Rows {
    pub companies: Vec<CompanyRow>,
    pub integrations: Vec<IntegrationRow>,
    pub agents: Vec<AgentRow>,
    pub lines: Vec<LineRow>,
}

impl Rows {
    /// `connection` must be in a transaction, or the four queries may see different states.
    pub async fn load(connection: &mut SqliteConnection) -> Result<Self, StoreError> {
        Ok(Self {
            companies: sqlx::query_as("SELECT id, name FROM company ORDER BY id").fetch_all(&mut *connection).await?,
            integrations: sqlx::query_as(
                "SELECT id, company_id, name, provider, credentials FROM integration ORDER BY id",
            )
            .fetch_all(&mut *connection)
            .await?,
            agents: sqlx::query_as("SELECT id, company_id, name, profile FROM agent ORDER BY id")
                .fetch_all(&mut *connection)
                .await?,
            lines: sqlx::query_as("SELECT id, integration_id, number, agent_id FROM line ORDER BY id")
                .fetch_all(connection)
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
                company: names.get(&row.company_id).copied().unwrap_or_default().to_owned(),
                name: row.name.clone(),
                credentials: row.open(sealer)?,
            });
        }
        let mut agents = HashMap::with_capacity(self.agents.len());
        for row in &self.agents {
            agents.insert(row.id, Arc::new(row.read()?));
        }
        let mut lines = Vec::with_capacity(self.lines.len());
        for row in &self.lines {
            let agent = agents.get(&row.agent_id).ok_or_else(|| StoreError::Corrupt {
                what: format!("line {}", row.id),
                detail: "its agent is not there".into(),
            })?;
            lines.push(Line { integration: row.integration_id, number: row.number.clone(), agent: agent.clone() });
        }
        Ok(Directory::new(integrations, lines))
    }
}

impl IntegrationRow {
    pub fn open(&self, sealer: &Sealer) -> Result<Credentials, StoreError> {
        let what = format!("integration {:?}", self.name);
        let context = integration_context(self.company_id, self.id);
        let plain = SecretString::from(
            String::from_utf8(sealer.open(&context, &self.credentials, &what)?)
                .map_err(|_| StoreError::Corrupt { what: what.clone(), detail: "not UTF-8".into() })?,
        );
        match self.provider.as_str() {
            "twilio" => {
                let TwilioJson { account_sid, auth_token, api_base } = serde_json::from_str(plain.expose_secret())
                    // The parser's message could quote a secret.
                    .map_err(|_| StoreError::Corrupt { what, detail: "not the JSON of Twilio's credentials".into() })?;
                Ok(Credentials::Twilio { account_sid, auth_token: auth_token.into(), api_base })
            }
            other => Err(StoreError::Corrupt { what, detail: format!("this build does not know provider {other:?}") }),
        }
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

/// Credentials as they are sealed.
#[derive(Serialize, Deserialize)]
struct TwilioJson {
    account_sid: String,
    auth_token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    api_base: Option<String>,
}

/// The name of the provider and the credentials, sealed for this row.
pub(super) fn seal(sealer: &Sealer, company: Uuid, id: Uuid, credentials: &Credentials) -> (&'static str, Vec<u8>) {
    let Credentials::Twilio { account_sid, auth_token, api_base } = credentials;
    let json = SecretString::from(
        serde_json::to_string(&TwilioJson {
            account_sid: account_sid.clone(),
            auth_token: auth_token.expose_secret().to_owned(),
            api_base: api_base.clone(),
        })
        .expect("three strings make JSON"),
    );
    ("twilio", sealer.seal(&integration_context(company, id), json.expose_secret().as_bytes()))
}

impl Store {
    /// Everything that incoming calls need, as one snapshot.
    pub async fn directory(&self) -> Result<Directory, StoreError> {
        let mut connection = self.readers.acquire().await?;
        read_directory(&mut connection, &self.sealer).await
    }
}

pub(super) async fn read_directory(
    connection: &mut SqliteConnection,
    sealer: &Sealer,
) -> Result<Directory, StoreError> {
    let mut transaction = connection.begin().await?;
    let rows = Rows::load(&mut transaction).await?;
    transaction.rollback().await?;
    rows.directory(sealer)
}
