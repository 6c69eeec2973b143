//! What a person hears of a caller before the two are connected: who calls, why, and what was noted. Pure; how it is
//! spoken is the carrier's.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::telephony::PhoneNumber;

/// About half a minute of speech: the caller waits meanwhile.
const MAX_CHARS: usize = 400;
/// Of one noted fact.
const MAX_FACT_CHARS: usize = 120;

struct Words {
    caller: &'static str,
    hidden: &'static str,
    about: &'static str,
    noted: &'static str,
    connecting: &'static str,
}

const EN: Words = Words {
    caller: "A caller for you",
    hidden: "from a hidden number",
    about: "It is about",
    noted: "Noted",
    connecting: "Connecting you now.",
};

const UK: Words = Words {
    caller: "Вам дзвінок",
    hidden: "з прихованого номера",
    about: "Причина",
    noted: "Записано",
    connecting: "З'єдную.",
};

const RU: Words = Words {
    caller: "Вам звонок",
    hidden: "со скрытого номера",
    about: "Причина",
    noted: "Записано",
    connecting: "Соединяю.",
};

/// The summary in the agent's language (English where there is none), 400 characters and its last sentence at most.
pub fn briefing(language: &str, caller: &PhoneNumber, reason: &str, noted: &BTreeMap<String, Value>) -> String {
    let words = match language.split(['-', '_']).next().unwrap_or_default() {
        first if first.eq_ignore_ascii_case("uk") => &UK,
        first if first.eq_ignore_ascii_case("ru") => &RU,
        _ => &EN,
    };
    let who = if caller.as_str().is_empty() { words.hidden.to_owned() } else { spoken_number(caller.as_str()) };
    let mut text = format!("{}: {who}.", words.caller);
    let reason = one_line(reason, MAX_CHARS);
    if !reason.is_empty() {
        text.push_str(&format!(" {}: {}.", words.about, reason.trim_end_matches('.')));
    }
    let facts: Vec<String> = noted
        .iter()
        .map(|(key, value)| (key.replace('_', " "), one_line(&spoken_value(value), MAX_FACT_CHARS)))
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key}: {}", value.trim_end_matches('.')))
        .collect();
    if !facts.is_empty() {
        text.push_str(&format!(" {}: {}.", words.noted, facts.join("; ")));
    }
    let mut text = cut(&text, MAX_CHARS);
    text.push(' ');
    text.push_str(words.connecting);
    text
}

/// Digits in threes, so that a voice reads no number of billions.
fn spoken_number(number: &str) -> String {
    let digits: Vec<char> = number.chars().filter(char::is_ascii_digit).collect();
    let plain = number.chars().all(|c| c.is_ascii_digit() || "+ -()".contains(c));
    if !plain || digits.len() <= 4 {
        return one_line(number, MAX_FACT_CHARS);
    }
    digits.chunks(3).map(|part| part.iter().collect::<String>()).collect::<Vec<_>>().join(" ")
}

fn spoken_value(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(items) => items.iter().map(spoken_value).collect::<Vec<_>>().join(", "),
        Value::Object(members) => {
            let member = |(key, value): (&String, &Value)| format!("{} {}", key.replace('_', " "), spoken_value(value));
            members.iter().map(member).collect::<Vec<_>>().join(", ")
        }
    }
}

fn one_line(text: &str, chars: usize) -> String {
    cut(&text.split_whitespace().collect::<Vec<_>>().join(" "), chars)
}

/// At the end of a word.
fn cut(text: &str, chars: usize) -> String {
    let Some((end, _)) = text.char_indices().nth(chars) else { return text.to_owned() };
    let head = &text[..end];
    format!("{}…", head.rsplit_once(' ').map_or(head, |(words, _)| words))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn noted(facts: Value) -> BTreeMap<String, Value> {
        facts.as_object().expect("an object").clone().into_iter().collect()
    }

    #[test]
    fn it_tells_who_calls_why_and_what_was_noted() {
        let facts = noted(json!({ "booking": { "guests": 4, "time": "19:30" }, "name": "Ivan", "nothing": null }));
        let number = PhoneNumber::new("+380501234567");
        assert_eq!(
            briefing("en-GB", &number, "the bill is wrong.", &facts),
            "A caller for you: 380 501 234 567. It is about: the bill is wrong. \
             Noted: booking: guests 4, time 19:30; name: Ivan. Connecting you now."
        );
        assert_eq!(
            briefing("uk", &number, "рахунок", &BTreeMap::new()),
            "Вам дзвінок: 380 501 234 567. Причина: рахунок. З'єдную."
        );
        assert_eq!(
            briefing("ru", &PhoneNumber::new(""), "", &BTreeMap::new()),
            "Вам звонок: со скрытого номера. Соединяю."
        );
        assert_eq!(
            briefing("de", &PhoneNumber::new("901"), "", &BTreeMap::new()),
            "A caller for you: 901. Connecting you now."
        );
    }

    #[test]
    fn it_stays_short_whatever_was_noted() {
        let facts = noted(json!({ "story": "word ".repeat(900), "list": ["a\nb", true], "more": "x".repeat(4_000) }));
        let text = briefing("en", &PhoneNumber::new("anonymous caller"), &"why ".repeat(300), &facts);
        assert!(text.chars().count() <= MAX_CHARS + 25, "{} characters", text.chars().count());
        assert!(text.ends_with("… Connecting you now.") && !text.contains('\n'), "{text}");
    }
}
