//! The rules for sandboxes that are not trusted to send what is theirs, or to go where they like: the tables
//! `inet dhow` and `bridge dhow`, loaded when the first such sandbox comes. For IPv4 (IPv6 alike, with its neighbour
//! discovery in the place of ARP):
//!
//! ```text
//! table bridge dhow:
//! chain ports        { type filter hook prerouting priority -250; }  # who may send what
//!     iifname != @guarded accept
//!     arp: iifname . ether saddr . arp saddr ip @own4 and iifname . arp saddr ether . arp saddr ip @own4 accept
//!     ip:  iifname . ether saddr . ip saddr @own4 accept
//!     drop                                                   # other addresses, VLANs, other protocols
//! chain neighbours   { type filter hook forward priority -250; }     # egress, within the bridge: without connections
//!     iifname != @confined accept
//!     ARP; TCP but its first packet; answers and errors of ICMP accept
//!     iifname . saddr . daddr . sport . dport @answers4 accept   # UDP that answers
//!     (permitted) accept
//!     drop
//! chain answers      { type filter hook forward priority -240; }     # of what `neighbours` let through
//!     oifname @confined oifname . daddr . saddr . dport . sport @answers4 update it, accept
//!     oifname @confined update @askers { iifname limit rate over 500/second } accept   # too many new ones
//!     oifname @confined update @answers4 { oifname . daddr . saddr . dport . sport timeout 30s }
//!
//! table inet dhow:
//! chain egress       { type filter hook prerouting priority mangle; }   # egress, beyond the bridge; before DNAT
//!     ip saddr != @confined4 accept
//!     ct state established,related accept
//!     (permitted) accept
//!     reject with icmpx admin-prohibited
//! ```
//!
//! *(permitted)* is `ip saddr . ip daddr . protocol . port` in one of two sets: `permitted4`, ranges of addresses that were
//! given as such, and `resolved4`, addresses of names for as long as these are valid. A protocol or port of 0 stands for any, and so
//! each set is asked three times. Source addresses can be believed since the chain `ports` has seen them.
//!
//! Connections within a bridge are not tracked: not every kernel can. A neighbour may open a connection to a confined
//! sandbox and is answered; that it can be told something thereby is no way out, since it had to ask.

use super::expr::{ACCEPT, DROP, Expr, Meta, REG, Refuse};
use super::rules::addresses;
use super::schema::{
    ADDRESS4, ADDRESS6, ETHER, HOOK_FORWARD, HOOK_PREROUTING, NAME, NAME_WORDS, PORT, PROTOCOL, SET_EVAL,
    SET_INTERVAL, SET_TIMEOUT, chain, rule, set, table,
};
use super::{DELRULE, Family, POLICY_GENERATION, TABLE, request};
use sys::netlink::Batch;

/// Ports of bridges that send only what is theirs.
pub(super) const GUARDED: &str = "guarded";
/// Ports under an egress policy.
pub(super) const CONFINED: &str = "confined";
/// How long what a neighbour's datagram asked for may be answered: as long as connection tracking waits.
const ANSWER_MILLIS: u64 = 30_000;
/// Who asks; and how many answers a second, of its new flows, one port has remembered. The set has room for 65535 flows of all
/// ports together: no port fills it alone.
const ASKERS: &str = "askers";
const ASKER_RATE: u64 = 500;
const ASKER_BURST: u32 = 1000;

/// The sets of one address family.
pub(super) struct Sets {
    /// Port, MAC and IP address that belong together.
    pub own: &'static str,
    /// Addresses under an egress policy.
    pub confined: &'static str,
    /// Where these may go.
    pub permitted: &'static str,
    /// Where these may go for now.
    pub resolved: &'static str,
    /// Flows of UDP that a neighbour has begun.
    pub answers: &'static str,
}

pub(super) const SETS4: Sets = Sets {
    own: "own4",
    confined: "confined4",
    permitted: "permitted4",
    resolved: "resolved4",
    answers: "answers4",
};
pub(super) const SETS6: Sets = Sets {
    own: "own6",
    confined: "confined6",
    permitted: "permitted6",
    resolved: "resolved6",
    answers: "answers6",
};

/// The sets of an address family.
pub(super) fn sets_of(ip: Family) -> &'static Sets {
    if ip == Family::V4 { &SETS4 } else { &SETS6 }
}

/// The sets of a table whose elements are ours to manage.
pub(super) fn names(family: Family) -> &'static [&'static str] {
    const INET: [&str; 6] =
        [SETS4.confined, SETS4.permitted, SETS4.resolved, SETS6.confined, SETS6.permitted, SETS6.resolved];
    const BRIDGE: [&str; 8] = [
        GUARDED,
        CONFINED,
        SETS4.own,
        SETS6.own,
        SETS4.permitted,
        SETS4.resolved,
        SETS6.permitted,
        SETS6.resolved,
    ];
    if family == Family::Bridge { &BRIDGE } else { &INET }
}

