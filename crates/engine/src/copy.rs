//! `cp`, `diff` and `export`: a container's files, running or not.
//!
//! A running one is entered by `/proc/PID/root`, so that its volumes are seen; an ended one is mounted for the
//! occasion, and a path below one of its mounts is looked for where that would come from. Every path is resolved beneath that root by the kernel (CVE-2018-15664,
//! CVE-2019-14271): no program and no library of the image is run. The files of a microVM are its guest's business:
//! [`Source`] is where the two ways part.

use crate::machine::files::{Part, Rest, path_stat};
use crate::recover::Liveness;
use crate::store::Container;
use crate::volumes::disk;
use crate::volumes::place::{self, Held};
use crate::{Engine, EngineError, Result, inside, mounts, users};
use rootfs::{Access, MountOptions, PathStat, UnpackOptions};
use sandbox::vm::Files;
use std::ffi::OsStr;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use sys::Root;
use types::docker::FilesystemChange;
use types::{RunState, VolumePlan};

/// Where a container's files are.
pub(crate) enum Source<'a> {
    /// Beneath a root on this host, the path clean of mounts. The state tells of one that runs in a user namespace of
    /// its own: then owners are not to be read or written from here, but [`mod@inside`]. On the disk they are the inside's.
    Here(&'a Root, &'a Path, Option<&'a RunState>),
    /// In a guest.
    Guest(&'a Files, &'a Path),
}

/// The source of a mount, and a path below it.
struct Below {
    place: Place,
    rest: PathBuf,
}

enum Place {
    /// Here, mounted for as long as this lives if need be.
    Here(Root, Option<Held>),
    /// On a disk that is for guests to read.
    Guest(Part),
}

