//! The 49 messages of RFC 4475 as datagrams to an endpoint that takes calls from everybody: each gets the answer that
//! the RFC wants from a user agent, and none does harm. The endpoint is no registrar, so a REGISTER that the RFC calls
//! good is one that gets as far as 405.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use offhook::protocol::sip::admission::Trunk;
use offhook::protocol::sip::call::CallCommand;
use offhook::protocol::sip::check::{Framing, Verdict, read};
use offhook::protocol::sip::core::Options;
use offhook::protocol::sip::endpoint::{Endpoint, Event, Output};
use offhook::protocol::sip::stream::StreamReader;
use offhook::protocol::sip::target::{Target, Transport};

/// Name, what comes of it: a status, `call`, `response` (read, and matched with nothing), or `drop`.
const EXPECTED: &[(&str, &str)] = &[
    // 3.1.1: valid
    // Read to the end: it has a To tag, and the dialog is unknown.
    ("wsinv", "481"),
    ("intmeth", "405"),
    ("esc01", "call"),
    ("escnull", "405"),
    ("esc02", "405"),
    ("lwsdisp", "200"),
    ("longreq", "call"),
    ("dblreq", "405"),
    ("semiuri", "200"),
    ("transports", "200"),
    ("mpart01", "405"),
    ("unreason", "response"),
    ("noreason", "response"),
    // 3.1.2: invalid
    ("badinv01", "400"),
    ("clerr", "400"),
    ("ncl", "400"),
    ("scalar02", "400"),
    ("scalarlg", "drop"),
    ("quotbal", "400"),
    ("ltgtruri", "400"),
    ("lwsruri", "400"),
    ("lwsstart", "400"),
    ("trws", "400"),
    ("escruri", "400"),
    // The Date field is of no use to us: ignored, as the RFC allows.
    ("baddate", "call"),
    ("regbadct", "400"),
    // Spaces around an address are read past, as the RFC allows.
    ("badaspec", "200"),
    ("baddn", "400"),
    ("badvers", "505"),
    ("mismatch01", "400"),
    ("mismatch02", "400"),
    ("bigcode", "drop"),
    // 3.2 to 3.4
    ("badbranch", "200"),
    ("insuf", "400"),
    ("unkscm", "416"),
    ("novelsc", "416"),
    ("unksm2", "405"),
    ("bext01", "420"),
    ("invut", "415"),
    ("regaut01", "405"),
    ("multi01", "400"),
    ("mcl01", "400"),
    ("bcast", "response"),
    ("zeromf", "200"),
    ("cparam01", "405"),
    ("cparam02", "405"),
    ("regescrt", "405"),
    ("sdp01", "406"),
    ("inv2543", "call"),
];

fn shared() -> Option<PathBuf> {
    let root = std::env::var_os("OFFHOOK_SHARED")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let folder = root.join("sip/torture");
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: no shared data");
    None
}

fn endpoint(now: Instant) -> Endpoint {
    let mut endpoint = Endpoint::new(now, Options::default(), [7; 32]);
    endpoint.set_trunks(vec![Trunk { id: 1, peers: vec!["0.0.0.0/0".parse().expect("a prefix")] }]);
    endpoint
}

/// What an endpoint makes of a message, in the words of the table.
fn outcome(now: Instant, bytes: &[u8]) -> String {
    let mut endpoint = endpoint(now);
    let source = Target::new(Transport::Udp, "192.0.2.50:5060".parse().expect("an address"));
    endpoint.on_bytes(now, &source, &Bytes::copy_from_slice(bytes));
    let mut answer = None;
    while let Some(output) = endpoint.poll() {
        match output {
            Output::Event(Event::Incoming(incoming)) => {
                endpoint.on_command(now, incoming.call, CallCommand::Refuse { status: 486 });
                answer = Some("call".to_owned());
            }
            Output::Send(send) if answer.is_none() && !send.bytes.starts_with(b"SIP/2.0 100") => {
                let text = String::from_utf8_lossy(&send.bytes).into_owned();
                answer = text.split(' ').nth(1).map(str::to_owned);
            }
            _ => {}
        }
    }
    // Every timer of what came of it runs out, and nothing is left.
    let mut at = now;
    while let Some(deadline) = endpoint.deadline() {
        at = at.max(deadline);
        assert!(at < now + Duration::from_secs(600), "something lives for ever");
        endpoint.on_tick(at);
        while endpoint.poll().is_some() {}
    }
    let (calls, transactions, _) = endpoint.held();
    assert_eq!((calls, transactions), (0, 0));
    answer.unwrap_or_else(|| match read(&Bytes::copy_from_slice(bytes), Framing::Datagram) {
        Verdict::Response(_) => "response".into(),
        _ => "drop".into(),
    })
}

