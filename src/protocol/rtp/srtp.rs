//! SRTP and SRTCP (RFC 3711) with keys from SDES, on `rtc-srtp`. Three things are added to it: a stranger's SSRC costs
//! no memory (there, state is kept for each SSRC before its tag is checked), an SRTCP packet that claims to be
//! unencrypted is refused (there, it is let through unchecked), and both directions are one value.
//!
//! One allocation a packet is `rtc-srtp`'s price; it is paid in the transport's task, not in the call's tick.

use std::fmt;

use rtc_srtp::context::Context;
use rtc_srtp::option::{srtcp_replay_protection, srtp_replay_protection};
use rtc_srtp::protection_profile::ProtectionProfile;

use crate::protocol::rtp::packet::RtpPacket;
use crate::protocol::rtp::plan::{SrtpKey, SrtpKeys, SrtpSuite};

/// Packets that may overtake each other and still be told from a replay: 1.3 s of 20 ms.
const REPLAY_WINDOW: usize = 64;
/// Senders of one stream that are known at a time: a peer that changes its SSRC, and RTCP's own.
const MAX_SENDERS: usize = 4;
const SRTCP_INDEX: usize = 4;

/// The library refused the keys; their sizes are fixed, so that this is a fault of the build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("srtp cannot be set up")]
pub struct SrtpError;

/// Both directions of one stream.
pub struct Srtp {
    keys: SrtpKeys,
    seal: Context,
    /// A context for each sender whose tag was right.
    open: Vec<(u32, Context)>,
}

impl Srtp {
    pub fn new(keys: SrtpKeys) -> Result<Self, SrtpError> {
        let seal = context(&keys.local, keys.suite, false)?;
        // Opening is tried here, so that it cannot fail later.
        context(&keys.remote, keys.suite, true)?;
        Ok(Self { keys, seal, open: Vec::with_capacity(MAX_SENDERS) })
    }

    pub fn keys(&self) -> &SrtpKeys {
        &self.keys
    }

    /// Encrypts an RTP packet in place.
    pub fn seal_rtp(&mut self, packet: &mut Vec<u8>) -> bool {
        replace(packet, self.seal.encrypt_rtp(packet))
    }

    /// Encrypts an RTCP compound in place.
    pub fn seal_rtcp(&mut self, packet: &mut Vec<u8>) -> bool {
        replace(packet, self.seal.encrypt_rtcp(packet))
    }

    /// Decrypts into `out`; false for what is not the peer's, or came before.
    pub fn open_rtp(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(packet) = RtpPacket::parse(bytes) else { return false };
        self.open(packet.ssrc, |context| replace(out, context.decrypt_rtp(bytes)))
    }

    /// Decrypts into `out`; false for what is not the peer's, or came before.
    pub fn open_rtcp(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> bool {
        // RFC 4568 §6.3.4: without UNENCRYPTED_SRTCP in the description every packet has the E bit.
        let tail = SRTCP_INDEX + 10;
        let Some(flags) = bytes.len().checked_sub(tail).and_then(|at| bytes.get(at)) else { return false };
        let Some(&[a, b, c, d]) = bytes.get(4..8).and_then(|ssrc| ssrc.first_chunk::<4>()) else { return false };
        if flags & 0x80 == 0 {
            return false;
        }
        self.open(u32::from_be_bytes([a, b, c, d]), |context| replace(out, context.decrypt_rtcp(bytes)))
    }

    fn open(&mut self, ssrc: u32, decrypt: impl FnOnce(&mut Context) -> bool) -> bool {
        if let Some((_, context)) = self.open.iter_mut().find(|(known, _)| *known == ssrc) {
            return decrypt(context);
        }
        let Ok(mut context) = context(&self.keys.remote, self.keys.suite, true) else { return false };
        let opened = decrypt(&mut context);
        if opened {
            if self.open.len() == MAX_SENDERS {
                self.open.remove(0);
            }
            self.open.push((ssrc, context));
        }
        opened
    }
}

impl fmt::Debug for Srtp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Srtp").field("suite", &self.keys.suite).finish_non_exhaustive()
    }
}

