//! What is asked of Twilio: one account over its REST API 2010-04-01. Numbers and their webhooks, calls, history,
//! messages, recordings. Reads are tried again, and so are writes that write the same thing again; a call or a message
//! is asked for once. <https://www.twilio.com/docs/usage/api>

use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::fmt::rfc2822;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use reqwest::RequestBuilder;
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use crate::providers::credentials::Credentials;
use crate::providers::provider::{
    Account, CallOutcome, Dial, Dialled, HistoryPage, HistoryQuery, LineState, OutgoingMessage, PastCall,
    RecordingLink, RemoteLine, SentMessage, WebhookSetting, Webhooks,
};
use crate::providers::rest::{Limits, ProviderError, Repeat, Reply, Rest};
use crate::providers::twilio::{API_BASE, errors, events, is_e164, is_sid, twiml};
use crate::telephony::{Direction, PhoneNumber};

/// Between two requests. Twilio takes about a hundred at once from an account; this keeps one server far below.
const GAP: Duration = Duration::from_millis(20);
/// Numbers on one page; Twilio's limit is 1000.
const NUMBERS_PAGE: usize = 500;
/// Pages of numbers that are read: 25,000 numbers.
const MAX_PAGES: usize = 50;
/// Requests for one page of history: filters that Twilio does not have may leave little of each of its pages.
const HISTORY_REQUESTS: usize = 12;
/// Twilio's longest page.
const MAX_LIMIT: usize = 1_000;
/// Calls on a page of Twilio's where the filtering is done here.
const FILTERED_PAGE: usize = 200;
/// Cursors are ours; a longer one is not.
const MAX_CURSOR: usize = 4_096;
/// How long the numbers are remembered from which a message's sender is picked.
const SENDERS_LAST: Duration = Duration::from_secs(60);
/// Twilio's limit of a message, characters.
const MAX_TEXT: usize = 1_600;
/// Twilio's limits of `Timeout` and `TimeLimit`, seconds.
const RING_S: (u32, u32) = (5, 600);
const CALL_S: (u32, u32) = (1, 86_400);
/// Of the events of a call only these are of use: that it was answered is told by the voice webhook.
const CALL_EVENTS: [&str; 2] = ["ringing", "completed"];

/// One account.
#[derive(Debug)]
pub(super) struct Api {
    rest: Rest,
    account_sid: String,
    user: String,
    password: SecretString,
    /// Everything that must not be in an error.
    secrets: Vec<SecretString>,
    messaging_service: Option<String>,
    /// The API is not Twilio's own, but a simulator without TLS: it may call us without TLS as well.
    plain: bool,
    senders: Mutex<Option<(Instant, Vec<RemoteLine>)>>,
}

impl Api {
    pub(super) fn open(credentials: &Credentials, limits: Limits) -> Result<Self, ProviderError> {
        let base = Some(credentials.text("api_base")).filter(|base| !base.is_empty()).unwrap_or(API_BASE);
        let account_sid = credentials.text("account_sid").to_owned();
        let secret = |name: &str| credentials.secret(name).cloned();
        let (user, password) = match secret("api_secret") {
            Some(secret) => (credentials.text("api_key").to_owned(), secret),
            None => (account_sid.clone(), secret("auth_token").unwrap_or_default()),
        };
        Ok(Self {
            rest: Rest::with_limits(base, GAP, limits)?,
            account_sid,
            user,
            password,
            secrets: ["auth_token", "secondary_auth_token", "api_secret"].into_iter().filter_map(secret).collect(),
            messaging_service: Some(credentials.text("messaging_service_sid").to_owned()).filter(|sid| !sid.is_empty()),
            plain: base.starts_with("http://"),
            senders: Mutex::new(None),
        })
    }

    /// `/2010-04-01/Accounts/AC…` and what follows.
    fn path(&self, rest: &str) -> String {
        format!("/2010-04-01/Accounts/{}{rest}", self.account_sid)
    }

    fn signed_in(&self, request: RequestBuilder) -> RequestBuilder {
        request.basic_auth(&self.user, Some(self.password.expose_secret()))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, what: &str) -> Result<T, ProviderError> {
        let reply = self.rest.send(self.signed_in(self.rest.get(path)), Repeat::Safe).await?;
        self.read(&reply, false, what)
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        fields: &[(&str, String)],
        repeat: Repeat,
        what: &str,
    ) -> Result<T, ProviderError> {
        let reply = self.rest.send(self.signed_in(self.rest.post(path)).form(fields), repeat).await?;
        self.read(&reply, repeat == Repeat::Never, what)
    }

    fn read<T: DeserializeOwned>(&self, reply: &Reply, creates: bool, what: &str) -> Result<T, ProviderError> {
        if !reply.status.is_success() {
            return Err(self.fault(reply, creates, what));
        }
        // Where it is wrong, not what is there: answers hold tokens.
        serde_json::from_str(&reply.body).map_err(|error| {
            let place = format!("line {}, column {}", error.line(), error.column());
            self.rest.nonsense(format!("no JSON of the expected shape, {place}"))
        })
    }

