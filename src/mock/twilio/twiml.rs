//! Reads TwiML as Twilio does: well-formed XML or nothing. Written apart from the writer under `providers`, so that
//! the two check each other. No namespaces, no DTD, no processing instructions but the first line.

/// Twilio takes 64 KB.
pub const MAX_TWIML: usize = 64 * 1024;
/// `Response`, `Connect`, `Stream`, `Parameter` are four.
const MAX_DEPTH: usize = 12;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    pub name: String,
    pub attributes: Vec<(String, String)>,
    pub children: Vec<Element>,
    /// Of this element itself, without that of its children; trimmed.
    pub text: String,
}

impl Element {
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }
}

/// The `<Response>`; otherwise where it stops making sense (Twilio's error 12100).
pub fn parse(xml: &str) -> Result<Element, String> {
    if xml.len() > MAX_TWIML {
        return Err("more than 64 KB".into());
    }
    let mut reader = Reader { rest: xml.trim_start_matches('\u{feff}').trim_start() };
    if reader.rest.starts_with("<?xml") {
        reader.skip_past("?>")?;
    }
    reader.skip_blank()?;
    let response = reader.element(0)?;
    reader.skip_blank()?;
    match (response.name.as_str(), reader.rest) {
        ("Response", "") => Ok(response),
        ("Response", rest) => Err(format!("more after </Response>: {}", head(rest))),
        (name, _) => Err(format!("<{name}> where <Response> should be")),
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn skip_past(&mut self, end: &str) -> Result<&'a str, String> {
        let (before, after) = self.rest.split_once(end).ok_or_else(|| format!("no {end} after {}", head(self.rest)))?;
        self.rest = after;
        Ok(before)
    }

    /// Blanks and comments.
    fn skip_blank(&mut self) -> Result<(), String> {
        loop {
            self.rest = self.rest.trim_start();
            if !self.rest.starts_with("<!--") {
                return Ok(());
            }
            self.skip_past("-->")?;
        }
    }

    fn name(&mut self) -> Result<&'a str, String> {
        let end =
            self.rest.find(|c: char| !c.is_ascii_alphanumeric() && !"_-:.".contains(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        if name.is_empty() { Err(format!("no name at {}", head(rest))) } else { Ok(name) }
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        self.rest = self.rest.strip_prefix(token).ok_or_else(|| format!("no {token} at {}", head(self.rest)))?;
        Ok(())
    }

    fn element(&mut self, depth: usize) -> Result<Element, String> {
        if depth > MAX_DEPTH {
            return Err("too deep".into());
        }
        self.expect("<")?;
        let mut element = Element { name: self.name()?.to_owned(), ..Element::default() };
        loop {
            self.rest = self.rest.trim_start();
            if let Some(rest) = self.rest.strip_prefix("/>") {
                self.rest = rest;
                return Ok(element);
            }
            if let Some(rest) = self.rest.strip_prefix('>') {
                self.rest = rest;
                break;
            }
            let name = self.name()?.to_owned();
            self.rest = self.rest.trim_start();
            self.expect("=")?;
            self.rest = self.rest.trim_start();
            let quote = if self.rest.starts_with('\'') { "'" } else { "\"" };
            self.expect(quote)?;
            let value = self.skip_past(quote)?;
            if value.contains('<') {
                return Err(format!("a bare < in the attribute {name}"));
            }
            element.attributes.push((name, unescape(value)?));
        }
        let mut text = String::new();
        loop {
            let at = self.rest.find('<').ok_or_else(|| format!("<{}> does not end", element.name))?;
            text.push_str(&unescape(&self.rest[..at])?);
            self.rest = &self.rest[at..];
            if self.rest.starts_with("<!--") {
                self.skip_past("-->")?;
            } else if let Some(rest) = self.rest.strip_prefix("</") {
                self.rest = rest;
                let name = self.name()?;
                if name != element.name {
                    return Err(format!("</{name}> ends <{}>", element.name));
                }
                self.rest = self.rest.trim_start();
                self.expect(">")?;
                element.text = text.trim().to_owned();
                return Ok(element);
            } else {
                element.children.push(self.element(depth + 1)?);
            }
        }
    }
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let (entity, after) =
            rest[at + 1..].split_once(';').ok_or_else(|| format!("a bare & at {}", head(&rest[at..])))?;
        out.push(match entity {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            _ => entity
                .strip_prefix('#')
                .and_then(|code| match code.strip_prefix('x') {
                    Some(hex) => u32::from_str_radix(hex, 16).ok(),
                    None => code.parse().ok(),
                })
                .and_then(char::from_u32)
                .ok_or_else(|| format!("no entity &{};", head(entity)))?,
        });
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn head(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_attributes_and_text_are_read() {
        let response = parse(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><!-- first -->\n <Say language='uk-UA'>a &lt; b\n</Say>\
             <Connect action=\"https://a/b?c&amp;d\"><Stream url=\"wss://h/m\"><Parameter name=\"call_id\" value=\"7&#x41;\"/>\
             </Stream></Connect><Hangup/></Response>\n",
        )
        .unwrap();
        let names: Vec<&str> = response.children.iter().map(|verb| verb.name.as_str()).collect();
        assert_eq!(names, ["Say", "Connect", "Hangup"]);
        assert_eq!(response.children[0].text, "a < b");
        assert_eq!(response.children[1].attribute("action"), Some("https://a/b?c&d"));
        let parameter = response.children[1].child("Stream").unwrap().child("Parameter").unwrap();
        assert_eq!(parameter.attribute("value"), Some("7A"));
    }

    #[test]
    fn what_is_no_xml_is_refused() {
        for wrong in [
            "",
            "ok",
            "<Response>",
            "<Response><Say>a & b</Say></Response>",
            "<Response><Say>a</Hangup></Response>",
            "<Response><Say x=1/></Response>",
            "<Response/><Response/>",
            "<Answer/>",
            "<Response><Say x=\"<\"/></Response>",
            "<Response>&nbsp;</Response>",
            &format!("{}{}", "<Response>", "<a>".repeat(10_000)),
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse("<Response/>"), Ok(Element { name: "Response".into(), ..Element::default() }));
    }
}
