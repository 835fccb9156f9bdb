//! The static rules, loaded once. As `nft` would print them, for IPv4 (`B` is the set of our bridges):
//!
//! ```text
//! chain spoofed      { type filter hook prerouting priority raw; }
//!     iifname != "lo" ip daddr 127.0.0.0/8 drop              # CVE-2020-8558: route_localnet opens 127/8
//!     iifname != "lo" ip saddr 127.0.0.0/8 drop
//! chain prerouting   { type nat hook prerouting priority dstnat; }
//!     dnat ip to ip daddr . meta l4proto . th dport map @published_at
//!     fib daddr type local dnat ip to meta l4proto . th dport map @published
//! chain output       { type nat hook output priority dstnat; }      # the same, for the host itself
//! chain forward      { type filter hook forward priority filter; }
//!     oifname != @B accept                                   # outwards, or none of ours
//!     ct state established,related accept
//!     ct status dnat accept                                  # a published port
//!     iifname . oifname @pairs accept                        # neighbours on one bridge
//!     drop                                                   # into a sandbox by a port that is not published
//! chain postrouting  { type nat hook postrouting priority srcnat; }
//!     oifname != @B ip saddr @subnets masquerade             # outwards
//!     oifname @B ct status dnat ip saddr @subnets masquerade # hairpin: the answer must come back through us
//!     oifname @B ip saddr 127.0.0.0/8 masquerade             # the host, by its loopback address
//! ```
//!
//! For IPv6 the loopback rules fall away: nothing like `route_localnet` exists, so `::1` and link-local addresses
//! are left to [`crate::proxy`] and kept out of destination NAT.

use super::expr::{ACCEPT, DROP, Expr, Meta, REG};
use super::{DELRULE, Family, GENERATION, NEWCHAIN, NEWRULE, NEWSET, NEWTABLE, TABLE, request};
use sys::netlink::{Batch, flags};

pub(super) const BRIDGES: &str = "bridges";
pub(super) const SUBNETS: &str = "subnets";
pub(super) const PAIRS: &str = "pairs";
/// Published on every address of the host.
pub(super) const ANYWHERE: &str = "published";
/// Published on one address of the host.
pub(super) const AT: &str = "published_at";

// Types of nft(8), by which it prints elements.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;
const TYPE_IFNAME: u32 = 41;
const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;

const HOOK_PREROUTING: u32 = 0;
const HOOK_FORWARD: u32 = 2;
const HOOK_OUTPUT: u32 = 3;
const HOOK_POSTROUTING: u32 = 4;

const IFNAMSIZ: usize = 16;

/// Puts the whole table of a family into a transaction: makes what is missing, replaces all rules, keeps all
/// elements. So that callers who do this at once end with one copy of each rule.
pub(super) fn load(batch: &mut Batch, family: Family) {
    request(batch, NEWTABLE, flags::CREATE, family).attr_str(1, TABLE);
    sets(batch, family);
    chain(batch, family, "spoofed", Some(("filter", HOOK_PREROUTING, -300)));
    chain(batch, family, "prerouting", Some(("nat", HOOK_PREROUTING, -100)));
    chain(batch, family, "output", Some(("nat", HOOK_OUTPUT, -100)));
    chain(batch, family, "forward", Some(("filter", HOOK_FORWARD, 0)));
    chain(batch, family, "postrouting", Some(("nat", HOOK_POSTROUTING, 100)));
    chain(batch, family, GENERATION, None);
    request(batch, DELRULE, 0, family).attr_str(1, TABLE);
    if family == Family::V4 {
        spoofed(batch);
    }
    destination_nat(batch, family, "prerouting");
    destination_nat(batch, family, "output");
    forward(batch, family);
    postrouting(batch, family);
}