const IPS: [Family; 2] = [Family::V4, Family::V6];

/// Puts both tables into a transaction: makes what is missing, replaces all rules, keeps all elements.
pub(super) fn load(batch: &mut Batch, refuse: Refuse) {
    for family in [Family::Inet, Family::Bridge] {
        table(batch, family);
        IPS.iter().for_each(|ip| common_sets(batch, family, *ip));
        chain(batch, family, POLICY_GENERATION, None);
    }
    for ip in IPS {
        set(batch, Family::Inet, sets_of(ip).confined, 0, &[address(ip)], &[]);
        set(batch, Family::Bridge, sets_of(ip).own, 0, &[NAME, ETHER, address(ip)], &[]);
        let flow = [NAME, address(ip), address(ip), PORT, PORT];
        set(batch, Family::Bridge, sets_of(ip).answers, SET_TIMEOUT | SET_EVAL, &flow, &[]);
    }
    for ports in [GUARDED, CONFINED] {
        set(batch, Family::Bridge, ports, 0, &[NAME], &[]);
    }
    set(batch, Family::Bridge, ASKERS, SET_TIMEOUT | SET_EVAL, &[NAME], &[]);
    chain(batch, Family::Inet, "egress", Some(("filter", HOOK_PREROUTING, -150)));
    chain(batch, Family::Bridge, "ports", Some(("filter", HOOK_PREROUTING, -250)));
    chain(batch, Family::Bridge, "neighbours", Some(("filter", HOOK_FORWARD, -250)));
    chain(batch, Family::Bridge, "answers", Some(("filter", HOOK_FORWARD, -240)));
    for family in [Family::Inet, Family::Bridge] {
        request(batch, DELRULE, 0, family).attr_str(1, TABLE);
    }
    IPS.iter().for_each(|ip| egress(batch, *ip, refuse));
    ports(batch);
    neighbours(batch);
    IPS.iter().for_each(|ip| answers(batch, *ip));
}

fn address(ip: Family) -> (u32, u32) {
    if ip == Family::V4 { ADDRESS4 } else { ADDRESS6 }
}

fn common_sets(batch: &mut Batch, family: Family, ip: Family) {
    let key = [address(ip), address(ip), PROTOCOL, PORT];
    set(batch, family, sets_of(ip).permitted, SET_INTERVAL, &key, &[]);
    set(batch, family, sets_of(ip).resolved, SET_TIMEOUT, &key, &[]);
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const ETHER_TYPE: u32 = 12;
const ETHER_SOURCE: u32 = 6;

fn ether_type(ip: Family) -> [u8; 2] {
    if ip == Family::V4 { [0x08, 0x00] } else { [0x86, 0xdd] }
}

/// Goes on with packets of that address family alone.
fn of_family(e: &mut Expr<'_>, table: Family, ip: Family) {
    match table {
        Family::Bridge => e.link(ETHER_TYPE, 2, REG).compare(REG, false, &ether_type(ip)),
        _ => e.meta(Meta::NfProto, REG).compare(REG, false, &[ip.nfproto()]),
    };
}

fn of_protocol(e: &mut Expr<'_>, number: u8) {
    e.meta(Meta::L4Proto, REG).compare(REG, false, &[number]);
}

fn icmp(e: &mut Expr<'_>, ip: Family, kind: u8) {
    of_protocol(e, if ip == Family::V4 { 1 } else { 58 });
    e.transport(0, 1, REG).compare(REG, false, &[kind]);
}

/// *(permitted)*, see above.
fn permitted(batch: &mut Batch, family: Family, chain: &str, ip: Family) {
    let (saddr, daddr) = addresses(ip);
    let (width, words) = (ip.width(), ip.width() / 4);
    let (protocol, port) = (REG + 2 * words, REG + 2 * words + 1);
    for list in [sets_of(ip).permitted, sets_of(ip).resolved] {
        for (any_protocol, any_port) in [(false, false), (false, true), (true, true)] {
            rule(batch, family, chain, |e| {
                of_family(e, family, ip);
                e.network(saddr, width, REG).network(daddr, width, REG + words);
                match any_protocol {
                    true => e.constant(&[0; 4], protocol),
                    false => e.meta(Meta::L4Proto, protocol),
                };
                match any_port {
                    true => e.constant(&[0; 4], port),
                    false => e.destination_port(port),
                };
                e.in_set(list, REG, false).verdict(ACCEPT);
            });
        }
    }
}

fn egress(batch: &mut Batch, ip: Family, refuse: Refuse) {
    let (saddr, daddr) = addresses(ip);
    let inet = Family::Inet;
    rule(batch, inet, "egress", |e| {
        of_family(e, inet, ip);
        e.network(saddr, ip.width(), REG).in_set(sets_of(ip).confined, REG, true).verdict(ACCEPT);
    });
    rule(batch, inet, "egress", |e| {
        of_family(e, inet, ip);
        e.established().verdict(ACCEPT);
    });
    if ip == Family::V6 {
        // Neighbour discovery with this host and, where bridged packets come by here (br_netfilter), with neighbours: not
        // one that is routed on.
        for kind in [135, 136] {
            rule(batch, inet, "egress", |e| {
                of_family(e, inet, ip);
                icmp(e, ip, kind);
                e.network(daddr, 2, REG).compare(REG, false, &[0xff, 0x02]).verdict(ACCEPT);
            });
            rule(batch, inet, "egress", |e| {
                of_family(e, inet, ip);
                icmp(e, ip, kind);
                e.destination_is_local().verdict(ACCEPT);
            });
            rule(batch, inet, "egress", |e| {
                of_family(e, inet, ip);
                icmp(e, ip, kind);
                e.destination_is_near().verdict(ACCEPT);
            });
        }
    }
    permitted(batch, inet, "egress", ip);
    rule(batch, inet, "egress", |e| {
        of_family(e, inet, ip);
        e.refuse(inet, refuse);
    });
}

/// Port, MAC address and IP address must be one of the sandbox's triples.
fn owned(e: &mut Expr<'_>, ip: Family, mac: impl FnOnce(&mut Expr<'_>, u32), at: u32, not: bool) {
    e.meta(Meta::IifName, REG);
    mac(e, REG + NAME_WORDS);
    e.network(at, ip.width(), REG + NAME_WORDS + 2);
    e.in_set(sets_of(ip).own, REG, not);
}

