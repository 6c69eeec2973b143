//! Digest authentication (RFC 3261 §22, RFC 7616, RFC 8760), both sides. The client answers the best challenge of each
//! realm and counts its uses of a nonce; the server gives nonces that carry their own expiry, so that a challenge costs
//! no memory, and takes each count of a nonce once.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit as _, Mac as _};
use rand::Rng;
use sha2::{Digest as _, Sha256, Sha512_256};
use subtle::ConstantTimeEq as _;

use crate::protocol::sip::message::{Request, Response};
use crate::protocol::sip::value::{split, unquote};

/// A user and a password. Prints without the latter.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).field("password", &"…").finish()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Md5,
    Sha256,
    Sha512,
}

impl Algorithm {
    fn hash(self, bytes: &[u8]) -> String {
        match self {
            Self::Md5 => hex(&md5::compute(bytes).0),
            Self::Sha256 => hex(&Sha256::digest(bytes)),
            Self::Sha512 => hex(&Sha512_256::digest(bytes)),
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Md5 => "MD5",
            Self::Sha256 => "SHA-256",
            Self::Sha512 => "SHA-512-256",
        }
    }

    /// With whether it is the `-sess` form. An absent algorithm is MD5.
    fn parse(text: &str) -> Option<(Self, bool)> {
        let text = text.to_ascii_uppercase();
        let (name, session) = match text.strip_suffix("-SESS") {
            Some(name) => (name, true),
            None => (text.as_str(), false),
        };
        let algorithm = match name {
            "" | "MD5" => Self::Md5,
            // Some servers leave the hyphen out.
            "SHA-256" | "SHA256" => Self::Sha256,
            "SHA-512-256" => Self::Sha512,
            _ => return None,
        };
        Some((algorithm, session))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `Digest a=b, c="d"`; `None` for another scheme.
fn digest_fields(value: &str) -> Option<Vec<(String, String)>> {
    let (scheme, rest) = value.trim().split_once(char::is_whitespace)?;
    if !scheme.eq_ignore_ascii_case("Digest") {
        return None;
    }
    let fields = split(rest, ',').into_iter().filter_map(|field| {
        let (name, value) = field.split_once('=')?;
        Some((name.trim().to_ascii_lowercase(), unquote(value.trim())))
    });
    Some(fields.collect())
}

fn field<'a>(fields: &'a [(String, String)], name: &str) -> &'a str {
    fields.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str()).unwrap_or_default()
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A challenge that we can answer.
#[derive(Clone, Debug)]
struct Challenge {
    proxy: bool,
    realm: String,
    nonce: String,
    opaque: Option<String>,
    algorithm: Algorithm,
    session: bool,
    /// The algorithm's name as the server wrote it; absent if it wrote none.
    algorithm_text: Option<String>,
    qop: Qop,
    stale: bool,
    /// How often this nonce was used (RFC 7616 §3.4: each use counts one up).
    uses: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Qop {
    None,
    Auth,
    AuthInt,
}

impl Challenge {
    fn parse(value: &str, proxy: bool) -> Option<Self> {
        let fields = digest_fields(value)?;
        let (algorithm, session) = Algorithm::parse(field(&fields, "algorithm"))?;
        let offered = field(&fields, "qop").to_ascii_lowercase();
        let offers = |name: &str| offered.split(',').any(|qop| qop.trim() == name);
        let qop = match (offered.trim().is_empty(), offers("auth"), offers("auth-int")) {
            (true, ..) => Qop::None,
            (_, true, _) => Qop::Auth,
            (_, _, true) => Qop::AuthInt,
            _ => return None,
        };
        let nonce = field(&fields, "nonce");
        if nonce.is_empty() {
            return None;
        }
        let optional = |name: &str| Some(field(&fields, name).to_owned()).filter(|value| !value.is_empty());
        Some(Self {
            proxy,
            realm: field(&fields, "realm").to_owned(),
            nonce: nonce.to_owned(),
            opaque: optional("opaque"),
            algorithm,
            session,
            algorithm_text: optional("algorithm"),
            qop,
            stale: field(&fields, "stale").eq_ignore_ascii_case("true"),
            uses: 0,
        })
    }

