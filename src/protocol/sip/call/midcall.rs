//! Changes of a running call: offers both ways by re-INVITE and UPDATE (RFC 3261 §14, RFC 3311), session timers
//! (RFC 4028), keys by INFO.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::Rng as _;

use super::{Call, CallEvent, Cause, OfferIn, OfferOut, Phase, Session, Side, Warning};
use crate::protocol::sip::core::{Core, Owner};
use crate::protocol::sip::message::{Method, Request, Response};
use crate::protocol::sip::target::Target;
use crate::protocol::sip::transaction::{ClientEvent, Outcome, ServerKey};
use crate::protocol::sip::value::NameAddr;

impl Call {
    pub(super) fn on_reinvite(
        &mut self,
        core: &mut Core,
        now: Instant,
        key: &ServerKey,
        request: Request,
        source: &Target,
    ) {
        if self.is_busy_with_offers(core, now, key, &request) {
            return;
        }
        if self.unacked.is_some() || !matches!(self.phase, Phase::Confirmed) {
            return self.reply(core, now, key, Response::answer(&request, 491));
        }
        self.take_offer(core, now, key, request, source);
    }

    pub(super) fn on_update(
        &mut self,
        core: &mut Core,
        now: Instant,
        key: &ServerKey,
        request: Request,
        source: &Target,
    ) {
        if request.sdp().is_some() {
            // The offer of the INVITE comes first (RFC 3311 §5.2): its answer is ours to make, or to get.
            let before = match &self.phase {
                Phase::Offered(_) => Some(500),
                Phase::Calling(_) => Some(491),
                _ => None,
            };
            if let Some(status) = before {
                let mut response = Response::answer(&request, status);
                if status == 500 {
                    response.headers.push("Retry-After", (core.rng.next_u32() % 10).to_string());
                }
                return self.reply(core, now, key, response);
            }
            if !self.is_busy_with_offers(core, now, key, &request) {
                self.take_offer(core, now, key, request, source);
            }
            return;
        }
        if self.is_interval_too_small(core, now, key, &request) {
            return;
        }
        self.refresh_target(&request);
        let mut response = Response::answer(&request, 200);
        response.headers.push("Contact", self.contact.clone());
        self.agree_session(core, now, &request, &mut response);
        self.reply(core, now, key, response);
    }

    /// One offer at a time (RFC 3261 §14.2, RFC 3311 §5.2); answers what comes beside it.
    fn is_busy_with_offers(&mut self, core: &mut Core, now: Instant, key: &ServerKey, request: &Request) -> bool {
        let mut response = if self.offer_in.is_some() {
            let mut response = Response::answer(request, 500);
            response.headers.push("Retry-After", (core.rng.next_u32() % 10).to_string());
            response
        } else if self.offer_out.is_some() {
            Response::answer(request, 491)
        } else {
            return self.is_interval_too_small(core, now, key, request);
        };
        response.tag(&self.local_tag);
        core.respond(now, key, response);
        true
    }

    fn is_interval_too_small(&mut self, core: &mut Core, now: Instant, key: &ServerKey, request: &Request) -> bool {
        let refusal = refuse_interval(request, core.options.min_session);
        let too_small = refusal.is_some();
        if let Some(response) = refusal {
            self.reply(core, now, key, response);
        }
        too_small
    }

    fn take_offer(&mut self, core: &mut Core, now: Instant, key: &ServerKey, request: Request, source: &Target) {
        let event = match request.sdp() {
            Some(offer) => CallEvent::Offer { offer },
            None => CallEvent::OfferWanted,
        };
        self.refresh_target(&request);
        let until = now + core.options.user_limit;
        self.offer_in = Some(OfferIn { key: key.clone(), request, source: source.clone(), until });
        self.emit(event);
    }

    fn refresh_target(&mut self, request: &Request) {
        if let Some(dialog) = &mut self.dialog {
            dialog.refresh(request.contact());
        }
        if request.headers.count("Allow") > 0 {
            self.peer_updates = request.headers.lists("Allow", "UPDATE");
        }
    }

    pub(super) fn answer_offer(&mut self, core: &mut Core, now: Instant, body: Bytes) {
        let Some(OfferIn { key, request, source, .. }) = self.offer_in.take() else { return };
        if request.method == Method::Invite {
            return self.accept(core, now, &key, &request, &source, Some(body));
        }
        let mut response = Response::answer(&request, 200);
        response.headers.push("Contact", self.contact.clone());
        self.agree_session(core, now, &request, &mut response);
        self.local_sdp = body.clone();
        response.set_body("application/sdp", body);
        self.reply(core, now, &key, response);
    }

