//! The task that owns one Twilio media websocket: it feeds `protocol::twilio::stream`, hands on what the caller does and
//! sends what the call says. It does not decide who may connect (`http/media_ws.rs`) nor when a call is over; a caller
//! who falls silent without hanging up is the call's business.

use std::error::Error as _;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, close_code};
use futures::stream::{SplitSink, SplitStream};
use futures::{Sink, SinkExt as _, Stream, StreamExt as _};
use metrics::counter;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_tungstenite::tungstenite;
use tracing::{debug, warn};

use crate::protocol::twilio::stream::{StartInfo, StreamConfig, StreamError, StreamEvent, StreamStats, TwilioStream};
use crate::telephony::{CallEnd, EndReason, Party};
use crate::transport::leg::{LegCommand, LegEvent, LegSide};

/// A websocket as axum hands it over; tests bring channels.
pub trait Socket:
    Stream<Item = Result<Message, axum::Error>> + Sink<Message, Error = axum::Error> + Send + Unpin
{
}

impl<S> Socket for S where
    S: Stream<Item = Result<Message, axum::Error>> + Sink<Message, Error = axum::Error> + Send + Unpin
{
}

/// Limits of one media websocket.
#[derive(Clone, Debug)]
pub struct TwilioWsConfig {
    /// `start` must have come by then, 10 s. A larger value lets idle sockets stay longer.
    pub start_limit: Duration,
    /// A message that could not be handed to the network for so long means a dead socket, 5 s.
    pub write_limit: Duration,
    /// How long a call may leave a key, a mark or the end of its leg waiting in a full queue, 5 s.
    pub event_limit: Duration,
    /// How long the peer may take to answer our close, 2 s.
    pub close_limit: Duration,
    pub stream: StreamConfig,
}

impl Default for TwilioWsConfig {
    fn default() -> Self {
        Self {
            start_limit: Duration::from_secs(10),
            write_limit: Duration::from_secs(5),
            event_limit: Duration::from_secs(5),
            close_limit: Duration::from_secs(2),
            stream: StreamConfig::default(),
        }
    }
}

/// Why a websocket never became a stream. It is closed already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("no start in time")]
    NoStart,
    #[error("closed before start")]
    Closed,
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A frame too large or broken, below the stream's own messages.
    #[error("broken websocket")]
    Websocket,
}

impl OpenError {
    /// Stable, for logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoStart => "no_start",
            Self::Closed => "closed",
            Self::Stream(error) => error.label(),
            Self::Websocket => "websocket",
        }
    }
}

/// What was carried.
#[derive(Clone, Debug)]
pub struct Carried {
    /// `None` when our side hung up.
    pub end: Option<CallEnd>,
    pub stats: StreamStats,
    /// Packets, keys and marks that the call did not take in time.
    pub dropped: u64,
}

/// A websocket whose stream has started.
pub struct TwilioSocket<S> {
    sink: SplitSink<S, Message>,
    source: SplitStream<S>,
    stream: TwilioStream,
    events: Vec<StreamEvent>,
    config: TwilioWsConfig,
}

impl<S: Socket> TwilioSocket<S> {
    /// Waits for `start`. On an error the socket is closed before this returns.
    pub async fn open(socket: S, config: TwilioWsConfig) -> Result<(StartInfo, Self), OpenError> {
        let (sink, source) = socket.split();
        let stream = TwilioStream::new(config.stream.clone());
        let mut this = Self { sink, source, stream, events: Vec::new(), config };
        let deadline = Instant::now() + this.config.start_limit;
        match timeout_at(deadline, this.wait_for_start()).await.unwrap_or(Err(OpenError::NoStart)) {
            Ok(info) => Ok((info, this)),
            Err(error) => {
                this.close(close_code::PROTOCOL).await;
                Err(error)
            }
        }
    }

