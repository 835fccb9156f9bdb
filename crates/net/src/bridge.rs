//! The bridge that sandboxes share: made on first use, found on every other.
//!
//! ```text
//! ensure_bridge ── link there, up, labelled with this plan? ── rules loaded? ──yes──► done (three round trips)
//!                        │ no                                     │ no
//!                        └► link, addresses, sysctls, label       └► one nf_tables transaction
//! ```
//!
//! Every step may be repeated and may run at once in many processes; the label is the last, so a process that
//! dies half-way leaves a bridge that the next one completes.

use crate::link::Link;
use crate::{NetError, firewall, link, sysctl};
use rustix::io::Errno;
use std::net::IpAddr;
use sys::netlink::{Batch, Socket};
use types::BridgePlan;

/// Makes the bridge, its addresses and the static firewall rules, if they are not there.
///
/// Turns on `net.ipv4.ip_forward`, and IPv6 forwarding where the plan has an IPv6 address and the host has IPv6.
/// A kernel without nf_tables gets a bridge without NAT; published ports are then proxied.
pub fn ensure_bridge(plan: &BridgePlan) -> Result<(), NetError> {
    ensure_bridge_alone(plan, || Ok(()))
}

/// The same, where others may be about to use the same subnet: a bridge is made with `lock` held, which nobody needs who finds
/// his bridge.
pub fn ensure_bridge_alone<G>(
    plan: &BridgePlan,
    lock: impl FnOnce() -> std::io::Result<G>,
) -> Result<(), NetError> {
    let plan = &effective(plan);
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    let mut found = link::get(&mut socket, &plan.name).map_err(NetError::link("read bridge", &plan.name))?;
    let _held = match &found {
        Some(_) => None,
        None => {
            let held = lock().map_err(NetError::system("lock the subnets of this host"))?;
            found = link::get(&mut socket, &plan.name).map_err(NetError::link("read bridge", &plan.name))?;
            Some(held)
        }
    };
    let ready = found.as_ref().is_some_and(|l| l.up && l.alias == label(plan)) && forwarding(plan);
    if ready && firewall::open().is_ok_and(|mut rules| firewall::installed(&mut rules, plan)) {
        return Ok(());
    }
    let made = if ready { None } else { Some(make(&mut socket, plan, found)?) };
    match firewall::open().and_then(|mut rules| firewall::install(&mut rules, plan)) {
        Err(e) if firewall::is_missing(&e) && plan.internal => {
            return Err(NetError::InternalUnsupported { bridge: plan.name.clone(), source: Box::new(e) });
        }
        Err(e) if firewall::is_missing(&e) => {}
        done => done?,
    }
    let Some(index) = made else { return Ok(()) };
    let mut batch = Batch::new();
    link::set_alias(&mut batch, index, &label(plan));
    link::run(&mut socket, batch, &[]).map_err(NetError::link("label bridge", &plan.name))
}

/// Removes the bridge, and its name and subnet from the firewall. Ports still on it lose their network.
pub fn remove_bridge(plan: &BridgePlan) -> Result<(), NetError> {
    // First: with the link its subnet is free for others, whose place in the firewall must not be taken away again.
    match firewall::open().and_then(|mut rules| firewall::uninstall(&mut rules, plan)) {
        Err(e) if firewall::is_missing(&e) => {}
        done => done?,
    }
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    crate::endpoint::remove_link(&mut socket, &plan.name)
}

/// The plan without IPv6 where the host has none.
pub(crate) fn effective(plan: &BridgePlan) -> BridgePlan {
    let mut plan = plan.clone();
    if plan.gateway6.is_some() && !sysctl::has_ipv6() {
        plan.gateway6 = None;
    }
    plan
}

/// Makes and configures the bridge, and answers with its index.
fn make(socket: &mut Socket, plan: &BridgePlan, found: Option<Link>) -> Result<u32, NetError> {
    let mut found = found;
    if found.is_none() {
        refuse_taken(socket, plan)?;
        let mut batch = Batch::new();
        link::add_bridge(&mut batch, &plan.name, crate::mac_from_ipv4(plan.gateway4), plan.mtu);
        link::run(socket, batch, &[Errno::EXIST]).map_err(NetError::link("create bridge", &plan.name))?;
        found = link::get(socket, &plan.name).map_err(NetError::link("read bridge", &plan.name))?;
    }
    let index = match found {
        Some(found) if found.kind == "bridge" => found.index,
        Some(_) => return Err(not_a_bridge(plan)),
        None => return Err(NetError::link("find bridge", &plan.name)(Errno::NODEV.into())),
    };
    configure(socket, plan, index)?;
    Ok(index)
}

