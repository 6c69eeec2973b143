//! An integration's account with its provider, as the store has it at this moment.

use std::sync::Arc;

use secrecy::SecretString;
use uuid::Uuid;

use super::ApiState;
use super::problem::{ApiError, Kind, missing};
use crate::providers;
use crate::providers::credentials::Credentials;
use crate::providers::provider::Provider;
use crate::store::directory::Integration;

/// An account of a company with what belongs to it.
pub(super) struct Account {
    pub provider: Arc<dyn Provider>,
    pub credentials: Credentials,
    /// Last part of its webhooks' path, for providers that sign nothing.
    pub webhook_secret: Option<SecretString>,
}

impl ApiState {
    /// `NotFound`: the company has no such integration. Read from the store: the directory in memory may be some tenths
    /// of a second behind what the client has just changed.
    pub(super) async fn account(&self, company: Uuid, id: Uuid) -> Result<Account, ApiError> {
        let info = self.store.integration(company, id).await?.ok_or_else(missing)?;
        let (credentials, webhook_secret) = self.store.integration_secrets(company, id).await?.ok_or_else(missing)?;
        let kind = providers::kind(&info.provider)
            .ok_or_else(|| ApiError::because(Kind::ProviderCannot, "this build has no such provider"))?;
        let integration = Integration {
            id,
            company_id: company,
            company: String::new(),
            name: info.name,
            provider: kind.name,
            credentials,
            webhook_secret,
        };
        let provider = self
            .outbound
            .client(&integration)
            .map_err(|fault| ApiError::field(format!("credentials.{}", fault.field), fault.problem))?;
        let Integration { credentials, webhook_secret, .. } = integration;
        Ok(Account { provider, credentials, webhook_secret })
    }
}
