//! What webhooks told against what the call log says, for providers whose webhooks are neither repeated nor signed: a
//! lost one leaves a call unknown or unfinished, a forged one tells of a call that never was. The log has the last word.

use std::collections::HashMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::providers::provider::{CallOutcome, PastCall};

/// How far back the log is read each time.
pub const WINDOW: Duration = Duration::from_secs(2 * 60 * 60);
/// A call younger than this may be in a webhook and not yet in the log, or the other way round.
pub const GRACE: Duration = Duration::from_secs(5 * 60);

/// A call as its webhooks told it.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownCall {
    /// All that it is called by.
    pub names: Vec<String>,
    /// When its first webhook came.
    pub told: Timestamp,
    /// Its audio was with us: it was there, whatever the log says.
    pub witnessed: bool,
    /// What the webhook after the call said; `None`: it never came.
    pub end: Option<KnownEnd>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownEnd {
    pub outcome: CallOutcome,
    pub talk_s: Option<u32>,
}

/// What the log says differently, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reconciliation {
    /// Calls of the log that no webhook told of.
    pub missed: Vec<PastCall>,
    /// Names of calls that webhooks told of and the log does not have.
    pub forged: Vec<String>,
    /// The log's truth of calls that webhooks told otherwise, or whose end they never told.
    pub corrected: Vec<PastCall>,
}

/// `log` is the whole log from `now` − [`WINDOW`] to `now`: with a part of it, calls would look forged. `known` may
/// hold more than the window; what lies outside is left alone.
pub fn reconcile(now: Timestamp, known: &[KnownCall], log: &[PastCall]) -> Reconciliation {
    let ago = |span: Duration| now - SignedDuration::from_secs(span.as_secs() as i64);
    // A call begins a little before its first webhook: at the edge of the window, the log may rightly lack it.
    let (oldest, newest) = (ago(WINDOW - GRACE), ago(GRACE));
    let by_name: HashMap<&str, &KnownCall> =
        known.iter().flat_map(|call| call.names.iter().map(move |name| (name.as_str(), call))).collect();
    let mut found = Reconciliation::default();
    let mut logged: HashMap<&str, &PastCall> = HashMap::with_capacity(log.len());
    for call in log {
        // A row that is listed twice, still running and then over: the later one counts.
        let kept = logged.entry(&call.provider_call).or_insert(call);
        if kept.outcome == CallOutcome::Running {
            *kept = call;
        }
    }
    for call in logged.values() {
        if call.outcome == CallOutcome::Running {
            continue;
        }
        match by_name.get(call.provider_call.as_str()) {
            None if call.started.is_none_or(|started| started <= newest) => found.missed.push((*call).clone()),
            Some(known) => match known.end {
                None if known.told <= newest => found.corrected.push((*call).clone()),
                Some(end) if differs(end, call) => found.corrected.push((*call).clone()),
                _ => {}
            },
            None => {}
        }
    }
    for call in known {
        let is_logged = call.names.iter().any(|name| logged.contains_key(name.as_str()));
        if !is_logged && !call.witnessed && (oldest..=newest).contains(&call.told) {
            found.forged.extend(call.names.first().cloned());
        }
    }
    let order = |call: &PastCall| (call.started, call.provider_call.clone());
    found.missed.sort_by_key(order);
    found.corrected.sort_by_key(order);
    found.forged.sort();
    found
}

fn differs(told: KnownEnd, logged: &PastCall) -> bool {
    // Seconds are rounded here and there.
    let talk_differs = match (told.talk_s, logged.talk_s) {
        (Some(told), Some(logged)) => told.abs_diff(logged) > 1,
        (told, logged) => told.is_none() && logged.is_some(),
    };
    told.outcome != logged.outcome || talk_differs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telephony::{Direction, PhoneNumber};

    fn at(minutes_ago: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 - minutes_ago * 60).unwrap()
    }

    fn logged(id: &str, minutes_ago: i64, outcome: CallOutcome) -> PastCall {
        PastCall {
            provider_call: id.into(),
            direction: Direction::Inbound,
            from: PhoneNumber::new("+380501234567"),
            to: PhoneNumber::new("+380441234567"),
            outcome,
            status: outcome.label().into(),
            started: Some(at(minutes_ago)),
            talk_s: Some(60),
            ring_s: Some(5),
            answered_by: None,
            recording: None,
        }
    }

    fn told(id: &str, minutes_ago: i64, end: Option<CallOutcome>) -> KnownCall {
        let end = end.map(|outcome| KnownEnd { outcome, talk_s: Some(60) });
        KnownCall { names: vec![id.into()], told: at(minutes_ago), witnessed: false, end }
    }

    #[test]
    fn what_both_tell_alike_needs_nothing() {
        let known = [told("a", 30, Some(CallOutcome::Answered))];
        let log = [logged("a", 30, CallOutcome::Answered)];
        assert_eq!(reconcile(at(0), &known, &log), Reconciliation::default());
    }

    #[test]
    fn lost_forged_and_wrong_webhooks_are_told_apart() {
        let known = [
            told("wrong", 50, Some(CallOutcome::Answered)),
            told("unfinished", 40, None),
            told("forged", 30, Some(CallOutcome::Answered)),
        ];
        let log = [
            logged("missed", 60, CallOutcome::Answered),
            logged("wrong", 50, CallOutcome::NoAnswer),
            logged("unfinished", 40, CallOutcome::Answered),
        ];
        let found = reconcile(at(0), &known, &log);
        let ids = |calls: &[PastCall]| calls.iter().map(|call| call.provider_call.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&found.missed), ["missed"]);
        assert_eq!(found.forged, ["forged"]);
        assert_eq!(ids(&found.corrected), ["wrong", "unfinished"]);
    }

    #[test]
    fn nobody_is_judged_too_early_or_outside_the_window() {
        let known = [
            told("fresh", 2, None),
            told("old", 119, Some(CallOutcome::Answered)),
            told("older", 300, Some(CallOutcome::Answered)),
            told("ends now", 3, None),
        ];
        let log = [
            logged("fresh row", 1, CallOutcome::Answered),
            logged("running", 30, CallOutcome::Running),
            logged("ends now", 3, CallOutcome::Answered),
        ];
        assert_eq!(reconcile(at(0), &known, &log), Reconciliation::default());
    }

    #[test]
    fn a_call_that_was_here_is_never_forged_and_is_known_by_any_of_its_names() {
        let here = KnownCall { witnessed: true, ..told("sip-call-id", 30, None) };
        assert_eq!(reconcile(at(0), std::slice::from_ref(&here), &[]), Reconciliation::default());
        let both = KnownCall { names: vec!["sip-call-id".into(), "a".into()], ..here };
        let log = [logged("a", 30, CallOutcome::Answered)];
        assert_eq!(reconcile(at(0), &[both], &log).corrected, log);
    }

    #[test]
    fn a_row_listed_running_and_over_counts_as_over() {
        let log = [logged("a", 30, CallOutcome::Running), logged("a", 30, CallOutcome::Busy)];
        assert_eq!(reconcile(at(0), &[], &log).missed, [log[1].clone()]);
    }
}
