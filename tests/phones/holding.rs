//! A telephone that holds the call: the agent waits, however long, and has all its patience again afterwards.

use std::time::Duration;

use tokio::time::timeout;

use crate::baresip::{Baresip, Set};
use crate::common::{Cast, quick};
use crate::on_loopback;
use crate::stores::Base;
use crate::talks::{line_uri, trunk};
use crate::whole::{Company, Whole, front_desk, id, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_on_hold_is_not_asked_whether_they_are_there() {
    let whole = Whole::start(Base::sqlite(), Cast::new(quick()), |config| {
        on_loopback(config);
        config.turn.silence_prompt_ms = 1_000;
        config.turn.silence_goodbye_ms = 2_500;
        config.sip.rtp.media_timeout_s = 1;
    })
    .await;
    let company = trunk(&whole, front_desk()).await;
    let set = Set { account: "<sip:+380501234567@127.0.0.1>;regint=0", says: &[0; 800], codec: "PCMU/8000/1" };
    let Some(mut phone) = Baresip::start(set).await else { return };
    phone.dial(&line_uri(&whole).await).await;
    phone.event("CALL_ESTABLISHED").await;
    let call = until("the agent greets", async || {
        let call = company.calls().await.into_iter().next()?;
        let record = company.get(&format!("/calls/{}", id(&call))).await;
        (!Company::said(&record).is_empty()).then_some(id(&call))
    })
    .await;
    let prompts = async || {
        let record = company.get(&format!("/calls/{call}")).await;
        let prompts = Company::said(&record).iter().filter(|line| line.contains("still there")).count();
        (prompts, record["ended"].is_string())
    };
    phone.hold().await;
    // The prompt may be on its lips while the hold is agreed on; a second one, or the end, would be the fault.
    let (before, _) = prompts().await;
    let disturbed = until("the agent is impatient", async || {
        let (prompts, over) = prompts().await;
        (prompts > before + 1 || over).then_some(())
    });
    let waited = timeout(Duration::from_secs(4), disturbed).await;
    assert!(waited.is_err(), "nobody is prompted or hung up on while the call is held");
    let (before, _) = prompts().await;
    phone.resume().await;
    until("the agent asks again", async || (prompts().await.0 > before).then_some(())).await;
    phone.event("CALL_CLOSED").await;
    let record = company.record(call).await;
    assert_eq!(record["end"]["reason"], "silence", "{record}");
    assert!(record["ended"].is_string());
    whole.stop().await;
}
