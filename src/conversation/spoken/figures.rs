//! What begins with a digit or a currency sign: dates, times, amounts, ranges, ordinals, plain numbers.

use super::contacts::{digits_of_code, phone};
use super::nouns::{self, Currency, Noun, currency, month, month_named, scale, unit};
use super::numerals::{Case, Count, Gender, TOO_LARGE, cardinal, digit_by_digit, english_year, ordinal, plain};
use super::{Lang, Place, Reading};

const BLANKS: [char; 4] = [' ', '\u{a0}', '\u{202f}', '\u{2009}'];
const DASHES: [char; 4] = ['-', '–', '—', '−'];

/// Ungrouped digits from this many on are an identifier, not a quantity.
const IDENTIFIER: usize = 7;

pub(super) fn read(place: &Place) -> Option<Reading> {
    if !place.rest.starts_with(|c: char| c.is_ascii_digit()) {
        return if place.rest.starts_with(['+', '(']) { phone(place) } else { priced(place) };
    }
    date(place)
        .or_else(|| times(place))
        .or_else(|| phone(place))
        .or_else(|| dotted(place))
        .or_else(|| slashed(place))
        .or_else(|| Number::parse(place.lang, place.rest).and_then(|number| day_after_month(place, &number)))
        .or_else(|| range(place))
        .or_else(|| number(place))
}

// --- pieces --------------------------------------------------------------------------------------------------------

/// A number as it was written.
#[derive(Clone)]
struct Number {
    len: usize,
    /// Digits without separators.
    whole: String,
    fraction: String,
    grouped: bool,
}

impl Number {
    fn parse(lang: Lang, text: &str) -> Option<Self> {
        let mut len = digits(text);
        if len == 0 {
            return None;
        }
        let mut whole = text[..len].to_owned();
        let mut grouped = false;
        if len <= 3 && !whole.starts_with('0') {
            let mut mark = None;
            while let Some(separator) = text[len..].chars().next() {
                let group = &text[len + separator.len_utf8()..];
                let three = digits(group) == 3;
                let allowed = BLANKS.contains(&separator)
                    || match (lang, separator) {
                        (Lang::En, ',') => true,
                        // One comma is a decimal one unless another group follows.
                        (_, ',') => {
                            mark == Some(',')
                                || digits(group) == 3
                                    && digits(group.get(4..).unwrap_or_default()) == 3
                                    && group[3..].starts_with(',')
                        }
                        _ => false,
                    };
                if !three || !allowed || mark.is_some_and(|mark| mark != separator) {
                    break;
                }
                mark = Some(separator);
                grouped = true;
                whole.push_str(&group[..3]);
                len += separator.len_utf8() + 3;
            }
        }
        let mut fraction = String::new();
        let point = match lang {
            Lang::En => text[len..].starts_with('.'),
            Lang::Uk | Lang::Ru => text[len..].starts_with(['.', ',']),
        };
        if point {
            let after = digits(&text[len + 1..]);
            let more = text[len + 1 + after..].strip_prefix(['.', ',']).is_some_and(|rest| digits(rest) > 0);
            if after > 0 && !more {
                fraction = text[len + 1..len + 1 + after].to_owned();
                len += 1 + after;
            }
        }
        Some(Self { len, whole, fraction, grouped })
    }

    fn value(&self) -> Option<u64> {
        self.whole.parse().ok().filter(|n| *n < TOO_LARGE)
    }
}

fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// A number of at most so many digits that ends there.
fn short(text: &str, most: usize) -> Option<(u64, usize)> {
    let len = digits(text);
    if len == 0 || len > most { None } else { Some((text[..len].parse().ok()?, len)) }
}

fn blanks(text: &str) -> usize {
    text.len() - text.trim_start_matches(BLANKS).len()
}

/// The case that a preposition asks of the number after it.
fn governed(lang: Lang, previous: &str) -> Option<Case> {
    Some(match (lang, previous) {
        (Lang::En, _) => return None,
        (
            Lang::Uk,
            "до" | "від" | "після" | "без" | "близько" | "біля" | "для" | "з" | "із" | "зі" | "крім" | "протягом"
            | "впродовж" | "упродовж" | "менше" | "більше" | "~",
        ) => Case::Gen,
        (Lang::Uk, "на" | "за" | "через" | "про" | "по" | "в" | "у" | "понад") => Case::Acc,
        (Lang::Uk, "між" | "над" | "під" | "перед") => Case::Ins,
        (Lang::Uk, "о" | "об" | "при") => Case::Loc,
        (
            Lang::Ru,
            "до" | "от" | "после" | "без" | "около" | "для" | "с" | "со" | "из" | "кроме" | "течение" | "свыше"
            | "менее" | "более" | "меньше" | "больше" | "~",
        ) => Case::Gen,
        (Lang::Ru, "к" | "ко") => Case::Dat,
        (Lang::Ru, "на" | "за" | "через" | "про" | "по" | "в" | "во") => Case::Acc,
        (Lang::Ru, "между" | "над" | "под" | "перед") => Case::Ins,
        (Lang::Ru, "о" | "об" | "при") => Case::Loc,
        _ => return None,
    })
}

/// The same, where the second of two numbers shares the first one's preposition ("між 5 та 10").
fn case_of(place: &Place) -> Option<Case> {
    let previous = place.previous();
    if matches!(previous.as_str(), "та" | "і" | "й" | "и") {
        let near = place.before.char_indices().rev().nth(24).map_or(0, |(at, _)| at);
        let near = &place.before[near..];
        if near.contains("між ") || near.contains("между ") {
            return Some(Case::Ins);
        }
    }
    governed(place.lang, &previous)
}

/// Cases in which units and currencies are made.
fn of_noun(case: Option<Case>) -> Case {
    case.filter(|case| matches!(case, Case::Gen | Case::Acc)).unwrap_or(Case::Nom)
}

// --- dates ---------------------------------------------------------------------------------------------------------

struct Date {
    day: u64,
    month: u64,
    year: Option<u64>,
}

impl Date {
    fn new(day: u64, month: u64, year: Option<u64>) -> Option<Self> {
        ((1..=31).contains(&day) && (1..=12).contains(&month)).then_some(Self { day, month, year })
    }
}

