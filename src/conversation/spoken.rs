//! A clause as it is written to the words that a voice says: numbers, dates, times, amounts, telephone numbers, e-mail
//! and web addresses, codes, abbreviations and signs, in English, Ukrainian and Russian. Markdown and emoji are gone.
//! Keeps which written words which spoken ones stand for, so that a transcript has what the model wrote.
//!
//! By rule where the words around a number decide: Slavic numbers take the case of the preposition right before them,
//! and case and gender of the ending of the word right after. Left out: agreement over a distance ("з усіма 5"), the
//! case that a verb asks for, animate nouns ("бачу 2 друзів"), feminine 1 and 2 before Ukrainian words that are not
//! in the list, abbreviated units in other cases than nominative, genitive and accusative. Roman numerals and foreign
//! words are left to the voice, and other languages have only their Markdown and emoji taken out.

mod abbreviations;
mod contacts;
pub mod english;
mod figures;
mod nouns;
mod numerals;
#[cfg(test)]
mod tables;

use super::speakable::{clean, is_pictogram, whole_words};

/// A language whose numbers are read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lang {
    En,
    Uk,
    Ru,
}

/// Latin words that make a clause without Cyrillic an English one in the mouth of a Slavic agent.
const ENGLISH_WORDS: usize = 3;

impl Lang {
    /// The language of a clause that an agent of this language says (`uk`, `ru-RU`; empty = not known). Letters that
    /// only the other Slavic language has, or another script, show that the agent followed its caller.
    fn of(tag: &str, text: &str) -> Option<Self> {
        let (mut latin, mut cyrillic, mut ukrainian, mut russian) = (0, 0, 0, 0);
        for c in text.chars() {
            match c {
                'a'..='z' | 'A'..='Z' => latin += 1,
                'і' | 'ї' | 'є' | 'ґ' | 'І' | 'Ї' | 'Є' | 'Ґ' => ukrainian += 1,
                'ы' | 'э' | 'ё' | 'ъ' | 'Ы' | 'Э' | 'Ё' | 'Ъ' => russian += 1,
                'а'..='я' | 'А'..='Я' => cyrillic += 1,
                _ => {}
            }
        }
        cyrillic += ukrainian + russian;
        let by_letters = if russian > ukrainian { Lang::Ru } else { Lang::Uk };
        let is_english = || {
            cyrillic == 0
                && text.split(' ').filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic())).count()
                    >= ENGLISH_WORDS
        };
        let first = tag.split(['-', '_']).next().unwrap_or_default().to_ascii_lowercase();
        match first.as_str() {
            "en" | "" => Some(if cyrillic > latin { by_letters } else { Lang::En }),
            "uk" | "ru" if is_english() => Some(Lang::En),
            "uk" if russian > 0 && ukrainian == 0 => Some(Lang::Ru),
            "uk" => Some(Lang::Uk),
            "ru" if ukrainian > 0 && russian == 0 => Some(Lang::Uk),
            "ru" => Some(Lang::Ru),
            _ => None,
        }
    }
}

/// A clause: as it was written, and as it is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spoken {
    written: String,
    /// `None` = as written.
    said: Option<String>,
    /// Where both meet, in characters: (written, said), in order. Between two joints they run in proportion.
    joints: Vec<(usize, usize)>,
}

impl Spoken {
    /// `language` is the agent's (`uk`, `ru-RU`); the letters of the text have a say as well.
    pub fn of(text: &str, language: &str) -> Self {
        let marked = |c| matches!(c, '*' | '_' | '`' | '|' | '<' | '[' | '\\' | '~' | '#' | '•') || is_invisible(c);
        let written =
            if text.contains(marked) || text.starts_with(['>', '-', '+']) { clean(text) } else { text.to_owned() };
        let lang = Lang::of(language, &written);
        let mut reader = Reader {
            lang,
            text: &written,
            at: 0,
            out: String::with_capacity(2 * written.len()),
            joints: Vec::new(),
            changed: false,
        };
        reader.run();
        let Reader { out, joints, changed, .. } = reader;
        if !changed {
            return Self::as_written(written);
        }
        let joints = in_characters(&written, &out, &joints);
        Self { written, said: Some(out), joints }
    }

    /// Said as it is written.
    pub fn as_written(text: impl Into<String>) -> Self {
        Self { written: text.into(), said: None, joints: Vec::new() }
    }

