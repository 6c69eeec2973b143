//! Processes that run calls: each beats, and what a dead one left open is closed with the truth. A process is dead when
//! it has not beaten for a while, or when it was on this host and is there no more.

use std::time::Duration;

use sqlx::FromRow;
use uuid::Uuid;

use crate::store::db::{At, Lock, args};
use crate::store::{Store, StoreError};
use crate::telephony::{CallEnd, CallId, EndReason, Party};

/// How often a process says that it lives: how exactly the end of a call is known that died with it.
pub const BEAT: Duration = Duration::from_secs(2);
/// Without a beat for so long, a process on another host is taken for dead. Longer than a store may stand still.
const LEASE: Duration = Duration::from_secs(60);

/// This process, as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub id: Uuid,
    host: String,
    pid: u32,
    pid_started: i64,
}

/// How a call ends whose process died.
pub const CRASHED: CallEnd = CallEnd::new(Party::System, EndReason::Crashed);

/// A call that a dead process had left open.
#[derive(Clone, Copy, Debug, PartialEq, FromRow)]
pub struct Closed {
    pub id: Uuid,
    pub ended_at: At,
}

impl Closed {
    pub fn call(&self) -> CallId {
        self.id.into()
    }
}

#[derive(FromRow)]
struct NodeRow {
    id: Uuid,
    host: String,
    pid: i64,
    pid_started: i64,
    seen_at: At,
}

impl Node {
    pub fn this() -> Self {
        let pid = std::process::id();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        Self { id: Uuid::now_v7(), host, pid, pid_started: started(pid).unwrap_or(0) }
    }

    fn is_dead(&self, other: &NodeRow, now: At) -> bool {
        let silent = now.as_millisecond().saturating_sub(other.seen_at.as_millisecond());
        if silent > LEASE.as_millis() as i64 {
            return true;
        }
        let here = other.host == self.host && !self.host.is_empty();
        here && u32::try_from(other.pid).ok().and_then(started) != Some(other.pid_started)
    }
}

/// When a process was started, in clock ticks since boot: field 22 of `/proc/PID/stat` (proc(5)), counted after the
/// name, which may hold anything but ends with the last parenthesis. `None`: there is no such process.
fn started(pid: u32) -> Option<i64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_whitespace();
    // A process that was killed and not yet waited for is there as a zombie, and does nothing more.
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

impl Store {
    /// Says that this process lives.
    pub async fn beat(&self, node: &Node) -> Result<(), StoreError> {
        self.db
            .execute(
                "INSERT INTO node (id, host, pid, pid_started, seen_at) VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at",
                args![node.id, &node.host, node.pid, node.pid_started, At::now()],
            )
            .await?;
        Ok(())
    }

    /// Closes the calls that dead processes left open: by the system, crashed, at their last sign of life.
    pub async fn bury(&self, node: &Node) -> Result<Vec<Closed>, StoreError> {
        let now = At::now();
        let mut tx = self.db.write().await?;
        tx.lock(Lock::Nodes).await?;
        let others: Vec<NodeRow> =
            tx.all("SELECT id, host, pid, pid_started, seen_at FROM node WHERE id <> $1", args![node.id]).await?;
        let mut closed = Vec::new();
        for dead in others.iter().filter(|other| node.is_dead(other, now)) {
            let calls: Vec<Closed> = tx
                .all(
                    "UPDATE call SET ended_at = CASE WHEN seen_at > $2 THEN seen_at ELSE $2 END,
                         end_by = $3, end_reason = $4, node_id = NULL,
                         outcome = CASE WHEN answered_at IS NULL THEN 'failed' ELSE 'answered' END
                     WHERE node_id = $1 AND ended_at IS NULL RETURNING id, ended_at",
                    args![dead.id, dead.seen_at, CRASHED.by, CRASHED.reason],
                )
                .await?;
            tx.execute("DELETE FROM node WHERE id = $1", args![dead.id]).await?;
            closed.extend(calls);
        }
        // A process that said goodbye, and still had a call that it could not write the end of.
        let orphans: Vec<Closed> = tx
            .all(
                "UPDATE call SET ended_at = seen_at, end_by = $1, end_reason = $2, node_id = NULL,
                     outcome = CASE WHEN answered_at IS NULL THEN 'failed' ELSE 'answered' END
                 WHERE ended_at IS NULL AND node_id IS NOT NULL
                     AND NOT EXISTS (SELECT 1 FROM node WHERE node.id = call.node_id)
                 RETURNING id, ended_at",
                args![CRASHED.by, CRASHED.reason],
            )
            .await?;
        closed.extend(orphans);
        for call in &closed {
            tx.execute(
                "UPDATE call_leg SET ended_at = $2 WHERE call_id = $1 AND ended_at IS NULL",
                args![call.id, call.ended_at],
            )
            .await?;
        }
        tx.commit().await?;
        Ok(closed)
    }

    /// Says goodbye: every call of this process is closed.
    pub async fn leave(&self, node: &Node) -> Result<(), StoreError> {
        self.db.execute("DELETE FROM node WHERE id = $1", args![node.id]).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(node: &Node) -> NodeRow {
        let Node { id, host, pid, pid_started } = node.clone();
        NodeRow { id, host, pid: pid.into(), pid_started, seen_at: At::now() }
    }

    #[test]
    fn a_process_of_this_host_is_dead_when_it_is_not_there() {
        let (this, now) = (Node::this(), At::now());
        assert!(this.pid_started > 0, "this process finds itself");
        assert!(!this.is_dead(&row(&this), now));
        assert!(
            this.is_dead(&NodeRow { pid_started: this.pid_started + 1, ..row(&this) }, now),
            "the pid was used again"
        );
        assert!(this.is_dead(&NodeRow { pid: 0, ..row(&this) }, now));
    }

    #[test]
    fn a_process_of_another_host_is_dead_after_its_lease() {
        let this = Node::this();
        let other = NodeRow { host: "elsewhere".into(), pid: 0, ..row(&this) };
        let after = |ms: i64| At::of(*other.seen_at + jiff::SignedDuration::from_millis(ms));
        let lease = LEASE.as_millis() as i64;
        assert!(!this.is_dead(&other, after(lease)));
        assert!(this.is_dead(&other, after(lease + 1)));
    }
}
