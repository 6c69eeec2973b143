//! Whose packets are believed, and where ours go: symmetric RTP with a guard against strangers. Pure.
//!
//! A port is known to whoever guesses it, so that the first packet to arrive proves nothing. What comes from the
//! signalled address, or sealed with the agreed key, is believed at once. Another source (the peer behind NAT) must show
//! an ordered run of one sender first. Once a source is believed, others are ignored, with three exceptions: the
//! signalled address, which outranks a guess; a packet sealed with the key; and after two seconds of silence a run from
//! the same host or with the same SSRC, as a NAT that forgot its binding makes it. A new address in the signalling starts
//! over.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::protocol::rtp::session::Claim;

/// Packets in order that a source shows before it is believed: 60 ms of speech.
const RUN: u32 = 3;
/// Numbers that may be missing within the run.
const RUN_GAP: u16 = 10;
/// Sources whose runs are followed at a time, so that one that shows none does not keep the peer from showing its own.
const MAX_RUNS: usize = 4;
/// Silence of the believed source after which it may have moved.
const SILENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Latch {
    symmetric: bool,
    signalled: Option<SocketAddr>,
    believed: Option<Believed>,
    runs: Vec<Run>,
    strangers: u64,
}

#[derive(Clone, Copy, Debug)]
struct Believed {
    from: SocketAddr,
    ssrc: u32,
    at: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    from: SocketAddr,
    ssrc: u32,
    sequence: u16,
    count: u32,
    at: Instant,
}

impl Latch {
    pub fn new(symmetric: bool, signalled: Option<SocketAddr>) -> Self {
        Self { symmetric, signalled, believed: None, runs: Vec::with_capacity(MAX_RUNS), strangers: 0 }
    }

    /// Where our packets go.
    pub fn target(&self) -> Option<SocketAddr> {
        let learnt = self.believed.filter(|_| self.symmetric).map(|believed| believed.from);
        learnt.or(self.signalled)
    }

    /// The source that is believed.
    pub fn believed(&self) -> Option<SocketAddr> {
        self.believed.map(|believed| believed.from)
    }

    /// Packets of others that were ignored.
    pub fn strangers(&self) -> u64 {
        self.strangers
    }

    /// What a later description says. The same address keeps what was learnt: hold and resume repeat it.
    pub fn signalled(&mut self, address: Option<SocketAddr>) {
        if address.is_some() && address != self.signalled {
            self.signalled = address;
            self.believed = None;
            self.runs.clear();
        }
    }

    /// Whether a packet is the peer's.
    pub fn admit(&mut self, now: Instant, from: SocketAddr, claim: Claim) -> bool {
        let admitted = self.judge(now, from, claim);
        if admitted {
            self.believed = Some(Believed { from, ssrc: claim.ssrc, at: now });
            self.runs.clear();
        } else {
            self.strangers += 1;
        }
        admitted
    }

    fn judge(&mut self, now: Instant, from: SocketAddr, claim: Claim) -> bool {
        let Some(believed) = self.believed else {
            return claim.authentic || Some(from) == self.signalled || self.shows_run(now, from, claim);
        };
        if from == believed.from || claim.authentic {
            return true;
        }
        if Some(from) == self.signalled {
            return self.shows_run(now, from, claim);
        }
        let moved = from.ip() == believed.from.ip() || claim.ssrc == believed.ssrc;
        moved && now.saturating_duration_since(believed.at) > SILENCE && self.shows_run(now, from, claim)
    }

