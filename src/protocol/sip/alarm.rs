//! Which of many machines has to be looked at next. An entry that was overtaken by another deadline is harmless: its
//! owner looks, finds nothing due and arms again.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Keys with the time at which each wants to be looked at.
#[derive(Debug)]
pub struct Alarm<K> {
    heap: BinaryHeap<Entry<K>>,
    order: u64,
}

#[derive(Debug)]
struct Entry<K> {
    at: Instant,
    /// Entries of one instant ring in the order in which they were set.
    order: u64,
    key: K,
}

impl<K> Default for Alarm<K> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), order: 0 }
    }
}

impl<K> Alarm<K> {
    pub fn set(&mut self, at: Instant, key: K) {
        self.order += 1;
        self.heap.push(Entry { at, order: self.order, key });
    }

    pub fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|entry| entry.at)
    }

    /// The next key due, with the time for which it was set.
    pub fn pop(&mut self, now: Instant) -> Option<(Instant, K)> {
        (self.next()? <= now).then(|| self.heap.pop().map(|entry| (entry.at, entry.key))).flatten()
    }
}

impl<K> PartialEq for Entry<K> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<K> Eq for Entry<K> {}

impl<K> PartialOrd for Entry<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<K> Ord for Entry<K> {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives its greatest: the earliest is to be that.
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}
