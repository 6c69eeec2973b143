//! What a stream was like: counted facts, and an estimate of how it sounded to a listener.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::media::packet::Codec;

/// Facts about one RTP session, for the call's record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RtpStats {
    /// From the peer: packets that were new, and their bytes of payload.
    pub received: u64,
    pub received_bytes: u64,
    /// Sequence numbers that never came.
    pub lost: u64,
    pub duplicate: u64,
    /// Came behind one with a higher number.
    pub reordered: u64,
    /// Not RTP, not decryptable, or not in sequence with anything.
    pub malformed: u64,
    /// Of a payload type that was not agreed on.
    pub unknown_payload: u64,
    /// Opus packets above [`crate::media::packet::Packet::MAX`].
    pub oversize: u64,
    pub comfort_noise: u64,
    /// Packets of telephone events.
    pub key_packets: u64,
    /// Of another sender while the one we hear was still there.
    pub foreign: u64,
    /// Times another sender took over.
    pub ssrc_changes: u64,
    /// Interarrival jitter (RFC 3550 §6.4.1), ms: as it is, and its highest.
    pub jitter_ms: f64,
    pub highest_jitter_ms: f64,
    /// To the peer.
    pub sent: u64,
    pub sent_bytes: u64,
    /// As the peer reports it: share of our packets lost since its last report, 0 to 1, and its jitter, ms.
    pub peer_loss: Option<f64>,
    pub peer_jitter_ms: Option<f64>,
    /// Over RTCP, ms.
    pub round_trip_ms: Option<f64>,
    /// Mean opinion score that the caller's sound would get here, 1 to 4.5; `None` before the first packet.
    pub mos: Option<f64>,
}

/// Mean opinion score by the E-model (ITU-T G.107), with all that is not the network's at its default:
/// R = 93.2 - Id - Ie,eff. Id is the approximation of Cole and Rosenbluth (2001) for the delay from mouth to ear; Ie,eff
/// the loss of `loss` (0 to 1, at random) against the robustness that ITU-T G.113 gives the codec with concealment.
/// Wideband codecs are judged on the same narrow scale.
pub fn mos(codec: Codec, loss: f64, one_way: Duration) -> f64 {
    let ms = one_way.as_secs_f64() * 1000.0;
    let delay = 0.024 * ms + if ms > 177.3 { 0.11 * (ms - 177.3) } else { 0.0 };
    // Bpl of G.711 with concealment is 25.1 (G.113 Appendix I); Opus repairs about as well, G.722 a little worse.
    let robustness = match codec {
        Codec::Pcmu | Codec::Pcma | Codec::Opus => 25.1,
        Codec::G722 => 20.0,
    };
    let percent = loss.clamp(0.0, 1.0) * 100.0;
    let equipment = 95.0 * percent / (percent + robustness);
    let r = (93.2 - delay - equipment).clamp(0.0, 100.0);
    (1.0 + 0.035 * r + r * (r - 60.0) * (100.0 - r) * 7e-6).clamp(1.0, 4.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_line_scores_4_4_and_loss_or_delay_lower_it() {
        let score = |loss: f64, ms: u64| mos(Codec::Pcmu, loss, Duration::from_millis(ms));
        assert!((score(0.0, 0) - 4.41).abs() < 0.01, "R of 93.2 is 4.41 (G.107 Annex B): {}", score(0.0, 0));
        assert!((4.2..4.4).contains(&score(0.0, 150)), "{}", score(0.0, 150));
        assert!((3.2..3.9).contains(&score(0.05, 60)), "{}", score(0.05, 60));
        assert!(score(0.3, 60) < 2.5);
        assert!(score(0.0, 600) < 3.0);
        assert_eq!(score(7.0, 100_000), 1.0);
    }
}
