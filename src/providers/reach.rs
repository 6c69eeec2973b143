//! Which addresses a company's webhooks may reach: those of the public internet, and what the operator allows besides. It
//! is decided on the address that is connected to, after the name was looked up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::providers::network::Network;

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 16;

/// Why a host is not connected to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{host} is at {address}, which is no public address")]
pub struct OutOfReach {
    pub host: String,
    pub address: IpAddr,
}

/// What may be reached. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reach {
    networks: Arc<[Network]>,
    /// Lower case, without a dot at the end.
    hosts: Arc<[String]>,
}

impl Reach {
    /// `allowed`: networks, addresses and names beside the public internet.
    pub fn new(allowed: &[String]) -> Self {
        Self {
            networks: allowed.iter().filter_map(|text| text.parse().ok()).collect(),
            hosts: allowed.iter().filter(|text| text.parse::<Network>().is_err()).map(|host| plain(host)).collect(),
        }
    }

    /// Whether a connection to this address of `host` may be made.
    pub fn check(&self, host: &str, address: IpAddr) -> Result<(), OutOfReach> {
        let allowed = is_public(address)
            || self.networks.iter().any(|network| network.holds(address))
            || self.hosts.contains(&plain(host));
        if allowed { Ok(()) } else { Err(OutOfReach { host: host.to_owned(), address }) }
    }
}

/// Connections are made to the addresses that were checked and to no others.
impl Resolve for Reach {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.clone();
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?.map(|address| address.ip());
            let mut refused = None;
            let mut good: Vec<SocketAddr> = Vec::new();
            for address in found.take(MAX_ADDRESSES) {
                match reach.check(&host, address) {
                    // The port is that of the URL.
                    Ok(()) => good.push(SocketAddr::new(address, 0)),
                    Err(error) => refused = Some(error),
                }
            }
            match refused {
                Some(refused) if good.is_empty() => Err(refused.into()),
                _ if good.is_empty() => Err(format!("{host} has no address").into()),
                _ => Ok(Box::new(good.into_iter()) as Addrs),
            }
        })
    }
}

fn plain(host: &str) -> String {
    host.trim().trim_end_matches('.').to_ascii_lowercase()
}

/// Of the public internet (IANA's special-purpose registries, RFC 6890).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !matches!(
        (a, b, c),
        (0 | 10 | 127 | 224.., ..)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 168, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (198, 18..=19, _)
            | (198, 51, 100)
            | (203, 0, 113)
    )
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // IPv4 in IPv6: mapped (RFC 4291), and translated by a NAT64 (RFC 6052).
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            is_public_v4(Ipv4Addr::new(a, b, c, d))
        }
        // Protocols, Teredo, documents, 6to4.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // All that was ever given out is in 2000::/3.
        [0x2000..=0x3fff, ..] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_internet_is_reached_unless_more_is_allowed() {
        let none = Reach::new(&[]);
        for public in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1", "::ffff:8.8.8.8"] {
            assert_eq!(none.check("host", public.parse().unwrap()), Ok(()), "{public}");
        }
        let some = Reach::new(&["127.0.0.0/8".into(), "crm.internal".into()]);
        for private in ["0.0.0.0", "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "224.0.0.1"]
            .into_iter()
            .chain([
                "::",
                "::1",
                "::ffff:127.0.0.1",
                "64:ff9b::7f00:1",
                "2002:7f00:1::",
                "fd00::1",
                "fe80::1",
                "ff02::1",
            ])
        {
            let address: IpAddr = private.parse().unwrap();
            assert!(none.check("host", address).is_err(), "{private}");
            assert_eq!(some.check("host", address).is_ok(), private.contains("127.0.0.1"), "{private}");
            assert!(some.check("CRM.internal.", address).is_ok());
        }
    }
}
