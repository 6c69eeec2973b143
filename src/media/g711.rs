//! G.711: mu-law and A-law, one byte a sample at 8 kHz (ITU-T G.711). The tables come from `audio-codec-algorithms`; what
//! is added here is working on whole payloads in reused buffers. Concealment of lost packets is not here.
//!
//! Every function takes [`Codec::Pcmu`] or [`Codec::Pcma`] and panics on another codec, which would be our own bug.

use audio_codec_algorithms::{decode_alaw, decode_ulaw, encode_alaw, encode_ulaw};

use crate::media::packet::Codec;

/// One sample to one byte.
pub fn encode(codec: Codec, sample: i16) -> u8 {
    match codec {
        Codec::Pcmu => encode_ulaw(sample),
        Codec::Pcma => encode_alaw(sample),
        other => unreachable!("{other:?} is not G.711"),
    }
}

/// One byte to one sample.
pub fn decode(codec: Codec, code: u8) -> i16 {
    match codec {
        Codec::Pcmu => decode_ulaw(code),
        Codec::Pcma => decode_alaw(code),
        other => unreachable!("{other:?} is not G.711"),
    }
}

/// Encodes all of `samples`; `out` is replaced, its memory reused.
pub fn encode_into(codec: Codec, samples: &[i16], out: &mut Vec<u8>) {
    out.clear();
    match codec {
        Codec::Pcmu => out.extend(samples.iter().map(|&s| encode_ulaw(s))),
        Codec::Pcma => out.extend(samples.iter().map(|&s| encode_alaw(s))),
        other => unreachable!("{other:?} is not G.711"),
    }
}

/// Decodes all of `payload`; `out` is replaced, its memory reused.
pub fn decode_into(codec: Codec, payload: &[u8], out: &mut Vec<i16>) {
    out.clear();
    append_decoded(codec, payload, out);
}

