//! Answering an INVITE: provisional responses, reliable ones where the caller asks for them (RFC 3262), the final one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::Rng as _;

use super::midcall::warn_of;
use super::{Call, CallEvent, Cause, Phase, Side, Unacked, Warning};
use crate::protocol::sip::check::{ALLOW, SUPPORTED};
use crate::protocol::sip::core::{CallRef, Core};
use crate::protocol::sip::dialog::Dialog;
use crate::protocol::sip::ladder::Ladder;
use crate::protocol::sip::message::{Request, Response};
use crate::protocol::sip::target::Target;
use crate::protocol::sip::transaction::{ServerKey, reply_target};
use crate::protocol::sip::value::Uri;

/// A provisional response is repeated each minute, so that no proxy gives the call up (RFC 3261 §13.3.1.1).
const PROVISIONAL_AGAIN: Duration = Duration::from_secs(60);

/// An INVITE without a final answer.
pub struct Offered {
    pub key: ServerKey,
    pub request: Request,
    source: Target,
    until: Instant,
    again: Instant,
    last: Option<Response>,
    rseq: u32,
    reliable: Option<Reliable>,
    /// What has to wait for the PRACK.
    answer: Option<Bytes>,
    ring: Option<Option<Bytes>>,
}

/// A provisional response that waits for its PRACK.
struct Reliable {
    bytes: Bytes,
    target: Target,
    has_body: bool,
    next: Instant,
    interval: Duration,
    until: Instant,
}

impl Offered {
    pub fn deadline(&self) -> Instant {
        let reliable = self.reliable.as_ref().map_or(self.until, |reliable| reliable.next.min(reliable.until));
        let again = if self.last.is_some() { self.again } else { self.until };
        self.until.min(reliable).min(again)
    }

    fn wants_reliable(&self) -> bool {
        self.request.headers.lists("Require", "100rel")
    }
}

impl Call {
    /// The call of an INVITE that was let in and whose transaction is open.
    pub fn inbound(
        core: &mut Core,
        now: Instant,
        id: CallRef,
        key: ServerKey,
        request: Request,
        source: &Target,
        replaces: Option<CallRef>,
    ) -> Self {
        let local_tag = core.token();
        let user = Uri::parse(&request.uri).and_then(|uri| uri.sip().and_then(|uri| uri.user.clone()));
        let contact = core.contact(user.as_deref().unwrap_or_default(), source);
        let call_id: Arc<str> = request.call_id().into();
        let ladder = Ladder::new(core.options.limits.ladder_messages);
        let mut call = Self::new(id, call_id, local_tag, format!("<{contact}>"), ladder);
        call.dialog = Some(Dialog::uas(&request, &call.local_tag, source));
        call.peer_updates = request.headers.lists("Allow", "UPDATE");
        call.replaces = replaces;
        let limit = core.options.ring_limit;
        // The caller may wait less long than we would (RFC 3261 §13.3.1).
        let expires = request.number("Expires").map(|seconds| Duration::from_secs(seconds.into()));
        call.phase = Phase::Offered(Box::new(Offered {
            key,
            source: source.clone(),
            until: now + expires.map_or(limit, |expires| expires.min(limit)),
            again: now + PROVISIONAL_AGAIN,
            last: None,
            // Below 2^31, so that it never wraps (RFC 3262 §3).
            rseq: core.rng.next_u32() >> 2,
            reliable: None,
            answer: None,
            ring: None,
            request,
        }));
        call
    }

    pub(super) fn ring(&mut self, core: &mut Core, now: Instant, body: Option<Bytes>) {
        let contact = self.contact.clone();
        let Phase::Offered(offered) = &mut self.phase else { return };
        if offered.reliable.is_some() {
            offered.ring = Some(body);
            return;
        }
        let mut response = Response::answer(&offered.request, if body.is_some() { 183 } else { 180 });
        response.headers.copy(&offered.request.headers, "Record-Route");
        response.tag(&self.local_tag);
        response.headers.push("Contact", contact);
        response.headers.push("Allow", ALLOW);
        let has_body = body.is_some();
        if let Some(body) = body {
            self.local_sdp = body.clone();
            response.set_body("application/sdp", body);
        }
        if offered.wants_reliable() {
            offered.rseq += 1;
            response.headers.push("Require", "100rel");
            response.headers.push("RSeq", offered.rseq.to_string());
            let timers = core.options.timers;
            offered.reliable = Some(Reliable {
                bytes: response.to_bytes(),
                target: reply_target(&offered.request, &offered.source),
                has_body,
                next: now + timers.t1,
                interval: timers.t1,
                until: now + timers.patience(),
            });
        } else {
            offered.last = Some(response.clone());
            offered.again = now + PROVISIONAL_AGAIN;
        }
        let key = offered.key.clone();
        core.respond(now, &key, response);
    }

    pub(super) fn answer(&mut self, core: &mut Core, now: Instant, body: Bytes) {
        let Phase::Offered(offered) = &mut self.phase else { return };
        if offered.reliable.as_ref().is_some_and(|reliable| reliable.has_body) {
            // RFC 3262 §5: no 2xx before the PRACK of an answer in a provisional response.
            offered.answer = Some(body);
            return;
        }
        let Phase::Offered(offered) = std::mem::replace(&mut self.phase, Phase::Confirmed) else { return };
        let Offered { key, request, source, .. } = *offered;
        self.accept(core, now, &key, &request, &source, Some(body));
    }

