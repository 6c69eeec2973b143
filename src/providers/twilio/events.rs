//! Twilio's webhooks: whether one is genuine, what it says, and the body that answers it. Pure: the door in front of it
//! knows the network, the limits and the inbox. Field names are Twilio's.
//! <https://www.twilio.com/docs/voice/twiml#request-parameters>,
//! <https://www.twilio.com/docs/messaging/guides/webhook-request>

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use secrecy::SecretString;
use serde_json::Value;

use crate::agent::variables;
use crate::providers::provider::{
    CallNews, CallOutcome, CallState, Decision, Event, IncomingMessage, Refusal, Webhook, WebhookAnswer, WebhookRequest,
};
use crate::providers::twilio::errors;
use crate::providers::twilio::signature;
use crate::providers::twilio::twiml::{self, ConnectStream, Then};
use crate::telephony::{Direction, PhoneNumber};

/// An HMAC-SHA1 in base64.
const SIGNATURE_CHARS: usize = 28;
/// More fields than any webhook has; a flood of names is not worth its sorting.
const MAX_FIELDS: usize = 300;
/// A name, address or number: longer ones are none.
const MAX_PARTY_CHARS: usize = 256;
/// Twilio's own limit is 10.
const MAX_MEDIA: usize = 20;
/// Twilio sends nothing of a longer message.
const MAX_REPLY_CHARS: usize = 1_600;
/// Said in Twilio's own voice: no agent and so no language is known.
const NOT_IN_SERVICE: &str = "The number you have called is not in service. Goodbye.";

/// What a part of the webhook's path is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Route {
    /// What to do with a call.
    Voice,
    /// The stream is over: what to do with the rest of the call.
    After,
    /// A person to whom a call is handed has answered: what to tell them first.
    Person,
    /// The person is gone again, or did not come: what to do with the caller.
    Transfer,
    /// How a call or a message of ours goes on; the result of machine detection.
    Status,
    /// A message for us.
    Sms,
    /// How a media stream goes on.
    Stream,
    /// Whether a person or a machine has answered.
    Amd,
}

impl Route {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "voice" => Route::Voice,
            "after" => Route::After,
            "person" => Route::Person,
            "transfer" => Route::Transfer,
            "status" => Route::Status,
            "sms" => Route::Sms,
            "stream" => Route::Stream,
            "amd" => Route::Amd,
            _ => return None,
        })
    }
}

/// Believes a request that the account has signed for exactly this URL; `tokens` are its Auth Tokens.
pub(super) fn read(
    account_sid: &str,
    tokens: &[SecretString],
    request: &WebhookRequest<'_>,
) -> Result<Webhook, Refusal> {
    let signature = request.signature.ok_or(Refusal::Unsigned)?;
    if signature.len() != SIGNATURE_CHARS {
        return Err(Refusal::Forged);
    }
    // All our addresses are given to Twilio with the method POST.
    let route = Route::named(request.route).filter(|_| request.method == "POST").ok_or(Refusal::Malformed)?;
    let fields = match Body::of(request.content_type).ok_or(Refusal::WrongType)? {
        Body::Form => {
            let fields: Vec<(String, String)> =
                form_urlencoded::parse(request.body).into_owned().take(MAX_FIELDS + 1).collect();
            if fields.len() > MAX_FIELDS {
                return Err(Refusal::Malformed);
            }
            signature::verify_form(tokens, request.url, &fields, signature).map_err(|_| Refusal::Forged)?;
            Fields(fields)
        }
        Body::Json => {
            signature::verify_body(tokens, request.url, request.body, signature).map_err(|_| Refusal::Forged)?;
            Fields::of_json(request.body).ok_or(Refusal::Malformed)?
        }
    };
    if fields.once("AccountSid")? != account_sid {
        return Err(Refusal::WrongAccount);
    }
    match route {
        Route::Voice => voice(&fields),
        Route::After => after(&fields),
        Route::Person => Ok(Webhook { event: Event::PersonAnswers(fields.call()?), once: None }),
        Route::Transfer => transfer(&fields),
        Route::Status | Route::Amd if fields.has("MessageSid") => message_status(&fields),
        Route::Status | Route::Amd => call_status(&fields),
        Route::Sms if fields.has("MessageStatus") => message_status(&fields),
        Route::Sms => message(&fields),
        Route::Stream => stream(&fields),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Body {
    Form,
    Json,
}

impl Body {
    /// A body without a type is a form, as an empty one has none.
    fn of(content_type: Option<&str>) -> Option<Self> {
        let kind = content_type.map_or("", |value| value.split(';').next().unwrap_or_default().trim());
        match kind.to_ascii_lowercase().as_str() {
            "" | "application/x-www-form-urlencoded" => Some(Body::Form),
            "application/json" => Some(Body::Json),
            _ => None,
        }
    }
}

/// The decoded fields of a request whose signature is good.
///
/// A signature covers names and values run together, so that a captured request can be sent again with its fields cut
/// elsewhere: `CallStatus=ringing`, `Called=+1…` become one field. And a field that comes twice with one value has the
/// signature of one that comes once. So every field that is used must come once and look like what it is.
struct Fields(Vec<(String, String)>);

impl Fields {
    /// The members of an object; numbers and truth values as they are written, nested values left out.
    fn of_json(body: &[u8]) -> Option<Self> {
        let Ok(Value::Object(members)) = serde_json::from_slice(body) else { return None };
        let fields = members.into_iter().filter_map(|(name, value)| match value {
            Value::String(text) => Some((name, text)),
            Value::Number(number) => Some((name, number.to_string())),
            Value::Bool(truth) => Some((name, truth.to_string())),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        });
        Some(Self(fields.collect()))
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(field, _)| field == name)
    }

    /// Empty where there is no such field.
    fn once(&self, name: &str) -> Result<&str, Refusal> {
        let mut found = self.0.iter().filter(|(field, _)| field == name);
        let value = found.next().map_or("", |(_, value)| value.as_str());
        if found.next().is_some() { Err(Refusal::Malformed) } else { Ok(value) }
    }

    fn checked(&self, name: &str, check: impl Fn(&str) -> bool) -> Result<&str, Refusal> {
        let value = self.once(name)?;
        if check(value) { Ok(value) } else { Err(Refusal::Malformed) }
    }

    /// An id that must be there: letters and digits, never longer than Twilio's 34, so that nothing is glued to it.
    fn sid(&self, name: &str, prefixes: &[&str]) -> Result<String, Refusal> {
        let is_sid = |value: &str| {
            value.len() <= 34
                && prefixes.iter().any(|prefix| value.len() > prefix.len() && value.starts_with(prefix))
                && value.bytes().all(|b| b.is_ascii_alphanumeric())
        };
        self.checked(name, is_sid).map(str::to_owned)
    }

    /// A word of a fixed vocabulary: small letters, `-` and `_`.
    fn word(&self, name: &str) -> Result<&str, Refusal> {
        self.checked(name, |value| {
            value.len() <= 40 && value.bytes().all(|b| b.is_ascii_lowercase() || matches!(b, b'-' | b'_'))
        })
    }

    fn digits(&self, name: &str) -> Result<Option<u64>, Refusal> {
        self.checked(name, |value| value.len() <= 18 && value.bytes().all(|b| b.is_ascii_digit()))
            .map(|digits| digits.parse().ok())
    }

    /// A number, `client:name`, `sip:…`, a word for a hidden caller, or nothing.
    fn party(&self, name: &str) -> Result<PhoneNumber, Refusal> {
        let value = self.checked(name, |value| match value.strip_prefix('+') {
            Some(digits) => (1..=20).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()),
            None => value.len() <= MAX_PARTY_CHARS && !value.chars().any(char::is_control),
        })?;
        Ok(PhoneNumber::new(value))
    }

    /// RFC 2822 on call events, ISO 8601 on stream events.
    fn time(&self, name: &str) -> Result<Option<Timestamp>, Refusal> {
        let text = self.once(name)?;
        Ok(rfc2822::DateTimeParser::new().parse_timestamp(text).ok().or_else(|| text.parse().ok()))
    }

    fn call(&self) -> Result<CallNews, Refusal> {
        let (from, to) = (self.party("From")?, self.party("To")?);
        let direction = match self.word("Direction")? {
            "" => None,
            // Also `outbound-api`, `outbound-dial`.
            word if word.starts_with("outbound") => Some(Direction::Outbound),
            _ => Some(Direction::Inbound),
        };
        // On a call that we asked for, our own number is the one that it comes from.
        let line = if direction == Some(Direction::Outbound) { &from } else { &to };
        let answered_by = self.word("AnsweredBy")?;
        Ok(CallNews {
            provider_call: Some(self.sid("CallSid", &["CA"])?),
            direction,
            line: Some(line.as_str().to_owned()).filter(|line| !line.is_empty()),
            from,
            to,
            answered_by: Some(answered_by.to_owned()).filter(|word| !word.is_empty()),
            at: self.time("Timestamp")?,
            fields: variables::Fields::default(),
        })
    }

    /// What a workflow may know of a call. A field that comes twice is told by nobody knows whom, and left out.
    fn told(&self) -> variables::Fields {
        let of_workflows = |name: &str| TOLD.contains(&name) || name.starts_with(SIP_HEADER);
        let names = self.0.iter().map(|(name, _)| name.as_str()).filter(|name| of_workflows(name));
        names.filter_map(|name| Some((name, self.once(name).ok()?))).collect()
    }
}

