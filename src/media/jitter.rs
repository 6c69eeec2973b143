//! Puts packets in order of media time and hands them out: at once on an ordered transport (target 0), held back by a
//! fixed target, or by one that follows the jitter it measures. Bounded; what it drops it counts. It does not conceal and
//! does not decode.
//!
//! The adaptive way. Delay is what the buffer holds; it grows by waiting and shrinks by leaving out. A tick on which the
//! next packet is not there is concealed without giving its place up: if it still comes, all that follows is heard 20 ms
//! later, which is the delay that was missing; if it does not, its place has had its sound and is passed for free. Only
//! when the buffer already holds the target, the place is given up at once. Delay that was never used in four seconds is
//! taken out again, silence first. Clocks that drift apart show as one or the other.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::media::frame::{FRAME, MediaTime};
use crate::media::g711;
use crate::media::packet::Packet;

/// Packets held at most, whatever `max_ms` says: 1.28 s of 20 ms packets, 32 KB.
const MAX_PACKETS: usize = 64;
/// Places of packets already handed out that are remembered, to tell a duplicate from a late packet.
const REMEMBERED: usize = 32;
/// Timestamps rounded by a sender may overlap or gap by this much and still follow on from each other.
const SLOP: Duration = Duration::from_millis(9);
/// Packets in a row that are late by more than [`BEHIND`] show that the sender's timestamps began anew. Reordering is a
/// matter of milliseconds.
const RESTART: u32 = 3;
const BEHIND: Duration = Duration::from_secs(1);
/// A step forward of more than this is a restart as well, not that many lost packets.
const JUMP: Duration = Duration::from_secs(5);
/// The least held over this many pulls (one second) is delay that nothing needs.
const WINDOW: u32 = 50;
/// Delay above the target that is left alone: one packet under way, one for the tick's phase.
const SLACK: Duration = Duration::from_millis(40);
/// Mean magnitude under which a packet counts as silence and is the first to be dropped: -50 dBFS.
const SILENT: i32 = 100;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JitterConfig {
    /// How long packets are held so that late ones can overtake, in ms. 0 (the default) suits websockets, whose order is
    /// guaranteed; each ms is a ms of delay.
    pub target_ms: u32,
    /// The target may grow up to here as jitter does, in ms, and falls back to `target_ms`. 0 (the default): it is
    /// fixed. A larger value loses fewer packets on a bad network and makes the caller wait longer for an answer.
    pub adaptive_ms: u32,
    /// Audio held at most, in ms; beyond it the oldest is dropped.
    pub max_ms: u32,
}

impl Default for JitterConfig {
    fn default() -> Self {
        Self { target_ms: 0, adaptive_ms: 0, max_ms: 500 }
    }
}

impl JitterConfig {
    /// For RTP over the internet: 20 to 200 ms.
    pub const RTP: Self = Self { target_ms: 20, adaptive_ms: 200, max_ms: 500 };
}

/// Pulls in which delay must have been of no use before it is taken out, when the target adapts: four seconds.
const ADAPTIVE_WINDOW: u32 = 200;
/// Delay above what is needed that is left alone then: the tick's phase and one short packet.
const ADAPTIVE_SLACK: Duration = Duration::from_millis(30);
/// Without a packet for so long, the next one begins a new spurt and is held for the target again.
const SPURT: Duration = Duration::from_millis(100);

/// How late packets come, measured: the delay above the shortest of the last seconds that all but a few stay under.
#[derive(Debug)]
struct Spread {
    least: Duration,
    most: Duration,
    origin: Option<Instant>,
    /// The shortest way of this stretch and of the one before, ns on an axis of its own; several stretches follow drift.
    shortest: [i64; 2],
    stretch: u32,
    /// Grows at once, falls by half in four seconds.
    estimate: f64,
}

/// On top of the estimate, which a few packets exceed.
const MARGIN: Duration = Duration::from_millis(10);
/// Packets of one stretch: five seconds of 20 ms.
const STRETCH: u32 = 250;

