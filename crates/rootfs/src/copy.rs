//! What an image holds at a volume's mount point goes into the volume when it is first used, as Docker does.
//!
//! A volume that is being filled has a mark. Whoever finds the mark, and no one at work, finds what somebody left who was
//! killed, or who had no room: it is emptied, and filled anew. Who lets one work after the other is the caller.

use crate::create::{self, Attributes};
use crate::error::{Context, Result};
use crate::tree::{self, Kind, Meta};
use rustix::fs::{AtFlags, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use sys::Root;

/// The mark: an extended attribute that no workload sees, and no archive carries.
const FILLING: &str = "trusted.overlay.dhow.filling";

/// Whether a directory is to be filled: it is empty, or was left half full.
pub fn is_unfilled(dest: &Path) -> bool {
    let open = tree::subdirectory(rustix::fs::CWD, dest.as_os_str());
    open.is_ok_and(|dir| is_marked(&dir) || tree::is_empty(&dir).unwrap_or(false))
}

fn is_marked(dir: &OwnedFd) -> bool {
    rustix::fs::fgetxattr(dir, FILLING, &mut [0u8; 1][..]).is_ok()
}

/// Marks an empty directory, or one that was left half full and is emptied now; false for any other.
fn begin(dir: &OwnedFd) -> rustix::io::Result<bool> {
    if is_marked(dir) {
        for name in tree::names(dir)? {
            create::remove_all(dir.as_fd(), &name)?;
        }
        return Ok(true);
    }
    if !tree::is_empty(dir)? {
        return Ok(false);
    }
    // Where there are no such attributes, nothing says that it is not whole.
    create::tolerate(rustix::fs::fsetxattr(dir, FILLING, b"y", XattrFlags::empty())).map(|()| true)
}

/// Copies the directory `path` of an image's root into the directory `dest` of the host, with owners, modes,
/// times, extended attributes, links and devices. Does nothing, and answers false, if `dest` is not empty or the image
/// has no directory there. Others may be changing `dest` meanwhile.
pub fn copy_up(root: &Root, path: &Path, dest: &Path) -> Result<bool> {
    let source = match root.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(false);
        }
        other => other.on("open the image's", path)?,
    };
    let target = tree::subdirectory(rustix::fs::CWD, dest.as_os_str()).on("open", dest)?;
    if !begin(&target).on("prepare", dest)? {
        return Ok(false);
    }
    let top = Root::from_fd(target.try_clone().on("open", dest)?);
    let mut copying = Copying { top, linked: HashMap::new() };
    copying.children(&source, &target, Path::new(""))?;
    let empty = OsStr::new("");
    let meta = Meta::at(source.as_fd(), empty).on("look at the image's", path)?;
    attributes(source.as_fd(), empty, target.as_fd(), empty, &meta).on("change", dest)?;
    match rustix::fs::fremovexattr(&target, FILLING) {
        Err(Errno::NODATA) => Ok(true),
        done => create::tolerate(done).on("change", dest).map(|()| true),
    }
}

struct Copying {
    /// The destination.
    top: Root,
    /// Where inodes with several names were first copied to, below `top`.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl Copying {
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
                // Beneath the destination, wherever its directories lead by now.
                let (dir, first) = self.top.parent(first).on("find", first)?;
                return rustix::fs::linkat(dir, first, to, name, AtFlags::empty()).on("link", path);
            }
            self.linked.insert(meta.id, path.to_owned());
        }
        match meta.kind {
            Kind::File => {
                let mut source = tree::file(from, name).on("open", path)?;
                let mut target = create::file(to, name).on("make", path)?;
                copy(&mut source, &mut target, &meta).on("copy", path)?;
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

/// By copy_file_range(2) or splice(2) where the file systems allow.
#[cfg(not(feature = "mount"))]
fn copy(from: &mut File, to: &mut File, _: &Meta) -> io::Result<()> {
    io::copy(from, to).map(drop)
}

/// The same, and the holes stay holes: a workload can make a file as large as it likes, and a copy of it is not to fill
/// the host.
#[cfg(feature = "mount")]
fn copy(from: &mut File, to: &mut File, meta: &Meta) -> io::Result<()> {
    use rustix::fs::{SeekFrom, seek};
    use std::io::{Read, Seek};
    if meta.blocks.saturating_mul(512) >= meta.size {
        return io::copy(from, to).map(drop);
    }
    let mut at = 0;
    loop {
        let start = match seek(&*from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No more data, lseek(2).
            Err(Errno::NXIO) => return to.set_len(from.metadata()?.len()),
            Err(e) => return Err(e.into()),
        };
        let end = seek(&*from, SeekFrom::Hole(start))?;
        let mut data = &*from;
        data.seek(io::SeekFrom::Start(start))?;
        to.seek(io::SeekFrom::Start(start))?;
        let copied = io::copy(&mut data.take(end.saturating_sub(start)), to)?;
        // It became shorter.
        if copied == 0 {
            return Ok(());
        }
        at = end;
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
