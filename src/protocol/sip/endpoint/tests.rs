//! Endpoints that talk over a simulated network, and peers played by the test, in virtual time.

use std::net::SocketAddr;

use super::*;
use crate::protocol::sip::call::{Cause, Ended, Refusal, Side, Warning};
use crate::protocol::sip::core::{Addresses, Limits};
use crate::protocol::sip::registration::RegistrationState;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;
/// A peer that the test plays.
const PEER: &str = "192.0.2.99:5060";

struct Node {
    addr: SocketAddr,
    endpoint: Endpoint,
    events: Vec<Event>,
    abandoned: Vec<Target>,
}

type Loses = Box<dyn FnMut(&str, usize) -> bool>;

struct World {
    t0: Instant,
    now: Instant,
    nodes: Vec<Node>,
    wire: Vec<(Instant, Target, SocketAddr, Bytes)>,
    latency: Duration,
    /// Whether a message is lost: its start line, and how many came before it.
    loses: Loses,
    carried: usize,
    /// What came to addresses without an endpoint.
    mail: Vec<(Duration, String)>,
    log: Vec<String>,
    transport: Transport,
}

impl World {
    /// Endpoints at 192.0.2.1, .2 and so on, which let each other's calls in.
    fn new(nodes: usize) -> Self {
        Self::with(nodes, |_| {})
    }

    fn with(nodes: usize, set: impl Fn(&mut Options)) -> Self {
        let t0 = Instant::now();
        let nodes = (0..nodes).map(|number| {
            let addr: SocketAddr = format!("192.0.2.{}:5060", number + 1).parse().unwrap();
            let mut options = Options {
                addresses: Addresses { v4: Some(addr.ip()), udp_port: 5060, tcp_port: 5060, ..Addresses::default() },
                ..Options::default()
            };
            set(&mut options);
            let mut endpoint = Endpoint::new(t0, options, [number as u8 + 1; 32]);
            endpoint.set_trunks(vec![Trunk { id: 7, peers: vec!["192.0.2.0/24".parse().unwrap()] }]);
            Node { addr, endpoint, events: Vec::new(), abandoned: Vec::new() }
        });
        Self {
            t0,
            now: t0,
            nodes: nodes.collect(),
            wire: Vec::new(),
            latency: ms(10),
            loses: Box::new(|_, _| false),
            carried: 0,
            mail: Vec::new(),
            log: Vec::new(),
            transport: Transport::Udp,
        }
    }

    fn endpoint(&mut self, node: usize) -> &mut Endpoint {
        &mut self.nodes[node].endpoint
    }

    /// Takes what the endpoints want done.
    fn collect(&mut self) {
        for node in &mut self.nodes {
            while let Some(output) = node.endpoint.poll() {
                match output {
                    Output::Event(event) => node.events.push(event),
                    Output::Resolve(resolve) => panic!("nothing has a name here: {resolve:?}"),
                    Output::Abandon(target) => node.abandoned.push(target),
                    Output::Send(send) => {
                        let text = String::from_utf8_lossy(&send.bytes).into_owned();
                        let line = text.lines().next().unwrap_or_default().to_owned();
                        let at = self.now - self.t0;
                        self.log.push(format!(
                            "{:>6} {} > {} {line}",
                            at.as_millis(),
                            node.addr.ip(),
                            send.target.addr
                        ));
                        let lost = (self.loses)(&line, self.carried);
                        self.carried += 1;
                        if !lost {
                            let from = Target::new(send.target.transport, node.addr);
                            self.wire.push((self.now + self.latency, from, send.target.addr, send.bytes));
                        }
                    }
                }
            }
        }
    }

    /// Runs until `at` after the start.
    fn run(&mut self, at: Duration) {
        let until = self.t0 + at;
        loop {
            self.collect();
            let deadlines = self.nodes.iter().filter_map(|node| node.endpoint.deadline());
            let next = deadlines.chain(self.wire.iter().map(|(at, ..)| *at)).min();
            let Some(next) = next.filter(|next| *next <= until) else { break };
            self.now = self.now.max(next);
            let mut due: Vec<_> = self.wire.extract_if(.., |(at, ..)| *at <= next).collect();
            due.sort_by_key(|(at, ..)| *at);
            for (_, from, to, bytes) in due {
                self.deliver(&from, to, bytes);
            }
            for node in &mut self.nodes {
                if node.endpoint.deadline().is_some_and(|at| at <= self.now) {
                    node.endpoint.on_tick(self.now);
                }
            }
        }
        self.now = until;
    }

    fn deliver(&mut self, from: &Target, to: SocketAddr, bytes: Bytes) {
        match self.nodes.iter_mut().find(|node| node.addr == to) {
            Some(node) => node.endpoint.on_bytes(self.now, from, &bytes),
            None => self.mail.push((self.now - self.t0, String::from_utf8_lossy(&bytes).into_owned())),
        }
    }

    /// Runs for `wait` more.
    fn wait(&mut self, wait: Duration) {
        self.run(self.now - self.t0 + wait);
    }

    /// The test says `text` to node A from `from`.
    fn say_from(&mut self, from: &str, text: &str) {
        let from = Target::new(self.transport, from.parse().unwrap());
        let text = text.replace("\r\n", "\n").replace('\n', "\r\n");
        let now = self.now;
        self.nodes[A].endpoint.on_bytes(now, &from, &Bytes::from(text));
        self.wait(self.latency * 2);
    }

    fn say(&mut self, text: &str) {
        self.say_from(PEER, text);
    }

    /// What the test's peer got since it last looked.
    fn heard(&mut self) -> Vec<String> {
        self.mail.drain(..).map(|(_, text)| text).collect()
    }

    fn dial(&mut self, from: usize, to: usize) -> CallRef {
        let to = self.nodes[to].addr.ip().to_string();
        self.dial_host(from, &to, &[])
    }

    fn dial_host(&mut self, from: usize, host: &str, headers: &[(&str, &str)]) -> CallRef {
        let own = self.nodes[from].addr.ip().to_string();
        let mut uri = SipUri::new(Some("agent"), host, None);
        if self.transport == Transport::Tcp {
            uri.params.set("transport", "tcp");
        }
        let dial = Dial {
            uri,
            from: NameAddr::new(SipUri::new(Some("caller"), own, None)),
            proxy: None,
            credentials: Some(Credentials { user: "bob".into(), password: "right".into() }),
            contact: None,
            headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            body: Bytes::from_static(b"v=0 offer"),
            ring_limit: None,
        };
        let now = self.now;
        self.endpoint(from).dial(now, dial).unwrap()
    }

    fn command(&mut self, node: usize, call: CallRef, command: CallCommand) {
        let now = self.now;
        self.endpoint(node).on_command(now, call, command);
    }

    /// Takes the inbound call of a node.
    fn incoming(&mut self, node: usize) -> Incoming {
        let at = self.nodes[node].events.iter().position(|event| matches!(event, Event::Incoming(_)));
        match self.nodes[node].events.remove(at.unwrap_or_else(|| panic!("no call came:\n{}", self.log.join("\n")))) {
            Event::Incoming(incoming) => *incoming,
            _ => unreachable!(),
        }
    }

    /// Takes what happened on a call.
    fn events(&mut self, node: usize, call: CallRef) -> Vec<CallEvent> {
        let is_its = |event: &mut Event| matches!(event, Event::Call { call: own, .. } if *own == call);
        let taken: Vec<Event> = self.nodes[node].events.extract_if(.., is_its).collect();
        taken
            .into_iter()
            .map(|event| match event {
                Event::Call { event, .. } => event,
                _ => unreachable!(),
            })
            .collect()
    }

    fn ended(&mut self, node: usize, call: CallRef) -> Option<Ended> {
        self.events(node, call).into_iter().find_map(|event| match event {
            CallEvent::Ended(ended) => Some(ended),
            _ => None,
        })
    }

    /// A call from A to B that stands.
    fn call(&mut self) -> (CallRef, CallRef) {
        let a = self.dial(A, B);
        self.wait(ms(40));
        let b = self.incoming(B).call;
        self.command(B, b, CallCommand::Answer { body: Bytes::from_static(b"v=0 answer") });
        self.wait(ms(40));
        let answer = Some(Bytes::from_static(b"v=0 answer"));
        assert_eq!(self.events(A, a), [CallEvent::Answered { answer }]);
        assert_eq!(self.events(B, b), [CallEvent::Acked { answer: None }]);
        (a, b)
    }

