//! Who owns which line and which agent answers it: an in-memory picture of the store, read on every webhook, so that an
//! incoming call never waits for a disk.

use std::collections::HashMap;
use std::sync::Arc;

use secrecy::SecretString;
use uuid::Uuid;

use crate::agent::profile::AgentProfile;

/// One account with one provider.
#[derive(Clone, Debug)]
pub struct Integration {
    pub id: Uuid,
    pub company: String,
    pub name: String,
    pub credentials: Credentials,
}

/// What a provider wants to know of us, and how we know it is the provider. Secrets print as dots.
#[derive(Clone, Debug)]
pub enum Credentials {
    Twilio { account_sid: String, auth_token: SecretString, api_base: Option<String> },
}

/// A number and the agent that answers it.
#[derive(Clone, Debug)]
pub struct Line {
    pub integration: Uuid,
    pub number: String,
    pub agent: Arc<AgentProfile>,
}

/// A snapshot: replaced whole when the store changes.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    integrations: HashMap<Uuid, Arc<Integration>>,
    lines: HashMap<(Uuid, String), Arc<Line>>,
}

impl Directory {
    pub fn new(integrations: Vec<Integration>, lines: Vec<Line>) -> Self {
        Self {
            integrations: integrations.into_iter().map(|i| (i.id, Arc::new(i))).collect(),
            lines: lines.into_iter().map(|l| ((l.integration, l.number.clone()), Arc::new(l))).collect(),
        }
    }

    pub fn integration(&self, id: Uuid) -> Option<&Arc<Integration>> {
        self.integrations.get(&id)
    }

    pub fn line(&self, integration: Uuid, number: &str) -> Option<&Arc<Line>> {
        self.lines.get(&(integration, number.to_owned()))
    }

    pub fn integrations(&self) -> impl Iterator<Item = &Arc<Integration>> {
        self.integrations.values()
    }

    pub fn lines(&self) -> impl Iterator<Item = &Arc<Line>> {
        self.lines.values()
    }
}
