//! Registrations that live through what networks and registrars do: shortened intervals, a connection that falls silent,
//! another address of this machine.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use offhook::protocol::sip::admission::Trunk;
use offhook::protocol::sip::call::{CallCommand, CallEvent};
use offhook::protocol::sip::core::AccountRef;
use offhook::protocol::sip::registration::{RegistrationState, RegistrationStatus};
use offhook::transport::sip::{SipConfig, SipIncoming};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::{LIMIT, Node, Peer, config, field, next, uri};

const ACCOUNT: AccountRef = AccountRef(1);

/// What a registrar says that keeps the contact for `seconds`.
fn granted(request: &str, seconds: u64) -> String {
    let fields = ["Via", "From", "To", "Call-ID", "CSeq"].map(|name| format!("{name}: {}\n", field(request, name)));
    let contact = field(request, "Contact");
    let contact = contact.split(";expires").next().unwrap_or_default();
    format!("SIP/2.0 200 OK\n{}Contact: {contact};expires={seconds}\nContent-Length: 0\n\n", fields.concat())
}

async fn register(node: &Node, registrar: SocketAddr, transport: Option<&str>) {
    let mut at = uri(registrar, transport);
    at.user = None;
    node.sip.register(node.sip.account(ACCOUNT, "bob", at)).await.expect("the task runs");
}

async fn until(node: &Node, so: impl Fn(&RegistrationStatus) -> bool) -> RegistrationStatus {
    let mut all = node.sip.registrations();
    let found = timeout(LIMIT, all.wait_for(|all| all.get(&ACCOUNT).is_some_and(&so))).await;
    let found = found.unwrap_or_else(|_| panic!("{:?}", node.sip.registrations().borrow())).expect("the task runs");
    found[&ACCOUNT].clone()
}

fn is_well(status: &RegistrationStatus) -> bool {
    status.state == RegistrationState::Registered && status.last_error.is_none()
}

#[tokio::test]
async fn an_interval_that_the_registrar_shortens_is_kept_for_several_rounds() {
    const GRANTED: Duration = Duration::from_secs(8);
    let node = Node::start(config()).await;
    let registrar = Peer::new(node.sip.addrs().udp.unwrap()).await;
    register(&node, registrar.addr(), None).await;
    let first = registrar.hear_of("REGISTER").await;
    assert_eq!(field(&first, "Expires"), "120");
    registrar.say(&granted(&first, GRANTED.as_secs())).await;
    until(&node, is_well).await;
    let mut standing = node.sip.registrations();
    let watched = tokio::spawn(async move {
        let lost = standing.wait_for(|all| all.get(&ACCOUNT).is_none_or(|status| !is_well(status))).await;
        lost.map(|all| all.get(&ACCOUNT).cloned()).ok()
    });
    let mut last = Instant::now();
    for round in 1..=3 {
        let refresh = registrar.hear_of("REGISTER").await;
        let after = last.elapsed();
        last = Instant::now();
        println!("round {round}: refreshed {after:?} after the last, of {GRANTED:?}");
        assert!(after > GRANTED / 2 && after < GRANTED.mul_f64(0.9), "{after:?}");
        registrar.say(&granted(&refresh, GRANTED.as_secs())).await;
    }
    until(&node, |status| status.registered_until.is_some_and(|until| until > Instant::now() + GRANTED / 2)).await;
    assert!(!watched.is_finished(), "registered all the time: {:?}", watched.await);
    watched.abort();
}

async fn message(stream: &mut TcpStream, part: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    loop {
        let read = timeout(LIMIT, stream.read(&mut buffer)).await.expect("something comes").expect("a stream");
        assert!(read > 0, "closed after {text}");
        text += &String::from_utf8_lossy(&buffer[..read]);
        if text.contains(part) && text.ends_with("\r\n\r\n") {
            return text;
        }
    }
}

#[tokio::test]
async fn a_connection_that_falls_silent_is_left_for_another() {
    let node = Node::start(SipConfig { keep_alive_s: 1, ..config() }).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    register(&node, listener.local_addr().unwrap(), Some("tcp")).await;
    let (mut first, _) = timeout(LIMIT, listener.accept()).await.expect("a connection").unwrap();
    let request = message(&mut first, "REGISTER").await;
    first.write_all(granted(&request, 3600).replace('\n', "\r\n").as_bytes()).await.unwrap();
    until(&node, is_well).await;

    // From here on the peer is open and deaf, as one is whose firewall forgot the connection.
    message(&mut first, "OPTIONS").await;
    let failing = until(&node, |status| status.last_error.is_some()).await;
    assert_eq!(failing.state, RegistrationState::Failing, "its time still runs: {failing:?}");
    let (mut second, _) = timeout(LIMIT, listener.accept()).await.expect("another connection").unwrap();
    let request = message(&mut second, "REGISTER").await;
    second.write_all(granted(&request, 3600).replace('\n', "\r\n").as_bytes()).await.unwrap();
    until(&node, is_well).await;
    let mut rest = Vec::new();
    timeout(LIMIT, first.read_to_end(&mut rest)).await.expect("the old one is closed").unwrap();
}

/// Set in a process that has a network of its own, whose addresses it may change.
const INSIDE: &str = "OFFHOOK_TEST_NETWORK";

