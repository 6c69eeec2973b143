//! The messages of one call as they were on the wire, without secrets: what an operator draws as a ladder.

use std::collections::VecDeque;
use std::time::Instant;

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
