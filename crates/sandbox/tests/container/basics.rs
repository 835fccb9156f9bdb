//! What every container has and how it lives.

use crate::support::*;
use dhow_sandbox::hull::{ExitStatus, HullError, Sandbox};
use serde_json::json;

pub const TESTS: &[(&str, fn())] = &[
    ("runs_and_exits", runs_and_exits),
    ("has_namespaces_of_its_own", has_namespaces_of_its_own),
    ("tells_why_a_command_cannot_run", tells_why_a_command_cannot_run),
    ("has_the_usual_devices", has_the_usual_devices),
    ("masks_and_protects_paths", masks_and_protects_paths),
    ("has_the_capabilities_asked_for", has_the_capabilities_asked_for),
    ("runs_as_another_user", runs_as_another_user),
    ("execs", execs),
    ("has_a_terminal", has_a_terminal),
    ("is_signalled_paused_and_killed", is_signalled_paused_and_killed),
    ("has_an_init", has_an_init),
    ("binds_with_options", binds_with_options),
    ("has_a_readonly_root", has_a_readonly_root),
    ("shares_namespaces", shares_namespaces),
    ("lives_in_a_user_namespace", lives_in_a_user_namespace),
    ("sets_limits_and_sysctls", sets_limits_and_sysctls),
    ("has_its_own_time", has_its_own_time),
    ("runs_hooks", runs_hooks),
    ("is_adopted", is_adopted),
    ("sees_its_own_cgroup", sees_its_own_cgroup),
];

fn runs_and_exits() {
    let root = Rootfs::new();
    let done = run(&root, &shell("echo out; echo err >&2; exit 7")).unwrap();
    assert_eq!(done.status, ExitStatus::Exited(7));
    assert_eq!((done.out.as_str(), done.err.as_str()), ("out\n", "err\n"));
    let done = run(&root, &shell("echo $$; kill -9 $$; echo survived")).unwrap();
    // PID 1 is immune to its own signals.
    assert_eq!(done.out, "1\nsurvived\n");
    assert_eq!(sh(&root, "echo $HOME; pwd; umask"), "/root\n/\n0022\n");
}

fn has_namespaces_of_its_own() {
    let root = Rootfs::new();
    let inside =
        sh(&root, "for n in mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done; hostname");
    let inside: Vec<&str> = inside.lines().collect();
    for (name, seen) in ["mnt", "pid", "net", "ipc", "uts", "cgroup"].iter().zip(&inside) {
        let ours = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(ours.to_str().unwrap(), *seen, "{name}");
    }
    assert_eq!(inside[6], "testhost");
    let mounts = sh(&root, "cat /proc/self/mounts");
    assert!(mounts.lines().next().unwrap().contains(" / "), "{mounts}");
    for line in mounts.lines() {
        let at = line.split(' ').nth(1).unwrap();
        let known = ["/proc", "/sys", "/dev"].iter().any(|p| at.starts_with(p)) || at == "/";
        assert!(known, "a mount of the host is visible: {line}");
    }
    let pids = sh(&root, "ls /proc | grep -c '^[0-9]'");
    assert!(pids.trim().parse::<u32>().unwrap() <= 3, "{pids}");
}

fn tells_why_a_command_cannot_run() {
    let root = Rootfs::new();
    let ask = |command: &str| {
        let e = run(&root, &spec(&[command])).map(|o| format!("{o:?}")).unwrap_err();
        (e.exit_code(), e.to_string())
    };
    let none = r#"exec: "nonesuch": executable file not found in $PATH"#;
    assert_eq!(ask("nonesuch"), (127, none.into()));
    assert_eq!(ask("/bin/nonesuch").0, 127);
    assert_eq!(ask("/etc/passwd").0, 126);
    assert_eq!(ask("/etc").0, 126);
    std::fs::write(root.path("bin/garbage"), "\0\0\0").unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(root.path("bin/garbage"), PermissionsExt::from_mode(0o755)).unwrap();
    let (code, text) = ask("garbage");
    assert!(code == 126 && text.contains("Exec format error"), "{code} {text}");
    let mut bad = spec(&["true"]);
    bad["process"]["user"]["username"] = "nobody-here".into();
    let e = run(&root, &bad).map(|o| format!("{o:?}")).unwrap_err();
    assert_eq!(e.to_string(), "unable to find user nobody-here: no matching entries in passwd file");
    assert_eq!(e.exit_code(), 125);
}

