//! The JSON of Twilio Media Streams from Twilio's side (specs/twilio.md §1.4, §1.5). Written apart from the server's
//! shapes, so that the two check each other.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

/// What a server may send.
#[derive(Debug, PartialEq, Eq)]
pub enum FromServer {
    Media(Vec<u8>),
    Mark(String),
    Clear,
    /// An event that Twilio does not know, by name.
    Unknown(String),
}

#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Twilio would raise error 31924 and close.
    #[error("not a message of this protocol: {0}")]
    Malformed(String),
    #[error("streamSid is not the one of this stream")]
    WrongStream,
}

#[derive(Deserialize)]
struct Envelope {
    event: String,
    #[serde(rename = "streamSid")]
    stream_sid: Option<String>,
    media: Option<Media>,
    mark: Option<Mark>,
}

#[derive(Deserialize)]
struct Media {
    payload: String,
}

#[derive(Deserialize)]
struct Mark {
    name: String,
}

/// Reads one text message of the server on the stream `stream_sid`.
pub fn read(text: &str, stream_sid: &str) -> Result<FromServer, MessageError> {
    let malformed = |detail: String| MessageError::Malformed(detail);
    let envelope: Envelope = serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
    let known = matches!(envelope.event.as_str(), "media" | "mark" | "clear");
    if !known {
        return Ok(FromServer::Unknown(envelope.event.chars().take(40).collect()));
    }
    if envelope.stream_sid.as_deref() != Some(stream_sid) {
        return Err(MessageError::WrongStream);
    }
    match envelope.event.as_str() {
        "media" => {
            let media = envelope.media.ok_or_else(|| malformed("media without media.payload".into()))?;
            STANDARD.decode(media.payload).map(FromServer::Media).map_err(|error| malformed(error.to_string()))
        }
        "mark" => {
            let mark = envelope.mark.ok_or_else(|| malformed("mark without mark.name".into()))?;
            Ok(FromServer::Mark(mark.name))
        }
        _ => Ok(FromServer::Clear),
    }
}

/// Writes Twilio's messages of one stream and counts them. Counters are decimal strings, as Twilio sends them.
pub struct Writer {
    stream_sid: String,
    call_sid: String,
    account_sid: String,
    sequence: u64,
    chunk: u64,
}

impl Writer {
    /// `stream_sid` is letters and digits.
    pub fn new(stream_sid: String, call_sid: String, account_sid: String) -> Self {
        Self { stream_sid, call_sid, account_sid, sequence: 0, chunk: 0 }
    }

    pub fn stream_sid(&self) -> &str {
        &self.stream_sid
    }

    pub fn call_sid(&self) -> &str {
        &self.call_sid
    }

    pub fn connected(&self) -> String {
        json!({ "event": "connected", "protocol": "Call", "version": "1.0.0" }).to_string()
    }

    pub fn start(&mut self, parameters: &[(String, String)]) -> String {
        let parameters: serde_json::Map<String, Value> =
            parameters.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
        let start = json!({
            "streamSid": self.stream_sid,
            "accountSid": self.account_sid,
            "callSid": self.call_sid,
            "tracks": ["inbound"],
            "customParameters": parameters,
            "mediaFormat": { "encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1 },
        });
        self.event("start", start)
    }

    /// `at_ms` is the time of the first sample since the stream's start.
    pub fn media(&mut self, at_ms: u64, codes: &[u8]) -> String {
        self.chunk += 1;
        self.sequence += 1;
        // Fifty of these a second and call: written directly, because nothing in them needs escaping.
        format!(
            r#"{{"event":"media","sequenceNumber":"{}","streamSid":"{}","media":{{"track":"inbound","chunk":"{}","timestamp":"{at_ms}","payload":"{}"}}}}"#,
            self.sequence,
            self.stream_sid,
            self.chunk,
            STANDARD.encode(codes),
        )
    }

    pub fn mark(&mut self, name: &str) -> String {
        self.event("mark", json!({ "name": name }))
    }

    pub fn dtmf(&mut self, key: char) -> String {
        self.event("dtmf", json!({ "track": "inbound_track", "digit": key.to_string() }))
    }

    pub fn stop(&mut self) -> String {
        let stop = json!({ "accountSid": self.account_sid, "callSid": self.call_sid });
        self.event("stop", stop)
    }

    fn event(&mut self, event: &str, body: Value) -> String {
        self.sequence += 1;
        let mut message = json!({
            "event": event,
            "sequenceNumber": self.sequence.to_string(),
            "streamSid": self.stream_sid,
        });
        message[event] = body;
        message.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_strings_and_start_at_one() {
        let mut writer = Writer::new("MZ1".into(), "CA1".into(), "AC1".into());
        let read = |text: String| serde_json::from_str::<Value>(&text).unwrap();
        let start = read(writer.start(&[("token".into(), "t".into())]));
        assert_eq!(start["sequenceNumber"], "1");
        assert_eq!(start["start"]["customParameters"]["token"], "t");
        assert_eq!(start["start"]["mediaFormat"]["sampleRate"], 8000);
        let media = read(writer.media(0, &[0xFF; 160]));
        assert_eq!((&media["sequenceNumber"], &media["media"]["chunk"]), (&json!("2"), &json!("1")));
        let media = read(writer.media(20, &[0xFF; 160]));
        assert_eq!((&media["media"]["timestamp"], &media["media"]["chunk"]), (&json!("20"), &json!("2")));
        assert_eq!(read(writer.stop())["stop"]["callSid"], "CA1");
    }

    #[test]
    fn what_twilio_would_refuse_is_refused() {
        let media = r#"{"event":"media","streamSid":"MZ1","media":{"payload":"//8="}}"#;
        assert_eq!(read(media, "MZ1").unwrap(), FromServer::Media(vec![0xFF, 0xFF]));
        assert!(matches!(read(media, "MZ2"), Err(MessageError::WrongStream)));
        for bad in [
            "nonsense",
            r#"{"event":"media","streamSid":"MZ1"}"#,
            r#"{"event":"media","streamSid":"MZ1","media":{"payload":"***"}}"#,
            r#"{"event":"mark","streamSid":"MZ1","mark":{}}"#,
        ] {
            assert!(matches!(read(bad, "MZ1"), Err(MessageError::Malformed(_))), "{bad}");
        }
        assert_eq!(read(r#"{"event":"dance"}"#, "MZ1").unwrap(), FromServer::Unknown("dance".into()));
    }
}
