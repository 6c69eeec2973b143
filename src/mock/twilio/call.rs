//! The life of one simulated call: it rings, asks what to do, obeys the TwiML verb by verb, and tells how it goes on.
//! Verbs that Offhook does not say are noted as error 12200 and passed over.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::load::caller::{self, CallerConfig, CallerEvent, Ending};
use crate::load::fixture::{Ender, Expect, Fixture};
use crate::mock::twilio::twiml::{self, Element};
use crate::mock::twilio::{Callee, MockCall, MockNumber, Recording, Shared, api, keep};

/// Commands that a call takes before it has obeyed the first: more are refused.
pub(super) const COMMANDS: usize = 8;
/// Callbacks that wait behind a slow one.
const CALLBACKS: usize = 64;
/// Documents of one call: TwiML that redirects for ever is stopped.
const MAX_DOCUMENTS: usize = 200;
/// A caller without an opinion stays on the line for so long.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// What happens to a call from outside.
#[derive(Clone, Debug)]
pub(super) enum Command {
    /// By REST; `canceled` ends it only while nobody has answered.
    End {
        canceled: bool,
    },
    /// Other TwiML takes the place of what runs.
    Replace(Source),
    CallerHangsUp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Url(String),
    Twiml(String),
}

/// How a call is to be handled.
#[derive(Clone, Debug, Default)]
pub(super) struct Offer {
    pub source: Option<Source>,
    pub fallback: Option<String>,
    pub status_callback: Option<String>,
    /// `initiated`, `ringing`, `answered`, `completed`.
    pub events: Vec<String>,
    pub detect: bool,
    /// Where the result of detection in the background goes; without it the TwiML waits for the result.
    pub amd_callback: Option<String>,
    pub record: bool,
    pub ring_limit: Option<Duration>,
    pub talk_limit: Option<Duration>,
}

impl Offer {
    /// A number's own settings. An application or a trunk keeps calls from its webhook.
    pub(super) fn inbound(number: &MockNumber) -> Self {
        let setting = |name: &str| Some(number.setting(name).to_owned()).filter(|value| !value.is_empty());
        let elsewhere = setting("VoiceApplicationSid").or_else(|| setting("TrunkSid")).is_some();
        Self {
            source: setting("VoiceUrl").filter(|_| !elsewhere).map(Source::Url),
            fallback: setting("VoiceFallbackUrl").filter(|_| !elsewhere),
            status_callback: setting("StatusCallback"),
            events: vec!["completed".into()],
            ..Self::default()
        }
    }
}

/// What comes after a verb.
enum Flow {
    Next,
    Document(Source),
    /// The call has this status now.
    Over(&'static str),
}

/// An address and the form that is posted to it.
type Callback = (String, Vec<(String, String)>);

/// One running call.
pub(super) struct Line {
    shared: Arc<Shared>,
    sid: String,
    from: String,
    to: String,
    direction: &'static str,
    offer: Offer,
    commands: mpsc::Receiver<Command>,
    status: &'static str,
    answered: Option<Instant>,
    answered_by: Option<&'static str>,
    /// Where the running TwiML came from: other addresses in it may be relative.
    base: Option<String>,
    callbacks: mpsc::Sender<Callback>,
    outbox: Option<mpsc::Receiver<Callback>>,
    sequence: u64,
}

impl Line {
    pub(super) fn new(shared: Arc<Shared>, call: &MockCall, offer: Offer, commands: mpsc::Receiver<Command>) -> Self {
        let (callbacks, outbox) = mpsc::channel(CALLBACKS);
        Self {
            shared,
            sid: call.sid.clone(),
            from: call.from.clone(),
            to: call.to.clone(),
            direction: call.direction,
            offer,
            commands,
            status: if call.direction == "inbound" { "ringing" } else { "queued" },
            answered: None,
            answered_by: None,
            base: None,
            callbacks,
            outbox: Some(outbox),
            sequence: 0,
        }
    }

    pub(super) async fn run(mut self) {
        let mut outbox = self.outbox.take().expect("a line is run once");
        let shared = Arc::clone(&self.shared);
        let callbacks = async move {
            // One after another: a slow callback holds up the next ones, not the call.
            while let Some((address, fields)) = outbox.recv().await {
                let _ = shared.webhook(&address, &fields).await;
                if shared.config.twice {
                    let _ = shared.webhook(&address, &fields).await;
                }
            }
        };
        let life = async move {
            let status = match self.direction {
                "inbound" => self.talk().await,
                _ => self.go_out().await,
            };
            self.finish(status);
        };
        tokio::join!(life, callbacks);
    }

