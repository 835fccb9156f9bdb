//! Removing what the dead left: after a crash, an interface or a published port may outlive its sandbox.

use crate::firewall::{self, Family};
use crate::{NetError, bandwidth, bridge, ipam, link};
use rustix::io::Errno;
use std::collections::HashSet;
use sys::netlink::{Batch, Socket};
use types::{Attachment, BridgePlan};

/// What [`sweep`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Interfaces on the host.
    pub links: usize,
    /// Rules of published ports.
    pub ports: usize,
    /// Elements of sandboxes' policies.
    pub policies: usize,
}

/// Removes from this bridge the interfaces, and from the firewall the published ports leading into its subnets and the
/// policies of its sandboxes, that belong to no live attachment. Other bridges, such as those of another store, are not touched.
///
/// `live` is asked after the kernel has been read. So a sandbox that starts meanwhile is safe, as long as its lease
/// is recorded before its [`crate::attach`].
///
/// Where `live` cannot tell, it answers with none, and nothing is removed.
pub fn sweep<L: Into<Option<Vec<Attachment>>>>(
    plan: &BridgePlan,
    live: impl FnOnce() -> L,
) -> Result<Swept, NetError> {
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    let reading = || NetError::link("read the ports of bridge", &plan.name);
    let links = match link::get(&mut socket, &plan.name).map_err(reading())? {
        Some(bridge) => link::ports(&mut socket, bridge.index).map_err(reading())?,
        None => Vec::new(),
    };
    let mut rules = match firewall::open() {
        Err(e) if firewall::is_missing(&e) => None,
        opened => Some(opened?),
    };
    let mut published = Vec::new();
    let mut held = None;
    if let Some(rules) = &mut rules {
        held = match firewall::held(rules) {
            Err(e) if firewall::is_missing(&e) => None,
            done => Some(done?),
        };
        published = all_published(rules)?;
    }

    let live: Vec<_> = live().into().ok_or(NetError::Unknown)?;
    let names: HashSet<&str> = live.iter().map(|a| a.host_ifname.as_str()).collect();
    let ports: HashSet<_> =
        live.iter().flat_map(|a| a.ports.iter().filter_map(|b| firewall::Published::of(b, a))).collect();

    let mut batch = Batch::new();
    for dead in links.iter().filter(|l| ipam::is_host_ifname(&l.name) && !names.contains(l.name.as_str())) {
        link::delete(&mut batch, &dead.name);
    }
    let mut swept = Swept { links: batch.len(), ..Swept::default() };
    link::run(&mut socket, batch, &[Errno::NODEV]).map_err(NetError::link("sweep bridge", &plan.name))?;
    swept.links += bandwidth::sweep(&mut socket, &plan.name, &names)
        .map_err(NetError::link("sweep the limits of bridge", &plan.name))?;
    published.retain(|p| bridge::holds(plan, p.target) && !ports.contains(p));
    swept.ports = published.len();
    if let Some(rules) = &mut rules {
        firewall::withdraw(rules, &published)?;
        if let Some(held) = &held {
            swept.policies = firewall::sweep(rules, plan, &live, held)?;
        }
    }
    Ok(swept)
}

/// Removes published ports that lead to nobody, whosever they were: no bridge with an interface on it has their target in
/// its subnet. Answers how many.
///
/// [`sweep`] removes what a store's own dead left. A store whose files are gone has no command that would call it, and its rules
/// would lead a port of this host astray that the kernel has long since given to another process.
pub fn sweep_forsaken() -> Result<usize, NetError> {
    let mut rules = match firewall::open() {
        Err(e) if firewall::is_missing(&e) => return Ok(0),
        opened => opened?,
    };
    // Read first: who publishes has put its interface on a bridge before.
    let mut published = all_published(&mut rules)?;
    if published.is_empty() {
        return Ok(0);
    }
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    let links = link::all(&mut socket).map_err(NetError::system("read the interfaces of this host"))?;
    let inhabited: HashSet<u32> = links.iter().map(|l| l.master).filter(|m| *m != 0).collect();
    let prefixes =
        link::prefixes(&mut socket).map_err(NetError::system("read the addresses of this host"))?;
    published.retain(|p| {
        !prefixes.iter().any(|&(address, prefix, index)| {
            inhabited.contains(&index) && ipam::same(p.target, address, prefix)
        })
    });
    firewall::withdraw(&mut rules, &published)?;
    Ok(published.len())
}

/// Those of both families; none where the kernel lacks what leads them.
pub(crate) fn all_published(rules: &mut Socket) -> Result<Vec<firewall::Published>, NetError> {
    let mut published = Vec::new();
    for family in [Family::V4, Family::V6] {
        match firewall::published_in(rules, family) {
            Err(e) if firewall::is_missing(&e) => {}
            done => published.extend(done?),
        }
    }
    Ok(published)
}
