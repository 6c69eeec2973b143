//! The life of one bidirectional media stream as the server sees it: text of a websocket message in, events out, and
//! the text of what is to be sent. It owns no socket and no clock: who waits how long for `start` is the transport's
//! business.
//!
//! What a peer gets wrong is counted in [`StreamStats`] and survived, unless the stream makes no sense without it: then
//! `on_text` answers a [`StreamError`] and the socket is to be closed.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::media::frame::MediaTime;
use crate::media::packet::{Codec, Packet};
use crate::protocol::twilio::message::{
    FromTwilio, Media, MediaFormat, MessageError, Start, decode_payload, encode_payload,
};

/// 20 ms of mu-law: a payload of any length leaves in packets of at most this many bytes.
const PACKET_BYTES: usize = 160;

/// No stream is longer; a `timestamp` beyond it is nonsense and treated as absent.
const LONGEST_STREAM_MS: u64 = 7 * 24 * 3600 * 1000;

/// What a stream may cost before it is closed.
#[derive(Clone, Debug)]
pub struct StreamConfig {
    /// Bytes of one message, default 64 KiB: six seconds of audio, where Twilio sends 20 ms. A larger value lets one
    /// peer hold more memory.
    pub max_message_bytes: usize,
    /// Malformed messages that are survived, default 20; the next one closes the stream.
    pub max_bad_messages: u32,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self { max_message_bytes: 64 * 1024, max_bad_messages: 20 }
    }
}

/// What a message meant.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a packet carries its bytes inline, so that none is allocated")]
pub enum StreamEvent {
    Started(StartInfo),
    /// At most 20 ms of caller audio; its time is zero at the stream's first audio.
    Packet(Packet),
    /// One of `0-9 * # A-D`.
    Dtmf(char),
    /// Everything written before this mark was played. Never reported for a mark that a `clear` overtook.
    Played {
        mark: u64,
    },
    /// Twilio ended the stream: the caller hung up, or the call was redirected. Nothing follows.
    Stopped,
}

/// Whose stream it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartInfo {
    pub stream_sid: String,
    pub call_sid: String,
    pub account_sid: String,
    /// The `<Parameter>`s of the TwiML.
    pub parameters: BTreeMap<String, String>,
}

/// Why the stream cannot go on: close the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error("a message of {bytes} bytes")]
    TooLong { bytes: usize },
    #[error("too many malformed messages")]
    TooManyBad,
    #[error("{event} before start")]
    BeforeStart { event: &'static str },
    #[error("a second start")]
    SecondStart,
    /// `start` without a stream or call sid: nothing could be sent, and nobody knows whose call it is.
    #[error("start without {field}")]
    IncompleteStart { field: &'static str },
    /// Not mu-law, 8 kHz, mono.
    #[error("another media format than mu-law, 8 kHz, mono")]
    WrongFormat,
}

impl StreamError {
    /// Stable, for metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::TooLong { .. } => "message_too_long",
            Self::TooManyBad => "too_many_bad_messages",
            Self::BeforeStart { .. } => "before_start",
            Self::SecondStart => "second_start",
            Self::IncompleteStart { .. } => "incomplete_start",
            Self::WrongFormat => "wrong_format",
        }
    }
}

/// What was seen and survived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamStats {
    pub messages: u64,
    pub packets: u64,
    /// Not JSON, of a wrong shape, or without a field that the event is about. These count towards
    /// `max_bad_messages`, as does wrong base64.
    pub malformed: u64,
    pub bad_base64: u64,
    pub unknown_events: u64,
    /// Counters, digits or the media format left out or unreadable; the stream went on without them.
    pub missing_fields: u64,
    /// Media of another track than the caller's, or without audio.
    pub useless_media: u64,
    /// Messages that name another stream.
    pub other_stream: u64,
    /// `connected` twice, or anything after `stop`.
    pub out_of_place: u64,
    /// Messages that never came, by `sequenceNumber`.
    pub sequence_gaps: u64,
    /// Media messages that never came, by `chunk`.
    pub chunk_gaps: u64,
    /// Echoes of marks that a `clear` overtook.
    pub stale_marks: u64,
    /// Echoes of marks that were never written, or a second time.
    pub foreign_marks: u64,
}

