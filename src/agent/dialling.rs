//! Whom an agent may call or write to: the form of the number, what it would cost, where it is, when, and how often.
//! Pure: the time and the counts are handed in. A refusal is a sentence that the agent can say.

use jiff::Zoned;
use jiff::civil::Time;
use jiff::tz::TimeZone;
use phonenumber::Type;
use phonenumber::metadata::DATABASE;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::telephony::PhoneNumber;

/// Limits that a company sets on itself; read live, also by calls that run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CompanySettings {
    /// ISO 3166-1 alpha-2, upper case (`UA`): countries that agents may dial and write to; `*` = all. Empty: only that of
    /// the line that calls.
    pub allowed_countries: Vec<String>,
    /// No call and no message is started in these hours; `None`: at any time.
    pub quiet_hours: Option<QuietHours>,
    pub caps: Caps,
    pub budget: Budget,
}

/// From one minute of the day to another, in the company's time zone; over midnight where `from` is the later one, never
/// where they are the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QuietHours {
    /// `21:00`.
    pub from: String,
    pub to: String,
    /// IANA name: `Europe/Kyiv`.
    pub time_zone: String,
}

impl Default for QuietHours {
    fn default() -> Self {
        let midnight = || "00:00".to_owned();
        Self { from: midnight(), to: midnight(), time_zone: "UTC".to_owned() }
    }
}

/// What agents may start in an hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Caps {
    pub calls_per_hour: u32,
    /// To one number.
    pub calls_per_number_per_hour: u32,
    pub messages_per_hour: u32,
}

impl Default for Caps {
    /// Enough for a front desk; a campaign asks for more.
    fn default() -> Self {
        Self { calls_per_hour: 60, calls_per_number_per_hour: 3, messages_per_hour: 60 }
    }
}

/// What a company's calls may use of models, recognition and speech; 0 = no limit. Money is in hundredths of the currency
/// that `[prices]` are in. A day is one of UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// Tokens read and written; a call that has used them ends politely.
    pub tokens_per_call: u64,
    pub cents_per_call: u64,
    /// Of all calls and messages together; beyond it, agents excuse themselves and hang up.
    pub tokens_per_day: u64,
    pub cents_per_day: u64,
}

impl Budget {
    pub fn call_is_spent(&self, tokens: u64, micros: u64) -> bool {
        spent(self.tokens_per_call, self.cents_per_call, tokens, micros)
    }

    pub fn day_is_spent(&self, tokens: u64, micros: u64) -> bool {
        spent(self.tokens_per_day, self.cents_per_day, tokens, micros)
    }
}

/// Whether one of two limits is reached; 0 is none. A cent is 10,000 millionths.
pub(super) fn spent(max_tokens: u64, max_cents: u64, tokens: u64, micros: u64) -> bool {
    (max_tokens > 0 && tokens >= max_tokens) || (max_cents > 0 && micros >= max_cents.saturating_mul(10_000))
}

/// What was started in the last 60 minutes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    pub all: u64,
    pub to_this_number: u64,
}

/// What is about to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    Call,
    Message,
}

/// Why it is not done. The texts go to a model and are fit to be said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboundRefusal {
    #[error("{0} is not a full number: write it with + and the country code, such as +380441234567")]
    NotE164(PhoneNumber),
    #[error("emergency numbers are not dialled by this system")]
    Emergency,
    #[error("premium-rate numbers are not dialled by this system")]
    Premium,
    #[error("numbers in {country} are not allowed for this company (allowed: {allowed})")]
    Country { country: String, allowed: String },
    #[error("it is a quiet hour ({0}): nobody is called or written to now")]
    Quiet(String),
    #[error("the limit of {limit} {what} an hour is reached: try again later")]
    TooMany { limit: u32, what: &'static str },
    #[error("that is the line's own number")]
    Ourselves,
}

