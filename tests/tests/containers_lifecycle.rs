//! The verbs on a container that exists, from `create` to `rm`.

use dhow_tests::{Store, busybox};
use std::time::{Duration, Instant};

/// Waits until `dhow ARGS` prints what is wanted.
fn until(store: &Store, args: &[&str], good: impl Fn(&str) -> bool) -> String {
    let begin = Instant::now();
    loop {
        let out = store.out(args);
        let text = String::from_utf8_lossy(&out.stdout).trim_end().to_owned();
        if good(&text) {
            return text;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "dhow {args:?} still prints {text:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn status(store: &Store, name: &str) -> String {
    store.ok(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name])
}

#[test]
fn from_create_to_rm() {
    let Some(store) = busybox::store() else { return };
    let id = store.ok(&[
        "create",
        "--name",
        "life",
        "--label",
        "a=b",
        "busybox",
        "sh",
        "-c",
        "echo up; exec sleep 60",
    ]);
    assert_eq!((id.len(), status(&store, "life").as_str()), (64, "created 0"));
    assert_eq!(store.ok(&["start", "life"]), "life");
    assert_eq!(
        store.ok(&["ps", "--format", "{{.Names}} {{.Image}} {{.State}}", "--filter", "label=a=b"]),
        "life busybox running"
    );
    until(&store, &["logs", "life"], |t| t == "up");
    store.ok(&["pause", "life"]);
    assert_eq!(status(&store, "life"), "paused 0");
    assert!(!store.out(&["exec", "life", "true"]).status.success());
    store.ok(&["unpause", "life"]);
    store.ok(&["rename", "life", "second"]);
    assert_eq!(store.ok(&["exec", "second", "echo", "hi"]), "hi");
    assert!(!store.out(&["rm", "second"]).status.success(), "a running container was removed");
    store.ok(&["stop", "-t", "1", "second"]);
    assert_eq!(status(&store, "second"), "exited 137");
    store.ok(&["restart", "second"]);
    assert_eq!(status(&store, "second"), "running 0");
    // What goes with its end does not go with its restart.
    store.ok(&[
        "run",
        "-d",
        "--rm",
        "-v",
        "/data",
        "--name",
        "brief",
        "busybox",
        "sh",
        "-c",
        "touch /data/a /b; exec sleep 60",
    ]);
    until(&store, &["exec", "brief", "ls", "/b"], |t| t == "/b");
    store.ok(&["exec", "brief", "touch", "/kept", "/data/kept"]);
    store.ok(&["restart", "-t", "0", "brief"]);
    assert_eq!(store.ok(&["exec", "brief", "ls", "/kept", "/data/kept"]).lines().count(), 2);
    store.ok(&["stop", "-t", "0", "brief"]);
    assert_eq!(
        (store.ok(&["ps", "-aq", "-f", "name=brief"]), store.ok(&["volume", "ls", "-q"])),
        Default::default()
    );
    store.ok(&["kill", "-s", "KILL", "second"]);
    // Dead when it is said to be killed: Compose removes what it killed only if it sees that.
    assert_eq!(status(&store, "second"), "exited 137");
    assert_eq!(store.ok(&["wait", "second"]), "137");
    assert_eq!(store.ok(&["rm", &id[..12]]), &id[..12]);
    assert_eq!(store.ok(&["ps", "-aq"]), "");
    let events = store.ok(&["events", "--since", "1h", "--until", "0s", "--format", "{{.Action}}"]);
    for wanted in
        ["create", "start", "pause", "unpause", "rename", "kill", "die", "stop", "restart", "destroy"]
    {
        assert!(events.lines().any(|l| l == wanted), "no event {wanted}: {events}");
    }
}

#[test]
fn exec_runs_beside() {
    let Some(store) = busybox::store() else { return };
    store.ok(&["run", "-d", "--name", "host", "-e", "FROM=run", "busybox", "sleep", "60"]);
    assert_eq!(store.ok(&["exec", "-e", "MORE=exec", "host", "sh", "-c", "echo $FROM $MORE"]), "run exec");
    assert_eq!(
        store.ok(&["exec", "-u", "user", "-w", "/etc", "host", "sh", "-c", "id -un; pwd"]),
        "user\n/etc"
    );
    assert_eq!(store.out(&["exec", "host", "sh", "-c", "exit 9"]).status.code(), Some(9));
    assert_eq!(store.out(&["exec", "host", "nothing-there"]).status.code(), Some(127));
    assert_eq!(store.out(&["exec", "host", "/etc/passwd"]).status.code(), Some(126));
    assert_eq!(store.ok(&["exec", "-t", "host", "tty"]).trim(), "/dev/pts/0");
    store.ok(&["exec", "-d", "host", "sh", "-c", "echo done > /tmp/flag"]);
    until(&store, &["exec", "host", "cat", "/tmp/flag"], |t| t == "done");
    // Nothing of ours is open in it, and it is as walled as the main process.
    assert_eq!(
        store.ok(&[
            "exec",
            "host",
            "sh",
            "-c",
            "ls /proc/self/fd | wc -l; grep -c 'Seccomp:.2' /proc/self/status"
        ]),
        "4\n1"
    );
}

#[test]
fn logs_are_kept_as_docker_keeps_them() {
    let Some(store) = busybox::store() else { return };
    store.ok(&[
        "run",
        "--name",
        "log",
        "busybox",
        "sh",
        "-c",
        "for i in 1 2 3 4 5; do echo line $i; done; echo err >&2",
    ]);
    assert_eq!(store.ok(&["logs", "--tail", "2", "log"]), "line 5");
    assert_eq!(store.both(&["logs", "log"]).lines().count(), 6);
    assert!(
        store.ok(&["logs", "-t", "--tail", "1", "log"]).starts_with("20")
            || store.both(&["logs", "-t", "--tail", "1", "log"]).starts_with("20")
    );
    let path = store.ok(&["inspect", "-f", "{{.LogPath}}", "log"]);
    let first: serde_json::Value =
        serde_json::from_str(std::fs::read_to_string(path).unwrap().lines().next().unwrap()).unwrap();
    assert_eq!((first["log"].as_str(), first["stream"].as_str()), (Some("line 1\n"), Some("stdout")));
    store.ok(&[
        "run",
        "--name",
        "small",
        "--log-opt",
        "max-size=10k",
        "--log-opt",
        "max-file=2",
        "busybox",
        "seq",
        "5000",
    ]);
    let kept = store.ok(&["logs", "small"]);
    assert!(kept.ends_with("5000") && kept.lines().count() < 2000, "{} lines", kept.lines().count());
    store.ok(&["run", "--name", "local", "--log-driver", "local", "busybox", "echo", "kept"]);
    assert_eq!(store.ok(&["logs", "local"]), "kept");
    store.ok(&["run", "--name", "none", "--log-driver", "none", "busybox", "echo", "lost"]);
    assert!(!store.out(&["logs", "none"]).status.success());
}

#[test]
fn restart_policies_and_health() {
    let Some(store) = busybox::store() else { return };
    store.ok(&["run", "-d", "--name", "again", "--restart", "on-failure:2", "busybox", "sh", "-c", "exit 3"]);
    until(&store, &["inspect", "-f", "{{.State.Status}} {{.RestartCount}}", "again"], |t| t == "exited 2");
    store.ok(&["run", "-d", "--name", "always", "--restart", "always", "busybox", "sleep", "0.1"]);
    until(&store, &["inspect", "-f", "{{.RestartCount}}", "always"], |t| {
        t.parse::<u32>().is_ok_and(|n| n >= 2)
    });
    store.ok(&["stop", "-t", "1", "always"]);
    std::thread::sleep(Duration::from_millis(700));
    assert!(status(&store, "always").starts_with("exited"));
    store.ok(&[
        "run",
        "-d",
        "--name",
        "sick",
        "--health-cmd",
        "test -e /ok",
        "--health-interval",
        "100ms",
        "--health-retries",
        "2",
        "busybox",
        "sleep",
        "60",
    ]);
    until(&store, &["inspect", "-f", "{{.State.Health.Status}}", "sick"], |t| t == "unhealthy");
    store.ok(&["exec", "sick", "touch", "/ok"]);
    until(&store, &["inspect", "-f", "{{.State.Health.Status}}", "sick"], |t| t == "healthy");
    store.ok(&["rm", "-f", "again", "always", "sick"]);
}

#[test]
fn limits_hold_and_change_at_once() {
    let Some(store) = busybox::store() else { return };
    let out = store.out(&[
        "run",
        "--name",
        "oom",
        "--memory",
        "16m",
        "--memory-swap",
        "16m",
        "busybox",
        "sh",
        "-c",
        "exec dd if=/dev/zero of=/dev/null bs=64M count=1",
    ]);
    assert_eq!(out.status.code(), Some(137));
    assert_eq!(store.ok(&["inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}}", "oom"]), "true 137");
    let events = store.ok(&[
        "events",
        "--since",
        "1h",
        "--until",
        "0s",
        "--filter",
        "container=oom",
        "--format",
        "{{.Action}}",
    ]);
    assert!(events.lines().any(|l| l == "oom"), "{events}");
    store.ok(&[
        "run",
        "-d",
        "--name",
        "live",
        "--memory",
        "64m",
        "--pids-limit",
        "50",
        "busybox",
        "sleep",
        "60",
    ]);
    let limit =
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    assert_eq!(store.ok(&["exec", "live", "sh", "-c", limit]), (64 << 20).to_string());
    store.ok(&["update", "--memory", "96m", "--memory-swap", "96m", "--pids-limit", "60", "live"]);
    assert_eq!(store.ok(&["exec", "live", "sh", "-c", limit]), (96 << 20).to_string());
    assert_eq!(
        store.ok(&["inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}", "live"]),
        format!("{} 60", 96 << 20)
    );
    let many = store.out(&["exec", "live", "sh", "-c", "for i in $(seq 100); do sleep 5 & done; wait"]);
    assert!(
        String::from_utf8_lossy(&many.stderr).contains("fork"),
        "{}",
        String::from_utf8_lossy(&many.stderr)
    );
    assert!(
        store.ok(&["stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", "live"]).contains("96MiB")
    );
    assert!(store.ok(&["top", "live"]).contains("sleep 60"));
    // ps(1) sees the whole host: no option makes it tell of more than the container.
    let pid = store.ok(&["inspect", "-f", "{{.State.Pid}}", "live"]);
    let own = store.ok(&["top", "live", "axeww", "-o", "pid,args"]);
    assert!(own.lines().skip(1).all(|l| !l.contains("/proc/self/fd/")) && own.contains(&pid), "{own}");
    for more in [&["-p", "1"][..], &["1"], &["-q", "1", "-ef"], &["-e", "-C"], &["--ppid=1"]] {
        let out = store.out(&[&["top", "live"], more].concat());
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && said.contains("cannot be used here"), "{more:?}: {said}");
        assert!(out.stdout.is_empty());
    }
}

