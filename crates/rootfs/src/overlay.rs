//! One root filesystem: layers below, a writable directory above, joined by overlayfs.
//!
//! The result is a *detached* mount: a descriptor that the container's own mount namespace attaches, and that
//! nobody else sees. Nothing of it needs cleaning when its owner is killed. The mounts of the layers
//! below are in the caller's mount namespace, so whoever calls [`mount`] must be in the host's, and has no need
//! to leave it.
//!
//! Three ways lead there, by what the kernel offers:
//!
//! 1. Linux 6.13: `lowerdir+`, `upperdir` and `workdir` are given as descriptors (`FSCONFIG_SET_FD`).
//! 2. Linux 6.8: the same as strings. `/proc/self/fd/N` stays below the 256 bytes that `fsconfig(2)` takes.
//! 3. Before: `mount(2)` with one long option string, done in a private mount namespace that a thread opens for the
//!    purpose, and handed back as a detached clone.
//!
//! With a user namespace the layers and the writable directory are mounts that translate ids, so that what lies on the
//! disk keeps the ids of the inside: nothing that looks at a container's files later has to translate them back.
//! Overlayfs makes files there as who mounted it, which must be somebody that the translation knows: its root.
//!
//! Options: `metacopy=off` and `redirect_dir=off` keep the upper directory readable by itself, as `changes`
//! and `archive_changes` do; `index=off` lets a stopped container's files be looked at while they are mounted
//! elsewhere; `xino=auto` gives all files one device number where inode numbers allow it. `volatile` only on request.

use crate::error::{Context, Result, RootfsError};
use crate::layers::{self, Layers};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use types::RootfsPlan;

const OPTIONS: [(&str, &str); 4] =
    [("index", "off"), ("metacopy", "off"), ("redirect_dir", "off"), ("xino", "auto")];

/// What may be done with the mounted files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// A container's root: writes go to `upper/`. One such mount of a plan at a time: the kernel does not
    /// check, the engine does.
    #[default]
    ReadWrite,
    /// Layers and `upper/` as they stand, for looking at a container that does not run.
    ReadOnly,
    /// The image alone.
    LayersOnly,
}

/// How to mount.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountOptions<'a> {
    /// User ids inside are those of the store, translated by this user namespace.
    pub user_namespace: Option<BorrowedFd<'a>>,
    /// What may be done with the files.
    pub access: Access,
    /// For a container whose files are thrown away at its end (`--rm`): nothing is ever flushed for it, neither by
    /// `fsync` inside nor, which takes long while an image is being pulled, when it is unmounted. Its files may be
    /// incomplete after a loss of power, when it is gone anyway.
    pub volatile: bool,
}

/// A mounted root filesystem.
#[derive(Debug)]
pub struct Rootfs {
    fd: OwnedFd,
    layers: Layers,
}

impl Rootfs {
    /// The detached mount, for `move_mount(2)`, or for reading beneath it with [`sys::Root`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Keeps only the hold on the layers, once the mount is attached elsewhere.
    pub fn into_layers(self) -> Layers {
        self.layers
    }

    /// Lets go of the mount and of the layers; the last user of a layer unmounts it.
    pub fn release(self) -> Result<()> {
        drop(self.fd);
        self.layers.release()
    }
}

/// Makes the directory that will hold a container's changes.
pub fn prepare(plan: &RootfsPlan) -> Result<()> {
    let dir = &plan.writable;
    fs::DirBuilder::new().mode(0o700).recursive(true).create(dir).on("make", dir)
}

