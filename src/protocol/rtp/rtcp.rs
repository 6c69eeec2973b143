//! RTCP (RFC 3550 §6): compound packets of one sender or receiver report, the CNAME and, at the end, BYE. Reports of
//! other kinds are stepped over. Written by hand: `rtc-rtcp` builds boxed objects for each of a dozen feedback formats
//! that telephony does not use, from bytes that anybody may send; the tests hold this against it.

/// A sender's facts (§6.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderInfo {
    /// NTP time, 32 bits of seconds and 32 of fraction.
    pub ntp: u64,
    pub rtp_timestamp: u32,
    pub packets: u32,
    pub bytes: u32,
}

/// How a receiver fares with one sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceptionReport {
    pub ssrc: u32,
    /// Share lost since the last report, in 256ths.
    pub fraction_lost: u8,
    /// Since the start; 24 bits with a sign: duplicates can make it negative.
    pub lost: i32,
    pub highest_sequence: u32,
    /// In ticks of the media clock.
    pub jitter: u32,
    /// The middle 32 bits of the NTP time of the last sender report; 0: none came.
    pub last_report: u32,
    /// Since then, in 65,536ths of a second.
    pub delay: u32,
}

/// One packet of a compound that we have a use for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// From this sender; `about`: those blocks that it holds, at most 31.
    Sender {
        ssrc: u32,
        info: SenderInfo,
        about: Vec<ReceptionReport>,
    },
    Receiver {
        ssrc: u32,
        about: Vec<ReceptionReport>,
    },
    Bye {
        ssrc: u32,
    },
}

const SR: u8 = 200;
const RR: u8 = 201;
const SDES: u8 = 202;
const BYE: u8 = 203;
const BLOCK: usize = 24;
/// Packets of one compound that are looked at; a datagram could hold hundreds of empty ones.
const MAX_PACKETS: usize = 16;

/// The reports in a datagram. `None` when it is no RTCP; what is broken behind a good beginning is left out.
pub fn parse(bytes: &[u8]) -> Option<Vec<Report>> {
    let mut reports = Vec::new();
    let mut rest = bytes;
    for place in 0..MAX_PACKETS {
        if rest.is_empty() {
            break;
        }
        let Some((packet, behind)) = split(rest) else {
            if place == 0 {
                return None;
            }
            break;
        };
        reports.extend(read(packet));
        rest = behind;
    }
    (!bytes.is_empty()).then_some(reports)
}

/// The first packet by its own length, without its padding, and what follows.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let head = bytes.get(..4)?;
    if head[0] >> 6 != 2 || !(192..=223).contains(&head[1]) {
        return None;
    }
    let length = 4 * (usize::from(u16::from_be_bytes([head[2], head[3]])) + 1);
    let (packet, rest) = bytes.split_at_checked(length)?;
    let padding = if head[0] & 0x20 != 0 { usize::from(*packet.last()?) } else { 0 };
    Some((packet.get(..length.checked_sub(padding)?)?, rest))
}

fn read(packet: &[u8]) -> Option<Report> {
    let count = usize::from(packet.first()? & 0x1F);
    let ssrc = word(packet, 4)?;
    match *packet.get(1)? {
        SR => {
            let info = SenderInfo {
                ntp: u64::from(word(packet, 8)?) << 32 | u64::from(word(packet, 12)?),
                rtp_timestamp: word(packet, 16)?,
                packets: word(packet, 20)?,
                bytes: word(packet, 24)?,
            };
            Some(Report::Sender { ssrc, info, about: blocks(packet.get(28..)?, count) })
        }
        RR => Some(Report::Receiver { ssrc, about: blocks(packet.get(8..)?, count) }),
        BYE if count > 0 => Some(Report::Bye { ssrc }),
        _ => None,
    }
}

fn blocks(bytes: &[u8], count: usize) -> Vec<ReceptionReport> {
    let read = |block: &[u8]| {
        let losses = word(block, 4)?;
        Some(ReceptionReport {
            ssrc: word(block, 0)?,
            fraction_lost: (losses >> 24) as u8,
            // 24 bits with a sign.
            lost: (losses << 8) as i32 >> 8,
            highest_sequence: word(block, 8)?,
            jitter: word(block, 12)?,
            last_report: word(block, 16)?,
            delay: word(block, 20)?,
        })
    };
    bytes.chunks_exact(BLOCK).take(count).filter_map(read).collect()
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// What one of our compounds says.
pub struct Compound<'a> {
    pub ssrc: u32,
    /// Present when we have sent anything since the last report.
    pub sender: Option<SenderInfo>,
    pub about: Option<ReceptionReport>,
    /// Our CNAME: names no user and no machine (RFC 7022). At most 255 bytes are written.
    pub cname: &'a str,
    /// The stream is over.
    pub bye: bool,
}

