//! Writes a layer as an unpacked directory, for hosts that cannot mount EROFS.
//!
//! Inodes are made in a staging directory while the tar streams by, each named by its number, and get their real
//! names at the end, when the [`Tree`] is complete. So no name out of the tar is ever looked up on the disk: there
//! is no link to be followed, and nothing to be replaced.

use super::error::{LayerError, Result, io};
use super::ingest::{Node, Sink};
use super::tar::{Meta, Tar, Xattrs};
use super::tree::{Child, Tree};
use super::{INFO, TREE};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod,
    fchown, fsetxattr, futimens, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, symlinkat, utimensat,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use types::Digest;

const STAGE: &str = "stage";

/// A half-unpacked layer.
pub(super) struct Unpacker {
    path: PathBuf,
    top: OwnedFd,
    stage: OwnedFd,
    made: u64,
    /// Bytes on the disk.
    size: u64,
}

impl Unpacker {
    /// Unpacks into an empty directory.
    pub(super) fn new(path: &Path) -> Result<Self> {
        let open = || -> rustix::io::Result<(OwnedFd, OwnedFd)> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let top = rustix::fs::open(path, flags, Mode::empty())?;
            mkdirat(&top, STAGE, Mode::from_raw_mode(0o700))?;
            mkdirat(&top, TREE, Mode::from_raw_mode(0o700))?;
            let stage = openat(&top, STAGE, flags, Mode::empty())?;
            Ok((top, stage))
        };
        let (top, stage) = open().map_err(|e| io("create", path)(e.into()))?;
        Ok(Self { path: path.to_owned(), top, stage, made: 0, size: 0 })
    }

    fn error(&self, action: &'static str) -> impl FnOnce(Errno) -> LayerError {
        let to = io(action, &self.path);
        move |errno| to(errno.into())
    }

    fn file(&mut self, name: &str, node: &Node<'_>, meta: &Meta, tar: &mut Tar<'_>) -> Result<()> {
        let Node::File { size, sparse } = node else { return Ok(()) };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = openat(&self.stage, name, flags, Mode::from_raw_mode(0o600)).map_err(self.error("write"))?;
        let file = File::from(fd);
        let whole = [super::tar::Segment { offset: 0, length: *size }];
        for piece in sparse.map_or(&whole[..], |map| map.as_slice()) {
            let mut at = piece.offset;
            while at < piece.offset + piece.length {
                let left = piece.offset + piece.length - at;
                let data = tar.content(usize::try_from(left).unwrap_or(usize::MAX))?;
                if data.is_empty() {
                    break;
                }
                file.write_all_at(data, at).map_err(io("write", &self.path))?;
                at += data.len() as u64;
            }
        }
        if sparse.is_some() {
            file.set_len(*size).map_err(io("write", &self.path))?;
        }
        set_open(&file, meta).map_err(self.error("set the attributes of a file in"))?;
        self.size += file.metadata().map_err(io("read", &self.path))?.blocks() * 512;
        Ok(())
    }

    /// Everything that cannot be opened.
    fn special(&mut self, name: &str, node: &Node<'_>, meta: &Meta) -> rustix::io::Result<()> {
        let mode = Mode::from_raw_mode(u32::from(meta.mode));
        let (kind, device) = match node {
            Node::Char(major, minor) => (FileType::CharacterDevice, makedev(*major, *minor)),
            Node::Block(major, minor) => (FileType::BlockDevice, makedev(*major, *minor)),
            Node::Fifo | Node::File { .. } => (FileType::Fifo, 0),
            Node::Symlink(target) => {
                symlinkat(OsStr::from_bytes(target), &self.stage, name)?;
                return self.set_named(name, meta);
            }
        };
        mknodat(&self.stage, name, kind, mode, device)?;
        self.set_named(name, meta)?;
        chmodat(&self.stage, name, mode, AtFlags::empty())
    }

    fn set_named(&self, name: &str, meta: &Meta) -> rustix::io::Result<()> {
        let (uid, gid) = owner(meta);
        chownat(&self.stage, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        // There is no *at form before Linux 6.13; the path leads through our own descriptor.
        let path = format!("/proc/self/fd/{}/{name}", self.stage.as_raw_fd());
        each_xattr(&meta.xattrs, |name, value| lsetxattr(&path, name, value, XattrFlags::empty()))?;
        utimensat(&self.stage, name, &times(meta), AtFlags::SYMLINK_NOFOLLOW)
    }
}

