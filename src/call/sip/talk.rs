//! The two sides of one SIP call, signalling and media, from their first agreement to their end: each is told when the
//! other is over, and offers on the way are answered. What the leg hears is an actor's or an announcer's.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
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
use crate::transport::leg::{Leg, LegEvent};
use crate::transport::rtp_udp::{RtpCarried, RtpHandle, RtpStream};
use crate::transport::sip::SipCall;

/// What is left to say when media is over: a BYE and its answer.
const GOODBYE_LIMIT: Duration = Duration::from_secs(40);
/// A leg that nobody holds any more is put down within this.
const LEG_LIMIT: Duration = Duration::from_secs(6);

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
    sound: Sound,
    stats: RtpStats,
    /// The leg's queue, for keys that come by signalling.
    keys: Option<mpsc::Sender<LegEvent>>,
    /// An offer of ours that waits for its answer.
    asked: bool,
    /// Its last word has not been said.
    signalled: bool,
}

enum Sound {
    /// Nobody talks on it.
    Idle(Box<RtpStream>),
    /// A leg is carried.
    Carried(JoinHandle<(RtpCarried, RtpStream)>),
    Over,
}

/// What happened on a call.
pub(super) enum Step {
    /// To be given to [`Talk::on_event`] by whoever has no use for it.
    Told(CallEvent),
    /// Signalling is over, so the call is.
    Gone(Ended),
    /// The leg is over; the call may not be.
    Silent,
}

impl Talk {
    /// A call on the stream of this plan, which nobody talks on yet.
    pub(super) fn agreed(sip: SipCall, mut media: Media, plan: MediaPlan) -> Result<Self, (SipCall, MediaError)> {
        let stream = match media.stream(plan) {
            Ok(Some(stream)) => stream,
            Ok(None) => unreachable!("the first agreement of a call makes its stream"),
            Err(error) => return Err((sip, error)),
        };
        let sound = Sound::Idle(Box::new(stream));
        Ok(Self { sip, media, sound, stats: RtpStats::default(), keys: None, asked: false, signalled: true })
    }

    /// Starts the call's actor on the stream of this plan.
    pub(super) fn begin(
        calls: &Calls,
        setup: CallSetup,
        sip: SipCall,
        media: Media,
        plan: MediaPlan,
    ) -> Result<Self, (SipCall, TalkError)> {
        let mut talk = Self::agreed(sip, media, plan).map_err(|(sip, error)| (sip, error.into()))?;
        let Some(leg) = talk.lend() else { unreachable!("nobody has talked on the stream") };
        match calls.start(setup, leg) {
            Ok(_) => Ok(talk),
            Err(refused) => Err((talk.sip, refused.into())),
        }
    }

