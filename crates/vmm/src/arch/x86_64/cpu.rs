//! State of a vCPU before its first instruction: CPUID, registers, MSRs, local interrupts.
//!
//! Sources: Intel SDM volumes 2 and 3, AMD APM volume 3, Documentation/arch/x86/boot.rst (64-bit boot protocol).

use super::layout;
use crate::error::VmmError;
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry, kvm_regs, kvm_segment,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

/// What KVM can offer, without what a guest shall not have; the same for all vCPUs.
pub fn supported(kvm: &Kvm) -> Result<CpuId, VmmError> {
    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(VmmError::kvm("ask for the features of the CPU"))?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            // no nested virtualisation (VMX): KVM's largest surface; hypervisor present; TSC deadline timer
            0x1 => {
                entry.ecx = entry.ecx & !(1 << 5) | 1 << 31;
                set(&mut entry.ecx, 24, deadline);
            }
            // no performance counters: they tell about the host
            0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            // no nested virtualisation (SVM), no performance counters
            0x8000_0001 => entry.ecx &= !(1 << 2 | 1 << 23 | 1 << 24 | 1 << 28),
            0x8000_000a => (entry.eax, entry.ebx, entry.edx) = (0, 0, 0),
            _ => {}
        }
    }
    Ok(cpuid)
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = *register & !(1 << bit) | u32::from(on) << bit;
}

/// The CPUID of one vCPU: `vcpus` cores in one package, one thread each.
pub fn for_vcpu(supported: &CpuId, id: u8, vcpus: u8) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        topology(entry, id, vcpus);
    }
    cpuid
}

