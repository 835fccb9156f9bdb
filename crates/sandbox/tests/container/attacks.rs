//! What has been tried against container runtimes, tried against this one. Each test names its CVE.

use crate::support::*;
use dhow_sandbox::hull::ExitStatus;
use serde_json::json;
use std::os::unix::fs::symlink;

pub const TESTS: &[(&str, fn())] = &[
    ("cve_2019_5736_our_program_is_out_of_reach", cve_2019_5736),
    ("cve_2021_30465_mount_targets_stay_inside", cve_2021_30465),
    ("cve_2022_0492_no_release_agent", cve_2022_0492),
    ("cve_2024_21626_no_descriptor_and_no_way_out_by_cwd", cve_2024_21626),
    ("cve_2025_31133_masks_are_the_null_device", cve_2025_31133),
    ("cve_2025_52565_console_is_a_terminal", cve_2025_52565),
    ("cve_2025_52881_proc_is_procfs", cve_2025_52881),
    ("workdirs_and_links_stay_inside", workdirs_and_links_stay_inside),
    ("the_host_is_not_behind_pid_1", the_host_is_not_behind_pid_1),
    ("exec_never_has_more_than_the_workload", exec_never_has_more_than_the_workload),
    ("a_container_that_stops_what_comes_stops_nobody", a_container_that_stops_what_comes_stops_nobody),
];

/// The workload must not get at the program that started it: neither by /proc/self/exe as an entry point nor by the
/// init's, nor by exec.
fn cve_2019_5736() {
    let root = Rootfs::new();
    symlink("/proc/self/exe", root.path("bin/evil")).unwrap();
    // The command is looked up and resolved by a process of ours: what it finds must be inside. Executing our own
    // image would run this test program.
    let done = run(&root, &spec(&["/bin/evil", "--list"]));
    if let Ok(done) = done {
        assert!(!done.out.contains("test "), "our program ran inside: {done:?}");
    }
    let sealed = sys::exe::self_exe_sealed().unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&sealed));
    assert!(std::fs::OpenOptions::new().write(true).open(path).is_err());
    let mut c = create_with(&root, &spec(&["sleep", "1000"]), true).unwrap();
    c.sandbox.start().unwrap();
    let peek = shell(
        "cat /proc/1/exe > /tmp/stolen; echo $?; (echo x > /proc/1/exe) 2>&1; ls /proc/1/fd 2>&1",
    )["process"]
        .clone();
    let said = c.exec(peek).unwrap().out;
    assert!(said.starts_with("cat: can't open '/proc/1/exe': Permission denied\n1\n"), "{said}");
    c.sandbox.destroy().unwrap();
}

/// A mount target that is (or becomes) a link to the host's tree.
fn cve_2021_30465() {
    let root = Rootfs::new();
    let secret = root.outside("secret");
    std::fs::create_dir(&secret).unwrap();
    let source = root.outside("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("marker"), "m").unwrap();
    symlink(&secret, root.path("target")).unwrap();
    symlink("../../../../../../../../../../..", root.path("up")).unwrap();
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut s = shell("cat /target/marker");
    let mounts = s["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/target", "type": "bind", "source": source, "options": ["bind"]}));
    mounts.push(json!({"destination": "/up/etc/new/file", "type": "bind", "source": source.join("marker"), "options": ["bind"]}));
    let done = run(&root, &s).unwrap();
    assert_eq!(done.out, "m", "{done:?}");
    assert!(!exists(&secret.join("marker")));
    assert!(!exists("/etc/new".as_ref()));
    assert!(exists(&root.path("etc/new/file")));
    assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
}

fn cve_2022_0492() {
    let root = Rootfs::new();
    let done = run(
        &root,
        &shell(
            "find=$(ls -R /sys/fs/cgroup | grep -c release_agent); echo $find; mkdir -p /tmp/c; \
             mount -t cgroup -o memory c /tmp/c 2>/dev/null && echo mounted; mount -t tmpfs t /tmp/c 2>/dev/null && echo mounted; \
             unshare -m true 2>/dev/null && echo unshared; true",
        ),
    )
    .unwrap();
    assert_eq!(done.out, "0\n", "{done:?}");
}

