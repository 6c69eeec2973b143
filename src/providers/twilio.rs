//! Twilio: what opens an account, and the two halves of the work: `rest` asks Twilio, `events` reads what Twilio
//! asks us. <https://www.twilio.com/docs/voice>, <https://www.twilio.com/docs/messaging>

mod errors;
mod events;
mod rest;
pub mod signature;
pub mod twiml;

use std::sync::Arc;

use futures::FutureExt as _;
use secrecy::SecretString;

use crate::providers::credentials::{Credentials, CredentialsFault, Field, http_url};
use crate::providers::provider::{
    Account, Answer, Capabilities, Decision, Dial, Dialled, Event, HistoryPage, HistoryQuery, Kind, LineState,
    OutgoingMessage, Proof, Provider, RecordingLink, Refusal, RemoteLine, SentMessage, Webhook, WebhookAnswer,
    WebhookRequest, WebhookSetting, Webhooks,
};
use crate::providers::rest::{Limits, ProviderError};
use crate::providers::twilio::rest::Api;
use crate::telephony::PhoneNumber;

/// Where Twilio itself answers; a region, an edge or a simulator has another host.
pub const API_BASE: &str = "https://api.twilio.com";

pub static KIND: Kind = Kind {
    name: "twilio",
    fields: &[
        Field {
            name: "account_sid",
            required: true,
            secret: false,
            about: "Account SID (Console, Account Info): AC and 32 hex digits",
            check: account_sid,
        },
        Field {
            name: "auth_token",
            required: true,
            secret: true,
            about: "Auth Token (Console, Account Info): signs the webhooks, and opens the API unless an API key is given",
            check: secret_text,
        },
        Field {
            name: "secondary_auth_token",
            required: false,
            secret: true,
            about: "The other Auth Token while the token is being changed: webhooks signed with either are believed",
            check: secret_text,
        },
        Field {
            name: "api_key",
            required: false,
            secret: false,
            about: "API key SID to use for the API instead of the Auth Token: SK and 32 hex digits",
            check: api_key,
        },
        Field { name: "api_secret", required: false, secret: true, about: "The secret of api_key", check: secret_text },
        Field {
            name: "messaging_service_sid",
            required: false,
            secret: false,
            about: "Messaging Service that picks the sender of messages: MG and 32 hex digits",
            check: messaging_service_sid,
        },
        Field {
            name: "api_base",
            required: false,
            secret: false,
            about: "Address of the API: a region (https://api.dublin.ie1.twilio.com), a compatible host or a simulator",
            check: http_url,
        },
    ],
    capabilities: Capabilities {
        dial: true,
        greeting: true,
        hang_up: true,
        transfer: true,
        history: true,
        messages: true,
        writes_webhooks: true,
        recordings: true,
        streams: true,
        log_decides: false,
    },
    proof: Proof::Signature { header: signature::HEADER },
    methods: &["POST"],
    open,
};

fn open(credentials: &Credentials) -> Result<Arc<dyn Provider>, CredentialsFault> {
    Ok(Arc::new(Twilio::open(credentials)?))
}

/// One Twilio account.
#[derive(Debug)]
pub struct Twilio {
    account_sid: String,
    /// The tokens that sign webhooks: a second one while they are being changed.
    tokens: Vec<SecretString>,
    api: Api,
}

impl Twilio {
    pub fn open(credentials: &Credentials) -> Result<Self, CredentialsFault> {
        Self::with_limits(credentials, Limits::default())
    }

    pub fn with_limits(credentials: &Credentials, limits: Limits) -> Result<Self, CredentialsFault> {
        let fault = |field: &str, problem: &str| CredentialsFault { field: field.into(), problem: problem.into() };
        let tokens: Vec<SecretString> = ["auth_token", "secondary_auth_token"]
            .into_iter()
            .filter_map(|name| credentials.secret(name).cloned())
            .collect();
        match (credentials.secret("api_key"), credentials.secret("api_secret")) {
            (Some(_), None) => return Err(fault("api_secret", "is missing: api_key needs its secret")),
            (None, Some(_)) => return Err(fault("api_key", "is missing: api_secret belongs to a key")),
            _ => {}
        }
        let api = Api::open(credentials, limits).map_err(|error| match error {
            ProviderError::Invalid { problem, .. } => fault("api_base", &problem),
            error => fault("api_base", &error.to_string()),
        })?;
        Ok(Self { account_sid: credentials.text("account_sid").to_owned(), tokens, api })
    }
}

