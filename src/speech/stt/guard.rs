//! What keeps invented text out of a call: pure checks of a clip before it is decoded and of the text that came back.
//! Whisper writes subtitles for silence and noise, and loops on short windows (Careless Whisper, FAccT 2024; Barański,
//! arXiv 2501.11378). `no_speech_prob` is left out on purpose: whisper.cpp reads it from a row that was never written.

use serde::{Deserialize, Serialize};
use std::time::Duration;

use crate::media::frame::{SampleRate, level_dbfs};

/// The thresholds. A larger minimum silences more noise and more soft callers.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct GuardConfig {
    /// A 20 ms frame at or above this counts as voiced, dBFS. Default -50: quiet telephone speech is about -40.
    pub voiced_dbfs: f32,
    /// Less voiced audio than this is answered with no text, without decoding, ms. Default 100.
    pub min_voiced_ms: u64,
    /// Text whose tokens have a lower mean log-probability is dropped. Default -1.0, Whisper's own threshold; a higher
    /// value drops more words that were said.
    pub min_log_probability: f32,
    /// The same for text while the caller still speaks, which may stop the agent and need not be complete: half a word
    /// makes a model guess. Default -0.35; a higher value lets an interruption wait for more voice instead of words.
    pub min_partial_log_probability: f32,
    /// Text that would have been spoken faster than this is dropped, words per second. Default 9.
    pub max_words_per_s: f32,
    /// A phrase of the hallucination list is dropped when the clip has less voiced audio than this, ms. Default 1000.
    pub phrase_voiced_ms: u64,
    /// The same when the clip's loudest half second is below this, dBFS. Default -42.
    pub phrase_dbfs: f32,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self {
            voiced_dbfs: -50.0,
            min_voiced_ms: 100,
            min_log_probability: -1.0,
            min_partial_log_probability: -0.35,
            max_words_per_s: 9.0,
            phrase_voiced_ms: 1000,
            phrase_dbfs: -42.0,
        }
    }
}

impl GuardConfig {
    /// These thresholds for text of a caller who still speaks.
    pub fn while_speaking(&self) -> Self {
        let stricter = self.min_partial_log_probability.max(self.min_log_probability);
        Self { min_log_probability: stricter, ..self.clone() }
    }
}

/// What a clip sounds like, measured before it is decoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loudness {
    pub length: Duration,
    /// Sum of the 20 ms frames at or above the threshold.
    pub voiced: Duration,
    /// Level of the loudest half second, dBFS.
    pub peak_dbfs: f32,
}

impl Loudness {
    pub fn of(samples: &[i16], rate: SampleRate, voiced_dbfs: f32) -> Self {
        let frame = rate.frame_len().max(1);
        let voiced = samples.chunks_exact(frame).filter(|frame| level_dbfs(frame) >= voiced_dbfs).count();
        let half_second = samples.chunks(frame * 25).map(level_dbfs).fold(-96.0, f32::max);
        Self { length: rate.duration(samples.len()), voiced: rate.duration(voiced * frame), peak_dbfs: half_second }
    }
}

/// Which guard spoke; the label of `offhook_stt_guarded_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Too little sound to be a word.
    Silence,
    /// The model did not believe its own words.
    LogProbability,
    /// Faster than anyone speaks.
    WordRate,
    /// A subtitle that Whisper is known to write over silence.
    Phrase,
    /// The same words again and again; what was said once stays.
    Repeats,
}

impl Guard {
    pub fn label(self) -> &'static str {
        match self {
            Self::Silence => "silence",
            Self::LogProbability => "log_probability",
            Self::WordRate => "word_rate",
            Self::Phrase => "phrase",
            Self::Repeats => "repeats",
        }
    }
}

/// What remains of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Empty when a guard dropped it.
    pub text: String,
    pub guard: Option<Guard>,
}

/// Whether a clip holds enough sound to be worth decoding.
pub fn has_speech(loudness: &Loudness, config: &GuardConfig) -> bool {
    loudness.voiced >= Duration::from_millis(config.min_voiced_ms)
}

