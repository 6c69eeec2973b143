//! TCP and TLS connections. Each has a task of its own that cuts messages out of what comes and writes what is queued;
//! a peer that does not read fills its own queue and loses its own connection.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tracing::debug;

use super::tls::server_name;
use crate::protocol::sip::stream::{Piece, StreamReader};
use crate::protocol::sip::target::{Target, Transport};

/// Messages that wait for one peer to read. A call has a handful under way; more means that the peer reads no more.
const WRITE_QUEUE: usize = 128;
/// To connect, and for the handshake of TLS.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// A connection that was opened to us says something by then.
const FIRST_LIMIT: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 8 * 1024;

/// What a connection tells the task that owns the endpoint.
#[derive(Debug)]
pub enum ConnectionEvent {
    Message(Target, Bytes),
    /// The framing was lost; what it held, and why. `Lost` follows.
    Broken(Target, Bytes, &'static str),
    /// It is over, and why; the number tells it from a later one to the same peer.
    Lost(Target, u64, String),
}

/// All connections.
pub struct Connections {
    open: HashMap<(Transport, SocketAddr), Connection>,
    accepted: HashMap<IpAddr, usize>,
    tasks: JoinSet<()>,
    events: mpsc::Sender<ConnectionEvent>,
    connector: TlsConnector,
    settings: ConnectionSettings,
    /// Messages that a full queue did not take.
    pub dropped: u64,
    next_id: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct ConnectionSettings {
    pub max: usize,
    pub max_per_peer: usize,
    pub max_message_bytes: usize,
    pub idle: Duration,
    /// A message that the network did not take for so long means a dead connection.
    pub write: Duration,
}

/// Both ends of what waits to be written.
type Queue = (mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>);

struct Connection {
    id: u64,
    queue: mpsc::Sender<Bytes>,
    accepted: bool,
}

impl Connections {
    pub fn new(settings: ConnectionSettings, connector: TlsConnector, events: mpsc::Sender<ConnectionEvent>) -> Self {
        Self {
            open: HashMap::new(),
            accepted: HashMap::new(),
            tasks: JoinSet::new(),
            events,
            connector,
            settings,
            dropped: 0,
            next_id: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Queues a message, over the open connection or a new one. `Err`: it cannot be sent, and why.
    pub fn send(&mut self, target: &Target, bytes: Bytes) -> Result<(), &'static str> {
        let key = (target.transport, target.addr);
        if let Some(connection) = self.open.get(&key) {
            return match connection.queue.try_send(bytes) {
                Ok(()) => Ok(()),
                Err(mpsc::error::TrySendError::Full(_)) => {
                    // The write limit ends the connection; until then its messages are lost, and nobody waits.
                    self.dropped += 1;
                    Ok(())
                }
                Err(mpsc::error::TrySendError::Closed(_)) => Err("the connection is being closed"),
            };
        }
        if self.open.len() >= self.settings.max {
            return Err("too many connections");
        }
        let ((id, queue), connector) = (self.insert(key, false), self.connector.clone());
        let (target, events, settings) = (target.clone(), self.events.clone(), self.settings);
        queue.0.try_send(bytes).map_err(|_| "the connection is being closed")?;
        self.tasks.spawn(async move {
            let why = match open(&target, connector).await {
                Ok(Stream::Plain(stream)) => carry(stream, &target, queue, &events, settings, None).await,
                Ok(Stream::Tls(stream)) => carry(*stream, &target, queue, &events, settings, None).await,
                Err(why) => why,
            };
            debug!(%target, why, "SIP connection over");
            let _ = events.send(ConnectionEvent::Lost(target, id, why)).await;
        });
        Ok(())
    }

    /// Takes a connection that was opened to us, unless there are too many.
    pub fn accept(&mut self, stream: TcpStream, peer: SocketAddr, tls: Option<TlsAcceptor>) {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let of_peer = self.accepted.get(&peer.ip()).copied().unwrap_or(0);
        if self.open.len() >= self.settings.max || of_peer >= self.settings.max_per_peer {
            debug!(%peer, "SIP connection refused: too many");
            return;
        }
        let transport = if tls.is_some() { Transport::Tls } else { Transport::Tcp };
        let target = Target::new(transport, peer);
        let (id, queue) = self.insert((transport, peer), true);
        let (events, settings) = (self.events.clone(), self.settings);
        self.tasks.spawn(async move {
            // Without it a small message waits for the ACK of the one before (Nagle).
            let _ = stream.set_nodelay(true);
            let first = Some(FIRST_LIMIT);
            let why = match tls {
                None => carry(stream, &target, queue, &events, settings, first).await,
                Some(acceptor) => match timeout(OPEN_LIMIT, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => carry(stream, &target, queue, &events, settings, first).await,
                    Ok(Err(error)) => format!("TLS: {error}"),
                    Err(_) => "TLS: no handshake in time".to_owned(),
                },
            };
            debug!(%target, why, "SIP connection over");
            let _ = events.send(ConnectionEvent::Lost(target, id, why)).await;
        });
    }

    fn insert(&mut self, key: (Transport, SocketAddr), accepted: bool) -> (u64, Queue) {
        let (queue, receiver) = mpsc::channel(WRITE_QUEUE);
        self.next_id += 1;
        let connection = Connection { id: self.next_id, queue: queue.clone(), accepted };
        if accepted {
            *self.accepted.entry(key.1.ip()).or_default() += 1;
        }
        if let Some(old) = self.open.insert(key, connection) {
            debug!(id = old.id, "SIP connection replaced");
            self.forget(&old, key.1.ip());
        }
        (self.next_id, (queue, receiver))
    }

    /// Forgets a connection that is over. `false`: another has its place, and goes on.
    pub fn remove(&mut self, target: &Target, id: u64) -> bool {
        while self.tasks.try_join_next().is_some() {}
        let key = (target.transport, target.addr);
        if self.open.get(&key).is_some_and(|connection| connection.id != id) {
            return false;
        }
        self.abandon(target);
        true
    }

    /// Lets a connection end that leads to nobody; the next message to its peer opens another.
    pub fn abandon(&mut self, target: &Target) {
        if let Some(connection) = self.open.remove(&(target.transport, target.addr)) {
            self.forget(&connection, target.addr.ip());
        }
    }

    fn forget(&mut self, connection: &Connection, ip: IpAddr) {
        if connection.accepted
            && let Some(count) = self.accepted.get_mut(&ip)
        {
            *count -= 1;
            if *count == 0 {
                self.accepted.remove(&ip);
            }
        }
    }

    /// Closes everything and waits for it.
    pub async fn shutdown(mut self) {
        self.open.clear();
        self.tasks.shutdown().await;
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

async fn open(target: &Target, connector: TlsConnector) -> Result<Stream, String> {
    let stream = match timeout(OPEN_LIMIT, TcpStream::connect(target.addr)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err("no connection in time".into()),
    };
    let _ = stream.set_nodelay(true);
    if target.transport != Transport::Tls {
        return Ok(Stream::Plain(stream));
    }
    let name = server_name(target).ok_or("a host that no certificate can name")?;
    match timeout(OPEN_LIMIT, connector.connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(Stream::Tls(Box::new(stream))),
        Ok(Err(error)) => Err(format!("TLS: {error}")),
        Err(_) => Err("TLS: no handshake in time".into()),
    }
}

/// Reads and writes until one of both ends; why it did.
async fn carry(
    stream: impl AsyncRead + AsyncWrite,
    target: &Target,
    (queue, mut receiver): Queue,
    events: &mpsc::Sender<ConnectionEvent>,
    settings: ConnectionSettings,
    first: Option<Duration>,
) -> String {
    let (mut reader, mut writer) = tokio::io::split(stream);
    // Pongs go the way of all messages; a weak sender lets the queue end when its owner drops it.
    let pongs = queue.downgrade();
    drop(queue);
    let reading = async {
        let mut cutter = StreamReader::new(settings.max_message_bytes);
        let mut buffer = vec![0; READ_BYTES];
        let mut limit = first.unwrap_or(settings.idle);
        loop {
            let read = match timeout(limit, reader.read(&mut buffer)).await {
                Ok(Ok(0)) => return "closed by the peer".to_owned(),
                Ok(Ok(read)) => read,
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return "idle".to_owned(),
            };
            limit = settings.idle;
            cutter.push(&buffer[..read]);
            while let Some(piece) = cutter.next_piece() {
                let event = match piece {
                    Piece::Message(bytes) => ConnectionEvent::Message(target.clone(), bytes),
                    Piece::Ping => {
                        if let Some(queue) = pongs.upgrade() {
                            let _ = queue.try_send(Bytes::from_static(b"\r\n"));
                        }
                        continue;
                    }
                    Piece::Pong => continue,
                    Piece::Lost(head, why) => {
                        let _ = events.send(ConnectionEvent::Broken(target.clone(), head, why)).await;
                        // The answer gets out before the connection closes: the writer ends first, or time does.
                        tokio::time::sleep(Duration::from_millis(500)).await;
                        return why.to_owned();
                    }
                };
                if events.send(event).await.is_err() {
                    return "shutting down".to_owned();
                }
            }
        }
    };
    let writing = async {
        while let Some(bytes) = receiver.recv().await {
            match timeout(settings.write, async {
                writer.write_all(&bytes).await?;
                writer.flush().await
            })
            .await
            {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return "the peer does not read".to_owned(),
            }
        }
        let _ = timeout(settings.write, writer.shutdown()).await;
        "closed by us".to_owned()
    };
    tokio::select! {
        why = reading => why,
        why = writing => why,
    }
}