    /// For the transcript.
    pub fn written(&self) -> &str {
        &self.written
    }

    /// For the voice.
    pub fn said(&self) -> &str {
        self.said.as_deref().unwrap_or(&self.written)
    }

    /// What was written of that which was heard when this share of the sound was played: whole words, rounded down. A
    /// number that was cut off does not count.
    pub fn heard(&self, fraction: f32) -> &str {
        if fraction >= 1.0 {
            return &self.written;
        }
        let all = (self.written.chars().count(), self.said().chars().count());
        // Not a number and negative shares become zero.
        let said = (all.1 as f32 * fraction.max(0.0)) as usize;
        let next = self.joints.iter().position(|joint| joint.1 > said);
        let from = match next.unwrap_or(self.joints.len()) {
            0 => (0, 0),
            n => self.joints[n - 1],
        };
        let until = next.map_or(all, |n| self.joints[n]);
        let length = until.1.saturating_sub(from.1).max(1);
        whole_words(&self.written, from.0 + (said - from.1) * (until.0 - from.0) / length)
    }
}

impl From<String> for Spoken {
    fn from(text: String) -> Self {
        Self::as_written(text)
    }
}

impl From<&str> for Spoken {
    fn from(text: &str) -> Self {
        Self::as_written(text)
    }
}

fn is_invisible(c: char) -> bool {
    is_pictogram(c) || c.is_control()
}

/// Byte offsets into both texts, in order, as characters.
fn in_characters(written: &str, said: &str, joints: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let (mut at, mut count) = ((0, 0), (0, 0));
    let mut found = Vec::with_capacity(joints.len());
    for &(w, s) in joints {
        let s = s.min(said.len());
        count.0 += written[at.0..w].chars().count();
        count.1 += said.get(at.1..s).map_or(0, |part| part.chars().count());
        at = (w, s);
        found.push(count);
    }
    found
}

/// Some written text that has words of its own.
struct Reading {
    /// Bytes of the text that it stands for.
    len: usize,
    words: String,
}

/// A place in a clause, with what is around it.
struct Place<'a> {
    lang: Lang,
    before: &'a str,
    rest: &'a str,
}

impl Place<'_> {
    /// The word before, in lower case; a mark when one stands between ("~" also for "≈"), empty at the beginning.
    fn previous(&self) -> String {
        let before = self.before.trim_end_matches(|c: char| c.is_whitespace() || matches!(c, '(' | '"' | '«' | '“'));
        match before.chars().next_back() {
            Some('≈') => "~".into(),
            Some(c) if c.is_alphabetic() => last_word(before).to_lowercase(),
            Some(c) if c.is_ascii_digit() => String::new(),
            Some(c) => c.into(),
            None => String::new(),
        }
    }

    /// What follows, up to so many bytes: no rule looks further, so that none is slow on a text without end.
    fn window(&self, most: usize) -> &str {
        &self.rest[..self.rest.floor_char_boundary(most)]
    }

    /// The word after so many bytes and blanks, in lower case.
    fn word_at(&self, at: usize) -> String {
        let rest = self.rest[at..].trim_start();
        let end = rest.find(|c: char| !(c.is_alphabetic() || matches!(c, '\'' | '’'))).unwrap_or(rest.len());
        rest[..end].to_lowercase()
    }

    /// A word with a capital stands right before: "Oak St."
    fn name_before(&self) -> bool {
        let before = self.before.trim_end();
        before.len() < self.before.len() && last_word(before).starts_with(char::is_uppercase)
    }

    /// An English month stands right before; a year may have a comma between.
    fn month_before(&self, comma: bool) -> bool {
        let before = self.before.trim_end();
        let before = before.strip_suffix('.').or(before.strip_suffix(',').filter(|_| comma)).unwrap_or(before);
        nouns::month_named(self.lang, last_word(before)).is_some()
    }

    fn is_about_phone(&self) -> bool {
        matches!(
            self.previous_with_colon().as_str(),
            "phone"
                | "number"
                | "call"
                | "tel"
                | "телефон"
                | "телефону"
                | "телефоном"
                | "тел"
                | "номер"
                | "номером"
                | "номеру"
                | "telephone"
        )
    }

    fn is_about_dates(&self) -> bool {
        let before = self.before.trim_end().trim_end_matches(',');
        if WEEKDAYS.contains(&last_word(before).to_lowercase().as_str()) {
            return true;
        }
        matches!(
            self.previous().as_str(),
            "on" | "by"
                | "until"
                | "date"
                | "since"
                | "дата"
                | "на"
                | "до"
                | "від"
                | "після"
                | "з"
                | "с"
                | "от"
                | "к"
                | "по"
                | "после"
        )
    }

    fn is_about_codes(&self) -> bool {
        if self.before.ends_with("ending in ") {
            return true;
        }
        matches!(
            self.previous_with_colon().as_str(),
            "№" | "#"
                | "number"
                | "order"
                | "code"
                | "id"
                | "pin"
                | "booking"
                | "reservation"
                | "ticket"
                | "flight"
                | "extension"
                | "ext"
                | "номер"
                | "номером"
                | "код"
                | "кодом"
                | "пін"
                | "пин"
                | "замовлення"
                | "бронювання"
                | "квиток"
                | "рейс"
                | "заказ"
                | "заказа"
                | "билет"
                | "бронь"
                | "индекс"
                | "індекс"
                | "пароль"
                | "password"
                | "zip"
                | "картка"
                | "карта"
        )
    }

    /// "Your code: 4512", "order is 4512".
    fn previous_with_colon(&self) -> String {
        let before = self.before.trim_end().trim_end_matches([':', '.', '№', '#']);
        let before = before.strip_suffix(" is").unwrap_or(before);
        let word = last_word(before.trim_end()).to_lowercase();
        if word.is_empty() || self.before.trim_end().ends_with(['№', '#']) { self.previous() } else { word }
    }
}