/// Left out, since they are no news of the call or are for the server alone: `AccountSid`, `CallToken`,
/// `StirPassportToken`, `ApiVersion`, `CallStatus`, the second names of what is here (`Caller…`, `Called…`).
const TOLD: [&str; 17] = [
    "CallSid",
    "From",
    "To",
    "Direction",
    "ForwardedFrom",
    "CallerName",
    "AnsweredBy",
    "FromCity",
    "FromState",
    "FromZip",
    "FromCountry",
    "ToCity",
    "ToState",
    "ToZip",
    "ToCountry",
    "StirVerstat",
    "SipDomain",
];
/// Header fields of a call that reached Twilio by SIP.
const SIP_HEADER: &str = "SipHeader_X-";

fn sid_of(news: &CallNews) -> &str {
    news.provider_call.as_deref().unwrap_or_default()
}

fn voice(fields: &Fields) -> Result<Webhook, Refusal> {
    let news = CallNews { fields: fields.told(), ..fields.call()? };
    let once = Some(format!("voice:{}", sid_of(&news)));
    let event = match fields.word("CallStatus")? {
        status if ended(status, None).is_some() => Event::Ignored { what: format!("voice request of a {status} call") },
        _ => Event::CallOffered(news),
    };
    Ok(Webhook { event, once })
}

/// No once-key: the answer is all that comes of it, every delivery needs one, and a call can come by here again.
fn after(fields: &Fields) -> Result<Webhook, Refusal> {
    let news = fields.call()?;
    let event = match fields.word("CallStatus")? {
        status if ended(status, None).is_some() => Event::Ignored { what: format!("rest of a {status} call") },
        _ => Event::CallContinues(news),
    };
    Ok(Webhook { event, once: None })
}

/// Asked on the caller's call, with what became of the person's.
fn transfer(fields: &Fields) -> Result<Webhook, Refusal> {
    let news = fields.call()?;
    let outcome = ended(fields.word("DialCallStatus")?, None);
    let event = match (fields.word("CallStatus")?, outcome) {
        (status, _) if ended(status, None).is_some() => Event::Ignored { what: format!("rest of a {status} call") },
        // `answered` of a `<Dial>` that connected somebody is no last status: the person hung up.
        (_, outcome) => Event::TransferOver { news, outcome: outcome.unwrap_or(CallOutcome::Answered) },
    };
    Ok(Webhook { event, once: None })
}

