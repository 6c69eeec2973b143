//! The few lines of SDP (RFC 8866) that a plain telephone needs: one stream of G.711, offered, and read from an answer.

use std::net::{IpAddr, SocketAddr};

use crate::load::rtp::Codec;

/// An offer of one codec at the address where its RTP is awaited.
pub fn offer(at: SocketAddr, codec: Codec) -> String {
    let family = if at.is_ipv4() { "IP4" } else { "IP6" };
    let (ip, port, kind, name) = (at.ip(), at.port(), codec.payload_type(), codec.name());
    format!(
        "v=0\r\no=- {port} 1 IN {family} {ip}\r\ns=-\r\nc=IN {family} {ip}\r\nt=0 0\r\nm=audio {port} RTP/AVP {kind}\r\n\
         a=rtpmap:{kind} {name}/8000\r\na=ptime:20\r\na=sendrecv\r\n"
    )
}

/// Where the peer awaits its RTP, and the first codec of its audio stream; `None`: no such stream, or one refused.
pub fn read(body: &[u8]) -> Option<(SocketAddr, Codec)> {
    let text = std::str::from_utf8(body).ok()?;
    let mut ip: Option<IpAddr> = None;
    let mut audio: Option<(u16, Codec)> = None;
    for line in text.lines() {
        match line.split_at_checked(2) {
            Some(("c=", address)) => {
                // Of the session, or of this stream, whose line comes later.
                ip = address.split_whitespace().nth(2)?.split('/').next()?.parse().ok();
            }
            Some(("m=", _)) if audio.is_some() => break,
            Some(("m=", media)) => {
                let mut words = media.split_whitespace();
                let (kind, port) = (words.next()?, words.next()?.parse::<u16>());
                let codec = words.nth(1).and_then(|format| Codec::of_payload_type(format.parse().ok()?));
                if let ("audio", Ok(port @ 1..), Some(codec)) = (kind, port, codec) {
                    audio = Some((port, codec));
                }
            }
            _ => {}
        }
    }
    let (port, codec) = audio?;
    Some((SocketAddr::new(ip?, port), codec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_reads_back() {
        for (at, codec) in [("127.0.0.1:4000", Codec::Pcmu), ("[::1]:4002", Codec::Pcma)] {
            let at: SocketAddr = at.parse().unwrap();
            assert_eq!(read(offer(at, codec).as_bytes()), Some((at, codec)));
        }
    }

    #[test]
    fn the_streams_own_address_counts_and_a_refused_stream_is_none() {
        let answer = "v=0\r\nc=IN IP4 192.0.2.1\r\nm=video 0 RTP/AVP 31\r\nm=audio 4000 RTP/AVP 8 101\r\n\
                      c=IN IP4 192.0.2.9/127\r\na=ptime:20\r\nm=audio 5000 RTP/AVP 0\r\nc=IN IP4 192.0.2.3\r\n";
        assert_eq!(read(answer.as_bytes()), Some(("192.0.2.9:4000".parse().unwrap(), Codec::Pcma)));
        for bad in ["c=IN IP4 1.2.3.4\r\nm=audio 0 RTP/AVP 0", "m=audio 4000 RTP/AVP 0", "c=IN\r\n", "c=é", ""] {
            assert_eq!(read(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(read(b"c=IN IP4 1.2.3.4\r\nm=audio 4000 RTP/AVP 96\r\n"), None);
        assert_eq!(read(&[0xFF, 0xFE]), None);
    }
}