impl CompanySettings {
    /// What is wrong: the key, and the problem with its cure.
    pub fn faults(&self) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        for (index, country) in self.allowed_countries.iter().enumerate() {
            if country != "*" && country.parse::<phonenumber::country::Id>().is_err() {
                let problem = format!("{country:?} is no ISO 3166-1 code: write two capitals such as UA, or * for all");
                faults.push((format!("allowed_countries[{index}]"), problem));
            }
        }
        if let Some(quiet) = &self.quiet_hours {
            for (key, text) in [("from", &quiet.from), ("to", &quiet.to)] {
                if time_of_day(text).is_none() {
                    let problem = format!("{text:?} is no time of day: write hours and minutes such as 21:00");
                    faults.push((format!("quiet_hours.{key}"), problem));
                }
            }
            if TimeZone::get(&quiet.time_zone).is_err() {
                let problem = format!("{:?} is not known: write an IANA name such as Europe/Kyiv", quiet.time_zone);
                faults.push(("quiet_hours.time_zone".to_owned(), problem));
            }
        }
        faults
    }

    /// Whether `to` may be called or written to from `line`. Gives the number in its plain form: `+` and digits.
    pub fn check(
        &self,
        deed: Deed,
        to: &PhoneNumber,
        line: &str,
        now: &Zoned,
        done: Done,
    ) -> Result<PhoneNumber, OutboundRefusal> {
        let number = plain(to)?;
        if number.as_str() == line {
            return Err(OutboundRefusal::Ourselves);
        }
        self.check_country(&number, line)?;
        if let Some(quiet) = self.quiet_hours.as_ref().filter(|quiet| quiet.holds(now)) {
            return Err(OutboundRefusal::Quiet(format!("{} to {}", quiet.from, quiet.to)));
        }
        let (limit, what) = match deed {
            Deed::Call => (self.caps.calls_per_hour, "calls"),
            Deed::Message => (self.caps.messages_per_hour, "messages"),
        };
        if done.all >= u64::from(limit) {
            return Err(OutboundRefusal::TooMany { limit, what });
        }
        let limit = self.caps.calls_per_number_per_hour;
        if deed == Deed::Call && done.to_this_number >= u64::from(limit) {
            return Err(OutboundRefusal::TooMany { limit, what: "calls to this number" });
        }
        Ok(number)
    }

    fn check_country(&self, number: &PhoneNumber, line: &str) -> Result<(), OutboundRefusal> {
        let theirs = country(number.as_str());
        let allowed: Vec<String> = match &self.allowed_countries[..] {
            [] => country(line).into_iter().collect(),
            countries => countries.to_vec(),
        };
        // A line without a country (a SIP login, an internal number) and no list: the provider's own rules decide.
        if allowed.is_empty() || allowed.iter().any(|one| one == "*" || Some(one) == theirs.as_ref()) {
            return Ok(());
        }
        let country = theirs.unwrap_or_else(|| "that country".into());
        Err(OutboundRefusal::Country { country, allowed: allowed.join(", ") })
    }
}

impl QuietHours {
    fn holds(&self, now: &Zoned) -> bool {
        let (Some(from), Some(to)) = (time_of_day(&self.from), time_of_day(&self.to)) else { return false };
        let zone = TimeZone::get(&self.time_zone).unwrap_or(TimeZone::UTC);
        let time = now.with_time_zone(zone).time();
        if from <= to { from <= time && time < to } else { time >= from || time < to }
    }
}

/// A number as it is dialled where the line is ("067 123 45 67" at a Ukrainian line), with its country's code; every
/// other one as it stands.
pub fn complete(number: &PhoneNumber, line: &str) -> PhoneNumber {
    if number.as_str().trim_start().starts_with('+') {
        return number.clone();
    }
    let home = country(line).and_then(|country| country.parse::<phonenumber::country::Id>().ok());
    let found = home.and_then(|home| phonenumber::parse(Some(home), number.as_str()).ok());
    match found.filter(phonenumber::is_valid) {
        Some(found) => PhoneNumber::new(found.format().mode(phonenumber::Mode::E164).to_string()),
        None => number.clone(),
    }
}

