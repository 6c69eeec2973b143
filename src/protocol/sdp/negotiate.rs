//! Agreeing on one audio stream (RFC 3264): our offer, our answer to theirs, and what an answer to ours means. Values in,
//! values out: ports, keys and version numbers come from outside.
//!
//! An answer names one codec, so that neither side changes it without asking. Every other m-line is refused in its place
//! with port 0. Hold is read from the direction or from the old `c=0.0.0.0` (RFC 2543), which IPv6 writes `::`. One
//! address family serves a stream; of an offer that lists the same media for both (ANAT, RFC 4091) the first line of ours
//! is taken.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use crate::media::packet::{ClockRate, Codec};
use crate::protocol::rtp::plan::{KeyFormat, MediaPlan, SrtpKey, SrtpKeys, SrtpSuite};
use crate::protocol::sdp::parse::{Crypto, Description, Direction, Media};

/// Payload types that our offers give to what has no static one.
const OPUS: u8 = 96;
const KEYS_48000: u8 = 100;
const KEYS_8000: u8 = 101;
const COMFORT_NOISE: u8 = 13;
/// One packet holds so much at least and at most.
const PTIME_MS: std::ops::RangeInclusive<u32> = 10..=60;
/// Mono speech: what we decode to, and a bit rate that stays inside [`crate::media::packet::Packet::MAX`].
const OPUS_FMTP: &str = "maxplaybackrate=16000;sprop-maxcapturerate=16000;maxaveragebitrate=24000;useinbandfec=1";

/// Whether a stream may or must be encrypted (SDES, RFC 4568). The keys stand in the description, so it is worth
/// something only where signalling is encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SrtpPolicy {
    /// `RTP/SAVP` is refused and never offered.
    #[default]
    Off,
    /// Taken when it is offered; offered by us.
    Optional,
    /// `RTP/AVP` is refused.
    Required,
}

/// Our side of a description.
#[derive(Clone, Debug)]
pub struct LocalMedia {
    /// The address that the peer is told: the public one behind NAT.
    pub address: IpAddr,
    pub port: u16,
    /// RTCP's port, used when the peer does not share ports; by custom `port + 1`.
    pub rtcp_port: u16,
    /// `o=`: the same for all descriptions of a dialog, and one more with each that differs.
    pub session: u64,
    pub version: u64,
    /// What we speak, the favourite first.
    pub codecs: Vec<Codec>,
    /// Audio in a packet, where the peer does not mind: 10 to 60 ms.
    pub ptime_ms: u32,
    /// Our wish: `SendRecv`, or less to hold the peer.
    pub direction: Direction,
    pub srtp: SrtpPolicy,
    /// Protects what we send; random, a new one for each stream.
    pub srtp_key: SrtpKey,
}

/// An answer to send, and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    pub sdp: String,
    pub plan: MediaPlan,
}

/// Why no stream came about: 488 to an offer; BYE to an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NegotiateError {
    #[error("no audio is offered")]
    NoAudio,
    #[error("no codec in common")]
    NoCodec,
    #[error("the audio transport is not one of ours, or encryption does not agree")]
    Transport,
    #[error("no address to send audio to")]
    NoAddress,
    /// IPv6 where our media is IPv4, or the other way round.
    #[error("the audio is of an address family that we do not have here")]
    Family,
    /// The answer names what was not offered, or misses the audio line.
    #[error("the answer does not fit the offer")]
    Mismatch,
}

impl NegotiateError {
    /// Code and text of a Warning header that tells the peer why (RFC 3261 §20.43).
    pub const fn warning(self) -> Option<(u16, &'static str)> {
        match self {
            Self::NoAudio => Some((304, "Media type not available")),
            Self::NoCodec => Some((305, "Incompatible media format")),
            Self::Transport => Some((302, "Incompatible transport protocol")),
            Self::NoAddress | Self::Family => Some((301, "Incompatible network address formats")),
            Self::Mismatch => None,
        }
    }
}

/// Where the audio lines of an offer want their media sent, in their order; lines that are held or switched off name
/// nothing.
pub fn audio_targets(offer: &Description) -> impl Iterator<Item = SocketAddr> {
    let lines = offer.media.iter().filter(|media| media.kind.eq_ignore_ascii_case("audio") && media.port != 0);
    lines.filter_map(|media| Some(SocketAddr::new(media.address?, media.port))).filter(|at| !at.ip().is_unspecified())
}