impl Spread {
    fn new(least: Duration, most: Duration) -> Self {
        Self { least, most, origin: None, shortest: [i64::MAX; 2], stretch: 0, estimate: 0.0 }
    }

    fn on_packet(&mut self, now: Instant, at: MediaTime) {
        let origin = *self.origin.get_or_insert(now);
        let way = now.saturating_duration_since(origin).as_nanos() as i64 - at.since_start().as_nanos() as i64;
        self.stretch += 1;
        if self.stretch == STRETCH {
            self.stretch = 0;
            self.shortest = [i64::MAX, self.shortest[0]];
        }
        self.shortest[0] = self.shortest[0].min(way);
        // An outage is not jitter: no buffer is meant to bridge it.
        let late = way.saturating_sub(self.shortest[0].min(self.shortest[1])).min(self.most.as_nanos() as i64) as f64;
        if late > self.estimate {
            self.estimate += (late - self.estimate) * 0.5;
        } else {
            self.estimate *= 0.9965;
        }
    }

    fn target(&self) -> Duration {
        (Duration::from_nanos(self.estimate as u64) + MARGIN).clamp(self.least, self.most.max(self.least))
    }

    /// Times of the sender mean something else from here on.
    fn restart(&mut self) {
        self.origin = None;
        self.shortest = [i64::MAX; 2];
    }
}

/// What a tick gets.
#[expect(clippy::large_enum_variant, reason = "packets are inline, so that the 20 ms path does not allocate")]
#[derive(Clone, Debug)]
pub enum Pull {
    Packet(Packet),
    /// Nothing is due: no packet yet, a lost one, or a stall. [`JitterBuffer::quiet_for`] tells a stall from a gap.
    Missing,
}

/// What became of packets, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JitterCounters {
    pub received: u64,
    /// Arrived after their place had been passed; dropped.
    pub late: u64,
    /// Arrived twice; the second dropped.
    pub duplicate: u64,
    /// Places of 20 ms that were passed without a packet.
    pub lost: u64,
    /// Dropped because more than `max_ms` was held.
    pub overflow: u64,
    /// Dropped to win back delay that a stall had left, silent packets first.
    pub drained: u64,
    /// Times the sender's timestamps started anew.
    pub restarts: u64,
}

struct Held {
    packet: Packet,
    arrived: Instant,
}

pub struct JitterBuffer {
    target: Duration,
    max: Duration,
    /// In order of media time, no place twice.
    held: VecDeque<Held>,
    /// Where the next packet should start; none before the first packet has gone out.
    next: Option<MediaTime>,
    passed: VecDeque<MediaTime>,
    late_in_a_row: u32,
    last_arrival: Option<Instant>,
    /// Whether the first packets have been held for the target.
    started: bool,
    least_held: Duration,
    pulls: u32,
    /// Delay found to be of no use, and whether speech may still be cut for it in this second.
    spare: Duration,
    may_cut: bool,
    spread: Option<Spread>,
    /// Time concealed without a place having been given up for it.
    credit: Duration,
    /// Where the sound made on the last tick without a packet ends.
    concealed_to: Option<MediaTime>,
    counters: JitterCounters,
}

impl JitterBuffer {
    pub fn new(config: JitterConfig) -> Self {
        let target = Duration::from_millis(u64::from(config.target_ms));
        Self {
            target,
            max: Duration::from_millis(u64::from(config.max_ms))
                .max(target.max(Duration::from_millis(u64::from(config.adaptive_ms))) + SLACK),
            held: VecDeque::with_capacity(MAX_PACKETS + 1),
            next: None,
            passed: VecDeque::with_capacity(REMEMBERED),
            late_in_a_row: 0,
            last_arrival: None,
            started: false,
            least_held: Duration::MAX,
            pulls: 0,
            spare: Duration::ZERO,
            may_cut: false,
            spread: (config.adaptive_ms > 0)
                .then(|| Spread::new(target, Duration::from_millis(u64::from(config.adaptive_ms)))),
            credit: Duration::ZERO,
            concealed_to: None,
            counters: JitterCounters::default(),
        }
    }

    /// The delay that is aimed at.
    pub fn target(&self) -> Duration {
        self.target
    }

