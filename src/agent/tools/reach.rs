//! Which addresses a company's tools may reach: those of the public internet, and what the operator allows besides.
//! It is decided on the address that is connected to, after the name was looked up: a name that changes its address
//! between a look and the connection changes nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use serde::Deserialize;

use super::mcp::command_faults;
use crate::protocol::network::Network;

/// Addresses of one name that are tried; more only make a failure longer.
const MAX_ADDRESSES: usize = 16;

/// `[tools]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ToolsConfig {
    /// Networks (`10.1.0.0/16`), addresses and host names that tools may reach though they are not of the public
    /// internet. A name is allowed at whatever address it has: name only hosts whose names you give out yourself.
    pub allow_private: Vec<String>,
    /// PEM file of authorities that servers of tools and webhooks may be signed by, beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// Programs that run as MCP servers, by the name that companies have for them: the program with its whole path, then
    /// its arguments. Any company may have a process of any of them.
    pub mcp_commands: BTreeMap<String, Vec<String>>,
    /// Time after which a tool that has not answered is bridged by a spoken word, ms; 0 = never. Less speaks over tools
    /// that are nearly done.
    pub filler_after_ms: u64,
}

impl Default for ToolsConfig {
    fn default() -> Self {
        Self { allow_private: Vec::new(), ca_file: None, mcp_commands: BTreeMap::new(), filler_after_ms: 700 }
    }
}

impl ToolsConfig {
    /// What cannot be right: the key, and the problem with its cure.
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        for text in self.allow_private.iter().filter(|text| text.parse::<Network>().is_err() && !is_host(text)) {
            let cure = "write a network such as 10.1.0.0/16, an address, or a host name without a port";
            faults.push(("allow_private", format!("{text:?} is no network and no host: {cure}")));
        }
        faults.extend(command_faults(&self.mcp_commands).into_iter().map(|fault| ("mcp_commands", fault)));
        if self.filler_after_ms > 60_000 {
            faults.push(("filler_after_ms", "must be at most 60000; 0 = never".to_owned()));
        }
        faults
    }
}

/// A name in the form that the domain name system has: letters, digits, dots, hyphens and underscores.
pub(super) fn is_host(text: &str) -> bool {
    let part = |part: &str| {
        (1..=63).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let text = text.strip_suffix('.').unwrap_or(text);
    // What ends in a number is an address, or a mistyped one.
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= 253 && text.split('.').all(part) && !last.bytes().all(|b| b.is_ascii_digit())
}

/// Why a host is not connected to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{host} is at {address}, {what}: only public addresses are reached; the operator can allow it in tools.allow_private \
     or webhooks.allow_private"
)]
pub struct OutOfReach {
    pub host: String,
    pub address: IpAddr,
    pub what: &'static str,
}

/// Who knows the addresses of names.
pub trait Names: Send + Sync {
    fn look_up(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The names that this machine knows.
struct System;

impl Names for System {
    fn look_up(&self, host: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        async move { Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect()) }.boxed()
    }
}

/// What may be reached. Cheap to clone.
#[derive(Clone)]
pub struct Reach {
    inner: Arc<Inner>,
}

struct Inner {
    networks: Vec<Network>,
    /// Lower case, without a dot at the end.
    hosts: Vec<String>,
    names: Box<dyn Names>,
}

impl fmt::Debug for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reach").field("networks", &self.inner.networks).field("hosts", &self.inner.hosts).finish()
    }
}

impl Reach {
    /// `allowed`: networks, addresses and names beside the public internet.
    pub fn new(allowed: &[String]) -> Self {
        Self::with_names(allowed, System)
    }

    /// The same with names looked up elsewhere.
    pub fn with_names(allowed: &[String], names: impl Names + 'static) -> Self {
        let networks = allowed.iter().filter_map(|text| text.parse().ok()).collect();
        let hosts = allowed.iter().filter(|text| text.parse::<Network>().is_err()).map(|host| plain(host)).collect();
        Self { inner: Arc::new(Inner { networks, hosts, names: Box::new(names) }) }
    }

    /// Whether a connection to this address of `host` may be made.
    pub fn check(&self, host: &str, address: IpAddr) -> Result<(), OutOfReach> {
        let Some(what) = not_public(address) else { return Ok(()) };
        let allowed =
            self.inner.networks.iter().any(|network| network.holds(address)) || self.inner.hosts.contains(&plain(host));
        if allowed { Ok(()) } else { Err(OutOfReach { host: host.to_owned(), address, what }) }
    }

    /// The addresses of a name that may be connected to; an error where there is none.
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, Box<dyn std::error::Error + Send + Sync>> {
        let mut addresses = self.inner.names.look_up(host.to_owned()).await?;
        addresses.truncate(MAX_ADDRESSES);
        let mut refused = None;
        addresses.retain(|address| match self.check(host, *address) {
            Ok(()) => true,
            Err(error) => {
                refused.get_or_insert(error);
                false
            }
        });
        match refused {
            Some(refused) if addresses.is_empty() => Err(refused.into()),
            _ if addresses.is_empty() => Err(format!("{host} has no address").into()),
            _ => Ok(addresses),
        }
    }
}

