//! Kamailio between two endpoints of ours, as the registrar and proxy that a PBX would be. Debian has it as `kamailio`;
//! without it the test says "skipped".

use std::net::UdpSocket;
use std::time::Duration;

use bytes::Bytes;
use offhook::protocol::sip::admission::Admitted;
use offhook::protocol::sip::call::{CallCommand, CallEvent, Cause, Refusal, Side};
use offhook::protocol::sip::core::AccountRef;
use offhook::protocol::sip::digest::Credentials;
use offhook::protocol::sip::endpoint::AccountDial;
use offhook::protocol::sip::registration::RegistrationState;
use offhook::protocol::sip::value::SipUri;
use offhook::transport::sip::{SipCall, SipConfig, SipHandle, SipIncoming, start};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

#[path = "kamailio/process.rs"]
mod kamailio;

use kamailio::{Kamailio, PASSWORD};

const LIMIT: Duration = Duration::from_secs(30);
const ACCOUNT: AccountRef = AccountRef(1);

async fn endpoint() -> (SipHandle, mpsc::Receiver<SipIncoming>) {
    let mut config =
        SipConfig { listen: "127.0.0.1:0".parse().expect("an address"), keep_alive_s: 1, ..SipConfig::default() };
    config.limits.t1_ms = 50;
    let (sip, incoming, _) = start(&config, CancellationToken::new()).await.expect("SIP starts");
    (sip, incoming)
}

async fn register(sip: &SipHandle, port: u16, user: &str, password: &str, transport: Option<&str>) {
    let mut registrar = SipUri::new(None, "127.0.0.1", Some(port));
    if let Some(transport) = transport {
        registrar.params.set("transport", transport);
    }
    let mut account = sip.account(ACCOUNT, user, registrar);
    account.credentials = Some(Credentials { user: user.into(), password: password.into() });
    sip.register(account).await.expect("the task runs");
}

async fn is_registered(sip: &SipHandle, state: RegistrationState) -> Option<String> {
    let mut registrations = sip.registrations();
    let there = registrations.wait_for(|all| all.get(&ACCOUNT).is_some_and(|status| status.state == state));
    let status = timeout(LIMIT, there).await.expect("in time").expect("the task runs");
    status[&ACCOUNT].last_error.clone()
}

async fn dial(sip: &SipHandle, to: &str) -> SipCall {
    let dial = AccountDial {
        account: ACCOUNT,
        to: to.into(),
        display: String::new(),
        headers: vec![("X-Call".into(), "1".into())],
        offer: Bytes::from_static(b"v=0 offer"),
        ring_limit: None,
    };
    sip.dial_account(dial).await.expect("the call starts")
}

async fn next(call: &mut SipCall) -> CallEvent {
    timeout(LIMIT, call.recv()).await.expect("something happens").expect("the call lives")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_run_through_a_proxy_that_both_are_registered_at() {
    let port = free_port();
    let Some(kamailio) = Kamailio::start(port).await else { return };
    for transport in [None, Some("tcp")] {
        let (alice, _alice_calls) = endpoint().await;
        let (bob, mut bob_calls) = endpoint().await;
        register(&alice, kamailio.addr.port(), "alice", PASSWORD, transport).await;
        register(&bob, kamailio.addr.port(), "bob", PASSWORD, transport).await;
        assert_eq!(is_registered(&alice, RegistrationState::Registered).await, None);
        assert_eq!(is_registered(&bob, RegistrationState::Registered).await, None);

        let mut caller = dial(&alice, "bob").await;
        let SipIncoming { incoming, call: mut callee } =
            timeout(LIMIT, bob_calls.recv()).await.expect("a call comes").expect("the task runs");
        assert_eq!(incoming.admitted, Admitted::Account(ACCOUNT), "{transport:?}");
        callee.command(CallCommand::Answer { body: Bytes::from_static(b"v=0 answer") }).await.unwrap();
        assert_eq!(next(&mut caller).await, CallEvent::Answered { answer: Some(Bytes::from_static(b"v=0 answer")) });
        assert_eq!(next(&mut callee).await, CallEvent::Acked { answer: None });
        callee.command(CallCommand::Offer { body: Bytes::from_static(b"v=0 hold") }).await.unwrap();
        assert_eq!(next(&mut caller).await, CallEvent::Offer { offer: Bytes::from_static(b"v=0 hold") });
        caller.command(CallCommand::AnswerOffer { body: Bytes::from_static(b"v=0 held") }).await.unwrap();
        assert_eq!(next(&mut callee).await, CallEvent::OfferAnswered { answer: Some(Bytes::from_static(b"v=0 held")) });
        assert_eq!(next(&mut caller).await, CallEvent::Acked { answer: None });
        let ladder = bob.ladder(callee.id).await;
        assert!(ladder.iter().any(|rung| rung.text.contains("Record-Route")), "the proxy stays between");
        assert!(ladder.iter().all(|rung| rung.peer.addr.port() == kamailio.addr.port() || transport.is_some()));
        callee.hang_up();
        let CallEvent::Ended(ended) = next(&mut caller).await else { panic!("the call ended") };
        assert_eq!((ended.by, ended.cause), (Side::Peer, Cause::HungUp));

        // Given up while it rings.
        let caller = dial(&alice, "bob").await;
        let SipIncoming { call: mut callee, .. } =
            timeout(LIMIT, bob_calls.recv()).await.expect("a call comes").expect("the task runs");
        callee.command(CallCommand::Ring { body: None }).await.unwrap();
        drop(caller);
        let CallEvent::Ended(ended) = next(&mut callee).await else { panic!("the call ended") };
        assert_eq!(ended.cause, Cause::Cancelled);

        let mut nobody = dial(&alice, "carol").await;
        let CallEvent::Ended(ended) = next(&mut nobody).await else { panic!("the call ended") };
        assert_eq!(ended.cause, Cause::Refused(Refusal::NotFound));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_outlives_a_wrong_password_and_a_restart_of_its_registrar() {
    let port = free_port();
    let Some(kamailio) = Kamailio::start(port).await else { return };
    let (sip, _calls) = endpoint().await;
    register(&sip, port, "bob", "wrong", None).await;
    let error = is_registered(&sip, RegistrationState::Failed).await;
    assert_eq!(error.as_deref(), Some("401 user or password is wrong"));
    register(&sip, port, "bob", PASSWORD, None).await;
    is_registered(&sip, RegistrationState::Registered).await;

    // While it is gone OPTIONS finds nobody: that is an error in words, and the next try comes by itself.
    drop(kamailio);
    let mut registrations = sip.registrations();
    let gone = registrations.wait_for(|all| {
        all.get(&ACCOUNT).and_then(|status| status.last_error.as_ref()).is_some_and(|error| error.contains("answer"))
    });
    timeout(LIMIT, gone).await.expect("in time").expect("the task runs");
    let Some(_kamailio) = Kamailio::start(port).await else { return };
    let back = registrations.wait_for(|all| {
        all.get(&ACCOUNT)
            .is_some_and(|status| status.state == RegistrationState::Registered && status.last_error.is_none())
    });
    timeout(LIMIT, back).await.expect("in time").expect("the task runs");
}

fn free_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("its address").port()
}
