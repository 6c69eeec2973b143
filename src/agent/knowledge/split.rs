//! Documents into passages: by their structure first (headings, paragraphs, lists, tables, pages), by sentences where a
//! part is long, with a little overlap so that a thought cut in two is found from both sides.

/// A passage is filled up to about so many characters: some 80 words, what an agent can say in half a minute.
const TARGET: usize = 600;
/// No passage is longer, in characters.
pub const LONGEST: usize = 1000;
/// So many characters of the passage before begin the next one of the same part.
const OVERLAP: usize = 120;
/// Passages of one document; more is refused before anything is stored.
pub const MAX_PASSAGES: usize = 20_000;
/// Levels of headings that are told apart.
const LEVELS: usize = 6;
/// Longest heading in a place, in characters.
const MAX_HEADING: usize = 80;
/// Cells of a row that are kept.
const MAX_CELLS: usize = 256;

/// A part of a document, in the order of reading.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// 1 is the highest level.
    Heading(u8, String),
    Paragraph(String),
    Item(String),
    /// Cells; the first row of a table names its columns.
    Row(Vec<String>),
    /// What follows is on this page, counted from 1.
    Page(u32),
}

/// A piece that is found and cited as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Page and headings; may be empty.
    pub place: String,
    pub text: String,
}

/// More passages than [`MAX_PASSAGES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it makes more than {MAX_PASSAGES} passages: divide it into several documents")]
pub struct TooMany;

/// The passages of a document.
pub fn split(blocks: &[Block]) -> Result<Vec<Piece>, TooMany> {
    let mut splitter = Splitter::default();
    let mut columns: Option<&[String]> = None;
    for (at, block) in blocks.iter().enumerate() {
        if !matches!(block, Block::Row(_)) {
            columns = None;
        }
        match block {
            Block::Heading(level, text) => splitter.heading(*level, text),
            Block::Page(page) => splitter.page = *page,
            Block::Paragraph(text) => splitter.add(text, false),
            Block::Item(text) => splitter.add(text, true),
            Block::Row(cells) => match columns {
                None if matches!(blocks.get(at + 1), Some(Block::Row(_))) => columns = Some(cells),
                // A table of one row has no names of columns: its row is text.
                None => splitter.add(&cells.join(", "), true),
                Some(columns) => splitter.add(&row(columns, cells), true),
            },
        }
        if splitter.pieces.len() > MAX_PASSAGES {
            return Err(TooMany);
        }
    }
    splitter.flush();
    if splitter.pieces.len() > MAX_PASSAGES { Err(TooMany) } else { Ok(splitter.pieces) }
}

/// `Room: Double; Price: 120`: a row that says what it means without its table.
fn row(columns: &[String], cells: &[String]) -> String {
    let cells = cells.iter().enumerate().take(MAX_CELLS).filter(|(_, cell)| !cell.trim().is_empty());
    let named =
        cells.map(|(at, cell)| match columns.get(at).map(|column| column.trim()).filter(|column| !column.is_empty()) {
            Some(column) => format!("{}: {cell}", clip(column, MAX_HEADING)),
            None => cell.to_owned(),
        });
    let text = named.collect::<Vec<_>>().join("; ");
    if text.is_empty() { text } else { format!("{text}.") }
}

#[derive(Default)]
struct Splitter {
    pieces: Vec<Piece>,
    headings: Vec<(u8, String)>,
    page: u32,
    /// The page on which the passage in hand begins.
    began: u32,
    text: String,
    chars: usize,
    /// The passage in hand holds more than the end of the one before.
    fresh: bool,
}

impl Splitter {
    fn heading(&mut self, level: u8, text: &str) {
        self.flush();
        self.text.clear();
        self.chars = 0;
        let level = level.clamp(1, LEVELS as u8);
        self.headings.retain(|(above, _)| *above < level);
        let text = squeeze(text);
        if !text.is_empty() {
            self.headings.push((level, clip(&text, MAX_HEADING).to_owned()));
        }
    }