fn has_the_usual_devices() {
    let root = Rootfs::new();
    let list = sh(
        &root,
        "cd /dev; for d in null zero full random urandom tty; do stat -c '%n %F %t:%T %a' $d; done",
    );
    assert_eq!(
        list,
        "null character special file 1:3 666\nzero character special file 1:5 666\n\
         full character special file 1:7 666\nrandom character special file 1:8 666\n\
         urandom character special file 1:9 666\ntty character special file 5:0 666\n"
    );
    let links =
        sh(&root, "for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; stat -c %a /dev/shm");
    assert_eq!(links, "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n1777\n");
    let fds = sh(&root, "ls /proc/self/fd | wc -l");
    assert_eq!(fds.trim(), "4", "0 to 2 and the one of ls");
    let mut more = shell("stat -c '%F %t:%T %a %u' /dev/sub/fuse");
    more["linux"]["devices"] =
        json!([{"path": "/dev/sub/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 384, "uid": 5}]);
    assert_eq!(run(&root, &more).unwrap().out, "character special file a:e5 600 5\n");
}

fn masks_and_protects_paths() {
    let root = Rootfs::new();
    let out = sh(
        &root,
        "stat -c '%t:%T' /proc/keys /proc/timer_list; wc -c < /proc/keys; ls /sys/firmware | wc -l; \
         (echo 1 > /proc/sys/kernel/core_pattern) 2>&1 | grep -c 'Read-only'; \
         (mkdir /sys/fs/cgroup/x) 2>&1 | grep -c Read-only; (touch /sys/firmware/x) 2>&1 | grep -c Read-only",
    );
    assert_eq!(out, "1:3\n1:3\n0\n0\n1\n1\n1\n");
}

fn has_the_capabilities_asked_for() {
    let root = Rootfs::new();
    let caps = sh(&root, "grep -E 'Cap|NoNewPrivs' /proc/self/status");
    let want = "CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\n\
                CapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\nNoNewPrivs:\t0\n";
    assert_eq!(caps, want);
    let mut ambient = shell("grep -E 'CapEff|CapAmb|NoNewPrivs|Groups' /proc/self/status; id -u");
    ambient["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    ambient["process"]["noNewPrivileges"] = true.into();
    let set = json!(["CAP_NET_RAW", "CAP_SYS_RESOURCE"]);
    for kind in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
        ambient["process"]["capabilities"][kind] = set.clone();
    }
    let done = run(&root, &ambient).unwrap();
    assert!(
        done.out.starts_with("Groups:\t \nCapEff:\t0000000000002000\nCapAmb:\t0000000000002000"),
        "{done:?}"
    );
    assert!(done.out.ends_with("NoNewPrivs:\t1\n1000\n"), "{done:?}");
}

fn runs_as_another_user() {
    let root = Rootfs::new();
    let mut ann =
        shell("id -u; id -g; id -G; echo $HOME; grep CapEff /proc/self/status; echo x > /dev/stdout");
    ann["process"]["user"]["username"] = "ann".into();
    let done = run(&root, &ann).unwrap();
    assert_eq!(done.out, "1000\n1000\n1000 44\n/home/ann\nCapEff:\t0000000000000000\nx\n", "{done:?}");
}

fn process(script: &str) -> serde_json::Value {
    shell(script)["process"].clone()
}

fn execs() {
    let root = Rootfs::new();
    let mut c = create(&root, &spec(&["sleep", "1000"])).unwrap();
    c.sandbox.start().unwrap();
    let done = c
        .exec(process("echo $$ $PPID; hostname; ls /proc/self/fd | wc -l; cat /proc/1/cmdline; exit 3"))
        .unwrap();
    assert_eq!(done.status, ExitStatus::Exited(3));
    assert!(done.out.ends_with(" 0\ntesthost\n4\nsleep\u{0}1000\u{0}"), "{done:?}");
    let namespaces = "for n in mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done";
    let beside = c.exec(process(namespaces)).unwrap().out;
    let main = c.exec(process(&namespaces.replace("self", "1"))).unwrap().out;
    assert_eq!(beside, main);
    let groups = c.exec(process("cat /proc/self/cgroup | grep -v ':/$'; true")).unwrap().out;
    assert_eq!(groups, "", "in the container's own cgroups");
    let e = c.exec(spec(&["nonesuch"])["process"].clone()).unwrap_err();
    assert_eq!(e.exit_code(), 127);
    assert_eq!(c.exec(spec(&["/etc/passwd"])["process"].clone()).unwrap_err().exit_code(), 126);
    let caps = c.exec(process("grep CapEff /proc/self/status")).unwrap().out;
    assert_eq!(caps, "CapEff:\t00000000a80425fb\n");
    let mut tty = process("tty; stty size; test -t 0 && echo yes");
    tty["terminal"] = true.into();
    assert_eq!(c.exec(tty).unwrap().out, "/dev/pts/0\n25 81\nyes\n");
    // Our own PID namespace is what it was: a process made now is seen by us.
    assert!(std::process::Command::new("/bin/true").status().unwrap().success());
    c.sandbox.kill_all().unwrap();
    assert_eq!(c.finish().status, ExitStatus::Signaled(9));
}

fn has_a_terminal() {
    let root = Rootfs::new();
    let mut with =
        shell("tty; stty size; stat -c '%F' /dev/console; echo hello > /dev/console; echo hi > /dev/tty");
    with["process"]["terminal"] = true.into();
    let mut c = create(&root, &with).unwrap();
    let console = c.console.take().unwrap();
    c.sandbox.start().unwrap();
    assert_eq!(read_terminal(&console), "/dev/pts/0\n25 81\ncharacter special file\nhello\nhi\n");
    assert_eq!(c.finish().status, ExitStatus::Exited(0));
}

fn is_signalled_paused_and_killed() {
    let root = Rootfs::new();
    let mut c =
        create(&root, &shell("trap 'exit 42' TERM; echo x > /tmp/ready; while :; do sleep 0.05; done"))
            .unwrap();
    c.sandbox.start().unwrap();
    while !exists(&root.path("tmp/ready")) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    c.sandbox.pause().unwrap();
    c.sandbox.signal(15).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(120));
    assert!(!ended(c.sandbox.as_ref()));
    c.sandbox.resume().unwrap();
    let cgroup = c.cgroup.clone();
    assert_eq!(c.finish().status, ExitStatus::Exited(42));
    assert!(!exists(format!("/sys/fs/cgroup/memory{cgroup}").as_ref()));
}

fn ended(sandbox: &dyn Sandbox) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let fd = sandbox.pidfd();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec::default())).unwrap() > 0
}

