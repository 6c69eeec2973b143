//! The JSON messages of Twilio Media Streams, both ways: a server parses [`FromTwilio`] and writes [`ToTwilio`], a
//! simulated caller does the opposite. Shapes only: what may follow what is `stream.rs`.
//!
//! Twilio writes every counter as a string that holds a decimal integer; numbers are taken as well, and a counter that
//! makes no sense is treated as absent. Unknown events and unknown fields are no errors: Twilio adds both without
//! notice.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{self, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Base64 with padding on the way out and with or without it on the way in.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a text is no message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Not JSON, or a known event of another shape. Count it and read on.
    #[error("malformed message")]
    Malformed(#[source] serde_json::Error),
    /// A known event lacks what it is about. Count it and read on.
    #[error("{event} without {field}")]
    Missing { event: &'static str, field: &'static str },
}

/// What Twilio sends.
#[derive(Clone, Debug, PartialEq)]
pub enum FromTwilio<'a> {
    /// The first message; there is no stream yet.
    Connected {
        protocol: Cow<'a, str>,
        version: Cow<'a, str>,
    },
    Start {
        sequence: Option<u64>,
        start: Start<'a>,
    },
    Media {
        sequence: Option<u64>,
        stream_sid: Cow<'a, str>,
        media: Media<'a>,
    },
    Dtmf {
        sequence: Option<u64>,
        stream_sid: Cow<'a, str>,
        /// As sent: one of `0-9 * #`, but not checked here.
        digit: Cow<'a, str>,
    },
    /// Everything sent before the mark of this name was played, or was thrown away by a `clear`.
    Mark {
        sequence: Option<u64>,
        stream_sid: Cow<'a, str>,
        name: Cow<'a, str>,
    },
    Stop {
        sequence: Option<u64>,
        stream_sid: Cow<'a, str>,
        account_sid: Cow<'a, str>,
        call_sid: Cow<'a, str>,
    },
    /// An event that is not in the documentation yet.
    Unknown {
        event: Cow<'a, str>,
    },
}

/// What `start` says of the stream. Sids are empty where Twilio left them out.
#[derive(Clone, Debug, PartialEq)]
pub struct Start<'a> {
    pub stream_sid: Cow<'a, str>,
    pub account_sid: Cow<'a, str>,
    pub call_sid: Cow<'a, str>,
    /// A subset of `inbound`, `outbound`.
    pub tracks: Vec<Cow<'a, str>>,
    /// The `<Parameter>`s of the TwiML.
    pub parameters: BTreeMap<String, String>,
    /// `None` where Twilio left it out.
    pub format: Option<MediaFormat<'a>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MediaFormat<'a> {
    #[serde(borrow)]
    pub encoding: Cow<'a, str>,
    /// Hz.
    pub sample_rate: u32,
    pub channels: u32,
}

impl MediaFormat<'_> {
    /// The only one there is: G.711 mu-law, 8 kHz, mono.
    pub const MULAW: MediaFormat<'static> =
        MediaFormat { encoding: Cow::Borrowed("audio/x-mulaw"), sample_rate: 8000, channels: 1 };
}

/// Caller audio.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Media<'a> {
    /// `inbound` (also when left out) or `outbound`.
    pub track: Cow<'a, str>,
    /// Counts the media messages of the track from 1.
    pub chunk: Option<u64>,
    /// Milliseconds since the start of the stream.
    pub timestamp_ms: Option<u64>,
    /// Base64 of headerless audio of any length.
    pub payload: Cow<'a, str>,
}

