//! Binotel, a cloud PBX: internal numbers as lines, calls made, ended and handed over by REST, webhooks that ask where to
//! send a call and tell how it went. What is said over SIP is no part of this.

mod addresses;
mod events;
mod loose;
mod numbers;
mod rest;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use serde_json::Value;

pub use self::addresses::default_list;

use self::addresses::Allowed;
use self::events::{Reader, Routes};
use self::loose::Loose;
use self::numbers::to_binotel;
use self::rest::{Api, Lane};
use crate::clock;
use crate::providers::credentials::{Credentials, CredentialsFault, Field, digits, http_url, milliseconds, token};
use crate::providers::provider::{
    Account, Answer, CallOutcome, Capabilities, Decision, Dial, Dialled, Event, HistoryPage, HistoryQuery, Kind,
    PastCall, Proof, Provider, RecordingLink, Refusal, RemoteLine, Webhook, WebhookAnswer, WebhookRequest,
};
use crate::providers::rest::ProviderError;
use crate::providers::sip::{self, SipSettings};
use crate::telephony::PhoneNumber;

const API: &str = "https://api.binotel.com";
/// Clients space their requests so; Binotel's own number is not published.
const GAP: Duration = Duration::from_millis(3_500);
/// `list-of-calls-for-period` takes a day at most.
const WINDOW_S: i64 = 24 * 60 * 60;
/// Requests of statistics that cost no wait: a page of history asks so often, and what is left comes with the next.
const PAGE_REQUESTS: usize = 5;
const PAGE_CALLS: usize = 1_000;
/// History without a beginning goes back so far.
const HISTORY_S: i64 = 30 * WINDOW_S;
/// A recording's link lives a quarter of an hour.
const LINK_LIFE: SignedDuration = SignedDuration::from_mins(15);

pub static KIND: Kind = Kind {
    name: "binotel",
    fields: &[
        Field { name: "key", required: true, secret: true, about: "API key (from support@binotel.ua)", check: token },
        Field { name: "secret", required: true, secret: true, about: "API secret, given with the key", check: token },
        Field {
            name: "company_id",
            required: false,
            secret: false,
            about: "your companyID at Binotel: with it, webhooks of other companies are refused",
            check: digits,
        },
        Field {
            name: "dial_method",
            required: false,
            secret: false,
            about: "how calls are made: internal (default) rings the line first, incoming calls the client as if it had called pbx_number",
            check: dial_method,
        },
        Field {
            name: "pbx_number",
            required: false,
            secret: false,
            about: "public number that outgoing calls show, such as 0441234567",
            check: digits,
        },
        Field {
            name: "playback_waiting",
            required: false,
            secret: false,
            about: "whether the first side hears a wait prompt: FALSE (default) or TRUE",
            check: true_or_false,
        },
        Field {
            name: "routes",
            required: false,
            secret: false,
            about: "scenarios (settings/list-of-routes) that lead to the agent: 15 for every line, 901=15 for one, with commas",
            check: routes,
        },
        Field {
            name: "allowed_addresses",
            required: false,
            secret: false,
            about: "addresses and networks that webhooks may come from, with commas; default stands for Binotel's own list",
            check: allowed_addresses,
        },
        Field {
            name: "stats_gap_ms",
            required: false,
            secret: false,
            about: "time between two requests of statistics after five in a minute, in milliseconds (default 3500)",
            check: milliseconds,
        },
        Field { name: "api_base", required: false, secret: false, about: "address of the API", check: http_url },
        sip::REGISTRAR,
        sip::USER,
        sip::PASSWORD,
        sip::TRANSPORT,
        sip::PEERS,
    ],
    capabilities: Capabilities {
        dial: true,
        greeting: false,
        hang_up: true,
        transfer: true,
        history: true,
        messages: false,
        writes_webhooks: false,
        recordings: true,
        streams: false,
        log_decides: false,
    },
    proof: Proof::SecretPath,
    methods: &["POST"],
    open,
};

fn open(credentials: &Credentials) -> Result<Arc<dyn Provider>, CredentialsFault> {
    let fault = |field: &str, problem: &str| CredentialsFault { field: field.into(), problem: problem.into() };
    SipSettings::read(credentials)?;
    let secret = |name: &str| credentials.secret(name).cloned().unwrap_or_else(|| SecretString::from(""));
    let base = match credentials.text("api_base") {
        "" => API,
        base => base,
    };
    let gap = credentials.text("stats_gap_ms").parse().map_or(GAP, Duration::from_millis);
    let api =
        Api::new(base, secret("key"), secret("secret"), gap).map_err(|error| fault("api_base", &error.to_string()))?;
    let incoming = credentials.text("dial_method") == "incoming";
    let pbx_number = credentials.text("pbx_number").to_owned();
    if incoming && pbx_number.is_empty() {
        return Err(fault("pbx_number", "is missing: the method incoming needs the number that the call comes in on"));
    }
    let allowed = Allowed::read(credentials.list("allowed_addresses"))
        .ok_or_else(|| fault("allowed_addresses", ADDRESSES_PROBLEM))?;
    let routes = Routes::read(credentials.list("routes")).ok_or_else(|| fault("routes", ROUTES_PROBLEM))?;
    let reader = Reader { allowed, company: credentials.text("company_id").to_owned(), routes };
    let wait_prompt = credentials.text("playback_waiting") == "TRUE";
    Ok(Arc::new(Binotel { api, reader, incoming, pbx_number, wait_prompt }))
}

