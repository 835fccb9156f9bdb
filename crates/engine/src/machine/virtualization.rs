//! Whether this host's CPU can carry a microVM.

use rustix::fs::{CWD, Mode, OFlags, openat};
use types::Hypervisor;

/// What the host offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Virtualization {
    /// KVM on hardware.
    Kvm,
    /// None, for this reason: microVMs are emulated.
    None(String),
}

impl Virtualization {
    /// The hypervisor for a microVM that asks for none.
    pub fn hypervisor(&self) -> Hypervisor {
        match self {
            Self::Kvm => Hypervisor::Kvm,
            Self::None(_) => Hypervisor::Qemu,
        }
    }
}

/// Looks at CPU and device. An open `/dev/kvm` alone says nothing: some sandboxes offer one that emulates each instruction.
pub fn virtualization() -> Virtualization {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flagged = cpu.lines().filter(|l| l.starts_with("flags") || l.starts_with("Features"));
    let has_flag = flagged.flat_map(str::split_ascii_whitespace).any(|w| w == "vmx" || w == "svm");
    if cfg!(target_arch = "x86_64") && !has_flag {
        return Virtualization::None("the CPU has neither vmx nor svm".into());
    }
    match openat(CWD, "/dev/kvm", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => Virtualization::Kvm,
        Err(rustix::io::Errno::NOENT) => {
            Virtualization::None("/dev/kvm is missing: load the module kvm_intel or kvm_amd".into())
        }
        Err(e) => Virtualization::None(format!("/dev/kvm cannot be opened: {e}")),
    }
}
