//! Markdown (CommonMark with tables).

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::{Blocks, ExtractError, MAX_DEPTH, html};
use crate::agent::knowledge::split::Block;

pub(super) fn read(text: &str, blocks: &mut Blocks) -> Result<(), ExtractError> {
    // The parser looks at every open quote with every line.
    if text
        .lines()
        .any(|line| line.bytes().take_while(|b| b"> \t-+*".contains(b)).filter(|b| *b == b'>').count() > MAX_DEPTH)
    {
        return Err(ExtractError::TooDeep);
    }
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS;
    let (mut words, mut cells, mut raw) = (String::new(), Vec::new(), String::new());
    let (mut items, mut depth, mut skipped) = (0usize, 0usize, false);
    for event in Parser::new_ext(text, options) {
        match event {
            Event::Start(tag) => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(ExtractError::TooDeep);
                }
                match tag {
                    Tag::Item => {
                        flush(&mut words, items > 0, blocks)?;
                        items += 1;
                    }
                    Tag::MetadataBlock(_) => skipped = true,
                    Tag::Heading { .. } | Tag::Paragraph | Tag::List(_) | Tag::Table(_) | Tag::CodeBlock(_) => {
                        flush(&mut words, items > 0, blocks)?;
                    }
                    _ => {}
                }
            }
            Event::End(tag) => {
                depth = depth.saturating_sub(1);
                match tag {
                    TagEnd::Heading(level) => {
                        blocks.add(Block::Heading(level as u8, std::mem::take(&mut words)))?;
                    }
                    TagEnd::Item => {
                        flush(&mut words, true, blocks)?;
                        items = items.saturating_sub(1);
                    }
                    TagEnd::TableCell => cells.push(std::mem::take(&mut words)),
                    TagEnd::TableHead | TagEnd::TableRow => blocks.add(Block::Row(std::mem::take(&mut cells)))?,
                    TagEnd::HtmlBlock => html::read(&std::mem::take(&mut raw), blocks)?,
                    TagEnd::MetadataBlock(_) => {
                        skipped = false;
                        words.clear();
                    }
                    TagEnd::Paragraph | TagEnd::CodeBlock | TagEnd::BlockQuote(_) => {
                        flush(&mut words, items > 0, blocks)?;
                    }
                    _ => {}
                }
            }
            Event::Text(text) | Event::Code(text) if !skipped => words.push_str(&text),
            Event::Html(html) => raw.push_str(&html),
            Event::SoftBreak | Event::HardBreak => words.push(' '),
            _ => {}
        }
    }
    flush(&mut words, false, blocks)
}

fn flush(words: &mut String, item: bool, blocks: &mut Blocks) -> Result<(), ExtractError> {
    let text = std::mem::take(words);
    blocks.add(if item { Block::Item(text) } else { Block::Paragraph(text) })
}
