//! The container hull, from inside and outside, on a busybox root filesystem.
//!
//! One thread: the hull clones its process, as only a single-threaded program (the supervisor) may. So this has its
//! own small runner instead of libtest's; `cargo test --test container NAME` runs what has NAME in its name.
#![forbid(unsafe_code)]

mod attacks;
mod basics;
mod leaks;
mod support;

fn main() {
    if !rustix::process::getuid().is_root() || !std::path::Path::new("/bin/busybox").exists() {
        println!("skipped: needs root and /bin/busybox (busybox-static)");
        return;
    }
    own_mounts();
    let filter: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let (mut failed, mut run) = (Vec::new(), 0);
    for (name, test) in basics::TESTS.iter().chain(attacks::TESTS).chain(leaks::TESTS) {
        if !filter.is_empty() && !filter.iter().any(|f| name.contains(f.as_str())) {
            continue;
        }
        run += 1;
        let started = std::time::Instant::now();
        let passed = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {} ({:?})", if passed { "ok" } else { "FAILED" }, started.elapsed());
        if !passed {
            failed.push(*name);
        }
    }
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let _ = std::fs::remove_dir(format!("{}{}", hierarchy.path().display(), support::cgroup_parent()));
    }
    let _ = std::fs::remove_dir(format!("/sys/fs/cgroup{}", support::cgroup_parent()));
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {} passed; {} failed; 0 ignored", run - failed.len(), failed.len());
    if !failed.is_empty() {
        println!("failed: {failed:?}");
        std::process::exit(1);
    }
}

/// What others mount meanwhile is none of this test's business.
fn own_mounts() {
    use sys::mount::{Change, propagation, set_attributes};
    sys::clone::unshare(sys::clone::ns::MOUNT).unwrap();
    let top = std::fs::File::open("/").unwrap();
    set_attributes(&top, true, Change::propagation(propagation::PRIVATE)).unwrap();
}
