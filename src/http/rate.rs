//! How many webhooks an integration may send, and how much notice a forger gets. Counting only; nothing waits here.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

const MINUTE: Duration = Duration::from_secs(60);
/// Addresses of forgers that are told apart; beyond it the newest share one count.
const STRANGERS: usize = 4096;
const CLEAR_EVERY: Duration = Duration::from_secs(1);

/// Exactly so many a minute for each integration, over any 60 seconds. Only integrations that exist are counted, so
/// that made-up ids take no memory: at most 16 bytes for each webhook of the last minute.
#[derive(Debug)]
pub struct Rates {
    per_minute: usize,
    seen: Mutex<HashMap<Uuid, VecDeque<Instant>>>,
}

impl Rates {
    /// `per_minute` = 0 refuses nothing.
    pub fn new(per_minute: usize) -> Self {
        Self { per_minute, seen: Mutex::default() }
    }

    /// Counts a webhook; beyond the limit, how long until the next one is taken.
    pub fn admit(&self, integration: Uuid, now: Instant) -> Result<(), Duration> {
        if self.per_minute == 0 {
            return Ok(());
        }
        let mut seen = lock(&self.seen);
        let times = seen.entry(integration).or_default();
        while times.front().is_some_and(|&at| now.duration_since(at) >= MINUTE) {
            times.pop_front();
        }
        match times.front() {
            Some(&oldest) if times.len() >= self.per_minute => Err(MINUTE - now.duration_since(oldest)),
            _ => {
                times.push_back(now);
                Ok(())
            }
        }
    }

    /// Forgets integrations that are there no more.
    pub fn retain(&self, known: impl Fn(Uuid) -> bool) {
        lock(&self.seen).retain(|id, _| known(*id));
    }
}

/// Forged requests by address. It decides only how loudly one is refused: a genuine webhook from the same address is
/// taken all the same, or anybody who shares a proxy with a provider could silence its lines.
#[derive(Debug)]
pub struct Strangers {
    per_minute: u32,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    counts: HashMap<IpAddr, (Instant, u32)>,
    /// When old counts were last thrown out: a flood must not pay for that with every request.
    cleared: Option<Instant>,
}

impl Strangers {
    pub fn new(per_minute: u32) -> Self {
        Self { per_minute, seen: Mutex::default() }
    }

    /// Counts a forged request; whether it is still worth a line in the audit log.
    pub fn noted(&self, address: Option<IpAddr>, now: Instant) -> bool {
        let mut seen = lock(&self.seen);
        let mut address = address.map_or(UNKNOWN, network);
        if seen.counts.len() >= STRANGERS && !seen.counts.contains_key(&address) {
            if seen.cleared.is_none_or(|at| now.duration_since(at) >= CLEAR_EVERY) {
                seen.cleared = Some(now);
                seen.counts.retain(|_, (since, _)| now.duration_since(*since) < MINUTE);
            }
            if seen.counts.len() >= STRANGERS {
                address = UNKNOWN;
            }
        }
        let (since, count) = seen.counts.entry(address).or_insert((now, 0));
        if now.duration_since(*since) >= MINUTE {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count <= self.per_minute
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        lock(&self.seen).counts.len()
    }
}

const UNKNOWN: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// One customer of a provider has a /64 of IPv6: its addresses count as one.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_121st_in_a_minute_is_refused_and_other_integrations_are_not() {
        let (rates, a, b) = (Rates::new(120), Uuid::now_v7(), Uuid::now_v7());
        let start = Instant::now();
        for n in 0..120u32 {
            assert_eq!(rates.admit(a, start + Duration::from_millis(400) * n), Ok(()));
        }
        let now = start + Duration::from_secs(48);
        assert_eq!(rates.admit(a, now), Err(Duration::from_secs(12)));
        assert_eq!(rates.admit(b, now), Ok(()));
        assert_eq!(rates.admit(a, start + Duration::from_secs(60)), Ok(()), "the first is a minute old");
        assert!(rates.admit(a, start + Duration::from_secs(60)).is_err(), "a refused one frees no place");
    }

    #[test]
    fn no_limit_counts_nothing_and_integrations_that_are_gone_are_forgotten() {
        let (rates, id) = (Rates::new(0), Uuid::now_v7());
        assert!((0..1000).all(|_| rates.admit(id, Instant::now()).is_ok()));
        assert!(lock(&rates.seen).is_empty());
        let rates = Rates::new(1);
        rates.admit(id, Instant::now()).unwrap();
        rates.retain(|_| false);
        assert!(lock(&rates.seen).is_empty());
    }

    #[test]
    fn a_flood_of_forgers_takes_bounded_memory_and_soon_goes_unnoted() {
        let (strangers, start) = (Strangers::new(10), Instant::now());
        let one = Some(IpAddr::from([192, 0, 2, 1]));
        let noted = (0..50).filter(|_| strangers.noted(one, start)).count();
        assert_eq!(noted, 10);
        assert!(strangers.noted(one, start + MINUTE), "a minute later it is noted again");
        for n in 0..50_000u32 {
            strangers.noted(Some(IpAddr::from(n.to_be_bytes())), start + MINUTE);
        }
        assert!(strangers.len() <= STRANGERS + 1, "{}", strangers.len());
        assert!(!strangers.noted(Some(IpAddr::from([203, 0, 113, 9])), start + MINUTE), "the rest share one count");
    }

    #[test]
    fn neighbours_in_an_ipv6_network_count_as_one() {
        let strangers = Strangers::new(1);
        let address = |last: u16| Some(IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]));
        assert!(strangers.noted(address(1), Instant::now()));
        assert!(!strangers.noted(address(2), Instant::now()));
    }
}
