//! Makes the store say what a set-up file says: creates and updates what the file names, leaves the rest, or removes
//! it on request. All in one transaction: a running server sees the whole change or nothing of it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use crate::agent::profile::AgentProfile;
use crate::clock;
use crate::providers::credentials::Credentials;
use crate::store::agents::put_agent;
use crate::store::belongings::Belongings;
use crate::store::companies::CompanySettings;
use crate::store::db::{Tx, args, json};
use crate::store::endpoints::{NewEndpoint, put_endpoint};
use crate::store::integrations::{NewIntegration, put_integration};
use crate::store::knowledge::put_base;
use crate::store::read::{AgentRow, CompanyRow, IntegrationRow, KnowledgeRow, LineRow, Rows, WebhookRow};
use crate::store::secrets::Sealer;
use crate::store::setup::{
    CompanySetup, Fault, IntegrationSetup, KnowledgeSetup, LineSetup, Setup, ToolSetup, WebhookSetup,
};
use crate::store::tools::{ToolRow, put_tool};
use crate::store::{Store, StoreError};

#[derive(Clone, Copy, Debug, Default)]
pub struct ApplyOptions {
    /// Remove what the file does not name.
    pub prune: bool,
    /// Find the difference, change nothing.
    pub dry_run: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The file refers to things that are nowhere. Nothing was changed.
    #[error("{}", faults(.0))]
    Faults(Vec<Fault>),
    /// Pruning by a file that names nothing would empty the store. Nothing was changed.
    #[error("the file names nothing, so that --prune would remove everything")]
    PruneAll,
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn faults(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Created,
    Updated,
    Unchanged,
    Removed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Thing {
    Company,
    Integration,
    Agent,
    Line,
    Knowledge,
    Tool,
    /// An endpoint that is told what happened.
    Webhook,
}

/// What happened to one thing. Holds no secret and no value, only names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub action: Action,
    pub thing: Thing,
    /// `Acme / Main Phone Line / +15550001111`.
    pub name: String,
    /// What differs, where it was updated.
    pub fields: Vec<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = match self.action {
            Action::Created => "created",
            Action::Updated => "updated",
            Action::Unchanged => "unchanged",
            Action::Removed => "removed",
        };
        let thing = match self.thing {
            Thing::Company => "company",
            Thing::Integration => "integration",
            Thing::Agent => "agent",
            Thing::Line => "line",
            Thing::Knowledge => "knowledge",
            Thing::Tool => "tool",
            Thing::Webhook => "webhook",
        };
        write!(f, "{action:<9}  {thing:<11}  {}", self.name)?;
        if !self.fields.is_empty() {
            write!(f, " ({})", self.fields.join(", "))?;
        }
        Ok(())
    }
}

/// An integration of the file, whose provider has to be told where to post.
#[derive(Clone, Debug)]
pub struct Webhook {
    pub company: String,
    pub integration: String,
    pub provider: &'static str,
    /// `None`: the integration would be created, and gets its id then.
    pub id: Option<Uuid>,
    /// Last part of the path, for a provider that signs nothing: whoever knows it is believed.
    pub secret: Option<SecretString>,
}

/// What was done, or would be.
#[derive(Clone, Debug, Default)]
pub struct Diff {
    pub changes: Vec<Change>,
    pub webhooks: Vec<Webhook>,
}

impl Diff {
    pub fn count(&self, action: Action) -> usize {
        self.changes.iter().filter(|change| change.action == action).count()
    }

    fn is_empty(&self) -> bool {
        self.count(Action::Unchanged) == self.changes.len()
    }
}

