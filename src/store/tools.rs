//! Tools that companies make. Secret headers are sealed and never given back; what a person may see of them is which
//! there are, and how long ones end.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde_json::Value;
use sqlx::FromRow;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::agent::tools::http::{HttpToolDefinition, SecretHeaders};
use crate::agent::tools::is_builtin;
use crate::agent::tools::mcp::McpServerDefinition;
use crate::store::db::{At, Page, Part, Tx, args, json};
use crate::store::integrations::Shown;
use crate::store::secrets::{Sealer, tool_context};
use crate::store::{Store, StoreError};

/// Tools and servers of one company; each call looks at all of them.
pub const MAX_TOOLS: usize = 100;

/// What a company made, as it was written.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ToolDefinition {
    Http(HttpToolDefinition),
    Mcp(McpServerDefinition),
}

impl ToolDefinition {
    pub const KINDS: [&str; 2] = ["http", "mcp"];

    /// Of a kind's JSON. `None`: there is no such kind.
    pub fn read<E>(kind: &str, value: Value, read: impl ToolReader<E>) -> Option<Result<Self, E>> {
        match kind {
            "http" => Some(read.read(value).map(Self::Http)),
            "mcp" => Some(read.read(value).map(Self::Mcp)),
            _ => None,
        }
    }

    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Http(_) => "http",
            Self::Mcp(_) => "mcp",
        }
    }

    pub fn name(&self) -> &str {
        match self {
            Self::Http(tool) => &tool.name,
            Self::Mcp(server) => &server.name,
        }
    }

    /// All that is wrong, by field, each with its cure.
    pub fn faults(&self) -> Vec<(String, String)> {
        let mut faults = match self {
            Self::Http(tool) => tool.faults(),
            Self::Mcp(server) => server.faults(),
        };
        if is_builtin(self.name()) {
            faults.push(("name".to_owned(), "is the name of a tool that there is without it".to_owned()));
        }
        faults
    }

    /// What is wrong with its secrets, by header; never quotes a value.
    pub fn secret_faults(&self, secrets: &SecretHeaders) -> Vec<(String, String)> {
        match self {
            Self::Http(_) => secrets.faults(),
            Self::Mcp(server) => server.secret_faults(secrets),
        }
    }

    /// As it is stored: without its kind, which is a column.
    fn text(&self) -> String {
        match self {
            Self::Http(tool) => json(tool),
            Self::Mcp(server) => json(server),
        }
    }
}

/// Reads either definition of JSON, with errors of the reader's own.
pub trait ToolReader<E> {
    fn read<T: serde::de::DeserializeOwned>(self, value: Value) -> Result<T, E>;
}

/// Plain serde.
struct Plain;

impl ToolReader<serde_json::Error> for Plain {
    fn read<T: serde::de::DeserializeOwned>(self, value: Value) -> Result<T, serde_json::Error> {
        serde_json::from_value(value)
    }
}

/// A tool with all that it needs. Prints no secret.
#[derive(Clone, Debug)]
pub struct CompanyTool {
    pub id: Uuid,
    pub company: Uuid,
    pub definition: ToolDefinition,
    pub secrets: SecretHeaders,
}

/// A tool as it may be shown.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ToolInfo {
    pub id: Uuid,
    pub company_id: Uuid,
    #[serde(flatten)]
    pub definition: ToolDefinition,
    /// By header: what is set.
    pub secret_headers: BTreeMap<String, Shown>,
    pub created_at: At,
    pub updated_at: At,
}

#[derive(Clone, FromRow)]
pub(super) struct ToolRow {
    pub id: Uuid,
    pub company_id: Uuid,
    pub kind: String,
    pub name: String,
    pub definition: String,
    pub secrets: Vec<u8>,
    pub created_at: At,
    pub updated_at: At,
}

impl ToolRow {
    pub fn open(&self, sealer: &Sealer) -> Result<SecretHeaders, StoreError> {
        let what = format!("tool {:?}", self.name);
        let plain = sealer.open(&tool_context(self.company_id, self.id), &self.secrets, &what)?;
        // The parser's message is not passed on: it could quote a secret.
        let values: BTreeMap<String, String> = serde_json::from_slice(&plain)
            .map_err(|_| StoreError::Corrupt { what, detail: "its secret headers are not names with values".into() })?;
        Ok(SecretHeaders::new(values))
    }

    pub fn read(&self) -> Result<ToolDefinition, StoreError> {
        let corrupt = |detail: String| StoreError::Corrupt { what: format!("tool {:?}", self.name), detail };
        let value = serde_json::from_str(&self.definition).map_err(|error| corrupt(error.to_string()))?;
        let read = ToolDefinition::read(&self.kind, value, Plain);
        read.ok_or_else(|| corrupt(format!("this build does not know kind {:?}", self.kind)))?
            .map_err(|error| corrupt(error.to_string()))
    }

    pub fn tool(&self, sealer: &Sealer) -> Result<CompanyTool, StoreError> {
        let (definition, secrets) = (self.read()?, self.open(sealer)?);
        Ok(CompanyTool { id: self.id, company: self.company_id, definition, secrets })
    }

