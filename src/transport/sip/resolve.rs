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
        for data in self.records(&format!("{host}."), RecordType::NAPTR).await {
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
    use hickory_resolver::net::runtime::TokioRuntimeProvider;
    use tokio::net::UdpSocket;

    use super::*;

    fn encoded(name: &str) -> Vec<u8> {
        let mut out = Vec::new();
        for label in name.split('.').filter(|label| !label.is_empty()) {
            out.push(label.len() as u8);
            out.extend_from_slice(label.as_bytes());
        }
        out.push(0);
        out
    }

    fn srv(priority: u16, weight: u16, port: u16, target: &str) -> Vec<u8> {
        [&priority.to_be_bytes()[..], &weight.to_be_bytes(), &port.to_be_bytes(), &encoded(target)].concat()
    }

    fn naptr(order: u16, service: &str) -> Vec<u8> {
        let head = [&order.to_be_bytes()[..], &[0, 10, 1, b's', service.len() as u8]].concat();
        [&head[..], service.as_bytes(), &[0], &encoded("_sip.example.com")].concat()
    }

    /// A name server that knows `records` by name and type, and nothing else.
    async fn names(records: Vec<(&str, RecordType, Vec<u8>)>) -> Names {
        let mut zone: HashMap<(Vec<u8>, u16), Vec<Vec<u8>>> = HashMap::new();
        for (name, kind, data) in records {
            zone.entry((encoded(name), u16::from(kind))).or_default().push(data);
        }
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                let query = &buffer[..length];
                let end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 1;
                let name = query[12..end].to_ascii_lowercase();
                let kind = u16::from_be_bytes([query[end], query[end + 1]]);
                let found = zone.get(&(name, kind)).cloned().unwrap_or_default();
                let code = if found.is_empty() { 0x83 } else { 0x80 };
                let counts = [0, 1, 0, found.len() as u8, 0, 0, 0, 0];
                let mut reply = [&query[..2], &[0x85, code], &counts, &query[12..end + 4]].concat();
                for data in found {
                    reply.extend_from_slice(&[0xc0, 12]);
                    reply.extend_from_slice(&kind.to_be_bytes());
                    reply.extend_from_slice(&[0, 1, 0, 0, 0, 60]);
                    reply.extend_from_slice(&(data.len() as u16).to_be_bytes());
                    reply.extend_from_slice(&data);
                }
                let _ = socket.send_to(&reply, peer).await;
            }
        });
        let mut connection = ConnectionConfig::udp();
        connection.port = addr.port();
        let mut server = NameServerConfig::udp(addr.ip());
        server.connections = vec![connection];
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        Names(Some(Arc::new(builder.build().unwrap())))
    }

    async fn found(names: &Names, host: &str, port: Option<u16>, transport: Option<Transport>) -> Vec<String> {
        let wanted = Resolve { id: 1, host: host.into(), port, transport };
        names.resolve(&wanted).await.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn a_domain_is_found_by_naptr_and_srv_in_their_order() {
        let a = |last| vec![192, 0, 2, last];
        let names = names(vec![
            ("example.com", RecordType::NAPTR, naptr(20, "SIP+D2U")),
            ("example.com", RecordType::NAPTR, naptr(10, "SIP+D2T")),
            ("_sip._tcp.example.com", RecordType::SRV, srv(20, 0, 5070, "late.example.com")),
            ("_sip._tcp.example.com", RecordType::SRV, srv(10, 1, 5071, "light.example.com")),
            ("_sip._tcp.example.com", RecordType::SRV, srv(10, 9, 5072, "heavy.example.com")),
            ("_sip._udp.example.com", RecordType::SRV, srv(1, 1, 5090, "light.example.com")),
            ("late.example.com", RecordType::A, a(1)),
            ("light.example.com", RecordType::A, a(2)),
            ("heavy.example.com", RecordType::A, a(3)),
            ("plain.example.com", RecordType::A, a(4)),
        ])
        .await;
        let tcp = ["TCP/192.0.2.3:5072", "TCP/192.0.2.2:5071", "TCP/192.0.2.1:5070"];
        assert_eq!(found(&names, "example.com", None, None).await, tcp);
        assert_eq!(found(&names, "example.com", None, Some(Transport::Udp)).await, ["UDP/192.0.2.2:5090"]);
        assert_eq!(found(&names, "plain.example.com", None, None).await, ["UDP/192.0.2.4:5060"]);
        assert_eq!(found(&names, "plain.example.com", None, Some(Transport::Tls)).await, ["TLS/192.0.2.4:5061"]);
        assert_eq!(found(&names, "plain.example.com", Some(7), Some(Transport::Tcp)).await, ["TCP/192.0.2.4:7"]);
        assert_eq!(found(&names, "nothing.example.com", None, None).await, Vec::<String>::new());
        assert_eq!(found(&names, "[::1]", None, None).await, ["UDP/[::1]:5060"]);
        let wanted = Resolve { id: 1, host: "plain.example.com".into(), port: None, transport: Some(Transport::Tls) };
        assert_eq!(names.resolve(&wanted).await[0].name.as_deref(), Some("plain.example.com"));
    }

    #[tokio::test]
    async fn a_name_server_that_says_nothing_costs_a_bounded_time() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut connection = ConnectionConfig::udp();
        connection.port = silent.local_addr().unwrap().port();
        let mut server = NameServerConfig::udp("127.0.0.1".parse().unwrap());
        server.connections = vec![connection];
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let names = Names(Some(Arc::new(builder.build().unwrap())));
        let began = std::time::Instant::now();
        assert_eq!(found(&names, "example.com", Some(5060), None).await, Vec::<String>::new());
        assert!(began.elapsed() < LOOKUP_LIMIT + Duration::from_secs(2));
    }
}
