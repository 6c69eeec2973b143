//! The REST API of the simulated account: the parts of 2010-04-01 that Offhook uses, in Twilio's shapes.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::mock::stage;
use crate::mock::twilio::call::{COMMANDS, Command, Offer, Source, deliver};
use crate::mock::twilio::{Fault, MockCall, MockMessage, MockNumber, Recording, Seen, Shared, Way, keep};

/// Settings of a number that can be written.
const SETTINGS: [&str; 13] = [
    "VoiceUrl",
    "VoiceMethod",
    "VoiceFallbackUrl",
    "VoiceFallbackMethod",
    "VoiceApplicationSid",
    "VoiceReceiveMode",
    "StatusCallback",
    "StatusCallbackMethod",
    "SmsUrl",
    "SmsMethod",
    "SmsFallbackUrl",
    "SmsApplicationSid",
    "TrunkSid",
];

type Fields = Vec<(String, String)>;

pub(super) fn pairs(fields: &[(&str, &str)]) -> Fields {
    fields.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

/// `Fri, 18 Oct 2019 17:00:00 +0000`.
pub(super) fn rfc2822(at: Timestamp) -> String {
    at.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
}

fn field<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value)
}

/// Twilio's error.
struct Refused(u16, u32, &'static str);

const NOT_FOUND: Refused = Refused(404, 20404, "The requested resource was not found");

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(status, code, message) = self;
        let body = json!({
            "code": code,
            "message": message,
            "more_info": format!("https://www.twilio.com/docs/errors/{code}"),
            "status": status,
        });
        (StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST), Json(body)).into_response()
    }
}

type Result = std::result::Result<(StatusCode, Value), Refused>;

pub(super) async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let fields: Fields = form_urlencoded::parse(&body).into_owned().collect();
    let url = uri.path_and_query().map_or("/", |path| path.as_str());
    let line = shared.note(Seen::new(Way::In, method.as_str(), url, &fields));
    let fault = {
        let mut state = shared.state();
        let fault = state.fault.map(|(fault, _)| fault);
        state.fault =
            state.fault.and_then(|(fault, times)| times.checked_sub(1).filter(|t| *t > 0).map(|t| (fault, t)));
        fault
    };
    let mut response = match fault {
        Some(Fault::Limited { retry_after_s }) => {
            let mut response = Refused(429, 20429, "Too Many Requests").into_response();
            if retry_after_s > 0 {
                response.headers_mut().insert(header::RETRY_AFTER, retry_after_s.into());
            }
            response
        }
        Some(Fault::Broken) => Refused(500, 20500, "Internal Server Error").into_response(),
        Some(Fault::Gateway) => {
            let html = "<html><body><h1>502 Bad Gateway</h1></body></html>";
            (StatusCode::BAD_GATEWAY, [(header::CONTENT_TYPE, "text/html")], html).into_response()
        }
        Some(Fault::Nonsense) => "OK".into_response(),
        Some(Fault::Refused { code }) => Refused(400, code, "The simulator was told to refuse").into_response(),
        Some(Fault::Lost) => {
            let _ = respond(&shared, &method, &uri, &headers, &fields);
            Refused(503, 20503, "Service Unavailable").into_response()
        }
        Some(Fault::Slow { ms }) => {
            sleep(Duration::from_millis(ms)).await;
            respond(&shared, &method, &uri, &headers, &fields)
        }
        None => respond(&shared, &method, &uri, &headers, &fields),
    };
    response.headers_mut().insert("twilio-concurrent-requests", 1.into());
    shared.noted(line, response.status().as_u16());
    response
}

/// Who asks: the account itself or one of its keys.
#[derive(PartialEq)]
enum Who {
    Account,
    Key,
}

