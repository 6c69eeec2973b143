//! The text of a session description (RFC 8866) as values: what negotiation needs of it, and of every other m-line
//! enough to refuse it in its place. Nothing is decided here.
//!
//! Written by hand: `rtc-sdp` refuses a whole description for a media type it does not list, for lines in another order
//! than the grammar's and for a `u=` that is no URL (PBXs send all of these), and it allocates as much as the peer sends.
//! Here order does not matter, unknown lines are skipped, and sizes are bounded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of one description. A softphone with video, ICE and a dozen codecs sends 6 KiB.
pub const MAX_BYTES: usize = 32 * 1024;
/// m-lines kept; a description with more is refused.
pub const MAX_MEDIA: usize = 16;
/// Payload formats kept of an m-line; the rest is not ours to choose from.
const MAX_FORMATS: usize = 64;
/// Attributes of one kind kept for each m-line.
const MAX_ATTRIBUTES: usize = 64;

/// Why a description cannot be used: answer the request with 400 (or 488 when it came in an answer).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SdpError {
    #[error("a description of more than {MAX_BYTES} bytes")]
    TooLong,
    #[error("not text")]
    NotText,
    #[error("no v=0")]
    Version,
    #[error("more than {MAX_MEDIA} m-lines")]
    TooManyMedia,
    #[error("malformed {0}= line")]
    Line(char),
}

/// A whole description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub origin: Origin,
    pub media: Vec<Media>,
}

/// `o=`: who describes, and which edition this is. Both numbers are opaque; some peers send larger ones than 64 bits
/// hold, so that only a change can be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    pub session: String,
    pub version: String,
}

/// One m-line with what belongs to it. Session-level connection and direction are already filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Media {
    /// `audio`, `video`, `image` …
    pub kind: String,
    /// 0: refused or switched off.
    pub port: u16,
    /// `RTP/AVP`, `RTP/SAVP`, `udptl` …
    pub protocol: String,
    pub formats: Vec<String>,
    /// Where media is to be sent; `None` without a usable address.
    pub address: Option<IpAddr>,
    pub direction: Direction,
    pub rtpmaps: Vec<RtpMap>,
    /// Payload type and parameters, as written.
    pub fmtps: Vec<(u8, String)>,
    pub ptime_ms: Option<u32>,
    pub maxptime_ms: Option<u32>,
    /// `a=rtcp:` (RFC 3605).
    pub rtcp_port: Option<u16>,
    pub rtcp_address: Option<IpAddr>,
    pub rtcp_mux: bool,
    pub cryptos: Vec<Crypto>,
}

/// Who sends, seen from whoever wrote the description.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    #[default]
    SendRecv,
    SendOnly,
    RecvOnly,
    Inactive,
}

impl Direction {
    pub const fn new(sends: bool, receives: bool) -> Self {
        match (sends, receives) {
            (true, true) => Self::SendRecv,
            (true, false) => Self::SendOnly,
            (false, true) => Self::RecvOnly,
            (false, false) => Self::Inactive,
        }
    }

    pub const fn sends(self) -> bool {
        matches!(self, Self::SendRecv | Self::SendOnly)
    }

    pub const fn receives(self) -> bool {
        matches!(self, Self::SendRecv | Self::RecvOnly)
    }

    /// The attribute's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SendRecv => "sendrecv",
            Self::SendOnly => "sendonly",
            Self::RecvOnly => "recvonly",
            Self::Inactive => "inactive",
        }
    }
}

/// `a=rtpmap:`: which encoding a payload type stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RtpMap {
    pub payload_type: u8,
    /// As written; compare without regard to case.
    pub encoding: String,
    pub clock: u32,
    /// 1 where nothing is said.
    pub channels: u8,
}

/// `a=crypto:` (RFC 4568). The key is not shown when printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Crypto {
    pub tag: u32,
    pub suite: String,
    /// The key parameters, `inline:…`, and session parameters behind them.
    pub key: String,
    pub session: Option<String>,
}