    /// What an answer outside 200–299 means. `what` was asked for; `creates`: it may be there in spite of a 5xx.
    fn fault(&self, reply: &Reply, creates: bool, what: &str) -> ProviderError {
        let status = reply.status.as_u16();
        let body = reply.json().filter(Value::is_object);
        let field = |name: &str| body.as_ref().and_then(|body| body.get(name));
        let code = match field("code") {
            Some(Value::Number(number)) => number.as_i64(),
            Some(Value::String(text)) => text.parse().ok(),
            _ => None,
        };
        let message = field("message").and_then(Value::as_str).map(|text| self.clean(text));
        let detail = match (code, &message) {
            (Some(code), Some(message)) => format!("{code}: {message}"),
            (Some(code), None) => code.to_string(),
            (None, Some(message)) => message.clone(),
            (None, None) => format!("status {status}"),
        };
        match (status, code) {
            (429, _) | (_, Some(20429 | 10004)) => {
                ProviderError::RateLimited { retry_s: reply.retry_after.map(|wait| wait.as_secs()) }
            }
            (500.., _) => self.rest.unreachable(detail, creates),
            (401, _) if self.user.starts_with("SK") => {
                ProviderError::WrongKey { fields: "api_key, api_secret and account_sid", detail }
            }
            (401, _) => ProviderError::WrongKey { fields: "account_sid and auth_token", detail },
            (403, _) => ProviderError::NoRight { detail },
            // Twilio's own 404 is JSON with a code.
            (404, Some(_)) => ProviderError::NotFound { what: what.to_owned() },
            (_, Some(21210 | 21212)) => ProviderError::NotOwned { what: "the calling number".into() },
            (_, Some(code)) => {
                let cure = errors::cure(code).unwrap_or("see https://www.twilio.com/docs/api/errors");
                let detail = message.map_or_else(|| cure.to_owned(), |message| format!("{cure} ({message})"));
                ProviderError::Refused { code: code.to_string(), detail }
            }
            (_, None) => self.rest.nonsense(detail),
        }
    }

    /// Twilio's words without our secrets, and with numbers and long hex strings cut: errors are logged and shown.
    fn clean(&self, text: &str) -> String {
        let mut text: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
        for secret in self.secrets.iter().map(|secret| secret.expose_secret()).filter(|secret| secret.len() > 3) {
            text = text.replace(secret, "…");
        }
        let mut out = String::with_capacity(text.len());
        for (index, word) in text.split(' ').enumerate() {
            if index > 0 {
                out.push(' ');
            }
            let core = word.trim_matches(|c: char| !c.is_alphanumeric() && c != '+');
            let digits = core.bytes().filter(u8::is_ascii_digit).count();
            let (before, after) = word.split_once(core).unwrap_or((word, ""));
            if digits >= 7 && core.chars().all(|c| c.is_ascii_digit() || "+-().".contains(c)) {
                out.extend([before, &PhoneNumber::new(core).to_string(), after]);
            } else if core.len() >= 32 && core.bytes().all(|b| b.is_ascii_hexdigit()) {
                out.extend([before, "…", after]);
            } else {
                out.push_str(word);
            }
        }
        out
    }

    /// A link to a further page, if it stays in this list of this account: the credentials go with the request.
    fn page_path(&self, link: &str, list: &str) -> Option<String> {
        let first = self.path(&format!("/{list}.json"));
        let rest = link.strip_prefix(&first)?;
        (rest.is_empty() || rest.starts_with('?')).then(|| link.to_owned())
    }

    fn next_path(&self, link: Option<&str>, list: &str) -> Result<Option<String>, ProviderError> {
        link.map(|link| {
            self.page_path(link, list)
                .ok_or_else(|| self.rest.nonsense("a next_page_uri that leads out of this account"))
        })
        .transpose()
    }

    /// Whether Twilio can call this address. Asked before anything is written.
    fn callable(&self, field: &'static str, address: &str) -> Result<(), ProviderError> {
        let invalid = |problem: &str| ProviderError::Invalid { field, problem: problem.into() };
        if address.is_empty() {
            return Err(invalid(
                "is missing: set server.public_url to the address at which Twilio reaches this server",
            ));
        }
        let url = reqwest::Url::parse(address)
            .map_err(|_| invalid("is no absolute address: set server.public_url, such as https://voice.example.com"))?;
        if self.plain && url.scheme() == "http" {
            return Ok(());
        }
        if url.scheme() != "https" {
            return Err(invalid("is not https: Twilio sends calls to https addresses only; correct server.public_url"));
        }
        let host = url.host_str().unwrap_or_default();
        if host.contains('_') {
            return Err(invalid("has an underscore in its host name, which Twilio refuses; correct server.public_url"));
        }
        let local = host == "localhost"
            || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified());
        if local && !self.plain {
            return Err(invalid("is this machine's own address, which Twilio cannot reach; correct server.public_url"));
        }
        Ok(())
    }
}

/// The account.
impl Api {
    pub(super) async fn verify(&self) -> Result<Account, ProviderError> {
        let account: AccountJson = match self.get(&self.path(".json"), "such account").await {
            Ok(account) => account,
            // An ordinary API key may not read the account: that it reads the numbers proves it as well.
            Err(ProviderError::WrongKey { .. } | ProviderError::NoRight { .. }) if self.user.starts_with("SK") => {
                let _: NumbersJson =
                    self.get(&self.path("/IncomingPhoneNumbers.json?PageSize=1"), "such account").await?;
                return Ok(Account { name: self.account_sid.clone(), warnings: Vec::new() });
            }
            Err(error) => return Err(error),
        };
        if account.sid != self.account_sid {
            return Err(self.rest.nonsense("another account than the one asked for"));
        }
        let mut warnings = Vec::new();
        match account.status.as_str() {
            "active" => {}
            "suspended" => {
                warnings.push("The account is suspended: no calls go in or out until Twilio lifts it.".into())
            }
            status => warnings.push(format!("The account is {status}: it takes no calls.")),
        }
        if account.kind.as_deref().is_some_and(|kind| kind.eq_ignore_ascii_case("trial")) {
            warnings.push(
                "A trial account: it calls and writes to verified numbers only, and callers hear Twilio's notice first."
                    .into(),
            );
        }
        if let Some(theirs) = &account.auth_token
            && theirs.expose_secret().len() == 32
            && !self.secrets.iter().any(|ours| ours.expose_secret() == theirs.expose_secret())
        {
            warnings.push("auth_token is not the account's primary Auth Token: webhooks would be refused.".into());
        }
        let name = account.friendly_name.filter(|name| !name.is_empty()).unwrap_or_else(|| self.account_sid.clone());
        Ok(Account { name, warnings })
    }
}

