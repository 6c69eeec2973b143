//! The recordings that a scenario's steps play: turns of recorded callers, or sound files of its own.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};

use crate::eval::scenario::{Act, Scenario, Sound};
use crate::load::fixture::{Fixture, Kind, RATE_HZ, Start, Turn};

/// Longest sound file of a step: a caller's turn is cut after a minute.
const MAX_SECONDS: u32 = 120;
/// A stretch of 10 ms counts as voice from this part of the loudest one on (−32 dB).
const VOICED: f64 = 0.025;
const STRETCH: usize = RATE_HZ as usize / 100;

/// What a step plays.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub turn: Turn,
    /// The workflow's language may differ from the recording's; the words are what counts in writing.
    pub text: String,
}

/// One a step, `None` where it plays nothing.
pub fn load(scenario: &Scenario, fixtures: &Path) -> anyhow::Result<Vec<Option<Recorded>>> {
    let mut callers: BTreeMap<&str, Fixture> = BTreeMap::new();
    let mut sounds = Vec::with_capacity(scenario.steps.len());
    for (index, step) in scenario.steps.iter().enumerate() {
        let Act::Plays(sound) = &step.act else {
            sounds.push(None);
            continue;
        };
        let place = || format!("line {}, step {}: plays", step.line, index + 1);
        let turn = match sound {
            Sound::Turn { caller, turn } => {
                if !callers.contains_key(caller.as_str()) {
                    callers.insert(caller, Fixture::find(fixtures, caller).with_context(place)?);
                }
                let turns = &callers[caller.as_str()].turns;
                match turns.get(turn - 1) {
                    Some(turn) => turn.clone(),
                    None => bail!("{}: {caller} has {} turns, not {turn}", place(), turns.len()),
                }
            }
            Sound::File { path, text } => {
                let samples = read_wav(path).with_context(place)?;
                let Some(voice) = voice_in(&samples) else { bail!("{}: {} is silent", place(), path.display()) };
                Turn {
                    kind: Kind::Turn,
                    text: text.clone(),
                    start: Start::AfterAgent(PAUSE_MS),
                    speech: vec![voice],
                    samples,
                    keys: String::new(),
                }
            }
        };
        sounds.push(Some(Recorded { text: turn.text.clone(), turn }));
    }
    Ok(sounds)
}

/// Silence that callers leave after the agent's words.
pub const PAUSE_MS: u64 = 700;

fn read_wav(path: &Path) -> anyhow::Result<Vec<i16>> {
    let mut reader = hound::WavReader::open(path).with_context(|| path.display().to_string())?;
    let spec = reader.spec();
    if spec.sample_rate != RATE_HZ || spec.channels != 1 || spec.bits_per_sample != 16 {
        bail!(
            "{}: {} bits, {} channels at {} Hz; a step plays 16-bit mono at {RATE_HZ} Hz",
            path.display(),
            spec.bits_per_sample,
            spec.channels,
            spec.sample_rate
        );
    }
    if reader.duration() > MAX_SECONDS * RATE_HZ {
        bail!("{}: longer than {MAX_SECONDS} s", path.display());
    }
    reader.samples().collect::<Result<_, _>>().with_context(|| path.display().to_string())
}

/// First and last millisecond of what is loud.
fn voice_in(samples: &[i16]) -> Option<(u64, u64)> {
    let level = |stretch: &[i16]| {
        let power: f64 = stretch.iter().map(|sample| f64::from(*sample).powi(2)).sum();
        (power / stretch.len().max(1) as f64).sqrt()
    };
    let levels: Vec<f64> = samples.chunks(STRETCH).map(level).collect();
    let loudest = levels.iter().copied().fold(0.0, f64::max);
    let voiced = |level: &f64| loudest > 0.0 && *level >= loudest * VOICED;
    let (first, last) = (levels.iter().position(voiced)?, levels.iter().rposition(voiced)?);
    let length_ms = samples.len() as u64 * 1000 / u64::from(RATE_HZ);
    Some((first as u64 * 10, ((last as u64 + 1) * 10).min(length_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_voice_in_a_file_is_found() {
        let mut samples = vec![3i16; 8_000];
        samples[1_600..4_000].iter_mut().enumerate().for_each(|(n, s)| *s = if n % 2 == 0 { 8_000 } else { -8_000 });
        assert_eq!(voice_in(&samples), Some((200, 500)));
        assert_eq!(voice_in(&[0; 800]), None);
        assert_eq!(voice_in(&[]), None);
    }
}
