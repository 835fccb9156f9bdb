//! Reading a directory tree that somebody hostile may be changing: by descriptors and single names only, so that no
//! path is ever looked up twice and no link is ever followed.

use crate::error::{Context, Result};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, Statx, StatxAttributes, StatxFlags, openat, statx};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What a file is, with only the types that a tar can hold and a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    Char,
    Block,
    Fifo,
    Socket,
}

/// A file as `statx(2)` showed it.
#[derive(Clone, Copy)]
pub(crate) struct Meta {
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub blocks: u64,
    pub nlink: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Major and minor of a device node.
    pub device: (u32, u32),
    /// Device and inode number.
    pub id: (u64, u64),
    /// Something is mounted here.
    pub mount_root: bool,
}

impl Meta {
    /// Looks at `name` in `dir` without following it; the empty name is `dir` itself.
    pub fn at(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<Self> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
        Self::new(&statx(dir, name, flags, StatxFlags::BASIC_STATS)?)
    }

    fn new(st: &Statx) -> rustix::io::Result<Self> {
        let kind = match u32::from(st.stx_mode) & 0o170000 {
            0o100000 => Kind::File,
            0o040000 => Kind::Directory,
            0o120000 => Kind::Symlink,
            0o020000 => Kind::Char,
            0o060000 => Kind::Block,
            0o010000 => Kind::Fifo,
            0o140000 => Kind::Socket,
            _ => return Err(Errno::IO),
        };
        Ok(Self {
            kind,
            mode: u32::from(st.stx_mode) & 0o7777,
            uid: st.stx_uid,
            gid: st.stx_gid,
            size: st.stx_size,
            blocks: st.stx_blocks,
            nlink: st.stx_nlink,
            mtime: (st.stx_mtime.tv_sec, st.stx_mtime.tv_nsec),
            device: (st.stx_rdev_major, st.stx_rdev_minor),
            id: (u64::from(st.stx_dev_major) << 32 | u64::from(st.stx_dev_minor), st.stx_ino),
            mount_root: st.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        })
    }

    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// How overlayfs marks what an upper layer deletes: a character device 0:0.
    pub fn is_whiteout(&self) -> bool {
        self.kind == Kind::Char && self.device == (0, 0)
    }
}

/// Names in a directory, sorted by bytes.
pub(crate) fn names(dir: &OwnedFd) -> rustix::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether nothing is in a directory.
pub(crate) fn is_empty(dir: &OwnedFd) -> rustix::io::Result<bool> {
    let mut entries = Dir::read_from(dir)?;
    entries.try_fold(true, |empty, entry| {
        let entry = entry?;
        Ok(empty && matches!(entry.file_name().to_bytes(), b"." | b".."))
    })
}

