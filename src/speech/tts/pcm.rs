//! Audio bytes of a synthesizer to samples, cut anywhere: raw 16-bit little-endian PCM, or WAV as programs and servers
//! stream it (lengths in the header are dummies, read to the end). Which of the two is seen by the first four bytes.

use crate::media::frame::SampleRate;

/// Everything before the samples of a WAV must fit into this: lists and tags of a few hundred bytes are usual.
const HEADER_BYTES: usize = 64 * 1024;
/// From here up a length is a dummy: espeak-ng writes 0x7FFFF000, streaming servers 0xFFFFFFFF or 0.
const DUMMY_LENGTH: u32 = 0x7FFF_0000;

/// What came is not audio that we can play.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PcmError {
    #[error("no WAV header")]
    NotWav,
    #[error("WAV with format {format}, {channels} channels, {bits} bits at {hz} Hz, where 16-bit PCM is needed")]
    Format { format: u16, channels: u16, bits: u16, hz: u32 },
    #[error("a WAV header over {HEADER_BYTES} bytes")]
    HeaderTooLong,
}

#[derive(Debug)]
enum State {
    /// Collecting the bytes that tell what this is and how to read it.
    Head(Vec<u8>),
    /// `left` bytes of samples are to come (`None` = up to the end).
    Samples { rate: SampleRate, channels: usize, left: Option<usize> },
}

/// A stream of audio bytes being read.
#[derive(Debug)]
pub(crate) struct PcmReader {
    state: State,
    /// The rate of headerless samples; `None` = there must be a header.
    raw_rate: Option<SampleRate>,
    /// Bytes of a sample whose other half has not come.
    carry: Vec<u8>,
}

impl PcmReader {
    /// WAV only.
    pub fn wav() -> Self {
        Self { state: State::Head(Vec::new()), raw_rate: None, carry: Vec::new() }
    }

    /// Raw mono samples at `rate`, unless the bytes turn out to begin with a WAV header.
    pub fn raw(rate: SampleRate) -> Self {
        Self { raw_rate: Some(rate), ..Self::wav() }
    }