    pub(super) fn refuse_offer(&mut self, core: &mut Core, now: Instant, status: u16, warning: Option<Warning>) {
        let Some(OfferIn { key, request, .. }) = self.offer_in.take() else { return };
        let status = if (400..700).contains(&status) { status } else { 488 };
        let mut response = Response::answer(&request, status);
        warn_of(&mut response, warning);
        self.reply(core, now, &key, response);
    }

    /// Whether an offer of ours may go out.
    pub(super) fn may_offer(&self) -> bool {
        matches!(self.phase, Phase::Confirmed)
            && self.offer_in.is_none()
            && self.offer_out.is_none()
            && self.unacked.is_none()
            && !self.bye_after_ack
    }

    pub(super) fn offer(&mut self, core: &mut Core, now: Instant, body: Bytes) {
        if self.may_offer() {
            self.send_offer(core, now, body, false);
        } else if matches!(self.phase, Phase::Confirmed | Phase::Offered(_) | Phase::Calling(_)) {
            self.offer_waiting = Some((now, body));
        }
    }

    fn send_offer(&mut self, core: &mut Core, now: Instant, body: Bytes, refresh: bool) {
        self.local_sdp = body.clone();
        let session = self.session_header();
        let content = body.clone();
        let sent = self.send(core, now, Method::Invite, |request| {
            if let Some(value) = session {
                request.headers.push("Session-Expires", value);
            }
            request.set_body("application/sdp", content);
        });
        if sent {
            self.offer_out = Some(OfferOut { body, refresh });
        } else {
            self.emit(CallEvent::OfferRefused { status: 503 });
        }
    }

    /// What became of a re-INVITE of ours, except a 2xx.
    pub(super) fn on_reinvite_event(&mut self, core: &mut Core, now: Instant, event: ClientEvent<Owner>) {
        let status = match &event.outcome {
            Outcome::Response(response) if !response.is_final() => return,
            Outcome::Response(response) => response.status,
            Outcome::TimedOut | Outcome::Unreachable(_) => 408,
        };
        let Some(OfferOut { body, refresh }) = self.offer_out.take() else { return };
        if !matches!(self.phase, Phase::Confirmed) {
            return;
        }
        if let Outcome::Response(response) = &event.outcome
            && matches!(status, 401 | 407)
            && self.auth.challenged(&event.request, response, self.credentials.is_some()).is_ok()
        {
            return self.send_offer(core, now, body, refresh);
        }
        match status {
            // Both sides offered at once: the caller waits longer, so that they do not meet again (RFC 3261 §14.1).
            491 => {
                let (from, to) = if self.is_caller { (2100, 4000) } else { (0, 2000) };
                let wait = core.between(Duration::from_millis(from), Duration::from_millis(to));
                self.offer_waiting = Some((now + wait, body));
            }
            481 => self.be_lost(),
            408 => {
                self.end(Side::Peer, Cause::Lost, Some(status), "no answer inside the call");
                self.leave(core, now);
            }
            _ if refresh => {}
            _ => self.emit(CallEvent::OfferRefused { status }),
        }
    }

    pub(super) fn on_offer_accepted(&mut self, core: &mut Core, now: Instant, response: &Response) {
        self.offer_out = None;
        let (seq, _) = response.cseq().unwrap_or_default();
        let Some(mut dialog) = self.dialog.take() else { return };
        dialog.refresh(response.contact());
        self.send_ack(core, &dialog, seq);
        self.dialog = Some(dialog);
        self.take_session(now, response);
        self.emit(CallEvent::OfferAnswered { answer: response.sdp() });
    }

    pub(super) fn on_update_event(&mut self, core: &mut Core, now: Instant, event: ClientEvent<Owner>) {
        let response = match &event.outcome {
            Outcome::Response(response) if !response.is_final() => return,
            Outcome::Response(response) => response,
            // The session timer decides whether the peer is gone.
            Outcome::TimedOut | Outcome::Unreachable(_) => return,
        };
        match response.status {
            200..=299 => self.take_session(now, response),
            481 => self.be_lost(),
            401 | 407 if self.auth.challenged(&event.request, response, self.credentials.is_some()).is_ok() => {
                self.send_update(core, now);
            }
            422 => {
                let least = response.number("Min-SE").map(|seconds| Duration::from_secs(seconds.into()));
                if let (Some(session), Some(least)) = (&mut self.session, least)
                    && least > session.interval
                {
                    session.interval = least;
                    self.send_update(core, now);
                }
            }
            // The peer announced UPDATE and does not take it.
            405 | 501 => {
                self.peer_updates = false;
                self.refresh_session(core, now);
            }
            _ => {}
        }
    }