/// Connections are made to the addresses that were checked and to no others.
impl Resolve for Reach {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.clone();
        Box::pin(async move {
            let addresses = reach.addresses(name.as_str()).await?;
            // The port is that of the URL.
            Ok(Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}

fn plain(host: &str) -> String {
    host.trim().trim_end_matches('.').to_ascii_lowercase()
}

/// What an address is, where it is none of the public internet (IANA's special-purpose registries, RFC 6890).
fn not_public(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => not_public_v4(address),
        IpAddr::V6(address) => not_public_v6(address),
    }
}

fn not_public_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = address.octets();
    Some(match (a, b, c) {
        (0, ..) => "an address of no host",
        (127, ..) => "this machine",
        (10, ..) | (172, 16..=31, _) | (192, 168, _) => "a private network",
        (100, 64..=127, _) => "a carrier's private network",
        (169, 254, _) => "a link-local address, where clouds keep their metadata",
        (192, 0, 0) | (192, 88, 99) => "an address for protocols",
        (192, 0, 2) | (198, 51, 100) | (203, 0, 113) => "an address for documents",
        (198, 18..=19, _) => "an address for measurements",
        (224..=239, ..) => "a multicast address",
        (240.., ..) => "a reserved address",
        // Azure's host, public by its number alone.
        (168, 63, 129) if address.octets()[3] == 16 => "a cloud's metadata",
        _ => return None,
    })
}

fn not_public_v6(address: Ipv6Addr) -> Option<&'static str> {
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        not_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("an address of no host"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("this machine"),
        // IPv4 in IPv6: mapped (RFC 4291), and translated by a NAT64 (RFC 6052).
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x64, 0xff9b, 1, ..] => Some("a private translator's address"),
        // 6to4 (RFC 7526: not to be used) and Teredo: IPv4 addresses behind relays that nobody runs.
        [0x2002, ..] => Some("a 6to4 address"),
        [0x2001, 0, ..] => Some("a Teredo address"),
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Some("an address for documents"),
        [0x2001, 1..=0x1ff, ..] => Some("an address for protocols"),
        [0xfc00..=0xfdff, ..] => Some("a private network"),
        [0xfe80..=0xfebf, ..] => Some("a link-local address"),
        [0xff00..=0xffff, ..] => Some("a multicast address"),
        // All that was ever given out is in 2000::/3.
        [0x2000..=0x3fff, ..] => None,
        _ => Some("a reserved address"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_internet_is_reached_unless_more_is_allowed() {
        let reach = Reach::new(&[]);
        for public in ["1.1.1.1", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700::1", "::ffff:8.8.8.8"] {
            assert_eq!(reach.check("host", public.parse().unwrap()), Ok(()), "{public}");
        }
        for private in [
            "0.0.0.0",
            "127.0.0.1",
            "127.255.1.2",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "100.100.100.200",
            "169.254.169.254",
            "168.63.129.16",
            "192.0.2.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
        ] {
            assert!(reach.check("host", private.parse().unwrap()).is_err(), "{private}");
        }
    }

    #[test]
    fn the_operator_allows_networks_and_hosts() {
        let reach = Reach::new(&["10.1.0.0/16".into(), "127.0.0.1".into(), "CRM.internal".into()]);
        let check = |host, address: &str| reach.check(host, address.parse().unwrap()).is_ok();
        assert!(check("a", "10.1.2.3") && check("a", "127.0.0.1") && check("a", "::ffff:127.0.0.1"));
        assert!(!check("a", "10.2.0.1") && !check("a", "::1"));
        assert!(check("crm.internal", "192.168.0.1") && check("crm.internal.", "fd00::1"));
        assert!(!check("x.crm.internal", "192.168.0.1"));
    }

    #[test]
    fn what_is_no_network_and_no_host_is_told() {
        let config = |text: &str| ToolsConfig { allow_private: vec![text.to_owned()], ..ToolsConfig::default() };
        for good in ["10.0.0.0/8", "::1", "crm.internal", "localhost", "my_crm"] {
            assert_eq!(config(good).faults(), [], "{good}");
        }
        for bad in ["", "10.0.0.0/33", "10.0.0", "http://crm", "crm:8080", "*"] {
            assert_eq!(config(bad).faults().len(), 1, "{bad}");
        }
    }

    struct Fixed(Vec<IpAddr>);

    impl Names for Fixed {
        fn look_up(&self, _: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
            futures::future::ready(Ok(self.0.clone())).boxed()
        }
    }

    #[tokio::test]
    async fn of_a_names_addresses_only_public_ones_are_connected_to() {
        let addresses = async |list: &[&str]| {
            let list = list.iter().map(|text| text.parse().unwrap()).collect();
            Reach::with_names(&[], Fixed(list)).addresses("host.example").await
        };
        let found = addresses(&["10.0.0.1", "1.1.1.1", "::1"]).await.unwrap();
        assert_eq!(found, ["1.1.1.1".parse::<IpAddr>().unwrap()]);
        let error = addresses(&["127.0.0.1"]).await.unwrap_err().to_string();
        assert!(error.starts_with("host.example is at 127.0.0.1, this machine"), "{error}");
        assert!(addresses(&[]).await.is_err());
    }
}
