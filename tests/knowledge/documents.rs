//! Documents, read by the program itself in a process of its own: good ones give their structure; hostile ones are
//! refused with a reason, in time and in little memory.

use std::io::{Cursor, Write};
use std::time::Instant;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use lopdf::content::{Content, Operation};
use lopdf::{Dictionary, Document, Object, Stream, dictionary};
use offhook::agent::knowledge::split::Block;
use offhook::store::knowledge::extract::{ExtractError, LIMIT, MAX_PAGES, MAX_TEXT, MAX_TEXT_FILE, Reader};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

pub fn reader() -> Reader {
    Reader::starting(env!("CARGO_BIN_EXE_offhook").into())
}

async fn blocks(name: &str, bytes: impl Into<Bytes>) -> Vec<Block> {
    reader().read(name, bytes.into()).await.unwrap()
}

fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn docx(body: &str) -> Vec<u8> {
    let xml = format!(
        "<?xml version=\"1.0\"?><w:document xmlns:w=\"http://schemas.openxmlformats.org/wordprocessingml/2006/main\">\
         <w:body>{body}</w:body></w:document>"
    );
    zip(&[("[Content_Types].xml", b"<Types/>"), ("word/document.xml", xml.as_bytes())])
}

/// A PDF with one line a page; `content` may change what a page shows.
fn pdf(pages: &[&str], content: impl Fn(&str) -> Stream) -> Document {
    let mut document = Document::with_version("1.5");
    let tree = document.new_object_id();
    let font = document.add_object(dictionary! {
        "Type" => "Font", "Subtype" => "Type1", "BaseFont" => "Helvetica", "Encoding" => "WinAnsiEncoding",
    });
    let resources = document.add_object(dictionary! { "Font" => dictionary! { "F1" => font } });
    let kids: Vec<Object> = pages
        .iter()
        .map(|text| {
            let content = document.add_object(content(text));
            document.add_object(dictionary! { "Type" => "Page", "Parent" => tree, "Contents" => content }).into()
        })
        .collect();
    let count = kids.len() as i64;
    document.objects.insert(
        tree,
        Object::Dictionary(dictionary! {
            "Type" => "Pages", "Kids" => kids, "Count" => count, "Resources" => resources,
            "MediaBox" => vec![0.into(), 0.into(), 595.into(), 842.into()],
        }),
    );
    let catalog = document.add_object(dictionary! { "Type" => "Catalog", "Pages" => tree });
    document.trailer.set("Root", catalog);
    document
}

fn shown(text: &str) -> Stream {
    let mut operations = vec![Operation::new("BT", vec![]), Operation::new("Tf", vec!["F1".into(), 12.into()])];
    for line in text.lines() {
        operations.push(Operation::new("Td", vec![0.into(), (-14).into()]));
        operations.push(Operation::new("Tj", vec![Object::string_literal(line)]));
    }
    operations.push(Operation::new("ET", vec![]));
    Stream::new(dictionary! {}, Content { operations }.encode().unwrap())
}

fn saved(mut document: Document) -> Vec<u8> {
    let mut bytes = Vec::new();
    document.save_to(&mut bytes).unwrap();
    bytes
}

/// So many zeros, packed.
fn bomb(bytes: usize) -> Vec<u8> {
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::best());
    let zeros = vec![b' '; 1 << 20];
    for _ in 0..bytes >> 20 {
        packed.write_all(&zeros).unwrap();
    }
    packed.finish().unwrap()
}

fn said(blocks: &[Block]) -> String {
    format!("{blocks:?}")
}

