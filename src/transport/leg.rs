//! A leg: one party's line into a call, whatever carries it. The transport's task owns the socket and holds the other
//! ends of these channels.

use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::media::jitter::JitterConfig;
use crate::media::packet::{Codec, Packet};
use crate::telephony::CallEnd;

/// What a carrier tells the call.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "packets travel inline: boxing them would allocate 50 times a second a call"
)]
pub enum LegEvent {
    /// Caller audio, in order of arrival.
    Packet(Packet),
    /// A key the caller pressed: `0-9 * # A-D`.
    Dtmf(char),
    /// Everything sent before this mark has been played to the caller. Marks that a `Clear` overtook are never
    /// reported.
    Played { mark: u64 },
    /// The other side holds the call, or takes it off hold: while it does, it does not hear us, or we do not hear it.
    Held(bool),
    /// Whether keys must be looked for in the sound from here on: both sides have agreed anew. See `Leg::in_band_keys`.
    InBandKeys(bool),
    /// The leg is over. Nothing follows.
    Ended(CallEnd),
}

/// What the call tells a carrier.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "packets travel inline: boxing them would allocate 50 times a second a call"
)]
pub enum LegCommand {
    /// 20 ms of agent audio, to be played after what was sent before.
    Audio(Packet),
    /// Report `Played` when everything sent so far has been heard. Numbers grow over the call.
    Mark(u64),
    /// Throw away what the carrier holds and has not played.
    Clear,
    /// Press a key for the other side: `0-9 * # A-D`. A carrier that has no means for it drops it.
    Key(char),
}

/// Two seconds of 20 ms packets. Older audio is no use to a live call: when full, the transport drops and counts.
pub const LEG_EVENT_QUEUE: usize = 100;
/// Half a second of audio with its marks and keys. The call paces itself; a full queue means a stuck socket: drop and count.
pub const LEG_COMMAND_QUEUE: usize = 64;

/// What the call holds. Dropping it hangs up: the transport's task sees the token and says goodbye.
pub struct Leg {
    pub codec: Codec,
    /// Look for key tones in the sound, to begin with: this carrier does not report keys itself.
    pub in_band_keys: bool,
    /// Whether the carrier presses keys for the other side ([`LegCommand::Key`]); else they are made as sound.
    pub presses_keys: bool,
    /// How packets are put in order and held. `None`: they come in order and in time, and are heard on arrival. With a
    /// buffer the call hears 20 ms on every tick, and missing media is the transport's to notice.
    pub jitter: Option<JitterConfig>,
    pub events: mpsc::Receiver<LegEvent>,
    pub commands: mpsc::Sender<LegCommand>,
    /// Cancelled by either side: the call hangs up, or the transport lost its socket.
    pub hangup: CancellationToken,
    _guard: DropGuard,
}

/// What the transport's task holds.
pub struct LegSide {
    pub events: mpsc::Sender<LegEvent>,
    pub commands: mpsc::Receiver<LegCommand>,
    pub hangup: CancellationToken,
}

impl Leg {
    pub fn pair(codec: Codec) -> (Leg, LegSide) {
        let (events_tx, events) = mpsc::channel(LEG_EVENT_QUEUE);
        let (commands, commands_rx) = mpsc::channel(LEG_COMMAND_QUEUE);
        let hangup = CancellationToken::new();
        let leg = Leg {
            codec,
            in_band_keys: false,
            presses_keys: false,
            jitter: None,
            events,
            commands,
            hangup: hangup.clone(),
            _guard: hangup.clone().drop_guard(),
        };
        (leg, LegSide { events: events_tx, commands: commands_rx, hangup })
    }
}
