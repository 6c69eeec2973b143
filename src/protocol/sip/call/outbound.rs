//! Sending an INVITE: where to, with which answer to a challenge, which of several answers is taken, and how it is
//! given up.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Call, CallEvent, Cause, MAX_ACKS, Phase, Refusal, SentAck, Side};
use crate::protocol::sip::core::{CallRef, Core, Owner};
use crate::protocol::sip::dialog::Dialog;
use crate::protocol::sip::digest::Credentials;
use crate::protocol::sip::ladder::Ladder;
use crate::protocol::sip::message::{Method, Request, Response};
use crate::protocol::sip::target::Target;
use crate::protocol::sip::transaction::{ClientEvent, ClientKey, Outcome};
use crate::protocol::sip::value::{NameAddr, SipUri, Uri, is_token};

/// Callees that may ring at once before a fork has no early dialog of its own any more.
const MAX_FORKS: usize = 8;
/// INVITEs of one call: challenges of two realms, a stale nonce, a session interval, and some to spare.
const MAX_TRIES: u32 = 8;

/// An outbound call.
#[derive(Clone, Debug)]
pub struct Dial {
    /// Whom to call; also the To of the call.
    pub uri: SipUri,
    /// Who calls, without a tag.
    pub from: NameAddr,
    /// `host:port` of a proxy or registrar that all requests go through first; `None`: the host of `uri`.
    pub proxy: Option<SipUri>,
    pub credentials: Option<Credentials>,
    /// Our Contact; `None`: our address as the target would see it.
    pub contact: Option<SipUri>,
    /// More header fields, such as `X-` ones. What makes the call (From, Route and so on) is left out.
    pub headers: Vec<(String, String)>,
    /// The offer.
    pub body: Bytes,
    /// How long it may ring; `None`: the endpoint's limit.
    pub ring_limit: Option<Duration>,
}

/// An INVITE without a final answer.
pub struct Calling {
    dial: Dial,
    targets: VecDeque<Target>,
    target: Target,
    seq: u32,
    tries: u32,
    pub key: ClientKey,
    provisional: bool,
    /// We want it no more. The CANCEL waits for a provisional response (RFC 3261 §9.1).
    given_up: bool,
    forks: Vec<Fork>,
    until: Instant,
    interval: Duration,
    redirected: Option<SipUri>,
}

struct Fork {
    dialog: Dialog,
    /// The last reliable response that was confirmed.
    rseq: Option<u32>,
}

impl Calling {
    pub fn deadline(&self) -> Instant {
        self.until
    }

    pub fn fork(&self, tag: &str) -> Option<&Dialog> {
        self.forks.iter().map(|fork| &fork.dialog).find(|dialog| dialog.remote_tag == tag)
    }

    pub fn fork_mut(&mut self, tag: &str) -> Option<&mut Dialog> {
        self.forks.iter_mut().map(|fork| &mut fork.dialog).find(|dialog| dialog.remote_tag == tag)
    }
}

impl Call {
    /// An outbound call that waits for `on_resolved`.
    pub fn outbound(core: &mut Core, now: Instant, id: CallRef, dial: Dial) -> Self {
        let (call_id, tag) = (format!("{}{}", core.token(), core.token()), core.token());
        let ladder = Ladder::new(core.options.limits.ladder_messages);
        let mut call = Self::new(id, call_id.into(), tag, String::new(), ladder);
        call.is_caller = true;
        call.credentials = dial.credentials.clone();
        call.local_sdp = dial.body.clone();
        // DNS has limits of its own; this one holds if nobody ever says anything.
        call.phase = Phase::Resolving { dial: Box::new(dial), until: now + core.options.user_limit };
        call
    }

    /// Where the call can go, best first; none: it cannot.
    pub fn on_resolved(&mut self, core: &mut Core, now: Instant, targets: Vec<Target>) {
        let dial = match std::mem::replace(&mut self.phase, Phase::Gone) {
            Phase::Resolving { dial, .. } => *dial,
            other => {
                self.phase = other;
                return;
            }
        };
        let mut targets: VecDeque<Target> = targets.into();
        let Some(target) = targets.pop_front() else {
            return self.end(Side::Nobody, Cause::Unreachable, None, "the host has no address");
        };
        let ring_limit = dial.ring_limit.unwrap_or(core.options.ring_limit);
        let interval = core.options.session_interval;
        self.send_invite(
            core,
            now,
            Attempt { dial, targets, target, seq: 1, tries: 1, until: now + ring_limit, interval, redirected: None },
        );
    }

