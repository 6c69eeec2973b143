//! RTP as a plain telephone speaks it (RFC 3550, G.711 only): packets of 20 ms written, and what comes counted: lost,
//! late, doubled, and how unevenly it came. Written apart from the server's own, so that neither hides a fault of the
//! other. No socket and no clock.

use std::time::Duration;

use serde::Serialize;

use crate::load::fixture::PER_MS;
use crate::load::{alaw, ulaw};

/// Bytes before the payload.
const HEADER: usize = 12;
/// A sequence number this far from the newest belongs to another stream, as after a restart of the sender.
const FAR: u16 = 3_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Codec {
    #[default]
    Pcmu,
    Pcma,
}

impl Codec {
    /// RFC 3551, table 4.
    pub const fn payload_type(self) -> u8 {
        match self {
            Self::Pcmu => 0,
            Self::Pcma => 8,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Pcmu => "PCMU",
            Self::Pcma => "PCMA",
        }
    }

    pub const fn of_payload_type(payload_type: u8) -> Option<Self> {
        match payload_type {
            0 => Some(Self::Pcmu),
            8 => Some(Self::Pcma),
            _ => None,
        }
    }

    pub fn encode(self, sample: i16) -> u8 {
        match self {
            Self::Pcmu => ulaw::encode(sample),
            Self::Pcma => alaw::encode(sample),
        }
    }

    /// As mu-law, which the ear hears.
    fn to_ulaw(self, code: u8) -> u8 {
        match self {
            Self::Pcmu => code,
            Self::Pcma => ulaw::encode(alaw::decode(code)),
        }
    }
}

/// What a caller sends.
#[derive(Debug)]
pub struct RtpWriter {
    codec: Codec,
    ssrc: u32,
    sequence: u16,
    timestamp: u32,
    began: bool,
}

impl RtpWriter {
    /// RFC 3550 §5.1 wants all three at random.
    pub fn new(codec: Codec, ssrc: u32, sequence: u16, timestamp: u32) -> Self {
        Self { codec, ssrc, sequence, timestamp, began: false }
    }

    /// Writes the next packet in place of what `out` holds.
    pub fn packet(&mut self, samples: &[i16], out: &mut Vec<u8>) {
        out.clear();
        let marker = if std::mem::replace(&mut self.began, true) { 0 } else { 0x80 };
        out.extend_from_slice(&[0x80, marker | self.codec.payload_type()]);
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(&self.timestamp.to_be_bytes());
        out.extend_from_slice(&self.ssrc.to_be_bytes());
        out.extend(samples.iter().map(|sample| self.codec.encode(*sample)));
        self.sequence = self.sequence.wrapping_add(1);
        self.timestamp = self.timestamp.wrapping_add(samples.len() as u32);
    }
}

/// What came, in figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct RtpFigures {
    pub sent: u64,
    pub received: u64,
    /// Never came.
    pub lost: u64,
    /// Came after a later one, and were not heard.
    pub late: u64,
    pub duplicates: u64,
    /// Not RTP of the agreed codec.
    pub foreign: u64,
    /// Interarrival jitter (RFC 3550 §6.4.1), mean over the packets.
    pub jitter_ms: f64,
    /// The largest difference between two packets' distance on arrival and when they were made.
    pub worst_ms: f64,
}

/// What a caller receives.
#[derive(Debug)]
pub struct RtpReader {
    codec: Codec,
    stream: Option<Stream>,
    figures: RtpFigures,
    jitter_ms: f64,
    jitter_sum: f64,
    measured: u64,
}

#[derive(Debug)]
struct Stream {
    ssrc: u32,
    newest: u16,
    /// Which of the 64 packets before the newest came.
    before: u64,
    /// Packets of this stream that should have come, the newest included.
    expected: u64,
    came: u64,
    arrived: Duration,
    timestamp: u32,
}

impl RtpReader {
    pub fn new(codec: Codec) -> Self {
        Self { codec, stream: None, figures: RtpFigures::default(), jitter_ms: 0.0, jitter_sum: 0.0, measured: 0 }
    }

