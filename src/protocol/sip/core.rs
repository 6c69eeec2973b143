//! What every machine of an endpoint shares: settings, randomness, the transactions, and the way a message of ours is
//! dressed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng as _;
use rand::rngs::StdRng;

use crate::protocol::sip::check::{ALLOW, SUPPORTED};
use crate::protocol::sip::dialog::is_private;
use crate::protocol::sip::message::{Method, Request, Response};
use crate::protocol::sip::target::{Target, Transport};
use crate::protocol::sip::transaction::{ClientKey, ServerKey, Timers, Transactions, reply_target};
use crate::protocol::sip::value::{Params, SipUri, Via, host_of};

/// A call of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallRef(pub u64);

/// An account that is registered somewhere; the number is the user's to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountRef(pub u64);

/// Whose request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Call(CallRef),
    Registration(AccountRef),
    KeepAlive(AccountRef),
    /// A request whose answer nobody waits for: CANCEL, the BYE of a surplus fork.
    Nobody,
}

/// What an endpoint may hold and do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Server transactions, and as many client ones, default 20,000: each lives up to 32 s after its answer
    /// and takes about 2 KiB.
    pub max_transactions: usize,
    /// Calls in any state, default 1,000.
    pub max_calls: usize,
    /// Of those, calls from one address, default 500.
    pub max_calls_per_peer: usize,
    /// Bytes of one message, default 64 KiB.
    pub max_message_bytes: usize,
    /// Messages a second from one address, default 2,000, and twice that at once. What is above is not read.
    pub peer_messages_per_s: u32,
    /// Refusals a second (403, 401, 503, OPTIONS of strangers) to one address, default 10, and as many at once; above
    /// it, silence.
    pub peer_refusals_per_s: u32,
    /// Addresses whose rates are known, default 10,000. The longest unheard is forgotten first.
    pub max_peers: usize,
    /// Messages kept for the ladder of one call, default 60.
    pub ladder_messages: usize,
    /// `Retry-After` of a 503 in seconds, default 5.
    pub retry_after_s: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_transactions: 20_000,
            max_calls: 1000,
            max_calls_per_peer: 500,
            max_message_bytes: 64 * 1024,
            peer_messages_per_s: 2000,
            peer_refusals_per_s: 10,
            max_peers: 10_000,
            ladder_messages: 60,
            retry_after_s: 5,
        }
    }
}

/// How the world reaches us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// For peers outside our networks, where a NAT stands before us.
    pub external: Option<IpAddr>,
    pub v4: Option<IpAddr>,
    pub v6: Option<IpAddr>,
    /// By which of our addresses these peers are reached, where a machine has more than one.
    pub ways: BTreeMap<IpAddr, IpAddr>,
    pub udp_port: u16,
    pub tcp_port: u16,
    /// Of the sockets for IPv6; zero when there are none.
    pub udp_port_v6: u16,
    pub tcp_port_v6: u16,
    /// Zero when we do not listen on TLS.
    pub tls_port: u16,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub timers: Timers,
    /// Of User-Agent and Server.
    pub agent: String,
    pub addresses: Addresses,
    /// How long a call may ring, in or out, default 180 s.
    pub ring_limit: Duration,
    /// How long the user of the endpoint may take to answer an offer or a REFER, default 20 s.
    pub user_limit: Duration,
    /// How long a transfer may take until its last NOTIFY, default 90 s.
    pub transfer_limit: Duration,
    /// The session interval that we ask for, default 1,800 s (RFC 4028).
    pub session_interval: Duration,
    /// The shortest that we take, default 90 s.
    pub min_session: Duration,
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timers: Timers::default(),
            agent: "Offhook".into(),
            addresses: Addresses::default(),
            ring_limit: Duration::from_secs(180),
            user_limit: Duration::from_secs(20),
            transfer_limit: Duration::from_secs(90),
            session_interval: Duration::from_secs(1800),
            min_session: Duration::from_secs(90),
            limits: Limits::default(),
        }
    }
}

pub struct Core {
    pub options: Options,
    pub rng: StdRng,
    pub transactions: Transactions<Owner>,
}

impl Core {
    /// 64 random bits, for tags, branches and Call-IDs.
    pub fn token(&mut self) -> String {
        format!("{:016x}", self.rng.next_u64())
    }

    /// A duration between both, evenly.
    pub fn between(&mut self, from: Duration, to: Duration) -> Duration {
        let share = f64::from(self.rng.next_u32()) / f64::from(u32::MAX);
        from + to.saturating_sub(from).mul_f64(share)
    }

    /// The address by which `peer` reaches us.
    pub fn own_ip(&self, peer: IpAddr) -> IpAddr {
        let peer = peer.to_canonical();
        let addresses = &self.options.addresses;
        if peer.is_loopback() {
            return peer;
        }
        let external = addresses.external.filter(|own| !is_private(peer) && own.is_ipv4() == peer.is_ipv4());
        let own = if peer.is_ipv4() { addresses.v4 } else { addresses.v6 };
        let way = addresses.ways.get(&peer).copied();
        external.or(way).or(own).or(addresses.v4).or(addresses.v6).unwrap_or(peer)
    }

