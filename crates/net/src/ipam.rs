//! Addresses: which subnet a bridge gets, which address a sandbox, which MAC. Pure functions; leases are kept by
//! the engine.

use crate::{NetError, link};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Subnets for IPv4 bridges, all private (RFC 1918), in the order in which they are tried. Docker's pools
/// (172.17.0.0/16 and on) come late, so that both may be on one host.
const CANDIDATES: [(Ipv4Addr, u8); 10] = [
    (Ipv4Addr::new(172, 30, 0, 0), 16),
    (Ipv4Addr::new(172, 31, 0, 0), 16),
    (Ipv4Addr::new(172, 29, 0, 0), 16),
    (Ipv4Addr::new(172, 28, 0, 0), 16),
    (Ipv4Addr::new(10, 213, 0, 0), 16),
    (Ipv4Addr::new(10, 87, 0, 0), 16),
    (Ipv4Addr::new(192, 168, 213, 0), 24),
    (Ipv4Addr::new(192, 168, 87, 0), 24),
    (Ipv4Addr::new(172, 23, 0, 0), 16),
    (Ipv4Addr::new(100, 99, 0, 0), 16),
];

/// Where user-defined networks get their IPv4 subnets: the blocks are cut into pieces of the given prefix. Neither
/// Docker's first choices nor those of the default bridges.
const POOL: [(Ipv4Addr, u8, u8); 4] = [
    (Ipv4Addr::new(10, 214, 0, 0), 15, 20),
    (Ipv4Addr::new(10, 216, 0, 0), 13, 20),
    (Ipv4Addr::new(172, 24, 0, 0), 14, 20),
    (Ipv4Addr::new(192, 168, 128, 0), 18, 24),
];

/// The subnets of a bridge; the gateway of each is its first address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnets {
    /// The bridge's IPv4 address.
    pub gateway4: Ipv4Addr,
    /// Prefix length.
    pub prefix4: u8,
    /// The bridge's IPv6 address; none where the host has no IPv6.
    pub gateway6: Option<Ipv6Addr>,
    /// Prefix length.
    pub prefix6: u8,
}

/// A subnet that this host has an address in or a route to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its address.
    pub address: IpAddr,
    /// Prefix length, not 0.
    pub prefix: u8,
    /// The interface that it leads to; empty where that cannot be told.
    pub interface: String,
}

/// Every subnet that this host has an address in or a route to; default routes excepted.
pub fn routes() -> Result<Vec<Route>, NetError> {
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    let found = link::prefixes(&mut socket).map_err(NetError::system("read the routes of this host"))?;
    let named = |(address, prefix, index)| {
        let name = rustix::net::netdevice::index_to_name(&socket, index);
        Route { address, prefix, interface: name.unwrap_or_default() }
    };
    Ok(found.into_iter().map(named).collect())
}

/// Whether this host has an interface of that name. Not by `/sys`, which shows the network namespace of whoever mounted it.
pub fn interface_exists(name: &str) -> bool {
    link::open().is_ok_and(|socket| rustix::net::netdevice::name_to_index(&socket, name).is_ok())
}

/// Chooses subnets for a bridge that do not overlap any address or route of this host, nor any of `taken`. The
/// IPv6 one is a unique local /64 (RFC 4193) derived from `seed`: 16 bytes that are the host's own, so that two
/// hosts do not choose the same one. The subnets of a default bridge come from another place than those of
/// user-defined networks.
///
/// Stores of one host do not know each other's networks that are down: each begins at a place of its own, given by
/// `store`, which is 0 for the default store.
pub fn choose_subnets(
    seed: [u8; 16],
    taken: &[(IpAddr, u8)],
    user_defined: bool,
    store: u32,
) -> Result<Subnets, NetError> {
    let mut used: Vec<_> = routes()?.into_iter().map(|r| (r.address, r.prefix)).collect();
    used.extend_from_slice(taken);
    choose_among(&used, seed, crate::sysctl::has_ipv6(), (user_defined, store))
}

fn choose_among(
    used: &[(IpAddr, u8)],
    seed: [u8; 16],
    ipv6: bool,
    (user_defined, store): (bool, u32),
) -> Result<Subnets, NetError> {
    let free = |&(net, prefix): &(Ipv4Addr, u8)| {
        !used.iter().any(|&(a, p)| matches!(a, IpAddr::V4(a) if same4(a, net, p.min(prefix))))
    };
    let mut pool: Vec<_> = pool().collect();
    let place = (store as usize).checked_rem(pool.len()).unwrap_or_default();
    pool.rotate_left(place);
    // Of the few candidates for default bridges, two stores would soon choose the same.
    let found = match (user_defined, store) {
        (false, 0) => CANDIDATES.into_iter().chain(pool).find(free),
        _ => pool.into_iter().find(free),
    };
    let (net, prefix4) = found.ok_or(NetError::NoFreeSubnet)?;
    Ok(Subnets {
        gateway4: Ipv4Addr::from(u32::from(net) + 1),
        prefix4,
        gateway6: ipv6.then(|| unique_local(used, seed)),
        prefix6: 64,
    })
}

