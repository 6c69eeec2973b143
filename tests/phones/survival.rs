//! What is lost in mid-call or for a minute: the network, the peer, media alone, signalling alone. No call lives on without
//! anybody, its ports come back, and a registration returns by itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use offhook::config::Config;
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::accounts::{AI, standing, telephone, trunk_credentials};
use crate::baresip::{Baresip, Set, loudness};
use crate::caller::Caller;
use crate::common::{Cast, quick, voice_ms};
use crate::kamailio::{Kamailio, PASSWORD};
use crate::stores::Base;
use crate::talks::{line_uri, trunk};
use crate::whole::{Company, Whole, front_desk, id, items, text, until};
use crate::{free_port, on_loopback};

/// Seconds without media after which a call is given up here.
const MEDIA_TIMEOUT_S: u64 = 2;

fn quick_to_give_up(config: &mut Config) {
    on_loopback(config);
    config.sip.rtp.media_timeout_s = MEDIA_TIMEOUT_S;
}

/// The call that is talked on.
async fn live(company: &Company) -> Uuid {
    let call = until("the call is talked on", async || {
        let call = company.calls().await.into_iter().find(|call| call["ended_at"].is_null())?;
        call["answered_at"].is_string().then_some(call)
    });
    id(&call.await)
}

/// Everything that a call held has been given back.
async fn nothing_is_left(whole: &Whole, free: usize) {
    until("no call is live", async || (whole.app.calls.active() == 0).then_some(())).await;
    until("the ports come back", async || (whole.app.sip.free_ports() == free).then_some(())).await;
}

