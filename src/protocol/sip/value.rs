//! What stands in header fields: URIs, name-addr, Via, parameters (RFC 3261 §25.1). Every reader takes text from a peer
//! and answers `None` for what the grammar does not allow; nothing here panics or allocates more than its input.

use std::fmt;
use std::net::IpAddr;

/// Splits at `separator` where it stands outside quoted strings and angle brackets; each part trimmed.
pub fn split(text: &str, separator: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut quoted, mut escaped, mut angle) = (0, false, false, false);
    for (at, c) in text.char_indices() {
        if quoted {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => quoted = false,
                _ => {}
            }
            continue;
        }
        match c {
            '"' => quoted = true,
            '<' => angle = true,
            '>' => angle = false,
            c if c == separator && !angle => {
                parts.push(text[start..at].trim_ascii());
                start = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim_ascii());
    parts
}

/// RFC 3261 §25.1, `token`.
pub fn is_token(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-.!%*_+`'~".contains(c))
}

/// A quoted string's content, or the text itself.
pub fn unquote(text: &str) -> String {
    let Some(inner) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return text.to_owned();
    };
    let mut out = String::with_capacity(inner.len());
    let mut escaped = false;
    for c in inner.chars() {
        match c {
            '\\' if !escaped => escaped = true,
            c => {
                escaped = false;
                out.push(c);
            }
        }
    }
    out
}

/// `;name=value` pairs in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params(Vec<(String, Option<String>)>);

impl Params {
    /// Takes what follows the value: nothing, or `;a=b;c`. `None`: an empty name, or text that is no parameter.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_ascii();
        if text.is_empty() {
            return Some(Self::default());
        }
        let mut params = Vec::new();
        for part in split(text.strip_prefix(';')?, ';') {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim_ascii(), Some(value.trim_ascii())),
                None => (part, None),
            };
            let plain = |c: char| c.is_ascii_alphanumeric() || "-.!%*_+`'~[]/:&$".contains(c);
            let value_is_good = value.is_none_or(|value| match value.strip_prefix('"') {
                Some(rest) => closes(rest),
                None => !value.chars().any(|c| c.is_whitespace() || c == '"' || c == ','),
            });
            if name.is_empty() || !name.chars().all(plain) || !value_is_good {
                return None;
            }
            params.push((name.to_owned(), value.map(str::to_owned)));
        }
        Some(Self(params))
    }

    /// The value of `name`, in any case; `Some("")` for a parameter without a value.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_deref().unwrap_or_default())
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.remove(name);
        self.0.push((name.to_owned(), Some(value.into())));
    }

    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(own, _)| !own.eq_ignore_ascii_case(name));
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.0 {
            match value {
                Some(value) => write!(f, ";{name}={value}")?,
                None => write!(f, ";{name}")?,
            }
        }
        Ok(())
    }
}

/// Whether a quoted string, whose opening quote was read, closes at the very end.
fn closes(rest: &str) -> bool {
    let mut escaped = false;
    for (at, c) in rest.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1 == rest.len(),
            _ => {}
        }
    }
    false
}

/// A URI of any scheme; `sip` and `sips` taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uri {
    Sip(SipUri),
    /// `tel:`, `urn:` and whatever else, as written.
    Other {
        scheme: String,
        rest: String,
    },
}

/// `sip:user:password@host:port;params?headers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SipUri {
    pub secure: bool,
    /// With its password and escapes, as written.
    pub user: Option<String>,
    /// A name, an IPv4 address, or an IPv6 address in brackets.
    pub host: String,
    pub port: Option<u16>,
    pub params: Params,
    /// What follows `?`.
    pub headers: Option<String>,
}

impl Uri {
    pub fn parse(text: &str) -> Option<Self> {
        if text.chars().any(|c| c.is_whitespace() || matches!(c, '<' | '>' | '"')) {
            return None;
        }
        let (scheme, rest) = text.split_once(':')?;
        let mut chars = scheme.chars();
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if !chars.next()?.is_ascii_alphabetic() || !chars.all(good) || rest.is_empty() {
            return None;
        }
        match scheme.to_ascii_lowercase().as_str() {
            "sip" => SipUri::parse_rest(false, rest).map(Self::Sip),
            "sips" => SipUri::parse_rest(true, rest).map(Self::Sip),
            scheme => Some(Self::Other { scheme: scheme.to_owned(), rest: rest.to_owned() }),
        }
    }

    pub fn sip(&self) -> Option<&SipUri> {
        match self {
            Self::Sip(uri) => Some(uri),
            Self::Other { .. } => None,
        }
    }

    /// Whom it names: the user of a SIP URI (without password, escapes resolved), the number of a `tel:` URI.
    pub fn user(&self) -> String {
        match self {
            Self::Sip(uri) => uri.user_name(),
            Self::Other { rest, .. } => unescape(rest.split(';').next().unwrap_or_default()),
        }
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sip(uri) => uri.fmt(f),
            Self::Other { scheme, rest } => write!(f, "{scheme}:{rest}"),
        }
    }
}

