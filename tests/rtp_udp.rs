//! Media between real sockets on this machine: what one stream says the other hears, also through a network that loses,
//! delays, reorders and doubles packets; and what strangers, silence, hold and renegotiation do to a stream.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use offhook::media::codec::{Decoder, Encoder};
use offhook::media::dtmf::{DtmfDetector, append_tone};
use offhook::media::frame::{FRAME, MediaTime, SampleRate, level_dbfs};
use offhook::media::jitter::{JitterBuffer, JitterConfig, Pull};
use offhook::media::packet::{ClockRate, Codec, Packet};
use offhook::media::resample::Resampler;
use offhook::protocol::rtp::packet::{RtpPacket, is_rtcp};
use offhook::protocol::rtp::plan::{KeyFormat, MediaPlan, SrtpKey, SrtpKeys, SrtpSuite};
use offhook::protocol::rtp::rtcp::{self, Report};
use offhook::protocol::rtp::session::SessionSeed;
use offhook::telephony::{CallEnd, EndReason, Party};
use offhook::transport::leg::{Leg, LegCommand, LegEvent};
use offhook::transport::rtp_udp::config::RtpConfig;
use offhook::transport::rtp_udp::ports::{RtpPorts, RtpSocket};
use offhook::transport::rtp_udp::tap::Tap;
use offhook::transport::rtp_udp::{RtpCarried, RtpHandle, RtpStream};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, timeout};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Nothing on this machine takes so long.
const PATIENCE: Duration = Duration::from_secs(10);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn config() -> RtpConfig {
    RtpConfig { listen: HERE, port_rest_s: 0, ..RtpConfig::default() }
}

/// A pool of one pair, each with ports of its own: tests run side by side.
fn ports() -> RtpPorts {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 12_000 + (std::process::id() % 400) as u16 * 10 + NEXT.fetch_add(2, Ordering::Relaxed) % 4000;
    let range = format!("{}-{}", first & !1, (first & !1) + 199);
    RtpPorts::new(&RtpConfig { rtp_ports: range, ..config() }, 0).expect("a good range")
}

fn socket() -> RtpSocket {
    ports().open().expect("a free pair")
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::new(HERE, port)
}

fn plan(codec: Codec, remote: u16) -> MediaPlan {
    MediaPlan {
        remote: Some(at(remote)),
        remote_rtcp: Some(at(remote)),
        rtcp_mux: true,
        codec,
        payload_type: 96,
        accepts: vec![(96, codec)],
        keys: Some(KeyFormat { send: 101, receive: 101, clock: ClockRate::HZ_8000 }),
        comfort_noise: Some(13),
        ptime: FRAME,
        sends: true,
        receives: true,
        srtp: None,
    }
}

/// A stream that is being carried.
struct Side {
    leg: Leg,
    handle: RtpHandle,
    task: JoinHandle<RtpCarried>,
}

fn carry(socket: RtpSocket, plan: MediaPlan, config: RtpConfig) -> Side {
    let seed = SessionSeed {
        ssrc: u32::from(socket.port()),
        sequence: 65_500,
        timestamp: u32::MAX - 1000,
        ntp: 1 << 40,
        cname: "test".into(),
    };
    let (stream, handle) = RtpStream::new(socket, plan, seed, config).expect("good keys");
    let (leg, side) = stream.leg();
    Side { leg, handle, task: tokio::spawn(stream.carry(side)) }
}

/// The keys' tones, one after the other, 160 ms and as long a pause each, encoded by 20 ms.
fn tones(codec: Codec, keys: &str) -> Vec<Packet> {
    let (rate, mut pcm) = (codec.rate(), Vec::new());
    for key in keys.chars() {
        append_tone(key, rate, rate.frame_len() * 8, -12.0, &mut pcm);
        pcm.resize(pcm.len() + rate.frame_len() * 8, 0);
    }
    let (mut encoder, mut bytes) = (Encoder::new(codec), Vec::new());
    let frames = pcm.chunks_exact(rate.frame_len()).enumerate();
    frames
        .map(|(n, frame)| {
            encoder.encode(frame, &mut bytes);
            Packet::new(codec, MediaTime::from_millis(20 * n as u64), &bytes).expect("20 ms fit")
        })
        .collect()
}

