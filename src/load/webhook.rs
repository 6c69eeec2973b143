//! The way into a call that Twilio takes: a signed form POST to the voice webhook, and the stream that its TwiML names.

use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use crate::load::sign::sign;

/// TwiML is small; Twilio itself takes 64 KB.
const MAX_TWIML: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error("the webhook could not be reached: {0}")]
    Unreachable(String),
    #[error("the webhook answered with status {0}")]
    Status(u16),
    #[error("the webhook answered no <Connect><Stream>: {0}")]
    NoStream(String),
}

/// What the TwiML asks Twilio to connect to.
#[derive(Debug, PartialEq, Eq)]
pub struct StreamTwiml {
    pub url: String,
    pub parameters: Vec<(String, String)>,
}

/// Who calls whom.
#[derive(Clone, Debug)]
pub struct Dialled {
    pub account_sid: String,
    pub call_sid: String,
    pub from: String,
    pub to: String,
}

/// Posts the voice webhook of an incoming call and reads the stream from the answer.
pub async fn post(
    client: &reqwest::Client,
    url: &str,
    auth_token: &SecretString,
    call: &Dialled,
    limit: Duration,
) -> Result<StreamTwiml, WebhookError> {
    let fields: Vec<(String, String)> = [
        ("AccountSid", call.account_sid.as_str()),
        ("ApiVersion", "2010-04-01"),
        ("CallSid", &call.call_sid),
        ("CallStatus", "ringing"),
        ("Called", &call.to),
        ("Caller", &call.from),
        ("Direction", "inbound"),
        ("From", &call.from),
        ("To", &call.to),
    ]
    .map(|(name, value)| (name.to_string(), value.to_string()))
    .into();
    let unreachable = |error: reqwest::Error| WebhookError::Unreachable(error.without_url().to_string());
    let mut response = client
        .post(url)
        .header("X-Twilio-Signature", sign(auth_token.expose_secret(), url, &fields))
        .timeout(limit)
        .form(&fields)
        .send()
        .await
        .map_err(unreachable)?;
    if !response.status().is_success() {
        return Err(WebhookError::Status(response.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_TWIML {
            return Err(WebhookError::NoStream("more than 64 KB of TwiML".into()));
        }
    }
    let twiml = String::from_utf8_lossy(&body);
    read_stream(&twiml).ok_or_else(|| WebhookError::NoStream(twiml.chars().take(200).collect()))
}

/// Finds `<Connect>…<Stream url="…"><Parameter …/></Stream>`.
fn read_stream(twiml: &str) -> Option<StreamTwiml> {
    let connect = &twiml[twiml.find("<Connect")?..];
    let connect = &connect[..connect.find("</Connect>").unwrap_or(connect.len())];
    let stream = &connect[connect.find("<Stream")?..];
    let (tag, rest) = stream.split_once('>')?;
    let url = attribute(tag, "url")?;
    let inner = if tag.ends_with('/') { "" } else { &rest[..rest.find("</Stream>").unwrap_or(rest.len())] };
    let parameters = inner
        .split("<Parameter")
        .skip(1)
        .filter_map(|part| {
            let tag = part.split('>').next()?;
            Some((attribute(tag, "name")?, attribute(tag, "value")?))
        })
        .collect();
    Some(StreamTwiml { url, parameters })
}

/// The value of ` name="…"` in a tag, entities decoded. A raw `>` in a value is not met in TwiML: writers escape it.
fn attribute(tag: &str, name: &str) -> Option<String> {
    for (position, _) in tag.match_indices(name) {
        let before = tag[..position].chars().next_back();
        let after = tag[position + name.len()..].trim_start();
        if before.is_some_and(char::is_whitespace)
            && let Some(value) = after.strip_prefix('=').map(str::trim_start)
            && let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\''))
        {
            return value[1..].split_once(quote).map(|(value, _)| unescape(value));
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let decoded = rest.find(';').and_then(|end| {
            let entity = &rest[1..end];
            let character = match entity {
                "amp" => Some('&'),
                "lt" => Some('<'),
                "gt" => Some('>'),
                "quot" => Some('"'),
                "apos" => Some('\''),
                _ => entity.strip_prefix('#').and_then(|code| {
                    let number = match code.strip_prefix(['x', 'X']) {
                        Some(hex) => u32::from_str_radix(hex, 16),
                        None => code.parse(),
                    };
                    number.ok().and_then(char::from_u32)
                }),
            };
            character.map(|character| (character, end + 1))
        });
        let (character, used) = decoded.unwrap_or(('&', 1));
        out.push(character);
        rest = &rest[used..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_and_its_parameters_are_read_with_entities_decoded() {
        let twiml = r#"<?xml version="1.0" encoding="UTF-8"?>
            <Response><Connect action="https://a/b"><Stream statusCallback="https://x/url=1" url="wss://h/m?a=1&amp;b"
              name="agent"><Parameter name="session" value="7&#x41;&lt;"/>
              <Parameter value='two' name='second' /></Stream></Connect></Response>"#;
        let stream = read_stream(twiml).unwrap();
        assert_eq!(stream.url, "wss://h/m?a=1&b");
        assert_eq!(
            stream.parameters,
            [("session".to_string(), "7A<".to_string()), ("second".to_string(), "two".to_string())]
        );
    }

    #[test]
    fn a_stream_without_parameters_and_an_answer_without_a_stream_are_told_apart() {
        let twiml = r#"<Response><Connect><Stream url="ws://127.0.0.1/x" /></Connect></Response>"#;
        assert_eq!(read_stream(twiml).unwrap().url, "ws://127.0.0.1/x");
        assert_eq!(read_stream("<Response><Reject/></Response>"), None);
        assert_eq!(read_stream("<Response><Start><Stream url=\"wss://x\"/></Start></Response>"), None);
        assert_eq!(read_stream("<Connect><Stream url=\"unended"), None);
    }
}
