//! Ringostat, a call-tracking PBX: SIP accounts as lines, the call log, calls by callback, webhooks whose parameters
//! each customer names. A live call is controlled by SIP alone: Ringostat has no API to hang up or to transfer.

mod events;
mod parameters;
mod rest;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;

pub use self::events::OCCASIONS;
pub use self::parameters::{Entry, Parameter, TABLE};

use self::events::{Occasion, Reader};
use self::parameters::{Names, field};
use self::rest::{Api, LOG_ROWS, Rows};
use crate::clock;
use crate::providers::credentials::{Credentials, CredentialsFault, Field, any, digits, http_url, milliseconds, token};
use crate::providers::provider::{
    Account, Answer, CallOutcome, Capabilities, Decision, Dial, Dialled, Event, HistoryPage, HistoryQuery, Kind,
    PastCall, Proof, Provider, RecordingLink, Refusal, RemoteLine, Webhook, WebhookAnswer, WebhookRequest,
};
use crate::providers::rest::ProviderError;
use crate::providers::sip::{self, SipSettings};
use crate::telephony::PhoneNumber;

const API: &str = "https://api.ringostat.net";
const ZONE: &str = "Europe/Kyiv";
/// Kyiv's rules, for machines without a time zone database.
const ZONE_RULES: &str = "EET-2EEST,M3.5.0/3,M10.5.0/4";
/// No rate is documented: one request a second is polite.
const GAP: Duration = Duration::from_secs(1);
/// A page of history asks so often at most; what is left comes with the next page.
const PAGE_REQUESTS: usize = 8;
const PAGE_CALLS: usize = 1_000;
/// History without a beginning goes back so far.
const HISTORY: SignedDuration = SignedDuration::from_hours(30 * 24);
const DAY_S: i64 = 24 * 60 * 60;
/// Shortest and longest window of the log, s: a minute never has [`LOG_ROWS`] calls, and eight days are asked for only
/// where a day has few.
const WIDTHS_S: (i64, i64) = (60, 8 * DAY_S);

pub static KIND: Kind = Kind {
    name: "ringostat",
    fields: &[
        Field {
            name: "auth_key",
            required: true,
            secret: true,
            about: "Auth-key (cabinet, Integration, Ringostat API)",
            check: token,
        },
        Field {
            name: "project_id",
            required: true,
            secret: false,
            about: "project id (a number in the cabinet's address)",
            check: digits,
        },
        Field {
            name: "time_zone",
            required: false,
            secret: false,
            about: "the project's time zone: Europe/Kyiv (default), another name, or an offset such as +02:00",
            check: any,
        },
        Field {
            name: "callback_method",
            required: false,
            secret: false,
            about: "how calls are made: external (default) or outward_call",
            check: callback_method,
        },
        Field {
            name: "manager_dst",
            required: false,
            secret: false,
            about: "who is called first with external: 0 (default) our side, 1 the client; try it with one call",
            check: zero_or_one,
        },
        Field {
            name: "callee_type",
            required: false,
            secret: false,
            about: "what our side is with external: default, sip_account or scheme",
            check: callee_type,
        },
        Field {
            name: "outward_extension",
            required: false,
            secret: false,
            about: "the project's number that is connected as incoming, for outward_call",
            check: digits,
        },
        Field {
            name: "route_key",
            required: false,
            secret: false,
            about: "JSON key of a webhook number's answer; without it the answer is a plain body",
            check: any,
        },
        Field {
            name: "request_gap_ms",
            required: false,
            secret: false,
            about: "shortest time between two requests in milliseconds (default 1000)",
            check: milliseconds,
        },
        Field { name: "api_base", required: false, secret: false, about: "address of the API", check: http_url },
        sip::REGISTRAR,
        sip::USER,
        sip::PASSWORD,
        sip::TRANSPORT,
        sip::PEERS,
        field(0),
        field(1),
        field(2),
        field(3),
        field(4),
        field(5),
        field(6),
        field(7),
        field(8),
        field(9),
        field(10),
        field(11),
        field(12),
        field(13),
        field(14),
        field(15),
    ],
    capabilities: Capabilities {
        dial: true,
        greeting: false,
        hang_up: false,
        transfer: false,
        history: true,
        messages: false,
        writes_webhooks: false,
        recordings: true,
        streams: false,
        log_decides: true,
    },
    proof: Proof::SecretPath,
    methods: &["GET", "POST"],
    open,
};

