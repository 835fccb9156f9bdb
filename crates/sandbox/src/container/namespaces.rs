//! Which namespaces a sandbox gets: new ones, those of others, or the host's.

use super::step::Step;
use crate::hull::HullError;
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid, openat};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use sys::clone::ns;
use types::oci::{LinuxIdMapping, LinuxNamespaceType, Spec};

/// Namespaces of a specification.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    /// Flags of those that are new.
    pub new: u64,
    /// Those that exist, with their flag.
    pub joined: Vec<(u64, OwnedFd)>,
}

/// The kernel's flag.
fn flag(kind: LinuxNamespaceType) -> u64 {
    match kind {
        LinuxNamespaceType::Mount => ns::MOUNT,
        LinuxNamespaceType::Cgroup => ns::CGROUP,
        LinuxNamespaceType::Uts => ns::UTS,
        LinuxNamespaceType::Ipc => ns::IPC,
        LinuxNamespaceType::User => ns::USER,
        LinuxNamespaceType::Pid => ns::PID,
        LinuxNamespaceType::Network => ns::NET,
        LinuxNamespaceType::Time => ns::TIME,
    }
}

/// Flags of all namespaces in which the sandbox is apart from the host, new or joined.
pub(super) fn apart(spec: &Spec) -> u64 {
    let list = spec.linux().as_ref().and_then(|l| l.namespaces().as_deref()).unwrap_or_default();
    list.iter().fold(0, |flags, n| flags | flag(n.typ()))
}

impl Namespaces {
    /// Reads the specification and opens the namespaces to join.
    pub(super) fn new(spec: &Spec) -> Result<Self, HullError> {
        let list = spec.linux().as_ref().and_then(|l| l.namespaces().as_deref()).unwrap_or_default();
        let mut found = Self::default();
        for namespace in list {
            let flag = flag(namespace.typ());
            if found.has(flag) {
                let text = format!("the {} namespace is named twice", namespace.typ());
                return Err(HullError::Invalid(text));
            }
            match namespace.path() {
                None => found.new |= flag,
                Some(path) => {
                    let fd = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                        .step(|| format!("open the namespace {}", path.display()))?;
                    found.joined.push((flag, fd));
                }
            }
        }
        if found.new & ns::MOUNT == 0 {
            return Err(HullError::Invalid("a container needs a mount namespace of its own".into()));
        }
        // Who joins a user namespace must be in it before namespaces are made that it shall own.
        found.joined.sort_by_key(|(flag, _)| *flag != ns::USER);
        Ok(found)
    }

    /// Whether the sandbox has this namespace apart from the host.
    pub(super) fn has(&self, flag: u64) -> bool {
        self.new & flag != 0 || self.joined(flag).is_some()
    }

    /// One that exists.
    pub(super) fn joined(&self, flag: u64) -> Option<&OwnedFd> {
        self.joined.iter().find(|(f, _)| *f == flag).map(|(_, fd)| fd)
    }

    /// What `clone3` makes. The cgroup namespace comes later, as its root is the cgroup that the process is in when
    /// it is made; the time namespace too, as its offsets are set before anybody is in it.
    pub(super) fn at_clone(&self) -> u64 {
        let later = ns::CGROUP | ns::TIME;
        if self.joined(ns::USER).is_some() { 0 } else { self.new & !later }
    }

    /// Joins, in the child, what it was not born into.
    pub(super) fn enter(&self) -> Result<(), HullError> {
        for (flag, fd) in self.joined.iter().filter(|(flag, _)| *flag != ns::PID) {
            sys::clone::setns(fd.as_fd(), *flag).step(|| "join a namespace".into())?;
        }
        if self.joined(ns::USER).is_some() {
            become_root()?;
            let rest = self.new & !(ns::CGROUP | ns::TIME | ns::PID);
            sys::clone::unshare(rest).step(|| "make namespaces".into())?;
        }
        Ok(())
    }
}

/// Root of a user namespace that has its mappings.
pub(super) fn become_root() -> Result<(), HullError> {
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    set_thread_groups(&[]).step(|| "leave the groups of the host".into())?;
    set_thread_res_gid(gid, gid, gid).step(|| "become root of the user namespace".into())?;
    set_thread_res_uid(uid, uid, uid).step(|| "become root of the user namespace".into())
}

