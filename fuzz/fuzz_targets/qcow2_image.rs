//! An image that somebody wants to have as a volume.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::os::unix::fs::FileExt;

#[path = "../../crates/engine/src/volumes/qcow2/read.rs"]
mod read;

/// The largest disk.
const MOST: u64 = 1 << 44;

fuzz_target!(|data: &[u8]| {
    let file = tempfile::tempfile().unwrap();
    // Most images have a right beginning.
    let header = match data.first() {
        Some(byte) if byte % 2 == 0 => [&read::MAGIC[..], &3u32.to_be_bytes()].concat(),
        _ => Vec::new(),
    };
    file.write_all_at(&header, 0).unwrap();
    file.write_all_at(data.get(1..).unwrap_or_default(), header.len() as u64).unwrap();
    let length = file.metadata().unwrap().len();
    let Ok(image) = read::Image::open(&file, MOST) else { return };
    assert!(image.size <= MOST);
    let mut taken = 0;
    let size = image.size;
    let _ = image.read(|at, bytes| {
        taken += bytes.len() as u64;
        assert!(at < size && bytes.len() as u64 <= size - at);
        // Each byte of the image once, but for the last cluster, which may be cut short.
        assert!(taken <= length + (1 << 21), "{taken} bytes of {length}");
        Ok(())
    });
});
