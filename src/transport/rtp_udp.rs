//! The task that owns the media sockets of one SIP call: datagrams become the leg's events, the leg's commands become
//! datagrams that leave on absolute deadlines, RTCP goes both ways. Whom to believe is `latch.rs`, what to send
//! `outgoing.rs`, what bytes mean `protocol::rtp`; how the call began and what was agreed on is signalling's
//! (`transport/sip.rs`).
//!
//! One packet a system call. Each call has sockets of its own and sends and gets one packet in 20 ms, so that `sendmmsg`
//! and `recvmmsg` would find one packet in a batch. A socket shared by all calls would fill batches: measured on loopback
//! (172 bytes, a loaded two-core machine) a packet out costs 3.9 µs alone and 2.2 µs in batches of 8, one in 1.0 and
//! 0.4 µs, which for 200 calls is 2 % of a core, and one slow call would be everybody's.

pub mod config;
mod latch;
mod outgoing;
pub mod ports;
pub mod tap;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use metrics::{counter, histogram};
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::protocol::rtp::keys::KeyWriter;
use crate::protocol::rtp::packet::{MAX_DATAGRAM, is_rtcp};
use crate::protocol::rtp::plan::MediaPlan;
use crate::protocol::rtp::session::{RtpEvent, Session, SessionSeed};
use crate::protocol::rtp::srtp::SrtpError;
use crate::protocol::rtp::stats::RtpStats;
use crate::telephony::{CallEnd, EndReason, Party};
use crate::transport::leg::{Leg, LegCommand, LegEvent, LegSide};
use config::RtpConfig;
use latch::Latch;
use outgoing::{Filled, Outgoing};
use ports::RtpSocket;
use tap::Tap;

/// Changes that signalling asks for; more at once than a dialog can have under way.
const CONTROLS: usize = 8;
/// Datagrams read in one turn of the loop before the clock is looked at again.
const BURST: usize = 32;
/// Packets of a standstill that are made up for; beyond them the stream's time goes on without.
const MAKE_UP: u32 = 10;
/// Without `send_silence`, a packet at least so often keeps the path open (RFC 6263 asks for 15 s or less).
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Keys that wait for room in the call's queue.
const MAX_KEYS: usize = 32;
/// How often the statistics that others see are renewed.
const STATS_EVERY: Duration = Duration::from_secs(1);
/// How long a call may leave the end of its leg waiting in a full queue.
const EVENT_LIMIT: Duration = Duration::from_secs(5);
/// Errors of a socket in a row: it is gone. Single ones are ICMP's news about the peer.
const MAX_ERRORS: u32 = 100;

/// Media of one call, bound and agreed on, not yet carried.
pub struct RtpStream {
    socket: RtpSocket,
    session: Session,
    config: RtpConfig,
    control: mpsc::Receiver<RtpControl>,
    stats: watch::Sender<RtpStats>,
}

/// Signalling's hold on a running stream. Dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct RtpHandle {
    control: mpsc::Sender<RtpControl>,
    stats: watch::Receiver<RtpStats>,
}

#[derive(Debug)]
enum RtpControl {
    Adopt(Box<MediaPlan>),
    Tap(Option<Tap>),
    End(CallEnd),
}

/// What was carried.
#[derive(Clone, Debug)]
pub struct RtpCarried {
    /// `None` when our side hung up.
    pub end: Option<CallEnd>,
    pub stats: RtpStats,
    /// Packets, keys and marks that the call did not take in time, and sound that it gave too fast.
    pub dropped: u64,
    /// Packets of sources that were not believed.
    pub strangers: u64,
}

impl RtpStream {
    /// `plan`: what offer and answer agreed on. What came to the ports before is thrown away.
    pub fn new(
        socket: RtpSocket,
        plan: MediaPlan,
        seed: SessionSeed,
        config: RtpConfig,
    ) -> Result<(Self, RtpHandle), SrtpError> {
        socket.drain();
        let session = Session::new(Instant::now().into_std(), plan, seed)?;
        let (control_tx, control) = mpsc::channel(CONTROLS);
        let (stats, stats_rx) = watch::channel(RtpStats::default());
        let stream = Self { socket, session, config, control, stats };
        Ok((stream, RtpHandle { control: control_tx, stats: stats_rx }))
    }

