//! What the tables `ip dhow` and `ip6 dhow` hold: bridges and published ports.

use super::element::{Element, INTERVAL_END, all_in, octets, read};
use super::rules::{ANYWHERE, AT, BRIDGES, INTERNAL, OPEN, PAIRS, SERVED, SERVED_AT, SHIELDED, SUBNETS};
use super::schema::ifname;
use super::{Family, transact};
use rustix::io::Errno;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use sys::netlink::{Batch, Socket, errno};
use types::{Attachment, BridgePlan, PortBinding, Protocol};

/// One published port, as the maps hold it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Published {
    /// Which table it is in: the family of its clients.
    pub family: Family,
    /// Address on the host; none is every address of the family.
    pub at: Option<IpAddr>,
    pub protocol: Protocol,
    pub port: u16,
    /// Address and port inside. Of another family than the clients', it can only be proxied.
    pub target: IpAddr,
    pub target_port: u16,
}

impl Published {
    /// The element for a binding; none for `::1`, by which only the host itself comes.
    pub(crate) fn of(binding: &PortBinding, attachment: &Attachment) -> Option<Self> {
        let (family, target) = match binding.host_ip {
            IpAddr::V4(_) => (Family::V4, attachment.ipv4.into()),
            IpAddr::V6(a) if a.is_loopback() => return None,
            // Link-local addresses are kept from destination NAT by the rules.
            IpAddr::V6(_) => (Family::V6, attachment.ipv6.map_or(attachment.ipv4.into(), IpAddr::from)),
        };
        Some(Self {
            family,
            at: Some(binding.host_ip).filter(|a| !a.is_unspecified()),
            protocol: binding.protocol,
            port: binding.host_port,
            target,
            target_port: binding.container_port,
        })
    }

    fn map(&self) -> &'static str {
        let led = self.target.is_ipv4() == (self.family == Family::V4);
        match (led, self.at.is_some()) {
            (true, false) => ANYWHERE,
            (true, true) => AT,
            (false, false) => SERVED,
            (false, true) => SERVED_AT,
        }
    }

    /// As it lies in its map.
    pub(super) fn element(&self) -> Element {
        let mut key = self.at.map(octets).unwrap_or_default();
        key.extend([number(self.protocol), 0, 0, 0]);
        key.extend(padded(self.port));
        let mut data = octets(self.target);
        data.extend(padded(self.target_port));
        Element { data: Some(data), ..Element::new(self.family, self.map(), key) }
    }

    pub(super) fn parse(element: &Element) -> Option<Self> {
        let Element { family, set, key, data: Some(data), .. } = element else { return None };
        let (at, rest) = match *set {
            AT | SERVED_AT => address(*family, key).map(|(a, r)| (Some(a), r))?,
            _ => (None, key.as_slice()),
        };
        let inside = if matches!(*set, SERVED | SERVED_AT) { Family::V4 } else { *family };
        let (target, port) = address(inside, data)?;
        Some(Self {
            family: *family,
            at,
            protocol: match rest.first()? {
                6 => Protocol::Tcp,
                17 => Protocol::Udp,
                _ => return None,
            },
            port: u16::from_be_bytes(*rest.get(4..)?.first_chunk()?),
            target,
            target_port: u16::from_be_bytes(*port.first_chunk()?),
        })
    }
}

/// `IPPROTO_TCP`, `IPPROTO_UDP`.
pub(crate) fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

/// A port as a register holds it.
pub(super) fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// The address that some bytes begin with, and the rest.
pub(super) fn address(family: Family, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    match family {
        Family::V4 => bytes.split_first_chunk::<4>().map(|(a, rest)| (Ipv4Addr::from(*a).into(), rest)),
        _ => bytes.split_first_chunk::<16>().map(|(a, rest)| (Ipv6Addr::from(*a).into(), rest)),
    }
}

/// The gateway of a bridge in a family, and the prefix of its subnet.
fn subnet(plan: &BridgePlan, family: Family) -> Option<(IpAddr, u8)> {
    match family {
        Family::V4 => Some((plan.gateway4.into(), plan.prefix4)),
        _ => plan.gateway6.map(|g| (g.into(), plan.prefix6)),
    }
}

