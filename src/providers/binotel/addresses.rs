//! The addresses that Binotel's webhooks come from. The list is Binotel's own and old; an integration may write another
//! one, in which the word `default` stands for this one.

use std::net::{IpAddr, Ipv4Addr};

use crate::protocol::network::Network;

/// my.binotel.ua, sip1 to sip22 and sip50 to sip52; the last four are not in the published list, and clients get
/// webhooks from them.
const DEFAULT: [[u8; 4]; 30] = [
    [194, 88, 218, 116],
    [194, 88, 218, 114],
    [194, 88, 218, 117],
    [194, 88, 218, 118],
    [194, 88, 219, 67],
    [194, 88, 219, 78],
    [194, 88, 219, 70],
    [194, 88, 219, 71],
    [194, 88, 219, 72],
    [194, 88, 219, 79],
    [194, 88, 219, 80],
    [194, 88, 219, 81],
    [194, 88, 219, 82],
    [194, 88, 219, 83],
    [194, 88, 219, 84],
    [194, 88, 219, 85],
    [194, 88, 219, 86],
    [194, 88, 219, 87],
    [194, 88, 219, 88],
    [194, 88, 219, 89],
    [194, 88, 219, 92],
    [194, 88, 218, 119],
    [194, 88, 218, 120],
    [185, 100, 66, 145],
    [185, 100, 66, 146],
    [185, 100, 66, 147],
    [45, 91, 130, 51],
    [45, 91, 130, 36],
    [45, 91, 130, 82],
    [45, 91, 129, 203],
];

/// Which addresses are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    default: bool,
    own: Vec<Network>,
}

impl Allowed {
    /// Items as a person writes them; none: the default list alone. `None`: one is no network.
    pub fn read<'a>(items: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut allowed = Self { default: false, own: Vec::new() };
        for item in items {
            match item {
                "default" => allowed.default = true,
                network => allowed.own.push(network.parse().ok()?),
            }
        }
        if allowed.own.is_empty() {
            allowed.default = true;
        }
        Some(allowed)
    }

    pub fn holds(&self, address: IpAddr) -> bool {
        let listed = match address.to_canonical() {
            IpAddr::V4(address) => DEFAULT.contains(&address.octets()),
            IpAddr::V6(_) => false,
        };
        (self.default && listed) || self.own.iter().any(|network| network.holds(address))
    }
}

/// As text, for whoever writes an own list.
pub fn default_list() -> impl Iterator<Item = Ipv4Addr> {
    DEFAULT.into_iter().map(Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(list: &str, address: &str, expected: bool) {
        let items = list.split(',').map(str::trim).filter(|item| !item.is_empty());
        let allowed = Allowed::read(items).unwrap();
        assert_eq!(allowed.holds(address.parse().unwrap()), expected, "{list}: {address}");
    }

    #[test]
    fn the_default_list_holds_binotels_servers_and_nobody_else() {
        for address in default_list() {
            check("", &address.to_string(), true);
            check("", &format!("::ffff:{address}"), true);
        }
        check("", "194.88.219.90", false);
        check("", "127.0.0.1", false);
        check("", "2001:db8::1", false);
    }

    #[test]
    fn an_own_list_stands_alone_unless_it_names_the_default() {
        check("203.0.113.0/24", "203.0.113.9", true);
        check("203.0.113.0/24", "194.88.218.116", false);
        check("default, 203.0.113.0/24", "194.88.218.116", true);
        check("default, 203.0.113.0/24", "203.0.113.9", true);
        assert_eq!(Allowed::read(["my.binotel.ua"].into_iter()), None);
    }
}