    /// A leg to talk on. `None`: somebody does, or media is over.
    pub(super) fn lend(&mut self) -> Option<Leg> {
        match std::mem::replace(&mut self.sound, Sound::Over) {
            Sound::Idle(stream) => {
                let (leg, side) = stream.leg();
                self.keys = Some(side.events.clone());
                self.sound = Sound::Carried(tokio::spawn(stream.carry_leg(side)));
                Some(leg)
            }
            other => {
                self.sound = other;
                None
            }
        }
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

    /// Whether the other side is still there.
    pub(super) fn is_signalled(&self) -> bool {
        self.signalled
    }

    pub(super) async fn command(&mut self, command: CallCommand) {
        // A task that has stopped has hung up already.
        let _ = self.sip.command(command).await;
    }

    /// Asks the other side to call `to`, or to take our place in `other`, which `to` names.
    pub(super) async fn refer(&mut self, to: &str, other: Option<CallRef>) {
        match other {
            None => self.command(CallCommand::Refer { to: to.to_owned(), replaces: None }).await,
            Some(other) => drop(self.sip.refer_to_call(other, Some(to.to_owned())).await),
        }
    }

    /// The next thing that happens; pends for ever when nothing can. Cancel-safe.
    pub(super) async fn step(&mut self) -> Step {
        let Self { sip, sound, signalled, stats, keys, .. } = self;
        let carried = async {
            match sound {
                Sound::Carried(task) => task.await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            event = sip.recv(), if *signalled => match event {
                Some(CallEvent::Ended(ended)) => {
                    *signalled = false;
                    Step::Gone(ended)
                }
                Some(event) => Step::Told(event),
                None => {
                    *signalled = false;
                    Step::Gone(Ended { by: Side::Us, cause: Cause::Lost, status: None, text: String::new() })
                }
            },
            carried = carried => {
                *keys = None;
                *sound = match carried {
                    Ok((carried, stream)) => {
                        *stats = carried.stats;
                        Sound::Idle(Box::new(stream))
                    }
                    Err(error) => {
                        warn!(%error, "the media task of a call failed");
                        Sound::Over
                    }
                };
                Step::Silent
            }
        }
    }

    /// Until the leg is over, by whichever side.
    pub(super) async fn run(&mut self) {
        loop {
            match self.step().await {
                Step::Told(event) => self.on_event(event).await,
                Step::Gone(ended) => self.end_media(end_of(&ended)).await,
                Step::Silent => return,
            }
        }
    }

    /// Puts the leg down and hangs up, unless the other side did. Gives the call, for its messages, and what was carried.
    pub(super) async fn finish(mut self) -> (SipCall, RtpStats) {
        if let Sound::Carried(_) = self.sound {
            self.end_media(CallEnd::new(Party::System, EndReason::HungUp)).await;
            let put_down = timeout(LEG_LIMIT, async { while !matches!(self.step().await, Step::Silent) {} });
            if put_down.await.is_err() {
                warn!("the media of a call did not end");
            }
        }
        if let Sound::Idle(stream) = std::mem::replace(&mut self.sound, Sound::Over) {
            stream.close();
        }
        if self.signalled {
            self.command(CallCommand::HangUp).await;
            // The last word of signalling; whoever does not say it in time is left to the transactions.
            let _ = timeout(GOODBYE_LIMIT, async { while !matches!(self.step().await, Step::Gone(_)) {} }).await;
        }
        (self.sip, self.stats)
    }

    async fn end_media(&mut self, end: CallEnd) {
        if let Some(handle) = self.media.handle() {
            handle.end(end).await;
        }
    }

    pub(super) async fn on_event(&mut self, event: CallEvent) {
        match event {
            CallEvent::Offer { offer } => match self.media.answer(&offer) {
                Ok((body, plan)) => {
                    self.adopt(plan).await;
                    self.command(CallCommand::AnswerOffer { body }).await;
                }
                Err(error) => {
                    info!(%error, "an offer in the call is refused; it goes on as it was");
                    self.command(error.refuse_offer()).await;
                }
            },
            CallEvent::OfferWanted => {
                let body = self.media.offer();
                self.asked = true;
                self.command(CallCommand::AnswerOffer { body }).await;
            }
            CallEvent::Moved => {
                info!("our address towards the peer has changed: it is told");
                let body = self.media.moved();
                self.asked = true;
                self.command(CallCommand::Offer { body }).await;
            }
            CallEvent::Acked { answer: Some(answer) } | CallEvent::OfferAnswered { answer: Some(answer) } => {
                self.accept(answer).await;
            }
            // By INFO; a key of the sound or of RFC 4733 comes over the leg.
            CallEvent::Dtmf { digit, .. } => {
                if self.keys.as_ref().is_none_or(|keys| keys.try_send(LegEvent::Dtmf(digit)).is_err()) {
                    debug!("a key was lost: the call does not keep up");
                }
            }
            // The agent calls nobody on a stranger's word.
            CallEvent::Refer { .. } => self.command(CallCommand::AnswerRefer { accept: false }).await,
            CallEvent::OfferRefused { status } => {
                self.asked = false;
                debug!(status, "our offer was refused; the call goes on as it was");
            }
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

    async fn adopt(&mut self, plan: MediaPlan) {
        if let Some(handle) = self.media.handle() {
            handle.adopt(plan).await;
        }
    }
}

/// How a call ended, in the words of its record.
pub(super) fn end_of(ended: &Ended) -> CallEnd {
    match (ended.by, ended.cause) {
        (Side::Peer, Cause::HungUp | Cause::Cancelled | Cause::Replaced) => {
            CallEnd::new(Party::Caller, EndReason::HungUp)
        }
        // The task that signals is gone.
        (Side::Us, Cause::Lost) => CallEnd::new(Party::System, EndReason::ConnectionLost),
        (Side::Us, _) => CallEnd::new(Party::System, EndReason::HungUp),
        (_, Cause::NoAck | Cause::NoAnswer | Cause::Refused(_) | Cause::Declined) => {
            CallEnd::new(Party::Carrier, EndReason::NeverConnected)
        }
        _ => CallEnd::new(Party::Carrier, EndReason::ConnectionLost),
    }
}
