//! DOCX: the body of a zip of XML (ECMA-376 part 1, §17). Only `word/document.xml` is unpacked, up to a limit.

use std::io::{Cursor, Read};

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use zip::ZipArchive;
use zip::result::ZipError;

use super::{Blocks, ExtractError, MAX_DEPTH, MAX_UNPACKED};
use crate::agent::knowledge::split::Block;

const BODY: &str = "word/document.xml";
/// Files in the zip; a document has some dozens.
const MAX_FILES: usize = 10_000;

pub(super) fn read(bytes: &[u8], blocks: &mut Blocks) -> Result<(), ExtractError> {
    let broken = |error: ZipError| ExtractError::Broken(error.to_string());
    let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(broken)?;
    if zip.len() > MAX_FILES {
        return Err(ExtractError::Broken(format!("it holds more than {MAX_FILES} files")));
    }
    let body = match zip.by_name(BODY) {
        Ok(body) => body,
        Err(ZipError::FileNotFound) => return Err(ExtractError::WrongType("this is a zip, but no DOCX".into())),
        Err(ZipError::UnsupportedArchive(_)) => return Err(ExtractError::Locked),
        Err(error) => return Err(broken(error)),
    };
    let mut xml = Vec::new();
    body.take(MAX_UNPACKED as u64 + 1).read_to_end(&mut xml).map_err(|e| ExtractError::Broken(e.to_string()))?;
    if xml.len() > MAX_UNPACKED {
        return Err(ExtractError::Unfolds);
    }
    let xml = String::from_utf8_lossy(&xml);
    document(&xml, blocks)
}

fn document(xml: &str, blocks: &mut Blocks) -> Result<(), ExtractError> {
    let mut reader = Reader::from_str(xml);
    let mut body = Body::default();
    let mut depth = 0usize;
    let broken = |error: &dyn std::fmt::Display| ExtractError::Broken(error.to_string());
    loop {
        match reader.read_event().map_err(|error| broken(&error))? {
            Event::Start(tag) => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(ExtractError::TooDeep);
                }
                body.open(&tag, blocks)?;
            }
            Event::Empty(tag) => {
                body.open(&tag, blocks)?;
                body.close(tag.local_name().as_ref(), blocks)?;
            }
            Event::End(tag) => {
                depth = depth.saturating_sub(1);
                body.close(tag.local_name().as_ref(), blocks)?;
            }
            Event::Text(text) if body.in_text => {
                body.words.push_str(&text.decode().map_err(|error| broken(&error))?);
            }
            Event::CData(text) if body.in_text => {
                body.words.push_str(&text.decode().map_err(|error| broken(&error))?);
            }
            // The five of XML and numbers; a document that declares others is refused.
            Event::GeneralRef(entity) if body.in_text => match entity.resolve_char_ref() {
                Ok(Some(c)) => body.words.push(c),
                _ => body.words.push_str(match &*entity {
                    b"amp" => "&",
                    b"lt" => "<",
                    b"gt" => ">",
                    b"quot" => "\"",
                    b"apos" => "'",
                    _ => "",
                }),
            },
            Event::DocType(_) => return Err(ExtractError::Entities),
            Event::Eof => break,
            _ => {}
        }
    }
    body.paragraph(blocks)
}

#[derive(Default)]
struct Body {
    words: String,
    in_text: bool,
    /// The paragraph in hand: the level of its heading, whether it is of a list.
    level: Option<u8>,
    item: bool,
    /// Tables that are open: the row of the outermost is what counts.
    tables: usize,
    cells: Vec<String>,
}

impl Body {
    fn open(&mut self, tag: &BytesStart, blocks: &mut Blocks) -> Result<(), ExtractError> {
        match tag.local_name().as_ref() {
            b"p" => self.paragraph(blocks)?,
            b"t" => self.in_text = true,
            b"tab" | b"br" | b"cr" => self.words.push(' '),
            b"noBreakHyphen" => self.words.push('-'),
            b"pStyle" => self.level = value(tag).and_then(|style| heading(&style)).or(self.level),
            b"outlineLvl" => {
                let level = value(tag).and_then(|level| level.parse::<u8>().ok()).filter(|level| *level < 6);
                self.level = level.map(|level| level + 1).or(self.level);
            }
            b"numPr" => self.item = true,
            b"tbl" => {
                self.paragraph(blocks)?;
                self.tables += 1;
            }
            b"tr" if self.tables == 1 => self.cells.clear(),
            _ => {}
        }
        Ok(())
    }

    fn close(&mut self, name: &[u8], blocks: &mut Blocks) -> Result<(), ExtractError> {
        match name {
            b"t" => self.in_text = false,
            b"p" => self.paragraph(blocks)?,
            b"tc" if self.tables == 1 => self.cells.push(std::mem::take(&mut self.words).trim().to_owned()),
            b"tr" if self.tables == 1 => blocks.add(Block::Row(std::mem::take(&mut self.cells)))?,
            b"tbl" => self.tables = self.tables.saturating_sub(1),
            _ => {}
        }
        Ok(())
    }

    fn paragraph(&mut self, blocks: &mut Blocks) -> Result<(), ExtractError> {
        let (level, item) = (self.level.take(), std::mem::take(&mut self.item));
        if self.tables > 0 {
            if !self.words.is_empty() && !self.words.ends_with(' ') {
                self.words.push(' ');
            }
            return Ok(());
        }
        let words = std::mem::take(&mut self.words);
        blocks.add(match level {
            Some(level) => Block::Heading(level, words),
            None if item => Block::Item(words),
            None => Block::Paragraph(words),
        })
    }
}

/// The `w:val` of an element.
fn value(tag: &BytesStart) -> Option<String> {
    let mut attributes = tag.attributes();
    let found = attributes
        .with_checks(false)
        .flatten()
        .take(32)
        .find(|attribute| attribute.key.local_name().as_ref() == b"val")?;
    Some(String::from_utf8_lossy(&found.value).into_owned())
}

/// Styles are named `Heading1`, `heading 2`, `Title`, or by a number in translated templates.
fn heading(style: &str) -> Option<u8> {
    let style = style.to_ascii_lowercase();
    if style == "title" {
        return Some(1);
    }
    let level = style.strip_prefix("heading").unwrap_or(&style).trim().parse::<u8>().ok()?;
    (1..=6).contains(&level).then_some(level)
}