/// Says packets in real time, 60 ms ahead as a call does, with a mark behind the last.
async fn say(leg: &Leg, packets: Vec<Packet>, mark: u64) {
    let mut tick = interval(FRAME);
    for (n, packet) in packets.into_iter().enumerate() {
        if n >= 3 {
            tick.tick().await;
        }
        leg.commands.send(LegCommand::Audio(packet)).await.expect("carried");
    }
    leg.commands.send(LegCommand::Mark(mark)).await.expect("carried");
}

/// What a leg heard by the clock, the way a call listens.
struct Heard {
    pcm: Vec<i16>,
    rate: SampleRate,
    /// Keys that the carrier told, and those in the sound.
    told: String,
    late: u64,
}

impl Heard {
    fn in_the_sound(&self) -> String {
        let (mut narrow, mut keys) = (Vec::new(), String::new());
        Resampler::new(self.rate, SampleRate::HZ_8000).expect("rates of a call").push(&self.pcm, &mut narrow);
        DtmfDetector::new().push(&narrow, |key| keys.push(key));
        keys
    }
}

async fn hear(leg: &mut Leg, codec: Codec, time: Duration) -> Heard {
    let mut jitter = JitterBuffer::new(leg.jitter.clone().unwrap_or(JitterConfig::RTP));
    let mut decoder = Decoder::new(codec);
    let mut heard = Heard { pcm: Vec::new(), rate: codec.rate(), told: String::new(), late: 0 };
    let (mut tick, end) = (interval(FRAME), Instant::now() + time);
    let mut ahead = Vec::new();
    while Instant::now() < end {
        tokio::select! {
            event = leg.events.recv() => match event.expect("carried") {
                LegEvent::Packet(packet) => jitter.push(Instant::now().into_std(), packet),
                LegEvent::Dtmf(key) => heard.told.push(key),
                LegEvent::Played { .. } | LegEvent::Held(_) | LegEvent::InBandKeys(_) => {}
                LegEvent::Ended(end) => panic!("{end:?}"),
            },
            _ = tick.tick() => {
                while ahead.len() < codec.rate().frame_len() {
                    match jitter.pull(Instant::now().into_std()) {
                        Pull::Packet(packet) => decoder.decode(packet.payload(), &mut ahead),
                        Pull::Missing => decoder.conceal(FRAME, jitter.behind_the_gap(), &mut ahead),
                    }
                }
                heard.pcm.extend(ahead.drain(..codec.rate().frame_len()));
            }
        }
    }
    heard.late = jitter.counters().late;
    heard
}

/// The next event that is not audio.
async fn next_event(leg: &mut Leg) -> LegEvent {
    let event = async {
        loop {
            match leg.events.recv().await.expect("an end is said before the channel closes") {
                LegEvent::Packet(_) => {}
                other => return other,
            }
        }
    };
    timeout(PATIENCE, event).await.expect("an event comes")
}