fn by_frame(e: &mut Expr<'_>, reg: u32) {
    e.link(ETHER_SOURCE, 6, reg);
}

fn ports(batch: &mut Batch) {
    const BRIDGE: Family = Family::Bridge;
    let chain = "ports";
    rule(batch, BRIDGE, chain, |e| {
        e.meta(Meta::IifName, REG).in_set(GUARDED, REG, true).verdict(ACCEPT);
    });
    rule(batch, BRIDGE, chain, |e| {
        // Ethernet and IPv4; both the frame and what it says must be the sender's.
        const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
        e.link(ETHER_TYPE, 2, REG).compare(REG, false, &[0x08, 0x06]);
        e.network(0, 6, REG).compare(REG, false, &KIND);
        owned(e, Family::V4, by_frame, 14, false);
        let said = |e: &mut Expr<'_>, reg| {
            e.network(8, 6, reg);
        };
        owned(e, Family::V4, said, 14, false);
        e.verdict(ACCEPT);
    });
    rule(batch, BRIDGE, chain, |e| {
        of_family(e, BRIDGE, Family::V4);
        owned(e, Family::V4, by_frame, 12, false);
        e.verdict(ACCEPT);
    });
    ports6(batch);
    rule(batch, BRIDGE, chain, |e| {
        e.verdict(DROP);
    });
}

/// IPv6 on guarded ports: no router advertisements and redirects, neighbour discovery about oneself.
fn ports6(batch: &mut Batch) {
    const BRIDGE: Family = Family::Bridge;
    const SIX: Family = Family::V6;
    /// Of the target in a neighbour solicitation or advertisement: the network header is 40 bytes, if nothing is between.
    const TARGET: u32 = 8;
    let chain = "ports";
    let about = |e: &mut Expr<'_>, not: bool| {
        e.meta(Meta::IifName, REG).link(ETHER_SOURCE, 6, REG + NAME_WORDS);
        e.transport(TARGET, 16, REG + NAME_WORDS + 2).in_set(SETS6.own, REG, not);
    };
    for kind in [134, 137] {
        rule(batch, BRIDGE, chain, |e| {
            of_family(e, BRIDGE, SIX);
            icmp(e, SIX, kind);
            e.verdict(DROP);
        });
    }
    rule(batch, BRIDGE, chain, |e| {
        of_family(e, BRIDGE, SIX);
        icmp(e, SIX, 136);
        about(e, true);
        e.verdict(DROP);
    });
    // Before it has an address, it asks whether somebody has it, and joins groups.
    let nobody = |e: &mut Expr<'_>| {
        of_family(e, BRIDGE, SIX);
        e.network(8, 16, REG).compare(REG, false, &[0; 16]);
    };
    rule(batch, BRIDGE, chain, |e| {
        nobody(e);
        icmp(e, SIX, 135);
        about(e, false);
        e.verdict(ACCEPT);
    });
    rule(batch, BRIDGE, chain, |e| {
        nobody(e);
        icmp(e, SIX, 143);
        e.verdict(ACCEPT);
    });
    // The egress policy knows global addresses; by a link-local one, it may do no more than neighbour discovery.
    let confined_link_local = |e: &mut Expr<'_>| {
        of_family(e, BRIDGE, SIX);
        e.meta(Meta::IifName, REG).in_set(CONFINED, REG, false);
        e.network(8, 2, REG).mask(REG, &[0xff, 0xc0]).compare(REG, false, &[0xfe, 0x80]);
    };
    for kind in [133, 135, 136, 143] {
        rule(batch, BRIDGE, chain, |e| {
            confined_link_local(e);
            icmp(e, SIX, kind);
            owned(e, SIX, by_frame, 8, false);
            e.verdict(ACCEPT);
        });
    }
    rule(batch, BRIDGE, chain, |e| {
        confined_link_local(e);
        e.verdict(DROP);
    });
    rule(batch, BRIDGE, chain, |e| {
        of_family(e, BRIDGE, SIX);
        owned(e, SIX, by_frame, 8, false);
        e.verdict(ACCEPT);
    });
}