#[derive(Deserialize)]
struct AccountJson {
    sid: String,
    #[serde(default)]
    status: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    friendly_name: Option<String>,
    auth_token: Option<SecretString>,
}

/// Numbers and their webhooks.
impl Api {
    pub(super) async fn lines(&self) -> Result<Vec<RemoteLine>, ProviderError> {
        let mut lines = Vec::new();
        let mut path = Some(self.path(&format!("/IncomingPhoneNumbers.json?PageSize={NUMBERS_PAGE}")));
        for _ in 0..MAX_PAGES {
            let Some(this) = path.take() else { break };
            let page: NumbersJson = self.get(&this, "such page").await?;
            lines.extend(page.incoming_phone_numbers.iter().map(NumberJson::line));
            path = self.next_path(page.next_page_uri.as_deref(), "IncomingPhoneNumbers")?.filter(|next| *next != this);
        }
        Ok(lines)
    }

    /// By number, however it is spaced, or by Twilio's id.
    async fn number(&self, line: &str) -> Result<NumberJson, ProviderError> {
        let not_owned = || ProviderError::NotOwned { what: line.chars().take(40).collect() };
        if is_sid(line, "PN") {
            let found = self.get(&self.path(&format!("/IncomingPhoneNumbers/{line}.json")), "such number").await;
            return found.map_err(|error| match error {
                ProviderError::NotFound { .. } => not_owned(),
                error => error,
            });
        }
        let number: String = line.chars().filter(|c| !matches!(c, ' ' | '-' | '(' | ')' | '.')).collect();
        if !is_e164(&number) {
            return Err(not_owned());
        }
        let query = encoded(&[("PhoneNumber", &number), ("PageSize", "50")]);
        let page: NumbersJson =
            self.get(&self.path(&format!("/IncomingPhoneNumbers.json?{query}")), "such number").await?;
        // Twilio's filter finds parts of numbers as well.
        page.incoming_phone_numbers.into_iter().find(|found| found.phone_number == number).ok_or_else(not_owned)
    }

    pub(super) async fn inspect_line(&self, line: &str, hooks: &Webhooks) -> Result<LineState, ProviderError> {
        Ok(self.number(line).await?.state(hooks))
    }

    pub(super) async fn prepare_line(&self, line: &str, hooks: &Webhooks) -> Result<LineState, ProviderError> {
        for address in [&hooks.voice, &hooks.status, &hooks.sms] {
            self.callable("public_url", address)?;
        }
        let number = self.number(line).await?;
        let mut state = number.state(hooks);
        if !state.wanted.is_empty() {
            let after = self.write(&number.sid, &state.wanted).await?;
            let left: Vec<String> = after.state(hooks).wanted.into_iter().map(|setting| setting.name).collect();
            if !left.is_empty() {
                state
                    .warnings
                    .push(format!("Twilio did not take {}: look at the number in the Console.", left.join(", ")));
            }
        }
        Ok(state)
    }

    pub(super) async fn restore_line(&self, line: &str, before: &[WebhookSetting]) -> Result<(), ProviderError> {
        if let Some(strange) = before.iter().find(|setting| !SETTINGS.contains(&setting.name.as_str())) {
            let problem = format!("{:?} is no webhook setting of a number", strange.name);
            return Err(ProviderError::Invalid { field: "before", problem });
        }
        let number = self.number(line).await?;
        let found = number.found();
        let changed: Vec<WebhookSetting> = before
            .iter()
            // A method cannot be empty; without an address it means nothing.
            .filter(|old| !(old.name.ends_with("Method") && old.value.is_empty()))
            .filter(|old| found.iter().any(|now| now.name == old.name && now.value != old.value))
            .cloned()
            .collect();
        if !changed.is_empty() {
            self.write(&number.sid, &changed).await?;
        }
        Ok(())
    }

    async fn write(&self, sid: &str, settings: &[WebhookSetting]) -> Result<NumberJson, ProviderError> {
        let fields: Vec<(&str, String)> =
            settings.iter().map(|setting| (setting.name.as_str(), setting.value.clone())).collect();
        self.post(&self.path(&format!("/IncomingPhoneNumbers/{sid}.json")), &fields, Repeat::Safe, "such number").await
    }
}

/// The settings of a number that are ours to write.
const SETTINGS: [&str; 6] =
    ["VoiceUrl", "VoiceMethod", "StatusCallback", "StatusCallbackMethod", "SmsUrl", "SmsMethod"];

#[derive(Deserialize)]
struct NumbersJson {
    incoming_phone_numbers: Vec<NumberJson>,
    next_page_uri: Option<String>,
}