    /// Both ends of the leg that this stream can carry: codec, jitter buffer, and whether keys must be heard in the sound.
    pub fn leg(&self) -> (Leg, LegSide) {
        let plan = self.session.plan();
        let (mut leg, side) = Leg::pair(plan.codec);
        leg.in_band_keys = plan.keys.is_none();
        leg.presses_keys = true;
        leg.jitter = Some(self.config.jitter());
        (leg, side)
    }

    /// Carries the leg until either side ends it; when this returns, the leg knows and the ports are at rest.
    pub async fn carry(self, side: LegSide) -> RtpCarried {
        let (carried, stream) = self.carry_leg(side).await;
        stream.close();
        carried
    }

    /// As [`RtpStream::carry`], and gives the stream back: it may carry another leg, as the peer's same stream, or be
    /// closed.
    pub async fn carry_leg(self, mut side: LegSide) -> (RtpCarried, Self) {
        let Self { socket, session, config, mut control, stats } = self;
        let mut carrier = Carrier::new(socket, session, config, stats);
        let over = carrier.relay(&mut side, &mut control).await;
        let end = match over {
            Over::HungUp => None,
            Over::Ended(end) => Some(end),
        };
        if let Some(end) = end {
            let told = timeout(EVENT_LIMIT, side.events.send(LegEvent::Ended(end))).await;
            if told.is_err() {
                // The queue is full and nobody reads it; the token is what no queue can lose.
                side.hangup.cancel();
            }
        }
        let carried = RtpCarried {
            end,
            stats: carrier.session.stats(),
            dropped: carrier.dropped + carrier.outgoing.dropped(),
            strangers: carrier.latch.strangers(),
        };
        measure(&carried);
        carrier.stats.send_replace(carried.stats.clone());
        debug!(?carried, "media over");
        let Carrier { socket, session, config, stats, .. } = carrier;
        (carried, Self { socket, session, config, control, stats })
    }

    /// Says goodbye by RTCP; the ports are at rest then.
    pub fn close(self) {
        let Self { socket, session, config, stats, .. } = self;
        Carrier::new(socket, session, config, stats).send_rtcp(Instant::now(), true);
    }
}

impl RtpHandle {
    /// Goes on with what a later offer and answer agreed on: another codec, address or key, hold or resume. False when
    /// the stream is over.
    pub async fn adopt(&self, plan: MediaPlan) -> bool {
        self.control.send(RtpControl::Adopt(Box::new(plan))).await.is_ok()
    }

    /// Ends the leg: the peer hung up. The call is told `end`.
    pub async fn end(&self, end: CallEnd) {
        // Over already is as good.
        let _ = self.control.send(RtpControl::End(end)).await;
    }

    /// Copies every datagram from here on to `tap`, or stops doing so.
    pub async fn tap(&self, tap: Option<Tap>) -> bool {
        self.control.send(RtpControl::Tap(tap)).await.is_ok()
    }

    /// The facts so far, a second old at most.
    pub fn stats(&self) -> RtpStats {
        self.stats.borrow().clone()
    }
}

/// What a stream was like, for all streams together.
fn measure(carried: &RtpCarried) {
    let stats = &carried.stats;
    for (direction, packets) in [("in", stats.received), ("out", stats.sent)] {
        counter!("offhook_rtp_packets_total", "direction" => direction).increment(packets);
    }
    counter!("offhook_rtp_lost_packets_total").increment(stats.lost);
    counter!("offhook_rtp_stranger_packets_total").increment(carried.strangers);
    if stats.received > 0 {
        histogram!("offhook_rtp_loss_ratio").record(stats.lost as f64 / (stats.received + stats.lost) as f64);
        histogram!("offhook_rtp_jitter_seconds").record(stats.highest_jitter_ms / 1000.0);
    }
    if carried.end.is_some_and(|end| end.reason == EndReason::NoMedia) {
        counter!("offhook_rtp_timeouts_total").increment(1);
    }
}

enum Over {
    HungUp,
    Ended(CallEnd),
}

const fn lost(reason: EndReason) -> Over {
    Over::Ended(CallEnd::new(Party::Carrier, reason))
}

