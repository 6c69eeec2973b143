//! The set-up file (`offhook apply FILE`): TOML tables for companies, integrations, lines and agents, with `${VAR}`
//! from the environment. Reading it finds every fault at once; what a name refers to is looked up later, by the store,
//! since the file may build on what is there already.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::Serialized;
use figment::value::{Dict, Tag, Value};
use secrecy::SecretString;

use crate::agent::profile::AgentProfile;
use crate::agent::tools::http::SecretHeaders;
use crate::agent::tools::search_knowledge;
use crate::agent::workflow::Workflow;
use crate::conversation::settings::TurnSettings;
use crate::providers;
use crate::providers::credentials::Credentials;
use crate::providers::provider::Kind;
use crate::speech::{llm, stt, tts};
use crate::store::companies::CompanySettings;
use crate::store::endpoints::{MAX_ENDPOINTS, events_fault, secret_bytes, url_fault};
use crate::store::leaves;
use crate::store::outbox::EventKind;
use crate::store::tools::{ToolDefinition, ToolReader};

/// A set-up file is written by hand: more than this is a mistake.
const MAX_FILE: u64 = 4 << 20;
/// A workflow is copied into every call's memory.
const MAX_WORKFLOW: u64 = 1 << 20;
/// Longest name of a thing, in characters.
pub const MAX_NAME: usize = 200;

/// What a file asks for, as far as it could be read. Names are not resolved.
#[derive(Debug, Default)]
pub struct Setup {
    pub(crate) companies: Vec<CompanySetup>,
    pub(crate) integrations: Vec<IntegrationSetup>,
    pub(crate) lines: Vec<LineSetup>,
    pub(crate) agents: Vec<AgentSetup>,
    pub(crate) knowledge: Vec<KnowledgeSetup>,
    pub(crate) tools: Vec<ToolSetup>,
    pub(crate) webhooks: Vec<WebhookSetup>,
    pub(crate) named: Named,
}

/// The names that a file gives, of faulty tables too: a reference to one of these is no second fault.
#[derive(Debug, Default)]
pub(crate) struct Named {
    pub companies: BTreeSet<String>,
    /// Company, name.
    pub integrations: BTreeSet<(String, String)>,
    /// Company, name.
    pub agents: BTreeSet<(String, String)>,
    /// Company, name.
    pub knowledge: BTreeSet<(String, String)>,
    /// Company, name.
    pub tools: BTreeSet<(String, String)>,
    /// Company, name.
    pub webhooks: BTreeSet<(String, String)>,
}

#[derive(Debug)]
pub(crate) struct CompanySetup {
    pub name: String,
    /// Keys of [`CompanySettings`] that the file gives; the others stay as they are.
    pub settings: Dict,
}

impl CompanySetup {
    /// The company's settings as they will be. `None`: a key has no such value, which was told when it was read.
    pub fn settings(&self, before: &CompanySettings) -> Option<CompanySettings> {
        Figment::from(Serialized::defaults(before)).merge(Serialized::defaults(&self.settings)).extract().ok()
    }
}

pub(crate) struct IntegrationSetup {
    pub place: Place,
    pub company: String,
    pub name: String,
    pub kind: &'static Kind,
    pub credentials: Credentials,
}

impl fmt::Debug for IntegrationSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { company, name, kind, credentials, .. } = self;
        write!(f, "IntegrationSetup({company} / {name}, {}, {credentials:?})", kind.name)
    }
}

#[derive(Debug)]
pub(crate) struct LineSetup {
    pub place: Place,
    /// May be left out where the integration's name is unique.
    pub company: Option<String>,
    pub integration: String,
    pub number: String,
    pub agent: String,
}

#[derive(Debug)]
pub(crate) struct AgentSetup {
    pub place: Place,
    pub company: String,
    pub profile: AgentProfile,
}

#[derive(Debug)]
pub(crate) struct KnowledgeSetup {
    pub place: Place,
    pub company: String,
    pub name: String,
    pub language: String,
    /// Documents, relative to the working directory.
    pub files: Vec<PathBuf>,
}

/// A `[[tool]]` or an `[[mcp]]`.
#[derive(Debug)]
pub(crate) struct ToolSetup {
    pub place: Place,
    pub company: String,
    pub definition: ToolDefinition,
    pub secrets: SecretHeaders,
}

/// An endpoint that is told what happened. Its secret prints as dots.
#[derive(Debug)]
pub(crate) struct WebhookSetup {
    pub place: Place,
    pub company: String,
    pub name: String,
    pub url: String,
    pub events: Vec<EventKind>,
    pub secret: Option<SecretString>,
}

/// Which table of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `company`, `integration`, `line`, `agent`, `knowledge`, `tool`, `mcp` or `webhook`.
    pub table: &'static str,
    /// Counted from 1 among the tables of this kind.
    pub index: usize,
    /// Its name or number, as far as it could be read.
    pub name: String,
}

impl Place {
    pub(crate) fn fault(&self, field: impl Into<String>, problem: impl Into<String>) -> Fault {
        Fault { place: Some(self.clone()), field: field.into(), problem: problem.into() }
    }
}

/// One thing that is wrong with a file. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `None`: the file itself.
    pub place: Option<Place>,
    /// Key in the table, with dots; may be empty.
    pub field: String,
    pub problem: String,
}

