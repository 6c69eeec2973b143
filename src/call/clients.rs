//! One client for each integration, kept while its credentials stay the same: it holds the provider's connections and
//! its rate limit. No question to a provider waits longer than [`in_time`] lets it.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use uuid::Uuid;

use crate::providers;
use crate::providers::credentials::CredentialsFault;
use crate::providers::provider::{Answer, Provider};
use crate::providers::rest::ProviderError;
use crate::store::directory::{Directory, Integration};

/// What a provider gets for one question, its client's own retries included.
const PROVIDER_LIMIT: Duration = Duration::from_secs(45);

/// Why a provider's answer is not there.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error("no answer within {} s", PROVIDER_LIMIT.as_secs())]
    TimedOut,
}

/// Gives a provider up in time.
pub async fn in_time<T>(asked: Answer<'_, T>) -> Result<T, AskError> {
    Ok(timeout(PROVIDER_LIMIT, asked).await.map_err(|_| AskError::TimedOut)??)
}

#[derive(Default)]
pub struct Clients {
    open: DashMap<Uuid, (Fingerprint, Arc<dyn Provider>)>,
}

type Fingerprint = [u8; 32];

impl Clients {
    /// The client of an integration, opened where there is none for these credentials.
    pub fn of(&self, integration: &Integration) -> Result<Arc<dyn Provider>, CredentialsFault> {
        let fingerprint = fingerprint(integration);
        if let Some(held) = self.open.get(&integration.id)
            && held.0 == fingerprint
        {
            return Ok(held.1.clone());
        }
        let kind = providers::kind(integration.provider).ok_or_else(|| CredentialsFault {
            field: "provider".into(),
            problem: format!("{:?} is no provider of this build", integration.provider),
        })?;
        let client = (kind.open)(&integration.credentials)?;
        self.open.insert(integration.id, (fingerprint, client.clone()));
        Ok(client)
    }

    /// Forgets integrations that are there no more.
    pub fn retain(&self, directory: &Directory) {
        self.open.retain(|id, _| directory.integration(*id).is_some());
    }
}

fn fingerprint(integration: &Integration) -> Fingerprint {
    let mut hash = Sha256::new();
    hash.update(integration.provider);
    for (name, value) in integration.credentials.expose() {
        // Lengths keep neighbours apart.
        for part in [name, value] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::providers::credentials::Credentials;

    fn integration(id: Uuid, token: &str) -> Integration {
        let values = [("account_sid", format!("AC{}", "0".repeat(32)).as_str()), ("auth_token", token)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        Integration {
            id,
            company_id: Uuid::now_v7(),
            company: "Acme".into(),
            name: "Main".into(),
            provider: "twilio",
            credentials: Credentials::from_stored(BTreeMap::from(values)),
            webhook_secret: None,
        }
    }

    #[test]
    fn a_client_is_kept_until_its_credentials_change_or_its_integration_goes() {
        let (clients, id) = (Clients::default(), Uuid::now_v7());
        let first = clients.of(&integration(id, "0123456789abcdef0123456789abcdef")).unwrap();
        assert!(Arc::ptr_eq(&first, &clients.of(&integration(id, "0123456789abcdef0123456789abcdef")).unwrap()));
        assert!(!Arc::ptr_eq(&first, &clients.of(&integration(id, "fedcba9876543210fedcba9876543210")).unwrap()));
        clients.retain(&Directory::default());
        assert!(clients.open.is_empty());
    }
}