/// A subnet that lies elsewhere since it was chosen: another store's, while ours was down, or a network that the host was
/// connected to. A wider route is no obstacle, as ours is the more particular one.
fn refuse_taken(socket: &mut Socket, plan: &BridgePlan) -> Result<(), NetError> {
    let found = link::prefixes(socket).map_err(NetError::system("read the routes of this host"))?;
    for (address, prefix, index) in found {
        let ours = if address.is_ipv4() { plan.prefix4 } else { plan.prefix6 };
        // Addresses that the host has on an interface are routes to it, too.
        if prefix >= ours && holds(plan, address) {
            let interface = rustix::net::netdevice::index_to_name(&*socket, index).unwrap_or_default();
            let subnet = match address {
                IpAddr::V4(_) => format!("{}/{ours}", plan.gateway4),
                IpAddr::V6(_) => plan.gateway6.map(|g| format!("{g}/{ours}")).unwrap_or_default(),
            };
            return Err(NetError::SubnetTaken {
                bridge: plan.name.clone(),
                subnet,
                other: format!("{address}/{prefix}"),
                interface,
            });
        }
    }
    Ok(())
}

fn configure(socket: &mut Socket, plan: &BridgePlan, index: u32) -> Result<(), NetError> {
    let name = &plan.name;
    // Packets to 127.0.0.1:PORT of the host may leave by the bridge; the rules drop what comes the other way.
    sysctl::set(&format!("ipv4/conf/{name}/route_localnet"), "1")?;
    sysctl::set("ipv4/ip_forward", "1")?;
    if plan.gateway6.is_some() {
        // A sandbox must not turn its host's bridge into its client by router advertisements.
        sysctl::set(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        sysctl::set(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
        sysctl::set(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
        sysctl::forward_ipv6()?;
    } else if sysctl::has_ipv6() {
        // No link-local address either, by which its sandboxes would reach the host.
        sysctl::set(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
    }
    let mut batch = Batch::new();
    link::no_hidden_learning(&mut batch, name);
    // Where the kernel has no such option.
    let tolerated = [Errno::INVAL, Errno::OPNOTSUPP];
    link::run(socket, batch, &tolerated).map_err(NetError::link("configure bridge", name))?;
    let mut batch = Batch::new();
    link::add_address(&mut batch, index, plan.gateway4.into(), plan.prefix4);
    if let Some(gateway) = plan.gateway6 {
        link::add_address(&mut batch, index, gateway.into(), plan.prefix6);
    }
    link::set_up(&mut batch, index);
    link::run(socket, batch, &[Errno::EXIST]).map_err(NetError::link("configure bridge", name))
}

/// Other programs (and `sysctl --system` at any time) turn forwarding off.
fn forwarding(plan: &BridgePlan) -> bool {
    let on = |path| std::fs::read(path).is_ok_and(|v| v.first() == Some(&b'1'));
    on("/proc/sys/net/ipv4/ip_forward")
        && (plan.gateway6.is_none() || on("/proc/sys/net/ipv6/conf/all/forwarding"))
}

fn not_a_bridge(plan: &BridgePlan) -> NetError {
    let source =
        std::io::Error::new(std::io::ErrorKind::AlreadyExists, "an interface of that name is no bridge");
    NetError::link("use bridge", &plan.name)(source)
}

/// What a configured bridge carries as its alias (`ip link` shows it); one of another version is configured anew.
fn label(plan: &BridgePlan) -> String {
    let mut label = format!("dhow-2 {}/{} mtu {}", plan.gateway4, plan.prefix4, plan.mtu);
    if let Some(gateway) = plan.gateway6 {
        label.push_str(&format!(" {gateway}/{}", plan.prefix6));
    }
    // The rules are written anew when one of these changes.
    for (set, word) in
        [(plan.internal, "internal"), (plan.host_access, "host-access"), (plan.no_metadata, "no-metadata")]
    {
        if set {
            label.push_str(&format!(" {word}"));
        }
    }
    label
}

/// The index of a bridge that `ensure_bridge` made.
pub(crate) fn index_of(socket: &mut Socket, plan: &BridgePlan) -> Result<u32, NetError> {
    let found = link::get(socket, &plan.name).map_err(NetError::link("read bridge", &plan.name))?;
    found.map(|l| l.index).ok_or_else(|| NetError::link("find bridge", &plan.name)(Errno::NODEV.into()))
}

/// Whether an address lies in one of the bridge's subnets.
pub(crate) fn holds(plan: &BridgePlan, address: IpAddr) -> bool {
    match (address, plan.gateway6) {
        (IpAddr::V4(a), _) => crate::ipam::same4(a, plan.gateway4, plan.prefix4),
        (IpAddr::V6(a), Some(g)) => crate::ipam::same6(a, g, plan.prefix6),
        (IpAddr::V6(_), None) => false,
    }
}
