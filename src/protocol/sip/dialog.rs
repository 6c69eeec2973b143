//! What both ends of a dialog remember (RFC 3261 §12): tags, sequence numbers, the peer's Contact, the route, and the
//! address the peer's messages really come from.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::protocol::sip::message::{Method, Request, Response};
use crate::protocol::sip::target::{Target, Transport};
use crate::protocol::sip::value::{NameAddr, SipUri, Uri};

/// Routes of one dialog; more than proxies between two ends ever are.
const MAX_ROUTES: usize = 16;

#[derive(Clone, Debug)]
pub struct Dialog {
    pub call_id: Arc<str>,
    /// From and To of requests that we send, with their tags.
    local: String,
    remote: String,
    pub local_tag: String,
    /// Empty for a peer of RFC 2543.
    pub remote_tag: String,
    /// The peer's Contact.
    target: String,
    routes: Vec<String>,
    pub local_seq: u32,
    remote_seq: Option<u32>,
    /// Where the peer's last message came from.
    pub flow: Target,
}

impl Dialog {
    /// The callee's side, when it gives the request a tag.
    pub fn uas(request: &Request, local_tag: &str, source: &Target) -> Self {
        let routes = request.headers.list("Record-Route").into_iter().take(MAX_ROUTES).map(str::to_owned).collect();
        let mut to = request.headers.get("To").unwrap_or_default().to_owned();
        if request.to_tag().is_none() {
            to.push_str(&format!(";tag={local_tag}"));
        }
        let from = request.headers.get("From").unwrap_or_default().to_owned();
        // A peer without Contact (RFC 2543) is reached at its From.
        let contact = request.contact().or_else(|| request.from()).map(|contact| contact.uri.to_string());
        Self {
            call_id: request.call_id().into(),
            local: to,
            remote: from,
            local_tag: local_tag.to_owned(),
            remote_tag: request.from_tag(),
            target: contact.unwrap_or_default(),
            routes,
            local_seq: 0,
            remote_seq: request.cseq().map(|(number, _)| number),
            flow: source.clone(),
        }
    }

    /// The caller's side, from the response that brought a To tag.
    pub fn uac(invite: &Request, response: &Response, flow: &Target) -> Self {
        let mut routes: Vec<String> =
            response.headers.list("Record-Route").into_iter().take(MAX_ROUTES).map(str::to_owned).collect();
        routes.reverse();
        Self {
            call_id: response.call_id().into(),
            local: response.headers.get("From").unwrap_or_default().to_owned(),
            remote: response.headers.get("To").unwrap_or_default().to_owned(),
            local_tag: invite.from_tag(),
            remote_tag: response.to_tag().unwrap_or_default(),
            target: response.contact().map_or_else(|| invite.uri.clone(), |contact| contact.uri.to_string()),
            routes,
            local_seq: invite.cseq().map_or(0, |(number, _)| number),
            remote_seq: None,
            flow: flow.clone(),
        }
    }

    /// Takes the peer's Contact from a target refresh request or its answer (RFC 3261 §12.2).
    pub fn refresh(&mut self, contact: Option<NameAddr>) {
        if let Some(contact) = contact {
            self.target = contact.uri.to_string();
        }
    }

    /// A response to our INVITE may complete the route when it confirms an early dialog (RFC 3261 §13.2.2.4).
    pub fn confirm(&mut self, response: &Response) {
        self.routes = response.headers.list("Record-Route").into_iter().take(MAX_ROUTES).map(str::to_owned).collect();
        self.routes.reverse();
        self.refresh(response.contact());
    }

    /// Whether a request's number is higher than every one before; notes it.
    pub fn take_seq(&mut self, number: u32) -> bool {
        let higher = self.remote_seq.is_none_or(|last| number > last);
        if higher {
            self.remote_seq = Some(number);
        }
        higher
    }

    /// The next request of ours; ACK and CANCEL keep the number of their INVITE.
    pub fn request(&mut self, method: Method) -> Request {
        self.local_seq += 1;
        self.request_with(method, self.local_seq)
    }