    async fn go_out(&mut self) -> &'static str {
        self.tell("initiated", "initiated");
        self.set_status("ringing");
        self.tell("ringing", "ringing");
        let callee = self.shared.config.callees.get(&self.to).copied().unwrap_or(Callee::Answers);
        let ring = match callee {
            Callee::NoAnswer => self.offer.ring_limit.unwrap_or(PATIENCE).min(self.shared.config.ring * 4),
            _ => self.shared.config.ring,
        };
        if let Some(Flow::Over(_)) = self.pause(ring).await {
            return "canceled";
        }
        match callee {
            Callee::Busy => return "busy",
            Callee::NoAnswer => return "no-answer",
            Callee::Fails => return "failed",
            Callee::Answers | Callee::Machine => {}
        }
        self.answer();
        self.tell("answered", "in-progress");
        if self.offer.detect {
            let who = if callee == Callee::Machine { "machine_start" } else { "human" };
            self.answered_by = Some(who);
            self.shared.change_call(&self.sid, |call| call.answered_by = Some(who.into()));
            if let Some(address) = self.offer.amd_callback.clone() {
                let fields = api::pairs(&[
                    ("AccountSid", &self.shared.config.account_sid),
                    ("AnsweredBy", who),
                    ("CallSid", &self.sid),
                    ("MachineDetectionDuration", "2340"),
                ]);
                self.post(address, fields);
            }
        }
        self.talk().await
    }

