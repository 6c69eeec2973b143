//! Wall time, for call records and tokens only: media and turn-taking run on `Instant`s that are handed in.

use jiff::Timestamp;

/// The wall time now, UTC.
pub fn now() -> Timestamp {
    Timestamp::now()
}
