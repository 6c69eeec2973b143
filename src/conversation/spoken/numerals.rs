//! Whole numbers to words: cardinals and ordinals, in Ukrainian and Russian with case and gender. Tables are written as
//! "nominative genitive dative accusative instrumental locative". Apostrophes are the plain ones that voices know.

use super::Lang;
use super::english::{TENS, UNITS};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Case {
    Nom,
    Gen,
    Dat,
    Acc,
    Ins,
    Loc,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gender {
    M,
    F,
    N,
    Plural,
}

/// How much a counted noun is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    /// 1, 21, 101.
    One,
    /// 2–4, 22–24.
    Few,
    /// 0, 5–20, 25–30.
    Many,
}

impl Count {
    pub fn of(n: u64) -> Self {
        match (n % 100, n % 10) {
            (11..=14, _) => Count::Many,
            (_, 1) => Count::One,
            (_, 2..=4) => Count::Few,
            _ => Count::Many,
        }
    }
}

/// Numbers from here on are read digit by digit.
pub(super) const TOO_LARGE: u64 = 1_000_000_000_000;

fn form(forms: &'static str, case: Case) -> &'static str {
    forms.split(' ').nth(case as usize).unwrap_or(forms)
}

fn add(out: &mut String, word: &str) {
    if !out.is_empty() {
        out.push(' ');
    }
    out.push_str(word);
}

/// A cardinal number below [`TOO_LARGE`].
pub(super) fn cardinal(lang: Lang, n: u64, gender: Gender, case: Case) -> String {
    let mut out = String::with_capacity(64);
    match lang {
        Lang::En => english(n, &mut out),
        Lang::Uk | Lang::Ru => slavic(lang, n, gender, case, &mut out),
    }
    out
}

/// In the plain form that stands alone.
pub(super) fn plain(lang: Lang, n: u64) -> String {
    cardinal(lang, n, Gender::M, Case::Nom)
}

fn english(n: u64, out: &mut String) {
    if n == 0 {
        return add(out, UNITS[0]);
    }
    for (scale, name) in [(1_000_000_000, "billion"), (1_000_000, "million"), (1000, "thousand"), (1, "")] {
        let part = (n / scale % 1000) as usize;
        if part == 0 {
            continue;
        }
        if part >= 100 {
            add(out, UNITS[part / 100]);
            add(out, "hundred");
        }
        match part % 100 {
            0 => {}
            small @ 1..20 => add(out, UNITS[small]),
            rest => {
                add(out, TENS[rest / 10]);
                if rest % 10 > 0 {
                    out.push('-');
                    out.push_str(UNITS[rest % 10]);
                }
            }
        }
        if !name.is_empty() {
            add(out, name);
        }
    }
}

const UK_UNITS: [&str; 20] = [
    "нуль нуля нулю нуль нулем нулі",
    "один одного одному один одним одному",
    "два двох двом два двома двох",
    "три трьох трьом три трьома трьох",
    "чотири чотирьох чотирьом чотири чотирма чотирьох",
    "п'ять п'яти п'яти п'ять п'ятьма п'яти",
    "шість шести шести шість шістьма шести",
    "сім семи семи сім сьома семи",
    "вісім восьми восьми вісім вісьма восьми",
    "дев'ять дев'яти дев'яти дев'ять дев'ятьма дев'яти",
    "десять десяти десяти десять десятьма десяти",
    "одинадцять одинадцяти одинадцяти одинадцять одинадцятьма одинадцяти",
    "дванадцять дванадцяти дванадцяти дванадцять дванадцятьма дванадцяти",
    "тринадцять тринадцяти тринадцяти тринадцять тринадцятьма тринадцяти",
    "чотирнадцять чотирнадцяти чотирнадцяти чотирнадцять чотирнадцятьма чотирнадцяти",
    "п'ятнадцять п'ятнадцяти п'ятнадцяти п'ятнадцять п'ятнадцятьма п'ятнадцяти",
    "шістнадцять шістнадцяти шістнадцяти шістнадцять шістнадцятьма шістнадцяти",
    "сімнадцять сімнадцяти сімнадцяти сімнадцять сімнадцятьма сімнадцяти",
    "вісімнадцять вісімнадцяти вісімнадцяти вісімнадцять вісімнадцятьма вісімнадцяти",
    "дев'ятнадцять дев'ятнадцяти дев'ятнадцяти дев'ятнадцять дев'ятнадцятьма дев'ятнадцяти",
];
const UK_TENS: [&str; 8] = [
    "двадцять двадцяти двадцяти двадцять двадцятьма двадцяти",
    "тридцять тридцяти тридцяти тридцять тридцятьма тридцяти",
    "сорок сорока сорока сорок сорока сорока",
    "п'ятдесят п'ятдесяти п'ятдесяти п'ятдесят п'ятдесятьма п'ятдесяти",
    "шістдесят шістдесяти шістдесяти шістдесят шістдесятьма шістдесяти",
    "сімдесят сімдесяти сімдесяти сімдесят сімдесятьма сімдесяти",
    "вісімдесят вісімдесяти вісімдесяти вісімдесят вісімдесятьма вісімдесяти",
    "дев'яносто дев'яноста дев'яноста дев'яносто дев'яноста дев'яноста",
];
const UK_HUNDREDS: [&str; 9] = [
    "сто ста ста сто ста ста",
    "двісті двохсот двомстам двісті двомастами двохстах",
    "триста трьохсот трьомстам триста трьомастами трьохстах",
    "чотириста чотирьохсот чотирьомстам чотириста чотирмастами чотирьохстах",
    "п'ятсот п'ятисот п'ятистам п'ятсот п'ятьмастами п'ятистах",
    "шістсот шестисот шестистам шістсот шістьмастами шестистах",
    "сімсот семисот семистам сімсот сьомастами семистах",
    "вісімсот восьмисот восьмистам вісімсот вісьмастами восьмистах",
    "дев'ятсот дев'ятисот дев'ятистам дев'ятсот дев'ятьмастами дев'ятистах",
];
const UK_FEMININE: [&str; 2] = ["одна однієї одній одну однією одній", "дві двох двом дві двома двох"];
const UK_NEUTER: &str = "одне одного одному одне одним одному";
const UK_PLURAL: &str = "одні одних одним одні одними одних";
const UK_SCALES: [(&str, &str); 3] = [
    (
        "мільярд мільярда мільярду мільярд мільярдом мільярді",
        "мільярди мільярдів мільярдам мільярди мільярдами мільярдах",
    ),
    (
        "мільйон мільйона мільйону мільйон мільйоном мільйоні",
        "мільйони мільйонів мільйонам мільйони мільйонами мільйонах",
    ),
    ("тисяча тисячі тисячі тисячу тисячею тисячі", "тисячі тисяч тисячам тисячі тисячами тисячах"),
];

const RU_UNITS: [&str; 20] = [
    "ноль ноля нолю ноль нолём ноле",
    "один одного одному один одним одном",
    "два двух двум два двумя двух",
    "три трёх трём три тремя трёх",
    "четыре четырёх четырём четыре четырьмя четырёх",
    "пять пяти пяти пять пятью пяти",
    "шесть шести шести шесть шестью шести",
    "семь семи семи семь семью семи",
    "восемь восьми восьми восемь восемью восьми",
    "девять девяти девяти девять девятью девяти",
    "десять десяти десяти десять десятью десяти",
    "одиннадцать одиннадцати одиннадцати одиннадцать одиннадцатью одиннадцати",
    "двенадцать двенадцати двенадцати двенадцать двенадцатью двенадцати",
    "тринадцать тринадцати тринадцати тринадцать тринадцатью тринадцати",
    "четырнадцать четырнадцати четырнадцати четырнадцать четырнадцатью четырнадцати",
    "пятнадцать пятнадцати пятнадцати пятнадцать пятнадцатью пятнадцати",
    "шестнадцать шестнадцати шестнадцати шестнадцать шестнадцатью шестнадцати",
    "семнадцать семнадцати семнадцати семнадцать семнадцатью семнадцати",
    "восемнадцать восемнадцати восемнадцати восемнадцать восемнадцатью восемнадцати",
    "девятнадцать девятнадцати девятнадцати девятнадцать девятнадцатью девятнадцати",
];
const RU_TENS: [&str; 8] = [
    "двадцать двадцати двадцати двадцать двадцатью двадцати",
    "тридцать тридцати тридцати тридцать тридцатью тридцати",
    "сорок сорока сорока сорок сорока сорока",
    "пятьдесят пятидесяти пятидесяти пятьдесят пятьюдесятью пятидесяти",
    "шестьдесят шестидесяти шестидесяти шестьдесят шестьюдесятью шестидесяти",
    "семьдесят семидесяти семидесяти семьдесят семьюдесятью семидесяти",
    "восемьдесят восьмидесяти восьмидесяти восемьдесят восемьюдесятью восьмидесяти",
    "девяносто девяноста девяноста девяносто девяноста девяноста",
];
const RU_HUNDREDS: [&str; 9] = [
    "сто ста ста сто ста ста",
    "двести двухсот двумстам двести двумястами двухстах",
    "триста трёхсот трёмстам триста тремястами трёхстах",
    "четыреста четырёхсот четырёмстам четыреста четырьмястами четырёхстах",
    "пятьсот пятисот пятистам пятьсот пятьюстами пятистах",
    "шестьсот шестисот шестистам шестьсот шестьюстами шестистах",
    "семьсот семисот семистам семьсот семьюстами семистах",
    "восемьсот восьмисот восьмистам восемьсот восемьюстами восьмистах",
    "девятьсот девятисот девятистам девятьсот девятьюстами девятистах",
];
const RU_FEMININE: [&str; 2] = ["одна одной одной одну одной одной", "две двух двум две двумя двух"];
const RU_NEUTER: &str = "одно одного одному одно одним одном";
const RU_PLURAL: &str = "одни одних одним одни одними одних";
const RU_SCALES: [(&str, &str); 3] = [
    (
        "миллиард миллиарда миллиарду миллиард миллиардом миллиарде",
        "миллиарды миллиардов миллиардам миллиарды миллиардами миллиардах",
    ),
    (
        "миллион миллиона миллиону миллион миллионом миллионе",
        "миллионы миллионов миллионам миллионы миллионами миллионах",
    ),
    ("тысяча тысячи тысяче тысячу тысячей тысяче", "тысячи тысяч тысячам тысячи тысячами тысячах"),
];

fn slavic(lang: Lang, n: u64, gender: Gender, case: Case, out: &mut String) {
    let uk = lang == Lang::Uk;
    if n == 0 {
        return add(out, form(if uk { UK_UNITS[0] } else { RU_UNITS[0] }, case));
    }
    for (place, scale) in [1_000_000_000u64, 1_000_000, 1000].into_iter().enumerate() {
        let part = n / scale % 1000;
        if part == 0 {
            continue;
        }
        // "Тисяча двісті", not "одна тисяча двісті".
        if part > 1 || !out.is_empty() {
            below_thousand(uk, part as usize, if scale == 1000 { Gender::F } else { Gender::M }, case, out);
        }
        let (one, many) = if uk { UK_SCALES[place] } else { RU_SCALES[place] };
        add(out, counted(lang, one, many, part, case));
    }
    below_thousand(uk, (n % 1000) as usize, gender, case, out);
}

fn below_thousand(uk: bool, n: usize, gender: Gender, case: Case, out: &mut String) {
    let (units, tens, hundreds) =
        if uk { (&UK_UNITS, &UK_TENS, &UK_HUNDREDS) } else { (&RU_UNITS, &RU_TENS, &RU_HUNDREDS) };
    if n >= 100 {
        add(out, form(hundreds[n / 100 - 1], case));
    }
    let rest = n % 100;
    let unit = if rest >= 20 {
        add(out, form(tens[rest / 10 - 2], case));
        rest % 10
    } else {
        rest
    };
    let forms = match (unit, gender) {
        (0, _) => return,
        (1 | 2, Gender::F) => (if uk { UK_FEMININE } else { RU_FEMININE })[unit - 1],
        (1, Gender::N) => {
            if uk {
                UK_NEUTER
            } else {
                RU_NEUTER
            }
        }
        (1, Gender::Plural) => {
            if uk {
                UK_PLURAL
            } else {
                RU_PLURAL
            }
        }
        _ => units[unit],
    };
    add(out, form(forms, case));
}

/// The form of a noun that goes with a number: both tables have six cases.
fn counted(lang: Lang, one: &'static str, many: &'static str, n: u64, case: Case) -> &'static str {
    match (case, Count::of(n)) {
        (_, Count::One) => form(one, case),
        (Case::Nom | Case::Acc, Count::Few) if lang == Lang::Uk => form(many, Case::Nom),
        (Case::Nom | Case::Acc, Count::Few) => form(one, Case::Gen),
        (Case::Nom | Case::Acc, Count::Many) => form(many, Case::Gen),
        (case, _) => form(many, case),
    }
}

