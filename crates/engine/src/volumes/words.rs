//! What mount(8) would do with the options of a volume of the driver `local`.

use crate::{EngineError, Result};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use sys::mount::{Change, attr, clone_path, propagation, set_attributes};
use types::VolumePlan;

/// Words for each mount, their flags of mount(2) and their attributes of mount_setattr(2), with what these replace.
const FLAGS: [(&str, MountFlags, u64, u64); 8] = [
    ("ro", MountFlags::RDONLY, attr::RDONLY, 0),
    ("nosuid", MountFlags::NOSUID, attr::NOSUID, 0),
    ("nodev", MountFlags::NODEV, attr::NODEV, 0),
    ("noexec", MountFlags::NOEXEC, attr::NOEXEC, 0),
    ("noatime", MountFlags::NOATIME, attr::NOATIME, attr::ATIME),
    ("nodiratime", MountFlags::NODIRATIME, attr::NODIRATIME, 0),
    ("relatime", MountFlags::RELATIME, 0, attr::ATIME),
    ("strictatime", MountFlags::STRICTATIME, attr::STRICTATIME, attr::ATIME),
];
/// Words for the whole filesystem.
const SUPERBLOCK: [(&str, MountFlags); 2] =
    [("sync", MountFlags::SYNCHRONOUS), ("dirsync", MountFlags::DIRSYNC)];
/// Words that say what is so anyway.
const DEFAULTS: [&str; 8] = ["bind", "rbind", "rw", "defaults", "suid", "dev", "exec", "async"];

/// Mounts it at a path, or gives what is to be attached there.
pub(super) fn mount(
    plan: &VolumePlan,
    at: &Path,
    kind: &str,
    device: &str,
    words: &[String],
) -> Result<Option<OwnedFd>> {
    let wrong = |e: io::Error| {
        let what = format!("cannot mount volume {} (type {kind}, device {device}): {e}", plan.name);
        match e.raw_os_error() == Some(Errno::NODEV.raw_os_error()) {
            true => EngineError::Unsupported(format!("{what}; this host's kernel has no {kind}")),
            false => EngineError::Invalid(what),
        }
    };
    if kind == "none" {
        return bind(device, words).map(Some).map_err(wrong);
    }
    let (mut flags, mut data) = (MountFlags::empty(), Vec::new());
    for word in words.iter().map(String::as_str).filter(|word| !DEFAULTS.contains(word)) {
        let all = FLAGS.iter().map(|(known, flag, ..)| (*known, *flag)).chain(SUPERBLOCK);
        match all.into_iter().find(|(known, _)| *known == word) {
            Some((_, flag)) => flags |= flag,
            None => data.push(word),
        }
    }
    let data = std::ffi::CString::new(data.join(",")).map_err(|e| wrong(e.into()))?;
    rustix::mount::mount(device, at, kind, flags, Some(data.as_c_str())).map_err(|e| wrong(e.into()))?;
    Ok(None)
}

/// A copy of a directory's mount, apart from it: what is mounted and unmounted in one is not in the other. Unmounting a
/// copy that shares with the host's would unmount what lies below the directory there.
fn bind(device: &str, words: &[String]) -> io::Result<OwnedFd> {
    let recursive = words.iter().any(|word| word == "rbind");
    let tree = clone_path(Path::new(device), recursive)?;
    set_attributes(&tree, recursive, Change::propagation(propagation::PRIVATE))?;
    let mut change = Change::default();
    for (_, _, set, clear) in FLAGS.into_iter().filter(|(known, ..)| words.iter().any(|word| word == known)) {
        change.clear |= clear;
        change.set |= set;
    }
    if !change.is_empty() {
        set_attributes(&tree, false, change)?;
    }
    Ok(tree)
}