impl std::fmt::Debug for Crypto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Crypto").field("tag", &self.tag).field("suite", &self.suite).field("key", &"…").finish()
    }
}

impl Description {
    pub fn parse(bytes: &[u8]) -> Result<Self, SdpError> {
        if bytes.len() > MAX_BYTES {
            return Err(SdpError::TooLong);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| SdpError::NotText)?;
        let mut lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
        if lines.next().and_then(|line| line.strip_prefix("v=")).map(str::trim) != Some("0") {
            return Err(SdpError::Version);
        }
        let mut origin = Origin::default();
        let (mut address, mut direction, mut ptime, mut maxptime) = (None, Direction::default(), None, None);
        let mut rtcp_mux = false;
        let mut media: Vec<Media> = Vec::new();
        for line in lines {
            // What is not `x=…` is nothing we know.
            let Some((kind, value)) = line.split_once('=') else { continue };
            match (kind, media.last_mut()) {
                ("o", None) => origin = parse_origin(value).ok_or(SdpError::Line('o'))?,
                ("m", _) => {
                    if media.len() == MAX_MEDIA {
                        return Err(SdpError::TooManyMedia);
                    }
                    let mut new = parse_media(value).ok_or(SdpError::Line('m'))?;
                    new.address = address;
                    new.direction = direction;
                    new.ptime_ms = ptime;
                    new.maxptime_ms = maxptime;
                    new.rtcp_mux = rtcp_mux;
                    media.push(new);
                }
                ("c", None) => address = parse_connection(value),
                ("c", Some(media)) => media.address = parse_connection(value),
                ("a", Some(media)) => on_attribute(media, value),
                ("a", None) => match attribute(value) {
                    ("ptime", Some(value)) => ptime = leading_number(value),
                    ("maxptime", Some(value)) => maxptime = leading_number(value),
                    ("rtcp-mux", None) => rtcp_mux = true,
                    (name, None) => direction = parse_direction(name).unwrap_or(direction),
                    _ => {}
                },
                _ => {}
            }
        }
        Ok(Self { origin, media })
    }
}

fn parse_origin(value: &str) -> Option<Origin> {
    let mut fields = value.split_ascii_whitespace().skip(1);
    let short = |field: &str| field.chars().take(32).collect::<String>();
    Some(Origin { session: short(fields.next()?), version: short(fields.next()?) })
}

fn parse_media(value: &str) -> Option<Media> {
    let mut fields = value.split_ascii_whitespace();
    let (kind, port, protocol) = (fields.next()?, fields.next()?, fields.next()?);
    // `port/count` asks for several ports; the first is as good.
    let port = port.split('/').next()?.parse().ok()?;
    Some(Media {
        kind: kind.into(),
        port,
        protocol: protocol.into(),
        formats: fields.take(MAX_FORMATS).map(String::from).collect(),
        address: None,
        direction: Direction::default(),
        rtpmaps: Vec::new(),
        fmtps: Vec::new(),
        ptime_ms: None,
        maxptime_ms: None,
        rtcp_port: None,
        rtcp_address: None,
        rtcp_mux: false,
        cryptos: Vec::new(),
    })
}

/// `IN IP4 192.0.2.1`, with the TTL of multicast ignored. A host name is not looked up: `None`. A name under `.invalid`
/// stands for no address, as `::` does (RFC 6157).
fn parse_connection(value: &str) -> Option<IpAddr> {
    let mut fields = value.split_ascii_whitespace();
    if !fields.next()?.eq_ignore_ascii_case("IN") {
        return None;
    }
    let kind = fields.next()?;
    let address = fields.next()?.split('/').next()?;
    let is_none = address.to_ascii_lowercase().trim_end_matches('.').ends_with(".invalid");
    if kind.eq_ignore_ascii_case("IP4") {
        if is_none { Some(Ipv4Addr::UNSPECIFIED.into()) } else { address.parse::<Ipv4Addr>().ok().map(IpAddr::V4) }
    } else if kind.eq_ignore_ascii_case("IP6") {
        if is_none { Some(Ipv6Addr::UNSPECIFIED.into()) } else { address.parse::<Ipv6Addr>().ok().map(IpAddr::V6) }
    } else {
        None
    }
}

