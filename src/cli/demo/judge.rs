//! Was the caller understood? Holds what a call led to against what its fixture says it must lead to.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use crate::conversation::spoken::english::below_hundred;
use crate::conversation::transcript::Line;
use crate::load::fixture::{Ender, Fixture, Kind};
use crate::telephony::Party;

/// Words understood wrongly, missed or added, of the words said.
const MAX_WORD_ERROR_RATE: f64 = 0.10;
/// Words of one call that are aligned; the square of it is the work.
const MAX_WORDS: usize = 4_000;

/// One thing that had to be so.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    pub check: String,
    pub ok: bool,
    /// What was found; where it is wrong, in a way that shows what is.
    pub detail: String,
}

fn verdict(check: impl Into<String>, ok: bool, detail: impl Into<String>) -> Verdict {
    Verdict { check: check.into(), ok, detail: detail.into() }
}

/// `remembered` is what the agent noted, by key; a slot is looked for in there as a key, and as a field of a value.
/// `ended_by` is who hung up.
pub fn judge(fixture: &Fixture, turns: &[Line], remembered: &BTreeMap<String, Value>, ended_by: Ender) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let heard: Vec<String> = spoken(turns, Party::Caller).flat_map(words).take(MAX_WORDS).collect();
    let said: Vec<Said> = fixture.turns.iter().flat_map(said).take(MAX_WORDS).collect();
    verdicts.push(understood(&said, &heard));

    for (slot, word) in &fixture.expect.slots {
        let noted = slot_values(remembered, slot);
        let wanted = words(word);
        let in_transcript = !wanted.is_empty() && heard.windows(wanted.len()).any(|window| window == wanted);
        let (ok, detail) = match noted.as_slice() {
            [] if in_transcript => (true, format!("“{word}” was heard (and nothing of that name noted)")),
            [] => (false, format!("“{word}” was neither heard nor noted")),
            noted => {
                let shown = noted.iter().map(|value| plain(value)).collect::<Vec<_>>().join(", ");
                (noted.iter().any(|value| means(word, value)), format!("“{word}” was noted as “{shown}”"))
            }
        };
        verdicts.push(verdict(format!("slot {slot}"), ok, detail));
    }
    for key in &fixture.expect.remember {
        let detail = match remembered.get(key) {
            Some(value) => value.to_string(),
            None => format!("not among: {}", remembered.keys().cloned().collect::<Vec<_>>().join(", ")),
        };
        verdicts.push(verdict(format!("remembered {key}"), remembered.contains_key(key), detail));
    }
    let answers: Vec<String> = spoken(turns, Party::Agent).flat_map(words).collect();
    for phrase in &fixture.expect.agent_says {
        let wanted = words(phrase);
        let ok = !wanted.is_empty() && answers.windows(wanted.len()).any(|window| window == wanted);
        let detail = if ok { "said".into() } else { format!("the agent said: {}", answers.join(" ")) };
        verdicts.push(verdict(format!("agent says “{phrase}”"), ok, detail));
    }
    if let Some(expected) = fixture.expect.ended_by {
        let name = |ender| if ender == Ender::Agent { "agent" } else { "caller" };
        let check = format!("ended by the {}", name(expected));
        verdicts.push(verdict(check, ended_by == expected, format!("the {} hung up", name(ended_by))));
    }
    verdicts
}

fn spoken(turns: &[Line], who: Party) -> impl Iterator<Item = &str> {
    turns.iter().filter(move |turn| turn.who == who).map(|turn| turn.text.as_str())
}

/// A word that the caller said. A backchannel may be left out of a transcript: nothing was to be understood.
#[derive(Clone, Debug)]
struct Said {
    word: String,
    optional: bool,
}

fn said(turn: &crate::load::fixture::Turn) -> Vec<Said> {
    let optional = match turn.kind {
        Kind::Turn | Kind::Interruption => false,
        Kind::Backchannel => true,
        Kind::Noise => return Vec::new(),
    };
    words(&turn.text).into_iter().map(|word| Said { word, optional }).collect()
}

/// Lower case, letters and digits only, numbers up to a hundred in words: two ways to write the same thing are one.
fn words(text: &str) -> Vec<String> {
    text.split(|c: char| c.is_whitespace() || matches!(c, '-' | '–' | '—' | '/'))
        .map(|word| word.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect::<String>())
        .filter(|word| !word.is_empty())
        .flat_map(|word| match word.parse::<u32>().ok().and_then(below_hundred) {
            Some(number) => number.split(' ').map(String::from).collect(),
            None if word == "ok" => vec!["okay".to_string()],
            None => vec![word],
        })
        .collect()
}