    /// Another address of ours leads to the peer: requests name it from here on, and the next offer tells the peer.
    fn follow_own_address(&mut self, core: &Core) {
        let Some(hop) = self.next_hop() else { return };
        let user = NameAddr::parse(&self.contact).map(|contact| contact.uri.user()).unwrap_or_default();
        self.contact = format!("<{}>", core.contact(&user, &hop));
        self.emit(CallEvent::Moved);
    }

    // Session timers.

    fn session_header(&self) -> Option<String> {
        let session = self.session.as_ref()?;
        let refresher = if session.ours { "uac" } else { "uas" };
        Some(format!("{};refresher={refresher}", session.interval.as_secs()))
    }

    /// Agrees with a request of the peer's, and says so in the answer (RFC 4028 §9).
    pub(super) fn agree_session(&mut self, core: &Core, now: Instant, request: &Request, response: &mut Response) {
        let peer_can = request.headers.lists("Supported", "timer") || request.headers.lists("Require", "timer");
        let asked = request.number("Session-Expires").map(|seconds| Duration::from_secs(seconds.into()));
        if asked.is_none() && !peer_can {
            return;
        }
        let interval = asked.unwrap_or(core.options.session_interval).max(core.options.min_session);
        let refresher = request.headers.get("Session-Expires").and_then(|value| {
            let params = value.find(';').and_then(|at| crate::protocol::sip::value::Params::parse(&value[at..]))?;
            params.get("refresher").map(str::to_ascii_lowercase)
        });
        // Whoever can; the peer if it can, since it made the request.
        let ours = match refresher.as_deref() {
            Some("uas") => true,
            Some("uac") => false,
            _ => !peer_can,
        };
        let name = if ours { "uas" } else { "uac" };
        response.headers.push("Session-Expires", format!("{};refresher={name}", interval.as_secs()));
        if !ours {
            response.headers.push("Require", "timer");
        }
        self.session = Some(Session { interval, ours, at: session_at(now, interval, ours), pending: false });
    }

    /// Takes what the peer says in answer to a request of ours.
    pub(super) fn take_session(&mut self, now: Instant, response: &Response) {
        let Some(seconds) = response.number("Session-Expires").filter(|seconds| *seconds > 0) else {
            // The peer knows no session timers, or wants none any more.
            self.session = None;
            return;
        };
        let interval = Duration::from_secs(seconds.into());
        let ours = !response.headers.get("Session-Expires").unwrap_or_default().to_ascii_lowercase().contains("uas");
        self.session = Some(Session { interval, ours, at: session_at(now, interval, ours), pending: false });
    }

    fn refresh_session(&mut self, core: &mut Core, now: Instant) {
        if self.peer_updates {
            self.send_update(core, now);
        } else if self.may_offer() {
            let body = self.local_sdp.clone();
            self.send_offer(core, now, body, true);
        }
    }

    fn send_update(&mut self, core: &mut Core, now: Instant) {
        let session = self.session_header();
        self.send(core, now, Method::Update, |request| {
            if let Some(value) = session {
                request.headers.push("Session-Expires", value);
            }
        });
    }

    pub(super) fn on_midcall_tick(&mut self, core: &mut Core, now: Instant) {
        if self.offer_in.as_ref().is_some_and(|offer| offer.until <= now) {
            self.refuse_offer(core, now, 488, None);
        }
        if self.may_offer()
            && let Some((_, body)) = self.offer_waiting.take_if(|(at, _)| *at <= now)
        {
            self.send_offer(core, now, body, false);
        }
        if self.may_offer() && self.move_at.take_if(|at| *at <= now).is_some() {
            self.follow_own_address(core);
        }
        if !matches!(self.phase, Phase::Confirmed) {
            return;
        }
        let Some(session) = self.session.as_mut().filter(|session| session.at <= now) else { return };
        if session.ours && !session.pending {
            session.pending = true;
            // What is left of the interval, less the margin that the peer leaves (RFC 4028 §10).
            session.at = now + session.interval / 2 - margin(session.interval);
            return self.refresh_session(core, now);
        }
        self.session = None;
        self.end(Side::Nobody, Cause::SessionExpired, None, "the session was not refreshed");
        self.leave(core, now);
    }

