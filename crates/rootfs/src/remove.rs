//! Removing a tree that somebody hostile has made: however deep it is, with few descriptors, following nothing, and
//! leaving alone what is mounted on it.

use crate::tree::{self, Meta};
use rustix::fs::{AtFlags, Dir, renameat, unlinkat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Directories below this depth are moved up first: who goes down step by step finds no longest path, and a process has
/// few descriptors.
const DEEPEST: u32 = 32;
/// How often a directory is emptied that is not empty then: somebody else may be removing it, too.
const ATTEMPTS: u32 = 8;

/// Removes a file, or a directory with all below it.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match rustix::fs::unlink(path) {
        Err(Errno::ISDIR) => {}
        done => return Ok(done?),
    }
    let top = tree::subdirectory(rustix::fs::CWD, path.as_os_str())?;
    let mut removal = Removal { top: &top, moved: 0 };
    let mut attempts = 0;
    loop {
        let before = removal.moved;
        removal.empty(&top, 0)?;
        if removal.moved > before {
            // The reading that moved it up may have missed it.
            continue;
        }
        attempts += 1;
        match rustix::fs::rmdir(path) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if attempts < ATTEMPTS => {}
            done => return Ok(done?),
        }
    }
}

struct Removal<'a> {
    top: &'a OwnedFd,
    /// How many directories were moved up.
    moved: u64,
}

impl Removal<'_> {
    fn empty(&mut self, dir: &OwnedFd, depth: u32) -> rustix::io::Result<()> {
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            match unlinkat(dir, name, AtFlags::empty()) {
                Err(Errno::ISDIR) => self.directory(dir, name, depth)?,
                Err(Errno::NOENT) => {}
                done => done?,
            }
        }
        Ok(())
    }

    fn directory(&mut self, dir: &OwnedFd, name: &OsStr, depth: u32) -> rustix::io::Result<()> {
        if depth == DEEPEST {
            return self.move_up(dir, name);
        }
        match Meta::at(dir.as_fd(), name) {
            Ok(meta) if meta.mount_root => return Err(Errno::BUSY),
            Err(Errno::NOENT) => return Ok(()),
            found => found?,
        };
        let below = match tree::subdirectory(dir.as_fd(), name) {
            Err(Errno::NOENT) => return Ok(()),
            found => found?,
        };
        self.empty(&below, depth + 1)?;
        match unlinkat(dir, name, AtFlags::REMOVEDIR) {
            // What is still in it the next reading finds.
            Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            done => done,
        }
    }

    /// To the top, under a name that nothing has there.
    fn move_up(&mut self, dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
        loop {
            self.moved += 1;
            match renameat(dir, name, self.top, format!(".moved-up-{}", self.moved)) {
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                Err(Errno::NOENT) => return Ok(()),
                done => return done,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, mkdirat};
    use std::os::unix::fs::symlink;

    #[test]
    fn a_tree_deeper_than_a_process_has_descriptors_is_removed() {
        let outer = tempfile::tempdir().unwrap();
        let kept = outer.path().join("kept");
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "x").unwrap();
        let top = outer.path().join("tree");
        std::fs::create_dir(&top).unwrap();
        std::fs::create_dir(top.join(".moved-up-1")).unwrap();
        std::fs::write(top.join(".moved-up-1/x"), "in the way").unwrap();
        std::fs::write(top.join(".moved-up-2"), "in the way").unwrap();
        let mut dir = tree::subdirectory(CWD, top.as_os_str()).unwrap();
        for _ in 0..21_000 {
            mkdirat(&dir, "d", Mode::RWXU).unwrap();
            dir = tree::subdirectory(dir.as_fd(), OsStr::new("d")).unwrap();
        }
        rustix::fs::symlinkat(&kept, &dir, "link").unwrap();
        symlink(&kept, top.join("link")).unwrap();
        drop(dir);
        remove_tree(&top).unwrap();
        assert!(!top.exists() && kept.join("file").exists());
        remove_tree(&kept.join("file")).unwrap();
        assert_eq!(remove_tree(&top).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
