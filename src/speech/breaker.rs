//! When to stop asking an engine that keeps failing: a state machine without a clock of its own.

use std::time::{Duration, Instant};

/// Closed: the engine is asked. Open: it is left alone until a time. Probing: one request tries it out, others do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
    },
    /// A probe whose caller hung up reports nothing: after `until` the next one may go.
    Probing {
        until: Instant,
    },
}

/// Counts consecutive failures of one engine.
#[derive(Debug)]
pub struct Breaker {
    state: State,
    failures: u32,
    cool_down: Duration,
}

impl Breaker {
    /// Opens for `cool_down` after `failures` in a row; 0 never opens.
    pub fn new(failures: u32, cool_down: Duration) -> Self {
        Self { state: State::Closed { failures: 0 }, failures, cool_down }
    }

    /// Whether to ask the engine now. After a cool-down one request is let through; its outcome decides.
    pub fn allows(&mut self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until } | State::Probing { until } if until <= now => {
                self.state = State::Probing { until: now + self.cool_down };
                true
            }
            State::Open { .. } | State::Probing { .. } => false,
        }
    }

    pub fn on_success(&mut self) {
        self.state = State::Closed { failures: 0 };
    }

    /// True when this failure opened it.
    pub fn on_failure(&mut self, now: Instant) -> bool {
        self.state = match self.state {
            State::Closed { failures } if self.failures == 0 || failures + 1 < self.failures => {
                State::Closed { failures: failures.saturating_add(1) }
            }
            _ => State::Open { until: now + self.cool_down },
        };
        matches!(self.state, State::Open { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOL: Duration = Duration::from_secs(10);

    #[test]
    fn it_opens_after_failures_in_a_row_only() {
        let t0 = Instant::now();
        let mut breaker = Breaker::new(3, COOL);
        assert!(!breaker.on_failure(t0) && !breaker.on_failure(t0));
        breaker.on_success();
        assert!(!breaker.on_failure(t0) && !breaker.on_failure(t0));
        assert!(breaker.allows(t0));
        assert!(breaker.on_failure(t0));
        assert!(!breaker.allows(t0));
    }

    #[test]
    fn after_the_cool_down_one_probe_goes_and_its_outcome_decides() {
        let t0 = Instant::now();
        let mut breaker = Breaker::new(1, COOL);
        assert!(breaker.on_failure(t0));
        assert!(!breaker.allows(t0 + COOL - Duration::from_millis(1)));
        assert!(breaker.allows(t0 + COOL));
        assert!(!breaker.allows(t0 + COOL), "a second request does not probe too");
        breaker.on_failure(t0 + COOL);
        assert!(!breaker.allows(t0 + COOL));
        assert!(breaker.allows(t0 + COOL * 2));
        breaker.on_success();
        assert!(breaker.allows(t0 + COOL * 2) && breaker.allows(t0 + COOL * 2));
    }

    #[test]
    fn a_probe_that_never_reports_does_not_block_the_next_for_ever() {
        let t0 = Instant::now();
        let mut breaker = Breaker::new(1, COOL);
        breaker.on_failure(t0);
        assert!(breaker.allows(t0 + COOL));
        assert!(breaker.allows(t0 + COOL * 2));
    }

    #[test]
    fn none_is_never_enough() {
        let t0 = Instant::now();
        let mut breaker = Breaker::new(0, COOL);
        assert!((0..1000).all(|_| !breaker.on_failure(t0) && breaker.allows(t0)));
    }
}