fn call_status(fields: &Fields) -> Result<Webhook, Refusal> {
    let news = fields.call()?;
    let status = fields.word("CallStatus")?.to_owned();
    let sequence = fields.digits("SequenceNumber")?;
    let talk_s = fields.digits("CallDuration")?.and_then(|seconds| u32::try_from(seconds).ok());
    let answered_by = news.answered_by.clone();
    if status.is_empty() {
        // The result of asynchronous machine detection has no status of the call.
        let Some(who) = answered_by else { return Err(Refusal::Malformed) };
        let once = Some(format!("amd:{}:{who}", sid_of(&news)));
        return Ok(Webhook { event: Event::CallProgressed { news, state: CallState::Answered { by: None } }, once });
    }
    let sequence = sequence.map_or_else(String::new, |number| number.to_string());
    let once = Some(format!("status:{}:{status}:{sequence}", sid_of(&news)));
    let state = match status.as_str() {
        "ringing" => Some(CallState::Ringing),
        "in-progress" | "answered" => Some(CallState::Answered { by: None }),
        other => ended(other, answered_by.as_deref()).map(|outcome| {
            let talk_s = talk_s.filter(|_| matches!(outcome, CallOutcome::Answered | CallOutcome::Voicemail));
            CallState::Ended { outcome, status: status.clone(), talk_s }
        }),
    };
    let event = match state {
        Some(state) => Event::CallProgressed { news, state },
        None => Event::Ignored { what: format!("call {status}") },
    };
    Ok(Webhook { event, once })
}

/// What became of a call with this status; `None` while it goes on.
pub(super) fn ended(status: &str, answered_by: Option<&str>) -> Option<CallOutcome> {
    Some(match status {
        "completed" if answered_by.is_some_and(|who| who.starts_with("machine")) => CallOutcome::Voicemail,
        "completed" => CallOutcome::Answered,
        "busy" => CallOutcome::Busy,
        "no-answer" => CallOutcome::NoAnswer,
        "failed" => CallOutcome::Failed,
        "canceled" => CallOutcome::Canceled,
        _ => return None,
    })
}

fn message(fields: &Fields) -> Result<Webhook, Refusal> {
    let provider_message = fields.sid("MessageSid", &["SM", "MM"])?;
    let media = usize::try_from(fields.digits("NumMedia")?.unwrap_or(0)).unwrap_or(usize::MAX);
    if media > MAX_MEDIA {
        return Err(Refusal::Malformed);
    }
    let media = (0..media)
        .map(|index| fields.once(&format!("MediaUrl{index}")).map(str::to_owned))
        .filter(|url| url.as_ref().map_or(true, |url| !url.is_empty()))
        .collect::<Result<Vec<_>, _>>()?;
    let once = Some(format!("sms:{provider_message}"));
    let message = IncomingMessage {
        provider_message,
        from: fields.party("From")?,
        to: fields.party("To")?,
        text: fields.once("Body")?.to_owned(),
        media,
    };
    Ok(Webhook { event: Event::MessageReceived(message), once })
}

fn message_status(fields: &Fields) -> Result<Webhook, Refusal> {
    let provider_message = fields.sid("MessageSid", &["SM", "MM"])?;
    let status = fields.word("MessageStatus")?.to_owned();
    if status.is_empty() {
        return Err(Refusal::Malformed);
    }
    let error = fields.digits("ErrorCode")?.map(|code| errors::explained(&code.to_string()));
    let once = Some(format!("message:{provider_message}:{status}"));
    Ok(Webhook { event: Event::MessageStatus { provider_message, status, error }, once })
}

fn stream(fields: &Fields) -> Result<Webhook, Refusal> {
    let provider_call = fields.sid("CallSid", &["CA"])?;
    let stream = fields.sid("StreamSid", &["MZ"])?;
    let event = fields.word("StreamEvent")?.to_owned();
    if event.is_empty() {
        return Err(Refusal::Malformed);
    }
    let failure: String = fields.once("StreamError")?.chars().filter(|c| !c.is_control()).take(300).collect();
    let once = Some(format!("stream:{stream}:{event}"));
    let failure = Some(failure).filter(|failure| !failure.is_empty());
    Ok(Webhook { event: Event::StreamStatus { provider_call, event, failure }, once })
}

/// The body that answers `event`. An event that asks nothing is answered with an empty one.
pub(super) fn answer(event: &Event, decision: &Decision<'_>) -> WebhookAnswer {
    let body = match event {
        Event::CallOffered(_) => call_twiml(decision, true),
        Event::CallContinues(_) | Event::TransferOver { .. } => call_twiml(decision, false),
        // Nothing said: the two are connected.
        Event::PersonAnswers(_) => match decision {
            Decision::Say { text, language } if !text.is_empty() => twiml::say(text, spoken(language)),
            _ => twiml::nothing(),
        },
        Event::MessageReceived(_) => match decision {
            Decision::Say { text, .. } if !text.is_empty() => {
                twiml::message(text.char_indices().nth(MAX_REPLY_CHARS).map_or(*text, |(end, _)| &text[..end]))
            }
            _ => twiml::nothing(),
        },
        Event::CallProgressed { .. }
        | Event::CallCompleted(_)
        | Event::MessageStatus { .. }
        | Event::StreamStatus { .. }
        | Event::Ignored { .. } => String::new(),
    };
    WebhookAnswer { content_type: twiml::CONTENT_TYPE, body }
}

/// `<Reject>` works only on a call that has not been answered yet.
fn call_twiml(decision: &Decision<'_>, unanswered: bool) -> String {
    match *decision {
        Decision::Talk { stream_url, status_url, after_url, call_id } => {
            ConnectStream::new(stream_url, Then::HangUp)
                .action(after_url)
                .status_callback(status_url)
                .parameter("call_id", call_id)
                // Our ids are UUIDs; a caller with something longer gets no stream that could not be matched.
                .map_or_else(|_| twiml::hangup(), |twiml| twiml.to_xml())
        }
        Decision::Route { to } => twiml::dial(to, "", None, None),
        Decision::Transfer { to, from, note_url, over_url } => twiml::dial(to, from, note_url, over_url),
        Decision::NotInService => twiml::say_and_hangup(NOT_IN_SERVICE, "en-US"),
        Decision::Busy if unanswered => twiml::reject_busy(),
        Decision::Say { text, language } if !text.is_empty() => twiml::say_and_hangup(text, spoken(language)),
        Decision::Busy | Decision::Say { .. } | Decision::HangUp | Decision::Noted => twiml::hangup(),
    }
}

