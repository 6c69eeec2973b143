//! What starts calls and messages, as those who ask for them see it: the desk, or a stand-in in tests.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use uuid::Uuid;

use crate::call::desk::{CallRequest, Desk, MessageRequest, OutboundError};
use crate::providers::credentials::CredentialsFault;
use crate::providers::provider::Provider;
use crate::store::directory::Integration;
use crate::telephony::CallId;

/// Dials and writes on behalf of a company.
pub trait Outbound: Send + Sync + 'static {
    /// Answers as soon as the provider has taken the call on, not when it is picked up.
    fn call(&self, company: Uuid, request: CallRequest) -> BoxFuture<'static, Result<CallId, OutboundError>>;

    /// The id of the message in the store.
    fn message(&self, company: Uuid, request: MessageRequest) -> BoxFuture<'static, Result<Uuid, OutboundError>>;

    /// The integration's client, the same for all who ask: it keeps the provider's rate limit.
    fn client(&self, integration: &Integration) -> Result<Arc<dyn Provider>, CredentialsFault>;
}

impl Outbound for Desk {
    fn call(&self, company: Uuid, request: CallRequest) -> BoxFuture<'static, Result<CallId, OutboundError>> {
        let desk = self.clone();
        async move { Desk::call(&desk, company, request).await }.boxed()
    }

    fn message(&self, company: Uuid, request: MessageRequest) -> BoxFuture<'static, Result<Uuid, OutboundError>> {
        let desk = self.clone();
        async move { Desk::message(&desk, company, request).await }.boxed()
    }

    fn client(&self, integration: &Integration) -> Result<Arc<dyn Provider>, CredentialsFault> {
        Desk::client(self, integration)
    }
}
