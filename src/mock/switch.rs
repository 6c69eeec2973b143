//! The SIP side of a simulated PBX: a registrar that wants a password (digest with MD5 alone, as the PBXs offer it), and
//! calls to registered accounts with a simulated customer on the other end, who speaks and listens by RTP. It takes no
//! calls: whoever is to be called is called by the API.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::load::caller::{self, CallerConfig, CallerEvent, CallerReport, Ending, Way};
use crate::load::fixture::Fixture;
use crate::load::phones::{Desk, Phones};
use crate::load::rtp::Codec;
use crate::load::sip::SipWay;
use crate::mock::stage::lock;
use crate::protocol::sip::digest::{Credentials, Verified, Verifier};
use crate::protocol::sip::message::{Method, Request, Response};
use crate::protocol::sip::target::{Target, Transport};
use crate::protocol::sip::transaction::stamp;
use crate::protocol::sip::value::SipUri;

/// How long a registration runs at most, whatever is asked for, seconds.
const EXPIRES_S: u32 = 120;
const NONCE_LIFE: Duration = Duration::from_secs(300);
/// Talks that are remembered; older ones are forgotten.
const TALKS: usize = 1_000;
/// Events of a talk that wait; more are not needed.
const EVENTS: usize = 16;
/// How long an account is rung.
const RING_LIMIT: Duration = Duration::from_secs(30);

/// How a simulated PBX speaks SIP.
#[derive(Clone, Debug)]
pub struct SwitchConfig {
    /// Where it listens, UDP.
    pub listen: SocketAddr,
    /// What every customer says.
    pub customer: Arc<Fixture>,
    pub codec: Codec,
    /// Keep what customers said and heard (32 KB a second).
    pub record: bool,
    /// More header fields of the INVITEs of customers.
    pub headers: Vec<(String, String)>,
}

impl SwitchConfig {
    pub fn new(listen: SocketAddr, customer: Arc<Fixture>) -> Self {
        Self { listen, customer, codec: Codec::Pcma, record: false, headers: Vec::new() }
    }
}

#[derive(Clone, Debug)]
struct Binding {
    contact: SipUri,
    until: Instant,
}

type Bindings = Arc<Mutex<HashMap<String, Binding>>>;

/// The running SIP side.
pub(super) struct Switch {
    phones: Phones,
    bindings: Bindings,
    config: SwitchConfig,
    talks: Mutex<VecDeque<Arc<CallerReport>>>,
}

impl Switch {
    /// Needs a tokio runtime.
    pub fn start(config: SwitchConfig, accounts: Vec<Credentials>) -> io::Result<Self> {
        let bindings = Bindings::default();
        let mut seed = [0; 32];
        rand::rng().fill_bytes(&mut seed);
        let mut rng = StdRng::from_seed(seed);
        let mut secret = [0; 32];
        rng.fill_bytes(&mut secret);
        let mut verifier = Verifier::new("asterisk", secret, Instant::now(), NONCE_LIFE);
        verifier.set_users(accounts);
        let registrar = Registrar { verifier, rng, bindings: Arc::clone(&bindings) };
        let (phones, _task) = Phones::open(config.listen, None, Some(Box::new(registrar)))?;
        Ok(Self { phones, bindings, config, talks: Mutex::default() })
    }

    /// What `sip.registrar` wants.
    pub fn addr(&self) -> SocketAddr {
        self.phones.addr()
    }

    pub fn is_registered(&self, login: &str) -> bool {
        self.contact(login).is_some()
    }

    fn contact(&self, login: &str) -> Option<SipUri> {
        let bindings = lock(&self.bindings);
        bindings.get(login).filter(|binding| Instant::now() < binding.until).map(|binding| binding.contact.clone())
    }

    pub fn talks(&self) -> Vec<Arc<CallerReport>> {
        lock(&self.talks).iter().cloned().collect()
    }

    /// Calls an account for a customer, tells when it has answered, and comes back when the call is over. For `hold` after
    /// the answer the customer is not there yet.
    pub async fn talk(
        &self,
        login: &str,
        from: &str,
        hold: Duration,
        hang_up: CancellationToken,
        answered: impl Future<Output = ()>,
    ) -> Arc<CallerReport> {
        let report = match self.contact(login) {
            Some(contact) => {
                let (events, mut told) = mpsc::channel(EVENTS);
                let (codec, headers) = (self.config.codec, self.config.headers.clone());
                let way = SipWay { codec, headers, hold, ..SipWay::new(self.phones.clone(), contact) };
                let mut config = CallerConfig::new(Way::Sip(Box::new(way)), Arc::clone(&self.config.customer));
                config.from = from.to_owned();
                config.record = self.config.record;
                config.connect_limit = RING_LIMIT;
                config.events = Some(events);
                config.hang_up = hang_up;
                let tell = async {
                    if let Some(CallerEvent::Connected { .. }) = told.recv().await {
                        answered.await;
                    }
                };
                tokio::join!(caller::call(config), tell).0
            }
            None => {
                let nowhere = SipUri::new(Some(login), "127.0.0.1", None);
                let way = Way::Sip(Box::new(SipWay::new(self.phones.clone(), nowhere)));
                let config = CallerConfig::new(way, Arc::clone(&self.config.customer));
                CallerReport::unconnected(&config, String::new(), Ending::ConnectFailed("not registered".into()))
            }
        };
        let report = Arc::new(report);
        let mut talks = lock(&self.talks);
        if talks.len() >= TALKS {
            talks.pop_front();
        }
        talks.push_back(Arc::clone(&report));
        report
    }
}

