//! Masked and read-only paths: parts of `/proc` and `/sys` that a container may not see or not change.

use super::mounts::require_procfs;
use super::step::Step;
use crate::hull::HullError;
use rustix::fs::{FileType, fstat};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use sys::Root;
use sys::mount::{Change, attach, attr, clone_handle, new_filesystem, set_attributes};

/// Hides each path: files behind `null` (the proved null device, CVE-2025-31133), directories behind an empty
/// read-only tmpfs. Paths that are not there need no hiding.
pub(super) fn mask(root: &Root, paths: &[String], null: BorrowedFd<'_>) -> Result<(), HullError> {
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let named = || format!("mask {path}");
        let Some(target) = existing(root, path)? else { continue };
        if !FileType::from_raw_mode(fstat(&target).step(named)?.st_mode).is_dir() {
            attach(clone_handle(null, false).step(named)?, target).step(named)?;
            continue;
        }
        // One empty directory serves all.
        let cover = match &empty {
            Some(first) => clone_handle(first, false).step(named)?,
            None => {
                let bits = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
                new_filesystem("tmpfs", Some("tmpfs"), ["size=0", "nr_inodes=2", "mode=755"], bits)
                    .step(named)?
            }
        };
        attach(&cover, target).step(named)?;
        empty.get_or_insert(cover);
    }
    Ok(())
}

/// Makes each path, with all that is mounted below it, read-only.
pub(super) fn make_readonly(root: &Root, paths: &[String]) -> Result<(), HullError> {
    for path in paths {
        let named = || format!("make {path} read-only");
        let Some(target) = existing(root, path)? else { continue };
        let cover = clone_handle(&target, true).step(named)?;
        set_attributes(&cover, true, Change::set(attr::RDONLY)).step(named)?;
        attach(cover, target).step(named)?;
    }
    Ok(())
}

/// A handle on the path, if it is there. What lies in `/proc` must be in a procfs (CVE-2025-52881).
fn existing(root: &Root, path: &str) -> Result<Option<OwnedFd>, HullError> {
    let target = match root.handle(path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        done => done.step(|| format!("look up {path}"))?,
    };
    if path.starts_with("/proc/") {
        require_procfs(target.as_fd())?;
    }
    Ok(Some(target))
}