fn has_an_init() {
    let root = Rootfs::new();
    let with = |script: &str| {
        let mut c = create_with(&root, &shell(script), true).unwrap();
        c.sandbox.start().unwrap();
        c
    };
    let done =
        with("echo $PPID; ls -l /proc/1/fd 2>&1 | grep -c 'denied'; readlink /proc/1/exe; exit 5").finish();
    assert_eq!(done.status, ExitStatus::Exited(5), "{done:?}");
    assert!(done.out.starts_with("1\n"), "{done:?}");
    let named = with("cat /proc/1/cmdline; cat /proc/1/comm").finish();
    assert!(named.out.starts_with("/sbin/dhow-init") && named.out.ends_with("dhow-init\n"), "{named:?}");
    assert!(!named.out.contains("container"), "{named:?}");
    assert!(!done.out.contains("container"), "our program's path is out of sight: {done:?}");
    let orphans = with("(sh -c 'sleep 0.1 & ' &); sleep 0.4; ps -o stat | grep -c '^Z'; true").finish();
    assert_eq!(orphans.out, "0\n", "{orphans:?}");
    let c = with("trap 'exit 9' USR1; echo x > /tmp/ready2; while :; do sleep 0.05; done");
    while !exists(&root.path("tmp/ready2")) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    c.sandbox.signal(10).unwrap();
    assert_eq!(c.finish().status, ExitStatus::Exited(9));
    let e = {
        let mut c = create_with(&root, &spec(&["nonesuch"]), true).map(|_| ()).unwrap_err();
        std::mem::replace(&mut c, HullError::Invalid(String::new()))
    };
    assert_eq!(e.exit_code(), 127);
}

