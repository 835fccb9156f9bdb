//! Layers mounted once per host, so that all containers share their page cache.
//!
//! ```text
//! <layer_mounts>/<hex>/      the layer, mounted read-only
//! <layer_mounts>/<hex>.lock  each user holds it shared, for as long as it wants new containers to share the mount
//! <layer_mounts>/.mounting   held exclusively while something is being mounted
//! <layer_mounts>/<sha256>/   attributes of a chain's implied directories, treated like a layer, see `implied`
//! <layer_mounts>/base/       an ordinary directory, the bottom of every root filesystem, see `base`
//! <layer_mounts>/empty/      stands in where overlayfs wants two layers and there is one
//! ```
//!
//! The rules, and why no crash and no race does harm:
//!
//! - A user takes `<hex>.lock` shared *first*, and only then looks whether the layer is mounted. Whoever unmounts
//!   holds the same lock exclusively. So what a user found mounted stays mounted.
//! - Users that find the layer unmounted agree on who mounts it through `.mounting`. No lock is ever
//!   converted on the way up, as `flock(2)` does not promise to convert atomically.
//! - The last user to let go converts its shared lock to an exclusive one, without waiting. Where that fails somebody
//!   else uses the layer, and the kernel has dropped the shared lock already, so of several who let go at
//!   once the last one succeeds.
//! - A killed user's lock is freed by the kernel; [`sweep`] unmounts what nobody holds.
//! - Lock files are unlinked only under their exclusive lock; `sys::file::Lock` takes a lock again if its file was
//!   unlinked while it waited.
//!
//! Safety never hangs on these locks: an overlay holds its lower layers by itself, so that unmounting one here
//! costs later containers the shared page cache and running ones nothing.

use crate::error::{Context, Result, RootfsError};
use crate::implied;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use sys::file::Lock;
use types::{Digest, LayerFormat, LayerPlan, RootfsPlan};

/// The layers of one root filesystem, in use. Dropping it lets go of them.
#[derive(Debug)]
pub struct Layers {
    held: Vec<Held>,
    lowers: Vec<PathBuf>,
}

#[derive(Debug)]
struct Held {
    /// `None` once let go.
    lock: Option<Lock>,
    mount: PathBuf,
}

impl Layers {
    /// Mounts what is not mounted yet and holds it. The caller must be in the host's mount namespace.
    pub fn acquire(plan: &RootfsPlan) -> Result<Self> {
        let dir = &plan.layer_mounts;
        let mut layers = Self { held: Vec::new(), lowers: Vec::with_capacity(plan.layers.len() + 1) };
        layers.lowers.push(base(dir)?);
        for layer in &plan.layers {
            match layer.format {
                LayerFormat::Dir => layers.lowers.push(layer.path.clone()),
                LayerFormat::Erofs => {
                    let mount = dir.join(layer.diff_id.hex());
                    // The same layer twice in one image: one lock is enough, and two could not be upgraded.
                    if !layers.held.iter().any(|h| h.mount == mount) {
                        let lock = lock_file(&mount);
                        let lock = Some(Lock::shared(&lock).on("lock", &lock)?);
                        // Held before it is mounted: should that fail, dropping it removes what there is.
                        layers.held.push(Held { lock, mount: mount.clone() });
                        ensure(dir, &mount, layer)?;
                    }
                    layers.lowers.push(mount);
                }
            }
        }
        layers.keep_topmost();
        if implied::is_needed(&layers.lowers) {
            layers.cover_implied(plan)?;
        }
        Ok(layers)
    }

    /// Puts on top what implied directories of these layers should look like.
    fn cover_implied(&mut self, plan: &RootfsPlan) -> Result<()> {
        let dir = &plan.layer_mounts;
        let mount = dir.join(implied::name(plan));
        let lock = lock_file(&mount);
        let lock = Some(Lock::shared(&lock).on("lock", &lock)?);
        self.held.push(Held { lock, mount: mount.clone() });
        if !is_mount(&mount)? {
            let _mounting = mounting(dir)?;
            if !is_mount(&mount)? {
                implied::attach(&mount, &self.lowers)?;
            }
        }
        self.lowers.push(mount);
        Ok(())
    }

    /// A layer that comes twice counts where it is topmost: all it holds hides what it held below. Overlayfs
    /// refuses to have it twice.
    fn keep_topmost(&mut self) {
        let lowers = &self.lowers;
        let keep: Vec<_> = (0..lowers.len()).filter(|&i| !lowers[i + 1..].contains(&lowers[i])).collect();
        if keep.len() < lowers.len() {
            self.lowers = keep.into_iter().map(|i| lowers[i].clone()).collect();
        }
    }