    fn send_invite(&mut self, core: &mut Core, now: Instant, attempt: Attempt) {
        let Attempt { dial, targets, target, seq, tries, until, interval, redirected } = attempt;
        let user = dial.from.uri.user();
        let contact = dial.contact.clone().unwrap_or_else(|| core.contact(&user, &target));
        self.contact = format!("<{contact}>");
        let mut from = dial.from.clone();
        from.params.set("tag", self.local_tag.clone());
        let mut request = Request::new(Method::Invite, redirected.as_ref().unwrap_or(&dial.uri).to_string());
        if let Some(proxy) = &dial.proxy {
            let mut route = proxy.clone();
            // A registrar's own domain as request URI needs no route to itself.
            if route.host != dial.uri.host {
                route.user = None;
                if !route.params.has("lr") {
                    let params = format!("{};lr", route.params);
                    route.params = crate::protocol::sip::value::Params::parse(&params).unwrap_or_default();
                }
                request.headers.push("Route", format!("<{route}>"));
            }
        }
        request.headers.push("From", from.to_string());
        // To names who is meant, not how to get there (RFC 3261 §19.1.1, table 1: no transport).
        let mut to = dial.uri.clone();
        to.params.remove("transport");
        request.headers.push("To", NameAddr::new(to).to_string());
        request.headers.push("Call-ID", &*self.call_id);
        request.headers.push("CSeq", format!("{seq} INVITE"));
        request.headers.push("Contact", self.contact.clone());
        request.headers.push("Session-Expires", interval.as_secs().to_string());
        request.headers.push("Min-SE", core.options.min_session.as_secs().to_string());
        request.headers.push("Accept", "application/sdp");
        for (name, value) in dial.headers.iter().filter(|(name, _)| is_ours_to_add(name)) {
            request.headers.push(name, value.clone());
        }
        request.set_body("application/sdp", dial.body.clone());
        if let Some(credentials) = &self.credentials
            && self.auth.is_ready()
        {
            self.auth.authorize(&mut request, credentials, &mut core.rng);
        }
        let Some(key) = core.request(now, request, target.clone(), Owner::Call(self.id)) else {
            self.phase = Phase::Gone;
            return self.end(Side::Nobody, Cause::Overload, None, "no room for another transaction");
        };
        self.phase = Phase::Calling(Box::new(Calling {
            dial,
            targets,
            target,
            seq,
            tries,
            key,
            provisional: false,
            given_up: false,
            forks: Vec::new(),
            until,
            interval,
            redirected,
        }));
    }

    /// Cancels, now or as soon as that is allowed.
    pub(super) fn give_up_calling(&mut self, core: &mut Core, now: Instant) {
        let Phase::Calling(calling) = &mut self.phase else { return };
        if calling.given_up {
            return;
        }
        calling.given_up = true;
        // The transaction ends by itself; this is for the case that its end should be missed.
        calling.until = now + core.options.timers.patience() * 2;
        if calling.provisional {
            core.cancel(now, &calling.key);
        }
    }

    pub(super) fn on_calling_tick(&mut self, core: &mut Core, now: Instant) {
        let Phase::Calling(calling) = &self.phase else { return };
        if calling.until > now {
            return;
        }
        if calling.given_up {
            self.phase = Phase::Gone;
        } else {
            self.end(Side::Nobody, Cause::NoAnswer, None, "nobody answered");
            self.give_up_calling(core, now);
        }
    }

    pub(super) fn on_invite_event(&mut self, core: &mut Core, now: Instant, event: ClientEvent<Owner>) {
        let is_first = matches!(&self.phase, Phase::Calling(calling) if calling.key == event.key);
        match event.outcome {
            Outcome::Response(ref response) if response.is_success() => {
                let response = response.clone();
                self.on_accepted(core, now, &event, response, is_first);
            }
            Outcome::Response(ref response) if is_first && !response.is_final() => {
                let response = response.clone();
                self.on_provisional(core, now, &event, &response);
            }
            Outcome::Response(ref response) if is_first => {
                let response = response.clone();
                self.on_refused(core, now, &event, &response);
            }
            Outcome::TimedOut if is_first => self.try_next_target(core, now, "no answer to the INVITE"),
            Outcome::Unreachable(ref why) if is_first => {
                let why = why.clone();
                self.try_next_target(core, now, &why);
            }
            _ => self.on_reinvite_event(core, now, event),
        }
    }