    fn hang_up(&mut self, node: usize, call: CallRef) {
        self.command(node, call, CallCommand::HangUp);
    }

    /// Nothing is left anywhere once every timer has run out.
    fn nothing_is_left(&mut self) {
        self.wait(secs(300));
        for node in &self.nodes {
            let (calls, transactions, _) = node.endpoint.held();
            assert_eq!((calls, transactions), (0, 0), "at {}:\n{}", node.addr, self.log.join("\n"));
        }
    }

    fn count(&self, part: &str) -> usize {
        self.log.iter().filter(|line| line.contains(part)).count()
    }
}

fn body(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[test]
fn a_call_rings_is_answered_and_hung_up_by_either_side() {
    for hangs_up in [A, B] {
        let mut world = World::new(2);
        let a = world.dial(A, B);
        world.wait(ms(40));
        let incoming = world.incoming(B);
        assert_eq!(incoming.offer.as_deref(), Some(&b"v=0 offer"[..]));
        assert_eq!((incoming.admitted, incoming.from.uri.user()), (Admitted::Trunk(7), "caller".into()));
        let b = incoming.call;
        world.command(B, b, CallCommand::Ring { body: None });
        world.wait(ms(40));
        world.command(B, b, CallCommand::Ring { body: Some(body("v=0 early")) });
        world.wait(ms(40));
        world.command(B, b, CallCommand::Answer { body: body("v=0 answer") });
        world.wait(ms(40));
        assert_eq!(
            world.events(A, a),
            [
                CallEvent::Ringing,
                CallEvent::EarlyMedia { answer: body("v=0 early") },
                CallEvent::Answered { answer: Some(body("v=0 answer")) },
            ]
        );
        assert_eq!(world.events(B, b), [CallEvent::Acked { answer: None }]);
        let (own, other) = if hangs_up == A { ((A, a), (B, b)) } else { ((B, b), (A, a)) };
        world.hang_up(own.0, own.1);
        world.wait(ms(40));
        assert_eq!(world.ended(own.0, own.1).unwrap().by, Side::Us);
        assert_eq!(world.ended(other.0, other.1).unwrap().by, Side::Peer);
        world.nothing_is_left();
        let closed = world.nodes[A].events.iter().find_map(|event| match event {
            Event::Closed { ladder, .. } => Some(ladder.clone()),
            _ => None,
        });
        let ladder = closed.unwrap();
        let lines: Vec<_> = ladder.iter().map(|rung| rung.text.lines().next().unwrap()).collect();
        assert!(lines[0].starts_with("INVITE") && lines.iter().any(|line| line.starts_with("BYE")), "{lines:?}");
        assert!(ladder[0].sent && !ladder[1].sent);
    }
}

#[test]
fn a_call_over_tcp_goes_by_one_connection() {
    let mut world = World::new(2);
    world.transport = Transport::Tcp;
    let (a, b) = world.call();
    world.hang_up(B, b);
    world.wait(ms(40));
    assert_eq!(world.ended(A, a).unwrap().cause, Cause::HungUp);
    world.nothing_is_left();
}

#[test]
fn calls_survive_the_loss_of_every_third_message() {
    for seed in 0..20 {
        let mut world = World::new(2);
        world.loses = Box::new(move |_, number| (number * 7 + seed) % 3 == 0);
        let a = world.dial(A, B);
        world.wait(secs(20));
        let b = world.incoming(B).call;
        world.command(B, b, CallCommand::Ring { body: None });
        world.command(B, b, CallCommand::Answer { body: body("v=0 answer") });
        world.wait(secs(20));
        assert!(
            world.events(A, a).contains(&CallEvent::Answered { answer: Some(body("v=0 answer")) }),
            "{}",
            world.log.join("\n")
        );
        assert_eq!(world.events(B, b), [CallEvent::Acked { answer: None }], "{}", world.log.join("\n"));
        world.hang_up(A, a);
        world.wait(secs(20));
        assert_eq!(world.ended(B, b).unwrap().cause, Cause::HungUp);
        world.nothing_is_left();
    }
}

#[test]
fn random_loss_and_commands_leave_no_call_behind() {
    use rand::RngExt as _;
    for seed in 0..60_u64 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new(2);
        let mut lossy = StdRng::seed_from_u64(seed + 1000);
        world.loses = Box::new(move |_, _| lossy.random_bool(0.3));
        let mut calls = vec![(A, world.dial(A, B)), (B, world.dial(B, A))];
        for _ in 0..30 {
            world.wait(ms(rng.random_range(0..3000)));
            for node in [A, B] {
                let came = world.nodes[node].events.iter().filter_map(|event| match event {
                    Event::Incoming(incoming) => Some((node, incoming.call)),
                    _ => None,
                });
                let came: Vec<_> = came.collect();
                world.nodes[node].events.retain(|event| !matches!(event, Event::Incoming(_)));
                calls.extend(came);
            }
            let (node, call) = calls[rng.random_range(0..calls.len())];
            let text = body("v=0 random");
            let command = match rng.random_range(0..12) {
                0 => CallCommand::Ring { body: None },
                1 => CallCommand::Ring { body: Some(text) },
                2..=4 => CallCommand::Answer { body: text },
                5 => CallCommand::Refuse { status: 486 },
                6 => CallCommand::Offer { body: text },
                7 => CallCommand::AnswerOffer { body: text },
                8 => CallCommand::RefuseOffer { status: 488 },
                9 => CallCommand::Dtmf { digit: '5', duration_ms: 100 },
                10 => CallCommand::Refer { to: "sip:x@192.0.2.3".into(), replaces: None },
                _ => CallCommand::AnswerRefer { accept: true },
            };
            world.command(node, call, command);
        }
        for (node, call) in calls.clone() {
            world.hang_up(node, call);
        }
        world.nothing_is_left();
        for (node, call) in calls {
            let ends = world.events(node, call).iter().filter(|event| matches!(event, CallEvent::Ended(_))).count();
            assert_eq!(ends, 1, "seed {seed}: each call ends once");
        }
    }
}

#[test]
fn a_cancelled_call_ends_on_both_sides_whenever_the_cancel_comes() {
    // The answer is on its way from 100 ms on; before 20 ms the INVITE has not even arrived.
    for cancel_at in (0..200).step_by(5) {
        let mut world = World::new(2);
        let a = world.dial(A, B);
        let mut steps = vec![(ms(cancel_at), true), (ms(100), false)];
        steps.sort();
        let mut b = None;
        for (at, cancels) in steps {
            world.run(at);
            if cancels {
                world.hang_up(A, a);
            } else if world.nodes[B].events.iter().any(|event| matches!(event, Event::Incoming(_))) {
                let call = world.incoming(B).call;
                world.command(B, call, CallCommand::Answer { body: body("v=0 answer") });
                b = Some(call);
            }
        }
        world.nothing_is_left();
        assert_eq!(world.ended(A, a).unwrap().by, Side::Us, "{cancel_at}");
        if let Some(b) = b {
            let ended = world.ended(B, b).unwrap();
            assert!(matches!(ended.cause, Cause::Cancelled | Cause::HungUp), "{cancel_at}: {ended:?}");
        }
    }
}

#[test]
fn an_answer_without_ack_is_repeated_for_32_seconds_and_then_hung_up_even_over_tcp() {
    for transport in [Transport::Udp, Transport::Tcp] {
        let mut world = World::new(2);
        world.transport = transport;
        world.loses = Box::new(|line, _| line.starts_with("ACK"));
        world.dial(A, B);
        world.wait(ms(40));
        let b = world.incoming(B).call;
        world.command(B, b, CallCommand::Answer { body: body("v=0 answer") });
        world.wait(secs(31));
        assert_eq!(world.events(B, b), []);
        // 0, 0.5, 1.5, 3.5 s, and then every four seconds.
        assert_eq!(world.count("SIP/2.0 200"), 10, "{}", world.log.join("\n"));
        assert_eq!(world.count("ACK"), 10);
        world.wait(secs(2));
        let ended = world.ended(B, b).unwrap();
        assert_eq!((ended.by, ended.cause), (Side::Nobody, Cause::NoAck));
        assert_eq!(world.count("BYE"), 1);
        world.nothing_is_left();
    }
}