fn date(place: &Place) -> Option<Reading> {
    let text = place.rest;
    let (first, a) = short(text, 4)?;
    let mark = text[a..].chars().next()?;
    if a <= 2 && (BLANKS.contains(&mark) || DASHES.contains(&mark) || matches!(mark, 's' | 'n' | 'r' | 't')) {
        return named_date(place);
    }
    if !matches!(mark, '-' | '.' | '/') {
        return None;
    }
    let (second, b) = short(&text[a + 1..], 2)?;
    let end = a + 1 + b;
    let third = text[end..].strip_prefix(mark).and_then(|rest| short(rest, 4));
    let (date, len) = match (third, a) {
        (Some((day, c)), 4) if c <= 2 && mark != '/' => (Date::new(day, second, Some(first))?, end + 1 + c),
        (Some((year, c)), 1 | 2) if c == 4 || (c == 2 && mark != '-') => {
            let year = if c == 2 { 2000 + year } else { year };
            (day_and_month(place.lang, mark, first, second, Some(year))?, end + 1 + c)
        }
        (None, 1 | 2) if mark == '.' && b == 2 && place.lang != Lang::En => {
            let after = &text[end..];
            let dated = after.starts_with('.') && !after[1..].starts_with(|c: char| c.is_alphanumeric())
                || place.is_about_dates()
                || after.trim_start().starts_with("о ")
                || after.trim_start().starts_with("в ");
            let counted = tail(place.lang, after).is_some();
            let amount = matches!(place.previous().as_str(), "о" | "об");
            if !dated || counted || amount || after.starts_with(|c: char| c.is_ascii_digit() || c == ':') {
                return None;
            }
            // "22.11." has a point of its own, unless it ends the sentence.
            let point = usize::from(after.starts_with('.') && after[1..].trim_start().starts_with(char::is_lowercase));
            (Date::new(first, second, None)?, end + point)
        }
        _ => return None,
    };
    if text[len..].starts_with(|c: char| c.is_alphanumeric() && c != 'T') {
        return None;
    }
    let mut reading = dated(place, &date, len);
    // "2026-11-22T14:30", "22.11.2026 14:30".
    let rest = &text[reading.len..];
    if let Some(clock) = rest.strip_prefix('T').and_then(|rest| Clock::parse(place.lang, rest, false)) {
        reading.words.push_str(", ");
        reading.words.push_str(&clock.say(place, None, true));
        reading.len += 1 + clock.len;
    } else if rest.trim_start_matches(BLANKS).starts_with(|c: char| c.is_ascii_digit()) {
        reading.words.push(',');
    }
    Some(reading)
}

/// English dates with slashes begin with the month where they can.
fn day_and_month(lang: Lang, mark: char, first: u64, second: u64, year: Option<u64>) -> Option<Date> {
    if lang == Lang::En && mark == '/' && first <= 12 {
        Date::new(second, first, year)
    } else {
        Date::new(first, second, year)
    }
}

fn dated(place: &Place, date: &Date, len: usize) -> Reading {
    let month = month(place.lang, date.month).unwrap_or_default();
    if place.lang == Lang::En {
        let mut words = format!("{month} {}", ordinal(Lang::En, date.day, Gender::M, Case::Nom));
        if let Some(year) = date.year {
            words.push_str(", ");
            words.push_str(&english_year(year));
        }
        return Reading { len, words };
    }
    let (year_len, _) = date.year.map_or((0, ""), |_| year_word(place.lang, &place.rest[len..]).unwrap_or((0, "")));
    let len = len + year_len;
    let mut words = format!("{} {month}", ordinal(place.lang, date.day, Gender::N, day_case(place, len)));
    if let Some(year) = date.year {
        words.push(' ');
        words.push_str(&ordinal(place.lang, year, Gender::M, Case::Gen));
        words.push_str(if place.lang == Lang::Uk { " року" } else { " года" });
    }
    Reading { len, words }
}

/// A date says when something is, unless it stands alone or is what something is: "сьогодні двадцять друге листопада".
fn day_case(place: &Place, len: usize) -> Case {
    match governed(place.lang, &place.previous()) {
        Some(Case::Loc) | None => {}
        Some(case) => return case,
    }
    let alone = place.before.trim().is_empty() && !place.rest[len..].contains(char::is_alphanumeric);
    let named = matches!(
        place.previous().as_str(),
        "сьогодні" | "сегодня" | "це" | "это" | "дата" | "буде" | "будет" | ":" | "—" | "–"
    );
    if alone || named { Case::Nom } else { Case::Gen }
}