/// Our descriptors and a working directory that is one of them.
fn cve_2024_21626() {
    let root = Rootfs::new();
    let keep_open = std::fs::File::open("/etc").unwrap();
    rustix::io::fcntl_setfd(&keep_open, rustix::io::FdFlags::empty()).unwrap();
    for fd in 3..20 {
        let mut s = shell("pwd; ls /proc/self/fd; ls ../../../../etc/shadow 2>/dev/null");
        s["process"]["cwd"] = format!("/proc/self/fd/{fd}").into();
        match run(&root, &s) {
            Err(e) => assert_eq!(e.exit_code(), 125, "{e}"),
            Ok(done) => panic!("cwd {fd}: {done:?}"),
        }
    }
    symlink("/proc/self/fd/9", root.path("cwd")).unwrap();
    let mut s = spec(&["pwd"]);
    s["process"]["cwd"] = "/cwd".into();
    assert!(run(&root, &s).is_err());
    assert_eq!(sh(&root, "ls /proc/self/fd | wc -l").trim(), "4");
    let mut c = create(&root, &spec(&["sleep", "1000"])).unwrap();
    c.sandbox.start().unwrap();
    for fd in 3..20 {
        let mut p = shell("pwd; ls ../../etc/shadow")["process"].clone();
        p["cwd"] = format!("/proc/self/fd/{fd}").into();
        assert!(c.exec(p).is_err(), "cwd {fd}");
    }
    c.sandbox.destroy().unwrap();
}

/// The image's /dev/null must not be what masked paths are bound from.
fn cve_2025_31133() {
    let root = Rootfs::new();
    symlink("/proc/sys/kernel/core_pattern", root.path("dev/null")).unwrap();
    let mut s = shell("stat -c '%F %t:%T' /proc/keys /dev/null");
    // Without a tmpfs on /dev the image's own /dev is there.
    s["mounts"].as_array_mut().unwrap().retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
    let done = run(&root, &s).unwrap();
    let want = "character special file 1:3\ncharacter special file 1:3\n";
    assert_eq!(done.out, want, "{done:?}");
}

