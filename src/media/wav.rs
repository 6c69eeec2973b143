//! WAV files: reading mono 16-bit PCM, and a stereo recorder whose file can be read while it grows and after a crash. It
//! blocks on the disk: use it off the runtime's workers. Other codecs and rates are not converted here.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use hound::{SampleFormat, WavReader, WavSpec, WavWriter};

use crate::media::frame::{Frame, SampleRate};

/// Longest file that is read: one hour at 48 kHz, 345 MB in memory.
const MAX_SAMPLES: u32 = 3600 * 48_000;
/// A WAV file counts its bytes in 32 bits; the recorder stops a little before. At 8 kHz stereo that is 37 hours.
const MAX_BYTES: u64 = u32::MAX as u64 - 4096;

#[derive(Debug, thiserror::Error)]
pub enum WavError {
    /// Missing, unreadable, a full disk.
    #[error("WAV file")]
    Io(#[source] std::io::Error),
    /// Not a WAV file, or a damaged one.
    #[error("not a WAV file that can be read: {0}")]
    Format(String),
    /// Convert the file to mono 16-bit PCM first.
    #[error("{channels} channels of {bits} bits{float}, must be mono 16-bit PCM")]
    Shape { channels: u16, bits: u16, float: &'static str },
    /// Longer than an hour at 48 kHz, or a recording that reached the 4 GB of the format.
    #[error("too long")]
    TooLong,
}

impl From<hound::Error> for WavError {
    fn from(error: hound::Error) -> Self {
        match error {
            hound::Error::IoError(error) => Self::Io(error),
            other => Self::Format(other.to_string()),
        }
    }
}

/// A mono file in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wav {
    pub rate: SampleRate,
    pub samples: Vec<i16>,
}

impl Wav {
    /// The file as 20 ms frames, the last filled up with silence.
    pub fn frames(&self) -> impl Iterator<Item = Frame> + '_ {
        let len = self.rate.frame_len().max(1);
        self.samples.chunks(len).map(move |chunk| {
            let mut samples = chunk.to_vec();
            samples.resize(len, 0);
            Frame { rate: self.rate, samples }
        })
    }
}

/// Reads a mono 16-bit PCM file of any rate.
pub fn read(path: &Path) -> Result<Wav, WavError> {
    read_from(WavReader::open(path)?)
}

/// Reads a mono 16-bit PCM file from memory.
pub fn parse(bytes: &[u8]) -> Result<Wav, WavError> {
    read_from(WavReader::new(bytes)?)
}

fn read_from<R: std::io::Read>(reader: WavReader<R>) -> Result<Wav, WavError> {
    let spec = reader.spec();
    if spec.channels != 1 || spec.bits_per_sample != 16 || spec.sample_format != SampleFormat::Int {
        let float = if spec.sample_format == SampleFormat::Float { " (float)" } else { "" };
        return Err(WavError::Shape { channels: spec.channels, bits: spec.bits_per_sample, float });
    }
    if reader.len() > MAX_SAMPLES {
        return Err(WavError::TooLong);
    }
    let samples = reader.into_samples::<i16>().collect::<Result<Vec<i16>, _>>()?;
    Ok(Wav { rate: SampleRate::new(spec.sample_rate), samples })
}

/// Writes a mono file in one go.
pub fn write(path: &Path, rate: SampleRate, samples: &[i16]) -> Result<(), WavError> {
    let mut writer = WavWriter::create(path, spec(1, rate))?;
    for &sample in samples {
        writer.write_sample(sample)?;
    }
    Ok(writer.finalize()?)
}

fn spec(channels: u16, rate: SampleRate) -> WavSpec {
    WavSpec { channels, sample_rate: rate.hz(), bits_per_sample: 16, sample_format: SampleFormat::Int }
}

/// Writes both sides of a call while it runs: caller left, agent right. Each second of audio the header is brought up to
/// date and all goes to the operating system, so that a killed process leaves all but the last second.
pub struct StereoRecorder {
    writer: WavWriter<BufWriter<File>>,
    rate: SampleRate,
    unflushed: usize,
    bytes: u64,
}

impl StereoRecorder {
    /// Replaces a file that is there. It can be read from the start, empty.
    pub fn create(path: &Path, rate: SampleRate) -> Result<Self, WavError> {
        let mut writer = WavWriter::create(path, spec(2, rate))?;
        writer.flush()?;
        Ok(Self { writer, rate, unflushed: 0, bytes: 0 })
    }

    /// Appends samples that sound at the same time; the shorter side is filled up with silence.
    pub fn write(&mut self, left: &[i16], right: &[i16]) -> Result<(), WavError> {
        let count = left.len().max(right.len());
        self.bytes += 4 * count as u64;
        if self.bytes > MAX_BYTES {
            return Err(WavError::TooLong);
        }
        for n in 0..count {
            self.writer.write_sample(left.get(n).copied().unwrap_or(0))?;
            self.writer.write_sample(right.get(n).copied().unwrap_or(0))?;
        }
        self.unflushed += count;
        if self.unflushed >= self.rate.hz() as usize { self.flush() } else { Ok(()) }
    }

    /// Makes the file on disk whole up to here. Happens by itself once a second of audio.
    pub fn flush(&mut self) -> Result<(), WavError> {
        self.unflushed = 0;
        Ok(self.writer.flush()?)
    }