#[tokio::test]
async fn another_address_of_this_machine_registers_again_and_calls_follow() {
    if std::env::var_os(INSIDE).is_some() {
        return move_about().await;
    }
    let possible = Command::new("unshare").args(["-rn", "ip", "link", "set", "lo", "up"]).status();
    if !possible.is_ok_and(|status| status.success()) {
        println!("skipped: no network namespaces here");
        return;
    }
    let name = "registrations::another_address_of_this_machine_registers_again_and_calls_follow";
    let inside = Command::new("unshare")
        .arg("-rn")
        .arg(std::env::current_exe().expect("its path"))
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("it starts");
    assert!(inside.success(), "{inside}");
}

fn ip(order: &str) {
    let done = Command::new("ip").args(order.split(' ')).status().expect("ip starts");
    assert!(done.success(), "ip {order}");
}

/// A call of a trunk follows as a registration does.
async fn call_moves_about(leads_from: impl Fn(&str)) {
    let mut node = Node::start(SipConfig { listen: "0.0.0.0:0".parse().unwrap(), ..config() }).await;
    let peers = vec!["10.9.0.0/24".parse().expect("a prefix")];
    node.sip.set_trunks(vec![Trunk { id: 1, peers }]).await.expect("the task runs");
    let socket = UdpSocket::bind("10.9.0.1:0").await.unwrap();
    let peer = Peer { to: SocketAddr::new("10.9.0.2".parse().unwrap(), node.sip.addrs().udp.unwrap().port()), socket };
    peer.say(&peer.request("INVITE", "moves", "<sip:agent@offhook>")).await;
    let SipIncoming { mut call, .. } = node.incoming().await;
    call.command(CallCommand::Answer { body: Bytes::from_static(b"v=0 offer") }).await.unwrap();
    let ok = peer.hear_of("SIP/2.0 200").await;
    peer.say(&peer.request("ACK", "moves", &field(&ok, "To"))).await;
    assert_eq!(next(&mut call).await, CallEvent::Acked { answer: None });
    // Looked at every two seconds: this one is the first that has something to compare with.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    leads_from("10.9.0.3");
    let moved = Instant::now();
    assert_eq!(next(&mut call).await, CallEvent::Moved);
    println!("the call was told {:?} after the address changed", moved.elapsed());
    assert!(moved.elapsed() < Duration::from_secs(5), "{:?}", moved.elapsed());
    call.command(CallCommand::Offer { body: Bytes::from_static(b"v=0 moved") }).await.unwrap();
    let offer = peer.hear_of("INVITE").await;
    assert!(offer.ends_with("v=0 moved"), "{offer}");
    for name in ["Contact", "Via"] {
        assert!(field(&offer, name).contains("10.9.0.3:"), "{offer}");
    }
    drop(call);
    node.stop().await;
    leads_from("10.9.0.2");
}

async fn move_about() {
    ip("link set lo up");
    for last in 1..=3 {
        ip(&format!("addr add 10.9.0.{last}/32 dev lo"));
    }
    let leads_from = |own: &str| ip(&format!("route replace local 10.9.0.1 dev lo src {own} table local"));
    leads_from("10.9.0.2");
    call_moves_about(leads_from).await;
    let node = Node::start(SipConfig { listen: "0.0.0.0:0".parse().unwrap(), ..config() }).await;
    let socket = UdpSocket::bind("10.9.0.1:0").await.unwrap();
    let registrar =
        Peer { to: SocketAddr::new("10.9.0.2".parse().unwrap(), node.sip.addrs().udp.unwrap().port()), socket };
    register(&node, registrar.addr(), None).await;
    let request = registrar.hear_of("REGISTER").await;
    assert!(field(&request, "Contact").contains("bob@10.9.0.2:"), "{request}");
    registrar.say(&granted(&request, 3600)).await;
    until(&node, is_well).await;

    // Looked at every two seconds: this one is the first that has something to compare with.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    leads_from("10.9.0.3");
    let moved = Instant::now();
    let request = registrar.hear_of("REGISTER").await;
    println!("registered again {:?} after the address changed", moved.elapsed());
    assert!(moved.elapsed() < Duration::from_secs(4), "{:?}", moved.elapsed());
    let contacts: Vec<&str> = request.lines().filter(|line| line.starts_with("Contact: ")).collect();
    assert!(contacts[0].contains("bob@10.9.0.3:") && contacts[0].ends_with("expires=120"), "{contacts:?}");
    assert!(contacts[1].contains("bob@10.9.0.2:") && contacts[1].ends_with("expires=0"), "{contacts:?}");
    registrar.say(&granted(&request, 3600)).await;
    until(&node, is_well).await;

    ip("route del local 10.9.0.1 table local");
    let lost = until(&node, |status| status.last_error.is_some()).await;
    assert_eq!(lost.state, RegistrationState::Failing, "{lost:?}");
    assert_eq!(lost.last_error.as_deref(), Some("no network leads to the registrar"));
    leads_from("10.9.0.2");
    let back = Instant::now();
    let request = registrar.hear_of("REGISTER").await;
    println!("registered again {:?} after the network came back", back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(4), "{:?}", back.elapsed());
    registrar.say(&granted(&request, 3600)).await;
    until(&node, is_well).await;
}
