//! The elements of our sets and maps: bridges and published ports.

use super::expr::NFTA_DATA_VALUE;
use super::rules::{ANYWHERE, AT, BRIDGES, PAIRS, SUBNETS, ifname};
use super::{DELSETELEM, Family, GETSETELEM, NEWSETELEM, TABLE, request, transact};
use rustix::io::Errno;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use sys::netlink::{Batch, Message, Socket, attributes, errno, flags};
use types::{Attachment, PortBinding, Protocol};

const LIST_ELEM: u16 = 1;
const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const ELEM_FLAGS: u16 = 3;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const INTERVAL_END: u32 = 1;

/// One published port, as the maps hold it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Published {
    /// Address on the host; none is every address of the target's family.
    pub at: Option<IpAddr>,
    pub protocol: Protocol,
    pub port: u16,
    /// Address and port inside. Its family says which table it is in.
    pub target: IpAddr,
    pub target_port: u16,
}

impl Published {
    /// The element for a binding, if destination NAT can serve it: not for `::1` and link-local addresses, nor for
    /// a sandbox without an address of that family.
    pub(crate) fn of(binding: &PortBinding, attachment: &Attachment) -> Option<Self> {
        let target = match binding.host_ip {
            IpAddr::V4(_) => attachment.ipv4.into(),
            IpAddr::V6(a) if a.is_loopback() || a.is_unicast_link_local() => return None,
            IpAddr::V6(_) => attachment.ipv6?.into(),
        };
        Some(Self {
            at: Some(binding.host_ip).filter(|a| !a.is_unspecified()),
            protocol: binding.protocol,
            port: binding.host_port,
            target,
            target_port: binding.container_port,
        })
    }

    pub(crate) fn family(&self) -> Family {
        if self.target.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    fn map(&self) -> &'static str {
        if self.at.is_some() { AT } else { ANYWHERE }
    }

