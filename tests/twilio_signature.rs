//! `X-Twilio-Signature` against the vectors of Twilio's own libraries (twilio-python, -node, -go, -ruby) and against
//! some of our own, computed with another implementation of HMAC. The Auth Token is `12345` everywhere.

use std::path::PathBuf;

use offhook::providers::twilio::signature::{SignatureError, sign, verify_body, verify_form, verify_websocket};
use secrecy::SecretString;

const U: &str = "https://mycompany.com/myapp.php?foo=1&bar=2";
const P: &[(&str, &str)] = &[
    ("To", "+18005551212"),
    ("From", "+14158675309"),
    ("Digits", "1234"),
    ("Caller", "+14158675309"),
    ("CallSid", "CA1234567890ABCDE"),
];
/// SHA-256 of [`JSON`].
const H: &str = "0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620";
const JSON: &[u8] = br#"{"property": "value", "boolean": true}"#;
/// SHA-256 of `{}`.
const E: &str = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

fn token() -> [SecretString; 1] {
    ["12345".into()]
}

fn fields(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn and<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    P.iter().copied().chain(more.iter().copied()).collect()
}

/// The signature is what Twilio makes of `signed`, and is accepted for every URL in `requested`.
fn check_form(signed: &str, pairs: &[(&str, &str)], signature: &str, requested: &[&str]) {
    let fields = fields(pairs);
    assert_eq!(sign(&token()[0], signed, &fields), signature, "{signed}");
    for url in requested.iter().chain(&[signed]) {
        assert_eq!(verify_form(&token(), url, &fields, signature), Ok(()), "{url}");
    }
}

#[test]
fn forms_signed_for_any_port_are_accepted() {
    let v1 = "RSOYDt4T1cUTdK1PDd93/VVr8B8=";
    check_form(U, P, v1, &["https://mycompany.com:1234/myapp.php?foo=1&bar=2"]); // V1
    check_form("http://mycompany.com:1234/myapp.php?foo=1&bar=2", P, "Zmvh+3yNM1Phv2jhDCwEM3q5ebU=", &[]); // V2
    check_form("https://mycompany.com:443/myapp.php?foo=1&bar=2", P, "kvajT1Ptam85bY51eRf/AJRuM3w=", &[U]); // V3
    let http = "http://mycompany.com/myapp.php?foo=1&bar=2";
    check_form("http://mycompany.com:80/myapp.php?foo=1&bar=2", P, "0ZXoZLH/DfblKGATFgpif+LLRf4=", &[http]); // V4
    check_form(http, P, "OyGYPqTF6ztdbRNCvuQO/oPvqQ4=", &[]); // V5
}

#[test]
fn user_and_password_are_part_of_the_signed_url() {
    let both = "https://user:pass@mycompany.com/myapp.php?foo=1&bar=2";
    let both_443 = "https://user:pass@mycompany.com:443/myapp.php?foo=1&bar=2";
    check_form(both, P, "CukzLTc1tT5dXEDIHm/tKBanW10=", &[]); // V6
    check_form(both_443, P, "ZQFR1PTIZXF2MXB8ZnKCvnnA+rI=", &[both]); // V7
    let user = "https://user@mycompany.com/myapp.php?foo=1&bar=2";
    let user_443 = "https://user@mycompany.com:443/myapp.php?foo=1&bar=2";
    check_form(user, P, "2YRLlVAflCqxaNicjMpJcSTgzSs=", &[]); // V8
    check_form(user_443, P, "aZfj4hyX1MLZhSS6QIL18Vn2/RA=", &[user]); // V9
}

