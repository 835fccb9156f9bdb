//! Limits of an endpoint, by the kernel's traffic control on its host's end (`tc(8)`), the same for both hulls.
//!
//! ```text
//! to the workload:    tbf on the host's end, which sends there
//! from the workload:  what the host's end receives is redirected to an ifb device of its own, and waits in that one's tbf
//! ```
//!
//! A link on an interface of the host (macvlan) has no host's end: there the limits are on the link itself, in the workload's
//! namespace where it is a container's, ifb device and all. A container with CAP_NET_ADMIN can lift them.
//!
//! The qdiscs die with their interface. The ifb device does not, and is removed by [`remove`] or [`sweep`].
//! Source: include/uapi/linux/{rtnetlink,pkt_sched,pkt_cls}.h.

use crate::{NetError, link};
use rustix::io::Errno;
use std::collections::HashSet;
use std::io;
use sys::netlink::{Batch, Socket, flags};
use types::{Attachment, Bandwidth};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TCA_EGRESS_REDIR: u32 = 1;
const TC_ACT_STOLEN: u32 = 4;
const TC_U32_TERMINAL: u8 = 1;
const TC_H_ROOT: u32 = 0xffff_ffff;
const TC_H_INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
const TC_LINKLAYER_ETHERNET: u8 = 1;
/// `ETH_P_ALL`, in network order, and the first priority.
const ALL_PACKETS: u32 = (1 << 16) | 0x0003_u16.to_be() as u32;

/// The least burst: half a packet as long as packets are within a host; longer ones are segmented.
const MIN_BURST: u64 = 32 << 10;
/// Packets wait for as long as this before they are dropped.
const QUEUE_MS: u64 = 50;

/// Names of ifb devices, with what follows in the name of the host's end.
const PREFIX: &str = "vl";

/// The name of the ifb device that goes with a host's end: `vlh…` for `vdh…`.
fn ifb_name(host_ifname: &str) -> String {
    format!("{PREFIX}{}", host_ifname.get(2..).unwrap_or_default())
}

/// Applies what an attachment says to its host's end.
pub(crate) fn apply(socket: &mut Socket, a: &Attachment) -> io::Result<()> {
    let Bandwidth { ingress, egress } = a.bandwidth;
    limit(socket, a, &a.host_ifname, (ingress, egress))
}

/// Applies what an attachment says to its link on an interface of the host, by a socket in the link's namespace.
pub(crate) fn apply_to_link(socket: &mut Socket, a: &Attachment, name: &str) -> io::Result<()> {
    let Bandwidth { ingress, egress } = a.bandwidth;
    limit(socket, a, name, (egress, ingress))
}

/// Limits what an interface sends, and what it receives.
fn limit(
    socket: &mut Socket,
    a: &Attachment,
    name: &str,
    (sent, received): (Option<u64>, Option<u64>),
) -> io::Result<()> {
    if a.bandwidth.is_unlimited() {
        return Ok(());
    }
    let index = index_of(socket, name)?;
    if let Some(rate) = sent {
        let mut batch = Batch::new();
        token_bucket(&mut batch, index, rate);
        link::run(socket, batch, &[])?;
    }
    let Some(rate) = received else { return Ok(()) };
    let name = ifb_name(&a.host_ifname);
    let mut batch = Batch::new();
    link::add_ifb(&mut batch, &name);
    // By which a sweep knows whose it is: in one system call, which no signal divides.
    link::label(&mut batch, &name, &a.bridge.name);
    link::run(socket, batch, &[Errno::EXIST])?;
    let ifb = index_of(socket, &name)?;
    let mut batch = Batch::new();
    token_bucket(&mut batch, ifb, rate);
    link::set_up(&mut batch, ifb);
    qdisc(&mut batch, index, INGRESS_HANDLE, TC_H_INGRESS).attr_str(TCA_KIND, "ingress");
    redirect(&mut batch, index, ifb);
    link::run(socket, batch, &[])
}

/// Whether there is an ifb device on the host: what its end receives is limited.
fn has_ifb(a: &Attachment) -> bool {
    if a.uplink.is_some() { a.bandwidth.ingress.is_some() } else { a.bandwidth.egress.is_some() }
}

/// Takes the limits from a host's end that stays.
pub(crate) fn lift(socket: &mut Socket, a: &Attachment) -> io::Result<()> {
    if a.bandwidth.is_unlimited() {
        return Ok(());
    }
    if let Ok(index) = index_of(socket, &a.host_ifname) {
        let mut batch = Batch::new();
        batch.request(RTM_DELQDISC, 0).fixed(&tcmsg(index, 0, TC_H_ROOT, 0));
        batch.request(RTM_DELQDISC, 0).fixed(&tcmsg(index, INGRESS_HANDLE, TC_H_INGRESS, 0));
        link::run(socket, batch, &[Errno::NOENT, Errno::INVAL, Errno::NODEV])?;
    }
    delete_ifb(socket, a)
}

