//! A plain SIP trunk, and the SIP account that a PBX integration brings: where it registers, as whom, and who may call
//! in without a registration. No API and no webhooks; the talking is no part of this.

use std::sync::Arc;

use futures::FutureExt as _;
use secrecy::{ExposeSecret as _, SecretString};

use crate::protocol::network::Network;
use crate::providers::credentials::{Credentials, CredentialsFault, Field, any};
use crate::providers::provider::{
    Account, Answer, Capabilities, Decision, Event, Kind, Proof, Provider, Refusal, RemoteLine, Webhook, WebhookAnswer,
    WebhookRequest,
};

pub const REGISTRAR: Field = Field {
    name: "sip.registrar",
    required: false,
    secret: false,
    about: "SIP server where the account registers: host or host:port",
    check: host,
};
pub const USER: Field =
    Field { name: "sip.user", required: false, secret: false, about: "SIP user (login) of the account", check: user };
pub const PASSWORD: Field =
    Field { name: "sip.password", required: false, secret: true, about: "password of the SIP account", check: any };
pub const TRANSPORT: Field = Field {
    name: "sip.transport",
    required: false,
    secret: false,
    about: "udp (default), tcp or tls",
    check: transport,
};
pub const PEERS: Field = Field {
    name: "sip.peers",
    required: false,
    secret: false,
    about: "addresses or networks that may call in without a registration, with commas",
    check: networks,
};

pub const NUMBERS: Field = Field {
    name: "sip.numbers",
    required: false,
    secret: false,
    about: "how numbers are dialled by SIP: plus (default, +380501234567) or plain (380501234567)",
    check: numbers,
};
pub const DIAL: Field = Field {
    name: "sip.dial",
    required: false,
    secret: false,
    about: "yes: calls are made by SIP from the registered account; no (default): by the provider's own method",
    check: yes_or_no,
};

pub static KIND: Kind = Kind {
    name: "sip",
    fields: &[REGISTRAR, USER, PASSWORD, TRANSPORT, PEERS, NUMBERS],
    capabilities: Capabilities {
        dial: true,
        greeting: true,
        hang_up: false,
        transfer: false,
        history: false,
        messages: false,
        writes_webhooks: false,
        recordings: false,
        streams: false,
        log_decides: false,
    },
    proof: Proof::NoWebhooks,
    methods: &[],
    open,
};

/// How SIP messages travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    #[default]
    Udp,
    Tcp,
    Tls,
}

/// Where an account registers.
#[derive(Clone, Debug)]
pub struct Registration {
    /// `host` or `host:port`.
    pub registrar: String,
    pub user: String,
    pub password: Option<SecretString>,
}

/// As whom a phone system logs in to us (digest), where we do not register with it.
#[derive(Clone, Debug)]
pub struct Login {
    pub user: String,
    pub password: SecretString,
}

/// Whether an integration's calls go out by INVITE: a trunk has no other way.
pub fn dials(provider: &str, credentials: &Credentials) -> bool {
    provider == KIND.name || SipSettings::read(credentials).is_ok_and(|settings| settings.is_some_and(|sip| sip.dials))
}

/// An integration's SIP side.
#[derive(Clone, Debug)]
pub struct SipSettings {
    pub registration: Option<Registration>,
    pub login: Option<Login>,
    pub transport: Transport,
    /// Who may call in by their address alone.
    pub peers: Vec<Network>,
    /// Numbers are dialled without `+`.
    pub plain_numbers: bool,
    /// Calls go out by INVITE, not by the provider's API.
    pub dials: bool,
}

