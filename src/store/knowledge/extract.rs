//! Files into blocks of text: plain text, Markdown, HTML, PDF, DOCX. Whoever uploads may be hostile: everything that a
//! file can make grow has a limit, and what large libraries read is read in a process of its own, which may die of it.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::agent::knowledge::split::Block;

pub mod apart;
mod docx;
mod html;
mod markdown;
mod pdf;
mod reader;
mod text;

pub use reader::Reader;

/// Largest file, in bytes: a PDF of some hundred pages with pictures.
pub const MAX_FILE: usize = 20 << 20;
/// Largest file that is text in itself: as much as a thousand pages.
pub const MAX_TEXT_FILE: usize = 4 << 20;
/// Most text of one document, in bytes, whatever it was packed in.
pub const MAX_TEXT: usize = 4 << 20;
/// Most bytes that one packed part (a PDF's stream, a DOCX's body) may unfold to.
const MAX_UNPACKED: usize = 32 << 20;
/// Most pages of a PDF.
pub const MAX_PAGES: usize = 2000;
/// Most blocks of one document.
const MAX_BLOCKS: usize = 200_000;
/// Elements that may stand in each other.
const MAX_DEPTH: usize = 256;
/// How long one file may take.
pub const LIMIT: Duration = Duration::from_secs(20);
/// What a cell of a table counts beside its text: tables of empty cells are no small documents.
const CELL: usize = 16;

/// Why a file cannot be read, in words for whoever uploaded it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum ExtractError {
    #[error("the file is empty")]
    Empty,
    #[error("the file is larger than {} MB", .0 >> 20)]
    TooLarge(usize),
    /// Neither its name nor its content is one we read.
    #[error("{0}; text, Markdown, HTML, PDF and DOCX can be read")]
    WrongType(Cow<'static, str>),
    #[error("the file is protected by a password")]
    Locked,
    #[error("the file has more than {MAX_PAGES} pages: divide it")]
    TooManyPages,
    /// A bomb, or a document of which more would be stored than is of use.
    #[error("the file unfolds to more than {} MB", MAX_UNPACKED >> 20)]
    Unfolds,
    #[error("the file holds more than {} MB of text: divide it", MAX_TEXT >> 20)]
    TooMuchText,
    #[error("the file is nested more than {MAX_DEPTH} levels deep")]
    TooDeep,
    #[error("the file declares entities or an outside part, which no document needs")]
    Entities,
    #[error("the file is damaged: {0}")]
    Broken(String),
    #[error("there is no text in the file; pages that are pictures need text recognition first")]
    NoText,
    #[error("the file took longer than {} s to read", LIMIT.as_secs())]
    Late,
    /// Whoever read it died of it, or gave no answer that makes sense.
    #[error("the file could not be read: it is damaged or too complex; save it anew, or as plain text")]
    Unreadable,
    /// There is no program to read it with, or it does not start: an operator's concern, and in the log.
    #[error("files of this kind cannot be read here at the moment")]
    NoReader,
    /// Try again later.
    #[error("too many files are being read at the moment")]
    Busy,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Text,
    Markdown,
    Html,
    Pdf,
    Docx,
}

