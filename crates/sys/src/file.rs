//! Files that survive a crash whole, and locks that die with their holder.

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, flock};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Replaces `path` with `bytes` in one step: a reader, and a reader after `kill -9`, sees the old or the new file
/// whole. With `durable` it also survives the loss of power. Nobody else can read it: state holds secrets.
pub fn replace(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let dir = path.parent().ok_or(Errno::INVAL)?;
    let name = path.file_name().ok_or(Errno::INVAL)?.to_string_lossy();
    let tmp = dir.join(format!(".{name}.{}.new", std::process::id()));
    let write = || {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::open(&tmp, flags, Mode::from_raw_mode(0o600))?);
        file.write_all(bytes)?;
        if durable {
            file.sync_all()?;
        }
        if durable {
            std::fs::rename(&tmp, path)?;
            File::open(dir)?.sync_all()?;
            return Ok(());
        }
        swap(&tmp, path)
    };
    write().inspect_err(|_| drop(std::fs::remove_file(&tmp)))
}

/// Puts `new` in the place of `path`. A rename over a file makes ext4 write the new one to the disk at once
/// (`auto_da_alloc` in ext4(5)) and give back the old one's blocks, which takes milliseconds where the disk is told to
/// discard them: exchanging the two and removing the old one does neither.
fn swap(new: &Path, path: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, new, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => std::fs::remove_file(new),
        // Nothing to exchange with, or a file system that cannot.
        Err(_) => std::fs::rename(new, path),
    }
}

/// Makes what [`replace`] put at `path` without `durable` survive the loss of power: the file, then its name.
pub fn sync(path: &Path) -> io::Result<()> {
    let dir = path.parent().ok_or(Errno::INVAL)?;
    File::open(path)?.sync_data()?;
    File::open(dir)?.sync_all()
}

/// An advisory lock (`flock(2)`) on a file; given back when dropped, or when the holder dies.
#[derive(Debug)]
pub struct Lock(OwnedFd);

impl Lock {
    /// Waits for the lock, made with its file if it is not there.
    pub fn exclusive(path: &Path) -> io::Result<Self> {
        Self::take(path, FlockOperation::LockExclusive).map(|l| l.expect("a blocking lock is never busy"))
    }

    /// The exclusive lock if nobody holds it.
    pub fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        Self::take(path, FlockOperation::NonBlockingLockExclusive)
    }

    /// Waits for a lock that many may share.
    pub fn shared(path: &Path) -> io::Result<Self> {
        Self::take(path, FlockOperation::LockShared).map(|l| l.expect("a blocking lock is never busy"))
    }

    /// A lock that many may share, if nobody holds it alone.
    pub fn try_shared(path: &Path) -> io::Result<Option<Self>> {
        Self::take(path, FlockOperation::NonBlockingLockShared)
    }

    /// Turns the lock into an exclusive one if nobody else holds it.
    pub fn try_upgrade(&self) -> io::Result<bool> {
        match flock(&self.0, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    fn take(path: &Path, how: FlockOperation) -> io::Result<Option<Self>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        loop {
            let fd = rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))?;
            loop {
                match flock(&fd, how) {
                    Ok(()) => break,
                    Err(Errno::AGAIN) => return Ok(None),
                    Err(Errno::INTR) => continue,
                    Err(e) => return Err(e.into()),
                }
            }
            // The file may have been removed while this process waited for its lock.
            let mine = rustix::fs::fstat(&fd)?;
            match rustix::fs::statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(now) if (now.st_dev, now.st_ino) == (mine.st_dev, mine.st_ino) => {
                    return Ok(Some(Self(fd)));
                }
                Ok(_) | Err(Errno::NOENT) => continue,
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Opens a file and locks it (`flock(2)`): to write, alone; or to read, with others that do. `None` if others hold it so
/// that it cannot be. Held until the last duplicate of the descriptor is closed, the kernel's own included (a loop
/// device's), and whoever inherits it holds it, too.
pub fn open_locked(path: &Path, read_only: bool) -> io::Result<Option<File>> {
    let how = match read_only {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    loop {
        let file = File::options().read(true).write(!read_only).open(path)?;
        match flock(&file, how) {
            Ok(()) => {}
            Err(Errno::AGAIN) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
        // Another one may have been put in its place in between.
        let (mine, now) = (rustix::fs::fstat(&file)?, rustix::fs::stat(path)?);
        if (mine.st_dev, mine.st_ino) == (now.st_dev, now.st_ino) {
            return Ok(Some(file));
        }
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Lock> for OwnedFd {
    fn from(lock: Lock) -> Self {
        lock.0
    }
}

impl From<OwnedFd> for Lock {
    /// Takes over a locked descriptor that another process of ours handed down.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_once() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("lock");
        let held = Lock::exclusive(&path).unwrap();
        assert!(Lock::try_exclusive(&path).unwrap().is_none());
        drop(held);
        let a = Lock::shared(&path).unwrap();
        let b = Lock::shared(&path).unwrap();
        assert!(!a.try_upgrade().unwrap());
        drop(a);
        assert!(b.try_upgrade().unwrap());
    }

    #[test]
    fn replacing_leaves_no_temporary_file() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("f");
        replace(&path, b"one", false).unwrap();
        replace(&path, b"two", true).unwrap();
        sync(&path).unwrap();
        assert_eq!(sync(&tmp.path().join("g")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 1);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