#[test]
fn files_go_in_and_out() {
    let Some(store) = busybox::store() else { return };
    let dir = store.root().with_file_name("cp");
    std::fs::create_dir_all(dir.join("tree/sub")).unwrap();
    std::fs::write(dir.join("tree/sub/f"), "deep").unwrap();
    let path = |p: &str| dir.join(p).to_str().unwrap().to_owned();
    store.ok(&["run", "-d", "--name", "box", "busybox", "sleep", "60"]);
    store.ok(&["cp", &path("tree"), "box:/tmp/"]);
    assert_eq!(store.ok(&["exec", "box", "cat", "/tmp/tree/sub/f"]), "deep");
    store.ok(&["cp", "box:/etc/passwd", &path("passwd")]);
    assert!(std::fs::read_to_string(dir.join("passwd")).unwrap().starts_with("root:"));
    // A link in the container that leads outside must not: it is resolved inside.
    store.ok(&["exec", "box", "ln", "-s", "/../../../../../etc", "/tmp/out"]);
    store.ok(&["cp", &path("tree/sub/f"), "box:/tmp/out/planted"]);
    assert!(!std::path::Path::new("/etc/planted").exists());
    assert_eq!(store.ok(&["exec", "box", "cat", "/etc/planted"]), "deep");
    store.ok(&["exec", "box", "rm", "/data/seed"]);
    let diff = store.ok(&["diff", "box"]);
    for line in ["A /etc/planted", "D /data/seed", "C /etc", "A /tmp/tree/sub/f"] {
        assert!(diff.lines().any(|l| l == line), "{line} is not in {diff}");
    }
    store.ok(&["commit", "-m", "changed", "-c", "CMD [\"cat\", \"/etc/planted\"]", "box", "committed"]);
    assert_eq!(store.ok(&["run", "--rm", "committed"]), "deep");
    assert_eq!(store.out(&["run", "--rm", "committed", "test", "-e", "/data/seed"]).status.code(), Some(1));
    store.ok(&["stop", "-t", "0", "box"]);
    store.ok(&["cp", "box:/tmp/tree", &path("back")]);
    assert_eq!(std::fs::read_to_string(dir.join("back/sub/f")).unwrap(), "deep");
    let tar = store.out(&["export", "box"]).stdout;
    let names: Vec<String> = tar::Archive::new(&tar[..])
        .entries()
        .unwrap()
        .map(|e| e.unwrap().path().unwrap().display().to_string())
        .collect();
    assert!(
        names.iter().any(|n| n == "etc/planted") && !names.iter().any(|n| n.ends_with("data/seed")),
        "{names:?}"
    );
}

#[test]
fn copies_into_an_ended_containers_volume_are_there_when_it_starts() {
    let Some(store) = busybox::store() else { return };
    let file = store.root().with_file_name("f");
    std::fs::write(&file, "kept").unwrap();
    store.ok(&["create", "--name", "box", "-v", "vol:/data", "busybox", "cat", "/data/f"]);
    store.ok(&["cp", file.to_str().unwrap(), "box:/data/"]);
    assert_eq!(store.ok(&["start", "-a", "box"]), "kept");
    store.ok(&["cp", "box:/data/f", store.root().with_file_name("g").to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(store.root().with_file_name("g")).unwrap(), "kept");
}