impl<'a> FromTwilio<'a> {
    /// Borrows from `text` wherever the JSON holds no escapes.
    pub fn parse(text: &'a str) -> Result<Self, MessageError> {
        let wire: FromWire<'a> = match serde_json::from_str(text) {
            Ok(wire) => wire,
            Err(error) => return unknown_event(text, error, FROM_TWILIO).map(|event| Self::Unknown { event }),
        };
        let sequence = wire.sequence_number;
        let stream_sid = text_or_empty(wire.stream_sid);
        let missing = |event, field| MessageError::Missing { event, field };
        Ok(match &*wire.event.0 {
            "connected" => {
                Self::Connected { protocol: text_or_empty(wire.protocol), version: text_or_empty(wire.version) }
            }
            "start" => {
                let start = wire.start.ok_or(missing("start", "start"))?;
                let inner_sid = text_or_empty(start.stream_sid);
                let start = Start {
                    stream_sid: if inner_sid.is_empty() { stream_sid } else { inner_sid },
                    account_sid: text_or_empty(start.account_sid),
                    call_sid: text_or_empty(start.call_sid),
                    tracks: start.tracks.into_iter().map(|track| track.0).collect(),
                    parameters: start.custom_parameters.unwrap_or_default(),
                    format: start.media_format,
                };
                Self::Start { sequence, start }
            }
            "media" => {
                let media = wire.media.ok_or(missing("media", "media"))?;
                let payload = media.payload.ok_or(missing("media", "payload"))?.0;
                let track = media.track.map_or(Cow::Borrowed("inbound"), |track| track.0);
                let media = Media { track, chunk: media.chunk, timestamp_ms: media.timestamp, payload };
                Self::Media { sequence, stream_sid, media }
            }
            "dtmf" => {
                let digit = wire.dtmf.and_then(|dtmf| dtmf.digit).ok_or(missing("dtmf", "digit"))?.0;
                Self::Dtmf { sequence, stream_sid, digit }
            }
            "mark" => {
                let name = wire.mark.and_then(|mark| mark.name).ok_or(missing("mark", "name"))?.0;
                Self::Mark { sequence, stream_sid, name }
            }
            "stop" => {
                let (account_sid, call_sid) =
                    wire.stop.map(|stop| (stop.account_sid, stop.call_sid)).unwrap_or_default();
                Self::Stop {
                    sequence,
                    stream_sid,
                    account_sid: text_or_empty(account_sid),
                    call_sid: text_or_empty(call_sid),
                }
            }
            _ => Self::Unknown { event: wire.event.0 },
        })
    }

    /// Appends the message as JSON: what a simulated caller sends.
    pub fn write(&self, out: &mut String) {
        let mut wire = FromWire::default();
        match self {
            Self::Connected { protocol, version } => {
                wire.event = some_text("connected");
                (wire.protocol, wire.version) = (Some(some_text(protocol)), Some(some_text(version)));
            }
            Self::Start { sequence, start } => {
                wire.event = some_text("start");
                wire.sequence_number = *sequence;
                wire.stream_sid = Some(some_text(&start.stream_sid));
                wire.start = Some(StartWire {
                    stream_sid: Some(some_text(&start.stream_sid)),
                    account_sid: Some(some_text(&start.account_sid)),
                    call_sid: Some(some_text(&start.call_sid)),
                    tracks: start.tracks.iter().map(|track| some_text(track)).collect(),
                    custom_parameters: Some(start.parameters.clone()),
                    media_format: start.format.clone(),
                });
            }
            Self::Media { sequence, stream_sid, media } => {
                wire.event = some_text("media");
                (wire.sequence_number, wire.stream_sid) = (*sequence, Some(some_text(stream_sid)));
                wire.media = Some(MediaWire {
                    track: Some(some_text(&media.track)),
                    chunk: media.chunk,
                    timestamp: media.timestamp_ms,
                    payload: Some(some_text(&media.payload)),
                });
            }
            Self::Dtmf { sequence, stream_sid, digit } => {
                wire.event = some_text("dtmf");
                (wire.sequence_number, wire.stream_sid) = (*sequence, Some(some_text(stream_sid)));
                // Twilio writes the track of a digit as TwiML does, not as media messages do.
                wire.dtmf = Some(DtmfWire { track: Some(some_text("inbound_track")), digit: Some(some_text(digit)) });
            }
            Self::Mark { sequence, stream_sid, name } => {
                wire.event = some_text("mark");
                (wire.sequence_number, wire.stream_sid) = (*sequence, Some(some_text(stream_sid)));
                wire.mark = Some(MarkWire { name: Some(some_text(name)) });
            }
            Self::Stop { sequence, stream_sid, account_sid, call_sid } => {
                wire.event = some_text("stop");
                (wire.sequence_number, wire.stream_sid) = (*sequence, Some(some_text(stream_sid)));
                wire.stop =
                    Some(StopWire { account_sid: Some(some_text(account_sid)), call_sid: Some(some_text(call_sid)) });
            }
            Self::Unknown { event } => wire.event = some_text(event),
        }
        append_json(&wire, out);
    }
}

