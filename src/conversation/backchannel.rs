//! What words say about the turn: whether they only nod ("mm-hm"), and whether they sound finished. Word tables and
//! rules for English, Ukrainian and Russian; another language is read with the English tables. Costs no model; a wrong
//! "complete" interrupts the caller, a wrong "unfinished" costs two seconds, so both answer only where the words are
//! plain, and everything else is "unknown" (`research/streaming.md` §2.3).

use super::spoken::english;

/// How finished a caller's words sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completeness {
    /// A whole question, answer or closing.
    Complete,
    Unknown,
    /// It ends in the middle: "I would like to book a".
    Unfinished,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lang {
    En,
    Uk,
    Ru,
}

impl Lang {
    fn of(tag: &str) -> Self {
        match tag.split(['-', '_']).next().unwrap_or_default() {
            first if first.eq_ignore_ascii_case("uk") => Lang::Uk,
            first if first.eq_ignore_ascii_case("ru") => Lang::Ru,
            _ => Lang::En,
        }
    }
}

/// Lower-case words without punctuation; hyphens separate, apostrophes inside words stay.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase().replace(['’', 'ʼ', '`'], "'").replace("p.m.", "pm").replace("a.m.", "am");
    lower
        .split(|c: char| !(c.is_alphanumeric() || c == '\'' || ('\u{300}'..='\u{36f}').contains(&c)))
        .map(|word| word.trim_matches('\''))
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Words in a text, as the backchannel rule counts them.
pub fn word_count(text: &str) -> usize {
    words(text).len()
}

/// Words that only show that one listens.
fn nods(lang: Lang, word: &str) -> bool {
    // Hums are written in many ways: "mm", "mmm", "hmm", "mhm", "uh huh", "м-м", "гм".
    let hum = |letters: &[char]| word.chars().all(|c| letters.contains(&c));
    if hum(&['m', 'h']) || hum(&['м', 'х', 'г']) {
        return true;
    }
    let table: &[&str] = match lang {
        Lang::En => &[
            "uh", "huh", "um", "ah", "oh", "aha", "yeah", "yep", "yup", "yes", "ok", "okay", "kay", "right", "sure",
            "i", "see", "alright", "good", "great", "fine", "cool", "wow", "mkay", "er", "hum",
        ],
        Lang::Uk => &[
            "ага",
            "угу",
            "так",
            "ну",
            "еге",
            "о",
            "а",
            "ясно",
            "зрозуміло",
            "добре",
            "гаразд",
            "окей",
            "ок",
            "ая",
            "да",
            "та",
            "е",
            "ем",
            "ой",
        ],
        Lang::Ru => &[
            "ага",
            "угу",
            "да",
            "так",
            "ну",
            "о",
            "а",
            "ясно",
            "понятно",
            "хорошо",
            "ладно",
            "окей",
            "ок",
            "э",
            "эм",
            "ой",
        ],
    };
    table.contains(&word)
}

/// Whether a text holds backchannel words only, however many. One real word makes it speech; an empty text is neither.
pub fn is_backchannel(language: &str, text: &str) -> bool {
    let lang = Lang::of(language);
    let words = words(text);
    // "I" and "see" nod only together.
    let i_see = |at: usize| match words[at].as_str() {
        "i" => words.get(at + 1).is_some_and(|next| next == "see"),
        "see" => at > 0 && words[at - 1] == "i",
        _ => true,
    };
    !words.is_empty() && (0..words.len()).all(|at| nods(lang, &words[at]) && i_see(at))
}