    /// Runs documents until the call is over; gives its last status.
    async fn talk(&mut self) -> &'static str {
        let Some(mut source) = self.offer.source.clone() else {
            self.note(11200);
            return "failed";
        };
        let until = self.offer.talk_limit.map(|limit| Instant::now() + limit);
        for _ in 0..MAX_DOCUMENTS {
            let flow = match self.document(&source).await {
                Ok(document) => {
                    let executed = self.execute(&document);
                    match until {
                        Some(until) => {
                            tokio::time::timeout_at(until, executed).await.unwrap_or(Flow::Over("completed"))
                        }
                        None => executed.await,
                    }
                }
                Err(error) => {
                    self.note(error);
                    match self.offer.fallback.take() {
                        Some(fallback) => Flow::Document(Source::Url(fallback)),
                        // The caller hears that an application error has occurred.
                        None => Flow::Over("failed"),
                    }
                }
            };
            match flow {
                Flow::Document(next) => source = next,
                Flow::Over(status) => return status,
                Flow::Next => return "completed",
            }
        }
        self.note(12100);
        "failed"
    }

    async fn document(&mut self, source: &Source) -> Result<Element, u32> {
        let text = match source {
            Source::Twiml(text) => text.clone(),
            Source::Url(address) => {
                let address = self.absolute(address);
                let fields = self.fields(&[]);
                let answered = self.shared.webhook(&address, &fields).await.map_err(|failed| failed.0)?;
                self.base = Some(address);
                answered.body
            }
        };
        twiml::parse(&text).map_err(|_| 12100)
    }

    fn absolute(&self, address: &str) -> String {
        let base = self.base.as_deref().and_then(|base| reqwest::Url::parse(base).ok());
        match base {
            Some(base) if !address.contains("://") => base.join(address).map_or(address.into(), String::from),
            _ => address.into(),
        }
    }

    async fn execute(&mut self, document: &Element) -> Flow {
        for (index, verb) in document.children.iter().enumerate() {
            if verb.name == "Reject" && index == 0 && self.answered.is_none() {
                let busy = verb.attribute("reason") == Some("busy");
                return Flow::Over(if busy { "busy" } else { "no-answer" });
            }
            self.answer();
            let flow = match verb.name.as_str() {
                "Say" | "Play" => {
                    let text = verb.text.clone();
                    let time = self.shared.config.say_char * text.chars().count().min(10_000) as u32;
                    self.shared.change_call(&self.sid, |call| call.said.push(text));
                    self.pause(time).await.unwrap_or(Flow::Next)
                }
                "Pause" => {
                    let seconds = verb.attribute("length").and_then(|length| length.parse().ok()).unwrap_or(1);
                    self.pause(Duration::from_secs(seconds)).await.unwrap_or(Flow::Next)
                }
                "Redirect" => Flow::Document(Source::Url(verb.text.clone())),
                "Hangup" => Flow::Over("completed"),
                "Connect" => match verb.child("Stream") {
                    Some(stream) => self.stream(verb, stream).await,
                    None => self.note_and_go_on(12200),
                },
                "Dial" => self.dial(verb).await,
                _ => self.note_and_go_on(12200),
            };
            match flow {
                Flow::Next => {}
                flow => return flow,
            }
        }
        Flow::Over("completed")
    }

    /// `<Connect><Stream>`: a caller on our media websocket until either side ends it.
    async fn stream(&mut self, connect: &Element, stream: &Element) -> Flow {
        let url = stream.attribute("url").unwrap_or_default().to_owned();
        let status_callback = stream.attribute("statusCallback").map(|address| self.absolute(address));
        let stream_sid = format!("MZ{}", Uuid::new_v4().simple());
        let name = stream.attribute("name").unwrap_or_default().to_owned();
        let event = |line: &Self, event: &str, error: &str| {
            let Some(address) = &status_callback else { return };
            let mut fields = api::pairs(&[
                ("AccountSid", &line.shared.config.account_sid),
                ("CallSid", &line.sid),
                ("StreamEvent", event),
                ("StreamName", &name),
                ("StreamSid", &stream_sid),
                ("Timestamp", &Timestamp::now().to_string()),
            ]);
            if !error.is_empty() {
                fields.push(("StreamError".into(), error.into()));
            }
            line.post(address.clone(), fields);
        };
        let is_websocket = url.starts_with("wss://") || url.starts_with("ws://");
        if !is_websocket || url.contains('?') {
            self.note(31920);
            event(self, "stream-error", "31920 - Stream - WebSocket - Handshake Error");
            return self.after(connect);
        }
        let parameters = stream
            .children
            .iter()
            .filter(|child| child.name == "Parameter")
            .filter_map(|child| Some((child.attribute("name")?.to_owned(), child.attribute("value")?.to_owned())))
            .collect();
        let way = caller::Way::Ws { url, parameters, auth_token: Some(self.shared.config.auth_token.clone().into()) };
        let silent = self.shared.config.caller.is_none();
        let fixture = self.shared.config.caller.clone().unwrap_or_else(|| Arc::new(nobody()));
        let (events, mut told) = mpsc::channel(CALLBACKS);
        let hang_up = CancellationToken::new();
        let mut config = CallerConfig::new(way, fixture);
        config.account_sid = self.shared.config.account_sid.clone();
        config.from = self.from.clone();
        config.to = self.to.clone();
        config.call_sid = Some(self.sid.clone());
        config.stream_sid = Some(stream_sid.clone());
        config.events = Some(events);
        config.hang_up = hang_up.clone();
        if silent {
            config.reply_limit = PATIENCE;
            config.call_limit = PATIENCE;
        }
        let mut call = std::pin::pin!(caller::call(config));
        let mut command = None;
        let report = loop {
            tokio::select! {
                biased;
                Some(CallerEvent::Connected { .. }) = told.recv() => event(self, "stream-started", ""),
                report = &mut call => break report,
                Some(next) = self.commands.recv(), if command.is_none() => {
                    hang_up.cancel();
                    command = Some(next);
                }
            }
        };
        let ending = report.ending.clone();
        self.shared.change_call(&self.sid, |call| call.streams.push(report));
        match &ending {
            Ending::ConnectFailed(detail) => {
                self.note(31920);
                event(self, "stream-error", &format!("31920 - Stream - WebSocket - Handshake Error: {detail}"));
            }
            Ending::ProtocolError(detail) => {
                self.note(31924);
                event(self, "stream-error", &format!("31924 - Stream - WebSocket - Protocol Error: {detail}"));
            }
            _ => event(self, "stream-stopped", ""),
        }
        match (command, ending) {
            (Some(command), _) => self.obey(command),
            (None, Ending::CallerHungUp | Ending::NoReply { .. } | Ending::TimeLimit) => Flow::Over("completed"),
            (None, _) => self.after(connect),
        }
    }

    /// What follows `<Connect>` when the stream has been closed from our side.
    fn after(&self, connect: &Element) -> Flow {
        match connect.attribute("action") {
            Some(action) => Flow::Document(Source::Url(action.to_owned())),
            None => Flow::Next,
        }
    }

    async fn dial(&mut self, dial: &Element) -> Flow {
        let nouns: Vec<&Element> =
            dial.children.iter().filter(|child| matches!(child.name.as_str(), "Number" | "Sip")).collect();
        let to = nouns.first().map_or(dial.text.clone(), |noun| noun.text.clone());
        let shown = dial.attribute("callerId").unwrap_or(&self.from).to_owned();
        let allowed = shown == self.from && self.direction == "inbound"
            || self.shared.config.verified.contains(&shown)
            || self.shared.state().number(&shown).is_some();
        let mut child = MockCall::beginning(&shown, &to, "outbound-dial", "ringing", Timestamp::now());
        child.parent = Some(self.sid.clone());
        let child_sid = child.sid.clone();
        keep(&mut self.shared.state().calls, child);
        self.shared.change_call(&self.sid, |call| call.dialled.push(to.clone()));
        if !allowed {
            self.note(13214);
        }
        let callee = self.shared.config.callees.get(&to).copied().unwrap_or(Callee::Answers);
        let mut flow = None;
        let mut talked = 0;
        let status = if allowed {
            flow = self.pause(self.shared.config.ring).await;
            match callee {
                _ if flow.is_some() => "canceled",
                Callee::Busy => "busy",
                Callee::NoAnswer => "no-answer",
                Callee::Fails => "failed",
                Callee::Answers | Callee::Machine => {
                    let began = Instant::now();
                    self.shared.change_call(&child_sid, |call| call.status = "in-progress".into());
                    if let Some(address) = nouns.first().and_then(|noun| noun.attribute("url")) {
                        flow = self.tell_person(&child_sid, &shown, &to, address).await;
                    }
                    if flow.is_none() {
                        flow = self.pause(self.shared.config.dial_talk).await;
                    }
                    talked = began.elapsed().as_secs();
                    "completed"
                }
            }
        } else {
            "failed"
        };
        self.shared.change_call(&child_sid, |call| {
            call.status = status.into();
            call.ended = Some(Timestamp::now());
            call.duration = Some(talked);
        });
        match (flow, dial.attribute("action")) {
            (Some(flow), _) => flow,
            (None, Some(action)) => {
                let address = self.absolute(action);
                let fields = self.fields(&[
                    ("DialCallStatus", status),
                    ("DialCallSid", &child_sid),
                    ("DialCallDuration", &talked.to_string()),
                    ("DialBridged", if talked > 0 { "true" } else { "false" }),
                ]);
                match self.shared.webhook(&address, &fields).await {
                    Ok(answered) => Flow::Document(Source::Twiml(answered.body)),
                    Err(failed) => {
                        self.note(failed.0);
                        Flow::Over("completed")
                    }
                }
            }
            (None, None) => Flow::Next,
        }
    }

    /// What a dialled person hears before being connected: `<Say>` alone is obeyed here.
    async fn tell_person(&mut self, child: &str, shown: &str, to: &str, address: &str) -> Option<Flow> {
        let address = self.absolute(address);
        let fields = api::pairs(&[
            ("AccountSid", &self.shared.config.account_sid),
            ("ApiVersion", "2010-04-01"),
            ("CallSid", child),
            ("CallStatus", "in-progress"),
            ("Direction", "outbound-dial"),
            ("From", shown),
            ("ParentCallSid", &self.sid),
            ("To", to),
        ]);
        let answered = match self.shared.webhook(&address, &fields).await {
            Ok(answered) => answered,
            Err(failed) => {
                self.note(failed.0);
                return None;
            }
        };
        let Ok(document) = twiml::parse(&answered.body) else {
            self.note(12100);
            return None;
        };
        for verb in document.children.iter().filter(|verb| verb.name == "Say") {
            let text = verb.text.clone();
            let time = self.shared.config.say_char * text.chars().count().min(10_000) as u32;
            self.shared.change_call(child, |call| call.said.push(text));
            if let Some(flow) = self.pause(time).await {
                return Some(flow);
            }
        }
        None
    }

    /// Lets time pass; a command cuts it short.
    async fn pause(&mut self, time: Duration) -> Option<Flow> {
        let until = Instant::now() + time;
        loop {
            tokio::select! {
                biased;
                Some(command) = self.commands.recv() => match self.obey(command) {
                    Flow::Next => {}
                    flow => return Some(flow),
                },
                () = tokio::time::sleep_until(until) => return None,
            }
        }
    }

    fn obey(&mut self, command: Command) -> Flow {
        match command {
            // Too late to cancel: an answered call goes on.
            Command::End { canceled: true } if self.answered.is_some() => Flow::Next,
            Command::End { .. } | Command::CallerHangsUp => Flow::Over("completed"),
            Command::Replace(source) => Flow::Document(source),
        }
    }

    fn answer(&mut self) {
        if self.answered.is_none() {
            self.answered = Some(Instant::now());
            self.set_status("in-progress");
            self.shared.change_call(&self.sid, |call| call.started = Some(Timestamp::now()));
        }
    }

    fn set_status(&mut self, status: &'static str) {
        self.status = status;
        self.shared.change_call(&self.sid, |call| call.status = status.into());
    }

    fn note(&self, error: u32) {
        self.shared.change_call(&self.sid, |call| call.errors.push(error));
    }

    fn note_and_go_on(&self, error: u32) -> Flow {
        self.note(error);
        Flow::Next
    }

    fn fields(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut fields = api::pairs(&[
            ("AccountSid", &self.shared.config.account_sid),
            ("ApiVersion", "2010-04-01"),
            ("CallSid", &self.sid),
            ("CallStatus", self.status),
            ("Called", &self.to),
            ("CalledCountry", ""),
            ("Caller", &self.from),
            ("Direction", self.direction),
            ("From", &self.from),
            ("FromCountry", ""),
            ("To", &self.to),
            ("ToCountry", ""),
        ]);
        let own = &self.shared.config.fields;
        fields.retain(|(name, _)| !own.iter().any(|(other, _)| other == name));
        fields.extend(own.iter().cloned());
        fields.extend(self.answered_by.map(|who| ("AnsweredBy".to_owned(), who.to_owned())));
        fields.extend(api::pairs(more));
        fields
    }

    /// A status callback, if this event was asked for.
    fn tell(&mut self, event: &str, status: &'static str) {
        let Some(address) = self.offer.status_callback.clone() else { return };
        if !self.offer.events.iter().any(|wanted| wanted == event) {
            return;
        }
        let mut fields = self.fields(&[
            ("CallbackSource", "call-progress-events"),
            ("SequenceNumber", &self.sequence.to_string()),
            ("Timestamp", &api::rfc2822(Timestamp::now())),
        ]);
        if let Some((_, value)) = fields.iter_mut().find(|(name, _)| name == "CallStatus") {
            *value = status.into();
        }
        if event == "completed" {
            let seconds = self.answered.map_or(0, |answered| answered.elapsed().as_secs());
            fields.extend(api::pairs(&[
                ("CallDuration", &seconds.to_string()),
                ("Duration", &seconds.div_ceil(60).to_string()),
            ]));
        }
        self.sequence += 1;
        self.post(address, fields);
    }

    fn post(&self, address: String, fields: Vec<(String, String)>) {
        // A backlog of 64 callbacks: Twilio too gives some up.
        let _ = self.callbacks.try_send((address, fields));
    }

    fn finish(&mut self, status: &'static str) {
        let seconds = self.answered.map_or(0, |answered| answered.elapsed().as_secs());
        self.status = status;
        if self.answered.is_some() && (self.offer.record || self.shared.config.record) {
            let recording = Recording {
                sid: format!("RE{}", Uuid::new_v4().simple()),
                call: self.sid.clone(),
                seconds,
                created: Timestamp::now(),
                ready: Instant::now() + self.shared.config.recording_delay,
            };
            keep(&mut self.shared.state().recordings, recording);
        }
        self.tell("completed", status);
        self.shared.change_call(&self.sid, |call| {
            call.status = status.into();
            call.ended = Some(Timestamp::now());
            call.duration = Some(seconds);
            call.commands = None;
        });
    }
}

