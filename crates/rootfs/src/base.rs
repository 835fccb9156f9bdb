//! The ends of a root filesystem: what lies at the bottom of every one, and the directory on top that is written to.

use crate::error::{Context, Result};
use rustix::fs::{AtFlags, CWD, Gid, Mode, Timestamps, Uid};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Makes the directory at the bottom of every root filesystem: it holds the mount points that every container needs, so
/// that they neither are made in the writable directory at each start nor show up in `diff` and `commit`. What an
/// image has at these places hides it.
pub fn make_base(new: &Path) -> Result<()> {
    let mode = Mode::from_raw_mode(0o755);
    for sub in ["", "dev", "etc", "proc", "sys"] {
        let path = new.join(sub);
        // Whatever the umask is: these modes are seen inside.
        rustix::fs::mkdir(&path, mode).and_then(|()| rustix::fs::chmod(&path, mode)).on("make", &path)?;
    }
    for name in ["etc/hostname", "etc/hosts", "etc/resolv.conf"] {
        let path = new.join(name);
        fs::write(&path, "").on("write", &path)?;
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o644)).on("write", &path)?;
    }
    let mtab = new.join("etc/mtab");
    std::os::unix::fs::symlink("/proc/mounts", &mtab).on("make", &mtab)
}

/// Makes `upper/` and `work/` in a writable directory on first use. The top of an overlay has its own mode, owner and times
/// for `/`: they are taken from the image, whose lower directories are given base first. `work/` is made last and so
/// says that `upper/` is complete.
pub fn fresh_upper(writable: &Path, lowers: &[PathBuf]) -> Result<()> {
    let (upper, work) = (writable.join("upper"), writable.join("work"));
    if work.is_dir() {
        return Ok(());
    }
    match fs::create_dir(&upper) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e).on("make", &upper),
        _ => {}
    }
    if let Some(top) = root_directory(lowers)? {
        let (uid, gid) = (Uid::from_raw(top.uid()), Gid::from_raw(top.gid()));
        rustix::fs::chown(&upper, Some(uid), Some(gid)).on("change the owner of", &upper)?;
        rustix::fs::chmod(&upper, Mode::from_raw_mode(top.mode() & 0o7777))
            .on("change the mode of", &upper)?;
        let time = rustix::fs::Timespec { tv_sec: top.mtime(), tv_nsec: top.mtime_nsec() };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, &upper, &times, AtFlags::SYMLINK_NOFOLLOW)
            .on("set the times of", &upper)?;
    }
    fs::DirBuilder::new().mode(0o700).create(&work).on("make", &work)
}

/// The root directory of the topmost layer that says anything about it. Layers whose tar had no entry for the
/// root show the default: mode 0755, owner 0, time 0.
pub(crate) fn root_directory(lowers: &[PathBuf]) -> Result<Option<fs::Metadata>> {
    let mut found = None;
    for lower in lowers.iter().skip(1).rev() {
        let meta = fs::symlink_metadata(lower).on("look at", lower)?;
        let default =
            meta.mode() & 0o7777 == 0o755 && meta.uid() == 0 && meta.gid() == 0 && meta.mtime() == 0;
        if !default {
            return Ok(Some(meta));
        }
        found.get_or_insert(meta);
    }
    Ok(found)
}
