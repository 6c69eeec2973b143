//! What Offhook needs of a telephone provider, and nothing of how one is spoken to: a folder under `providers/`
//! implements [`Provider`] and puts a [`Kind`] into [`crate::providers::KINDS`]. Answers and webhooks are brought into
//! one form here; what a provider cannot do is said by its [`Capabilities`], never by a call that fails.

use std::net::IpAddr;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::agent::variables::Fields;
use crate::providers::credentials::{Credentials, CredentialsFault, Field};
use crate::providers::rest::ProviderError;
use crate::telephony::{Direction, PhoneNumber};

/// A future of a provider's answer.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, ProviderError>>;

/// One sort of provider: what its credentials are made of, and how a client is made of them.
pub struct Kind {
    /// As in the set-up file: `twilio`.
    pub name: &'static str,
    /// What `credentials` may and must hold, in the order in which a form asks for them.
    pub fields: &'static [Field],
    pub capabilities: Capabilities,
    pub proof: Proof,
    /// How its webhooks come: `POST`, for some `GET` too.
    pub methods: &'static [&'static str],
    pub open: fn(&Credentials) -> Result<Arc<dyn Provider>, CredentialsFault>,
}

/// How this provider's webhooks show that they are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A signature in this header; the last part of the path is the subject: `/webhooks/{provider}/{integration}/voice`.
    /// One without the header is refused unread.
    Signature { header: &'static str },
    /// Nothing is signed: the last part of the path is a secret, and the client judges the rest.
    SecretPath,
    /// It posts nothing.
    NoWebhooks,
}

/// What an integration of this kind can do for its company.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Capabilities {
    pub dial: bool,
    /// A dialled call can begin with a greeting of its own.
    pub greeting: bool,
    pub hang_up: bool,
    pub transfer: bool,
    pub history: bool,
    pub messages: bool,
    /// We write the webhook's address at the provider; otherwise a person types it into the provider's cabinet.
    pub writes_webhooks: bool,
    pub recordings: bool,
    /// The answer to a call's webhook opens the stream of its audio; otherwise a PBX is told the line of ours to send the
    /// call to, where it comes by SIP.
    pub streams: bool,
    /// Webhooks are neither signed nor repeated: the call log has the last word, and is read from time to time.
    pub log_decides: bool,
}

/// One account with one provider. Cheap to call from many tasks; it keeps the provider's rate limit by itself.
pub trait Provider: Send + Sync {
    fn kind(&self) -> &'static Kind;

    /// Whether the credentials are good, and what they open.
    fn verify(&self) -> Answer<'_, Account>;

    /// The numbers, SIP accounts or internal numbers that could be lines.
    fn lines(&self) -> Answer<'_, Vec<RemoteLine>>;