/// Before a date in figures.
const WEEKDAYS: [&str; 30] = [
    "понеділок",
    "вівторок",
    "середа",
    "середу",
    "четвер",
    "п'ятниця",
    "п'ятницю",
    "субота",
    "суботу",
    "неділя",
    "неділю",
    "понедельник",
    "вторник",
    "среда",
    "среду",
    "четверг",
    "пятница",
    "пятницу",
    "суббота",
    "субботу",
    "воскресенье",
    "пн",
    "вт",
    "ср",
    "чт",
    "пт",
    "сб",
    "нд",
    "вс",
    "день",
];

fn last_word(text: &str) -> &str {
    let start = text.char_indices().rev().find(|(_, c)| !(c.is_alphabetic() || matches!(c, '\'' | '’')));
    start.map_or(text, |(at, c)| &text[at + c.len_utf8()..])
}

struct Reader<'a> {
    lang: Option<Lang>,
    text: &'a str,
    at: usize,
    out: String,
    /// Byte offsets into both texts.
    joints: Vec<(usize, usize)>,
    changed: bool,
}

impl Reader<'_> {
    fn run(&mut self) {
        while let Some(c) = self.text[self.at..].chars().next() {
            let inside = self.text[..self.at].ends_with(char::is_alphanumeric);
            let reading = self.lang.and_then(|lang| {
                let place = Place { lang, before: &self.text[..self.at], rest: &self.text[self.at..] };
                match c {
                    '½' | '¼' | '¾' | '²' | '³' => sign(&place, c),
                    c if c.is_alphanumeric() && inside && c.is_ascii_digit() => stray_digits(&place),
                    c if c.is_alphanumeric() && !inside => word(&place),
                    '+' | '(' | '$' | '€' | '₴' | '₽' | '£' if !inside || c != '+' => {
                        figures::read(&place).or_else(|| sign(&place, c))
                    }
                    c if c.is_alphanumeric() => None,
                    c => sign(&place, c),
                }
            });
            match reading {
                Some(reading) => self.replace(&reading),
                None => self.copy(c),
            }
        }
        let end = self.out.trim_end().len();
        self.changed |= end != self.out.len();
        self.out.truncate(end);
    }

    fn replace(&mut self, reading: &Reading) {
        self.joints.push((self.at, self.out.len()));
        let words = reading.words.trim();
        if !words.is_empty() {
            if self.out.ends_with(|c: char| c.is_alphanumeric() || c == ',') {
                self.out.push(' ');
            }
            self.out.push_str(words);
        }
        self.at += reading.len;
        let rest = &self.text[self.at..];
        if (words.is_empty() || rest.starts_with(char::is_alphanumeric)) && !words.ends_with('-') {
            self.blank();
        }
        self.joints.push((self.at, self.out.len()));
        self.changed = true;
    }

    fn blank(&mut self) {
        if !self.out.is_empty() && !self.out.ends_with(' ') {
            self.out.push(' ');
        }
    }

    fn copy(&mut self, c: char) {
        self.at += c.len_utf8();
        if c.is_whitespace() {
            self.changed |= c != ' ' || self.out.ends_with(' ') || self.out.is_empty();
            return self.blank();
        }
        // Voices know words by the plain apostrophe; U+02BC is spelled out by some.
        let c = if c == 'ʼ' {
            self.changed = true;
            '\''
        } else {
            c
        };
        if matches!(c, '.' | ',' | '!' | '?' | ';' | ':' | '…') && self.out.ends_with(' ') {
            self.out.pop();
            self.changed = true;
        }
        self.out.push(c);
    }
}

