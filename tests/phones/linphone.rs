//! A second telephone that shares no code with the first: linphone on the console (belle-sip and mediastreamer, where
//! baresip has libre), with a sound file for a mouth and one for an ear, and orders on its standard input.

use std::fs;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use offhook::media::frame::{SampleRate, level_dbfs};
use offhook::media::wav;

use crate::free_port;
use crate::whole::until;

pub struct Linphone {
    child: Child,
    dir: tempfile::TempDir,
}

impl Linphone {
    /// `says`: 8 kHz, played from the first moment of a call and then silence. `None`: it is not installed.
    pub fn start(user: &str, says: &[i16]) -> Option<Self> {
        if !crate::installed("linphonec") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        // Without the folder of its database its core does not start, and it listens nowhere, without a word.
        fs::create_dir_all(dir.path().join(".local/share/linphone")).expect("a folder");
        let (sip, rtp) = (free_port(), free_port());
        let mut sound = says.to_vec();
        sound.resize(sound.len() + 8000 * 60, 0);
        wav::write(&dir.path().join("mouth.wav"), SampleRate::HZ_8000, &sound).expect("a sound file is written");
        // A machine that has loopback alone is no network to it unless it is told not to look.
        let config = format!(
            "[sip]\nbind_address=127.0.0.1\nsip_port={sip}\nsip_tcp_port=0\nsip_tls_port=0\nauto_net_state_mon=0\n\
             guess_hostname=0\ncontact=sip:{user}@127.0.0.1:{sip}\nmedia_encryption=none\n\n[rtp]\n\
             audio_rtp_port={rtp}\n\n[sound]\nechocancellation=0\n"
        );
        fs::write(dir.path().join("rc"), config).expect("written");
        let log = fs::File::create(dir.path().join("says")).expect("a log");
        let child = Command::new("linphonec")
            .args(["-d", "6", "-l"])
            .arg(dir.path().join("log"))
            .arg("-c")
            .arg(dir.path().join("rc"))
            .env("HOME", dir.path())
            .env_remove("XDG_DATA_HOME")
            .env_remove("XDG_CONFIG_HOME")
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("linphonec starts");
        let mut phone = Self { child, dir };
        let file = |phone: &Self, name: &str| phone.dir.path().join(name).display().to_string();
        let (mouth, ear) = (file(&phone, "mouth.wav"), file(&phone, "ear.wav"));
        // It would name an address of IPv6, if the machine has one, to a peer that it reaches by IPv4.
        phone.order("ipv6 disable");
        phone.order("soundcard use files");
        phone.order(&format!("play {mouth}"));
        phone.order(&format!("record {ear}"));
        Some(phone)
    }

    fn order(&mut self, order: &str) {
        let input = self.child.stdin.as_mut().expect("it is a pipe");
        writeln!(input, "{order}").expect("linphonec takes orders");
    }

    pub fn dial(&mut self, uri: &str) {
        self.order(&format!("call {uri}"));
    }

    pub fn hang_up(&mut self) {
        self.order("terminate");
    }

    pub fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        read("says") + &read("log")
    }

    /// Ends the process; what it has heard from the first moment of its call, 8 kHz.
    pub async fn stop(mut self) -> Vec<i16> {
        self.order("quit");
        until("linphone ends", async || self.child.try_wait().expect("it was started").map(drop)).await;
        let file = fs::read(self.dir.path().join("ear.wav")).unwrap_or_default();
        assert!(file.len() > 44, "linphone wrote no sound: {}", self.log());
        assert_eq!(file[24..28], 8000u32.to_le_bytes(), "samples a second");
        // Its header counts its own 44 bytes as sound.
        file[44..].chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect()
    }
}

impl Drop for Linphone {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Softer than this is silence: noise of codecs and fades.
const AUDIBLE: f32 = -50.0;

/// A recording in figures.
#[derive(Debug)]
pub struct Figures {
    /// From the start of the recording to its first sound.
    pub first: Duration,
    /// All that sounds, in steps of 20 ms, and how loud it is.
    pub sounds: Duration,
    pub dbfs: f32,
}

impl Figures {
    pub fn of(samples: &[i16]) -> Self {
        let frames = || samples.chunks(160).map(level_dbfs);
        let loud: Vec<i16> = samples.chunks(160).filter(|part| level_dbfs(part) > AUDIBLE).flatten().copied().collect();
        let before = frames().take_while(|level| *level <= AUDIBLE).count();
        Self { first: of_frames(before), sounds: of_frames(loud.len().div_ceil(160)), dbfs: level_dbfs(&loud) }
    }
}

/// How long after `from` the sound goes on, until 200 ms of silence begin.
pub fn silent_after(samples: &[i16], from: Duration) -> Duration {
    let from = usize::try_from(from.as_millis()).expect("short") * 8;
    let levels: Vec<f32> = samples[from.min(samples.len())..].chunks(160).map(level_dbfs).collect();
    let silent = |part: &[f32]| part.iter().all(|level| *level <= AUDIBLE);
    of_frames(levels.windows(10).position(silent).unwrap_or(levels.len()))
}

fn of_frames(frames: usize) -> Duration {
    Duration::from_millis(20) * u32::try_from(frames).expect("minutes at most")
}
