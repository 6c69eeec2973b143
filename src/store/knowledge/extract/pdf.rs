//! PDF: the text that its pages show (ISO 32000-1 §9.4), line by line as it stands in the content. Pictures and forms
//! are left out.

use std::collections::BTreeMap;
use std::io::Read;

use flate2::read::ZlibDecoder;
use lopdf::content::Content;
use lopdf::{Document, Encoding, Error, LoadOptions, Object};

use super::{Blocks, ExtractError, MAX_PAGES, MAX_UNPACKED};
use crate::agent::knowledge::split::Block;

/// Streams that are unfolded while the file is opened may have so much in all, in bytes.
const MAX_STRUCTURE: u64 = 64 << 20;
/// Most bytes that one page's content may unfold to.
const MAX_PAGE: usize = 8 << 20;
/// Most operators of a page that are looked at.
const MAX_OPERATIONS: usize = 500_000;
/// A gap in a line, in thousandths of the font's size, that stands for a space.
const SPACE: f32 = -180.0;

pub(super) fn read(bytes: &[u8], blocks: &mut Blocks) -> Result<(), ExtractError> {
    check_structure(bytes)?;
    let options = LoadOptions { max_decompressed_size: Some(MAX_UNPACKED), ..LoadOptions::default() };
    let document = Document::load_mem_with_options(bytes, options).map_err(fault)?;
    blocks.patience.check()?;
    if document.is_encrypted() {
        return Err(ExtractError::Locked);
    }
    let pages = document.get_pages();
    if pages.len() > MAX_PAGES {
        return Err(ExtractError::TooManyPages);
    }
    for (number, id) in pages {
        blocks.patience.check()?;
        let text = match page(&document, id, blocks) {
            Ok(text) => text,
            Err(ExtractError::Broken(_)) => continue,
            Err(fault) => return Err(fault),
        };
        blocks.add(Block::Page(number))?;
        for paragraph in text.split("\n\n") {
            blocks.add(Block::Paragraph(joined(paragraph)))?;
        }
    }
    Ok(())
}

fn fault(error: Error) -> ExtractError {
    match error {
        Error::Decompress(lopdf::DecompressError::MemoryLimitExceeded { .. }) => ExtractError::Unfolds,
        Error::RecursionLimit => ExtractError::TooDeep,
        Error::Decryption(_) | Error::InvalidPassword => ExtractError::Locked,
        error => ExtractError::Broken(error.to_string().chars().take(200).collect()),
    }
}

/// The library unfolds every stream of objects when it opens a file and limits each one alone: what they are together is
/// looked at first.
fn check_structure(bytes: &[u8]) -> Result<(), ExtractError> {
    let mut left = MAX_STRUCTURE;
    let mut from = 0;
    while let Some(at) = find(&bytes[from..], b"stream").map(|at| from + at) {
        from = at + b"stream".len();
        let head = &bytes[at.saturating_sub(512)..at];
        let head = &head[rfind(head, b" obj").unwrap_or(0)..];
        let structural = [&b"/ObjStm"[..], b"/XRef", b"#"].iter().any(|name| find(head, name).is_some());
        if bytes[..at].ends_with(b"end") || !structural {
            continue;
        }
        let start = from + bytes[from..].iter().take(2).take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let mut unfolded = ZlibDecoder::new(&bytes[start..]).take(left);
        // Damaged streams are the library's business: what they gave until then is counted.
        let mut buffer = [0; 16 * 1024];
        while let Ok(read @ 1..) = unfolded.read(&mut buffer) {
            left -= read as u64;
        }
        if left == 0 {
            return Err(ExtractError::Unfolds);
        }
    }
    Ok(())
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, what)
}

fn rfind(bytes: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::rfind(bytes, what)
}

fn page(document: &Document, id: (u32, u16), blocks: &Blocks) -> Result<String, ExtractError> {
    let fonts = document.get_page_fonts(id).map_err(fault)?;
    let mut encodings: BTreeMap<Vec<u8>, Encoding<'_>> = BTreeMap::new();
    for (name, font) in fonts {
        match font.get_font_encoding_with_limit(document, MAX_PAGE) {
            Ok(encoding) => drop(encodings.insert(name, encoding)),
            Err(error) => match fault(error) {
                ExtractError::Broken(_) => {}
                fault => return Err(fault),
            },
        }
    }
    let content = document.get_page_content_with_limit(id, MAX_PAGE).map_err(fault)?;
    let content = Content::decode(&content).map_err(fault)?;
    if content.operations.len() > MAX_OPERATIONS {
        return Err(ExtractError::Unfolds);
    }
    let mut lines = Lines::default();
    let mut encoding = None;
    for (at, operation) in content.operations.iter().enumerate() {
        if at % 4096 == 0 {
            blocks.patience.check()?;
        }
        let operands = &operation.operands;
        let number = |at: usize| operands.get(at).and_then(|operand| operand.as_float().ok()).unwrap_or(0.0);
        match operation.operator.as_str() {
            "Tf" => {
                encoding = operands.first().and_then(|font| font.as_name().ok()).and_then(|font| encodings.get(font))
            }
            "BT" => lines.moved(None),
            "Td" | "TD" => lines.moved(Some(number(1))),
            "T*" => lines.moved(Some(-1.0)),
            "Tm" => lines.at(number(5)),
            "Tj" => lines.show(operands, encoding),
            "TJ" => {
                for operand in operands.iter().filter_map(|operand| operand.as_array().ok()) {
                    lines.show(operand, encoding);
                }
            }
            "'" | "\"" => {
                lines.moved(Some(-1.0));
                lines.show(operands, encoding);
            }
            _ => {}
        }
    }
    Ok(lines.text)
}

/// The text of a page as its lines come.
#[derive(Default)]
struct Lines {
    text: String,
    /// Where the line stands, by the last matrix.
    height: Option<f32>,
}

impl Lines {
    /// To the next line, if it is another one; `None`: somewhere else.
    fn moved(&mut self, down: Option<f32>) {
        match down {
            Some(0.0) | None => self.part(' '),
            Some(_) => self.part('\n'),
        }
    }

    fn at(&mut self, height: f32) {
        match self.height {
            Some(before) if (before - height).abs() < 0.5 => self.part(' '),
            // Twice the usual distance between lines of body text: another paragraph.
            Some(before) if (before - height).abs() > 24.0 => {
                self.part('\n');
                if !self.text.is_empty() {
                    self.text.push('\n');
                }
            }
            _ => self.part('\n'),
        }
        self.height = Some(height);
    }

    fn part(&mut self, by: char) {
        if !self.text.is_empty() && !self.text.ends_with(['\n', by]) {
            self.text.push(by);
        }
    }

    fn show(&mut self, operands: &[Object], encoding: Option<&Encoding<'_>>) {
        let Some(encoding) = encoding else { return };
        for operand in operands {
            match operand {
                Object::String(bytes, _) => {
                    if let Ok(text) = Document::decode_text(encoding, bytes) {
                        self.text.push_str(&text);
                    }
                }
                Object::Integer(_) | Object::Real(_) if operand.as_float().is_ok_and(|gap| gap < SPACE) => {
                    self.part(' ')
                }
                _ => {}
            }
        }
    }
}

/// The lines of a paragraph as one; a word that was divided is whole again.
fn joined(paragraph: &str) -> String {
    let mut text = String::with_capacity(paragraph.len());
    for line in paragraph.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let divided = text.strip_suffix('-').is_some_and(|before| before.ends_with(char::is_alphabetic))
            && line.starts_with(char::is_lowercase);
        if divided {
            text.pop();
        } else if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(line);
    }
    text
}
