//! Agents and every version that their profiles have had.

use serde::Serialize;
use sqlx::FromRow;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::agent::profile::AgentProfile;
use crate::store::apply::profile_differences;
use crate::store::db::{At, Json, Page, Part, Tx, args, json};
use crate::store::{Store, StoreError};

#[derive(Clone, Debug, PartialEq, FromRow, Serialize, ToSchema)]
pub struct AgentInfo {
    pub id: Uuid,
    pub name: String,
    pub version: i64,
    #[schema(value_type = AgentProfile)]
    pub profile: Json<AgentProfile>,
    pub created_at: At,
    pub updated_at: At,
}

#[derive(Clone, Debug, PartialEq, FromRow, Serialize, ToSchema)]
pub struct AgentVersion {
    pub version: i64,
    #[schema(value_type = AgentProfile)]
    pub profile: Json<AgentProfile>,
    pub created_at: At,
}

/// What became of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentRemoval {
    Removed,
    Unknown,
    /// Lines are answered by it: give them another agent first.
    InUse,
}

/// Writes a profile as the agent's newest version.
pub(super) async fn put_agent(
    tx: &mut Tx,
    company: Uuid,
    id: Uuid,
    profile: &AgentProfile,
    now_ms: i64,
) -> Result<i64, StoreError> {
    let text = json(profile);
    tx.execute(
        "INSERT INTO agent (id, company_id, name, profile, version, created_at, updated_at)
         VALUES ($1, $2, $3, $4, 1, $5, $5)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, profile = excluded.profile,
             version = agent.version + 1, updated_at = excluded.updated_at",
        args![id, company, &profile.name, &text, now_ms],
    )
    .await?;
    tx.execute(
        "INSERT INTO agent_version (agent_id, version, profile, created_at)
         SELECT id, version, profile, updated_at FROM agent WHERE id = $1",
        args![id],
    )
    .await?;
    let row: Option<(i64,)> = tx.first("SELECT version FROM agent WHERE id = $1", args![id]).await?;
    Ok(row.map_or(1, |(version,)| version))
}

impl Store {
    pub async fn agents(&self, company: Uuid, part: Part) -> Result<Page<AgentInfo>, StoreError> {
        let rows = self
            .db
            .all(
                "SELECT id, name, version, profile, created_at, updated_at FROM agent
                 WHERE company_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3",
                args![company, part.below(), part.fetch()],
            )
            .await?;
        Ok(part.page(rows, |agent: &AgentInfo| agent.id))
    }

    pub async fn agent(&self, company: Uuid, id: Uuid) -> Result<Option<AgentInfo>, StoreError> {
        self.db
            .first(
                "SELECT id, name, version, profile, created_at, updated_at FROM agent WHERE company_id = $1 AND id = $2",
                args![company, id],
            )
            .await
    }

    /// Newest first; `None`: the company has no such agent.
    pub async fn agent_versions(&self, company: Uuid, id: Uuid) -> Result<Option<Vec<AgentVersion>>, StoreError> {
        let versions: Vec<AgentVersion> = self
            .db
            .all(
                "SELECT v.version, v.profile, v.created_at FROM agent_version v JOIN agent a ON a.id = v.agent_id
                 WHERE a.company_id = $1 AND a.id = $2 ORDER BY v.version DESC LIMIT 200",
                args![company, id],
            )
            .await?;
        Ok((!versions.is_empty()).then_some(versions))
    }

    /// A duplicate name within the company is an error (`StoreError::is_duplicate`).
    pub async fn add_agent(&self, company: Uuid, profile: &AgentProfile) -> Result<Uuid, StoreError> {
        let id = Uuid::now_v7();
        let mut tx = self.change().await?;
        put_agent(&mut tx, company, id, profile, At::now().as_millisecond()).await?;
        tx.commit().await?;
        Ok(id)
    }

    /// The version that it has; a profile that is the same makes none. `None`: the company has no such agent.
    pub async fn update_agent(
        &self,
        company: Uuid,
        id: Uuid,
        profile: &AgentProfile,
    ) -> Result<Option<i64>, StoreError> {
        let mut tx = self.change().await?;
        let row: Option<(i64, String)> = tx
            .first("SELECT version, profile FROM agent WHERE company_id = $1 AND id = $2", args![company, id])
            .await?;
        let Some((version, text)) = row else { return Ok(None) };
        let same = serde_json::from_str(&text).is_ok_and(|old| profile_differences(&old, profile).is_empty());
        if same {
            return Ok(Some(version));
        }
        let version = put_agent(&mut tx, company, id, profile, At::now().as_millisecond()).await?;
        tx.commit().await?;
        Ok(Some(version))
    }

    /// With its versions; the calls' records stay.
    pub async fn remove_agent(&self, company: Uuid, id: Uuid) -> Result<AgentRemoval, StoreError> {
        let mut tx = self.change().await?;
        let used: Option<(i64,)> = tx
            .first(
                "SELECT COUNT(*) FROM line l JOIN agent a ON a.id = l.agent_id WHERE a.company_id = $1 AND a.id = $2",
                args![company, id],
            )
            .await?;
        if used.is_some_and(|(lines,)| lines > 0) {
            return Ok(AgentRemoval::InUse);
        }
        let gone = tx.execute("DELETE FROM agent WHERE company_id = $1 AND id = $2", args![company, id]).await?;
        tx.commit().await?;
        Ok(if gone > 0 { AgentRemoval::Removed } else { AgentRemoval::Unknown })
    }
}