impl Engine {
    /// Runs `work` on a container's files.
    fn with_root<T>(
        &self,
        name: &str,
        path: &Path,
        write: bool,
        work: impl FnOnce(Source<'_>) -> Result<T>,
    ) -> Result<T> {
        let container = self.find(name)?;
        if container.is_vm() {
            if let Some(rest) = self.rest(&container)?
                && let Some(below) = self.below_mount(&container, path, write)?
            {
                return self.with_below(&container, below, rest, work);
            }
            return self.with_guest(&container, |files| work(Source::Guest(files, path)));
        }
        match self.settled(&container)? {
            Liveness::Supervised(state) if state.pid > 0 => {
                let root_path = format!("/proc/{}/root", state.pid);
                let root = Root::open(&root_path).map_err(|e| match e.kind() {
                    ErrorKind::NotFound => EngineError::NotRunning(container.name.clone()),
                    _ => EngineError::io("cannot open", root_path.as_ref())(e),
                })?;
                // Asked with the root in hand: the pid may have become another's, whose root is the host's.
                if !sys::host::is_running(state.pid, state.pid_start) {
                    return Err(EngineError::NotRunning(container.name.clone()));
                }
                let apart = Some(&*state).filter(|_| users::is_private(&container.host));
                work(Source::Here(&root, path, apart))
            }
            Liveness::Supervised(_) => Err(EngineError::Conflict(format!(
                "container {} is restarting, wait until the container is running",
                container.name
            ))),
            Liveness::Ended(_, lock) => {
                if let Some(below) = self.below_mount(&container, path, write)? {
                    return self.with_below(&container, below, lock.into(), work);
                }
                let access = if write { Access::ReadWrite } else { Access::ReadOnly };
                self.with_mounted(&container, access, |root| work(Source::Here(root, path, None)))
            }
        }
    }

    /// Runs `work` on the source of a mount of a container that stays ended meanwhile.
    fn with_below<T>(
        &self,
        container: &Container,
        below: Below,
        rest: Rest,
        work: impl FnOnce(Source<'_>) -> Result<T>,
    ) -> Result<T> {
        match below.place {
            Place::Here(root, held) => {
                let done = work(Source::Here(&root, &below.rest, None));
                drop(root);
                let released = held.map_or(Ok(()), Held::release);
                drop(rest);
                let done = done?;
                released.map(|()| done)
            }
            Place::Guest(part) => {
                // Its machine holds the lock itself.
                drop(rest);
                self.with_guest_of(container, Some(&part), |files| work(Source::Guest(files, &below.rest)))
            }
        }
    }

    /// The source of the mount that a path of an ended container lies below, and the rest of the path: what is copied
    /// beneath a mount point would be hidden by the mount at the next start.
    fn below_mount(&self, c: &Container, path: &Path, write: bool) -> Result<Option<Below>> {
        let Some(path) = mounts::clean(&Path::new("/").join(path)) else { return Ok(None) };
        let Some(mount) = c.mounts.iter().rev().find(|m| path.starts_with(&m.target)) else {
            return Ok(None);
        };
        if mount.kind == mounts::Kind::Tmpfs {
            return Ok(None);
        }
        if write && mount.read_only {
            return Err(EngineError::Conflict(format!(
                "mounted volume {} is marked read-only",
                mount.target.display()
            )));
        }
        self.prepare_volumes(c)?;
        let plan = match mount.kind {
            mounts::Kind::Volume => self.volume_plan(&self.volume_row(&mount.volume)?, !write)?,
            mounts::Kind::Image => Some(self.image_plan(&mount.volume)?),
            mounts::Kind::Bind | mounts::Kind::Tmpfs => None,
        };
        let rest = Path::new("/").join(path.strip_prefix(&mount.target).unwrap_or(&path));
        if let Some(plan) = plan.as_ref().filter(|plan| c.is_vm() && self.is_for_guests(plan)) {
            // As the microVM has it, and so that what was killed in the middle is mended before it is read.
            let plan = VolumePlan { read_only: mount.read_only, ..plan.clone() };
            let place = Place::Guest(Part { plan, path: mount.subpath.clone() });
            return Ok(Some(Below { place, rest }));
        }
        let source = match &plan {
            Some(plan) => plan.mountpoint(),
            None if mount.kind == mounts::Kind::Bind => mount.source.clone(),
            None => self.paths.volume(&mount.volume),
        };
        if plan.is_none() && !source.is_dir() {
            return Ok(None);
        }
        let held = plan.map(|plan| self.hold_for_files(c, plan)).transpose()?;
        let open = || {
            let whole = Root::open(&source)?;
            if mount.subpath.is_empty() { Ok(whole) } else { whole.handle(&mount.subpath).map(Root::from_fd) }
        };
        match open() {
            Ok(root) => Ok(Some(Below { place: Place::Here(root, held), rest })),
            Err(e) => {
                held.map_or(Ok(()), Held::release)?;
                Err(EngineError::io("cannot open", &source)(e))
            }
        }
    }

    /// Mounts what is mounted for an ended container when it runs.
    fn hold_for_files(&self, c: &Container, plan: VolumePlan) -> Result<Held> {
        if plan.exclusive {
            self.refuse_second(c, &plan)?;
        }
        place::hold(&plan)
    }

    /// Whether this is a disk that this host's kernel does not mount.
    fn is_for_guests(&self, plan: &VolumePlan) -> bool {
        plan.disk().is_some_and(|file| disk::refuse_foreign(&plan.name, file, plan.is_trusted()).is_err())
    }

    fn with_mounted<T>(
        &self,
        c: &Container,
        access: Access,
        work: impl FnOnce(&Root) -> Result<T>,
    ) -> Result<T> {
        let plan = self.rootfs_plan(c)?;
        self.with_writable(c, || {
            rootfs::prepare(&plan)?;
            let mounted = rootfs::mount(&plan, &MountOptions { access, ..Default::default() })?;
            let fd = mounted.fd().try_clone_to_owned();
            let root = Root::from_fd(fd.map_err(EngineError::io("cannot open", &plan.writable))?);
            let out = work(&root);
            drop(root);
            mounted.release()?;
            out
        })
    }

    /// Looks at a path inside, without following a link at its end.
    pub fn stat_path(&self, name: &str, path: &Path) -> Result<PathStat> {
        self.with_root(name, path, false, |source| match source {
            Source::Here(root, path, _) => Ok(rootfs::stat(root, path)?),
            Source::Guest(files, path) => Ok(path_stat(path, files.stat(path)?)),
        })
    }

    /// Writes a path inside as a tar, its entries named after `rename` if given.
    pub fn copy_from(
        &self,
        name: &str,
        path: &Path,
        rename: Option<&OsStr>,
        out: &mut dyn Write,
    ) -> Result<()> {
        self.event(&self.find(name)?, "archive-path", &[]);
        self.with_root(name, path, false, |source| match source {
            Source::Here(_, path, Some(state)) => inside::read(state, Some(path), rename, out),
            Source::Here(root, path, None) => Ok(rootfs::pack(root, path, rename, out)?),
            Source::Guest(files, path) => Ok(files.pack(path, rename.map(OsStr::as_bytes), out)?),
        })
    }

    /// Unpacks a tar into a directory inside.
    pub fn copy_to(&self, name: &str, dir: &Path, tar: &mut dyn Read, options: &UnpackOptions) -> Result<()> {
        let container = self.find(name)?;
        let read_only = container.host.readonly_rootfs.unwrap_or(false);
        let on_mount = container.mounts.iter().any(|m| dir.starts_with(&m.target) && !m.read_only);
        if read_only && !on_mount {
            return Err(EngineError::Conflict("container rootfs is marked read-only".into()));
        }
        self.with_root(name, dir, true, |source| match source {
            Source::Here(_, dir, Some(state)) => inside::write(state, dir, tar, options),
            Source::Here(root, dir, None) => Ok(rootfs::unpack(root, dir, tar, options)?),
            Source::Guest(files, dir) => {
                Ok(files.unpack(dir, options.no_overwrite_dir_non_dir, options.owner, tar)?)
            }
        })?;
        self.event(&container, "extract-to-dir", &[]);
        Ok(())
    }

    /// What changed against the image.
    pub fn changes(&self, name: &str) -> Result<Vec<FilesystemChange>> {
        let container = self.find(name)?;
        if container.is_vm() {
            return self.with_guest(&container, |files| Ok(files.changes()?));
        }
        let plan = self.rootfs_plan(&container)?;
        self.with_writable(&container, || Ok(rootfs::changes(&plan)?))
    }

    /// Writes all files of a container as a tar.
    pub fn export(&self, name: &str, out: &mut dyn Write) -> Result<()> {
        self.event(&self.find(name)?, "export", &[]);
        self.with_root(name, Path::new("/"), false, |source| match source {
            Source::Here(_, _, Some(state)) => inside::read(state, None, None, out),
            Source::Here(root, _, None) => Ok(rootfs::export(root, out)?),
            Source::Guest(files, _) => Ok(files.export(out)?),
        })
    }
}