/// How finished the words sound. `?`, `.` and `!` count where the recogniser writes them; it need not.
pub fn completeness(language: &str, text: &str) -> Completeness {
    let lang = Lang::of(language);
    let heard = words(text);
    let words: Vec<&str> = heard.iter().map(String::as_str).collect();
    let Some(&last) = words.last() else { return Completeness::Unknown };
    let trimmed = text.trim_end();
    let trailing_off = trimmed.ends_with(['-', '—', ',', ':']) || trimmed.ends_with("...") || trimmed.ends_with('…');
    let whole_mark = trimmed.ends_with(['?', '!', '.']) && !trailing_off;

    // A question mark is stronger than a dangling word ("What is it for?"); a full stop is not: recognisers put it at
    // every pause.
    if trimmed.ends_with('?') && words.len() >= 2 {
        return Completeness::Complete;
    }
    if dangles(lang, &words) {
        return Completeness::Unfinished;
    }
    if trailing_off {
        return Completeness::Unknown;
    }
    // Digits come in groups: after a number nobody knows whether more follow, except where it is a whole answer.
    if is_number_word(lang, last) && number_tail(lang, &words) > 1 {
        let half_hour = matches!(last, "thirty" | "fifteen" | "тридцять" | "тридцать" | "30" | "15");
        let at = words.len().checked_sub(3).map_or("", |at| words[at]);
        let a_time = half_hour && number_tail(lang, &words) == 2 && matches!(at, "at" | "around" | "о" | "об" | "в");
        return if a_time { Completeness::Complete } else { Completeness::Unknown };
    }
    if closes(lang, &words) || answers(lang, &words) || asks(lang, &words) {
        return Completeness::Complete;
    }
    if whole_mark && words.len() >= 2 && !is_number_word(lang, last) {
        return Completeness::Complete;
    }
    if states(lang, &words) { Completeness::Complete } else { Completeness::Unknown }
}

/// How many number words stand at the end: "nine one three" is three.
fn number_tail(lang: Lang, words: &[&str]) -> usize {
    words.iter().rev().take_while(|word| is_number_word(lang, word)).count()
}

fn is_number_word(lang: Lang, word: &str) -> bool {
    if word.chars().all(|c| c.is_ascii_digit()) {
        return true;
    }
    let table: &[&str] = match lang {
        Lang::En => {
            let more = ["oh", "hundred", "double", "triple"];
            return english::unit(word).or_else(|| english::tens(word)).is_some() || more.contains(&word);
        }
        Lang::Uk => &[
            "нуль",
            "один",
            "одна",
            "два",
            "дві",
            "три",
            "чотири",
            "п'ять",
            "шість",
            "сім",
            "вісім",
            "дев'ять",
            "десять",
            "двадцять",
            "тридцять",
            "сорок",
            "п'ятдесят",
            "шістдесят",
            "сімдесят",
            "вісімдесят",
            "дев'яносто",
            "сто",
        ],
        Lang::Ru => &[
            "ноль",
            "один",
            "одна",
            "два",
            "две",
            "три",
            "четыре",
            "пять",
            "шесть",
            "семь",
            "восемь",
            "девять",
            "десять",
            "двадцать",
            "тридцать",
            "сорок",
            "пятьдесят",
            "шестьдесят",
            "семьдесят",
            "восемьдесят",
            "девяносто",
            "сто",
        ],
    };
    table.contains(&word)
}

