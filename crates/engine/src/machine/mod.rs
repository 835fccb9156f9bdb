//! microVMs: which kernel, which hypervisor, how much of the host, and the disk that is written to.
//!
//! A container is asked to be one by its runtime, `dhow-vm`. Its other wishes are annotations of its own
//! ([`KERNEL`], [`HYPERVISOR`]) and Docker's `--storage-opt size=`.

pub(crate) mod disk;
pub(crate) mod files;
mod initrd;
pub mod kernels;
mod modules;
mod plan;
mod virtualization;

pub use files::appliance;
pub(crate) use plan::{check, layer_size, spare_interfaces};
pub use virtualization::{Virtualization, virtualization};

use crate::store::Container;
use types::docker::HostConfig;

/// Name of the runtime that is a microVM.
pub const RUNTIME: &str = "dhow-vm";
/// Annotation with the name of the kernel.
pub const KERNEL: &str = "dhow.kernel";
/// Annotation with the hypervisor, `kvm` or `qemu`.
pub const HYPERVISOR: &str = "dhow.hypervisor";

/// Whether it runs in a microVM.
pub fn is_vm(host: &HostConfig) -> bool {
    host.runtime.as_deref() == Some(RUNTIME)
}

impl Container {
    pub(crate) fn is_vm(&self) -> bool {
        is_vm(&self.host)
    }

    /// What lies in the guest is not to be looked for on this host.
    pub(crate) fn refuse_vm(&self, what: &str) -> crate::Result<()> {
        if self.is_vm() {
            return Err(crate::EngineError::Unsupported(format!(
                "{} is a microVM: {what} cannot be reached from this host by this version",
                self.name
            )));
        }
        Ok(())
    }
}
