//! Tables, sets, chains and rules as requests of nf_tables: encoding only, what they say is for [`super::rules`] and
//! [`super::policy`].

use super::expr::{ACCEPT, Expr};
use super::{Family, NEWCHAIN, NEWRULE, NEWSET, NEWTABLE, TABLE, request};
use sys::netlink::{Batch, flags};

// Types of nft(8), by which it prints elements.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_ETHER: u32 = 9;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;
const TYPE_IFNAME: u32 = 41;

pub(super) const SET_INTERVAL: u32 = 0x4;
pub(super) const SET_MAP: u32 = 0x8;
pub(super) const SET_TIMEOUT: u32 = 0x10;
pub(super) const SET_EVAL: u32 = 0x20;
const SET_CONCAT: u32 = 0x80;

pub(super) const HOOK_PREROUTING: u32 = 0;
pub(super) const HOOK_INPUT: u32 = 1;
pub(super) const HOOK_FORWARD: u32 = 2;
pub(super) const HOOK_OUTPUT: u32 = 3;
pub(super) const HOOK_POSTROUTING: u32 = 4;

const IFNAMSIZ: usize = 16;
/// How many of the small registers an interface's name takes.
pub(super) const NAME_WORDS: u32 = IFNAMSIZ as u32 / 4;

/// One field of a key: its type for nft(8), and its bytes.
pub(super) type Field = (u32, u32);
pub(super) const NAME: Field = (TYPE_IFNAME, IFNAMSIZ as u32);
pub(super) const ETHER: Field = (TYPE_ETHER, 6);
pub(super) const PROTOCOL: Field = (TYPE_PROTOCOL, 1);
pub(super) const PORT: Field = (TYPE_PORT, 2);
pub(super) const ADDRESS4: Field = (TYPE_IPV4, 4);
pub(super) const ADDRESS6: Field = (TYPE_IPV6, 16);

/// Makes our table of that family, if it is not there.
pub(super) fn table(batch: &mut Batch, family: Family) {
    request(batch, NEWTABLE, flags::CREATE, family).attr_str(1, TABLE);
}

/// Makes a set, or with `data` a map.
pub(super) fn set(batch: &mut Batch, family: Family, name: &str, flags: u32, key: &[Field], data: &[Field]) {
    let ranges = flags & SET_INTERVAL != 0 && key.len() > 1;
    let flags = if ranges { flags | SET_CONCAT } else { flags };
    request(batch, NEWSET, flags::CREATE, family).attr_str(1, TABLE).attr_str(2, name);
    batch.attr_be32(3, flags).attr_be32(4, kind(key)).attr_be32(5, width(key));
    if !data.is_empty() {
        batch.attr_be32(6, kind(data)).attr_be32(7, width(data));
    }
    if ranges {
        // The kernel finds ranges of a concatenation field by field, and must know where each ends.
        batch.nest(9, |b| {
            b.nest(2, |b| {
                for (_, len) in key {
                    b.nest(1, |b| {
                        b.attr_be32(1, *len);
                    });
                }
            });
        });
    }
    // The kernel wants some id of the set within the transaction.
    batch.attr_be32(10, 1 + name.len() as u32);
}

/// nft(8) packs the types of a concatenation into six bits each.
fn kind(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |all, (t, _)| (all << 6) | t)
}

/// Each field of a concatenation begins a register.
fn width(fields: &[Field]) -> u32 {
    match fields {
        [(_, only)] => *only,
        many => many.iter().map(|(_, len)| len.next_multiple_of(4)).sum(),
    }
}

/// Makes a chain; with a hook, one that packets go through.
pub(super) fn chain(batch: &mut Batch, family: Family, name: &str, hook: Option<(&str, u32, i32)>) {
    request(batch, NEWCHAIN, flags::CREATE, family).attr_str(1, TABLE).attr_str(3, name);
    if let Some((kind, hook, priority)) = hook {
        batch.nest(4, |b| {
            b.attr_be32(1, hook).attr(2, &priority.to_be_bytes());
        });
        batch.attr_be32(5, ACCEPT).attr_str(7, kind);
    }
}

/// Appends a rule.
pub(super) fn rule(batch: &mut Batch, family: Family, chain: &str, inner: impl FnOnce(&mut Expr<'_>)) {
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