fn cve_2025_52565() {
    let root = Rootfs::new();
    symlink("/proc/sys/kernel", root.path("dev/console")).unwrap();
    let mut s = shell("stat -c '%F' /dev/console");
    s["process"]["terminal"] = true.into();
    s["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] != "/dev");
    let e = run(&root, &s).map(|o| format!("{o:?}")).unwrap_err().to_string();
    assert!(e.contains("/dev/console"), "{e}");
    // A /dev/pts that is no devpts.
    let mut s = shell("true");
    s["process"]["terminal"] = true.into();
    s["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] != "/dev/pts");
    assert!(run(&root, &s).is_err());
}

/// /proc as a link, and something else on /proc.
fn cve_2025_52881() {
    let root = Rootfs::new();
    std::fs::remove_dir(root.path("proc")).unwrap();
    std::fs::create_dir(root.path("fake")).unwrap();
    symlink("/fake", root.path("proc")).unwrap();
    let e = run(&root, &spec(&["true"])).map(|o| format!("{o:?}")).unwrap_err().to_string();
    assert!(e.contains("/proc"), "{e}");
    let root = Rootfs::new();
    let mut s = spec(&["true"]);
    s["mounts"][0] = json!({"destination": "/proc", "type": "tmpfs", "source": "tmpfs", "options": []});
    std::fs::write(root.path("proc/kcore"), "").unwrap();
    let mut bound = s.clone();
    bound["mounts"][0] =
        json!({"destination": "/proc", "type": "bind", "source": root.path("proc"), "options": ["bind"]});
    let e = run(&root, &bound).map(|o| format!("{o:?}")).unwrap_err().to_string();
    assert!(e.contains("procfs"), "{e}");
}

fn workdirs_and_links_stay_inside() {
    let root = Rootfs::new();
    let outside = root.outside("victim");
    std::fs::create_dir(&outside).unwrap();
    symlink(&outside, root.path("work")).unwrap();
    symlink("/../../../../../tmp", root.path("up")).unwrap();
    let mut s = spec(&["pwd"]);
    s["process"]["cwd"] = "/work/new".into();
    let done = run(&root, &s);
    assert!(!exists(&outside.join("new")));
    if let Ok(done) = done {
        assert_eq!(done.status, ExitStatus::Exited(0));
    }
    s["process"]["cwd"] = "/up/made".into();
    assert_eq!(run(&root, &s).unwrap().out, "/tmp/made\n");
    assert!(exists(&root.path("tmp/made")));
}

fn the_host_is_not_behind_pid_1() {
    let root = Rootfs::new();
    let out = sh(
        &root,
        "ls /proc/1/root/ | grep -c -E '^(home|usr|var|work)$'; ls /proc/1/root/../../.. | grep -c '^usr$'; true",
    );
    assert_eq!(out, "0\n0\n");
    let out = sh(&root, "chroot /proc/1/root/.. /bin/sh -c 'ls /' | grep -c '^usr$'; true");
    assert_eq!(out, "0\n");
}

/// A process in sight of the container must not have, for a moment, what CAP_SYS_PTRACE could take over. Watched by a
/// process of ours: what it reads of a process whose command is not executed yet holds for every exec.
fn exec_never_has_more_than_the_workload() {
    let root = Rootfs::new();
    let mut c = create(&root, &spec(&["sleep", "1000"])).unwrap();
    c.sandbox.start().unwrap();
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let me = std::process::id();
    let watcher = sys::clone::spawn(0, None, || {
        loop {
            let children =
                std::fs::read_to_string(format!("/proc/{me}/task/{me}/children")).unwrap_or_default();
            for pid in children.split_whitespace() {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
                let inside = field("NSpid:").is_some_and(|pids| pids.split_whitespace().count() > 1);
                let seen = (field("CapPrm:"), field("Seccomp:"));
                if inside && seen != (Some("00000000a80425fb"), Some("2")) {
                    let _ = rustix::io::write(&write, format!("{seen:?}\n").as_bytes());
                }
            }
        }
    })
    .unwrap();
    drop(write);
    for _ in 0..200 {
        c.exec(spec(&["true"])["process"].clone()).unwrap();
    }
    sys::process::pidfd_signal(&watcher.pidfd, 9).unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut std::fs::File::from(read), &mut said).unwrap();
    wait_readable(&watcher.pidfd);
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    waitid(WaitId::PidFd(std::os::fd::AsFd::as_fd(&watcher.pidfd)), WaitIdOptions::EXITED).unwrap();
    assert_eq!(said, "");
    // A policy that forbids to make processes is kept too, and still lets commands in.
    let mut own = spec(&["sleep", "1000"]);
    own["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["clone", "clone3", "fork", "vfork"], "action": "SCMP_ACT_ERRNO"}]});
    let mut strict = create(&root, &own).unwrap();
    strict.sandbox.start().unwrap();
    let said = strict
        .exec(shell("read -r x < /proc/1/comm; echo $x; (true) || echo no")["process"].clone())
        .unwrap();
    assert!(said.out.starts_with("sleep\n") && said.status != ExitStatus::Exited(0), "{said:?}");
    strict.sandbox.destroy().unwrap();
    c.sandbox.destroy().unwrap();
}

/// SIGSTOP to whatever appears: neither exec nor who joins the PID namespace may wait for its end.
fn a_container_that_stops_what_comes_stops_nobody() {
    let root = Rootfs::new();
    let mut c = create(&root, &shell("while :; do kill -STOP -1; done 2>/dev/null")).unwrap();
    c.sandbox.start().unwrap();
    let process = serde_json::from_value(spec(&["true"])["process"].clone()).unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let stdio = [std::os::fd::AsFd::as_fd(&null); 3];
    let mut refused = 0;
    for _ in 0..10 {
        let begin = std::time::Instant::now();
        let request =
            dhow_sandbox::hull::ExecRequest { id: "exec", process: &process, stdio, console_size: None };
        match c.sandbox.exec(request) {
            Err(e) => {
                assert!(e.to_string().contains("stopped by a process of the container"), "{e}");
                refused += 1;
            }
            Ok(child) => {
                use rustix::process::{WaitId, WaitIdOptions, waitid};
                sys::process::pidfd_signal(&child.pidfd, 9).unwrap();
                let pidfd = std::os::fd::AsFd::as_fd(&child.pidfd);
                waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED).unwrap();
            }
        }
        assert!(begin.elapsed().as_secs_f64() < 2.0, "{:?}", begin.elapsed());
    }
    assert!(refused > 0, "no attempt was caught");
    let mut joins = spec(&["true"]);
    let path = format!("/proc/{}/ns/pid", c.sandbox.pid());
    joins["linux"]["namespaces"][1] = json!({"type": "pid", "path": path});
    let begin = std::time::Instant::now();
    let e = run(&root, &joins).map(|done| format!("{done:?}")).unwrap_err();
    assert!(e.to_string().contains("stopped by a process of the container"), "{e}");
    assert!(begin.elapsed().as_secs_f64() < 2.0, "{:?}", begin.elapsed());
    c.sandbox.destroy().unwrap();
}
