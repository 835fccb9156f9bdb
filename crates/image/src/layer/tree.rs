//! The names of a layer while it is read: which path is which inode, decided the way extraction would decide it.
//!
//! Both formats are written from this one tree, so both give the same answer to every hard question:
//!
//! - a later entry replaces an earlier one of the same path; a directory over a directory only replaces its
//!   attributes;
//! - parents that the tar forgot are directories of mode 0755, owned by root, as old as the epoch, and marked: over a
//!   layer that has the directory they take that one's attributes (see the `rootfs` crate);
//! - a parent that is a symbolic link *of this layer* is followed inside the layer, at most 40 times, as
//!   containerd does (a path through a file is refused: containerd fails there too);
//! - `..` may not lead above the root of the layer, whether in a path or in the target of a hard link;
//! - whiteouts (OCI image-spec, layer.md) hide lower layers only: a name that this layer gives, before or after its
//!   whiteout, is there; a directory of such a name is opaque.
//!
//! Memory is for names and directories only: files, links and devices are a number here.

use super::error::{LayerError, Result, entry, shown};
use super::tar::{Meta, Xattrs};
use std::collections::BTreeMap;

/// Longest name, and longest path with its NUL (`NAME_MAX` and `PATH_MAX` of Linux).
const NAME_MAX: usize = 255;
const PATH_MAX: usize = 4096;
/// Symbolic links in one path (`MAXSYMLINKS` of Linux).
const MAX_LINKS: usize = 40;
/// Bytes of extended attributes kept for directories.
const MAX_KEPT: usize = 64 << 20;

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Name and value of an extended attribute that is ours.
pub(super) type Mark = (&'static str, &'static [u8]);

/// Index of a directory. The root is 0.
pub(super) type DirId = u32;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Child {
    Dir(DirId),
    /// Index into [`Tree::inodes`].
    Inode(u32),
    Whiteout,
}

/// Type of an inode that is no directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    File,
    Symlink,
    Char,
    Block,
    Fifo,
}

/// A file, link, device or fifo.
#[derive(Debug)]
pub(super) struct Inode {
    /// Where the writer put it.
    pub place: u64,
    /// Names it has.
    pub links: u32,
    pub kind: Type,
    /// Target, if it is a symbolic link.
    pub target: Option<Box<[u8]>>,
}

/// A directory.
#[derive(Debug, Default)]
pub(super) struct Dir {
    pub parent: DirId,
    pub children: BTreeMap<Box<[u8]>, Child>,
    pub meta: Meta,
    /// Hides what lower layers hold under its path.
    pub opaque: bool,
    /// The tar does not mention it: its attributes are made up.
    pub implied: bool,
}

/// What is to be done with an entry whose path was looked at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing: it was a whiteout, or metadata of aufs.
    Done,
    /// It is the root.
    Root,
    /// It gets this name.
    Name(DirId, Box<[u8]>),
}

/// All names of a layer.
#[derive(Debug)]
pub(super) struct Tree {
    pub dirs: Vec<Dir>,
    pub inodes: Vec<Inode>,
    max_entries: u64,
    names: u64,
    kept: usize,
}

impl Tree {
    pub(super) fn new(max_entries: u64) -> Self {
        let root = Dir { meta: implied(), ..Dir::default() };
        Self { dirs: vec![root], inodes: Vec::new(), max_entries, names: 0, kept: 0 }
    }