    /// What the provider does with a call to this line now, and how that differs from what `hooks` asks.
    fn inspect_line<'a>(&'a self, _line: &'a str, _hooks: &'a Webhooks) -> Answer<'a, LineState> {
        unsupported("show a line's webhooks")
    }

    /// Makes the provider send this line's calls and messages to us. Gives what was there before, for `restore_line`.
    /// Writes nothing that is right already.
    fn prepare_line<'a>(&'a self, _line: &'a str, _hooks: &'a Webhooks) -> Answer<'a, LineState> {
        unsupported("write a line's webhooks")
    }

    /// Puts back what `prepare_line` found.
    fn restore_line<'a>(&'a self, _line: &'a str, _before: &'a [WebhookSetting]) -> Answer<'a, ()> {
        unsupported("write a line's webhooks")
    }

    /// Never tried twice: a call that was asked for and not confirmed may ring all the same.
    fn dial<'a>(&'a self, _dial: &'a Dial) -> Answer<'a, Dialled> {
        unsupported("make calls")
    }

    /// A call that is over already is a success.
    fn hang_up<'a>(&'a self, _provider_call: &'a str) -> Answer<'a, ()> {
        unsupported("hang up")
    }

    /// Hands the other side to `to`; our leg ends.
    fn transfer<'a>(&'a self, _provider_call: &'a str, _to: &'a PhoneNumber) -> Answer<'a, ()> {
        unsupported("transfer calls")
    }

    fn history<'a>(&'a self, _query: &'a HistoryQuery) -> Answer<'a, HistoryPage> {
        unsupported("give its call history")
    }

    /// Never tried twice.
    fn send_message<'a>(&'a self, _message: &'a OutgoingMessage) -> Answer<'a, SentMessage> {
        unsupported("send messages")
    }

    /// `None`: there is none, or not yet.
    fn recording<'a>(&'a self, _provider_call: &'a str) -> Answer<'a, Option<RecordingLink>> {
        unsupported("give recordings")
    }

    /// A number as this provider writes it in SIP headers, in the form that its webhooks and history have here.
    fn number(&self, written: &str) -> PhoneNumber {
        PhoneNumber::new(written)
    }

    /// What a person types into the provider's cabinet so that its webhooks come to `url`, one step a line. Empty where
    /// `prepare_line` writes them.
    fn instructions(&self, _url: &str) -> Vec<String> {
        Vec::new()
    }

    /// Whether a webhook is the provider's, and what it says. Pure: no network, no clock but the request's.
    /// Refuses before it reads, cheapest check first.
    fn read_webhook(&self, request: &WebhookRequest<'_>) -> Result<Webhook, Refusal>;

    /// The body that answers a webhook, once it is known what became of it. Pure.
    fn answer(&self, event: &Event, decision: &Decision<'_>) -> WebhookAnswer;
}

fn unsupported<'a, T: 'a>(what: &'static str) -> Answer<'a, T> {
    async move { Err(ProviderError::Unsupported { what }) }.boxed()
}

/// What the credentials open.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Account {
    /// As the provider calls it: a friendly name or a project number.
    pub name: String,
    /// Said to the person who verifies: a trial account, a suspended one, nobody online.
    pub warnings: Vec<String>,
}

/// A line as its provider lists it.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct RemoteLine {
    /// What `line.number` must hold: E.164, a SIP login or an internal number.
    pub number: String,
    /// The provider's own id of it, where it has one.
    pub id: Option<String>,
    pub name: String,
    pub voice: bool,
    pub sms: bool,
    /// SIP accounts and internal numbers: whether somebody is registered.
    pub online: Option<bool>,
    /// What would keep calls from reaching us: an application or a trunk that overrides the webhook.
    pub warnings: Vec<String>,
}

/// The addresses that a provider is to call, absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhooks {
    pub voice: String,
    pub status: String,
    pub sms: String,
}

/// One setting of a line at its provider: `VoiceUrl` = `https://…`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WebhookSetting {
    pub name: String,
    pub value: String,
}

/// A line's webhooks as they were found, and what should be there instead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct LineState {
    pub found: Vec<WebhookSetting>,
    /// Those of `found` that differ from what we want, with the value that we want. Empty: nothing has drifted.
    pub wanted: Vec<WebhookSetting>,
    pub warnings: Vec<String>,
}

/// A call to make.
#[derive(Clone, Debug, PartialEq)]
pub struct Dial {
    /// The line that calls: its number, SIP login or internal number.
    pub line: String,
    pub to: PhoneNumber,
    /// Where the provider asks what to do with the answered call, and where it tells how the call goes on.
    pub answer_url: String,
    pub status_url: String,
    /// Whether to tell a person from an answering machine, where the provider can.
    pub detect_machine: bool,
    /// How long it may ring.
    pub ring_s: u32,
    pub max_call_s: u32,
}

/// A call that the provider has taken on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialled {
    /// `None`: this provider gives none; the call is matched by number and time.
    pub provider_call: Option<String>,
}

/// Which calls of the past. Absent fields do not filter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HistoryQuery {
    /// Calls with this number on either side.
    pub phone: Option<PhoneNumber>,
    pub status: Option<CallOutcome>,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    pub limit: usize,
    /// From `HistoryPage::next`.
    pub cursor: Option<String>,
}

