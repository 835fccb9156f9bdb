//! Files into a root filesystem: the writing half of `docker cp`.
//!
//! Neither the tar nor the root is trusted. An entry's name is cleaned by its letters first; what remains is resolved
//! beneath the root, so that links on the way, in whatever hands, lead to places inside. The last component is never
//! followed: what stands there is replaced.

use crate::create::{self, Attributes};
use crate::error::{Context, Result, RootfsError};
use crate::reader::{Entry, Reader};
use crate::tree::{Kind, Meta};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use sys::Root;
use tar::EntryType;

/// How to unpack.
#[derive(Clone, Debug, Default)]
pub struct UnpackOptions {
    /// Refuse to replace a directory by something else, and the reverse.
    pub no_overwrite_dir_non_dir: bool,
    /// User and group that get everything; the tar's own otherwise.
    pub owner: Option<(u32, u32)>,
    /// The one name at the top that the tar may have, for one whose maker is not trusted to name its entries. Entries
    /// below it must lie in directories of the same tar. Hard links lead to its own files by the same rule.
    pub only: Option<OsString>,
    /// Refuse device nodes: on a host they open its own devices, whoever asked for them.
    pub no_devices: bool,
    /// Leave out what gives a program the rights of its owner: set-id bits and file capabilities.
    pub no_privileges: bool,
}

/// Unpacks a tar into the directory `dest`.
pub fn unpack(root: &Root, dest: &Path, tar: &mut dyn Read, options: &UnpackOptions) -> Result<()> {
    match root.resolve(dest, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(RootfsError::NoSuchPath { path: dest.to_owned() });
        }
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            return Err(RootfsError::NotADirectory { path: dest.to_owned() });
        }
        Err(e) => return Err(e).on("open", dest),
    }
    let mut unpacking =
        Unpacking { root, dest, options, parent: None, directories: Vec::new(), own: HashSet::new() };
    let mut reader = Reader::new(tar);
    while let Some(entry) = reader.next()? {
        unpacking.entry(entry, &mut reader)?;
    }
    unpacking.finish()?;
    // Let a writer end in peace: the padding after the last block, but not an endless stream.
    reader.drain(1 << 20).map_err(|source| RootfsError::Tar { source })?;
    Ok(())
}

struct Unpacking<'a> {
    root: &'a Root,
    dest: &'a Path,
    options: &'a UnpackOptions,
    /// The directory of the last entry.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Directories whose times are set when nothing more is put into them.
    directories: Vec<(PathBuf, (i64, u32))>,
    /// Directories of the tar itself, kept where it may lead nowhere else.
    own: HashSet<PathBuf>,
}