fn open(credentials: &Credentials) -> Result<Arc<dyn Provider>, CredentialsFault> {
    let fault = |field: &str, problem: &str| CredentialsFault { field: field.into(), problem: problem.into() };
    SipSettings::read(credentials)?;
    let text = |name: &str, default: &'static str| match credentials.text(name) {
        "" => default.to_owned(),
        value => value.to_owned(),
    };
    let zone = zone(&text("time_zone", ZONE)).ok_or_else(|| {
        fault("time_zone", "is not in this machine's time zone database: correct it, or write an offset such as +02:00")
    })?;
    let callback = match credentials.text("callback_method") {
        "outward_call" => match credentials.text("outward_extension") {
            "" => {
                return Err(fault("outward_extension", "is missing: outward_call calls from a number of the project"));
            }
            extension => Callback::Outward { extension: extension.to_owned() },
        },
        _ => Callback::External {
            callee_type: text("callee_type", "default"),
            manager_dst: u8::from(credentials.text("manager_dst") == "1"),
        },
    };
    let gap = credentials.text("request_gap_ms").parse().map_or(GAP, Duration::from_millis);
    let project = credentials.text("project_id").to_owned();
    let key = credentials.secret("auth_key").cloned().unwrap_or_else(|| SecretString::from(""));
    let api = Api::new(&text("api_base", API), key, project.clone(), zone.clone(), gap)
        .map_err(|error| fault("api_base", &error.to_string()))?;
    let reader =
        Reader { names: Names::read(credentials), project, zone, route_key: credentials.text("route_key").to_owned() };
    Ok(Arc::new(Ringostat { api, reader, callback }))
}

fn zone(name: &str) -> Option<TimeZone> {
    if name.starts_with(['+', '-']) {
        // The moment at which it is midnight of 1970 there.
        let midnight: Timestamp = format!("1970-01-01T00:00:00{name}").parse().ok()?;
        let seconds = i32::try_from(midnight.as_second().checked_neg()?).ok()?;
        return Some(TimeZone::fixed(jiff::tz::Offset::from_seconds(seconds).ok()?));
    }
    match TimeZone::get(name) {
        Ok(zone) => Some(zone),
        Err(_) if name == ZONE => TimeZone::posix(ZONE_RULES).ok(),
        Err(_) => None,
    }
}

/// How calls are made; each project has to try which of the two suits its schemes.
#[derive(Clone, Debug)]
enum Callback {
    External { callee_type: String, manager_dst: u8 },
    Outward { extension: String },
}

struct Ringostat {
    api: Api,
    reader: Reader,
    callback: Callback,
}

impl Ringostat {
    async fn read_account(&self) -> Result<Account, ProviderError> {
        let online: BTreeSet<String> = self.api.online().await?.into_iter().collect();
        let staff = self.api.staff().await?;
        let accounts: BTreeSet<&str> =
            staff.iter().flat_map(|person| &person.logins).map(|(login, _)| login.as_str()).collect();
        let mut warnings = Vec::new();
        if accounts.is_empty() && online.is_empty() {
            warnings.push("the project has no SIP account: create an employee with one for the agent".to_owned());
        } else if !accounts.iter().any(|login| online.contains(*login)) {
            warnings.push("none of the project's SIP accounts is online: nobody would take a call".to_owned());
        }
        Ok(Account { name: format!("Ringostat project {}", self.reader.project), warnings })
    }

