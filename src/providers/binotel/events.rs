//! Webhooks: forms without a signature, believed by the sender's address and the company's id. Old field names are read
//! where the current ones are absent.

use jiff::Timestamp;
use serde_json::json;

use super::addresses::Allowed;
use super::loose::Loose;
use super::numbers::from_binotel;
use crate::agent::variables::Fields;
use crate::providers::provider::{
    CallNews, CallOutcome, CallState, Decision, Event, PastCall, Refusal, Webhook, WebhookAnswer, WebhookRequest,
};
use crate::telephony::{Direction, PhoneNumber};

const JSON: &str = "application/json";
/// Exactly this, or `apiCallCompleted` comes again: seven times over some 38 hours.
const SUCCESS: &str = r#"{"status":"success"}"#;
const FORM: &str = "application/x-www-form-urlencoded";
const EXTERNAL: [&str; 3] = ["externalNumber", "srcNumber", "dstNumber"];
const INTERNAL: [&str; 2] = ["internalNumber", "extNumber"];
const PBX: [&str; 3] = ["pbxNumber", "didNumber", "did"];
/// What a workflow may know of a call. Left out: `companyID`, which is an account's, and `requestType` and `method`, which
/// are the webhook's own.
const TOLD: [&str; 10] = [
    "generalCallID",
    "callType",
    "externalNumber",
    "pbxNumber",
    "internalNumber",
    "didNumber",
    "did",
    "srcNumber",
    "dstNumber",
    "extNumber",
];

/// What each webhook of one integration is read with.
#[derive(Clone, Debug)]
pub struct Reader {
    pub allowed: Allowed,
    /// Empty: any company is believed.
    pub company: String,
    pub routes: Routes,
}

/// Which incoming-call scenario sends a call to which of our internal numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    by_line: Vec<(String, String)>,
    any: Option<String>,
}

impl Routes {
    /// `15` for every line, `901=15` for one. `None`: neither.
    pub fn read<'a>(items: impl Iterator<Item = &'a str>) -> Option<Self> {
        let is_id = |text: &str| {
            !text.is_empty() && text.len() <= 32 && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
        };
        let mut routes = Self::default();
        for item in items {
            match item.split_once('=').map(|(line, id)| (line.trim(), id.trim())) {
                Some((line, id)) if is_id(line) && is_id(id) => routes.by_line.push((line.to_owned(), id.to_owned())),
                None if is_id(item) => routes.any = Some(item.to_owned()),
                _ => return None,
            }
        }
        Some(routes)
    }

    fn to(&self, line: &str) -> Option<&str> {
        let own = self.by_line.iter().find(|(known, _)| known == line).map(|(_, id)| id);
        own.or(self.any.as_ref()).map(String::as_str)
    }
}

