//! The first moments: a root that can be pivoted away from, and the kernel's filesystems.

use crate::{Result, Told};
use rustix::mount::{MountFlags, mount, mount_move};
use std::fs;
use std::path::Path;

const NODEV: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const NEW_ROOT: &str = "/root";

/// Leaves the initramfs, which cannot be pivoted away from (pivot_root(2)), for a small tmpfs, keeping the kernel's
/// modules at hand, and mounts what every Linux expects.
pub fn mount_kernel_filesystems() -> Result<()> {
    fs::create_dir_all(NEW_ROOT).told("make the new root")?;
    mount("root", NEW_ROOT, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755,size=64m"))
        .told("mount the new root")?;
    let new = Path::new(NEW_ROOT);
    for dir in ["dev", "proc", "sys", "run", "tmp", "modules", "mnt"] {
        fs::create_dir_all(new.join(dir)).told(dir)?;
    }
    move_modules(&new.join("modules"))?;
    // Its memory is the workload's: nobody reads the program's file again.
    let _ = fs::remove_file("/init");
    std::env::set_current_dir(NEW_ROOT).told("enter the new root")?;
    mount_move(".", "/").told("move the new root")?;
    rustix::process::chroot(".").told("enter the new root")?;
    std::env::set_current_dir("/").told("enter the new root")?;
    mount("proc", "/proc", "proc", NODEV, None).told("mount /proc")?;
    mount("sysfs", "/sys", "sysfs", NODEV, None).told("mount /sys")?;
    mount("dev", "/dev", "devtmpfs", MountFlags::NOSUID, Some(c"mode=0755")).told("mount /dev")?;
    fs::create_dir_all("/dev/pts").and_then(|()| fs::create_dir_all("/dev/shm")).told("make /dev/pts")?;
    let options = Some(c"gid=5,mode=0620,ptmxmode=0666");
    mount("devpts", "/dev/pts", "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, options)
        .told("mount /dev/pts")?;
    mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755,size=16m"))
        .told("mount /run")?;
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", NODEV, None).told("mount /sys/fs/cgroup")
}

/// The modules out of the initramfs.
fn move_modules(to: &Path) -> Result<()> {
    let Ok(list) = fs::read_dir("/modules") else { return Ok(()) };
    for entry in list.flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).told("copy a module")?;
        let _ = fs::remove_file(entry.path());
    }
    Ok(())
}
