//! Stores that can run microVMs.

use crate::{Store, busybox, have, program};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// A store with the image `busybox` and a kernel, the distribution's or the lean one that `DHOW_TEST_LEAN` names; `None`, said so, where this host cannot run microVMs.
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
    if let Some(file) = std::env::var_os("DHOW_TEST_LEAN") {
        store.ok(&["kernel", "import", "--name", "lean", file.to_str().unwrap()]);
    }
    Some(store)
}

/// Whether this host's processor can carry microVMs by itself.
fn has_kvm() -> bool {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpu.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split(' ').any(|flag| flag == "vmx" || flag == "svm") && Path::new("/dev/kvm").exists()
}

/// Runs tests of the calling program once more, by their full names, on an emulated host with KVM (`contrib/kvm-host`). Does
/// nothing where this host has KVM itself, and on the emulated one.
pub fn pass_on_emulated_host(tests: &[&str]) {
    if has_kvm() {
        return;
    }
    // The emulated host has no network to get a kernel by.
    if store().is_none() {
        return;
    }
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../contrib/kvm-host"))
        .args(["-m", "3072", "-t", "900", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--test-threads=1", "--nocapture", "--exact"])
        .args(tests)
        .env("DHOW_BIN", program())
        .output()
        .unwrap();
    let [said, errors] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    println!("{said}");
    match output.status.code() {
        Some(0) => {
            let all = format!("test result: ok. {} passed", tests.len());
            assert!(said.contains(&all) && !said.contains("SKIPPED"), "not all of them ran");
        }
        Some(125) => eprintln!("SKIPPED: {}", errors.trim()),
        code => panic!("on the emulated host: {code:?} {errors}"),
    }
}