    /// 200 to an INVITE, first or later, and again until its ACK comes.
    pub(super) fn accept(
        &mut self,
        core: &mut Core,
        now: Instant,
        key: &ServerKey,
        request: &Request,
        source: &Target,
        body: Option<Bytes>,
    ) {
        let mut response = Response::answer(request, 200);
        response.headers.copy(&request.headers, "Record-Route");
        response.tag(&self.local_tag);
        response.headers.push("Contact", self.contact.clone());
        response.headers.push("Allow", ALLOW);
        response.headers.push("Supported", SUPPORTED);
        response.headers.push("Accept", "application/sdp");
        self.agree_session(core, now, request, &mut response);
        if let Some(body) = body {
            self.local_sdp = body.clone();
            response.set_body("application/sdp", body);
        }
        response.headers.set("Server", core.options.agent.clone());
        let timers = core.options.timers;
        self.unacked = Some(Unacked {
            bytes: response.to_bytes(),
            target: reply_target(request, source),
            seq: request.cseq().map_or(0, |(number, _)| number),
            next: now + timers.t1,
            interval: timers.t1,
            until: now + timers.patience(),
        });
        core.respond(now, key, response);
    }

    pub(super) fn refuse(&mut self, core: &mut Core, now: Instant, status: u16, warning: Option<Warning>) {
        if !matches!(self.phase, Phase::Offered(_)) {
            return;
        }
        let Phase::Offered(offered) = std::mem::replace(&mut self.phase, Phase::Gone) else { return };
        let status = if (300..700).contains(&status) { status } else { 480 };
        let mut response = Response::answer(&offered.request, status);
        if status == 503 {
            response.headers.push("Retry-After", core.options.limits.retry_after_s.to_string());
        }
        warn_of(&mut response, warning);
        self.reply(core, now, &offered.key, response);
        self.end(Side::Us, Cause::Declined, Some(status), "");
    }

    pub(super) fn on_prack(&mut self, core: &mut Core, now: Instant, key: &ServerKey, request: &Request) {
        let waiting = match &mut self.phase {
            Phase::Offered(offered) => {
                let (number, _) = offered.request.cseq().unwrap_or_default();
                let expected = format!("{} {number} INVITE", offered.rseq);
                let given = request.headers.get("RAck").unwrap_or_default();
                let given: Vec<&str> = given.split_whitespace().collect();
                offered
                    .reliable
                    .take_if(|_| given.join(" ") == expected)
                    .map(|_| (offered.ring.take(), offered.answer.take(), offered.request.sdp().is_none()))
            }
            _ => None,
        };
        let Some((ring, answer, we_offered)) = waiting else {
            return self.reply(core, now, key, Response::answer(request, 481));
        };
        match request.sdp() {
            // The answer to an offer that our provisional response made.
            Some(body) if we_offered => {
                self.reply(core, now, key, Response::answer(request, 200));
                self.emit(CallEvent::Acked { answer: Some(body) });
            }
            // An offer of its own inside PRACK would have to be answered inside its 200; nobody we know makes one.
            Some(_) => self.reply(core, now, key, Response::answer(request, 488)),
            None => self.reply(core, now, key, Response::answer(request, 200)),
        }
        if let Some(body) = answer {
            self.answer(core, now, body);
        } else if let Some(body) = ring {
            self.ring(core, now, body);
        }
    }

    pub(super) fn on_offered_tick(&mut self, core: &mut Core, now: Instant) {
        let patience = core.options.timers.patience();
        let Phase::Offered(offered) = &mut self.phase else { return };
        if offered.until <= now {
            let expired = offered.request.number("Expires").is_some();
            let Phase::Offered(offered) = std::mem::replace(&mut self.phase, Phase::Gone) else { return };
            let status = if expired { 487 } else { 480 };
            self.reply(core, now, &offered.key, Response::answer(&offered.request, status));
            return self.end(Side::Nobody, Cause::NoAnswer, None, "not answered in time");
        }
        if let Some(reliable) = &mut offered.reliable {
            if reliable.until <= now {
                // RFC 3262 §3: the caller does not confirm what it asked to confirm.
                let Phase::Offered(offered) = std::mem::replace(&mut self.phase, Phase::Gone) else { return };
                self.reply(core, now, &offered.key, Response::answer(&offered.request, 504));
                return self.end(Side::Nobody, Cause::NoAck, None, "no PRACK");
            }
            if reliable.next <= now {
                core.transactions.repeat(reliable.target.clone(), reliable.bytes.clone(), &self.call_id);
                reliable.interval = (reliable.interval * 2).min(patience);
                reliable.next = (reliable.next + reliable.interval).max(now);
            }
        }
        if offered.again <= now {
            offered.again = now + PROVISIONAL_AGAIN;
            if let Some(response) = offered.last.clone() {
                let key = offered.key.clone();
                core.respond(now, &key, response);
            }
        }
    }
}