    fn on_provisional(&mut self, core: &mut Core, now: Instant, event: &ClientEvent<Owner>, response: &Response) {
        let Phase::Calling(calling) = &mut self.phase else { return };
        let was_silent = !std::mem::replace(&mut calling.provisional, true);
        if calling.given_up {
            if was_silent {
                core.cancel(now, &calling.key);
            }
            return;
        }
        let Some(tag) = response.to_tag().filter(|_| response.status > 100) else { return };
        let known = calling.forks.iter().position(|fork| fork.dialog.remote_tag == tag);
        let at = match known {
            Some(at) => at,
            None if calling.forks.len() < MAX_FORKS => {
                let dialog = Dialog::uac(&event.request, response, &event.target);
                calling.forks.push(Fork { dialog, rseq: None });
                calling.forks.len() - 1
            }
            None => return,
        };
        let fork = &mut calling.forks[at];
        if response.headers.lists("Require", "100rel")
            && let Some(rseq) = response.number("RSeq")
        {
            // RFC 3262 §4: in order, each once; a repetition is absorbed, since PRACK is repeated by itself.
            if fork.rseq.is_some_and(|last| last.checked_add(1) != Some(rseq)) {
                return;
            }
            fork.rseq = Some(rseq);
            fork.dialog.confirm(response);
            let mut prack = fork.dialog.request(Method::Prack);
            let (number, method) = response.cseq().unwrap_or((calling.seq, "INVITE"));
            prack.headers.push("RAck", format!("{rseq} {number} {method}"));
            let target = fork.dialog.next_hop();
            if let Some(credentials) = &self.credentials
                && self.auth.is_ready()
            {
                self.auth.authorize(&mut prack, credentials, &mut core.rng);
            }
            core.request(now, prack, target, Owner::Call(self.id));
        }
        if response.status == 180 {
            self.emit(CallEvent::Ringing);
        }
        if let Some(answer) = response.sdp() {
            self.emit(CallEvent::EarlyMedia { answer });
        }
    }

    /// A 2xx: the first is the call, a repetition gets its ACK again, another callee's is confirmed and hung up.
    fn on_accepted(
        &mut self,
        core: &mut Core,
        now: Instant,
        event: &ClientEvent<Owner>,
        response: Response,
        is_first: bool,
    ) {
        let tag = response.to_tag().unwrap_or_default();
        let (seq, _) = response.cseq().unwrap_or_default();
        if let Some(ack) = self.acks.iter().find(|ack| ack.tag == tag && ack.seq == seq) {
            return core.transactions.repeat(ack.target.clone(), ack.bytes.clone(), &self.call_id);
        }
        if !is_first {
            let ours = self.dialog.as_ref().is_some_and(|dialog| dialog.remote_tag == tag);
            if ours && self.offer_out.is_some() {
                return self.on_offer_accepted(core, now, &response);
            }
            let mut dialog = Dialog::uac(&event.request, &response, &event.target);
            self.send_ack(core, &dialog, seq);
            if !ours {
                let target = dialog.next_hop();
                let bye = dialog.request(Method::Bye);
                core.request(now, bye, target, Owner::Nobody);
            }
            return;
        }
        let Phase::Calling(mut calling) = std::mem::replace(&mut self.phase, Phase::Confirmed) else { return };
        let dialog = match calling.forks.iter().position(|fork| fork.dialog.remote_tag == tag) {
            Some(at) => {
                let mut dialog = calling.forks.swap_remove(at).dialog;
                dialog.confirm(&response);
                dialog
            }
            None => Dialog::uac(&event.request, &response, &event.target),
        };
        self.send_ack(core, &dialog, seq);
        self.dialog = Some(dialog);
        self.peer_updates = response.headers.lists("Allow", "UPDATE");
        if calling.given_up {
            // CANCEL and 200 crossed: the call stands, and is hung up (RFC 3261 §15).
            return self.send_bye(core, now);
        }
        self.take_session(now, &response);
        self.emit(CallEvent::Answered { answer: response.sdp() });
    }

    pub(super) fn send_ack(&mut self, core: &mut Core, dialog: &Dialog, seq: u32) {
        let target = dialog.next_hop();
        let mut ack = dialog.ack(seq);
        // RFC 3261 §13.2.2.4: the ACK carries the credentials of its INVITE.
        if let Some(credentials) = &self.credentials
            && self.auth.is_ready()
        {
            self.auth.authorize(&mut ack, credentials, &mut core.rng);
        }
        let bytes = core.ack(ack, &target);
        if self.acks.len() >= MAX_ACKS {
            self.acks.remove(0);
        }
        self.acks.push(SentAck { tag: dialog.remote_tag.clone(), seq, bytes, target });
    }

