//! Lines: the numbers that are answered, and what stood at their provider before our webhooks did.

use serde::Serialize;
use sqlx::FromRow;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::providers::provider::WebhookSetting;
use crate::store::db::{At, Json, Page, Part, args, json};
use crate::store::{Store, StoreError};

#[derive(Clone, Debug, PartialEq, FromRow, Serialize, ToSchema)]
pub struct LineInfo {
    pub id: Uuid,
    pub integration_id: Uuid,
    pub integration: String,
    pub provider: String,
    pub number: String,
    pub agent_id: Uuid,
    pub agent: String,
    /// What the provider did with the line's calls before our webhooks were written; `None`: they were not.
    #[schema(value_type = Option<Vec<WebhookSetting>>)]
    pub saved_webhooks: Option<Json<Vec<WebhookSetting>>>,
    pub prepared_at: Option<At>,
    pub created_at: At,
}

impl Store {
    pub async fn lines(&self, company: Uuid, part: Part) -> Result<Page<LineInfo>, StoreError> {
        let rows = self
            .db
            .all(
                "SELECT l.id, l.integration_id, i.name AS integration, i.provider, l.number, l.agent_id, a.name AS agent,
                        l.saved_webhooks, l.prepared_at, l.created_at
                 FROM line l JOIN integration i ON i.id = l.integration_id JOIN agent a ON a.id = l.agent_id
                 WHERE i.company_id = $1 AND l.id < $2 ORDER BY l.id DESC LIMIT $3",
                args![company, part.below(), part.fetch()],
            )
            .await?;
        Ok(part.page(rows, |line: &LineInfo| line.id))
    }

    pub async fn line(&self, company: Uuid, id: Uuid) -> Result<Option<LineInfo>, StoreError> {
        self.db
            .first(
                "SELECT l.id, l.integration_id, i.name AS integration, i.provider, l.number, l.agent_id, a.name AS agent,
                        l.saved_webhooks, l.prepared_at, l.created_at
                 FROM line l JOIN integration i ON i.id = l.integration_id JOIN agent a ON a.id = l.agent_id
                 WHERE i.company_id = $1 AND l.id = $2",
                args![company, id],
            )
            .await
    }

    /// `None`: the company has no such integration or agent. A number that is there already is an error
    /// (`StoreError::is_duplicate`).
    pub async fn add_line(
        &self,
        company: Uuid,
        integration: Uuid,
        number: &str,
        agent: Uuid,
    ) -> Result<Option<Uuid>, StoreError> {
        let id = Uuid::now_v7();
        let mut tx = self.change().await?;
        let added = tx
            .execute(
                "INSERT INTO line (id, integration_id, number, agent_id, created_at, updated_at)
                 SELECT $2, i.id, $4, a.id, $6, $6 FROM integration i JOIN agent a ON a.company_id = i.company_id
                 WHERE i.company_id = $1 AND i.id = $3 AND a.id = $5",
                args![company, id, integration, number, agent, At::now()],
            )
            .await?;
        tx.commit().await?;
        Ok((added > 0).then_some(id))
    }

    /// `false`: the company has no such line or agent.
    pub async fn set_line_agent(&self, company: Uuid, id: Uuid, agent: Uuid) -> Result<bool, StoreError> {
        let mut tx = self.change().await?;
        let changed = tx
            .execute(
                "UPDATE line SET agent_id = $3, updated_at = $4
                 WHERE id = $2 AND integration_id IN (SELECT id FROM integration WHERE company_id = $1)
                 AND EXISTS (SELECT 1 FROM agent WHERE company_id = $1 AND id = $3)",
                args![company, id, agent, At::now()],
            )
            .await?;
        tx.commit().await?;
        Ok(changed > 0)
    }

    /// Our webhooks stand at the provider; `before` is what stood there. What was saved first is kept: a second writing
    /// finds our own.
    pub async fn keep_webhooks(&self, company: Uuid, id: Uuid, before: &[WebhookSetting]) -> Result<bool, StoreError> {
        let noted = self
            .db
            .execute(
                "UPDATE line SET saved_webhooks = $3, prepared_at = $4
                 WHERE id = $2 AND saved_webhooks IS NULL AND integration_id IN (SELECT id FROM integration WHERE company_id = $1)",
                args![company, id, json(&before), At::now()],
            )
            .await?;
        Ok(noted > 0)
    }

    /// What was saved was put back.
    pub async fn forget_webhooks(&self, company: Uuid, id: Uuid) -> Result<bool, StoreError> {
        let noted = self
            .db
            .execute(
                "UPDATE line SET saved_webhooks = NULL, prepared_at = NULL
                 WHERE id = $2 AND integration_id IN (SELECT id FROM integration WHERE company_id = $1)",
                args![company, id],
            )
            .await?;
        Ok(noted > 0)
    }

    pub async fn remove_line(&self, company: Uuid, id: Uuid) -> Result<bool, StoreError> {
        let mut tx = self.change().await?;
        let gone = tx
            .execute(
                "DELETE FROM line
                 WHERE id = $2 AND integration_id IN (SELECT id FROM integration WHERE company_id = $1)",
                args![company, id],
            )
            .await?;
        tx.commit().await?;
        Ok(gone > 0)
    }
}
