//! Files out of a root filesystem: `docker export`, the reading half of `docker cp`, and what `cp` asks first.
//!
//! The root may belong to a running, hostile container: each path is resolved beneath it by `openat2(2)`, and each file
//! is opened by its name in an open directory, never followed (CVE-2018-15664).

use crate::error::{Context, Result, RootfsError};
use crate::tarball::Tarball;
use crate::tree::{self, Kind, Meta};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use sys::Root;

/// What `cp` wants to know of a path, as in the header `X-Docker-Container-Path-Stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathStat {
    /// Last component.
    pub name: String,
    /// Bytes.
    pub size: i64,
    /// Type and permissions in the bits of Go's `os.FileMode`.
    pub mode: u32,
    /// Nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Of a symbolic link, the path that it leads to at last, inside; else empty.
    pub link_target: String,
}

impl PathStat {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode & 1 << 31 != 0
    }
}

/// Writes the whole tree as a tar. Where something is mounted, the empty mount point is written.
pub fn export(root: &Root, out: &mut dyn Write) -> Result<()> {
    let dir = root.resolve("/", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).on("open", "/")?;
    let mut walk = Walk { tarball: Tarball::new(out), mounts: Mounts::Hide };
    walk.children(&dir, b"")?;
    walk.tarball.finish()
}

/// Writes a file, or a directory with all below it, as a tar. A link at the end of `path` is written as a link, unless
/// a slash follows. Entries are named after the last component, or after `rename`; `.` and the root are named
/// `.`. Mounted volumes are part of the tree; the kernel's own file systems are not.
pub fn pack(root: &Root, path: &Path, rename: Option<&OsStr>, out: &mut dyn Write) -> Result<()> {
    let (dir, name) = locate(root, path)?;
    let meta = Meta::at(dir.as_fd(), &name).map_err(|e| missing(e.into(), path))?;
    let entry = match rename {
        Some(name) => name.as_bytes(),
        None if name.is_empty() => last(path).unwrap_or(b"."),
        None => tree::bytes(&name),
    };
    let mut walk = Walk { tarball: Tarball::new(out), mounts: Mounts::Cross };
    walk.entry(dir.as_fd(), &name, &meta, entry)?;
    walk.tarball.finish()
}

/// Looks at a path without following a link at its end, unless a slash follows.
pub fn stat(root: &Root, path: &Path) -> Result<PathStat> {
    let (dir, name) = locate(root, path)?;
    let meta = Meta::at(dir.as_fd(), &name).map_err(|e| missing(e.into(), path))?;
    let link_target = match meta.kind {
        Kind::Symlink => target(root, path, dir.as_fd(), &name)?,
        _ => String::new(),
    };
    let shown = if name.is_empty() { last(path).unwrap_or(b"/") } else { name.as_bytes() };
    Ok(PathStat {
        name: String::from_utf8_lossy(shown).into_owned(),
        size: i64::try_from(meta.size).unwrap_or(i64::MAX),
        mode: go_mode(&meta),
        mtime_ns: meta.mtime.0.saturating_mul(1_000_000_000).saturating_add(i64::from(meta.mtime.1)),
        link_target,
    })
}

/// A directory and a name in it; the empty name is the directory itself.
fn locate(root: &Root, path: &Path) -> Result<(OwnedFd, OsString)> {
    let bytes = path.as_os_str().as_bytes();
    let itself = bytes.ends_with(b"/") || bytes.ends_with(b"/.") || matches!(bytes, b"" | b".");
    let up = bytes == b".." || bytes.ends_with(b"/..");
    if itself || up {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = root.resolve(path, flags, Mode::empty()).map_err(|e| missing(e, path))?;
        return Ok((dir, OsString::new()));
    }
    root.parent(path).map_err(|e| missing(e, path))
}

/// The last component of a path, through slashes and dots at its end.
fn last(path: &Path) -> Option<&[u8]> {
    let explicit_dot = path.as_os_str().as_bytes().ends_with(b"/.");
    if explicit_dot { None } else { path.file_name().map(tree::bytes) }
}

fn missing(e: std::io::Error, path: &Path) -> RootfsError {
    match Errno::from_io_error(&e) {
        Some(Errno::NOENT) => RootfsError::NoSuchPath { path: path.to_owned() },
        Some(Errno::NOTDIR) => RootfsError::NotADirectory { path: path.to_owned() },
        _ => RootfsError::Io { action: "look at", path: path.to_owned(), source: e },
    }
}

