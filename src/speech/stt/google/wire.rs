//! Messages of `google.cloud.speech.v1`, the part that streaming needs, written by hand (googleapis, `cloud_speech.proto`).
//! Fields that are not read are left out: protobuf skips them.

/// Full name of the one method used.
pub const STREAMING_RECOGNIZE: &str = "/google.cloud.speech.v1.Speech/StreamingRecognize";

/// The first message holds the configuration, every later one audio.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamingRecognizeRequest {
    #[prost(oneof = "StreamingRequest", tags = "1, 2")]
    pub request: Option<StreamingRequest>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum StreamingRequest {
    #[prost(message, tag = "1")]
    Config(StreamingRecognitionConfig),
    /// Raw samples in the configured encoding.
    #[prost(bytes = "vec", tag = "2")]
    Audio(Vec<u8>),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamingRecognitionConfig {
    #[prost(message, optional, tag = "1")]
    pub config: Option<RecognitionConfig>,
    #[prost(bool, tag = "2")]
    pub single_utterance: bool,
    #[prost(bool, tag = "3")]
    pub interim_results: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RecognitionConfig {
    #[prost(enumeration = "AudioEncoding", tag = "1")]
    pub encoding: i32,
    #[prost(int32, tag = "2")]
    pub sample_rate_hertz: i32,
    #[prost(string, tag = "3")]
    pub language_code: String,
    #[prost(int32, tag = "4")]
    pub max_alternatives: i32,
    #[prost(message, repeated, tag = "6")]
    pub speech_contexts: Vec<SpeechContext>,
    #[prost(bool, tag = "11")]
    pub enable_automatic_punctuation: bool,
    #[prost(string, tag = "13")]
    pub model: String,
    #[prost(bool, tag = "14")]
    pub use_enhanced: bool,
}

/// v1 has no A-law.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum AudioEncoding {
    Unspecified = 0,
    Linear16 = 1,
    Mulaw = 3,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SpeechContext {
    #[prost(string, repeated, tag = "1")]
    pub phrases: Vec<String>,
}

/// Holds one of `error` and `results`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamingRecognizeResponse {
    #[prost(message, optional, tag = "1")]
    pub error: Option<RpcStatus>,
    /// Zero or one final, then zero or more interims.
    #[prost(message, repeated, tag = "2")]
    pub results: Vec<StreamingRecognitionResult>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StreamingRecognitionResult {
    #[prost(message, repeated, tag = "1")]
    pub alternatives: Vec<SpeechRecognitionAlternative>,
    #[prost(bool, tag = "2")]
    pub is_final: bool,
    #[prost(float, tag = "3")]
    pub stability: f32,
    /// From the start of the stream.
    #[prost(message, optional, tag = "4")]
    pub result_end_time: Option<ProtoDuration>,
}

/// May begin with a space; `confidence` is 0 when not set and means something on finals only.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SpeechRecognitionAlternative {
    #[prost(string, tag = "1")]
    pub transcript: String,
    #[prost(float, tag = "2")]
    pub confidence: f32,
}

/// `google.protobuf.Duration`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ProtoDuration {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl From<ProtoDuration> for std::time::Duration {
    /// Negative times of a broken peer count as zero.
    fn from(time: ProtoDuration) -> Self {
        let nanos = u32::try_from(time.nanos).unwrap_or_default().min(999_999_999);
        Self::new(u64::try_from(time.seconds).unwrap_or_default(), nanos)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn the_first_message_has_the_documented_field_numbers() {
        let config = RecognitionConfig {
            encoding: AudioEncoding::Mulaw.into(),
            sample_rate_hertz: 8000,
            language_code: "uk-UA".into(),
            model: "telephony".into(),
            enable_automatic_punctuation: true,
            ..RecognitionConfig::default()
        };
        let streaming =
            StreamingRecognitionConfig { config: Some(config), interim_results: true, ..Default::default() };
        let request = StreamingRecognizeRequest { request: Some(StreamingRequest::Config(streaming)) };
        // Tag bytes are field * 8 + wire type: 1 and 3 of the outer messages, 1, 2, 3, 11 and 13 of the inner.
        let expected = [
            &[0x0a, 29, 0x0a, 25, 0x08, 3, 0x10, 0xc0, 0x3e, 0x1a, 5][..],
            b"uk-UA",
            &[0x58, 1, 0x6a, 9],
            b"telephony",
            &[0x18, 1],
        ]
        .concat();
        assert_eq!(request.encode_to_vec(), expected);
        let audio = StreamingRecognizeRequest { request: Some(StreamingRequest::Audio(vec![0xff, 0x7f])) };
        assert_eq!(audio.encode_to_vec(), [0x12, 2, 0xff, 0x7f]);
    }

    #[test]
    fn a_response_is_read_and_its_unknown_fields_are_skipped() {
        // results { alternatives { "hi", 0.5 } is_final end 1.5 s }, then request_id (field 10).
        let bytes = [
            &[0x12, 0x15, 0x0a, 9, 0x0a, 2][..],
            b"hi",
            &[0x15, 0, 0, 0, 0x3f, 0x10, 1, 0x22, 6, 0x08, 1, 0x10, 0x80, 0xca, 0x00, 0x50, 7],
        ]
        .concat();
        let response = StreamingRecognizeResponse::decode(&bytes[..]).expect("good bytes");
        let result = &response.results[0];
        assert!(result.is_final && result.alternatives[0].transcript == "hi");
        assert_eq!(result.alternatives[0].confidence, 0.5);
        assert_eq!(result.result_end_time.expect("a time").seconds, 1);
    }
}
