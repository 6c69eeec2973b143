//! A simulated caller with a telephone: INVITE, then the fixture's turns as RTP, open loop as in `caller.rs`, and the same
//! figures from what it hears. The telephone has no jitter buffer: what comes in order is heard at once, what comes late is
//! not, and the silence that the server fills its pauses with is the caller's own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until, timeout};

use crate::load::caller::{
    CallerConfig, CallerEvent, CallerReport, Ending, Recording, closed, is_over, samples_in, tell,
};
use crate::load::ear::Ear;
use crate::load::fixture::PER_MS;
use crate::load::measure::{measure, ms};
use crate::load::mouth::{FRAME_LEN, Mouth};
use crate::load::phones::{CallCommand, CallEvent, Cause, Dial, Ended, PhoneCall, Phones, Side};
use crate::load::rtp::{Codec, RtpReader, RtpWriter, is_silence, packet_bytes};
use crate::load::sdp;
use crate::protocol::sip::digest::Credentials;
use crate::protocol::sip::value::{NameAddr, SipUri, host_of};

/// Datagrams read before the next frame gets its turn.
const BATCH: usize = 32;
/// Longer datagrams are cut, and then are no RTP of ours.
const MAX_DATAGRAM: usize = 2_048;

/// How a telephone calls.
#[derive(Clone)]
pub struct SipWay {
    pub phones: Phones,
    pub uri: SipUri,
    /// For whoever asks for them.
    pub credentials: Option<Credentials>,
    pub codec: Codec,
    /// More header fields of the INVITE.
    pub headers: Vec<(String, String)>,
    /// After the answer, so long nothing is said and nothing heard: a PBX that calls the other side meanwhile.
    pub hold: Duration,
}

impl SipWay {
    /// PCMU, nothing special.
    pub fn new(phones: Phones, uri: SipUri) -> Self {
        Self { phones, uri, credentials: None, codec: Codec::Pcmu, headers: Vec::new(), hold: Duration::ZERO }
    }
}

pub(super) async fn call(config: &CallerConfig, way: &SipWay, call_sid: String) -> CallerReport {
    let began = Instant::now();
    let answered = tokio::select! {
        biased;
        () = config.hang_up.cancelled() => Err(Ending::Cancelled),
        answered = timeout(config.connect_limit, dial(config, way)) => {
            answered.unwrap_or_else(|_| Err(Ending::ConnectFailed("no answer in time".into())))
        }
    };
    let line = match answered {
        Ok(line) => line,
        Err(ending) => return CallerReport::unconnected(config, call_sid, ending),
    };
    let since = |from: Instant| Some(line.answered.saturating_duration_since(from).as_secs_f64() * 1_000.0);
    let (connect_ms, invite_ms) = (since(began), since(line.call.dialled));
    tell(config, CallerEvent::Connected { call_sid: call_sid.clone() });
    let report = match config.call_limit.is_zero() {
        true => CallerReport::unconnected(config, call_sid, Ending::CallerHungUp),
        false => line.run(config, way.hold, call_sid).await,
    };
    CallerReport { connect_ms, invite_ms, ..report }
}

/// Calls until somebody answers with a stream that we can speak.
async fn dial(config: &CallerConfig, way: &SipWay) -> Result<Line, Ending> {
    let failed = |why: String| Ending::ConnectFailed(why);
    let own_ip = way.phones.own_ip();
    let socket = UdpSocket::bind((own_ip, 0)).await.map_err(|error| failed(error.to_string()))?;
    let own = socket.local_addr().map_err(|error| failed(error.to_string()))?;
    let offer = sdp::offer(own, way.codec);
    let from = SipUri::new(Some(&config.from), host_of(own_ip), Some(way.phones.addr().port()));
    let dial = Dial {
        uri: way.uri.clone(),
        from: NameAddr::new(from),
        proxy: None,
        credentials: way.credentials.clone(),
        contact: None,
        headers: way.headers.clone(),
        body: offer.clone().into(),
        ring_limit: Some(config.connect_limit),
    };
    let mut call = way.phones.dial(dial).await.map_err(|error| failed(error.to_string()))?;
    loop {
        match call.recv().await {
            Some((answered, CallEvent::Answered { answer })) => {
                let (remote, codec) =
                    answer.and_then(|body| sdp::read(&body)).ok_or_else(|| failed("answered without G.711".into()))?;
                return Ok(Line::new(config, call, answered, socket, remote, codec, offer));
            }
            Some((_, CallEvent::Ended(ended))) => return Err(failed(refusal(&ended))),
            Some(_) => {}
            None => return Err(failed("the telephones are gone".into())),
        }
    }
}

/// `486 Busy Here`, or what else kept it from being a call.
fn refusal(ended: &Ended) -> String {
    match ended.status {
        Some(status) => format!("{status} {}", ended.text).trim_end().to_owned(),
        None => ended.cause.label().to_owned(),
    }
}

/// A call that is answered.
struct Line {
    call: PhoneCall,
    answered: Instant,
    socket: UdpSocket,
    remote: SocketAddr,
    /// Said again when the server asks.
    sdp: String,
    writer: RtpWriter,
    reader: RtpReader,
    /// When the first frame begins.
    started: Instant,
    ear: Ear,
    mouth: Mouth,
    frames: u64,
    sent: u64,
    lateness_us: Vec<u32>,
    codes: Vec<u8>,
    datagram: Vec<u8>,
    buffer: Vec<u8>,
}