/// What is sent to Twilio. The server's own hot path is `TwilioStream::write_media`, which writes the same shapes
/// without allocating.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToTwilio<'a> {
    /// Audio, to be played after what was sent before.
    Media { stream_sid: Cow<'a, str>, payload: Cow<'a, str> },
    /// To be echoed when everything sent before has been played.
    Mark { stream_sid: Cow<'a, str>, name: Cow<'a, str> },
    /// Throws away what is buffered; pending marks are echoed at once.
    Clear { stream_sid: Cow<'a, str> },
    /// No message that Twilio knows; real Twilio ends the stream with error 31924.
    Unknown { event: Cow<'a, str> },
}

impl<'a> ToTwilio<'a> {
    /// For a simulated caller. Borrows from `text` wherever the JSON holds no escapes.
    pub fn parse(text: &'a str) -> Result<Self, MessageError> {
        let wire: ToWire<'a> = match serde_json::from_str(text) {
            Ok(wire) => wire,
            Err(error) => return unknown_event(text, error, TO_TWILIO).map(|event| Self::Unknown { event }),
        };
        let missing = |event, field| MessageError::Missing { event, field };
        let stream_sid = text_or_empty(wire.stream_sid);
        Ok(match &*wire.event.0 {
            "media" => {
                let payload = wire.media.and_then(|media| media.payload).ok_or(missing("media", "payload"))?.0;
                Self::Media { stream_sid, payload }
            }
            "mark" => {
                let name = wire.mark.and_then(|mark| mark.name).ok_or(missing("mark", "name"))?.0;
                Self::Mark { stream_sid, name }
            }
            "clear" => Self::Clear { stream_sid },
            _ => Self::Unknown { event: wire.event.0 },
        })
    }

    /// Appends the message as JSON.
    pub fn write(&self, out: &mut String) {
        let wire = match self {
            Self::Media { stream_sid, payload } => ToWire {
                event: some_text("media"),
                stream_sid: Some(some_text(stream_sid)),
                media: Some(PayloadWire { payload: Some(some_text(payload)) }),
                mark: None,
            },
            Self::Mark { stream_sid, name } => ToWire {
                event: some_text("mark"),
                stream_sid: Some(some_text(stream_sid)),
                media: None,
                mark: Some(MarkWire { name: Some(some_text(name)) }),
            },
            Self::Clear { stream_sid } => {
                ToWire { event: some_text("clear"), stream_sid: Some(some_text(stream_sid)), media: None, mark: None }
            }
            Self::Unknown { event } => ToWire { event: some_text(event), stream_sid: None, media: None, mark: None },
        };
        append_json(&wire, out);
    }
}

/// Appends the base64 of `payload`.
pub fn encode_payload(payload: &[u8], out: &mut String) {
    BASE64.encode_string(payload, out);
}

/// Replaces `out` with the bytes of a payload; false where it is not base64.
#[must_use]
pub fn decode_payload(payload: &str, out: &mut Vec<u8>) -> bool {
    out.clear();
    BASE64.decode_vec(payload, out).is_ok()
}

const FROM_TWILIO: &[&str] = &["connected", "start", "media", "dtmf", "mark", "stop"];
const TO_TWILIO: &[&str] = &["media", "mark", "clear"];

/// The event of a message whose other fields did not parse, if it is none of `known`: an event that is not known yet
/// may use a known field name for another shape.
fn unknown_event<'a>(text: &'a str, error: serde_json::Error, known: &[&str]) -> Result<Cow<'a, str>, MessageError> {
    #[derive(Deserialize)]
    struct EventOnly<'a> {
        #[serde(borrow)]
        event: Text<'a>,
    }
    match serde_json::from_str::<EventOnly<'a>>(text) {
        Ok(message) if !known.contains(&&*message.event.0) => Ok(message.event.0),
        _ => Err(MessageError::Malformed(error)),
    }
}

fn append_json(wire: &impl Serialize, out: &mut String) {
    out.push_str(&serde_json::to_string(wire).expect("plain structs with string keys always serialize"));
}

fn text_or_empty(text: Option<Text<'_>>) -> Cow<'_, str> {
    text.map(|text| text.0).unwrap_or_default()
}

fn some_text(text: &str) -> Text<'_> {
    Text(Cow::Borrowed(text))
}