    /// Takes a datagram that came `at` after the call's start. The sound goes to `codes` as mu-law, in place of what it
    /// holds: nothing, where there is nothing to be heard now.
    pub fn read(&mut self, at: Duration, datagram: &[u8], codes: &mut Vec<u8>) {
        codes.clear();
        let Some((sequence, timestamp, ssrc, payload)) = self.parse(datagram) else {
            self.figures.foreign += 1;
            return;
        };
        self.figures.received += 1;
        let follows = match &mut self.stream {
            Some(stream) if stream.ssrc == ssrc => match stream.place(sequence) {
                Place::Next => true,
                Place::Late => {
                    self.figures.late += 1;
                    return;
                }
                Place::Again => {
                    self.figures.duplicates += 1;
                    return;
                }
                Place::Elsewhere => false,
            },
            _ => false,
        };
        match &mut self.stream {
            Some(stream) if follows => {
                let apart_ms = timestamp.wrapping_sub(stream.timestamp) as i32 as f64 / PER_MS as f64;
                let difference = ((at.as_secs_f64() - stream.arrived.as_secs_f64()) * 1_000.0 - apart_ms).abs();
                (stream.arrived, stream.timestamp) = (at, timestamp);
                self.jitter_ms += (difference - self.jitter_ms) / 16.0;
                self.jitter_sum += self.jitter_ms;
                self.measured += 1;
                self.figures.worst_ms = self.figures.worst_ms.max(difference);
            }
            _ => {
                self.close_stream();
                self.stream =
                    Some(Stream { ssrc, newest: sequence, before: 0, expected: 1, came: 1, arrived: at, timestamp });
            }
        }
        codes.extend(payload.iter().map(|code| self.codec.to_ulaw(*code)));
    }

    fn parse<'a>(&self, datagram: &'a [u8]) -> Option<(u16, u32, u32, &'a [u8])> {
        let [first, second, s0, s1, t0, t1, t2, t3, i0, i1, i2, i3, rest @ ..] = datagram else { return None };
        if first >> 6 != 2 || second & 0x7F != self.codec.payload_type() {
            return None;
        }
        let rest = rest.get(4 * usize::from(first & 0x0F)..)?;
        let rest = match first & 0x10 {
            0 => rest,
            _ => {
                let words = u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]);
                rest.get(4 + 4 * usize::from(words)..)?
            }
        };
        let padding = if first & 0x20 == 0 { 0 } else { usize::from(*rest.last()?) };
        let payload = rest.get(..rest.len().checked_sub(padding)?)?;
        let sequence = u16::from_be_bytes([*s0, *s1]);
        let timestamp = u32::from_be_bytes([*t0, *t1, *t2, *t3]);
        Some((sequence, timestamp, u32::from_be_bytes([*i0, *i1, *i2, *i3]), payload))
    }

    fn close_stream(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.figures.lost += stream.expected.saturating_sub(stream.came);
        }
    }

    /// The call is over: `sent` packets went the other way.
    pub fn finish(mut self, sent: u64) -> RtpFigures {
        self.close_stream();
        let jitter_ms = if self.measured == 0 { 0.0 } else { self.jitter_sum / self.measured as f64 };
        RtpFigures { sent, jitter_ms, ..self.figures }
    }
}

enum Place {
    Next,
    Late,
    Again,
    Elsewhere,
}

impl Stream {
    fn place(&mut self, sequence: u16) -> Place {
        let ahead = sequence.wrapping_sub(self.newest);
        let behind = self.newest.wrapping_sub(sequence);
        if ahead == 0 {
            return Place::Again;
        }
        if ahead < FAR {
            self.before = match ahead {
                65.. => 0,
                64 => 1 << 63,
                ahead => self.before << ahead | 1 << (ahead - 1),
            };
            self.newest = sequence;
            self.expected += u64::from(ahead);
            self.came += 1;
            return Place::Next;
        }
        if behind >= FAR {
            return Place::Elsewhere;
        }
        // What is older than the memory counts as late: it came at all.
        let bit = if behind <= 64 { 1 << (behind - 1) } else { 0 };
        if self.before & bit != 0 {
            return Place::Again;
        }
        self.before |= bit;
        self.came += 1;
        Place::Late
    }
}

/// Whether nothing would be heard of it: silence that the sender fills its pauses with.
pub fn is_silence(codes: &[u8]) -> bool {
    // A-law knows no zero: its smallest step, 8, is the nearest that there is.
    codes.iter().all(|code| ulaw::decode(*code).unsigned_abs() <= 8)
}