/// Everything that the task works with.
struct Carrier {
    socket: RtpSocket,
    session: Session,
    latch: Latch,
    outgoing: Outgoing,
    key_writer: KeyWriter,
    /// Keys to press, each behind the sound that came before it.
    to_press: VecDeque<(u64, char)>,
    config: RtpConfig,
    tap: Option<Tap>,
    /// RTCP's source, once it came from the host that media comes from.
    rtcp_from: Option<SocketAddr>,
    /// When the next packet leaves.
    slot: Instant,
    last_sent: Instant,
    last_media: Instant,
    stats_at: Instant,
    stats: watch::Sender<RtpStats>,
    /// Keys that the call has not taken yet.
    keys: VecDeque<char>,
    /// What the call was told last: whether it is held, and whether keys are in the sound.
    told_held: bool,
    told_in_band: bool,
    events: Vec<RtpEvent>,
    payload: Vec<u8>,
    datagram: Vec<u8>,
    errors: u32,
    dropped: u64,
}

impl Carrier {
    fn new(socket: RtpSocket, session: Session, config: RtpConfig, stats: watch::Sender<RtpStats>) -> Self {
        let now = Instant::now();
        let plan = session.plan();
        let (key, pause) = (Duration::from_millis(config.key_ms), Duration::from_millis(config.key_pause_ms));
        let told_in_band = plan.keys.is_none();
        Self {
            latch: Latch::new(config.symmetric, plan.remote),
            outgoing: Outgoing::new(plan, key, pause),
            key_writer: KeyWriter::new(key, pause),
            to_press: VecDeque::with_capacity(MAX_KEYS),
            socket,
            session,
            config,
            tap: None,
            rtcp_from: None,
            slot: now,
            last_sent: now,
            last_media: now,
            stats_at: now + STATS_EVERY,
            stats,
            keys: VecDeque::with_capacity(MAX_KEYS),
            told_held: false,
            told_in_band,
            events: Vec::with_capacity(8),
            payload: Vec::with_capacity(MAX_DATAGRAM),
            datagram: Vec::with_capacity(MAX_DATAGRAM),
            errors: 0,
            dropped: 0,
        }
    }

    async fn relay(&mut self, side: &mut LegSide, control: &mut mpsc::Receiver<RtpControl>) -> Over {
        let (mut rtp, mut rtcp) = ([0; MAX_DATAGRAM], [0; MAX_DATAGRAM]);
        let (mut control_open, mut commands_open) = (true, true);
        loop {
            let heard = self.outgoing.deadline().map_or(self.slot, |at| Instant::from_std(at).min(self.slot));
            tokio::select! {
                biased;
                () = side.hangup.cancelled() => return Over::HungUp,
                asked = control.recv(), if control_open => match asked {
                    Some(RtpControl::Adopt(plan)) => if let Err(over) = self.adopt(*plan) {
                        return over;
                    },
                    Some(RtpControl::Tap(tap)) => self.tap = tap,
                    Some(RtpControl::End(end)) => return Over::Ended(end),
                    None => control_open = false,
                },
                () = sleep_until(heard) => if let Err(over) = self.on_clock(side) {
                    return over;
                },
                command = side.commands.recv(), if commands_open => match command {
                    Some(command) => self.on_command(command),
                    None => commands_open = false,
                },
                received = self.socket.rtp.recv_from(&mut rtp) => {
                    let mut received = received;
                    for _ in 0..BURST {
                        match received {
                            Ok((length, from)) => {
                                self.errors = 0;
                                if let Err(over) = self.on_media(&rtp[..length], from, side) {
                                    return over;
                                }
                            }
                            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                            Err(_) => {
                                if self.on_error() {
                                    return lost(EndReason::ConnectionLost);
                                }
                                break;
                            }
                        }
                        received = self.socket.rtp.try_recv_from(&mut rtp);
                    }
                }
                received = self.socket.rtcp.recv_from(&mut rtcp) => match received {
                    Ok((length, from)) => self.on_rtcp(&rtcp[..length], from),
                    Err(_) => if self.on_error() {
                        return lost(EndReason::ConnectionLost);
                    },
                },
            }
        }
    }

    fn on_error(&mut self) -> bool {
        self.errors += 1;
        self.errors > MAX_ERRORS
    }