/// Writes the mappings of a new user namespace, from outside.
pub(super) fn map_users(pid: i32, spec: &Spec) -> Result<(), HullError> {
    let linux = spec.linux().as_ref();
    let uids = linux.and_then(|l| l.uid_mappings().as_deref()).unwrap_or_default();
    let gids = linux.and_then(|l| l.gid_mappings().as_deref()).unwrap_or_default();
    write_mappings(pid, uids, gids)
}

fn write_mappings(pid: i32, uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<(), HullError> {
    let write = |file: &str, map: &[LinuxIdMapping]| {
        if map.is_empty() {
            return Err(HullError::Invalid(format!("a new user namespace needs a {file}")));
        }
        let lines: String =
            map.iter().map(|m| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size())).collect();
        std::fs::write(format!("/proc/{pid}/{file}"), lines).step(|| format!("write the {file}"))
    };
    write("uid_map", uids)?;
    write("gid_map", gids)
}

/// Who outside is root inside, where the specification makes a user namespace.
pub(super) fn root_outside(spec: &Spec) -> Option<(u32, u32)> {
    let linux = spec.linux().as_ref()?;
    let root = |map: &Option<Vec<LinuxIdMapping>>| {
        map.iter().flatten().find(|m| m.container_id() == 0 && m.size() > 0).map(|m| m.host_id())
    };
    root(linux.uid_mappings()).zip(root(linux.gid_mappings()))
}

/// Gives pipes and sockets of ours to root of the container's user namespace, where it has one: its processes could
/// otherwise not open `/dev/stdout` again, nor give it to their users.
pub(super) fn give_stdio(spec: &Spec, stdio: [BorrowedFd<'_>; 3]) {
    let Some((uid, gid)) = root_outside(spec) else { return };
    for fd in stdio {
        let Ok(meta) = rustix::fs::fstat(fd) else { continue };
        let kind = FileType::from_raw_mode(meta.st_mode);
        if kind.is_fifo() || kind.is_socket() {
            // What cannot be given stays as it is: it can still be used.
            let _ = rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        }
    }
}

/// A user namespace with the mappings of the specification, held by its descriptor alone: by it the files of an image
/// are made to belong to the ids inside. `None` where the specification has no mappings.
pub fn user_namespace(spec: &Spec) -> Result<Option<OwnedFd>, HullError> {
    let linux = spec.linux().as_ref();
    let uids = linux.and_then(|l| l.uid_mappings().as_deref()).unwrap_or_default();
    let gids = linux.and_then(|l| l.gid_mappings().as_deref()).unwrap_or_default();
    if uids.is_empty() { Ok(None) } else { with_mappings(uids, gids).map(Some) }
}

/// A user namespace with these mappings and nobody in it.
pub(super) fn with_mappings(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<OwnedFd, HullError> {
    let make = || "make a user namespace".to_owned();
    let (wait, go) = std::io::pipe().step(make)?;
    let child = sys::clone::spawn(ns::USER, None, || {
        // Lives until the other side hangs up.
        let _ = sys::process::close_all_but(&[wait.as_fd()]);
        let _ = rustix::io::read(&wait, &mut [0; 1]);
        0
    })
    .step(make)?;
    let path = format!("/proc/{}/ns/user", child.pid);
    let made = write_mappings(child.pid, uids, gids).and_then(|()| {
        openat(CWD, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).step(|| format!("open {path}"))
    });
    drop(go);
    let ended = WaitId::PidFd(child.pidfd.as_fd());
    waitid(ended, WaitIdOptions::EXITED).step(make)?;
    made
}

/// Makes a time namespace with the specification's offsets and moves into it.
pub(super) fn enter_time(spec: &Spec) -> Result<(), HullError> {
    sys::clone::unshare(ns::TIME).step(|| "make a time namespace".into())?;
    let offsets = spec.linux().as_ref().and_then(|l| l.time_offsets().as_ref());
    for (clock, offset) in offsets.into_iter().flatten() {
        let line = format!("{clock} {} {}", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        std::fs::write("/proc/self/timens_offsets", line)
            .step(|| format!("set the offset of the clock {clock}"))?;
    }
    let path = "/proc/self/ns/time_for_children";
    let fd = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .step(|| "open the time namespace".into())?;
    sys::clone::setns(fd, ns::TIME).step(|| "enter the time namespace".into())
}