fn who(shared: &Shared, headers: &HeaderMap) -> Option<Who> {
    let basic = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let text = String::from_utf8(STANDARD.decode(basic).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    let config = &shared.config;
    if user == config.account_sid && password == config.auth_token {
        return Some(Who::Account);
    }
    config.api_key.as_ref().filter(|(sid, secret)| user == sid && password == secret).map(|_| Who::Key)
}

fn respond(shared: &Arc<Shared>, method: &Method, uri: &Uri, headers: &HeaderMap, fields: &Fields) -> Response {
    let Some(who) = who(shared, headers) else { return Refused(401, 20003, "Authenticate").into_response() };
    let query: Fields = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let path: Vec<&str> = uri.path().trim_start_matches("/2010-04-01/").split('/').collect();
    let json = path.last().and_then(|last| last.strip_suffix(".json"));
    let ["Accounts", account, rest @ ..] = path.as_slice() else { return NOT_FOUND.into_response() };
    if account.trim_end_matches(".json") != shared.config.account_sid {
        return NOT_FOUND.into_response();
    }
    if let (&Method::GET, ["Recordings", file]) = (method, rest)
        && let Some((sid, "mp3" | "wav")) = file.split_once('.')
    {
        return recording_file(shared, sid);
    }
    // Without it Twilio answers in XML, which nobody here reads.
    let Some(last) = json else { return NOT_FOUND.into_response() };
    let rest: Vec<&str> =
        rest.iter().enumerate().map(|(at, part)| if at + 1 == rest.len() { last } else { *part }).collect();
    let result = match (method.as_str(), rest.as_slice()) {
        ("GET", []) if who == Who::Key => Err(Refused(401, 20003, "Authenticate")),
        ("GET", []) => Ok((StatusCode::OK, account_json(shared))),
        ("GET", ["IncomingPhoneNumbers"]) => Ok(numbers(shared, uri, &query)),
        ("GET", ["IncomingPhoneNumbers", sid]) => {
            let state = shared.state();
            let number = state.numbers.iter().find(|number| number.sid == *sid);
            number.map(|number| (StatusCode::OK, number_json(shared, number))).ok_or(NOT_FOUND)
        }
        ("POST", ["IncomingPhoneNumbers", sid]) => update_number(shared, sid, fields),
        ("GET", ["Calls"]) => Ok(calls(shared, uri, &query)),
        ("POST", ["Calls"]) => create_call(shared, fields),
        ("GET", ["Calls", sid]) => {
            let state = shared.state();
            state.call(sid).map(|call| (StatusCode::OK, call_json(shared, call))).ok_or(NOT_FOUND)
        }
        ("POST", ["Calls", sid]) => update_call(shared, sid, fields),
        ("GET", ["Calls", sid, "Recordings"]) => Ok(recordings(shared, uri, &query, sid)),
        ("POST", ["Messages"]) => create_message(shared, fields),
        ("GET", ["Messages"]) => Ok(messages(shared, uri, &query)),
        ("GET", ["Messages", sid]) => {
            let state = shared.state();
            let message = state.messages.iter().rev().find(|message| message.sid == *sid);
            message.map(|message| (StatusCode::OK, message_json(shared, message))).ok_or(NOT_FOUND)
        }
        _ => Err(NOT_FOUND),
    };
    match result {
        Ok((status, body)) => (status, Json(body)).into_response(),
        Err(refused) => refused.into_response(),
    }
}

fn account_path(shared: &Shared) -> String {
    format!("/2010-04-01/Accounts/{}", shared.config.account_sid)
}

/// With the Auth Token in it, as Twilio's own answer has it.
fn account_json(shared: &Shared) -> Value {
    let config = &shared.config;
    let path = account_path(shared);
    json!({
        "sid": config.account_sid,
        "owner_account_sid": config.account_sid,
        "friendly_name": config.friendly_name,
        "status": config.status,
        "type": if config.trial { "Trial" } else { "Full" },
        "auth_token": config.auth_token,
        "date_created": "Thu, 30 Jul 2015 20:00:00 +0000",
        "date_updated": "Thu, 30 Jul 2015 20:00:00 +0000",
        "uri": format!("{path}.json"),
        "subresource_uris": { "calls": format!("{path}/Calls.json"), "messages": format!("{path}/Messages.json") },
    })
}

/// One page of a list whose items come newest first.
fn page(shared: &Shared, uri: &Uri, query: &Fields, key: &str, items: Vec<(String, Value)>) -> (StatusCode, Value) {
    let asked = field(query, "PageSize").parse().unwrap_or(50usize);
    let size = asked.clamp(1, 1_000).min(shared.config.max_page.max(1));
    let number: usize = field(query, "Page").parse().unwrap_or(0);
    let begin = match field(query, "PageToken").strip_prefix("PA") {
        Some(after) => items.iter().position(|(sid, _)| sid == after).map_or(items.len(), |at| at + 1),
        None => 0,
    };
    let end = (begin + size).min(items.len());
    let link = |page: usize, token: Option<&str>| {
        let mut text = form_urlencoded::Serializer::new(String::new());
        for (name, value) in
            query.iter().filter(|(name, _)| !matches!(name.as_str(), "Page" | "PageToken" | "PageSize"))
        {
            text.append_pair(name, value);
        }
        text.append_pair("PageSize", &size.to_string()).append_pair("Page", &page.to_string());
        if let Some(token) = token {
            text.append_pair("PageToken", &format!("PA{token}"));
        }
        format!("{}?{}", uri.path(), text.finish())
    };
    let next = (end < items.len()).then(|| link(number + 1, items.get(end - 1).map(|(sid, _)| sid.as_str())));
    let listed: Vec<&Value> = items[begin..end].iter().map(|(_, value)| value).collect();
    let mut body = json!({
        "first_page_uri": link(0, None),
        "next_page_uri": next,
        "previous_page_uri": null,
        "uri": uri.to_string(),
        "page": number,
        "page_size": size,
        "start": begin,
        "end": end.saturating_sub(1),
    });
    body[key] = json!(listed);
    (StatusCode::OK, body)
}

/// Unset settings are `""` or `null`, as it happens at Twilio.
fn number_json(shared: &Shared, number: &MockNumber) -> Value {
    let text = |name: &str| number.setting(name);
    let sid = |name: &str| Some(number.setting(name)).filter(|value| !value.is_empty());
    json!({
        "sid": number.sid,
        "account_sid": shared.config.account_sid,
        "phone_number": number.number,
        "friendly_name": number.name,
        "capabilities": { "voice": number.voice, "sms": number.sms, "mms": false, "fax": false },
        "voice_url": text("VoiceUrl"),
        "voice_method": sid("VoiceMethod"),
        "voice_fallback_url": sid("VoiceFallbackUrl"),
        "voice_fallback_method": "POST",
        "voice_caller_id_lookup": false,
        "voice_application_sid": sid("VoiceApplicationSid"),
        "voice_receive_mode": text("VoiceReceiveMode"),
        "sms_url": sid("SmsUrl"),
        "sms_method": sid("SmsMethod"),
        "sms_fallback_url": text("SmsFallbackUrl"),
        "sms_fallback_method": "POST",
        "sms_application_sid": text("SmsApplicationSid"),
        "status_callback": text("StatusCallback"),
        "status_callback_method": text("StatusCallbackMethod"),
        "trunk_sid": sid("TrunkSid"),
        "emergency_status": "Inactive",
        "api_version": "2010-04-01",
        "beta": false,
        "origin": "twilio",
        "status": "in-use",
        "type": "local",
        "uri": format!("{}/IncomingPhoneNumbers/{}.json", account_path(shared), number.sid),
    })
}

fn numbers(shared: &Shared, uri: &Uri, query: &Fields) -> (StatusCode, Value) {
    let part = field(query, "PhoneNumber").trim_start_matches('+').to_owned();
    let found = {
        let state = shared.state();
        let fits = |number: &&MockNumber| number.number.contains(&part);
        state.numbers.iter().filter(fits).map(|number| (number.sid.clone(), number_json(shared, number))).collect()
    };
    page(shared, uri, query, "incoming_phone_numbers", found)
}

fn is_callable(address: &str) -> bool {
    reqwest::Url::parse(address).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some())
}

