//! `search_knowledge`: looks a question up in the agent's documents. The result names the document and the place of every
//! passage, so that the call's record shows what an answer stood on.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::{Tool, ToolContext, ToolError, ToolOutcome};
use crate::agent::knowledge::{Knowledge, LOOKUP_LIMIT, Lookup, Meaning, Passage, look_up};
use crate::speech::llm::{ToolCall, ToolSpec};

pub const NAME: &str = "search_knowledge";

/// Passages that a model is given: with more, it reads longer before it speaks.
pub const PASSAGES: usize = 4;

/// For one agent: its documents, and the language that its callers speak.
pub struct SearchKnowledge {
    pub knowledge: Arc<dyn Knowledge>,
    pub language: String,
}

impl Tool for SearchKnowledge {
    fn spec(&self) -> ToolSpec {
        ToolSpec {
            name: NAME.into(),
            description:
                "Finds what the company's documents say. Use it before you answer a question about the company, \
                          its prices, rules or services."
                    .into(),
            parameters: json!({
                "type": "object",
                "properties": {
                    "query": {
                        "type": "string", "minLength": 1, "maxLength": 1000,
                        "description": "The question, complete in itself, in the caller's words.",
                    },
                },
                "required": ["query"],
                // No more: beside it stands `bases`, which a workflow adds and a model is not told of.
            }),
        }
    }

    fn side_effect(&self) -> bool {
        false
    }

    fn call(&self, args: Value, _cx: ToolContext) -> BoxFuture<'static, Result<ToolOutcome, ToolError>> {
        let (knowledge, language) = (self.knowledge.clone(), self.language.clone());
        let query = args["query"].as_str().unwrap_or_default().to_owned();
        async move {
            let bases = bases(&args)?;
            let ask = Lookup { query, language, limit: PASSAGES, bases, meaning: Meaning::Unknown };
            let found = look_up(&*knowledge, ask, LOOKUP_LIMIT).await;
            let found = found.map_err(|fault| ToolError::Failed(fault.to_string()))?;
            let passages: Vec<Value> = found.iter().map(cited).collect();
            Ok(ToolOutcome { content: json!({ "passages": passages }).to_string(), effect: None })
        }
        .boxed()
    }
}

/// What a workflow asks by: the question, and the bases of the node that asks, where it names them.
pub fn arguments(query: &str, bases: Option<&[String]>) -> Value {
    match bases {
        Some(bases) => json!({ "query": query, "bases": bases }),
        None => json!({ "query": query }),
    }
}

/// A model's call, as its node allows it: where to look is the workflow's to say. Any other call stays as it is.
pub fn within(mut call: ToolCall, bases: Option<&[String]>) -> ToolCall {
    if call.name == NAME
        && let Ok(Value::Object(mut args)) = serde_json::from_str(&call.arguments)
    {
        args.remove("bases");
        args.extend(bases.map(|bases| ("bases".to_owned(), json!(bases))));
        call.arguments = Value::Object(args).to_string();
    }
    call
}

/// Where a call is to look.
pub fn bases(args: &Value) -> Result<Option<Vec<String>>, ToolError> {
    match &args["bases"] {
        Value::Null => Ok(None),
        bases => match serde_json::from_value(bases.clone()) {
            Ok(bases) => Ok(Some(bases)),
            Err(_) => Err(ToolError::Arguments("bases is no list of names; leave it out".into())),
        },
    }
}

fn cited(passage: &Passage) -> Value {
    let Passage { document, title, place, text, score } = passage;
    // Two digits: more says nothing to a model.
    let score = (f64::from(*score) * 100.0).round() / 100.0;
    json!({ "document": document, "title": title, "place": place, "text": text, "score": score })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::agent::knowledge::KnowledgeError;
    use crate::telephony::{CallId, PhoneNumber};

    struct Fixed(Result<Vec<Passage>, KnowledgeError>);

    impl Knowledge for Fixed {
        fn look_up(&self, ask: Lookup) -> BoxFuture<'static, Result<Vec<Passage>, KnowledgeError>> {
            assert_eq!((ask.query.as_str(), ask.language.as_str()), ("When is breakfast?", "uk"));
            futures::future::ready(self.0.clone()).boxed()
        }
    }

    async fn call(found: Result<Vec<Passage>, KnowledgeError>) -> Result<ToolOutcome, ToolError> {
        let tool = SearchKnowledge { knowledge: Arc::new(Fixed(found)), language: "uk".into() };
        let cx = ToolContext::new(CallId::new(), PhoneNumber::default(), PhoneNumber::default());
        tool.call(json!({ "query": "When is breakfast?" }), cx).await
    }

    #[tokio::test]
    async fn a_result_says_where_it_stands() {
        let passage = Passage {
            document: Uuid::nil(),
            title: "hotel.pdf".into(),
            place: "p. 3, Meals".into(),
            text: "From seven.".into(),
            score: 0.917,
        };
        let outcome = call(Ok(vec![passage])).await.unwrap();
        let content: Value = serde_json::from_str(&outcome.content).unwrap();
        let cited = &content["passages"][0];
        assert_eq!((&cited["title"], &cited["place"]), (&json!("hotel.pdf"), &json!("p. 3, Meals")));
        assert_eq!(cited["score"], 0.92);
    }

    #[tokio::test]
    async fn where_to_look_is_the_workflows_to_say() {
        let call = |arguments: &str| ToolCall { id: "1".into(), name: NAME.into(), arguments: arguments.into() };
        let menu = ["menu".to_owned()];
        let written = |arguments, bases| within(call(arguments), bases).arguments;
        assert_eq!(written(r#"{"query":"x"}"#, Some(&menu[..])), r#"{"bases":["menu"],"query":"x"}"#);
        assert_eq!(written(r#"{"query":"x","bases":["rules"]}"#, Some(&menu)), r#"{"bases":["menu"],"query":"x"}"#);
        assert_eq!(written(r#"{"query":"x","bases":["rules"]}"#, None), r#"{"query":"x"}"#);
        assert_eq!(written("no JSON", Some(&menu)), "no JSON");
        let other = ToolCall { name: "price".into(), ..call(r#"{"bases":[1]}"#) };
        assert_eq!(within(other.clone(), Some(&menu)), other);
        assert_eq!(bases(&arguments("x", Some(&menu))), Ok(Some(menu.to_vec())));
        assert_eq!(bases(&arguments("x", None)), Ok(None));
        assert!(bases(&json!({ "bases": "menu" })).is_err());
    }

    #[tokio::test]
    async fn a_store_that_is_down_is_told_to_the_model() {
        let fault = call(Err(KnowledgeError::Store("no connection".into()))).await.unwrap_err();
        assert_eq!(fault.to_string(), "the knowledge base does not answer: no connection");
    }
}