impl Reader {
    pub fn read(&self, request: &WebhookRequest<'_>) -> Result<Webhook, Refusal> {
        if !request.any_address && !request.client.is_some_and(|client| self.allowed.holds(client)) {
            return Err(Refusal::WrongAddress);
        }
        let content_type = request.content_type.unwrap_or(FORM).split(';').next().unwrap_or_default().trim();
        if !content_type.eq_ignore_ascii_case(FORM) || !request.method.eq_ignore_ascii_case("POST") {
            return Err(Refusal::WrongType);
        }
        let form = Loose::from_form(request.body).ok_or(Refusal::Malformed)?;
        let kind = form.get("requestType").text();
        if kind.is_empty() || kind.len() > 64 {
            return Err(Refusal::Malformed);
        }
        let details = form.get("callDetails");
        let company = match form.get("companyID").text() {
            "" => details.get("companyID").text(),
            company => company,
        };
        match company {
            // The only kind that comes without: the address of the webhook says whose it is.
            "" if kind == "hangupTheCall" => {}
            "" => return Err(Refusal::Malformed),
            company if !is_id(company) => return Err(Refusal::Malformed),
            company if !self.company.is_empty() && company != self.company => return Err(Refusal::WrongAccount),
            _ => {}
        }
        let call = form.get("generalCallID").text();
        let news = || news(&form, call);
        let told = || TOLD.into_iter().map(|name| (name, form.get(name).text())).collect::<Fields>();
        let push = |state: CallState, what: &str| {
            if !is_id(call) {
                return Err(Refusal::Malformed);
            }
            let once = match &state {
                CallState::Transferred { to } => format!("{call}/{what}/{to}"),
                CallState::Answered { by: Some(by) } => format!("{call}/{what}/{by}"),
                _ => format!("{call}/{what}"),
            };
            Ok(Webhook { event: Event::CallProgressed { news: news(), state }, once: Some(once) })
        };
        let announced = |mut webhook: Webhook| {
            if let Event::CallProgressed { news, .. } = &mut webhook.event {
                news.fields = told();
            }
            Ok(webhook)
        };
        let internal = form.first(&INTERNAL);
        match kind {
            "apiCallSettings" => {
                let news = CallNews { fields: told(), ..news() };
                if news.direction.is_none() {
                    return Err(Refusal::Malformed);
                }
                // A question is answered each time it is asked.
                Ok(Webhook { event: Event::CallOffered(news), once: None })
            }
            "receivedTheCall" => announced(push(CallState::Ringing, kind)?),
            "answeredTheCall" => {
                push(CallState::Answered { by: (!internal.is_empty()).then(|| internal.to_owned()) }, kind)
            }
            "transferredTheCall" if internal.is_empty() => Err(Refusal::Malformed),
            "transferredTheCall" => push(CallState::Transferred { to: internal.to_owned() }, kind),
            "hangupTheCall" => {
                let status = form.get("disposition").text();
                let talk_s = form.get("billsec").seconds();
                // No word for the outcome is a call that was not answered.
                let outcome = match outcome(status, talk_s) {
                    CallOutcome::Running => CallOutcome::NoAnswer,
                    outcome => outcome,
                };
                push(CallState::Ended { outcome, status: status.to_owned(), talk_s }, kind)
            }
            "apiCallCompleted" => {
                let call = past_call(details).ok_or(Refusal::Malformed)?;
                let once = Some(format!("{}/{kind}", call.provider_call));
                let event = match is_message(&call.status) {
                    true => Event::Ignored { what: "sms".into() },
                    false => Event::CallCompleted(call),
                };
                Ok(Webhook { event, once })
            }
            other => {
                let what: String = other.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                Ok(Webhook { event: Event::Ignored { what }, once: None })
            }
        }
    }

    pub fn answer(&self, event: &Event, decision: &Decision<'_>) -> WebhookAnswer {
        let Event::CallOffered(news) = event else {
            return WebhookAnswer { content_type: JSON, body: SUCCESS.to_owned() };
        };
        let mut body = json!({});
        // Only an incoming call has a scenario to replace; all else leaves the call as the company has set it up.
        if let (Decision::Route { to }, Some(Direction::Inbound)) = (decision, news.direction) {
            if to.bytes().all(|byte| byte.is_ascii_digit()) && !to.is_empty() {
                body["customerData"] = json!({ "assignedToEmployeeNumber": to });
            }
            if let Some(id) = self.routes.to(to) {
                body["routeData"] = json!({ "type": "route", "id": id });
            }
        }
        WebhookAnswer { content_type: JSON, body: body.to_string() }
    }
}

fn news(form: &Loose, call: &str) -> CallNews {
    let direction = direction(form.get("callType").text());
    let (client, internal) = (from_binotel(form.first(&EXTERNAL)), form.first(&INTERNAL));
    let (pbx, line) = (form.first(&PBX), (!internal.is_empty()).then(|| internal.to_owned()));
    let ours = from_binotel(if pbx.is_empty() { internal } else { pbx });
    let (from, to) = match direction {
        Some(Direction::Outbound) => (ours, client),
        _ => (client, ours),
    };
    let provider_call = (!call.is_empty()).then(|| call.to_owned());
    CallNews { provider_call, direction, from, to, line, answered_by: None, at: None, fields: Fields::default() }
}