fn update_number(shared: &Shared, sid: &str, fields: &Fields) -> Result {
    for (name, value) in fields {
        let address = name.ends_with("Url") || name == "StatusCallback";
        if address && !value.is_empty() && !is_callable(value) {
            return Err(Refused(400, 21402, "Url is not valid"));
        }
        if name.ends_with("Method") && !matches!(value.as_str(), "GET" | "POST") {
            return Err(Refused(400, 21403, "Method is not valid"));
        }
    }
    let mut state = shared.state();
    let number = state.numbers.iter_mut().find(|number| number.sid == sid).ok_or(NOT_FOUND)?;
    for (name, value) in fields.iter().filter(|(name, _)| SETTINGS.contains(&name.as_str())) {
        number.settings.insert(name.clone(), value.clone());
        match name.as_str() {
            "TrunkSid" if !value.is_empty() => drop(number.settings.remove("VoiceApplicationSid")),
            "VoiceApplicationSid" if !value.is_empty() => drop(number.settings.remove("TrunkSid")),
            _ => {}
        }
    }
    Ok((StatusCode::OK, number_json(shared, number)))
}

fn call_json(shared: &Shared, call: &MockCall) -> Value {
    let time = |at: Option<Timestamp>| at.map(rfc2822);
    let uri = format!("{}/Calls/{}", account_path(shared), call.sid);
    json!({
        "sid": call.sid,
        "account_sid": shared.config.account_sid,
        "parent_call_sid": call.parent,
        "from": call.from,
        "from_formatted": call.from,
        "to": call.to,
        "to_formatted": call.to,
        "status": call.status,
        "direction": call.direction,
        "start_time": time(call.started),
        "end_time": time(call.ended),
        "duration": call.duration.map(|seconds| seconds.to_string()),
        "answered_by": call.answered_by,
        "date_created": rfc2822(call.created),
        "date_updated": time(call.ended),
        "price": null,
        "price_unit": "USD",
        "queue_time": "0",
        "forwarded_from": null,
        "caller_name": null,
        "group_sid": null,
        "trunk_sid": null,
        "api_version": "2010-04-01",
        "uri": format!("{uri}.json"),
        "subresource_uris": { "recordings": format!("{uri}/Recordings.json"), "streams": format!("{uri}/Streams.json") },
    })
}