/// The life of a message that was sent: `sent`, then `delivered` or an error.
pub(super) async fn deliver(shared: Arc<Shared>, sid: String, callback: Option<String>, error: Option<u32>) {
    let steps: [(&str, Option<u32>); 2] = match error {
        Some(code) => [("sent", None), (if code == 30003 { "undelivered" } else { "failed" }, Some(code))],
        None => [("sent", None), ("delivered", None)],
    };
    for (status, code) in steps {
        sleep(shared.config.ring).await;
        let Some(message) = ({
            let mut state = shared.state();
            state.messages.iter_mut().rev().find(|message| message.sid == sid).map(|message| {
                message.status = status.into();
                message.error_code = code;
                message.clone()
            })
        }) else {
            return;
        };
        shared.changed.send_modify(|changes| *changes += 1);
        if let Some(address) = &callback {
            let mut fields = api::pairs(&[
                ("AccountSid", &shared.config.account_sid),
                ("ApiVersion", "2010-04-01"),
                ("From", message.from.as_deref().unwrap_or_default()),
                ("MessageSid", &sid),
                ("MessageStatus", status),
                ("SmsSid", &sid),
                ("SmsStatus", status),
                ("To", &message.to),
            ]);
            fields.extend(code.map(|code| ("ErrorCode".to_owned(), code.to_string())));
            let _ = shared.webhook(address, &fields).await;
        }
    }
}

/// A caller who says nothing and stays on the line.
fn nobody() -> Fixture {
    Fixture {
        name: "silence".into(),
        title: "Says nothing and stays on the line".into(),
        language: "en".into(),
        workflow: String::new(),
        voice: String::new(),
        background: None,
        echo: None,
        turns: Vec::new(),
        expect: Expect { ended_by: Some(Ender::Agent), ..Expect::default() },
    }
}