impl fmt::Display for Fault {
    /// `[[line]] 2 "+15550001111": agent: …`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "[[{}]] {}", place.table, place.index)?;
            if !place.name.is_empty() {
                write!(f, " {:?}", place.name)?;
            }
            f.write_str(": ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.problem)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{} is larger than {MAX_FILE} bytes: is it a set-up file?", .0.display())]
    TooLarge(PathBuf),
    /// Not TOML. The message quotes nothing of the file, which may hold secrets.
    #[error("{}, line {line}: {message}", .path.display())]
    Syntax { path: PathBuf, line: usize, message: String },
}

impl Setup {
    /// Reads the file at `path`; `lookup` is the environment. Paths in it are relative to its folder. The faults that
    /// come with the set-up must be empty before it is applied.
    pub fn read(path: &Path, lookup: &dyn Fn(&str) -> Option<String>) -> Result<(Self, Vec<Fault>), SetupError> {
        let unreadable = |source| SetupError::Unreadable { path: path.to_owned(), source };
        let text =
            read_limited(path, MAX_FILE).map_err(unreadable)?.ok_or_else(|| SetupError::TooLarge(path.into()))?;
        Self::parse(&text, path, lookup)
    }

    fn parse(
        text: &str,
        path: &Path,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(Self, Vec<Fault>), SetupError> {
        let file: Dict = toml::from_str(text).map_err(|error| SetupError::Syntax {
            path: path.to_owned(),
            line: line_of(text, error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        })?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let mut reader = Reader { setup: Self::default(), faults: Vec::new(), folder, lookup, kinds: BTreeMap::new() };
        reader.file(file);
        Ok((reader.setup, reader.faults))
    }
}

impl Setup {
    /// What is wrong with credentials taken together, each of which is good: asks every provider's client to open.
    pub fn unopenable(&self) -> Vec<Fault> {
        let open = |integration: &IntegrationSetup| (integration.kind.open)(&integration.credentials).err();
        let faults = self.integrations.iter().filter_map(|integration| Some((integration, open(integration)?)));
        faults.map(|(integration, fault)| integration.place.fault(fault.field, fault.problem)).collect()
    }
}

/// The line of a byte in a text, counted from 1.
pub(crate) fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at.min(text.len())].iter().filter(|&&byte| byte == b'\n').count()
}

/// `None`: longer than `limit` bytes.
fn read_limited(path: &Path, limit: u64) -> std::io::Result<Option<String>> {
    let mut text = String::new();
    fs::File::open(path)?.take(limit + 1).read_to_string(&mut text)?;
    Ok((text.len() as u64 <= limit).then_some(text))
}

struct Reader<'a> {
    setup: Setup,
    faults: Vec<Fault>,
    folder: PathBuf,
    lookup: &'a dyn Fn(&str) -> Option<String>,
    /// The kinds of the file's integrations, faulty ones too, by their names.
    kinds: BTreeMap<String, Vec<&'static Kind>>,
}

const TABLES: [&str; 8] = ["company", "integration", "line", "agent", "knowledge", "tool", "mcp", "webhook"];

