//! The firewall: our own nf_tables tables, `ip dhow` and `ip6 dhow`, spoken to over nfnetlink.
//!
//! The rules are static ([`rules`]); what comes and goes are elements of sets and maps, so that publishing a port is
//! one small transaction, whatever else is published:
//!
//! | object | holds | changed by |
//! |---|---|---|
//! | set `bridges` | interface names of our bridges | [`install`] |
//! | set `subnets` | their subnets | [`install`] |
//! | set `pairs` | each bridge with itself: traffic within it | [`install`] |
//! | map `published` | protocol . port → address . port | [`publish`], [`withdraw`] |
//! | map `published_at` | address . protocol . port → address . port | [`publish`], [`withdraw`] |
//!
//! Nothing outside these two tables is touched: they live beside firewalld, ufw, Docker and hand-written rules.
//! In netfilter a packet passes only if *every* table lets it, so a `drop` elsewhere wins over our `accept`: with
//! Docker running, its `FORWARD` policy DROP also drops traffic of our bridges, until the administrator accepts it
//! in `DOCKER-USER`.

mod elements;
mod expr;
mod rules;

pub(crate) use elements::{Published, number};

use crate::NetError;
use rustix::io::Errno;
use std::io;
use sys::netlink::{Batch, Family as Netlink, Socket, errno};
use types::BridgePlan;

const TABLE: &str = "dhow";
const SUBSYS_NFTABLES: u8 = 10;
/// A chain without rules whose name says which version of the rules is loaded.
const GENERATION: &str = "rules-1";

const NEWTABLE: u16 = 0;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;

/// The two address families, each with a table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
    fn nfproto(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    /// Bytes of an address.
    fn width(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }
}

/// Type of an nf_tables message.
fn kind(message: u16) -> u16 {
    (u16::from(SUBSYS_NFTABLES) << 8) | message
}

/// Starts a request on an object of our table.
fn request(batch: &mut Batch, message: u16, flags: u16, family: Family) -> &mut Batch {
    batch.request(kind(message), flags).fixed(&[family.nfproto(), 0, 0, 0])
}

/// Opens a socket to nf_tables.
pub(crate) fn open() -> Result<Socket, NetError> {
    Socket::open(Netlink::Netfilter).map_err(refused("open a socket"))
}

fn refused(action: &'static str) -> impl FnOnce(io::Error) -> NetError {
    move |source| NetError::Firewall { action, source }
}

fn transact(socket: &mut Socket, inner: impl FnOnce(&mut Batch)) -> io::Result<()> {
    match socket.transact(SUBSYS_NFTABLES, inner)?.into_iter().next() {
        Some(refusal) => Err(refusal.into()),
        None => Ok(()),
    }
}

/// Whether our rules are loaded and know the bridge; one round trip to the kernel.
pub(crate) fn installed(socket: &mut Socket, plan: &BridgePlan) -> bool {
    let family = if plan.gateway6.is_some() { Family::V6 } else { Family::V4 };
    let mut batch = Batch::new();
    request(&mut batch, GETCHAIN, 0, family).attr_str(1, TABLE).attr_str(3, GENERATION);
    elements::ask_bridge(&mut batch, family, &plan.name);
    socket.query(batch, &mut |_| ()).is_ok()
}

/// Loads our rules and registers the bridge, in one transaction; may be repeated, also by many at once. Published
/// ports stay.
pub(crate) fn install(socket: &mut Socket, plan: &BridgePlan) -> Result<(), NetError> {
    transact(socket, |batch| {
        rules::load(batch, Family::V4);
        elements::register(batch, Family::V4, &plan.name, plan.gateway4.into(), plan.prefix4);
        if let Some(gateway) = plan.gateway6 {
            rules::load(batch, Family::V6);
            elements::register(batch, Family::V6, &plan.name, gateway.into(), plan.prefix6);
        }
    })
    .map_err(refused("load the rules"))
}

/// Takes a bridge out of the sets. What its sandboxes published goes with them.
pub(crate) fn uninstall(socket: &mut Socket, plan: &BridgePlan) -> Result<(), NetError> {
    let failed = || refused("remove a bridge");
    elements::unregister(socket, Family::V4, &plan.name, plan.gateway4.into(), plan.prefix4)
        .map_err(failed())?;
    match plan.gateway6 {
        Some(g) => {
            elements::unregister(socket, Family::V6, &plan.name, g.into(), plan.prefix6).map_err(failed())
        }
        None => Ok(()),
    }
}

/// Adds published ports, all or none.
pub(crate) fn publish(socket: &mut Socket, list: &[Published]) -> Result<(), NetError> {
    elements::publish(socket, list).map_err(refused("publish ports"))
}

/// Removes published ports that still lead where `list` says.
pub(crate) fn withdraw(socket: &mut Socket, list: &[Published]) -> Result<(), NetError> {
    elements::withdraw(socket, list).map_err(refused("withdraw published ports"))
}

/// All published ports of a family.
pub(crate) fn published_in(socket: &mut Socket, family: Family) -> Result<Vec<Published>, NetError> {
    elements::published_in(socket, family).map_err(refused("read published ports"))
}

/// Whether the table, map or element is not there.
pub(crate) fn is_absent(error: &NetError) -> bool {
    matches!(error, NetError::Firewall { source, .. } if errno(source) == Some(Errno::NOENT))
}

/// Whether nf_tables is missing in this kernel (or its NAT), rather than unwilling.
pub(crate) fn is_missing(error: &NetError) -> bool {
    matches!(error, NetError::Firewall { source, .. }
        if matches!(errno(source), Some(Errno::PROTONOSUPPORT | Errno::OPNOTSUPP | Errno::NOENT | Errno::INVAL | Errno::AFNOSUPPORT)))
}

#[cfg(test)]
pub(crate) fn delete_tables() {
    const DELTABLE: u16 = 2;
    let mut socket = open().unwrap();
    transact(&mut socket, |batch| {
        for family in [Family::V4, Family::V6] {
            request(batch, DELTABLE, 0, family).attr_str(1, TABLE);
        }
    })
    .unwrap();
}

#[cfg(test)]
pub(crate) fn rule_count(family: Family) -> usize {
    const GETRULE: u16 = 7;
    let mut batch = Batch::new();
    request(&mut batch, GETRULE, sys::netlink::flags::DUMP, family).attr_str(1, TABLE);
    let mut count = 0;
    open().unwrap().query(batch, &mut |_| count += 1).unwrap();
    count
}