/// Every piece of [`POOL`].
fn pool() -> impl Iterator<Item = (Ipv4Addr, u8)> {
    POOL.into_iter().flat_map(|(block, from, to)| {
        (0..1u32 << (to - from)).map(move |n| (Ipv4Addr::from(u32::from(block) + (n << (32 - to))), to))
    })
}

fn unique_local(used: &[(IpAddr, u8)], mut seed: [u8; 16]) -> Ipv6Addr {
    loop {
        let mut octets = [0; 16];
        octets[..8].copy_from_slice(&seed[..8]);
        octets[0] = 0xfd;
        octets[15] = 1;
        let gateway = Ipv6Addr::from(octets);
        if !used.iter().any(|&(a, p)| matches!(a, IpAddr::V6(a) if same6(a, gateway, p.min(64)))) {
            return gateway;
        }
        // 2^56 subnets, a few of them used: the next one by the last bytes of the prefix.
        let next = u64::from_be_bytes(*seed.first_chunk::<8>().unwrap_or(&[0; 8])).wrapping_add(1);
        seed[..8].copy_from_slice(&next.to_be_bytes());
    }
}

/// Whether two addresses agree in their first `prefix` bits.
pub(crate) fn same4(a: Ipv4Addr, b: Ipv4Addr, prefix: u8) -> bool {
    (u32::from(a) ^ u32::from(b)).checked_shr(u32::from(32u8.saturating_sub(prefix))).unwrap_or(0) == 0
}

/// Whether two addresses agree in their first `prefix` bits.
pub(crate) fn same6(a: Ipv6Addr, b: Ipv6Addr, prefix: u8) -> bool {
    (u128::from(a) ^ u128::from(b)).checked_shr(u32::from(128u8.saturating_sub(prefix))).unwrap_or(0) == 0
}

/// Whether two addresses are of one family and agree in their first `prefix` bits.
pub(crate) fn same(a: IpAddr, b: IpAddr, prefix: u8) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same4(a, b, prefix),
        (IpAddr::V6(a), IpAddr::V6(b)) => same6(a, b, prefix),
        _ => false,
    }
}

/// The most addresses that are looked at for a free one.
const LOOKED_AT: u128 = 1 << 24;

/// The next free address of those from `first` to `last`, going round after `after` (the one given out most recently),
/// so that an address rests as long as possible before it serves again. `None` if all are used. Addresses are numbers
/// here, of either family.
pub fn next_free(
    first: u128,
    last: u128,
    after: Option<u128>,
    mut used: impl FnMut(u128) -> bool,
) -> Option<u128> {
    let size = last.checked_sub(first)?.saturating_add(1);
    let begin = after.filter(|a| (first..last).contains(a)).map_or(0, |a| a - first + 1);
    (0..size.min(LOOKED_AT)).map(|i| first + (begin + i) % size).find(|a| !used(*a))
}

/// The IPv6 address that goes with an IPv4 address: the bridge's /64 and the IPv4 address as its last 32 bits, so
/// that one lease serves both. Below 2^32 it cannot meet the gateway (`::1`) nor any EUI-64 address.
pub fn ipv6_for(gateway6: Ipv6Addr, prefix6: u8, ipv4: Ipv4Addr) -> Ipv6Addr {
    let host = u32::MAX.checked_shr(u32::from(prefix6.saturating_sub(96))).unwrap_or(0);
    let mask = u128::MAX.checked_shl(u32::from(128u8.saturating_sub(prefix6))).unwrap_or(0);
    Ipv6Addr::from((u128::from(gateway6) & mask) | u128::from(u32::from(ipv4) & host))
}

/// The MAC address that goes with an IPv4 address, as Docker's: locally administered, `02:42` and the address. An
/// address that serves again keeps its MAC, so that no neighbour has a stale one.
pub fn mac_from_ipv4(ipv4: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = ipv4.octets();
    [0x02, 0x42, a, b, c, d]
}

/// What names of host ends begin with.
const PREFIX: &str = "vd";
/// What tells a sandbox's host ends apart: the first, the second …
const SLOTS: &[u8; 16] = b"h123456789abcdef";
/// The most interfaces that a sandbox may have.
pub const MAX_INTERFACES: usize = SLOTS.len();

/// The name of the host's end of a sandbox's interface number `slot`: `vdh` (`vd1`, `vd2` … for further ones) and twelve
/// digits of its id, 15 bytes in all. Slots count from 0, below [`MAX_INTERFACES`].
pub fn host_ifname(id: &str, slot: usize) -> String {
    let mut name = String::from(PREFIX);
    name.push(SLOTS.get(slot).copied().unwrap_or(b'h').into());
    name.extend(id.chars().filter(char::is_ascii_hexdigit).take(12));
    name
}

