//! QEMU's microvm machine, in software, where the CPU lacks virtualisation.

use super::monitor::{KERNEL_CMDLINE, Monitor};
use super::spec;
use super::walls::{self, Program};
use crate::boot::SHARES_TAG;
use crate::container::step::Step;
use crate::hull::HullError;
use rustix::fs::{Mode, OFlags};
use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use sys::clone::Child;
use vmm::config::DiskRate;
use vmm::jail::Largest;

const PROGRAM: &str = "qemu-system-x86_64";
/// Sector of a disk, in bytes.
const SECTOR: u64 = 512;
/// Translated code that is kept, MiB.
const TRANSLATIONS_MIB: u32 = 64;
/// Kernel and initramfs in QEMU's root.
const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";

/// Devices that have a place behind the machine's first interrupt controller.
const DEVICES: usize = 8;
/// Those that each machine has: entropy, balloon, vsock, the writable disk.
const FIXED_DEVICES: usize = 4;

/// The name of the disk that is a volume, by its number.
pub(super) fn volume_disk(number: usize) -> String {
    format!("volume{number}")
}

/// Names of the disks.
const LAYERS: &str = "layers";
const DISK: &str = "disk";

/// What this machine adds to the kernel's command line. A kernel without firmware would otherwise jump to where a BIOS is
/// entered, and spin there; a triple fault ends the machine.
const CMDLINE: &str = "no_timer_check reboot=t";