/// Where a link leads at last. A dangling one is told as it is written, made absolute.
fn target(root: &Root, path: &Path, dir: BorrowedFd<'_>, name: &OsStr) -> Result<String> {
    let shown = |fd: BorrowedFd<'_>| rustix::fs::readlink(tree::proc_path(fd, OsStr::new("")), Vec::new());
    if let Ok(handle) = root.handle(path) {
        let top = PathBuf::from(OsString::from_vec(shown(root.as_fd()).on("look at", "/")?.into_bytes()));
        let full = PathBuf::from(OsString::from_vec(shown(handle.as_fd()).on("look at", path)?.into_bytes()));
        let inside = full.strip_prefix(&top).unwrap_or(&full);
        return Ok(Path::new("/").join(inside).to_string_lossy().into_owned());
    }
    let written = PathBuf::from(OsString::from_vec(tree::link_target(dir, name).on("read the link", path)?));
    let joined = Path::new("/").join(path.parent().unwrap_or(Path::new("/"))).join(written);
    let mut clean = PathBuf::from("/");
    for part in joined.components() {
        match part {
            std::path::Component::ParentDir => drop(clean.pop()),
            std::path::Component::Normal(name) => clean.push(name),
            _ => {}
        }
    }
    Ok(clean.to_string_lossy().into_owned())
}

/// The bits of Go's `os.FileMode`.
fn go_mode(meta: &Meta) -> u32 {
    let kind = match meta.kind {
        Kind::File => 0,
        Kind::Directory => 1 << 31,
        Kind::Symlink => 1 << 27,
        Kind::Block => 1 << 26,
        Kind::Char => 1 << 26 | 1 << 21,
        Kind::Fifo => 1 << 25,
        Kind::Socket => 1 << 24,
    };
    let special = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];
    let special: u32 = special.iter().filter(|(bit, _)| meta.mode & bit != 0).map(|(_, go)| go).sum();
    kind | special | meta.mode & 0o777
}

enum Mounts {
    /// Write mount points as empty directories and files.
    Hide,
    /// Go on, but not into the kernel's own file systems.
    Cross,
}

struct Walk<'a> {
    tarball: Tarball<'a>,
    mounts: Mounts,
}

impl Walk<'_> {
    fn children(&mut self, dir: &OwnedFd, path: &[u8]) -> Result<()> {
        let shown = || Path::new(OsStr::from_bytes(path)).to_owned();
        for name in tree::names(dir).on("read", shown())? {
            let meta = match Meta::at(dir.as_fd(), &name) {
                // Removed meanwhile.
                Err(Errno::NOENT) => continue,
                other => other.on("look at", shown().join(&name))?,
            };
            let entry = match path {
                b"" => name.as_bytes().to_vec(),
                _ => [path, b"/", name.as_bytes()].concat(),
            };
            self.entry(dir.as_fd(), &name, &meta, &entry)?;
        }
        Ok(())
    }

    fn entry(&mut self, dir: BorrowedFd<'_>, name: &OsStr, meta: &Meta, entry: &[u8]) -> Result<()> {
        let hide = matches!(self.mounts, Mounts::Hide);
        self.tarball.add(dir, name, meta, entry, hide)?;
        if !meta.is_dir() || (hide && meta.mount_root) {
            return Ok(());
        }
        let shown = Path::new(OsStr::from_bytes(entry));
        let itself = if name.is_empty() { OsStr::new(".") } else { name };
        let sub = match tree::subdirectory(dir, itself) {
            // Removed or replaced meanwhile.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            other => other.on("open", shown)?,
        };
        if meta.mount_root && !name.is_empty() && is_kernels(&sub).on("look at", shown)? {
            return Ok(());
        }
        self.children(&sub, entry)
    }
}

/// Whether a directory lies on a file system that shows the kernel instead of files (`statfs(2)`).
fn is_kernels(dir: &OwnedFd) -> rustix::io::Result<bool> {
    const PROC: i64 = 0x9fa0;
    const SYSFS: i64 = 0x6265_6572;
    const CGROUP: i64 = 0x0027_e0eb;
    const CGROUP2: i64 = 0x6367_7270;
    const MQUEUE: i64 = 0x1980_0202;
    const DEVPTS: i64 = 0x1cd1;
    let kind = rustix::fs::fstatfs(dir)?.f_type as i64;
    Ok([PROC, SYSFS, CGROUP, CGROUP2, MQUEUE, DEVPTS].contains(&kind))
}