/// A word begins here.
fn word(place: &Place) -> Option<Reading> {
    let digit = place.rest.starts_with(|c: char| c.is_ascii_digit());
    let letters = || {
        abbreviations::read(place)
            .or_else(|| figures::short_month(place))
            .or_else(|| figures::priced(place))
            .or_else(|| dimension(place))
    };
    contacts::address(place)
        .or_else(|| if digit { figures::read(place) } else { letters() })
        .or_else(|| contacts::code(place))
        .or_else(|| stray_digits(place))
}

/// "3 x 4", with either letter.
fn dimension(place: &Place) -> Option<Reading> {
    let after = place.rest.strip_prefix(['x', 'х'])?;
    let digits = |text: &str| text.strip_prefix(' ').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let before = place.before.strip_suffix(' ').is_some_and(|before| before.ends_with(|c: char| c.is_ascii_digit()));
    let by = if place.lang == Lang::En { "by" } else { "на" };
    (before && digits(after)).then(|| Reading { len: place.rest.len() - after.len(), words: by.to_owned() })
}

/// Digits that belong to nothing known: nothing that is meant to be heard is lost.
fn stray_digits(place: &Place) -> Option<Reading> {
    let len = place.rest.bytes().take_while(u8::is_ascii_digit).count();
    (len > 0).then(|| Reading { len, words: contacts::digits_of_code(place.lang, &place.rest[..len]) })
}

/// Marks that stay: a voice pauses or changes its tune at them.
const PUNCTUATION: &str = ".,!?;:…—–-'’\"«»“”„()";

