//! G.722 at 64 kbit/s (ITU-T G.722 mode 1): 16 kHz, one byte for two samples, on `audio-codec`. Both directions keep state
//! from packet to packet; concealment of lost ones is not here.

use audio_codec::g722;
use audio_codec::{Decoder as _, Encoder as _};

/// Samples of one byte.
const PER_BYTE: usize = 2;

#[derive(Default)]
pub struct G722Decoder(g722::G722Decoder);

impl G722Decoder {
    /// Appends the samples of a payload.
    pub fn decode(&mut self, payload: &[u8], out: &mut Vec<i16>) {
        let from = out.len();
        out.resize(from + PER_BYTE * payload.len(), 0);
        let made = self.0.decode_into(payload, &mut out[from..]).unwrap_or(0);
        out.truncate(from + made);
    }
}

#[derive(Default)]
pub struct G722Encoder(g722::G722Encoder);

impl G722Encoder {
    /// Replaces `out`; the number of samples is even.
    pub fn encode(&mut self, samples: &[i16], out: &mut Vec<u8>) {
        out.clear();
        out.resize(samples.len() / PER_BYTE + 1, 0);
        let made = self.0.encode_into(samples, out).unwrap_or(0);
        out.truncate(made);
    }
}

#[cfg(test)]
mod tests {
    use std::f32::consts::TAU;

    use super::*;
    use crate::media::frame::level_dbfs;
    use crate::media::packet::Codec;

    /// Signal to noise of `heard` against `said`, dB, at the best delay of up to 40 samples.
    fn snr(said: &[i16], heard: &[i16]) -> f64 {
        let at = |delay: usize| {
            let pairs = said.iter().zip(&heard[delay..]).skip(800);
            let (signal, noise) = pairs.fold((0.0, 1.0), |(signal, noise), (&a, &b)| {
                (signal + f64::from(a).powi(2), noise + (f64::from(a) - f64::from(b)).powi(2))
            });
            10.0 * f64::log10(signal / noise)
        };
        (0..40).map(at).fold(f64::MIN, f64::max)
    }

    #[test]
    fn speech_like_sound_survives_a_round_trip() {
        let said: Vec<i16> = (0..16_000)
            .map(|n| {
                let t = n as f32 / 16_000.0;
                (6000.0 * (TAU * 300.0 * t).sin() + 3000.0 * (TAU * 2500.0 * t).sin()) as i16
            })
            .collect();
        let (mut encoder, mut decoder, mut bytes, mut heard) =
            (G722Encoder::default(), G722Decoder::default(), Vec::new(), Vec::new());
        for frame in said.chunks(320) {
            encoder.encode(frame, &mut bytes);
            assert_eq!(bytes.len(), 160);
            decoder.decode(&bytes, &mut heard);
        }
        assert_eq!(heard.len(), said.len());
        // The low band has 6 bits a sample (some 36 dB), the high band 2.
        assert!(snr(&said, &heard) > 20.0, "{} dB", snr(&said, &heard));
    }

    #[test]
    fn the_codes_of_silence_decode_to_silence_also_after_speech() {
        let mut decoder = G722Decoder::default();
        let (mut heard, mut bytes) = (Vec::new(), Vec::new());
        let loud: Vec<i16> = (0..3200).map(|n| (8000.0 * (TAU * 440.0 * n as f32 / 16_000.0).sin()) as i16).collect();
        G722Encoder::default().encode(&loud, &mut bytes);
        decoder.decode(&bytes, &mut heard);
        heard.clear();
        decoder.decode(&Codec::G722.silence().expect("G.722 has one").repeat(800), &mut heard);
        assert!(level_dbfs(&heard[640..]) < -60.0, "{} dBFS", level_dbfs(&heard[640..]));
    }
}
