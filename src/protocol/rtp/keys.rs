//! Keys as named telephone events (RFC 4733): one digit out of its packets and repeats, and the packets of the digits we
//! press.

use std::collections::VecDeque;
use std::time::Duration;

use crate::media::packet::ClockRate;

/// Event codes 0 to 15 (RFC 4733 §3.2).
const KEYS: &[u8; 16] = b"0123456789*#ABCD";
/// Digits that wait to be sent: a card number and its pauses. More are refused.
const MAX_QUEUED: usize = 64;
/// The last packet of a key is sent so often (§2.5.1.4).
const ENDS: u32 = 3;
/// -10 dBm0, in the middle of what is allowed.
const VOLUME: u8 = 10;
/// Repeats of an earlier key come within this; an older timestamp is a clock that began anew.
const REPEATS: Duration = Duration::from_secs(5);

/// Turns event packets into digits: each key once, on its first packet, so that no lost packet loses it.
#[derive(Debug, Default)]
pub struct KeyReader {
    last: Option<Heard>,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    event: u8,
    timestamp: u32,
    duration: u16,
    ended: bool,
}

impl KeyReader {
    /// A packet of the agreed payload type. `timestamp` counts at `clock`, and is the same in all packets of a key.
    pub fn on_packet(&mut self, clock: ClockRate, timestamp: u32, marker: bool, payload: &[u8]) -> Option<char> {
        let &[event, flags, high, low] = payload.first_chunk::<4>()?;
        let key = char::from(*KEYS.get(usize::from(event))?);
        let packet = Heard { event, timestamp, duration: u16::from_be_bytes([high, low]), ended: flags & 0x80 != 0 };
        let Some(last) = self.last else {
            self.last = Some(packet);
            return Some(key);
        };
        let step = timestamp.wrapping_sub(last.timestamp) as i32;
        if step == 0 {
            // A packet overtaken by the end does not open the key again.
            let duration = packet.duration.max(last.duration);
            self.last = Some(Heard { duration, ended: last.ended || packet.ended, ..last });
            return None;
        }
        if step < 0 && u64::from(step.unsigned_abs()) < clock.ticks(REPEATS) {
            return None;
        }
        // A key held for longer than a duration can say goes on in a segment that begins where it ended (§2.5.1.3);
        // and there are senders that move the timestamp with every packet of a key.
        let goes_on = !last.ended
            && !marker
            && event == last.event
            && step > 0
            && step as u64 <= u64::from(last.duration) + clock.ticks(Duration::from_millis(100));
        self.last = Some(packet);
        (!goes_on).then_some(key)
    }

    /// Another sender's timestamps have nothing to do with the last one's.
    pub fn reset(&mut self) {
        self.last = None;
    }
}

/// One packet of a key to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyPacket {
    pub payload: [u8; 4],
    /// The key's own, however far the stream's has come.
    pub timestamp: u32,
    /// The first packet of a key.
    pub marker: bool,
}

/// Presses keys one after the other, a packet each time one is asked for.
#[derive(Debug)]
pub struct KeyWriter {
    queue: VecDeque<u8>,
    state: Sending,
    length: Duration,
    pause: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    Idle,
    Pressed { event: u8, timestamp: u32, held: Duration },
    Released { event: u8, timestamp: u32, duration: u16, left: u32 },
    Pausing { left: Duration },
}

impl KeyWriter {
    /// `length` of a key and `pause` behind it; 100 ms and 60 ms are understood everywhere (ITU-T Q.24 asks for 40 each).
    pub fn new(length: Duration, pause: Duration) -> Self {
        Self { queue: VecDeque::with_capacity(MAX_QUEUED), state: Sending::Idle, length, pause }
    }

    /// False when it is no key, or too many wait.
    pub fn press(&mut self, key: char) -> bool {
        let event = KEYS.iter().position(|&known| char::from(known) == key.to_ascii_uppercase());
        let Some(event) = event.filter(|_| self.queue.len() < MAX_QUEUED) else { return false };
        self.queue.push_back(event as u8);
        true
    }

    /// Whether the next packet would be one of a key.
    pub fn is_sending(&self) -> bool {
        !self.queue.is_empty() || matches!(self.state, Sending::Pressed { .. } | Sending::Released { .. })
    }

    /// The packet in place of `ptime` of sound; `None` while no key is pressed. `timestamp` is the stream's; `clock`
    /// counts the durations.
    pub fn next(&mut self, timestamp: u32, ptime: Duration, clock: ClockRate) -> Option<KeyPacket> {
        if let Sending::Pausing { left } = self.state {
            let left = left.saturating_sub(ptime);
            self.state = if left.is_zero() { Sending::Idle } else { Sending::Pausing { left } };
            return None;
        }
        if self.state == Sending::Idle {
            let event = self.queue.pop_front()?;
            self.state = Sending::Pressed { event, timestamp, held: Duration::ZERO };
        }
        match self.state {
            Sending::Pressed { event, timestamp, held } => {
                let marker = held.is_zero();
                let held = held + ptime;
                let duration = clock.ticks(held).min(u64::from(u16::MAX)) as u16;
                let over = held >= self.length;
                self.state = if over {
                    Sending::Released { event, timestamp, duration, left: ENDS - 1 }
                } else {
                    Sending::Pressed { event, timestamp, held }
                };
                Some(packet(event, over, duration, timestamp, marker))
            }
            Sending::Released { event, timestamp, duration, left } => {
                self.state = if left > 1 {
                    Sending::Released { event, timestamp, duration, left: left - 1 }
                } else {
                    Sending::Pausing { left: self.pause }
                };
                Some(packet(event, true, duration, timestamp, false))
            }
            Sending::Idle | Sending::Pausing { .. } => None,
        }
    }
}

