//! A peer that says anything at all: datagrams apart by a 0x1E byte, and the same bytes as one stream. Nothing may
//! panic, what is read and printed reads the same again, and an endpoint holds no more than its limits and nothing for
//! ever.

#![no_main]

use std::time::{Duration, Instant};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use offhook::protocol::sip::admission::Trunk;
use offhook::protocol::sip::call::CallCommand;
use offhook::protocol::sip::check::{Framing, Verdict, read};
use offhook::protocol::sip::core::{Limits, Options};
use offhook::protocol::sip::endpoint::{Endpoint, Event, Output};
use offhook::protocol::sip::stream::{Piece, StreamReader};
use offhook::protocol::sip::target::{Target, Transport};

fuzz_target!(|bytes: &[u8]| {
    let now = Instant::now();
    let limits = Limits { max_calls: 4, max_transactions: 16, ..Limits::default() };
    let mut endpoint = Endpoint::new(now, Options { limits, ..Options::default() }, [7; 32]);
    endpoint.set_trunks(vec![Trunk { id: 1, peers: vec!["0.0.0.0/0".parse().expect("a prefix")] }]);
    let udp = Target::new(Transport::Udp, "192.0.2.50:5060".parse().expect("an address"));
    for datagram in bytes.split(|byte| *byte == 0x1e) {
        let datagram = Bytes::copy_from_slice(datagram);
        match read(&datagram, Framing::Datagram) {
            Verdict::Request(request) => {
                let printed = request.to_bytes();
                let Verdict::Request(again) = read(&printed, Framing::Datagram) else { panic!("{printed:?}") };
                assert_eq!(again, request);
            }
            Verdict::Response(response) => {
                let printed = response.to_bytes();
                let Verdict::Response(again) = read(&printed, Framing::Datagram) else { panic!("{printed:?}") };
                assert_eq!(again, response);
            }
            Verdict::Refuse { .. } | Verdict::KeepAlive | Verdict::Drop(_) => {}
        }
        endpoint.on_bytes(now, &udp, &datagram);
    }
    let tcp = Target::new(Transport::Tcp, udp.addr);
    let mut reader = StreamReader::new(4096);
    reader.push(bytes);
    while let Some(piece) = reader.next() {
        match piece {
            Piece::Message(message) => endpoint.on_bytes(now, &tcp, &message),
            Piece::Lost(head, why) => endpoint.on_broken_stream(now, &tcp, &head, why),
            Piece::Ping | Piece::Pong => {}
        }
    }
    let mut at = now;
    let mut answers = true;
    loop {
        while let Some(output) = endpoint.poll() {
            if let Output::Event(Event::Incoming(incoming)) = output {
                // Every other call is answered, so that both ways are walked.
                let command = match answers {
                    true => CallCommand::Answer { body: Bytes::from_static(b"v=0") },
                    false => CallCommand::Ring { body: None },
                };
                answers = !answers;
                endpoint.on_command(at, incoming.call, command);
            }
        }
        let (calls, transactions, _) = endpoint.held();
        assert!(calls <= 4 && transactions <= 32, "{calls} calls, {transactions} transactions");
        let Some(deadline) = endpoint.deadline() else { break };
        at = at.max(deadline);
        assert!(at < now + Duration::from_secs(1000), "something lives for ever");
        endpoint.on_tick(at);
    }
    assert_eq!((endpoint.held().0, endpoint.held().1), (0, 0));
});
