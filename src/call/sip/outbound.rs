//! Calls that go out by INVITE from the account of an integration: dialled, waited for, and talked on once answered.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tracing::{Instrument as _, info, info_span, warn};

use super::Inner;
use super::media::Media;
use super::talk::Talk;
use crate::call::desk::{OutboundError, SipDialler};
use crate::call::registry::CallSetup;
use crate::clock;
use crate::protocol::sip::call::{CallEvent, Cause, Ended, Refusal};
use crate::protocol::sip::core::AccountRef;
use crate::protocol::sip::endpoint::AccountDial;
use crate::protocol::sip::registration::{RegistrationState, RegistrationStatus};
use crate::providers::provider::CallOutcome;
use crate::providers::rest::ProviderError;
use crate::providers::sip::SipSettings;
use crate::store::At;
use crate::store::calls::ProviderNews;
use crate::store::directory::Integration;
use crate::transport::sip::{SipCall, SipHandle};

impl SipDialler for Inner {
    fn dial(
        &self,
        integration: Arc<Integration>,
        setup: CallSetup,
        ring: Duration,
    ) -> BoxFuture<'_, Result<(), OutboundError>> {
        async move {
            let cannot = |problem: &str| ProviderError::Invalid { field: "line", problem: problem.to_owned() };
            let Registered { sip, account, settings, server: peer } =
                self.registered(&integration).map_err(|problem| cannot(&problem))?;
            let mut media = Media::open(&self.ports, &self.rtp, peer, self.config.external_ip, false)
                .map_err(|fault| cannot(&fault.to_string()))?;
            let to = match settings.plain_numbers {
                true => setup.to.as_str().trim_start_matches('+').to_owned(),
                false => setup.to.as_str().to_owned(),
            };
            let dial = AccountDial {
                account,
                to,
                display: String::new(),
                headers: Vec::new(),
                offer: media.offer(),
                ring_limit: Some(ring),
            };
            let sip = sip.dial_account(dial).await.map_err(|fault| cannot(&fault.to_string()))?;
            let this = self.this.get().and_then(Weak::upgrade).ok_or(OutboundError::TooMany)?;
            let span = info_span!("sip", call_id = %setup.id);
            self.tasks.spawn(this.place(setup, integration, sip, media).instrument(span));
            Ok(())
        }
        .boxed()
    }
}

/// An account by which calls can go out.
pub(super) struct Registered {
    pub sip: SipHandle,
    pub account: AccountRef,
    pub settings: SipSettings,
    /// Where its registrar is.
    pub server: SocketAddr,
}

impl Inner {
    /// The account of an integration, if it is registered; else why not, for the person who asks.
    pub(super) fn registered(&self, integration: &Integration) -> Result<Registered, String> {
        let running = self.running.load_full().ok_or("SIP is not running on this server")?;
        let account = self.accounts().account(integration.id);
        let (account, settings) =
            account.ok_or("its integration has no account that is registered: set sip.registrar")?;
        let status = running.sip.registrations().borrow().get(&account).cloned();
        match status {
            Some(RegistrationStatus { state: RegistrationState::Registered, server: Some(server), .. }) => {
                Ok(Registered { sip: running.sip.clone(), account, settings, server })
            }
            status => {
                let why = status.and_then(|status| status.last_error).unwrap_or_else(|| "not yet".to_owned());
                Err(format!("its account is not registered: {why}"))
            }
        }
    }

    /// Waits for the other side of a call that we make.
    async fn place(
        self: Arc<Self>,
        setup: CallSetup,
        integration: Arc<Integration>,
        mut sip: SipCall,
        mut media: Media,
    ) {
        let hangup = self.calls.rings(setup.id);
        let mut outcome = CallOutcome::Failed;
        let answer = loop {
            let event = tokio::select! {
                biased;
                () = hangup.cancelled() => {
                    sip.hang_up();
                    self.keep_ladder(&setup, &mut sip, None);
                    outcome = CallOutcome::Canceled;
                    break None;
                }
                event = sip.recv() => event,
            };
            match event {
                Some(CallEvent::Answered { answer: Some(answer) }) => break Some(answer),
                Some(CallEvent::Ringing | CallEvent::EarlyMedia { .. }) => self.note_ringing(&setup).await,
                Some(CallEvent::Ended(ended)) => {
                    self.calls.rings_no_more(setup.id);
                    return self.note_unanswered(&setup, &mut sip, &ended).await;
                }
                Some(_) => {}
                None => break None,
            }
        };
        self.calls.rings_no_more(setup.id);
        let Some(answer) = answer else { return self.never(&setup, None, outcome).await };
        let plan = match media.accept(&answer) {
            Ok(plan) => plan,
            Err(fault) => {
                warn!(call_id = %setup.id, %fault, "the answer to our call makes no sense");
                return self.never(&setup, Some(488), CallOutcome::Failed).await;
            }
        };
        let peer = plan.remote.unwrap_or_else(|| ([0, 0, 0, 0], 0).into());
        match Talk::begin(&self.calls, setup.clone(), sip, media, plan) {
            Ok(talk) => self.talk(setup, &integration, talk, peer).await,
            Err((_, fault)) => {
                warn!(call_id = %setup.id, %fault, "a call could not begin");
                self.never(&setup, None, CallOutcome::Failed).await;
            }
        }
    }

    async fn note_ringing(&self, setup: &CallSetup) {
        let Some(store) = &self.store else { return };
        let news = ProviderNews { status: Some("ringing".into()), ..ProviderNews::default() };
        if let Err(error) = store.note_provider(setup.company_id, setup.id, &news).await {
            warn!(call_id = %setup.id, %error, "the ringing of a call could not be noted");
        }
    }

    async fn note_unanswered(&self, setup: &CallSetup, sip: &mut SipCall, ended: &Ended) {
        info!(call_id = %setup.id, cause = ?ended.cause, status = ended.status, "a call was not answered");
        let outcome = match ended.cause {
            Cause::Refused(Refusal::Busy | Refusal::Declined) => CallOutcome::Busy,
            Cause::Refused(Refusal::NoAnswer) | Cause::NoAnswer => CallOutcome::NoAnswer,
            Cause::Cancelled | Cause::HungUp | Cause::Declined => CallOutcome::Canceled,
            _ => CallOutcome::Failed,
        };
        self.keep_ladder(setup, sip, None);
        let Some(store) = &self.store else { return };
        let status = match (ended.status, ended.text.as_str()) {
            (Some(status), text) => format!("{status} {text}").trim_end().to_owned(),
            (None, text) => text.to_owned(),
        };
        let news = ProviderNews {
            status: Some(status).filter(|status| !status.is_empty()),
            ended: Some((At(clock::now()), outcome)),
            ..ProviderNews::default()
        };
        if let Err(error) = store.note_provider(setup.company_id, setup.id, &news).await {
            warn!(call_id = %setup.id, %error, "the end of a call could not be noted");
        }
    }
}