    async fn read_lines(&self) -> Result<Vec<RemoteLine>, ProviderError> {
        let online: BTreeSet<String> = self.api.online().await?.into_iter().collect();
        let mut lines: Vec<RemoteLine> = Vec::new();
        for person in self.api.staff().await? {
            for (login, forwarded) in person.logins {
                if lines.iter().any(|line| line.number == login) {
                    continue;
                }
                let name = match person.extension.as_str() {
                    "" => person.name.clone(),
                    extension => format!("{} ({extension})", person.name),
                };
                let warnings = match forwarded {
                    true => Vec::new(),
                    false => {
                        vec!["calls are not forwarded to this account: enable it in the employee's card".to_owned()]
                    }
                };
                lines.push(RemoteLine {
                    online: Some(online.contains(&login)),
                    number: login,
                    id: (!person.id.is_empty()).then(|| person.id.clone()),
                    name,
                    voice: true,
                    sms: false,
                    warnings,
                });
            }
        }
        // Accounts without an employee are known by being online.
        for login in online {
            if !lines.iter().any(|line| line.number == login) {
                lines.push(RemoteLine {
                    name: login.clone(),
                    number: login,
                    id: None,
                    voice: true,
                    sms: false,
                    online: Some(true),
                    warnings: Vec::new(),
                });
            }
        }
        Ok(lines)
    }

    async fn make_call(&self, dial: &Dial) -> Result<Dialled, ProviderError> {
        let client = dial.to.as_str().trim_start_matches('+');
        if !(7..=15).contains(&client.len()) || !client.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ProviderError::Invalid {
                field: "to",
                problem: "must be a number such as +380501234567".into(),
            });
        }
        match &self.callback {
            Callback::External { callee_type, manager_dst } => {
                self.api.callback(client, &dial.line, callee_type, *manager_dst).await?;
            }
            Callback::Outward { extension } => self.api.outward_call(extension, client).await?,
        }
        // Neither method is known to give the call's id.
        Ok(Dialled { provider_call: None })
    }

    /// From the newest window back. A window is a day, shorter where a day has more calls than one answer holds,
    /// longer where days are nearly empty.
    async fn read_history(&self, query: &HistoryQuery) -> Result<HistoryPage, ProviderError> {
        let limit = query.limit.clamp(1, PAGE_CALLS);
        let now = clock::now();
        let start = match &query.cursor {
            Some(cursor) => Place::parse(cursor)
                .ok_or_else(|| ProviderError::Invalid { field: "cursor", problem: "is none of ours".into() })?,
            None => {
                let to = query.to.unwrap_or(now);
                let floor = query.from.unwrap_or_else(|| to.checked_sub(HISTORY).unwrap_or(Timestamp::MIN));
                Place {
                    upper_s: to.as_second().saturating_add(1),
                    floor_s: floor.as_second(),
                    width_s: DAY_S,
                    id: String::new(),
                }
            }
        };
        let dispositions = query.status.map_or(&[][..], dispositions);
        let mut page: Vec<(i64, PastCall)> = Vec::new();
        let mut listed = BTreeSet::new();
        let (mut high, mut width) = (start.upper_s, start.width_s);
        for _ in 0..PAGE_REQUESTS {
            if high < start.floor_s || page.len() > limit {
                break;
            }
            let low = high.saturating_sub(width).max(start.floor_s);
            let rows = Rows { from: at(low), to: at(high), dispositions, call: None };
            let part = self.api.log(&rows).await?;
            if part.listed >= LOG_ROWS && width > WIDTHS_S.0 {
                width = (width / 2).max(WIDTHS_S.0);
                continue;
            }
            if part.listed < LOG_ROWS / 8 {
                width = (width * 2).min(WIDTHS_S.1);
            }
            for row in part.rows {
                let began = row.call.started.map_or(low, |started| started.as_second());
                let id = &row.call.provider_call;
                let before = (began, id.as_str()) < (start.upper_s, start.id.as_str()) && began >= start.floor_s;
                // Windows meet in a second that both hold.
                if before && query.takes(&row.call) && listed.insert(id.clone()) {
                    page.push((began, row.call));
                }
            }
            high = if low == start.floor_s { i64::MIN } else { low };
        }
        page.sort_by(|(a_s, a), (b_s, b)| (b_s, &b.provider_call).cmp(&(a_s, &a.provider_call)));
        let next = if page.len() > limit {
            page.truncate(limit);
            let newest = page.first().map_or(high, |(began, _)| *began);
            page.last().map(|(began, call)| Place {
                upper_s: *began,
                floor_s: start.floor_s,
                // Twice what this page spans should hold the next one.
                width_s: newest.saturating_sub(*began).saturating_mul(2).clamp(WIDTHS_S.0, WIDTHS_S.1),
                id: call.provider_call.clone(),
            })
        } else {
            // Nothing newer than `high` is left; what began in that very second was in the window above it.
            (high >= start.floor_s).then(|| Place {
                upper_s: high,
                floor_s: start.floor_s,
                width_s: width,
                id: String::new(),
            })
        };
        Ok(HistoryPage {
            calls: page.into_iter().map(|(_, call)| call).collect(),
            next: next.map(|place| place.to_string()),
        })
    }

    async fn find_recording(&self, call: &str) -> Result<Option<RecordingLink>, ProviderError> {
        if !events::is_call_id(call) {
            return Ok(None);
        }
        // The log wants a window, and the id holds the unix time of the call's start.
        let now = clock::now();
        let began = call
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|part| part.parse::<i64>().ok())
            .find(|second| (946_684_800..4_102_444_800).contains(second));
        let (from, to) = match began {
            Some(began) => (at(began - DAY_S), at(began + DAY_S)),
            None => (now.checked_sub(HISTORY).unwrap_or(Timestamp::MIN), now),
        };
        let part = self.api.log(&Rows { from, to, dispositions: &[], call: Some(call) }).await?;
        let link = part.rows.into_iter().find(|row| row.call.provider_call == call).and_then(|row| row.recording);
        // Whether the link expires is not documented.
        Ok(link.map(|url| RecordingLink { url, authorization: None, expires: None }))
    }
}

