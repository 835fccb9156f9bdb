//! One contract, both hulls: the same image behaves the same as a container and as a microVM.

use dhow_tests::traces::{hypervisors, kill, until};
use dhow_tests::{Store, vm};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// The flag of each hull.
const HULLS: [&[&str]; 2] = [&["--isolation", "container"], &["--vm"]];

fn run(store: &Store, hull: &[&str], flags: &[&str], command: &[&str]) -> std::process::Output {
    store.out(&[&["run"], hull, flags, &["busybox"], command].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What the host says of emulation is not the workload's.
fn errors(out: &std::process::Output) -> String {
    text(&out.stderr)
        .lines()
        .filter(|l| !l.starts_with("dhow: no hardware"))
        .map(|l| format!("{l}\n"))
        .collect()
}

fn get(address: &str) -> String {
    let begin = Instant::now();
    loop {
        let got = TcpStream::connect(address).and_then(|mut s| {
            s.set_read_timeout(Some(Duration::from_secs(5)))?;
            s.write_all(b"GET /passwd HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            s.read_to_string(&mut text)?;
            Ok(text)
        });
        match got {
            Ok(text) if text.contains("root:x:0") => return text,
            other => assert!(begin.elapsed() < Duration::from_secs(60), "{address}: {other:?}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_process_finds_the_same_world_and_its_end_is_told() {
    let Some(store) = vm::store() else { return };
    let script = "id; pwd; echo $A $HOME; hostname; ulimit -n; grep -E '^(Cap|Seccomp:|NoNew)' /proc/self/status; \
                  cat /etc/hostname /proc/1/comm; ls -la /data; cat /data/seed; stat -c '%a %U' /tmp /etc/passwd; \
                  ls /dev | grep -v -e core -e mqueue; echo made > /etc/new && cat /etc/new; \
                  echo wrong >&2; exit 7";
    let flags = [
        "--rm",
        "-e",
        "A=b",
        "-w",
        "/tmp",
        "-u",
        "user",
        "--group-add",
        "extra",
        "--hostname",
        "ship",
        "--ulimit",
        "nofile=77:99",
        "--cap-drop",
        "CHOWN",
        "--security-opt",
        "no-new-privileges",
    ];
    let [container, vm] = HULLS.map(|hull| run(&store, hull, &flags, &["sh", "-c", script]));
    // The user may not write to /etc, in either.
    assert_eq!(text(&container.stdout), text(&vm.stdout));
    assert_eq!(errors(&container), errors(&vm));
    assert_eq!((container.status.code(), vm.status.code()), (Some(7), Some(7)));
    assert!(text(&vm.stdout).contains("uid=1000(user) gid=1000(user) groups=2000(extra)"));
    assert!(text(&vm.stdout).contains("\n/tmp\nb /home/user\nship\n77\n"), "{}", text(&vm.stdout));

    // But for its kernel.
    let [container, vm] = HULLS.map(|hull| {
        let out = run(&store, hull, &["--rm"], &["sh", "-c", "uname -r; sh -c 'kill -9 $$'; exit $?"]);
        (text(&out.stdout), out.status.code())
    });
    assert_ne!(container.0, vm.0, "a microVM has a kernel of its own");
    assert_eq!((container.1, vm.1), (Some(137), Some(137)));
}

#[test]
fn a_command_that_cannot_be_executed_is_told_as_such() {
    let Some(store) = vm::store() else { return };
    for (command, code) in [("nosuch", 127), ("/etc/passwd", 126)] {
        let [container, vm] = HULLS.map(|hull| {
            let out = run(&store, hull, &["--rm"], &[command]);
            (errors(&out), out.status.code())
        });
        assert_eq!(container, vm);
        assert_eq!(vm.1, Some(code), "{}", vm.0);
    }
}

#[test]
fn input_and_output_pass_whole() {
    let Some(store) = vm::store() else { return };
    let data: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for hull in HULLS {
        let args = [&["run"], hull, &["--rm", "-i", "busybox", "sh", "-c", "cat; echo end >&2"]].concat();
        let mut child = store
            .command(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut stdin, sent) = (child.stdin.take().unwrap(), data.clone());
        let feeder = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
        let out = child.wait_with_output().unwrap();
        feeder.join().unwrap();
        assert!(out.status.success(), "{}", errors(&out));
        assert!(out.stdout == data, "{hull:?}: {} of {} bytes", out.stdout.len(), data.len());
        assert_eq!(errors(&out), "end\n");
    }
}

#[test]
fn a_server_is_reached_looked_at_stopped_and_started_again() {
    let Some(store) = vm::store() else { return };
    for (hull, name) in HULLS.iter().zip(["boxed", "walled"]) {
        let flags = ["-d", "--name", name, "-p", "127.0.0.1::80", "-m", "128m", "--stop-timeout", "1"];
        let serve = ["sh", "-c", "echo up; exec httpd -f -p 80 -h /etc"];
        let out = run(&store, hull, &flags, &serve);
        assert!(out.status.success(), "{}", errors(&out));
        let address = store.ok(&["port", name, "80"]);
        get(&address);

        let exec = store.out(&[
            "exec",
            "-u",
            "user",
            "-e",
            "X=y",
            "-w",
            "/data",
            name,
            "sh",
            "-c",
            "id -un; echo $X; exit 3",
        ]);
        assert_eq!(
            (text(&exec.stdout), exec.status.code()),
            ("user\ny\n".into(), Some(3)),
            "{}",
            errors(&exec)
        );
        assert_eq!(store.out(&["exec", name, "nosuch"]).status.code(), Some(127));
        let note = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(note.path(), "kept\n").unwrap();
        store.ok(&["cp", note.path().to_str().unwrap(), &format!("{name}:/data/note")]);
        store.ok(&["exec", name, "sync"]);
        let pids = store.ok(&["stats", "--no-stream", "--format", "{{.PIDs}}", name]);
        assert_eq!(pids, "1");

        store.ok(&["pause", name]);
        assert_eq!(store.ok(&["inspect", "-f", "{{.State.Status}}", name]), "paused");
        store.ok(&["unpause", name]);
        get(&address);
        assert_eq!(store.ok(&["logs", name]), "up");

        // The supervisor's death is nothing to it.
        let supervisor = rustix::process::Pid::from_raw(store.supervisor(name)).unwrap();
        rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
        get(&address);
        assert_eq!(store.ok(&["exec", name, "cat", "/data/note"]), "kept");

        // As PID 1 without a handler, httpd does not hear SIGTERM.
        store.ok(&["stop", name]);
        let state = store.ok(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name]);
        assert_eq!(state, "exited 137", "{name}");
        store.ok(&["start", name]);
        get(&store.ok(&["port", name, "80"]));
        assert_eq!(store.ok(&["exec", name, "cat", "/data/note"]), "kept", "its disk lasts");
        store.ok(&["rm", "-f", name]);
    }
    assert_eq!(store.ok(&["ps", "-aq"]), "");
}

#[test]
fn both_hulls_talk_to_each_other_on_one_network() {
    let Some(store) = vm::store() else { return };
    let mut addresses = Vec::new();
    for (hull, name) in HULLS.iter().zip(["boxed", "walled"]) {
        let out = run(&store, hull, &["-d", "--name", name], &["httpd", "-f", "-p", "80", "-h", "/etc"]);
        assert!(out.status.success(), "{}", errors(&out));
        addresses.push(store.ok(&["inspect", "-f", "{{.NetworkSettings.Networks.bridge.IPAddress}}", name]));
    }
    let begin = Instant::now();
    for (name, address) in [("boxed", &addresses[1]), ("walled", &addresses[0])] {
        let url = format!("http://{address}/passwd");
        // The server may be a moment behind the start of its machine.
        while !text(&store.out(&["exec", name, "wget", "-qO-", &url]).stdout).contains("root:x:0") {
            assert!(begin.elapsed() < Duration::from_secs(60), "{name} does not reach {address}");
        }
    }
}

#[test]
fn a_full_disk_is_the_workloads_own() {
    let Some(store) = vm::store() else { return };
    let script = "dd if=/dev/zero of=/fill bs=1M count=200; df / | tail -1; rm /fill && echo room > /note && cat /note";
    let out =
        run(&store, HULLS[1], &["--rm", "--disk-size", "64m", "--read-only=false"], &["sh", "-c", script]);
    assert!(errors(&out).contains("No space left on device"), "{}", errors(&out));
    assert!(text(&out.stdout).ends_with("room\n"), "{}", text(&out.stdout));
    let out = run(
        &store,
        HULLS[1],
        &["--rm", "--read-only", "--network", "none"],
        &["sh", "-c", "touch /x; ls /sys/class/net"],
    );
    assert!(errors(&out).contains("Read-only file system"), "{}", errors(&out));
    assert!(!text(&out.stdout).contains("eth0"), "{}", text(&out.stdout));
}

/// The process that carries the store's only machine, QEMU or our own.
fn hypervisor(store: &Store) -> i32 {
    let found = hypervisors(store);
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].pid
}

#[test]
fn a_machine_that_is_killed_has_ended_and_leaves_nothing() {
    let Some(store) = vm::store() else { return };
    // With all that a machine can be given: a disk, a directory of the host's, a network while it runs.
    store.ok(&["volume", "create", "-d", "disk", "-o", "size=32m", "db"]);
    store.ok(&["network", "create", "late"]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("word"), "from the host\n").unwrap();
    let bind = format!("{}:/shared", dir.path().display());
    let flags = ["-d", "--name", "victim", "-v", "db:/data", "-v", &bind];
    let out = run(&store, HULLS[1], &flags, &["sleep", "1000"]);
    assert!(out.status.success(), "{}", errors(&out));
    let peer = ["-d", "--name", "peer", "--network", "late"];
    let out = run(&store, HULLS[0], &peer, &["httpd", "-f", "-p", "80", "-h", "/etc"]);
    assert!(out.status.success(), "{}", errors(&out));
    store.ok(&["network", "connect", "late", "victim"]);
    let address = store.ok(&["inspect", "-f", "{{.NetworkSettings.Networks.late.IPAddress}}", "peer"]);
    let url = format!("http://{address}/passwd");
    let script = "echo synced | dd of=/data/f conv=fsync; cat /shared/word; echo from inside > /shared/said; \
                  exec timeout 20 wget -qO- $0";
    let said = store.ok(&["exec", "victim", "sh", "-c", script, &url]);
    assert!(said.starts_with("from the host\n") && said.contains("root:x:0"), "{said}");
    assert_eq!(std::fs::read(dir.path().join("said")).unwrap(), b"from inside\n");

    let pid = || -> i32 { store.ok(&["inspect", "-f", "{{.State.Pid}}", "victim"]).parse().unwrap() };
    kill(hypervisor(&store));
    assert_eq!(store.ok(&["wait", "victim"]), "255");
    assert_eq!(store.ok(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "victim"]), "exited 255");
    let why = store.ok(&["inspect", "-f", "{{.State.Error}}", "victim"]);
    assert!(why.contains("the microVM ended before it told") && why.contains("137"), "{why}");
    // What it had synced is there, and so are its networks, until it leaves them.
    store.ok(&["start", "victim"]);
    let again =
        ["exec", "victim", "sh", "-c", "cat /data/f /shared/said; exec timeout 20 wget -qO- $0", &url];
    let said = store.ok(&again);
    assert!(said.starts_with("synced\nfrom inside\n") && said.contains("root:x:0"), "{said}");
    store.ok(&["network", "disconnect", "late", "victim"]);
    assert!(!store.out(&again).status.success(), "it is on the network still");
    // And the monitor: then its machine goes with it.
    let machine = hypervisor(&store);
    kill(pid());
    assert_eq!(store.ok(&["wait", "victim"]), "137");
    // A zombie has no command line any more.
    until("the end of the machine", || {
        !std::fs::read(format!("/proc/{machine}/cmdline")).is_ok_and(|line| !line.is_empty())
    });
    store.ok(&["rm", "-f", "victim", "peer"]);
    store.ok(&["volume", "rm", "db"]);
    store.ok(&["network", "rm", "late"]);
}

#[test]
fn a_boot_is_ended_by_whoever_wants_it_no_more() {
    let Some(store) = vm::store() else { return };
    for verb in [&["stop"][..], &["kill"], &["rm", "-f"]] {
        let args = ["run", "--vm", "--name", "booting", "busybox", "sleep", "1000"];
        let run = store.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until("its machine", || !hypervisors(&store).is_empty());
        store.ok(&[verb, &["booting"]].concat());
        let out = run.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(137), "{verb:?}: {}", errors(&out));
        assert!(errors(&out).contains("was stopped before its workload had started"), "{}", errors(&out));
        assert_eq!(hypervisors(&store).len(), 0, "{verb:?}");
        if verb != ["rm", "-f"] {
            let state = "{{.State.Status}} {{.State.ExitCode}}";
            assert_eq!(store.ok(&["inspect", "-f", state, "booting"]), "exited 137");
            store.ok(&["rm", "booting"]);
        }
    }
    assert_eq!(store.ok(&["ps", "-aq"]), "");
}

#[test]
fn what_a_microvm_cannot_have_is_refused_in_one_sentence() {
    let Some(store) = vm::store() else { return };
    let refused = |flags: &[&str], said: &str| {
        let out = run(&store, HULLS[1], flags, &["true"]);
        let text = errors(&out);
        assert!(out.status.code() == Some(125) && text.contains(said), "{flags:?}: {:?} {text}", out.status);
    };
    refused(&["--network", "host"], "--network host is not for microVMs");
    refused(&["--pid", "host"], "--pid host is not for microVMs");
    refused(&["--device", "/dev/null"], "--device is not for microVMs");
    refused(&["-m", "16m"], "at least 48 MiB");
    refused(&["-m", "48m"], "give it more with --memory");
    refused(&["--disk-size", "1k"], "16 MiB to 16 TiB");
    refused(&["--disk-size", "much"], "invalid disk size");
    refused(&["--kernel", "nosuch"], "no such kernel: nosuch");
    refused(&["--hypervisor", "xen"], "invalid hypervisor");
    let out = store.out(&["run", "--disk-size", "1g", "busybox", "true"]);
    assert!(errors(&out).contains("give --vm as well"), "{}", errors(&out));
    let out = store.out(&["kernel", "import", "/etc/passwd"]);
    assert!(errors(&out).contains("/etc/passwd is no kernel"), "{}", errors(&out));
    store.ok(&["ps", "-aq"]).lines().for_each(|id| drop(store.ok(&["rm", id])));

    let bare = dhow_tests::busybox::store().unwrap();
    let out = bare.out(&["run", "--vm", "busybox", "true"]);
    assert!(errors(&out).contains("run dhow kernel install"), "{}", errors(&out));
}

/// Where the CPU has no virtualisation, QEMU carried the microVMs of the tests above. Here our own VMM carries those of some.
#[test]
fn our_own_vmm_keeps_the_contract_on_an_emulated_host() {
    vm::pass_on_emulated_host(&[
        "a_process_finds_the_same_world_and_its_end_is_told",
        "a_command_that_cannot_be_executed_is_told_as_such",
        "input_and_output_pass_whole",
        "a_server_is_reached_looked_at_stopped_and_started_again",
        "both_hulls_talk_to_each_other_on_one_network",
        "a_machine_that_is_killed_has_ended_and_leaves_nothing",
        "a_boot_is_ended_by_whoever_wants_it_no_more",
    ]);
}