/// Mounts the plan's root filesystem, its layers first where nobody has them mounted.
pub fn mount(plan: &RootfsPlan, options: &MountOptions<'_>) -> Result<Rootfs> {
    let layers = Layers::acquire(plan)?;
    let upper = plan.writable.join("upper");
    let mut parts = Parts { lowers: layers.lowers().to_vec(), writable: None, volatile: options.volatile };
    match options.access {
        Access::ReadWrite => {
            crate::base::fresh_upper(&plan.writable, &parts.lowers)?;
            parts.writable = Some(plan.writable.clone());
            if options.volatile {
                forgive_volatile(&plan.writable)?;
            }
        }
        Access::ReadOnly if upper.is_dir() => parts.lowers.push(upper),
        Access::ReadOnly | Access::LayersOnly => {}
    }
    if parts.lowers.len() == 1 && parts.writable.is_none() {
        parts.lowers.push(layers::empty(&plan.layer_mounts));
    }
    let fd = parts.join(options.user_namespace)?;
    Ok(Rootfs { fd, layers })
}

/// Overlayfs refuses a writable directory that a volatile mount left behind, as its files may be incomplete. Who asks
/// for another volatile mount has accepted that.
fn forgive_volatile(writable: &Path) -> Result<()> {
    let mark = writable.join("work/work/incompat");
    match fs::remove_dir_all(&mark) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).on("remove", mark),
        _ => Ok(()),
    }
}

/// What one overlay is made of.
struct Parts {
    /// Base first.
    lowers: Vec<PathBuf>,
    /// Holds `upper` and `work`.
    writable: Option<PathBuf>,
    volatile: bool,
}

/// The same, opened.
struct Opened {
    lowers: Vec<OwnedFd>,
    /// `upper` and `work`.
    writable: Option<[OwnedFd; 2]>,
    volatile: bool,
    /// Root of the ids that the writable directory is translated to.
    root: Option<(u32, u32)>,
    /// Clones that translate ids. Each lives as long as this descriptor, whoever else has its files open.
    _clones: Vec<OwnedFd>,
}

/// Where joining by the newer interface failed.
enum Failed {
    /// The kernel does not know this way of giving options.
    Interface,
    /// It knows, and says no.
    Mount(Errno),
}

impl Parts {
    fn join(&self, user_namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
        let opened = self.open(user_namespace)?;
        match opened.join(true).or_else(|e| match e {
            Failed::Interface => opened.join(false),
            other => Err(other),
        }) {
            Ok(fd) => Ok(fd),
            // EINVAL: kernels before 6.15 take layers from the caller's mount namespace only, which the
            // id-translating clones are not in.
            Err(Failed::Interface | Failed::Mount(Errno::INVAL)) => self.join_by_mount(user_namespace),
            Err(Failed::Mount(e)) => Err(self.refused(e)),
        }
    }

    fn open(&self, user_namespace: Option<BorrowedFd<'_>>) -> Result<Opened> {
        let mut clones = Vec::new();
        let mut translated = |path: &Path| -> Result<OwnedFd> {
            let Some(namespace) = user_namespace else { return directory(CWD, path).on("open", path) };
            let fd = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
                .on("clone", path)?;
            sys::mountns::idmap(&fd, namespace).map_err(|source| RootfsError::Unsupported {
                what: "translate user ids in a mount of the layers",
                source,
            })?;
            // Not a handle: some kernels take only ordinary descriptors as layers.
            let opened = directory(fd.as_fd(), Path::new(".")).on("open", path)?;
            clones.push(fd);
            Ok(opened)
        };
        let lowers = self.lowers.iter().map(|p| translated(p)).collect::<Result<_>>()?;
        let (mut writable, mut root) = (None, None);
        if let Some(dir) = &self.writable {
            let fd = translated(dir)?;
            let open = |name: &str| directory(fd.as_fd(), Path::new(name)).on("open", dir.join(name));
            let [upper, work] = [open("upper")?, open("work")?];
            if user_namespace.is_some() {
                // Made by `fresh_upper`, so it is root's on the disk.
                let meta = rustix::fs::fstat(&work).on("look at", dir.join("work"))?;
                root = Some((meta.st_uid, meta.st_gid));
            }
            writable = Some([upper, work]);
        }
        Ok(Opened { lowers, writable, volatile: self.volatile, root, _clones: clones })
    }