    async fn wait_for_start(&mut self) -> Result<StartInfo, OpenError> {
        loop {
            let taken = match self.source.next().await {
                Some(Ok(Message::Text(text))) => self.stream.on_text(&text, &mut self.events),
                Some(Ok(Message::Binary(_))) => self.stream.on_binary(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
                Some(Ok(Message::Close(_))) | None => return Err(OpenError::Closed),
                Some(Err(error)) if broke_protocol(&error) => return Err(OpenError::Websocket),
                Some(Err(_)) => return Err(OpenError::Closed),
            };
            taken?;
            match self.events.pop() {
                Some(StreamEvent::Started(info)) => return Ok(info),
                Some(_) => return Err(OpenError::Closed),
                None => {}
            }
        }
    }

    /// Closes a stream that nobody takes. `code` as in RFC 6455 §7.4.1.
    pub async fn refuse(self, code: u16) {
        self.close(code).await;
    }

    /// Carries the leg until either side ends it; when this returns, the socket is closed and the leg knows.
    pub async fn carry(mut self, mut side: LegSide) -> Carried {
        let mut dropped = 0;
        let over = self.relay(&mut side, &mut dropped).await;
        let (end, code) = match over {
            Over::HungUp => (None, close_code::NORMAL),
            Over::Stopped => (Some(CallEnd::new(Party::Caller, EndReason::HungUp)), close_code::NORMAL),
            Over::Lost => (Some(CallEnd::new(Party::Carrier, EndReason::ConnectionLost)), close_code::AWAY),
            Over::Broken(fault) => {
                warn!(fault, "media stream broke the protocol");
                (Some(CallEnd::new(Party::Carrier, EndReason::ProtocolError)), close_code::PROTOCOL)
            }
        };
        if let Some(end) = end {
            let told = timeout(self.config.event_limit, side.events.send(LegEvent::Ended(end))).await;
            if told.is_err() {
                // The queue is full and nobody reads it; the token is what no queue can lose.
                side.hangup.cancel();
            }
        }
        drop(side);
        let stats = self.stream.stats().clone();
        self.close(code).await;
        debug!(?end, ?stats, dropped, "media stream over");
        Carried { end, stats, dropped }
    }

    async fn relay(&mut self, side: &mut LegSide, dropped: &mut u64) -> Over {
        let Self { sink, source, stream, events, config } = self;
        let mut text = String::new();
        // A message is on its way to the network, and must have gone by then.
        let mut flush_by: Option<Instant> = None;
        let mut commands_open = true;
        loop {
            tokio::select! {
                biased;
                () = side.hangup.cancelled() => return Over::HungUp,
                flushed = sink.flush(), if flush_by.is_some() => match flushed {
                    Ok(()) => flush_by = None,
                    Err(_) => return Over::Lost,
                },
                () = sleep_until(flush_by.unwrap_or_else(Instant::now)), if flush_by.is_some() => return Over::Lost,
                command = side.commands.recv(), if flush_by.is_none() && commands_open => {
                    match command {
                        Some(LegCommand::Audio(packet)) => stream.write_media(&packet, &mut text),
                        Some(LegCommand::Mark(mark)) => stream.write_mark(mark, &mut text),
                        Some(LegCommand::Clear) => stream.write_clear(&mut text),
                        // A media stream has no message for it.
                        Some(LegCommand::Key(_)) => continue,
                        None => {
                            commands_open = false;
                            continue;
                        }
                    }
                    // Everything before was flushed, so there is room and this does not wait.
                    if sink.feed(Message::Text(text.as_str().into())).await.is_err() {
                        return Over::Lost;
                    }
                    flush_by = Some(Instant::now() + config.write_limit);
                }
                message = source.next() => {
                    let taken = match message {
                        Some(Ok(Message::Text(text))) => stream.on_text(&text, events),
                        Some(Ok(Message::Binary(_))) => stream.on_binary(),
                        // Pings are answered below us.
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
                        Some(Ok(Message::Close(_))) | None => return Over::Lost,
                        Some(Err(error)) if broke_protocol(&error) => return Over::Broken("websocket"),
                        Some(Err(_)) => return Over::Lost,
                    };
                    // What came before a fault in the same message still counts.
                    for event in events.drain(..) {
                        if let Err(over) = hand_on(event, side, config.event_limit, dropped).await {
                            return over;
                        }
                    }
                    if let Err(error) = taken {
                        return Over::Broken(error.label());
                    }
                }
            }
        }
    }

    /// Says goodbye and waits a little for the answer. Closing lets Twilio go on with its TwiML.
    async fn close(self, code: u16) {
        let Self { mut sink, mut source, config, .. } = self;
        let goodbye = async {
            // Fails where the peer closed first; reading on then sends the answer that is due.
            let _ = sink.send(Message::Close(Some(CloseFrame { code, reason: "".into() }))).await;
            while let Some(Ok(_)) = source.next().await {}
        };
        if timeout(config.close_limit, goodbye).await.is_err() {
            debug!("peer did not answer our close");
        }
    }
}

/// How carrying came to its end.
enum Over {
    HungUp,
    Stopped,
    Lost,
    Broken(&'static str),
}

/// Audio that the call does not take at once is of no use to it; a key or a mark waits.
async fn hand_on(event: StreamEvent, side: &LegSide, limit: Duration, dropped: &mut u64) -> Result<(), Over> {
    let event = match event {
        StreamEvent::Packet(packet) => {
            return match side.events.try_send(LegEvent::Packet(packet)) {
                Ok(()) => Ok(()),
                Err(TrySendError::Full(_)) => {
                    count_drop(dropped);
                    Ok(())
                }
                Err(TrySendError::Closed(_)) => Err(Over::HungUp),
            };
        }
        StreamEvent::Dtmf(digit) => LegEvent::Dtmf(digit),
        StreamEvent::Played { mark } => LegEvent::Played { mark },
        StreamEvent::Stopped => return Err(Over::Stopped),
        // A stream starts once, and this one has.
        StreamEvent::Started(_) => return Ok(()),
    };
    tokio::select! {
        biased;
        () = side.hangup.cancelled() => Err(Over::HungUp),
        sent = timeout(limit, side.events.send(event)) => match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Over::HungUp),
            Err(_) => {
                count_drop(dropped);
                Ok(())
            }
        },
    }
}