/// One packet's length.
pub const fn packet_bytes(samples: usize) -> usize {
    HEADER + samples
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(sequence: u16, timestamp: u32, ssrc: u32) -> Vec<u8> {
        let mut out = Vec::new();
        RtpWriter::new(Codec::Pcmu, ssrc, sequence, timestamp).packet(&[1_000; 160], &mut out);
        out
    }

    /// Packets by number since the first, each with its time of arrival.
    fn figures(arrivals: &[(u64, u16)]) -> (RtpFigures, usize) {
        let (mut reader, mut codes, mut heard) = (RtpReader::new(Codec::Pcmu), Vec::new(), 0);
        for (at, number) in arrivals {
            let sequence = 65_534u16.wrapping_add(*number);
            let timestamp = (u32::MAX - 100).wrapping_add(u32::from(*number) * 160);
            reader.read(Duration::from_millis(*at), &packet(sequence, timestamp, 7), &mut codes);
            heard += codes.len();
        }
        (reader.finish(0), heard)
    }

    #[test]
    fn what_is_written_is_read_back_and_the_first_packet_is_marked() {
        let (mut out, mut codes) = (Vec::new(), Vec::new());
        for codec in [Codec::Pcmu, Codec::Pcma] {
            let mut writer = RtpWriter::new(codec, 1, u16::MAX, u32::MAX);
            let mut reader = RtpReader::new(codec);
            for marker in [0x80, 0] {
                writer.packet(&[8_000; 160], &mut out);
                assert_eq!((out.len(), out[1]), (packet_bytes(160), marker | codec.payload_type()));
                reader.read(Duration::ZERO, &out, &mut codes);
                assert!(codes.iter().all(|code| (i32::from(ulaw::decode(*code)) - 8_000).abs() < 400), "{codec:?}");
            }
            assert_eq!(reader.finish(2).received, 2);
        }
    }

    #[test]
    fn an_even_stream_over_the_wrap_has_no_loss_and_no_jitter() {
        let arrivals: Vec<(u64, u16)> = (0..200).map(|n| (u64::from(n) * 20, n)).collect();
        let (figures, heard) = figures(&arrivals);
        assert_eq!((figures.received, figures.lost, figures.late, figures.duplicates), (200, 0, 0, 0));
        assert_eq!(heard, 200 * 160);
        assert!(figures.jitter_ms < 0.001 && figures.worst_ms < 0.001, "{figures:?}");
    }

    #[test]
    fn lost_late_and_doubled_packets_are_told_apart() {
        let (figures, heard) = figures(&[(0, 0), (20, 1), (40, 3), (45, 2), (60, 3), (80, 6), (81, 2)]);
        assert_eq!((figures.lost, figures.late, figures.duplicates), (2, 1, 2), "{figures:?}");
        assert_eq!(heard, 4 * 160, "what came late is not heard");
    }

    #[test]
    fn jitter_is_the_difference_of_distances() {
        let arrivals: Vec<(u64, u16)> = (0..400).map(|n| (u64::from(n) * 20 + u64::from(n % 2) * 8, n)).collect();
        let (figures, _) = figures(&arrivals);
        assert!((figures.jitter_ms - 8.0).abs() < 0.5 && (figures.worst_ms - 8.0).abs() < 0.01, "{figures:?}");
    }

    #[test]
    fn another_stream_begins_its_own_count_and_what_is_no_rtp_of_ours_is_foreign() {
        let (mut reader, mut codes) = (RtpReader::new(Codec::Pcmu), Vec::new());
        for (sequence, ssrc) in [(10, 1), (12, 1), (40_000, 2), (40_001, 2), (9, 2)] {
            reader.read(Duration::ZERO, &packet(sequence, 0, ssrc), &mut codes);
            assert_eq!(codes.len(), 160);
        }
        let mut other = packet(11, 0, 2);
        other[1] = 8;
        for bytes in [&other[..], &other[..11], &[0x80], b"", &[0x9F, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]] {
            reader.read(Duration::ZERO, bytes, &mut codes);
            assert!(codes.is_empty());
        }
        let figures = reader.finish(3);
        assert_eq!((figures.sent, figures.received, figures.lost, figures.foreign), (3, 5, 1, 5), "{figures:?}");
    }

    #[test]
    fn silence_is_known_in_both_codecs() {
        assert!(is_silence(&[Codec::Pcmu.to_ulaw(0xFF), Codec::Pcma.to_ulaw(0xD5), Codec::Pcma.to_ulaw(0x55)]));
        assert!(!is_silence(&[0xFF, 0xE0]));
    }
}