struct Binotel {
    api: Api,
    reader: Reader,
    incoming: bool,
    pbx_number: String,
    wait_prompt: bool,
}

impl Binotel {
    /// Without what the list holds besides: logins and passwords stay in the answer, which is dropped here.
    async fn employees(&self) -> Result<Vec<RemoteLine>, ProviderError> {
        let answer = self.api.ask(Lane::Settings, "settings/list-of-employees", &[]).await?;
        let mut lines: Vec<RemoteLine> = Vec::new();
        for (_, employee) in answer.get("listOfEmployees").entries() {
            let endpoint = employee.get("endpointData");
            // One object, or a map of them by internal number.
            let endpoints = match endpoint.get("internalNumber").is_nothing() {
                false => vec![("", endpoint)],
                true => endpoint.entries(),
            };
            for (key, endpoint) in endpoints {
                let number = match endpoint.get("internalNumber").text() {
                    "" if endpoint.get("login").is_nothing() => continue,
                    "" => key,
                    number => number,
                };
                if lines.iter().any(|line| line.number == number) {
                    continue;
                }
                let presence = employee.get("presenceState").text();
                let warnings = match presence {
                    "inactive" | "break in work" => vec![format!("the employee is marked \"{presence}\" at Binotel")],
                    _ => Vec::new(),
                };
                let id = employee.get("employeeID").text();
                lines.push(RemoteLine {
                    number: number.to_owned(),
                    id: (!id.is_empty()).then(|| id.to_owned()),
                    name: employee.get("name").text().to_owned(),
                    voice: true,
                    sms: false,
                    // The keys of its status are not documented.
                    online: None,
                    warnings,
                });
            }
        }
        Ok(lines)
    }

    async fn read_account(&self) -> Result<Account, ProviderError> {
        let lines = self.employees().await?;
        let mut warnings = Vec::new();
        if lines.is_empty() {
            warnings.push("the company has no internal number: have one made for the agent".to_owned());
        }
        let mut name = format!("Binotel, {} internal numbers", lines.len());
        if self.reader.company.is_empty() {
            // Statistics may be refused for many reasons that say nothing of the key.
            let today = self.api.ask(Lane::Stats, "stats/list-of-calls-per-day", &[]).await.unwrap_or_default();
            let calls = today.get("callDetails").entries();
            let company = calls.first().map(|(_, call)| call.get("companyID").text()).unwrap_or_default();
            let known = match company {
                "" => String::new(),
                company => format!(" to {company}, which today's calls have"),
            };
            warnings
                .push(format!("company_id is not set: set it{known}, so that other companies' webhooks are refused"));
        } else {
            name = format!("Binotel company {}, {} internal numbers", self.reader.company, lines.len());
        }
        Ok(Account { name, warnings })
    }

    async fn make_call(&self, dial: &Dial) -> Result<Dialled, ProviderError> {
        let invalid = |field: &'static str, problem: &str| ProviderError::Invalid { field, problem: problem.into() };
        let client = to_binotel(dial.to.as_str())
            .filter(|number| number.len() >= 7)
            .ok_or_else(|| invalid("to", "must be a number such as +380501234567"))?;
        let answer = if self.incoming {
            let params = [("externalNumber", client.into()), ("pbxNumber", self.pbx_number.clone().into())];
            self.api.ask(Lane::Calls, "calls/external-number-to-incoming-call", &params).await?
        } else {
            let line =
                to_binotel(&dial.line).ok_or_else(|| invalid("line", "must be an internal number such as 901"))?;
            let mut params = vec![
                ("internalNumber", Value::from(line)),
                ("externalNumber", client.into()),
                ("callTimeToExt", dial.ring_s.into()),
                ("limitCallTime", dial.max_call_s.into()),
                ("playbackWaiting", if self.wait_prompt { "TRUE" } else { "FALSE" }.into()),
                // Else the answer waits until somebody picks up.
                ("async", "TRUE".into()),
            ];
            if !self.pbx_number.is_empty() {
                params.push(("pbxNumber", self.pbx_number.clone().into()));
            }
            self.api.ask(Lane::Calls, "calls/internal-number-to-external-number", &params).await?
        };
        let id = answer.get("generalCallID").text();
        Ok(Dialled { provider_call: (!id.is_empty()).then(|| id.to_owned()) })
    }