fn sets(batch: &mut Batch, family: Family) {
    let (address, width) = match family {
        Family::V4 => (TYPE_IPV4, 4),
        Family::V6 => (TYPE_IPV6, 16),
    };
    let port = concat(&[TYPE_PROTOCOL, TYPE_PORT]);
    let target = (concat(&[address, TYPE_PORT]), width + 4);
    set(batch, family, BRIDGES, 0, (TYPE_IFNAME, IFNAMSIZ as u32), None);
    set(batch, family, PAIRS, 0, (concat(&[TYPE_IFNAME, TYPE_IFNAME]), 2 * IFNAMSIZ as u32), None);
    set(batch, family, SUBNETS, SET_INTERVAL, (address, width), None);
    set(batch, family, ANYWHERE, SET_MAP, (port, 8), Some(target));
    set(batch, family, AT, SET_MAP, (concat(&[address, TYPE_PROTOCOL, TYPE_PORT]), width + 8), Some(target));
}

/// nft(8) packs the types of a concatenation into six bits each.
fn concat(types: &[u32]) -> u32 {
    types.iter().fold(0, |all, t| (all << 6) | t)
}

fn set(batch: &mut Batch, family: Family, name: &str, flags: u32, key: (u32, u32), data: Option<(u32, u32)>) {
    request(batch, NEWSET, flags::CREATE, family).attr_str(1, TABLE).attr_str(2, name);
    batch.attr_be32(3, flags).attr_be32(4, key.0).attr_be32(5, key.1);
    if let Some((kind, len)) = data {
        batch.attr_be32(6, kind).attr_be32(7, len);
    }
    // The kernel wants some id of the set within the transaction.
    batch.attr_be32(10, 1 + name.len() as u32);
}

fn chain(batch: &mut Batch, family: Family, name: &str, hook: Option<(&str, u32, i32)>) {
    request(batch, NEWCHAIN, flags::CREATE, family).attr_str(1, TABLE).attr_str(3, name);
    if let Some((kind, hook, priority)) = hook {
        batch.nest(4, |b| {
            b.attr_be32(1, hook).attr(2, &priority.to_be_bytes());
        });
        batch.attr_be32(5, ACCEPT).attr_str(7, kind);
    }
}

fn rule(batch: &mut Batch, family: Family, chain: &str, inner: impl FnOnce(&mut Expr<'_>)) {
    request(batch, NEWRULE, flags::CREATE | flags::APPEND, family).attr_str(1, TABLE).attr_str(2, chain);
    batch.nest(4, |b| inner(&mut Expr(b)));
}

/// An interface's name as `meta` loads it: padded with zeros.
pub(super) fn ifname(name: &str) -> [u8; IFNAMSIZ] {
    let mut out = [0; IFNAMSIZ];
    for (to, from) in out.iter_mut().zip(name.bytes().take(IFNAMSIZ - 1)) {
        *to = from;
    }
    out
}

/// Offset of source and destination address in the network header.
fn addresses(family: Family) -> (u32, u32) {
    match family {
        Family::V4 => (12, 16),
        Family::V6 => (8, 24),
    }
}

fn spoofed(batch: &mut Batch) {
    for offset in [16, 12] {
        rule(batch, Family::V4, "spoofed", |e| {
            e.meta(Meta::IifName, REG).compare(REG, true, &ifname("lo"));
            e.network(offset, 1, REG).compare(REG, false, &[127]).verdict(DROP);
        });
    }
}

fn destination_nat(batch: &mut Batch, family: Family, chain: &str) {
    let (_, daddr) = addresses(family);
    let words = family.width() / 4;
    let not_proxied = |e: &mut Expr<'_>| {
        if family == Family::V6 {
            e.network(daddr, 16, REG).compare(REG, true, &std::net::Ipv6Addr::LOCALHOST.octets());
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

fn forward(batch: &mut Batch, family: Family) {
    const NEXT: u32 = REG + IFNAMSIZ as u32 / 4;
    rule(batch, family, "forward", |e| {
        e.meta(Meta::OifName, REG).in_set(BRIDGES, REG, true).verdict(ACCEPT);
    });
    rule(batch, family, "forward", |e| {
        e.established().verdict(ACCEPT);
    });
    rule(batch, family, "forward", |e| {
        e.translated().verdict(ACCEPT);
    });
    rule(batch, family, "forward", |e| {
        e.meta(Meta::IifName, REG).meta(Meta::OifName, NEXT).in_set(PAIRS, REG, false).verdict(ACCEPT);
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
