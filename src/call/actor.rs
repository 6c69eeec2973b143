//! The task that owns a call. It moves packets, asks turn-taking what to do, does it, and writes down what happened.
//! It decides nothing about turns itself (`conversation/turn.rs`) and makes no reply itself (`call/reply.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{Histogram, counter, histogram};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::agent::knowledge::ahead::{Ahead, Guess, Work};
use crate::agent::knowledge::words::tells;
use crate::agent::memory::Memory;
use crate::agent::phrases::Phrases;
use crate::agent::profile::AgentProfile;
use crate::agent::tools::{CallEffect, ToolBox, ToolContext, ToolResult};
use crate::agent::walk::Progress;
use crate::call::budget::Meter;
use crate::call::egress::{Egress, Played};
use crate::call::engines::CallEngines;
use crate::call::handle::{CallCommand, CallEvent, CallEvents};
use crate::call::ingress::{Ingress, Judged};
use crate::call::recorder::Recorder;
use crate::call::registry::{CallSetup, LastCalls, SharedRecord};
use crate::call::reply::{Made, Reply, Source, Voice};
use crate::clock;
use crate::conversation::settings::TurnSettings;
use crate::conversation::transcript::{Line, ToolUse};
use crate::conversation::turn::{Action, Event, Expecting, Phrase, ReplyId, Turn};
use crate::media::frame::FRAME;
use crate::media::vad::Detector;
use crate::speech::llm::{ChatRequest, ToolCall};
use crate::speech::stt::{SttEvent, SttInput, SttRequest, SttSession};
use crate::store::ledger::Ledger;
use crate::telephony::{CallEnd, EndReason, Party};
use crate::transport::leg::{Leg, LegEvent};

/// What the registry hands over when a call starts.
pub(crate) struct Parts {
    pub setup: CallSetup,
    pub leg: Leg,
    pub engines: CallEngines,
    pub settings: TurnSettings,
    pub tools: Arc<ToolBox>,
    /// The agent's documents, where it has any: what the caller's words lead to is looked up before it is asked for.
    pub ahead: Option<Ahead>,
    pub recorder: Recorder,
    pub ledger: Ledger,
    pub over: LastCalls,
    pub record: SharedRecord,
    pub events: CallEvents,
    pub commands: mpsc::Receiver<CallCommand>,
    /// Cancelled by an operator.
    pub hangup: CancellationToken,
    /// Cancelled when the grace period of a drain is over.
    pub drained: CancellationToken,
    pub start: Instant,
    pub memory: Memory,
    pub detector: Detector,
    /// What is known of earlier contacts, when it has been looked up.
    pub past: Option<oneshot::Receiver<String>>,
    /// What the call uses is counted here.
    pub meter: Option<Meter>,
    /// Its company has used up its day: the greeting is an excuse, and nothing follows.
    pub spent: bool,
}

/// The reply that has, or is to have, the floor.
struct Speech {
    reply: Reply,
    /// The caller's words that it answers; none for a fixed phrase.
    answers: Option<String>,
    committed: bool,
    /// Rounds of tools so far: what was said before each, the calls and their results.
    rounds: Vec<(String, Vec<ToolCall>, Vec<ToolResult>)>,
    /// Everything has been made; `said` is the model's text of the last round.
    over: Option<Over>,
    clauses_made: u32,
    clauses_lost: u32,
    audible: Option<Instant>,
    /// Reached stages, from the end of the caller's speech.
    stages: BTreeMap<String, f64>,
    first_sound: Option<Instant>,
    committed_at: Option<Instant>,
}

struct Over {
    said: String,
    failed: bool,
}

/// Handles of the metrics that a tick touches: looked up once a call.
struct Meters {
    tick_lateness: Histogram,
    turn_latency: Histogram,
    turn_added: Histogram,
    barge_in: Histogram,
}