    async fn end_call(&self, call: &str) -> Result<(), ProviderError> {
        let call = call_id(call)?;
        match self.api.ask(Lane::Calls, "calls/hangup-call", &[("generalCallID", call.into())]).await {
            // Which code a call that is over gives is not documented: its details say whether it is.
            Err(refused @ ProviderError::Refused { .. }) => match self.details(call).await {
                Ok(Some(past)) if past.outcome != CallOutcome::Running => Ok(()),
                _ => Err(refused),
            },
            answer => answer.map(drop),
        }
    }

    async fn hand_over(&self, call: &str, to: &PhoneNumber) -> Result<(), ProviderError> {
        let to = to_binotel(to.as_str()).ok_or_else(|| ProviderError::Invalid {
            field: "to",
            problem: "must be a number such as +380501234567 or an internal one such as 912".into(),
        })?;
        let params = [("generalCallID", call_id(call)?.into()), ("externalNumber", to.into())];
        self.api.ask(Lane::Calls, "calls/attended-call-transfer", &params).await.map(drop)
    }

    async fn details(&self, call: &str) -> Result<Option<PastCall>, ProviderError> {
        let answer = self.api.ask(Lane::Stats, "stats/call-details", &[("generalCallID", call.into())]).await?;
        Ok(calls(&answer).into_iter().find(|past| past.provider_call == call))
    }

    async fn read_history(&self, query: &HistoryQuery) -> Result<HistoryPage, ProviderError> {
        let limit = query.limit.clamp(1, PAGE_CALLS);
        let start = match &query.cursor {
            Some(cursor) => Place::parse(cursor)
                .ok_or_else(|| ProviderError::Invalid { field: "cursor", problem: "is none of ours".into() })?,
            None => {
                let to = query.to.unwrap_or_else(clock::now).as_second();
                let floor_s = query.from.map_or(to.saturating_sub(HISTORY_S), Timestamp::as_second);
                Place { upper_s: to.saturating_add(1), floor_s, id: u64::MAX }
            }
        };
        // A number's whole history comes in one answer, however old; a period's comes by the day.
        let (mut found, left) = match &query.phone {
            Some(phone) => (self.of_number(phone).await?, None),
            None => self.of_period(&start, query, limit).await?,
        };
        // A number is asked for all its calls: only a beginning that was asked for leaves some out.
        let floor_s = match (&query.phone, query.from) {
            (Some(_), None) => i64::MIN,
            _ => start.floor_s,
        };
        found.retain(|call| {
            let place = place(call);
            place < (start.upper_s, start.id) && place.0 >= floor_s && query.takes(call)
        });
        found.sort_by_key(|call| std::cmp::Reverse(place(call)));
        found.dedup_by(|a, b| a.provider_call == b.provider_call);
        let next = if found.len() > limit {
            found.truncate(limit);
            found.last().map(|call| {
                let (upper_s, id) = place(call);
                Place { upper_s, floor_s: start.floor_s, id }
            })
        } else {
            left
        };
        Ok(HistoryPage { calls: found, next: next.map(|place| place.to_string()) })
    }

    async fn of_number(&self, phone: &PhoneNumber) -> Result<Vec<PastCall>, ProviderError> {
        let number = to_binotel(phone.as_str()).ok_or_else(|| ProviderError::Invalid {
            field: "phone",
            problem: "must be a number such as +380501234567".into(),
        })?;
        let params = [("externalNumbers", Value::from(vec![number]))];
        Ok(calls(&self.api.ask(Lane::Stats, "stats/history-by-external-number", &params).await?))
    }

    /// From the newest day back, and where to go on.
    async fn of_period(
        &self,
        start: &Place,
        query: &HistoryQuery,
        limit: usize,
    ) -> Result<(Vec<PastCall>, Option<Place>), ProviderError> {
        let mut found = Vec::new();
        let mut high = start.upper_s;
        for _ in 0..PAGE_REQUESTS {
            if high <= start.floor_s {
                return Ok((found, None));
            }
            let low = high.saturating_sub(WINDOW_S).max(start.floor_s);
            let params = [("startTime", low.into()), ("stopTime", high.into())];
            let answer = self.api.ask(Lane::Stats, "stats/list-of-calls-for-period", &params).await?;
            found.extend(calls(&answer).into_iter().filter(|call| query.takes(call)));
            high = low;
            if found.len() > limit {
                break;
            }
        }
        let left = (high > start.floor_s).then_some(Place { upper_s: high, floor_s: start.floor_s, id: 0 });
        Ok((found, left))
    }