    /// The way of old kernels.
    fn join_by_mount(&self, user_namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
        let stage = self.lowers.first().and_then(|base| base.parent()).unwrap_or(Path::new("/"));
        let mut inner = Ok(());
        let joined = sys::mountns::in_private_mounts(|| {
            // Opened anew: overlayfs takes only layers of the mount namespace it is mounted in.
            let opened = match self.open(user_namespace) {
                Ok(opened) => opened,
                Err(e) => {
                    inner = Err(e);
                    return Err(Errno::INVAL.into());
                }
            };
            if user_namespace.is_some() {
                opened.attach_below(stage)?;
            }
            let flags = if self.writable.is_some() { MountFlags::empty() } else { MountFlags::RDONLY };
            let options = opened.option_string()?;
            opened
                .as_root(|| rustix::mount::mount("overlay", stage, "overlay", flags, options.as_c_str()))??;
            let mount = directory(CWD, stage)?;
            Ok(clone(&mount)?)
        });
        inner?;
        joined.map_err(|e| self.refused(Errno::from_io_error(&e).unwrap_or(Errno::IO)))
    }

    fn refused(&self, e: Errno) -> RootfsError {
        match e {
            Errno::NODEV => RootfsError::Unsupported { what: "mount overlayfs", source: e.into() },
            e => RootfsError::Io {
                action: "mount the layers and the writable directory",
                path: self.writable.clone().or_else(|| self.lowers.last().cloned()).unwrap_or_default(),
                source: e.into(),
            },
        }
    }
}

impl Opened {
    fn join(&self, by_descriptor: bool) -> std::result::Result<OwnedFd, Failed> {
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(Failed::Mount)?;
        let set = |key: &str, fd: &OwnedFd| match by_descriptor {
            true => fsconfig_set_fd(&fs, key, fd),
            false => fsconfig_set_string(&fs, key, proc_path(fd)),
        };
        fsconfig_set_string(&fs, "source", "overlay").map_err(Failed::Mount)?;
        for lower in self.lowers.iter().rev() {
            set("lowerdir+", lower).map_err(|_| Failed::Interface)?;
        }
        if let Some([upper, work]) = &self.writable {
            set("upperdir", upper).map_err(|_| Failed::Interface)?;
            set("workdir", work).map_err(|_| Failed::Interface)?;
        }
        for (key, value) in OPTIONS {
            fsconfig_set_string(&fs, key, value).map_err(Failed::Mount)?;
        }
        if self.volatile && self.writable.is_some() {
            fsconfig_set_flag(&fs, "volatile").map_err(Failed::Mount)?;
        }
        let created = self.as_root(|| fsconfig_create(&fs));
        let failed = |e: io::Error| Failed::Mount(Errno::from_io_error(&e).unwrap_or(Errno::PERM));
        created.map_err(failed)?.map_err(Failed::Mount)?;
        let attr = match self.writable {
            // Set-user-id programs and device nodes work as in any root filesystem; the hull says which devices.
            Some(_) => MountAttrFlags::empty(),
            None => {
                MountAttrFlags::MOUNT_ATTR_RDONLY
                    | MountAttrFlags::MOUNT_ATTR_NOSUID
                    | MountAttrFlags::MOUNT_ATTR_NODEV
                    | MountAttrFlags::MOUNT_ATTR_NOEXEC
            }
        };
        fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attr).map_err(Failed::Mount)
    }

    /// Does what makes the caller the one who mounts.
    fn as_root<T>(&self, mount: impl FnOnce() -> T) -> io::Result<T> {
        match self.root {
            Some((uid, gid)) => sys::fsids::as_owner(uid, gid, mount),
            None => Ok(mount()),
        }
    }

    /// Attaches clones below a temporary file system, in a mount namespace of its own.
    fn attach_below(&self, stage: &Path) -> io::Result<()> {
        rustix::mount::mount("tmpfs", stage, "tmpfs", MountFlags::empty(), None)?;
        let upper_mount = self.writable.as_ref().map(|[upper, _]| upper);
        for (i, fd) in self.lowers.iter().chain(upper_mount).enumerate() {
            let at = stage.join(i.to_string());
            fs::create_dir(&at)?;
            // The descriptor shows its mount's root or, for the upper, a directory inside: move the mount itself.
            let from = if i < self.lowers.len() { "." } else { ".." };
            let root = directory(fd.as_fd(), Path::new(from))?;
            move_mount(&root, "", CWD, &at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        }
        Ok(())
    }

    fn option_string(&self) -> io::Result<CString> {
        let lowers: Vec<_> = self.lowers.iter().rev().map(proc_path).collect();
        let mut all = format!("lowerdir={}", lowers.join(":"));
        if let Some([upper, work]) = &self.writable {
            all += &format!(",upperdir={},workdir={}", proc_path(upper), proc_path(work));
            if self.volatile {
                all += ",volatile";
            }
        }
        for (key, value) in OPTIONS {
            all += &format!(",{key}={value}");
        }
        Ok(CString::new(all)?)
    }
}

