//! QEMU's microvm machine, in software, where the CPU lacks virtualisation.

use crate::boot::SHARES_TAG;
use crate::container::step::Step;
use crate::hull::HullError;
use rustix::io::{FdFlags, fcntl_setfd};
use std::fmt::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use types::{MachinePlan, NetworkPlan};

const PROGRAM: &str = "qemu-system-x86_64";
/// Sector of a disk, in bytes.
const SECTOR: u64 = 512;
/// Translated code that is kept, MiB.
const TRANSLATIONS_MIB: u32 = 64;

/// Kernel's command line. The console is read for its last lines should the guest fail.
const CMDLINE: &str =
    "console=ttyS0 quiet panic=-1 rdinit=/init dhow.hull=vm random.trust_cpu=on no_timer_check";

/// A QEMU to be started.
pub(super) struct Qemu<'a> {
    pub(super) plan: &'a MachinePlan,
    pub(super) layers: &'a [PathBuf],
    pub(super) dir: &'a Path,
    pub(super) tap: Option<&'a OwnedFd>,
    pub(super) network: &'a NetworkPlan,
    /// Connected to the vsock device's other half.
    pub(super) vsock: OwnedFd,
    /// The same of the file system, if there is one.
    pub(super) shares: Option<OwnedFd>,
}

impl Qemu<'_> {
    /// Starts it; its standard output is the guest's console.
    pub(super) fn start(&self) -> Result<Child, HullError> {
        for device in [Some(&self.vsock), self.shares.as_ref()].into_iter().flatten() {
            fcntl_setfd(device, FdFlags::empty()).step(|| "hand a device over".into())?;
        }
        let mut command = Command::new(PROGRAM);
        command
            .args(["-M", "microvm,acpi=on,rtc=on,isa-serial=on,ioapic2=off,memory-backend=mem"])
            .args(["-accel", &format!("tcg,thread=multi,tb-size={TRANSLATIONS_MIB}")])
            .args(["-cpu", "max", "-smp", &self.plan.vcpus.to_string()])
            .args(["-m", &format!("{}M", self.plan.memory_mib)])
            .args([
                "-object",
                &format!("memory-backend-memfd,id=mem,size={}M,share=on", self.plan.memory_mib),
            ])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
            .args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"])
            .arg("-kernel")
            .arg(&self.plan.kernel)
            .arg("-initrd")
            .arg(&self.plan.initrd)
            .args(["-append", &format!("{CMDLINE} tsc_early_khz={}", vmm::tsc::host_khz())])
            .args(["-global", "virtio-mmio.force-legacy=false"])
            .args(["-device", "virtio-rng-device"])
            .args(["-device", "virtio-balloon-device,free-page-reporting=on"])
            .args(["-chardev", &format!("socket,id=vsock,fd={}", self.vsock.as_raw_fd())])
            .args(["-device", "vhost-user-vsock-device,chardev=vsock"]);
        if let Some(shares) = &self.shares {
            command
                .args(["-chardev", &format!("socket,id=shares,fd={}", shares.as_raw_fd())])
                .args(["-device", &format!("vhost-user-fs-device,chardev=shares,tag={SHARES_TAG}")]);
        }
        if !self.layers.is_empty() {
            let layers = self.layers_disk()?;
            command
                .args([
                    "-drive",
                    &format!("id=layers,if=none,format=vmdk,readonly=on,file={}", comma(&layers)?),
                ])
                .args(["-device", "virtio-blk-device,drive=layers"]);
        }
        command
            .args([
                "-drive",
                &format!(
                    "id=disk,if=none,format=raw,cache=writeback,discard=unmap,file={}",
                    comma(&self.plan.disk)?
                ),
            ])
            .args(["-device", "virtio-blk-device,drive=disk"]);
        if let (Some(tap), NetworkPlan::Bridge(attachment)) = (self.tap, self.network) {
            fcntl_setfd(tap, FdFlags::empty()).step(|| "hand the tap device over".into())?;
            let mac: Vec<String> = attachment.mac.iter().map(|b| format!("{b:02x}")).collect();
            command
                .args(["-netdev", &format!("tap,id=net,fd={}", tap.as_raw_fd())])
                .args(["-device", &format!("virtio-net-device,netdev=net,mac={}", mac.join(":"))]);
        }
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => HullError::Unsupported(format!(
                "{PROGRAM} is not installed, and this host has no KVM: install the package qemu-system-x86"
            )),
            _ => HullError::Step { step: format!("start {PROGRAM}"), source: e },
        })
    }

    /// The layers as one disk with a partition for each: a VMDK descriptor of extents, of which all but the partition
    /// tables are the layers' own files. Source: VMware Virtual Disk Format 1.1, "The Descriptor".
    fn layers_disk(&self) -> Result<PathBuf, HullError> {
        let size = |path: &PathBuf| {
            let meta = std::fs::metadata(path);
            meta.map(|m| m.len()).step(|| format!("look at the layer {}", path.display()))
        };
        let sizes = self.layers.iter().map(size).collect::<Result<Vec<_>, _>>()?;
        let layout = vmm::gpt::Layout::of(&sizes).map_err(|e| HullError::Invalid(e.to_string()))?;
        let (head, tail) = (self.dir.join("head"), self.dir.join("tail"));
        let write = |path: &Path, bytes: &[u8]| {
            std::fs::write(path, bytes).step(|| format!("write {}", path.display()))
        };
        write(&head, &layout.head)?;
        write(&tail, &layout.tail)?;
        // QEMU leaves extents of the kind ZERO out: zeros come from a file that has none but holes.
        let zeros = self.dir.join("zeros");
        let made = std::fs::File::create(&zeros).and_then(|f| f.set_len(vmm::gpt::ALIGNMENT));
        made.step(|| format!("write {}", zeros.display()))?;
        let mut text = String::from(
            "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n",
        );
        let mut at = 0;
        let mut extent = |start: u64, length: u64, path: &Path| {
            while at < start {
                let gap = (start - at).min(vmm::gpt::ALIGNMENT);
                let _ = writeln!(text, "RW {} FLAT \"{}\" 0", gap / SECTOR, zeros.display());
                at += gap;
            }
            let _ = writeln!(text, "RW {} FLAT \"{}\" 0", length / SECTOR, path.display());
            at = start + length;
        };
        extent(0, layout.head.len() as u64, &head);
        for (part, path) in layout.partitions.iter().zip(self.layers) {
            extent(part.offset, part.size, path);
        }
        extent(layout.tail_offset(), layout.tail.len() as u64, &tail);
        let path = self.dir.join("layers.vmdk");
        write(&path, text.as_bytes())?;
        Ok(path)
    }
}

/// A path within an option, where a comma is written twice.
fn comma(path: &Path) -> Result<String, HullError> {
    let text = path.to_str();
    let text = text.filter(|t| !t.contains(['"', '\n']));
    text.map(|t| t.replace(',', ",,")).ok_or_else(|| {
        HullError::Invalid(format!("the path {path:?} cannot be given to {PROGRAM}: use another --root"))
    })
}
