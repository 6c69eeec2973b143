//! Webhooks 2.0. They are not signed and not repeated: one is believed when it has what each genuine one of its event
//! has, in forms that can be, and names our project. What was lost or forged all the same is found by
//! [`reconcile`](crate::providers::reconcile).

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::parameters::{Names, Parameter, Unreadable, Values};
use crate::agent::variables::Fields;
use crate::providers::provider::{
    CallNews, CallOutcome, CallState, Decision, Event, PastCall, Refusal, Webhook, WebhookAnswer, WebhookRequest,
};
use crate::telephony::{Direction, PhoneNumber};

/// Longer calls than two days are typing errors.
const LONGEST_S: f64 = 172_800.0;
/// Parameters that a workflow is not told: the webhook's own name, the account, and links that open a recording to
/// whoever has them. The others are those that the company has chosen to send; secrets by name are left out too
/// (`agent/variables.rs`).
const UNTOLD: [Parameter; 4] = [Parameter::Event, Parameter::Project, Parameter::Recording, Parameter::HasRecording];
const PLAIN: &str = "text/plain; charset=utf-8";

/// What a webhook is sent for. The names are ours: the cabinet sends them as a fixed value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    InBefore,
    InAnswer,
    InForward,
    InRating,
    InAfter,
    OutBefore,
    OutAfter,
    /// A "webhook number" in a forwarding scheme asks where to send the call.
    Route,
    /// Call processed by AI, form sent, dialog opened or closed.
    Other,
}

/// Fixed value of the event's parameter, and the event's name in the cabinet.
pub const OCCASIONS: [(&str, Occasion, &str); 12] = [
    ("in_before", Occasion::InBefore, "incoming call: before the call"),
    ("in_answer", Occasion::InAnswer, "incoming call: on taking the call"),
    ("in_forward", Occasion::InForward, "incoming call: on forwarding to a location"),
    ("in_rating", Occasion::InRating, "incoming call: after the rating menu"),
    ("in_after", Occasion::InAfter, "incoming call: after the call"),
    ("out_before", Occasion::OutBefore, "outgoing call: before the call"),
    ("out_after", Occasion::OutAfter, "outgoing call: after the call"),
    ("route", Occasion::Route, "Virtual PBX: webhook number"),
    ("ai", Occasion::Other, "call processed by AI"),
    ("form", Occasion::Other, "form sent"),
    ("dialog_open", Occasion::Other, "Smart Phone dialog opened"),
    ("dialog_close", Occasion::Other, "Smart Phone dialog closed"),
];

fn occasion(name: &str) -> Option<(&'static str, Occasion)> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    OCCASIONS.iter().find(|(known, ..)| *known == name).map(|&(known, occasion, _)| (known, occasion))
}

/// What each webhook of one integration is read with.
#[derive(Clone, Debug)]
pub struct Reader {
    pub names: Names,
    pub project: String,
    pub zone: TimeZone,
    /// JSON key that holds the answer of a webhook number; empty: the answer is a plain body.
    pub route_key: String,
}

