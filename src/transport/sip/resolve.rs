//! Where a SIP domain is served (RFC 3263): NAPTR, SRV, addresses; each lookup with a time limit, the whole with few
//! results.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::{RData, RecordType};
use tokio::time::timeout;
use tracing::debug;

use crate::protocol::sip::endpoint::Resolve;
use crate::protocol::sip::target::{Target, Transport};
use crate::protocol::sip::value::parse_ip;

/// One lookup. Resolvers of the system usually have given up before.
const LOOKUP_LIMIT: Duration = Duration::from_secs(3);
/// Addresses tried for one name.
const MAX_TARGETS: usize = 8;

/// `None` where the system has no configuration for DNS: names are then looked up as the system does.
#[derive(Clone)]
pub struct Names(Option<Arc<TokioResolver>>);

impl Names {
    pub fn of_the_system() -> Self {
        let resolver = TokioResolver::builder_tokio().ok().and_then(|builder| builder.build().ok());
        Self(resolver.map(Arc::new))
    }

    /// Best first; empty if there is none or nobody knows.
    pub async fn resolve(&self, wanted: &Resolve) -> Vec<Target> {
        let host = wanted.host.trim_end_matches('.');
        let mut targets = Vec::new();
        if let Some(ip) = parse_ip(host) {
            let transport = wanted.transport.unwrap_or_default();
            targets.push(Target::new(transport, SocketAddr::new(ip, wanted.port.unwrap_or(transport.default_port()))));
        } else if let Some(port) = wanted.port {
            self.addresses(host, wanted.transport.unwrap_or_default(), port, &mut targets).await;
        } else {
            let transport = match wanted.transport {
                Some(transport) => transport,
                None => self.preferred(host).await,
            };
            for (name, port) in self.services(host, transport).await {
                self.addresses(&name, transport, port, &mut targets).await;
            }
            if targets.is_empty() {
                self.addresses(host, transport, transport.default_port(), &mut targets).await;
            }
        }
        // The certificate must be of the domain that was asked for, not of where DNS leads (RFC 5922 §4).
        let name: Arc<str> = host.into();
        for target in &mut targets {
            target.name = (target.transport == Transport::Tls).then(|| name.clone());
        }
        targets
    }

    /// What NAPTR says, if anything; else UDP.
    async fn preferred(&self, host: &str) -> Transport {
        let mut offers: Vec<(u16, u16, Transport)> = Vec::new();
        for data in self.records(host, RecordType::NAPTR).await {
            if let RData::NAPTR(naptr) = data {
                let transport = match naptr.services.to_ascii_uppercase().as_slice() {
                    b"SIP+D2U" => Transport::Udp,
                    b"SIP+D2T" => Transport::Tcp,
                    b"SIPS+D2T" => Transport::Tls,
                    _ => continue,
                };
                offers.push((naptr.order, naptr.preference, transport));
            }
        }
        offers.into_iter().min().map_or(Transport::Udp, |(_, _, transport)| transport)
    }

    /// Hosts and ports by SRV, best first. Weights are not drawn: the heavier of one priority comes first.
    async fn services(&self, host: &str, transport: Transport) -> Vec<(String, u16)> {
        let prefix = match transport {
            Transport::Udp => "_sip._udp",
            Transport::Tcp => "_sip._tcp",
            Transport::Tls => "_sips._tcp",
        };
        let mut found: Vec<(u16, u16, String, u16)> = Vec::new();
        for data in self.records(&format!("{prefix}.{host}."), RecordType::SRV).await {
            if let RData::SRV(srv) = data {
                found.push((srv.priority, u16::MAX - srv.weight, srv.target.to_utf8(), srv.port));
            }
        }
        found.sort();
        found.into_iter().take(MAX_TARGETS).map(|(_, _, name, port)| (name, port)).collect()
    }

    async fn records(&self, name: &str, kind: RecordType) -> Vec<RData> {
        let Some(resolver) = &self.0 else { return Vec::new() };
        match timeout(LOOKUP_LIMIT, resolver.lookup(name, kind)).await {
            Ok(Ok(lookup)) => lookup.answers().iter().map(|record| record.data.clone()).collect(),
            Ok(Err(error)) => {
                debug!(name, %kind, %error, "no such record");
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    }

    async fn addresses(&self, host: &str, transport: Transport, port: u16, targets: &mut Vec<Target>) {
        let ips: Vec<IpAddr> = match &self.0 {
            Some(resolver) => match timeout(LOOKUP_LIMIT, resolver.lookup_ip(host)).await {
                Ok(Ok(found)) => found.iter().collect(),
                _ => Vec::new(),
            },
            None => match timeout(LOOKUP_LIMIT, tokio::net::lookup_host((host, port))).await {
                Ok(Ok(found)) => found.map(|addr| addr.ip()).collect(),
                _ => Vec::new(),
            },
        };
        for ip in ips {
            let target = Target::new(transport, SocketAddr::new(ip, port));
            if targets.len() < MAX_TARGETS && !targets.contains(&target) {
                targets.push(target);
            }
        }
    }
}