#[derive(Deserialize)]
struct NumberJson {
    sid: String,
    phone_number: String,
    friendly_name: Option<String>,
    capabilities: Option<CapabilitiesJson>,
    voice_url: Option<String>,
    voice_method: Option<String>,
    voice_application_sid: Option<String>,
    voice_receive_mode: Option<String>,
    trunk_sid: Option<String>,
    sms_url: Option<String>,
    sms_method: Option<String>,
    sms_application_sid: Option<String>,
    status_callback: Option<String>,
    status_callback_method: Option<String>,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct CapabilitiesJson {
    #[serde(default)]
    voice: bool,
    #[serde(default, alias = "SMS")]
    sms: bool,
}

impl NumberJson {
    fn line(&self) -> RemoteLine {
        let capabilities = self.capabilities.unwrap_or_default();
        RemoteLine {
            number: self.phone_number.clone(),
            id: Some(self.sid.clone()),
            name: self.friendly_name.clone().unwrap_or_default(),
            voice: capabilities.voice,
            sms: capabilities.sms,
            online: None,
            warnings: self.warnings(),
        }
    }

    /// What keeps calls or messages from our webhooks whatever their addresses are.
    fn warnings(&self) -> Vec<String> {
        let set = |sid: &Option<String>| sid.clone().filter(|sid| !sid.is_empty());
        let mut warnings = Vec::new();
        if let Some(sid) = set(&self.trunk_sid) {
            warnings.push(format!(
                "Calls go to the SIP trunk {sid}, and Twilio ignores the voice webhook: take the number off the trunk."
            ));
        }
        if let Some(sid) = set(&self.voice_application_sid) {
            warnings.push(format!(
                "Calls go to the application {sid}, and Twilio ignores the voice webhook: configure the number with a webhook instead."
            ));
        }
        if let Some(sid) = set(&self.sms_application_sid) {
            warnings.push(format!(
                "Messages go to the application {sid}, and Twilio ignores the message webhook: configure the number with a webhook instead."
            ));
        }
        if self.voice_receive_mode.as_deref() == Some("fax") {
            warnings.push("The number is set to receive faxes: set it to receive calls.".into());
        }
        warnings
    }

    /// Unset ones are empty, however Twilio writes it.
    fn found(&self) -> Vec<WebhookSetting> {
        let values = [
            &self.voice_url,
            &self.voice_method,
            &self.status_callback,
            &self.status_callback_method,
            &self.sms_url,
            &self.sms_method,
        ];
        SETTINGS
            .iter()
            .zip(values)
            .map(|(name, value)| WebhookSetting { name: (*name).into(), value: value.clone().unwrap_or_default() })
            .collect()
    }

    fn state(&self, hooks: &Webhooks) -> LineState {
        let capabilities = self.capabilities.unwrap_or_default();
        let wanted = |name: &str| match name {
            "VoiceUrl" if capabilities.voice => Some(hooks.voice.as_str()),
            "StatusCallback" if capabilities.voice => Some(hooks.status.as_str()),
            "VoiceMethod" | "StatusCallbackMethod" if capabilities.voice => Some("POST"),
            "SmsUrl" if capabilities.sms => Some(hooks.sms.as_str()),
            "SmsMethod" if capabilities.sms => Some("POST"),
            _ => None,
        };
        let found = self.found();
        let wanted = found
            .iter()
            .filter_map(|setting| {
                let value = wanted(&setting.name)?;
                // POST is Twilio's default.
                let same = setting.value == value || setting.name.ends_with("Method") && setting.value.is_empty();
                (!same).then(|| WebhookSetting { name: setting.name.clone(), value: value.to_owned() })
            })
            .collect();
        LineState { found, wanted, warnings: self.warnings() }
    }
}

/// Calls that go on.
impl Api {
    pub(super) async fn dial(&self, dial: &Dial) -> Result<Dialled, ProviderError> {
        self.callable("public_url", &dial.answer_url)?;
        self.callable("public_url", &dial.status_url)?;
        dialable("to", dial.to.as_str())?;
        dialable("line", &dial.line)?;
        let mut fields = vec![
            ("To", dial.to.as_str().to_owned()),
            ("From", dial.line.clone()),
            ("Url", dial.answer_url.clone()),
            ("Method", "POST".into()),
            ("StatusCallback", dial.status_url.clone()),
            ("StatusCallbackMethod", "POST".into()),
            ("Timeout", dial.ring_s.clamp(RING_S.0, RING_S.1).to_string()),
            ("TimeLimit", dial.max_call_s.clamp(CALL_S.0, CALL_S.1).to_string()),
        ];
        fields.extend(CALL_EVENTS.map(|event| ("StatusCallbackEvent", event.to_owned())));
        if dial.detect_machine {
            // In the background: a person who answers is greeted at once, not after four seconds of listening.
            fields.push(("MachineDetection", "Enable".into()));
            fields.push(("AsyncAmd", "true".into()));
            fields.push(("AsyncAmdStatusCallback", dial.status_url.clone()));
            fields.push(("AsyncAmdStatusCallbackMethod", "POST".into()));
        }
        let call: CreatedJson = self
            .post(&self.path("/Calls.json"), &fields, Repeat::Never, "such account")
            .await
            .map_err(|error| named(error, &dial.line))?;
        Ok(Dialled { provider_call: Some(call.sid) })
    }