    fn shows_run(&mut self, now: Instant, from: SocketAddr, claim: Claim) -> bool {
        let begun = Run { from, ssrc: claim.ssrc, sequence: claim.sequence, count: 1, at: now };
        let Some(run) = self.runs.iter_mut().find(|run| run.from == from && run.ssrc == claim.ssrc) else {
            if self.runs.len() == MAX_RUNS {
                let oldest = self.runs.iter().enumerate().min_by_key(|(_, run)| run.at).map_or(0, |(place, _)| place);
                self.runs.swap_remove(oldest);
            }
            self.runs.push(begun);
            return false;
        };
        let step = claim.sequence.wrapping_sub(run.sequence);
        if (1..=RUN_GAP).contains(&step) {
            *run = Run { count: run.count + 1, ..begun };
            return run.count >= RUN;
        }
        // A duplicate or a packet overtaken proves nothing, and breaks nothing.
        if step != 0 && step.wrapping_neg() > RUN_GAP {
            *run = begun;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], port))
    }

    const PEER: u8 = 1;
    const NAT: u8 = 2;
    const STRANGER: u8 = 66;

    fn claim(ssrc: u32, sequence: u16) -> Claim {
        Claim { ssrc, sequence, authentic: false }
    }

    /// Packets of one source, 20 ms apart: which were admitted.
    fn sends(latch: &mut Latch, from: SocketAddr, ssrc: u32, numbers: &[u16], start: Instant) -> Vec<bool> {
        let packet = |(n, &sequence): (usize, &u16)| {
            latch.admit(start + Duration::from_millis(20 * n as u64), from, claim(ssrc, sequence))
        };
        numbers.iter().enumerate().map(packet).collect()
    }

    #[test]
    fn the_signalled_address_is_believed_at_once_and_strangers_are_ignored() {
        let t0 = Instant::now();
        let mut latch = Latch::new(true, Some(address(PEER, 4000)));
        assert_eq!(latch.target(), Some(address(PEER, 4000)));
        assert_eq!(sends(&mut latch, address(PEER, 4000), 9, &[5], t0), [true]);
        assert_eq!(sends(&mut latch, address(STRANGER, 4000), 9, &[6, 7, 8, 9, 10], t0), [false; 5]);
        assert_eq!(sends(&mut latch, address(PEER, 4002), 9, &[6, 7, 8, 9, 10], t0), [false; 5]);
        assert_eq!((latch.target(), latch.strangers()), (Some(address(PEER, 4000)), 10));
        // Another sender at the believed address is the peer's own affair.
        assert_eq!(sends(&mut latch, address(PEER, 4000), 1, &[900], t0), [true]);
    }

    #[test]
    fn behind_nat_an_ordered_run_is_believed() {
        let t0 = Instant::now();
        let mut latch = Latch::new(true, Some(address(PEER, 4000)));
        assert_eq!(sends(&mut latch, address(NAT, 999), 9, &[u16::MAX, 0, 2, 3], t0), [false, false, true, true]);
        assert_eq!(latch.target(), Some(address(NAT, 999)));
        let mut latch = Latch::new(true, None);
        // Repeats and jumps prove nothing; overtaking does no harm.
        let numbers = [1, 1, 1, 40, 900, 901, 900, 903];
        assert_eq!(sends(&mut latch, address(NAT, 999), 9, &numbers, t0).iter().position(|it| *it), Some(7));
    }

    #[test]
    fn without_symmetry_packets_go_where_signalling_says() {
        let mut latch = Latch::new(false, Some(address(PEER, 4000)));
        sends(&mut latch, address(NAT, 999), 9, &[1, 2, 3, 4], Instant::now());
        assert_eq!((latch.believed(), latch.target()), (Some(address(NAT, 999)), Some(address(PEER, 4000))));
    }

    #[test]
    fn the_signalled_address_outranks_a_guess() {
        let t0 = Instant::now();
        let mut latch = Latch::new(true, Some(address(PEER, 4000)));
        sends(&mut latch, address(STRANGER, 1), 66, &[1, 2, 3], t0);
        assert_eq!(latch.believed(), Some(address(STRANGER, 1)), "it was first");
        assert_eq!(sends(&mut latch, address(PEER, 4000), 9, &[1, 2, 3], t0), [false, false, true]);
        assert_eq!(sends(&mut latch, address(STRANGER, 1), 66, &[4, 5, 6, 7], t0), [false; 4]);
    }

    #[test]
    fn after_silence_the_same_host_or_sender_may_have_moved() {
        let t0 = Instant::now();
        let later = t0 + Duration::from_secs(3);
        let believed = || {
            let mut latch = Latch::new(true, Some(address(PEER, 4000)));
            assert_eq!(sends(&mut latch, address(PEER, 4000), 9, &[1], t0), [true]);
            latch
        };
        let run = [10, 11, 12];
        assert_eq!(sends(&mut believed(), address(PEER, 5000), 7, &run, later), [false, false, true]);
        assert_eq!(sends(&mut believed(), address(NAT, 5000), 9, &run, later), [false, false, true]);
        assert_eq!(sends(&mut believed(), address(STRANGER, 5000), 7, &run, later), [false; 3], "neither");
        assert_eq!(sends(&mut believed(), address(NAT, 5000), 9, &run, t0 + Duration::from_secs(1)), [false; 3]);
    }

    #[test]
    fn what_is_sealed_with_the_key_is_believed_wherever_it_comes_from() {
        let t0 = Instant::now();
        let mut latch = Latch::new(true, Some(address(PEER, 4000)));
        for (n, from) in [address(NAT, 1), address(PEER, 4000), address(NAT, 2)].into_iter().enumerate() {
            assert!(latch.admit(t0, from, Claim { ssrc: 9, sequence: n as u16, authentic: true }));
        }
    }

    #[test]
    fn a_new_address_in_the_signalling_starts_over_and_the_same_one_does_not() {
        let t0 = Instant::now();
        let mut latch = Latch::new(true, Some(address(PEER, 4000)));
        sends(&mut latch, address(NAT, 999), 9, &[1, 2, 3], t0);
        latch.signalled(Some(address(PEER, 4000)));
        latch.signalled(None);
        assert_eq!(latch.target(), Some(address(NAT, 999)));
        latch.signalled(Some(address(7, 7000)));
        assert_eq!((latch.target(), latch.believed()), (Some(address(7, 7000)), None));
        assert_eq!(sends(&mut latch, address(NAT, 999), 9, &[4], t0), [false]);
        assert_eq!(sends(&mut latch, address(7, 7000), 1, &[1], t0), [true]);
    }

    #[test]
    fn a_stranger_cannot_keep_the_peer_from_showing_its_run() {
        let t0 = Instant::now();
        let mut latch = Latch::new(true, None);
        let mut admitted = Vec::new();
        for n in 0..3 {
            assert!(!latch.admit(t0, address(STRANGER, 1), claim(66, n * 1000)));
            assert!(!latch.admit(t0, address(STRANGER, 2), claim(u32::from(n), 1)));
            admitted.push(latch.admit(t0, address(NAT, 999), claim(9, n)));
        }
        assert_eq!(admitted, [false, false, true]);
    }
}
