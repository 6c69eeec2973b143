//! Recording while the call runs: a stereo WAV (left the caller, right the agent as the caller heard it) and the call
//! record, written by one thread for all calls over a bounded queue. Nobody waits for it; what does not fit is counted.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::{debug, error, warn};

use crate::call::record::CallRecord;
use crate::media::frame::SampleRate;
use crate::media::wav::StereoRecorder;
use crate::telephony::{CallEnd, CallId};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecordingConfig {
    /// Record both sides; the record (transcript, facts) is written in any case. Off: many countries want the caller
    /// to be told first.
    pub enabled: bool,
    /// Folder; each call gets one of its own, named by its id. 16-bit stereo at 8 kHz is 1.9 MB a minute.
    pub dir: PathBuf,
}

impl Default for RecordingConfig {
    fn default() -> Self {
        Self { enabled: false, dir: "data/recordings".into() }
    }
}

/// Blocks of a second and records: about four seconds of five hundred calls. A full queue means a disk that stands
/// still; audio is dropped and counted, and the record is written whole at the next chance.
const QUEUE: usize = 2048;

enum Job {
    Audio { call: CallId, left: Vec<i16>, right: Vec<i16> },
    Record { call: CallId, json: Vec<u8> },
    Close { call: CallId, done: Option<tokio::sync::oneshot::Sender<()>> },
}

/// The writing thread. Cheap to clone; the thread ends, its files closed, when the last clone and recorder are gone.
#[derive(Clone)]
pub struct Archive {
    jobs: SyncSender<Job>,
    config: RecordingConfig,
}

impl Archive {
    /// Starts the thread. The handle can be joined after every clone and recorder was dropped.
    pub fn start(config: RecordingConfig) -> std::io::Result<(Self, JoinHandle<()>)> {
        std::fs::create_dir_all(&config.dir)?;
        let (jobs, queue) = sync_channel(QUEUE);
        let dir = config.dir.clone();
        let thread = std::thread::Builder::new().name("archive".into()).spawn(move || write_all(&queue, &dir))?;
        Ok((Self { jobs, config }, thread))
    }

    /// Whether sound is kept.
    pub fn records_sound(&self) -> bool {
        self.config.enabled
    }

    /// The folder of one call.
    pub fn folder(&self, call: CallId) -> PathBuf {
        self.config.dir.join(call.to_string())
    }

    /// Keeps the record of a call that is answered before the store has it: in a file until then. A process that dies in
    /// between leaves the file, and the next start reads it.
    pub async fn keep(&self, record: &CallRecord) -> std::io::Result<PathBuf> {
        let folder = self.config.dir.join(KEPT);
        let (path, json) = (folder.join(format!("{}.json", record.id)), serde_json::to_vec(record)?);
        let file = path.clone();
        tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&folder)?;
            // Whole or not at all: a half-written one would be nobody's call.
            let part = file.with_extension("part");
            std::fs::write(&part, json)?;
            std::fs::rename(&part, &file)
        })
        .await
        .map_err(std::io::Error::other)??;
        Ok(path)
    }

    pub fn recorder(&self, call: CallId, start: Instant) -> Recorder {
        Recorder {
            call,
            start,
            archive: self.clone(),
            left: Vec::with_capacity(2 * BLOCK),
            right: Vec::with_capacity(2 * BLOCK),
            written: 0,
            open: true,
        }
    }

    fn send_audio(&self, job: Job) {
        if let Err(TrySendError::Full(_)) = self.jobs.try_send(job) {
            metrics::counter!("offhook_frames_dropped_total", "where" => "recorder").increment(50);
        }
    }
}

/// Beside the calls' folders, which have ids as names.
const KEPT: &str = "not-in-the-store";

/// The records that a dead process kept in files, with their files.
pub fn kept(config: &RecordingConfig) -> Vec<(PathBuf, CallRecord)> {
    let Ok(files) = std::fs::read_dir(config.dir.join(KEPT)) else { return Vec::new() };
    let read = |path: PathBuf| {
        let record = std::fs::read(&path).ok().and_then(|json| serde_json::from_slice(&json).ok())?;
        Some((path, record))
    };
    files
        .flatten()
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|it| it == "json"))
        .filter_map(read)
        .collect()
}

