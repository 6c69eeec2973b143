//! A copy of one call's datagrams, asked for while it runs. Bounded: when nobody takes them, copies are dropped and
//! counted, and the call does not notice. Writing them to a file is the receiver's work.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::clock;

/// Datagrams under way to whoever writes them: five seconds of both directions.
const QUEUE: usize = 500;

/// A datagram as it was on the wire; sealed if the stream is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tapped {
    pub at: Timestamp,
    pub incoming: bool,
    /// Our port, and the peer.
    pub port: u16,
    pub peer: SocketAddr,
    pub bytes: Bytes,
}

/// The stream's end. The capture ends when the receiver is dropped.
#[derive(Clone, Debug)]
pub struct Tap {
    copies: mpsc::Sender<Tapped>,
    dropped: Arc<AtomicU64>,
}

impl Tap {
    pub fn new() -> (Self, mpsc::Receiver<Tapped>) {
        let (copies, receiver) = mpsc::channel(QUEUE);
        (Self { copies, dropped: Arc::default() }, receiver)
    }

    /// Copies that nobody took in time.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn copy(&self, incoming: bool, port: u16, peer: SocketAddr, bytes: &[u8]) {
        let Ok(place) = self.copies.try_reserve() else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        place.send(Tapped { at: clock::now(), incoming, port, peer, bytes: Bytes::copy_from_slice(bytes) });
    }
}