/// A language as `<Say>` takes it: agents have `en`, Twilio wants `en-US`.
fn spoken(language: &str) -> &str {
    const REGIONS: [(&str, &str); 24] = [
        ("ar", "arb"),
        ("bg", "bg-BG"),
        ("cs", "cs-CZ"),
        ("da", "da-DK"),
        ("de", "de-DE"),
        ("el", "el-GR"),
        ("en", "en-US"),
        ("es", "es-ES"),
        ("fi", "fi-FI"),
        ("fr", "fr-FR"),
        ("hu", "hu-HU"),
        ("it", "it-IT"),
        ("lt", "lt-LT"),
        ("lv", "lv-LV"),
        ("nb", "nb-NO"),
        ("nl", "nl-NL"),
        ("pl", "pl-PL"),
        ("pt", "pt-PT"),
        ("ro", "ro-RO"),
        ("ru", "ru-RU"),
        ("sk", "sk-SK"),
        ("sv", "sv-SE"),
        ("tr", "tr-TR"),
        ("uk", "uk-UA"),
    ];
    match REGIONS.iter().find(|(short, _)| *short == language) {
        Some((_, long)) => long,
        None if language.is_empty() => "en-US",
        None => language,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::twilio::signature::{sign, verify_websocket};
    use sha2::{Digest as _, Sha256};

    const ACCOUNT: &str = "AC00000000000000000000000000000001";
    const CALL: &str = "CA00000000000000000000000000000001";
    const BASE: &str = "https://voice.example.com/webhooks/twilio/0190b5a4-0000-7000-8000-000000000001";
    const OTHER: &str = "https://voice.example.com/webhooks/twilio/0190b5a4-0000-7000-8000-000000000002";
    const FORM: &str = "application/x-www-form-urlencoded; charset=UTF-8";

    fn token() -> SecretString {
        "12345".into()
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    fn encoded(pairs: &[(String, String)]) -> Vec<u8> {
        form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish().into_bytes()
    }

    /// A request that can be spoilt.
    #[derive(Clone)]
    struct Req {
        route: &'static str,
        method: &'static str,
        url: String,
        content_type: Option<&'static str>,
        signature: Option<String>,
        body: Vec<u8>,
    }

    impl Req {
        /// As Twilio would send it.
        fn form(route: &'static str, pairs: &[(&str, &str)]) -> Self {
            let (url, fields) = (format!("{BASE}/{route}"), owned(pairs));
            Self {
                route,
                method: "POST",
                content_type: Some(FORM),
                signature: Some(sign(&token(), &url, &fields)),
                body: encoded(&fields),
                url,
            }
        }

        fn json(route: &'static str, body: &str) -> Self {
            let hash: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
            let url = format!("{BASE}/{route}?bodySHA256={hash}");
            Self {
                route,
                method: "POST",
                content_type: Some("application/json"),
                signature: Some(sign(&token(), &url, &[])),
                body: body.into(),
                url,
            }
        }

        fn read(&self) -> Result<Webhook, Refusal> {
            read(
                ACCOUNT,
                &[token()],
                &WebhookRequest {
                    route: self.route,
                    method: self.method,
                    url: &self.url,
                    query: self.url.split_once('?').map_or("", |(_, query)| query),
                    content_type: self.content_type,
                    signature: self.signature.as_deref(),
                    client: None,
                    any_address: false,
                    body: &self.body,
                },
            )
        }
    }

    fn offered() -> Vec<(&'static str, &'static str)> {
        vec![
            ("AccountSid", ACCOUNT),
            ("ApiVersion", "2010-04-01"),
            ("CallSid", CALL),
            ("CallStatus", "ringing"),
            ("Called", "+380441234567"),
            ("Caller", "+380501234567"),
            ("Direction", "inbound"),
            ("From", "+380501234567"),
            ("FromCountry", "UA"),
            ("SomethingNew", "5"),
            ("To", "+380441234567"),
        ]
    }

    fn with(
        mut pairs: Vec<(&'static str, &'static str)>,
        more: &[(&'static str, &'static str)],
    ) -> Vec<(&'static str, &'static str)> {
        pairs.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
        pairs.extend_from_slice(more);
        pairs
    }

    fn event(route: &'static str, pairs: &[(&str, &str)]) -> (Event, Option<String>) {
        let webhook = Req::form(route, pairs).read().unwrap();
        (webhook.event, webhook.once)
    }

    #[test]
    fn a_call_that_comes_in_is_offered_on_the_line_that_was_called() {
        let (offer, once) = event("voice", &offered());
        let Event::CallOffered(news) = offer else { panic!("{offer:?}") };
        assert_eq!(news.provider_call.as_deref(), Some(CALL));
        assert_eq!((news.from.as_str(), news.line.as_deref()), ("+380501234567", Some("+380441234567")));
        assert_eq!((news.direction, once), (Some(Direction::Inbound), Some(format!("voice:{CALL}"))));
    }

    #[test]
    fn an_offered_call_tells_what_twilio_knows_of_it_and_no_secret() {
        let more = [
            ("FromCity", "KYIV"),
            ("ToCity", ""),
            ("CallerName", "BOB\r\nLOPEZ"),
            ("StirVerstat", "TN-Validation-Passed-A"),
            ("StirPassportToken", "very-secret"),
            ("CallToken", "very-secret"),
            ("SipHeader_X-Order-Id", "A-17"),
            ("SipHeader_X-Api-Key", "very-secret"),
            ("SipHeader_X-Twice", "one"),
            ("SipHeader_X-Twice", "two"),
        ];
        let (Event::CallOffered(news), _) = event("voice", &with(offered(), &more)) else { panic!("not offered") };
        let told = serde_json::json!({
            "CallSid": CALL, "From": "+380501234567", "To": "+380441234567", "Direction": "inbound", "FromCountry": "UA",
            "FromCity": "KYIV", "CallerName": "BOB  LOPEZ", "StirVerstat": "TN-Validation-Passed-A",
            "SipHeader_X-Order-Id": "A-17",
        });
        assert_eq!(news.fields.as_json(), told);
        let (Event::CallProgressed { news, .. }, _) = event("status", &with(offered(), &more)) else { panic!() };
        assert!(news.fields.is_empty(), "only what offers a call is asked");
    }

    #[test]
    fn a_call_that_we_made_belongs_to_the_line_that_called() {
        let made =
            with(offered(), &[("Direction", "outbound-api"), ("CallStatus", "in-progress"), ("AnsweredBy", "human")]);
        let (Event::CallOffered(news), _) = event("voice", &made) else { panic!("not offered") };
        assert_eq!((news.direction, news.line.as_deref()), (Some(Direction::Outbound), Some("+380501234567")));
        assert_eq!(news.answered_by.as_deref(), Some("human"));
    }

    #[test]
    fn hidden_callers_and_names_are_callers_too() {
        for from in ["", "anonymous", "Restricted", "+266696687", "client:anna", "sip:bob@example.com;transport=tls"] {
            let (Event::CallOffered(news), _) = event("voice", &with(offered(), &[("From", from)])) else {
                panic!("{from}")
            };
            assert_eq!(news.from.as_str(), from);
        }
    }

    #[test]
    fn the_rest_of_a_call_is_asked_for_as_often_as_it_comes() {
        let (event, once) = event("after", &with(offered(), &[("CallStatus", "in-progress")]));
        assert!(matches!(event, Event::CallContinues(_)));
        assert_eq!(once, None);
    }

    #[test]
    fn a_person_who_answers_and_one_who_does_not_are_asked_about() {
        let child = with(offered(), &[("CallStatus", "in-progress"), ("Direction", "outbound-dial")]);
        assert!(matches!(event("person", &child), (Event::PersonAnswers(_), None)));
        let over = |call: &'static str, dialled: &'static str| {
            event("transfer", &with(offered(), &[("CallStatus", call), ("DialCallStatus", dialled)])).0
        };
        for (dialled, expected) in [
            ("busy", CallOutcome::Busy),
            ("no-answer", CallOutcome::NoAnswer),
            ("failed", CallOutcome::Failed),
            ("completed", CallOutcome::Answered),
            ("answered", CallOutcome::Answered),
        ] {
            let event = over("in-progress", dialled);
            assert!(matches!(event, Event::TransferOver { outcome, .. } if outcome == expected), "{event:?}");
        }
        assert!(matches!(over("completed", "canceled"), Event::Ignored { .. }), "the caller is gone");
        let asked = Event::PersonAnswers(CallNews::default());
        let said = answer(&asked, &Decision::Say { text: "Вам дзвінок.", language: "uk" }).body;
        assert!(said.contains("<Say language=\"uk-UA\">") && !said.contains("Hangup"), "{said}");
        assert!(answer(&asked, &Decision::Noted).body.ends_with("<Response></Response>"));
        let over = Event::TransferOver { news: CallNews::default(), outcome: CallOutcome::Busy };
        assert!(answer(&over, &Decision::Say { text: "Sorry.", language: "en" }).body.contains("<Hangup/>"));
    }

    #[test]
    fn every_status_says_how_the_call_goes_on_and_acts_once() {
        let status = |status: &'static str, more: &[(&'static str, &'static str)]| {
            let pairs = with(
                with(offered(), &[("CallStatus", status), ("SequenceNumber", "2")]),
                &[("Timestamp", "Fri, 18 Oct 2019 17:00:00 +0000")],
            );
            event("status", &with(pairs, more))
        };
        let (event, once) = status("ringing", &[]);
        let Event::CallProgressed { news, state: CallState::Ringing } = event else { panic!("{event:?}") };
        assert_eq!(news.at.unwrap().to_string(), "2019-10-18T17:00:00Z");
        assert_eq!(once.unwrap(), format!("status:{CALL}:ringing:2"));
        let ended = |pair: (Event, Option<String>)| match pair.0 {
            Event::CallProgressed { state: CallState::Ended { outcome, talk_s, .. }, .. } => (outcome, talk_s),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            ended(status("completed", &[("CallDuration", "61"), ("Duration", "2")])),
            (CallOutcome::Answered, Some(61))
        );
        assert_eq!(
            ended(status("completed", &[("CallDuration", "9"), ("AnsweredBy", "machine_end_beep")])),
            (CallOutcome::Voicemail, Some(9))
        );
        assert_eq!(ended(status("busy", &[("CallDuration", "0")])), (CallOutcome::Busy, None));
        assert_eq!(ended(status("no-answer", &[])), (CallOutcome::NoAnswer, None));
        assert_eq!(ended(status("failed", &[])), (CallOutcome::Failed, None));
        assert_eq!(ended(status("canceled", &[])), (CallOutcome::Canceled, None));
        assert!(matches!(status("initiated", &[]).0, Event::Ignored { .. }));
        let detected = [("AccountSid", ACCOUNT), ("CallSid", CALL), ("AnsweredBy", "machine_start")];
        for route in ["status", "amd"] {
            let (amd, once) = super::tests::event(route, &detected);
            let Event::CallProgressed { news, state: CallState::Answered { by: None } } = amd else {
                panic!("{amd:?}")
            };
            assert_eq!(news.answered_by.as_deref(), Some("machine_start"));
            assert_eq!(once.unwrap(), format!("amd:{CALL}:machine_start"));
        }
    }

    #[test]
    fn messages_and_what_becomes_of_them_are_read() {
        let sid = "SM00000000000000000000000000000001";
        let pairs = [
            ("AccountSid", ACCOUNT),
            ("Body", "Добрий день, 100% + так & ні"),
            ("From", "+380501234567"),
            ("MediaUrl0", "https://api.twilio.com/m0"),
            ("MessageSid", sid),
            ("NumMedia", "1"),
            ("SmsStatus", "received"),
            ("To", "+380441234567"),
        ];
        let (Event::MessageReceived(message), once) = event("sms", &pairs) else { panic!("no message") };
        assert_eq!((message.text.as_str(), message.media.len()), ("Добрий день, 100% + так & ні", 1));
        assert_eq!(once.unwrap(), format!("sms:{sid}"));
        let status =
            [("AccountSid", ACCOUNT), ("ErrorCode", "30003"), ("MessageSid", sid), ("MessageStatus", "undelivered")];
        for route in ["status", "sms"] {
            let (Event::MessageStatus { status, error, .. }, once) = event(route, &status) else { panic!("no status") };
            assert_eq!(
                (status.as_str(), error.as_deref()),
                ("undelivered", Some("30003: the phone is unreachable or switched off"))
            );
            assert_eq!(once.unwrap(), format!("message:{sid}:undelivered"));
        }
    }

    #[test]
    fn a_failed_stream_says_why() {
        let pairs = [
            ("AccountSid", ACCOUNT),
            ("CallSid", CALL),
            ("StreamSid", "MZ00000000000000000000000000000001"),
            ("StreamEvent", "stream-error"),
            ("StreamError", "31920 - Handshake\n Error"),
        ];
        let (Event::StreamStatus { provider_call, event, failure }, once) = event("stream", &pairs) else {
            panic!("no stream")
        };
        assert_eq!((provider_call.as_str(), event.as_str()), (CALL, "stream-error"));
        assert_eq!(failure.as_deref(), Some("31920 - Handshake Error"));
        assert_eq!(once.unwrap(), "stream:MZ00000000000000000000000000000001:stream-error");
    }

    #[test]
    fn a_json_body_is_read_like_a_form() {
        let body = format!(
            r#"{{"AccountSid":"{ACCOUNT}","CallSid":"{CALL}","CallStatus":"busy","SequenceNumber":3,"x":[1]}}"#
        );
        let webhook = Req::json("status", &body).read().unwrap();
        assert!(matches!(webhook.event, Event::CallProgressed { state: CallState::Ended { .. }, .. }));
        assert_eq!(webhook.once.unwrap(), format!("status:{CALL}:busy:3"));
    }

    #[test]
    fn both_tokens_are_good_while_the_token_is_changed() {
        let request = Req::form("voice", &offered());
        let mut signed_anew = request.clone();
        let new: SecretString = "67890".into();
        signed_anew.signature = Some(sign(&new, &request.url, &owned(&offered())));
        assert_eq!(signed_anew.read(), Err(Refusal::Forged));
        for request in [&request, &signed_anew] {
            let read = read(
                ACCOUNT,
                &[token(), new.clone()],
                &WebhookRequest {
                    route: "voice",
                    method: "POST",
                    url: &request.url,
                    query: "",
                    content_type: None,
                    signature: request.signature.as_deref(),
                    client: None,
                    any_address: false,
                    body: &request.body,
                },
            );
            assert!(read.is_ok());
        }
    }

    #[test]
    fn the_port_may_be_signed_or_not() {
        for url in [format!("{BASE}/voice"), format!("{BASE}/voice").replace(".com/", ".com:443/")] {
            let mut request = Req::form("voice", &offered());
            request.signature = Some(sign(&token(), &url, &owned(&offered())));
            assert!(request.read().is_ok(), "{url}");
        }
    }

    /// Every way that we know of to bring in a request that Twilio did not make, each from one that it did.
    #[test]
    fn forgeries_are_refused() {
        let genuine = Req::form("voice", &offered());
        assert!(genuine.read().is_ok());
        let fields = owned(&offered());
        let json_body = format!(r#"{{"AccountSid":"{ACCOUNT}","CallSid":"{CALL}","CallStatus":"busy"}}"#);
        let json = Req::json("status", &json_body);
        assert!(json.read().is_ok());

        let mut forgeries: Vec<(&str, Req, Refusal)> = Vec::new();
        let mut add = |what, expected, spoil: &dyn Fn(&mut Req)| {
            let mut request = genuine.clone();
            spoil(&mut request);
            forgeries.push((what, request, expected));
        };
        let good = genuine.signature.clone().unwrap();
        let text = String::from_utf8(genuine.body.clone()).unwrap();
        let signed =
            |token: &str, url: &str, fields: &[(String, String)]| Some(sign(&token.to_owned().into(), url, fields));
        let url = genuine.url.clone();
        use Refusal::{Forged, Malformed, Unsigned, WrongAccount, WrongType};

        add("no signature", Unsigned, &|r| r.signature = None);
        add("an empty signature", Forged, &|r| r.signature = Some(String::new()));
        add("no base64", Forged, &|r| r.signature = Some("?".repeat(28)));
        add("zeros", Forged, &|r| r.signature = Some(format!("{}=", "A".repeat(27))));
        add("small letters", Forged, &|r| r.signature = Some(good.to_lowercase()));
        add("a blank behind it", Forged, &|r| r.signature = Some(format!("{good} ")));
        add("two signatures", Forged, &|r| r.signature = Some(format!("{good},{good}")));
        add("a signature cut short", Forged, &|r| r.signature = Some(good[..27].into()));
        add("another token", Forged, &|r| r.signature = signed("12346", &url, &fields));
        add("an empty token", Forged, &|r| r.signature = signed("", &url, &fields));
        add("the account's id as the token", Forged, &|r| r.signature = signed(ACCOUNT, &url, &fields));
        add("the URL alone", Forged, &|r| r.signature = signed("12345", &url, &[]));
        add("another caller", Forged, &|r| r.body = text.replace("%2B380501234567", "%2B380509999999").into());
        add("another call", Forged, &|r| r.body = text.replace("00001&CallStatus", "00002&CallStatus").into());
        add("another status", Forged, &|r| r.body = text.replace("ringing", "in-progress").into());
        add("a field more", Forged, &|r| r.body.extend_from_slice(b"&Digits=1"));
        add("an empty field more", Forged, &|r| r.body.extend_from_slice(b"&Digits="));
        add("a field less", Forged, &|r| r.body = text.replace("&FromCountry=UA", "").into());
        add("a field twice with another value", Forged, &|r| r.body.extend_from_slice(b"&To=%2B380440000000"));
        add("a field twice with the same value", Malformed, &|r| r.body.extend_from_slice(b"&To=%2B380441234567"));
        add("the call twice", Malformed, &|r| r.body.extend_from_slice(format!("&CallSid={CALL}").as_bytes()));
        add("a name in small letters", Forged, &|r| r.body = text.replace("CallSid", "callSid").into());
        add("a name with a blank", Forged, &|r| r.body = text.replace("To=", "To+=").into());
        add("a value with a blank", Forged, &|r| r.body = text.replace("ringing", "ringing+").into());
        add("two fields run together", Malformed, &|r| {
            r.body = text.replace("ringing&Called=", "ringingCalled").into()
        });
        add("the call and what follows run together", Malformed, &|r| {
            r.body = text.replace(&format!("{CALL}&CallStatus="), &format!("{CALL}CallStatus")).into();
        });
        add("the account and what follows run together", WrongAccount, &|r| {
            r.body = text.replace(&format!("{ACCOUNT}&ApiVersion="), &format!("{ACCOUNT}ApiVersion")).into();
        });
        add("the caller and what follows run together", Malformed, &|r| {
            r.body = text.replace("67&FromCountry=", "67FromCountry").into();
        });
        add("encoded twice", Forged, &|r| r.body = text.replace("%2B", "%252B").into());
        add("no body", Forged, &|r| r.body.clear());
        add("another integration", Forged, &|r| r.url = format!("{OTHER}/voice"));
        add("another route", Forged, &|r| {
            r.url = format!("{BASE}/status");
            r.route = "status";
        });
        add("another host", Forged, &|r| r.url = url.replace("voice.example.com", "voice.example.org"));
        add("a host below ours", Forged, &|r| r.url = url.replace("voice.", "x.voice."));
        add("http instead of https", Forged, &|r| {
            r.signature = signed("12345", &url.replace("https:", "http:"), &fields)
        });
        for port in ["80", "8443", "0443", "444"] {
            let ported = url.replace(".com/", &format!(".com:{port}/"));
            add("a port that is not ours", Forged, &|r| r.signature = signed("12345", &ported, &fields));
        }
        add("a user in the URL", Forged, &|r| r.signature = signed("12345", &url.replace("://", "://u:p@"), &fields));
        add("a query more", Forged, &|r| r.url.push_str("?x=1"));
        add("a slash more", Forged, &|r| r.url.push('/'));
        add("a path in capitals", Forged, &|r| r.url = url.replace("/webhooks/", "/WEBHOOKS/"));
        add("the handshake's scheme", Forged, &|r| {
            r.signature = signed("12345", &url.replace("https", "wss"), &fields)
        });
        add("signed as a GET", Forged, &|r| {
            let query = format!("{url}?{text}");
            r.signature = signed("12345", &query, &[]);
        });
        add("sent as a GET", Malformed, &|r| r.method = "GET");
        add("sent as a PUT", Malformed, &|r| r.method = "PUT");
        add("a form said to be JSON", Forged, &|r| r.content_type = Some("application/json"));
        add("a form said to be XML", WrongType, &|r| r.content_type = Some("text/xml"));
        add("a form in parts", WrongType, &|r| r.content_type = Some("multipart/form-data; boundary=x"));
        add("a route that is none", Malformed, &|r| r.route = "voices");
        let other = owned(&with(offered(), &[("AccountSid", "AC00000000000000000000000000000002")]));
        add("another account with our token", WrongAccount, &|r| {
            r.signature = signed("12345", &url, &other);
            r.body = encoded(&other);
        });
        let nameless: Vec<_> = fields.iter().filter(|(name, _)| name != "AccountSid").cloned().collect();
        add("no account", WrongAccount, &|r| {
            r.signature = signed("12345", &url, &nameless);
            r.body = encoded(&nameless);
        });
        let many: Vec<(String, String)> = (0..=MAX_FIELDS).map(|i| (format!("f{i}"), String::new())).collect();
        add("a flood of fields", Malformed, &|r| r.body = encoded(&many));

        let mut add = |what, expected, spoil: &dyn Fn(&mut Req)| {
            let mut request = json.clone();
            spoil(&mut request);
            forgeries.push((what, request, expected));
        };
        let (bare, query) = json.url.split_once('?').unwrap();
        add("another JSON body", Forged, &|r| r.body = json_body.replace("busy", "failed").into());
        add("a blank in the JSON body", Forged, &|r| r.body.push(b' '));
        add("an empty JSON body", Forged, &|r| r.body.clear());
        add("JSON without its hash", Forged, &|r| {
            r.url = bare.to_owned();
            r.signature = signed("12345", bare, &[]);
        });
        add("the hash of another body", Forged, &|r| {
            let other: String = Sha256::digest("{}").iter().map(|byte| format!("{byte:02x}")).collect();
            r.url = format!("{bare}?bodySHA256={other}");
            r.body = b"{}".to_vec();
        });
        add("two hashes", Forged, &|r| r.url = format!("{bare}?bodySHA256=00&{query}"));
        add("JSON said to be a form", Forged, &|r| r.content_type = Some(FORM));
        add("JSON's signature over an empty form", WrongAccount, &|r| {
            r.content_type = Some(FORM);
            r.body.clear();
        });
        add("JSON that is a list", Malformed, &|r| *r = Req::json("status", "[]"));

        assert!(forgeries.len() >= 60, "{}", forgeries.len());
        for (what, request, expected) in forgeries {
            assert_eq!(request.read(), Err(expected), "{what}");
        }
    }

    #[test]
    fn the_vectors_of_twilios_libraries_are_judged_the_same_here() {
        let shared = std::env::var("OFFHOOK_SHARED")
            .map_or_else(|_| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), Into::into);
        let Ok(text) = std::fs::read_to_string(shared.join("sip/twilio/signature-vectors.json")) else {
            println!("skipped: no shared data");
            return;
        };
        let vectors: Vec<Value> = serde_json::from_str(&text).unwrap();
        assert!(vectors.len() >= 10);
        for vector in vectors {
            let text = |name: &str| vector[name].as_str().unwrap_or_default();
            let fields: Vec<(String, String)> = serde_json::from_value(vector["params"].clone()).unwrap_or_default();
            let is_json = vector["body"].is_string();
            let body = if is_json { text("body").as_bytes().to_vec() } else { encoded(&fields) };
            let read = read(
                ACCOUNT,
                &[text("auth_token").to_owned().into()],
                &WebhookRequest {
                    route: "voice",
                    method: "POST",
                    url: text("request_url"),
                    query: "",
                    content_type: Some(if is_json { "application/json" } else { FORM }),
                    signature: Some(text("x_twilio_signature")),
                    client: None,
                    any_address: false,
                    body: &body,
                },
            );
            // The vectors name no account: one with a good signature gets as far as that.
            let expected = if vector["valid"] == true { Refusal::WrongAccount } else { Refusal::Forged };
            assert_eq!(read, Err(expected), "{}", text("name"));
        }
    }

    proptest::proptest! {
        /// With a good signature over anything at all: the fields are read without a panic.
        #[test]
        fn no_bytes_are_too_odd(
            route in "(voice|after|status|sms|stream|amd|x)",
            json in proptest::bool::ANY,
            pairs in proptest::collection::vec(("(CallSid|MessageSid|From|Direction|NumMedia|StreamSid|.{0,9})", ".{0,40}"), 0..12),
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..60),
        ) {
            let mut fields = owned(&[("AccountSid", ACCOUNT)]);
            fields.extend(pairs);
            let route: &'static str = ["voice", "after", "status", "sms", "stream", "amd", "x"]
                .into_iter()
                .find(|known| *known == route)
                .unwrap_or("x");
            let mut request = Req::form(route, &[]);
            request.signature = Some(sign(&token(), &request.url, &fields));
            request.body = encoded(&fields);
            proptest::prop_assert_ne!(request.read(), Err(Refusal::Forged));
            request.body = bytes;
            request.content_type = Some(if json { "application/json" } else { FORM });
            let _ = request.read();
        }
    }

    #[test]
    fn a_webhooks_signature_does_not_open_a_websocket() {
        let genuine = Req::form("voice", &offered());
        let url = genuine.url.replace("https", "wss");
        assert!(verify_websocket(&[token()], &url, genuine.signature.as_deref().unwrap()).is_err());
    }

    #[test]
    fn decisions_become_twiml() {
        let call = Event::CallOffered(CallNews::default());
        let rest = Event::CallContinues(CallNews::default());
        let body = |event: &Event, decision: Decision<'_>| {
            let answer = answer(event, &decision);
            assert!(answer.content_type.starts_with("text/xml"));
            answer.body.split_once("?>").map_or(String::new(), |(_, xml)| xml.to_owned())
        };
        let talk = Decision::Talk {
            stream_url: "wss://voice.example.com/media/twilio/t",
            status_url: "https://voice.example.com/s",
            after_url: "https://voice.example.com/a",
            call_id: "0190b5a4-0000-7000-8000-000000000001",
        };
        for event in [&call, &rest] {
            assert_eq!(
                body(event, talk),
                "<Response><Connect action=\"https://voice.example.com/a\"><Stream \
                 url=\"wss://voice.example.com/media/twilio/t\" statusCallback=\"https://voice.example.com/s\">\
                 <Parameter name=\"call_id\" value=\"0190b5a4-0000-7000-8000-000000000001\"/></Stream></Connect>\
                 <Hangup/></Response>"
            );
        }
        assert_eq!(body(&call, Decision::Busy), "<Response><Reject reason=\"busy\"/></Response>");
        assert_eq!(body(&rest, Decision::Busy), "<Response><Hangup/></Response>");
        assert_eq!(body(&call, Decision::HangUp), "<Response><Hangup/></Response>");
        assert!(body(&call, Decision::NotInService).contains("not in service"));
        assert_eq!(
            body(&rest, Decision::Say { text: "До зустрічі", language: "uk" }),
            "<Response><Say language=\"uk-UA\">До зустрічі</Say><Hangup/></Response>"
        );
        assert!(body(&rest, Decision::Say { text: "x", language: "en-GB" }).contains("\"en-GB\""));
        assert!(
            body(
                &rest,
                Decision::Transfer { to: "+380671112233", from: "+380441234567", note_url: None, over_url: None }
            )
            .contains("callerId=\"+380441234567\"><Number>+380671112233</Number></Dial><Hangup/>")
        );
        assert!(
            body(&call, Decision::Route { to: "sip:desk@example.com" }).contains("<Sip>sip:desk@example.com</Sip>")
        );
        let long = "x".repeat(500);
        let Decision::Talk { stream_url, status_url, after_url, .. } = talk else { unreachable!("it is Talk") };
        let too_long = Decision::Talk { stream_url, status_url, after_url, call_id: &long };
        assert_eq!(body(&call, too_long), "<Response><Hangup/></Response>");
    }

    #[test]
    fn a_message_is_answered_with_a_message_and_a_notice_with_nothing() {
        let message = Event::MessageReceived(IncomingMessage {
            provider_message: "SM1".into(),
            from: PhoneNumber::default(),
            to: PhoneNumber::default(),
            text: String::new(),
            media: Vec::new(),
        });
        let said = |text: &str| answer(&message, &Decision::Say { text, language: "uk" }).body;
        assert!(said("Дякуємо").ends_with("<Response><Message>Дякуємо</Message></Response>"));
        assert!(said("").ends_with("<Response></Response>"));
        assert_eq!(said(&"ї".repeat(2_000)).matches('ї').count(), 1_600);
        assert!(answer(&message, &Decision::Noted).body.ends_with("<Response></Response>"));
        let notice = Event::Ignored { what: "call initiated".into() };
        assert_eq!(answer(&notice, &Decision::Noted).body, "");
    }
}
