//! Writing a line's webhooks at its provider, and putting back what stood there: what is found is on our disk before it is
//! written over, so that no failure in between forgets it.

use uuid::Uuid;

use crate::call::clients::{AskError, in_time};
use crate::providers::provider::{LineState, Provider, WebhookSetting, Webhooks};
use crate::store::{Store, StoreError};

/// Why a line's webhooks do not stand as asked.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    #[error(transparent)]
    Asked(#[from] AskError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A line whose webhooks were written.
#[derive(Clone, Debug, PartialEq)]
pub struct Wired {
    /// `wanted`: what was changed.
    pub before: LineState,
    /// `wanted`: what the provider did not take over.
    pub after: LineState,
}

/// Where a provider sends what concerns an integration's lines. `url` makes an absolute address of a path.
pub fn addresses(provider: &str, integration: Uuid, url: impl Fn(&str) -> String) -> Webhooks {
    let hook = |route: &str| url(&format!("/webhooks/{provider}/{integration}/{route}"));
    Webhooks { voice: hook("voice"), status: hook("status"), sms: hook("sms") }
}

/// Makes the provider send a line's calls and messages to `hooks`; what is right already is left alone.
pub async fn write(
    store: &Store,
    client: &dyn Provider,
    company: Uuid,
    line: Uuid,
    number: &str,
    hooks: &Webhooks,
) -> Result<Wired, WiringError> {
    let before = in_time(client.inspect_line(number, hooks)).await?;
    let kept_now = store.keep_webhooks(company, line, &before.found).await?;
    if let Err(fault) = in_time(client.prepare_line(number, hooks)).await {
        if kept_now {
            store.forget_webhooks(company, line).await?;
        }
        return Err(fault.into());
    }
    let after = in_time(client.inspect_line(number, hooks)).await?;
    Ok(Wired { before, after })
}

/// Puts back what stood there before the first `write`.
pub async fn restore(
    store: &Store,
    client: &dyn Provider,
    company: Uuid,
    line: Uuid,
    number: &str,
    saved: &[WebhookSetting],
) -> Result<(), WiringError> {
    in_time(client.restore_line(number, saved)).await?;
    store.forget_webhooks(company, line).await?;
    Ok(())
}
