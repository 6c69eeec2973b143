//! SIPp, an independent implementation, against our endpoint. Debian has it as `sip-tester`; without it the tests say
//! "skipped". The scenarios are in `tests/sipp/`.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use bytes::Bytes;
use offhook::protocol::sip::admission::Trunk;
use offhook::protocol::sip::call::{CallCommand, CallEvent, Cause, Dial, Ended, Refusal};
use offhook::protocol::sip::core::AccountRef;
use offhook::protocol::sip::digest::Credentials;
use offhook::protocol::sip::registration::RegistrationState;
use offhook::protocol::sip::value::{NameAddr, SipUri};
use offhook::transport::sip::{SipCall, SipConfig, SipHandle, SipIncoming, start};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(40);

async fn endpoint() -> (SipHandle, mpsc::Receiver<SipIncoming>, CancellationToken, JoinHandle<()>) {
    let config = SipConfig { listen: "127.0.0.1:0".parse().expect("an address"), ..SipConfig::default() };
    let cancel = CancellationToken::new();
    let (sip, incoming, task) = start(&config, cancel.clone()).await.expect("SIP starts");
    let peers = vec!["127.0.0.1".parse().expect("a prefix")];
    sip.set_trunks(vec![Trunk { id: 1, peers }]).await.expect("the task runs");
    (sip, incoming, cancel, task)
}

/// `None`: SIPp is not there.
fn has_sipp() -> bool {
    let found =
        std::process::Command::new("sipp").arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        println!("skipped: sipp is not installed");
    }
    found
}

fn free_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("its address").port()
}

fn sipp(scenario: &str, port: u16, more: &[&str]) -> tokio::process::Command {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sipp");
    let mut command = tokio::process::Command::new("sipp");
    command.arg("-sf").arg(folder.join(scenario));
    command.args(["-i", "127.0.0.1", "-p", &port.to_string(), "-nostdin", "-timeout", "30", "-timeout_error"]);
    command.args(more).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

fn check(output: &Output) {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success(),
        "{}",
        text.chars().rev().take(6000).collect::<String>().chars().rev().collect::<String>()
    );
}

/// Does what a friendly callee does until the call is over.
async fn serve(SipIncoming { mut call, .. }: SipIncoming) -> Option<Ended> {
    let body = || Bytes::from_static(b"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=audio 40002 RTP/AVP 0\r\n");
    call.command(CallCommand::Ring { body: None }).await.ok()?;
    // Long enough for a CANCEL to come first.
    if let Ok(event) = timeout(Duration::from_millis(60), call.recv()).await {
        return event.and_then(ended);
    }
    call.command(CallCommand::Answer { body: body() }).await.ok()?;
    while let Some(event) = call.recv().await {
        match event {
            CallEvent::Offer { .. } | CallEvent::OfferWanted => {
                call.command(CallCommand::AnswerOffer { body: body() }).await.ok()?;
            }
            CallEvent::Refer { .. } => {
                call.command(CallCommand::AnswerRefer { accept: true }).await.ok()?;
                tokio::time::sleep(Duration::from_millis(100)).await;
                call.command(CallCommand::ReferProgress { status: 200 }).await.ok()?;
            }
            event => {
                if let Some(ended) = ended(event) {
                    return Some(ended);
                }
            }
        }
    }
    None
}

fn ended(event: CallEvent) -> Option<Ended> {
    match event {
        CallEvent::Ended(ended) => Some(ended),
        _ => None,
    }
}