/// Our offer: all our codecs on one audio line.
pub fn offer(local: &LocalMedia) -> String {
    let secure = local.srtp != SrtpPolicy::Off;
    let mut sdp = head(local);
    let protocol = if secure { "RTP/SAVP" } else { "RTP/AVP" };
    let _ = write!(sdp, "m=audio {} {protocol}", local.port);
    for &codec in &local.codecs {
        let _ = write!(sdp, " {}", own_type(codec));
    }
    let wide = local.codecs.contains(&Codec::Opus);
    let narrow = local.codecs.iter().any(|&codec| codec != Codec::Opus);
    let events = [(wide, KEYS_48000, ClockRate::HZ_48000), (narrow, KEYS_8000, ClockRate::HZ_8000)];
    for (_, payload_type, _) in events.iter().filter(|(used, ..)| *used) {
        let _ = write!(sdp, " {payload_type}");
    }
    sdp.push_str("\r\n");
    for &codec in &local.codecs {
        write_codec(&mut sdp, own_type(codec), codec);
    }
    for (_, payload_type, clock) in events.into_iter().filter(|(used, ..)| *used) {
        write_keys(&mut sdp, payload_type, clock);
    }
    let ptime = local.ptime_ms.clamp(*PTIME_MS.start(), *PTIME_MS.end());
    let _ = write!(sdp, "a=ptime:{ptime}\r\na=maxptime:{}\r\n", PTIME_MS.end());
    if secure {
        write_crypto(&mut sdp, 1, SrtpSuite::HmacSha1_80, &local.srtp_key);
    }
    let _ = write!(sdp, "a={}\r\na=rtcp-mux\r\na=rtcp:{}\r\n", local.direction.name(), local.rtcp_port);
    sdp
}

/// Our answer. `current` is the codec of a running call: it is kept where it is still offered.
pub fn answer(offer: &Description, local: &LocalMedia, current: Option<Codec>) -> Result<Negotiated, NegotiateError> {
    let mut error = NegotiateError::NoAudio;
    let mut chosen = None;
    for (place, media) in offer.media.iter().enumerate() {
        if media.kind.eq_ignore_ascii_case("audio") && media.port != 0 {
            match choose(media, local, current) {
                Ok(plan) => {
                    chosen = Some((place, plan));
                    break;
                }
                // Of several audio lines the first tells what was wrong.
                Err(fault) if error == NegotiateError::NoAudio => error = fault,
                Err(_) => {}
            }
        }
    }
    let Some((place, Choice { plan, crypto_tag })) = chosen else { return Err(error) };
    let mut sdp = head(local);
    for (at, media) in offer.media.iter().enumerate() {
        if at == place {
            write_answer(&mut sdp, media, local, &plan, crypto_tag);
        } else {
            // RFC 3264 §6: refused, in its place, with a format so that the line is whole.
            let format = media.formats.first().map_or("0", String::as_str);
            let _ = write!(sdp, "m={} 0 {} {format}\r\n", media.kind, media.protocol);
        }
    }
    Ok(Negotiated { sdp, plan })
}

/// What the peer's answer to our offer means; also a provisional one, whose media may already be heard.
pub fn accept(local: &LocalMedia, answer: &Description) -> Result<MediaPlan, NegotiateError> {
    // We offered one line, and answers keep the order.
    let media = answer.media.first().ok_or(NegotiateError::Mismatch)?;
    if !media.kind.eq_ignore_ascii_case("audio") || media.port == 0 {
        return Err(NegotiateError::NoAudio);
    }
    let srtp = match (local.srtp, is_secure(&media.protocol).ok_or(NegotiateError::Transport)?) {
        (SrtpPolicy::Off, false) => None,
        (SrtpPolicy::Optional | SrtpPolicy::Required, true) => {
            let crypto = media.cryptos.iter().find(|crypto| crypto.tag == 1).ok_or(NegotiateError::Transport)?;
            let (suite, remote) = read_crypto(crypto).ok_or(NegotiateError::Transport)?;
            if suite != SrtpSuite::HmacSha1_80 {
                return Err(NegotiateError::Mismatch);
            }
            Some(SrtpKeys { suite, local: local.srtp_key.clone(), remote })
        }
        _ => return Err(NegotiateError::Mismatch),
    };
    let named = formats(media);
    let (payload_type, codec) = named
        .iter()
        .find_map(|&(payload_type, format)| match format {
            Format::Audio(codec) if local.codecs.contains(&codec) => Some((payload_type, codec)),
            _ => None,
        })
        .ok_or(NegotiateError::NoCodec)?;
    // The peer should use our numbers (RFC 3264 §6.1); one that uses its own is understood as well.
    let mut accepts: Vec<(u8, Codec)> = Vec::new();
    for &(theirs, format) in &named {
        if let Format::Audio(codec) = format
            && local.codecs.contains(&codec)
        {
            accepts.extend([(own_type(codec), codec), (theirs, codec)]);
        }
    }
    accepts.sort_by_key(|(payload_type, _)| *payload_type);
    accepts.dedup_by_key(|(payload_type, _)| *payload_type);
    let keys = choose_keys(&named, codec).map(|(send, clock)| {
        let receive = if clock == ClockRate::HZ_48000 { KEYS_48000 } else { KEYS_8000 };
        KeyFormat { send, receive, clock }
    });
    plan(media, local, Agreed { codec, payload_type, accepts, keys, srtp })
}

