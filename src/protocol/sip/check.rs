//! Whether a message is one: the rules of RFC 3261 §7, §8.1.1 and §20 that a parser must insist on, and the answer for
//! a request that breaks them. What a request may ask of a user agent (methods, extensions, bodies) is [`inspect`].

use bytes::Bytes;

use crate::protocol::sip::message::{Headers, Method, Request, Response, cut, read_cseq, reason_of};
use crate::protocol::sip::value::{NameAddr, Uri, Via};

/// What we do. In the order in which Allow prints it.
pub const ALLOW: &str = "INVITE, ACK, CANCEL, BYE, OPTIONS, PRACK, UPDATE, INFO, REFER, NOTIFY";
/// The extensions we understand: what may stand in Require.
pub const SUPPORTED: &str = "100rel, timer, replaces";

/// How the end of a message is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A datagram: without Content-Length the body runs to its end, and what follows the body is ignored.
    Datagram,
    /// Cut by `stream.rs`: without Content-Length there is no body.
    Stream,
}

/// What to do with a message.
#[derive(Clone, Debug)]
pub enum Verdict {
    Request(Request),
    Response(Response),
    /// Answer this status and forget it. The request holds what could be read of it.
    Refuse {
        request: Request,
        status: u16,
        reason: String,
    },
    /// Only line ends or zeroes: the peer keeps its NAT open.
    KeepAlive,
    /// Nothing that could be answered: why.
    Drop(&'static str),
}

/// Fields of which a message has at most one.
const SINGLE: [&str; 10] = [
    "From",
    "To",
    "Call-ID",
    "CSeq",
    "Max-Forwards",
    "Content-Type",
    "Expires",
    "Min-Expires",
    "Session-Expires",
    "RAck",
];

/// Reads one message.
pub fn read(bytes: &Bytes, framing: Framing) -> Verdict {
    if bytes.iter().all(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
        return Verdict::KeepAlive;
    }
    let Some(raw) = cut(bytes) else { return Verdict::KeepAlive };
    let mut body = raw.body;
    let mut fault = raw.fault;
    match &raw.lengths[..] {
        [] if framing == Framing::Datagram => {}
        [] => {
            body = Bytes::new();
            // Where a body is announced and nobody says how long it is, it is lost (RFC 3261 §20.14).
            if raw.headers.get("Content-Type").is_some() {
                fault = fault.or(Some("Content-Length is missing"));
            }
        }
        [length] => match length.parse::<usize>() {
            Ok(length) if length <= body.len() => body.truncate(length),
            Ok(_) => fault = fault.or(Some("Content-Length is larger than the message")),
            Err(_) => fault = fault.or(Some("Content-Length is no number")),
        },
        _ => fault = fault.or(Some("more than one Content-Length")),
    }
    if raw.start.get(..4).is_some_and(|head| head.eq_ignore_ascii_case("SIP/")) {
        return read_response(&raw.start, raw.headers, body, fault);
    }
    let (method, uri, version) = match request_line(&raw.start) {
        Ok(parts) => parts,
        Err(why) => {
            let request = Request { headers: raw.headers, body, ..Request::new(Method::Other("?".into()), "") };
            return if is_ack(&request) { Verdict::Drop(why) } else { refuse(request, 400, why) };
        }
    };
    let request = Request { method, uri: uri.to_owned(), headers: raw.headers, body };
    let fault = if version.eq_ignore_ascii_case("SIP/2.0") {
        fault.map(|why| (400, why)).or_else(|| request_fault(&request))
    } else {
        Some((505, reason_of(505)))
    };
    match fault {
        None => Verdict::Request(request),
        // An ACK is never answered (RFC 3261 §17.2.1).
        Some((_, why)) if request.method == Method::Ack => Verdict::Drop(why),
        Some((status, why)) => refuse(request, status, why),
    }
}

/// A start line that cannot be read may still belong to an ACK, as CSeq says.
fn is_ack(request: &Request) -> bool {
    request.cseq().is_some_and(|(_, method)| method == "ACK")
}

fn refuse(request: Request, status: u16, why: &str) -> Verdict {
    if request.headers.get("Via").is_none() {
        return Verdict::Drop("a faulty request without Via");
    }
    let reason = if status == 400 { format!("Bad Request: {why}") } else { why.to_owned() };
    Verdict::Refuse { request, status, reason }
}

/// Method, URI, version: exactly one space between (RFC 3261 §7.1).
fn request_line(line: &str) -> Result<(Method, &str, &str), &'static str> {
    let mut parts = line.split(' ');
    let (Some(method), Some(uri), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err("a request line is method, URI and version");
    };
    let method = Method::parse(method).ok_or("a method that is no token")?;
    if !version.get(..4).is_some_and(|head| head.eq_ignore_ascii_case("SIP/")) {
        return Err("a request line ends with the version");
    }
    if uri.is_empty() {
        return Err("a request line without a URI");
    }
    Ok((method, uri, version))
}

