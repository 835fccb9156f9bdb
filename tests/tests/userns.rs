//! `--userns private`: root inside is nobody outside, and files know their owners everywhere they are looked at.

use dhow_tests::{Store, busybox, have};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn store() -> Option<Store> {
    if std::fs::read_to_string("/proc/sys/user/max_user_namespaces").is_ok_and(|n| n.trim() == "0") {
        eprintln!("skipped: this host has no user namespaces");
        return None;
    }
    busybox::store()
}

/// `run --rm --userns private busybox sh -c SCRIPT` with flags; what it prints.
fn sh(store: &Store, flags: &[&str], script: &str) -> String {
    let mut args = vec!["run", "--rm", "--userns", "private"];
    args.extend(flags);
    args.extend(["busybox", "sh", "-c", script]);
    store.ok(&args)
}

/// Owner and mode of the entries of a tar, by name.
fn listed(tar: &[u8]) -> Vec<(String, u64, u64)> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|e| {
        let e = e.unwrap();
        let name = e.path().unwrap().to_string_lossy().trim_end_matches('/').to_owned();
        (name, e.header().uid().unwrap(), e.header().gid().unwrap())
    });
    entries.collect()
}

fn owner_of(tar: &[u8], name: &str) -> (u64, u64) {
    let all = listed(tar);
    let found = all.iter().find(|(n, ..)| n == name).unwrap_or_else(|| panic!("no {name} in {all:?}"));
    (found.1, found.2)
}

/// The first id outside of a running container.
fn first_id(store: &Store, container: &str) -> u32 {
    let map = store.ok(&["exec", container, "cat", "/proc/self/uid_map"]);
    let fields: Vec<u32> = map.split_whitespace().map(|f| f.parse().unwrap()).collect();
    assert_eq!((fields[0], fields[2]), (0, 65_536), "{map}");
    fields[1]
}

#[test]
fn the_root_filesystem_is_the_containers_own() {
    let Some(store) = store() else { return };
    let script = "touch /new && chown user:extra /new && stat -c %u:%g /new /data/seed /etc/hosts /tmp /dev/shm
        echo more >> /data/seed && chown user /data/seed && chmod 4755 /data/seed && stat -c %u:%a /data/seed
        mkdir -p /d1/d2 && mv /d1 /d3 && ln /new /hard && stat -c %h /new
        rm -r /home && mkdir /home && ls /home
        mknod /null c 1 3 2>/dev/null || echo no devices
        echo streams > /dev/stdout; echo nothing > /dev/null; echo x > /dev/shm/x; ls /sys/fs/cgroup > /dev/null && echo cgroups";
    let said = sh(&store, &["--network", "none"], script);
    let want = "1000:2000 0:0 0:0 0:0 0:0 1000:4755 2 no devices streams cgroups";
    assert_eq!(said.split_whitespace().collect::<Vec<_>>().join(" "), want);
    // A user of the image, too, and an init.
    let flags = ["--network", "none", "--init", "-u", "user", "--tmpfs", "/scratch:mode=1777"];
    assert_eq!(
        sh(&store, &flags, "id -u; echo mine > /dev/stdout; touch /scratch/x && echo ok"),
        "1000\nmine\nok"
    );
    // A read-only root.
    assert_eq!(
        sh(&store, &["--network", "none", "--read-only"], "touch /x 2>/dev/null || echo refused"),
        "refused"
    );
}