impl Store {
    /// Applies a set-up that was read without faults.
    pub async fn apply(&self, setup: &Setup, options: ApplyOptions) -> Result<Diff, ApplyError> {
        if options.prune && setup.is_empty() {
            return Err(ApplyError::PruneAll);
        }
        let mut tx = self.change().await?;
        let rows = Rows::load(&mut tx).await?;
        let faults = References::new(setup, &rows).faults(setup);
        if !faults.is_empty() {
            return Err(ApplyError::Faults(faults));
        }
        let sealer = self.sealer();
        let work = Work {
            tx: &mut tx,
            sealer: &sealer,
            now_ms: clock::now().as_millisecond(),
            before: Before::new(&rows),
            after: After::default(),
            diff: Diff::default(),
        };
        let mut diff = work.run(setup, &rows, options.prune).await?;
        // What changes nothing wakes no server.
        if options.dry_run || diff.is_empty() {
            tx.rollback().await?;
            let existing: HashSet<Uuid> = rows.integrations.iter().map(|row| row.id).collect();
            for webhook in &mut diff.webhooks {
                if webhook.id.is_some_and(|id| !existing.contains(&id)) {
                    (webhook.id, webhook.secret) = (None, None);
                }
            }
        } else {
            tx.commit().await?;
        }
        Ok(diff)
    }

    /// The references of a set-up that lead nowhere: for reporting them together with a file's other faults.
    pub async fn unresolved(&self, setup: &Setup) -> Result<Vec<Fault>, StoreError> {
        let mut tx = self.db.read().await?;
        let rows = Rows::load(&mut tx).await?;
        tx.rollback().await?;
        Ok(References::new(setup, &rows).faults(setup))
    }
}

impl Setup {
    fn is_empty(&self) -> bool {
        self.companies.is_empty()
            && self.integrations.is_empty()
            && self.lines.is_empty()
            && self.agents.is_empty()
            && self.knowledge.is_empty()
            && self.tools.is_empty()
            && self.webhooks.is_empty()
    }
}

/// All names that a file may refer to: its own and the store's.
struct References {
    companies: BTreeSet<String>,
    integrations: BTreeSet<(String, String)>,
    agents: BTreeSet<(String, String)>,
    /// By company.
    belongings: BTreeMap<String, Belongings>,
}

impl References {
    fn new(setup: &Setup, rows: &Rows) -> Self {
        let mut companies = setup.named.companies.clone();
        companies.extend(rows.companies.iter().map(|row| row.name.clone()));
        let mut integrations = setup.named.integrations.clone();
        integrations.extend(
            rows.integrations.iter().map(|row| (rows.company_name(row.company_id).to_owned(), row.name.clone())),
        );
        let mut agents = setup.named.agents.clone();
        agents.extend(rows.agents.iter().map(|row| (rows.company_name(row.company_id).to_owned(), row.name.clone())));
        Self { companies, integrations, agents, belongings: belongings(setup, rows) }
    }

    fn faults(&self, setup: &Setup) -> Vec<Fault> {
        let mut faults = Vec::new();
        let owners = setup
            .integrations
            .iter()
            .map(|integration| (&integration.place, &integration.company))
            .chain(setup.agents.iter().map(|agent| (&agent.place, &agent.company)))
            .chain(setup.knowledge.iter().map(|knowledge| (&knowledge.place, &knowledge.company)))
            .chain(setup.tools.iter().map(|tool| (&tool.place, &tool.company)))
            .chain(setup.webhooks.iter().map(|webhook| (&webhook.place, &webhook.company)));
        for (place, company) in owners {
            if !self.companies.contains(company) {
                faults.push(place.fault("company", format!("no company {company:?} in this file or in the store")));
            }
        }
        for agent in &setup.agents {
            let none = Belongings::default();
            let missing = self.belongings.get(&agent.company).unwrap_or(&none).missing(&agent.profile);
            faults.extend(missing.into_iter().map(|it| agent.place.fault(it.field, it.problem)));
        }
        let mut lines = HashSet::new();
        for line in &setup.lines {
            match self.company_of(line) {
                Err((field, problem)) => faults.push(line.place.fault(field, problem)),
                Ok(company) => {
                    if !self.agents.contains(&(company.clone(), line.agent.clone())) {
                        let problem = format!("no agent {:?} of company {company:?}", line.agent);
                        faults.push(line.place.fault("agent", problem));
                    }
                    if !lines.insert((company, &line.integration, &line.number)) {
                        let problem = "there is a [[line]] of this integration and number above";
                        faults.push(line.place.fault("number", problem));
                    }
                }
            }
        }
        faults
    }