fn request_fault(request: &Request) -> Option<(u16, &'static str)> {
    let headers = &request.headers;
    let bad = |why| Some((400, why));
    for name in SINGLE {
        if headers.count(name) > 1 {
            return bad("a field that may stand once stands twice");
        }
    }
    if headers.get("Via").is_none() {
        return bad("Via is missing");
    }
    if headers.all("Via").any(|via| Via::parse(via).is_none()) {
        return bad("Via cannot be read");
    }
    match (headers.get("From"), headers.get("To"), headers.get("Call-ID"), headers.get("CSeq")) {
        (None, ..) => return bad("From is missing"),
        (_, None, ..) => return bad("To is missing"),
        (_, _, None | Some(""), _) => return bad("Call-ID is missing"),
        (_, _, _, None) => return bad("CSeq is missing"),
        (Some(from), Some(to), Some(_), Some(cseq)) => {
            if NameAddr::parse(from).is_none() {
                return bad("From cannot be read");
            }
            if NameAddr::parse(to).is_none() {
                return bad("To cannot be read");
            }
            match read_cseq(cseq) {
                None => return bad("CSeq cannot be read"),
                Some((_, method)) if method != request.method.as_str() => {
                    return bad("CSeq names another method than the request line");
                }
                Some(_) => {}
            }
        }
    }
    if headers.get("Max-Forwards").is_some_and(|hops| hops.trim_ascii().parse::<u8>().is_err()) {
        return bad("Max-Forwards is no number up to 255");
    }
    let contacts = headers.list("Contact");
    if contacts.iter().any(|contact| *contact != "*" && NameAddr::parse(contact).is_none()) {
        return bad("Contact cannot be read");
    }
    for name in ["Route", "Record-Route"] {
        if headers.list(name).iter().any(|route| NameAddr::parse(route).is_none()) {
            return bad("Route or Record-Route cannot be read");
        }
    }
    match Uri::parse(&request.uri) {
        None => bad("the request URI cannot be read"),
        // RFC 3261 §19.1.1, table 1: no headers and no method in a request URI.
        Some(Uri::Sip(uri)) if uri.headers.is_some() || uri.params.has("method") => {
            bad("the request URI has parts that may not stand there")
        }
        Some(_) => None,
    }
}

fn read_response(start: &str, headers: Headers, body: Bytes, fault: Option<&'static str>) -> Verdict {
    if let Some(why) = fault {
        return Verdict::Drop(why);
    }
    let Some((version, rest)) = start.split_once(' ') else { return Verdict::Drop("a status line without a status") };
    if !version.eq_ignore_ascii_case("SIP/2.0") {
        return Verdict::Drop("a response of another version");
    }
    let (status, reason) = rest.split_once(' ').unwrap_or((rest, ""));
    let status = match status.parse::<u16>() {
        Ok(number @ 100..=699) if status.len() == 3 => number,
        _ => return Verdict::Drop("a status that is none"),
    };
    let response = Response { status, reason: reason.trim_ascii().to_owned(), headers, body };
    let whole = response.top_via().is_some()
        && response.cseq().is_some()
        && response.from().is_some()
        && response.to().is_some()
        && !response.call_id().is_empty()
        && ["From", "To", "Call-ID", "CSeq"].iter().all(|name| response.headers.count(name) == 1);
    if whole { Verdict::Response(response) } else { Verdict::Drop("a response without what it must have") }
}