struct Choice {
    plan: MediaPlan,
    crypto_tag: Option<u32>,
}

/// What an offered audio line lets us agree on.
fn choose(media: &Media, local: &LocalMedia, current: Option<Codec>) -> Result<Choice, NegotiateError> {
    let secure = is_secure(&media.protocol).ok_or(NegotiateError::Transport)?;
    let mut crypto_tag = None;
    let srtp = match (secure, local.srtp) {
        (false, SrtpPolicy::Off | SrtpPolicy::Optional) => None,
        (true, SrtpPolicy::Optional | SrtpPolicy::Required) => {
            let usable = media.cryptos.iter().find_map(|crypto| Some((crypto.tag, read_crypto(crypto)?)));
            let (tag, (suite, remote)) = usable.ok_or(NegotiateError::Transport)?;
            crypto_tag = Some(tag);
            Some(SrtpKeys { suite, local: local.srtp_key.clone(), remote })
        }
        _ => return Err(NegotiateError::Transport),
    };
    let offered = formats(media);
    let wanted = current.filter(|codec| local.codecs.contains(codec)).into_iter().chain(local.codecs.iter().copied());
    let (payload_type, codec) = wanted
        .into_iter()
        .find_map(|codec| {
            let (payload_type, _) = offered.iter().find(|(_, format)| *format == Format::Audio(codec))?;
            Some((*payload_type, codec))
        })
        .ok_or(NegotiateError::NoCodec)?;
    let keys = choose_keys(&offered, codec).map(|(number, clock)| KeyFormat { send: number, receive: number, clock });
    let accepts = vec![(payload_type, codec)];
    let plan = plan(media, local, Agreed { codec, payload_type, accepts, keys, srtp })?;
    Ok(Choice { plan, crypto_tag })
}

struct Agreed {
    codec: Codec,
    payload_type: u8,
    accepts: Vec<(u8, Codec)>,
    keys: Option<KeyFormat>,
    srtp: Option<SrtpKeys>,
}

fn plan(media: &Media, local: &LocalMedia, agreed: Agreed) -> Result<MediaPlan, NegotiateError> {
    let Agreed { codec, payload_type, accepts, keys, srtp } = agreed;
    let address = media.address.ok_or(NegotiateError::NoAddress)?;
    // An address to which nothing can be sent stands for hold.
    let held = address.is_unspecified();
    if !held && address.is_multicast() {
        return Err(NegotiateError::NoAddress);
    }
    // A mapped IPv4 address is neither: nothing of an IPv6 socket reaches it.
    if !held && (address.is_ipv4() != local.address.is_ipv4() || address.to_canonical() != address) {
        return Err(NegotiateError::Family);
    }
    let remote = (!held).then(|| SocketAddr::new(address, media.port));
    let rtcp_port = if media.rtcp_mux { Some(media.port) } else { media.rtcp_port.or(media.port.checked_add(1)) };
    let same_family = |own: &IpAddr| !own.is_unspecified() && own.is_ipv4() == address.is_ipv4();
    let rtcp_address = media.rtcp_address.filter(same_family).unwrap_or(address);
    let remote_rtcp = rtcp_port.filter(|_| !held).map(|port| SocketAddr::new(rtcp_address, port));
    Ok(MediaPlan {
        remote,
        remote_rtcp,
        rtcp_mux: media.rtcp_mux,
        codec,
        payload_type,
        accepts,
        keys,
        comfort_noise: (codec.clock() == ClockRate::HZ_8000).then_some(COMFORT_NOISE),
        ptime: ptime(media, local, codec),
        sends: local.direction.sends() && media.direction.receives() && !held,
        receives: local.direction.receives() && media.direction.sends(),
        srtp,
    })
}

/// What the peer likes to get, else what we like, in steps of 10 ms and never above its maximum. Opus leaves as it is
/// made, 20 ms a packet.
fn ptime(media: &Media, local: &LocalMedia, codec: Codec) -> Duration {
    if codec == Codec::Opus {
        return Duration::from_millis(20);
    }
    let most = media.maxptime_ms.unwrap_or(*PTIME_MS.end());
    let wanted = media.ptime_ms.unwrap_or(local.ptime_ms).min(most).clamp(*PTIME_MS.start(), *PTIME_MS.end());
    Duration::from_millis(u64::from(wanted / 10 * 10))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Audio(Codec),
    Keys(ClockRate),
}