/// Whether the last word cannot end a sentence, or a filler says that more comes.
fn dangles(lang: Lang, words: &[&str]) -> bool {
    let last = words[words.len() - 1];
    let before = words.len().checked_sub(2).map_or("", |at| words[at]);
    let always: &[&str] = match lang {
        Lang::En => &[
            "a", "an", "the", "my", "your", "our", "their", "his", "and", "or", "but", "because", "if", "with", "of",
            "from", "into", "to", "um", "uh", "er", "erm", "uhm", "than", "i", "we", "every", "which", "whether",
            "while", "unless", "until", "between", "under", "i'm", "we're", "i'd", "i'll", "we'd",
        ],
        Lang::Uk => &[
            "і",
            "й",
            "та",
            "або",
            "чи",
            "але",
            "бо",
            "тому",
            "що",
            "щоб",
            "якщо",
            "на",
            "у",
            "в",
            "з",
            "із",
            "зі",
            "до",
            "від",
            "для",
            "по",
            "про",
            "під",
            "над",
            "за",
            "при",
            "через",
            "без",
            "між",
            "о",
            "об",
            "мій",
            "моя",
            "моє",
            "ваш",
            "ваша",
            "ем",
            "ммм",
            "хочу",
            "мені",
            "щодо",
            "який",
            "яка",
        ],
        Lang::Ru => &[
            "и",
            "или",
            "но",
            "а",
            "потому",
            "что",
            "чтобы",
            "если",
            "на",
            "в",
            "во",
            "с",
            "со",
            "к",
            "ко",
            "до",
            "от",
            "для",
            "по",
            "про",
            "о",
            "об",
            "под",
            "над",
            "за",
            "при",
            "через",
            "без",
            "между",
            "мой",
            "моя",
            "моё",
            "ваш",
            "ваша",
            "эм",
            "хочу",
            "мне",
            "насчёт",
            "насчет",
            "который",
            "которая",
        ],
    };
    if always.contains(&last) {
        return match (lang, last, before) {
            // Whole phrases that end in such a word.
            (Lang::En, "to", "want" | "have" | "need") => !words.iter().any(|word| matches!(*word, "not" | "don't")),
            (Lang::En, "to", "speaking" | "talking") => false,
            (Lang::En, "from", "calling" | "you") => !asks_with_preposition(words),
            (Lang::En, "i" | "we", "am" | "can" | "may" | "do" | "should" | "could") => false,
            (Lang::Uk, "що", "та" | "ну" | "" | "за") => false,
            (Lang::Uk, "так" | "та", "") => false,
            (Lang::Ru, "что", "" | "ну" | "за") => false,
            (Lang::Ru, "а", "") | (Lang::Uk, "а" | "о", "") => false,
            (Lang::Uk | Lang::Ru, "хочу", "не" | "так") => false,
            // "Перезвоните мне" is whole, "мне" alone is not.
            (Lang::Uk, "мені", before) | (Lang::Ru, "мне", before) => before.is_empty(),
            _ => true,
        };
    }
    // Prepositions that also end sentences ("come in", "what for"): only after a verb or a thing that needs more.
    match lang {
        Lang::En => match last {
            "for" => !asks_with_preposition(words) && before != "what",
            "at" | "on" | "in" | "by" | "about" | "around" | "after" | "before" => {
                matches!(
                    before,
                    "people"
                        | "table"
                        | "book"
                        | "booking"
                        | "reservation"
                        | "back"
                        | "call"
                        | "is"
                        | "it"
                        | "calling"
                        | "open"
                        | "close"
                        | "friday"
                        | "monday"
                        | "tuesday"
                        | "wednesday"
                        | "thursday"
                        | "saturday"
                        | "sunday"
                        | "today"
                        | "tomorrow"
                        | "room"
                        | "question"
                        | "appointment"
                        | "arrive"
                        | "come"
                        | "change"
                        | "move"
                        | "live"
                        | "pay"
                        | "me"
                ) && !asks_with_preposition(words)
            }
            "is" => {
                matches!(before, "name" | "number" | "address" | "code" | "email" | "question" | "problem")
                    || matches!(before, "it" | "this")
                        && !words.iter().any(|word| matches!(*word, "yes" | "no" | "think" | "yeah" | "what" | "who"))
            }
            "would" | "could" | "can" | "will" => matches!(before, "i" | "we"),
            "like" | "need" => matches!(before, "would" | "i" | "we") && (before == "would" || words.len() == 2),
            "want" => matches!(before, "i" | "we"),
            "next" | "this" => matches!(before, "on" | "for" | "is" | "book"),
            "book" | "reserve" => matches!(before, "to" | "i"),
            "get" | "reach" => matches!(before, "i" | "we" | "you"),
            _ => false,
        },
        Lang::Uk => {
            matches!(last, "замовити" | "забронювати" | "хотів" | "хотіла" | "хотіли" | "звати") && words.len() >= 2
                || matches!((before, last), ("хотів", "би") | ("хотіла", "би") | ("ну", "тобто"))
        }
        Lang::Ru => {
            matches!(last, "заказать" | "забронировать" | "хотел" | "хотела" | "хотели" | "зовут") && words.len() >= 2
                || matches!((before, last), ("хотел", "бы") | ("хотела", "бы") | ("ну", "то"))
        }
    }
}

/// "What is it for", "Where are you from", "What are you calling about": a question that ends in its preposition.
fn asks_with_preposition(words: &[&str]) -> bool {
    words.len() >= 3 && matches!(words[0], "what" | "who" | "where" | "which") && !words.contains(&"table")
}

