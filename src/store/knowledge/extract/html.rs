//! HTML, read as a stream of tags: no tree is built, so that depth costs nothing, and no entity unfolds to more than a
//! character.

use html5gum::emitters::default::DefaultEmitter;
use html5gum::{Token, Tokenizer};

use super::{Blocks, ExtractError};
use crate::agent::knowledge::split::Block;

/// What is not read aloud.
const SILENT: [&[u8]; 8] = [b"script", b"style", b"noscript", b"template", b"svg", b"select", b"iframe", b"object"];
/// What ends a paragraph, where it begins and where it ends.
const BREAKS: [&[u8]; 28] = [
    b"p",
    b"div",
    b"section",
    b"article",
    b"header",
    b"footer",
    b"main",
    b"nav",
    b"aside",
    b"ul",
    b"ol",
    b"dl",
    b"dt",
    b"dd",
    b"blockquote",
    b"pre",
    b"form",
    b"fieldset",
    b"figure",
    b"figcaption",
    b"hr",
    b"br",
    b"table",
    b"thead",
    b"tbody",
    b"body",
    b"html",
    b"address",
];
/// Tags between two looks at the clock.
const TAGS: usize = 4096;

pub(super) fn read(text: &str, blocks: &mut Blocks) -> Result<(), ExtractError> {
    let mut emitter = DefaultEmitter::default();
    // Scripts and styles are text that is no HTML.
    emitter.naively_switch_states(true);
    let mut page = Page::default();
    for (at, token) in Tokenizer::new_with_emitter(text, emitter).enumerate() {
        if at % TAGS == 0 {
            blocks.patience.check()?;
        }
        let Ok(token) = token;
        match token {
            Token::StartTag(tag) => page.open(&tag.name, tag.self_closing, blocks)?,
            Token::EndTag(tag) => page.close(&tag.name, blocks)?,
            Token::String(words) if page.silent.is_none() => page.words.push_str(&String::from_utf8_lossy(&words)),
            _ => {}
        }
    }
    page.cell();
    page.flush(blocks)?;
    page.row(blocks)
}

#[derive(Default)]
struct Page {
    words: String,
    /// Inside of this, nothing is read until it ends.
    silent: Option<Vec<u8>>,
    /// The row in hand; `None`: outside of tables.
    cells: Option<Vec<String>>,
    in_cell: bool,
    item: bool,
}

impl Page {
    fn open(&mut self, name: &[u8], self_closing: bool, blocks: &mut Blocks) -> Result<(), ExtractError> {
        if self.silent.is_some() {
            return Ok(());
        }
        match name {
            name if SILENT.contains(&name) => self.silent = (!self_closing).then(|| name.to_vec()),
            b"li" => {
                self.flush(blocks)?;
                self.item = true;
            }
            b"tr" => {
                self.cell();
                self.flush(blocks)?;
                self.row(blocks)?;
                self.cells = Some(Vec::new());
            }
            b"td" | b"th" if self.cells.is_some() => {
                self.cell();
                self.words.clear();
                self.in_cell = true;
            }
            name if level(name).is_some() || name == b"title" => self.flush(blocks)?,
            name if BREAKS.contains(&name) => self.flush(blocks)?,
            _ => {}
        }
        Ok(())
    }

    fn close(&mut self, name: &[u8], blocks: &mut Blocks) -> Result<(), ExtractError> {
        if let Some(silent) = &self.silent {
            if silent == name {
                self.silent = None;
            }
            return Ok(());
        }
        match name {
            b"li" => {
                self.flush(blocks)?;
                self.item = false;
            }
            b"tr" | b"table" => {
                self.cell();
                self.row(blocks)?;
            }
            b"td" | b"th" => self.cell(),
            b"title" => blocks.add(Block::Heading(1, std::mem::take(&mut self.words)))?,
            // A heading in a cell is the cell's text.
            name => match level(name).filter(|_| !self.in_cell) {
                Some(level) => blocks.add(Block::Heading(level, std::mem::take(&mut self.words)))?,
                None if BREAKS.contains(&name) || level(name).is_some() => self.flush(blocks)?,
                None => {}
            },
        }
        Ok(())
    }

    fn cell(&mut self) {
        if let (Some(cells), true) = (&mut self.cells, std::mem::take(&mut self.in_cell)) {
            cells.push(std::mem::take(&mut self.words).trim().to_owned());
        }
    }

    fn row(&mut self, blocks: &mut Blocks) -> Result<(), ExtractError> {
        match self.cells.take() {
            Some(mut cells) => {
                while cells.last().is_some_and(String::is_empty) {
                    cells.pop();
                }
                blocks.add(Block::Row(cells))
            }
            None => Ok(()),
        }
    }

    /// A paragraph ends; in a table, the cell goes on.
    fn flush(&mut self, blocks: &mut Blocks) -> Result<(), ExtractError> {
        if self.in_cell {
            self.words.push(' ');
            return Ok(());
        }
        let words = std::mem::take(&mut self.words);
        blocks.add(if self.item { Block::Item(words) } else { Block::Paragraph(words) })
    }
}

/// `h1` to `h6`.
fn level(name: &[u8]) -> Option<u8> {
    match name {
        [b'h', digit @ b'1'..=b'6'] => Some(digit - b'0'),
        _ => None,
    }
}
