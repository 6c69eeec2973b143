//! Keeps the store's call records equal to the running calls: one task writes what calls note, many at a time, in one
//! transaction. No call waits for it. Where the store stands still, records wait in memory, the newest of each call,
//! and are written when it is back; nothing is lost while the process lives.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::clock;
use crate::store::calls::{CallRecord, Written, put_call};
use crate::store::nodes::{BEAT, Closed, Node};
use crate::store::{Store, StoreError};
use crate::telephony::{CallEnd, CallId, EndReason, Party};

/// Records that may wait for a store that stands still. Beyond it, no new call is taken: at 10 kB a record this is
/// half a gigabyte, and days of an ordinary company's calls.
const MAX_WAITING: usize = 50_000;
/// Records in one transaction.
const BATCH: usize = 128;
/// A transaction that takes longer is given up, and its records wait.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// After a failure: the first wait, doubled up to the longest.
const RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// An offered call that has not come by then will not come: twice a stream token's life.
const OFFER_LIFE: Duration = Duration::from_secs(60);

/// Where calls note their records. Cheap to clone; [`Ledger::none`] forgets them.
#[derive(Clone, Default)]
pub struct Ledger {
    inner: Option<Arc<Inner>>,
}

struct Inner {
    node: Uuid,
    noted: Mutex<Noted>,
    changed: Notify,
    /// Up to which note all is on disk.
    written: watch::Sender<u64>,
    waiting: AtomicUsize,
}

#[derive(Default)]
struct Noted {
    /// The number of the last note.
    sequence: u64,
    /// Not written yet: the newest of each call, and the number of its first unwritten note.
    waiting: HashMap<CallId, (u64, CallRecord)>,
    /// What the rows of open calls hold already.
    written: HashMap<CallId, Written>,
    /// Answered from memory, with no audio yet.
    offered: HashMap<CallId, (Instant, CallRecord)>,
}

impl Noted {
    fn take_in(&mut self, record: CallRecord) {
        self.sequence += 1;
        let first = self.waiting.get(&record.id).map_or(self.sequence, |(first, _)| *first);
        self.waiting.insert(record.id, (first, record));
    }

    /// Closes calls whose audio never came.
    fn expire_offers(&mut self, now: Instant) {
        let late = |(since, _): &(Instant, CallRecord)| now.saturating_duration_since(*since) >= OFFER_LIFE;
        let late: Vec<CallId> = self.offered.iter().filter(|(_, offer)| late(offer)).map(|(call, _)| *call).collect();
        for call in late {
            let Some((_, mut record)) = self.offered.remove(&call) else { continue };
            record.close(clock::now(), CallEnd::new(Party::Carrier, EndReason::NeverConnected));
            self.take_in(record);
        }
    }
}

impl Inner {
    /// Short: never held across an await.
    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writing task.
pub struct LedgerTask {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl LedgerTask {
    /// Writes what is left, for as long as `limit`, and ends. All calls must be over.
    pub async fn stop(self, limit: Duration) {
        self.stop.cancel();
        if tokio::time::timeout(limit, self.task).await.is_err() {
            error!("the store stands still: call records are in their folders only");
        }
    }
}

impl Ledger {
    /// For servers without a store: the demo, tests of calls.
    pub fn none() -> Self {
        Self::default()
    }

    /// Closes what dead processes left open, and starts to write. Gives the calls that were closed.
    pub async fn start(store: Store) -> Result<(Self, LedgerTask, Vec<Closed>), StoreError> {
        let node = Node::this();
        store.beat(&node).await?;
        let closed = store.bury(&node).await?;
        if !closed.is_empty() {
            warn!(calls = closed.len(), "closed the calls that a dead process had left open");
        }
        let (written, _) = watch::channel(0);
        let inner = Arc::new(Inner {
            node: node.id,
            noted: Mutex::default(),
            changed: Notify::new(),
            written,
            waiting: AtomicUsize::new(0),
        });
        let stop = CancellationToken::new();
        let writer = Writer { store, node, inner: inner.clone(), failures: 0 };
        let task = tokio::spawn(writer.run(stop.clone()));
        Ok((Self { inner: Some(inner) }, LedgerTask { task, stop }, closed))
    }

    /// Takes a record as it is; an earlier one of the same call that still waits is replaced.
    pub fn note(&self, record: CallRecord) {
        let Some(inner) = &self.inner else { return };
        {
            let mut noted = inner.noted();
            noted.offered.remove(&record.id);
            noted.take_in(record);
            inner.waiting.store(noted.waiting.len(), Ordering::Release);
        }
        inner.changed.notify_one();
    }