/// An ordinal number; the cardinal where there is none in use.
pub(super) fn ordinal(lang: Lang, n: u64, gender: Gender, case: Case) -> String {
    if lang == Lang::En {
        return english_ordinal(n);
    }
    let last = match (n % 100, n % 10) {
        (0, _) => n % 1000,
        (small @ 1..=19, _) => small,
        (tens, 0) => tens,
        (_, unit) => unit,
    };
    let mut out = String::with_capacity(64);
    let stem = if n == 0 {
        if lang == Lang::Uk { "нульов".to_owned() } else { "нулев".to_owned() }
    } else if last > 0 {
        if n > last {
            slavic(lang, n - last, Gender::M, Case::Nom, &mut out);
        }
        stem_of(lang, last).to_owned()
    } else if n < 100_000 {
        // "Двохтисячний": the number of thousands in the genitive, in one word.
        let thousands = if n == 1000 { String::new() } else { cardinal(lang, n / 1000, Gender::M, Case::Gen) };
        thousands.replace(' ', "") + if lang == Lang::Uk { "тисячн" } else { "тысячн" }
    } else {
        return cardinal(lang, n, gender, case);
    };
    add(&mut out, &stem);
    out.push_str(adjective_ending(lang, &stem, gender, case));
    out
}

const UK_STEMS: [&str; 20] = [
    "нульов",
    "перш",
    "друг",
    "трет",
    "четверт",
    "п'ят",
    "шост",
    "сьом",
    "восьм",
    "дев'ят",
    "десят",
    "одинадцят",
    "дванадцят",
    "тринадцят",
    "чотирнадцят",
    "п'ятнадцят",
    "шістнадцят",
    "сімнадцят",
    "вісімнадцят",
    "дев'ятнадцят",
];
const UK_TEN_STEMS: [&str; 8] =
    ["двадцят", "тридцят", "сороков", "п'ятдесят", "шістдесят", "сімдесят", "вісімдесят", "дев'яност"];
