//! Binotel's API 4.0: always POST, key and secret in the body, `status` in the answer. Statistics are asked at the pace
//! that Binotel bears; what makes or ends a call is asked at once, and once.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep, sleep_until};

use super::loose::Loose;
use crate::providers::rest::{ProviderError, Repeat, Rest};

/// Requests of statistics that are free in a minute; after them come pauses.
const FREE: usize = 5;
const MINUTE: Duration = Duration::from_secs(60);
/// Whoever would wait longer for a turn is told to come back.
const LONGEST_QUEUE: Duration = Duration::from_secs(45);
/// Tries of a read that was asked too often.
const ATTEMPTS: u32 = 3;

/// What makes up a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// `stats/*`: paced, repeated.
    Stats,
    /// `settings/*`: repeated.
    Settings,
    /// `calls/*`: at once, never twice: a request without an answer may have started a call.
    Calls,
}

#[derive(Debug)]
pub struct Api {
    rest: Rest,
    key: SecretString,
    secret: SecretString,
    queue: Mutex<Queue>,
    gap: Duration,
}

impl Api {
    pub fn new(base: &str, key: SecretString, secret: SecretString, gap: Duration) -> Result<Self, ProviderError> {
        Ok(Self { rest: Rest::new(base, Duration::ZERO)?, key, secret, queue: Mutex::new(Queue::new(gap)), gap })
    }

    pub async fn ask(&self, lane: Lane, method: &str, params: &[(&str, Value)]) -> Result<Loose, ProviderError> {
        let mut body: Map<String, Value> =
            params.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        body.insert("key".to_owned(), self.key.expose_secret().into());
        body.insert("secret".to_owned(), self.secret.expose_secret().into());
        let mut attempt = 1;
        loop {
            let answer = self.once(lane, method, &body).await;
            let again = match &answer {
                Err(ProviderError::RateLimited { .. }) => true,
                Err(ProviderError::Refused { code, .. }) => code == "105",
                _ => false,
            };
            if !again || lane == Lane::Calls || attempt == ATTEMPTS {
                return answer;
            }
            attempt += 1;
            // 5.25 s at the usual gap of 3.5 s: Binotel wants five.
            sleep(self.gap + self.gap / 2).await;
        }
    }

    async fn once(&self, lane: Lane, method: &str, body: &Map<String, Value>) -> Result<Loose, ProviderError> {
        if lane == Lane::Stats {
            let turn = self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).turn(Instant::now());
            match turn {
                Ok(at) => sleep_until(at).await,
                Err(wait) => return Err(ProviderError::RateLimited { retry_s: Some(wait.as_secs() + 1) }),
            }
        }
        let repeat = if lane == Lane::Calls { Repeat::Never } else { Repeat::Safe };
        let request = self.rest.post(&format!("/api/4.0/{method}.json")).json(body);
        let reply = self.rest.send(request, repeat).await.map_err(|error| match error {
            ProviderError::Unreachable { host, detail, maybe_done } => ProviderError::Unreachable {
                host,
                detail: format!(
                    "{detail}; Binotel may have opened its API for listed addresses only: if so, ask \
                     support@binotel.ua to open it for this server's address"
                ),
                maybe_done,
            },
            error => error,
        })?;
        let status = reply.status.as_u16();
        if status == 403 {
            return Err(ProviderError::ClosedToAddress {
                detail: "status 403; ask support@binotel.ua to open the API for this server's address".into(),
            });
        }
        if reply.status.is_server_error() {
            return Err(ProviderError::Unreachable {
                host: self.rest.host().to_owned(),
                detail: format!("status {status}"),
                maybe_done: lane == Lane::Calls,
            });
        }
        // Nothing of the body goes into an error: an answer may hold the SIP passwords of the whole company.
        let Some(json) = reply.json() else {
            return Err(self.rest.nonsense(format!("status {status}, and no JSON")));
        };
        let answer = Loose::from_json(json);
        match answer.get("status").text() {
            "success" if reply.status.is_success() => Ok(answer),
            "error" => Err(self.refusal(&answer)),
            _ => Err(self.rest.nonsense(format!("status {status}, and neither success nor error"))),
        }
    }

    fn refusal(&self, answer: &Loose) -> ProviderError {
        let code = answer.get("code").text();
        let message = self.scrubbed(answer.get("message").text());
        let refused = |meaning: &str| ProviderError::Refused {
            code: code.to_owned(),
            detail: if message.is_empty() { meaning.to_owned() } else { format!("{meaning} ({message})") },
        };
        match code {
            "102" => refused("Binotel has no such method"),
            "103" => refused("something is missing in the request"),
            "104" => refused("something is wrong in the request"),
            "105" => refused("something went wrong at Binotel: try again"),
            "106" => ProviderError::RateLimited { retry_s: Some(5) },
            "120" => refused("the company is disabled at Binotel: have it enabled there"),
            "121" => ProviderError::WrongKey { fields: "key and secret", detail: format!("code 121 {message}") },
            "150" => refused("the internal number cannot be called: nobody is registered on it, or it is busy"),
            "151" => refused("the outside number cannot be called: check it"),
            _ => refused("no documented code"),
        }
    }

    /// Neither key nor secret comes back in an error, whatever the other side echoes.
    fn scrubbed(&self, text: &str) -> String {
        let mut text: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
        for secret in [self.key.expose_secret(), self.secret.expose_secret()] {
            if !secret.is_empty() {
                text = text.replace(secret, "…");
            }
        }
        text
    }
}

