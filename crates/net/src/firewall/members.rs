//! What the tables hold for one sandbox: which addresses are its own, whether it may reach the host, where it may go.

use super::Family;
use super::element::{Element, all_in, octets};
use super::elements::{self, padded};
use super::policy::{self, CONFINED, GUARDED, SETS4, SETS6, sets_of};
use super::rules::OPEN_FROM;
use super::schema::ifname;
use crate::egress;
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use sys::netlink::Socket;
use types::{Attachment, BridgePlan, Egress, EgressRule, EgressTo, Protocol};

/// The name of the network that nobody made.
const DEFAULT: &str = "bridge";

/// Whether a sandbox's port is held to its own addresses: on networks that users made, and under an egress policy. Of the
/// default bridge the others are trusted, as in Docker, and starts there shall not pay for it.
pub(crate) fn is_guarded(a: &Attachment) -> bool {
    a.network_name != DEFAULT || is_confined(a)
}

/// Whether it is under an egress policy.
pub(crate) fn is_confined(a: &Attachment) -> bool {
    a.egress != Egress::All
}

/// Every lasting element of a sandbox, but for published ports.
pub(super) fn of(a: &Attachment) -> Vec<Element> {
    let mut all = Vec::new();
    if a.uplink.is_some() {
        // What it sends does not come by here.
        return all;
    }
    let own = addresses(a);
    if a.host_access {
        all.extend(own.iter().map(|ip| {
            Element::new(family(*ip), OPEN_FROM, [ifname(&a.bridge.name).to_vec(), octets(*ip)].concat())
        }));
    }
    if is_guarded(a) {
        let port = ifname(&a.host_ifname).to_vec();
        let [m1, m2, m3, m4, m5, m6] = a.mac;
        let mac = [m1, m2, m3, m4, m5, m6, 0, 0];
        all.push(Element::new(Family::Bridge, GUARDED, port.clone()));
        all.extend(own.iter().map(|ip| {
            let key = [port.as_slice(), &mac, &octets(*ip)].concat();
            Element::new(Family::Bridge, sets_of(family(*ip)).own, key)
        }));
    }
    if let Egress::Only(rules) = &a.egress {
        let own = given(a);
        all.push(Element::new(Family::Bridge, CONFINED, ifname(&a.host_ifname).into()));
        all.extend(
            own.iter().map(|ip| Element::new(Family::Inet, sets_of(family(*ip)).confined, octets(*ip))),
        );
        for table in [Family::Inet, Family::Bridge] {
            all.extend(own.iter().flat_map(|ip| permitted(table, *ip, rules)));
        }
    }
    all
}

/// The addresses that a sandbox was given.
pub(super) fn given(a: &Attachment) -> Vec<IpAddr> {
    std::iter::once(a.ipv4.into()).chain(a.ipv6.map(IpAddr::from)).collect()
}

/// The addresses that a sandbox may send from: those it was given, and the link-local one of its MAC (RFC 4291, appendix
/// A), which it has unless IPv6 is off.
fn addresses(a: &Attachment) -> Vec<IpAddr> {
    let [m1, m2, m3, m4, m5, m6] = a.mac;
    let link = Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, m1 ^ 2, m2, m3, 0xff, 0xfe, m4, m5, m6]);
    let mut all = given(a);
    all.push(link.into());
    all
}