fn calls(shared: &Shared, uri: &Uri, query: &Fields) -> (StatusCode, Value) {
    let is = |name: &str, value: &str| matches!(field(query, name), wanted if wanted.is_empty() || wanted == value);
    // Whole days of UTC.
    let day = |at: Timestamp| at.strftime("%Y-%m-%d").to_string();
    let fits = |call: &&MockCall| {
        let on = day(call.started.unwrap_or(call.created));
        is("From", &call.from)
            && is("To", &call.to)
            && is("Status", &call.status)
            && is("ParentCallSid", call.parent.as_deref().unwrap_or_default())
            && is("StartTime", &on)
            && matches!(field(query, "StartTime<"), before if before.is_empty() || on.as_str() < before)
            && matches!(field(query, "StartTime>"), from if from.is_empty() || on.as_str() >= from)
    };
    let found = {
        let state = shared.state();
        state.calls.iter().rev().filter(fits).map(|call| (call.sid.clone(), call_json(shared, call))).collect()
    };
    page(shared, uri, query, "calls", found)
}

fn is_number(value: &str) -> bool {
    value.strip_prefix('+').is_some_and(|digits| {
        (8..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0')
    })
}

fn create_call(shared: &Arc<Shared>, fields: &Fields) -> Result {
    let get = |name: &str| Some(field(fields, name)).filter(|value| !value.is_empty());
    let (to, from) = (field(fields, "To"), field(fields, "From"));
    let config = &shared.config;
    if config.status != "active" {
        return Err(Refused(403, 20005, "Account is not active"));
    }
    if to.is_empty() {
        return Err(Refused(400, 21201, "No 'To' number is specified"));
    }
    if from.is_empty() {
        return Err(Refused(400, 21213, "No 'From' number is specified"));
    }
    if !is_number(to) {
        return Err(Refused(400, 21211, "The 'To' number is not a valid phone number"));
    }
    if !is_number(from) {
        return Err(Refused(400, 21212, "The 'From' number is not a valid phone number, shortcode or sender id"));
    }
    if shared.state().number(from).is_none() && !config.verified.iter().any(|number| number == from) {
        return Err(Refused(400, 21210, "The source phone number provided is not yet verified for your account"));
    }
    if config.trial && !config.verified.iter().any(|number| number == to) {
        return Err(Refused(
            400,
            21219,
            "The number is unverified. Trial accounts may only make calls to verified numbers",
        ));
    }
    let source = match (get("Url"), get("Twiml")) {
        (Some(url), _) if is_callable(url) => Source::Url(url.into()),
        (Some(_), _) => return Err(Refused(400, 21205, "Url is not a valid URL")),
        (None, Some(twiml)) => Source::Twiml(twiml.into()),
        (None, None) => return Err(Refused(400, 21205, "Url parameter is required")),
    };
    for name in ["StatusCallback", "AsyncAmdStatusCallback"] {
        if get(name).is_some_and(|address| !is_callable(address)) {
            return Err(Refused(400, 21609, "The StatusCallback URL is not a valid URL"));
        }
    }
    let seconds = |name: &str| get(name).and_then(|value| value.parse().ok()).map(Duration::from_secs);
    let mut events: Vec<String> =
        fields.iter().filter(|(name, _)| name == "StatusCallbackEvent").map(|(_, event)| event.clone()).collect();
    if events.is_empty() {
        events.push("completed".into());
    }
    let offer = Offer {
        source: Some(source),
        fallback: get("FallbackUrl").map(str::to_owned),
        status_callback: get("StatusCallback").map(str::to_owned),
        events,
        detect: get("MachineDetection").is_some(),
        amd_callback: get("AsyncAmdStatusCallback").filter(|_| get("AsyncAmd") == Some("true")).map(str::to_owned),
        record: get("Record") == Some("true"),
        ring_limit: seconds("Timeout"),
        talk_limit: seconds("TimeLimit"),
    };
    let mut call = MockCall::beginning(from, to, "outbound-api", "queued", Timestamp::now());
    let (sender, commands) = mpsc::channel(COMMANDS);
    call.commands = Some(sender);
    let body = call_json(shared, &call);
    shared.begin(call, offer, commands);
    Ok((StatusCode::CREATED, body))
}

fn update_call(shared: &Shared, sid: &str, fields: &Fields) -> Result {
    let call = shared.state().call(sid).cloned().ok_or(NOT_FOUND)?;
    if call.is_over() {
        // A call that is over is not found for a hang-up, and in the way for anything else.
        return Err(match field(fields, "Status") {
            "" => Refused(400, 21220, "Call is not in-progress. Cannot redirect."),
            _ => NOT_FOUND,
        });
    }
    let command = match (field(fields, "Status"), field(fields, "Twiml"), field(fields, "Url")) {
        ("completed", ..) => Command::End { canceled: false },
        ("canceled", ..) => Command::End { canceled: true },
        ("", twiml, "") if !twiml.is_empty() && twiml.chars().count() <= 4_000 => {
            Command::Replace(Source::Twiml(twiml.into()))
        }
        ("", "", url) if is_callable(url) => Command::Replace(Source::Url(url.into())),
        _ => return Err(Refused(400, 20001, "Unknown parameters")),
    };
    if matches!(command, Command::Replace(_)) && call.status != "in-progress" {
        return Err(Refused(400, 21220, "Call is not in-progress. Cannot redirect."));
    }
    if !shared.send_command(sid, command) {
        return Err(NOT_FOUND);
    }
    Ok((StatusCode::OK, call_json(shared, &call)))
}

fn recordings(shared: &Shared, uri: &Uri, query: &Fields, call: &str) -> (StatusCode, Value) {
    let one = |recording: &Recording| {
        let done = recording.ready <= Instant::now();
        let body = json!({
            "sid": recording.sid,
            "account_sid": shared.config.account_sid,
            "call_sid": recording.call,
            "conference_sid": null,
            "status": if done { "completed" } else { "processing" },
            "source": "OutboundAPI",
            "channels": 1,
            "duration": done.then(|| recording.seconds.to_string()),
            "start_time": rfc2822(recording.created),
            "date_created": rfc2822(recording.created),
            "error_code": null,
            "api_version": "2010-04-01",
            "uri": format!("{}/Recordings/{}.json", account_path(shared), recording.sid),
        });
        (recording.sid.clone(), body)
    };
    let found = {
        let state = shared.state();
        state.recordings.iter().rev().filter(|recording| recording.call == call).map(one).collect()
    };
    page(shared, uri, query, "recordings", found)
}

fn recording_file(shared: &Shared, sid: &str) -> Response {
    let ready = shared.state().recordings.iter().any(|known| known.sid == sid && known.ready <= Instant::now());
    if !ready {
        return NOT_FOUND.into_response();
    }
    stage::silence("audio/x-wav")
}

fn message_json(shared: &Shared, message: &MockMessage) -> Value {
    json!({
        "sid": message.sid,
        "account_sid": shared.config.account_sid,
        "messaging_service_sid": null,
        "from": message.from,
        "to": message.to,
        "body": message.body,
        "status": message.status,
        "direction": message.direction,
        "num_segments": "1",
        "num_media": "0",
        "error_code": message.error_code,
        "error_message": null,
        "price": null,
        "price_unit": "USD",
        "date_created": rfc2822(message.created),
        "date_sent": null,
        "date_updated": rfc2822(message.created),
        "api_version": "2010-04-01",
        "uri": format!("{}/Messages/{}.json", account_path(shared), message.sid),
        "subresource_uris": {},
    })
}

fn messages(shared: &Shared, uri: &Uri, query: &Fields) -> (StatusCode, Value) {
    let is = |name: &str, value: &str| matches!(field(query, name), wanted if wanted.is_empty() || wanted == value);
    let found = {
        let state = shared.state();
        let fits =
            |message: &&MockMessage| is("From", message.from.as_deref().unwrap_or_default()) && is("To", &message.to);
        let one = |message: &MockMessage| (message.sid.clone(), message_json(shared, message));
        state.messages.iter().rev().filter(fits).map(one).collect()
    };
    page(shared, uri, query, "messages", found)
}

fn create_message(shared: &Arc<Shared>, fields: &Fields) -> Result {
    let get = |name: &str| Some(field(fields, name)).filter(|value| !value.is_empty());
    let (to, body) = (field(fields, "To"), field(fields, "Body"));
    let config = &shared.config;
    if !is_number(to) {
        return Err(Refused(400, 21211, "Invalid 'To' Phone Number"));
    }
    if body.is_empty() {
        return Err(Refused(400, 21602, "Message body is required."));
    }
    if body.chars().count() > 1_600 {
        return Err(Refused(400, 21617, "The concatenated message body exceeds the 1600 character limit."));
    }
    match (get("From"), get("MessagingServiceSid")) {
        (Some(from), _) => {
            let state = shared.state();
            if !state.number(from).is_some_and(|number| number.sms) {
                return Err(Refused(400, 21606, "The 'From' phone number is not a valid, SMS-capable number"));
            }
        }
        (None, Some(service)) if config.messaging_service_sid.as_deref() == Some(service) => {}
        (None, Some(_)) => return Err(Refused(404, 20404, "The messaging service was not found")),
        (None, None) => return Err(Refused(400, 21603, "A 'From' phone number is required.")),
    }
    if config.trial && !config.verified.iter().any(|number| number == to) {
        return Err(Refused(400, 21608, "The number is unverified. Trial accounts cannot send messages to it"));
    }
    let error = config.undeliverable.get(to).copied();
    if let Some(code) = error.filter(|code| *code < 30_000) {
        return Err(Refused(400, code, "The message cannot be sent to this receiver"));
    }
    let message = MockMessage {
        sid: format!("SM{}", Uuid::new_v4().simple()),
        from: get("From").map(str::to_owned),
        to: to.into(),
        body: body.into(),
        direction: "outbound-api",
        status: if get("From").is_some() { "queued" } else { "accepted" }.into(),
        error_code: None,
        created: Timestamp::now(),
    };
    let reply = message_json(shared, &message);
    let sid = message.sid.clone();
    keep(&mut shared.state().messages, message);
    let delivery = deliver(Arc::clone(shared), sid, get("StatusCallback").map(str::to_owned), error);
    let stop = shared.stop.clone();
    shared.tasks.spawn(async move {
        tokio::select! {
            () = delivery => {}
            () = stop.cancelled() => {}
        }
    });
    Ok((StatusCode::CREATED, reply))
}
