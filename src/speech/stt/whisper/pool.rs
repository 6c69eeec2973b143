//! Threads that decode for all calls: who goes first, who is dropped, who is stopped. It knows nothing of Whisper; a
//! [`Decoder`] does the work.
//!
//! Finals go before speculative takes, these before partials; within a class the oldest first. When all threads are
//! busy, a final or speculative take stops a running partial and a final empties the queue of partials; when more finals
//! wait than there are threads, queued speculative takes go as well. What is given up so is answered by `Skipped`.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::speech::stt::Take;

/// One clip to decode.
#[derive(Clone, Debug)]
pub(crate) struct Clip {
    /// 16 kHz mono.
    pub samples: Arc<[i16]>,
    /// As the call named it.
    pub language: Arc<str>,
    /// An answer may hang on it: worth a second look when nothing was made out. False for partials.
    pub answered: bool,
}

/// What a decoder heard.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct Transcript {
    pub text: String,
    /// 0 to 1, where there is text.
    pub confidence: Option<f32>,
}

#[derive(Debug)]
pub(crate) enum DecodeError {
    /// The flag was raised.
    Aborted,
    Failed(String),
}

/// Decodes one clip at a time on a thread of its own.
pub(crate) trait Decoder: 'static {
    /// Looks at `abort` as often as it can and gives up when it is raised.
    fn decode(&mut self, clip: &Clip, abort: &Arc<AtomicBool>) -> Result<Transcript, DecodeError>;
}

/// How a job ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Done {
        transcript: Transcript,
        /// Time in the decoder, without the wait.
        engine_time: Duration,
    },
    /// Superseded, stale, or given up for something more urgent.
    Skipped,
    Failed(String),
}

/// One call's name at the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SessionId(pub u64);

/// Limits of the queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolLimits {
    pub workers: usize,
    /// Waiting jobs; beyond, the least urgent is given up.
    pub queue: usize,
    /// A partial that has waited longer is of no use to anyone.
    pub partial_stale: Duration,
}

/// The threads. Dropping it stops what runs and joins them.
pub(crate) struct Pool {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts the threads; each makes its decoder when its first job comes.
    pub fn start<D: Decoder>(
        limits: PoolLimits,
        make: impl Fn() -> D + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let queue = Arc::new(Queue { limits, state: Mutex::default(), ready: Condvar::new() });
        let make = Arc::new(make);
        // Built step by step, so that a thread that does not start leaves none behind.
        let mut pool = Self { queue, threads: Vec::with_capacity(limits.workers) };
        for number in 0..limits.workers {
            let (queue, make) = (Arc::clone(&pool.queue), Arc::clone(&make));
            let name = format!("whisper-{number}");
            pool.threads.push(std::thread::Builder::new().name(name).spawn(move || work(&queue, &*make))?);
        }
        Ok(pool)
    }

    pub fn queue(&self) -> Arc<Queue> {
        Arc::clone(&self.queue)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.close();
        for thread in self.threads.drain(..) {
            // A decoder's panic is caught inside; a thread that died otherwise has nothing left to tell.
            let _ = thread.join();
        }
    }
}

/// The jobs that wait and run.
pub(crate) struct Queue {
    limits: PoolLimits,
    state: Mutex<State>,
    ready: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<Job>,
    running: Vec<Running>,
    next: u64,
    closed: bool,
}

struct Job {
    number: u64,
    session: SessionId,
    kind: Take,
    replaceable: bool,
    clip: Clip,
    abort: Arc<AtomicBool>,
    since: Instant,
    answer: oneshot::Sender<Outcome>,
}

struct Running {
    number: u64,
    session: SessionId,
    kind: Take,
    replaceable: bool,
    abort: Arc<AtomicBool>,
}

impl Running {
    fn is_stopping(&self) -> bool {
        self.abort.load(Ordering::Relaxed)
    }
}

impl Queue {
    /// Queues a take. It supersedes the queued takes of the same session, and stops a running one unless it is a mere
    /// partial itself (a decoder slower than the rhythm of partials would never finish one).
    pub fn submit_take(self: &Arc<Self>, session: SessionId, kind: Take, clip: Clip) -> Ticket {
        self.submit(session, kind, true, clip)
    }