/// Strips what was not spoken and applies all text guards. `log_probability` is the mean over text tokens, where the
/// engine tells it; `language` is ISO 639-1 or BCP 47.
pub fn judge(
    text: &str,
    log_probability: Option<f32>,
    loudness: &Loudness,
    language: &str,
    config: &GuardConfig,
) -> Judged {
    let dropped = |guard| Judged { text: String::new(), guard: Some(guard) };
    let stripped = strip_annotations(text);
    let (text, looped) = collapse_repeats(&stripped);
    if text.is_empty() {
        return Judged { text, guard: None };
    }
    if log_probability.is_some_and(|p| p < config.min_log_probability) {
        return dropped(Guard::LogProbability);
    }
    if words_per_second(&text, loudness.length) > config.max_words_per_s {
        return dropped(Guard::WordRate);
    }
    let faint = loudness.peak_dbfs < config.phrase_dbfs;
    let short = loudness.voiced < Duration::from_millis(config.phrase_voiced_ms);
    if (faint || short) && is_known_hallucination(&text, language) || faint && is_bare_courtesy(&text) {
        return dropped(Guard::Phrase);
    }
    Judged { text, guard: looped.then_some(Guard::Repeats) }
}

/// Removes `[...]`, `(...)`, `*...*`, notes and speaker dashes, and folds white space.
pub fn strip_annotations(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    // The closing bracket that ends the annotation we are in.
    let mut until = None;
    for c in text.chars() {
        match (until, c) {
            (Some(end), c) if c == end => until = None,
            (Some(_), _) => {}
            (None, '[') => until = Some(']'),
            (None, '(') => until = Some(')'),
            (None, '*') => until = Some('*'),
            (None, '♪' | '♫' | '♩' | '♬') => kept.push(' '),
            (None, c) => kept.push(c),
        }
    }
    let folded = kept.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = folded.trim_start_matches(['-', '–', '—', '>', ' ']);
    // Punctuation alone is nothing said.
    if text.chars().any(char::is_alphanumeric) { text.to_owned() } else { String::new() }
}

/// Cuts a run of one to five words that stands three times or more in a row down to one, and says whether it did.
/// Numbers are left alone: callers do say "five five five five".
pub fn collapse_repeats(text: &str) -> (String, bool) {
    const LEAST: usize = 3;
    let words: Vec<&str> = text.split_whitespace().collect();
    let plain: Vec<String> = words.iter().map(|word| bare(word)).collect();
    let mut kept: Vec<&str> = Vec::with_capacity(words.len());
    let mut looped = false;
    let mut at = 0;
    while at < words.len() {
        let run = (1..=5).find_map(|n| {
            let gram = plain.get(at..at + n)?;
            let times = plain[at..].chunks_exact(n).take_while(|next| *next == gram).count();
            let spoken = gram.iter().all(|word| is_number(word));
            (times >= LEAST && !spoken).then_some((n, times))
        });
        match run {
            Some((n, times)) => {
                looped = true;
                // The last of the run carries the punctuation that goes with what follows.
                kept.extend(&words[at + n * (times - 1)..at + n * times]);
                at += n * times;
            }
            None => {
                kept.push(words[at]);
                at += 1;
            }
        }
    }
    (kept.join(" "), looped)
}

/// Words per second of audio. Texts of three words or fewer say nothing about a rate and give 0.
pub fn words_per_second(text: &str, length: Duration) -> f32 {
    let words = text.split_whitespace().count();
    if words <= 3 { 0.0 } else { words as f32 / length.as_secs_f32().max(0.2) }
}

/// Whether the whole text is a subtitle that Whisper writes over silence or music in this language.
pub fn is_known_hallucination(text: &str, language: &str) -> bool {
    let said = text.split_whitespace().map(bare).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    let own = match language.split(['-', '_']).next().unwrap_or_default() {
        "uk" => UKRAINIAN,
        "ru" => RUSSIAN,
        _ => ENGLISH,
    };
    // English subtitles turn up in every language.
    own.iter().chain(ENGLISH).any(|phrase| said == *phrase)
        || SIGNATURES.iter().any(|signature| said.contains(signature))
}