fn proc_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn directory(at: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
}

fn clone(directory: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(directory, "", flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::process::{Command, Stdio};

    fn parts(dir: &Path) -> Option<Parts> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return None;
        }
        for sub in ["a", "b", "c/upper", "c/work"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
        }
        fs::write(dir.join("a/f"), "a").unwrap();
        fs::write(dir.join("b/f"), "b").unwrap();
        let lowers = vec![dir.join("a"), dir.join("b")];
        Some(Parts { lowers, writable: Some(dir.join("c")), volatile: false })
    }

    fn check(mount: &OwnedFd) -> fs::Metadata {
        let file = format!("{}/f", proc_path(mount));
        assert_eq!(fs::read(&file).unwrap(), b"b");
        fs::write(&file, "new").unwrap();
        let meta = fs::metadata(&file).unwrap();
        fs::remove_file(&file).unwrap();
        meta
    }

    #[test]
    fn the_ways_of_older_kernels() {
        let tmp = tempfile::tempdir().unwrap();
        let Some(parts) = parts(&tmp.path().join("by:string,x")) else { return };
        let Ok(mount) = parts.open(None).unwrap().join(false) else { panic!("by string") };
        check(&mount);
        let tmp = tempfile::tempdir().unwrap();
        let parts = self::parts(&tmp.path().join("by:mount,x")).unwrap();
        check(&parts.join_by_mount(None).unwrap());
    }

    #[test]
    fn user_ids_are_translated() {
        let tmp = tempfile::tempdir().unwrap();
        let Some(new) = parts(&tmp.path().join("new")) else { return };
        let old = parts(&tmp.path().join("old")).unwrap();
        let mut child = Command::new("unshare")
            .args(["--user", "sh", "-c", "echo; exec sleep 60"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0];
        let started = io::Read::read(child.stdout.as_mut().unwrap(), &mut line).unwrap() == 1;
        let proc = PathBuf::from(format!("/proc/{}", child.id()));
        let mapped = ["uid_map", "gid_map"].iter().all(|f| fs::write(proc.join(f), "0 100000 65536").is_ok());
        let namespace = fs::File::open(proc.join("ns/user"));
        let outcome = namespace.map(|n| {
            let by_mount =
                old.join_by_mount(Some(n.as_fd())).map(|m| fs::metadata(format!("{}/f", proc_path(&m))));
            let fresh = new.join(Some(n.as_fd())).map(|m| fs::metadata(format!("{}/f", proc_path(&m))));
            [by_mount, fresh]
        });
        child.kill().unwrap();
        child.wait().unwrap();
        if !started || !mapped {
            eprintln!("skipped: cannot make a user namespace with these mappings");
            return;
        }
        for meta in outcome.unwrap() {
            assert_eq!(meta.unwrap().unwrap().uid(), 100_000);
        }
    }
}