#[tokio::test]
async fn what_one_side_says_the_other_hears_in_every_codec_and_packet_length() {
    let cases = [
        (Codec::Pcmu, 20, false),
        (Codec::Pcma, 30, false),
        (Codec::Pcma, 60, true),
        (Codec::G722, 10, false),
        (Codec::G722, 40, true),
        (Codec::Opus, 20, true),
    ];
    let runs = cases.map(|(codec, ptime, secure)| async move {
        let (a, b) = (socket(), socket());
        let (port_a, port_b) = (a.port(), b.port());
        let key = |byte| SrtpKey::new([byte; 30]);
        let with = |remote, local, peer| MediaPlan {
            ptime: ms(ptime),
            srtp: secure.then(|| SrtpKeys { suite: SrtpSuite::HmacSha1_80, local: key(local), remote: key(peer) }),
            ..plan(codec, remote)
        };
        let mut ours = carry(a, with(port_b, 1, 2), config());
        let mut theirs = carry(b, with(port_a, 2, 1), config());
        let (heard, ()) = tokio::join!(hear(&mut theirs.leg, codec, ms(1700)), async {
            say(&ours.leg, tones(codec, "15#9"), 1).await;
            ours.leg.commands.send(LegCommand::Key('7')).await.expect("carried");
        });
        let case = format!("{codec:?}, {ptime} ms, sealed {secure}");
        assert_eq!(heard.in_the_sound(), "15#9", "{case}");
        assert_eq!(heard.told, "7", "{case}");
        assert!(matches!(next_event(&mut ours.leg).await, LegEvent::Played { mark: 1 }), "{case}");
        drop(ours.leg);
        let carried = ours.task.await.expect("no panic");
        assert_eq!((carried.end, carried.strangers, carried.stats.lost), (None, 0, 0), "{case}: {carried:?}");
        assert!(carried.stats.sent as u128 >= 1200 / u128::from(ptime), "{case}: {carried:?}");
    });
    // All at once: they take their time, not the machine's.
    for task in runs.map(tokio::spawn) {
        task.await.expect("passes");
    }
}

/// A bad network between two ports: loses, delays, thereby reorders, and doubles.
async fn impair(loss_percent: u64, jitter: Duration, to: SocketAddr) -> (u16, JoinHandle<()>) {
    let inside = UdpSocket::bind((HERE, 0)).await.expect("binds");
    let port = inside.local_addr().expect("bound").port();
    let task = tokio::spawn(async move {
        let inside = std::sync::Arc::new(inside);
        let mut state = 11_u64;
        let mut random = move |below: u64| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            (z ^ (z >> 31)) % below
        };
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = inside.recv_from(&mut buffer).await {
            if from == to {
                // One way only: what comes back ends here.
                continue;
            }
            let copies = if random(100) < loss_percent { 0 } else { 1 + u64::from(random(100) < 5) };
            for _ in 0..copies {
                let (socket, bytes) = (inside.clone(), buffer[..length].to_vec());
                let wait = jitter.mul_f64(random(1000) as f64 / 1000.0);
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    let _ = socket.send_to(&bytes, to).await;
                });
            }
        }
    });
    (port, task)
}

#[tokio::test]
async fn talk_goes_on_through_loss_jitter_reordering_and_duplicates() {
    for codec in [Codec::Pcma, Codec::Opus] {
        let (a, b) = (socket(), socket());
        let (relay, network) = impair(10, ms(60), at(b.port())).await;
        let ours = carry(a, plan(codec, relay), config());
        // Packets come from the network's port, as from behind NAT.
        let mut theirs = carry(b, plan(codec, relay), config());
        let said = "1234567890*#";
        let (heard, ()) = tokio::join!(hear(&mut theirs.leg, codec, ms(7500)), async {
            say(&ours.leg, tones(codec, said), 1).await;
            for key in "147*".chars() {
                ours.leg.commands.send(LegCommand::Key(key)).await.expect("carried");
            }
        });
        let (found, stats) = (heard.in_the_sound(), theirs.handle.stats());
        println!("{codec:?}: {found} of {said}, told {}, {} late, {stats:?}", heard.told, heard.late);
        // Telephone events are made for this: every key, once, in order.
        assert_eq!(heard.told, "147*", "{codec:?}");
        // Tones with holes in them: one key in twelve may be missed, none may be doubled by concealment or reordering.
        let kept = said.chars().filter(|key| found.contains(*key)).count();
        assert!(kept >= 10 && found.len() <= said.len() + 1, "{codec:?}: {found}");
        let speech: Vec<i16> = heard.pcm.iter().copied().filter(|sample| sample.unsigned_abs() > 500).collect();
        assert!(level_dbfs(&speech) > -15.0, "{codec:?}: {} dBFS", level_dbfs(&speech));
        assert!(stats.lost > 5 && stats.reordered > 5 && stats.duplicate > 2 && stats.jitter_ms > 5.0, "{stats:?}");
        assert!(stats.mos.is_some_and(|mos| mos < 4.0));
        network.abort();
    }
}

