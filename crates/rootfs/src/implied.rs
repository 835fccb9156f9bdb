//! Directories that a layer has only because its tar names something in them. Overlayfs would show their invented
//! attributes (0755, root's) instead of those that the layers below say: `/tmp` would lose its sticky bit. Docker and
//! containerd give such a directory the attributes of the one below it.
//!
//! Layers mark what they implied, and their root where there is any. For a chain of layers with marks a small tmpfs is
//! mounted on top, made once per boot and chain, with nothing in it but those directories, and with the right
//! attributes. It is named, locked and swept like a layer; a layer stays what it is, whatever it is stacked on.
//!
//! ```text
//! <layer_mounts>/<sha256 of the chain>/
//! ```

use crate::base;
use crate::create::{self, Attributes};
use crate::error::{Context, Result};
use crate::tree::{self, Kind, Meta};
use rustix::fs::{CWD, Mode, OFlags, mkdirat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen, move_mount,
};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use sys::Root;
use types::RootfsPlan;

/// More directories than anybody forgot, and few enough for the host's memory.
const MAX_DIRS: &str = "262144";

/// What the directory of a chain is called: like a layer, by 64 hexadecimal digits.
pub(crate) fn name(plan: &RootfsPlan) -> String {
    let mut hash = Sha256::new_with_prefix(b"implied");
    plan.layers.iter().for_each(|layer| hash.update(layer.diff_id.bytes()));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether layers (the base first) hold implied directories above another layer.
pub(crate) fn is_needed(lowers: &[PathBuf]) -> bool {
    lowers.iter().skip(2).any(|path| has_mark(path))
}

fn has_mark(path: &Path) -> bool {
    rustix::fs::lgetxattr(path, types::IMPLIED_XATTR, &mut [0u8; 1][..]).is_ok()
}

/// Makes the directory for these layers and mounts it at `mount`.
pub(crate) fn attach(mount: &Path, lowers: &[PathBuf]) -> Result<()> {
    let detached = tmpfs().on("make a temporary file system for", mount)?;
    let top = tree::subdirectory(detached.as_fd(), OsStr::new(".")).on("open", mount)?;
    let image = lowers.get(1..).unwrap_or_default();
    let mut layers = Vec::with_capacity(image.len());
    for path in image {
        layers.push(Layer { root: Root::open(path).on("open", path)?, marked: has_mark(path) });
    }
    let all: Vec<usize> = (0..layers.len()).rev().collect();
    Walk { layers, top: &top }.directory(Path::new(""), &all, &mut Vec::new())?;
    if let Some(root) = base::root_directory(lowers)? {
        use std::os::unix::fs::MetadataExt;
        let attributes = Attributes {
            mode: root.mode(),
            uid: root.uid(),
            gid: root.gid(),
            mtime: (root.mtime(), u32::try_from(root.mtime_nsec()).unwrap_or(0)),
            xattrs: &[],
        };
        create::apply(top.as_fd(), OsStr::new(""), Kind::Directory, &attributes).on("change", mount)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(mount) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e).on("make", mount),
        _ => {}
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&detached, "", CWD, mount, flags).on("mount the implied directories at", mount)
}

fn tmpfs() -> rustix::io::Result<OwnedFd> {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("mode", "0755"), ("size", "64k"), ("nr_inodes", MAX_DIRS)] {
        fsconfig_set_string(&fs, key, value)?;
    }
    fsconfig_create(&fs)?;
    let attr = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attr)
}

struct Layer {
    root: Root,
    /// It holds implied directories.
    marked: bool,
}

/// A directory on the way from the root to where the walk is.
struct Step {
    path: PathBuf,
    /// The layer whose attributes it shows.
    source: usize,
    made: bool,
}

struct Walk<'a> {
    /// Bottom first.
    layers: Vec<Layer>,
    top: &'a OwnedFd,
}