/// "року", "р." after a year: its length with the blank before, and the word.
fn year_word(lang: Lang, text: &str) -> Option<(usize, &'static str)> {
    let blank = blanks(text);
    let words: &[(&str, &'static str)] = match lang {
        Lang::En => return None,
        Lang::Uk => &[("року", "року"), ("рік", "рік"), ("році", "році"), ("роком", "роком"), ("р.", ""), ("р", "")],
        Lang::Ru => &[("года", "года"), ("году", "году"), ("годом", "годом"), ("год", "год"), ("г.", ""), ("г", "")],
    };
    words.iter().find_map(|(written, word)| {
        let after = text[blank..].strip_prefix(written)?;
        if !written.ends_with('.') && after.starts_with(char::is_alphanumeric) {
            return None;
        }
        // A point that also ends the sentence stays.
        let keeps_point = written.ends_with('.') && sentence_ends(after);
        Some((blank + written.len() - usize::from(keeps_point), *word))
    })
}

fn sentence_ends(after_point: &str) -> bool {
    after_point.trim_start().chars().next().is_none_or(char::is_uppercase)
}

/// "22 листопада 2026 року", "22–25 листопада", "22nd November 2026".
fn named_date(place: &Place) -> Option<Reading> {
    let (lang, text) = (place.lang, place.rest);
    let (first, mut at) = short(text, 2)?;
    let mut last = None;
    if lang == Lang::En {
        at += english_suffix(&text[at..]);
    }
    let dash = blanks(&text[at..]);
    if let Some(after) = text[at + dash..].strip_prefix(DASHES) {
        let from = text.len() - after.len() + blanks(after);
        let (day, len) = short(&text[from..], 2)?;
        at = from + len;
        last = Some(day);
    }
    let blank = blanks(&text[at..]);
    if blank == 0 {
        return None;
    }
    let word = letters(&text[at + blank..]);
    if matches!(word, "по" | "до") && last.is_none() {
        // "З 22 до 25 листопада": the month is that of the second day.
        let rest = text[at + blank + word.len()..].trim_start_matches(BLANKS);
        let (_, digits) = short(rest, 2)?;
        month_named(lang, letters(rest[digits..].trim_start_matches(BLANKS)))?;
        return Some(Reading { len: at, words: ordinal(lang, first, Gender::N, Case::Gen) });
    }
    let month = month_named(lang, word)?;
    if !(1..=31).contains(&first) || last.is_some_and(|day| !(1..=31).contains(&day)) {
        return None;
    }
    let mut len = at + blank + word.len();
    if lang == Lang::En {
        // "2 May I": the month needs a day before it that is a day, and "may" has no capital.
        let the = if place.previous() == "the" { "" } else { "the " };
        let mut words = match last {
            Some(last) => format!("{the}{} to {} of {month}", nth(lang, first), nth(lang, last)),
            None => format!("{the}{} of {month}", nth(lang, first)),
        };
        if let Some((year, more)) = english_year_after(&text[len..]) {
            len += more;
            words.push_str(", ");
            words.push_str(&english_year(year));
        }
        return Some(Reading { len, words });
    }
    let blank = blanks(&text[len..]);
    let mut year = None;
    if let Some((n, 4)) = short(&text[len + blank..], 4).filter(|_| blank > 0) {
        year = Some(n);
        len += blank + 4;
        len += year_word(lang, &text[len..]).map_or(0, |(more, _)| more);
    }
    let day = |n, case| ordinal(lang, n, Gender::N, case);
    let mut words = match last {
        Some(last) => {
            let (from, until, case) =
                if lang == Lang::Uk { ("з", "до", Case::Gen) } else { ("с", "по", Case::Acc) };
            let from =
                if matches!(place.previous().as_str(), "з" | "із" | "від" | "с" | "от") { "" } else { from };
            format!("{from} {} {until} {} {month}", day(first, Case::Gen), day(last, case)).trim_start().to_owned()
        }
        None => format!("{} {month}", day(first, day_case(place, len))),
    };
    if let Some(year) = year {
        words.push(' ');
        words.push_str(&ordinal(lang, year, Gender::M, Case::Gen));
        words.push_str(if lang == Lang::Uk { " року" } else { " года" });
    }
    Some(Reading { len, words })
}

/// "November 22, 2026", with the month already read.
fn day_after_month(place: &Place, number: &Number) -> Option<Reading> {
    let day = number.value().filter(|day| (1..=31).contains(day) && number.fraction.is_empty())?;
    if place.lang != Lang::En || !place.month_before(false) || tail(place.lang, &place.rest[number.len..]).is_some() {
        return None;
    }
    let (mut len, mut words) = (number.len, nth(place.lang, day));
    if let Some((dash, after)) = dash(&place.rest[len..])
        && let Some((last, digits)) = short(after, 2).filter(|(last, _)| (day..=31).contains(last))
    {
        len += dash + digits;
        words = format!("{words} to {}", nth(place.lang, last));
    }
    len += english_suffix(&place.rest[len..]);
    if let Some((year, more)) = english_year_after(&place.rest[len..]) {
        len += more;
        words = format!("{words}, {}", english_year(year));
    }
    Some(Reading { len, words })
}

fn nth(lang: Lang, n: u64) -> String {
    ordinal(lang, n, Gender::M, Case::Nom)
}

fn english_suffix(text: &str) -> usize {
    let suffix = ["st", "nd", "rd", "th"].into_iter().any(|suffix| text.starts_with(suffix));
    if suffix && !text[2..].starts_with(char::is_alphanumeric) { 2 } else { 0 }
}

fn letters(text: &str) -> &str {
    &text[..text.find(|c: char| !(c.is_alphabetic() || matches!(c, '\'' | '’'))).unwrap_or(text.len())]
}

/// ", 2026" after an English date.
fn english_year_after(text: &str) -> Option<(u64, usize)> {
    let mut at = usize::from(text.starts_with(','));
    let blank = blanks(&text[at..]);
    at += blank;
    let (year, len) = short(&text[at..], 4)?;
    (blank > 0 && len == 4 && (1500..2200).contains(&year) && !text[at + 4..].starts_with([':', '-']))
        .then_some((year, at + 4))
}

// --- times ---------------------------------------------------------------------------------------------------------

#[derive(Clone, Copy)]
struct Clock {
    hour: u64,
    minute: u64,
    /// "pm" was written.
    half: Option<bool>,
    len: usize,
}

impl Clock {
    fn parse(lang: Lang, text: &str, points: bool) -> Option<Self> {
        let (hour, mut len) = short(text, 2)?;
        let mut minute = 0;
        let colon = text[len..].starts_with(':') || (points && text[len..].starts_with('.'));
        if colon {
            let (found, digits) = short(&text[len + 1..], 2)?;
            if digits != 2 {
                return None;
            }
            minute = found;
            len += 3;
            if text[len..].starts_with(":00") && !text[len + 3..].starts_with(|c: char| c.is_ascii_digit()) {
                len += 3;
            }
        }
        let half = if lang == Lang::En { half_of_day(&text[len..]) } else { None };
        if let Some((_, more)) = half {
            len += more;
        }
        let more = text[len..].starts_with(|c: char| c.is_alphanumeric() && c != 'Z')
            || text[len..].strip_prefix([':', '.', ',']).is_some_and(|rest| digits(rest) > 0);
        (hour <= 24 && minute < 60 && (colon || half.is_some()) && !more).then_some(Self {
            hour,
            minute,
            half: half.map(|(pm, _)| pm),
            len,
        })
    }

    fn say(self, place: &Place, case: Option<Case>, in_range: bool) -> String {
        let lang = place.lang;
        let minutes = match self.minute {
            0 => String::new(),
            n @ 1..10 => format!(" {} {}", if lang == Lang::En { "oh" } else { zero(lang) }, plain(lang, n)),
            n => format!(" {}", plain(lang, n)),
        };
        let next = if in_range { String::new() } else { place.word_at(self.len) };
        match lang {
            Lang::En => {
                let pm = self
                    .half
                    .or_else(|| (in_range || !(1..13).contains(&self.hour)).then_some((12..24).contains(&self.hour)));
                let hour = match self.hour % 12 {
                    0 => 12,
                    hour => hour,
                };
                let half = match pm {
                    Some(true) => " PM",
                    Some(false) => " AM",
                    None if self.minute == 0 && next != "o'clock" && next != "o’clock" => " o'clock",
                    None => "",
                };
                format!("{}{minutes}{half}", plain(lang, hour))
            }
            Lang::Uk => {
                let case = case.unwrap_or(Case::Nom);
                let hour = ordinal(lang, self.hour, Gender::F, case);
                let alone = self.minute == 0 && case == Case::Nom && !next.starts_with("годин") && !in_range;
                format!("{hour}{minutes}{}", if alone { " година" } else { "" })
            }
            Lang::Ru => {
                let case = case.unwrap_or(Case::Nom);
                let direct = matches!(case, Case::Nom | Case::Acc);
                let minutes = match self.minute {
                    n @ 10.. => format!(" {}", cardinal(lang, n, Gender::F, case)),
                    _ => minutes,
                };
                let hours = match self.hour {
                    1 => (if direct { "час" } else { "часа" }).to_owned(),
                    hour => cardinal(lang, hour, Gender::M, case),
                };
                let alone = self.minute == 0 && self.hour != 1 && direct && !next.starts_with("час") && !in_range;
                let noun = match Count::of(self.hour) {
                    _ if !alone => "",
                    Count::One => " час",
                    Count::Few => " часа",
                    Count::Many => " часов",
                };
                format!("{hours}{minutes}{noun}")
            }
        }
    }
}

fn zero(lang: Lang) -> &'static str {
    match lang {
        Lang::En => "zero",
        Lang::Uk => "нуль",
        Lang::Ru => "ноль",
    }
}

/// "pm", "p.m.", "AM" with the blank before: afternoon or not, and the length.
fn half_of_day(text: &str) -> Option<(bool, usize)> {
    let blank = blanks(text);
    let rest = &text[blank..];
    for (written, pm) in [("a.m.", false), ("p.m.", true), ("am", false), ("pm", true)] {
        let Some(found) = rest.get(..written.len()) else { continue };
        let after = &rest[written.len()..];
        if found.eq_ignore_ascii_case(written) && !after.starts_with(char::is_alphanumeric) {
            let keeps_point = written.ends_with('.') && sentence_ends(after);
            return Some((pm, blank + written.len() - usize::from(keeps_point)));
        }
    }
    None
}

