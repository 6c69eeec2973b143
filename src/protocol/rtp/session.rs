//! One RTP session (RFC 3550) of a call: the peer's packets become media packets and keys on the leg's own time axis,
//! ours get their headers, and RTCP reports on both. No sockets, no pace, no reordering: the jitter buffer of the call
//! orders what comes out here, which sources may send is the transport's question, answered through `admit`.

use std::time::{Duration, Instant};

use crate::media::frame::MediaTime;
use crate::media::packet::{ClockRate, Codec, Packet};
use crate::protocol::rtp::keys::{KeyPacket, KeyReader};
use crate::protocol::rtp::packet::{MAX_DATAGRAM, RtpPacket};
use crate::protocol::rtp::plan::MediaPlan;
use crate::protocol::rtp::rtcp::{self, Compound, ReceptionReport, Report, SenderInfo};
use crate::protocol::rtp::srtp::{Srtp, SrtpError};
use crate::protocol::rtp::stats::{RtpStats, mos};

/// Steps of the sequence number that are loss, and steps back that are reordering (RFC 3550 A.1). Beyond them, two
/// packets in a row show that the sender counts anew.
const MAX_DROPOUT: i32 = 3_000;
const MAX_MISORDER: i32 = -100;
/// A sender that was heard so lately gives way to another only when that sends twice in a row: two that send in turn
/// would otherwise take the stream from each other with every packet.
const STILL_THERE: Duration = Duration::from_millis(60);
/// Timestamps and arrival may disagree by this much; beyond it the sender's clock jumped, or it does not count silence.
const CLOCK_JUMP: Duration = Duration::from_secs(2);
/// RTCP on average so often, at random between half and one and a half of it (RFC 3550 §6.2).
const RTCP_EVERY: Duration = Duration::from_secs(5);
/// A round trip above this is a report about something else.
const MAX_ROUND_TRIP: f64 = 30.0;
/// Delay besides the network's when quality is estimated: one packet being filled, and the jitter buffer's least.
const END_DELAY: Duration = Duration::from_millis(60);

/// What a peer cannot guess, and wall time: from outside, so that a test knows them.
#[derive(Clone, Debug)]
pub struct SessionSeed {
    pub ssrc: u32,
    pub sequence: u16,
    pub timestamp: u32,
    /// Wall time at the start, see [`ntp`].
    pub ntp: u64,
    /// A random name for RTCP (RFC 7022), at most 255 bytes.
    pub cname: String,
}

/// Time since 1970 as NTP writes it: 32 bits of seconds since 1900, 32 of fraction.
pub fn ntp(since_1970: Duration) -> u64 {
    // RFC 868: 70 years with 17 leap days.
    let seconds = since_1970.as_secs().wrapping_add(2_208_988_800);
    (seconds << 32) | ((u64::from(since_1970.subsec_nanos()) << 32) / 1_000_000_000)
}

/// What a datagram meant.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a packet carries its bytes inline, so that none is allocated")]
pub enum RtpEvent {
    /// Audio; its time is zero at the stream's first.
    Packet(Packet),
    /// One of `0-9 * # A-D`, pressed.
    Key(char),
}

/// Whose a datagram is: what the transport needs to decide whether it may be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub ssrc: u32,
    pub sequence: u16,
    /// It was sealed with the agreed key.
    pub authentic: bool,
}

pub struct Session {
    plan: MediaPlan,
    srtp: Option<Srtp>,
    opened: Vec<u8>,
    source: Option<Source>,
    timeline: Timeline,
    keys: KeyReader,
    out: Outgoing,
    rtcp: Rtcp,
    stats: RtpStats,
}

/// The sender that we hear.
struct Source {
    ssrc: u32,
    heard: Instant,
    /// Another sender, once heard since this one.
    rival: Option<u32>,
    /// Sequence numbers with their wraps, one cycle above zero so that reordering at the start stays positive.
    first: u64,
    highest: u64,
    received: u64,
    /// The newest 128 numbers, the highest in bit 0.
    seen: u128,
    /// What follows a packet that was out of all order.
    jumped_to: Option<u16>,
    transit: Option<u32>,
    /// In ticks.
    jitter: f64,
    /// Counts at the last report.
    expected_before: u64,
    received_before: u64,
    /// Sender report: the middle of its NTP time, and when it came.
    last_report: Option<(u32, Instant)>,
}

/// From the sender's timestamps to the leg's axis.
struct Timeline {
    newest: Option<Newest>,
}

struct Newest {
    /// `None` behind a change of sender: the next packet is placed by its arrival.
    stamp: Option<(u32, ClockRate)>,
    at: MediaTime,
    end: MediaTime,
    arrived: Instant,
}

struct Outgoing {
    ssrc: u32,
    sequence: u16,
    timestamp: u32,
    /// When the timestamp stood there.
    stamped: Instant,
    /// The next audio begins after silence.
    marker: bool,
    packets: u32,
    bytes: u32,
    reported: u32,
}

