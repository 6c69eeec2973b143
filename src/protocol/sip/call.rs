//! One call: an INVITE usage of either side, from its first message until nothing of it can come any more. It reports
//! what the peer does as [`CallEvent`]s and takes [`CallCommand`]s. `call/inbound.rs` answers an INVITE,
//! `call/outbound.rs` sends one, `call/midcall.rs` changes a running call, `call/transfer.rs` hands it over.

mod inbound;
mod midcall;
mod outbound;
mod transfer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::protocol::sip::core::{CallRef, Core, Owner};
use crate::protocol::sip::dialog::Dialog;
use crate::protocol::sip::digest::{Authenticator, Credentials};
use crate::protocol::sip::ladder::Ladder;
use crate::protocol::sip::message::{Method, Request, Response};
use crate::protocol::sip::target::Target;
use crate::protocol::sip::transaction::{ClientEvent, Outcome, ServerKey};
use crate::protocol::sip::value::NameAddr;

pub use midcall::refuse_interval;
pub use outbound::Dial;

/// What happens on a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallEvent {
    /// 180: the callee's telephone rings.
    Ringing,
    /// The answer to our offer, before the call is: play what comes.
    EarlyMedia { answer: Bytes },
    /// 2xx. `None`: the peer sent no answer, which only a broken one does.
    Answered { answer: Option<Bytes> },
    /// The ACK of our 2xx. It carries the peer's answer if the offer was ours.
    Acked { answer: Option<Bytes> },
    /// The peer wants to change the session: reply with `AnswerOffer` or `RefuseOffer`.
    Offer { offer: Bytes },
    /// The peer wants us to make an offer: reply with `AnswerOffer`; its answer comes as `Acked`.
    OfferWanted,
    /// The answer to an offer of ours, or to the same offer again when the session was refreshed.
    OfferAnswered { answer: Option<Bytes> },
    /// The session stays as it was.
    OfferRefused { status: u16 },
    /// One of `0-9 * # A-D`, by INFO.
    Dtmf { digit: char, duration_ms: u32 },
    /// The peer asks us to call somebody in its place: reply with `AnswerRefer`, then report with `ReferProgress`.
    Refer {
        /// The URI to call, without the headers that are listed apart.
        to: String,
        /// The value for a Replaces header of that call: an attended transfer.
        replaces: Option<String>,
        referred_by: Option<String>,
    },
    /// The peer was told an address of ours that leads nowhere any more: reply with an `Offer` that names the present one
    /// for media. Its Contact does so for signalling.
    Moved,
    /// How the transfer that we asked for goes, by the status of the call that it makes. `done`: nothing more comes.
    Transfer { status: u16, done: bool },
    /// The call is over. Nothing follows but `Event::Closed`.
    Ended(Ended),
}

/// Who ended a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Us,
    Peer,
    /// A limit or the network.
    Nobody,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub by: Side,
    pub cause: Cause,
    /// The peer's status, if it refused.
    pub status: Option<u16>,
    /// The peer's words, for the log: a reason phrase or a Reason header.
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// BYE.
    HungUp,
    /// The caller gave up before the call was answered.
    Cancelled,
    /// Not answered: `Ended::status` says how.
    Refused(Refusal),
    /// Nobody answered within the limit.
    NoAnswer,
    /// We refused it.
    Declined,
    /// The peer did not confirm our answer.
    NoAck,
    /// The session timer ran out: the peer is gone.
    SessionExpired,
    /// The peer knows nothing of the call any more.
    Lost,
    /// Could not be sent, or nobody answered it at all.
    Unreachable,
    /// Another call took its place (RFC 3891).
    Replaced,
    /// A transaction found no room.
    Overload,
}

/// What a refusal of an outbound call means to whoever wanted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Busy,
    Declined,
    NoAnswer,
    /// No such number, or nobody is reachable there.
    NotFound,
    /// Our account may not call, or not there.
    Forbidden,
    /// A fault of the peer or between: trying again may help.
    Failed,
}

impl Cause {
    /// Stable, for metrics and records.
    pub const fn label(self) -> &'static str {
        match self {
            Self::HungUp => "hung_up",
            Self::Cancelled => "cancelled",
            Self::Refused(refusal) => refusal.label(),
            Self::NoAnswer => "no_answer",
            Self::Declined => "declined_by_us",
            Self::NoAck => "no_ack",
            Self::SessionExpired => "session_expired",
            Self::Lost => "lost",
            Self::Unreachable => "unreachable",
            Self::Replaced => "replaced",
            Self::Overload => "overload",
        }
    }
}