#[test]
fn a_late_ack_is_taken_and_a_hang_up_waits_for_it() {
    let mut world = World::new(2);
    world.loses = Box::new(|line, number| line.starts_with("ACK") && number < 12);
    let a = world.dial(A, B);
    world.wait(ms(40));
    let b = world.incoming(B).call;
    world.command(B, b, CallCommand::Answer { body: body("v=0 answer") });
    world.wait(ms(300));
    world.hang_up(B, b);
    world.wait(ms(200));
    assert_eq!(world.count("BYE"), 0, "a callee may not say BYE before the ACK");
    world.wait(secs(20));
    assert_eq!(world.count("BYE"), 1);
    assert_eq!(world.ended(A, a).unwrap().by, Side::Peer);
    world.nothing_is_left();
}

#[test]
fn refusals_are_told_as_what_they_mean() {
    for (status, refusal) in [
        (486, Refusal::Busy),
        (603, Refusal::Declined),
        (480, Refusal::NoAnswer),
        (404, Refusal::NotFound),
        (403, Refusal::Forbidden),
        (500, Refusal::Failed),
    ] {
        let mut world = World::new(2);
        let a = world.dial(A, B);
        world.wait(ms(40));
        let b = world.incoming(B).call;
        world.command(B, b, CallCommand::Refuse { status });
        world.wait(ms(40));
        let ended = world.ended(A, a).unwrap();
        assert_eq!((ended.by, ended.cause, ended.status), (Side::Peer, Cause::Refused(refusal), Some(status)));
        assert_eq!(world.ended(B, b).unwrap().cause, Cause::Declined);
        world.nothing_is_left();
    }
}

#[test]
fn a_call_that_nobody_answers_is_cancelled_at_its_limit() {
    let mut world = World::with(2, |options| options.ring_limit = secs(400));
    world.nodes[A].endpoint.core.options.ring_limit = secs(60);
    let a = world.dial(A, B);
    world.wait(ms(40));
    let b = world.incoming(B).call;
    world.command(B, b, CallCommand::Ring { body: None });
    world.wait(secs(61));
    assert_eq!(world.ended(A, a).unwrap().cause, Cause::NoAnswer);
    assert_eq!(world.ended(B, b).unwrap().cause, Cause::Cancelled);
    assert_eq!(world.count("CANCEL"), 1);
    world.nothing_is_left();
}

#[test]
fn an_unanswered_user_refuses_at_the_limit_and_a_dead_host_is_unreachable() {
    let mut world = World::with(2, |options| options.ring_limit = secs(400));
    world.nodes[B].endpoint.core.options.ring_limit = secs(60);
    let a = world.dial(A, B);
    let dead = world.dial_host(A, "192.0.2.77", &[]);
    world.wait(secs(61));
    assert_eq!(world.ended(A, a).unwrap().cause, Cause::Refused(Refusal::NoAnswer));
    assert_eq!(world.ended(A, dead).unwrap().cause, Cause::Unreachable);
    world.nothing_is_left();
}

#[test]
fn sessions_are_changed_by_either_side() {
    let mut world = World::new(2);
    let (a, b) = world.call();
    for (from, own, to, other) in [(A, a, B, b), (B, b, A, a)] {
        world.command(from, own, CallCommand::Offer { body: body("v=0 hold") });
        world.wait(ms(40));
        assert_eq!(world.events(to, other), [CallEvent::Offer { offer: body("v=0 hold") }]);
        world.command(to, other, CallCommand::AnswerOffer { body: body("v=0 held") });
        world.wait(ms(40));
        assert_eq!(world.events(from, own), [CallEvent::OfferAnswered { answer: Some(body("v=0 held")) }]);
        assert_eq!(world.events(to, other), [CallEvent::Acked { answer: None }]);
        world.command(from, own, CallCommand::Offer { body: body("v=0 video") });
        world.wait(ms(40));
        world.events(to, other);
        world.command(to, other, CallCommand::RefuseOffer { status: 488 });
        world.wait(ms(40));
        assert_eq!(world.events(from, own), [CallEvent::OfferRefused { status: 488 }]);
    }
    world.hang_up(A, a);
    world.nothing_is_left();
}

#[test]
fn offers_that_cross_are_refused_and_made_again_one_after_the_other() {
    let mut world = World::new(2);
    let (a, b) = world.call();
    world.command(A, a, CallCommand::Offer { body: body("v=0 of a") });
    world.command(B, b, CallCommand::Offer { body: body("v=0 of b") });
    world.wait(ms(40));
    assert_eq!(world.count("SIP/2.0 491"), 2);
    for _ in 0..100 {
        world.wait(ms(100));
        for (node, call) in [(A, a), (B, b)] {
            let asks = |event: &Event| matches!(event, Event::Call { event: CallEvent::Offer { .. }, .. });
            if world.nodes[node].events.iter().any(asks) {
                world.nodes[node].events.retain(|event| !asks(event));
                world.command(node, call, CallCommand::AnswerOffer { body: body("v=0 yes") });
            }
        }
    }
    for (node, call) in [(A, a), (B, b)] {
        let answer = Some(body("v=0 yes"));
        assert!(world.events(node, call).contains(&CallEvent::OfferAnswered { answer }), "{}", world.log.join("\n"));
    }
    world.hang_up(A, a);
    world.nothing_is_left();
}

#[test]
fn a_session_is_refreshed_for_hours_and_given_up_when_the_peer_is_gone() {
    let mut world = World::with(2, |options| options.session_interval = secs(120));
    let (a, b) = world.call();
    world.wait(secs(7200));
    assert_eq!((world.events(A, a), world.events(B, b)), (vec![], vec![]));
    // Every minute one refresh.
    assert!((110..=130).contains(&world.count("UPDATE")), "{}", world.count("UPDATE"));
    world.loses = Box::new(|_, _| true);
    world.wait(secs(130));
    assert_eq!(world.ended(A, a).unwrap().cause, Cause::SessionExpired);
    assert_eq!(world.ended(B, b).unwrap().cause, Cause::SessionExpired);
    world.nothing_is_left();
}

#[test]
fn an_interval_that_is_too_short_is_refused_and_made_longer() {
    let mut world = World::with(2, |options| options.session_interval = secs(60));
    world.nodes[B].endpoint.core.options.min_session = secs(100);
    world.nodes[A].endpoint.core.options.min_session = secs(30);
    let (a, _) = world.call();
    assert_eq!((world.count("SIP/2.0 422"), world.count("INVITE")), (1, 2));
    world.hang_up(A, a);
    world.nothing_is_left();
}

#[test]
fn keys_travel_by_info() {
    let mut world = World::new(2);
    let (a, b) = world.call();
    world.command(A, a, CallCommand::Dtmf { digit: '#', duration_ms: 120 });
    world.wait(ms(40));
    assert_eq!(world.events(B, b), [CallEvent::Dtmf { digit: '#', duration_ms: 120 }]);
}

#[test]
fn a_blind_transfer_is_asked_for_and_reported() {
    let mut world = World::new(2);
    let (a, b) = world.call();
    world.command(A, a, CallCommand::Refer { to: "sip:person@192.0.2.3".into(), replaces: None });
    world.wait(ms(40));
    let CallEvent::Refer { to, replaces, referred_by } = world.events(B, b).remove(0) else { panic!() };
    assert_eq!((to.as_str(), replaces), ("sip:person@192.0.2.3", None));
    assert!(referred_by.unwrap().contains("sip:caller@192.0.2.1"));
    world.command(B, b, CallCommand::AnswerRefer { accept: true });
    world.wait(ms(40));
    world.command(B, b, CallCommand::ReferProgress { status: 180 });
    world.wait(ms(40));
    world.command(B, b, CallCommand::ReferProgress { status: 200 });
    world.wait(ms(40));
    let transfer = |status, done| CallEvent::Transfer { status, done };
    assert_eq!(world.events(A, a), [transfer(100, false), transfer(180, false), transfer(200, true)]);
    world.hang_up(A, a);
    world.nothing_is_left();
}