impl Reader<'_> {
    fn file(&mut self, mut file: Dict) {
        for table in TABLES {
            let tables = match file.remove(table) {
                None => continue,
                Some(Value::Array(_, tables)) => tables,
                Some(_) => {
                    self.file_fault(table, format!("write it as [[{table}]]: it may stand more than once"));
                    continue;
                }
            };
            for (index, value) in tables.into_iter().enumerate() {
                let place = Place { table, index: index + 1, name: String::new() };
                match value {
                    Value::Dict(_, fields) => self.table(place, fields),
                    _ => self.faults.push(place.fault("", format!("write it as a table, [[{table}]]"))),
                }
            }
        }
        for key in file.into_keys() {
            let known = TABLES.map(|table| format!("[[{table}]]")).join(", ");
            self.file_fault(&key, format!("no such table; known are {known}"));
        }
    }

    fn file_fault(&mut self, field: &str, problem: String) {
        self.faults.push(Fault { place: None, field: field.to_owned(), problem });
    }

    fn table(&mut self, mut place: Place, mut fields: Dict) {
        let named_by = if place.table == "line" { "number" } else { "name" };
        if let Some(name) = fields.get(named_by).and_then(Value::as_str) {
            place.name = name.chars().take(MAX_NAME).collect();
        }
        for (key, value) in &mut fields {
            self.substitute(&place, key, value);
        }
        let mut table = Fields { place, fields };
        match table.place.table {
            "company" => self.company(&mut table),
            "integration" => self.integration(&mut table),
            "line" => self.line(&mut table),
            "knowledge" => self.knowledge(&mut table),
            "tool" => self.tool(&mut table, "http"),
            "mcp" => self.tool(&mut table, "mcp"),
            "webhook" => self.webhook(&mut table),
            _ => self.agent(table),
        }
    }

    /// Replaces `${VAR}` in every string below `value`; `$${` stands for `${`.
    fn substitute(&mut self, place: &Place, key: &str, value: &mut Value) {
        match value {
            Value::String(_, text) if text.contains("${") => match expand(text, self.lookup) {
                Ok(expanded) => *text = expanded,
                Err(problem) => {
                    self.faults.push(place.fault(key, problem));
                    // Stands in for the value, so that it is not said to be missing as well.
                    *text = UNKNOWN.into();
                }
            },
            Value::Dict(_, inner) => {
                for (name, value) in inner {
                    self.substitute(place, &format!("{key}.{name}"), value);
                }
            }
            Value::Array(_, items) => {
                for item in items {
                    self.substitute(place, key, item);
                }
            }
            _ => {}
        }
    }

    fn company(&mut self, table: &mut Fields) {
        let name = self.name(table, "name");
        let mut settings = Dict::new();
        for leaf in leaves::leaves(&table.fields) {
            match leaves::check::<CompanySettings>(&Dict::new(), &leaf) {
                Ok(()) => drop(settings.insert(leaf.path[0].clone(), table.fields[&leaf.path[0]].clone())),
                Err(fault) => self.faults.push(table.place.fault("", fault.to_string())),
            }
        }
        let Some(name) = name else { return };
        let company = CompanySetup { name: name.clone(), settings };
        if let Some(settings) = company.settings(&CompanySettings::default()) {
            let faults = settings.faults().into_iter();
            self.faults.extend(faults.map(|(field, problem)| table.place.fault(field, problem)));
        }
        if self.setup.named.companies.insert(name) {
            self.setup.companies.push(company);
        } else {
            self.faults.push(table.place.fault("name", "there is a [[company]] of this name above"));
        }
    }

    fn integration(&mut self, table: &mut Fields) {
        let company = self.name(table, "company");
        let name = self.name(table, "name");
        let kind = match self.text(table, "provider", true) {
            Some(provider) if provider != UNKNOWN => {
                let kind = providers::kind(&provider);
                if kind.is_none() {
                    let known: Vec<&str> = providers::KINDS.iter().map(|kind| kind.name).collect();
                    let problem = format!("no provider {provider:?}; this build connects {}", known.join(", "));
                    self.faults.push(table.place.fault("provider", problem));
                }
                kind
            }
            _ => None,
        };
        let credentials = kind.and_then(|kind| self.credentials(table, kind));
        let (Some(company), Some(name)) = (company, name) else { return };
        if let Some(kind) = kind {
            self.kinds.entry(name.clone()).or_default().push(kind);
        }
        if !self.setup.named.integrations.insert((company.clone(), name.clone())) {
            let problem = "there is an [[integration]] of this company and name above";
            self.faults.push(table.place.fault("name", problem));
        } else if let (Some(kind), Some(credentials)) = (kind, credentials) {
            let place = table.place.clone();
            self.setup.integrations.push(IntegrationSetup { place, company, name, kind, credentials });
        }
    }

    /// What is left of the table are the provider's own keys; those of a table in it have its name and a dot before
    /// them, and a list is written with commas.
    fn credentials(&mut self, table: &mut Fields, kind: &'static Kind) -> Option<Credentials> {
        let mut values = Vec::new();
        let mut unknown = BTreeSet::new();
        for leaf in leaves::leaves(&std::mem::take(&mut table.fields)) {
            let name = leaf.path.join(".");
            match plain(&leaf.value) {
                Some(value) => {
                    if value.contains(UNKNOWN) {
                        unknown.insert(name.clone());
                    }
                    values.push((name, value));
                }
                None => self.faults.push(table.place.fault(name, "it must be text, in quotes, or a list of texts")),
            }
        }
        match Credentials::new(kind, values) {
            Ok(credentials) => Some(credentials),
            Err(faults) => {
                let told = faults.into_iter().filter(|fault| !unknown.contains(&fault.field));
                self.faults.extend(told.map(|fault| table.place.fault(fault.field, fault.problem)));
                None
            }
        }
    }

    fn line(&mut self, table: &mut Fields) {
        let company = table.fields.contains_key("company").then(|| self.name(table, "company"));
        let integration = self.name(table, "integration");
        let number = self.text(table, "number", true);
        let agent = self.name(table, "agent");
        self.nothing_else(table, &["company", "integration", "number", "agent"]);
        // Lines that carry messages are telephone numbers; others may be SIP users or internal numbers. A line whose
        // integration is not in the file is held to what all have in common.
        let kinds = integration.as_ref().and_then(|name| self.kinds.get(name));
        let telephone = kinds.is_some_and(|kinds| kinds.iter().all(|kind| kind.capabilities.messages));
        if let Some(number) = &number
            && number != UNKNOWN
        {
            self.faults.extend(line_fault(telephone, number).map(|problem| table.place.fault("number", problem)));
        }
        let company = match company {
            Some(None) => return,
            Some(company) => company,
            None => None,
        };
        if let (Some(integration), Some(number), Some(agent)) = (integration, number, agent) {
            let place = table.place.clone();
            self.setup.lines.push(LineSetup { place, company, integration, number, agent });
        }
    }

    fn agent(&mut self, mut table: Fields) {
        let company = self.name(&mut table, "company");
        let name = self.name(&mut table, "name");
        let workflow = self.workflow(&mut table);
        let profile = self.profile(&table, name.as_deref(), workflow);
        let (Some(company), Some(name)) = (company, name) else { return };
        if !self.setup.named.agents.insert((company.clone(), name)) {
            self.faults.push(table.place.fault("name", "there is an [[agent]] of this company and name above"));
        } else if let Some(profile) = profile {
            self.setup.agents.push(AgentSetup { place: table.place, company, profile });
        }
    }

    fn knowledge(&mut self, table: &mut Fields) {
        let company = self.name(table, "company");
        let name = self.name(table, "name");
        let language = self.text(table, "language", false).unwrap_or_else(|| "en".into());
        let mut files: Vec<PathBuf> = Vec::new();
        match table.fields.remove("files") {
            None => {}
            Some(Value::Array(_, paths)) => {
                for path in paths {
                    match path.as_str() {
                        Some(UNKNOWN) => {}
                        Some(path) => self.document(table, &mut files, path),
                        None => self.faults.push(table.place.fault("files", "it must be a list of texts, in quotes")),
                    }
                }
            }
            Some(_) => self.faults.push(table.place.fault("files", "it must be a list, as in [\"rules.md\"]")),
        }
        self.nothing_else(table, &["company", "name", "language", "files"]);
        let (Some(company), Some(name)) = (company, name) else { return };
        if !self.setup.named.knowledge.insert((company.clone(), name.clone())) {
            self.faults.push(table.place.fault("name", "there is a [[knowledge]] of this company and name above"));
            return;
        }
        self.setup.knowledge.push(KnowledgeSetup { place: table.place.clone(), company, name, language, files });
    }

    /// What is left of the table is the definition, as the API takes it.
    fn tool(&mut self, table: &mut Fields, kind: &'static str) {
        let before = self.faults.len();
        let company = self.name(table, "company");
        let secrets = match table.fields.remove("secret_headers") {
            None => SecretHeaders::default(),
            Some(Value::Dict(_, headers)) => {
                let plain = |(name, value): (String, Value)| match value.into_string() {
                    Some(value) => Some((name, value)),
                    None => {
                        let problem = "it must be text, in quotes";
                        self.faults.push(table.place.fault(format!("secret_headers.{name}"), problem));
                        None
                    }
                };
                SecretHeaders::new(headers.into_iter().filter_map(plain).collect::<Vec<_>>())
            }
            Some(_) => {
                let problem = "write it as a table: secret_headers = { Authorization = \"Bearer ${TOKEN}\" }";
                self.faults.push(table.place.fault("secret_headers", problem));
                return;
            }
        };
        let unknown = format!("{:?}", table.fields).contains(UNKNOWN);
        let value = serde_json::to_value(std::mem::take(&mut table.fields)).unwrap_or_default();
        let name = value["name"].as_str().unwrap_or_default().to_owned();
        let definition = match ToolDefinition::read(kind, value, Fielded) {
            Some(Ok(definition)) => Some(definition),
            Some(Err((field, problem))) => {
                self.faults.push(table.place.fault(field, problem));
                None
            }
            None => None,
        };
        let Some(company) = company else { return };
        let is_new = self.setup.named.tools.insert((company.clone(), name));
        if !is_new {
            self.faults.push(table.place.fault("name", "there is a [[tool]] or an [[mcp]] of this name above"));
        }
        let Some(definition) = definition else { return };
        // A variable that could not be filled in was told already.
        if !unknown {
            let faults = definition.faults().into_iter().chain(definition.secret_faults(&secrets));
            self.faults.extend(faults.map(|(field, problem)| table.place.fault(field, problem)));
        }
        if self.faults.len() == before {
            self.setup.tools.push(ToolSetup { place: table.place.clone(), company, definition, secrets });
        }
    }

    fn webhook(&mut self, table: &mut Fields) {
        let company = self.name(table, "company");
        let name = self.name(table, "name");
        let url = self.text(table, "url", true);
        let secret = self.text(table, "secret", false).filter(|secret| secret != UNKNOWN).map(SecretString::from);
        if let Some(url) = url.as_deref().filter(|url| !url.contains(UNKNOWN)) {
            self.faults.extend(url_fault(url).map(|problem| table.place.fault("url", problem)));
        }
        if secret.as_ref().is_some_and(|secret| secret_bytes(secret).is_none()) {
            let problem =
                "it must be whsec_ and 24 to 64 bytes in base64 (openssl rand -base64 32); left out, one is made";
            self.faults.push(table.place.fault("secret", problem));
        }
        let mut events = Vec::new();
        match table.fields.remove("events") {
            None => events.extend(EventKind::ALL),
            Some(Value::Array(_, names)) => {
                for name in names {
                    match EventKind::ALL.into_iter().find(|kind| name.as_str() == Some(kind.label())) {
                        Some(kind) => events.push(kind),
                        None => {
                            let known = EventKind::ALL.map(EventKind::label).join(", ");
                            self.faults.push(table.place.fault("events", format!("no such event; known are {known}")));
                        }
                    }
                }
                self.faults.extend(events_fault(&events).map(|problem| table.place.fault("events", problem)));
            }
            Some(_) => self.faults.push(table.place.fault("events", "it must be a list, as in [\"call.analysed\"]")),
        }
        self.nothing_else(table, &["company", "name", "url", "events", "secret"]);
        let (Some(company), Some(name), Some(url)) = (company, name, url) else { return };
        if !self.setup.named.webhooks.insert((company.clone(), name.clone())) {
            self.faults.push(table.place.fault("name", "there is a [[webhook]] of this company and name above"));
            return;
        }
        let of_company = self.setup.webhooks.iter().filter(|other| other.company == company).count();
        if of_company >= MAX_ENDPOINTS {
            self.faults.push(table.place.fault("", format!("a company has at most {MAX_ENDPOINTS} webhooks")));
            return;
        }
        self.setup.webhooks.push(WebhookSetup { place: table.place.clone(), company, name, url, events, secret });
    }

    /// A document is known by its file's name.
    fn document(&mut self, table: &Fields, files: &mut Vec<PathBuf>, path: &str) {
        let full = self.folder.join(path);
        let fault = match fs::metadata(&full) {
            Ok(file) if !file.is_file() => Some(format!("{} is no file", full.display())),
            Ok(_) if files.iter().any(|other| other.file_name() == full.file_name()) => {
                Some(format!("two files are named {path:?}: a document is known by its file's name"))
            }
            Ok(_) => None,
            Err(error) => Some(format!("cannot read {}: {error}", full.display())),
        };
        match fault {
            Some(problem) => self.faults.push(table.place.fault("files", problem)),
            None => files.push(full),
        }
    }

    /// The text of the file that `workflow` names.
    fn workflow(&mut self, table: &mut Fields) -> Option<String> {
        let path = self.text(table, "workflow", false).filter(|path| path != UNKNOWN)?;
        let full = self.folder.join(&path);
        let text = match read_limited(&full, MAX_WORKFLOW) {
            Ok(Some(text)) => text,
            Ok(None) => {
                let problem = format!("{} is larger than {MAX_WORKFLOW} bytes", full.display());
                self.faults.push(table.place.fault("workflow", problem));
                return None;
            }
            Err(error) => {
                let problem = format!("cannot read {}: {error}", full.display());
                self.faults.push(table.place.fault("workflow", problem));
                return None;
            }
        };
        match check_workflow(&text) {
            Ok(()) => Some(text),
            Err(problem) => {
                self.faults.push(table.place.fault("workflow", format!("{}: {problem}", full.display())));
                None
            }
        }
    }

    /// The profile of the fields that are left in `table`.
    fn profile(&mut self, table: &Fields, name: Option<&str>, workflow: Option<String>) -> Option<AgentProfile> {
        let before = self.faults.len();
        let base = Dict::from([("name".to_owned(), Value::from(name.unwrap_or("unnamed")))]);
        let mut fields = base.clone();
        for leaf in leaves::leaves(&table.fields) {
            match leaves::check::<AgentProfile>(&base, &leaf) {
                Ok(()) => {
                    if let Some(value) = table.fields.get(&leaf.path[0]) {
                        fields.insert(leaf.path[0].clone(), value.clone());
                    }
                }
                Err(fault) => self.faults.push(table.place.fault("", fault.to_string())),
            }
        }
        if self.faults.len() > before {
            return None;
        }
        let profile: AgentProfile = match Value::Dict(Tag::Default, fields).deserialize() {
            Ok(profile) => profile,
            Err(error) => {
                self.faults.push(table.place.fault("", error.kind.to_string()));
                return None;
            }
        };
        let profile = AgentProfile { workflow, ..profile };
        for (field, problem) in profile_faults(&profile) {
            self.faults.push(table.place.fault(field, problem));
        }
        Some(profile)
    }

    /// A required name of a thing.
    fn name(&mut self, table: &mut Fields, key: &'static str) -> Option<String> {
        let name = self.text(table, key, true)?;
        if name.trim() != name {
            self.faults.push(table.place.fault(key, "it begins or ends with a space"));
        } else if name.chars().count() > MAX_NAME {
            self.faults.push(table.place.fault(key, format!("it is longer than {MAX_NAME} characters")));
        }
        Some(name)
    }

    /// Takes a text out of the table.
    fn text(&mut self, table: &mut Fields, key: &'static str, required: bool) -> Option<String> {
        let problem = match table.fields.remove(key) {
            Some(Value::String(_, text)) if !text.is_empty() => return Some(text),
            Some(Value::String(..)) if !required => return None,
            Some(Value::String(..)) => "it is empty",
            Some(_) => "it must be text, in quotes",
            None if required => "it is missing",
            None => return None,
        };
        self.faults.push(table.place.fault(key, problem));
        None
    }

    fn nothing_else(&mut self, table: &Fields, known: &[&str]) {
        for key in table.fields.keys() {
            self.faults.push(table.place.fault(key, format!("no such key; known here: {}", known.join(", "))));
        }
    }
}