    async fn find_recording(&self, call: &str) -> Result<Option<RecordingLink>, ProviderError> {
        let params = [("generalCallID", call_id(call)?.into())];
        match self.api.ask(Lane::Stats, "stats/call-record", &params).await {
            Ok(answer) => {
                let url = answer.get("url").text().to_owned();
                let expires = clock::now().checked_add(LINK_LIFE).ok();
                Ok(url.starts_with("http").then_some(RecordingLink { url, authorization: None, expires }))
            }
            // A file comes some two minutes after the call; what "no record" is coded with is not documented.
            Err(ProviderError::Refused { code, .. }) if code != "102" && code != "120" => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Provider for Binotel {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn verify(&self) -> Answer<'_, Account> {
        self.read_account().boxed()
    }

    fn lines(&self) -> Answer<'_, Vec<RemoteLine>> {
        self.employees().boxed()
    }

    fn dial<'a>(&'a self, dial: &'a Dial) -> Answer<'a, Dialled> {
        self.make_call(dial).boxed()
    }

    fn hang_up<'a>(&'a self, provider_call: &'a str) -> Answer<'a, ()> {
        self.end_call(provider_call).boxed()
    }

    fn transfer<'a>(&'a self, provider_call: &'a str, to: &'a PhoneNumber) -> Answer<'a, ()> {
        self.hand_over(provider_call, to).boxed()
    }

    fn history<'a>(&'a self, query: &'a HistoryQuery) -> Answer<'a, HistoryPage> {
        self.read_history(query).boxed()
    }

    fn number(&self, written: &str) -> PhoneNumber {
        numbers::from_binotel(written)
    }

    fn recording<'a>(&'a self, provider_call: &'a str) -> Answer<'a, Option<RecordingLink>> {
        self.find_recording(provider_call).boxed()
    }

    fn instructions(&self, url: &str) -> Vec<String> {
        vec![
            format!("Ask support@binotel.ua to send API CALL SETTINGS, API CALL COMPLETED and API PUSH to {url}."),
            "Have them open the API for this server's address if they ask for one.".to_owned(),
        ]
    }

    fn read_webhook(&self, request: &WebhookRequest<'_>) -> Result<Webhook, Refusal> {
        self.reader.read(request)
    }

    fn answer(&self, event: &Event, decision: &Decision<'_>) -> WebhookAnswer {
        self.reader.answer(event, decision)
    }
}

/// Where a page of history ends: calls before (`upper_s`, `id`) and not before `floor_s` are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    upper_s: i64,
    floor_s: i64,
    id: u64,
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('~');
        let place = Self {
            upper_s: parts.next()?.parse().ok()?,
            floor_s: parts.next()?.parse().ok()?,
            id: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(place)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}~{}~{}", self.upper_s, self.floor_s, self.id)
    }
}

/// Calls are numbered as they come.
fn place(call: &PastCall) -> (i64, u64) {
    (call.started.map_or(0, Timestamp::as_second), call.provider_call.parse().unwrap_or(0))
}

/// Text messages stand among the calls and are none.
fn calls(answer: &Loose) -> Vec<PastCall> {
    let rows = answer.get("callDetails").entries();
    rows.iter().filter_map(|(_, row)| events::past_call(row)).filter(|call| !events::is_message(&call.status)).collect()
}

fn call_id(text: &str) -> Result<&str, ProviderError> {
    if events::is_id(text) { Ok(text) } else { Err(ProviderError::NotFound { what: "call with this id".into() }) }
}

fn dial_method(value: &str) -> Result<(), &'static str> {
    if matches!(value, "internal" | "incoming") { Ok(()) } else { Err("must be internal or incoming") }
}

fn true_or_false(value: &str) -> Result<(), &'static str> {
    if matches!(value, "TRUE" | "FALSE") { Ok(()) } else { Err("must be TRUE or FALSE") }
}

const ROUTES_PROBLEM: &str = "must be ids of scenarios such as 15, or of one line such as 901=15, with commas";
const ADDRESSES_PROBLEM: &str = "must be addresses or networks with commas, such as default, 203.0.113.0/24";

fn routes(value: &str) -> Result<(), &'static str> {
    let items = value.split(',').map(str::trim).filter(|item| !item.is_empty());
    Routes::read(items).map(drop).ok_or(ROUTES_PROBLEM)
}

fn allowed_addresses(value: &str) -> Result<(), &'static str> {
    let items = value.split(',').map(str::trim).filter(|item| !item.is_empty());
    Allowed::read(items).map(drop).ok_or(ADDRESSES_PROBLEM)
}