struct Rtcp {
    cname: String,
    started: Instant,
    ntp: u64,
    due: Instant,
    random: u64,
}

impl Session {
    pub fn new(now: Instant, plan: MediaPlan, seed: SessionSeed) -> Result<Self, SrtpError> {
        let srtp = plan.srtp.clone().map(Srtp::new).transpose()?;
        let mut rtcp = Rtcp { cname: seed.cname, started: now, ntp: seed.ntp, due: now, random: u64::from(seed.ssrc) };
        rtcp.due = now + rtcp.interval();
        Ok(Self {
            plan,
            srtp,
            opened: Vec::with_capacity(MAX_DATAGRAM),
            source: None,
            timeline: Timeline { newest: None },
            keys: KeyReader::default(),
            out: Outgoing {
                ssrc: seed.ssrc,
                sequence: seed.sequence,
                timestamp: seed.timestamp,
                stamped: now,
                marker: true,
                packets: 0,
                bytes: 0,
                reported: 0,
            },
            rtcp,
            stats: RtpStats::default(),
        })
    }

    pub fn plan(&self) -> &MediaPlan {
        &self.plan
    }

    /// Goes on with what a later offer and answer agreed on. Our sequence and timestamps go on; the peer's keys are
    /// taken over only when they changed, since new ones start their packet counts again.
    pub fn adopt(&mut self, plan: MediaPlan) -> Result<(), SrtpError> {
        if plan.srtp.as_ref() != self.srtp.as_ref().map(Srtp::keys) {
            self.srtp = plan.srtp.clone().map(Srtp::new).transpose()?;
        }
        self.out.marker |= plan.codec != self.plan.codec;
        if let Some(source) = self.source.as_mut().filter(|_| plan.codec.clock() != self.plan.codec.clock()) {
            // Transit times of two clocks have no difference.
            source.transit = None;
        }
        self.plan = plan;
        Ok(())
    }

    /// Takes a datagram of the media port and appends what it meant. `admit` is asked once for whatever is RTP, and
    /// what it refuses changes nothing here. Returns whether it was the stream's.
    pub fn on_rtp(
        &mut self,
        now: Instant,
        bytes: &[u8],
        admit: impl FnOnce(Claim) -> bool,
        out: &mut Vec<RtpEvent>,
    ) -> bool {
        let mut opened = std::mem::take(&mut self.opened);
        let plain = match &mut self.srtp {
            Some(srtp) => srtp.open_rtp(bytes, &mut opened).then_some(opened.as_slice()),
            None => Some(bytes),
        };
        let taken = match plain.and_then(RtpPacket::parse) {
            Some(packet) => {
                let claim = Claim { ssrc: packet.ssrc, sequence: packet.sequence, authentic: self.srtp.is_some() };
                let admitted = admit(claim);
                if admitted {
                    self.on_packet(now, &packet, out);
                }
                admitted
            }
            None => {
                self.stats.malformed += 1;
                false
            }
        };
        self.opened = opened;
        taken
    }

    fn on_packet(&mut self, now: Instant, packet: &RtpPacket<'_>, out: &mut Vec<RtpEvent>) {
        let gives_way = self.source.as_mut().is_none_or(|source| source.gives_way(now, packet));
        let place = match &mut self.source {
            Some(source) if source.ssrc == packet.ssrc => source.place(packet.sequence),
            Some(_) if !gives_way => {
                self.stats.foreign += 1;
                return;
            }
            _ => {
                self.change_source(now, packet);
                Place::Newest
            }
        };
        if let Some(source) = &mut self.source {
            source.heard = now;
            source.rival = None;
        }
        match place {
            Place::Newest => {}
            Place::Reordered => self.stats.reordered += 1,
            Place::Duplicate => {
                self.stats.duplicate += 1;
                return;
            }
            Place::Jumped => {
                self.stats.malformed += 1;
                return;
            }
            Place::Restarted => {
                self.change_source(now, packet);
            }
        }
        self.stats.received += 1;
        self.stats.received_bytes += packet.payload.len() as u64;
        if let Some(keys) = self.plan.keys
            && packet.payload_type == keys.receive
        {
            self.stats.key_packets += 1;
            let key = self.keys.on_packet(self.plan.codec.clock(), packet.timestamp, packet.marker, packet.payload);
            out.extend(key.map(RtpEvent::Key));
        } else if Some(packet.payload_type) == self.plan.comfort_noise {
            self.stats.comfort_noise += 1;
        } else if let Some(codec) = self.codec_of(packet.payload_type) {
            self.on_audio(now, codec, packet, place, out);
        } else {
            self.stats.unknown_payload += 1;
        }
    }

    /// The agreed types, and both kinds of G.711 under their static numbers, which peers are known to mix up.
    fn codec_of(&self, payload_type: u8) -> Option<Codec> {
        let agreed = self.plan.accepts.iter().find(|(number, _)| *number == payload_type).map(|(_, codec)| *codec);
        agreed.or(match payload_type {
            0 => Some(Codec::Pcmu),
            8 => Some(Codec::Pcma),
            _ => None,
        })
    }

