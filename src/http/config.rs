//! `[server]`: where to listen, under which URL the world reaches us, whom to believe about a client's address.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, Uri};
use serde::{Deserialize, Serialize};

use crate::protocol::network::Network;

/// The `[server]` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Address and port, default `127.0.0.1:8080`. `0.0.0.0:8080` also takes requests from other machines.
    pub listen: SocketAddr,
    /// The URL that providers were given, `https://voice.example.com`; signatures are checked over it. Absent:
    /// `http://{listen}`, good for this machine only, since Twilio speaks nothing but `https` and `wss`.
    pub public_url: Option<String>,
    /// Proxies whose `X-Forwarded-For` is believed: addresses or networks such as `10.0.0.0/8`. Default none. Naming a
    /// host that is no proxy of yours lets it write any client address into the logs.
    pub trusted_proxies: Vec<String>,
    /// Seconds that running calls are given to finish at shutdown, default 30. A larger value delays a restart.
    pub drain_s: u64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            public_url: None,
            trusted_proxies: Vec::new(),
            drain_s: 30,
        }
    }
}

/// What is wrong with a value of `[server]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerConfigError {
    #[error("server.public_url must be http:// or https:// and a host, without query or fragment")]
    PublicUrl,
    #[error("server.trusted_proxies: {0:?} is neither an address nor a network")]
    TrustedProxy(String),
}

/// The URLs by which Twilio knows us. They may hold a password (`https://user:pass@…`): never log them.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrls {
    secure: bool,
    /// Everything after `://`, without a slash at the end.
    base: String,
}

impl ServerUrls {
    /// `listening` is the address really bound, in case the configuration said port 0.
    pub fn new(config: &ServerConfig, listening: SocketAddr) -> Result<Self, ServerConfigError> {
        let Some(url) = &config.public_url else {
            return Ok(Self { secure: false, base: listening.to_string() });
        };
        let uri: Uri = url.trim().parse().map_err(|_| ServerConfigError::PublicUrl)?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(ServerConfigError::PublicUrl),
        };
        let authority = uri.authority().ok_or(ServerConfigError::PublicUrl)?;
        if uri.query().is_some() || url.contains('#') || authority.host().is_empty() {
            return Err(ServerConfigError::PublicUrl);
        }
        // Twilio's side may lower-case a host before it signs; only the host, a password keeps its case.
        let authority = match authority.as_str().rsplit_once('@') {
            Some((user, host)) => format!("{user}@{}", host.to_ascii_lowercase()),
            None => authority.as_str().to_ascii_lowercase(),
        };
        Ok(Self { secure, base: format!("{authority}{}", uri.path().trim_end_matches('/')) })
    }

    /// `path` starts with a slash and may have a query: both exactly as in the request.
    pub fn http(&self, path: &str) -> String {
        format!("{}://{}{path}", if self.secure { "https" } else { "http" }, self.base)
    }

    /// Whether clients come by https.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// Scheme, host and port, as a browser writes them into `Origin`.
    pub fn origin(&self) -> String {
        let authority = self.base.split('/').next().unwrap_or_default();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        format!("{}://{host}", if self.secure { "https" } else { "http" })
    }

    pub fn websocket(&self, path: &str) -> String {
        format!("{}://{}{path}", if self.secure { "wss" } else { "ws" }, self.base)
    }
}

/// Proxies in front of us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<Network>);

impl TrustedProxies {
    pub fn new(config: &ServerConfig) -> Result<Self, ServerConfigError> {
        let parse = |text: &String| text.parse().map_err(|_| ServerConfigError::TrustedProxy(text.clone()));
        config.trusted_proxies.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// The nearest address in `X-Forwarded-For` that is no proxy of ours; the peer itself if it is none.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        let hops = headers.get_all("x-forwarded-for").into_iter().filter_map(|value| value.to_str().ok());
        let mut hops: Vec<&str> = hops.flat_map(|value| value.split(',')).collect();
        while self.holds(client) {
            let Some(before) = hops.pop().and_then(|hop| hop.trim().parse::<IpAddr>().ok()) else { break };
            client = before.to_canonical();
        }
        client
    }