impl Reader {
    pub fn read(&self, request: &WebhookRequest<'_>) -> Result<Webhook, Refusal> {
        let values =
            Values::read(request.query, request.content_type, request.body).map_err(|Unreadable| Refusal::Malformed)?;
        let look_up = |parameter| self.names.look_up(parameter, &values);
        let text = |parameter| look_up(parameter).unwrap_or_default();
        let named = match text(Parameter::Event) {
            "" => request.route,
            name => name,
        };
        let (name, occasion) = occasion(named).ok_or(Refusal::Malformed)?;
        match text(Parameter::Project) {
            project if project == self.project => {}
            // A webhook number sends no fixed values: its address alone says whose it is.
            "" if occasion == Occasion::Route => {}
            "" => return Err(Refusal::Malformed),
            _ => return Err(Refusal::WrongAccount),
        }
        let call = text(Parameter::Call);
        if occasion == Occasion::Other {
            if !call.is_empty() && !is_call_id(call) {
                return Err(Refusal::Malformed);
            }
            let once = (!call.is_empty()).then(|| format!("{call}/{name}"));
            return Ok(Webhook { event: Event::Ignored { what: name.to_owned() }, once });
        }
        if !is_call_id(call) {
            return Err(Refusal::Malformed);
        }
        // A hidden caller comes without a value, a missing parameter does not come.
        let caller = side(look_up(Parameter::Caller).ok_or(Refusal::Malformed)?).ok_or(Refusal::Malformed)?;
        let dialled = side(text(Parameter::Destination)).ok_or(Refusal::Malformed)?;
        let needs_destination = !matches!(occasion, Occasion::InAnswer | Occasion::InForward | Occasion::InRating);
        if needs_destination && dialled.as_str().is_empty() {
            return Err(Refusal::Malformed);
        }
        let by = match text(Parameter::ConnectedWith) {
            "" => None,
            by if is_login(by) => Some(by.to_owned()),
            _ => return Err(Refusal::Malformed),
        };
        if occasion == Occasion::InAnswer && by.is_none() && text(Parameter::Employee).is_empty() {
            return Err(Refusal::Malformed);
        }
        let outgoing = matches!(occasion, Occasion::OutBefore | Occasion::OutAfter);
        let (direction, caller_is_ours) = direction(text(Parameter::CallType), outgoing).ok_or(Refusal::Malformed)?;
        // The client is the caller in every webhook but those of outgoing calls, also where the PBX called it back.
        let (from, to) = match (direction, caller_is_ours) {
            (Direction::Outbound, false) => (dialled, caller),
            _ => (caller, dialled),
        };
        let at = self.started(text(Parameter::StartedMicros), text(Parameter::Started))?;
        let seconds = |parameter| seconds(text(parameter));
        let (whole, talk_s, ring_s) =
            (seconds(Parameter::Duration)?, seconds(Parameter::Talk)?, seconds(Parameter::Wait)?);
        let line = match &by {
            Some(by) => Some(by.clone()),
            None if outgoing && !is_number(from.as_str()) => Some(from.as_str().to_owned()),
            None => None,
        };
        let news = CallNews {
            provider_call: Some(call.to_owned()),
            direction: Some(direction),
            from: from.clone(),
            to: to.clone(),
            line,
            answered_by: None,
            at,
            fields: match occasion {
                Occasion::Route | Occasion::InBefore | Occasion::OutBefore | Occasion::InForward => {
                    self.names.others(&values, &UNTOLD).collect()
                }
                _ => Fields::default(),
            },
        };
        let event = match occasion {
            Occasion::Route => Event::CallOffered(news),
            Occasion::InBefore | Occasion::OutBefore | Occasion::InForward => {
                Event::CallProgressed { news, state: CallState::Ringing }
            }
            Occasion::InAnswer => Event::CallProgressed { news, state: CallState::Answered { by } },
            Occasion::InRating | Occasion::Other => Event::Ignored { what: name.to_owned() },
            Occasion::InAfter | Occasion::OutAfter => {
                let status = text(Parameter::Status);
                let outcome = outcome(status).ok_or(Refusal::Malformed)?;
                let recording = !text(Parameter::Recording).is_empty() || is_yes(text(Parameter::HasRecording));
                if outcome == CallOutcome::Running {
                    Event::CallProgressed { news, state: CallState::Ringing }
                } else {
                    Event::CallCompleted(PastCall {
                        provider_call: call.to_owned(),
                        direction,
                        from,
                        to,
                        outcome,
                        status: status.to_owned(),
                        started: at,
                        talk_s: talk_s.or_else(|| Some(whole?.saturating_sub(ring_s?))),
                        ring_s,
                        answered_by: by,
                        recording: Some(recording),
                    })
                }
            }
        };
        let once = match (occasion, &event) {
            // A question is answered each time it is asked.
            (Occasion::Route, _) => None,
            // A call may be forwarded several times, each time to somebody else.
            (Occasion::InForward, Event::CallProgressed { news, .. }) => {
                let place = news.line.as_deref().unwrap_or_default();
                Some(format!("{call}/{name}/{}/{place}", text(Parameter::Destination)))
            }
            // "In progress" is no end: the end comes under the same name.
            (Occasion::InAfter | Occasion::OutAfter, Event::CallProgressed { .. }) => {
                Some(format!("{call}/{name}/running"))
            }
            _ => Some(format!("{call}/{name}")),
        };
        Ok(Webhook { event, once })
    }