    /// The company of a line: named, or the only one that has an integration of this name.
    fn company_of(&self, line: &LineSetup) -> Result<String, (&'static str, String)> {
        let name = &line.integration;
        if let Some(company) = &line.company {
            if !self.companies.contains(company) {
                return Err(("company", format!("no company {company:?} in this file or in the store")));
            }
            if !self.integrations.contains(&(company.clone(), name.clone())) {
                return Err(("integration", format!("no integration {name:?} of company {company:?}")));
            }
            return Ok(company.clone());
        }
        let owners: Vec<&String> =
            self.integrations.iter().filter(|(_, other)| other == name).map(|(company, _)| company).collect();
        match owners[..] {
            [] => Err(("integration", format!("no integration {name:?} in this file or in the store"))),
            [company] => Ok(company.clone()),
            _ => Err(("company", format!("several companies have an integration {name:?}; say which one's it is"))),
        }
    }
}

/// What each company will have that agents name: of the file, of its faulty tables too, and of the store.
fn belongings(setup: &Setup, rows: &Rows) -> BTreeMap<String, Belongings> {
    let mut all = BTreeMap::<String, Belongings>::new();
    for (company, name) in &setup.named.tools {
        all.entry(company.clone()).or_default().add_tool(name, None);
    }
    for (company, name) in &setup.named.knowledge {
        all.entry(company.clone()).or_default().add_knowledge(name);
    }
    for row in &rows.tools {
        all.entry(rows.company_name(row.company_id).to_owned()).or_default().add_tool(&row.name, Some(&row.kind));
    }
    for row in &rows.knowledge {
        all.entry(rows.company_name(row.company_id).to_owned()).or_default().add_knowledge(&row.name);
    }
    for tool in &setup.tools {
        let kind = tool.definition.kind();
        all.entry(tool.company.clone()).or_default().add_tool(tool.definition.name(), Some(kind));
    }
    all
}