    pub(super) async fn hang_up(&self, call: &str) -> Result<(), ProviderError> {
        let fields = [("Status", "completed".to_owned())];
        match self.post::<CreatedJson>(&self.call_path(call)?, &fields, Repeat::Safe, "such call").await {
            Ok(_) | Err(ProviderError::NotFound { .. }) => Ok(()),
            Err(ProviderError::Refused { code, .. }) if code == "21220" => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The other side is shown the caller's number on a call that came in, and ours on one that we made: the numbers
    /// that Twilio lets a `<Dial>` show.
    pub(super) async fn transfer(&self, call: &str, to: &PhoneNumber) -> Result<(), ProviderError> {
        if !to.as_str().starts_with("sip:") {
            dialable("to", to.as_str())?;
        }
        let path = self.call_path(call)?;
        let now: CallJson = self.get(&path, "such call").await?;
        if events::ended(&now.status, None).is_some() {
            return Err(ProviderError::NotFound { what: "running call of this id".into() });
        }
        let (from, our) = match now.direction() {
            Direction::Inbound => (now.from.as_deref(), now.to.as_deref()),
            Direction::Outbound => (None, now.from.as_deref()),
        };
        let caller_id = from.filter(|number| is_e164(number)).or(our).unwrap_or_default();
        let fields = [("Twiml", twiml::dial(to.as_str(), caller_id, None, None))];
        // Said twice, it would ring twice.
        self.post::<CreatedJson>(&path, &fields, Repeat::Never, "such call").await.map(drop)
    }

    fn call_path(&self, call: &str) -> Result<String, ProviderError> {
        if !is_sid(call, "CA") {
            return Err(ProviderError::Invalid { field: "call", problem: "is no call of Twilio's".into() });
        }
        Ok(self.path(&format!("/Calls/{call}.json")))
    }

    pub(super) async fn recording(&self, call: &str) -> Result<Option<RecordingLink>, ProviderError> {
        self.call_path(call)?;
        let path = self.path(&format!("/Calls/{call}/Recordings.json?PageSize=20"));
        let page: RecordingsJson = match self.get(&path, "such call").await {
            Err(ProviderError::NotFound { .. }) => return Ok(None),
            page => page?,
        };
        let done =
            page.recordings.iter().find(|recording| recording.status == "completed" && is_sid(&recording.sid, "RE"));
        let key = STANDARD.encode(format!("{}:{}", self.user, self.password.expose_secret()));
        Ok(done.map(|recording| RecordingLink {
            url: self.rest.url(&self.path(&format!("/Recordings/{}.mp3", recording.sid))),
            authorization: Some(format!("Basic {key}").into()),
            expires: None,
        }))
    }
}

#[derive(Deserialize)]
struct CreatedJson {
    sid: String,
}

#[derive(Deserialize)]
struct RecordingsJson {
    recordings: Vec<RecordingJson>,
}

#[derive(Deserialize)]
struct RecordingJson {
    sid: String,
    #[serde(default)]
    status: String,
}

/// Our own number may be named in an error: whoever reads it has written it.
fn named(error: ProviderError, line: &str) -> ProviderError {
    match error {
        ProviderError::NotOwned { .. } => ProviderError::NotOwned { what: line.to_owned() },
        error => error,
    }
}

fn dialable(field: &'static str, number: &str) -> Result<(), ProviderError> {
    if is_e164(number) {
        return Ok(());
    }
    Err(ProviderError::Invalid { field, problem: "must be a number in full: +, country, number".into() })
}

/// Calls of the past.
impl Api {
    /// Twilio filters by one side, one status and whole days of UTC. A number on either side is asked for as caller and
    /// as callee and brought together; the rest is filtered here.
    pub(super) async fn history(&self, query: &HistoryQuery) -> Result<HistoryPage, ProviderError> {
        let limit = query.limit.clamp(1, MAX_LIMIT);
        let mut sources = match &query.cursor {
            Some(cursor) => self.sources(cursor)?,
            None => self.first_sources(query, limit)?,
        };
        let mut page = HistoryPage::default();
        let mut seen = HashSet::new();
        let mut requests = 0;
        'page: while page.calls.len() < limit {
            for source in &mut sources {
                while source.calls.is_empty()
                    && let Some(path) = source.place.path.clone()
                {
                    if requests == HISTORY_REQUESTS {
                        break 'page;
                    }
                    requests += 1;
                    let answer: CallsJson = self.get(&path, "such page").await?;
                    let next = self.next_path(answer.next_page_uri.as_deref(), "Calls")?.filter(|next| *next != path);
                    source.fill(answer.calls, next);
                }
            }
            let newest = sources
                .iter_mut()
                .filter(|source| !source.calls.is_empty())
                .max_by_key(|source| source.calls.front().map(CallJson::at));
            let Some(call) = newest.and_then(Source::take) else { break };
            let fits = call.fits(query);
            // A number that has called itself is on both sides.
            if seen.insert(call.sid.clone()) && fits {
                page.calls.push(call.past());
            }
        }
        if sources.iter().any(|source| source.place.path.is_some()) {
            let places: Vec<&Place> = sources.iter().map(|source| &source.place).collect();
            let json = serde_json::to_vec(&places).expect("strings make JSON");
            page.next = Some(URL_SAFE_NO_PAD.encode(json));
        }
        Ok(page)
    }

    fn first_sources(&self, query: &HistoryQuery, limit: usize) -> Result<Vec<Source>, ProviderError> {
        let mut filters: Vec<(&str, String)> = Vec::new();
        let status = match query.status {
            None | Some(CallOutcome::Running) => None,
            Some(CallOutcome::Answered | CallOutcome::Voicemail) => Some("completed"),
            Some(CallOutcome::NoAnswer) => Some("no-answer"),
            Some(CallOutcome::Busy) => Some("busy"),
            Some(CallOutcome::Failed) => Some("failed"),
            Some(CallOutcome::Canceled) => Some("canceled"),
        };
        if let Some(status) = status {
            filters.push(("Status", status.into()));
        }
        let day = |at: Timestamp| at.to_zoned(TimeZone::UTC).date();
        if let Some(from) = query.from {
            filters.push(("StartTime>", day(from).to_string()));
        }
        if let Some(to) = query.to {
            // "Before" a day: the day after the last one that is wanted.
            let next = day(to).checked_add(1.day()).unwrap_or(day(to));
            filters.push(("StartTime<", next.to_string()));
        }
        let narrow = query.from.is_some() || query.to.is_some() || query.status.is_some();
        let size = if narrow { limit.max(FILTERED_PAGE) } else { limit };
        filters.push(("PageSize", size.min(MAX_LIMIT).to_string()));
        let source = |side: Option<(&'static str, &PhoneNumber)>| {
            let mut filters = filters.clone();
            filters.extend(side.map(|(name, number)| (name, number.as_str().to_owned())));
            let filters: Vec<(&str, &str)> = filters.iter().map(|(name, value)| (*name, value.as_str())).collect();
            Source::at(Place { path: Some(self.path(&format!("/Calls.json?{}", encoded(&filters)))), after: None })
        };
        Ok(match &query.phone {
            Some(number) => vec![source(Some(("From", number))), source(Some(("To", number)))],
            None => vec![source(None)],
        })
    }

    /// A cursor comes back from outside: it leads nowhere but to this account's calls.
    fn sources(&self, cursor: &str) -> Result<Vec<Source>, ProviderError> {
        let places = Some(cursor)
            .filter(|cursor| cursor.len() <= MAX_CURSOR)
            .and_then(|cursor| URL_SAFE_NO_PAD.decode(cursor).ok())
            .and_then(|json| serde_json::from_slice::<Vec<Place>>(&json).ok())
            .filter(|places| (1..=2).contains(&places.len()))
            .filter(|places| {
                places
                    .iter()
                    .filter_map(|place| place.path.as_deref())
                    .all(|path| self.page_path(path, "Calls").is_some())
            });
        let places = places.ok_or_else(|| ProviderError::Invalid {
            field: "cursor",
            problem: "is none that this account has given: begin without one".into(),
        })?;
        Ok(places.into_iter().map(Source::at).collect())
    }
}

/// How far one of Twilio's lists has been read: the page, and the last call that was taken from it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Place {
    /// `None`: to its end.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    after: Option<String>,
}

struct Source {
    place: Place,
    calls: VecDeque<CallJson>,
    next: Option<String>,
}

impl Source {
    fn at(place: Place) -> Self {
        Self { place, calls: VecDeque::new(), next: None }
    }

