//! A caller is handed to a person: cold, the peer is asked to call the person in our place (REFER, RFC 3515); warm, the
//! person is called first and told of the caller, then the peer is asked to take our place in that call (REFER with
//! Replaces, RFC 3891 and RFC 5589 §7). A caller hears the line ring meanwhile, and why nobody came if nobody does.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;
use tracing::{info, warn};

use super::Inner;
use super::announcer::Announcer;
use super::media::Media;
use super::notes::Messages;
use super::outbound::Registered;
use super::talk::{Step, Talk};
use crate::agent::phrases::Phrases;
use crate::agent::profile::TransferNote;
use crate::call::registry::CallSetup;
use crate::call::reply::Voice;
use crate::protocol::rtp::stats::RtpStats;
use crate::protocol::sip::call::{CallEvent, Dial};
use crate::protocol::sip::endpoint::AccountDial;
use crate::protocol::sip::value::{NameAddr, SipUri};
use crate::providers::sip::SipSettings;
use crate::store::directory::Integration;
use crate::transport::sip::SipCall;

/// How long a transfer may take before we hang up all the same.
const TRANSFER_LIMIT: Duration = Duration::from_secs(60);
/// How long a person's telephone may ring.
const PERSON_RING: Duration = Duration::from_secs(30);
/// The call to the person is over by then, whatever its ringing was limited to.
const PERSON_LIMIT: Duration = Duration::from_secs(45);
/// A summary that takes longer is cut: the caller waits.
const BRIEFING_LIMIT: Duration = Duration::from_secs(45);
/// To tell a caller that nobody came.
const EXCUSE_LIMIT: Duration = Duration::from_secs(20);

/// What the agent has promised.
pub(super) struct Wish {
    /// The person's address as the line's PBX knows it.
    to: String,
    /// What the person hears first; `None`: nothing, the caller is sent on.
    summary: Option<String>,
    excuse: &'static str,
    /// `None`: the engine is not there any more.
    voice: Option<Voice>,
}

/// The call to the person, and the voice on it.
struct Person {
    talk: Talk,
    ear: Announcer,
}

/// What is to be noted of the call to a person, for the record of the caller's.
#[derive(Default)]
pub(super) struct Beside {
    pub messages: Option<Messages>,
    pub stats: Option<RtpStats>,
}

/// Whom to call first, and what to say there.
struct Told<'a> {
    to: &'a str,
    summary: &'a str,
    voice: &'a Voice,
    noted: &'a mut Beside,
}

/// What became of the call to the person.
enum Fetched {
    Person(Box<Person>),
    /// Nobody took it: the status.
    Nobody(u16),
    /// No call could be made from here.
    NoWay(String),
    CallerGone,
}

impl Inner {
    /// Whom the caller is to be handed to, if the agent has promised somebody.
    pub(super) fn wish(&self, setup: &CallSetup, integration: &Integration, peer: SocketAddr) -> Option<Wish> {
        let over = self.calls.over(setup.id).filter(|over| !over.agent.transfer_to.is_empty())?;
        let summary = over.handover?;
        let domain = match self.accounts().account(integration.id) {
            Some((_, SipSettings { registration: Some(registration), .. })) => registration.registrar.clone(),
            _ => peer.to_string(),
        };
        let told = over.agent.transfer_note == TransferNote::Spoken;
        Some(Wish {
            to: target_of(&over.agent.transfer_to, &domain),
            summary: Some(summary).filter(|_| told),
            excuse: Phrases::of(&over.agent.language).nobody_free,
            voice: self.calls.voice(&over.agent).ok(),
        })
    }

