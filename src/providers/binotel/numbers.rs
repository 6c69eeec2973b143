//! Numbers as Binotel writes them: Ukrainian ones national with ten digits, foreign ones as digits, and extensions.

use crate::telephony::PhoneNumber;

/// `0501234567`, `380501234567` and `+38 050 123-45-67` are `+380501234567`; extensions and texts stay as they are, cut
/// to a sensible length; whoever hides is empty.
pub fn from_binotel(text: &str) -> PhoneNumber {
    let text: String = text.trim().chars().filter(|c| !c.is_control()).take(64).collect();
    let lower = text.to_ascii_lowercase();
    if matches!(lower.as_str(), "anonymous" | "unknown" | "hidden" | "private" | "restricted" | "unavailable") {
        return PhoneNumber::default();
    }
    if !text.chars().all(|c| c.is_ascii_digit() || matches!(c, '+' | ' ' | '-' | '(' | ')')) {
        return PhoneNumber::new(text);
    }
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    let number = match (digits.as_bytes(), digits.len()) {
        ([b'0', b'0', ..], 10..=17) => format!("+{}", &digits[2..]),
        ([b'0', ..], 10) => format!("+38{digits}"),
        (_, 10..=15) => format!("+{digits}"),
        _ => digits,
    };
    PhoneNumber::new(number)
}

/// `+380501234567` is `0501234567`, another country's number its digits, an extension itself. `None`: no number.
pub fn to_binotel(number: &str) -> Option<String> {
    let digits = number.strip_prefix('+').unwrap_or(number);
    if !(2..=15).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(match digits.strip_prefix("380").filter(|rest| rest.len() == 9) {
        Some(rest) => format!("0{rest}"),
        None => digits.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_in_as_e164() {
        for (binotel, e164) in [
            ("0501234567", "+380501234567"),
            ("380501234567", "+380501234567"),
            ("+38 (050) 123-45-67", "+380501234567"),
            ("0014155550100", "+14155550100"),
            ("14155550100", "+14155550100"),
            ("901", "901"),
            ("", ""),
            ("Anonymous", ""),
            ("hidden by law", "hidden by law"),
        ] {
            assert_eq!(from_binotel(binotel).as_str(), e164, "{binotel}");
        }
    }

    #[test]
    fn numbers_go_out_as_binotel_wants_them() {
        for (number, binotel) in [
            ("+380501234567", Some("0501234567")),
            ("380501234567", Some("0501234567")),
            ("0501234567", Some("0501234567")),
            ("+14155550100", Some("14155550100")),
            ("912", Some("912")),
            ("", None),
            ("acme", None),
            ("+3805012345678901", None),
        ] {
            assert_eq!(to_binotel(number).as_deref(), binotel, "{number}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_ukrainian_number_survives_the_way_there_and_back(rest in "[1-9][0-9]{8}") {
            let number = format!("+380{rest}");
            let back = from_binotel(&to_binotel(&number).unwrap());
            proptest::prop_assert_eq!(back.as_str(), number);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,80}") {
            let _ = (from_binotel(&text), to_binotel(&text));
        }
    }
}