    /// A page that was begun goes on behind the last call that was taken. If that is no longer on it, because calls
    /// have come in since, the page is read whole: rather a call twice than none.
    fn fill(&mut self, calls: Vec<CallJson>, next: Option<String>) {
        self.calls = calls.into();
        if let Some(after) = self.place.after.take()
            && let Some(at) = self.calls.iter().position(|call| call.sid == after)
        {
            self.calls.drain(..=at);
            self.place.after = Some(after);
        }
        self.next = next;
        self.turn_over();
    }

    fn take(&mut self) -> Option<CallJson> {
        let call = self.calls.pop_front()?;
        self.place.after = Some(call.sid.clone());
        self.turn_over();
        Some(call)
    }

    fn turn_over(&mut self) {
        if self.calls.is_empty() {
            self.place = Place { path: self.next.take(), after: None };
        }
    }
}

#[derive(Deserialize)]
struct CallsJson {
    calls: Vec<CallJson>,
    next_page_uri: Option<String>,
}

/// Everything but the id and the status may be null; numbers are strings.
#[derive(Deserialize)]
struct CallJson {
    sid: String,
    #[serde(default)]
    status: String,
    direction: Option<String>,
    from: Option<String>,
    to: Option<String>,
    start_time: Option<String>,
    date_created: Option<String>,
    duration: Option<String>,
    answered_by: Option<String>,
}

impl CallJson {
    fn direction(&self) -> Direction {
        match self.direction.as_deref() {
            // A trunk's origination is a call that comes in from the network.
            Some("inbound" | "trunking-originating") | None => Direction::Inbound,
            Some(_) => Direction::Outbound,
        }
    }

    fn started(&self) -> Option<Timestamp> {
        let read = |text: &Option<String>| {
            text.as_deref().and_then(|text| rfc2822::DateTimeParser::new().parse_timestamp(text).ok())
        };
        read(&self.start_time).or_else(|| read(&self.date_created))
    }

    /// For the order: a call without a time is only just being made.
    fn at(&self) -> Timestamp {
        self.started().unwrap_or(Timestamp::MAX)
    }

    fn outcome(&self) -> CallOutcome {
        events::ended(&self.status, self.answered_by.as_deref()).unwrap_or(CallOutcome::Running)
    }