/// A peer made of a bare socket.
struct Phone {
    socket: UdpSocket,
    sequence: u16,
}

impl Phone {
    async fn new() -> Self {
        Self { socket: UdpSocket::bind((HERE, 0)).await.expect("binds"), sequence: 0 }
    }

    fn port(&self) -> u16 {
        self.socket.local_addr().expect("bound").port()
    }

    /// Sends 20 ms of loud mu-law.
    async fn send(&mut self, to: u16, ssrc: u32) {
        let mut bytes = Vec::new();
        let (sequence, timestamp) = (self.sequence, 160 * u32::from(self.sequence));
        RtpPacket { marker: false, payload_type: 96, sequence, timestamp, ssrc, payload: &[0x80; 160] }
            .write(&mut bytes);
        self.socket.send_to(&bytes, at(to)).await.expect("sent");
        self.sequence += 1;
    }

    /// The next datagram that is not RTCP: payload type and payload.
    async fn receive(&self) -> (u8, Vec<u8>) {
        let mut buffer = [0; 2048];
        loop {
            let received = timeout(PATIENCE, self.socket.recv_from(&mut buffer)).await.expect("media comes");
            let (length, _) = received.expect("received");
            if let Some(packet) = RtpPacket::parse(&buffer[..length]).filter(|_| !is_rtcp(&buffer[..length])) {
                return (packet.payload_type, packet.payload.to_vec());
            }
        }
    }
}

async fn packet(leg: &mut Leg) -> Packet {
    let audio = async {
        loop {
            match leg.events.recv().await.expect("carried") {
                LegEvent::Packet(packet) => return packet,
                LegEvent::Ended(end) => panic!("{end:?}"),
                _ => {}
            }
        }
    };
    timeout(PATIENCE, audio).await.expect("audio comes")
}

fn loud(fill: u8) -> LegCommand {
    LegCommand::Audio(Packet::new(Codec::Pcmu, MediaTime::ZERO, &[fill; 160]).expect("fits"))
}

#[tokio::test]
async fn media_goes_back_to_where_it_comes_from_and_strangers_are_ignored() {
    let ours = socket();
    let port = ours.port();
    let (mut nat, mut stranger, signalled) = (Phone::new().await, Phone::new().await, Phone::new().await);
    let mut side = carry(ours, plan(Codec::Pcmu, signalled.port()), config());
    signalled.receive().await;
    for _ in 0..4 {
        nat.send(port, 9).await;
    }
    packet(&mut side.leg).await;
    nat.receive().await;
    for _ in 0..20 {
        stranger.send(port, 66).await;
    }
    nat.send(port, 9).await;
    packet(&mut side.leg).await;
    // Whatever else is sent to us, our media still goes to the peer.
    let before = stranger.socket.try_recv_from(&mut [0; 2048]);
    assert!(before.is_err(), "a stranger gets nothing");
    nat.receive().await;
    side.leg.hangup.cancel();
    let carried = side.task.await.expect("no panic");
    // Two packets of the peer's own run, and all of the stranger's.
    assert_eq!((carried.strangers, carried.stats.ssrc_changes, carried.end), (22, 0, None));
}