/// A string that borrows where it can. (An `Option<Cow<str>>` field never borrows in serde; an option of this does.)
#[derive(Default, Serialize, Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FromWire<'a> {
    #[serde(borrow)]
    event: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<Text<'a>>,
    #[serde(default, with = "counter", skip_serializing_if = "Option::is_none")]
    sequence_number: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_sid: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<StartWire<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    media: Option<MediaWire<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dtmf: Option<DtmfWire<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mark: Option<MarkWire<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop: Option<StopWire<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StartWire<'a> {
    #[serde(borrow)]
    stream_sid: Option<Text<'a>>,
    account_sid: Option<Text<'a>>,
    call_sid: Option<Text<'a>>,
    #[serde(default)]
    tracks: Vec<Text<'a>>,
    custom_parameters: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    media_format: Option<MediaFormat<'a>>,
}

#[derive(Serialize, Deserialize)]
struct MediaWire<'a> {
    #[serde(borrow)]
    track: Option<Text<'a>>,
    #[serde(default, with = "counter", skip_serializing_if = "Option::is_none")]
    chunk: Option<u64>,
    #[serde(default, with = "counter", skip_serializing_if = "Option::is_none")]
    timestamp: Option<u64>,
    payload: Option<Text<'a>>,
}

#[derive(Serialize, Deserialize)]
struct DtmfWire<'a> {
    #[serde(borrow)]
    track: Option<Text<'a>>,
    digit: Option<Text<'a>>,
}

#[derive(Serialize, Deserialize)]
struct MarkWire<'a> {
    #[serde(borrow)]
    name: Option<Text<'a>>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StopWire<'a> {
    #[serde(borrow)]
    account_sid: Option<Text<'a>>,
    call_sid: Option<Text<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ToWire<'a> {
    #[serde(borrow)]
    event: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_sid: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    media: Option<PayloadWire<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mark: Option<MarkWire<'a>>,
}

#[derive(Serialize, Deserialize)]
struct PayloadWire<'a> {
    #[serde(borrow)]
    payload: Option<Text<'a>>,
}

/// A counter: written as a string of decimal digits, read from a string or a number; anything else reads as absent.
mod counter {
    use super::*;