/// `+` and 8 to 15 digits (ITU-T E.164), spaces, dots, dashes and brackets left out; no emergency or premium number.
fn plain(to: &PhoneNumber) -> Result<PhoneNumber, OutboundRefusal> {
    let written: String =
        to.as_str().chars().filter(|c| !matches!(c, ' ' | '-' | '.' | '(' | ')' | '\u{a0}')).collect();
    let digits = written.strip_prefix('+').unwrap_or(&written);
    if EMERGENCY.contains(&digits) {
        return Err(OutboundRefusal::Emergency);
    }
    let well_formed = written.starts_with('+')
        && (8..=15).contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && !digits.starts_with('0');
    if !well_formed {
        return Err(OutboundRefusal::NotE164(to.clone()));
    }
    if let Ok(number) = phonenumber::parse(None, &written) {
        // +1 911 and +380 112: an emergency number behind a country code.
        if EMERGENCY.contains(&number.national().value().to_string().as_str()) {
            return Err(OutboundRefusal::Emergency);
        }
        if matches!(number.number_type(&DATABASE), Type::PremiumRate | Type::SharedCost) {
            return Err(OutboundRefusal::Premium);
        }
    }
    Ok(PhoneNumber::new(written))
}

/// The ISO 3166 code of a number's country; where several share a calling code and the number tells nothing, the largest.
pub fn country(number: &str) -> Option<String> {
    let parsed = phonenumber::parse(None, number).ok()?;
    if let Some(id) = parsed.country().id() {
        return Some(id.as_ref().to_owned());
    }
    DATABASE.by_code(&parsed.country().code())?.first().map(|main| main.id().to_owned())
}

/// Of Europe, the Americas, Asia and Oceania, where agents answer; all shorter than any E.164 number.
const EMERGENCY: [&str; 19] = [
    "112", "911", "999", "000", "101", "102", "103", "104", "100", "108", "110", "111", "113", "115", "117", "118",
    "119", "061", "1122",
];