    fn add(&mut self, text: &str, line: bool) {
        for sentence in sentences(&squeeze(text)) {
            let chars = sentence.chars().count();
            if self.fresh && (self.chars >= TARGET || self.chars + chars + 1 > LONGEST) {
                self.turn();
            }
            if self.chars + chars + 1 > LONGEST {
                // The overlap makes room for what is longer than a passage should be.
                self.text.clear();
                self.chars = 0;
            }
            self.push(sentence, chars);
        }
        if line && self.fresh {
            self.text.push('\n');
            self.chars += 1;
        }
        if self.chars >= TARGET {
            self.turn();
        }
    }

    fn push(&mut self, sentence: &str, chars: usize) {
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            self.text.push(' ');
            self.chars += 1;
        }
        if !self.fresh {
            self.began = self.page;
        }
        self.text.push_str(sentence);
        self.chars += chars;
        self.fresh = true;
    }

    /// Ends the passage in hand; its last sentences begin the next one.
    fn turn(&mut self) {
        let tail = {
            let text = self.text.trim_end();
            let mut at = text.len();
            for sentence in sentences(text).into_iter().rev() {
                let start = sentence.as_ptr() as usize - text.as_ptr() as usize;
                if text[start..].chars().count() > OVERLAP {
                    break;
                }
                at = start;
            }
            text[at..].to_owned()
        };
        self.flush();
        self.chars = tail.chars().count();
        self.text = tail;
    }

    fn flush(&mut self) {
        let text = self.text.trim();
        if self.fresh && !text.is_empty() {
            let mut place = String::new();
            if self.began > 0 {
                place = format!("p. {}", self.began);
            }
            for (at, (_, heading)) in self.headings.iter().enumerate() {
                let between = if at > 0 {
                    " > "
                } else if place.is_empty() {
                    ""
                } else {
                    ", "
                };
                place.push_str(between);
                place.push_str(heading);
            }
            self.pieces.push(Piece { place, text: text.to_owned() });
        }
        self.text.clear();
        self.chars = 0;
        self.fresh = false;
    }
}

/// One space between words, no control characters.
fn squeeze(text: &str) -> String {
    let mut squeezed = String::with_capacity(text.len());
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !squeezed.is_empty() {
            squeezed.push(' ');
        }
        squeezed.push_str(word);
    }
    squeezed
}

/// At most so many characters.
fn clip(text: &str, chars: usize) -> &str {
    text.char_indices().nth(chars).map_or(text, |(at, _)| &text[..at])
}

/// Words with a full stop that ends no sentence, in lower case.
const ABBREVIATIONS: [&str; 34] = [
    "mr",
    "mrs",
    "ms",
    "dr",
    "st",
    "no",
    "e.g",
    "i.e",
    "etc",
    "approx",
    "inc",
    "ltd",
    "вул",
    "м",
    "буд",
    "кв",
    "грн",
    "р",
    "ст",
    "т",
    "д",
    "тел",
    "напр",
    "просп",
    "ул",
    "г",
    "руб",
    "стр",
    "см",
    "корп",
    "пр",
    "п",
    "коп",
    "обл",
];

/// The sentences of a text, none longer than [`LONGEST`] characters; together they are the whole text but for spaces.
pub fn sentences(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut start = 0;
    let mut chars = text.char_indices().peekable();
    let mut length = 0;
    let mut space = None;
    while let Some((at, c)) = chars.next() {
        length += 1;
        let after = at + c.len_utf8();
        if c.is_whitespace() {
            space = Some(after);
        }
        let ends = match c {
            '\n' => true,
            '.' | '!' | '?' | '…' | '。' => {
                chars.peek().is_some_and(|(_, next)| next.is_whitespace())
                    && text[after..].trim_start().starts_with(|next: char| !next.is_lowercase())
                    && !(c == '.' && is_abbreviated(&text[start..at]))
            }
            _ => false,
        };
        if ends {
            found.push(text[start..after].trim());
            (start, length, space) = (after, 0, None);
        } else if length >= LONGEST {
            let cut = space.filter(|space| *space > start).unwrap_or(after);
            found.push(text[start..cut].trim());
            length = text[cut..after].chars().count();
            (start, space) = (cut, None);
        }
    }
    found.push(text[start..].trim());
    found.retain(|sentence| !sentence.is_empty());
    found
}