/// A table whose fields are taken out as they are read.
struct Fields {
    place: Place,
    fields: Dict,
}

/// A value as credentials have it. `None`: a table or a list of tables.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(_, text) => Some(text.clone()),
        Value::Bool(_, truth) => Some(truth.to_string()),
        Value::Num(_, number) => {
            number.to_i128().map(|n| n.to_string()).or_else(|| number.to_f64().map(|n| n.to_string()))
        }
        Value::Array(_, items) => Some(items.iter().map(plain).collect::<Option<Vec<_>>>()?.join(",")),
        _ => None,
    }
}

/// Names the field that is wrong and quotes no value, which may be a secret.
struct Fielded;

impl ToolReader<(String, String)> for Fielded {
    fn read<T: serde::de::DeserializeOwned>(self, value: serde_json::Value) -> Result<T, (String, String)> {
        serde_path_to_error::deserialize(value).map_err(|fault| {
            let path = fault.path().to_string();
            let path = if path == "." { String::new() } else { path };
            let problem = fault.into_inner().to_string();
            let about_names = ["missing field", "unknown field", "unknown variant", "duplicate field"];
            if about_names.iter().any(|known| problem.starts_with(known)) {
                return (path, problem);
            }
            let expected = problem.split(", expected ").nth(1).unwrap_or("another value");
            (path, format!("must be {expected}"))
        })
    }
}

