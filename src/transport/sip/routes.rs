//! By which of our addresses each registrar and each peer of a call is reached, looked at again and again: when that
//! changes, they have a contact of ours that leads nowhere. Addresses that lead to none of them (a container's bridge, a
//! second card) change nothing. Decides only; who looks up a route hands the lookup in.

use std::collections::HashMap;
use std::net::IpAddr;

/// Our address towards each peer when last looked at; `None`: no route.
#[derive(Debug, Default)]
pub struct Routes {
    own: HashMap<IpAddr, Option<IpAddr>>,
}

/// What became of the way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing leads there.
    Lost(IpAddr),
    /// Something leads there again, or from another address of ours.
    Moved(IpAddr),
}

impl Routes {
    /// `towards`: our address on the way to a peer. A peer that is seen for the first time has not changed.
    pub fn look(
        &mut self,
        peers: impl IntoIterator<Item = IpAddr>,
        towards: impl Fn(IpAddr) -> Option<IpAddr>,
    ) -> Vec<Change> {
        let before = std::mem::take(&mut self.own);
        let mut changes = Vec::new();
        for peer in peers {
            if self.own.contains_key(&peer) {
                continue;
            }
            let own = towards(peer);
            self.own.insert(peer, own);
            match (before.get(&peer), own) {
                (Some(Some(_)), None) => changes.push(Change::Lost(peer)),
                (Some(before), Some(_)) if *before != own => changes.push(Change::Moved(peer)),
                _ => {}
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_registrar_that_is_reached_by_another_address_has_moved_and_others_have_not() {
        let (near, far) = (ip("10.0.0.1"), ip("203.0.113.9"));
        let mut routes = Routes::default();
        let mut look = |near_by: Option<&str>, far_by: Option<&str>| {
            let (near_by, far_by) = (near_by.map(ip), far_by.map(ip));
            routes.look([near, far, far], |peer| if peer == near { near_by } else { far_by })
        };
        assert_eq!(look(Some("10.0.0.5"), Some("192.0.2.7")), [], "seen for the first time");
        assert_eq!(look(Some("10.0.0.5"), Some("192.0.2.7")), []);
        assert_eq!(look(Some("10.0.0.5"), Some("192.0.2.8")), [Change::Moved(far)]);
        assert_eq!(look(Some("10.0.0.5"), None), [Change::Lost(far)]);
        assert_eq!(look(Some("10.0.0.5"), None), [], "said once");
        assert_eq!(look(Some("10.0.0.6"), Some("192.0.2.8")), [Change::Moved(near), Change::Moved(far)]);
    }

    #[test]
    fn a_registrar_that_is_gone_is_forgotten() {
        let mut routes = Routes::default();
        routes.look([ip("10.0.0.1")], |_| Some(ip("10.0.0.5")));
        routes.look([], |_| None);
        assert!(routes.own.is_empty());
        assert_eq!(routes.look([ip("10.0.0.1")], |_| Some(ip("10.0.0.6"))), []);
    }
}