fn family(ip: IpAddr) -> Family {
    if ip.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// What stands for a rule's protocol and port in the sets; 0 is any.
fn services(rule: &EgressRule) -> Vec<[u8; 8]> {
    let protocols: &[u8] = match (rule.protocol, rule.port) {
        (Some(Protocol::Tcp), _) => &[6],
        (Some(Protocol::Udp), _) => &[17],
        (None, Some(_)) => &[6, 17],
        (None, None) => &[0],
    };
    let [high, low, ..] = padded(rule.port.unwrap_or(0));
    protocols.iter().map(|p| [*p, 0, 0, 0, high, low, 0, 0]).collect()
}

/// The ranges that the rules permit from an address. Of one protocol and port they do not overlap, which the kernel
/// would refuse.
fn permitted(table: Family, from: IpAddr, rules: &[EgressRule]) -> Vec<Element> {
    let mut ranges: HashMap<[u8; 8], Vec<(u128, u128)>> = HashMap::new();
    for rule in rules {
        let EgressTo::Subnet(address, prefix) = rule.to else { continue };
        if address.is_ipv4() != from.is_ipv4() {
            continue;
        }
        for service in services(rule) {
            ranges.entry(service).or_default().push(subnet(address, prefix));
        }
    }
    let mut all = Vec::new();
    for (service, ranges) in ranges {
        for (first, last) in merged(ranges) {
            let key = |to: u128| [octets(from), octets(address_of(to, from)), service.to_vec()].concat();
            let set = sets_of(family(from)).permitted;
            all.push(Element { end: Some(key(last)), ..Element::new(table, set, key(first)) });
        }
    }
    all
}

/// First and last address of a subnet.
fn subnet(address: IpAddr, prefix: u8) -> (u128, u128) {
    let (number, bits) = match address {
        IpAddr::V4(a) => (u128::from(u32::from(a)), 32),
        IpAddr::V6(a) => (u128::from(a), 128),
    };
    let free = u32::from(u8::saturating_sub(bits, prefix));
    let hosts = u128::MAX.checked_shr(128 - free).unwrap_or(0);
    (number & !hosts, number | hosts)
}

fn address_of(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

fn merged(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort_unstable();
    let mut out: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match out.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => out.push((first, last)),
        }
    }
    out
}

/// The elements for addresses of a name that a rule names. Not for addresses that no name has a right to: who answers for
/// a name shall not lead a sandbox to this host, its link or everybody on it.
pub(super) fn resolved(a: &Attachment, rule: &EgressRule, found: &[(IpAddr, Duration)]) -> Vec<Element> {
    let mut all = Vec::new();
    for (to, valid) in found.iter().filter(|(to, _)| egress::may_be_named(*to)) {
        let own = given(a).into_iter().filter(|from| from.is_ipv4() == to.is_ipv4());
        for (from, service) in own.flat_map(|from| services(rule).into_iter().map(move |s| (from, s))) {
            let key = [octets(from), octets(*to), service.to_vec()].concat();
            for table in [Family::Inet, Family::Bridge] {
                let element = Element::new(table, sets_of(family(from)).resolved, key.clone());
                all.push(Element { timeout: Some(valid.max(&Duration::from_secs(1)).to_owned()), ..element });
            }
        }
    }
    all
}

/// Everything that the kernel holds for sandboxes.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub elements: Vec<Element>,
    /// Ports by name, with the IPv4 address of their sandbox.
    ports: HashMap<Vec<u8>, IpAddr>,
}

impl Held {
    pub(super) fn read(socket: &mut Socket) -> io::Result<Self> {
        let mut elements = Vec::new();
        for family in [Family::V4, Family::V6] {
            elements.extend(all_in(socket, family, OPEN_FROM)?);
        }
        elements.extend(policies(socket)?);
        Ok(Self::of(elements))
    }

    pub(super) fn of(elements: Vec<Element>) -> Self {
        let port = |e: &Element| match e.set == SETS4.own {
            true => e.key.split_at_checked(16).and_then(|(name, rest)| {
                Some((name.to_vec(), elements::address(Family::V4, rest.get(8..)?)?.0))
            }),
            false => None,
        };
        let ports = elements.iter().filter_map(port).collect();
        Self { elements, ports }
    }

    /// The address of the sandbox that an element is about. Link-local addresses tell nothing.
    fn owner(&self, e: &Element) -> Option<IpAddr> {
        let address = |family, bytes| elements::address(family, bytes).map(|(ip, _)| ip);
        match e.set {
            GUARDED | CONFINED => self.ports.get(&e.key).copied(),
            set if set == SETS4.own || set == SETS6.own => self.ports.get(e.key.get(..16)?).copied(),
            OPEN_FROM => address(e.family, e.key.get(16..)?),
            set if set.ends_with('4') => address(Family::V4, &e.key),
            _ => address(Family::V6, &e.key),
        }
    }