/// Opens the directory `name` in `dir`; a link in its place is an error.
pub(crate) fn subdirectory(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

/// Opens the regular file `name` in `dir` for reading. A device or fifo put in its place is never opened, only
/// held as a handle, as opening alone can have effects.
pub(crate) fn file(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<File> {
    let handle = openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    reopen(&handle)
}

/// Opens the regular file behind a handle for reading.
pub(crate) fn reopen(handle: &OwnedFd) -> rustix::io::Result<File> {
    if Meta::at(handle.as_fd(), OsStr::new(""))?.kind != Kind::File {
        return Err(Errno::INVAL);
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    Ok(rustix::fs::open(proc_path(handle.as_fd(), OsStr::new("")), flags, Mode::empty())?.into())
}

/// A path to `name` in an open directory, for calls that have no variant with a descriptor. Only the last
/// component is a name, so calls that do not follow links stay in that directory. The empty name is the
/// directory itself.
pub(crate) fn proc_path(dir: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    if !name.is_empty() {
        path.push(name);
    }
    path
}

/// Where a symbolic link points.
pub(crate) fn link_target(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// Name and value of an extended attribute.
pub(crate) type Xattr = (Vec<u8>, Vec<u8>);

/// Extended attributes of `name` in `dir`, sorted, without those that belong to the host or to overlayfs.
pub(crate) fn xattrs(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<Vec<Xattr>> {
    let path = proc_path(dir, name);
    // The directory itself is reached through its magic link, which must be followed.
    let follow = name.is_empty();
    let mut list = vec![0u8; 1024];
    let list = loop {
        let length = match follow {
            true => rustix::fs::listxattr(&path, &mut list[..]),
            false => rustix::fs::llistxattr(&path, &mut list[..]),
        };
        match length {
            Ok(0) | Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Ok(n) => break &list[..n],
            Err(Errno::RANGE) if list.len() < 1 << 20 => list.resize(list.len() * 8, 0),
            Err(e) => return Err(e),
        }
    };
    let mut found = Vec::new();
    for name in list.split(|b| *b == 0).filter(|n| !n.is_empty() && travels(n)) {
        if let Some(value) = xattr(&path, name, follow)? {
            found.push((name.to_vec(), value));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn xattr(path: &Path, name: &[u8], follow: bool) -> rustix::io::Result<Option<Vec<u8>>> {
    let mut value = vec![0u8; 256];
    loop {
        let length = match follow {
            true => rustix::fs::getxattr(path, name, &mut value[..]),
            false => rustix::fs::lgetxattr(path, name, &mut value[..]),
        };
        match length {
            Ok(n) => {
                value.truncate(n);
                return Ok(Some(value));
            }
            // The largest value the VFS allows is 64 KiB.
            Err(Errno::RANGE) if value.len() < 1 << 16 => value.resize(1 << 16, 0),
            Err(Errno::NODATA | Errno::NOTSUP) => return Ok(None),
            Err(e) => return Err(e),
        }
    }
}

/// Whether an attribute is content, and not a mark of overlayfs or of the host's own policy (the list is umoci's).
pub(crate) fn travels(name: &[u8]) -> bool {
    !name.starts_with(b"trusted.overlay.")
        && !name.starts_with(b"user.overlay.")
        && !matches!(name, b"security.selinux" | b"system.nfs4_acl" | b"security.evm")
}

/// Sets an attribute on `name` in `dir`, not following it.
pub(crate) fn set_xattr(dir: BorrowedFd<'_>, name: &OsStr, (key, value): &Xattr) -> rustix::io::Result<()> {
    let path = proc_path(dir, name);
    let flags = rustix::fs::XattrFlags::empty();
    if name.is_empty() {
        rustix::fs::setxattr(&path, key.as_slice(), value, flags)
    } else {
        rustix::fs::lsetxattr(&path, key.as_slice(), value, flags)
    }
}

/// Whether an upper directory hides what the layers below have in its place.
pub(crate) fn is_opaque(dir: BorrowedFd<'_>) -> bool {
    let path = proc_path(dir, OsStr::new(""));
    matches!(xattr(&path, b"trusted.overlay.opaque", true), Ok(Some(value)) if value == b"y")
}

/// Whether a layer has a directory only because of what is in it.
#[cfg(feature = "mount")]
pub(crate) fn is_implied(dir: BorrowedFd<'_>) -> bool {
    let path = proc_path(dir, OsStr::new(""));
    matches!(xattr(&path, types::IMPLIED_XATTR.as_bytes(), true), Ok(Some(value)) if value == b"y")
}

/// Bytes on disk below `path`, each inode counted once. A directory that is not there holds none.
pub fn usage(path: &Path) -> Result<u64> {
    let dir = match subdirectory(rustix::fs::CWD, path.as_os_str()) {
        Err(Errno::NOENT) => return Ok(0),
        other => other.on("open", path)?,
    };
    let mut linked = std::collections::HashSet::new();
    let mut sum = 0;
    count(&dir, path, &mut linked, &mut sum)?;
    Ok(sum)
}

fn count(
    dir: &OwnedFd,
    path: &Path,
    linked: &mut std::collections::HashSet<(u64, u64)>,
    sum: &mut u64,
) -> Result<()> {
    for name in names(dir).on("read", path)? {
        let meta = match Meta::at(dir.as_fd(), &name) {
            // Removed meanwhile.
            Err(Errno::NOENT) => continue,
            other => other.on("look at", path.join(&name))?,
        };
        if meta.is_dir() || meta.nlink == 1 || linked.insert(meta.id) {
            *sum += meta.blocks * 512;
        }
        if meta.is_dir() && !meta.mount_root {
            match subdirectory(dir.as_fd(), &name) {
                Ok(sub) => count(&sub, &path.join(&name), linked, sum)?,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => return Err(e).on("open", path.join(&name)),
            }
        }
    }
    Ok(())
}

/// The last component of a path's bytes, for names in archives.
pub(crate) fn bytes(name: &OsStr) -> &[u8] {
    name.as_bytes()
}
