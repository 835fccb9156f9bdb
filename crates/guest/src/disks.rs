//! The workload's root filesystem: the layers' partitions, the writable disk, an overlay over both. And the volumes that
//! are disks.

use crate::{Error, Result, Told};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use sandbox::boot::{Boot, VOLUMES, Volume};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use types::oci;

/// Short paths, as all lower directories must fit into one page of options (before Linux 6.8).
const LAYERS: &str = "/mnt";
/// How often a disk is looked at that is to grow, and how long that takes each time: its driver is told by an interrupt.
const GROWING: u32 = 500;
const LOOK: std::time::Duration = std::time::Duration::from_millis(10);
const WRITABLE: &str = "/mnt/w";
/// What the workload changed.
pub const UPPER: &str = "/mnt/w/upper";
/// File with the layers' directories, the topmost first, as overlayfs wants them.
pub const LOWERS: &str = "/run/dhow/lowers";

/// Mounts everything and returns the overlay, detached.
pub fn mount_root(layers: usize, volumes: &[Volume]) -> Result<OwnedFd> {
    let disks = Disks::find(volumes)?;
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

fn virtio_disks() -> Result<impl Iterator<Item = fs::DirEntry>> {
    let all = fs::read_dir("/sys/block").told("list the disks")?.flatten();
    Ok(all.filter(|entry| entry.file_name().to_string_lossy().starts_with("vd")))
}

/// By which a disk is known; empty if it has none.
fn serial(entry: &fs::DirEntry) -> String {
    fs::read_to_string(entry.path().join("serial")).unwrap_or_default().trim().to_owned()
}

/// Mounts the volumes that are disks where nobody sees them, for the specification to bind.
pub fn mount_volumes(volumes: &[Volume]) -> Result<()> {
    for (number, volume) in volumes.iter().enumerate() {
        let disk = virtio_disks()?.find(|entry| serial(entry) == volume.serial);
        let disk = disk.ok_or_else(|| Error(format!("the disk of volume {} is missing", volume.name)))?;
        let (device, target) = (Path::new("/dev").join(disk.file_name()), format!("{VOLUMES}/{number}"));
        fs::create_dir_all(&target).told("make a directory")?;
        let (flags, data) = match volume.read_only {
            true => (MountFlags::NODEV | MountFlags::RDONLY, c"errors=remount-ro"),
            // What is deleted is given back to the host.
            false => (MountFlags::NODEV, c"errors=remount-ro,discard"),
        };
        mount(device, &target, "ext4", flags, Some(data))
            .told(format!("mount the disk of volume {}, which may be damaged", volume.name))?;
        if !volume.read_only {
            // It may have grown while nobody had it. A filesystem that cannot stays as it is.
            let _ = grow(&target, 0);
        }
    }
    Ok(())
}

/// Lets the filesystem of a volume have all of its disk, which is just growing.
pub fn grow_volume(number: u32, bytes: u64) -> Result<()> {
    grow(&format!("{VOLUMES}/{number}"), bytes).told("let the filesystem grow")
}

/// Lets a filesystem have all of its disk, once that has so many bytes.
fn grow(target: &str, bytes: u64) -> std::io::Result<()> {
    let dir = fs::File::open(target)?;
    let device = rustix::fs::fstat(&dir)?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let size = format!("/sys/dev/block/{major}:{minor}/size");
    let mut has = 0;
    for _ in 0..GROWING {
        has = fs::read_to_string(&size)?.trim().parse().unwrap_or(0u64) * 512;
        if has >= bytes {
            break;
        }
        std::thread::sleep(LOOK);
    }
    sys::fsctl::grow_ext4(&dir, has / rustix::fs::fstatvfs(&dir)?.f_bsize.max(1))
}

/// What the image has at the target of a volume that is still empty goes into it.
pub fn fill_volumes(root: &sys::Root, spec: &oci::Spec, volumes: &[Volume]) -> Result<()> {
    for (target, source) in types::volumes_to_fill(spec).told("read the volumes")? {
        let number = source.strip_prefix(VOLUMES).ok().and_then(|n| n.to_str()?.parse::<usize>().ok());
        if number.and_then(|n| volumes.get(n)).is_some_and(|v| !v.read_only) {
            rootfs::copy_up(root, &target, &source).told("fill a volume")?;
        }
    }
    Ok(())
}

/// Every disk that files may be written to, opened so that it tells of what cannot be written from here on.
pub fn written_to() -> Result<Vec<fs::File>> {
    let mut disks = vec![fs::File::open(UPPER).told("open the writable disk")?];
    for entry in fs::read_dir(VOLUMES).into_iter().flatten().flatten() {
        disks.push(fs::File::open(entry.path()).told("open a volume's disk")?);
    }
    Ok(disks)
}

/// Whose files are served: the workload's root, or the part of a volume that the machine was started for.
pub fn served(boot: &Boot, root: &OwnedFd) -> Result<OwnedFd> {
    if !boot.files_only || boot.volumes.is_empty() {
        return root.try_clone().told("duplicate a descriptor");
    }
    let volume = sys::Root::open(format!("{VOLUMES}/0"));
    volume.and_then(|volume| volume.handle(&boot.part)).told("open the part of the volume")
}

/// Before the machine ends, so that the next one finds their journals empty.
pub fn unmount_volumes() {
    for entry in fs::read_dir(VOLUMES).into_iter().flatten().flatten() {
        if unmount(entry.path(), UnmountFlags::empty()).is_err() {
            let _ = mount_remount(entry.path(), MountFlags::RDONLY, c"");
        }
    }
}

/// The disks by what they are: the read-only one has the layers.
struct Disks {
    layers: Option<PathBuf>,
    writable: Option<PathBuf>,
}

impl Disks {
    fn find(volumes: &[Volume]) -> Result<Self> {
        let mut disks = Self { layers: None, writable: None };
        for entry in virtio_disks()? {
            let name = entry.file_name();
            let serial = serial(&entry);
            if volumes.iter().any(|v| v.serial == serial) {
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
