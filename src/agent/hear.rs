//! How the builtin engine listens: words as they were heard, reduced to one form, and the small pattern language of
//! workflow files over them. What the words mean (numbers, days, names) is `extract.rs`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::{Regex, RegexBuilder};

/// Words of one utterance that are looked at; a caller who speaks longer is matched by the last ones.
const MAX_WORDS: usize = 400;
/// Words that `*` may stand for.
const MAX_GAP: usize = 8;
/// Words that a `{slot}` may take.
const MAX_CAPTURE: usize = 6;
/// Compiled size of one pattern, in bytes; a word set of hundreds of phrases fits.
const MAX_REGEX_BYTES: usize = 1 << 20;

/// What a caller said: lower-case words without punctuation, English contractions written out ("i'd" → "i would").
/// Number words stay words; "7:30" and "3.5" stay whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The words with one blank between, before and after. No other blank stands in it, so that patterns can say
    /// `[^ ]`, which compiles to far less than `\S`.
    text: String,
}

impl Heard {
    pub fn new(language: &str, text: &str) -> Self {
        let english = is_language(language, "en");
        let mut words: Vec<String> = Vec::new();
        for word in raw_words(text) {
            match english.then(|| contraction(&word)).flatten() {
                Some(long) => words.extend(long.split(' ').map(str::to_owned)),
                None => words.push(word),
            }
        }
        let first = words.len().saturating_sub(MAX_WORDS);
        Self { text: format!(" {} ", words[first..].join(" ")) }
    }

    /// The words with one blank between.
    pub fn text(&self) -> &str {
        self.text.trim()
    }

    pub fn words(&self) -> Vec<&str> {
        self.text.split_whitespace().collect()
    }

    pub fn is_empty(&self) -> bool {
        self.text.trim().is_empty()
    }
}

/// Whether a language tag (`en-US`, `EN`) is that language.
pub fn is_language(tag: &str, language: &str) -> bool {
    tag.split(['-', '_']).next().is_some_and(|first| first.eq_ignore_ascii_case(language))
}

/// Lower-case words: apostrophes inside words stay, as do points and colons inside numbers and a plus before one.
fn raw_words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase().replace(['’', 'ʼ', '`', '‘'], "'").replace("p.m.", "pm").replace("a.m.", "am");
    let mut words = Vec::new();
    let mut done = 0;
    for address in EMAIL.find_iter(&lower) {
        split_words(&lower[done..address.start()], &mut words);
        words.push(address.as_str().trim_end_matches('.').to_owned());
        done = address.end();
    }
    split_words(&lower[done..], &mut words);
    words
}

/// An e-mail address, which is one word.
static EMAIL: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"[a-z0-9][a-z0-9._+-]{0,63}@[a-z0-9][a-z0-9.-]{0,190}").expect("the pattern is whole")
});

fn split_words(lower: &str, words: &mut Vec<String>) {
    let chars: Vec<char> = lower.chars().collect();
    let mut word = String::new();
    for (at, &c) in chars.iter().enumerate() {
        let before = at.checked_sub(1).map(|i| chars[i]);
        let after = chars.get(at + 1).copied();
        let between = |class: fn(char) -> bool| before.is_some_and(class) && after.is_some_and(class);
        let keep = c.is_alphanumeric()
            // Combining accents of a decomposed й or ї belong to their letter.
            || ('\u{300}'..='\u{36f}').contains(&c)
            || (c == '\'' && between(char::is_alphabetic))
            || (matches!(c, ':' | '.') && between(|c| c.is_ascii_digit()))
            || (c == '+' && after.is_some_and(|c| c.is_ascii_digit()));
        if keep {
            word.push(c);
        } else if !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
}

fn contraction(word: &str) -> Option<&'static str> {
    Some(match word {
        "i'd" => "i would",
        "i'm" => "i am",
        "i'll" => "i will",
        "i've" => "i have",
        "we'd" => "we would",
        "we're" => "we are",
        "we'll" => "we will",
        "you're" => "you are",
        "it's" => "it is",
        "that's" => "that is",
        "that'll" => "that will",
        "there's" => "there is",
        "what's" => "what is",
        "when's" => "when is",
        "where's" => "where is",
        "who's" => "who is",
        "how's" => "how is",
        "name's" => "name is",
        "don't" => "do not",
        "doesn't" => "does not",
        "didn't" => "did not",
        "isn't" => "is not",
        "aren't" => "are not",
        "can't" | "cannot" => "can not",
        "won't" => "will not",
        "let's" => "let us",
        "wi-fi" => "wifi",
        _ => return None,
    })
}

