//! Server-sent events (HTML living standard §9.2) as speech and language servers send them: bytes in, the `data` of
//! whole events out. Event names, ids and retry times are left out: these APIs say what an event is inside its data.
//! Written here because a peer's bytes must neither stall the stream nor fill memory: bytes that are not UTF-8 are
//! replaced, an event has a greatest length, a lone CR ends a line at once, and an event that the end of the body cut
//! short of its empty line still comes out.

/// The longest event: its data and the line being read. Far above any token or piece of audio.
pub const EVENT_BYTES: usize = 1024 * 1024;

/// The peer sends something else than events. Close the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event over {EVENT_BYTES} bytes")]
pub struct EventTooLong;

#[derive(Debug, Default)]
pub struct SseParser {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    after_cr: bool,
    after_first_line: bool,
}

impl SseParser {
    /// Takes bytes cut anywhere and appends the data of each event that they complete.
    pub fn push(&mut self, mut bytes: &[u8], events: &mut Vec<String>) -> Result<(), EventTooLong> {
        while let Some(&first) = bytes.first() {
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|&b| b == b'\n' || b == b'\r');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            if self.line.len() + self.data.len() + part.len() > EVENT_BYTES {
                return Err(EventTooLong);
            }
            self.line.extend_from_slice(part);
            let Some(end) = end else { return Ok(()) };
            self.after_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            events.extend(self.end_line());
        }
        Ok(())
    }

    /// The body has ended: the event that still lacks its empty line, if there is one. It may be cut.
    pub fn finish(&mut self) -> Option<String> {
        self.end_line().or_else(|| self.end_line())
    }

    fn end_line(&mut self) -> Option<String> {
        let mut line = std::mem::take(&mut self.line);
        let text = match line.strip_prefix(b"\xef\xbb\xbf") {
            Some(rest) if !self.after_first_line => rest,
            _ => &line,
        };
        self.after_first_line = true;
        if text.is_empty() {
            let data = std::mem::take(&mut self.data);
            return std::mem::take(&mut self.has_data).then(|| String::from_utf8_lossy(&data).into_owned());
        }
        if let Some(value) = text.strip_prefix(b"data:").or((text == b"data").then_some(b"")) {
            if std::mem::replace(&mut self.has_data, true) {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
        }
        line.clear();
        self.line = line;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "\u{feff}: привіт\r\n\r\ndata: {\"слово\":\"так\"}\r\n\r\nevent: x\ndata:one\ndata: two\n\nid: 1\rdata: три\r\r:\n\nretry: 5\n\ndata\n\ndata: [DONE]\n\n";
    const EVENTS: [&str; 5] = ["{\"слово\":\"так\"}", "one\ntwo", "три", "", "[DONE]"];

    fn parse(pieces: &[&[u8]]) -> Vec<String> {
        let (mut parser, mut events) = (SseParser::default(), Vec::new());
        for piece in pieces {
            parser.push(piece, &mut events).expect("short events");
        }
        events.extend(parser.finish());
        events
    }

    #[test]
    fn events_are_the_same_however_the_bytes_are_cut() {
        let bytes = STREAM.as_bytes();
        for cut in 0..=bytes.len() {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(parse(&[a, b]), EVENTS, "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(parse(&single), EVENTS);
    }

    #[test]
    fn an_event_without_its_empty_line_comes_out_at_the_end() {
        assert_eq!(parse(&[b"data: a\n\ndata: b"]), ["a", "b"]);
        assert_eq!(parse(&[b"data: a\n\ndata: b\n"]), ["a", "b"]);
        assert_eq!(parse(&[b""]), [""; 0]);
        assert_eq!(parse(&[b": only a comment"]), [""; 0]);
    }

    #[test]
    fn an_event_after_a_lone_cr_does_not_wait_for_the_next_byte() {
        let (mut parser, mut events) = (SseParser::default(), Vec::new());
        parser.push(b"data: a\r\r", &mut events).expect("short");
        assert_eq!(events, ["a"]);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced_and_reading_goes_on() {
        assert_eq!(parse(&[b"data: a\xff\n\ndata: b\n\n"]), ["a\u{fffd}", "b"]);
    }

    #[test]
    fn an_endless_line_and_an_endless_event_are_refused() {
        let mut parser = SseParser::default();
        let long = vec![b'x'; EVENT_BYTES];
        assert_eq!(parser.push(&long, &mut Vec::new()), Ok(()));
        assert_eq!(parser.push(b"x", &mut Vec::new()), Err(EventTooLong));

        let mut parser = SseParser::default();
        let line = [b"data: ".as_slice(), &[b'y'; 1000], b"\n"].concat();
        let refused = (0..2 * EVENT_BYTES / 1000).any(|_| parser.push(&line, &mut Vec::new()).is_err());
        assert!(refused);
    }
}