/// Every value noted under that name.
fn slot_values<'a>(remembered: &'a BTreeMap<String, Value>, slot: &str) -> Vec<&'a Value> {
    let fields = remembered.values().filter_map(|value| value.get(slot));
    remembered.get(slot).into_iter().chain(fields).collect()
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

/// Whether a noted value is what the caller said: the same words, or a time of day whose hour was said.
fn means(word: &str, value: &Value) -> bool {
    let value = plain(value);
    let wanted = words(word);
    if wanted.is_empty() {
        return false;
    }
    if words(&value).windows(wanted.len()).any(|window| window == wanted) {
        return true;
    }
    let Some((hour, minute)) = value.split_once(':').and_then(|(h, m)| Some((h.parse::<u32>().ok()?, m.get(..2)?)))
    else {
        return false;
    };
    // Half of the times that people say do not tell morning from evening.
    let hours = [Some(hour % 12), Some(hour), (hour % 12 == 0).then_some(12)];
    let spoken = hours.into_iter().flatten().filter_map(below_hundred).any(|hour| {
        let hour: Vec<&str> = hour.split(' ').collect();
        wanted.windows(hour.len()).any(|window| window == hour)
    });
    spoken && (minute == "00" || wanted.len() > 1)
}

/// How an alignment treats one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Same,
    Wrong,
    Missed,
    Added,
}

/// Word error rate over the call, with the differing words shown in place.
fn understood(said: &[Said], heard: &[String]) -> Verdict {
    let required = said.iter().filter(|said| !said.optional).count();
    let steps = align(said, heard);
    let errors = steps.iter().map(|(step, i, _)| cost(*step, said.get(*i))).sum::<usize>();
    let rate = if required == 0 { errors as f64 } else { errors as f64 / required as f64 };
    let mut shown = Vec::new();
    for (step, i, j) in steps {
        match step {
            Step::Same => shown.push(heard[j].clone()),
            Step::Wrong => shown.push(format!("[{}→{}]", said[i].word, heard[j])),
            Step::Missed if said[i].optional => shown.push(format!("({})", said[i].word)),
            Step::Missed => shown.push(format!("[-{}]", said[i].word)),
            Step::Added => shown.push(format!("[+{}]", heard[j])),
        }
    }
    let detail = format!("{errors} errors in {required} words, {:.1} %: {}", rate * 100.0, shown.join(" "));
    verdict("understood (word errors at most 10 %)", rate <= MAX_WORD_ERROR_RATE, detail)
}

fn cost(step: Step, said: Option<&Said>) -> usize {
    match step {
        Step::Same => 0,
        Step::Missed if said.is_some_and(|said| said.optional) => 0,
        Step::Wrong | Step::Missed | Step::Added => 1,
    }
}

/// The cheapest way from what was said to what was heard; each step with the places in both.
fn align(said: &[Said], heard: &[String]) -> Vec<(Step, usize, usize)> {
    let width = heard.len() + 1;
    let mut best = vec![(0usize, Step::Same); (said.len() + 1) * width];
    for i in 0..=said.len() {
        for j in 0..=heard.len() {
            let missed = || best[(i - 1) * width + j].0 + cost(Step::Missed, said.get(i - 1));
            let added = || best[i * width + j - 1].0 + 1;
            best[i * width + j] = match (i, j) {
                (0, 0) => (0, Step::Same),
                (_, 0) => (missed(), Step::Missed),
                (0, _) => (added(), Step::Added),
                _ => {
                    let step = if said[i - 1].word == heard[j - 1] { Step::Same } else { Step::Wrong };
                    let diagonal = best[(i - 1) * width + j - 1].0 + cost(step, None);
                    [(diagonal, step), (missed(), Step::Missed), (added(), Step::Added)]
                        .into_iter()
                        .min_by_key(|(cost, _)| *cost)
                        .expect("there are three ways")
                }
            };
        }
    }
    let (mut i, mut j) = (said.len(), heard.len());
    let mut steps = Vec::new();
    while (i, j) != (0, 0) {
        let step = best[i * width + j].1;
        match step {
            Step::Same | Step::Wrong => (i, j) = (i - 1, j - 1),
            Step::Missed => i -= 1,
            Step::Added => j -= 1,
        }
        steps.push((step, i, j));
    }
    steps.reverse();
    steps
}

