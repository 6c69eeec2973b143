//! A company's telephone in an agent's hands: the tools `make_call`, `send_sms` and `get_call_history`.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tracing::warn;
use uuid::Uuid;

use super::{CallRequest, Inner, MessageRequest, OutboundError};
use crate::agent::dialling::OutboundRefusal;
use crate::agent::tools::telephone::{Abilities, CallOrder, HistoryOrder, SmsOrder, Telephone};
use crate::agent::tools::{ToolContext, ToolError};
use crate::call::registry::Exchange;
use crate::providers::provider::{CallOutcome, HistoryQuery};

impl Exchange for Inner {
    fn telephone(self: Arc<Self>, company: Uuid) -> Option<Arc<dyn Telephone>> {
        self.store.is_some().then(|| Arc::new(CompanyTelephone { desk: self, company }) as Arc<dyn Telephone>)
    }
}

/// A company's telephone, in an agent's hands.
struct CompanyTelephone {
    desk: Arc<Inner>,
    company: Uuid,
}

impl Telephone for CompanyTelephone {
    fn abilities(&self) -> Abilities {
        self.desk.abilities(self.company)
    }

    fn make_call(&self, cx: ToolContext, order: CallOrder) -> BoxFuture<'static, Result<Value, ToolError>> {
        let (desk, company) = (self.desk.clone(), self.company);
        async move {
            let request = CallRequest {
                to: order.to,
                greeting: order.greeting,
                purpose: order.purpose,
                ..CallRequest::default()
            };
            let done = desk.call(company, request).await;
            desk.note_use(company, &cx, "make_call", done.as_ref().map(ToString::to_string)).await;
            Ok(json!({ "status": "dialling", "call": done.map_err(spoken)?.to_string() }))
        }
        .boxed()
    }

    fn send_sms(&self, cx: ToolContext, order: SmsOrder) -> BoxFuture<'static, Result<Value, ToolError>> {
        let (desk, company) = (self.desk.clone(), self.company);
        async move {
            let request = MessageRequest { to: order.to, text: order.text, ..MessageRequest::default() };
            let done = desk.message(company, request).await;
            desk.note_use(company, &cx, "send_sms", done.as_ref().map(ToString::to_string)).await;
            Ok(json!({ "status": "sent", "message": done.map_err(spoken)?.to_string() }))
        }
        .boxed()
    }

    fn call_history(&self, _cx: ToolContext, order: HistoryOrder) -> BoxFuture<'static, Result<Value, ToolError>> {
        let (desk, company) = (self.desk.clone(), self.company);
        async move {
            let status =
                order.status.as_deref().and_then(|label| CallOutcome::ALL.into_iter().find(|one| one.label() == label));
            let query = HistoryQuery {
                phone: order.phone,
                status,
                from: order.from,
                to: order.to,
                limit: order.limit,
                cursor: None,
            };
            let (calls, silent) = desk.history(company, &query).await;
            if calls.is_empty() && !silent.is_empty() {
                return Err(ToolError::Failed(silent.join("; ")));
            }
            Ok(json!({ "calls": calls, "not_answering": silent }))
        }
        .boxed()
    }
}

impl Inner {
    /// Every use of a tool that acts is in the audit log, done or refused.
    async fn note_use(&self, company: Uuid, cx: &ToolContext, tool: &str, done: Result<String, &OutboundError>) {
        let Some(store) = &self.store else { return };
        let detail = match done {
            Ok(made) => json!({ "call": cx.call.to_string(), "made": made }),
            Err(error) => json!({ "call": cx.call.to_string(), "refused": error.to_string() }),
        };
        if let Err(error) = store.audit(Some(company), "agent", tool, &cx.call.to_string(), &detail).await {
            warn!(tool, %error, "the use of a tool could not be noted");
        }
    }
}

/// What a model is told of a failure: what it can say, and nothing of credentials.
fn spoken(error: OutboundError) -> ToolError {
    match error {
        OutboundError::Refused(refusal @ (OutboundRefusal::NotE164(_) | OutboundRefusal::Ourselves)) => {
            ToolError::Arguments(refusal.to_string())
        }
        OutboundError::Store(_) | OutboundError::Credentials(_) | OutboundError::NoStore => {
            ToolError::Failed("the system could not do it now; tell the caller that it did not work".into())
        }
        other => ToolError::Failed(other.to_string()),
    }
}
