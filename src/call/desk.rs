//! The desk between providers, store and calls: what becomes of a webhook, who is dialled and written to, and what an
//! agent's telephone tools do. Its work lies in the files below: `questions` and `invites` (answered from memory), `inbox` (events that
//! act once), `comparing` (webhooks against the call log), `placing` (calls and messages that go out), `writing`
//! (messages that are answered), `telephone` (an agent's tools).

mod comparing;
mod inbox;
mod invites;
mod placing;
mod questions;
mod telephone;
mod writing;

use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use dashmap::DashMap;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tracing::warn;
use uuid::Uuid;

pub use self::inbox::NotTaken;
pub use self::invites::Invite;
pub use self::placing::{CallRequest, MessageRequest, OutboundError};
pub use self::questions::{AfterCall, Offer};

use self::invites::Told;
use crate::agent::tools::telephone::Abilities;
use crate::call::clients::Clients;
use crate::call::registry::{CallSetup, Calls, Exchange};
use crate::providers;
use crate::providers::credentials::CredentialsFault;
use crate::providers::provider::{Capabilities, Provider};
use crate::store::Store;
use crate::store::directory::{Directory, Integration};
use crate::telephony::CallId;

/// A call that was dialled and has not been answered by then will not be.
const DIALLED_LIFE: Duration = Duration::from_secs(300);
/// Calls dialled at once that are waited for.
const MAX_DIALLED: usize = 10_000;

/// Cheap to clone.
#[derive(Clone)]
pub struct Desk {
    inner: Arc<Inner>,
}

struct Inner {
    calls: Calls,
    directory: Arc<ArcSwap<Directory>>,
    store: Option<Store>,
    clients: Clients,
    /// `https://voice.example.com`: where providers reach us.
    base: Box<dyn Fn(&str) -> String + Send + Sync>,
    /// Calls that we dialled and whose audio has not come.
    dialled: DashMap<CallId, (Instant, CallSetup)>,
    /// Calls that were answered lately, by integration and the provider's id: a question that is asked twice is about one
    /// call.
    asked: DashMap<(Uuid, String), (Instant, CallSetup)>,
    /// Calls that webhooks told of in the last minute and whose INVITE may come.
    told: DashMap<CallId, Told>,
    tasks: TaskTracker,
}

impl Desk {
    /// `url` makes an absolute address of a path. Calls get their telephone tools from this desk.
    pub fn new(
        calls: Calls,
        directory: Arc<ArcSwap<Directory>>,
        store: Option<Store>,
        url: impl Fn(&str) -> String + Send + Sync + 'static,
    ) -> Self {
        let inner = Arc::new(Inner {
            calls: calls.clone(),
            directory,
            store,
            clients: Clients::default(),
            base: Box::new(url),
            dialled: DashMap::new(),
            asked: DashMap::new(),
            told: DashMap::new(),
            tasks: TaskTracker::new(),
        });
        let exchange: Weak<dyn Exchange> = Arc::downgrade(&(inner.clone() as Arc<dyn Exchange>));
        calls.use_exchange(exchange);
        Self { inner }
    }

    pub fn directory(&self) -> Arc<Directory> {
        self.inner.directory.load_full()
    }

    pub fn client(&self, integration: &Integration) -> Result<Arc<dyn Provider>, CredentialsFault> {
        self.inner.clients.of(integration)
    }

    /// What an agent of this company can do.
    pub fn abilities(&self, company: Uuid) -> Abilities {
        self.inner.abilities(company)
    }

    /// Dials. The record is in the store before the provider is asked.
    pub async fn call(&self, company: Uuid, request: CallRequest) -> Result<CallId, OutboundError> {
        self.inner.call(company, request).await
    }

    /// Sends a message; its id in the store.
    pub async fn message(&self, company: Uuid, request: MessageRequest) -> Result<Uuid, OutboundError> {
        self.inner.message(company, request).await
    }

    /// Waits for what is under way, as long as `limit`.
    pub async fn close(&self, limit: Duration) {
        self.inner.tasks.close();
        if timeout(limit, self.inner.tasks.wait()).await.is_err() {
            warn!("events were still acting; the next start lets them act again");
        }
    }
}

/// An integration that can do something, with its client.
struct Able {
    integration: Arc<Integration>,
    client: Arc<dyn Provider>,
}

impl Inner {
    fn abilities(&self, company: Uuid) -> Abilities {
        let mut abilities = Abilities::default();
        for integration in self.directory.load().integrations_of(company) {
            let Some(kind) = providers::kind(integration.provider) else { continue };
            abilities.call |= kind.capabilities.dial;
            abilities.message |= kind.capabilities.messages;
            abilities.history |= kind.capabilities.history;
        }
        abilities
    }

    /// All integrations that can do this, of every company.
    fn able_anywhere(&self, can: impl Fn(&Capabilities) -> bool) -> Vec<Able> {
        let directory = self.directory.load();
        let able = directory.integrations().filter(|one| can_do(one, &can)).filter_map(|one| self.opened(one));
        able.collect()
    }

    fn opened(&self, integration: &Arc<Integration>) -> Option<Able> {
        Some(Able { client: self.clients.of(integration).ok()?, integration: integration.clone() })
    }

    /// The company's integrations that can do this, in the order in which they were made.
    fn able(&self, company: Uuid, only: Option<Uuid>, can: impl Fn(&Capabilities) -> bool) -> Vec<Able> {
        let directory = self.directory.load();
        let of_company = directory.integrations_of(company);
        let mut able: Vec<Able> = of_company
            .filter(|integration| only.is_none_or(|id| id == integration.id) && can_do(integration, &can))
            .filter_map(|integration| self.opened(integration))
            .collect();
        able.sort_by_key(|one| one.integration.id);
        able
    }
}

fn can_do(integration: &Integration, can: impl Fn(&Capabilities) -> bool) -> bool {
    providers::kind(integration.provider).is_some_and(|kind| can(&kind.capabilities))
}