    /// Takes the record of a call that was answered and whose audio has still to come; if it never does, the record is
    /// closed. The first note of the call takes its place.
    pub fn offer(&self, record: CallRecord) {
        let Some(inner) = &self.inner else { return };
        self.note(record.clone());
        inner.noted().offered.insert(record.id, (Instant::now(), record));
    }

    /// Waits until everything noted so far is on disk. `false`: not within `limit`.
    pub async fn flush(&self, limit: Duration) -> bool {
        let Some(inner) = &self.inner else { return true };
        let wanted = inner.noted().sequence;
        let mut written = inner.written.subscribe();
        let reached = tokio::time::timeout(limit, written.wait_for(|written| *written >= wanted)).await;
        matches!(reached, Ok(Ok(_)))
    }

    /// Whether so many records wait for the store that no new call should be taken.
    pub fn is_full(&self) -> bool {
        self.waiting() >= MAX_WAITING
    }

    pub fn waiting(&self) -> usize {
        self.inner.as_ref().map_or(0, |inner| inner.waiting.load(Ordering::Acquire))
    }
}

/// A record on its way to the disk.
struct Entry {
    /// The number of its first note that is not written.
    first: u64,
    record: CallRecord,
    written: Written,
}

struct Writer {
    store: Store,
    node: Node,
    inner: Arc<Inner>,
    failures: u32,
}

impl Writer {
    async fn run(mut self, stop: CancellationToken) {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.inner.changed.notified() => {}
                _ = beat.tick() => self.beat().await,
            }
            if !self.write().await {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(self.pause()) => {}
                }
            }
        }
        while !self.write().await {
            tokio::time::sleep(self.pause()).await;
        }
        // What is left of this process is nothing: nobody has to look whether it lives.
        if let Err(failure) = self.store.leave(&self.node).await {
            warn!(error = %failure, "the store still has this process on its list");
        }
    }

    fn pause(&self) -> Duration {
        (RETRY * 2u32.saturating_pow(self.failures.min(16))).min(LONGEST_RETRY)
    }

    async fn beat(&mut self) {
        {
            let mut noted = self.inner.noted();
            noted.expire_offers(Instant::now());
            self.inner.waiting.store(noted.waiting.len(), Ordering::Release);
        }
        let beaten = tokio::time::timeout(WRITE_LIMIT, async {
            self.store.beat(&self.node).await?;
            self.store.bury(&self.node).await
        });
        match beaten.await {
            Ok(Ok(closed)) if !closed.is_empty() => {
                warn!(calls = closed.len(), "closed the calls that another process had left open");
            }
            // A store that stands still is told of by `write`.
            _ => {}
        }
    }

    /// Writes what waits. `false`: some of it still does.
    async fn write(&mut self) -> bool {
        loop {
            let batch = self.take();
            let failure = if batch.is_empty() { None } else { self.write_batch(batch).await.err() };
            let more = self.publish();
            match failure {
                Some(failure) => {
                    self.failures += 1;
                    // Said once, however often it is tried.
                    if self.failures == 1 {
                        error!(error = %failure, waiting = more, "call records cannot be written; they wait in memory");
                    }
                    return false;
                }
                None if self.failures > 0 => {
                    info!(failures = self.failures, "call records are written again");
                    self.failures = 0;
                }
                None => {}
            }
            if more == 0 {
                return true;
            }
        }
    }

    /// All in one transaction; where the database refuses that, one by one, so that one record does not hold up the
    /// others. What is not written waits again.
    async fn write_batch(&self, batch: Vec<Entry>) -> Result<(), StoreError> {
        let failure = match self.write_together(&batch).await {
            Ok(written) => {
                self.done(&batch, &written);
                return Ok(());
            }
            Err(failure) => failure,
        };
        let mut refused = Vec::new();
        if matches!(failure, StoreError::Query(sqlx::Error::Database(_))) {
            for entry in batch {
                let alone = std::slice::from_ref(&entry);
                match self.write_together(alone).await {
                    Ok(written) => self.done(alone, &written),
                    Err(_) => refused.push(entry),
                }
            }
        } else {
            refused = batch;
        }
        if refused.is_empty() {
            return Ok(());
        }
        self.give_back(refused);
        Err(failure)
    }

    fn take(&self) -> Vec<Entry> {
        let mut noted = self.inner.noted();
        let mut first: Vec<(u64, CallId)> = noted.waiting.iter().map(|(call, (first, _))| (*first, *call)).collect();
        first.sort_unstable();
        first.truncate(BATCH);
        let Noted { waiting, written, .. } = &mut *noted;
        first
            .into_iter()
            .filter_map(|(_, call)| {
                let (first, record) = waiting.remove(&call)?;
                Some(Entry { first, record, written: written.get(&call).copied().unwrap_or_default() })
            })
            .collect()
    }

    /// What came to wait meanwhile is newer.
    fn give_back(&self, batch: Vec<Entry>) {
        let mut noted = self.inner.noted();
        for Entry { first, record, .. } in batch {
            noted.waiting.entry(record.id).and_modify(|(since, _)| *since = first).or_insert((first, record));
        }
    }

    fn done(&self, batch: &[Entry], written: &[Written]) {
        let mut noted = self.inner.noted();
        for (Entry { record, .. }, now) in batch.iter().zip(written) {
            if record.ended.is_some() {
                noted.written.remove(&record.id);
            } else {
                noted.written.insert(record.id, *now);
            }
        }
    }

    /// Says up to which note all is written, and gives the number of records that wait.
    fn publish(&self) -> usize {
        let noted = self.inner.noted();
        let waiting = noted.waiting.len();
        self.inner.waiting.store(waiting, Ordering::Release);
        let oldest = noted.waiting.values().map(|(first, _)| *first).min();
        let written = oldest.map_or(noted.sequence, |oldest| oldest - 1);
        drop(noted);
        self.inner.written.send_if_modified(|now| {
            let grown = written > *now;
            *now = (*now).max(written);
            grown
        });
        waiting
    }

    async fn write_together(&self, batch: &[Entry]) -> Result<Vec<Written>, StoreError> {
        let write = async {
            let mut tx = self.store.db.write().await?;
            let mut written = Vec::with_capacity(batch.len());
            for entry in batch {
                written.push(put_call(&mut tx, &entry.record, Some(self.inner.node), entry.written).await?);
            }
            tx.commit().await?;
            Ok(written)
        };
        tokio::time::timeout(WRITE_LIMIT, write).await.unwrap_or(Err(StoreError::Query(sqlx::Error::PoolTimedOut)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telephony::{Direction, PhoneNumber};

    fn record() -> CallRecord {
        CallRecord {
            id: CallId::new(),
            direction: Direction::Inbound,
            company: "Acme".into(),
            company_id: Uuid::nil(),
            integration_id: Uuid::nil(),
            provider: "twilio".into(),
            provider_call: "CA1".into(),
            line: "+15550001111".into(),
            from: PhoneNumber::new("+15550002222"),
            to: PhoneNumber::new("+15550001111"),
            agent: "Front desk".into(),
            agent_id: None,
            agent_version: None,
            purpose: None,
            vars: Default::default(),
            started: clock::now(),
            answered: None,
            ended: None,
            end: None,
            legs: Vec::new(),
            transcript: Default::default(),
            remembered: Default::default(),
            handover: None,
            interruptions: Default::default(),
            faults: Vec::new(),
            recorded: false,
        }
    }

    #[test]
    fn an_offer_whose_audio_never_comes_is_closed_after_its_life() {
        let (mut noted, offer, t0) = (Noted::default(), record(), Instant::now());
        noted.offered.insert(offer.id, (t0, offer.clone()));
        noted.expire_offers(t0 + OFFER_LIFE - Duration::from_millis(1));
        assert!(noted.waiting.is_empty());
        noted.expire_offers(t0 + OFFER_LIFE);
        let (_, closed) = &noted.waiting[&offer.id];
        assert_eq!(closed.end, Some(CallEnd::new(Party::Carrier, EndReason::NeverConnected)));
        assert!(noted.offered.is_empty());
    }

    #[test]
    fn of_several_notes_of_a_call_the_newest_waits_under_the_number_of_the_first() {
        let (mut noted, call, other) = (Noted::default(), record(), record());
        noted.take_in(call.clone());
        noted.take_in(other.clone());
        noted.take_in(CallRecord { handover: Some("a person".into()), ..call.clone() });
        assert_eq!((noted.sequence, noted.waiting.len()), (3, 2));
        let (first, newest) = &noted.waiting[&call.id];
        assert_eq!((*first, newest.handover.as_deref()), (1, Some("a person")));
    }
}
