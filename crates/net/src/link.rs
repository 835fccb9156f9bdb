//! The rtnetlink requests that a bridge and its ports need: links, addresses, routes (`rtnetlink(7)`).
//!
//! Encoding only; who asks for what, and in which namespace, is for [`crate::bridge`] and [`crate::endpoint`].

use rustix::io::Errno;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use sys::netlink::{Batch, Family, Refusal, Socket, attributes, errno, flags, string, u32_of};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BR_MULTI_BOOLOPT: u16 = 46;
const VETH_INFO_PEER: u16 = 1;
const IFLA_MACVLAN_MODE: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_F_NODAD: u8 = 0x02;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_INET6: u8 = 10;
/// `lo` is the first interface of every namespace.
const LOOPBACK: u32 = 1;

/// What is read of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
    pub name: String,
    pub up: bool,
    pub master: u32,
    pub mtu: u32,
    pub alias: String,
    pub kind: String,
    pub mac: Option<[u8; 6]>,
}

pub(crate) fn open() -> io::Result<Socket> {
    Socket::open(Family::Route)
}

/// Runs requests of which none may fail, but for the errors in `tolerated`.
pub(crate) fn run(socket: &mut Socket, batch: Batch, tolerated: &[Errno]) -> io::Result<()> {
    match socket.submit(batch)?.into_iter().find(|r: &Refusal| !tolerated.contains(&r.errno)) {
        Some(refusal) => Err(refusal.into()),
        None => Ok(()),
    }
}

fn ifinfo(index: u32, on: u32) -> [u8; 16] {
    let mut out = [0; 16];
    out[4..8].copy_from_slice(&index.to_ne_bytes());
    out[8..12].copy_from_slice(&on.to_ne_bytes());
    out[12..].copy_from_slice(&on.to_ne_bytes());
    out
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let index = u32_of(payload.get(4..)?)?;
    let up = u32_of(payload.get(8..)?)? & IFF_UP != 0;
    let mut link = Link { index, up, ..Link::default() };
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = string(value),
            IFLA_MTU => link.mtu = u32_of(value).unwrap_or(0),
            IFLA_MASTER => link.master = u32_of(value).unwrap_or(0),
            IFLA_ADDRESS => link.mac = value.first_chunk().copied().filter(|_| value.len() == 6),
            IFLA_IFALIAS => link.alias = string(value),
            IFLA_LINKINFO => {
                link.kind = attributes(value).find(IFLA_INFO_KIND).map(string).unwrap_or_default()
            }
            _ => {}
        }
    }
    Some(link)
}

/// The link of that name.
pub(crate) fn get(socket: &mut Socket, name: &str) -> io::Result<Option<Link>> {
    let mut batch = Batch::new();
    batch.request(RTM_GETLINK, 0).fixed(&ifinfo(0, 0));
    batch.attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS).attr_str(IFLA_IFNAME, name);
    let mut found = None;
    match socket.query(batch, &mut |m| found = parse_link(m.payload)) {
        Ok(()) => Ok(found),
        Err(e) if errno(&e) == Some(Errno::NODEV) => Ok(None),
        Err(e) => Err(e),
    }
}

/// All links of the namespace.
pub(crate) fn all(socket: &mut Socket) -> io::Result<Vec<Link>> {
    let mut batch = Batch::new();
    batch.request(RTM_GETLINK, flags::DUMP).fixed(&ifinfo(0, 0));
    batch.attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    let mut found = Vec::new();
    socket.query(batch, &mut |m| found.extend(parse_link(m.payload)))?;
    Ok(found)
}

/// All ports of a bridge.
pub(crate) fn ports(socket: &mut Socket, bridge: u32) -> io::Result<Vec<Link>> {
    let mut batch = Batch::new();
    batch.request(RTM_GETLINK, flags::DUMP).fixed(&ifinfo(0, 0));
    batch.attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS).attr_u32(IFLA_MASTER, bridge);
    let mut found = Vec::new();
    // The filter by master is the kernel's since 4.6; checked here all the same.
    socket.query(batch, &mut |m| found.extend(parse_link(m.payload).filter(|l| l.master == bridge)))?;
    Ok(found)
}

/// Makes a bridge, down; a bridge of that name stays as it is.
pub(crate) fn add_bridge(batch: &mut Batch, name: &str, mac: [u8; 6], mtu: u32) {
    batch.request(RTM_NEWLINK, flags::CREATE | flags::EXCL).fixed(&ifinfo(0, 0));
    // A set address stays; otherwise a bridge takes the lowest of its ports, and changes with them.
    batch.attr_str(IFLA_IFNAME, name).attr(IFLA_ADDRESS, &mac).attr_u32(IFLA_MTU, mtu);
    batch.nest(IFLA_LINKINFO, |b| {
        b.attr_str(IFLA_INFO_KIND, "bridge");
    });
}