pub(crate) struct Call {
    setup: CallSetup,
    agent: Arc<AgentProfile>,
    /// The agent's, or its workflow's.
    greeting: String,
    settings: TurnSettings,
    leg: Leg,
    engines: CallEngines,
    voice: Voice,
    tools: Arc<ToolBox>,
    ahead: Option<Ahead>,
    /// The words that were last looked ahead on: engines repeat themselves, and finding out where words lead has its cost.
    partial: String,
    recorder: Recorder,
    ledger: Ledger,
    over: LastCalls,
    record: SharedRecord,
    events: CallEvents,
    commands: mpsc::Receiver<CallCommand>,
    hangup: CancellationToken,
    drained: CancellationToken,
    start: Instant,
    turn: Turn,
    ingress: Ingress,
    egress: Egress,
    stt: SttSession,
    memory: Memory,
    past: Option<oneshot::Receiver<String>>,
    meter: Option<Meter>,
    /// Its budget, or its company's, is used up: the call ends with what is being said.
    spent: bool,
    /// Of the utterance that is open, 20 ms each.
    chunks_heard: u32,
    speech: Option<Speech>,
    tasks: JoinSet<()>,
    utterance_open: bool,
    utterance_began: Instant,
    /// End of the caller's last speech: where a turn's latency is counted from.
    spoke_until: Instant,
    transcript_at: Option<Instant>,
    /// Engine failures in a row.
    failures: u32,
    meters: Meters,
    actions: Vec<Action>,
    played: Vec<Played>,
    end: Option<CallEnd>,
}

impl Call {
    pub(crate) fn new(parts: Parts) -> anyhow::Result<Self> {
        let Parts {
            setup,
            leg,
            engines,
            settings,
            tools,
            ahead,
            recorder,
            ledger,
            over,
            record,
            events,
            commands,
            hangup,
            drained,
            start,
            memory,
            detector,
            past,
            meter,
            spent,
        } = parts;
        let agent = setup.agent.clone();
        let stt = engines.stt.open(SttRequest { language: agent.language.clone(), hints: Vec::new() });
        let voice = Voice::of(&agent, &engines);
        engines.llm.prepare();
        voice.tts.prepare(&voice.request(&voice.line("")));
        let greeting = engines.greeting(&agent);
        for phrase in fixed_phrases(&agent, &greeting) {
            engines.tts.remember(&voice.request(&voice.line(&phrase)));
        }
        let ingress = Ingress::new(start, leg.codec, engines.stt.rate(), &settings, leg.in_band_keys, detector)?
            .with_jitter(leg.jitter.clone());
        Ok(Self {
            turn: Turn::new(settings.clone(), agent.language.clone()),
            ingress,
            egress: Egress::new(leg.codec),
            stt,
            voice,
            agent,
            greeting,
            setup,
            settings,
            leg,
            engines,
            tools,
            ahead,
            partial: String::new(),
            recorder,
            ledger,
            over,
            record,
            events,
            commands,
            hangup,
            drained,
            start,
            memory,
            past,
            meter,
            spent,
            chunks_heard: 0,
            speech: None,
            tasks: JoinSet::new(),
            utterance_open: false,
            utterance_began: start,
            spoke_until: start,
            transcript_at: None,
            failures: 0,
            meters: Meters {
                tick_lateness: histogram!("offhook_tick_lateness_seconds"),
                turn_latency: histogram!("offhook_turn_latency_seconds"),
                turn_added: histogram!("offhook_turn_added_seconds"),
                barge_in: histogram!("offhook_barge_in_seconds"),
            },
            actions: Vec::with_capacity(16),
            played: Vec::with_capacity(8),
            end: None,
        })
    }