/// One compiled pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    regex: Regex,
    slots: Vec<String>,
}

impl Pattern {
    /// Word patterns: words found anywhere in the utterance. `a|b` either, `word?` optional, `book*` any ending, `*` up
    /// to eight words, `@set` one entry of a named set, `^` and `$` the beginning and the end, `{slot}` a capture.
    pub fn words(pattern: &str, sets: &BTreeMap<String, Vec<String>>) -> Result<Self, String> {
        let tokens: Vec<&str> = pattern.split_whitespace().collect();
        if !tokens.iter().any(|token| !matches!(*token, "^" | "$" | "*")) {
            return Err("a pattern needs at least one word".into());
        }
        let mut regex = String::new();
        for (at, token) in tokens.iter().enumerate() {
            let last = at + 1 == tokens.len();
            match *token {
                "^" if at == 0 => regex.push('^'),
                "$" if last => regex.push('$'),
                "^" | "$" => {
                    return Err(format!(
                        "`{token}` stands only at the {}",
                        if *token == "^" { "beginning" } else { "end" }
                    ));
                }
                "*" => regex.push_str(&format!("(?: [^ ]+){{0,{MAX_GAP}}}?")),
                token => regex.push_str(&word_regex(token, last, sets)?),
            }
            if last && *token != "$" {
                regex.push_str("(?: |$)");
            } else if tokens.get(at + 1) == Some(&"$") {
                regex.push_str(" ?");
            }
        }
        Self::compile(&regex)
    }

    /// A regular expression over the words; it sees them with one blank before and after.
    pub fn regex(expression: &str) -> Result<Self, String> {
        Self::compile(expression)
    }

    fn compile(expression: &str) -> Result<Self, String> {
        let regex = RegexBuilder::new(expression).size_limit(MAX_REGEX_BYTES).build().map_err(|error| {
            error.to_string().lines().last().unwrap_or("not a regular expression").trim().to_owned()
        })?;
        let slots = regex.capture_names().flatten().map(str::to_owned).collect();
        Ok(Self { regex, slots })
    }

    /// Names of the slots that it captures.
    pub fn slots(&self) -> &[String] {
        &self.slots
    }

    pub fn matches(&self, heard: &Heard) -> bool {
        self.regex.is_match(&heard.text)
    }

    /// What the named captures took; `None` when the pattern is not in the utterance.
    pub fn captures(&self, heard: &Heard) -> Option<Vec<(&str, String)>> {
        let captures = self.regex.captures(&heard.text)?;
        Some(
            self.slots
                .iter()
                .filter_map(|slot| Some((slot.as_str(), captures.name(slot)?.as_str().trim().to_owned())))
                .filter(|(_, text)| !text.is_empty())
                .collect(),
        )
    }
}