    /// Whether an element is that of a sandbox of this bridge.
    pub(super) fn belongs(&self, e: &Element, plan: &BridgePlan) -> bool {
        let named = e.set == OPEN_FROM && e.key.starts_with(&ifname(&plan.name));
        named || self.owner(e).is_some_and(|ip| crate::bridge::holds(plan, ip))
    }

    /// What is held for this sandbox alone.
    pub(super) fn about(&self, a: &Attachment) -> Vec<&Element> {
        let port = ifname(&a.host_ifname);
        let (own, given) = (addresses(a), given(a));
        let is = |e: &&Element| match e.set {
            GUARDED | CONFINED => e.key == port,
            set if set == SETS4.own || set == SETS6.own => e.key.starts_with(&port),
            OPEN_FROM => {
                e.key.starts_with(&ifname(&a.bridge.name))
                    && self.owner(e).is_some_and(|ip| own.contains(&ip))
            }
            _ => self.owner(e).is_some_and(|ip| given.contains(&ip)),
        };
        self.elements.iter().filter(is).collect()
    }
}

/// The elements of the tables of policies.
pub(super) fn policies(socket: &mut Socket) -> io::Result<Vec<Element>> {
    let mut found = Vec::new();
    for family in [Family::Bridge, Family::Inet] {
        for set in policy::names(family) {
            found.extend(all_in(socket, family, set)?);
        }
    }
    Ok(found)
}

/// Which elements shall stay, of those that are there: the lasting ones of who lives, and what names of theirs resolved
/// to.
pub(super) struct Wanted {
    elements: HashSet<Element>,
    confined: HashSet<IpAddr>,
}

impl Wanted {
    pub(super) fn by(live: &[Attachment]) -> Self {
        let confined = live.iter().filter(|a| is_confined(a)).flat_map(given);
        Self { elements: live.iter().flat_map(of).collect(), confined: confined.collect() }
    }

    pub(super) fn keeps(&self, e: &Element) -> bool {
        match e.set {
            set if set == SETS4.resolved || set == SETS6.resolved => {
                let ip = if set == SETS4.resolved { Family::V4 } else { Family::V6 };
                elements::address(ip, &e.key).is_some_and(|(from, _)| self.confined.contains(&from))
            }
            _ => self.elements.contains(&as_made(e)),
        }
    }
}

/// An element without what only the kernel adds.
fn as_made(e: &Element) -> Element {
    Element { data: None, timeout: None, ..e.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_merged() {
        assert_eq!(merged(vec![(5, 9), (0, 3), (4, 4), (7, 20), (30, 31)]), [(0, 20), (30, 31)]);
        assert_eq!(subnet("10.1.2.3".parse().unwrap(), 8), (0x0a00_0000, 0x0aff_ffff));
        assert_eq!(subnet("1.2.3.4".parse().unwrap(), 0), (0, 0xffff_ffff));
        assert_eq!(subnet("::1".parse().unwrap(), 0), (0, u128::MAX));
        assert_eq!(subnet("::1".parse().unwrap(), 128), (1, 1));
    }

    proptest! {
        #[test]
        fn merged_ranges_hold_the_same_and_are_apart(list in proptest::collection::vec((0u128..200, 0u128..20), 0..20), n in 0u128..220) {
            let ranges: Vec<_> = list.iter().map(|(first, len)| (*first, first + len)).collect();
            let held = |all: &[(u128, u128)]| all.iter().any(|(a, b)| (*a..=*b).contains(&n));
            let after = merged(ranges.clone());
            prop_assert_eq!(held(&ranges), held(&after));
            prop_assert!(after.windows(2).all(|w| w[0].1 + 1 < w[1].0));
        }
    }
}
