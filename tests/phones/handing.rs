//! Callers who are handed to a person that is told of them first: both hear what they should, and whoever cannot be
//! reached is not waited for.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use offhook::speech::scripted::{Answer, ScriptedModel};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::accounts::{AI, standing, telephone, trunk_credentials};
use crate::baresip::{Baresip, Set, loudness};
use crate::common::{Cast, quick, voice_ms};
use crate::kamailio::{Kamailio, PASSWORD};
use crate::stores::Base;
use crate::talks::{LINE, after_silence, line_uri, trunk};
use crate::whole::{Company, Whole, front_desk, id, text, until};
use crate::{free_port, installed, on_loopback};

const CALLER: &str = "+380501234567";

/// The whole program with a model that hands its caller over.
async fn whole() -> Whole {
    let steps = [
        Answer::Tool { name: "remember".into(), arguments: json!({ "key": "name", "value": "Ivan" }).to_string() },
        Answer::Tool { name: "transfer_call".into(), arguments: json!({ "reason": "the bill" }).to_string() },
        Answer::Text("One moment.".into()),
    ];
    let cast = Cast { llm: Arc::new(ScriptedModel::with_steps(quick(), steps)), ..Cast::new(quick()) };
    Whole::start(Base::sqlite(), cast, |config| {
        on_loopback(config);
        config.turn.max_speculations = 0;
    })
    .await
}

fn warm(to: &str) -> Value {
    let mut agent = front_desk();
    agent["transfer_to"] = json!(to);
    agent["transfer_note"] = json!("spoken");
    agent
}

/// A company whose agent hands over to `person`, behind a PBX.
async fn behind(whole: &Whole, kamailio: &Kamailio) -> Company {
    let company = whole.company("Acme", json!({})).await;
    let integration = company.integration("PBX", "sip", trunk_credentials(kamailio, AI, PASSWORD)).await;
    let agent = company.agent(warm("person")).await;
    company.line(integration, AI, agent).await;
    standing(&company, "registered").await;
    company
}

