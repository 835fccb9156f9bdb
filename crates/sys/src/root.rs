//! A directory that paths cannot leave: every look-up goes through `openat2(2)` with `RESOLVE_IN_ROOT` and
//! `RESOLVE_NO_MAGICLINKS`, so that a symbolic link, `..` or a race with a hostile writer ends inside it
//! (CVE-2019-14271, CVE-2021-30465, CVE-2024-21626 and their kin).

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BENEATH: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// A directory beneath which paths are resolved as `chroot(2)` would, without its races.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// Opens a trusted directory of the host.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path.as_ref(), flags, Mode::empty())?))
    }

    /// Wraps an open directory.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Opens `path` inside. Absolute paths and links start at the root.
    pub fn resolve(&self, path: impl AsRef<Path>, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let path = if path.as_ref().as_os_str().is_empty() { Path::new(".") } else { path.as_ref() };
        // EAGAIN: a rename or mount elsewhere raced with the look-up; openat2(2) says to try again.
        for _ in 0..128 {
            match openat2(&self.0, path, flags | OFlags::CLOEXEC, mode, BENEATH) {
                Err(Errno::AGAIN | Errno::INTR) => continue,
                done => return Ok(done?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// Opens `path` as a handle (`O_PATH`), following links inside.
    pub fn handle(&self, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
        self.resolve(path, OFlags::PATH, Mode::empty())
    }

    /// Opens `path` as a handle, the last component not followed if it is a link.
    pub fn handle_nofollow(&self, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
        self.resolve(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())
    }

    /// Resolves all but the last component, which is returned by name. The root itself, and paths that end in
    /// `..`, have no last component: `EINVAL`.
    pub fn parent(&self, path: impl AsRef<Path>) -> io::Result<(OwnedFd, OsString)> {
        let (dir, name) = split(path.as_ref()).ok_or(Errno::INVAL)?;
        let dir = self.resolve(dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        Ok((dir, name.to_owned()))
    }

    /// Makes `path` and its missing parents directories of `mode`, and returns the last as a handle.
    /// Links on the way are followed inside the root, also those to directories that are still to be made.
    pub fn mkdir_all(&self, path: impl AsRef<Path>, mode: Mode) -> io::Result<OwnedFd> {
        // As many links as the kernel follows in one look-up.
        self.mkdir_all_within(path.as_ref(), mode, 40)
    }

    fn mkdir_all_within(&self, path: &Path, mode: Mode, links: u32) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.resolve(path, flags, Mode::empty()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
        let Some((dir, name)) = split(path) else { return Err(Errno::INVAL.into()) };
        let parent = self.mkdir_all_within(dir, mode, links)?;
        match rustix::fs::mkdirat(&parent, name, mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        match self.resolve(path, flags, Mode::empty()) {
            // A link that leads nowhere yet; a magic one has been refused otherwise.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let to = rustix::fs::readlinkat(&parent, name, Vec::new())?;
                let links = links.checked_sub(1).ok_or(Errno::LOOP)?;
                self.mkdir_all_within(&dir.join(OsStr::from_bytes(to.to_bytes())), mode, links)
            }
            done => done,
        }
    }

    /// Reads a regular file of at most `limit` bytes; a larger one is `EFBIG`. Never blocks on a fifo or device.
    pub fn read(&self, path: impl AsRef<Path>, limit: u64) -> io::Result<Vec<u8>> {
        let fd = self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty())?;
        let file = File::from(fd);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let mut out = Vec::new();
        file.take(limit + 1).read_to_end(&mut out)?;
        if out.len() as u64 > limit { Err(Errno::FBIG.into()) } else { Ok(out) }
    }

    /// A second handle on the same directory.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Root> for OwnedFd {
    fn from(root: Root) -> Self {
        root.0
    }
}

/// Directory part and last component; `None` for the root and for `.` and `..` at the end.
fn split(path: &Path) -> Option<(&Path, &OsStr)> {
    let mut bytes = path.as_os_str().as_bytes();
    while let Some(rest) = bytes.strip_suffix(b"/") {
        bytes = rest;
    }
    let at = bytes.iter().rposition(|b| *b == b'/');
    let (dir, name) = match at {
        Some(i) => (&bytes[..=i], &bytes[i + 1..]),
        None => (&b"."[..], bytes),
    };
    (!matches!(name, b"" | b"." | b".."))
        .then(|| (Path::new(OsStr::from_bytes(dir)), OsStr::from_bytes(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_and_dots_stay_inside() {
        let tmp = tempfile::tempdir().unwrap();
        let inside = tmp.path().join("root");
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(tmp.path().join("secret"), "outside").unwrap();
        std::fs::write(inside.join("secret"), "inside").unwrap();
        symlink("/secret", inside.join("abs")).unwrap();
        symlink("../../../../secret", inside.join("up")).unwrap();
        symlink("/proc/self/root", inside.join("magic")).unwrap();
        let root = Root::open(&inside).unwrap();
        for path in ["secret", "/secret", "abs", "up", "../secret", "/../../secret"] {
            assert_eq!(root.read(path, 100).unwrap(), b"inside", "{path}");
        }
        assert!(root.read("magic/etc/passwd", 100_000).is_err());
        assert!(root.read("secret", 3).is_err());
    }

    #[test]
    fn directories_are_made_inside() {
        let tmp = tempfile::tempdir().unwrap();
        let inside = tmp.path().join("root");
        std::fs::create_dir(&inside).unwrap();
        symlink("/elsewhere", inside.join("link")).unwrap();
        std::fs::create_dir(inside.join("elsewhere")).unwrap();
        let root = Root::open(&inside).unwrap();
        root.mkdir_all("/link/a/b", Mode::from_raw_mode(0o755)).unwrap();
        assert!(inside.join("elsewhere/a/b").is_dir());
        symlink("/not/yet", inside.join("dangling")).unwrap();
        symlink("loop", inside.join("loop")).unwrap();
        root.mkdir_all("dangling/c", Mode::from_raw_mode(0o755)).unwrap();
        assert!(inside.join("not/yet/c").is_dir());
        assert!(root.mkdir_all("loop/c", Mode::from_raw_mode(0o755)).is_err());
        assert!(root.parent("/").is_err());
        assert_eq!(root.parent("/link/x/").unwrap().1, "x");
    }
}
