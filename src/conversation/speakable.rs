//! Tokens of an answer to chunks for the voice: what cannot be spoken (Markdown, emoji, notes in brackets, thinking) is
//! taken out, and the rest is cut where a voice may pause. Works character by character, so that the chunks depend on
//! the text alone and not on how it was split into tokens; [`Speakable::due`] is the one place where time has a say.

use super::settings::TurnSettings;

/// Without any clause end, the first chunk is cut at a space from here on (`research/streaming.md` §4.2).
const FIRST_WITHOUT_CLAUSE: usize = 60;
/// Sentences are merged until they have this many characters: fewer make the voice start anew too often.
const MERGED: usize = 60;
/// Words that a first chunk needs when it is due before any clause ended.
const DUE_WORDS: usize = 3;
/// Longest tag and longest bracket that are held back to see where they end, in characters.
const MAX_TAG: usize = 64;
const MAX_BRACKET: usize = 300;

/// One request to the voice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// What is spoken; never empty, one blank between words.
    pub text: String,
}

/// How a place between two words may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cut {
    /// Between parts of a number or amount, after an abbreviation, or after a word that decides how a number is read.
    Never,
    Space,
    Clause,
    Sentence,
}

/// One answer on its way to the voice.
#[derive(Clone, Debug)]
pub struct Speakable {
    first_chars: usize,
    max_chars: usize,
    cleaner: Cleaner,
    /// Clean text that is not out yet: at most `max_chars` characters.
    pending: String,
    /// Characters in `pending`.
    length: usize,
    /// Ends of words in `pending` (byte offsets), in order.
    cuts: Vec<(usize, Cut)>,
    first: bool,
    out: Vec<Chunk>,
}

impl Speakable {
    pub fn new(settings: &TurnSettings) -> Self {
        // A voice needs some words at a time: smaller settings would cut words.
        let max_chars = settings.max_chunk_chars.max(20);
        Self {
            first_chars: settings.first_chunk_chars.min(max_chars),
            max_chars,
            cleaner: Cleaner::default(),
            pending: String::new(),
            length: 0,
            cuts: Vec::new(),
            first: true,
            out: Vec::new(),
        }
    }

    /// The next piece of the answer; gives the chunks that it completed.
    pub fn push(&mut self, token: &str) -> Vec<Chunk> {
        let mut clean = Vec::new();
        for c in token.chars() {
            self.cleaner.feed(c, &mut clean);
            self.take(&mut clean);
        }
        std::mem::take(&mut self.out)
    }

    /// The answer is complete: the rest.
    pub fn finish(&mut self) -> Vec<Chunk> {
        let mut clean = Vec::new();
        self.cleaner.finish(&mut clean);
        self.take(&mut clean);
        self.emit(self.pending.len());
        std::mem::take(&mut self.out)
    }

    /// The voice has nothing to do: the whole sentences that are here, or, before anything was said, whatever ends with
    /// a clause, or three words. `None` when there is nothing worth starting on.
    pub fn due(&mut self) -> Option<Chunk> {
        let least = if self.first { Cut::Clause } else { Cut::Sentence };
        let at = self.cuts.iter().rev().find(|(_, cut)| *cut >= least).or_else(|| {
            let words = self.cuts.len();
            self.cuts.iter().rev().find(|(_, cut)| *cut >= Cut::Space).filter(|_| self.first && words >= DUE_WORDS)
        });
        let at = at.map(|(at, _)| *at)?;
        self.emit(at);
        self.out.pop()
    }

    fn take(&mut self, clean: &mut Vec<char>) {
        for c in clean.drain(..) {
            if c.is_whitespace() {
                if !self.pending.is_empty() && !self.pending.ends_with(' ') {
                    self.word_ended();
                    if !self.pending.is_empty() {
                        self.pending.push(' ');
                        self.length += 1;
                    }
                }
                continue;
            }
            self.take_visible(c);
        }
    }

