//! Calls that come in: whose they are, what they are answered, and the talk that follows.

use std::sync::Arc;

use bytes::Bytes;
use metrics::counter;
use tokio::sync::mpsc;
use tracing::{Instrument as _, info, info_span, warn};

use super::Inner;
use super::media::Media;
use super::talk::{Talk, TalkError, end_of};
use crate::call::desk::{Invite, Offer};
use crate::call::registry::Refused;
use crate::protocol::sip::admission::Admitted;
use crate::protocol::sip::call::{CallCommand, CallEvent};
use crate::protocol::sip::core::AccountRef;
use crate::protocol::sip::endpoint::Incoming;
use crate::protocol::sip::target::Transport;
use crate::protocol::sip::value::{NameAddr, SipUri};
use crate::providers::provider::CallOutcome;
use crate::providers::sip::SipSettings;
use crate::store::directory::Integration;
use crate::telephony::{CallEnd, EndReason, Party};
use crate::transport::sip::{SipCall, SipIncoming};

impl Inner {
    /// Takes calls until the transport ends. Each is a task of its own; how many there are is the endpoint's limit.
    pub(super) async fn receive(self: Arc<Self>, mut incoming: mpsc::Receiver<SipIncoming>) {
        while let Some(SipIncoming { incoming, call }) = incoming.recv().await {
            let span = info_span!("sip", sip_call = %incoming.call_id);
            self.tasks.spawn(self.clone().take(incoming, call).instrument(span));
        }
    }

    /// Whose line an INVITE is for.
    fn owner(&self, incoming: &Incoming) -> Option<Arc<Integration>> {
        let id = match &incoming.admitted {
            Admitted::Account(AccountRef(number)) | Admitted::Trunk(number) => self.accounts().owner(*number),
            Admitted::User(user) => self.accounts().owner_of_user(user),
            Admitted::Replaces => incoming.replaces.and_then(|call| self.owners.get(&call).map(|owner| *owner)),
        };
        self.desk.directory().integration(id?).cloned()
    }

    async fn take(self: Arc<Self>, incoming: Incoming, call: SipCall) {
        let count = |result: &'static str| counter!("offhook_sip_calls_total", "result" => result).increment(1);
        let refuse = async |call: &SipCall, status: u16| {
            let _ = call.command(CallCommand::Refuse { status }).await;
        };
        let Some(integration) = self.owner(&incoming) else {
            // The integration went away a moment ago.
            count("unknown");
            return refuse(&call, 404).await;
        };
        let setup = match self.desk.invited(&integration, &invite(&incoming, &integration)) {
            Offer::Talk(setup) => *setup,
            Offer::Busy(refused) => {
                warn!(reason = %refused, "call refused");
                count("refused");
                return refuse(&call, if refused == Refused::NotSetUp { 480 } else { 503 }).await;
            }
            Offer::NotInService | Offer::Route(_) | Offer::AsItIs => {
                warn!(integration = %integration.id, "call for a line that is not set up");
                count("unknown_line");
                return refuse(&call, 404).await;
            }
        };
        let (id, from, line) = (setup.id, setup.from.clone(), setup.line.clone());
        info!(call_id = %id, integration = %integration.id, %from, line, "call offered");
        let secure = incoming.source.transport == Transport::Tls;
        let (peer, external) = (incoming.source.addr, self.config.external_ip);
        let agreed = match &incoming.offer {
            Some(offer) => Media::for_offer(&self.ports, &self.rtp, peer, offer, external, secure)
                .map(|(media, body, plan)| (media, body, Some(plan))),
            None => Media::open(&self.ports, &self.rtp, peer, external, secure).map(|mut media| {
                let body = media.offer();
                (media, body, None)
            }),
        };
        let (mut media, body, plan) = match agreed {
            Ok(agreed) => agreed,
            Err(fault) => {
                warn!(call_id = %id, %fault, "no media for a call");
                count("no_media");
                let _ = call.command(fault.refuse_call()).await;
                return;
            }
        };
        self.calls.offer(&setup).await;
        self.desk.note_sip_call(&setup, &incoming.call_id);
        let mut call = call;
        let answer = CallCommand::Answer { body };
        let plan = match plan {
            Some(plan) => plan,
            None => {
                // Our offer goes with the 200; what the peer agrees to comes with the ACK.
                let _ = call.command(answer.clone()).await;
                match acked(&mut call).await {
                    Ok(answer) => match media.accept(&answer) {
                        Ok(plan) => plan,
                        Err(fault) => {
                            warn!(call_id = %id, %fault, "no media for a call");
                            count("no_media");
                            return self.never(&setup, Some(488), CallOutcome::Failed).await;
                        }
                    },
                    Err(_) => {
                        count("gone");
                        return self.never(&setup, None, CallOutcome::Failed).await;
                    }
                }
            }
        };
        let early = incoming.offer.is_some();
        match Talk::begin(&self.calls, setup.clone(), call, media, plan) {
            Ok(mut talk) => {
                if early {
                    talk.command(answer).await;
                }
                count("taken");
                self.talk(setup, &integration, talk, incoming.source.addr).await;
            }
            Err((call, fault)) => {
                warn!(call_id = %id, %fault, "a call could not begin");
                count("refused");
                let status = match fault {
                    TalkError::Media(fault) => fault.status(),
                    TalkError::Refused(_) => 503,
                };
                if early {
                    refuse(&call, status).await;
                }
                self.never(&setup, Some(status), CallOutcome::Failed).await;
            }
        }
    }
}

/// What an INVITE says of its call.
fn invite(incoming: &Incoming, integration: &Integration) -> Invite {
    let asserted = incoming
        .headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("P-Asserted-Identity"))
        .and_then(|(_, value)| NameAddr::parse(value));
    let from = asserted.as_ref().map_or(&incoming.from.uri, |asserted| &asserted.uri).user();
    let requested = SipUri::parse(&incoming.request_uri).map(|uri| uri.user_name());
    let account = SipSettings::read(&integration.credentials).ok().flatten().and_then(|settings| settings.registration);
    let mut called: Vec<String> = requested.into_iter().collect();
    called.push(incoming.to.uri.user());
    called.extend(account.map(|account| account.user));
    called.retain(|name| !name.is_empty());
    called.dedup();
    let hidden = from.eq_ignore_ascii_case("anonymous") || from.eq_ignore_ascii_case("unknown");
    let private = |name: &str| name.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("X-"));
    let fields = incoming.headers.iter().filter(|(name, _)| private(name)).map(|(name, value)| (name, value)).collect();
    let from = if hidden { String::new() } else { from };
    Invite { sip_call: incoming.call_id.to_string(), from, called, fields }
}

/// The answer that comes with the ACK of an offer of ours.
async fn acked(call: &mut SipCall) -> Result<Bytes, CallEnd> {
    while let Some(event) = call.recv().await {
        match event {
            CallEvent::Acked { answer: Some(answer) } => return Ok(answer),
            CallEvent::Ended(ended) => return Err(end_of(&ended)),
            CallEvent::Acked { answer: None } => break,
            _ => {}
        }
    }
    Err(CallEnd::new(Party::Carrier, EndReason::ProtocolError))
}
