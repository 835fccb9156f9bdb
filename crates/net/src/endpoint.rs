//! One sandbox's place on a bridge: a veth pair, with its peer made inside the sandbox's namespace at once.
//!
//! The host's end is a port of the bridge. Nothing removes the pair when a sandbox ends in peace: it dies with the
//! namespace, and removing it here would wait for the kernel's RCU grace periods. [`fn@crate::sweep`] is for what
//! is left after an accident.

use crate::{NetError, bandwidth, bridge, firewall, link, macvlan, publish, sysctl};
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};
use sys::netlink::{Batch, Family, Socket, errno};
use sys::netns::within;
use types::{Attachment, Egress, NetworkPlan};

const ENTER: &str = "work in the sandbox's network namespace";

/// Connects a namespace to the bridge, which [`crate::ensure_bridge`] made: a veth pair, its end inside named and
/// with its MAC, up, without addresses until [`configure_inside`].
pub fn attach(attachment: &Attachment, netns: BorrowedFd<'_>) -> Result<(), NetError> {
    attach_with(attachment, netns, &|_| Ok(()))
}

/// The same for a namespace that runs already: its end inside is configured before the link is on the bridge, so that
/// [`is_attached`] means both.
pub fn connect(attachment: &Attachment, netns: BorrowedFd<'_>) -> Result<(), NetError> {
    attach_with(attachment, netns, &|inside| {
        within(netns, || configure_interface(inside, attachment)).map_err(NetError::system(ENTER))?
    })
}

fn attach_with(
    attachment: &Attachment,
    netns: BorrowedFd<'_>,
    configure: &dyn Fn(&mut Socket) -> Result<(), NetError>,
) -> Result<(), NetError> {
    if let Some(uplink) = &attachment.uplink {
        refuse_policy(attachment)?;
        return configure(&mut macvlan::attach(attachment, uplink, netns)?);
    }
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    let index = bridge::index_of(&mut socket, &attachment.bridge)?;
    let a = attachment;
    firewall::enter(a)?;
    let connect = |socket: &mut Socket| {
        let mut batch = Batch::new();
        link::add_veth(&mut batch, &a.host_ifname, netns, &a.ifname, a.mac, a.bridge.mtu);
        if sysctl::has_ipv6() {
            link::no_ipv6_address(&mut batch, &a.host_ifname);
        }
        link::run(socket, batch, &[])?;
        // Both ends come up before the port joins the bridge, and are settled: a port with its carrier forwards at
        // once, and one that gets it later loses the first packets of the sandbox, which cost it a second each.
        let mut inside = Socket::open_in(Family::Route, netns)?;
        let mut batch = Batch::new();
        link::up(&mut batch, &a.ifname);
        link::run(&mut inside, batch, &[])?;
        let mut batch = Batch::new();
        link::up(&mut batch, &a.host_ifname);
        link::run(socket, batch, &[])?;
        inside.settle_link(&a.ifname);
        Ok(inside)
    };
    let done = match connect(&mut socket) {
        // The namespace of the sandbox's last run is still dying, and the link with it.
        Err(e) if errno(&e) == Some(Errno::EXIST) => remove_link(&mut socket, &a.host_ifname)
            .map_err(std::io::Error::other)
            .and_then(|()| connect(&mut socket)),
        done => done,
    };
    let done = done.map_err(NetError::link("create veth", &a.host_ifname)).and_then(|mut inside| {
        configure(&mut inside)?;
        join_bridge(&mut socket, a, index).map_err(NetError::link("connect veth", &a.host_ifname))
    });
    entered(a, done)
}

/// Whether an interface that was attached is a port of its bridge still. On an interface of the host it has no end here that
/// could tell.
pub fn is_attached(attachment: &Attachment) -> bool {
    let a = attachment;
    let look = || {
        let mut socket = link::open()?;
        let mut find = |name: &str| link::get(&mut socket, name);
        Ok::<_, std::io::Error>((find(&a.bridge.name)?, find(&a.host_ifname)?))
    };
    match look() {
        _ if a.uplink.is_some() => true,
        Ok((Some(bridge), Some(port))) => port.master == bridge.index,
        _ => false,
    }
}

/// Takes away what a sandbox has on bridges beyond its plan: somebody died while it was disconnected. Taps stay, as its
/// machine holds them.
pub fn disconnect_others(id: &str, plan: &NetworkPlan) -> Result<(), NetError> {
    let reading = || NetError::system("list the interfaces of this host");
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    let own: Vec<String> = (0..crate::MAX_INTERFACES).map(|slot| crate::host_ifname(id, slot)).collect();
    let mut batch = Batch::new();
    for other in link::all(&mut socket).map_err(reading())? {
        let planned = plan.attachments().iter().any(|a| a.host_ifname == other.name);
        if planned || other.master == 0 || !own.contains(&other.name) {
            continue;
        }
        if other.kind == "veth" {
            link::delete(&mut batch, &other.name);
        } else {
            link::enslave(&mut batch, &other.name, 0);
            link::down(&mut batch, &other.name);
        }
    }
    link::run(&mut socket, batch, &[Errno::NODEV]).map_err(NetError::system("disconnect what is not planned"))
}

