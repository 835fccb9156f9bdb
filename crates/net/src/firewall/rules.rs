//! The static rules that every bridge needs, loaded once, in the tables `ip dhow` and `ip6 dhow`. As `nft` would print
//! them, for IPv4 (`B` is the set of our bridges):
//!
//! ```text
//! chain spoofed      { type filter hook prerouting priority raw; }
//!     iifname != "lo" ip daddr 127.0.0.0/8 drop              # CVE-2020-8558: route_localnet opens 127/8
//!     iifname != "lo" ip saddr 127.0.0.0/8 drop
//!     iifname @B fib saddr . iif oif missing drop            # an address of another network, or of anybody
//!     iifname @shielded ip daddr 169.254.0.0/16 drop         # metadata services
//! chain prerouting   { type nat hook prerouting priority dstnat; }
//!     dnat ip to ip daddr . meta l4proto . th dport map @published_at
//!     fib daddr type local dnat ip to meta l4proto . th dport map @published
//! chain output       { type nat hook output priority dstnat; }      # the same, for the host itself
//! chain input        { type filter hook input priority filter; }    # the host's own services
//!     iifname != @B accept
//!     ct state established,related accept
//!     icmp type echo-request accept                          # IPv6: and neighbour discovery
//!     iifname @open accept                                   # networks with host access
//!     iifname . ip saddr @open_from accept                   # sandboxes with host access
//!     iifname @internal reject                               # a port that is proxied would be a way out
//!     meta l4proto . th dport @published accept              # published, and not led but proxied
//!     ip daddr . meta l4proto . th dport @published_at accept
//!     reject with icmp admin-prohibited
//! chain forward      { type filter hook forward priority filter; }
//!     iifname . oifname @pairs accept                        # neighbours on one bridge
//!     iifname @internal drop
//!     oifname @internal drop                                 # also of what was established before it was internal
//!     ct state established,related accept
//!     oifname != @B accept                                   # outwards, or none of ours
//!     ct status dnat accept                                  # a published port
//!     drop                                                   # into a sandbox by a port that is not published
//! chain postrouting  { type nat hook postrouting priority srcnat; }
//!     oifname != @B ip saddr @subnets masquerade             # outwards
//!     oifname @B ct status dnat ip saddr @subnets masquerade # hairpin: the answer must come back through us
//!     oifname @B ip saddr 127.0.0.0/8 masquerade             # the host, by its loopback address
//! ```
//!
//! For IPv6 the loopback rules fall away: nothing like `route_localnet` exists, so `::1` and link-local addresses
//! are left to [`crate::proxy`] and kept out of destination NAT. Ports of sandboxes without an IPv6 address are
//! proxied for IPv6 clients; the maps `served` and `served_at` are for them what `published` and `published_at` are.

use super::expr::{ACCEPT, DROP, Expr, Meta, REG, Refuse};
use super::schema::{
    ADDRESS4, ADDRESS6, HOOK_FORWARD, HOOK_INPUT, HOOK_OUTPUT, HOOK_POSTROUTING, HOOK_PREROUTING, NAME,
    NAME_WORDS, PORT, PROTOCOL, SET_INTERVAL, SET_MAP, chain, ifname, rule, set, table,
};
use super::{DELRULE, Family, GENERATION, TABLE, request};
use std::net::Ipv6Addr;
use sys::netlink::Batch;

pub(super) const BRIDGES: &str = "bridges";
pub(super) const SUBNETS: &str = "subnets";
pub(super) const PAIRS: &str = "pairs";
/// Bridges that nothing leads out of or into.
pub(super) const INTERNAL: &str = "internal";
/// Bridges whose sandboxes may reach the host's services.
pub(super) const OPEN: &str = "open";
/// Sandboxes that may.
pub(super) const OPEN_FROM: &str = "open_from";
/// Bridges whose sandboxes may not reach metadata services.
pub(super) const SHIELDED: &str = "shielded";
/// Published on every address of the host.
pub(super) const ANYWHERE: &str = "published";
/// Published on one address of the host.
pub(super) const AT: &str = "published_at";
/// Published on every IPv6 address of the host, for a sandbox that has only IPv4.
pub(super) const SERVED: &str = "served";
/// The same, on one.
pub(super) const SERVED_AT: &str = "served_at";

/// All sets and maps of a family.
pub(super) fn names(family: Family) -> &'static [&'static str] {
    const BOTH: [&str; 9] = [BRIDGES, PAIRS, SUBNETS, INTERNAL, OPEN, OPEN_FROM, SHIELDED, ANYWHERE, AT];
    const SIX: [&str; 11] =
        [BRIDGES, PAIRS, SUBNETS, INTERNAL, OPEN, OPEN_FROM, SHIELDED, ANYWHERE, AT, SERVED, SERVED_AT];
    if family == Family::V6 { &SIX } else { &BOTH }
}

