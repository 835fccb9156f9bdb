//! What is mounted from the host: directories, files and volumes are the same in a container and in a microVM.

use dhow_tests::said::{ok, text, until};
use dhow_tests::{Store, compile, vm};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::process::Output;

/// The flag of each hull.
const HULLS: [&[&str]; 2] = [&["--isolation", "container"], &["--vm"]];

fn run(store: &Store, hull: &[&str], flags: &[&str], script: &str) -> Output {
    store.out(&[&["run"], hull, flags, &["busybox", "sh", "-c", script]].concat())
}

#[test]
fn directories_and_files_of_the_host_are_the_same_in_both_hulls() {
    let Some(store) = vm::store() else { return };
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "the host's own").unwrap();
    let script = "cd /w; cat seed; id -u > made; mkdir -p d/e; echo deep > d/e/f; ln -s ../seed d/link; \
                  cat d/link; ln made second; mv second third; chown 7:8 third; chmod 604 third; rm seed; \
                  mknod fifo p; stat -c '%F %u:%g %a %h' third fifo d d/link; cat out/secret; cat up; \
                  head -c 300000 /dev/zero | tr '\\0' x > big; md5sum < big; echo more >> /f; cat /f; \
                  ls -la /r | wc -l; cat /r/kept; touch /r/x; rm /r/kept; echo no > /r/kept; echo no > /rf; \
                  df /w | wc -l; find . | sort; mknod dev c 1 3; echo end";
    let [container, vm] = HULLS.map(|hull| {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        for name in ["w", "r"] {
            fs::create_dir(at(name)).unwrap();
        }
        for (name, content) in
            [("w/seed", "seed\n"), ("r/kept", "kept\n"), ("f", "file\n"), ("rf", "fixed\n")]
        {
            fs::write(at(name), content).unwrap();
        }
        fs::set_permissions(at("w"), fs::Permissions::from_mode(0o777)).unwrap();
        // Where links of the host lead, nothing inside leads.
        symlink(outside.path(), at("w/out")).unwrap();
        symlink("../f", at("w/up")).unwrap();
        let binds = [("w", "/w"), ("r", "/r:ro"), ("f", "/f"), ("rf", "/rf:ro")];
        let binds = binds.map(|(from, to)| format!("{}:{to}", at(from)));
        let flags = binds.iter().flat_map(|bind| ["-v", bind]).collect::<Vec<_>>();
        let out = run(&store, hull, &[&["--rm"], &flags[..]].concat(), script);
        let errors: Vec<String> = text(&out.stderr)
            .lines()
            .filter(|l| !l.starts_with("dhow: no hardware"))
            .map(str::to_owned)
            .collect();
        let third = fs::metadata(at("w/third")).unwrap();
        let owners = (third.uid(), third.gid(), third.mode() & 0o7777, third.nlink());
        let files = [at("w/made"), at("w/d/e/f"), at("f"), at("rf"), at("r/kept")];
        let files = files.map(|path| fs::read_to_string(path).unwrap());
        let link = fs::read_link(at("w/d/link")).unwrap();
        let made = fs::metadata(at("w/d/e/f")).unwrap();
        (
            text(&out.stdout),
            errors,
            owners,
            files,
            link,
            (made.uid(), made.gid()),
            fs::exists(at("w/dev")).unwrap(),
        )
    });
    assert_eq!(container.0, vm.0);
    assert!(vm.0.ends_with("end\n") && !vm.0.contains("the host's own"), "{}", vm.0);
    let refusals = vm.1.iter().filter(|line| line.contains("Read-only file system")).count();
    assert_eq!(refusals, 4, "{:?}", vm.1);
    // A container may make the device's node, where a guest would have it made on another machine than its own.
    assert!(vm.1.iter().any(|line| line.contains("dev: Operation not permitted")), "{:?}", vm.1);
    assert!(container.6 && !vm.6);
    let others =
        |lines: &[String]| lines.iter().filter(|l| !l.contains("mknod")).cloned().collect::<Vec<_>>();
    assert_eq!(others(&container.1), others(&vm.1));
    assert_eq!((&container.2, &container.3, &container.4, container.5), (&vm.2, &vm.3, &vm.4, vm.5));
    assert_eq!((vm.2, vm.5), ((7, 8, 0o604, 2), (0, 0)));
    assert_eq!(vm.3, ["0\n", "deep\n", "file\nmore\n", "fixed\n", "kept\n"]);
}

