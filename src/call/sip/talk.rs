//! One SIP call from its first agreement to its end: signalling and media side by side, each told when the other is over,
//! offers on the way answered, and the caller handed over by REFER where the agent has promised a person.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::media::{Media, MediaError};
use crate::call::registry::{CallSetup, Calls, Refused};
use crate::protocol::rtp::plan::MediaPlan;
use crate::protocol::rtp::stats::RtpStats;
use crate::protocol::sip::call::{CallCommand, CallEvent, Cause, Ended, Side};
use crate::protocol::sip::core::CallRef;
use crate::telephony::{CallEnd, EndReason, Party};
use crate::transport::leg::LegEvent;
use crate::transport::rtp_udp::{RtpCarried, RtpHandle};
use crate::transport::sip::SipCall;

/// How long a transfer may take before we hang up all the same.
const TRANSFER_LIMIT: Duration = Duration::from_secs(60);
/// What is left to say when media is over: a BYE and its answer.
const GOODBYE_LIMIT: Duration = Duration::from_secs(40);

/// Why a call that was agreed on did not begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum TalkError {
    #[error(transparent)]
    Media(#[from] MediaError),
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// A call whose media is agreed on.
pub(super) struct Talk {
    sip: SipCall,
    media: Media,
    carried: JoinHandle<RtpCarried>,
    keys: tokio::sync::mpsc::Sender<LegEvent>,
    /// An offer of ours that waits for its answer.
    asked: bool,
}

/// How a call went, for its record.
pub(super) struct Went {
    pub stats: RtpStats,
    /// What became of the transfer, if there was one: the last status of it.
    pub transfer: Option<u16>,
}

impl Talk {
    /// Starts the call's actor on the stream of this plan.
    pub(super) fn begin(
        calls: &Calls,
        setup: CallSetup,
        sip: SipCall,
        mut media: Media,
        plan: MediaPlan,
    ) -> Result<Self, (SipCall, TalkError)> {
        let stream = match media.stream(plan) {
            Ok(Some(stream)) => stream,
            Ok(None) => unreachable!("the first agreement of a call makes its stream"),
            Err(error) => return Err((sip, error.into())),
        };
        let (leg, side) = stream.leg();
        let keys = side.events.clone();
        if let Err(refused) = calls.start(setup, leg) {
            return Err((sip, refused.into()));
        }
        let carried = tokio::spawn(stream.carry(side));
        Ok(Self { sip, media, carried, keys, asked: false })
    }

    pub(super) fn stream(&self) -> Option<RtpHandle> {
        self.media.handle().cloned()
    }

    pub(super) fn own_address(&self) -> IpAddr {
        self.media.own_address()
    }

    pub(super) fn id(&self) -> CallRef {
        self.sip.id
    }

    pub(super) async fn command(&self, command: CallCommand) {
        // A task that has stopped has hung up already.
        let _ = self.sip.command(command).await;
    }

    /// Runs until both sides are over. `transfer_to`: whom the caller is handed to when our side has hung up, asked then.
    pub(super) async fn run(mut self, transfer_to: impl FnOnce() -> Option<String>) -> (SipCall, Went) {
        let mut signalling = true;
        let carried = loop {
            tokio::select! {
                biased;
                event = self.sip.recv(), if signalling => match event {
                    Some(CallEvent::Ended(ended)) => {
                        signalling = false;
                        self.end_media(end_of(&ended)).await;
                    }
                    Some(event) => self.on_event(event).await,
                    None => {
                        signalling = false;
                        self.end_media(CallEnd::new(Party::System, EndReason::ConnectionLost)).await;
                    }
                },
                carried = &mut self.carried => break carried,
            }
        };
        let stats = match carried {
            Ok(carried) => carried.stats,
            Err(error) => {
                warn!(%error, "the media task of a call failed");
                RtpStats::default()
            }
        };
        let mut transfer = None;
        if signalling {
            if let Some(to) = transfer_to() {
                transfer = Some(self.hand_over(to).await);
            }
            self.command(CallCommand::HangUp).await;
            // The last word of signalling; whoever does not say it in time is left to the transactions.
            let _ = timeout(GOODBYE_LIMIT, async {
                while let Some(event) = self.sip.recv().await {
                    if matches!(event, CallEvent::Ended(_)) {
                        break;
                    }
                }
            })
            .await;
        }
        (self.sip, Went { stats, transfer })
    }

    async fn end_media(&self, end: CallEnd) {
        if let Some(handle) = self.media.handle() {
            handle.end(end).await;
        }
    }

    async fn on_event(&mut self, event: CallEvent) {
        match event {
            CallEvent::Offer { offer } => match self.media.answer(&offer) {
                Ok((body, plan)) => {
                    self.adopt(plan).await;
                    self.command(CallCommand::AnswerOffer { body }).await;
                }
                Err(error) => {
                    info!(%error, "an offer in the call is refused; it goes on as it was");
                    self.command(CallCommand::RefuseOffer { status: error.status() }).await;
                }
            },
            CallEvent::OfferWanted => {
                let body = self.media.offer();
                self.asked = true;
                self.command(CallCommand::AnswerOffer { body }).await;
            }
            CallEvent::Acked { answer: Some(answer) } | CallEvent::OfferAnswered { answer: Some(answer) } => {
                self.accept(answer).await;
            }
            // By INFO; a key of the sound or of RFC 4733 comes over the leg.
            CallEvent::Dtmf { digit, .. } => {
                if self.keys.try_send(LegEvent::Dtmf(digit)).is_err() {
                    debug!("a key was lost: the call does not keep up");
                }
            }
            // The agent calls nobody on a stranger's word.
            CallEvent::Refer { .. } => self.command(CallCommand::AnswerRefer { accept: false }).await,
            CallEvent::OfferRefused { status } => debug!(status, "our offer was refused; the call goes on as it was"),
            CallEvent::Acked { answer: None }
            | CallEvent::OfferAnswered { answer: None }
            | CallEvent::Ringing
            | CallEvent::EarlyMedia { .. }
            | CallEvent::Answered { .. }
            | CallEvent::Transfer { .. }
            | CallEvent::Ended(_) => {}
        }
    }

    async fn accept(&mut self, answer: Bytes) {
        if !std::mem::take(&mut self.asked) {
            return;
        }
        match self.media.accept(&answer) {
            Ok(plan) => self.adopt(plan).await,
            Err(error) => info!(%error, "the answer to an offer in the call makes no sense; it goes on as it was"),
        }
    }

    async fn adopt(&self, plan: MediaPlan) {
        if let Some(handle) = self.media.handle() {
            handle.adopt(plan).await;
        }
    }

    /// Asks the peer to call `to` in our place. Gives the last status that it told: 200 where somebody answered.
    async fn hand_over(&mut self, to: String) -> u16 {
        info!("the caller is handed to a person");
        self.command(CallCommand::Refer { to, replaces: None }).await;
        let told = timeout(TRANSFER_LIMIT, async {
            let mut last = 0;
            while let Some(event) = self.sip.recv().await {
                match event {
                    CallEvent::Transfer { status, done } => {
                        last = status;
                        if done || status >= 200 {
                            return last;
                        }
                    }
                    // The peer hung up by itself once the other side had answered.
                    CallEvent::Ended(_) => return last,
                    _ => {}
                }
            }
            last
        });
        let status = told.await.unwrap_or(408);
        if !(200..300).contains(&status) {
            warn!(status, "the caller could not be handed over");
        }
        status
    }
}

/// How a call ended, in the words of its record.
pub(super) fn end_of(ended: &Ended) -> CallEnd {
    match (ended.by, ended.cause) {
        (Side::Peer, Cause::HungUp | Cause::Cancelled | Cause::Replaced) => {
            CallEnd::new(Party::Caller, EndReason::HungUp)
        }
        (Side::Us, _) => CallEnd::new(Party::System, EndReason::HungUp),
        (_, Cause::NoAck | Cause::NoAnswer | Cause::Refused(_) | Cause::Declined) => {
            CallEnd::new(Party::Carrier, EndReason::NeverConnected)
        }
        _ => CallEnd::new(Party::Carrier, EndReason::ConnectionLost),
    }
}