    /// Holds what a dead supervisor held, for the one that takes its place. Layers that a sweep has unmounted in
    /// between stay unmounted: the running container does not need them.
    pub fn adopt(plan: &RootfsPlan) -> Result<Self> {
        let mut layers = Self { held: Vec::new(), lowers: Vec::new() };
        let mounted = plan.layers.iter().filter(|l| l.format == LayerFormat::Erofs);
        for name in mounted.map(|l| l.diff_id.hex()).chain([implied::name(plan)]) {
            let mount = plan.layer_mounts.join(name);
            if is_mount(&mount)? && !layers.held.iter().any(|h| h.mount == mount) {
                let lock = lock_file(&mount);
                let lock = Lock::shared(&lock).on("lock", &lock)?;
                layers.held.push(Held { lock: Some(lock), mount });
            }
        }
        Ok(layers)
    }

    /// Lets go. The last user of a layer unmounts it.
    pub fn release(mut self) -> Result<()> {
        self.let_go()
    }

    /// Where the layers lie, the base first.
    pub(crate) fn lowers(&self) -> &[PathBuf] {
        &self.lowers
    }

    fn let_go(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        for held in &mut self.held {
            let Some(lock) = held.lock.take() else { continue };
            let done = match lock.try_upgrade() {
                Ok(true) => remove(&held.mount),
                Ok(false) => Ok(()),
                Err(e) => Err(e).on("lock", lock_file(&held.mount)),
            };
            outcome = outcome.and(done);
        }
        outcome
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        // What stays behind, a later sweep removes.
        let _ = self.let_go();
    }
}

/// Unmounts the layers that nobody holds, and removes their directories and lock files. Returns how many.
pub fn sweep(layer_mounts: &Path) -> Result<usize> {
    let entries = match fs::read_dir(layer_mounts) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other.on("read", layer_mounts)?,
    };
    let mut swept = 0;
    let mut seen = std::collections::BTreeSet::new();
    for entry in entries {
        let name = entry.on("read", layer_mounts)?.file_name();
        let Some(hex) = name.to_str().map(|n| n.strip_suffix(".lock").unwrap_or(n)) else { continue };
        if Digest::parse_hex(hex).is_none() || !seen.insert(hex.to_owned()) {
            continue;
        }
        let mount = layer_mounts.join(hex);
        let lock = lock_file(&mount);
        if let Some(_held) = Lock::try_exclusive(&lock).on("lock", &lock)? {
            remove(&mount)?;
            swept += 1;
        }
    }
    Ok(swept)
}

fn lock_file(mount: &Path) -> PathBuf {
    mount.with_extension("lock")
}

/// Mounts the layer if nobody has; its lock is held shared.
fn ensure(dir: &Path, mount: &Path, layer: &LayerPlan) -> Result<()> {
    if is_mount(mount)? {
        return Ok(());
    }
    let _mounting = mounting(dir)?;
    if is_mount(mount)? { Ok(()) } else { attach(mount, layer) }
}

fn mounting(dir: &Path) -> Result<Lock> {
    let path = dir.join(".mounting");
    Lock::exclusive(&path).on("lock", &path)
}

/// Unmounts and removes a layer's directory and lock file; its exclusive lock is held.
fn remove(mount: &Path) -> Result<()> {
    while is_mount(mount)? {
        // Lazily: somebody may look around in it by its path, and that must not keep it here.
        unmount(mount, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH).on("unmount", mount)?;
    }
    let gone = |done: io::Result<()>| match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    gone(fs::remove_dir(mount)).on("remove", mount)?;
    let lock = lock_file(mount);
    gone(fs::remove_file(&lock)).on("remove", lock)
}

/// Whether something is mounted at `path`; nothing there is nothing mounted.
fn is_mount(path: &Path) -> Result<bool> {
    match statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::TYPE) {
        Ok(st) => Ok(st.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e).on("look at", path),
    }
}