impl SipSettings {
    /// `None`: the integration has no SIP side.
    pub fn read(credentials: &Credentials) -> Result<Option<Self>, CredentialsFault> {
        let fault =
            |field: &Field, problem: &str| CredentialsFault { field: field.name.into(), problem: problem.into() };
        let peers = credentials
            .list(PEERS.name)
            .map(|peer| peer.parse().map_err(|_| fault(&PEERS, "must be addresses or networks")))
            .collect::<Result<Vec<Network>, _>>()?;
        let transport = match credentials.text(TRANSPORT.name) {
            "" | "udp" => Transport::Udp,
            "tcp" => Transport::Tcp,
            "tls" => Transport::Tls,
            _ => return Err(fault(&TRANSPORT, "must be udp, tcp or tls")),
        };
        let password = credentials.secret(PASSWORD.name);
        let mut login = None;
        let registration = match (credentials.text(REGISTRAR.name), credentials.text(USER.name)) {
            ("", "") => None,
            ("", user) => match password {
                Some(password) => {
                    login = Some(Login { user: user.to_owned(), password: password.clone() });
                    None
                }
                None => {
                    let problem = "is missing: sip.user registers there (or has sip.password, and calls in with it)";
                    return Err(fault(&REGISTRAR, problem));
                }
            },
            (_, "") => return Err(fault(&USER, "is missing: somebody has to register at sip.registrar")),
            (registrar, user) => Some(Registration {
                registrar: registrar.to_owned(),
                user: user.to_owned(),
                password: password.cloned(),
            }),
        };
        let dials = matches!(credentials.text(DIAL.name), "yes" | "true");
        if dials && registration.is_none() {
            return Err(fault(&REGISTRAR, "is missing: sip.dial calls from a registered account"));
        }
        if registration.is_none() && login.is_none() && peers.is_empty() {
            return Ok(None);
        }
        let plain_numbers = credentials.text(NUMBERS.name) == "plain";
        Ok(Some(Self { registration, login, transport, peers, plain_numbers, dials }))
    }

    /// Whether a registration by these settings is the one by `other`.
    pub fn same_registration(&self, other: &Self) -> bool {
        let parts = |settings: &Self| {
            let registration = settings.registration.as_ref()?;
            let password = registration.password.as_ref().map(|password| password.expose_secret().to_owned());
            Some((registration.registrar.clone(), registration.user.clone(), password, settings.transport))
        };
        parts(self) == parts(other)
    }
}

fn open(credentials: &Credentials) -> Result<Arc<dyn Provider>, CredentialsFault> {
    let settings = SipSettings::read(credentials)?.ok_or_else(|| CredentialsFault {
        field: REGISTRAR.name.into(),
        problem: "is missing: a trunk has sip.registrar with sip.user, or sip.peers, or both".into(),
    })?;
    Ok(Arc::new(Trunk { settings }))
}

struct Trunk {
    settings: SipSettings,
}

impl Provider for Trunk {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn verify(&self) -> Answer<'_, Account> {
        let name = match &self.settings.registration {
            Some(registration) => format!("{}@{}", registration.user, registration.registrar),
            None => "SIP trunk without a registration".to_owned(),
        };
        let mut warnings = vec!["only the form of the settings was checked: nothing was sent to the SIP server".into()];
        if self.settings.registration.as_ref().is_some_and(|registration| registration.password.is_none()) {
            warnings.push("sip.password is not set: most servers refuse a registration without one".into());
        }
        async move { Ok(Account { name, warnings }) }.boxed()
    }

    /// A trunk lists no numbers; its own user is one that calls can come to.
    fn lines(&self) -> Answer<'_, Vec<RemoteLine>> {
        let lines = self.settings.registration.iter().map(|registration| RemoteLine {
            number: registration.user.clone(),
            id: None,
            name: format!("{}@{}", registration.user, registration.registrar),
            voice: true,
            sms: false,
            online: None,
            warnings: Vec::new(),
        });
        let lines = lines.collect();
        async move { Ok(lines) }.boxed()
    }

    fn read_webhook(&self, _: &WebhookRequest<'_>) -> Result<Webhook, Refusal> {
        Err(Refusal::WrongType)
    }

    fn answer(&self, _: &Event, _: &Decision<'_>) -> WebhookAnswer {
        WebhookAnswer { content_type: "text/plain; charset=utf-8", body: String::new() }
    }
}

fn host(value: &str) -> Result<(), &'static str> {
    const PROBLEM: &str = "must be a host such as sip.example.com, with :port where it is not the usual one";
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let (host, port) = match value.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(PROBLEM)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| PROBLEM)?;
            ("v6", if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or(PROBLEM)?) })
        }
        None => match value.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (value, None),
        },
    };
    let port_is_good = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    if !host.is_empty() && host.len() <= 253 && host.chars().all(plain) && port_is_good { Ok(()) } else { Err(PROBLEM) }
}