    /// Hands the caller over. Gives the last status that was told: 200 where somebody answered.
    pub(super) async fn hand_over(
        &self,
        setup: &CallSetup,
        integration: &Integration,
        peer: SocketAddr,
        caller: &mut Talk,
        wish: &Wish,
        noted: &mut Beside,
    ) -> u16 {
        info!(warm = wish.summary.is_some(), "the caller is handed to a person");
        let Some(leg) = caller.lend() else { return 480 };
        let mut beside = Announcer::new(leg);
        let mut cold = "cold".to_owned();
        if let (Some(summary), Some(voice)) = (&wish.summary, &wish.voice) {
            let told = Told { to: &wish.to, summary, voice, noted };
            match self.fetch(setup, integration, peer, caller, &mut beside, told).await {
                Fetched::Person(mut person) => {
                    let status = refer(caller, &mut beside, &wish.to, Some(&mut person)).await;
                    // Where the other side took our place, this call is over already.
                    self.owners.remove(&person.talk.id());
                    noted.stats = Some(person.talk.finish().await.1);
                    if is_success(status) || !caller.is_signalled() {
                        self.note_transfer(setup, format!("transferred warm: {status}")).await;
                        return status;
                    }
                    warn!(status, "an attended transfer was refused: the caller is sent on without");
                    cold = format!("cold, since an attended transfer was refused ({status})");
                }
                Fetched::Nobody(status) => {
                    info!(status, "the person did not take the call");
                    self.note_transfer(setup, format!("not transferred: the person's telephone said {status}")).await;
                    excuse(caller, &mut beside, wish).await;
                    return status;
                }
                Fetched::NoWay(why) => {
                    warn!(why, "the person cannot be called from here: the caller is sent on untold");
                    cold = format!("cold, since no call could be made: {why}");
                }
                Fetched::CallerGone => {
                    self.note_transfer(setup, "not transferred: the caller hung up".to_owned()).await;
                    return 487;
                }
            }
        }
        let status = refer(caller, &mut beside, &wish.to, None).await;
        if is_success(status) {
            self.note_transfer(setup, format!("transferred {cold}: {status}")).await;
        } else {
            warn!(status, "the caller could not be handed over");
            self.note_transfer(setup, format!("not transferred ({cold}): {status}")).await;
            excuse(caller, &mut beside, wish).await;
        }
        status
    }

    /// Calls the person and tells them of the caller, who hears the line ring. Ends with both calls up, or with the
    /// caller's alone, or with none.
    async fn fetch(
        &self,
        setup: &CallSetup,
        integration: &Integration,
        peer: SocketAddr,
        caller: &mut Talk,
        beside: &mut Announcer,
        Told { to, summary, voice, noted }: Told<'_>,
    ) -> Fetched {
        let (mut sip, mut media) = match self.ring_person(setup, integration, peer, to).await {
            Ok(ringing) => ringing,
            Err(why) => return Fetched::NoWay(why),
        };
        noted.messages = sip.take_record();
        let answer = {
            let mut limit = pin!(tokio::time::sleep(PERSON_LIMIT));
            loop {
                tokio::select! {
                    biased;
                    step = caller.step() => match step {
                        Step::Told(event) => caller.on_event(event).await,
                        // Dropping the other call takes it back, answered or not.
                        Step::Gone(_) | Step::Silent => return Fetched::CallerGone,
                    },
                    event = sip.recv() => match event {
                        Some(CallEvent::Answered { answer }) => break answer,
                        Some(CallEvent::Ended(ended)) => return Fetched::Nobody(ended.status.unwrap_or(408)),
                        Some(_) => {}
                        None => return Fetched::Nobody(503),
                    },
                    () = &mut limit => return Fetched::Nobody(408),
                    () = beside.ring() => {}
                }
            }
        };
        let agreed = answer.as_deref().map(|answer| media.accept(answer));
        let person = match agreed {
            Some(Ok(plan)) => Talk::agreed(sip, media, plan).map_err(|(_, fault)| fault),
            Some(Err(fault)) => Err(fault),
            None => return Fetched::Nobody(488),
        };
        let mut person = match person {
            Ok(person) => person,
            Err(fault) => {
                warn!(%fault, "no media for the call to a person");
                return Fetched::Nobody(488);
            }
        };
        self.owners.insert(person.id(), integration.id);
        let Some(leg) = person.lend() else { return Fetched::Nobody(488) };
        let mut ear = Announcer::new(leg);
        let gone = {
            let mut telling = pin!(timeout(BRIEFING_LIMIT, ear.say(voice, summary)));
            loop {
                tokio::select! {
                    biased;
                    step = caller.step() => match step {
                        Step::Told(event) => caller.on_event(event).await,
                        Step::Gone(_) | Step::Silent => break Some(Fetched::CallerGone),
                    },
                    step = person.step() => match step {
                        Step::Told(event) => person.on_event(event).await,
                        Step::Gone(_) | Step::Silent => break Some(Fetched::Nobody(480)),
                    },
                    told = &mut telling => {
                        if let Ok(Err(fault)) = told {
                            warn!(%fault, "a person could not be told of the caller");
                        }
                        break None;
                    }
                    () = beside.ring() => {}
                }
            }
        };
        match gone {
            None => Fetched::Person(Box::new(Person { talk: person, ear })),
            Some(gone) => {
                drop(ear);
                self.owners.remove(&person.id());
                noted.stats = Some(person.finish().await.1);
                gone
            }
        }
    }