    fn own_port(&self, peer: &Target) -> u16 {
        let addresses = &self.options.addresses;
        match (peer.transport, peer.addr.ip().to_canonical().is_ipv6()) {
            (Transport::Udp, false) => addresses.udp_port,
            (Transport::Udp, true) => addresses.udp_port_v6,
            (Transport::Tcp, false) => addresses.tcp_port,
            (Transport::Tcp, true) => addresses.tcp_port_v6,
            (Transport::Tls, _) => addresses.tls_port,
        }
    }

    /// Our Contact URI towards a peer.
    pub fn contact(&self, user: &str, peer: &Target) -> SipUri {
        let port = self.own_port(peer);
        let host = host_of(self.own_ip(peer.addr.ip()));
        let user = if user.is_empty() { "offhook" } else { user };
        let mut uri = SipUri::new(Some(user), host, Some(port).filter(|port| *port != 0));
        match peer.transport {
            Transport::Udp => {}
            Transport::Tcp => uri.params.set("transport", "tcp"),
            Transport::Tls => uri.params.set("transport", "tls"),
        }
        uri
    }

    fn via(&mut self, target: &Target) -> Via {
        let mut params = Params::parse(";rport").expect("a parameter without a value is one");
        params.set("branch", format!("z9hG4bK{}", self.token()));
        Via {
            transport: target.transport.label().into(),
            host: host_of(self.own_ip(target.addr.ip())),
            port: Some(self.own_port(target)).filter(|port| *port != 0),
            params,
        }
    }

    fn dress(&mut self, request: &mut Request, target: &Target) {
        let via = self.via(target);
        request.add_via(&via);
        if request.headers.get("Max-Forwards").is_none() {
            request.headers.push("Max-Forwards", "70");
        }
        request.headers.set("User-Agent", self.options.agent.clone());
        if matches!(request.method, Method::Invite | Method::Update | Method::Options) {
            request.headers.set("Allow", ALLOW);
            request.headers.set("Supported", SUPPORTED);
        }
    }

    /// Sends a request in a transaction. `None`: there is no room for one.
    pub fn request(&mut self, now: Instant, mut request: Request, target: Target, owner: Owner) -> Option<ClientKey> {
        self.dress(&mut request, &target);
        self.transactions.request(now, request, target, owner)
    }

    /// Sends the ACK of a 2xx, which has no transaction; its bytes, to be sent again.
    pub fn ack(&mut self, mut ack: Request, target: &Target) -> bytes::Bytes {
        self.dress(&mut ack, target);
        let bytes = ack.to_bytes();
        let call_id: Arc<str> = ack.call_id().into();
        self.transactions.send(target.clone(), bytes.clone(), &call_id);
        bytes
    }

    /// Cancels an INVITE of ours and gives it 64·T1 to end.
    pub fn cancel(&mut self, now: Instant, key: &ClientKey) {
        if let Some((mut cancel, target)) = self.transactions.cancel_of(key) {
            cancel.headers.set("User-Agent", self.options.agent.clone());
            self.transactions.request(now, cancel, target, Owner::Nobody);
            self.transactions.expire(now, key);
        }
    }

    /// Answers in a transaction.
    pub fn respond(&mut self, now: Instant, key: &ServerKey, mut response: Response) {
        response.headers.set("Server", self.options.agent.clone());
        self.transactions.respond(now, key, &response);
    }

    /// Answers a request without remembering it.
    pub fn respond_stateless(&mut self, request: &Request, source: &Target, mut response: Response) {
        if request.method == Method::Ack {
            return;
        }
        response.headers.set("Server", self.options.agent.clone());
        let call_id: Arc<str> = request.call_id().into();
        self.transactions.send(reply_target(request, source), response.to_bytes(), &call_id);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn each_peer_is_told_the_address_by_which_it_reaches_us() {
        let addresses = Addresses {
            external: Some("203.0.113.9".parse().unwrap()),
            v4: Some("10.0.0.5".parse().unwrap()),
            v6: Some("2001:db8::5".parse().unwrap()),
            ways: BTreeMap::from([("10.9.0.1".parse().unwrap(), "10.9.0.5".parse().unwrap())]),
            udp_port: 5060,
            tcp_port: 5060,
            udp_port_v6: 5062,
            tcp_port_v6: 5062,
            tls_port: 0,
        };
        let options = Options { addresses, ..Options::default() };
        let transactions = Transactions::new(options.timers, 1);
        let core = Core { options, rng: StdRng::from_seed([1; 32]), transactions };
        let check = |transport, peer: &str, expected: &str| {
            let peer = Target::new(transport, peer.parse().unwrap());
            assert_eq!(core.contact("bob", &peer).to_string(), expected);
        };
        check(Transport::Udp, "198.51.100.1:5060", "sip:bob@203.0.113.9:5060");
        check(Transport::Tcp, "10.0.0.9:5060", "sip:bob@10.0.0.5:5060;transport=tcp");
        check(Transport::Udp, "10.9.0.1:5060", "sip:bob@10.9.0.5:5060");
        check(Transport::Udp, "127.0.0.1:5070", "sip:bob@127.0.0.1:5060");
        check(Transport::Udp, "[2001:db8::1]:5060", "sip:bob@[2001:db8::5]:5062");
        check(Transport::Tls, "198.51.100.1:5061", "sip:bob@203.0.113.9;transport=tls");
    }
}
