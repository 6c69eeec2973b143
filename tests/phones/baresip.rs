//! A telephone: baresip with a sound file for a mouth, the sound that it got in a file, and orders over TCP.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use offhook::media::frame::SampleRate;
use offhook::media::wav;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::common::PATIENCE;
use crate::whole::until;
use crate::{free_port, free_tcp_port};

pub struct Baresip {
    child: Child,
    orders: TcpStream,
    read: Vec<u8>,
    dir: tempfile::TempDir,
}

/// What a telephone is set to.
pub struct Set<'a> {
    /// The line of its `accounts` file.
    pub account: &'a str,
    /// 8 kHz, played once a call is there and then silence.
    pub says: &'a [i16],
    pub codec: &'a str,
}

impl Baresip {
    /// `None`: it is not installed.
    pub async fn start(set: Set<'_>) -> Option<Self> {
        Self::start_at(set, free_port()).await
    }

    /// On this UDP port of loopback.
    pub async fn start_at(set: Set<'_>, sip: u16) -> Option<Self> {
        Self::start_on(set, SocketAddr::from(([127, 0, 0, 1], sip))).await
    }

    /// On this address, whose family is its only one.
    pub async fn start_on(set: Set<'_>, addr: SocketAddr) -> Option<Self> {
        if !crate::installed("baresip") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        let control = free_tcp_port();
        let mouth = dir.path().join("mouth.wav");
        let mut sound = set.says.to_vec();
        // The call ends with the file.
        sound.resize(sound.len() + 8000 * 60, 0);
        wav::write(&mouth, SampleRate::HZ_8000, &sound).expect("a sound file is written");
        let config = format!(
            "poll_method epoll\nsip_listen {addr}\nnet_interface {}\naudio_source aufile,{}\naudio_player aufile,{}\n\
             audio_srate 8000\naudio_channels 1\nausrc_srate 8000\nauplay_srate 8000\nsnd_path {}\n\
             module_path /usr/lib/baresip/modules\nmodule g711.so\nmodule g722.so\nmodule aufile.so\n\
             module sndfile.so\nmodule_app account.so\nmodule_app menu.so\nmodule ctrl_tcp.so\n\
             ctrl_tcp_listen 127.0.0.1:{control}\n",
            addr.ip(),
            mouth.display(),
            dir.path().join("ear.wav").display(),
            dir.path().display(),
        );
        fs::write(dir.path().join("config"), config).expect("written");
        let account = format!("{};audio_codecs={}\n", set.account, set.codec);
        fs::write(dir.path().join("accounts"), account).expect("written");
        fs::write(dir.path().join("contacts"), "").expect("written");
        fs::write(dir.path().join("uuid"), "").expect("written");
        let log = fs::File::create(dir.path().join("log")).expect("a log");
        let child = Command::new("baresip")
            .arg(if addr.is_ipv4() { "-4" } else { "-6" })
            .arg("-f")
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("baresip starts");
        let connected = async {
            loop {
                match TcpStream::connect(("127.0.0.1", control)).await {
                    Ok(orders) => return orders,
                    Err(_) => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let orders = timeout(PATIENCE, connected).await.expect("baresip listens for orders");
        Some(Self { child, orders, read: Vec::new(), dir })
    }

    async fn order(&mut self, command: &str, params: &str) {
        // A netstring: length, colon, text, comma.
        let order = json!({ "command": command, "params": params }).to_string();
        let order = format!("{}:{order},", order.len());
        self.orders.write_all(order.as_bytes()).await.expect("baresip takes orders");
    }

    /// Waits until it is registered, which it may be before it takes orders: only its log tells.
    pub async fn registered(&self) {
        until("the telephone is registered", async || self.log().contains("200 OK").then_some(())).await;
    }

    pub async fn dial(&mut self, uri: &str) {
        self.order("dial", uri).await;
    }

    pub async fn hold(&mut self) {
        self.order("hold", "").await;
    }

    pub async fn resume(&mut self) {
        self.order("resume", "").await;
    }

    pub async fn hang_up(&mut self) {
        self.order("hangup", "").await;
    }

    /// Waits for an event of this type: `CALL_ESTABLISHED`, `CALL_CLOSED`, `REGISTER_OK`, …
    pub async fn event(&mut self, kind: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            while let Some(message) = self.message() {
                if message["event"] == true && message["type"] == kind {
                    return message;
                }
            }
            let mut chunk = [0; 4096];
            let read = tokio::time::timeout_at(deadline, self.orders.read(&mut chunk)).await;
            let read = read.unwrap_or_else(|_| panic!("no {kind}: {}", self.log())).expect("baresip speaks");
            assert!(read > 0, "baresip is gone: {}", self.log());
            self.read.extend_from_slice(&chunk[..read]);
        }
    }

    fn message(&mut self) -> Option<Value> {
        let colon = self.read.iter().position(|&byte| byte == b':')?;
        let length: usize = std::str::from_utf8(&self.read[..colon]).ok()?.parse().ok()?;
        let whole = colon + 1 + length + 1;
        if self.read.len() < whole {
            return None;
        }
        let message = serde_json::from_slice(&self.read[colon + 1..whole - 1]).unwrap_or_default();
        self.read.drain(..whole);
        Some(message)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// SIGKILL: it says goodbye to nobody.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("it runs");
    }

    /// Ends the process; what it has heard, 8 kHz.
    pub async fn stop(mut self) -> Vec<i16> {
        self.order("quit", "").await;
        let _ = timeout(Duration::from_secs(5), self.child.wait()).await;
        self.heard()
    }

    /// Length of the files of what it has heard so far, one for each call, in bytes.
    pub fn heard_bytes(&self) -> Vec<u64> {
        let lengths = self.ears().into_iter().filter_map(|file| Some(fs::metadata(file).ok()?.len()));
        lengths.collect()
    }

    /// Ends the process; what it has heard on each of its calls, 8 kHz.
    pub async fn stop_all(mut self) -> Vec<Vec<i16>> {
        self.order("quit", "").await;
        let _ = timeout(Duration::from_secs(5), self.child.wait()).await;
        self.ears().into_iter().map(|file| wav::read(&file).expect("a sound file").samples).collect()
    }

    /// In the order of the calls: their names hold the time.
    fn ears(&self) -> Vec<PathBuf> {
        let is_ear = |path: &PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            name.starts_with("dump") && name.ends_with("-dec.wav")
        };
        let files = fs::read_dir(self.dir.path()).expect("its folder");
        let mut files: Vec<PathBuf> = files.filter_map(|file| Some(file.ok()?.path())).filter(is_ear).collect();
        files.sort();
        files
    }

    fn heard(&self) -> Vec<i16> {
        let files = self.ears();
        let Some(file) = files.first() else { panic!("baresip wrote no sound: {}", self.log()) };
        wav::read(file).expect("a sound file").samples
    }
}

/// Root mean square, in a part of the sound from `from_ms` of `ms`.
pub fn loudness(samples: &[i16], from_ms: usize, ms: usize) -> f64 {
    let part = &samples[(from_ms * 8).min(samples.len())..((from_ms + ms) * 8).min(samples.len())];
    let power: f64 = part.iter().map(|&sample| f64::from(sample) * f64::from(sample)).sum();
    (power / part.len().max(1) as f64).sqrt()
}