const RATE: SampleRate = SampleRate::HZ_8000;
/// One second: what is handed over at once, and what may still be taken back after an interruption.
const BLOCK: usize = 8000;

/// One call's recorder. Samples are placed by the time at which they are heard.
pub struct Recorder {
    call: CallId,
    start: Instant,
    archive: Archive,
    left: Vec<i16>,
    right: Vec<i16>,
    /// Samples handed over so far: the position of `left[0]` and `right[0]`.
    written: usize,
    open: bool,
}

impl Recorder {
    /// The caller's next samples (8 kHz); they follow one another without gaps.
    pub fn caller(&mut self, samples: &[i16]) {
        if !self.archive.config.enabled {
            return;
        }
        self.left.extend_from_slice(samples);
        if self.left.len() >= 2 * BLOCK {
            self.hand_over(BLOCK);
        }
    }

    /// Agent samples (8 kHz) that begin to be heard at `at`.
    pub fn agent(&mut self, at: Instant, samples: &[i16]) {
        if !self.archive.config.enabled {
            return;
        }
        let place = RATE.samples(at.duration_since(self.start)).saturating_sub(self.written);
        // A sender that runs far ahead of the caller's clock is not believed: the buffer stays bounded.
        if place > 8 * BLOCK {
            return;
        }
        if self.right.len() < place {
            self.right.resize(place, 0);
        }
        self.right.extend_from_slice(samples);
    }

    /// What the caller would have heard after `at` was thrown away.
    pub fn cut(&mut self, at: Instant) {
        let place = RATE.samples(at.duration_since(self.start)).saturating_sub(self.written);
        self.right.truncate(place);
    }

    /// Replaces the record on disk.
    pub fn record(&self, record: &CallRecord) {
        if let Some(job) = self.as_job(record)
            && self.archive.jobs.try_send(job).is_err()
        {
            // The next change, or the end of the call, writes it whole.
            warn!(call = %self.call, "the disk is behind: the call record waits");
        }
    }

    fn as_job(&self, record: &CallRecord) -> Option<Job> {
        match serde_json::to_vec_pretty(record) {
            Ok(json) => Some(Job::Record { call: self.call, json }),
            Err(error) => {
                error!(%error, "call record could not be written as JSON");
                None
            }
        }
    }

    /// Writes what is left and the record as it ended, and closes the files. Resolves when all is on disk; a disk that
    /// stands still for ten seconds is not waited for any longer.
    pub async fn finish(mut self, record: &CallRecord) {
        self.open = false;
        self.hand_over(self.left.len().max(self.right.len()));
        let (done, closed) = tokio::sync::oneshot::channel();
        let last = [self.as_job(record), Some(Job::Close { call: self.call, done: Some(done) })];
        let jobs = self.archive.jobs.clone();
        let call = self.call;
        let write = async {
            // A full queue blocks: that belongs off the runtime's workers. A record is never dropped.
            let sent =
                tokio::task::spawn_blocking(move || last.into_iter().flatten().try_for_each(|job| jobs.send(job)));
            let _ = sent.await;
            let _ = closed.await;
        };
        if tokio::time::timeout(Duration::from_secs(10), write).await.is_err() {
            error!(%call, "the disk stands still: the call record is still on its way");
        }
    }

    fn hand_over(&mut self, samples: usize) {
        if samples == 0 {
            return;
        }
        let take = |side: &mut Vec<i16>| {
            let mut block: Vec<i16> = side.drain(..samples.min(side.len())).collect();
            block.resize(samples, 0);
            block
        };
        let (left, right) = (take(&mut self.left), take(&mut self.right));
        self.written += samples;
        self.archive.send_audio(Job::Audio { call: self.call, left, right });
    }
}

impl Drop for Recorder {
    /// A call that panicked: what it had recorded is kept.
    fn drop(&mut self) {
        if std::mem::take(&mut self.open) {
            self.hand_over(self.left.len().max(self.right.len()));
            let _ = self.archive.jobs.try_send(Job::Close { call: self.call, done: None });
        }
    }
}