/// A bridge in the sets: what is there for it, and what is not.
struct Registration {
    wanted: Vec<Element>,
    unwanted: Vec<Element>,
}

fn registration(plan: &BridgePlan, family: Family) -> Registration {
    let name = ifname(&plan.name);
    let named = |set| Element::new(family, set, name.into());
    let mut all = Registration {
        wanted: vec![named(BRIDGES), Element::new(family, PAIRS, [name, name].concat())],
        unwanted: Vec::new(),
    };
    for (set, on) in [(INTERNAL, plan.internal), (OPEN, plan.host_access), (SHIELDED, plan.no_metadata)] {
        if on { &mut all.wanted } else { &mut all.unwanted }.push(named(set));
    }
    // What leaves by another interface is masqueraded, and nothing leaves an internal network.
    if let Some((gateway, prefix)) = subnet(plan, family).filter(|_| !plan.internal) {
        let (first, end) = range(gateway, prefix);
        all.wanted.push(Element::new(family, SUBNETS, first));
        all.wanted
            .extend(end.map(|end| Element { flags: INTERVAL_END, ..Element::new(family, SUBNETS, end) }));
    }
    all
}

/// Puts a bridge's name, subnet and options into the sets.
pub(super) fn register(batch: &mut Batch, family: Family, plan: &BridgePlan) {
    let Registration { wanted, unwanted } = registration(plan, family);
    wanted.iter().for_each(|e| e.put(batch));
    unwanted.iter().for_each(|e| e.away(batch));
}

/// Asks for a bridge's name in the set.
pub(super) fn ask_bridge(batch: &mut Batch, family: Family, bridge: &str) {
    Element::new(family, BRIDGES, ifname(bridge).into()).ask(batch);
}

/// Removes a bridge from the sets; each element on its own, since any may be gone.
pub(super) fn unregister(socket: &mut Socket, family: Family, plan: &BridgePlan) -> io::Result<()> {
    let Registration { wanted, unwanted } = registration(plan, family);
    let (subnet, names): (Vec<_>, Vec<_>) = wanted.iter().chain(&unwanted).partition(|e| e.set == SUBNETS);
    let each = names.chunks(1).chain(std::iter::once(subnet.as_slice()).filter(|s| !s.is_empty()));
    for together in each {
        match transact(socket, |b| together.iter().for_each(|e| e.take(b))) {
            Err(e) if errno(&e) == Some(Errno::NOENT) => {}
            done => done?,
        }
    }
    Ok(())
}

/// Whether an element of these tables is a bridge's or its sandboxes'.
pub(super) fn belongs(element: &Element, plan: &BridgePlan) -> bool {
    match element.set {
        ANYWHERE | AT | SERVED | SERVED_AT => {
            Published::parse(element).is_some_and(|p| crate::bridge::holds(plan, p.target))
        }
        SUBNETS => subnet(plan, element.family).is_some_and(|(gateway, prefix)| {
            let (first, end) = range(gateway, prefix);
            if element.flags & INTERVAL_END == 0 {
                element.key == first
            } else {
                end == Some(element.key.clone())
            }
        }),
        // The first field is the bridge's name.
        _ => element.key.starts_with(&ifname(&plan.name)),
    }
}

/// The first address of a subnet and the first after it.
fn range(address: IpAddr, prefix: u8) -> (Vec<u8>, Option<Vec<u8>>) {
    match address {
        IpAddr::V4(a) => {
            let size = 1u64 << 32u8.saturating_sub(prefix);
            let first = u64::from(u32::from(a)) & !(size - 1);
            let end = u32::try_from(first + size).ok();
            ((first as u32).to_be_bytes().into(), end.map(|e| e.to_be_bytes().into()))
        }
        IpAddr::V6(a) => {
            let size = 1u128.checked_shl(u32::from(128u8.saturating_sub(prefix))).unwrap_or(0);
            let first = u128::from(a) & !size.wrapping_sub(1);
            let end = first.checked_add(size).filter(|_| size != 0);
            (first.to_be_bytes().into(), end.map(|e| e.to_be_bytes().into()))
        }
    }
}