#[test]
fn users_inside_own_what_they_make_and_the_hosts_changes_are_seen() {
    let Some(store) = vm::store() else { return };
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let bind = format!("type=bind,source={},target=/shared", dir.path().display());
    let path = |name: &str| dir.path().join(name);
    fs::write(path("word"), "first\n").unwrap();
    fs::write(path("private"), "root's\n").unwrap();
    fs::set_permissions(path("private"), fs::Permissions::from_mode(0o600)).unwrap();
    // Locks and mappings are of one file, on whichever side.
    compile(include_str!("../src/peer.c"), &path("peer"));
    for name in ["record", "lock", "map"] {
        fs::write(path(name), [0; 4096]).unwrap();
        fs::set_permissions(path(name), fs::Permissions::from_mode(0o666)).unwrap();
    }
    let open = |name: &str| fs::File::options().read(true).write(true).open(path(name)).unwrap();
    let [record, lock, map] = ["record", "lock", "map"].map(open);
    rustix::fs::fcntl_lock(&record, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    lock.lock().unwrap();
    let script = "cd /shared; ./peer . & cd /shared; cat private; echo x > mine; until grep -q second word; do sleep 0.1; done; \
                  until test -e new; do sleep 0.1; done; cat new; cat word > answer; exec sleep 1000";
    let out = run(&store, HULLS[1], &["-d", "--name", "vm", "-u", "user", "--mount", &bind], script);
    ok(&out);
    until("the guest's file", || path("mine").exists());
    let meta = fs::metadata(path("mine")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (1000, 1000));
    fs::write(path("word"), "second\n").unwrap();
    // As editors do it: another file gets the name.
    fs::write(path("half"), "new\n").unwrap();
    fs::rename(path("half"), path("new")).unwrap();
    until("the guest's answer", || fs::read(path("answer")).is_ok_and(|answer| answer == b"second\n"));
    assert!(text(&store.out(&["logs", "vm"]).stderr).contains("'private': Permission denied"));

    until("the guest's try", || path("record-busy").exists() && path("flock-busy").exists());
    assert!(!path("flock-got").exists());
    lock.unlock().unwrap();
    until("the guest's lock", || path("flock-got").exists());
    assert!(lock.try_lock().is_err());
    until("what the guest has mapped", || path("map-written").exists());
    assert!(fs::read(path("map")).unwrap().starts_with(b"from the guest\0"));
    map.write_all_at(b"h", 100).unwrap();
    until("what the host has written", || path("map-read").exists());

    // Files are also copied there, whether it runs or not, and a start finds the directory again.
    let put = path("word").to_str().unwrap().to_owned();
    store.ok(&["cp", &put, "vm:/shared/copied"]);
    assert_eq!(fs::read(path("copied")).unwrap(), b"second\n");
    store.ok(&["kill", "vm"]);
    store.ok(&["wait", "vm"]);
    store.ok(&["cp", &put, "vm:/shared/again"]);
    assert_eq!(fs::read(path("again")).unwrap(), b"second\n");
    fs::remove_file(path("answer")).unwrap();
    store.ok(&["start", "vm"]);
    until("the guest's answer", || path("answer").exists());
    store.ok(&["rm", "-f", "vm"]);
}

#[test]
fn volumes_pass_from_one_hull_to_the_other() {
    let Some(store) = vm::store() else { return };
    let [container, vm] = HULLS;
    // A new volume begins with what the image has there, in either hull.
    for (hull, name) in [(container, "one"), (vm, "two")] {
        let flags = ["--rm", "-v", &format!("{name}:/data")];
        let out = run(
            &store,
            hull,
            &flags,
            "cat /data/seed; stat -c '%a %u' /data /data/seed; echo here > /data/note",
        );
        assert_eq!(ok(&out), "from the image\n750 0\n640 0\n");
    }
    for (hull, name) in [(vm, "one"), (container, "two")] {
        let flags = ["--rm", "-v", &format!("{name}:/data:ro")];
        let out = run(&store, hull, &flags, "cat /data/note /data/seed; touch /data/x");
        assert_eq!(text(&out.stdout), "here\nfrom the image\n");
        assert!(text(&out.stderr).contains("Read-only file system"), "{}", text(&out.stderr));
    }

    // The image's own volumes: another for each container, gone with it.
    ok(&run(&store, container, &["--name", "box"], "true"));
    store.ok(&["commit", "--change", "VOLUME /data", "box", "voluminous"]);
    store.ok(&["rm", "box"]);
    let command = [
        "voluminous",
        "sh",
        "-c",
        "cat /data/seed; echo mine > /data/own; ls /data; touch /mem/x && df /mem | tail -1",
    ];
    let out = store.out(&[&["run"], vm, &["--name", "vol", "--tmpfs", "/mem"], &command[..]].concat());
    assert!(ok(&out).starts_with("from the image\nown\nseed\ntmpfs "), "{}", text(&out.stdout));
    let name = store.ok(&[
        "inspect",
        "-f",
        "{{range .Mounts}}{{if eq .Type \"volume\"}}{{.Name}}{{end}}{{end}}",
        "vol",
    ]);
    assert_eq!(fs::read(store.root().join("volumes").join(&name).join("_data/own")).unwrap(), b"mine\n");
    let out = run(&store, container, &["--rm", "--volumes-from", "vol"], "cat /data/own");
    assert_eq!(ok(&out), "mine\n");
    store.ok(&["rm", "-v", "vol"]);
    assert!(!store.ok(&["volume", "ls", "-q"]).contains(&name));
}

/// The process that serves a microVM's mounts: the only one in its cgroup with a PID namespace of its own.
fn server_of(store: &Store, name: &str) -> i32 {
    let monitor = store.ok(&["inspect", "-f", "{{.State.Pid}}", name]);
    let own = fs::read_link(format!("/proc/{monitor}/ns/pid")).unwrap();
    let children = fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children")).unwrap();
    let mut servers = children
        .split_whitespace()
        .filter(|pid| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|namespace| namespace != own));
    servers.next().expect("there is a server").parse().unwrap()
}