#[test]
fn a_body_that_is_no_form_is_vouched_for_by_the_url() {
    let check = |url: &str, body: &[u8], signature: &str| {
        assert_eq!(verify_body(&token(), url, body, signature), Ok(()), "{url}");
        assert_eq!(verify_body(&token(), url, b"{ }", signature), Err(SignatureError::WrongBody));
        assert_eq!(verify_body(&token(), url, body, "WRONG_SIGNATURE"), Err(SignatureError::Wrong));
    };
    check(&format!("{U}&bodySHA256={H}"), JSON, "a9nBmqA0ju/hNViExpshrM61xv4="); // V10
    check(&format!("https://mycompany.com/myapp.php?bodySHA256={H}"), JSON, "y77kIzt2vzLz71DgmJGsen2scGs="); // V11
    let v15 = "Ldidvp12m26NI7eqEvxnEpkd9Hc=";
    check(&format!("https://mycompany.com:443/myapp.php?foo=1&bar=2&bodySHA256={E}"), b"{}", v15); // V15
    check(&format!("{U}&bodySHA256={E}"), b"{}", v15);
    let unvouched = sign(&token()[0], U, &[]);
    assert_eq!(verify_body(&token(), U, JSON, &unvouched), Err(SignatureError::WrongBody));
}

#[test]
fn a_query_may_be_signed_as_old_back_ends_encode_it() {
    let signed = format!("{U}&Body=It%27s+amazing");
    check_form(&signed, P, "TfZzewPq8wqrGlMfyAud8+/IvJ0=", &[&format!("{U}&Body=It's+amazing")]); // V12
}

#[test]
fn repeated_fields_count_once_per_value_and_names_sort_before_values() {
    let v13 = "83O6e2vORAoJHUNzJjDWN1jz+BA=";
    let (one, two) = (("MessagingBinding.Address", "+1325xxxxxxx"), ("MessagingBinding.Address", "+1415xxxxxxx"));
    check_form(U, &[one, two], v13, &[]);
    check_form(U, &[two, one], v13, &[]);
    let v14 = [("Sid", "CA123"), ("SidAccount", "AC123"), ("Digits", "5678"), ("Digits", "1234"), ("Digits", "1234")];
    check_form(U, &v14, "IK+Dwps556ElfBT0I3Rgjkr1wJU=", &[]);
    check_form(U, &[("property", "value"), ("boolean", "true")], "NBdBDr/T/lgjI+tlgpXjKZQZs/k=", &[]); // V16
    let reasons = and(&[("ReasonConferenceEnded", "test"), ("Reason", "Participant")]);
    check_form(U, &reasons, "vOEb5UThFn24KEfnOFLQY2AE5FY=", &[]); // V17
    let wrongly_sorted = verify_form(&token(), U, &fields(&reasons), "95+Bu0JVPi0r/SsESZCVf0dWAjw=");
    assert_eq!(wrongly_sorted, Err(SignatureError::Wrong));
    let (http, http_1234) =
        ("http://mycompany.com/myapp.php?foo=1&bar=2", "http://mycompany.com:1234/myapp.php?foo=1&bar=2");
    check_form(http, &reasons, "n2xBNyzSW7rfYStDtOFiFMv7qNo=", &[http_1234]); // V18
}

#[test]
fn whatever_was_not_signed_is_refused() {
    let v1 = "RSOYDt4T1cUTdK1PDd93/VVr8B8=";
    let refused = |url: &str, pairs: &[(&str, &str)], signature: &str| {
        assert_eq!(verify_form(&token(), url, &fields(pairs), signature), Err(SignatureError::Wrong), "{url}");
    };
    refused(U, P, "WRONG_SIGNATURE");
    refused(U, P, "");
    refused(&format!("{U}&somethingUnexpected=true"), P, v1);
    refused("http://mycompany.com/myapp.php?foo=1&bar=2", P, v1);
    refused("https://mycompany.com/myapp.php/?foo=1&bar=2", P, v1);
    refused(U, &P[1..], v1);
    refused(U, &and(&[("Extra", "x")]), v1);
    assert!(verify_body(&token(), U, JSON, v1).is_err());
    assert_eq!(verify_form(&[], U, &fields(P), v1), Err(SignatureError::Wrong));
    assert_eq!(verify_form(&["54321".into()], U, &fields(P), v1), Err(SignatureError::Wrong));
    assert_eq!(verify_form(&token(), "/myapp.php", &fields(P), v1), Err(SignatureError::NotAUrl));
}