fn time_of_day(text: &str) -> Option<Time> {
    let (hours, minutes) = text.trim().split_once(':')?;
    Time::new(hours.parse().ok()?, minutes.parse().ok()?, 0, 0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "+380441234567";

    fn noon() -> Zoned {
        "2026-03-02T12:00:00+00:00[UTC]".parse().expect("a time")
    }

    fn check(rules: &CompanySettings, to: &str) -> Result<String, OutboundRefusal> {
        rules
            .check(Deed::Call, &PhoneNumber::new(to), LINE, &noon(), Done::default())
            .map(|number| number.as_str().to_owned())
    }

    #[test]
    fn a_national_number_is_the_lines_countrys() {
        for (line, number, expected) in [
            ("+380441234567", "0671112233", "+380671112233"),
            ("+380441234567", "067 111-22-33", "+380671112233"),
            ("+380441234567", "+15550001111", "+15550001111"),
            ("+380441234567", "112", "112"),
            ("+380441234567", "901", "901"),
            ("+14155550100", "(212) 736-5000", "+12127365000"),
            ("901", "0671112233", "0671112233"),
        ] {
            assert_eq!(complete(&PhoneNumber::new(number), line).as_str(), expected, "{number} at {line}");
        }
    }

    #[test]
    fn a_number_is_taken_in_e164_however_it_is_spaced() {
        let rules = CompanySettings::default();
        assert_eq!(check(&rules, "+380 (50) 123-45-67").as_deref(), Ok("+380501234567"));
        for bad in ["", "0501234567", "380501234567", "+38050", "+3805012345678901", "+38050abc4567", "+0501234567"] {
            assert!(matches!(check(&rules, bad), Err(OutboundRefusal::NotE164(_))), "{bad}");
        }
        assert_eq!(check(&rules, LINE), Err(OutboundRefusal::Ourselves));
    }

    #[test]
    fn emergency_and_premium_numbers_are_refused_with_or_without_a_country_code() {
        let everywhere = CompanySettings { allowed_countries: vec!["*".into()], ..CompanySettings::default() };
        for number in ["112", "911", "+911", "101", "103", "+380112"] {
            let error = check(&everywhere, number).unwrap_err();
            assert!(matches!(error, OutboundRefusal::Emergency | OutboundRefusal::NotE164(_)), "{number}: {error}");
        }
        assert_eq!(check(&everywhere, "911"), Err(OutboundRefusal::Emergency));
        for premium in ["+380900234567", "+19002345678", "+449098790123"] {
            assert_eq!(check(&everywhere, premium), Err(OutboundRefusal::Premium), "{premium}");
        }
    }

    #[test]
    fn without_a_list_a_line_calls_its_own_country_only() {
        let rules = CompanySettings::default();
        assert!(check(&rules, "+380671112233").is_ok());
        let error = check(&rules, "+48221234567").unwrap_err();
        assert_eq!(error.to_string(), "numbers in PL are not allowed for this company (allowed: UA)");
        let two = CompanySettings { allowed_countries: vec!["PL".into(), "US".into()], ..CompanySettings::default() };
        assert!(check(&two, "+48221234567").is_ok());
        assert!(check(&two, "+15550002222").is_ok(), "of the North American plan, the largest country");
        assert!(check(&two, "+380671112233").is_err());
        let call = |line| rules.check(Deed::Call, &PhoneNumber::new("+48221234567"), line, &noon(), Done::default());
        assert!(call("acme_concierge").is_ok(), "a SIP login has no country");
    }

    #[test]
    fn quiet_hours_are_kept_in_the_companys_zone_also_over_midnight() {
        let refused = |from: &str, to: &str, time_zone: &str| {
            let quiet = QuietHours { from: from.into(), to: to.into(), time_zone: time_zone.into() };
            check(&CompanySettings { quiet_hours: Some(quiet), ..CompanySettings::default() }, "+380671112233").is_err()
        };
        assert!(refused("11:00", "13:00", "UTC"));
        assert!(!refused("11:00", "12:00", "UTC"));
        assert!(refused("12:00", "12:01", "UTC"));
        assert!(refused("21:00", "13:00", "UTC"), "over midnight");
        assert!(!refused("21:00", "08:00", "UTC"));
        assert!(refused("14:00", "15:00", "Europe/Kyiv"), "noon in UTC is 14:00 in Kyiv in winter");
    }

    #[test]
    fn caps_count_calls_messages_and_one_number_apart() {
        let caps = Caps { calls_per_hour: 5, calls_per_number_per_hour: 2, messages_per_hour: 3 };
        let rules = CompanySettings { caps, ..CompanySettings::default() };
        let check = |deed, all, to_this_number| {
            rules.check(deed, &PhoneNumber::new("+380671112233"), LINE, &noon(), Done { all, to_this_number })
        };
        assert!(check(Deed::Call, 4, 1).is_ok());
        assert_eq!(check(Deed::Call, 5, 0), Err(OutboundRefusal::TooMany { limit: 5, what: "calls" }));
        assert_eq!(check(Deed::Call, 4, 2), Err(OutboundRefusal::TooMany { limit: 2, what: "calls to this number" }));
        assert!(check(Deed::Message, 2, 2).is_ok());
        assert_eq!(check(Deed::Message, 3, 0), Err(OutboundRefusal::TooMany { limit: 3, what: "messages" }));
    }

    #[test]
    fn wrong_rules_are_told_with_the_cure() {
        assert_eq!(CompanySettings::default().faults(), []);
        let rules = CompanySettings {
            allowed_countries: vec!["Ukraine".into()],
            quiet_hours: Some(QuietHours { from: "late".into(), to: "8:00".into(), time_zone: "Kyiv".into() }),
            ..CompanySettings::default()
        };
        let fields: Vec<String> = rules.faults().into_iter().map(|(field, _)| field).collect();
        assert_eq!(fields, ["allowed_countries[0]", "quiet_hours.from", "quiet_hours.time_zone"]);
    }
}