    /// Runs until the call is over.
    pub(crate) async fn run(mut self) -> CallEnd {
        info!(caller = %self.setup.from, callee = %self.setup.to, agent = %self.agent.name, "call answered");
        let _ = self.events.send(CallEvent::Started { call: self.setup.id });
        self.write_record();
        let mut tick = tokio::time::interval(FRAME);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let now = self.now();
        self.feed(now, Event::Answered);
        if self.spent {
            self.note_spent("day");
            self.feed(now, Event::EndRequested);
        }
        let end = loop {
            if let Some(end) = self.end {
                break end;
            }
            let hungry = self.speech.is_some() && self.egress.queued() < self.ahead();
            tokio::select! {
                biased;
                () = self.drained.cancelled() => break CallEnd::new(Party::System, EndReason::Drained),
                () = self.hangup.cancelled() => break CallEnd::new(Party::Operator, EndReason::HungUp),
                due = tick.tick() => self.on_tick(due.into_std()),
                event = self.leg.events.recv() => match event {
                    Some(event) => self.on_leg(event),
                    None => break CallEnd::new(Party::Carrier, EndReason::ConnectionLost),
                },
                Some(event) = self.stt.events.recv() => self.on_transcript(event),
                made = next_made(&mut self.speech), if hungry => self.on_made(made),
                Some(command) = self.commands.recv() => match command {
                    CallCommand::WindDown => { let now = self.now(); self.feed(now, Event::WindDown) }
                },
                Some(done) = self.tasks.join_next() => if let Err(error) = done && error.is_panic() {
                    warn!("a task of the call panicked");
                },
            }
        };
        self.close(end).await;
        end
    }

    /// One reading of the clock per turn of the loop.
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn ahead(&self) -> Duration {
        Duration::from_millis(self.settings.synthesize_ahead_ms)
    }

    fn on_tick(&mut self, due: Instant) {
        let now = self.now();
        self.meters.tick_lateness.record(now.saturating_duration_since(due).as_secs_f64());
        while let Some(judged) = self.ingress.next(now) {
            self.on_judged(judged);
        }
        match self.ingress.stalled(now) {
            Ok(Some(judged)) => self.on_judged(judged),
            Ok(None) => {}
            Err(_) => self.end = Some(CallEnd::new(Party::Carrier, EndReason::NoMedia)),
        }
        self.pump(now);
    }

    fn on_leg(&mut self, event: LegEvent) {
        let now = self.now();
        match event {
            LegEvent::Packet(packet) => {
                if self.settings.echo_guard_db > 0.0 {
                    let below = self.egress.loudest(now) - self.settings.echo_guard_db;
                    self.ingress.expect_echo(below, self.egress.is_sounding(now));
                }
                self.ingress.push(now, packet);
                while let Some(judged) = self.ingress.next(now) {
                    self.on_judged(judged);
                }
            }
            LegEvent::Dtmf(key) => self.feed_media(Event::Dtmf(key)),
            LegEvent::Played { mark } => self.egress.on_played(now, mark),
            LegEvent::Held(held) => {
                info!(held, "the other side changed its hold");
                self.ingress.forget_speech();
                self.feed_media(Event::Held(held));
            }
            LegEvent::InBandKeys(in_band) => self.ingress.listen_for_keys(in_band),
            LegEvent::Ended(end) => self.end = Some(end),
        }
    }

    /// 20 ms of the caller.
    fn on_judged(&mut self, judged: Judged) {
        self.recorder.caller(self.ingress.frame());
        if judged.heard.voiced {
            self.spoke_until = self.ingress.last_voiced();
        }
        if self.utterance_open
            && let Some(chunk) = self.ingress.newest()
        {
            let chunk = SttInput::Audio(chunk.clone());
            self.chunks_heard += 1;
            self.to_stt(chunk);
        }
        if let Some(key) = judged.key {
            self.feed_media(Event::Dtmf(key));
        }
        self.feed_media(Event::Audio(judged.heard));
    }

    fn on_transcript(&mut self, event: SttEvent) {
        let event = match event {
            SttEvent::Partial { utterance, text, .. } => {
                self.look_ahead(&text);
                Event::Partial { utterance, text }
            }
            SttEvent::Final { utterance, take, text, engine_time, .. } => {
                debug!(
                    take,
                    engine_ms = engine_time.as_millis() as u64,
                    words = text.split_whitespace().count(),
                    "transcript"
                );
                self.failures = 0;
                self.transcript_at = Some(self.now());
                Event::Final { utterance, take, text }
            }
            SttEvent::Skipped { utterance, take } => Event::Skipped { utterance, take },
            SttEvent::Failed { utterance, take, error } => {
                self.fault(format!("recognition: {error}"));
                Event::TranscriptFailed { utterance, take }
            }
        };
        self.feed_media(event);
    }