/// One word of a pattern as a regular expression that begins with the blank before the word.
fn word_regex(token: &str, last: bool, sets: &BTreeMap<String, Vec<String>>) -> Result<String, String> {
    if let Some(slot) = token.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        if slot.is_empty() || !slot.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(format!("`{token}` is not a slot: letters, digits and _ stand between the braces"));
        }
        // At the end of a pattern a slot takes all it can, inside it only what it must.
        let greed = if last { "" } else { "?" };
        return Ok(format!(" (?P<{slot}>[^ ]+(?: [^ ]+){{0,{}}}{greed})", MAX_CAPTURE - 1));
    }
    let (token, optional) = match token.strip_suffix('?') {
        Some(token) => (token, true),
        None => (token, false),
    };
    let mut ways: Vec<String> = Vec::new();
    for way in token.split('|') {
        match way.strip_prefix('@') {
            Some(set) => match sets.get(set) {
                Some(phrases) => ways.extend(phrases.iter().map(|phrase| regex::escape(&raw_words(phrase).join(" ")))),
                None => return Err(format!("there is no set `{set}` in [words]")),
            },
            None => {
                let (stem, any_ending) = match way.strip_suffix('*') {
                    Some(stem) => (stem, true),
                    None => (way, false),
                };
                if stem.is_empty() || !stem.chars().all(|c| c.is_alphanumeric() || matches!(c, '\'' | ':' | '.' | '+'))
                {
                    return Err(format!("`{way}` is not a word; write a regular expression in `hear_regex`"));
                }
                ways.push(format!("{}{}", regex::escape(&stem.to_lowercase()), if any_ending { "[^ ]*" } else { "" }));
            }
        }
    }
    Ok(format!("(?: (?:{})){}", ways.join("|"), if optional { "?" } else { "" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(text: &str) -> Heard {
        Heard::new("en", text)
    }

    fn sets() -> BTreeMap<String, Vec<String>> {
        BTreeMap::from([("yes".to_owned(), vec!["yes".to_owned(), "of course".to_owned()])])
    }

    #[test]
    fn words_are_lower_case_without_punctuation() {
        assert_eq!(heard("Well, I'd like a TABLE—please!").text(), "well i would like a table please");
        assert_eq!(heard("at 7:30 p.m., or 3.5.").text(), "at 7:30 pm or 3.5");
        assert_eq!(heard("It’s twenty-two o'clock").text(), "it is twenty two o'clock");
        assert_eq!(heard("call +380 50").text(), "call +380 50");
        assert_eq!(Heard::new("uk", "П’ятниця, о сьомій?").text(), "п'ятниця о сьомій");
        assert!(heard(" … ").is_empty());
    }

    #[test]
    fn patterns_find_words_anywhere_and_whole() {
        let check = |pattern: &str, text: &str, expected: bool| {
            let compiled = Pattern::words(pattern, &sets()).unwrap();
            assert_eq!(compiled.matches(&heard(text)), expected, "`{pattern}` in {text:?}");
        };
        check("open", "when do you open today", true);
        check("open", "opening hours", false);
        check("open*", "opening hours", true);
        check("open|close", "do you close", true);
        check("book * table", "book me please a nice table", true);
        check("book * table", "table book", false);
        check("book a? table", "book table", true);
        check("book a? table", "book the table", false);
        check("^ yes $", "yes", true);
        check("^ yes $", "yes please", false);
        check("^ yes", "oh yes", false);
        check("@yes", "of course", true);
        check("@yes", "a course", false);
        check("^ what $", "What?", true);
        check("book|reserve", "I would like to book", true);
    }

    #[test]
    fn patterns_capture_slots() {
        let pattern = Pattern::words("my name is {name}", &sets()).unwrap();
        assert_eq!(pattern.slots(), ["name"]);
        assert_eq!(pattern.captures(&heard("my name is Anna Green")), Some(vec![("name", "anna green".to_owned())]));
        let pattern = Pattern::words("from {here} to {there}", &sets()).unwrap();
        let captured = pattern.captures(&heard("from the station to garden street")).unwrap();
        assert_eq!(captured, vec![("here", "the station".to_owned()), ("there", "garden street".to_owned())]);
        let pattern = Pattern::regex(r" room (?P<room>\d+) ").unwrap();
        assert_eq!(pattern.captures(&heard("room 12")), Some(vec![("room", "12".to_owned())]));
    }

    #[test]
    fn a_bad_pattern_says_what_is_wrong() {
        assert!(Pattern::words("@nope", &sets()).unwrap_err().contains("no set `nope`"));
        assert!(Pattern::words("a (b", &sets()).unwrap_err().contains("hear_regex"));
        assert!(Pattern::words("a ^ b", &sets()).unwrap_err().contains("beginning"));
        assert!(Pattern::words("^ * $", &sets()).is_err());
        assert!(Pattern::words("", &sets()).is_err());
        assert!(Pattern::regex("(").is_err());
    }

    #[test]
    fn a_very_long_utterance_is_matched_by_its_last_words() {
        let long = "blah ".repeat(100_000) + "goodbye";
        let heard = heard(&long);
        assert_eq!(heard.words().len(), MAX_WORDS);
        assert!(Pattern::words("goodbye $", &sets()).unwrap().matches(&heard));
    }
}