    fn take_visible(&mut self, c: char) {
        if matches!(c, '.' | ',' | '!' | '?' | ';' | ':' | '…') {
            if self.pending.is_empty() {
                // What it belonged to is out, or was taken out of the text.
                return;
            }
            if self.pending.ends_with(' ') {
                // "Hello 😀!": the mark goes to the word.
                self.pending.pop();
                self.length -= 1;
                self.cuts.pop();
            }
        } else if self.pending.ends_with(' ') {
            self.word_begins(c);
        }
        self.pending.push(c);
        self.length += 1;
        if self.length > self.max_chars {
            self.cut_long();
        }
    }

    /// What begins shows how the word before ended: "until 5 p.m. We", "in room No. 5".
    fn word_begins(&mut self, c: char) {
        let word = self.pending.trim_end().rsplit(' ').next().unwrap_or_default();
        if let Some((_, cut)) = self.cuts.last_mut() {
            if *cut == Cut::Never && c.is_uppercase() && ends_like_a_sentence(word) {
                *cut = Cut::Sentence;
            } else if *cut == Cut::Sentence && c.is_ascii_digit() && word == "No." {
                *cut = Cut::Never;
            }
        }
        if self.first && self.cuts.last().is_some_and(|(_, cut)| *cut == Cut::Sentence) {
            // "Yes. We have": a whole sentence is worth saying although it is short, now that more follows.
            self.emit(self.pending.len());
        }
    }

    fn word_ended(&mut self) {
        let mut words = self.pending.rsplit(' ');
        let word = words.next().unwrap_or_default();
        let cut = cut_after(words.next().unwrap_or_default(), word);
        self.cuts.push((self.pending.len(), cut));
        // "No." is an answer, or a number follows: the next character tells.
        let enough = if self.first {
            (cut >= Cut::Clause && word != "No." && self.length >= self.first_chars)
                || (cut >= Cut::Space && self.length >= FIRST_WITHOUT_CLAUSE.min(self.max_chars))
        } else {
            cut == Cut::Sentence && self.length >= MERGED.min(self.max_chars)
        };
        if enough {
            self.emit(self.pending.len());
        }
    }

    /// There is more than one chunk may hold: cut at the best place before.
    fn cut_long(&mut self) {
        let best = |least: Cut| self.cuts.iter().rev().find(|(_, cut)| *cut >= least).map(|(at, _)| *at);
        let last_char = self.pending.char_indices().next_back().map_or(0, |(at, _)| at);
        // A clause end near the beginning would leave a fragment.
        let far = |at: &usize| *at >= self.pending.len() / 3;
        let at = best(Cut::Sentence)
            .or_else(|| best(Cut::Clause).filter(far))
            .or_else(|| best(Cut::Space))
            .or_else(|| best(Cut::Never))
            .unwrap_or(last_char);
        self.emit(at);
    }

    /// Hands out the pending text up to a byte offset. Text without a letter or digit is not worth a request: it waits
    /// for company, and goes when it is too long or the last.
    fn emit(&mut self, at: usize) {
        let text = self.pending[..at].trim();
        let speakable = text.chars().any(char::is_alphanumeric);
        if speakable {
            self.out.push(Chunk { text: text.to_owned() });
            self.first = false;
        } else if at < self.pending.len() && self.length <= self.max_chars {
            return;
        }
        let rest = self.pending[at..].trim_start();
        let gone = self.pending.len() - rest.len();
        self.pending = rest.to_owned();
        self.length = self.pending.chars().count();
        self.cuts.retain_mut(|(end, _)| {
            *end = end.saturating_sub(gone);
            *end > 0
        });
    }
}

/// The whole words within the first so many characters.
pub(super) fn whole_words(text: &str, characters: usize) -> &str {
    let end = text.char_indices().nth(characters).map_or(text.len(), |(at, _)| at);
    let whole = match text[end..].chars().next() {
        Some(next) if !next.is_whitespace() => text[..end].rfind(char::is_whitespace).unwrap_or(0),
        _ => end,
    };
    text[..whole].trim_end()
}