impl HistoryQuery {
    /// For what a provider cannot filter by itself. A call without a known start is in every period.
    pub fn takes(&self, call: &PastCall) -> bool {
        let digits = |number: &PhoneNumber| number.as_str().trim_start_matches('+').to_owned();
        let of_phone = self.phone.as_ref().is_none_or(|phone| {
            let phone = digits(phone);
            digits(&call.from) == phone || digits(&call.to) == phone
        });
        let after = self.from.is_none_or(|from| call.started.is_none_or(|started| started >= from));
        let before = self.to.is_none_or(|to| call.started.is_none_or(|started| started <= to));
        of_phone && after && before && self.status.is_none_or(|status| status == call.outcome)
    }
}

/// Newest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct HistoryPage {
    pub calls: Vec<PastCall>,
    pub next: Option<String>,
}

/// A call as its provider remembers it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PastCall {
    pub provider_call: String,
    pub direction: Direction,
    pub from: PhoneNumber,
    pub to: PhoneNumber,
    pub outcome: CallOutcome,
    /// The provider's own word for the outcome.
    pub status: String,
    pub started: Option<Timestamp>,
    /// Talk, without ringing.
    pub talk_s: Option<u32>,
    pub ring_s: Option<u32>,
    /// Who of the company talked: a SIP login or an internal number.
    pub answered_by: Option<String>,
    /// `None`: the provider's list does not say.
    pub recording: Option<bool>,
}

/// What became of a call, in words that all providers share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CallOutcome {
    /// Still ringing or talking.
    Running,
    Answered,
    NoAnswer,
    Busy,
    Failed,
    Canceled,
    Voicemail,
}

