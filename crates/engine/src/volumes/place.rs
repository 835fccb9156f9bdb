//! What is mounted on this host while sandboxes use it: disks, what the options of the driver `local` name, images.
//!
//! ```text
//! <run>/volumes/<name>/lock    held by whoever uses it: by many, or by one alone
//! <run>/volumes/<name>/making  held for a moment by whoever mounts or unmounts
//! <run>/volumes/<name>/mnt     where it is mounted, in the host's namespace; sandboxes have clones of it
//! ```
//!
//! A lock dies with its holder, a mount does not: what is mounted and not held is left over from a supervisor that was
//! killed, and goes with the next use, or sweep. Its sandbox may go on, with its clone. So a disk has another lock, on
//! its file, by the very descriptor that its loop device has (or its hypervisor): the kernel keeps that until the last
//! clone is unmounted. Two kernels, or one kernel twice, never have one disk mounted to write to it.

use super::{disk, words};
use crate::{EngineError, Result};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, StatVfsMountFlags, StatxAttributes, StatxFlags, statvfs, statx,
};
use rustix::io::Errno;
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};
use sys::file::{Lock, open_locked};
use sys::loopdev::LoopDevice;
use sys::mount::{attach, attr, detach, new_filesystem};
use types::{RootfsPlan, VolumePlan, VolumeSource};

/// How long what used a disk may take to be gone: the kernel unmounts when it has nothing else to do.
const GOING: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(5);

/// A volume that is mounted, and stays so while this lives.
#[derive(Debug)]
pub(crate) struct Held {
    plan: VolumePlan,
    lock: Lock,
    /// Of an image.
    layers: Option<rootfs::Layers>,
}

/// Refused, for somebody else has it.
fn busy(plan: &VolumePlan) -> EngineError {
    let how = if plan.read_only { "to write to it" } else { "and a disk has one user that writes" };
    EngineError::Conflict(format!("volume {} is in use by another container, {how}", plan.name))
}

/// Mounts it, unless it is, and holds it.
pub(crate) fn hold(plan: &VolumePlan) -> Result<Held> {
    let dir = &plan.place;
    let io = |what| EngineError::io(what, dir);
    let _making = enter(plan)?;
    let alone = plan.exclusive && !plan.read_only;
    let path = dir.join("lock");
    let lock = if alone { Lock::try_exclusive(&path) } else { Lock::try_shared(&path) };
    let lock = lock.map_err(io("cannot lock"))?.ok_or_else(|| busy(plan))?;
    let mountpoint = plan.mountpoint();
    if is_mounted(&mountpoint)? {
        // Who may write does not share, so that one who reads shares it with readers only.
        let stale = alone || (plan.exclusive && !is_read_only(&mountpoint));
        if !stale {
            return Ok(Held { plan: plan.clone(), lock, layers: None });
        }
        detach(&mountpoint).map_err(io("cannot unmount"))?;
    }
    let layers = mount(plan, &mountpoint)?;
    Ok(Held { plan: plan.clone(), lock, layers })
}

/// Makes the place, and keeps others from it for a moment. Who clears it may be just removing it.
fn enter(plan: &VolumePlan) -> Result<Lock> {
    let lock = quiet(&plan.place)?;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(plan.mountpoint());
    made.map_err(EngineError::io("cannot make", &plan.place)).map(|()| lock)
}

/// As long as this lives, nothing is mounted or unmounted in a place by others.
pub(crate) fn quiet(place: &Path) -> Result<Lock> {
    let io = |what| EngineError::io(what, place);
    loop {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(place);
        made.map_err(io("cannot make"))?;
        match Lock::exclusive(&place.join("making")) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            done => return done.map_err(io("cannot lock")),
        }
    }
}

/// Holds it for a supervisor that takes over: it is mounted where it is needed.
pub(crate) fn adopt(plan: &VolumePlan) -> Option<Held> {
    let path = plan.place.join("lock");
    let alone = plan.exclusive && !plan.read_only;
    let lock = if alone { Lock::try_exclusive(&path) } else { Lock::try_shared(&path) };
    Some(Held { plan: plan.clone(), lock: lock.ok()??, layers: None })
}

