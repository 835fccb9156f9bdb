//! The map of guest-physical addresses.
//!
//! ```text
//! 0            zero page, command line, page tables, GDT, stack     (RAM)
//! 0x9fc00      ACPI tables at 0xe0000, reset vector                 (reserved)
//! 1 MiB        kernel, initramfs, then free                         (RAM, up to 3 GiB)
//! 3 GiB        virtio-mmio windows, IOAPIC, LAPIC, TSS              (hole)
//! 4 GiB        the rest of memory                                   (RAM)
//! ```

/// GDT for the first instruction.
pub const GDT: u64 = 0x500;
/// Zero page (`struct boot_params`).
pub const ZERO_PAGE: u64 = 0x7000;
/// Stack of the first instructions.
pub const STACK: u64 = 0x8ff0;
/// Page tables: PML4, PDPT, 4 page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// Command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Its greatest size with the final NUL; Linux' COMMAND_LINE_SIZE is 2048.
pub const CMDLINE_BYTES: usize = 0x800;
/// End of conventional memory.
pub const LOW_END: u64 = 0x9_fc00;
/// ACPI tables; Linux looks for the RSDP here, too.
pub const ACPI: u64 = 0xe_0000;
/// Where a BIOS is entered after a reset, in real mode. Linux jumps there to reset a hardware-reduced machine without
/// EFI, unless its command line says `reboot=acpi`.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Where memory goes on after the legacy area.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// Where the hole for devices begins.
pub const HOLE: u64 = 0xc000_0000;
/// Where it ends.
pub const HOLE_END: u64 = 1 << 32;
/// The first virtio-mmio window.
pub const MMIO: u64 = 0xd000_0000;
/// Size of a window.
pub const MMIO_WINDOW: u64 = 0x1000;
/// I/O APIC.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APICs.
pub const LAPIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on Intel processors.
pub const TSS: u64 = 0xfffb_d000;
/// Interrupt line of COM1.
pub const COM1_GSI: u32 = 4;
/// Interrupt line of the first virtio-mmio device.
pub const FIRST_GSI: u32 = 5;
/// The I/O APIC has 24 pins, and each device one of its own.
pub const MAX_DEVICES: usize = 24 - FIRST_GSI as usize;
/// vCPU ids are 8 bits wide in the MADT; 255 is broadcast.
pub const MAX_VCPUS: u8 = 254;

/// Where guest memory of this size lies: `(address, bytes)`.
pub fn memory(bytes: u64) -> Vec<(u64, u64)> {
    match bytes.checked_sub(HOLE) {
        None | Some(0) => vec![(0, bytes)],
        Some(rest) => vec![(0, HOLE), (HOLE_END, rest)],
    }
}

/// The window and the interrupt line of the device with this number.
pub fn device(index: usize) -> (u64, u32) {
    (MMIO + index as u64 * MMIO_WINDOW, FIRST_GSI + index as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_leaves_the_hole_free() {
        assert_eq!(memory(HOLE), [(0, HOLE)]);
        assert_eq!(memory(HOLE + 4096), [(0, HOLE), (HOLE_END, 4096)]);
        let (window, line) = device(MAX_DEVICES - 1);
        assert!(window + MMIO_WINDOW <= u64::from(IOAPIC) && line < 24);
    }
}
