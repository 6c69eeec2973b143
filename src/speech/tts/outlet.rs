//! The engine's end of a speech stream: trims both ends, cuts into chunks, measures the first audio.

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::trim::{LeadTrimmer, TailTrimmer};
use super::{SpeechChunk, TtsError};
use crate::media::frame::SampleRate;

/// The stream was dropped: nobody listens, stop the work.
#[derive(Debug)]
pub(crate) struct Gone;

pub(crate) struct Outlet {
    engine: &'static str,
    asked: Instant,
    tx: mpsc::Sender<Result<SpeechChunk, TtsError>>,
    trimmers: Option<(SampleRate, LeadTrimmer, TailTrimmer)>,
    led: Vec<i16>,
    ready: Vec<i16>,
    begun: bool,
}

impl Outlet {
    pub fn new(engine: &'static str, asked: Instant, tx: mpsc::Sender<Result<SpeechChunk, TtsError>>) -> Self {
        Self { engine, asked, tx, trimmers: None, led: Vec::new(), ready: Vec::new(), begun: false }
    }

    /// Whether anything has gone out. Until then another try is unheard.
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// The next samples of the utterance, all at one rate.
    pub async fn say(&mut self, rate: SampleRate, samples: &[i16]) -> Result<(), Gone> {
        let (_, lead, tail) =
            self.trimmers.get_or_insert_with(|| (rate, LeadTrimmer::new(rate), TailTrimmer::new(rate)));
        self.led.clear();
        lead.push(samples, &mut self.led);
        tail.push(&self.led, &mut self.ready);
        self.flush().await
    }

    /// The utterance is over.
    pub async fn finish(&mut self) -> Result<(), Gone> {
        let Some((_, _, tail)) = &mut self.trimmers else { return Ok(()) };
        if self.begun {
            tail.finish(&mut self.ready);
        }
        self.flush().await
    }

    pub async fn fail(&mut self, error: TtsError) {
        // Whoever dropped the stream does not want to know.
        let _ = self.tx.send(Err(error)).await;
    }

    /// Forgets what an attempt that failed before its first sound left behind.
    pub fn restart(&mut self) {
        debug_assert!(!self.begun);
        self.trimmers = None;
        self.ready.clear();
    }

    async fn flush(&mut self) -> Result<(), Gone> {
        let Some((rate, ..)) = self.trimmers else { return Ok(()) };
        // 40 ms: the queue of a stream then holds about a second.
        for samples in self.ready.chunks(2 * rate.frame_len().max(1)) {
            if !self.begun {
                self.begun = true;
                metrics::histogram!("offhook_tts_first_audio_seconds", "engine" => self.engine)
                    .record(self.asked.elapsed().as_secs_f64());
            }
            self.tx.send(Ok(SpeechChunk { rate, samples: samples.to_vec() })).await.map_err(|_| Gone)?;
        }
        self.ready.clear();
        Ok(())
    }
}
