//! The walls around the VMM's process, for the day on which a guest breaks out into it.
//!
//! Everything is open before; what remains is an empty root, an unprivileged user, no capability, and the few system
//! calls of `seccomp`. Network namespace and cgroup are the caller's to give.
//!
//! Sources: pivot_root(2), capabilities(7), credentials(7).

use crate::config::Jail;
use crate::error::VmmError;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// More descriptors than this a VMM never has open: files, queues' events, connections.
const DESCRIPTORS: u64 = 4096;

/// The descriptors that are open now, beyond the standard ones.
pub fn open_descriptors() -> io::Result<BTreeSet<RawFd>> {
    let mut open = BTreeSet::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        open.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    Ok(open.into_iter().filter(|fd| *fd > 2 && rustix::io::fcntl_getfd(borrow(*fd)).is_ok()).collect())
}

fn borrow<'a>(fd: RawFd) -> std::os::fd::BorrowedFd<'a> {
    // SAFETY: used for fcntl(F_GETFD) alone, which on a number that is no descriptor says EBADF and does nothing.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}

/// Closes what the process was given and the machine does not need.
pub fn close_inherited(inherited: &BTreeSet<RawFd>, keep: &[RawFd]) {
    for fd in inherited.iter().filter(|fd| !keep.contains(fd)) {
        // SAFETY: they were open before this machine opened anything, and nothing of it refers to them. That the
        // process is the machine's own is what a configuration with a jail promises.
        drop(unsafe { OwnedFd::from_raw_fd(*fd) });
    }
}

/// How large the file of a disk may become that can grow while its machine runs.
pub const GROWN: u64 = 16 << 40;

/// How large a file may become: now, and when somebody outside has raised the limit, which the process itself has no system
/// call for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Largest {
    /// Now.
    pub now: u64,
    /// At most.
    pub ever: u64,
}

/// Shuts this thread, the only one, in.
pub fn enter(jail: &Jail, largest: Largest) -> Result<(), VmmError> {
    let step = |step| move |source: io::Error| VmmError::Jail { step, source };
    lower_limits(largest).map_err(step("lower the limits"))?;
    empty_root(&jail.root).map_err(|e| step("make the empty directory its root")(e.into()))?;
    give_up_rights(jail.uid, jail.gid).map_err(step("give up its rights"))
}

/// No core files, no locked memory, no file of more bytes, no more descriptors than a hypervisor needs.
pub fn lower_limits(largest: Largest) -> io::Result<()> {
    let lower = |resource, now: u64, ever: u64| {
        let before = rustix::process::getrlimit(resource).maximum;
        let least = |value: u64| Some(before.map_or(value, |before| before.min(value)));
        Ok(rustix::process::setrlimit(resource, Rlimit { current: least(now), maximum: least(ever) })?)
    };
    lower(Resource::Core, 0, 0)?;
    lower(Resource::Nofile, DESCRIPTORS, DESCRIPTORS)?;
    lower(Resource::Fsize, largest.now, largest.ever)?;
    lower(Resource::Memlock, 0, 0)
}

/// A mount namespace of its own that has nothing but the empty directory.
fn empty_root(root: &Path) -> rustix::io::Result<()> {
    // SAFETY: a new mount namespace changes nothing for the memory of this process; there is no other thread yet.
    unsafe {
        rustix::thread::unshare_unsafe(
            rustix::thread::UnshareFlags::NEWNS | rustix::thread::UnshareFlags::NEWIPC,
        )
    }?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    rustix::mount::mount_bind(root, root)?;
    let read_only =
        MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOEXEC | MountFlags::NODEV | MountFlags::NOSUID;
    rustix::mount::mount_remount(root, read_only, c"")?;
    rustix::process::chdir(root)?;
    // The old root lands on top of the new one and goes with everything beneath it.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

/// Becomes this user and group, without capabilities, and for ever: no program that is executed gives any back.
pub fn give_up_rights(uid: u32, gid: u32) -> io::Result<()> {
    use rustix::process::{Gid, Uid};
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    rustix::thread::set_no_new_privs(true)?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, none)?)
}
