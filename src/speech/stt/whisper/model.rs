//! One loaded Whisper model and the decoding of one clip: frame, window, flags, guards and the one retry. All contact with
//! whisper.cpp is here.

use std::collections::HashMap;
use std::ffi::c_void;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use whisper_rs::{
    FullParams, SamplingStrategy, WhisperContext, WhisperContextParameters, WhisperState, get_lang_id, get_lang_str,
};

use super::WhisperConfig;
use super::frame::frame;
use super::pool::{Clip, DecodeError, Decoder, Transcript};
use crate::media::frame::SampleRate;
use crate::speech::stt::guard::{self, Guard, Judged, Loudness};

/// Positions of the encoder in a second of audio.
const POSITIONS_PER_S: usize = 50;
/// The window that models are trained on, 30 s.
const FULL_WINDOW: usize = 1500;
/// Few distinct sizes mean few compute graphs.
const WINDOW_STEP: usize = 64;
/// whisper.cpp gives no text for clips under a second.
const SHORTEST_CLIP: usize = 16_800;
/// Zeros after the speech, 150 ms: the last word is cut without them.
const TAIL: usize = 2_400;
const RATE: usize = 16_000;

/// The weights, shared by all workers.
pub(crate) struct Model {
    context: WhisperContext,
    config: WhisperConfig,
    /// Flags per language: `set_language` leaks a C string at each call, so that it is called once per language.
    params: Mutex<HashMap<&'static str, FullParams<'static, 'static>>>,
}

impl Model {
    /// Reads the file; blocking.
    pub fn load(path: &Path, config: &WhisperConfig) -> Result<Self, String> {
        // whisper.cpp writes to stderr otherwise.
        whisper_rs::install_logging_hooks();
        let mut parameters = WhisperContextParameters::new();
        parameters.use_gpu(config.gpu).flash_attn(true);
        let context = WhisperContext::new_with_params(path, parameters).map_err(|error| error.to_string())?;
        Ok(Self { context, config: config.clone(), params: Mutex::default() })
    }

    /// The model's name of a language, `Err` with the reason when it has none.
    fn language(&self, asked: &str) -> Result<&'static str, String> {
        let code = asked.split(['-', '_']).next().unwrap_or_default().to_lowercase();
        let code = if code.is_empty() { "en" } else { &code };
        if !self.context.is_multilingual() && code != "en" {
            return Err(format!("the model {} knows English only, not {asked:?}", self.config.model));
        }
        // A name with a zero byte would panic inside.
        let id = code.chars().all(|c| c.is_ascii_alphabetic()).then(|| get_lang_id(code)).flatten();
        id.and_then(get_lang_str).ok_or_else(|| format!("Whisper does not know the language {asked:?}"))
    }

    fn params(&self, language: &'static str) -> FullParams<'static, 'static> {
        let mut known = self.params.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(language).or_insert_with(|| self.make_params(language)).clone()
    }

    fn make_params(&self, language: &'static str) -> FullParams<'static, 'static> {
        let mut params = FullParams::new(SamplingStrategy::Greedy { best_of: 1 });
        if self.context.is_multilingual() {
            params.set_language(Some(language));
        }
        params.set_n_threads(self.config.threads as i32);
        params.set_temperature(0.0);
        // Each step of temperature would decode the clip again.
        params.set_temperature_inc(0.0);
        params.set_single_segment(true);
        params.set_no_context(true);
        params.set_no_timestamps(true);
        params.set_suppress_blank(true);
        params.set_suppress_nst(true);
        params.set_print_special(false);
        params.set_print_progress(false);
        params.set_print_realtime(false);
        params.set_print_timestamps(false);
        params
    }
}

/// The encoder's window for a clip, in positions: all of the audio and a margin, since audio beyond it is lost and a
/// window without spare positions makes models loop.
pub(crate) fn window_for(samples: usize, margin: usize, least: usize) -> usize {
    let speech = (samples * POSITIONS_PER_S).div_ceil(RATE);
    (speech + margin).next_multiple_of(WINDOW_STEP).max(least).min(FULL_WINDOW)
}

