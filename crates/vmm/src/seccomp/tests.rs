//! Filters on threads of processes of their own: who breaks one takes its process with it.

mod machine;

use super::*;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

/// Runs the test of this name as a process of its own, which calls `action`; how that ended.
fn apart(name: &str, action: impl FnOnce()) -> ExitStatus {
    if std::env::var_os("DHOW_SECCOMP_CHILD").is_some() {
        rustix::thread::set_no_new_privs(true).unwrap();
        action();
        std::process::exit(0);
    }
    let exe = std::env::current_exe().unwrap();
    let arguments = ["--exact", name, "--test-threads=1", "--nocapture"];
    let output = Command::new(exe).args(arguments).env("DHOW_SECCOMP_CHILD", "1").output().unwrap();
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    output.status
}

/// The same, and the filter of a worker binds the thread that calls `action`.
fn confined(name: &str, action: impl FnOnce()) -> ExitStatus {
    apart(name, || {
        prepare();
        Filters::new().unwrap().worker.apply().unwrap();
        action();
    })
}

#[test]
fn a_worker_may_do_io() {
    let file = tempfile::tempfile().unwrap();
    let status = confined("seccomp::tests::a_worker_may_do_io", || {
        use std::os::unix::fs::FileExt;
        file.write_all_at(b"x", 5).unwrap();
        file.sync_data().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1));
    });
    assert!(status.success(), "{status}");
}

#[test]
fn a_worker_that_opens_a_file_dies_with_its_process() {
    let status = confined("seccomp::tests::a_worker_that_opens_a_file_dies_with_its_process", || {
        let _ = std::fs::File::open("/etc/passwd");
    });
    assert_eq!(status.signal(), Some(libc::SIGSYS));
}

/// The C library gives a thread a heap of its own, and looks into /proc when it makes that smaller.
#[test]
fn threads_free_memory_without_opening_a_file() {
    let status = apart("seccomp::tests::threads_free_memory_without_opening_a_file", || {
        prepare();
        let filters = Filters::new().unwrap();
        let work = move || {
            filters.worker.apply().unwrap();
            let pieces: Vec<Vec<u8>> = (0..1000).map(|n| vec![n as u8; 20_000]).collect();
            assert_eq!(std::hint::black_box(pieces).len(), 1000);
        };
        std::thread::spawn(work).join().unwrap();
    });
    assert!(status.success(), "{status}");
}

#[test]
fn memory_does_not_become_executable() {
    let status = confined("seccomp::tests::memory_does_not_become_executable", || {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let _ = vm_memory::MmapRegion::<()>::build(None, 4096, libc::PROT_READ | libc::PROT_EXEC, flags);
    });
    assert_eq!(status.signal(), Some(libc::SIGSYS));
}