fn times(place: &Place) -> Option<Reading> {
    let lang = place.lang;
    let previous = place.previous();
    let points = lang != Lang::En && pointed(place, &previous);
    let case = match (lang, previous.as_str()) {
        (Lang::Uk, "в" | "у") => Some(Case::Loc),
        _ => case_of(place),
    };
    let text = place.rest;
    // "2–4 pm": the first half of the day is that of the second.
    if let Some((first, a)) = short(text, 2).filter(|_| lang == Lang::En)
        && let Some((dash, after)) = dash(&text[a..])
        && let Some(until) = Clock::parse(lang, after, false).filter(|until| until.half.is_some())
    {
        let from = Clock { hour: first, minute: 0, half: until.half, len: a };
        return Some(time_range(place, from, until, a + dash + until.len));
    }
    let from = Clock::parse(lang, text, points)?;
    if let Some((dash, after)) = dash(&text[from.len..])
        && let Some(until) = Clock::parse(lang, after, false)
    {
        return Some(time_range(place, from, until, from.len + dash + until.len));
    }
    let mut words = from.say(place, case, false);
    // "10:00 22 листопада" would run together.
    if text[from.len..].trim_start_matches(BLANKS).starts_with(|c: char| c.is_ascii_digit()) {
        words.push(',');
    }
    Some(Reading { len: from.len, words })
}

/// "о 14.30", "до 18.00": a point between hours and minutes, where a time is likely.
fn pointed(place: &Place, previous: &str) -> bool {
    if place.lang == Lang::Uk && matches!(previous, "о" | "об") {
        return true;
    }
    let Some(clock) = Clock::parse(place.lang, place.rest, true) else { return false };
    matches!(previous, "в" | "у" | "к" | "с" | "з" | "до" | "на" | "після" | "после")
        && matches!(clock.minute, 0 | 15 | 30 | 45)
        && clock.hour >= 7
        && tail(place.lang, &place.rest[clock.len..]).is_none()
}

fn time_range(place: &Place, from: Clock, until: Clock, len: usize) -> Reading {
    let previous = place.previous();
    let (first, second) = match place.lang {
        Lang::En if previous == "between" => ("", "and"),
        Lang::En => ("from", "to"),
        Lang::Uk => ("з", "до"),
        Lang::Ru => ("с", "до"),
    };
    let first = if previous == first || previous == "від" { "" } else { first };
    let case = Some(Case::Gen);
    let (from, until) = (from.say(place, case, true), until.say(place, case, true));
    Reading { len, words: format!("{first} {from} {second} {until}").trim_start().to_owned() }
}

/// A dash with its blanks, and what follows.
fn dash(text: &str) -> Option<(usize, &str)> {
    let blank = blanks(text);
    let after = text[blank..].strip_prefix(DASHES)?;
    let after = after.trim_start_matches(BLANKS);
    Some((text.len() - after.len(), after))
}

// --- numbers with points and slashes -------------------------------------------------------------------------------

/// "1.2.3", "192.168.0.1".
fn dotted(place: &Place) -> Option<Reading> {
    let parts: Vec<&str> = place.window(100).split('.').take_while(|part| digits(part) > 0).take(12).collect();
    let mut len = 0;
    let mut words = String::new();
    let mut count = 0;
    for part in parts {
        let size = digits(part);
        if count > 0 {
            len += 1;
            words.push_str(match place.lang {
                Lang::En => " dot ",
                Lang::Uk => " крапка ",
                Lang::Ru => " точка ",
            });
        }
        words.push_str(&digits_of_code(place.lang, &part[..size]));
        len += size;
        count += 1;
        if size < part.len() {
            break;
        }
    }
    (count >= 3 && !place.rest[len..].starts_with(char::is_alphanumeric)).then_some(Reading { len, words })
}

/// "22/11", "1/2", "24/7", "5/7".
fn slashed(place: &Place) -> Option<Reading> {
    let lang = place.lang;
    let (first, a) = short(place.rest, 4)?;
    let (second, b) = short(place.rest[a..].strip_prefix('/')?, 4)?;
    let len = a + 1 + b;
    if place.rest[len..].starts_with(|c: char| c.is_alphanumeric() || c == '/') {
        return None;
    }
    let near = place.before.char_indices().rev().nth(40).map_or(0, |(at, _)| at);
    let street =
        ["вул", "ул.", "просп", "пров.", "пер.", "бульв"].iter().any(|name| place.before[near..].contains(name));
    let house = street
        || matches!(
            place.previous_with_colon().as_str(),
            "будинок" | "будинку" | "буд" | "дом" | "доме" | "д" | "apartment" | "apt"
        );
    // "24/7", "50/50".
    let around_the_clock = (first, second) == (24, 7) || first == second;
    let looks_dated = if lang == Lang::En {
        first <= 12 && (13..=31).contains(&second) || (13..=31).contains(&first) && second <= 12
    } else {
        (13..=31).contains(&first) && second <= 12
    };
    if !house
        && !around_the_clock
        && (looks_dated || (place.is_about_dates() && first <= 31 && second <= 31))
        && let Some(date) = day_and_month(lang, '/', first, second, None)
    {
        return Some(dated(place, &date, len));
    }
    if !house && second == 10 && first <= 10 {
        // A mark, as a rule.
        let words = match lang {
            Lang::En => format!("{} out of ten", plain(lang, first)),
            Lang::Uk => format!("{} з десяти", plain(lang, first)),
            Lang::Ru => format!("{} из десяти", plain(lang, first)),
        };
        return Some(Reading { len, words });
    }
    if !house && first < second && (2..10).contains(&second) && first > 0 {
        return Some(Reading { len, words: fraction(lang, first, second) });
    }
    let between = match lang {
        Lang::En if around_the_clock => " ",
        Lang::En => " slash ",
        _ if around_the_clock => " на ",
        Lang::Uk => " дріб ",
        Lang::Ru => " дробь ",
    };
    Some(Reading { len, words: format!("{}{between}{}", plain(lang, first), plain(lang, second)) })
}

pub(super) fn fraction(lang: Lang, top: u64, bottom: u64) -> String {
    if lang == Lang::En {
        let part = match bottom {
            2 => "half".to_owned(),
            4 => "quarter".to_owned(),
            n => nth(lang, n),
        };
        return format!("{} {part}{}", plain(lang, top), if top == 1 { "" } else { "s" });
    }
    let usual = match (lang, bottom) {
        (Lang::Uk, 2) => "половина половини",
        (Lang::Uk, 3) => "третина третини",
        (Lang::Uk, 4) => "чверть чверті",
        (_, 2) => "половина половины",
        (_, 3) => "треть трети",
        (_, 4) => "четверть четверти",
        _ => "",
    };
    if let Some((one, few)) = usual.split_once(' ') {
        return if top == 1 { one.to_owned() } else { format!("{} {few}", cardinal(lang, top, Gender::F, Case::Nom)) };
    }
    let part = match Count::of(top) {
        Count::One => ordinal(lang, bottom, Gender::F, Case::Nom),
        _ => ordinal(lang, bottom, Gender::Plural, Case::Gen),
    };
    format!("{} {part}", cardinal(lang, top, Gender::F, Case::Nom))
}

// --- amounts -------------------------------------------------------------------------------------------------------