fn user(value: &str) -> Result<(), &'static str> {
    // RFC 3261 §25.1, `user`, without escapes: what a person copies from a cabinet.
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.!~*'()&=+$,;?/".contains(c);
    if value.len() <= 128 && value.chars().all(good) { Ok(()) } else { Err("must be a SIP user, without @host") }
}

fn transport(value: &str) -> Result<(), &'static str> {
    if matches!(value, "udp" | "tcp" | "tls") { Ok(()) } else { Err("must be udp, tcp or tls") }
}

fn numbers(value: &str) -> Result<(), &'static str> {
    if matches!(value, "plus" | "plain") { Ok(()) } else { Err("must be plus or plain") }
}

fn yes_or_no(value: &str) -> Result<(), &'static str> {
    if matches!(value, "yes" | "no" | "true" | "false") { Ok(()) } else { Err("must be yes or no") }
}

fn networks(value: &str) -> Result<(), &'static str> {
    let mut items = value.split(',').map(str::trim).filter(|item| !item.is_empty());
    if items.all(|item| item.parse::<Network>().is_ok()) {
        Ok(())
    } else {
        Err("must be addresses or networks with commas, such as 203.0.113.7, 198.51.100.0/24")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(values: &[(&str, &str)]) -> Result<Credentials, Vec<CredentialsFault>> {
        Credentials::new(&KIND, values.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())))
    }

    fn fault_of(values: &[(&str, &str)]) -> String {
        match credentials(values) {
            Err(faults) => faults[0].field.clone(),
            Ok(values) => (KIND.open)(&values).err().expect("a fault").field,
        }
    }

    #[tokio::test]
    async fn a_trunk_that_registers_is_verified_by_its_form_alone_and_says_so() {
        let values = credentials(&[
            ("sip.registrar", "sip.example.com:5061"),
            ("sip.user", "acme_ai"),
            ("sip.transport", "tls"),
        ]);
        let trunk = (KIND.open)(&values.unwrap()).unwrap();
        let account = trunk.verify().await.unwrap();
        assert_eq!(account.name, "acme_ai@sip.example.com:5061");
        assert!(account.warnings[0].contains("nothing was sent"), "{:?}", account.warnings);
        assert!(account.warnings[1].contains("sip.password"), "{:?}", account.warnings);
        assert_eq!(trunk.lines().await.unwrap()[0].number, "acme_ai");
    }

    #[test]
    fn a_trunk_may_have_peers_alone() {
        let values = credentials(&[("sip.peers", "203.0.113.7, 198.51.100.0/24")]).unwrap();
        let settings = SipSettings::read(&values).unwrap().unwrap();
        assert!(settings.registration.is_none());
        assert!(settings.peers[1].holds("198.51.100.9".parse().unwrap()));
    }

    #[test]
    fn a_phone_system_may_log_in_with_a_password_of_its_own() {
        let values = credentials(&[("sip.user", "pbx"), ("sip.password", "hunter2")]).unwrap();
        let settings = SipSettings::read(&values).unwrap().unwrap();
        assert_eq!(settings.login.unwrap().user, "pbx");
        assert!(settings.registration.is_none());
    }

    #[test]
    fn half_a_trunk_is_refused_by_the_field_that_lacks() {
        assert_eq!(fault_of(&[]), "sip.registrar");
        assert_eq!(fault_of(&[("sip.user", "a")]), "sip.registrar");
        assert_eq!(fault_of(&[("sip.registrar", "a.example")]), "sip.user");
        assert_eq!(fault_of(&[("sip.registrar", "sip:a.example"), ("sip.user", "a")]), "sip.registrar");
        assert_eq!(fault_of(&[("sip.registrar", "a.example:0"), ("sip.user", "a")]), "sip.registrar");
        assert_eq!(fault_of(&[("sip.registrar", "a.example"), ("sip.user", "a@b")]), "sip.user");
        assert_eq!(fault_of(&[("sip.peers", "somebody")]), "sip.peers");
        assert_eq!(fault_of(&[("sip.peers", "10.0.0.1"), ("sip.transport", "carrier pigeon")]), "sip.transport");
    }

    #[test]
    fn a_password_prints_nowhere() {
        let values = credentials(&[("sip.registrar", "[::1]:5060"), ("sip.user", "a"), ("sip.password", "hunter2")]);
        let settings = SipSettings::read(&values.unwrap()).unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