#[tokio::test]
async fn html_is_read_without_its_scripts() {
    let text = "<!doctype html><title>Hotel</title><script>var x = '<p>no</p>';</script><style>p{}</style>\
                <h2>Rooms</h2><p>A double<br>is &euro;100.<ul><li>Wi-Fi<li>Sauna</ul>\
                <table><tr><th>Room<th>Price</tr> <tr> <td><h3>Suite</h3> large</td> <td>200</td> </tr></table>";
    assert_eq!(
        blocks("page", text).await,
        [
            Block::Heading(1, "Hotel".into()),
            Block::Heading(2, "Rooms".into()),
            Block::Paragraph("A double".into()),
            Block::Paragraph("is €100.".into()),
            Block::Item("Wi-Fi".into()),
            Block::Item("Sauna".into()),
            Block::Row(vec!["Room".into(), "Price".into()]),
            Block::Row(vec!["Suite  large".into(), "200".into()]),
        ]
    );
}

#[tokio::test]
async fn docx_keeps_headings_lists_and_tables() {
    let body = r#"<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>Rooms &amp; prices</w:t></w:r></w:p>
        <w:p><w:r><w:t xml:space="preserve">A double </w:t></w:r><w:r><w:t>costs 100&#8364;.</w:t></w:r></w:p>
        <w:p><w:pPr><w:numPr/></w:pPr><w:r><w:t>Wi-Fi</w:t></w:r></w:p>
        <w:tbl><w:tr><w:tc><w:p><w:r><w:t>Room</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>Price</w:t></w:r></w:p></w:tc></w:tr>
        <w:tr><w:tc><w:p><w:r><w:t>Suite</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>200</w:t></w:r></w:p></w:tc></w:tr></w:tbl>"#;
    assert_eq!(
        blocks("a.docx", docx(body)).await,
        [
            Block::Heading(1, "Rooms & prices".into()),
            Block::Paragraph("A double costs 100€.".into()),
            Block::Item("Wi-Fi".into()),
            Block::Row(vec!["Room".into(), "Price".into()]),
            Block::Row(vec!["Suite".into(), "200".into()]),
        ]
    );
}

#[tokio::test]
async fn pdf_is_read_page_by_page_and_its_lines_are_joined() {
    let bytes = saved(pdf(&["Breakfast is served\nfrom seven to ele-\nven.", "Parking is free."], shown));
    assert_eq!(
        blocks("a.pdf", bytes).await,
        [
            Block::Page(1),
            Block::Paragraph("Breakfast is served from seven to eleven.".into()),
            Block::Page(2),
            Block::Paragraph("Parking is free.".into()),
        ]
    );
}