    // Keys.

    pub(super) fn on_info(&mut self, core: &mut Core, now: Instant, key: &ServerKey, request: &Request) {
        let (status, event) = match request.content() {
            None => (200, None),
            Some((media, body)) => match media.as_str() {
                "application/dtmf-relay" | "application/dtmf" => match read_dtmf(body) {
                    Some((digit, duration_ms)) => (200, Some(CallEvent::Dtmf { digit, duration_ms })),
                    None => (400, None),
                },
                // Asked for by video telephones, who wait for an answer and not for a picture.
                "application/media_control+xml" => (200, None),
                _ => (415, None),
            },
        };
        let mut response = Response::answer(request, status);
        if status == 415 {
            response.headers.push("Accept", "application/dtmf-relay, application/dtmf");
        }
        self.reply(core, now, key, response);
        if let Some(event) = event {
            self.emit(event);
        }
    }

    pub(super) fn send_dtmf(&mut self, core: &mut Core, now: Instant, digit: char, duration_ms: u32) {
        if !matches!(self.phase, Phase::Confirmed) || !is_key(digit) {
            return;
        }
        let body = Bytes::from(format!("Signal={digit}\r\nDuration={duration_ms}\r\n"));
        self.send(core, now, Method::Info, |request| request.set_body("application/dtmf-relay", body));
    }
}

/// Says why, in the name of our kind of program: an address would tell what the rest of the answer may hide.
pub(super) fn warn_of(response: &mut Response, warning: Option<Warning>) {
    if let Some(Warning { code, text }) = warning {
        response.headers.push("Warning", format!("{code} offhook \"{text}\""));
    }
}

/// 422 when the peer wants sessions shorter than `least` (RFC 4028 §9).
pub fn refuse_interval(request: &Request, least: Duration) -> Option<Response> {
    let asked = request.number("Session-Expires")?;
    let peer_can = request.headers.lists("Supported", "timer");
    if !peer_can || u64::from(asked) >= least.as_secs() {
        return None;
    }
    let mut response = Response::answer(request, 422);
    response.headers.push("Min-SE", least.as_secs().to_string());
    Some(response)
}

/// The refresher acts at half time; the other gives up a little before the end (RFC 4028 §10).
fn session_at(now: Instant, interval: Duration, ours: bool) -> Instant {
    if ours { now + interval / 2 } else { now + interval - margin(interval) }
}

fn margin(interval: Duration) -> Duration {
    (interval / 3).min(Duration::from_secs(32))
}

fn is_key(digit: char) -> bool {
    digit.is_ascii_digit() || matches!(digit, '*' | '#' | 'A'..='D')
}

/// `Signal=5` and `Duration=160` in lines of their own (dtmf-relay), or the key alone (dtmf). 10 and 11 are star and
/// hash to some.
fn read_dtmf(body: &[u8]) -> Option<(char, u32)> {
    let text = String::from_utf8_lossy(body);
    let (mut signal, mut duration) = (None, 250);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match line.split_once('=') {
            Some((name, value)) if name.trim().eq_ignore_ascii_case("Signal") => signal = Some(value.trim().to_owned()),
            Some((name, value)) if name.trim().eq_ignore_ascii_case("Duration") => {
                duration = value.trim().parse().unwrap_or(duration);
            }
            Some(_) => {}
            None => signal = Some(line.to_owned()),
        }
    }
    let digit = match signal?.as_str() {
        "10" => '*',
        "11" => '#',
        one => one.chars().next().filter(|_| one.chars().count() == 1)?.to_ascii_uppercase(),
    };
    is_key(digit).then_some((digit, duration.min(10_000)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_in_both_formats() {
        for (body, expected) in [
            ("Signal=5\r\nDuration=160\r\n", Some(('5', 160))),
            ("Signal= #\nDuration=x", Some(('#', 250))),
            ("10", Some(('*', 250))),
            ("d", Some(('D', 250))),
            ("Signal=55", None),
            ("Signal=E", None),
            ("", None),
        ] {
            assert_eq!(read_dtmf(body.as_bytes()), expected, "{body}");
        }
    }
}
