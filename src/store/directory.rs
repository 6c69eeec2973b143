//! Who owns which line and which agent answers it: an in-memory picture of the store, read on every webhook, so that an
//! incoming call never waits for a disk.

use std::collections::HashMap;
use std::sync::Arc;

use secrecy::SecretString;
use uuid::Uuid;

use crate::agent::profile::AgentProfile;
use crate::providers::credentials::Credentials;
use crate::store::companies::CompanySettings;
use crate::store::tools::CompanyTool;

/// One account with one provider. Secrets print as dots.
#[derive(Clone, Debug)]
pub struct Integration {
    pub id: Uuid,
    pub company_id: Uuid,
    pub company: String,
    pub name: String,
    /// Name of its [`crate::providers::provider::Kind`].
    pub provider: &'static str,
    pub credentials: Credentials,
    /// Last part of the path of its webhooks, for providers that do not sign them.
    pub webhook_secret: Option<SecretString>,
}

/// A number and the agent that answers it.
#[derive(Clone, Debug)]
pub struct Line {
    pub id: Uuid,
    pub integration: Uuid,
    pub number: String,
    pub agent_id: Uuid,
    pub agent_version: i64,
    pub agent: Arc<AgentProfile>,
}

/// A snapshot: replaced whole when the store changes.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    integrations: HashMap<Uuid, Arc<Integration>>,
    lines: HashMap<(Uuid, String), Arc<Line>>,
    settings: HashMap<Uuid, Arc<CompanySettings>>,
    tools: Vec<Arc<CompanyTool>>,
}

impl Directory {
    pub fn new(integrations: Vec<Integration>, lines: Vec<Line>) -> Self {
        Self {
            integrations: integrations.into_iter().map(|i| (i.id, Arc::new(i))).collect(),
            lines: lines.into_iter().map(|l| ((l.integration, l.number.clone()), Arc::new(l))).collect(),
            settings: HashMap::new(),
            tools: Vec::new(),
        }
    }

    /// With the settings of companies, by their ids.
    pub fn with_settings(mut self, settings: impl IntoIterator<Item = (Uuid, CompanySettings)>) -> Self {
        self.settings.extend(settings.into_iter().map(|(company, settings)| (company, Arc::new(settings))));
        self
    }

    /// With the tools that companies made.
    pub fn with_tools(mut self, tools: Vec<CompanyTool>) -> Self {
        self.tools = tools.into_iter().map(Arc::new).collect();
        self
    }

    /// Of all companies.
    pub fn tools(&self) -> impl Iterator<Item = &Arc<CompanyTool>> {
        self.tools.iter()
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

    /// The integrations of one company.
    pub fn integrations_of(&self, company: Uuid) -> impl Iterator<Item = &Arc<Integration>> {
        self.integrations.values().filter(move |integration| integration.company_id == company)
    }

    /// A company's settings; the defaults where it has none.
    pub fn settings(&self, company: Uuid) -> Arc<CompanySettings> {
        self.settings.get(&company).cloned().unwrap_or_default()
    }
}