impl Unpacking<'_> {
    fn entry(&mut self, entry: Entry, content: &mut Reader<'_>) -> Result<()> {
        let name = || String::from_utf8_lossy(&entry.name).into_owned();
        let kind = match entry.kind {
            EntryType::Regular | EntryType::Continuous | EntryType::Link => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Char => Kind::Char,
            EntryType::Block => Kind::Block,
            EntryType::Fifo => Kind::Fifo,
            other => {
                return Err(RootfsError::EntryType { entry: name(), kind: char::from(other.as_byte()) });
            }
        };
        if self.options.no_devices && matches!(kind, Kind::Char | Kind::Block) {
            return Err(RootfsError::Device { entry: name() });
        }
        let path = self.clean(&entry.name, &entry.name)?;
        self.keep_within(&path, kind, &entry)?;
        let id = |value: u64| {
            u32::try_from(value).map_err(|_| {
                let what = format!("{:?} belongs to {value}, which is no user or group id", name());
                RootfsError::Tar { source: io::Error::new(io::ErrorKind::InvalidData, what) }
            })
        };
        let (uid, gid) = match self.options.owner {
            Some(owner) => owner,
            None => (id(entry.uid)?, id(entry.gid)?),
        };
        let (mut mode, mut xattrs) = (entry.mode, entry.xattrs);
        if self.options.no_privileges && kind != Kind::Directory {
            mode &= !0o6000;
            xattrs.retain(|x| !x.0.starts_with(b"security."));
        }
        let attributes = Attributes { mode, uid, gid, mtime: entry.mtime, xattrs: &xattrs };

        let Some(last) = path.file_name().map(OsStr::to_owned) else {
            // The destination itself.
            return match kind {
                Kind::Directory => self.directory_attributes(&path, &attributes),
                _ => Err(RootfsError::Breakout { entry: name(), dest: self.dest.to_owned() }),
            };
        };
        // Resolved before the directory is borrowed.
        let original = match entry.kind {
            EntryType::Link => Some(self.link_original(&entry.link, &entry.name)?),
            _ => None,
        };
        let dir = self.parent_of(&path)?;
        let stands = make_room(dir.as_fd(), &last, kind, &path, &name(), self.options)?;
        let at = dir.as_fd();
        let shown = self.dest.join(&path);
        match kind {
            _ if let Some((target_dir, target_name)) = original => {
                return rustix::fs::linkat(&target_dir, &target_name, at, &last, AtFlags::empty())
                    .on("link", &shown);
            }
            Kind::File => {
                let mut file = create::file(at, &last).on("make", &shown)?;
                room_for(&file, entry.size).on("write", &shown)?;
                copy(content, &mut file, &shown)?;
                create::apply(file.as_fd(), OsStr::new(""), kind, &attributes)
            }
            Kind::Directory => {
                if !stands {
                    match rustix::fs::mkdirat(at, &last, Mode::from_raw_mode(0o700)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(e) => return Err(e).on("make", &shown),
                    }
                }
                self.directories.push((path, attributes.mtime));
                create::apply(at, &last, kind, &attributes)
            }
            Kind::Symlink => rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), at, &last)
                .and_then(|()| create::apply(at, &last, kind, &attributes)),
            Kind::Char | Kind::Block | Kind::Fifo | Kind::Socket => {
                create::node(at, &last, kind, entry.device)
                    .and_then(|()| create::apply(at, &last, kind, &attributes))
            }
        }
        .on("make", &shown)
    }

    /// A name without `.`, `..`, and slashes in front, if it stays below the destination.
    fn clean(&self, name: &[u8], entry: &[u8]) -> Result<PathBuf> {
        let breakout = || RootfsError::Breakout {
            entry: String::from_utf8_lossy(entry).into_owned(),
            dest: self.dest.to_owned(),
        };
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in name.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => drop(parts.pop().ok_or_else(breakout)?),
                part if part.contains(&0) => return Err(breakout()),
                part => parts.push(part),
            }
        }
        Ok(parts.into_iter().map(OsStr::from_bytes).collect())
    }

    /// Refuses what is not below the only name allowed. A link of the tar is no directory of it, so nothing is led away.
    fn keep_within(&mut self, path: &Path, kind: Kind, entry: &Entry) -> Result<()> {
        let Some(only) = &self.options.only else { return Ok(()) };
        let own = |path: &Path, set: &HashSet<PathBuf>| {
            path == Path::new(only) || path.parent().is_some_and(|dir| set.contains(dir))
        };
        let target = match entry.kind {
            EntryType::Link => Some(self.clean(&entry.link, &entry.name)?),
            _ => None,
        };
        if !own(path, &self.own) || target.is_some_and(|t| !own(&t, &self.own)) {
            let entry = String::from_utf8_lossy(&entry.name).into_owned();
            return Err(RootfsError::Breakout { entry, dest: self.dest.join(only) });
        }
        match kind {
            Kind::Directory => drop(self.own.insert(path.to_owned())),
            _ => drop(self.own.remove(path)),
        }
        Ok(())
    }

    /// The directory that an entry goes into, made with its parents if it is not there.
    fn parent_of(&mut self, path: &Path) -> Result<OwnedFd> {
        let dir = path.parent().unwrap_or(Path::new(""));
        if self.parent.as_ref().is_none_or(|(known, _)| known != dir) {
            let full = self.dest.join(dir);
            let fd = self.root.mkdir_all(&full, Mode::from_raw_mode(0o755)).on("make", &full)?;
            self.parent = Some((dir.to_owned(), fd));
        }
        match &self.parent {
            Some((_, fd)) => fd.try_clone().on("open", dir),
            None => Err(Errno::NOENT).on("open", dir),
        }
    }

    /// What a hard link shall be another name of.
    fn link_original(&self, target: &[u8], entry: &[u8]) -> Result<(OwnedFd, OsString)> {
        let path = self.dest.join(self.clean(target, entry)?);
        self.root.parent(&path).on("find the target of a link,", &path)
    }

    fn directory_attributes(&mut self, path: &Path, attributes: &Attributes<'_>) -> Result<()> {
        let full = self.dest.join(path);
        let fd = self.root.resolve(&full, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        let fd = fd.on("open", &full)?;
        self.directories.push((path.to_owned(), attributes.mtime));
        create::apply(fd.as_fd(), OsStr::new(""), Kind::Directory, attributes).on("change", &full)
    }

    /// Sets the times of directories, the innermost first.
    fn finish(&mut self) -> Result<()> {
        for (path, mtime) in self.directories.drain(..).rev() {
            let full = self.dest.join(path);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            // Gone or replaced meanwhile: not ours any more.
            let Ok(fd) = self.root.resolve(&full, flags, Mode::empty()) else { continue };
            create::set_times(fd.as_fd(), mtime).on("set the times of", &full)?;
        }
        Ok(())
    }
}

/// Removes what stands in the way of an entry, if it may be. True: a directory is there and stays.
fn make_room(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    kind: Kind,
    path: &Path,
    entry: &str,
    options: &UnpackOptions,
) -> Result<bool> {
    let there = match Meta::at(dir, name) {
        Err(Errno::NOENT) => return Ok(false),
        other => other.on("look at", path)?,
    };
    let is_dir = kind == Kind::Directory;
    if there.is_dir() && is_dir {
        return Ok(true);
    }
    if options.no_overwrite_dir_non_dir && there.is_dir() != is_dir {
        let (path, entry) = (path.to_owned(), entry.to_owned());
        return Err(RootfsError::Overwrite { directory: there.is_dir(), path, entry });
    }
    create::remove_all(dir, name).on("replace", path)?;
    Ok(false)
}

/// Refuses a size that the whole file system could not hold, before writing holes without end.
fn room_for(file: &impl AsFd, size: u64) -> rustix::io::Result<()> {
    let fs = rustix::fs::fstatfs(file)?;
    let total = fs.f_blocks.saturating_mul(u64::try_from(fs.f_bsize).unwrap_or(4096));
    if size > total { Err(Errno::NOSPC) } else { Ok(()) }
}

/// Copies an entry's content; errors of either side are told apart.
fn copy(from: &mut impl Read, to: &mut impl io::Write, path: &Path) -> Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(RootfsError::Tar { source }),
        };
        to.write_all(&buffer[..n]).on("write", path)?;
    }
}