/// Mounts one EROFS file at `mount`, from the file itself, or through a loop device on kernels before 6.12.
fn attach(mount: &Path, layer: &LayerPlan) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(&layer.path, flags, Mode::empty()).map_err(|e| match e {
        Errno::NOENT => RootfsError::LayerMissing { digest: layer.diff_id, path: layer.path.clone() },
        e => RootfsError::Io { action: "open", path: layer.path.clone(), source: e.into() },
    })?;
    let detached = match erofs(&source(&file, &layer.path)) {
        // Not a block device: this kernel does not mount from files.
        Err(Errno::NOTBLK) => {
            let unsupported = |source| RootfsError::Unsupported { what: "attach a loop device", source };
            let device = sys::loopdev::LoopDevice::attach(&file).map_err(unsupported)?;
            erofs(device.path())
        }
        other => other,
    };
    let detached = detached.map_err(|e| match e {
        Errno::NODEV => RootfsError::Unsupported { what: "mount EROFS", source: e.into() },
        Errno::INVAL | Errno::UCLEAN | Errno::BADMSG | Errno::IO | Errno::OPNOTSUPP => {
            RootfsError::LayerDamaged { digest: layer.diff_id, path: layer.path.clone(), source: e.into() }
        }
        e => RootfsError::Io { action: "mount layer", path: layer.path.clone(), source: e.into() },
    })?;
    match fs::DirBuilder::new().mode(0o700).create(mount) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e).on("make", mount),
        _ => {}
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&detached, "", CWD, mount, flags).on("mount layer at", mount)
}

/// The name to mount a file by: `fsconfig(2)` takes strings of at most 255 bytes.
fn source(file: &OwnedFd, path: &Path) -> PathBuf {
    if path.as_os_str().as_bytes().len() < 256 {
        path.to_owned()
    } else {
        PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
    }
}

fn erofs(source: &Path) -> rustix::io::Result<OwnedFd> {
    let fs = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&fs, "source", source)?;
    fsconfig_set_flag(&fs, "ro")?;
    fsconfig_create(&fs)?;
    // No set-user-id, device or program counts by this path. None of it reaches the overlay, whose own mount
    // decides for the files that a container opens.
    let attr = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attr)
}

/// A directory with nothing in it.
pub(crate) fn empty(layer_mounts: &Path) -> PathBuf {
    layer_mounts.join("empty")
}

/// The directory at the bottom of every root filesystem, see [`crate::make_base`].
fn base(dir: &Path) -> Result<PathBuf> {
    let base = dir.join("base");
    if base.is_dir() {
        return Ok(base);
    }
    fs::DirBuilder::new().mode(0o700).recursive(true).create(dir).on("make", dir)?;
    let _mounting = mounting(dir)?;
    if base.is_dir() {
        return Ok(base);
    }
    // Built aside, as overlayfs must not see a lower directory change.
    let new = dir.join(".base");
    match fs::remove_dir_all(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).on("remove", &new),
        _ => {}
    }
    crate::base::make_base(&new)?;
    let mode = Mode::from_raw_mode(0o755);
    let empty = empty(dir);
    match rustix::fs::mkdir(&empty, mode) {
        Err(e) if e != Errno::EXIST => return Err(e).on("make", &empty),
        _ => {}
    }
    fs::rename(&new, &base).on("make", &base)?;
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// The way of kernels before 6.12, which this one may not need.
    #[test]
    fn a_loop_device_serves_as_well() {
        let tmp = tempfile::tempdir().unwrap();
        let (dir, image) = (tmp.path().join("d"), tmp.path().join("d.erofs"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("f"), "looped").unwrap();
        let made = Command::new("mkfs.erofs").arg("--quiet").args([&image, &dir]).status();
        if !rustix::process::geteuid().is_root() || !made.is_ok_and(|s| s.success()) {
            eprintln!("skipped: needs root and mkfs.erofs");
            return;
        }
        let file = fs::File::open(&image).unwrap();
        let device = match sys::loopdev::LoopDevice::attach(&file) {
            Ok(device) => device,
            Err(e) => return eprintln!("skipped: no loop device here: {e}"),
        };
        let mount = erofs(device.path()).unwrap();
        let path = device.path().to_owned();
        drop(device);
        assert_eq!(fs::read(format!("/proc/self/fd/{}/f", mount.as_raw_fd())).unwrap(), b"looped");
        drop(mount);
        let backing = Path::new("/sys/block").join(path.file_name().unwrap()).join("loop/backing_file");
        let busy = || fs::read_to_string(&backing).is_ok_and(|b| b.trim() == image.to_str().unwrap());
        for _ in 0..100 {
            if !busy() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("{} still shows {}", path.display(), image.display());
    }
}