impl Provider for Twilio {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn verify(&self) -> Answer<'_, Account> {
        self.api.verify().boxed()
    }

    fn lines(&self) -> Answer<'_, Vec<RemoteLine>> {
        self.api.lines().boxed()
    }

    fn inspect_line<'a>(&'a self, line: &'a str, hooks: &'a Webhooks) -> Answer<'a, LineState> {
        self.api.inspect_line(line, hooks).boxed()
    }

    fn prepare_line<'a>(&'a self, line: &'a str, hooks: &'a Webhooks) -> Answer<'a, LineState> {
        self.api.prepare_line(line, hooks).boxed()
    }

    fn restore_line<'a>(&'a self, line: &'a str, before: &'a [WebhookSetting]) -> Answer<'a, ()> {
        self.api.restore_line(line, before).boxed()
    }

    fn dial<'a>(&'a self, dial: &'a Dial) -> Answer<'a, Dialled> {
        self.api.dial(dial).boxed()
    }

    fn hang_up<'a>(&'a self, provider_call: &'a str) -> Answer<'a, ()> {
        self.api.hang_up(provider_call).boxed()
    }

    fn transfer<'a>(&'a self, provider_call: &'a str, to: &'a PhoneNumber) -> Answer<'a, ()> {
        self.api.transfer(provider_call, to).boxed()
    }

    fn history<'a>(&'a self, query: &'a HistoryQuery) -> Answer<'a, HistoryPage> {
        self.api.history(query).boxed()
    }

    fn send_message<'a>(&'a self, message: &'a OutgoingMessage) -> Answer<'a, SentMessage> {
        self.api.send_message(message).boxed()
    }

    fn recording<'a>(&'a self, provider_call: &'a str) -> Answer<'a, Option<RecordingLink>> {
        self.api.recording(provider_call).boxed()
    }

    fn read_webhook(&self, request: &WebhookRequest<'_>) -> Result<Webhook, Refusal> {
        events::read(&self.account_sid, &self.tokens, request)
    }

    fn answer(&self, event: &Event, decision: &Decision<'_>) -> WebhookAnswer {
        events::answer(event, decision)
    }
}

/// Twilio's ids: two capital letters and 32 hex digits.
pub(crate) fn is_sid(value: &str, prefix: &str) -> bool {
    value
        .strip_prefix(prefix)
        .is_some_and(|hex| hex.len() == 32 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// `+` and 7 to 15 digits (E.164).
pub(crate) fn is_e164(value: &str) -> bool {
    value.strip_prefix('+').is_some_and(|digits| {
        (7..=15).contains(&digits.len()) && !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit())
    })
}

fn account_sid(value: &str) -> Result<(), &'static str> {
    if is_sid(value, "AC") {
        Ok(())
    } else if value.starts_with("SK") {
        Err("is an API key: the Account SID begins with AC (Console, Account Info)")
    } else {
        Err("must be AC and 32 hex digits in lower case (Console, Account Info)")
    }
}

fn api_key(value: &str) -> Result<(), &'static str> {
    if is_sid(value, "SK") { Ok(()) } else { Err("must be SK and 32 hex digits (Console, API keys)") }
}

fn messaging_service_sid(value: &str) -> Result<(), &'static str> {
    if is_sid(value, "MG") { Ok(()) } else { Err("must be MG and 32 hex digits (Console, Messaging, Services)") }
}

fn secret_text(value: &str) -> Result<(), &'static str> {
    match value {
        sid if is_sid(sid, "AC") || is_sid(sid, "SK") => Err("is an id and no secret: take the token beside it"),
        text if text.len() > 256 => Err("must be at most 256 characters"),
        text if text.chars().any(|c| c.is_whitespace() || c.is_control()) => Err("must have no spaces in it"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SID: &str = "AC00000000000000000000000000000001";

    fn faults(values: &[(&str, &str)]) -> Vec<String> {
        let values = values.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        match Credentials::new(&KIND, values) {
            Ok(credentials) => Twilio::open(&credentials).err().iter().map(ToString::to_string).collect(),
            Err(faults) => faults.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn credentials_are_checked_before_they_are_tried() {
        let check = |values: &[(&str, &str)], expected: &str| {
            let faults = faults(values);
            assert!(faults.iter().any(|fault| fault.contains(expected)), "{values:?}: {faults:?}");
        };
        check(&[("auth_token", "t")], "account_sid: is missing");
        check(&[("account_sid", SID)], "auth_token: is missing");
        check(&[("account_sid", "AC1"), ("auth_token", "t")], "must be AC and 32 hex digits");
        check(&[("account_sid", &SID.to_uppercase().replace('0', "A")), ("auth_token", "t")], "in lower case");
        check(&[("account_sid", &SID.replace("AC", "SK")), ("auth_token", "t")], "is an API key");
        check(&[("account_sid", SID), ("auth_token", SID)], "is an id and no secret");
        check(&[("account_sid", SID), ("auth_token", "a b")], "no spaces");
        check(&[("account_sid", SID), ("auth_token", "t"), ("api_secret", "s")], "api_key: is missing");
        check(
            &[("account_sid", SID), ("auth_token", "t"), ("api_key", &SID.replace("AC", "SK"))],
            "api_secret: is missing",
        );
        check(&[("account_sid", SID), ("auth_token", "t"), ("messaging_service_sid", "MG1")], "must be MG");
        check(&[("account_sid", SID), ("auth_token", "t"), ("api_base", "ftp://x")], "must be an http or https");
        check(&[("account_sid", SID), ("auth_token", "t"), ("token", "x")], "has no such key");
        assert_eq!(faults(&[("account_sid", SID), ("auth_token", "t")]), Vec::<String>::new());
    }

    #[test]
    fn an_open_account_prints_no_secret() {
        let values = [
            ("account_sid", SID),
            ("auth_token", "first-secret"),
            ("secondary_auth_token", "second-secret"),
            ("api_key", "SK00000000000000000000000000000001"),
            ("api_secret", "third-secret"),
        ]
        .map(|(name, value)| (name.to_string(), value.to_string()));
        let credentials = Credentials::new(&KIND, values).unwrap();
        let printed = format!("{:?} {credentials:?}", Twilio::open(&credentials).unwrap());
        assert!(!printed.contains("-secret"), "{printed}");
    }
}