/// Starts one that is connected to the other halves of the vsock device and, if there is one, of the file system, and listens
/// for its orders ([`super::qmp`]) on a socket; what it tells unasked, it tells on another ([`super::trouble`]).
/// The guest's console comes with its output on the pipe.
pub(super) fn start(
    of: &Monitor<'_>,
    vsock: &OwnedFd,
    shares: Option<&OwnedFd>,
    [orders, events]: [BorrowedFd<'_>; 2],
) -> Result<(Child, OwnedFd), HullError> {
    let path = walls::find(PROGRAM).ok_or_else(|| {
        HullError::Unsupported(format!(
            "{PROGRAM} is not installed, and this host has no KVM: install the package qemu-system-x86"
        ))
    })?;
    let optional = usize::from(shares.is_some()) + usize::from(!of.layers.is_empty());
    let devices = FIXED_DEVICES + optional + of.taps.len() + of.plan.volumes.len();
    // It has eight devices with one interrupt controller, and twenty-four with a second one.
    let second = if devices > DEVICES { "on" } else { "off" };
    let mut given = Given::default();
    given
        .args(["-M", &format!("microvm,acpi=on,rtc=on,isa-serial=on,ioapic2={second},memory-backend=mem")])
        .args(["-accel", &format!("tcg,thread=multi,tb-size={TRANSLATIONS_MIB}")])
        .args(["-cpu", "max", "-smp", &of.plan.vcpus.to_string()])
        .args(["-m", &format!("{}M", of.plan.memory_mib)])
        .args(["-object", &format!("memory-backend-memfd,id=mem,size={}M,share=on", of.plan.memory_mib)])
        .args(["-name", &of.boot.id])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"])
        .args(["-kernel", &format!("/{KERNEL}"), "-initrd", &format!("/{INITRD}")])
        .args(["-append", &format!("{KERNEL_CMDLINE} {CMDLINE} tsc_early_khz={}", vmm::tsc::host_khz())])
        .args(["-global", "virtio-mmio.force-legacy=false"])
        .args(["-device", "virtio-rng-device"])
        .args(["-device", "virtio-balloon-device,id=balloon,free-page-reporting=on"])
        .args(["-chardev", &format!("socket,id=qmp,server=on,wait=off,fd={}", orders.as_raw_fd())])
        .args(["-mon", "chardev=qmp,mode=control"])
        .args(["-chardev", &format!("socket,id=events,fd={}", events.as_raw_fd())])
        .args(["-mon", "chardev=events,mode=control"])
        .args(["-chardev", &format!("socket,id=vsock,fd={}", vsock.as_raw_fd())])
        .args(["-device", "vhost-user-vsock-device,chardev=vsock"]);
    if let Some(shares) = shares {
        given
            .args(["-chardev", &format!("socket,id=shares,fd={}", shares.as_raw_fd())])
            .args(["-device", &format!("vhost-user-fs-device,chardev=shares,tag={SHARES_TAG}")]);
    }
    let throttling = throttling(&of.rate);
    if !of.layers.is_empty() {
        let layers = layers_disk(of, &mut given)?;
        given
            .args([
                "-drive",
                &format!("id={LAYERS},if=none,format=vmdk,readonly=on,file={layers}{throttling}"),
            ])
            .args(["-device", &format!("virtio-blk-device,drive={LAYERS}")]);
    }
    let disk = given.open(&of.plan.disk, &[OFlags::RDONLY, OFlags::RDWR])?;
    given
        .args([
            "-drive",
            &format!("id={DISK},if=none,format=raw,cache=writeback,discard=unmap,file={disk}{throttling}"),
        ])
        // Of a full disk of the host the guest is told: QEMU would stop it, for somebody to start it again.
        .args(["-device", &format!("virtio-blk-device,drive={DISK},werror=report,rerror=report")]);
    for (number, volume) in of.plan.volumes.iter().enumerate() {
        let Some(file) = volume.disk() else { continue };
        // QEMU's own locks would be in its way when the disk grows, as it has the file by two descriptors.
        let file = given.open_locked(&volume.name, file, volume.read_only)?;
        let file = format!("file.driver=file,file.locking=off,file.filename={file}");
        let read_only = if volume.read_only { "on" } else { "off" };
        let serial = spec::serial(of.layers.len(), number);
        let name = volume_disk(number);
        given
            .args([
                "-drive",
                &format!(
                    "id={name},if=none,format=raw,readonly={read_only},cache=writeback,discard=unmap,{file}{throttling}"
                ),
            ])
            .args([
                "-device",
                &format!("virtio-blk-device,drive={name},serial={serial},werror=report,rerror=report"),
            ]);
    }
    let mut fds = vec![vsock.as_fd(), orders, events];
    fds.extend(shares.map(AsFd::as_fd));
    for (n, (tap, mac)) in of.interfaces().enumerate() {
        let mac: Vec<String> = mac.iter().map(|b| format!("{b:02x}")).collect();
        given
            .args(["-netdev", &format!("tap,id=net{n},fd={}", tap.as_raw_fd())])
            .args(["-device", &format!("virtio-net-device,netdev=net{n},mac={}", mac.join(":"))]);
        fds.push(tap.as_fd());
    }
    let (said, say) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step(|| "make a pipe".into())?;
    fds.extend(given.files.iter().map(AsFd::as_fd));
    let child = start_program(of, path, given.args, fds, say.as_fd())?;
    Ok((child, said))
}

/// The options of a drive for its limits (qemu(1), `-drive`); 0 is none.
fn throttling(rate: &DiskRate) -> String {
    let DiskRate { read, write } = rate;
    format!(
        ",throttling.bps-read={},throttling.iops-read={},throttling.bps-write={},throttling.iops-write={}",
        read.bytes_per_second, read.ops_per_second, write.bytes_per_second, write.ops_per_second
    )
}

fn start_program(
    of: &Monitor<'_>,
    path: PathBuf,
    args: Vec<String>,
    fds: Vec<BorrowedFd<'_>>,
    output: BorrowedFd<'_>,
) -> Result<Child, HullError> {
    let files = vec![(of.plan.kernel.as_path(), KERNEL), (of.plan.initrd.as_path(), INITRD)];
    // QEMU opens these itself. They are no secrets, and lie where nobody but root gets to.
    for (file, _) in &files {
        use std::os::unix::fs::PermissionsExt;
        let readable = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(file, readable).step(|| format!("make {} readable", file.display()))?;
    }
    let mut largest = of.plan.memory_mib << 20;
    for disk in of.plan.volumes.iter().filter_map(|v| v.disk()).chain([&of.plan.disk]) {
        let meta = std::fs::metadata(disk).step(|| format!("look at {}", disk.display()))?;
        largest = largest.max(meta.len());
    }
    let grows = of.plan.volumes.iter().any(|volume| !volume.read_only && volume.disk().is_some());
    let ever = if grows { vmm::jail::GROWN.max(largest) } else { largest };
    let largest = Largest { now: largest, ever };
    Program { path, args, fds, output, files, user: of.user(), largest }.start()
}

/// What QEMU is given: words, and open files that they name.
#[derive(Default)]
struct Given {
    args: Vec<String>,
    files: Vec<OwnedFd>,
}

impl Given {
    fn args<const N: usize>(&mut self, words: [&str; N]) -> &mut Self {
        self.args.extend(words.map(str::to_owned));
        self
    }

    /// Opens a file that QEMU's user cannot open, in each mode in which QEMU will; it finds it by the path that is returned
    /// (qemu(1), `-add-fd`).
    fn open(&mut self, path: &Path, modes: &[OFlags]) -> Result<String, HullError> {
        let set = self.files.len();
        for mode in modes {
            let opened = rustix::fs::open(path, *mode | OFlags::CLOEXEC, Mode::empty());
            let fd = opened.step(|| format!("open {}", path.display()))?;
            self.args(["-add-fd", &format!("fd={},set={set}", fd.as_raw_fd())]);
            self.files.push(fd);
        }
        Ok(format!("/dev/fdset/{set}"))
    }
}

impl Given {
    /// The same of a volume's disk, which is locked by a descriptor that QEMU has: it is free again when QEMU is gone.
    fn open_locked(&mut self, name: &str, path: &Path, read_only: bool) -> Result<String, HullError> {
        let named = || format!("open the disk {}", path.display());
        let locked = sys::file::open_locked(path, read_only).step(named)?.ok_or_else(|| in_use(name))?;
        let set = self.files.len();
        let mut fds = vec![OwnedFd::from(locked)];
        if !read_only {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            fds.push(rustix::fs::open(path, flags, Mode::empty()).step(named)?);
        }
        for fd in fds {
            self.args(["-add-fd", &format!("fd={},set={set}", fd.as_raw_fd())]);
            self.files.push(fd);
        }
        Ok(format!("/dev/fdset/{set}"))
    }
}

fn in_use(volume: &str) -> HullError {
    HullError::Invalid(format!(
        "volume {volume} is in use by another container, and a disk has one user that writes, or several that read"
    ))
}

/// The layers as one disk with a partition for each: a VMDK descriptor of extents, of which all but the partition
/// tables are the layers' own files. Source: VMware Virtual Disk Format 1.1, "The Descriptor".
fn layers_disk(of: &Monitor<'_>, given: &mut Given) -> Result<String, HullError> {
    let size = |path: &PathBuf| {
        let meta = std::fs::metadata(path);
        meta.map(|m| m.len()).step(|| format!("look at the layer {}", path.display()))
    };
    let sizes = of.layers.iter().map(size).collect::<Result<Vec<_>, _>>()?;
    let layout = vmm::gpt::Layout::of(&sizes).map_err(|e| HullError::Invalid(e.to_string()))?;
    let mut made = |name: &str, bytes: &[u8], length: u64| {
        let path = of.dir.join(name);
        let written = std::fs::write(&path, bytes)
            .and_then(|()| std::fs::File::options().write(true).open(&path)?.set_len(length));
        written.step(|| format!("write {}", path.display()))?;
        given.open(&path, &[OFlags::RDONLY])
    };
    let head = made("head", &layout.head, layout.head.len() as u64)?;
    let tail = made("tail", &layout.tail, layout.tail.len() as u64)?;
    // QEMU leaves extents of the kind ZERO out: zeros come from a file that has none but holes.
    let zeros = made("zeros", &[], vmm::gpt::ALIGNMENT)?;
    let mut text = String::from(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n",
    );
    let mut at = 0;
    let mut extent = |start: u64, length: u64, file: &str| {
        while at < start {
            let gap = (start - at).min(vmm::gpt::ALIGNMENT);
            let _ = writeln!(text, "RW {} FLAT \"{zeros}\" 0", gap / SECTOR);
            at += gap;
        }
        let _ = writeln!(text, "RW {} FLAT \"{file}\" 0", length / SECTOR);
        at = start + length;
    };
    extent(0, layout.head.len() as u64, &head);
    for (part, path) in layout.partitions.iter().zip(of.layers) {
        extent(part.offset, part.size, &given.open(path, &[OFlags::RDONLY])?);
    }
    extent(layout.tail_offset(), layout.tail.len() as u64, &tail);
    let path = of.dir.join("layers.vmdk");
    std::fs::write(&path, text).step(|| format!("write {}", path.display()))?;
    given.open(&path, &[OFlags::RDONLY])
}
