//! `compare`: it measures what can be measured here, says why of the rest, and leaves nothing.

use dhow_tests::{Store, have};
use serde_json::Value;

fn hull<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["hulls"].as_array().unwrap().iter().find(|h| h["name"] == name).unwrap()
}

fn metrics(hull: &Value) -> Vec<&str> {
    hull["figures"].as_array().unwrap().iter().map(|f| f["metric"].as_str().unwrap()).collect()
}

/// The embedded image is run to its end and made to serve: every figure is there, and each is possible.
fn is_whole(hull: &Value) {
    let mut expected = vec![
        "first_output",
        "first_answer",
        "start_to_exit",
        "memory",
        "memory_beyond",
        "disk",
        "fit",
        "cpu",
        "network",
        "system_calls",
        "host_files",
    ];
    if hull["name"] == "microVM" {
        expected.extend(["system_calls_behind", "host_files_behind"]);
    }
    assert_eq!(metrics(hull), expected, "{hull}");
    let median = |metric: &str| {
        let figure = hull["figures"].as_array().unwrap().iter().find(|f| f["metric"] == metric).unwrap();
        assert_eq!(figure["samples"].as_array().unwrap().len(), 1, "{figure}");
        figure["median"].as_f64().unwrap()
    };
    assert!(median("first_output") > 0.0 && median("first_output") <= median("start_to_exit"), "{hull}");
    assert!(median("memory_beyond") > 0.0 && median("memory_beyond") < median("memory"), "{hull}");
    assert!(median("first_answer") > 0.0 && median("fit") >= 1.0, "{hull}");
    assert!(median("cpu") > 0.0 && median("network") > 0.0, "{hull}");
    match hull["name"].as_str() {
        // Its processes make the host's calls, as far as its filter lets them, and see the host's kernel in /proc.
        Some("container") => {
            assert!((200.0..400.0).contains(&median("system_calls")) && median("host_files") > 100.0)
        }
        _ => assert!(
            median("system_calls") + median("host_files") == 0.0 && median("system_calls_behind") > 20.0
        ),
    }
    assert_eq!(hull["exit_code"], 0);
}

#[test]
fn both_hulls_are_measured() {
    let store = Store::new();
    let vm = ["qemu-system-x86_64", "mke2fs", "apt-get", "dpkg-deb"].iter().find(|p| !have(p));
    let lacks = match vm {
        Some(program) => Some(format!("{program} is not installed")),
        None => {
            let out = store.out(&["kernel", "install", "--quiet"]);
            (!out.status.success()).then(|| String::from_utf8_lossy(&out.stderr).trim().to_owned())
        }
    };
    let page = tempfile::NamedTempFile::new().unwrap();
    let html = page.path().to_str().unwrap();
    let report = store.ok(&["compare", "--runs", "1", "--json", "--html", html, "hello"]);
    let report: Value = serde_json::from_str(&report).unwrap();

    let container = hull(&report, "container");
    is_whole(container);
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(container["kernel"], host.trim());

    let micro = hull(&report, "microVM");
    match lacks {
        None => {
            is_whole(micro);
            let kernels = store.ok(&["kernel", "ls", "--format", "{{.Version}}"]);
            assert_eq!(micro["kernel"], kernels, "the guest's kernel is the store's");
        }
        Some(why) => {
            eprintln!("SKIPPED: microVMs: {why}");
            assert!(micro["error"].as_str().unwrap().contains("lacks "), "{micro}");
            assert!(metrics(micro).is_empty(), "{micro}");
        }
    }
    let page = std::fs::read_to_string(html).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("<svg"), "{page}");
    assert_eq!(store.ok(&["ps", "-aq"]), "");
}

#[test]
fn a_workload_that_fails_leaves_nothing() {
    let store = Store::new();
    // Without a kernel there is no microVM, and `hello --json` ends without having served.
    let out = store.out(&["compare", "--runs", "1", "--http", "8080", "hello", "--json"]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(text.contains("ended with code 0 before it answered over HTTP"), "{text}");
    assert!(text.contains("microVM") && text.contains("lacks "), "{text}");
    assert_eq!(store.ok(&["ps", "-aq"]), "");

    let out = store.out(&["compare", "--runs", "0", "hello"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("invalid --runs 0"));
}

#[test]
fn a_signal_ends_it_and_what_it_started() {
    use rustix::process::{Pid, Signal, kill_process};
    use std::time::{Duration, Instant};
    let store = Store::new();
    let mut child = store
        .command(&["compare", "--runs", "1", "--limit", "600", "hello", "--http", "8080"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    // The server runs for good; the embedded image that warms up is gone at once.
    while !store.ok(&["ps", "--no-trunc", "--format", "{{.Command}}"]).contains("--http") {
        assert!(Instant::now() < deadline, "nothing was started");
        std::thread::sleep(Duration::from_millis(50));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(store.ok(&["ps", "-aq"]), "");
}
