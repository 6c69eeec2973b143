//! Words as they are compared: lower case, without apostrophes, stress marks and endings, in English, Ukrainian and
//! Russian. Both sides of a search pass through here, so that every database finds the same.

use rust_stemmers::{Algorithm, Stemmer};

/// Longest word that is kept, in characters; longer ones are no words.
const MAX_WORD: usize = 40;
/// Words of one question that count.
const MAX_ASKED: usize = 32;

/// A language whose endings we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tongue {
    English,
    Ukrainian,
    Russian,
}

impl Tongue {
    /// Of a language tag; what we do not know is taken for English, whose rules leave other words nearly alone.
    pub fn of(tag: &str) -> Self {
        match tag.split(['-', '_']).next().unwrap_or_default().to_ascii_lowercase().as_str() {
            "uk" | "ua" => Tongue::Ukrainian,
            "ru" | "be" => Tongue::Russian,
            _ => Tongue::English,
        }
    }

    /// What a text is written in: by the letters that only one of the languages has, else `hint`.
    pub fn detect(text: &str, hint: Tongue) -> Self {
        let (mut ukrainian, mut russian, mut cyrillic, mut latin) = (0u32, 0u32, 0u32, 0u32);
        for c in text.chars().flat_map(char::to_lowercase).take(4000) {
            match c {
                'і' | 'ї' | 'є' | 'ґ' => ukrainian += 1,
                'ы' | 'э' | 'ъ' | 'ё' => russian += 1,
                'а'..='я' => cyrillic += 1,
                'a'..='z' => latin += 1,
                _ => {}
            }
        }
        match () {
            () if ukrainian > russian => Tongue::Ukrainian,
            () if russian > ukrainian => Tongue::Russian,
            () if latin > cyrillic => Tongue::English,
            () if cyrillic > 0 && hint == Tongue::English => Tongue::Ukrainian,
            () => hint,
        }
    }
}

/// One word of a question with the stems that it may have in a document, the likeliest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub stems: Vec<String>,
}

/// The stems of a document's text, in order, without words that are everywhere. Letters and digits only: they can stand
/// in any query language.
pub fn stems(text: &str, tongue: Tongue) -> Vec<String> {
    let stemmers = Stemmers::new();
    let mut found = Vec::new();
    words(text, |word| {
        if !is_everywhere(word) {
            found.push(stemmers.stem(word, tongue));
        }
    });
    found
}

/// The words of a question, each once. Where all of them are everywhere, they count all the same.
pub fn asked(text: &str, tongue: Tongue) -> Vec<Asked> {
    let stemmers = Stemmers::new();
    let (mut rare, mut common) = (Vec::new(), Vec::new());
    words(text, |word| {
        let mut stems = vec![stemmers.stem(word, tongue)];
        if is_cyrillic(word) {
            // A question in one of the two languages finds documents in the other, as far as the words agree.
            for other in [Tongue::Ukrainian, Tongue::Russian] {
                let stem = stemmers.stem(word, other);
                if !stems.contains(&stem) {
                    stems.push(stem);
                }
            }
        }
        let into = if is_everywhere(word) { &mut common } else { &mut rare };
        let asked = Asked { stems };
        if into.len() < MAX_ASKED && !into.contains(&asked) {
            into.push(asked);
        }
    });
    if rare.is_empty() { common } else { rare }
}

/// All words of a text, in order: what is left when signs, case and apostrophes do not count.
pub fn bare(text: &str) -> String {
    let mut bare = String::new();
    words(text, |word| {
        if !bare.is_empty() {
            bare.push(' ');
        }
        bare.push_str(word);
    });
    bare
}

/// Whether a text has a word that tells what it is about.
pub fn tells(text: &str) -> bool {
    let mut tells = false;
    words(text, |word| tells |= !is_everywhere(word));
    tells
}