    /// Queues a piece of a long utterance: as urgent as a final, because one will wait for it, and superseded by nothing.
    pub fn submit_piece(self: &Arc<Self>, session: SessionId, clip: Clip) -> Ticket {
        self.submit(session, Take::Final, false, clip)
    }

    fn submit(self: &Arc<Self>, session: SessionId, kind: Take, replaceable: bool, clip: Clip) -> Ticket {
        let (answer, outcome) = oneshot::channel();
        let abort = Arc::new(AtomicBool::new(false));
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        let ticket = Ticket { number, queue: Arc::clone(self), outcome };
        if state.closed {
            drop(state);
            let _ = answer.send(Outcome::Failed("the engine is shutting down".into()));
            return ticket;
        }
        let mut dropped = Vec::new();
        if replaceable {
            dropped.extend(state.waiting.extract_if(.., |job| job.session == session && job.replaceable));
            if kind > Take::Partial {
                let own = state.running.iter().filter(|job| job.session == session && job.replaceable);
                own.for_each(|job| job.abort.store(true, Ordering::Relaxed));
            }
        }
        state.waiting.push(Job { number, session, kind, replaceable, clip, abort, since: Instant::now(), answer });
        self.make_room(&mut state, &mut dropped);
        drop(state);
        self.ready.notify_one();
        dropped.into_iter().for_each(skip);
        ticket
    }

    /// Gives up what the load no longer allows; the given up go to `dropped`.
    fn make_room(&self, state: &mut State, dropped: &mut Vec<Job>) {
        let workers = self.limits.workers;
        let count = |state: &State, kind: Take| state.waiting.iter().filter(|job| job.kind == kind).count();
        let available = workers.saturating_sub(state.running.iter().filter(|job| !job.is_stopping()).count());
        let finals = count(state, Take::Final);
        let urgent = finals + count(state, Take::Speculative);
        // Threads that urgent jobs lack are taken from partials, the youngest first.
        let partials = state.running.iter().rev().filter(|job| job.kind == Take::Partial && !job.is_stopping());
        partials.take(urgent.saturating_sub(available)).for_each(|job| job.abort.store(true, Ordering::Relaxed));
        if finals > available {
            dropped.extend(state.waiting.extract_if(.., |job| job.kind == Take::Partial));
        }
        if finals > workers {
            dropped.extend(state.waiting.extract_if(.., |job| job.kind == Take::Speculative));
        }
        while state.waiting.len() > self.limits.queue {
            let victim = state.waiting.iter().enumerate().min_by_key(|(_, job)| (job.kind, u64::MAX - job.number));
            let Some((at, _)) = victim else { break };
            dropped.push(state.waiting.swap_remove(at));
        }
    }