/// Puts the whole table of a family into a transaction: makes what is missing, replaces all rules, keeps all
/// elements. So that callers who do this at once end with one copy of each rule.
pub(super) fn load(batch: &mut Batch, family: Family, refuse: Refuse) {
    table(batch, family);
    sets(batch, family);
    chain(batch, family, "spoofed", Some(("filter", HOOK_PREROUTING, -300)));
    chain(batch, family, "prerouting", Some(("nat", HOOK_PREROUTING, -100)));
    chain(batch, family, "output", Some(("nat", HOOK_OUTPUT, -100)));
    chain(batch, family, "input", Some(("filter", HOOK_INPUT, 0)));
    chain(batch, family, "forward", Some(("filter", HOOK_FORWARD, 0)));
    chain(batch, family, "postrouting", Some(("nat", HOOK_POSTROUTING, 100)));
    chain(batch, family, GENERATION, None);
    request(batch, DELRULE, 0, family).attr_str(1, TABLE);
    spoofed(batch, family);
    destination_nat(batch, family, "prerouting");
    destination_nat(batch, family, "output");
    input(batch, family, refuse);
    forward(batch, family);
    postrouting(batch, family);
}

fn sets(batch: &mut Batch, family: Family) {
    let address = if family == Family::V4 { ADDRESS4 } else { ADDRESS6 };
    let at = [address, PROTOCOL, PORT];
    for bridges in [BRIDGES, INTERNAL, OPEN, SHIELDED] {
        set(batch, family, bridges, 0, &[NAME], &[]);
    }
    set(batch, family, PAIRS, 0, &[NAME, NAME], &[]);
    set(batch, family, OPEN_FROM, 0, &[NAME, address], &[]);
    set(batch, family, SUBNETS, SET_INTERVAL, &[address], &[]);
    set(batch, family, ANYWHERE, SET_MAP, &at[1..], &[address, PORT]);
    set(batch, family, AT, SET_MAP, &at, &[address, PORT]);
    if family == Family::V6 {
        set(batch, family, SERVED, SET_MAP, &at[1..], &[ADDRESS4, PORT]);
        set(batch, family, SERVED_AT, SET_MAP, &at, &[ADDRESS4, PORT]);
    }
}

/// Offset of source and destination address in the network header.
pub(super) fn addresses(family: Family) -> (u32, u32) {
    match family {
        Family::V4 => (12, 16),
        _ => (8, 24),
    }
}

/// What services of clouds answer by without asking who is there: AWS, Azure, GCP and most others by 169.254.169.254,
/// and on IPv6 AWS and GCP by these.
const METADATA6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

fn spoofed(batch: &mut Batch, family: Family) {
    let (_, daddr) = addresses(family);
    if family == Family::V4 {
        for offset in [16, 12] {
            rule(batch, family, "spoofed", |e| {
                e.meta(Meta::IifName, REG).compare(REG, true, &ifname("lo"));
                e.network(offset, 1, REG).compare(REG, false, &[127]).verdict(DROP);
            });
        }
    }
    rule(batch, family, "spoofed", |e| {
        e.meta(Meta::IifName, REG).in_set(BRIDGES, REG, false).comes_from_elsewhere().verdict(DROP);
    });
    let mut shield = |address: &[u8]| {
        rule(batch, family, "spoofed", |e| {
            e.meta(Meta::IifName, REG).in_set(SHIELDED, REG, false);
            e.network(daddr, address.len() as u32, REG).compare(REG, false, address).verdict(DROP);
        });
    };
    match family {
        Family::V4 => shield(&[169, 254]),
        _ => METADATA6.iter().for_each(|a| shield(&a.octets())),
    }
}

fn destination_nat(batch: &mut Batch, family: Family, chain: &str) {
    let (_, daddr) = addresses(family);
    let words = family.width() / 4;
    let not_proxied = |e: &mut Expr<'_>| {
        if family == Family::V6 {
            e.network(daddr, 16, REG).compare(REG, true, &Ipv6Addr::LOCALHOST.octets());
            e.network(daddr, 2, REG).mask(REG, &[0xff, 0xc0]).compare(REG, true, &[0xfe, 0x80]);
        }
    };
    rule(batch, family, chain, |e| {
        not_proxied(e);
        e.network(daddr, family.width(), REG).meta(Meta::L4Proto, REG + words);
        e.destination_port(REG + words + 1).map(AT, REG, REG);
        e.dnat(family.nfproto(), REG, REG + words);
    });
    rule(batch, family, chain, |e| {
        not_proxied(e);
        e.destination_is_local().meta(Meta::L4Proto, REG).destination_port(REG + 1);
        e.map(ANYWHERE, REG, REG).dnat(family.nfproto(), REG, REG + words);
    });
}