impl Provider for Ringostat {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn verify(&self) -> Answer<'_, Account> {
        self.read_account().boxed()
    }

    fn lines(&self) -> Answer<'_, Vec<RemoteLine>> {
        self.read_lines().boxed()
    }

    fn dial<'a>(&'a self, dial: &'a Dial) -> Answer<'a, Dialled> {
        self.make_call(dial).boxed()
    }

    fn history<'a>(&'a self, query: &'a HistoryQuery) -> Answer<'a, HistoryPage> {
        self.read_history(query).boxed()
    }

    fn number(&self, written: &str) -> PhoneNumber {
        events::side(written).unwrap_or_default()
    }

    fn recording<'a>(&'a self, provider_call: &'a str) -> Answer<'a, Option<RecordingLink>> {
        self.find_recording(provider_call).boxed()
    }

    fn instructions(&self, url: &str) -> Vec<String> {
        let mut steps = vec![
            format!(
                "Cabinet, Integration, Webhooks: add one webhook for each event below. URL {url}, method POST, data type json."
            ),
            format!(
                "Date format YYYY-MM-DD HH:MM:SS. Fixed values: {} = the event's name below, {} = {}.",
                self.reader.names.name(Parameter::Event),
                self.reader.names.name(Parameter::Project),
                self.reader.project
            ),
        ];
        let name = |parameter| self.reader.names.name(parameter);
        let common = [Parameter::Call, Parameter::CallType, Parameter::Caller, Parameter::Destination];
        for (event, occasion, title) in OCCASIONS {
            let more: &[Parameter] = match occasion {
                Occasion::InBefore | Occasion::OutBefore => &[Parameter::StartedMicros],
                Occasion::InAnswer => &[Parameter::ConnectedWith, Parameter::Employee],
                Occasion::InAfter | Occasion::OutAfter => &[
                    Parameter::Status,
                    Parameter::Duration,
                    Parameter::Talk,
                    Parameter::Wait,
                    Parameter::StartedMicros,
                    Parameter::ConnectedWith,
                    Parameter::Employee,
                    Parameter::HasRecording,
                    Parameter::Recording,
                ],
                _ => continue,
            };
            let list: Vec<&str> = common.iter().chain(more).map(|&parameter| name(parameter)).collect();
            steps.push(format!("{title}: {event}. Parameters: {}.", list.join(", ")));
        }
        steps
    }

    fn read_webhook(&self, request: &WebhookRequest<'_>) -> Result<Webhook, Refusal> {
        self.reader.read(request)
    }

    fn answer(&self, event: &Event, decision: &Decision<'_>) -> WebhookAnswer {
        self.reader.answer(event, decision)
    }
}

