//! `run`: exit codes, streams, and what the flags change inside.

use dhow_tests::{Store, busybox};
use std::io::Write;
use std::process::{Output, Stdio};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

/// `run --rm busybox sh -c SCRIPT` with flags; what it prints.
fn sh(store: &Store, flags: &[&str], script: &str) -> String {
    let mut args = vec!["run", "--rm"];
    args.extend(flags);
    args.extend(["busybox", "sh", "-c", script]);
    store.ok(&args)
}

fn fails(store: &Store, args: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } = store.out(args);
    let said = text(&stderr);
    assert!(!said.contains("panicked"), "{said}");
    (status.code().unwrap(), said)
}

#[test]
fn exit_codes_are_dockers() {
    let Some(store) = busybox::store() else { return };
    for (script, want) in [("exit 0", 0), ("exit 7", 7), ("sh -c 'kill -9 $$'; exit $?", 137)] {
        let code = store.out(&["run", "--rm", "busybox", "sh", "-c", script]).status.code();
        assert_eq!(code, Some(want), "{script}");
    }
    assert_eq!(fails(&store, &["run", "--rm", "busybox", "no-such-command"]).0, 127);
    assert_eq!(fails(&store, &["run", "--rm", "busybox", "/etc/passwd"]).0, 126);
    assert_eq!(fails(&store, &["run", "--rm", "--no-such-flag", "busybox"]).0, 125);
    let (code, said) = fails(&store, &["run", "--rm", "--pull", "never", "no-such-image"]);
    assert_eq!((code, said.contains("no-such-image")), (125, true), "{said}");
    assert_eq!(store.ok(&["ps", "-aq"]), "", "something half-made remains");
}

