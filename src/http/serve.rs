//! Accepts connections, no more than a bound and none that stays silent, until it is told to stop.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::extract::connect_info::Connected;
use axum::middleware::{self, Next};
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Open connections, media websockets among them. Beyond it new ones wait to be accepted.
const MAX_CONNECTIONS: usize = 4096;
/// A connection on which nothing moves for so long is closed: neither does the client send, nor does it take what we
/// send. A media stream sends 50 messages a second; a stream of events is sent a heartbeat.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// What requests in progress get once we stop; longer than any webhook may take.
const FINISH_LIMIT: Duration = Duration::from_secs(12);

/// Serves until `shutdown`, then until requests in progress are answered, 12 s at most. Media websockets are not
/// waited for: `AppState::sockets` is.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) -> io::Result<()> {
    let listener = Bounded { listener, permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)) };
    let router = router.layer(middleware::from_fn(peer_as_address));
    let service = router.into_make_service_with_connect_info::<Peer>();
    let serving = axum::serve(listener, service).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    let out_of_time = async {
        shutdown.cancelled().await;
        sleep(FINISH_LIMIT).await;
    };
    tokio::select! {
        served = serving => served,
        () = out_of_time => {
            warn!("requests were still in progress when the server stopped");
            Ok(())
        }
    }
}

/// The address of the client's end of the connection.
#[derive(Clone, Copy, Debug)]
struct Peer(SocketAddr);

impl Connected<IncomingStream<'_, Bounded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Self {
        Self(*stream.remote_addr())
    }
}

/// Handlers ask for a plain address, as they would get it from axum's own listener.
async fn peer_as_address(
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: axum::extract::Request,
    next: Next,
) -> axum::response::Response {
    request.extensions_mut().insert(ConnectInfo(peer.0));
    next.run(request).await
}

/// A listener that holds a permit for each open connection.
struct Bounded {
    listener: TcpListener,
    permits: Arc<Semaphore>,
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        // Waits out a lack of file handles instead of failing.
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // A packet of sound must not wait for the one after it. Where this fails, sound is late and nothing else.
        let _ = stream.set_nodelay(true);
        let connection =
            Connection { stream, heard: Instant::now(), idle: Box::pin(sleep(IDLE_LIMIT)), _permit: permit };
        (connection, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A TCP stream that fails when its peer has sent and taken nothing for [`IDLE_LIMIT`].
struct Connection {
    stream: TcpStream,
    heard: Instant,
    idle: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// The kernel took what we sent: its buffer is bounded, so a peer that is gone takes nothing for long.
    fn moved(&mut self, written: &Poll<io::Result<usize>>) {
        if matches!(written, Poll::Ready(Ok(bytes)) if *bytes > 0) {
            self.heard = Instant::now();
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            self.heard = Instant::now();
            return read;
        }
        // The timer is moved only when it fires, not on every read.
        while self.idle.as_mut().poll(cx).is_ready() {
            let deadline = self.heard + IDLE_LIMIT;
            if deadline <= Instant::now() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.idle.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.moved(&written);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.moved(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    use super::*;

    async fn bounded(permits: usize) -> (Bounded, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        (Bounded { listener, permits: Arc::new(Semaphore::new(permits)) }, address)
    }

    #[tokio::test]
    async fn beyond_the_bound_a_connection_waits_until_another_is_closed() {
        let (mut bounded, address) = bounded(1).await;
        let _clients = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        let (first, _) = bounded.accept().await;
        assert!(timeout(Duration::from_millis(100), bounded.accept()).await.is_err());
        drop(first);
        timeout(Duration::from_secs(5), bounded.accept()).await.expect("there is room");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_stays_silent_is_closed_and_one_that_speaks_is_not() {
        let (mut bounded, address) = bounded(1).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let (mut connection, _) = bounded.accept().await;
        let accepted = Instant::now();
        sleep(IDLE_LIMIT / 2).await;
        client.write_all(b"x").await.unwrap();
        let mut byte = [0; 1];
        connection.read_exact(&mut byte).await.expect("a byte came");
        let error = connection.read_exact(&mut byte).await.expect_err("nothing more came");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(accepted.elapsed().as_secs(), IDLE_LIMIT.as_secs() * 3 / 2);
    }
}