fn binds_with_options() {
    let root = Rootfs::new();
    let source = root.outside("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("f"), "content").unwrap();
    let mut s = shell(
        "cat /data/f /etc/one; (echo x > /data/f) 2>&1 | grep -c Read-only; echo y > /rw/g; \
                       grep ' /data ' /proc/self/mountinfo | grep -c 'ro,nosuid,noexec'; touch /run/x && echo ran",
    );
    let mounts = s["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/data", "type": "bind", "source": source, "options": ["rbind", "rprivate", "ro", "nosuid", "noexec"]}));
    mounts.push(json!({"destination": "/rw", "source": source, "options": ["bind"]}));
    mounts.push(json!({"destination": "/etc/one", "type": "bind", "source": source.join("f"), "options": ["bind", "ro"]}));
    mounts.push(
        json!({"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "nosuid"]}),
    );
    let done = run(&root, &s).unwrap();
    assert_eq!(done.out, "contentcontent1\n1\nran\n", "{done:?}");
    assert_eq!(std::fs::read(source.join("g")).unwrap(), b"y\n");
    let mut bad = spec(&["true"]);
    bad["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/x", "source": "/nonexistent", "options": ["bind"]}));
    let e = run(&root, &bad).map(|o| format!("{o:?}")).unwrap_err().to_string();
    assert!(e.contains("/nonexistent"), "{e}");
}

fn has_a_readonly_root() {
    let root = Rootfs::new();
    let mut s = shell("(touch /etc/x) 2>&1 | grep -c Read-only; touch /dev/shm/x && pwd");
    s["root"]["readonly"] = true.into();
    s["process"]["cwd"] = "/made/for/it".into();
    let done = run(&root, &s).unwrap();
    assert_eq!(done.out, "1\n/made/for/it\n", "{done:?}");
    // The mount is read-only, not what lies under it.
    std::fs::write(root.path("etc/y"), "").unwrap();
}

fn shares_namespaces() {
    let root = Rootfs::new();
    let mut c = create(&root, &spec(&["sleep", "1000"])).unwrap();
    c.sandbox.start().unwrap();
    let pid = c.sandbox.pid();
    let mut s = shell(
        "hostname; readlink /proc/self/ns/net; readlink /proc/self/ns/pid; ps | grep -c '[s]leep 1000'",
    );
    s["linux"]["namespaces"] = json!([
        {"type": "mount"}, {"type": "cgroup"}, {"type": "ipc"},
        {"type": "pid", "path": format!("/proc/{pid}/ns/pid")},
        {"type": "network", "path": format!("/proc/{pid}/ns/net")},
        {"type": "uts", "path": format!("/proc/{pid}/ns/uts")}
    ]);
    let out = run(&root, &s).unwrap().out;
    let link = |n: &str| std::fs::read_link(format!("/proc/{pid}/ns/{n}")).unwrap().display().to_string();
    assert_eq!(out, format!("testhost\n{}\n{}\n1\n", link("net"), link("pid")));
    let mut host = shell("readlink /proc/self/ns/net; readlink /proc/self/ns/pid");
    host["linux"]["namespaces"] = json!([{"type": "mount"}]);
    host.as_object_mut().unwrap().remove("hostname");
    let ours = |n: &str| std::fs::read_link(format!("/proc/self/ns/{n}")).unwrap().display().to_string();
    assert_eq!(run(&root, &host).unwrap().out, format!("{}\n{}\n", ours("net"), ours("pid")));
    c.sandbox.destroy().unwrap();
}

fn lives_in_a_user_namespace() {
    let root = Rootfs::new();
    for entry in ["", "bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
        std::os::unix::fs::chown(root.path(entry), Some(100_000), Some(100_000)).unwrap();
    }
    let mut s = shell(
        "id -u; cat /proc/self/uid_map; echo x > /dev/null && stat -c %t:%T /dev/null; touch /tmp/made",
    );
    s["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    s["linux"]["uidMappings"] = map.clone();
    s["linux"]["gidMappings"] = map;
    let done = run(&root, &s).unwrap();
    assert_eq!(done.out, "0\n         0     100000      65536\n1:3\n", "{done:?}");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(root.path("tmp/made")).unwrap().uid(), 100_000);
}

