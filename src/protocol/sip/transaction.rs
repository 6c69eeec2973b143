//! The four transaction machines of RFC 3261 §17 with the corrections of RFC 6026: retransmission, absorption, the
//! answer to retransmitted requests, the ACK of refusals. It does not know what a request is about: the owner of a
//! client transaction is a value that comes back with its responses.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::protocol::sip::alarm::Alarm;
use crate::protocol::sip::dialog::is_private;
use crate::protocol::sip::message::{Method, Request, Response};
use crate::protocol::sip::target::{Send, Target, Transport};
use crate::protocol::sip::value::{Via, parse_ip};

/// The times of RFC 3261 §17.1.1.1; everything else is made of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// Estimate of a round trip, 500 ms.
    pub t1: Duration,
    /// Longest pause between retransmissions, 4 s.
    pub t2: Duration,
    /// How long a message may stay in the network, 5 s.
    pub t4: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self { t1: Duration::from_millis(500), t2: Duration::from_secs(4), t4: Duration::from_secs(5) }
    }
}

impl Timers {
    /// Timers B, F, H, J, L and M: 64·T1, after which a peer is taken for gone.
    pub fn patience(&self) -> Duration {
        self.t1 * 64
    }
}

/// Names a server transaction (RFC 3261 §17.2.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerKey(Arc<str>);

/// Names a client transaction: branch and method.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientKey(Arc<str>);

/// What a request is to the transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Seen for the first time: `open` a transaction, or answer without one.
    New,
    /// A retransmission, or the ACK of a refusal: dealt with.
    Absorbed,
    /// The ACK of a 2xx, which belongs to a dialog; or to nothing.
    Ack,
    /// The same request came another way: answer 482 (RFC 3261 §8.2.2.2).
    Merged,
}

/// What became of a request of ours.
#[derive(Clone, Debug)]
pub struct ClientEvent<O> {
    pub owner: O,
    pub key: ClientKey,
    pub request: Arc<Request>,
    pub target: Target,
    pub outcome: Outcome,
}

#[derive(Clone, Debug)]
pub enum Outcome {
    Response(Response),
    /// No final answer within 64·T1 (for INVITE: no answer at all).
    TimedOut,
    /// The transport could not deliver it: why, for the operator.
    Unreachable(String),
}

/// All transactions of an endpoint.
pub struct Transactions<O> {
    timers: Timers,
    max: usize,
    server: HashMap<ServerKey, Server>,
    client: HashMap<ClientKey, Client<O>>,
    /// What identifies a request whatever way it took, and the transaction it opened.
    merged: HashMap<Arc<str>, ServerKey>,
    alarm: Alarm<Key>,
    sends: Vec<Send>,
    /// Messages that were sent once more because nothing came back.
    pub repeated: u64,
}

#[derive(Clone, Debug)]
enum Key {
    Server(ServerKey),
    Client(ClientKey),
}

struct Server {
    target: Target,
    call_id: Arc<str>,
    merge: Option<Arc<str>>,
    is_invite: bool,
    state: ServerState,
}

enum ServerState {
    /// Not finally answered. `until` bounds all but INVITE, whose call has limits of its own.
    Proceeding { last: Option<Bytes>, until: Option<Instant> },
    /// Finally answered, and the answer may have been lost. For INVITE: a refusal that waits for its ACK.
    Completed { response: Bytes, resend_at: Option<Instant>, interval: Duration, until: Instant },
    /// A 2xx went out, which the dialog retransmits; or the ACK of a refusal came. What still comes is absorbed.
    Absorbing { until: Instant },
}

struct Client<O> {
    owner: O,
    request: Arc<Request>,
    bytes: Bytes,
    target: Target,
    call_id: Arc<str>,
    state: ClientState,
}

enum ClientState {
    /// No final answer yet. `until` is absent while an INVITE rings.
    Waiting { resend_at: Option<Instant>, interval: Duration, until: Option<Instant>, provisional: bool },
    /// Refused or (not INVITE) answered; `ack` repeats the ACK of a refusal.
    Completed { ack: Option<Bytes>, until: Instant },
    /// INVITE answered with a 2xx: more of them may come, from forks or because the ACK was lost.
    Accepted { until: Instant },
}