    /// Something the reply's task made.
    fn on_made(&mut self, made: Option<Made>) {
        let now = self.now();
        let Some(speech) = self.speech.as_mut() else { return };
        // Tokens are told at the end of an answer.
        let counted = matches!(made, Some(Made::Tools { .. } | Made::Done { .. } | Made::Failed { .. }));
        match made {
            Some(Made::FirstToken) => self.stage(now, "first_token"),
            Some(Made::Clause(line)) => {
                speech.clauses_made += 1;
                // Fixed phrases are kept as sound.
                if let (Some(meter), Some(_)) = (&self.meter, &speech.answers) {
                    meter.spoken(self.voice.tts.name(), line.said());
                }
                self.egress.begin(line);
                self.stage(now, "first_clause");
            }
            Some(Made::Sound(chunk)) => {
                speech.first_sound.get_or_insert(now);
                self.egress.sound(&chunk);
                self.stage(now, "first_audio");
            }
            Some(Made::ClauseOver) => self.egress.end_clause(),
            Some(Made::ClauseFailed(error)) => {
                speech.clauses_lost += 1;
                self.egress.end_clause();
                self.fault(format!("speech: {error}"));
            }
            Some(Made::Tools { said, calls, results }) => self.on_tools(now, said, calls, results),
            Some(Made::ToolLimit) => self.fault("tool limit reached in one turn".into()),
            Some(Made::Done { said }) => speech.over = Some(Over { said, failed: false }),
            Some(Made::Failed { said, error }) => {
                speech.over = Some(Over { said, failed: true });
                self.fault(format!("model: {error}"));
            }
            // The task ended without a word: it panicked.
            None => {
                if speech.over.is_none() {
                    speech.over = Some(Over { said: String::new(), failed: true });
                    self.fault("a reply task ended early".into());
                }
            }
        }
        if counted {
            self.heed_budget();
        }
        self.pump(now);
    }

    /// A call that has used up what it may says what it is saying, and goodbye.
    fn heed_budget(&mut self) {
        if !self.spent && self.meter.as_ref().is_some_and(Meter::is_spent) {
            self.spent = true;
            counter!("offhook_budget_spent_total", "of" => "call").increment(1);
            self.note_spent("call");
            self.feed_media(Event::WindDown);
        }
    }

    fn note_spent(&mut self, of: &'static str) {
        info!(of, "a budget is used up; the call ends");
        let mut record = self.record.lock();
        if record.faults.len() < MAX_FAULTS {
            record.faults.push(format!("budget: that of the {of} is used up"));
        }
    }

    fn on_tools(&mut self, now: Instant, said: String, calls: Vec<ToolCall>, results: Vec<ToolResult>) {
        let at_ms = self.since_start(now);
        let mut end = false;
        self.tools.told(&calls);
        {
            let mut record = self.record.lock();
            for (call, result) in calls.iter().zip(&results) {
                let _ = self.events.send(CallEvent::ToolUsed { call: self.setup.id, name: call.name.clone() });
                record.transcript.tools.push(ToolUse {
                    name: call.name.clone(),
                    arguments: serde_json::from_str(&call.arguments).unwrap_or_default(),
                    result: result.content.clone(),
                    at_ms,
                });
                match &result.effect {
                    Some(CallEffect::EndCall { .. }) => end = true,
                    Some(CallEffect::Remember { key, value }) => {
                        drop(record.remembered.insert(key.clone(), value.clone()))
                    }
                    Some(CallEffect::Handover { to }) => {
                        record.handover = Some(to.clone());
                        // The provider connects the person when our side of the call is over.
                        end |= !self.setup.agent.transfer_to.is_empty();
                    }
                    Some(CallEffect::PressKeys { keys }) => self.egress.press(keys, self.leg.presses_keys),
                    None => {}
                }
            }
        }
        if let Some(speech) = &mut self.speech {
            speech.rounds.push((said, calls, results));
        }
        self.write_record();
        if end {
            self.feed_media(Event::EndRequested);
        }
    }