fn write_all(queue: &Receiver<Job>, dir: &Path) {
    let mut open: HashMap<CallId, StereoRecorder> = HashMap::new();
    let mut batch = Vec::with_capacity(BATCH);
    while let Ok(job) = queue.recv() {
        batch.push(job);
        batch.extend(queue.try_iter().take(BATCH - 1));
        // Of several records of one call only the newest is worth writing.
        let mut newest: HashMap<CallId, usize> = HashMap::new();
        for (place, job) in batch.iter().enumerate() {
            if let Job::Record { call, .. } = job {
                newest.insert(*call, place);
            }
        }
        for (place, job) in batch.drain(..).enumerate() {
            if let Job::Record { call, .. } = &job
                && newest.get(call) != Some(&place)
            {
                continue;
            }
            write(job, &mut open, dir);
        }
    }
}

/// Jobs looked at together.
const BATCH: usize = 256;

fn write(job: Job, open: &mut HashMap<CallId, StereoRecorder>, dir: &Path) {
    match job {
        Job::Audio { call, left, right } => {
            let file = match open.entry(call) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => match create(dir, call) {
                    Ok(file) => entry.insert(file),
                    Err(error) => {
                        error!(%call, %error, "recording could not be created");
                        return;
                    }
                },
            };
            if let Err(error) = file.write(&left, &right) {
                warn!(%call, %error, "recording could not be written");
            }
        }
        Job::Record { call, json } => {
            if let Err(error) = replace(&dir.join(call.to_string()), &json) {
                error!(%call, %error, "call record could not be written");
            }
        }
        Job::Close { call, done } => {
            if let Some(file) = open.remove(&call)
                && let Err(error) = file.finish()
            {
                warn!(%call, %error, "recording could not be closed");
            }
            if let Some(done) = done {
                let _ = done.send(());
            }
        }
    }
}

fn create(dir: &Path, call: CallId) -> anyhow::Result<StereoRecorder> {
    let folder = dir.join(call.to_string());
    std::fs::create_dir_all(&folder)?;
    Ok(StereoRecorder::create(&folder.join("call.wav"), RATE)?)
}

/// Writes beside and renames, so that a crash leaves the old record or the new one.
fn replace(folder: &Path, json: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let beside = folder.join("record.json.part");
    std::fs::write(&beside, json)?;
    std::fs::rename(beside, folder.join("record.json"))
}

/// The record in a call's folder, which a process left behind when it died: closed, unless the process had just done
/// that itself. It may know more than the store, which is written a moment later.
pub fn close_record(config: &RecordingConfig, call: CallId, at: Timestamp, end: CallEnd) -> Option<CallRecord> {
    let folder = config.dir.join(call.to_string());
    let closed = || -> anyhow::Result<CallRecord> {
        let mut record: CallRecord = serde_json::from_slice(&std::fs::read(folder.join("record.json"))?)?;
        if record.ended.is_none() {
            record.close(at, end);
            replace(&folder, &serde_json::to_vec_pretty(&record)?)?;
        }
        Ok(record)
    };
    // Another host's call, or one whose audio had not come, has no folder here.
    closed().inspect_err(|error| debug!(%call, %error, "no record in the call's folder")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_sound_lands_where_it_was_heard_and_a_cut_takes_back_the_rest() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let config = RecordingConfig { enabled: true, dir: dir.path().into() };
        let (archive, thread) = Archive::start(config).expect("starts");
        let (call, t0) = (CallId::new(), Instant::now());
        let mut recorder = archive.recorder(call, t0);
        let path = archive.folder(call).join("call.wav");
        recorder.caller(&[1; 8000]);
        recorder.agent(t0 + Duration::from_millis(500), &[2; 4000]);
        recorder.cut(t0 + Duration::from_millis(750));
        drop((recorder, archive));
        thread.join().expect("the thread ends when its users are gone");
        let samples: Vec<i16> =
            hound::WavReader::open(path).expect("readable").samples().map(|s| s.expect("whole")).collect();
        let right: Vec<i16> = samples.iter().skip(1).step_by(2).copied().collect();
        assert_eq!(right.len(), 8000);
        assert_eq!(right.iter().position(|&s| s == 2), Some(4000));
        assert_eq!(right.iter().rposition(|&s| s == 2), Some(5999));
    }
}
