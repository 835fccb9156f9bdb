//! What a container changed: its upper directory compared with its layers, listed (`docker diff`) or written as an
//! OCI layer (`docker commit`; OCI image-spec, `layer.md`, for whiteouts and opaque directories).
//!
//! An upper directory holds more than changes: overlayfs copies each directory on the way to a changed file, and marks
//! every new directory opaque, whether it hides something or not. So a copied directory counts as changed only
//! if its mode, owner or attributes differ, or something below it changed; and an opaque one deletes what the layers
//! hold in its place, if they do.

use crate::error::{Context, Result};
#[cfg(feature = "mount")]
use crate::overlay::{Access, MountOptions, mount};
use crate::tarball::Tarball;
use crate::tree::{self, Meta};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
#[cfg(feature = "mount")]
use types::RootfsPlan;
use types::docker::{ChangeType, FilesystemChange};

const OPAQUE: &str = ".wh..wh..opq";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Added,
    Modified,
    Deleted,
}

struct Change {
    /// Below the root, without a slash in front.
    path: PathBuf,
    kind: Kind,
    /// A directory that hides what the layers have in its place; only in archives.
    opaque: bool,
}

/// What the container changed, in the order of a walk by name.
#[cfg(feature = "mount")]
pub fn changes(plan: &RootfsPlan) -> Result<Vec<FilesystemChange>> {
    with_image(plan, Vec::new(), changes_between)
}

/// Writes what the container changed as an uncompressed OCI layer.
#[cfg(feature = "mount")]
pub fn archive_changes(plan: &RootfsPlan, out: &mut dyn Write) -> Result<()> {
    let written = with_image(plan, false, |upper, image| {
        archive_changes_between(upper, image, out)?;
        Ok(true)
    })?;
    if written { Ok(()) } else { Tarball::new(out).finish() }
}

/// Calls `work` with the upper directory and the image's root; a container without an upper directory has no changes.
#[cfg(feature = "mount")]
fn with_image<T>(
    plan: &RootfsPlan,
    none: T,
    work: impl FnOnce(&Path, BorrowedFd<'_>) -> Result<T>,
) -> Result<T> {
    let upper = plan.writable.join("upper");
    match tree::subdirectory(rustix::fs::CWD, upper.as_os_str()) {
        Err(Errno::NOENT) => return Ok(none),
        other => drop(other.on("open", &upper)?),
    };
    let image = mount(plan, &MountOptions { access: Access::LayersOnly, ..MountOptions::default() })?;
    let done = work(&upper, image.fd())?;
    image.release()?;
    Ok(done)
}

/// How an upper directory differs from the image below it, in the order of a walk by name.
pub fn changes_between(upper: &Path, image: BorrowedFd<'_>) -> Result<Vec<FilesystemChange>> {
    let found = compare(upper, image, false)?;
    Ok(found
        .into_iter()
        .map(|change| FilesystemChange {
            path: format!("/{}", change.path.to_string_lossy()),
            kind: match change.kind {
                Kind::Modified => ChangeType::_0,
                Kind::Added => ChangeType::_1,
                Kind::Deleted => ChangeType::_2,
            },
        })
        .collect())
}

/// Writes how an upper directory differs from the image below it, as an uncompressed OCI layer.
pub fn archive_changes_between(upper: &Path, image: BorrowedFd<'_>, out: &mut dyn Write) -> Result<()> {
    let changes = compare(upper, image, true)?;
    let mut tarball = Tarball::new(out);
    let mut parent: Option<(PathBuf, OwnedFd)> = None;
    for change in changes {
        let dir = change.path.parent().unwrap_or(Path::new(""));
        let name = change.path.file_name().unwrap_or_default();
        if change.kind == Kind::Deleted {
            let marker = dir.join([OsStr::new(".wh."), name].join(OsStr::new("")));
            tarball.marker(marker.as_os_str().as_bytes())?;
            continue;
        }
        if parent.as_ref().is_none_or(|(path, _)| path != dir) {
            let root = sys::Root::open(upper).on("open", upper)?;
            match root.handle(dir) {
                Ok(fd) => parent = Some((dir.to_owned(), fd)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e).on("open", upper.join(dir)),
            }
        }
        let Some((_, fd)) = &parent else { continue };
        let meta = match Meta::at(fd.as_fd(), name) {
            Err(Errno::NOENT) => continue,
            other => other.on("look at", upper.join(&change.path))?,
        };
        tarball.add(fd.as_fd(), name, &meta, change.path.as_os_str().as_bytes(), false)?;
        if change.opaque {
            tarball.marker(change.path.join(OPAQUE).as_os_str().as_bytes())?;
        }
    }
    tarball.finish()
}

fn compare(path: &Path, image: BorrowedFd<'_>, archive: bool) -> Result<Vec<Change>> {
    let upper = tree::subdirectory(rustix::fs::CWD, path.as_os_str()).on("open", path)?;
    let lower = tree::subdirectory(image, OsStr::new(".")).on("open the image of", path)?;
    let mut walk = Walk { base: path, archive, found: Vec::new() };
    walk.directory(&upper, Some(&lower), false, Path::new(""))?;
    Ok(walk.found)
}

struct Walk<'a> {
    /// For messages.
    base: &'a Path,
    archive: bool,
    found: Vec<Change>,
}