#[test]
fn streams_are_kept_apart_and_whole() {
    let Some(store) = busybox::store() else { return };
    let out = store.out(&["run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((text(&out.stdout).as_str(), text(&out.stderr).as_str()), ("out", "err"));
    let mut cat = store
        .command(&["run", "-i", "--rm", "busybox", "md5sum"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = cat.stdin.take().unwrap();
    let block: Vec<u8> = (0..1u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for _ in 0..20 {
        stdin.write_all(&block).unwrap();
    }
    drop(stdin);
    let sum = text(&cat.wait_with_output().unwrap().stdout);
    let twice = sh(&store, &[], "true");
    assert_eq!(twice, "");
    assert_eq!(sum.split(' ').next().map(str::len), Some(32), "{sum}");
    let big =
        store.out(&["run", "--rm", "busybox", "sh", "-c", "dd if=/dev/zero bs=1M count=64 2>/dev/null"]);
    assert_eq!(big.stdout.len(), 64 << 20);
}

/// Many programs read and write these by name, often after the input has ended already.
#[test]
fn standard_streams_have_names() {
    let Some(store) = busybox::store() else { return };
    for user in ["0", "1000"] {
        let script = "sleep 0.1; cat /dev/stdin; echo named > /dev/stdout; echo wrong > /dev/stderr";
        // By timeout(1): were the end of the input lost, this would never return.
        let mut run = std::process::Command::new("timeout")
            .args(["-s", "KILL", "30"])
            .arg(dhow_tests::program())
            .args(["run", "-i", "--rm", "--network", "none", "-u", user, "busybox", "sh", "-c", script])
            .env("DHOW_ROOT", store.root())
            .env("DHOW_RUN", store.run())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        run.stdin.take().unwrap().write_all(b"fed\n").unwrap();
        let out = run.wait_with_output().unwrap();
        assert_eq!(
            (text(&out.stdout).as_str(), text(&out.stderr).as_str()),
            ("fed\nnamed", "wrong"),
            "{user}"
        );
    }
}

#[test]
fn a_terminal_is_one() {
    let Some(store) = busybox::store() else { return };
    let out =
        store.ok(&["run", "--rm", "-t", "busybox", "sh", "-c", "test -t 0 && test -t 1 && tty; echo $TERM"]);
    assert_eq!(out.replace('\r', ""), "/dev/pts/0\nxterm");
}

#[test]
fn environment_user_directory_and_names() {
    let Some(store) = busybox::store() else { return };
    assert_eq!(sh(&store, &["-e", "A=1", "-e", "B=x y"], "echo $A,$B"), "1,x y");
    let file = store.root().with_file_name("env");
    std::fs::write(&file, "# comment\nC=3\nD=a=b\n").unwrap();
    assert_eq!(sh(&store, &["--env-file", file.to_str().unwrap()], "echo $C,$D"), "3,a=b");
    assert_eq!(sh(&store, &["-w", "/made/here"], "pwd"), "/made/here");
    assert_eq!(sh(&store, &["-u", "user"], "id; echo $HOME"), "uid=1000(user) gid=1000(user)\n/home/user");
    assert_eq!(sh(&store, &["-u", "1000:2000"], "id -u; id -g"), "1000\n2000");
    assert_eq!(sh(&store, &["-u", "user", "--group-add", "extra"], "id -G"), "1000 2000");
    let (code, said) = fails(&store, &["run", "--rm", "-u", "nobody-here", "busybox", "true"]);
    assert_eq!((code, said.contains("nobody-here")), (125, true), "{said}");
    assert_eq!(
        sh(&store, &["--hostname", "ship", "--add-host", "port:10.9.8.7"], "hostname; grep port /etc/hosts"),
        "ship\n10.9.8.7\tport"
    );
    assert_eq!(
        sh(&store, &["--dns", "9.9.9.9", "--dns-search", "a.b"], "cat /etc/resolv.conf"),
        "nameserver 9.9.9.9\nsearch a.b"
    );
    assert_eq!(store.ok(&["run", "--rm", "--entrypoint", "echo", "busybox", "hi"]), "hi");
}

#[test]
fn files_from_outside() {
    let Some(store) = busybox::store() else { return };
    let dir = store.root().with_file_name("share");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("f"), "host").unwrap();
    let bind = format!("{}:/mnt", dir.display());
    assert_eq!(sh(&store, &["-v", &bind], "cat /mnt/f; echo inside > /mnt/g"), "host");
    assert_eq!(std::fs::read_to_string(dir.join("g")).unwrap(), "inside\n");
    let read_only = format!("{bind}:ro");
    assert_eq!(sh(&store, &["-v", &read_only], "touch /mnt/x 2>/dev/null || echo refused"), "refused");
    let one = format!("{}:/etc/motd", dir.join("f").display());
    assert_eq!(sh(&store, &["-v", &one], "cat /etc/motd"), "host");
    assert_eq!(
        sh(
            &store,
            &["--tmpfs", "/scratch:size=1m"],
            "df -m /scratch | tail -n 1 | tr -s ' ' | cut -d' ' -f2"
        ),
        "1"
    );
    assert_eq!(
        sh(
            &store,
            &["--read-only", "--tmpfs", "/tmp"],
            "touch /tmp/x && touch /x 2>/dev/null || echo refused"
        ),
        "refused"
    );
    assert_eq!(sh(&store, &["-v", "/data"], "cat /data/seed; stat -c %a /data"), "from the image\n750");
    let missing = format!("type=bind,src={}/none,dst=/mnt", dir.display());
    let (code, said) = fails(&store, &["run", "--rm", "--mount", &missing, "busybox", "true"]);
    assert_eq!((code, said.contains("does not exist")), (125, true), "{said}");
    let own = format!("{}:/mnt", store.root().display());
    let (code, said) = fails(&store, &["run", "--rm", "-v", &own, "busybox", "true"]);
    assert_eq!((code, said.contains("own state")), (125, true), "{said}");
}

#[test]
fn anonymous_volumes_go_with_rm_and_named_ones_stay() {
    let Some(store) = busybox::store() else { return };
    sh(&store, &["-v", "/data", "-v", "keep:/keep"], "echo x > /keep/f");
    assert_eq!(store.ok(&["volume", "ls", "-q"]), "keep");
    assert_eq!(sh(&store, &["-v", "keep:/k"], "cat /k/f"), "x");
    store.ok(&["create", "--name", "holder", "-v", "keep:/k", "busybox", "true"]);
    assert_eq!(
        sh(&store, &["--volumes-from", "holder:ro"], "cat /k/f; touch /k/g 2>/dev/null || echo refused"),
        "x\nrefused"
    );
    let (code, said) = fails(&store, &["volume", "rm", "keep"]);
    assert_eq!((code, said.contains("in use")), (1, true), "{said}");
}

#[test]
fn limits_and_kernel_settings() {
    let Some(store) = busybox::store() else { return };
    assert_eq!(sh(&store, &["--ulimit", "nofile=100:200"], "ulimit -n; ulimit -Hn"), "100\n200");
    assert_eq!(
        sh(&store, &["--sysctl", "net.ipv4.ip_default_ttl=77"], "cat /proc/sys/net/ipv4/ip_default_ttl"),
        "77"
    );
    assert_eq!(
        sh(&store, &["--shm-size", "2m"], "df -m /dev/shm | tail -n 1 | tr -s ' ' | cut -d' ' -f2"),
        "2"
    );
    assert_eq!(sh(&store, &["--init"], "ps | grep -c '^ *1 '"), "1");
    for bad in [
        ["--sysctl", "kernel.panic=1"],
        ["--memory", "1k"],
        ["--cpuset-cpus", "4000"],
        ["--cpus", "10000"],
        ["--memory-swap", "7m"],
    ] {
        let (code, said) = fails(&store, &["run", "--rm", bad[0], bad[1], "busybox", "true"]);
        assert_eq!((code, said.lines().count()), (125, 1), "{bad:?}: {said}");
    }
    assert_eq!(store.ok(&["ps", "-aq"]), "");
}

#[test]
fn privileged_says_what_it_gives_away() {
    let Some(store) = busybox::store() else { return };
    let out = store.out(&[
        "run",
        "--rm",
        "--privileged",
        "busybox",
        "sh",
        "-c",
        "mount -t tmpfs x /tmp && grep Seccomp: /proc/self/status",
    ]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("--privileged gives"), "{}", text(&out.stderr));
    assert_eq!(text(&out.stdout).split_whitespace().last(), Some("0"));
}

#[test]
fn names_and_id_files() {
    let Some(store) = busybox::store() else { return };
    let file = store.root().with_file_name("cid");
    let id = store.ok(&[
        "run",
        "-d",
        "--name",
        "one",
        "--cidfile",
        file.to_str().unwrap(),
        "busybox",
        "sleep",
        "60",
    ]);
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), id);
    let (code, said) = fails(&store, &["run", "-d", "--name", "one", "busybox", "true"]);
    assert_eq!((code, said.contains("already in use")), (125, true), "{said}");
    let (code, said) = fails(&store, &["run", "-d", "--name", "a/b", "busybox", "true"]);
    assert_eq!((code, said.contains("invalid container name")), (125, true), "{said}");
    assert_eq!(store.ok(&["rm", "-f", "one"]), "one");
}

#[test]
fn namespaces_are_shared_when_asked() {
    let Some(store) = busybox::store() else { return };
    store.ok(&["run", "-d", "--name", "base", "busybox", "sleep", "60"]);
    let shared = sh(
        &store,
        &["--pid", "container:base", "--network", "container:base"],
        "ps | grep -c 'sleep 60$'; readlink /proc/self/ns/net",
    );
    let net = store.ok(&["exec", "base", "readlink", "/proc/self/ns/net"]);
    assert_eq!(shared, format!("1\n{net}"));
    let host = std::fs::read_link("/proc/self/ns/uts").unwrap();
    assert_eq!(sh(&store, &["--uts", "host"], "readlink /proc/self/ns/uts"), host.to_str().unwrap());
    assert_ne!(sh(&store, &[], "readlink /proc/self/ns/uts"), host.to_str().unwrap());
    assert_ne!(
        sh(&store, &["--timens", "private"], "readlink /proc/self/ns/time"),
        std::fs::read_link("/proc/self/ns/time").unwrap().to_str().unwrap()
    );
    store.ok(&["rm", "-f", "base"]);
    let (code, said) = fails(&store, &["run", "--rm", "--network", "container:base", "busybox", "true"]);
    assert_eq!(code, 125, "{said}");
}