#[test]
fn a_transfer_that_is_declined_or_never_reported_ends_all_the_same() {
    let mut world = World::new(2);
    let (a, b) = world.call();
    let refer = || CallCommand::Refer { to: "sip:person@192.0.2.3".into(), replaces: None };
    world.command(A, a, refer());
    world.wait(ms(40));
    world.command(B, b, CallCommand::AnswerRefer { accept: false });
    world.wait(ms(40));
    assert_eq!(world.events(A, a), [CallEvent::Transfer { status: 603, done: true }]);
    world.command(A, a, refer());
    world.wait(secs(30));
    assert_eq!(world.events(A, a), [CallEvent::Transfer { status: 603, done: true }], "nobody answered the REFER");
    world.events(B, b);
    world.command(A, a, refer());
    world.wait(ms(40));
    world.command(B, b, CallCommand::AnswerRefer { accept: true });
    world.wait(secs(100));
    assert_eq!(world.events(A, a).last(), Some(&CallEvent::Transfer { status: 408, done: true }));
}

#[test]
fn an_attended_transfer_puts_one_call_in_the_place_of_another() {
    let mut world = World::new(3);
    let (a_to_b, b) = world.call();
    let a_to_c = world.dial(A, C);
    world.wait(ms(40));
    let c_from_a = world.incoming(C).call;
    world.command(C, c_from_a, CallCommand::Answer { body: body("v=0 c") });
    world.wait(ms(40));
    let now = world.now;
    world.endpoint(A).refer_to_call(now, a_to_b, a_to_c, None);
    world.wait(ms(40));
    let CallEvent::Refer { to, replaces, .. } = world.events(B, b).remove(0) else { panic!() };
    assert!(to.contains("192.0.2.3"), "{to}");
    world.command(B, b, CallCommand::AnswerRefer { accept: true });
    let replaces = replaces.unwrap();
    world.dial_host(B, "192.0.2.3", &[("Replaces", &replaces)]);
    world.wait(ms(40));
    let incoming = world.incoming(C);
    assert_eq!(incoming.replaces, Some(c_from_a));
    world.command(C, incoming.call, CallCommand::Answer { body: body("v=0 c2") });
    world.wait(ms(40));
    assert_eq!(world.ended(C, c_from_a).unwrap().cause, Cause::Replaced);
    assert_eq!(world.ended(A, a_to_c).unwrap().cause, Cause::HungUp);
    world.dial_host(B, "192.0.2.3", &[("Replaces", "nothing;to-tag=1;from-tag=2")]);
    world.wait(ms(40));
    assert_eq!(world.count("SIP/2.0 481"), 1);
}

#[test]
fn a_call_by_digest_is_let_in_with_the_right_password_only() {
    for (password, user) in [("right", Some("bob")), ("other", None)] {
        let mut world = World::new(2);
        let credentials = Credentials { user: "bob".into(), password: password.into() };
        world.endpoint(B).set_trunks(Vec::new());
        world.endpoint(B).set_users(vec![credentials]);
        let a = world.dial(A, B);
        world.wait(ms(60));
        match user {
            Some(user) => {
                let incoming = world.incoming(B);
                assert_eq!(incoming.admitted, Admitted::User(user.into()));
                assert!(incoming.headers.iter().all(|(name, _)| name != "Authorization"));
                world.command(B, incoming.call, CallCommand::Answer { body: body("v=0") });
                world.wait(ms(40));
                let closed = world.endpoint(B).ladder(incoming.call);
                assert!(closed.iter().all(|rung| !rung.text.contains("response=")));
            }
            None => assert_eq!(world.ended(A, a).unwrap().cause, Cause::Refused(Refusal::Forbidden)),
        }
    }
}

// Peers played by the test.

const INVITE: &str = "INVITE sip:agent@192.0.2.1 SIP/2.0
Via: SIP/2.0/UDP 192.0.2.99;branch=z9hG4bKi1;rport
From: <sip:peer@192.0.2.99>;tag=p
To: <sip:agent@192.0.2.1>
Call-ID: c1
CSeq: 5 INVITE
Contact: <sip:peer@192.0.2.99>
Content-Type: application/sdp

v=0
";

fn field(message: &str, name: &str) -> String {
    let start = format!("{name}: ");
    message.lines().find_map(|line| line.strip_prefix(start.as_str())).unwrap_or_default().trim().to_owned()
}

