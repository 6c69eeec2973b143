//! The stretch of a clip that is shown to the model. How much silence a call puts around an utterance depends on the
//! detector and on where the packets fall; a small model answers to a few milliseconds more or less with other words.
//! So the clip is framed by its own speech, to the sample: the same words give the same input, however they were cut.

use std::ops::Range;

/// All lengths here are samples at 16 kHz.
const MS: usize = 16;
/// Kept before the first loud sound: room for the weak consonants of a word's beginning.
const LEAD: usize = 180 * MS;
/// Kept after the last sound that is not faint.
const TAIL: usize = 60 * MS;
/// Most that is taken away at the beginning: what the detector itself took for silence, by the default pre-roll.
const TRIM: usize = 300 * MS;
/// Most that is taken away at the end.
const TRIM_END: usize = 1000 * MS;
/// The beginning of a clip that is looked at for what sounds when nobody speaks.
const BEFORE: usize = 160 * MS;
/// Levels are taken over 5 ms, and over 20 ms where one click must not set them.
const SHORT: usize = 5 * MS;
const LONG: usize = 20 * MS;

// Ratios of power.
/// Speech begins where it is less than 20 dB under the loudest 20 ms.
const LOUD: f64 = 0.01;
/// It ends where it is more than 30 dB under them: last consonants are weak.
const FAINT: f64 = 0.001;
/// Speech is 6 dB over what sounded before it.
const OVER_NOISE: f64 = 4.0;
/// Where what sounded before is less than 15 dB under the loudest, the clip begins inside speech, or in noise that hides
/// where it begins.
const HIDDEN: f64 = 0.032;

/// What to show of a clip, and how many zeros to add at its end so that all ends are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub range: Range<usize>,
    pub zeros: usize,
}

/// Frames a clip at 16 kHz. One of silence is shown whole.
pub(crate) fn frame(clip: &[i16]) -> Shown {
    let loudest = powers(clip, LONG).fold(0.0, f64::max);
    if loudest == 0.0 {
        return Shown { range: 0..clip.len(), zeros: 0 };
    }
    let before = powers(&clip[..clip.len().min(BEFORE)], LONG).fold(0.0, f64::max);
    let noise = before * OVER_NOISE;
    let hidden = noise > loudest * HIDDEN;
    let begins = |power: &f64| *power >= noise.max(loudest * LOUD);
    let start = match powers(clip, SHORT).position(|power| begins(&power)) {
        Some(first) if !hidden => first.saturating_sub(LEAD).min(TRIM),
        _ => 0,
    };
    let ends = if hidden { loudest * FAINT } else { noise.max(loudest * FAINT) };
    let last = powers(clip, SHORT).enumerate().filter(|(_, power)| *power >= ends).last();
    let wanted = last.map_or(clip.len(), |(at, _)| at + SHORT + TAIL);
    let end = wanted.min(clip.len()).max(clip.len().saturating_sub(TRIM_END)).max(start);
    Shown { range: start..end, zeros: wanted.saturating_sub(clip.len()) }
}

/// Mean power of each stretch of `length` samples, sample by sample.
fn powers(clip: &[i16], length: usize) -> impl Iterator<Item = f64> {
    let square = |sample: i16| (i32::from(sample) * i32::from(sample)) as u64;
    let mut sum: u64 = clip.iter().take(length).map(|&sample| square(sample)).sum();
    let whole = clip.len() >= length;
    let leaving = std::iter::once(None).chain(clip.iter().copied().zip(clip.iter().skip(length).copied()).map(Some));
    leaving.filter(move |_| whole).map(move |step| {
        if let Some((gone, come)) = step {
            sum = sum - square(gone) + square(come);
        }
        sum as f64 / length as f64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second of tone with so many samples of quiet before and after it; the quiet is noise of this amplitude.
    fn clip(before: usize, after: usize, noise: i16) -> Vec<i16> {
        let mut state = 7_u32;
        let hiss = |count| {
            let mut next = move || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (f32::from(noise) * ((state >> 16) as f32 / 32_768.0 - 1.0)) as i16
            };
            (0..count).map(move |_| next()).collect::<Vec<i16>>()
        };
        let mut clip = hiss(before);
        clip.extend((0..16_000).map(|n| ((n as f32 * 0.3).sin() * 8000.0) as i16));
        clip.extend(hiss(after));
        clip
    }

    fn shown(clip: &[i16]) -> (Vec<i16>, usize) {
        let Shown { range, zeros } = frame(clip);
        let mut shown = clip[range].to_vec();
        shown.resize(shown.len() + zeros, 0);
        (shown, zeros)
    }

    #[test]
    fn the_same_speech_is_shown_alike_whatever_silence_is_around_it() {
        let (first, _) = shown(&clip(5000, 2000, 0));
        assert!(first.len().abs_diff(LEAD + 16_000 + TAIL) <= 2 * SHORT, "{}", first.len());
        for (before, after) in [(5001, 2000), (5160, 640), (6400, 100), (LEAD + SHORT, 9000)] {
            assert_eq!(shown(&clip(before, after, 0)).0, first, "{before} {after}");
        }
    }

    #[test]
    fn noise_under_the_speech_does_not_move_the_frame() {
        // 24 dB under the tone.
        for (before, after) in [(5000, 2000), (5160, 1700), (6400, 1600)] {
            let (shown, zeros) = shown(&clip(before, after, 600));
            assert!(shown.len().abs_diff(LEAD + 16_000 + TAIL) <= 2 * SHORT, "{}", shown.len());
            assert_eq!(zeros, 0);
        }
    }

    #[test]
    fn a_clip_that_begins_inside_speech_keeps_its_beginning() {
        assert_eq!(frame(&clip(0, 2000, 0)).range.start, 0);
        assert_eq!(frame(&clip(1000, 2000, 0)).range.start, 0);
        let mut soft = clip(0, 0, 0);
        // Two seconds of softer words before a loud one.
        soft.splice(0..0, clip(0, 0, 0).iter().chain(&clip(0, 0, 0)).map(|sample| sample / 8).collect::<Vec<_>>());
        assert_eq!(frame(&soft).range.start, 0);
    }

    #[test]
    fn no_more_is_taken_away_than_the_detector_took_for_silence() {
        let Shown { range, .. } = frame(&clip(40_000, 40_000, 0));
        assert_eq!((range.start, range.end), (TRIM, 96_000 - TRIM_END));
    }

    #[test]
    fn silence_and_scraps_are_shown_whole() {
        for length in [0, 1, SHORT, LONG - 1, 16_000] {
            assert_eq!(frame(&vec![0; length]), Shown { range: 0..length, zeros: 0 });
        }
        assert_eq!(frame(&[9000; 100]).range, 0..100);
    }

    proptest::proptest! {
        #[test]
        fn the_frame_lies_within_the_clip(clip in proptest::collection::vec(proptest::num::i16::ANY, 0..4000)) {
            let Shown { range, zeros } = frame(&clip);
            proptest::prop_assert!(range.start <= range.end && range.end <= clip.len() && zeros <= SHORT + TAIL);
        }
    }
}
