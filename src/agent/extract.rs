//! Typed values out of heard words: numbers, people, days, times, names, digits. Tolerates what recognisers do to such
//! words on a telephone ("for for", "at to"). Where several candidates stand, the last one counts: callers correct
//! themselves forwards. English is whole; Ukrainian and Russian know numbers, days, hours and the usual name phrases.

use serde::{Deserialize, Serialize};

use super::hear::{Heard, Pattern, is_language};
use crate::conversation::spoken::english;

/// A slot's value: for programs, and as it is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotValue {
    /// `4`, `friday`, `19:00`, `Maria`, `380501234567`.
    pub value: String,
    /// `four`, `Friday`, `seven`.
    pub spoken: String,
    /// With its preposition where it takes one: `on Friday`, but `tomorrow`.
    pub on: String,
}

impl SlotValue {
    pub fn text(text: impl Into<String>) -> Self {
        let text = text.into();
        Self { value: text.clone(), spoken: text.clone(), on: text }
    }

    fn new(value: impl Into<String>, spoken: impl Into<String>) -> Self {
        let spoken = spoken.into();
        Self { value: value.into(), on: spoken.clone(), spoken }
    }
}

/// Which half of the day an hour without "morning" or "evening" means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefer {
    Am,
    Pm,
    /// Office hours: eight to eleven are morning, twelve to seven afternoon.
    Day,
}

/// One answer of a choice.
#[derive(Clone, Debug)]
pub struct Choice {
    pub value: String,
    pub hear: Vec<Pattern>,
}

/// What a slot holds.
#[derive(Clone, Debug)]
pub enum SlotType {
    /// The words as they were heard; only when asked for.
    Text,
    Number {
        min: u32,
        max: u32,
    },
    /// A number of people.
    People {
        max: u32,
    },
    /// A weekday, today, tomorrow, or a date.
    Day,
    Time {
        prefer: Prefer,
    },
    /// A day, a time, or both: when to call back.
    Moment,
    Name,
    /// Digits one by one; `length` 0 = any number of them.
    Digits {
        length: usize,
    },
    Phone,
    /// `maria.lopez@example.com`, written or said ("maria dot lopez at example dot com").
    Email,
    /// The words as they were heard, when asked for.
    Address,
    YesNo,
    Choice(Vec<Choice>),
}

/// Largest number of people that a bare number can mean.
pub const MAX_PEOPLE: u32 = 500;

impl SlotType {
    /// The value in an utterance. `asked`: the agent has just asked for this slot, so a bare number or word may be it;
    /// otherwise only what says plainly what it is counts. `other_number`: another slot that takes numbers was asked
    /// for, so "for seven" is not this one.
    pub fn extract(&self, language: &str, heard: &Heard, asked: bool, other_number: bool) -> Option<SlotValue> {
        let words = heard.words();
        if words.is_empty() {
            return None;
        }
        let lang = Lang::of(language);
        match self {
            SlotType::Text | SlotType::Address => asked.then(|| SlotValue::text(heard.text())),
            SlotType::Email => email(&words),
            SlotType::Number { min, max } => number_slot(lang, &words, *min, *max, asked),
            SlotType::People { max } => people(lang, &words, *max, asked, other_number),
            SlotType::Day => day(lang, &words),
            SlotType::Time { prefer } => {
                time(lang, &words, asked).map(|found| found.resolve(*prefer)).map(|clock| clock.slot(lang, *prefer))
            }
            SlotType::Moment => moment(lang, &words, asked),
            SlotType::Name => name(lang, &words, asked),
            SlotType::Digits { length } => digits(lang, &words, asked, *length),
            SlotType::Phone => digits(lang, &words, asked, 0).filter(|found| found.value.len() >= 6).map(|found| {
                let plus = if words.iter().any(|word| word.starts_with('+') || *word == "plus") { "+" } else { "" };
                SlotValue { value: format!("{plus}{}", found.value), ..found }
            }),
            SlotType::YesNo => yes_no(lang, &words),
            SlotType::Choice(choices) => {
                let said = |choice: &&Choice| {
                    heard.text() == choice.value.to_lowercase()
                        || choice.hear.iter().any(|pattern| pattern.matches(heard))
                };
                let found = choices.iter().find(said)?;
                Some(SlotValue::text(found.value.clone()))
            }
        }
    }

    /// What it holds, for a model.
    pub fn in_words(&self) -> String {
        match self {
            SlotType::Text => "text".into(),
            SlotType::Number { min, max } => format!("number from {min} to {max}"),
            SlotType::People { max } => format!("number of people, at most {max}"),
            SlotType::Day => "day: a weekday, today, tomorrow or a date".into(),
            SlotType::Time { .. } => "time of day".into(),
            SlotType::Moment => "day, time, or both".into(),
            SlotType::Name => "name of a person".into(),
            SlotType::Digits { length: 0 } => "digits".into(),
            SlotType::Digits { length } => format!("{length} digits"),
            SlotType::Phone => "phone number".into(),
            SlotType::Email => "e-mail address".into(),
            SlotType::Address => "postal address".into(),
            SlotType::YesNo => "yes or no".into(),
            SlotType::Choice(choices) => {
                let values: Vec<&str> = choices.iter().map(|choice| choice.value.as_str()).collect();
                format!("one of: {}", values.join(", "))
            }
        }
    }

    /// Whether its values are numbers that can be compared.
    pub fn counts(&self) -> bool {
        matches!(self, SlotType::Number { .. } | SlotType::People { .. })
    }