    /// Notes when a stage of the reply was reached for the first time.
    fn stage(&mut self, now: Instant, name: &str) {
        let from = self.spoke_until;
        if let Some(speech) = &mut self.speech
            && speech.answers.is_some()
            && !speech.stages.contains_key(name)
        {
            speech.stages.insert(name.into(), ms(now.saturating_duration_since(from)));
        }
    }

    /// An event that turn-taking times by the caller's media.
    fn feed_media(&mut self, event: Event) {
        let now = self.ingress.media_now();
        self.feed(now, event);
    }

    fn feed(&mut self, media_now: Instant, event: Event) {
        let mut actions = std::mem::take(&mut self.actions);
        self.turn.on_event(media_now, event, &mut actions);
        for action in actions.drain(..) {
            self.act(action);
        }
        if self.actions.capacity() == 0 {
            self.actions = actions;
        }
    }

    fn act(&mut self, action: Action) {
        let now = self.now();
        match action {
            Action::BeginUtterance { utterance } => {
                self.utterance_open = true;
                self.utterance_began = self.ingress.onset();
                self.transcript_at = None;
                self.to_stt(SttInput::Begin { utterance });
                for chunk in self.ingress.pre_roll() {
                    self.chunks_heard += 1;
                    if self.stt.input.try_send(SttInput::Audio(chunk.clone())).is_err() {
                        counter!("offhook_frames_dropped_total", "where" => "stt").increment(1);
                    }
                }
            }
            Action::Transcribe { utterance, take, kind } => {
                if !self.to_stt(SttInput::Transcribe { utterance, take, kind }) {
                    self.fault("recognition: its queue is full".into());
                    self.feed_media(Event::TranscriptFailed { utterance, take });
                }
            }
            Action::CancelTake { utterance, take } => drop(self.to_stt(SttInput::Cancel { utterance, take })),
            Action::EndUtterance { utterance } => {
                self.utterance_open = false;
                self.to_stt(SttInput::End { utterance });
                let heard = FRAME * std::mem::take(&mut self.chunks_heard);
                if let Some(meter) = &self.meter {
                    meter.heard(self.engines.stt.name(), heard);
                }
            }
            Action::Prepare { reply, text } => self.prepare(now, reply, text),
            Action::Commit { reply } => self.commit(now, reply),
            Action::Abandon { reply } => {
                if self.speech.as_ref().is_some_and(|speech| speech.reply.id == reply) {
                    self.speech = None;
                    self.egress.discard(now);
                }
            }
            Action::Say { reply, phrase } => self.say(now, reply, phrase),
            Action::Pause => {
                let at = self.egress.pause(now, &self.leg.commands);
                self.recorder.cut(at);
                self.record.lock().interruptions.suspected += 1;
                self.meters.barge_in.record(now.saturating_duration_since(self.ingress.onset()).as_secs_f64());
                debug!("playout paused for the caller's voice");
            }
            Action::Resume => {
                self.record.lock().interruptions.denied += 1;
                self.egress.resume(now);
                let _ = self.events.send(CallEvent::Resumed { call: self.setup.id });
                self.pump(now);
            }
            Action::Hold => {
                let at = self.egress.hold_line(now, &self.leg.commands);
                self.recorder.cut(at);
            }
            Action::Unhold => {
                self.egress.unhold_line(now);
                self.pump(now);
            }
            Action::Interrupt { .. } => self.interrupt(now),
            Action::HangUp(end) => {
                let over = CallEnd::new(Party::System, EndReason::OverBudget);
                self.end = Some(if self.spent { over } else { end });
            }
        }
    }

    fn to_stt(&self, input: SttInput) -> bool {
        let taken = self.stt.input.try_send(input).is_ok();
        if !taken {
            counter!("offhook_frames_dropped_total", "where" => "stt").increment(1);
        }
        taken
    }

    /// Takes in what was looked up about the caller, once it is there.
    fn recall(&mut self) {
        match self.past.as_mut().map(oneshot::Receiver::try_recv) {
            Some(Ok(note)) => self.memory.knows(&note),
            None | Some(Err(oneshot::error::TryRecvError::Empty)) => return,
            Some(Err(oneshot::error::TryRecvError::Closed)) => {}
        }
        self.past = None;
    }