/// When statistics may be asked: five in any minute at once, the others a gap apart.
#[derive(Debug)]
struct Queue {
    gap: Duration,
    /// The last turns, given or still to come; [`FREE`] at most.
    turns: VecDeque<Instant>,
}

impl Queue {
    fn new(gap: Duration) -> Self {
        Self { gap, turns: VecDeque::with_capacity(FREE) }
    }

    /// The error is how long the queue is.
    fn turn(&mut self, now: Instant) -> Result<Instant, Duration> {
        let full = self.turns.len() == FREE && self.turns.front().is_some_and(|first| now < *first + MINUTE);
        let at = match self.turns.back() {
            Some(last) if full => now.max(*last + self.gap),
            Some(last) => now.max(*last),
            None => now,
        };
        if at - now > LONGEST_QUEUE {
            return Err(at - now);
        }
        if self.turns.len() == FREE {
            self.turns.pop_front();
        }
        self.turns.push_back(at);
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn five_are_free_and_the_others_a_gap_apart() {
        let t0 = Instant::now();
        let mut queue = Queue::new(s(3.5));
        let waits: Vec<Duration> = (0..8).map(|_| queue.turn(t0).unwrap() - t0).collect();
        assert_eq!(waits, [s(0.0), s(0.0), s(0.0), s(0.0), s(0.0), s(3.5), s(7.0), s(10.5)]);
        assert_eq!(queue.turn(t0 + s(30.0)).unwrap(), t0 + s(30.0), "the gap has passed");
        assert_eq!(queue.turn(t0 + s(30.0)).unwrap(), t0 + s(33.5), "and the minute has not");
        let t1 = t0 + s(120.0);
        assert_eq!(queue.turn(t1).unwrap(), t1);
        assert_eq!(queue.turn(t1).unwrap(), t1, "a quiet minute makes requests free again");
    }

    #[test]
    fn a_queue_that_is_too_long_says_so_and_grows_no_longer() {
        let t0 = Instant::now();
        let mut queue = Queue::new(s(3.5));
        let given = (0..100).filter(|_| queue.turn(t0).is_ok()).count();
        assert_eq!(given, FREE + 12, "45 s hold twelve gaps of 3.5 s");
        assert!(queue.turn(t0 + s(3.5)).is_ok());
    }
}
