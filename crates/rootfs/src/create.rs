//! Making files in a directory that somebody hostile may be changing: by descriptors and single names, never
//! following, never opening what is not what was just made.

use crate::tree::{self, Kind, Meta, Xattr};
use rustix::fs::{AtFlags, Dev, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, openat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

/// What a file has besides its content.
pub(crate) struct Attributes<'a> {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub xattrs: &'a [Xattr],
}

/// Makes an empty regular file that was not there.
pub(crate) fn file(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(dir, name, flags, Mode::from_raw_mode(0o600))?.into())
}

/// Makes a device node, a fifo or a socket.
pub(crate) fn node(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    kind: Kind,
    (major, minor): (u32, u32),
) -> rustix::io::Result<()> {
    let (file_type, device): (_, Dev) = match kind {
        Kind::Char => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
        Kind::Block => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
        Kind::Fifo => (FileType::Fifo, 0),
        Kind::Socket => (FileType::Socket, 0),
        Kind::File | Kind::Directory | Kind::Symlink => return Err(Errno::INVAL),
    };
    rustix::fs::mknodat(dir, name, file_type, Mode::from_raw_mode(0o600), device)
}

/// Gives `name` in `dir` its attributes, if it still is of that kind. The empty name is `dir` itself.
pub(crate) fn apply(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    kind: Kind,
    attributes: &Attributes<'_>,
) -> rustix::io::Result<()> {
    let handle;
    let handle = if name.is_empty() {
        dir
    } else {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        handle = openat(dir, name, flags, Mode::empty())?;
        handle.as_fd()
    };
    let empty = OsStr::new("");
    if Meta::at(handle, empty)?.kind != kind {
        return Err(Errno::STALE);
    }
    let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    rustix::fs::chownat(handle, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    if kind == Kind::Symlink {
        for xattr in attributes.xattrs {
            tolerate(tree::set_xattr(dir, name, xattr))?;
        }
        return rustix::fs::utimensat(dir, name, &times(attributes.mtime), AtFlags::SYMLINK_NOFOLLOW);
    }
    // After the owner, whose change clears set-user-id bits and capabilities.
    let mode = Mode::from_raw_mode(attributes.mode & 0o7777);
    rustix::fs::chmod(tree::proc_path(handle, empty), mode)?;
    for xattr in attributes.xattrs {
        tolerate(tree::set_xattr(handle, empty, xattr))?;
    }
    set_times(handle, attributes.mtime)
}

/// Sets the modification time of what a handle shows.
pub(crate) fn set_times(handle: BorrowedFd<'_>, mtime: (i64, u32)) -> rustix::io::Result<()> {
    let path = tree::proc_path(handle, OsStr::new(""));
    rustix::fs::utimensat(rustix::fs::CWD, path, &times(mtime), AtFlags::empty())
}

fn times((tv_sec, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Attributes that the file system or the caller's privileges do not allow are left out, as Docker does.
pub(crate) fn tolerate(done: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match done {
        Err(Errno::NOTSUP | Errno::PERM) => Ok(()),
        other => other,
    }
}

/// Removes `name` in `dir` with all below it, following nothing and crossing no mount.
pub(crate) fn remove_all(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    if Meta::at(dir, name)?.mount_root {
        return Err(Errno::BUSY);
    }
    let sub = tree::subdirectory(dir, name)?;
    for child in tree::names(&sub)? {
        remove_all(sub.as_fd(), &child)?;
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}