    /// Only a webhook number reads the body of an answer.
    pub fn answer(&self, event: &Event, decision: &Decision<'_>) -> WebhookAnswer {
        match (event, decision) {
            (Event::CallOffered(_), Decision::Route { to } | Decision::Transfer { to, .. }) => {
                let to = to.strip_prefix('+').unwrap_or(to);
                if self.route_key.is_empty() {
                    WebhookAnswer { content_type: PLAIN, body: to.to_owned() }
                } else {
                    let body = serde_json::json!({ &self.route_key: to }).to_string();
                    WebhookAnswer { content_type: "application/json", body }
                }
            }
            _ => WebhookAnswer { content_type: PLAIN, body: String::new() },
        }
    }

    fn started(&self, micros: &str, date: &str) -> Result<Option<Timestamp>, Refusal> {
        if !micros.is_empty() {
            return micros_of(micros).map(Some).ok_or(Refusal::Malformed);
        }
        // The format of dates is the customer's choice: one that is not known says nothing.
        Ok(moment(date, &self.zone))
    }
}

/// Microseconds; of a moment in this century.
fn micros_of(text: &str) -> Option<Timestamp> {
    let micros: i64 = text.parse().ok()?;
    (946_684_800_000_000..4_102_444_800_000_000).contains(&micros).then(|| Timestamp::from_microsecond(micros).ok())?
}

/// ISO with an offset, or civil time in the project's zone.
pub fn moment(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some(at);
    }
    // `+0200`, which ISO allows and `Timestamp` wants with a colon.
    if let Ok(at) = Timestamp::strptime("%Y-%m-%dT%H:%M:%S%z", text) {
        return Some(at);
    }
    let civil = text.parse::<DateTime>().or_else(|_| DateTime::strptime("%Y-%m-%d %H:%M:%S", text)).ok()?;
    Some(zone.to_ambiguous_zoned(civil).compatible().ok()?.timestamp())
}

/// As `us1_-1800000000.1234567`.
pub fn is_call_id(text: &str) -> bool {
    (3..=80).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':'))
        && text.bytes().any(|byte| byte.is_ascii_digit())
}

fn is_login(text: &str) -> bool {
    text.len() <= 80 && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+' | '@'))
}

/// One side of a call: a number, a SIP login, or nothing for who hides. `"Name" <380501234567>` is its number.
pub fn side(text: &str) -> Option<PhoneNumber> {
    let inner = match (text.rfind('<'), text.rfind('>')) {
        (Some(open), Some(close)) if open < close => &text[open + 1..close],
        (None, None) => text,
        _ => return None,
    };
    let inner = inner.trim();
    let lower = inner.to_ascii_lowercase();
    if matches!(lower.as_str(), "" | "anonymous" | "unknown" | "hidden" | "private" | "restricted" | "unavailable") {
        return Some(PhoneNumber::default());
    }
    let digits: String = inner.chars().filter(char::is_ascii_digit).collect();
    let separators = |c: char| c.is_ascii_digit() || matches!(c, '+' | ' ' | '-' | '(' | ')' | '.');
    if inner.chars().all(separators) {
        return match digits.len() {
            // Extensions and short codes have no country.
            2..=6 => Some(PhoneNumber::new(digits)),
            7..=15 => Some(PhoneNumber::new(e164(&digits))),
            _ => None,
        };
    }
    is_login(inner).then(|| PhoneNumber::new(inner))
}

/// Ringostat writes international numbers without `+`; a national one keeps its zero and gets none.
fn e164(digits: &str) -> String {
    match digits.strip_prefix("00") {
        Some(rest) => format!("+{rest}"),
        None if digits.starts_with('0') => digits.to_owned(),
        None => format!("+{digits}"),
    }
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'+')
}