fn attribute(value: &str) -> (&str, Option<&str>) {
    match value.split_once(':') {
        Some((name, value)) => (name.trim(), Some(value.trim())),
        None => (value.trim(), None),
    }
}

/// `20`, and `20.0` or `20ms` as some peers write it.
fn leading_number(value: &str) -> Option<u32> {
    let end = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    value[..end].parse().ok()
}

fn parse_direction(name: &str) -> Option<Direction> {
    [Direction::SendRecv, Direction::SendOnly, Direction::RecvOnly, Direction::Inactive]
        .into_iter()
        .find(|direction| name.eq_ignore_ascii_case(direction.name()))
}

fn on_attribute(media: &mut Media, value: &str) {
    match attribute(value) {
        ("rtpmap", Some(value)) if media.rtpmaps.len() < MAX_ATTRIBUTES => media.rtpmaps.extend(parse_rtpmap(value)),
        ("fmtp", Some(value)) if media.fmtps.len() < MAX_ATTRIBUTES => {
            if let Some((payload_type, parameters)) = value.split_once(char::is_whitespace)
                && let Ok(payload_type) = payload_type.parse()
            {
                media.fmtps.push((payload_type, parameters.trim().into()));
            }
        }
        ("ptime", Some(value)) => media.ptime_ms = leading_number(value),
        ("maxptime", Some(value)) => media.maxptime_ms = leading_number(value),
        ("rtcp", Some(value)) => {
            let (port, rest) = value.split_once(char::is_whitespace).unwrap_or((value, ""));
            media.rtcp_port = port.parse().ok().filter(|port| *port != 0);
            media.rtcp_address = parse_connection(rest);
        }
        ("rtcp-mux", None) => media.rtcp_mux = true,
        ("crypto", Some(value)) if media.cryptos.len() < MAX_ATTRIBUTES => media.cryptos.extend(parse_crypto(value)),
        (name, None) => media.direction = parse_direction(name).unwrap_or(media.direction),
        _ => {}
    }
}

/// `96 opus/48000/2`.
fn parse_rtpmap(value: &str) -> Option<RtpMap> {
    let (payload_type, rest) = value.split_once(char::is_whitespace)?;
    let mut fields = rest.trim().split('/');
    let encoding = fields.next()?.to_owned();
    let clock = fields.next()?.trim().parse().ok()?;
    let channels = fields.next().and_then(|channels| channels.trim().parse().ok()).unwrap_or(1);
    let payload_type = payload_type.parse().ok().filter(|payload_type| *payload_type < 128)?;
    Some(RtpMap { payload_type, encoding, clock, channels })
}