/// Ends with words of closing or politeness.
fn closes(lang: Lang, words: &[&str]) -> bool {
    let last = words[words.len() - 1];
    let before = words.len().checked_sub(2).map_or("", |at| words[at]);
    match lang {
        Lang::En => {
            matches!(last, "please" | "thanks" | "bye" | "goodbye" | "cheers")
                || matches!(
                    (before, last),
                    ("thank", "you") | ("that", "all") | ("is", "all") | ("if", "possible") | ("is", "it")
                )
                || words.ends_with(&["very", "much"])
                || words.ends_with(&["if", "you", "can"])
                || words.ends_with(&["as", "soon", "as", "possible"])
        }
        Lang::Uk => {
            matches!(last, "дякую" | "дякуємо" | "спасибі" | "прошу" | "бувайте")
                || matches!((before, last), ("будь", "ласка") | ("до", "побачення") | ("на", "все") | ("це", "все"))
        }
        Lang::Ru => {
            matches!(last, "спасибо" | "пожалуйста" | "благодарю" | "пока")
                || matches!((before, last), ("до", "свидания") | ("это", "все") | ("это", "всё"))
        }
    }
}

/// A short whole answer: yes, no, a day, a time, a number of people.
fn answers(lang: Lang, words: &[&str]) -> bool {
    let yes_no: &[&str] = match lang {
        Lang::En => &[
            "yes", "yeah", "yep", "no", "nope", "okay", "ok", "sure", "correct", "right", "exactly", "perfect",
            "hello", "hi",
        ],
        Lang::Uk => {
            &["так", "ні", "ага", "звісно", "звичайно", "добре", "правильно", "вірно", "гаразд", "алло", "вітаю"]
        }
        Lang::Ru => &["да", "нет", "ага", "конечно", "хорошо", "правильно", "верно", "ладно", "алло", "здравствуйте"],
    };
    let last = words[words.len() - 1];
    if words.len() <= 2 && words.iter().all(|word| yes_no.contains(word)) {
        return true;
    }
    if matches!(words, ["yes" | "no" | "yeah", "it" | "that", "is"] | ["yes", "i", "do"] | ["yes", "it", "is", "not"]) {
        return true;
    }
    let day = is_day(lang, last);
    let people = match lang {
        Lang::En => matches!(last, "people" | "persons" | "person" | "guests" | "adults"),
        Lang::Uk => matches!(last, "людей" | "осіб" | "особи" | "людини" | "чоловік" | "гостей"),
        Lang::Ru => matches!(last, "человек" | "человека" | "персон" | "гостей" | "людей"),
    };
    let hour = match lang {
        Lang::En => matches!(
            last,
            "o'clock" | "am" | "pm" | "noon" | "midnight" | "morning" | "afternoon" | "evening" | "tonight"
        ),
        Lang::Uk => matches!(last, "вечора" | "ранку" | "годині" | "ввечері" | "вранці" | "опівдні"),
        Lang::Ru => matches!(last, "вечера" | "утра" | "часов" | "часа" | "вечером" | "утром" | "полдень"),
    };
    // "Good morning" is followed by what the caller wants; "one people" by nothing.
    let greeting = words.len() == 2 && words[0] == "good";
    if greeting {
        return false;
    }
    if people && words.len() >= 2 && (is_number_word(lang, words[words.len() - 2]) || words.len() >= 3) {
        return true;
    }
    if hour && words.len() >= 2 {
        return true;
    }
    // A day alone may be followed by its hour; with the hour before it, or as an answer with "on", it is whole.
    if day && words.len() >= 2 {
        return true;
    }
    // "on Friday at seven", "at half past seven", "в семь": an hour after its preposition.
    let at = words.len().checked_sub(2).map_or("", |at| words[at]);
    match lang {
        Lang::En => is_number_word(lang, last) && matches!(at, "at" | "around" | "past"),
        Lang::Uk => {
            matches!(at, "о" | "об") && (is_number_word(lang, last) || last.ends_with("ій"))
                || at == "на" && ["двох", "трьох", "чотирьох", "п'ятьох", "шістьох"].contains(&last)
        }
        Lang::Ru => {
            matches!(at, "в" | "к") && is_number_word(lang, last) && words.len() >= 2
                || at == "на" && ["двоих", "троих", "четверых", "пятерых", "шестерых"].contains(&last)
        }
    }
}