#[tokio::test]
async fn a_stream_without_media_ends_and_a_held_one_does_not() {
    let short = || RtpConfig { media_timeout_s: 1, ..config() };
    let silent = Phone::new().await;
    let begun = Instant::now();
    let mut side = carry(socket(), plan(Codec::Pcmu, silent.port()), short());
    let end = CallEnd::new(Party::Carrier, EndReason::NoMedia);
    assert!(matches!(next_event(&mut side.leg).await, LegEvent::Ended(it) if it == end));
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(side.task.await.expect("no panic").end, Some(end));

    let held = MediaPlan { sends: false, ..plan(Codec::Pcmu, silent.port()) };
    let mut side = carry(socket(), held, short());
    side.leg.commands.send(loud(0x80)).await.expect("carried");
    side.leg.commands.send(LegCommand::Mark(7)).await.expect("carried");
    assert!(matches!(next_event(&mut side.leg).await, LegEvent::Held(true)));
    // Sound passes unheard, its mark comes, and the stream outlives the time-out.
    assert!(matches!(next_event(&mut side.leg).await, LegEvent::Played { mark: 7 }));
    assert!(timeout(ms(1500), side.leg.events.recv()).await.is_err(), "still held");
    assert!(side.handle.adopt(plan(Codec::Pcmu, silent.port())).await);
    assert!(matches!(next_event(&mut side.leg).await, LegEvent::Held(false)));
    assert!(matches!(next_event(&mut side.leg).await, LegEvent::Ended(it) if it == end), "resumed, and silent");
    let carried = side.task.await.expect("no panic");
    assert!((30..=60).contains(&carried.stats.sent), "nothing was sent while held: {}", carried.stats.sent);
}

#[tokio::test]
async fn a_clear_cuts_within_one_packet() {
    let phone = Phone::new().await;
    let side = carry(socket(), plan(Codec::Pcmu, phone.port()), config());
    for _ in 0..40 {
        side.leg.commands.send(loud(0x80)).await.expect("carried");
    }
    for _ in 0..50 {
        if phone.receive().await.1[0] == 0x80 {
            break;
        }
    }
    side.leg.commands.send(LegCommand::Clear).await.expect("carried");
    let mut after = 0;
    for _ in 0..10 {
        after += u32::from(phone.receive().await.1[0] == 0x80);
    }
    // One may have been under way when the clear was asked for.
    assert!(after <= 1, "{after} packets behind the clear");
}

#[tokio::test]
async fn a_later_agreement_moves_the_stream_to_another_address_and_codec() {
    let (first, mut second) = (Phone::new().await, Phone::new().await);
    let ours = socket();
    let port = ours.port();
    let mut side = carry(ours, plan(Codec::Pcmu, first.port()), config());
    first.receive().await;
    let moved = MediaPlan {
        codec: Codec::Pcma,
        payload_type: 8,
        accepts: vec![(8, Codec::Pcma), (96, Codec::Pcmu)],
        ..plan(Codec::Pcma, second.port())
    };
    assert!(side.handle.adopt(moved).await);
    // The call still speaks mu-law; what arrives is A-law.
    for _ in 0..5 {
        side.leg.commands.send(loud(0x80)).await.expect("carried");
    }
    let mut kinds = Vec::new();
    for _ in 0..6 {
        let (kind, payload) = second.receive().await;
        kinds.push(kind);
        if payload[80] == 0xAA {
            // The loudest of A-law.
            break;
        }
    }
    assert!(kinds.iter().all(|kind| *kind == 8), "{kinds:?}");
    second.send(port, 5).await;
    assert_eq!(packet(&mut side.leg).await.codec, Codec::Pcmu, "the peer may still send what was agreed on");
}

