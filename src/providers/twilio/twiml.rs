//! TwiML: the XML that answers a voice webhook. Only the verbs that Offhook says.
//! <https://www.twilio.com/docs/voice/twiml>

use std::fmt::Write as _;

/// The content type of an answer.
pub const CONTENT_TYPE: &str = "text/xml; charset=utf-8";

const HEAD: &str = r#"<?xml version="1.0" encoding="UTF-8"?><Response>"#;
const TAIL: &str = "</Response>";
/// How long a person may let a transferred call ring.
const DIAL_RING_S: u32 = 30;

/// Name and value of a `<Parameter>` together must stay below 500 characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a stream parameter of {chars} characters, 500 or more")]
pub struct ParameterTooLong {
    pub chars: usize,
}

/// What Twilio does with the call when our server has closed the stream. Without any of it the call would end as well,
/// but by omission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then<'a> {
    HangUp,
    /// Asks this URL for new TwiML.
    Redirect(&'a str),
}

/// `<Connect><Stream>`: both directions of the call's audio over a websocket.
#[derive(Clone, Debug)]
pub struct ConnectStream<'a> {
    stream_url: &'a str,
    action: Option<&'a str>,
    status_callback: Option<&'a str>,
    parameters: Vec<(&'a str, &'a str)>,
    then: Then<'a>,
}

impl<'a> ConnectStream<'a> {
    /// `stream_url` is absolute, `wss`, and has no query: Twilio would not pass it on.
    pub fn new(stream_url: &'a str, then: Then<'a>) -> Self {
        Self { stream_url, action: None, status_callback: None, parameters: Vec::new(), then }
    }

    /// Asked for new TwiML when the stream is over; the verb after `<Connect>` is then never reached.
    pub fn action(mut self, url: &'a str) -> Self {
        self.action = Some(url);
        self
    }

    /// Told when the stream starts, stops, or fails: the only place where a failed websocket is explained.
    pub fn status_callback(mut self, url: &'a str) -> Self {
        self.status_callback = Some(url);
        self
    }

    /// Arrives in the parameters of the stream's `start`.
    pub fn parameter(mut self, name: &'a str, value: &'a str) -> Result<Self, ParameterTooLong> {
        let chars = name.chars().count() + value.chars().count();
        if chars >= 500 {
            return Err(ParameterTooLong { chars });
        }
        self.parameters.push((name, value));
        Ok(self)
    }

    pub fn to_xml(&self) -> String {
        let mut xml = HEAD.to_owned();
        xml.push_str("<Connect");
        attribute(&mut xml, "action", self.action);
        xml.push_str("><Stream");
        attribute(&mut xml, "url", Some(self.stream_url));
        attribute(&mut xml, "statusCallback", self.status_callback);
        xml.push('>');
        for (name, value) in &self.parameters {
            xml.push_str("<Parameter");
            attribute(&mut xml, "name", Some(name));
            attribute(&mut xml, "value", Some(value));
            xml.push_str("/>");
        }
        xml.push_str("</Stream></Connect>");
        match self.then {
            Then::HangUp => xml.push_str("<Hangup/>"),
            Then::Redirect(url) => write!(xml, "<Redirect>{}</Redirect>", Escaped(url)).expect("a String takes it"),
        }
        xml.push_str(TAIL);
        xml
    }
}

/// Ends an answered call; an unanswered one is answered first, and billed.
pub fn hangup() -> String {
    format!("{HEAD}<Hangup/>{TAIL}")
}

