//! `kill -9` of anything, at any moment: the next command tells the truth, and nothing stays behind.
//!
//! `DHOW_SOAK=1` makes it a thousand runs and two hundred kills.

use dhow_tests::Store;
use dhow_tests::busybox;
use dhow_tests::traces::{Random, at_rest, back_to, kill, processes, soak, until};
use std::time::{Duration, Instant};

fn inspect(store: &Store, name: &str, what: &str) -> String {
    store.ok(&["inspect", "-f", what, name])
}

#[test]
fn a_container_outlives_its_supervisor() {
    let Some(store) = busybox::store() else { return };
    store.ok(&[
        "run",
        "-d",
        "--name",
        "box",
        "-p",
        "127.0.0.1::80",
        "busybox",
        "sh",
        "-c",
        "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done",
    ]);
    let pid = inspect(&store, "box", "{{.State.Pid}}");
    kill(store.supervisor("box"));
    // It goes on, under a new supervisor that the next command starts.
    assert!(store.ok(&["ps", "--format", "{{.Status}}"]).starts_with("Up"));
    assert_eq!(inspect(&store, "box", "{{.State.Pid}}"), pid);
    assert_eq!(store.ok(&["exec", "box", "echo", "hi"]), "hi");
    let before = store.ok(&["logs", "box"]).lines().count();
    until("new lines in the log", || store.ok(&["logs", "box"]).lines().count() > before + 3);
    let log = store.ok(&["logs", "box"]);
    let numbers: Vec<u32> = log.lines().map(|l| l.parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|w| w[1] > w[0]), "lines are doubled or out of order");
    store.ok(&["stop", "-t", "0", "box"]);
    assert_eq!(inspect(&store, "box", "{{.State.Status}}"), "exited");
    store.ok(&["rm", "box"]);
}

#[test]
fn both_killed_is_an_end() {
    let Some(store) = busybox::store() else { return };
    store.ok(&["run", "-d", "--name", "box", "-p", "127.0.0.1:0:80", "busybox", "sleep", "60"]);
    let pid: i32 = inspect(&store, "box", "{{.State.Pid}}").parse().unwrap();
    kill(store.supervisor("box"));
    kill(pid);
    until("the truth", || inspect(&store, "box", "{{.State.Status}}") == "exited");
    store.ok(&["start", "box"]);
    assert_eq!(inspect(&store, "box", "{{.State.Status}}"), "running");
    store.ok(&["rm", "-f", "box"]);
}

#[test]
fn a_lost_socket_and_a_lost_state_are_made_again() {
    let Some(store) = busybox::store() else { return };
    store.ok(&["run", "-d", "--name", "box", "busybox", "sleep", "60"]);
    let id = inspect(&store, "box", "{{.Id}}");
    let record = store.root().join("sandboxes").join(&id).join("state.json");
    let pid = inspect(&store, "box", "{{.State.Pid}}");
    std::fs::remove_file(store.run().join("sandboxes").join(&id).join("ctl.sock")).unwrap();
    let begin = Instant::now();
    assert_eq!(store.ok(&["exec", "box", "echo", "hi"]), "hi");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    // Its supervisor knows what the file does not say.
    for harm in [None, Some("")] {
        match harm {
            None => std::fs::remove_file(&record).unwrap(),
            Some(text) => std::fs::write(&record, text).unwrap(),
        }
        assert!(store.ok(&["ps", "--format", "{{.Status}}"]).starts_with("Up"));
        assert_eq!(inspect(&store, "box", "{{.State.Pid}}"), pid);
    }
    store.ok(&["rm", "-f", "box"]);
}