    /// Completes the file. Dropping does too, but cannot tell of a full disk.
    pub fn finish(self) -> Result<(), WavError> {
        Ok(self.writer.finalize()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder for the test")
    }

    fn stereo(path: &Path) -> Vec<i16> {
        let reader = WavReader::open(path).expect("a readable file");
        assert_eq!(reader.spec(), spec(2, SampleRate::HZ_8000));
        reader.into_samples::<i16>().collect::<Result<_, _>>().expect("whole samples")
    }

    #[test]
    fn what_is_written_is_read_back() {
        let (folder, samples) = (folder(), [0, 1, -1, i16::MAX, i16::MIN]);
        let path = folder.path().join("a.wav");
        write(&path, SampleRate::HZ_22050, &samples).expect("written");
        let wav = read(&path).expect("read");
        assert_eq!(wav, Wav { rate: SampleRate::HZ_22050, samples: samples.to_vec() });
        assert_eq!(parse(&std::fs::read(&path).expect("the file")).expect("parsed"), wav);
    }

    #[test]
    fn frames_are_20_ms_and_the_last_is_filled_up() {
        let wav = Wav { rate: SampleRate::HZ_8000, samples: vec![7; 200] };
        let frames: Vec<Frame> = wav.frames().collect();
        assert_eq!(frames.len(), 2);
        assert_eq!((&frames[1].samples[..40], &frames[1].samples[40..]), (&[7; 40][..], &[0; 120][..]));
    }

    #[test]
    fn files_that_cannot_be_read_say_why() {
        let folder = folder();
        let path = folder.path().join("stereo.wav");
        StereoRecorder::create(&path, SampleRate::HZ_8000).expect("created").finish().expect("finished");
        let error = |path: &Path| read(path).expect_err("not mono 16-bit PCM").to_string();
        assert_eq!(error(&path), "2 channels of 16 bits, must be mono 16-bit PCM");

        let float = WavSpec { sample_format: SampleFormat::Float, bits_per_sample: 32, ..spec(1, SampleRate::HZ_8000) };
        let path = folder.path().join("float.wav");
        WavWriter::create(&path, float).expect("created").finalize().expect("finished");
        assert_eq!(error(&path), "1 channels of 32 bits (float), must be mono 16-bit PCM");

        assert!(matches!(read(&folder.path().join("none.wav")), Err(WavError::Io(_))));
        assert!(matches!(parse(b"RIFF but no more than that"), Err(WavError::Format(_) | WavError::Io(_))));
        assert!(parse(b"").is_err());
    }

    #[test]
    fn a_truncated_file_is_an_error_and_no_panic() {
        let folder = folder();
        let path = folder.path().join("a.wav");
        write(&path, SampleRate::HZ_8000, &[5; 100]).expect("written");
        let bytes = std::fs::read(&path).expect("the file");
        for end in 0..bytes.len() {
            assert!(parse(&bytes[..end]).is_err(), "{end} of {} bytes", bytes.len());
        }
    }

    #[test]
    fn both_sides_stand_side_by_side_and_the_shorter_is_filled_up() {
        let folder = folder();
        let path = folder.path().join("call.wav");
        let mut recorder = StereoRecorder::create(&path, SampleRate::HZ_8000).expect("created");
        recorder.write(&[1, 2, 3], &[-1]).expect("written");
        recorder.write(&[], &[-9]).expect("written");
        recorder.finish().expect("finished");
        assert_eq!(stereo(&path), [1, -1, 2, 0, 3, 0, 0, -9]);
    }

    #[test]
    fn a_recording_that_was_never_finished_holds_all_but_the_last_second() {
        let folder = folder();
        let path = folder.path().join("call.wav");
        let mut recorder = StereoRecorder::create(&path, SampleRate::HZ_8000).expect("created");
        assert_eq!(stereo(&path).len(), 0, "readable from the start");
        for _ in 0..149 {
            recorder.write(&[5; 160], &[-5; 160]).expect("written");
        }
        // Neither finished nor dropped: what a killed process leaves.
        std::mem::forget(recorder);
        let samples = stereo(&path);
        assert!(samples.len() >= 2 * 2 * 8000, "{} samples", samples.len());
        assert!(samples.as_chunks::<2>().0.iter().all(|pair| *pair == [5, -5]));
    }

    #[test]
    fn a_recording_survives_the_abort_of_its_process() {
        const VARIABLE: &str = "OFFHOOK_TEST_RECORD_TO";
        if let Some(path) = std::env::var_os(VARIABLE) {
            let mut recorder = StereoRecorder::create(Path::new(&path), SampleRate::HZ_8000).expect("created");
            for _ in 0..75 {
                recorder.write(&[5; 160], &[-5; 160]).expect("written");
            }
            std::process::abort();
        }
        let folder = folder();
        let path = folder.path().join("call.wav");
        let this_test = "media::wav::tests::a_recording_survives_the_abort_of_its_process";
        let child = std::process::Command::new(std::env::current_exe().expect("this test's binary"))
            .args(["--exact", this_test, "--nocapture"])
            .env(VARIABLE, &path)
            .output()
            .expect("the test binary runs");
        assert!(!child.status.success(), "the child aborts");
        assert!(stereo(&path).len() >= 2 * 8000);
    }
}