    fn on_audio(&mut self, now: Instant, codec: Codec, packet: &RtpPacket<'_>, place: Place, out: &mut Vec<RtpEvent>) {
        let duration = codec.duration(packet.payload);
        if duration.is_zero() {
            // Keeps a NAT binding open, and says nothing.
            return;
        }
        let clock = codec.clock();
        if let Some(source) = &mut self.source {
            let jitter =
                source.measure(clock.ticks(now.saturating_duration_since(self.rtcp.started)), packet.timestamp);
            self.stats.jitter_ms = jitter * 1000.0 / f64::from(clock.hz());
            self.stats.highest_jitter_ms = self.stats.highest_jitter_ms.max(self.stats.jitter_ms);
        }
        let newest = place != Place::Reordered;
        let Some(at) = self.timeline.place(now, packet.timestamp, clock, duration, newest) else { return };
        match codec.bytes_per_ms() {
            None => match Packet::new(codec, at, packet.payload) {
                Some(packet) => out.push(RtpEvent::Packet(packet)),
                None => self.stats.oversize += 1,
            },
            Some(_) => {
                let mut at = at;
                for payload in packet.payload.chunks(Packet::MAX) {
                    out.extend(Packet::new(codec, at, payload).map(RtpEvent::Packet));
                    at = at + codec.duration(payload);
                }
            }
        }
    }

    fn change_source(&mut self, now: Instant, packet: &RtpPacket<'_>) {
        if let Some(old) = self.source.replace(Source::new(now, packet)) {
            self.stats.ssrc_changes += 1;
            self.stats.lost += old.lost();
            self.timeline.forget_timestamps();
            self.keys.reset();
        }
    }

    /// Takes a datagram of RTCP; `false` when it is none, or not the peer's.
    pub fn on_rtcp(&mut self, now: Instant, bytes: &[u8]) -> bool {
        let mut opened = std::mem::take(&mut self.opened);
        let plain = match &mut self.srtp {
            Some(srtp) => srtp.open_rtcp(bytes, &mut opened).then_some(opened.as_slice()),
            None => Some(bytes),
        };
        let reports = plain.and_then(rtcp::parse);
        self.opened = opened;
        let Some(reports) = reports else {
            self.stats.malformed += 1;
            return false;
        };
        for report in reports {
            match report {
                Report::Sender { ssrc, info, about } => {
                    if let Some(source) = self.source.as_mut().filter(|source| source.ssrc == ssrc) {
                        source.last_report = Some(((info.ntp >> 16) as u32, now));
                    }
                    self.on_reception(now, &about);
                }
                Report::Receiver { about, .. } => self.on_reception(now, &about),
                // Signalling ends a call; a peer may say goodbye for a source that it changes.
                Report::Bye { .. } => {}
            }
        }
        true
    }

    fn on_reception(&mut self, now: Instant, about: &[ReceptionReport]) {
        let Some(ours) = about.iter().find(|block| block.ssrc == self.out.ssrc) else { return };
        self.stats.peer_loss = Some(f64::from(ours.fraction_lost) / 256.0);
        self.stats.peer_jitter_ms = Some(f64::from(ours.jitter) * 1000.0 / f64::from(self.plan.codec.clock().hz()));
        if ours.last_report != 0 {
            let middle = (self.rtcp.ntp_at(now) >> 16) as u32;
            let ticks = middle.wrapping_sub(ours.last_report).wrapping_sub(ours.delay) as i32;
            // Rounding on both ends can make a round trip on one machine negative.
            let seconds = f64::from(ticks.max(0)) / 65_536.0;
            if ticks > -66 && seconds < MAX_ROUND_TRIP {
                self.stats.round_trip_ms = Some(seconds * 1000.0);
            }
        }
    }

    /// Writes one packet of our audio into `datagram`; `payload` lasts the agreed time. False when it could not be sealed.
    pub fn write_audio(&mut self, now: Instant, payload: &[u8], datagram: &mut Vec<u8>) -> bool {
        let (timestamp, marker) = (self.out.timestamp, std::mem::take(&mut self.out.marker));
        let payload_type = self.plan.payload_type;
        let written = self.write(payload_type, timestamp, marker, payload, datagram);
        self.advance(now);
        written
    }

    /// Writes a key's packet; the stream's time goes on beneath it.
    pub fn write_key(&mut self, now: Instant, key: KeyPacket, datagram: &mut Vec<u8>) -> bool {
        let Some(keys) = self.plan.keys else { return false };
        let written = self.write(keys.send, key.timestamp, key.marker, &key.payload, datagram);
        self.advance(now);
        self.out.marker = true;
        written
    }

    /// Time of one packet passes in which nothing is sent.
    pub fn skip(&mut self, now: Instant) {
        self.advance(now);
        self.out.marker = true;
    }