    const fn header(&self) -> &'static str {
        if self.proxy { "Proxy-Authorization" } else { "Authorization" }
    }

    fn answer(&mut self, request: &Request, credentials: &Credentials, rng: &mut impl Rng) -> String {
        self.uses = self.uses.saturating_add(1);
        let cnonce = format!("{:016x}", rng.next_u64());
        let count = format!("{:08x}", self.uses);
        let qop = match self.qop {
            Qop::None => "",
            Qop::Auth => "auth",
            Qop::AuthInt => "auth-int",
        };
        let proof = Proof {
            algorithm: self.algorithm,
            session: self.session,
            credentials,
            realm: &self.realm,
            nonce: &self.nonce,
            cnonce: &cnonce,
            count: &count,
            qop,
            method: request.method.as_str(),
            uri: &request.uri,
            body: &request.body,
        };
        let mut value = format!(
            "Digest username={}, realm={}, nonce={}, uri={}, response=\"{}\"",
            quoted(&credentials.user),
            quoted(&self.realm),
            quoted(&self.nonce),
            quoted(&request.uri),
            proof.response(),
        );
        if let Some(algorithm) = &self.algorithm_text {
            value.push_str(&format!(", algorithm={algorithm}"));
        }
        if self.qop != Qop::None || self.session {
            value.push_str(&format!(", cnonce=\"{cnonce}\""));
        }
        if self.qop != Qop::None {
            value.push_str(&format!(", qop={qop}, nc={count}"));
        }
        if let Some(opaque) = &self.opaque {
            value.push_str(&format!(", opaque={}", quoted(opaque)));
        }
        value
    }
}

/// Everything that goes into a response (RFC 7616 §3.4.1).
struct Proof<'a> {
    algorithm: Algorithm,
    session: bool,
    credentials: &'a Credentials,
    realm: &'a str,
    nonce: &'a str,
    cnonce: &'a str,
    count: &'a str,
    qop: &'a str,
    method: &'a str,
    uri: &'a str,
    body: &'a [u8],
}

impl Proof<'_> {
    fn response(&self) -> String {
        let hash = |text: String| self.algorithm.hash(text.as_bytes());
        let Self { realm, nonce, cnonce, count, qop, method, uri, .. } = self;
        let mut ha1 = hash(format!("{}:{realm}:{}", self.credentials.user, self.credentials.password));
        if self.session {
            ha1 = hash(format!("{ha1}:{nonce}:{cnonce}"));
        }
        let ha2 = match *qop {
            "auth-int" => hash(format!("{method}:{uri}:{}", self.algorithm.hash(self.body))),
            _ => hash(format!("{method}:{uri}")),
        };
        match *qop {
            "" => hash(format!("{ha1}:{nonce}:{ha2}")),
            qop => hash(format!("{ha1}:{nonce}:{count}:{cnonce}:{qop}:{ha2}")),
        }
    }
}

/// Why a challenge was not answered: the request has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("the peer asks for a password and none is set")]
    NoCredentials,
    #[error("the peer offers no way of authentication that we know")]
    NothingKnown,
    #[error("user or password is wrong")]
    Rejected,
}

/// Realms that one request may be challenged by.
const MAX_REALMS: usize = 4;

/// The client's memory: the last challenge of each realm.
#[derive(Clone, Debug, Default)]
pub struct Authenticator {
    realms: Vec<Challenge>,
}

impl Authenticator {
    /// Takes the challenges of a 401 or 407 to `sent`. Afterwards `authorize` writes the answers into the next try.
    pub fn challenged(&mut self, sent: &Request, response: &Response, has_password: bool) -> Result<(), AuthError> {
        if !has_password {
            return Err(AuthError::NoCredentials);
        }
        // RFC 8760 §2.4: the topmost that we understand, for each realm.
        let mut best: Vec<Challenge> = Vec::new();
        for (name, proxy) in [("WWW-Authenticate", false), ("Proxy-Authenticate", true)] {
            for value in response.headers.all(name) {
                if let Some(challenge) = Challenge::parse(value, proxy)
                    && !best.iter().any(|other| other.realm == challenge.realm && other.proxy == proxy)
                    && best.len() < MAX_REALMS
                {
                    best.push(challenge);
                }
            }
        }
        if best.is_empty() {
            return Err(AuthError::NothingKnown);
        }
        for challenge in best {
            let answered = sent
                .headers
                .all(challenge.header())
                .filter_map(digest_fields)
                .find(|fields| field(fields, "realm") == challenge.realm);
            // The answer was refused, unless only its nonce was too old; the same nonce cannot be that.
            if let Some(fields) = answered
                && (!challenge.stale || field(&fields, "nonce") == challenge.nonce)
            {
                return Err(AuthError::Rejected);
            }
            self.realms.retain(|other| other.realm != challenge.realm || other.proxy != challenge.proxy);
            if self.realms.len() < MAX_REALMS {
                self.realms.push(challenge);
            }
        }
        Ok(())
    }