    /// Looks up what these words lead to, while they are being said.
    fn look_ahead(&mut self, words: &str) {
        let Some(ahead) = self.ahead.as_ref().filter(|_| tells(words) && self.partial != words) else { return };
        self.partial = words.to_owned();
        // What is being said is not in memory yet: the workflow could not tell where these words will be heard.
        let speaking = self.speech.as_ref().is_some_and(|speech| speech.committed);
        if speaking && self.engines.builtin.is_some() {
            return;
        }
        let request = self.memory.with_user(words).request(&self.tools.specs(), &self.agent.llm);
        let work = self.foreseen(words, &request).and_then(|guess| ahead.guess(guess));
        self.tasks_of(work);
    }

    /// What the answer to these words will look up. A model without a workflow is asked the words themselves.
    fn foreseen(&self, words: &str, request: &ChatRequest) -> Option<Guess> {
        match &self.engines.builtin {
            Some(builtin) => builtin.foresees(request),
            None => Some(Guess { query: words.to_owned(), bases: None, by_model: true }),
        }
    }

    fn tasks_of(&mut self, work: Option<Work>) {
        if let Some(work) = work {
            self.tasks.spawn(work);
        }
    }

    fn prepare(&mut self, now: Instant, id: ReplyId, text: String) {
        self.recall();
        let request = self.memory.with_user(&text).request(&self.tools.specs(), &self.agent.llm);
        if let Some(ahead) = &self.ahead {
            let work = ahead.settle(self.foreseen(&text, &request));
            self.tasks_of(work);
        }
        let source = Source::Model {
            request,
            model: self.engines.llm.clone(),
            tools: self.tools.clone(),
            context: ToolContext::new(self.setup.id, self.setup.peer().clone(), self.setup.own().clone()).in_turn(id.0),
        };
        self.egress.discard(now);
        self.egress.hold();
        let reply = Reply::start(id, source, self.voice.clone(), &self.settings, &mut self.tasks);
        self.speech = Some(Speech::new(reply, Some(text)));
        if let Some(at) = self.transcript_at {
            let from = self.spoke_until;
            if let Some(speech) = &mut self.speech {
                speech.stages.insert("transcript".into(), ms(at.saturating_duration_since(from)));
            }
        }
    }

    fn commit(&mut self, now: Instant, id: ReplyId) {
        let Some(speech) = self.speech.as_mut().filter(|speech| speech.reply.id == id) else { return };
        speech.committed = true;
        speech.committed_at = Some(now);
        speech.reply.commit();
        if let Some(text) = speech.answers.clone() {
            self.memory.user_said(&text);
            let line = Line {
                who: Party::Caller,
                text: text.clone(),
                start_ms: self.since_start(self.utterance_began),
                end_ms: self.since_start(self.spoke_until),
                heard: None,
                stages: BTreeMap::new(),
            };
            self.record.lock().transcript.lines.push(line);
            let _ = self.events.send(CallEvent::Said { call: self.setup.id, who: Party::Caller, text });
            // Where these words lead is where the answer is spoken.
            self.expect();
            self.write_record();
        }
        self.stage(now, "endpoint");
        self.egress.release();
        self.pump(now);
    }

    fn say(&mut self, now: Instant, id: ReplyId, phrase: Phrase) {
        let text = match phrase {
            Phrase::Greeting => self.greeting.clone(),
            phrase => fixed(&self.agent.language, phrase).to_owned(),
        };
        self.egress.discard(now);
        self.egress.release();
        if text.trim().is_empty() {
            return self.feed_media(Event::ReplyFinished { reply: id });
        }
        let reply = Reply::start(id, Source::Phrase(text), self.voice.clone(), &self.settings, &mut self.tasks);
        reply.commit();
        let mut speech = Speech::new(reply, None);
        speech.committed = true;
        self.speech = Some(speech);
    }

    fn interrupt(&mut self, now: Instant) {
        let (heard, at) = self.egress.cancel(now, &self.leg.commands);
        self.recorder.cut(at);
        if let Some(speech) = self.speech.take()
            && speech.committed
        {
            if speech.audible.is_some() {
                self.record.lock().interruptions.confirmed += 1;
                let _ = self.events.send(CallEvent::Interrupted { call: self.setup.id });
            }
            self.settle(now, speech, Some(heard));
        }
    }

