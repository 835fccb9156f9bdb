//! Guest memory: anonymous, private, given by the host page by page as the guest touches it.

use crate::arch::layout;
use crate::error::VmmError;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use std::io;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

/// Maps memory of this size where the architecture has it.
pub fn map(mib: u64) -> Result<GuestMemoryMmap, VmmError> {
    let failed = |source| VmmError::Memory { mib, source };
    let size = mib.checked_mul(1 << 20).ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENOMEM)))?;
    let mut regions = Vec::new();
    for (start, length) in layout::memory(size) {
        let length =
            usize::try_from(length).map_err(|_| failed(io::Error::from_raw_os_error(libc::ENOMEM)))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let region = MmapRegion::build(None, length, libc::PROT_READ | libc::PROT_WRITE, flags)
            .map_err(|e| failed(io::Error::other(e)))?;
        let region = GuestRegionMmap::new(region, GuestAddress(start))
            .ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENOMEM)))?;
        regions.push(region);
    }
    GuestMemoryMmap::from_regions(regions).map_err(|e| failed(io::Error::other(e)))
}

/// Gives the memory to the virtual machine, which must not outlive it.
pub fn attach(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), VmmError> {
    for (slot, region) in memory.iter().enumerate() {
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the range is a mapping of our own that `memory` keeps; the machine's owner keeps `memory` as long
        // as vCPUs run, and nobody holds references into it: all access goes through volatile operations.
        unsafe { vm.set_user_memory_region(region) }.map_err(VmmError::kvm("give the guest its memory"))?;
    }
    Ok(())
}