impl Refusal {
    /// Stable, for metrics and records.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Declined => "declined",
            Self::NoAnswer => "no_answer",
            Self::NotFound => "not_found",
            Self::Forbidden => "forbidden",
            Self::Failed => "failed",
        }
    }

    pub const fn of(status: u16) -> Self {
        match status {
            486 | 600 => Self::Busy,
            603 | 607 | 608 => Self::Declined,
            408 | 480 | 487 => Self::NoAnswer,
            404 | 410 | 484 | 485 | 502 | 604 => Self::NotFound,
            401 | 402 | 403 | 407 => Self::Forbidden,
            _ => Self::Failed,
        }
    }
}

/// Why a description is refused (RFC 3261 §20.43).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warning {
    /// 300 to 399.
    pub code: u16,
    /// Without quotes.
    pub text: &'static str,
}

/// What the user of a call wants.
#[derive(Clone, Debug)]
pub enum CallCommand {
    /// 180; with a body 183 and early media.
    Ring {
        body: Option<Bytes>,
    },
    /// 200 with the answer, or with an offer if the INVITE had none.
    Answer {
        body: Bytes,
    },
    /// Another final status than 2xx.
    Refuse {
        status: u16,
    },
    HangUp,
    /// Change the session by re-INVITE.
    Offer {
        body: Bytes,
    },
    AnswerOffer {
        body: Bytes,
    },
    RefuseOffer {
        status: u16,
    },
    /// The offer that waits, of the call or in it, cannot be served; the peer is told why.
    RefuseMedia {
        status: u16,
        warning: Warning,
    },
    /// A key by INFO (application/dtmf-relay).
    Dtmf {
        digit: char,
        duration_ms: u32,
    },
    /// Ask the peer to call `to`. `replaces` is the value of a Replaces header: an attended transfer.
    Refer {
        to: String,
        replaces: Option<String>,
    },
    AnswerRefer {
        accept: bool,
    },
    /// The status of the call that we make for the peer; a final one ends the report.
    ReferProgress {
        status: u16,
    },
}

pub struct Call {
    pub id: CallRef,
    pub call_id: Arc<str>,
    pub local_tag: String,
    pub ladder: Ladder,
    /// What happened and was not yet told.
    pub events: Vec<CallEvent>,
    /// For which time the endpoint will look at this call.
    pub armed: Option<Instant>,
    phase: Phase,
    /// From the INVITE on for the callee, from the 2xx on for the caller.
    dialog: Option<Dialog>,
    /// The value of our Contact.
    contact: String,
    auth: Authenticator,
    credentials: Option<Credentials>,
    /// A 2xx of ours that waits for its ACK.
    unacked: Option<Unacked>,
    /// The user hung up while the ACK was outstanding: a callee may not send BYE before it (RFC 3261 §15).
    bye_after_ack: bool,
    acks: Vec<SentAck>,
    offer_in: Option<OfferIn>,
    offer_out: Option<OfferOut>,
    /// An offer that has to wait: until when at least.
    offer_waiting: Option<(Instant, Bytes)>,
    /// When to tell the peer that we are reached elsewhere.
    move_at: Option<Instant>,
    session: Option<Session>,
    /// The peer takes UPDATE.
    peer_updates: bool,
    /// What we last said in SDP, to be said again when a session is refreshed by re-INVITE.
    local_sdp: Bytes,
    refer_in: Option<ReferIn>,
    /// Until when the peer has to report on a transfer.
    refer_out: Option<Instant>,
    /// The call that this one takes the place of once it is answered.
    replaces: Option<CallRef>,
    /// We sent the first INVITE.
    is_caller: bool,
    ended: bool,
}

enum Phase {
    Resolving {
        dial: Box<Dial>,
        until: Instant,
    },
    Calling(Box<outbound::Calling>),
    Offered(Box<inbound::Offered>),
    Confirmed,
    /// BYE was sent.
    Leaving {
        until: Instant,
    },
    Gone,
}

