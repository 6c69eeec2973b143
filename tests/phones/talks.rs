//! A telephone calls an agent's line straight: what both hear, what interrupts whom, and what the record says of it.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use crate::baresip::{Baresip, Set, loudness};
use crate::common::{Cast, quick, voice_ms};
use crate::linphone::{Figures, Linphone, silent_after};
use crate::on_loopback;
use crate::stores::Base;
use crate::whole::{Company, Whole, front_desk, id, text, until};

pub const LINE: &str = "+380441234567";

/// A company with a trunk on loopback.
pub async fn trunk(whole: &Whole, agent: serde_json::Value) -> Company {
    let company = whole.company("Acme", json!({})).await;
    let integration = company.integration("Trunk", "sip", json!({ "sip.peers": "127.0.0.1" })).await;
    let agent = company.agent(agent).await;
    company.line(integration, LINE, agent).await;
    company
}

/// The address of a line, once SIP listens.
pub async fn line_uri(whole: &Whole) -> String {
    let addrs = until("SIP listens", async || whole.app.sip.addrs()).await;
    format!("sip:{LINE}@{}", addrs.udp.expect("UDP"))
}

pub fn after_silence(silence_ms: usize, voice: Vec<i16>) -> Vec<i16> {
    let mut says = vec![0; silence_ms * 8];
    says.extend(voice);
    says
}

