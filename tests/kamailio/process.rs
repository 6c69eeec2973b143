//! A registrar and proxy as a PBX would be: Kamailio with `kamailio.cfg`, for the tests that need one. Ended with its workers
//! when it is dropped.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;

/// Of every account.
pub const PASSWORD: &str = "right";
const LIMIT: Duration = Duration::from_secs(30);

pub struct Kamailio {
    process: Child,
    pub addr: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Kamailio {
    /// `None`: it is not installed, which is said.
    pub async fn start(port: u16) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kamailio/kamailio.cfg");
        let started = Command::new("kamailio")
            .arg("-f")
            .arg(config)
            .args(["-DD", "-E", "-m", "32", "-M", "4"])
            .args(["-l", &format!("udp:{addr}"), "-l", &format!("tcp:{addr}")])
            .arg("-Y")
            .arg(folder.path())
            .arg("-w")
            .arg(folder.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(process) = started else {
            println!("skipped: no kamailio");
            return None;
        };
        let kamailio = Self { process, addr, _folder: folder };
        timeout(LIMIT, kamailio.answers()).await.expect("kamailio answers");
        Some(kamailio)
    }

    async fn answers(&self) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let (addr, own) = (self.addr, socket.local_addr().expect("bound"));
        let options = format!(
            "OPTIONS sip:{addr} SIP/2.0\r\nVia: SIP/2.0/UDP {own};branch=z9hG4bKup;rport\r\nFrom: <sip:t@x>;tag=1\r\n\
             To: <sip:t@x>\r\nCall-ID: up\r\nCSeq: 1 OPTIONS\r\nMax-Forwards: 9\r\nContent-Length: 0\r\n\r\n"
        );
        let mut buffer = [0; 2048];
        loop {
            let _ = socket.send_to(options.as_bytes(), addr).await;
            if let Ok(Ok(_)) = timeout(Duration::from_millis(100), socket.recv_from(&mut buffer)).await {
                return;
            }
        }
    }
}

impl Drop for Kamailio {
    fn drop(&mut self) {
        // The group: it has workers of its own.
        let group = format!("-{}", self.process.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.process.wait();
    }
}
