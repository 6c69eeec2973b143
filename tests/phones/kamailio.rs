//! A registrar and proxy as a PBX has one: Kamailio, accounts with one password, locations in memory.

use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::common::PATIENCE;

pub const PASSWORD: &str = "s3cret";

pub struct Kamailio {
    child: Child,
    dir: tempfile::TempDir,
    pub addr: SocketAddr,
}

impl Kamailio {
    /// `None`: it is not installed.
    pub async fn start(port: u16) -> Option<Self> {
        if !crate::installed("kamailio") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let config = CONFIG.replace("@ADDR@", &addr.to_string()).replace("@PASSWORD@", PASSWORD);
        let file = dir.path().join("kamailio.cfg");
        fs::write(&file, config).expect("written");
        let log = fs::File::create(dir.path().join("log")).expect("a log");
        let child = Command::new("kamailio")
            .args(["-DD", "-E", "-m", "32", "-M", "8", "-f"])
            .arg(&file)
            .arg("-Y")
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("kamailio starts");
        let this = Self { child, dir, addr };
        timeout(PATIENCE, this.answers()).await.unwrap_or_else(|_| panic!("kamailio is silent: {}", this.log()));
        Some(this)
    }

    /// Until it answers OPTIONS.
    async fn answers(&self) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let own = socket.local_addr().expect("bound");
        let mut buffer = [0; 2048];
        loop {
            let options = format!(
                "OPTIONS sip:{addr} SIP/2.0\r\nVia: SIP/2.0/UDP {own};branch=z9hG4bK{port}\r\nFrom: <sip:t@{own}>;tag=1\r\n\
                 To: <sip:{addr}>\r\nCall-ID: up-{port}\r\nCSeq: 1 OPTIONS\r\nMax-Forwards: 5\r\nContent-Length: 0\r\n\r\n",
                addr = self.addr,
                port = own.port(),
            );
            let _ = socket.send_to(options.as_bytes(), self.addr).await;
            if let Ok(Ok((length, _))) = timeout(Duration::from_millis(100), socket.recv_from(&mut buffer)).await
                && buffer[..length].starts_with(b"SIP/2.0 200")
            {
                return;
            }
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Ends it and its workers.
    pub async fn stop(mut self) {
        self.end_group();
        let _ = timeout(Duration::from_secs(10), self.child.wait()).await;
    }

    fn end_group(&self) {
        // The group: it has workers of its own. Ended already, it has no id any more.
        if let Some(pid) = self.child.id() {
            let _ = std::process::Command::new("kill").args(["-KILL", "--", &format!("-{pid}")]).status();
        }
    }
}

impl Drop for Kamailio {
    fn drop(&mut self) {
        self.end_group();
    }
}

const CONFIG: &str = r#"#!KAMAILIO
debug=1
log_stderror=yes
children=1
disable_tcp=yes
auto_aliases=no
listen=udp:@ADDR@
mpath="/usr/lib/x86_64-linux-gnu/kamailio/modules/:/usr/lib/aarch64-linux-gnu/kamailio/modules/"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "rr.so"
loadmodule "pv.so"
loadmodule "maxfwd.so"
loadmodule "usrloc.so"
loadmodule "registrar.so"
loadmodule "textops.so"
loadmodule "siputils.so"
loadmodule "auth.so"
request_route {
  if (!mf_process_maxfwd_header("10")) { sl_send_reply("483", "Too Many Hops"); exit; }
  if (is_method("REGISTER")) {
    if (!pv_www_authenticate("pbx", "@PASSWORD@", "0")) { auth_challenge("pbx", "0"); exit; }
    save("location");
    exit;
  }
  if (is_method("OPTIONS")) { sl_send_reply("200", "OK"); exit; }
  if (has_totag()) {
    if (loose_route()) { t_relay(); exit; }
    if (is_method("ACK")) { if (t_check_trans()) { t_relay(); } exit; }
    sl_send_reply("404", "Not Here");
    exit;
  }
  if (is_method("CANCEL")) { if (t_check_trans()) { t_relay(); } exit; }
  t_check_trans();
  record_route();
  if ($rU == "busy") { sl_send_reply("486", "Busy Here"); exit; }
  if (!lookup("location")) { sl_send_reply("404", "Not Found"); exit; }
  t_relay();
}
"#;