    fn on_refused(&mut self, core: &mut Core, now: Instant, event: &ClientEvent<Owner>, response: &Response) {
        let Phase::Calling(calling) = std::mem::replace(&mut self.phase, Phase::Gone) else { return };
        if calling.given_up {
            return;
        }
        let status = response.status;
        let mut attempt = Attempt {
            dial: calling.dial,
            targets: calling.targets,
            target: calling.target,
            seq: calling.seq + 1,
            tries: calling.tries + 1,
            until: calling.until,
            interval: calling.interval,
            redirected: calling.redirected,
        };
        let may_retry = attempt.tries <= MAX_TRIES;
        let mut words = response.reason.clone();
        match status {
            401 | 407 if may_retry => {
                match self.auth.challenged(&event.request, response, self.credentials.is_some()) {
                    Ok(()) => return self.send_invite(core, now, attempt),
                    Err(why) => words = why.to_string(),
                }
            }
            // The peer wants longer sessions (RFC 4028 §7.3).
            422 if may_retry => {
                let least = response.number("Min-SE").map(|seconds| Duration::from_secs(seconds.into()));
                if let Some(least) = least.filter(|least| *least > attempt.interval) {
                    attempt.interval = least;
                    return self.send_invite(core, now, attempt);
                }
            }
            // RFC 3261 §8.1.3.4, by the way that we already go: whoever sends us elsewhere could send us to a premium number
            // of somebody else.
            301 | 302 if may_retry && attempt.redirected.is_none() => match redirection(&attempt.dial, response) {
                Some(uri) => {
                    attempt.redirected = Some(uri);
                    return self.send_invite(core, now, attempt);
                }
                None => words = format!("{words}: moved to where we do not follow"),
            },
            // RFC 3263 §4.3: another server of the same name may do.
            503 if may_retry => {
                if let Some(target) = attempt.targets.pop_front() {
                    attempt.target = target;
                    return self.send_invite(core, now, attempt);
                }
            }
            _ => {}
        }
        self.end(Side::Peer, Cause::Refused(Refusal::of(status)), Some(status), words);
    }

    fn try_next_target(&mut self, core: &mut Core, now: Instant, words: &str) {
        let Phase::Calling(mut calling) = std::mem::replace(&mut self.phase, Phase::Gone) else { return };
        if calling.given_up {
            return;
        }
        match calling.targets.pop_front() {
            Some(target) if calling.until > now => self.send_invite(
                core,
                now,
                Attempt {
                    dial: calling.dial,
                    targets: calling.targets,
                    target,
                    seq: calling.seq + 1,
                    tries: calling.tries + 1,
                    until: calling.until,
                    interval: calling.interval,
                    redirected: calling.redirected,
                },
            ),
            _ => self.end(Side::Nobody, Cause::Unreachable, None, words),
        }
    }
}

/// Another user at the host that was called, which the first Contact names.
fn redirection(dial: &Dial, response: &Response) -> Option<SipUri> {
    let contacts = response.headers.list("Contact");
    let Uri::Sip(mut uri) = NameAddr::parse(contacts.first()?)?.uri else { return None };
    let is_there = |known: &SipUri| known.host.eq_ignore_ascii_case(&uri.host) && known.port == uri.port;
    let allowed = is_there(&dial.uri) && uri.secure == dial.uri.secure && uri != dial.uri;
    uri.headers = None;
    allowed.then_some(uri)
}

/// Whether a field may come from whoever dials: the ones that make the call are not theirs.
fn is_ours_to_add(name: &str) -> bool {
    const MADE_HERE: [&str; 16] = [
        "Via",
        "From",
        "To",
        "Call-ID",
        "CSeq",
        "Contact",
        "Route",
        "Max-Forwards",
        "Content-Length",
        "Content-Type",
        "Authorization",
        "Proxy-Authorization",
        "Session-Expires",
        "Supported",
        "Require",
        "Allow",
    ];
    is_token(name) && name.len() > 1 && !MADE_HERE.iter().any(|own| own.eq_ignore_ascii_case(name))
}

/// What the next INVITE is made of.
struct Attempt {
    dial: Dial,
    targets: VecDeque<Target>,
    target: Target,
    seq: u32,
    tries: u32,
    until: Instant,
    interval: Duration,
    /// Where a 3xx has sent us instead; a second one ends the call.
    redirected: Option<SipUri>,
}
