//! Kernels and initramfs as somebody imported them, in machines of odd sizes.
#![no_main]

mod queues;

use libfuzzer_sys::fuzz_target;
use queues::Input;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::arch::boot::{Images, load};
use vmm::arch::layout;

/// Machines from too small to enough.
const SIZES: [u64; 4] = [2 << 20, 16 << 20, 24 << 20, 64 << 20];
/// Offset of the kernel in the input.
const HEAD: usize = 16;

static FILES: LazyLock<[File; 2]> =
    LazyLock::new(|| [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()]);

fn file(index: usize, content: &[u8], longer: u64) -> File {
    let file = &FILES[index];
    file.set_len(0).unwrap();
    file.write_all_at(content, 0).unwrap();
    file.set_len(content.len() as u64 + longer).unwrap();
    file.try_clone().unwrap()
}

fuzz_target!(|data: &[u8]| {
    if data.len() < HEAD {
        return;
    }
    let (head, content) = data.split_at(HEAD);
    let mut input = Input(head);
    let size = SIZES[usize::from(input.byte()) % SIZES.len()];
    let vcpus = input.byte().clamp(1, layout::MAX_VCPUS);
    let devices = usize::from(input.byte()) % (layout::MAX_DEVICES + 1);
    // Sizes that no fuzzer would write: sparse, in steps of 4 KiB.
    let kernel = file(0, content, u64::from(input.half()) << 12);
    let initrd_length = u64::from(input.half()) << 10;
    let initrd = (input.byte() % 2 == 0).then(|| (file(1, &[7], initrd_length), "/initrd".into()));
    let initrd_bytes = initrd.as_ref().map(|_| 1 + initrd_length);
    let cmdline = "x".repeat(usize::from(input.half()) % 0x900);
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size as usize)]).unwrap();
    let mut images = Images { kernel: (kernel, "/kernel".into()), initrd };
    match load(&memory, size, &mut images, &cmdline, vcpus, devices) {
        Err(e) => assert!(!e.to_string().is_empty()),
        Ok(_) => {
            assert!(cmdline.len() < layout::CMDLINE_BYTES);
            // struct boot_params: ramdisk_image and ramdisk_size at 0x218, the memory map at 0x2d0.
            let word = |at: u64| memory.read_obj::<u32>(GuestAddress(layout::ZERO_PAGE + at)).unwrap();
            if let Some(length) = initrd_bytes {
                let start = u64::from(word(0x218));
                assert_eq!(u64::from(word(0x21c)), length);
                assert!(start >= layout::HIGH_MEMORY && start + length <= size);
                assert_eq!(memory.read_obj::<u8>(GuestAddress(start)).unwrap(), 7);
            }
            assert_eq!(memory.read_obj::<[u8; 8]>(GuestAddress(layout::ACPI)).unwrap(), *b"RSD PTR ");
        }
    }
});