    /// The timestamp of what is sent next.
    pub fn timestamp(&self) -> u32 {
        self.out.timestamp
    }

    fn advance(&mut self, now: Instant) {
        let ticks = self.plan.codec.clock().ticks(self.plan.ptime) as u32;
        self.out.timestamp = self.out.timestamp.wrapping_add(ticks);
        self.out.stamped = now;
    }

    fn write(
        &mut self,
        payload_type: u8,
        timestamp: u32,
        marker: bool,
        payload: &[u8],
        datagram: &mut Vec<u8>,
    ) -> bool {
        let (sequence, ssrc) = (self.out.sequence, self.out.ssrc);
        RtpPacket { marker, payload_type, sequence, timestamp, ssrc, payload }.write(datagram);
        self.out.sequence = sequence.wrapping_add(1);
        if let Some(srtp) = &mut self.srtp
            && !srtp.seal_rtp(datagram)
        {
            return false;
        }
        self.out.packets = self.out.packets.wrapping_add(1);
        self.out.bytes = self.out.bytes.wrapping_add(payload.len() as u32);
        self.stats.sent += 1;
        self.stats.sent_bytes += payload.len() as u64;
        true
    }

    /// When the next RTCP is due.
    pub fn deadline(&self) -> Instant {
        self.rtcp.due
    }

    /// Writes a report; with `bye` also that the stream is over. False when it could not be sealed.
    pub fn write_rtcp(&mut self, now: Instant, bye: bool, datagram: &mut Vec<u8>) -> bool {
        self.rtcp.due = now + self.rtcp.interval();
        let since = now.saturating_duration_since(self.out.stamped);
        let sent_since = self.out.packets != self.out.reported;
        self.out.reported = self.out.packets;
        let sender = sent_since.then(|| SenderInfo {
            ntp: self.rtcp.ntp_at(now),
            rtp_timestamp: self.out.timestamp.wrapping_add(self.plan.codec.clock().ticks(since) as u32),
            packets: self.out.packets,
            bytes: self.out.bytes,
        });
        let about = self.source.as_mut().map(|source| source.report(now));
        Compound { ssrc: self.out.ssrc, sender, about, cname: &self.rtcp.cname, bye }.write(datagram);
        self.srtp.as_mut().is_none_or(|srtp| srtp.seal_rtcp(datagram))
    }

    /// One way to the peer, as far as RTCP told: half of the round trip.
    pub fn one_way(&self) -> Option<Duration> {
        self.stats.round_trip_ms.map(|ms| Duration::from_secs_f64(ms / 2000.0))
    }

    pub fn stats(&self) -> RtpStats {
        let mut stats = self.stats.clone();
        stats.lost += self.source.as_ref().map_or(0, Source::lost);
        if stats.received > 0 {
            let loss = stats.lost as f64 / (stats.lost + stats.received) as f64;
            let buffered = Duration::from_secs_f64((2.0 * stats.jitter_ms / 1000.0).min(1.0));
            let delay = self.one_way().unwrap_or_default() + END_DELAY + buffered;
            stats.mos = Some(mos(self.plan.codec, loss, delay));
        }
        stats
    }
}

/// Where a packet stands among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Newest,
    Reordered,
    Duplicate,
    /// Far from all others, and alone so far.
    Jumped,
    /// The second of a new count.
    Restarted,
}

impl Source {
    fn new(now: Instant, packet: &RtpPacket<'_>) -> Self {
        let first = 0x1_0000 + u64::from(packet.sequence);
        Self {
            ssrc: packet.ssrc,
            heard: now,
            rival: None,
            first,
            highest: first,
            received: 1,
            seen: 1,
            jumped_to: None,
            transit: None,
            jitter: 0.0,
            expected_before: 0,
            received_before: 0,
            last_report: None,
        }
    }

    /// Whether another sender's packet comes when this one is gone, or is its second since this one was heard.
    fn gives_way(&mut self, now: Instant, packet: &RtpPacket<'_>) -> bool {
        let second = packet.ssrc != self.ssrc && self.rival.replace(packet.ssrc) == Some(packet.ssrc);
        second || now.saturating_duration_since(self.heard) >= STILL_THERE
    }

    fn place(&mut self, sequence: u16) -> Place {
        let step = i32::from(sequence.wrapping_sub(self.highest as u16) as i16);
        let place = match step {
            1..MAX_DROPOUT => {
                self.highest += step as u64;
                self.seen = if step < 128 { self.seen << step | 1 } else { 1 };
                Place::Newest
            }
            MAX_MISORDER..=0 => {
                let bit = 1_u128 << step.unsigned_abs();
                if self.seen & bit != 0 {
                    return Place::Duplicate;
                }
                self.seen |= bit;
                // Before the first one that came.
                self.first = self.first.min(self.highest - u64::from(step.unsigned_abs()));
                Place::Reordered
            }
            _ if self.jumped_to == Some(sequence) => return Place::Restarted,
            _ => {
                self.jumped_to = Some(sequence.wrapping_add(1));
                return Place::Jumped;
            }
        };
        self.jumped_to = None;
        self.received += 1;
        place
    }