fn topology(entry: &mut kvm_cpuid_entry2, id: u8, vcpus: u8) {
    let (id, vcpus) = (u32::from(id), u32::from(vcpus));
    // bits of the APIC id that tell cores apart
    let bits = vcpus.next_power_of_two().trailing_zeros();
    match entry.function {
        0x1 => {
            entry.ebx = entry.ebx & 0xffff | id << 24 | vcpus << 16;
            set(&mut entry.edx, 28, vcpus > 1);
        }
        // Intel's caches: first and second level per core, the third for all
        0x4 if entry.eax & 0x1f != 0 => {
            let sharing = if (entry.eax >> 5) & 7 >= 3 { vcpus - 1 } else { 0 };
            let cores = vcpus.next_power_of_two() - 1;
            entry.eax = entry.eax & 0x3fff | sharing << 14 | cores.min(63) << 26;
        }
        0xb | 0x1f => {
            (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                0 => (0, 1, 1 << 8),
                1 => (bits, vcpus, 2 << 8 | 1),
                other => (0, 0, other & 0xff),
            };
            entry.edx = id;
        }
        // AMD: number of cores, width of the core id
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | bits << 12 | (vcpus - 1),
        // AMD's caches, as above
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let sharing = if (entry.eax >> 5) & 7 >= 3 { vcpus - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14;
        }
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

/// MTRRs on, memory write-back unless the page tables say otherwise.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);
/// Fast string operations.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);

/// Readies a vCPU; `entry` is where the first one starts, in 64-bit mode. The others wait for it.
pub fn prepare(vcpu: &VcpuFd, cpuid: &CpuId, entry: Option<u64>) -> Result<(), VmmError> {
    vcpu.set_cpuid2(cpuid).map_err(VmmError::kvm("set the features of a vCPU"))?;
    let entries =
        [MTRR_DEF_TYPE, MISC_ENABLE].map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let msrs = Msrs::from_entries(&entries).map_err(|_| VmmError::Internal("too many MSRs"))?;
    vcpu.set_msrs(&msrs).map_err(VmmError::kvm("set the MSRs of a vCPU"))?;
    local_interrupts(vcpu)?;
    if let Some(entry) = entry {
        system_registers(vcpu)?;
        let regs = kvm_regs {
            rflags: 2,
            rip: entry,
            rsp: layout::STACK,
            rbp: layout::STACK,
            rsi: layout::ZERO_PAGE,
            ..Default::default()
        };
        vcpu.set_regs(&regs).map_err(VmmError::kvm("set the registers of a vCPU"))?;
    }
    Ok(())
}

/// LINT0 takes external interrupts, LINT1 NMIs (SDM 3A, 11.5.1).
fn local_interrupts(vcpu: &VcpuFd) -> Result<(), VmmError> {
    let mut lapic = vcpu.get_lapic().map_err(VmmError::kvm("read a local APIC"))?;
    for (offset, mode) in [(0x350, 7u32), (0x360, 4)] {
        let register = &mut lapic.regs[offset..offset + 4];
        let mut bytes = [0; 4];
        for (byte, register) in bytes.iter_mut().zip(register.iter()) {
            *byte = *register as u8;
        }
        let value = u32::from_le_bytes(bytes) & !0x700 | mode << 8;
        for (register, byte) in register.iter_mut().zip(value.to_le_bytes()) {
            *register = byte as _;
        }
    }
    vcpu.set_lapic(&lapic).map_err(VmmError::kvm("write a local APIC"))
}

/// The GDT: null, unused, code (0x10), data (0x18), as the boot protocol wants.
pub const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

fn system_registers(vcpu: &VcpuFd) -> Result<(), VmmError> {
    let mut sregs = vcpu.get_sregs().map_err(VmmError::kvm("read the system registers of a vCPU"))?;
    let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: 0x10, type_: 0xb, l: 1, ..flat };
    let data = kvm_segment { selector: 0x18, type_: 3, db: 1, ..flat };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = size_of_val(&GDT) as u16 - 1;
    sregs.idt.limit = 0;
    sregs.cr0 = 0x8000_0011; // PG, ET, PE
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 = 0x20; // PAE
    sregs.efer = 0x500; // LMA, LME
    vcpu.set_sregs(&sregs).map_err(VmmError::kvm("set the system registers of a vCPU"))
}

/// Page tables that map the first 4 GiB to themselves, to be written at [`layout::PAGE_TABLES`].
pub fn page_tables() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 0x80;
    let mut entries = vec![0u64; 6 * 512];
    entries[0] = (layout::PAGE_TABLES + 0x1000) | PRESENT_WRITABLE;
    for directory in 0..4 {
        entries[512 + directory] =
            (layout::PAGE_TABLES + 0x2000 + directory as u64 * 0x1000) | PRESENT_WRITABLE;
    }
    for (page, entry) in entries[1024..].iter_mut().enumerate() {
        *entry = (page as u64) << 21 | PRESENT_WRITABLE | LARGE;
    }
    entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vcpu_knows_its_place() {
        let entry = |function, index| kvm_cpuid_entry2 { function, index, eax: 0x63, ..Default::default() };
        let all =
            CpuId::from_entries(&[entry(1, 0), entry(0xb, 1), entry(0x8000_0008, 0), entry(4, 3)]).unwrap();
        let third = for_vcpu(&all, 2, 3);
        let third = third.as_slice();
        assert_eq!(third[0].ebx, 2 << 24 | 3 << 16);
        assert_eq!(third[0].edx, 1 << 28);
        assert_eq!((third[1].eax, third[1].ebx, third[1].edx), (2, 3, 2));
        assert_eq!(third[2].ecx, 2 << 12 | 2);
        assert_eq!(third[3].eax, 0x63 | 2 << 14 | 3 << 26);
        assert_eq!(for_vcpu(&all, 0, 1).as_slice()[0].edx, 0, "one vCPU has no siblings");
    }

    #[test]
    fn the_first_four_gibibytes_are_mapped_to_themselves() {
        let tables = page_tables();
        assert_eq!(tables.len(), 6 * 4096);
        let last = u64::from_le_bytes(tables[tables.len() - 8..].try_into().unwrap());
        assert_eq!(last, 0xffe0_0083);
        assert!(layout::PAGE_TABLES + tables.len() as u64 <= layout::CMDLINE);
    }
}
