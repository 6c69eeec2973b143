//! Files into blocks of text: plain text, Markdown, HTML, PDF, DOCX. Whoever uploads may be hostile: everything that a
//! file can make grow has a limit, a library that panics is caught, and the work has its own threads, of which a file
//! that never ends holds up one.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};

use crate::agent::knowledge::split::Block;

mod docx;
mod html;
mod markdown;
mod pdf;
mod text;

/// Largest file, in bytes: a PDF of some hundred pages with pictures.
pub const MAX_FILE: usize = 20 << 20;
/// Largest file that is text in itself: as much as a thousand pages.
const MAX_TEXT_FILE: usize = 4 << 20;
/// Most text of one document, in bytes, whatever it was packed in.
const MAX_TEXT: usize = 4 << 20;
/// Most bytes that one packed part (a PDF's stream, a DOCX's body) may unfold to.
const MAX_UNPACKED: usize = 32 << 20;
/// Most pages of a PDF.
const MAX_PAGES: usize = 2000;
/// Most blocks of one document.
const MAX_BLOCKS: usize = 200_000;
/// Elements that may stand in each other.
const MAX_DEPTH: usize = 256;
/// How long one file may take.
const LIMIT: Duration = Duration::from_secs(20);
/// How long a file waits for a free thread.
const QUEUE_LIMIT: Duration = Duration::from_secs(20);
/// Files that are read at once.
const THREADS: usize = 2;
/// A library that descends into a nested file needs room: four times what a thread has by default.
const STACK: usize = 8 << 20;

/// Why a file cannot be read, in words for whoever uploaded it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtractError {
    #[error("the file is empty")]
    Empty,
    #[error("the file is larger than {} MB", .0 >> 20)]
    TooLarge(usize),
    /// Neither its name nor its content is one we read.
    #[error("{0}; text, Markdown, HTML, PDF and DOCX can be read")]
    WrongType(&'static str),
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
    /// Try again later.
    #[error("too many files are being read at the moment")]
    Busy,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    Markdown,
    Html,
    Pdf,
    Docx,
}

impl Format {
    /// By its content where that is certain, else by its name: names lie.
    fn of(name: &str, bytes: &[u8]) -> Result<Self, ExtractError> {
        let head = &bytes[..bytes.len().min(1024)];
        let begins = |magic: &[u8]| bytes.starts_with(magic);
        let known: [(&[u8], &str); 7] = [
            (b"\xd0\xcf\x11\xe0", "this is an old Word, Excel or PowerPoint file: save it as DOCX or PDF"),
            (b"\x89PNG", "this is a picture"),
            (b"\xff\xd8\xff", "this is a picture"),
            (b"GIF8", "this is a picture"),
            (b"{\\rtf", "this is an RTF file: save it as DOCX or PDF"),
            (b"\x7fELF", "this is a program"),
            (b"\x1f\x8b", "this is a packed file"),
        ];
        if let Some((_, what)) = known.iter().find(|(magic, _)| begins(magic)) {
            return Err(ExtractError::WrongType(what));
        }
        if head.windows(5).any(|window| window == b"%PDF-") {
            return Ok(Format::Pdf);
        }
        if begins(b"PK\x03\x04") || begins(b"PK\x05\x06") {
            return Ok(Format::Docx);
        }
        let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase()).unwrap_or_default();
        match extension.as_str() {
            "pdf" => return Err(ExtractError::WrongType("this is no PDF, whatever its name says")),
            "docx" => return Err(ExtractError::WrongType("this is no DOCX, whatever its name says")),
            "md" | "markdown" => return Ok(Format::Markdown),
            "html" | "htm" | "xhtml" => return Ok(Format::Html),
            _ => {}
        }
        let start = String::from_utf8_lossy(head).trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
        Ok(if start.starts_with("<!doctype html") || start.starts_with("<html") { Format::Html } else { Format::Text })
    }
}

/// Says when to stop: a thread cannot be stopped from outside.
#[derive(Clone)]
struct Patience {
    until: Instant,
    given_up: Arc<AtomicBool>,
}

impl Patience {
    fn check(&self) -> Result<(), ExtractError> {
        if self.given_up.load(Ordering::Relaxed) || Instant::now() >= self.until {
            Err(ExtractError::Late)
        } else {
            Ok(())
        }
    }
}

/// The blocks in hand, with their limits.
struct Blocks {
    blocks: Vec<Block>,
    bytes: usize,
    patience: Patience,
}

impl Blocks {
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
                cells.iter().map(String::len).sum()
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

/// Reads a file, on a thread of its own.
pub async fn extract(name: &str, bytes: Bytes) -> Result<Vec<Block>, ExtractError> {
    extract_within(name, bytes, LIMIT).await
}

async fn extract_within(name: &str, bytes: Bytes, limit: Duration) -> Result<Vec<Block>, ExtractError> {
    static FREE: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(THREADS)));
    if bytes.len() > MAX_FILE {
        return Err(ExtractError::TooLarge(MAX_FILE));
    }
    let free = tokio::time::timeout(QUEUE_LIMIT, FREE.clone().acquire_owned()).await;
    let permit = free.map_err(|_| ExtractError::Busy)?.expect("the semaphore is never closed");
    let given_up = Arc::new(AtomicBool::new(false));
    let patience = Patience { until: Instant::now() + limit, given_up: given_up.clone() };
    let (answer, answered) = oneshot::channel();
    let name = name.to_owned();
    let work = move || {
        // What the library left behind is dropped with it: nothing that it broke is seen again.
        let read = std::panic::catch_unwind(AssertUnwindSafe(|| read(&name, &bytes, patience)));
        let read = read.unwrap_or_else(|_| Err(ExtractError::Broken("it cannot be made sense of".into())));
        drop(permit);
        // Nobody waits any more: the time is up.
        let _ = answer.send(read);
    };
    if std::thread::Builder::new().name("extract".into()).stack_size(STACK).spawn(work).is_err() {
        return Err(ExtractError::Busy);
    }
    match tokio::time::timeout(limit, answered).await {
        Ok(Ok(read)) => read,
        Ok(Err(_)) => Err(ExtractError::Broken("it cannot be made sense of".into())),
        Err(_) => {
            given_up.store(true, Ordering::Relaxed);
            Err(ExtractError::Late)
        }
    }
}

fn read(name: &str, bytes: &[u8], patience: Patience) -> Result<Vec<Block>, ExtractError> {
    if bytes.is_empty() {
        return Err(ExtractError::Empty);
    }
    let format = Format::of(name, bytes)?;
    if !matches!(format, Format::Pdf | Format::Docx) && bytes.len() > MAX_TEXT_FILE {
        return Err(ExtractError::TooLarge(MAX_TEXT_FILE));
    }
    let mut blocks = Blocks { blocks: Vec::new(), bytes: 0, patience };
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
