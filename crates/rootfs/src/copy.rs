//! What an image holds at a volume's mount point goes into the volume when it is first used, as Docker does.

use crate::create::{self, Attributes};
use crate::error::{Context, Result};
use crate::tree::{self, Kind, Meta};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use sys::Root;

/// Copies the directory `path` of an image's root into the directory `dest` of the host, with owners, modes,
/// times, extended attributes, links and devices. Does nothing, and answers false, if `dest` is not empty or the image
/// has no directory there.
pub fn copy_up(root: &Root, path: &Path, dest: &Path) -> Result<bool> {
    let source = match root.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(false);
        }
        other => other.on("open the image's", path)?,
    };
    let target = tree::subdirectory(rustix::fs::CWD, dest.as_os_str()).on("open", dest)?;
    if !tree::names(&target).on("read", dest)?.is_empty() {
        return Ok(false);
    }
    let mut copying = Copying { top: &target, linked: HashMap::new() };
    copying.children(&source, &target, Path::new(""))?;
    let empty = OsStr::new("");
    let meta = Meta::at(source.as_fd(), empty).on("look at the image's", path)?;
    attributes(source.as_fd(), empty, target.as_fd(), empty, &meta).on("change", dest)?;
    Ok(true)
}

struct Copying<'a> {
    /// The destination.
    top: &'a OwnedFd,
    /// Where inodes with several names were first copied to, below `top`.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl Copying<'_> {
    fn children(&mut self, from: &OwnedFd, to: &OwnedFd, path: &Path) -> Result<()> {
        for name in tree::names(from).on("read", path)? {
            let at = path.join(&name);
            self.entry(from.as_fd(), to.as_fd(), &name, &at)?;
        }
        Ok(())
    }

    fn entry(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<()> {
        let meta = Meta::at(from, name).on("look at", path)?;
        if meta.nlink > 1 && !meta.is_dir() {
            if let Some(first) = self.linked.get(&meta.id) {
                return rustix::fs::linkat(self.top, first, to, name, AtFlags::empty()).on("link", path);
            }
            self.linked.insert(meta.id, path.to_owned());
        }
        match meta.kind {
            Kind::File => {
                let mut source = tree::file(from, name).on("open", path)?;
                let mut target = create::file(to, name).on("make", path)?;
                // By copy_file_range(2) or splice(2) where the file systems allow.
                io::copy(&mut source, &mut target).on("copy", path)?;
            }
            Kind::Directory => {
                rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o700)).on("make", path)?;
                if !meta.mount_root {
                    let source = tree::subdirectory(from, name).on("open", path)?;
                    let target = tree::subdirectory(to, name).on("open", path)?;
                    self.children(&source, &target, path)?;
                }
            }
            Kind::Symlink => {
                let target = tree::link_target(from, name).on("read the link", path)?;
                rustix::fs::symlinkat(target, to, name).on("make", path)?;
            }
            Kind::Char | Kind::Block | Kind::Fifo | Kind::Socket => {
                create::node(to, name, meta.kind, meta.device).on("make", path)?;
            }
        }
        attributes(from, name, to, name, &meta).on("change", path)
    }
}

fn attributes(
    from: BorrowedFd<'_>,
    name: &OsStr,
    to: BorrowedFd<'_>,
    new_name: &OsStr,
    meta: &Meta,
) -> std::result::Result<(), Errno> {
    let xattrs = tree::xattrs(from, name)?;
    let attributes =
        Attributes { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime, xattrs: &xattrs };
    create::apply(to, new_name, meta.kind, &attributes)
}