impl Sink for Unpacker {
    fn inode(&mut self, meta: &Meta, node: &Node<'_>, content: &mut Tar<'_>) -> Result<u64> {
        self.made += 1;
        let name = self.made.to_string();
        match node {
            Node::File { .. } => self.file(&name, node, meta, content)?,
            _ => self.special(&name, node, meta).map_err(self.error("make an entry in"))?,
        }
        Ok(self.made)
    }

    fn finish(&mut self, tree: &Tree, _: &Digest, content_size: u64) -> Result<()> {
        let live = tree.live();
        let mut paths: Vec<Option<PathBuf>> = vec![None; tree.dirs.len()];
        paths[0] = Some(PathBuf::from(TREE));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for id in &live {
            let here = paths[*id as usize].clone().unwrap_or_default();
            let dir =
                openat(&self.top, &here, flags, Mode::empty()).map_err(self.error("open a directory of"))?;
            for (name, child) in &tree.dir(*id).children {
                let name = OsStr::from_bytes(name);
                let made = match child {
                    Child::Dir(child) => {
                        paths[*child as usize] = Some(here.join(name));
                        mkdirat(&dir, name, Mode::from_raw_mode(0o700))
                    }
                    Child::Inode(index) => {
                        let staged = tree.inodes[*index as usize].place.to_string();
                        linkat(&self.stage, staged, &dir, name, AtFlags::empty())
                    }
                    Child::Whiteout => {
                        mknodat(&dir, name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0))
                    }
                };
                made.map_err(self.error("make an entry in"))?;
            }
        }
        let marks = tree.marks(&live);
        // Children first: making them changed the times of their directory.
        for id in live.iter().rev() {
            let here = paths[*id as usize].take().unwrap_or_default();
            let dir = tree.dir(*id);
            let set = || {
                let fd = openat(&self.top, &here, flags, Mode::empty())?;
                for (name, value) in marks(*id) {
                    match fsetxattr(&fd, name, value, XattrFlags::empty()) {
                        // Without it a layer is as good as containerd's on the same file system.
                        Err(Errno::OPNOTSUPP) if name == types::IMPLIED_XATTR => {}
                        done => done?,
                    }
                }
                set_open(&fd, &dir.meta)
            };
            set().map_err(self.error("set the attributes of a directory in"))?;
        }
        std::fs::remove_dir_all(self.path.join(STAGE)).map_err(io("remove a directory of", &self.path))?;
        let size = self.size + live.len() as u64 * 4096;
        std::fs::write(self.path.join(INFO), format!("{content_size} {size}\n"))
            .map_err(io("write", &self.path))
    }
}

/// Owner first, since changing it clears set-id bits and capabilities; times last.
fn set_open(fd: impl AsFd, meta: &Meta) -> rustix::io::Result<()> {
    let (uid, gid) = owner(meta);
    fchown(&fd, uid, gid)?;
    each_xattr(&meta.xattrs, |name, value| fsetxattr(&fd, name, value, XattrFlags::empty()))?;
    fchmod(&fd, Mode::from_raw_mode(u32::from(meta.mode)))?;
    futimens(&fd, &times(meta))
}

fn owner(meta: &Meta) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))
}

fn times(meta: &Meta) -> Timestamps {
    let time = Timespec { tv_sec: meta.mtime, tv_nsec: i64::from(meta.nanos) };
    Timestamps { last_access: time, last_modification: time }
}

/// Attributes that the file system below does not know are left out, as containerd does.
fn each_xattr(
    xattrs: &Xattrs,
    set: impl Fn(&OsStr, &[u8]) -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    for (name, value) in xattrs {
        match set(OsStr::from_bytes(name), value) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