/// Who dialled, and whether "caller" means our side.
pub fn direction(call_type: &str, outgoing: bool) -> Option<(Direction, bool)> {
    match call_type.to_ascii_lowercase().as_str() {
        "" if outgoing => Some((Direction::Outbound, true)),
        "" | "in" | "transitin" => Some((Direction::Inbound, false)),
        "out" | "transitout" => Some((Direction::Outbound, true)),
        // The PBX called a client who had asked for it.
        "callback" => Some((Direction::Outbound, outgoing)),
        _ => None,
    }
}

/// `None`: a status that is not known. Written with spaces, hyphens or underscores.
pub fn outcome(status: &str) -> Option<CallOutcome> {
    match status.to_ascii_uppercase().replace(['_', '-'], " ").as_str() {
        "ANSWERED" | "PROPER" | "REPEATED" => Some(CallOutcome::Answered),
        "NO ANSWER" | "CLIENT NO ANSWER" => Some(CallOutcome::NoAnswer),
        "BUSY" | "DECLINE" => Some(CallOutcome::Busy),
        "FAILED" | "NO FORWARD" | "WRONG EXTENSION" | "NO EXTENSION" | "FAILED FORBIDDEN DESTINATION" => {
            Some(CallOutcome::Failed)
        }
        // Nobody of the company answered, however long the message was.
        "VOICEMAIL" => Some(CallOutcome::Voicemail),
        "IN PROGRESS" | "CALLING" => Some(CallOutcome::Running),
        _ => None,
    }
}

pub fn is_yes(text: &str) -> bool {
    matches!(text, "1" | "true" | "yes")
}

