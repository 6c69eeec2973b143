//! Requests and responses as lists of header fields, read leniently and printed exactly. What a field must look like is
//! `check.rs`'s business, where a message ends in a stream `stream.rs`'s.

use std::borrow::Cow;
use std::fmt;
use std::fmt::Write as _;

use bytes::Bytes;

use crate::protocol::sip::value::{NameAddr, Via, is_token, split};

/// Lines of one header; the largest torture message has 30.
const MAX_LINES: usize = 300;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    Invite,
    Ack,
    Bye,
    Cancel,
    Options,
    Register,
    Prack,
    Update,
    Info,
    Refer,
    Notify,
    /// Any other token, as written: methods are case-sensitive.
    Other(String),
}

impl Method {
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "INVITE" => Self::Invite,
            "ACK" => Self::Ack,
            "BYE" => Self::Bye,
            "CANCEL" => Self::Cancel,
            "OPTIONS" => Self::Options,
            "REGISTER" => Self::Register,
            "PRACK" => Self::Prack,
            "UPDATE" => Self::Update,
            "INFO" => Self::Info,
            "REFER" => Self::Refer,
            "NOTIFY" => Self::Notify,
            other if is_token(other) => Self::Other(other.to_owned()),
            _ => return None,
        })
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Invite => "INVITE",
            Self::Ack => "ACK",
            Self::Bye => "BYE",
            Self::Cancel => "CANCEL",
            Self::Options => "OPTIONS",
            Self::Register => "REGISTER",
            Self::Prack => "PRACK",
            Self::Update => "UPDATE",
            Self::Info => "INFO",
            Self::Refer => "REFER",
            Self::Notify => "NOTIFY",
            Self::Other(name) => name,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names as we print them; with the compact form, which the reader also takes (RFC 3261 §7.3.3 and IANA's table).
const NAMES: &[(&str, &str)] = &[
    ("Via", "v"),
    ("From", "f"),
    ("To", "t"),
    ("Call-ID", "i"),
    ("Contact", "m"),
    ("Content-Type", "c"),
    ("Content-Length", "l"),
    ("Content-Encoding", "e"),
    ("Supported", "k"),
    ("Subject", "s"),
    ("Refer-To", "r"),
    ("Referred-By", "b"),
    ("Event", "o"),
    ("Session-Expires", "x"),
    ("Allow-Events", "u"),
    ("Accept-Contact", "a"),
    ("Reject-Contact", "j"),
    ("Request-Disposition", "d"),
    ("Identity", "y"),
    ("CSeq", ""),
    ("Max-Forwards", ""),
    ("Route", ""),
    ("Record-Route", ""),
    ("Require", ""),
    ("Proxy-Require", ""),
    ("Unsupported", ""),
    ("Allow", ""),
    ("Accept", ""),
    ("Authorization", ""),
    ("Proxy-Authorization", ""),
    ("WWW-Authenticate", ""),
    ("Proxy-Authenticate", ""),
    ("Expires", ""),
    ("Min-Expires", ""),
    ("Min-SE", ""),
    ("RSeq", ""),
    ("RAck", ""),
    ("Replaces", ""),
    ("Retry-After", ""),
    ("Subscription-State", ""),
    ("User-Agent", ""),
    ("Server", ""),
    ("Reason", ""),
];

fn name_of(text: &str) -> Cow<'static, str> {
    let known = NAMES.iter().find(|(name, compact)| {
        text.eq_ignore_ascii_case(name) || (!compact.is_empty() && text.eq_ignore_ascii_case(compact))
    });
    known.map_or_else(|| Cow::Owned(text.to_owned()), |(name, _)| Cow::Borrowed(*name))
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    name: Cow<'static, str>,
    value: String,
    /// The bytes were no UTF-8 and each became one character: printing turns them back.
    latin1: bool,
}

/// Header fields in their order. Content-Length is not among them: printing writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<Header>);