/// Whether the text is a courtesy that Whisper also writes over noise. Callers say these, and say them shortly: only a
/// faint clip speaks against them.
pub fn is_bare_courtesy(text: &str) -> bool {
    let said = text.split_whitespace().map(bare).collect::<Vec<_>>().join(" ");
    ["thank you", "you", "bye", "дякую", "спасибо"].contains(&said.as_str())
}

/// A word in lower case without punctuation around it.
fn bare(word: &str) -> String {
    word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase()
}

fn is_number(word: &str) -> bool {
    const DIGITS: &[&str] = &[
        "zero",
        "oh",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "нуль",
        "один",
        "два",
        "три",
        "чотири",
        "п'ять",
        "п’ять",
        "шість",
        "сім",
        "вісім",
        "дев'ять",
        "дев’ять",
        "ноль",
        "четыре",
        "пять",
        "шесть",
        "семь",
        "восемь",
        "девять",
    ];
    !word.is_empty() && (word.chars().all(|c| c.is_ascii_digit()) || DIGITS.contains(&word))
}

// Lower case, no punctuation, words divided by one space.
const ENGLISH: &[&str] = &[
    "thank you for watching",
    "thank you very much for watching",
    "thank you so much for watching",
    "thanks for watching",
    "thanks for watching and i'll see you in the next video",
    "thanks for listening",
    "thank you for listening",
    "please subscribe",
    "please subscribe to my channel",
    "please like and subscribe",
    "like and subscribe",
    "don't forget to subscribe",
    "don't forget to like and subscribe",
    "subscribe to my channel",
    "see you in the next video",
    "i'll see you in the next video",
    "see you next time",
    "i'll see you next time",
    "we'll be right back",
    "the end",
    "to be continued",
];
const UKRAINIAN: &[&str] = &[
    "дякую за перегляд",
    "дякую за увагу",
    "дякуємо за перегляд",
    "дякуємо за увагу",
    "дякую за підписку",
    "підписуйтесь на канал",
    "підписуйтесь на мій канал",
    "підпишіться на канал",
    "до зустрічі в наступному відео",
    "до нових зустрічей",
    "побачимось у наступному відео",
    "кінець",
    "далі буде",
];
const RUSSIAN: &[&str] = &[
    "спасибо за просмотр",
    "спасибо за внимание",
    "благодарю за внимание",
    "спасибо за подписку",
    "подписывайтесь на канал",
    "подписывайтесь на мой канал",
    "подпишитесь на канал",
    "ставьте лайки и подписывайтесь на канал",
    "не забудьте подписаться",
    "до новых встреч",
    "до встречи в следующем видео",
    "увидимся в следующем видео",
    "продолжение следует",
    "конец",
];
/// Credits that stand in many wordings around one name.
const SIGNATURES: &[&str] = &[
    "amara org",
    "amara.org",
    "субтитры сделал",
    "субтитры создавал",
    "редактор субтитров",
    "dimatorzok",
    "субтитрувальниця",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn clear_speech() -> Loudness {
        Loudness { length: Duration::from_secs(3), voiced: Duration::from_secs(2), peak_dbfs: -20.0 }
    }

    fn judged(text: &str, log_probability: f32, loudness: Loudness) -> Judged {
        judge(text, Some(log_probability), &loudness, "en", &GuardConfig::default())
    }

    #[test]
    fn clear_words_pass_unchanged() {
        let kept = judged(" I would like a table for two. ", -0.2, clear_speech());
        assert_eq!(kept, Judged { text: "I would like a table for two.".into(), guard: None });
    }

    #[test]
    fn a_clip_of_silence_or_a_click_is_not_speech() {
        let config = GuardConfig::default();
        let rate = SampleRate::HZ_16000;
        let mut clip = vec![0i16; 16_000];
        assert!(!has_speech(&Loudness::of(&clip, rate, config.voiced_dbfs), &config));
        clip[4000..4320].fill(8000);
        let click = Loudness::of(&clip, rate, config.voiced_dbfs);
        assert!(click.voiced > Duration::ZERO && !has_speech(&click, &config));
        clip[4000..8000].fill(8000);
        assert!(has_speech(&Loudness::of(&clip, rate, config.voiced_dbfs), &config));
    }

    #[test]
    fn words_the_model_does_not_believe_are_dropped() {
        assert_eq!(judged("market hello green", -1.2, clear_speech()).guard, Some(Guard::LogProbability));
        assert_eq!(judged("market hello green", -0.9, clear_speech()).guard, None);
    }

    #[test]
    fn half_a_word_is_believed_less_than_a_whole_turn() {
        let config = GuardConfig::default();
        let kept = |config: &GuardConfig| judge("okay please", Some(-0.6), &clear_speech(), "en", config).text;
        assert_eq!(kept(&config), "okay please");
        assert_eq!(kept(&config.while_speaking()), "");
    }

    #[test]
    fn more_words_than_anyone_speaks_are_dropped() {
        let text = (0..30).map(|n| format!("word{n}")).collect::<Vec<_>>().join(" ");
        let short = Loudness { length: Duration::from_secs(1), ..clear_speech() };
        assert_eq!(judged(&text, -0.1, short).guard, Some(Guard::WordRate));
        let long = Loudness { length: Duration::from_secs(20), ..clear_speech() };
        assert_eq!(judged(&text, -0.1, long).guard, None);
    }

    #[test]
    fn a_subtitle_is_dropped_from_a_weak_clip_and_kept_from_clear_speech() {
        let weak = Loudness { voiced: Duration::from_millis(300), ..clear_speech() };
        assert_eq!(judged("Thanks for watching!", -0.2, weak).guard, Some(Guard::Phrase));
        assert_eq!(judged("Thanks for watching!", -0.2, clear_speech()).text, "Thanks for watching!");
        let quiet = Loudness { peak_dbfs: -50.0, ..clear_speech() };
        assert_eq!(judged("Thanks for watching!", -0.2, quiet).guard, Some(Guard::Phrase));
    }

    #[test]
    fn a_short_thank_you_is_dropped_only_when_it_is_faint() {
        let short = Loudness { voiced: Duration::from_millis(300), ..clear_speech() };
        assert_eq!(judged("Thank you.", -0.2, short).text, "Thank you.");
        let faint = Loudness { peak_dbfs: -50.0, ..short };
        assert_eq!(judged("Thank you.", -0.2, faint).guard, Some(Guard::Phrase));
    }

    #[test]
    fn each_language_has_its_own_subtitles_and_english_ones_count_everywhere() {
        assert!(is_known_hallucination("Дякую за перегляд!", "uk-UA"));
        assert!(is_known_hallucination("Продолжение следует...", "ru"));
        assert!(is_known_hallucination("Субтитры сделал DimaTorzok", "ru"));
        assert!(is_known_hallucination("Thank you for watching.", "uk"));
        assert!(!is_known_hallucination("Дякую за перегляд!", "en"));
        assert!(!is_known_hallucination("Дякую, до побачення", "uk"));
    }

    #[test]
    fn annotations_and_notes_are_stripped() {
        assert_eq!(strip_annotations(" [BLANK_AUDIO]"), "");
        assert_eq!(strip_annotations("(soft music) Hello. ♪ la"), "Hello. la");
        assert_eq!(strip_annotations("- Yes, *coughs* please"), "Yes, please");
        assert_eq!(strip_annotations("..."), "");
        assert_eq!(strip_annotations("cut [in the mid"), "cut");
    }

    #[test]
    fn a_loop_is_cut_to_one_and_digits_are_left_alone() {
        let check = |said: &str, expected: &str, looped: bool| {
            assert_eq!(collapse_repeats(said), (expected.to_owned(), looped), "{said}");
        };
        check("I want I want I want to book", "I want to book", true);
        check("thank you, thank you, thank you.", "thank you.", true);
        check("no no no", "no", true);
        check("no no", "no no", false);
        check("five five five, nine", "five five five, nine", false);
        check("20 20 20", "20 20 20", false);
        check("a b c d e a b c d e a b c d e f", "a b c d e f", true);
        check("", "", false);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_judged_without_panic_and_never_grows(text in "\\PC{0,80}") {
            let kept = judged(&text, -0.1, clear_speech());
            proptest::prop_assert!(kept.text.len() <= text.len());
        }
    }
}