/// Says a sentence in Twilio's own voice and hangs up. `language` as Twilio writes it: `en-US`.
pub fn say_and_hangup(text: &str, language: &str) -> String {
    format!(r#"{HEAD}<Say language="{}">{}</Say><Hangup/>{TAIL}"#, Escaped(language), Escaped(text))
}

/// Says a sentence in Twilio's own voice; what runs goes on.
pub fn say(text: &str, language: &str) -> String {
    format!(r#"{HEAD}<Say language="{}">{}</Say>{TAIL}"#, Escaped(language), Escaped(text))
}

/// Refuses the call unanswered and unbilled: the caller hears the busy tone.
pub fn reject_busy() -> String {
    format!(r#"{HEAD}<Reject reason="busy"/>{TAIL}"#)
}

/// Connects the call with `to`, a number or `sip:user@host`, and hangs up when that is over. `caller_id` must be the
/// caller's number, one of the account's or a verified one; empty: Twilio's choice. The caller hears the ringing, not
/// a pause. `note_url`: asked for TwiML that `to` hears before the two are connected. `over_url`: asked for TwiML when that
/// is over or did not come about, instead of hanging up.
pub fn dial(to: &str, caller_id: &str, note_url: Option<&str>, over_url: Option<&str>) -> String {
    let mut xml = format!(r#"{HEAD}<Dial answerOnBridge="true" timeout="{DIAL_RING_S}""#);
    attribute(&mut xml, "callerId", Some(caller_id).filter(|id| !id.is_empty()));
    attribute(&mut xml, "action", over_url);
    let noun = if to.starts_with("sip:") { "Sip" } else { "Number" };
    write!(xml, "><{noun}").expect("a String takes it");
    attribute(&mut xml, "url", note_url);
    write!(xml, ">{}</{noun}></Dial><Hangup/>{TAIL}", Escaped(to)).expect("a String takes it");
    xml
}

/// Answers a message.
pub fn message(text: &str) -> String {
    format!("{HEAD}<Message>{}</Message>{TAIL}", Escaped(text))
}

/// Does nothing: a message is not answered.
pub fn nothing() -> String {
    format!("{HEAD}{TAIL}")
}

fn attribute(xml: &mut String, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        write!(xml, r#" {name}="{}""#, Escaped(value)).expect("a String takes it");
    }
}

/// Text for content or for an attribute in double quotes. Characters that XML 1.0 §2.2 does not have are left out.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&apos;")?,
                // As references, because a parser turns bare ones in an attribute into spaces.
                '\t' | '\n' | '\r' => write!(f, "&#{};", u32::from(c))?,
                '\0'..='\x1F' | '\u{FFFE}' | '\u{FFFF}' => {}
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_connected_with_its_parameters_and_what_follows() {
        let xml = ConnectStream::new("wss://voice.example.com/media/twilio/abc", Then::HangUp)
            .action("https://voice.example.com/after?a=1&b=2")
            .status_callback("https://voice.example.com/stream")
            .parameter("call", "0190")
            .unwrap()
            .parameter("say", r#"<"it's">"#)
            .unwrap()
            .to_xml();
        assert_eq!(
            xml,
            r#"<?xml version="1.0" encoding="UTF-8"?><Response><Connect action="https://voice.example.com/after?a=1&amp;b=2"><Stream url="wss://voice.example.com/media/twilio/abc" statusCallback="https://voice.example.com/stream"><Parameter name="call" value="0190"/><Parameter name="say" value="&lt;&quot;it&apos;s&quot;&gt;"/></Stream></Connect><Hangup/></Response>"#
        );
    }

    #[test]
    fn a_closed_stream_may_lead_to_other_twiml() {
        let xml = ConnectStream::new("wss://a/b", Then::Redirect("https://a/c?d&e")).to_xml();
        assert!(xml.contains(
            "<Connect><Stream url=\"wss://a/b\"></Stream></Connect><Redirect>https://a/c?d&amp;e</Redirect>"
        ));
    }

    #[test]
    fn a_parameter_of_500_characters_is_refused() {
        let value = "ї".repeat(496);
        let stream = ConnectStream::new("wss://a/b", Then::HangUp);
        assert!(stream.clone().parameter("abc", &value).is_ok());
        assert_eq!(stream.parameter("abcd", &value).unwrap_err(), ParameterTooLong { chars: 500 });
    }

    #[test]
    fn text_cannot_break_out_of_the_xml() {
        assert_eq!(
            say_and_hangup("a</Say>\u{0}\u{1b}\n&", "en\"US"),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Response><Say language=\"en&quot;US\">a&lt;/Say&gt;&#10;&amp;</Say><Hangup/></Response>"
        );
    }

    #[test]
    fn a_transfer_names_who_is_called_and_by_whom() {
        assert!(dial("+380671112233", "+380441234567", None, None).ends_with(
            r#"<Response><Dial answerOnBridge="true" timeout="30" callerId="+380441234567"><Number>+380671112233</Number></Dial><Hangup/></Response>"#
        ));
        assert!(dial("sip:a@b?x=1&y", "", None, None).ends_with(
            r#"<Response><Dial answerOnBridge="true" timeout="30"><Sip>sip:a@b?x=1&amp;y</Sip></Dial><Hangup/></Response>"#
        ));
    }

    #[test]
    fn a_person_is_told_first_and_a_caller_afterwards() {
        let (note, over) = ("https://a/person?call=1&b", "https://a/transfer?call=1");
        assert!(dial("+380671112233", "", Some(note), Some(over)).ends_with(
            r#"<Dial answerOnBridge="true" timeout="30" action="https://a/transfer?call=1"><Number url="https://a/person?call=1&amp;b">+380671112233</Number></Dial><Hangup/></Response>"#
        ));
        assert!(
            say("Вам дзвінок", "uk-UA").ends_with(r#"<Response><Say language="uk-UA">Вам дзвінок</Say></Response>"#)
        );
    }

    #[test]
    fn a_message_is_answered_or_not() {
        assert!(message("1 < 2").ends_with("<Response><Message>1 &lt; 2</Message></Response>"));
        assert!(nothing().ends_with("<Response></Response>"));
    }

    #[test]
    fn refusals_are_short() {
        assert!(reject_busy().ends_with(r#"<Response><Reject reason="busy"/></Response>"#));
        assert!(hangup().ends_with("<Response><Hangup/></Response>"));
    }
}