#[tokio::test(flavor = "multi_thread")]
async fn a_telephone_asks_and_hears_the_answer() {
    let whole = Whole::start(Base::sqlite(), Cast::new(quick()), on_loopback).await;
    let company = trunk(&whole, front_desk()).await;
    for codec in ["PCMU/8000/1", "PCMA/8000/1"] {
        let says = after_silence(2_500, voice_ms(1_500));
        let set = Set { account: "<sip:+380501234567@127.0.0.1>;regint=0", says: &says, codec };
        let Some(mut phone) = Baresip::start(set).await else { return };
        let uri = line_uri(&whole).await;
        let free = whole.app.sip.free_ports();
        phone.dial(&uri).await;
        phone.event("CALL_ESTABLISHED").await;
        let call =
            until("the call runs", async || company.calls().await.into_iter().find(|call| call["ended_at"].is_null()))
                .await;
        let call = id(&call);
        until("the agent has answered", async || {
            let record = company.get(&format!("/calls/{call}")).await;
            let said = Company::said(&record);
            (said.iter().filter(|line| line.starts_with("agent:")).count() >= 2).then_some(())
        })
        .await;
        let file =
            company.request(Method::GET, &format!("/calls/{call}/capture?seconds=1")).send().await.expect("answers");
        let file = file.bytes().await.expect("a file");
        assert_eq!(file[..4], [0xd4, 0xc3, 0xb2, 0xa1], "pcap");
        let holds = |text: &[u8]| file.windows(text.len()).any(|part| part == text);
        assert!(file.len() > 5_000 && holds(b"INVITE sip:+380441234567"), "{} bytes", file.len());
        phone.hang_up().await;
        let record = company.record(call).await;
        assert_eq!(record["end"], json!({ "by": "caller", "reason": "hung_up" }), "{record}");
        assert_eq!((text(&record["from"]), text(&record["line"])), ("+380501234567", LINE), "{record}");
        assert_eq!(record["legs"][0]["transport"], "sip", "{record}");
        let said = Company::said(&record);
        assert!(said.iter().any(|line| line.starts_with("caller:")), "the caller was understood: {said:?}");
        let facts = until("the messages are complete", async || {
            let facts = company.get(&format!("/calls/{call}/sip")).await;
            (!facts["ladder"].as_array()?.is_empty()).then_some(facts)
        })
        .await;
        let received = facts["quality"]["received"].as_u64().unwrap_or(0);
        assert!(received > 100 && facts["quality"]["lost"].as_u64() < Some(5), "{}", facts["quality"]);
        let first: Vec<String> = facts["ladder"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|rung| text(&rung["text"]).split_whitespace().take(2).collect::<Vec<_>>().join(" "))
            .collect();
        for expected in ["INVITE sip:+380441234567@", "SIP/2.0 200", "ACK ", "BYE "] {
            assert!(first.iter().any(|line| line.starts_with(expected.trim_end())), "{expected} in {first:?}");
        }
        let heard = phone.stop().await;
        assert!(loudness(&heard, 200, 800) > 200.0, "the greeting is heard: {}", loudness(&heard, 200, 800));
        until("the ports come back", async || (whole.app.sip.free_ports() == free).then_some(())).await;
    }
    whole.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_telephone_that_talks_into_the_agent_stops_it() {
    let whole = Whole::start(Base::sqlite(), Cast::new(quick()), on_loopback).await;
    let mut agent = front_desk();
    agent["greeting"] =
        json!("This greeting is long, and longer than anybody has the patience for, so that it will be interrupted.");
    let company = trunk(&whole, agent).await;
    let says = after_silence(1_500, voice_ms(2_000));
    let set = Set { account: "<sip:+380501234567@127.0.0.1>;regint=0", says: &says, codec: "PCMU/8000/1" };
    let Some(mut phone) = Baresip::start(set).await else { return };
    phone.dial(&line_uri(&whole).await).await;
    phone.event("CALL_ESTABLISHED").await;
    let record = until("the agent is interrupted", async || {
        let call = company.calls().await.into_iter().next()?;
        let record = company.get(&format!("/calls/{}", id(&call))).await;
        (record["interruptions"]["confirmed"].as_u64() > Some(0)).then_some(record)
    })
    .await;
    phone.hang_up().await;
    let record = company.record(id(&record)).await;
    let greeting = Company::said(&record).remove(0);
    assert!(greeting.contains("This greeting") && !greeting.contains("interrupted"), "{greeting}");
    let heard = phone.stop().await;
    assert!(loudness(&heard, 300, 900) > 200.0, "the greeting began");
    whole.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_make_of_telephone_talks_to_the_agent_and_stops_it() {
    /// When the caller begins to talk into the greeting, which takes more than 5 s.
    const SPEAKS: Duration = Duration::from_millis(2_500);
    let whole = Whole::start(Base::sqlite(), Cast::new(quick()), on_loopback).await;
    let mut agent = front_desk();
    agent["greeting"] =
        json!("This greeting is long, and longer than anybody has the patience for, so that it will be interrupted.");
    let company = trunk(&whole, agent).await;
    let says = after_silence(SPEAKS.as_millis() as usize, voice_ms(2_000));
    let Some(mut phone) = Linphone::start("+380501234567", &says) else { return };
    phone.dial(&line_uri(&whole).await);
    let call = until("the agent is interrupted and has answered", async || {
        let call = id(&company.calls().await.into_iter().next()?);
        let record = company.get(&format!("/calls/{call}")).await;
        let interrupted = record["interruptions"]["confirmed"].as_u64() > Some(0);
        let said = Company::said(&record);
        (interrupted && said.len() >= 3 && said[2].starts_with("agent:")).then_some(call)
    })
    .await;
    phone.hang_up();
    let record = company.record(call).await;
    assert_eq!(record["end"], json!({ "by": "caller", "reason": "hung_up" }), "{record}");
    assert_eq!(text(&record["from"]), "+380501234567", "{record}");
    let said = Company::said(&record);
    let heard = phone.stop().await;
    let (figures, stop) = (Figures::of(&heard), silent_after(&heard, SPEAKS));
    println!(
        "linphone heard {:.2} s of sound at {:.1} dBFS, the first {} ms into the call; silence {} ms after it spoke; {said:?}",
        figures.sounds.as_secs_f32(),
        figures.dbfs,
        figures.first.as_millis(),
        stop.as_millis(),
    );
    assert!(said[1].starts_with("caller:"), "{said:?}");
    // 50 ms a letter: what the record says was heard is what sounded at the other end.
    let greeting = text(&record["transcript"]["lines"][0]["heard"]);
    let letters = Duration::from_millis(50) * u32::try_from(greeting.len()).expect("short");
    let sounded = SPEAKS + stop - figures.first;
    assert!(sounded.abs_diff(letters) < Duration::from_millis(350), "{greeting:?} is {letters:?}, heard {sounded:?}");
    assert!(figures.sounds > Duration::from_millis(1_500) && figures.dbfs > -40.0, "{figures:?}");
    // The budget of 200 ms, and what linphone's own buffers and the loaded machine of a test add.
    assert!(stop > Duration::from_millis(40) && stop < Duration::from_millis(600), "{stop:?}");
    whole.stop().await;
}