struct Unacked {
    bytes: Bytes,
    target: Target,
    seq: u32,
    next: Instant,
    interval: Duration,
    until: Instant,
}

/// The ACK of a 2xx, to be sent again when that comes again.
struct SentAck {
    tag: String,
    seq: u32,
    bytes: Bytes,
    target: Target,
}

struct OfferIn {
    key: ServerKey,
    request: Request,
    source: Target,
    until: Instant,
}

struct OfferOut {
    body: Bytes,
    /// A refresh of the session timer, not an offer of the user's.
    refresh: bool,
}

/// RFC 4028.
struct Session {
    interval: Duration,
    /// We refresh it.
    ours: bool,
    /// When to refresh, or when to give the peer up.
    at: Instant,
    /// A refresh of ours is on its way.
    pending: bool,
}

struct ReferIn {
    /// The REFER, until the user has said yes or no.
    pending: Option<(ServerKey, Request, Instant)>,
    /// The number of the REFER, which names its subscription.
    seq: u32,
}

/// ACKs kept for repetition: one for each fork and re-INVITE that may still be repeated.
const MAX_ACKS: usize = 8;

impl Call {
    fn new(id: CallRef, call_id: Arc<str>, local_tag: String, contact: String, ladder: Ladder) -> Self {
        Self {
            id,
            call_id,
            local_tag,
            ladder,
            events: Vec::new(),
            armed: None,
            phase: Phase::Gone,
            dialog: None,
            contact,
            auth: Authenticator::default(),
            credentials: None,
            unacked: None,
            bye_after_ack: false,
            acks: Vec::new(),
            offer_in: None,
            offer_out: None,
            offer_waiting: None,
            move_at: None,
            session: None,
            peer_updates: false,
            local_sdp: Bytes::new(),
            refer_in: None,
            refer_out: None,
            replaces: None,
            is_caller: false,
            ended: false,
        }
    }