/// What follows a number and belongs to it.
struct Tail {
    scale: Option<Noun>,
    money: Option<Currency>,
    unit: Option<Noun>,
    len: usize,
}

fn tail(lang: Lang, text: &str) -> Option<Tail> {
    let mut tail = Tail { scale: None, money: None, unit: None, len: 0 };
    let blank = blanks(text);
    let word = letters(&text[blank..]);
    let lower = word.to_lowercase();
    let name = lower.as_str();
    // "5 m" is five metres and "5 k" nothing in particular: these need what they scale.
    let loose = matches!(name, "k" | "к" | "m");
    let after = &text[blank + word.len()..];
    if let Some(noun) = scale(lang, name).filter(|_| !after.starts_with(|c: char| c.is_ascii_digit() || c == '²')) {
        let len = blank + word.len() + point(after);
        let further = counted(lang, &text[len..]);
        let money = further.as_ref().is_some_and(|tail| tail.money.is_some());
        if !loose || money {
            tail.scale = Some(noun);
            tail.len = len;
            if let Some(further) = further {
                tail.money = further.money;
                tail.unit = further.unit;
                tail.len += further.len;
            }
            return Some(tail);
        }
    }
    counted(lang, text)
}

/// A currency or unit with the blank before it.
fn counted(lang: Lang, text: &str) -> Option<Tail> {
    let blank = blanks(text);
    let rest = &text[blank..];
    let found = |money, unit, len| Some(Tail { scale: None, money, unit, len });
    if let Some(sign) = rest.chars().next().filter(|c| matches!(c, '$' | '€' | '₴' | '₽' | '£')) {
        let len = sign.len_utf8();
        return found(currency(lang, &rest[..len]), None, blank + len);
    }
    let word = letters(rest);
    let after = &rest[word.len()..];
    let whole = !after.starts_with(|c: char| c.is_ascii_digit());
    if let Some(money) = currency(lang, &word.to_lowercase()).filter(|_| whole) {
        return found(Some(money), None, blank + word.len() + point(after));
    }
    let (noun, len) = unit(lang, rest)?;
    let after = &rest[len..];
    let letter = rest[..len].chars().count() == 1 && rest.starts_with(char::is_alphabetic);
    // "5 м. Київ" is an address, "5 s" hardly seconds.
    if letter
        && (after.starts_with(". ") && sentence_ends(&after[1..]) && after.len() > 2
            || blank > 0 && rest.starts_with(['s', 'W', 'V']))
    {
        return None;
    }
    let abbreviated = rest[..len].ends_with(char::is_alphabetic);
    found(None, Some(noun), blank + len + if abbreviated { point(after) } else { 0 })
}

/// The point of an abbreviation, unless the sentence ends with it.
fn point(after: &str) -> usize {
    usize::from(after.starts_with('.') && !after.starts_with("..") && !sentence_ends(&after[1..]))
}

/// "$12.50", "€ 5–10", "USD 5".
pub(super) fn priced(place: &Place) -> Option<Reading> {
    let sign = place.rest.chars().next()?;
    let name = match sign {
        '$' | '€' | '₴' | '₽' | '£' => sign.len_utf8(),
        'A'..='Z' => 3,
        _ => return None,
    };
    let money = currency(place.lang, &place.rest.get(..name)?.to_ascii_lowercase())?;
    let at = name + blanks(&place.rest[name..]);
    let text = &place.rest[at..];
    let first = Number::parse(place.lang, text)?;
    if let Some((dash, after)) = dash(&text[first.len..]) {
        let after_sign = after.strip_prefix(sign).unwrap_or(after);
        if let Some(second) = Number::parse(place.lang, after_sign)
            && let (Some(from), Some(until)) = (first.value(), second.value())
            && from < until
            && first.fraction.is_empty()
            && second.fraction.is_empty()
        {
            let len = at + first.len + dash + (after.len() - after_sign.len()) + second.len;
            return Some(ranged(place, from, until, Some(money.unit), len));
        }
    }
    let mut len = at + first.len;
    let word = letters(place.rest[len..].trim_start_matches(BLANKS));
    let scaled = scale(place.lang, &word.to_lowercase());
    if let Some(noun) = scaled {
        len += blanks(&place.rest[len..]) + word.len();
        len += if matches!(place.lang, Lang::En) { 0 } else { point(&place.rest[len..]) };
        let words = scaled_words(place, &first, noun, Some(money.unit))?;
        return Some(per(place, len, words));
    }
    Some(per(place, len, price(place, &first, money)?))
}

/// Whole units and hundredths.
fn price(place: &Place, number: &Number, money: Currency) -> Option<String> {
    let lang = place.lang;
    let case = of_noun(case_of(place));
    let quantity = |n, noun: Noun| format!("{} {}", cardinal(lang, n, noun.gender, case), noun.with(lang, n, case));
    let mut whole = number.value()?;
    let mut cents = match number.fraction.len() {
        0 => 0,
        1 | 2 => format!("{:0<2}", number.fraction).parse().ok()?,
        3 if lang != Lang::En && !number.whole.starts_with('0') => {
            // "1.500 грн": a thousand and a half, since no price has thousandths.
            whole = whole * 1000 + number.fraction.parse::<u64>().ok()?;
            0
        }
        _ => return Some(format!("{} {}", decimal(lang, number, Gender::M, None)?, money.unit.of_fraction())),
    };
    if whole >= TOO_LARGE {
        cents = 0;
        whole = TOO_LARGE - 1;
    }
    Some(match (whole, cents) {
        (whole, 0) => quantity(whole, money.unit),
        (0, cents) => quantity(cents, money.cent),
        (whole, cents) => {
            let and = if lang == Lang::En { " and " } else { " " };
            format!("{}{and}{}", quantity(whole, money.unit), quantity(cents, money.cent))
        }
    })
}

/// "1.5 million dollars".
fn scaled_words(place: &Place, number: &Number, noun: Noun, of: Option<Noun>) -> Option<String> {
    let lang = place.lang;
    let case = of_noun(case_of(place));
    let mut words = if number.fraction.is_empty() {
        let n = number.value()?;
        format!("{} {}", cardinal(lang, n, noun.gender, case), noun.with(lang, n, case))
    } else {
        format!("{} {}", decimal(lang, number, noun.gender, Some(case))?, noun.of_fraction())
    };
    if let Some(of) = of {
        words.push(' ');
        words.push_str(of.of_many(lang));
    }
    Some(words)
}