#[test]
fn what_changed_is_told_in_ids_of_the_inside() {
    let Some(store) = store() else { return };
    let script = "echo a > /a; chown 7:8 /a; chown user /data/seed; rm /etc/group";
    store.ok(&[
        "run",
        "--name",
        "apart",
        "--userns",
        "auto",
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    let diff = store.ok(&["diff", "apart"]);
    for line in ["A /a", "C /data/seed", "D /etc/group"] {
        assert!(diff.lines().any(|l| l == line), "{line}: {diff}");
    }
    let exported = store.out(&["export", "apart"]).stdout;
    assert_eq!((owner_of(&exported, "a"), owner_of(&exported, "data/seed")), ((7, 8), (1000, 0)));
    store.ok(&["commit", "apart", "changed"]);
    for mode in ["host", "private"] {
        let args = ["run", "--rm", "--network", "none", "--userns", mode, "changed"];
        let look = ["stat", "-c", "%u:%g", "/a", "/data/seed", "/etc/passwd"];
        assert_eq!(store.ok(&[&args[..], &look[..]].concat()), "7:8\n1000:0\n0:0", "{mode}");
    }
    // Files are put into one that does not run.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "x").unwrap();
    std::os::unix::fs::chown(dir.path().join("f"), Some(1000), Some(2000)).unwrap();
    store.ok(&["cp", "-a", dir.path().join("f").to_str().unwrap(), "apart:/tmp/f"]);
    assert_eq!(owner_of(&store.out(&["cp", "apart:/tmp/f", "-"]).stdout, "f"), (1000, 2000));
}

#[test]
fn a_running_one_is_reached_from_outside() {
    let Some(store) = store() else { return };
    let serve = "while :; do printf 'HTTP/1.0 200 OK\\r\\n\\r\\nserved' | nc -l -p 80; done";
    let run = ["run", "-d", "--userns", "private", "--init", "-p", "127.0.0.1::80", "-v", "vol:/vol"];
    for name in ["apart", "other"] {
        store.ok(&[&run[..], &["--name", name, "busybox", "sh", "-c", serve]].concat());
    }
    // Two that live have nothing in common, and nothing with the host.
    let (first, other) = (first_id(&store, "apart"), first_id(&store, "other"));
    assert!(first >= 65_536 && first.abs_diff(other) >= 65_536, "{first} {other}");
    let pid = store.ok(&["inspect", "-f", "{{.State.Pid}}", "apart"]);
    assert_eq!(std::fs::metadata(format!("/proc/{pid}/root/etc/passwd")).unwrap().uid(), first);

    let exec = |args: &[&str]| store.ok(&[&["exec"], args].concat());
    assert_eq!(exec(&["apart", "sh", "-c", "id -u; touch /by-exec; echo out > /dev/stdout"]), "0\nout");
    assert_eq!(exec(&["-u", "user", "apart", "sh", "-c", "id -u; echo out > /dev/stdout"]), "1000\nout");
    if have("script") {
        let tty = format!(
            "{} exec -it apart sh -c 'tty; stat -c %u /dev/pts/0'",
            dhow_tests::program().canonicalize().unwrap().display()
        );
        let out = Command::new("script")
            .args(["-qec", &tty, "/dev/null"])
            .env("DHOW_ROOT", store.root())
            .env("DHOW_RUN", store.run())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        // script(1) passes the end of its input on as a NUL, which the terminal echoes whenever it comes.
        let said = String::from_utf8_lossy(&out.stdout).replace(['\r', '\0'], "").replace("^@", "");
        assert!(said.contains("/dev/pts/0\n0\n"), "{said:?}");
    }

    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("tree")).unwrap();
    std::fs::write(path("tree/f"), vec![7; 300_000]).unwrap();
    std::os::unix::fs::chown(path("tree/f"), Some(1000), Some(2000)).unwrap();
    let capable = have("setcap");
    if capable {
        std::fs::copy("/bin/busybox", path("tree/capped")).unwrap();
        let done = Command::new("setcap").args(["cap_net_raw=ep", &path("tree/capped")]).status().unwrap();
        assert!(done.success());
    }
    store.ok(&["cp", "-a", &path("tree"), "apart:/tmp"]);
    store.ok(&["cp", "-a", &path("tree/f"), "apart:/vol/f"]);
    let stat = exec(&["apart", "stat", "-c", "%u:%g %s", "/tmp/tree", "/tmp/tree/f", "/vol/f"]);
    let stat: Vec<_> = stat.lines().collect();
    assert!(stat[0].starts_with("0:0 "), "{stat:?}");
    assert_eq!(stat[1..], ["1000:2000 300000"; 2]);
    let packed = store.out(&["cp", "apart:/tmp/tree", "-"]).stdout;
    assert_eq!((owner_of(&packed, "tree"), owner_of(&packed, "tree/f")), ((0, 0), (1000, 2000)));
    store.ok(&["cp", "-a", "apart:/tmp/tree", &path("back")]);
    let back = std::fs::metadata(path("back/f")).unwrap();
    assert_eq!((back.uid(), back.gid(), back.len()), (1000, 2000, 300_000));
    if capable {
        let out = Command::new("getcap").arg(path("back/capped")).output().unwrap();
        assert!(String::from_utf8_lossy(&out.stdout).contains("cap_net_raw"), "{out:?}");
    }
    let exported = store.out(&["export", "apart"]).stdout;
    assert_eq!(owner_of(&exported, "by-exec"), (0, 0));
    assert_eq!(owner_of(&exported, "tmp/tree/f"), (1000, 2000));
    for (args, why) in [
        (["cp", "apart:/nowhere", "-"], "Could not find the file /nowhere"),
        (["cp", &path("tree/f"), "apart:/proc/nowhere/x"], "Could not find the file /proc/nowhere"),
    ] {
        let out = store.out(&args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && said.contains(why), "{said}");
    }

    let port = store.ok(&["port", "apart", "80"]);
    let begin = Instant::now();
    loop {
        let mut reply = String::new();
        let got = TcpStream::connect(port.lines().next().unwrap()).and_then(|mut s| {
            s.set_read_timeout(Some(Duration::from_secs(5)))?;
            s.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            s.read_to_string(&mut reply)
        });
        if reply.contains("served") {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(15), "{port} does not serve: {got:?} {reply:?}");
        std::thread::sleep(Duration::from_millis(50));
    }

    // It comes back with its range, its files and its volume.
    store.ok(&["restart", "-t", "0", "apart"]);
    assert_eq!(first_id(&store, "apart"), first);
    assert_eq!(exec(&["apart", "stat", "-c", "%u", "/by-exec", "/vol/f", "/tmp/tree/f"]), "0\n1000\n1000");
}

#[test]
fn volumes_are_shared_and_binds_show_who_wrote_them() {
    let Some(store) = store() else { return };
    // The image's files come along with their owners; /data of the image is root's, 0750.
    let look = "stat -c %u:%a /data /data/seed; touch /data/mine; chown user /data/mine; chmod 0777 /data";
    assert_eq!(sh(&store, &["--network", "none", "-v", "data:/data"], look), "0:750\n0:640");
    let args = ["run", "--rm", "--network", "none", "-v", "data:/data"];
    let look = ["stat", "-c", "%u:%g", "/data", "/data/seed", "/data/mine"];
    assert_eq!(store.ok(&[&args[..], &["busybox"], &look[..]].concat()), "0:0\n0:0\n1000:0");
    assert_eq!(
        store.ok(&[&args[..], &["--userns", "private", "busybox"], &look[..]].concat()),
        "0:0\n0:0\n1000:0"
    );
    // An anonymous one is its root's too.
    assert_eq!(
        sh(&store, &["--network", "none", "-v", "/any"], "touch /any/x && stat -c %u /any /any/x"),
        "0\n0"
    );

    // A directory of the host stays the host's.
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let host = |name: &str| dir.path().join(name);
    std::fs::write(host("secret"), "s").unwrap();
    std::fs::set_permissions(host("secret"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let bind = format!("{}:/bind", dir.path().display());
    let script =
        "echo x > /bind/new; cut -d' ' -f1 /proc/self/uid_map > /dev/null; sed 's/  */ /g' /proc/self/uid_map
        cat /bind/secret 2>/dev/null || echo refused; stat -c %u /bind/secret /bind/new";
    let said = sh(&store, &["--network", "none", "-v", &bind], script);
    let words: Vec<_> = said.split_whitespace().collect();
    assert_eq!(words[3..], ["refused", "65534", "0"], "{said}");
    assert_eq!(owner(&host("new")).to_string(), words[1]);
}

fn owner(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().uid()
}

#[test]
fn what_its_root_could_not_do_is_refused() {
    let Some(store) = store() else { return };
    for (flags, why) in [
        (&["--privileged"][..], "--privileged"),
        (&["--network", "host"], "--network host"),
        (&["--pid", "host"], "--pid host"),
        (&["--ipc", "host"], "--ipc host"),
        (&["--network", "container:x"], "--network container:x"),
    ] {
        let args = [&["create", "--userns", "private"], flags, &["busybox", "true"]].concat();
        let out = store.out(&args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && said.contains(why), "{flags:?}: {said}");
    }
    assert_eq!(store.ok(&["ps", "-aq"]), "");
    let map = store.ok(&[
        "run",
        "--rm",
        "--network",
        "none",
        "--userns",
        "host",
        "busybox",
        "cat",
        "/proc/self/uid_map",
    ]);
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "0", "4294967295"]);
}
