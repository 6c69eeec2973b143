//! A capture file of a call, made while it is talked on: its messages so far, then its media.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, Stream};
use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, timeout_at};

use super::media::own_address;
use super::{Live, SipLines};
use crate::clock;
use crate::protocol::capture;
use crate::telephony::CallId;
use crate::transport::rtp_udp::tap::Tap;

impl SipLines {
    /// A capture file of a call that is talked on, piece by piece: its messages so far, then its media until the call
    /// ends, `limit` is over or nobody reads any more. `None`: no such call here.
    pub async fn capture(&self, call: CallId, limit: Duration) -> Option<impl Stream<Item = Bytes> + use<>> {
        let running = self.inner.running.load_full()?;
        let Live { sip, stream, own } = self.inner.live.get(&call)?.clone();
        let (tap, copies) = Tap::new();
        let mut begin = capture::head();
        let (now, wall) = (Instant::now().into_std(), clock::now());
        let addrs = running.sip.addrs();
        for rung in running.sip.ladder(sip).await {
            let ago = SignedDuration::try_from(now.saturating_duration_since(rung.at)).unwrap_or_default();
            let peer = rung.peer.addr;
            // Signalling may be of the other family than media.
            let same = own.is_ipv4() == peer.is_ipv4();
            let own = if same { own } else { own_address(peer).unwrap_or(own) };
            let ours = SocketAddr::new(own, addrs.udp_port(own).unwrap_or(0));
            let (from, to) = if rung.sent { (ours, peer) } else { (peer, ours) };
            capture::write(&mut begin, since_1970(wall - ago), from, to, rung.text.as_bytes());
        }
        stream.tap(Some(tap)).await.then_some(())?;
        let end = Instant::now() + limit;
        let media = stream::unfold(copies, move |mut copies| async move {
            let copy = timeout_at(end, copies.recv()).await.ok().flatten()?;
            let (ours, peer) = (SocketAddr::new(own, copy.port), copy.peer);
            let (from, to) = if copy.incoming { (peer, ours) } else { (ours, peer) };
            let mut piece = Vec::with_capacity(copy.bytes.len() + 64);
            capture::write(&mut piece, since_1970(copy.at), from, to, &copy.bytes);
            Some((Bytes::from(piece), copies))
        });
        Some(stream::once(async move { Bytes::from(begin) }).chain(media))
    }
}

fn since_1970(at: Timestamp) -> Duration {
    Duration::from_micros(at.as_microsecond().unsigned_abs())
}
