//! What a microVM may use of its host: while it runs, when it changes, and when it is too little. And what its hypervisor
//! may do to the host: nothing.

use dhow_tests::{Store, vm};
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The process that carries a running microVM: its monitor's only child.
fn hypervisor(store: &Store, name: &str) -> i32 {
    let monitor = store.ok(&["inspect", "-f", "{{.State.Pid}}", name]);
    let tasks = fs::read_dir(format!("/proc/{monitor}/task")).unwrap();
    let children = tasks.map(|t| fs::read_to_string(t.unwrap().path().join("children")).unwrap());
    children.collect::<String>().trim().parse().expect("a monitor has one child")
}

fn refused(store: &Store, args: &[&str], said: &str) {
    let out = store.out(args);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && text.contains(said), "{args:?}: {text}");
}

#[test]
fn the_hypervisor_has_no_rights_and_sees_nothing_of_the_host() {
    let Some(store) = vm::store() else { return };
    store.ok(&["run", "-d", "--vm", "--name", "walled", "busybox", "sleep", "1000"]);
    let process = Path::new("/proc").join(hypervisor(&store, "walled").to_string());
    for task in fs::read_dir(process.join("task")).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_else(|| panic!("{name}"));
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        for ids in [field("Uid:"), field("Gid:")] {
            assert!(
                ids.len() == 4 && ids.iter().all(|id| id.parse::<u32>().unwrap() >= 0x7800_0000),
                "{ids:?}"
            );
        }
        assert!(field("Groups:").is_empty());
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(field(set), ["0000000000000000"], "{set}");
        }
        assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), (vec!["1".into()], vec!["2".into()]));
    }
    for kind in ["mnt", "pid", "ipc", "uts", "net"] {
        let of = |process: &Path| fs::read_link(process.join("ns").join(kind)).unwrap();
        assert_ne!(of(&process), of(Path::new("/proc/self")), "{kind}");
    }
    let root = process.join("root");
    for hidden in ["root", "home", "var", "run", "proc", "sys", "etc/passwd", "dev/kvm"] {
        assert!(!root.join(hidden).exists(), "/{hidden} is within reach");
    }
    store.ok(&["rm", "-f", "walled"]);
}

#[test]
fn a_running_microvm_gets_other_limits() {
    let Some(store) = vm::store() else { return };
    // Any block device: in a microVM the limit is that of its own disks.
    let devices = fs::read_dir("/dev").unwrap().flatten();
    let device =
        devices.filter(|e| e.file_type().is_ok_and(|t| t.is_block_device())).map(|e| e.path()).next();
    let Some(device) = device else { return eprintln!("SKIPPED: there is no block device in /dev") };
    let rate = |limit: &str| format!("{}:{limit}", device.display());
    store.ok(&["volume", "create", "-d", "disk", "-o", "size=32m", "vol"]);
    let flags = ["--name", "live", "-m", "256m", "--cpus", "1", "--device-write-bps", &rate("1mb")];
    let flags = [&["run", "-d", "--vm", "-v", "vol:/vol"], &flags[..], &["busybox", "sleep", "1000"]];
    store.ok(&flags.concat());
    let total = || -> u64 {
        let text = store.ok(&["exec", "live", "grep", "MemTotal", "/proc/meminfo"]);
        text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
    };
    let write = |dir: &str| {
        let begin = Instant::now();
        let script = "dd if=/dev/zero of=$0/f bs=64k count=64 conv=fsync; rm $0/f";
        store.ok(&["exec", "live", "sh", "-c", script, dir]);
        begin.elapsed()
    };
    // The disk that a volume is has the same limits, now and after a change. 4 MiB, less a bucketful of 100 ms.
    let limited = ["", "/vol"].map(write);
    assert!(limited.iter().all(|took| *took > Duration::from_millis(3500)), "{limited:?}");

    let before = total();
    store.ok(&["update", "-m", "192m", "--device-write-bps", &rate("1gb"), "live"]);
    let after = total();
    assert!((60..=66).contains(&(before - after)), "64 MiB are taken of {before}, {after} are left");
    let shown = store.ok(&["inspect", "-f", "{{.HostConfig.Memory}}", "live"]);
    assert_eq!(shown, (192 << 20).to_string());
    // What the host pays, by its own count; and what the guest says of itself.
    let stats = store.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}};{{.GuestMemUsage}}", "live"]);
    let (pays, inside) = stats.split_once(';').unwrap();
    assert!(inside.contains(&format!("/ {after}")), "{after} MiB in {stats:?}");
    assert!(!pays.contains(&format!("/ {after}")) && pays.contains("MiB /"), "{stats:?}");
    let free = ["", "/vol"].map(write);
    assert!(free[0] < limited[0] && free[1] < limited[1], "{free:?} without limits, {limited:?} with them");

    // All of it or nothing.
    refused(&store, &["update", "-m", "50m", "live"], "the guest has given only");
    refused(&store, &["update", "-m", "257m", "live"], "than it was started with, 256 MiB");
    refused(&store, &["update", "-m", "8m", "live"], "at least 48 MiB");
    if std::thread::available_parallelism().is_ok_and(|n| n.get() > 1) {
        refused(&store, &["update", "--cpus", "1.5", "live"], "more CPUs than it was started with, 1:");
    }
    store.ok(&["update", "-m", "256m", "--cpus", "0.5", "live"]);
    let begin = Instant::now();
    while total() != before {
        assert!(begin.elapsed() < Duration::from_secs(30), "{} of {before} MiB came back", total());
    }
    assert_eq!(store.ok(&["inspect", "-f", "{{.HostConfig.NanoCpus}}", "live"]), "500000000");
    store.ok(&["rm", "-f", "live"]);
    store.ok(&["volume", "rm", "vol"]);
}

#[test]
fn a_workload_that_takes_all_of_its_guests_memory_is_killed_and_that_is_told() {
    let Some(store) = vm::store() else { return };
    let fill = ["dd", "if=/dev/zero", "of=/dev/null", "bs=170M", "count=1"];
    let out = store.out(&[&["run", "--vm", "--name", "greedy", "-m", "224m", "busybox"][..], &fill].concat());
    assert_eq!(out.status.code(), Some(137), "{}", String::from_utf8_lossy(&out.stderr));
    let told = store.ok(&["inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}}", "greedy"]);
    assert_eq!(told, "true 137");
    let events = store.ok(&[
        "events",
        "--since",
        "1h",
        "--until",
        "0s",
        "--filter",
        "container=greedy",
        "--format",
        "{{.Action}}",
    ]);
    assert!(events.lines().any(|l| l == "oom"), "{events}");
    // Of another run nothing is left over.
    assert_eq!(store.ok(&["run", "--vm", "--name", "modest", "busybox", "echo", "fine"]), "fine");
    assert_eq!(store.ok(&["inspect", "-f", "{{.State.OOMKilled}}", "modest"]), "false");
    store.ok(&["rm", "greedy", "modest"]);
}
