//! Puts kernel, initramfs, command line and tables into guest memory.
//!
//! Source: Documentation/arch/x86/boot.rst, section "64-bit Boot Protocol", and zero-page.rst.

use super::{acpi, cpu, layout, ports};
use crate::error::{BootError, VmmError};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use std::fs::File;
use std::io::Seek;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// bzImage: the 64-bit entry is this far into the protected-mode kernel.
const ENTRY_64: u64 = 0x200;
/// xloadflags: there is a 64-bit entry.
const XLF_KERNEL_64: u16 = 1;

/// The files that the guest boots from, open.
pub struct Images {
    /// The kernel and its path, for error texts.
    pub kernel: (File, PathBuf),
    /// The initramfs, likewise.
    pub initrd: Option<(File, PathBuf)>,
}

/// A kernel in guest memory.
#[derive(Debug)]
struct Kernel {
    entry: u64,
    /// First byte that neither the image nor its unpacking needs.
    end: u64,
    header: setup_header,
}

/// Loads everything; gives the address of the first instruction.
pub fn load(
    memory: &GuestMemoryMmap,
    size: u64,
    images: &mut Images,
    cmdline: &str,
    vcpus: u8,
    devices: usize,
) -> Result<u64, VmmError> {
    let low_end = size.min(layout::HOLE);
    let kernel = load_kernel(memory, low_end, &mut images.kernel.0, &images.kernel.1)?;
    let initrd = match &mut images.initrd {
        Some((file, path)) => Some(load_initrd(memory, low_end, &kernel, file, path)?),
        None => None,
    };
    load_cmdline(memory, cmdline)?;
    let gdt: Vec<u8> = cpu::GDT.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    write(memory, &gdt, layout::GDT)?;
    write(memory, &cpu::page_tables(), layout::PAGE_TABLES)?;
    write(memory, &acpi::tables(vcpus, devices), layout::ACPI)?;
    write(memory, &ports::RESET_CODE, layout::RESET_VECTOR)?;
    let params = zero_page(&kernel, initrd, cmdline, size);
    memory
        .write_obj(params, GuestAddress(layout::ZERO_PAGE))
        .map_err(|_| VmmError::Internal("the zero page does not fit into guest memory"))?;
    Ok(kernel.entry)
}

fn write(memory: &GuestMemoryMmap, bytes: &[u8], at: u64) -> Result<(), VmmError> {
    memory
        .write_slice(bytes, GuestAddress(at))
        .map_err(|_| VmmError::Internal("the boot tables do not fit into guest memory"))
}

fn load_kernel(
    memory: &GuestMemoryMmap,
    low_end: u64,
    file: &mut File,
    path: &Path,
) -> Result<Kernel, BootError> {
    let mut magic = [0; 0x206];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            return Err(BootError::NoKernel(path.into()));
        }
        Err(source) => return Err(BootError::Read { path: path.into(), source }),
    }
    let length = file.metadata().map_err(|source| BootError::Read { path: path.into(), source })?.len();
    if length > low_end.saturating_sub(layout::HIGH_MEMORY) {
        return Err(BootError::Memory { path: path.into(), need: mib(length + layout::HIGH_MEMORY) });
    }
    if magic[..4] == *b"\x7fELF" {
        load_elf(memory, low_end, file, path)
    } else if magic[0x202..0x206] == *b"HdrS" {
        load_bzimage(memory, low_end, file, path)
    } else {
        Err(BootError::NoKernel(path.into()))
    }
}

fn load_bzimage(
    memory: &GuestMemoryMmap,
    low_end: u64,
    file: &mut File,
    path: &Path,
) -> Result<Kernel, BootError> {
    let load = GuestAddress(layout::HIGH_MEMORY);
    let loaded = BzImage::load(memory, Some(load), file, Some(load))
        .map_err(|source| BootError::Load { path: path.into(), source })?;
    let header = loaded.setup_header.unwrap_or_default();
    let (xloadflags, pref_address, init_size) = (header.xloadflags, header.pref_address, header.init_size);
    if header.version < 0x20c || xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BootError::Not64(path.into()));
    }
    // It moves to its preferred address and unpacks itself there.
    let start = pref_address.max(layout::HIGH_MEMORY);
    let end = start.saturating_add(u64::from(init_size)).max(loaded.kernel_end);
    if end > low_end {
        return Err(BootError::Memory { path: path.into(), need: mib(end) });
    }
    Ok(Kernel { entry: loaded.kernel_load.0 + ENTRY_64, end, header })
}