fn packet(event: u8, end: bool, duration: u16, timestamp: u32, marker: bool) -> KeyPacket {
    let [high, low] = duration.to_be_bytes();
    KeyPacket { payload: [event, u8::from(end) << 7 | VOLUME, high, low], timestamp, marker }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: ClockRate = ClockRate::HZ_8000;
    const PTIME: Duration = Duration::from_millis(20);

    /// Timestamp, marker, event, end, duration.
    type Step = (u32, bool, u8, bool, u16);

    fn heard(steps: &[Step]) -> String {
        let mut reader = KeyReader::default();
        let packet = |&(timestamp, marker, event, end, duration): &Step| {
            let payload = packet(event, end, duration, timestamp, marker).payload;
            reader.on_packet(CLOCK, timestamp, marker, &payload)
        };
        steps.iter().filter_map(packet).collect()
    }

    #[test]
    fn a_key_is_one_digit_however_many_of_its_packets_come() {
        let whole = [
            (800, true, 5, false, 160),
            (800, false, 5, false, 320),
            (800, false, 5, true, 480),
            (800, false, 5, true, 480),
        ];
        assert_eq!(heard(&whole), "5");
        for only in 0..4 {
            assert_eq!(heard(&whole[only..=only]), "5");
        }
        // Its end comes before the rest.
        assert_eq!(heard(&[whole[2], whole[0], whole[1], whole[3]]), "5");
    }

    #[test]
    fn the_same_key_twice_is_two_digits_also_with_lost_ends() {
        assert_eq!(heard(&[(800, true, 5, false, 160), (2400, true, 5, false, 160), (800, false, 5, true, 160)]), "55");
        assert_eq!(heard(&[(800, true, 5, true, 160), (2400, false, 5, true, 160)]), "55");
        assert_eq!(heard(&[(800, true, 5, false, 160), (1120, false, 6, false, 160)]), "56");
    }

    #[test]
    fn a_long_key_goes_on_in_segments() {
        let next = 800 + 0xFFFF;
        let long = [(800, true, 11, false, 0xFFFF), (next, false, 11, false, 160), (next, false, 11, true, 320)];
        assert_eq!(heard(&long), "#");
        // A sender that moves the timestamp with each packet.
        let moving = [
            (800, true, 1, false, 160),
            (960, false, 1, false, 160),
            (1120, false, 1, true, 160),
            (1120, false, 1, true, 160),
        ];
        assert_eq!(heard(&moving), "1");
    }

    #[test]
    fn what_is_no_key_is_passed_over() {
        let mut reader = KeyReader::default();
        assert_eq!(reader.on_packet(CLOCK, 1, true, &[16, 0, 0, 160]), None, "a hook flash");
        assert_eq!(reader.on_packet(CLOCK, 1, true, &[5, 0, 0]), None, "cut short");
        assert_eq!(reader.on_packet(CLOCK, 1, true, &[15, 0, 0, 160, 7]), Some('D'));
    }

    #[test]
    fn what_is_pressed_is_read_back_and_ends_three_times() {
        let (mut writer, mut reader) = (KeyWriter::new(PTIME * 5, PTIME * 3), KeyReader::default());
        assert!("12*#d22".chars().all(|key| writer.press(key)) && !writer.press('x'));
        let (mut read, mut ends, mut timestamp) = (String::new(), 0, u32::MAX - 3000);
        for _ in 0..120 {
            if let Some(packet) = writer.next(timestamp, PTIME, CLOCK) {
                ends += u32::from(packet.payload[1] & 0x80 != 0);
                read.extend(reader.on_packet(CLOCK, packet.timestamp, packet.marker, &packet.payload));
            }
            timestamp = timestamp.wrapping_add(160);
        }
        assert_eq!((read.as_str(), ends), ("12*#D22", 21));
        assert!(!writer.is_sending());
    }

    #[test]
    fn a_key_lasts_as_long_as_it_says() {
        let mut writer = KeyWriter::new(Duration::from_millis(100), PTIME);
        writer.press('0');
        let packets: Vec<KeyPacket> = (0..10).filter_map(|n| writer.next(n * 160, PTIME, CLOCK)).collect();
        let durations: Vec<u16> =
            packets.iter().map(|packet| u16::from_be_bytes([packet.payload[2], packet.payload[3]])).collect();
        assert_eq!(durations, [160, 320, 480, 640, 800, 800, 800]);
        assert!(packets[0].marker && packets[1..].iter().all(|packet| !packet.marker && packet.timestamp == 0));
    }

    #[test]
    fn too_many_keys_are_refused() {
        let mut writer = KeyWriter::new(PTIME, PTIME);
        assert_eq!((0..100).filter(|_| writer.press('1')).count(), MAX_QUEUED);
    }
}