/// What a sandbox sends by an interface of the host's passes none of our rules: a policy there would be a promise only.
fn refuse_policy(a: &Attachment) -> Result<(), NetError> {
    match a.egress {
        Egress::All => Ok(()),
        Egress::Only(_) => Err(NetError::EgressOnUplink { network: a.network_name.clone() }),
    }
}

/// Takes the sandbox's policy back if it did not get its interface.
fn entered<T>(a: &Attachment, done: Result<T, NetError>) -> Result<T, NetError> {
    if done.is_err() {
        // What is left is swept.
        let _ = firewall::leave(std::iter::once(a));
    }
    done
}

/// Connects a virtual machine to the bridge: a tap device that is gone when its descriptor is. The machine gives its
/// interface the attachment's MAC, and runs [`configure_inside`] itself.
pub fn attach_tap(attachment: &Attachment) -> Result<OwnedFd, NetError> {
    if let Some(uplink) = &attachment.uplink {
        refuse_policy(attachment)?;
        return macvlan::attach_tap(attachment, uplink);
    }
    let a = attachment;
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    let index = bridge::index_of(&mut socket, &a.bridge)?;
    firewall::enter(a)?;
    let connect = |socket: &mut Socket| {
        let tap = sys::tap::open(&a.host_ifname)?;
        raise_tap(socket, a, index)?;
        Ok(tap)
    };
    entered(a, connect(&mut socket).map_err(NetError::link("create tap", &a.host_ifname)))
}

/// A tap device for an interface that is on no network yet, see [`join_tap`].
pub fn spare_tap(id: &str, slot: usize) -> Result<OwnedFd, NetError> {
    let name = crate::host_ifname(id, slot);
    sys::tap::open(&name).map_err(NetError::link("create tap", &name))
}

/// Connects a virtual machine's tap device that is there to the bridge, which [`crate::ensure_bridge`] made.
pub fn join_tap(attachment: &Attachment) -> Result<(), NetError> {
    let a = attachment;
    if a.uplink.is_some() {
        return Err(NetError::NotLive { network: a.network_name.clone() });
    }
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    let index = bridge::index_of(&mut socket, &a.bridge)?;
    firewall::enter(a)?;
    let done = match raise_tap(&mut socket, a, index) {
        Err(e) if errno(&e) == Some(Errno::NODEV) => {
            Err(NetError::NoSpare { network: a.network_name.clone() })
        }
        done => done.map_err(NetError::link("connect tap", &a.host_ifname)),
    };
    entered(a, done)
}

/// Brings a tap device up and makes it a port of the bridge with this index.
fn raise_tap(socket: &mut Socket, a: &Attachment, index: u32) -> std::io::Result<()> {
    let mut batch = Batch::new();
    if sysctl::has_ipv6() {
        link::no_ipv6_address(&mut batch, &a.host_ifname);
    }
    link::set_mtu(&mut batch, &a.host_ifname, a.bridge.mtu);
    link::up(&mut batch, &a.host_ifname);
    link::run(socket, batch, &[])?;
    join_bridge(socket, a, index)
}

/// Takes a tap device from its bridge; its other end stays where it is. May be repeated.
pub fn leave_tap(attachment: &Attachment) -> Result<(), NetError> {
    let name = &attachment.host_ifname;
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    let mut batch = Batch::new();
    link::enslave(&mut batch, name, 0);
    link::down(&mut batch, name);
    let left = link::run(&mut socket, batch, &[Errno::NODEV]);
    left.and_then(|()| bandwidth::lift(&mut socket, attachment))
        .map_err(NetError::link("disconnect tap", name))?;
    leave(std::slice::from_ref(attachment)).map(drop)
}

/// Removes the link of a namespace to its network, both ends of it. May be repeated.
pub fn unlink(attachment: &Attachment, netns: BorrowedFd<'_>) -> Result<(), NetError> {
    if attachment.uplink.is_some() {
        return macvlan::unlink(attachment, netns);
    }
    bandwidth::remove(attachment)?;
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    remove_link(&mut socket, &attachment.host_ifname)?;
    leave(std::slice::from_ref(attachment)).map(drop)
}

/// Makes the host's end, which is up, a port of the bridge with this index.
fn join_bridge(socket: &mut Socket, a: &Attachment, index: u32) -> std::io::Result<()> {
    bandwidth::apply(socket, a)?;
    socket.settle_link(&a.host_ifname);
    let mut batch = Batch::new();
    link::enslave(&mut batch, &a.host_ifname, index);
    if sysctl::bridges_filter() {
        // br_netfilter translates addresses while it bridges, so what a sandbox sends to its own published port
        // never reaches the host's routing: it has to go back out of the port by which it came.
        link::hairpin(&mut batch, &a.host_ifname);
    }
    link::run(socket, batch, &[])?;
    socket.settle_link(&a.bridge.name);
    Ok(())
}