/// Whole seconds of talk, as a PBX counts them: a begun one is one.
pub(super) fn talk_s(report: &CallerReport) -> u32 {
    (report.duration_ms / 1_000.0).ceil() as u32
}

struct Registrar {
    verifier: Verifier,
    rng: StdRng,
    bindings: Bindings,
}

impl Desk for Registrar {
    fn answer(&mut self, now: Instant, source: SocketAddr, request: &Request) -> Option<Response> {
        if request.method != Method::Register {
            return None;
        }
        let mut request = request.clone();
        stamp(&mut request, &Target::new(Transport::Udp, source));
        let mut response = self.register(now, &request);
        response.tag(&format!("{:016x}", self.rng.next_u64()));
        Some(response)
    }
}

impl Registrar {
    fn register(&mut self, now: Instant, request: &Request) -> Response {
        let user = match self.verifier.verify(now, request, &mut self.rng) {
            Verified::User(user) => user,
            Verified::Challenge(values) => {
                let mut response = Response::answer(request, 401);
                for value in values.into_iter().filter(|value| value.contains("algorithm=MD5")) {
                    response.headers.push("WWW-Authenticate", value);
                }
                return response;
            }
            Verified::Wrong => return Response::answer(request, 403),
        };
        if request.to().is_none_or(|to| to.uri.user() != user) {
            return Response::answer(request, 404);
        }
        let mut bindings = lock(&self.bindings);
        if request.headers.get("Contact").is_some_and(|contact| contact.trim() == "*") {
            bindings.remove(&user);
            return Response::answer(request, 200);
        }
        if let Some(contact) = request.contact() {
            let wanted = contact.params.get("expires").and_then(|text| text.parse().ok()).or(request.number("Expires"));
            let expires = wanted.unwrap_or(EXPIRES_S).min(EXPIRES_S);
            match contact.uri.sip() {
                _ if expires == 0 => drop(bindings.remove(&user)),
                Some(uri) => {
                    let until = now + Duration::from_secs(expires.into());
                    bindings.insert(user.clone(), Binding { contact: uri.clone(), until });
                }
                None => return Response::answer(request, 400),
            }
        }
        let mut response = Response::answer(request, 200);
        if let Some(binding) = bindings.get(&user) {
            let left = binding.until.saturating_duration_since(now).as_secs();
            response.headers.push("Contact", format!("<{}>;expires={left}", binding.contact));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::sip::digest::Authenticator;

    fn credentials(password: &str) -> Credentials {
        Credentials { user: "acme".into(), password: password.into() }
    }

    fn register(contact: &str) -> Request {
        let mut request = Request::new(Method::Register, "sip:pbx.example");
        let fields = [
            ("Via", "SIP/2.0/UDP 127.0.0.1:5080;branch=z9hG4bK1;rport"),
            ("From", "<sip:acme@pbx.example>;tag=1"),
            ("To", "<sip:acme@pbx.example>"),
            ("Call-ID", "1"),
            ("CSeq", "1 REGISTER"),
            ("Contact", contact),
        ];
        fields.iter().for_each(|(name, value)| request.headers.push(name, *value));
        request
    }

    /// Sends the request, answers the challenge, and gives the last status and Contact.
    fn exchange(registrar: &mut Registrar, password: &str, mut request: Request) -> (u16, Option<String>) {
        let (now, source) = (Instant::now(), "127.0.0.1:5080".parse().unwrap());
        let first = registrar.answer(now, source, &request).unwrap();
        assert_eq!(first.status, 401);
        assert_eq!(first.headers.count("WWW-Authenticate"), 1, "MD5 alone");
        let mut client = Authenticator::default();
        client.challenged(&request, &first, true).unwrap();
        client.authorize(&mut request, &credentials(password), &mut StdRng::from_seed([3; 32]));
        let second = registrar.answer(now, source, &request).unwrap();
        assert!(second.to_tag().is_some() && second.headers.get("Via").unwrap().contains("rport=5080"));
        (second.status, second.headers.get("Contact").map(str::to_owned))
    }

    #[test]
    fn an_account_is_bound_by_its_password_and_let_go_on_its_word() {
        let bindings = Bindings::default();
        let mut verifier = Verifier::new("asterisk", [1; 32], Instant::now(), NONCE_LIFE);
        verifier.set_users([credentials("right")]);
        let mut registrar = Registrar { verifier, rng: StdRng::from_seed([2; 32]), bindings: Arc::clone(&bindings) };
        let contact = "<sip:acme@127.0.0.1:5080>";
        assert_eq!(exchange(&mut registrar, "wrong", register(contact)).0, 403);
        assert!(lock(&bindings).is_empty());
        let long = format!("{contact};expires=3600");
        let bound = exchange(&mut registrar, "right", register(&long));
        assert_eq!(bound, (200, Some(format!("{contact};expires={EXPIRES_S}"))));
        assert!(lock(&bindings).contains_key("acme"));
        assert_eq!(exchange(&mut registrar, "right", register(&format!("{contact};expires=0"))), (200, None));
        assert!(lock(&bindings).is_empty());
        exchange(&mut registrar, "right", register(contact));
        assert_eq!(exchange(&mut registrar, "right", register("*")).0, 200);
        assert!(lock(&bindings).is_empty());
        let mut other = register(contact);
        other.headers.set("To", "<sip:somebody@pbx.example>");
        assert_eq!(exchange(&mut registrar, "right", other).0, 404);
        assert!(
            registrar
                .answer(Instant::now(), "127.0.0.1:1".parse().unwrap(), &Request::new(Method::Invite, "sip:a@b"))
                .is_none()
        );
    }
}