    /// Calls the person by the same account, or straight where the line is a trunk.
    async fn ring_person(
        &self,
        setup: &CallSetup,
        integration: &Integration,
        peer: SocketAddr,
        to: &str,
    ) -> Result<(SipCall, Media), String> {
        let display = setup.peer().as_str().to_owned();
        let open = |peer| {
            Media::open(&self.ports, &self.rtp, peer, self.config.external_ip, false).map_err(|fault| fault.to_string())
        };
        if self.accounts().account(integration.id).is_some() {
            let Registered { sip, account, server, .. } = self.registered(integration)?;
            let mut media = open(server)?;
            let (to, headers, ring_limit) = (to.to_owned(), Vec::new(), Some(PERSON_RING));
            let dial = AccountDial { account, to, display, headers, offer: media.offer(), ring_limit };
            let call = sip.dial_account(dial).await.map_err(|fault| fault.to_string())?;
            return Ok((call, media));
        }
        let running = self.running.load_full().ok_or("SIP is not running on this server")?;
        let uri = SipUri::parse(to).ok_or("transfer_to is no SIP address")?;
        let mut media = open(peer)?;
        let own = media.own_address();
        let own = SocketAddr::new(own, running.sip.addrs().udp_port(own).unwrap_or(5060));
        let from = SipUri::parse(&format!("sip:{}@{own}", setup.line)).ok_or("the line is no SIP user")?;
        let dial = Dial {
            uri,
            from: NameAddr { display, ..NameAddr::new(from) },
            proxy: None,
            credentials: None,
            contact: None,
            headers: Vec::new(),
            body: media.offer(),
            ring_limit: Some(PERSON_RING),
        };
        let call = running.sip.dial(dial).await.map_err(|fault| fault.to_string())?;
        Ok((call, media))
    }
}

fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

/// Asks the caller's side for the transfer: to call `to`, or to take our place in the call with the person there. Gives
/// the last status that it told.
async fn refer(caller: &mut Talk, beside: &mut Announcer, to: &str, person: Option<&mut Person>) -> u16 {
    caller.refer(to, person.as_ref().map(|person| person.talk.id())).await;
    let mut attending = pin!(attend(person));
    let mut last = 0;
    let told = timeout(TRANSFER_LIMIT, async {
        loop {
            tokio::select! {
                biased;
                step = caller.step() => match step {
                    Step::Told(CallEvent::Transfer { status, done }) => {
                        last = status;
                        if done || status >= 200 {
                            return;
                        }
                    }
                    Step::Told(event) => caller.on_event(event).await,
                    // The peer hung up by itself once the other side had answered.
                    Step::Gone(_) => return,
                    // Whoever is being transferred may have stopped talking to us.
                    Step::Silent => {}
                },
                () = &mut attending => {}
                () = beside.ring() => {}
            }
        }
    });
    if told.await.is_err() { 408 } else { last }
}

/// Keeps the line to the person open and silent, for as long as it is polled.
async fn attend(person: Option<&mut Person>) {
    let Some(Person { talk, ear }) = person else { return std::future::pending().await };
    let mut listening = pin!(ear.listen());
    loop {
        tokio::select! {
            biased;
            step = talk.step() => if let Step::Told(event) = step {
                talk.on_event(event).await;
            },
            () = &mut listening => {}
        }
    }
}

/// Tells a caller who is still there that nobody came.
async fn excuse(caller: &mut Talk, beside: &mut Announcer, wish: &Wish) {
    let Some(voice) = wish.voice.as_ref().filter(|_| caller.is_signalled()) else { return };
    let mut saying = pin!(timeout(EXCUSE_LIMIT, beside.say(voice, wish.excuse)));
    loop {
        tokio::select! {
            biased;
            step = caller.step() => match step {
                Step::Told(event) => caller.on_event(event).await,
                Step::Gone(_) | Step::Silent => return,
            },
            said = &mut saying => {
                if let Ok(Err(fault)) = said {
                    warn!(%fault, "a caller could not be told that nobody came");
                }
                return;
            }
        }
    }
}

/// A number or user becomes an address at the line's own domain; an address stays.
fn target_of(to: &str, domain: &str) -> String {
    if to.starts_with("sip:") || to.starts_with("sips:") {
        to.to_owned()
    } else if to.contains('@') {
        format!("sip:{to}")
    } else {
        format!("sip:{to}@{domain}")
    }
}
