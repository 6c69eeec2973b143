//! Capture files (pcap, raw IP) of what a call sent and got, for tools that draw and dissect it. Everything is shown as UDP,
//! whatever carried it. Packets may come in any order: they carry their time.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Of a datagram over IPv6 without its headers.
const MAX_PAYLOAD: usize = 65_535 - 48;

/// What a file begins with: magic of microseconds, version 2.4, no zone, no accuracy, longest packet, link type 101 (raw
/// IP). <https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html>
pub fn head() -> Vec<u8> {
    let words = [0xa1b2_c3d4, 0x0002_0004_u32.rotate_left(16), 0, 0, 65_535, 101];
    words.iter().flat_map(|word| u32::to_le_bytes(*word)).collect()
}

/// Adds a packet; `at` is the time since 1970.
pub fn write(out: &mut Vec<u8>, at: Duration, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
    let packet = datagram(from, to, payload);
    let length = u32::try_from(packet.len()).unwrap_or(0);
    let seconds = u32::try_from(at.as_secs()).unwrap_or(u32::MAX);
    for word in [seconds, at.subsec_micros(), length, length] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&packet);
}

/// UDP in IP, of the family that both ends have; else of IPv6 with mapped addresses. UDP's checksum is left out.
fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    // What was on the wire as one datagram fits; a longer message of a stream is cut.
    let payload = &payload[..payload.len().min(MAX_PAYLOAD)];
    let udp_length = u16::try_from(payload.len() + 8).unwrap_or(u16::MAX);
    let mut out = Vec::with_capacity(payload.len() + 48);
    match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            out.extend_from_slice(&[0x45, 0]);
            out.extend_from_slice(&udp_length.saturating_add(20).to_be_bytes());
            out.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&target.octets());
            let sum: u32 = out.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
            let folded = (sum & 0xffff) + (sum >> 16);
            let checksum = !(((folded & 0xffff) + (folded >> 16)) as u16);
            out[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        (source, target) => {
            let mapped = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            out.extend_from_slice(&[0x60, 0, 0, 0]);
            out.extend_from_slice(&udp_length.to_be_bytes());
            out.extend_from_slice(&[17, 64]);
            out.extend_from_slice(&mapped(source));
            out.extend_from_slice(&mapped(target));
        }
    }
    out.extend_from_slice(&from.port().to_be_bytes());
    out.extend_from_slice(&to.port().to_be_bytes());
    out.extend_from_slice(&udp_length.to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(payload);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_holds_every_packet_with_its_time_and_ends() {
        let at = Duration::from_millis(1_700_000_000_250);
        let mut file = head();
        for (own, peer) in [("192.0.2.9:5070", "192.0.2.1:5060"), ("192.0.2.9:5070", "[2001:db8::1]:5061")] {
            write(&mut file, at, own.parse().unwrap(), peer.parse().unwrap(), b"OPTIONS");
        }
        assert_eq!(file[..8], [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0]);
        assert_eq!(file.len(), 24 + (16 + 28 + 7) + (16 + 48 + 7));
        let first = &file[24..24 + 16 + 35];
        assert_eq!(u32::from_le_bytes(first[..4].try_into().unwrap()), 1_700_000_000);
        assert_eq!(u32::from_le_bytes(first[4..8].try_into().unwrap()), 250_000);
        let packet = &first[16..];
        let sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "the checksum of the IP header");
        assert_eq!((&packet[12..20], &packet[28..]), (&[192, 0, 2, 9, 192, 0, 2, 1][..], &b"OPTIONS"[..]));
    }

    #[test]
    fn what_fits_no_datagram_is_cut() {
        let mut file = Vec::new();
        let addr = "192.0.2.1:5060".parse().unwrap();
        write(&mut file, Duration::ZERO, addr, addr, &vec![0; 100_000]);
        assert_eq!(file.len(), 16 + 28 + MAX_PAYLOAD);
    }
}