const UK_HUNDRED_STEMS: [&str; 9] =
    ["сот", "двохсот", "трьохсот", "чотирьохсот", "п'ятисот", "шестисот", "семисот", "восьмисот", "дев'ятисот"];
const RU_STEMS: [&str; 20] = [
    "нулев",
    "перв",
    "втор",
    "трет",
    "четвёрт",
    "пят",
    "шест",
    "седьм",
    "восьм",
    "девят",
    "десят",
    "одиннадцат",
    "двенадцат",
    "тринадцат",
    "четырнадцат",
    "пятнадцат",
    "шестнадцат",
    "семнадцат",
    "восемнадцат",
    "девятнадцат",
];
const RU_TEN_STEMS: [&str; 8] =
    ["двадцат", "тридцат", "сороков", "пятидесят", "шестидесят", "семидесят", "восьмидесят", "девяност"];
const RU_HUNDRED_STEMS: [&str; 9] =
    ["сот", "двухсот", "трёхсот", "четырёхсот", "пятисот", "шестисот", "семисот", "восьмисот", "девятисот"];

fn stem_of(lang: Lang, last: u64) -> &'static str {
    let (units, tens, hundreds) = match lang {
        Lang::Uk => (&UK_STEMS, &UK_TEN_STEMS, &UK_HUNDRED_STEMS),
        _ => (&RU_STEMS, &RU_TEN_STEMS, &RU_HUNDRED_STEMS),
    };
    match last as usize {
        unit @ 0..20 => units[unit],
        ten @ 20..100 => tens[ten / 10 - 2],
        hundred => hundreds[(hundred / 100 - 1).min(8)],
    }
}