impl Held {
    /// Lets go; the last one unmounts.
    pub(crate) fn release(self) -> Result<()> {
        let dir = &self.plan.place;
        let io = |what| EngineError::io(what, dir);
        let _making = Lock::exclusive(&dir.join("making")).map_err(io("cannot lock"))?;
        if self.lock.try_upgrade().map_err(io("cannot lock"))? {
            unmount(&self.plan.mountpoint())?;
        }
        drop(self.lock);
        self.layers.map_or(Ok(()), |layers| Ok(layers.release()?))
    }
}

/// Unmounts what nobody holds, in all places.
pub(crate) fn sweep(places: &Path) {
    for entry in std::fs::read_dir(places).into_iter().flatten().flatten() {
        // What cannot be done now is done by the next.
        let _ = clear(&entry.path());
    }
}

/// Unmounts what is in one place, if nobody holds it, and removes the place.
pub(crate) fn clear(place: &Path) -> Result<()> {
    if !place.is_dir() {
        return Ok(());
    }
    let io = |what| EngineError::io(what, place);
    let Some(_making) = Lock::try_exclusive(&place.join("making")).map_err(io("cannot lock"))? else {
        return Ok(());
    };
    let mountpoint = place.join("mnt");
    let Some(_lock) = Lock::try_exclusive(&place.join("lock")).map_err(io("cannot lock"))? else {
        // Who was killed as it wrote it out may have left it frozen.
        if let Ok(dir) = File::open(&mountpoint) {
            thaw(&OwnedFd::from(dir));
        }
        return Ok(());
    };
    unmount(&mountpoint)?;
    // One by one: whatever is still there, by whatever chance, is not ours to delete.
    let gone = |done: std::io::Result<()>| match done {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(io("cannot remove")(e)),
        _ => Ok(()),
    };
    gone(std::fs::remove_dir(&mountpoint))?;
    gone(std::fs::remove_file(place.join("lock")))?;
    gone(std::fs::remove_file(place.join("making")))?;
    match std::fs::remove_dir(place) {
        // Somebody has begun with it anew.
        Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
        done => gone(done),
    }
}

/// Lets those go on who write to a filesystem that was frozen; one that was not stays as it is.
pub(crate) fn thaw(dir: &OwnedFd) {
    let _ = sys::fsctl::thaw(dir);
}

fn unmount(mountpoint: &Path) -> Result<()> {
    while is_mounted(mountpoint)? {
        detach(mountpoint).map_err(EngineError::io("cannot unmount", mountpoint))?;
    }
    Ok(())
}

/// Whether something is mounted there.
pub(crate) fn is_mounted(path: &Path) -> Result<bool> {
    // Without asking the server of a network's file system, which may be dead.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    match statx(CWD, path, flags, StatxFlags::TYPE) {
        Ok(st) => Ok(st.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT) => Ok(false),
        // A server that is gone, or a disk that fails: mounted it is.
        Err(Errno::STALE | Errno::IO) => Ok(true),
        Err(e) => Err(EngineError::io("cannot look at", path)(e.into())),
    }
}