/// Keeps a bridge from learning whose a MAC address is by frames to its reserved addresses (01:80:c2:00:00:0X), which pass no
/// firewall: a port would take a neighbour's frames by sending one in its name. (`BR_BOOLOPT_NO_LL_LEARN`, Linux 5.0.)
pub(crate) fn no_hidden_learning(batch: &mut Batch, name: &str) {
    const NO_LL_LEARN: u32 = 1;
    batch.request(RTM_NEWLINK, 0).fixed(&ifinfo(0, 0)).attr_str(IFLA_IFNAME, name);
    batch.nest(IFLA_LINKINFO, |b| {
        b.attr_str(IFLA_INFO_KIND, "bridge").nest(IFLA_INFO_DATA, |b| {
            // struct br_boolopt_multi: values, and which of them are meant.
            b.attr(IFLA_BR_MULTI_BOOLOPT, &[NO_LL_LEARN.to_ne_bytes(), NO_LL_LEARN.to_ne_bytes()].concat());
        });
    });
}

/// Makes a veth pair: `host` here, down, and its peer as `ifname` in `netns`, both down.
pub(crate) fn add_veth(
    batch: &mut Batch,
    host: &str,
    netns: BorrowedFd<'_>,
    ifname: &str,
    mac: [u8; 6],
    mtu: u32,
) {
    batch.request(RTM_NEWLINK, flags::CREATE | flags::EXCL).fixed(&ifinfo(0, 0));
    batch.attr_str(IFLA_IFNAME, host).attr_u32(IFLA_MTU, mtu);
    batch.nest(IFLA_LINKINFO, |b| {
        b.attr_str(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |b| {
            b.nest(VETH_INFO_PEER, |b| {
                b.fixed(&ifinfo(0, 0)).attr_str(IFLA_IFNAME, ifname).attr(IFLA_ADDRESS, &mac);
                b.attr_u32(IFLA_MTU, mtu).attr_u32(IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
            });
        });
    });
}

/// Makes a link that sends what is redirected to it, down.
pub(crate) fn add_ifb(batch: &mut Batch, name: &str) {
    batch.request(RTM_NEWLINK, flags::CREATE | flags::EXCL).fixed(&ifinfo(0, 0));
    batch.attr_str(IFLA_IFNAME, name);
    batch.nest(IFLA_LINKINFO, |b| {
        b.attr_str(IFLA_INFO_KIND, "ifb");
    });
}

/// Makes a link on top of another one of this host, down; with a namespace, in there. `kind` is `macvlan` or `macvtap`.
pub(crate) fn add_macvlan(
    batch: &mut Batch,
    (kind, name): (&str, &str),
    netns: Option<BorrowedFd<'_>>,
    (parent, mode): (u32, u32),
    mac: [u8; 6],
    mtu: u32,
) {
    batch.request(RTM_NEWLINK, flags::CREATE | flags::EXCL).fixed(&ifinfo(0, 0));
    batch
        .attr_u32(IFLA_LINK, parent)
        .attr_str(IFLA_IFNAME, name)
        .attr(IFLA_ADDRESS, &mac)
        .attr_u32(IFLA_MTU, mtu);
    if let Some(netns) = netns {
        batch.attr_u32(IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
    }
    batch.nest(IFLA_LINKINFO, |b| {
        b.attr_str(IFLA_INFO_KIND, kind).nest(IFLA_INFO_DATA, |b| {
            b.attr_u32(IFLA_MACVLAN_MODE, mode);
        });
    });
}

/// Keeps a link from taking an IPv6 address of its own: a bridge port needs none, and each costs multicast groups
/// and routes.
pub(crate) fn no_ipv6_address(batch: &mut Batch, name: &str) {
    batch.request(RTM_NEWLINK, 0).fixed(&ifinfo(0, 0)).attr_str(IFLA_IFNAME, name);
    batch.nest(IFLA_AF_SPEC, |b| {
        b.nest(u16::from(AF_INET6), |b| {
            b.attr(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
        });
    });
}

/// Brings a link up, by name.
pub(crate) fn up(batch: &mut Batch, name: &str) {
    batch.request(RTM_NEWLINK, 0).fixed(&ifinfo(0, IFF_UP)).attr_str(IFLA_IFNAME, name);
}

/// Brings a link down, by name.
pub(crate) fn down(batch: &mut Batch, name: &str) {
    let mut info = ifinfo(0, IFF_UP);
    info[8..12].copy_from_slice(&0u32.to_ne_bytes());
    batch.request(RTM_NEWLINK, 0).fixed(&info).attr_str(IFLA_IFNAME, name);
}

/// Gives a link, which is down, another name.
pub(crate) fn rename(batch: &mut Batch, index: u32, name: &str) {
    batch.request(RTM_NEWLINK, 0).fixed(&ifinfo(index, 0)).attr_str(IFLA_IFNAME, name);
}

/// Gives a link another MAC address.
pub(crate) fn set_mac(batch: &mut Batch, name: &str, mac: [u8; 6]) {
    batch.request(RTM_NEWLINK, 0).fixed(&ifinfo(0, 0)).attr_str(IFLA_IFNAME, name);
    batch.attr(IFLA_ADDRESS, &mac);
}

/// Sets the greatest packet of a link, bytes.
pub(crate) fn set_mtu(batch: &mut Batch, name: &str, mtu: u32) {
    batch.request(RTM_NEWLINK, 0).fixed(&ifinfo(0, 0)).attr_str(IFLA_IFNAME, name);
    batch.attr_u32(IFLA_MTU, mtu);
}

/// Makes a link a port of a bridge; of none if that is 0.
pub(crate) fn enslave(batch: &mut Batch, name: &str, bridge: u32) {
    batch.request(RTM_NEWLINK, 0).fixed(&ifinfo(0, 0)).attr_str(IFLA_IFNAME, name);
    batch.attr_u32(IFLA_MASTER, bridge);
}

/// Lets a bridge port send frames back where they came from.
pub(crate) fn hairpin(batch: &mut Batch, name: &str) {
    batch.request(RTM_NEWLINK, 0).fixed(&ifinfo(0, 0)).attr_str(IFLA_IFNAME, name);
    batch.nest(IFLA_LINKINFO, |b| {
        b.attr_str(IFLA_INFO_SLAVE_KIND, "bridge").nest(IFLA_INFO_SLAVE_DATA, |b| {
            b.attr(IFLA_BRPORT_MODE, &[1]);
        });
    });
}

/// Brings a link up.
pub(crate) fn set_up(batch: &mut Batch, index: u32) {
    batch.request(RTM_NEWLINK, 0).fixed(&ifinfo(index, IFF_UP));
}

/// Brings the loopback interface up.
pub(crate) fn loopback_up(batch: &mut Batch) {
    set_up(batch, LOOPBACK);
}

/// Labels a link.
pub(crate) fn set_alias(batch: &mut Batch, index: u32, alias: &str) {
    batch.request(RTM_NEWLINK, 0).fixed(&ifinfo(index, 0)).attr(IFLA_IFALIAS, alias.as_bytes());
}

/// Labels a link, by name.
pub(crate) fn label(batch: &mut Batch, name: &str, alias: &str) {
    batch.request(RTM_NEWLINK, 0).fixed(&ifinfo(0, 0)).attr_str(IFLA_IFNAME, name);
    batch.attr(IFLA_IFALIAS, alias.as_bytes());
}

/// Removes a link by name.
pub(crate) fn delete(batch: &mut Batch, name: &str) {
    batch.request(RTM_DELLINK, 0).fixed(&ifinfo(0, 0)).attr_str(IFLA_IFNAME, name);
}

/// Gives a link an address. IPv6 addresses are usable at once: duplicates cannot be, since we hand them out.
pub(crate) fn add_address(batch: &mut Batch, index: u32, address: IpAddr, prefix: u8) {
    let (family, flags) = match address {
        IpAddr::V4(_) => (AF_INET, 0),
        IpAddr::V6(_) => (AF_INET6, IFA_F_NODAD),
    };
    let mut fixed = [family, prefix, flags, 0, 0, 0, 0, 0];
    fixed[4..].copy_from_slice(&index.to_ne_bytes());
    batch.request(RTM_NEWADDR, flags::CREATE | flags::REPLACE).fixed(&fixed);
    match address {
        IpAddr::V4(a) => {
            let broadcast = u32::from(a) | u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
            batch.attr(IFA_LOCAL, &a.octets()).attr(IFA_ADDRESS, &a.octets());
            batch.attr(IFA_BROADCAST, &broadcast.to_be_bytes());
        }
        IpAddr::V6(a) => {
            batch.attr(IFA_LOCAL, &a.octets()).attr(IFA_ADDRESS, &a.octets());
        }
    }
}

/// Takes every address from a link.
pub(crate) fn flush_addresses(socket: &mut Socket, index: u32) -> io::Result<()> {
    let mut found = Batch::new();
    for family in [AF_INET, AF_INET6] {
        let mut batch = Batch::new();
        batch.request(RTM_GETADDR, flags::DUMP).fixed(&[family, 0, 0, 0, 0, 0, 0, 0]);
        socket.query(batch, &mut |m| {
            let Some(&[family, prefix]) = m.payload.first_chunk::<2>() else { return };
            let all = m.attributes(8);
            let address = all.find(IFA_LOCAL).or(m.attributes(8).find(IFA_ADDRESS));
            let Some(address) = address.filter(|_| m.payload.get(4..).and_then(u32_of) == Some(index)) else {
                return;
            };
            let mut fixed = [family, prefix, 0, 0, 0, 0, 0, 0];
            fixed[4..].copy_from_slice(&index.to_ne_bytes());
            found.request(RTM_DELADDR, 0).fixed(&fixed).attr(IFA_LOCAL, address);
        })?;
    }
    // What the kernel removed by itself meanwhile.
    run(socket, found, &[Errno::ADDRNOTAVAIL])
}

/// A default route through `gateway`.
pub(crate) fn add_default_route(batch: &mut Batch, index: u32, gateway: IpAddr) {
    let family = if gateway.is_ipv4() { AF_INET } else { AF_INET6 };
    let fixed = [family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST, 0, 0, 0, 0];
    batch.request(RTM_NEWROUTE, flags::CREATE | flags::REPLACE).fixed(&fixed);
    batch.attr_u32(RTA_OIF, index);
    match gateway {
        IpAddr::V4(a) => batch.attr(RTA_GATEWAY, &a.octets()),
        IpAddr::V6(a) => batch.attr(RTA_GATEWAY, &a.octets()),
    };
}

/// Every IPv4 and IPv6 prefix that this host has an address in or a route to, with the index of the interface; default
/// routes excepted.
pub(crate) fn prefixes(socket: &mut Socket) -> io::Result<Vec<(IpAddr, u8, u32)>> {
    let mut found = Vec::new();
    for (kind, size, wanted) in [(RTM_GETADDR, 8, IFA_ADDRESS), (RTM_GETROUTE, 12, RTA_DST)] {
        for family in [AF_INET, AF_INET6] {
            let mut fixed = [0; 12];
            fixed[0] = family;
            let mut batch = Batch::new();
            batch.request(kind, flags::DUMP).fixed(&fixed[..size]);
            let each = &mut |m: &sys::netlink::Message<'_>| {
                let Some(&[family, prefix]) = m.payload.first_chunk::<2>() else { return };
                let address = m.attributes(size).find(wanted).and_then(|v| ip(family, v));
                let index = if kind == RTM_GETADDR {
                    m.payload.get(4..).and_then(u32_of)
                } else {
                    m.attributes(size).find(RTA_OIF).and_then(u32_of)
                };
                found.extend(address.filter(|_| prefix > 0).map(|a| (a, prefix, index.unwrap_or(0))));
            };
            match socket.query(batch, each) {
                Err(_) if family == AF_INET6 => {}
                done => done?,
            }
        }
    }
    Ok(found)
}

fn ip(family: u8, value: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => value.first_chunk::<4>().map(|v| Ipv4Addr::from(*v).into()),
        AF_INET6 => value.first_chunk::<16>().map(|v| Ipv6Addr::from(*v).into()),
        _ => None,
    }
}

/// Takes 127.0.0.1 from the loopback interface.
#[cfg(test)]
pub(crate) fn remove_loopback_address(batch: &mut Batch) {
    batch.request(RTM_DELADDR, 0).fixed(&[AF_INET, 8, 0, 0, 1, 0, 0, 0]);
    batch.attr(IFA_LOCAL, &[127, 0, 0, 1]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn loopback_is_read() {
        let mut socket = open().unwrap();
        let lo = get(&mut socket, "lo").unwrap().unwrap();
        assert_eq!((lo.index, lo.name.as_str()), (1, "lo"));
        assert_eq!(get(&mut socket, "none-such").unwrap(), None);
        assert!(prefixes(&mut socket).is_ok());
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_link(&bytes);
            let _ = ip(bytes.first().copied().unwrap_or(2), &bytes);
        }
    }
}