impl Line {
    fn new(
        config: &CallerConfig,
        call: PhoneCall,
        answered: Instant,
        socket: UdpSocket,
        remote: SocketAddr,
        codec: Codec,
        sdp: String,
    ) -> Self {
        let mut rng = rand::rng();
        Self {
            call,
            answered,
            socket,
            remote,
            sdp,
            writer: RtpWriter::new(codec, rng.random(), rng.random(), rng.random()),
            reader: RtpReader::new(codec),
            started: answered,
            ear: Ear::new(config.record),
            mouth: Mouth::new(Arc::clone(&config.fixture), config.record),
            frames: 0,
            sent: 0,
            lateness_us: Vec::new(),
            codes: Vec::with_capacity(FRAME_LEN as usize),
            datagram: Vec::with_capacity(packet_bytes(FRAME_LEN as usize)),
            buffer: vec![0; MAX_DATAGRAM],
        }
    }

    async fn run(mut self, config: &CallerConfig, hold: Duration, call_sid: String) -> CallerReport {
        let ending = match self.talk(config, Some(self.answered + hold).filter(|_| !hold.is_zero())).await {
            Some(ending) => ending,
            None => {
                // The stream goes on; the clock of the conversation begins here.
                (self.started, self.frames) = (Instant::now(), 0);
                self.talk(config, None).await.unwrap_or(Ending::CallerHungUp)
            }
        };
        let end = self.samples(Instant::now());
        self.ear.advance(end, &mut Vec::new());
        let (played, caller) = self.mouth.finish();
        let (heard, agent) = self.ear.finish();
        CallerReport {
            rtp: Some(self.reader.finish(self.sent)),
            duration_ms: ms(end),
            figures: measure(&config.fixture, &played, &heard, end),
            dropped_samples: heard.dropped_samples,
            lateness_us: self.lateness_us,
            recording: caller.zip(agent).map(|(caller, agent)| Recording { caller, agent }),
            ..CallerReport::unconnected(config, call_sid, ending)
        }
        // Dropping the call hangs up.
    }

    /// From the first frame to the reason why there is no further one; with `until`, silence up to then, and `None`.
    async fn talk(&mut self, config: &CallerConfig, until: Option<Instant>) -> Option<Ending> {
        loop {
            if until.is_some_and(|until| until <= Instant::now()) {
                return None;
            }
            let due = self.started + Duration::from_micros((self.frames + 1) * FRAME_LEN * 1_000 / PER_MS);
            tokio::select! {
                biased;
                () = config.hang_up.cancelled() => return Some(Ending::Cancelled),
                () = sleep_until(due) => self.on_time(Instant::now(), config, until.is_some()),
                event = self.call.recv() => {
                    if let Some(ending) = self.on_event(event).await {
                        return Some(ending);
                    }
                }
                readable = self.socket.readable() => {
                    if let Err(error) = readable {
                        return Some(Ending::ConnectionLost(error.kind().to_string()));
                    }
                    self.hear(until.is_some());
                }
            }
            if until.is_none()
                && let Some(ending) = is_over(config, &self.mouth, &self.ear)
            {
                return Some(ending);
            }
        }
    }

    /// Sends every frame that is due; each is composed from what the ear had heard at the time it was due.
    fn on_time(&mut self, now: Instant, config: &CallerConfig, held: bool) {
        const SILENCE: [i16; FRAME_LEN as usize] = [0; FRAME_LEN as usize];
        let at = self.samples(now);
        while (self.frames + 1) * FRAME_LEN <= at {
            let from = self.frames * FRAME_LEN;
            let due = from + FRAME_LEN;
            let mut began = None;
            if held {
                self.writer.packet(&SILENCE, &mut self.datagram);
            } else {
                self.ear.advance(due, &mut Vec::new());
                let (frame, turn) = self.mouth.frame(from, &self.ear);
                began = turn;
                self.writer.packet(frame, &mut self.datagram);
            }
            // What the socket does not take is lost, as on any line; the server counts it.
            self.sent += u64::from(self.socket.try_send_to(&self.datagram, self.remote).is_ok());
            let late = now.saturating_duration_since(self.started + Duration::from_micros(due * 1_000 / PER_MS));
            self.lateness_us.push(late.as_micros().min(u128::from(u32::MAX)) as u32);
            self.frames += 1;
            if let Some(turn) = began {
                tell(config, CallerEvent::TurnBegan { turn, at_ms: from / PER_MS });
            }
        }
    }

    fn hear(&mut self, held: bool) {
        for _ in 0..BATCH {
            let Ok((length, source)) = self.socket.try_recv_from(&mut self.buffer) else { return };
            if source.ip() != self.remote.ip() {
                continue;
            }
            let now = Instant::now();
            let at = now.saturating_duration_since(self.answered);
            self.reader.read(at, &self.buffer[..length], &mut self.codes);
            if held || self.codes.is_empty() || is_silence(&self.codes) {
                continue;
            }
            let heard = self.samples(now);
            self.ear.advance(heard, &mut Vec::new());
            self.ear.append(&self.codes);
        }
    }

    async fn on_event(&mut self, event: Option<(Instant, CallEvent)>) -> Option<Ending> {
        match event {
            Some((_, CallEvent::Ended(ended))) => Some(match (ended.by, ended.cause) {
                (Side::Peer, Cause::HungUp) => closed(&self.mouth),
                _ => Ending::ConnectionLost(ended.cause.label().into()),
            }),
            Some((_, CallEvent::Offer { .. } | CallEvent::OfferWanted)) => {
                self.call.command(CallCommand::AnswerOffer { body: self.sdp.clone().into() }).await;
                None
            }
            Some((_, CallEvent::Refer { .. })) => {
                self.call.command(CallCommand::AnswerRefer { accept: false }).await;
                None
            }
            Some(_) => None,
            None => Some(Ending::ConnectionLost("the telephones are gone".into())),
        }
    }

    fn samples(&self, now: Instant) -> u64 {
        samples_in(now.saturating_duration_since(self.started))
    }
}
