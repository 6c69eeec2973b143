//! The RTP header (RFC 3550 §5.1), read in place and written into a reused buffer.
//!
//! Written by hand and not taken from `rtc-rtp`: that allocates for each contributing source and header extension on the
//! 20 ms path, and takes the rest of an extension block behind a reserved id (RFC 8285 §4.2) for payload.

/// Bytes of a header without contributing sources and extension.
pub const HEADER: usize = 12;
/// The largest datagram that is read or written: 60 ms of anything we speak with every optional field, and the tag of
/// SRTP. Ethernet's 1,500 bytes hold it.
pub const MAX_DATAGRAM: usize = 1_472;

/// An RTP packet in the buffer it arrived in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RtpPacket<'a> {
    pub marker: bool,
    pub payload_type: u8,
    pub sequence: u16,
    pub timestamp: u32,
    pub ssrc: u32,
    pub payload: &'a [u8],
}

/// Whether a datagram on a shared port is RTCP (RFC 5761 §4): its second byte is one of RTCP's packet types.
pub fn is_rtcp(bytes: &[u8]) -> bool {
    matches!(bytes, [first, 192..=223, ..] if first >> 6 == 2)
}

impl<'a> RtpPacket<'a> {
    /// `None` when the bytes are no RTP: too short, another version, fields that reach beyond the end. Contributing
    /// sources and header extensions are stepped over.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(HEADER)?;
        if head[0] >> 6 != 2 {
            return None;
        }
        let mut rest = rest.get(4 * usize::from(head[0] & 0x0F)..)?;
        if head[0] & 0x10 != 0 {
            let (extension, _) = rest.split_at_checked(4)?;
            let words = u16::from_be_bytes([extension[2], extension[3]]);
            rest = rest.get(4 + 4 * usize::from(words)..)?;
        }
        if head[0] & 0x20 != 0 {
            // The last byte says how many are padding, itself among them.
            let padding = usize::from(*rest.last()?);
            if padding == 0 {
                return None;
            }
            rest = rest.get(..rest.len().checked_sub(padding)?)?;
        }
        Some(Self {
            marker: head[1] & 0x80 != 0,
            payload_type: head[1] & 0x7F,
            sequence: u16::from_be_bytes([head[2], head[3]]),
            timestamp: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
            ssrc: u32::from_be_bytes([head[8], head[9], head[10], head[11]]),
            payload: rest,
        })
    }

    /// Replaces what is in `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&[0x80, u8::from(self.marker) << 7 | self.payload_type & 0x7F]);
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(&self.timestamp.to_be_bytes());
        out.extend_from_slice(&self.ssrc.to_be_bytes());
        out.extend_from_slice(self.payload);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rtc_shared::marshal::{Marshal as _, Unmarshal as _};

    use super::*;

    #[test]
    fn optional_fields_are_stepped_over() {
        // Padding, extension, two contributing sources.
        let mut bytes = vec![0xB2, 0x80 | 8, 1, 2, 0, 0, 0, 3, 0, 0, 0, 4];
        bytes.extend([0; 8]);
        bytes.extend([0xBE, 0xDE, 0, 1, 0xF0, 1, 2, 3]);
        bytes.extend([9, 9, 9, 0, 0, 3]);
        let packet = RtpPacket::parse(&bytes).expect("whole");
        assert_eq!((packet.marker, packet.payload_type, packet.sequence), (true, 8, 0x102));
        assert_eq!((packet.timestamp, packet.ssrc, packet.payload), (3, 4, &[9, 9, 9][..]));
    }

    #[test]
    fn what_reaches_beyond_the_end_is_no_packet() {
        let whole = [0xB1, 8, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 1, 1, 1, 1, 1, 7, 1];
        assert_eq!(RtpPacket::parse(&whole).map(|packet| packet.payload), Some(&[7][..]));
        for end in 0..24 {
            assert_eq!(RtpPacket::parse(&whole[..end]), None, "{end} bytes");
        }
        let pad = |last: u8| RtpPacket::parse(&[0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, last]).is_some();
        assert!(pad(1) && pad(2) && !pad(0) && !pad(3));
        assert_eq!(RtpPacket::parse(&[0x40; 20]), None, "version 1");
    }

    #[test]
    fn rtcp_on_a_shared_port_is_told_by_its_type() {
        assert!(is_rtcp(&[0x80, 200, 0, 6]) && is_rtcp(&[0x81, 201]));
        assert!(!is_rtcp(&[0x80, 0x80 | 8, 0, 0]) && !is_rtcp(&[0x80]) && !is_rtcp(&[0, 200]));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same_here_and_in_rtc_rtp(
            marker: bool, payload_type in 0_u8..128, sequence: u16, timestamp: u32, ssrc: u32,
            payload in prop::collection::vec(any::<u8>(), 0..500),
        ) {
            let packet = RtpPacket { marker, payload_type, sequence, timestamp, ssrc, payload: &payload };
            let mut bytes = Vec::new();
            packet.write(&mut bytes);
            prop_assert_eq!(RtpPacket::parse(&bytes), Some(packet));
            let theirs = rtc_rtp::Packet::unmarshal(&mut &bytes[..]).expect("a good packet");
            prop_assert_eq!((theirs.header.marker, theirs.header.payload_type), (marker, payload_type));
            prop_assert_eq!((theirs.header.sequence_number, theirs.header.timestamp), (sequence, timestamp));
            prop_assert_eq!((theirs.header.ssrc, &theirs.payload[..]), (ssrc, &payload[..]));
            prop_assert_eq!(&theirs.marshal().expect("fits")[..], &bytes[..]);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Some(packet) = RtpPacket::parse(&bytes) {
                prop_assert!(packet.payload.len() + HEADER <= bytes.len());
            }
        }
    }
}
