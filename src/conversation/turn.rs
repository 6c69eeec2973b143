//! Whose turn it is: events and media time in, actions out (DESIGN §3). Knows no engine, no socket and no queue; the
//! call's task does what the actions say and reports back with further events.
//!
//! Time here is media time: `now` grows by 20 ms with each packet judged, so a burst after a stall counts as the
//! silence or speech that it holds, not as the moment in which it arrived.

use std::time::{Duration, Instant};

use crate::conversation::backchannel::{Completeness, completeness, is_backchannel};
use crate::conversation::settings::TurnSettings;
use crate::speech::stt::{Take, UtteranceId};
use crate::telephony::{CallEnd, EndReason, Party};

/// One answer of the agent, numbered from 1 within a call. Abandoned speculations use up numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ReplyId(pub u64);

/// What the detector said of one 20 ms packet of the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Speech starts with this packet (the start rule is met now and was not before).
    pub started: bool,
    /// The packet itself holds voice.
    pub voiced: bool,
    /// How long the caller has been silent after speech; zero while speaking.
    pub silent_for: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The leg is up: the agent may greet.
    Answered,
    /// One packet of the caller.
    Audio(Heard),
    /// Words so far of the open utterance.
    Partial { utterance: UtteranceId, text: String },
    /// The text of a take.
    Final { utterance: UtteranceId, take: u32, text: String },
    /// The engine was too busy for this take.
    Skipped { utterance: UtteranceId, take: u32 },
    /// The engine and its fallback failed on this take.
    TranscriptFailed { utterance: UtteranceId, take: u32 },
    /// A key pressed.
    Dtmf(char),
    /// The first audible frame of a reply left.
    ReplyStarted { reply: ReplyId },
    /// A clause of the reply begins to play; whether it asks something decides what "yes" means.
    ClausePlaying { question: bool },
    /// Everything of this reply has been played (or it had nothing to say).
    ReplyFinished { reply: ReplyId },
    /// Nothing more will come of this reply; what was queued plays on.
    ReplyFailed { reply: ReplyId },
    /// The agent asked to end the call after what it is saying.
    EndRequested,
    /// What the workflow is about to say and to hear.
    Expect(Expecting),
    /// The other side holds the call (true) or takes it off hold: while it holds it hears nothing, and what comes from it
    /// is not the caller.
    Held(bool),
    /// Finish politely: the server is draining or an operator asks.
    WindDown,
}

/// How a place in a workflow differs from free talk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expecting {
    /// Digits, a spelling or an address are waited for: people pause longer in these.
    pub slow_speech: bool,
    /// Multiplies the waits for the end of the caller's turn.
    pub wait_factor: f32,
    /// Whether the caller may interrupt; `turn.barge_in` has to allow it, too.
    pub barge_in: bool,
}

impl Default for Expecting {
    fn default() -> Self {
        Self { slow_speech: false, wait_factor: 1.0, barge_in: true }
    }
}

/// A fixed phrase, spoken from the cache in the agent's language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phrase {
    Greeting,
    AreYouThere,
    /// Goodbye after silence; the call ends with it.
    SilenceGoodbye,
    /// The longest call is reached; the call ends with it.
    TimeIsUp,
    /// The words could not be made out.
    PleaseRepeat,
    /// An engine failed; the call goes on.
    Apology,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// An utterance begins: recognition gets the pre-roll and what follows.
    BeginUtterance {
        utterance: UtteranceId,
    },
    Transcribe {
        utterance: UtteranceId,
        take: u32,
        kind: Take,
    },
    CancelTake {
        utterance: UtteranceId,
        take: u32,
    },
    EndUtterance {
        utterance: UtteranceId,
    },
    /// Start the model on these words. Its sound is held back and tools with side effects wait for `Commit`.
    Prepare {
        reply: ReplyId,
        text: String,
    },
    /// The caller's turn is over and these were its words: the prepared reply may be heard and may act.
    Commit {
        reply: ReplyId,
    },
    /// A prepared reply is not wanted after all.
    Abandon {
        reply: ReplyId,
    },
    /// Say a fixed phrase.
    Say {
        reply: ReplyId,
        phrase: Phrase,
    },
    /// Stop playing at once, have the carrier drop what it holds, keep everything.
    Pause,
    /// Go on where the caller stopped hearing it.
    Resume,
    /// The other side holds the call: nothing is played until `Unhold`, everything is kept.
    Hold,
    /// It hears again: go on where it stopped hearing.
    Unhold,
    /// The caller has the floor: drop what is queued, stop the engines, note what was heard.
    Interrupt {
        reply: ReplyId,
    },
    HangUp(CallEnd),
}

/// What the agent is doing.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Floor {
    Idle,
    /// A reply is being made from words that may still change.
    Preparing {
        reply: ReplyId,
    },
    /// The turn is confirmed; nothing is audible yet.
    Committed {
        reply: ReplyId,
    },
    Speaking {
        reply: ReplyId,
        since: Instant,
    },
    /// The caller made a sound while the agent had the floor: playout stands still until words or time decide.
    Suspected {
        reply: ReplyId,
        was_audible: bool,
        since: Instant,
        packets: u32,
        voiced: u32,
    },
}

/// The caller's open utterance.
#[derive(Clone, Debug)]
struct Utterance {
    id: UtteranceId,
    started: Instant,
    /// Newest take that was asked for, and whether its answer is still to come.
    take: u32,
    waiting: Option<(Take, Instant)>,
    /// A take was asked for in the present silence.
    asked: bool,
    /// The newest take that has an answer, with the words.
    words: Option<(u32, String)>,
    /// Words that came while the caller was still speaking.
    partial: String,
    partial_asked: Instant,
    /// First take that covers all speech so far: answers to older ones are out of date.
    fresh_from: u32,
    /// Words on which the prepared reply was started.
    prepared: Option<String>,
    speculations: u32,
    /// Speech has ended and not begun again.
    silent: bool,
    /// Packets that held voice.
    voiced: u32,
    /// It took the floor from the agent.
    interrupted: bool,
}

/// The state machine. One per call.
pub struct Turn {
    settings: TurnSettings,
    language: String,
    floor: Floor,
    utterance: Option<Utterance>,
    utterances: u32,
    replies: u64,
    /// Start of the present silence of both sides, and of the caller's silence.
    quiet_since: Option<Instant>,
    caller_quiet_since: Option<Instant>,
    prompted: bool,
    answered: Option<Instant>,
    /// What ends the call when the present reply has been played.
    ending: Option<CallEnd>,
    winding_down: bool,
    question: bool,
    /// The agent's last words were a question and the caller has not answered it.
    answer_due: bool,
    /// Times in a row that the caller was asked to say it again.
    repeats: u32,
    expecting: Expecting,
    digits: String,
    digits_at: Option<Instant>,
    /// The newest packet's verdict: words that come between packets are weighed at once.
    heard: Heard,
    /// Since when the other side holds the call.
    held_since: Option<Instant>,
}

/// A call that reached its longest time ends this long after the goodbye began, whatever the caller says.
const TOO_LONG_GRACE: Duration = Duration::from_secs(20);
/// Silence after a key, without `#`, that ends an entry by keypad.
const DTMF_WAIT: Duration = Duration::from_millis(2000);
/// Longest entry by keypad.
const DTMF_MAX: usize = 32;
/// What one packet holds.
const PACKET_MS: u64 = 20;
/// While a barge-in is suspected, words are asked for this long after the pause: enough for one word.
const SUSPECT_PARTIAL: Duration = Duration::from_millis(240);

impl Turn {
    pub fn new(settings: TurnSettings, language: impl Into<String>) -> Self {
        Self {
            settings,
            language: language.into(),
            floor: Floor::Idle,
            utterance: None,
            utterances: 0,
            replies: 0,
            quiet_since: None,
            caller_quiet_since: None,
            prompted: false,
            answered: None,
            ending: None,
            winding_down: false,
            question: false,
            answer_due: false,
            repeats: 0,
            expecting: Expecting::default(),
            digits: String::new(),
            digits_at: None,
            heard: Heard::default(),
            held_since: None,
        }
    }