    /// Finds where an entry belongs: makes its parents, carries out whiteouts.
    pub(super) fn locate(&mut self, path: &[u8]) -> Result<Place> {
        let parts = clean(path)?;
        if parts.iter().any(|p| p.starts_with(WHITEOUT_META) && *p != OPAQUE) {
            return Ok(Place::Done);
        }
        let Some((name, parents)) = parts.split_last() else { return Ok(Place::Root) };
        let parent = self.walk(parents, path)?;
        if *name == OPAQUE {
            self.dir_mut(parent).opaque = true;
            return Ok(Place::Done);
        }
        let Some(hidden) = name.strip_prefix(WHITEOUT) else {
            return Ok(Place::Name(parent, (*name).into()));
        };
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(entry(path, "is a whiteout of nothing"));
        }
        match self.dir(parent).children.get(hidden) {
            None => {
                self.count()?;
                self.dir_mut(parent).children.insert(hidden.into(), Child::Whiteout);
            }
            Some(Child::Dir(there)) => {
                let there = *there;
                self.dir_mut(there).opaque = true;
            }
            Some(_) => {}
        }
        Ok(Place::Done)
    }

    /// Makes a directory, or gives an existing one these attributes.
    pub(super) fn put_dir(&mut self, place: Place, meta: Meta) -> Result<()> {
        self.kept += meta.xattrs.iter().map(|(n, v)| n.len() + v.len() + 48).sum::<usize>();
        if self.kept > MAX_KEPT {
            return Err(LayerError::Limit {
                what: "the extended attributes of its directories",
                limit: MAX_KEPT as u64,
            });
        }
        let id = match place {
            Place::Done => return Ok(()),
            Place::Root => 0,
            Place::Name(parent, name) => match self.dir(parent).children.get(&name) {
                Some(Child::Dir(there)) => *there,
                _ => self.make_dir(parent, name)?,
            },
        };
        let dir = self.dir_mut(id);
        dir.meta = meta;
        dir.implied = false;
        Ok(())
    }

    /// Names a new inode.
    pub(super) fn put_inode(&mut self, parent: DirId, name: Box<[u8]>, inode: Inode) -> Result<()> {
        let index = u32::try_from(self.inodes.len()).map_err(|_| too_many(u64::from(u32::MAX)))?;
        self.inodes.push(Inode { links: 0, ..inode });
        self.put_link(parent, name, index)
    }

    /// Gives an inode one more name.
    pub(super) fn put_link(&mut self, parent: DirId, name: Box<[u8]>, index: u32) -> Result<()> {
        self.count()?;
        // First the new name, then the old one's end: it may be the very same inode.
        if let Some(inode) = self.inodes.get_mut(index as usize) {
            inode.links = inode.links.checked_add(1).ok_or_else(|| too_many(u64::from(u32::MAX)))?;
        }
        let old = self.dir_mut(parent).children.insert(name, Child::Inode(index));
        self.forget(old);
        Ok(())
    }

    /// The inode that a hard link names.
    pub(super) fn link_target(&mut self, path: &[u8], target: &[u8]) -> Result<u32> {
        let missing = || LayerError::MissingTarget { path: shown(path), target: shown(target) };
        let parts = clean(target)?;
        let (name, parents) = parts.split_last().ok_or_else(missing)?;
        let parent = self.find(parents).ok_or_else(missing)?;
        match self.dir(parent).children.get(*name) {
            Some(Child::Inode(index)) => Ok(*index),
            Some(Child::Dir(_)) => Err(entry(path, "is a hard link to a directory")),
            _ => Err(missing()),
        }
    }

    pub(super) fn dir(&self, id: DirId) -> &Dir {
        &self.dirs[id as usize]
    }

    fn dir_mut(&mut self, id: DirId) -> &mut Dir {
        &mut self.dirs[id as usize]
    }

    /// Directories that are reachable, parents before their children.
    pub(super) fn live(&self) -> Vec<DirId> {
        let mut live = vec![0];
        let mut at = 0;
        while let Some(id) = live.get(at).copied() {
            at += 1;
            live.extend(self.dir(id).children.values().filter_map(|c| match c {
                Child::Dir(child) => Some(*child),
                _ => None,
            }));
        }
        live
    }

    /// The attributes by which overlayfs and we find out what these directories are; the root says whether there is
    /// anything to find.
    pub(super) fn marks(&self, live: &[DirId]) -> impl Fn(DirId) -> Vec<Mark> {
        let any = live.iter().any(|id| self.dir(*id).implied);
        move |id| {
            let implied = if id == 0 { any } else { self.dir(id).implied };
            let opaque = self.dir(id).opaque.then_some((OPAQUE_XATTR, &b"y"[..]));
            opaque.into_iter().chain(implied.then_some((types::IMPLIED_XATTR, &b"y"[..]))).collect()
        }
    }

    /// Follows `parts`, making what is missing.
    fn walk(&mut self, parts: &[&[u8]], path: &[u8]) -> Result<DirId> {
        self.resolve(parts, Some(path)).map(|found| found.unwrap_or(0))
    }

    /// Follows `parts` through what is there.
    fn find(&mut self, parts: &[&[u8]]) -> Option<DirId> {
        self.resolve(parts, None).ok().flatten()
    }

    /// The directory at `parts`. What is missing is made on behalf of `make`, or else the answer is `None`.
    fn resolve(&mut self, parts: &[&[u8]], make: Option<&[u8]>) -> Result<Option<DirId>> {
        let mut at = 0;
        let mut links = 0;
        // The common case allocates nothing: only a link among the parents needs a list of its own.
        let mut rest: Vec<Box<[u8]>> = Vec::new();
        let mut parts = parts.iter();
        loop {
            let owned;
            let part: &[u8] = if let Some(part) = rest.pop() {
                owned = part;
                &owned
            } else if let Some(part) = parts.next() {
                part
            } else {
                return Ok(Some(at));
            };
            match part {
                b"" | b"." => continue,
                b".." => {
                    at = self.dir(at).parent;
                    continue;
                }
                _ => {}
            }
            match (self.dir(at).children.get(part).copied(), make) {
                (Some(Child::Dir(child)), _) => at = child,
                (Some(Child::Inode(index)), _) => {
                    let target = self.inodes.get(index as usize).and_then(|inode| inode.target.as_deref());
                    let path = make.unwrap_or_default();
                    let Some(target) = target else {
                        return Err(entry(
                            path,
                            format!("leads through {:?}, which is no directory", shown(part)),
                        ));
                    };
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(entry(path, "leads through too many symbolic links"));
                    }
                    if target.first() == Some(&b'/') {
                        at = 0;
                    }
                    let before = rest.len();
                    rest.extend(target.split(|b| *b == b'/').filter(|p| !p.is_empty()).map(Into::into));
                    rest[before..].reverse();
                }
                (Some(Child::Whiteout) | None, Some(path)) => {
                    if part.len() > NAME_MAX {
                        return Err(entry(path, "leads through a link to a name that is too long"));
                    }
                    at = self.make_dir(at, part.into())?;
                }
                (Some(Child::Whiteout) | None, None) => return Ok(None),
            }
        }
    }

    /// A new, empty directory in the place of whatever has this name.
    fn make_dir(&mut self, parent: DirId, name: Box<[u8]>) -> Result<DirId> {
        self.count()?;
        let id = u32::try_from(self.dirs.len()).map_err(|_| too_many(u64::from(u32::MAX)))?;
        let old = self.dir_mut(parent).children.insert(name, Child::Dir(id));
        let opaque = old == Some(Child::Whiteout);
        self.dirs.push(Dir { parent, opaque, meta: implied(), implied: true, ..Dir::default() });
        self.forget(old);
        Ok(id)
    }

    /// Takes away the names beneath something that was replaced.
    fn forget(&mut self, old: Option<Child>) {
        let mut gone: Vec<Child> = old.into_iter().collect();
        while let Some(child) = gone.pop() {
            match child {
                Child::Dir(id) => {
                    let dir = self.dir_mut(id);
                    let children = std::mem::take(&mut dir.children);
                    let xattrs: Xattrs = std::mem::take(&mut dir.meta.xattrs);
                    self.kept -=
                        xattrs.iter().map(|(n, v)| n.len() + v.len() + 48).sum::<usize>().min(self.kept);
                    gone.extend(children.into_values());
                }
                Child::Inode(index) => {
                    if let Some(inode) = self.inodes.get_mut(index as usize) {
                        inode.links = inode.links.saturating_sub(1);
                    }
                }
                Child::Whiteout => {}
            }
        }
    }

    /// One more name: they are limited, forgotten parents included.
    fn count(&mut self) -> Result<()> {
        self.names += 1;
        if self.names > self.max_entries { Err(too_many(self.max_entries)) } else { Ok(()) }
    }
}

fn too_many(limit: u64) -> LayerError {
    LayerError::Limit { what: "the number of its entries", limit }
}

/// Attributes of a directory that the tar does not mention.
fn implied() -> Meta {
    Meta { mode: 0o755, ..Meta::default() }
}

/// The components of a path, without `.` and `..`; an absolute path starts at the root of the layer.
fn clean(path: &[u8]) -> Result<Vec<&[u8]>> {
    if path.is_empty() {
        return Err(entry(path, "is an entry without a name"));
    }
    if path.len() >= PATH_MAX {
        return Err(entry(path, format!("is longer than {} bytes", PATH_MAX - 1)));
    }
    let mut parts: Vec<&[u8]> = Vec::with_capacity(16);
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or_else(|| LayerError::Escapes { path: shown(path) })?;
            }
            _ if part.len() > NAME_MAX => {
                return Err(entry(path, format!("has a name longer than {NAME_MAX} bytes")));
            }
            _ => parts.push(part),
        }
    }
    Ok(parts)
}