    fn expected(&self) -> u64 {
        self.highest - self.first + 1
    }

    fn lost(&self) -> u64 {
        self.expected().saturating_sub(self.received)
    }

    /// Interarrival jitter (RFC 3550 §6.4.1 and A.8), in ticks.
    fn measure(&mut self, arrival: u64, timestamp: u32) -> f64 {
        let transit = (arrival as u32).wrapping_sub(timestamp);
        if let Some(before) = self.transit.replace(transit) {
            let difference = f64::from((transit.wrapping_sub(before) as i32).unsigned_abs());
            self.jitter += (difference - self.jitter) / 16.0;
        }
        self.jitter
    }

    fn report(&mut self, now: Instant) -> ReceptionReport {
        let (expected, received) = (self.expected(), self.received);
        let expected_since = expected.saturating_sub(self.expected_before);
        let lost_since = expected_since.saturating_sub(received.saturating_sub(self.received_before));
        (self.expected_before, self.received_before) = (expected, received);
        let (last_report, delay) = self.last_report.map_or((0, 0), |(middle, at)| {
            let since = now.saturating_duration_since(at);
            (middle, (since.as_secs_f64() * 65_536.0) as u32)
        });
        ReceptionReport {
            ssrc: self.ssrc,
            fraction_lost: (lost_since * 256).checked_div(expected_since).unwrap_or(0).min(255) as u8,
            lost: self.lost().min(0x7F_FFFF) as i32,
            // Without the cycle that was put below the first.
            highest_sequence: (self.highest - 0x1_0000) as u32,
            jitter: self.jitter as u32,
            last_report,
            delay,
        }
    }
}

impl Timeline {
    /// Where a packet belongs; `None` before the leg's zero.
    fn place(
        &mut self,
        now: Instant,
        timestamp: u32,
        clock: ClockRate,
        duration: Duration,
        is_newest: bool,
    ) -> Option<MediaTime> {
        let at = match &self.newest {
            None => MediaTime::ZERO,
            Some(newest) => {
                let elapsed = now.saturating_duration_since(newest.arrived);
                match newest.stamp {
                    Some((before, same)) if same == clock => {
                        let step = timestamp.wrapping_sub(before) as i32;
                        let time = clock.duration(u64::from(step.unsigned_abs()));
                        if step < 0 && !is_newest {
                            newest.at.since_start().checked_sub(time).map(MediaTime::new)?
                        } else if step < 0 || time.abs_diff(elapsed) > CLOCK_JUMP {
                            newest.by_arrival(elapsed)
                        } else {
                            newest.at + time
                        }
                    }
                    _ => newest.by_arrival(elapsed),
                }
            }
        };
        if is_newest {
            self.newest = Some(Newest { stamp: Some((timestamp, clock)), at, end: at + duration, arrived: now });
        }
        Some(at)
    }

    fn forget_timestamps(&mut self) {
        if let Some(newest) = &mut self.newest {
            newest.stamp = None;
        }
    }
}

impl Newest {
    /// Behind what came before, and as much later as it came later.
    fn by_arrival(&self, elapsed: Duration) -> MediaTime {
        self.end.max(self.at + elapsed)
    }
}