/// Calls `each` with every word: lower case, composed letters, no apostrophes.
fn words(text: &str, mut each: impl FnMut(&str)) {
    let mut word = String::new();
    let mut letters = 0;
    let mut end = |word: &mut String, letters: &mut usize| {
        if *letters > 0 && *letters <= MAX_WORD {
            let bare = word.strip_suffix("'s").unwrap_or(word).replace('\'', "");
            if !bare.is_empty() {
                each(&bare);
            }
        }
        word.clear();
        *letters = 0;
    };
    for c in text.chars() {
        match c {
            // Marks of stress; a letter that was written in two parts becomes one.
            '\u{300}' | '\u{301}' | '\u{ad}' => {}
            '\u{306}' | '\u{308}' => {
                let whole = match (word.chars().last(), c) {
                    (Some('и'), '\u{306}') => 'й',
                    (Some('і'), '\u{308}') => 'ї',
                    _ => continue,
                };
                word.pop();
                word.push(whole);
            }
            '\'' | '\u{2019}' | '\u{2bc}' | '`' | '\u{2018}' | '\u{b4}' if letters > 0 => word.push('\''),
            c if c.is_alphanumeric() => {
                for c in c.to_lowercase().filter(|c| c.is_alphanumeric()) {
                    let c = match c {
                        'ё' => 'е',
                        'ґ' => 'г',
                        c => c,
                    };
                    if letters <= MAX_WORD {
                        word.push(c);
                    }
                    letters += 1;
                }
            }
            _ => end(&mut word, &mut letters),
        }
    }
    end(&mut word, &mut letters);
}

fn is_cyrillic(word: &str) -> bool {
    word.chars().any(|c| ('\u{400}'..='\u{4ff}').contains(&c))
}

struct Stemmers {
    english: Stemmer,
    russian: Stemmer,
}

impl Stemmers {
    fn new() -> Self {
        Self { english: Stemmer::create(Algorithm::English), russian: Stemmer::create(Algorithm::Russian) }
    }

    /// By the word's own letters first: an English name in a Ukrainian text is stemmed as English.
    fn stem(&self, word: &str, tongue: Tongue) -> String {
        if word.chars().all(|c| c.is_ascii_digit()) {
            return word.to_owned();
        }
        let only_ukrainian = word.contains(['і', 'ї', 'є']);
        let only_russian = word.contains(['ы', 'э', 'ъ']);
        let stem = match (is_cyrillic(word), tongue) {
            (false, _) => self.english.stem(word).into_owned(),
            (true, Tongue::Russian) if !only_ukrainian => self.russian.stem(word).into_owned(),
            (true, _) if only_russian => self.russian.stem(word).into_owned(),
            (true, _) => ukrainian(word),
        };
        if stem.is_empty() { word.to_owned() } else { stem }
    }
}

/// Shortest stem that an ending leaves, in letters.
const MIN_STEM: usize = 3;

/// Endings of Ukrainian words, the longest first: of verbs, of nouns and of adjectives.
const ENDINGS: [&str; 88] = [
    "істю",
    "ість",
    "ості",
    "ього",
    "ьому",
    "ьими",
    "ється",
    "ються",
    "уть",
    "ють",
    "ать",
    "ять",
    "ить",
    "їть",
    "іть",
    "ати",
    "яти",
    "ити",
    "іти",
    "їти",
    "ути",
    "юти",
    "емо",
    "ємо",
    "имо",
    "їмо",
    "ете",
    "єте",
    "ите",
    "їте",
    "ала",
    "али",
    "ало",
    "яла",
    "яли",
    "ила",
    "или",
    "ило",
    "іла",
    "іли",
    "іло",
    "ями",
    "ами",
    "ові",
    "еві",
    "єві",
    "ому",
    "ого",
    "ими",
    "іми",
    "єю",
    "ею",
    "ою",
    "ої",
    "ій",
    "ий",
    "їй",
    "их",
    "іх",
    "їх",
    "им",
    "ім",
    "їм",
    "ам",
    "ям",
    "ах",
    "ях",
    "ом",
    "ем",
    "єм",
    "ів",
    "їв",
    "ей",
    "ав",
    "яв",
    "ив",
    "ує",
    "ює",
    "а",
    "я",
    "о",
    "е",
    "є",
    "у",
    "ю",
    "и",
    "і",
    "ї",
];