impl SipUri {
    pub fn new(user: Option<&str>, host: impl Into<String>, port: Option<u16>) -> Self {
        let user = user.map(str::to_owned);
        Self { secure: false, user, host: host.into(), port, params: Params::default(), headers: None }
    }

    pub fn parse(text: &str) -> Option<Self> {
        match Uri::parse(text)? {
            Uri::Sip(uri) => Some(uri),
            Uri::Other { .. } => None,
        }
    }

    fn parse_rest(secure: bool, rest: &str) -> Option<Self> {
        // `@` stands nowhere else unescaped, while `;`, `?` and `:` may be part of the user.
        let (user, rest) = match rest.split_once('@') {
            Some(("", _)) => return None,
            Some((user, rest)) => (Some(user.to_owned()), rest),
            None => (None, rest),
        };
        let (rest, headers) = match rest.split_once('?') {
            Some((rest, headers)) => (rest, Some(headers.to_owned())),
            None => (rest, None),
        };
        let (host_port, params) = match rest.find(';') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (host, port) = host_and_port(host_port)?;
        Some(Self { secure, user, host: host.to_owned(), port, params: Params::parse(params)?, headers })
    }

    pub fn user_name(&self) -> String {
        let user = self.user.as_deref().unwrap_or_default();
        // Parameters inside the user part (RFC 4694) describe the number and are not of it.
        unescape(user.split([':', ';']).next().unwrap_or_default())
    }

    /// The address, when the host is one.
    pub fn ip(&self) -> Option<IpAddr> {
        parse_ip(&self.host)
    }
}

impl fmt::Display for SipUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.secure { "sips:" } else { "sip:" })?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        f.write_str(&self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        write!(f, "{}", self.params)?;
        match &self.headers {
            Some(headers) => write!(f, "?{headers}"),
            None => Ok(()),
        }
    }
}

/// `%41` to `A`; what is no escape stays.
pub fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (bytes[at], hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Escapes everything that may not stand in a header of a URI or in its user part (RFC 3261 §25.1).
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.!~*'()+".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// `host`, `host:port`, `[v6]:port`.
pub fn host_and_port(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']')?;
            rest[..end].parse::<std::net::Ipv6Addr>().ok()?;
            let (host, rest) = text.split_at(end + 2);
            (host, if rest.is_empty() { None } else { Some(rest.trim_ascii_start().strip_prefix(':')?) })
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host.trim_ascii_end(), Some(port)),
            None => (text, None),
        },
    };
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if host.is_empty() || (!host.starts_with('[') && !host.chars().all(good)) {
        return None;
    }
    let port = match port {
        Some(port) => Some(port.trim_ascii().parse::<u16>().ok()?),
        None => None,
    };
    Some((host, port))
}

/// An address with or without brackets.
pub fn parse_ip(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// An address as the host of a URI: IPv6 in brackets.
pub fn host_of(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// `"Display" <uri>;params`, or the URI alone: From, To, Contact, Route, Refer-To.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameAddr {
    /// Without quotes; empty when absent.
    pub display: String,
    pub uri: Uri,
    /// Of the header field, not of the URI.
    pub params: Params,
}

impl NameAddr {
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_ascii();
        let (display, rest) = match text.strip_prefix('"') {
            Some(rest) => {
                let end = closing_quote(rest)?;
                (unquote(&text[..end + 2]), rest[end + 1..].trim_ascii_start())
            }
            None => match text.find('<') {
                // A display name without quotes: the grammar wants tokens, telephones write what they like. A comma or
                // a quote would make two readings possible.
                Some(at) if text[..at].contains([',', '"', ';', '>']) => return None,
                Some(at) => (text[..at].trim_ascii_end().to_owned(), &text[at..]),
                None => return Self::parse_addr_spec(text),
            },
        };
        let (uri, params) = rest.strip_prefix('<')?.split_once('>')?;
        Some(Self { display, uri: Uri::parse(uri.trim_ascii())?, params: Params::parse(params)? })
    }

    /// Without brackets, `;` opens parameters of the field, and `?` or `,` may not stand (RFC 3261 §20).
    fn parse_addr_spec(text: &str) -> Option<Self> {
        let (uri, params) = match text.find(';') {
            Some(at) => text.split_at(at),
            None => (text, ""),
        };
        if uri.contains(['?', ',']) {
            return None;
        }
        Some(Self { display: String::new(), uri: Uri::parse(uri.trim_ascii())?, params: Params::parse(params)? })
    }

    pub fn new(uri: impl Into<Uri>) -> Self {
        Self { display: String::new(), uri: uri.into(), params: Params::default() }
    }

    pub fn tag(&self) -> Option<&str> {
        self.params.get("tag").filter(|tag| !tag.is_empty())
    }
}

impl From<SipUri> for Uri {
    fn from(uri: SipUri) -> Self {
        Self::Sip(uri)
    }
}

fn closing_quote(rest: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in rest.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at),
            _ => {}
        }
    }
    None
}