    /// Whether the call is about to end with what is being said.
    pub fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// The whole contract: appends what is to be done to `actions`.
    pub fn on_event(&mut self, now: Instant, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Answered => {
                self.answered = Some(now);
                self.caller_quiet_since = Some(now);
                self.say(now, Phrase::Greeting, actions);
            }
            Event::Audio(_) if self.held_since.is_some() => self.limits_on_hold(now, actions),
            Event::Audio(heard) => self.on_audio(now, heard, actions),
            Event::Partial { utterance, text } => self.on_partial(now, utterance, text, actions),
            Event::Final { utterance, take, text } => self.on_final(now, utterance, take, text, actions),
            Event::Skipped { utterance, take } => self.on_no_text(now, utterance, take, false, actions),
            Event::TranscriptFailed { utterance, take } => self.on_no_text(now, utterance, take, true, actions),
            Event::Dtmf(digit) => self.on_dtmf(now, digit, actions),
            Event::ReplyStarted { reply } => {
                if self.floor == (Floor::Committed { reply }) {
                    self.floor = Floor::Speaking { reply, since: now };
                    self.question = false;
                }
            }
            Event::ClausePlaying { question } => self.question = question,
            Event::ReplyFinished { reply } => self.on_reply_over(now, reply, actions),
            Event::ReplyFailed { reply } => {
                if self.reply() == Some(reply) && !matches!(self.floor, Floor::Preparing { .. }) {
                    self.say(now, Phrase::Apology, actions);
                } else if self.reply() == Some(reply) {
                    // A speculation failed: the confirmed turn will try again.
                    self.floor = Floor::Idle;
                    if let Some(utterance) = &mut self.utterance {
                        utterance.prepared = None;
                    }
                    actions.push(Action::Abandon { reply });
                }
            }
            Event::EndRequested => {
                self.ending.get_or_insert(CallEnd::new(Party::Agent, EndReason::Goodbye));
                if self.floor == Floor::Idle {
                    self.hang_up(actions);
                }
            }
            Event::Expect(expecting) => self.expecting = expecting,
            Event::Held(true) => self.on_held(now, actions),
            Event::Held(false) => self.on_unheld(now, actions),
            // Nobody would hear the goodbye.
            Event::WindDown if self.held_since.is_some() => {
                actions.push(Action::HangUp(CallEnd::new(Party::System, EndReason::Drained)));
            }
            Event::WindDown => {
                self.winding_down = true;
                if self.floor == Floor::Idle && self.utterance.is_none() {
                    self.finish_with(now, Phrase::TimeIsUp, CallEnd::new(Party::System, EndReason::Drained), actions);
                }
            }
        }
    }

    fn on_audio(&mut self, now: Instant, heard: Heard, actions: &mut Vec<Action>) {
        self.heard = heard;
        if heard.started {
            self.on_speech(now, actions);
        }
        self.track_utterance(now, heard, actions);
        self.weigh_suspicion(now, heard, actions);
        self.end_of_turn(now, heard, actions);
        self.keypad(now, actions);
        self.limits(now, actions);
    }

    /// The caller begins to speak, or speaks on after a pause.
    fn on_speech(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.quiet_since = None;
        self.caller_quiet_since = None;
        match &mut self.utterance {
            Some(utterance) => {
                if let Some((Take::Speculative | Take::Final, _)) = utterance.waiting.take() {
                    actions.push(Action::CancelTake { utterance: utterance.id, take: utterance.take });
                }
                utterance.fresh_from = utterance.take + 1;
                utterance.silent = false;
                utterance.asked = false;
            }
            None => {
                self.utterances += 1;
                let id = UtteranceId(self.utterances);
                self.utterance = Some(Utterance {
                    id,
                    started: now,
                    take: 0,
                    waiting: None,
                    asked: false,
                    words: None,
                    partial: String::new(),
                    partial_asked: now,
                    fresh_from: 1,
                    prepared: None,
                    speculations: 0,
                    silent: false,
                    voiced: self.settings.start_packets,
                    interrupted: false,
                });
                actions.push(Action::BeginUtterance { utterance: id });
            }
        }
        let packets = self.settings.start_packets;
        match self.floor {
            Floor::Speaking { reply, since } => {
                let grace = TurnSettings::ms(self.settings.barge_in_grace_ms);
                if self.may_interrupt() && now.duration_since(since) >= grace {
                    actions.push(Action::Pause);
                    self.floor = Floor::Suspected { reply, was_audible: true, since: now, packets, voiced: packets };
                }
            }
            Floor::Committed { reply } if self.may_interrupt() => {
                // The caller was not done after all, or coughs: what was prepared is held, not thrown away.
                actions.push(Action::Pause);
                self.floor = Floor::Suspected { reply, was_audible: false, since: now, packets, voiced: packets };
            }
            _ => {}
        }
    }

    fn may_interrupt(&self) -> bool {
        self.settings.barge_in && self.expecting.barge_in
    }

    /// Asks for transcripts: partials while speaking, one take per silence.
    fn track_utterance(&mut self, now: Instant, heard: Heard, actions: &mut Vec<Action>) {
        let suspected = matches!(self.floor, Floor::Suspected { .. });
        let settings = &self.settings;
        let Some(utterance) = &mut self.utterance else { return };
        utterance.voiced += u32::from(heard.voiced && !heard.started);
        if heard.silent_for.is_zero() {
            let every = TurnSettings::ms(settings.partial_every_ms);
            let first_in_suspicion = suspected && utterance.take == 0;
            let due = now.duration_since(utterance.partial_asked);
            if (!every.is_zero() && due >= every) || (first_in_suspicion && due >= SUSPECT_PARTIAL) {
                utterance.partial_asked = now;
                if utterance.waiting.is_none() {
                    utterance.ask(now, Take::Partial, actions);
                }
            }
            if now.duration_since(utterance.started) >= TurnSettings::ms(settings.max_turn_ms) && !utterance.asked {
                utterance.asked = true;
                utterance.ask(now, Take::Final, actions);
            }
            return;
        }
        utterance.silent = true;
        if !utterance.asked && heard.silent_for >= TurnSettings::ms(settings.speculate_after_ms) {
            utterance.asked = true;
            utterance.fresh_from = utterance.take + 1;
            utterance.ask(now, Take::Speculative, actions);
        }
    }

    /// A suspected barge-in: enough voice confirms it, silence or time denies it; words are judged as they come.
    fn weigh_suspicion(&mut self, now: Instant, heard: Heard, actions: &mut Vec<Action>) {
        let Floor::Suspected { reply, was_audible, since, packets, voiced } = self.floor else { return };
        let (packets, voiced) =
            if heard.started { (packets, voiced) } else { (packets + 1, voiced + u32::from(heard.voiced)) };
        self.floor = Floor::Suspected { reply, was_audible, since, packets, voiced };
        let age = now.duration_since(since);
        let settings = &self.settings;
        let (words, pending) = match &self.utterance {
            Some(u) => {
                (u.best_words().to_owned(), u.waiting.is_some_and(|(kind, _)| kind != Take::Partial) || !u.asked)
            }
            None => (String::new(), false),
        };
        let no_words = words.trim().is_empty();
        let share = voiced as f32 / packets.max(1) as f32;
        if no_words
            && heard.silent_for.is_zero()
            && age >= TurnSettings::ms(settings.confirm_after_ms)
            && share >= settings.confirm_voiced_share
        {
            self.interrupt(actions);
        } else if heard.silent_for >= TurnSettings::ms(settings.deny_silence_ms) && !pending
            || age >= TurnSettings::ms(settings.deny_after_ms)
        {
            self.deny(actions);
        }
    }

    /// Nothing came of the suspicion: the agent speaks on. What the caller says may still turn out to be words.
    fn deny(&mut self, actions: &mut Vec<Action>) {
        let Floor::Suspected { reply, was_audible, since, .. } = self.floor else { return };
        self.floor = if was_audible { Floor::Speaking { reply, since } } else { Floor::Committed { reply } };
        actions.push(Action::Resume);
        if let Some(utterance) = &self.utterance
            && utterance.silent
            && utterance.waiting.is_none()
        {
            self.end_utterance(actions);
        }
    }

    fn interrupt(&mut self, actions: &mut Vec<Action>) {
        if let Floor::Suspected { reply, .. } | Floor::Speaking { reply, .. } | Floor::Committed { reply } = self.floor
        {
            actions.push(Action::Interrupt { reply });
            self.floor = Floor::Idle;
            self.ending = None;
            self.question = false;
            if let Some(utterance) = &mut self.utterance {
                utterance.interrupted = true;
            }
        }
    }

    /// Silence long enough for what the words sound like ends the turn.
    fn end_of_turn(&mut self, now: Instant, heard: Heard, actions: &mut Vec<Action>) {
        let Some(utterance) = &self.utterance else { return };
        let too_long = now.duration_since(utterance.started) >= TurnSettings::ms(self.settings.max_turn_ms);
        if (!utterance.silent && !too_long) || !matches!(self.floor, Floor::Idle | Floor::Preparing { .. }) {
            return;
        }
        let words = utterance.fresh_words().map(str::to_owned);
        let wait = self.wait(words.as_deref());
        if heard.silent_for < wait && !too_long {
            return;
        }
        match words {
            Some(words) if words.trim().is_empty() => match utterance.prepared.clone() {
                // What was understood before the caller made another sound.
                Some(prepared) => self.commit(prepared, actions),
                None => self.no_words(now, actions),
            },
            Some(words) => self.commit(words, actions),
            None => self.await_words(now, heard, actions),
        }
    }

    /// The turn is over and held no words: a noise, or speech that was not understood. After long enough a voice, or
    /// where the agent gave the floor up for it, silence would be the wrong answer.
    fn no_words(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(utterance) = &self.utterance else { return };
        let voice_ms = u64::from(utterance.voiced) * PACKET_MS;
        let needed = self.settings.repeat_after_voice_ms / if self.answer_due { 2 } else { 1 };
        let speech = utterance.interrupted || voice_ms >= needed;
        self.end_utterance(actions);
        self.caller_quiet_since.get_or_insert(now);
        if speech && self.settings.repeat_after_voice_ms > 0 && self.repeats < self.settings.max_repeats {
            self.repeats += 1;
            self.say(now, Phrase::PleaseRepeat, actions);
        }
    }

    /// The silence says that the turn is over, but recognition has not come back.
    fn await_words(&mut self, now: Instant, heard: Heard, actions: &mut Vec<Action>) {
        let limit = TurnSettings::ms(self.settings.transcript_limit_ms);
        let Some(utterance) = &mut self.utterance else { return };
        match utterance.waiting {
            Some((Take::Final, asked)) if now.duration_since(asked) < limit => {}
            Some((Take::Final, _)) => {
                self.end_utterance(actions);
                self.say(now, Phrase::PleaseRepeat, actions);
            }
            // The speculative take may be under way: it has until the turn is well over before it is asked again.
            Some((_, asked)) if now.duration_since(asked) < limit / 2 => {}
            _ if heard.silent_for.is_zero() => {}
            _ => utterance.ask(now, Take::Final, actions),
        }
    }

    /// Silence that ends a turn with these words.
    fn wait(&self, words: Option<&str>) -> Duration {
        let settings = &self.settings;
        let ms = match words.map(|words| completeness(&self.language, words)) {
            Some(Completeness::Complete) => settings.wait_complete_ms,
            Some(Completeness::Unfinished) => settings.wait_unfinished_ms,
            Some(Completeness::Unknown) | None => settings.wait_unknown_ms,
        };
        // In whole milliseconds: a rounding error above the wait would cost a packet.
        let slow = if self.expecting.slow_speech { f64::from(settings.expect_digits_factor) } else { 1.0 };
        TurnSettings::ms((ms as f64 * slow * f64::from(self.expecting.wait_factor)) as u64)
    }

    fn on_partial(&mut self, _now: Instant, id: UtteranceId, text: String, actions: &mut Vec<Action>) {
        let Some(utterance) = self.utterance.as_mut().filter(|u| u.id == id) else { return };
        if let Some((Take::Partial, _)) = utterance.waiting {
            utterance.waiting = None;
        }
        utterance.partial = text;
        self.judge_words(actions);
    }

    fn on_final(&mut self, now: Instant, id: UtteranceId, take: u32, text: String, actions: &mut Vec<Action>) {
        let Some(utterance) = self.utterance.as_mut().filter(|u| u.id == id) else { return };
        if take == utterance.take {
            utterance.waiting = None;
        }
        if take < utterance.fresh_from && !text.trim().is_empty() {
            // Made before the caller spoke on: good for judging an interruption, not for an answer.
            utterance.partial = text;
            self.judge_words(actions);
            return;
        }
        if utterance.words.as_ref().is_some_and(|(newest, _)| *newest > take) {
            return;
        }
        utterance.words = Some((take, text));
        self.judge_words(actions);
        self.speculate(actions);
        self.end_of_turn(now, self.heard, actions);
    }

    /// Words decide whether the caller interrupts.
    fn judge_words(&mut self, actions: &mut Vec<Action>) {
        let Some(utterance) = &self.utterance else { return };
        let words = utterance.best_words();
        let real = !words.trim().is_empty() && (self.question || !is_backchannel(&self.language, words));
        let final_words = utterance.fresh_words().is_some();
        match self.floor {
            Floor::Suspected { .. } if real => self.interrupt(actions),
            Floor::Suspected { .. } if final_words && utterance.silent => {
                self.deny(actions);
            }
            // Denied too early, or the words took long: they count all the same.
            Floor::Speaking { .. } | Floor::Committed { .. } if self.may_interrupt() => {
                if real {
                    self.interrupt(actions);
                } else if final_words && utterance.silent {
                    self.end_utterance(actions);
                }
            }
            _ => {}
        }
    }

    /// Starts the model on words that may still change, within the budget.
    fn speculate(&mut self, actions: &mut Vec<Action>) {
        let max = self.settings.max_speculations;
        let Some(utterance) = &mut self.utterance else { return };
        let Some(words) = utterance.fresh_words().map(str::to_owned) else { return };
        if !matches!(self.floor, Floor::Idle | Floor::Preparing { .. }) || !utterance.silent || words.trim().is_empty()
        {
            return;
        }
        if utterance.prepared.as_deref().is_some_and(|prepared| same_words(prepared, &words)) {
            return;
        }
        if let Floor::Preparing { reply } = self.floor {
            actions.push(Action::Abandon { reply });
            self.floor = Floor::Idle;
            utterance.prepared = None;
        }
        if utterance.speculations >= max || completeness(&self.language, &words) == Completeness::Unfinished {
            return;
        }
        utterance.speculations += 1;
        utterance.prepared = Some(words.clone());
        let reply = self.next_reply();
        self.floor = Floor::Preparing { reply };
        actions.push(Action::Prepare { reply, text: words });
    }

    /// The turn is the caller's no more: answer it.
    fn commit(&mut self, words: String, actions: &mut Vec<Action>) {
        let prepared = self.utterance.as_ref().and_then(|u| u.prepared.clone());
        self.end_utterance(actions);
        let reply = match (self.floor, prepared) {
            (Floor::Preparing { reply }, Some(prepared)) if same_words(&prepared, &words) => reply,
            (floor, _) => {
                if let Floor::Preparing { reply } = floor {
                    actions.push(Action::Abandon { reply });
                }
                let reply = self.next_reply();
                actions.push(Action::Prepare { reply, text: words });
                reply
            }
        };
        actions.push(Action::Commit { reply });
        self.floor = Floor::Committed { reply };
        self.answer_due = false;
        self.repeats = 0;
        self.prompted = false;
        self.quiet_since = None;
        self.caller_quiet_since = None;
    }

    fn on_no_text(&mut self, now: Instant, id: UtteranceId, take: u32, failed: bool, actions: &mut Vec<Action>) {
        let Some(utterance) = self.utterance.as_mut().filter(|u| u.id == id && u.take == take) else { return };
        let was = utterance.waiting.take();
        if !failed || !matches!(was, Some((Take::Final | Take::Speculative, _))) {
            return;
        }
        let silent = utterance.silent;
        match was {
            // One more try when the turn is over.
            Some((Take::Speculative, _)) => {}
            _ if silent => {
                self.end_utterance(actions);
                match self.floor {
                    Floor::Idle | Floor::Preparing { .. } => self.say(now, Phrase::PleaseRepeat, actions),
                    Floor::Suspected { .. } => self.deny(actions),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn on_dtmf(&mut self, now: Instant, digit: char, actions: &mut Vec<Action>) {
        if self.held_since.is_some() {
            return;
        }
        self.quiet_since = None;
        self.caller_quiet_since = None;
        if !matches!(self.floor, Floor::Idle | Floor::Preparing { .. }) {
            self.interrupt(actions);
        }
        if digit != '#' {
            if self.digits.len() < DTMF_MAX {
                self.digits.push(digit);
            }
            self.digits_at = Some(now);
            return;
        }
        self.commit_digits(actions);
    }

    fn keypad(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.digits_at.is_some_and(|at| now.duration_since(at) >= DTMF_WAIT) {
            self.commit_digits(actions);
        }
    }

    fn commit_digits(&mut self, actions: &mut Vec<Action>) {
        self.digits_at = None;
        let digits = std::mem::take(&mut self.digits);
        if !digits.is_empty() && matches!(self.floor, Floor::Idle | Floor::Preparing { .. }) {
            self.commit(digits, actions);
        }
    }

    fn on_reply_over(&mut self, now: Instant, reply: ReplyId, actions: &mut Vec<Action>) {
        if self.reply() != Some(reply) || matches!(self.floor, Floor::Preparing { .. }) {
            return;
        }
        if matches!(self.floor, Floor::Suspected { .. }) {
            actions.push(Action::Resume);
        }
        self.floor = Floor::Idle;
        self.answer_due |= std::mem::take(&mut self.question);
        self.quiet_since = Some(now);
        if self.ending.is_some() {
            self.hang_up(actions);
        } else if self.winding_down && self.utterance.is_none() {
            self.finish_with(now, Phrase::TimeIsUp, CallEnd::new(Party::System, EndReason::Drained), actions);
        } else if !self.prompted || self.caller_quiet_since.is_none() {
            self.caller_quiet_since = Some(now);
        }
    }

    /// What the caller had begun to say is lost; what the agent says or is about to say waits.
    fn on_held(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.held_since.is_some() {
            return;
        }
        self.held_since = Some(now);
        self.end_utterance(actions);
        self.floor = match self.floor {
            Floor::Preparing { reply } => {
                actions.push(Action::Abandon { reply });
                Floor::Idle
            }
            Floor::Suspected { reply, was_audible: true, since, .. } => Floor::Speaking { reply, since },
            Floor::Suspected { reply, .. } => Floor::Committed { reply },
            floor => floor,
        };
        self.digits.clear();
        self.digits_at = None;
        actions.push(Action::Hold);
    }

    fn on_unheld(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.held_since.take().is_none() {
            return;
        }
        self.heard = Heard::default();
        // Both have all their patience again.
        self.prompted = false;
        self.quiet_since = Some(now);
        self.caller_quiet_since = Some(now);
        if let Floor::Speaking { since, .. } = &mut self.floor {
            *since = now;
        }
        actions.push(Action::Unhold);
    }

    /// Silence on hold is nobody's fault. A call that is forgotten there ends all the same, without a word.
    fn limits_on_hold(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let past = |since: Option<Instant>, ms: u64| {
            ms > 0 && since.is_some_and(|since| now.duration_since(since) >= TurnSettings::ms(ms))
        };
        if past(self.held_since, self.settings.max_hold_ms) || past(self.answered, self.settings.max_call_ms) {
            actions.push(Action::HangUp(CallEnd::new(Party::System, EndReason::TooLong)));
        }
    }

    /// Prompts, goodbyes and caps.
    fn limits(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let past = |since: Option<Instant>, ms: u64| {
            ms > 0 && since.is_some_and(|since| now.duration_since(since) >= TurnSettings::ms(ms))
        };
        let grace = TOO_LONG_GRACE.as_millis() as u64;
        if self.settings.max_call_ms > 0 && past(self.answered, self.settings.max_call_ms + grace) {
            return actions.push(Action::HangUp(CallEnd::new(Party::System, EndReason::TooLong)));
        }
        if past(self.answered, self.settings.max_call_ms) && self.ending.is_none() {
            if let Some(reply) = self.reply() {
                actions.push(match self.floor {
                    Floor::Preparing { .. } => Action::Abandon { reply },
                    _ => Action::Interrupt { reply },
                });
                self.floor = Floor::Idle;
            }
            let end = CallEnd::new(Party::System, EndReason::TooLong);
            return self.finish_with(now, Phrase::TimeIsUp, end, actions);
        }
        if self.floor != Floor::Idle || self.utterance.is_some() || self.ending.is_some() {
            return;
        }
        if past(self.caller_quiet_since, self.settings.silence_goodbye_ms) {
            let end = CallEnd::new(Party::Agent, EndReason::Silence);
            self.finish_with(now, Phrase::SilenceGoodbye, end, actions);
        } else if !self.prompted && past(self.quiet_since.or(self.caller_quiet_since), self.settings.silence_prompt_ms)
        {
            self.prompted = true;
            self.say(now, Phrase::AreYouThere, actions);
        }
    }

    fn finish_with(&mut self, now: Instant, phrase: Phrase, end: CallEnd, actions: &mut Vec<Action>) {
        self.end_utterance(actions);
        self.say(now, phrase, actions);
        self.ending = Some(end);
    }

    fn hang_up(&mut self, actions: &mut Vec<Action>) {
        if let Some(end) = self.ending {
            actions.push(Action::HangUp(end));
        }
    }

    fn say(&mut self, _now: Instant, phrase: Phrase, actions: &mut Vec<Action>) {
        if let Some(reply) = self.reply() {
            actions.push(match self.floor {
                Floor::Preparing { .. } => Action::Abandon { reply },
                _ => Action::Interrupt { reply },
            });
        }
        let reply = self.next_reply();
        self.floor = Floor::Committed { reply };
        actions.push(Action::Say { reply, phrase });
    }

    fn end_utterance(&mut self, actions: &mut Vec<Action>) {
        if let Some(utterance) = self.utterance.take() {
            actions.push(Action::EndUtterance { utterance: utterance.id });
        }
    }

    fn next_reply(&mut self) -> ReplyId {
        self.replies += 1;
        ReplyId(self.replies)
    }

    fn reply(&self) -> Option<ReplyId> {
        match self.floor {
            Floor::Idle => None,
            Floor::Preparing { reply }
            | Floor::Committed { reply }
            | Floor::Speaking { reply, .. }
            | Floor::Suspected { reply, .. } => Some(reply),
        }
    }
}

impl Utterance {
    fn ask(&mut self, now: Instant, kind: Take, actions: &mut Vec<Action>) {
        self.take += 1;
        self.waiting = Some((kind, now));
        actions.push(Action::Transcribe { utterance: self.id, take: self.take, kind });
    }

    /// Words that cover everything said so far.
    fn fresh_words(&self) -> Option<&str> {
        self.words.as_ref().filter(|(take, _)| *take >= self.fresh_from).map(|(_, text)| text.as_str())
    }

    /// The best that is known of the words, complete or not.
    fn best_words(&self) -> &str {
        self.fresh_words().unwrap_or(&self.partial)
    }
}

/// Whether two transcripts say the same: letters and digits only, case folded.
fn same_words(a: &str, b: &str) -> bool {
    let fold = |text: &str| -> Vec<String> {
        text.split(|c: char| !c.is_alphanumeric() && c != '\'')
            .filter(|word| !word.is_empty())
            .map(str::to_lowercase)
            .collect()
    };
    fold(a) == fold(b)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PACKET: Duration = Duration::from_millis(20);

    /// A caller and an agent on a simulated clock: packets are judged one by one, answers come when the test says so.
    struct Scene {
        turn: Turn,
        t0: Instant,
        now: Instant,
        silent: Duration,
        spoken_before: bool,
        log: Vec<(u64, Action)>,
    }

    impl Scene {
        fn new(change: impl FnOnce(&mut TurnSettings)) -> Self {
            let mut settings = TurnSettings::default();
            change(&mut settings);
            let now = Instant::now();
            let turn = Turn::new(settings, "en");
            Self { turn, t0: now, now, silent: Duration::ZERO, spoken_before: false, log: Vec::new() }
        }

        /// After the greeting, with the caller about to speak.
        fn greeted(change: impl FnOnce(&mut TurnSettings)) -> Self {
            let mut scene = Self::new(change);
            scene.event(Event::Answered);
            scene.event(Event::ReplyStarted { reply: ReplyId(1) });
            scene.event(Event::ReplyFinished { reply: ReplyId(1) });
            scene.log.clear();
            scene
        }

        /// The agent is in the middle of reply 2, a statement.
        fn agent_speaking(change: impl FnOnce(&mut TurnSettings)) -> Self {
            let mut scene = Self::greeted(change);
            scene.speak(800);
            scene.silence(100);
            scene.words("What time do you open today?");
            scene.silence(400);
            scene.event(Event::ReplyStarted { reply: ReplyId(2) });
            scene.event(Event::ClausePlaying { question: false });
            scene.silence(1000);
            scene.log.clear();
            scene
        }

        fn event(&mut self, event: Event) {
            let mut actions = Vec::new();
            self.turn.on_event(self.now, event, &mut actions);
            let at = self.now.duration_since(self.t0).as_millis() as u64;
            self.log.extend(actions.into_iter().map(|action| (at, action)));
        }

        fn packet(&mut self, heard: Heard) {
            self.now += PACKET;
            self.event(Event::Audio(heard));
        }

        /// Voice for so long; the start is reported on its third packet, as the gate does.
        fn speak(&mut self, ms: u64) {
            for n in 0..ms / 20 {
                let started = n == 2;
                let silent_for =
                    if n < 2 && self.spoken_before { self.silent + PACKET * (n as u32 + 1) } else { Duration::ZERO };
                self.packet(Heard { started, voiced: true, silent_for });
            }
            self.silent = Duration::ZERO;
            self.spoken_before = true;
        }

        fn silence(&mut self, ms: u64) {
            for _ in 0..ms / 20 {
                self.silent += PACKET;
                let silent_for = if self.spoken_before { self.silent } else { Duration::ZERO };
                self.packet(Heard { started: false, voiced: false, silent_for });
            }
        }

        fn last_take(&self) -> (UtteranceId, u32, Take) {
            self.log
                .iter()
                .rev()
                .find_map(|(_, action)| match action {
                    Action::Transcribe { utterance, take, kind } => Some((*utterance, *take, *kind)),
                    _ => None,
                })
                .expect("a transcript was asked for")
        }

        /// The transcript that was asked for last comes back.
        fn words(&mut self, text: &str) {
            let (utterance, take, kind) = self.last_take();
            match kind {
                Take::Partial => self.event(Event::Partial { utterance, text: text.into() }),
                _ => self.event(Event::Final { utterance, take, text: text.into() }),
            }
        }

        fn first(&self, wanted: impl Fn(&Action) -> bool) -> Option<u64> {
            self.log.iter().find(|(_, action)| wanted(action)).map(|(at, _)| *at)
        }

        fn count(&self, wanted: impl Fn(&Action) -> bool) -> usize {
            self.log.iter().filter(|(_, action)| wanted(action)).count()
        }
    }

    fn commits(action: &Action) -> bool {
        matches!(action, Action::Commit { .. })
    }

    fn prepares(action: &Action) -> bool {
        matches!(action, Action::Prepare { .. })
    }

    fn asks(action: &Action) -> bool {
        matches!(action, Action::Transcribe { kind: Take::Speculative, .. })
    }

    fn interrupts(action: &Action) -> bool {
        matches!(action, Action::Interrupt { .. })
    }

    /// Time from the end of speech to the commit, when the words come 40 ms after they were asked for.
    fn waited(text: &str, change: impl FnOnce(&mut TurnSettings)) -> u64 {
        let mut scene = Scene::greeted(change);
        scene.speak(800);
        let end = scene.now.duration_since(scene.t0).as_millis() as u64;
        scene.silence(120);
        scene.words(text);
        scene.silence(5000);
        scene.first(commits).expect("the turn ends") - end
    }

    #[test]
    fn a_complete_sentence_waits_its_own_time() {
        assert_eq!(waited("What time do you open today?", |_| {}), 300);
        assert_eq!(waited("What time do you open today?", |s| s.wait_complete_ms = 200), 200);
    }

    #[test]
    fn words_that_tell_nothing_wait_longer() {
        assert_eq!(waited("seven blue", |_| {}), 700);
        assert_eq!(waited("seven blue", |s| s.wait_unknown_ms = 500), 500);
    }

    #[test]
    fn an_unfinished_sentence_waits_longest_and_starts_no_model() {
        assert_eq!(waited("I would like to book a", |_| {}), 2000);
        assert_eq!(waited("I would like to book a", |s| s.wait_unfinished_ms = 1200), 1200);
        let mut scene = Scene::greeted(|_| {});
        scene.speak(800);
        scene.silence(120);
        scene.words("I would like to book a");
        scene.silence(1000);
        assert_eq!(scene.count(prepares), 0);
    }

    #[test]
    fn a_place_in_a_workflow_stretches_the_wait_and_may_forbid_interruptions() {
        let mut scene = Scene::greeted(|_| {});
        scene.event(Event::Expect(Expecting { wait_factor: 2.0, ..Expecting::default() }));
        scene.speak(800);
        scene.silence(120);
        scene.words("What time do you open today?");
        scene.silence(300);
        assert_eq!(scene.count(commits), 0);
        scene.silence(200);
        assert_eq!(scene.count(commits), 1);
        let mut scene = Scene::agent_speaking(|_| {});
        scene.event(Event::Expect(Expecting { barge_in: false, ..Expecting::default() }));
        scene.speak(1000);
        assert_eq!(scene.count(|a| *a == Action::Pause), 0);
    }

    #[test]
    fn digits_double_the_wait() {
        let mut scene = Scene::greeted(|s| s.expect_digits_factor = 2.0);
        scene.event(Event::Expect(Expecting { slow_speech: true, ..Expecting::default() }));
        scene.speak(800);
        scene.silence(120);
        scene.words("What time do you open today?");
        scene.silence(440);
        assert_eq!(scene.count(commits), 0);
        scene.silence(60);
        assert_eq!(scene.count(commits), 1);
    }

    #[test]
    fn the_model_starts_on_early_silence_and_is_held_until_the_turn_is_over() {
        let mut scene = Scene::greeted(|_| {});
        scene.speak(800);
        let end = scene.now.duration_since(scene.t0).as_millis() as u64;
        scene.silence(100);
        assert_eq!(scene.first(asks), Some(end + 40));
        scene.words("What time do you open today?");
        assert_eq!(scene.first(prepares), Some(end + 100));
        assert_eq!(scene.count(commits), 0);
        scene.silence(200);
        assert_eq!(scene.first(commits), Some(end + 300));
    }

    fn says(action: &Action) -> bool {
        matches!(action, Action::Say { .. })
    }

    #[test]
    fn a_held_call_is_neither_prompted_nor_hung_up_for_silence_and_has_all_its_patience_afterwards() {
        let mut scene = Scene::greeted(|_| {});
        scene.silence(9_000);
        scene.event(Event::Held(true));
        scene.event(Event::Held(true));
        assert_eq!(scene.log.drain(..).map(|(_, action)| action).collect::<Vec<_>>(), [Action::Hold]);
        scene.silence(120_000);
        assert_eq!(scene.log, []);
        scene.event(Event::Held(false));
        scene.event(Event::Held(false));
        assert_eq!(scene.log.drain(..).map(|(_, action)| action).collect::<Vec<_>>(), [Action::Unhold]);
        scene.silence(9_900);
        assert_eq!(scene.log, []);
        scene.silence(200);
        assert_eq!(scene.count(|action| matches!(action, Action::Say { phrase: Phrase::AreYouThere, .. })), 1);
    }

    #[test]
    fn what_the_agent_was_saying_waits_for_the_end_of_the_hold_and_music_does_not_interrupt_it() {
        let mut scene = Scene::agent_speaking(|_| {});
        scene.event(Event::Held(true));
        scene.speak(5_000);
        scene.silence(1_000);
        scene.event(Event::Dtmf('5'));
        scene.event(Event::Held(false));
        assert_eq!(
            scene.log.drain(..).map(|(_, action)| action).collect::<Vec<_>>(),
            [Action::Hold, Action::Unhold],
            "nothing else happens"
        );
        // It can be interrupted and finished as ever.
        scene.speak(200);
        assert_eq!(scene.count(|action| *action == Action::Pause), 1);
    }

    #[test]
    fn a_hold_in_the_midst_of_words_or_of_a_suspicion_leaves_nothing_hanging() {
        let mut scene = Scene::greeted(|_| {});
        scene.speak(800);
        scene.silence(100);
        scene.words("What time do you open today?");
        assert_eq!(scene.count(prepares), 1);
        scene.event(Event::Held(true));
        assert_eq!(scene.count(|action| matches!(action, Action::Abandon { .. })), 1);
        assert_eq!(scene.count(|action| matches!(action, Action::EndUtterance { .. })), 1);
        scene.silence(3_000);
        assert_eq!(scene.count(commits), 0);
        scene.event(Event::Held(false));
        scene.speak(800);
        scene.silence(100);
        scene.words("What time do you open today?");
        scene.silence(400);
        assert_eq!(scene.count(commits), 1);

        let mut scene = Scene::agent_speaking(|_| {});
        scene.speak(200);
        assert_eq!(scene.count(|action| *action == Action::Pause), 1);
        scene.event(Event::Held(true));
        scene.silence(3_000);
        scene.event(Event::Held(false));
        assert_eq!(scene.count(|action| matches!(action, Action::Resume | Action::Interrupt { .. })), 0);
        assert_eq!(scene.count(|action| *action == Action::Unhold), 1);
        scene.event(Event::ReplyFinished { reply: ReplyId(2) });
        scene.silence(10_100);
        assert_eq!(scene.count(says), 1);
    }

    #[test]
    fn a_call_forgotten_on_hold_ends() {
        let ends = |action: &Action| {
            matches!(action, Action::HangUp(CallEnd { by: Party::System, reason: EndReason::TooLong }))
        };
        let mut scene = Scene::greeted(|s| s.max_hold_ms = 5_000);
        scene.event(Event::Held(true));
        scene.silence(4_900);
        assert_eq!(scene.count(ends), 0);
        scene.silence(120);
        assert!(scene.count(ends) > 0 && scene.count(says) == 0, "without words");
        let mut scene = Scene::greeted(|s| s.max_hold_ms = 0);
        scene.event(Event::Held(true));
        scene.silence(20 * 60_000);
        assert_eq!(scene.count(ends), 0);
        scene.silence(11 * 60_000);
        assert!(scene.count(ends) > 0, "the call's own limit holds");
        let mut scene = Scene::greeted(|_| {});
        scene.event(Event::Held(true));
        scene.event(Event::WindDown);
        assert_eq!(scene.count(|action| matches!(action, Action::HangUp(_))), 1);
    }

    fn asks_again(action: &Action) -> bool {
        matches!(action, Action::Say { phrase: Phrase::PleaseRepeat, .. })
    }

    /// How often the agent asks the caller to repeat, after voice of this length in which no words were found.
    fn asked_again_after(scene: &mut Scene, voice_ms: u64) -> usize {
        let before = scene.count(asks_again);
        scene.speak(voice_ms);
        scene.silence(100);
        scene.words("");
        scene.silence(1000);
        if let Some((_, Action::Say { reply, .. })) = scene.log.iter().rev().find(|(_, action)| asks_again(action)) {
            let reply = *reply;
            scene.event(Event::ReplyStarted { reply });
            scene.event(Event::ReplyFinished { reply });
        }
        scene.count(asks_again) - before
    }

    #[test]
    fn a_voice_without_words_is_asked_to_repeat_and_a_short_noise_is_not() {
        assert_eq!(asked_again_after(&mut Scene::greeted(|_| {}), 600), 1);
        assert_eq!(asked_again_after(&mut Scene::greeted(|_| {}), 580), 0);
        assert_eq!(asked_again_after(&mut Scene::greeted(|s| s.repeat_after_voice_ms = 900), 880), 0);
        assert_eq!(asked_again_after(&mut Scene::greeted(|s| s.repeat_after_voice_ms = 0), 5000), 0);
    }

    #[test]
    fn after_a_question_half_the_voice_is_enough() {
        let question = |question| {
            let mut scene = Scene::new(|_| {});
            scene.event(Event::Answered);
            scene.event(Event::ReplyStarted { reply: ReplyId(1) });
            scene.event(Event::ClausePlaying { question });
            scene.event(Event::ReplyFinished { reply: ReplyId(1) });
            asked_again_after(&mut scene, 300)
        };
        assert_eq!(question(true), 1);
        assert_eq!(question(false), 0);
    }

    #[test]
    fn the_agent_asks_again_a_bounded_number_of_times_until_words_come() {
        let mut scene = Scene::greeted(|s| s.max_repeats = 2);
        let asked: Vec<usize> = (0..3).map(|_| asked_again_after(&mut scene, 900)).collect();
        assert_eq!(asked, [1, 1, 0]);
        scene.speak(800);
        scene.silence(100);
        scene.words("What time do you open today?");
        scene.silence(400);
        let Some((_, Action::Commit { reply })) = scene.log.iter().rev().find(|(_, action)| commits(action)) else {
            panic!("words end the turn")
        };
        let reply = *reply;
        scene.event(Event::ReplyStarted { reply });
        scene.event(Event::ReplyFinished { reply });
        assert_eq!(asked_again_after(&mut scene, 900), 1);
        assert_eq!(asked_again_after(&mut Scene::greeted(|s| s.max_repeats = 0), 900), 0);
    }

    #[test]
    fn an_agent_that_gave_up_the_floor_for_a_voice_without_words_asks_for_them() {
        let mut scene = Scene::agent_speaking(|s| s.repeat_after_voice_ms = 5000);
        scene.speak(700);
        assert_eq!(scene.count(interrupts), 1);
        scene.silence(100);
        scene.words("");
        scene.silence(1000);
        assert_eq!(scene.count(asks_again), 1);
    }

    #[test]
    fn words_that_were_understood_are_answered_though_a_later_take_finds_none() {
        let mut scene = Scene::greeted(|_| {});
        scene.speak(800);
        scene.silence(100);
        scene.words("What time do you open today?");
        scene.speak(200);
        scene.silence(100);
        scene.words("");
        scene.silence(1000);
        assert_eq!((scene.count(commits), scene.count(prepares)), (1, 1));
    }

    #[test]
    fn the_silence_before_speculation_is_a_setting() {
        let mut scene = Scene::greeted(|s| s.speculate_after_ms = 160);
        scene.speak(800);
        let end = scene.now.duration_since(scene.t0).as_millis() as u64;
        scene.silence(200);
        assert_eq!(scene.first(asks), Some(end + 160));
    }

    #[test]
    fn a_caller_who_speaks_on_gets_one_answer_to_everything() {
        let mut scene = Scene::greeted(|_| {});
        scene.speak(800);
        scene.silence(100);
        scene.words("Can I book a table?");
        scene.silence(100);
        scene.speak(600);
        scene.silence(100);
        scene.words("Can I book a table for four people?");
        scene.silence(400);
        assert_eq!(scene.count(prepares), 2);
        assert_eq!(scene.count(|a| matches!(a, Action::Abandon { .. })), 1);
        assert_eq!(scene.count(commits), 1);
        assert!(scene.log.iter().any(|(_, a)| *a == Action::Commit { reply: ReplyId(3) }));
    }

    #[test]
    fn a_pause_that_changes_nothing_keeps_the_prepared_reply() {
        let mut scene = Scene::greeted(|_| {});
        scene.speak(800);
        scene.silence(100);
        scene.words("What time do you open today?");
        scene.speak(80);
        scene.silence(100);
        scene.words("what time do you open today");
        scene.silence(400);
        assert_eq!(scene.count(prepares), 1);
        assert_eq!(scene.count(commits), 1);
    }

    #[test]
    fn a_model_is_started_at_most_so_often_in_a_turn() {
        let run = |max| {
            let mut scene = Scene::greeted(|s| s.max_speculations = max);
            for n in 0..6 {
                scene.speak(300);
                scene.silence(100);
                scene.words(&format!("The number is {n}."));
                scene.silence(60);
            }
            scene.count(prepares)
        };
        assert_eq!(run(3), 3);
        assert_eq!(run(0), 0);
    }

    #[test]
    fn a_voice_pauses_the_agent_and_a_word_interrupts_it() {
        let mut scene = Scene::agent_speaking(|_| {});
        let onset = scene.now.duration_since(scene.t0).as_millis() as u64;
        scene.speak(300);
        assert_eq!(scene.first(|a| *a == Action::Pause), Some(onset + 60));
        scene.words("wait");
        assert_eq!(scene.count(interrupts), 1);
        scene.silence(100);
        scene.words("Wait, what about Sunday?");
        scene.silence(400);
        assert_eq!(scene.count(commits), 1);
    }

    #[test]
    fn half_a_second_of_voice_interrupts_without_words() {
        let at = |confirm| {
            let mut scene = Scene::agent_speaking(|s| s.confirm_after_ms = confirm);
            let onset = scene.now.duration_since(scene.t0).as_millis() as u64;
            scene.speak(1200);
            scene.first(interrupts).map(|at| at - onset - 60)
        };
        assert_eq!(at(500), Some(500));
        assert_eq!(at(300), Some(300));
    }

    #[test]
    fn too_few_voiced_packets_do_not_confirm() {
        let run = |share| {
            let mut scene = Scene::agent_speaking(|s| s.confirm_voiced_share = share);
            scene.speak(60);
            for n in 0..60 {
                scene.packet(Heard { started: false, voiced: n % 2 == 0, silent_for: Duration::ZERO });
            }
            (scene.count(interrupts), scene.count(|a| *a == Action::Resume))
        };
        assert_eq!(run(0.6), (0, 1));
        assert_eq!(run(0.4), (1, 0));
    }

    #[test]
    fn silence_denies_and_the_agent_speaks_on() {
        let resumed = |deny| {
            let mut scene = Scene::agent_speaking(|s| s.deny_silence_ms = deny);
            scene.speak(100);
            let end = scene.now.duration_since(scene.t0).as_millis() as u64;
            scene.silence(100);
            scene.event(Event::Skipped { utterance: UtteranceId(2), take: 1 });
            scene.silence(600);
            assert_eq!(scene.count(interrupts), 0);
            scene.first(|a| *a == Action::Resume).map(|at| at - end)
        };
        assert_eq!(resumed(200), Some(200));
        assert_eq!(resumed(300), Some(300));
    }

    #[test]
    fn backchannel_is_denied_in_a_statement_however_long_and_counts_as_an_answer_to_a_question() {
        let mut scene = Scene::agent_speaking(|_| {});
        scene.speak(400);
        scene.words("mm-hm okay");
        scene.speak(640);
        scene.silence(100);
        scene.words("mm-hm okay yeah");
        scene.silence(600);
        assert_eq!((scene.count(interrupts), scene.count(|a| *a == Action::Resume)), (0, 1));
        assert_eq!(scene.count(commits), 0);

        let mut scene = Scene::agent_speaking(|_| {});
        scene.event(Event::ClausePlaying { question: true });
        scene.speak(300);
        scene.silence(100);
        scene.words("okay");
        scene.silence(800);
        assert_eq!((scene.count(interrupts), scene.count(commits)), (1, 1));
    }

    #[test]
    fn a_suspicion_that_nothing_confirms_ends_in_time() {
        let run = |deny| {
            let mut scene = Scene::agent_speaking(|s| {
                s.deny_after_ms = deny;
                s.confirm_after_ms = 5000;
            });
            let onset = scene.now.duration_since(scene.t0).as_millis() as u64;
            scene.speak(2000);
            scene.first(|a| *a == Action::Resume).map(|at| at - onset - 60)
        };
        assert_eq!(run(700), Some(700));
        assert_eq!(run(900), Some(900));
    }

    #[test]
    fn words_that_come_after_the_agent_went_on_still_interrupt() {
        let mut scene = Scene::agent_speaking(|_| {});
        scene.speak(200);
        scene.silence(900);
        assert_eq!(scene.count(|a| *a == Action::Resume), 1);
        scene.words("Stop please.");
        scene.silence(400);
        assert_eq!((scene.count(interrupts), scene.count(commits)), (1, 1));
    }

    #[test]
    fn barge_in_can_be_switched_off_and_can_wait_for_a_grace() {
        let mut scene = Scene::agent_speaking(|s| s.barge_in = false);
        scene.speak(1000);
        assert_eq!(scene.count(|a| *a == Action::Pause), 0);
        let pauses = |grace| {
            let mut scene = Scene::agent_speaking(|s| s.barge_in_grace_ms = grace);
            scene.speak(200);
            scene.count(|a| *a == Action::Pause)
        };
        assert_eq!((pauses(1500), pauses(500)), (0, 1));
    }

    #[test]
    fn silence_is_asked_about_and_then_ends_the_call() {
        let mut scene = Scene::greeted(|_| {});
        scene.silence(9980);
        assert!(scene.log.is_empty());
        scene.silence(40);
        assert!(matches!(scene.log.last(), Some((_, Action::Say { phrase: Phrase::AreYouThere, .. }))));
        scene.event(Event::ReplyStarted { reply: ReplyId(2) });
        scene.event(Event::ReplyFinished { reply: ReplyId(2) });
        scene.silence(19_980);
        assert!(matches!(scene.log.last(), Some((30_000, Action::Say { phrase: Phrase::SilenceGoodbye, .. }))));
        scene.event(Event::ReplyStarted { reply: ReplyId(3) });
        scene.event(Event::ReplyFinished { reply: ReplyId(3) });
        let end = CallEnd::new(Party::Agent, EndReason::Silence);
        assert_eq!(scene.log.last(), Some(&(30_000, Action::HangUp(end))));
    }

    #[test]
    fn silence_times_are_settings_and_zero_switches_them_off() {
        let mut scene = Scene::greeted(|s| {
            s.silence_prompt_ms = 0;
            s.silence_goodbye_ms = 4000;
        });
        scene.silence(4000);
        assert!(matches!(scene.log[..], [(4000, Action::Say { phrase: Phrase::SilenceGoodbye, .. })]));
        let mut scene = Scene::greeted(|s| {
            s.silence_prompt_ms = 0;
            s.silence_goodbye_ms = 0;
        });
        scene.silence(60_000);
        assert!(scene.log.is_empty());
    }

    #[test]
    fn the_longest_call_ends_with_a_goodbye_even_if_the_caller_talks_over_it() {
        let mut scene = Scene::greeted(|s| s.max_call_ms = 5000);
        scene.silence(5000);
        assert!(
            scene.log.iter().any(|(at, a)| *at == 5000 && matches!(a, Action::Say { phrase: Phrase::TimeIsUp, .. }))
        );
        scene.speak(26_000);
        let end = CallEnd::new(Party::System, EndReason::TooLong);
        assert!(scene.log.iter().any(|(at, a)| *at <= 25_100 && *a == Action::HangUp(end)));
    }

    #[test]
    fn an_endless_turn_is_answered_as_it_stands() {
        let mut scene = Scene::greeted(|s| {
            s.max_turn_ms = 3000;
            s.partial_every_ms = 0;
        });
        scene.speak(3200);
        scene.words("and then I said to him");
        scene.speak(100);
        assert_eq!(scene.count(commits), 1);
    }

    #[test]
    fn partials_come_at_their_interval() {
        let count = |every| {
            let mut scene = Scene::greeted(|s| s.partial_every_ms = every);
            for _ in 0..4 {
                scene.speak(1000);
                if scene.log.iter().any(|(_, a)| matches!(a, Action::Transcribe { .. })) {
                    scene.words("so");
                }
            }
            scene.count(|a| matches!(a, Action::Transcribe { kind: Take::Partial, .. }))
        };
        assert_eq!((count(0), count(1500)), (0, 2));
    }

    #[test]
    fn a_lost_transcript_is_asked_again_and_then_the_caller_is() {
        let mut scene = Scene::greeted(|s| s.transcript_limit_ms = 1000);
        scene.speak(800);
        scene.silence(4000);
        assert_eq!(scene.count(|a| matches!(a, Action::Transcribe { kind: Take::Final, .. })), 1);
        assert!(matches!(scene.log.last(), Some((_, Action::Say { phrase: Phrase::PleaseRepeat, .. }))));
    }

    #[test]
    fn a_cough_without_words_is_not_a_turn() {
        let mut scene = Scene::greeted(|_| {});
        scene.speak(200);
        scene.silence(100);
        scene.words("");
        scene.silence(2000);
        assert_eq!(scene.count(commits) + scene.count(prepares), 0);
        assert_eq!(scene.count(|a| matches!(a, Action::EndUtterance { .. })), 1);
    }

    #[test]
    fn an_ending_agent_hangs_up_when_its_words_are_out_unless_interrupted() {
        let mut scene = Scene::agent_speaking(|_| {});
        scene.event(Event::EndRequested);
        scene.event(Event::ReplyFinished { reply: ReplyId(2) });
        let end = CallEnd::new(Party::Agent, EndReason::Goodbye);
        assert_eq!(scene.log.last().map(|(_, a)| a.clone()), Some(Action::HangUp(end)));

        let mut scene = Scene::agent_speaking(|_| {});
        scene.event(Event::EndRequested);
        scene.speak(300);
        scene.words("no wait");
        scene.silence(100);
        scene.words("No wait, one more thing.");
        scene.silence(800);
        assert_eq!(scene.count(|a| matches!(a, Action::HangUp(_))), 0);
        assert_eq!(scene.count(commits), 1);
    }

    #[test]
    fn keys_make_a_turn_at_the_hash_or_after_a_pause() {
        let mut scene = Scene::greeted(|_| {});
        for key in ['4', '2', '#'] {
            scene.event(Event::Dtmf(key));
        }
        assert!(scene.log.iter().any(|(_, a)| matches!(a, Action::Prepare { text, .. } if text == "42")));
        let mut scene = Scene::greeted(|_| {});
        scene.event(Event::Dtmf('7'));
        scene.silence(2000);
        assert_eq!(scene.count(commits), 1);
    }

    #[test]
    fn a_failed_reply_is_apologised_for() {
        let mut scene = Scene::greeted(|_| {});
        scene.speak(800);
        scene.silence(100);
        scene.words("What time do you open today?");
        scene.silence(300);
        scene.event(Event::ReplyFailed { reply: ReplyId(2) });
        assert!(matches!(scene.log.last(), Some((_, Action::Say { phrase: Phrase::Apology, .. }))));
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let utterance = (0u32..4).prop_map(UtteranceId);
        let text =
            prop_oneof![Just(String::new()), Just("mm-hm".into()), Just("Stop.".into()), Just("I want to".into())];
        let reply = (0u64..6).prop_map(ReplyId);
        prop_oneof![
            12 => (any::<bool>(), any::<bool>(), 0u64..40).prop_map(|(started, voiced, n)| {
                let silent_for = if started || voiced { Duration::ZERO } else { PACKET * n as u32 };
                Event::Audio(Heard { started, voiced, silent_for })
            }),
            2 => (utterance.clone(), text.clone()).prop_map(|(utterance, text)| Event::Partial { utterance, text }),
            3 => (utterance.clone(), 0u32..6, text).prop_map(|(utterance, take, text)| Event::Final { utterance, take, text }),
            1 => (utterance.clone(), 0u32..6).prop_map(|(utterance, take)| Event::Skipped { utterance, take }),
            1 => (utterance, 0u32..6).prop_map(|(utterance, take)| Event::TranscriptFailed { utterance, take }),
            1 => Just(Event::Dtmf('5')),
            2 => reply.clone().prop_map(|reply| Event::ReplyStarted { reply }),
            1 => any::<bool>().prop_map(|question| Event::ClausePlaying { question }),
            2 => reply.clone().prop_map(|reply| Event::ReplyFinished { reply }),
            1 => reply.prop_map(|reply| Event::ReplyFailed { reply }),
            1 => Just(Event::EndRequested),
            1 => Just(Event::WindDown),
            1 => any::<bool>().prop_map(Event::Held),
        ]
    }

    proptest! {
        /// Whatever comes in whatever order: pauses alternate with resumes or interruptions, nobody begins to speak on hold, a
        /// commit has one prepared reply, an abandoned reply is never committed, utterances open and close in turn, takes grow.
        #[test]
        fn any_order_of_events_keeps_the_rules(events in proptest::collection::vec(any_event(), 0..300)) {
            let mut turn = Turn::new(TurnSettings::default(), "en");
            let mut now = Instant::now();
            let mut actions = Vec::new();
            turn.on_event(now, Event::Answered, &mut actions);
            for event in events {
                now += PACKET;
                turn.on_event(now, event, &mut actions);
            }
            let (mut paused, mut open, mut prepared, mut gone, mut take) = (false, None, None, Vec::new(), 0);
            let mut held = false;
            for action in actions {
                match action {
                    Action::Pause => { prop_assert!(!paused && !held); paused = true; }
                    // A pause that it finds is part of it.
                    Action::Hold => { prop_assert!(!held); (held, paused) = (true, false); }
                    Action::Unhold => { prop_assert!(held); held = false; }
                    Action::Resume => { prop_assert!(paused); paused = false; }
                    Action::Interrupt { reply } => { paused = false; gone.push(reply); }
                    Action::BeginUtterance { utterance } => { prop_assert!(open.is_none() && !held); open = Some(utterance); take = 0; }
                    Action::EndUtterance { utterance } => { prop_assert_eq!(open, Some(utterance)); open = None; }
                    Action::Transcribe { utterance, take: next, .. } => {
                        prop_assert_eq!(open, Some(utterance));
                        prop_assert!(next > take);
                        take = next;
                    }
                    Action::Prepare { reply, .. } => { prop_assert!(prepared.is_none_or(|p| p < reply)); prepared = Some(reply); }
                    Action::Commit { reply } => {
                        prop_assert_eq!(prepared, Some(reply));
                        prop_assert!(!gone.contains(&reply));
                    }
                    Action::Abandon { reply } => gone.push(reply),
                    Action::Say { reply, .. } => prop_assert!(prepared.is_none_or(|p| p < reply)),
                    Action::CancelTake { .. } | Action::HangUp(_) => {}
                }
            }
        }
    }
}
