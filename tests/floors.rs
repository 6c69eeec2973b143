//! The floors of `src/lib.rs`, checked: a module imports only modules that are declared above it there.

use std::fs;
use std::path::{Path, PathBuf};

/// The load tester looks at a server from outside: it may share words and codecs with it, nothing else.
const LOAD_MAY_IMPORT: [&str; 4] = ["telephony", "media", "protocol", "load"];

#[test]
fn no_module_imports_from_a_floor_above_its_own() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let floors = floors(&fs::read_to_string(src.join("lib.rs")).expect("src/lib.rs is readable"));
    assert!(floors.len() > 5, "no floors found in src/lib.rs");
    let mut wrong = Vec::new();
    for file in rust_files(&src) {
        let path = file.strip_prefix(&src).expect("files are found below src").to_path_buf();
        let Some(own) = floor_of(&path) else { continue };
        assert!(floors.contains(&own), "src/{} belongs to no floor of src/lib.rs", path.display());
        let text = fs::read_to_string(&file).expect("source files are UTF-8");
        wrong.extend(upward(&floors, &own, &text).into_iter().map(|to| format!("src/{} imports {to}", path.display())));
    }
    assert!(wrong.is_empty(), "imports from above or from a forbidden floor:\n{}", wrong.join("\n"));
}

#[test]
fn an_import_from_above_is_found_however_it_is_written() {
    let floors = ["media", "speech", "store", "load"].map(String::from);
    for (own, text, expected) in [
        ("speech", "use crate::media::frame::Frame;", vec![]),
        ("speech", "use crate::speech::stt::Take;", vec![]),
        ("media", "use crate::speech::stt::Take;", vec!["speech"]),
        ("media", "fn f() { let _ = crate::store::open(); }", vec!["store"]),
        (
            "media",
            "use crate::{\n    media::frame::{Frame, self},\n    speech,\n    store::{a, b},\n};",
            vec!["speech", "store"],
        ),
        ("media", "// use crate::speech::stt::Take;\n/// [`crate::store`]", vec![]),
        ("media", "use super::super::speech::stt::Take;", vec!["speech"]),
        ("load", "use crate::media::frame::Frame; use crate::store::Store;", vec!["store"]),
        ("load", "use crate::speech::stt::Take;", vec!["speech"]),
    ] {
        assert_eq!(upward(&floors, own, text), expected, "{own}: {text}");
    }
}

/// The `pub mod` lines in their order.
fn floors(lib: &str) -> Vec<String> {
    lib.lines().filter_map(|line| line.trim().strip_prefix("pub mod ")?.strip_suffix(';').map(str::to_owned)).collect()
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("src is readable") {
        let path = entry.expect("src is readable").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// `store/setup.rs` → `store`; `None` for the crate roots, which see everything.
fn floor_of(path: &Path) -> Option<String> {
    let first = path.components().next()?.as_os_str().to_str()?;
    match first.strip_suffix(".rs").unwrap_or(first) {
        "lib" | "main" => None,
        floor => Some(floor.to_owned()),
    }
}

/// The floors that `text`, a file of the floor `own`, must not name, each once.
fn upward(floors: &[String], own: &str, text: &str) -> Vec<String> {
    let rank = |name: &str| floors.iter().position(|floor| floor == name);
    let allowed = |name: &str| match own {
        "load" => LOAD_MAY_IMPORT.contains(&name),
        _ => rank(name) <= rank(own),
    };
    let mut wrong = Vec::new();
    for name in imports(&without_comments(text)) {
        if rank(&name).is_some() && !allowed(&name) && !wrong.contains(&name) {
            wrong.push(name);
        }
    }
    wrong
}

fn without_comments(text: &str) -> String {
    let mut code = String::new();
    for line in text.lines() {
        // `://` is a URL in a string, not a comment.
        let end = line.match_indices("//").map(|(at, _)| at).find(|&at| at == 0 || !line[..at].ends_with(':'));
        code.push_str(&line[..end.unwrap_or(line.len())]);
        code.push('\n');
    }
    code
}

/// The first name of every path from the crate's root: after `crate::`, in `crate::{…}`, and after two `super::`.
fn imports(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for root in ["crate::", "super::super::"] {
        for (at, _) in code.match_indices(root) {
            let rest = &code[at + root.len()..];
            match rest.strip_prefix('{') {
                Some(group) => names.extend(heads(group)),
                None => names.push(identifier(rest).to_owned()),
            }
        }
    }
    names
}

/// The first names of the members of a `{…}` group whose opening brace has been read.
fn heads(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 1;
    let mut at_member = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => at_member = true,
            c if c.is_whitespace() => {}
            _ if at_member => {
                names.push(identifier(&group[at..]).to_owned());
                at_member = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

fn identifier(text: &str) -> &str {
    let text = text.trim_start();
    &text[..text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())]
}
