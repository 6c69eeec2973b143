//! One leg's decoder and encoder, whatever its codec. Both keep their state from packet to packet and reuse what they
//! have allocated.

use std::time::Duration;

use crate::media::conceal::Concealer;
use crate::media::g711;
use crate::media::g722::{G722Decoder, G722Encoder};
use crate::media::opus::{OpusDecoder, OpusEncoder};
use crate::media::packet::{Codec, Packet};

/// Packets of one codec to samples at [`Codec::rate`].
pub struct Decoder {
    codec: Codec,
    kind: Decoding,
}

enum Decoding {
    G711(Concealer),
    G722(Box<G722Decoder>, Concealer),
    Opus(Box<OpusDecoder>),
}

impl Decoder {
    pub fn new(codec: Codec) -> Self {
        let kind = match codec {
            Codec::Pcmu | Codec::Pcma => Decoding::G711(Concealer::new(codec.rate())),
            Codec::G722 => Decoding::G722(Box::default(), Concealer::new(codec.rate())),
            Codec::Opus => Decoding::Opus(Box::default()),
        };
        Self { codec, kind }
    }

    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Appends the samples of a payload; behind concealment its start is faded in.
    pub fn decode(&mut self, payload: &[u8], out: &mut Vec<i16>) {
        let from = out.len();
        match &mut self.kind {
            Decoding::G711(concealer) => {
                g711::append_decoded(self.codec, payload, out);
                concealer.heard(&mut out[from..]);
            }
            Decoding::G722(decoder, concealer) => {
                decoder.decode(payload, out);
                concealer.heard(&mut out[from..]);
            }
            Decoding::Opus(decoder) => decoder.decode(payload, out),
        }
    }

    /// Appends `time` of sound in place of lost packets. `next`: the packet right behind, if it is there already.
    pub fn conceal(&mut self, time: Duration, next: Option<&Packet>, out: &mut Vec<i16>) {
        let samples = self.codec.rate().samples(time);
        match &mut self.kind {
            Decoding::G711(concealer) | Decoding::G722(_, concealer) => concealer.conceal(samples, out),
            Decoding::Opus(decoder) => {
                let next = next.filter(|packet| packet.codec == Codec::Opus).map(Packet::payload);
                decoder.conceal(time, next, out);
            }
        }
    }
}

/// Frames at [`Codec::rate`] to payloads of one codec.
pub struct Encoder {
    codec: Codec,
    kind: Encoding,
}

enum Encoding {
    G711,
    G722(Box<G722Encoder>),
    Opus(Box<OpusEncoder>),
}

impl Encoder {
    pub fn new(codec: Codec) -> Self {
        let kind = match codec {
            Codec::Pcmu | Codec::Pcma => Encoding::G711,
            Codec::G722 => Encoding::G722(Box::default()),
            Codec::Opus => Encoding::Opus(Box::default()),
        };
        Self { codec, kind }
    }

    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Replaces `out` by the payload of a 20 ms frame.
    pub fn encode(&mut self, frame: &[i16], out: &mut Vec<u8>) {
        match &mut self.kind {
            Encoding::G711 => g711::encode_into(self.codec, frame, out),
            Encoding::G722(encoder) => encoder.encode(frame, out),
            Encoding::Opus(encoder) => encoder.encode(frame, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::dtmf::{DtmfDetector, append_tone};
    use crate::media::frame::{FRAME, SampleRate};
    use crate::media::resample::Resampler;

    /// Keys heard in the sound, whatever its rate.
    fn keys(rate: SampleRate, pcm: &[i16]) -> String {
        let (mut narrow, mut keys) = (Vec::new(), String::new());
        Resampler::new(rate, SampleRate::HZ_8000).expect("rates of a call").push(pcm, &mut narrow);
        DtmfDetector::new().push(&narrow, |key| keys.push(key));
        keys
    }

    #[test]
    fn tones_are_the_same_keys_behind_every_codec() {
        for codec in Codec::ALL {
            let (rate, mut pcm) = (codec.rate(), Vec::new());
            for key in "15#9D".chars() {
                append_tone(key, rate, rate.frame_len() * 5, -12.0, &mut pcm);
                pcm.resize(pcm.len() + rate.frame_len() * 5, 0);
            }
            let (mut encoder, mut decoder, mut bytes, mut heard) =
                (Encoder::new(codec), Decoder::new(codec), Vec::new(), Vec::new());
            for frame in pcm.chunks_exact(rate.frame_len()) {
                encoder.encode(frame, &mut bytes);
                assert_eq!(codec.duration(&bytes), FRAME);
                decoder.decode(&bytes, &mut heard);
            }
            assert_eq!(keys(rate, &heard), "15#9D", "{codec:?}");
        }
    }

    #[test]
    fn a_stream_with_holes_is_as_long_as_one_without() {
        for codec in Codec::ALL {
            let (mut decoder, mut heard) = (Decoder::new(codec), Vec::new());
            let (mut encoder, mut bytes) = (Encoder::new(codec), Vec::new());
            for n in 0..50 {
                encoder.encode(&vec![(n * 100) as i16; codec.rate().frame_len()], &mut bytes);
                if n % 7 == 3 {
                    decoder.conceal(FRAME, None, &mut heard);
                } else {
                    decoder.decode(&bytes, &mut heard);
                }
            }
            assert_eq!(heard.len(), 50 * codec.rate().frame_len(), "{codec:?}");
        }
    }
}