/// Stands where a variable could not be filled in; the fault is reported already.
const UNKNOWN: &str = "\u{fffd}";

fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if let Some(before) = rest[..at].strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        expanded.push_str(&rest[..at]);
        let (name, after) =
            rest[at + 2..].split_once('}').ok_or("a `${` without its `}`; write `$${` for the signs")?;
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err("`${…}` must name an environment variable: letters, digits, _".into());
        }
        expanded.push_str(&lookup(name).ok_or_else(|| format!("the environment has no variable {name}; set it"))?);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// ITU-T E.164 with its plus sign: at most 15 digits, no leading zero.
pub fn is_e164(number: &str) -> bool {
    number.strip_prefix('+').is_some_and(|digits| {
        (7..=15).contains(&digits.len()) && !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit())
    })
}

/// What is wrong with a line's number; `telephone`: its provider's lines are telephone numbers.
pub fn line_fault(telephone: bool, number: &str) -> Option<&'static str> {
    if (telephone || number.starts_with('+')) && !is_e164(number) {
        Some("write a telephone number with + and country code, digits only, as in +15550001111")
    } else if number.chars().any(|c| c.is_whitespace() || c.is_control()) {
        Some("it has a space or a line break in it")
    } else {
        None
    }
}

/// Whether an agent could follow this workflow.
fn check_workflow(text: &str) -> Result<(), String> {
    Workflow::parse(text).map(drop).map_err(|error| error.to_string())
}