    /// Appends the samples in `bytes` to `out`; the rate is known as soon as there are any. Two channels are averaged.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<i16>) -> Result<(), PcmError> {
        if let State::Head(head) = &mut self.state {
            head.extend_from_slice(bytes);
            let head = std::mem::take(head);
            return match self.head(&head)? {
                Some(at) => self.samples(&head[at..], out),
                None if head.len() > HEADER_BYTES => Err(PcmError::HeaderTooLong),
                None => {
                    self.state = State::Head(head);
                    Ok(())
                }
            };
        }
        self.samples(bytes, out)
    }

    /// `None` before the first sample.
    pub fn rate(&self) -> Option<SampleRate> {
        match self.state {
            State::Head(_) => None,
            State::Samples { rate, .. } => Some(rate),
        }
    }

    /// Reads the head; where the samples begin, if all of it is there.
    fn head(&mut self, head: &[u8]) -> Result<Option<usize>, PcmError> {
        let riff = &b"RIFF"[..head.len().min(4)];
        if !head.starts_with(riff) {
            let rate = self.raw_rate.ok_or(PcmError::NotWav)?;
            self.state = State::Samples { rate, channels: 1, left: None };
            return Ok(Some(0));
        }
        if head.len() < 12 {
            return Ok(None);
        }
        if &head[8..12] != b"WAVE" {
            return Err(PcmError::NotWav);
        }
        let u16_at = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (mut at, mut format) = (12, None);
        while head.len() >= at + 8 {
            let (name, length) = (&head[at..at + 4], u32_at(at + 4));
            if name == b"data" {
                let Some((rate, channels)) = format else { return Err(PcmError::NotWav) };
                let left = (length != 0 && length < DUMMY_LENGTH).then_some(length as usize);
                self.state = State::Samples { rate, channels, left };
                return Ok(Some(at + 8));
            }
            // Chunks are padded to an even length.
            let next = at + 8 + length as usize + (length & 1) as usize;
            if next > HEADER_BYTES {
                return Err(PcmError::HeaderTooLong);
            }
            if head.len() < next {
                return Ok(None);
            }
            if name == b"fmt " && length >= 16 {
                let (tag, channels, hz, bits) = (u16_at(at + 8), u16_at(at + 10), u32_at(at + 12), u16_at(at + 22));
                // 0xFFFE: the real format is the first two bytes of the GUID at offset 24.
                let tag = if tag == 0xFFFE && length >= 40 { u16_at(at + 32) } else { tag };
                if tag != 1 || bits != 16 || !(1..=2).contains(&channels) || !(8_000..=48_000).contains(&hz) {
                    return Err(PcmError::Format { format: tag, channels, bits, hz });
                }
                format = Some((SampleRate::new(hz), usize::from(channels)));
            }
            at = next;
        }
        Ok(None)
    }

    fn samples(&mut self, bytes: &[u8], out: &mut Vec<i16>) -> Result<(), PcmError> {
        let State::Samples { channels, left, .. } = &mut self.state else { return Ok(()) };
        let mut bytes = bytes;
        if let Some(left) = left {
            // What follows the samples (a LIST chunk) is not sound.
            bytes = &bytes[..bytes.len().min(*left)];
            *left -= bytes.len();
        }
        let width = 2 * *channels;
        let sample = |b: &[u8]| match b {
            [a, b] => i16::from_le_bytes([*a, *b]),
            [a, b, c, d] => i16::midpoint(i16::from_le_bytes([*a, *b]), i16::from_le_bytes([*c, *d])),
            _ => 0,
        };
        if !self.carry.is_empty() {
            let missing = (width - self.carry.len()).min(bytes.len());
            self.carry.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.carry.len() == width {
                out.push(sample(&self.carry));
                self.carry.clear();
            }
        }
        let whole = bytes.chunks_exact(width);
        self.carry.extend_from_slice(whole.remainder());
        out.extend(whole.map(sample));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wav(tag: u16, channels: u16, hz: u32, bits: u16, length: u32, samples: &[i16], extra: &[u8]) -> Vec<u8> {
        let mut bytes = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0".to_vec();
        bytes.extend(tag.to_le_bytes());
        bytes.extend(channels.to_le_bytes());
        bytes.extend(hz.to_le_bytes());
        bytes.extend((hz * 2).to_le_bytes());
        bytes.extend([2, 0]);
        bytes.extend(bits.to_le_bytes());
        bytes.extend(extra);
        bytes.extend(b"data");
        bytes.extend(length.to_le_bytes());
        bytes.extend(samples.iter().flat_map(|s| s.to_le_bytes()));
        bytes
    }

    fn read(mut reader: PcmReader, pieces: &[&[u8]]) -> Result<(Option<u32>, Vec<i16>), PcmError> {
        let mut out = Vec::new();
        for piece in pieces {
            reader.push(piece, &mut out)?;
        }
        Ok((reader.rate().map(SampleRate::hz), out))
    }

    #[test]
    fn a_wav_is_read_alike_wherever_it_is_cut_and_whatever_length_it_claims() {
        let samples = [1, -2, 300, i16::MIN, i16::MAX];
        for length in [0, 0x7FFF_F000, u32::MAX, 10] {
            let bytes = wav(1, 1, 22_050, 16, length, &samples, b"LIST\x03\0\0\0abc\0");
            for cut in 0..=bytes.len() {
                let (a, b) = bytes.split_at(cut);
                assert_eq!(read(PcmReader::wav(), &[a, b]), Ok((Some(22_050), samples.to_vec())), "cut at {cut}");
            }
        }
    }

    #[test]
    fn what_follows_the_samples_is_not_sound() {
        let mut bytes = wav(1, 1, 16_000, 16, 4, &[7, 8], b"");
        bytes.extend(b"LIST\x04\0\0\0abcd");
        assert_eq!(read(PcmReader::raw(SampleRate::HZ_24000), &[&bytes]), Ok((Some(16_000), vec![7, 8])));
    }

    #[test]
    fn raw_samples_have_their_odd_bytes_carried() {
        let bytes: Vec<u8> = [10i16, -20, 30].iter().flat_map(|s| s.to_le_bytes()).collect();
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(PcmReader::raw(SampleRate::HZ_24000), &single), Ok((Some(24_000), vec![10, -20, 30])));
    }

    #[test]
    fn two_channels_are_averaged() {
        let bytes = wav(1, 2, 24_000, 16, 0, &[100, 300, i16::MAX, i16::MAX], b"");
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(PcmReader::wav(), &single), Ok((Some(24_000), vec![200, i16::MAX])));
    }

    #[test]
    fn what_is_not_16_bit_pcm_is_refused_by_name() {
        assert_eq!(read(PcmReader::wav(), &[b"<html>"]), Err(PcmError::NotWav));
        assert_eq!(read(PcmReader::wav(), &[b"RIFF1234AVI "]), Err(PcmError::NotWav));
        for (tag, channels, hz, bits) in [(7, 1, 8000, 8), (3, 1, 24_000, 32), (1, 6, 48_000, 16), (1, 1, 96_000, 16)] {
            let refused = read(PcmReader::wav(), &[&wav(tag, channels, hz, bits, 0, &[], b"")]);
            assert_eq!(refused, Err(PcmError::Format { format: tag, channels, bits, hz }));
        }
        let endless = wav(1, 1, 8000, 16, 0, &[], b"junk\xff\xff\xff\x7f");
        assert_eq!(read(PcmReader::wav(), &[&endless]), Err(PcmError::HeaderTooLong));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..6)) {
            let mut all = vec![b"RIFF\0\0\0\0WAVE".as_slice()];
            all.extend(pieces.iter().map(Vec::as_slice));
            let _ = read(PcmReader::wav(), &all);
            let _ = read(PcmReader::raw(SampleRate::HZ_24000), &all[1..]);
        }
    }
}
