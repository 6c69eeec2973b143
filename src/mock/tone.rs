//! Speech of the mock: a tone for every sentence, whose frequency tells from the wire which sentence is heard.

/// What the mock speaks at, as OpenAI does.
pub const RATE_HZ: u32 = 24_000;
/// Lowest tone and the step between tones; all are inside the telephone band and 25 Hz apart from any neighbour's
/// measuring error.
const LOWEST_HZ: u32 = 400;
const STEP_HZ: u32 = 50;
const TONES: u32 = 48;
/// -17 dBFS at the peak of a syllable, and half of that between two: never below what counts as audible.
const PEAK: f64 = 4_600.0;
/// Syllables a second.
const SYLLABLES_HZ: f64 = 4.0;
/// Silence between two sentences.
const BETWEEN_MS: u64 = 100;
/// Fade at both ends of a sentence, against clicks.
const FADE_MS: u64 = 5;

/// The frequency of a sentence. The same words give the same tone; two sentences share one by chance in 1 of 48.
pub fn tone_of(sentence: &str) -> u32 {
    // FNV-1a over the letters and digits, so that punctuation and case do not change the tone.
    let hash = sentence
        .chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .fold(0x811c_9dc5_u32, |hash, c| (hash ^ c as u32).wrapping_mul(0x0100_0193));
    LOWEST_HZ + STEP_HZ * ((hash ^ (hash >> 16)) % TONES)
}

/// Cuts a text after `.`, `!`, `?` and `…` and at line ends.
pub fn sentences(text: &str) -> Vec<&str> {
    text.split_inclusive(['.', '!', '?', '…', '\n'])
        .map(str::trim)
        .filter(|sentence| sentence.chars().any(char::is_alphanumeric))
        .collect()
}

/// Speaks a text: 16-bit mono at 24 kHz, little-endian bytes.
pub fn speak(text: &str, char_ms: f64, lead_ms: u64) -> Vec<u8> {
    let mut samples = silence(lead_ms);
    for (index, sentence) in sentences(text).into_iter().enumerate() {
        if index > 0 {
            samples.extend(silence(BETWEEN_MS));
        }
        let length = (sentence.chars().count() as f64 * char_ms * f64::from(RATE_HZ) / 1_000.0) as usize;
        samples.extend(tone(tone_of(sentence), length));
    }
    samples.into_iter().flat_map(i16::to_le_bytes).collect()
}

fn silence(ms: u64) -> Vec<i16> {
    vec![0; (u64::from(RATE_HZ) * ms / 1_000) as usize]
}

fn tone(hz: u32, length: usize) -> impl Iterator<Item = i16> {
    let rate = f64::from(RATE_HZ);
    let fade = rate * FADE_MS as f64 / 1_000.0;
    (0..length).map(move |n| {
        let t = n as f64 / rate;
        let syllable = 0.75 + 0.25 * (t * SYLLABLES_HZ * std::f64::consts::TAU).cos();
        let edge = ((n.min(length - n) as f64) / fade).min(1.0);
        (PEAK * syllable * edge * (t * f64::from(hz) * std::f64::consts::TAU).sin()) as i16
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(bytes: &[u8]) -> Vec<i16> {
        bytes.chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect()
    }

    /// Zero crossings counted upwards give the frequency.
    fn frequency(samples: &[i16]) -> f64 {
        let rises = samples.windows(2).filter(|pair| pair[0] < 0 && pair[1] >= 0).count();
        rises as f64 * f64::from(RATE_HZ) / samples.len() as f64
    }

    #[test]
    fn every_sentence_has_its_tone_and_its_length() {
        let sound = samples(&speak("We open at nine. Shall I book a table?", 60.0, 200));
        let first = "We open at nine.".len() * 60;
        let second = "Shall I book a table?".len() * 60;
        assert_eq!(sound.len(), (200 + first + 100 + second) * 24);
        assert!(sound[..200 * 24].iter().all(|s| *s == 0));
        let heard = frequency(&sound[300 * 24..800 * 24]);
        assert!((heard - f64::from(tone_of("we open at nine"))).abs() < 10.0, "{heard}");
        let start = (200 + first + 100) * 24;
        let heard = frequency(&sound[start + 2_400..start + 14_400]);
        assert!((heard - f64::from(tone_of("Shall I book a table?"))).abs() < 10.0, "{heard}");
    }

    #[test]
    fn a_text_without_words_is_silent() {
        assert!(speak("… !", 60.0, 0).is_empty());
    }
}