fn is_day(lang: Lang, word: &str) -> bool {
    match lang {
        Lang::En => matches!(
            word,
            "monday"
                | "tuesday"
                | "wednesday"
                | "thursday"
                | "friday"
                | "saturday"
                | "sunday"
                | "today"
                | "tomorrow"
                | "weekend"
        ),
        Lang::Uk => matches!(
            word,
            "понеділок"
                | "вівторок"
                | "середу"
                | "четвер"
                | "п'ятницю"
                | "суботу"
                | "неділю"
                | "сьогодні"
                | "завтра"
                | "післязавтра"
        ),
        Lang::Ru => matches!(
            word,
            "понедельник"
                | "вторник"
                | "среду"
                | "четверг"
                | "пятницу"
                | "субботу"
                | "воскресенье"
                | "сегодня"
                | "завтра"
                | "послезавтра"
        ),
    }
}

/// A question by its words: a question word (after fillers) with a verb and something to end on.
fn asks(lang: Lang, words: &[&str]) -> bool {
    let fillers: &[&str] = match lang {
        Lang::En => &[
            "hello",
            "hi",
            "well",
            "so",
            "okay",
            "and",
            "actually",
            "sorry",
            "excuse",
            "me",
            "yes",
            "no",
            "good",
            "morning",
            "afternoon",
            "evening",
            "oh",
            "also",
            "thanks",
        ],
        Lang::Uk => {
            &["добрий", "день", "вечір", "ранок", "а", "ну", "так", "і", "вибачте", "скажіть", "алло", "підкажіть"]
        }
        Lang::Ru => &[
            "добрый",
            "день",
            "вечер",
            "утро",
            "а",
            "ну",
            "да",
            "и",
            "извините",
            "скажите",
            "алло",
            "здравствуйте",
            "подскажите",
        ],
    };
    let start = words.iter().take_while(|word| fillers.contains(word)).count();
    let question = &words[start..];
    if question.len() < 3 {
        return match lang {
            Lang::En => {
                matches!(question, ["how", "much"] | ["what", "time"] | ["where"] | ["when"] | ["why"] | ["why", "not"])
                    && !matches!(question, ["what", "time"])
            }
            Lang::Uk => {
                question.len() == 2
                    && matches!(question[0], "скільки" | "коли" | "де" | "хто")
                    && is_whole_end(lang, question[1])
            }
            Lang::Ru => {
                question.len() == 2
                    && matches!(question[0], "сколько" | "когда" | "где" | "кто")
                    && is_whole_end(lang, question[1])
            }
        };
    }
    let last = question[question.len() - 1];
    if !is_whole_end(lang, last) {
        return false;
    }
    match lang {
        Lang::En => {
            let auxiliary = |word: &str| {
                matches!(
                    word,
                    "do" | "does"
                        | "did"
                        | "is"
                        | "are"
                        | "can"
                        | "could"
                        | "would"
                        | "will"
                        | "should"
                        | "may"
                        | "was"
                        | "have"
                        | "has"
                )
            };
            match question[0] {
                "what" | "when" | "where" | "how" | "who" | "which" | "why" => {
                    question[1..question.len() - 1].iter().any(|word| auxiliary(word))
                }
                // "Can I book", "do you have": what is booked or had may still come.
                first if auxiliary(first) => {
                    question.len() >= 4
                        && !matches!(
                            last,
                            "have"
                                | "book"
                                | "get"
                                | "take"
                                | "change"
                                | "cancel"
                                | "move"
                                | "you"
                                | "i"
                                | "we"
                                | "need"
                                | "want"
                                | "tell"
                                | "send"
                                | "talk"
                                | "speak"
                        )
                        || question.len() == 3
                            && matches!(last, "open" | "closed" | "cards" | "card" | "parking" | "busy" | "free")
                }
                _ => false,
            }
        }
        Lang::Uk => matches!(
            question[0],
            "коли"
                | "де"
                | "скільки"
                | "як"
                | "чи"
                | "що"
                | "хто"
                | "яка"
                | "який"
                | "які"
                | "о"
                | "до"
                | "чому"
        ),
        Lang::Ru => matches!(
            question[0],
            "когда"
                | "где"
                | "сколько"
                | "как"
                | "есть"
                | "что"
                | "кто"
                | "какая"
                | "какой"
                | "какие"
                | "во"
                | "до"
                | "почему"
        ),
    }
}