    /// Whether a request would carry an answer already.
    pub fn is_ready(&self) -> bool {
        !self.realms.is_empty()
    }

    /// Writes the answer to every challenge known, each with its next count.
    pub fn authorize(&mut self, request: &mut Request, credentials: &Credentials, rng: &mut impl Rng) {
        request.headers.remove("Authorization");
        request.headers.remove("Proxy-Authorization");
        for challenge in &mut self.realms {
            let value = challenge.answer(request, credentials, rng);
            request.headers.push(challenge.header(), value);
        }
    }

    /// Forgets every nonce: the next request goes out without an answer.
    pub fn forget(&mut self) {
        self.realms.clear();
    }
}

/// What a server says to the credentials of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// Ask for them: 401 with these WWW-Authenticate values.
    Challenge(Vec<String>),
    /// This user.
    User(String),
    /// An unknown user, or a wrong password.
    Wrong,
}

/// Nonces whose counts are kept. When more are in use the oldest is forgotten and asked for again.
const MAX_NONCES: usize = 1000;

/// The server's side. It holds memory only for nonces that were used with the right password.
pub struct Verifier {
    realm: String,
    users: HashMap<String, Credentials>,
    /// Signs nonces, so that none but ours are taken.
    secret: [u8; 32],
    started: Instant,
    nonce_life: Duration,
    used: HashMap<String, Counts>,
    order: VecDeque<String>,
}

/// The counts of one nonce that were seen: the highest, and which of the 64 below it (requests may overtake each other).
#[derive(Clone, Copy, Default)]
struct Counts {
    highest: u32,
    below: u64,
}

impl Counts {
    /// Whether `count` is seen for the first time; notes it.
    fn take(&mut self, count: u32) -> bool {
        if count == 0 {
            return false;
        }
        if count > self.highest {
            let shift = count - self.highest;
            self.below = match shift {
                65.. => 0,
                64 => 1 << 63,
                shift => (self.below << shift) | (1 << (shift - 1)),
            };
            // Before the first one there was no highest whose bit would be set.
            if self.highest == 0 {
                self.below = 0;
            }
            self.highest = count;
            return true;
        }
        let back = self.highest - count;
        if back == 0 || back > 64 || self.below & (1 << (back - 1)) != 0 {
            return false;
        }
        self.below |= 1 << (back - 1);
        true
    }
}