    pub fn counters(&self) -> JitterCounters {
        self.counters
    }

    /// Audio held.
    pub fn held(&self) -> Duration {
        self.held.iter().map(|held| held.packet.duration()).sum()
    }

    /// Time since a packet last arrived; `None` before the first. From 200 ms on a call feeds silence in their place.
    pub fn quiet_for(&self, now: Instant) -> Option<Duration> {
        self.last_arrival.map(|last| now.saturating_duration_since(last))
    }

    pub fn push(&mut self, now: Instant, packet: Packet) {
        self.counters.received += 1;
        self.last_arrival = Some(now);
        if packet.payload().is_empty() {
            return;
        }
        self.follow(now, packet.at);
        if let Some(next) = self.next {
            let passed = packet.at + SLOP < next || self.passed.back().is_some_and(|&last| packet.at <= last);
            if passed && !self.takes_restart(&packet, next) {
                return;
            }
            let newest = self.held.back().map_or(next, |held| held.packet.at);
            if self.spread.is_none() && packet.at - newest > JUMP {
                self.restart();
            }
        }
        self.late_in_a_row = 0;
        let place = self.held.partition_point(|held| held.packet.at < packet.at);
        if self.held.get(place).is_some_and(|held| held.packet.at == packet.at) {
            self.counters.duplicate += 1;
            return;
        }
        self.held.insert(place, Held { packet, arrived: now });
        while self.held.len() > MAX_PACKETS || (self.held.len() > 1 && self.held() > self.max) {
            self.take_front();
            self.counters.overflow += 1;
        }
    }

    /// The packet that may be heard now, for use on arrival: with a target of 0 whatever is first in order, else the
    /// first once it has been held for the target. Call until `None`.
    pub fn pop_ready(&mut self, now: Instant) -> Option<Packet> {
        let front = self.held.front()?;
        let due = now.saturating_duration_since(front.arrived) >= self.target;
        if due { self.take_front() } else { None }
    }

    /// One packet for a 20 ms tick, in order of media time.
    pub fn pull(&mut self, now: Instant) -> Pull {
        self.pull_for(now, FRAME)
    }

    /// One packet for a tick that has `wanted` of sound to fill; pulled again while packets are shorter. On `Missing` the
    /// caller conceals all of `wanted`.
    pub fn pull_for(&mut self, now: Instant, wanted: Duration) -> Pull {
        if self.spread.is_some() {
            return self.pull_adaptive(now, wanted);
        }
        let Some(front) = self.held.front() else {
            // A stall: the place is kept, so that what was only delayed is still heard.
            self.measure(Duration::ZERO);
            return Pull::Missing;
        };
        if !self.started {
            if self.held() < self.target && now.saturating_duration_since(front.arrived) < self.target {
                return Pull::Missing;
            }
            self.started = true;
        }
        if let Some(next) = self.next
            && self.target > Duration::ZERO
            && front.packet.at > next + SLOP
        {
            // Its place in time passes with this tick; the packets behind it keep theirs.
            self.next = Some(next + FRAME);
            self.counters.lost += 1;
            return Pull::Missing;
        }
        self.measure(self.held());
        self.drain();
        self.take_front().map_or(Pull::Missing, Pull::Packet)
    }

    /// The packet right behind the sound that the last `Missing` asked for: it may carry the means to repair it.
    pub fn behind_the_gap(&self) -> Option<&Packet> {
        let front = &self.held.front()?.packet;
        let from = self.concealed_to?;
        (front.at.max(from) - front.at.min(from) <= SLOP).then_some(front)
    }