/// Endings of words made of other words, which is left of them when the first ending is gone.
const DERIVED: [&str; 10] = ["уван", "юван", "ован", "уват", "юват", "ув", "юв", "іш", "ан", "ен"];

/// A light stemmer: takes one ending off, then one ending of derivation, and evens out і/о (стіл, столу).
fn ukrainian(word: &str) -> String {
    let mut stem: Vec<char> = word.chars().collect();
    for reflexive in ["ся", "сь"] {
        if cut(&mut stem, reflexive, MIN_STEM + 1) {
            break;
        }
    }
    if !ENDINGS.iter().any(|ending| cut(&mut stem, ending, MIN_STEM)) {
        cut(&mut stem, "ь", MIN_STEM - 1);
    }
    cut(&mut stem, "ь", MIN_STEM - 1);
    if let [.., before, last] = stem[..]
        && before == last
        && stem.len() > MIN_STEM
    {
        stem.pop();
    }
    for ending in DERIVED {
        if cut(&mut stem, ending, MIN_STEM + 1) {
            break;
        }
    }
    // і stands in closed syllables where other forms of the word have о.
    if let Some(last) = stem.iter().rposition(|c| "аеєиіїоуюя".contains(*c))
        && stem[last] == 'і'
    {
        stem[last] = 'о';
    }
    stem.into_iter().collect()
}

/// Takes `ending` off, if it is there and leaves at least so many letters.
fn cut(stem: &mut Vec<char>, ending: &str, least: usize) -> bool {
    let length = ending.chars().count();
    let left = stem.len().saturating_sub(length);
    let ends = left >= least && stem[left..].iter().copied().eq(ending.chars());
    if ends {
        stem.truncate(left);
    }
    ends
}

/// Words that most sentences have, and what people put around a question on the phone.
fn is_everywhere(word: &str) -> bool {
    COMMON.binary_search(&word).is_ok()
}