/// `1 AES_CM_128_HMAC_SHA1_80 inline:… [session parameters]`.
fn parse_crypto(value: &str) -> Option<Crypto> {
    let mut fields = value.splitn(4, char::is_whitespace);
    let tag = fields.next()?.parse().ok()?;
    let suite = fields.next()?.to_owned();
    let key = fields.next()?.to_owned();
    Some(Crypto { tag, suite, key, session: fields.next().map(|session| session.trim().to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASTERISK: &str = "v=0\r\no=root 1821 1821 IN IP4 192.0.2.10\r\ns=session\r\nc=IN IP4 192.0.2.10\r\nt=0 0\r\n\
        m=audio 11252 RTP/AVP 8 0 101\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:0 PCMU/8000\r\n\
        a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-16\r\na=ptime:20\r\na=maxptime:150\r\na=sendrecv\r\n";

    #[test]
    fn what_a_pbx_sends_is_read() {
        let description = Description::parse(ASTERISK.as_bytes()).expect("whole");
        let audio = &description.media[0];
        assert_eq!((audio.kind.as_str(), audio.port, audio.protocol.as_str()), ("audio", 11252, "RTP/AVP"));
        assert_eq!(audio.formats, ["8", "0", "101"]);
        assert_eq!(audio.address, Some("192.0.2.10".parse().expect("an address")));
        assert_eq!((audio.ptime_ms, audio.maxptime_ms), (Some(20), Some(150)));
        assert_eq!(audio.fmtps, [(101, "0-16".to_owned())]);
        assert_eq!(description.origin.version, "1821");
    }

    #[test]
    fn lines_of_a_medium_override_those_of_the_session_in_any_order() {
        let text = "v=0\no=- 1 2 IN IP6 ::1\ns= \na=inactive\nc=IN IP6 2001:db8::1\nfoo\nt=0 0\nz=x\n\
            m=image 4000 udptl t38\nm=audio 5000/2 RTP/SAVP 0\na=sendonly\nc=IN IP4 198.51.100.7/127\na=rtcp-mux\n\
            a=rtcp:5003 IN IP4 198.51.100.8\na=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:abc|2^20\na=ptime:30.0\n";
        let description = Description::parse(text.as_bytes()).expect("whole");
        let [fax, audio] = &description.media[..] else { panic!("two m-lines") };
        assert_eq!((fax.kind.as_str(), fax.direction), ("image", Direction::Inactive));
        assert_eq!(fax.address, Some("2001:db8::1".parse().expect("an address")));
        assert_eq!((audio.port, audio.direction, audio.rtcp_mux), (5000, Direction::SendOnly, true));
        assert_eq!(audio.address, Some("198.51.100.7".parse().expect("an address")));
        assert_eq!((audio.rtcp_port, audio.rtcp_address), (Some(5003), "198.51.100.8".parse().ok()));
        assert_eq!((audio.cryptos[0].tag, audio.cryptos[0].key.as_str()), (1, "inline:abc|2^20"));
        assert!(!format!("{audio:?}").contains("abc"), "a key is never printed");
        assert_eq!(audio.ptime_ms, Some(30));
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_sizes_are_bounded() {
        let check = |text: &str, error| assert_eq!(Description::parse(text.as_bytes()), Err(error), "{text}");
        check("", SdpError::Version);
        check("v=1\r\n", SdpError::Version);
        check("v=0\r\no=-\r\n", SdpError::Line('o'));
        check("v=0\r\nm=audio\r\n", SdpError::Line('m'));
        check("v=0\r\nm=audio x RTP/AVP 0\r\n", SdpError::Line('m'));
        check(&format!("v=0\r\n{}", "m=audio 1 RTP/AVP 0\r\n".repeat(17)), SdpError::TooManyMedia);
        check(&format!("v=0\r\n{}", " ".repeat(MAX_BYTES)), SdpError::TooLong);
        assert_eq!(Description::parse(b"v=0\r\n\xff"), Err(SdpError::NotText));
        let many = format!("v=0\nm=audio 1 RTP/AVP {}\n{}", "0 ".repeat(500), "a=rtpmap:0 PCMU/8000\n".repeat(500));
        let audio = Description::parse(many.as_bytes()).expect("bounded, not refused").media.remove(0);
        assert_eq!((audio.formats.len(), audio.rtpmaps.len()), (MAX_FORMATS, MAX_ATTRIBUTES));
    }

    #[test]
    fn attributes_that_are_wrong_are_passed_over() {
        let text = "v=0\nm=audio 1 RTP/AVP 0\na=rtpmap:300 X/1\na=rtpmap:5\na=rtpmap:x Y/1\na=fmtp:1\na=crypto:x\n\
            a=ptime:soon\na=rtcp:0\na=\na=:\nc=IN IP4 example.org\n=\na\n";
        let audio = Description::parse(text.as_bytes()).expect("readable").media.remove(0);
        assert!(audio.rtpmaps.is_empty() && audio.fmtps.is_empty() && audio.cryptos.is_empty());
        assert_eq!((audio.ptime_ms, audio.rtcp_port, audio.address), (None, None, None));
    }
}