/// The store before the change, by what things are known by.
struct Before<'a> {
    companies: HashMap<&'a str, &'a CompanyRow>,
    integrations: HashMap<(Uuid, &'a str), &'a IntegrationRow>,
    agents: HashMap<(Uuid, &'a str), &'a AgentRow>,
    lines: HashMap<(Uuid, &'a str), &'a LineRow>,
    knowledge: HashMap<(Uuid, &'a str), &'a KnowledgeRow>,
    tools: HashMap<(Uuid, &'a str), &'a ToolRow>,
    webhooks: HashMap<(Uuid, &'a str), &'a WebhookRow>,
}

impl<'a> Before<'a> {
    fn new(rows: &'a Rows) -> Self {
        Self {
            companies: rows.companies.iter().map(|row| (row.name.as_str(), row)).collect(),
            integrations: rows.integrations.iter().map(|row| ((row.company_id, row.name.as_str()), row)).collect(),
            agents: rows.agents.iter().map(|row| ((row.company_id, row.name.as_str()), row)).collect(),
            lines: rows.lines.iter().map(|row| ((row.integration_id, row.number.as_str()), row)).collect(),
            knowledge: rows.knowledge.iter().map(|row| ((row.company_id, row.name.as_str()), row)).collect(),
            tools: rows.tools.iter().map(|row| ((row.company_id, row.name.as_str()), row)).collect(),
            webhooks: rows.webhooks.iter().map(|row| ((row.company_id, row.name.as_str()), row)).collect(),
        }
    }
}

/// The ids of everything that the file names, directly or by a reference.
#[derive(Default)]
struct After {
    companies: HashMap<String, Uuid>,
    integrations: HashMap<(Uuid, String), Uuid>,
    agents: HashMap<(Uuid, String), Uuid>,
    lines: HashSet<Uuid>,
    knowledge: HashSet<Uuid>,
    tools: HashSet<Uuid>,
    webhooks: HashSet<Uuid>,
}

struct Work<'a> {
    tx: &'a mut Tx,
    sealer: &'a Sealer,
    now_ms: i64,
    before: Before<'a>,
    after: After,
    diff: Diff,
}

/// Every reference of the file was looked up before any row is written.
const RESOLVED: &str = "references were checked above";

impl Work<'_> {
    async fn run(mut self, setup: &Setup, rows: &Rows, prune: bool) -> Result<Diff, ApplyError> {
        for company in &setup.companies {
            self.company(company).await?;
        }
        for integration in &setup.integrations {
            self.integration(integration).await?;
        }
        for tool in &setup.tools {
            self.tool(tool).await?;
        }
        for agent in &setup.agents {
            self.agent(&agent.company, &agent.profile).await?;
        }
        let references = References::new(setup, rows);
        for line in &setup.lines {
            let company = references.company_of(line).expect(RESOLVED);
            self.line(&company, line).await?;
        }
        for knowledge in &setup.knowledge {
            self.knowledge(knowledge).await?;
        }
        for webhook in &setup.webhooks {
            self.webhook(webhook).await?;
        }
        if prune {
            self.prune(rows).await?;
        }
        Ok(self.diff)
    }

    fn note(&mut self, action: Action, thing: Thing, name: &[&str], fields: Vec<String>) {
        self.diff.changes.push(Change { action, thing, name: name.join(" / "), fields });
    }

    async fn company(&mut self, company: &CompanySetup) -> Result<(), ApplyError> {
        let name = company.name.as_str();
        let row = self.before.companies.get(name).copied();
        let before = row.map(|row| row.settings.0.clone()).unwrap_or_default();
        let settings = company.settings(&before).expect("every key was checked when the file was read");
        let fields = settings_differences(&before, &settings);
        let (id, action, fields) = match row {
            Some(row) if fields.is_empty() => (row.id, Action::Unchanged, fields),
            Some(row) => (row.id, Action::Updated, fields),
            None => (Uuid::now_v7(), Action::Created, Vec::new()),
        };
        if action != Action::Unchanged {
            self.tx
                .execute(
                    "INSERT INTO company (id, name, settings, created_at, updated_at) VALUES ($1, $2, $3, $4, $4)
                     ON CONFLICT (id) DO UPDATE SET settings = excluded.settings, updated_at = excluded.updated_at",
                    args![id, name, json(&settings), self.now_ms],
                )
                .await?;
        }
        self.after.companies.insert(name.to_owned(), id);
        let fields = fields.into_iter().map(str::to_owned).collect();
        self.note(action, Thing::Company, &[name], fields);
        Ok(())
    }

    async fn integration(&mut self, setup: &IntegrationSetup) -> Result<(), ApplyError> {
        let IntegrationSetup { company, name, kind, credentials: wanted, .. } = setup;
        let company_id = self.company_id(company);
        let row = self.before.integrations.get(&(company_id, name.as_str())).copied();
        let (id, action, fields) = match row {
            Some(row) => {
                let fields = differences((&row.provider, &row.open(self.sealer)?), (kind.name, wanted));
                let action = if fields.is_empty() { Action::Unchanged } else { Action::Updated };
                (row.id, action, fields)
            }
            None => (Uuid::now_v7(), Action::Created, Vec::new()),
        };
        let mut secret = row.map(|row| row.open_webhook_secret(self.sealer)).transpose()?.flatten();
        if action != Action::Unchanged {
            let new = NewIntegration { company: company_id, name, kind, credentials: wanted };
            secret = Some(put_integration(self.tx, self.sealer, id, new, secret, self.now_ms).await?);
        }
        self.after.integrations.insert((company_id, name.to_owned()), id);
        self.diff.webhooks.push(Webhook {
            company: company.to_owned(),
            integration: name.to_owned(),
            provider: kind.name,
            id: Some(id),
            secret,
        });
        self.note(action, Thing::Integration, &[company, name], fields);
        Ok(())
    }

    async fn agent(&mut self, company: &str, wanted: &AgentProfile) -> Result<(), ApplyError> {
        let company_id = self.company_id(company);
        let row = self.before.agents.get(&(company_id, wanted.name.as_str())).copied();
        let (id, action, fields) = match row {
            Some(row) => {
                // A profile that this version cannot read is replaced as a whole.
                let fields = row.read().map_or(vec!["profile"], |profile| profile_differences(&profile, wanted));
                let action = if fields.is_empty() { Action::Unchanged } else { Action::Updated };
                (row.id, action, fields)
            }
            None => (Uuid::now_v7(), Action::Created, Vec::new()),
        };
        if action != Action::Unchanged {
            put_agent(self.tx, company_id, id, wanted, self.now_ms).await?;
        }
        self.after.agents.insert((company_id, wanted.name.clone()), id);
        let fields = fields.into_iter().map(str::to_owned).collect();
        self.note(action, Thing::Agent, &[company, &wanted.name], fields);
        Ok(())
    }

    async fn line(&mut self, company: &str, line: &LineSetup) -> Result<(), ApplyError> {
        let company_id = self.company_id(company);
        let integration_id = self.integration_id(company_id, &line.integration);
        let agent_id = self.agent_id(company_id, &line.agent);
        let row = self.before.lines.get(&(integration_id, line.number.as_str())).copied();
        let (id, action, fields) = match row {
            Some(row) if row.agent_id == agent_id => (row.id, Action::Unchanged, Vec::new()),
            Some(row) => (row.id, Action::Updated, vec!["agent".to_owned()]),
            None => (Uuid::now_v7(), Action::Created, Vec::new()),
        };
        if action != Action::Unchanged {
            self.tx
                .execute(
                    "INSERT INTO line (id, integration_id, number, agent_id, created_at, updated_at)
                     VALUES ($1, $2, $3, $4, $5, $5)
                     ON CONFLICT (id) DO UPDATE SET agent_id = excluded.agent_id, updated_at = excluded.updated_at",
                    args![id, integration_id, &line.number, agent_id, self.now_ms],
                )
                .await?;
        }
        self.after.lines.insert(id);
        self.note(action, Thing::Line, &[company, &line.integration, &line.number], fields);
        Ok(())
    }

    async fn tool(&mut self, setup: &ToolSetup) -> Result<(), ApplyError> {
        let ToolSetup { company, definition, secrets, .. } = setup;
        let company_id = self.company_id(company);
        let row = self.before.tools.get(&(company_id, definition.name())).copied();
        let (id, action, fields) = match row {
            Some(row) => {
                let mut fields = Vec::new();
                // A definition that this version cannot read is replaced as a whole.
                if row.read().ok().as_ref() != Some(definition) {
                    fields.push("definition".to_owned());
                }
                if row.open(self.sealer)?.expose() != secrets.expose() {
                    fields.push("secret_headers".to_owned());
                }
                (row.id, if fields.is_empty() { Action::Unchanged } else { Action::Updated }, fields)
            }
            None => (Uuid::now_v7(), Action::Created, Vec::new()),
        };
        if action != Action::Unchanged {
            put_tool(self.tx, self.sealer, company_id, id, definition, secrets, self.now_ms).await?;
        }
        self.after.tools.insert(id);
        self.note(action, Thing::Tool, &[company, definition.name()], fields);
        Ok(())
    }

    /// The base alone; its documents follow when this is done, since they take longer than a transaction should.
    async fn knowledge(&mut self, setup: &KnowledgeSetup) -> Result<(), ApplyError> {
        let KnowledgeSetup { company, name, language, .. } = setup;
        let company_id = self.company_id(company);
        let row = self.before.knowledge.get(&(company_id, name.as_str())).copied();
        let (id, action, fields) = match row {
            Some(row) if row.language == *language => (row.id, Action::Unchanged, Vec::new()),
            Some(row) => (row.id, Action::Updated, vec!["language".to_owned()]),
            None => (Uuid::now_v7(), Action::Created, Vec::new()),
        };
        if action != Action::Unchanged {
            put_base(self.tx, company_id, id, name, language).await?;
        }
        self.after.knowledge.insert(id);
        self.note(action, Thing::Knowledge, &[company, name], fields);
        Ok(())
    }

    /// A secret that the file gives is the one that signs; without one, the endpoint keeps its own or gets one.
    async fn webhook(&mut self, setup: &WebhookSetup) -> Result<(), ApplyError> {
        let WebhookSetup { company, name, url, events, secret, .. } = setup;
        let company_id = self.company_id(company);
        let row = self.before.webhooks.get(&(company_id, name.as_str())).copied();
        let (id, action, fields) = match row {
            Some(row) => {
                let known = row.open(self.sealer)?;
                let other = secret.as_ref().is_some_and(|secret| secret.expose_secret() != known.expose_secret());
                let fields: Vec<String> =
                    [("url", row.url != *url), ("events", row.events.0 != *events), ("secret", other)]
                        .into_iter()
                        .filter(|(_, differs)| *differs)
                        .map(|(field, _)| field.to_owned())
                        .collect();
                (row.id, if fields.is_empty() { Action::Unchanged } else { Action::Updated }, fields)
            }
            None => (Uuid::now_v7(), Action::Created, Vec::new()),
        };
        if action != Action::Unchanged {
            let new = NewEndpoint { company: company_id, name, url, events };
            put_endpoint(self.tx, self.sealer, id, new, secret.as_ref()).await?;
        }
        self.after.webhooks.insert(id);
        self.note(action, Thing::Webhook, &[company, name], fields);
        Ok(())
    }

    /// The id of a company of the file or the store; it counts as named from here on.
    fn company_id(&mut self, name: &str) -> Uuid {
        let before = &self.before.companies;
        *self.after.companies.entry(name.to_owned()).or_insert_with(|| before.get(name).expect(RESOLVED).id)
    }

    fn integration_id(&mut self, company: Uuid, name: &str) -> Uuid {
        let before = &self.before.integrations;
        let entry = self.after.integrations.entry((company, name.to_owned()));
        *entry.or_insert_with(|| before.get(&(company, name)).expect(RESOLVED).id)
    }

    fn agent_id(&mut self, company: Uuid, name: &str) -> Uuid {
        let before = &self.before.agents;
        let entry = self.after.agents.entry((company, name.to_owned()));
        *entry.or_insert_with(|| before.get(&(company, name)).expect(RESOLVED).id)
    }

    /// Removes what was not named, from the lines down to what they stood on.
    async fn prune(&mut self, rows: &Rows) -> Result<(), ApplyError> {
        for row in &rows.lines {
            if self.after.lines.contains(&row.id) {
                continue;
            }
            self.tx.execute("DELETE FROM line WHERE id = $1", args![row.id]).await?;
            let integration = rows.integrations.iter().find(|other| other.id == row.integration_id);
            let (company, integration) = integration.map_or(("", ""), |i| (rows.company_name(i.company_id), &i.name));
            self.note(Action::Removed, Thing::Line, &[company, integration, &row.number], Vec::new());
        }
        for row in &rows.integrations {
            if !self.after.integrations.contains_key(&(row.company_id, row.name.clone())) {
                self.tx.execute("DELETE FROM integration WHERE id = $1", args![row.id]).await?;
                let name = [rows.company_name(row.company_id), &row.name];
                self.note(Action::Removed, Thing::Integration, &name, Vec::new());
            }
        }
        for row in &rows.agents {
            if !self.after.agents.contains_key(&(row.company_id, row.name.clone())) {
                self.tx.execute("DELETE FROM agent WHERE id = $1", args![row.id]).await?;
                self.note(Action::Removed, Thing::Agent, &[rows.company_name(row.company_id), &row.name], Vec::new());
            }
        }
        for row in &rows.knowledge {
            if self.after.knowledge.contains(&row.id) {
                continue;
            }
            self.tx.execute("DELETE FROM knowledge_base WHERE id = $1", args![row.id]).await?;
            self.note(Action::Removed, Thing::Knowledge, &[rows.company_name(row.company_id), &row.name], Vec::new());
        }
        for row in &rows.tools {
            if !self.after.tools.contains(&row.id) {
                self.tx.execute("DELETE FROM tool WHERE id = $1", args![row.id]).await?;
                self.note(Action::Removed, Thing::Tool, &[rows.company_name(row.company_id), &row.name], Vec::new());
            }
        }
        for row in &rows.webhooks {
            if self.after.webhooks.contains(&row.id) {
                continue;
            }
            self.tx.execute("DELETE FROM webhook_endpoint WHERE id = $1", args![row.id]).await?;
            self.note(Action::Removed, Thing::Webhook, &[rows.company_name(row.company_id), &row.name], Vec::new());
        }
        for row in &rows.companies {
            if !self.after.companies.contains_key(&row.name) {
                self.tx.execute("DELETE FROM company WHERE id = $1", args![row.id]).await?;
                self.note(Action::Removed, Thing::Company, &[&row.name], Vec::new());
            }
        }
        Ok(())
    }
}

/// The names of the values that differ.
fn differences(old: (&str, &Credentials), new: (&str, &Credentials)) -> Vec<String> {
    let (before, after) = (old.1.expose(), new.1.expose());
    let mut fields: BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
    fields.retain(|field| before.get(field) != after.get(field));
    if old.0 != new.0 {
        fields.insert("provider");
    }
    fields.into_iter().map(str::to_owned).collect()
}

fn settings_differences(old: &CompanySettings, new: &CompanySettings) -> Vec<&'static str> {
    let CompanySettings { allowed_countries, quiet_hours, caps, budget } = old;
    [
        ("allowed_countries", *allowed_countries != new.allowed_countries),
        ("quiet_hours", *quiet_hours != new.quiet_hours),
        ("caps", *caps != new.caps),
        ("budget", *budget != new.budget),
    ]
    .into_iter()
    .filter_map(|(field, differs)| differs.then_some(field))
    .collect()
}

pub(super) fn profile_differences(old: &AgentProfile, new: &AgentProfile) -> Vec<&'static str> {
    // Taken apart, so that a field that is added to the profile must be added here.
    let AgentProfile {
        name,
        language,
        greeting,
        prompt,
        stt,
        tts,
        llm,
        workflow,
        tools,
        knowledge,
        transfer_to,
        transfer_note,
        detect_machine,
        analysis,
        recall,
        budget,
        turn,
    } = old;
    [
        ("name", *name != new.name),
        ("language", *language != new.language),
        ("greeting", *greeting != new.greeting),
        ("prompt", *prompt != new.prompt),
        ("stt", *stt != new.stt),
        ("tts", *tts != new.tts),
        ("llm", *llm != new.llm),
        ("workflow", *workflow != new.workflow),
        ("tools", *tools != new.tools),
        ("knowledge", *knowledge != new.knowledge),
        ("transfer_to", *transfer_to != new.transfer_to),
        ("transfer_note", *transfer_note != new.transfer_note),
        ("detect_machine", *detect_machine != new.detect_machine),
        ("analysis", *analysis != new.analysis),
        ("recall", *recall != new.recall),
        ("budget", *budget != new.budget),
        ("turn", *turn != new.turn),
    ]
    .into_iter()
    .filter_map(|(field, differs)| differs.then_some(field))
    .collect()
}
