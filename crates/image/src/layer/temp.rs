//! What is being written: a file or directory `.new-*` whose writer holds a lock (`flock(2)`) on it, so that
//! anybody can tell the leftovers of the dead from the work of the living.

use super::error::{Result, io};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

const PREFIX: &str = ".new-";

/// Removed when dropped, unless it was renamed into place.
pub(super) struct Temp {
    path: PathBuf,
    /// Holds the lock.
    fd: OwnedFd,
    is_dir: bool,
    kept: bool,
}

impl Temp {
    /// An empty file in `dir`.
    pub(super) fn file(dir: &Path) -> Result<Self> {
        Self::create(dir, false)
    }

    /// An empty directory in `dir`.
    pub(super) fn dir(dir: &Path) -> Result<Self> {
        Self::create(dir, true)
    }

    fn create(dir: &Path, is_dir: bool) -> Result<Self> {
        loop {
            let path = fresh(dir)?;
            let fd = if is_dir {
                rustix::fs::mkdir(&path, Mode::from_raw_mode(0o700)).and_then(|()| open_dir(&path))
            } else {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))
            };
            let fd = match fd {
                Ok(fd) => fd,
                // Swept between its making and its opening, or a name that was taken.
                Err(Errno::NOENT) if is_dir && dir.is_dir() => continue,
                Err(Errno::EXIST) => continue,
                Err(e) => return Err(io("create", &path)(e.into())),
            };
            // A sweep may have been faster than the lock: then it has a name no more.
            match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if names(&path, &fd) => return Ok(Self { path, fd, is_dir, kept: false }),
                Ok(()) | Err(Errno::AGAIN) => continue,
                Err(e) => {
                    drop(Self { path: path.clone(), fd, is_dir, kept: false });
                    return Err(io("lock", &path)(e.into()));
                }
            }
        }
    }

    /// Renames `path` to a temporary directory and removes it; `false` if it was gone already.
    pub(super) fn take_over(dir: &Path, path: &Path) -> Result<bool> {
        let temp = fresh(dir)?;
        match std::fs::rename(path, &temp) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(io("remove", path)(e)),
        }
        match std::fs::remove_dir_all(&temp) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io("remove", &temp)(e)),
            _ => Ok(true),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A second handle, for writing.
    pub(super) fn handle(&self) -> Result<File> {
        self.fd.try_clone().map(File::from).map_err(io("open", &self.path))
    }

    /// Gives it its lasting name. What has that name already stays if it is `good`, and is replaced otherwise.
    pub(super) fn rename(mut self, to: &Path, good: impl Fn() -> bool) -> Result<()> {
        match renameat_with(CWD, &self.path, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => self.kept = true,
            Err(Errno::EXIST) if good() => {}
            // EINVAL: a file system without RENAME_NOREPLACE.
            Err(Errno::EXIST | Errno::INVAL) => {
                if self.is_dir && to.exists() {
                    Self::take_over(to.parent().unwrap_or(Path::new(".")), to)?;
                }
                std::fs::rename(&self.path, to).map_err(io("rename the new layer to", to))?;
                self.kept = true;
            }
            Err(e) => return Err(io("rename the new layer to", to)(e.into())),
        }
        Ok(())
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.kept {
            remove(&self.path, self.is_dir);
        }
    }
}

/// Removes temporary files and directories that nobody has locked.
pub(super) fn sweep(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let path = entry.path();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let Ok(fd) = rustix::fs::open(&path, flags, Mode::empty()) else { continue };
        if flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok() && names(&path, &fd) {
            remove(&path, entry.file_type().is_ok_and(|t| t.is_dir()));
        }
    }
}

fn fresh(dir: &Path) -> Result<PathBuf> {
    let number = sys::host::random::<8>().map_err(io("name a new file in", dir))?;
    Ok(dir.join(format!("{PREFIX}{:016x}", u64::from_ne_bytes(number))))
}

fn open_dir(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Whether `path` still is what `fd` has open.
fn names(path: &Path, fd: impl AsFd) -> bool {
    let there = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
    let here = rustix::fs::fstat(fd);
    matches!((there, here), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

fn remove(path: &Path, is_dir: bool) {
    let _ = if is_dir { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}