    fn info(self, sealer: &Sealer) -> Result<ToolInfo, StoreError> {
        let CompanyTool { id, company, definition, secrets } = self.tool(sealer)?;
        let shown = secrets.expose().into_iter().map(|(name, value)| (name.to_owned(), Shown::of_secret(value)));
        Ok(ToolInfo {
            id,
            company_id: company,
            definition,
            secret_headers: shown.collect(),
            created_at: self.created_at,
            updated_at: self.updated_at,
        })
    }
}

/// Writes a row, sealed.
pub(super) async fn put_tool(
    tx: &mut Tx,
    sealer: &Sealer,
    company: Uuid,
    id: Uuid,
    definition: &ToolDefinition,
    secrets: &SecretHeaders,
    now_ms: i64,
) -> Result<(), StoreError> {
    let plain = SecretString::from(json(&secrets.expose()));
    let sealed = sealer.seal(&tool_context(company, id), plain.expose_secret().as_bytes());
    tx.execute(
        "INSERT INTO tool (id, company_id, kind, name, definition, secrets, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7)
         ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, name = excluded.name,
             definition = excluded.definition, secrets = excluded.secrets, updated_at = excluded.updated_at",
        args![id, company, definition.kind(), definition.name(), definition.text(), sealed, now_ms],
    )
    .await?;
    Ok(())
}

impl Store {
    pub async fn tools(&self, company: Uuid, part: Part) -> Result<Page<ToolInfo>, StoreError> {
        let rows: Vec<ToolRow> = self
            .db
            .all(
                "SELECT id, company_id, kind, name, definition, secrets, created_at, updated_at FROM tool
                 WHERE company_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3",
                args![company, part.below(), part.fetch()],
            )
            .await?;
        let sealer = self.sealer();
        let infos = rows.into_iter().map(|row| row.info(&sealer)).collect::<Result<Vec<_>, _>>()?;
        Ok(part.page(infos, |info| info.id))
    }

    pub async fn tool(&self, company: Uuid, id: Uuid) -> Result<Option<ToolInfo>, StoreError> {
        self.tool_row(company, id).await?.map(|row| row.info(&self.sealer())).transpose()
    }

    /// With its secret headers: for running it, never for an answer.
    pub async fn tool_with_secrets(&self, company: Uuid, id: Uuid) -> Result<Option<CompanyTool>, StoreError> {
        self.tool_row(company, id).await?.map(|row| row.tool(&self.sealer())).transpose()
    }

    async fn tool_row(&self, company: Uuid, id: Uuid) -> Result<Option<ToolRow>, StoreError> {
        self.db
            .first(
                "SELECT id, company_id, kind, name, definition, secrets, created_at, updated_at FROM tool
                 WHERE company_id = $1 AND id = $2",
                args![company, id],
            )
            .await
    }

    /// Names and kinds of all that a company made.
    pub async fn tool_names(&self, company: Uuid) -> Result<Vec<(String, String)>, StoreError> {
        self.db.all("SELECT name, kind FROM tool WHERE company_id = $1 ORDER BY name LIMIT 1000", args![company]).await
    }

    /// `None`: the company has [`MAX_TOOLS`]. A duplicate name within the company is an error
    /// (`StoreError::is_duplicate`).
    pub async fn add_tool(
        &self,
        company: Uuid,
        definition: &ToolDefinition,
        secrets: &SecretHeaders,
    ) -> Result<Option<Uuid>, StoreError> {
        let id = Uuid::now_v7();
        let mut tx = self.change().await?;
        let count: Option<(i64,)> = tx.first("SELECT COUNT(*) FROM tool WHERE company_id = $1", args![company]).await?;
        if count.is_some_and(|(count,)| count >= MAX_TOOLS as i64) {
            return Ok(None);
        }
        put_tool(&mut tx, &self.sealer(), company, id, definition, secrets, At::now().as_millisecond()).await?;
        tx.commit().await?;
        Ok(Some(id))
    }

    /// `false`: this company has no such tool.
    pub async fn update_tool(
        &self,
        company: Uuid,
        id: Uuid,
        definition: &ToolDefinition,
        secrets: &SecretHeaders,
    ) -> Result<bool, StoreError> {
        let mut tx = self.change().await?;
        let found: Option<(Uuid,)> =
            tx.first("SELECT id FROM tool WHERE company_id = $1 AND id = $2", args![company, id]).await?;
        if found.is_none() {
            return Ok(false);
        }
        put_tool(&mut tx, &self.sealer(), company, id, definition, secrets, At::now().as_millisecond()).await?;
        tx.commit().await?;
        Ok(true)
    }

    pub async fn remove_tool(&self, company: Uuid, id: Uuid) -> Result<bool, StoreError> {
        let mut tx = self.change().await?;
        let gone = tx.execute("DELETE FROM tool WHERE company_id = $1 AND id = $2", args![company, id]).await?;
        tx.commit().await?;
        Ok(gone > 0)
    }
}
