//! What an agent can look up: the traits that a store of documents implements, a lookup with its time limit, and the
//! pure parts of it: splitting documents into passages, words into stems, and ranking. Knows no database and no file.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

pub mod ahead;
pub mod answer;
pub mod rank;
pub mod split;
pub mod words;

/// A caller waits: what takes longer has failed, and the agent answers without it.
pub const LOOKUP_LIMIT: Duration = Duration::from_millis(1500);
/// Longest question that is looked up, in characters; the rest is cut off.
pub const MAX_QUERY: usize = 1000;
/// Most passages that one lookup gives.
pub const MAX_PASSAGES: usize = 20;

/// A question for the documents.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lookup {
    pub query: String,
    /// ISO 639-1 or BCP 47; decides which words are left out and how Cyrillic words are stemmed first.
    pub language: String,
    /// At most [`MAX_PASSAGES`]; more is cut to it.
    pub limit: usize,
    /// Of the agent's knowledge bases, those to look in; `None` = all of them.
    pub bases: Option<Vec<String>>,
    pub meaning: Meaning,
}

/// What the meaning of a question is compared by. It belongs to the question's words, whichever bases are looked in.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Meaning {
    /// Nobody has asked for it, or it could not be had: the lookup asks.
    #[default]
    Unknown,
    /// There is nothing to compare it with: full text alone decides.
    Nothing,
    /// Of length 1.
    Vector(Arc<[f32]>),
}

/// A piece of a document, as it is cited.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Passage {
    /// The document's id.
    pub document: Uuid,
    /// The document's name.
    pub title: String,
    /// Where in it: a page, the headings above it; may be empty.
    pub place: String,
    pub text: String,
    /// From 0 to 1: how much of the question's weight it holds, or how near its meaning is, whichever is more.
    pub score: f32,
}

/// Why a lookup gave nothing. The caller's turn goes on without it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KnowledgeError {
    #[error("the knowledge base gave nothing within {} ms", .0.as_millis())]
    Late(Duration),
    /// The store's own words; they hold nothing of the documents.
    #[error("the knowledge base does not answer: {0}")]
    Store(String),
}

/// The documents that one agent may look into.
pub trait Knowledge: Send + Sync {
    /// The best passages first. Dropping the future cancels the work.
    fn look_up(&self, ask: Lookup) -> BoxFuture<'static, Result<Vec<Passage>, KnowledgeError>>;

    /// What a lookup of this question would compare meanings by: the part of it that another machine may have to be asked
    /// for. Dropping the future cancels the work.
    fn meaning(&self, _ask: Lookup) -> BoxFuture<'static, Meaning> {
        futures::future::ready(Meaning::Nothing).boxed()
    }
}

/// All documents of all companies.
pub trait Library: Send + Sync {
    /// Those of `company` in the knowledge bases of these names; a name that leads nowhere adds nothing.
    fn of(&self, company: Uuid, bases: &[String]) -> Arc<dyn Knowledge>;
}

/// A lookup that ends within `limit`.
pub async fn look_up(knowledge: &dyn Knowledge, ask: Lookup, limit: Duration) -> Result<Vec<Passage>, KnowledgeError> {
    match tokio::time::timeout(limit, knowledge.look_up(ask)).await {
        Ok(found) => found,
        Err(_) => Err(KnowledgeError::Late(limit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Never;

    impl Knowledge for Never {
        fn look_up(&self, _: Lookup) -> BoxFuture<'static, Result<Vec<Passage>, KnowledgeError>> {
            futures::future::pending().boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lookup_that_takes_too_long_is_given_up() {
        let ask = Lookup { query: "hours".into(), language: "en".into(), limit: 3, ..Lookup::default() };
        let found = look_up(&Never, ask, Duration::from_millis(200)).await;
        assert_eq!(found, Err(KnowledgeError::Late(Duration::from_millis(200))));
    }
}