impl fmt::Display for NameAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.display.is_empty() {
            f.write_str("\"")?;
            for c in self.display.chars() {
                match c {
                    '"' | '\\' => write!(f, "\\{c}")?,
                    // A line break would end the field.
                    '\r' | '\n' => f.write_str(" ")?,
                    c => write!(f, "{c}")?,
                }
            }
            f.write_str("\" ")?;
        }
        write!(f, "<{}>{}", self.uri, self.params)
    }
}

/// One value of Via.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via {
    /// In upper case: `UDP`, `TCP`, `TLS`, or whatever the peer says.
    pub transport: String,
    pub host: String,
    pub port: Option<u16>,
    pub params: Params,
}

impl Via {
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '/');
        if !parts.next()?.trim_ascii().eq_ignore_ascii_case("SIP") || parts.next()?.trim_ascii() != "2.0" {
            return None;
        }
        let rest = parts.next()?.trim_ascii_start();
        let (transport, rest) = rest.split_at(rest.find(char::is_whitespace)?);
        let (sent_by, params) = match rest.find(';') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (host, port) = host_and_port(sent_by.trim_ascii())?;
        let params = Params::parse(params)?;
        is_token(transport).then(|| Self {
            transport: transport.to_ascii_uppercase(),
            host: host.to_owned(),
            port,
            params,
        })
    }

    /// The branch, if it is one of RFC 3261: unique, and more than the magic cookie.
    pub fn branch(&self) -> Option<&str> {
        self.params.get("branch").filter(|branch| {
            branch.get(..7).is_some_and(|cookie| cookie.eq_ignore_ascii_case("z9hG4bK")) && branch.len() > 7
        })
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SIP/2.0/{} {}", self.transport, self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        write!(f, "{}", self.params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_taken_apart_and_printed_again() {
        for text in [
            "sip:alice@example.com",
            "sips:alice:secret@example.com:5061;transport=tcp?Subject=x",
            "sip:[2001:db8::1]:5060;lr",
            "sip:1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*:&it+has=1,weird!*pas$wo~d_too.(doesn't-it)@example.com",
            "sip:user;par=u%40example.net@example.com",
            "tel:+380501234567;phone-context=x",
        ] {
            assert_eq!(Uri::parse(text).map(|uri| uri.to_string()).as_deref(), Some(text));
        }
        let uri = SipUri::parse("sip:%2B38;x=y:pw@h.example:70").unwrap();
        assert_eq!((uri.user_name().as_str(), uri.host.as_str(), uri.port), ("+38", "h.example", Some(70)));
    }

    #[test]
    fn what_is_no_uri_is_refused() {
        for text in
            ["", "sip:", "sip:@a", "alice@example.com", "sip:a b@c", "sip:a@b:port", "sip:a@[::1", "<sip:a@b>", "1x:y"]
        {
            assert_eq!(Uri::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_name_addr_is_read_in_every_dress() {
        let check = |text: &str, display: &str, uri: &str, tag: Option<&str>| {
            let name = NameAddr::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((name.display.as_str(), name.uri.to_string().as_str(), name.tag()), (display, uri, tag));
            assert_eq!(NameAddr::parse(&name.to_string()).as_ref(), Some(&name));
        };
        check("sip:a@b;tag=1", "", "sip:a@b", Some("1"));
        check("<sip:a@b;x=1> ; tag = 2 ;y", "", "sip:a@b;x=1", Some("2"));
        check("\"A \\\"B\\\" <,;\" <sip:a@b>", "A \"B\" <,;", "sip:a@b", None);
        check("caller<sip:a@b>", "caller", "sip:a@b", None);
        check("Zoë X < sip:a@b >", "Zoë X", "sip:a@b", None);
    }

    #[test]
    fn what_has_two_readings_is_refused() {
        for text in [
            "\"Mr. J. <sip:a@b>",
            "Bell, A <sip:a@b>",
            "sip:a@b?x=y",
            "<sip:a@b",
            "<sip:a@b>;;",
            "<sip:a@b>;tag=a b",
            "<sip:a@b>tag",
            "",
        ] {
            assert_eq!(NameAddr::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_via_is_read_with_spaces_and_without_a_branch() {
        let via = Via::parse("SIP / 2.0 / tcp   [2001:db8::9]:5070 ; branch = z9hG4bKa ;rport").unwrap();
        assert_eq!((via.transport.as_str(), via.port, via.branch()), ("TCP", Some(5070), Some("z9hG4bKa")));
        assert_eq!(via.to_string(), "SIP/2.0/TCP [2001:db8::9]:5070;branch=z9hG4bKa;rport");
        assert_eq!(Via::parse("SIP/2.0/UDP a;branch=z9hG4bK").unwrap().branch(), None);
        for text in ["", "SIP/2.0/UDP", "SIP/3.0/UDP a", "SIP/2.0/UDP a;;", "SIP/2.0/UDP a b", "HTTP/2.0/UDP a"] {
            assert_eq!(Via::parse(text), None, "{text}");
        }
    }

    #[test]
    fn escapes_go_both_ways() {
        assert_eq!(unescape("a%20b%zz%4"), "a b%zz%4");
        assert_eq!(unescape(&escape("a@b;to-tag=1?é")), "a@b;to-tag=1?é");
    }
}
