//! Signs requests as Twilio does. The caller has a signer of its own, so that it checks the server's from outside.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;

/// The value of `X-Twilio-Signature`: HMAC-SHA1 over the URL and the form fields sorted by name, in base64
/// (twilio.com/docs/usage/webhooks/webhooks-security). For a websocket handshake `fields` is empty and the URL is the
/// one written in the TwiML.
pub fn sign(auth_token: &str, url: &str, fields: &[(String, String)]) -> String {
    let mut sorted: Vec<&(String, String)> = fields.iter().collect();
    sorted.sort();
    sorted.dedup();
    let mut mac = Hmac::<Sha1>::new_from_slice(auth_token.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(url.as_bytes());
    for (name, value) in sorted {
        mac.update(name.as_bytes());
        mac.update(value.as_bytes());
    }
    STANDARD.encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn signatures_equal_the_published_vectors() {
        let url = "https://mycompany.com/myapp.php?foo=1&bar=2";
        let call = fields(&[
            ("To", "+18005551212"),
            ("CallSid", "CA1234567890ABCDE"),
            ("Caller", "+14158675309"),
            ("Digits", "1234"),
            ("From", "+14158675309"),
        ]);
        assert_eq!(sign("12345", url, &call), "RSOYDt4T1cUTdK1PDd93/VVr8B8=");
        let repeated = fields(&[
            ("Sid", "CA123"),
            ("SidAccount", "AC123"),
            ("Digits", "5678"),
            ("Digits", "1234"),
            ("Digits", "1234"),
        ]);
        assert_eq!(sign("12345", url, &repeated), "IK+Dwps556ElfBT0I3Rgjkr1wJU=");
    }
}