#[test]
fn the_server_is_shut_in_and_its_death_is_an_error_inside() {
    let Some(store) = vm::store() else { return };
    let dir = tempfile::tempdir().unwrap();
    let bind = format!("{}:/shared", dir.path().display());
    let script = "echo up > /shared/up; while echo x > /shared/beat; do sleep 0.1; done; echo gone";
    ok(&run(&store, HULLS[1], &["-d", "--name", "vm", "-v", &bind], script));
    until("the guest", || dir.path().join("up").exists());
    let server = server_of(&store, "vm");
    // Its root has the one directory; it has none of the namespaces, nor other privileges than those over files.
    let names: Vec<_> =
        fs::read_dir(format!("/proc/{server}/root")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["0"]);
    let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    for line in ["CapEff:\t00000000000000db", "CapPrm:\t00000000000000db", "Seccomp:\t2", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    let mounts = fs::read_to_string(format!("/proc/{server}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 2, "{mounts}");
    assert!(
        mounts.lines().all(|m| m.contains("nosuid,nodev,noexec") && m.contains("nosymfollow")),
        "{mounts}"
    );

    let pid = rustix::process::Pid::from_raw(server).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(store.ok(&["wait", "vm"]), "0");
    let logs = store.out(&["logs", "vm"]);
    assert_eq!(text(&logs.stdout), "gone\n");
    assert!(text(&logs.stderr).contains("Input/output error"), "{}", text(&logs.stderr));
    // The next start has a server of its own; the machine's end is the end of that.
    store.ok(&["start", "vm"]);
    fs::remove_file(dir.path().join("up")).unwrap();
    until("the guest", || fs::exists(dir.path().join("beat")).unwrap());
    let server = server_of(&store, "vm");
    store.ok(&["rm", "-f", "vm"]);
    until("the server's end", || !fs::exists(format!("/proc/{server}")).unwrap());
}

#[test]
fn what_cannot_be_mounted_into_a_microvm_is_refused_in_one_sentence() {
    let Some(store) = vm::store() else { return };
    let refused = |flags: &[&str], said: &str| {
        let out = run(&store, HULLS[1], flags, "true");
        let errors = text(&out.stderr);
        assert!(
            out.status.code() == Some(125) && errors.contains(said),
            "{flags:?}: {:?} {errors}",
            out.status
        );
    };
    refused(
        &["-v", "/dev/null:/null"],
        "/dev/null cannot be mounted into a microVM: only directories and regular files can",
    );
    refused(
        &["-v", "/etc:/host:rshared"],
        "the propagation rshared of the mount at /host is not for microVMs",
    );
    refused(&["-v", "/etc:/bin/busybox"], "the source on the host is a directory");
    refused(&["--mount", "type=bind,src=/nowhere,dst=/x"], "bind source path does not exist");
}