fn load_elf(
    memory: &GuestMemoryMmap,
    low_end: u64,
    file: &mut File,
    path: &Path,
) -> Result<Kernel, BootError> {
    let high = GuestAddress(layout::HIGH_MEMORY);
    let loaded = Elf::load(memory, None, file, Some(high))
        .map_err(|source| BootError::Load { path: path.into(), source })?;
    if loaded.kernel_end <= layout::HIGH_MEMORY {
        // Nothing was to be loaded, or nothing where a kernel lies: the initramfs would come to lie upon our own tables.
        return Err(BootError::NoKernel(path.into()));
    }
    if loaded.kernel_end > low_end {
        return Err(BootError::Memory { path: path.into(), need: mib(loaded.kernel_end) });
    }
    let header = setup_header {
        boot_flag: 0xaa55,
        header: u32::from_le_bytes(*b"HdrS"),
        kernel_alignment: 0x100_0000,
        initrd_addr_max: u32::MAX,
        ..Default::default()
    };
    Ok(Kernel { entry: loaded.kernel_load.0, end: loaded.kernel_end, header })
}

/// The initramfs goes behind the kernel, into the huge page in which that ends: the host clears one less.
fn load_initrd(
    memory: &GuestMemoryMmap,
    low_end: u64,
    kernel: &Kernel,
    file: &mut File,
    path: &Path,
) -> Result<(u64, u64), BootError> {
    let length = file.metadata().map_err(|source| BootError::Read { path: path.into(), source })?.len();
    let highest = match kernel.header.initrd_addr_max {
        0 => low_end,
        max => low_end.min(u64::from(max) + 1),
    };
    let too_small = || BootError::Memory { path: path.into(), need: mib(kernel.end.saturating_add(length)) };
    let start = kernel.end.checked_next_multiple_of(0x1000).ok_or_else(too_small)?;
    if start.checked_add(length).is_none_or(|end| end > highest) {
        return Err(too_small());
    }
    let size = usize::try_from(length).map_err(|_| too_small())?;
    file.rewind().map_err(|source| BootError::Read { path: path.into(), source })?;
    memory
        .read_exact_volatile_from(GuestAddress(start), file, size)
        .map_err(|e| BootError::Read { path: path.into(), source: std::io::Error::other(e.to_string()) })?;
    Ok((start, length))
}

fn load_cmdline(memory: &GuestMemoryMmap, cmdline: &str) -> Result<(), VmmError> {
    if cmdline.len() >= layout::CMDLINE_BYTES {
        return Err(BootError::CommandLine { length: cmdline.len(), max: layout::CMDLINE_BYTES - 1 }.into());
    }
    if cmdline.bytes().any(|b| b == 0) {
        return Err(BootError::CommandLineNul.into());
    }
    write(memory, &[cmdline.as_bytes(), b"\0"].concat(), layout::CMDLINE)
}