/// The formats of a line that we know, in its order.
fn formats(media: &Media) -> Vec<(u8, Format)> {
    let known = |text: &String| {
        // `09` and `+9` parse as numbers, and are not what an answer would repeat.
        let payload_type = text.parse::<u8>().ok().filter(|number| *number < 128 && number.to_string() == *text)?;
        let Some(map) = media.rtpmaps.iter().find(|map| map.payload_type == payload_type) else {
            // RFC 3551 §6: these need no rtpmap.
            let codec = match payload_type {
                0 => Codec::Pcmu,
                8 => Codec::Pcma,
                9 => Codec::G722,
                _ => return None,
            };
            return Some((payload_type, Format::Audio(codec)));
        };
        let is = |name: &str, clock: u32, channels: u8| {
            map.encoding.eq_ignore_ascii_case(name) && map.clock == clock && map.channels == channels
        };
        let format = if is("PCMU", 8000, 1) {
            Format::Audio(Codec::Pcmu)
        } else if is("PCMA", 8000, 1) {
            Format::Audio(Codec::Pcma)
        } else if is("G722", 8000, 1) {
            Format::Audio(Codec::G722)
        } else if is("opus", 48000, 2) {
            // Always written with two channels (RFC 7587 §7); a decoder makes mono of both.
            Format::Audio(Codec::Opus)
        } else if map.encoding.eq_ignore_ascii_case("telephone-event") {
            Format::Keys(ClockRate::new(map.clock).filter(|clock| [8000, 48000].contains(&clock.hz()))?)
        } else {
            return None;
        };
        Some((payload_type, format))
    };
    media.formats.iter().filter_map(known).collect()
}

/// The telephone events that count as the codec does, else any: many peers offer 8 kHz only, also beside Opus.
fn choose_keys(formats: &[(u8, Format)], codec: Codec) -> Option<(u8, ClockRate)> {
    let keys = formats.iter().filter_map(|&(payload_type, format)| match format {
        Format::Keys(clock) => Some((payload_type, clock)),
        Format::Audio(_) => None,
    });
    keys.clone().find(|(_, clock)| *clock == codec.clock()).or_else(|| keys.clone().next())
}

/// `None`: a transport that is not ours, such as DTLS.
fn is_secure(protocol: &str) -> Option<bool> {
    match protocol.to_ascii_uppercase().as_str() {
        "RTP/AVP" | "RTP/AVPF" => Some(false),
        "RTP/SAVP" | "RTP/SAVPF" => Some(true),
        _ => None,
    }
}

/// A crypto line that we can serve: a known suite, one key without a key index, no session parameters.
fn read_crypto(crypto: &Crypto) -> Option<(SrtpSuite, SrtpKey)> {
    let suite = SrtpSuite::named(&crypto.suite)?;
    if crypto.session.as_ref().is_some_and(|session| !session.is_empty()) {
        return None;
    }
    let mut fields = crypto.key.strip_prefix("inline:")?.split('|');
    let text = fields.next()?.trim_end_matches('=');
    // A lifetime may follow; `index:length` would change every packet.
    if fields.any(|field| field.contains(':')) || crypto.key.contains(';') {
        return None;
    }
    let key = STANDARD_NO_PAD.decode(text).ok()?;
    Some((suite, SrtpKey::new(key.try_into().ok()?)))
}

/// The payload type under which we offer a codec.
const fn own_type(codec: Codec) -> u8 {
    match codec {
        Codec::Pcmu => 0,
        Codec::Pcma => 8,
        Codec::G722 => 9,
        Codec::Opus => OPUS,
    }
}

fn head(local: &LocalMedia) -> String {
    let family = if local.address.is_ipv4() { "IP4" } else { "IP6" };
    format!(
        "v=0\r\no=offhook {} {} IN {family} {address}\r\ns=-\r\nc=IN {family} {address}\r\nt=0 0\r\n",
        local.session,
        local.version,
        address = local.address,
    )
}

fn write_answer(sdp: &mut String, media: &Media, local: &LocalMedia, plan: &MediaPlan, crypto_tag: Option<u32>) {
    let _ = write!(sdp, "m={} {} {} {}", media.kind, local.port, media.protocol, plan.payload_type);
    if let Some(keys) = plan.keys {
        let _ = write!(sdp, " {}", keys.receive);
    }
    sdp.push_str("\r\n");
    write_codec(sdp, plan.payload_type, plan.codec);
    if let Some(keys) = plan.keys {
        write_keys(sdp, keys.receive, keys.clock);
    }
    let _ = write!(sdp, "a=ptime:{}\r\n", plan.ptime.as_millis());
    if let (Some(tag), Some(keys)) = (crypto_tag, &plan.srtp) {
        write_crypto(sdp, tag, keys.suite, &keys.local);
    }
    let _ = write!(sdp, "a={}\r\n", Direction::new(plan.sends, plan.receives).name());
    if media.rtcp_mux {
        sdp.push_str("a=rtcp-mux\r\n");
    } else {
        let _ = write!(sdp, "a=rtcp:{}\r\n", local.rtcp_port);
    }
}

