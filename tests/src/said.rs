//! What commands say, and what must be so.

use crate::Store;
use std::process::Output;
use std::time::{Duration, Instant};

/// Runs a script in the image `busybox`.
pub fn run(store: &Store, flags: &[&str], script: &str) -> Output {
    store.out(&[&["run"], flags, &["busybox", "sh", "-c", script]].concat())
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What it wrote, of one that must succeed.
#[track_caller]
pub fn ok(out: &Output) -> String {
    assert!(out.status.success(), "{:?} {} {}", out.status, text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

/// What must fail, and say this, in one line but for what is said of a host without virtualisation.
#[track_caller]
pub fn refused(out: &Output, said: &str) {
    let errors = text(&out.stderr);
    assert!(!out.status.success() && errors.contains(said), "{:?} {errors}", out.status);
    let lines = errors.trim().lines().filter(|line| !line.starts_with("dhow: no hardware"));
    assert_eq!(lines.count(), 1, "{errors}");
}

/// Looks until it is so.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(120), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