    fn fits(&self, query: &HistoryQuery) -> bool {
        let started = self.started();
        query.status.is_none_or(|status| status == self.outcome())
            && query.from.is_none_or(|from| started.is_none_or(|started| started >= from))
            && query.to.is_none_or(|to| started.is_none_or(|started| started <= to))
    }

    fn past(self) -> PastCall {
        let (outcome, direction, started) = (self.outcome(), self.direction(), self.started());
        let talked = matches!(outcome, CallOutcome::Answered | CallOutcome::Voicemail);
        PastCall {
            provider_call: self.sid,
            direction,
            from: PhoneNumber::new(self.from.unwrap_or_default()),
            to: PhoneNumber::new(self.to.unwrap_or_default()),
            outcome,
            status: self.status,
            started,
            talk_s: self.duration.and_then(|seconds| seconds.parse().ok()).filter(|_| talked),
            ring_s: None,
            answered_by: None,
            // A call's entry does not say; `recording` asks.
            recording: None,
        }
    }
}

/// Messages.
impl Api {
    pub(super) async fn send_message(&self, message: &OutgoingMessage) -> Result<SentMessage, ProviderError> {
        dialable("to", message.to.as_str())?;
        let invalid = |problem: String| ProviderError::Invalid { field: "text", problem };
        let chars = message.text.chars().count();
        if message.text.trim().is_empty() {
            return Err(invalid("is empty".into()));
        }
        if chars > MAX_TEXT {
            return Err(invalid(format!("has {chars} characters; Twilio takes {MAX_TEXT}")));
        }
        let mut fields = vec![("To", message.to.as_str().to_owned()), ("Body", message.text.clone())];
        if !message.status_url.is_empty() {
            self.callable("public_url", &message.status_url)?;
            fields.push(("StatusCallback", message.status_url.clone()));
        }
        let sender = match (&message.from, &self.messaging_service) {
            (Some(from), _) => {
                fields.push(("From", from.as_str().to_owned()));
                from.clone()
            }
            (None, Some(service)) => {
                fields.push(("MessagingServiceSid", service.clone()));
                PhoneNumber::default()
            }
            (None, None) => {
                let from = self.sender_for(&message.to).await?;
                fields.push(("From", from.as_str().to_owned()));
                from
            }
        };
        let sent: MessageJson = self
            .post(&self.path("/Messages.json"), &fields, Repeat::Never, "such account")
            .await
            .map_err(|error| named(error, sender.as_str()))?;
        if let Some(code) = sent.error_code.as_ref().and_then(Value::as_i64) {
            let detail = errors::cure(code)
                .map_or_else(|| self.clean(sent.error_message.as_deref().unwrap_or("no reason given")), str::to_owned);
            return Err(ProviderError::Refused { code: code.to_string(), detail });
        }
        Ok(SentMessage {
            provider_message: sent.sid,
            // A messaging service picks the sender later.
            from: sent.from.map_or(sender, PhoneNumber::new),
            status: sent.status,
        })
    }

    /// A number of the account that can write: of the receiver's country if there is one, else of its calling code,
    /// else any.
    async fn sender_for(&self, to: &PhoneNumber) -> Result<PhoneNumber, ProviderError> {
        let known = {
            let senders = self.senders.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            senders.as_ref().filter(|(read, _)| read.elapsed() < SENDERS_LAST).map(|(_, lines)| lines.clone())
        };
        let lines = match known {
            Some(lines) => lines,
            None => {
                let mut lines = self.lines().await?;
                lines.retain(|line| line.sms);
                *self.senders.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) =
                    Some((Instant::now(), lines.clone()));
                lines
            }
        };
        pick_sender(lines.iter().map(|line| line.number.as_str()), to.as_str()).map(PhoneNumber::new).ok_or_else(|| {
            ProviderError::Invalid {
                field: "from",
                problem: "no number of this account can send messages: buy one, or set messaging_service_sid".into(),
            }
        })
    }
}

#[derive(Deserialize)]
struct MessageJson {
    sid: String,
    from: Option<String>,
    #[serde(default)]
    status: String,
    /// A number; whatever else it may be, the message is there.
    error_code: Option<Value>,
    error_message: Option<String>,
}

/// The first of the best: same country, same calling code, any.
fn pick_sender<'a>(numbers: impl Iterator<Item = &'a str>, to: &str) -> Option<&'a str> {
    let place = |number: &str| {
        let number = phonenumber::parse(None, number).ok()?;
        Some((number.country().id(), number.code().value()))
    };
    let theirs = place(to);
    let rank = |number: &str| match (theirs, place(number)) {
        (Some((Some(theirs), _)), Some((Some(ours), _))) if theirs == ours => 0,
        (Some((_, theirs)), Some((_, ours))) if theirs == ours => 1,
        _ => 2,
    };
    numbers.min_by_key(|number| rank(number))
}

