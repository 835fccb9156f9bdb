//! Endpoints directly on an interface of the host, in the place of a bridge (driver `macvlan`): a macvlan link in the
//! namespace of a container, a macvtap device for a microVM.
//!
//! The firewall and published ports are a bridge's: here an endpoint is a machine of the network outside.

use crate::{NetError, bandwidth, link};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use sys::netlink::{Batch, Family, Socket, errno};
use types::{Attachment, Egress, MacvlanMode, Uplink};

/// As `IFLA_MACVLAN_MODE` has it (include/uapi/linux/if_link.h).
fn number(mode: MacvlanMode) -> u32 {
    match mode {
        MacvlanMode::Private => 1,
        MacvlanMode::Vepa => 2,
        MacvlanMode::Bridge => 4,
        MacvlanMode::Passthru => 8,
    }
}

/// Refuses what only the host's firewall could hold an endpoint to.
fn check(a: &Attachment, up: &Uplink) -> Result<(), NetError> {
    match a.egress {
        Egress::All => Ok(()),
        Egress::Only(_) => Err(NetError::UplinkUnconfined { parent: up.parent.clone() }),
    }
}

fn add(
    socket: &mut Socket,
    (a, up): (&Attachment, &Uplink),
    (kind, name): (&str, &str),
    netns: Option<BorrowedFd<'_>>,
) -> Result<(), NetError> {
    check(a, up)?;
    let parent = link::get(socket, &up.parent).map_err(NetError::link("find interface", &up.parent))?;
    let parent = parent.ok_or_else(|| NetError::NoParent { parent: up.parent.clone() })?;
    let mut batch = Batch::new();
    let place = (parent.index, number(up.mode));
    link::add_macvlan(&mut batch, (kind, name), netns, place, a.mac, a.bridge.mtu.min(parent.mtu));
    link::run(socket, batch, &[]).map_err(NetError::link("create a macvlan link on", &up.parent))
}

/// Gives a namespace a link, which is up; answers with a socket in there.
pub(crate) fn attach(a: &Attachment, up: &Uplink, netns: BorrowedFd<'_>) -> Result<Socket, NetError> {
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    add(&mut socket, (a, up), ("macvlan", &a.ifname), Some(netns))?;
    let raise = || {
        let mut inside = Socket::open_in(Family::Route, netns)?;
        let mut batch = Batch::new();
        link::up(&mut batch, &a.ifname);
        link::run(&mut inside, batch, &[])?;
        bandwidth::apply_to_link(&mut inside, a, &a.ifname)?;
        Ok(inside)
    };
    raise().map_err(NetError::link("bring up a link on", &up.parent))
}

/// Removes it. May be repeated.
pub(crate) fn unlink(a: &Attachment, netns: BorrowedFd<'_>) -> Result<(), NetError> {
    let remove = || {
        let mut inside = Socket::open_in(Family::Route, netns)?;
        let mut batch = Batch::new();
        link::delete(&mut batch, &a.ifname);
        link::run(&mut inside, batch, &[Errno::NODEV])
    };
    remove().map_err(NetError::link("remove", &a.ifname))
}

/// Makes a tap device; it outlives its descriptor, see [`remove_tap`].
pub(crate) fn attach_tap(a: &Attachment, up: &Uplink) -> Result<OwnedFd, NetError> {
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    let end = ("macvtap", a.host_ifname.as_str());
    match add(&mut socket, (a, up), end, None) {
        // Of the run before.
        Err(NetError::Link { source, .. }) if errno(&source) == Some(Errno::EXIST) => {
            crate::endpoint::remove_link(&mut socket, &a.host_ifname)?;
            add(&mut socket, (a, up), end, None)?;
        }
        done => done?,
    }
    let open = |socket: &mut Socket| {
        let mut batch = Batch::new();
        link::up(&mut batch, &a.host_ifname);
        link::run(socket, batch, &[])?;
        bandwidth::apply_to_link(socket, a, &a.host_ifname)?;
        sys::tap::adopt(device(&a.host_ifname)?)
    };
    open(&mut socket).map_err(|e| {
        let _ = crate::endpoint::remove_link(&mut socket, &a.host_ifname);
        NetError::link("open tap", &a.host_ifname)(e)
    })
}

/// Removes a microVM's end. May be repeated.
pub(crate) fn remove_tap(a: &Attachment) -> Result<(), NetError> {
    let mut socket = link::open().map_err(NetError::system("open a netlink socket"))?;
    crate::endpoint::remove_link(&mut socket, &a.host_ifname)
}

/// Opens the character device of a macvtap link by its number. Its node in `/dev` comes late, or never (a container, another
/// `/dev`), so one is made where nobody else is: in a filesystem that is gone with its descriptor.
fn device(name: &str) -> io::Result<OwnedFd> {
    let link = std::path::Path::new("/sys/class/net").join(name);
    let index = std::fs::read_to_string(link.join("ifindex"))?;
    let number = std::fs::read_to_string(link.join(format!("tap{}", index.trim())).join("dev"))?;
    let number = number.trim().split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let (major, minor) = number.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    let dir = sys::mount::new_filesystem("tmpfs", Some("dhow"), ["mode=0700"], 0)?;
    let (node, device) = ("tap", rustix::fs::makedev(major, minor));
    rustix::fs::mknodat(dir.as_fd(), node, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, device)?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir.as_fd(), node, flags, Mode::empty())?)
}