fn zero_page(kernel: &Kernel, initrd: Option<(u64, u64)>, cmdline: &str, size: u64) -> boot_params {
    const RAM: u32 = 1;
    const RESERVED: u32 = 2;
    let mut params = boot_params { hdr: kernel.header, acpi_rsdp_addr: layout::ACPI, ..Default::default() };
    params.hdr.type_of_loader = 0xff;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = cmdline.len() as u32;
    if let Some((start, length)) = initrd {
        params.hdr.ramdisk_image = start as u32;
        params.hdr.ramdisk_size = length as u32;
    }
    let mut map =
        vec![(0, layout::LOW_END, RAM), (layout::LOW_END, layout::HIGH_MEMORY - layout::LOW_END, RESERVED)];
    for (start, length) in layout::memory(size) {
        let from = start.max(layout::HIGH_MEMORY);
        map.push((from, (start + length).saturating_sub(from), RAM));
    }
    for (entry, (addr, size, type_)) in params.e820_table.iter_mut().zip(&map) {
        *entry = boot_e820_entry { addr: *addr, size: *size, r#type: *type_ };
    }
    params.e820_entries = map.len() as u8;
    params
}

/// MiB, rounded up.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const SIZE: u64 = 64 << 20;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE as usize)]).unwrap()
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// A bzImage of one sector of setup and one page of kernel.
    fn bzimage(init_size: u32, xloadflags: u16) -> Vec<u8> {
        let mut image = vec![0; 1024 + 4096];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x211] = 1;
        image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
        image[0x236..0x238].copy_from_slice(&xloadflags.to_le_bytes());
        image[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&init_size.to_le_bytes());
        image[1024..].fill(0x90);
        image
    }

    fn kernel(bytes: &[u8]) -> Result<Kernel, BootError> {
        load_kernel(&memory(), SIZE, &mut file(bytes), Path::new("/k"))
    }

    #[test]
    fn a_bzimage_starts_at_its_64_bit_entry() {
        let loaded = kernel(&bzimage(0x100_0000, 1)).unwrap();
        assert_eq!((loaded.entry, loaded.end), (0x10_0200, 0x200_0000));
    }

    #[test]
    fn what_is_no_kernel_is_told_so() {
        assert!(matches!(kernel(b"#!/bin/sh\n"), Err(BootError::NoKernel(_))));
        assert!(matches!(kernel(&[0; 4096]), Err(BootError::NoKernel(_))));
        assert!(matches!(kernel(&bzimage(0x1000, 0)), Err(BootError::Not64(_))));
        let mut elf = vec![0; 4096];
        elf[..4].copy_from_slice(b"\x7fELF");
        assert!(matches!(kernel(&elf), Err(BootError::Load { .. })));
        // An ELF header (elf(5)) that is right, and nothing to load.
        elf[4..7].copy_from_slice(&[2, 1, 1]);
        elf[0x18..0x20].copy_from_slice(&0x100_0000u64.to_le_bytes());
        (elf[0x20], elf[0x36]) = (64, 56);
        assert!(matches!(kernel(&elf), Err(BootError::NoKernel(_))));
    }

    #[test]
    fn too_little_memory_is_told_with_what_it_takes() {
        assert!(matches!(kernel(&bzimage(0x400_0000, 1)), Err(BootError::Memory { need: 80, .. })));
        let loaded = kernel(&bzimage(0x100_0000, 1)).unwrap();
        let large = tempfile::tempfile().unwrap();
        large.set_len(33 << 20).unwrap();
        let mut large = large;
        let failed = load_initrd(&memory(), SIZE, &loaded, &mut large, Path::new("/i"));
        assert!(matches!(failed, Err(BootError::Memory { need: 65, .. })));
    }

    #[test]
    fn memory_map_and_command_line_reach_the_zero_page() {
        let mut images = Images {
            kernel: (file(&bzimage(0x100_0000, 1)), "/k".into()),
            initrd: Some((file(&[7; 5000]), "/i".into())),
        };
        let memory = memory();
        load(&memory, SIZE, &mut images, "console=ttyS0", 2, 1).unwrap();
        let params: boot_params = memory.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
        let (start, length) = (params.hdr.ramdisk_image, params.hdr.ramdisk_size);
        assert_eq!((start, length), (0x200_0000, 5000));
        let table = params.e820_table;
        let (address, size) = (table[2].addr, table[2].size);
        assert_eq!((params.e820_entries, address, size), (3, 1 << 20, SIZE - (1 << 20)));
        let byte: u8 = memory.read_obj(GuestAddress(u64::from(start))).unwrap();
        assert_eq!(byte, 7);
    }

    #[test]
    fn a_command_line_beyond_the_kernels_buffer_is_refused() {
        let long = "x".repeat(layout::CMDLINE_BYTES);
        let e = load_cmdline(&memory(), &long).unwrap_err();
        assert!(e.to_string().contains("2048"), "{e}");
    }
}