/// A number with a fraction. Where something is counted in the nominative, one and a half is a word of its own.
fn decimal(lang: Lang, number: &Number, gender: Gender, counted: Option<Case>) -> Option<String> {
    let whole = number.value()?;
    if lang == Lang::En {
        return Some(format!("{} point {}", plain(lang, whole), digit_by_digit(lang, &number.fraction)));
    }
    let uk = lang == Lang::Uk;
    if whole == 1 && number.fraction == "5" && counted.is_some_and(|case| case != Case::Gen) {
        let word = match (uk, gender) {
            (true, Gender::F) => "півтори",
            (true, _) => "півтора",
            (false, Gender::F) => "полторы",
            (false, _) => "полтора",
        };
        return Some(word.to_owned());
    }
    let part: u64 = number.fraction.parse().unwrap_or_default();
    let parts = match (number.fraction.len(), uk) {
        (1, true) => "десята десятих",
        (2, true) => "сота сотих",
        (3, true) => "тисячна тисячних",
        (1, false) => "десятая десятых",
        (2, false) => "сотая сотых",
        (3, false) => "тысячная тысячных",
        _ => {
            let comma = if uk { "кома" } else { "запятая" };
            return Some(format!("{} {comma} {}", plain(lang, whole), digit_by_digit(lang, &number.fraction)));
        }
    };
    let pick = |n, forms: &'static str| forms.split(' ').nth(usize::from(Count::of(n) != Count::One)).unwrap_or(forms);
    let cardinal = |n| cardinal(lang, n, Gender::F, Case::Nom);
    let wholes = pick(whole, if uk { "ціла цілих" } else { "целая целых" });
    Some(format!("{} {wholes} {} {}", cardinal(whole), cardinal(part), pick(part, parts)))
}

/// "/night" after an amount.
fn per(place: &Place, len: usize, mut words: String) -> Reading {
    let Some(after) = place.rest[len..].strip_prefix('/').filter(|after| after.starts_with(char::is_alphabetic)) else {
        return Reading { len, words };
    };
    words.push_str(if place.lang == Lang::En { " per " } else { " за " });
    match unit(place.lang, after) {
        Some((noun, more)) => {
            let case = if place.lang == Lang::En { Case::Nom } else { Case::Acc };
            words.push_str(noun.with(place.lang, 1, case));
            Reading { len: len + 1 + more + point(&after[more..]), words }
        }
        None => Reading { len: len + 1, words },
    }
}

// --- ranges --------------------------------------------------------------------------------------------------------

/// "3–5", "10-15%", "3–5 км".
fn range(place: &Place) -> Option<Reading> {
    let lang = place.lang;
    let first = Number::parse(lang, place.rest)?;
    // "5%–10%" and the like: what is written twice is said once.
    let mut at = first.len;
    let doubled = tail(lang, &place.rest[at..]).filter(|tail| dash(&place.rest[at + tail.len..]).is_some());
    at += doubled.as_ref().map_or(0, |tail| tail.len);
    let (dash, after) = dash(&place.rest[at..])?;
    let second = Number::parse(lang, after)?;
    let len = at + dash + second.len;
    let more = &place.rest[len..];
    let chained =
        place.before.strip_suffix(DASHES).is_some_and(|before| before.ends_with(|c: char| c.is_ascii_digit()));
    let leading_zero = [&first, &second].into_iter().any(|n| n.whole.starts_with('0') && n.whole.len() > 1);
    if leading_zero || chained || more.strip_prefix(DASHES).is_some_and(|rest| digits(rest) > 0) {
        return None;
    }
    let (from, until) = (first.value()?, second.value()?);
    if from >= until {
        return None;
    }
    let tail = tail(lang, more).filter(|tail| tail.scale.is_none());
    let noun = tail.as_ref().and_then(|tail| tail.unit.or(tail.money.map(|money| money.unit)));
    let tail_len = tail.as_ref().map_or(0, |tail| tail.len);
    if !first.fraction.is_empty() || !second.fraction.is_empty() {
        let to = match lang {
            Lang::En => "to",
            Lang::Uk => "до",
            Lang::Ru => "до",
        };
        let say = |n: &Number| match n.fraction.as_str() {
            "" => n.value().map(|whole| plain(lang, whole)),
            _ => decimal(lang, n, Gender::M, None),
        };
        let mut words = format!("{} {to} {}", say(&first)?, say(&second)?);
        if let Some(noun) = noun {
            words.push(' ');
            words.push_str(noun.of_fraction());
        }
        return Some(Reading { len: len + tail_len, words });
    }
    if noun.is_none() && more.starts_with(char::is_alphanumeric) {
        return None;
    }
    // English years: "2020–2026".
    if lang == Lang::En
        && noun.is_none()
        && (1900..2100).contains(&from)
        && (1900..2100).contains(&until)
        && !first.grouped
    {
        return Some(Reading { len, words: format!("{} to {}", english_year(from), english_year(until)) });
    }
    // "2–4 особи", "1-2 дня": the noun stands as if there were only the second number.
    if lang != Lang::En && noun.is_none() && Count::of(until) != Count::Many && !place.word_at(len).is_empty() {
        let (gender, case) = agreement(place, len, 2, case_of(place).unwrap_or(Case::Nom));
        let say = |n| cardinal(lang, n, gender, case);
        return Some(Reading { len, words: format!("{}-{}", say(from), say(until)) });
    }
    Some(ranged(place, from, until, noun, len + tail_len))
}

fn ranged(place: &Place, from: u64, until: u64, noun: Option<Noun>, len: usize) -> Reading {
    let lang = place.lang;
    if lang == Lang::En {
        let and = if place.previous() == "between" { "and" } else { "to" };
        let noun = noun.map_or(String::new(), |noun| format!(" {}", noun.with(lang, until, Case::Nom)));
        return Reading { len, words: format!("{} {and} {}{noun}", plain(lang, from), plain(lang, until)) };
    }
    let gender = noun.map_or(Gender::M, |noun| noun.gender);
    let (bare, case) = match case_of(place) {
        Some(case) => (true, if noun.is_some() { of_noun(Some(case)) } else { case }),
        None => (false, Case::Gen),
    };
    let (first, second) = (cardinal(lang, from, gender, case), cardinal(lang, until, gender, case));
    let mut words = match (bare, lang) {
        (true, _) => format!("{first}-{second}"),
        (false, Lang::Uk) => format!("від {first} до {second}"),
        (false, _) => format!("от {first} до {second}"),
    };
    if let Some(noun) = noun {
        words.push(' ');
        words.push_str(noun.with(lang, until, case));
    }
    Reading { len, words }
}

// --- single numbers ------------------------------------------------------------------------------------------------