/// `callDetails` of a webhook, of a list or of `call-details`. `None`: no call.
pub fn past_call(details: &Loose) -> Option<PastCall> {
    let id = details.get("generalCallID").text();
    let direction = direction(details.get("callType").text())?;
    if !is_id(id) {
        return None;
    }
    let status = details.get("disposition").text().to_owned();
    let talk_s = details.get("billsec").seconds();
    let client = from_binotel(details.first(&EXTERNAL));
    let internal = details.first(&INTERNAL);
    let pbx = details.get("pbxNumberData").get("number").text();
    let pbx = if pbx.is_empty() { details.first(&PBX) } else { pbx };
    let ours = if pbx.is_empty() { PhoneNumber::new(internal) } else { from_binotel(pbx) };
    let (from, to) = match direction {
        Direction::Inbound => (client, ours),
        Direction::Outbound => (ours, client),
    };
    let started: Option<i64> = details.get("startTime").number();
    Some(PastCall {
        provider_call: id.to_owned(),
        direction,
        from,
        to,
        outcome: outcome(&status, talk_s),
        status,
        started: started.filter(|second| *second > 0).and_then(|second| Timestamp::from_second(second).ok()),
        talk_s,
        ring_s: details.get("waitsec").seconds(),
        answered_by: answered_by(details, internal),
        recording: Some(matches!(details.get("recordingStatus").text(), status if !status.is_empty() && status != "0")),
    })
}

/// The last employee of the history who talked; where there is no history, whom the call names.
fn answered_by(details: &Loose, internal: &str) -> Option<String> {
    let steps = details.get("historyData").entries();
    let talked = steps.iter().rev().map(|(_, step)| step).find(|step| {
        matches!(step.get("disposition").text(), "ANSWER" | "TRANSFER") && !step.get("internalNumber").text().is_empty()
    });
    let by = match talked {
        Some(step) => step.get("internalNumber").text(),
        None if outcome(details.get("disposition").text(), None) == CallOutcome::Answered => internal,
        None => "",
    };
    (!by.is_empty()).then(|| by.to_owned())
}

/// Rows of text messages stand among the calls.
pub fn is_message(status: &str) -> bool {
    status.starts_with("SMS-")
}

pub fn outcome(status: &str, talk_s: Option<u32>) -> CallOutcome {
    match status.to_ascii_uppercase().as_str() {
        // SUCCESS is a fax that was received.
        "ANSWER" | "TRANSFER" | "SUCCESS" => CallOutcome::Answered,
        "ONLINE" | "CALLING" | "" => CallOutcome::Running,
        "BUSY" => CallOutcome::Busy,
        "NOANSWER" => CallOutcome::NoAnswer,
        "CANCEL" => CallOutcome::Canceled,
        "CONGESTION" | "CHANUNAVAIL" | "FAILED" => CallOutcome::Failed,
        "VM" | "VM-SUCCESS" => CallOutcome::Voicemail,
        _ if talk_s.is_some_and(|seconds| seconds > 0) => CallOutcome::Answered,
        _ => CallOutcome::Failed,
    }
}

fn direction(call_type: &str) -> Option<Direction> {
    match call_type {
        "0" => Some(Direction::Inbound),
        "1" => Some(Direction::Outbound),
        _ => None,
    }
}