#[test]
fn a_lost_end_is_not_told_as_never_begun() {
    let Some(store) = busybox::store() else { return };
    store.out(&["run", "--name", "box", "busybox", "sh", "-c", "echo said; exit 3"]);
    store.ok(&["create", "--name", "new", "busybox", "true"]);
    let record = store.root().join("sandboxes").join(inspect(&store, "box", "{{.Id}}")).join("state.json");
    let state = "{{.State.Status}} {{.State.ExitCode}}";
    for harm in [None, Some("")] {
        assert_eq!(store.out(&["start", "-a", "box"]).status.code(), Some(3));
        until("its supervisor's end", || {
            std::fs::read_to_string(&record).is_ok_and(|s| s.contains("exited"))
                && store.ok(&["ps", "-q"]).is_empty()
        });
        match harm {
            None => std::fs::remove_file(&record).unwrap(),
            Some(text) => std::fs::write(&record, text).unwrap(),
        }
        assert_eq!(inspect(&store, "box", state), "exited 255");
        assert!(inspect(&store, "box", "{{.State.Error}}").contains("lost"));
    }
    assert_eq!(inspect(&store, "new", state), "created 0");
    store.ok(&["rm", "box", "new"]);
}

#[test]
fn a_reboot_is_seen() {
    let Some(store) = busybox::store() else { return };
    store.ok(&["run", "-d", "--name", "box", "busybox", "sleep", "60"]);
    store.ok(&["run", "-d", "--name", "wanted", "--restart", "always", "busybox", "sleep", "60"]);
    for name in ["box", "wanted"] {
        let pid: i32 = inspect(&store, name, "{{.State.Pid}}").parse().unwrap();
        let id = inspect(&store, name, "{{.Id}}");
        kill(store.supervisor(name));
        kill(pid);
        let path = store.root().join("sandboxes").join(id).join("state.json");
        let mut state: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        state["boot_id"] = "another".into();
        std::fs::write(&path, state.to_string()).unwrap();
    }
    store.ok(&["system", "recover", "--boot"]);
    assert_eq!(
        store.ok(&["ps", "-a", "--format", "{{.Names}} {{.State}}", "--filter", "name=box"]),
        "box exited"
    );
    assert_eq!(store.ok(&["ps", "--format", "{{.Names}}"]), "wanted");
    store.ok(&["rm", "-f", "box", "wanted"]);
}

#[test]
fn runs_leave_nothing() {
    let Some(store) = busybox::store() else { return };
    store.ok(&["run", "--rm", "busybox", "true"]);
    let before = at_rest(&store);
    let count = if soak() { 1000 } else { 24 };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..count / 4 {
                    let flags: &[&str] =
                        if n % 3 == 0 { &["--network", "none"] } else { &["-p", "127.0.0.1::80"] };
                    let mut args = vec!["run", "--rm"];
                    args.extend(flags);
                    args.extend(["busybox", "true"]);
                    store.ok(&args);
                }
            });
        }
    });
    store.ok(&["system", "recover"]);
    back_to(&store, &before);
    assert_eq!(store.ok(&["ps", "-aq"]), "");
}

#[test]
fn random_kills_leave_nothing() {
    let Some(store) = busybox::store() else { return };
    store.ok(&["run", "--rm", "busybox", "true"]);
    let before = at_rest(&store);
    let mut random = Random::default();
    for n in 0..if soak() { 200 } else { 16 } {
        let name = format!("victim{n}");
        let mut run = store
            .command(&["run", "--rm", "--name", &name, "-p", "127.0.0.1::80", "busybox", "sleep", "0.2"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        match random.below(3) {
            0 => run.kill().unwrap(),
            _ => {
                let supervisors = processes(&store);
                supervisors.iter().filter(|p| p.command.contains("supervise")).for_each(|p| kill(p.pid));
            }
        }
        let _ = run.wait();
        // The next command works, whatever was left.
        store.ok(&["ps", "-a"]);
    }
    for id in store.ok(&["ps", "-aq"]).lines() {
        store.out(&["rm", "-f", id]);
    }
    until("every container gone", || {
        store.out(&["system", "recover"]);
        store.ok(&["ps", "-aq"]).is_empty()
    });
    back_to(&store, &before);
    assert_eq!(store.ok(&["run", "--rm", "--name", "victim0", "busybox", "echo", "fine"]), "fine");
}