/// Whether a name is one that [`host_ifname`] makes.
pub(crate) fn is_host_ifname(name: &str) -> bool {
    let rest = name.strip_prefix(PREFIX).and_then(|rest| rest.split_at_checked(1));
    rest.is_some_and(|(slot, id)| {
        slot.bytes().all(|s| SLOTS.contains(&s))
            && id.len() == 12
            && id.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_go_round() {
        let next = |last, used: &[u128]| next_free(2, 6, last, |a| used.contains(&a));
        assert_eq!(next(None, &[]), Some(2));
        assert_eq!(next(Some(2), &[]), Some(3));
        assert_eq!(next(Some(6), &[]), Some(2));
        assert_eq!(next(Some(4), &[5, 6, 2]), Some(3));
        assert_eq!(next(Some(9), &[2]), Some(3));
        assert_eq!(next(None, &[2, 3, 4, 5, 6]), None);
        assert_eq!(next_free(3, 2, None, |_| false), None);
        assert_eq!(next_free(0, u128::MAX, Some(7), |_| false), Some(8));
    }

    #[test]
    fn user_defined_networks_have_a_pool() {
        assert_eq!(pool().next(), Some((Ipv4Addr::new(10, 214, 0, 0), 20)));
        assert!(pool().count() > 200);
        let of = |used: &[(IpAddr, u8)]| choose_among(used, [7; 16], false, (true, 0)).unwrap().gateway4;
        assert_eq!(of(&[]), Ipv4Addr::new(10, 214, 0, 1));
        assert_eq!(of(&[(Ipv4Addr::new(10, 214, 3, 0).into(), 24)]), Ipv4Addr::new(10, 214, 16, 1));
        assert_eq!(of(&[(Ipv4Addr::new(10, 0, 0, 0).into(), 8)]), Ipv4Addr::new(172, 24, 0, 1));
        // Another store begins elsewhere, for its default bridge, too.
        let other = |user_defined| choose_among(&[], [7; 16], false, (user_defined, 3)).unwrap().gateway4;
        assert_eq!(
            (other(true), other(false)),
            (Ipv4Addr::new(10, 214, 48, 1), Ipv4Addr::new(10, 214, 48, 1))
        );
        let last = pool().count() as u32 - 1;
        let far = choose_among(&[], [7; 16], false, (true, last)).unwrap();
        assert_eq!((far.gateway4, far.prefix4), (Ipv4Addr::new(192, 168, 191, 1), 24));
    }

    #[test]
    fn subnets_keep_clear_of_routes() {
        let seed = [7; 16];
        let free = choose_among(&[], seed, true, (false, 0)).unwrap();
        assert_eq!(free.gateway4, Ipv4Addr::new(172, 30, 0, 1));
        let used6 = free.gateway6.unwrap();
        assert_eq!(used6.octets()[0], 0xfd);
        let used = [("172.16.0.0".parse().unwrap(), 12), (used6.into(), 64)];
        let other = choose_among(&used, seed, true, (false, 0)).unwrap();
        assert_eq!(other.gateway4, Ipv4Addr::new(10, 213, 0, 1));
        assert!(!same6(other.gateway6.unwrap(), used6, 64));
        assert_eq!(choose_among(&[], seed, false, (false, 0)).unwrap().gateway6, None);
        let all = [(IpAddr::from(Ipv4Addr::UNSPECIFIED), 1), (Ipv4Addr::new(128, 0, 0, 0).into(), 1)];
        assert!(matches!(choose_among(&all, seed, false, (false, 0)), Err(NetError::NoFreeSubnet)));
        assert!(choose_subnets(seed, &[], true, 0).is_ok());
    }

    #[test]
    fn derived_addresses() {
        let v4 = Ipv4Addr::new(172, 30, 1, 2);
        assert_eq!(
            ipv6_for("fd00::1".parse().unwrap(), 64, v4),
            "fd00::ac1e:102".parse::<Ipv6Addr>().unwrap()
        );
        assert_eq!(ipv6_for("fd00::1".parse().unwrap(), 112, v4), "fd00::102".parse::<Ipv6Addr>().unwrap());
        assert_eq!(mac_from_ipv4(v4), [0x02, 0x42, 172, 30, 1, 2]);
        assert_eq!(host_ifname(&"ab".repeat(32), 0), "vdhabababababab");
        assert_eq!(host_ifname(&"ab".repeat(32), 10), "vdaabababababab");
        assert!((0..MAX_INTERFACES).all(|n| is_host_ifname(&host_ifname(&"ab".repeat(32), n))));
        assert!(!is_host_ifname("vdxabababababab") && !is_host_ifname("vdhababababab"));
    }

    proptest! {
        #[test]
        fn an_address_given_is_within_and_free(first: u32, size in 0u32..5000, last: u128, taken in 0u128..7) {
            let (first, end) = (u128::from(first), u128::from(first) + u128::from(size));
            let used = |a: u128| a % 7 == taken;
            match next_free(first, end, Some(last), used) {
                Some(a) => prop_assert!((first..=end).contains(&a) && !used(a)),
                None => prop_assert!((first..=end).all(used)),
            }
        }
    }
}
