//! Handing a call over: REFER out and in, and the NOTIFYs that report on it (RFC 3515, RFC 3891, RFC 3892).

use std::time::Instant;

use bytes::Bytes;

use super::{Call, CallEvent, Phase, ReferIn, refer_target};
use crate::protocol::sip::core::{Core, Owner};
use crate::protocol::sip::message::{Method, Request, Response, reason_of};
use crate::protocol::sip::transaction::{ClientEvent, Outcome, ServerKey};
use crate::protocol::sip::value::escape;

impl Call {
    pub(super) fn refer(&mut self, core: &mut Core, now: Instant, to: &str, replaces: Option<&str>) {
        if !matches!(self.phase, Phase::Confirmed) || self.refer_out.is_some() {
            return self.emit(CallEvent::Transfer { status: 491, done: true });
        }
        let refer_to = match replaces {
            Some(replaces) => format!("<{to}?Replaces={}>", escape(replaces)),
            None => format!("<{to}>"),
        };
        let by = self.dialog.as_ref().map(|dialog| dialog.local_uri()).unwrap_or_default();
        let sent = self.send(core, now, Method::Refer, |request| {
            request.headers.push("Refer-To", refer_to);
            request.headers.push("Referred-By", format!("<{by}>"));
        });
        if sent {
            self.refer_out = Some(now + core.options.transfer_limit);
        } else {
            self.emit(CallEvent::Transfer { status: 503, done: true });
        }
    }

    pub(super) fn on_refer_event(&mut self, core: &mut Core, now: Instant, event: ClientEvent<Owner>) {
        let status = match &event.outcome {
            Outcome::Response(response) if response.status < 300 => return,
            Outcome::Response(response) => {
                if matches!(response.status, 401 | 407)
                    && self.auth.challenged(&event.request, response, self.credentials.is_some()).is_ok()
                {
                    let refer_to = event.request.headers.get("Refer-To").unwrap_or_default().to_owned();
                    let by = event.request.headers.get("Referred-By").unwrap_or_default().to_owned();
                    self.send(core, now, Method::Refer, |request| {
                        request.headers.push("Refer-To", refer_to);
                        request.headers.push("Referred-By", by);
                    });
                    return;
                }
                response.status
            }
            Outcome::TimedOut | Outcome::Unreachable(_) => 408,
        };
        if self.refer_out.take().is_some() {
            self.emit(CallEvent::Transfer { status, done: true });
        }
    }

    /// The peer reports on the transfer that we asked for.
    pub(super) fn on_notify(&mut self, core: &mut Core, now: Instant, key: &ServerKey, request: &Request) {
        let event = request.headers.get("Event").unwrap_or_default();
        if !event.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("refer") {
            return self.reply(core, now, key, Response::answer(request, 489));
        }
        if self.refer_out.is_none() {
            return self.reply(core, now, key, Response::answer(request, 481));
        }
        self.reply(core, now, key, Response::answer(request, 200));
        let state = request.headers.get("Subscription-State").unwrap_or_default().trim_start().to_ascii_lowercase();
        let over = state.starts_with("terminated");
        let line = String::from_utf8_lossy(&request.body);
        let status = line.split_whitespace().nth(1).and_then(|status| status.parse::<u16>().ok());
        let status = match status.filter(|status| (100..700).contains(status)) {
            Some(status) => status,
            // The report ends without a word on how it went.
            None if over => 487,
            None => return,
        };
        let done = over || status >= 200;
        if done {
            self.refer_out = None;
        }
        self.emit(CallEvent::Transfer { status, done });
    }

    pub(super) fn on_refer(&mut self, core: &mut Core, now: Instant, key: &ServerKey, request: Request) {
        if !matches!(self.phase, Phase::Confirmed) {
            return self.reply(core, now, key, Response::answer(&request, 481));
        }
        if self.refer_in.is_some() {
            return self.reply(core, now, key, Response::answer(&request, 491));
        }
        let target = match request.headers.list("Refer-To")[..] {
            [target] => refer_target(target),
            _ => None,
        };
        let Some((to, replaces)) = target else {
            return self.reply(core, now, key, Response::answer(&request, 400));
        };
        let referred_by = request.headers.get("Referred-By").map(str::to_owned);
        let seq = request.cseq().map_or(0, |(number, _)| number);
        let until = now + core.options.user_limit;
        self.refer_in = Some(ReferIn { pending: Some((key.clone(), request, until)), seq });
        self.emit(CallEvent::Refer { to, replaces, referred_by });
    }

    pub(super) fn answer_refer(&mut self, core: &mut Core, now: Instant, accept: bool) {
        let Some((key, request, _)) = self.refer_in.as_mut().and_then(|refer| refer.pending.take()) else { return };
        let mut response = Response::answer(&request, if accept { 202 } else { 603 });
        response.headers.push("Contact", self.contact.clone());
        self.reply(core, now, &key, response);
        if accept {
            self.notify(core, now, 100);
        } else {
            self.refer_in = None;
        }
    }

    pub(super) fn refer_progress(&mut self, core: &mut Core, now: Instant, status: u16) {
        if self.refer_in.as_ref().is_some_and(|refer| refer.pending.is_none()) {
            self.notify(core, now, status);
        }
    }

    fn notify(&mut self, core: &mut Core, now: Instant, status: u16) {
        let Some(refer) = &self.refer_in else { return };
        let event = format!("refer;id={}", refer.seq);
        let state = if status < 200 { "active;expires=90" } else { "terminated;reason=noresource" };
        let body = Bytes::from(format!("SIP/2.0 {status} {}\r\n", reason_of(status)));
        let contact = self.contact.clone();
        self.send(core, now, Method::Notify, |request: &mut Request| {
            request.headers.push("Contact", contact);
            request.headers.push("Event", event);
            request.headers.push("Subscription-State", state);
            request.set_body("message/sipfrag;version=2.0", body);
        });
        if status >= 200 {
            self.refer_in = None;
        }
    }

    pub(super) fn on_transfer_tick(&mut self, core: &mut Core, now: Instant) {
        if self.refer_out.is_some_and(|until| until <= now) {
            self.refer_out = None;
            self.emit(CallEvent::Transfer { status: 408, done: true });
        }
        let pending = self.refer_in.as_ref().and_then(|refer| refer.pending.as_ref());
        if pending.is_some_and(|(_, _, until)| *until <= now) {
            self.answer_refer(core, now, false);
        }
    }
}
