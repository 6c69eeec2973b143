//! The providers' clients, one an integration: a client keeps its provider's rate limit, so that two would break it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

use super::problem::{ApiError, Kind};
use crate::providers::credentials::Credentials;
use crate::providers::kind;
use crate::providers::provider::Provider;
use crate::store::{At, Store};

/// Clients that are kept; beyond it all are opened again as they are needed.
const KEPT: usize = 1024;

type Client = (At, Arc<dyn Provider>);

/// Opened clients, with the moment of the credentials that they were opened with.
#[derive(Default)]
pub struct Accounts {
    open: Mutex<HashMap<Uuid, Client>>,
}

/// An account of a company with what belongs to it.
pub(super) struct Account {
    pub provider: Arc<dyn Provider>,
    pub credentials: Credentials,
    /// Last part of its webhooks' path, for providers that sign nothing.
    pub webhook_secret: Option<secrecy::SecretString>,
}

impl Accounts {
    /// `NotFound`: the company has no such integration.
    pub(super) async fn of(&self, store: &Store, company: Uuid, id: Uuid) -> Result<Account, ApiError> {
        let missing = || ApiError::new(Kind::NotFound);
        let info = store.integration(company, id).await?.ok_or_else(missing)?;
        let (credentials, webhook_secret) = store.integration_secrets(company, id).await?.ok_or_else(missing)?;
        let provider = match self.kept(id, info.updated_at) {
            Some(provider) => provider,
            None => {
                let kind = kind(&info.provider)
                    .ok_or_else(|| ApiError::because(Kind::ProviderCannot, "this build has no such provider"))?;
                let provider = (kind.open)(&credentials)
                    .map_err(|fault| ApiError::field(format!("credentials.{}", fault.field), fault.problem))?;
                self.keep(id, (info.updated_at, provider.clone()));
                provider
            }
        };
        Ok(Account { provider, credentials, webhook_secret })
    }

    fn kept(&self, id: Uuid, updated: At) -> Option<Arc<dyn Provider>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&id).filter(|(at, _)| *at == updated).map(|(_, provider)| provider.clone())
    }

    fn keep(&self, id: Uuid, client: Client) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= KEPT {
            open.clear();
        }
        open.insert(id, client);
    }
}

impl std::fmt::Debug for Accounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Accounts")
    }
}