/// One stream. Reuses its buffers: after the first packets neither way allocates.
pub struct TwilioStream {
    config: StreamConfig,
    state: State,
    stats: StreamStats,
    bad_messages: u32,
    connected: bool,
    stream_sid: String,
    last_sequence: Option<u64>,
    last_chunk: Option<u64>,
    /// Twilio's timestamp of the first audio, which is zero on the leg's axis.
    first_timestamp_ms: Option<u64>,
    /// Where the next audio belongs if its message does not say.
    next_at: MediaTime,
    decoded: Vec<u8>,
    /// `…"streamSid":"<escaped>"`, so that the sid is escaped once.
    media_head: String,
    mark_head: String,
    clear: String,
    /// How many times the carrier was told to drop what it holds.
    generation: u64,
    /// The newest mark written and the newest reported as played.
    last_written: Option<u64>,
    last_played: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    Stopped,
}

impl TwilioStream {
    pub fn new(config: StreamConfig) -> Self {
        Self {
            config,
            state: State::Waiting,
            stats: StreamStats::default(),
            bad_messages: 0,
            connected: false,
            stream_sid: String::new(),
            last_sequence: None,
            last_chunk: None,
            first_timestamp_ms: None,
            next_at: MediaTime::ZERO,
            decoded: Vec::new(),
            media_head: String::new(),
            mark_head: String::new(),
            clear: String::new(),
            generation: 0,
            last_written: None,
            last_played: None,
        }
    }

    pub fn stats(&self) -> &StreamStats {
        &self.stats
    }

    /// Takes one websocket message and appends what it meant. After an error the stream is over.
    pub fn on_text(&mut self, text: &str, out: &mut Vec<StreamEvent>) -> Result<(), StreamError> {
        self.stats.messages += 1;
        if text.len() > self.config.max_message_bytes {
            return Err(StreamError::TooLong { bytes: text.len() });
        }
        if self.state == State::Stopped {
            self.stats.out_of_place += 1;
            return Ok(());
        }
        match FromTwilio::parse(text) {
            Ok(message) => self.on_message(message, out),
            Err(MessageError::Malformed(_) | MessageError::Missing { .. }) => self.on_malformed(),
        }
    }

    /// Counts a message that is not even text.
    pub fn on_binary(&mut self) -> Result<(), StreamError> {
        self.stats.messages += 1;
        self.on_malformed()
    }

    fn on_malformed(&mut self) -> Result<(), StreamError> {
        self.stats.malformed += 1;
        self.on_bad()
    }

    fn on_bad(&mut self) -> Result<(), StreamError> {
        self.bad_messages += 1;
        if self.bad_messages > self.config.max_bad_messages { Err(StreamError::TooManyBad) } else { Ok(()) }
    }

    fn on_message(&mut self, message: FromTwilio<'_>, out: &mut Vec<StreamEvent>) -> Result<(), StreamError> {
        match message {
            FromTwilio::Connected { .. } => {
                if self.connected || self.state != State::Waiting {
                    self.stats.out_of_place += 1;
                }
                self.connected = true;
            }
            FromTwilio::Start { sequence, start } => {
                if self.state != State::Waiting {
                    return Err(StreamError::SecondStart);
                }
                self.count_sequence(sequence);
                out.push(StreamEvent::Started(self.on_start(start)?));
            }
            FromTwilio::Media { sequence, stream_sid, media } => {
                if self.is_ours("media", sequence, &stream_sid)? {
                    self.on_media(media, out)?;
                }
            }
            FromTwilio::Dtmf { sequence, stream_sid, digit } => {
                if self.is_ours("dtmf", sequence, &stream_sid)? {
                    match dtmf_digit(&digit) {
                        Some(digit) => out.push(StreamEvent::Dtmf(digit)),
                        None => self.stats.missing_fields += 1,
                    }
                }
            }
            FromTwilio::Mark { sequence, stream_sid, name } => {
                if self.is_ours("mark", sequence, &stream_sid)? {
                    self.on_mark(&name, out);
                }
            }
            FromTwilio::Stop { sequence, stream_sid, .. } => {
                // Without a `start` there is nothing that could end, and no sid to compare with.
                if self.state == State::Waiting || self.is_ours("stop", sequence, &stream_sid)? {
                    self.state = State::Stopped;
                    out.push(StreamEvent::Stopped);
                }
            }
            FromTwilio::Unknown { .. } => self.stats.unknown_events += 1,
        }
        Ok(())
    }