    pub fn serialize<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        deserializer.deserialize_any(Lenient)
    }

    struct Lenient;

    impl<'de> de::Visitor<'de> for Lenient {
        type Value = Option<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a counter")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(text.trim().parse().ok())
        }

        fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
            Ok(Some(value))
        }

        fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
            Ok(u64::try_from(value).ok())
        }

        fn visit_f64<E: de::Error>(self, value: f64) -> Result<Self::Value, E> {
            // 2^53: from there on a float no longer holds every integer.
            Ok((value >= 0.0 && value.fract() == 0.0 && value < 9_007_199_254_740_992.0).then_some(value as u64))
        }

        fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(None)
        }

        fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SID: &str = "MZ00000000000000000000000000000001";

    fn start() -> FromTwilio<'static> {
        FromTwilio::Start {
            sequence: Some(1),
            start: Start {
                stream_sid: SID.into(),
                account_sid: "AC00000000000000000000000000000001".into(),
                call_sid: "CA00000000000000000000000000000001".into(),
                tracks: vec!["inbound".into()],
                parameters: BTreeMap::from([
                    ("locale".into(), "uk-UA".into()),
                    ("session".into(), "7c1e0f4b-one-use-token".into()),
                ]),
                format: Some(MediaFormat::MULAW),
            },
        }
    }

    #[test]
    fn every_message_of_the_documentation_is_understood() {
        let check = |text: &str, expected: FromTwilio<'_>| {
            assert_eq!(FromTwilio::parse(text).unwrap(), expected, "{text}");
        };
        check(
            r#"{"event":"connected","protocol":"Call","version":"1.0.0"}"#,
            FromTwilio::Connected { protocol: "Call".into(), version: "1.0.0".into() },
        );
        check(
            r#"{"event":"start","sequenceNumber":"1","streamSid":"MZ00000000000000000000000000000001",
                "start":{"streamSid":"MZ00000000000000000000000000000001",
                         "accountSid":"AC00000000000000000000000000000001",
                         "callSid":"CA00000000000000000000000000000001","tracks":["inbound"],
                         "customParameters":{"session":"7c1e0f4b-one-use-token","locale":"uk-UA"},
                         "mediaFormat":{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1}}}"#,
            start(),
        );
        check(
            r#"{"event":"media","sequenceNumber":"4","streamSid":"MZ00000000000000000000000000000001",
                "media":{"track":"inbound","chunk":"2","timestamp":"40","payload":"//9/"}}"#,
            FromTwilio::Media {
                sequence: Some(4),
                stream_sid: SID.into(),
                media: Media {
                    track: "inbound".into(),
                    chunk: Some(2),
                    timestamp_ms: Some(40),
                    payload: "//9/".into(),
                },
            },
        );
        check(
            r#"{"event":"dtmf","sequenceNumber":"61","streamSid":"MZ00000000000000000000000000000001",
                "dtmf":{"track":"inbound_track","digit":"5"}}"#,
            FromTwilio::Dtmf { sequence: Some(61), stream_sid: SID.into(), digit: "5".into() },
        );
        check(
            r#"{"event":"mark","sequenceNumber":"90","streamSid":"MZ00000000000000000000000000000001",
                "mark":{"name":"utt-17-end"}}"#,
            FromTwilio::Mark { sequence: Some(90), stream_sid: SID.into(), name: "utt-17-end".into() },
        );
        check(
            r#"{"event":"stop","sequenceNumber":"512","streamSid":"MZ00000000000000000000000000000001",
                "stop":{"accountSid":"AC00000000000000000000000000000001",
                        "callSid":"CA00000000000000000000000000000001"}}"#,
            FromTwilio::Stop {
                sequence: Some(512),
                stream_sid: SID.into(),
                account_sid: "AC00000000000000000000000000000001".into(),
                call_sid: "CA00000000000000000000000000000001".into(),
            },
        );
    }

    #[test]
    fn what_we_send_has_the_documented_shape() {
        let check = |message: ToTwilio<'_>, expected: &str| {
            let mut out = String::new();
            message.write(&mut out);
            assert_eq!(out, expected);
            assert_eq!(ToTwilio::parse(expected).unwrap(), message);
        };
        check(
            ToTwilio::Media { stream_sid: "MZ1".into(), payload: "//8=".into() },
            r#"{"event":"media","streamSid":"MZ1","media":{"payload":"//8="}}"#,
        );
        check(
            ToTwilio::Mark { stream_sid: "MZ1".into(), name: "g0-1".into() },
            r#"{"event":"mark","streamSid":"MZ1","mark":{"name":"g0-1"}}"#,
        );
        check(ToTwilio::Clear { stream_sid: "MZ1".into() }, r#"{"event":"clear","streamSid":"MZ1"}"#);
    }

    #[test]
    fn counters_may_be_strings_numbers_or_nonsense() {
        let sequence = |raw: &str| match FromTwilio::parse(&format!(
            r#"{{"event":"mark","sequenceNumber":{raw},"mark":{{"name":"m"}}}}"#
        )) {
            Ok(FromTwilio::Mark { sequence, .. }) => sequence,
            other => panic!("{raw}: {other:?}"),
        };
        for (raw, expected) in [
            (r#""17""#, Some(17)),
            ("17", Some(17)),
            ("17.0", Some(17)),
            (r#"" 17 ""#, Some(17)),
            (r#""18446744073709551615""#, Some(u64::MAX)),
            (r#""18446744073709551616""#, None),
            ("-1", None),
            ("1e300", None),
            ("null", None),
            ("true", None),
            (r#""abc""#, None),
            ("[1,2]", None),
            (r#"{"a":1}"#, None),
        ] {
            assert_eq!(sequence(raw), expected, "{raw}");
        }
    }

    #[test]
    fn unknown_events_and_fields_are_no_errors() {
        let check = |text: &str| match FromTwilio::parse(text).unwrap() {
            FromTwilio::Unknown { event } => assert_eq!(event, "weather"),
            other => panic!("{other:?}"),
        };
        check(r#"{"event":"weather","degrees":21}"#);
        // A known field name of another shape.
        check(r#"{"event":"weather","media":"sunny","streamSid":7}"#);
        let text = r#"{"event":"mark","mark":{"name":"m","colour":"red"},"more":[{}]}"#;
        assert!(matches!(FromTwilio::parse(text), Ok(FromTwilio::Mark { .. })));
    }

    #[test]
    fn a_message_without_its_body_names_what_is_missing() {
        let check = |text: &str, expected: &str| {
            assert_eq!(FromTwilio::parse(text).unwrap_err().to_string(), expected, "{text}");
        };
        check(r#"{"event":"media"}"#, "media without media");
        check(r#"{"event":"media","media":{}}"#, "media without payload");
        check(r#"{"event":"dtmf","dtmf":null}"#, "dtmf without digit");
        check(r#"{"event":"mark","mark":{}}"#, "mark without name");
        check(r#"{"event":"start"}"#, "start without start");
        check(r#"{"event":"media","media":"x"}"#, "malformed message");
        check(r#"{"no":"event"}"#, "malformed message");
        check("[]", "malformed message");
        check("", "malformed message");
        check(r#"{"event":"media","media":{"payload":"#, "malformed message");
    }

    #[test]
    fn a_payload_is_borrowed_unless_it_is_escaped() {
        let payload = |text| match FromTwilio::parse(text) {
            Ok(FromTwilio::Media { media, .. }) => media.payload,
            other => panic!("{other:?}"),
        };
        assert!(matches!(payload(r#"{"event":"media","media":{"payload":"//9/"}}"#), Cow::Borrowed("//9/")));
        assert_eq!(payload(r#"{"event":"media","media":{"payload":"\/\/9\/"}}"#), "//9/");
    }

    #[test]
    fn base64_is_taken_with_and_without_padding() {
        let mut out = vec![1, 2, 3];
        assert!(decode_payload("//8=", &mut out));
        assert_eq!(out, [0xFF, 0xFF]);
        assert!(decode_payload("//8", &mut out));
        assert_eq!(out, [0xFF, 0xFF]);
        assert!(!decode_payload("//8=!", &mut out));
        assert!(!decode_payload("_-8=", &mut out));
    }

    fn cow() -> impl Strategy<Value = Cow<'static, str>> {
        any::<String>().prop_map(Cow::Owned)
    }

    fn messages() -> impl Strategy<Value = FromTwilio<'static>> {
        let sequence = any::<Option<u64>>;
        let track = prop_oneof![Just(Cow::Borrowed("inbound")), Just(Cow::Borrowed("outbound")), cow()];
        prop_oneof![
            (cow(), cow()).prop_map(|(protocol, version)| FromTwilio::Connected { protocol, version }),
            (sequence(), cow(), cow(), cow(), any::<BTreeMap<String, String>>()).prop_map(
                |(sequence, stream_sid, account_sid, call_sid, parameters)| FromTwilio::Start {
                    sequence,
                    start: Start {
                        stream_sid,
                        account_sid,
                        call_sid,
                        tracks: vec!["inbound".into()],
                        parameters,
                        format: Some(MediaFormat::MULAW),
                    },
                }
            ),
            (sequence(), cow(), track, any::<Option<u64>>(), any::<Option<u64>>(), cow()).prop_map(
                |(sequence, stream_sid, track, chunk, timestamp_ms, payload)| FromTwilio::Media {
                    sequence,
                    stream_sid,
                    media: Media { track, chunk, timestamp_ms, payload },
                }
            ),
            (sequence(), cow(), cow()).prop_map(|(sequence, stream_sid, digit)| FromTwilio::Dtmf {
                sequence,
                stream_sid,
                digit
            }),
            (sequence(), cow(), cow()).prop_map(|(sequence, stream_sid, name)| FromTwilio::Mark {
                sequence,
                stream_sid,
                name
            }),
            (sequence(), cow(), cow(), cow()).prop_map(|(sequence, stream_sid, account_sid, call_sid)| {
                FromTwilio::Stop { sequence, stream_sid, account_sid, call_sid }
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_a_simulated_caller_writes_the_server_reads(message in messages()) {
            let mut text = String::new();
            message.write(&mut text);
            prop_assert_eq!(FromTwilio::parse(&text).unwrap(), message);
        }

        #[test]
        fn what_the_server_writes_a_simulated_caller_reads(sid in cow(), body in cow(), kind in 0..3) {
            let message = match kind {
                0 => ToTwilio::Media { stream_sid: sid, payload: body },
                1 => ToTwilio::Mark { stream_sid: sid, name: body },
                _ => ToTwilio::Clear { stream_sid: sid },
            };
            let mut text = String::new();
            message.write(&mut text);
            prop_assert_eq!(ToTwilio::parse(&text).unwrap(), message);
        }

        #[test]
        fn a_payload_survives_the_trip(payload in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut text = String::new();
            encode_payload(&payload, &mut text);
            let mut out = Vec::new();
            prop_assert!(decode_payload(&text, &mut out));
            prop_assert_eq!(out, payload);
        }
    }
}
