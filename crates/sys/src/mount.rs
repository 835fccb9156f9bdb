//! Mounts by descriptor: the API of `fsopen(2)`, `open_tree(2)`, `mount_setattr(2)` and `move_mount(2)`.
//!
//! Nothing here takes a path inside a container: targets are handles from [`crate::Root`], so that no race with a
//! hostile writer can lead a mount elsewhere (CVE-2021-30465).

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Attributes of `mount_setattr(2)`.
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = 0x1;
    /// No set-user-ID.
    pub const NOSUID: u64 = 0x2;
    /// No devices.
    pub const NODEV: u64 = 0x4;
    /// No execution.
    pub const NOEXEC: u64 = 0x8;
    /// Mask of the access time modes; `relatime` is zero.
    pub const ATIME: u64 = 0x70;
    /// Never update access times.
    pub const NOATIME: u64 = 0x10;
    /// Always update access times.
    pub const STRICTATIME: u64 = 0x20;
    /// No access times of directories.
    pub const NODIRATIME: u64 = 0x80;
    /// Map owners through a user namespace.
    pub const IDMAP: u64 = 0x0010_0000;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = 0x0020_0000;
}

/// Propagation types.
pub mod propagation {
    /// `MS_UNBINDABLE`.
    pub const UNBINDABLE: u64 = 1 << 17;
    /// `MS_PRIVATE`.
    pub const PRIVATE: u64 = 1 << 18;
    /// `MS_SLAVE`.
    pub const SLAVE: u64 = 1 << 19;
    /// `MS_SHARED`.
    pub const SHARED: u64 = 1 << 20;
}

/// A change of mount attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Bits of [`attr`] to set.
    pub set: u64,
    /// Bits to clear.
    pub clear: u64,
    /// One of [`propagation`], or 0.
    pub propagation: u64,
}

impl Change {
    /// Only sets bits.
    pub fn set(bits: u64) -> Self {
        Self { set: bits, ..Self::default() }
    }

    /// Only the propagation.
    pub fn propagation(to: u64) -> Self {
        Self { propagation: to, ..Self::default() }
    }

    /// Whether it changes nothing.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// Changes the mount behind `mount`, and with `recursive` those below it.
pub fn set_attributes(mount: impl AsFd, recursive: bool, change: Change) -> io::Result<()> {
    setattr(mount.as_fd(), recursive, change, 0)
}

/// Maps the owners of a detached mount through a user namespace.
pub fn set_idmap(mount: impl AsFd, recursive: bool, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    setattr(mount.as_fd(), recursive, Change::set(attr::IDMAP), user_namespace.as_raw_fd() as u64)
}

fn setattr(mount: BorrowedFd<'_>, recursive: bool, change: Change, userns_fd: u64) -> io::Result<()> {
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let mut args =
        MountAttr { set: change.set, clear: change.clear, propagation: change.propagation, userns_fd };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an empty path, and a structure of the size that is named, both alive for the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw mut args,
            size_of::<MountAttr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A detached copy of the mount at a path of the host; with `recursive`, of all below.
pub fn clone_path(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    Ok(open_tree(CWD, path, clone_flags(recursive))?)
}

/// A detached copy of the mount (and the file in it) behind a handle.
pub fn clone_handle(handle: impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    Ok(open_tree(handle, "", clone_flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH)?)
}

fn clone_flags(recursive: bool) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive { flags | OpenTreeFlags::AT_RECURSIVE } else { flags }
}

/// Attaches a detached mount on top of the file or directory behind `target`.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", flags)?)
}

/// A new filesystem as a detached mount. Options with a value are `key=value`, others flags; the error carries what
/// the kernel wrote about it.
pub fn new_filesystem<'a>(
    kind: &str,
    source: Option<&str>,
    options: impl IntoIterator<Item = &'a str>,
    attributes: u64,
) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let make = || -> io::Result<()> {
        if let Some(source) = source {
            fsconfig_set_string(&context, "source", source)?;
        }
        for option in options {
            match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(&context, key, value)?,
                None => fsconfig_set_flag(&context, option)?,
            }
        }
        Ok(fsconfig_create(&context)?)
    };
    make().map_err(|e| explain(&context, e))?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as _);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(|e| explain(&context, e.into()))
}

/// Adds the last message of the filesystem context to an error.
fn explain(context: &OwnedFd, error: io::Error) -> io::Error {
    let mut text = [0; 256];
    match rustix::io::read(context, &mut text[..]) {
        Ok(n) if n > 2 => {
            let said = String::from_utf8_lossy(&text[2..n]).trim().to_owned();
            io::Error::new(error.kind(), format!("{error}: {said}"))
        }
        _ => error,
    }
}

/// Makes the directory behind `new_root` (already a mount point) the root of this mount namespace, and detaches all
/// that was there before.
pub fn pivot(new_root: impl AsFd) -> io::Result<()> {
    rustix::process::fchdir(&new_root)?;
    // Both the same: the old root is stacked on the new one, see pivot_root(2).
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

/// Detaches what is mounted on a path of the host, lazily.
pub fn detach(path: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(path, UnmountFlags::DETACH)?)
}