impl Compound<'_> {
    /// Replaces what is in `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.clear();
        let blocks = usize::from(self.about.is_some());
        let (kind, length) = if self.sender.is_some() { (SR, 28) } else { (RR, 8) };
        head(out, blocks, kind, length + BLOCK * blocks);
        put(out, self.ssrc);
        if let Some(info) = self.sender {
            put(out, (info.ntp >> 32) as u32);
            put(out, info.ntp as u32);
            put(out, info.rtp_timestamp);
            put(out, info.packets);
            put(out, info.bytes);
        }
        if let Some(block) = self.about {
            put(out, block.ssrc);
            let lost = block.lost.clamp(-0x80_0000, 0x7F_FFFF) as u32 & 0xFF_FFFF;
            put(out, u32::from(block.fraction_lost) << 24 | lost);
            put(out, block.highest_sequence);
            put(out, block.jitter);
            put(out, block.last_report);
            put(out, block.delay);
        }
        let name = &self.cname.as_bytes()[..self.cname.len().min(255)];
        // The chunk: SSRC, item type and length, the name, and one to four zeros up to a whole word.
        let chunk = (4 + 2 + name.len()) / 4 * 4 + 4;
        head(out, 1, SDES, 4 + chunk);
        put(out, self.ssrc);
        out.extend([1, name.len() as u8]);
        out.extend_from_slice(name);
        out.resize(out.len() + chunk - 6 - name.len(), 0);
        if self.bye {
            head(out, 1, BYE, 8);
            put(out, self.ssrc);
        }
    }
}

fn head(out: &mut Vec<u8>, count: usize, kind: u8, bytes: usize) {
    out.extend([0x80 | count as u8, kind]);
    out.extend(((bytes / 4 - 1) as u16).to_be_bytes());
}

fn put(out: &mut Vec<u8>, word: u32) {
    out.extend(word.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(sender: Option<SenderInfo>, about: Option<ReceptionReport>, cname: &str, bye: bool) -> Vec<u8> {
        let mut out = vec![1, 2, 3];
        Compound { ssrc: 7, sender, about, cname, bye }.write(&mut out);
        out
    }

    #[test]
    fn other_kinds_and_broken_tails_are_stepped_over() {
        let mut bytes = written(None, None, "x", false);
        let good = parse(&bytes).expect("rtcp");
        assert_eq!(good, [Report::Receiver { ssrc: 7, about: vec![] }]);
        // An extended report (207), then a length beyond the end.
        bytes.extend([0x80, 207, 0, 1, 0, 0, 0, 9, 0x81, 203, 0, 1, 0, 0, 0, 7, 0x80, 200, 0, 200]);
        assert_eq!(parse(&bytes).expect("rtcp"), [good[0].clone(), Report::Bye { ssrc: 7 }]);
        for not_rtcp in [&[][..], &[0x80], &[0x80, 8, 0, 0], &[0x80, 200, 0, 6, 0, 0], &[0x41, 200, 0, 0]] {
            assert_eq!(parse(not_rtcp), None, "{not_rtcp:?}");
        }
    }

    #[test]
    fn a_report_that_claims_more_blocks_than_it_has_gives_those_it_has() {
        let mut bytes = written(None, Some(ReceptionReport { lost: -3, ..Default::default() }), "x", false);
        bytes[0] |= 31;
        let reports = parse(&bytes).expect("rtcp");
        let Some(Report::Receiver { about, .. }) = reports.first() else { panic!("a receiver report") };
        assert_eq!(about.len(), 1);
        assert_eq!(about[0].lost, -3);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same_here_and_in_rtc_rtcp(
            sender: bool, about: bool, bye: bool, numbers in prop::array::uniform8(any::<u32>()), cname in "[a-z0-9]{0,40}",
            lost in -0x80_0000_i32..0x80_0000,
        ) {
            let info = SenderInfo {
                ntp: u64::from(numbers[0]) << 32 | u64::from(numbers[1]),
                rtp_timestamp: numbers[2],
                packets: numbers[3],
                bytes: numbers[4],
            };
            let block = ReceptionReport {
                ssrc: numbers[5],
                fraction_lost: numbers[6] as u8,
                lost,
                highest_sequence: numbers[7],
                jitter: numbers[0],
                last_report: numbers[1],
                delay: numbers[2],
            };
            let bytes = written(sender.then_some(info), about.then_some(block), &cname, bye);
            let blocks: Vec<ReceptionReport> = about.then_some(block).into_iter().collect();
            let mut expected = vec![if sender {
                Report::Sender { ssrc: 7, info, about: blocks }
            } else {
                Report::Receiver { ssrc: 7, about: blocks }
            }];
            if bye {
                expected.push(Report::Bye { ssrc: 7 });
            }
            prop_assert_eq!(parse(&bytes), Some(expected));
            let theirs = rtc_rtcp::packet::unmarshal(&mut &bytes[..]).expect("a good compound");
            prop_assert_eq!(theirs.len(), 2 + usize::from(bye));
            if sender {
                let theirs = theirs[0].as_any().downcast_ref::<rtc_rtcp::sender_report::SenderReport>().expect("a report");
                prop_assert_eq!((theirs.ntp_time, theirs.packet_count), (info.ntp, info.packets));
                prop_assert_eq!(theirs.reports.len(), usize::from(about));
            }
            let names = theirs[1].as_any().downcast_ref::<rtc_rtcp::source_description::SourceDescription>();
            prop_assert_eq!(&names.expect("a name").chunks[0].items[0].text[..], cname.as_bytes());
        }

        #[test]
        fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 199_u8..210) {
            let _ = parse(&bytes);
            if bytes.len() > 4 {
                bytes[0] = 0x80 | bytes[0] & 0x3F;
                bytes[1] = kind;
                bytes[2] = 0;
                bytes[3] %= 60;
                let _ = parse(&bytes);
            }
        }
    }
}