impl CallOutcome {
    pub const ALL: [CallOutcome; 7] = [
        CallOutcome::Running,
        CallOutcome::Answered,
        CallOutcome::NoAnswer,
        CallOutcome::Busy,
        CallOutcome::Failed,
        CallOutcome::Canceled,
        CallOutcome::Voicemail,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            CallOutcome::Running => "running",
            CallOutcome::Answered => "answered",
            CallOutcome::NoAnswer => "no_answer",
            CallOutcome::Busy => "busy",
            CallOutcome::Failed => "failed",
            CallOutcome::Canceled => "canceled",
            CallOutcome::Voicemail => "voicemail",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct OutgoingMessage {
    /// `None`: the provider's client picks the sender (same country, SMS-capable, a messaging service if one is set).
    pub from: Option<PhoneNumber>,
    pub to: PhoneNumber,
    pub text: String,
    pub status_url: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentMessage {
    pub provider_message: String,
    pub from: PhoneNumber,
    pub status: String,
}

/// Prints neither its address nor its key.
#[derive(Clone)]
pub struct RecordingLink {
    /// Carries a token: a secret.
    pub url: String,
    /// `Authorization`, where the link alone does not open it.
    pub authorization: Option<SecretString>,
    pub expires: Option<Timestamp>,
}

impl std::fmt::Debug for RecordingLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordingLink").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// A webhook as it came in, before anybody believed it.
#[derive(Clone, Copy, Debug, Default)]
pub struct WebhookRequest<'a> {
    /// The last part of the path where the provider has one address per subject: `voice`, `status`, `sms`, `stream`.
    pub route: &'a str,
    pub method: &'a str,
    /// Absolute, as the client was told to request it: public URL, path and query.
    pub url: &'a str,
    pub query: &'a str,
    pub content_type: Option<&'a str>,
    /// The header of [`Proof::Signature`].
    pub signature: Option<&'a str>,
    /// The true client, seen through `server.trusted_proxies`.
    pub client: Option<IpAddr>,
    /// `security.binotel_allow_any`: the operator of this server has switched allowlists of addresses off.
    pub any_address: bool,
    pub body: &'a [u8],
}

/// A webhook that is believed.
#[derive(Clone, Debug, PartialEq)]
pub struct Webhook {
    pub event: Event,
    /// The same for every delivery of the same thing, so that it acts once.
    pub once: Option<String>,
}

/// What a provider tells or asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// What is to be done with this call? Answered at once, from memory.
    CallOffered(CallNews),
    /// The media of an answered call is over; what now?
    CallContinues(CallNews),
    /// A person to whom a call is handed has answered, and is not connected yet: what are they to hear?
    PersonAnswers(CallNews),
    /// The person is gone again, or did not come; what now?
    TransferOver {
        news: CallNews,
        outcome: CallOutcome,
    },
    /// How a call goes on.
    CallProgressed {
        news: CallNews,
        state: CallState,
    },
    /// The whole truth of a call that is over.
    CallCompleted(PastCall),
    MessageReceived(IncomingMessage),
    /// `error`: the provider's code and what it means.
    MessageStatus {
        provider_message: String,
        status: String,
        error: Option<String>,
    },
    /// Of a media stream; `failure` says why it failed.
    StreamStatus {
        provider_call: String,
        event: String,
        failure: Option<String>,
    },
    /// Genuine and of no use to us.
    Ignored {
        what: String,
    },
}

/// As much as a webhook says of a call; the rest is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CallNews {
    pub provider_call: Option<String>,
    pub direction: Option<Direction>,
    pub from: PhoneNumber,
    pub to: PhoneNumber,
    /// The line of ours that it concerns, as `line.number` has it.
    pub line: Option<String>,
    /// `human`, `machine_start`, … where it was asked for.
    pub answered_by: Option<String>,
    /// When the provider says that it happened.
    pub at: Option<Timestamp>,
    /// What a workflow may know of it, in the provider's own names: of webhooks that offer or announce a call.
    #[serde(default, skip_serializing_if = "Fields::is_empty")]
    pub fields: Fields,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum CallState {
    Ringing,
    /// By a SIP login or internal number, where it is known.
    Answered {
        by: Option<String>,
    },
    Transferred {
        to: String,
    },
    Ended {
        outcome: CallOutcome,
        status: String,
        talk_s: Option<u32>,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IncomingMessage {
    pub provider_message: String,
    pub from: PhoneNumber,
    pub to: PhoneNumber,
    pub text: String,
    pub media: Vec<String>,
}

/// What Offhook wants of the provider in answer to a webhook.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decision<'a> {
    /// Connect the call's audio to us.
    Talk {
        stream_url: &'a str,
        status_url: &'a str,
        after_url: &'a str,
        call_id: &'a str,
    },
    /// Send the call to this line of ours (a SIP login, an internal number's scenario).
    Route {
        to: &'a str,
    },
    /// The number belongs to nobody here.
    NotInService,
    /// No room for another call.
    Busy,
    /// Say this and hang up, in the provider's own voice.
    Say {
        text: &'a str,
        language: &'a str,
    },
    /// Hand the call to a person. `note_url`: asked what the person is to hear first. `over_url`: asked what is to be done
    /// when the person is gone again, or did not come.
    Transfer {
        to: &'a str,
        from: &'a str,
        note_url: Option<&'a str>,
        over_url: Option<&'a str>,
    },
    HangUp,
    /// Thanks, noted.
    Noted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookAnswer {
    pub content_type: &'static str,
    pub body: String,
}

/// Why a webhook is not believed. The label is stable: metrics and the audit log are keyed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// No signature where one must be.
    Unsigned,
    Forged,
    WrongAccount,
    /// Not from an address of the provider's.
    WrongAddress,
    WrongType,
    /// Lacks what every genuine one has, or holds what cannot be.
    Malformed,
}

impl Refusal {
    pub const fn label(self) -> &'static str {
        match self {
            Refusal::Unsigned => "unsigned",
            Refusal::Forged => "forged",
            Refusal::WrongAccount => "wrong_account",
            Refusal::WrongAddress => "wrong_address",
            Refusal::WrongType => "not_a_form",
            Refusal::Malformed => "malformed",
        }
    }
}