/// Runs a calling scenario; how each of its calls ended here.
async fn called_by(scenario: &str, calls: usize, more: &[&str]) -> Vec<Cause> {
    let (sip, mut incoming, cancel, task) = endpoint().await;
    let to = sip.addrs().udp.expect("it listens").to_string();
    let count = calls.to_string();
    let more = [&["-s", "agent", "-m", &count], more, &[&to]].concat();
    let running = sipp(scenario, free_port(), &more).output();
    let serving = async {
        let (mut tasks, mut causes) = (JoinSet::new(), Vec::new());
        while causes.len() < calls {
            tokio::select! {
                Some(call) = incoming.recv() => { tasks.spawn(serve(call)); }
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                    causes.push(ended.expect("no panic").expect("the call ended").cause);
                }
            }
        }
        causes
    };
    let (output, causes) = timeout(LIMIT, async { tokio::join!(running, serving) }).await.expect("in time");
    check(&output.expect("sipp runs"));
    cancel.cancel();
    timeout(LIMIT, task).await.expect("the task ends").expect("without a panic");
    causes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sipp_calls_and_hangs_up() {
    if has_sipp() {
        assert_eq!(called_by("uac.xml", 50, &["-r", "50"]).await, [Cause::HungUp; 50]);
        assert_eq!(called_by("uac.xml", 20, &["-r", "50", "-t", "t1"]).await, [Cause::HungUp; 20]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sipp_cancels_holds_and_transfers() {
    if has_sipp() {
        assert_eq!(called_by("uac_cancel.xml", 10, &["-r", "20"]).await, [Cause::Cancelled; 10]);
        assert_eq!(called_by("uac_reinvite.xml", 10, &["-r", "20"]).await, [Cause::HungUp; 10]);
        assert_eq!(called_by("uac_refer.xml", 5, &["-r", "20"]).await, [Cause::HungUp; 5]);
    }
}

async fn dial(sip: &SipHandle, port: u16) -> SipCall {
    let dial = Dial {
        from: NameAddr::new(SipUri::new(Some("offhook"), "127.0.0.1", None)),
        uri: SipUri::new(Some("sipp"), "127.0.0.1", Some(port)),
        proxy: None,
        credentials: Some(Credentials { user: "bob".into(), password: "right".into() }),
        contact: None,
        headers: Vec::new(),
        body: Bytes::from_static(b"v=0\r\n"),
        ring_limit: None,
    };
    sip.dial(dial).await.expect("the call starts")
}

/// Waits until a UDP port is taken: SIPp listens.
async fn listens(port: u16) {
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    timeout(LIMIT, async {
        while UdpSocket::bind(addr).is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("sipp listens");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn we_call_sipp_with_and_without_a_password() {
    if !has_sipp() {
        return;
    }
    for scenario in ["uas.xml", "uas_auth.xml", "uas_busy.xml"] {
        let (sip, _incoming, _cancel, _task) = endpoint().await;
        let port = free_port();
        let running = tokio::spawn(sipp(scenario, port, &["-m", "1"]).output());
        listens(port).await;
        let mut call = dial(&sip, port).await;
        let mut events = Vec::new();
        while let Ok(Some(event)) = timeout(LIMIT, call.recv()).await {
            if matches!(event, CallEvent::Answered { .. }) {
                call.hang_up();
            }
            events.push(event);
        }
        let Some(CallEvent::Ended(ended)) = events.last() else { panic!("{scenario}: {events:?}") };
        let expected = if scenario == "uas_busy.xml" { Cause::Refused(Refusal::Busy) } else { Cause::HungUp };
        assert_eq!(ended.cause, expected, "{scenario}: {events:?}");
        check(&timeout(LIMIT, running).await.expect("in time").expect("no panic").expect("sipp runs"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn we_register_at_sipp_by_digest() {
    if !has_sipp() {
        return;
    }
    let (sip, _incoming, _cancel, _task) = endpoint().await;
    let port = free_port();
    let running = tokio::spawn(sipp("registrar.xml", port, &["-m", "1"]).output());
    listens(port).await;
    let mut account = sip.account(AccountRef(1), "bob", SipUri::new(None, "127.0.0.1", Some(port)));
    account.credentials = Some(Credentials { user: "bob".into(), password: "right".into() });
    sip.register(account).await.expect("the task runs");
    let mut registrations = sip.registrations();
    let status = timeout(
        LIMIT,
        registrations.wait_for(|all| all.values().any(|status| status.state == RegistrationState::Registered)),
    )
    .await
    .expect("in time")
    .expect("the task runs");
    assert_eq!(status[&AccountRef(1)].last_error, None);
    check(&timeout(LIMIT, running).await.expect("in time").expect("no panic").expect("sipp runs"));
}