impl Walk<'_> {
    /// Compares one directory. With `replaced`, names that only the layers have count as deleted.
    fn directory(
        &mut self,
        upper: &OwnedFd,
        lower: Option<&OwnedFd>,
        replaced: bool,
        path: &Path,
    ) -> Result<()> {
        let mut names: BTreeSet<OsString> =
            tree::names(upper).on("read", self.base.join(path))?.into_iter().collect();
        if let (true, Some(lower)) = (replaced, lower) {
            names.extend(tree::names(lower).on("read the image's", Path::new("/").join(path))?);
        }
        for name in names {
            self.entry(upper, lower, &name, path.join(&name))?;
        }
        Ok(())
    }

    fn entry(&mut self, upper: &OwnedFd, lower: Option<&OwnedFd>, name: &OsStr, path: PathBuf) -> Result<()> {
        let look = |dir: &OwnedFd| match Meta::at(dir.as_fd(), name) {
            Ok(meta) => Ok(Some(meta)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e).on("look at", self.base.join(&path)),
        };
        let below = lower.map_or(Ok(None), look)?;
        let above = look(upper)?;
        let kind = match (above, below) {
            (None, None) => return Ok(()),
            (None, Some(_)) => Kind::Deleted,
            (Some(above), Some(_)) if above.is_whiteout() => Kind::Deleted,
            (Some(above), None) if above.is_whiteout() => return Ok(()),
            (Some(_), Some(_)) => Kind::Modified,
            (Some(_), None) => Kind::Added,
        };
        let at = self.found.len();
        let directory = above.filter(|a| a.is_dir() && kind != Kind::Deleted);
        let Some(meta) = directory else {
            self.found.push(Change { path, kind, opaque: false });
            return Ok(());
        };
        let above = tree::subdirectory(upper.as_fd(), name).on("open", self.base.join(&path))?;
        let below = match below.filter(Meta::is_dir).zip(lower) {
            None => None,
            Some((below, lower)) => {
                Some((below, tree::subdirectory(lower.as_fd(), name).on("open the image's", &path)?))
            }
        };
        let opaque = below.is_some() && tree::is_opaque(above.as_fd());
        self.found.push(Change { path: path.clone(), kind, opaque: opaque && self.archive });
        match &below {
            // In an archive the mark deletes everything, and all that is above is written.
            Some(_) if opaque && self.archive => self.directory(&above, None, false, &path)?,
            Some((_, below)) => self.directory(&above, Some(below), opaque, &path)?,
            None => self.directory(&above, None, false, &path)?,
        }
        let unchanged = self.found.len() == at + 1 && !(opaque && self.archive);
        if let (true, Some((meta_below, below))) = (unchanged, &below) {
            let empty = OsStr::new("");
            let same = (meta.mode, meta.uid, meta.gid) == (meta_below.mode, meta_below.uid, meta_below.gid)
                && tree::xattrs(above.as_fd(), empty).on("read the attributes of", &path)?
                    == tree::xattrs(below.as_fd(), empty).on("read the attributes of", &path)?;
            if same {
                self.found.pop();
            }
        }
        Ok(())
    }
}