    /// Whether a bare number can answer a question for it.
    pub fn takes_numbers(&self) -> bool {
        matches!(
            self,
            SlotType::Number { .. }
                | SlotType::People { .. }
                | SlotType::Time { .. }
                | SlotType::Moment
                | SlotType::Digits { .. }
                | SlotType::Phone
        )
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lang {
    En,
    Uk,
    Ru,
}

impl Lang {
    fn of(tag: &str) -> Self {
        match tag {
            tag if is_language(tag, "uk") => Lang::Uk,
            tag if is_language(tag, "ru") => Lang::Ru,
            _ => Lang::En,
        }
    }
}

// --- numbers -------------------------------------------------------------------------------------------------------

const EN_ORDINALS: &[&str] = &[
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
    "thirteenth",
    "fourteenth",
    "fifteenth",
    "sixteenth",
    "seventeenth",
    "eighteenth",
    "nineteenth",
];

/// Stems of Ukrainian and Russian number words below twenty, longest first where one begins another. They cover cases
/// ("чотирьох", "четверых") and hours ("о сьомій", "седьмого").
const UK_STEMS: &[(&str, u32)] = &[
    ("одинадцят", 11),
    ("дванадцят", 12),
    ("тринадцят", 13),
    ("чотирнадцят", 14),
    ("п'ятнадцят", 15),
    ("шістнадцят", 16),
    ("сімнадцят", 17),
    ("вісімнадцят", 18),
    ("дев'ятнадцят", 19),
    ("нуль", 0),
    ("один", 1),
    ("одна", 1),
    ("одну", 1),
    ("одне", 1),
    ("одного", 1),
    ("одній", 1),
    ("перш", 1),
    ("два", 2),
    ("дві", 2),
    ("двох", 2),
    ("двоє", 2),
    ("друг", 2),
    ("три", 3),
    ("трьох", 3),
    ("троє", 3),
    ("трет", 3),
    ("чотир", 4),
    ("четвер", 4),
    ("четверт", 4),
    ("п'ят", 5),
    ("шіст", 6),
    ("шест", 6),
    ("шост", 6),
    ("сім", 7),
    ("семи", 7),
    ("семеро", 7),
    ("сьом", 7),
    ("вісім", 8),
    ("вось", 8),
    ("дев'ят", 9),
    ("десят", 10),
];
const UK_TENS: &[(&str, u32)] = &[
    ("двадцят", 20),
    ("тридцят", 30),
    ("сорок", 40),
    ("п'ятдесят", 50),
    ("шістдесят", 60),
    ("сімдесят", 70),
    ("вісімдесят", 80),
    ("дев'яност", 90),
];
const RU_STEMS: &[(&str, u32)] = &[
    ("одиннадцат", 11),
    ("двенадцат", 12),
    ("тринадцат", 13),
    ("четырнадцат", 14),
    ("пятнадцат", 15),
    ("шестнадцат", 16),
    ("семнадцат", 17),
    ("восемнадцат", 18),
    ("девятнадцат", 19),
    ("ноль", 0),
    ("один", 1),
    ("одна", 1),
    ("одну", 1),
    ("одно", 1),
    ("перв", 1),
    ("два", 2),
    ("две", 2),
    ("двух", 2),
    ("двое", 2),
    ("втор", 2),
    ("три", 3),
    ("трех", 3),
    ("трёх", 3),
    ("трое", 3),
    ("трет", 3),
    ("четыр", 4),
    ("четвер", 4),
    ("пят", 5),
    ("шест", 6),
    ("сем", 7),
    ("седьм", 7),
    ("восем", 8),
    ("восьм", 8),
    ("девят", 9),
    ("десят", 10),
];
const RU_TENS: &[(&str, u32)] = &[
    ("двадцат", 20),
    ("тридцат", 30),
    ("сорок", 40),
    ("пятьдесят", 50),
    ("шестьдесят", 60),
    ("семьдесят", 70),
    ("восемьдесят", 80),
    ("девяност", 90),
];

/// Words that begin like a number and are none: weekdays, and "сім'я" (family).
const NOT_NUMBERS: &[&str] = &[
    "четвер",
    "четверг",
    "п'ятниця",
    "п'ятницю",
    "п'ятниці",
    "пятница",
    "пятницу",
    "пятницы",
    "вторник",
    "другой",
    "другий",
    "друга",
    "друзі",
    "друзей",
    "первый",
    "сім'я",
    "сім'ї",
    "семья",
    "семьи",
    "семён",
    "три-чотири",
];

fn stem(table: &[(&str, u32)], word: &str) -> Option<u32> {
    if NOT_NUMBERS.contains(&word) {
        return None;
    }
    let best = table.iter().filter(|(stem, _)| word.starts_with(stem)).max_by_key(|(stem, _)| stem.len())?;
    // A stem with a long rest is another word ("тримати", "семинар").
    (word.chars().count() <= best.0.chars().count() + 4).then_some(best.1)
}

fn unit(lang: Lang, word: &str) -> Option<u32> {
    match lang {
        Lang::En => english::unit(word),
        Lang::Uk => stem(UK_TENS, word).is_none().then(|| stem(UK_STEMS, word)).flatten(),
        Lang::Ru => stem(RU_TENS, word).is_none().then(|| stem(RU_STEMS, word)).flatten(),
    }
}

fn tens(lang: Lang, word: &str) -> Option<u32> {
    match lang {
        Lang::En => english::tens(word),
        Lang::Uk => stem(UK_TENS, word),
        Lang::Ru => stem(RU_TENS, word),
    }
}

/// A cardinal number that begins at a word, and how many words it takes: "twenty two", "22", "two hundred and five".
fn number_at(lang: Lang, words: &[&str], at: usize) -> Option<(u32, usize)> {
    let word = *words.get(at)?;
    if word.chars().all(|c| c.is_ascii_digit()) {
        return word.parse().ok().map(|n| (n, 1));
    }
    if let Some(round) = hundreds(lang, word) {
        return Some(match below_hundred(lang, words, at + 1).filter(|(rest, _)| *rest > 0) {
            Some((rest, used)) => (round + rest, used + 1),
            None => (round, 1),
        });
    }
    let (mut number, mut used) = below_hundred(lang, words, at)?;
    if lang == Lang::En && words.get(at + used) == Some(&"hundred") && (1..=9).contains(&number) {
        number *= 100;
        used += 1;
        let gap = usize::from(words.get(at + used) == Some(&"and"));
        if let Some((rest, more)) = below_hundred(lang, words, at + used + gap) {
            number += rest;
            used += gap + more;
        }
    }
    Some((number, used))
}

/// The Slavic hundreds, which are words of their own.
fn hundreds(lang: Lang, word: &str) -> Option<u32> {
    let words: &[&str] = match lang {
        Lang::En => return None,
        Lang::Uk => &["сто", "двісті", "триста", "чотириста", "п'ятсот", "шістсот", "сімсот", "вісімсот", "дев'ятсот"],
        Lang::Ru => {
            &["сто", "двести", "триста", "четыреста", "пятьсот", "шестьсот", "семьсот", "восемьсот", "девятьсот"]
        }
    };
    words.iter().position(|known| *known == word).map(|at| (at as u32 + 1) * 100)
}

fn below_hundred(lang: Lang, words: &[&str], at: usize) -> Option<(u32, usize)> {
    let word = *words.get(at)?;
    if let Some(round) = tens(lang, word) {
        return Some(match words.get(at + 1).and_then(|next| unit(lang, next)).filter(|n| (1..=9).contains(n)) {
            Some(n) => (round + n, 2),
            None => (round, 1),
        });
    }
    unit(lang, word).map(|n| (n, 1))
}

/// "seventeenth", "twenty first", "17th", and "17" where a date is certain.
fn ordinal_at(lang: Lang, words: &[&str], at: usize) -> Option<(u32, usize)> {
    let word = *words.get(at)?;
    if lang != Lang::En {
        return number_at(lang, words, at);
    }
    for ending in ["st", "nd", "rd", "th"] {
        if let Some(n) = word.strip_suffix(ending).and_then(|digits| digits.parse().ok()) {
            return Some((n, 1));
        }
    }
    if let Some(n) = EN_ORDINALS.iter().position(|&name| name == word) {
        return Some((n as u32 + 1, 1));
    }
    match word {
        "twentieth" => Some((20, 1)),
        "thirtieth" => Some((30, 1)),
        "twenty" | "thirty" => {
            let n = EN_ORDINALS[..9].iter().position(|name| Some(name) == words.get(at + 1))?;
            Some((if word == "twenty" { 20 } else { 30 } + n as u32 + 1, 2))
        }
        _ => None,
    }
}

/// A number as a word where the language has it here, else in digits (the voice reads those in its own language).
fn spoken_number(lang: Lang, number: u32) -> String {
    let word = if lang == Lang::En { english::below_hundred(number) } else { None };
    word.unwrap_or_else(|| number.to_string())
}

/// English words that recognisers write for a number, where a number must stand.
fn slip(lang: Lang, word: &str) -> Option<u32> {
    if lang != Lang::En {
        return None;
    }
    Some(match word {
        "won" => 1,
        "to" | "too" => 2,
        "free" | "tree" => 3,
        "for" | "fore" => 4,
        "ate" => 8,
        _ => return None,
    })
}

fn number_slot(lang: Lang, words: &[&str], min: u32, max: u32, asked: bool) -> Option<SlotValue> {
    let mut found = None;
    let mut at = 0;
    while at < words.len() {
        match number_at(lang, words, at) {
            Some((n, used)) => {
                if asked && (min..=max).contains(&n) {
                    found = Some(n);
                }
                at += used;
            }
            None => at += 1,
        }
    }
    let n = found.or_else(|| match words {
        [word] if asked => slip(lang, word).filter(|n| (min..=max).contains(n)),
        _ => None,
    })?;
    Some(SlotValue::new(n.to_string(), spoken_number(lang, n)))
}

// --- people --------------------------------------------------------------------------------------------------------

fn is_people_word(word: &str) -> bool {
    matches!(
        word,
        "people" | "person" | "persons" | "guests" | "guest" | "adults" | "seats" | "places" | "ladies" | "friends"
    ) || ["людей", "люди", "людини", "осіб", "особи", "особа", "гостей", "гості", "гостя", "человек", "персон", "гость"]
        .iter()
        .any(|stem| word.starts_with(stem))
}

/// Words after a number that make it a time, a sum or a date.
fn is_other_unit(word: &str) -> bool {
    matches!(
        word,
        "o'clock"
            | "am"
            | "pm"
            | "thirty"
            | "fifteen"
            | "minutes"
            | "minute"
            | "hours"
            | "hour"
            | "days"
            | "weeks"
            | "euros"
            | "euro"
            | "dollars"
            | "pounds"
            | "cents"
            | "nights"
            | "night"
            | "past"
    ) || ["годин", "хвилин", "вечора", "ранку", "час", "минут", "вечера", "утра", "дня", "гривень", "гривен", "рублей"]
        .iter()
        .any(|stem| word.starts_with(stem))
}

fn people(lang: Lang, words: &[&str], max: u32, asked: bool, other_number: bool) -> Option<SlotValue> {
    let word = |at: usize| words.get(at).copied().unwrap_or("");
    let mut strict = None;
    let mut bare = None;
    let mut at = 0;
    while at < words.len() {
        let before = at.checked_sub(1).map_or("", word);
        let before_for =
            matches!(before, "for" | "party" | "на" | "для") || (before == "of" && at > 1 && word(at - 2) == "party");
        // A slip can only be a number where people are plainly counted: after "for" with nothing or "people" behind.
        let found = number_at(lang, words, at).or_else(|| {
            let counted = is_people_word(word(at + 1))
                || (before_for && matches!(word(at + 1), "" | "please" | "at" | "on" | "this" | "today" | "tomorrow"));
            (before_for || is_people_word(word(at + 1)) && at > 0)
                .then(|| slip(lang, word(at)))?
                .filter(|_| counted)
                .map(|n| (n, 1))
        });
        let Some((number, used)) = found else {
            // "for for" is tried at the second word; a single "me" is one person.
            if asked && word(at) == "me" && (at == 0 || matches!(before, "just" | "only")) {
                strict = Some(1);
            }
            at += 1;
            continue;
        };
        let after = word(at + used);
        let of_us = after == "of" && matches!(word(at + used + 1), "us" | "them" | "you");
        let counts_us = matches!(before, "are" | "be") && matches!(word(at.wrapping_sub(2)), "we" | "there" | "will");
        let vs_collective = lang != Lang::En && ["двоє", "троє", "четверо", "двое", "трое", "нас"].contains(&word(at));
        if (1..=max).contains(&number)
            && !is_other_unit(after)
            && !matches!(before, "at" | "around" | "about" | "past" | "half")
        {
            if is_people_word(after)
                || of_us
                || counts_us
                || vs_collective
                || (before_for && !other_number && !dated(words, at + used))
            {
                strict = Some(number);
            } else if asked {
                bare = Some(number);
            }
        }
        at += used;
    }
    let slipped = || match words {
        [one] | [one, "please"] | ["table", one] | ["for", one] | ["for", one, "please"] if asked => slip(lang, one),
        _ => None,
    };
    let number = strict.or(bare).or_else(slipped).filter(|n| (1..=max).contains(n))?;
    let spoken = spoken_number(lang, number);
    Some(SlotValue::new(number.to_string(), spoken))
}

/// Whether a month stands at a word: the number before it is a date.
fn dated(words: &[&str], at: usize) -> bool {
    let of = usize::from(words.get(at) == Some(&"of"));
    words.get(at + of).is_some_and(|word| month(word).is_some())
}

// --- days ----------------------------------------------------------------------------------------------------------

const WEEKDAYS: &[&str] = &["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
const MONTHS: &[&str] = &[
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];

/// Index from Monday, the word in the accusative ("у п'ятницю"), by the beginning of the word.
const UK_DAYS: &[(&str, usize, &str)] = &[
    ("понеділ", 0, "понеділок"),
    ("вівтор", 1, "вівторок"),
    ("серед", 2, "середу"),
    ("четвер", 3, "четвер"),
    ("п'ятниц", 4, "п'ятницю"),
    ("субот", 5, "суботу"),
    ("неділ", 6, "неділю"),
];
const RU_DAYS: &[(&str, usize, &str)] = &[
    ("понедельник", 0, "понедельник"),
    ("вторник", 1, "вторник"),
    ("сред", 2, "среду"),
    ("четверг", 3, "четверг"),
    ("пятниц", 4, "пятницу"),
    ("суббот", 5, "субботу"),
    ("воскресен", 6, "воскресенье"),
];
const SLAVIC_MONTHS: &[(&str, usize)] = &[
    ("січ", 0),
    ("лют", 1),
    ("берез", 2),
    ("квіт", 3),
    ("трав", 4),
    ("черв", 5),
    ("лип", 6),
    ("серп", 7),
    ("верес", 8),
    ("жовт", 9),
    ("листопад", 10),
    ("груд", 11),
    ("январ", 0),
    ("феврал", 1),
    ("март", 2),
    ("апрел", 3),
    ("мая", 4),
    ("июн", 5),
    ("июл", 6),
    ("август", 7),
    ("сентябр", 8),
    ("октябр", 9),
    ("ноябр", 10),
    ("декабр", 11),
];

fn month(word: &str) -> Option<usize> {
    MONTHS
        .iter()
        .position(|&name| name == word)
        .or_else(|| SLAVIC_MONTHS.iter().find(|(stem, _)| word.starts_with(stem)).map(|found| found.1))
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

fn relative_day(lang: Lang, words: &[&str], at: usize) -> Option<(&'static str, &'static str)> {
    let word = words[at];
    match lang {
        Lang::En => match word {
            "today" | "tonight" => Some(("today", "today")),
            "tomorrow" if at >= 2 && words[at - 2..at] == ["day", "after"] => {
                Some(("day after tomorrow", "the day after tomorrow"))
            }
            "tomorrow" => Some(("tomorrow", "tomorrow")),
            "weekend" => Some(("weekend", "at the weekend")),
            _ => None,
        },
        Lang::Uk => match word {
            "сьогодні" => Some(("today", "сьогодні")),
            "завтра" => Some(("tomorrow", "завтра")),
            "післязавтра" => Some(("day after tomorrow", "післязавтра")),
            _ => None,
        },
        Lang::Ru => match word {
            "сегодня" => Some(("today", "сегодня")),
            "завтра" => Some(("tomorrow", "завтра")),
            "послезавтра" => Some(("day after tomorrow", "послезавтра")),
            _ => None,
        },
    }
}

fn weekday(lang: Lang, word: &str) -> Option<(usize, String)> {
    match lang {
        Lang::En => {
            let plain = word.strip_suffix('s').filter(|w| WEEKDAYS.contains(w)).unwrap_or(word);
            WEEKDAYS.iter().position(|&name| name == plain).map(|index| (index, capital(plain)))
        }
        Lang::Uk => UK_DAYS.iter().find(|day| word.starts_with(day.0)).map(|day| (day.1, day.2.to_owned())),
        Lang::Ru => RU_DAYS.iter().find(|day| word.starts_with(day.0)).map(|day| (day.1, day.2.to_owned())),
    }
}

/// "the seventeenth of June", "June the seventeenth", "June 17", "on the seventeenth": month (if said) and day.
fn date(lang: Lang, words: &[&str]) -> Option<(Option<usize>, u32)> {
    let mut found = None;
    for at in 0..words.len() {
        let word = |i: usize| words.get(i).copied().unwrap_or("");
        if let Some(month) = month(word(at)) {
            let the = usize::from(matches!(word(at + 1), "the"));
            let day = ordinal_at(lang, words, at + 1 + the).or_else(|| number_at(lang, words, at + 1 + the));
            if let (Some((day @ 1..=31, _)), Lang::En) = (day, lang) {
                found = Some((Some(month), day));
            }
        }
        let Some((day @ 1..=31, used)) = ordinal_at(lang, words, at) else { continue };
        let of = usize::from(word(at + used) == "of");
        if let Some(month) = month(word(at + used + of)) {
            found = Some((Some(month), day));
        } else if lang == Lang::En && at > 0 && words[at - 1] == "the" && found.is_none() {
            // "the second table" is no date: nothing but the end, a time or a filler may follow.
            let after = word(at + used);
            if matches!(
                after,
                "" | "at" | "please" | "for" | "around" | "about" | "in" | "would" | "thank" | "thanks" | "if"
            ) {
                found = Some((None, day));
            }
        }
    }
    found
}

fn spoken_date(lang: Lang, month: Option<usize>, day: u32) -> (String, String) {
    let ordinal = match lang {
        Lang::En => match day {
            1..=19 => EN_ORDINALS[day as usize - 1].to_owned(),
            20 => "twentieth".to_owned(),
            30 => "thirtieth".to_owned(),
            _ => format!("{} {}", english::TENS[day as usize / 10], EN_ORDINALS[day as usize % 10 - 1]),
        },
        _ => day.to_string(),
    };
    match month {
        Some(month) => {
            let name = MONTHS[month];
            let spoken = match lang {
                Lang::En => format!("{} the {ordinal}", capital(name)),
                _ => format!("{day}.{}", month + 1),
            };
            (format!("{name} {day}"), spoken)
        }
        None => (day.to_string(), if lang == Lang::En { format!("the {ordinal}") } else { ordinal }),
    }
}

fn day(lang: Lang, words: &[&str]) -> Option<SlotValue> {
    let date = date(lang, words);
    let mut found: Option<SlotValue> = None;
    for at in 0..words.len() {
        if let Some((value, spoken)) = relative_day(lang, words, at) {
            let next = value == "weekend" && at > 0 && words[at - 1] == "next";
            found =
                Some(if next { SlotValue::new("next weekend", "next weekend") } else { SlotValue::new(value, spoken) });
        } else if let Some((index, name)) = weekday(lang, words[at]) {
            let next = at > 0
                && (words[at - 1] == "next"
                    || words[at - 1].starts_with("наступн")
                    || words[at - 1].starts_with("следующ"));
            let value = format!("{}{}", if next { "next " } else { "" }, WEEKDAYS[index]);
            let (spoken, on) = match (lang, next) {
                (Lang::En, true) => (format!("next {name}"), format!("next {name}")),
                (Lang::En, false) => (name.clone(), format!("on {name}")),
                (Lang::Ru, _) => (name.clone(), format!("{} {name}", if index == 1 { "во" } else { "в" })),
                (Lang::Uk, _) => (name.clone(), format!("у {name}")),
            };
            found = Some(SlotValue { value, spoken, on });
        }
    }
    let Some((month, number)) = date else { return found };
    let (value, spoken) = spoken_date(lang, month, number);
    let on = if lang == Lang::En { format!("on {spoken}") } else { spoken.clone() };
    Some(match found.filter(|day| WEEKDAYS.contains(&day.value.as_str())) {
        Some(day) => SlotValue {
            value: format!("{} {value}", day.value),
            spoken: format!("{}, {spoken}", day.spoken),
            on: format!("{}, {spoken}", day.on),
        },
        None => SlotValue { value, spoken, on },
    })
}

// --- times ---------------------------------------------------------------------------------------------------------

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Morning,
    Later,
}

/// A time as it was said.
#[derive(Clone, Copy)]
struct Said {
    hour: u32,
    minute: u32,
    part: Option<Part>,
}

#[derive(Clone, Copy)]
struct Clock {
    hour: u32,
    minute: u32,
}

impl Said {
    fn resolve(self, prefer: Prefer) -> Clock {
        let Said { hour, minute, part } = self;
        let later = |hour: u32| if hour < 12 { hour + 12 } else { hour };
        let hour = match part {
            // "Twelve in the evening" is midnight, "twelve pm" noon; both keep the dial's twelve.
            Some(Part::Morning) => hour % if hour == 12 { 12 } else { 24 },
            Some(Part::Later) => later(hour),
            None if hour == 0 || hour > 12 => hour,
            None => match prefer {
                Prefer::Am => hour,
                Prefer::Pm => later(hour),
                Prefer::Day if (1..=7).contains(&hour) => later(hour),
                Prefer::Day => hour,
            },
        };
        Clock { hour: hour % 24, minute }
    }
}

impl Clock {
    fn slot(self, lang: Lang, prefer: Prefer) -> SlotValue {
        let Clock { hour, minute } = self;
        let value = format!("{hour:02}:{minute:02}");
        if lang != Lang::En {
            return SlotValue::new(value, format!("{hour}:{minute:02}"));
        }
        let dial = spoken_number(lang, if hour.is_multiple_of(12) { 12 } else { hour % 12 });
        let spoken = match minute {
            0 if hour == 0 => "midnight".to_owned(),
            0 => dial,
            15 => format!("quarter past {dial}"),
            30 => format!("half past {dial}"),
            45 => format!("quarter to {}", spoken_number(lang, hour % 12 + 1)),
            1..=9 => format!("{dial} oh {}", spoken_number(lang, minute)),
            _ => format!("{dial} {}", spoken_number(lang, minute)),
        };
        // What is understood without being said is not said; the unusual half of the day is.
        let usual = Said { hour: if hour.is_multiple_of(12) { 12 } else { hour % 12 }, minute, part: None }
            .resolve(prefer)
            .hour
            == hour;
        let spoken = match (usual || (hour == 0 && minute == 0), hour) {
            (true, _) => spoken,
            (false, 0..12) => format!("{spoken} in the morning"),
            (false, 12..18) => format!("{spoken} in the afternoon"),
            (false, _) => format!("{spoken} in the evening"),
        };
        SlotValue::new(value, spoken)
    }
}

fn part_of_day(words: &[&str]) -> Option<Part> {
    words.iter().find_map(|&word| match word {
        "am" | "morning" | "ранку" | "вранці" | "ранок" | "утра" | "утром" => {
            Some(Part::Morning)
        }
        "pm" | "afternoon" | "evening" | "tonight" | "вечора" | "ввечері" | "дня" | "вечера" | "вечером" | "днём"
        | "днем" | "вдень" => Some(Part::Later),
        _ => None,
    })
}

/// "7:30", "19.30", "7pm", "7:30pm".
fn clock_digits(word: &str) -> Option<(u32, u32, Option<Part>)> {
    let (digits, part) = match (word.strip_suffix("am"), word.strip_suffix("pm")) {
        (Some(digits), _) => (digits, Some(Part::Morning)),
        (_, Some(digits)) => (digits, Some(Part::Later)),
        _ => (word, None),
    };
    let (hour, minute) = match digits.split_once([':', '.']) {
        Some((hour, minute)) if minute.len() == 2 => (hour.parse().ok()?, minute.parse().ok()?),
        Some(_) => return None,
        None if part.is_some() => (digits.parse().ok()?, 0),
        None => return None,
    };
    (hour < 24 && minute < 60).then_some((hour, minute, part))
}

/// The minutes after an hour: "thirty", "fifteen", "oh five", "twenty five".
fn minutes_at(lang: Lang, words: &[&str], at: usize) -> Option<(u32, usize)> {
    if words.get(at) == Some(&"oh") {
        return number_at(lang, words, at + 1).filter(|(n, _)| (1..=9).contains(n)).map(|(n, used)| (n, used + 1));
    }
    number_at(lang, words, at).filter(|(n, _)| (10..=59).contains(n))
}

fn time(lang: Lang, words: &[&str], asked: bool) -> Option<Said> {
    let part = part_of_day(words);
    let word = |at: usize| words.get(at).copied().unwrap_or("");
    let mut strict: Option<Said> = None;
    let mut bare: Option<Said> = None;
    let mut at = 0;
    while at < words.len() {
        let here = word(at);
        if let Some((hour, minute, own)) = clock_digits(here) {
            strict = Some(Said { hour, minute, part: own.or(part) });
            at += 1;
            continue;
        }
        match here {
            "noon" | "midday" | "опівдні" | "полдень" => {
                strict = Some(Said { hour: 12, minute: 0, part: Some(Part::Later) });
                at += 1;
                continue;
            }
            "midnight" | "опівночі" | "полночь" => {
                strict = Some(Said { hour: 0, minute: 0, part: None });
                at += 1;
                continue;
            }
            "half" | "quarter" if matches!(word(at + 1), "past" | "to") => {
                if let Some((hour @ 1..=12, used)) = number_at(lang, words, at + 2) {
                    let (hour, minute) = match (here, word(at + 1)) {
                        ("half", "past") => (hour, 30),
                        ("quarter", "past") => (hour, 15),
                        ("quarter", _) => (if hour == 1 { 12 } else { hour - 1 }, 45),
                        _ => (hour, 0),
                    };
                    strict = Some(Said { hour, minute, part });
                    at += 2 + used;
                    continue;
                }
            }
            // "пів на восьму", "половина восьмого": half an hour before.
            "пів" | "половина" | "половину" | "половине" | "полвосьмого" => {
                let na = usize::from(word(at + 1) == "на");
                if let Some((hour @ 1..=12, used)) = number_at(lang, words, at + 1 + na) {
                    strict = Some(Said { hour: if hour == 1 { 12 } else { hour - 1 }, minute: 30, part });
                    at += 1 + na + used;
                    continue;
                }
            }
            _ => {}
        }
        let before = at.checked_sub(1).map_or("", word);
        let at_time =
            matches!(before, "at" | "around" | "about" | "by" | "after" | "before" | "until" | "past" | "till")
                || (lang != Lang::En
                    && matches!(before, "о" | "об" | "в" | "у" | "к" | "біля" | "около" | "після" | "после"));
        let slipped = || {
            (before == "at" && matches!(word(at + 1), "" | "please" | "o'clock" | "on" | "thank" | "thanks"))
                .then(|| slip(lang, here))
        };
        let number = number_at(lang, words, at).or_else(|| slipped().flatten().map(|n| (n, 1)));
        let Some((hour, used)) = number.filter(|(n, _)| *n < 24) else {
            at += number.map_or(1, |(_, used)| used);
            continue;
        };
        let (minute, more) = minutes_at(lang, words, at + used).unwrap_or((0, 0));
        let after = word(at + used + more);
        // "at seven in the morning" but not "two in a room".
        let in_the = after == "in"
            && word(at + used + more + 1) == "the"
            && part_of_day(&[word(at + used + more + 2)]).is_some();
        let hours_follow = matches!(after, "o'clock" | "am" | "pm")
            || (lang != Lang::En
                && (after.starts_with("годин")
                    || matches!(after, "час" | "часов" | "часа" | "ранку" | "вечора" | "утра" | "вечера" | "дня")));
        let own = part_of_day(&[after]);
        let counted = is_people_word(after)
            || (is_other_unit(after) && !hours_follow)
            || (after == "of" && word(at + used + more + 1) == "us");
        let a_date = dated(words, at + used)
            || (at > 0 && month(before).is_some())
            || (before == "the" && at > 1 && month(word(at - 2)).is_some());
        if !counted && !a_date {
            let said = Said { hour, minute, part: own.or(part) };
            if at_time || hours_follow || in_the || (more > 0 && !matches!(before, "for" | "number")) {
                strict = Some(said);
            } else if asked {
                bare = Some(said);
            }
        }
        at += used + more;
    }
    let slipped = || match words {
        [one] | ["at", one] | [one, "o'clock"] | [one, "please"] if asked => {
            slip(lang, one).map(|hour| Said { hour, minute: 0, part })
        }
        _ => None,
    };
    strict.or(bare).or_else(slipped)
}

/// Parts of the day and vague times a callback may name.
fn vague(lang: Lang, heard: &str) -> Option<(&'static str, &'static str)> {
    let table: &[(&str, &str, &str)] = match lang {
        Lang::En => &[
            ("as soon as possible", "as soon as possible", "as soon as possible"),
            ("soon", "as soon as possible", "as soon as possible"),
            ("any time", "any time", "as soon as we can"),
            ("anytime", "any time", "as soon as we can"),
            ("right away", "now", "very soon"),
            ("now", "now", "very soon"),
            ("morning", "morning", "in the morning"),
            ("afternoon", "afternoon", "in the afternoon"),
            ("evening", "evening", "in the evening"),
            ("tonight", "evening", "in the evening"),
            ("next week", "next week", "next week"),
            ("this week", "this week", "this week"),
            ("later", "later", "later"),
        ],
        Lang::Uk => &[
            ("якомога швидше", "as soon as possible", "якомога швидше"),
            ("зараз", "now", "найближчим часом"),
            ("вранці", "morning", "вранці"),
            ("вдень", "afternoon", "вдень"),
            ("ввечері", "evening", "ввечері"),
        ],
        Lang::Ru => &[
            ("как можно скорее", "as soon as possible", "как можно скорее"),
            ("сейчас", "now", "в ближайшее время"),
            ("утром", "morning", "утром"),
            ("днём", "afternoon", "днём"),
            ("вечером", "evening", "вечером"),
        ],
    };
    let padded = format!(" {heard} ");
    table.iter().find(|(phrase, ..)| padded.contains(&format!(" {phrase} "))).map(|found| (found.1, found.2))
}

fn moment(lang: Lang, words: &[&str], asked: bool) -> Option<SlotValue> {
    // A greeting is no time of day.
    let start = if words.first() == Some(&"good") && words.len() > 1 { 2 } else { 0 };
    let words = &words[start..];
    let day = day(lang, words);
    let said = time(lang, words, asked && day.is_none()).or_else(|| if asked { time(lang, words, true) } else { None });
    let time = said.map(|said| said.resolve(Prefer::Day).slot(lang, Prefer::Day));
    let vague = if time.is_none() { vague(lang, &words.join(" ")) } else { None };
    let at = if lang == Lang::En {
        "at"
    } else if lang == Lang::Uk {
        "о"
    } else {
        "в"
    };
    let mut value = Vec::new();
    let mut spoken = Vec::new();
    if let Some(day) = &day {
        value.push(day.value.clone());
        spoken.push(day.on.clone());
    }
    if let Some(time) = &time {
        value.push(time.value.clone());
        spoken.push(format!("{at} {}", time.spoken));
    } else if let Some((plain, said)) = vague {
        value.push(plain.to_owned());
        spoken.push(said.to_owned());
    }
    (!value.is_empty()).then(|| SlotValue::new(value.join(" "), spoken.join(" ")))
}

// --- names ---------------------------------------------------------------------------------------------------------

/// Words that a name never is, so that half a sentence is not taken for one.
const NO_NAME: &[&str] = &[
    "a",
    "an",
    "the",
    "i",
    "you",
    "he",
    "she",
    "it",
    "we",
    "they",
    "me",
    "my",
    "your",
    "is",
    "am",
    "are",
    "was",
    "be",
    "do",
    "does",
    "did",
    "not",
    "no",
    "yes",
    "yeah",
    "okay",
    "ok",
    "please",
    "thank",
    "thanks",
    "sorry",
    "hello",
    "hi",
    "what",
    "when",
    "where",
    "who",
    "why",
    "how",
    "which",
    "and",
    "or",
    "but",
    "if",
    "for",
    "at",
    "on",
    "in",
    "of",
    "to",
    "with",
    "about",
    "table",
    "book",
    "booking",
    "booked",
    "cancel",
    "change",
    "call",
    "calling",
    "people",
    "person",
    "day",
    "time",
    "today",
    "tomorrow",
    "tonight",
    "name",
    "can",
    "could",
    "would",
    "will",
    "want",
    "need",
    "like",
    "have",
    "this",
    "that",
    "there",
    "here",
    "open",
    "close",
    "price",
    "help",
    "repeat",
    "again",
    "goodbye",
    "bye",
    "good",
    "morning",
    "afternoon",
    "evening",
    "o'clock",
    "number",
    "going",
    "just",
    "so",
    "well",
    "very",
    "really",
    "speak",
    "speaking",
    "talk",
    "from",
    "under",
    "half",
    "quarter",
    "past",
    "back",
    "all",
    "one",
    "right",
    "wrong",
    "sure",
    "any",
    "your",
    "possible",
    "soon",
    "as",
    "early",
    "late",
    "later",
    "question",
    "urgent",
    "ready",
    "important",
    "broken",
    "weekend",
    "мене",
    "звати",
    "на",
    "я",
    "це",
    "так",
    "ні",
    "да",
    "нет",
    "меня",
    "зовут",
    "это",
    "будь",
    "ласка",
    "дякую",
    "спасибо",
    "пожалуйста",
    "добрий",
    "добрый",
    "день",
    "не",
    "столик",
    "стол",
    "стіл",
    "завтра",
    "сьогодні",
];
const TITLES: &[&str] = &["mister", "mr", "misses", "mrs", "miss", "ms", "doctor", "dr", "пан", "пані", "господин"];
/// Words before and after a bare name.
const FILLERS: &[&str] = &[
    "yes",
    "yeah",
    "sure",
    "well",
    "okay",
    "ok",
    "um",
    "uh",
    "er",
    "so",
    "oh",
    "ah",
    "actually",
    "hello",
    "hi",
    "please",
    "it",
    "is",
    "the",
    "name",
    "my",
    "i",
    "am",
    "this",
    "that",
    "would",
    "be",
    "under",
    "for",
    "on",
    "thank",
    "thanks",
    "you",
    "speaking",
    "here",
    "excuse",
    "me",
    "sorry",
    "just",
    "good",
    "morning",
    "afternoon",
    "evening",
    "мене",
    "звати",
    "на",
    "ім'я",
    "це",
    "так",
    "я",
    "меня",
    "зовут",
    "имя",
    "это",
    "да",
    "ну",
    "пожалуйста",
    "будь",
    "ласка",
    "прошу",
    "дякую",
    "спасибо",
    "моє",
    "моё",
    "мое",
    "прізвище",
    "фамилия",
];
/// What introduces a name; the words after it are the name.
const INTRODUCTIONS: &[&[&str]] = &[
    &["my", "name", "is"],
    &["the", "name", "is"],
    &["name", "is"],
    &["under", "the", "name", "of"],
    &["under", "the", "name"],
    &["under", "name"],
    &["in", "the", "name", "of"],
    &["on", "the", "name"],
    &["the", "name"],
    &["name", "of"],
    &["called"],
    &["i", "am"],
    &["under"],
    &["мене", "звати"],
    &["на", "ім'я"],
    &["меня", "зовут"],
    &["на", "имя"],
    &["моє", "ім'я"],
    &["моё", "имя"],
];

fn could_be_name(lang: Lang, word: &str) -> bool {
    !NO_NAME.contains(&word)
        && word.chars().all(|c| c.is_alphabetic() || c == '\'' || c == '-')
        && unit(lang, word).is_none()
        && tens(lang, word).is_none()
        && weekday(lang, word).is_none()
        && ordinal_at(Lang::En, &[word], 0).is_none()
}

/// Up to two name words (after an optional title) from the beginning of `words`; letters one by one become one name.
fn name_from(lang: Lang, words: &[&str]) -> Option<SlotValue> {
    let title = words.first().filter(|word| TITLES.contains(word));
    let rest = &words[usize::from(title.is_some())..];
    let letters: String = rest.iter().take_while(|word| word.chars().count() == 1).copied().collect();
    if letters.chars().count() >= 2 {
        return Some(SlotValue::text(capital(&letters)));
    }
    let taken: Vec<String> = rest
        .iter()
        .take(2)
        .take_while(|word| could_be_name(lang, word) && word.chars().count() > 1)
        .map(|word| capital(word))
        .collect();
    if taken.is_empty() {
        return None;
    }
    let value = taken.join(" ");
    let spoken = title.map_or_else(|| value.clone(), |title| format!("{} {value}", capital(title)));
    Some(SlotValue::new(value, spoken))
}

fn name(lang: Lang, words: &[&str], asked: bool) -> Option<SlotValue> {
    let mut found = None;
    for at in 0..words.len() {
        let Some(said) = INTRODUCTIONS.iter().find(|intro| words[at..].starts_with(intro)) else { continue };
        let weak = matches!(*said, ["i", "am"] | ["under"] | ["called"] | ["the", "name"]);
        let after = at + said.len();
        // "I am calling", "I am in a hurry": only a name and nothing else may follow there, unless it was asked for.
        if weak
            && !asked
            && words.len() - after > 2
            && !matches!(words.get(after + 1), Some(&("speaking" | "please" | "at" | "on" | "for" | "and")))
        {
            continue;
        }
        let again = usize::from(matches!(words.get(after), Some(&("is" | "of"))));
        if let Some(name) = name_from(lang, &words[(after + again).min(words.len())..]) {
            found = Some(name);
        }
    }
    // "It is Mister Young speaking", "this is Anna", "Anna speaking".
    if found.is_none() {
        for at in 0..words.len() {
            let is = words[at..].starts_with(&["it", "is"])
                || words[at..].starts_with(&["this", "is"])
                || words[at..].starts_with(&["here", "is"]);
            if is {
                let rest = &words[at + 2..];
                let plain = rest.len() <= 3 && rest.iter().any(|word| *word == "speaking" || TITLES.contains(word));
                if asked || plain || words[at] == "this" && rest.len() <= 3 {
                    found = name_from(lang, rest).or(found);
                }
            }
        }
    }
    if found.is_none() && asked {
        let mut rest = words;
        while let [first, more @ ..] = rest
            && FILLERS.contains(first)
        {
            rest = more;
        }
        while let [more @ .., last] = rest
            && FILLERS.contains(last)
        {
            rest = more;
        }
        let spelled = rest.len() > 1 && rest.iter().all(|word| word.chars().count() == 1);
        let short = rest.len() <= 2 + usize::from(rest.first().is_some_and(|word| TITLES.contains(word)));
        if spelled || (short && rest.iter().all(|word| TITLES.contains(word) || could_be_name(lang, word))) {
            found = name_from(lang, rest);
        }
    }
    found
}

// --- digits, yes and no --------------------------------------------------------------------------------------------

fn digits(lang: Lang, words: &[&str], asked: bool, length: usize) -> Option<SlotValue> {
    let mut digits = String::new();
    let mut longest = String::new();
    let mut times = 1;
    let mut at = 0;
    while at < words.len() && digits.len() < 64 {
        let word = words[at];
        let plain = word.trim_start_matches('+');
        if !plain.is_empty() && plain.chars().all(|c| c.is_ascii_digit()) {
            digits.push_str(plain);
            at += 1;
        } else if matches!(word, "double" | "triple") {
            times = if word == "double" { 2 } else { 3 };
            at += 1;
            continue;
        } else if matches!(word, "oh" | "o") {
            digits.push_str(&"0".repeat(times));
            at += 1;
        } else if let Some((number, used)) = number_at(lang, words, at) {
            digits.push_str(&number.to_string().repeat(times));
            at += used;
        } else {
            if !matches!(word, "and" | "plus" | "dash") && !digits.is_empty() {
                if digits.len() >= longest.len() {
                    longest = std::mem::take(&mut digits);
                }
                digits.clear();
            }
            at += 1;
        }
        times = 1;
    }
    let digits = if digits.len() >= longest.len() { digits } else { longest };
    if digits.is_empty() || (length > 0 && digits.len() != length) || (!asked && digits.len() < 4) {
        return None;
    }
    let chars: Vec<String> = digits.chars().map(|c| c.to_string()).collect();
    // Read back in groups of three, the last of up to four.
    let mut groups: Vec<String> = Vec::new();
    let mut rest = chars.as_slice();
    while !rest.is_empty() {
        let take = if rest.len() <= 4 { rest.len() } else { 3 };
        groups.push(rest[..take].join(" "));
        rest = &rest[take..];
    }
    Some(SlotValue::new(digits, groups.join(", ")))
}

/// An address as it is written, or as it is said: "maria dot lopez at example dot com", letter by letter or in words.
fn email(words: &[&str]) -> Option<SlotValue> {
    let whole = words.iter().rev().find(|word| word.contains('@'));
    let address = match whole {
        Some(word) => (*word).to_owned(),
        None => {
            let at =
                words.iter().rposition(|word| matches!(*word, "at" | "собака" | "собачка" | "равлик" | "ет" | "эт"))?;
            let host = joined(&words[at + 1..]);
            // What stands before the name's last words ("my e-mail is") is no part of it: a name has no verbs.
            let begin = words[..at]
                .iter()
                .rposition(|word| matches!(*word, "is" | "it" | "це" | "это" | "mail" | "email" | "пошта" | "почта"));
            format!("{}@{host}", joined(&words[begin.map_or(0, |begin| begin + 1)..at]))
        }
    };
    let (name, host) = address.split_once('@')?;
    let fits = |part: &str| {
        !part.is_empty()
            && part.len() <= 128
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+'))
            && !part.starts_with('.')
            && !part.ends_with('.')
            && !part.contains("..")
    };
    let top = host.rsplit_once('.').map(|(_, top)| top)?;
    let good = fits(name) && fits(host) && top.len() >= 2 && top.chars().all(|c| c.is_ascii_alphabetic());
    good.then(|| {
        let spoken =
            address.replace('@', " at ").replace('.', " dot ").replace('_', " underscore ").replace('-', " dash ");
        SlotValue::new(address, spoken)
    })
}

/// Words of an address as it is written.
fn joined(words: &[&str]) -> String {
    words
        .iter()
        .map(|word| match *word {
            "dot" | "point" | "period" | "крапка" | "точка" => ".",
            "dash" | "hyphen" | "minus" | "дефіс" | "тире" | "дефис" => "-",
            "underscore" | "підкреслення" | "подчёркивание" | "подчеркивание" => {
                "_"
            }
            "plus" | "плюс" => "+",
            word => word,
        })
        .collect()
}

fn yes_no(lang: Lang, words: &[&str]) -> Option<SlotValue> {
    let (yes, no): (&[&str], &[&str]) = match lang {
        Lang::En => (
            &["yes", "yeah", "yep", "sure", "correct", "right", "exactly", "okay", "ok", "fine", "perfect", "great"],
            &["no", "nope", "not", "never", "wrong"],
        ),
        Lang::Uk => (
            &["так", "ага", "звісно", "звичайно", "правильно", "вірно", "добре", "авжеж"],
            &["ні", "не", "неправильно"],
        ),
        Lang::Ru => {
            (&["да", "ага", "конечно", "правильно", "верно", "хорошо"], &["нет", "не", "неправильно", "неверно"])
        }
    };
    if words.iter().any(|word| no.contains(word)) {
        return Some(SlotValue::text("no"));
    }
    words.iter().any(|word| yes.contains(word)).then(|| SlotValue::text("yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(kind: &SlotType, language: &str, text: &str, asked: bool) -> Option<SlotValue> {
        kind.extract(language, &Heard::new(language, text), asked, false)
    }

    fn check(kind: &SlotType, asked: bool, table: &[(&str, Option<&str>)]) {
        check_in("en", kind, asked, table);
    }

    fn check_in(language: &str, kind: &SlotType, asked: bool, table: &[(&str, Option<&str>)]) {
        for (text, expected) in table {
            let value = get(kind, language, text, asked).map(|found| found.value);
            assert_eq!(value.as_deref(), *expected, "{text:?} in {language}, asked: {asked}");
        }
    }

    const PEOPLE: SlotType = SlotType::People { max: 30 };
    const EVENING: SlotType = SlotType::Time { prefer: Prefer::Pm };

    #[test]
    fn people_are_found_where_they_are_counted() {
        check(
            &PEOPLE,
            false,
            &[
                ("A table for four", Some("4")),
                ("a table for 4 people please", Some("4")),
                ("table for for", Some("4")),
                ("table for for people on Friday", Some("4")),
                ("a table for to please", Some("2")),
                ("table for too at seven", Some("2")),
                ("Yes, for seven people", Some("7")),
                ("we are six", Some("6")),
                ("there will be five of us", Some("5")),
                ("for one people", Some("1")),
                ("a party of eight", Some("8")),
                ("for twenty two people", Some("22")),
                ("table for two at eight", Some("2")),
                ("for four no sorry for five people", Some("5")),
                ("on Friday at seven", None),
                ("for seven o'clock", None),
                ("for seven thirty", None),
                ("for the seventeenth of June", None),
                ("for two hundred people", None),
                ("forty euros", None),
                ("how much is it for me", None),
            ],
        );
    }

    #[test]
    fn a_bare_number_answers_how_many() {
        check(
            &PEOPLE,
            true,
            &[
                ("four", Some("4")),
                ("Four please", Some("4")),
                ("for", Some("4")),
                ("for for", Some("4")),
                ("to", Some("2")),
                ("just me", Some("1")),
                ("well I think three or four", Some("4")),
                ("at seven", None),
                ("on Friday", None),
            ],
        );
    }

    #[test]
    fn times_are_found_where_they_are_said() {
        check(
            &EVENING,
            false,
            &[
                ("on Friday at seven", Some("19:00")),
                ("at seven thirty", Some("19:30")),
                ("at 7:30", Some("19:30")),
                ("at 19:30", Some("19:30")),
                ("around six", Some("18:00")),
                ("half past eight", Some("20:30")),
                ("quarter to eight", Some("19:45")),
                ("eight o'clock in the morning", Some("08:00")),
                ("nine in the morning", Some("09:00")),
                ("seven pm", Some("19:00")),
                ("7pm", Some("19:00")),
                ("at noon", Some("12:00")),
                ("at midnight", Some("00:00")),
                ("at to", Some("14:00")),
                ("at ate please", Some("20:00")),
                ("at seven no at eight", Some("20:00")),
                ("a table for four", None),
                ("for four people", None),
                ("at four people", None),
                ("in June the seventeenth", None),
            ],
        );
    }

    #[test]
    fn a_bare_number_answers_what_time() {
        check(
            &EVENING,
            true,
            &[
                ("seven", Some("19:00")),
                ("for seven", Some("19:00")),
                ("seven thirty please", Some("19:30")),
                ("for four people", None),
                ("ate", Some("20:00")),
                ("twenty five", None),
            ],
        );
    }

    #[test]
    fn times_are_said_as_people_say_them() {
        let said = |text: &str| get(&EVENING, "en", text, true).unwrap().spoken;
        assert_eq!(said("seven"), "seven");
        assert_eq!(said("7:30"), "half past seven");
        assert_eq!(said("19:45"), "quarter to eight");
        assert_eq!(said("at 12:45"), "quarter to one");
        assert_eq!(said("8:05"), "eight oh five");
        assert_eq!(said("nine in the morning"), "nine in the morning");
        assert_eq!(said("midnight"), "midnight");
    }

    #[test]
    fn days_and_dates_are_found() {
        check(
            &SlotType::Day,
            false,
            &[
                ("on Friday at seven", Some("friday")),
                ("next Monday please", Some("next monday")),
                ("today", Some("today")),
                ("tonight at eight", Some("today")),
                ("tomorrow evening", Some("tomorrow")),
                ("the day after tomorrow", Some("day after tomorrow")),
                ("this weekend", Some("weekend")),
                ("on the seventeenth of June", Some("june 17")),
                ("on December the thirteenth", Some("december 13")),
                ("June 3rd", Some("june 3")),
                ("May the twenty first", Some("may 21")),
                ("on the second", Some("2")),
                ("Friday the thirteenth", Some("friday 13")),
                ("Friday no Saturday", Some("saturday")),
                ("the second table", None),
                ("may I book a table", None),
                ("at seven", None),
            ],
        );
    }

    #[test]
    fn days_are_said_with_their_preposition() {
        let on = |text: &str| get(&SlotType::Day, "en", text, true).unwrap().on;
        assert_eq!(on("Friday"), "on Friday");
        assert_eq!(on("tomorrow"), "tomorrow");
        assert_eq!(on("next monday"), "next Monday");
        assert_eq!(on("the seventeenth of June"), "on June the seventeenth");
    }

    #[test]
    fn names_are_found_where_they_are_given() {
        check(
            &SlotType::Name,
            false,
            &[
                ("my name is Maria", Some("Maria")),
                ("a table under the name of Anna Green please", Some("Anna Green")),
                ("Excuse me, it is Mister Young speaking", Some("Young")),
                ("under Peter", Some("Peter")),
                ("this is Olena", Some("Olena")),
                ("the name is Clark thank you", Some("Clark")),
                ("I am calling about my account", None),
                ("it is very important", None),
                ("a table for four on Friday", None),
                ("this is very urgent", None),
            ],
        );
        check(
            &SlotType::Name,
            true,
            &[
                ("Maria", Some("Maria")),
                ("Maria please", Some("Maria")),
                ("yes it is Peter Walker", Some("Peter Walker")),
                ("Mister Young", Some("Young")),
                ("M A R I A", Some("Maria")),
                ("my name is my name is Anna", Some("Anna")),
                ("what time do you open", None),
                ("yes please", None),
                ("seven", None),
                ("Friday", None),
            ],
        );
        assert_eq!(get(&SlotType::Name, "en", "Mister Young", true).unwrap().spoken, "Mister Young");
    }

    #[test]
    fn a_callback_moment_is_a_day_a_time_or_both() {
        check(
            &SlotType::Moment,
            false,
            &[
                ("Please call me back this week around one as soon as possible", Some("13:00")),
                ("Thanks, please call me back on Sunday", Some("sunday")),
                ("call me back tomorrow at ten", Some("tomorrow 10:00")),
                ("tomorrow in the afternoon", Some("tomorrow afternoon")),
                ("as soon as possible", Some("as soon as possible")),
                ("good morning call me back", None),
                ("call me back please", None),
            ],
        );
        check(&SlotType::Moment, true, &[("ten", Some("10:00")), ("Friday ten", Some("friday 10:00")), ("no", None)]);
        let said = get(&SlotType::Moment, "en", "on Friday at one", true).unwrap();
        assert_eq!(said.spoken, "on Friday at one");
    }

    #[test]
    fn an_email_is_found_written_and_said() {
        let found = |language: &str, text: &str| get(&SlotType::Email, language, text, true).map(|found| found.value);
        for (text, expected) in [
            ("Maria.Lopez@example.com", Some("maria.lopez@example.com")),
            ("my email is maria dot lopez at example dot com", Some("maria.lopez@example.com")),
            ("it is m l underscore five at mail dash box dot co dot uk", Some("ml_five@mail-box.co.uk")),
            ("write to bob+x@example.co.uk, please", Some("bob+x@example.co.uk")),
            ("at seven", None),
            ("meet me at the office", None),
            ("a@b", None),
            ("@@@", None),
        ] {
            assert_eq!(found("en", text).as_deref(), expected, "{text:?}");
        }
        assert_eq!(found("uk", "пошта maria собака example крапка com").as_deref(), Some("maria@example.com"));
    }

    #[test]
    fn digits_are_collected_one_by_one() {
        let any = SlotType::Digits { length: 0 };
        check(
            &any,
            true,
            &[
                ("my order number is eight two eight eight", Some("8288")),
                ("nine one double five", Some("9155")),
                ("twenty five oh one", Some("2501")),
                ("hello", None),
            ],
        );
        check(&SlotType::Digits { length: 4 }, true, &[("one two three", None), ("one two three four", Some("1234"))]);
        check(&SlotType::Phone, true, &[("+380 50 123 45 67", Some("+380501234567")), ("one two", None)]);
        assert_eq!(get(&SlotType::Phone, "en", "0501234567", true).unwrap().spoken, "0 5 0, 1 2 3, 4 5 6 7");
    }

    #[test]
    fn numbers_yes_and_no_are_typed() {
        check(
            &SlotType::Number { min: 1, max: 100 },
            true,
            &[("eighty six of them", Some("86")), ("two hundred", None)],
        );
        check(
            &SlotType::YesNo,
            true,
            &[("yes please", Some("yes")), ("no that is not right", Some("no")), ("hm", None)],
        );
        let sets = std::collections::BTreeMap::new();
        let choice = SlotType::Choice(vec![
            Choice { value: "inside".into(), hear: vec![Pattern::words("inside|indoors", &sets).unwrap()] },
            Choice { value: "garden".into(), hear: vec![Pattern::words("garden|outside", &sets).unwrap()] },
        ]);
        check(&choice, true, &[("in the garden please", Some("garden")), ("I do not mind", None)]);
    }

    #[test]
    fn ukrainian_and_russian_numbers_days_and_names_are_found() {
        check_in(
            "uk",
            &PEOPLE,
            false,
            &[("столик на чотирьох", Some("4")), ("на двох людей", Some("2")), ("у п'ятницю", None)],
        );
        check_in(
            "uk",
            &EVENING,
            false,
            &[("о сьомій вечора", Some("19:00")), ("о 19:30", Some("19:30")), ("пів на восьму", Some("19:30"))],
        );
        check_in(
            "uk",
            &SlotType::Day,
            false,
            &[
                ("у п'ятницю о сьомій", Some("friday")),
                ("завтра", Some("tomorrow")),
                ("сімнадцятого червня", Some("june 17")),
            ],
        );
        check_in("uk", &SlotType::Name, true, &[("мене звати Олена", Some("Олена")), ("Марія", Some("Марія"))]);
        check_in("ru", &PEOPLE, false, &[("столик на четверых", Some("4")), ("пять человек", Some("5"))]);
        check_in("ru", &EVENING, false, &[("в семь вечера", Some("19:00"))]);
        check_in(
            "ru",
            &SlotType::Day,
            false,
            &[("в пятницу", Some("friday")), ("послезавтра", Some("day after tomorrow"))],
        );
        check_in("ru", &SlotType::YesNo, true, &[("да", Some("yes")), ("нет не так", Some("no"))]);
        let phone = "нуль шістдесят сім, сто двадцять три, сорок п'ять, двісті";
        assert_eq!(get(&SlotType::Phone, "uk", phone, true).map(|found| found.value).as_deref(), Some("06712345200"));
        let phone = "восемь девятьсот двадцать один сто двадцать три сорок пять шестьдесят семь";
        assert_eq!(get(&SlotType::Phone, "ru", phone, true).map(|found| found.value).as_deref(), Some("89211234567"));
    }
}