    fn key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(24);
        match self.at {
            Some(IpAddr::V4(a)) => key.extend(a.octets()),
            Some(IpAddr::V6(a)) => key.extend(a.octets()),
            None => {}
        }
        key.extend([number(self.protocol), 0, 0, 0]);
        key.extend(self.port.to_be_bytes());
        key.extend([0, 0]);
        key
    }

    fn data(&self) -> Vec<u8> {
        let mut data = Vec::with_capacity(20);
        match self.target {
            IpAddr::V4(a) => data.extend(a.octets()),
            IpAddr::V6(a) => data.extend(a.octets()),
        }
        data.extend(self.target_port.to_be_bytes());
        data.extend([0, 0]);
        data
    }

    fn parse(family: Family, specific: bool, key: &[u8], data: &[u8]) -> Option<Self> {
        let (at, rest) =
            if specific { address(family, key).map(|(a, r)| (Some(a), r))? } else { (None, key) };
        let (target, port) = address(family, data)?;
        Some(Self {
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

fn address(family: Family, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    match family {
        Family::V4 => bytes.split_first_chunk::<4>().map(|(a, rest)| (Ipv4Addr::from(*a).into(), rest)),
        Family::V6 => bytes.split_first_chunk::<16>().map(|(a, rest)| (Ipv6Addr::from(*a).into(), rest)),
    }
}

fn elements<'b>(batch: &'b mut Batch, message: u16, flags: u16, family: Family, set: &str) -> &'b mut Batch {
    request(batch, message, flags, family).attr_str(LIST_TABLE, TABLE).attr_str(LIST_SET, set)
}

fn element(batch: &mut Batch, key: &[u8], data: Option<&[u8]>, flags: u32) {
    batch.nest(LIST_ELEM, |b| {
        b.nest(ELEM_KEY, |b| {
            b.attr(NFTA_DATA_VALUE, key);
        });
        if let Some(data) = data {
            b.nest(ELEM_DATA, |b| {
                b.attr(NFTA_DATA_VALUE, data);
            });
        }
        if flags != 0 {
            b.attr_be32(ELEM_FLAGS, flags);
        }
    });
}

/// Puts a bridge's name and subnet into the sets.
pub(super) fn register(batch: &mut Batch, family: Family, bridge: &str, gateway: IpAddr, prefix: u8) {
    for set in [BRIDGES, PAIRS, SUBNETS] {
        bridge_element(batch, NEWSETELEM, flags::CREATE, family, set, bridge, (gateway, prefix));
    }
}

/// Asks for a bridge's name in the set.
pub(super) fn ask_bridge(batch: &mut Batch, family: Family, bridge: &str) {
    elements(batch, GETSETELEM, 0, family, BRIDGES)
        .nest(LIST_ELEMENTS, |b| element(b, &ifname(bridge), None, 0));
}

/// A bridge's element of one of the sets.
fn bridge_element(
    batch: &mut Batch,
    op: u16,
    how: u16,
    family: Family,
    set: &str,
    bridge: &str,
    (gateway, prefix): (IpAddr, u8),
) {
    let name = ifname(bridge);
    elements(batch, op, how, family, set).nest(LIST_ELEMENTS, |b| match set {
        BRIDGES => element(b, &name, None, 0),
        PAIRS => element(b, &[name, name].concat(), None, 0),
        _ => {
            let (first, end) = range(gateway, prefix);
            element(b, &first, None, 0);
            if let Some(end) = end {
                element(b, &end, None, INTERVAL_END);
            }
        }
    });
}

/// Removes a bridge from the sets; each element on its own, since any may be gone.
pub(crate) fn unregister(
    socket: &mut Socket,
    family: Family,
    bridge: &str,
    gateway: IpAddr,
    prefix: u8,
) -> io::Result<()> {
    for set in [BRIDGES, PAIRS, SUBNETS] {
        match transact(socket, |b| bridge_element(b, DELSETELEM, 0, family, set, bridge, (gateway, prefix))) {
            Err(e) if errno(&e) == Some(Errno::NOENT) => {}
            done => done?,
        }
    }
    Ok(())
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
pub(crate) fn publish(socket: &mut Socket, list: &[Published]) -> io::Result<()> {
    let add = |b: &mut Batch| {
        for p in list {
            elements(b, NEWSETELEM, flags::CREATE, p.family(), p.map())
                .nest(LIST_ELEMENTS, |b| element(b, &p.key(), Some(&p.data()), 0));
        }
    };
    match transact(socket, add) {
        Err(e) if matches!(errno(&e), Some(Errno::EXIST | Errno::BUSY)) => {
            for p in list {
                match transact(socket, |b| remove(b, p)) {
                    Err(e) if errno(&e) == Some(Errno::NOENT) => {}
                    done => done?,
                }
            }
            transact(socket, add)
        }
        done => done,
    }
}

fn remove(batch: &mut Batch, p: &Published) {
    elements(batch, DELSETELEM, 0, p.family(), p.map())
        .nest(LIST_ELEMENTS, |b| element(b, &p.key(), None, 0));
}

/// Removes published ports that still lead where `list` says; the rest is gone, or another's.
pub(crate) fn withdraw(socket: &mut Socket, list: &[Published]) -> io::Result<()> {
    for p in list {
        let mut batch = Batch::new();
        elements(&mut batch, GETSETELEM, 0, p.family(), p.map())
            .nest(LIST_ELEMENTS, |b| element(b, &p.key(), None, 0));
        let mut found = Vec::new();
        let asked = socket.query(batch, &mut |m| found.extend(read(m, p.family(), p.at.is_some())));
        let done = match asked {
            Ok(()) if found.contains(p) => transact(socket, |b| remove(b, p)),
            done => done,
        };
        match done {
            Err(e) if errno(&e) == Some(Errno::NOENT) => {}
            done => done?,
        }
    }
    Ok(())
}

/// All published ports of a family.
pub(crate) fn published_in(socket: &mut Socket, family: Family) -> io::Result<Vec<Published>> {
    let mut found = Vec::new();
    for map in [ANYWHERE, AT] {
        let mut batch = Batch::new();
        elements(&mut batch, GETSETELEM, flags::DUMP, family, map);
        match socket.query(batch, &mut |m| found.extend(read(m, family, map == AT))) {
            Err(e) if errno(&e) == Some(Errno::NOENT) => {}
            done => done?,
        }
    }
    Ok(found)
}

fn read(message: &Message<'_>, family: Family, specific: bool) -> Vec<Published> {
    let list = message.attributes(4).find(LIST_ELEMENTS).unwrap_or_default();
    attributes(list)
        .filter_map(|(_, elem)| {
            let value = |kind| attributes(attributes(elem).find(kind)?).find(NFTA_DATA_VALUE);
            Published::parse(family, specific, value(ELEM_KEY)?, value(ELEM_DATA)?)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        fn published_ports_read_back(v6: bool, at: bool, udp: bool, port: u16, inside: u16, a: u128, t: u128) {
            let ip = |n: u128| if v6 { IpAddr::from(Ipv6Addr::from(n)) } else { Ipv4Addr::from(n as u32).into() };
            let p = Published {
                at: at.then(|| ip(a)),
                protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
                port,
                target: ip(t),
                target_port: inside,
            };
            prop_assert_eq!(Published::parse(p.family(), at, &p.key(), &p.data()), Some(p));
        }

        #[test]
        fn no_element_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), v6: bool, at: bool) {
            let family = if v6 { Family::V6 } else { Family::V4 };
            let message = Message { kind: 0, flags: 0, seq: 0, payload: &bytes };
            let _ = read(&message, family, at);
            let _ = Published::parse(family, at, &bytes, &bytes);
        }
    }
}