#[test]
fn each_torture_message_gets_the_answer_that_the_rfc_wants() {
    let Some(folder) = shared() else { return };
    let mut wrong = Vec::new();
    for (name, expected) in EXPECTED {
        let bytes = std::fs::read(folder.join(format!("{name}.dat"))).expect("the message is there");
        let got = outcome(Instant::now(), &bytes);
        if got != *expected {
            wrong.push(format!("{name}: {got}, not {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let files = std::fs::read_dir(&folder).expect("the folder is there");
    let messages =
        files.filter(|file| file.as_ref().is_ok_and(|file| file.path().extension().is_some_and(|e| e == "dat")));
    assert_eq!(messages.count(), EXPECTED.len(), "every message is in the table");
}

#[test]
fn torture_messages_cut_short_or_changed_do_no_harm() {
    let Some(folder) = shared() else { return };
    let now = Instant::now();
    let source = Target::new(Transport::Udp, "192.0.2.50:5060".parse().expect("an address"));
    for (name, _) in EXPECTED {
        let bytes = std::fs::read(folder.join(format!("{name}.dat"))).expect("the message is there");
        let mut endpoint = endpoint(now);
        let step = (bytes.len() / 60).max(1);
        for at in (0..bytes.len()).step_by(step) {
            let mut changed = bytes.clone();
            changed[at] ^= 0x55;
            let mut lost = bytes.clone();
            lost.remove(at);
            for variant in [&bytes[..at], &changed, &lost] {
                endpoint.on_bytes(now, &source, &Bytes::copy_from_slice(variant));
                let mut reader = StreamReader::new(8192);
                reader.push(variant);
                while reader.next().is_some() {}
            }
        }
    }
}

/// The ideas of RFC 4475 in words of our own, for whoever has not its messages.
#[test]
fn what_rfc_4475_is_about_holds_without_its_messages() {
    let message = |start: &str, fields: &str, body: &str| {
        let cseq = start.split(' ').next().unwrap_or_default();
        let base = format!(
            "Via: SIP/2.0/UDP 192.0.2.50;branch=z9hG4bKown\nFrom: <sip:a@example.net>;tag=1\nTo: <sip:b@example.org>\n\
             Call-ID: own\nCSeq: 9 {cseq}\n"
        );
        format!("{start}\n{base}{fields}\n{body}").replace('\n', "\r\n")
    };
    let invite = "INVITE sip:b@example.org SIP/2.0";
    for (text, expected) in [
        (message(invite, "m: \"x\" <sip:a@h>; p\n  = \"1\" ;\n q = 0.33\nk : \n timer\n", ""), "call"),
        (message(invite, "X-N\u{ef}: 1\n", ""), "400"),
        (message("OPTIONS sip:%62;x@example.org SIP/2.0", "", ""), "200"),
        (message("!odd+Method~ sip:b@example.org SIP/2.0", "", ""), "405"),
        (message("INVITE sip:b @example.org SIP/2.0", "", ""), "400"),
        (message("INVITE sip:b@example.org SIP/2.1", "", ""), "505"),
        (message("INVITE urn:service:sos SIP/2.0", "", ""), "416"),
        (message(invite, "Contact: <sip:a@h>;;\n", ""), "400"),
        (message(invite, "Contact: sip:a@h?x=y\n", ""), "400"),
        (message(invite, "l: 50\n", "v=0"), "400"),
        (message(invite, "l: -1\n", "v=0"), "400"),
        (message(invite, "l: 1\nl: 1\n", "v=0"), "400"),
        (message(invite, "To: <sip:c@example.org>\n", ""), "400"),
        (message(invite, "Max-Forwards: 256\n", ""), "400"),
        (message(invite, "Require: no.such.thing\n", ""), "420"),
        (message(invite, "Content-Type: text/x-own\n", "body"), "415"),
        (message(invite, "Accept: text/plain\n", ""), "406"),
        ("SIP/2.0 700 Too much\r\n\r\n".into(), "drop"),
        ("SIP/2.0 99999999999999999999 x\r\n\r\n".into(), "drop"),
        ("INVITE sip:b@example.org SIP/2.0\r\nl: 0\r\n\r\n".into(), "drop"),
        ("\0\0\0\0".into(), "drop"),
        ("\r\n\r\n".into(), "drop"),
    ] {
        assert_eq!(outcome(Instant::now(), text.as_bytes()), expected, "{text}");
    }
    let mut latin1 = message(invite, "Subject: ?\n", "").into_bytes();
    let at = latin1.iter().position(|byte| *byte == b'?').expect("it is there");
    latin1[at] = 0xe9;
    assert_eq!(outcome(Instant::now(), &latin1), "call");
}
