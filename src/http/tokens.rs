//! One-time tokens that let a media websocket in: made by the voice webhook, spent by the handshake. Only their hashes
//! are kept, so that neither a dump nor the time of a lookup says anything of a token.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::call::registry::CallSetup;

/// 256 random bits, base64url: one segment of a path. Prints as dots.
pub struct MediaToken(String);

impl MediaToken {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for MediaToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MediaToken(…)")
    }
}

/// The call that a token was made for.
#[derive(Clone, Debug)]
pub struct PendingCall {
    pub integration: Uuid,
    /// `provider_call` is the CallSid that the stream's `start` must name.
    pub setup: CallSetup,
}

/// Too many calls were offered in one token's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many media tokens outstanding")]
pub struct TokensFull;

/// The tokens that were made and have neither been spent nor expired.
pub struct MediaTokens {
    life: Duration,
    capacity: usize,
    store: Mutex<Store>,
}

#[derive(Default)]
struct Store {
    pending: HashMap<Key, PendingCall>,
    /// In order of expiry; holds spent tokens until they would have expired.
    order: VecDeque<(Instant, Key)>,
}

type Key = [u8; 32];

impl MediaTokens {
    /// Twilio opens the stream within a second or two of reading the TwiML.
    pub const LIFE: Duration = Duration::from_secs(30);
    /// Calls offered within one life: more than 300 a second, and some 10 MB.
    pub const CAPACITY: usize = 10_000;

    pub fn new(life: Duration, capacity: usize) -> Self {
        Self { life, capacity, store: Mutex::default() }
    }

    pub fn mint(&self, call: PendingCall, now: Instant) -> Result<MediaToken, TokensFull> {
        let token = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let mut store = self.live(now);
        if store.order.len() >= self.capacity {
            return Err(TokensFull);
        }
        let key = key(&token);
        store.order.push_back((now + self.life, key));
        store.pending.insert(key, call);
        Ok(MediaToken(token))
    }

    /// Whose call it is, without spending the token: the handshake's signature is checked in between.
    pub fn look_up(&self, token: &str, now: Instant) -> Option<PendingCall> {
        self.live(now).pending.get(&key(token)).cloned()
    }

    /// Spends the token: exactly one of any number of handshakes gets the call.
    pub fn take(&self, token: &str, now: Instant) -> Option<PendingCall> {
        self.live(now).pending.remove(&key(token))
    }

    /// The store without what has expired.
    fn live(&self, now: Instant) -> MutexGuard<'_, Store> {
        // No code panics while it holds the lock, and each step leaves the store whole.
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(&(expires, key)) = store.order.front() {
            if now < expires {
                break;
            }
            store.order.pop_front();
            store.pending.remove(&key);
        }
        store
    }
}

impl Default for MediaTokens {
    fn default() -> Self {
        Self::new(Self::LIFE, Self::CAPACITY)
    }
}

fn key(token: &str) -> Key {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::profile::AgentProfile;
    use crate::telephony::{CallId, Direction, PhoneNumber};
    use std::sync::Arc;

    const LIFE: Duration = Duration::from_secs(30);

    fn call(sid: &str) -> PendingCall {
        let agent: AgentProfile = toml::from_str("name = \"Front desk\"").unwrap();
        PendingCall {
            integration: Uuid::nil(),
            setup: CallSetup {
                id: CallId::new(),
                direction: Direction::Inbound,
                company: "Acme".into(),
                company_id: Uuid::nil(),
                integration: Uuid::nil(),
                provider: "twilio",
                provider_call: sid.into(),
                line: "+15550001111".into(),
                from: PhoneNumber::new("+15550002222"),
                to: PhoneNumber::new("+15550001111"),
                agent: Arc::new(agent),
                agent_id: None,
                agent_version: None,
                purpose: None,
                vars: Default::default(),
                fields: Default::default(),
            },
        }
    }

    #[test]
    fn a_token_works_once_and_for_its_own_call() {
        let (tokens, now) = (MediaTokens::new(LIFE, 10), Instant::now());
        let one = tokens.mint(call("CA1"), now).unwrap();
        let two = tokens.mint(call("CA2"), now).unwrap();
        assert_eq!(one.as_str().len(), 43);
        assert_eq!(tokens.look_up(one.as_str(), now).unwrap().setup.provider_call, "CA1");
        assert_eq!(tokens.take(one.as_str(), now).unwrap().setup.provider_call, "CA1");
        assert!(tokens.take(one.as_str(), now).is_none());
        assert!(tokens.look_up(one.as_str(), now).is_none());
        assert!(tokens.take("", now).is_none());
        assert_eq!(tokens.take(two.as_str(), now).unwrap().setup.provider_call, "CA2");
    }

    #[test]
    fn a_token_lives_for_its_life_and_not_longer() {
        let (tokens, now) = (MediaTokens::new(LIFE, 10), Instant::now());
        let token = tokens.mint(call("CA1"), now).unwrap();
        assert!(tokens.look_up(token.as_str(), now + LIFE - Duration::from_nanos(1)).is_some());
        assert!(tokens.take(token.as_str(), now + LIFE).is_none());
    }

    #[test]
    fn the_store_is_bounded_and_recovers() {
        let (tokens, now) = (MediaTokens::new(LIFE, 2), Instant::now());
        let one = tokens.mint(call("CA1"), now).unwrap();
        tokens.mint(call("CA2"), now + Duration::from_secs(1)).unwrap();
        tokens.take(one.as_str(), now).unwrap();
        assert_eq!(tokens.mint(call("CA3"), now + Duration::from_secs(2)).unwrap_err(), TokensFull);
        assert!(tokens.mint(call("CA3"), now + LIFE).is_ok());
        let store = tokens.live(now + LIFE * 3);
        assert!(store.pending.is_empty() && store.order.is_empty());
    }

    #[test]
    fn a_printed_token_is_hidden() {
        let token = MediaTokens::default().mint(call("CA1"), Instant::now()).unwrap();
        assert_eq!(format!("{token:?}"), "MediaToken(…)");
    }
}