/// Removes what does not die with the host's end. May be repeated.
pub(crate) fn remove(attachment: &Attachment) -> Result<(), NetError> {
    if !has_ifb(attachment) {
        return Ok(());
    }
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    delete_ifb(&mut socket, attachment).map_err(NetError::link("lift the limits of", &attachment.host_ifname))
}

fn delete_ifb(socket: &mut Socket, a: &Attachment) -> io::Result<()> {
    let mut batch = Batch::new();
    if has_ifb(a) {
        link::delete(&mut batch, &ifb_name(&a.host_ifname));
    }
    link::run(socket, batch, &[Errno::NODEV])
}

/// Removes the devices that the dead left of this bridge; answers how many.
pub(crate) fn sweep(socket: &mut Socket, bridge: &str, live: &HashSet<&str>) -> io::Result<usize> {
    let live: HashSet<String> = live.iter().map(|name| ifb_name(name)).collect();
    let mut batch = Batch::new();
    for dead in link::all(socket)? {
        if dead.kind == "ifb"
            && dead.alias == bridge
            && dead.name.starts_with(PREFIX)
            && !live.contains(&dead.name)
        {
            link::delete(&mut batch, &dead.name);
        }
    }
    let count = batch.len();
    link::run(socket, batch, &[Errno::NODEV])?;
    Ok(count)
}

fn index_of(socket: &Socket, name: &str) -> io::Result<u32> {
    Ok(rustix::net::netdevice::name_to_index(socket, name)?)
}

fn tcmsg(index: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut out = [0; 20];
    for (place, value) in [(4, index), (8, handle), (12, parent), (16, info)] {
        out[place..place + 4].copy_from_slice(&value.to_ne_bytes());
    }
    out
}

fn qdisc(batch: &mut Batch, index: u32, handle: u32, parent: u32) -> &mut Batch {
    batch.request(RTM_NEWQDISC, flags::CREATE | flags::REPLACE).fixed(&tcmsg(index, handle, parent, 0))
}

/// Lets so many bits a second pass, with bursts of 10 ms.
fn token_bucket(batch: &mut Batch, index: u32, bits: u64) {
    let rate = (bits / 8).max(1);
    let burst = (rate / 100).clamp(MIN_BURST, 64 << 20);
    let limit = (burst + rate.saturating_mul(QUEUE_MS) / 1000).min(u64::from(u32::MAX)) as u32;
    // struct tc_tbf_qopt: two tc_ratespec, limit, buffer, mtu.
    let mut options = [0; 36];
    options[1] = TC_LINKLAYER_ETHERNET;
    options[8..12].copy_from_slice(&u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
    options[24..28].copy_from_slice(&limit.to_ne_bytes());
    qdisc(batch, index, 0, TC_H_ROOT).attr_str(TCA_KIND, "tbf").nest(TCA_OPTIONS, |b| {
        b.attr(TCA_TBF_PARMS, &options);
        if rate > u64::from(u32::MAX) {
            b.attr(TCA_TBF_RATE64, &rate.to_ne_bytes());
        }
        b.attr_u32(TCA_TBF_BURST, burst as u32);
    });
}

/// Redirects all that an interface receives.
fn redirect(batch: &mut Batch, index: u32, to: u32) {
    let message = tcmsg(index, 0, INGRESS_HANDLE, ALL_PACKETS);
    batch.request(RTM_NEWTFILTER, flags::CREATE | flags::REPLACE).fixed(&message);
    // struct tc_u32_sel with one key that matches everything.
    let mut select = [0; 32];
    (select[0], select[2]) = (TC_U32_TERMINAL, 1);
    // struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex.
    let mut mirred = [0; 28];
    for (place, value) in [(8, TC_ACT_STOLEN), (20, TCA_EGRESS_REDIR), (24, to)] {
        mirred[place..place + 4].copy_from_slice(&value.to_ne_bytes());
    }
    batch.attr_str(TCA_KIND, "u32").nest(TCA_OPTIONS, |b| {
        b.attr(TCA_U32_SEL, &select).nest(TCA_U32_ACT, |b| {
            b.nest(1, |b| {
                b.attr_str(TCA_ACT_KIND, "mirred").nest(TCA_ACT_OPTIONS, |b| {
                    b.attr(TCA_MIRRED_PARMS, &mirred);
                });
            });
        });
    });
}