    fn holds(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.holds(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(public_url: &str) -> Result<ServerUrls, ServerConfigError> {
        let config = ServerConfig { public_url: Some(public_url.into()), ..ServerConfig::default() };
        ServerUrls::new(&config, SocketAddr::from(([127, 0, 0, 1], 1)))
    }

    #[test]
    fn urls_are_built_from_the_public_one() {
        let check = |public: &str, http: &str, websocket: &str| {
            let urls = urls(public).unwrap();
            assert_eq!((urls.http("/a?b=%20"), urls.websocket("/m")), (http.into(), websocket.into()), "{public}");
        };
        check("https://voice.example.com", "https://voice.example.com/a?b=%20", "wss://voice.example.com/m");
        check(
            "https://Voice.Example.com:8443/x/",
            "https://voice.example.com:8443/x/a?b=%20",
            "wss://voice.example.com:8443/x/m",
        );
        assert_eq!(urls("https://U:Pa@H.com:8443/x/").unwrap().origin(), "https://h.com:8443");
        check("https://U:Pa@H.com", "https://U:Pa@h.com/a?b=%20", "wss://U:Pa@h.com/m");
        check("http://[::1]:80", "http://[::1]:80/a?b=%20", "ws://[::1]:80/m");
        for wrong in
            ["", "voice.example.com", "ftp://a.b", "wss://a.b", "https://", "https://a.b?c", "https://a.b#c", "/x"]
        {
            assert!(urls(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn without_a_public_url_the_bound_address_is_used() {
        let urls = ServerUrls::new(&ServerConfig::default(), SocketAddr::from(([127, 0, 0, 1], 4567))).unwrap();
        assert_eq!(urls.websocket("/media"), "ws://127.0.0.1:4567/media");
    }

    #[test]
    fn a_forwarded_address_is_believed_only_through_our_own_proxies() {
        let config = ServerConfig {
            trusted_proxies: vec!["10.0.0.0/8".into(), "::1".into(), "192.0.2.7".into()],
            ..ServerConfig::default()
        };
        let proxies = TrustedProxies::new(&config).unwrap();
        let check = |peer: &str, forwarded: &[&str], expected: &str| {
            let mut headers = HeaderMap::new();
            for value in forwarded {
                headers.append("x-forwarded-for", value.parse().unwrap());
            }
            assert_eq!(proxies.client(peer.parse().unwrap(), &headers).to_string(), expected, "{peer} {forwarded:?}");
        };
        check("203.0.113.5", &["198.51.100.1"], "203.0.113.5");
        check("10.1.2.3", &["198.51.100.1"], "198.51.100.1");
        check("::ffff:10.1.2.3", &["198.51.100.1"], "198.51.100.1");
        check("10.1.2.3", &["6.6.6.6, 198.51.100.1, 10.9.9.9"], "198.51.100.1");
        check("::1", &["6.6.6.6", "198.51.100.1, 192.0.2.7"], "198.51.100.1");
        check("10.1.2.3", &["nonsense"], "10.1.2.3");
        check("10.1.2.3", &[], "10.1.2.3");
    }

    #[test]
    fn a_proxy_that_is_no_network_is_an_error() {
        for wrong in ["", "proxy.local", "10.0.0.0/33", "::1/129", "10.0.0.0/", "10.0.0.0/-1"] {
            let config = ServerConfig { trusted_proxies: vec![wrong.into()], ..ServerConfig::default() };
            assert_eq!(TrustedProxies::new(&config), Err(ServerConfigError::TrustedProxy(wrong.into())));
        }
    }

    #[test]
    fn an_unknown_key_is_an_error() {
        assert_eq!(toml::from_str::<ServerConfig>("").unwrap(), ServerConfig::default());
        assert!(toml::from_str::<ServerConfig>("public_uri = \"https://a.b\"").is_err());
        assert!(toml::from_str::<ServerConfig>("listen = \"localhost\"").is_err());
    }
}
