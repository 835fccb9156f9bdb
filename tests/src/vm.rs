//! Stores that can run microVMs.

use crate::{Store, busybox, have};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The distribution's kernel, installed once and copied into each store.
fn kernels() -> Result<PathBuf, String> {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-kernels");
    fs::create_dir_all(&cache).map_err(|e| e.to_string())?;
    // Tests of several processes may come at once.
    let lock = File::create(cache.join("lock")).map_err(|e| e.to_string())?;
    lock.lock().map_err(|e| e.to_string())?;
    let kept = cache.join("kernels");
    if kept.is_dir() {
        return Ok(kept);
    }
    let store = Store::new();
    let out = store.out(&["kernel", "install", "-q"]);
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).trim().to_owned());
    }
    let half = cache.join("half");
    let _ = fs::remove_dir_all(&half);
    copy(&store.root().join("kernels"), &half)
        .and_then(|()| fs::rename(&half, &kept))
        .map_err(|e| e.to_string())?;
    Ok(kept)
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// A store with the image `busybox` and a kernel; `None`, said so, where this host cannot run microVMs.
pub fn store() -> Option<Store> {
    for (program, package) in [("qemu-system-x86_64", "qemu-system-x86"), ("mke2fs", "e2fsprogs")] {
        if !have(program) && !Path::new("/sbin").join(program).exists() {
            eprintln!("SKIPPED: {program} is missing (package {package})");
            return None;
        }
    }
    let kernels = match kernels() {
        Ok(dir) => dir,
        Err(why) => {
            eprintln!("SKIPPED: no kernel for microVMs can be had: {why}");
            return None;
        }
    };
    let store = busybox::store()?;
    copy(&kernels, &store.root().join("kernels")).unwrap();
    Some(store)
}