impl Walk<'_> {
    /// Looks beneath a directory that these layers show, the uppermost first.
    fn directory(&self, path: &Path, showing: &[usize], trail: &mut Vec<Step>) -> Result<()> {
        for name in self.subdirectories(path, showing)? {
            let path = path.join(name);
            let shown = self.shown(&path, showing)?;
            let layers: Vec<usize> = shown.iter().map(|(layer, _)| *layer).collect();
            if !layers.iter().any(|layer| self.is_marked(*layer)) {
                continue;
            }
            let real = shown.iter().find(|(_, implied)| !implied).map(|(layer, _)| *layer);
            let covered = shown.first().is_some_and(|(_, implied)| *implied);
            let Some(source) = real.or(layers.first().copied()) else { continue };
            trail.push(Step { path: path.clone(), source, made: false });
            if covered && real.is_some() {
                self.make(trail)?;
            }
            self.directory(&path, &layers, trail)?;
            if let Some(step) = trail.pop().filter(|step| step.made) {
                self.finish(&step)?;
            }
        }
        Ok(())
    }

    fn is_marked(&self, layer: usize) -> bool {
        self.layers.get(layer).is_some_and(|layer| layer.marked)
    }

    /// Names of the directories beneath one in the layers with marks.
    fn subdirectories(&self, path: &Path, showing: &[usize]) -> Result<BTreeSet<OsString>> {
        let mut found = BTreeSet::new();
        for layer in showing.iter().filter(|layer| self.is_marked(**layer)) {
            let Some(dir) = self.open(*layer, path).on("open", path)? else { continue };
            for name in tree::names(&dir).on("read", path)? {
                if Meta::at(dir.as_fd(), &name).on("look at", path)?.is_dir() {
                    found.insert(name);
                }
            }
        }
        Ok(found)
    }

    /// The layers that overlayfs joins to one directory, and whether each only implies it.
    fn shown(&self, path: &Path, parents: &[usize]) -> Result<Vec<(usize, bool)>> {
        let mut found = Vec::new();
        for layer in parents {
            match self.open(*layer, path) {
                Ok(None) => {}
                Ok(Some(dir)) => {
                    found.push((*layer, tree::is_implied(dir.as_fd())));
                    if tree::is_opaque(dir.as_fd()) {
                        break;
                    }
                }
                // A file, a link or a whiteout, which hides what is below.
                Err(Errno::NOTDIR | Errno::LOOP) => break,
                Err(e) => return Err(e).on("open", path),
            }
        }
        Ok(found)
    }

    fn open(&self, layer: usize, path: &Path) -> rustix::io::Result<Option<OwnedFd>> {
        let Some(layer) = self.layers.get(layer) else { return Ok(None) };
        // Beneath the root, and all parents are directories of this layer: no link is on the way.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        match layer.root.resolve(path, flags, Mode::empty()) {
            Ok(dir) => Ok(Some(dir)),
            Err(e) => match Errno::from_io_error(&e) {
                Some(Errno::NOENT) => Ok(None),
                other => Err(other.unwrap_or(Errno::IO)),
            },
        }
    }

    /// Makes the last directory of the trail, and those on the way that are not made yet.
    fn make(&self, trail: &mut [Step]) -> Result<()> {
        for step in trail.iter_mut().filter(|step| !step.made) {
            mkdirat(self.top, &step.path, Mode::from_raw_mode(0o755)).on("make", &step.path)?;
            step.made = true;
        }
        Ok(())
    }

    /// Gives a directory its attributes, now that nothing in it changes its time any more.
    fn finish(&self, step: &Step) -> Result<()> {
        let path = &step.path;
        let Some(source) = self.open(step.source, path).on("open", path)? else { return Ok(()) };
        let empty = OsStr::new("");
        let meta = Meta::at(source.as_fd(), empty).on("look at", path)?;
        let xattrs = tree::xattrs(source.as_fd(), empty).on("read the attributes of", path)?;
        let attributes =
            Attributes { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime, xattrs: &xattrs };
        create::apply(self.top.as_fd(), path.as_os_str(), Kind::Directory, &attributes).on("change", path)
    }
}
