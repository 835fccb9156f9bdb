//! A disk before a guest that writes what it likes: a file of the host, or several behind a partition table.
#![no_main]

mod queues;

use libfuzzer_sys::fuzz_target;
use queues::{Driver, Input, buffers, crooked, serve};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;
use vmm::devices::block::Block;
use vmm::devices::storage::Storage;
use vmm::devices::testing::WRITE;
use vmm::gpt::Layout;
use vmm::virtio::Device;

/// Of the file that the guest may write.
const SIZE: u64 = 1 << 16;
/// Of those behind the table: partial sectors, more than a MiB, a single byte.
const PARTS: [u64; 4] = [700, (1 << 20) + 5, 1, 5000];

static FILE: LazyLock<File> = LazyLock::new(|| tempfile::tempfile().unwrap());
static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
    (1..)
        .zip(PARTS)
        .map(|(byte, size)| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&vec![byte; size as usize], 0).unwrap();
            file
        })
        .collect()
});

fn storage(choice: u8) -> Storage {
    if choice & 1 == 0 {
        // Nothing is left of the run before.
        FILE.set_len(0).unwrap();
        FILE.set_len(SIZE).unwrap();
        return Storage::Raw { file: FILE.try_clone().unwrap(), size: SIZE };
    }
    let files = FILES.iter().map(|file| file.try_clone().unwrap()).collect();
    Storage::Partitions { layout: Layout::of(&PARTS).unwrap(), files }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let choice = input.byte();
    let mut device = Block::new(storage(choice), choice & 2 != 0, 7);
    let mut driver = Driver::small(1);
    let features = if choice & 4 == 0 { 0 } else { device.features() };
    device.activate(driver.activation(features)).unwrap();
    while !input.0.is_empty() {
        let asked = match input.byte() % 4 {
            0..=2 => Some(request(&mut driver, &mut input)),
            _ => {
                crooked(&mut driver, &mut input);
                None
            }
        };
        if !serve(&mut device) {
            device.reset();
            assert!(device.interests().is_empty());
            break;
        }
        if let Some((status, sound)) = asked
            && driver.used(0).len() == 1
        {
            let status = driver.read(status, 1)[0];
            assert!(status <= 2, "{status}");
            assert!(!sound || status == 0 || choice & 3 != 0);
        }
    }
    assert!(FILE.metadata().unwrap().len() <= SIZE, "the file grew");
    for (size, file) in PARTS.iter().zip(&*FILES) {
        assert_eq!(file.metadata().unwrap().len(), *size);
    }
});

/// An honest chain with any content; where its status will be, and whether a writable disk must carry it out.
fn request(driver: &mut Driver, input: &mut Input) -> (u64, bool) {
    let head = input.half() % 4 * 4;
    let at = buffers(driver, head);
    let (kind, sector) = (u32::from(input.byte() % 16), u64::from(input.half()));
    let far = input.byte() == 0xff;
    let sector = if far { u64::from_le_bytes(input.take()) } else { sector % 0x1000 };
    let length = match input.byte() {
        n @ 0..0x40 => u32::from(n % 8) * 512,
        n => u32::from(n) - 0x40,
    };
    driver.write(at, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
    // What discarding and zeroing take: ranges.
    let range = [&input.take::<8>()[..], &input.take::<4>(), &input.take::<4>()].concat();
    let near = [&range[..2], &[0; 6], &range[8..9], &[0; 3], &range[12..13], &[0; 3]].concat();
    driver.write(at + 0x100, if input.byte() == 0xff { &range } else { &near });
    let flags = if matches!(kind, 0 | 8) { WRITE } else { 0 };
    let status = at + 0x40;
    driver.write(status, &[0xff]);
    let split = length.min(u32::from(input.byte()));
    let data = at + 0x100;
    let chain = [
        (at, 16, 0),
        (data, split, flags),
        (data + u64::from(split), length - split, flags),
        (status, 1, WRITE),
    ];
    driver.chain(0, head, &chain);
    let sound = matches!(kind, 0 | 1)
        && length % 512 == 0
        && sector < SIZE / 512
        && sector * 512 + u64::from(length) <= SIZE;
    (status, sound)
}