/// A sign that is no letter or digit.
fn sign(place: &Place, c: char) -> Option<Reading> {
    let after = &place.rest[c.len_utf8()..];
    let number_follows =
        after.trim_start_matches(' ').starts_with(|c: char| c.is_ascii_digit() || matches!(c, '$' | '€' | '₴' | '£'));
    let free = !place.before.ends_with(char::is_alphanumeric);
    let pick = |en: &'static str, uk: &'static str, ru: &'static str| match place.lang {
        Lang::En => en,
        Lang::Uk => uk,
        Lang::Ru => ru,
    };
    let between = !free && after.starts_with(char::is_alphanumeric);
    let digit_before = place.before.trim_end().ends_with(|c: char| c.is_ascii_digit());
    let mut len = c.len_utf8();
    let words = match c {
        '-' | '−'
            if free
                && !place.before.ends_with(['-', '−'])
                && after.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '$' | '€' | '₴' | '£')) =>
        {
            pick("minus", "мінус", "минус")
        }
        '&' => {
            let entity = after
                .bytes()
                .take(7)
                .position(|byte| byte == b';')
                .filter(|end| *end <= 6 && after[..*end].chars().all(|c| c.is_ascii_alphanumeric() || c == '#'));
            match entity.map(|end| (&after[..end], end)) {
                Some(("amp", end)) => {
                    len += end + 1;
                    pick("and", "та", "и")
                }
                Some((_, end)) if end > 0 => {
                    len += end + 1;
                    ""
                }
                _ => pick("and", "та", "и"),
            }
        }
        '+' => pick("plus", "плюс", "плюс"),
        '=' => pick("equals", "дорівнює", "равно"),
        '%' => pick("percent", "відсотків", "процентов"),
        '°' => pick("degrees", "градусів", "градусов"),
        '№' => pick("number", "номер", "номер"),
        '#' if free && after.starts_with(char::is_alphanumeric) => {
            if number_follows {
                pick("number", "номер", "номер")
            } else {
                pick("hashtag", "хештег", "хештег")
            }
        }
        '#' if !free => pick("sharp", "шарп", "шарп"),
        '@' => pick("at", "собака", "собака"),
        '~' | '≈' if number_follows => pick("about", "близько", "около"),
        '<' if number_follows => pick("less than", "менше ніж", "меньше чем"),
        '>' if number_follows => pick("more than", "більше ніж", "больше чем"),
        '≤' => pick("at most", "не більше ніж", "не больше чем"),
        '≥' => pick("at least", "не менше ніж", "не меньше чем"),
        '±' => pick("plus or minus", "плюс-мінус", "плюс-минус"),
        '×' => pick("by", "на", "на"),
        '÷' => pick("divided by", "поділити на", "разделить на"),
        '½' if digit_before => pick("and a half", "з половиною", "с половиной"),
        '½' => pick("half", "половина", "половина"),
        '¼' if digit_before => pick("and a quarter", "з чвертю", "с четвертью"),
        '¼' => pick("a quarter", "чверть", "четверть"),
        '¾' => pick("three quarters", "три чверті", "три четверти"),
        '²' => pick("squared", "у квадраті", "в квадрате"),
        '³' => pick("cubed", "у кубі", "в кубе"),
        '§' => pick("section", "параграф", "параграф"),
        '$' => pick("dollars", "доларів", "долларов"),
        '€' => pick("euros", "євро", "евро"),
        '£' => pick("pounds", "фунтів", "фунтов"),
        '₴' => pick("hryvnias", "гривень", "гривен"),
        '₽' => pick("rubles", "рублів", "рублей"),
        '/' if between && after.starts_with(char::is_alphabetic) && place.before.ends_with(char::is_alphabetic) => {
            // "And/or" says it already.
            let initials =
                after.starts_with(char::is_uppercase) && last_word(place.before).chars().all(char::is_uppercase);
            if initials {
                return Some(Reading { len, words: String::new() });
            }
            if matches!(last_word(place.before).to_lowercase().as_str(), "and" | "і" | "та" | "и") {
                ""
            } else {
                pick("or", "або", "или")
            }
        }
        c if c.is_whitespace()
            || c.is_alphanumeric()
            || PUNCTUATION.contains(c)
            || c == 'ʼ'
            || is_mark_of_letter(c) =>
        {
            return None;
        }
        _ => "",
    };
    Some(Reading { len, words: words.to_owned() })
}