    fn adopt(&mut self, plan: MediaPlan) -> Result<(), Over> {
        info!(codec = ?plan.codec, held = plan.is_held(), remote = ?plan.remote, "media changed");
        self.latch.signalled(plan.remote);
        self.outgoing.adopt(&plan);
        // A stream that resumes has all its patience again.
        self.last_media = Instant::now();
        self.rtcp_from = None;
        self.session.adopt(plan).map_err(|_| lost(EndReason::ProtocolError))
    }

    fn on_command(&mut self, command: LegCommand) {
        let now = Instant::now().into_std();
        match command {
            LegCommand::Audio(packet) => self.outgoing.push(now, &packet),
            LegCommand::Mark(mark) => self.outgoing.mark(mark),
            LegCommand::Clear => self.outgoing.clear(),
            LegCommand::Key(key) => {
                if self.to_press.len() < MAX_KEYS {
                    self.to_press.push_back((self.outgoing.place(), key));
                } else {
                    self.dropped += 1;
                }
            }
        }
    }

    fn on_media(&mut self, bytes: &[u8], from: SocketAddr, side: &LegSide) -> Result<(), Over> {
        if is_rtcp(bytes) {
            self.on_rtcp(bytes, from);
            return Ok(());
        }
        self.copy(true, from, false, bytes);
        let now = Instant::now();
        let latch = &mut self.latch;
        let before = latch.believed();
        let at = now.into_std();
        let taken = self.session.on_rtp(at, bytes, |claim| latch.admit(at, from, claim), &mut self.events);
        if !taken {
            return Ok(());
        }
        self.last_media = now;
        if before != Some(from) {
            info!(signalled = ?self.session.plan().remote, "media comes from a source that is believed");
        }
        for event in self.events.drain(..) {
            match event {
                RtpEvent::Packet(packet) => match side.events.try_send(LegEvent::Packet(packet)) {
                    Ok(()) => {}
                    Err(TrySendError::Full(_)) => {
                        self.dropped += 1;
                        counter!("offhook_frames_dropped_total", "where" => "leg_in").increment(1);
                    }
                    Err(TrySendError::Closed(_)) => return Err(Over::HungUp),
                },
                RtpEvent::Key(_) if self.keys.len() == MAX_KEYS => self.dropped += 1,
                RtpEvent::Key(key) => self.keys.push_back(key),
            }
        }
        self.tell_keys(side)
    }

    fn on_rtcp(&mut self, bytes: &[u8], from: SocketAddr) {
        self.copy(true, from, true, bytes);
        // Reports change nothing but figures; they must come from the host that media comes from all the same.
        let host = self.latch.believed().or(self.session.plan().remote).map(|address| address.ip());
        if host != Some(from.ip()) {
            return;
        }
        if self.session.on_rtcp(Instant::now().into_std(), bytes) && self.config.symmetric {
            self.rtcp_from = Some(from);
        }
    }

    /// Keys wait where packets are dropped.
    fn tell_keys(&mut self, side: &LegSide) -> Result<(), Over> {
        while let Some(&key) = self.keys.front() {
            match side.events.try_send(LegEvent::Dtmf(key)) {
                Ok(()) => drop(self.keys.pop_front()),
                Err(TrySendError::Full(_)) => break,
                Err(TrySendError::Closed(_)) => return Err(Over::HungUp),
            }
        }
        Ok(())
    }

    /// What a later agreement has changed for the call; told again where its queue was full.
    fn tell_changes(&mut self, side: &LegSide) -> Result<(), Over> {
        let plan = self.session.plan();
        let (held, in_band) = (plan.is_held(), plan.keys.is_none());
        let tell = |event: LegEvent| match side.events.try_send(event) {
            Ok(()) => Ok(true),
            Err(TrySendError::Full(_)) => Ok(false),
            Err(TrySendError::Closed(_)) => Err(Over::HungUp),
        };
        if held != self.told_held && tell(LegEvent::Held(held))? {
            self.told_held = held;
        }
        if in_band != self.told_in_band && tell(LegEvent::InBandKeys(in_band))? {
            self.told_in_band = in_band;
        }
        Ok(())
    }

