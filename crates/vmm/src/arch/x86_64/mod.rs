//! x86-64: a machine without firmware, PCI or legacy devices but COM1, described by hardware-reduced ACPI.

pub mod acpi;
pub mod boot;
pub mod cpu;
pub mod layout;
pub(crate) mod ports;

use crate::error::VmmError;
use kvm_ioctls::{Cap, Kvm, VmFd};

/// Makes the interrupt controllers, and a timer where the processor's own is not enough.
pub fn create_interrupt_controllers(kvm: &Kvm, vm: &VmFd) -> Result<(), VmmError> {
    vm.set_tss_address(layout::TSS as usize).map_err(VmmError::kvm("set the address of the TSS"))?;
    vm.create_irq_chip().map_err(VmmError::kvm("create the interrupt controllers"))?;
    if !kvm.check_extension(Cap::TscDeadlineTimer) {
        let pit =
            kvm_bindings::kvm_pit_config { flags: kvm_bindings::KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(VmmError::kvm("create the timer"))?;
    }
    Ok(())
}
