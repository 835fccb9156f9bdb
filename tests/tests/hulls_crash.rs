//! `kill -9` of anything of a microVM, at any moment, from outside and from inside: the next command tells the truth, and
//! nothing stays behind.
//!
//! `DHOW_SOAK=1` makes it a hundred kills.

use dhow_tests::traces::{Random, at_rest, back_to, hypervisors, kill, processes, soak, until};
use dhow_tests::{Store, vm};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// Longer than an emulated start takes when nothing else runs.
const MOMENTS: u64 = 6_000;

/// What `ps` says runs has a process.
fn tells_the_truth(store: &Store) {
    for name in store.ok(&["ps", "--format", "{{.Names}}"]).lines() {
        let state = store.ok(&["inspect", "-f", "{{.State.Status}} {{.State.Pid}}", name]);
        // It may have ended since.
        if let Some(pid) = state.strip_prefix("running ") {
            let alive = || Path::new("/proc").join(pid).exists();
            let ended = || !store.ok(&["inspect", "-f", "{{.State.Status}}", name]).starts_with("running");
            assert!(alive() || ended(), "{name} is said to run as {pid}");
        }
    }
}

#[test]
fn random_kills_of_microvms_leave_nothing() {
    let Some(store) = vm::store() else { return };
    store.ok(&["run", "--vm", "--rm", "busybox", "true"]);
    let before = at_rest(&store);
    let mut random = Random::default();
    for n in 0..if soak() { 100 } else { 5 } {
        let name = format!("victim{n}");
        let mut run = store
            .command(&["run", "--vm", "--rm", "--name", &name, "-m", "96m", "-p", "127.0.0.1::80"])
            .args(["busybox", "sleep", "0.5"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(random.below(MOMENTS)));
        let all = processes(&store);
        match random.below(4) {
            // The command, one process of whichever kind, every hypervisor, everything.
            0 => run.kill().unwrap(),
            1 if !all.is_empty() => kill(all[random.below(all.len() as u64) as usize].pid),
            2 => hypervisors(&store).iter().for_each(|p| kill(p.pid)),
            _ => all.iter().for_each(|p| kill(p.pid)),
        }
        let _ = run.wait();
        tells_the_truth(&store);
    }
    for id in store.ok(&["ps", "-aq"]).lines() {
        store.out(&["rm", "-f", id]);
    }
    until("every container gone", || {
        store.out(&["system", "recover"]);
        store.ok(&["ps", "-aq"]).is_empty()
    });
    back_to(&store, &before);
    assert_eq!(store.ok(&["run", "--vm", "--rm", "--name", "victim0", "busybox", "echo", "fine"]), "fine");
}

/// A workload with all rights of its own kernel takes that down (Documentation/admin-guide/sysrq.rst), or everything in
/// it but its first process, the agent, which the kernel protects.
#[test]
fn a_guest_that_ends_itself_has_ended_and_leaves_nothing() {
    let Some(store) = vm::store() else { return };
    store.ok(&["run", "--vm", "--rm", "busybox", "true"]);
    let before = at_rest(&store);
    for (key, code) in [("c", "255"), ("b", "255"), ("i", "137")] {
        let script = format!("echo {key} >/proc/sysrq-trigger; sleep 100");
        store.ok(&["run", "--vm", "--privileged", "-d", "--name", "mad", "busybox", "sh", "-c", &script]);
        assert_eq!(store.ok(&["wait", "mad"]), code, "sysrq {key}");
        let state = "{{.State.Status}} {{.State.ExitCode}}";
        assert_eq!(store.ok(&["inspect", "-f", state, "mad"]), format!("exited {code}"), "sysrq {key}");
        assert!(!store.out(&["exec", "mad", "true"]).status.success());
        store.ok(&["rm", "mad"]);
        back_to(&store, &before);
    }
}