fn adjective_ending(lang: Lang, stem: &str, gender: Gender, case: Case) -> &'static str {
    let soft = stem == "трет";
    let forms = match (lang, soft, gender) {
        (Lang::Uk, false, Gender::M) => "ий ого ому ий им ому",
        (Lang::Uk, false, Gender::F) => "а ої ій у ою ій",
        (Lang::Uk, false, Gender::N) => "е ого ому е им ому",
        (Lang::Uk, false, Gender::Plural) => "і их им і ими их",
        (Lang::Uk, true, Gender::M) => "ій ього ьому ій ім ьому",
        (Lang::Uk, true, Gender::F) => "я ьої ій ю ьою ій",
        (Lang::Uk, true, Gender::N) => "є ього ьому є ім ьому",
        (Lang::Uk, true, Gender::Plural) => "і іх ім і іми іх",
        (_, false, Gender::M) if matches!(stem, "втор" | "шест" | "седьм" | "восьм" | "сороков" | "нулев") => {
            "ой ого ому ой ым ом"
        }
        (_, false, Gender::M) => "ый ого ому ый ым ом",
        (_, false, Gender::F) => "ая ой ой ую ой ой",
        (_, false, Gender::N) => "ое ого ому ое ым ом",
        (_, false, Gender::Plural) => "ые ых ым ые ыми ых",
        (_, true, Gender::M) => "ий ьего ьему ий ьим ьем",
        (_, true, Gender::F) => "ья ьей ьей ью ьей ьей",
        (_, true, Gender::N) => "ье ьего ьему ье ьим ьем",
        (_, true, Gender::Plural) => "ьи ьих ьим ьи ьими ьих",
    };
    form(forms, case)
}