    pub fn ack(&self, seq: u32) -> Request {
        self.request_with(Method::Ack, seq)
    }

    fn request_with(&self, method: Method, seq: u32) -> Request {
        let mut routes = self.routes.clone();
        let mut uri = self.target.clone();
        // A strict router (RFC 2543) wants itself in the request URI and the target last (RFC 3261 §12.2.1.1).
        if let Some(first) = routes.first().and_then(|route| NameAddr::parse(route))
            && first.uri.sip().is_some_and(|first| !first.params.has("lr"))
        {
            routes.remove(0);
            routes.push(format!("<{uri}>"));
            uri = first.uri.to_string();
        }
        let mut request = Request::new(method, uri);
        for route in &routes {
            request.headers.push("Route", route.clone());
        }
        request.headers.push("From", self.local.clone());
        request.headers.push("To", self.remote.clone());
        request.headers.push("Call-ID", &*self.call_id);
        request.headers.push("CSeq", format!("{seq} {}", request.method));
        request
    }

    /// Where requests go: the first route or the peer's Contact, unless only the address that its messages come from
    /// can be right. That is so for connections, for a private address seen from a public one (NAT), and for names: who
    /// put them there is who sent the message, and a call does not wait for DNS.
    pub fn next_hop(&self) -> Target {
        if self.flow.transport.is_reliable() {
            return self.flow.clone();
        }
        match self.named_hop() {
            Some(hop) if is_private(hop.addr.ip()) && !is_private(self.flow.addr.ip()) => self.flow.clone(),
            Some(hop) => hop,
            None => self.flow.clone(),
        }
    }

    /// The hop that the route or the Contact names by an address.
    pub fn named_hop(&self) -> Option<Target> {
        let uri = match self.routes.first() {
            Some(route) => NameAddr::parse(route)?.uri,
            None => Uri::parse(&self.target)?,
        };
        literal_target(uri.sip()?)
    }

    /// The peer's URI, as Refer-To and Referred-By want it.
    pub fn remote_target(&self) -> &str {
        &self.target
    }

    pub fn local_uri(&self) -> String {
        NameAddr::parse(&self.local).map(|local| local.uri.to_string()).unwrap_or_default()
    }

    /// `Replaces` for whoever is to take our place beside the peer (RFC 3891: the tags as the peer sees them).
    pub fn replaces(&self) -> String {
        format!("{};to-tag={};from-tag={}", self.call_id, self.remote_tag, self.local_tag)
    }
}

/// The transport that a URI asks for.
pub fn transport_of(uri: &SipUri) -> Transport {
    match uri.params.get("transport") {
        Some(name) if name.eq_ignore_ascii_case("tls") => Transport::Tls,
        _ if uri.secure => Transport::Tls,
        Some(name) if name.eq_ignore_ascii_case("tcp") => Transport::Tcp,
        _ => Transport::Udp,
    }
}

/// Where a URI leads whose host is an address.
pub fn literal_target(uri: &SipUri) -> Option<Target> {
    let transport = transport_of(uri);
    let port = uri.port.unwrap_or(transport.default_port());
    Some(Target::new(transport, SocketAddr::new(uri.ip()?, port)))
}