/// Whole seconds; bad rows of the provider's have negative ringing, which is none.
fn seconds(text: &str) -> Result<Option<u32>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<f64>() {
        Ok(seconds) if seconds.abs() <= LONGEST_S => Ok(Some(seconds.max(0.0) as u32)),
        _ => Err(Refusal::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn reader() -> Reader {
        Reader {
            names: Names::default(),
            project: "12345".into(),
            zone: TimeZone::fixed(jiff::tz::offset(2)),
            route_key: String::new(),
        }
    }

    fn read(query: &str) -> Result<Webhook, Refusal> {
        reader().read(&WebhookRequest { method: "GET", query, ..WebhookRequest::default() })
    }

    const AFTER: &str = "event=in_after&project_id=12345&call_id=us1_-1800000000.1234567&call_type=in\
        &caller=380501234567&destination=380441234567&status=ANSWERED&duration=75&billsec=66&waittime=9\
        &connected_with=acme_concierge&employee_id=1201&has_recording=1&call_ts_us=1800000000123456";

    #[test]
    fn the_proposed_webhooks_are_understood() {
        let before = read(
            "event=in_before&project_id=12345&call_id=us1_-1800000000.1234567&call_type=in&caller=380501234567\
             &destination=380441234567&call_ts_us=1800000000123456",
        )
        .unwrap();
        assert_eq!(before.once.as_deref(), Some("us1_-1800000000.1234567/in_before"));
        let Event::CallProgressed { news, state: CallState::Ringing } = before.event else { panic!("{before:?}") };
        assert_eq!((news.from.as_str(), news.to.as_str()), ("+380501234567", "+380441234567"));
        assert_eq!(news.at.unwrap().as_microsecond(), 1_800_000_000_123_456);

        let answered = read(
            "event=in_answer&project_id=12345&call_id=us1_-1800000000.1234567&caller=380501234567\
             &destination=380441234567&connected_with=acme_concierge&employee_id=1201",
        )
        .unwrap();
        let Event::CallProgressed { news, state } = answered.event else { panic!("{answered:?}") };
        assert_eq!(state, CallState::Answered { by: Some("acme_concierge".into()) });
        assert_eq!(news.line.as_deref(), Some("acme_concierge"));

        let after = read(AFTER).unwrap();
        assert_eq!(after.once.as_deref(), Some("us1_-1800000000.1234567/in_after"));
        let Event::CallCompleted(call) = after.event else { panic!("{after:?}") };
        assert_eq!((call.outcome, call.talk_s, call.ring_s), (CallOutcome::Answered, Some(66), Some(9)));
        assert_eq!(call.recording, Some(true));
        assert_eq!(call.direction, Direction::Inbound);
    }

    #[test]
    fn a_webhook_that_announces_a_call_tells_all_that_the_company_sends_but_secrets() {
        let call = "event=in_before&project_id=12345&call_id=us1_-1.7&call_type=in&caller=380501234567\
            &destination=380441234567&utm_source=ads&employee_fio=Anna%0AB&api_key=k&webhook_token=t&recording=https%3A%2F%2Fx\
            &empty=";
        let Event::CallProgressed { news, .. } = read(call).unwrap().event else { panic!() };
        let told = serde_json::json!({
            "call_id": "us1_-1.7", "call_type": "in", "caller": "380501234567", "destination": "380441234567",
            "utm_source": "ads", "employee_fio": "Anna B",
        });
        assert_eq!(news.fields.as_json(), told);
        // A parameter that an integration renames is left out under its own name.
        let mut reader = reader();
        let renamed = [("parameters.project_id".into(), "pid".into())];
        reader.names = Names::read(&crate::providers::credentials::Credentials::from_stored(renamed.into()));
        let query = &call.replace("project_id=12345", "pid=12345&project_id=own");
        let webhook = reader.read(&WebhookRequest { method: "GET", query, ..WebhookRequest::default() });
        let Event::CallProgressed { news, .. } = webhook.unwrap().event else { panic!() };
        assert_eq!(
            (&news.fields.as_json()["pid"], &news.fields.as_json()["project_id"]),
            (&Value::Null, &"own".into())
        );
        let Event::CallProgressed { news, .. } =
            read(&call.replace("in_before", "in_answer&employee_id=1")).unwrap().event
        else {
            panic!()
        };
        assert!(news.fields.is_empty(), "the call is under way");
    }

    #[test]
    fn a_webhook_that_lacks_something_or_cannot_be_is_refused() {
        let without = |name: &str| {
            AFTER.split('&').filter(|pair| pair.split('=').next() != Some(name)).collect::<Vec<_>>().join("&")
        };
        let with = |name: &str, value: &str| format!("{}&{name}={value}", without(name));
        for name in ["event", "project_id", "call_id", "caller", "destination", "status"] {
            assert_eq!(read(&without(name)), Err(Refusal::Malformed), "without {name}");
        }
        for (name, value, refusal) in [
            ("project_id", "54321", Refusal::WrongAccount),
            ("project_id", "12345%20OR%201=1", Refusal::WrongAccount),
            ("event", "in_the_middle", Refusal::Malformed),
            ("call_id", "%3Cscript%3E", Refusal::Malformed),
            ("call_id", "x", Refusal::Malformed),
            ("caller", "38050123456738050123456738050", Refusal::Malformed),
            ("caller", "%27%3B+DROP+TABLE", Refusal::Malformed),
            ("destination", "", Refusal::Malformed),
            ("status", "GLORIOUS", Refusal::Malformed),
            ("call_type", "sideways", Refusal::Malformed),
            ("duration", "long", Refusal::Malformed),
            ("duration", "NaN", Refusal::Malformed),
            ("billsec", "1e99", Refusal::Malformed),
            ("call_ts_us", "1800000000", Refusal::Malformed),
            ("connected_with", "a%0Ab", Refusal::Malformed),
        ] {
            assert_eq!(read(&with(name, value)), Err(refusal), "{name}={value}");
        }
        assert!(read(&with("caller", "")).is_ok(), "a hidden caller");
        assert!(read(&with("waittime", "-3")).is_ok(), "a bad row of the provider's own");
    }

    #[test]
    fn taking_a_call_without_anybody_who_took_it_cannot_be() {
        let query = "event=in_answer&project_id=12345&call_id=us1_-1.2&caller=&destination=380441234567";
        assert_eq!(read(query), Err(Refusal::Malformed));
        assert!(read(&format!("{query}&employee_id=1201")).is_ok());
    }

    #[test]
    fn the_client_stands_on_the_right_side_of_each_call_type() {
        let sides = |event: &str, call_type: &str, caller: &str, destination: &str| {
            let query = format!(
                "event={event}&project_id=12345&call_id=a.1&call_type={call_type}&caller={caller}\
                 &destination={destination}&status=ANSWERED"
            );
            let Event::CallCompleted(call) = read(&query).unwrap().event else { panic!("{query}") };
            (call.direction, call.from.as_str().to_owned(), call.to.as_str().to_owned())
        };
        let (client, project) = ("380501234567", "380441234567");
        let plus = |number: &str| format!("+{number}");
        assert_eq!(sides("in_after", "in", client, project), (Direction::Inbound, plus(client), plus(project)));
        assert_eq!(sides("in_after", "callback", client, project), (Direction::Outbound, plus(project), plus(client)));
        assert_eq!(sides("out_after", "", "acme_ai", client), (Direction::Outbound, "acme_ai".into(), plus(client)));
    }

    #[test]
    fn voicemail_is_no_answer_however_long_the_message() {
        let query = AFTER.replace("status=ANSWERED", "status=VOICEMAIL");
        let Event::CallCompleted(call) = read(&query).unwrap().event else { panic!() };
        assert_eq!(call.outcome, CallOutcome::Voicemail);
    }

    #[test]
    fn a_call_that_still_runs_is_not_completed_and_its_end_still_counts() {
        let running = read(&AFTER.replace("status=ANSWERED", "status=IN_PROGRESS")).unwrap();
        assert!(matches!(running.event, Event::CallProgressed { .. }));
        assert_ne!(running.once, read(AFTER).unwrap().once);
    }

    #[test]
    fn a_webhook_number_is_told_where_to_send_the_call() {
        let body = br#"{"date":"2031-02-03 09:30:47","src":"380501234567","dst":"380441234567","uuid":"a-1"}"#;
        let request = WebhookRequest {
            method: "POST",
            query: "event=route",
            content_type: Some("application/json"),
            body,
            ..WebhookRequest::default()
        };
        let mut reader = reader();
        let asked = reader.read(&request).unwrap();
        assert_eq!(asked.once, None);
        let Event::CallOffered(news) = &asked.event else { panic!("{asked:?}") };
        assert_eq!(news.at, Some("2031-02-03T09:30:47+02:00".parse().unwrap()));
        let route = Decision::Route { to: "acme_concierge" };
        assert_eq!(reader.answer(&asked.event, &route).body, "acme_concierge");
        reader.route_key = "number_01".into();
        assert_eq!(reader.answer(&asked.event, &route).body, r#"{"number_01":"acme_concierge"}"#);
        assert_eq!(reader.answer(&asked.event, &Decision::Busy).body, "");
    }

    #[test]
    fn moments_are_read_with_an_offset_or_in_the_projects_zone() {
        let zone = TimeZone::fixed(jiff::tz::offset(3));
        let expected: Timestamp = "2031-02-03T07:30:47Z".parse().unwrap();
        assert_eq!(moment("2031-02-03T09:30:47+0200", &zone), Some(expected));
        assert_eq!(moment("2031-02-03T09:30:47+02:00", &zone), Some(expected));
        assert_eq!(moment("2031-02-03 10:30:47", &zone), Some(expected));
        assert_eq!(moment("yesterday", &zone), None);
    }

    proptest::proptest! {
        #[test]
        fn no_webhook_makes_the_reader_panic(query in ".{0,200}", body in proptest::collection::vec(0u8.., 0..200)) {
            let _ = reader().read(&WebhookRequest { query: &query, body: &body, ..WebhookRequest::default() });
            let query = format!("{AFTER}&{query}");
            let _ = reader().read(&WebhookRequest { query: &query, body: &body, ..WebhookRequest::default() });
            let _ = side(&query);
            let _ = moment(&query, &TimeZone::UTC);
        }
    }
}