fn count_drop(dropped: &mut u64) {
    *dropped += 1;
    counter!("offhook_frames_dropped_total", "where" => "leg_in").increment(1);
}

/// Whether the peer is at fault, not the network: a message over the limit, a frame that is none, text that is no UTF-8.
fn broke_protocol(error: &axum::Error) -> bool {
    use tungstenite::error::ProtocolError;
    match error.source().and_then(|source| source.downcast_ref::<tungstenite::Error>()) {
        Some(tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => false,
        Some(error) => matches!(
            error,
            tungstenite::Error::Protocol(_) | tungstenite::Error::Capacity(_) | tungstenite::Error::Utf8(_)
        ),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::frame::MediaTime;
    use crate::media::packet::{Codec, Packet};
    use crate::protocol::twilio::message::{FromTwilio, Media, MediaFormat, Start, ToTwilio, encode_payload};
    use crate::transport::leg::{LEG_EVENT_QUEUE, Leg};
    use futures::channel::mpsc;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tokio::task::JoinHandle;

    /// A websocket made of two channels.
    struct Pipe {
        incoming: mpsc::Receiver<Result<Message, axum::Error>>,
        outgoing: mpsc::Sender<Message>,
    }

    impl Stream for Pipe {
        type Item = Result<Message, axum::Error>;

        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            self.incoming.poll_next_unpin(cx)
        }
    }

    impl Sink<Message> for Pipe {
        type Error = axum::Error;

        fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            self.outgoing.poll_ready_unpin(cx).map_err(axum::Error::new)
        }

        fn start_send(mut self: Pin<&mut Self>, message: Message) -> Result<(), Self::Error> {
            self.outgoing.start_send_unpin(message).map_err(axum::Error::new)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            self.outgoing.poll_flush_unpin(cx).map_err(axum::Error::new)
        }

        fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            self.outgoing.poll_close_unpin(cx).map_err(axum::Error::new)
        }
    }

    /// Twilio's end of the pipe.
    struct Peer {
        to_us: mpsc::Sender<Result<Message, axum::Error>>,
        from_us: mpsc::Receiver<Message>,
    }

    impl Peer {
        async fn say(&mut self, message: FromTwilio<'_>) {
            let mut text = String::new();
            message.write(&mut text);
            self.to_us.send(Ok(Message::Text(text.into()))).await.unwrap();
        }

        async fn media(&mut self, chunk: u64) {
            let mut payload = String::new();
            encode_payload(&[0xFF; 160], &mut payload);
            let media = Media {
                track: "inbound".into(),
                chunk: Some(chunk),
                timestamp_ms: Some(chunk * 20),
                payload: payload.into(),
            };
            self.say(FromTwilio::Media { sequence: Some(chunk + 1), stream_sid: "MZ1".into(), media }).await;
        }

        async fn heard(&mut self) -> Message {
            self.from_us.next().await.expect("the socket is open")
        }

        /// Reads until our close, without answering it.
        async fn close_code(&mut self) -> u16 {
            loop {
                if let Message::Close(frame) = self.heard().await {
                    return frame.expect("we always say why").code;
                }
            }
        }
    }

    fn pipe(room: usize) -> (Pipe, Peer) {
        let (to_us, incoming) = mpsc::channel(1);
        let (outgoing, from_us) = mpsc::channel(room);
        (Pipe { incoming, outgoing }, Peer { to_us, from_us })
    }

    fn start() -> FromTwilio<'static> {
        let start = Start {
            stream_sid: "MZ1".into(),
            account_sid: "AC1".into(),
            call_sid: "CA1".into(),
            tracks: vec!["inbound".into()],
            parameters: Default::default(),
            format: Some(MediaFormat::MULAW),
        };
        FromTwilio::Start { sequence: Some(1), start }
    }

    fn stop() -> FromTwilio<'static> {
        FromTwilio::Stop { sequence: None, stream_sid: "MZ1".into(), account_sid: "AC1".into(), call_sid: "CA1".into() }
    }

    fn audio() -> LegCommand {
        LegCommand::Audio(Packet::new(Codec::Pcmu, MediaTime::ZERO, &[0x11; 160]).unwrap())
    }

    /// A started stream that is being carried.
    async fn carried(room: usize) -> (Peer, Leg, JoinHandle<Carried>) {
        let (pipe, mut peer) = pipe(room);
        let opening = tokio::spawn(TwilioSocket::open(pipe, TwilioWsConfig::default()));
        peer.say(FromTwilio::Connected { protocol: "Call".into(), version: "1.0.0".into() }).await;
        peer.say(start()).await;
        let (info, socket) = opening.await.unwrap().unwrap();
        assert_eq!(info.call_sid, "CA1");
        let (leg, side) = Leg::pair(Codec::Pcmu);
        (peer, leg, tokio::spawn(socket.carry(side)))
    }

    async fn ended(leg: &mut Leg) -> CallEnd {
        loop {
            match leg.events.recv().await.expect("an end is said before the channel closes") {
                LegEvent::Ended(end) => return end,
                _ => continue,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_call_says_goes_out_in_order() {
        let (mut peer, leg, task) = carried(0).await;
        for command in [audio(), LegCommand::Mark(1), LegCommand::Clear, LegCommand::Mark(2)] {
            leg.commands.send(command).await.unwrap();
        }
        let mut names = Vec::new();
        for _ in 0..4 {
            let Message::Text(text) = peer.heard().await else { panic!("not text") };
            names.push(match ToTwilio::parse(&text).unwrap() {
                ToTwilio::Media { .. } => "media".to_owned(),
                ToTwilio::Mark { name, .. } => name.into_owned(),
                ToTwilio::Clear { .. } => "clear".to_owned(),
                ToTwilio::Unknown { event } => panic!("{event}"),
            });
        }
        assert_eq!(names, ["media", "g0-1", "clear", "g1-2"]);
        drop(leg);
        drop(peer);
        assert_eq!(task.await.unwrap().end, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_never_starts_is_closed_after_ten_seconds() {
        let (pipe, mut peer) = pipe(4);
        let begun = Instant::now();
        let opening = tokio::spawn(TwilioSocket::open(pipe, TwilioWsConfig::default()));
        peer.say(FromTwilio::Connected { protocol: "Call".into(), version: "1.0.0".into() }).await;
        assert_eq!(peer.close_code().await, close_code::PROTOCOL);
        assert_eq!(begun.elapsed().as_secs(), 10);
        drop(peer);
        assert_eq!(opening.await.unwrap().err(), Some(OpenError::NoStart));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_given_up_after_five_seconds_and_two_for_the_close() {
        let (peer, mut leg, task) = carried(0).await;
        let begun = Instant::now();
        for _ in 0..4 {
            leg.commands.send(audio()).await.unwrap();
        }
        assert_eq!(ended(&mut leg).await, CallEnd::new(Party::Carrier, EndReason::ConnectionLost));
        assert_eq!(begun.elapsed().as_secs(), 5);
        task.await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 7);
        drop(peer);
    }

    #[tokio::test(start_paused = true)]
    async fn the_caller_is_heard_while_a_write_is_stuck() {
        let (mut peer, mut leg, task) = carried(0).await;
        for _ in 0..4 {
            leg.commands.send(audio()).await.unwrap();
        }
        tokio::task::yield_now().await;
        peer.media(1).await;
        assert!(matches!(leg.events.recv().await, Some(LegEvent::Packet(_))));
        drop(leg);
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn audio_that_the_call_does_not_take_is_dropped_and_its_end_still_arrives() {
        let (mut peer, mut leg, task) = carried(4).await;
        for chunk in 1..=LEG_EVENT_QUEUE as u64 + 7 {
            peer.media(chunk).await;
        }
        peer.say(stop()).await;
        // A paused clock moves when every task waits: by then all of it was read.
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(ended(&mut leg).await, CallEnd::new(Party::Caller, EndReason::HungUp));
        assert_eq!(peer.close_code().await, close_code::NORMAL);
        drop(peer);
        assert_eq!(task.await.unwrap().dropped, 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_for_room_in_the_queue() {
        let (mut peer, mut leg, task) = carried(4).await;
        for chunk in 1..=LEG_EVENT_QUEUE as u64 {
            peer.media(chunk).await;
        }
        peer.say(FromTwilio::Dtmf { sequence: None, stream_sid: "MZ1".into(), digit: "5".into() }).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        for _ in 0..LEG_EVENT_QUEUE {
            assert!(matches!(leg.events.recv().await, Some(LegEvent::Packet(_))));
        }
        assert!(matches!(leg.events.recv().await, Some(LegEvent::Dtmf('5'))));
        drop((leg, peer));
        assert_eq!(task.await.unwrap().dropped, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn hanging_up_closes_the_socket_whatever_is_queued() {
        let (mut peer, leg, task) = carried(0).await;
        for _ in 0..10 {
            leg.commands.send(audio()).await.unwrap();
        }
        leg.hangup.cancel();
        assert_eq!(peer.close_code().await, close_code::NORMAL);
        let begun = Instant::now();
        // This peer never answers the close.
        assert_eq!(task.await.unwrap().end, None);
        assert_eq!(begun.elapsed().as_secs(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn how_the_leg_ended_is_told_by_what_happened() {
        let lost = CallEnd::new(Party::Carrier, EndReason::ConnectionLost);
        let broken = CallEnd::new(Party::Carrier, EndReason::ProtocolError);

        let (peer, mut leg, task) = carried(4).await;
        drop(peer);
        assert_eq!(ended(&mut leg).await, lost);
        assert!(leg.events.recv().await.is_none(), "nothing follows an end");
        task.await.unwrap();

        let (mut peer, mut leg, _task) = carried(4).await;
        peer.to_us.send(Ok(Message::Close(None))).await.unwrap();
        assert_eq!(ended(&mut leg).await, lost);

        let (mut peer, mut leg, _task) = carried(4).await;
        peer.to_us.send(Err(axum::Error::new(std::io::Error::other("reset")))).await.unwrap();
        assert_eq!(ended(&mut leg).await, lost);

        let (mut peer, mut leg, _task) = carried(4).await;
        peer.say(start()).await;
        assert_eq!(ended(&mut leg).await, broken);
        assert_eq!(peer.close_code().await, close_code::PROTOCOL);
    }
}