/// Addresses that mean something only near them (RFC 1918, 6598, 4193, link-local, loopback).
pub fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(ip) => {
            let head = ip.segments()[0];
            ip.is_loopback() || ip.is_unspecified() || head & 0xfe00 == 0xfc00 || head & 0xffc0 == 0xfe80
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invite() -> Request {
        let mut request = Request::new(Method::Invite, "sip:agent@192.0.2.9");
        request.headers.push("Via", "SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1");
        request.headers.push("Record-Route", "<sip:192.0.2.1;lr>, <sip:198.51.100.2:5070;lr>");
        request.headers.push("From", "\"Zoë\" <sip:zoe@example.com>;tag=z");
        request.headers.push("To", "<sip:agent@example.com>");
        request.headers.push("Call-ID", "c1");
        request.headers.push("CSeq", "10 INVITE");
        request.headers.push("Contact", "<sip:zoe@10.1.1.1:5062>");
        request
    }

    fn udp(addr: &str) -> Target {
        Target::new(Transport::Udp, addr.parse().unwrap())
    }

    #[test]
    fn requests_of_the_callee_take_the_recorded_route() {
        let mut dialog = Dialog::uas(&invite(), "us", &udp("192.0.2.1:5060"));
        let bye = dialog.request(Method::Bye);
        assert_eq!(bye.uri, "sip:zoe@10.1.1.1:5062");
        assert_eq!(bye.headers.list("Route"), ["<sip:192.0.2.1;lr>", "<sip:198.51.100.2:5070;lr>"]);
        assert_eq!(bye.headers.get("From"), Some("<sip:agent@example.com>;tag=us"));
        assert_eq!(bye.headers.get("To"), Some("\"Zoë\" <sip:zoe@example.com>;tag=z"));
        assert_eq!(bye.cseq(), Some((1, "BYE")));
        assert_eq!(dialog.next_hop(), udp("192.0.2.1:5060"));
        assert!(!dialog.take_seq(10) && dialog.take_seq(11) && !dialog.take_seq(11));
    }

    #[test]
    fn requests_of_the_caller_take_it_backwards() {
        let sent = invite();
        let mut ok = Response::answer(&sent, 200);
        ok.tag("them");
        ok.headers.push("Record-Route", "<sip:p1.example;lr>, <sip:192.0.2.77;lr>");
        ok.headers.push("Contact", "<sip:agent@192.0.2.9>");
        let dialog = Dialog::uac(&sent, &ok, &udp("203.0.113.1:5060"));
        let ack = dialog.ack(10);
        assert_eq!(ack.headers.list("Route"), ["<sip:192.0.2.77;lr>", "<sip:p1.example;lr>"]);
        assert_eq!((ack.uri.as_str(), ack.cseq()), ("sip:agent@192.0.2.9", Some((10, "ACK"))));
        assert_eq!(dialog.next_hop(), udp("192.0.2.77:5060"));
        assert_eq!(dialog.replaces(), "c1;to-tag=them;from-tag=z");
    }

    #[test]
    fn a_strict_router_gets_the_request_uri() {
        let mut request = invite();
        request.headers.set("Record-Route", "<sip:192.0.2.1>");
        let mut dialog = Dialog::uas(&request, "us", &udp("192.0.2.1:5060"));
        let bye = dialog.request(Method::Bye);
        assert_eq!((bye.uri.as_str(), bye.headers.list("Route")), ("sip:192.0.2.1", vec!["<sip:zoe@10.1.1.1:5062>"]));
    }

    #[test]
    fn a_private_contact_behind_a_public_address_is_not_believed() {
        let mut request = invite();
        request.headers.remove("Record-Route");
        let hop = |request: &Request, flow: Target| Dialog::uas(request, "us", &flow).next_hop();
        assert_eq!(hop(&request, udp("203.0.113.5:1024")), udp("203.0.113.5:1024"));
        assert_eq!(hop(&request, udp("10.9.9.9:1024")), udp("10.1.1.1:5062"), "both in one network");
        request.headers.set("Contact", "<sip:zoe@phone.example>");
        assert_eq!(hop(&request, udp("203.0.113.5:1024")), udp("203.0.113.5:1024"));
        let tcp = Target::new(Transport::Tcp, "203.0.113.5:1024".parse().unwrap());
        request.headers.set("Contact", "<sip:zoe@198.51.100.1>");
        assert_eq!(hop(&request, tcp.clone()), tcp, "a connection is used in both directions");
        request.headers.remove("Contact");
        assert_eq!(hop(&request, udp("203.0.113.5:1024")), udp("203.0.113.5:1024"));
    }

    #[test]
    fn private_networks_are_known() {
        for ip in ["10.0.0.1", "172.31.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.1", "::1", "fd00::1", "fe80::1"] {
            assert!(is_private(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["8.8.8.8", "100.128.0.1", "172.32.0.1", "2001:db8::1"] {
            assert!(!is_private(ip.parse().unwrap()), "{ip}");
        }
    }
}
