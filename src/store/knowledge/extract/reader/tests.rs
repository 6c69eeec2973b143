//! A reader that misbehaves costs the file that it reads, and nothing else. The readers are tests of this very binary,
//! which do nothing unless they are started as a reader is.

use std::time::Duration;

use super::*;

/// This test's binary as the program, one of [`misbehaving`] as what it does.
fn reader(what: &str) -> Reader {
    let test = format!("{}::misbehaving::{what}", module_path!().split_once("::").expect("below the crate").1);
    let program = std::env::current_exe().expect("this test's binary");
    Reader::with(program, ["--exact", &test, "--nocapture", "--test-threads=1"].map(Into::into).into())
}

/// More than a pipe holds.
fn file() -> Bytes {
    [&b"%PDF-1.7\n"[..], &[b'x'; 1 << 20]].concat().into()
}

#[tokio::test]
async fn a_reader_that_dies_loops_or_babbles_is_the_end_of_one_file_only() {
    let long = Duration::from_secs(60);
    for (what, limit, expected) in [
        ("aborts", long, ExtractError::Unreadable),
        ("overflows_its_stack", long, ExtractError::Unreadable),
        ("allocates_without_end", long, ExtractError::Unreadable),
        ("writes_without_end", long, ExtractError::Unreadable),
        ("panics", long, ExtractError::Unreadable),
        ("exits_silently", long, ExtractError::Unreadable),
        ("loops", Duration::from_millis(500), ExtractError::Late),
        ("waits", Duration::from_millis(500), ExtractError::Late),
    ] {
        let found = reader(what).within(limit).read("a.pdf", file()).await;
        assert_eq!(found, Err(expected), "{what}");
        // More of them than files that are read at once: none of them keeps its place.
        let other = reader(what).read("a.txt", Bytes::from_static(b"still here")).await;
        assert_eq!(other, Ok(vec![Block::Paragraph("still here".into())]), "{what}");
    }
}

#[tokio::test]
async fn a_reader_that_closes_its_output_and_stays_is_ended() {
    let shell = ["-c", "exec >&-; exec sleep 60"].map(Into::into).into();
    let found = Reader::with("/bin/sh".into(), shell).within(Duration::from_millis(500)).read("a.pdf", file()).await;
    assert_eq!(found, Err(ExtractError::Late));
}

#[tokio::test]
async fn without_a_program_or_with_one_that_does_not_start_text_is_still_read() {
    for reader in [Reader::default(), Reader::starting("/nowhere/offhook".into())] {
        assert_eq!(reader.read("a.pdf", file()).await, Err(ExtractError::NoReader));
        assert_eq!(reader.read("a.md", "# Rooms".into()).await, Ok(vec![Block::Heading(1, "Rooms".into())]));
    }
}

#[tokio::test]
async fn text_that_takes_too_long_is_given_up() {
    let found = Reader::default().within(Duration::ZERO).read("a.md", "- x\n".repeat(100_000).into()).await;
    assert_eq!(found, Err(ExtractError::Late));
}

#[test]
fn an_answer_is_held_to_the_limits_of_a_file() {
    let told = |told: &Result<Vec<Block>, ExtractError>| understood(&serde_json::to_vec(told).unwrap());
    let good = Ok(vec![Block::Page(1), Block::Row(vec!["a".into(), String::new()])]);
    assert_eq!(told(&good), Some(good));
    assert_eq!(told(&Err(ExtractError::TooDeep)), Some(Err(ExtractError::TooDeep)));
    let much = Ok(vec![Block::Paragraph("x".repeat(MAX_TEXT + 1))]);
    assert_eq!(told(&much), Some(Err(ExtractError::TooMuchText)));
    let many = Ok(vec![Block::Page(1); MAX_BLOCKS + 1]);
    assert_eq!(told(&many), Some(Err(ExtractError::TooMuchText)));
    let chatty = Err(ExtractError::Broken("x".repeat(5000)));
    assert_eq!(told(&chatty), Some(Err(ExtractError::Broken("x".repeat(MAX_REASON)))));
    assert_eq!(understood(b"running 1 test"), None);
}

/// Each does what its name says, if a [`Reader`] started it: with nothing in its environment.
mod misbehaving {
    use std::hint::black_box;
    use std::io::Write;
    use std::time::Duration;

    use super::super::super::apart::confine;

    fn is_a_reader() -> bool {
        let started = std::env::vars_os().next().is_none();
        if started {
            confine().expect("it can be confined");
        }
        started
    }

    #[test]
    fn aborts() {
        if is_a_reader() {
            std::process::abort();
        }
    }

    #[test]
    fn overflows_its_stack() {
        fn deeper(depth: u64) -> u64 {
            if depth == u64::MAX { 0 } else { black_box(deeper(black_box(depth + 1))) + 1 }
        }
        if is_a_reader() {
            black_box(deeper(0));
        }
    }

    #[test]
    fn allocates_without_end() {
        if is_a_reader() {
            let mut all = Vec::new();
            loop {
                all.push(vec![1u8; 1 << 20]);
                black_box(&all);
            }
        }
    }

    #[test]
    fn writes_without_end() {
        if is_a_reader() {
            let mut out = std::io::stdout().lock();
            while out.write_all(&[b' '; 64 * 1024]).is_ok() {}
        }
    }

    #[test]
    fn panics() {
        if is_a_reader() {
            panic!("as it must");
        }
    }

    #[test]
    fn exits_silently() {
        if is_a_reader() {
            std::process::exit(0);
        }
    }

    #[test]
    fn loops() {
        if is_a_reader() {
            loop {
                black_box(0);
            }
        }
    }

    #[test]
    fn waits() {
        if is_a_reader() {
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }
}