fn encoded(pairs: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::twilio::KIND;

    const SID: &str = "AC00000000000000000000000000000001";

    fn api(base: &str) -> Api {
        let values = [("account_sid", SID), ("auth_token", "s3cret-token"), ("api_base", base)]
            .map(|(name, value)| (name.to_string(), value.to_string()));
        Api::open(&Credentials::new(&KIND, values).unwrap(), Limits::default()).unwrap()
    }

    #[test]
    fn a_sender_of_the_same_country_goes_first() {
        let check = |numbers: &[&str], to: &str, expected: &str| {
            assert_eq!(pick_sender(numbers.iter().copied(), to), Some(expected), "{to}");
        };
        let numbers = ["+442071838750", "+12125551234", "+14165551234", "+380441234567"];
        check(&numbers, "+12133734253", "+12125551234");
        check(&numbers, "+16135550123", "+14165551234"); // Ottawa: +1 as well, and Canada
        check(&numbers, "+380501234567", "+380441234567");
        check(&numbers, "+447911123456", "+442071838750");
        check(&numbers, "+48221234567", "+442071838750"); // Poland: none, so any
        check(&["+442071838750", "+15550001111"], "+15550002222", "+15550001111"); // numbers of no country, one code
        assert_eq!(pick_sender(std::iter::empty(), "+12133734253"), None);
    }

    #[test]
    fn an_address_that_twilio_cannot_call_is_refused_with_the_cure() {
        let live = api("https://api.twilio.com");
        let check = |address: &str, expected: &str| {
            let error = live.callable("public_url", address).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("server.public_url"), "{address}: {error}");
        };
        check("", "is missing");
        check("voice.example.com/x", "no absolute address");
        check("http://voice.example.com/x", "is not https");
        check("https://my_host.example.com/x", "underscore");
        check("https://127.0.0.1/x", "this machine's own");
        check("https://localhost:8443/x", "this machine's own");
        assert_eq!(live.callable("public_url", "https://voice.example.com/webhooks/twilio/x/voice"), Ok(()));
        let simulated = api("http://127.0.0.1:9300");
        assert_eq!(simulated.callable("public_url", "http://127.0.0.1:8080/x"), Ok(()));
        assert!(simulated.callable("public_url", "").is_err());
    }

    #[test]
    fn a_link_never_leads_out_of_the_account() {
        let api = api("https://api.twilio.com");
        let page = format!("/2010-04-01/Accounts/{SID}/Calls.json?PageSize=2&Page=1&PageToken=PA1");
        assert_eq!(api.page_path(&page, "Calls"), Some(page.clone()));
        for wrong in [
            format!("https://evil.example.com{page}"),
            format!("//evil.example.com{page}"),
            format!("@evil.example.com{page}"),
            page.replace("0001/", "0002/"),
            page.replace("Calls.json?", "Calls.json/../../x?"),
            page.replace("Calls.json", "Messages.json"),
            String::new(),
        ] {
            assert_eq!(api.page_path(&wrong, "Calls"), None, "{wrong}");
            let cursor = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&[serde_json::json!({ "p": wrong })]).unwrap());
            assert!(api.sources(&cursor).is_err(), "{wrong}");
        }
        for wrong in ["", "!", "e30", "W10", &"A".repeat(MAX_CURSOR + 1)] {
            assert!(api.sources(wrong).is_err(), "{wrong:.20}");
        }
    }

    #[test]
    fn an_error_holds_no_secret_and_no_whole_number() {
        let api = api("https://api.twilio.com");
        let cleaned = api.clean(
            "The number +15551234567, with s3cret-token and 0123456789abcdef0123456789abcdef (AC1) is 'wrong' at 12:30",
        );
        assert_eq!(cleaned, "The number +155…67, with … and … (AC1) is 'wrong' at 12:30");
    }

    #[test]
    fn every_code_becomes_what_the_operator_can_act_on() {
        let api = api("https://api.twilio.com");
        let fault = |status: u16, body: &str| {
            let status = reqwest::StatusCode::from_u16(status).unwrap();
            api.fault(&Reply { status, body: body.into(), retry_after: None }, true, "such call")
        };
        let coded =
            |status: u16, code: u32| fault(status, &format!(r#"{{"code":{code},"message":"m","status":{status}}}"#));
        let fields = "account_sid and auth_token";
        assert_eq!(coded(401, 20003), ProviderError::WrongKey { fields, detail: "20003: m".into() });
        assert_eq!(fault(401, ""), ProviderError::WrongKey { fields, detail: "status 401".into() });
        assert_eq!(coded(403, 20005), ProviderError::NoRight { detail: "20005: m".into() });
        assert_eq!(coded(404, 20404), ProviderError::NotFound { what: "such call".into() });
        assert_eq!(coded(429, 20429), ProviderError::RateLimited { retry_s: None });
        assert_eq!(coded(400, 10004), ProviderError::RateLimited { retry_s: None });
        assert!(matches!(coded(400, 21210), ProviderError::NotOwned { .. }));
        assert!(matches!(coded(400, 21212), ProviderError::NotOwned { .. }));
        for (code, cure) in [
            (21211, "in full"),
            (21219, "verify the number"),
            (21215, "Geo permissions"),
            (21608, "verify the number"),
            (21610, "START"),
            (21614, "no mobile"),
            (21606, "take another"),
            (21617, "shorten"),
            (21205, "server.public_url"),
        ] {
            let error = coded(400, code);
            assert!(matches!(&error, ProviderError::Refused { code: c, .. } if *c == code.to_string()), "{error:?}");
            assert!(error.to_string().contains(cure), "{error}");
        }
        assert!(coded(400, 99999).to_string().contains("docs/api/errors"));
        assert!(matches!(coded(503, 20503), ProviderError::Unreachable { maybe_done: true, .. }));
        assert!(matches!(fault(502, "<html>"), ProviderError::Unreachable { maybe_done: true, .. }));
        assert!(matches!(fault(404, "<html>not here</html>"), ProviderError::Nonsense { .. }));
        assert!(matches!(fault(302, ""), ProviderError::Nonsense { .. }));
        assert!(matches!(fault(400, "[]"), ProviderError::Nonsense { .. }));
    }
}