/// Name, bytes, and what is said about them; `None`: it may be read, or not, but it ends.
type Hostile = (&'static str, Vec<u8>, Option<ExtractError>);

fn hostile() -> Vec<Hostile> {
    let compressed = |text: &str| {
        let _ = text;
        Stream::new(dictionary! { "Filter" => "FlateDecode" }, bomb(256 << 20))
    };
    let plain = |_: &str| Stream::new(Dictionary::new(), b"BT /F1 12 Tf (x) Tj".repeat(50_000));
    let good_pdf = saved(pdf(&["Hello."], shown));
    let mut deep_pdf = b"%PDF-1.5\n1 0 obj\n".to_vec();
    deep_pdf.extend(b"[".repeat(2_000_000));
    deep_pdf.extend(b"\nendobj\ntrailer<</Root 1 0 R>>\nstartxref\n9\n%%EOF");
    let object_bomb = {
        let packed = bomb(256 << 20);
        let mut bytes = b"%PDF-1.5\n".to_vec();
        for n in 1..=2 {
            let head =
                format!("{n} 0 obj\n<</Type/ObjStm/N 1/First 4/Filter/FlateDecode/Length {}>>\nstream\n", packed.len());
            bytes.extend(head.as_bytes());
            bytes.extend(&packed);
            bytes.extend(b"\nendstream\nendobj\n");
        }
        bytes.extend(b"trailer<</Root 1 0 R>>\nstartxref\n9\n%%EOF");
        bytes
    };
    let own_parent = {
        let mut document = pdf(&["x"], shown);
        let root = document.catalog().unwrap().get(b"Pages").unwrap().as_reference().unwrap();
        document.get_dictionary_mut(root).unwrap().set("Kids", vec![root.into()]);
        document.get_dictionary_mut(root).unwrap().set("Parent", root);
        saved(document)
    };
    let zeros = vec![b' '; 40 << 20];
    let body = "word/document.xml";
    let laughs = format!(
        "<!DOCTYPE x [<!ENTITY a \"lol\">{}]><w:document><w:t>&j;</w:t></w:document>",
        ('b'..='j')
            .map(|c| format!("<!ENTITY {c} \"{}\">", format!("&{};", (c as u8 - 1) as char).repeat(10)))
            .collect::<String>()
    );
    let many_pages: Vec<&str> = vec!["x"; MAX_PAGES + 1];
    let row = format!("<tr>{}</tr>", "<td>cell</td>".repeat(1000));
    let mut lying_zip = zip(&[(body, b"<w:document><w:body><w:p><w:r><w:t>x</w:t></w:r></w:p></w:body></w:document>")]);
    let end = lying_zip.len();
    lying_zip[end - 12..end - 8].copy_from_slice(&u32::MAX.to_le_bytes());
    let noise: Vec<u8> = (0u32..100_000).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    vec![
        ("empty.txt", Vec::new(), Some(ExtractError::Empty)),
        ("empty.pdf", Vec::new(), Some(ExtractError::Empty)),
        ("spaces.txt", b" \n\t \n".repeat(1000), Some(ExtractError::NoText)),
        ("huge.txt", vec![b'x'; MAX_TEXT_FILE + 1], Some(ExtractError::TooLarge(MAX_TEXT_FILE))),
        ("nul.txt", vec![0; 4096], Some(ExtractError::WrongType("this is no text".into()))),
        ("noise.txt", noise.clone(), Some(ExtractError::WrongType("this is no text".into()))),
        ("invalid.txt", b"good \xff\xfe\xc0 text that goes on for a while ".repeat(100), None),
        ("picture.pdf", b"\x89PNG\r\n\x1a\n".to_vec(), Some(ExtractError::WrongType("this is a picture".into()))),
        ("program.docx", b"\x7fELF\x02\x01".to_vec(), Some(ExtractError::WrongType("this is a program".into()))),
        (
            "text.pdf",
            b"just text".to_vec(),
            Some(ExtractError::WrongType("this is no PDF, whatever its name says".into())),
        ),
        ("deep.html", b"<div>".repeat(100_000), Some(ExtractError::NoText)),
        ("open.html", b"<".repeat(512 << 10), None),
        ("attributes.html", [b"<p ".to_vec(), b"a=b ".repeat(100_000), b">x".to_vec()].concat(), None),
        ("table.html", format!("<table>{}</table>", row.repeat(30)).into_bytes(), None),
        ("entities.html", b"&nbsp;&amp;&CounterClockwiseContourIntegral;".repeat(10_000), None),
        ("quotes.md", b"> ".repeat(200_000), Some(ExtractError::TooDeep)),
        ("brackets.md", b"[".repeat(100_000), None),
        ("stars.md", b"*a_ **b__ ".repeat(20_000), None),
        ("lists.md", (0..1000).map(|n| format!("{}- x\n", "  ".repeat(n))).collect::<String>().into_bytes(), None),
        ("page-bomb.pdf", saved(pdf(&["x"], compressed)), Some(ExtractError::Unfolds)),
        ("object-bomb.pdf", object_bomb, Some(ExtractError::Unfolds)),
        ("many-pages.pdf", saved(pdf(&many_pages, shown)), Some(ExtractError::TooManyPages)),
        ("many-words.pdf", saved(pdf(&["x"], plain)), None),
        ("deep.pdf", deep_pdf, None),
        ("own-parent.pdf", own_parent, None),
        ("cut.pdf", good_pdf[..good_pdf.len() / 2].to_vec(), None),
        ("noise.pdf", [&b"%PDF-1.7\n"[..], &noise].concat(), None),
        ("zip-bomb.docx", zip(&[(body, &zeros)]), Some(ExtractError::Unfolds)),
        ("archive.docx", zip(&[("a.txt", b"x")]), Some(ExtractError::WrongType("this is a zip, but no DOCX".into()))),
        ("laughs.docx", zip(&[(body, laughs.as_bytes())]), Some(ExtractError::Entities)),
        ("deep.docx", docx(&"<w:p>".repeat(100_000)), Some(ExtractError::TooDeep)),
        ("unclosed.docx", docx("<w:p><w:r><w:t>x</w:r>"), None),
        ("cut.docx", docx("<w:p/>")[..200].to_vec(), None),
        ("lying.docx", lying_zip, None),
        ("noise.docx", [&b"PK\x03\x04"[..], &noise].concat(), None),
    ]
}

#[tokio::test]
async fn hostile_files_are_refused_with_a_reason_and_harm_nothing() {
    let reader = reader();
    for (name, bytes, expected) in hostile() {
        let begun = Instant::now();
        let found = reader.read(name, bytes.into()).await;
        let took = begun.elapsed();
        assert!(took < LIMIT, "{name} took {took:?}");
        println!("{name}: {took:?}, {:?}", found.as_ref().map(Vec::len));
        match (found, expected) {
            (Ok(found), Some(expected)) => {
                panic!("{name}: {} instead of {expected:?}", said(&found[..found.len().min(5)]))
            }
            (Err(fault), Some(expected)) => assert_eq!(fault, expected, "{name}"),
            (Ok(found), None) => {
                let text: usize = found.iter().map(|block| said(std::slice::from_ref(block)).len()).sum();
                assert!(text < 3 * MAX_TEXT, "{name}");
            }
            (Err(fault), None) => assert!(!fault.to_string().is_empty(), "{name}"),
        }
    }
}

/// What the system holds of the process while it waits for the rest of its file.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_process_has_given_up_what_it_does_not_need_before_it_reads() {
    use std::process::Stdio;
    use std::time::Duration;

    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_offhook"))
        .args(["read-document", "text"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let of = format!("/proc/{}", child.id().unwrap());
    let read = |what: &str| std::fs::read_to_string(format!("{of}/{what}")).unwrap_or_default();
    let begun = Instant::now();
    // The last of what it gives up.
    while !read("status").contains("NoNewPrivs:\t1") {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", read("status"));
        tokio::task::yield_now().await;
    }
    let limits = read("limits");
    let words: Vec<Vec<&str>> = limits.lines().map(|line| line.split_whitespace().collect()).collect();
    for (name, most) in [
        ("Max address space", "805306368"),
        ("Max cpu time", "21"),
        ("Max file size", "0"),
        ("Max core file size", "0"),
        ("Max open files", "16"),
    ] {
        let count = name.split(' ').count();
        let line = words.iter().find(|line| line[..count.min(line.len())].join(" ") == name);
        let line = line.unwrap_or_else(|| panic!("no {name} in {limits}"));
        assert_eq!(line[count..count + 2], [most, most], "{name}");
    }
    drop(child.stdin.take());
    let answer = child.wait_with_output().await.unwrap();
    assert!(answer.status.success());
    assert_eq!(answer.stdout, br#"{"Err":"no_text"}"#);
}

#[tokio::test]
#[ignore = "a measurement: run it alone, with --nocapture"]
async fn how_long_a_small_document_takes() {
    let file = Bytes::from(saved(pdf(&["Breakfast is served from seven to eleven.", "Parking is free."], shown)));
    let reader = reader();
    let mut took = Vec::new();
    for _ in 0..50 {
        let begun = Instant::now();
        reader.read("a.pdf", file.clone()).await.unwrap();
        took.push(begun.elapsed());
    }
    took.sort();
    println!("a PDF of {} bytes: median {:?}, longest {:?}", file.len(), took[25], took[49]);
}