    /// Sends what is due and tells turn-taking what began and what is over.
    fn pump(&mut self, now: Instant) {
        let mut played = std::mem::take(&mut self.played);
        self.egress.pump(now, &self.leg.commands, &mut self.recorder, &mut played);
        for event in played.drain(..) {
            match event {
                Played::Audible => self.on_audible(now),
                Played::Clause { text } => {
                    let question = text.trim_end().ends_with('?');
                    let _ = self.events.send(CallEvent::Said { call: self.setup.id, who: Party::Agent, text });
                    self.feed_media(Event::ClausePlaying { question });
                }
            }
        }
        self.played = played;
        let over = self.speech.as_ref().is_some_and(|speech| speech.committed && speech.over.is_some());
        if over && self.egress.is_over(now) {
            self.reply_over(now);
        }
    }

    fn on_audible(&mut self, now: Instant) {
        let Some(speech) = &mut self.speech else { return };
        if speech.audible.is_some() {
            return;
        }
        speech.audible = Some(now);
        let id = speech.reply.id;
        if speech.answers.is_some() {
            let latency = now.saturating_duration_since(self.spoke_until);
            self.meters.turn_latency.record(latency.as_secs_f64());
            if let (Some(sound), Some(committed)) = (speech.first_sound, speech.committed_at) {
                self.meters.turn_added.record(now.saturating_duration_since(sound.max(committed)).as_secs_f64());
            }
            debug!(latency_ms = ms(latency), "reply is audible");
            self.stage(now, "audible");
        }
        self.feed_media(Event::ReplyStarted { reply: id });
    }

    /// All of a reply has been heard, or nothing came of it.
    fn reply_over(&mut self, now: Instant) {
        let Some(speech) = self.speech.take() else { return };
        let id = speech.reply.id;
        let failed = speech.over.as_ref().is_some_and(|over| over.failed);
        let mute = speech.audible.is_none() && (failed || speech.clauses_lost > 0);
        let phrase = speech.answers.is_none();
        self.egress.discard(now);
        self.settle(now, speech, None);
        if !mute {
            self.failures = 0;
            return self.feed_media(Event::ReplyFinished { reply: id });
        }
        self.failures += 1;
        if self.settings.max_engine_failures > 0 && self.failures >= self.settings.max_engine_failures {
            self.end = Some(CallEnd::new(Party::System, EndReason::EngineFailed));
        } else if phrase {
            // A phrase that cannot be spoken is not followed by another one.
            self.feed_media(Event::ReplyFinished { reply: id });
        } else {
            self.feed_media(Event::ReplyFailed { reply: id });
        }
    }

    /// Takes a reply into memory and record: what the model said, or what the caller heard of it.
    fn settle(&mut self, now: Instant, speech: Speech, heard: Option<String>) {
        let said = speech.over.map(|over| over.said);
        let last = match (&heard, said) {
            (None, said) => said.unwrap_or_default(),
            (Some(_), Some(said)) => said,
            (Some(heard), None) => heard.clone(),
        };
        let mut whole: Vec<&str> = Vec::new();
        for (said, calls, results) in &speech.rounds {
            self.memory.agent_said(said);
            self.memory.tool_round(calls, results);
            whole.push(said.trim());
        }
        whole.push(last.trim());
        whole.retain(|part| !part.is_empty());
        let text = whole.join(" ");
        match &heard {
            None if speech.answers.is_some() || !last.is_empty() => self.memory.agent_said(&last),
            None => {}
            Some(heard) => {
                self.memory.agent_said(&last);
                self.memory.interrupted(heard);
            }
        }
        if text.is_empty() || (heard.as_deref() == Some("") && speech.audible.is_none()) {
            return;
        }
        let start = speech.audible.unwrap_or(now);
        let line = Line {
            who: Party::Agent,
            text,
            start_ms: self.since_start(start),
            end_ms: self.since_start(now),
            heard,
            stages: speech.stages,
        };
        self.record.lock().transcript.lines.push(line);
        self.write_record();
        self.expect();
    }