/// What became of the only call: its record, what is listed of it and its SIP facts, once the transfer is noted.
async fn outcome(company: &Company) -> (Value, Value, Value) {
    let call = company.only_call(|call| call["ended_at"].is_string()).await;
    let record = company.record(id(&call)).await;
    let facts = until("what became of the transfer is told", async || {
        let facts = company.get(&format!("/calls/{}/sip", id(&call))).await;
        (facts["transfer_status"].is_number() && !facts["ladder"].as_array()?.is_empty()).then_some(facts)
    })
    .await;
    let listed = company.calls().await.into_iter().next().expect("it is listed");
    (record, listed, facts)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_hears_of_the_caller_and_then_the_caller() {
    let port = free_port();
    let Some(kamailio) = Kamailio::start(port).await else { return };
    let whole = whole().await;
    let company = behind(&whole, &kamailio).await;
    let account = telephone("person", &kamailio, ";answermode=auto");
    let set = Set { account: &account, says: &voice_ms(1_000), codec: "PCMU/8000/1" };
    let Some(mut person) = Baresip::start(set).await else { return };
    person.registered().await;
    let account = telephone(CALLER, &kamailio, "");
    let says = after_silence(2_000, voice_ms(1_500));
    let caller = Baresip::start(Set { account: &account, says: &says, codec: "PCMU/8000/1" }).await;
    let mut caller = caller.expect("it is installed");
    caller.registered().await;
    caller.dial(&format!("sip:{AI}@127.0.0.1:{port}")).await;
    caller.event("CALL_ESTABLISHED").await;
    // First our own call to the person, then the caller's.
    person.event("CALL_ESTABLISHED").await;
    person.event("CALL_ESTABLISHED").await;
    let (record, listed, facts) = outcome(&company).await;
    assert_eq!((text(&record["handover"]), &record["remembered"]["name"]), ("the bill", &json!("Ivan")), "{record}");
    assert_eq!((&facts["transfer_status"], text(&listed["provider_status"])), (&json!(200), "transferred warm: 200"));
    let refer = facts["ladder"].as_array().expect("a list").iter().map(|rung| text(&rung["text"]));
    let refer = refer.filter(|message| message.starts_with("REFER ")).collect::<Vec<_>>();
    assert!(
        refer.len() == 1 && refer[0].contains("Refer-To: <sip:person@") && refer[0].contains("?Replaces="),
        "{refer:?}"
    );
    // The call to the person is in the record of the caller's, told apart by its Call-ID.
    let messages: Vec<&str> =
        facts["ladder"].as_array().expect("a list").iter().map(|rung| text(&rung["text"])).collect();
    let call_id = |message: &str| message.lines().find_map(|line| line.strip_prefix("Call-ID: ")).map(str::to_owned);
    let ids: std::collections::BTreeSet<_> =
        messages.iter().map(|message| call_id(message).expect("it has one")).collect();
    assert_eq!(ids.len(), 2, "{ids:?}");
    let to_person = facts["ladder"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|rung| rung["sent"] == true && text(&rung["text"]).starts_with("INVITE sip:person@"));
    assert!(to_person.is_some(), "{messages:?}");
    let times: Vec<&str> = facts["ladder"].as_array().expect("a list").iter().map(|rung| text(&rung["at"])).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert!(facts["quality"]["person"]["sent"].as_u64() > Some(50), "{}", facts["quality"]);
    // The caller's telephone plays its file from the start: silence, then a voice.
    let enough = 5 * 8_000 * 2;
    until("both have talked", async || (person.heard_bytes().last() > Some(&enough)).then_some(())).await;
    let (person, caller) = (person.stop_all().await, caller.stop_all().await);
    assert_eq!((person.len(), caller.len()), (2, 2), "calls");
    assert!(person[0].len() > 2 * 8_000, "the summary takes its time: {} ms", person[0].len() / 8);
    assert!(loudness(&person[0], 200, 1_500) > 200.0, "it is heard: {}", loudness(&person[0], 200, 1_500));
    assert!(loudness(&person[1], 2_000, 2_500) > 200.0, "the caller is heard: {}", loudness(&person[1], 2_000, 2_500));
    assert!(loudness(&caller[1], 0, 1_500) > 200.0, "the person is heard: {}", loudness(&caller[1], 0, 1_500));
    // While the person was told, the caller heard the line ring.
    let waiting = caller[0].len() / 8;
    assert!(loudness(&caller[0], waiting.saturating_sub(5_500), 5_500) > 100.0, "in the last of {waiting} ms");
    whole.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_is_told_that_nobody_answers_and_a_person_is_let_go_when_the_caller_is() {
    let port = free_port();
    let Some(kamailio) = Kamailio::start(port).await else { return };
    let whole = whole().await;
    let company = behind(&whole, &kamailio).await;
    let account = telephone(CALLER, &kamailio, "");
    let says = after_silence(1_500, voice_ms(1_500));
    let Some(mut caller) = Baresip::start(Set { account: &account, says: &says, codec: "PCMU/8000/1" }).await else {
        return;
    };
    caller.registered().await;
    caller.dial(&format!("sip:{AI}@127.0.0.1:{port}")).await;
    caller.event("CALL_ESTABLISHED").await;
    // Nobody is registered under the person's name.
    caller.event("CALL_CLOSED").await;
    let (record, listed, facts) = outcome(&company).await;
    assert_eq!((text(&record["handover"]), &facts["transfer_status"]), ("the bill", &json!(404)), "{record}");
    assert!(text(&listed["provider_status"]).starts_with("not transferred"), "{listed}");
    let heard = caller.stop().await;
    let length = heard.len() / 8;
    assert!(loudness(&heard, length.saturating_sub(3_000), 2_500) > 200.0, "an excuse in the last of {length} ms");
    whole.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_rings_is_rung_no_more_when_the_caller_hangs_up() {
    let port = free_port();
    let Some(kamailio) = Kamailio::start(port).await else { return };
    let whole = whole().await;
    let company = behind(&whole, &kamailio).await;
    let account = telephone("person", &kamailio, ";answermode=manual");
    let Some(mut person) = Baresip::start(Set { account: &account, says: &[0; 800], codec: "PCMU/8000/1" }).await
    else {
        return;
    };
    person.registered().await;
    let account = telephone(CALLER, &kamailio, "");
    let says = after_silence(1_500, voice_ms(1_500));
    let caller = Baresip::start(Set { account: &account, says: &says, codec: "PCMU/8000/1" }).await;
    let mut caller = caller.expect("it is installed");
    caller.registered().await;
    let free = whole.app.sip.free_ports();
    caller.dial(&format!("sip:{AI}@127.0.0.1:{port}")).await;
    person.event("CALL_INCOMING").await;
    caller.hang_up().await;
    person.event("CALL_CLOSED").await;
    let (_, listed, facts) = outcome(&company).await;
    assert_eq!(
        (&facts["transfer_status"], text(&listed["provider_status"])),
        (&json!(487), "not transferred: the caller hung up")
    );
    until("the ports come back", async || (whole.app.sip.free_ports() == free).then_some(())).await;
    drop((caller, person));
    whole.stop().await;
}

/// SIPp is a PBX that knows no attended transfer.
#[tokio::test(flavor = "multi_thread")]
async fn a_pbx_that_refuses_an_attended_transfer_gets_a_plain_one() {
    if !installed("sipp") {
        return;
    }
    let whole = whole().await;
    let address = free_port();
    let set = Set { account: "<sip:person@127.0.0.1>;regint=0;answermode=auto", says: &[0; 800], codec: "PCMU/8000/1" };
    let Some(mut person) = Baresip::start_at(set, address).await else { return };
    let company = trunk(&whole, warm(&format!("sip:person@127.0.0.1:{address}"))).await;
    let uri = line_uri(&whole).await;
    let remote = uri.rsplit('@').next().expect("an address");
    let scenario = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sipp/uac_handed_over.xml");
    let mut sipp = Command::new("sipp");
    sipp.arg("-sf").arg(scenario).args(["-i", "127.0.0.1", "-p", &free_port().to_string(), "-m", "1", "-s", LINE]);
    sipp.args(["-nostdin", "-timeout", "30", "-timeout_error", remote]);
    sipp.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let pbx = tokio::spawn(async move { sipp.output().await.expect("it runs") });
    person.event("CALL_ESTABLISHED").await;
    person.event("CALL_CLOSED").await;
    let output = pbx.await.expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (_, listed, facts) = outcome(&company).await;
    assert_eq!(facts["transfer_status"], 200, "{facts}");
    let told = text(&listed["provider_status"]);
    assert!(told.contains("cold") && told.contains("405") && told.ends_with(": 200"), "{told}");
    drop(person);
    whole.stop().await;
}