impl Verifier {
    pub fn new(realm: impl Into<String>, secret: [u8; 32], started: Instant, nonce_life: Duration) -> Self {
        Self {
            realm: realm.into(),
            users: HashMap::new(),
            secret,
            started,
            nonce_life,
            used: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    pub fn set_users(&mut self, users: impl IntoIterator<Item = Credentials>) {
        self.users = users.into_iter().map(|user| (user.user.clone(), user)).collect();
    }

    pub fn has_users(&self) -> bool {
        !self.users.is_empty()
    }

    fn sign(&self, text: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("HMAC takes a key of any length");
        mac.update(text.as_bytes());
        hex(&mac.finalize().into_bytes()[..16])
    }

    fn nonce(&self, now: Instant, rng: &mut impl Rng) -> String {
        let stamp = format!("{:x}.{:08x}", now.duration_since(self.started).as_secs(), rng.next_u32());
        let signature = self.sign(&stamp);
        format!("{stamp}.{signature}")
    }

    /// `None`: not ours. Else whether it is still good.
    fn nonce_is_fresh(&self, now: Instant, nonce: &str) -> Option<bool> {
        let (stamp, signature) = nonce.rsplit_once('.')?;
        if !bool::from(self.sign(stamp).as_bytes().ct_eq(signature.as_bytes())) {
            return None;
        }
        let seconds = u64::from_str_radix(stamp.split('.').next()?, 16).ok()?;
        let made = self.started.checked_add(Duration::from_secs(seconds))?;
        Some(now.saturating_duration_since(made) < self.nonce_life)
    }

    /// SHA-256 before MD5, since a client takes the first that it knows.
    fn challenges(&self, now: Instant, stale: bool, rng: &mut impl Rng) -> Vec<String> {
        let nonce = self.nonce(now, rng);
        let stale = if stale { ", stale=true" } else { "" };
        let realm = quoted(&self.realm);
        [Algorithm::Sha256, Algorithm::Md5]
            .map(|algorithm| {
                let algorithm = algorithm.label();
                format!("Digest realm={realm}, nonce=\"{nonce}\", algorithm={algorithm}, qop=\"auth\"{stale}")
            })
            .into()
    }

    /// Looks at the Authorization of a request.
    pub fn verify(&mut self, now: Instant, request: &Request, rng: &mut impl Rng) -> Verified {
        let given = request.headers.all("Authorization").filter_map(digest_fields);
        // Whatever it holds for other realms is not for us (RFC 3261 §22.1).
        let Some(fields) = given.into_iter().find(|fields| field(fields, "realm") == self.realm) else {
            return Verified::Challenge(self.challenges(now, false, rng));
        };
        let (nonce, cnonce, count) = (field(&fields, "nonce"), field(&fields, "cnonce"), field(&fields, "nc"));
        let Some(fresh) = self.nonce_is_fresh(now, nonce) else {
            return Verified::Challenge(self.challenges(now, false, rng));
        };
        let Some(user) = self.users.get(field(&fields, "username")) else { return Verified::Wrong };
        let Some((algorithm, false)) = Algorithm::parse(field(&fields, "algorithm")) else { return Verified::Wrong };
        // We always ask for qop: an answer without it is not to our challenge.
        let number = u32::from_str_radix(count, 16).unwrap_or(0);
        if algorithm == Algorithm::Sha512 || field(&fields, "qop") != "auth" || number == 0 {
            return Verified::Wrong;
        }
        let proof = Proof {
            algorithm,
            session: false,
            credentials: user,
            realm: &self.realm,
            nonce,
            cnonce,
            count,
            qop: "auth",
            method: request.method.as_str(),
            uri: field(&fields, "uri"),
            body: &[],
        };
        // The URI must be the one that is asked for, else an answer could be carried over to another.
        let same_uri = field(&fields, "uri") == request.uri;
        let right = proof.response().as_bytes().ct_eq(field(&fields, "response").to_ascii_lowercase().as_bytes());
        if !bool::from(right) || !same_uri {
            return Verified::Wrong;
        }
        let user = user.user.clone();
        if !fresh {
            return Verified::Challenge(self.challenges(now, true, rng));
        }
        if !self.used.contains_key(nonce) {
            if self.order.len() >= MAX_NONCES
                && let Some(oldest) = self.order.pop_front()
            {
                self.used.remove(&oldest);
                // A count of the forgotten nonce could be taken twice; a nonce lives minutes, and only who knows the
                // password fills this table.
            }
            self.order.push_back(nonce.to_owned());
        }
        if self.used.entry(nonce.to_owned()).or_default().take(number) {
            Verified::User(user)
        } else {
            Verified::Challenge(self.challenges(now, true, rng))
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;
    use crate::protocol::sip::message::Method;

    fn rng() -> StdRng {
        StdRng::from_seed([7; 32])
    }

    fn bob(password: &str) -> Credentials {
        Credentials { user: "bob".into(), password: password.into() }
    }

    fn register() -> Request {
        Request::new(Method::Register, "sip:example.com")
    }

    fn challenge(status: u16, values: &[&str]) -> Response {
        let mut response = Response::answer(&register(), status);
        let name = if status == 407 { "Proxy-Authenticate" } else { "WWW-Authenticate" };
        for value in values {
            response.headers.push(name, *value);
        }
        response
    }

    fn sent_field(request: &Request, name: &str) -> String {
        let value = request.headers.get("Authorization").or(request.headers.get("Proxy-Authorization"));
        field(&digest_fields(value.expect("an answer")).unwrap(), name).to_owned()
    }

    #[test]
    fn the_examples_of_rfc_7616_come_out() {
        // §3.9.1: user Mufasa, "Circle of Life", GET /dir/index.html.
        let credentials = Credentials { user: "Mufasa".into(), password: "Circle of Life".into() };
        let proof = |algorithm| Proof {
            algorithm,
            session: false,
            credentials: &credentials,
            realm: "http-auth@example.org",
            nonce: "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
            cnonce: "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
            count: "00000001",
            qop: "auth",
            method: "GET",
            uri: "/dir/index.html",
            body: b"",
        };
        assert_eq!(proof(Algorithm::Md5).response(), "8ca523f5e9506fed4657c9700eebdbec");
        assert_eq!(
            proof(Algorithm::Sha256).response(),
            "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"
        );
    }

    #[test]
    fn a_challenge_of_rfc_2069_is_answered_without_qop() {
        let mut auth = Authenticator::default();
        auth.challenged(&register(), &challenge(401, &["Digest realm=\"r\", nonce=\"n\""]), true).unwrap();
        let mut request = register();
        auth.authorize(&mut request, &bob("zanzibar"), &mut rng());
        let a1 = hex(&md5::compute("bob:r:zanzibar").0);
        let a2 = hex(&md5::compute("REGISTER:sip:example.com").0);
        assert_eq!(sent_field(&request, "response"), hex(&md5::compute(format!("{a1}:n:{a2}")).0));
        assert_eq!((sent_field(&request, "qop"), sent_field(&request, "algorithm")), (String::new(), String::new()));
    }

    #[test]
    fn the_topmost_challenge_that_we_know_is_answered_and_each_use_of_a_nonce_counts() {
        let mut auth = Authenticator::default();
        let response = challenge(
            401,
            &[
                "Basic realm=\"r\"",
                "Digest realm=\"r\", nonce=\"x\", algorithm=SHA-999, qop=\"auth\"",
                "Digest realm=\"r\", nonce=\"a\", algorithm=SHA-256, qop=\"auth-int,auth\", opaque=\"o\"",
                "Digest realm=\"r\", nonce=\"b\", algorithm=MD5, qop=\"auth\"",
            ],
        );
        auth.challenged(&register(), &response, true).unwrap();
        for count in ["00000001", "00000002", "00000003"] {
            let mut request = register();
            auth.authorize(&mut request, &bob("p"), &mut rng());
            assert_eq!(request.headers.count("Authorization"), 1);
            assert_eq!(sent_field(&request, "algorithm"), "SHA-256");
            assert_eq!((sent_field(&request, "qop"), sent_field(&request, "opaque")), ("auth".into(), "o".into()));
            assert_eq!(sent_field(&request, "nc"), count);
        }
    }

    #[test]
    fn a_proxy_and_a_server_are_answered_side_by_side() {
        let mut auth = Authenticator::default();
        auth.challenged(&register(), &challenge(407, &["Digest realm=\"p\", nonce=\"1\""]), true).unwrap();
        auth.challenged(&register(), &challenge(401, &["Digest realm=\"s\", nonce=\"2\""]), true).unwrap();
        let mut request = register();
        auth.authorize(&mut request, &bob("p"), &mut rng());
        assert_eq!((request.headers.count("Authorization"), request.headers.count("Proxy-Authorization")), (1, 1));
    }

    #[test]
    fn a_stale_nonce_is_replaced_and_a_wrong_password_is_final() {
        let mut auth = Authenticator::default();
        auth.challenged(&register(), &challenge(401, &["Digest realm=\"r\", nonce=\"1\""]), true).unwrap();
        let mut request = register();
        auth.authorize(&mut request, &bob("p"), &mut rng());
        let stale = |nonce: &str| challenge(401, &[&format!("Digest realm=\"r\", nonce=\"{nonce}\", stale=TRUE")]);
        assert_eq!(auth.challenged(&request, &stale("1"), true), Err(AuthError::Rejected), "not with the same nonce");
        auth.challenged(&request, &stale("2"), true).unwrap();
        auth.authorize(&mut request, &bob("p"), &mut rng());
        assert_eq!(sent_field(&request, "nonce"), "2");
        let again = challenge(401, &["Digest realm=\"r\", nonce=\"3\""]);
        assert_eq!(auth.challenged(&request, &again, true), Err(AuthError::Rejected));
        assert_eq!(auth.challenged(&request, &again, false), Err(AuthError::NoCredentials));
        assert_eq!(auth.challenged(&request, &challenge(401, &["NTLM x"]), true), Err(AuthError::NothingKnown));
    }

    /// A verifier that knows bob, and what a client with `password` gets from it at each time.
    struct Pair {
        t0: Instant,
        verifier: Verifier,
        client: Authenticator,
        rng: StdRng,
    }

    impl Pair {
        fn new() -> Self {
            let t0 = Instant::now();
            let mut verifier = Verifier::new("offhook", [1; 32], t0, Duration::from_secs(60));
            verifier.set_users([bob("right")]);
            Self { t0, verifier, client: Authenticator::default(), rng: rng() }
        }

        fn verify(&mut self, at: u64, request: &Request) -> Verified {
            self.verifier.verify(self.t0 + Duration::from_secs(at), request, &mut self.rng)
        }

        fn invite(&mut self, password: &str) -> Request {
            let mut request = Request::new(Method::Invite, "sip:agent@example.com");
            self.client.authorize(&mut request, &bob(password), &mut self.rng);
            request
        }

        fn be_challenged(&mut self, at: u64, request: &Request) {
            let Verified::Challenge(values) = self.verify(at, request) else { panic!("no challenge") };
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            self.client.challenged(request, &challenge(401, &values), true).unwrap();
        }
    }

    #[test]
    fn who_knows_the_password_is_let_in_once_for_each_count() {
        let mut pair = Pair::new();
        let first = pair.invite("right");
        pair.be_challenged(0, &first);
        let request = pair.invite("right");
        assert_eq!(sent_field(&request, "algorithm"), "SHA-256");
        assert_eq!(pair.verify(1, &request), Verified::User("bob".into()));
        assert!(matches!(pair.verify(1, &request), Verified::Challenge(_)), "a replay");
        let (third, second) = (pair.invite("right"), pair.invite("right"));
        assert_eq!(pair.verify(2, &second), Verified::User("bob".into()));
        assert_eq!(pair.verify(2, &third), Verified::User("bob".into()), "overtaken, and yet new");
        assert!(matches!(pair.verify(2, &third), Verified::Challenge(_)));
    }

    #[test]
    fn wrong_words_are_wrong_and_old_nonces_are_renewed() {
        let mut pair = Pair::new();
        let first = pair.invite("right");
        pair.be_challenged(0, &first);
        let wrong = pair.invite("wrong");
        assert_eq!(pair.verify(1, &wrong), Verified::Wrong);
        let late = pair.invite("right");
        let Verified::Challenge(values) = pair.verify(60, &late) else { panic!("the nonce is over") };
        assert!(values[0].ends_with("stale=true"), "{values:?}");
        let mut moved = pair.invite("right");
        moved.uri = "sip:other@example.com".into();
        assert_eq!(pair.verify(1, &moved), Verified::Wrong, "an answer for another URI");
        let mut forged = pair.invite("right");
        let value = forged.headers.get("Authorization").unwrap().replace("nonce=\"", "nonce=\"f");
        forged.headers.set("Authorization", value);
        assert!(matches!(pair.verify(1, &forged), Verified::Challenge(_)));
    }

    #[test]
    fn counts_are_taken_once_in_any_order() {
        let mut counts = Counts::default();
        for (count, expected) in
            [(0, false), (2, true), (2, false), (1, true), (1, false), (66, true), (3, true), (2, false), (500, true)]
        {
            assert_eq!(counts.take(count), expected, "{count}");
        }
        assert!(!counts.take(435), "too far back to know");
    }

    #[test]
    fn a_password_prints_nowhere() {
        assert!(!format!("{:?}", bob("hunter2")).contains("hunter2"));
    }
}
