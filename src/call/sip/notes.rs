//! What is noted of a call by SIP: how its media went, its messages, and the end of one that nobody talked on.

use std::time::Duration;

use jiff::SignedDuration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::Inner;
use crate::call::registry::CallSetup;
use crate::clock;
use crate::protocol::rtp::stats::RtpStats;
use crate::providers::provider::CallOutcome;
use crate::store::At;
use crate::store::calls::{ProviderNews, SipNotes, SipRung};
use crate::transport::sip::{SipCall, SipRecord};

/// The messages of a call are complete at the latest 64 · T1 after its end (RFC 3261 §17).
const LADDER_LIMIT: Duration = Duration::from_secs(60);

/// A call's messages, when it is over for good.
pub(super) type Messages = oneshot::Receiver<SipRecord>;

impl Inner {
    /// How a call went, and the call to a person that was made for it.
    pub(super) async fn note_went(
        &self,
        setup: &CallSetup,
        stats: &RtpStats,
        person: Option<&RtpStats>,
        transfer: Option<u16>,
    ) {
        let Some(store) = &self.store else { return };
        let mut quality = serde_json::to_value(stats).unwrap_or_default();
        if let Some(person) = person {
            quality["person"] = serde_json::to_value(person).unwrap_or_default();
        }
        let notes = SipNotes { quality: Some(quality), transfer_status: transfer, ladder: Vec::new() };
        if let Err(error) = store.note_sip(setup.company_id, setup.id, &notes).await {
            warn!(call_id = %setup.id, %error, "the quality of a call could not be noted");
        }
    }

    /// What became of the wish for a person, in words.
    pub(super) async fn note_transfer(&self, setup: &CallSetup, what: String) {
        let Some(store) = &self.store else { return };
        let news = ProviderNews { status: Some(what), ..ProviderNews::default() };
        if let Err(error) = store.note_provider(setup.company_id, setup.id, &news).await {
            warn!(call_id = %setup.id, %error, "what became of a transfer could not be noted");
        }
    }

    /// The messages of a call and of the one to a person that was made for it, once nothing of them can come any more. Their
    /// Call-IDs tell them apart; either ladder is bounded.
    pub(super) fn keep_ladder(&self, setup: &CallSetup, sip: &mut SipCall, person: Option<Messages>) {
        let (Some(store), Some(record)) = (self.store.clone(), sip.take_record()) else { return };
        let (company, id, now, wall) = (setup.company_id, setup.id, Instant::now().into_std(), clock::now());
        let closing = self.closing.clone();
        let until = Instant::now() + LADDER_LIMIT;
        let complete = async move {
            let mut rungs = timeout_at(until, record).await.ok()?.ok()?.ladder;
            if let Some(person) = person
                && let Ok(Ok(record)) = timeout_at(until, person).await
            {
                rungs.extend(record.ladder);
                rungs.sort_by_key(|rung| rung.at);
            }
            Some(rungs)
        };
        self.tasks.spawn(async move {
            let rungs = tokio::select! {
                rungs = complete => rungs,
                // What came so far is lost with the process: the call's record is not.
                () = closing.cancelled() => return,
            };
            let Some(rungs) = rungs else { return };
            let ladder = rungs.into_iter().map(|rung| {
                let ago = SignedDuration::try_from(now.saturating_duration_since(rung.at)).unwrap_or_default();
                let later = SignedDuration::try_from(rung.at.saturating_duration_since(now)).unwrap_or_default();
                SipRung { at: wall - ago + later, sent: rung.sent, peer: rung.peer.to_string(), text: rung.text }
            });
            let notes = SipNotes { ladder: ladder.collect(), ..SipNotes::default() };
            if let Err(error) = store.note_sip(company, id, &notes).await {
                warn!(call_id = %id, %error, "the SIP messages of a call could not be noted");
            }
        });
    }

    /// Closes the record of a call that nobody talked on.
    pub(super) async fn never(&self, setup: &CallSetup, status: Option<u16>, outcome: CallOutcome) {
        let Some(store) = &self.store else { return };
        let news = ProviderNews {
            status: status.map(|status| status.to_string()),
            ended: Some((At(clock::now()), outcome)),
            ..ProviderNews::default()
        };
        if let Err(error) = store.note_provider(setup.company_id, setup.id, &news).await {
            warn!(call_id = %setup.id, %error, "a call that did not begin could not be closed");
        }
    }
}