impl<O: Clone> Transactions<O> {
    /// At most `max` server and as many client transactions.
    pub fn new(timers: Timers, max: usize) -> Self {
        Self {
            timers,
            max,
            server: HashMap::new(),
            client: HashMap::new(),
            merged: HashMap::new(),
            alarm: Alarm::default(),
            sends: Vec::new(),
            repeated: 0,
        }
    }

    pub fn timers(&self) -> Timers {
        self.timers
    }

    pub fn len(&self) -> usize {
        self.server.len() + self.client.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a request can only be answered without state.
    pub fn is_full(&self) -> bool {
        self.server.len() >= self.max || self.client.len() >= self.max
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.alarm.next()
    }

    /// What is to be sent, in order.
    pub fn take_sends(&mut self) -> Vec<Send> {
        std::mem::take(&mut self.sends)
    }

    /// Sends a message that belongs to no transaction: a stateless answer, the ACK of a 2xx, a 2xx again.
    pub fn send(&mut self, target: Target, bytes: Bytes, call_id: &Arc<str>) {
        self.sends.push(Send { target, bytes, call_id: call_id.clone() });
    }

    /// Sends once more what nobody has confirmed, beside the transactions: a 2xx, a reliable provisional, their ACKs.
    pub fn repeat(&mut self, target: Target, bytes: Bytes, call_id: &Arc<str>) {
        self.repeated += 1;
        self.send(target, bytes, call_id);
    }

    /// Looks a request up and deals with it, if its transaction is known.
    pub fn receive_request(&mut self, now: Instant, request: &Request) -> Arrival {
        let is_ack = request.method == Method::Ack;
        let Some(key) = server_key(request, if is_ack { "INVITE" } else { request.method.as_str() }) else {
            return if is_ack { Arrival::Ack } else { Arrival::New };
        };
        let timers = self.timers;
        if let Some(server) = self.server.get_mut(&key) {
            let again = match &server.state {
                ServerState::Completed { .. } if is_ack => {
                    let wait = if server.target.transport.is_reliable() { Duration::ZERO } else { timers.t4 };
                    server.state = ServerState::Absorbing { until: now + wait };
                    self.alarm.set(now + wait, Key::Server(key));
                    return Arrival::Absorbed;
                }
                ServerState::Absorbing { .. } if is_ack => return Arrival::Ack,
                ServerState::Proceeding { last, .. } => last.clone(),
                ServerState::Completed { response, .. } => Some(response.clone()),
                ServerState::Absorbing { .. } => None,
            };
            if let Some(bytes) = again.filter(|_| !is_ack) {
                self.sends.push(Send { target: server.target.clone(), bytes, call_id: server.call_id.clone() });
            }
            return Arrival::Absorbed;
        }
        if is_ack {
            return Arrival::Ack;
        }
        match merge_key(request) {
            Some(merge) if self.merged.contains_key(&merge) => Arrival::Merged,
            _ => Arrival::New,
        }
    }

    /// Opens the transaction of a request that was `Arrival::New`; an INVITE is answered 100 at once. `None`: the table
    /// is full, or the request names nothing by which it could be found again.
    pub fn open(&mut self, now: Instant, request: &Request, source: &Target) -> Option<ServerKey> {
        if self.server.len() >= self.max {
            return None;
        }
        let key = server_key(request, request.method.as_str())?;
        let merge = merge_key(request);
        if let Some(merge) = &merge {
            self.merged.insert(merge.clone(), key.clone());
        }
        let is_invite = request.method == Method::Invite;
        let until = (!is_invite).then(|| now + self.timers.patience());
        if let Some(until) = until {
            self.alarm.set(until, Key::Server(key.clone()));
        }
        let server = Server {
            target: reply_target(request, source),
            call_id: request.call_id().into(),
            merge,
            is_invite,
            state: ServerState::Proceeding { last: None, until },
        };
        self.server.insert(key.clone(), server);
        if is_invite {
            self.respond(now, &key, &Response::answer(request, 100));
        }
        Some(key)
    }

    /// The open INVITE transaction that a CANCEL means.
    pub fn cancelled(&self, cancel: &Request) -> Option<ServerKey> {
        let key = server_key(cancel, "INVITE")?;
        self.server.contains_key(&key).then_some(key)
    }

    /// Sends a response in a server transaction; after a final one, and for one that is gone, nothing.
    pub fn respond(&mut self, now: Instant, key: &ServerKey, response: &Response) {
        let Some(server) = self.server.get_mut(key) else { return };
        let ServerState::Proceeding { last, .. } = &mut server.state else { return };
        let bytes = response.to_bytes();
        self.sends.push(Send { target: server.target.clone(), bytes: bytes.clone(), call_id: server.call_id.clone() });
        if !response.is_final() {
            *last = Some(bytes);
            return;
        }
        let reliable = server.target.transport.is_reliable();
        let until = now + self.timers.patience();
        let mut at = until;
        server.state = if server.is_invite && response.is_success() {
            ServerState::Absorbing { until }
        } else if server.is_invite {
            // Timer G: refusals are repeated until the ACK comes, where the transport loses messages.
            let resend_at = (!reliable).then(|| now + self.timers.t1);
            at = resend_at.unwrap_or(until);
            ServerState::Completed { response: bytes, resend_at, interval: self.timers.t1, until }
        } else {
            let until = if reliable { now } else { until };
            at = until;
            ServerState::Completed { response: bytes, resend_at: None, interval: Duration::ZERO, until }
        };
        self.alarm.set(at, Key::Server(key.clone()));
    }

    /// Starts a client transaction. The request's topmost Via must hold a branch that no other has. `None`: the table
    /// is full.
    pub fn request(&mut self, now: Instant, request: Request, target: Target, owner: O) -> Option<ClientKey> {
        if self.client.len() >= self.max {
            return None;
        }
        let via = request.top_via()?;
        let key = client_key(via.branch()?, request.method.as_str());
        let bytes = request.to_bytes();
        let call_id: Arc<str> = request.call_id().into();
        self.sends.push(Send { target: target.clone(), bytes: bytes.clone(), call_id: call_id.clone() });
        let until = now + self.timers.patience();
        let resend_at = (!target.transport.is_reliable()).then(|| now + self.timers.t1);
        let state =
            ClientState::Waiting { resend_at, interval: self.timers.t1, until: Some(until), provisional: false };
        self.alarm.set(resend_at.unwrap_or(until), Key::Client(key.clone()));
        let request = Arc::new(request);
        self.client.insert(key.clone(), Client { owner, request, bytes, target, call_id, state });
        Some(key)
    }

    /// Gives a ringing INVITE, which has no limit of its own, 64·T1 more (RFC 3261 §9.1, after its CANCEL).
    pub fn expire(&mut self, now: Instant, key: &ClientKey) {
        let patience = self.timers.patience();
        if let Some(client) = self.client.get_mut(key)
            && let ClientState::Waiting { until: until @ None, .. } = &mut client.state
        {
            *until = Some(now + patience);
            self.alarm.set(now + patience, Key::Client(key.clone()));
        }
    }

    /// The CANCEL of an INVITE of ours (RFC 3261 §9.1), to be sent by `request` to the target that comes with it.
    pub fn cancel_of(&self, key: &ClientKey) -> Option<(Request, Target)> {
        let client = self.client.get(key)?;
        let mut cancel = in_transaction(&client.request, Method::Cancel);
        cancel.headers.copy(&client.request.headers, "To");
        Some((cancel, client.target.clone()))
    }

    /// Takes a response. `None`: it belongs to nothing, or says nothing new.
    pub fn receive_response(&mut self, now: Instant, response: Response) -> Option<ClientEvent<O>> {
        let via = response.top_via()?;
        let key = client_key(via.branch()?, response.cseq()?.1);
        let timers = self.timers;
        let client = self.client.get_mut(&key)?;
        let is_invite = client.request.method == Method::Invite;
        let reliable = client.target.transport.is_reliable();
        match &mut client.state {
            ClientState::Waiting { resend_at, interval, until, provisional } => {
                if !response.is_final() {
                    *provisional = true;
                    if is_invite {
                        *resend_at = None;
                        *until = None;
                    } else if resend_at.is_some() {
                        *interval = timers.t2;
                    }
                } else if is_invite && response.is_success() {
                    let until = now + timers.patience();
                    client.state = ClientState::Accepted { until };
                    self.alarm.set(until, Key::Client(key.clone()));
                } else {
                    let mut ack = None;
                    if is_invite {
                        let bytes = ack_of_refusal(&client.request, &response).to_bytes();
                        let send = Send {
                            target: client.target.clone(),
                            bytes: bytes.clone(),
                            call_id: client.call_id.clone(),
                        };
                        self.sends.push(send);
                        ack = Some(bytes);
                    }
                    // Timer D covers the time in which the peer repeats its refusal, timer K that of any answer.
                    let wait = match (reliable, is_invite) {
                        (true, _) => Duration::ZERO,
                        (false, true) => timers.patience(),
                        (false, false) => timers.t4,
                    };
                    client.state = ClientState::Completed { ack, until: now + wait };
                    self.alarm.set(now + wait, Key::Client(key.clone()));
                }
            }
            ClientState::Accepted { .. } if response.is_success() => {}
            ClientState::Accepted { .. } => return None,
            ClientState::Completed { ack, .. } => {
                if let Some(bytes) = ack.clone().filter(|_| response.is_final()) {
                    let send = Send { target: client.target.clone(), bytes, call_id: client.call_id.clone() };
                    self.sends.push(send);
                }
                return None;
            }
        }
        Some(ClientEvent {
            owner: client.owner.clone(),
            key,
            request: client.request.clone(),
            target: client.target.clone(),
            outcome: Outcome::Response(response),
        })
    }

    /// Ends what waits on a connection that is gone.
    pub fn on_unreachable(&mut self, target: &Target, why: &str) -> Vec<ClientEvent<O>> {
        let waits = |client: &Client<O>| matches!(client.state, ClientState::Waiting { .. });
        let lost = self.client.iter().filter(|(_, client)| client.target.is_same(target) && waits(client));
        let keys: Vec<ClientKey> = lost.map(|(key, _)| key.clone()).collect();
        keys.into_iter().filter_map(|key| self.give_up(key, Outcome::Unreachable(why.to_owned()))).collect()
    }

    fn give_up(&mut self, key: ClientKey, outcome: Outcome) -> Option<ClientEvent<O>> {
        let client = self.client.remove(&key)?;
        Some(ClientEvent { owner: client.owner, key, request: client.request, target: client.target, outcome })
    }

    /// Does everything due by `now`; appends the requests that nobody answered.
    pub fn on_tick(&mut self, now: Instant, events: &mut Vec<ClientEvent<O>>) {
        while let Some((_, key)) = self.alarm.pop(now) {
            match key {
                Key::Server(key) => self.on_server_tick(now, key),
                Key::Client(key) => events.extend(self.on_client_tick(now, key)),
            }
        }
    }

    fn on_server_tick(&mut self, now: Instant, key: ServerKey) {
        let timers = self.timers;
        let Entry::Occupied(mut entry) = self.server.entry(key.clone()) else { return };
        let server = entry.get_mut();
        let over = match &mut server.state {
            ServerState::Proceeding { until, .. } => until.is_some_and(|until| until <= now),
            ServerState::Absorbing { until } => *until <= now,
            ServerState::Completed { until, .. } if *until <= now => true,
            ServerState::Completed { response, resend_at, interval, until } => {
                if let Some(at) = resend_at.filter(|at| *at <= now) {
                    self.repeated += 1;
                    self.sends.push(Send {
                        target: server.target.clone(),
                        bytes: response.clone(),
                        call_id: server.call_id.clone(),
                    });
                    *interval = (*interval * 2).min(timers.t2);
                    let next = (at + *interval).max(now);
                    *resend_at = Some(next);
                    self.alarm.set(next.min(*until), Key::Server(key));
                }
                false
            }
        };
        if over {
            let server = entry.remove();
            if let Some(merge) = server.merge {
                self.merged.remove(&merge);
            }
        }
    }

    fn on_client_tick(&mut self, now: Instant, key: ClientKey) -> Option<ClientEvent<O>> {
        let timers = self.timers;
        let client = self.client.get_mut(&key)?;
        match &mut client.state {
            ClientState::Accepted { until } | ClientState::Completed { until, .. } => {
                if *until <= now {
                    self.client.remove(&key);
                }
                None
            }
            ClientState::Waiting { until: Some(until), .. } if *until <= now => self.give_up(key, Outcome::TimedOut),
            ClientState::Waiting { resend_at, interval, until, .. } => {
                let at = resend_at.filter(|at| *at <= now)?;
                self.repeated += 1;
                self.sends.push(Send {
                    target: client.target.clone(),
                    bytes: client.bytes.clone(),
                    call_id: client.call_id.clone(),
                });
                *interval *= 2;
                if client.request.method != Method::Invite {
                    *interval = (*interval).min(timers.t2);
                }
                let next = (at + *interval).max(now);
                *resend_at = Some(next);
                let wake = until.map_or(next, |until| until.min(next));
                self.alarm.set(wake, Key::Client(key));
                None
            }
        }
    }
}

/// Where the answer to a request goes (RFC 3261 §18.2.2, RFC 3581): the connection it came by; for UDP the address it
/// came from, at the port it came from if the peer asked for that, else at the port it named.
pub fn reply_target(request: &Request, source: &Target) -> Target {
    if source.transport.is_reliable() {
        return source.clone();
    }
    let port = match request.top_via() {
        Some(via) if via.params.has("rport") => source.addr.port(),
        // A private address that is not where the message came from: a NAT is between, and only its port is open.
        Some(via) if parse_ip(&via.host).is_some_and(|ip| is_private(ip) && ip != source.addr.ip()) => {
            source.addr.port()
        }
        Some(via) => via.port.filter(|port| *port != 0).unwrap_or(Transport::Udp.default_port()),
        None => source.addr.port(),
    };
    Target::new(source.transport, SocketAddr::new(source.addr.ip(), port))
}

/// Writes where a request came from into its topmost Via (RFC 3261 §18.2.1, RFC 3581 §4).
pub fn stamp(request: &mut Request, source: &Target) {
    let Some(mut via) = request.top_via() else { return };
    let asked = via.params.has("rport");
    if asked || parse_ip(&via.host) != Some(source.addr.ip()) {
        via.params.set("received", source.addr.ip().to_string());
    }
    if asked {
        via.params.set("rport", source.addr.port().to_string());
    }
    request.headers.set_top_via(&via);
}

fn server_key(request: &Request, method: &str) -> Option<ServerKey> {
    let via = request.top_via()?;
    let key = match via.branch() {
        Some(branch) => {
            // The sent-by keeps two peers apart that chose one branch; the method keeps CANCEL apart from INVITE.
            format!("{}|{}:{}|{method}", branch.to_ascii_lowercase(), via.host, via.port.unwrap_or_default())
        }
        None => {
            let (number, _) = request.cseq()?;
            let Via { host, port, .. } = &via;
            let (call_id, from) = (request.call_id(), request.from_tag());
            format!("2543|{host}:{}|{call_id}|{from}|{number}|{}|{method}", port.unwrap_or_default(), request.uri)
        }
    };
    Some(ServerKey(key.into()))
}

/// RFC 3261 §8.2.2.2: From tag, Call-ID and CSeq of a request outside dialogs.
fn merge_key(request: &Request) -> Option<Arc<str>> {
    if request.to_tag().is_some() || matches!(request.method, Method::Ack | Method::Cancel) {
        return None;
    }
    let (number, method) = request.cseq()?;
    Some(format!("{}|{}|{number} {method}", request.from_tag(), request.call_id()).into())
}

fn client_key(branch: &str, method: &str) -> ClientKey {
    ClientKey(format!("{branch}|{method}").into())
}

/// CANCEL and the ACK of a refusal: the same Via, URI, route and number as their INVITE.
fn in_transaction(invite: &Request, method: Method) -> Request {
    let mut request = Request::new(method, invite.uri.clone());
    if let Some(via) = invite.top_via() {
        request.add_via(&via);
    }
    for name in ["Route", "Max-Forwards", "From", "Call-ID"] {
        request.headers.copy(&invite.headers, name);
    }
    if let Some((number, _)) = invite.cseq() {
        request.headers.push("CSeq", format!("{number} {}", request.method));
    }
    request
}

fn ack_of_refusal(invite: &Request, response: &Response) -> Request {
    let mut ack = in_transaction(invite, Method::Ack);
    ack.headers.copy(&response.headers, "To");
    ack
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "192.0.2.1:5060";

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn target(transport: Transport) -> Target {
        Target::new(transport, PEER.parse().unwrap())
    }

    fn request(method: Method, branch: &str) -> Request {
        let mut request = Request::new(method.clone(), "sip:a@b");
        request.headers.push("Via", format!("SIP/2.0/UDP 192.0.2.1:5060;branch={branch}"));
        request.headers.push("From", "<sip:c@d>;tag=f");
        request.headers.push("To", "<sip:a@b>");
        request.headers.push("Call-ID", "id");
        request.headers.push("CSeq", format!("1 {}", if method == Method::Ack { Method::Invite } else { method }));
        request
    }

    fn ack(branch: &str) -> Request {
        let mut ack = request(Method::Ack, branch);
        ack.headers.set("CSeq", "1 ACK");
        ack
    }

    fn transactions() -> Transactions<u8> {
        Transactions::new(Timers::default(), 10)
    }

    /// Runs the clock to `until` and lists when (ms after `t0`) something was sent, by its first word or status.
    fn sent(tx: &mut Transactions<u8>, t0: Instant, until: Duration) -> (Vec<(u128, String)>, Vec<ClientEvent<u8>>) {
        let (mut sent, mut events) = (Vec::new(), Vec::new());
        let mut note = |tx: &mut Transactions<u8>, now: Instant| {
            for send in tx.take_sends() {
                let text = String::from_utf8_lossy(&send.bytes).into_owned();
                let word = text.trim_start_matches("SIP/2.0 ").split(' ').next().unwrap().to_owned();
                sent.push(((now - t0).as_millis(), word));
            }
        };
        note(tx, t0);
        while let Some(at) = tx.deadline().filter(|at| *at <= t0 + until) {
            tx.on_tick(at, &mut events);
            note(tx, at);
        }
        (sent, events)
    }

    fn times(sent: &[(u128, String)]) -> Vec<u128> {
        sent.iter().map(|(at, _)| *at).collect()
    }

    #[test]
    fn an_unanswered_invite_is_repeated_seven_times_in_32_seconds_over_udp_and_never_over_tcp() {
        let t0 = Instant::now();
        let mut tx = transactions();
        tx.request(t0, request(Method::Invite, "z9hG4bK1"), target(Transport::Udp), 7).unwrap();
        let (sent_at, events) = sent(&mut tx, t0, ms(40_000));
        assert_eq!(times(&sent_at), [0, 500, 1500, 3500, 7500, 15_500, 31_500]);
        assert!(matches!(&events[..], [ClientEvent { owner: 7, outcome: Outcome::TimedOut, .. }]));
        assert!(tx.is_empty());
        let mut tx = transactions();
        tx.request(t0, request(Method::Invite, "z9hG4bK1"), target(Transport::Tcp), 7).unwrap();
        assert_eq!(times(&sent(&mut tx, t0, ms(40_000)).0), [0]);
    }

    #[test]
    fn an_unanswered_options_is_repeated_at_most_every_four_seconds() {
        let t0 = Instant::now();
        let mut tx = transactions();
        tx.request(t0, request(Method::Options, "z9hG4bK1"), target(Transport::Udp), 7).unwrap();
        let (sent_at, events) = sent(&mut tx, t0, ms(40_000));
        assert_eq!(times(&sent_at), [0, 500, 1500, 3500, 7500, 11_500, 15_500, 19_500, 23_500, 27_500, 31_500]);
        assert_eq!(events.len(), 1);
    }

    #[test]
    fn a_ringing_invite_waits_for_ever_until_it_is_cancelled() {
        let t0 = Instant::now();
        let mut tx = transactions();
        let invite = request(Method::Invite, "z9hG4bK1");
        let key = tx.request(t0, invite.clone(), target(Transport::Udp), 7).unwrap();
        assert!(tx.receive_response(t0, Response::answer(&invite, 180)).is_some());
        let (sent_at, events) = sent(&mut tx, t0, ms(600_000));
        assert_eq!((times(&sent_at), events.len()), (vec![0], 0));
        let (cancel, to) = tx.cancel_of(&key).unwrap();
        assert_eq!(cancel.top_via(), invite.top_via());
        assert_eq!(cancel.cseq(), Some((1, "CANCEL")));
        tx.request(t0, cancel, to, 8).unwrap();
        tx.expire(t0, &key);
        let (_, events) = sent(&mut tx, t0, ms(32_000));
        assert_eq!(events.len(), 2, "CANCEL and INVITE are given up after 64·T1");
    }

    #[test]
    fn a_refusal_is_acked_and_every_repetition_of_it_too() {
        let t0 = Instant::now();
        let mut tx = transactions();
        let invite = request(Method::Invite, "z9hG4bK1");
        tx.request(t0, invite.clone(), target(Transport::Udp), 7).unwrap();
        let mut busy = Response::answer(&invite, 486);
        busy.tag("theirs");
        assert!(tx.receive_response(t0, busy.clone()).is_some());
        assert!(tx.receive_response(t0 + ms(500), busy.clone()).is_none());
        let sends = tx.take_sends();
        let acks: Vec<_> = sends.iter().filter(|send| send.bytes.starts_with(b"ACK ")).collect();
        assert_eq!(acks.len(), 2);
        let text = String::from_utf8_lossy(&acks[0].bytes);
        assert!(text.contains("To: <sip:a@b>;tag=theirs") && text.contains("CSeq: 1 ACK"), "{text}");
        sent(&mut tx, t0, ms(32_000));
        assert!(tx.receive_response(t0 + ms(32_000), busy).is_none());
        assert!(tx.is_empty());
    }

    #[test]
    fn every_2xx_of_an_accepted_invite_reaches_its_owner() {
        let t0 = Instant::now();
        let mut tx = transactions();
        let invite = request(Method::Invite, "z9hG4bK1");
        tx.request(t0, invite.clone(), target(Transport::Udp), 7).unwrap();
        for at in [0, 500, 31_000] {
            assert!(tx.receive_response(t0 + ms(at), Response::answer(&invite, 200)).is_some());
        }
        assert!(tx.receive_response(t0, Response::answer(&invite, 486)).is_none());
        sent(&mut tx, t0, ms(32_000));
        assert!(tx.is_empty());
    }

    #[test]
    fn a_refused_invite_is_refused_again_until_its_ack_comes() {
        let t0 = Instant::now();
        let mut tx = transactions();
        let invite = request(Method::Invite, "z9hG4bK1");
        assert_eq!(tx.receive_request(t0, &invite), Arrival::New);
        let key = tx.open(t0, &invite, &target(Transport::Udp)).unwrap();
        assert_eq!(tx.receive_request(t0, &invite), Arrival::Absorbed);
        assert_eq!(tx.take_sends().len(), 2, "100, and 100 again for the retransmission");
        tx.respond(t0, &key, &Response::answer(&invite, 486));
        let (sent_at, _) = sent(&mut tx, t0, ms(4000));
        assert_eq!(times(&sent_at), [0, 500, 1500, 3500]);
        assert_eq!(tx.receive_request(t0 + ms(4000), &ack("z9hG4bK1")), Arrival::Absorbed);
        let (sent_at, _) = sent(&mut tx, t0, ms(60_000));
        assert_eq!(sent_at, []);
        assert!(tx.is_empty());
    }

    #[test]
    fn an_accepted_invite_absorbs_retransmissions_and_passes_the_ack_on() {
        let t0 = Instant::now();
        let mut tx = transactions();
        let invite = request(Method::Invite, "z9hG4bK1");
        let key = tx.open(t0, &invite, &target(Transport::Udp)).unwrap();
        tx.respond(t0, &key, &Response::answer(&invite, 200));
        tx.take_sends();
        assert_eq!(tx.receive_request(t0 + ms(100), &invite), Arrival::Absorbed);
        assert_eq!(tx.receive_request(t0 + ms(100), &ack("z9hG4bK2")), Arrival::Ack);
        assert_eq!(tx.receive_request(t0 + ms(100), &ack("z9hG4bK1")), Arrival::Ack, "a peer of RFC 2543");
        assert_eq!(tx.take_sends(), []);
        sent(&mut tx, t0, ms(32_000));
        assert!(tx.is_empty());
    }

    #[test]
    fn a_repeated_request_gets_the_same_answer_for_32_seconds() {
        let t0 = Instant::now();
        let mut tx = transactions();
        let bye = request(Method::Bye, "z9hG4bK1");
        let key = tx.open(t0, &bye, &target(Transport::Udp)).unwrap();
        assert_eq!(tx.receive_request(t0, &bye), Arrival::Absorbed);
        assert_eq!(tx.take_sends(), [], "nothing to repeat yet");
        tx.respond(t0, &key, &Response::answer(&bye, 200));
        tx.respond(t0, &key, &Response::answer(&bye, 500));
        assert_eq!(tx.receive_request(t0, &bye), Arrival::Absorbed);
        let (sent_at, _) = sent(&mut tx, t0, ms(31_999));
        assert_eq!(sent_at, [(0, "200".to_owned()), (0, "200".to_owned())]);
        sent(&mut tx, t0, ms(32_000));
        assert_eq!(tx.receive_request(t0, &bye), Arrival::New);
    }

    #[test]
    fn the_same_request_by_another_way_is_merged_and_another_one_is_not() {
        let t0 = Instant::now();
        let mut tx = transactions();
        tx.open(t0, &request(Method::Invite, "z9hG4bK1"), &target(Transport::Udp)).unwrap();
        assert_eq!(tx.receive_request(t0, &request(Method::Invite, "z9hG4bK2")), Arrival::Merged);
        let mut other = request(Method::Invite, "z9hG4bK3");
        other.headers.set("CSeq", "2 INVITE");
        assert_eq!(tx.receive_request(t0, &other), Arrival::New);
    }

    #[test]
    fn a_cancel_finds_its_invite_and_only_that() {
        let t0 = Instant::now();
        let mut tx = transactions();
        assert_eq!(tx.cancelled(&request(Method::Cancel, "z9hG4bK1")), None, "before the INVITE");
        let key = tx.open(t0, &request(Method::Invite, "z9hG4bK1"), &target(Transport::Udp)).unwrap();
        assert_eq!(tx.cancelled(&request(Method::Cancel, "z9hG4bK1")), Some(key));
        assert_eq!(tx.cancelled(&request(Method::Cancel, "z9hG4bK2")), None);
    }

    #[test]
    fn a_peer_of_rfc_2543_is_found_without_a_branch() {
        let t0 = Instant::now();
        let mut tx = transactions();
        let mut invite = request(Method::Invite, "z9hG4bK");
        invite.headers.remove("Via");
        invite.headers.push("Via", "SIP/2.0/UDP 192.0.2.1");
        let key = tx.open(t0, &invite, &target(Transport::Udp)).unwrap();
        assert_eq!(tx.receive_request(t0, &invite), Arrival::Absorbed);
        tx.respond(t0, &key, &Response::answer(&invite, 486));
        let mut ack = ack("x");
        ack.headers.set("Via", "SIP/2.0/UDP 192.0.2.1");
        assert_eq!(tx.receive_request(t0, &ack), Arrival::Absorbed);
    }

    #[test]
    fn a_full_table_opens_nothing_more() {
        let t0 = Instant::now();
        let mut tx = transactions();
        for number in 0..10 {
            let mut request = request(Method::Options, &format!("z9hG4bK{number}"));
            request.headers.set("CSeq", format!("{number} OPTIONS"));
            assert!(tx.open(t0, &request, &target(Transport::Udp)).is_some());
        }
        assert!(tx.is_full());
        assert!(tx.open(t0, &request(Method::Invite, "z9hG4bKx"), &target(Transport::Udp)).is_none());
        sent(&mut tx, t0, ms(33_000));
        assert!(tx.is_empty() && !tx.is_full(), "requests that nobody answers are forgotten");
    }

    #[test]
    fn answers_go_where_the_request_came_from() {
        let source = Target::new(Transport::Udp, "198.51.100.7:3333".parse().unwrap());
        let mut plain = request(Method::Options, "z9hG4bK1");
        stamp(&mut plain, &source);
        assert_eq!(plain.top_via().unwrap().params.get("received"), Some("198.51.100.7"));
        assert_eq!(reply_target(&plain, &source).addr.to_string(), "198.51.100.7:5060");
        let mut asks = request(Method::Options, "z9hG4bK1;rport");
        stamp(&mut asks, &source);
        assert_eq!(asks.top_via().unwrap().params.get("rport"), Some("3333"));
        assert_eq!(reply_target(&asks, &source), source);
        let mut behind_nat = request(Method::Options, "z9hG4bK1");
        behind_nat.headers.set("Via", "SIP/2.0/UDP 10.0.0.7:5060;branch=z9hG4bK1");
        assert_eq!(reply_target(&behind_nat, &source), source);
        let tcp = Target::new(Transport::Tcp, source.addr);
        assert_eq!(reply_target(&plain, &tcp), tcp);
    }

    #[test]
    fn a_broken_connection_ends_what_waits_on_it() {
        let t0 = Instant::now();
        let mut tx = transactions();
        tx.request(t0, request(Method::Invite, "z9hG4bK1"), target(Transport::Tcp), 7).unwrap();
        assert_eq!(tx.on_unreachable(&target(Transport::Udp), "").len(), 0);
        assert!(matches!(tx.on_unreachable(&target(Transport::Tcp), "")[..], [ClientEvent { owner: 7, .. }]));
        assert!(tx.is_empty());
    }
}
