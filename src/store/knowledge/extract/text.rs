//! Plain text: its encoding, its paragraphs.

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1251};

use super::{Blocks, ExtractError};
use crate::agent::knowledge::split::Block;

/// Of a text's bytes, so many in a thousand may be no UTF-8: a slip, not another encoding.
const SLIPS: usize = 10;

/// The text of a file that should be one. What is no UTF-8 and looks Cyrillic is read as Windows-1251.
pub(super) fn decode(bytes: &[u8]) -> Result<String, ExtractError> {
    let encoding = match Encoding::for_bom(bytes) {
        Some((encoding, _)) => encoding,
        None if is_wide(bytes, 1) => UTF_16LE,
        None if is_wide(bytes, 0) => UTF_16BE,
        None => UTF_8,
    };
    let (text, _, faulty) = encoding.decode(bytes);
    let mut text = text.into_owned();
    if faulty {
        let slips = text.chars().filter(|c| *c == '\u{fffd}').count();
        let high = bytes.iter().filter(|byte| **byte >= 0x80).count();
        let letters = bytes.iter().filter(|byte| **byte >= 0xc0).count();
        if encoding == UTF_8 && slips * 1000 > bytes.len() * SLIPS && letters * 2 > high {
            text = WINDOWS_1251.decode(bytes).0.into_owned();
        }
    }
    let odd = |c: &char| (c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{c}')) || *c == '\u{fffd}';
    let (all, oddities) = (text.chars().count(), text.chars().filter(odd).count());
    if oddities * 20 > all {
        return Err(ExtractError::WrongType("this is no text".into()));
    }
    Ok(text)
}

/// Whether every second byte of the beginning is zero, as in UTF-16 without its mark.
fn is_wide(bytes: &[u8], at: usize) -> bool {
    let head = &bytes[..bytes.len().min(256)];
    head.len() >= 8 && head.iter().skip(at).step_by(2).filter(|byte| **byte == 0).count() * 10 > head.len() / 2 * 9
}

/// Empty lines part paragraphs; lines that begin like a list stand alone.
pub(super) fn read(text: &str, blocks: &mut Blocks) -> Result<(), ExtractError> {
    let mut paragraph = String::new();
    for line in text.lines() {
        let line = line.trim();
        let item = ["- ", "* ", "• ", "– ", "— "].iter().find_map(|mark| line.strip_prefix(mark));
        if line.is_empty() || item.is_some() {
            blocks.add(Block::Paragraph(std::mem::take(&mut paragraph)))?;
        }
        match item {
            Some(item) => blocks.add(Block::Item(item.to_owned()))?,
            None if !line.is_empty() => {
                if !paragraph.is_empty() {
                    paragraph.push(' ');
                }
                paragraph.push_str(line);
            }
            None => {}
        }
    }
    blocks.add(Block::Paragraph(paragraph))
}
