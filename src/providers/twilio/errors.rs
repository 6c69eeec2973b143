//! What Twilio's error codes mean and what cures them. <https://www.twilio.com/docs/api/errors>

/// What is behind an error code, and the cure; `None` for the many that need no words beyond Twilio's own.
pub fn cure(code: i64) -> Option<&'static str> {
    Some(match code {
        10001 | 20005 => "the account is not active: look at it in the Console",
        10004 => "too many calls at once for this account: let some end, or ask Twilio for more",
        13223..=13225 => "the number cannot be dialled: check it",
        20001 | 20002 => "Twilio did not understand the request",
        20003 => "check account_sid and auth_token (or api_key and api_secret)",
        20008 => "test credentials cannot do this: give the account's live ones",
        20404 => "it does not exist in this account, or is over",
        20429 => "too many requests: wait and try again",
        21201 | 21211 | 21217 => "the called number is no number: give it in full, with + and the country",
        21203 => "calls to this number are not allowed",
        21205 => "the webhook's address is no address that Twilio takes: check server.public_url",
        21210 | 21212 => {
            "the calling number is neither of this account nor verified: list the lines and take one of them"
        }
        21214 => "the called number cannot be reached",
        21215 => "the country is not enabled for calls: enable it in the Console (Voice, Geo permissions)",
        21216 => "the number is on Twilio's list of blocked numbers",
        21219 => "a trial account calls verified numbers only: verify the number or upgrade the account",
        21220 => "the call is not in progress",
        21401..=21404 => "the webhook's address or method is not one that Twilio takes",
        21408 => "the country is not enabled for messages: enable it in the Console (Messaging, Geo permissions)",
        21421 | 21452 => "the number is not available",
        21601 | 21606 | 21659 => "the sender is no number of this account that can send messages: take another",
        21602 => "a message needs a text",
        21603 | 21604 => "a message needs a sender and a receiver",
        21605 | 21617 => "the text is longer than 1600 characters: shorten it",
        21608 => "a trial account writes to verified numbers only: verify the number or upgrade the account",
        21610 => "the receiver has opted out with STOP: only START from that phone lifts it",
        21611 => "too many messages wait for this sender: send later",
        21612 => "no route from this sender to this receiver: take a sender of the same country",
        21614 => "the receiver is no mobile number",
        21703 => "the messaging service has no sender that fits: add a number to it",
        30001 => "the queue was full: send later",
        30002 => "the account is suspended",
        30003 => "the phone is unreachable or switched off",
        30004 => "the receiver or its carrier blocks the message",
        30005 => "the number is unknown or out of service",
        30006 => "the number is a landline or its carrier cannot be reached",
        30007 => "the carrier filtered the message out as spam",
        30008 => "the carrier gave no reason",
        30032 | 30034 => "the sender is not registered for messages to this country (toll-free or A2P 10DLC)",
        30410 => "the carrier gave no answer in time",
        30450 | 30453 => "Twilio blocked it as possible fraud",
        _ => return None,
    })
}

/// For a message's record: code and meaning.
pub fn explained(code: &str) -> String {
    match code.parse().ok().and_then(cure) {
        Some(meaning) => format!("{code}: {meaning}"),
        None => format!("{code}: see https://www.twilio.com/docs/api/errors/{code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_kept_with_its_meaning() {
        assert_eq!(explained("30003"), "30003: the phone is unreachable or switched off");
        assert_eq!(explained("63024"), "63024: see https://www.twilio.com/docs/api/errors/63024");
    }
}
