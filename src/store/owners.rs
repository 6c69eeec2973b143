//! Whose a thing is: for the administrator, who sees all companies, and for nobody else.

use uuid::Uuid;

use crate::store::db::args;
use crate::store::{Store, StoreError};

/// What belongs to one company.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owned {
    Integration,
    Line,
    Agent,
    Call,
    Message,
    Key,
    Knowledge,
    Tool,
    /// An endpoint that is told what happened.
    Webhook,
}

impl Owned {
    const fn sql(self) -> &'static str {
        match self {
            Owned::Integration => "SELECT company_id FROM integration WHERE id = $1",
            Owned::Line => {
                "SELECT i.company_id FROM line l JOIN integration i ON i.id = l.integration_id WHERE l.id = $1"
            }
            Owned::Agent => "SELECT company_id FROM agent WHERE id = $1",
            Owned::Call => "SELECT company_id FROM call WHERE id = $1",
            Owned::Message => "SELECT company_id FROM message WHERE id = $1",
            Owned::Key => "SELECT company_id FROM api_key WHERE id = $1",
            Owned::Tool => "SELECT company_id FROM tool WHERE id = $1",
            Owned::Knowledge => "SELECT company_id FROM knowledge_base WHERE id = $1",
            Owned::Webhook => "SELECT company_id FROM webhook_endpoint WHERE id = $1",
        }
    }
}

impl Store {
    /// Over all companies: never ask it on behalf of one.
    pub async fn owner(&self, what: Owned, id: Uuid) -> Result<Option<Uuid>, StoreError> {
        let row: Option<(Uuid,)> = self.db.first(what.sql(), args![id]).await?;
        Ok(row.map(|(company,)| company))
    }
}
