//! The messages of one call as they were on the wire, without secrets: what an operator draws as a ladder.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::protocol::sip::target::Target;

/// Longer messages are cut: a call's INVITE with its body has one to two thousand bytes.
const MAX_TEXT: usize = 4096;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rung {
    pub at: Instant,
    /// Sent by us.
    pub sent: bool,
    pub peer: Target,
    pub text: String,
}

/// The last messages of a call.
#[derive(Clone, Debug, Default)]
pub struct Ladder {
    rungs: VecDeque<Rung>,
    max: usize,
    /// Messages that were pushed out by later ones.
    dropped: usize,
}

impl Ladder {
    pub fn new(max: usize) -> Self {
        Self { rungs: VecDeque::new(), max, dropped: 0 }
    }

    pub fn push(&mut self, at: Instant, sent: bool, peer: &Target, bytes: &[u8]) {
        if self.max == 0 {
            return;
        }
        if self.rungs.len() >= self.max {
            // The first message, with its offer, explains the others: the second goes.
            self.rungs.remove(1.min(self.rungs.len() - 1));
            self.dropped += 1;
        }
        self.rungs.push_back(Rung { at, sent, peer: peer.clone(), text: redact(bytes) });
    }

    pub fn dropped(&self) -> usize {
        self.dropped
    }

    pub fn rungs(&self) -> impl Iterator<Item = &Rung> {
        self.rungs.iter()
    }

    pub fn into_rungs(self) -> Vec<Rung> {
        self.rungs.into()
    }
}

/// The messages as a capture file (pcap, raw IP), for tools that draw and dissect them. All of them are shown as UDP,
/// whatever carried them, between `own` and each peer. `since_epoch` says what time of day an instant was.
pub fn pcap(rungs: &[Rung], own: SocketAddr, since_epoch: impl Fn(Instant) -> Duration) -> Vec<u8> {
    let mut out = Vec::new();
    // Magic of microseconds, version 2.4, no zone, no accuracy, longest packet, link type 101 (raw IP).
    for word in [0xa1b2_c3d4, 0x0002_0004_u32.rotate_left(16), 0, 0, 65_535, 101] {
        out.extend_from_slice(&u32::to_le_bytes(word));
    }
    for rung in rungs {
        let (from, to) = if rung.sent { (own, rung.peer.addr) } else { (rung.peer.addr, own) };
        let packet = datagram(from, to, rung.text.as_bytes());
        let at = since_epoch(rung.at);
        let length = u32::try_from(packet.len()).unwrap_or(0);
        let seconds = u32::try_from(at.as_secs()).unwrap_or(u32::MAX);
        for word in [seconds, at.subsec_micros(), length, length] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&packet);
    }
    out
}

/// UDP in IP, of the family that both ends have; else of IPv6 with mapped addresses. UDP's checksum is left out.
fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    // `MAX_TEXT` and what its redaction adds is far below 64 KiB.
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

/// The text without answers to challenges and without SRTP keys.
fn redact(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_TEXT)]);
    let mut out = String::with_capacity(text.len());
    let mut hiding = false;
    for line in text.split_inclusive('\n') {
        // A folded line belongs to the field above.
        hiding = hiding && line.starts_with([' ', '\t']);
        let name = line.split([':', '=']).next().unwrap_or_default().trim().to_ascii_lowercase();
        let secret = matches!(name.as_str(), "authorization" | "proxy-authorization")
            || line.starts_with("k=")
            || line.starts_with("a=crypto:");
        if secret {
            hiding = true;
            let end = line.find([':', '=']).map_or(line.len(), |at| at + 1);
            let end = if line.starts_with("a=crypto:") { "a=crypto:".len() } else { end };
            out.push_str(&line[..end]);
            out.push_str(" …\r\n");
        } else if !hiding {
            out.push_str(line);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::sip::target::Transport;

    #[test]
    fn secrets_are_left_out_and_the_rest_stays() {
        let text = "REGISTER sip:a SIP/2.0\r\nAuthorization: Digest response=\"s3cret\",\r\n opaque=\"s3cret\"\r\n\
                    k: 100rel\r\nproxy-authorization : s3cret\r\nCSeq: 1 REGISTER\r\n\r\nv=0\r\na=crypto:1 AES inline:s3cret\r\n";
        let out = redact(text.as_bytes());
        assert!(!out.contains("s3cret"), "{out}");
        for kept in ["REGISTER sip:a", "Authorization: …", "k: 100rel", "CSeq: 1", "v=0", "a=crypto: …"] {
            assert!(out.contains(kept), "{kept} in {out}");
        }
    }

    #[test]
    fn a_capture_holds_every_message_with_its_time_and_ends() {
        let at = Instant::now();
        let mut ladder = Ladder::new(9);
        for (sent, addr) in [(true, "192.0.2.1:5060"), (false, "192.0.2.1:5060"), (true, "[2001:db8::1]:5061")] {
            ladder.push(at, sent, &Target::new(Transport::Udp, addr.parse().unwrap()), b"OPTIONS");
        }
        let own = "192.0.2.9:5070".parse().unwrap();
        let file = pcap(&ladder.into_rungs(), own, |_| Duration::from_millis(1_700_000_000_250));
        assert_eq!(file[..8], [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0]);
        assert_eq!(file.len(), 24 + 2 * (16 + 28 + 7) + (16 + 48 + 7));
        let first = &file[24..24 + 16 + 35];
        assert_eq!(u32::from_le_bytes(first[..4].try_into().unwrap()), 1_700_000_000);
        assert_eq!(u32::from_le_bytes(first[4..8].try_into().unwrap()), 250_000);
        let packet = &first[16..];
        let sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "the checksum of the IP header");
        assert_eq!((&packet[12..20], &packet[28..]), (&[192, 0, 2, 9, 192, 0, 2, 1][..], &b"OPTIONS"[..]));
    }

    #[test]
    fn the_first_and_the_last_messages_are_kept() {
        let peer = Target::new(Transport::Udp, "192.0.2.1:5060".parse().unwrap());
        let mut ladder = Ladder::new(3);
        for text in ["a", "b", "c", "d", "e"] {
            ladder.push(Instant::now(), true, &peer, text.as_bytes());
        }
        let kept: Vec<_> = ladder.rungs().map(|rung| rung.text.as_str()).collect();
        assert_eq!((kept, ladder.dropped()), (vec!["a", "d", "e"], 2));
    }
}
