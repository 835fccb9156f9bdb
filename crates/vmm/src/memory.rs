//! Guest memory: anonymous, private, given by the host as the guest touches it, in huge pages where the host has any.
//!
//! KVM maps a huge page into the guest only where host and guest have the same offset in it. A mapping of the size of
//! the guest's memory lies where the host's kernel likes; one that is aligned spares the guest's boot some 500 faults
//! for each of its huge pages.

use crate::arch::layout;
use crate::error::VmmError;
use crate::registers::Registers;
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use std::io;
use std::ptr::null_mut;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

/// The size of a huge page that the second level of page tables maps, on x86-64 and on aarch64 with pages of 4 KiB.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// Maps memory of this size where the architecture has it. It lasts as long as the process.
pub fn map(mib: u64) -> Result<GuestMemoryMmap, VmmError> {
    let failed = |source| VmmError::Memory { mib, source };
    let too_large = || failed(io::Error::from_raw_os_error(libc::ENOMEM));
    let size = mib.checked_mul(1 << 20).ok_or_else(too_large)?;
    let mut regions = Vec::new();
    for (start, length) in layout::memory(size) {
        let length = usize::try_from(length).map_err(|_| too_large())?;
        let address = aligned(length).map_err(failed)?;
        // SAFETY: the range was mapped just now, like this and for this region alone, and is never unmapped.
        let region = unsafe { MmapRegion::build_raw(address.cast(), length, PROTECTION, FLAGS) };
        let region = region.map_err(|e| failed(io::Error::other(e)))?;
        regions.push(GuestRegionMmap::new(region, GuestAddress(start)).ok_or_else(too_large)?);
    }
    GuestMemoryMmap::from_regions(regions).map_err(|e| failed(io::Error::other(e)))
}

const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// A mapping that begins where a huge page can.
fn aligned(length: usize) -> io::Result<*mut libc::c_void> {
    let more = length.checked_add(HUGE_PAGE).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
    // SAFETY: a new mapping at a place of the kernel's choice changes nothing that is mapped.
    let mapped = unsafe { libc::mmap(null_mut(), more, PROTECTION, FLAGS, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let before = mapped.align_offset(HUGE_PAGE);
    let start = mapped.wrapping_byte_add(before);
    let end = start.wrapping_byte_add(length);
    // SAFETY: both ends belong to the mapping that was made here, and nothing refers to them. That advice is refused,
    // or that an end stays, which nobody touches, costs time or addresses and nothing else.
    unsafe {
        if before > 0 {
            libc::munmap(mapped, before);
        }
        if before < HUGE_PAGE {
            libc::munmap(end, HUGE_PAGE - before);
        }
        libc::madvise(start, length, libc::MADV_HUGEPAGE);
    }
    Ok(start)
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

/// Slot of the registers; memory has those before it.
const REGISTERS_SLOT: u32 = 2;

/// Pages of registers for so many devices, which the guest reads in their windows.
pub fn map_registers(vm: &VmFd, devices: usize) -> Result<&'static [Registers], VmmError> {
    let pages = Registers::pages(devices);
    let region = kvm_userspace_memory_region {
        slot: REGISTERS_SLOT,
        guest_phys_addr: layout::MMIO,
        memory_size: size_of_val(pages) as u64,
        userspace_addr: pages.as_ptr() as u64,
        flags: KVM_MEM_READONLY,
    };
    // SAFETY: the pages last as long as the process, the guest only reads them, and all here are atomic.
    unsafe { vm.set_user_memory_region(region) }.map_err(VmmError::kvm("let the guest read registers"))?;
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_huge_page_of_the_guest_can_be_one_of_the_host() {
        for mib in [16, 127, 128, 4096] {
            let memory = map(mib).unwrap();
            assert_eq!(memory.iter().map(|region| region.len()).sum::<u64>(), mib << 20);
            for region in memory.iter() {
                assert_eq!(region.as_ptr() as usize % HUGE_PAGE, 0, "{:x}", region.start_addr().0);
                assert_eq!(region.start_addr().0 % HUGE_PAGE as u64, 0);
            }
        }
    }
}