    /// Tells turn-taking what the workflow says and hears next, and the record what is known by now.
    fn expect(&mut self) {
        let Some(builtin) = &self.engines.builtin else { return };
        let Progress { slots, expectation, manners, .. } = builtin.state(&self.memory.all());
        if !slots.is_empty() {
            let known = slots.into_iter().map(|(slot, value)| (slot, Value::String(value.value))).collect();
            self.record.lock().remembered.insert(SLOTS.into(), Value::Object(known));
        }
        self.feed_media(Event::Expect(Expecting {
            slow_speech: expectation.waits_longer(),
            wait_factor: manners.wait_factor,
            barge_in: manners.barge_in,
        }));
    }

    fn fault(&mut self, what: String) {
        warn!(fault = %what, "engine fault");
        let mut record = self.record.lock();
        if record.faults.len() < MAX_FAULTS {
            record.faults.push(what);
        }
    }

    fn since_start(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_millis() as u64
    }

    fn write_record(&self) {
        let record = self.record.lock();
        self.recorder.record(&record);
        self.ledger.note(record.clone());
    }

    /// Everything that runs for the call is stopped and waited for; the record gets its end.
    async fn close(mut self, end: CallEnd) {
        let now = self.now();
        if let Some(speech) = self.speech.take()
            && speech.committed
        {
            let (heard, at) = self.egress.cancel(now, &self.leg.commands);
            self.recorder.cut(at);
            self.settle(now, speech, Some(heard));
        }
        self.over.note(&self.setup, end, &self.record.lock());
        self.leg.hangup.cancel();
        self.tasks.shutdown().await;
        self.tools.finish(TOOLS_END).await;
        {
            let mut record = self.record.lock();
            record.close(clock::now(), end);
            self.ledger.note(record.clone());
        }
        let _ = self.events.send(CallEvent::Ended { call: self.setup.id, end });
        info!(
            by = end.by.label(),
            reason = end.reason.label(),
            seconds = now.duration_since(self.start).as_secs(),
            "call ended"
        );
        let record = self.record.lock().clone();
        self.recorder.finish(&record).await;
    }
}

/// The key of a record under which stands what the workflow has collected, slot by slot.
const SLOTS: &str = "slots";
/// What a tool has begun is waited for as long, so that its end is not lost with the call.
const TOOLS_END: Duration = Duration::from_secs(5);
/// Faults kept in a record; a broken engine would fill it otherwise.
const MAX_FAULTS: usize = 50;

impl Speech {
    fn new(reply: Reply, answers: Option<String>) -> Self {
        Self {
            reply,
            answers,
            committed: false,
            rounds: Vec::new(),
            over: None,
            clauses_made: 0,
            clauses_lost: 0,
            audible: None,
            stages: BTreeMap::new(),
            first_sound: None,
            committed_at: None,
        }
    }
}

/// The next thing that the reply's task made; waits for ever where there is nothing more to come.
async fn next_made(speech: &mut Option<Speech>) -> Option<Made> {
    match speech {
        Some(speech) if speech.over.is_none() => speech.reply.made.recv().await,
        _ => std::future::pending().await,
    }
}

/// What every call of this agent may say word for word: kept as sound from its first use.
fn fixed_phrases(agent: &AgentProfile, greeting: &str) -> impl Iterator<Item = String> {
    let fixed = Phrases::of(&agent.language).all().into_iter().map(str::to_owned);
    fixed.chain([greeting.to_owned()]).filter(|text| !text.trim().is_empty())
}

fn fixed(language: &str, phrase: Phrase) -> &'static str {
    let phrases = Phrases::of(language);
    match phrase {
        Phrase::Greeting => "",
        Phrase::AreYouThere => phrases.are_you_there,
        Phrase::SilenceGoodbye => phrases.goodbye_after_silence,
        Phrase::TimeIsUp => phrases.time_is_up,
        Phrase::PleaseRepeat => phrases.not_understood,
        Phrase::Apology => phrases.trouble,
    }
}

fn ms(span: Duration) -> f64 {
    (span.as_secs_f64() * 10_000.0).round() / 10.0
}
