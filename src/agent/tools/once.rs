//! What was done for good on a call: a tool with a side effect is not run again for the same wish, even where the reply
//! that asked for it was interrupted before its model heard of the result.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{ToolError, ToolOutcome};
use crate::telephony::CallId;

/// Wishes of one call that are remembered; the oldest is forgotten first.
const REMEMBERED: usize = 64;

pub(super) type Outcome = Result<ToolOutcome, ToolError>;
pub(super) type Running = Shared<BoxFuture<'static, Outcome>>;

/// A tool and its arguments, whatever order they were written in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish([u8; 32]);

impl Wish {
    pub fn new(tool: &str, args: &Value) -> Self {
        let mut hash = Sha256::new();
        hash.update(tool.as_bytes());
        hash.update([0]);
        feed(&mut hash, args);
        Self(hash.finalize().into())
    }

    /// A key for the server that does it: the same for the same wish of one turn.
    fn key(&self, call: CallId, turn: u64) -> String {
        let mut hash = Sha256::new();
        hash.update(call.uuid().as_bytes());
        hash.update(turn.to_be_bytes());
        hash.update(self.0);
        let digest: [u8; 32] = hash.finalize().into();
        digest[..16].iter().fold(String::with_capacity(32), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

fn feed(hash: &mut Sha256, value: &Value) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_unstable_by_key(|(name, _)| *name);
            hash.update(b"{");
            for (name, value) in fields {
                hash.update(Value::from(name.as_str()).to_string().as_bytes());
                feed(hash, value);
            }
            hash.update(b"}");
        }
        Value::Array(items) => {
            hash.update(b"[");
            items.iter().for_each(|item| feed(hash, item));
            hash.update(b"]");
        }
        plain => {
            hash.update(plain.to_string().as_bytes());
            hash.update(b",");
        }
    }
}

struct Done {
    wish: Wish,
    turn: u64,
    /// The model has heard of the result.
    told: bool,
    key: String,
    outcome: Running,
}

/// The wishes of one call. Cheap to clone; clones share them.
#[derive(Clone, Default)]
pub(super) struct Once(Arc<Mutex<VecDeque<Done>>>);

impl Once {
    /// The outcome of this wish: that of the run that is under way or that the model has not heard of, else of a new
    /// one that `start` begins with its key.
    pub fn run(&self, wish: Wish, call: CallId, turn: u64, start: impl FnOnce(String) -> Running) -> Running {
        let mut done = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = done.iter().position(|one| one.wish == wish);
        let mut key = None;
        if let Some(at) = found {
            let one = &done[at];
            let undone = matches!(one.outcome.peek(), Some(Err(ToolError::Arguments(_) | ToolError::Undone(_))));
            if !undone && (!one.told || one.turn == turn) {
                return one.outcome.clone();
            }
            // What may have worked is tried again under its key, so that a server that knows keys does it once.
            let failed = matches!(one.outcome.peek(), Some(Err(_)));
            key = failed.then(|| one.key.clone());
            done.remove(at);
        }
        let key = key.unwrap_or_else(|| wish.key(call, turn));
        let outcome = start(key.clone());
        if done.len() == REMEMBERED {
            done.pop_front();
        }
        done.push_back(Done { wish, turn, told: false, key, outcome: outcome.clone() });
        outcome
    }

    /// The model hears of these results: the same wish in a later turn is a new one.
    pub fn told(&self, wishes: &[Wish]) {
        let mut done = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for one in done.iter_mut().filter(|one| wishes.contains(&one.wish)) {
            one.told = true;
        }
    }
}

/// An outcome that is being made by a task of its own.
pub(super) fn running(task: tokio::task::JoinHandle<Outcome>) -> Running {
    let lost = "it broke off; it may or may not have worked";
    async move { task.await.unwrap_or_else(|_| Err(ToolError::Failed(lost.into()))) }.boxed().shared()
}
