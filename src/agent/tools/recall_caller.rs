//! `recall_caller`: the last calls and messages with the number on the line. It takes no number: a caller cannot ask about
//! somebody else. `get_call_history` is the providers' log of any number, without what was said.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Tool, ToolContext, ToolError, ToolOutcome};
use crate::agent::contacts::{Contacts, MAX_CONTACTS, listed};
use crate::speech::llm::ToolSpec;

pub const NAME: &str = "recall_caller";

/// A caller waits: a store that takes longer is not waited for.
const LIMIT: Duration = Duration::from_secs(2);

/// For the agents of one company.
pub struct RecallCaller {
    pub contacts: Arc<dyn Contacts>,
    pub company: Uuid,
}

impl Tool for RecallCaller {
    fn spec(&self) -> ToolSpec {
        ToolSpec {
            name: NAME.into(),
            description:
                "Gives the last calls and messages with the person on the line: when, who began, what came of \
                          it and what it was about. Use it when they refer to an earlier contact."
                    .into(),
            parameters: json!({ "type": "object", "properties": {}, "additionalProperties": false }),
        }
    }

    fn side_effect(&self) -> bool {
        false
    }

    fn call(&self, _args: Value, cx: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
        let past = self.contacts.past(self.company, &cx.caller, cx.call, MAX_CONTACTS);
        async move {
            let late = || ToolError::Failed("the records do not answer now".into());
            let past = tokio::time::timeout(LIMIT, past).await.map_err(|_| late())?.map_err(|_| late())?;
            Ok(ToolOutcome { content: listed(&past).to_string(), effect: None })
        }
        .boxed()
    }
}
