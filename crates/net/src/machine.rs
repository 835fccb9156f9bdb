//! The interfaces of a microVM, seen from inside: its devices are there from power-on, so that a network that it is connected
//! to, or disconnected from, finds or leaves one. Which device is which, the MAC addresses say that the host gave them.
//!
//! Runs in the guest's agent. The host's half is in [`crate::endpoint`].

use crate::{NetError, endpoint, link};
use std::collections::HashMap;
use sys::netlink::{Batch, Socket};
use types::{Attachment, NetworkPlan, spare_mac};

/// Most spare devices that are looked for.
const MOST: usize = crate::MAX_INTERFACES;

/// Gives every device the name that belongs to it: the kernel counts them in an order of its own.
pub fn name_devices(plan: &NetworkPlan) -> Result<(), NetError> {
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    let mut wanted: HashMap<[u8; 6], String> =
        (0..MOST).map(|slot| (spare_mac(slot), format!("eth{slot}"))).collect();
    wanted.extend(plan.attachments().iter().map(|a| (a.mac, a.ifname.clone())));
    let links = link::all(&mut socket).map_err(NetError::system("list the interfaces"))?;
    let wrong = links.iter().filter_map(|l| {
        let name = wanted.get(l.mac.as_ref()?)?;
        (l.name != *name).then_some((l.index, name))
    });
    let (mut aside, mut right) = (Batch::new(), Batch::new());
    for (index, name) in wrong {
        // Another one may still have that name.
        link::rename(&mut aside, index, &format!("dev{index}"));
        link::rename(&mut right, index, name);
    }
    let renamed = link::run(&mut socket, aside, &[]).and_then(|()| link::run(&mut socket, right, &[]));
    renamed.map_err(NetError::system("name the interfaces"))
}

/// Configures the device of an attachment that the host has connected to its network, anew if it was before.
pub fn configure(attachment: &Attachment) -> Result<(), NetError> {
    let a = attachment;
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    let found = link::get(&mut socket, &a.ifname).map_err(NetError::link("find interface", &a.ifname))?;
    let found = found.ok_or_else(|| NetError::NoSpare { network: a.network_name.clone() })?;
    let mut batch = Batch::new();
    if found.mac != Some(a.mac) || found.mtu != a.bridge.mtu {
        // Of another network, which nobody told us to leave.
        link::flush_addresses(&mut socket, found.index)
            .map_err(NetError::link("clear interface", &a.ifname))?;
        link::set_mac(&mut batch, &a.ifname, a.mac);
        link::set_mtu(&mut batch, &a.ifname, a.bridge.mtu);
    }
    link::run(&mut socket, batch, &[]).map_err(NetError::link("prepare interface", &a.ifname))?;
    endpoint::configure_interface(&mut socket, a)
}

/// Takes everything from the device of an attachment.
pub fn rest(attachment: &Attachment) -> Result<(), NetError> {
    let name = &attachment.ifname;
    let rest = |socket: &mut Socket| {
        let Some(found) = link::get(socket, name)? else { return Ok(()) };
        link::flush_addresses(socket, found.index)?;
        let mut batch = Batch::new();
        link::down(&mut batch, name);
        link::run(socket, batch, &[])
    };
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    rest(&mut socket).map_err(NetError::link("give up interface", name))
}