/// Decodes all of `payload` behind what is in `out`.
pub fn append_decoded(codec: Codec, payload: &[u8], out: &mut Vec<i16>) {
    match codec {
        Codec::Pcmu => out.extend(payload.iter().map(|&b| decode_ulaw(b))),
        Codec::Pcma => out.extend(payload.iter().map(|&b| decode_alaw(b))),
        other => unreachable!("{other:?} is not G.711"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    /// G.191 `ulaw_compress`: 16-bit input cut to 14 bits, ones' complement for negatives, bias 33.
    fn reference_ulaw(sample: i16) -> u8 {
        let magnitude = if sample < 0 { (!sample >> 2) + 33 } else { (sample >> 2) + 33 }.min(0x1FFF);
        let segment = (1..8).find(|&s| magnitude >> (5 + s) == 0).unwrap_or(8);
        let low = 0x0F - ((magnitude >> segment) & 0x0F);
        let high = 8 - segment;
        let code = ((high << 4) | low) as u8;
        if sample >= 0 { code | 0x80 } else { code }
    }

    /// G.191 `ulaw_expand`, to 16 bits.
    fn reference_ulaw_decoded(code: u8) -> i16 {
        let inverted = !code;
        let (exponent, mantissa) = (i32::from(inverted >> 4 & 7), i32::from(inverted & 15));
        let magnitude = (((mantissa * 2 + 33) << exponent) - 33) * 4;
        (if code < 0x80 { -magnitude } else { magnitude }) as i16
    }

    /// G.191 `alaw_compress`: 16-bit input cut to 12 bits, ones' complement for negatives, even bits inverted.
    fn reference_alaw(sample: i16) -> u8 {
        let mut magnitude = if sample < 0 { !sample >> 4 } else { sample >> 4 };
        if magnitude > 15 {
            let mut exponent = 1;
            while magnitude > 16 + 15 {
                magnitude >>= 1;
                exponent += 1;
            }
            magnitude = magnitude - 16 + (exponent << 4);
        }
        let code = if sample >= 0 { magnitude | 0x80 } else { magnitude } as u8;
        code ^ 0x55
    }

    /// G.191 `alaw_expand`.
    fn reference_alaw_decoded(code: u8) -> i16 {
        let plain = code ^ 0x55;
        let (exponent, mantissa) = (i32::from(plain >> 4 & 7), i32::from(plain & 15));
        let magnitude = if exponent == 0 { (mantissa << 4) + 8 } else { ((mantissa << 4) + 0x108) << (exponent - 1) };
        (if plain & 0x80 == 0 { -magnitude } else { magnitude }) as i16
    }

    #[test]
    fn every_sample_is_encoded_as_the_itu_reference_does() {
        for sample in i16::MIN..=i16::MAX {
            assert_eq!(encode(Codec::Pcmu, sample), reference_ulaw(sample), "mu-law of {sample}");
            assert_eq!(encode(Codec::Pcma, sample), reference_alaw(sample), "A-law of {sample}");
        }
    }

    #[test]
    fn every_code_is_decoded_as_the_itu_reference_does() {
        for code in 0..=255 {
            assert_eq!(decode(Codec::Pcmu, code), reference_ulaw_decoded(code), "mu-law {code:#x}");
            assert_eq!(decode(Codec::Pcma, code), reference_alaw_decoded(code), "A-law {code:#x}");
        }
    }

    #[test]
    fn silence_of_a_law_decodes_to_its_smallest_level() {
        for (codec, level) in [(Codec::Pcmu, 0), (Codec::Pcma, 8)] {
            let codes = codec.silence().expect("G.711 has one");
            assert_eq!(codes.map(|code| decode(codec, code)), [level; 2]);
        }
    }

    #[test]
    fn buffers_are_replaced_and_not_grown() {
        let (mut bytes, mut samples) = (vec![1; 3], vec![1; 3]);
        encode_into(Codec::Pcmu, &[0; 160], &mut bytes);
        decode_into(Codec::Pcmu, &bytes, &mut samples);
        assert_eq!((bytes.len(), samples), (160, vec![0; 160]));
    }

    proptest! {
        // Half of the widest step: 1024/2 of mu-law's top segment in 16 bits, plus clipping at 32,124.
        #[test]
        fn a_round_trip_stays_within_half_a_quantiser_step(sample: i16) {
            for codec in [Codec::Pcmu, Codec::Pcma] {
                let error = (i32::from(sample) - i32::from(decode(codec, encode(codec, sample)))).abs();
                let step = (i32::from(sample).abs() / 16).max(16);
                prop_assert!(error <= step.max(i32::from(sample).abs() - 32_124), "{codec:?} {sample}: off by {error}");
            }
        }

        #[test]
        fn a_decoded_code_encodes_to_itself(code: u8) {
            prop_assert_eq!(encode(Codec::Pcma, decode(Codec::Pcma, code)), code);
            // 0x7F is mu-law's negative zero, which encodes as the positive one.
            let expected = if code == 0x7F { 0xFF } else { code };
            prop_assert_eq!(encode(Codec::Pcmu, decode(Codec::Pcmu, code)), expected);
        }
    }

    /// What `program` writes for `input`, or `None` with a message where it is not installed.
    fn piped(program: &str, args: &[&str], input: Vec<u8>) -> Option<Vec<u8>> {
        let child =
            Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let Ok(mut child) = child else {
            println!("skipped: {program} is not installed");
            return None;
        };
        let mut stdin = child.stdin.take().expect("stdin was asked for");
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().expect("the program ran");
        writer.join().expect("the writer does not panic").expect("the program read its input");
        assert!(output.status.success(), "{program} failed");
        Some(output.stdout)
    }

    fn samples_of(bytes: &[u8]) -> Vec<i16> {
        bytes.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]])).collect()
    }

    #[test]
    fn sox_and_ffmpeg_decode_the_same_samples() {
        let codes: Vec<u8> = (0..=255).collect();
        for (codec, sox, ffmpeg) in [(Codec::Pcmu, "mu-law", "mulaw"), (Codec::Pcma, "a-law", "alaw")] {
            let mut ours = Vec::new();
            decode_into(codec, &codes, &mut ours);
            let args = ["-D", "-t", "raw", "-r", "8000", "-c", "1", "-e", sox, "-b", "8", "-"];
            let to = ["-t", "raw", "-e", "signed", "-b", "16", "-L", "-"];
            if let Some(bytes) = piped("sox", &[&args[..], &to[..]].concat(), codes.clone()) {
                assert_eq!(samples_of(&bytes), ours, "sox {codec:?}");
            }
            let args = ["-f", ffmpeg, "-ar", "8000", "-i", "-", "-f", "s16le", "-"];
            if let Some(bytes) = piped("ffmpeg", &args, codes.clone()) {
                assert_eq!(samples_of(&bytes), ours, "ffmpeg {codec:?}");
            }
        }
    }

    /// sox rounds where G.711 cuts (at most 510 mu-law and 1,020 A-law inputs differ), ffmpeg rounds at the borders of
    /// its own table (964); where they differ they are a neighbouring step away.
    #[test]
    fn sox_and_ffmpeg_encode_the_same_up_to_their_rounding() {
        let samples: Vec<i16> = (i16::MIN..=i16::MAX).collect();
        let raw: Vec<u8> = samples.iter().flat_map(|s| s.to_le_bytes()).collect();
        for (codec, sox, ffmpeg) in [(Codec::Pcmu, "mu-law", "mulaw"), (Codec::Pcma, "a-law", "alaw")] {
            let check = |program: &str, bytes: Vec<u8>| {
                assert_eq!(bytes.len(), samples.len());
                let mut different = 0;
                for (&sample, &theirs) in samples.iter().zip(&bytes) {
                    let ours = encode(codec, sample);
                    if ours != theirs {
                        different += 1;
                        let apart = (i32::from(decode(codec, ours)) - i32::from(decode(codec, theirs))).abs();
                        assert!(apart <= (i32::from(sample).abs() / 8).max(16), "{program} {codec:?} {sample}");
                    }
                }
                println!("{program} {codec:?}: {different} of 65536 encodings differ");
                assert!(different <= 1100, "{program} {codec:?}: {different} differ");
            };
            let from = ["-D", "-t", "raw", "-r", "8000", "-c", "1", "-e", "signed", "-b", "16", "-L", "-"];
            if let Some(bytes) =
                piped("sox", &[&from[..], &["-t", "raw", "-e", sox, "-b", "8", "-"]].concat(), raw.clone())
            {
                check("sox", bytes);
            }
            if let Some(bytes) =
                piped("ffmpeg", &["-f", "s16le", "-ar", "8000", "-i", "-", "-f", ffmpeg, "-"], raw.clone())
            {
                check("ffmpeg", bytes);
            }
        }
    }
}