    fn pull_adaptive(&mut self, now: Instant, wanted: Duration) -> Pull {
        loop {
            let Some(front) = self.held.front() else {
                if self.next.is_some() {
                    self.measure(Duration::ZERO);
                }
                return self.missing(wanted);
            };
            if self.credit >= SPURT && self.next.is_none_or(|next| front.packet.at > next + SLOP) {
                self.started = false;
            }
            let waited = now.saturating_duration_since(front.arrived);
            if !self.started {
                // What came behind it shows as well as time that the next one will not be missed.
                if waited < self.target && self.held() < self.target + front.packet.duration() {
                    return self.missing(wanted);
                }
                self.started = true;
            }
            let gap = self.next.map_or(Duration::ZERO, |next| front.packet.at - next);
            if gap > SLOP {
                // What has been concealed already needs no second time.
                if self.credit >= gap.min(wanted) {
                    let passed = self.credit.min(gap);
                    self.pass(passed);
                    self.credit -= passed;
                    continue;
                }
                // The packet behind the gap has this delay; the missing one had no less.
                if waited + gap >= self.target {
                    self.measure(self.held());
                    self.pass(gap.min(wanted));
                    self.credit += wanted.saturating_sub(gap);
                    self.concealed_to = self.next;
                    return Pull::Missing;
                }
                return self.missing(wanted);
            }
            self.credit = Duration::ZERO;
            self.concealed_to = None;
            self.measure(self.held());
            self.drain_adaptive();
            return self.take_front().map_or(Pull::Missing, Pull::Packet);
        }
    }

    /// A tick is concealed, and what comes in its place is still welcome.
    fn missing(&mut self, wanted: Duration) -> Pull {
        self.credit += wanted;
        self.concealed_to = self.next.map(|next| next + self.credit);
        Pull::Missing
    }

    /// Gives up the places of this much time.
    fn pass(&mut self, time: Duration) {
        self.next = self.next.map(|next| next + time);
        self.counters.lost += (time.as_millis() as u64).div_ceil(FRAME.as_millis() as u64);
    }

    /// Follows the measured jitter with the target.
    fn follow(&mut self, now: Instant, at: MediaTime) {
        if let Some(spread) = &mut self.spread {
            spread.on_packet(now, at);
            self.target = spread.target();
        }
    }

    /// Takes unused delay out: a silent packet at once, speech once in four seconds and only for much.
    fn drain_adaptive(&mut self) {
        let Some(front) = self.held.front() else { return };
        let length = front.packet.duration();
        if self.held.len() < 2 || self.spare < length {
            return;
        }
        let cut = self.may_cut && self.spare > 2 * ADAPTIVE_SLACK;
        if is_silent(&front.packet) || cut {
            self.spare = self.spare.saturating_sub(length);
            self.may_cut = false;
            self.counters.drained += 1;
            self.take_front();
        }
    }

    /// Hands out the first packet; places skipped before it are lost.
    fn take_front(&mut self) -> Option<Packet> {
        let packet = self.held.pop_front()?.packet;
        if let Some(next) = self.next
            && packet.at > next + SLOP
        {
            let gap = packet.at - next;
            self.counters.lost += (gap + FRAME / 2).as_millis() as u64 / FRAME.as_millis() as u64;
        }
        // Never backwards: an overlap within the slop must not let an older place in again.
        let end = packet.at + packet.duration();
        self.next = Some(self.next.map_or(end, |next| next.max(end)));
        if self.passed.len() == REMEMBERED {
            self.passed.pop_front();
        }
        self.passed.push_back(packet.at);
        Some(packet)
    }

    /// Whether a packet from before `next` shows that the sender's timestamps began anew. If not, it is late or a
    /// duplicate, and counted.
    fn takes_restart(&mut self, packet: &Packet, next: MediaTime) -> bool {
        if self.passed.contains(&packet.at) {
            self.counters.duplicate += 1;
            return false;
        }
        if next - packet.at > BEHIND {
            self.late_in_a_row += 1;
        }
        if self.late_in_a_row >= RESTART {
            self.restart();
            return true;
        }
        self.counters.late += 1;
        false
    }

    fn restart(&mut self) {
        if let Some(spread) = &mut self.spread {
            spread.restart();
        }
        self.credit = Duration::ZERO;
        self.counters.restarts += 1;
        self.counters.overflow += self.held.len() as u64;
        self.held.clear();
        self.passed.clear();
        self.next = None;
        self.started = false;
        self.late_in_a_row = 0;
        self.spare = Duration::ZERO;
    }