    fn on_start(&mut self, start: Start<'_>) -> Result<StartInfo, StreamError> {
        match &start.format {
            Some(format) if *format != MediaFormat::MULAW => return Err(StreamError::WrongFormat),
            Some(_) => {}
            // Documented as always the same, so that its absence says nothing.
            None => self.stats.missing_fields += 1,
        }
        if start.stream_sid.is_empty() {
            return Err(StreamError::IncompleteStart { field: "streamSid" });
        }
        if start.call_sid.is_empty() {
            return Err(StreamError::IncompleteStart { field: "callSid" });
        }
        let sid = serde_json::to_string(&start.stream_sid).expect("a string always serializes");
        self.media_head = format!(r#"{{"event":"media","streamSid":{sid},"media":{{"payload":""#);
        self.mark_head = format!(r#"{{"event":"mark","streamSid":{sid},"mark":{{"name":""#);
        self.clear = format!(r#"{{"event":"clear","streamSid":{sid}}}"#);
        self.stream_sid = start.stream_sid.clone().into_owned();
        self.state = State::Running;
        Ok(StartInfo {
            stream_sid: start.stream_sid.into_owned(),
            call_sid: start.call_sid.into_owned(),
            account_sid: start.account_sid.into_owned(),
            parameters: start.parameters,
        })
    }

    /// Whether a message that needs a started stream belongs to this one. A message that names none does.
    fn is_ours(&mut self, event: &'static str, sequence: Option<u64>, stream_sid: &str) -> Result<bool, StreamError> {
        if self.state == State::Waiting {
            return Err(StreamError::BeforeStart { event });
        }
        if !stream_sid.is_empty() && stream_sid != self.stream_sid {
            self.stats.other_stream += 1;
            return Ok(false);
        }
        self.count_sequence(sequence);
        Ok(true)
    }

    fn count_sequence(&mut self, sequence: Option<u64>) {
        match sequence {
            Some(sequence) => {
                self.stats.sequence_gaps = self.stats.sequence_gaps.saturating_add(gap(self.last_sequence, sequence));
                self.last_sequence = Some(sequence);
            }
            None => self.stats.missing_fields += 1,
        }
    }

    fn on_media(&mut self, media: Media<'_>, out: &mut Vec<StreamEvent>) -> Result<(), StreamError> {
        if !matches!(&*media.track, "inbound" | "inbound_track") {
            self.stats.useless_media += 1;
            return Ok(());
        }
        if let Some(chunk) = media.chunk {
            self.stats.chunk_gaps = self.stats.chunk_gaps.saturating_add(gap(self.last_chunk, chunk));
            self.last_chunk = Some(chunk);
        } else {
            self.stats.missing_fields += 1;
        }
        if !decode_payload(&media.payload, &mut self.decoded) {
            self.stats.bad_base64 += 1;
            return self.on_bad();
        }
        if self.decoded.is_empty() {
            self.stats.useless_media += 1;
            return Ok(());
        }
        let mut at = match media.timestamp_ms.filter(|&ms| ms <= LONGEST_STREAM_MS) {
            Some(ms) => {
                let next_ms = self.next_at.as_millis();
                let first_ms = *self.first_timestamp_ms.get_or_insert(ms.saturating_sub(next_ms));
                MediaTime::from_millis(ms.saturating_sub(first_ms))
            }
            None => {
                self.stats.missing_fields += 1;
                self.next_at
            }
        };
        for payload in self.decoded.chunks(PACKET_BYTES) {
            let packet = Packet::new(Codec::Pcmu, at, payload).expect("a chunk of 160 bytes fits a packet of 480");
            at = at + packet.duration();
            self.stats.packets += 1;
            out.push(StreamEvent::Packet(packet));
        }
        self.next_at = at;
        Ok(())
    }

    fn on_mark(&mut self, name: &str, out: &mut Vec<StreamEvent>) {
        let Some((generation, mark)) = parse_mark(name) else {
            self.stats.foreign_marks += 1;
            return;
        };
        if generation < self.generation {
            self.stats.stale_marks += 1;
        } else if generation > self.generation || Some(mark) > self.last_written || Some(mark) <= self.last_played {
            self.stats.foreign_marks += 1;
        } else {
            self.last_played = Some(mark);
            out.push(StreamEvent::Played { mark });
        }
    }

    /// Replaces `out` with the message that plays `packet`; empty before `start`, when nothing can be sent.
    pub fn write_media(&self, packet: &Packet, out: &mut String) {
        assert_eq!(packet.codec, Codec::Pcmu, "a leg of Twilio's is made with mu-law, so its packets are mu-law");
        out.clear();
        if self.state == State::Running {
            out.push_str(&self.media_head);
            encode_payload(packet.payload(), out);
            out.push_str("\"}}");
        }
    }

    /// Replaces `out` with a mark, named after the generation of audio it follows; empty before `start`. Numbers must
    /// grow: the echo of a smaller one is not taken for "played".
    pub fn write_mark(&mut self, mark: u64, out: &mut String) {
        out.clear();
        if self.state == State::Running {
            self.last_written = self.last_written.max(Some(mark));
            out.push_str(&self.mark_head);
            write!(out, "g{}-{mark}\"}}}}", self.generation).expect("writing to a String cannot fail");
        }
    }

    /// Replaces `out` with the order to drop all audio that was not played yet; empty before `start`. Twilio then
    /// echoes every pending mark although nobody heard them: they belong to an older generation and are not reported.
    pub fn write_clear(&mut self, out: &mut String) {
        out.clear();
        if self.state == State::Running {
            self.generation += 1;
            // Marks written so far can no longer be played.
            self.last_played = self.last_written;
            out.push_str(&self.clear);
        }
    }
}

/// How many numbers are missing between two of a row that grows by one; none where it goes backwards.
fn gap(last: Option<u64>, this: u64) -> u64 {
    last.map_or(0, |last| this.saturating_sub(last).saturating_sub(1))
}

fn dtmf_digit(text: &str) -> Option<char> {
    let mut chars = text.trim().chars();
    let digit = chars.next()?.to_ascii_uppercase();
    (chars.next().is_none() && matches!(digit, '0'..='9' | '*' | '#' | 'A'..='D')).then_some(digit)
}

/// `g{generation}-{mark}`.
fn parse_mark(name: &str) -> Option<(u64, u64)> {
    let (generation, mark) = name.strip_prefix('g')?.split_once('-')?;
    Some((generation.parse().ok()?, mark.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::twilio::message::ToTwilio;
    use proptest::prelude::*;

    const START: &str = r#"{"event":"start","sequenceNumber":"1","streamSid":"MZ1","start":{"streamSid":"MZ1",
        "accountSid":"AC1","callSid":"CA1","tracks":["inbound"],"customParameters":{"a":"b"},
        "mediaFormat":{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1}}}"#;

    fn media(sequence: u64, chunk: u64, timestamp_ms: u64, bytes: usize) -> String {
        let mut payload = String::new();
        encode_payload(&vec![0xFF; bytes], &mut payload);
        format!(
            r#"{{"event":"media","sequenceNumber":"{sequence}","streamSid":"MZ1","media":{{"track":"inbound",
               "chunk":"{chunk}","timestamp":"{timestamp_ms}","payload":"{payload}"}}}}"#
        )
    }

    fn mark(name: &str) -> String {
        format!(r#"{{"event":"mark","sequenceNumber":"2","streamSid":"MZ1","mark":{{"name":"{name}"}}}}"#)
    }

    fn started() -> TwilioStream {
        let mut stream = TwilioStream::new(StreamConfig::default());
        stream.on_text(START, &mut Vec::new()).unwrap();
        stream
    }

    fn feed(stream: &mut TwilioStream, text: &str) -> Vec<StreamEvent> {
        let mut events = Vec::new();
        stream.on_text(text, &mut events).unwrap();
        events
    }

    /// Time in ms and length in bytes of every packet.
    fn packets(events: &[StreamEvent]) -> Vec<(u64, usize)> {
        events
            .iter()
            .map(|event| match event {
                StreamEvent::Packet(packet) => (packet.at.as_millis(), packet.payload().len()),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn played(events: &[StreamEvent]) -> Vec<u64> {
        events
            .iter()
            .map(|event| match event {
                StreamEvent::Played { mark } => *mark,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn a_start_says_whose_stream_it_is() {
        let mut stream = TwilioStream::new(StreamConfig::default());
        assert!(feed(&mut stream, r#"{"event":"connected","protocol":"Call","version":"1.0.0"}"#).is_empty());
        match &feed(&mut stream, START)[..] {
            [StreamEvent::Started(info)] => assert_eq!(
                *info,
                StartInfo {
                    stream_sid: "MZ1".into(),
                    call_sid: "CA1".into(),
                    account_sid: "AC1".into(),
                    parameters: BTreeMap::from([("a".into(), "b".into())]),
                }
            ),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_stream_that_makes_no_sense_is_closed() {
        let check = |texts: &[&str], expected: StreamError| {
            let mut stream = TwilioStream::new(StreamConfig::default());
            let (last, before) = texts.split_last().unwrap();
            for text in before {
                feed(&mut stream, text);
            }
            assert_eq!(stream.on_text(last, &mut Vec::new()), Err(expected), "{last}");
        };
        check(&[&media(1, 1, 0, 160)], StreamError::BeforeStart { event: "media" });
        check(&[&mark("g0-1")], StreamError::BeforeStart { event: "mark" });
        check(&[r#"{"event":"dtmf","dtmf":{"digit":"1"}}"#], StreamError::BeforeStart { event: "dtmf" });
        check(&[START, START], StreamError::SecondStart);
        check(&[&START.replace("x-mulaw", "x-alaw")], StreamError::WrongFormat);
        check(&[&START.replace("8000", "16000")], StreamError::WrongFormat);
        check(&[&START.replace(r#""channels":1"#, r#""channels":2"#)], StreamError::WrongFormat);
        check(&[&START.replace("MZ1", "")], StreamError::IncompleteStart { field: "streamSid" });
        check(&[&START.replace("CA1", "")], StreamError::IncompleteStart { field: "callSid" });
        let long = "x".repeat(10_000_000);
        check(&[START, &long], StreamError::TooLong { bytes: 10_000_000 });
        check(&[START, &media(1, 1, 0, 50_000)], StreamError::TooLong { bytes: media(1, 1, 0, 50_000).len() });
    }

    #[test]
    fn bad_messages_are_counted_and_survived_up_to_the_limit() {
        let mut stream = TwilioStream::new(StreamConfig { max_bad_messages: 3, ..StreamConfig::default() });
        feed(&mut stream, START);
        assert!(feed(&mut stream, "{").is_empty());
        assert!(feed(&mut stream, r#"{"event":"media","streamSid":"MZ1"}"#).is_empty());
        assert!(feed(&mut stream, r#"{"event":"media","media":{"payload":"%%%"}}"#).is_empty());
        assert_eq!(packets(&feed(&mut stream, &media(2, 1, 0, 160))), [(0, 160)]);
        assert_eq!((stream.stats().malformed, stream.stats().bad_base64), (2, 1));
        assert_eq!(stream.on_binary(), Err(StreamError::TooManyBad));
    }

    #[test]
    fn what_is_unknown_or_foreign_is_counted_and_ignored() {
        let mut stream = started();
        let ignored = [
            r#"{"event":"weather","media":"sunny"}"#.to_owned(),
            media(2, 1, 0, 160).replace("inbound", "outbound"),
            media(2, 1, 0, 160).replace("MZ1", "MZ2"),
            media(2, 1, 0, 0),
            r#"{"event":"connected","protocol":"Call","version":"1.0.0"}"#.to_owned(),
            r#"{"event":"dtmf","sequenceNumber":"2","dtmf":{"digit":"12"}}"#.to_owned(),
        ];
        for text in &ignored {
            assert!(feed(&mut stream, text).is_empty(), "{text}");
        }
        let stats = stream.stats();
        assert_eq!((stats.unknown_events, stats.useless_media, stats.other_stream), (1, 2, 1));
        assert_eq!((stats.out_of_place, stats.missing_fields, stats.malformed), (1, 1, 0));
    }

    #[test]
    fn a_payload_of_any_length_leaves_in_packets_of_20_ms() {
        let mut stream = started();
        // Twilio's clock starts before its first audio; a leg's starts with it.
        assert_eq!(packets(&feed(&mut stream, &media(2, 1, 60, 160))), [(0, 160)]);
        assert_eq!(packets(&feed(&mut stream, &media(3, 2, 80, 400))), [(20, 160), (40, 160), (60, 80)]);
        assert_eq!(packets(&feed(&mut stream, &media(4, 3, 130, 8))), [(70, 8)]);
        assert_eq!(packets(&feed(&mut stream, &media(5, 4, 1060, 160))), [(1000, 160)]);
    }

    #[test]
    fn audio_without_a_timestamp_follows_what_came_before() {
        let mut stream = started();
        let without = |timestamp: &str| media(2, 1, 777, 160).replace(r#""777""#, timestamp);
        assert_eq!(packets(&feed(&mut stream, &without("null"))), [(0, 160)]);
        assert_eq!(packets(&feed(&mut stream, &without(r#""soon""#))), [(20, 160)]);
        assert_eq!(packets(&feed(&mut stream, &media(2, 1, 540, 160))), [(40, 160)]);
        assert_eq!(packets(&feed(&mut stream, &media(2, 1, 560, 160))), [(60, 160)]);
        // A year is no time in a call.
        assert_eq!(packets(&feed(&mut stream, &without("31536000000"))), [(80, 160)]);
        assert_eq!(stream.stats().missing_fields, 3);
    }

    #[test]
    fn gaps_are_counted_by_message_and_by_chunk() {
        let mut stream = started();
        feed(&mut stream, &media(2, 1, 0, 160));
        feed(&mut stream, &media(5, 3, 40, 160));
        feed(&mut stream, &media(4, 2, 20, 160));
        feed(&mut stream, &media(u64::MAX, u64::MAX, 60, 160));
        feed(&mut stream, &media(0, 0, 60, 160));
        feed(&mut stream, &media(u64::MAX, u64::MAX, 60, 160));
        assert_eq!(stream.stats().sequence_gaps, u64::MAX);
        let mut stream = started();
        feed(&mut stream, &media(2, 1, 0, 160));
        feed(&mut stream, &media(5, 3, 40, 160));
        assert_eq!((stream.stats().sequence_gaps, stream.stats().chunk_gaps), (2, 1));
    }

    #[test]
    fn keys_of_a_telephone_are_reported() {
        let mut stream = started();
        for (digit, expected) in [("0", '0'), ("9", '9'), ("*", '*'), ("#", '#'), ("a", 'A'), ("D", 'D')] {
            let text = format!(r#"{{"event":"dtmf","streamSid":"MZ1","dtmf":{{"digit":"{digit}"}}}}"#);
            assert!(matches!(feed(&mut stream, &text)[..], [StreamEvent::Dtmf(key)] if key == expected));
        }
    }

    #[test]
    fn nothing_can_be_sent_before_start() {
        let mut stream = TwilioStream::new(StreamConfig::default());
        let packet = Packet::new(Codec::Pcmu, MediaTime::ZERO, &[0xFF; 160]).unwrap();
        let mut out = "left over".to_owned();
        stream.write_media(&packet, &mut out);
        assert_eq!(out, "");
        stream.write_mark(1, &mut out);
        assert_eq!(out, "");
        stream.write_clear(&mut out);
        assert_eq!(out, "");
    }

    #[test]
    fn what_is_sent_names_the_stream() {
        let mut stream = TwilioStream::new(StreamConfig::default());
        feed(&mut stream, &START.replace("MZ1", r#"M\"Z1"#));
        let packet = Packet::new(Codec::Pcmu, MediaTime::ZERO, &[0xFF, 0x7F]).unwrap();
        let mut out = String::new();
        let stream_sid = || "M\"Z1".into();
        stream.write_media(&packet, &mut out);
        assert_eq!(
            ToTwilio::parse(&out).unwrap(),
            ToTwilio::Media { stream_sid: stream_sid(), payload: "/38=".into() }
        );
        stream.write_mark(7, &mut out);
        assert_eq!(ToTwilio::parse(&out).unwrap(), ToTwilio::Mark { stream_sid: stream_sid(), name: "g0-7".into() });
        stream.write_clear(&mut out);
        assert_eq!(ToTwilio::parse(&out).unwrap(), ToTwilio::Clear { stream_sid: stream_sid() });
        stream.write_mark(8, &mut out);
        assert_eq!(ToTwilio::parse(&out).unwrap(), ToTwilio::Mark { stream_sid: stream_sid(), name: "g1-8".into() });
    }

    #[test]
    fn writing_media_again_does_not_grow_the_buffer() {
        let stream = started();
        let packet = Packet::new(Codec::Pcmu, MediaTime::ZERO, &[0x55; 160]).unwrap();
        let mut out = String::new();
        stream.write_media(&packet, &mut out);
        let (first, capacity) = (out.clone(), out.capacity());
        for _ in 0..10 {
            stream.write_media(&packet, &mut out);
        }
        assert_eq!((out.as_str(), out.capacity()), (first.as_str(), capacity));
    }

    #[test]
    fn the_echo_of_a_cleared_mark_is_not_taken_for_played() {
        let mut stream = started();
        let mut out = String::new();
        stream.write_mark(1, &mut out);
        stream.write_mark(2, &mut out);
        assert_eq!(played(&feed(&mut stream, &mark("g0-1"))), [1]);
        stream.write_clear(&mut out);
        stream.write_mark(3, &mut out);
        assert!(feed(&mut stream, &mark("g0-2")).is_empty());
        assert_eq!(played(&feed(&mut stream, &mark("g1-3"))), [3]);
        assert_eq!((stream.stats().stale_marks, stream.stats().foreign_marks), (1, 0));
    }

    #[test]
    fn marks_that_were_never_written_are_not_reported() {
        let mut stream = started();
        let mut out = String::new();
        stream.write_mark(5, &mut out);
        for name in ["g0-6", "g1-5", "5", "", "g-", "g0-", "g0-5x", "gx-5", "g99999999999999999999-5"] {
            assert!(feed(&mut stream, &mark(name)).is_empty(), "{name}");
        }
        assert_eq!(played(&feed(&mut stream, &mark("g0-5"))), [5]);
        assert!(feed(&mut stream, &mark("g0-5")).is_empty());
        assert_eq!(stream.stats().foreign_marks, 10);
    }

    #[test]
    fn nothing_follows_a_stop() {
        let mut stream = started();
        let stop = r#"{"event":"stop","sequenceNumber":"2","streamSid":"MZ1","stop":{"callSid":"CA1"}}"#;
        assert!(matches!(feed(&mut stream, stop)[..], [StreamEvent::Stopped]));
        for text in [stop, START, &media(3, 1, 0, 160)] {
            assert!(feed(&mut stream, text).is_empty());
        }
        assert_eq!(stream.stats().out_of_place, 3);
        let mut out = String::new();
        stream.write_mark(1, &mut out);
        assert_eq!(out, "");
    }

    /// What fuzzing starts from, and what the bounded loop below mutates.
    fn seeds() -> Vec<String> {
        vec![
            r#"{"event":"connected","protocol":"Call","version":"1.0.0"}"#.into(),
            START.into(),
            media(2, 1, 0, 160),
            media(3, 2, 20, 999),
            r#"{"event":"dtmf","sequenceNumber":"4","streamSid":"MZ1","dtmf":{"track":"inbound_track","digit":"5"}}"#
                .into(),
            mark("g0-1"),
            r#"{"event":"stop","sequenceNumber":"6","streamSid":"MZ1","stop":{"accountSid":"AC1","callSid":"CA1"}}"#
                .into(),
            r#"{"event":"weather","media":[]}"#.into(),
        ]
    }

    /// Feeds messages as a fuzz target would and checks what must hold whatever comes.
    fn survives(messages: &[String]) {
        let mut stream = TwilioStream::new(StreamConfig::default());
        let (mut events, mut out) = (Vec::new(), String::new());
        let packet = Packet::new(Codec::Pcmu, MediaTime::ZERO, &[0xFF; 160]).unwrap();
        for (i, text) in messages.iter().enumerate() {
            if stream.on_text(text, &mut events).is_err() {
                break;
            }
            stream.write_media(&packet, &mut out);
            stream.write_mark(i as u64, &mut out);
            if i % 3 == 2 {
                stream.write_clear(&mut out);
            }
            assert!(out.is_empty() || ToTwilio::parse(&out).is_ok(), "{out}");
        }
        let mut last = None;
        for event in &events {
            if let StreamEvent::Played { mark } = event {
                assert!(Some(*mark) > last && *mark < messages.len() as u64, "{mark} after {last:?}");
                last = Some(*mark);
            }
        }
        let starts = events.iter().filter(|event| matches!(event, StreamEvent::Started(_))).count();
        let stops = events.iter().filter(|event| matches!(event, StreamEvent::Stopped)).count();
        assert!(starts <= 1 && stops <= 1);
        assert!(
            events.iter().all(|event| !matches!(event, StreamEvent::Packet(p) if p.payload().len() > PACKET_BYTES))
        );
    }

    /// A bounded stand-in for `scripts/fuzz.sh` on the stable toolchain: bytes of good messages are flipped, cut, doubled
    /// and swapped between messages.
    #[test]
    fn mutated_messages_never_panic() {
        // SplitMix64 (Steele, Lea, Flood 2014): the same mutations on every run.
        let mut state: u64 = 0x0ff_4001;
        let mut random = move |below: usize| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) % below.max(1) as u64) as usize
        };
        let seeds = seeds();
        for _ in 0..3000 {
            let mut messages = vec![seeds[0].clone(), seeds[1].clone()];
            for _ in 0..6 {
                let mut bytes = seeds[random(seeds.len())].clone().into_bytes();
                for _ in 0..random(4) {
                    let at = random(bytes.len());
                    match random(5) {
                        0 => bytes[at] = random(256) as u8,
                        1 => bytes.truncate(at + 1),
                        2 => bytes.extend_from_within(at..),
                        3 => bytes[at] ^= 1 << random(8),
                        _ => {
                            let other = seeds[random(seeds.len())].as_bytes();
                            bytes.splice(at.., other[random(other.len())..].iter().copied());
                        }
                    }
                }
                messages.push(String::from_utf8_lossy(&bytes).into_owned());
            }
            // Half of the streams start well, so that the mutations reach what comes after.
            if random(2) == 0 {
                messages.drain(..2);
            }
            survives(&messages);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(texts in proptest::collection::vec(any::<String>(), 0..8)) {
            survives(&texts);
        }

        #[test]
        fn any_order_of_good_messages_is_survived(order in proptest::collection::vec(0..8usize, 0..30)) {
            let seeds = seeds();
            survives(&order.into_iter().map(|i| seeds[i].clone()).collect::<Vec<_>>());
        }

        /// Whatever is written, cleared and echoed, only marks written since the last clear are reported, each once.
        #[test]
        fn played_is_only_ever_said_of_what_was_not_cleared(steps in proptest::collection::vec(0..10u8, 0..60)) {
            let mut stream = started();
            let mut out = String::new();
            let (mut next, mut pending, mut cleared) = (0, Vec::new(), Vec::new());
            for step in steps {
                match step {
                    0..=3 => {
                        stream.write_mark(next, &mut out);
                        let Ok(ToTwilio::Mark { name, .. }) = ToTwilio::parse(&out) else { panic!("{out}") };
                        pending.push((next, name.into_owned()));
                        next += 1;
                    }
                    4 => {
                        stream.write_clear(&mut out);
                        cleared.append(&mut pending);
                    }
                    5..=7 if !pending.is_empty() => {
                        let (number, name) = pending.remove(0);
                        prop_assert_eq!(played(&feed(&mut stream, &mark(&name))), vec![number]);
                    }
                    _ => {
                        if let Some((_, name)) = cleared.pop() {
                            prop_assert!(feed(&mut stream, &mark(&name)).is_empty());
                        }
                    }
                }
            }
        }

        #[test]
        fn no_sample_is_lost_or_moved_by_cutting(lengths in proptest::collection::vec(1..3000usize, 1..10)) {
            let mut stream = started();
            let mut at_samples = 0;
            for (i, &length) in lengths.iter().enumerate() {
                let text = media(i as u64 + 2, i as u64 + 1, 0, length).replace(r#""timestamp":"0""#, r#""timestamp":null"#);
                for event in feed(&mut stream, &text) {
                    let StreamEvent::Packet(packet) = event else { panic!("{event:?}") };
                    let expected = packet.codec.rate().duration(at_samples);
                    let off = packet.at.since_start().abs_diff(expected);
                    // Each packet's length is rounded to a nanosecond.
                    prop_assert!(off.as_micros() < 1, "{:?} for {:?}", packet.at, expected);
                    at_samples += packet.payload().len();
                }
            }
            prop_assert_eq!(at_samples, lengths.iter().sum::<usize>());
        }
    }
}