fn write_codec(sdp: &mut String, payload_type: u8, codec: Codec) {
    let name = match codec {
        Codec::Pcmu => "PCMU/8000",
        Codec::Pcma => "PCMA/8000",
        Codec::G722 => "G722/8000",
        Codec::Opus => "opus/48000/2",
    };
    let _ = write!(sdp, "a=rtpmap:{payload_type} {name}\r\n");
    if codec == Codec::Opus {
        let _ = write!(sdp, "a=fmtp:{payload_type} {OPUS_FMTP}\r\n");
    }
}

fn write_keys(sdp: &mut String, payload_type: u8, clock: ClockRate) {
    let _ = write!(sdp, "a=rtpmap:{payload_type} telephone-event/{}\r\na=fmtp:{payload_type} 0-15\r\n", clock.hz());
}

fn write_crypto(sdp: &mut String, tag: u32, suite: SrtpSuite, key: &SrtpKey) {
    let _ = write!(sdp, "a=crypto:{tag} {} inline:{}\r\n", suite.name(), STANDARD.encode(key.bytes()));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn local() -> LocalMedia {
        LocalMedia {
            address: "203.0.113.5".parse().expect("an address"),
            port: 20_000,
            rtcp_port: 20_001,
            session: 7,
            version: 1,
            codecs: vec![Codec::G722, Codec::Pcma, Codec::Pcmu, Codec::Opus],
            ptime_ms: 20,
            direction: Direction::SendRecv,
            srtp: SrtpPolicy::Off,
            srtp_key: SrtpKey::new([7; 30]),
        }
    }

    fn parsed(text: &str) -> Description {
        Description::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// A description with one audio line and these lines behind it.
    fn remote(audio: &str, lines: &[&str]) -> Description {
        let head = "v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\n";
        parsed(&format!("{head}m=audio {audio}\r\n{}\r\n", lines.join("\r\n")))
    }

    fn agreed(audio: &str, lines: &[&str]) -> MediaPlan {
        answer(&remote(audio, lines), &local(), None).expect("agrees").plan
    }

    #[test]
    fn our_favourite_of_what_is_offered_is_taken() {
        let offered = "4000 RTP/AVP 0 8 9 96 101";
        let lines = ["a=rtpmap:96 opus/48000/2", "a=rtpmap:101 telephone-event/8000"];
        for codec in Codec::ALL {
            let local = LocalMedia { codecs: vec![codec], ..local() };
            let plan = answer(&remote(offered, &lines), &local, None).expect("agrees").plan;
            assert_eq!((plan.codec, plan.payload_type), (codec, own_type(codec)));
            assert_eq!(plan.keys.map(|keys| keys.receive), Some(101));
        }
        assert_eq!(agreed(offered, &lines).codec, Codec::G722);
        let running = answer(&remote(offered, &lines), &local(), Some(Codec::Pcmu)).expect("agrees").plan;
        assert_eq!(running.codec, Codec::Pcmu, "a running call keeps its codec");
        let none = answer(&remote("4000 RTP/AVP 18 3 09 +8 128", &[]), &local(), None);
        assert_eq!(none, Err(NegotiateError::NoCodec));
    }

    #[test]
    fn numbers_are_the_offers_and_static_ones_may_be_remapped() {
        let plan = agreed("4000 RTP/AVP 0 111", &["a=rtpmap:0 OPUS/48000/2", "a=rtpmap:111 pcmA/8000"]);
        assert_eq!((plan.codec, plan.payload_type), (Codec::Pcma, 111));
        let lines =
            ["a=rtpmap:107 opus/48000/2", "a=rtpmap:97 telephone-event/8000", "a=rtpmap:98 telephone-event/48000"];
        let plan = agreed("4000 RTP/AVP 107 97 98", &lines);
        assert_eq!((plan.codec, plan.keys.map(|keys| (keys.send, keys.clock.hz()))), (Codec::Opus, Some((98, 48_000))));
        assert_eq!(plan.comfort_noise, None);
    }

    #[test]
    fn the_answer_keeps_every_line_in_its_place() {
        let offer = parsed(
            "v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\nm=image 5 udptl t38\r\n\
             m=audio 0 RTP/AVP 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 0\r\nm=audio 4000 RTP/AVP 8\r\nm=video 6 RTP/AVP 31 32\r\n",
        );
        let Negotiated { sdp, plan } = answer(&offer, &local(), None).expect("agrees");
        let ours = parsed(&sdp);
        let lines: Vec<(&str, u16, &str)> =
            ours.media.iter().map(|media| (media.kind.as_str(), media.port, media.protocol.as_str())).collect();
        let expected = [
            ("image", 0, "udptl"),
            ("audio", 0, "RTP/AVP"),
            ("audio", 0, "UDP/TLS/RTP/SAVPF"),
            ("audio", 20_000, "RTP/AVP"),
            ("video", 0, "RTP/AVP"),
        ];
        assert_eq!(lines, expected);
        assert_eq!(plan.remote, "192.0.2.1:4000".parse().ok());
        assert_eq!(plan.remote_rtcp, "192.0.2.1:4001".parse().ok());
        assert!(sdp.contains("o=offhook 7 1 IN IP4 203.0.113.5\r\n"));
    }

    #[test]
    fn packets_are_as_long_as_the_peer_likes_within_10_to_60_ms() {
        let ms = |lines: &[&str]| agreed("4000 RTP/AVP 0", lines).ptime.as_millis();
        assert_eq!(ms(&[]), 20);
        assert_eq!(ms(&["a=ptime:30"]), 30);
        assert_eq!(ms(&["a=ptime:5"]), 10);
        assert_eq!(ms(&["a=ptime:200"]), 60);
        assert_eq!(ms(&["a=ptime:40", "a=maxptime:20"]), 20);
        assert_eq!(ms(&["a=ptime:25"]), 20);
        assert_eq!(ms(&["a=maxptime:0"]), 10);
    }

    #[test]
    fn hold_and_resume_are_read_from_direction_and_address() {
        let state = |lines: &[&str]| {
            let Negotiated { sdp, plan } = answer(&remote("4000 RTP/AVP 0", lines), &local(), None).expect("agrees");
            (plan.sends, plan.receives, plan.is_held(), parsed(&sdp).media[0].direction)
        };
        assert_eq!(state(&[]), (true, true, false, Direction::SendRecv));
        assert_eq!(state(&["a=sendonly"]), (false, true, true, Direction::RecvOnly));
        assert_eq!(state(&["a=recvonly"]), (true, false, true, Direction::SendOnly));
        assert_eq!(state(&["a=inactive"]), (false, false, true, Direction::Inactive));
        assert_eq!(state(&["c=IN IP4 0.0.0.0"]), (false, true, true, Direction::RecvOnly));
        let holding = LocalMedia { direction: Direction::SendOnly, ..local() };
        let plan = answer(&remote("4000 RTP/AVP 0", &[]), &holding, None).expect("agrees").plan;
        assert_eq!((plan.sends, plan.receives), (true, false));
        assert_eq!(agreed("4000 RTP/AVP 0", &["c=IN IP4 0.0.0.0"]).remote, None);
    }

    #[test]
    fn where_rtcp_goes_is_told_in_three_ways() {
        let rtcp = |lines: &[&str]| {
            let plan = agreed("4000 RTP/AVP 0", lines);
            (plan.rtcp_mux, plan.remote_rtcp.expect("not held").to_string())
        };
        assert_eq!(rtcp(&[]), (false, "192.0.2.1:4001".into()));
        assert_eq!(rtcp(&["a=rtcp:5555 IN IP4 192.0.2.9"]), (false, "192.0.2.9:5555".into()));
        assert_eq!(rtcp(&["a=rtcp-mux"]), (true, "192.0.2.1:4000".into()));
        let last = agreed("65535 RTP/AVP 0", &[]);
        assert_eq!(last.remote_rtcp, None, "there is no port above the last");
    }

    #[test]
    fn an_address_we_cannot_send_to_is_refused() {
        let check = |lines: &[&str], error| {
            assert_eq!(answer(&remote("4000 RTP/AVP 0", lines), &local(), None), Err(error), "{lines:?}");
        };
        check(&["c=IN IP4 pbx.example.org"], NegotiateError::NoAddress);
        check(&["c=IN IP6 2001:db8::1"], NegotiateError::Family);
        check(&["c=IN IP6 ff15::1"], NegotiateError::NoAddress);
        check(&["c=IN IP4 224.2.1.1/127"], NegotiateError::NoAddress);
        assert_eq!(answer(&remote("0 RTP/AVP 0", &[]), &local(), None), Err(NegotiateError::NoAudio));
    }

    /// Our side over IPv6.
    fn local_v6() -> LocalMedia {
        LocalMedia { address: "2001:db8::5".parse().expect("an address"), ..local() }
    }

    #[test]
    fn media_over_ipv6_is_answered_offered_held_and_its_rtcp_told() {
        let agreed = |lines: &[&str]| answer(&remote("4000 RTP/AVP 0", lines), &local_v6(), None);
        let Negotiated { sdp, plan } = agreed(&["c=IN IP6 2001:db8::1", "a=rtcp:4009"]).expect("agrees");
        assert_eq!(plan.remote, "[2001:db8::1]:4000".parse().ok());
        assert_eq!(plan.remote_rtcp, "[2001:db8::1]:4009".parse().ok());
        assert!(sdp.contains("o=offhook 7 1 IN IP6 2001:db8::5\r\n") && sdp.contains("c=IN IP6 2001:db8::5\r\n"));
        let rtcp = |line: &str| agreed(&["c=IN IP6 2001:db8::1", line]).expect("agrees").plan.remote_rtcp;
        assert_eq!(rtcp("a=rtcp:4009 IN IP6 2001:db8::9"), "[2001:db8::9]:4009".parse().ok());
        assert_eq!(rtcp("a=rtcp:4009 IN IP4 192.0.2.1"), "[2001:db8::1]:4009".parse().ok(), "of another family");
        for held in ["c=IN IP6 ::", "c=IN IP4 0.0.0.0", "c=IN IP6 nobody.invalid"] {
            let Negotiated { sdp, plan } = agreed(&[held]).expect("agrees");
            assert!(plan.is_held() && plan.remote.is_none() && plan.remote_rtcp.is_none(), "{held}");
            assert!(sdp.contains("c=IN IP6 2001:db8::5\r\n") && sdp.contains("a=recvonly\r\n"), "{sdp}");
        }
        for foreign in ["c=IN IP4 192.0.2.1", "c=IN IP6 ::ffff:192.0.2.1"] {
            assert_eq!(agreed(&[foreign]), Err(NegotiateError::Family), "{foreign}");
        }
        assert_eq!(NegotiateError::Family.warning().map(|(code, _)| code), Some(301));
        let theirs = LocalMedia { address: "2001:db8::77".parse().expect("an address"), port: 30_000, ..local_v6() };
        let answered = answer(&parsed(&offer(&local_v6())), &theirs, None).expect("agrees");
        let plan = accept(&local_v6(), &parsed(&answered.sdp)).expect("fits");
        assert_eq!(plan.remote, "[2001:db8::77]:30000".parse().ok());
    }

    #[test]
    fn of_the_same_media_in_both_families_the_first_of_ours_is_taken() {
        let both = parsed(
            "v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nt=0 0\r\na=group:ANAT 1 2\r\nm=audio 4000 RTP/AVP 0\r\n\
             c=IN IP6 2001:db8::1\r\na=mid:1\r\nm=audio 4002 RTP/AVP 0\r\nc=IN IP4 192.0.2.1\r\na=mid:2\r\n",
        );
        let targets: Vec<String> = audio_targets(&both).map(|at| at.to_string()).collect();
        assert_eq!(targets, ["[2001:db8::1]:4000", "192.0.2.1:4002"]);
        let taken = |local: &LocalMedia| {
            let Negotiated { sdp, plan } = answer(&both, local, None).expect("agrees");
            let ports: Vec<u16> = parsed(&sdp).media.iter().map(|media| media.port).collect();
            (plan.remote.map(|remote| remote.to_string()), ports)
        };
        assert_eq!(taken(&local_v6()), (Some("[2001:db8::1]:4000".into()), vec![20_000, 0]));
        assert_eq!(taken(&local()), (Some("192.0.2.1:4002".into()), vec![0, 20_000]));
        assert_eq!(audio_targets(&remote("4000 RTP/AVP 0", &["c=IN IP6 ::"])).count(), 0, "held");
        assert_eq!(audio_targets(&remote("0 RTP/AVP 0", &[])).count(), 0, "switched off");
    }

    const CRYPTO: &str = "a=crypto:3 AES_CM_128_HMAC_SHA1_32 inline:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB|2^20";

    #[test]
    fn encryption_is_agreed_on_where_it_may_be() {
        let secure = LocalMedia { srtp: SrtpPolicy::Optional, ..local() };
        let offered = remote("4000 RTP/SAVP 0", &["a=crypto:1 AEAD_AES_256_GCM inline:xyz", CRYPTO]);
        let Negotiated { sdp, plan } = answer(&offered, &secure, None).expect("agrees");
        let keys = plan.srtp.expect("encrypted");
        assert_eq!((keys.suite, keys.remote.bytes()), (SrtpSuite::HmacSha1_32, &[1; 30]));
        assert!(sdp.contains("RTP/SAVP 0\r\n") && sdp.contains("a=crypto:3 AES_CM_128_HMAC_SHA1_32 inline:BwcH"));
        let refused = |audio: &str, lines: &[&str], policy| {
            let local = LocalMedia { srtp: policy, ..local() };
            assert_eq!(answer(&remote(audio, lines), &local, None), Err(NegotiateError::Transport), "{lines:?}");
        };
        refused("4000 RTP/SAVP 0", &[CRYPTO], SrtpPolicy::Off);
        refused("4000 RTP/AVP 0", &[CRYPTO], SrtpPolicy::Required);
        refused("4000 RTP/SAVP 0", &[], SrtpPolicy::Optional);
        refused("4000 RTP/SAVP 0", &[&format!("{CRYPTO}|1:4")], SrtpPolicy::Optional);
        refused("4000 RTP/SAVP 0", &[&format!("{CRYPTO} UNENCRYPTED_SRTP")], SrtpPolicy::Optional);
        refused("4000 RTP/SAVP 0", &["a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:AQEB"], SrtpPolicy::Optional);
    }

    #[test]
    fn our_offer_is_one_that_we_would_answer_and_accept() {
        for srtp in [SrtpPolicy::Off, SrtpPolicy::Optional, SrtpPolicy::Required] {
            let ours = LocalMedia { srtp, ..local() };
            let theirs = LocalMedia {
                address: "192.0.2.77".parse().expect("an address"),
                port: 30_000,
                rtcp_port: 30_001,
                codecs: vec![Codec::Opus],
                srtp_key: SrtpKey::new([9; 30]),
                ..ours.clone()
            };
            let answered = answer(&parsed(&offer(&ours)), &theirs, None).expect("agrees");
            let plan = accept(&ours, &parsed(&answered.sdp)).expect("fits");
            assert_eq!((plan.codec, plan.payload_type), (Codec::Opus, OPUS));
            assert_eq!(plan.keys.map(|keys| (keys.send, keys.receive)), Some((KEYS_48000, KEYS_48000)));
            assert_eq!(plan.remote, "192.0.2.77:30000".parse().ok());
            assert!(plan.rtcp_mux && plan.remote_rtcp == plan.remote);
            let (mine, yours) = (plan.srtp, answered.plan.srtp);
            assert_eq!(mine.as_ref().map(|keys| keys.remote.bytes()), yours.as_ref().map(|keys| keys.local.bytes()));
            assert_eq!(mine.is_some(), srtp != SrtpPolicy::Off);
        }
    }

    #[test]
    fn an_answer_with_other_numbers_or_other_codecs() {
        let plan = accept(&local(), &remote("4000 RTP/AVP 120 8", &["a=rtpmap:120 opus/48000/2"])).expect("fits");
        assert_eq!((plan.codec, plan.payload_type), (Codec::Opus, 120));
        assert_eq!(plan.accepts, [(8, Codec::Pcma), (OPUS, Codec::Opus), (120, Codec::Opus)]);
        assert_eq!(accept(&local(), &remote("0 RTP/AVP 0", &[])), Err(NegotiateError::NoAudio));
        assert_eq!(accept(&local(), &remote("4000 RTP/AVP 18", &[])), Err(NegotiateError::NoCodec));
        assert_eq!(accept(&local(), &remote("4000 RTP/SAVP 0", &[CRYPTO])), Err(NegotiateError::Mismatch));
        assert_eq!(accept(&local(), &parsed("v=0\r\n")), Err(NegotiateError::Mismatch));
    }

    proptest! {
        #[test]
        fn nothing_is_answered_that_was_not_offered(
            types in prop::collection::vec(0_u8..128, 0..12),
            maps in prop::collection::vec((0_u8..128, 0_usize..7), 0..12),
            kinds in prop::collection::vec((0_usize..3, any::<bool>()), 0..5),
            ptime in prop::option::of(0_u32..300),
            codecs in Just(Codec::ALL.to_vec()).prop_shuffle(),
        ) {
            let names = ["PCMU/8000", "PCMA/8000", "G722/8000", "opus/48000/2", "telephone-event/8000",
                "telephone-event/48000", "G729/8000"];
            let mut text = String::from("v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\n");
            for (kind, open) in &kinds {
                let formats: Vec<String> = types.iter().map(u8::to_string).collect();
                let port = if *open { 4000 } else { 0 };
                text += &format!("m={} {port} RTP/AVP {}\r\n", ["audio", "video", "image"][*kind], formats.join(" "));
                for (number, name) in &maps {
                    text += &format!("a=rtpmap:{number} {}\r\n", names[*name]);
                }
                if let Some(ptime) = ptime {
                    text += &format!("a=ptime:{ptime}\r\n");
                }
            }
            let offer = parsed(&text);
            if let Ok(Negotiated { sdp, plan }) = answer(&offer, &LocalMedia { codecs, ..local() }, None) {
                let ours = parsed(&sdp);
                prop_assert_eq!(ours.media.len(), offer.media.len());
                let mut open = 0;
                for (mine, theirs) in ours.media.iter().zip(&offer.media) {
                    prop_assert_eq!((&mine.kind, &mine.protocol), (&theirs.kind, &theirs.protocol));
                    if mine.port != 0 {
                        open += 1;
                        prop_assert!(theirs.port != 0 && theirs.kind == "audio");
                        prop_assert!(mine.formats.iter().all(|format| theirs.formats.contains(format)), "{sdp}");
                        for (number, format) in formats(mine) {
                            prop_assert!(formats(theirs).contains(&(number, format)), "{number} in {sdp} for {text}");
                        }
                    }
                }
                prop_assert_eq!(open, 1);
                prop_assert!((10..=60).contains(&plan.ptime.as_millis()));
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400), text in "(v=0\n)?([a-z]=[ -~]{0,40}\n){0,20}") {
            for input in [bytes.as_slice(), text.as_bytes()] {
                if let Ok(description) = Description::parse(input) {
                    let _ = answer(&description, &local(), None);
                    let _ = accept(&local(), &description);
                }
            }
        }
    }
}