fn context(key: &SrtpKey, suite: SrtpSuite, replay: bool) -> Result<Context, SrtpError> {
    let profile = match suite {
        SrtpSuite::HmacSha1_80 => ProtectionProfile::Aes128CmHmacSha1_80,
        SrtpSuite::HmacSha1_32 => ProtectionProfile::Aes128CmHmacSha1_32,
    };
    let provider = rtc_crypto::default_provider().map_err(|_| SrtpError)?;
    let (rtp, rtcp) = if replay {
        (Some(srtp_replay_protection(REPLAY_WINDOW)), Some(srtcp_replay_protection(REPLAY_WINDOW)))
    } else {
        (None, None)
    };
    Context::new(key.key(), key.salt(), profile, rtp, rtcp, provider.crypto()).map_err(|_| SrtpError)
}

fn replace<E>(out: &mut Vec<u8>, made: Result<bytes::BytesMut, E>) -> bool {
    let Ok(made) = made else { return false };
    out.clear();
    out.extend_from_slice(&made);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::rtp::rtcp;

    fn pair(suite: SrtpSuite) -> (Srtp, Srtp) {
        let (ours, theirs) = (SrtpKey::new([1; 30]), SrtpKey::new([2; 30]));
        let new = |local: &SrtpKey, remote: &SrtpKey| {
            Srtp::new(SrtpKeys { suite, local: local.clone(), remote: remote.clone() }).expect("sizes are right")
        };
        (new(&ours, &theirs), new(&theirs, &ours))
    }

    fn packet(ssrc: u32, sequence: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        RtpPacket { marker: false, payload_type: 8, sequence, timestamp: 1, ssrc, payload: &[0x55; 160] }
            .write(&mut bytes);
        bytes
    }

    #[test]
    fn what_one_side_seals_the_other_opens_once() {
        for suite in [SrtpSuite::HmacSha1_80, SrtpSuite::HmacSha1_32] {
            let (mut ours, mut theirs) = pair(suite);
            let mut out = Vec::new();
            // Through a wrap of the sequence number.
            for n in 65_500_u32..65_600 {
                let mut sealed = packet(9, n as u16);
                assert!(ours.seal_rtp(&mut sealed));
                assert_ne!(sealed[12..172], [0x55; 160]);
                assert!(theirs.open_rtp(&sealed, &mut out), "packet {n}");
                assert_eq!(out, packet(9, n as u16));
                assert!(!theirs.open_rtp(&sealed, &mut out), "a replay");
            }
            let mut report = Vec::new();
            rtcp::Compound { ssrc: 9, sender: None, about: None, cname: "x", bye: true }.write(&mut report);
            let mut sealed = report.clone();
            assert!(ours.seal_rtcp(&mut sealed) && theirs.open_rtcp(&sealed, &mut out));
            assert_eq!(out, report);
            assert!(!ours.open_rtcp(&sealed, &mut out), "of the wrong direction");
        }
    }

    #[test]
    fn what_was_changed_or_is_not_encrypted_is_refused() {
        let (mut ours, mut theirs) = pair(SrtpSuite::HmacSha1_80);
        let (mut sealed, mut out) = (packet(9, 1), Vec::new());
        assert!(!theirs.open_rtp(&sealed, &mut out), "plain");
        ours.seal_rtp(&mut sealed);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(!theirs.open_rtp(&changed, &mut out), "byte {at}");
        }
        assert!(theirs.open_rtp(&sealed, &mut out));
        let mut report = Vec::new();
        rtcp::Compound { ssrc: 9, sender: None, about: None, cname: "x", bye: true }.write(&mut report);
        ours.seal_rtcp(&mut report);
        let flag = report.len() - 14;
        report[flag] &= 0x7F;
        assert!(!theirs.open_rtcp(&report, &mut out), "claims to be unencrypted");
        for end in 0..report.len() {
            assert!(!theirs.open_rtcp(&report[..end], &mut out) && !theirs.open_rtp(&report[..end], &mut out));
        }
    }

    #[test]
    fn strangers_leave_nothing_behind() {
        let (mut ours, mut theirs) = pair(SrtpSuite::HmacSha1_80);
        let mut out = Vec::new();
        for ssrc in 0..1000 {
            assert!(!theirs.open_rtp(&packet(ssrc, 1), &mut out));
        }
        assert!(theirs.open.is_empty());
        for ssrc in 0..10 {
            let mut sealed = packet(ssrc, 1);
            ours.seal_rtp(&mut sealed);
            assert!(theirs.open_rtp(&sealed, &mut out));
        }
        assert_eq!(theirs.open.len(), MAX_SENDERS);
    }
}