    pub fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone)
    }

    /// Whether nobody has been told yet that it is over.
    pub fn is_live(&self) -> bool {
        !self.ended
    }

    pub fn is_confirmed(&self) -> bool {
        matches!(self.phase, Phase::Confirmed)
    }

    /// Once, when this call is answered: the call whose place it takes.
    pub fn take_replaced(&mut self) -> Option<CallRef> {
        if self.is_confirmed() { self.replaces.take() } else { None }
    }

    /// Whether a request inside a dialog is for this call. An absent To tag is a peer's of RFC 2543.
    pub fn is_for(&self, to_tag: Option<&str>, from_tag: &str) -> bool {
        if to_tag.is_some_and(|tag| tag != self.local_tag) {
            return false;
        }
        let is = |dialog: &Dialog| dialog.remote_tag == from_tag;
        match &self.phase {
            Phase::Calling(calling) => calling.fork(from_tag).is_some(),
            _ => self.dialog.as_ref().is_some_and(is),
        }
    }

    /// Whether a Replaces header means this call (RFC 3891 §3: the tags as we see them).
    pub fn is_replaced_by(&self, to_tag: &str, from_tag: &str) -> bool {
        self.local_tag == to_tag && self.dialog.as_ref().is_some_and(|dialog| dialog.remote_tag == from_tag)
    }

    /// `Replaces` for whoever is to take our place.
    pub fn replaces_header(&self) -> Option<String> {
        self.dialog.as_ref().map(Dialog::replaces)
    }

    /// The peer's URI.
    pub fn remote_target(&self) -> Option<String> {
        self.dialog.as_ref().map(|dialog| dialog.remote_target().to_owned())
    }

    /// Where requests of ours in its dialog go, if it has one.
    pub fn next_hop(&self) -> Option<Target> {
        self.dialog.as_ref().map(Dialog::next_hop)
    }

    /// From `at` on the peer is to be told that we are reached elsewhere, as soon as no other offer is under way.
    pub fn move_from(&mut self, at: Instant) {
        self.move_at = Some(at);
    }

    fn emit(&mut self, event: CallEvent) {
        if !self.ended {
            self.events.push(event);
        }
    }

    /// Tells the user that the call is over, once.
    fn end(&mut self, by: Side, cause: Cause, status: Option<u16>, text: impl Into<String>) {
        self.emit(CallEvent::Ended(Ended { by, cause, status, text: text.into() }));
        self.ended = true;
    }

    /// The next time at which something is due.
    pub fn deadline(&self) -> Option<Instant> {
        let of_phase = match &self.phase {
            Phase::Resolving { until, .. } | Phase::Leaving { until } => Some(*until),
            Phase::Calling(calling) => Some(calling.deadline()),
            Phase::Offered(offered) => Some(offered.deadline()),
            Phase::Confirmed | Phase::Gone => None,
        };
        let of_session = match &self.phase {
            Phase::Confirmed => self.session.as_ref().map(|session| session.at),
            _ => None,
        };
        [
            of_phase,
            of_session,
            self.unacked.as_ref().map(|unacked| unacked.next.min(unacked.until)),
            self.offer_in.as_ref().map(|offer| offer.until),
            self.offer_waiting.as_ref().map(|(at, _)| *at).filter(|_| self.may_offer()),
            self.move_at.filter(|_| self.may_offer()),
            self.refer_in.as_ref().and_then(|refer| refer.pending.as_ref()).map(|(_, _, until)| *until),
            self.refer_out,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub fn on_tick(&mut self, core: &mut Core, now: Instant) {
        match &self.phase {
            Phase::Resolving { until, .. } if *until <= now => self.on_resolved(core, now, Vec::new()),
            Phase::Leaving { until } if *until <= now => self.phase = Phase::Gone,
            Phase::Calling(_) => self.on_calling_tick(core, now),
            Phase::Offered(_) => self.on_offered_tick(core, now),
            _ => {}
        }
        self.on_unacked_tick(core, now);
        self.on_midcall_tick(core, now);
        self.on_transfer_tick(core, now);
    }

    pub fn on_command(&mut self, core: &mut Core, now: Instant, command: CallCommand) {
        match command {
            CallCommand::Ring { body } => self.ring(core, now, body),
            CallCommand::Answer { body } => self.answer(core, now, body),
            CallCommand::Refuse { status } => self.refuse(core, now, status, None),
            CallCommand::HangUp => self.hang_up(core, now),
            CallCommand::Offer { body } => self.offer(core, now, body),
            CallCommand::AnswerOffer { body } => self.answer_offer(core, now, body),
            CallCommand::RefuseOffer { status } => self.refuse_offer(core, now, status, None),
            CallCommand::RefuseMedia { status, warning } if matches!(self.phase, Phase::Offered(_)) => {
                self.refuse(core, now, status, Some(warning));
            }
            CallCommand::RefuseMedia { status, warning } => self.refuse_offer(core, now, status, Some(warning)),
            CallCommand::Dtmf { digit, duration_ms } => self.send_dtmf(core, now, digit, duration_ms),
            CallCommand::Refer { to, replaces } => self.refer(core, now, &to, replaces.as_deref()),
            CallCommand::AnswerRefer { accept } => self.answer_refer(core, now, accept),
            CallCommand::ReferProgress { status } => self.refer_progress(core, now, status),
        }
    }

    pub fn hang_up(&mut self, core: &mut Core, now: Instant) {
        match &self.phase {
            Phase::Resolving { .. } => {
                self.end(Side::Us, Cause::Cancelled, None, "");
                self.phase = Phase::Gone;
            }
            Phase::Calling(_) => {
                self.end(Side::Us, Cause::Cancelled, None, "");
                self.give_up_calling(core, now);
            }
            Phase::Offered(_) => self.refuse(core, now, 480, None),
            Phase::Confirmed => {
                self.end(Side::Us, Cause::HungUp, None, "");
                self.leave(core, now);
            }
            Phase::Leaving { .. } | Phase::Gone => {}
        }
    }

    /// Ends a running call because another one took its place.
    pub fn be_replaced(&mut self, core: &mut Core, now: Instant) {
        self.end(Side::Peer, Cause::Replaced, None, "");
        self.hang_up(core, now);
    }

    /// Sends BYE, or waits for the ACK that must come before.
    fn leave(&mut self, core: &mut Core, now: Instant) {
        if !matches!(self.phase, Phase::Confirmed) {
            return;
        }
        if let Some(offer) = self.offer_in.take() {
            self.reply(core, now, &offer.key, Response::answer(&offer.request, 487));
        }
        if self.unacked.is_some() {
            self.bye_after_ack = true;
            return;
        }
        self.send_bye(core, now);
    }

    fn send_bye(&mut self, core: &mut Core, now: Instant) {
        // A little beyond the transaction's own limit, in case its end should be missed.
        let until = now + core.options.timers.patience() + Duration::from_secs(1);
        self.phase = match self.send(core, now, Method::Bye, |_| {}) {
            true => Phase::Leaving { until },
            false => Phase::Gone,
        };
    }

    /// Sends a request inside the dialog. `false`: there is no dialog, or no room.
    fn send(&mut self, core: &mut Core, now: Instant, method: Method, fill: impl FnOnce(&mut Request)) -> bool {
        let Some(dialog) = &mut self.dialog else { return false };
        let target = dialog.next_hop();
        let mut request = dialog.request(method);
        if matches!(request.method, Method::Invite | Method::Update | Method::Refer) {
            request.headers.push("Contact", self.contact.clone());
        }
        fill(&mut request);
        if let Some(credentials) = &self.credentials
            && self.auth.is_ready()
        {
            self.auth.authorize(&mut request, credentials, &mut core.rng);
        }
        core.request(now, request, target, Owner::Call(self.id)).is_some()
    }

    /// Answers a request of the dialog.
    fn reply(&mut self, core: &mut Core, now: Instant, key: &ServerKey, mut response: Response) {
        response.tag(&self.local_tag);
        core.respond(now, key, response);
    }

    /// A request inside the dialog, other than ACK and CANCEL.
    pub fn on_request(&mut self, core: &mut Core, now: Instant, key: &ServerKey, request: Request, source: &Target) {
        let number = request.cseq().map_or(0, |(number, _)| number);
        let from_tag = request.from_tag();
        let dialog = match &mut self.phase {
            Phase::Calling(calling) => calling.fork_mut(&from_tag),
            Phase::Gone => None,
            _ => self.dialog.as_mut(),
        };
        let Some(dialog) = dialog else {
            return self.reply(core, now, key, Response::answer(&request, 481));
        };
        if !dialog.take_seq(number) {
            return self.reply(core, now, key, Response::answer(&request, 500));
        }
        dialog.flow = source.clone();
        if matches!(self.phase, Phase::Leaving { .. }) {
            let status = if request.method == Method::Bye { 200 } else { 481 };
            return self.reply(core, now, key, Response::answer(&request, status));
        }
        match request.method {
            Method::Bye => self.on_bye(core, now, key, &request),
            Method::Invite => self.on_reinvite(core, now, key, request, source),
            Method::Update => self.on_update(core, now, key, request, source),
            Method::Prack => self.on_prack(core, now, key, &request),
            Method::Info => self.on_info(core, now, key, &request),
            Method::Refer => self.on_refer(core, now, key, request),
            Method::Notify => self.on_notify(core, now, key, &request),
            Method::Options => self.reply(core, now, key, Response::answer(&request, 200)),
            _ => {
                let mut response = Response::answer(&request, 405);
                response.headers.push("Allow", crate::protocol::sip::check::ALLOW);
                self.reply(core, now, key, response);
            }
        }
    }

    fn on_bye(&mut self, core: &mut Core, now: Instant, key: &ServerKey, request: &Request) {
        self.reply(core, now, key, Response::answer(request, 200));
        if let Some(offer) = self.offer_in.take() {
            self.reply(core, now, &offer.key, Response::answer(&offer.request, 487));
        }
        match std::mem::replace(&mut self.phase, Phase::Gone) {
            // The caller may leave an early dialog by BYE (RFC 3261 §15).
            Phase::Offered(offered) => {
                self.reply(core, now, &offered.key, Response::answer(&offered.request, 487));
            }
            // A callee may not; one that does is gone all the same.
            Phase::Calling(calling) => core.cancel(now, &calling.key),
            _ => {}
        }
        self.unacked = None;
        let text = request.headers.get("Reason").unwrap_or_default().to_owned();
        self.end(Side::Peer, Cause::HungUp, None, text);
    }

    /// The ACK of a 2xx of ours.
    pub fn on_ack(&mut self, core: &mut Core, now: Instant, request: &Request) {
        let number = request.cseq().map_or(0, |(number, _)| number);
        if self.unacked.as_ref().is_none_or(|unacked| unacked.seq != number) {
            return;
        }
        self.unacked = None;
        self.emit(CallEvent::Acked { answer: request.sdp() });
        if self.bye_after_ack {
            self.send_bye(core, now);
        }
    }

    fn on_unacked_tick(&mut self, core: &mut Core, now: Instant) {
        let timers = core.options.timers;
        let Some(unacked) = &mut self.unacked else { return };
        if unacked.until <= now {
            self.unacked = None;
            // RFC 3261 §13.3.1.4: without an ACK the session is to be ended.
            self.end(Side::Nobody, Cause::NoAck, None, "no ACK");
            if matches!(self.phase, Phase::Confirmed) {
                self.send_bye(core, now);
            }
        } else if unacked.next <= now {
            core.transactions.repeat(unacked.target.clone(), unacked.bytes.clone(), &self.call_id);
            unacked.interval = (unacked.interval * 2).min(timers.t2);
            unacked.next = (unacked.next + unacked.interval).max(now);
        }
    }

    /// What became of a request of this call.
    pub fn on_client_event(&mut self, core: &mut Core, now: Instant, event: ClientEvent<Owner>) {
        match event.request.method {
            Method::Invite => self.on_invite_event(core, now, event),
            Method::Bye => self.on_bye_event(core, now, event),
            Method::Update => self.on_update_event(core, now, event),
            Method::Refer => self.on_refer_event(core, now, event),
            // Keys and progress reports: lost ones are not worth a call. The dialog's end is (RFC 5057).
            _ => {
                if matches!(event.outcome, Outcome::Response(ref response) if response.status == 481)
                    && event.request.method == Method::Info
                {
                    self.be_lost();
                }
            }
        }
    }

    fn on_bye_event(&mut self, core: &mut Core, now: Instant, event: ClientEvent<Owner>) {
        match event.outcome {
            Outcome::Response(response) if !response.is_final() => return,
            Outcome::Response(response) if matches!(response.status, 401 | 407) => {
                let known = self.credentials.is_some();
                if self.auth.challenged(&event.request, &response, known).is_ok() {
                    return self.send_bye(core, now);
                }
            }
            // The connection is gone: where the peer said it can be reached it may still be.
            Outcome::Unreachable(_) => {
                if let Some(dialog) = &mut self.dialog
                    && let Some(hop) = dialog.named_hop().filter(|hop| !hop.is_same(&event.target))
                {
                    dialog.flow = hop;
                    return self.send_bye(core, now);
                }
            }
            _ => {}
        }
        self.phase = Phase::Gone;
    }

    /// The peer knows nothing of the call: it is over, and a BYE would say nothing new.
    fn be_lost(&mut self) {
        self.end(Side::Peer, Cause::Lost, None, "the peer does not know the call");
        self.unacked = None;
        self.phase = Phase::Gone;
    }

    /// A CANCEL of the INVITE or re-INVITE whose transaction is `key`.
    pub fn on_cancel(&mut self, core: &mut Core, now: Instant, key: &ServerKey, cancel: &Request) {
        if let Some(offer) = self.offer_in.take_if(|offer| offer.key == *key) {
            self.reply(core, now, &offer.key, Response::answer(&offer.request, 487));
        }
        if !matches!(&self.phase, Phase::Offered(offered) if offered.key == *key) {
            // Answered or refused already: the CANCEL came too late and does nothing (RFC 3261 §9.2).
            return;
        }
        if let Phase::Offered(offered) = std::mem::replace(&mut self.phase, Phase::Gone) {
            self.reply(core, now, key, Response::answer(&offered.request, 487));
            self.end(Side::Peer, Cause::Cancelled, None, cancel.headers.get("Reason").unwrap_or_default());
        }
    }
}

/// `sip:bob@example.com?Replaces=…` apart: the URI without headers, and the value of one header.
fn refer_target(value: &str) -> Option<(String, Option<String>)> {
    let name = NameAddr::parse(value)?;
    let crate::protocol::sip::value::Uri::Sip(mut uri) = name.uri else { return Some((name.uri.to_string(), None)) };
    let headers = uri.headers.take().unwrap_or_default();
    uri.params.remove("method");
    let replaces = headers.split('&').find_map(|header| {
        let (name, value) = header.split_once('=')?;
        name.eq_ignore_ascii_case("Replaces").then(|| crate::protocol::sip::value::unescape(value))
    });
    Some((uri.to_string(), replaces))
}
