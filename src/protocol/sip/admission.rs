//! Who may call, and how much one address may ask of us. Rates are kept for a bounded number of addresses: a flood from
//! many of them only makes us forget older ones.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::time::Instant;

use crate::protocol::sip::core::{AccountRef, Limits};

/// `192.0.2.0/24`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    addr: IpAddr,
    bits: u8,
}

impl Prefix {
    /// `None`: more bits than the address has.
    pub fn new(addr: IpAddr, bits: u8) -> Option<Self> {
        let addr = addr.to_canonical();
        let most = if addr.is_ipv4() { 32 } else { 128 };
        (bits <= most).then_some(Self { addr, bits })
    }

    pub fn holds(&self, addr: IpAddr) -> bool {
        match (self.addr, addr.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(addr)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                own.to_bits() & mask == addr.to_bits() & mask
            }
            (IpAddr::V6(own), IpAddr::V6(addr)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                own.to_bits() & mask == addr.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl FromStr for Prefix {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (addr, bits) = match text.split_once('/') {
            Some((addr, bits)) => (addr, Some(bits.parse().map_err(|_| ())?)),
            None => (text, None),
        };
        let addr: IpAddr = addr.trim().parse().map_err(|_| ())?;
        Self::new(addr, bits.unwrap_or(if addr.is_ipv4() { 32 } else { 128 })).ok_or(())
    }
}

/// A trunk: whoever calls from these addresses may. The number is the user's to choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trunk {
    pub id: u64,
    pub peers: Vec<Prefix>,
}

/// By what right a call came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// From where the account is registered, to the contact that was registered.
    Account(AccountRef),
    Trunk(u64),
    /// By digest, as this user.
    User(String),
    /// It takes the place of a call that is there (RFC 3891), whose tags it knows.
    Replaces,
}

/// Rates of addresses.
pub struct Peers {
    /// Heard of lately, and before; when `young` is full it becomes `old`.
    young: HashMap<IpAddr, Peer>,
    old: HashMap<IpAddr, Peer>,
    limits: Limits,
}

#[derive(Clone, Copy)]
struct Peer {
    messages: Bucket,
    refusals: Bucket,
}

/// Tokens that come back with time.
#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant, rate: f64, most: f64) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * rate).min(most);
        self.at = now;
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

impl Peers {
    pub fn new(limits: Limits) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), limits }
    }

    /// Whether a message from there may be read.
    pub fn may_send(&mut self, now: Instant, ip: IpAddr) -> bool {
        let rate = f64::from(self.limits.peer_messages_per_s);
        self.peer(now, ip).messages.take(now, rate, rate * 2.0)
    }

    /// Whether a stranger there may have another refusal.
    pub fn may_be_refused(&mut self, now: Instant, ip: IpAddr) -> bool {
        let rate = f64::from(self.limits.peer_refusals_per_s);
        self.peer(now, ip).refusals.take(now, rate, rate)
    }

    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn peer(&mut self, now: Instant, ip: IpAddr) -> &mut Peer {
        let ip = network_of(ip);
        if self.young.len() >= (self.limits.max_peers / 2).max(1) && !self.young.contains_key(&ip) {
            self.old = std::mem::take(&mut self.young);
        }
        let known = self.old.get(&ip).copied();
        let (messages, refusals) = (self.limits.peer_messages_per_s, self.limits.peer_refusals_per_s);
        self.young.entry(ip).or_insert_with(|| {
            known.unwrap_or(Peer {
                messages: Bucket { tokens: f64::from(messages) * 2.0, at: now },
                refusals: Bucket { tokens: f64::from(refusals), at: now },
            })
        })
    }
}

/// One customer of IPv6 has at least a /64: its addresses count as one.
fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) if !ip.is_loopback() => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn prefixes_hold_what_they_say() {
        let holds = |prefix: &str, ip: &str| prefix.parse::<Prefix>().unwrap().holds(ip.parse().unwrap());
        assert!(holds("192.0.2.0/24", "192.0.2.255") && !holds("192.0.2.0/24", "192.0.3.0"));
        assert!(holds("192.0.2.7", "::ffff:192.0.2.7") && !holds("192.0.2.7", "192.0.2.8"));
        assert!(holds("0.0.0.0/0", "1.2.3.4") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("2001:db8::/32", "2001:db8:1::1") && !holds("2001:db8::/32", "2001:db9::1"));
        for wrong in ["", "x", "10.0.0.0/33", "::/129", "10.0.0.0/"] {
            assert!(wrong.parse::<Prefix>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates_hold_for_each_address_and_come_back_with_time() {
        let limits = Limits { peer_refusals_per_s: 2, max_peers: 10, ..Limits::default() };
        let mut peers = Peers::new(limits);
        let t0 = Instant::now();
        let [a, b] = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().unwrap());
        assert!(peers.may_be_refused(t0, a) && peers.may_be_refused(t0, a) && !peers.may_be_refused(t0, a));
        assert!(peers.may_be_refused(t0, b));
        assert!(peers.may_be_refused(t0 + Duration::from_millis(500), a));
    }

    #[test]
    fn a_flood_of_addresses_takes_no_more_memory() {
        let mut peers = Peers::new(Limits { max_peers: 100, ..Limits::default() });
        for number in 0..10_000_u32 {
            peers.may_send(Instant::now(), IpAddr::from(number.to_be_bytes()));
        }
        assert!(peers.len() <= 100, "{}", peers.len());
    }

    #[test]
    fn the_addresses_of_one_network_count_as_one() {
        let mut peers = Peers::new(Limits { peer_refusals_per_s: 1, ..Limits::default() });
        let t0 = Instant::now();
        assert!(peers.may_be_refused(t0, "2001:db8::1".parse().unwrap()));
        assert!(!peers.may_be_refused(t0, "2001:db8::2".parse().unwrap()));
    }
}
