//! What is read in this process, and what a name and the first bytes tell of a file. `tests/knowledge.rs` has the rest.

use super::*;

fn blocks(name: &str, bytes: impl AsRef<[u8]>) -> Vec<Block> {
    let bytes = bytes.as_ref();
    read(looked_at(name, bytes).unwrap(), bytes, Patience::of(LIMIT)).unwrap()
}

#[test]
fn text_is_read_in_paragraphs_and_items_whatever_its_encoding() {
    let expected =
        [Block::Paragraph("Ми відчинені з 9 до 18.".into()), Block::Item("Кава".into()), Block::Item("Чай".into())];
    let text = "Ми відчинені\nз 9 до 18.\n\n- Кава\n- Чай\n";
    assert_eq!(blocks("a.txt", text), expected);
    assert_eq!(blocks("a.txt", format!("\u{feff}{text}")), expected);
    assert_eq!(blocks("a", encoding_rs::WINDOWS_1251.encode(text).0), expected);
    let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(blocks("a.txt", [&b"\xff\xfe"[..], &wide].concat()), expected);
}

#[test]
fn markdown_keeps_headings_lists_and_tables() {
    let text = "---\ntitle: x\n---\n# Hotel\n\nWe are **open**.\n\n## Rooms\n- Double, *100*\n- Suite\n\n\
                | Room | Price |\n|---|---|\n| Single | 50 |\n\n<p>Raw &amp; ready</p>\n";
    assert_eq!(
        blocks("a.md", text),
        [
            Block::Heading(1, "Hotel".into()),
            Block::Paragraph("We are open.".into()),
            Block::Heading(2, "Rooms".into()),
            Block::Item("Double, 100".into()),
            Block::Item("Suite".into()),
            Block::Row(vec!["Room".into(), "Price".into()]),
            Block::Row(vec!["Single".into(), "50".into()]),
            Block::Paragraph("Raw & ready".into()),
        ]
    );
}

#[test]
fn a_file_is_what_its_content_says() {
    for (name, bytes, expected) in [
        ("a.txt", &b"\r\n%PDF-1.7"[..], Ok(Format::Pdf)),
        ("a.pdf", b"PK\x03\x04", Ok(Format::Docx)),
        ("a", b"\xef\xbb\xbf <!DOCTYPE html>", Ok(Format::Html)),
        ("a.HTM", b"words", Ok(Format::Html)),
        ("a.md", b"words", Ok(Format::Markdown)),
        ("--version", b"words", Ok(Format::Text)),
        ("a.docx", b"words", Err(ExtractError::WrongType("this is no DOCX, whatever its name says".into()))),
        ("a.txt", b"", Err(ExtractError::Empty)),
    ] {
        assert_eq!(looked_at(name, bytes), expected, "{name}");
    }
    assert_eq!(looked_at("a.pdf", &vec![b'x'; MAX_FILE + 1]), Err(ExtractError::TooLarge(MAX_FILE)));
}

#[test]
fn a_table_of_empty_cells_has_a_limit_too() {
    let mut row = vec![String::new(); MAX_TEXT / CELL];
    row[0].push('x');
    assert_eq!(Blocks::new(Patience::of(LIMIT)).add(Block::Row(row)), Err(ExtractError::TooMuchText));
}