#[tokio::test]
async fn a_later_agreement_without_telephone_events_is_told_and_a_stream_may_carry_one_leg_after_another() {
    let mut phone = Phone::new().await;
    let ours = socket();
    let port = ours.port();
    let seed = SessionSeed { ssrc: 7, sequence: 1, timestamp: 1, ntp: 0, cname: "us".into() };
    let agreed = plan(Codec::Pcmu, phone.port());
    let (stream, handle) = RtpStream::new(ours, agreed.clone(), seed, config()).expect("a plan");
    let (mut leg, side) = stream.leg();
    let task = tokio::spawn(stream.carry_leg(side));
    assert!(!leg.in_band_keys);
    assert!(handle.adopt(MediaPlan { keys: None, ..agreed.clone() }).await);
    assert!(matches!(next_event(&mut leg).await, LegEvent::InBandKeys(true)));
    assert!(handle.adopt(agreed).await);
    assert!(matches!(next_event(&mut leg).await, LegEvent::InBandKeys(false)));
    drop(leg);
    let (carried, stream) = task.await.expect("no panic");
    assert_eq!(carried.end, None);
    let (mut leg, side) = stream.leg();
    let task = tokio::spawn(stream.carry_leg(side));
    phone.send(port, 3).await;
    packet(&mut leg).await;
    leg.commands.send(loud(0x80)).await.expect("carried");
    let mut heard = false;
    for _ in 0..50 {
        heard |= phone.receive().await.1[0] == 0x80;
        if heard {
            break;
        }
    }
    assert!(heard, "the second leg is carried by the same stream");
    drop(leg);
    let (_, stream) = task.await.expect("no panic");
    stream.close();
    assert!(!handle.adopt(plan(Codec::Pcmu, 1)).await, "the stream is over");
}

#[tokio::test]
async fn packets_leave_on_absolute_deadlines_at_little_cost() {
    const PACKETS: u32 = 100;
    let phone = Phone::new().await;
    let side = carry(socket(), plan(Codec::Pcmu, phone.port()), config());
    phone.receive().await;
    let (begun, mut worst) = (Instant::now(), Duration::ZERO);
    for n in 1..=PACKETS {
        phone.receive().await;
        worst = worst.max(begun.elapsed().saturating_sub(FRAME * n));
    }
    let off = begun.elapsed().abs_diff(FRAME * PACKETS);
    println!("{PACKETS} packets: {off:?} off in all, one at most {worst:?} late");
    assert!(off < ms(60), "{off:?} off: deadlines drift");
    assert!(side.handle.stats().sent >= 50, "renewed every second");
}

#[tokio::test]
async fn the_end_is_told_the_ports_come_back_and_the_peer_gets_a_goodbye() {
    let (ports, phone) = (ports(), Phone::new().await);
    let free = ports.free();
    let mut side = carry(ports.open().expect("free"), plan(Codec::Pcmu, phone.port()), config());
    assert_eq!(ports.free(), free - 1);
    let end = CallEnd::new(Party::Caller, EndReason::HungUp);
    side.handle.end(end).await;
    assert!(matches!(next_event(&mut side.leg).await, LegEvent::Ended(it) if it == end));
    assert!(side.leg.events.recv().await.is_none(), "nothing follows an end");
    assert_eq!(side.task.await.expect("no panic").end, Some(end));
    assert_eq!(ports.free(), free);
    assert!(!side.handle.adopt(plan(Codec::Pcmu, 1)).await, "the stream is over");
    let mut buffer = [0; 2048];
    loop {
        let (length, _) =
            timeout(PATIENCE, phone.socket.recv_from(&mut buffer)).await.expect("a goodbye").expect("received");
        if is_rtcp(&buffer[..length]) {
            let reports = rtcp::parse(&buffer[..length]).expect("ours");
            assert!(reports.iter().any(|report| matches!(report, Report::Bye { .. })), "{reports:?}");
            break;
        }
    }
}

#[tokio::test]
async fn a_call_whose_media_task_dies_is_told_and_its_ports_come_back() {
    let (ports, phone) = (ports(), Phone::new().await);
    let free = ports.free();
    let mut side = carry(ports.open().expect("free"), plan(Codec::Pcmu, phone.port()), config());
    side.task.abort();
    assert!(side.task.await.expect_err("it was ended").is_cancelled());
    let over = timeout(PATIENCE, async { while side.leg.events.recv().await.is_some() {} }).await;
    assert!(over.is_ok(), "the leg is over");
    assert_eq!(ports.free(), free);
}

