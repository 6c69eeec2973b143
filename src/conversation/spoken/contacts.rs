//! What is dictated rather than read: telephone numbers in groups, e-mail and web addresses, codes of letters and
//! digits. Words inside addresses are left to the voice.

use super::numerals::{digit_by_digit, english_year, group, plain, split_group};
use super::{Lang, Place, Reading};

// --- telephone numbers ---------------------------------------------------------------------------------------------

/// Most digits of an international number (E.164), and the least that make a number after "+".
const MAX_DIGITS: usize = 15;
const MIN_DIGITS: usize = 7;

/// Digits as they were written, with the separators between them.
struct Written<'a> {
    plus: bool,
    groups: Vec<&'a str>,
    /// Where each group ends in the text.
    ends: Vec<usize>,
}

pub(super) fn phone(place: &Place) -> Option<Reading> {
    let mut written = gather(place.rest)?;
    while !written.groups.is_empty() {
        let len = *written.ends.last()?;
        let digits: String = written.groups.concat();
        let glued = place.rest[len..].starts_with(|c: char| c.is_alphanumeric() || matches!(c, '%' | '@' | '_'));
        if !glued && is_phone(place, &written, &place.rest[..len], &digits) {
            return Some(Reading { len, words: dictated(place.lang, &written, &digits) });
        }
        written.groups.pop();
        written.ends.pop();
    }
    None
}

fn gather(rest: &str) -> Option<Written<'_>> {
    let plus = rest.starts_with('+');
    let mut written = Written { plus, groups: Vec::new(), ends: Vec::new() };
    let mut start = None;
    let mut separators = 0;
    let mut digits = 0;
    for (at, c) in rest.char_indices().skip(usize::from(plus)) {
        if c.is_ascii_digit() {
            start.get_or_insert(at);
            separators = 0;
            digits += 1;
            if digits > 20 {
                return None;
            }
            continue;
        }
        if let Some(from) = start.take() {
            written.groups.push(&rest[from..at]);
            written.ends.push(at);
        }
        separators += 1;
        let separates = matches!(c, '(' | ')' | '-' | '–' | '\u{2011}' | '.' | ' ' | '\u{a0}' | '\u{202f}');
        if !separates || separators > 2 {
            break;
        }
    }
    if let Some(from) = start {
        written.groups.push(&rest[from..]);
        written.ends.push(rest.len());
    }
    (!written.groups.is_empty()).then_some(written)
}

fn is_phone(place: &Place, written: &Written, text: &str, digits: &str) -> bool {
    let (parenthesis, hyphens) = (text.contains('('), text.contains(['-', '–', '\u{2011}']));
    let lengths: Vec<usize> = written.groups.iter().map(|group| group.len()).collect();
    let lead = |first: &str| digits.starts_with(first);
    if written.plus {
        return match digits.len() {
            12 if lead("380") => true,
            11 if lead("7") || lead("1") => true,
            length => !lead("380") && !lead("7") && !lead("1") && (MIN_DIGITS..=MAX_DIGITS).contains(&length),
        };
    }
    if text.contains('.') && lengths != [3, 3, 4] {
        return false;
    }
    let separated = lengths.len() > 1;
    match digits.len() {
        // Ukrainian numbers as they are dialled inside the country; with an area code in parentheses anywhere.
        10 if lead("0") => true,
        12 if lead("380") => true,
        10 if !separated || lengths == [3, 3, 4] => true,
        10 => parenthesis || hyphens && lengths.len() >= 4,
        11 if lead("8") || lead("7") => !separated || lengths.len() >= 4 || hyphens || parenthesis,
        11 if lead("1") => separated && (hyphens || parenthesis),
        7 if place.lang == Lang::En => {
            lengths == [3, 4] || lengths == [3, 2, 2] || (!separated && place.is_about_phone())
        }
        7 => lengths == [3, 2, 2] || lengths == [3, 4] && hyphens || (!separated && place.is_about_phone()),
        length @ 6..=15 => !separated && place.is_about_phone() || separated && length > 7 && place.is_about_phone(),
        _ => false,
    }
}

fn dictated(lang: Lang, written: &Written, digits: &str) -> String {
    let mut words = String::with_capacity(160);
    if written.plus {
        words.push_str(if lang == Lang::En { "plus " } else { "плюс " });
    }
    let usual = usual_groups(lang, written.plus, digits);
    // "+38 067 …" and the like: the writer's groups, where there are enough of them to be groups.
    let as_written = written.groups.len() >= 3 && written.groups.iter().all(|group| group.len() <= 4);
    let groups: Vec<&str> = if as_written { written.groups.clone() } else { usual };
    for (n, digits) in groups.iter().enumerate() {
        if n > 0 {
            words.push_str(", ");
        }
        words.push_str(&group(lang, digits));
    }
    words
}