/// What a user agent refuses in a request that is well-formed (RFC 3261 §8.2.1 to §8.2.3), as the answer to send.
/// `None`: it may be looked at further.
pub fn inspect(request: &Request) -> Option<Response> {
    let refuse = |status, name: &str, value: &str| {
        let mut response = Response::answer(request, status);
        if !name.is_empty() {
            response.headers.push(name, value);
        }
        Some(response)
    };
    if matches!(request.method, Method::Ack | Method::Cancel) {
        return None;
    }
    if matches!(request.method, Method::Other(_) | Method::Register) {
        return refuse(405, "Allow", ALLOW);
    }
    if Uri::parse(&request.uri).is_none_or(|uri| uri.sip().is_none()) {
        return refuse(416, "", "");
    }
    let known = |tag: &&str| SUPPORTED.split(", ").any(|known| known.eq_ignore_ascii_case(tag));
    let mut unknown = request.headers.list("Require");
    unknown.retain(|tag| !known(tag));
    if !unknown.is_empty() {
        return refuse(420, "Unsupported", &unknown.join(", "));
    }
    if let Some(coding) = request.headers.get("Content-Encoding")
        && !request.body.is_empty()
        && !coding.trim_ascii().eq_ignore_ascii_case("identity")
    {
        return refuse(415, "Accept-Encoding", "identity");
    }
    if matches!(request.method, Method::Invite | Method::Update | Method::Prack)
        && let Some((media, _)) = request.content()
        && !matches!(
            media.as_str(),
            "application/sdp" | "multipart/mixed" | "multipart/alternative" | "multipart/related"
        )
    {
        return refuse(415, "Accept", "application/sdp");
    }
    // An empty Accept means that nothing is accepted (RFC 3261 §20.1).
    if request.method == Method::Invite && request.headers.count("Accept") > 0 {
        let accepts = request.headers.list("Accept").iter().any(|range| {
            let media = range.split(';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
            matches!(media.as_str(), "application/sdp" | "application/*" | "*/*")
        });
        if !accepts {
            return refuse(406, "", "");
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "INVITE sip:a@b SIP/2.0\nVia: SIP/2.0/UDP c;branch=z9hG4bK1\nFrom: <sip:c@d>;tag=1\n\
                        To: <sip:a@b>\nCall-ID: x\nCSeq: 1 INVITE\nContact: <sip:c@d>\n";

    fn verdict(head: &str) -> String {
        let text = format!("{head}\n");
        match read(&Bytes::from(text.replace('\n', "\r\n")), Framing::Datagram) {
            Verdict::Request(request) => match inspect(&request) {
                None => "good".into(),
                Some(response) => response.status.to_string(),
            },
            Verdict::Response(response) => format!("response {}", response.status),
            Verdict::Refuse { status, .. } => status.to_string(),
            Verdict::KeepAlive => "keep-alive".into(),
            Verdict::Drop(_) => "drop".into(),
        }
    }

    #[test]
    fn each_rule_has_its_answer() {
        let with = |line: &str| format!("{GOOD}{line}\n");
        let instead = |from: &str, to: &str| {
            assert!(GOOD.contains(from), "{from}");
            GOOD.replacen(from, to, 1)
        };
        for (text, expected) in [
            (GOOD.to_owned(), "good"),
            (instead("Contact: <sip:c@d>\n", ""), "good"),
            (instead("SIP/2.0\nVia", "SIP/7.0\nVia"), "505"),
            (instead("INVITE sip", "INVITE  sip"), "400"),
            (instead("sip:a@b SIP/2.0", "sip:a@b SIP/2.0 "), "400"),
            (instead("INVITE sip:a@b", "INVITE <sip:a@b>"), "400"),
            (instead("INVITE sip:a@b", "INVITE sip:a; b@b"), "400"),
            (instead("INVITE sip:a@b", "INVITE sip:a@b?Route=x"), "400"),
            (instead("INVITE sip:a@b", "INVITE nobody:knows"), "416"),
            (instead("INVITE sip:a@b", "INVITE tel:+1"), "416"),
            (instead("Via: SIP/2.0/UDP c;branch=z9hG4bK1\n", ""), "drop"),
            (instead("Via: SIP/2.0/UDP c;branch=z9hG4bK1", "Via:"), "drop"),
            (instead("c;branch=z9hG4bK1", "c;;,;,,"), "400"),
            (instead("From: <sip:c@d>;tag=1\n", ""), "400"),
            (instead("To: <sip:a@b>", "To: \"Mr. <sip:a@b>"), "400"),
            (instead("From: <sip:c@d>;tag=1", "From: Bell, A <sip:c@d>;tag=1"), "400"),
            (instead("Call-ID: x\n", ""), "400"),
            (instead("CSeq: 1 INVITE", "CSeq: 1 OPTIONS"), "400"),
            (instead("CSeq: 1 INVITE", "CSeq: 2147483648 INVITE"), "400"),
            (instead("CSeq: 1 INVITE", "CSeq: 36893488147419103232 INVITE"), "400"),
            (with("CSeq: 2 INVITE"), "400"),
            (with("Max-Forwards: 300"), "400"),
            (with("Max-Forwards: 0"), "good"),
            (with("l: -999"), "400"),
            (with("l: 5"), "400"),
            (with("l: 0\nContent-Length: 0"), "400"),
            (with("no colon"), "400"),
            (with("Require: nothingSupportsThis, 100rel"), "420"),
            (with("Require: 100rel, timer"), "good"),
            (with("Accept: text/plain"), "406"),
            (with("Accept: text/plain, application/sdp;level=1"), "good"),
            (with("Date: Fri, 01 Jan 2010 16:00:00 EST"), "good"),
            (GOOD.replace("INVITE", "NOSUCH"), "405"),
            (GOOD.replace("INVITE", "REGISTER"), "405"),
            (GOOD.replace("INVITE", "ACK"), "good"),
            (GOOD.replace("INVITE", "ACK").replace("Call-ID: x\n", ""), "drop"),
            (instead("INVITE sip:a@b SIP/2.0", "SIP/2.0 200 OK"), "response 200"),
            (instead("INVITE sip:a@b SIP/2.0", "SIP/2.0 200 "), "response 200"),
            (instead("INVITE sip:a@b SIP/2.0", "SIP/2.0 200"), "response 200"),
            (instead("INVITE sip:a@b SIP/2.0", "SIP/2.0 4294967301 better"), "drop"),
            (instead("INVITE sip:a@b SIP/2.0", "SIP/2.0 042 x"), "drop"),
            ("\n\n".to_owned(), "keep-alive"),
            ("hello".to_owned(), "drop"),
        ] {
            assert_eq!(verdict(&text), expected, "{text}");
        }
        assert_eq!(verdict(&format!("{GOOD}Content-Type: application/unknown\n\nbody")), "415");
        assert_eq!(verdict(&format!("{GOOD}Content-Type: application/sdp\n\nv=0")), "good");
        assert_eq!(verdict(&format!("{GOOD}Content-Type: application/sdp\nContent-Encoding: gzip\n\nv=0")), "415");
    }

    #[test]
    fn a_datagram_without_a_length_runs_to_its_end_and_with_one_no_further() {
        let body_of = |text: String, framing| match read(&Bytes::from(text), framing) {
            Verdict::Request(request) => String::from_utf8_lossy(&request.body).into_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(body_of(format!("{GOOD}\nv=0\nmore"), Framing::Datagram), "v=0\nmore");
        assert_eq!(body_of(format!("{GOOD}l: 3\n\nv=0\nmore"), Framing::Datagram), "v=0");
        assert_eq!(body_of(format!("{GOOD}\n"), Framing::Stream), "");
        let lost = Bytes::from(format!("{GOOD}Content-Type: application/sdp\n\n"));
        assert!(matches!(read(&lost, Framing::Stream), Verdict::Refuse { status: 400, .. }));
    }
}