fn status(message: &str) -> u16 {
    message.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// A request inside the call of `INVITE`, whose To the 200 gave.
fn inside(method: &str, seq: u32, to: &str, branch: &str, more: &str) -> String {
    format!(
        "{method} sip:agent@192.0.2.1 SIP/2.0\nVia: SIP/2.0/UDP 192.0.2.99;branch=z9hG4bK{branch};rport\n\
         From: <sip:peer@192.0.2.99>;tag=p\nTo: {to}\nCall-ID: c1\nCSeq: {seq} {method}\n\
         Contact: <sip:peer@192.0.2.99>\n{more}\n"
    )
}

/// An answered call from the peer; its call and the To of the dialog.
fn answered(world: &mut World) -> (CallRef, String) {
    world.say(INVITE);
    let call = world.incoming(A).call;
    world.command(A, call, CallCommand::Answer { body: body("v=0 answer") });
    world.wait(ms(20));
    let ok = world.heard().pop().unwrap();
    assert_eq!(status(&ok), 200);
    let to = field(&ok, "To");
    world.say(&inside("ACK", 5, &to, "a1", ""));
    assert_eq!(world.events(A, call), [CallEvent::Acked { answer: None }]);
    (call, to)
}

#[test]
fn every_fault_inside_and_outside_a_call_has_its_status() {
    let mut world = World::new(1);
    let (call, to) = answered(&mut world);
    let check = |world: &mut World, text: &str, expected: u16| {
        world.say(text);
        let mut heard = world.heard();
        heard.retain(|message| status(message) != 100);
        let first = heard.first().map(|message| status(message));
        assert_eq!(first, Some(expected), "{text}\n{heard:?}");
        heard[0].clone()
    };
    let update = inside("UPDATE", 7, &to, "b1", "");
    check(&mut world, &update, 200);
    check(&mut world, &inside("INFO", 6, &to, "b2", ""), 500);
    check(&mut world, &inside("INFO", 7, &to, "b3", ""), 500);
    check(&mut world, &inside("INFO", 8, &to, "b4", "Content-Type: text/x\n\nbody"), 415);
    check(&mut world, &inside("NOTIFY", 9, &to, "b5", "Event: dialog\n"), 489);
    check(&mut world, &inside("NOTIFY", 10, &to, "b6", "Event: refer\n"), 481);
    check(&mut world, &inside("PRACK", 11, &to, "b7", "RAck: 1 5 INVITE\n"), 481);
    check(&mut world, &inside("REFER", 12, &to, "b8", ""), 400);
    check(&mut world, &inside("FOO", 13, &to, "b9", ""), 405);
    check(&mut world, &inside("INFO", 14, &to, "b10", "Require: magic\n"), 420);
    check(&mut world, &inside("INFO", 15, "<sip:agent@192.0.2.1>;tag=other", "b11", ""), 481);
    check(&mut world, &inside("BYE", 15, "<sip:agent@192.0.2.1>;tag=other", "b12", ""), 481);
    check(&mut world, &inside("CANCEL", 15, &to, "b13", ""), 481);
    // A re-INVITE beside one that is open: 500 with Retry-After.
    let sdp = "Content-Type: application/sdp\n\nv=0 again";
    world.say(&inside("INVITE", 20, &to, "b14", sdp));
    world.heard();
    let again = check(&mut world, &inside("UPDATE", 21, &to, "b15", sdp), 500);
    assert!(!field(&again, "Retry-After").is_empty());
    world.command(A, call, CallCommand::RefuseOffer { status: 488 });
    world.wait(ms(20));
    assert_eq!(status(&world.heard()[0]), 488);
    world.say(&inside("ACK", 20, &to, "b14", ""));
    // A re-INVITE while ours is open: 491.
    world.command(A, call, CallCommand::Offer { body: body("v=0 ours") });
    world.wait(ms(20));
    world.heard();
    check(&mut world, &inside("INVITE", 22, &to, "b16", sdp), 491);
    check(&mut world, &inside("BYE", 23, &to, "b17", ""), 200);
    assert_eq!(world.ended(A, call).unwrap().by, Side::Peer);
    // The same request by another way.
    world.say(&INVITE.replace("c1", "c2").replace("z9hG4bKi1", "z9hG4bKi0"));
    world.heard();
    check(&mut world, &INVITE.replace("c1", "c2").replace("z9hG4bKi1", "z9hG4bKi2"), 482);
    check(&mut world, &inside("SUBSCRIBE", 1, "<sip:agent@192.0.2.1>", "b18", ""), 405);
    check(&mut world, &inside("MESSAGE", 1, "<sip:agent@192.0.2.1>", "b19", ""), 405);
    check(&mut world, &inside("BYE", 1, "<sip:agent@192.0.2.1>", "b20", ""), 481);
    check(&mut world, &inside("OPTIONS", 1, "<sip:agent@192.0.2.1>", "b21", ""), 200);
}

#[test]
fn an_unknown_request_after_ours_is_refused_is_no_obstacle_to_the_next() {
    let mut world = World::new(1);
    let (call, to) = answered(&mut world);
    world.say(&inside("BYE", 6, &to, "x", ""));
    assert_eq!(world.ended(A, call).unwrap().cause, Cause::HungUp);
    world.say(&INVITE.replace("c1", "c9").replace("i1", "i9"));
    world.incoming(A);
}

#[test]
fn an_ack_without_our_tag_confirms_the_call_of_an_old_peer() {
    let mut world = World::new(1);
    world.say(INVITE);
    let call = world.incoming(A).call;
    world.command(A, call, CallCommand::Answer { body: body("v=0 answer") });
    world.wait(ms(20));
    world.say(&inside("ACK", 5, "<sip:agent@192.0.2.1>", "a1", ""));
    assert_eq!(world.events(A, call), [CallEvent::Acked { answer: None }]);
}

#[test]
fn an_invite_without_offer_gets_ours_and_its_answer_comes_with_the_ack() {
    let mut world = World::new(1);
    let bare = INVITE.replace("Content-Type: application/sdp\n\nv=0\n", "\n");
    world.say(&bare);
    let incoming = world.incoming(A);
    assert_eq!(incoming.offer, None);
    world.command(A, incoming.call, CallCommand::Answer { body: body("v=0 our offer") });
    world.wait(ms(20));
    let to = field(&world.heard().pop().unwrap(), "To");
    world.say(&inside("ACK", 5, &to, "a1", "Content-Type: application/sdp\n\nv=0 theirs"));
    assert_eq!(world.events(A, incoming.call), [CallEvent::Acked { answer: Some(body("v=0 theirs\r\n")) }]);
    world.say(&inside("INVITE", 6, &to, "a2", ""));
    assert_eq!(world.events(A, incoming.call), [CallEvent::OfferWanted]);
}

#[test]
fn a_caller_that_asks_for_prack_gets_reliable_responses_in_order() {
    let mut world = World::new(1);
    world.say(&INVITE.replace("CSeq: 5 INVITE", "CSeq: 5 INVITE\nRequire: 100rel"));
    let call = world.incoming(A).call;
    world.heard();
    world.command(A, call, CallCommand::Ring { body: Some(body("v=0 early")) });
    world.command(A, call, CallCommand::Answer { body: body("v=0 answer") });
    world.wait(ms(3600));
    let heard = world.heard();
    assert_eq!(heard.iter().map(|message| status(message)).collect::<Vec<_>>(), [183; 4], "0, 0.5, 1.5, 3.5 s");
    let (to, rseq) = (field(&heard[0], "To"), field(&heard[0], "RSeq"));
    assert_eq!(field(&heard[0], "Require"), "100rel");
    world.say(&inside("PRACK", 6, &to, "p1", &format!("RAck: {rseq} 4 INVITE\n")));
    assert_eq!(status(&world.heard()[0]), 481);
    world.say(&inside("PRACK", 7, &to, "p2", &format!("RAck: {rseq} 5 INVITE\n")));
    let heard = world.heard();
    assert_eq!(heard.iter().map(|message| status(message)).collect::<Vec<_>>(), [200, 200]);
    assert_eq!((field(&heard[0], "CSeq").as_str(), field(&heard[1], "CSeq").as_str()), ("7 PRACK", "5 INVITE"));
    // One that never confirms loses its call.
    world.say(
        &INVITE.replace("CSeq: 5 INVITE", "CSeq: 5 INVITE\nRequire: 100rel").replace("c1", "c2").replace("i1", "i2"),
    );
    let call = world.incoming(A).call;
    world.command(A, call, CallCommand::Ring { body: None });
    world.wait(secs(33));
    assert_eq!(world.ended(A, call).unwrap().cause, Cause::NoAck);
    assert!(world.heard().iter().any(|message| status(message) == 504));
}

/// An INVITE of ours to the peer, and the text of a response to it.
fn ring_peer(world: &mut World) -> (CallRef, String) {
    let call = world.dial_host(A, "192.0.2.99", &[]);
    world.wait(ms(20));
    (call, world.heard().pop().unwrap())
}

fn reply(request: &str, status: &str, tag: &str, more: &str) -> String {
    let (via, from, to) = (field(request, "Via"), field(request, "From"), field(request, "To"));
    let (id, cseq) = (field(request, "Call-ID"), field(request, "CSeq"));
    let to = if to.contains("tag=") { to } else { format!("{to};tag={tag}") };
    format!(
        "SIP/2.0 {status}\nVia: {via}\nFrom: {from}\nTo: {to}\nCall-ID: {id}\nCSeq: {cseq}\n\
         Contact: <sip:x@192.0.2.99>\n{more}\n"
    )
}

#[test]
fn reliable_responses_are_confirmed_once_each() {
    let mut world = World::new(1);
    let (call, invite) = ring_peer(&mut world);
    let early = |rseq: u32| {
        let more = format!("Require: 100rel\nRSeq: {rseq}\nContent-Type: application/sdp\n\nv=0 e{rseq}");
        reply(&invite, "183 Progress", "t", &more)
    };
    world.say(&early(10));
    let prack = world.heard().remove(0);
    assert!(prack.starts_with("PRACK sip:x@192.0.2.99"), "{prack}");
    assert_eq!(field(&prack, "RAck"), "10 1 INVITE");
    world.say(&reply(&prack, "200 OK", "t", ""));
    world.say(&early(10));
    world.say(&early(12));
    assert_eq!(world.heard(), Vec::<String>::new(), "a repetition, and one out of order");
    world.say(&early(11));
    assert_eq!(field(&world.heard()[0], "RAck"), "11 1 INVITE");
    assert_eq!(world.events(A, call).len(), 2);
    world.say(&reply(&invite, "200 OK", "t", "Content-Type: application/sdp\n\nv=0"));
    let ack = world.heard().remove(0);
    assert_eq!(field(&ack, "CSeq"), "1 ACK");
    world.hang_up(A, call);
    world.wait(ms(20));
    assert_eq!(field(&world.heard()[0], "CSeq"), "4 BYE", "the numbers of PRACK are used up");
}

#[test]
fn a_second_answer_of_a_fork_is_confirmed_and_hung_up() {
    let mut world = World::new(1);
    let (call, invite) = ring_peer(&mut world);
    world.say(&reply(&invite, "180 Ringing", "one", ""));
    world.say(&reply(&invite, "180 Ringing", "two", ""));
    world.say(&reply(&invite, "200 OK", "two", "Content-Type: application/sdp\n\nv=0"));
    world.heard();
    world.say(&reply(&invite, "200 OK", "one", ""));
    let heard = world.heard();
    assert!(heard[0].starts_with("ACK") && heard[1].starts_with("BYE"), "{heard:?}");
    assert!(heard.iter().all(|message| field(message, "To").contains("tag=one")));
    world.say(&reply(&invite, "200 OK", "two", ""));
    world.say(&reply(&invite, "200 OK", "one", ""));
    let heard = world.heard();
    assert_eq!(heard.iter().filter(|message| message.starts_with("ACK")).count(), 2, "{heard:?}");
    assert_eq!(world.events(A, call).iter().filter(|event| matches!(event, CallEvent::Answered { .. })).count(), 1);
}

#[test]
fn a_challenged_invite_is_sent_again_with_an_answer_and_refused_without_a_password() {
    let mut world = World::new(1);
    let (call, invite) = ring_peer(&mut world);
    let challenge = |request: &str| {
        let more = "WWW-Authenticate: Digest realm=\"r\", nonce=\"n\", algorithm=SHA-256, qop=\"auth\"\n\
                    WWW-Authenticate: Digest realm=\"r\", nonce=\"n\", algorithm=MD5, qop=\"auth\"\n";
        reply(request, "401 Unauthorized", "t", more)
    };
    world.say(&challenge(&invite));
    let heard = world.heard();
    assert!(heard[0].starts_with("ACK"), "{heard:?}");
    let second = &heard[1];
    assert!(field(second, "Authorization").contains("SHA-256"), "{second}");
    assert_eq!(field(second, "CSeq"), "2 INVITE");
    assert_eq!(field(second, "From"), field(&invite, "From"));
    world.say(&challenge(second));
    let ended = world.ended(A, call).unwrap();
    assert_eq!((ended.cause, ended.text.as_str()), (Cause::Refused(Refusal::Forbidden), "user or password is wrong"));
}

#[test]
fn a_call_that_has_moved_is_followed_once_and_only_at_the_host_that_was_called() {
    let moved = |request: &str, to: &str| {
        reply(request, "302 Moved Temporarily", "t", "").replace("<sip:x@192.0.2.99>", &format!("<{to}>"))
    };
    let mut world = World::new(1);
    let (call, invite) = ring_peer(&mut world);
    let called = invite.split_whitespace().nth(1).expect("a request URI").to_owned();
    let other = called.replacen("agent", "night", 1);
    assert_ne!(called, other);
    world.say(&moved(&invite, &other));
    let heard = world.heard();
    assert!(heard[0].starts_with("ACK") && heard[1].starts_with(&format!("INVITE {other} ")), "{heard:?}");
    assert_eq!(field(&heard[1], "CSeq"), "2 INVITE");
    assert_eq!((field(&heard[1], "To"), field(&heard[1], "From")), (field(&invite, "To"), field(&invite, "From")));
    world.say(&moved(&heard[1], &called));
    let ended = world.ended(A, call).expect("it is not followed for ever");
    assert_eq!((ended.cause, ended.status), (Cause::Refused(Refusal::Failed), Some(302)));

    for elsewhere in ["sip:night@203.0.113.77", "tel:+19005550000", "nothing", "sips:night@203.0.113.77:9"] {
        let mut world = World::new(1);
        let (call, invite) = ring_peer(&mut world);
        world.say(&moved(&invite, elsewhere));
        assert!(world.heard().iter().all(|message| !message.starts_with("INVITE")), "{elsewhere}");
        assert_eq!(world.ended(A, call).map(|ended| ended.status), Some(Some(302)), "{elsewhere}");
    }
}

#[test]
fn a_peer_that_lost_the_call_ends_it() {
    let mut world = World::new(1);
    let (call, to) = answered(&mut world);
    let _ = to;
    world.command(A, call, CallCommand::Offer { body: body("v=0 ours") });
    world.wait(ms(20));
    let invite = world.heard().pop().unwrap();
    world.say(&reply(&invite, "481 Gone", "p", ""));
    assert_eq!(world.ended(A, call).unwrap().cause, Cause::Lost);
}

#[test]
fn strangers_are_refused_a_few_times_and_then_not_at_all() {
    let mut world = World::new(1);
    world.endpoint(A).set_trunks(Vec::new());
    for number in 0..1000 {
        let invite = INVITE.replace("c1", &format!("s{number}")).replace("i1", &format!("s{number}"));
        let now = world.now;
        let from = Target::new(Transport::Udp, "198.51.100.66:5060".parse().unwrap());
        world.endpoint(A).on_bytes(now, &from, &Bytes::from(invite.replace('\n', "\r\n")));
    }
    world.wait(ms(40));
    let statuses: Vec<u16> = world.heard().iter().map(|message| status(message)).collect();
    assert_eq!(statuses, [403; 10]);
    assert_eq!(world.endpoint(A).held(), (0, 0, 1));
    let stats = world.endpoint(A).stats();
    assert_eq!((stats.refused, stats.silenced), (1000, 990));
}

#[test]
fn three_hundred_thousand_invites_take_no_memory_and_others_are_answered() {
    let mut world = World::with(1, |options| {
        options.limits = Limits { max_calls: 50, max_calls_per_peer: 40, ..Limits::default() };
    });
    let flooder = Target::new(Transport::Udp, "192.0.2.66:5060".parse().unwrap());
    let head = INVITE.replace('\n', "\r\n");
    for number in 0..300_000 {
        let invite = head.replace("c1", &format!("f{number}")).replace("z9hG4bKi1", &format!("z9hG4bKf{number}"));
        // 100,000 a second.
        let now = world.now + Duration::from_micros(10 * number);
        let endpoint = world.endpoint(A);
        endpoint.on_bytes(now, &flooder, &Bytes::from(invite));
        while endpoint.poll().is_some() {}
    }
    world.now += secs(3);
    let (calls, transactions, peers) = world.endpoint(A).held();
    assert_eq!((calls, peers), (40, 1));
    assert!(transactions <= 40, "{transactions}");
    let stats = world.endpoint(A).stats();
    assert!(stats.flooded > 250_000 && stats.overloaded > 5000, "{stats:?}");
    world.say(INVITE);
    let call = world.incoming(A).call;
    world.command(A, call, CallCommand::Answer { body: body("v=0") });
    world.say(&inside("OPTIONS", 1, "<sip:agent@192.0.2.1>", "o", ""));
    assert!(world.heard().iter().filter(|message| status(message) == 200).count() >= 2);
    world.nothing_is_left();
}

#[test]
fn above_the_limits_the_answer_is_503_and_when_we_stop_too() {
    let mut world = World::with(1, |options| {
        options.limits = Limits { max_calls: 1, ..Limits::default() };
    });
    world.say(INVITE);
    world.heard();
    let second = INVITE.replace("c1", "c2").replace("i1", "i2");
    world.say(&second);
    let heard = world.heard();
    assert_eq!((status(&heard[0]), field(&heard[0], "Retry-After").as_str()), (503, "5"));
    world.say(&second);
    assert_eq!(world.heard(), heard, "answered without memory, and the same again");
    world.endpoint(A).set_takes_calls(false);
    world.say(&inside("OPTIONS", 1, "<sip:agent@192.0.2.1>", "o", ""));
    assert_eq!(status(&world.heard()[0]), 503);
}

#[test]
fn broken_connections_end_what_waits_on_them() {
    let mut world = World::new(1);
    world.transport = Transport::Tcp;
    let call = world.dial_host(A, "192.0.2.99", &[]);
    world.wait(ms(20));
    let (now, peer) = (world.now, Target::new(Transport::Tcp, PEER.parse().unwrap()));
    world.endpoint(A).on_connection_lost(now, &peer, "closed");
    world.collect();
    assert_eq!(world.ended(A, call).unwrap().cause, Cause::Unreachable);
}

// Registration.

const ACCOUNT: AccountRef = AccountRef(3);

fn account(password: &str) -> Account {
    let mut registrar = SipUri::new(None, "192.0.2.99", None);
    registrar.user = None;
    let credentials = Some(Credentials { user: "bob".into(), password: password.into() });
    Account { credentials, ..Account::new(ACCOUNT, "bob", registrar) }
}

fn register(world: &mut World, password: &str) {
    let now = world.now;
    world.endpoint(A).register(now, account(password));
    world.wait(ms(20));
}

fn registered(world: &mut World) -> RegistrationStatus {
    world.endpoint(A).registration(ACCOUNT).unwrap()
}

const CHALLENGE: &str = "WWW-Authenticate: Digest realm=\"r\", nonce=\"n1\", algorithm=MD5, qop=\"auth\"\n";

/// Answers what came: REGISTER by `how`, OPTIONS by 200.
fn serve(world: &mut World, mut how: impl FnMut(&str) -> Option<String>) -> usize {
    let mut registers = 0;
    for message in world.heard() {
        if message.starts_with("REGISTER") {
            registers += 1;
            if let Some(answer) = how(&message) {
                world.say(&answer);
            }
        } else if message.starts_with("OPTIONS") {
            world.say(&reply(&message, "200 OK", "r", ""));
        }
    }
    registers
}

/// 200 that grants the contact of the request for `seconds`.
fn grant(request: &str, seconds: u32) -> Option<String> {
    let contact = field(request, "Contact");
    let contact = contact.split(";expires").next().unwrap();
    let answer = reply(request, "200 OK", "r", "").replace("Contact: <sip:x@192.0.2.99>\n", "");
    Some(format!("{}Contact: {contact};expires={seconds}\n\n", answer.trim_end_matches('\n').to_owned() + "\n"))
}

#[test]
fn an_account_is_registered_with_a_challenge_refreshed_in_time_and_kept_alive() {
    let mut world = World::new(1);
    register(&mut world, "right");
    serve(&mut world, |request| Some(reply(request, "401 Unauthorized", "r", CHALLENGE)));
    let mut nonces = 0;
    serve(&mut world, |request| {
        nonces += usize::from(field(request, "Authorization").contains("nc=00000001"));
        grant(request, 60)
    });
    assert_eq!(nonces, 1);
    let status = registered(&mut world);
    assert_eq!((status.state, status.last_error), (RegistrationState::Registered, None));
    let mut refreshes = 0;
    for _ in 0..3000 {
        world.wait(ms(200));
        refreshes += serve(&mut world, |request| grant(request, 60));
        assert_eq!(registered(&mut world).state, RegistrationState::Registered);
    }
    // Each after 45 to 48 s of 60: the registrar shortened what we asked for.
    assert!((12..=14).contains(&refreshes), "{refreshes}");
    assert!(world.count("OPTIONS") >= 15);
}

#[test]
fn an_interval_that_is_too_brief_is_made_longer() {
    let mut world = World::new(1);
    register(&mut world, "right");
    serve(&mut world, |request| Some(reply(request, "423 Interval Too Brief", "r", "Min-Expires: 3600\n")));
    serve(&mut world, |request| {
        assert_eq!(field(request, "Expires"), "3600");
        grant(request, 3600)
    });
    let until = registered(&mut world).registered_until.unwrap();
    assert!(until > world.now + secs(3590));
}

#[test]
fn a_wrong_password_is_said_in_words_and_the_right_one_is_taken_at_once() {
    let mut world = World::new(1);
    register(&mut world, "wrong");
    for _ in 0..2 {
        serve(&mut world, |request| Some(reply(request, "401 Unauthorized", "r", CHALLENGE)));
    }
    let status = registered(&mut world);
    assert_eq!(status.state, RegistrationState::Failed);
    assert_eq!(status.last_error.as_deref(), Some("401 user or password is wrong"));
    assert!(status.next_try.unwrap() >= world.now + secs(23), "a ban is not provoked");
    register(&mut world, "right");
    serve(&mut world, |request| Some(reply(request, "401 Unauthorized", "r", &CHALLENGE.replace("n1", "n2"))));
    serve(&mut world, |request| grant(request, 60));
    assert_eq!(registered(&mut world).state, RegistrationState::Registered);
}

#[test]
fn a_network_that_is_gone_for_minutes_is_tried_again_and_found() {
    let mut world = World::new(1);
    register(&mut world, "right");
    serve(&mut world, |request| grant(request, 60));
    for _ in 0..240 {
        world.wait(secs(1));
        world.heard();
    }
    let status = registered(&mut world);
    assert_ne!(status.state, RegistrationState::Registered);
    assert!(status.last_error.unwrap().contains("does not answer"));
    let back = world.now;
    while registered(&mut world).state != RegistrationState::Registered {
        world.wait(ms(200));
        serve(&mut world, |request| grant(request, 60));
        assert!(world.now < back + secs(75), "{}", world.log.join("\n"));
    }
}

#[test]
fn a_registration_whose_registrar_is_silent_is_failing_while_its_time_runs_and_then_failed() {
    let mut world = World::new(1);
    register(&mut world, "right");
    serve(&mut world, |request| grant(request, 120));
    assert_eq!(registered(&mut world).state, RegistrationState::Registered);
    // The keep-alive goes out after 30 s and is given up after 32 s more.
    world.wait(secs(61));
    world.heard();
    assert_eq!(registered(&mut world).state, RegistrationState::Registered);
    world.wait(secs(3));
    world.heard();
    let status = registered(&mut world);
    assert_eq!(status.state, RegistrationState::Failing, "{status:?}");
    assert!(status.last_error.unwrap().contains("does not answer") && status.registered_until.is_some());
    world.wait(secs(60));
    world.heard();
    assert_eq!(registered(&mut world).registered_until, None);
    assert!(registered(&mut world).last_error.is_some());
}

#[test]
fn a_keep_alive_that_is_lost_during_a_refresh_is_told_too() {
    let mut world = World::new(1);
    register(&mut world, "right");
    // Refreshed after 30 to 32 s, the OPTIONS after 30 s unanswered until 62 s: the registration has run out by then.
    serve(&mut world, |request| grant(request, 40));
    world.wait(ms(62_100));
    world.heard();
    let status = registered(&mut world);
    assert!(status.last_error.as_deref().unwrap_or_default().contains("does not answer"), "{status:?}");
}

#[test]
fn another_address_of_ours_is_registered_at_once_and_the_old_one_taken_back() {
    let mut world = World::new(1);
    register(&mut world, "right");
    serve(&mut world, |request| grant(request, 3600));
    let now = world.now;
    let moved = Addresses { v4: Some("192.0.2.77".parse().unwrap()), udp_port: 5060, ..Addresses::default() };
    let endpoint = world.endpoint(A);
    endpoint.on_route_lost(now, "192.0.2.99".parse().unwrap());
    let status = registered(&mut world);
    assert_eq!(status.state, RegistrationState::Failing);
    assert!(status.last_error.unwrap().contains("no network"));
    let endpoint = world.endpoint(A);
    endpoint.set_addresses(moved);
    endpoint.on_network_change(now);
    world.wait(ms(20));
    let mut contacts = Vec::new();
    serve(&mut world, |request| {
        contacts = request.lines().filter(|line| line.starts_with("Contact:")).map(str::to_owned).collect();
        grant(request, 3600)
    });
    assert_eq!(contacts.len(), 2, "{contacts:?}");
    assert!(contacts[0].contains("192.0.2.77") && contacts[0].ends_with("expires=120"), "{contacts:?}");
    assert!(contacts[1].contains("192.0.2.1:") && contacts[1].ends_with("expires=0"), "{contacts:?}");
    let status = registered(&mut world);
    assert_eq!((status.state, status.last_error), (RegistrationState::Registered, None));
    assert_eq!(world.nodes[A].abandoned, [], "UDP has no connections");
}

#[test]
fn calls_follow_another_address_of_ours_one_after_the_other() {
    let mut world = World::new(2);
    let calls: Vec<(CallRef, CallRef)> = (0..5).map(|_| world.call()).collect();
    let moved = |ip: &str| Addresses { v4: Some(ip.parse().unwrap()), udp_port: 5060, ..Addresses::default() };
    let now = world.now;
    world.endpoint(A).on_new_addresses(now, moved("192.0.2.1"));
    world.wait(secs(3));
    assert!(calls.iter().all(|(a, _)| world.events(A, *a).is_empty()), "the same address");

    let now = world.now;
    world.endpoint(A).on_new_addresses(now, moved("192.0.2.77"));
    world.wait(MOVE_AFTER + MOVE_EVERY + ms(20));
    let told = |world: &mut World| calls.iter().filter(|(a, _)| world.events(A, *a) == [CallEvent::Moved]).count();
    assert_eq!(told(&mut world), 2, "20 in a second");
    world.wait(MOVE_EVERY * 3);
    assert_eq!(told(&mut world), 3, "each once");
    let (a, b) = calls[0];
    world.nodes[A].addr = "192.0.2.77:5060".parse().unwrap();
    world.command(A, a, CallCommand::Offer { body: body("v=0 moved") });
    world.wait(ms(40));
    assert_eq!(world.events(B, b), [CallEvent::Offer { offer: body("v=0 moved") }]);
    world.command(B, b, CallCommand::AnswerOffer { body: body("v=0 seen") });
    world.wait(ms(40));
    assert_eq!(world.events(A, a), [CallEvent::OfferAnswered { answer: Some(body("v=0 seen")) }]);
    world.hang_up(B, b);
    world.wait(ms(40));
    assert!(world.log.iter().any(|line| line.contains("192.0.2.2 > 192.0.2.77:5060 BYE")), "{}", world.log.join("\n"));
    assert_eq!(world.ended(A, a).unwrap().cause, Cause::HungUp);
}

#[test]
fn a_call_that_is_busy_with_an_offer_follows_behind_it() {
    let mut world = World::new(2);
    let (a, b) = world.call();
    world.command(B, b, CallCommand::Offer { body: body("v=0 hold") });
    world.wait(ms(20));
    assert_eq!(world.events(A, a), [CallEvent::Offer { offer: body("v=0 hold") }]);
    let moved = Addresses { v4: Some("192.0.2.77".parse().unwrap()), udp_port: 5060, ..Addresses::default() };
    let now = world.now;
    world.endpoint(A).on_new_addresses(now, moved);
    world.wait(secs(3));
    assert_eq!(world.events(A, a), [], "the peer waits for an answer");
    world.command(A, a, CallCommand::AnswerOffer { body: body("v=0 held") });
    world.wait(ms(100));
    assert_eq!(world.events(A, a), [CallEvent::Acked { answer: None }, CallEvent::Moved]);
}

#[test]
fn a_refused_description_is_told_why_before_and_in_a_call() {
    let warning = Warning { code: 301, text: "Incompatible network address formats" };
    let refusal = || CallCommand::RefuseMedia { status: 488, warning };
    let warned = |world: &World, text: &[Rung]| {
        let refused = text.iter().filter(|rung| rung.text.starts_with("SIP/2.0 488"));
        let lines: Vec<&str> =
            refused.filter_map(|rung| rung.text.lines().find(|l| l.starts_with("Warning"))).collect();
        assert_eq!(
            lines,
            ["Warning: 301 offhook \"Incompatible network address formats\""],
            "{}",
            world.log.join("\n")
        );
    };
    let mut world = World::new(2);
    let a = world.dial(A, B);
    world.wait(ms(40));
    let b = world.incoming(B).call;
    world.command(B, b, refusal());
    world.wait(ms(40));
    assert_eq!(world.ended(A, a).unwrap().status, Some(488));
    let closed = world.nodes[A].events.iter().find_map(|event| match event {
        Event::Closed { ladder, .. } => Some(ladder.clone()),
        _ => None,
    });
    warned(&world, &closed.expect("it is over"));

    let (a, b) = world.call();
    world.command(A, a, CallCommand::Offer { body: body("v=0 other") });
    world.wait(ms(40));
    world.events(B, b);
    world.command(B, b, refusal());
    world.wait(ms(40));
    assert_eq!(world.events(A, a), [CallEvent::OfferRefused { status: 488 }]);
    let ladder = world.endpoint(A).ladder(a);
    warned(&world, &ladder);
}

#[test]
fn a_connection_on_which_the_registrar_is_silent_is_abandoned() {
    let mut world = World::new(1);
    world.transport = Transport::Tcp;
    let now = world.now;
    let mut tcp = account("right");
    tcp.registrar.params.set("transport", "tcp");
    world.endpoint(A).register(now, tcp);
    world.wait(ms(20));
    serve(&mut world, |request| grant(request, 3600));
    world.wait(secs(64));
    world.heard();
    assert_eq!(world.nodes[A].abandoned, [Target::new(Transport::Tcp, PEER.parse().unwrap())]);
}

#[test]
fn a_registrar_that_restarts_over_tcp_is_registered_with_again() {
    let mut world = World::new(1);
    world.transport = Transport::Tcp;
    let now = world.now;
    let mut tcp = account("right");
    tcp.registrar.params.set("transport", "tcp");
    world.endpoint(A).register(now, tcp);
    world.wait(ms(20));
    serve(&mut world, |request| grant(request, 60));
    assert_eq!(registered(&mut world).state, RegistrationState::Registered);
    let (now, peer) = (world.now, Target::new(Transport::Tcp, PEER.parse().unwrap()));
    world.endpoint(A).on_connection_lost(now, &peer, "closed");
    assert_eq!(registered(&mut world).state, RegistrationState::Failed);
    world.wait(secs(3));
    serve(&mut world, |request| grant(request, 60));
    assert_eq!(registered(&mut world).state, RegistrationState::Registered);
}

#[test]
fn behind_a_nat_the_address_that_the_registrar_sees_is_registered() {
    let mut world = World::with(1, |options| options.addresses.v4 = Some("10.0.0.5".parse().unwrap()));
    register(&mut world, "right");
    let seen = |request: &str| request.replace(";rport", ";rport=4321;received=203.0.113.9");
    serve(&mut world, |request| grant(&seen(request), 60));
    let mut contacts = Vec::new();
    serve(&mut world, |request| {
        contacts = request.lines().filter(|line| line.starts_with("Contact")).map(str::to_owned).collect();
        grant(&seen(request), 60)
    });
    assert_eq!(
        contacts,
        ["Contact: <sip:bob@203.0.113.9:4321>;expires=120", "Contact: <sip:bob@10.0.0.5:5060>;expires=0"]
    );
    assert_eq!(serve(&mut world, |request| grant(request, 60)), 0, "once is enough");
}

#[test]
fn calls_come_in_by_the_account_from_its_registrar_alone() {
    let mut world = World::new(1);
    world.endpoint(A).set_trunks(Vec::new());
    let to_bob = INVITE.replace("sip:agent@192.0.2.1 SIP", "sip:bob@192.0.2.1 SIP");
    register(&mut world, "right");
    serve(&mut world, |request| grant(request, 60));
    world.say(&to_bob);
    assert_eq!(world.incoming(A).admitted, Admitted::Account(ACCOUNT));
    world.heard();
    world.say(&to_bob.replace("bob", "eve").replace("c1", "c2").replace("i1", "i2"));
    assert_eq!(status(&world.heard()[0]), 403);
    world.say_from("198.51.100.1:5060", &to_bob.replace("c1", "c3").replace("i1", "i3"));
    assert_eq!(status(&world.heard()[0]), 403);
}

#[test]
fn calls_go_out_by_the_account_and_unregistering_says_so() {
    let mut world = World::new(1);
    register(&mut world, "right");
    serve(&mut world, |request| grant(request, 60));
    let dial = |to: &str| AccountDial {
        account: ACCOUNT,
        to: to.into(),
        display: "Acme \"AI\"".into(),
        headers: vec![
            ("X-Ref".into(), "7\r\nX-Evil: 1".into()),
            ("From".into(), "<sip:eve@x>".into()),
            ("X-Evil: 1\r\nX".into(), "8".into()),
        ],
        offer: body("v=0"),
        ring_limit: None,
    };
    let now = world.now;
    world.endpoint(A).dial_account(now, dial("+380501234567")).unwrap();
    world.wait(ms(20));
    let invite = world.heard().pop().unwrap();
    assert!(invite.starts_with("INVITE sip:+380501234567@192.0.2.99 SIP/2.0"), "{invite}");
    assert!(field(&invite, "From").starts_with("\"Acme \\\"AI\\\"\" <sip:bob@192.0.2.99>;tag="));
    assert!(field(&invite, "X-Ref").starts_with('7') && field(&invite, "X-Evil").is_empty(), "{invite}");
    assert!(!invite.contains("eve"));
    for wrong in ["", "a b", "sip:", "x\r\nY: z"] {
        assert_eq!(world.endpoint(A).dial_account(now, dial(wrong)), Err(DialError::BadTarget), "{wrong}");
    }
    let now = world.now;
    world.endpoint(A).unregister(now, ACCOUNT);
    world.wait(ms(20));
    serve(&mut world, |request| {
        assert_eq!(field(request, "Expires"), "0");
        Some(reply(request, "200 OK", "r", ""))
    });
    assert_eq!(world.endpoint(A).registration(ACCOUNT), None);
    let last = world.nodes[A].events.iter().rev().find_map(|event| match event {
        Event::Registration { status, .. } => Some(status.state),
        _ => None,
    });
    assert_eq!(last, Some(RegistrationState::Unregistered));
}