/// Whether what is mounted there cannot be written to.
pub(crate) fn is_read_only(path: &Path) -> bool {
    statvfs(path).is_ok_and(|st| st.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn mount(plan: &VolumePlan, at: &Path) -> Result<Option<rootfs::Layers>> {
    let put = |mount: OwnedFd| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(at, flags, Mode::empty())
            .map_err(Into::into)
            .and_then(|target| attach(mount, target))
            .map_err(EngineError::io("cannot mount on", at))
    };
    match &plan.source {
        VolumeSource::Disk { file, .. } => put(mount_disk(plan, file, plan.read_only)?).map(|()| None),
        VolumeSource::Mount { kind, device, options } => match words::mount(plan, at, kind, device, options)?
        {
            Some(tree) => put(tree).map(|()| None),
            None => Ok(None),
        },
        VolumeSource::Image { layers, layer_mounts } => {
            let image = RootfsPlan {
                layers: layers.clone(),
                writable: plan.place.clone(),
                layer_mounts: layer_mounts.clone(),
            };
            let options = rootfs::MountOptions { access: rootfs::Access::LayersOnly, ..Default::default() };
            let mounted = rootfs::mount(&image, &options)?;
            let fd = mounted.fd().try_clone_to_owned().map_err(EngineError::io("cannot mount on", at))?;
            let layers = mounted.into_layers();
            put(fd).map(|()| Some(layers))
        }
    }
}

/// Opens and locks the file of a disk: alone, or with others that read.
pub(crate) fn lock_disk(name: &str, file: &Path, read_only: bool) -> Result<File> {
    let io = |what| EngineError::io(what, file);
    let begun = Instant::now();
    loop {
        if let Some(backing) = open_locked(file, read_only).map_err(io("cannot open the disk"))? {
            return Ok(backing);
        }
        if begun.elapsed() > GOING {
            return Err(EngineError::Conflict(format!(
                "volume {name} is in use by another container, and a disk has one user that writes, or several that read"
            )));
        }
        std::thread::sleep(LOOK);
    }
}

/// Looks at a disk, and refuses one that is damaged.
pub(crate) fn look(name: &str, file: &Path, backing: &File) -> Result<disk::Superblock> {
    let found = disk::superblock(backing).map_err(EngineError::io("cannot read the disk", file))?;
    found.map_err(|damage| damage.of(name, file))
}

/// A disk as a detached mount. Its file is locked until the last clone of the mount is gone.
pub(crate) fn mount_disk(plan: &VolumePlan, file: &Path, read_only: bool) -> Result<OwnedFd> {
    let name = &plan.name;
    let backing = lock_disk(name, file, read_only)?;
    // Once it is locked: a microVM may have had it a moment ago.
    disk::refuse_foreign(name, file, plan.is_trusted())?;
    let superblock = look(name, file, &backing)?;
    if read_only && superblock.needs_recovery {
        // Its last user was killed: what its journal holds has to be written first, once, by somebody alone.
        drop(backing);
        drop(mount_disk(plan, file, false)?);
        return mount_disk(plan, file, true);
    }
    let broken = |e: std::io::Error| {
        EngineError::Conflict(format!(
            "cannot mount the disk of volume {name}: {e}; if it is damaged, copy {0} first, then repair it with: \
             e2fsck -f {0}",
            file.display()
        ))
    };
    let device = LoopDevice::attach_as(&backing, !read_only).map_err(|e| {
        EngineError::Unsupported(format!("volume {name} needs a loop device, and none can be had: {e}"))
    })?;
    // The device has the file, and its lock, from here on.
    drop(backing);
    let source = device.path().to_string_lossy().into_owned();
    // What is deleted is given back to the host.
    let options = ["errors=remount-ro", if read_only { "ro" } else { "discard" }];
    let attributes = if read_only { attr::NODEV | attr::RDONLY } else { attr::NODEV };
    let mount = new_filesystem("ext4", Some(&source), options, attributes).map_err(broken)?;
    if !read_only {
        let _ = grow(&mount, &device, superblock.block);
    }
    Ok(mount)
}

/// Lets a mounted filesystem have all of its device, whose file may have grown.
fn grow(mount: &OwnedFd, device: &LoopDevice, block: u64) -> std::io::Result<()> {
    let backing = device.size()?;
    let dir =
        rustix::fs::openat(mount, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    sys::fsctl::grow_ext4(dir, backing / block)
}

/// Makes what is mounted here as large as its disk's file is by now.
pub(crate) fn grow_mounted(mountpoint: &Path, block: u64) -> std::io::Result<()> {
    let minor = rustix::fs::minor(std::fs::metadata(mountpoint)?.dev());
    let device = LoopDevice::of(minor)?;
    device.take_size()?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(mountpoint, flags, Mode::empty())?;
    sys::fsctl::grow_ext4(dir, device.size()? / block)
}
