//! Opus (RFC 6716) for telephone speech: mono at 16 kHz, 20 ms a packet, with in-band repair, on libopus. It conceals by
//! itself: from what it heard before, or from the repair data that the packet behind the lost one carries.

use std::time::Duration;

use ::opus::{Application, Bitrate, Channels};

use crate::media::frame::SampleRate;
use crate::media::packet::Packet;

/// Everything here samples at this rate.
pub const RATE: SampleRate = SampleRate::HZ_16000;
/// 120 ms: no packet holds more (RFC 6716 §3.2.5).
const LONGEST: usize = 1_920;
/// The rate that our descriptions ask for as well; wideband speech with repair data.
const BITRATE: i32 = 24_000;
/// Of 10: half of the quality steps cost 250 µs a frame.
const COMPLEXITY: i32 = 5;
/// Makes the encoder spend bits on repair data.
const EXPECTED_LOSS_PERCENT: i32 = 10;

pub struct OpusDecoder(::opus::Decoder);

impl Default for OpusDecoder {
    fn default() -> Self {
        Self(::opus::Decoder::new(RATE.hz(), Channels::Mono).expect("libopus decodes at 16 kHz"))
    }
}

impl OpusDecoder {
    /// Appends the samples of a payload; none for one that is no Opus.
    pub fn decode(&mut self, payload: &[u8], out: &mut Vec<i16>) {
        if !payload.is_empty() {
            self.append(payload, LONGEST, false, out);
        }
    }

    /// Appends `time` of sound in place of a lost packet, from the repair data of `next` where it has any.
    pub fn conceal(&mut self, time: Duration, next: Option<&[u8]>, out: &mut Vec<i16>) {
        let from = out.len();
        // libopus conceals in steps of 2.5 ms.
        let samples = (RATE.samples(time) / 40 * 40).min(LONGEST);
        self.append(next.unwrap_or_default(), samples, next.is_some(), out);
        out.resize(from + RATE.samples(time), 0);
    }

    fn append(&mut self, payload: &[u8], samples: usize, repair: bool, out: &mut Vec<i16>) {
        let from = out.len();
        out.resize(from + samples, 0);
        let made = self.0.decode(payload, &mut out[from..], repair).unwrap_or(0);
        out.truncate(from + made);
    }
}

pub struct OpusEncoder(::opus::Encoder);

impl Default for OpusEncoder {
    fn default() -> Self {
        let mut encoder =
            ::opus::Encoder::new(RATE.hz(), Channels::Mono, Application::Voip).expect("libopus encodes at 16 kHz");
        // Each refuses only values out of range, and then the default stands.
        let _ = encoder.set_bitrate(Bitrate::Bits(BITRATE));
        let _ = encoder.set_complexity(COMPLEXITY);
        let _ = encoder.set_inband_fec(true);
        let _ = encoder.set_packet_loss_perc(EXPECTED_LOSS_PERCENT);
        Self(encoder)
    }
}

impl OpusEncoder {
    /// Replaces `out` by one packet of these samples: 10, 20, 40 or 60 ms. Empty when libopus refuses.
    pub fn encode(&mut self, samples: &[i16], out: &mut Vec<u8>) {
        out.clear();
        out.resize(Packet::MAX, 0);
        let made = self.0.encode(samples, out).unwrap_or(0);
        out.truncate(made);
    }
}

#[cfg(test)]
mod tests {
    use std::f32::consts::TAU;

    use super::*;
    use crate::media::frame::level_dbfs;
    use crate::media::packet::Codec;

    fn tone(samples: usize) -> Vec<i16> {
        (0..samples).map(|n| (8000.0 * (TAU * 440.0 * n as f32 / 16_000.0).sin()) as i16).collect()
    }

    #[test]
    fn packets_say_how_long_they_are_and_decode_to_that() {
        let (mut encoder, mut decoder, mut bytes, mut heard) =
            (OpusEncoder::default(), OpusDecoder::default(), Vec::new(), Vec::new());
        for frame in tone(16_000).chunks(320) {
            encoder.encode(frame, &mut bytes);
            assert!(!bytes.is_empty() && bytes.len() < 200, "{} bytes", bytes.len());
            assert_eq!(Codec::Opus.duration(&bytes), Duration::from_millis(20));
            let before = heard.len();
            decoder.decode(&bytes, &mut heard);
            assert_eq!(heard.len() - before, 320);
        }
        assert!((level_dbfs(&heard[3200..]) - level_dbfs(&tone(16_000))).abs() < 1.0);
    }

    #[test]
    fn a_lost_packet_is_filled_in_and_noise_is_survived() {
        let (mut encoder, mut decoder, mut heard) = (OpusEncoder::default(), OpusDecoder::default(), Vec::new());
        let packets: Vec<Vec<u8>> = tone(16_000)
            .chunks(320)
            .map(|frame| {
                let mut bytes = Vec::new();
                encoder.encode(frame, &mut bytes);
                bytes
            })
            .collect();
        for bytes in &packets[..20] {
            decoder.decode(bytes, &mut heard);
        }
        for next in [None, Some(packets[22].as_slice())] {
            heard.clear();
            decoder.conceal(Duration::from_millis(20), next, &mut heard);
            assert_eq!(heard.len(), 320);
            assert!(level_dbfs(&heard) > -30.0, "{} dBFS", level_dbfs(&heard));
        }
        for garbage in [&[][..], &[0xFF], &[0xFF, 0xFF, 0xFF], &[3, 63, 0, 1, 2]] {
            heard.clear();
            decoder.decode(garbage, &mut heard);
            assert!(heard.len() <= LONGEST);
            decoder.conceal(Duration::from_millis(15), Some(garbage), &mut heard);
        }
    }
}