impl Format {
    /// As it is written on a command line.
    fn label(self) -> &'static str {
        match self {
            Format::Text => "text",
            Format::Markdown => "markdown",
            Format::Html => "html",
            Format::Pdf => "pdf",
            Format::Docx => "docx",
        }
    }

    /// By its content where that is certain, else by its name: names lie.
    fn of(name: &str, bytes: &[u8]) -> Result<Self, ExtractError> {
        let head = &bytes[..bytes.len().min(1024)];
        let begins = |magic: &[u8]| bytes.starts_with(magic);
        let known: [(&[u8], &'static str); 7] = [
            (b"\xd0\xcf\x11\xe0", "this is an old Word, Excel or PowerPoint file: save it as DOCX or PDF"),
            (b"\x89PNG", "this is a picture"),
            (b"\xff\xd8\xff", "this is a picture"),
            (b"GIF8", "this is a picture"),
            (b"{\\rtf", "this is an RTF file: save it as DOCX or PDF"),
            (b"\x7fELF", "this is a program"),
            (b"\x1f\x8b", "this is a packed file"),
        ];
        if let Some((_, what)) = known.iter().find(|(magic, _)| begins(magic)) {
            return Err(ExtractError::WrongType((*what).into()));
        }
        if head.windows(5).any(|window| window == b"%PDF-") {
            return Ok(Format::Pdf);
        }
        if begins(b"PK\x03\x04") || begins(b"PK\x05\x06") {
            return Ok(Format::Docx);
        }
        let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase()).unwrap_or_default();
        match extension.as_str() {
            "pdf" => return Err(ExtractError::WrongType("this is no PDF, whatever its name says".into())),
            "docx" => return Err(ExtractError::WrongType("this is no DOCX, whatever its name says".into())),
            "md" | "markdown" => return Ok(Format::Markdown),
            "html" | "htm" | "xhtml" => return Ok(Format::Html),
            _ => {}
        }
        let start = String::from_utf8_lossy(head).trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
        Ok(if start.starts_with("<!doctype html") || start.starts_with("<html") { Format::Html } else { Format::Text })
    }
}

/// Says when to stop: a thread cannot be stopped from outside.
#[derive(Clone, Copy)]
struct Patience {
    until: Instant,
}

impl Patience {
    fn of(limit: Duration) -> Self {
        Self { until: Instant::now() + limit }
    }

    fn check(&self) -> Result<(), ExtractError> {
        if Instant::now() >= self.until { Err(ExtractError::Late) } else { Ok(()) }
    }
}

/// The blocks in hand, with their limits.
struct Blocks {
    blocks: Vec<Block>,
    bytes: usize,
    patience: Patience,
}

impl Blocks {
    fn new(patience: Patience) -> Self {
        Self { blocks: Vec::new(), bytes: 0, patience }
    }

    fn add(&mut self, block: Block) -> Result<(), ExtractError> {
        let bytes = match &block {
            Block::Heading(_, text) | Block::Paragraph(text) | Block::Item(text) => {
                if text.trim().is_empty() {
                    return Ok(());
                }
                text.len()
            }
            Block::Row(cells) => {
                if cells.iter().all(|cell| cell.trim().is_empty()) {
                    return Ok(());
                }
                cells.iter().map(|cell| cell.len() + CELL).sum()
            }
            Block::Page(_) => 0,
        };
        self.bytes += bytes;
        if self.bytes > MAX_TEXT || self.blocks.len() >= MAX_BLOCKS {
            return Err(ExtractError::TooMuchText);
        }
        self.blocks.push(block);
        if self.blocks.len().is_multiple_of(256) { self.patience.check() } else { Ok(()) }
    }
}

/// What a file is, if it is one that is read and not too large.
fn looked_at(name: &str, bytes: &[u8]) -> Result<Format, ExtractError> {
    if bytes.is_empty() {
        return Err(ExtractError::Empty);
    }
    if bytes.len() > MAX_FILE {
        return Err(ExtractError::TooLarge(MAX_FILE));
    }
    let format = Format::of(name, bytes)?;
    if !matches!(format, Format::Pdf | Format::Docx) && bytes.len() > MAX_TEXT_FILE {
        return Err(ExtractError::TooLarge(MAX_TEXT_FILE));
    }
    Ok(format)
}

fn read(format: Format, bytes: &[u8], patience: Patience) -> Result<Vec<Block>, ExtractError> {
    let mut blocks = Blocks::new(patience);
    match format {
        Format::Text => text::read(&text::decode(bytes)?, &mut blocks)?,
        Format::Markdown => markdown::read(&text::decode(bytes)?, &mut blocks)?,
        Format::Html => html::read(&text::decode(bytes)?, &mut blocks)?,
        Format::Pdf => pdf::read(bytes, &mut blocks)?,
        Format::Docx => docx::read(bytes, &mut blocks)?,
    }
    let said = |block: &Block| !matches!(block, Block::Page(_));
    if blocks.blocks.iter().any(said) { Ok(blocks.blocks) } else { Err(ExtractError::NoText) }
}

#[cfg(test)]
mod tests;