/// Sorted, so that it can be searched.
const COMMON: &[&str] = &[
    "a",
    "about",
    "am",
    "an",
    "and",
    "any",
    "are",
    "as",
    "at",
    "be",
    "been",
    "but",
    "by",
    "can",
    "could",
    "did",
    "do",
    "does",
    "dont",
    "for",
    "from",
    "get",
    "give",
    "had",
    "has",
    "have",
    "hello",
    "hey",
    "hi",
    "how",
    "i",
    "id",
    "if",
    "im",
    "in",
    "is",
    "it",
    "its",
    "ive",
    "just",
    "know",
    "let",
    "like",
    "may",
    "me",
    "might",
    "my",
    "need",
    "no",
    "not",
    "of",
    "oh",
    "ok",
    "okay",
    "on",
    "or",
    "our",
    "please",
    "question",
    "should",
    "so",
    "some",
    "tell",
    "thank",
    "thanks",
    "that",
    "thats",
    "the",
    "their",
    "them",
    "then",
    "there",
    "these",
    "they",
    "this",
    "to",
    "uh",
    "um",
    "us",
    "want",
    "was",
    "we",
    "well",
    "were",
    "what",
    "whats",
    "when",
    "where",
    "which",
    "who",
    "why",
    "will",
    "with",
    "would",
    "yes",
    "you",
    "your",
    "youre",
    "а",
    "або",
    "але",
    "б",
    "без",
    "би",
    "буде",
    "будь",
    "будьте",
    "були",
    "було",
    "бути",
    "бы",
    "был",
    "была",
    "были",
    "было",
    "быть",
    "в",
    "вам",
    "вами",
    "вас",
    "ваш",
    "ваша",
    "ваше",
    "ваши",
    "ваші",
    "вже",
    "ви",
    "во",
    "вона",
    "вони",
    "воно",
    "вопрос",
    "вот",
    "все",
    "всі",
    "вы",
    "від",
    "где",
    "да",
    "де",
    "день",
    "для",
    "дня",
    "до",
    "добрий",
    "доброго",
    "добрый",
    "дуже",
    "дякую",
    "дізнатися",
    "его",
    "ее",
    "если",
    "есть",
    "еще",
    "ж",
    "же",
    "з",
    "за",
    "здравствуйте",
    "знати",
    "зі",
    "и",
    "из",
    "или",
    "им",
    "их",
    "й",
    "його",
    "к",
    "как",
    "какая",
    "какие",
    "каким",
    "какого",
    "какое",
    "какой",
    "какую",
    "ко",
    "когда",
    "коли",
    "ласка",
    "ли",
    "мене",
    "меня",
    "мені",
    "ми",
    "мне",
    "могу",
    "може",
    "может",
    "можете",
    "можна",
    "можно",
    "можу",
    "мой",
    "моя",
    "мы",
    "мій",
    "на",
    "над",
    "надо",
    "нам",
    "нас",
    "наш",
    "не",
    "нет",
    "ни",
    "но",
    "ну",
    "нужно",
    "ні",
    "о",
    "об",
    "он",
    "она",
    "они",
    "от",
    "очень",
    "питання",
    "по",
    "под",
    "подскажите",
    "пожалуйста",
    "потрібно",
    "почему",
    "при",
    "про",
    "прошу",
    "підкажіть",
    "с",
    "скажите",
    "скажіть",
    "сколько",
    "скільки",
    "со",
    "собі",
    "спасибо",
    "та",
    "так",
    "така",
    "такий",
    "такой",
    "там",
    "те",
    "ти",
    "тим",
    "то",
    "той",
    "тому",
    "тот",
    "тут",
    "у",
    "уже",
    "узнать",
    "хотел",
    "хотела",
    "хотелось",
    "хотів",
    "хотіла",
    "хотіли",
    "хочу",
    "це",
    "цей",
    "ця",
    "чем",
    "чи",
    "чого",
    "чому",
    "что",
    "чтобы",
    "ще",
    "що",
    "щоб",
    "эта",
    "эти",
    "это",
    "этот",
    "я",
    "як",
    "яка",
    "яке",
    "який",
    "яким",
    "якого",
    "якої",
    "яку",
    "якщо",
    "які",
    "є",
    "і",
    "із",
    "інші",
    "їх",
    "її",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn stem(word: &str, tongue: Tongue) -> String {
        stems(word, tongue).join(" ")
    }

    #[test]
    fn forms_of_one_word_have_one_stem() {
        for (tongue, forms) in [
            (Tongue::English, &["booking", "booked", "book", "Books"][..]),
            (Tongue::English, &["cancellation", "cancellations"]),
            (Tongue::English, &["guest's", "guests", "guest"]),
            (Tongue::Russian, &["номера", "номеров", "номер", "номерах"]),
            (Tongue::Russian, &["завтрак", "завтраки", "завтраком"]),
            (Tongue::Ukrainian, &["сніданок", "сніданок"]),
            (Tongue::Ukrainian, &["номер", "номери", "номерів", "номерами", "номеру"]),
            (Tongue::Ukrainian, &["ціна", "ціни", "ціну", "цін", "ціною"]),
            (Tongue::Ukrainian, &["бронювання", "бронювань", "бронюванню", "бронювати"]),
            (Tongue::Ukrainian, &["вартість", "вартості", "вартістю"]),
            (Tongue::Ukrainian, &["стіл", "столу", "столи", "столом"]),
            (Tongue::Ukrainian, &["безкоштовна", "безкоштовний", "безкоштовного", "безкоштовні"]),
            (Tongue::Ukrainian, &["парковка", "парковки", "парковку", "парковкою"]),
            (Tongue::Ukrainian, &["п'ятниця", "п’ятницю", "пʼятниці"]),
            (Tongue::Ukrainian, &["готель", "готелю", "готелі", "готелем"]),
        ] {
            let first = stem(forms[0], tongue);
            for form in forms {
                assert_eq!(stem(form, tongue), first, "{form}");
            }
        }
    }

    #[test]
    fn different_words_keep_different_stems() {
        for (one, other) in [("ціна", "цінник"), ("номер", "номад"), ("ліс", "лист"), ("рука", "річка")]
        {
            assert_ne!(stem(one, Tongue::Ukrainian), stem(other, Tongue::Ukrainian));
        }
    }

    #[test]
    fn letters_are_one_however_they_were_typed() {
        assert_eq!(stem("кра\u{301}й", Tongue::Ukrainian), stem("край", Tongue::Ukrainian));
        assert_eq!(stem("краи\u{306}", Tongue::Ukrainian), stem("край", Tongue::Ukrainian));
        assert_eq!(stem("Пётр", Tongue::Russian), stem("Петр", Tongue::Russian));
    }

    #[test]
    fn stems_are_letters_and_digits_only() {
        let text = "O'Neil's \"quoted\" a:b* (c) NEAR/2 -d e|f & ! 'x 9:30 №5 e-mail@host.ua ʼкава";
        for stem in stems(text, Tongue::English) {
            assert!(!stem.is_empty() && stem.chars().all(char::is_alphanumeric), "{stem:?}");
        }
    }

    #[test]
    fn the_same_words_are_the_same_however_they_were_written() {
        assert_eq!(bare("So, when is the chef\u{2019}s day\u{2014}off?"), bare("so when is the chef's day off"));
        assert_ne!(bare("is there a pool"), bare("is there no pool"));
        assert_eq!(bare(" … "), "");
        assert!(tells("when is breakfast") && tells("а де парковка"));
        assert!(!tells("hello, could you please tell me") && !tells("добрий день, скажіть") && !tells(""));
    }

    #[test]
    fn a_question_leaves_out_what_every_question_has() {
        let stems = |text, tongue| asked(text, tongue).into_iter().map(|a| a.stems[0].clone()).collect::<Vec<_>>();
        assert_eq!(stems("Could you please tell me what time is breakfast?", Tongue::English), ["time", "breakfast"]);
        assert_eq!(stems("Скажіть, будь ласка, де у вас парковка?", Tongue::Ukrainian), ["парковк"]);
        assert_eq!(stems("Подскажите, а где у вас парковка?", Tongue::Russian), ["парковк"]);
        assert_eq!(stems("what is it", Tongue::English).len(), 3, "nothing else was asked");
    }

    #[test]
    fn a_texts_language_is_told_by_its_letters() {
        assert_eq!(Tongue::detect("Сніданок з сьомої", Tongue::Russian), Tongue::Ukrainian);
        assert_eq!(Tongue::detect("Завтрак с семи, вы можете", Tongue::Ukrainian), Tongue::Russian);
        assert_eq!(Tongue::detect("Breakfast", Tongue::Ukrainian), Tongue::English);
        assert_eq!(Tongue::detect("кава", Tongue::Russian), Tongue::Russian);
        assert_eq!(Tongue::detect("42", Tongue::Russian), Tongue::Russian);
    }

    #[test]
    fn the_list_of_common_words_can_be_searched() {
        assert!(COMMON.is_sorted());
    }

    #[test]
    fn endless_words_cost_nothing() {
        assert!(stems(&"a".repeat(1_000_000), Tongue::English).is_empty());
        assert_eq!(asked(&"слово0 ".repeat(10_000), Tongue::Ukrainian).len(), 1);
    }
}