fn number(place: &Place) -> Option<Reading> {
    let (lang, text) = (place.lang, place.rest);
    let number = Number::parse(lang, text)?;
    let after = &text[number.len..];
    let whole_number = number.fraction.is_empty();
    if whole_number && let Some(reading) = suffixed(place, &number) {
        return Some(reading);
    }
    let digits = &text[..number.len];
    let leading_zero = whole_number && digits.len() > 1 && digits.starts_with('0');
    if whole_number
        && !leading_zero
        && !number.grouped
        && let Some(reading) = year(place, &number).or_else(|| hour_or_floor(place, &number))
    {
        return Some(reading);
    }
    if !leading_zero && let Some(tail) = tail(lang, after) {
        let len = number.len + tail.len;
        let words = match tail {
            Tail { scale: Some(scale), money, unit, .. } => {
                scaled_words(place, &number, scale, unit.or(money.map(|money| money.unit)))?
            }
            Tail { money: Some(money), .. } => price(place, &number, money)?,
            Tail { unit: Some(noun), .. } => {
                let case = of_noun(case_of(place));
                if whole_number {
                    let n = number.value()?;
                    format!("{} {}", cardinal(lang, n, noun.gender, case), noun.with(lang, n, case))
                } else {
                    let count = decimal(lang, &number, noun.gender, Some(case))?;
                    let noun = if lang == Lang::En { noun.with(lang, 2, case) } else { noun.of_fraction() };
                    format!("{count} {noun}")
                }
            }
            _ => return None,
        };
        return Some(per(place, len, words));
    }
    if after.starts_with(char::is_alphabetic) {
        // A code; it is read as one.
        return None;
    }
    let identifier = whole_number
        && !number.grouped
        && (leading_zero
            || number.whole.len() >= IDENTIFIER && !number.whole.ends_with("000")
            || number.whole.len() >= 4 && place.is_about_codes());
    let words = if identifier || number.value().is_none() {
        digits_of_code(lang, &number.whole)
            + &if whole_number { String::new() } else { format!(" {}", digits_of_code(lang, &number.fraction)) }
    } else if whole_number {
        counting(place, &number)?
    } else {
        let next = place.word_at(number.len);
        let gender = if next.ends_with(['и', 'і', 'ы']) { Gender::F } else { Gender::M };
        let counted = (!next.is_empty()).then(|| of_noun(case_of(place)));
        decimal(lang, &number, gender, counted)?
    };
    Some(Reading { len: number.len, words })
}

/// "1st", "5-й", "2-х", "2-кімнатна", "5-star".
fn suffixed(place: &Place, number: &Number) -> Option<Reading> {
    let (lang, text) = (place.lang, place.rest);
    let after = &text[number.len..];
    let n = number.value()?;
    if lang == Lang::En {
        let suffix = english_suffix(after);
        if suffix > 0 {
            return Some(Reading { len: number.len + suffix, words: nth(lang, n) });
        }
        // "5-star", "the 1990s".
        if let Some(rest) = after.strip_prefix('-').filter(|rest| rest.starts_with(char::is_lowercase)) {
            return Some(Reading { len: text.len() - rest.len(), words: plain(lang, n) + "-" });
        }
        if let Some(rest) = after.strip_prefix("s").filter(|rest| !rest.starts_with(char::is_alphanumeric))
            && n % 10 == 0
            && n >= 20
        {
            let decade = if n >= 1000 { english_year(n) } else { plain(lang, n) };
            let decade = decade.strip_suffix('y').map_or_else(|| format!("{decade}s"), |stem| format!("{stem}ies"));
            return Some(Reading { len: text.len() - rest.len(), words: decade });
        }
        return None;
    }
    let rest = after.strip_prefix(['-', '\u{2011}', '–'])?;
    let suffix = letters(rest);
    if suffix.is_empty() {
        return None;
    }
    let len = text.len() - rest.len() + suffix.len();
    if rest[suffix.len()..].starts_with(|c: char| {
        c.is_ascii_digit() || (c == '-' && rest[suffix.len() + 1..].starts_with(char::is_alphanumeric))
    }) {
        return None;
    }
    use Case::{Acc, Dat, Gen, Ins, Loc, Nom};
    use Gender::{F, M, N, Plural};
    let after_in = matches!(place.previous().as_str(), "на" | "в" | "у" | "о" | "об" | "во" | "при");
    let (gender, case) = match suffix {
        "й" | "ий" | "ій" if lang == Lang::Ru || suffix != "ій" => {
            // "о 5-й" is an hour, and Russian has one ending for four cases of the feminine.
            if after_in && (lang == Lang::Ru || matches!(place.previous().as_str(), "о" | "об")) {
                (F, Loc)
            } else {
                (M, Nom)
            }
        }
        "ый" => (M, Nom),
        "го" | "ого" | "его" | "ього" => (M, Gen),
        "му" | "ому" | "ему" => (M, if after_in { Loc } else { Dat }),
        "м" | "ом" | "ем" if lang == Lang::Ru => (M, if after_in { Loc } else { Ins }),
        "м" | "им" | "ым" => (M, Ins),
        "ша" | "га" | "тя" | "та" | "ма" | "ва" | "на" | "а" | "я" | "ая" | "ья"
            if !(suffix == "ма" && matches!(n, 2..=4)) =>
        {
            (F, Nom)
        }
        "е" | "ті" if place.word_at(len).starts_with("год") => (Plural, Nom),
        "ше" | "ге" | "тє" | "те" | "ме" | "е" | "є" | "ое" | "ье" | "ве" | "не" => (N, Nom),
        "ї" | "ої" | "шої" | "гої" | "тої" => (F, Gen),
        "ій" => (F, Loc),
        "ой" => {
            if after_in || governed(lang, &place.previous()).is_some() {
                (F, Gen)
            } else {
                (M, Nom)
            }
        }
        "шу" | "гу" | "тю" | "ту" | "ву" | "ну" | "у" | "ю" | "ую" => (F, Acc),
        "ою" | "шою" | "гою" => (F, Ins),
        "і" | "ті" | "ші" | "гі" | "ые" | "ие" => (Plural, Nom),
        "их" | "ых" => (Plural, Gen),
        "х" if n >= 5 => (Plural, Gen),
        "х" | "ох" | "ёх" | "ех" | "ти" | "ми" | "ьох" => {
            return Some(Reading { len, words: cardinal(lang, n, M, Gen) });
        }
        "ма" | "мя" | "ьма" | "ома" => return Some(Reading { len, words: cardinal(lang, n, M, Ins) }),
        word if word.chars().count() >= 3 => {
            let prefix = compound(lang, n);
            return Some(Reading { len, words: prefix + &word.to_lowercase() });
        }
        _ => return None,
    };
    Some(Reading { len, words: ordinal(lang, n, gender, case) })
}

/// The beginning of a compound adjective: "дво-", "трёх-", "п'яти-".
fn compound(lang: Lang, n: u64) -> String {
    match (lang, n) {
        (Lang::Uk, 1) | (Lang::Ru, 1) => "одно".to_owned(),
        (Lang::Uk, 2) => "дво".to_owned(),
        (Lang::Uk, 3) => "три".to_owned(),
        (Lang::Uk, 4) => "чотири".to_owned(),
        (Lang::Uk, 100) | (Lang::Ru, 100) => "сто".to_owned(),
        _ => cardinal(lang, n, Gender::M, Case::Gen).replace(' ', ""),
    }
}