fn usual_groups(lang: Lang, plus: bool, digits: &str) -> Vec<&str> {
    let lengths: &[usize] = match digits.len() {
        12 if digits.starts_with("380") => &[3, 2, 3, 2, 2],
        10 if !plus && digits.starts_with("0800") => &[1, 3, 3, 3],
        10 if !plus && digits.starts_with('0') => &[3, 3, 2, 2],
        10 if !plus => &[3, 3, 4],
        11 if digits.starts_with(['7', '8']) => &[1, 3, 3, 2, 2],
        11 if digits.starts_with('1') => &[1, 3, 3, 4],
        7 if !plus && lang == Lang::En => &[3, 4],
        7 if !plus => &[3, 2, 2],
        // Country codes have two digits more often than one or three (ITU-T E.164 lists them).
        _ => {
            if plus {
                &[2]
            } else {
                &[3]
            }
        }
    };
    let mut groups = Vec::with_capacity(6);
    let mut rest = digits;
    for &length in lengths {
        let (head, tail) = rest.split_at(length.min(rest.len()));
        groups.push(head);
        rest = tail;
    }
    while !rest.is_empty() {
        let length = if rest.len() > 4 { 3 } else { rest.len() };
        let (head, tail) = rest.split_at(length);
        groups.push(head);
        rest = tail;
    }
    groups
}

// --- addresses -----------------------------------------------------------------------------------------------------

/// Ends of names on the web that are taken for one without "www." or a scheme. Not "md", "pl", "rs" and the like, which
/// are ends of file names as well.
const TOP_LEVEL: [&str; 36] = [
    "com", "org", "net", "ua", "ru", "io", "co", "uk", "info", "biz", "eu", "gov", "edu", "app", "dev", "ai", "me",
    "example", "shop", "online", "store", "site", "us", "ca", "de", "fr", "by", "kz", "tv", "tech", "cloud", "укр",
    "рф", "test", "club", "pro",
];

/// Longest address that is read, and longest code, in bytes.
const LONGEST: usize = 300;
const LONGEST_CODE: usize = 80;

/// An e-mail or web address that the text begins with.
pub(super) fn address(place: &Place) -> Option<Reading> {
    let token: &str = place
        .window(LONGEST + 1)
        .split(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | '"' | '<' | '>' | '»' | '”'))
        .next()?;
    let token = token.trim_end_matches(['.', '!', '?', ':', ')', '\'', '’', '…', ']']);
    if !token.contains(['@', '.']) || token.len() > LONGEST {
        return None;
    }
    if let Some((local, domain)) = token.split_once('@') {
        let local_is_fine = !local.is_empty() && local.chars().all(|c| c.is_alphanumeric() || "._%+-".contains(c));
        let named = is_domain(domain) && domain.contains('.');
        return (local_is_fine && named).then(|| {
            let mut words = spelled(place.lang, local);
            words.push_str(match place.lang {
                Lang::En => " at ",
                Lang::Uk | Lang::Ru => " собака ",
            });
            words.push_str(&spelled(place.lang, domain));
            Reading { len: token.len(), words }
        });
    }
    let lower = token.get(..8.min(token.len())).unwrap_or_default();
    let scheme = ["https://", "http://"].into_iter().find(|scheme| lower.starts_with(scheme)).map_or(0, str::len);
    let bare = &token[scheme..];
    let www = bare.strip_prefix("www.");
    let name = www.unwrap_or(bare);
    let host_end = name.find(['/', '?', '#', ':']).unwrap_or(name.len());
    let host = &name[..host_end];
    let known = host.rsplit_once('.').is_some_and(|(_, last)| TOP_LEVEL.contains(&last));
    // "Nothing.com" at the end of a sentence that lacks its blank is rare; "т.д." is not a name.
    if !is_domain(host) || !(scheme > 0 || www.is_some() || known) {
        return None;
    }
    // What follows "?" is for machines.
    let spoken = name.split(['?', '#']).next().unwrap_or(name).trim_end_matches('/');
    Some(Reading { len: token.len(), words: spelled(place.lang, spoken) })
}

fn is_domain(text: &str) -> bool {
    !text.is_empty()
        && text.split('.').all(|label| !label.is_empty() && label.chars().all(|c| c.is_alphanumeric() || c == '-'))
}