    /// Whatever is due by now.
    fn on_clock(&mut self, side: &LegSide) -> Result<(), Over> {
        let now = Instant::now();
        let at = now.into_std();
        self.tell_changes(side)?;
        while let Some(mark) = self.outgoing.heard(at) {
            match side.events.try_send(LegEvent::Played { mark }) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => {
                    self.outgoing.put_back(at, mark);
                    break;
                }
                Err(TrySendError::Closed(_)) => return Err(Over::HungUp),
            }
        }
        let ptime = self.session.plan().ptime;
        let mut made_up = 0;
        while self.slot <= now {
            if made_up < MAKE_UP {
                self.send_packet(now);
            } else {
                self.session.skip(at);
            }
            made_up += 1;
            self.slot += ptime;
        }
        self.tell_keys(side)?;
        if at >= self.session.deadline() {
            self.send_rtcp(now, false);
        }
        if now >= self.stats_at {
            self.stats_at = now + STATS_EVERY;
            self.stats.send_replace(self.session.stats());
        }
        let patience = self.config.media_timeout().filter(|_| !self.session.plan().is_held());
        if patience.is_some_and(|patience| now.saturating_duration_since(self.last_media) >= patience) {
            warn!(received = self.session.stats().received, "no media from the peer");
            return Err(lost(EndReason::NoMedia));
        }
        Ok(())
    }

    /// One packet of the stream: a key, sound, silence, or nothing.
    fn send_packet(&mut self, now: Instant) {
        let at = now.into_std();
        let (ptime, sends) = (self.session.plan().ptime, self.session.plan().sends);
        if sends && let Some((_, key)) = self.to_press.pop_front_if(|(place, _)| self.outgoing.has_left(*place)) {
            let taken = match self.session.plan().keys {
                Some(_) => self.key_writer.press(key),
                None => self.outgoing.press(key),
            };
            self.dropped += u64::from(!taken);
        }
        if let Some(keys) = self.session.plan().keys.filter(|_| sends)
            && let Some(key) = self.key_writer.next(self.session.timestamp(), ptime, keys.clock)
        {
            if self.session.write_key(at, key, &mut self.datagram) {
                self.transmit(now);
            }
            return;
        }
        let mut payload = std::mem::take(&mut self.payload);
        let filled = self.outgoing.next(at, &mut payload);
        let kept_open = self.config.send_silence || now.saturating_duration_since(self.last_sent) >= KEEP_ALIVE;
        // On hold the sound's time passes unheard, so that its marks come and the call does not stand still.
        if sends && (filled == Filled::Sound || kept_open) {
            if self.session.write_audio(at, &payload, &mut self.datagram) {
                self.transmit(now);
            }
        } else {
            self.session.skip(at);
        }
        self.payload = payload;
        self.outgoing.sent(at, self.session.one_way().unwrap_or_default());
    }

    fn transmit(&mut self, now: Instant) {
        let Some(to) = self.latch.target() else { return };
        self.last_sent = now;
        self.copy(false, to, false, &self.datagram);
        send(&self.socket.rtp, &self.datagram, to);
    }

    fn send_rtcp(&mut self, now: Instant, bye: bool) {
        if !self.session.write_rtcp(now.into_std(), bye, &mut self.datagram) {
            return;
        }
        let plan = self.session.plan();
        let (socket, to) = if plan.rtcp_mux {
            (&self.socket.rtp, self.latch.target())
        } else {
            let learnt = self.latch.target().map(|target| target.ip()).zip(plan.remote_rtcp);
            let told = learnt.map(|(host, signalled)| SocketAddr::new(host, signalled.port()));
            (&self.socket.rtcp, self.rtcp_from.or(told))
        };
        if let Some(to) = to {
            self.copy(false, to, true, &self.datagram);
            send(socket, &self.datagram, to);
        }
    }

    fn copy(&self, incoming: bool, peer: SocketAddr, rtcp: bool, bytes: &[u8]) {
        if let Some(tap) = &self.tap {
            let port = if rtcp && !self.session.plan().rtcp_mux { self.socket.rtcp_port() } else { self.socket.port() };
            tap.copy(incoming, port, peer, bytes);
        }
    }
}

/// A full socket buffer or an unreachable peer costs the packet, as the network may. Asks the kernel and not tokio, which
/// takes a socket for unwritable until its first turn.
fn send(socket: &UdpSocket, bytes: &[u8], to: SocketAddr) {
    if SockRef::from(socket).send_to(bytes, &to.into()).is_err() {
        counter!("offhook_frames_dropped_total", "where" => "rtp_out").increment(1);
    }
}
