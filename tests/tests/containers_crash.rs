//! `kill -9` of anything, at any moment: the next command tells the truth, and nothing stays behind.
//!
//! `DHOW_SOAK=1` makes it a thousand runs and two hundred kills.

use dhow_tests::{Store, busybox};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

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

/// What a store leaves on the host.
fn traces(store: &Store) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    let dir = store.root().parent().unwrap().display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    out.extend(mounts.lines().filter(|l| l.contains(&dir)).map(|l| format!("mount {l}")));
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(&dir) {
            out.insert(format!("process {} {command}", process.file_name().display()));
        }
    }
    for sub in ["root/sandboxes", "run/sandboxes", "run/layers"] {
        for entry in
            std::fs::read_dir(store.root().parent().unwrap().join(sub)).into_iter().flatten().flatten()
        {
            out.insert(format!("file {sub}/{}", entry.file_name().display()));
        }
    }
    let tag = tag_of(store);
    let groups = groups(std::path::Path::new("/sys/fs/cgroup"), 3).into_iter().filter(|g| g.contains(&tag));
    out.extend(groups.map(|g| format!("cgroup {g}")));
    for link in std::fs::read_dir("/sys/class/net").unwrap().flatten() {
        let name = link.file_name().display().to_string();
        let master = std::fs::read_link(link.path().join("master")).unwrap_or_default();
        if mine(store, &master) {
            out.insert(format!("interface {name}"));
        }
    }
    out.extend(firewall(store));
    out
}

/// Elements of our firewall tables that lead into this store's network, and its bridge's subnet.
fn firewall(store: &Store) -> Vec<String> {
    let bridge = format!("dhow-{}", tag_of(store));
    let said = |program: &str, args: &[&str]| {
        let out = std::process::Command::new(program).args(args).output();
        out.map_or_else(|_| String::new(), |out| String::from_utf8_lossy(&out.stdout).into_owned())
    };
    // `7: dhow-0123  inet 172.17.0.1/16 …`: what its containers have begins with the same two numbers.
    let address = said("ip", &["-o", "-4", "addr", "show", "dev", &bridge]);
    let subnet = address.split_whitespace().find(|w| w.contains('/')).unwrap_or("none/");
    let prefix: String = subnet.split_inclusive('.').take(2).collect();
    let rules = said("nft", &["list", "table", "ip", "dhow"]);
    let elements = rules.split([',', '{', '}', '\n', '=']).map(str::trim);
    let ours = elements.filter(|e| e.contains(&bridge) || e.contains(&prefix));
    ours.map(|e| format!("firewall {e}")).collect()
}

/// Whether a bridge is this store's: its name has the tag that the store's cgroups have.
fn mine(store: &Store, bridge: &std::path::Path) -> bool {
    let Some(name) = bridge.file_name().map(|n| n.display().to_string()) else { return false };
    let tag = name.strip_prefix("dhow-").unwrap_or_default().to_owned();
    !tag.is_empty() && tag == tag_of(store)
}

/// FNV-1a of the root's path, as the engine names what is a store's own.
fn tag_of(store: &Store) -> String {
    let bytes = store.root().into_os_string().into_encoded_bytes();
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{:08x}", (hash ^ (hash >> 32)) as u32)
}

fn groups(dir: &std::path::Path, depth: u32) -> Vec<String> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        let name = entry.file_name().display().to_string();
        // Groups of containers: 64 digits below the store's own.
        if name.len() == 64 && dir.display().to_string().contains("dhow-") {
            out.push(entry.path().display().to_string());
        } else if depth > 0 {
            out.extend(groups(&entry.path(), depth - 1));
        }
    }
    out
}

/// Its traces once the last supervisor and the interface of the last container are gone: a `run` waits for neither,
/// and the kernel takes an interface down in its own time.
fn at_rest(store: &Store) -> BTreeSet<String> {
    let mut now = BTreeSet::new();
    until("everything at rest", || {
        now = traces(store);
        !now.iter().any(|t| t.starts_with("process") || t.starts_with("interface"))
    });
    now
}

/// Says what is left, and fails, if that stays so.
fn back_to(store: &Store, before: &BTreeSet<String>) {
    let mut last = String::new();
    until("nothing left", || {
        let now = traces(store);
        let more: Vec<_> = now.difference(before).collect();
        let change = format!("more: {more:?}, less: {:?}", before.difference(&now).collect::<Vec<_>>());
        if now != *before && change != last {
            eprintln!("{change}");
        }
        last = change;
        now == *before
    });
}

fn soak() -> bool {
    std::env::var_os("DHOW_SOAK").is_some()
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
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    for n in 0..if soak() { 200 } else { 16 } {
        let name = format!("victim{n}");
        let mut run = store
            .command(&["run", "--rm", "--name", &name, "-p", "127.0.0.1::80", "busybox", "sleep", "0.2"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(random(60_000)));
        match random(3) {
            0 => run.kill().unwrap(),
            _ => {
                let dir = store.root().display().to_string();
                for process in std::fs::read_dir("/proc").unwrap().flatten() {
                    let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
                    let command = String::from_utf8_lossy(&command).into_owned();
                    if command.contains("supervise") && command.contains(&dir) {
                        kill(process.file_name().to_str().and_then(|p| p.parse().ok()).unwrap_or(i32::MAX));
                    }
                }
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