/// A whole text without what cannot be spoken.
pub(super) fn clean(text: &str) -> String {
    let mut whole = Speakable {
        first_chars: usize::MAX,
        max_chars: usize::MAX,
        cleaner: Cleaner::default(),
        pending: String::new(),
        length: 0,
        cuts: Vec::new(),
        first: true,
        out: Vec::new(),
    };
    let mut chunks = whole.push(text);
    chunks.extend(whole.finish());
    chunks.into_iter().map(|chunk| chunk.text).collect::<Vec<_>>().join(" ")
}

/// Abbreviations without their points, in lower case. Single letters count as well ("м. Київ", "J. Smith").
const ABBREVIATIONS: &[&str] = &[
    "dr",
    "mr",
    "mrs",
    "ms",
    "prof",
    "st",
    "ave",
    "rd",
    "blvd",
    "no",
    "nr",
    "vs",
    "etc",
    "eg",
    "ie",
    "am",
    "pm",
    "approx",
    "dept",
    "ext",
    "inc",
    "ltd",
    "jr",
    "sr",
    "jan",
    "feb",
    "apr",
    "aug",
    "sept",
    "oct",
    "nov",
    "dec",
    "tel",
    "max",
    "min",
    "вул",
    "просп",
    "пров",
    "буд",
    "кв",
    "обл",
    "ім",
    "тел",
    "грн",
    "напр",
    "тд",
    "тп",
    "стор",
    "ул",
    "пер",
    "пр",
    "им",
    "руб",
    "коп",
    "стр",
    "др",
    "тыс",
    "тис",
    "млн",
    "млрд",
    "гр",
    "хв",
    "год",
    "доц",
    "проф",
];

/// Abbreviations that end a sentence when a capital follows: nobody is called after them.
const FINAL: &[&str] = &["am", "pm", "etc", "inc", "ltd", "jr", "тд", "тп", "грн", "руб", "коп", "хв", "год", "г", "р"];

fn ends_like_a_sentence(word: &str) -> bool {
    let Some(bare) = word.strip_suffix('.') else { return false };
    let date = bare.ends_with(|c: char| c.is_ascii_digit());
    date || FINAL.contains(&letters_of(bare).as_str())
}