/// Where a page of history ends: calls before (`upper_s`, `id`) and not before `floor_s` are left; `width_s` is how much
/// of the log to ask for first.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    upper_s: i64,
    floor_s: i64,
    width_s: i64,
    id: String,
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, '~');
        let place = Self {
            upper_s: parts.next()?.parse().ok()?,
            floor_s: parts.next()?.parse().ok()?,
            width_s: parts.next()?.parse::<i64>().ok()?.clamp(WIDTHS_S.0, WIDTHS_S.1),
            id: parts.next()?.to_owned(),
        };
        let known = Timestamp::MIN.as_second()..=Timestamp::MAX.as_second();
        (known.contains(&place.upper_s) && known.contains(&place.floor_s)).then_some(place)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}~{}~{}~{}", self.upper_s, self.floor_s, self.width_s, self.id)
    }
}

/// The nearest moment that can be written.
fn at(second: i64) -> Timestamp {
    let (first, last) = (Timestamp::MIN.as_second(), Timestamp::MAX.as_second());
    Timestamp::from_second(second.clamp(first, last)).unwrap_or_default()
}

/// What the log's own filter may ask for; empty where it would leave out statuses that nobody has documented.
fn dispositions(outcome: CallOutcome) -> &'static [&'static str] {
    match outcome {
        CallOutcome::Answered => &["answered", "proper", "repeated"],
        CallOutcome::NoAnswer => &["no answer", "client no answer"],
        CallOutcome::Busy => &["busy", "decline"],
        CallOutcome::Voicemail => &["voicemail"],
        CallOutcome::Running | CallOutcome::Failed | CallOutcome::Canceled => &[],
    }
}

fn callback_method(value: &str) -> Result<(), &'static str> {
    if matches!(value, "external" | "outward_call") { Ok(()) } else { Err("must be external or outward_call") }
}

fn callee_type(value: &str) -> Result<(), &'static str> {
    if matches!(value, "default" | "sip_account" | "scheme") {
        Ok(())
    } else {
        Err("must be default, sip_account or scheme")
    }
}

fn zero_or_one(value: &str) -> Result<(), &'static str> {
    if matches!(value, "0" | "1") { Ok(()) } else { Err("must be 0 or 1") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_names_or_offsets() {
        let civil = jiff::civil::datetime(2031, 7, 3, 12, 0, 0, 0);
        let utc = |name: &str| zone(name).unwrap().to_ambiguous_zoned(civil).compatible().unwrap().timestamp();
        assert_eq!(utc("+02:00").to_string(), "2031-07-03T10:00:00Z");
        assert_eq!(utc("Europe/Kyiv").to_string(), "2031-07-03T09:00:00Z");
        assert!(zone("Europe/Atlantis").is_none());
        let posix = TimeZone::posix(ZONE_RULES).unwrap();
        assert_eq!(posix.to_ambiguous_zoned(civil).compatible().unwrap().timestamp(), utc("Europe/Kyiv"));
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_a_made_up_one_refused() {
        let place =
            Place { upper_s: 1_800_000_000, floor_s: 1_700_000_000, width_s: DAY_S, id: "us1_-1800000000.1~2".into() };
        assert_eq!(Place::parse(&place.to_string()), Some(place));
        for text in ["", "1", "1~2", "1~2~3", "x~1~60~a", "99999999999999~1~60~a"] {
            assert_eq!(Place::parse(text), None, "{text}");
        }
    }
}