/// The verdicts that failed, for a loud end.
pub fn failures(verdicts: &[Verdict]) -> BTreeSet<String> {
    verdicts.iter().filter(|verdict| !verdict.ok).map(|v| format!("{}: {}", v.check, v.detail)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::load::fixture::{Expect, Start, Turn};

    fn fixture(turns: &[(Kind, &str)], expect: Expect) -> Fixture {
        Fixture {
            name: "test".into(),
            title: String::new(),
            language: "en".into(),
            workflow: String::new(),
            voice: String::new(),
            background: None,
            echo: None,
            turns: turns
                .iter()
                .map(|(kind, text)| Turn {
                    kind: *kind,
                    text: text.to_string(),
                    start: Start::AfterAgent(0),
                    speech: vec![],
                    samples: vec![],
                    keys: String::new(),
                })
                .collect(),
            expect,
        }
    }

    fn line(who: Party, text: &str) -> Line {
        Line { who, text: text.into(), start_ms: 0, end_ms: 0, heard: None, stages: BTreeMap::new() }
    }

    fn failed(verdicts: &[Verdict]) -> Vec<&str> {
        verdicts.iter().filter(|verdict| !verdict.ok).map(|verdict| verdict.check.as_str()).collect()
    }

    fn booking() -> (Fixture, Vec<Line>, BTreeMap<String, Value>) {
        let expect = Expect {
            slots: [("people", "four"), ("day", "friday"), ("time", "seven"), ("name", "maria")]
                .map(|(slot, word)| (slot.to_string(), word.to_string()))
                .into(),
            remember: vec!["booking".into()],
            agent_says: vec!["nine o'clock".into()],
            ended_by: Some(Ender::Agent),
        };
        let turns = [
            (Kind::Turn, "i would like to book a table on friday at seven"),
            (Kind::Backchannel, "okay yes"),
            (Kind::Noise, ""),
            (Kind::Turn, "for four people my name is maria"),
        ];
        let heard = vec![
            line(Party::Caller, "I would like to book a table, on Friday at 7."),
            line(Party::Agent, "Nine o’clock? It is nine o'clock."),
            line(Party::Caller, "For 4 people. My name is Maria!"),
        ];
        let noted = json!({ "people": 4, "day": "friday", "time": "19:00", "name": "Maria" });
        (fixture(&turns, expect), heard, [("booking".to_string(), noted)].into())
    }

    #[test]
    fn a_call_that_went_well_passes_every_check() {
        let (fixture, turns, noted) = booking();
        let verdicts = judge(&fixture, &turns, &noted, Ender::Agent);
        assert!(failed(&verdicts).is_empty(), "{verdicts:#?}");
        assert_eq!(verdicts.len(), 8);
        assert!(failures(&verdicts).is_empty());
    }

    #[test]
    fn words_understood_wrongly_are_shown_in_their_place() {
        let (fixture, mut turns, noted) = booking();
        turns[2].text = "for four pebbles my name is maria maria".into();
        let verdicts = judge(&fixture, &turns, &noted, Ender::Agent);
        assert_eq!(failed(&verdicts), ["understood (word errors at most 10 %)"]);
        let detail = &verdicts[0].detail;
        assert!(detail.starts_with("2 errors in 18 words"), "{detail}");
        for part in ["[people→pebbles]", "[+maria]", "(okay)"] {
            assert!(detail.contains(part), "{part} in {detail}");
        }
    }

    #[test]
    fn a_wrong_slot_a_missing_note_and_a_wrong_end_fail() {
        let (fixture, turns, mut noted) = booking();
        noted.insert("booking".into(), json!({ "people": 14, "day": "friday", "time": "20:00", "name": "Maria" }));
        assert_eq!(failed(&judge(&fixture, &turns, &noted, Ender::Agent)), ["slot people", "slot time"]);
        let verdicts = judge(&fixture, &turns, &BTreeMap::new(), Ender::Caller);
        assert_eq!(failed(&verdicts), ["remembered booking", "ended by the agent"]);
        let silent = judge(&fixture, &[], &noted, Ender::Agent);
        assert!(!silent[0].ok && silent[0].detail.starts_with("18 errors"), "{}", silent[0].detail);
    }

    #[test]
    fn times_and_numbers_are_recognised_however_they_are_written() {
        for (word, value) in [
            ("seven", json!("19:00")),
            ("seven", json!("07:00")),
            ("twelve", json!("12:00")),
            ("half past seven", json!("19:30")),
            ("four", json!("4")),
            ("twenty two", json!(22)),
            ("friday", json!("next friday")),
        ] {
            assert!(means(word, &value), "{word} {value}");
        }
        for (word, value) in [
            ("seven", json!("18:00")),
            ("seven", json!("19:30")),
            ("four", json!(14)),
            ("seventeen", json!("19:00")),
            ("", json!("")),
        ] {
            assert!(!means(word, &value), "{word} {value}");
        }
    }
}
