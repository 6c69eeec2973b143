//! An answer without a model: the sentences of the best passage that hold most of the question, if it holds enough.

use serde_json::Value;

use super::split::sentences;
use super::words::{Tongue, asked, stems};

/// A passage that holds less of the question's weight answers another question.
const ENOUGH: f64 = 0.5;
/// What a caller listens to in one answer, in characters: some twenty seconds.
const LONGEST: usize = 320;

/// What to say after a lookup, from the JSON of the tool's result. `None`: nothing that was found answers it.
pub fn answer(question: &str, language: &str, result: &str) -> Option<String> {
    let result: Value = serde_json::from_str(result).ok()?;
    let best = result["passages"].as_array()?.first()?;
    if best["score"].as_f64()? < ENOUGH {
        return None;
    }
    let text = best["text"].as_str()?;
    let tongue = Tongue::detect(question, Tongue::of(language));
    let words = asked(question, tongue);
    let parts: Vec<&str> = text.lines().flat_map(sentences).collect();
    let held = |sentence: &str| {
        let stems = stems(sentence, Tongue::detect(sentence, tongue));
        words.iter().filter(|word| word.stems.iter().any(|stem| stems.contains(stem))).count()
    };
    let counts: Vec<usize> = parts.iter().map(|part| held(part)).collect();
    // The first of those that hold most.
    let best = (0..parts.len()).rev().max_by_key(|at| counts[*at])?;
    let mut said = String::new();
    for part in &parts[best..] {
        if !said.is_empty() && said.chars().count() + part.chars().count() >= LONGEST {
            break;
        }
        if !said.is_empty() {
            said.push(' ');
        }
        said.push_str(part);
    }
    Some(said)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn result(text: &str, score: f64) -> String {
        json!({ "passages": [{ "text": text, "score": score, "title": "x", "place": "" }] }).to_string()
    }

    #[test]
    fn the_sentence_that_was_asked_for_is_said_first() {
        let text = "We are a small hotel. Breakfast is served from seven. It costs nothing.";
        let said = answer("when is breakfast served", "en", &result(text, 0.9));
        assert_eq!(said.as_deref(), Some("Breakfast is served from seven. It costs nothing."));
    }

    #[test]
    fn what_holds_too_little_of_the_question_is_not_said() {
        assert_eq!(answer("do you sell unicorns", "en", &result("We sell horses.", 0.3)), None);
        assert_eq!(answer("x", "en", r#"{"error":"down"}"#), None);
        assert_eq!(answer("x", "en", r#"{"passages":[]}"#), None);
        assert_eq!(answer("x", "en", "nonsense"), None);
    }

    #[test]
    fn an_answer_is_short() {
        let text = "One two three four five six seven eight nine ten. ".repeat(20);
        assert!(answer("ten", "en", &result(&text, 1.0)).unwrap().chars().count() <= LONGEST);
    }
}