/// A worker's part: one state, made when the first clip comes.
pub(crate) struct ModelDecoder {
    model: Arc<Model>,
    state: Option<WhisperState>,
    /// The clip as floats, padded; kept to be refilled.
    samples: Vec<f32>,
}

/// What came out of one run.
struct Run {
    text: String,
    /// Mean over the text tokens; `None` without any.
    log_probability: Option<f32>,
    /// The token cap ended it: it may be a loop.
    capped: bool,
}

impl ModelDecoder {
    pub fn new(model: Arc<Model>) -> Self {
        Self { model, state: None, samples: Vec::new() }
    }

    /// Makes `samples` of what the model is to see.
    fn show(&mut self, clip: &[i16], zeros: usize) {
        self.samples.clear();
        self.samples.extend(clip.iter().map(|&s| f32::from(s) / 32768.0));
        self.samples.resize((self.samples.len() + zeros + TAIL).max(SHORTEST_CLIP), 0.0);
    }

    fn run(
        &mut self,
        language: &'static str,
        seconds: f32,
        window: usize,
        abort: &Arc<AtomicBool>,
    ) -> Result<Run, DecodeError> {
        let config = &self.model.config;
        let rate = if language == "en" { config.tokens_per_s } else { config.tokens_per_s_other };
        let cap = 12 + (rate * seconds).ceil() as i32;
        let mut params = self.model.params(language);
        params.set_audio_ctx(window as i32);
        params.set_max_tokens(cap);
        // SAFETY: the flag is read only while `full` runs below, and `abort` keeps it alive until then. The helper
        // `set_abort_callback_safe` casts to a wrong type in whisper-rs 0.16.
        unsafe {
            params.set_abort_callback(Some(is_aborted));
            params.set_abort_callback_user_data(Arc::as_ptr(abort).cast_mut().cast());
        }
        if abort.load(Ordering::Relaxed) {
            return Err(DecodeError::Aborted);
        }
        let fresh = || self.model.context.create_state().map_err(|error| DecodeError::Failed(error.to_string()));
        // A state keeps the memory of the largest window it ran: large ones get a state of their own, dropped after.
        let mut large;
        let state = if window > config.pooled_window {
            large = fresh()?;
            &mut large
        } else {
            match &mut self.state {
                Some(state) => state,
                empty => empty.insert(fresh()?),
            }
        };
        if let Err(error) = state.full(params, &self.samples) {
            return Err(match abort.load(Ordering::Relaxed) {
                true => DecodeError::Aborted,
                false => DecodeError::Failed(error.to_string()),
            });
        }
        Ok(read(state, self.model.context.token_eot(), cap))
    }
}