impl Headers {
    /// The first field of that name (the full one, in any case).
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    pub fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.0.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value.as_str())
    }

    /// The values of a field that may be a list, over all its lines, without empty ones.
    pub fn list(&self, name: &str) -> Vec<&str> {
        self.all(name).flat_map(|value| split(value, ',')).filter(|value| !value.is_empty()).collect()
    }

    /// Whether a list such as Supported or Require names `token`.
    pub fn lists(&self, name: &str, token: &str) -> bool {
        self.list(name).iter().any(|value| value.eq_ignore_ascii_case(token))
    }

    pub fn count(&self, name: &str) -> usize {
        self.all(name).count()
    }

    /// Appends a field. A line break in `value` becomes a space: it would begin another field.
    pub fn push(&mut self, name: &str, value: impl Into<String>) {
        let mut value = value.into();
        if value.contains(['\r', '\n']) {
            value = value.replace(['\r', '\n'], " ");
        }
        self.0.push(Header { name: name_of(name), value, latin1: false });
    }

    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.remove(name);
        self.push(name, value);
    }

    pub fn remove(&mut self, name: &str) {
        self.0.retain(|header| !header.name.eq_ignore_ascii_case(name));
    }

    /// Appends all fields `name` of another message, byte for byte.
    pub fn copy(&mut self, from: &Headers, name: &str) {
        self.0.extend(from.0.iter().filter(|header| header.name.eq_ignore_ascii_case(name)).cloned());
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|header| (&*header.name, header.value.as_str()))
    }

    /// Replaces the first value of Via.
    pub fn set_top_via(&mut self, via: &Via) {
        if let Some(header) = self.0.iter_mut().find(|header| header.name == "Via") {
            header.value = via.to_string();
        }
    }

    fn push_front(&mut self, name: &'static str, value: String) {
        self.0.insert(0, Header { name: Cow::Borrowed(name), value, latin1: false });
    }

    fn print(&self, out: &mut Vec<u8>) {
        for header in &self.0 {
            out.extend_from_slice(header.name.as_bytes());
            out.extend_from_slice(b": ");
            if header.latin1 {
                out.extend(header.value.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')));
            } else {
                out.extend_from_slice(header.value.as_bytes());
            }
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// What requests and responses have alike.
macro_rules! common_fields {
    () => {
        pub fn top_via(&self) -> Option<Via> {
            self.headers.get("Via").and_then(Via::parse)
        }

        pub fn call_id(&self) -> &str {
            self.headers.get("Call-ID").unwrap_or_default()
        }

        pub fn from(&self) -> Option<NameAddr> {
            self.headers.get("From").and_then(NameAddr::parse)
        }

        pub fn to(&self) -> Option<NameAddr> {
            self.headers.get("To").and_then(NameAddr::parse)
        }

        /// Empty for peers of RFC 2543, which need not have one.
        pub fn from_tag(&self) -> String {
            self.from().and_then(|from| from.tag().map(str::to_owned)).unwrap_or_default()
        }

        pub fn to_tag(&self) -> Option<String> {
            self.to().and_then(|to| to.tag().map(str::to_owned))
        }

        /// Number and method.
        pub fn cseq(&self) -> Option<(u32, &str)> {
            read_cseq(self.headers.get("CSeq")?)
        }

        /// The first Contact.
        pub fn contact(&self) -> Option<NameAddr> {
            self.headers.list("Contact").first().and_then(|contact| NameAddr::parse(contact))
        }

        /// A field that holds a number of seconds or a counter; parameters after it are left out.
        pub fn number(&self, name: &str) -> Option<u32> {
            let value = self.headers.get(name)?;
            value.split([';', ' ', '(']).next()?.trim_ascii().parse().ok()
        }

        /// The media type in lower case without parameters, and the body; `None` without a body.
        pub fn content(&self) -> Option<(String, &Bytes)> {
            if self.body.is_empty() {
                return None;
            }
            let media = self.headers.get("Content-Type").unwrap_or("application/sdp");
            Some((media.split(';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase(), &self.body))
        }

        /// The body if it is SDP; of `multipart/mixed` its first SDP part.
        pub fn sdp(&self) -> Option<Bytes> {
            let (media, body) = self.content()?;
            match media.as_str() {
                "application/sdp" => Some(body.clone()),
                "multipart/mixed" | "multipart/alternative" | "multipart/related" => {
                    sdp_part(self.headers.get("Content-Type")?, body)
                }
                _ => None,
            }
        }

        pub fn set_body(&mut self, media: &str, body: Bytes) {
            self.headers.set("Content-Type", media);
            self.body = body;
        }
    };
}

/// `7 INVITE`; the number is below 2^31 (RFC 3261 §8.1.1.5).
pub fn read_cseq(value: &str) -> Option<(u32, &str)> {
    let (number, method) = value.trim_ascii().split_once(char::is_whitespace)?;
    let number = number.parse::<u32>().ok().filter(|number| *number < 1 << 31)?;
    Some((number, method.trim_ascii()))
}

fn sdp_part(content_type: &str, body: &Bytes) -> Option<Bytes> {
    let (_, params) = content_type.split_once(';')?;
    let params = crate::protocol::sip::value::Params::parse(&format!(";{params}"))?;
    let boundary = crate::protocol::sip::value::unquote(params.get("boundary")?);
    let mark = format!("--{boundary}");
    let mut rest = body.clone();
    // More parts than a call has any use for are not looked at.
    for _ in 0..16 {
        let start = find(&rest, mark.as_bytes())? + mark.len();
        rest = rest.slice(start..);
        let end = find(&rest, mark.as_bytes())?;
        let part = rest.slice(..end);
        if let Some(head) = find(&part, b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&part[..head]).to_ascii_lowercase();
            if text.contains("application/sdp") {
                return Some(part.slice(head + 4..));
            }
        }
    }
    None
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: Method,
    /// As written: what it must be depends on who reads it.
    pub uri: String,
    pub headers: Headers,
    pub body: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub reason: String,
    pub headers: Headers,
    pub body: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Request(Request),
    Response(Response),
}

impl Request {
    pub fn new(method: Method, uri: impl Into<String>) -> Self {
        Self { method, uri: uri.into(), headers: Headers::default(), body: Bytes::new() }
    }

    common_fields!();

    pub fn add_via(&mut self, via: &Via) {
        self.headers.push_front("Via", via.to_string());
    }

    pub fn to_bytes(&self) -> Bytes {
        let mut out = Vec::with_capacity(512 + self.body.len());
        out.extend_from_slice(format!("{} {} SIP/2.0\r\n", self.method, self.uri).as_bytes());
        finish(out, &self.headers, &self.body)
    }
}

impl Response {
    /// The answer to `request`, with what RFC 3261 §8.2.6.2 has it copy; the To tag is the caller's to add.
    pub fn answer(request: &Request, status: u16) -> Self {
        let mut headers = Headers::default();
        for name in ["Via", "From", "To", "Call-ID", "CSeq"] {
            headers.copy(&request.headers, name);
        }
        if status == 100 {
            headers.copy(&request.headers, "Timestamp");
        }
        Self { status, reason: reason_of(status).to_owned(), headers, body: Bytes::new() }
    }

    common_fields!();

    /// Adds our tag to To, unless it has one.
    pub fn tag(&mut self, tag: &str) {
        let Some(header) = self.headers.0.iter_mut().find(|header| header.name == "To") else { return };
        if NameAddr::parse(&header.value).is_some_and(|to| to.tag().is_none()) {
            // An address without brackets takes parameters as the field's, so this holds for it too.
            let _ = write!(header.value, ";tag={tag}");
        }
    }

    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub fn is_final(&self) -> bool {
        self.status >= 200
    }

    pub fn to_bytes(&self) -> Bytes {
        let mut out = Vec::with_capacity(512 + self.body.len());
        out.extend_from_slice(format!("SIP/2.0 {} {}\r\n", self.status, self.reason).as_bytes());
        finish(out, &self.headers, &self.body)
    }
}

fn finish(mut out: Vec<u8>, headers: &Headers, body: &[u8]) -> Bytes {
    headers.print(&mut out);
    out.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
    out.extend_from_slice(body);
    Bytes::from(out)
}

/// The usual phrase (RFC 3261 §21 and the extensions we speak).
pub fn reason_of(status: u16) -> &'static str {
    match status {
        100 => "Trying",
        180 => "Ringing",
        181 => "Call Is Being Forwarded",
        182 => "Queued",
        183 => "Session Progress",
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        413 => "Request Entity Too Large",
        415 => "Unsupported Media Type",
        416 => "Unsupported URI Scheme",
        420 => "Bad Extension",
        421 => "Extension Required",
        422 => "Session Interval Too Small",
        423 => "Interval Too Brief",
        480 => "Temporarily Unavailable",
        481 => "Call/Transaction Does Not Exist",
        482 => "Loop Detected",
        483 => "Too Many Hops",
        484 => "Address Incomplete",
        486 => "Busy Here",
        487 => "Request Terminated",
        488 => "Not Acceptable Here",
        489 => "Bad Event",
        491 => "Request Pending",
        493 => "Undecipherable",
        500 => "Server Internal Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Server Time-out",
        505 => "Version Not Supported",
        513 => "Message Too Large",
        600 => "Busy Everywhere",
        603 => "Decline",
        604 => "Does Not Exist Anywhere",
        _ => match status / 100 {
            1 => "Progress",
            2 => "OK",
            3 => "Redirect",
            4 => "Client Error",
            5 => "Server Error",
            _ => "Global Failure",
        },
    }
}

/// A start line and fields as found, with the first fault that was seen.
#[derive(Clone, Debug)]
pub struct Raw {
    pub start: String,
    pub headers: Headers,
    /// The Content-Length values as written.
    pub lengths: Vec<String>,
    pub body: Bytes,
    pub fault: Option<&'static str>,
}

/// Cuts a message into its lines. `bytes` begins with the start line (empty lines before it are skipped) and runs to
/// the end of what may belong to the message. `None`: there is not even a start line.
pub fn cut(bytes: &Bytes) -> Option<Raw> {
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let bytes = bytes.slice(start..);
    let mut fault = None;
    let (head, body) = match end_of_head(&bytes) {
        Some((head, body)) => (bytes.slice(..head), bytes.slice(body..)),
        None => {
            fault = Some("no empty line after the header");
            (bytes.clone(), Bytes::new())
        }
    };
    let mut lines = head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let start = decode(lines.next()?).0;
    let mut fields: Vec<Vec<u8>> = Vec::new();
    for line in lines {
        match line.first() {
            // A folded line continues the field above; the break counts as one space.
            Some(b' ' | b'\t') if !fields.is_empty() => {
                let field = fields.last_mut().expect("there is a field: the guard says so");
                field.push(b' ');
                field.extend_from_slice(line.trim_ascii());
            }
            Some(_) if fields.len() < MAX_LINES => fields.push(line.to_vec()),
            Some(_) => fault = fault.or(Some("too many header fields")),
            None => {}
        }
    }
    let (mut headers, mut lengths) = (Headers::default(), Vec::new());
    for field in fields {
        let Some(colon) = field.iter().position(|&byte| byte == b':') else {
            fault = fault.or(Some("a header line without a colon"));
            continue;
        };
        let (name, value) = (decode(field[..colon].trim_ascii()).0, field[colon + 1..].trim_ascii());
        if !is_token(&name) {
            fault = fault.or(Some("a header field with a bad name"));
            continue;
        }
        let (value, latin1) = decode(value);
        let name = name_of(&name);
        match &*name {
            "Content-Length" => lengths.push(value),
            // One field a value, so that the topmost can be changed and counted.
            "Via" => headers.0.extend(split(&value, ',').into_iter().filter(|via| !via.is_empty()).map(|via| Header {
                name: name.clone(),
                value: via.to_owned(),
                latin1: latin1 && !via.is_ascii(),
            })),
            _ => headers.0.push(Header { name, value, latin1 }),
        }
    }
    Some(Raw { start, headers, lengths, body, fault })
}

/// Where the header ends and where the body begins; bare line feeds are taken too.
pub fn end_of_head(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut at = 0;
    while let Some(offset) = bytes[at..].iter().position(|&byte| byte == b'\n') {
        let end = at + offset + 1;
        match &bytes[end..] {
            [b'\r', b'\n', ..] => return Some((end, end + 2)),
            [b'\n', ..] => return Some((end, end + 1)),
            _ => at = end,
        }
    }
    None
}

/// UTF-8, or every byte for one character: Latin-1 is on the wire.
fn decode(bytes: &[u8]) -> (String, bool) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), false),
        Err(_) => (bytes.iter().map(|&byte| char::from(byte)).collect(), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folded_lines_compact_names_and_spaced_colons_are_read() {
        let raw = cut(&Bytes::from_static(
            b"\r\n\r\nOPTIONS sip:a@b SIP/2.0\r\nv : SIP/2.0/UDP a;branch=z9hG4bK1 , SIP/2.0/UDP b\r\nTO :\r\n  sip:a@b\r\n \
              ;tag=1\r\nContent-Length :  2\r\nx-Mine: 1\r\n\r\nhi",
        ))
        .unwrap();
        assert_eq!(raw.fault, None);
        assert_eq!(raw.start, "OPTIONS sip:a@b SIP/2.0");
        assert_eq!(raw.headers.count("via"), 2);
        assert_eq!(raw.headers.get("To"), Some("sip:a@b ;tag=1"));
        assert_eq!(raw.headers.get("X-MINE"), Some("1"));
        assert_eq!((raw.lengths[0].as_str(), &raw.body[..]), ("2", &b"hi"[..]));
    }

    #[test]
    fn latin1_bytes_are_read_and_come_back_as_they_were() {
        let raw =
            cut(&Bytes::from_static(b"OPTIONS sip:a@b SIP/2.0\nFrom: \"Ren\xe9\" <sip:a@b>\nVia: x\n\n")).unwrap();
        let request = Request { headers: raw.headers, ..Request::new(Method::Options, "sip:a@b") };
        assert_eq!(request.from().unwrap().display, "René");
        let echoed = Response::answer(&request, 200).to_bytes();
        assert!(echoed.windows(6).any(|window| window == b"Ren\xe9\" "), "{echoed:?}");
    }

    #[test]
    fn a_latin1_byte_that_unicode_calls_a_space_is_kept() {
        let bytes = Bytes::from_static(b"OPTIONS sip:a@b SIP/2.0\r\nVia: a\x85, b\xa0\r\n\r\n");
        let raw = cut(&bytes).unwrap();
        assert_eq!(raw.headers.all("Via").collect::<Vec<_>>(), ["a\u{85}", "b\u{a0}"]);
    }

    #[test]
    fn an_empty_via_list_is_no_panic() {
        let request = Request::new(Method::Options, "sip:a@b");
        assert_eq!(request.top_via(), None);
        let response = Response::answer(&request, 200);
        assert_eq!(response.top_via(), None);
    }

    #[test]
    fn a_line_break_in_a_value_opens_no_field() {
        let mut request = Request::new(Method::Invite, "sip:a@b");
        request.headers.push("Subject", "a\r\nX-Evil: 1");
        assert!(!String::from_utf8_lossy(&request.to_bytes()).contains("\r\nX-Evil"));
    }

    #[test]
    fn sdp_is_found_in_a_multipart_body() {
        let mut request = Request::new(Method::Invite, "sip:a@b");
        request.set_body(
            "multipart/mixed;boundary=\"x\"",
            Bytes::from_static(
                b"--x\r\nContent-Type: text/plain\r\n\r\nno\r\n--x\r\nContent-Type: application/sdp\r\n\r\nv=0\r\n--x--",
            ),
        );
        assert_eq!(request.sdp().as_deref(), Some(&b"v=0\r\n"[..]));
        request.set_body("application/sdp", Bytes::from_static(b"v=0"));
        assert_eq!(request.sdp().as_deref(), Some(&b"v=0"[..]));
        request.set_body("text/plain", Bytes::from_static(b"v=0"));
        assert_eq!(request.sdp(), None);
    }
}
