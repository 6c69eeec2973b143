//! Webhooks against the call log, for providers whose webhooks can be lost or forged: missed calls are written down, told
//! ones corrected, and those that never were are named.

use jiff::SignedDuration;
use serde_json::json;
use tracing::{info, warn};

use super::inbox::told;
use super::{Able, Desk, Inner};
use crate::call::clients::{AskError, in_time};
use crate::clock;
use crate::providers::provider::{CallOutcome, HistoryQuery, PastCall};
use crate::providers::reconcile::{self, Reconciliation};
use crate::store::calls::{NOT_IN_LOG, ProviderNews};
use crate::store::{At, Store, StoreError};

/// Calls that are asked for at once, and how often: 20,000 calls in two hours are three a second.
const PAGE: usize = 1_000;
const PAGES: usize = 20;

impl Desk {
    /// Compares the last two hours of every integration whose log decides. Gives how many calls differed.
    pub async fn reconcile(&self) -> usize {
        let inner = &self.inner;
        let Some(store) = &inner.store else { return 0 };
        let mut differed = 0;
        for able in inner.able_anywhere(|can| can.log_decides) {
            let integration = able.integration.id;
            match inner.compare(store, &able).await {
                Ok(Reconciliation { missed, forged, corrected }) => {
                    let (missed, forged, corrected) = (missed.len(), forged.len(), corrected.len());
                    if missed + forged + corrected > 0 {
                        info!(%integration, missed, forged, corrected, "webhooks differed from the call log");
                    }
                    differed += missed + forged + corrected;
                }
                Err(error) => warn!(%integration, %error, "webhooks could not be compared with the call log"),
            }
        }
        differed
    }
}

impl Inner {
    async fn compare(&self, store: &Store, able: &Able) -> Result<Reconciliation, CompareError> {
        let integration = &able.integration;
        let (company, id) = (integration.company_id, integration.id);
        let now = clock::now();
        let since = now - SignedDuration::try_from(reconcile::WINDOW).unwrap_or(SignedDuration::ZERO);
        // What was known before the log was read: a call that begins in between is in neither or in the log alone.
        let known = store.told_calls(company, id, since).await?;
        let mut query = HistoryQuery { from: Some(since), limit: PAGE, ..HistoryQuery::default() };
        let mut log: Vec<PastCall> = Vec::new();
        for page in 0.. {
            if page == PAGES {
                return Err(CompareError::TooLong);
            }
            let part = in_time(able.client.history(&query)).await?;
            log.extend(part.calls);
            match part.next {
                Some(next) => query.cursor = Some(next),
                None => break,
            }
        }
        let found = reconcile::reconcile(now, &known, &log);
        for past in &found.missed {
            let call = self.call_in_log(store, integration, past).await?;
            store.correct_call(company, call, &told(past)).await?;
            self.note_difference(store, able, "call.missed", &past.provider_call).await?;
        }
        for past in &found.corrected {
            let call = self.call_in_log(store, integration, past).await?;
            store.correct_call(company, call, &told(past)).await?;
            self.note_difference(store, able, "call.corrected", &past.provider_call).await?;
        }
        for name in &found.forged {
            let Some(call) = store.call_by_alias(company, id, name).await? else { continue };
            let ended = Some((At(now), CallOutcome::Failed));
            let news = ProviderNews { status: Some(NOT_IN_LOG.into()), ended, ..ProviderNews::default() };
            store.correct_call(company, call, &news).await?;
            self.note_difference(store, able, "call.forged", name).await?;
        }
        Ok(found)
    }

    async fn note_difference(
        &self,
        store: &Store,
        able: &Able,
        action: &'static str,
        provider_call: &str,
    ) -> Result<(), CompareError> {
        let integration = &able.integration;
        let detail = json!({ "integration": integration.id });
        store.audit(Some(integration.company_id), "call log", action, provider_call, &detail).await?;
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum CompareError {
    #[error(transparent)]
    Asked(#[from] AskError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("over {} calls in two hours", PAGE * PAGES)]
    TooLong,
}