/// Adds published ports, all or none. An element in the way is one that a dead sandbox left, since the caller holds
/// the port: it is replaced.
pub(super) fn publish(socket: &mut Socket, list: &[Published]) -> io::Result<()> {
    let add = |b: &mut Batch| list.iter().for_each(|p| p.element().put(b));
    match transact(socket, add) {
        Err(e) if matches!(errno(&e), Some(Errno::EXIST | Errno::BUSY)) => {
            for p in list {
                match transact(socket, |b| p.element().take(b)) {
                    Err(e) if errno(&e) == Some(Errno::NOENT) => {}
                    done => done?,
                }
            }
            transact(socket, add)
        }
        done => done,
    }
}

/// Those of the published ports that lead where `list` says.
pub(super) fn those_there(socket: &mut Socket, list: &[Published]) -> io::Result<Vec<Published>> {
    let mut ours = Vec::new();
    for p in list {
        let mut batch = Batch::new();
        p.element().ask(&mut batch);
        let mut found = Vec::new();
        match socket.query(batch, &mut |m| found.extend(read(m, p.family, p.map()))) {
            Err(e) if errno(&e) == Some(Errno::NOENT) => {}
            done => done?,
        }
        ours.extend(found.iter().filter_map(Published::parse).filter(|f| f == p));
    }
    Ok(ours)
}

/// Removes published ports that still lead where `list` says; the rest is gone, or another's.
pub(super) fn withdraw(socket: &mut Socket, list: &[Published]) -> io::Result<()> {
    let ours = those_there(socket, list)?;
    match transact(socket, |b| ours.iter().for_each(|p| p.element().take(b))) {
        // Somebody else withdrew one meanwhile.
        Err(e) if errno(&e) == Some(Errno::NOENT) => {
            ours.iter().try_for_each(|p| match transact(socket, |b| p.element().take(b)) {
                Err(e) if errno(&e) == Some(Errno::NOENT) => Ok(()),
                done => done,
            })
        }
        done => done,
    }
}

/// All published ports of a family.
pub(super) fn published_in(socket: &mut Socket, family: Family) -> io::Result<Vec<Published>> {
    let maps: &[&'static str] =
        if family == Family::V4 { &[ANYWHERE, AT] } else { &[ANYWHERE, AT, SERVED, SERVED_AT] };
    let mut found = Vec::new();
    for map in maps {
        found.extend(all_in(socket, family, map)?.iter().filter_map(Published::parse));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sys::netlink::Message;

    #[test]
    fn ranges_end_after_the_subnet() {
        let (first, end) = range("172.30.5.1".parse().unwrap(), 16);
        assert_eq!((first, end), (vec![172, 30, 0, 0], Some(vec![172, 31, 0, 0])));
        assert_eq!(range("255.255.255.1".parse().unwrap(), 24).1, None);
        assert_eq!(range("1.2.3.4".parse().unwrap(), 0), (vec![0; 4], None));
        assert_eq!(range("fd00::1".parse().unwrap(), 0), (vec![0; 16], None));
        let (first, end) = range("fd00::5:0:0:1".parse().unwrap(), 64);
        assert_eq!(first, "fd00::".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(end.unwrap(), "fd00:0:0:1::".parse::<Ipv6Addr>().unwrap().octets());
    }

    proptest! {
        #[test]
        fn published_ports_read_back(
            v6: bool, at: bool, proxied: bool, udp: bool, port: u16, inside: u16, a: u128, t: u128
        ) {
            let ip = |v6: bool, n: u128| {
                if v6 { IpAddr::from(Ipv6Addr::from(n)) } else { Ipv4Addr::from(n as u32).into() }
            };
            let p = Published {
                family: if v6 { Family::V6 } else { Family::V4 },
                at: at.then(|| ip(v6, a)),
                protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
                port,
                target: ip(v6 && !proxied, t),
                target_port: inside,
            };
            prop_assert_eq!(Published::parse(&p.element()), Some(p));
        }

        #[test]
        fn no_element_makes_the_reader_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), v6: bool, map in 0usize..4
        ) {
            let family = if v6 { Family::V6 } else { Family::V4 };
            let map = [ANYWHERE, AT, SERVED, SERVED_AT][map];
            let message = Message { kind: 0, flags: 0, seq: 0, payload: &bytes };
            let _ = read(&message, family, map);
            let one = Element { data: Some(bytes.clone()), ..Element::new(family, map, bytes) };
            let _ = Published::parse(&one);
        }
    }
}
