//! The workload's root filesystem: the layers' partitions, the writable disk, an overlay over both.

use crate::{Error, Result, Told};
use rustix::mount::{MountFlags, mount};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Short paths, as all lower directories must fit into one page of options (before Linux 6.8).
const LAYERS: &str = "/mnt";
const WRITABLE: &str = "/mnt/w";
/// What the workload changed.
pub const UPPER: &str = "/mnt/w/upper";
/// File with the layers' directories, the topmost first, as overlayfs wants them.
pub const LOWERS: &str = "/run/dhow/lowers";

/// Mounts everything and returns the overlay, detached.
pub fn mount_root(layers: usize) -> Result<OwnedFd> {
    let disks = Disks::find()?;
    fs::create_dir_all(WRITABLE).told("make a directory")?;
    let disk = disks.writable.as_ref().ok_or_else(|| Error("the writable disk is missing".into()))?;
    // Discarded at once: what the workload deletes is given back to the host's sparse file.
    mount(disk, WRITABLE, "ext4", MountFlags::NODEV | MountFlags::NOATIME, Some(c"discard"))
        .told(format!("mount the writable disk {}", disk.display()))?;
    let base = PathBuf::from(format!("{LAYERS}/0"));
    rootfs::make_base(&base).told("make the base layer")?;
    let mut lowers = vec![base];
    for number in 1..=layers {
        let device = disks.layer(number)?;
        let target = format!("{LAYERS}/{number}");
        fs::create_dir_all(&target).told("make a directory")?;
        mount(&device, &target, "erofs", MountFlags::RDONLY | MountFlags::NODEV, None)
            .told(format!("mount layer {number} ({})", device.display()))?;
        lowers.push(target.into());
    }
    rootfs::fresh_upper(Path::new(WRITABLE), &lowers).told("make the writable directory")?;
    // The topmost comes first.
    let lowers: Vec<_> = lowers.iter().rev().map(|l| l.to_string_lossy()).collect();
    let lowers = lowers.join(":");
    fs::write(LOWERS, &lowers).told("note the layers")?;
    // The upper directory is readable by itself, whatever the kernel was configured with: `diff` and `commit` do that.
    let options = [
        "index=off".to_owned(),
        "metacopy=off".to_owned(),
        "redirect_dir=off".to_owned(),
        format!("lowerdir={lowers}"),
        format!("upperdir={UPPER}"),
        format!("workdir={WRITABLE}/work"),
    ];
    sys::mount::new_filesystem("overlay", Some("overlay"), options.iter().map(String::as_str), 0)
        .told("mount the overlay of the layers")
}

/// The disks by what they are: the read-only one has the layers.
struct Disks {
    layers: Option<PathBuf>,
    writable: Option<PathBuf>,
}

impl Disks {
    fn find() -> Result<Self> {
        let mut disks = Self { layers: None, writable: None };
        for entry in fs::read_dir("/sys/block").told("list the disks")?.flatten() {
            let name = entry.file_name();
            if !name.to_string_lossy().starts_with("vd") {
                continue;
            }
            let read_only = fs::read_to_string(entry.path().join("ro")).is_ok_and(|v| v.trim() == "1");
            let device = Path::new("/dev").join(&name);
            *(if read_only { &mut disks.layers } else { &mut disks.writable }) = Some(device);
        }
        Ok(disks)
    }

    fn layer(&self, number: usize) -> Result<PathBuf> {
        let disk = self.layers.as_ref().ok_or_else(|| Error("the disk of the layers is missing".into()))?;
        let partition = PathBuf::from(format!("{}{number}", disk.display()));
        if !partition.exists() {
            return Err(Error(format!(
                "{} is missing: this kernel reads no GUID partition tables (CONFIG_EFI_PARTITION)",
                partition.display()
            )));
        }
        Ok(partition)
    }
}