fn input(batch: &mut Batch, family: Family, refuse: Refuse) {
    let (saddr, daddr) = addresses(family);
    let width = family.width();
    rule(batch, family, "input", |e| {
        e.meta(Meta::IifName, REG).in_set(BRIDGES, REG, true).verdict(ACCEPT);
    });
    rule(batch, family, "input", |e| {
        e.established().verdict(ACCEPT);
    });
    // Echo requests, neighbour solicitations and advertisements.
    let (icmp, types): (u8, &[u8]) = if family == Family::V4 { (1, &[8]) } else { (58, &[128, 135, 136]) };
    for kind in types {
        rule(batch, family, "input", |e| {
            e.meta(Meta::L4Proto, REG).compare(REG, false, &[icmp]);
            e.transport(0, 1, REG).compare(REG, false, &[*kind]).verdict(ACCEPT);
        });
    }
    rule(batch, family, "input", |e| {
        e.meta(Meta::IifName, REG).in_set(OPEN, REG, false).verdict(ACCEPT);
    });
    rule(batch, family, "input", |e| {
        e.meta(Meta::IifName, REG).network(saddr, width, REG + NAME_WORDS);
        e.in_set(OPEN_FROM, REG, false).verdict(ACCEPT);
    });
    rule(batch, family, "input", |e| {
        e.meta(Meta::IifName, REG).in_set(INTERNAL, REG, false).refuse(family, refuse);
    });
    let maps = [(ANYWHERE, AT), (SERVED, SERVED_AT)];
    for (anywhere, at) in maps.into_iter().take(if family == Family::V4 { 1 } else { 2 }) {
        rule(batch, family, "input", |e| {
            e.meta(Meta::L4Proto, REG).destination_port(REG + 1).map(anywhere, REG, REG).verdict(ACCEPT);
        });
        rule(batch, family, "input", |e| {
            e.network(daddr, width, REG).meta(Meta::L4Proto, REG + width / 4);
            e.destination_port(REG + width / 4 + 1).map(at, REG, REG).verdict(ACCEPT);
        });
    }
    rule(batch, family, "input", |e| {
        e.refuse(family, refuse);
    });
}

fn forward(batch: &mut Batch, family: Family) {
    rule(batch, family, "forward", |e| {
        e.meta(Meta::IifName, REG).meta(Meta::OifName, REG + NAME_WORDS);
        e.in_set(PAIRS, REG, false).verdict(ACCEPT);
    });
    for side in [Meta::IifName, Meta::OifName] {
        rule(batch, family, "forward", |e| {
            e.meta(side, REG).in_set(INTERNAL, REG, false).verdict(DROP);
        });
    }
    rule(batch, family, "forward", |e| {
        e.established().verdict(ACCEPT);
    });
    rule(batch, family, "forward", |e| {
        e.meta(Meta::OifName, REG).in_set(BRIDGES, REG, true).verdict(ACCEPT);
    });
    rule(batch, family, "forward", |e| {
        e.translated().verdict(ACCEPT);
    });
    rule(batch, family, "forward", |e| {
        e.verdict(DROP);
    });
}

fn postrouting(batch: &mut Batch, family: Family) {
    let (saddr, _) = addresses(family);
    rule(batch, family, "postrouting", |e| {
        e.meta(Meta::OifName, REG).in_set(BRIDGES, REG, true);
        e.network(saddr, family.width(), REG).in_set(SUBNETS, REG, false).masquerade();
    });
    rule(batch, family, "postrouting", |e| {
        e.meta(Meta::OifName, REG).in_set(BRIDGES, REG, false).translated();
        e.network(saddr, family.width(), REG).in_set(SUBNETS, REG, false).masquerade();
    });
    if family == Family::V4 {
        rule(batch, family, "postrouting", |e| {
            e.meta(Meta::OifName, REG).in_set(BRIDGES, REG, false);
            e.network(saddr, 1, REG).compare(REG, false, &[127]).masquerade();
        });
    }
}

/// How many rules [`load`] makes.
#[cfg(test)]
pub(crate) fn count(family: Family) -> usize {
    match family {
        Family::V4 => 4 + 2 + 2 + 9 + 7 + 3,
        _ => 3 + 2 + 2 + 13 + 7 + 2,
    }
}