impl Rtcp {
    fn ntp_at(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.started);
        let ticks = (since.as_secs() << 32) + (u64::from(since.subsec_nanos()) << 32) / 1_000_000_000;
        self.ntp.wrapping_add(ticks)
    }

    /// SplitMix64 (Steele, Lea, Flood 2014), so that the sessions of a machine do not report all at once.
    fn interval(&mut self) -> Duration {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let share = ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64;
        RTCP_EVERY.mul_f64(0.5 + share)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::rtp::plan::{KeyFormat, SrtpKey, SrtpKeys, SrtpSuite};

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn plan() -> MediaPlan {
        MediaPlan {
            remote: "192.0.2.1:4000".parse().ok(),
            remote_rtcp: "192.0.2.1:4001".parse().ok(),
            rtcp_mux: false,
            codec: Codec::Pcma,
            payload_type: 8,
            accepts: vec![(8, Codec::Pcma), (96, Codec::Opus)],
            keys: Some(KeyFormat { send: 101, receive: 101, clock: ClockRate::HZ_8000 }),
            comfort_noise: Some(13),
            ptime: ms(20),
            sends: true,
            receives: true,
            srtp: None,
        }
    }

    fn seed(ssrc: u32) -> SessionSeed {
        SessionSeed {
            ssrc,
            sequence: 65_530,
            timestamp: u32::MAX - 500,
            ntp: ntp(ms(1_700_000_000_123)),
            cname: "c".into(),
        }
    }

    fn session(now: Instant) -> Session {
        Session::new(now, plan(), seed(1)).expect("no keys")
    }

    /// A packet of 20 ms of A-law.
    fn audio(ssrc: u32, sequence: u16, timestamp: u32) -> Vec<u8> {
        of_type(8, ssrc, sequence, timestamp, &[0x55; 160])
    }

    fn of_type(payload_type: u8, ssrc: u32, sequence: u16, timestamp: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        RtpPacket { marker: false, payload_type, sequence, timestamp, ssrc, payload }.write(&mut bytes);
        bytes
    }

    fn feed(session: &mut Session, now: Instant, bytes: &[u8]) -> Vec<RtpEvent> {
        let mut out = Vec::new();
        session.on_rtp(now, bytes, |_| true, &mut out);
        out
    }

    /// Where the audio of a datagram was placed, ms.
    fn placed(session: &mut Session, now: Instant, bytes: &[u8]) -> Vec<u64> {
        let time = |event| match event {
            RtpEvent::Packet(packet) => packet.at.as_millis(),
            RtpEvent::Key(key) => panic!("{key}"),
        };
        feed(session, now, bytes).into_iter().map(time).collect()
    }

    #[test]
    fn sequence_and_timestamp_wrap_without_a_seam() {
        let t0 = Instant::now();
        let mut session = session(t0);
        for n in 0..200_u32 {
            let bytes = audio(9, (65_500 + n) as u16, (u32::MAX - 3000).wrapping_add(160 * n));
            assert_eq!(placed(&mut session, t0 + ms(20) * n, &bytes), [u64::from(20 * n)]);
        }
        let stats = session.stats();
        assert_eq!((stats.received, stats.lost, stats.ssrc_changes), (200, 0, 0));
        assert!(stats.jitter_ms < 0.1 && stats.mos.expect("packets came") > 4.3);
    }

    #[test]
    fn overtaking_losing_and_repeating_are_told_apart() {
        let t0 = Instant::now();
        let mut session = session(t0);
        for (n, sequence) in [0_u32, 1, 3, 2, 3, 6, 5, 5, 10].into_iter().enumerate() {
            let expected: &[u64] = if n == 4 || n == 7 { &[] } else { &[u64::from(20 * sequence)] };
            let bytes = audio(9, sequence as u16, 160 * sequence);
            assert_eq!(placed(&mut session, t0 + ms(20 * n as u64), &bytes), expected);
        }
        let stats = session.stats();
        assert_eq!((stats.received, stats.reordered, stats.duplicate, stats.lost), (7, 2, 2, 4));
    }

    #[test]
    fn another_sender_goes_on_where_the_last_one_was() {
        let t0 = Instant::now();
        let mut session = session(t0);
        placed(&mut session, t0, &audio(9, 0, 0));
        placed(&mut session, t0 + ms(20), &audio(9, 1, 160));
        // The first packet of a new one might be a stray.
        assert!(placed(&mut session, t0 + ms(40), &audio(5, 700, 99_000)).is_empty());
        assert_eq!(placed(&mut session, t0 + ms(60), &audio(5, 701, 99_160)), [60]);
        assert_eq!(placed(&mut session, t0 + ms(80), &audio(5, 702, 99_320)), [80]);
        // After a pause there is nobody to take the stream from; the gap is as long as it was.
        assert_eq!(placed(&mut session, t0 + ms(1060), &audio(6, 3, 5)), [1060]);
        assert_eq!((session.stats().ssrc_changes, session.stats().lost), (2, 0));
    }

    #[test]
    fn two_senders_at_once_do_not_take_the_stream_from_each_other() {
        let t0 = Instant::now();
        let mut session = session(t0);
        for n in 0..50_u32 {
            let now = t0 + ms(20) * n;
            assert_eq!(placed(&mut session, now, &audio(9, n as u16, 160 * n)), [u64::from(20 * n)]);
            assert!(placed(&mut session, now + ms(9), &audio(5, n as u16, 160 * n)).is_empty());
        }
        assert_eq!((session.stats().ssrc_changes, session.stats().foreign), (0, 50));
    }

    #[test]
    fn a_single_packet_out_of_all_order_is_dropped_and_two_begin_anew() {
        let t0 = Instant::now();
        let mut session = session(t0);
        placed(&mut session, t0, &audio(9, 100, 0));
        assert!(placed(&mut session, t0 + ms(20), &audio(9, 40_000, 7_000_000)).is_empty());
        assert_eq!(placed(&mut session, t0 + ms(20), &audio(9, 101, 160)), [20]);
        assert!(placed(&mut session, t0 + ms(40), &audio(9, 20_000, 1000)).is_empty());
        assert_eq!(placed(&mut session, t0 + ms(60), &audio(9, 20_001, 1160)), [60]);
        assert_eq!(placed(&mut session, t0 + ms(80), &audio(9, 20_002, 1320)), [80]);
    }

    #[test]
    fn silence_that_is_not_sent_is_silence_on_the_axis() {
        let t0 = Instant::now();
        let mut session = session(t0);
        placed(&mut session, t0, &audio(9, 0, 0));
        // Comfort noise, then three seconds of nothing, timestamps counting on.
        assert!(feed(&mut session, t0 + ms(20), &of_type(13, 9, 1, 160, &[60])).is_empty());
        assert_eq!(placed(&mut session, t0 + ms(3020), &audio(9, 2, 24_160)), [3020]);
        // A sender whose timestamps stand still in silence.
        assert_eq!(placed(&mut session, t0 + ms(8020), &audio(9, 3, 24_320)), [8020]);
        assert_eq!(placed(&mut session, t0 + ms(8040), &audio(9, 4, 24_480)), [8040]);
        assert_eq!((session.stats().comfort_noise, session.stats().lost), (1, 0));
    }

    #[test]
    fn payloads_of_any_length_and_type_find_their_place() {
        let t0 = Instant::now();
        let mut session = session(t0);
        let long = of_type(8, 9, 0, 0, &[0x55; 1200]);
        assert_eq!(placed(&mut session, t0, &long), [0, 60, 120]);
        // Both laws are understood under their static numbers.
        let Some(RtpEvent::Packet(packet)) =
            feed(&mut session, t0 + ms(150), &of_type(0, 9, 1, 1200, &[0xFF; 80])).pop()
        else {
            panic!("audio")
        };
        assert_eq!((packet.codec, packet.at.as_millis()), (Codec::Pcmu, 150));
        assert!(feed(&mut session, t0, &of_type(77, 9, 2, 1280, &[1])).is_empty());
        assert!(feed(&mut session, t0, &of_type(8, 9, 3, 1280, &[])).is_empty());
        assert!(feed(&mut session, t0, &of_type(96, 9, 4, 1280, &[0x08; 600])).is_empty());
        let stats = session.stats();
        assert_eq!((stats.unknown_payload, stats.oversize, stats.lost), (1, 1, 0));
    }

    #[test]
    fn what_is_not_admitted_changes_nothing() {
        let t0 = Instant::now();
        let mut session = session(t0);
        placed(&mut session, t0, &audio(9, 0, 0));
        let (before, mut out) = (session.stats(), Vec::new());
        let mut claimed = None;
        let taken = session.on_rtp(t0, &audio(66, 5, 5), |claim| claimed.replace(claim).is_some(), &mut out);
        assert!(!taken && out.is_empty());
        assert_eq!(claimed, Some(Claim { ssrc: 66, sequence: 5, authentic: false }));
        assert_eq!(session.stats(), before);
        assert_eq!(placed(&mut session, t0 + ms(20), &audio(9, 1, 160)), [20]);
    }

    #[test]
    fn what_we_send_counts_on_through_keys_and_silence() {
        let t0 = Instant::now();
        let (mut ours, mut theirs, mut datagram) = (session(t0), session(t0), Vec::new());
        let mut keys = Vec::new();
        let mut writer = crate::protocol::rtp::keys::KeyWriter::new(ms(100), ms(20));
        writer.press('7');
        let mut last = None;
        for n in 0..40_u32 {
            let now = t0 + ms(20) * n;
            let timestamp = ours.timestamp();
            assert_eq!(timestamp, (u32::MAX - 500).wrapping_add(160 * n));
            if n >= 10
                && let Some(key) = writer.next(timestamp, ms(20), ClockRate::HZ_8000)
            {
                assert!(ours.write_key(now, key, &mut datagram));
            } else if (25..30).contains(&n) {
                ours.skip(now);
                continue;
            } else {
                assert!(ours.write_audio(now, &[0xD5; 160], &mut datagram));
            }
            let packet = RtpPacket::parse(&datagram).expect("ours");
            assert_eq!(packet.marker, [0, 10, 17, 30].contains(&n), "packet {n}");
            if let Some(last) = last.replace(packet.sequence) {
                assert_eq!(packet.sequence, last + 1, "numbers have no gap");
            }
            if packet.sequence == u16::MAX {
                last = None;
            }
            keys.extend(feed(&mut theirs, now, &datagram).into_iter().filter_map(|event| match event {
                RtpEvent::Key(key) => Some(key),
                RtpEvent::Packet(packet) => {
                    assert_eq!(packet.at.as_millis(), u64::from(20 * n));
                    None
                }
            }));
        }
        assert_eq!(keys, ['7']);
        assert_eq!((theirs.stats().received, theirs.stats().lost), (35, 0));
    }

    #[test]
    fn reports_tell_loss_jitter_and_the_round_trip() {
        let t0 = Instant::now();
        let (mut ours, mut theirs) = (session(t0), Session::new(t0, plan(), seed(2)).expect("no keys"));
        let (mut datagram, mut out) = (Vec::new(), Vec::new());
        let delay = ms(40);
        for n in 0..400_u32 {
            let now = t0 + ms(20) * n;
            ours.write_audio(now, &[0xD5; 160], &mut datagram);
            if n % 10 != 3 {
                theirs.on_rtp(now + delay + ms(u64::from(n % 2) * 8), &datagram, |_| true, &mut out);
            }
        }
        let now = t0 + ms(8000);
        ours.write_rtcp(now, false, &mut datagram);
        assert!(theirs.on_rtcp(now + delay, &datagram));
        theirs.write_rtcp(now + ms(1000), false, &mut datagram);
        assert!(ours.on_rtcp(now + ms(1000) + delay, &datagram));
        let stats = ours.stats();
        let near = |value: Option<f64>, wanted: f64, off: f64| {
            assert!(value.is_some_and(|value| (value - wanted).abs() < off), "{value:?} for {wanted}");
        };
        near(stats.round_trip_ms, 80.0, 1.0);
        near(stats.peer_loss, 0.1, 0.01);
        near(stats.peer_jitter_ms, 8.0, 1.5);
        near(theirs.stats().mos, 2.9, 0.5);
        assert!(ours.one_way().is_some_and(|one_way| one_way.abs_diff(delay) < ms(1)));
        assert_eq!(theirs.stats().lost, 40);
    }

    #[test]
    fn reports_come_every_five_seconds_on_average() {
        let t0 = Instant::now();
        let (mut session, mut now, mut datagram) = (session(t0), t0, Vec::new());
        for _ in 0..200 {
            let wait = session.deadline() - now;
            assert!((ms(2500)..ms(7500)).contains(&wait));
            now = session.deadline();
            assert!(session.write_rtcp(now, false, &mut datagram));
        }
        let mean = (now - t0) / 200;
        assert!((ms(4600)..ms(5400)).contains(&mean), "{mean:?}");
    }

    #[test]
    fn an_encrypted_session_takes_only_what_is_sealed() {
        let t0 = Instant::now();
        let (a, b) = (SrtpKey::new([1; 30]), SrtpKey::new([2; 30]));
        let with = |local: &SrtpKey, remote: &SrtpKey| {
            let keys = SrtpKeys { suite: SrtpSuite::HmacSha1_80, local: local.clone(), remote: remote.clone() };
            Session::new(t0, MediaPlan { srtp: Some(keys), ..plan() }, seed(3)).expect("good keys")
        };
        let (mut ours, mut theirs, mut datagram) = (with(&a, &b), with(&b, &a), Vec::new());
        assert!(ours.write_audio(t0, &[0xD5; 160], &mut datagram));
        assert_eq!(datagram.len(), 12 + 160 + 10);
        assert_eq!(placed(&mut theirs, t0, &datagram), [0]);
        assert!(feed(&mut theirs, t0, &audio(3, 1, 1)).is_empty(), "plain");
        assert!(ours.write_rtcp(t0, true, &mut datagram) && theirs.on_rtcp(t0, &datagram));
        assert!(!theirs.on_rtcp(t0, &[0x80, 201, 0, 1, 0, 0, 0, 1]));
        // The same keys again do not start their counts anew: a replay is still seen.
        theirs.adopt(theirs.plan().clone()).expect("good keys");
        assert!(!theirs.on_rtcp(t0, &datagram));
    }

    #[test]
    fn ntp_counts_from_1900() {
        assert_eq!(ntp(Duration::ZERO) >> 32, 2_208_988_800);
        assert_eq!(ntp(ms(500)) as u32, 1 << 31);
    }

    proptest! {
        #[test]
        fn however_packets_are_shuffled_each_is_placed_once_and_where_it_belongs(
            first: u16, base: u32, order in prop::collection::vec((0_u32..60, 0_u64..40), 1..150),
        ) {
            let t0 = Instant::now();
            let mut session = session(t0);
            let (mut placed_at, mut zero) = (std::collections::BTreeMap::new(), None);
            for (n, late) in order {
                let bytes = audio(9, first.wrapping_add(n as u16), base.wrapping_add(160 * n));
                let zero = *zero.get_or_insert(n);
                for at in placed(&mut session, t0 + ms(u64::from(20 * n) + late), &bytes) {
                    prop_assert_eq!(at, u64::from(20 * (n - zero)));
                    prop_assert!(placed_at.insert(n, at).is_none(), "{} twice", n);
                }
            }
            let stats = session.stats();
            prop_assert!(stats.received as usize >= placed_at.len());
        }

        #[test]
        fn any_bytes_are_survived(datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..20)) {
            let t0 = Instant::now();
            let mut session = session(t0);
            for (n, mut bytes) in datagrams.into_iter().enumerate() {
                if let Some(first) = bytes.first_mut() {
                    *first = 0x80 | *first & 0x3F;
                }
                let now = t0 + ms(7 * n as u64);
                for event in feed(&mut session, now, &bytes) {
                    if let RtpEvent::Packet(packet) = event {
                        prop_assert!(!packet.duration().is_zero());
                    }
                }
                session.on_rtcp(now, &bytes);
                session.write_rtcp(now, false, &mut Vec::new());
            }
        }
    }
}