/// Accents that stand after their letter (combining marks).
fn is_mark_of_letter(c: char) -> bool {
    matches!(u32::from(c), 0x300..=0x36f)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_heard_is_told_as_it_was_written() {
        let line = Spoken::of("Call us at 067 123 45 67, or come to Oak Street 5.", "en");
        assert_eq!(line.written(), "Call us at 067 123 45 67, or come to Oak Street 5.");
        let all = line.said().len() as f32;
        let until = |words: &str| (line.said().find(words).expect("it is said") + words.len()) as f32 / all + 1e-4;
        assert_eq!(line.heard(until("us at")), "Call us at");
        assert_eq!(line.heard(until("zero six seven, one two three,")), "Call us at 067 123");
        assert_eq!(line.heard(until("four five, six seven,")), "Call us at 067 123 45 67,");
        assert_eq!(line.heard(until("Oak Street")), "Call us at 067 123 45 67, or come to Oak Street");
        assert_eq!(line.heard(1.0), line.written());
        let number = Spoken::of("+380671234567", "uk");
        assert_eq!(number.heard(0.9), "", "a number that was cut off was not heard");
        assert_eq!(number.heard(1.0), "+380671234567");
    }

    #[test]
    fn heard_text_ends_at_a_whole_word() {
        let text = "We are open from eight";
        for (fraction, expected) in [
            (0.0, ""),
            (0.05, ""),
            (0.1, "We"),
            (0.3, "We are"),
            (0.28, "We are"),
            (0.5, "We are open"),
            (0.99, "We are open from"),
            (1.0, text),
            (2.0, text),
            (-1.0, ""),
            (f32::NAN, ""),
        ] {
            assert_eq!(Spoken::as_written(text).heard(fraction), expected, "{fraction}");
        }
        assert_eq!(Spoken::as_written("Ми відчинені").heard(0.5), "Ми");
        assert_eq!(Spoken::as_written("").heard(0.5), "");
    }

    #[test]
    fn plain_words_are_said_as_they_are_written() {
        for (language, text) in [
            ("en", "Well, we are open from eight."),
            ("uk", "Так, ми відчинені."),
            ("ru", "Да, конечно!"),
            ("de", "Es kostet 5 €."),
        ] {
            assert_eq!(Spoken::of(text, language), Spoken::as_written(text));
        }
    }

    #[test]
    fn the_letters_tell_the_language_where_the_agent_follows_its_caller() {
        for (language, text, expected) in [
            ("", "Це коштує 5 грн", "Це коштує п'ять гривень"),
            ("", "Всё стоит 5 руб", "Всё стоит пять рублей"),
            ("", "It is 5 km", "It is five kilometers"),
            ("uk", "Хорошо, 5 грн, вы придёте?", "Хорошо, пять гривен, вы придёте?"),
            ("ru", "Так, це 5 грн, чекаємо", "Так, це п'ять гривень, чекаємо"),
            ("uk-UA", "Please call back in 5 minutes", "Please call back in five minutes"),
            ("en", "Чекаємо о 9:00, приїжджайте", "Чекаємо о дев'ятій, приїжджайте"),
            ("uk", "Wi-Fi 6", "Wi-Fi шість"),
        ] {
            assert_eq!(Spoken::of(text, language).said(), expected, "{language:?} {text:?}");
        }
    }

    fn language() -> impl Strategy<Value = &'static str> {
        prop_oneof![Just("en"), Just("uk"), Just("ru"), Just("")]
    }

    const WORDS: &[&str] = &[
        "грн",
        "руб.",
        "км/год",
        " листопада",
        " ноября ",
        " року",
        "г.",
        "pm",
        "a.m.",
        "Nov ",
        "о ",
        "з ",
        "до ",
        "-й",
        "-кімнатна",
        "th",
        "млн",
        "www.",
        ".com",
        "https://",
        "вул.",
        "т. д.",
        "x",
        "St. ",
        "tel",
        "USD ",
        "T",
        "&amp;",
        "😀",
        "**",
        "<b>",
        "ʼ",
    ];

    /// Pieces that mean something to the rules, in any order.
    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            4 => "[0-9]{1,5}",
            1 => "[0-9]{6,25}",
            3 => "[ ,.:;/()+%#@&*_|~<>=№°$€₴₽£'-]",
            2 => " ",
            1 => "[–—−½²³…×≈\u{a0}]",
            2 => proptest::sample::select(WORDS).prop_map(str::to_owned),
            1 => "[a-zA-Zа-яіїєёы]{1,6}",
        ];
        proptest::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
    }

    fn check(text: &str, language: &str) -> Result<(), TestCaseError> {
        let line = Spoken::of(text, language);
        let said = line.said();
        prop_assert!(!said.contains(|c: char| c.is_ascii_digit()), "{text:?} → {said:?}");
        prop_assert!(
            !said.contains(|c: char| "*_#|~`<>[]{}^\\=%№°$€₴₽£@&+/".contains(c) || is_pictogram(c)),
            "{text:?} → {said:?}"
        );
        prop_assert!(!said.contains("  "), "{text:?} → {said:?}");
        prop_assert!(said.len() <= 40 * text.len() + 40, "{text:?} → {said:?}");
        let mut heard = 0;
        for step in 0..=20 {
            let part = line.heard(step as f32 / 20.0);
            prop_assert!(line.written().starts_with(part) && part.len() >= heard, "{text:?}: {part:?} at {step}");
            heard = part.len();
        }
        prop_assert_eq!(heard, line.written().len());
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]

        #[test]
        fn no_digit_or_sign_reaches_the_voice(text in pieces(), language in language()) {
            check(&text, language)?;
        }

        #[test]
        fn any_unicode_is_survived(text in "\\PC{0,60}", language in language()) {
            check(&text, language)?;
        }

        #[test]
        fn other_languages_keep_their_numbers(text in "[a-zäöü0-9 .,€]{0,40}") {
            let line = Spoken::of(&text, "de");
            let digits = |text: &str| text.chars().filter(char::is_ascii_digit).count();
            prop_assert_eq!(digits(line.said()), digits(&text));
        }

        #[test]
        fn what_was_heard_is_a_beginning_of_whole_words(text in "([a-zа-я]{1,8} ?){0,12}", fraction in -0.5f32..1.5) {
            let line = Spoken::as_written(text.clone());
            let heard = line.heard(fraction);
            prop_assert!(text.starts_with(heard));
            prop_assert!(text[heard.len()..].is_empty() || text[heard.len()..].starts_with(' ') || heard.is_empty());
        }
    }
}
