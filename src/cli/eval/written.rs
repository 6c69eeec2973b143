//! A scenario in writing: the tool loop and the memory of a thread, the rules of a call for interruptions and silence,
//! and a clock that is counted. Speech takes [`CHAR_MS`] a letter on it, tools their stubs' delays, a model the time
//! that it really took; `builtin` takes none, so that its runs are all the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Play, place};
use crate::call::thread::{Telling, WriteError, Written};
use crate::cli::rehearsal::{CHAR_MS, Talk, heard_of};
use crate::config::Config;
use crate::eval::judge::{Moment, Used};
use crate::eval::props::{Pace, Props};
use crate::eval::report::Run;
use crate::eval::scenario::Act;

pub(super) async fn play(play: &Play<'_>, config: &Config) -> Run {
    let began = Instant::now();
    let mut run = match Stenographer::begin(play, config) {
        Ok(mut stenographer) => {
            let fault = stenographer.steps(play).await.err();
            Run { fault, lasted_ms: stenographer.clock.load(Ordering::Relaxed) as f64, ..stenographer.run }
        }
        Err(error) => Run { fault: Some(format!("{error:#}")), ..Run::default() },
    };
    run.took_ms = began.elapsed().as_secs_f64() * 1000.0;
    run
}

/// Plays the caller and writes down what comes of it.
struct Stenographer {
    talk: Talk,
    /// Milliseconds of the conversation.
    clock: Arc<AtomicU64>,
    /// Whether the model's own time counts.
    timed: bool,
    run: Run,
}

impl Stenographer {
    fn begin(play: &Play<'_>, config: &Config) -> anyhow::Result<Self> {
        let clock = Arc::new(AtomicU64::new(0));
        let limit = Duration::from_millis(config.turn.with(&play.cast.profile.turn).tool_limit_ms);
        let stubs = play.scenario.stubs.clone();
        let props = Props { stubs, pace: Pace::Counted(clock.clone()), limit, real: false };
        let talk = Talk::begin(play.stage, &play.cast, &props, &play.scenario.facts)?;
        let timed = talk.model() != "builtin";
        let mut stenographer = Self { talk, clock, timed, run: Run::default() };
        let greeting = stenographer.talk.greeting().to_owned();
        stenographer.spoken(&greeting);
        stenographer.run.observed.greeting = stenographer.moment(String::new(), greeting);
        Ok(stenographer)
    }

    async fn steps(&mut self, play: &Play<'_>) -> Result<(), String> {
        for (index, step) in play.scenario.steps.iter().enumerate() {
            let place = place(index, step.line);
            if self.talk.ended {
                return Err(format!("{place}: the agent had hung up before it"));
            }
            if let Some(after) = step.interrupts {
                let observed = &mut self.run.observed;
                let before = observed.moments.last_mut().unwrap_or(&mut observed.greeting);
                let Some(heard) = heard_of(&before.agent, after) else {
                    let answer = &before.agent;
                    return Err(format!(
                        "{place}: nothing to interrupt, the answer before was over by then: “{answer}”"
                    ));
                };
                self.talk.interrupted(heard);
                let unheard = before.agent.chars().count() - heard.chars().count();
                before.heard = Some(heard.to_owned());
                self.clock.fetch_sub(unheard as u64 * CHAR_MS, Ordering::Relaxed);
            }
            let recorded = play.sounds.get(index).and_then(Option::as_ref);
            let moment = match (&step.act, recorded) {
                (Act::Says(text), _) => self.answer(text, text, false).await,
                (Act::Plays(_), Some(recorded)) => self.answer(&recorded.text, &recorded.text, false).await,
                (Act::Plays(_), None) => return Err(format!("{place}: nothing to play")),
                (Act::Keys(keys), _) => self.answer(keys, &format!("(presses {keys})"), true).await,
                (Act::Silent(ms), _) => {
                    self.clock.fetch_add(*ms, Ordering::Relaxed);
                    let said = self.talk.silence(*ms);
                    self.spoken(&said);
                    self.moment(format!("(says nothing for {ms} ms)"), said)
                }
            };
            let fault = moment.faults.first().cloned();
            self.run.observed.moments.push(moment);
            if let Some(fault) = fault {
                return Err(format!("{place}: {fault}"));
            }
        }
        Ok(())
    }

    /// The caller says something, and the agent answers.
    async fn answer(&mut self, text: &str, shown: &str, keys: bool) -> Moment {
        if !keys {
            self.spoken(text);
        }
        let (clock, timed, asked) = (self.clock.clone(), self.timed, self.clock.load(Ordering::Relaxed));
        let began = Instant::now();
        let real_ms = move || if timed { began.elapsed().as_secs_f64() * 1000.0 } else { 0.0 };
        let counted_ms = move || (clock.load(Ordering::Relaxed) - asked) as f64;
        let mut reply_ms = None;
        let mut tools = Vec::new();
        let mut watch = |telling: Telling<'_>| match telling {
            Telling::Words(words) => {
                if reply_ms.is_none() && !words.trim().is_empty() {
                    reply_ms = Some(counted_ms() + real_ms());
                }
            }
            Telling::Tool(call, result) => tools.push(Used {
                name: call.name.clone(),
                arguments: serde_json::from_str(&call.arguments).unwrap_or_default(),
                result: result.content.clone(),
                ok: result.ok,
            }),
        };
        let answered: Result<Written, WriteError> = match keys {
            true => self.talk.keys(text, &mut watch).await,
            false => self.talk.hears(text, &mut watch).await,
        };
        self.clock.fetch_add(real_ms() as u64, Ordering::Relaxed);
        let (said, faults) = match answered {
            Ok(written) => (written.text, Vec::new()),
            Err(error) => (String::new(), vec![format!("no answer: {error}")]),
        };
        self.spoken(&said);
        Moment { tools, reply_ms, faults, ..self.moment(shown.to_owned(), said) }
    }

    /// Somebody spoke: that took a while.
    fn spoken(&self, text: &str) {
        self.clock.fetch_add(text.chars().count() as u64 * CHAR_MS, Ordering::Relaxed);
    }

    /// How things stand.
    fn moment(&self, caller: String, agent: String) -> Moment {
        Moment {
            caller,
            agent,
            progress: self.talk.progress(),
            remembered: self.talk.remembered.clone(),
            handover: self.talk.handover.clone(),
            ended: self.talk.ended,
            ..Moment::default()
        }
    }
}