/// Configures the interfaces of the namespace that the calling thread is in: loopback, and what the plan says.
/// Not for [`NetworkPlan::Host`] and [`NetworkPlan::Container`], which have no namespace of their own to configure:
/// these do nothing.
pub fn configure_inside(plan: &NetworkPlan) -> Result<(), NetError> {
    if matches!(plan, NetworkPlan::Host | NetworkPlan::Container(_)) {
        return Ok(());
    }
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    let mut batch = Batch::new();
    link::loopback_up(&mut batch);
    link::run(&mut socket, batch, &[]).map_err(NetError::link("bring up", "lo"))?;
    plan.attachments().iter().try_for_each(|a| configure_interface(&mut socket, a))
}

/// Configures one interface of a namespace that runs already: addresses, and the default route if it leads there.
pub fn configure_in(attachment: &Attachment, netns: BorrowedFd<'_>) -> Result<(), NetError> {
    let configure = || configure_interface(&mut link::open().map_err(NetError::system(ENTER))?, attachment);
    within(netns, configure).map_err(NetError::system(ENTER))?
}

pub(crate) fn configure_interface(socket: &mut Socket, a: &Attachment) -> Result<(), NetError> {
    let mut batch = Batch::new();
    let index = rustix::net::netdevice::name_to_index(&*socket, &a.ifname)
        .map_err(|e| NetError::link("find interface", &a.ifname)(e.into()))?;
    link::add_address(&mut batch, index, a.ipv4.into(), a.bridge.prefix4);
    let ipv6 = a.ipv6.zip(a.bridge.gateway6).filter(|_| sysctl::has_ipv6());
    if let Some((address, _)) = ipv6 {
        // Routes and addresses are the engine's to give, and not any neighbour's.
        sysctl::set(&format!("ipv6/conf/{}/accept_ra", a.ifname), "0")?;
        link::add_address(&mut batch, index, address.into(), a.bridge.prefix6);
    } else if sysctl::has_ipv6() {
        // Nor a link-local address, by which a neighbour would reach what listens everywhere (CVE-2024-32473).
        sysctl::set(&format!("ipv6/conf/{}/disable_ipv6", a.ifname), "1")?;
    }
    link::set_up(&mut batch, index);
    if a.default_route {
        link::add_default_route(&mut batch, index, a.bridge.gateway4.into());
        if let Some((_, gateway)) = ipv6 {
            link::add_default_route(&mut batch, index, gateway.into());
        }
    }
    link::run(socket, batch, &[]).map_err(NetError::link("configure interface", &a.ifname))
}

/// Keeps a namespace from passing packets on between its networks: it has this host's setting, which is to route.
pub fn no_routing(netns: BorrowedFd<'_>) -> Result<(), NetError> {
    within(netns, || sysctl::set("ipv4/ip_forward", "0")).map_err(NetError::system(ENTER))?
}

/// Takes back what a sandbox published, and its policy. May be repeated. Its veth pair dies with its namespace.
///
/// For a sandbox whose [`crate::Published`] is gone; where it is held, [`crate::Published::withdraw`] and [`leave`] are
/// quicker.
pub fn detach(attachment: &Attachment) -> Result<(), NetError> {
    let withdrawn = publish::withdraw(attachment);
    leave(std::slice::from_ref(attachment)).and(withdrawn).and(remove_rest(attachment))
}

/// The policies of a sandbox that ended, taken back. The kernel frees them when this is dropped, which may take some
/// milliseconds: drop it when nobody waits any more.
#[derive(Debug)]
pub struct Left(#[expect(dead_code, reason = "held, not read")] Option<Socket>);

/// Takes back what [`attach`] and [`attach_tap`] wrote into the firewall, for a sandbox that ended. May be repeated.
pub fn leave(attachments: &[Attachment]) -> Result<Left, NetError> {
    match firewall::leave(attachments.iter()) {
        Err(e) if firewall::is_missing(&e) => Ok(Left(None)),
        done => done.map(Left),
    }
}

/// Removes what an attachment had on the host that dies with nobody: the device of its limits, a macvtap link.
pub fn remove_rest(attachment: &Attachment) -> Result<(), NetError> {
    bandwidth::remove(attachment)?;
    if attachment.uplink.is_some() { macvlan::remove_tap(attachment) } else { Ok(()) }
}

/// Removes every end on the host that a microVM that ended may have left, on whatever network it was: a macvtap link that it
/// was disconnected from stays until then, as the machine holds it.
pub fn remove_ends(id: &str) -> Result<(), NetError> {
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    let mut batch = Batch::new();
    (0..crate::MAX_INTERFACES).for_each(|slot| link::delete(&mut batch, &crate::host_ifname(id, slot)));
    let removed = link::run(&mut socket, batch, &[Errno::NODEV]);
    removed.map_err(NetError::system("remove the microVM's interfaces"))
}

pub(crate) fn remove_link(socket: &mut Socket, name: &str) -> Result<(), NetError> {
    let mut batch = Batch::new();
    link::delete(&mut batch, name);
    link::run(socket, batch, &[Errno::NODEV]).map_err(NetError::link("remove", name))
}