fn english_ordinal(n: u64) -> String {
    let mut words = plain(Lang::En, n);
    let at = words.rfind([' ', '-']).map_or(0, |at| at + 1);
    let last = match &words[at..] {
        "one" => "first".to_owned(),
        "two" => "second".to_owned(),
        "three" => "third".to_owned(),
        "five" => "fifth".to_owned(),
        "eight" => "eighth".to_owned(),
        "nine" => "ninth".to_owned(),
        "twelve" => "twelfth".to_owned(),
        tens if tens.ends_with('y') => format!("{}ieth", &tens[..tens.len() - 1]),
        other => format!("{other}th"),
    };
    words.truncate(at);
    words + &last
}

/// An English year: "twenty twenty-six", "two thousand five", "nineteen hundred".
pub(super) fn english_year(n: u64) -> String {
    match (n / 100, n % 100) {
        (20, 0..10) | (0..10 | 100.., _) => plain(Lang::En, n),
        (century, 0) => format!("{} hundred", plain(Lang::En, century)),
        (century, rest @ 1..10) => format!("{} oh {}", plain(Lang::En, century), plain(Lang::En, rest)),
        (century, rest) => format!("{} {}", plain(Lang::En, century), plain(Lang::En, rest)),
    }
}

/// Digits one by one.
pub(super) fn digit_by_digit(lang: Lang, digits: &str) -> String {
    let mut out = String::with_capacity(digits.len() * 8);
    for digit in digits.bytes().filter(u8::is_ascii_digit) {
        add(&mut out, &plain(lang, u64::from(digit - b'0')));
    }
    out
}

/// A group of digits as it is dictated: English digit by digit; Ukrainian and Russian as one number of up to three
/// digits after its leading zeros, and four digits in pairs.
pub(super) fn group(lang: Lang, digits: &str) -> String {
    if lang == Lang::En {
        return digit_by_digit(lang, digits);
    }
    let mut out = String::with_capacity(40);
    if digits.len() > 3 {
        for part in split_group(digits) {
            add(&mut out, &group(lang, part));
        }
        return out;
    }
    let number = digits.trim_start_matches('0');
    add(&mut out, &digit_by_digit(lang, &digits[..digits.len() - number.len()]));
    if let Ok(number) = number.parse() {
        add(&mut out, &plain(lang, number));
    }
    out.trim().to_owned()
}

/// Long digits in pairs, the first group of three where their number is odd.
pub(super) fn split_group(digits: &str) -> impl Iterator<Item = &str> {
    let first = if digits.len() > 2 && digits.len() % 2 == 1 { 3 } else { 2.min(digits.len()) };
    let (head, tail) = digits.split_at(first);
    std::iter::once(head).chain((0..tail.len() / 2).map(move |n| &tail[2 * n..2 * n + 2]))
}