/// Whether a word can end a question: no number (digits follow) and nothing that leans on the next word.
fn is_whole_end(lang: Lang, word: &str) -> bool {
    let leaning: &[&str] = match lang {
        Lang::En => &[
            "is", "are", "do", "does", "can", "could", "would", "will", "very", "so", "at", "on", "in", "for", "by",
            "about", "this", "next", "what", "when", "how", "not", "any", "some",
        ],
        Lang::Uk => &["не", "є", "чи", "ви", "ваша", "ваш", "можна", "дуже", "коли", "скільки"],
        Lang::Ru => &["не", "есть", "ли", "вы", "ваша", "ваш", "можно", "очень", "когда", "сколько"],
    };
    !leaning.contains(&word) && !is_number_word(lang, word)
}

/// A whole statement of the kinds that callers make: "no thank you" is caught above; here a name after its phrase, and
/// a request with its object.
fn states(lang: Lang, words: &[&str]) -> bool {
    let last = words[words.len() - 1];
    match lang {
        Lang::En => {
            let named =
                words.windows(3).position(|three| three == ["my", "name", "is"]).is_some_and(|at| at + 3 < words.len());
            let recalled = words.ends_with(&["call", "me", "back"]) || words.ends_with(&["call", "back"]);
            let object = matches!(
                last,
                "table"
                    | "room"
                    | "reservation"
                    | "appointment"
                    | "person"
                    | "human"
                    | "manager"
                    | "operator"
                    | "address"
                    | "again"
            ) && words.len() >= 4;
            // After "a table" most callers pause and go on ("for four"): that is unknown, not complete.
            named || recalled || (object && !matches!(last, "table" | "room" | "reservation" | "appointment"))
        }
        Lang::Uk => words.windows(2).position(|two| two == ["мене", "звати"]).is_some_and(|at| at + 2 < words.len()),
        Lang::Ru => words.windows(2).position(|two| two == ["меня", "зовут"]).is_some_and(|at| at + 2 < words.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Completeness::{Complete, Unfinished, Unknown};

    #[test]
    fn nods_are_backchannel_however_many() {
        for (language, texts) in [
            (
                "en",
                &[
                    "mm-hm",
                    "Mm-hmm.",
                    "uh huh",
                    "uh-huh",
                    "yeah",
                    "Okay.",
                    "right",
                    "yeah yeah yeah",
                    "okay, right",
                    "I see",
                    "mhm mhm",
                    "Hmm",
                    "oh okay",
                ][..],
            ),
            ("uk", &["ага", "Угу.", "так", "так, так", "м-м", "ну так", "зрозуміло", "гм"]),
            ("ru", &["ага", "угу", "да", "да-да", "м-м", "ну да", "понятно", "так"]),
            ("uk-UA", &["ага"]),
        ] {
            for text in texts {
                assert!(is_backchannel(language, text), "{text:?} in {language}");
            }
        }
    }

    #[test]
    fn one_real_word_is_no_backchannel() {
        for (language, texts) in [
            (
                "en",
                &[
                    "",
                    "...",
                    "no",
                    "stop",
                    "wait",
                    "yeah but",
                    "okay stop",
                    "I",
                    "see you",
                    "I want",
                    "hello",
                    "right now",
                    "what",
                ][..],
            ),
            ("uk", &["ні", "стоп", "так але", "зачекайте", "ага а коли"]),
            ("ru", &["нет", "стоп", "да но", "подождите"]),
        ] {
            for text in texts {
                assert!(!is_backchannel(language, text), "{text:?} in {language}");
            }
        }
    }

    #[test]
    fn words_are_counted() {
        assert_eq!(word_count("Well, it's twenty-two."), 4);
        assert_eq!(word_count(" … "), 0);
    }

    fn check(language: &str, expected: Completeness, texts: &[&str]) {
        for text in texts {
            assert_eq!(completeness(language, text), expected, "{text:?} in {language}");
        }
    }

    #[test]
    fn english_that_dangles_is_unfinished() {
        check(
            "en",
            Unfinished,
            &[
                "I would like to book a",
                "I would like to book a.",
                "and",
                "I would like to",
                "I want to book a table for",
                "a table for four people on",
                "can I book a table and",
                "my name is",
                "it is",
                "what is the",
                "um",
                "I am calling about my",
                "I would like",
                "I'd like a table, but",
                "well I would like to book a table for four on Friday at",
                "can I book",
                "I want to",
                "please call me back at",
                "do you have a",
                "how do I get",
                "because",
            ],
        );
    }

    #[test]
    fn english_that_is_whole_is_complete() {
        check(
            "en",
            Complete,
            &[
                "What time do you open",
                "What time do you open?",
                "Well, what time do you close today",
                "yes",
                "Yes.",
                "no thank you",
                "No, thank you.",
                "for four people",
                "Friday at seven",
                "on Friday at seven",
                "at seven o'clock",
                "on Friday",
                "goodbye",
                "thank you very much",
                "I would like to book a table please",
                "that is all",
                "my name is Maria",
                "can you call me back",
                "how much is it",
                "do you take cards",
                "are you open",
                "where are you from?",
                "is the wifi free",
                "Can I talk to a person",
                "Please call me back this week around one as soon as possible",
                "I would like a room for two nights.",
                "seven thirty in the evening",
                "Friday at seven thirty",
                "yes it is",
                "I do not want to, thank you",
            ],
        );
    }

    #[test]
    fn english_that_may_go_on_is_unknown() {
        check(
            "en",
            Unknown,
            &[
                "",
                "...",
                "I would like to book a table",
                "four",
                "seven",
                "nine one three",
                "The code is nine one three.",
                "my order number is eight two",
                "my phone number is 0501234",
                "Maria",
                "Good morning",
                "call me",
                "do you have",
                "Well,",
                "the blue one",
                "I have a question",
            ],
        );
    }

    #[test]
    fn ukrainian_turns_are_judged() {
        check(
            "uk",
            Unfinished,
            &[
                "я хочу замовити столик на",
                "і",
                "столик для",
                "я б хотіла замовити",
                "мене звати",
                "хочу",
                "запишіть на завтра на",
            ],
        );
        check(
            "uk",
            Complete,
            &[
                "так",
                "ні, дякую",
                "коли ви відчиняєтесь",
                "Скільки це коштує?",
                "столик на чотирьох",
                "у п'ятницю",
                "о сьомій вечора",
                "о сьомій",
                "будь ласка",
                "До побачення.",
                "мене звати Олена",
                "на двох людей",
                "передзвоніть мені завтра",
            ],
        );
        check("uk", Unknown, &["я хочу замовити столик", "чотири", "нуль п'ять нуль", "Олена"]);
    }

    #[test]
    fn russian_turns_are_judged() {
        check(
            "ru",
            Unfinished,
            &[
                "я хочу заказать столик на",
                "и",
                "столик для",
                "я хотела бы",
                "меня зовут",
                "мне",
                "запишите на завтра на",
            ],
        );
        check(
            "ru",
            Complete,
            &[
                "да",
                "нет, спасибо",
                "когда вы открываетесь",
                "Сколько это стоит?",
                "столик на четверых",
                "в пятницу",
                "в семь вечера",
                "пожалуйста",
                "До свидания.",
                "меня зовут Елена",
                "пять человек",
                "перезвоните мне завтра",
            ],
        );
        check("ru", Unknown, &["я хочу заказать столик", "четыре", "ноль пять ноль", "Елена"]);
    }

    #[test]
    fn any_text_is_judged_without_harm() {
        for text in ["'", "-", "—", "?", "и?", "a", "😀", "\u{301}", "1", "at at at", "what", "is", "?!.,"] {
            for language in ["en", "uk", "ru", "de", ""] {
                let _ = (completeness(language, text), is_backchannel(language, text));
            }
        }
    }
}