/// Words as they are, digits read, marks named.
fn spelled(lang: Lang, text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let run = |class: fn(char) -> bool| rest.find(|c| !class(c)).unwrap_or(rest.len());
        let (len, words) = if c.is_ascii_digit() {
            let len = run(|c| c.is_ascii_digit());
            (len, digits_of_code(lang, &rest[..len]))
        } else if c.is_alphanumeric() {
            let len = run(|c| c.is_alphanumeric() && !c.is_ascii_digit());
            (len, rest[..len].to_owned())
        } else {
            (c.len_utf8(), mark(lang, c).to_owned())
        };
        if !out.is_empty() && !words.is_empty() {
            out.push(' ');
        }
        out.push_str(&words);
        rest = &rest[len..];
    }
    out
}

fn mark(lang: Lang, c: char) -> &'static str {
    match (lang, c) {
        (Lang::En, '.') => "dot",
        (Lang::En, '-') => "dash",
        (Lang::En, '_') => "underscore",
        (Lang::En, '+') => "plus",
        (Lang::En, '/') => "slash",
        (Lang::En, ':') => "colon",
        (Lang::En, '%') => "percent",
        (Lang::Uk, '.') => "крапка",
        (Lang::Uk, '-') => "дефіс",
        (Lang::Uk, '_') => "підкреслення",
        (Lang::Uk, '/') => "слеш",
        (Lang::Uk, ':') => "двокрапка",
        (Lang::Uk, '%') => "відсоток",
        (Lang::Ru, '.') => "точка",
        (Lang::Ru, '-') => "дефис",
        (Lang::Ru, '_') => "подчёркивание",
        (Lang::Ru, '/') => "слэш",
        (Lang::Ru, ':') => "двоеточие",
        (Lang::Ru, '%') => "процент",
        (_, '+') => "плюс",
        _ => "",
    }
}

// --- codes ---------------------------------------------------------------------------------------------------------

/// A word of letters and digits that the text begins with: "A-123-B", "AB1234", "COVID-19", "12А".
pub(super) fn code(place: &Place) -> Option<Reading> {
    let mut len = 0;
    let (mut digits, mut letters) = (false, false);
    for (at, c) in place.window(LONGEST_CODE).char_indices() {
        let inner = matches!(c, '-' | '/')
            && at > 0
            && place.rest[at + 1..].starts_with(char::is_alphanumeric)
            && place.rest[..at].ends_with(char::is_alphanumeric);
        if !(c.is_alphanumeric() || inner) {
            break;
        }
        digits |= c.is_ascii_digit();
        letters |= c.is_alphabetic();
        len = at + c.len_utf8();
    }
    let token = &place.rest[..len];
    // "Mid-2026".
    if place.lang == Lang::En
        && let Some((word, year)) = token.split_once('-')
        && word.len() >= 3
        && word.bytes().skip(1).all(|byte| byte.is_ascii_lowercase())
        && let Some(year) = year.parse().ok().filter(|year| (1900..2100).contains(year))
    {
        return Some(Reading { len, words: format!("{word}-{}", english_year(year)) });
    }
    (digits && letters).then(|| Reading { len, words: spelled_code(place.lang, token) })
}

fn spelled_code(lang: Lang, token: &str) -> String {
    let long = token.bytes().filter(u8::is_ascii_digit).count() >= 3;
    let mut out = String::with_capacity(token.len() * 4);
    let mut rest = token;
    while let Some(c) = rest.chars().next() {
        if matches!(c, '-' | '/') {
            if long {
                out.push(',');
            }
            rest = &rest[1..];
            continue;
        }
        let digit = c.is_ascii_digit();
        let len = rest.find(|c: char| c.is_ascii_digit() != digit || matches!(c, '-' | '/')).unwrap_or(rest.len());
        let part = &rest[..len];
        if !out.is_empty() {
            out.push(' ');
        }
        let between_digits =
            rest[len..].starts_with(|c: char| c.is_ascii_digit()) && len < token.len() && !out.is_empty();
        if digit {
            out.push_str(&digits_of_code(lang, part));
        } else if matches!(part, "x" | "х") && between_digits {
            out.push_str(if lang == Lang::En { "by" } else { "на" });
        } else if part.chars().count() <= 3 && part.chars().all(char::is_uppercase) {
            for (n, letter) in part.chars().enumerate() {
                if n > 0 {
                    out.push(' ');
                }
                out.push(letter);
            }
        } else {
            out.push_str(part);
        }
        rest = &rest[len..];
    }
    out
}

/// Digits of a code: up to two as a number, more as they are dictated. With pauses: "сто, сорок п'ять" is not 145.
pub(super) fn digits_of_code(lang: Lang, digits: &str) -> String {
    match digits.len() {
        1..=2 if !digits.starts_with('0') || digits == "0" => plain(lang, digits.parse().unwrap_or_default()),
        _ if lang == Lang::En => digit_by_digit(lang, digits),
        0..=3 => group(lang, digits),
        _ => split_group(digits).map(|pair| group(lang, pair)).collect::<Vec<_>>().join(", "),
    }
}