#[test]
fn both_tokens_are_accepted_while_one_replaces_the_other() {
    let tokens: [SecretString; 2] = ["new".into(), "12345".into()];
    assert_eq!(verify_form(&tokens, U, &fields(P), "RSOYDt4T1cUTdK1PDd93/VVr8B8="), Ok(()));
    assert_eq!(verify_form(&tokens, U, &fields(P), &sign(&tokens[0], U, &fields(P))), Ok(()));
}

#[test]
fn a_websocket_handshake_is_signed_as_wss_or_https() {
    let url = "wss://voice.example.com/twilio/media/abc123";
    for (signed, signature) in [
        (url, "kYGuV5lN1ld/DaDT0ztOhSH1xCI="), // O1
        ("wss://voice.example.com:443/twilio/media/abc123", "tG8+mCKkwqhAHXEwHp2Wi66WswY="), // O2
        ("https://voice.example.com/twilio/media/abc123", "715yHu+n3n6uqIBMIrUSllefPWs="), // O3
    ] {
        assert_eq!(sign(&token()[0], signed, &[]), signature);
        assert_eq!(verify_websocket(&token(), url, signature), Ok(()), "{signed}");
    }
    for other in [
        "ws://voice.example.com/twilio/media/abc123",
        "wss://voice.example.com/twilio/media/abc123/",
        "wss://voice.example.com/twilio/media/abc124",
    ] {
        let signature = sign(&token()[0], other, &[]);
        assert_eq!(verify_websocket(&token(), url, &signature), Err(SignatureError::Wrong), "{other}");
    }
    let local = "ws://127.0.0.1:8080/media/twilio/abc123";
    assert_eq!(verify_websocket(&token(), local, &sign(&token()[0], local, &[])), Ok(()));
}

#[test]
fn our_own_vectors_hold() {
    check_form(
        "https://voice.example.com/twilio/voice?CallSid=CA00000000000000000000000000000001&From=%2B380441234567&To=%2B380501234567",
        &[],
        "ZXbP4RuskWaISH5gWI3dZvtxxIo=",
        &[],
    ); // O4
    check_form(
        "https://voice.example.com/twilio/sms",
        &[
            ("Body", "Добрий день, 100% + так & ні"),
            ("From", "+380501234567"),
            ("MessageSid", "SM00000000000000000000000000000001"),
            ("To", "+380441234567"),
        ],
        "01HB8igVbiBUkwL+gpAFHzdqJ24=",
        &[],
    ); // O5
    let voice = "https://voice.example.com/twilio/voice";
    check_form(voice, &[], "bzRjwRX9HXMr3YLXbRw0Tn4DXSQ=", &[]); // O6
    let empty = [("CallerName", ""), ("CallSid", "CA00000000000000000000000000000001")];
    check_form(voice, &empty, "zIeW6OmbcWdx/iArRCbFpuqpEhc=", &[]); // O7
}

#[test]
fn the_collected_vectors_hold() {
    let shared = std::env::var_os("OFFHOOK_SHARED")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let Ok(text) = std::fs::read_to_string(shared.join("sip/twilio/signature-vectors.json")) else {
        println!("skipped: no shared data");
        return;
    };
    let vectors: Vec<serde_json::Value> = serde_json::from_str(&text).expect("the vectors are JSON");
    assert!(vectors.len() >= 14);
    for vector in &vectors {
        let text = |key: &str| vector[key].as_str();
        let token: SecretString = text("auth_token").expect("a token").into();
        let (url, signature) = (text("request_url").expect("a URL"), text("x_twilio_signature").expect("a signature"));
        let pairs: Vec<(String, String)> = serde_json::from_value(vector["params"].clone()).expect("pairs");
        let result = match text("body") {
            Some(body) => verify_body(&[token], url, body.as_bytes(), signature),
            None => verify_form(&[token], url, &pairs, signature),
        };
        assert_eq!(result.is_ok(), vector["valid"] == true, "{}: {result:?}", vector["name"]);
    }
}