fn year(place: &Place, number: &Number) -> Option<Reading> {
    let (lang, n) = (place.lang, number.value()?);
    if number.whole.len() != 4 || !(1000..2200).contains(&n) {
        return None;
    }
    if lang == Lang::En {
        let previous = place.previous();
        let named = (1500..2200).contains(&n) && place.month_before(true);
        let dated = (1900..2100).contains(&n)
            && matches!(
                previous.as_str(),
                "in" | "since"
                    | "until"
                    | "year"
                    | "of"
                    | "by"
                    | "before"
                    | "after"
                    | "spring"
                    | "summer"
                    | "autumn"
                    | "fall"
                    | "winter"
            )
            && tail(lang, &place.rest[4..]).is_none()
            && !place.word_at(4).ends_with('s');
        return (named || dated).then(|| Reading { len: 4, words: english_year(n) });
    }
    let (more, word) = year_word(lang, &place.rest[4..])?;
    let uk = lang == Lang::Uk;
    let previous = place.previous();
    let (case, word) = match word {
        "року" | "года" => (Case::Gen, word),
        "році" => (Case::Loc, word),
        "году" => (if matches!(previous.as_str(), "к" | "ко") { Case::Dat } else { Case::Loc }, word),
        "рік" | "год" => (Case::Nom, word),
        "роком" | "годом" => (Case::Ins, word),
        // "р.", "г.": by the preposition.
        _ => match previous.as_str() {
            "в" | "у" | "во" => (Case::Loc, if uk { "році" } else { "году" }),
            "на" | "за" | "про" | "" => (Case::Nom, if uk { "рік" } else { "год" }),
            _ => (Case::Gen, if uk { "року" } else { "года" }),
        },
    };
    Some(Reading { len: 4 + more, words: format!("{} {word}", ordinal(lang, n, Gender::M, case)) })
}

/// "о 9", "до 9 ранку", "5 поверх".
fn hour_or_floor(place: &Place, number: &Number) -> Option<Reading> {
    let lang = place.lang;
    let n = number.value()?;
    let next = place.word_at(number.len);
    let previous = place.previous();
    let floor = match next.as_str() {
        "поверх" | "этаж" => Some((Gender::M, Case::Nom)),
        "поверсі" | "этаже" => Some((Gender::M, Case::Loc)),
        "поверху" => Some((Gender::M, Case::Gen)),
        "годині" if lang == Lang::Uk => Some((Gender::F, Case::Loc)),
        _ => None,
    };
    let say = |gender, case| Some(Reading { len: number.len, words: ordinal(lang, n, gender, case) });
    if let Some((gender, case)) = floor.filter(|_| lang != Lang::En) {
        return say(gender, case);
    }
    if lang != Lang::Uk || n > 24 {
        return None;
    }
    let of_day = matches!(next.as_str(), "ранку" | "вечора" | "дня" | "ночі");
    match previous.as_str() {
        "о" | "об" if tail(lang, &place.rest[number.len..]).is_none() => say(Gender::F, Case::Loc),
        "до" | "від" | "з" | "із" | "після" if of_day || next == "години" => {
            say(Gender::F, Case::Gen)
        }
        "на" if of_day || (next == "годину" && n != 1) => say(Gender::F, Case::Acc),
        _ => None,
    }
}

/// A cardinal number in the case and gender that the words around it show.
fn counting(place: &Place, number: &Number) -> Option<String> {
    let (lang, n) = (place.lang, number.value()?);
    if lang == Lang::En {
        return Some(plain(lang, n));
    }
    let next = place.word_at(number.len);
    let length = next.chars().count();
    let ends = |endings: &[&str]| endings.iter().any(|ending| next.ends_with(ending));
    let case = if length >= 4 && ends(&["ами", "ями", "ьми"]) {
        Some(Case::Ins)
    } else if length >= 5 && ends(&["ам", "ям"]) && !ends(&["грам", "грамм"]) {
        Some(Case::Dat)
    } else if length >= 4 && ends(&["ах", "ях"]) {
        Some(Case::Loc)
    } else {
        case_of(place)
    };
    let (gender, case) = agreement(place, number.len, n, case.unwrap_or(Case::Nom));
    Some(cardinal(lang, n, gender, case))
}

/// Gender for a number that ends in one or two, by the word after it; and the accusative where that word shows it.
fn agreement(place: &Place, at: usize, n: u64, case: Case) -> (Gender, Case) {
    let lang = place.lang;
    let next = place.word_at(at);
    // "2 свободные комнаты": the noun comes after its adjective.
    let noun = if lang == Lang::Ru && next.ends_with(['е', 'х']) || lang == Lang::Uk && next.ends_with(['і', 'х']) {
        let after = place.rest[at..].trim_start();
        let more = after.get(next.len()..).unwrap_or_default().trim_start();
        letters(more).to_lowercase()
    } else {
        next.clone()
    };
    match (n % 100, n % 10) {
        (11 | 12, _) => (Gender::M, case),
        (_, 1) if FEMININE.contains(&next.as_str()) => (Gender::F, case),
        (_, 1) => match next.chars().next_back() {
            Some('а' | 'я') if case != Case::Gen => (Gender::F, case),
            Some('у' | 'ю') if case != Case::Gen && case != Case::Dat => (Gender::F, Case::Acc),
            Some('и' | 'і' | 'ї' | 'ы' | 'й') if case == Case::Gen => (Gender::F, case),
            Some('о' | 'е' | 'є' | 'ё') => (Gender::N, case),
            _ => (Gender::M, case),
        },
        (_, 2) => {
            let feminine = match lang {
                Lang::Ru => noun.ends_with(['ы', 'и']),
                _ => is_feminine_plural(&next) || is_feminine_plural(&noun),
            };
            (if feminine { Gender::F } else { Gender::M }, case)
        }
        _ => (Gender::M, case),
    }
}

/// Feminine nouns that do not look it.
const FEMININE: [&str; 14] = [
    "ніч",
    "зустріч",
    "річ",
    "мить",
    "відповідь",
    "подорож",
    "ночь",
    "дверь",
    "площадь",
    "запись",
    "часть",
    "очередь",
    "вещь",
    "кровать",
];

/// Feminine nouns that are counted on the phone: in Ukrainian the plural does not show it. Without the last letter.
const UK_FEMININE: [&str; 45] = [
    "гривн",
    "копійк",
    "годин",
    "хвилин",
    "секунд",
    "кімнат",
    "ноч",
    "особ",
    "людин",
    "порці",
    "страв",
    "пляшк",
    "чашк",
    "тисяч",
    "сторінк",
    "зустріч",
    "заявк",
    "картк",
    "послуг",
    "дитин",
    "доб",
    "доз",
    "позиці",
    "упаковк",
    "коробк",
    "книг",
    "машин",
    "квартир",
    "зірк",
    "вакансі",
    "помилк",
    "спроб",
    "ліні",
    "адрес",
    "дат",
    "причин",
    "пропозиці",
    "знижк",
    "частин",
    "тарілк",
    "склянк",
    "камер",
    "путівк",
    "штук",
    "сесі",
];

fn is_feminine_plural(word: &str) -> bool {
    word.strip_suffix(['и', 'і', 'ї']).is_some_and(|stem| UK_FEMININE.contains(&stem))
}

/// "Nov. 22", "22 Nov": an English month cut short, beside a number.
pub(super) fn short_month(place: &Place) -> Option<Reading> {
    let word = letters(place.rest);
    if place.lang != Lang::En || !matches!(word.len(), 3 | 4) || nouns::EN_MONTHS.contains(&word) {
        return None;
    }
    let full = month_named(place.lang, word)?;
    let after = &place.rest[word.len()..];
    let point = usize::from(after.starts_with('.'));
    let number_follows = after[point..].trim_start_matches(BLANKS).starts_with(|c: char| c.is_ascii_digit());
    number_follows.then(|| Reading { len: word.len() + point, words: full.to_owned() })
}