pub fn is_id(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reader() -> Reader {
        Reader {
            allowed: Allowed::read(std::iter::empty()).unwrap(),
            company: "1000".into(),
            routes: Routes::read(["901=15", "7"].into_iter()).unwrap(),
        }
    }

    fn read_from(client: &str, body: &str) -> Result<Webhook, Refusal> {
        reader().read(&WebhookRequest {
            method: "POST",
            content_type: Some("application/x-www-form-urlencoded; charset=utf-8"),
            client: Some(client.parse().unwrap()),
            body: body.as_bytes(),
            ..WebhookRequest::default()
        })
    }

    fn read(body: &str) -> Result<Webhook, Refusal> {
        read_from("194.88.218.116", body)
    }

    const COMPLETED: &str = "requestType=apiCallCompleted&attemptsCounter=1&language=uk\
        &callDetails[companyID]=1000&callDetails[generalCallID]=5000000001&callDetails[callID]=5000000001\
        &callDetails[startTime]=1800000000&callDetails[callType]=0&callDetails[internalNumber]=901\
        &callDetails[externalNumber]=0501234567&callDetails[waitsec]=8&callDetails[billsec]=64\
        &callDetails[disposition]=ANSWER&callDetails[recordingStatus]=uploaded&callDetails[isNewCall]=0\
        &callDetails[customerData]=&callDetails[employeeData][name]=AI+Agent\
        &callDetails[pbxNumberData][number]=0441234567\
        &callDetails[historyData][0][disposition]=NOANSWER&callDetails[historyData][0][internalNumber]=902\
        &callDetails[historyData][1][disposition]=ANSWER&callDetails[historyData][1][internalNumber]=901";

    #[test]
    fn a_completed_call_is_the_whole_truth() {
        let encoded = COMPLETED.replace('[', "%5B").replace(']', "%5D");
        assert_eq!(read(COMPLETED), read(&encoded));
        let webhook = read(&encoded).unwrap();
        assert_eq!(webhook.once.as_deref(), Some("5000000001/apiCallCompleted"));
        let Event::CallCompleted(call) = webhook.event else { panic!() };
        assert_eq!((call.from.as_str(), call.to.as_str()), ("+380501234567", "+380441234567"));
        assert_eq!((call.outcome, call.talk_s, call.ring_s), (CallOutcome::Answered, Some(64), Some(8)));
        assert_eq!(call.answered_by.as_deref(), Some("901"));
        assert_eq!(call.started.unwrap().as_second(), 1_800_000_000);
        assert_eq!(call.recording, Some(true));
    }

    #[test]
    fn a_webhook_that_offers_or_announces_a_call_tells_what_it_has_of_it() {
        let told = |body: &str| match read(body).unwrap().event {
            Event::CallOffered(news) | Event::CallProgressed { news, .. } => news.fields.as_json(),
            other => panic!("{other:?}"),
        };
        let common = "companyID=1000&callType=0&externalNumber=0501234567&pbxNumber=0441234567&signature=s";
        let asked = json!({ "callType": "0", "externalNumber": "0501234567", "pbxNumber": "0441234567" });
        assert_eq!(told(&format!("requestType=apiCallSettings&{common}")), asked);
        let mut announced = asked.clone();
        announced["generalCallID"] = json!("5");
        assert_eq!(told(&format!("requestType=receivedTheCall&method=POST&generalCallID=5&{common}")), announced);
        let under_way = format!("requestType=answeredTheCall&generalCallID=5&internalNumber=901&{common}");
        assert_eq!(told(&under_way), json!({}));
    }

    #[test]
    fn a_later_attempt_is_the_same_webhook() {
        let again = COMPLETED.replace("attemptsCounter=1", "attemptsCounter=5");
        assert_eq!(read(COMPLETED).unwrap().once, read(&again).unwrap().once);
    }

    #[test]
    fn every_push_is_read_with_its_new_and_its_old_names() {
        for body in [
            "requestType=receivedTheCall&generalCallID=5&callType=0&companyID=1000&pbxNumber=0441234567&externalNumber=0501234567",
            "requestType=receivedTheCall&generalCallID=5&callType=0&companyID=1000&didNumber=0441234567&srcNumber=0501234567",
            "requestType=receivedTheCall&generalCallID=5&callType=0&companyID=1000&did=0441234567&srcNumber=0501234567",
        ] {
            let Event::CallProgressed { news, state } = read(body).unwrap().event else { panic!("{body}") };
            assert_eq!((news.from.as_str(), news.to.as_str()), ("+380501234567", "+380441234567"), "{body}");
            assert_eq!(state, CallState::Ringing);
        }
        for body in [
            "requestType=receivedTheCall&generalCallID=5&callType=1&companyID=1000&internalNumber=901&externalNumber=0501234567",
            "requestType=receivedTheCall&generalCallID=5&callType=1&companyID=1000&extNumber=901&dstNumber=0501234567",
        ] {
            let Event::CallProgressed { news, .. } = read(body).unwrap().event else { panic!("{body}") };
            assert_eq!((news.from.as_str(), news.to.as_str()), ("901", "+380501234567"), "{body}");
            assert_eq!(news.line.as_deref(), Some("901"));
        }
        let state = |body: &str| match read(body).unwrap().event {
            Event::CallProgressed { state, .. } => state,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            state("requestType=answeredTheCall&generalCallID=5&companyID=1000"),
            CallState::Answered { by: None }
        );
        assert_eq!(
            state("requestType=answeredTheCall&generalCallID=5&companyID=1000&extNumber=901"),
            CallState::Answered { by: Some("901".into()) }
        );
        assert_eq!(
            state("requestType=transferredTheCall&generalCallID=5&companyID=1000&internalNumber=912"),
            CallState::Transferred { to: "912".into() }
        );
        assert_eq!(
            state("requestType=hangupTheCall&generalCallID=5&billsec=64&disposition=ANSWER"),
            CallState::Ended { outcome: CallOutcome::Answered, status: "ANSWER".into(), talk_s: Some(64) }
        );
    }

    #[test]
    fn only_a_hang_up_may_come_without_its_company() {
        assert!(read("requestType=hangupTheCall&generalCallID=5").is_ok());
        for body in [
            "requestType=receivedTheCall&generalCallID=5&callType=0",
            "requestType=answeredTheCall&generalCallID=5",
            "requestType=apiCallSettings&callType=0&externalNumber=0501234567",
            "requestType=somethingElse",
        ] {
            assert_eq!(read(body), Err(Refusal::Malformed), "{body}");
        }
        for body in [
            "requestType=hangupTheCall&generalCallID=5&companyID=1001",
            "requestType=receivedTheCall&generalCallID=5&callType=0&companyID=1001",
            &COMPLETED.replace("companyID]=1000", "companyID]=1001"),
        ] {
            assert_eq!(read(body), Err(Refusal::WrongAccount), "{body}");
        }
    }

    #[test]
    fn a_webhook_from_elsewhere_is_refused_before_it_is_read() {
        assert_eq!(read_from("203.0.113.7", "not a form %%%"), Err(Refusal::WrongAddress));
        let request = WebhookRequest { method: "POST", body: COMPLETED.as_bytes(), ..WebhookRequest::default() };
        assert_eq!(reader().read(&request), Err(Refusal::WrongAddress), "no address is no allowed one");
        assert!(reader().read(&WebhookRequest { any_address: true, ..request }).is_ok());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for body in [
            "",
            "requestType=",
            "requestType=receivedTheCall&companyID=1000&callType=0",
            "requestType=receivedTheCall&companyID=1000&generalCallID=5%27--",
            "requestType=receivedTheCall&companyID=a&generalCallID=5",
            "requestType=transferredTheCall&companyID=1000&generalCallID=5",
            "requestType=apiCallSettings&companyID=1000&callType=7",
            "requestType=apiCallCompleted&callDetails[companyID]=1000",
            "requestType=apiCallCompleted&companyID=1000&callDetails=",
        ] {
            assert_eq!(read(body), Err(Refusal::Malformed), "{body}");
        }
        let json = WebhookRequest {
            method: "POST",
            content_type: Some("application/json"),
            any_address: true,
            body: b"{}",
            ..WebhookRequest::default()
        };
        assert_eq!(reader().read(&json), Err(Refusal::WrongType));
    }

    #[test]
    fn an_offered_call_is_routed_by_the_lines_scenario() {
        let offered = read(
            "requestType=apiCallSettings&companyID=1000&callType=0&externalNumber=0501234567&pbxNumber=0441234567",
        )
        .unwrap();
        assert_eq!(offered.once, None);
        let answer = |to: &str| -> serde_json::Value {
            serde_json::from_str(&reader().answer(&offered.event, &Decision::Route { to }).body).unwrap()
        };
        assert_eq!(answer("901")["routeData"], json!({ "type": "route", "id": "15" }));
        assert_eq!(answer("901")["customerData"]["assignedToEmployeeNumber"], "901");
        assert_eq!(answer("902")["routeData"]["id"], "7");
        assert_eq!(reader().answer(&offered.event, &Decision::Busy).body, "{}");
        let outgoing =
            read("requestType=apiCallSettings&companyID=1000&callType=1&externalNumber=0501234567&internalNumber=901")
                .unwrap();
        assert_eq!(reader().answer(&outgoing.event, &Decision::Route { to: "901" }).body, "{}");
    }

    #[test]
    fn everything_but_a_question_is_answered_exactly_so() {
        let completed = read(COMPLETED).unwrap();
        for decision in [Decision::Noted, Decision::HangUp, Decision::Route { to: "901" }] {
            assert_eq!(reader().answer(&completed.event, &decision).body, "{\"status\":\"success\"}");
        }
    }

    #[test]
    fn a_message_is_no_call() {
        let sms = COMPLETED.replace("disposition]=ANSWER", "disposition]=SMS-SUCCESS");
        assert_eq!(read(&sms).unwrap().event, Event::Ignored { what: "sms".into() });
    }

    #[test]
    fn a_hidden_caller_is_no_reason_to_refuse() {
        for hidden in ["", "Anonymous"] {
            let body = COMPLETED.replace("externalNumber]=0501234567", &format!("externalNumber]={hidden}"));
            let Event::CallCompleted(call) = read(&body).unwrap().event else { panic!("{hidden}") };
            assert_eq!(call.from.as_str(), "");
        }
    }

    /// Any JSON, with names that a call has.
    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            Just(json!("")),
            any::<bool>().prop_map(|value| json!(value)),
            any::<f64>().prop_map(|value| json!(value)),
            any::<i64>().prop_map(|value| json!(value)),
            "[0-9a-z+<> -]{0,12}".prop_map(|value| json!(value)),
        ];
        let name = prop_oneof![
            "generalCallID|callType|startTime|disposition|billsec|historyData|pbxNumberData|number|externalNumber",
            "[a-z0-9]{0,4}"
        ];
        leaf.prop_recursive(4, 64, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(serde_json::Value::from),
                prop::collection::hash_map(name.clone(), inner, 0..6).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest::proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(answer in any_json(), details in any_json()) {
            let mut call = json!({ "generalCallID": 5, "callType": "0" });
            if let (Some(call), serde_json::Value::Object(details)) = (call.as_object_mut(), details) {
                call.extend(details);
            }
            let _ = past_call(&Loose::from_json(answer));
            let _ = past_call(&Loose::from_json(call));
        }

        #[test]
        fn no_webhook_makes_the_reader_panic(extra in proptest::collection::vec(0u8.., 0..200), cut in 0usize..600) {
            let mut body = COMPLETED.as_bytes()[..cut.min(COMPLETED.len())].to_vec();
            body.extend_from_slice(&extra);
            let request = WebhookRequest { method: "POST", any_address: true, body: &body, ..WebhookRequest::default() };
            if let Ok(webhook) = reader().read(&request) {
                let _ = reader().answer(&webhook.event, &Decision::Route { to: "901" });
            }
        }
    }
}
