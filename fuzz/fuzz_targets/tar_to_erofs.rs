//! Any bytes as a tar: they become a layer or an error, never a panic, a leftover file or a huge allocation.
#![no_main]

use image::layer::{LayerLimits, LayerStore};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use types::LayerFormat;

static DIR: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));

const LIMITS: LayerLimits = LayerLimits { max_content: 1 << 24, max_entries: 2000, max_tar: 1 << 24 };

fuzz_target!(|data: &[u8]| {
    let mut tar = data.to_vec();
    mend(&mut tar);
    let store = LayerStore::open(DIR.path(), LayerFormat::Erofs).expect("a store");
    if let Ok(layer) = store.ingest(&mut &tar[..], None, &LIMITS) {
        assert_eq!(store.get(&layer.diff_id), Some(layer.clone()));
        assert!(layer.content_size <= LIMITS.max_content);
        store.remove(&layer.diff_id).expect("removed");
    }
    assert_eq!(std::fs::read_dir(DIR.path()).expect("the store").count(), 0, "something was left behind");
});

/// Makes the checksums of whatever looks like a header right: a fuzzer finds no checksums.
fn mend(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}