    /// The next job, waited for. `None` when the pool closes.
    fn take(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            let stale = self.limits.partial_stale;
            let old: Vec<Job> =
                state.waiting.extract_if(.., |job| job.kind == Take::Partial && job.since.elapsed() > stale).collect();
            old.into_iter().for_each(skip);
            let best = state.waiting.iter().enumerate().max_by_key(|(_, job)| (job.kind, u64::MAX - job.number));
            if let Some((at, _)) = best {
                let job = state.waiting.swap_remove(at);
                let (number, session, kind, replaceable) = (job.number, job.session, job.kind, job.replaceable);
                state.running.push(Running { number, session, kind, replaceable, abort: Arc::clone(&job.abort) });
                return Some(job);
            }
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn finished(&self, number: u64) {
        self.lock().running.retain(|job| job.number != number);
    }

    /// Nobody waits for this job: take it out, or stop it.
    fn cancel(&self, number: u64) {
        let mut state = self.lock();
        state.waiting.retain(|job| job.number != number);
        let running = state.running.iter().find(|job| job.number == number);
        if let Some(job) = running {
            job.abort.store(true, Ordering::Relaxed);
        }
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.running.iter().for_each(|job| job.abort.store(true, Ordering::Relaxed));
        let left = std::mem::take(&mut state.waiting);
        drop(state);
        self.ready.notify_all();
        for job in left {
            let _ = job.answer.send(Outcome::Failed("the engine is shutting down".into()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The claim to an answer. Dropping it cancels the job.
pub(crate) struct Ticket {
    number: u64,
    queue: Arc<Queue>,
    outcome: oneshot::Receiver<Outcome>,
}

impl Future for Ticket {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let outcome = Pin::new(&mut self.outcome).poll(cx);
        outcome.map(|answer| answer.unwrap_or_else(|_| Outcome::Failed("the worker ended".into())))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.outcome.is_terminated() {
            self.queue.cancel(self.number);
        }
    }
}

fn work<D: Decoder>(queue: &Queue, make: &dyn Fn() -> D) {
    let mut decoder = None;
    while let Some(job) = queue.take() {
        let waited = job.since.elapsed();
        metrics::histogram!("offhook_stt_queue_seconds").record(waited.as_secs_f64());
        let started = Instant::now();
        let decode = || decoder.get_or_insert_with(make).decode(&job.clip, &job.abort);
        let result = catch_unwind(AssertUnwindSafe(decode));
        queue.finished(job.number);
        let outcome = match result {
            Ok(Ok(transcript)) => Outcome::Done { transcript, engine_time: started.elapsed() },
            Ok(Err(DecodeError::Aborted)) => {
                skip(job);
                continue;
            }
            Ok(Err(DecodeError::Failed(reason))) => Outcome::Failed(reason),
            Err(panic) => {
                // Its state may be half written: the next job gets a fresh one.
                decoder = None;
                let reason = panic_text(&*panic);
                tracing::error!(reason, "a decoder panicked");
                Outcome::Failed(format!("the decoder panicked: {reason}"))
            }
        };
        // A call that hung up has dropped its end.
        let _ = job.answer.send(outcome);
    }
}

/// Answers a job that is given up. One that nobody waits for any more is not counted: it was cancelled.
fn skip(job: Job) {
    let kind = match job.kind {
        Take::Partial => "partial",
        Take::Speculative => "speculative",
        Take::Final => "final",
    };
    if job.answer.send(Outcome::Skipped).is_ok() {
        metrics::counter!("offhook_stt_skipped_total", "kind" => kind).increment(1);
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes one step for each clip that the test allows; the clip's language says what to do.
    struct Scripted {
        started: mpsc::Sender<String>,
        steps: Arc<Mutex<mpsc::Receiver<()>>>,
    }

    impl Decoder for Scripted {
        fn decode(&mut self, clip: &Clip, abort: &Arc<AtomicBool>) -> Result<Transcript, DecodeError> {
            let name = clip.language.to_string();
            self.started.send(name.clone()).expect("the test listens");
            match name.as_str() {
                "panic" => panic!("told to"),
                "fail" => return Err(DecodeError::Failed("told to".into())),
                _ => {}
            }
            loop {
                if abort.load(Ordering::Relaxed) {
                    return Err(DecodeError::Aborted);
                }
                let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
                if steps.recv_timeout(Duration::from_millis(2)).is_ok() {
                    return Ok(Transcript { text: name, confidence: None });
                }
            }
        }
    }

    struct Bench {
        pool: Pool,
        started: mpsc::Receiver<String>,
        step: mpsc::Sender<()>,
    }

    impl Bench {
        fn new(workers: usize, queue: usize) -> Self {
            let (started_tx, started) = mpsc::channel();
            let (step, steps) = mpsc::channel();
            let steps = Arc::new(Mutex::new(steps));
            let limits = PoolLimits { workers, queue, partial_stale: Duration::from_secs(60) };
            let started_tx = Mutex::new(started_tx);
            let make = move || Scripted {
                started: started_tx.lock().expect("no panic under this lock").clone(),
                steps: Arc::clone(&steps),
            };
            Self { pool: Pool::start(limits, make).expect("threads start"), started, step }
        }

        fn take(&self, session: u64, kind: Take, name: &str) -> Ticket {
            self.pool.queue().submit_take(SessionId(session), kind, clip(name))
        }

        fn next_started(&self) -> String {
            self.started.recv_timeout(Duration::from_secs(10)).expect("a decoder starts")
        }

        fn step(&self) {
            self.step.send(()).expect("a decoder listens");
        }
    }

    fn clip(name: &str) -> Clip {
        Clip { samples: Arc::from([0i16; 4]), language: name.into(), answered: true }
    }

    fn wait(ticket: Ticket) -> Outcome {
        futures::executor::block_on(ticket)
    }

    fn said(outcome: Outcome) -> String {
        match outcome {
            Outcome::Done { transcript, .. } => transcript.text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn finals_go_before_speculative_takes_and_these_before_partials_the_oldest_first() {
        let bench = Bench::new(1, 16);
        let first = bench.take(1, Take::Final, "first");
        assert_eq!(bench.next_started(), "first");
        // Speculative takes are dropped only when more finals wait than there are threads: one may wait here.
        let spoken = bench.take(2, Take::Speculative, "speculative 2");
        let later = bench.take(3, Take::Speculative, "speculative 3");
        let last = bench.take(4, Take::Final, "final 4");
        bench.step();
        assert_eq!(bench.next_started(), "final 4");
        let partial = bench.take(5, Take::Partial, "partial 5");
        for expected in ["speculative 2", "speculative 3", "partial 5"] {
            bench.step();
            assert_eq!(bench.next_started(), expected);
        }
        bench.step();
        for (ticket, text) in [
            (first, "first"),
            (spoken, "speculative 2"),
            (later, "speculative 3"),
            (last, "final 4"),
            (partial, "partial 5"),
        ] {
            assert_eq!(said(wait(ticket)), text);
        }
    }

    #[test]
    fn a_waiting_final_drops_queued_partials() {
        let bench = Bench::new(1, 16);
        let _busy = bench.take(1, Take::Final, "busy");
        assert_eq!(bench.next_started(), "busy");
        let partial = bench.take(2, Take::Partial, "partial");
        let _final = bench.take(3, Take::Final, "final");
        assert!(matches!(wait(partial), Outcome::Skipped));
    }

    #[test]
    fn more_finals_than_threads_drop_queued_speculative_takes() {
        let bench = Bench::new(1, 16);
        let _busy = bench.take(1, Take::Final, "busy");
        assert_eq!(bench.next_started(), "busy");
        let speculative = bench.take(2, Take::Speculative, "speculative");
        let _one = bench.take(3, Take::Final, "one");
        let _two = bench.take(4, Take::Final, "two");
        assert!(matches!(wait(speculative), Outcome::Skipped));
    }

    #[test]
    fn a_final_stops_a_running_partial_of_another_call() {
        let bench = Bench::new(1, 16);
        let partial = bench.take(1, Take::Partial, "partial");
        assert_eq!(bench.next_started(), "partial");
        let last = bench.take(2, Take::Final, "final");
        assert!(matches!(wait(partial), Outcome::Skipped));
        assert_eq!(bench.next_started(), "final");
        bench.step();
        assert_eq!(said(wait(last)), "final");
    }

    #[test]
    fn a_newer_take_of_the_same_session_supersedes_a_queued_one_but_not_a_piece() {
        let bench = Bench::new(1, 16);
        let _busy = bench.take(1, Take::Final, "busy");
        assert_eq!(bench.next_started(), "busy");
        let piece = bench.pool.queue().submit_piece(SessionId(2), clip("piece"));
        let older = bench.take(2, Take::Speculative, "older");
        let newer = bench.take(2, Take::Speculative, "newer");
        assert!(matches!(wait(older), Outcome::Skipped));
        bench.step();
        assert_eq!(bench.next_started(), "piece");
        bench.step();
        assert_eq!(said(wait(piece)), "piece");
        assert_eq!(bench.next_started(), "newer");
        bench.step();
        assert_eq!(said(wait(newer)), "newer");
    }

    #[test]
    fn a_partial_does_not_stop_the_partial_before_it() {
        let bench = Bench::new(1, 16);
        let older = bench.take(1, Take::Partial, "older");
        assert_eq!(bench.next_started(), "older");
        let newer = bench.take(1, Take::Partial, "newer");
        bench.step();
        assert_eq!(said(wait(older)), "older");
        assert_eq!(bench.next_started(), "newer");
        bench.step();
        assert_eq!(said(wait(newer)), "newer");
    }

    #[test]
    fn dropping_the_ticket_stops_the_work_and_empties_the_place_in_the_queue() {
        let bench = Bench::new(1, 16);
        let running = bench.take(1, Take::Final, "running");
        assert_eq!(bench.next_started(), "running");
        let queued = bench.take(2, Take::Final, "queued");
        let other = bench.take(3, Take::Final, "other");
        drop(queued);
        drop(running);
        assert_eq!(bench.next_started(), "other");
        bench.step();
        assert_eq!(said(wait(other)), "other");
    }

    #[test]
    fn a_panic_or_an_error_answers_failed_and_the_worker_goes_on() {
        let bench = Bench::new(1, 16);
        let panicked = bench.take(1, Take::Final, "panic");
        assert!(matches!(wait(panicked), Outcome::Failed(reason) if reason.contains("told to")));
        let failed = bench.take(1, Take::Final, "fail");
        assert!(matches!(wait(failed), Outcome::Failed(_)));
        let well = bench.take(1, Take::Final, "well");
        bench.step();
        assert_eq!(said(wait(well)), "well");
    }

    #[test]
    fn a_full_queue_gives_up_the_least_urgent_and_youngest() {
        let bench = Bench::new(1, 2);
        let _busy = bench.take(1, Take::Final, "busy");
        assert_eq!(bench.next_started(), "busy");
        let _older = bench.take(2, Take::Speculative, "older");
        let younger = bench.take(3, Take::Speculative, "younger");
        let _final = bench.take(4, Take::Final, "final");
        assert!(matches!(wait(younger), Outcome::Skipped));
    }

    #[test]
    fn a_stale_partial_is_not_decoded() {
        let (started_tx, started) = mpsc::channel();
        let (step, steps) = mpsc::channel();
        let (started_tx, steps) = (Mutex::new(started_tx), Arc::new(Mutex::new(steps)));
        let limits = PoolLimits { workers: 1, queue: 4, partial_stale: Duration::ZERO };
        let make = move || Scripted {
            started: started_tx.lock().expect("no panic under this lock").clone(),
            steps: Arc::clone(&steps),
        };
        let pool = Pool::start(limits, make).expect("threads start");
        let busy = pool.queue().submit_take(SessionId(1), Take::Final, clip("busy"));
        assert_eq!(started.recv().expect("it starts"), "busy");
        let partial = pool.queue().submit_take(SessionId(2), Take::Partial, clip("partial"));
        step.send(()).expect("a decoder listens");
        assert!(matches!(wait(partial), Outcome::Skipped));
        assert_eq!(said(wait(busy)), "busy");
    }

    #[test]
    fn dropping_the_pool_fails_what_waits_and_joins_the_threads() {
        let bench = Bench::new(2, 16);
        let tickets: Vec<Ticket> = (0..4).map(|n| bench.take(n, Take::Final, "any")).collect();
        let queue = bench.pool.queue();
        drop(bench);
        for ticket in tickets {
            assert!(matches!(wait(ticket), Outcome::Failed(_) | Outcome::Skipped));
        }
        assert_eq!(Arc::strong_count(&queue), 1, "the threads are gone and hold no queue");
        let late = queue.submit_take(SessionId(1), Take::Final, clip("late"));
        assert!(matches!(wait(late), Outcome::Failed(_)));
    }

    #[test]
    fn twenty_sessions_at_once_are_all_answered() {
        let bench = Bench::new(2, 64);
        let tickets: Vec<Ticket> = (0..20).map(|n| bench.take(n, Take::Final, &format!("call {n}"))).collect();
        for _ in 0..20 {
            bench.step();
        }
        for (n, ticket) in tickets.into_iter().enumerate() {
            assert_eq!(said(wait(ticket)), format!("call {n}"));
        }
    }
}
