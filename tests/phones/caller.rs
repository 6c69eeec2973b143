//! A caller that the test moves by hand: what it says, and what it leaves unsaid.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{interval, timeout};

use crate::common::PATIENCE;

/// A call that was answered and acknowledged.
pub struct Caller {
    sip: UdpSocket,
    rtp: UdpSocket,
    /// Where the agent's media is.
    media: SocketAddr,
}

impl Caller {
    /// Calls `uri` (`sip:line@address`) with these header fields beside the usual ones.
    pub async fn call(uri: &str, more: &str) -> Self {
        let bind = async || UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let (sip, rtp) = (bind().await, bind().await);
        let to: SocketAddr = uri.split_once('@').expect("an address").1.parse().expect("an address");
        let own = sip.local_addr().expect("bound");
        let sdp = format!(
            "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio {} RTP/AVP 0\r\n",
            rtp.local_addr().expect("bound").port()
        );
        let head = |method: &str, to: &str| {
            format!(
                "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {own};branch=z9hG4bK{method};rport\r\n\
                 From: <sip:+380501234567@{own}>;tag=hand\r\nTo: {to}\r\nCall-ID: {own}\r\nCSeq: 1 {method}\r\n\
                 Contact: <sip:hand@{own}>\r\nMax-Forwards: 9\r\n"
            )
        };
        let invite = format!(
            "{}{more}Content-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{sdp}",
            head("INVITE", &format!("<{uri}>")),
            sdp.len()
        );
        sip.send_to(invite.as_bytes(), to).await.expect("sent");
        let answer = hear(&sip, "SIP/2.0 200").await;
        let line =
            |start: &str| answer.lines().find_map(|line| line.strip_prefix(start)).expect("it is there").to_owned();
        let ack = format!("{}Content-Length: 0\r\n\r\n", head("ACK", &line("To: ")));
        sip.send_to(ack.as_bytes(), to).await.expect("sent");
        let port = line("m=audio ").split(' ').next().and_then(|port| port.parse().ok()).expect("a port");
        Self { sip, rtp, media: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    /// Waits for a request of this method; says nothing.
    pub async fn hear(&self, method: &str) -> String {
        hear(&self.sip, method).await
    }

    /// Answers 200.
    pub async fn answer(&self, request: &str, to: SocketAddr) {
        let kept = ["Via: ", "From: ", "To: ", "Call-ID: ", "CSeq: "];
        let lines: Vec<&str> = request.lines().filter(|line| kept.iter().any(|name| line.starts_with(name))).collect();
        let answer = format!("SIP/2.0 200 OK\r\n{}\r\nContent-Length: 0\r\n\r\n", lines.join("\r\n"));
        self.sip.send_to(answer.as_bytes(), to).await.expect("sent");
    }

    /// Sends silence in packets of 20 ms for as long as it is polled.
    pub async fn send_silence(&self) {
        let mut ticks = interval(Duration::from_millis(20));
        let mut packet = [0xFF; 172];
        for number in 0u32.. {
            ticks.tick().await;
            packet[..2].copy_from_slice(&[0x80, 0]);
            packet[2..4].copy_from_slice(&(number as u16).to_be_bytes());
            packet[4..8].copy_from_slice(&(number * 160).to_be_bytes());
            packet[8..12].copy_from_slice(b"hand");
            let _ = self.rtp.send_to(&packet, self.media).await;
        }
    }
}

async fn hear(socket: &UdpSocket, start: &str) -> String {
    let mut buffer = [0; 8192];
    let heard = timeout(PATIENCE * 3, async {
        loop {
            let (length, _) = socket.recv_from(&mut buffer).await.expect("received");
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.starts_with(start) {
                return text;
            }
        }
    });
    heard.await.unwrap_or_else(|_| panic!("no {start}"))
}