/// What types do not say: field and problem.
pub fn profile_faults(profile: &AgentProfile) -> Vec<(String, String)> {
    let mut faults = Vec::new();
    let mut engine = |field: &str, name: &str, known: &[&str]| {
        if !name.is_empty() && name != UNKNOWN && !known.contains(&name) {
            faults.push((field.to_owned(), format!("no engine {name:?}; known are {}", known.join(", "))));
        }
    };
    engine("stt.engine", &profile.stt.engine, stt::ENGINES);
    engine("tts.engine", &profile.tts.engine, tts::ENGINES);
    engine("llm.engine", &profile.llm.engine, llm::ENGINES);
    let mut require = |field: &str, holds: bool, problem: &str| {
        if !holds {
            faults.push((field.to_owned(), problem.to_owned()));
        }
    };
    require("language", !profile.language.is_empty(), "it is empty; write a language such as en, uk or en-US");
    require(
        "tts.speed",
        (0.5..=2.0).contains(&profile.tts.speed),
        "it must be from 0.5 to 2.0; 1.0 is the voice's own",
    );
    let temperature = profile.llm.temperature.unwrap_or(0.0);
    require("llm.temperature", (0.0..=2.0).contains(&temperature), "it must be from 0.0 to 2.0");
    require("llm.max_tokens", profile.llm.max_tokens != Some(0), "it must be 1 or more");
    let unique: BTreeSet<&String> = profile.tools.iter().collect();
    require("tools", unique.len() == profile.tools.len(), "a tool is named twice");
    let unique: BTreeSet<&String> = profile.knowledge.iter().collect();
    require("knowledge", unique.len() == profile.knowledge.len(), "a knowledge base is named twice");
    require("knowledge", profile.knowledge.iter().all(|name| !name.is_empty()), "a knowledge base's name is empty");
    // A workflow that cannot be read has its faults told elsewhere.
    if let Some(Ok(workflow)) = profile.workflow.as_deref().map(Workflow::parse) {
        for (tool, place) in workflow.tools() {
            if !profile.has_tool(tool) {
                let cure = match tool {
                    search_knowledge::NAME => "name a knowledge base in the agent's `knowledge`",
                    _ => "name it in the agent's `tools`",
                };
                let problem = format!("needs the tool `{tool}`, which the agent does not have; {cure}");
                faults.push((format!("workflow: {place}"), problem));
            }
        }
        // A name that the environment has not given may be any.
        let known = !profile.knowledge.iter().any(|name| name == UNKNOWN);
        let lacks = known.then(|| workflow.lacks_knowledge(&profile.knowledge)).into_iter().flatten();
        faults.extend(lacks.map(|fault| (format!("workflow: {}, {}", fault.place, fault.field), fault.problem)));
    }
    faults.extend(
        TurnSettings::default().with(&profile.turn).faults().into_iter().map(|problem| ("turn".to_owned(), problem)),
    );
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workflow_needs_the_tools_of_its_agent() {
        let workflow = r#"version = 1
name = "w"
language = "en"
[fallback]
say = ["Sorry?"]
tries = 2
goto = "bye"
[[node]]
id = "hello"
kind = "start"
goto = "price"
[[node]]
id = "price"
kind = "tool"
tool = "crm.price"
failed = { goto = "look" }
goto = "look"
[[node]]
id = "look"
kind = "knowledge"
query = "{heard}"
failed = { goto = "note" }
goto = "note"
[[node]]
id = "note"
kind = "sms"
text = "See you."
failed = { say = "No message." }
goto = "talk"
[[node]]
id = "talk"
kind = "llm"
prompt = "Talk."
tools = ["make_call", "remember"]
exit = [{ name = "done", when = "they are done", goto = "bye" }]
give_up = "bye"
failed = { say = "Nobody is here.", goto = "bye" }
[[node]]
id = "bye"
kind = "end"
say = "Bye."
"#;
        let faults = |tools: &[&str], knowledge: &[&str]| {
            let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let workflow = Some(workflow.to_owned());
            let base = AgentProfile { name: "A".into(), language: "en".into(), workflow, ..AgentProfile::default() };
            profile_faults(&AgentProfile { tools: texts(tools), knowledge: texts(knowledge), ..base })
        };
        assert_eq!(Workflow::parse(workflow).err().map(|error| error.to_string()), None);
        let all = faults(&[], &[]);
        assert_eq!(all.len(), 4, "{all:?}");
        for (fault, (node, tool, cure)) in all.iter().zip([
            ("price", "crm.price", "`tools`"),
            ("talk", "make_call", "`tools`"),
            ("look", "search_knowledge", "`knowledge`"),
            ("note", "send_sms", "`tools`"),
        ]) {
            assert_eq!(fault.0, format!("workflow: node \"{node}\""));
            assert!(fault.1.contains(&format!("needs the tool `{tool}`")) && fault.1.contains(cure), "{fault:?}");
        }
        assert_eq!(faults(&["crm.*", "make_call", "send_sms"], &["House"]), []);
        assert_eq!(faults(&["crm.price", "make_call", "send_sms", "search_knowledge"], &[]), []);
        assert_eq!(faults(&["crmx.*", "crm", "make_call", "send_sms"], &["House"]).len(), 1);
    }

    fn parse(text: &str) -> (Setup, Vec<String>) {
        let lookup = |name: &str| match name {
            "SID" => Some(SID.to_owned()),
            "TOKEN" => Some("very-secret".to_owned()),
            _ => None,
        };
        let (setup, faults) = Setup::parse(text, Path::new("setup.toml"), &lookup).unwrap();
        (setup, faults.iter().map(Fault::to_string).collect())
    }

    const SID: &str = "AC00000000000000000000000000000001";

    const WHOLE: &str = r#"
        [[company]]
        name = "Acme"
        [[integration]]
        company = "Acme"
        name = "Main"
        provider = "twilio"
        account_sid = "${SID}"
        auth_token = "${TOKEN}"
        api_base = "http://127.0.0.1:9300/"
        [[line]]
        integration = "Main"
        number = "+15550001111"
        agent = "Front desk"
        [[agent]]
        company = "Acme"
        name = "Front desk"
        language = "en"
        greeting = "It costs $5, or $${X}."
        tts = { engine = "espeak", voice = "en-us", speed = 1 }
        turn = { wait_unknown_ms = 600 }
        tools = ["make_call"]
    "#;

    #[test]
    fn a_whole_file_is_read_with_its_variables() {
        let (setup, faults) = parse(WHOLE);
        assert_eq!(faults, [""; 0]);
        let integration = &setup.integrations[0];
        assert_eq!(integration.kind.name, "twilio");
        let values = ["account_sid", "auth_token", "api_base"].map(|name| integration.credentials.text(name));
        assert_eq!(values, [SID, "very-secret", "http://127.0.0.1:9300/"]);
        let agent = &setup.agents[0].profile;
        assert_eq!(agent.greeting, "It costs $5, or ${X}.");
        assert_eq!((agent.tts.speed, agent.turn.wait_unknown_ms), (1.0, Some(600)));
        assert!(!format!("{setup:?}").contains("very-secret"));
    }

    #[test]
    fn all_faults_come_at_once_with_table_index_name_and_field() {
        let (_, faults) = parse(
            r#"
            colour = 1
            [[company]]
            name = "Acme"
            [[company]]
            name = "Acme"
            [[integration]]
            company = "Acme"
            name = "Main"
            provider = "twilio"
            account_sid = "12"
            auth_token = "${NOT_THERE}"
            colour = "red"
            [[integration]]
            company = "Acme"
            name = "Cloud"
            provider = "carrier pigeon"
            [[line]]
            integration = "Main"
            number = "0501234567"
            [[agent]]
            company = "Acme"
            name = "Front desk"
            tts = { speed = 9.0, pitch = 1 }
            greeting = 5
            workflow = "not/there.toml"
            [[agent]]
            company = "Acme"
            name = "Second"
            stt = { engine = "magic" }
            tts = { speed = 9.0 }
            turn = { start_probability = 3.0 }
            "#,
        );
        for expected in [
            "colour: no such table",
            "[[company]] 2 \"Acme\": name: there is a [[company]] of this name",
            "[[integration]] 1 \"Main\": account_sid: ",
            "[[integration]] 1 \"Main\": auth_token: the environment has no variable NOT_THERE",
            "[[integration]] 1 \"Main\": colour: twilio has no such key",
            "[[integration]] 2 \"Cloud\": provider: no provider \"carrier pigeon\"; this build connects ",
            "[[line]] 1 \"0501234567\": number: ",
            "[[line]] 1 \"0501234567\": agent: it is missing",
            "[[agent]] 1 \"Front desk\": tts.pitch: no such key",
            "[[agent]] 1 \"Front desk\": greeting: ",
            "[[agent]] 1 \"Front desk\": workflow: cannot read not/there.toml",
            "[[agent]] 2 \"Second\": stt.engine: no engine \"magic\"; known are whisper",
            "[[agent]] 2 \"Second\": tts.speed: it must be from 0.5 to 2.0",
            "[[agent]] 2 \"Second\": turn: turn.start_probability",
        ] {
            assert_eq!(faults.iter().filter(|fault| fault.starts_with(expected)).count(), 1, "{expected}\n{faults:#?}");
        }
        assert_eq!(faults.len(), 14, "{faults:#?}");
    }

    #[test]
    fn a_table_in_an_integration_becomes_dotted_names_and_a_list_gets_commas() {
        let (setup, faults) = parse(
            r#"
            [[company]]
            name = "Acme"
            [[integration]]
            company = "Acme"
            name = "PBX"
            provider = "ringostat"
            auth_key = "${TOKEN}"
            project_id = 12345
            [integration.sip]
            registrar = "sip.example.com"
            user = "acme_1"
            password = "${TOKEN}"
            peers = ["192.0.2.0/24", "198.51.100.7"]
            [[line]]
            integration = "PBX"
            number = "acme_1"
            agent = "Front desk"
            "#,
        );
        assert_eq!(faults, [""; 0]);
        let integration = &setup.integrations[0];
        let values = ["project_id", "sip.registrar", "sip.user", "sip.password", "sip.peers"]
            .map(|name| integration.credentials.text(name));
        assert_eq!(
            values,
            ["12345", "sip.example.com", "acme_1", "very-secret", "192.0.2.0/24,198.51.100.7"],
            "{setup:?}"
        );

        let (_, faults) = parse(
            r#"
            [[integration]]
            company = "Acme"
            name = "PBX"
            provider = "ringostat"
            auth_key = "k"
            [integration.sip]
            peers = [{ net = "192.0.2.0/24" }]
            colour = "red"
            "#,
        );
        for expected in [
            "[[integration]] 1 \"PBX\": project_id: is missing",
            "[[integration]] 1 \"PBX\": sip.peers: it must be text",
            "[[integration]] 1 \"PBX\": sip.colour: ringostat has no such key",
        ] {
            assert_eq!(faults.iter().filter(|fault| fault.starts_with(expected)).count(), 1, "{expected}\n{faults:#?}");
        }
    }

    #[test]
    fn a_syntax_error_names_the_line_and_quotes_nothing() {
        let text = "[[integration]]\nauth_token = \"very-secret\" x\n";
        let error = Setup::parse(text, Path::new("setup.toml"), &|_| None).unwrap_err().to_string();
        assert!(error.contains("setup.toml, line 2"), "{error}");
        assert!(!error.contains("very-secret"), "{error}");
    }

    #[test]
    fn an_open_brace_is_a_fault_and_a_value_is_never_expanded_twice() {
        assert!(expand("${A", &|_| None).is_err());
        assert!(expand("${a-b}", &|_| None).is_err());
        assert_eq!(expand("x${A}y${A}", &|_| Some("${A}".into())).unwrap(), "x${A}y${A}");
    }

    #[test]
    fn a_number_must_be_written_as_twilio_writes_it() {
        for (number, good) in [("+15550001111", true), ("+380501234567", true), ("15550001111", false)] {
            assert_eq!(is_e164(number), good, "{number}");
        }
        for number in ["+0123456789", "+1555 000 1111", "+1234567890123456", "+", "+1a34567"] {
            assert!(!is_e164(number), "{number}");
        }
    }
    #[test]
    fn the_nodes_of_a_workflow_look_in_knowledge_bases_of_their_agent() {
        let workflow = r#"
            version = 1
            name = "w"
            [fallback]
            say = "Sorry?"
            goto = "rules"
            [[node]]
            id = "rules"
            kind = "knowledge"
            knowledge = ["Rules"]
            failed = { say = "I do not know." }
            goto = "bye"
            [[node]]
            id = "bye"
            kind = "end"
            "#;
        let workflow = workflow.replace("version = 1", "version = 1\nstart = \"rules\"");
        let faults = |knowledge: &[&str]| {
            let knowledge = knowledge.iter().map(|&base| base.to_owned()).collect();
            let base = AgentProfile { name: "A".into(), language: "en".into(), ..AgentProfile::default() };
            profile_faults(&AgentProfile { workflow: Some(workflow.clone()), knowledge, ..base })
        };
        assert_eq!(faults(&["Menu", "Rules"]), []);
        assert_eq!(faults(&["Menu", UNKNOWN]), [], "the environment has not said which");
        let found = faults(&["Menu"]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, "workflow: node \"rules\", knowledge");
        assert!(found[0].1.starts_with("the agent has no knowledge base \"Rules\""), "{found:?}");
    }
}