fn no_media() -> Value {
    json!({ "by": "carrier", "reason": "no_media" })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_telephone_that_is_killed_in_mid_call_leaves_nothing_behind() {
    let whole = Whole::start(Base::sqlite(), Cast::new(quick()), quick_to_give_up).await;
    let company = trunk(&whole, front_desk()).await;
    let uri = line_uri(&whole).await;
    let free = whole.app.sip.free_ports();
    let set = Set { account: "<sip:+380501234567@127.0.0.1>;regint=0", says: &[0; 800], codec: "PCMU/8000/1" };
    let Some(mut phone) = Baresip::start(set).await else { return };
    phone.dial(&uri).await;
    phone.event("CALL_ESTABLISHED").await;
    let call = live(&company).await;
    phone.kill().await;
    let killed = Instant::now();
    let record = company.record(call).await;
    println!("closed {:?} after the telephone was killed", killed.elapsed());
    assert_eq!(record["end"], no_media(), "{record}");
    assert!(killed.elapsed() < Duration::from_secs(MEDIA_TIMEOUT_S + 3), "{:?}", killed.elapsed());
    nothing_is_left(&whole, free).await;
    whole.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_proxy_and_peer_are_killed_is_given_up() {
    let port = free_port();
    let Some(kamailio) = Kamailio::start(port).await else { return };
    let whole = Whole::start(Base::sqlite(), Cast::new(quick()), quick_to_give_up).await;
    let company = whole.company("Acme", json!({})).await;
    let integration = company.integration("PBX", "sip", trunk_credentials(&kamailio, AI, PASSWORD)).await;
    let agent = company.agent(front_desk()).await;
    company.line(integration, AI, agent).await;
    standing(&company, "registered").await;
    let free = whole.app.sip.free_ports();
    let account = telephone("+380501234567", &kamailio, "");
    let set = Set { account: &account, says: &voice_ms(200), codec: "PCMU/8000/1" };
    let Some(mut phone) = Baresip::start(set).await else { return };
    phone.registered().await;
    phone.dial(&format!("sip:{AI}@127.0.0.1:{port}")).await;
    phone.event("CALL_ESTABLISHED").await;
    let call = live(&company).await;

    // The proxy alone: media goes on between the two, and so does the call.
    drop(kamailio);
    sleep(Duration::from_secs(MEDIA_TIMEOUT_S + 1)).await;
    let record = company.get(&format!("/calls/{call}")).await;
    assert!(record["ended"].is_null(), "{record}");
    phone.kill().await;
    let killed = Instant::now();
    let record = company.record(call).await;
    println!("closed {:?} after the telephone was killed, whose proxy was dead before", killed.elapsed());
    assert_eq!(record["end"], no_media(), "{record}");
    nothing_is_left(&whole, free).await;
    let failing = standing(&company, "failing").await;
    assert!(failing["last_error"].is_string() && failing["registered_until"].is_string(), "{failing}");
    whole.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_whose_media_stops_is_told_goodbye() {
    let whole = Whole::start(Base::sqlite(), Cast::new(quick()), quick_to_give_up).await;
    let company = trunk(&whole, front_desk()).await;
    let uri = line_uri(&whole).await;
    let sip = whole.app.sip.addrs().and_then(|addrs| addrs.udp).expect("it listens");
    let free = whole.app.sip.free_ports();
    // Never any media, then media that stops.
    for talks in [Duration::ZERO, Duration::from_secs(1)] {
        let before = whole.metric("offhook_rtp_timeouts_total", &[]).await;
        let caller = Caller::call(&uri, "").await;
        tokio::select! {
            () = caller.send_silence(), if !talks.is_zero() => {}
            () = sleep(talks) => {}
        }
        let silent = Instant::now();
        let call = live(&company).await;
        let bye = caller.hear("BYE").await;
        println!("BYE {:?} after the last packet", silent.elapsed());
        assert!(silent.elapsed() >= Duration::from_secs(MEDIA_TIMEOUT_S) - Duration::from_millis(100));
        caller.answer(&bye, sip).await;
        let record = company.record(call).await;
        assert_eq!(record["end"], no_media(), "{record}");
        nothing_is_left(&whole, free).await;
        assert!(whole.metric("offhook_rtp_timeouts_total", &[]).await > before);
    }
    let answered = whole.metric("offhook_sip_answer_seconds_count", &[]).await;
    assert!(answered >= 2, "{answered}");
    whole.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_whose_signalling_is_dead_while_its_media_flows_is_given_up_by_the_session_timer() {
    let whole = Whole::start(Base::sqlite(), Cast::new(quick()), |config| {
        quick_to_give_up(config);
        // The agent would say goodbye to a caller who is silent for so long.
        config.turn.silence_prompt_ms = 0;
        config.turn.silence_goodbye_ms = 0;
    })
    .await;
    let company = trunk(&whole, front_desk()).await;
    let uri = line_uri(&whole).await;
    let free = whole.app.sip.free_ports();
    // The shortest session of RFC 4028: we refresh it after 45 s, and what is not answered ends after 60 s.
    let caller =
        Caller::call(&uri, "Supported: timer\r\nSession-Expires: 90;refresher=uas\r\nAllow: INVITE, UPDATE\r\n").await;
    let answered = Instant::now();
    let call = live(&company).await;
    let signalling = async {
        caller.hear("UPDATE").await;
        println!("refreshed {:?} after the answer", answered.elapsed());
        caller.hear("BYE").await;
        println!("BYE {:?} after the answer", answered.elapsed());
    };
    // Asked now and then, it is also a connection that the server does not close for idleness.
    let lives_on = async {
        loop {
            sleep(Duration::from_secs(5)).await;
            let record = company.get(&format!("/calls/{call}")).await;
            assert!(record["ended"].is_null() || answered.elapsed() > Duration::from_secs(55), "{record}");
        }
    };
    tokio::select! {
        () = caller.send_silence() => {}
        () = lives_on => {}
        () = signalling => {}
    }
    assert!(answered.elapsed() < Duration::from_secs(65), "{:?}", answered.elapsed());
    let record = company.record(call).await;
    assert_eq!(record["end"], json!({ "by": "carrier", "reason": "connection_lost" }), "{record}");
    nothing_is_left(&whole, free).await;
    whole.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signalling_task_that_dies_takes_its_calls_along_and_starts_again() {
    let whole = Whole::start(Base::sqlite(), Cast::new(quick()), quick_to_give_up).await;
    let company = trunk(&whole, front_desk()).await;
    let uri = line_uri(&whole).await;
    let free = whole.app.sip.free_ports();
    let caller = Caller::call(&uri, "").await;
    let call = live(&company).await;
    whole.app.sip.crash();
    let record = tokio::select! {
        () = caller.send_silence() => unreachable!("it never ends"),
        record = company.record(call) => record,
    };
    assert_eq!(record["end"], json!({ "by": "system", "reason": "connection_lost" }), "{record}");
    nothing_is_left(&whole, free).await;

    let again = until("SIP listens again", async || {
        let again = line_uri(&whole).await;
        (again != uri).then_some(again)
    });
    let _caller = Caller::call(&again.await, "").await;
    live(&company).await;
    whole.stop().await;
}

/// A network between us and the registrar, which can be cut.
struct Network {
    addr: SocketAddr,
    cut: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Network {
    async fn to(registrar: SocketAddr) -> Self {
        let near = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let far = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let addr = near.local_addr().expect("bound");
        let cut = Arc::new(AtomicBool::new(false));
        let is_cut = cut.clone();
        let task = tokio::spawn(async move {
            let (mut up, mut down) = ([0; 8192], [0; 8192]);
            let mut us = None;
            loop {
                tokio::select! {
                    Ok((length, from)) = near.recv_from(&mut up) => {
                        us = Some(from);
                        if !is_cut.load(Ordering::Relaxed) {
                            let _ = far.send_to(&up[..length], registrar).await;
                        }
                    }
                    Ok((length, _)) = far.recv_from(&mut down) => {
                        if let Some(us) = us.filter(|_| !is_cut.load(Ordering::Relaxed)) {
                            let _ = near.send_to(&down[..length], us).await;
                        }
                    }
                }
            }
        });
        Self { addr, cut, task }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_lost_for_a_minute_is_told_in_words_and_the_account_comes_back() {
    const LOST: Duration = Duration::from_secs(60);
    let port = free_port();
    let Some(kamailio) = Kamailio::start(port).await else { return };
    let network = Network::to(kamailio.addr).await;
    // The protocol's own time-outs: 32 s for a request that nobody answers.
    let whole = Whole::start(Base::sqlite(), Cast::new(quick()), |config| {
        on_loopback(config);
        config.sip.limits.t1_ms = 500;
        config.sip.keep_alive_s = 5;
    })
    .await;
    let company = whole.company("Acme", json!({})).await;
    let mut credentials = trunk_credentials(&kamailio, AI, PASSWORD);
    credentials["sip.registrar"] = json!(network.addr.to_string());
    let integration = company.integration("PBX", "sip", credentials).await;
    let agent = company.agent(front_desk()).await;
    company.line(integration, AI, agent).await;
    standing(&company, "registered").await;

    network.cut.store(true, Ordering::Relaxed);
    let lost = Instant::now();
    let mut seen: Vec<(Duration, String)> = Vec::new();
    let mut look = async || {
        let line = items(company.get("/lines").await).into_iter().next().expect("the line");
        let registration = line["registration"].clone();
        let words = format!("{}: {}", text(&registration["state"]), text(&registration["last_error"]));
        if seen.last().is_none_or(|(_, last)| *last != words) {
            seen.push((lost.elapsed(), words));
        }
        registration
    };
    while lost.elapsed() < LOST {
        look().await;
        sleep(Duration::from_millis(250)).await;
    }
    network.cut.store(false, Ordering::Relaxed);
    let back = Instant::now();
    while look().await["state"] != "registered" {
        assert!(back.elapsed() < Duration::from_secs(15), "{seen:?}");
        sleep(Duration::from_millis(50)).await;
    }
    println!("registered again {:?} after the network was back; as told: {seen:#?}", back.elapsed());
    assert!(seen.iter().any(|(at, words)| *at < Duration::from_secs(45) && words.contains("not answer")), "{seen:?}");

    let account = telephone("+380501234567", &kamailio, "");
    let set = Set { account: &account, says: &voice_ms(200), codec: "PCMU/8000/1" };
    let Some(mut phone) = Baresip::start(set).await else { return };
    phone.registered().await;
    phone.dial(&format!("sip:{AI}@127.0.0.1:{port}")).await;
    phone.event("CALL_ESTABLISHED").await;
    let call = live(&company).await;
    sleep(Duration::from_secs(1)).await;
    phone.hang_up().await;
    let record = company.record(call).await;
    assert_eq!(record["end"], json!({ "by": "caller", "reason": "hung_up" }), "{record}");
    assert!(loudness(&phone.stop().await, 200, 500) > 200.0, "the greeting is heard");
    whole.stop().await;
}
