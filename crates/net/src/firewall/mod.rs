//! The firewall: our own nf_tables tables, spoken to over nfnetlink.
//!
//! Rules are static; what comes and goes are elements of sets and maps, so that each action is one small transaction,
//! whatever else there is:
//!
//! | table | rules | sets and maps hold | changed by |
//! |---|---|---|---|
//! | `ip dhow`, `ip6 dhow` | [`rules`]: NAT, isolation, the host's services | bridges with their subnets and options | [`install`] |
//! | | | published ports | [`publish`], [`withdraw`] |
//! | | | sandboxes with host access | [`enter`], [`leave`] |
//! | `bridge dhow` | [`policy`]: who may send what, egress to neighbours | ports with their addresses | [`enter`], [`leave`] |
//! | `inet dhow` | [`policy`]: egress to elsewhere | permitted destinations | [`enter`], [`leave`], [`permit`] |
//!
//! Nothing outside these tables is touched: they live beside firewalld, ufw, Docker and hand-written rules.
//! In netfilter a packet passes only if *every* table lets it, so a `drop` elsewhere wins over our `accept`: with
//! Docker running, its `FORWARD` policy DROP also drops traffic of our bridges, until the administrator accepts it
//! in `DOCKER-USER`.

mod element;
mod elements;
mod expr;
mod members;
mod policy;
mod rebuild;
mod rules;
mod sandboxes;
mod schema;

pub(crate) use elements::{Published, number};
pub(crate) use members::is_confined;
pub(crate) use rebuild::rebuild;
pub(crate) use sandboxes::{enter, held, is_entered, leave, permit, sweep};

use crate::{NetError, sysctl};
use expr::Refuse;
use rustix::io::Errno;
use std::io;
use sys::netlink::{Batch, Family as Netlink, Socket, errno};
use types::BridgePlan;

const TABLE: &str = "dhow";
/// The same, in bytes.
pub(crate) const NAME: &[u8; 4] = b"dhow";
const SUBSYS_NFTABLES: u8 = 10;
/// A chain without rules whose name says which version of the rules is loaded.
const GENERATION: &str = "rules-3";
/// The same in the tables of policies.
const POLICY_GENERATION: &str = "policy-2";

const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;
const GETGEN: u16 = 16;

/// Families of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
    /// IPv4 and IPv6 in one table.
    Inet,
    /// Frames on their way through a bridge.
    Bridge,
}

impl Family {
    /// `NFPROTO_IPV4` and so on.
    fn nfproto(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
            Self::Inet => 1,
            Self::Bridge => 7,
        }
    }

    /// Bytes of an IPv4 address, or else of an IPv6 address.
    fn width(self) -> u32 {
        if self == Self::V4 { 4 } else { 16 }
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
    Socket::open_as_ours(Netlink::Netfilter).map_err(refused("open a socket"))
}

fn refused(action: &'static str) -> impl FnOnce(io::Error) -> NetError {
    move |source| NetError::Firewall { action, source }
}

fn transact(socket: &mut Socket, inner: impl FnOnce(&mut Batch)) -> io::Result<()> {
    transact_at(socket, None, inner)
}

fn transact_at(
    socket: &mut Socket,
    generation: Option<u32>,
    inner: impl FnOnce(&mut Batch),
) -> io::Result<()> {
    match socket.transact_at(SUBSYS_NFTABLES, generation, inner)?.into_iter().next() {
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
    attempt(socket, |batch, refuse| {
        // A bridge without IPv6 addresses is guarded all the same: somebody may turn IPv6 on.
        for family in families() {
            rules::load(batch, family, refuse);
            elements::register(batch, family, plan);
        }
    })
    .map_err(refused("load the rules"))
}

/// The families that bridges may have addresses of.
fn families() -> impl Iterator<Item = Family> {
    std::iter::once(Family::V4).chain(Some(Family::V6).filter(|_| sysctl::has_ipv6()))
}

/// Carries out a transaction that loads rules: refusals that tell why, or without a word where the kernel cannot.
fn attempt(socket: &mut Socket, inner: impl Fn(&mut Batch, Refuse)) -> io::Result<()> {
    attempt_at(socket, None, inner)
}

/// The same, unless anybody changed any rules since this generation.
fn attempt_at(
    socket: &mut Socket,
    generation: Option<u32>,
    inner: impl Fn(&mut Batch, Refuse),
) -> io::Result<()> {
    match transact_at(socket, generation, |b| inner(b, Refuse::Tell)) {
        Err(e) if lacks(&e) => transact_at(socket, generation, |b| inner(b, Refuse::Drop)),
        done => done,
    }
}

/// Takes a bridge out of the sets. What its sandboxes published goes with them.
pub(crate) fn uninstall(socket: &mut Socket, plan: &BridgePlan) -> Result<(), NetError> {
    let failed = || refused("remove a bridge");
    let held = held(socket)?;
    sweep(socket, plan, &[], &held)?;
    for family in [Family::V4, Family::V6] {
        elements::unregister(socket, family, plan).map_err(failed())?;
    }
    Ok(())
}

/// Adds published ports, all or none.
pub(crate) fn publish(socket: &mut Socket, list: &[Published]) -> Result<(), NetError> {
    elements::publish(socket, list).map_err(refused("publish ports"))
}

/// Whether these published ports lead where `list` says.
pub(crate) fn are_published(socket: &mut Socket, list: &[Published]) -> bool {
    elements::those_there(socket, list).is_ok_and(|there| there.len() == list.len())
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
    matches!(error, NetError::Firewall { source, .. } if lacks(source))
}

fn lacks(source: &io::Error) -> bool {
    matches!(
        errno(source),
        Some(Errno::PROTONOSUPPORT | Errno::OPNOTSUPP | Errno::NOENT | Errno::INVAL | Errno::AFNOSUPPORT)
    )
}

#[cfg(test)]
pub(crate) use rules::count as count_rules;

/// Deletes our tables, as `nft flush ruleset` does.
#[cfg(test)]
pub(crate) fn delete_tables() {
    let mut socket = open().unwrap();
    for family in [Family::V4, Family::V6, Family::Inet, Family::Bridge] {
        transact(&mut socket, |batch| {
            schema::table(batch, family);
            request(batch, DELTABLE, 0, family).attr_str(1, TABLE);
        })
        .unwrap();
    }
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

/// How many flows of a family neighbours have asked for and may be answered.
#[cfg(test)]
pub(crate) fn answers_remembered(ip: Family) -> usize {
    let set = policy::sets_of(ip).answers;
    element::all_in(&mut open().unwrap(), Family::Bridge, set).unwrap().len()
}

/// Whether the tables of policies are there.
#[cfg(test)]
pub(crate) fn has_policies() -> bool {
    sandboxes::loaded(&mut open().unwrap())
}

/// Everything that our tables hold, but for the time that it stays, in a fixed order.
#[cfg(test)]
pub(crate) fn everything_held() -> Vec<String> {
    let found = rebuild::everything(&mut open().unwrap()).unwrap();
    let mut all: Vec<_> = found
        .iter()
        .map(|e| format!("{:?} {} {:?} {:?} {:?} {}", e.family, e.set, e.key, e.end, e.data, e.flags))
        .collect();
    all.sort();
    all
}
