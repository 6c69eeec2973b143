//! Agents on real telephones: the whole program, baresip and linphone as telephones and Kamailio as the registrar and proxy that a PBX
//! would be, each a process of its own on loopback. `scripts/setup.sh --tests` installs them.

#[path = "common/stores.rs"]
mod stores;

mod common;

#[path = "common/whole.rs"]
mod whole;

#[path = "phones/accounts.rs"]
mod accounts;
#[path = "phones/baresip.rs"]
mod baresip;
#[path = "phones/caller.rs"]
mod caller;
#[path = "phones/handing.rs"]
mod handing;
#[path = "phones/holding.rs"]
mod holding;
#[path = "phones/ipv6.rs"]
mod ipv6;
#[path = "kamailio/process.rs"]
mod kamailio;
#[path = "phones/linphone.rs"]
mod linphone;
#[path = "phones/survival.rs"]
mod survival;
#[path = "phones/talks.rs"]
mod talks;

use std::net::{SocketAddr, UdpSocket};

use offhook::config::Config;

/// SIP and media on loopback, quick to give up and to come back.
pub fn on_loopback(config: &mut Config) {
    config.sip.listen = "127.0.0.1:0".parse().expect("an address");
    config.sip.rtp.listen = "127.0.0.1".parse().expect("an address");
    config.sip.rtp.port_rest_s = 0;
    config.sip.keep_alive_s = 1;
    config.sip.limits.t1_ms = 100;
}

/// A port that nobody listens on. Somebody else may take it before it is used: the processes say so and the test fails.
pub fn free_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().map(|addr: SocketAddr| addr.port()).expect("bound")
}

pub fn free_tcp_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().map(|addr| addr.port()).expect("bound")
}

/// Whether a program is installed; says so where it is not.
pub fn installed(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|paths| std::env::split_paths(&paths).any(|folder| folder.join(program).is_file()));
    if !found {
        println!("skipped: no {program}");
    }
    found
}