fn is_abbreviated(before: &str) -> bool {
    let word = before.rsplit(|c: char| c.is_whitespace() || c == '(').next().unwrap_or_default();
    let word = word.to_lowercase();
    ABBREVIATIONS.contains(&word.as_str()) || (word.chars().count() == 1 && word.chars().all(char::is_alphabetic))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paragraph(text: &str) -> Block {
        Block::Paragraph(text.into())
    }

    #[test]
    fn a_passage_stays_under_its_headings_and_says_where_it_is() {
        let blocks = [
            Block::Heading(1, "Hotel".into()),
            paragraph("We are in Kyiv."),
            Block::Heading(2, "Rooms".into()),
            Block::Item("A double costs 100 euros.".into()),
            Block::Item("A suite costs 200 euros.".into()),
            Block::Heading(2, "Parking".into()),
            Block::Page(2),
            paragraph("The garage is free."),
        ];
        let pieces = split(&blocks).unwrap();
        let told: Vec<(&str, &str)> = pieces.iter().map(|p| (p.place.as_str(), p.text.as_str())).collect();
        assert_eq!(
            told,
            [
                ("Hotel", "We are in Kyiv."),
                ("Hotel > Rooms", "A double costs 100 euros.\nA suite costs 200 euros."),
                ("p. 2, Hotel > Parking", "The garage is free."),
            ]
        );
    }

    #[test]
    fn a_row_of_a_table_says_what_its_cells_are() {
        let row = |cells: &[&str]| Block::Row(cells.iter().map(|cell| (*cell).to_owned()).collect());
        let blocks = [row(&["Room", "Price"]), row(&["Double", "100"]), row(&["Suite", ""])];
        assert_eq!(split(&blocks).unwrap()[0].text, "Room: Double; Price: 100.\nRoom: Suite.");
        assert_eq!(split(&[row(&["Open", "all day"])]).unwrap()[0].text, "Open, all day");
    }

    #[test]
    fn a_long_text_is_cut_at_sentences_with_overlap_and_nothing_is_lost() {
        let text: String = (0..100).map(|n| format!("Sentence number {n} says a thing or two about it. ")).collect();
        let pieces = split(&[paragraph(&text)]).unwrap();
        assert!(pieces.len() > 5);
        for n in 0..100 {
            let sentence = format!("Sentence number {n} says a thing or two about it.");
            assert!(pieces.iter().any(|piece| piece.text.contains(&sentence)), "{n}");
        }
        for pair in pieces.windows(2) {
            let last = sentences(&pair[0].text).last().copied().unwrap();
            assert!(pair[1].text.contains(last), "{:?} / {:?}", pair[0].text, pair[1].text);
        }
        assert!(pieces.iter().all(|piece| piece.text.chars().count() <= LONGEST));
    }

    #[test]
    fn a_full_stop_does_not_always_end_a_sentence() {
        for (text, expected) in [
            ("Ми на вул. Хрещатик, 1. Чекаємо на вас!", &["Ми на вул. Хрещатик, 1.", "Чекаємо на вас!"][..]),
            ("It costs 9.50 euros. Dr. Smith is in.", &["It costs 9.50 euros.", "Dr. Smith is in."]),
            ("Ціна 500 грн. за добу. Сніданок окремо.", &["Ціна 500 грн. за добу.", "Сніданок окремо."]),
            ("Open? Yes! Always…", &["Open?", "Yes!", "Always…"]),
            ("one\ntwo", &["one", "two"]),
        ] {
            assert_eq!(sentences(text), expected);
        }
    }

    #[test]
    fn words_without_end_are_cut_all_the_same() {
        let endless = "я".repeat(5000);
        let pieces = split(&[paragraph(&endless)]).unwrap();
        assert!(pieces.iter().all(|piece| piece.text.chars().count() <= LONGEST));
        assert_eq!(pieces.iter().map(|piece| piece.text.chars().count()).sum::<usize>(), 5000);
        assert_eq!(split(&[]).unwrap(), []);
        assert_eq!(split(&[paragraph(" \u{0} \n ")]).unwrap(), []);
    }

    #[test]
    fn a_document_of_too_many_passages_is_refused() {
        let blocks: Vec<Block> =
            (0..=MAX_PASSAGES as u32).flat_map(|n| [Block::Heading(1, n.to_string()), paragraph("x")]).collect();
        assert_eq!(split(&blocks), Err(TooMany));
    }
}
