//! What it costs to put a clause into the words that a voice says. It happens once per clause, before synthesis, so some
//! tens of microseconds are nothing; it shows that no rule is quadratic in a clause of any length.

use divan::{Bencher, black_box};
use offhook::conversation::settings::TurnSettings;
use offhook::conversation::speakable::Speakable;
use offhook::conversation::spoken::Spoken;

fn main() {
    divan::main();
}

const PLAIN: &str = "We would be happy to see you on the terrace, the weather is going to be lovely.";
const CLAUSES: [(&str, &str); 4] = [
    ("en", PLAIN),
    ("en", "Your table is booked for Friday, November 27 at 7:30 PM, the deposit is $12.50, call (212) 555-0198."),
    ("uk", "Столик на 4 особи 22.11.2026 о 19:30, передоплата 1 200,50 грн, телефон 067 123 45 67."),
    ("ru", "Столик на 4 человека 22 ноября в 19:30, предоплата 20% от 1500 руб., пишите на name@example.com."),
];

/// One clause: 0 is plain words, the others are full of figures.
#[divan::bench(args = [0, 1, 2, 3])]
fn clause(bencher: Bencher, n: usize) {
    let (language, text) = CLAUSES[n];
    bencher.bench_local(|| black_box(Spoken::of(black_box(text), language)));
}

/// The longest that may come in one piece: a greeting of 20,000 characters, all of them digits or figures.
#[divan::bench(args = ["7", "10:00 ", "067 123 45 67, ", "a1-", "x.", "+"])]
fn hostile(bencher: Bencher, piece: &str) {
    let text = piece.repeat(20_000 / piece.len());
    bencher.bench_local(|| black_box(Spoken::of(black_box(&text), "en")));
}

/// The cutter alone, token by token.
#[divan::bench]
fn cutting(bencher: Bencher) {
    let tokens: Vec<&str> = CLAUSES[1].1.split_inclusive(' ').collect();
    bencher.bench_local(|| {
        let mut speakable = Speakable::new(&TurnSettings::default());
        let chunks: usize = tokens.iter().map(|token| speakable.push(token).len()).sum();
        black_box(chunks + speakable.finish().len())
    });
}