impl Decoder for ModelDecoder {
    fn decode(&mut self, clip: &Clip, abort: &Arc<AtomicBool>) -> Result<Transcript, DecodeError> {
        let language = self.model.language(&clip.language).map_err(DecodeError::Failed)?;
        let model = Arc::clone(&self.model);
        let config = &model.config;
        let loudness = Loudness::of(&clip.samples, SampleRate::HZ_16000, config.guards.voiced_dbfs);
        if !guard::has_speech(&loudness, &config.guards) {
            count(Guard::Silence);
            return Ok(Transcript::default());
        }
        let seconds = loudness.length.as_secs_f32();
        let guards = if clip.answered { config.guards.clone() } else { config.guards.while_speaking() };
        let judge = |run: &Run| guard::judge(&run.text, run.log_probability, &loudness, language, &guards);

        let shown = frame(&clip.samples);
        self.show(&clip.samples[shown.range], shown.zeros);
        let window = window_for(self.samples.len(), config.margin, config.min_audio_ctx);
        let run = self.run(language, seconds, window, abort)?;
        let first = (judge(&run), run);
        let looped = |(judged, run): &(Judged, Run)| run.capped || judged.guard == Some(Guard::Repeats);
        let voiced = loudness.voiced >= Duration::from_millis(config.second_look_voiced_ms);
        let second = if looped(&first) {
            let wider = config.retry_window.min(FULL_WINDOW);
            (wider > window).then_some((Second::Wider, wider))
        } else {
            let unheard = first.0.text.is_empty() && first.0.guard != Some(Guard::Phrase);
            let whole = (unheard && voiced && clip.answered && config.second_look_voiced_ms > 0).then(|| {
                self.show(&clip.samples, 0);
                window_for(self.samples.len(), config.margin, config.min_audio_ctx)
            });
            whole.map(|window| (Second::Whole, window))
        };
        let (judged, run) = match second {
            Some((look, window)) => {
                let again = self.run(language, seconds, window, abort)?;
                let second = (judge(&again), again);
                // Where both loop, the first is the shorter evil: its repeats are already cut.
                let better = !looped(&second) && !second.0.text.is_empty();
                look.count(better);
                if better { second } else { first }
            }
            None => first,
        };
        if let Some(guard) = judged.guard {
            count(guard);
        }
        let confidence = run.log_probability.filter(|_| !judged.text.is_empty()).map(f32::exp);
        Ok(Transcript { text: judged.text, confidence })
    }
}

/// Why a clip is decoded once more. Never more than once.
#[derive(Clone, Copy, Debug)]
enum Second {
    /// The text looped: with a wider window it may not.
    Wider,
    /// Voice, but no believable words: the clip is shown as it came.
    Whole,
}

impl Second {
    fn count(self, better: bool) {
        let why = match self {
            Self::Wider => "looped",
            Self::Whole => "unheard",
        };
        let outcome = if better { "better" } else { "in_vain" };
        metrics::counter!("offhook_stt_second_looks_total", "why" => why, "outcome" => outcome).increment(1);
    }
}

/// The text and the mean log-probability of a finished run.
fn read(state: &WhisperState, end: i32, cap: i32) -> Run {
    let (mut text, mut sum, mut tokens) = (Vec::new(), 0.0, 0);
    for segment in state.as_iter() {
        text.extend_from_slice(segment.to_bytes().unwrap_or_default());
        for token in (0..segment.n_tokens()).filter_map(|n| segment.get_token(n)) {
            let token = token.token_data();
            // Ids from the end of text on are marks, not text.
            if token.id < end {
                sum += token.plog;
                tokens += 1;
            }
        }
    }
    Run {
        text: String::from_utf8_lossy(&text).into_owned(),
        log_probability: (tokens > 0).then(|| sum / tokens as f32),
        capped: tokens >= cap,
    }
}

/// Called by whisper.cpp after the encoder and after each token.
unsafe extern "C" fn is_aborted(flag: *mut c_void) -> bool {
    // SAFETY: `flag` is the `AtomicBool` that `ModelDecoder::run` holds while this can be called.
    unsafe { (*flag.cast::<AtomicBool>()).load(Ordering::Relaxed) }
}

fn count(guard: Guard) {
    metrics::counter!("offhook_stt_guarded_total", "guard" => guard.label()).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_covers_the_clip_with_a_margin_in_few_sizes() {
        assert_eq!(window_for(16_800, 96, 256), 256);
        assert_eq!(window_for(3 * 16_000, 96, 256), 256);
        assert_eq!(window_for(4 * 16_000, 96, 256), 320);
        assert_eq!(window_for(10 * 16_000, 96, 256), 640);
        assert_eq!(window_for(30 * 16_000, 96, 256), 1500);
        for samples in (0..28 * 16_000).step_by(1600) {
            let window = window_for(samples, 96, 256);
            assert!(window * 16_000 >= samples * 50 && (window.is_multiple_of(64) || window == 1500));
        }
    }
}
