//! Where a long utterance may be cut for an engine that takes bounded clips: at a pause if there is one, else where it
//! is quietest. Pure; the decoding of the pieces is the engine's.

use std::ops::Range;

use crate::media::frame::{SampleRate, level_dbfs};

/// Frames of 20 ms in the shortest stretch that counts as a pause: 200 ms.
const PAUSE_FRAMES: usize = 10;
/// A pause is this far below the loud part of the speech around it.
const PAUSE_DROP_DB: f32 = 18.0;

/// A place to cut, in samples, in the middle of the stretch it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub at: usize,
    /// Nobody speaks here for at least 200 ms.
    pub pause: bool,
}

/// The best cut with its sample in `within`: the longest pause of at least 200 ms, else the quietest 200 ms. `None`
/// when the range holds less than 200 ms.
pub fn find_cut(audio: &[i16], rate: SampleRate, within: Range<usize>) -> Option<Cut> {
    let frame = rate.frame_len().max(1);
    let levels: Vec<f32> = audio.chunks_exact(frame).map(level_dbfs).collect();
    let mut sorted = levels.clone();
    sorted.sort_by(f32::total_cmp);
    // The ninth decile: the level of the voice, whatever share of the clip is pauses.
    let voice = *sorted.get(sorted.len() * 9 / 10)?;
    let (first, last) = (within.start.div_ceil(frame), (within.end / frame).min(levels.len()));
    if last < first + PAUSE_FRAMES {
        return None;
    }
    let quiet = |level: &f32| *level <= voice - PAUSE_DROP_DB;
    let mut best: Option<(usize, usize)> = None;
    let mut at = first;
    while at < last {
        let length = levels[at..last].iter().take_while(|level| quiet(level)).count();
        if length >= PAUSE_FRAMES && best.is_none_or(|(_, longest)| length > longest) {
            best = Some((at, length));
        }
        at += length + 1;
    }
    if let Some((start, length)) = best {
        return Some(Cut { at: (start + length / 2) * frame, pause: true });
    }
    let loudness = |window: &[f32]| window.iter().sum::<f32>();
    let (start, _) =
        levels[first..last].windows(PAUSE_FRAMES).map(loudness).enumerate().min_by(|(_, a), (_, b)| a.total_cmp(b))?;
    Some(Cut { at: (first + start + PAUSE_FRAMES / 2) * frame, pause: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: SampleRate = SampleRate::HZ_16000;

    /// A 200 Hz tone for each (seconds, amplitude).
    fn tone(parts: &[(f32, f32)]) -> Vec<i16> {
        let mut audio = Vec::new();
        for &(seconds, amplitude) in parts {
            let samples = (seconds * 16_000.0) as usize;
            audio.extend((0..samples).map(|i| ((i as f32 * 0.0785).sin() * amplitude) as i16));
        }
        audio
    }

    fn seconds(cut: Cut) -> f32 {
        cut.at as f32 / 16_000.0
    }

    #[test]
    fn the_longest_pause_is_taken() {
        let audio = tone(&[(13.0, 9000.0), (0.25, 0.0), (3.0, 9000.0), (0.6, 50.0), (5.0, 9000.0)]);
        let cut = find_cut(&audio, RATE, 12 * 16_000..20 * 16_000).expect("there are pauses");
        assert!(cut.pause);
        assert!((seconds(cut) - 16.55).abs() < 0.05, "{}", seconds(cut));
    }

    #[test]
    fn without_a_pause_the_quietest_place_is_taken() {
        let audio = tone(&[(14.0, 9000.0), (0.3, 4000.0), (8.0, 9000.0)]);
        let cut = find_cut(&audio, RATE, 12 * 16_000..20 * 16_000).expect("long enough");
        assert!(!cut.pause);
        assert!((14.0..14.3).contains(&seconds(cut)), "{}", seconds(cut));
    }

    #[test]
    fn a_pause_outside_the_range_is_not_used() {
        let audio = tone(&[(5.0, 9000.0), (1.0, 0.0), (14.0, 9000.0)]);
        let cut = find_cut(&audio, RATE, 12 * 16_000..19 * 16_000).expect("long enough");
        assert!(!cut.pause && seconds(cut) >= 12.0);
    }

    #[test]
    fn nothing_to_choose_from_gives_no_cut() {
        assert_eq!(find_cut(&[], RATE, 0..100), None);
        assert_eq!(find_cut(&tone(&[(1.0, 9000.0)]), RATE, 12_000..13_000), None);
    }
}
