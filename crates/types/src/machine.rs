//! The microVM that a sandbox is to run in: decided by the engine, carried out by the microVM hull.

use crate::VolumePlan;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What carries a microVM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hypervisor {
    /// Our own virtual machine monitor, on the CPU's virtualisation.
    #[default]
    Kvm,
    /// QEMU's microvm machine, in software.
    Qemu,
}

impl Hypervisor {
    /// As flags and `inspect` have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
        }
    }
}

/// A microVM, with everything decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinePlan {
    /// What carries it.
    pub hypervisor: Hypervisor,
    /// Name of the kernel, as `kernel ls` has it.
    pub kernel_name: String,
    /// The bzImage or vmlinux.
    pub kernel: PathBuf,
    /// The initramfs: the kernel's modules, the guest agent.
    pub initrd: PathBuf,
    /// MiB of memory.
    pub memory_mib: u64,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// The writable disk, a raw file with an ext4 filesystem.
    pub disk: PathBuf,
    /// Interfaces beyond those of its networks, for networks that it is connected to while it runs.
    #[serde(default)]
    pub spare_interfaces: u8,
    /// Volumes that are disks.
    #[serde(default)]
    pub volumes: Vec<VolumePlan>,
}
