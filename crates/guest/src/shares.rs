//! The directories of the host that the specification binds: one file system has them all.

use crate::{Error, Result, Told};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use sandbox::boot::{SHARES, SHARES_TAG};

/// Mounts it. Devices have the host's numbers, which mean nothing here.
pub fn mount_all() -> Result<()> {
    std::fs::create_dir_all(SHARES).told("make a directory")?;
    match mount(SHARES_TAG, SHARES, "virtiofs", MountFlags::NODEV, None) {
        Err(Errno::NODEV) => Err(Error(
            "this kernel has no driver virtiofs, by which directories and volumes of the host are mounted: choose another \
             kernel (dhow kernel ls), or leave the mounts out"
                .into(),
        )),
        done => done.told("mount the host's directories"),
    }
}