    /// Notes what is held at a tick; once a second the least of it tells how much of the delay nothing needed.
    fn measure(&mut self, held: Duration) {
        self.least_held = self.least_held.min(held);
        self.pulls += 1;
        let (window, needed) = match self.spread {
            Some(_) => (ADAPTIVE_WINDOW, ADAPTIVE_SLACK),
            None => (WINDOW, self.target + SLACK),
        };
        if self.pulls == window {
            self.spare = self.least_held.saturating_sub(needed);
            self.pulls = 0;
            self.least_held = Duration::MAX;
            self.may_cut = true;
        }
    }

    /// Wins back delay that a stall has left: silence is skipped at once, one packet a tick; of speech one packet a
    /// second, and only when twice the wanted delay is held.
    fn drain(&mut self) {
        let Some(front) = self.held.front() else { return };
        if self.spare.is_zero() || self.held.len() < 2 {
            return;
        }
        let cut = self.may_cut && self.spare > self.target + SLACK;
        if is_silent(&front.packet) || cut {
            self.spare = self.spare.saturating_sub(front.packet.duration());
            self.may_cut = false;
            self.counters.drained += 1;
            self.take_front();
        }
    }
}

/// Of G.711 only: other codecs would have to be decoded first, and what they hold counts as speech.
fn is_silent(packet: &Packet) -> bool {
    if !packet.codec.is_g711() {
        return false;
    }
    let payload = packet.payload();
    let sum: i32 = payload.iter().map(|&code| i32::from(g711::decode(packet.codec, code)).abs()).sum();
    sum <= SILENT * payload.len() as i32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::media::packet::Codec;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A packet of 20 ms at `at_ms`, loud.
    fn packet(at_ms: u64) -> Packet {
        Packet::new(Codec::Pcmu, MediaTime::from_millis(at_ms), &[0x80; 160]).expect("20 ms fit")
    }

    fn silence(at_ms: u64) -> Packet {
        Packet::new(Codec::Pcmu, MediaTime::from_millis(at_ms), &[0xFF; 160]).expect("20 ms fit")
    }

    fn buffer(target_ms: u32) -> JitterBuffer {
        JitterBuffer::new(JitterConfig { target_ms, adaptive_ms: 0, max_ms: 500 })
    }

    fn ready(buffer: &mut JitterBuffer, now: Instant) -> Vec<u64> {
        std::iter::from_fn(|| buffer.pop_ready(now)).map(|packet| packet.at.as_millis()).collect()
    }

    fn pulled(buffer: &mut JitterBuffer, now: Instant) -> Option<u64> {
        match buffer.pull(now) {
            Pull::Packet(packet) => Some(packet.at.as_millis()),
            Pull::Missing => None,
        }
    }

    #[test]
    fn without_a_target_a_packet_is_heard_on_arrival() {
        let (mut jitter, t0) = (buffer(0), Instant::now());
        for n in 0..5 {
            jitter.push(t0 + ms(20 * n), packet(20 * n));
            assert_eq!(ready(&mut jitter, t0 + ms(20 * n)), [20 * n]);
        }
        assert_eq!(jitter.counters(), JitterCounters { received: 5, ..Default::default() });
    }

    #[test]
    fn without_a_target_a_gap_is_passed_at_once_and_counted() {
        let (mut jitter, t0) = (buffer(0), Instant::now());
        jitter.push(t0, packet(0));
        assert_eq!(ready(&mut jitter, t0), [0]);
        jitter.push(t0, packet(80));
        assert_eq!(ready(&mut jitter, t0), [80]);
        assert_eq!(jitter.counters().lost, 3);
        jitter.push(t0, packet(40));
        assert_eq!(ready(&mut jitter, t0), [0; 0]);
        assert_eq!(jitter.counters().late, 1);
    }

    #[test]
    fn a_packet_that_comes_twice_is_heard_once() {
        let (mut jitter, t0) = (buffer(0), Instant::now());
        for at in [0, 20, 20, 0, 40] {
            jitter.push(t0, packet(at));
        }
        assert_eq!(ready(&mut jitter, t0), [0, 20, 40]);
        jitter.push(t0, packet(20));
        assert_eq!(ready(&mut jitter, t0), [0; 0]);
        assert_eq!((jitter.counters().duplicate, jitter.counters().late), (3, 0));
    }

    #[test]
    fn with_a_target_a_late_packet_is_put_in_its_place() {
        let (mut jitter, t0) = (buffer(60), Instant::now());
        let mut heard = Vec::new();
        let order = [0, 20, 60, 40, 80, 120, 100, 140];
        for tick in 0..12 {
            if let Some(&at) = order.get(tick) {
                jitter.push(t0 + ms(20 * tick as u64), packet(at));
            }
            heard.extend(pulled(&mut jitter, t0 + ms(20 * tick as u64)));
        }
        assert_eq!(heard, [0, 20, 40, 60, 80, 100, 120, 140]);
        assert_eq!((jitter.counters().late, jitter.counters().lost), (0, 0));
    }

    #[test]
    fn the_target_delays_the_first_packet_and_no_more() {
        for target in [20, 40, 100] {
            let (mut jitter, t0) = (buffer(target), Instant::now());
            let mut first = None;
            for tick in 0..20_u64 {
                jitter.push(t0 + ms(20 * tick), packet(20 * tick));
                if pulled(&mut jitter, t0 + ms(20 * tick)).is_some() && first.is_none() {
                    first = Some(20 * (tick + 1));
                }
            }
            assert_eq!(first, Some(u64::from(target)), "packets of {target} ms are held first");
        }
    }

    #[test]
    fn a_lost_packet_leaves_one_empty_tick() {
        let (mut jitter, t0) = (buffer(40), Instant::now());
        let mut heard = Vec::new();
        for tick in 0..6_u64 {
            if tick != 2 {
                jitter.push(t0 + ms(20 * tick), packet(20 * tick));
            }
            heard.push(pulled(&mut jitter, t0 + ms(20 * tick)));
        }
        assert_eq!(heard, [None, Some(0), Some(20), None, Some(60), Some(80)]);
        assert_eq!(jitter.counters().lost, 1);
    }

    #[test]
    fn a_stall_shows_as_missing_and_as_quiet_time() {
        let (mut jitter, t0) = (buffer(0), Instant::now());
        assert_eq!(jitter.quiet_for(t0), None);
        jitter.push(t0, packet(0));
        assert_eq!(pulled(&mut jitter, t0), Some(0));
        assert_eq!(pulled(&mut jitter, t0 + ms(20)), None);
        assert_eq!(jitter.quiet_for(t0 + ms(200)), Some(ms(200)));
    }

    /// One second of stall, then all of it at once, then packets in time again.
    fn after_a_stall(make: fn(u64) -> Packet, seconds: u64) -> JitterBuffer {
        let (mut jitter, t0) = (buffer(0), Instant::now());
        for n in 0..15 {
            jitter.push(t0, packet(20 * n));
        }
        for tick in 0..seconds * 50 {
            let now = t0 + ms(20 * tick);
            jitter.push(now, make(300 + 20 * tick));
            assert!(jitter.held() <= ms(500));
            let _ = jitter.pull(now);
        }
        jitter
    }

    #[test]
    fn delay_left_by_a_stall_is_won_back_in_silence() {
        let jitter = after_a_stall(silence, 3);
        assert!(jitter.held() <= SLACK, "{:?} left", jitter.held());
        assert!(jitter.counters().drained >= 10);
        assert_eq!(jitter.counters().lost, 0);
    }

    #[test]
    fn speech_is_cut_by_a_packet_a_second_at_most() {
        let jitter = after_a_stall(packet, 3);
        assert!((1..=3).contains(&jitter.counters().drained), "{:?}", jitter.counters());
        let jitter = after_a_stall(packet, 20);
        assert!(jitter.held() <= SLACK * 2 + FRAME, "{:?} left", jitter.held());
    }

    #[test]
    fn above_the_maximum_the_oldest_is_dropped_and_counted() {
        let (mut jitter, t0) = (buffer(0), Instant::now());
        for n in 0..40 {
            jitter.push(t0, packet(20 * n));
        }
        assert_eq!((jitter.held(), jitter.counters().overflow), (ms(500), 15));
        assert_eq!(ready(&mut jitter, t0).first(), Some(&300));
    }

    #[test]
    fn timestamps_that_begin_anew_are_followed() {
        let (mut jitter, t0) = (buffer(0), Instant::now());
        jitter.push(t0, packet(60_000));
        assert_eq!(ready(&mut jitter, t0), [60_000]);
        for at in [0, 20, 40, 60] {
            jitter.push(t0, packet(at));
        }
        assert_eq!(ready(&mut jitter, t0), [40, 60]);
        jitter.push(t0, packet(90_000));
        assert_eq!(ready(&mut jitter, t0), [90_000]);
        assert_eq!((jitter.counters().restarts, jitter.counters().lost), (2, 0));
    }

    #[test]
    fn rounded_timestamps_follow_on_from_each_other() {
        let (mut jitter, t0) = (buffer(0), Instant::now());
        for at in [0, 21, 39, 61, 80] {
            jitter.push(t0, packet(at));
        }
        assert_eq!(ready(&mut jitter, t0), [0, 21, 39, 61, 80]);
        assert_eq!((jitter.counters().late, jitter.counters().lost), (0, 0));
    }

    /// A network that delays each packet by up to `jitter_ms`, loses some, and ticks at the receiver: what was heard.
    struct Line {
        jitter: JitterBuffer,
        heard: Vec<u64>,
        /// Ticks without a packet, after the first packet.
        holes: u32,
        /// From sending to hearing, of the newest packet.
        delay: Duration,
    }

    fn line(packets: u64, jitter_ms: u64, loss_percent: u64, drift_ppm: i64) -> Line {
        // SplitMix64: the same line on every run.
        let mut state = 7_u64;
        let mut random = move |below: u64| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            (z ^ (z >> 31)) % below.max(1)
        };
        let sent_at =
            |n: u64| Duration::from_nanos((20_000_000 * n as i64 * (1_000_000 + drift_ppm) / 1_000_000) as u64);
        let mut arrivals: Vec<(Duration, u64)> = Vec::new();
        for n in 0..packets {
            if random(100) >= loss_percent {
                arrivals.push((sent_at(n) + ms(random(jitter_ms + 1)), n));
            }
        }
        arrivals.sort();
        let t0 = Instant::now();
        let mut line =
            Line { jitter: JitterBuffer::new(JitterConfig::RTP), heard: Vec::new(), holes: 0, delay: Duration::ZERO };
        let mut arrivals = arrivals.into_iter().peekable();
        for tick in 0..packets {
            let now = ms(20 * tick + 3);
            while let Some((at, n)) = arrivals.next_if(|(at, _)| *at <= now) {
                // One second of speech, one of silence.
                let make = if n / 50 % 2 == 0 { packet } else { silence };
                line.jitter.push(t0 + at, make(20 * n));
            }
            match pulled(&mut line.jitter, t0 + now) {
                Some(at) => {
                    line.heard.push(at);
                    line.delay = now.saturating_sub(sent_at(at / 20));
                }
                None => line.holes += u32::from(!line.heard.is_empty()),
            }
        }
        line
    }

    #[test]
    fn on_a_good_network_the_delay_is_short() {
        let line = line(2000, 3, 0, 0);
        assert_eq!((line.holes, line.jitter.counters().lost), (0, 0));
        assert!(line.delay <= ms(45), "{:?}", line.delay);
    }

    #[test]
    fn jitter_is_learnt_and_then_hardly_anything_is_late() {
        let line = line(3000, 60, 0, 0);
        let counters = line.jitter.counters();
        assert!(counters.late < 30, "{counters:?}");
        assert!((ms(40)..=ms(75)).contains(&line.jitter.target()), "{:?}", line.jitter.target());
        assert!(line.delay <= ms(130), "{:?}", line.delay);
        assert!(line.heard.is_sorted(), "in order");
    }

    #[test]
    fn losses_cost_their_own_time_and_no_more() {
        let line = line(3000, 60, 10, 0);
        let counters = line.jitter.counters();
        assert!(counters.received > 2600 && counters.late < 60, "{counters:?}");
        assert!(line.heard.len() as u64 + counters.drained + 60 > counters.received, "{counters:?}");
        assert!(line.delay <= ms(150), "{:?}", line.delay);
    }

    #[test]
    fn clocks_that_drift_apart_keep_the_delay_where_it_was() {
        // 0.1 % is ten times what telephones are allowed; 2,000 packets drift by 40 ms.
        for drift in [-1000, 1000] {
            let line = line(10_000, 10, 0, drift);
            let counters = line.jitter.counters();
            assert!(line.delay <= ms(100), "{drift}: {:?}", line.delay);
            assert!(counters.late < 20 && counters.overflow == 0, "{drift}: {counters:?}");
            assert!(line.holes < 40 && counters.drained < 40, "{drift}: {} holes, {counters:?}", line.holes);
        }
    }

    #[test]
    fn silence_that_is_not_sent_takes_its_time_and_adds_none() {
        let (mut jitter, t0) = (JitterBuffer::new(JitterConfig::RTP), Instant::now());
        let mut heard = Vec::new();
        for tick in 0..1000_u64 {
            let now = t0 + ms(20 * tick);
            if tick % 100 < 30 {
                jitter.push(now, packet(20 * tick));
            }
            heard.extend(pulled(&mut jitter, now).map(|at| (20 * tick - at) as u32));
        }
        assert_eq!(heard.len(), 300, "all of it");
        assert!(heard.iter().all(|delay| *delay <= 40), "{heard:?}");
    }

    #[test]
    fn the_packet_behind_a_single_loss_is_at_hand_to_repair_it() {
        let config = JitterConfig { target_ms: 40, ..JitterConfig::RTP };
        let (mut jitter, t0) = (JitterBuffer::new(config), Instant::now());
        let mut repaired = Vec::new();
        for tick in 0..20_u64 {
            let now = t0 + ms(20 * tick);
            if tick % 5 != 3 {
                jitter.push(now, packet(20 * tick));
            }
            if pulled(&mut jitter, now).is_none() && tick > 2 {
                repaired.push(jitter.behind_the_gap().map(|packet| packet.at.as_millis()));
            }
        }
        assert_eq!(repaired, [80, 180, 280].map(Some));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Push(u64),
        Pop,
        Pull,
    }

    proptest! {
        #[test]
        fn whatever_arrives_comes_out_in_order_once_and_bounded(
            (target, adaptive_ms) in prop::sample::select(vec![(0_u32, 0_u32), (40, 0), (120, 0), (20, 200)]),
            steps in prop::collection::vec(
                prop_oneof![
                    3 => (0_u64..45).prop_map(|n| Step::Push(20 * n)),
                    1 => Just(Step::Pop),
                    2 => Just(Step::Pull),
                ],
                1..300,
            ),
        ) {
            let config = JitterConfig { target_ms: target, adaptive_ms, max_ms: 500 };
            let (mut jitter, t0) = (JitterBuffer::new(config), Instant::now());
            let mut last = None;
            let mut out = 0;
            for (n, step) in steps.into_iter().enumerate() {
                let now = t0 + ms(5 * n as u64);
                let heard = match step {
                    Step::Push(at) => {
                        jitter.push(now, packet(at));
                        None
                    }
                    Step::Pop => jitter.pop_ready(now).map(|packet| packet.at),
                    Step::Pull => pulled(&mut jitter, now).map(MediaTime::from_millis),
                };
                prop_assert!(jitter.held() <= ms(500));
                if heard.is_some() {
                    prop_assert!(heard > last, "{heard:?} after {last:?}");
                    last = heard;
                    out += 1;
                }
            }
            let counters = jitter.counters();
            let held = (jitter.held().as_millis() / 20) as u64;
            prop_assert_eq!(counters.received, out + held + counters.late + counters.duplicate + counters.overflow
                + counters.drained, "every packet is accounted for");
        }
    }
}
