//! `offhook load --sip` against the whole program: telephones that call a trunk's line, talk, interrupt and hang up.

#[path = "common/stores.rs"]
mod stores;

mod common;

#[path = "common/whole.rs"]
mod whole;

use std::time::Duration;

use clap::Parser as _;
use offhook::cli::load::{Args, measure};
use offhook::load::report::LoadReport;
use serde_json::json;

use crate::common::{Cast, quick};
use crate::stores::Base;
use crate::whole::{Company, Whole, front_desk, id, until};

#[derive(clap::Parser)]
struct Command {
    #[command(flatten)]
    args: Args,
}

/// A program whose only line is a trunk's on loopback, and the address of that line.
async fn trunk(credentials: serde_json::Value) -> (Whole, Company, String) {
    let whole = Whole::start(Base::sqlite(), Cast::new(quick()), |config| {
        config.sip.listen = "127.0.0.1:0".parse().expect("an address");
        config.sip.rtp.listen = "127.0.0.1".parse().expect("an address");
        config.sip.rtp.port_rest_s = 0;
    })
    .await;
    let company = whole.company("Acme", json!({})).await;
    let integration = company.integration("Trunk", "sip", credentials).await;
    let agent = company.agent(front_desk()).await;
    company.line(integration, "+380441234567", agent).await;
    let addrs = until("SIP listens", async || whole.app.sip.addrs()).await;
    let uri = format!("sip:+380441234567@{}", addrs.udp.expect("UDP"));
    (whole, company, uri)
}

async fn load(args: &[&str]) -> LoadReport {
    let args = Command::parse_from([&["load", "--fixtures", "audio-fixtures"], args].concat()).args;
    tokio::time::timeout(Duration::from_secs(120), measure(&args)).await.expect("it ends").expect("it runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn telephones_talk_with_the_agent_and_the_report_tells_how() {
    let (whole, company, uri) = trunk(json!({ "sip.peers": "127.0.0.1" })).await;
    let free = whole.app.sip.free_ports();
    let talk = async |codec: &str, fixture: &str| {
        load(&["--sip", &uri, "--codec", codec, "--calls", "3", "--ramp", "20", "--fixture", fixture]).await
    };
    let (asking, interrupting) = tokio::join!(talk("pcmu", "opening-hours"), talk("pcma", "interrupter"));
    for report in [&asking, &interrupting] {
        let text = report.text();
        assert!(report.failures.is_empty() && report.finished == 3, "{text}\n{:?}", report.calls);
        assert!(report.reply.count > 0 && report.unanswered == 0, "{text}");
        assert_eq!((report.invite.count, report.connect.count), (3, 3), "{text}");
        let rtp = report.rtp.expect("packets were counted");
        assert!(rtp.received > 300 && rtp.sent > 300 && rtp.loss_percent < 1.0, "{text}");
    }
    assert!(interrupting.barge_in.count > 0 && interrupting.barge_in_missed == 0, "{}", interrupting.text());
    let calls = company.calls().await;
    assert_eq!(calls.len(), 6, "{calls:#?}");
    for call in calls {
        let record = company.record(id(&call)).await;
        assert_eq!(record["legs"][0]["transport"], "sip", "{record}");
        assert!(Company::said(&record).iter().any(|line| line.starts_with("caller:")), "{record}");
    }
    until("the ports come back", async || (whole.app.sip.free_ports() == free).then_some(())).await;
    whole.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_without_talk_measure_the_answer_alone() {
    let (whole, _, uri) = trunk(json!({ "sip.peers": "127.0.0.1" })).await;
    let report = load(&["--sip", &uri, "--calls", "20", "--ramp", "40", "--call-limit", "0"]).await;
    assert_eq!((report.finished, report.invite.count, report.turns), (20, 20, 0), "{}", report.text());
    assert!(report.passed() && report.void.is_none() && report.rtp.is_none(), "{}", report.text());
    whole.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_given_where_it_is_asked_for() {
    let (whole, company, uri) = trunk(json!({ "sip.user": "branch", "sip.password": "secret" })).await;
    let report = load(&["--sip", &uri, "--call-limit", "0", "--user", "branch", "--password", "secret"]).await;
    assert!(report.passed() && report.invite.count == 1, "{}", report.text());
    company.only_call(|call| call["ended_at"].is_string()).await;
    let report = load(&["--sip", &uri, "--call-limit", "0"]).await;
    assert_eq!(report.failures.get("connect_failed"), Some(&1), "{}", report.text());
    let shown = format!("{:?}", report.calls[0].ending);
    assert!(shown.contains("401"), "{shown}");
    whole.stop().await;
}
