//! Wall time, for call records and tokens only: media and turn-taking run on `Instant`s that are handed in.

use jiff::Timestamp;

/// The wall time now.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// The wall time now with the server's time zone.
pub fn local_now() -> jiff::Zoned {
    jiff::Zoned::now()
}

/// A moment as a person would say it: `Sunday 22 November 2026, 12:05`.
pub fn spoken(at: &jiff::Zoned) -> String {
    at.strftime("%A %-d %B %Y, %H:%M").to_string()
}