#[tokio::test]
async fn what_came_to_the_port_before_the_call_is_thrown_away() {
    let (ours, mut phone) = (socket(), Phone::new().await);
    let port = ours.port();
    for _ in 0..5 {
        phone.send(port, 66).await;
    }
    let mut side = carry(ours, plan(Codec::Pcmu, phone.port()), config());
    phone.send(port, 9).await;
    packet(&mut side.leg).await;
    side.leg.hangup.cancel();
    let carried = side.task.await.expect("no panic");
    assert_eq!((carried.stats.received, carried.stats.ssrc_changes), (1, 0));
}

#[tokio::test]
async fn media_runs_over_ipv6() {
    let loopback = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);
    let Ok(phone) = UdpSocket::bind((loopback, 0)).await else {
        println!("skipped: no IPv6 here");
        return;
    };
    let remote = phone.local_addr().expect("bound");
    let config = RtpConfig { listen: loopback, rtp_ports: "11000-11399".into(), ..config() };
    let socket = RtpPorts::new(&config, u64::from(std::process::id())).expect("a good range").open().expect("free");
    let port = socket.port();
    let plan = MediaPlan { remote: Some(remote), remote_rtcp: Some(remote), ..plan(Codec::Pcmu, 0) };
    let mut side = carry(socket, plan, config);
    let mut buffer = [0; 2048];
    let (length, _) = timeout(PATIENCE, phone.recv_from(&mut buffer)).await.expect("media").expect("received");
    assert!(RtpPacket::parse(&buffer[..length]).is_some());
    let mut bytes = Vec::new();
    RtpPacket { marker: true, payload_type: 96, sequence: 1, timestamp: 1, ssrc: 9, payload: &[0x80; 160] }
        .write(&mut bytes);
    phone.send_to(&bytes, (loopback, port)).await.expect("sent");
    assert_eq!(packet(&mut side.leg).await.payload(), [0x80; 160]);
}

#[tokio::test]
async fn a_tap_copies_both_directions_while_it_is_wanted() {
    let mut phone = Phone::new().await;
    let ours = socket();
    let port = ours.port();
    let mut side = carry(ours, plan(Codec::Pcmu, phone.port()), config());
    let (tap, mut copies) = Tap::new();
    assert!(side.handle.tap(Some(tap)).await);
    phone.receive().await;
    phone.send(port, 9).await;
    packet(&mut side.leg).await;
    let (mut incoming, mut outgoing) = (0, 0);
    while incoming == 0 || outgoing == 0 {
        let copy = timeout(PATIENCE, copies.recv()).await.expect("copies come").expect("tapped");
        assert_eq!((copy.port, copy.peer.port()), (port, phone.port()));
        assert!(RtpPacket::parse(&copy.bytes).is_some());
        *(if copy.incoming { &mut incoming } else { &mut outgoing }) += 1;
    }
    assert!(side.handle.tap(None).await);
    while copies.recv().await.is_some() {}
}

#[tokio::test]
async fn a_call_that_does_not_listen_loses_audio_and_no_key() {
    let mut phone = Phone::new().await;
    let ours = socket();
    let port = ours.port();
    let mut side = carry(ours, plan(Codec::Pcmu, phone.port()), config());
    for n in 0..150 {
        phone.send(port, 9).await;
        if n % 25 == 0 {
            // The kernel's buffer of a socket holds about 150 small packets.
            tokio::time::sleep(ms(20)).await;
        }
    }
    let mut bytes = Vec::new();
    let timestamp = 160 * u32::from(phone.sequence);
    let key = [5, 0x8A, 3, 0x20];
    RtpPacket { marker: true, payload_type: 101, sequence: phone.sequence, timestamp, ssrc: 9, payload: &key }
        .write(&mut bytes);
    phone.socket.send_to(&bytes, at(port)).await.expect("sent");
    while side.handle.stats().key_packets == 0 {
        tokio::time::sleep(ms(20)).await;
    }
    assert!(matches!(next_event(&mut side.leg).await, LegEvent::Dtmf('5')));
    drop(side.leg);
    assert_eq!(side.task.await.expect("no panic").dropped, 50);
}
