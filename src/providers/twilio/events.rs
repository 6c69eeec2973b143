//! Twilio's webhooks: whether one is genuine, what it says, and the body that answers it. Pure: the door in front of it
//! knows the network, the limits and the inbox. Field names are Twilio's.
//! <https://www.twilio.com/docs/voice/twiml#request-parameters>,
//! <https://www.twilio.com/docs/messaging/guides/webhook-request>

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use secrecy::SecretString;
use serde_json::Value;

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
        })
    }
}

fn sid_of(news: &CallNews) -> &str {
    news.provider_call.as_deref().unwrap_or_default()
}

fn voice(fields: &Fields) -> Result<Webhook, Refusal> {
    let news = fields.call()?;
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
        Event::CallContinues(_) => call_twiml(decision, false),
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
        Decision::Route { to } => twiml::dial(to, ""),
        Decision::Transfer { to, from } => twiml::dial(to, from),
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
