//! Where messages begin and end on TCP and TLS (RFC 3261 §18.3), with keep-alives (RFC 5626 §3.5.1) and a bound on what
//! one connection may hold. A message that cannot be read does not close the connection as long as the next one can be
//! found.

use bytes::{Bytes, BytesMut};

use crate::protocol::sip::message::end_of_head;

/// What came out of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// One whole message, as `check::read` takes it.
    Message(Bytes),
    /// Two line ends: answer with one.
    Ping,
    /// One line end, the answer to ours.
    Pong,
    /// Nobody can tell where the next message begins. Answer 400 to what `Bytes` holds if it is a request, then close.
    Lost(Bytes, &'static str),
}

/// Bytes of one connection that are no whole message yet.
pub struct StreamReader {
    buffer: BytesMut,
    max_bytes: usize,
    lost: bool,
    /// Bytes that belonged to no message and were skipped.
    skipped: usize,
}

impl StreamReader {
    /// A message longer than `max_bytes` ends the connection.
    pub fn new(max_bytes: usize) -> Self {
        Self { buffer: BytesMut::new(), max_bytes, lost: false, skipped: 0 }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        if !self.lost {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next piece; `None` until more bytes come.
    pub fn next(&mut self) -> Option<Piece> {
        loop {
            if self.lost {
                return None;
            }
            match &self.buffer[..] {
                [] | [b'\r'] | [b'\r', b'\n', b'\r'] => return None,
                [b'\r', b'\n', b'\r', b'\n', ..] => {
                    let _ = self.buffer.split_to(4);
                    return Some(Piece::Ping);
                }
                [b'\r', b'\n', ..] => {
                    let _ = self.buffer.split_to(2);
                    return Some(Piece::Pong);
                }
                [b'\n', ..] => {
                    let _ = self.buffer.split_to(1);
                    continue;
                }
                _ => {}
            }
            let Some(line_end) = self.buffer.iter().position(|&byte| byte == b'\n') else {
                return (self.buffer.len() > self.max_bytes).then(|| self.lose("a start line without an end"));
            };
            if !is_start_line(&self.buffer[..line_end]) {
                // The rest of a body whose length was wrong, or noise: look for the next start line.
                self.skipped += line_end + 1;
                let _ = self.buffer.split_to(line_end + 1);
                if self.skipped > self.max_bytes {
                    return Some(self.lose("no message in the stream"));
                }
                continue;
            }
            let Some((_, body)) = end_of_head(&self.buffer) else {
                return (self.buffer.len() > self.max_bytes).then(|| self.lose("a header without an end"));
            };
            let length = match content_length(&self.buffer[..body]) {
                // RFC 3261 §20.14 wants it on streams; without one there is no body that could be told from the next
                // message, and `is_start_line` finds that one.
                Ok(length) => length.unwrap_or(0),
                Err(why) => {
                    let head = self.buffer.split_to(body).freeze();
                    self.lost = true;
                    return Some(Piece::Lost(head, why));
                }
            };
            if body.saturating_add(length) > self.max_bytes {
                let head = self.buffer.split_to(body).freeze();
                self.lost = true;
                return Some(Piece::Lost(head, "a message too large"));
            }
            if self.buffer.len() < body + length {
                return None;
            }
            self.skipped = 0;
            return Some(Piece::Message(self.buffer.split_to(body + length).freeze()));
        }
    }

    fn lose(&mut self, why: &'static str) -> Piece {
        self.lost = true;
        let held = self.buffer.split().freeze();
        Piece::Lost(held, why)
    }
}

/// Every start line has `SIP/` at one of its ends, whatever its version and whatever else is wrong with it.
fn is_start_line(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    let starts = line.get(..4).is_some_and(|head| head.eq_ignore_ascii_case(b"SIP/"));
    let last = line.rsplit(|byte| byte.is_ascii_whitespace()).next().unwrap_or_default();
    starts || (last.len() < line.len() && last.get(..4).is_some_and(|head| head.eq_ignore_ascii_case(b"SIP/")))
}

/// `Ok(None)`: the field is absent. Two that differ, or one that is no number, leave the end of the message open.
fn content_length(head: &[u8]) -> Result<Option<usize>, &'static str> {
    let mut found: Option<usize> = None;
    let mut lines = head.split(|&byte| byte == b'\n').peekable();
    while let Some(line) = lines.next() {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let name = line[..colon].trim_ascii();
        if !(name.eq_ignore_ascii_case(b"Content-Length") || name.eq_ignore_ascii_case(b"l")) {
            continue;
        }
        let mut value = line[colon + 1..].trim_ascii();
        if value.is_empty()
            && let Some(next) = lines.peek()
            && matches!(next.first(), Some(b' ' | b'\t'))
        {
            value = next.trim_ascii();
        }
        let number = std::str::from_utf8(value).ok().and_then(|value| value.parse::<usize>().ok());
        match (number, found) {
            (None, _) => return Err("a Content-Length that is no number"),
            (Some(number), Some(other)) if number != other => return Err("two different Content-Length fields"),
            (number, _) => found = number,
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &[u8] = b"OPTIONS sip:a@b SIP/2.0\r\nContent-Length : 2\r\n\r\nhi";

    fn pieces(reader: &mut StreamReader) -> Vec<Piece> {
        std::iter::from_fn(|| reader.next()).collect()
    }

    #[test]
    fn messages_are_found_however_the_bytes_are_cut() {
        let stream = [b"\r\n\r\n", ONE, b"\r\n", ONE].concat();
        for cut in 1..stream.len() {
            let mut reader = StreamReader::new(1000);
            let mut found = Vec::new();
            for chunk in stream.chunks(cut) {
                reader.push(chunk);
                found.extend(pieces(&mut reader));
            }
            let messages = found.iter().filter(|piece| matches!(piece, Piece::Message(bytes) if bytes == ONE)).count();
            assert_eq!(messages, 2, "cut at {cut}: {found:?}");
        }
        let mut reader = StreamReader::new(1000);
        reader.push(&stream);
        assert_eq!(pieces(&mut reader)[0], Piece::Ping);
    }

    #[test]
    fn a_message_without_content_length_costs_its_body_and_not_the_connection() {
        let mut reader = StreamReader::new(1000);
        reader.push(b"INVITE sip:a@b SIP/2.0\r\nVia: x\r\n\r\nv=0\r\no=- 1 1 IN IP4 a\r\n");
        reader.push(ONE);
        let found = pieces(&mut reader);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[1], Piece::Message(Bytes::from_static(ONE)));
    }

    #[test]
    fn noise_is_skipped_up_to_the_bound() {
        let mut reader = StreamReader::new(1000);
        reader.push(b"GET / HTTP/1.1\r\nHost: x\r\n");
        reader.push(ONE);
        assert_eq!(pieces(&mut reader), [Piece::Message(Bytes::from_static(ONE))]);
        reader.push(&b"noise\n".repeat(200));
        assert!(matches!(pieces(&mut reader)[..], [Piece::Lost(_, "no message in the stream")]));
        reader.push(ONE);
        assert_eq!(reader.next(), None, "a lost stream stays lost");
    }

    #[test]
    fn what_would_need_more_than_the_bound_is_refused_before_it_is_held() {
        let mut reader = StreamReader::new(100);
        reader.push(b"INVITE sip:a@b SIP/2.0\r\nl: 4000000000\r\n\r\n");
        assert!(matches!(reader.next(), Some(Piece::Lost(_, "a message too large"))));
        let mut reader = StreamReader::new(100);
        reader.push(&[b'a'; 101]);
        assert!(matches!(reader.next(), Some(Piece::Lost(..))));
        let mut reader = StreamReader::new(100);
        reader.push(&[b"INVITE sip:a@b SIP/2.0\r\n", &b"X: y\r\n".repeat(20)[..]].concat());
        assert!(matches!(reader.next(), Some(Piece::Lost(_, "a header without an end"))));
    }

    #[test]
    fn a_length_that_says_two_things_ends_the_stream() {
        for length in ["l: 1\r\nContent-Length: 2", "l: -1", "l: x", "l: 99999999999999999999999"] {
            let mut reader = StreamReader::new(1000);
            reader.push(format!("INVITE sip:a@b SIP/2.0\r\n{length}\r\n\r\n").as_bytes());
            assert!(matches!(reader.next(), Some(Piece::Lost(..))), "{length}");
        }
    }
}