fn neighbours(batch: &mut Batch) {
    const BRIDGE: Family = Family::Bridge;
    let chain = "neighbours";
    rule(batch, BRIDGE, chain, |e| {
        e.meta(Meta::IifName, REG).in_set(CONFINED, REG, true).verdict(ACCEPT);
    });
    rule(batch, BRIDGE, chain, |e| {
        e.link(ETHER_TYPE, 2, REG).compare(REG, false, &[0x08, 0x06]).verdict(ACCEPT);
    });
    for ip in IPS {
        rule(batch, BRIDGE, chain, |e| {
            // All that has not SYN without ACK.
            of_family(e, BRIDGE, ip);
            of_protocol(e, TCP);
            e.transport(13, 1, REG).mask(REG, &[0x12]).compare(REG, true, &[0x02]).verdict(ACCEPT);
        });
        // Answers to echo requests, errors; on IPv6 neighbour discovery.
        let types: &[u8] = if ip == Family::V4 { &[0, 3, 11, 12] } else { &[129, 1, 2, 3, 4, 135, 136] };
        for kind in types {
            rule(batch, BRIDGE, chain, |e| {
                of_family(e, BRIDGE, ip);
                icmp(e, ip, *kind);
                e.verdict(ACCEPT);
            });
        }
        rule(batch, BRIDGE, chain, |e| {
            flow(e, ip, true);
            e.in_set(sets_of(ip).answers, REG, false).verdict(ACCEPT);
        });
        permitted(batch, BRIDGE, chain, ip);
    }
    rule(batch, BRIDGE, chain, |e| {
        e.verdict(DROP);
    });
}

fn answers(batch: &mut Batch, ip: Family) {
    let set = sets_of(ip).answers;
    let asks = |e: &mut Expr<'_>| {
        e.meta(Meta::OifName, REG).in_set(CONFINED, REG, false);
        flow(e, ip, false);
    };
    rule(batch, Family::Bridge, "answers", |e| {
        asks(e);
        e.in_set(set, REG, false).remember(set, REG, ANSWER_MILLIS).verdict(ACCEPT);
    });
    rule(batch, Family::Bridge, "answers", |e| {
        asks(e);
        e.meta(Meta::IifName, REG);
        e.exceeds(ASKERS, REG, ASKER_RATE, ASKER_BURST, ANSWER_MILLIS).verdict(ACCEPT);
    });
    rule(batch, Family::Bridge, "answers", |e| {
        asks(e);
        e.remember(set, REG, ANSWER_MILLIS);
    });
}

/// Loads what tells a flow of UDP apart, as its confined end sees it: of a packet that it sends, or that it gets.
fn flow(e: &mut Expr<'_>, ip: Family, sends: bool) {
    let (saddr, daddr) = addresses(ip);
    let words = ip.width() / 4;
    of_family(e, Family::Bridge, ip);
    of_protocol(e, UDP);
    let (port, own, other) =
        if sends { (Meta::IifName, (saddr, 0), (daddr, 2)) } else { (Meta::OifName, (daddr, 2), (saddr, 0)) };
    e.meta(port, REG).network(own.0, ip.width(), REG + NAME_WORDS);
    e.network(other.0, ip.width(), REG + NAME_WORDS + words);
    e.transport(own.1, 2, REG + NAME_WORDS + 2 * words);
    e.transport(other.1, 2, REG + NAME_WORDS + 2 * words + 1);
}