fn sets_limits_and_sysctls() {
    let root = Rootfs::new();
    let mut s = shell(
        "ulimit -n; ulimit -c; cat /proc/sys/net/ipv4/ip_forward /proc/self/oom_score_adj /proc/sys/kernel/shm_rmid_forced; umask",
    );
    s["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
    s["process"]["oomScoreAdj"] = 1000.into();
    s["process"]["user"]["umask"] = 0o77.into();
    s["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"});
    let done = run(&root, &s).unwrap();
    assert_eq!(done.out, "100\n0\n1\n1000\n1\n0077\n", "{done:?}");
    s["linux"]["sysctl"] = json!({"kernel.core_pattern": "|/x"});
    assert!(run(&root, &s).is_err());
}

fn has_its_own_time() {
    let root = Rootfs::new();
    let mut s = shell("cat /proc/uptime");
    s["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
    s["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000_000}});
    match run(&root, &s) {
        Ok(done) => assert!(done.out.starts_with("10"), "{done:?}"),
        Err(e) => println!("skipped: no time namespaces here: {e}"),
    }
}

fn runs_hooks() {
    let root = Rootfs::new();
    let log = root.outside("log");
    let hook = |name: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("echo {name} $(cat) >> {}", log.display())]}]);
    let mut s = spec(&["true"]);
    s["hooks"] = json!({"createRuntime": hook("createRuntime"), "createContainer": hook("createContainer"),
        "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "echo here > /tmp/start"]}],
        "poststart": hook("poststart"), "poststop": hook("poststop")});
    run(&root, &s).unwrap();
    let said = std::fs::read_to_string(&log).unwrap();
    let order: Vec<&str> = said.lines().filter_map(|l| l.split(' ').next()).collect();
    assert_eq!(order, ["createRuntime", "createContainer", "poststart", "poststop"], "{said}");
    assert!(said.contains("\"status\":\"creating\"") && said.contains("\"pid\":"), "{said}");
    assert!(exists(&root.path("tmp/start")));
    s["hooks"] = json!({"createRuntime": [{"path": "/bin/false"}]});
    let e = run(&root, &s).map(|o| format!("{o:?}")).unwrap_err().to_string();
    assert!(e.contains("createRuntime hook /bin/false"), "{e}");
}

fn is_adopted() {
    use dhow_sandbox::hull::{AdoptRequest, Hull};
    let root = Rootfs::new();
    let s = shell("sleep 0.3; exit 6");
    let parsed: types::oci::Spec = serde_json::from_value(s.clone()).unwrap();
    let mut c = create(&root, &s).unwrap();
    c.sandbox.start().unwrap();
    let pid = c.sandbox.pid();
    let request = |start| AdoptRequest {
        id: "x",
        spec: &parsed,
        cgroup: &c.cgroup,
        run: std::path::Path::new("/nonexistent"),
        pid,
        pid_start: start,
    };
    let start = sys::host::start_time(pid).unwrap();
    assert!(dhow_sandbox::container::ContainerHull.adopt(request(start + 1)).is_err());
    let mut adopted = dhow_sandbox::container::ContainerHull.adopt(request(start)).unwrap();
    wait_readable(&adopted.pidfd());
    assert_eq!(c.sandbox.wait().unwrap(), ExitStatus::Exited(6));
    let told = adopted.wait().unwrap();
    assert!(matches!(told, ExitStatus::Exited(6) | ExitStatus::Unknown), "{told:?}");
    println!("an adopted process ended with {told:?}");
    adopted.destroy().unwrap();
    adopted.destroy().unwrap();
}

fn sees_its_own_cgroup() {
    let root = Rootfs::new();
    let out = sh(&root, "ls /sys/fs/cgroup; grep cgroup /proc/self/mountinfo; cat /proc/self/cgroup");
    assert!(!out.contains("dhow-test"), "the host's paths do not show: {out}");
    assert!(out.contains("memory") || out.contains("cgroup.procs"), "{out}");
}
