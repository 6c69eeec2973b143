//! The tools that companies made, as calls get them: HTTP tools out of the directory, those of MCP servers as far as
//! these answer. Every use that acts is in the audit log.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use crate::agent::tools::fetch::Fetcher;
use crate::agent::tools::http::HttpTool;
use crate::agent::tools::mcp::{Commands, McpServers, WantedServer};
use crate::agent::tools::{CompanyTools, Tool, ToolContext, ToolError, ToolOutcome, ToolRegistry};
use crate::speech::llm::ToolSpec;
use crate::store::Store;
use crate::store::directory::Directory;
use crate::store::tools::ToolDefinition;

/// How soon a server that was set up is greeted.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Greetings that are under way when the program ends.
const CLOSE: Duration = Duration::from_secs(1);

/// Cheap to clone.
#[derive(Clone)]
pub struct MadeTools {
    inner: Arc<Inner>,
}

struct Inner {
    directory: Arc<ArcSwap<Directory>>,
    fetcher: Fetcher,
    servers: McpServers,
    store: Option<Store>,
}

impl MadeTools {
    pub fn new(directory: Arc<ArcSwap<Directory>>, fetcher: Fetcher, commands: Commands, store: Option<Store>) -> Self {
        let servers = McpServers::new(fetcher.clone(), commands);
        Self { inner: Arc::new(Inner { directory, fetcher, servers, store }) }
    }

    /// What a server has, by name; `None`: it has not answered.
    pub fn of_server(&self, id: Uuid) -> Option<Vec<(String, String)>> {
        self.inner.servers.tools(id)
    }

    /// Asks a server that runs for its tools; of a process there is one, however often it is tried out.
    pub async fn look(&self, id: Uuid) -> Result<Vec<(String, String)>, String> {
        self.inner.servers.look(id).await
    }

    pub fn fetcher(&self) -> &Fetcher {
        &self.inner.fetcher
    }

    /// Talks to the servers that the directory names, until `stop`.
    pub async fn keep(self, stop: CancellationToken) {
        let mut seen: Option<Arc<Directory>> = None;
        let mut tick = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = tick.tick() => {}
            }
            let directory = self.inner.directory.load_full();
            if !seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &directory)) {
                self.inner.servers.want(wanted(&directory));
                seen = Some(directory);
            }
        }
        self.inner.servers.close(CLOSE).await;
    }
}

fn wanted(directory: &Directory) -> Vec<WantedServer> {
    let server = |definition: &ToolDefinition| match definition {
        ToolDefinition::Mcp(server) => Some(server.clone()),
        ToolDefinition::Http(_) => None,
    };
    let wanted = directory.tools().filter_map(|tool| {
        let definition = server(&tool.definition)?;
        Some(WantedServer { id: tool.id, company: tool.company, definition, secrets: tool.secrets.clone() })
    });
    wanted.collect()
}

impl CompanyTools for MadeTools {
    fn provision(&self, company: Uuid, registry: &mut ToolRegistry) {
        let inner = &self.inner;
        let mut made = ToolRegistry::default();
        for tool in inner.directory.load().tools().filter(|tool| tool.company == company) {
            let ToolDefinition::Http(definition) = &tool.definition else { continue };
            match HttpTool::new(definition.clone(), tool.secrets.clone(), inner.fetcher.clone()) {
                Ok(tool) => made.add(Arc::new(tool)),
                Err(fault) => warn!(tool = %definition.name, %fault, "a company's tool cannot be used"),
            }
        }
        inner.servers.provision(company, &mut made);
        for (name, tool) in made.into_tools() {
            // What the program itself has stays what it is.
            if registry.has(&name) {
                continue;
            }
            let noted = Noted { tool, name: name.clone(), company, store: inner.store.clone() };
            registry.add_as(name, Arc::new(noted));
        }
    }
}

/// A tool whose uses are noted, where they act.
struct Noted {
    tool: Arc<dyn Tool>,
    name: String,
    company: Uuid,
    store: Option<Store>,
}

impl Tool for Noted {
    fn spec(&self) -> ToolSpec {
        self.tool.spec()
    }

    fn side_effect(&self) -> bool {
        self.tool.side_effect()
    }

    fn call(&self, args: Value, cx: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
        let (call, key) = (cx.call.to_string(), cx.key.clone());
        let work = self.tool.call(args, cx);
        let Some(store) = self.store.clone().filter(|_| self.side_effect()) else { return work };
        let (name, company) = (self.name.clone(), self.company);
        async move {
            let done = work.await;
            // Neither arguments nor answers: both may hold what a caller said, and stand in the call's record.
            let detail = match &done {
                Ok(_) => json!({ "call": call, "key": key, "tool": name }),
                Err(error) => json!({ "call": call, "key": key, "tool": name, "failed": error.to_string() }),
            };
            if let Err(error) = store.audit(Some(company), "agent", "tool.used", &call, &detail).await {
                warn!(tool = %name, %error, "the use of a tool could not be noted");
            }
            done
        }
        .boxed()
    }

    fn limit(&self) -> Option<Duration> {
        self.tool.limit()
    }

    fn max_result_bytes(&self) -> usize {
        self.tool.max_result_bytes()
    }

    fn filler(&self, language: &str) -> Option<String> {
        self.tool.filler(language)
    }
}