fn letters_of(word: &str) -> String {
    word.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Ukrainian and Russian words that decide the case of a number after them, and months that a day follows.
const LEADING: &[&str] = &[
    "о",
    "об",
    "до",
    "від",
    "з",
    "із",
    "після",
    "на",
    "за",
    "по",
    "в",
    "у",
    "між",
    "близько",
    "к",
    "от",
    "с",
    "со",
    "из",
    "после",
    "около",
    "между",
    "через",
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

/// How the text may be cut after a word that is complete, given the word before it.
fn cut_after(before: &str, word: &str) -> Cut {
    let bare = word.trim_end_matches(['"', '\'', '”', '’', '»', ')', ']']);
    let Some(last) = bare.chars().next_back() else { return Cut::Space };
    let digits_before = before.ends_with(|c: char| c.is_ascii_digit());
    match last {
        '.' | '!' | '?' | '…' => {
            let letters = letters_of(bare);
            let single = letters.chars().count() == 1 && !letters.chars().all(|c| c.is_ascii_digit());
            // "I." ends a sentence as often as it is an initial; "No." is an answer more often than "number".
            let initial = single && letters != "i";
            let answer = letters == "no"
                && bare.starts_with('N')
                && (before.is_empty() || before.ends_with(['.', ',', '!', '?']));
            // "22.11. о 14:30".
            let day =
                last == '.' && bare.matches('.').count() == 2 && letters.len() <= 4 && letters.parse::<u16>().is_ok();
            if last == '.' && !answer && (initial || day || ABBREVIATIONS.contains(&letters.as_str())) {
                Cut::Never
            } else {
                Cut::Sentence
            }
        }
        // "November 22, 2026".
        ',' if letters_of(bare).parse::<u8>().is_ok() && LEADING.contains(&letters_of(before).as_str()) => Cut::Never,
        ',' | ';' | ':' => Cut::Clause,
        // "10 – 18".
        '—' | '–' | '-' if bare.chars().count() == 1 && digits_before => Cut::Never,
        '—' | '–' => Cut::Clause,
        '-' if bare == "-" => Cut::Clause,
        '$' | '€' | '£' | '₴' | '₽' | '№' | '#' | '+' | '=' | '~' | '≈' => Cut::Never,
        // A number may go on ("1 000"), and what it counts follows.
        c if c.is_ascii_digit() => Cut::Never,
        // "22 листопада 2026": the year may follow.
        _ if digits_before && is_month(bare) => Cut::Never,
        _ if LEADING.contains(&bare.to_lowercase().as_str()) && bare != "may" && bare != "march" => Cut::Never,
        _ => Cut::Space,
    }
}

/// A Ukrainian or Russian month as it stands in a date.
fn is_month(word: &str) -> bool {
    matches!(
        word,
        "січня"
            | "лютого"
            | "березня"
            | "квітня"
            | "травня"
            | "червня"
            | "липня"
            | "серпня"
            | "вересня"
            | "жовтня"
            | "листопада"
            | "грудня"
            | "января"
            | "февраля"
            | "марта"
            | "апреля"
            | "мая"
            | "июня"
            | "июля"
            | "августа"
            | "сентября"
            | "октября"
            | "ноября"
            | "декабря"
    )
}

// --- what cannot be spoken -----------------------------------------------------------------------------------------

/// Takes out what a voice cannot speak, character by character.
#[derive(Clone, Debug)]
struct Cleaner {
    inside: Inside,
    /// A list mark that may begin the line: "-", "12.".
    mark: String,
    line_start: bool,
    first_line: bool,
    /// Line breaks that were not spoken yet, and whether a list or an empty line makes them a full stop.
    held_break: Option<bool>,
    /// An underscore after a letter: part of a name if a letter follows.
    underscore: bool,
    /// A tilde before a word: "about" if a number follows, else a mark.
    tilde: bool,
    /// The last character given out that is no blank, and whether blanks followed it.
    last: char,
    after_blank: bool,
}

#[derive(Clone, Debug)]
enum Inside {
    Text,
    /// Backticks so far.
    Ticks(usize),
    /// A fenced block; backticks in a row.
    Fence(usize),
    Tag(String),
    /// The last characters, to see the end.
    Thinking(String),
    Bracket(String),
    /// A bracket is over: a link if a parenthesis follows.
    AfterBracket(String),
    LinkTarget,
}

impl Default for Cleaner {
    fn default() -> Self {
        Self {
            inside: Inside::Text,
            mark: String::new(),
            line_start: true,
            first_line: true,
            held_break: None,
            underscore: false,
            tilde: false,
            last: ' ',
            after_blank: true,
        }
    }
}

impl Cleaner {
    fn feed(&mut self, c: char, out: &mut Vec<char>) {
        match std::mem::replace(&mut self.inside, Inside::Text) {
            Inside::Text => self.line(c, out),
            Inside::Ticks(ticks) => match c {
                '`' => self.inside = Inside::Ticks(ticks + 1),
                _ if ticks >= 3 => self.inside = Inside::Fence(0),
                _ => self.line(c, out),
            },
            Inside::Fence(ticks) => match c {
                '`' if ticks == 2 => self.give(' ', out),
                '`' => self.inside = Inside::Fence(ticks + 1),
                _ => self.inside = Inside::Fence(0),
            },
            Inside::Tag(mut tag) => {
                if tag.is_empty() && !(c.is_ascii_alphabetic() || c == '/') {
                    self.give('<', out);
                    self.line(c, out);
                } else if c == '>' {
                    let name = tag.trim_start_matches('/').to_ascii_lowercase();
                    if !tag.starts_with('/') && THINKING.iter().any(|start| name == *start) {
                        self.inside = Inside::Thinking(String::new());
                    } else {
                        self.give(' ', out);
                    }
                } else if tag.len() >= MAX_TAG || c == '<' {
                    self.give('<', out);
                    tag.chars().for_each(|c| self.plain(c, out));
                    self.inside = Inside::Text;
                    self.feed(c, out);
                } else {
                    tag.push(c);
                    self.inside = Inside::Tag(tag);
                }
            }
            Inside::Thinking(mut tail) => {
                tail.push(c.to_ascii_lowercase());
                if THINKING.iter().any(|name| tail.ends_with(&format!("</{name}>"))) {
                    self.give(' ', out);
                    self.line_start = true;
                } else {
                    if tail.len() > MAX_TAG {
                        tail = tail.chars().skip(tail.chars().count() / 2).collect();
                    }
                    self.inside = Inside::Thinking(tail);
                }
            }
            Inside::Bracket(mut text) => {
                if c == ']' {
                    self.inside = Inside::AfterBracket(text);
                } else if text.chars().count() >= MAX_BRACKET {
                    text.chars().for_each(|c| self.plain(c, out));
                    self.line(c, out);
                } else {
                    text.push(c);
                    self.inside = Inside::Bracket(text);
                }
            }
            Inside::AfterBracket(text) => {
                if c == '(' {
                    text.chars().for_each(|c| self.plain(c, out));
                    self.inside = Inside::LinkTarget;
                } else {
                    self.give(' ', out);
                    self.line(c, out);
                }
            }
            Inside::LinkTarget => {
                if c != ')' && !c.is_whitespace() {
                    self.inside = Inside::LinkTarget;
                } else if c != ')' {
                    self.line(c, out);
                }
            }
        }
    }

    fn finish(&mut self, out: &mut Vec<char>) {
        match std::mem::replace(&mut self.inside, Inside::Text) {
            Inside::Tag(tag) => {
                self.give('<', out);
                tag.chars().for_each(|c| self.plain(c, out));
            }
            // A bracket that never ended was none.
            Inside::Bracket(text) => text.chars().for_each(|c| self.plain(c, out)),
            _ => {}
        }
        self.flush_mark(out);
    }

    /// Beginnings of lines: list marks, headings and quotes go.
    fn line(&mut self, c: char, out: &mut Vec<char>) {
        if !self.line_start || c == '\n' || c == '\r' {
            if c == '\n' || c == '\r' {
                self.flush_mark(out);
                let empty_line = self.line_start && !self.first_line && c == '\n';
                self.held_break = Some(self.held_break == Some(true) || empty_line);
                self.line_start = true;
                self.first_line = false;
                return;
            }
            return self.plain(c, out);
        }
        let digits = self.mark.chars().filter(char::is_ascii_digit).count();
        match (self.mark.as_str(), c) {
            ("", ' ' | '\t' | '>') => {}
            // "# Prices" is a heading, "#5" a number.
            ("" | "#" | "##" | "###" | "####" | "#####", '#') => self.mark.push(c),
            (mark, ' ' | '\t' | '*' | '_') if mark.starts_with('#') => {
                self.mark.clear();
                self.line(c, out);
            }
            ("", '-' | '*' | '•' | '+' | '–') => self.mark.push(c),
            // Only below the first line: an answer may be a number.
            ("", c) if c.is_ascii_digit() && !self.first_line => self.mark.push(c),
            ("", c) => {
                self.line_start = false;
                self.plain(c, out);
            }
            ("-" | "*" | "•" | "+" | "–", ' ') => self.list_item(),
            (mark, ' ') if mark.ends_with(['.', ')']) => self.list_item(),
            (mark, c) if digits == mark.len() && digits < 3 && (c.is_ascii_digit() || matches!(c, '.' | ')')) => {
                self.mark.push(c)
            }
            (_, c) => {
                self.flush_mark(out);
                self.line(c, out);
            }
        }
    }

    fn list_item(&mut self) {
        self.mark.clear();
        self.held_break = self.held_break.map(|_| true);
    }

    fn flush_mark(&mut self, out: &mut Vec<char>) {
        if !self.mark.is_empty() {
            self.line_start = false;
            let mark = std::mem::take(&mut self.mark);
            if mark.len() > 1 && mark.starts_with('#') {
                return;
            }
            for c in mark.chars() {
                self.plain(c, out);
            }
        }
    }

    /// Text inside a line.
    fn plain(&mut self, c: char, out: &mut Vec<char>) {
        if std::mem::take(&mut self.underscore) && c.is_alphanumeric() {
            self.give('_', out);
        }
        let struck = std::mem::take(&mut self.tilde);
        if struck && c.is_ascii_digit() {
            self.give('~', out);
        }
        match c {
            '`' => self.inside = Inside::Ticks(1),
            '<' => self.inside = Inside::Tag(String::new()),
            '[' => self.inside = Inside::Bracket(String::new()),
            '*' | '\\' => {}
            // Two of them strike a text out.
            '~' => self.tilde = self.after_blank && !struck,
            '_' => self.underscore = self.last.is_alphanumeric() && !self.after_blank,
            '|' | '•' => self.give(' ', out),
            c if is_pictogram(c) => self.give(' ', out),
            c if c.is_control() && !c.is_whitespace() => {}
            c => self.give(c, out),
        }
    }

    fn give(&mut self, c: char, out: &mut Vec<char>) {
        if !c.is_whitespace() {
            if let Some(full_stop) = self.held_break.take() {
                if full_stop && (self.last.is_alphanumeric() || matches!(self.last, ')' | '"' | '»' | '”')) {
                    out.push('.');
                }
                out.push(' ');
            }
            self.last = c;
        }
        self.after_blank = c.is_whitespace();
        out.push(c);
    }
}

/// Tags whose content is a model's thinking.
const THINKING: [&str; 3] = ["think", "thinking", "reasoning"];

/// Emoji, arrows, boxes and the invisible characters that join them (Unicode blocks).
pub(super) fn is_pictogram(c: char) -> bool {
    matches!(
        u32::from(c),
        0x2190..=0x21ff | 0x2300..=0x23ff | 0x2500..=0x27bf | 0x2b00..=0x2bff | 0x1f000..=0x1faff | 0xe0000..=0xe007f
            | 0x200b..=0x200f | 0x2060 | 0x20e3 | 0xfe00..=0xfe0f | 0xfeff
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(first_chunk_chars: usize, max_chunk_chars: usize) -> TurnSettings {
        TurnSettings { first_chunk_chars, max_chunk_chars, ..TurnSettings::default() }
    }

    fn chunks_of(settings: &TurnSettings, tokens: &[&str]) -> Vec<String> {
        let mut speakable = Speakable::new(settings);
        let mut chunks: Vec<Chunk> = tokens.iter().flat_map(|token| speakable.push(token)).collect();
        chunks.extend(speakable.finish());
        chunks.into_iter().map(|chunk| chunk.text).collect()
    }

    fn chunks(text: &str) -> Vec<String> {
        chunks_of(&TurnSettings::default(), &[text])
    }

    fn spoken(text: &str) -> String {
        chunks(text).join(" ")
    }

    #[test]
    fn the_first_chunk_ends_at_the_first_clause_that_is_long_enough() {
        assert_eq!(
            chunks("Well, we are open from eight, and until midnight at the weekend. Come and see us."),
            ["Well, we are open from eight,", "and until midnight at the weekend. Come and see us."]
        );
        assert_eq!(chunks_of(&settings(5, 200), &["Well, we are open."]), ["Well,", "we are open."]);
    }

    #[test]
    fn a_short_first_sentence_is_said_when_more_follows() {
        let mut speakable = Speakable::new(&TurnSettings::default());
        assert_eq!(speakable.push("Yes. "), []);
        assert_eq!(speakable.push("W"), [Chunk { text: "Yes.".into() }]);
        assert_eq!(chunks("Yes."), ["Yes."]);
    }

    #[test]
    fn without_a_clause_the_first_chunk_ends_at_a_space_after_sixty_characters() {
        let chunks = chunks(
            "we have a table for four people on the terrace with a view of the garden and the old oak tree behind it",
        );
        assert_eq!(chunks[0], "we have a table for four people on the terrace with a view of");
    }

    #[test]
    fn later_sentences_are_merged_and_no_chunk_is_too_long() {
        let text = "We are open. ".to_owned() + &"This is a sentence of forty characters ok. ".repeat(12);
        let chunks = chunks(&text);
        assert_eq!(chunks[1], "This is a sentence of forty characters ok. This is a sentence of forty characters ok.");
        let long = "word ".repeat(100);
        assert!(chunks_of(&settings(20, 50), &[&long]).iter().all(|chunk| chunk.chars().count() <= 50));
        assert!(chunks_of(&settings(20, 50), &[&"x".repeat(500)]).iter().all(|chunk| chunk.chars().count() <= 50));
    }

    #[test]
    fn a_sentence_that_does_not_fit_goes_into_the_next_chunk() {
        let chunks = chunks_of(
            &settings(5, 80),
            &["Hello there. It is short. This one is a good deal longer and would not fit into the same chunk."],
        );
        assert_eq!(chunks[0], "Hello there.");
        assert_eq!(chunks[1], "It is short.");
    }

    #[test]
    fn nothing_is_cut_inside_numbers_abbreviations_and_addresses() {
        for whole in [
            "3.5",
            "10:30",
            "1,000.50",
            "Dr. Smith",
            "Mr. Young",
            "вул. Садова",
            "м. Київ",
            "e.g. soup",
            "12 euros",
            "$ 40",
            "info@oak.garden.example",
            "https://oak.example/menu?a=1.",
            "+380 50 123 45 67",
            "(067) 123-45-67",
            "о 14:30",
            "до 22 листопада 2026 року",
            "November 22, 2026",
            "10 – 18",
            "22.11. о 14:30",
            "No. 5",
            "1 500,50 грн. за",
            "~5 minutes",
        ] {
            for padding in 0..70 {
                let text = format!("{} {whole} and so on and on until the end of it all.", "a".repeat(padding));
                let chunks = chunks_of(&settings(1, 200), &[&text]);
                assert!(chunks.iter().any(|chunk| chunk.contains(whole)), "{whole:?} in {chunks:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_spoken_is_taken_out() {
        for (text, expected) in [
            ("**Yes**, we *are* __open__.", "Yes, we are open."),
            ("# Menu\n- Soup\n- Salad\n\nEnjoy!", "Menu. Soup. Salad. Enjoy!"),
            ("We have:\n1. Soup\n2. Pie", "We have: Soup. Pie"),
            ("Hello 😀! Nice👍🏽 day ✨", "Hello! Nice day"),
            ("One [laughs] moment [see](https://x.example) here", "One moment see here"),
            ("Use `code` or\n```rust\nfn main() {}\n```\nnothing", "Use code or nothing"),
            ("<think>They want hours. **Hm**</think>We open at eight.", "We open at eight."),
            ("<b>Bold</b> and 5 < 6", "Bold and 5 < 6"),
            ("a   b\t\nc", "a b c"),
            ("| a | b |", "a b"),
            ("open [bracket", "open bracket"),
            ("my_name and _this_", "my_name and this"),
            ("<think>never ends", ""),
            ("-5 degrees", "-5 degrees"),
            ("7. That is all", "7. That is all"),
            ("a <a```", "a <a"),
            ("***", ""),
            ("## ", ""),
            ("#5 is yours", "#5 is yours"),
            ("### **Prices**\nSoup ~5 euros, ~~six~~", "Prices Soup ~5 euros, six"),
            ("- ", ""),
            ("", ""),
        ] {
            assert_eq!(spoken(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_capital_ends_the_sentence_after_an_abbreviation() {
        assert_eq!(chunks("We close at 5 p.m. Come before that."), ["We close at 5 p.m.", "Come before that."]);
        assert_eq!(chunks("Це 100 грн. Чекаємо вас."), ["Це 100 грн.", "Чекаємо вас."]);
        assert_eq!(chunks("Усе це 100 грн. за ніч, чекаємо."), ["Усе це 100 грн. за ніч,", "чекаємо."]);
        assert_eq!(chunks("No. 5 is free. No. We close."), ["No. 5 is free.", "No. We close."]);
    }

    #[test]
    fn what_is_due_is_given_in_whole_sentences() {
        let mut speakable = Speakable::new(&TurnSettings::default());
        assert_eq!(speakable.push("We are"), []);
        assert_eq!(speakable.due(), None);
        assert_eq!(speakable.push(" very op"), []);
        assert_eq!(speakable.due(), Some(Chunk { text: "We are very".into() }), "three words are worth starting on");
        assert_eq!(speakable.push("en. Also on Sunday and"), []);
        assert_eq!(speakable.due(), Some(Chunk { text: "open.".into() }));
        assert_eq!(speakable.due(), None, "half a sentence waits for its end");
        assert_eq!(speakable.finish(), [Chunk { text: "Also on Sunday and".into() }]);
    }

    /// Plain words with the marks that may end them.
    fn plain_text() -> impl Strategy<Value = String> {
        let word = "([a-z]{1,9}|[а-яії]{1,8}|[0-9]{1,4}|[0-9]\\.[0-9]|Dr\\.|10:30)[,.!?;:]{0,1}";
        proptest::collection::vec(word, 0..60).prop_map(|words| words.join(" "))
    }

    /// A text cut into tokens at random places.
    fn split(text: &str, at: &[usize]) -> Vec<String> {
        let mut places: Vec<usize> = at.iter().map(|place| place % (text.chars().count() + 1)).collect();
        places.sort_unstable();
        let chars: Vec<char> = text.chars().collect();
        let mut tokens = Vec::new();
        let mut from = 0;
        for place in places.into_iter().chain([chars.len()]) {
            tokens.push(chars[from..place].iter().collect());
            from = place;
        }
        tokens
    }

    proptest! {
        #[test]
        fn the_chunks_are_the_text_however_it_is_split(text in plain_text(), at in proptest::collection::vec(0usize..500, 0..40), first in 1usize..60, max in 20usize..220) {
            let settings = settings(first, max);
            let tokens = split(&text, &at);
            let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
            let chunks = chunks_of(&settings, &tokens);
            prop_assert_eq!(chunks.join(" "), text.clone());
            prop_assert_eq!(&chunks, &chunks_of(&settings, &[&text]));
            for chunk in &chunks {
                prop_assert!(!chunk.trim().is_empty() && chunk.chars().count() <= max, "{:?}", chunk);
            }
        }

        #[test]
        fn any_text_gives_the_same_clean_chunks_however_it_is_split(text in "([a-z ,.\\n*_`<>\\[\\]()#|0-9-]|<think>|</think>|```|😀|\\PC){0,120}", at in proptest::collection::vec(0usize..200, 0..20), max in 20usize..100) {
            let settings = settings(20, max);
            let tokens = split(&text, &at);
            let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
            let chunks = chunks_of(&settings, &tokens);
            prop_assert_eq!(&chunks, &chunks_of(&settings, &[&text]));
            for chunk in &chunks {
                prop_assert!(chunk.chars().count() <= max, "{:?}", chunk);
                prop_assert!(chunk.chars().any(char::is_alphanumeric), "{:?}", chunk);
                prop_assert!(!chunk.contains(['*', '😀', '\n', '`']) && !chunk.contains("  "), "{:?}", chunk);
            }
        }
    }
}
